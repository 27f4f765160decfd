"""Stacks: the E-step and confabulation against exact distributions, shapes, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import joined, make_case
from typed import refused

import vpf_jax
from vpf_jax import stack as stack_module
from vpf_jax.evaluate import likelihood
from vpf_jax.sample.streams import stream_of, substream, uniform
from vpf_jax.stack import CHUNK, CPU_BYTES, in_chunks, rows_at_once, tile_at_once

NUM_SAMPLES = 40_000
# Largest deviation of a count or mean that chance is granted, in standard errors.
LARGEST = 4.5

RBM_LIKE = (make_case("lower", (4, 3), (), 4.0, 1), make_case("upper", (3, 2), (), 4.0, 2))
INTRA = (make_case("lower", (4, 3), (1,), 4.0, 3), make_case("upper", (3, 2), (1,), 4.0, 4))
DEEP = (make_case("deep", (3, 3, 2), (), 4.0, 5),)
DEEP_INTRA = (make_case("deep", (3, 3, 2), (1, 2), 4.0, 6),)


def machines(cases):
    return tuple(case.machine for case in cases)


def histogram(layers):
    rows = joined(layers)
    return np.bincount(oracles.state_numbers(rows), minlength=2 ** rows.shape[1])


def point(states, num_units):
    mass = np.zeros(2**num_units)
    mass[oracles.state_numbers(np.asarray(states))] = 1
    return mass


def fed_forward(case, visible_mass):
    """Distribution of a two-layer machine's state after the upward pass alone, from one over its visible states."""
    num_visible, num_hidden = case.sizes
    bare = oracles.flatten(case.biases, case.weights, (None, None))
    start = np.zeros(2 ** (num_visible + num_hidden))
    start[: 2**num_visible] = visible_mass
    return oracles.resample(bare, start, range(num_visible, num_visible + num_hidden))


def swept(case, mass):
    """The same after the asynchronous sweep of the upper layer."""
    return oracles.resample(case.flat, mass, range(case.sizes[0], sum(case.sizes)))


def upper_marginal(case, mass):
    return mass.reshape(-1, 2 ** case.sizes[0]).sum(axis=1)


def lower_marginal(case, mass):
    return mass.reshape(-1, 2 ** case.sizes[0]).sum(axis=0)


def assert_fits(layers, mass):
    fit = oracles.fit(histogram(layers), mass)
    assert fit.worst_state < LARGEST
    assert fit.chi_square < LARGEST


@pytest.mark.slow
@pytest.mark.parametrize("cases", [RBM_LIKE, INTRA], ids=["plain", "intra"])
def test_e_step_has_the_exact_distribution(cases):
    data = np.array([1, 0, 1, 1])
    visible = jnp.asarray(np.tile(data, (NUM_SAMPLES, 1)), jnp.uint8)
    lower, upper = vpf_jax.sample_hidden(jax.random.key(0), machines(cases), visible)
    bottom = fed_forward(cases[0], point(data, 4))
    top = fed_forward(cases[1], upper_marginal(cases[0], bottom))
    np.testing.assert_array_equal(lower[0], visible)
    assert_fits((lower[0], upper[0]), swept(cases[0], bottom))
    # The second machine stands on the first one's feed-forward state, not on the swept one.
    assert_fits((lower[1], upper[1]), swept(cases[1], top))


@pytest.mark.slow
def test_feed_forward_and_swept_states_are_one_sample_without_intra_layer_weights():
    visible = jnp.ones((7, 4), jnp.uint8)
    lower, upper = vpf_jax.sample_hidden(jax.random.key(1), machines(RBM_LIKE), visible)
    np.testing.assert_array_equal(upper[0], lower[1])
    assert [x.shape for x in (*lower, *upper)] == [(7, 4), (7, 3), (7, 3), (7, 2)]
    assert all(x.dtype == jnp.uint8 for x in upper)


@pytest.mark.parametrize("cases", [DEEP, DEEP_INTRA], ids=["plain", "intra"])
def test_e_step_of_a_deep_machine_uses_upward_inputs_only(cases):
    (case,) = cases
    data = np.array([1, 0, 1])
    visible = jnp.asarray(np.tile(data, (NUM_SAMPLES, 1)), jnp.uint8)
    (state,) = vpf_jax.complete(jax.random.key(2), machines(cases), visible)
    # The lower two layers alone form the machine that the first hidden layer sees on the way up.
    below = case._replace(biases=case.biases[:2], weights=case.weights[:1], intra=(None, case.intra[1]))
    bottom = fed_forward(below, point(data, 3))
    assert_fits(state[:2], swept(below, bottom))
    above = case._replace(biases=(np.zeros(3), case.biases[2]), weights=case.weights[1:], intra=(None, case.intra[2]))
    top = swept(above, fed_forward(above, upper_marginal(below, bottom)))
    assert_fits(state[2:], upper_marginal(above, top))


def test_a_machine_without_hidden_layers_is_its_own_completion():
    machine = vpf_jax.init_machine(jax.random.key(0), (4,), intra=(0,))
    visible = jnp.ones((3, 4), jnp.uint8)
    ((only,),) = vpf_jax.complete(jax.random.key(1), (machine,), visible)
    np.testing.assert_array_equal(only, visible)


def descended(case, upper_mass, steps):
    """Exact distribution of the lower layer of a two-layer machine after `steps` Gibbs steps from its upper one."""
    num_lower, num_upper = case.sizes
    bare = oracles.flatten(case.biases, case.weights, (None, None))
    start = np.zeros((2**num_upper, 2**num_lower))
    start[:, 0] = upper_mass
    mass = oracles.resample(bare, start.reshape(-1), range(num_lower))
    for _ in range(steps - 1):
        mass = mass @ oracles.transition_matrix(case.flat)
    return lower_marginal(case, mass)


@pytest.mark.slow
@pytest.mark.parametrize("cases", [RBM_LIKE, INTRA], ids=["plain", "intra"])
@pytest.mark.parametrize(("steps", "top_steps"), [(0, None), (3, None), (0, 4), (2, 1)])
def test_confabulated_means_are_the_exact_ones(cases, steps, top_steps):
    prior = np.array([0.2, 0.7])
    means = np.asarray(
        vpf_jax.confabulate(
            jax.random.key(3), machines(cases), NUM_SAMPLES, steps, top_steps, jnp.asarray(prior, jnp.float32)
        )
    )
    states = oracles.all_states(2)
    mass = np.prod(np.where(states == 1, prior, 1 - prior), axis=1)
    mass = descended(cases[1], mass, steps if top_steps is None else top_steps)
    mass = descended(cases[0], mass, steps)
    exact = mass @ oracles.all_states(4)
    standard_error = means.std(axis=0, ddof=1) / np.sqrt(NUM_SAMPLES)
    assert np.all(np.abs(means.mean(axis=0) - exact) < LARGEST * standard_error)


@pytest.mark.slow
def test_a_long_top_chain_samples_the_top_machine_from_any_start():
    (case,) = INTRA[:1]
    exact = lower_marginal(case, oracles.probabilities(case.flat)) @ oracles.all_states(4)
    for prior in (jnp.zeros(3), None):
        means = np.asarray(
            vpf_jax.confabulate(jax.random.key(4), (case.machine,), NUM_SAMPLES, 0, top_steps=200, prior=prior)
        )
        standard_error = means.std(axis=0, ddof=1) / np.sqrt(NUM_SAMPLES)
        assert np.all(np.abs(means.mean(axis=0) - exact) < LARGEST * standard_error)


@pytest.mark.slow
def test_a_deep_machine_confabulates_from_its_own_distribution():
    (case,) = DEEP
    exact = oracles.probabilities(case.flat) @ oracles.all_states(8)[:, :3]
    means = np.asarray(vpf_jax.confabulate(jax.random.key(5), machines(DEEP), NUM_SAMPLES, top_steps=200))
    standard_error = means.std(axis=0, ddof=1) / np.sqrt(NUM_SAMPLES)
    assert np.all(np.abs(means.mean(axis=0) - exact) < LARGEST * standard_error)


@pytest.mark.slow
def test_no_steps_and_one_step_are_the_same_pass_down():
    stack = machines(INTRA)
    one, none = (vpf_jax.confabulate(jax.random.key(6), stack, 9, steps) for steps in (1, 0))
    np.testing.assert_array_equal(one, none)


@pytest.mark.slow
def test_confabulate_compiles_with_traced_steps_and_agrees_with_eager():
    stack = machines(INTRA)
    traced = jax.jit(lambda key, steps: vpf_jax.confabulate(key, stack, 11, steps, 2 * steps))
    eager = vpf_jax.confabulate(jax.random.key(7), stack, 11, 3, 6)
    np.testing.assert_array_equal(traced(jax.random.key(7), 3), eager)


@pytest.mark.parametrize("cases", [RBM_LIKE, INTRA, DEEP], ids=["plain", "intra", "deep"])
def test_mean_activations_are_the_exact_feed_forward_ones(cases):
    data = np.array([1, 0, 1, 1])[: cases[0].sizes[0]]
    visible = jnp.asarray(np.tile(data, (NUM_SAMPLES, 1)), jnp.uint8)
    activations = vpf_jax.mean_activations(jax.random.key(8), machines(cases), visible)
    pairs = [(case.biases[i + 1], w) for case in cases for i, w in enumerate(case.weights)]
    mass = point(data, len(data))
    for found, (bias, weights) in zip(activations, pairs, strict=True):
        pair = make_case("pair", weights.shape, (), 1.0, 0)._replace(
            biases=(np.zeros(len(weights)), bias), weights=(weights,)
        )
        mass = upper_marginal(pair, fed_forward(pair, mass))
        exact = mass @ oracles.all_states(len(bias))
        # A mean of sigmoids varies less than the bits it is the mean of.
        standard_error = np.sqrt(exact * (1 - exact) / NUM_SAMPLES)
        assert np.all(np.abs(found - exact) < LARGEST * standard_error + 1e-6)


@pytest.mark.parametrize("num_rows", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_chunks_cover_every_row_once_in_order(num_rows):
    rows = jnp.arange(num_rows)
    found = in_chunks(stream_of(jax.random.key(0)), lambda stream, part: (2 * part, part[:, None]), rows, 1)
    np.testing.assert_array_equal(found[0], 2 * rows)
    assert found[1].shape == (num_rows, 1)


def test_chunks_draw_from_different_streams():
    def draw(stream, part):
        return uniform(stream, part.shape)

    found = in_chunks(stream_of(jax.random.key(0)), draw, jnp.arange(2 * CHUNK + 500), 1)
    assert len(np.unique(found)) > 2 * CHUNK


class Accelerator:
    """A device that says how much memory it has."""

    def __init__(self, limit):
        self.limit = limit

    def memory_stats(self):
        return {"bytes_limit": self.limit, "bytes_in_use": 0}


def test_rows_that_pass_together_are_as_many_as_memory_has_room_for(monkeypatch):
    assert rows_at_once(980) == CHUNK
    # 40,200 entries of four bytes, two of them at a time.
    assert rows_at_once(40_200) == 2**26 // (8 * 40_200) == 208
    assert rows_at_once(10**9) == 1
    assert rows_at_once(0) == CHUNK
    assert [tile_at_once(count) for count in (0, 30, 10**6)] == [1, 30, CHUNK]
    cpu = jax.local_devices(backend="cpu")[0]
    monkeypatch.setattr(jax, "local_devices", lambda backend: [Accelerator(80 * 10**9)])
    assert rows_at_once(980) == 10**10 // (8 * 980)
    # Two squares of numbers of four bytes.
    assert tile_at_once(10**6) == 35_355 < np.sqrt(10**10 / 8) < 35_356
    # A CPU that is chosen beside an accelerator.
    with jax.default_device(cpu):
        assert rows_at_once(980) == CHUNK
    monkeypatch.setattr(jax, "local_devices", lambda backend: [Accelerator(10**6)])
    assert rows_at_once(980) == 15


@pytest.mark.parametrize("size", [7, CHUNK - 1, 2 * CHUNK])
def test_numbers_are_the_same_whatever_passes_together(monkeypatch, size):
    stream, rows = stream_of(jax.random.key(0)), jnp.arange(2 * CHUNK + 500)

    def draw(stream, part):
        return uniform(substream(stream, 1), (*part.shape, 3)), 2 * part

    wanted = in_chunks(stream, draw, rows, 1)
    monkeypatch.setattr(stack_module, "rows_at_once", lambda width: size)
    found = in_chunks(stream, draw, rows, 1)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


# Those that would take more with `CHUNK` rows; the others' states never reach memory.
PASSES = {
    "pseudo-likelihood": lambda key, stack, x: vpf_jax.pseudo_log_likelihood(key, stack[0], x),
    "mean field": lambda key, stack, x: likelihood.mean_field(stack[0], x),
    "bound": lambda key, stack, x: vpf_jax.stack_bound(key, stack, x, 0.0, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSES)
def test_passes_over_wide_machines_take_the_memory_they_may(name):
    stack = vpf_jax.init_stack(jax.random.key(0), (30_000, 5))
    visible = jax.ShapeDtypeStruct((CHUNK + 1, 30_000), jnp.uint8)
    program = jax.jit(functools.partial(PASSES[name], jax.random.key(1), stack)).lower(visible).compile()
    memory = program.memory_analysis()
    # Beside the rows as they are given and the result.
    assert memory.temp_size_in_bytes < CPU_BYTES + memory.argument_size_in_bytes + memory.output_size_in_bytes


@pytest.mark.slow
def test_sampled_hidden_states_carry_no_gradient():
    stack = machines(INTRA)
    visible = jnp.ones((5, 4), jnp.uint8)

    def through_samples(stack):
        _, upper = vpf_jax.sample_hidden(jax.random.key(0), stack, visible)
        return sum(jnp.sum(x.astype(jnp.float32)) for x in upper)

    gradient = jax.grad(through_samples)(stack)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_init_stack_joins_consecutive_layers():
    stack = vpf_jax.init_stack(jax.random.key(0), (6, 5, 4), intra=True)
    assert [machine.sizes for machine in stack] == [(6, 5), (5, 4)]
    assert all(machine.intra[0] is None and machine.intra[1] is not None for machine in stack)
    plain = vpf_jax.init_stack(jax.random.key(0), (6, 5))
    assert plain[0].intra == (None, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, v: vpf_jax.init_stack(jax.random.key(0), (4,)), r"sizes=\(4,\).*at least one hidden"),
        (lambda s, v: vpf_jax.init_stack(jax.random.key(0), (4, 0)), "positive integer"),
        (lambda s, v: vpf_jax.sample_hidden(jax.random.key(0), s, v[:, :3]), r"shape \(2, 3\).*\[batch, 4\]"),
        (lambda s, v: vpf_jax.sample_hidden(jax.random.key(0), s, v[0]), r"shape \(4,\)"),
        (lambda s, v: vpf_jax.sample_hidden(jax.random.key(0), s, v[:0]), r"shape \(0, 4\)"),
        (lambda s, v: vpf_jax.sample_hidden(jax.random.key(0), machines(DEEP), v), "two-layer machines"),
        (lambda s, v: vpf_jax.mean_activations(jax.random.key(0), s, v[:, :3]), r"shape \(2, 3\)"),
        (lambda s, v: vpf_jax.confabulate(jax.random.key(0), s, 0), "num_samples=0"),
        (lambda s, v: vpf_jax.confabulate(jax.random.key(0), s, 1, -1), "steps=-1"),
        (lambda s, v: vpf_jax.confabulate(jax.random.key(0), s, 1, 1, -2), "top_steps=-2"),
        (lambda s, v: vpf_jax.confabulate(jax.random.key(0), s, 1, prior=jnp.ones(3)), r"shape \(3,\).*\(2,\)"),
    ],
)
def test_what_is_refused(call, message):
    with refused(ValueError, match=message):
        call(machines(RBM_LIKE), jnp.ones((2, 4), jnp.uint8))
