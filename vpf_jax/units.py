"""What a neuron is: its values, and all that follows from its local field z given the other neurons.

With the rest of the state held, the energy of a neuron is - x z, so that p(x) is proportional to exp(x z). A kind of
unit says what its values are and gives

    mean              E[x]
    sample            a draw of x, from a uniform number
    log_normaliser    A(z) = log sum_x exp(x z); its derivative is the mean
    flow              the rates of probability flow to all other values, exp((x' - x) z / 2), summed, and their
                      derivative by z, the slope of the local rule (Liu, Quek and Lin, arXiv 1711.07732, sections 2-4)

Everything else in the library goes through these four. `BINARY` neurons {0, 1} are the paper's and the default; `SPIN`
neurons {-1, +1} make the same machines in other parameters (`with_units`). A kind of one's own is a subclass of `Unit`,
registered by name (`register`), and needs no other file. Not here: fields (`energy`), weights (`couplings`).
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from vpf_jax import checks


class Unit(abc.ABC):
    """A kind of neuron; without state, compared and hashed by its class and fields."""

    name: str
    dtype: DTypeLike
    """In which states are stored."""

    @abc.abstractmethod
    def mean(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """E[x] at local fields z."""

    @abc.abstractmethod
    def sample(self, z: Float[Array, "*n"], uniforms: Float[Array, "*n"]) -> Shaped[Array, "*n"]:
        """Draws of x at local fields z from uniform numbers in [0, 1), in any dtype that holds the values."""

    @abc.abstractmethod
    def log_normaliser(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """A(z) = log sum_x exp(x z)."""

    def log_normaliser_difference(self, z: Float[Array, "*n"], y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """A(z) - A(y)."""
        return self.log_normaliser(z) - self.log_normaliser(y)

    @abc.abstractmethod
    def flow(self, x: Shaped[Array, "*n"], z: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
        """(rates, slope): the sum over all other values x' of exp((x' - x) z / 2), and its derivative by z."""

    @abc.abstractmethod
    def check(self, name: str, x: Any) -> Any:
        """The array, if all its entries are values of the unit; else raises ValueError, in one sentence."""


@dataclasses.dataclass(frozen=True)
class TwoValued(Unit):
    """Units of two values; the only other value is the flip."""

    name: str
    low: int
    high: int
    dtype: DTypeLike

    @property
    def step(self) -> int:
        return self.high - self.low

    def mean(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return self.at(self.probability(z))

    def sample(self, z: Float[Array, "*n"], uniforms: Float[Array, "*n"]) -> Shaped[Array, "*n"]:
        return self.at(uniforms < self.probability(z))

    def log_normaliser(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        found = jax.nn.softplus(self._times_step(z))
        return found + self.low * z if self.low else found

    def log_normaliser_difference(self, z: Float[Array, "*n"], y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """With one logarithm, of a ratio between 1/2 and 2; a third of the time."""
        up, to = self._times_step(z), self._times_step(y)
        ratio = (1 + jnp.exp(-jnp.abs(up))) / (1 + jnp.exp(-jnp.abs(to)))
        found = jnp.maximum(up, 0) - jnp.maximum(to, 0) + jnp.log(ratio)
        return found + self.low * (z - y) if self.low else found

    def flow(self, x: Shaped[Array, "*n"], z: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
        half = self.half_way(x, z.dtype)
        slope = half * jnp.exp(half * z)
        # From the slope, so that the rates need not be stored beside it.
        return jnp.abs(slope) * (2 / self.step), slope

    def check(self, name: str, x: Any) -> Any:
        return checks.two_valued(name, x, self.low, self.high)

    def probability(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Of the upper value."""
        return jax.nn.sigmoid(self._times_step(z))

    def at(self, share: Shaped[Array, "*n"]) -> Shaped[Array, "*n"]:
        """The value that lies the given share of the way from the lower to the upper one; of booleans, one of them."""
        if (self.low, self.high) == (0, 1):
            return share
        if share.dtype == bool:
            return jnp.where(share, self.high, self.low).astype(self.dtype)
        return self.low + self.step * share

    def share(self, x: Shaped[Array, "*n"]) -> Shaped[Array, "*n"]:
        """Where a value or mean lies between the lower and the upper one: from 0 to 1."""
        return x if (self.low, self.high) == (0, 1) else (x - self.low) / self.step

    def half_way(self, x: Shaped[Array, "*n"], dtype: DTypeLike) -> Float[Array, "*n"]:
        """Alpha = (x' - x) / 2, x' the other value: the derivative of log rate by the field."""
        return (self.low + self.high) / 2 - jnp.asarray(x).astype(dtype)

    def flipped(self, x: Shaped[Array, "*n"]) -> Shaped[Array, "*n"]:
        """The other value."""
        return self.low + self.high - x

    def rate(self, x: Shaped[Array, "*n"], z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """At which x flips: exp((x' - x) z / 2)."""
        return jnp.exp(self.half_way(x, z.dtype) * z)

    def threshold(self, uniforms: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """The field above which a uniform number draws the upper value."""
        found = jnp.log(uniforms / (1 - uniforms))
        return found if self.step == 1 else found / self.step

    def entropy(self, mean: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Of the distribution with this mean, in nats."""
        share = self.share(mean)
        return jax.scipy.special.entr(share) + jax.scipy.special.entr(1 - share)

    def _times_step(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return z if self.step == 1 else self.step * z


BINARY = TwoValued("binary", 0, 1, np.uint8)
SPIN = TwoValued("spin", -1, 1, np.int8)

_registered: dict[str, Unit] = {}


def register(unit: Unit) -> Unit:
    """Makes a kind of unit known by its name, as files and flags give it; returns it.

    Raises:
      ValueError: no unit, or a name that another kind has.
    """
    checks.require(isinstance(unit, Unit), "unit", unit, "a Unit")
    known = _registered.setdefault(unit.name, unit)
    checks.require(known == unit, "unit", unit, f"a name other than {unit.name!r}, which is taken")
    return unit


def get(name: str) -> Unit:
    """The registered kind of unit of this name; ValueError for another name."""
    return _registered[checks.one_of("unit", name, names())]


def names() -> tuple[str, ...]:
    """Of the registered kinds."""
    return tuple(_registered)


def two_valued(unit: Unit, what: str) -> TwoValued:
    """The unit, if it has two values; else raises ValueError: `what` takes no other."""
    if not isinstance(unit, TwoValued):
        raise ValueError(f"got units of kind {unit.name!r}; {what} takes units of two values")
    return unit


for _unit in (BINARY, SPIN):
    register(_unit)
