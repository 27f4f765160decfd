"""Words of the planted pairwise machine against enumeration of a shorter chain, and against sums over their order."""

import numpy as np
import oracles
import pytest

from vpf_jax.data import load_dataset, planted_pairs


@pytest.fixture
def short(monkeypatch):
    """Of nine neurons, whose states can be enumerated."""
    monkeypatch.setattr(planted_pairs, "NEURONS", 9)
    machine = planted_pairs.planted_pairs(3)
    return machine, oracles.flatten([machine.biases], [], [machine.couplings])


def test_likelihoods_are_exact(short):
    machine, flat = short
    states = oracles.all_states(9)
    np.testing.assert_allclose(planted_pairs.log_likelihood(machine, states), np.log(oracles.probabilities(flat)))


def test_words_follow_the_law(short):
    machine, flat = short
    words = planted_pairs.draw_words(machine, 20_000, seed=5)
    counts = np.bincount(oracles.state_numbers(words), minlength=2**9)
    expected = 20_000 * oracles.probabilities(flat)
    seen = expected > 5
    chi_square = ((counts - expected)[seen] ** 2 / expected[seen]).sum()
    assert abs(chi_square - seen.sum()) < 4 * np.sqrt(2 * seen.sum())


def test_each_neuron_is_coupled_to_its_neighbours_in_the_order():
    machine = planted_pairs.planted_pairs()
    np.testing.assert_array_equal(machine.couplings, machine.couplings.T)
    ordered = machine.couplings[np.ix_(machine.order, machine.order)]
    there = np.abs(np.subtract.outer(range(60), range(60)))
    np.testing.assert_array_equal(ordered != 0, (there > 0) & (there <= 5))
    assert (planted_pairs.planted_pairs(1).couplings != machine.couplings).any()


def test_the_source_gives_the_same_words_each_time():
    one, two = load_dataset("planted_pairs"), load_dataset("planted_pairs")
    assert [len(part) for part in (one.train, one.validation, one.test)] == [20_000, 5_000, 5_000]
    np.testing.assert_array_equal(one.train.examples, two.train.examples)
    assert (one.validation.examples != one.test.examples).any()
    rates = one.train.examples.mean(axis=0)
    assert 0.02 < rates.min() < rates.max() < 0.5
    with pytest.raises(ValueError, match="number=0"):
        planted_pairs.draw_words(planted_pairs.planted_pairs(), 0, 1)
