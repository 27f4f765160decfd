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
from vpf_jax.units.base import Unit, register
from vpf_jax.units.gaussian import normal_quantile
from vpf_jax.units.two_valued import LEAST_MEAN

# Of draws, as high as single precision counts; a field so high has left any data behind.
MOST = 2**24
# Up to here single precision holds the sums of probabilities; from here on the quantile's own series is exact to a
# hundredth of a count, but for one draw in a million.
_LARGE = 100.0
# Less than a step of the uniform numbers, with what lies beyond a value of such probability.
_NEGLIGIBLE = 2.0**-30


@dataclasses.dataclass(frozen=True)
class Count(Unit):
    """Counts."""

    name: str = "count"

    dtype = np.int32

    def mean(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return jnp.exp(z)

    def sample(self, z: Float[Array, "*n"], uniforms: Float[Array, "*n"]) -> Shaped[Array, "*n"]:
        """The quantile; at most `MOST`."""
        rate = jnp.minimum(jnp.exp(z), MOST)
        u = uniforms.astype(z.dtype)
        found = jnp.where(rate > _LARGE, _far_quantile(u, rate), _near_quantile(u, jnp.minimum(rate, _LARGE)))
        return jax.lax.stop_gradient(jnp.clip(found, 0, MOST)).astype(self.dtype)

    def log_normaliser(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return jnp.exp(z)

    def flow(self, x: Shaped[Array, "*n"], z: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
        x = jnp.asarray(x).astype(z.dtype)
        up = jnp.exp((z - jnp.log1p(x)) / 2)
        down = jnp.where(x > 0, jnp.exp((jnp.log(jnp.maximum(x, 1)) - z) / 2), 0)
        return up + down, (up - down) / 2

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


def _near_quantile(u: Float[Array, "*n"], rate: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """By steps from the mean, sums of probabilities growing or shrinking by one at each."""
    positive = jnp.maximum(rate, jnp.finfo(rate.dtype).tiny)
    start = jnp.floor(rate)
    # P(x <= start) and p(start); sums beyond are by the ratios of neighbouring probabilities.
    below = jax.scipy.special.gammaincc(start + 1, rate)
    at = jnp.exp(start * jnp.log(positive) - rate - jax.scipy.special.gammaln(start + 1))
    upwards = u >= below

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        x, total, p = carry
        # Where the rest is less than the rounding of the sum, that would never pass u.
        return (p > _NEGLIGIBLE) & jnp.where(upwards, total <= u, (total - p > u) & (x > 0))

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, total, p = carry
        up, down = p * rate / (x + 1), p * x / positive
        moved = (
            jnp.where(upwards, x + 1, x - 1),
            jnp.where(upwards, total + up, total - p),
            jnp.where(upwards, up, down),
        )
        goes = unfinished(carry)
        return jax.tree.map(lambda new, old: jnp.where(goes, new, old), moved, carry)

    return jax.lax.while_loop(lambda carry: jnp.any(unfinished(carry)), step, (start, below, at))[0]


def _far_quantile(u: Float[Array, "*n"], rate: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """By the series of Cornish and Fisher (1938) around the normal quantile, to its third cumulants and fourth."""
    w, deviation = normal_quantile(u), jnp.sqrt(rate)
    return jnp.round(rate + deviation * w + (w**2 - 1) / 6 + (w - w**3) / (72 * deviation))


COUNT = register(Count())
