"""Parzen-window log-likelihood of points under Gaussian kernels at generated centres.

    LL(x) = log mean_s exp(-||x - m_s||^2 / (2 sigma^2)) - (d / 2) log(2 pi sigma^2)

(the protocol of Breuleux, Bengio and Vincent 2011 that the paper's Table 2 uses; Liu, Quek and Lin, arXiv 1711.07732,
section 6). It is not a true likelihood: it depends on sigma and on the number of centres, and smooth centres can
beat real data; state beside a score what real data reads. Distances are formed tile by tile, so 10,000 points against
10,000 centres need some tens of megabytes on a CPU. Not here: where centres come from.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vpf_jax import checks
from vpf_jax.checks import AnyArray
from vpf_jax.sharding import DATA, laid, spread
from vpf_jax.stack import tile_at_once

# Widths tried for images with values in [0, 1].
SIGMAS = tuple(round(0.10 + 0.01 * i, 2) for i in range(21))


def parzen_log_likelihood(
    centres: Float[AnyArray, "num_centres d"],
    points: Float[AnyArray, "num_points d"],
    sigma: Float[Array, ""] | float,
) -> Float[Array, " num_points"]:
    """Log density in nats of each point under the mean of Gaussians of width sigma at the centres.

    Under `jax.jit`, where values are not at hand to be refused, a centre that is not finite makes every score nan, and
    a point that is not finite its own.

    Raises:
      ValueError: shapes that do not fit, no centres or points, values that are not finite, or a sigma that is not
        positive and finite.
    """
    _check(centres, points, [sigma])
    return _log_density(jnp.asarray(centres), jnp.asarray(points), jnp.asarray(sigma, jnp.float32)[None])[0]


def choose_sigma(
    centres: Float[AnyArray, "num_centres d"],
    validation: Float[AnyArray, "num_points d"],
    sigmas: Sequence[float] = SIGMAS,
) -> float:
    """The width among `sigmas` with the highest mean log-likelihood of the validation points.

    Raises:
      ValueError: as `parzen_log_likelihood`, or no widths.
    """
    if isinstance(sigmas, str) or np.ndim(np.asarray(sigmas)) != 1:
        raise ValueError(f"got sigmas={sigmas!r}; they are a sequence of positive numbers")
    if len(sigmas) == 0:
        raise ValueError("got no sigmas; it takes at least one positive number")
    _check(centres, validation, sigmas)
    scores = _log_density(jnp.asarray(centres), jnp.asarray(validation), jnp.asarray(sigmas, jnp.float32))
    means = np.asarray(jnp.mean(scores, axis=1))
    if np.isnan(means).any():
        raise ValueError("got values whose squares overflow, and no score; in float32 they are below 1e19")
    return float(sigmas[int(np.argmax(means))])


@jax.jit
def _log_density(centres: Array, points: Array, sigmas: Array) -> Float[Array, "num_sigmas num_points"]:
    num_centres, dimension = centres.shape
    # Padded centres are masked out, padded points cut off.
    centre_chunks, mask = _chunks(centres)
    point_chunks, _ = _chunks(points)
    precisions = 0.5 / sigmas**2

    def of_points(rows: Array) -> Array:
        rows = laid(rows, DATA, None)
        row_norms = jnp.sum(rows**2, axis=1)

        def add_centres(carry: tuple[Array, Array], chunk: tuple[Array, Array]):
            # A running maximum and sum per point and width, so that no exponential overflows.
            highest, total = carry
            some, valid = chunk
            # Distances from one product: cancellation costs about 1e-5 of the norms, far below the kernels' scale.
            distances = row_norms[:, None] + jnp.sum(some**2, axis=1)[None] - 2 * rows @ some.T
            distances = jnp.where(valid[None], jnp.maximum(distances, 0), jnp.inf)
            nearest = jnp.min(distances, axis=1)
            new_highest = jnp.maximum(highest, -precisions[:, None] * nearest[None])
            added = jax.lax.map(
                lambda ph: jnp.sum(jnp.exp(-ph[0] * distances - ph[1][:, None]), axis=1),
                (precisions, new_highest),
            )
            return (new_highest, total * jnp.exp(highest - new_highest) + added), None

        start = (jnp.full((len(sigmas), len(rows)), -1e30), jnp.zeros((len(sigmas), len(rows))))
        (highest, total), _ = jax.lax.scan(add_centres, start, (centre_chunks, mask))
        return highest + jnp.log(total)

    sums = jnp.moveaxis(jax.lax.map(of_points, point_chunks), 1, 0)
    sums = sums.reshape(len(sigmas), -1)[:, : points.shape[0]]
    normaliser = jnp.log(num_centres) + dimension * (jnp.log(sigmas) + 0.5 * jnp.log(2 * jnp.pi))
    # The minimum over distances would pass over what is not finite, and leave the best score there is.
    sound = jnp.all(jnp.isfinite(points), axis=1) & jnp.all(jnp.isfinite(centres))
    return jnp.where(sound[None], sums, jnp.nan) - normaliser[:, None]


def _chunks(rows: Array) -> tuple[Array, Array]:
    # Each device has as many of them.
    size = -(-tile_at_once(rows.shape[0]) // spread(DATA)) * spread(DATA)
    count = -(-rows.shape[0] // size)
    padded = jnp.pad(rows, ((0, count * size - rows.shape[0]), (0, 0)))
    valid = jnp.arange(count * size) < rows.shape[0]
    return padded.reshape(count, size, rows.shape[1]), valid.reshape(count, size)


def _check(centres: AnyArray, points: AnyArray, sigmas: Sequence[Array | float]) -> None:
    checks.array("centres", centres)
    checks.array("points", points)
    shapes = jnp.shape(centres), jnp.shape(points)
    if any(len(s) != 2 or s[0] == 0 for s in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"got centres of shape {shapes[0]} and points of shape {shapes[1]}; both are non-empty [n, d], d the same"
        )
    for sigma in sigmas:
        if getattr(sigma, "shape", ()) != ():
            raise ValueError(f"got sigma of shape {jnp.shape(sigma)}; it takes one number")
        checks.positive("sigma", sigma)
    checks.finite("centres", centres)
    checks.finite("points", points)
