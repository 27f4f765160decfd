"""Real-valued units: e(x) = g x^2 / 2, so that x is normal with mean z / g and variance 1 / g.

The precision g > 0 of each unit is a parameter of the machine, kept as its logarithm (`BoltzmannMachine.own`), so that
no step of an optimizer makes it negative. Of hidden units it would scale what the weights scale: `NORMAL` ones have
g = 1. Flow between real values is a diffusion, and what probability flow over small steps leaves of it is score
matching (Hyvarinen 2005): (g x - z)^2 / 2 - g. Machines that join such units to one another need not have a
distribution: the matrix of precisions less the weights must be positive definite. Not here: values of at least 0
(`rectified`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from vpf_jax import checks
from vpf_jax.units.base import Unit, register

# Of data, from which precisions start: less counts as this much.
LEAST_VARIANCE = 1e-4
# Of the uniform numbers.
_STEP = 2.0**-24


@dataclasses.dataclass(frozen=True)
class Gaussian(Unit):
    """Real-valued units, of learnt precision or of precision 1."""

    name: str
    learnt: bool
    log_precision: Float[Array, "*runs n"] | None = dataclasses.field(default=None, compare=False, repr=False)

    dtype = np.float32
    continuous = True

    def own(self, n: int) -> Float[Array, " n"] | None:
        return jnp.zeros(n) if self.learnt else None

    def bound(self, own: Float[Array, "*runs n"] | None) -> "Gaussian":
        # In groups with others, entries of units of precision 1 have a place in the parameters that nothing reads.
        return dataclasses.replace(self, log_precision=own) if self.learnt else self

    def entry(self, j: Int[Array, ""]) -> "Gaussian":
        own = self.log_precision
        return self if own is None else self.bound(jax.lax.dynamic_slice_in_dim(own, j, 1))

    def precision(self, like: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Of each entry."""
        if self.log_precision is None:
            return jnp.ones_like(like)
        return jnp.broadcast_to(jnp.exp(self.log_precision), like.shape).astype(like.dtype)

    def mean(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return z / self.precision(z)

    def sample(self, z: Float[Array, "*n"], uniforms: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """By the normal quantile, which ends at 5.4 standard deviations, as the uniform numbers do."""
        g = self.precision(z)
        return jax.lax.stop_gradient(z / g + normal_quantile(uniforms.astype(z.dtype)) / jnp.sqrt(g))

    def log_normaliser(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        g = self.precision(z)
        return z**2 / (2 * g) + jnp.log(2 * jnp.pi / g) / 2

    def flow(self, x: Shaped[Array, "*n"], z: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
        g = self.precision(z)
        slope = z - g * jnp.asarray(x).astype(z.dtype)
        return self.score_flow(x, slope, -g), slope

    def score_flow(
        self, x: Shaped[Array, "*n"], slope: Float[Array, "*n"], curvature: Float[Array, "*n"]
    ) -> Float[Array, "*n"]:
        return slope**2 / 2 + curvature

    def check(self, name: str, x: Any) -> Any:
        return checks.finite(name, x)

    def own_energy(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return self.precision(x) * x**2 / 2

    def own_statistics(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return -self.own_energy(x)

    def mean_own_statistics(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return -(z**2 / self.precision(z) + 1) / 2

    def own_slope(self, x: Float[Array, "*n"], z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        g = self.precision(z)
        return g * x * (g * x - z) - g

    def own_between(self, a: Float[Array, " n"], b: Float[Array, " n"], share: Float[Array, ""]) -> Float[Array, " n"]:
        # Precisions are linear along the path. Its ends are exact: no logarithm of 0.
        return jnp.logaddexp(a + jnp.log1p(-share), b + jnp.log(share))

    def fitted(
        self, means: Float[Array, " n"], variances: Float[Array, " n"] | None
    ) -> tuple[Float[Array, " n"], Float[Array, " n"] | None]:
        if not self.learnt:
            return means, None
        g = jnp.ones_like(means) if variances is None else 1 / jnp.maximum(variances, LEAST_VARIANCE)
        return means * g, jnp.log(g)


def normal_quantile(u: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Of uniform numbers, multiples of 2^-24 from 0 to 1 - 2^-24, each taken in the middle of its step.

    From the nearer end, where the middle is a number of single precision: next to 1 it rounds to 1, whose quantile is
    infinite.
    """
    low = u < 0.5
    found = jax.scipy.special.ndtri(jnp.where(low, u, 1 - u - _STEP) + _STEP / 2)
    return jnp.where(low, found, -found)


GAUSSIAN = register(Gaussian("gaussian", True))
NORMAL = register(Gaussian("normal", False))
