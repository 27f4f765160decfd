"""Flip rates and the objective against energy differences of an enumerated machine."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import CASES, assert_close, cases, compiled, each_case, in_float64, joined, on_states
from hypothesis import given, settings

from vpf_jax import energy, flip_rates, vpf_objective

objective = compiled(vpf_objective)


@each_case()
@in_float64
def test_flip_rates_are_exponentials_of_half_energy_differences(case):
    states = case.all_states()
    found = on_states(flip_rates, case.machine, case.layered(states))
    assert [layer.shape[1] for layer in found] == list(case.sizes)
    assert_close(joined(found), oracles.flip_rates(case.flat, states))


@each_case()
@in_float64
def test_flip_rates_satisfy_detailed_balance(case):
    states = case.all_states()
    layered = case.layered(states)
    weight = np.exp(-np.asarray(on_states(energy, case.machine, layered)))
    probability = weight / weight.sum()
    flow = probability[:, None] * joined(on_states(flip_rates, case.machine, layered))
    for unit in range(states.shape[1]):
        back = flow[oracles.state_numbers(oracles.flipped(states, unit)), unit]
        np.testing.assert_allclose(flow[:, unit], back, rtol=1e-10)


@each_case("visible", "rbm", "semi_restricted")
@in_float64
def test_the_flip_chain_leaves_the_model_distribution_alone(case):
    generator = oracles.rate_matrix(case.flat)
    states = case.all_states()
    rates = joined(on_states(flip_rates, case.machine, case.layered(states)))
    found = np.diag(-rates.sum(axis=1))
    for unit in range(states.shape[1]):
        found[np.arange(len(states)), oracles.state_numbers(oracles.flipped(states, unit))] = rates[:, unit]
    assert_close(found, generator)
    assert_close(oracles.probabilities(case.flat) @ found, np.zeros(len(states)), 1e-10)


@each_case()
@in_float64
def test_objective_is_the_mean_over_the_batch_of_the_sum_over_units(case):
    for number in (1, 12):
        states = case.some_states(number)
        expected = oracles.objective(case.flat, states, np.full(number, 1 / number))
        assert_close(objective(case.machine, case.layered(states)), expected)


@each_case("rbm")
@in_float64
def test_repeating_the_batch_changes_nothing(case):
    states = case.some_states(3)
    once = objective(case.machine, case.layered(states))
    assert_close(objective(case.machine, case.layered(np.tile(states, (4, 1)))), once)


@pytest.mark.slow
@in_float64
def test_compiled_and_mapped_is_the_same_as_a_loop():
    case = CASES["semi_restricted-peaked"]
    states = case.some_states(6)
    layered = case.layered(states)
    assert_close(objective(case.machine, layered), vpf_objective(case.machine, layered), 1e-14)
    together = joined(on_states(flip_rates, case.machine, layered))
    for number, row in enumerate(states):
        one = flip_rates(case.machine, case.layered(row))
        assert_close(together[number], joined(one), 1e-14)


@pytest.mark.parametrize("dtype", [jnp.bool_, jnp.int32, jnp.float32, jnp.float64], ids=str)
@in_float64
def test_any_state_type_gives_the_same_answer(dtype):
    case = CASES["intra_dbm-moderate"]
    states = case.some_states(6)
    expected = objective(case.machine, case.layered(states, jnp.uint8))
    np.testing.assert_array_equal(objective(case.machine, case.layered(states, dtype)), expected)
    rates = on_states(flip_rates, case.machine, case.layered(states, jnp.uint8))
    found = on_states(flip_rates, case.machine, case.layered(states, dtype))
    jax.tree.map(np.testing.assert_array_equal, found, rates)


@each_case()
def test_single_precision(case):
    states = case.some_states(12)
    found = objective(case.machine, case.layered(states))
    assert found.dtype == jnp.float32
    assert_close(found, oracles.objective(case.flat, states, np.full(12, 1 / 12)), 5e-6)


def test_an_overflow_is_visible():
    """exp(alpha z) leaves float32 above |z| = 176: the objective must say so, not hide it."""
    case = CASES["visible-moderate"]
    states = case.layered(np.zeros((2, 5)))
    for field, finite in ((170.0, True), (180.0, False)):
        machine = case._replace(biases=(np.full(5, field),)).machine
        assert bool(jnp.isfinite(vpf_objective(machine, states))) is finite


@each_case()
@in_float64
def test_the_model_distribution_is_its_own_best_fit(case):
    """Over exact population weights the objective has its minimum at the teacher."""
    states, population = case.all_states(), oracles.probabilities(case.flat)
    layered = case.layered(states)

    def expected_objective(machine):
        return population @ joined(on_states(flip_rates, machine, layered)).sum(axis=1)

    teacher = expected_objective(case.machine)
    rng = np.random.default_rng(1)
    for _ in range(5):
        student = case._replace(
            biases=tuple(bias + 0.1 * rng.normal(size=bias.shape) for bias in case.biases),
            weights=tuple(block + 0.1 * rng.normal(size=block.shape) for block in case.weights),
        )
        assert expected_objective(student.machine) > teacher


@jax.jit
def rates_and_objective(machine, states):
    return jax.vmap(flip_rates, in_axes=(None, 0))(machine, states), vpf_objective(machine, states)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(case=cases())
@in_float64
def test_any_connectivity(case):
    states = case.some_states(9)
    rates, total = rates_and_objective(case.machine, case.layered(states))
    assert_close(joined(rates), oracles.flip_rates(case.flat, states))
    assert_close(total, oracles.objective(case.flat, states, np.full(9, 1 / 9)))
