"""RBMs with binary synapses: every term against sums over all states and all synapses, in float64, and the script.

Statistical tests have fixed keys and state their standard errors.
"""

import functools
import json
import math
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import programs
import pytest
from families import in_float64
from typed import refused

import vpf_jax
from experiments import planted_synapses as script
from vpf_jax.app import folder as workdir
from vpf_jax.app.folder import Stopped
from vpf_jax.checks import SettingError
from vpf_jax.related import binary_synapses as bs
from vpf_jax.related.binary_synapses import SynapseConfig


def random_means(n, p, largest=0.9, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(-largest, largest, (n, p)))


def random_z(p, seed=0):
    return jnp.asarray(np.random.default_rng(100 + seed).normal(size=p))


def random_examples(num_examples, n, seed=0):
    return jnp.asarray(np.random.default_rng(200 + seed).choice([-1.0, 1.0], (num_examples, n)))


def assert_dual(found, expected, tolerance):
    for name in expected._fields:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=tolerance)


# Enough sweeps for messages to settle to rounding.
settled = functools.partial(bs.message_passing, num_iterations=400, tolerance=0.0, damping=0.0)


@pytest.mark.parametrize(("n", "p", "beta"), [(6, 1, 1.0), (5, 2, 1.7), (4, 3, 0.4), (3, 5, 3.0)])
@in_float64
def test_the_exact_estep_is_the_sum_over_all_states(n, p, beta):
    means, z = random_means(n, p), random_z(p)
    found = bs.exact_dual(means, z, beta)
    assert_dual(found, oracles.synapse_dual(np.asarray(means), np.asarray(z), beta), 1e-12)
    assert found.residual == 0


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
@in_float64
def test_message_passing_is_exact_for_one_hidden_unit(beta):
    means, z = random_means(7, 1), random_z(1)
    found = settled(means, z, beta)
    assert_dual(found, oracles.synapse_dual(np.asarray(means), np.asarray(z), beta), 1e-13)
    assert found.residual < 1e-15


@in_float64
def test_message_passing_is_exact_where_couplings_form_no_loop():
    """A chain of three hidden units, neighbours sharing one visible unit; C where there is a coupling."""
    means = np.array(random_means(7, 3, 0.95))
    for visible, hidden in (
        (0, 1),
        (1, 1),
        (0, 2),
        (1, 2),
        (2, 2),
        (3, 0),
        (3, 2),
        (4, 0),
        (4, 1),
        (5, 0),
        (6, 0),
        (6, 1),
    ):
        means[visible, hidden] = 0
    assert (np.count_nonzero(means, axis=1) == [1, 1, 2, 1, 1, 2, 1]).all()
    z = random_z(3)
    found = settled(jnp.asarray(means), z, 2.0)
    assert np.abs(found.means).min() > 0.05
    expected, coupled = oracles.synapse_dual(means, np.asarray(z), 2.0), means != 0
    expected = expected._replace(correlations=np.where(coupled, expected.correlations, 0))
    assert_dual(found._replace(correlations=jnp.where(coupled, found.correlations, 0)), expected, 1e-13)


@pytest.mark.parametrize(("n", "largest"), [(6, 0.3), (6, 0.9), (10, 0.9)])
@in_float64
def test_message_passing_with_two_hidden_units_is_near_the_sum(n, largest):
    """The error is what the loops carry: a coupling times the sum over visible units of |t_i1 t_i2|, at most."""
    errors = []
    for seed in range(5):
        means, z = random_means(n, 2, largest, seed), random_z(2, seed)
        found, expected = settled(means, z, 1.0), oracles.synapse_dual(np.asarray(means), np.asarray(z), 1.0)
        assert found.residual < 1e-14
        t = np.abs(np.tanh(np.asarray(means) / np.sqrt(n)))
        assert_dual(found, expected, t.max() * np.sum(t[:, 0] * t[:, 1]))
        errors.append(np.abs(found.correlations - expected.correlations).max())
    # They do not vanish: C misses what one hidden unit does to a visible unit by way of the other.
    assert 1e-4 < max(errors) < 0.04


@in_float64
def test_correlations_of_message_passing_are_derivatives_of_its_log_partition():
    """By beta alone, times sqrt N: the sum of lambda C and of Xi z m. Central differences, error of order 1e-10."""
    means, z, beta, step = random_means(6, 3, 0.9, 2), random_z(3, 2), 1.3, 1e-5
    up, down = (settled(means, z, beta + sign * step).log_partition for sign in (1, -1))
    found = settled(means, z, beta)
    spread = jnp.sqrt(jnp.mean(1 - means**2, axis=0))
    expected = jnp.sum(means * found.correlations) / math.sqrt(6) + jnp.sum(spread * z * found.means)
    np.testing.assert_allclose((up - down) / (2 * step), expected, atol=1e-8)


@in_float64
def test_damping_changes_the_way_and_not_the_end():
    means, z = random_means(8, 4, 0.9, 1), random_z(4, 1)
    plain = oracles.SynapseDual(*settled(means, z, 1.0)[:3])
    assert_dual(settled(means, z, 1.0, damping=0.5), plain, 1e-12)


@in_float64
def test_message_passing_reports_the_change_that_it_stopped_at():
    means, z = random_means(8, 4, 0.9, 1), random_z(4, 1)
    one = bs.message_passing(means, z, 1.0, num_iterations=1, tolerance=0.0)
    few = bs.message_passing(means, z, 1.0, num_iterations=100, tolerance=1e-3)
    assert one.residual > 1e-2
    assert 0 < few.residual <= 1e-3


@in_float64
def test_one_hidden_unit_has_the_same_partition_function_for_all_synapses():
    """The gauge sigma_i -> xi_i sigma_i: N log 2cosh(beta / sqrt N), under any posterior."""
    expected = 6 * math.log(2 * math.cosh(1 / math.sqrt(6)))
    np.testing.assert_allclose(expected, 4.645581844461306, rtol=1e-15)
    synapses = oracles.all_synapses(6, 1)
    values = np.array([oracles.synapse_log_partition(some, 1.0) for some in synapses])
    np.testing.assert_allclose(values, expected, rtol=1e-14)
    masses = np.exp(oracles.synapse_log_masses(np.asarray(random_means(6, 1)), synapses))
    np.testing.assert_allclose(masses @ values, expected, rtol=1e-14)
    # The dual network reaches it where nothing is left to chance, whatever the signs.
    means = 0.9999999 * jnp.asarray(synapses[13])
    for solve in (bs.exact_dual, settled):
        np.testing.assert_allclose(solve(means, jnp.zeros(1), 1.0).log_partition, expected, atol=1e-6)


def estimate(means, visible, draws, **settings):
    return bs.surrogate_and_gradient(means, visible, draws, SynapseConfig(**settings))


@pytest.mark.slow
@in_float64
def test_the_terms_of_the_surrogate():
    means, visible = random_means(5, 3), random_examples(4, 5)
    draws = jnp.stack([random_z(3, seed) for seed in range(6)])
    found = estimate(means, visible, draws, beta=1.4, prior_mean=0.3).surrogate
    up = (1 + np.asarray(means)) / 2
    np.testing.assert_allclose(
        found.divergence, np.sum(up * np.log(up / 0.65) + (1 - up) * np.log((1 - up) / 0.35)), rtol=1e-12
    )
    spread = np.sqrt(np.mean(1 - np.asarray(means) ** 2, axis=0))
    inputs = np.asarray(visible @ means) / np.sqrt(5)
    data = [
        oracles.log_cosh_of_normal(1.4 * g, 1.4 * deviation)
        for row in inputs
        for g, deviation in zip(row, spread, strict=True)
    ]
    # 30 nodes, for a function whose poles lie pi / (2 beta Xi) from the real line.
    np.testing.assert_allclose(found.data, np.sum(data), rtol=1e-6)
    model = [oracles.synapse_dual(np.asarray(means), np.asarray(z), 1.4).log_partition for z in draws]
    np.testing.assert_allclose(found.model, 4 * np.mean(model), rtol=1e-12)
    np.testing.assert_allclose(found.total, found.data - found.model - found.divergence)


@pytest.mark.slow
@in_float64
def test_where_the_synapses_are_known_the_surrogate_is_the_log_likelihood():
    """And the divergence that of certainty, log 2 per synapse; what is left is of the order of 1 - |lambda|."""
    rng = np.random.default_rng(3)
    synapses, numbers = rng.choice([-1.0, 1.0], (6, 2)), rng.integers(0, 64, 5)
    expected = oracles.synapse_log_likelihoods(synapses, 1.2)[numbers].sum() - 12 * math.log(2)
    visible = jnp.asarray(oracles.all_spins(6)[numbers])
    found = estimate((1 - 1e-9) * jnp.asarray(synapses), visible, jnp.zeros((1, 2)), beta=1.2).surrogate
    np.testing.assert_allclose(found.total, expected, atol=1e-5)


GRID, GRID_WEIGHTS = np.polynomial.hermite_e.hermegauss(30)
GRID_WEIGHTS = GRID_WEIGHTS / GRID_WEIGHTS.sum()


def quadrature(p):
    """Normal draws [30^p, 1, p], one for each set, with weights, so that means over z are exact to rounding."""
    z = np.stack(np.meshgrid(*[GRID] * p, indexing="ij"), axis=-1).reshape(-1, 1, p)
    weights = np.prod(np.stack(np.meshgrid(*[GRID_WEIGHTS] * p, indexing="ij"), axis=-1), axis=-1).ravel()
    return jnp.asarray(z), jnp.asarray(weights)


@pytest.mark.parametrize(("p", "estep", "prior_mean"), [(1, "exact", 0.0), (2, "exact", 0.4), (1, "messages", 0.0)])
@in_float64
def test_the_gradient_is_the_derivative_of_the_surrogate(p, estep, prior_mean):
    """Stein's form holds on average over z: with quadrature over z it is the derivative at fixed z."""
    means, visible = random_means(5, p), random_examples(7, 5)
    z, weights = quadrature(p)
    settings = {"beta": 0.6, "prior_mean": prior_mean}

    def surrogate(means, draws):
        # The sum over all states, which can be differentiated; with one hidden unit messages give the same.
        return estimate(means, visible, draws, **settings).surrogate.total

    @jax.jit
    def both(means):
        gradient = jax.vmap(lambda draws: estimate(means, visible, draws, estep=estep, **settings).gradient)(z)
        derivative = jax.vmap(lambda draws: jax.grad(surrogate)(means, draws))(z)
        return tuple(jnp.tensordot(weights, terms, 1) for terms in (gradient, derivative))

    found, expected = both(means)
    # The derivative is not that of each draw.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@in_float64
def test_stein_form_agrees_with_the_derivative_over_draws_of_z():
    """Means over 4000 draws, within four standard errors of their paired differences."""
    means, visible = random_means(4, 3), random_examples(5, 4)
    draws = jnp.asarray(np.random.default_rng(1).normal(size=(4000, 1, 3)))

    @jax.jit
    def differences(means):
        def one(z):
            derivative = jax.grad(lambda means: estimate(means, visible, z, beta=1.5).surrogate.total)(means)
            return estimate(means, visible, z, beta=1.5).gradient - derivative

        return jax.vmap(one)(draws)

    found = np.asarray(differences(means))
    errors = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert errors.min() > 1e-3
    assert np.abs(found.mean(axis=0) / errors).max() < 4


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "prior_mean"), [((6, 2), 0.0), ((4, 3), 0.3), ((6, 1), 0.0)])
@in_float64
def test_the_exact_bound_is_below_the_evidence_by_the_divergence_from_the_posterior(shape, prior_mean):
    """With the library's divergence; expectations over synapses by enumeration."""
    rng = np.random.default_rng(4)
    numbers, beta = rng.integers(0, 2 ** shape[0], 6), 1.3
    synapses = oracles.all_synapses(*shape)
    joint = oracles.synapse_evidence(numbers, prior_mean, shape, beta)
    evidence = oracles.log_sum_exp(joint)
    likelihoods = joint - oracles.synapse_log_masses(prior_mean, synapses)
    visible = jnp.asarray(oracles.all_spins(shape[0])[numbers])
    for seed in range(4):
        means = random_means(*shape, 0.99, seed)
        log_masses = oracles.synapse_log_masses(np.asarray(means), synapses)
        masses = np.exp(log_masses)
        draws = jnp.zeros((1, shape[1]))
        divergence = estimate(means, visible, draws, beta=beta, prior_mean=prior_mean).surrogate.divergence
        bound = masses @ likelihoods - float(divergence)
        assert bound <= evidence
        np.testing.assert_allclose(evidence - bound, masses @ (log_masses - (joint - evidence)), atol=1e-10)


@pytest.mark.slow
@in_float64
def test_no_posterior_knows_nothing_and_stays():
    """Lambda = 0 with the prior at 0: all gradients vanish by symmetry."""
    z, weights = quadrature(2)
    gradients = jax.vmap(lambda draws: estimate(jnp.zeros((5, 2)), random_examples(6, 5), draws).gradient)(z)
    np.testing.assert_allclose(jnp.tensordot(weights, gradients, 1), 0, atol=1e-12)


@pytest.mark.slow
@in_float64
def test_the_surrogate_is_no_bound_for_small_means():
    """Log Z is too small at lambda = 0, where all synapses are uncertain: the surrogate passes the exact bound."""
    shape, beta, numbers = (6, 2), 1.5, np.arange(8)
    synapses = oracles.all_synapses(*shape)
    exact = np.mean([oracles.synapse_log_partition(some, beta) for some in synapses])
    z, weights = quadrature(2)
    visible = jnp.asarray(oracles.all_spins(6)[numbers])
    models = jax.vmap(lambda draws: estimate(jnp.zeros(shape), visible, draws, beta=beta).surrogate.model)(z)
    assert float(weights @ models) / len(numbers) < exact - 0.05


def config(**settings):
    return SynapseConfig(**settings)


def one_step(means, rule, **settings):
    settings = config(rule=rule, **settings)
    state = bs.init_synapses(jax.random.key(0), *means.shape, settings)._replace(means=means)
    visible, draws = random_examples(9, means.shape[0]), random_z(means.shape[1])[None, None]
    state, trace = bs.learn_synapses(state, visible, draws, settings)
    return state.means, bs.surrogate_and_gradient(means, visible, draws[0], settings), trace


@pytest.mark.slow
@in_float64
def test_huang_takes_adams_step_and_stays_inside():
    means = random_means(5, 2).at[0, 0].set(0.9999)
    found, at, trace = one_step(means, "huang", learning_rate=0.05)
    expected = np.clip(np.asarray(means) + 0.05 * np.sign(at.gradient), -0.99999, 0.99999)
    # Adam's first step is the rate times the sign, up to its epsilon.
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert trace.surrogate.total[0] == pytest.approx(float(at.surrogate.total))


@pytest.mark.parametrize("prior_mean", [0.0, 0.5])
@in_float64
def test_meng_mixes_natural_parameters(prior_mean):
    means = random_means(5, 2)
    found, at, _ = one_step(means, "meng", mixing_rate=0.25, prior_mean=prior_mean)
    by_data_and_model = at.gradient - (math.atanh(prior_mean) - np.arctanh(means))
    theta = 0.75 * np.arctanh(means) + 0.25 * (math.atanh(prior_mean) + by_data_and_model)
    np.testing.assert_allclose(found, np.tanh(theta), atol=1e-12)
    far, _, _ = one_step(means, "meng", mixing_rate=1.0, beta=50.0)
    assert np.abs(far).max() <= 0.99999


@pytest.mark.slow
@pytest.mark.parametrize("rule", bs.MSTEPS)
def test_learning_goes_up(rule):
    settings = config(rule=rule, beta=1.5, learning_rate=0.05, mixing_rate=0.05)
    synapses = bs.plant_synapses(jax.random.key(1), 30, 2)
    visible = bs.sample_visible(jax.random.key(2), synapses, 300, 1.5)
    draws = jnp.broadcast_to(jax.random.normal(jax.random.key(3), (1, 20, 2)), (100, 20, 2))
    state = bs.init_synapses(jax.random.key(4), 30, 2, settings)
    state, trace = jax.jit(bs.learn_synapses, static_argnums=3)(state, visible, draws, settings)
    totals = np.asarray(trace.surrogate.total)
    assert totals[-1] > totals[0] + 10
    assert np.mean(bs.overlaps(state.means, synapses)) > 0.9


@pytest.mark.parametrize("correlation", [0.0, 0.3, 1.0])
def test_planted_columns_are_correlated_as_asked(correlation):
    """Means over 40,000 rows; their standard error is at most 1 / 200."""
    synapses = np.asarray(bs.plant_synapses(jax.random.key(0), 40_000, 3, correlation))
    assert set(np.unique(synapses)) == {-1.0, 1.0}
    products = synapses.T @ synapses / len(synapses)
    np.testing.assert_allclose(products, correlation + (1 - correlation) * np.eye(3), atol=4 / 200)
    np.testing.assert_allclose(synapses.mean(axis=0), 0, atol=4 / 200)


def test_planted_examples_have_the_probabilities_of_the_machine():
    """40,000 examples over 64 states: the worst count within 4.5 standard deviations, chi square within 4."""
    synapses = np.asarray(bs.plant_synapses(jax.random.key(5), 6, 3))
    visible = np.asarray(bs.sample_visible(jax.random.key(6), jnp.asarray(synapses), 40_000, 1.6))
    counts = np.bincount(oracles.state_numbers((visible + 1) / 2), minlength=64)
    probabilities = np.exp(oracles.synapse_log_likelihoods(synapses.astype(np.float64), 1.6))
    fit = oracles.fit(counts, probabilities)
    assert fit.worst_state < 4.5
    assert abs(fit.chi_square) < 4
    # Told apart from a machine of another temperature.
    other = oracles.fit(counts, np.exp(oracles.synapse_log_likelihoods(synapses.astype(np.float64), 1.4)))
    assert other.chi_square > 8


@pytest.mark.parametrize("values", [oracles.all_synapses(4, 3)[1234], np.random.default_rng(5).uniform(-1, 1, (4, 3))])
@in_float64
def test_the_machine_of_bits_has_the_same_probabilities(values):
    machine = bs.as_machine(jnp.asarray(values), 1.7)
    spins = oracles.all_spins(7)
    bits = jnp.asarray((spins + 1) / 2)
    found = -jax.vmap(lambda v, h: vpf_jax.energy(machine, (v, h)))(bits[:, :4], bits[:, 4:])
    expected = 1.7 / 2 * np.einsum("si,ia,sa->s", spins[:, :4], values, spins[:, 4:])
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=1e-12)


def test_overlaps_match_the_best_pair_first():
    truth = np.array([[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, -1, -1, -1, -1], [1, -1, 1, -1, 1, -1, 1, -1]]).T
    learnt = np.stack([-truth[:, 1], truth[:, 2], truth[:, 0]], axis=1) * np.linspace(0.1, 0.9, 8)[:, None]
    np.testing.assert_allclose(bs.overlaps(jnp.asarray(learnt, jnp.float32), jnp.asarray(truth)), 1)
    # Unit 0 is nearest to both truths; it goes to the one it resembles most, and the other takes what is left.
    first = np.where(np.arange(8) < 7, 1, -1)
    learnt = np.stack([first, truth[:, 2]], axis=1).astype(np.float32)
    found = bs.overlaps(jnp.asarray(learnt), jnp.asarray(truth[:, [1, 0]]))
    np.testing.assert_allclose(found, [0, 6 / 8], atol=1e-7)
    # Both resemble truth 0 most; the second is left with truth 1, to which it is at right angles.
    learnt = np.stack([first, np.where(np.isin(np.arange(8), [0, 4]), -1, 1)], axis=1).astype(np.float32)
    found = bs.overlaps(jnp.asarray(learnt), jnp.asarray(truth[:, [1, 0]]))
    np.testing.assert_allclose(found, [0, 6 / 8], atol=1e-7)


MEANS, VISIBLE = jnp.full((3, 2), 0.1), jnp.ones((4, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimate(MEANS, jnp.zeros((4, 3)), jnp.zeros((1, 2))), "visible states other than -1 and"),
        (lambda: estimate(MEANS, 1.5 * VISIBLE, jnp.zeros((1, 2))), "from 1.5 to 1.5"),
        (lambda: estimate(MEANS, VISIBLE[:, :2], jnp.zeros((1, 2))), r"shape \(4, 2\); they take \[num_examples, 3\]"),
        (lambda: estimate(MEANS, VISIBLE, jnp.zeros((1, 3))), r"draws of shape \(1, 3\); they take \[num_draws, 2\]"),
        (lambda: estimate(MEANS, VISIBLE, jnp.zeros((0, 2))), "at least one draw"),
        (lambda: estimate(10 * MEANS, VISIBLE, jnp.zeros((1, 2))), r"means up to \|lambda\|=1.0; they take numbers"),
        (lambda: estimate(jnp.nan * MEANS, VISIBLE, jnp.zeros((1, 2))), "lambda|=nan"),
        (lambda: bs.exact_dual(-MEANS * 20, jnp.zeros(2), 1.0), r"\|lambda\|=2.0"),
        (lambda: bs.exact_dual(MEANS, jnp.zeros(3), 1.0), r"z of shape \(3,\) with 2 hidden units"),
        (lambda: bs.exact_dual(MEANS, jnp.zeros(2), 0.0), "beta=0.0; it takes a positive finite number"),
        (lambda: bs.exact_dual(jnp.full((2, 13), 0.1), jnp.zeros(13), 1.0), "13 hidden units; a sum .* up to 12"),
        (lambda: bs.message_passing(MEANS, jnp.zeros(2), -1.0), "beta=-1.0"),
        (lambda: bs.message_passing(MEANS, jnp.zeros(2), 1.0, damping=1.0), "damping=1.0; it takes"),
        (lambda: bs.message_passing(MEANS, jnp.zeros(2), 1.0, num_iterations=0), "num_iterations=0"),
        (lambda: bs.message_passing(MEANS, jnp.zeros(2), 1.0, tolerance=-1.0), "tolerance=-1.0"),
        (lambda: bs.init_synapses(jax.random.key(0), 5, 13, config()), "num_hidden=13; it takes up to 12"),
        (lambda: bs.init_synapses(jax.random.key(0), 0, 1, config()), "num_visible=0"),
        (lambda: bs.init_synapses(jax.random.key(0), 5, 1, config(), scale=0.0), "scale=0.0"),
        (lambda: bs.sample_visible(jax.random.key(0), jnp.zeros((3, 2)), 4, 1.0), "synapses other than -1 and"),
        (lambda: bs.sample_visible(jax.random.key(0), jnp.ones((3, 2)), 0, 1.0), "num_examples=0"),
        (lambda: bs.sample_visible(jax.random.key(0), jnp.ones((3, 2)), 4, np.inf), "beta=inf"),
        (lambda: bs.sample_visible(jax.random.key(0), jnp.ones((3, 13)), 4, 1.0), "num_hidden=13"),
        (lambda: bs.plant_synapses(jax.random.key(0), 3, 2, 1.1), "correlation=1.1; it takes a number from 0 to 1"),
        (lambda: bs.as_machine(MEANS, -1.0), "beta=-1.0"),
        (lambda: bs.as_machine(MEANS[0], 1.0), r"synapses of shape \(2,\); they take \[n, p\]"),
        (lambda: bs.as_machine(jnp.inf * MEANS, 1.0), "not finite, infinite among them, in 6 of 6 places"),
        (lambda: bs.overlaps(MEANS, MEANS[:2]), r"shape \(3, 2\) and synapses of shape \(2, 2\)"),
        (lambda: config(beta=0.0), "beta=0.0"),
        (lambda: config(rule="adam"), "rule=adam; it takes one of"),
        (lambda: config(estep="gibbs"), "estep=gibbs"),
        (lambda: config(prior_mean=1.0), "prior_mean=1.0; it takes a finite number above -1 and below 1"),
        (lambda: config(learning_rate=0.0), "learning_rate=0.0"),
        (lambda: config(mixing_rate=1.5), "mixing_rate=1.5; it takes a positive finite number at most 1"),
    ],
)
def test_what_is_out_of_range_is_refused(call, message):
    with refused(ValueError, match=message):
        call()


start = functools.partial(programs.start_here, "planted_synapses")


def quick_flags(number):
    """A quick setting of the script's docstring, but for its folder: 0 planted, 1 images."""
    commands = re.findall(r"^    (python -m [^\n]*(?:\\\n[^\n]*)?--workdir=runs/quick)$", script.__doc__, re.MULTILINE)
    assert len(commands) == 2
    return [word for word in commands[number].replace("\\", " ").split()[3:] if not word.startswith("--workdir")]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1], ids=["planted", "images"])
def test_the_quick_setting_writes_its_table_and_says_when_it_is_finished(number, tmp_path):
    flags = [*quick_flags(number), f"--workdir={tmp_path / 'run'}"]
    ended = start(*flags)
    assert ended.returncode == 0, ended.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    table = (tmp_path / "run" / "table.md").read_text()
    assert table in ended.stdout
    assert "+-" in table
    assert "nan" not in table
    pictures = {path.name for path in (tmp_path / "run").glob("*.png")}
    if number == 0:
        assert summary["dataset"] == "planted"
        assert [(row["estep"], row["alpha"]) for row in summary["fits"]] == [
            (estep, alpha) for estep in bs.SYNAPSE_ESTEPS for alpha in (1, 5)
        ]
        # Three seeds: the means differ by some 0.5, their standard errors are below 0.1.
        few, many = (np.mean(row["overlap"]) for row in summary["fits"][:2])
        assert many > few + 0.2
        assert pictures == {"overlap.png"}
    else:
        (row,) = summary["fits"]
        curve = row["curve"]["surrogate"]
        assert curve[-1] > curve[0]
        assert pictures == {"surrogate.png", "couplings-P40-messages-huang.png"}
        assert row["largest_residual"] < 1e-3
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and p.name != "config.json"}
    again = start(*flags)
    assert again.returncode == 0
    assert "finished already" in again.stdout
    assert before == {p: p.stat().st_mtime_ns for p in before}


TINY = {
    "hidden": (2,),
    "alpha": (2,),
    "num_visible": 12,
    "num_seeds": 2,
    "steps": 6,
    "steps_per_epoch": 2,
    "num_draws": 3,
}


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_numbers(tmp_path, monkeypatch):
    settings = {**TINY, "esteps": ("exact",)}
    straight = script.run(script.Config(**settings, workdir=str(tmp_path / "straight")))
    assert [len(row["overlap"]) for row in straight["fits"]] == [2]
    append = workdir.MetricsFile.append

    def append_and_stop(self, row):
        append(self, row)
        if row["epoch"] == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(workdir.MetricsFile, "append", append_and_stop)
    stopped = script.Config(**settings, workdir=str(tmp_path / "stopped"))
    with pytest.raises(Stopped, match="P2-alpha2-exact-huang, epoch 2 of 3 is saved"):
        script.run(stopped)
    monkeypatch.undo()
    resumed = script.run(stopped)
    for one, other in zip(straight["fits"], resumed["fits"], strict=True):
        assert {**one, "train_seconds": 0} == {**other, "train_seconds": 0}


@pytest.mark.slow
def test_esteps_learn_from_the_same_data_and_start(tmp_path):
    """With a single hidden unit message passing is exact, and only rounding differs."""
    settings = {**TINY, "hidden": (1,), "rules": ("meng",), "damping": 0.0, "workdir": str(tmp_path / "run")}
    exact, messages = script.run(script.Config(**settings))["fits"]
    np.testing.assert_allclose(exact["curve"]["surrogate"], messages["curve"]["surrogate"], rtol=1e-4)
    assert exact["overlap"] == messages["overlap"]
    table = (tmp_path / "run" / "table.md").read_text()
    assert "P = 1, message passing, Meng (natural gradient)" in table
    assert "reference" not in table


def test_the_reference_stands_beside_its_own_settings_only():
    assert script.Config().reference(2) == {1: 0.37, 2: 0.52, 3: 0.64, 4: 0.80, 5: 0.89}
    assert script.Config(correlation=0.3, alpha=(2, 7)).reference(2) == {2: 0.60}
    assert script.Config(correlation=0.3).reference(3) == {}
    assert script.Config(steps=200).reference(2) == {}
    assert script.Config(rules=("meng",)).reference(2) == {}


def test_defaults_depend_on_the_data():
    planted, images = script.Config(), script.Config(dataset="mnist_5k")
    assert (planted.hidden, planted.esteps, len(planted.seeds)) == ((2, 3), ("exact", "messages"), 10)
    assert (images.hidden, images.esteps, len(images.seeds)) == ((392,), ("messages",), 1)
    given = script.Config(dataset="mnist_5k", steps=10, learning_rate=0.3)
    assert given.learner(2, "messages", "huang").settings.learning_rate == 0.3
    folders = [str(config.folder) for config in (planted, images)]
    assert folders == ["runs/planted-binary_synapses", "runs/mnist_5k-binary_synapses"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "cifar"}, "got dataset=cifar; it takes one of"),
        ({"hidden": (2, 2)}, "got hidden=.*; it takes distinct positive integers"),
        ({"hidden": (0,)}, "got hidden="),
        ({"hidden": (13,)}, "got hidden=.*; it takes up to 12 for planted synapses and the exact E-step"),
        ({"dataset": "mnist_5k", "hidden": (16,), "esteps": ("exact",)}, "others esteps=messages"),
        ({"esteps": ("gibbs",)}, "it takes some of exact, messages, each once"),
        ({"rules": ("meng", "meng")}, "got rules=.*each once"),
        ({"alpha": (2, 1)}, "got alpha=.*; it takes increasing positive integers"),
        ({"num_visible": 0}, "got num_visible=0"),
        ({"correlation": -0.1}, "got correlation=-0.1; it takes a finite number from 0 to 1"),
        ({"dataset": "mnist_5k", "num_images": 0}, "got num_images=0"),
        ({"dataset": "mnist_5k", "size": 1}, "got size=1; it takes an integer from 2 to 28"),
        ({"dataset": "mnist_5k", "size": 29}, "got size=29"),
        ({"beta": 0.0}, "got beta=0.0; it takes a positive finite number"),
        ({"prior_mean": -1.0}, "got prior_mean=-1.0"),
        ({"learning_rate": -1.0}, "got learning_rate=-1.0"),
        ({"rules": ("meng",), "mixing_rate": 0.0}, "got mixing_rate=0.0; it takes a positive finite number at most 1"),
        ({"steps": 15}, "got steps=15; it takes a positive multiple of steps_per_epoch=10"),
        ({"learning_rate": 0.0}, "got learning_rate=0.0"),
        ({"steps": -10}, "got steps=-10"),
        ({"num_draws": -1}, "got num_draws=-1"),
        ({"num_iterations": 0}, "got num_iterations=0"),
        ({"damping": 1.0}, "got damping=1.0"),
        ({"num_seeds": -1}, "got num_seeds=-1; it takes an integer from 1 to"),
        ({"seed": -1}, "got seed=-1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        script.Config(**settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--esteps=gibbs"], "--esteps=gibbs; it takes some of exact, messages"),
        (
            ["--dataset=mnist_5k", "--num_images=5000"],
            "--num_images=5000; it takes up to 4000, as mnist_5k has 4000 training images",
        ),
        (["stray"], "'stray'; only flags are allowed"),
    ],
)
def test_wrong_flags_give_one_line_and_status_2(arguments, message, tmp_path):
    ended = start(f"--workdir={tmp_path / 'run'}", *arguments)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert message in ended.stderr
