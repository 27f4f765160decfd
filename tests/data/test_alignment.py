"""Weights of sequences against all pairs compared one by one."""

import numpy as np
import pytest
from typed import refused

from vpf_jax.data import alignment, sequence_weights
from vpf_jax.units import Categorical


def by_pairs(codes, identity):
    found = []
    for one in codes:
        found.append(1 / sum(np.mean(one == other) >= identity for other in codes))
    return np.array(found)


def family(n=60, sites=10, seed=0):
    """Sequences of which many are near copies of others, at every number of sites in common."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 21, (n, sites))
    parents = rng.integers(0, n // 4, n)
    kept = rng.random((n, sites)) < rng.random((n, 1))
    return np.where(kept, codes[parents], codes)


@pytest.mark.parametrize("identity", [0.3, 0.7, 0.8, 1.0])
@pytest.mark.parametrize("block", [7, 512])
def test_weights_are_those_of_all_pairs(identity, block, monkeypatch):
    monkeypatch.setattr(alignment, "_BLOCK", block)
    codes = family()
    expected = by_pairs(codes, identity)
    assert 0.05 < expected.min() < expected.max() == 1
    np.testing.assert_array_equal(sequence_weights(codes, identity), expected)


def test_a_share_of_just_as_many_sites_counts():
    """Seven of ten are at least .7, though .7 * 10 need not be 7; and 8 of 10 are not more than 80 %."""
    codes = np.array([[0] * 10, [0] * 8 + [1] * 2, [0] * 7 + [2] * 3])
    np.testing.assert_array_equal(sequence_weights(codes), [1 / 2, 1 / 2, 1])
    np.testing.assert_array_equal(sequence_weights(codes, 0.7), [1 / 3, 1 / 3, 1 / 3])


def test_more_sites_than_a_byte_counts():
    codes = np.zeros((2, 300), np.int8)
    codes[1, :40] = -100
    np.testing.assert_array_equal(sequence_weights(codes, 0.86), [1 / 2, 1 / 2])
    np.testing.assert_array_equal(sequence_weights(codes, 0.87), [1, 1])


def test_codes_of_states():
    codes = family(20)
    unit = Categorical(21)
    np.testing.assert_array_equal(sequence_weights(unit.decode(unit.encode(codes))), by_pairs(codes, 0.8))


def test_what_is_no_alignment_is_refused():
    codes = family(5)
    for wrong in (codes.tolist(), codes * 1.0, codes[0], codes[:0]):
        with refused(ValueError, match=r"it takes integers \[sequences, sites\]"):
            sequence_weights(wrong)
    for share in (0, 1.2, np.nan, "80 %"):
        with refused(ValueError, match="got identity"):
            sequence_weights(codes, share)
