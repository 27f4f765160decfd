"""Real-valued units of at least 0: e(x) = x^2 / 2, a normal distribution cut at 0 (Teh and Hinton 2001).

Flow between such values ends at 0, which score matching counts with steps in proportion to x (Hyvarinen 2007):
2 x s + x^2 (s^2 / 2 - 1), s = z - x. Not here: values of both signs (`gaussian`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from vpf_jax import checks
from vpf_jax.units.base import Unit, register
from vpf_jax.units.two_valued import LEAST_MEAN

# Below this field series in 1 / z are better than single precision is.
_FAR = -10.0
# Of Newton, to the field of a mean; after four nothing but rounding is left in double precision.
_STEPS = 6


@dataclasses.dataclass(frozen=True)
class Rectified(Unit):
    """Real-valued units of at least 0."""

    name: str = "rectified"

    dtype = np.float32
    continuous = True

    def mean(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        # Far out the sum is a small difference of large numbers: its series there.
        near = jnp.maximum(z, _FAR)
        far = -jnp.minimum(z, _FAR)
        exact = near + jnp.exp(jax.scipy.stats.norm.logpdf(near) - jax.scipy.special.log_ndtr(near))
        return jnp.where(z > _FAR, exact, (1 - 2 / far**2 + 10 / far**4) / far)

    def sample(self, z: Float[Array, "*n"], uniforms: Float[Array, "*n"]) -> Float[Array, "*n"]:
        above = 1 - uniforms.astype(z.dtype)
        near = jnp.maximum(z, _FAR)
        # Below 1, whose quantile is infinite.
        share = jnp.minimum(above * jax.scipy.special.ndtr(near), 1 - jnp.finfo(z.dtype).epsneg)
        quantile = near - jax.scipy.special.ndtri(share)
        far, log_above = -jnp.minimum(z, _FAR), jnp.log(above)

        def exponent_is(e: Float[Array, "*n"]) -> Float[Array, "*n"]:
            """The x at which far x + x^2 / 2 is e."""
            return 2 * e / (far + jnp.sqrt(far**2 + 2 * e))

        # P(above x) = exp(- far x - x^2 / 2) far / (far + x), to a relative error of 1 / z^4.
        rest = exponent_is(-log_above - jnp.log1p(exponent_is(-log_above) / far))
        return jax.lax.stop_gradient(jnp.where(z > _FAR, jnp.maximum(quantile, 0), rest))

    def log_normaliser(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return z**2 / 2 + jax.scipy.special.log_ndtr(z) + jnp.log(2 * jnp.pi) / 2

    def flow(self, x: Shaped[Array, "*n"], z: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
        x = jnp.asarray(x).astype(z.dtype)
        score = z - x
        return self.score_flow(x, score, -jnp.ones_like(x)), 2 * x + x**2 * score

    def score_flow(
        self, x: Float[Array, "*n"], slope: Float[Array, "*n"], curvature: Float[Array, "*n"]
    ) -> Float[Array, "*n"]:
        return 2 * x * slope + x**2 * (slope**2 / 2 + curvature)

    def check(self, name: str, x: Any) -> Any:
        checks.finite(name, x)
        checks.values(
            name,
            x,
            "at least 0",
            lambda v, xp: xp.all(v >= 0),
            lambda v: f"from {v.min():g} to {v.max():g}; they are at least 0",
        )
        return x

    def fitted(
        self, means: Float[Array, " n"], variances: Float[Array, " n"] | None
    ) -> tuple[Float[Array, " n"], None]:
        """From the means, which say the variances too. The mean has no inverse in closed form.

        It is convex in the field and lies above (sqrt(z^2 + 8) + z) / 4 (Sampford 1953): from the field where this is
        the wanted mean, Newton's steps come down to the solution and never pass it.
        """
        checks.values(
            "visible_means",
            means,
            "of rectified units",
            lambda v, xp: xp.all(v >= 0),
            lambda v: f"from {v.min():g} to {v.max():g}; those of rectified units are at least 0",
        )
        wanted = jnp.maximum(means, LEAST_MEAN)

        def step(_: Any, z: Float[Array, " n"]) -> Float[Array, " n"]:
            mean, variance = jax.jvp(self.mean, (z,), (jnp.ones_like(z),))
            return z - (mean - wanted) / variance

        return jax.lax.fori_loop(0, _STEPS, step, jnp.minimum(wanted, 2 * wanted - 1 / wanted)), None

    def own_energy(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return x**2 / 2


RECTIFIED = register(Rectified())
