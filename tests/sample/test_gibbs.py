"""Gibbs sweeps and chains against the exact transition matrix of the enumerated machine.

The statistical tests draw `NUM_CHAINS` independent chains with fixed keys. The count of a state of
probability p has standard deviation sqrt(N p (1 - p)); every state must lie within four of them,
and so must the chi-square statistic of the whole histogram (`oracles.fit`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import CASES, cases, each_case, in_float64, joined
from hypothesis import given, settings

from vpf_jax import gibbs_sweep, run_chain
from vpf_jax.sample.gibbs import asynchronous_sweep

NUM_CHAINS = 40_000


@functools.cache
def chains(kernel, *arguments):
    """The compiled map of a kernel over keys and states, for one machine."""

    def chain(key, machine, state):
        return kernel(key, machine, state, *arguments)

    return jax.jit(jax.vmap(chain, in_axes=(0, None, 0)))


def histogram(case, starts, seed, kernel, *arguments):
    """How many chains end in each state."""
    keys = jax.random.split(jax.random.key(seed), len(starts))
    return counts_of(case, chains(kernel, *arguments)(keys, case.machine, case.layered(starts)))


def counts_of(case, states):
    """The histogram of a batch of states."""
    return np.bincount(oracles.state_numbers(joined(states)), minlength=2 ** sum(case.sizes))


def agrees(counts, distribution):
    """Whether a histogram stays within four standard deviations."""
    return max(oracles.fit(counts, distribution)) < 4


def assert_agrees(counts, distribution):
    worst_state, chi_square = oracles.fit(counts, distribution)
    assert worst_state < 4
    assert chi_square < 4


def telling_start(case, clamped=()):
    """The state from which a sweep in the opposite unit order differs most from the right one, and both rows."""
    order = oracles.sweep_order(case.sizes, clamped)
    every = np.eye(2 ** sum(case.sizes))
    right, wrong = (oracles.resample(case.flat, every, units) for units in (order, order[::-1]))
    start = int(np.argmax(np.abs(right - wrong).sum(axis=1)))
    return case.all_states()[start], right[start], wrong[start]


def repeated(state, number=NUM_CHAINS):
    return np.tile(state, (number, 1))


@each_case()
def test_one_sweep_has_the_transition_probabilities_of_the_stated_order(case):
    """The sharp test of update order and of the newest values: the reverse order must be told apart."""
    start, right, wrong = telling_start(case)
    counts = histogram(case, repeated(start), 1, gibbs_sweep)
    assert_agrees(counts, right)
    assert not agrees(counts, wrong)


@each_case("visible", "intra_dbm")
def test_a_layer_with_intra_weights_sees_the_newest_values(case):
    """From the start where a sweep with stale values would differ most from the asynchronous one."""
    layer = case.intra_layers[0]
    clamped = tuple(other for other in range(len(case.sizes)) if other != layer)
    rows = oracles.transition_matrix(case.flat, clamped)
    units = oracles.sweep_order(case.sizes, clamped)
    states = case.all_states()
    on = 1 / (1 + np.exp(-oracles.local_fields(case.flat, states)))[:, None, units]
    ends = states[None, :, units]
    kept = np.delete(states, units, axis=1)
    allowed = (kept[:, None] == kept[None]).all(axis=2)
    stale = np.where(allowed, np.prod(on * ends + (1 - on) * (1 - ends), axis=2), 0)
    start = int(np.argmax(np.abs(rows - stale).sum(axis=1)))
    counts = histogram(case, repeated(states[start]), 2, gibbs_sweep, clamped)
    assert_agrees(counts, rows[start])
    assert not agrees(counts, stale[start])


@each_case()
def test_a_chain_is_that_many_sweeps(case):
    """Four sweeps, and on the peaked visible machine told apart from three."""
    start, row, _ = telling_start(case)
    once = oracles.transition_matrix(case.flat)
    counts = histogram(case, repeated(start), 3, run_chain, 4)
    assert_agrees(counts, row @ once @ once @ once)
    if case is CASES["visible-peaked"]:
        assert not agrees(counts, row @ once @ once)


@each_case()
def test_the_model_distribution_is_stationary(case):
    """After 1, 4 and 16 sweeps from exact draws."""
    target = oracles.probabilities(case.flat)
    draws = np.random.default_rng(4).choice(len(target), NUM_CHAINS, p=target)
    starts = case.all_states()[draws]
    assert_agrees(histogram(case, starts, 5, gibbs_sweep), target)
    four_sweeps = chains(run_chain, 4)
    states = case.layered(starts)
    for block, key in enumerate(jax.random.split(jax.random.key(6), 4)):
        states = four_sweeps(jax.random.split(key, NUM_CHAINS), case.machine, states)
        if block in (0, 3):
            assert_agrees(counts_of(case, states), target)


@pytest.mark.parametrize("strength", ["moderate", "peaked"])
@pytest.mark.parametrize(
    ("family", "clamped"),
    [
        ("rbm", (0,)),
        ("rbm", (1,)),
        ("semi_restricted", (1,)),
        ("dbm", (0, 2)),
        ("intra_dbm", (0,)),
        ("intra_dbm", (1,)),
    ],
)
def test_a_clamped_sweep_has_the_conditional_transition_probabilities(family, clamped, strength):
    case = CASES[f"{family}-{strength}"]
    start, right, _ = telling_start(case, clamped)
    counts = histogram(case, repeated(start), 12, gibbs_sweep, clamped)
    # An end state with a changed clamped unit has probability zero, and the comparison refuses it.
    assert_agrees(counts, right)


@each_case("rbm", "intra_dbm")
def test_the_posterior_is_stationary_with_the_data_clamped(case):
    data = np.zeros(2 ** case.sizes[0])
    data[-2] = 1
    posterior = oracles.complete(case.flat, data)
    draws = np.random.default_rng(8).choice(len(posterior), NUM_CHAINS, p=posterior)
    starts = case.all_states()[draws]
    assert_agrees(histogram(case, starts, 9, run_chain, 4, (0,)), posterior)


@each_case()
def test_units_at_even_odds_forget_their_start(case):
    """Without biases and weights every state is equally likely after one sweep: each unit was resampled."""
    blank = case._replace(
        biases=tuple(np.zeros_like(bias) for bias in case.biases),
        weights=tuple(np.zeros_like(block) for block in case.weights),
        intra=tuple(None if block is None else np.zeros_like(block) for block in case.intra),
    )
    num_states = 2 ** sum(case.sizes)
    counts = histogram(blank, np.zeros((NUM_CHAINS, sum(case.sizes))), 9, gibbs_sweep)
    assert_agrees(counts, np.full(num_states, 1 / num_states))


@each_case("rbm", "intra_dbm")
def test_a_chain_leaves_clamped_layers_as_they_are_and_moves_the_others(case):
    states = case.layered(case.some_states(NUM_CHAINS))
    keys = jax.random.split(jax.random.key(0), NUM_CHAINS)
    ends = chains(run_chain, 4, (0,))(keys, case.machine, states)
    np.testing.assert_array_equal(ends[0], states[0])
    for before, after in zip(states[1:], ends[1:], strict=True):
        assert (np.asarray(before) != np.asarray(after)).any(axis=0).all()


@each_case("visible", "dbm")
def test_all_layers_clamped_is_the_identity(case):
    state = case.layered(case.some_states(1)[0])
    everything = tuple(range(len(case.sizes)))
    jax.tree.map(
        np.testing.assert_array_equal,
        gibbs_sweep(jax.random.key(0), case.machine, state, clamped=everything),
        state,
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bool_, jnp.float32], ids=["bool", "float32"])
def test_the_state_type_is_kept_and_does_not_change_the_draw(dtype):
    case = CASES["semi_restricted-moderate"]
    rows = case.some_states(32)
    for kernel in (chains(gibbs_sweep), chains(run_chain, 4)):
        drawn = []
        for kind in (dtype, jnp.uint8):
            keys = jax.random.split(jax.random.key(0), 32)
            ends = kernel(keys, case.machine, case.layered(rows, kind))
            assert isinstance(ends, tuple)
            assert [layer.shape for layer in ends] == [(32, size) for size in case.sizes]
            assert all(layer.dtype == kind for layer in ends)
            drawn.append(joined(ends))
        np.testing.assert_array_equal(*drawn)
        assert np.isin(drawn[0], [0, 1]).all()


def test_each_layer_keeps_its_own_type():
    case = CASES["rbm-moderate"]
    state = (jnp.zeros(5, jnp.uint8), jnp.zeros(3, jnp.float32))
    ends = run_chain(jax.random.key(0), case.machine, state, 2)
    assert [layer.dtype for layer in ends] == [jnp.uint8, jnp.float32]


@pytest.mark.slow
def test_compiled_and_mapped_is_the_same_as_a_loop():
    case = CASES["semi_restricted-peaked"]
    machine = case.machine
    starts = case.some_states(2)
    for kernel in (gibbs_sweep, functools.partial(run_chain, num_sweeps=4)):
        keys = jax.random.split(jax.random.key(0), 2)
        mapped = chains(kernel)(keys, machine, case.layered(starts))
        # Split again: a key may be used only once.
        for number, key in enumerate(jax.random.split(jax.random.key(0), 2)):
            one = kernel(key, machine, case.layered(starts[number]))
            np.testing.assert_array_equal(joined(mapped)[number], joined(one))


@each_case("visible", "intra_dbm")
def test_the_key_determines_the_draw(case):
    states = case.layered(repeated(case.some_states(1)[0], 32))

    def draw(seed):
        keys = jax.random.split(jax.random.key(seed), 32)
        return joined(chains(run_chain, 4)(keys, case.machine, states))

    np.testing.assert_array_equal(draw(0), draw(0))
    assert not np.array_equal(draw(0), draw(1))


def test_no_sweeps_change_nothing():
    case = CASES["dbm-moderate"]
    state = case.layered(case.some_states(1)[0])
    jax.tree.map(np.testing.assert_array_equal, run_chain(jax.random.key(0), case.machine, state, 0), state)


@pytest.mark.parametrize("num_sweeps", [-1, -10])
def test_a_negative_number_of_sweeps_is_refused(num_sweeps):
    case = CASES["rbm-moderate"]
    with pytest.raises(ValueError, match=str(num_sweeps)):
        run_chain(jax.random.key(0), case.machine, case.layered(np.zeros(8)), num_sweeps)


@pytest.mark.parametrize("clamped", [(2,), (0, 5), (-3,)])
def test_clamping_a_layer_that_does_not_exist_is_refused(clamped):
    case = CASES["rbm-moderate"]
    state = case.layered(np.zeros(8))
    with pytest.raises(ValueError, match=str(clamped[-1])):
        gibbs_sweep(jax.random.key(0), case.machine, state, clamped=clamped)
    with pytest.raises(ValueError, match=str(clamped[-1])):
        run_chain(jax.random.key(0), case.machine, state, 2, clamped=clamped)


def test_frozen_units_stay_frozen():
    """Fields of +-1000 leave no choice, and nothing overflows on the way."""
    case = CASES["rbm-moderate"]
    biases = (
        np.array([1000.0, -1000.0, 1000.0, -1000.0, 1000.0]),
        np.array([-1000.0, 1000.0, -1000.0]),
    )
    frozen = case._replace(biases=biases, weights=(np.zeros((5, 3)),)).machine
    ends = run_chain(jax.random.key(0), frozen, case.layered(np.zeros(8)), 3)
    np.testing.assert_array_equal(joined(ends), [1, 0, 1, 0, 1, 0, 1, 0])


def layer(num_units, batch, seed):
    """A layer with intra-layer weights: (weights, fields, values before, uniform numbers) of a batch."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.normal(0, 0.5, (num_units, num_units)), 1)
    shape = (batch, num_units)
    uniforms = rng.integers(0, 2**24, shape) / 2**24
    arrays = upper + upper.T, rng.normal(0, 2, shape), rng.integers(0, 2, shape), uniforms
    return tuple(a.astype(np.float32) for a in arrays)


@pytest.mark.parametrize("num_units", [1, 2, 7, 8, 9, 64, 100, 196])
def test_the_sweep_in_blocks_equals_the_sweep_unit_by_unit_bit_for_bit(num_units):
    intra, fields, x, uniforms = layer(num_units, 50, seed=num_units)
    expected, closest = oracles.asynchronous_sweep(intra, fields, x, uniforms)
    # Rounding in single precision reaches about 1e-6 times the inputs: no decision here is that close.
    assert closest > 1e-5
    sweep = jax.vmap(asynchronous_sweep, in_axes=(None, 0, 0, 0))
    found = sweep(jnp.asarray(intra), fields, x, uniforms)
    np.testing.assert_array_equal(found, expected)
    assert num_units == 1 or np.any(expected != x)


@pytest.mark.slow
def test_the_sweep_is_the_same_alone_in_a_batch_and_for_several_machines():
    layers = [layer(10, 6, seed) for seed in range(3)]
    intra, fields, x, uniforms = (jnp.asarray(np.stack(arrays)) for arrays in zip(*layers, strict=True))
    sweep = jax.jit(asynchronous_sweep)
    alone = [[sweep(intra[m], fields[m, i], x[m, i], uniforms[m, i]) for i in range(6)] for m in range(3)]
    batches = jax.vmap(asynchronous_sweep, in_axes=(None, 0, 0, 0))
    np.testing.assert_array_equal(jax.vmap(batches)(intra, fields, x, uniforms), alone)
    machines = jax.vmap(asynchronous_sweep)
    other_way = jax.vmap(machines, in_axes=(None, 1, 1, 1), out_axes=1)
    np.testing.assert_array_equal(other_way(intra, fields, x, uniforms), alone)
    # Fields shared by a batch that differs in its uniform numbers alone.
    shared = jax.vmap(asynchronous_sweep, in_axes=(None, None, None, 0))(intra[0], fields[0, 0], x[0, 0], uniforms[0])
    np.testing.assert_array_equal(shared[0], alone[0][0])


def test_a_sweep_carries_no_gradient():
    intra, fields, x, uniforms = layer(9, 4, seed=0)

    def total(intra, fields):
        return jnp.sum(jax.vmap(asynchronous_sweep, in_axes=(None, 0, 0, 0))(intra, fields, x, uniforms))

    for gradient in jax.grad(total, argnums=(0, 1))(intra, fields):
        assert not np.any(gradient)


@pytest.mark.slow
@settings(max_examples=10, deadline=None, derandomize=True)
@given(case=cases(max_units=6))
def test_any_connectivity(case):
    start, right, _ = telling_start(case)
    # 10 machines of up to 64 states: five standard deviations keep the chance of a false alarm
    # below 1e-3.
    assert max(oracles.fit(histogram(case, repeated(start, 10_000), 10, gibbs_sweep), right)) < 5


@each_case("semi_restricted")
@in_float64
def test_double_precision_draws_the_same_law(case):
    start, right, _ = telling_start(case)
    assert_agrees(histogram(case, repeated(start), 11, gibbs_sweep), right)
