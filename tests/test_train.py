"""Training: one epoch against a hand-written one, what every epoch keeps, what it learns, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from families import make_case, training
from typed import refused

import vpf_jax
from vpf_jax import train
from vpf_jax.data import binarise, load_dataset

TINY_STEP = 1e-12


def copy_of(state):
    """Training donates its input; tests look at it afterwards."""
    return jax.tree.map(lambda leaf: leaf.copy(), state)


def start(stack, config, seed=0):
    return train.init_state(jax.random.key(seed), stack, config)


def bits(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 2, shape), jnp.uint8)


def run(state, visible, config, epochs=None):
    metrics = None
    for _ in range(config.epochs if epochs is None else epochs):
        state, metrics = train.train_epoch(state, visible, config=config)
    return state, metrics


@pytest.mark.slow
def test_a_full_batch_epoch_is_one_adam_step_on_the_decayed_objective():
    case = make_case("visible", (5,), (0,), 2.0, 0)
    states = np.random.default_rng(1).integers(0, 2, (12, 5)).astype(np.float64)
    config = training(batch_size=12, learning_rate=0.01, weight_decay=0.003, epsilon=0.05, epochs=1)
    state, metrics = run(start((case.machine,), config), jnp.asarray(states, jnp.uint8), config)

    masses = np.full(12, 1 / 12)
    exact = oracles.expected_gradient(case.flat, states, masses)
    gradient = {
        "coupling": jnp.asarray(config.rule.epsilon * exact.coupling + 2 * config.weight_decay * case.flat.coupling),
        "bias": jnp.asarray(config.rule.epsilon * exact.bias),
    }
    adam = optax.adam(config.optimizer.learning_rate)
    parameters = {"coupling": jnp.asarray(case.flat.coupling), "bias": jnp.asarray(case.flat.bias)}
    updates, _ = adam.update(gradient, adam.init(parameters))
    expected = optax.apply_updates(parameters, updates)
    np.testing.assert_allclose(state.stack[0].intra[0], expected["coupling"], atol=2e-6)
    np.testing.assert_allclose(state.stack[0].biases[0], expected["bias"], atol=2e-6)
    np.testing.assert_allclose(metrics.objective, oracles.objective(case.flat, states, masses), rtol=1e-5)
    assert int(state.epoch) == 1


@pytest.mark.slow
def test_decay_pulls_weights_once_intra_layer_weights_twice_and_biases_not():
    machine = vpf_jax.init_machine(jax.random.key(0), (6, 5), intra=(1,))
    machine = dataclasses.replace(machine, biases=(jnp.ones(6), jnp.ones(5)))
    config = training(batch_size=8, learning_rate=TINY_STEP, weight_decay=0.5, epsilon=1e-9)
    state, _ = run(start((machine,), config), bits((8, 6)), config, epochs=1)
    (momentum,) = state.optimizer[0].mu
    # Adam's first momentum is 0.1 of the gradient.
    np.testing.assert_allclose(momentum.weights[0], 0.1 * 0.5 * machine.weights[0], atol=1e-7)
    np.testing.assert_allclose(momentum.intra[1], 0.1 * 2 * 0.5 * machine.intra[1], atol=1e-7)
    np.testing.assert_allclose(momentum.biases[1], 0, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("estep", ["epoch", "minibatch"])
def test_the_objective_counts_every_example_once(estep):
    case = make_case("visible", (5,), (0,), 2.0, 0)
    states = np.random.default_rng(2).integers(0, 2, (11, 5))
    config = training(batch_size=4, learning_rate=TINY_STEP, estep=estep)
    _, metrics = run(start((case.machine,), config), jnp.asarray(states, jnp.uint8), config, epochs=1)
    exact = oracles.objective(case.flat, states.astype(np.float64), np.full(11, 1 / 11))
    np.testing.assert_allclose(metrics.objective, exact, rtol=1e-5)


@pytest.mark.slow
def test_a_short_last_minibatch_counts_by_its_share_of_a_full_one():
    case = make_case("visible", (4,), (0,), 2.0, 3)
    states = np.random.default_rng(3).integers(0, 2, (5, 4)).astype(np.float64)
    config = training(batch_size=4, learning_rate=TINY_STEP, weight_decay=0.0, epsilon=1.0)
    state, _ = run(start((case.machine,), config), jnp.asarray(states, jnp.uint8), config, epochs=1)
    (momentum,) = state.optimizer[0].mu
    by_example = [oracles.expected_gradient(case.flat, states[[i]], np.ones(1)).bias for i in range(5)]

    def momentum_if_last_is(i):
        full = sum(g for j, g in enumerate(by_example) if j != i) / 4
        return 0.1 * (0.9 * full + by_example[i] / 4)

    distances = [np.abs(momentum.biases[0] - momentum_if_last_is(i)).max() for i in range(5)]
    assert min(distances) < 1e-6
    assert np.sort(distances)[1] > 1e-3


@pytest.mark.slow
def test_no_example_is_systematically_the_leftover():
    # One example differs from the others; its epochs as the leftover show in the momentum of its own bit.
    machine = vpf_jax.init_machine(jax.random.key(0), (2,))
    visible = jnp.asarray([[1, 0]] + [[0, 0]] * 2, jnp.uint8)
    config = training(batch_size=2, learning_rate=TINY_STEP, weight_decay=0.0, epsilon=1.0)
    seen = set()
    for seed in range(12):
        state, _ = run(start((machine,), config, seed), visible, config, epochs=1)
        seen.add(round(float(state.optimizer[0].mu[0].biases[0][0]), 4))
    assert len(seen) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "intra"), [((9,), (0,)), ((7, 5), (0,)), ((9, 7), (1,)), ((6, 5, 4), (1, 2)), ((37, 19), (0, 1))]
)
def test_intra_layer_weights_stay_exactly_symmetric_with_zero_diagonal(sizes, intra):
    stack = (vpf_jax.init_machine(jax.random.key(0), sizes, intra),)
    config = training(batch_size=7, learning_rate=0.02, epochs=30, max_weight=0.7, schedule="cosine")
    before = np.asarray(stack[0].intra[intra[0]])
    state, metrics = run(start(stack, config), bits((53, sizes[0])), config)
    for i in intra:
        matrix = np.asarray(state.stack[0].intra[i])
        np.testing.assert_array_equal(matrix, matrix.T)
        np.testing.assert_array_equal(np.diag(matrix), 0)
    assert np.abs(np.asarray(state.stack[0].intra[intra[0]]) - before).max() > 0.01
    assert np.isfinite(metrics.objective)


@pytest.mark.slow
def test_weights_stay_within_their_bound():
    stack = vpf_jax.init_stack(jax.random.key(0), (8, 6, 4), intra=True)
    config = training(batch_size=10, learning_rate=0.05, epochs=10)
    visible = bits((50, 8))
    free, _ = run(start(stack, config), visible, config)
    bounded_config = dataclasses.replace(config, max_weight=0.1)
    bounded, metrics = run(start(stack, bounded_config), visible, bounded_config)
    assert float(train.largest_weight(free.stack)) > 0.2
    assert float(train.largest_weight(bounded.stack)) <= np.float32(0.1)
    assert float(metrics.max_abs_weight) == float(train.largest_weight(bounded.stack))


@pytest.mark.slow
def test_cosine_schedule_ends_at_rest_and_the_constant_one_does_not():
    stack = vpf_jax.init_stack(jax.random.key(0), (8, 6))
    visible = bits((60, 8))

    def last_move(schedule):
        config = training(batch_size=10, learning_rate=0.01, epochs=20, schedule=schedule)
        before, _ = run(start(stack, config), visible, config, epochs=19)
        after, _ = train.train_epoch(copy_of(before), visible, config=config)
        return np.abs(after.stack[0].weights[0] - before.stack[0].weights[0]).max()

    assert last_move("cosine") < 0.05 * last_move("constant")


@pytest.mark.slow
@pytest.mark.parametrize("estep", ["epoch", "minibatch"])
@pytest.mark.parametrize("kind", ["rbm", "intra_stack", "joint", "joint_intra", "visible", "semi_restricted"])
def test_training_is_determined_by_its_key_and_lowers_the_objective(kind, estep):
    key = jax.random.key(0)
    stack = {
        "rbm": lambda: vpf_jax.init_stack(key, (8, 6)),
        "intra_stack": lambda: vpf_jax.init_stack(key, (8, 6, 4), intra=True),
        "joint": lambda: (vpf_jax.init_machine(key, (8, 6, 4)),),
        "joint_intra": lambda: (vpf_jax.init_machine(key, (8, 6, 4), intra=(1, 2)),),
        "visible": lambda: (vpf_jax.init_machine(key, (8,), intra=(0,)),),
        "semi_restricted": lambda: (vpf_jax.init_machine(key, (8, 6), intra=(0,)),),
    }[kind]()
    # Two patterns with a little noise.
    patterns = np.repeat([[1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0]], 25, axis=0)
    visible = jnp.asarray(patterns ^ (np.random.default_rng(0).random(patterns.shape) < 0.05), jnp.uint8)
    config = training(batch_size=10, learning_rate=0.01, epochs=25, estep=estep)
    first, at_start = run(start(stack, config), visible, config, epochs=1)
    once, at_end = run(first, visible, config, epochs=24)
    again, _ = run(start(stack, config), visible, config)
    other, _ = run(start(stack, config, seed=1), visible, config)
    for leaf, same, different in zip(*map(jax.tree.leaves, (once.stack, again.stack, other.stack)), strict=True):
        np.testing.assert_array_equal(leaf, same)
        assert np.any(np.asarray(leaf) != np.asarray(different))
    assert float(at_end.objective) < 0.9 * float(at_start.objective)


@pytest.mark.slow
def test_narrow_products_leave_the_parzen_score_within_the_spread_of_seeds():
    data = load_dataset("mnist_5k")
    visible = jnp.asarray(binarise(data.train.examples[:1000]))

    def score(seed, precision):
        init_key, train_key, sample_key = jax.random.split(jax.random.key(seed), 3)
        stack = vpf_jax.init_stack(init_key, (784, 48, 24), intra=True)
        config = training(epochs=15, precision=precision)
        state, metrics = run(train.init_state(train_key, stack, config), visible, config)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.stack))
        centres = vpf_jax.confabulate(sample_key, state.stack, 2000)
        return float(jnp.mean(vpf_jax.parzen_log_likelihood(centres, data.test.examples, 0.2))), float(
            metrics.objective
        )

    wide, narrow = (np.asarray([score(seed, precision) for seed in range(4)]) for precision in train.PRECISIONS)
    standard_errors = np.sqrt((wide.var(axis=0, ddof=1) + narrow.var(axis=0, ddof=1)) / 4)
    assert np.all(np.abs(narrow.mean(axis=0) - wide.mean(axis=0)) < 4 * standard_errors)
    assert np.any(wide != narrow)


@pytest.mark.slow
def test_minimum_probability_flow_finds_its_teacher():
    teacher = make_case("visible", (5,), (0,), 2.0, 7)
    rng = np.random.default_rng(0)
    num_examples = 20_000
    drawn = rng.choice(32, num_examples, p=oracles.probabilities(teacher.flat))
    visible = jnp.asarray(oracles.all_states(5)[drawn], jnp.uint8)
    config = training(batch_size=500, learning_rate=0.03, schedule="cosine", weight_decay=0.0, epsilon=1.0, epochs=30)
    stack = (vpf_jax.init_machine(jax.random.key(0), (5,), intra=(0,)),)
    state, _ = run(start(stack, config), visible, config)
    # Standard errors of the estimate are about sqrt(variance of one example's score / examples) ~ 5 / sqrt(20,000).
    np.testing.assert_allclose(state.stack[0].intra[0], teacher.flat.coupling, atol=5 * 5 / np.sqrt(num_examples))
    np.testing.assert_allclose(state.stack[0].biases[0], teacher.flat.bias, atol=5 * 5 / np.sqrt(num_examples))


@pytest.mark.slow
def test_one_compilation_serves_a_run_and_nothing_returns_to_the_host():
    stack = vpf_jax.init_stack(jax.random.key(0), (11, 6, 5), intra=True)
    config = training(batch_size=8, epochs=3)
    visible = bits((29, 11))
    state = start(stack, config)
    compiled_before = train._run_epoch._cache_size()
    for _ in range(3):
        given = state
        with jax.transfer_guard("disallow"):
            state, metrics = train.train_epoch(state, visible, config=config)
        assert given.stack[0].weights[0].is_deleted()
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.optimizer))
    assert train._run_epoch._cache_size() == compiled_before + 1
    assert float(metrics.objective) > 0
    # The caller's own stack is not what was donated.
    assert not stack[0].weights[0].is_deleted()


@pytest.mark.slow
def test_an_epoch_compiled_ahead_is_the_same_epoch():
    stack = vpf_jax.init_stack(jax.random.key(0), (11, 6, 5), intra=True)
    config = training(batch_size=8, epochs=3)
    visible = bits((29, 11))
    epoch = train.compile_epoch(start(stack, config), visible, config)
    given = start(stack, config)
    found, metrics = epoch(given, visible)
    assert given.stack[0].weights[0].is_deleted()
    expected, expected_metrics = train.train_epoch(start(stack, config), visible, config=config)
    # Wider vectors may add in another order.
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), found.stack, expected.stack)
    np.testing.assert_allclose(metrics.objective, expected_metrics.objective, rtol=1e-5)
    with pytest.raises(ValueError, match=r"shape \(29, 10\)"):
        train.compile_epoch(start(stack, config), visible[:, :10], config)


def test_a_non_finite_objective_is_an_error_that_says_what_to_try():
    config = training(batch_size=10, learning_rate=1000.0, epochs=5)
    state = start(vpf_jax.init_stack(jax.random.key(0), (8, 6)), config)
    largest = float(train.largest_weight(state.stack))

    def train_on(state, largest):
        for epoch in range(1, 6):
            state, metrics = train.train_epoch(state, bits((50, 8)), config=config)
            train.check_finite(metrics, epoch, largest)
            largest = float(metrics.max_abs_weight)

    with pytest.raises(train.NonFiniteObjectiveError, match=r"in epoch \d.*largest \|w\|.*learning rate.*max_weight"):
        train_on(state, largest)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs=0; it takes an integer of at least 1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0; it takes a positive finite number"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"epsilon": -1.0}, "epsilon=-1.0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1; it takes a finite number of at least 0"),
        ({"schedule": "linear"}, "schedule=linear; it takes one of"),
        ({"estep": "never"}, "estep=never; it takes one of"),
        ({"precision": "float16"}, "precision=float16; it takes one of"),
        ({"max_weight": 0.0}, "max_weight=0.0; it takes a positive finite number"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        training(**settings)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((50, 7), r"shape \(50, 7\).*\[batch, 8\]"),
        ((8,), r"shape \(8,\)"),
        ((0, 8), r"shape \(0, 8\)"),
        ((9, 8), "batch_size=10 with 9 examples"),
    ],
)
def test_data_that_do_not_fit_are_refused(shape, message):
    config = training(batch_size=10)
    state = start(vpf_jax.init_stack(jax.random.key(0), (8, 6)), config)
    with refused(ValueError, match=message):
        train.train_epoch(state, jnp.zeros(shape, jnp.uint8), config=config)
