"""Units of two values, among them the bits {0, 1} of the paper and spins {-1, +1}.

`BINARY` is the default; `SPIN` neurons make the same machines in other parameters (`gauges.with_units`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from vpf_jax import checks
from vpf_jax.units.base import Neighbours, Unit, register

# Means from which biases are made stay this far from 0 and 1, as if each value had been seen once in a hundred images:
# a pixel that is always dark in the data is not quite so in a machine.
LEAST_MEAN = 0.01


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

    def neighbours(self, x: Float[Array, "*n"]) -> Neighbours:
        return Neighbours(self.flipped(x)[..., None, None], jnp.zeros_like(x)[..., None])

    def check(self, name: str, x: Any) -> Any:
        return checks.two_valued(name, x, self.low, self.high)

    def all_values(self) -> np.ndarray:
        return np.array([[self.low], [self.high]], self.dtype)

    def fitted(
        self, means: Float[Array, " n"], variances: Float[Array, " n"] | None
    ) -> tuple[Float[Array, " n"], None]:
        share = self.share(means)
        told = f"from {self.low} to {self.high}"
        checks.values(
            "visible_means",
            share,
            told,
            lambda v, xp: xp.all((v >= 0) & (v <= 1)),
            lambda v: f"from {self.low + self.step * v.min():g} to {self.low + self.step * v.max():g}; they are {told}",
        )
        return self.threshold(jnp.clip(share, LEAST_MEAN, 1 - LEAST_MEAN)), None

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


BINARY = register(TwoValued("binary", 0, 1, np.uint8))
SPIN = register(TwoValued("spin", -1, 1, np.int8))


def two_valued(unit: Unit, what: str) -> TwoValued:
    """The unit, if it has two values; else raises ValueError: `what` takes no other."""
    if not isinstance(unit, TwoValued):
        raise ValueError(f"got units of kind {unit.name!r}; {what} takes units of two values")
    return unit
