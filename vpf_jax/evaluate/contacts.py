"""Contacts of a protein family from the couplings of a Potts machine.

A pair of sites that touch in the fold is coupled in the sequences. The score of sites i and j is the length of their
block of couplings in the zero-sum gauge, where nothing of the biases is left in it,

    F_ij = sqrt(sum_ab J_ij(a, b)^2)

(Ekeberg, Lovkvist, Lan, Weigt and Aurell, "Improved contact prediction in proteins: using pseudolikelihoods to infer
Potts models", 2013), less what either site has with all others, the average-product correction

    F_ij - F_i. F_.j / F_..

with dots for means over the pairs of a site and over all pairs (Dunn, Wahl and Gloor, "Mutual information without the
influence of phylogeny or entropy dramatically improves residue contact prediction", 2008). All here is for whole
machines at once, outside compiled code; results are NumPy arrays. Not here: the gauge (`gauges`), weights of sequences
(`data.alignment`), couplings of two-valued units (`comparison`).
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Real

from vpf_jax import checks, couplings
from vpf_jax.checks import AnyArray
from vpf_jax.gauges import to_zero_sum
from vpf_jax.machine import BoltzmannMachine, check_machine, check_symmetric
from vpf_jax.units import Categorical


def contact_scores(
    machine: BoltzmannMachine, *, gap: int | None = None, corrected: bool = True
) -> Float[np.ndarray, "sites sites"]:
    """How strongly each pair of sites is coupled; the higher, the rather they touch.

    Args:
      machine: one layer of categorical units, of q values each, with weights inside it.
      gap: a value left out of the lengths, from 0 to q - 1, such as the gap of an alignment: gaps follow one another
        along the sequence, whatever touches. The gauge is that of all values. None: all count.
      corrected: whether the average-product correction is taken off, after which scores may be negative.

    Returns:
      symmetric, with zeros on the diagonal.

    Raises:
      ValueError: a machine of another form or a directed one, a gap that is no value, or a switch that is none.
    """
    check_machine(machine)
    check_symmetric(machine, "a coupling")
    unit, inside = machine.layer_units[0], machine.intra[0]
    if not isinstance(unit, Categorical) or len(machine.sizes) > 1 or inside is None:
        kinds = ", ".join(kind.name for kind in machine.layer_units)
        raise ValueError(
            f"got a machine of layer sizes {machine.sizes} and {kinds} units{'' if inside is not None else ' without'}"
            f"{' weights inside the first layer' if inside is None else ''}; contacts are read from one layer of "
            "categorical units with weights inside it"
        )
    checks.boolean("corrected", corrected)
    kept = list(range(unit.q))
    if gap is not None:
        kept.remove(checks.integer("gap", gap, 0, unit.q - 1))
    block = to_zero_sum(machine).intra[0]
    assert block is not None
    sites = machine.sizes[0] // unit.q
    by_site = np.asarray(couplings.dense(block), np.float64).reshape(sites, unit.q, sites, unit.q)
    lengths = np.sqrt((by_site[:, kept][..., kept] ** 2).sum(axis=(1, 3)))
    # Of both halves, which are equal up to rounding.
    lengths = (lengths + lengths.T) / 2
    return _less_average_product(lengths) if corrected else lengths


def precision_at(
    scores: Real[AnyArray, "sites sites"], contacts: Bool[AnyArray, "sites sites"], number: int, separation: int = 1
) -> float:
    """Which share of the pairs of the highest scores are contacts.

    Args:
      scores: symmetric; the diagonal plays no part.
      contacts: symmetric, True where two sites touch.
      number: of pairs that are looked at; usual are L, L / 2 and L / 5 of L sites.
      separation: least distance |i - j| along the sequence of the pairs that are looked at; 4 or more leaves out those
        that are near in any fold.

    Raises:
      ValueError: no finite scores, arrays that are no symmetric matrices of one size, or more pairs than there are.
    """
    checks.finite("scores", scores)
    checks.array("contacts", contacts, "an array of booleans")
    for name, given in (("scores", scores), ("contacts", contacts)):
        fits = given.ndim == 2 and given.shape[0] == given.shape[1]
        fits = fits and np.allclose(given, given.T, rtol=1e-5)
        checks.require(fits, name, _told(given), "a symmetric matrix, a row and a column for each site")
    fits = contacts.dtype == bool and contacts.shape == scores.shape
    checks.require(fits, "contacts", _told(contacts), f"booleans {list(scores.shape)}, as scores has")
    sites = len(scores)
    separation = checks.integer("separation", separation, 1, max(sites - 1, 1))
    i, j = np.triu_indices(sites, separation)
    number = checks.integer("number", number, 1, max(math.comb(sites - separation + 1, 2), 1))
    highest = np.argsort(-np.asarray(scores, np.float64)[i, j], kind="stable")[:number]
    return float(np.asarray(contacts)[i[highest], j[highest]].mean())


def _less_average_product(lengths: Float[np.ndarray, "sites sites"]) -> Float[np.ndarray, "sites sites"]:
    """Of a matrix with zero diagonal."""
    sums = lengths.sum(axis=1)
    pairs = len(lengths) - 1
    if not sums.any():
        return lengths
    found = lengths - np.outer(sums, sums) / pairs**2 / (sums.sum() / (len(lengths) * pairs))
    np.fill_diagonal(found, 0)
    return found


def _told(given: AnyArray) -> str:
    return f"an array {list(np.shape(given))} of {given.dtype}"
