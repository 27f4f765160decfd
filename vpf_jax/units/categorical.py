"""Units of q values (Potts): one-hot vectors of q entries, with a field for each value.

A layer of N such units is a vector of N q entries, unit by unit, and so are its biases; weights have a row or column
for each value of each unit. In these entries the energy is as linear as that of bits, a mean is a vector of
probabilities, and the fields of a layer are one product of matrices. `encode` makes states of codes 0 to q - 1, and
`decode` codes of states.

The rate to another value k is exp((z_k - z_s) / 2), s being the present one. Not here: gauges (`vpf_jax.gauges`),
letters (`data.fasta`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Shaped

from vpf_jax import checks
from vpf_jax.checks import AnyArray
from vpf_jax.units.base import Unit, register_family
from vpf_jax.units.two_valued import LEAST_MEAN

# Of a sum of frequencies.
_ROUNDING = 1e-3


@dataclasses.dataclass(frozen=True)
class Categorical(Unit):
    """Units of q values."""

    q: int

    dtype = np.uint8

    def __post_init__(self) -> None:
        checks.integer("q", self.q, 2)

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"categorical({self.q})"

    @property
    def width(self) -> int:  # type: ignore[override]
        return self.q

    def encode(self, codes: Integer[AnyArray, "*batch units"]) -> Shaped[Array, "*batch n"]:
        """States of integer codes, uint8.

        Raises:
          ValueError: codes that are no integers from 0 to q - 1.
        """
        checks.array("codes", codes, f"an array of integers from 0 to {self.q - 1}")
        allowed = f"integers from 0 to {self.q - 1}"
        checks.require(jnp.issubdtype(codes.dtype, jnp.integer), "codes", codes, allowed)
        checks.values(
            "codes",
            codes,
            f"below {self.q}",
            lambda c, xp: xp.all((c >= 0) & (c < self.q)),
            lambda c: f"from {c.min()} to {c.max()}; they are {allowed}",
        )
        return self._flat(jax.nn.one_hot(codes, self.q, dtype=self.dtype))

    def decode(self, x: Shaped[AnyArray, "*batch n"]) -> Int[Array, "*batch units"]:
        """The code of each unit; of means the most probable one."""
        return jnp.argmax(self._by_unit(jnp.asarray(x)), axis=-1)

    def mean(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return self._flat(jax.nn.softmax(self._by_unit(z), axis=-1))

    def sample(self, z: Float[Array, "*n"], uniforms: Float[Array, "*n"]) -> Shaped[Array, "*n"]:
        """By the first of the uniform numbers of each unit."""
        below = jnp.cumsum(jax.nn.softmax(self._by_unit(z), axis=-1), axis=-1)[..., :-1]
        code = jnp.sum(self._by_unit(uniforms)[..., :1] >= below, axis=-1)
        return self._flat(jax.nn.one_hot(code, self.q, dtype=self.dtype))

    def log_normaliser(self, z: Float[Array, "*n"]) -> Float[Array, "*units"]:
        return jax.nn.logsumexp(self._by_unit(z), axis=-1)

    def flow(self, x: Shaped[Array, "*n"], z: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
        x, z = self._by_unit(jnp.asarray(x).astype(z.dtype)), self._by_unit(z)
        rates = (1 - x) * jnp.exp((z - jnp.sum(x * z, axis=-1, keepdims=True)) / 2)
        return self._flat(rates), self._flat((rates - x * jnp.sum(rates, axis=-1, keepdims=True)) / 2)

    def check(self, name: str, x: Any) -> Any:
        told = f"one-hot vectors of {self.q} entries for each unit"
        checks.array(name, x, f"an array of {told}")
        fits = jnp.ndim(x) > 0 and jnp.shape(x)[-1] % self.q == 0
        if not fits:
            raise ValueError(f"got {name} of shape {jnp.shape(x)}; it takes {told}")

        def holds(given: Any, xp: Any) -> Any:
            one = xp.reshape(given, (*given.shape[:-1], -1, self.q))
            return xp.all((one == 0) | (one == 1)) & xp.all(xp.sum(one, axis=-1) == 1)

        checks.values(name, x, f"one-hot of {self.q}", holds, lambda _: f"with other entries; it takes {told}")
        return x

    def all_values(self) -> np.ndarray:
        return np.eye(self.q, dtype=self.dtype)

    def entropy(self, mean: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Of the distribution with this mean, in nats, by value."""
        return jax.scipy.special.entr(mean)

    def fitted(
        self, means: Float[Array, " n"], variances: Float[Array, " n"] | None
    ) -> tuple[Float[Array, " n"], None]:
        """From the frequencies of the values."""
        told = f"of {self.q} that sum to 1 for each unit"
        checks.probabilities("visible_means", means)

        def holds(v: Any, xp: Any) -> Any:
            return xp.all(xp.abs(xp.sum(xp.reshape(v, (-1, self.q)), axis=-1) - 1) < _ROUNDING)

        checks.values("visible_means", means, told, holds, lambda _: f"of other sums; they are probabilities {told}")
        return jnp.log(jnp.clip(means, LEAST_MEAN / self.q, 1)), None

    def _by_unit(self, x: Shaped[Array, "*n"]) -> Shaped[Array, "*units q"]:
        return x.reshape(*x.shape[:-1], -1, self.q)

    def _flat(self, x: Shaped[Array, "*units q"]) -> Shaped[Array, "*n"]:
        return x.reshape(*x.shape[:-2], -1)


def _of(argument: str) -> Categorical:
    checks.require(
        argument.isdecimal() and int(argument) >= 2, "unit", f"categorical({argument})", "categorical(q), q >= 2"
    )
    return Categorical(int(argument))


register_family("categorical", _of)
