"""The same distribution in other parameters.

    with_units      machines of bits as machines of spins, and back
    to_zero_sum     of categorical units, whose biases and weights may be shifted, those that sum to 0 over the values
    standardise     of real-valued visible units, those of values less their means in units of their deviations

No probability changes, but that a density of real values is one per unit of them. Not here: kinds of units (`units`).
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vpf_jax import checks, couplings
from vpf_jax.checks import AnyArray
from vpf_jax.energy import layer_field
from vpf_jax.machine import BoltzmannMachine, check_machine, check_symmetric, map_own
from vpf_jax.units import Categorical, Gaussian, Unit, two_valued


def with_units(machine: BoltzmannMachine, unit: Unit) -> BoltzmannMachine:
    """The same distribution in the parameters of other two-valued units, such as `units.SPIN`; inputs are not copied.

    A value x of the old units is a y + c, y being the new ones', so that energies differ by a constant.

    Raises:
      ValueError: units of other than two values.
    """
    check_machine(machine)
    new = two_valued(unit, "another parametrisation")
    old = [two_valued(layer, "another parametrisation") for layer in machine.layer_units]
    scales = [layer.step / new.step for layer in old]
    origins = [layer.low - scale * new.low for layer, scale in zip(old, scales, strict=True)]
    at = tuple(jnp.full_like(bias, origin) for bias, origin in zip(machine.biases, origins, strict=True))
    fields = [layer_field(machine, at, i) for i in range(len(at))]
    factors = [a * b for a, b in itertools.pairwise(scales)]

    def scaled(blocks: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(jax.tree.map(lambda w, f=f: f * w, block) for block, f in zip(blocks, factors, strict=True))

    return BoltzmannMachine(
        biases=tuple(scale * z for scale, z in zip(scales, fields, strict=True)),
        weights=scaled(machine.weights),
        intra=tuple(None if l is None else scale**2 * l for l, scale in zip(machine.intra, scales, strict=True)),
        backward=None if machine.backward is None else scaled(machine.backward),
        units=new,
    )


def to_zero_sum(machine: BoltzmannMachine) -> BoltzmannMachine:
    """The same distribution with weights and biases of categorical units that sum to 0 over the values of each unit.

    The gauge in which couplings are smallest (Ekeberg et al. 2013). What is taken from weights to a unit of several
    values goes into the biases of the units at their other end; layers of other kinds keep their values.

    Args:
      machine: symmetric weights, matrices.

    Raises:
      ValueError: a directed machine, couplings that are no matrices, or no categorical units.
    """
    check_machine(machine)
    check_symmetric(machine, "the zero-sum gauge")
    couplings.check_dense(machine.weights, "the zero-sum gauge")
    kinds = machine.layer_units
    parts = (unit.segments(n) for unit, n in zip(kinds, machine.sizes, strict=True))
    if not any(isinstance(kind, Categorical) for kind, _ in itertools.chain(*parts)):
        raise ValueError(f"got units of kind {kinds[0].name!r}; the zero-sum gauge is of categorical ones")
    # What weights give to a unit whatever the value of the other, which then is one more bias: their mean over values.
    alike = tuple(_alike(unit, b) for unit, b in zip(kinds, machine.biases, strict=True))
    fields = [layer_field(machine, alike, i) for i in range(len(alike))]

    def both(i: int, j: int, block: Float[Array, "n m"]) -> Float[Array, "n m"]:
        return _less_mean(kinds[j], _less_mean(kinds[i], block).T).T

    return dataclasses.replace(
        machine,
        biases=tuple(_less_mean(unit, z) for unit, z in zip(kinds, fields, strict=True)),
        weights=tuple(both(i, i + 1, couplings.dense(w)) for i, w in enumerate(machine.weights)),
        intra=tuple(None if block is None else both(i, i, block) for i, block in enumerate(machine.intra)),
    )


def standardise(
    machine: BoltzmannMachine, means: Float[AnyArray, " n_0"], deviations: Float[AnyArray, " n_0"]
) -> BoltzmannMachine:
    """The machine of y = (x - mean) / deviation that has the distribution of x in this one.

    The inverse is standardise(machine, - means / deviations, 1 / deviations). Entries of other than Gaussian units
    take the mean 0 and the deviation 1.

    Args:
      machine: visible units Gaussian, or groups with such among them.
      means: of the visible units.
      deviations: of them, above 0.

    Raises:
      ValueError: a directed machine, no Gaussian visible units, or numbers that do not fit.
    """
    check_machine(machine)
    check_symmetric(machine, "standardising")
    unit, n = machine.layer_units[0], machine.sizes[0]
    real = np.concatenate(
        [np.full(part.stop - part.start, isinstance(kind, Gaussian) and kind.learnt) for kind, part in unit.segments(n)]
    )
    if not real.any():
        raise ValueError(f"got visible units of kind {unit.name!r}; standardising is of gaussian ones")
    _check_scaling("means", means, real, 0, "0 but for gaussian units")
    _check_scaling("deviations", deviations, real, 1, "1 but for gaussian units, and above 0")
    shift, scale = jnp.asarray(means, machine.biases[0].dtype), jnp.asarray(deviations, machine.biases[0].dtype)
    # x = scale y + shift: fields gain what the shift gives, a precision g pulls back by g shift.
    at = (shift, *(jnp.zeros_like(b) for b in machine.biases[1:]))
    own = jnp.zeros(n) if machine.own is None or machine.own[0] is None else machine.own[0]
    pull = jnp.where(real, jnp.exp(own) * shift, 0)
    field = layer_field(machine, at, 0) - pull
    biases = [scale * field, *machine.biases[1:]]
    weights = machine.weights
    if weights:
        biases[1] = layer_field(machine, at, 1)
        first = couplings.dense(weights[0])
        weights = (scale[:, None] * first, *weights[1:])
    inside = machine.intra[0]

    def rescaled(layer: int, own: Float[Array, " n_l"]) -> Float[Array, " n_l"]:
        return own if layer else jnp.where(real, own + 2 * jnp.log(scale), own)

    return dataclasses.replace(
        machine,
        biases=tuple(biases),
        weights=weights,
        intra=(None if inside is None else scale[:, None] * inside * scale[None], *machine.intra[1:]),
        own=map_own(rescaled, machine),
    )


def _check_scaling(
    name: str, given: Float[AnyArray, " n_0"], real: Bool[np.ndarray, " n_0"], idle: int, told: str
) -> None:
    """Raises ValueError unless there is one number per visible unit, `idle` where units are not real-valued."""
    checks.finite(name, given)
    checks.require(jnp.shape(given) == real.shape, name, given, f"one number for each of {len(real)} visible units")

    def holds(v: Any, xp: Any) -> Any:
        return xp.all(real | (v == idle)) & xp.all((v > 0) | (idle == 0))

    kind = f"{told} at {hash(real.tobytes())}"
    checks.values(name, given, kind, holds, lambda _: f"of other values; they are {told}")


def _alike(unit: Unit, bias: Float[Array, " n"]) -> Float[Array, " n"]:
    """A layer in which each categorical unit has all of its values alike, and the others are 0."""
    parts = unit.segments(len(bias))
    return jnp.concatenate(
        [jnp.full_like(bias[part], 1 / kind.q if isinstance(kind, Categorical) else 0) for kind, part in parts]
    )


def _less_mean(unit: Unit, block: Float[Array, "..."]) -> Float[Array, "..."]:
    """Rows less their mean over the values of each categorical unit."""
    parts = []
    for kind, part in unit.segments(len(block)):
        rows = block[part]
        if isinstance(kind, Categorical):
            by_unit = rows.reshape(-1, kind.q, *rows.shape[1:])
            rows = (by_unit - jnp.mean(by_unit, axis=1, keepdims=True)).reshape(rows.shape)
        parts.append(rows)
    return jnp.concatenate(parts)
