"""Units that count: 0, 1, 2, ..., with e(x) = log x!, so that x is of Poisson's distribution with mean exp(z).

The neighbours of a value are the next one up and the next one down. Machines have no distribution that join such units
to one another, or to rectified ones, by weights above 0, or to units of real values by any; to units of a finite number
of values they may be joined by any. Not here: counts up to a bound, which are categories.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from vpf_jax import checks
from vpf_jax.units.base import Neighbours, Unit, register
from vpf_jax.units.gaussian import normal_quantile
from vpf_jax.units.two_valued import LEAST_MEAN

# Of draws, as high as single precision counts; a field so high has left any data behind.
MOST = 2**24
# From here on a draw is a normal one with the terms of skewness and kurtosis (Cornish and Fisher 1938), which is a
# hundredth of a count from the quantile.
_LARGE = 100.0
# Standard deviations below the mean from which quantiles are searched upwards: what lies further is less than a step of
# the uniform numbers.
_TAIL = 6.0
# Of a value, below which no uniform number is its own.
_LEAST = 2.0**-26


@dataclasses.dataclass(frozen=True)
class Count(Unit):
    """Counts."""

    name: str = "count"

    dtype = np.int32

    def mean(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return jnp.exp(z)

    def sample(self, z: Float[Array, "*n"], uniforms: Float[Array, "*n"]) -> Shaped[Array, "*n"]:
        """The quantile, counted upwards from where next to nothing lies below; at most `MOST`."""
        rate = jnp.minimum(jnp.exp(z), MOST)
        u = uniforms.astype(z.dtype)
        small = jnp.minimum(rate, _LARGE)
        start = jnp.floor(jnp.maximum(small - _TAIL * jnp.sqrt(small), 0))
        log_rate = jnp.log(jnp.maximum(small, jnp.finfo(z.dtype).tiny))
        p = jnp.exp(start * log_rate - small - jax.scipy.special.gammaln(start + 1))

        def below(carry: tuple[Array, Array, Array]) -> Array:
            """Where probability is still to be added; past the mean no further than the numbers tell apart."""
            x, total, p = carry
            return (total <= u) & ((x < small) | (p * small / (x + 1) > _LEAST))

        def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            x, total, p = carry
            goes, after = below(carry), p * small / (x + 1)
            return jnp.where(goes, x + 1, x), jnp.where(goes, total + after, total), jnp.where(goes, after, p)

        counted, _, _ = jax.lax.while_loop(lambda carry: jnp.any(below(carry)), step, (start, p, p))
        found = jnp.where(rate > _LARGE, _quantile(rate, u), counted)
        return jax.lax.stop_gradient(jnp.clip(found, 0, MOST)).astype(self.dtype)

    def log_normaliser(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return jnp.exp(z)

    def flow(self, x: Shaped[Array, "*n"], z: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
        x = jnp.asarray(x).astype(z.dtype)
        up = jnp.exp((z - jnp.log1p(x)) / 2)
        down = jnp.where(x > 0, jnp.exp((jnp.log(jnp.maximum(x, 1)) - z) / 2), 0)
        return up + down, (up - down) / 2

    def neighbours(self, x: Float[Array, "*n"]) -> Neighbours:
        """One up and one down."""
        down = jnp.where(x > 0, jnp.log(jnp.maximum(x, 1)), -jnp.inf)
        return Neighbours(
            jnp.stack([x + 1, jnp.maximum(x - 1, 0)], axis=-1)[..., None], jnp.stack([-jnp.log1p(x), down], axis=-1)
        )

    def check(self, name: str, x: Any) -> Any:
        told = "whole numbers of at least 0"
        checks.array(name, x, f"an array of {told}")

        def holds(given: Any, xp: Any) -> Any:
            return xp.all((given >= 0) & (given == xp.round(given)) & (given <= MOST))

        def found(given: np.ndarray) -> str:
            return f"with values from {given.min():g} to {given.max():g}; they are {told}, up to {MOST}"

        checks.values(name, x, "counts", holds, found)
        return x

    def own_energy(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return jax.scipy.special.gammaln(x + 1)

    def fitted(
        self, means: Float[Array, " n"], variances: Float[Array, " n"] | None
    ) -> tuple[Float[Array, " n"], None]:
        checks.values(
            "visible_means",
            means,
            "of counts",
            lambda v, xp: xp.all(v >= 0),
            lambda v: f"from {v.min():g} to {v.max():g}; those of counts are at least 0",
        )
        return jnp.log(jnp.maximum(means, LEAST_MEAN)), None


def _quantile(rate: Float[Array, "*n"], u: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Of a high rate, by the series around the normal quantile to its third and fourth cumulants."""
    w, deviation = normal_quantile(u), jnp.sqrt(rate)
    return jnp.round(rate + deviation * w + (w**2 - 1) / 6 + (w - w**3) / (72 * deviation))


COUNT = register(Count())
