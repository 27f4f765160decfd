"""Averages of the parameters and centring: against their definitions, and that the machine stays an ordinary one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from families import CASES, assert_same_machine, in_float64, make_case, training
from test_train import bits, copy_of, run, start

import vpf_jax
from vpf_jax import checkpoint, couplings, optimizers, train

RBM = make_case("rbm", (6, 4), (), 3.0, seed=5)


def offsets(machine):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.uniform(size=n)) for n in machine.sizes)


def fields_at(machine, mu):
    """What the units of each layer receive at states mu: from below, from above and from inside."""
    found = [jnp.zeros_like(m) for m in mu]
    for i, w in enumerate(machine.weights):
        found[i + 1] += w.T @ mu[i]
        found[i] += machine.downward[i] @ mu[i + 1]
    for i, l in enumerate(machine.intra):
        if l is not None:
            found[i] += l.T @ mu[i]
    return found


def shifted(machine, mu, sign):
    """With b + sum_i w_ij mu_i for the biases b (sign 1), the centred machine's, or back (sign -1)."""
    biases = tuple(b + sign * z for b, z in zip(machine.biases, fields_at(machine, mu), strict=True))
    return dataclasses.replace(machine, biases=biases)


def one_step(machine, gradient, mu, rate=0.1):
    """A step of plain gradient descent in the centred parameters, by `centred` at the given offsets."""
    transformation = optimizers.centred(optax.sgd(rate))
    state = transformation.init((machine,))._replace(offsets=(mu,), steps=jnp.asarray(10**6))
    states = (tuple(m[None] for m in mu),)
    updates, _ = transformation.update((gradient,), state, (machine,), states=states)
    return optax.apply_updates((machine,), updates)[0]


@pytest.mark.slow
@pytest.mark.parametrize("case", [CASES["semi_restricted-moderate"], CASES["intra_dbm-moderate"]], ids=repr)
@pytest.mark.parametrize("weights", ["symmetric", "directed"])
@in_float64
def test_a_centred_step_descends_in_the_parameters_of_the_centred_machine(case, weights):
    machine = case.machine if weights == "symmetric" else vpf_jax.untie(jax.random.key(0), case.machine)
    states, mu = case.layered(case.some_states(6)), offsets(machine)

    before = shifted(machine, mu, 1)
    # Autodiff of the objective as a function of w and b'.
    gradient = jax.grad(lambda m: vpf_jax.vpf_objective(shifted(m, mu, -1), states))(before)
    if weights == "symmetric":
        gradient = vpf_jax.tie_intra(gradient)
    else:
        gradient = dataclasses.replace(
            gradient, intra=tuple(None if g is None else couplings.hollow(g) for g in gradient.intra)
        )
    expected = shifted(jax.tree.map(lambda p, g: p - 0.1 * g, before, gradient), mu, -1)
    assert_same_machine(one_step(machine, vpf_jax.local_gradient(machine, states), mu), expected)


def test_offsets_are_running_means_that_begin_with_the_first_minibatch():
    config = training(rule="cd", batch_size=4, centred=True, epochs=1)
    visible = bits((400, 6)) & bits((400, 6), seed=1)
    state, _ = run(start((RBM.machine,), config), visible, config)
    mu = state.optimizer.offsets[0][0]
    # A running mean over about a hundred steps of four examples: its standard error is .02.
    np.testing.assert_allclose(mu, visible.mean(axis=0), atol=0.09)
    transformation = optimizers.centred(optax.sgd(0.1))
    first = (jnp.ones((2, 6), jnp.uint8), jnp.zeros((2, 4), jnp.uint8))
    stack = (RBM.machine,)
    _, once = transformation.update(stack, transformation.init(stack), stack, states=(first,))
    np.testing.assert_array_equal(once.offsets[0][0], 1)
    second = jax.tree.map(lambda x: 1 - x, first)
    _, twice = transformation.update(stack, once, stack, states=(second,))
    np.testing.assert_allclose(twice.offsets[0][1], 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["vpf", "cd", "pl"])
def test_a_centred_run_learns_and_goes_on_from_a_file(rule, tmp_path):
    patterns = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
    visible = jnp.asarray(np.tile(patterns, (50, 1)), jnp.uint8)
    config = training(
        rule=rule, batch_size=20, learning_rate=0.03, epochs=60, weight_decay=0.0, centred=True, averaging=0.9
    )
    state = start((make_case("rbm", (6, 4), (), 0.1, seed=1).machine,), config)
    half, _ = run(state, visible, config, epochs=30)
    checkpoint.save_checkpoint(tmp_path / "c", 30, half, {})
    _, restored, _ = checkpoint.restore_checkpoint(tmp_path / "c", half)
    # Who loads the run has what it has learnt.
    assert_same_machine(vpf_jax.load_stack(tmp_path / "c")[0], train.learnt(half)[0], 0)
    ends = [run(copy_of(one), visible, config, epochs=30)[0] for one in (half, restored)]
    assert_same_machine(ends[0].stack[0], ends[1].stack[0], 0)
    machine = train.learnt(ends[0])[0]
    rows = jnp.asarray(patterns, jnp.uint8)
    masses = jnp.exp(vpf_jax.rbm_log_likelihood(machine, rows, vpf_jax.log_partition_exact(machine)))
    # Uniform bits put 2 / 64 there.
    assert float(masses.sum()) > 0.5


@pytest.mark.parametrize("decay", [0.8, 1.0])
def test_an_average_follows_its_definition_and_leaves_the_run_alone(decay):
    config = training(rule="pl", batch_size=5, learning_rate=0.1, epochs=4, averaging=decay)
    plain = training(rule="pl", batch_size=5, learning_rate=0.1, epochs=4)
    visible = bits((5, 6))
    state, other = start((RBM.machine,), config), start((RBM.machine,), plain)
    expected = np.zeros((6, 4))
    for step in range(1, 5):
        before = np.asarray(state.stack[0].weights[0], np.float64)
        expected += max(1 - decay, 1 / step) * (before - expected)
        state, _ = run(state, visible, config, epochs=1)
        other, _ = run(other, visible, plain, epochs=1)
    np.testing.assert_allclose(train.learnt(state)[0].weights[0], expected, rtol=1e-5, atol=1e-6)
    assert_same_machine(state.stack[0], other.stack[0], 1e-6)
    # What goes on under other settings is what has been learnt.
    phase = train.start_phase(state, visible, plain)
    assert_same_machine(phase.stack[0], train.learnt(state)[0], 0)
    assert_same_machine(train.learnt(other)[0], other.stack[0], 0)


def test_several_seeds_are_averaged_and_centred_apart():
    config = training(rule="cd", batch_size=5, learning_rate=0.1, epochs=2, averaging=0.8, centred=True)
    visible = bits((10, 6))
    states = jax.vmap(lambda seed: start((RBM.machine,), config, seed))(jnp.arange(2))
    states, _ = train.train_seeds_epoch(states, visible, config=config)
    single, _ = run(start((RBM.machine,), config, 1), visible, config, epochs=1)
    together = jax.tree.map(lambda leaf: leaf[1], train.learnt(states)[0])
    assert_same_machine(together, train.learnt(single)[0], 1e-5)


def test_what_averages_and_centring_do_not_take():
    stack = (RBM.machine,)
    for wrapped, missing in (
        (optimizers.averaged(optax.sgd(0.1), 0.5), "params"),
        (optimizers.centred(optax.sgd(0.1)), "states"),
    ):
        with pytest.raises(ValueError, match=f"^got {missing}=None; it takes"):
            wrapped.update(stack, wrapped.init(stack))
    for decay in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="decay"):
            optimizers.averaged(optax.sgd(0.1), decay)
    with pytest.raises(ValueError, match="averaging"):
        optimizers.Adam(averaging=-0.1)


def test_weights_below_the_threshold_are_zero_and_others_come_nearer():
    machine = RBM.machine
    thresholds = [0.05, 0.2]
    transformation = optimizers.sparse(optax.sgd(0.1), lambda step: jnp.asarray(thresholds)[step])
    state = transformation.init((machine,))
    for least in thresholds:
        gradient = jax.tree.map(lambda a: jnp.cos(7 * a), machine)
        updates, state = transformation.update((gradient,), state, (machine,))
        (found,) = optax.apply_updates((machine,), updates)
        moved = np.asarray(machine.weights[0] - 0.1 * gradient.weights[0])
        wanted = np.where(np.abs(moved) <= least, 0, moved - least * np.sign(moved))
        np.testing.assert_allclose(found.weights[0], wanted, atol=1e-6)
        np.testing.assert_allclose(found.biases[1], machine.biases[1] - 0.1 * gradient.biases[1], atol=1e-6)
        machine = found
    assert np.mean(np.asarray(machine.weights[0]) == 0) > 0.05
    # A number is the schedule that is always the same.
    constant = optimizers.sparse(optax.sgd(0.1), 0.05)
    first = constant.update((gradient,), constant.init((machine,)), (machine,))[0]
    again = optimizers.sparse(optax.sgd(0.1), lambda step: 0.05)
    assert_same_machine(first[0], again.update((gradient,), again.init((machine,)), (machine,))[0][0])


def test_hidden_biases_follow_activity_alone():
    stack = vpf_jax.init_stack(jax.random.key(0), (5, 4, 3))
    states = tuple(
        tuple(jnp.asarray(np.random.default_rng(i).random((8, n)) < 0.4, jnp.uint8) for n in machine.sizes)
        for i, machine in enumerate(stack)
    )
    transformation = optimizers.homeostatic(optax.sgd(0.1), 0.25, 2.0)
    gradient = jax.tree.map(jnp.ones_like, stack)
    updates, _ = transformation.update(gradient, transformation.init(stack), stack, states=states)
    for update, layers in zip(updates, states, strict=True):
        np.testing.assert_allclose(update.biases[1], 2 * (0.25 - np.mean(layers[1], axis=0)), rtol=1e-6)
        np.testing.assert_allclose(update.biases[0], -0.1, rtol=1e-6)
        np.testing.assert_allclose(update.weights[0], -0.1, rtol=1e-6)


def test_probability_flow_from_fresh_states_does_not_move_hidden_biases():
    # Why there is `homeostatic`: the expected gradient by hidden biases is 0, by enumeration of the hidden states.
    machine = RBM.machine
    visible = jnp.asarray(np.random.default_rng(2).integers(0, 2, (1, 6)), jnp.float32)
    hidden = jnp.asarray(np.indices((2,) * 4).reshape(4, -1).T, jnp.float32)
    states = (jnp.repeat(visible, 16, axis=0), hidden)
    log_p = hidden @ machine.biases[1] + jnp.sum((visible @ machine.weights[0]) * hidden, axis=1)
    p = jax.nn.softmax(log_p)
    of_each = jax.vmap(lambda h: vpf_jax.local_gradient(machine, (visible, h[None])).biases[1])(states[1])
    assert np.abs(of_each).max() > 0.1
    np.testing.assert_allclose(p @ of_each, 0, atol=1e-5)


def test_what_sparse_and_homeostatic_need_is_said():
    stack = (RBM.machine,)
    with pytest.raises(vpf_jax.SettingError, match="threshold"):
        optimizers.sparse(optax.sgd(0.1), -0.1)
    for activity, rate, name in ((0.0, 1.0, "activity"), (1.0, 1.0, "activity"), (0.5, 0.0, "rate")):
        with pytest.raises(vpf_jax.SettingError, match=name):
            optimizers.homeostatic(optax.sgd(0.1), activity, rate)
    sparse, homeostatic = optimizers.sparse(optax.sgd(0.1), 0.1), optimizers.homeostatic(optax.sgd(0.1), 0.5, 1.0)
    with pytest.raises(vpf_jax.SettingError, match="the parameters, which are thresholded"):
        sparse.update(stack, sparse.init(stack))
    with pytest.raises(vpf_jax.SettingError, match="whose means the biases follow"):
        homeostatic.update(stack, homeostatic.init(stack), stack)
