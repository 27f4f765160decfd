"""What a training step costs by formulas: flops, memory, what travels; and with figures of hardware, how long it takes.

A stack of pairs n_l x n_l+1 learns by probability flow on minibatches of B examples over D devices along the data axis
and M along the model axis, so that a device has R = B / D examples and w / M of all w weights. For each step

    flops of a device    10 R w / M: 2 for the fields of the E-step, 4 for those of the rule, 4 for the gradient
    memory traffic       44 w / M + 24 R (units of each pair that the device has) bytes
    model axis           all-reduce of 4 R (n_l + 1) bytes for each pair; all-gather of R n_l bytes for each hidden
                         layer that another one stands on
    data axis            all-reduce of 4 (w / M + biases + 1 for each pair) bytes

and the time is that of the products or of the memory, whichever is longer, and then that of what travels: nothing is
done at the same time, which is the worst case. `sent` are the collectives of the compiled program (`scaling` compares
them), `told` is what is said of them in short: a device sends R n_l (1/8 + 4 + 4) bytes for each pair along the model
axis (states as bits, and a sum of fields that a ring scatters and gathers) and the gradient along the data axis.

Not here: the figures (`hardware`), compiled programs (`scaling`).
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable

from benchmarks import hardware
from benchmarks.collectives import Collective

FLOPS = 10
"""Of an example and a weight."""
STATE = 16
"""Bytes of a weight, its gradient and the two moments of Adam."""
MEASURED = 24
"""Bytes of a weight that the programs compiled for a CPU take: two more copies while the optimizer works."""
UNIT = 12
"""Bytes of an example at a unit that the programs take at most: state, field and slope."""
_TRAFFIC, _UNIT_TRAFFIC = 44, 24
"""Bytes. A weight is read by three products; the gradient is written and read; weight and moments are read and written.
A unit's state is written and read three times, its field written and read, its slope written and read twice."""

_MANY = 2**24
"""Devices, where nobody says how many there may be."""
_LEAST_BATCH, _MOST_BATCH = 2**8, 2**26


@dataclasses.dataclass(frozen=True)
class Plan:
    """A stack of pairs, a minibatch, and a mesh."""

    sizes: tuple[int, ...]
    batch: int
    data: int = 1
    model: int = 1
    intra: bool = False
    """Whether there are weights inside the hidden layers."""

    @property
    def devices(self) -> int:
        return self.data * self.model

    @property
    def units(self) -> int:
        return sum(self.sizes)

    @property
    def rows(self) -> float:
        """Examples of a device."""
        return self.batch / self.data

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        return tuple(itertools.pairwise(self.sizes))

    @property
    def weights(self) -> int:
        """As the products see them: both halves of a symmetric matrix inside the upper layer of each pair."""
        return sum(n * m + m**2 * self.intra for n, m in self.pairs)

    @property
    def own_units(self) -> float:
        """Units of all pairs that a device works on: lower ones, and its part of the upper ones."""
        return sum(n + m / self.model for n, m in self.pairs)


def flops(plan: Plan) -> float:
    """Of a step, on one device."""
    return FLOPS * plan.rows * plan.weights / plan.model


def traffic(plan: Plan) -> float:
    """Bytes between the memory and the cores of one device in a step."""
    return _TRAFFIC * plan.weights / plan.model + _UNIT_TRAFFIC * plan.rows * plan.own_units


def memory(plan: Plan, examples: int = 0, of_weight: int = MEASURED) -> float:
    """Bytes on one device, with a data set that lies whole on each, one byte for a visible unit."""
    of_units = UNIT * plan.rows * plan.own_units
    return of_weight * plan.weights / plan.model + of_units + examples * plan.sizes[0]


def sent(plan: Plan) -> list[Collective]:
    """The collectives of a step, but for weights inside layers along the model axis, of which there is no formula.

    Raises:
      ValueError: such a plan.
    """
    if plan.intra and plan.model > 1:
        raise ValueError(f"got {plan}; it takes weights inside layers on one device along the model axis")
    found = []
    lower, pairs = sum(n for n, _ in plan.pairs), len(plan.pairs)
    if plan.model > 1:
        group = range(plan.model)
        found.append(_one("all-reduce", 4 * plan.rows * (lower + pairs), group))
        for n in plan.sizes[1:-1]:
            found.append(_one("all-gather", plan.rows * n, group))
    if plan.data > 1:
        biases = sum(n + m / plan.model for n, m in plan.pairs)
        group = range(0, plan.devices, plan.model)
        found.append(_one("all-reduce", 4 * (plan.weights / plan.model + biases + pairs), group))
    return found


def told(plan: Plan) -> float:
    """Bytes that a device sends in a step, in short."""
    lower = sum(n for n, _ in plan.pairs)
    along_model = plan.rows * lower * (1 / 8 + 4 + 4) * (plan.model - 1) / plan.model
    along_data = 2 * 4 * plan.weights / plan.model * (plan.data - 1) / plan.data
    return along_model + along_data


@dataclasses.dataclass(frozen=True)
class Step:
    """Seconds of a step."""

    products: float
    memory: float
    travel: float

    @property
    def work(self) -> float:
        return max(self.products, self.memory)

    @property
    def total(self) -> float:
        return self.work + self.travel

    @property
    def share(self) -> float:
        """Of what travels in the time."""
        return self.travel / self.total


def step(chip: hardware.Chip, plan: Plan, found: Iterable[Collective] | None = None) -> Step:
    """Of a plan on such devices; collectives of a compiled program, or those of `sent`."""
    return Step(
        products=flops(plan) / (chip.bfloat16 * chip.reached),
        memory=traffic(plan) / (chip.memory_peak * chip.memory_reached),
        travel=hardware.seconds_of(chip, sent(plan) if found is None else found),
    )


def fits(chip: hardware.Chip, plan: Plan, examples: int = 0, of_weight: int = MEASURED) -> bool:
    """Whether a device has room for its part, and a job may be as large."""
    room = memory(plan, examples, of_weight) <= chip.usable * chip.memory
    return room and (chip.most is None or plan.devices <= chip.most)


SHAPES = {
    "pair n x n": lambda n: (n, n),
    "RBM of 1,000 inputs": lambda n: (1000, n),
    "stack of layers of 65,536": lambda n: (2**16,) * (n + 1),
}
"""Sizes of the layers by one number: units of the upper layer, or pairs."""


def largest(
    chip: hardware.Chip, shape: str, devices: int, batch: int, examples: int = 0, of_weight: int = MEASURED
) -> Plan | None:
    """The largest machine of a shape that so many devices hold, all of them along the model axis.

    Its upper layers are multiples of the devices; None: not even the smallest one fits.
    """
    layers = shape.startswith("stack")
    unit = 1 if layers else devices

    def plan(count: int) -> Plan:
        return Plan(SHAPES[shape](count * unit), batch, model=devices)

    if (layers and 2**16 % devices) or not fits(chip, plan(1), examples, of_weight):
        return None
    low, high = 1, 2
    while fits(chip, plan(high), examples, of_weight):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(chip, plan(middle), examples, of_weight) else (low, middle)
    return plan(low)


def devices_for(chip: hardware.Chip, sizes: tuple[int, ...], batch: int, of_weight: int = MEASURED) -> int | None:
    """The fewest devices along the model axis that hold a machine; None: no job is as large."""

    def enough(count: int) -> bool:
        return fits(chip, Plan(sizes, batch, model=count), of_weight=of_weight)

    low, high = 0, chip.most or _MANY
    if not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def meshes(sizes: tuple[int, ...], devices: int, batch: int) -> list[Plan]:
    """All ways to lay a machine and a minibatch over so many devices that divide both, devices a power of 2."""
    counts = [2**k for k in range(int(math.log2(devices)) + 1)]
    plans = [Plan(sizes, batch, data=devices // model, model=model) for model in counts]
    return [p for p in plans if batch % p.data == 0 and all(n % p.model == 0 for n in sizes[1:])]


@dataclasses.dataclass(frozen=True)
class Advice:
    """A mesh and a minibatch for a machine and a number of devices."""

    plan: Plan
    keeps: bool
    """Whether travel takes less than the share; else it is the plan of the least travel."""
    needed: Plan | None
    """Where it does not: the one with the smallest minibatch beyond the largest allowed that does, if any."""


def recommended(
    chip: hardware.Chip, sizes: tuple[int, ...], devices: int, most_batch: int, share: float
) -> Advice | None:
    """The plan of most examples a second among those whose travel takes less than a share of the time.

    Minibatches are powers of 2 from 256. None: no plan fits into the memory.
    """

    def steps(batch: int) -> dict[Plan, Step]:
        return {plan: step(chip, plan) for plan in meshes(sizes, devices, batch) if fits(chip, plan)}

    known: dict[Plan, Step] = {}
    batch = _LEAST_BATCH
    while batch <= most_batch:
        known |= steps(batch)
        batch *= 2
    if not known:
        return None
    good = [plan for plan in known if known[plan].share < share]
    if good:
        return Advice(max(good, key=lambda plan: plan.batch / known[plan].total), True, None)
    closest, needed = min(known, key=lambda plan: known[plan].share), None
    while needed is None and batch <= _MOST_BATCH:
        needed = next((plan for plan, found in steps(batch).items() if found.share < share), None)
        batch *= 2
    return Advice(closest, False, needed)


def _one(kind: str, size: float, group: range) -> Collective:
    return Collective(kind, (), round(size), 1, tuple(group))
