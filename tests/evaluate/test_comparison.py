"""Samples against data: moments, counts, energies, couplings and nearest examples against sums in double precision."""

import itertools
import math

import numpy as np
import oracles
import pytest
import scipy.spatial.distance
import scipy.stats
from families import CASES, assert_close, each_case, in_float64

from vpf_jax import untie, with_units
from vpf_jax.checks import SettingError
from vpf_jax.evaluate import comparison
from vpf_jax.stack import CHUNK
from vpf_jax.units import BINARY, SPIN, Categorical, Groups
from vpf_jax.units.base import owners


def bits(count, num_units, seed=0):
    return (np.random.default_rng(seed).random((count, num_units)) < np.linspace(0.1, 0.8, num_units)).astype(np.uint8)


def cumulants(rows, weights):
    """Means, covariances and third cumulants from plain moments, over triples in lexical order of (k, j, i)."""
    share = weights / weights.sum()
    x = rows.astype(np.float64)
    m, n = share @ x, rows.shape[1]
    pairs = [share @ (x[:, i] * x[:, j]) - m[i] * m[j] for i, j in itertools.combinations(range(n), 2)]
    triples = []
    for i, j, k in sorted(itertools.combinations(range(n), 3), key=lambda t: t[::-1]):
        ij, ik, jk = (share @ (x[:, a] * x[:, b]) for a, b in ((i, j), (i, k), (j, k)))
        ijk = share @ (x[:, i] * x[:, j] * x[:, k])
        triples.append(ijk - ij * m[k] - ik * m[j] - jk * m[i] + 2 * m[i] * m[j] * m[k])
    return m, np.array(pairs), np.array(triples)


def assert_moments(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-7)


@pytest.mark.parametrize("count", [1, 7, CHUNK, 2 * CHUNK + 345])
def test_moments_are_those_of_the_examples(count):
    rows = bits(count, 6)
    assert_moments(comparison.moments(rows), cumulants(rows, np.ones(count)))


def test_moments_of_categories_leave_out_what_one_unit_has_with_itself():
    """Of three units of 2, and of one of 3 between bits: entries of one unit exclude one another in any data."""
    for unit in (Categorical(2), Groups(((BINARY, 2), (Categorical(3), 3), (BINARY, 1)))):
        owned = owners(unit, 6)
        codes = np.random.default_rng(6).integers(0, 100, (700, int(owned[-1]) + 1))
        rows = np.zeros((700, 6), np.uint8)
        for number in range(owned[-1] + 1):
            (entries,) = np.nonzero(owned == number)
            if len(entries) > 1:
                rows[np.arange(700), entries[codes[:, number] % len(entries)]] = 1
            else:
                rows[:, entries[0]] = codes[:, number] < 30
        means, pairs, triples = cumulants(rows, np.ones(700))
        keep = [owned[i] != owned[j] for i, j in itertools.combinations(range(6), 2)]
        some = [len({owned[i] for i in triple}) == 3 for triple in comparison.chosen_triples(6)]
        found = comparison.moments(rows, unit=unit)
        assert_moments(found, (means, np.array(pairs)[keep], np.array(triples)[some]))
        assert 0 < len(found.triples) < len(triples)


def test_moments_of_weighted_examples():
    rows, weights = bits(1500, 5, 1), np.random.default_rng(2).integers(0, 4, 1500)
    found = comparison.moments(rows, weights=weights)
    assert_moments(found, cumulants(rows, weights))
    assert_moments(found, comparison.moments(np.repeat(rows, weights, axis=0)))


@each_case("visible")
def test_moments_of_all_states_are_those_of_the_machine(case):
    """Examples weighted by the exact probabilities: the cumulants are derivatives of log Z by biases."""
    flat, n, step = case.flat, sum(case.sizes), 1e-2
    found = comparison.moments(case.all_states().astype(np.uint8), weights=oracles.probabilities(flat))

    def derivative(units):
        total = 0.0
        for signs in itertools.product((-1, 1), repeat=len(units)):
            bias = flat.bias.copy()
            bias[list(units)] += step * np.array(signs)
            total += math.prod(signs) * oracles.log_partition(flat._replace(bias=bias))
        return total / (2 * step) ** len(units)

    wanted = [
        [derivative((i,)) for i in range(n)],
        [derivative(pair) for pair in itertools.combinations(range(n), 2)],
        [derivative(triple) for triple in comparison.chosen_triples(n)],
    ]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_moments_where_entries_are_missing():
    rows, missing = bits(2300, 4, 3), np.random.default_rng(4).random((2300, 4)) < 0.3
    weights = np.random.default_rng(5).random(2300)
    found = comparison.moments(np.where(missing, 0, rows), weights=weights, missing=missing)
    # What stands in their place is not looked at.
    assert_moments(comparison.moments(rows, weights=weights, missing=missing), found)
    means = np.array([np.average(rows[:, i], weights=weights * ~missing[:, i]) for i in range(4)])

    def central(units):
        both = ~missing[:, units].any(axis=1)
        products = np.prod(rows[:, units] - means[list(units)], axis=1)
        return np.average(products, weights=weights * both)

    pairs = [central(list(pair)) for pair in itertools.combinations(range(4), 2)]
    triples = [central(list(triple)) for triple in comparison.chosen_triples(4)]
    assert_moments(found, (means, pairs, triples))
    # Units that are never known together.
    apart = np.zeros((10, 2), bool)
    apart[:5, 0] = apart[5:, 1] = True
    assert np.isnan(comparison.moments(bits(10, 2), missing=apart).pairs).all()


def test_triples_are_all_or_a_fixed_choice():
    for n in (1, 2, 3, 4, 9):
        there = [tuple(triple) for triple in comparison.chosen_triples(n).tolist()]
        assert sorted(there) == list(itertools.combinations(range(n), 3))
    some = comparison.chosen_triples(784, 500)
    assert some.shape == (500, 3)
    assert len({tuple(triple) for triple in some.tolist()}) == 500
    assert (np.diff(some, axis=1) > 0).all()
    assert (some.min(), some.max() < 784) == (0, True) or some.min() < 20
    np.testing.assert_array_equal(some, comparison.chosen_triples(784, 500))
    rows = bits(50, 12)
    few = comparison.moments(rows, num_triples=30).triples
    everything = dict(zip(map(tuple, comparison.chosen_triples(12)), comparison.moments(rows).triples, strict=True))
    np.testing.assert_allclose(few, [everything[tuple(t)] for t in comparison.chosen_triples(12, 30)], atol=1e-7)


def test_agreement_is_pearsons_r_and_the_root_mean_square():
    a, b = np.random.default_rng(0).normal(size=(2, 40))
    found = comparison.agreement(a, b)
    centred = [x - x.mean() for x in (a, b)]
    assert found.r == pytest.approx(np.dot(*centred) / math.sqrt(np.dot(*centred[:1] * 2) * np.dot(*centred[1:] * 2)))
    assert found.rms == pytest.approx(math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / 40))
    assert comparison.agreement(a, 3 * a + 1).r == pytest.approx(1)
    assert math.isnan(comparison.agreement(a, np.ones(40)).r)


def test_counts_of_units_on():
    rows, weights = bits(200, 7), np.random.default_rng(1).random(200)
    found = comparison.count_probabilities(rows, weights=weights)
    wanted = [sum(w for row, w in zip(rows, weights, strict=True) if row.sum() == k) for k in range(8)]
    np.testing.assert_allclose(found, np.array(wanted) / weights.sum(), rtol=1e-6)
    # More units than a byte holds.
    assert comparison.count_probabilities(np.ones((3, 300), np.uint8)).tolist() == [0] * 300 + [1]


def test_distance_of_distributions():
    a, b = np.array([0.5, 0.25, 0.25, 0]), np.array([0.25, 0.25, 0, 0.5])
    found = comparison.count_distance(a, b)
    assert found.total_variation == pytest.approx(0.5)
    assert found.divergence == pytest.approx(scipy.spatial.distance.jensenshannon(a, b) ** 2)
    assert comparison.count_distance(a, a) == (0, 0)
    assert comparison.count_distance(a[[0, 3, 3, 0]] * 1.0, a[[3, 0, 0, 3]] * 2 * 0.5) == pytest.approx((1, np.log(2)))


@each_case("visible", "rbm", "semi_restricted")
@in_float64
def test_free_energies_are_those_of_the_machine(case):
    rows = oracles.all_states(case.sizes[0])
    wanted = [oracles.free_energy(case.flat, row) for row in rows]
    assert_close(comparison.free_energies(case.machine, rows.astype(np.uint8)), wanted)


def test_energy_distance_is_kolmogorovs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=300).round(1), rng.normal(0.3, 1, 170).round(1)
    assert comparison.energy_distance(a, b) == pytest.approx(scipy.stats.ks_2samp(a, b).statistic, abs=1e-12)
    assert comparison.energy_distance(a, a) == 0
    assert comparison.energy_distance(a, a + 100) == 1


def second_difference(flat, row, i, j):
    total = 0.0
    for at_i, at_j in itertools.product((0, 1), repeat=2):
        changed = np.array(row, np.float64)
        changed[i], changed[j] = at_i, at_j
        total -= (1 if at_i == at_j else -1) * oracles.free_energy(flat, changed)
    return total


@each_case("visible", "rbm", "semi_restricted")
@in_float64
def test_effective_couplings_are_second_differences_of_the_free_energy(case):
    n = case.sizes[0]
    background = oracles.all_states(n)[[3, 9, 14, 9]].astype(np.uint8)
    for rows in (np.zeros((1, n), np.uint8), background):
        wanted = np.zeros((n, n))
        for i, j in itertools.permutations(range(n), 2):
            wanted[i, j] = np.mean([second_difference(case.flat, row, i, j) for row in rows])
        assert_close(comparison.effective_couplings(case.machine, rows), wanted)
    off = np.zeros((1, n), np.uint8)
    assert_close(comparison.effective_couplings(case.machine), comparison.effective_couplings(case.machine, off))
    # Spins: the same machine in other parameters, whose weights are a quarter.
    spins = comparison.effective_couplings(with_units(case.machine, SPIN), 2 * background.astype(np.int8) - 1)
    assert_close(4 * spins, comparison.effective_couplings(case.machine, background))


def test_couplings_of_a_fully_visible_machine_are_its_weights():
    case = CASES["visible-peaked"]
    np.testing.assert_allclose(comparison.effective_couplings(case.machine), case.intra[0], rtol=1e-6)


@pytest.mark.parametrize(("num_rows", "num_examples"), [(1, 1), (5, 30), (CHUNK + 50, CHUNK + 100)])
def test_the_nearest_example_is_the_nearest(num_rows, num_examples):
    rows, examples = bits(num_rows, 12), bits(num_examples, 12, 1)
    found = comparison.nearest_examples(rows, examples)
    distances = (rows[:, None] != examples[None]).sum(axis=2)
    np.testing.assert_array_equal(found.distances, distances.min(axis=1))
    np.testing.assert_array_equal(found.examples, distances.argmin(axis=1))


def test_what_fills_up_a_chunk_is_no_example():
    found = comparison.nearest_examples(np.zeros((2, 9), np.uint8), np.ones((CHUNK + 1, 9), np.uint8))
    assert found.distances.tolist() == [9, 9]
    assert found.examples.tolist() == [0, 0]


def test_features_are_matched_one_to_one_whatever_their_sign():
    planted = np.random.default_rng(0).normal(size=(9, 4))
    order = np.array([2, 0, 3, 1])
    found = comparison.match_features(-3 * planted[:, order], planted)
    np.testing.assert_allclose(found.overlaps, 1)
    np.testing.assert_array_equal(order[found.partners], range(4))
    # The best sum, where each alone would take the same unit.
    planted = np.array([[1.0, 0.8], [0.0, 0.6]])
    found = comparison.match_features(np.array([[1.0, 0.96], [0.0, -0.28]]), planted)
    assert found.partners.tolist() == [1, 0]
    # Too few hidden units, and one that has no weights.
    found = comparison.match_features(planted[:, :1], planted)
    assert (found.overlaps.tolist(), found.partners.tolist()) == ([1, 0], [0, -1])
    assert comparison.match_features(np.zeros((2, 1)), planted).overlaps.tolist() == [0, 0]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: comparison.moments(bits(3, 4) * 2), "counts up to 2; they are zeros and ones"),
        (lambda: comparison.moments(bits(3, 4)[0]), r"visible=.an array \[4\].; it takes zeros and ones \[examples"),
        (lambda: comparison.moments(bits(3, 4), weights=np.ones(4)), "weights=.*3 numbers of at least 0"),
        (lambda: comparison.moments(bits(3, 4), weights=np.zeros(3)), "weights=.*not all 0"),
        (lambda: comparison.moments(bits(3, 4), weights=[1, 1, 1]), "got a list for weights"),
        (lambda: comparison.moments(bits(3, 4), missing=bits(3, 4)), r"missing=.*booleans \[3, 4\]"),
        (lambda: comparison.moments(bits(3, 4), missing=None, num_triples=0), "num_triples=0"),
        (lambda: comparison.agreement(np.ones(3), np.ones(4)), "as many numbers as wanted, 4"),
        (lambda: comparison.agreement(np.array([1.0, np.nan]), np.ones(2)), "got found that are not finite, nan"),
        (lambda: comparison.agreement(np.ones(0), np.ones(0)), "one number or more"),
        (lambda: comparison.count_probabilities(bits(3, 4) - 0.5), "zeros and ones"),
        (lambda: comparison.count_distance(np.ones(3), np.ones(3) / 3), "add up to 1"),
        (lambda: comparison.count_distance(np.ones(1), np.ones(2) / 2), "as many probabilities as wanted, 2"),
        (lambda: comparison.free_energies(CASES["dbm-moderate"].machine, bits(2, 3)), "closed form for one or two"),
        (lambda: comparison.free_energies(CASES["rbm-moderate"].machine, bits(2, 4)), r"shape \(2, 4\)"),
        (lambda: comparison.energy_distance(np.ones(2), np.ones(0)), "wanted=.*one number or more"),
        (lambda: comparison.effective_couplings(CASES["intra_dbm-moderate"].machine), "closed form"),
        (lambda: comparison.effective_couplings(untie(None, CASES["rbm-moderate"].machine)), "directed machine"),
        (lambda: comparison.effective_couplings(CASES["rbm-moderate"].machine, bits(2, 4)), r"shape \(2, 4\)"),
        (lambda: comparison.nearest_examples(bits(2, 4), bits(2, 5)), r"rows=.an array \[2, 4\].; it takes 5 units"),
        (lambda: comparison.match_features(np.ones((3, 2)), np.ones((4, 2))), "4 rows, as planted has"),
        (lambda: comparison.match_features(np.ones(3), np.ones((3, 2))), r"weights=.an array \[3\]"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(call, told):
    with pytest.raises((SettingError, ValueError), match=told):
        call()
