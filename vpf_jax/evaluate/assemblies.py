"""Whether hidden units are planted assemblies: each assembly with the one unit that matches it best.

Not here: how assemblies are planted (`data.planted_recordings`).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from vpf_jax.checks import AnyArray


class Matched(NamedTuple):
    """One hidden unit for each assembly, no unit twice."""

    overlap: Float[np.ndarray, " assemblies"]
    """Correlation of the unit's weights with the membership, its size: 1 where weights are one number inside and
    another outside; 0 of an assembly that is left without a unit, and nan where a weight is not finite."""
    unit: Int[np.ndarray, " assemblies"]
    """Its number; -1: none."""


def matched(weights: Float[AnyArray, "n_0 n_1"], membership: Bool[np.ndarray, "assemblies n_0"]) -> Matched:
    """The matching of assemblies and units that has the largest sum of overlaps (Kuhn 1955).

    Raises:
      ValueError: arrays that do not fit one another.
    """
    from scipy.optimize import linear_sum_assignment

    w, m = np.asarray(weights, np.float32), np.asarray(membership, np.float32).T
    if w.ndim != 2 or m.ndim != 2 or len(w) != len(m):
        raise ValueError(f"got weights of shape {w.shape} and membership of {m.T.shape}; it takes [n_0, n_1], [_, n_0]")
    if not np.isfinite(w).all():
        return Matched(np.full(m.shape[1], np.nan), np.full(m.shape[1], -1))
    w, m = (one - one.mean(axis=0) for one in (w, m))
    w, m = (one / np.maximum(np.linalg.norm(one, axis=0), 1e-12) for one in (w, m))
    overlaps = np.abs(m.T @ w)
    rows, columns = linear_sum_assignment(-overlaps)
    overlap, unit = np.zeros(m.shape[1]), np.full(m.shape[1], -1)
    overlap[rows], unit[rows] = overlaps[rows, columns], columns
    return Matched(overlap, unit)
