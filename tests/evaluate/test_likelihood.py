"""Log-likelihoods and bounds against enumeration.

Statistical assertions state their standard error; seeds are fixed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import CASES, assert_close, cases, each_case, in_float64, make_case, with_hidden
from hypothesis import given, settings
from typed import refused

from vpf_jax import init_machine, init_stack
from vpf_jax.evaluate.likelihood import mean_field, missing_bound, rbm_log_likelihood, stack_bound, variational_bound

# Two machines joined at three units, the top one with and without weights inside its hidden layer.
LOWER = make_case("lower", (4, 3), (), 2.0, seed=7)
TOPS = {
    "closed": make_case("closed", (3, 4), (), 2.0, seed=8),
    "semi_restricted": make_case("semi_restricted", (3, 4), (0,), 2.0, seed=9),
    "intra": make_case("intra", (3, 4), (1,), 2.0, seed=10),
}
# Weights inside the hidden layer of a lower machine play no part in the belief network.
LOWER_INTRA = make_case("lower_intra", (4, 3), (1,), 2.0, seed=7)

compiled_bound = functools.cache(
    lambda num_samples: jax.jit(
        lambda key, stack, visible, log_z: stack_bound(key, stack, visible, log_z, num_samples=num_samples)
    )
)


def visible_states(case):
    return jnp.asarray(oracles.all_states(case.sizes[0]), jnp.uint8)


def blank(case):
    """The case without interactions."""
    return case._replace(
        weights=tuple(np.zeros_like(block) for block in case.weights),
        intra=tuple(None if block is None else np.zeros_like(block) for block in case.intra),
    )


@pytest.mark.slow
@each_case("rbm", "semi_restricted")
@in_float64
def test_likelihood_of_a_two_layer_machine_is_exact(case):
    found = rbm_log_likelihood(case.machine, visible_states(case), oracles.log_partition(case.flat))
    assert_close(found, oracles.log_likelihoods(case.flat))
    assert_close(np.exp(found).sum(), 1)


@pytest.mark.slow
@with_hidden
@in_float64
def test_the_variational_bound_is_that_of_its_means(case):
    """E_q[-E - log q] by enumeration over the hidden states, at the means after 0, 1 and 30 updates."""
    log_z = oracles.log_partition(case.flat)
    visible = visible_states(case)
    exact = oracles.log_likelihoods(case.flat)
    previous = np.full(len(visible), -np.inf)
    for num_updates in (0, 1, 30):
        means = np.concatenate(mean_field(case.machine, visible, num_updates), axis=1)
        found = np.asarray(variational_bound(case.machine, visible, log_z, num_updates))
        for row, vector in enumerate(np.asarray(visible)):
            states = oracles.completions(case.flat, vector)
            hidden = states[:, case.sizes[0] :]
            q = np.prod(np.where(hidden == 1, means[row], 1 - means[row]), axis=1)
            expected = q @ (-oracles.energies(case.flat, states) - np.log(q)) - log_z
            assert_close(found[row], expected)
        assert np.all(found <= exact + 1e-10)
        assert np.all(found >= previous - 1e-10)
        previous = found


@each_case("rbm", "semi_restricted")
@in_float64
def test_mean_field_of_independent_hidden_units_is_exact(case):
    visible, log_z = visible_states(case), oracles.log_partition(case.flat)
    assert_close(variational_bound(case.machine, visible, log_z, 1), oracles.log_likelihoods(case.flat))


@with_hidden
@in_float64
def test_mean_field_settles_where_every_mean_is_the_sigmoid_of_its_field(case):
    visible = visible_states(case)
    means = np.hstack([visible, *mean_field(case.machine, visible, 300)])
    fields = means @ case.flat.coupling + case.flat.bias
    hidden = slice(case.sizes[0], None)
    assert_close(means[:, hidden], 1 / (1 + np.exp(-fields[:, hidden])))


@with_hidden
@in_float64
def test_the_bound_is_exact_without_interactions(case):
    alone = blank(case)
    found = variational_bound(alone.machine, visible_states(case), oracles.log_partition(alone.flat))
    assert_close(found, oracles.log_likelihoods(alone.flat))


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(case=cases(max_units=6))
@in_float64
def test_the_bound_of_any_connectivity_is_one(case):
    found = variational_bound(case.machine, visible_states(case), oracles.log_partition(case.flat), 3)
    assert np.all(np.asarray(found) <= oracles.log_likelihoods(case.flat) + 1e-10)


@pytest.mark.parametrize("top", ["closed", "semi_restricted"])
@in_float64
def test_the_weights_of_a_stack_are_unbiased(top):
    """E[p(v, h) / q(h | v)] = p(v), within four standard errors of 20,000 samples, for every visible vector."""
    lower, upper = LOWER, TOPS[top]
    exact = oracles.belief_network_log_likelihoods([lower.flat, upper.flat])
    assert_close(np.exp(exact).sum(), 1)
    visible = np.repeat(np.asarray(visible_states(lower)), 20_000, axis=0)
    log_z = oracles.log_partition(upper.flat)
    found = compiled_bound(1)(jax.random.key(0), (lower.machine, upper.machine), jnp.asarray(visible), log_z)
    ratios = np.exp(np.asarray(found).reshape(16, -1) - exact[:, None])
    error = ratios.std(axis=1, ddof=1) / np.sqrt(ratios.shape[1])
    assert np.all(np.abs(ratios.mean(axis=1) - 1) < 4 * error)


@pytest.mark.slow
@pytest.mark.parametrize("top", TOPS)
@pytest.mark.parametrize("lower", [LOWER, LOWER_INTRA], ids=repr)
@in_float64
def test_the_bound_of_a_stack_grows_with_the_samples_to_the_log_likelihood(lower, top):
    """Means of 1,000 bounds with 1, 5 and 200 samples, at three visible vectors, up to four standard errors."""
    upper = TOPS[top]
    exact = oracles.belief_network_log_likelihoods([lower.flat, upper.flat])[[0, 6, 15]]
    visible = jnp.repeat(visible_states(lower)[jnp.array([0, 6, 15])], 1000, axis=0)
    log_z = oracles.log_partition(upper.flat)
    previous, previous_error = -np.inf, 0.0
    for num_samples in (1, 5, 200):
        found = compiled_bound(num_samples)(jax.random.key(1), (lower.machine, upper.machine), visible, log_z)
        found = np.asarray(found).reshape(3, -1)
        mean, error = found.mean(axis=1), found.std(axis=1, ddof=1) / np.sqrt(1000)
        assert np.all(mean <= exact + 4 * error)
        assert np.all(mean >= previous - 4 * np.hypot(error, previous_error))
        previous, previous_error = mean, error
    # With weights inside the top machine's hidden layer the gap of its mean field stays.
    assert np.all(previous > exact - (0.1 if top == "intra" else 0.01))


@in_float64
def test_a_stack_of_three_machines():
    """The mean weight, within four standard errors of 20,000 samples."""
    stack = [make_case("", sizes, (), 2.0, seed) for seed, sizes in enumerate([(3, 2), (2, 3), (3, 2)])]
    exact = oracles.belief_network_log_likelihoods([case.flat for case in stack])
    visible = jnp.repeat(visible_states(stack[0]), 20_000, axis=0)
    machines = tuple(case.machine for case in stack)
    found = compiled_bound(1)(jax.random.key(2), machines, visible, oracles.log_partition(stack[-1].flat))
    ratios = np.exp(np.asarray(found).reshape(8, -1) - exact[:, None])
    error = ratios.std(axis=1, ddof=1) / np.sqrt(ratios.shape[1])
    assert np.all(np.abs(ratios.mean(axis=1) - 1) < 4 * error)


@pytest.mark.slow
@pytest.mark.parametrize("num_samples", [1, 3])
@in_float64
def test_a_stack_of_one_machine_is_the_machine(num_samples):
    case = CASES["rbm-peaked"]
    visible = visible_states(case)
    found = stack_bound(jax.random.key(0), (case.machine,), visible, 2.5, num_samples=num_samples)
    assert_close(found, rbm_log_likelihood(case.machine, visible, 2.5), 1e-14)


@in_float64
def test_a_stack_without_interactions_is_exact():
    """Where both machines give the shared layer the same biases, so that q is its distribution."""
    upper = blank(TOPS["intra"])
    lower = blank(LOWER)._replace(biases=(LOWER.biases[0], upper.biases[0]))
    log_z = oracles.log_partition(upper.flat)
    found = stack_bound(jax.random.key(0), (lower.machine, upper.machine), visible_states(lower), log_z)
    assert_close(found, oracles.belief_network_log_likelihoods([lower.flat, upper.flat]))


@pytest.mark.slow
def test_batches_beyond_a_chunk_are_the_same_rows():
    case = CASES["intra_dbm-moderate"]
    visible = jnp.tile(visible_states(case), (130, 1))
    found = np.asarray(variational_bound(case.machine, visible, 1.0)).reshape(130, -1)
    np.testing.assert_allclose(found, np.tile(found[:1], (130, 1)), rtol=1e-6)
    assert mean_field(case.machine, visible)[1].shape == (1040, 2)


@pytest.mark.slow
def test_compiled_is_the_same_as_eager():
    stack, visible = (LOWER.machine, TOPS["intra"].machine), visible_states(LOWER)
    eager = stack_bound(jax.random.key(0), stack, visible, 1.0, num_samples=5)
    compiled = compiled_bound(5)(jax.random.key(0), stack, visible, 1.0)
    np.testing.assert_allclose(compiled, eager, rtol=1e-5)


def test_wrong_arguments_are_refused():
    rbm, dbm = CASES["rbm-moderate"], CASES["dbm-moderate"]
    visible = visible_states(rbm)
    with refused(ValueError, match="two layers"):
        rbm_log_likelihood(dbm.machine, visible_states(dbm), 0.0)
    for function in (rbm_log_likelihood, variational_bound):
        with refused(ValueError, match=r"\[batch, 5\]"):
            function(rbm.machine, visible[:, :4], 0.0)
    with refused(ValueError, match=r"\[batch, 5\]"):
        mean_field(rbm.machine, visible[0])
    with refused(ValueError, match="num_updates=-1"):
        variational_bound(rbm.machine, visible, 0.0, -1)
    with refused(ValueError, match=r"num_updates=1\.5"):
        mean_field(rbm.machine, visible, 1.5)
    stack = init_stack(jax.random.key(0), (5, 3, 2))
    with refused(ValueError, match="num_samples=0"):
        stack_bound(jax.random.key(0), stack, visible, 0.0, num_samples=0)
    with refused(ValueError, match=r"\[batch, 5\]"):
        stack_bound(jax.random.key(0), stack, visible[:, 1:], 0.0)
    with refused(ValueError, match=r"\(3, 2, 3, 2\)"):
        stack_bound(jax.random.key(0), (dbm.machine, stack[1]), visible_states(dbm), 0.0)
    inside = init_machine(jax.random.key(0), (5, 3), intra=(0,))
    with refused(ValueError, match="lower layer"):
        stack_bound(jax.random.key(0), (inside, stack[1]), visible, 0.0)


@pytest.mark.parametrize("name", ["rbm-moderate", "semi_restricted-moderate", "visible-moderate"])
def test_the_bound_of_what_is_seen_is_near_its_likelihood(name):
    case = CASES[name]
    visible, law = visible_states(case), np.exp(oracles.log_likelihoods(case.flat))
    missing = np.random.default_rng(0).random(visible.shape) < 0.5
    missing[0], missing[1] = False, True
    # Summed over all states that agree in what is seen.
    states = np.asarray(visible)
    alike = ((states[None] == states[:, None]) | missing[:, None]).all(axis=2)
    wanted = np.log(alike @ law)
    bounds = jax.jit(functools.partial(missing_bound, num_samples=400))
    log_z = oracles.log_partition(case.flat)
    keys = jax.random.split(jax.random.key(0), 4)
    found = np.array([bounds(key, case.machine, visible, jnp.asarray(missing), log_z) for key in keys])
    np.testing.assert_allclose(found[:, 0], wanted[0], atol=1e-5)
    # Of 1,600 draws with weights that vary by about their mean.
    np.testing.assert_allclose(found.mean(axis=0), wanted, atol=4 / np.sqrt(1600))
