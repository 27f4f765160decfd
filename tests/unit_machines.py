"""Small machines of every kind of unit, as NumPy parameters, for the tests that check against sums and quadrature.

Weights are such that machines have a distribution: those between counts, and between counts and rectified units, are at
most 0, those between real values are small. Machines that join counts to real values of both signs have none; energies,
fields and flows they have.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import oracles

from vpf_jax import BoltzmannMachine, checks, units
from vpf_jax.units import Groups, Unit


@dataclasses.dataclass(frozen=True)
class Ternary(Unit):
    """Units of three values, -1, 0 and 1: what a user's file would hold."""

    name: str = "ternary"
    dtype: type = np.int8

    def log_normaliser(self, z):
        return jnp.log(jnp.exp(-z) + 1 + jnp.exp(z))

    def mean(self, z):
        return jnp.exp(z - self.log_normaliser(z)) - jnp.exp(-z - self.log_normaliser(z))

    def sample(self, z, uniforms):
        lowest, highest = (jnp.exp(sign * z - self.log_normaliser(z)) for sign in (-1, 1))
        return (uniforms >= lowest).astype(jnp.int8) + (uniforms >= 1 - highest).astype(jnp.int8) - 1

    def flow(self, x, z):
        x = jnp.asarray(x).astype(z.dtype)
        changes = [value - x for value in (-1, 0, 1)]
        rates = [jnp.where(change == 0, 0, jnp.exp(change * z / 2)) for change in changes]
        return sum(rates), sum(change / 2 * rate for change, rate in zip(changes, rates, strict=True))

    def check(self, name, x):
        checks.values(
            name, x, "ternary", lambda v, xp: xp.all((v == 0) | (xp.abs(v) == 1)), lambda v: "of other values"
        )
        return x


TERNARY = Ternary()
REAL = ("gaussian", "normal")
FINITE = ("binary", "spin", "categorical(3)")
# The kinds of a layer's units, one after another.
LAYERS = {
    **{kind: (kind,) * 2 for kind in (*FINITE, *REAL, "rectified", "count")},
    "spin and gaussian": ("spin", "gaussian"),
    "categorical and count": ("categorical(3)", "count"),
}
EVERYTHING = (
    "binary",
    "categorical(3)",
    "categorical(3)",
    "gaussian",
    "spin",
    "gaussian",
    "count",
    "normal",
    "rectified",
)


class UnitCase(NamedTuple):
    """A named small machine."""

    name: str
    layers: tuple[tuple[str, ...], ...]
    biases: tuple[np.ndarray, ...]
    weights: tuple[np.ndarray, ...]
    intra: tuple[np.ndarray | None, ...]
    own: tuple[np.ndarray | None, ...]

    @property
    def machine(self) -> BoltzmannMachine:
        """The machine of the library, in float64 where x64 is enabled and in float32 elsewhere."""
        own = tuple(None if block is None else jnp.asarray(block) for block in self.own)
        return BoltzmannMachine(
            biases=tuple(jnp.asarray(layer) for layer in self.biases),
            weights=tuple(jnp.asarray(block) for block in self.weights),
            intra=tuple(None if block is None else jnp.asarray(block) for block in self.intra),
            own=None if all(block is None for block in own) else own,
            units=tuple(kind_of(layer) for layer in self.layers),
        )

    @property
    def oracle(self) -> oracles.UnitMachine:
        """The machine of the oracles."""
        return oracles.unit_machine(self.biases, self.weights, self.intra, self.kinds, self.own)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of all units."""
        return tuple(itertools.chain(*self.layers))

    @property
    def intra_layers(self) -> tuple[int, ...]:
        """The layers with intra-layer weights."""
        return tuple(layer for layer, block in enumerate(self.intra) if block is not None)

    def layered(self, states: np.ndarray) -> tuple:
        """Flat states [..., n] as the library wants them, in the types of the units."""
        parts = np.split(states, np.cumsum([len(layer) for layer in self.biases])[:-1], axis=-1)
        return tuple(jnp.asarray(part, kind_of(layer).dtype) for part, layer in zip(parts, self.layers, strict=True))

    def __repr__(self) -> str:
        return self.name


def kind_of(layer: Sequence[str]) -> Unit:
    """What the units of a layer are: groups where there are several kinds."""
    groups = [(units.get(name), oracles.width(name) * len(list(same))) for name, same in itertools.groupby(layer)]
    return groups[0][0] if len(groups) == 1 else Groups(tuple(groups))


def make_units(
    layers: Sequence[Sequence[str]], inside: Sequence[int] = (), *, strength: float = 0.5, seed: int = 0
) -> UnitCase:
    """Random parameters, weights inside the layers of these numbers."""
    rng = np.random.default_rng(seed)
    names = [[kind for kind in layer for _ in range(oracles.width(kind))] for layer in layers]
    owners = [[j for j, kind in enumerate(layer) for _ in range(oracles.width(kind))] for layer in layers]
    biases, own, intra = [], [], []
    for i, layer in enumerate(names):
        biases.append(strength * rng.normal(size=len(layer)).clip(-1.5, 1.5))
        learnt = np.array([kind == "gaussian" for kind in layer])
        own.append(np.where(learnt, rng.uniform(-0.2, 0.3, len(layer)), 0) if learnt.any() else None)
        block = _weights(rng, layer, layer, strength)
        block = np.triu(block, 1) + np.triu(block, 1).T
        block[np.equal.outer(owners[i], owners[i])] = 0
        intra.append(block if i in inside else None)
    weights = tuple(_weights(rng, a, b, strength) for a, b in itertools.pairwise(names))
    name = " - ".join("+".join(layer) for layer in layers) + (f" inside {tuple(inside)}" if inside else "")
    return UnitCase(name, tuple(map(tuple, layers)), tuple(biases), weights, tuple(intra), tuple(own))


def _weights(rng: np.random.Generator, lower: Sequence[str], upper: Sequence[str], strength: float) -> np.ndarray:
    block = strength * rng.normal(size=(len(lower), len(upper))).clip(-1.5, 1.5)
    for (i, a), (j, b) in itertools.product(enumerate(lower), enumerate(upper)):
        unbounded = [kind for kind in (a, b) if kind in (*REAL, "rectified", "count")]
        if len(unbounded) == 2:
            block[i, j] = 0.2 * np.tanh(block[i, j])
            if "count" in unbounded and not set(unbounded) & set(REAL):
                block[i, j] = -abs(block[i, j])
    return block


def has_distribution(layers: Sequence[Sequence[str]], inside: Sequence[int] = ()) -> bool:
    """Whether counts are joined to no real values of both signs."""
    joined = [*itertools.pairwise(layers), *((layers[i], layers[i]) for i in inside)]
    both_ways = [*joined, *(pair[::-1] for pair in joined)]
    return not any("count" in a and set(REAL) & set(b) for a, b in both_ways)
