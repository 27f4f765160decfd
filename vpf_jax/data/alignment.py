"""Weights of aligned sequences, of which families are known unevenly.

Some branches of a family were sequenced many times over. A sequence counts for as much as it is alone: one over the
number of sequences that are like it, itself among them (Morcos et al., "Direct-coupling analysis of residue
coevolution captures native contacts across many protein families", 2011). Not here: reading alignments (`fasta`),
training with weights (`vpf_jax.Examples`), contacts (`vpf_jax.evaluate.contacts`).
"""

import numpy as np
from jaxtyping import Float, Integer

from vpf_jax import checks
from vpf_jax.checks import AnyArray

# Sequences on each side that are compared at a time: their counts of like sites lie in a cache of 1 MB.
_BLOCK = 512


def sequence_weights(codes: Integer[AnyArray, "n sites"], identity: float = 0.8) -> Float[np.ndarray, " n"]:
    """One over the number of sequences that have at least this share of sites in common with a sequence, with itself.

    The sum of the weights is the effective number of sequences. All pairs are compared, block by block: memory is that
    of the codes, time n^2 sites / 2 comparisons of bytes.

    Args:
      codes: the value at each site, such as `Categorical.decode` gives; gaps are a value like others.
      identity: share of the sites, above 0 up to 1; usual is 0.8.

    Returns:
      from 1 / n to 1.

    Raises:
      ValueError: no matrix of integers with one sequence or more, or a share outside its range.
    """
    checks.array("codes", codes, "integers [sequences, sites]")
    fits = np.ndim(codes) == 2 and np.asarray(codes).dtype.kind in "iu" and codes.size > 0
    checks.require(
        fits, "codes", f"an array {list(np.shape(codes))} of {codes.dtype}", "integers [sequences, sites], one or more"
    )
    checks.positive("identity", identity)
    checks.require(float(identity) <= 1, "identity", identity, "a number above 0, up to 1")
    by_site = np.ascontiguousarray(_narrow(np.asarray(codes)).T)
    sites, n = by_site.shape
    # By division, which gives .8 for 4 of 5, as a product need not give 4.
    least = int(np.argmax(np.arange(sites + 1) / sites >= float(identity)))
    like: np.ndarray = np.zeros(n, np.int64)
    for start in range(0, n, _BLOCK):
        rows = slice(start, start + _BLOCK)
        for other in range(0, start + 1, _BLOCK):
            columns = slice(other, other + _BLOCK)
            close = _common(by_site[:, rows], by_site[:, columns]) >= least
            like[rows] += close.sum(axis=1)
            if other < start:
                like[columns] += close.sum(axis=0)
    return 1 / like


def _narrow(codes: Integer[np.ndarray, "n sites"]) -> Integer[np.ndarray, "n sites"]:
    """Numbers of the values from 0, in as few bytes as hold them."""
    values, numbers = np.unique(codes, return_inverse=True)
    return numbers.reshape(codes.shape).astype(np.min_scalar_type(len(values)))


def _common(
    rows: Integer[np.ndarray, "sites n"], columns: Integer[np.ndarray, "sites m"]
) -> Integer[np.ndarray, "n m"]:
    """At how many sites two sequences agree."""
    counts = np.zeros((rows.shape[1], columns.shape[1]), np.min_scalar_type(len(rows)))
    equal = np.empty(counts.shape, bool)
    # Booleans seen as bytes: to add them as they are would convert them first.
    ones = equal.view(np.uint8)
    for a, b in zip(rows, columns, strict=True):
        np.equal(a[:, None], b[None], out=equal)
        np.add(counts, ones, out=counts)
    return counts
