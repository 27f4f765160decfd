"""Small machines of the five families, as NumPy parameters, for the tests that check against
enumeration.

Every case can be had as a machine of the library and as a flat machine of the oracles. Its
parameters are random and scaled so that the largest local field over all states has a stated size:
1.5 is a moderate machine, 6 a peaked one, in which some conditionals are within 0.3 per cent of 0
or 1.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import struct
from hypothesis import strategies as st

from vpf_jax import BoltzmannMachine, rules, train
from vpf_jax.couplings import Coupling
from vpf_jax.settings import options


def training(rule: str = "vpf", **given: Any) -> train.TrainConfig:
    """Settings of training, with options of the rule and of Adam among them."""
    groups = [
        {name: given.pop(name) for name in options(group) if name in given} for group in (rules.get(rule), train.Adam)
    ]
    return train.TrainConfig(rule=rules.make(rule, **groups[0]), optimizer=train.Adam(**groups[1]), **given)


class Case(NamedTuple):
    """A named small machine."""

    name: str
    biases: tuple[np.ndarray, ...]
    weights: tuple[np.ndarray, ...]
    intra: tuple[np.ndarray | None, ...]

    @property
    def machine(self) -> BoltzmannMachine:
        """The machine of the library, in float64 where x64 is enabled and in float32 elsewhere."""
        return BoltzmannMachine(
            biases=tuple(jnp.asarray(layer) for layer in self.biases),
            weights=tuple(jnp.asarray(block) for block in self.weights),
            intra=tuple(None if block is None else jnp.asarray(block) for block in self.intra),
        )

    @property
    def flat(self) -> oracles.FlatMachine:
        """The machine of the oracles."""
        return oracles.flatten(self.biases, self.weights, self.intra)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units per layer."""
        return tuple(len(layer) for layer in self.biases)

    @property
    def intra_layers(self) -> tuple[int, ...]:
        """The layers with intra-layer weights."""
        return tuple(layer for layer, block in enumerate(self.intra) if block is not None)

    def all_states(self) -> np.ndarray:
        """All states as flat rows."""
        return oracles.all_states(sum(self.sizes))

    def some_states(self, number: int, seed: int = 0) -> np.ndarray:
        """Random states as flat rows."""
        return np.random.default_rng(seed).integers(0, 2, (number, sum(self.sizes))).astype(np.float64)

    def layered(self, states: np.ndarray, dtype: object = np.uint8) -> tuple[jax.Array, ...]:
        """Flat states [..., n] as the library wants them: one array [..., n_l] per layer."""
        bounds = np.cumsum(self.sizes)[:-1]
        return tuple(jnp.asarray(part, dtype) for part in np.split(states, bounds, axis=-1))

    def __repr__(self) -> str:
        return self.name


@struct.dataclass
class OneToOne(Coupling):
    """Each unit of a layer is joined to the one opposite it alone."""

    weights: jax.Array

    @property
    def shape(self):
        return (len(self.weights), len(self.weights))

    @property
    def dtype(self):
        return self.weights.dtype

    def up(self, x, dtype):
        return (x * jnp.expand_dims(self.weights, range(x.ndim - 1))).astype(dtype)

    def down(self, y, dtype):
        return self.up(y, dtype)

    def products(self, a, b):
        return OneToOne(jnp.mean(a * b, axis=0))


def one_to_one() -> tuple[BoltzmannMachine, BoltzmannMachine]:
    """The same machine with a coupling of that kind and with a matrix that is zero off its diagonal."""
    joints = jnp.array([0.8, -1.2, 0.4])
    biases = jnp.array([0.3, -0.2, 0.1]), jnp.array([-0.5, 0.4, 0.2])
    return tuple(BoltzmannMachine(biases, (weights,), (None, None)) for weights in (OneToOne(joints), jnp.diag(joints)))


def make_case(name: str, sizes: Sequence[int], intra_layers: Sequence[int], largest_field: float, seed: int) -> Case:
    """Random parameters, scaled so that the largest local field over all states is `largest_field`."""
    rng = np.random.default_rng(seed)
    biases = [rng.normal(size=size) for size in sizes]
    weights = [rng.normal(size=shape) for shape in itertools.pairwise(sizes)]
    intra = []
    for layer, size in enumerate(sizes):
        upper = np.triu(rng.normal(size=(size, size)), 1)
        intra.append(upper + upper.T if layer in intra_layers else None)
    flat = oracles.flatten(biases, weights, intra)
    largest = np.abs(oracles.local_fields(flat, oracles.all_states(sum(sizes)))).max()
    scale = largest_field / largest
    return Case(
        name,
        tuple(scale * layer for layer in biases),
        tuple(scale * block for block in weights),
        tuple(None if block is None else scale * block for block in intra),
    )


# Unequal neighbouring sizes, so that a forgotten transpose cannot pass; four layers in the plain
# DBM, so that a sweep has two odd and two even layers.
FAMILIES = {
    "visible": ((5,), (0,)),
    "rbm": ((5, 3), ()),
    "semi_restricted": ((4, 3), (0,)),
    "dbm": ((3, 2, 3, 2), ()),
    "intra_dbm": ((3, 4, 2), (1, 2)),
}
CASES = {
    f"{family}-{strength}": make_case(f"{family}-{strength}", sizes, intra, largest_field, seed)
    for seed, (family, (sizes, intra)) in enumerate(FAMILIES.items())
    for strength, largest_field in (("moderate", 1.5), ("peaked", 6.0))
}


def each_case(*families: str) -> pytest.MarkDecorator:
    """Run a test on the moderate and the peaked machine of each of the families, by default of all five."""
    chosen = [case for name, case in CASES.items() if name.split("-")[0] in (families or FAMILIES)]
    return pytest.mark.parametrize("case", chosen, ids=repr)


with_hidden = each_case("rbm", "semi_restricted", "dbm", "intra_dbm")


@st.composite
def cases(draw: st.DrawFn, max_units: int = 7) -> Case:
    """Machines of any connectivity: one to four layers, any set of layers with intra-layer weights."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) <= max_units))
    intra_layers = sorted(draw(st.sets(st.integers(0, len(sizes) - 1))))
    largest_field = draw(st.sampled_from([0.5, 2.0, 6.0]))
    seed = draw(st.integers(0, 2**16))
    name = f"sizes={sizes} intra={intra_layers} field={largest_field} seed={seed}"
    return make_case(name, sizes, intra_layers, largest_field, seed)


def in_float64(test: Callable) -> Callable:
    """Run a test in double precision."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        with jax.enable_x64(True):
            return test(*args, **kwargs)

    return run


@functools.cache
def compiled(function: Callable) -> Callable:
    """The compiled function, one for all tests: compiling is most of what they cost."""
    return jax.jit(function)


@functools.cache
def mapped(function: Callable) -> Callable:
    """The compiled map of a function of one configuration over a batch."""
    return jax.jit(jax.vmap(function, in_axes=(None, 0)))


def on_states(function: Callable, machine: BoltzmannMachine, states: Sequence[jax.Array]):
    """A function of one configuration at each state of a batch."""
    return mapped(function)(machine, tuple(states))


def joined(layers: Sequence[jax.Array]) -> np.ndarray:
    """One array per layer, [..., n_l], as one NumPy array [..., n]."""
    return np.concatenate([np.asarray(layer, dtype=np.float64) for layer in layers], axis=-1)


def assert_close(actual, expected, tolerance: float = 1e-10) -> None:
    """Equality up to the tolerance, relative to the largest expected entry."""
    expected = np.asarray(expected, dtype=np.float64)
    scale = max(np.abs(expected).max(initial=0), 1e-3)
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=tolerance, atol=tolerance * scale)


def assert_same_machine(actual: BoltzmannMachine, expected: BoltzmannMachine, tolerance: float = 1e-10) -> None:
    """The same connectivity, and every parameter block equal up to the tolerance."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape
        assert_close(one, other, tolerance)


def assert_gradient(actual: BoltzmannMachine, expected: oracles.FlatMachine, tolerance: float = 1e-10) -> None:
    """A gradient of the library against one of the oracles."""
    found = oracles.flatten(actual.biases, actual.weights, actual.intra)
    np.testing.assert_array_equal(found.connected, expected.connected)
    assert_close(found.bias, expected.bias, tolerance)
    assert_close(found.coupling, expected.coupling, tolerance)
