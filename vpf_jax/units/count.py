"""Units that count: 0, 1, 2, ..., with e(x) = log x!, so that x is of Poisson's distribution with mean exp(z).

The neighbours of a value are the next one up and the next one down. Machines that join such units to one another by
weights above 0 have no distribution; to other kinds they may be joined by any. Not here: counts up to a bound, which
are categories.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from vpf_jax import checks
from vpf_jax.units.base import Neighbours, Unit, register
from vpf_jax.units.two_valued import LEAST_MEAN

# Of draws, as high as single precision counts; a field so high has left any data behind.
MOST = 2**24
# From here on a draw is one of a normal distribution, to a relative error of a thousandth of its deviation.
_LARGE = 1e5


@dataclasses.dataclass(frozen=True)
class Count(Unit):
    """Counts."""

    name: str = "count"

    dtype = np.int32

    def mean(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return jnp.exp(z)

    def sample(self, z: Float[Array, "*n"], uniforms: Float[Array, "*n"]) -> Shaped[Array, "*n"]:
        """The quantile, by steps from the mean; at most `MOST`."""
        rate = jnp.minimum(jnp.exp(z), MOST)
        u = uniforms.astype(z.dtype)
        small = jnp.minimum(rate, _LARGE)
        start = jnp.floor(small)
        # P(x <= start) and p(start); sums beyond are by the ratios of neighbouring probabilities.
        below = jax.scipy.special.gammaincc(start + 1, small)
        at = jnp.exp(
            start * jnp.log(jnp.maximum(small, jnp.finfo(z.dtype).tiny)) - small - jax.scipy.special.gammaln(start + 1)
        )
        upwards = u >= below

        def unfinished(carry: tuple[Array, Array, Array]) -> Array:
            x, total, p = carry
            return jnp.where(upwards, (total <= u) & (p > 0), (total - p > u) & (x > 0))

        def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            x, total, p = carry
            goes = unfinished(carry)
            up = p * small / (x + 1)
            down = p * x / jnp.maximum(small, jnp.finfo(z.dtype).tiny)
            return (
                jnp.where(goes, jnp.where(upwards, x + 1, x - 1), x),
                jnp.where(goes, jnp.where(upwards, total + up, total - p), total),
                jnp.where(goes, jnp.where(upwards, up, down), p),
            )

        carry = jax.lax.while_loop(lambda c: jnp.any(unfinished(c)), step, (start, below, at))
        normal = jnp.round(rate + jnp.sqrt(rate) * jax.scipy.special.ndtri(u + 2.0**-25))
        found = jnp.where(rate > _LARGE, normal, carry[0])
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
        return jnp.log(jnp.maximum(means, LEAST_MEAN)), None


COUNT = register(Count())
