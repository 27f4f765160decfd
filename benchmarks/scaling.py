"""Many devices on paper: what compiled training steps send, and how long they would take on figures of hardware.

    python -m benchmarks.scaling --workdir=runs/scaling

compiles epochs of the library for meshes of up to 512 devices that this process only pretends to have: from shapes, so
that nothing of them is allocated and nothing runs. From each program it reads the collectives of a step with their
bytes and groups, flops and memory, sets them beside the formulas (`cost`), and prices them (`hardware`). Writes
table.md, results.json, scaling-speed.png and scaling-size.png into --workdir; a few minutes on two cores.

Not here: anything that is measured on several devices (`devices`); other rules than probability flow.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

import vpf_jax
from benchmarks import cost, hardware, scaling_report
from benchmarks.collectives import Collective, bytes_of, collectives
from benchmarks.cost import Plan
from vpf_jax import checks, sharding, train
from vpf_jax.app import command
from vpf_jax.app.folder import UsageError
from vpf_jax.app.keys import key_for
from vpf_jax.settings import Settings, like, setting

# In an epoch, so that what a step sends differs from what is sent once.
STEPS = 2


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Settings; each is a flag."""

    devices: tuple[int, ...] = setting((1, 8, 64, 512), "Devices of the meshes", least=1, most=4096, increasing=True)
    node: int = setting(8, "Devices along the model axis of the meshes of two axes", least=2)
    lower: int = setting(8192, "Visible units of the pair", least=1)
    upper: int = setting(65536, "Hidden units of the pair", least=1)
    batch_size: int = setting(32768, "Examples of a step where the devices share one", least=1)
    rows: int = setting(4096, "Examples of a device where the minibatch grows with the devices", least=1)
    layers: tuple[int, ...] = setting(
        (8192, 16384, 4096), "Layers of the stack", least=1, distinct=False, fewest=3, longest=6
    )
    inside: tuple[int, ...] = setting(
        (1024, 512, 512),
        "Layers of the stack with weights inside its hidden layers",
        least=1,
        distinct=False,
        fewest=2,
        longest=6,
    )
    wide: tuple[int, ...] = setting(
        (2**22, 2**31 + 2**20), "Hidden units of RBMs of 1,000 inputs, over the most devices", least=1
    )
    precision: str = like(train.TrainConfig, "precision")
    most_share: float = setting(0.1, "Of the time that travel may take in a recommended mesh", above=0, below=1)
    most_batch: int = setting(65536, "Largest recommended minibatch", least=256)
    workdir: str = setting("runs/scaling", "Folder of what is written")

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
          SettingError: a value outside its range.
        """
        super().__post_init__()
        for name in ("devices", "node"):
            counts: Any = getattr(self, name)
            powers = all(number & (number - 1) == 0 for number in (counts if name == "devices" else (counts,)))
            checks.require(powers, name, counts, "powers of 2")
        most = self.devices[-1]
        for name in ("upper", "batch_size", "layers", "wide", "inside"):
            given: Any = getattr(self, name)
            numbers = given[1:] if name in ("layers", "inside") else given if name == "wide" else (given,)
            parts = self.node if name in ("layers", "inside") else most
            told = f"multiples of {parts} devices" + (", but for the first" if name in ("layers", "inside") else "")
            checks.require(all(number % parts == 0 for number in numbers), name, given, told)


@dataclasses.dataclass(frozen=True)
class Row:
    """A compiled program."""

    series: str
    plan: Plan
    found: tuple[Collective, ...]
    """Of a step."""
    once: tuple[Collective, ...]
    """Of an epoch, outside its steps."""
    flops: float
    """That the compiler counts, of a step; the E-step of one device stands outside."""
    state: int
    """Bytes on a device: weights and moments."""
    temporary: int
    """Bytes on a device while the program runs."""
    seconds: float
    """To compile."""

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a step."""
        return sum(hardware.sent(one) for one in self.found)

    @property
    def formula(self) -> float | None:
        """The same by the formula; None where there is none."""
        if self.plan.intra and self.plan.model > 1:
            return None
        return sum(hardware.sent(one) for one in cost.sent(self.plan))


def run(config: Config) -> list[Row]:
    """Compiles, writes the files and returns the rows.

    Raises:
      UsageError: more devices than JAX has been started with.
    """
    pretend(config.devices[-1])
    folder = Path(config.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for series, plan in plans(config):
        rows.append(measured(series, plan, config.precision))
        print(f"{series}: {scaling_report.mesh(plan)}, compiled in {rows[-1].seconds:.1f} s", flush=True)
    text = scaling_report.text(rows, config.most_share, config.most_batch)
    (folder / "table.md").write_text(text)
    (folder / "results.json").write_text(json.dumps([plain(row) for row in rows], indent=1))
    scaling_report.speed_plot(folder / "scaling-speed.png", rows)
    scaling_report.size_plot(folder / "scaling-size.png", rows)
    print(text)
    return rows


def pretend(devices: int) -> None:
    """Makes that JAX has so many devices, if it has not been started yet.

    Raises:
      UsageError: it has been started with fewer.
    """
    known: Any = jax.config
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", max(devices, known.jax_num_cpu_devices))
    if jax.device_count() < devices:
        raise UsageError(f"got --devices={devices}; JAX has been started with {jax.device_count()}")


def plans(config: Config) -> Iterator[tuple[str, Plan]]:
    """What is compiled: the name of a series, and its machines and meshes."""
    pair, most = (config.lower, config.upper), config.devices[-1]
    for count in config.devices:
        for data, model in _meshes(count, config.node):
            yield "pair, one minibatch shared", Plan(pair, config.batch_size, data, model)
    for count in config.devices[1:]:
        yield "pair, wider with the devices", Plan((config.lower, config.lower * count), config.rows, 1, count)
    for count in config.devices[1:]:
        yield "pair, more examples with the devices", Plan(pair, config.rows * count, count)
    for count in config.devices:
        data, model = _meshes(count, config.node)[-1]
        yield "stack", Plan(config.layers, config.batch_size, data, model)
    for count in config.devices:
        for data, model in _meshes(count, config.node)[-2:]:
            if model <= config.node:
                yield "stack with weights inside layers", Plan(config.inside, config.rows, data, model, intra=True)
    for hidden in config.wide:
        yield "RBM of 1,000 inputs", Plan((1000, hidden), 512, 1, most)


def _meshes(count: int, node: int) -> list[tuple[int, int]]:
    """Data by model: all along one axis, and both where there are several nodes."""
    alone = [(1, 1)] if count == 1 else [(count, 1), (1, count)]
    return [*alone, (count // node, node)] if count > node and count % node == 0 else alone


def measured(series: str, plan: Plan, precision: str = "float32") -> Row:
    """What the program of a plan says of itself."""
    started = time.perf_counter()
    compiled = compiled_epoch(plan, precision)
    taken = time.perf_counter() - started
    found = collectives(compiled.as_text() or "")
    bytes_now: Any = compiled.memory_analysis()
    counted: Any = compiled.cost_analysis()
    return Row(
        series,
        plan,
        found=tuple(one for one in found if one.times == STEPS),
        once=tuple(one for one in found if one.times != STEPS),
        flops=float(counted["flops"]),
        state=bytes_now.argument_size_in_bytes - STEPS * plan.batch * plan.sizes[0],
        temporary=bytes_now.temp_size_in_bytes,
        seconds=taken,
    )


def compiled_epoch(plan: Plan, precision: str = "float32") -> jax.stages.Compiled:
    """An epoch of a few steps over a mesh, from shapes alone."""
    config = train.TrainConfig(batch_size=plan.batch, epochs=1, precision=precision)
    mesh = sharding.make_mesh({"data": plan.data, "model": plan.model})

    def start(key: jax.Array) -> train.TrainState:
        machine_key, key = jax.random.split(key)
        return train.init_state(key, vpf_jax.init_stack(machine_key, plan.sizes, plan.intra), config)

    def lying(leaf: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    def epoch(state: train.TrainState, visible: jax.Array) -> tuple[train.TrainState, train.Metrics]:
        return train.train_epoch(state, visible, config=config)

    state = jax.eval_shape(start, key_for(0, "a step that is compiled and never run"))
    state = jax.tree.map(lying, state, sharding.layout(state))
    rows = jax.ShapeDtypeStruct((STEPS * plan.batch, plan.sizes[0]), jnp.uint8)
    visible = lying(rows, PartitionSpec())
    lowered: Callable[..., Any] = jax.jit(epoch, donate_argnums=0).lower
    with jax.set_mesh(mesh):
        return lowered(state, visible).compile()


def plain(row: Row) -> dict[str, Any]:
    """A row as JSON holds it, with its seconds on all chips."""
    kinds = [one._asdict() | {"group": len(one.group)} for one in row.found]
    steps = {chip.name: dataclasses.asdict(cost.step(chip, row.plan, row.found)) for chip in hardware.CHIPS}
    return {
        "series": row.series,
        **dataclasses.asdict(row.plan),
        "collectives": kinds,
        "bytes": bytes_of(row.found) // STEPS,
        "sent": row.sent,
        "formula": row.formula,
        "told": cost.told(row.plan),
        "once": bytes_of(row.once),
        "flops": row.flops,
        "state": row.state,
        "temporary": row.temporary,
        "seconds_to_compile": row.seconds,
        "seconds": steps,
    }


if __name__ == "__main__":
    # Programs for devices that do not exist are of no use to the next start.
    jax.config.update("jax_enable_compilation_cache", False)
    command.start(Config, run)
