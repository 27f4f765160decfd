"""Assemblies and the units that match them: against the best of all matchings."""

import itertools

import numpy as np
from typed import refused

from vpf_jax.evaluate.assemblies import matched

MEMBERSHIP = np.random.default_rng(0).random((3, 20)) < 0.3


def correlation(a, b):
    return abs(np.corrcoef(a, b)[0, 1])


def test_the_matching_is_the_best_of_all():
    weights = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    weights[:, 2] += 3 * MEMBERSHIP[0]
    weights[:, 0] -= 3 * MEMBERSHIP[2]
    found = matched(weights, MEMBERSHIP)
    best = max(
        sum(correlation(MEMBERSHIP[i], weights[:, unit]) for i, unit in enumerate(units))
        for units in itertools.permutations(range(4), 3)
    )
    np.testing.assert_allclose(found.overlap.sum(), best, rtol=1e-5)
    assert (found.unit[0], found.unit[2]) == (2, 0)
    for i, unit in enumerate(found.unit):
        np.testing.assert_allclose(found.overlap[i], correlation(MEMBERSHIP[i], weights[:, unit]), rtol=1e-5)


def test_an_assembly_without_a_unit_has_no_overlap():
    found = matched(5.0 * MEMBERSHIP[[1]].T - 2, MEMBERSHIP)
    np.testing.assert_allclose(found.overlap, [0, 1, 0], atol=1e-6)
    np.testing.assert_array_equal(found.unit, [-1, 0, -1])


def test_weights_that_are_not_finite_match_nothing():
    weights = np.ones((20, 4), np.float32)
    weights[3, 1] = np.inf
    found = matched(weights, MEMBERSHIP)
    assert np.isnan(found.overlap).all()
    np.testing.assert_array_equal(found.unit, [-1, -1, -1])


def test_arrays_that_do_not_fit_are_refused():
    with refused(ValueError, match="got weights of shape \\(19, 2\\) and membership of \\(3, 20\\)"):
        matched(np.zeros((19, 2), np.float32), MEMBERSHIP)
