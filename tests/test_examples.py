"""Examples with weights, missing entries and probabilities: which come, with which values, and what is learnt."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import make_case, training

import vpf_jax
from vpf_jax import examples, train
from vpf_jax.examples import Examples
from vpf_jax.sample.streams import stream_of

BITS = np.random.default_rng(0).integers(0, 2, (40, 4)).astype(np.uint8)
RBM = vpf_jax.init_machine(jax.random.key(0), (4, 3))


def order(weights, seed=0):
    weights = None if weights is None else jnp.asarray(weights, jnp.float32)
    values = jnp.zeros((40 if weights is None else len(weights), 1), jnp.uint8)
    return np.asarray(examples.ordered(stream_of(jax.random.key(seed)), Examples(values, weights)))


def values(given, machine=RBM, seed=0):
    """Of all examples, in the order in which they were given."""
    stream = stream_of(jax.random.key(seed))
    return np.asarray(examples.completed(stream, (machine,), given, jnp.arange(len(given.values))))


def learnt_means(given, learning_rate=0.1, epochs=60):
    """What units without couplings come to."""
    config = training(batch_size=10, learning_rate=learning_rate, weight_decay=0.0, epochs=epochs, schedule="cosine")
    state = train.init_state(
        jax.random.key(1), (vpf_jax.init_machine(jax.random.key(2), (given.values.shape[1],)),), config
    )
    for _ in range(epochs):
        state, _ = train.train_epoch(state, given, config=config)
    return np.asarray(jax.nn.sigmoid(state.stack[0].biases[0]))


def test_without_weights_each_example_comes_once_an_epoch():
    assert sorted(order(None)) == list(range(40))
    assert list(order(None)) != list(range(40))


def test_an_example_comes_as_often_as_its_weight_says():
    weights = np.random.default_rng(1).gamma(1.0, 1.0, 40)
    weights[[0, 7, 39]] = 0
    wanted = weights * 40 / weights.sum()
    given = Examples(jnp.zeros((40, 1), jnp.uint8), jnp.asarray(weights, jnp.float32))
    orders = jax.jit(jax.vmap(lambda key: examples.ordered(stream_of(key), given)))(
        jax.random.split(jax.random.key(0), 300)
    )
    counts = np.array([np.bincount(one, minlength=40) for one in np.asarray(orders)])
    assert (counts >= np.floor(wanted) - 1e-9).all()
    assert (counts <= np.ceil(wanted)).all()
    # A count is one of two neighbouring integers, so its variance is at most 1/4.
    assert np.abs(counts.mean(axis=0) - wanted).max() < 4 * 0.5 / np.sqrt(300)


def test_weights_that_are_alike_leave_each_example_once():
    assert sorted(order(np.full(1000, 0.3))) == list(range(1000))


def test_bits_are_drawn_from_probabilities_afresh():
    probabilities = np.tile([[0.0, 0.2, 0.7, 1.0]], (5000, 1)).astype(np.float32)
    drawn = values(Examples(probabilities, drawn=True))
    assert drawn.dtype == np.uint8
    assert np.abs(drawn.mean(axis=0) - probabilities[0]).max() < 4 * 0.5 / np.sqrt(5000)
    assert (drawn != values(Examples(probabilities, drawn=True), seed=1)).any()


@pytest.mark.parametrize("intra", [(), (0, 1)])
def test_missing_entries_follow_their_law_given_the_others(intra):
    case = make_case("layered", (3, 2), intra, 3.0, 3)
    seen = np.array([1, 0, 0])
    number = 8_000
    missing = np.tile([[False, True, True]], (number, 1))
    drawn = values(Examples(np.tile(seen.astype(np.uint8), (number, 1)), missing=missing), case.machine)
    assert (drawn[:, 0] == 1).all()
    states, law = case.all_states(), oracles.probabilities(case.flat)
    possible = states[:, 0] == 1
    of_pairs = np.bincount((2 * states[:, 1] + states[:, 2]).astype(int), weights=law * possible, minlength=4)
    counts = np.bincount(2 * drawn[:, 1].astype(int) + drawn[:, 2], minlength=4)
    # Ten sweeps forget the start of this machine; what is left is the scatter of the counts.
    np.testing.assert_allclose(counts / number, of_pairs / of_pairs.sum(), atol=4 * 0.5 / np.sqrt(number))


def test_values_alone_train_to_the_bits_of_their_array():
    config = training(batch_size=8, epochs=1)
    ends = []
    for given in (jnp.asarray(BITS), Examples(jnp.asarray(BITS))):
        state = train.init_state(jax.random.key(3), (RBM,), config)
        ends.append(train.train_epoch(state, given, config=config)[0].stack[0])
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_weighted_means_are_learnt():
    weights = np.where(BITS[:, 0] == 1, 3.0, 0.0) + 0.5
    found = learnt_means(Examples(jnp.asarray(BITS), weights=jnp.asarray(weights, jnp.float32)))
    np.testing.assert_allclose(found, np.average(BITS, axis=0, weights=weights), atol=0.03)


def test_what_is_missing_plays_no_role_in_what_is_learnt():
    rng = np.random.default_rng(4)
    truth = (rng.random((400, 3)) < [0.2, 0.5, 0.8]).astype(np.uint8)
    missing = rng.random(truth.shape) < 0.4
    found = learnt_means(Examples(jnp.asarray(np.where(missing, 0, truth)), missing=jnp.asarray(missing)), 0.05)
    observed = np.ma.masked_array(truth, missing).mean(axis=0)
    np.testing.assert_allclose(found, observed, atol=0.04)


def test_several_seeds_and_further_phases_take_examples():
    given = Examples(
        jnp.full((40, 4), 0.5), jnp.arange(40.0), jnp.asarray(np.random.default_rng(5).random((40, 4)) < 0.1), True
    )
    config = training("pcd", batch_size=7, epochs=1)
    keys = jax.random.split(jax.random.key(6), 2)
    states = jax.vmap(lambda key: train.init_state(key, (RBM,), config))(keys)
    one = train.init_state(keys[0], (RBM,), config)
    states, metrics = train.train_seeds_epoch(states, given, config=config, at_once=1)
    single, own = train.train_epoch(one, given, config=config)
    # A difference of energies of about 3, of which rounding is what is left.
    np.testing.assert_allclose(metrics.objective[0], own.objective, atol=1e-4)
    np.testing.assert_allclose(states.stack[0].weights[0][0], single.stack[0].weights[0], atol=1e-6)
    again = train.start_phase(single, given, config)
    assert again.carry[0][0].shape == (7, 4)


@pytest.mark.parametrize(
    ("values", "more", "told"),
    [
        (BITS, {"weights": np.ones(39)}, r"weights of shape \(39,\).*it takes \(40,\)"),
        (BITS, {"weights": -np.ones(40)}, "weights from -1 to -1; they are at least 0, and some above it"),
        (BITS, {"weights": np.zeros(40)}, "weights from 0 to 0; they are at least 0, and some above it"),
        (BITS, {"weights": np.full(40, np.nan)}, "weights that are not finite"),
        (BITS, {"missing": np.zeros((40, 3), bool)}, r"missing of shape \(40, 3\)"),
        (BITS, {"missing": np.zeros((40, 4))}, "missing of dtype float.*booleans"),
        (2 * BITS, {}, "zeros and ones"),
        (2.0 * BITS, {"drawn": True}, "probabilities"),
        (BITS[:, :3], {}, r"visible states of shape \(40, 3\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_examples_are_refused(values, more, told):
    config = training(batch_size=8, epochs=1)
    state = train.init_state(jax.random.key(7), (RBM,), config)
    with pytest.raises(ValueError, match=told):
        train.train_epoch(state, Examples(values, **more), config=config)
