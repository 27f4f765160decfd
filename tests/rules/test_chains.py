"""Contrastive divergence against the enumerated chain, and the rules on flips against their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import (
    CASES,
    assert_close,
    assert_gradient,
    assert_same_machine,
    each_case,
    in_float64,
    joined,
    make_case,
)

from vpf_jax import (
    contrastive_divergence,
    flip_estimate,
    local_gradient,
    persistent_contrastive_divergence,
    tie_intra,
    vpf_objective,
)

NUM_BATCHES, BATCH = 40, 5_000
PEAKED = make_case("peaked-10", (6, 4), (), 6.0, seed=3)


def completed_data(case, seed=0):
    """A distribution [2^n]: random masses on the visible states, hidden units by the exact E-step."""
    masses = np.random.default_rng(seed).dirichlet(np.full(2 ** case.sizes[0], 0.3))
    return oracles.complete(case.flat, masses)


def draws(case, distribution, seed):
    """Batches of states drawn from a distribution, one array [NUM_BATCHES, BATCH, n_l] per layer."""
    numbers = np.random.default_rng(seed).choice(len(distribution), p=distribution, size=(NUM_BATCHES, BATCH))
    return case.layered(case.all_states()[numbers])


def after_sweeps(case, distribution, steps):
    for _ in range(steps):
        distribution = oracles.resample(case.flat, distribution, oracles.sweep_order(case.sizes))
    return distribution


def worst_deviation(gradients, case, expected):
    """Largest deviation of the batches' mean gradient from the expected one, in standard errors of that mean."""
    flat = [
        oracles.flatten(*(jax.tree.map(lambda leaf, b=b: leaf[b], part) for part in parts))
        for parts in [(gradients.biases, gradients.weights, gradients.intra)]
        for b in range(NUM_BATCHES)
    ]
    worst = 0.0
    for name in ("bias", "coupling"):
        found = np.stack([getattr(g, name) for g in flat])
        error = found.std(axis=0, ddof=1) / np.sqrt(NUM_BATCHES)
        off = np.abs(found.mean(axis=0) - getattr(expected, name))
        # Entries without a parameter are 0 on both sides.
        worst = max(worst, float(np.max(off / np.where(error > 0, error, 1e-6))))
    return worst


@functools.cache
def cd(steps):
    def one(machine, key, states, chains):
        return persistent_contrastive_divergence(key, machine, states, chains, steps).gradient

    return jax.jit(jax.vmap(one, in_axes=(None, 0, 0, 0)))


@pytest.mark.slow
@each_case("visible", "rbm", "semi_restricted", "dbm", "intra_dbm")
def test_cd_follows_the_enumerated_chain(case):
    data = completed_data(case)
    states = draws(case, data, seed=1)
    found = cd(2)(case.machine, jax.random.split(jax.random.key(2), NUM_BATCHES), states, states)
    expected = oracles.contrast(case.flat, data, after_sweeps(case, data, 2))
    if len(case.sizes) == 2 and case.intra[1] is None:
        # The hidden means given the visible layer: as if the hidden layer were resampled once more.
        chains = oracles.resample(case.flat, after_sweeps(case, data, 2), range(case.sizes[0], sum(case.sizes)))
        expected = oracles.contrast(case.flat, data, chains)
    assert worst_deviation(found, case, expected) < 4.5


@pytest.mark.slow
def test_the_bias_of_cd_vanishes_as_k_grows():
    data = completed_data(PEAKED)
    states = draws(PEAKED, data, seed=4)
    likelihood = oracles.contrast(PEAKED.flat, data, oracles.probabilities(PEAKED.flat))
    off = []
    for k in (1, 2, 60):
        keys = jax.random.split(jax.random.key(k), NUM_BATCHES)
        off.append(worst_deviation(cd(k)(PEAKED.machine, keys, states, states), PEAKED, likelihood))
    # In standard errors of 200,000 chains.
    assert off[0] > 2 * off[1] > 4.5 * 2 > 2 * off[2], off


@pytest.mark.slow
@each_case("visible", "rbm", "dbm", "intra_dbm")
def test_pcd_with_chains_of_the_model_follows_the_likelihood(case):
    data, model = completed_data(case), oracles.probabilities(case.flat)
    states, chains = draws(case, data, seed=6), draws(case, model, seed=7)
    found = cd(1)(case.machine, jax.random.split(jax.random.key(8), NUM_BATCHES), states, chains)
    assert worst_deviation(found, case, oracles.contrast(case.flat, data, model)) < 4.5


def test_chains_persist_and_their_number_is_free():
    case = CASES["rbm-moderate"]
    states = case.layered(case.some_states(5))
    chains = case.layered(case.some_states(3, seed=1))
    step = jax.jit(persistent_contrastive_divergence, static_argnums=4)
    first = step(jax.random.key(0), case.machine, states, chains, 1)
    assert [s.shape for s in first.states] == [(3, n) for n in case.sizes]
    assert [s.dtype for s in first.states] == [s.dtype for s in chains]
    # Two calls of one sweep from far apart starts lead to other places than staying would.
    second = step(jax.random.key(1), case.machine, states, first.states, 1)
    assert (joined(first.states) != joined(second.states)).any()


@pytest.mark.slow
@each_case("visible", "rbm", "semi_restricted", "dbm", "intra_dbm")
@in_float64
def test_no_gradient_passes_through_sampled_states(case):
    states = case.layered(case.some_states(8))

    def objective(machine):
        return contrastive_divergence(jax.random.key(0), machine, states, 3).objective

    gradient = contrastive_divergence(jax.random.key(0), case.machine, states, 3).gradient
    assert_same_machine(tie_intra(jax.grad(objective)(case.machine)), gradient)


@each_case("visible", "rbm", "semi_restricted")
@in_float64
def test_pseudo_likelihood_is_that_of_the_marginal(case):
    rows = np.random.default_rng(0).integers(0, 2, (5, case.sizes[0])).astype(np.float64)
    visible = oracles.all_states(case.sizes[0])
    marginal = np.exp([-oracles.free_energy(case.flat, row) for row in visible])
    expected = 0.0
    for row in rows:
        here = marginal[oracles.state_numbers(row)]
        for unit in range(len(row)):
            there = marginal[oracles.state_numbers(oracles.flipped(row[None], unit)[0])]
            expected -= np.log(here / (here + there)) / len(rows)
    assert_close(flip_estimate("pl", case.machine, jnp.asarray(rows)).objective, expected)


@each_case("visible", "rbm", "semi_restricted")
@pytest.mark.parametrize("rule", ["mpf", "pl", "ratio"])
@in_float64
def test_the_teacher_is_a_fixed_point(case, rule):
    visible = oracles.all_states(case.sizes[0])
    masses = np.exp([-oracles.free_energy(case.flat, row) - oracles.log_partition(case.flat) for row in visible])

    def gradient(row):
        return flip_estimate(rule, case.machine, row[None]).gradient

    each = jax.vmap(gradient)(jnp.asarray(visible))
    mean = jax.tree.map(lambda leaf: np.tensordot(masses, np.asarray(leaf), 1), each)
    for leaf, one in zip(jax.tree.leaves(mean), jax.tree.leaves(each), strict=True):
        assert np.abs(leaf).max(initial=0) < 1e-12 * max(1, np.abs(one).max(initial=0))


@pytest.mark.slow
@each_case("visible")
@in_float64
def test_marginal_mpf_of_a_fully_visible_machine_is_probability_flow(case):
    states = case.layered(case.some_states(9), np.float64)
    objective, gradient, _ = flip_estimate("mpf", case.machine, states[0])
    assert_close(objective, vpf_objective(case.machine, states))
    assert_same_machine(gradient, local_gradient(case.machine, states))


@each_case("rbm", "semi_restricted")
@in_float64
def test_marginal_mpf_is_the_flow_of_the_marginal_chain(case):
    rows = np.random.default_rng(2).integers(0, 2, (4, case.sizes[0])).astype(np.float64)

    def flow(machine):
        here = np.array([oracles.free_energy(machine, row) for row in rows])
        there = [
            np.array([oracles.free_energy(machine, row) for row in oracles.flipped(rows, unit)])
            for unit in range(rows.shape[1])
        ]
        return float(np.mean(sum(np.exp((here - other) / 2) for other in there)))

    objective, gradient, _ = flip_estimate("mpf", case.machine, jnp.asarray(rows))
    assert_close(objective, flow(case.flat))
    assert_gradient(gradient, oracles.finite_differences(flow, case.flat), 1e-7)


def test_errors_say_what_is_allowed():
    case = CASES["rbm-moderate"]
    states = case.layered(case.some_states(4))
    with pytest.raises(ValueError, match="num_steps=0; it takes an integer of at least 1"):
        contrastive_divergence(jax.random.key(0), case.machine, states, 0)
    with pytest.raises(ValueError, match="shapes"):
        contrastive_divergence(jax.random.key(0), case.machine, states[:1])
    with pytest.raises(ValueError, match="rule=nce; it takes one of"):
        flip_estimate("nce", case.machine, states[0])
