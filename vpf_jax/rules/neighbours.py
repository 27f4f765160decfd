"""Neighbouring values of visible units with the hidden layer summed out, units being of any kind.

Let the marginal p(x) of the visible layer, and A_j be the log-normaliser of hidden unit j, at field z_j. Another value
x_i' of visible unit i, of own energy e and with the field f_i (bias and visible intra-layer input), changes log p by

    r = e(x_i) - e(x_i') + (x_i' - x_i) f_i + sum_j A_j(z_j + (x_i' - x_i) w_ij) - A_j(z_j)

in which x_i, f_i and w_ij have as many entries as the unit has. Of a unit i and its neighbouring values a rule takes

    at_neighbours     a function of all its r: separate values (minimum probability flow, Sohl-Dickstein et al., arXiv
                      0906.4779; pseudo-likelihood, Besag 1975)
    score_matching    what probability flow over small steps leaves of real values: with s and c the first and second
                      derivative of log p by x_i, s^2 / 2 + c (Hyvarinen 2005) and, of values of at least 0,
                      2 x s + x^2 (s^2 / 2 + c) (Hyvarinen 2007)
    conditional       - log p(x_i | the others) = A_i(f_i) - x_i f_i + e(x_i), any kind, without a hidden layer

Gradients are derivatives of these by f, w, z and the parameters of own energies, taken part by part: nothing in them is
sampled. The terms of one part, batch * units * values * n_1, take at most `CHUNK_BYTES`. Not here: layers of two-valued
units alone, whose sums are shorter, and the rules (`flips`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from vpf_jax import couplings
from vpf_jax.energy import upward_field
from vpf_jax.machine import BoltzmannMachine
from vpf_jax.units import BINARY, Unit

# Bytes of the terms formed at once (one array of [batch, units, values, n_1]): what stays in the cache of a core.
CHUNK_BYTES = 2**20


class View(NamedTuple):
    """What some visible units of one kind are and see."""

    kind: Unit
    x: Float[Array, "batch n"]
    fields: Float[Array, "batch n"]
    """Without the input of the hidden layer."""
    rows: Float[Array, "n n_1"]
    """Their weights."""
    upper: Unit
    z: Float[Array, "batch n_1"]
    """Fields of the hidden units."""


class Term(NamedTuple):
    """What a rule sums over units."""

    value: Callable[[View], Float[Array, "batch units"]]
    in_parts: bool = False
    """Whether it forms terms for every neighbouring value and hidden unit, and takes some units at a time."""


class _Segment(NamedTuple):
    """Visible units of one kind side by side."""

    kind: Unit
    first_entry: int
    first_unit: int
    num_units: int

    def entries(self, units: Int[Array, " some"]) -> Int[Array, " n"]:
        """Of units, counted from the first of the segment."""
        width = self.kind.width
        return (self.first_entry + units[:, None] * width + jnp.arange(width)[None]).reshape(-1)


class _Parts(NamedTuple):
    """What the terms of a batch depend on, or derivatives by it."""

    fields: Float[Array, "batch n"]
    """Of the visible units, without the input of the hidden ones."""
    rows: Float[Array, "n n_1"]
    """Their weights, apart from what these bring to `z`."""
    z: Float[Array, "batch n_1"]
    own: Float[Array, " n"] | None
    """Parameters of the own energies of the visible units."""
    own_upper: Float[Array, " n_1"] | None

    def of(self, entries: Int[Array, " some"]) -> "_Parts":
        """Of some visible entries alone."""
        own = None if self.own is None else self.own[entries]
        return self._replace(fields=self.fields[:, entries], rows=self.rows[entries], own=own)

    def plus(self, entries: Int[Array, " some"], other: "_Parts") -> "_Parts":
        """With what is of these entries added."""
        return _Parts(
            self.fields.at[:, entries].add(other.fields),
            self.rows.at[entries].add(other.rows),
            self.z + other.z,
            jax.tree.map(lambda total, part: total.at[entries].add(part), self.own, other.own),
            jax.tree.map(jnp.add, self.own_upper, other.own_upper),
        )

    def view(self, segment: _Segment, x: Float[Array, "batch n"], upper: Unit) -> View:
        """For units of a segment."""
        kind = segment.kind if self.own is None else segment.kind.bound(self.own)
        above = upper if self.own_upper is None else upper.bound(self.own_upper)
        return View(kind, x, self.fields, self.rows, above, self.z)


def at_neighbours(function: Callable[[Float[Array, "batch units values"]], Float[Array, "batch units"]]) -> Term:
    """The function of log p(x') / p(x) of all neighbouring values, minus infinity where there is none."""

    def value(view: View) -> Float[Array, "batch units"]:
        batch, n_1 = view.z.shape
        x, fields = (a.reshape(batch, -1, 1, view.kind.width) for a in (view.x, view.fields))
        others, log_ratios = view.kind.neighbours(view.x)
        log_ratios += jnp.sum((others - x) * fields, axis=-1)
        rows = view.rows.reshape(1, x.shape[1], 1, view.kind.width, n_1)
        # What the values bring less what the present one does: the first may be the same for all examples.
        change = jnp.sum(others[..., None] * rows, axis=-2) - jnp.einsum("bckw,cwm->bckm", x, rows[0, :, 0])
        after = view.z[:, None, None] + change
        before = jnp.broadcast_to(view.z[:, None, None], after.shape)
        return function(log_ratios + jnp.sum(view.upper.log_normaliser_difference(after, before), axis=-1))

    return Term(value, in_parts=True)


def _score_matching(view: View) -> Float[Array, "batch units"]:
    own_slope = jax.grad(lambda x: jnp.sum(view.kind.own_energy(x)))
    slope, curvature = jax.jvp(own_slope, (view.x,), (jnp.ones_like(view.x),))
    from_above = couplings.down(view.rows, view.upper.mean(view.z), view.z.dtype)
    return view.kind.score_flow(view.x, view.fields - slope + from_above, _variances(view) - curvature)


def _variances(view: View) -> Float[Array, "batch units"]:
    """Of sum_j w_ij h_j under the conditional of the hidden units: the second derivative of sum_j A_j by x_i."""
    found = jnp.zeros_like(view.x)
    for unit, part in view.upper.segments(view.z.shape[1]):
        z, rows = view.z[:, part], view.rows[:, part]
        by_unit = rows.reshape(len(rows), -1, unit.width)
        for place in range(unit.width):
            # Derivatives by the field of this entry of every unit, which moves the means of its own unit alone.
            moved = jnp.broadcast_to(jnp.arange(z.shape[1])[None] % unit.width == place, z.shape).astype(z.dtype)
            _, by_field = jax.jvp(unit.mean, (z,), (moved,))
            weight = jnp.broadcast_to(by_unit[:, :, place, None], by_unit.shape).reshape(rows.shape)
            found += couplings.down(weight * rows, by_field, z.dtype)
    return found


score_matching = Term(_score_matching)


def _conditional(view: View) -> Float[Array, "batch units"]:
    minus = view.kind.own_energy(view.x) - view.x * view.fields
    return view.kind.log_normaliser(view.fields) + jnp.sum(minus.reshape(len(view.x), -1, view.kind.width), axis=-1)


conditional = Term(_conditional)


def num_visible_units(machine: BoltzmannMachine) -> int:
    """Units of the visible layer, whose entries `sizes` counts."""
    owned = machine.owners(0)
    return machine.sizes[0] if owned is None else int(owned[-1]) + 1


def flow(
    machine: BoltzmannMachine,
    visible: Shaped[Array, "batch n_0"],
    term_of: Callable[[Unit], Term],
    units: Int[Array, " num_units"] | None = None,
) -> tuple[Float[Array, ""], BoltzmannMachine]:
    """Batch mean of the sum over visible units of a term, and its gradient by the parameters.

    Args:
      machine: one layer, or two without weights inside the hidden one.
      visible: values of the visible units.
      term_of: of each kind of them.
      units: distinct numbers of the units that count, scaled up to all; None: all.
    """
    x = visible.astype(machine.biases[0].dtype)
    rows, upper, z = _above(machine, x)
    parts = _Parts(fields_inside(machine, x), rows, z, *_own(machine))
    total, gradient = jnp.zeros((), x.dtype), jax.tree.map(jnp.zeros_like, parts)
    for segment in _segments(machine):
        term = term_of(segment.kind)
        chosen, counted = _chosen(segment, units, num_visible_units(machine), x.dtype)

        def of_units(carry, some, segment=segment, term=term):
            units, counted = some
            entries = segment.entries(units)

            def value(parts: _Parts) -> Float[Array, ""]:
                return jnp.sum(term.value(parts.view(segment, x[:, entries], upper)) * counted[None])

            total, gradient = carry
            found, by_parts = jax.value_and_grad(value)(parts.of(entries))
            return (total + found, gradient.plus(entries, by_parts)), None

        size = _units_at_once(segment, x, z) if term.in_parts else len(chosen)
        total, gradient = _scan(of_units, (total, gradient), (chosen, counted / len(x)), size)
    return total, _by_parameters(machine, x, gradient)


def of_unit(
    machine: BoltzmannMachine,
    visible: Shaped[Array, " n_0"],
    term_of: Callable[[Unit], Term],
    unit: Int[Array, ""],
) -> Float[Array, ""]:
    """The term of one unit of one example, at the cost of one: the unit may be traced."""
    x = visible.astype(machine.biases[0].dtype)[None]
    rows, upper, z = _above(machine, x)
    own, own_upper = _own(machine)
    total = jnp.zeros((), x.dtype)
    for segment in _segments(machine):
        chosen, counted = _chosen(segment, unit[None], 1, x.dtype)
        entries = segment.entries(chosen)
        fields = machine.biases[0][entries][None]
        if machine.intra[0] is not None:
            fields += couplings.up(machine.intra[0][:, entries], x, x.dtype)
        parts = _Parts(fields, rows[entries], z, None if own is None else own[entries], own_upper)
        view = parts.view(segment, x[:, entries], upper)
        total += jnp.sum(term_of(segment.kind).value(view) * counted[None])
    return total


def _scan(step: Callable[..., Any], carry: Any, some: tuple[Array, ...], size: int) -> Any:
    """The carry after steps over the things, so many at a time, and over the rest."""
    count = len(some[0])
    size = max(1, min(size, count))
    num_full, rest = divmod(count, size)
    full, last = (
        tuple(a[: count - rest].reshape(num_full, size) for a in some),
        tuple(a[count - rest :] for a in some),
    )
    carry, _ = jax.lax.scan(step, carry, full)
    return step(carry, last)[0] if rest else carry


def _by_parameters(machine: BoltzmannMachine, x: Float[Array, "batch n_0"], by: _Parts) -> BoltzmannMachine:
    """The gradient, from the derivatives by the fields of both layers and by the rows."""
    biases, intra = (jnp.sum(by.fields, axis=0),), (inside_gradient(machine, x, by.fields),)
    own = None if machine.own is None else (by.own, by.own_upper)[: len(machine.sizes)]
    if not machine.weights:
        return dataclasses.replace(machine, biases=biases, intra=intra, own=own)
    rows = by.rows + len(x) * couplings.dense(couplings.products(machine.weights[0], x, by.z))
    return dataclasses.replace(
        machine, biases=(*biases, jnp.sum(by.z, axis=0)), weights=(rows,), intra=(*intra, None), own=own
    )


def _above(machine: BoltzmannMachine, x: Float[Array, "batch n_0"]) -> tuple[Array, Unit, Array]:
    """Weights, kind and fields of the hidden layer; a machine without one has no units there."""
    if machine.weights:
        return couplings.dense(machine.weights[0]).astype(x.dtype), machine.layer_units[1], upward_field(machine, 1, x)
    return jnp.zeros((x.shape[1], 0), x.dtype), BINARY, jnp.zeros((len(x), 0), x.dtype)


def _own(machine: BoltzmannMachine) -> tuple[Array | None, Array | None]:
    """Parameters of the own energies of the visible and of the hidden layer."""
    own = (*(machine.own or (None,)), None)
    return own[0], own[1]


def _segments(machine: BoltzmannMachine) -> list[_Segment]:
    found: list[_Segment] = []
    for kind, part in machine.layer_units[0].segments(machine.sizes[0]):
        first = found[-1].first_unit + found[-1].num_units if found else 0
        found.append(_Segment(kind, part.start, first, (part.stop - part.start) // kind.width))
    return found


def _chosen(
    segment: _Segment, units: Int[Array, " num_units"] | None, num_units: int, dtype: jnp.dtype
) -> tuple[Int[Array, " some"], Float[Array, " some"]]:
    """Units of the segment, counted from its first, and how often each counts: not at all, for one of another segment.

    Which segments a traced choice falls into is not known, so that each looks at all of it.
    """
    if units is None:
        return jnp.arange(segment.num_units), jnp.ones(segment.num_units, dtype)
    inside: Bool[Array, " some"] = (units >= segment.first_unit) & (units < segment.first_unit + segment.num_units)
    counted = jnp.where(inside, num_units / len(units), 0).astype(dtype)
    return jnp.where(inside, units - segment.first_unit, 0), counted


def _units_at_once(segment: _Segment, x: Float[Array, "batch n_0"], z: Float[Array, "batch n_1"]) -> int:
    all_of_it = x[:, segment.entries(jnp.arange(segment.num_units))]
    num_values = jax.eval_shape(segment.kind.neighbours, all_of_it).log_weights.shape[-1]
    return CHUNK_BYTES // max(1, z.size * num_values * x.dtype.itemsize)


def fields_inside(machine: BoltzmannMachine, x: Float[Array, "batch n_0"]) -> Float[Array, "batch n_0"]:
    """Fields of the visible units without the input of the hidden ones."""
    inside = machine.intra[0]
    fields = jnp.broadcast_to(machine.biases[0][None], x.shape)
    return fields if inside is None else fields + couplings.up(inside, x, x.dtype)


def inside_gradient(
    machine: BoltzmannMachine, x: Float[Array, "batch n_0"], slopes: Float[Array, "batch n_0"]
) -> Float[Array, "n_0 n_0"] | None:
    """By the weights inside the visible layer, from the derivatives by its fields."""
    inside = machine.intra[0]
    if inside is None:
        return None
    return couplings.tied(len(x) * couplings.products(inside, x, slopes), machine.owners(0))
