"""Several kinds of units side by side in one layer, as when spikes and a stimulus are modelled together.

    Groups(((BINARY, 60), (GAUSSIAN, 2)))       60 bits, then 2 real numbers: a layer of 62 entries

Kinds have as many entries as is said, categorical ones q for each unit. The groups have one layer above them in common,
and weights inside the layer join any two of their units. States are of one type, which holds the values of all. Not
here: layers of different kinds, which need no group (`BoltzmannMachine.units`).
"""

import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from vpf_jax import checks
from vpf_jax.units.base import Unit, get, register_family


@dataclasses.dataclass(frozen=True)
class Groups(Unit):
    """Kinds of units with their numbers of entries, in the order of the layer."""

    groups: tuple[tuple[Unit, int], ...]
    parameters: Float[Array, "*runs n"] | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        allowed = "pairs (kind, number of entries), kinds of one value an entry or that many times their width"
        fits = isinstance(self.groups, tuple) and len(self.groups) > 0
        for pair in self.groups if fits else ():
            fits = fits and isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], Unit)
            number = checks.as_integer(pair[1]) if fits else None
            fits = fits and number is not None and number > 0 and number % pair[0].width == 0
            fits = fits and not isinstance(pair[0], Groups)
        checks.require(fits, "groups", self.groups, allowed)

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"groups({' + '.join(f'{number} {unit.name}' for unit, number in self.groups)})"

    @property
    def dtype(self) -> DTypeLike:  # type: ignore[override]
        # JAX's promotion: single precision for counts beside real values, where NumPy's is double.
        return jnp.result_type(*(unit.dtype for unit, _ in self.groups))

    def segments(self, n: int) -> list[tuple[Unit, slice]]:
        ends = list(itertools.accumulate((number for _, number in self.groups), initial=0))
        if n != ends[-1]:
            raise ValueError(f"got a layer of {n} entries; the groups of {self.name} have {ends[-1]}")
        parts = [slice(start, end) for start, end in itertools.pairwise(ends)]
        own = self.parameters
        return [
            (unit if own is None else unit.bound(own[..., part]), part)
            for (unit, _), part in zip(self.groups, parts, strict=True)
        ]

    def own(self, n: int) -> Float[Array, " n"] | None:
        parts = [(unit.own(part.stop - part.start), part) for unit, part in self.segments(n)]
        if all(own is None for own, _ in parts):
            return None
        # Entries of kinds without parameters hold a 0 that nothing reads.
        return jnp.concatenate([jnp.zeros(part.stop - part.start) if own is None else own for own, part in parts])

    def bound(self, own: Float[Array, "*runs n"] | None) -> "Groups":
        return dataclasses.replace(self, parameters=own)

    def mean(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return self._joined(lambda unit, z: unit.mean(z), z)

    def sample(self, z: Float[Array, "*n"], uniforms: Float[Array, "*n"]) -> Shaped[Array, "*n"]:
        return self._joined(lambda unit, z, u: unit.sample(z, u).astype(self.dtype), z, uniforms)

    def log_normaliser(self, z: Float[Array, "*n"]) -> Float[Array, "*units"]:
        return self._joined(lambda unit, z: unit.log_normaliser(z), z)

    def log_normaliser_difference(self, z: Float[Array, "*n"], y: Float[Array, "*n"]) -> Float[Array, "*units"]:
        return self._joined(lambda unit, z, y: unit.log_normaliser_difference(z, y), z, y)

    def flow(self, x: Shaped[Array, "*n"], z: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
        found = [unit.flow(x[..., part], z[..., part]) for unit, part in self.segments(z.shape[-1])]
        rates, slopes = (jnp.concatenate(parts, axis=-1) for parts in zip(*found, strict=True))
        return rates, slopes

    def check(self, name: str, x: Any) -> Any:
        checks.array(name, x)
        if jnp.ndim(x) == 0:
            raise ValueError(f"got {name} of shape (); it takes the entries of {self.name}")
        for unit, part in self.segments(jnp.shape(x)[-1]):
            unit.check(f"{unit.name} units of {name}", x[..., part])
        return x

    def own_energy(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        def of(unit: Unit, x: Array) -> Array:
            return jnp.broadcast_to(unit.own_energy(x).astype(x.dtype), x.shape)

        return self._joined(of, x)

    def own_statistics(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return self._of_own(lambda unit, x: unit.own_statistics(x), x)

    def mean_own_statistics(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return self._of_own(lambda unit, z: unit.mean_own_statistics(z), z)

    def own_slope(self, x: Float[Array, "*n"], z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return self._of_own(lambda unit, x, z: unit.own_slope(x, z), x, z)

    def own_between(self, a: Float[Array, " n"], b: Float[Array, " n"], share: Float[Array, ""]) -> Float[Array, " n"]:
        return self._of_own(lambda unit, a, b: unit.own_between(a, b, share), a, b)

    def fitted(
        self, means: Float[Array, " n"], variances: Float[Array, " n"] | None
    ) -> tuple[Float[Array, " n"], Float[Array, " n"] | None]:
        biases, owns = [], []
        for unit, part in self.segments(means.shape[-1]):
            bias, own = unit.fitted(means[part], None if variances is None else variances[part])
            biases.append(bias)
            owns.append(jnp.zeros_like(bias) if own is None else own)
        return jnp.concatenate(biases), None if self.own(means.shape[-1]) is None else jnp.concatenate(owns)

    def _joined(self, function: Callable[..., Array], *arrays: Shaped[Array, "*n"]) -> Shaped[Array, "*units"]:
        """Of each group, side by side."""
        parts = self.segments(arrays[0].shape[-1])
        return jnp.concatenate([function(unit, *(a[..., part] for a in arrays)) for unit, part in parts], axis=-1)

    def _of_own(self, function: Callable[..., Array], *arrays: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """0 for groups without parameters of their own."""

        def of(unit: Unit, *some: Array) -> Array:
            return jnp.zeros_like(some[0]) if unit.own(1) is None else function(unit, *some)

        return self._joined(of, *arrays)


def _of(argument: str) -> Groups:
    allowed = "groups(NUMBER KIND + ...), such as groups(60 binary + 2 gaussian)"
    parts = [re.fullmatch(r"\s*(\d+) (\S.*?)\s*", part) for part in argument.split("+")]
    checks.require(all(parts), "unit", f"groups({argument})", allowed)
    return Groups(tuple((get(part[2]), int(part[1])) for part in parts if part))


register_family("groups", _of)
