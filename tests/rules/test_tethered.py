"""Tethered contrastive divergence against enumeration of p(v | a noisy copy), and its limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import each_case, joined
from test_chains import NUM_BATCHES, PEAKED, after_sweeps, completed_data, draws, worst_deviation

import vpf_jax
from vpf_jax import rules, tethered_contrastive_divergence, units


@functools.cache
def tethered(noise, steps):
    def one(key, machine, states):
        return tethered_contrastive_divergence(key, machine, states, noise, steps).gradient

    return jax.jit(jax.vmap(one, in_axes=(0, None, 0)))


def sampled(case, states, noise, steps):
    return tethered(noise, steps)(jax.random.split(jax.random.key(steps), NUM_BATCHES), case.machine, states)


def contrast(case, data, chains):
    """What the rule is on average; in two layers the hidden units of chains are summed out, as if swept once more."""
    if len(case.sizes) == 2 and case.intra[1] is None:
        chains = oracles.resample(case.flat, chains, range(case.sizes[0], sum(case.sizes)))
    return oracles.contrast(case.flat, data, chains)


@pytest.mark.slow
@each_case("visible", "rbm", "semi_restricted", "dbm", "intra_dbm")
def test_the_rule_follows_the_enumerated_chains(case):
    data = completed_data(case)
    found = sampled(case, draws(case, data, seed=1), 0.2, 2)
    chains = oracles.tethered_chains(case.flat, data, 0.2, case.sizes[0], 2)
    # In standard errors of 200,000 chains.
    assert worst_deviation(found, case, contrast(case, data, chains)) < 4.5


@pytest.mark.slow
def test_its_bias_against_the_recovery_of_the_data_vanishes_as_k_grows():
    data = completed_data(PEAKED)
    states = draws(PEAKED, data, seed=4)
    recovery = contrast(PEAKED, data, oracles.tethered_chains(PEAKED.flat, data, 0.2, 6))
    off = [worst_deviation(sampled(PEAKED, states, 0.2, k), PEAKED, recovery) for k in (1, 40)]
    assert off[0] > 2 * 4.5 > 2 * off[1], off


def test_the_equilibrium_of_the_oracle_is_the_gradient_of_the_recovery_loss():
    masses = np.random.default_rng(0).dirichlet(np.full(64, 0.3))
    chains = oracles.tethered_chains(PEAKED.flat, oracles.complete(PEAKED.flat, masses), 0.1, 6)
    # The energy is linear in the biases, so is what stands for the derivative by one.
    found = contrast(PEAKED, oracles.complete(PEAKED.flat, masses), chains)
    for unit in (0, 5, 6, 9):
        step = 1e-5 * np.eye(10)[unit]
        up, down = (
            oracles.recovery_loss(PEAKED.flat._replace(bias=PEAKED.flat.bias + s * step), masses, 0.1) for s in (1, -1)
        )
        np.testing.assert_allclose(found.bias[unit], (up - down) / 2e-5, rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_noise_of_one_half_is_contrastive_divergence():
    data = completed_data(PEAKED)
    found = sampled(PEAKED, draws(PEAKED, data, seed=2), 0.5, 2)
    assert worst_deviation(found, PEAKED, contrast(PEAKED, data, after_sweeps(PEAKED, data, 2))) < 4.5
    # Free chains at equilibrium are the likelihood's.
    free = oracles.tethered_chains(PEAKED.flat, data, 0.5, 6)
    np.testing.assert_allclose(free, oracles.probabilities(PEAKED.flat), rtol=1e-12)


def test_noise_near_zero_counts_single_flips():
    # -log p(v | y) / noise becomes sum_i u_i + exp(u_i) but for a constant, u_i = F(v) - F(v with bit i flipped).
    masses = np.random.default_rng(0).dirichlet(np.full(64, 0.3))
    visible = oracles.all_states(6)

    def local(flat):
        u = oracles.flip_log_ratios(flat, visible)
        return masses @ (u + np.exp(u)).sum(axis=1)

    noise = 1e-5
    for unit in (0, 7):
        shifted = PEAKED.flat._replace(bias=PEAKED.flat.bias + 0.1 * np.eye(10)[unit])
        found = (
            oracles.recovery_loss(shifted, masses, noise) - oracles.recovery_loss(PEAKED.flat, masses, noise)
        ) / noise
        np.testing.assert_allclose(found, local(shifted) - local(PEAKED.flat), rtol=2e-2)


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_spins_are_tethered_as_bits_are(noise):
    bits = PEAKED.machine
    spins = vpf_jax.with_units(bits, units.SPIN)
    states = PEAKED.layered(PEAKED.some_states(200))
    step = jax.jit(tethered_contrastive_divergence, static_argnums=(3, 4))
    found = step(jax.random.key(0), bits, states, noise, 3)
    other = step(jax.random.key(0), spins, tuple(2 * x.astype(jnp.int8) - 1 for x in states), noise, 3)
    np.testing.assert_array_equal(joined(other.states), 2 * joined(found.states) - 1)
    np.testing.assert_allclose(other.objective, found.objective, atol=2e-5)
    # A strong tether holds most units, a weak one does not.
    held = np.mean(joined(found.states)[:, :6] == joined(states)[:, :6])
    assert held > 0.9 if noise < 0.1 else held < 0.9


def test_what_it_does_not_take():
    states, directed = PEAKED.layered(PEAKED.some_states(3)), vpf_jax.untie(None, PEAKED.machine)
    for given in ({"noise": 0.0}, {"noise": 0.6}, {"steps": 0}):
        with pytest.raises(ValueError, match=f"^got {next(iter(given))}="):
            rules.Tethered(**given)
    for noise in (0.0, 0.51, float("nan")):
        with pytest.raises(ValueError, match="noise"):
            tethered_contrastive_divergence(jax.random.key(0), PEAKED.machine, states, noise)
    with pytest.raises(ValueError, match="directed"):
        tethered_contrastive_divergence(jax.random.key(0), directed, states, 0.1)
    with pytest.raises(ValueError, match="directed"):
        rules.Tethered().accepts(directed)
