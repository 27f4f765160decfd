"""Jumps of single units to neighbouring values: all that may happen next in a machine, with its rates.

From the state x a unit in state s jumps to the neighbouring value k (`Unit.neighbours`) at the rate

    sqrt(p(k | the others) / p(s | the others)) = exp((e(s) - e(k) + (k - s) z) / 2)

which is the flip rate of two-valued units, exp((z_k - z_s) / 2) between categories, and one up and one down of counts.
The rates satisfy detailed balance with p(x), whatever the kinds. Not here: the race of the clocks (`spiking`); real
values, between which there is a diffusion and no jump.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from vpf_jax.machine import BoltzmannMachine
from vpf_jax.units import Unit


class _Segment(NamedTuple):
    """Units of one kind side by side, in one layer or in several that follow one another."""

    kind: Unit
    part: slice
    num_values: int

    @property
    def num_units(self) -> int:
        return (self.part.stop - self.part.start) // self.kind.width


class Jumps:
    """The jumps of a machine, in the order of its units, those of a unit in the order of its neighbouring values."""

    def __init__(self, machine: BoltzmannMachine) -> None:
        """Raises ValueError for units of real values, or of which the neighbours are not known."""
        self.segments = _segments(machine)
        numbers = [(s.num_units, s.num_values, s.kind.width) for s in self.segments]
        widths = np.concatenate([np.full(units, width) for units, _, width in numbers])
        per_unit = np.concatenate([np.full(units, values) for units, values, _ in numbers])
        self.unit = np.repeat(np.arange(len(per_unit)), per_unit)
        """Of each jump."""
        self.first_entry = np.cumsum(widths) - widths
        """Of each unit."""
        self.owner = np.repeat(np.arange(len(widths)), widths)
        """The unit of each entry."""
        self.width = int(widths.max())
        """Entries that a jump changes, at most."""
        tables = [s.kind.all_values() for s in self.segments]
        small = all(table is not None and len(table) <= 256 for table in tables)
        self.value_dtype = np.uint8 if small else np.int32

    def rates_and_changes(
        self, x: Float[Array, " n"], fields: Float[Array, " n"]
    ) -> tuple[Float[Array, " num_jumps"], list[Float[Array, "_units _values _width"]]]:
        """The rate of each jump, and by how much it changes the entries of its unit, segment by segment."""
        rates, changes = [], []
        for kind, part, _ in self.segments:
            values, log_weights = kind.neighbours(x[part])
            here, z = (a[part].reshape(-1, 1, kind.width) for a in (x, fields))
            change = values - here
            rates.append(jnp.exp((log_weights + jnp.sum(change * z, axis=-1)) / 2).reshape(-1))
            changes.append(change)
        return jnp.concatenate(rates), changes

    def change(self, changes: list[Float[Array, "_units _values _width"]], jump: Int[Array, ""]) -> Float[Array, " n"]:
        """By how much one jump changes the state."""
        hits, first = [], 0
        for (_, _, num_values), change in zip(self.segments, changes, strict=True):
            number = len(change) * num_values
            hit = jnp.arange(first, first + number) == jump
            hits.append(jnp.sum(jnp.where(hit.reshape(-1, num_values, 1), change, 0), axis=1).reshape(-1))
            first += number
        return jnp.concatenate(hits)

    def value(self, x: Float[Array, " n"], unit: Int[Array, ""]) -> Shaped[Array, ""]:
        """What a unit is: its place among all its values, from the lowest, or the count of one that counts."""
        found, first = jnp.zeros((), self.value_dtype), 0
        for segment in self.segments:
            kind, inside = segment.kind, (unit >= first) & (unit < first + segment.num_units)
            start = segment.part.start + (unit - first) * kind.width
            entries = jax.lax.dynamic_slice_in_dim(x, jnp.clip(start, 0, len(x) - kind.width), kind.width)
            table = kind.all_values()
            here = entries[0] if table is None else jnp.argmax(jnp.all(entries[None] == table, axis=1))
            found += jnp.where(inside, here.astype(self.value_dtype), 0)
            first += segment.num_units
        return found

    def free(self, entries: Bool[Array, " n"]) -> Bool[Array, " num_units"]:
        """Of units, from what is free of their entries: all of them."""
        return jnp.ones(len(self.first_entry), bool).at[self.owner].min(entries)


def _segments(machine: BoltzmannMachine) -> list[_Segment]:
    """Of all layers; those of one kind that follow one another are one."""
    found: list[_Segment] = []
    starts = itertools.accumulate(machine.sizes, initial=0)
    for unit, n, first in zip(machine.layer_units, machine.sizes, starts, strict=False):
        for kind, part in unit.segments(n):
            if kind.continuous:
                raise ValueError(
                    f"got units of kind {kind.name!r}; a simulation of jumps takes kinds whose values are separate"
                )
            before = found[-1] if found else None
            start = first + part.start
            if before is not None and before.kind == kind and kind.own(1) is None:
                found[-1] = before._replace(part=slice(before.part.start, first + part.stop))
                continue
            one = jax.ShapeDtypeStruct((part.stop - part.start,), machine.biases[0].dtype)
            num_values = jax.eval_shape(kind.neighbours, one).log_weights.shape[-1]
            found.append(_Segment(kind, slice(start, first + part.stop), num_values))
    return found
