"""Sequences of the planted Potts machine against enumeration of a smaller one, and against our own Gibbs chains."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import vpf_jax
from vpf_jax.data import load_dataset, planted_potts
from vpf_jax.units import Categorical


def small(pairs, sites=5, letters=3, seed=0):
    """A machine with random couplings at these pairs."""
    rng = np.random.default_rng(seed)
    contacts = np.zeros((sites, sites), bool)
    couplings = np.zeros((sites, letters, sites, letters))
    for i, j in pairs:
        contacts[i, j] = contacts[j, i] = True
        couplings[i, :, j] = rng.normal(size=(letters, letters))
        couplings[j, :, i] = couplings[i, :, j].T
    return planted_potts.PlantedPotts(rng.normal(size=(sites, letters)), couplings, contacts)


# A chain; a ring with two chords that do not cross; two parts and a site alone.
SMALL = {
    "chain": [(0, 1), (1, 2), (2, 3), (3, 4)],
    "ring": [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4), (1, 4), (1, 3)],
    "parts": [(0, 3), (1, 4)],
}


@pytest.mark.parametrize("pairs", SMALL.values(), ids=SMALL)
def test_likelihoods_are_exact_and_sequences_follow_the_law(pairs):
    machine = small(pairs)
    codes = np.array(list(itertools.product(range(3), repeat=5)))
    states = np.eye(3)[codes].reshape(len(codes), -1)
    flat = oracles.flatten([machine.biases.reshape(-1)], [], [machine.couplings.reshape(15, 15)])
    log_weights = -oracles.energies(flat, states)
    law = np.exp(log_weights - oracles.log_sum_exp(log_weights))
    np.testing.assert_allclose(planted_potts.log_likelihood(machine, codes), np.log(law), rtol=1e-10)
    drawn = planted_potts.draw_sequences(machine, 40_000, seed=1)
    counts = np.bincount(drawn @ 3 ** np.arange(5)[::-1], minlength=3**5)
    # Of 242 degrees of freedom four standard deviations, and each state within five of its own.
    fit = oracles.fit(counts, law, smallest_expected=20)
    assert fit.chi_square < 4
    assert fit.worst_state < 5


def test_contacts_that_cross_are_refused():
    crossed = small(list(itertools.combinations(range(4), 2)))
    with pytest.raises(ValueError, match="contacts that do not cross"):
        planted_potts.draw_sequences(crossed, 1, 1)
    with pytest.raises(ValueError, match="number=0"):
        planted_potts.draw_sequences(planted_potts.planted_potts(), 0, 1)


def test_the_family_is_the_same_each_time_and_its_contacts_are_its_couplings():
    one, two = load_dataset("planted_proteins"), load_dataset("planted_proteins")
    assert [len(part) for part in (one.train, one.validation, one.test)] == [10_000, 2_000, 2_000]
    assert (one.shape, one.units) == ((40, 21), "categorical(21)")
    np.testing.assert_array_equal(one.train.examples, two.train.examples)
    assert one.train.examples.dtype == np.uint8
    Categorical(21).check("examples", one.train.examples)
    assert (one.validation.examples != one.test.examples).any()
    machine = planted_potts.planted_potts()
    there = np.abs(machine.couplings).sum(axis=(1, 3)) > 0
    np.testing.assert_array_equal(there, machine.contacts)
    np.testing.assert_array_equal(machine.couplings, machine.couplings.transpose(2, 3, 0, 1))
    np.testing.assert_allclose(machine.couplings.sum(axis=1), 0, atol=1e-12)
    i, j = np.nonzero(np.triu(machine.contacts))
    assert ((j - i == 1).sum(), (j - i > 3).sum()) == (39, 27)
    assert (planted_potts.planted_potts(1).couplings != machine.couplings).any()


@pytest.mark.slow
def test_gibbs_chains_of_the_library_draw_the_same_family():
    """From the gap everywhere; log-likelihoods within four standard errors, pair frequencies of contacts alike."""
    planted = planted_potts.planted_potts()
    machine = vpf_jax.BoltzmannMachine(
        (jnp.asarray(planted.biases.reshape(-1), jnp.float32),),
        (),
        (jnp.asarray(planted.couplings.reshape(840, 840), jnp.float32),),
        units=Categorical(21),
    )
    unit, chains = Categorical(21), 400
    start = unit.encode(np.zeros(40, int))
    run = jax.jit(jax.vmap(lambda key: vpf_jax.run_chain(key, machine, (start,), 40)[0]))
    codes = np.asarray(unit.decode(run(jax.random.split(jax.random.key(0), chains))))
    exact = planted_potts.draw_sequences(planted, 4_000, 2)
    found, wanted = (planted_potts.log_likelihood(planted, some) for some in (codes, exact))
    error = wanted.std() * np.sqrt(1 / chains + 1 / len(exact))
    assert abs(found.mean() - wanted.mean()) < 4 * error
    i, j = np.nonzero(np.triu(planted.contacts))
    scores = [planted.couplings[i, some[:, i], j, some[:, j]] for some in (codes, exact)]
    errors = scores[1].std(axis=0) * np.sqrt(1 / chains + 1 / len(exact))
    assert np.abs((scores[0].mean(axis=0) - scores[1].mean(axis=0)) / errors).max() < 4.5
