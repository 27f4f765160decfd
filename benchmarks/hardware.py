"""Figures of machines that this project does not have at hand, and what a collective takes on them, on paper.

Peaks are the vendors' (docs/scaling.md has the addresses); shares of them that are reached, and latencies, are
assumptions, each a field. Bytes are those of a result on one device, as `collectives` counts them. With a group of n
devices, k of them in each of N nodes, each device sends

    all-reduce        2 (k - 1)/k bytes inside its node, and 2 (N - 1)/N bytes/k between nodes
    all-gather        half of that
    reduce-scatter    as an all-gather of n times its result
    all-to-all        (k - 1)/n bytes inside, (N - 1)/N bytes between nodes

one after the other: rings inside nodes, and rings between nodes through each device's own port. To that comes a latency
for each doubling of k and N. Not here: what a step computes (`cost`).
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable

from benchmarks.collectives import Collective

_WAYS = {"all-reduce": 2.0, "all-gather": 1.0, "reduce-scatter": 1.0}


@dataclasses.dataclass(frozen=True)
class Network:
    """How devices speak to one another."""

    name: str
    peak: float
    """Bytes that a device sends a second, in one direction."""
    reached: float
    """Share of the peak, assumed."""
    latency: float
    """Seconds for each doubling of the devices of a collective, assumed."""

    @property
    def rate(self) -> float:
        return self.peak * self.reached


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device and those around it."""

    name: str
    memory: float
    """Bytes."""
    memory_peak: float
    """Bytes a second."""
    bfloat16: float
    """Dense matrix products, flops a second at most; of bfloat16 factors, sums in float32."""
    node: int
    """Devices that the faster network joins."""
    inside: Network
    between: Network
    most: int | None = None
    """Devices of the largest job; None: nobody says."""
    reached: float = 0.4
    """Share of the peak of products, assumed."""
    memory_reached: float = 0.8
    """Share of the peak of memory, assumed."""
    usable: float = 0.9
    """Share of the memory that arrays may take, assumed."""


H100 = Chip(
    "H100 SXM",
    memory=80e9,
    memory_peak=3.35e12,
    bfloat16=989e12,
    node=8,
    inside=Network("NVLink", peak=450e9, reached=0.8, latency=10e-6),
    between=Network("InfiniBand NDR", peak=50e9, reached=0.92, latency=20e-6),
)
# A ring along one dimension of the torus leaves by two of the six links, at 100 GB/s each.
V5P = Chip(
    "TPU v5p",
    memory=95e9,
    memory_peak=2.765e12,
    bfloat16=459e12,
    node=6144,
    inside=Network("ICI, one dimension of the torus", peak=200e9, reached=0.9, latency=10e-6),
    between=Network("data centre network", peak=6.25e9, reached=0.8, latency=100e-6),
    most=18432,
)
CHIPS = (H100, V5P)


def sent(one: Collective) -> float:
    """Bytes that each device of a collective sends in all, each time, whatever the network."""
    inside, between = _parts(one, len(one.group) or 1)
    return inside + between


def seconds(chip: Chip, one: Collective) -> float:
    """What a collective takes, each time."""
    inside, between = _parts(one, chip.node)
    k, nodes = _spread(one.group, chip.node)
    latency = chip.inside.latency * math.log2(k) + chip.between.latency * math.log2(nodes)
    return inside / chip.inside.rate + between / chip.between.rate + latency


def seconds_of(chip: Chip, some: Iterable[Collective]) -> float:
    """What all of a step take, one after the other."""
    return sum(seconds(chip, one) for one in some)


def _parts(one: Collective, node: int) -> tuple[float, float]:
    """Bytes that a device sends inside its node, and to others."""
    k, nodes = _spread(one.group, node)
    n = len(one.group) or 1
    if one.kind == "all-to-all":
        return one.bytes * (k - 1) / n, one.bytes * (nodes - 1) / nodes
    if one.kind == "collective-permute":
        # Whom it reaches is not said: to another node.
        return 0.0, float(one.bytes)
    whole = one.bytes * (n if one.kind == "reduce-scatter" else 1)
    ways = _WAYS[one.kind]
    return ways * whole * (k - 1) / k, ways * whole / k * (nodes - 1) / nodes


def _spread(group: tuple[int, ...], node: int) -> tuple[int, int]:
    """Devices of a group in its fullest node, and its nodes."""
    counts = Counter(device // node for device in group)
    return max(counts.values(), default=1), max(len(counts), 1)
