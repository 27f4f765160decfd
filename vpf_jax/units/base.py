"""The protocol of a kind of neuron, and the table of kinds.

With the rest of the state held, the energy of a neuron is e(x) - x z, where z is its local field and e its own energy,
so that p(x) is proportional to exp(x z - e(x)). A kind of unit says what its values are and gives

    mean              E[x]
    sample            a draw of x, from a uniform number
    log_normaliser    A(z) = log sum_x exp(x z - e(x)), an integral where x is real; its derivative is the mean
    flow              of probability to the neighbouring values, and its derivative by z, the slope of the local rule
                      (Liu, Quek and Lin, arXiv 1711.07732, sections 2-4); the expected slope is 0 under the unit's own
                      conditional
    neighbours        those values one by one, of separate values, or
    score_flow        what takes their place where values are real

and, where e is not 0 or has parameters, what begins with `own`. A state of a layer is one vector: most kinds have one
entry in it for each unit, a categorical unit of q values has q (`width`), and z, biases and weights as many. Everything
else in the library goes through these. Not here: the kinds themselves, a file each.
"""

import abc
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from vpf_jax import checks
from vpf_jax.checks import AnyArray


class Neighbours(NamedTuple):
    """Of each unit, the values that are its neighbours."""

    values: Float[Array, "..."]
    """[..., units, num_values, width], where axes of size 1 stand for all."""
    log_weights: Float[Array, "*units num_values"]
    """e(x) - e(value), minus infinity where there is no such neighbour."""


class Unit(abc.ABC):
    """A kind of neuron; compared and hashed by its class and fields, without the parameters it may be bound to."""

    name: str
    dtype: DTypeLike
    """In which states are stored."""
    width: int = 1
    """Entries of a state that make one unit."""
    continuous: bool = False
    """Whether values are real numbers, with `score_flow` in the place of `neighbours`."""

    @abc.abstractmethod
    def mean(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """E[x] at local fields z."""

    @abc.abstractmethod
    def sample(self, z: Float[Array, "*n"], uniforms: Float[Array, "*n"]) -> Shaped[Array, "*n"]:
        """Draws of x at local fields z from uniform numbers in [0, 1), in any dtype that holds the values.

        No gradient passes through them.
        """

    @abc.abstractmethod
    def log_normaliser(self, z: Float[Array, "*n"]) -> Float[Array, "*units"]:
        """A(z), one number per unit."""

    def log_normaliser_difference(self, z: Float[Array, "*n"], y: Float[Array, "*n"]) -> Float[Array, "*units"]:
        """A(z) - A(y)."""
        return self.log_normaliser(z) - self.log_normaliser(y)

    @abc.abstractmethod
    def flow(self, x: Shaped[Array, "*n"], z: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
        """(rates, slope): the flow out of x, and its derivative by z.

        Of values that are separate the sum over the neighbouring ones x' of sqrt(p(x') / p(x)), with entries of several
        in a unit each at its own; of real ones what is left of it in the limit of small steps, which may be negative.
        """

    def neighbours(self, x: Float[Array, "*n"]) -> Neighbours:
        """The values to which probability flows from x; by default all others of a finite number."""
        table = self.all_values()
        if table is None:
            raise ValueError(f"got units of kind {self.name!r}; flow to neighbouring values takes kinds that say which")
        units = x.shape[-1] // self.width
        values = jnp.asarray(table, x.dtype)
        present = jnp.all(x.reshape(*x.shape[:-1], units, 1, self.width) == _among(values, x.ndim + 2), axis=-1)

        def own(x: Float[Array, "*n"]) -> Float[Array, "*units 1"]:
            every = jnp.broadcast_to(self.own_energy(x).astype(x.dtype), x.shape)
            return jnp.sum(every.reshape(*x.shape[:-1], units, 1, self.width), axis=-1)

        there = jnp.concatenate([own(jnp.tile(value, units)) for value in values], axis=-1)
        return Neighbours(_among(values, x.ndim + 2), jnp.where(present, -jnp.inf, own(x) - _among(there, x.ndim + 1)))

    def score_flow(
        self, x: Float[Array, "*n"], slope: Float[Array, "*n"], curvature: Float[Array, "*n"]
    ) -> Float[Array, "*n"]:
        """The rates of `flow` for real values, from the first and second derivative of log p by x."""
        raise ValueError(f"got units of kind {self.name!r}; score matching takes kinds of real values that say how")

    @abc.abstractmethod
    def check(self, name: str, x: Any) -> Any:
        """The array, if all its entries are values of the unit; else raises ValueError, in one sentence."""

    def all_values(self) -> np.ndarray | None:
        """What one unit may be, [number of values, width]; None where they cannot be counted."""
        return None

    def widened(self, x: Shaped[AnyArray, "*n"]) -> Shaped[Array, "*n"]:
        """States in a type that holds whatever the unit may be, as they are where theirs does.

        Files keep counts in bytes where these hold them; what is drawn from such a state may be more.
        """
        x = jnp.asarray(x)
        holds = self.all_values() is not None or np.result_type(x.dtype, self.dtype) == x.dtype
        return x if holds else x.astype(self.dtype)

    def segments(self, n: int) -> list[tuple["Unit", slice]]:
        """The parts of a layer of n entries that are of one kind each."""
        return [(self, slice(0, n))]

    def own(self, n: int) -> Float[Array, " n"] | None:
        """Parameters of the own energy of n entries as they start; None of kinds that have none."""
        return None

    def bound(self, own: Float[Array, "*runs n"] | None) -> "Unit":
        """The kind with these parameters of its own energy."""
        return self

    def entry(self, j: Int[Array, ""]) -> "Unit":
        """The kind with the parameters of unit j alone."""
        return self

    def own_energy(self, x: Float[Array, "*n"]) -> Float[Array, "*any"]:
        """e(x) of each entry, up to what does not depend on x; a single 0 where it is 0."""
        return jnp.zeros(())

    def own_statistics(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """- de/d(own) at x."""
        raise NotImplementedError(f"units of kind {self.name!r} have no parameters of their own")

    def mean_own_statistics(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """- E[de/d(own)] at local fields z."""
        raise NotImplementedError(f"units of kind {self.name!r} have no parameters of their own")

    def own_slope(self, x: Float[Array, "*n"], z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """The derivative of the rates of `flow` by the parameters of the own energy."""
        raise NotImplementedError(f"units of kind {self.name!r} have no parameters of their own")

    def own_between(self, a: Float[Array, " n"], b: Float[Array, " n"], share: Float[Array, ""]) -> Float[Array, " n"]:
        """The parameters at which e is (1 - share) times that at a and share times that at b."""
        return (1 - share) * a + share * b

    def fitted(
        self, means: Float[Array, " n"], variances: Float[Array, " n"] | None
    ) -> tuple[Float[Array, " n"], Float[Array, " n"] | None]:
        """(biases, own) at which units without input have these means and, where they can, variances; held away from
        where a field would be infinite.
        """
        raise ValueError(f"got units of kind {self.name!r}; a start from means takes kinds that say how (Unit.fitted)")


def _among(values: Float[Array, "*n"], ndim: int) -> Float[Array, "..."]:
    """With axes of size 1 in front, so as to go with an array of so many axes."""
    return values.reshape((1,) * (ndim - values.ndim) + values.shape)


def owners(unit: Unit, n: int) -> np.ndarray | None:
    """The number of the unit to which each of n entries belongs; None where each entry is a unit."""
    segments = unit.segments(n)
    if all(kind.width == 1 for kind, _ in segments):
        return None
    numbers, first = [], 0
    for kind, part in segments:
        own = np.arange(part.stop - part.start) // kind.width
        numbers.append(first + own)
        first += own[-1] + 1
    return np.concatenate(numbers)


def num_units(unit: Unit, n: int) -> int:
    """In n entries."""
    owned = owners(unit, n)
    return n if owned is None else int(owned[-1]) + 1


def by_entry(unit: Unit, n: int, of_units: Shaped[AnyArray, "*batch units"]) -> Shaped[AnyArray, "*batch n"]:
    """What is said of units, said of each of their n entries."""
    owned = owners(unit, n)
    return of_units if owned is None else of_units[..., owned]


def first_entries(unit: Unit, n: int) -> np.ndarray:
    """The numbers of the entries at which the units of n entries begin."""
    owned = owners(unit, n)
    return np.arange(n) if owned is None else np.flatnonzero(np.diff(owned, prepend=-1))


_registered: dict[str, Unit] = {}
_families: dict[str, Callable[[str], Unit]] = {}


def register(unit: Unit) -> Unit:
    """Makes a kind of unit known by its name, as files and flags give it; returns it.

    Raises:
      ValueError: no unit, or a name that another kind has.
    """
    checks.require(isinstance(unit, Unit), "unit", unit, "a Unit")
    known = _registered.setdefault(unit.name, unit)
    checks.require(known == unit, "unit", unit, f"a name other than {unit.name!r}, which is taken")
    return unit


def register_family(name: str, make: Callable[[str], Unit]) -> None:
    """Makes kinds with an argument known: "name(argument)" is make(argument), which raises ValueError if it cannot."""
    checks.require(_families.setdefault(name, make) is make, "name", name, "a name that no other family has")


def get(name: str) -> Unit:
    """The kind of unit of this name; ValueError for another name."""
    found = re.fullmatch(r"(\w+)\((.*)\)", name) if isinstance(name, str) else None
    if found and found[1] in _families:
        return _families[found[1]](found[2])
    allowed = f"one of {', '.join((*names(), *(f'{family}(...)' for family in _families)))}"
    checks.require(isinstance(name, str) and name in _registered, "unit", name, allowed)
    return _registered[name]


def names() -> tuple[str, ...]:
    """Of the registered kinds without an argument."""
    return tuple(_registered)
