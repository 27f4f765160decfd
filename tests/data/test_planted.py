"""Spike words of the planted machine against enumeration, and the digits of scikit-learn."""

import numpy as np
import oracles

from vpf_jax.data import load_dataset, planted


def test_words_have_the_exact_likelihood_and_follow_the_machine():
    machine = planted.planted_machine()
    words = load_dataset("planted_spikes").test.examples.astype(float)
    # Against the energy of every state of the assemblies, one word at a time.
    states = oracles.all_states(planted.ASSEMBLIES)
    fields = machine.visible[None] + states @ machine.weights.T
    log_law = states @ machine.hidden + np.log1p(np.exp(fields)).sum(axis=1)
    log_z = oracles.log_sum_exp(log_law)
    for word in words[:5]:
        joint = word @ machine.visible + states @ (machine.hidden + word @ machine.weights)
        found = planted.log_likelihood(word[None])[0]
        np.testing.assert_allclose(found, oracles.log_sum_exp(joint) - log_z, rtol=1e-12)
    # Firing rates against the enumerated ones: 60 deviations of 25,000 words, in their standard errors.
    rates = np.exp(log_law - log_z) @ (1 / (1 + np.exp(-fields)))
    data = load_dataset("planted_spikes")
    held = np.concatenate([data.train.examples, data.test.examples])
    deviations = (held.mean(axis=0) - rates) / np.sqrt(rates * (1 - rates) / len(held))
    assert np.abs(deviations).max() < 4
    assert abs((deviations**2).mean() - 1) < 4 * np.sqrt(2 / 60)


def test_words_are_the_same_each_time_and_parts_differ():
    one, two = load_dataset("planted_spikes"), load_dataset("planted_spikes")
    np.testing.assert_array_equal(one.train.examples, two.train.examples)
    assert [len(part) for part in (one.train, one.validation, one.test)] == [20_000, 5_000, 5_000]
    assert (one.validation.examples != one.test.examples).any()
    assert np.isin(one.train.examples, (0, 1)).all()


def test_digits_of_scikit_learn_are_whole():
    data = load_dataset("digits_8x8")
    assert [len(part.labels) for part in (data.train, data.validation, data.test)] == [1297, 250, 250]
    assert data.shape == (8, 8)
    assert (data.train.examples.min(), data.train.examples.max()) == (0, 1)
    # The sum of all entries of the file, divided by 16.
    total = sum(part.examples.sum(dtype=np.float64) for part in (data.train, data.validation, data.test))
    assert total * 16 == 561718
    assert np.bincount(data.test.labels).min() > 15
