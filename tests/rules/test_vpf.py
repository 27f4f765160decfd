"""The local rule against autodiff, finite differences and the enumerated expectation."""

import dataclasses
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
    cases,
    compiled,
    each_case,
    in_float64,
    mapped,
    with_hidden,
)
from hypothesis import given, settings

from vpf_jax import directed_gradient, flip_rates, gibbs_sweep, local_gradient, tie_intra, vpf_objective
from vpf_jax.rules import vpf

gradient_of = compiled(local_gradient)
directed_of = compiled(directed_gradient)


@jax.jit
def autodiff_of(machine, states):
    """The gradient per parameter of the objective, by automatic differentiation."""
    return tie_intra(jax.grad(vpf_objective)(machine, states))


def uniform(states):
    """The masses of a batch."""
    return np.full(len(states), 1 / len(states))


def population_gradient(machine, states, masses):
    """The expectation of the local gradient over states with the given masses, from batches of one."""
    batches_of_one = tuple(layer[:, None] for layer in states)
    per_state = mapped(local_gradient)(machine, batches_of_one)
    return jax.tree.map(lambda leaf: jnp.tensordot(jnp.asarray(masses), leaf, axes=1), per_state)


@each_case()
@in_float64
def test_local_gradient_is_the_derivative_of_the_objective(case):
    states = case.layered(case.some_states(12))
    assert_same_machine(gradient_of(case.machine, states), autodiff_of(case.machine, states))


@each_case()
@in_float64
def test_local_gradient_is_the_enumerated_one(case):
    for number in (1, 12):
        states = case.some_states(number)
        found = gradient_of(case.machine, case.layered(states))
        assert_gradient(found, oracles.expected_gradient(case.flat, states, uniform(states)))


@each_case()
@in_float64
def test_local_gradient_is_the_finite_difference(case):
    states = case.some_states(12)
    found = gradient_of(case.machine, case.layered(states))
    assert_gradient(found, oracles.finite_difference_gradient(case.flat, states, uniform(states)), 1e-8)


@each_case()
@in_float64
def test_population_gradient_under_an_arbitrary_distribution(case):
    states = case.all_states()
    masses = np.random.default_rng(0).dirichlet(np.ones(len(states)))
    found = population_gradient(case.machine, case.layered(states), masses)
    assert_gradient(found, oracles.expected_gradient(case.flat, states, masses))
    assert_gradient(found, oracles.finite_difference_gradient(case.flat, states, masses), 1e-8)


@each_case()
@in_float64
def test_intra_layer_gradient_is_symmetric_with_zero_diagonal(case):
    gradient = gradient_of(case.machine, case.layered(case.some_states(12)))
    for layer, block in enumerate(gradient.intra):
        assert (block is None) == (layer not in case.intra_layers)
        if block is not None:
            np.testing.assert_allclose(block, np.asarray(block).T, rtol=1e-13)
            np.testing.assert_array_equal(np.diag(block), 0)


@each_case()
@in_float64
def test_directed_halves_are_the_contributions_of_single_flips(case):
    """The half of unit j's synapses is what the flips of j alone contribute."""
    states = case.some_states(12)
    directed = directed_of(case.machine, case.layered(states))
    by_flip = oracles.gradient_by_flip(case.flat, states, uniform(states))
    # expected[i, j]: pre-synaptic unit i, post-synaptic unit j.
    expected = np.stack([half.coupling[:, unit] for unit, half in enumerate(by_flip)], axis=1)
    forward = oracles.flatten(directed.biases, directed.forward, directed.intra).coupling
    backward = oracles.flatten(directed.biases, directed.backward, directed.intra).coupling
    # `forward` has the lower layer in its rows and the upper in its columns; `backward` is stored
    # in the same shape but its post-synaptic unit is the row.
    layer_of = np.repeat(np.arange(len(case.sizes)), case.sizes)
    upwards = layer_of[:, None] < layer_of[None, :]
    downwards = layer_of[:, None] > layer_of[None, :]
    inside = layer_of[:, None] == layer_of[None, :]
    assert_close(np.where(upwards, forward, 0), np.where(upwards, expected, 0))
    assert_close(np.where(downwards, backward, 0), np.where(downwards, expected, 0))
    assert_close(np.where(inside, forward, 0), np.where(inside, expected, 0))
    assert_close(
        np.concatenate(directed.biases),
        np.array([half.bias[unit] for unit, half in enumerate(by_flip)]),
    )


@each_case()
@in_float64
def test_directed_halves_add_up_to_the_gradient(case):
    states = case.layered(case.some_states(12))
    directed = directed_of(case.machine, states)
    gradient = gradient_of(case.machine, states)
    for halves, block in zip(zip(directed.forward, directed.backward, strict=True), gradient.weights, strict=True):
        assert halves[0].shape == halves[1].shape == block.shape
        assert_close(halves[0] + halves[1], block)
    assert len(directed.intra) == len(gradient.intra)
    for half, block in zip(directed.intra, gradient.intra, strict=True):
        assert (half is None) == (block is None)
        if half is not None:
            np.testing.assert_array_equal(np.diag(half), 0)
            assert_close(half + half.T, block)
    jax.tree.map(assert_close, directed.biases, gradient.biases)


@pytest.mark.parametrize("dtype", [jnp.bool_, jnp.int32, jnp.float32, jnp.float64], ids=str)
@in_float64
def test_any_state_type_gives_the_same_gradient(dtype):
    case = CASES["intra_dbm-moderate"]
    states = case.some_states(12)
    for function in (gradient_of, directed_of):
        expected = function(case.machine, case.layered(states, jnp.uint8))
        found = function(case.machine, case.layered(states, dtype))
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@each_case()
def test_single_precision(case):
    states = case.some_states(12)
    found = gradient_of(case.machine, case.layered(states))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))
    assert_gradient(found, oracles.expected_gradient(case.flat, states, uniform(states)), 5e-6)


@pytest.mark.parametrize("function", [local_gradient, directed_gradient], ids=["both", "directed"])
@in_float64
def test_compiled_is_the_same_as_eager(function):
    case = CASES["semi_restricted-peaked"]
    states = case.layered(case.some_states(12))
    found, expected = compiled(function)(case.machine, states), function(case.machine, states)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-13), found, expected)


@each_case()
@in_float64
def test_a_batch_is_the_mean_of_batches_of_one(case):
    states = case.some_states(12)
    layered = case.layered(states)
    averaged = population_gradient(case.machine, layered, uniform(states))
    assert_same_machine(gradient_of(case.machine, layered), averaged)


@each_case()
@in_float64
def test_gradient_is_zero_when_the_data_are_the_model_distribution(case):
    states, population = case.all_states(), oracles.probabilities(case.flat)
    gradient = population_gradient(case.machine, case.layered(states), population)
    for leaf in jax.tree.leaves(gradient):
        assert np.abs(leaf).max() < 1e-12


@each_case()
@in_float64
def test_gradient_is_not_zero_when_the_data_are_another_distribution(case):
    """The counterpart of the test above: the teacher's population weights move any other student."""
    states = case.all_states()
    teacher = case._replace(biases=tuple(bias + 0.1 for bias in case.biases))
    population = oracles.probabilities(teacher.flat)
    gradient = population_gradient(case.machine, case.layered(states), population)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) > 1e-3


@in_float64
def test_a_fully_visible_student_finds_its_teacher():
    """The objective of a fully visible machine is convex: gradient descent ends at the teacher from anywhere."""
    teacher, start = CASES["visible-moderate"], CASES["visible-peaked"]
    states = teacher.layered(teacher.all_states())
    population = oracles.probabilities(teacher.flat)

    def step(student, _):
        gradient = population_gradient(student, states, population)
        return jax.tree.map(lambda parameter, slope: parameter - 0.5 * slope, student, gradient), None

    blank = jax.tree.map(jnp.zeros_like, start.machine)
    student, _ = jax.jit(lambda student: jax.lax.scan(step, student, length=2000))(blank)
    assert_same_machine(student, teacher.machine, 1e-6)


@functools.partial(jax.jit, static_argnames="layers")
def summed_rates_gradient(machine, states, masses, layers):
    """The gradient of the expected flip rates of the units in some layers, by autodiff."""

    def flow(machine):
        rates = jax.vmap(flip_rates, in_axes=(None, 0))(machine, states)
        return sum(masses @ rates[layer].sum(axis=1) for layer in layers)

    return tie_intra(jax.grad(flow)(machine))


def hidden_layers(case):
    return tuple(range(1, len(case.sizes)))


@with_hidden
@in_float64
def test_hidden_flips_contribute_nothing_after_an_exact_e_step(case):
    """With h ~ p(h | v) the hidden flips cancel by detailed balance, whatever the data; the visible ones do not."""
    states = case.layered(case.all_states())
    data = np.random.default_rng(2).dirichlet(np.ones(2 ** case.sizes[0]))
    masses = oracles.complete(case.flat, data)
    hidden = summed_rates_gradient(case.machine, states, masses, layers=hidden_layers(case))
    for leaf in jax.tree.leaves(hidden):
        assert np.abs(leaf).max() < 1e-12
    visible = summed_rates_gradient(case.machine, states, masses, layers=(0,))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(visible)) > 1e-2
    assert_same_machine(population_gradient(case.machine, states, masses), visible)


@with_hidden
@in_float64
def test_hidden_flips_restore_a_stale_e_step(case):
    """Hidden states from other parameters: now the hidden flips do push."""
    states = case.layered(case.all_states())
    data = np.random.default_rng(2).dirichlet(np.ones(2 ** case.sizes[0]))
    stale = case._replace(biases=tuple(bias + 0.5 for bias in case.biases))
    masses = oracles.complete(stale.flat, data)
    hidden = summed_rates_gradient(case.machine, states, masses, layers=hidden_layers(case))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(hidden)) > 1e-3


@in_float64
def test_zero_intra_layer_weights_leave_the_other_gradients_alone():
    case = CASES["semi_restricted-peaked"]
    without = case._replace(intra=(None, None))
    zero = case._replace(intra=tuple(np.zeros((size, size)) for size in case.sizes))
    states = case.layered(case.some_states(12))
    plain, with_zero = (gradient_of(machine.machine, states) for machine in (without, zero))
    jax.tree.map(assert_close, (with_zero.biases, with_zero.weights), (plain.biases, plain.weights))
    assert all(np.abs(block).max() > 1e-3 for block in with_zero.intra)


@each_case()
@in_float64
def test_permuting_the_units_of_a_layer_permutes_the_gradient(case):
    order = np.random.default_rng(3).permutation(case.sizes[0])
    weights = list(case.weights)
    if weights:
        weights[0] = weights[0][order]
    bottom = case.intra[0]
    permuted = case._replace(
        biases=(case.biases[0][order], *case.biases[1:]),
        weights=tuple(weights),
        intra=(None if bottom is None else bottom[np.ix_(order, order)], *case.intra[1:]),
    )
    states = case.layered(case.some_states(12))
    gradient = gradient_of(case.machine, states)
    found = gradient_of(permuted.machine, (states[0][:, order], *states[1:]))
    assert_close(found.biases[0], gradient.biases[0][order])
    if weights:
        assert_close(found.weights[0], gradient.weights[0][order])
    if bottom is not None:
        assert_close(found.intra[0], np.asarray(gradient.intra[0])[np.ix_(order, order)])
    jax.tree.map(
        assert_close,
        (found.biases[1:], found.weights[1:], found.intra[1:]),
        (gradient.biases[1:], gradient.weights[1:], gradient.intra[1:]),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rbm-moderate", "intra_dbm-moderate"])
@in_float64
def test_sampled_states_carry_no_gradient(name):
    """The gradient through an E-step is that at its sample, and the sample itself has none."""
    case = CASES[name]
    start = case.layered(case.some_states(1)[0], jnp.float64)

    def sample(machine):
        return gibbs_sweep(jax.random.key(0), machine, start, clamped=(0,))

    def objective(machine, state):
        return vpf_objective(machine, tuple(layer[None] for layer in state))

    through = jax.jit(jax.grad(lambda machine: objective(machine, sample(machine))))(case.machine)
    at_sample = jax.jit(jax.grad(objective))(case.machine, sample(case.machine))
    assert_same_machine(through, at_sample, 1e-13)
    direction = jax.tree.map(jnp.ones_like, case.machine)
    _, slopes = jax.jit(lambda m, d: jax.jvp(sample, (m,), (d,)))(case.machine, direction)
    for leaf in slopes:
        np.testing.assert_array_equal(leaf, 0)


@settings(max_examples=12, deadline=None)
@given(case=cases())
@in_float64
def test_any_connectivity(case):
    states = case.some_states(9)
    found = gradient_of(case.machine, case.layered(states))
    assert_gradient(found, oracles.expected_gradient(case.flat, states, uniform(states)))


@each_case()
def test_narrow_weights_move_the_objective_and_the_gradient_within_their_rounding(case):
    """bfloat16 rounds a weight, and a slope, by at most 2^-9 of itself; sums stay in float32."""
    states = case.some_states(40)
    layered = case.layered(states)
    wide = case.machine
    narrow = dataclasses.replace(wide, weights=to_bfloat16(wide.weights), intra=to_bfloat16(wide.intra))
    objective, gradient = jax.jit(vpf.objective_and_gradient)(narrow, layered)
    exact = oracles.objective(case.flat, states, uniform(states))
    # What rounding can add to the field of a unit, and to the logarithm of its flip rate.
    field_error = 2**-9 * np.max(states @ np.abs(case.flat.coupling))
    rate_error = np.expm1(field_error / 2) + 1e-5
    assert abs(float(objective) / exact - 1) < rate_error
    assert objective.dtype == jnp.float32
    # The sums themselves are not rounded: with the rounded weights the objective is exact to single precision.
    rounded = case._replace(weights=as_rounded(narrow.weights), intra=as_rounded(narrow.intra))
    np.testing.assert_allclose(objective, oracles.objective(rounded.flat, states, uniform(states)), rtol=1e-5)
    # The mean of |x_i alpha_j delta_j| bounds both halves of a weight's gradient.
    slope_bound = 0.5 * exact
    expected = gradient_of(wide, layered)
    for found, wanted in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        assert found.dtype == jnp.float32
        assert np.abs(np.asarray(found) - np.asarray(wanted)).max() < 2 * slope_bound * (rate_error + 2**-9)


def to_bfloat16(weights):
    return jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights)


def as_rounded(weights):
    return jax.tree.map(lambda w: np.asarray(w.astype(jnp.float32), np.float64), weights)
