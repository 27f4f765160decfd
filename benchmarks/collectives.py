"""What a compiled program sends between devices, read from its text: which collectives, how many bytes, how often.

    found = collectives(jax.jit(f).lower(...).compile().as_text())

Loops of known length count as often as they run. Bytes are those of the result on one device: of an all-reduce the
array that is summed, of an all-gather the whole that each device then has. Not here: how long that takes (`hardware`).
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

KINDS = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
_SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_SIZES |= {"s64": 8, "u64": 8, "f64": 8, "s4": 1, "u4": 1}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|to_apply|calls|condition|branch_computations=\{?)=?%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
_PARTITIONS = re.compile(r"num_partitions=(\d+)")
# Three ways to write which devices speak to one another: all lists, a reshaped and transposed range, axes of a mesh.
_LISTS = re.compile(r"replica_groups=\{(?:\{([\d,]+)\}[^}]*)?")
_RANGE = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}")
_AXIS = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")


class Collective(NamedTuple):
    """One of a program."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    """Of its results."""
    bytes: int
    """Of all of them on one device, each time."""
    times: int
    """That it runs."""
    group: tuple[int, ...] = ()
    """Numbers of the devices that it joins, of the first of several such groups; none: it is not said."""

    @property
    def total(self) -> int:
        return self.bytes * self.times


def collectives(program: str) -> list[Collective]:
    """All of a compiled program's, by the text of its HLO module.

    Raises:
      ValueError: a text that has no entry, or a loop of unknown length that sends something.
    """
    computations = _computations(program)
    entry = next((name for name, (is_entry, _) in computations.items() if is_entry), None)
    if entry is None:
        raise ValueError("got a text without an ENTRY computation; it takes that of a compiled HLO module")
    found: list[Collective] = []
    _collect(computations, entry, 1, found)
    partitions = _PARTITIONS.search(program)
    everybody = tuple(range(int(partitions[1]) if partitions else 1))
    return [one if one.group or one.kind == "collective-permute" else one._replace(group=everybody) for one in found]


def bytes_of(some: Sequence[Collective], at_least: int = 0) -> int:
    """That are sent in all, small collectives of fewer bytes left out."""
    return sum(one.total for one in some if one.bytes >= at_least)


def _computations(program: str) -> dict[str, tuple[bool, list[str]]]:
    """Lines of each computation by its name, and whether it is the entry."""
    found: dict[str, tuple[bool, list[str]]] = {}
    lines: list[str] = []
    for line in program.splitlines():
        header = None if line.startswith(" ") else _COMPUTATION.match(line)
        if header:
            lines = []
            found[header[2]] = bool(header[1]), lines
        else:
            lines.append(line)
    return found


def _collect(
    computations: dict[str, tuple[bool, list[str]]], name: str, times: int | None, found: list[Collective]
) -> None:
    """Adds those of a computation that runs so often; None: nobody knows."""
    for line in computations[name][1]:
        collective = _COLLECTIVE.search(line)
        if collective:
            if times is None:
                raise ValueError(f"got a loop of unknown length with {collective[2]}; it takes loops of known length")
            found.append(_read(collective[2], collective[1], times)._replace(group=_group(line)))
            continue
        loop = " while(" in line
        trips = _TRIPS.search(line) if loop else None
        inside = (None if times is None or not trips else times * int(trips[1])) if loop else times
        for called in _CALLED.findall(line):
            if called in computations:
                _collect(computations, called, inside, found)


def _read(kind: str, results: str, times: int) -> Collective:
    some = [(name, tuple(int(size) for size in sizes.split(",") if size)) for name, sizes in _SHAPE.findall(results)]
    size = sum(_SIZES[name] * math.prod(shape) for name, shape in some)
    return Collective(kind, tuple(shape for _, shape in some), int(np.int64(size)), times)


def _group(line: str) -> tuple[int, ...]:
    """The first of the groups of devices that a line names; () for all devices as one, and for no groups."""
    if "replica_groups=" not in line:
        return ()
    mesh, ranged, lists = _MESH.search(line), _RANGE.search(line), _LISTS.search(line)
    if mesh:
        sizes = dict(part.split("=") for part in mesh[1].replace("'", "").split(","))
        shape = [int(size) for size in sizes.values()]
        devices = _ranged(mesh[2], mesh[3]) if mesh[2] else np.arange(math.prod(shape))
        return _along(devices.reshape(shape), list(sizes), mesh[4])
    if ranged:
        return tuple(_ranged(ranged[2], ranged[3]).reshape(_integers(ranged[1]))[0].ravel().tolist())
    if lists:
        return _integers(lists[1] or "")
    raise ValueError(f"got groups of devices in another form than the three known ones: {line.strip()[:200]}")


def _along(devices: np.ndarray, names: list[str], axes: str) -> tuple[int, ...]:
    """The first group along some axes of a mesh, or parts of axes, as in "'x','y':(2)4"."""
    takes = {}
    for name, before, size in _AXIS.findall(axes):
        place = names.index(name)
        full = devices.shape[place]
        inner = full // (int(before) * int(size)) if size else 1
        takes[place] = [inner * number for number in range(int(size or full))]
    first = devices[np.ix_(*(takes.get(place, [0]) for place in range(devices.ndim)))]
    return tuple(first.ravel().tolist())


def _ranged(sizes: str, order: str | None) -> np.ndarray:
    shape = _integers(sizes)
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return numbers.transpose(_integers(order)) if order else numbers


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(",") if word)
