"""The path of machines and parallel tempering along it, against enumeration.

The statistical tests run `NUM_LADDERS` independent ladders with fixed keys; histograms must lie within four standard
deviations of the enumerated distributions (`oracles.fit`).
"""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import CASES, assert_close, assert_same_machine, each_case, in_float64, joined, on_states
from typed import refused

from vpf_jax import BoltzmannMachine, energy
from vpf_jax.sample.tempering import independent_machine, interpolate, run_tempered
from vpf_jax.units.two_valued import LEAST_MEAN

NUM_LADDERS = 20_000
BETAS = (0.0, 0.4, 0.7, 1.0)


def means_of(case):
    return np.linspace(0.1, 0.8, case.sizes[0])


def flat_of(machine):
    return oracles.flatten(machine.biases, machine.weights, machine.intra)


@functools.cache
def ladders(num_sweeps):
    """The compiled map of parallel tempering over keys and states."""

    def run(key, machine, states, base):
        return run_tempered(key, machine, states, jnp.asarray(BETAS), num_sweeps, base)

    return jax.jit(jax.vmap(run, in_axes=(0, None, 0, None)))


def exact_start(case, base, seed):
    """For each ladder and temperature an exact draw, [ladder, replica, n], and the distributions."""
    rng = np.random.default_rng(seed)
    targets = [oracles.probabilities(oracles.mix(flat_of(base), case.flat, beta)) for beta in BETAS]
    numbers = [rng.choice(len(target), NUM_LADDERS, p=target) for target in targets]
    return case.all_states()[np.stack(numbers, axis=1)], targets


@each_case()
@in_float64
def test_the_path_mixes_energies_linearly(case):
    base = independent_machine(case.machine, means_of(case))
    states = case.layered(case.all_states())
    ends = [np.asarray(on_states(energy, machine, states)) for machine in (base, case.machine)]
    for beta in (0.0, 0.3, 1.0):
        between = interpolate(base, case.machine, beta)
        assert_close(on_states(energy, between, states), (1 - beta) * ends[0] + beta * ends[1])
    assert_same_machine(interpolate(base, case.machine, 0.0), base)
    assert_same_machine(interpolate(base, case.machine, 1.0), case.machine)


@each_case()
@in_float64
def test_units_of_the_base_are_independent_with_the_given_means(case):
    means = means_of(case)
    base = independent_machine(case.machine, means)
    assert jax.tree.map(jnp.shape, base) == jax.tree.map(jnp.shape, case.machine)
    states = case.all_states()
    probability = np.concatenate([means, np.full(sum(case.sizes[1:]), 0.5)])
    expected = np.prod(np.where(states == 1, probability, 1 - probability), axis=1)
    assert_close(oracles.probabilities(flat_of(base)), expected)
    uniform = oracles.probabilities(flat_of(independent_machine(case.machine)))
    assert_close(uniform, np.full(len(states), 1 / len(states)))


@in_float64
def test_means_of_0_and_1_give_finite_biases():
    case = CASES["rbm-moderate"]
    base = independent_machine(case.machine, np.array([0, 1, LEAST_MEAN / 10, 0.5, 0.25]))
    found = 1 / (1 + np.exp(-np.asarray(base.biases[0])))
    assert_close(found, [LEAST_MEAN, 1 - LEAST_MEAN, LEAST_MEAN, 0.5, 0.25])


@pytest.mark.slow
@each_case()
def test_every_temperature_keeps_its_distribution(case):
    """After three rounds from exact draws, in which even pairs, odd pairs and even pairs again have swapped."""
    base = independent_machine(case.machine, means_of(case))
    starts, targets = exact_start(case, base, seed=1)
    keys = jax.random.split(jax.random.key(1), NUM_LADDERS)
    ends = joined(ladders(3)(keys, case.machine, case.layered(starts), base).states)
    for replica, target in enumerate(targets):
        counts = np.bincount(oracles.state_numbers(ends[:, replica]), minlength=len(target))
        assert max(oracles.fit(counts, target)) < 4


@pytest.mark.slow
@each_case()
def test_acceptance_is_that_of_the_enumerated_energies(case):
    """In the first round: both states of a pair are exact draws, so the mean over ladders estimates the expected
    Metropolis probability; within four standard errors.
    """
    base = independent_machine(case.machine, means_of(case))
    starts, targets = exact_start(case, base, seed=2)
    keys = jax.random.split(jax.random.key(2), NUM_LADDERS)
    found = np.asarray(ladders(1)(keys, case.machine, case.layered(starts), base).acceptance)
    assert found.shape == (NUM_LADDERS, len(BETAS) - 1)
    for pair, (low, high) in enumerate(itertools.pairwise(BETAS)):
        cold, warm = (
            oracles.energies(oracles.mix(flat_of(base), case.flat, beta), case.all_states()) for beta in (high, low)
        )
        now, swapped = warm[:, None] + cold[None], cold[:, None] + warm[None]
        expected = targets[pair] @ np.minimum(1, np.exp(now - swapped)) @ targets[pair + 1]
        error = found[:, pair].std(ddof=1) / np.sqrt(NUM_LADDERS)
        assert abs(found[:, pair].mean() - expected) < 4 * error + 1e-6


@pytest.mark.slow
def test_swaps_carry_an_isolated_mode_to_the_cold_end():
    """Two equal modes, all units on or all off, that Gibbs sweeps alone do not leave: with replicas at warmer
    temperatures the cold one visits both. From 200 ladders that all start in one mode, the share in the other has a
    standard deviation of at most 0.036.
    """
    coupling = jnp.asarray(6 * np.ones((3, 3)))
    machine = BoltzmannMachine(biases=(jnp.full(3, -9.0),) * 2, weights=(coupling,), intra=(None, None))

    def cold_share(betas):
        keys = jax.random.split(jax.random.key(1), 200)
        states = (jnp.ones((200, len(betas), 3), jnp.uint8),) * 2

        def run(key, states):
            return run_tempered(key, machine, states, jnp.asarray(betas), 300).states[0][-1]

        ends = jax.jit(jax.vmap(run))(keys, states)
        return float(np.mean(np.asarray(ends).mean(axis=1) < 0.5))

    assert abs(cold_share((0.0, 0.15, 0.3, 0.5, 0.7, 1.0)) - 0.5) < 4 * 0.036
    assert cold_share((1.0,)) < 0.35


@pytest.mark.slow
@each_case("intra_dbm")
def test_compiled_is_the_same_as_eager(case):
    states = case.layered(case.some_states(4))
    arguments = jax.random.key(0), case.machine, states, jnp.asarray(BETAS)
    found = run_tempered(*arguments, 5)
    assert all(x.dtype == jnp.uint8 for x in found.states)
    compiled = jax.jit(run_tempered, static_argnums=4)(jax.random.key(0), *arguments[1:], 5)
    jax.tree.map(np.testing.assert_array_equal, found.states, compiled.states)
    np.testing.assert_allclose(found.acceptance, compiled.acceptance, rtol=1e-6)


@pytest.mark.parametrize(
    ("betas", "words"),
    [
        ((0.0, 0.5, 1.0), "(3,)"),
        ((0.0, 0.5, 0.5, 1.0), "increasing"),
        ((0.0, 0.3, 0.6, 0.9), "the last one 1"),
        ((-0.1, 0.3, 0.6, 1.0), "[0, 1]"),
    ],
)
def test_temperatures_out_of_range_are_refused(betas, words):
    case = CASES["rbm-moderate"]
    with pytest.raises(ValueError, match=re.escape(words)):
        run_tempered(jax.random.key(0), case.machine, case.layered(case.some_states(4)), jnp.asarray(betas), 1)


def test_wrong_arguments_are_refused():
    case, other = CASES["rbm-moderate"], CASES["dbm-moderate"]
    states, betas = case.layered(case.some_states(4)), jnp.asarray(BETAS)
    for num_sweeps in (0, -1, 1.5):
        with refused(ValueError, match=f"num_sweeps={num_sweeps}"):
            run_tempered(jax.random.key(0), case.machine, states, betas, num_sweeps)
    with refused(ValueError, match="batch"):
        run_tempered(jax.random.key(0), case.machine, case.layered(case.some_states(1)[0]), betas, 1)
    with refused(ValueError, match="base"):
        run_tempered(jax.random.key(0), case.machine, states, betas, 1, base=other.machine)
    with refused(ValueError, match=re.escape("(4,)")):
        independent_machine(case.machine, np.full(4, 0.5))
    with refused(ValueError, match="from 0 to 1"):
        independent_machine(case.machine, np.full(5, 1.5))
