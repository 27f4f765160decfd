"""Directed machines: what they share with symmetric ones, their rule, their training, and what they are refused.

Fields and rates are checked against a flat coupling matrix that is not symmetric (`oracles.directed_rates`), gradients
against its finite differences.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import CASES, assert_close, assert_same_machine, each_case, in_float64, joined, training

import vpf_jax
from vpf_jax import (
    ais_log_partition,
    alignment,
    confabulate,
    contrastive_divergence,
    directed_gradient,
    energy,
    flip_estimate,
    flip_rates,
    gibbs_sweep,
    init_machine,
    init_stack,
    local_gradient,
    pseudo_log_likelihood,
    reconstruct,
    untie,
    untie_stack,
    vpf_objective,
)
from vpf_jax.checkpoint import CheckpointMismatchError, restore_checkpoint, save_checkpoint
from vpf_jax.train import init_state, largest_weight, train_epoch


def unequal(case, seed=0):
    """A directed machine of a case's shape, backward and intra-layer weights unrelated to the forward ones."""
    rng = np.random.default_rng(seed)
    machine = untie(None, case.machine)
    return dataclasses.replace(
        machine,
        backward=tuple(jnp.asarray(rng.normal(size=w.shape), w.dtype) for w in machine.weights),
        intra=tuple(
            None if l is None else jnp.asarray(rng.normal(size=l.shape) * (1 - np.eye(len(l))), l.dtype)
            for l in machine.intra
        ),
    )


def coupling_of(machine):
    """Entry (i, j): the synapse from i to j."""
    flat = oracles.flatten(machine.biases, machine.weights, machine.intra).coupling
    ends = np.cumsum(machine.sizes)
    starts = ends - machine.sizes
    for i, backward in enumerate(machine.backward):
        flat[starts[i + 1] : ends[i + 1], starts[i] : ends[i]] = np.asarray(backward).T
    return flat


def flow(machine, states):
    bias = np.concatenate([np.asarray(b) for b in machine.biases])
    return oracles.directed_rates(coupling_of(machine), bias, states).sum(axis=1).mean()


@each_case()
@in_float64
def test_flip_rates_follow_each_synapse_s_own_weight(case):
    machine, states = unequal(case), case.some_states(8)
    found = jax.vmap(flip_rates, in_axes=(None, 0))(machine, case.layered(states))
    bias = np.concatenate([np.asarray(b) for b in machine.biases])
    assert_close(joined(found), oracles.directed_rates(coupling_of(machine), bias, states))
    assert_close(vpf_objective(machine, case.layered(states)), flow(machine, states))


@pytest.mark.slow
@each_case()
@in_float64
def test_the_gradient_is_that_of_every_synapse_by_itself(case):
    machine, states = unequal(case), case.layered(case.some_states(8))
    found = local_gradient(machine, states)
    automatic = jax.grad(vpf_objective)(machine, states)
    automatic = dataclasses.replace(
        automatic, intra=tuple(None if g is None else g * (1 - np.eye(len(g))) for g in automatic.intra)
    )
    assert_same_machine(found, automatic)
    halves = directed_gradient(machine, states)
    assert_same_machine(found, vpf_jax.BoltzmannMachine(halves.biases, halves.forward, halves.intra, halves.backward))


@in_float64
def test_the_gradient_is_the_finite_difference_of_the_flow():
    case = CASES["intra_dbm-moderate"]
    machine, states = unequal(case), case.some_states(8)
    found = local_gradient(machine, case.layered(states))
    step = 1e-5
    for name in ("weights", "backward", "intra"):
        block = getattr(machine, name)[1]

        def shifted(change, name=name, block=block):
            blocks = list(getattr(machine, name))
            blocks[1] = block.at[0, 1].add(change)
            return flow(dataclasses.replace(machine, **{name: tuple(blocks)}), states)

        expected = (shifted(step) - shifted(-step)) / (2 * step)
        np.testing.assert_allclose(getattr(found, name)[1][0, 1], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
@each_case()
def test_untied_with_equal_weights_everything_is_as_before(case):
    state = tuple(x[0] for x in case.layered(case.some_states(1)))
    machine = untie(None, case.machine)
    for function in (flip_rates, lambda m, x: gibbs_sweep(jax.random.key(1), m, x)):
        for one, other in zip(function(machine, state), function(case.machine, state), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)
    states = case.layered(case.some_states(8))
    both, tied = local_gradient(machine, states), local_gradient(case.machine, states)
    for f, b, w in zip(both.weights, both.backward, tied.weights, strict=True):
        assert_close(f + b, w, 1e-5)


@pytest.mark.slow
@in_float64
def test_a_fresh_exact_e_step_teaches_the_forward_weights_nothing():
    """Flips of hidden units that follow p(h | x) balance out; the forward half is theirs alone."""
    case = CASES["rbm-moderate"]
    machine = unequal(case)
    visible, hidden = oracles.all_states(case.sizes[0]), oracles.all_states(case.sizes[1])
    field = visible @ np.asarray(machine.weights[0]) + np.asarray(machine.biases[1])
    on = 1 / (1 + np.exp(-field))
    posterior = np.prod(np.where(hidden[None] == 1, on[:, None], 1 - on[:, None]), axis=2)
    masses = (np.random.default_rng(1).dirichlet(np.ones(len(visible)))[:, None] * posterior).ravel()
    states = np.repeat(visible, len(hidden), axis=0), np.tile(hidden, (len(visible), 1))
    batches_of_one = tuple(jnp.asarray(x)[:, None] for x in states)
    halves = jax.vmap(directed_gradient, in_axes=(None, 0))(machine, batches_of_one)
    expected = jax.tree.map(lambda leaf: jnp.tensordot(jnp.asarray(masses), leaf, axes=1), halves)
    np.testing.assert_allclose(expected.forward[0], 0, atol=1e-12)
    np.testing.assert_allclose(expected.biases[1], 0, atol=1e-12)
    assert np.abs(expected.backward[0]).max() > 0.01


@pytest.mark.slow
def test_passes_up_use_the_forward_and_passes_down_the_backward_weights():
    stack = untie_stack(None, init_stack(jax.random.key(0), (6, 5, 4)))
    cut_off = tuple(
        dataclasses.replace(
            m, backward=(jnp.zeros_like(m.backward[0]),), biases=(jnp.full_like(m.biases[0], 2.0), m.biases[1])
        )
        for m in stack
    )
    means = confabulate(jax.random.key(1), cut_off, 5, steps=3)
    np.testing.assert_allclose(means, jax.nn.sigmoid(2.0), rtol=1e-6)
    visible, mask = jnp.ones((3, 6), jnp.uint8), jnp.arange(6) < 2
    repaired = reconstruct(jax.random.key(2), cut_off[0], visible, mask)
    np.testing.assert_allclose(repaired[:, :2], jax.nn.sigmoid(2.0), rtol=1e-6)
    strong = (dataclasses.replace(stack[0], weights=(jnp.full((6, 5), 50.0),)), stack[1])
    _, upper = vpf_jax.sample_hidden(jax.random.key(3), strong, visible)
    np.testing.assert_array_equal(upper[0], 1)


@pytest.mark.slow
def test_the_start_is_equal_or_drawn_afresh():
    machine = init_machine(jax.random.key(0), (300, 200))
    (equal,) = alignment(untie(None, machine))
    (drawn,) = alignment(untie(jax.random.key(1), machine))
    np.testing.assert_allclose(equal, 1, rtol=1e-6)
    # The cosine of two independent draws of 60,000 numbers has deviation 1 / sqrt(60,000).
    assert abs(float(drawn)) < 4 / np.sqrt(60_000)
    np.testing.assert_allclose(alignment(machine)[0], 1, rtol=1e-6)
    fresh = untie_stack(jax.random.key(1), init_stack(jax.random.key(0), (30, 20, 20)))
    assert np.abs(fresh[0].backward[0][:20] - fresh[1].backward[0]).max() > 0
    forward, backward = np.asarray(fresh[0].weights[0]), np.asarray(fresh[0].backward[0])
    cosine = (forward * backward).sum() / np.sqrt((forward**2).sum() * (backward**2).sum())
    np.testing.assert_allclose(alignment(fresh[0])[0], cosine, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("intra", [False, True])
@pytest.mark.parametrize("estep", ["epoch", "minibatch"])
def test_each_matrix_learns_by_its_own_half(intra, estep):
    """The first step of Adam moves every entry by the learning rate against the sign of its gradient."""
    stack = untie_stack(jax.random.key(1), init_stack(jax.random.key(0), (12, 8, 6), intra))
    visible = jnp.asarray(np.random.default_rng(0).integers(0, 2, (40, 12)), jnp.uint8)
    config = training(epochs=1, estep=estep, weight_decay=0.0)
    before = jax.tree.map(np.asarray, stack)
    state, metrics = train_epoch(init_state(jax.random.key(2), stack, config), visible, config=config)
    assert np.isfinite(metrics.objective)
    for old, new in zip(before, state.stack, strict=True):
        for name in ("weights", "backward"):
            moved = np.abs(np.asarray(getattr(new, name)[0]) - getattr(old, name)[0])
            assert np.quantile(moved, 0.9) == pytest.approx(1e-3, rel=1e-2)
        if intra:
            moved = np.asarray(new.intra[1]) - old.intra[1]
            assert not np.diagonal(moved).any()
            assert np.abs(moved - moved.T).max() > 1e-3


@pytest.mark.slow
def test_decay_and_bound_reach_the_backward_weights():
    stack = untie_stack(None, init_stack(jax.random.key(0), (6, 5), True))
    (machine,) = jax.tree.map(lambda p: 10 * jnp.ones_like(p), stack)
    apart = 1 - np.eye(5)
    stack = (dataclasses.replace(machine, intra=(None, machine.intra[1] * apart)),)
    visible = jnp.zeros((40, 6), jnp.uint8)
    config = training(epochs=1, weight_decay=1e3, max_weight=9.5, learning_rate=0.1)
    state, metrics = train_epoch(init_state(jax.random.key(2), stack, config), visible, config=config)
    for block in (state.stack[0].weights[0], state.stack[0].backward[0]):
        np.testing.assert_allclose(block, 9.5)
    np.testing.assert_allclose(state.stack[0].intra[1], 9.5 * apart)
    assert float(metrics.max_abs_weight) == 9.5
    larger = dataclasses.replace(stack[0], backward=(stack[0].backward[0] * 3,))
    assert float(largest_weight((larger,))) == 30


def test_a_directed_run_is_saved_and_restored(tmp_path):
    stack = untie_stack(jax.random.key(1), init_stack(jax.random.key(0), (6, 5)))
    save_checkpoint(tmp_path, 3, init_state(jax.random.key(2), stack, training()))
    other = untie_stack(jax.random.key(4), init_stack(jax.random.key(3), (6, 5)))
    found = restore_checkpoint(tmp_path, init_state(jax.random.key(5), other, training()))
    assert found is not None
    assert_same_machine(found[1].stack[0], stack[0])
    symmetric = init_state(jax.random.key(5), init_stack(jax.random.key(3), (6, 5)), training())
    with pytest.raises(CheckpointMismatchError, match=r"holds stack/0/backward/0 .*, where no stack/0/backward/0 is"):
        restore_checkpoint(tmp_path, symmetric)


def test_what_was_saved_before_there_were_directed_machines_is_read(tmp_path):
    """Version 0.3 stored a machine by the names of its three fields."""
    machine = CASES["intra_dbm-moderate"].machine
    save_checkpoint(tmp_path, 3, {"stack": [{n: getattr(machine, n) for n in ("biases", "weights", "intra")}]})
    found = restore_checkpoint(tmp_path, {"stack": (jax.tree.map(jnp.zeros_like, machine),)})
    assert found is not None
    assert_same_machine(found[1]["stack"][0], machine)


RBM = untie(None, CASES["rbm-moderate"].machine)
STATES = CASES["rbm-moderate"].layered(CASES["rbm-moderate"].some_states(4))


@pytest.mark.parametrize(
    "call",
    [
        lambda: energy(RBM, tuple(x[0] for x in STATES)),
        lambda: vpf_jax.free_energy(RBM, STATES[0][0]),
        lambda: vpf_jax.log_partition_exact(RBM),
        lambda: ais_log_partition(jax.random.key(0), RBM, 2, 3),
        lambda: contrastive_divergence(jax.random.key(0), RBM, STATES),
        lambda: flip_estimate("pl", RBM, STATES[0]),
        lambda: pseudo_log_likelihood(jax.random.key(0), RBM, STATES[0]),
        lambda: vpf_jax.rbm_log_likelihood(RBM, STATES[0], 0.0),
        lambda: init_state(jax.random.key(0), (RBM,), training(rule="pcd")),
        lambda: init_state(jax.random.key(0), (RBM,), training(expectation="exact")),
        lambda: untie(None, RBM),
    ],
)
def test_what_takes_symmetric_weights_says_so(call):
    with pytest.raises(ValueError, match=r"got a directed machine.*takes symmetric weights"):
        call()
