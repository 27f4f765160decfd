"""Machines of every kind in training and in files: parameters of own energies learn, are centred, averaged and kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import assert_same_machine, in_float64, training
from jax import export
from test_optimizers import one_step, shifted
from unit_machines import EVERYTHING, LAYERS, make_units

import vpf_jax
from vpf_jax import checkpoint, couplings, models, train
from vpf_jax.loading import load_stack
from vpf_jax.units import BINARY, GAUSSIAN

ALL = make_units((EVERYTHING, EVERYTHING[::-1]), (0, 1), seed=5)
MIXED = make_units((("spin", "gaussian", "categorical(3)"), ("spin", "normal")), (0,), seed=6)


def visible_of(case, number=24, seed=0):
    """Draws of the units at their biases."""
    machine, n = case.machine, len(case.biases[0])
    uniforms = jnp.asarray(np.random.default_rng(seed).uniform(size=(number, n)), jnp.float32)
    unit = machine.layer_units[0]
    return unit.sample(jnp.broadcast_to(machine.biases[0], (number, n)), uniforms).astype(unit.dtype)


@pytest.mark.parametrize("layer", [*LAYERS.values(), EVERYTHING], ids="+".join)
def test_models_of_every_kind_come_back(layer, tmp_path):
    machine = make_units((layer, layer, ("binary",)), (0,)).machine
    vpf_jax.save_model(tmp_path / "model", (machine,))
    (found,) = vpf_jax.load_model(tmp_path / "model").stack
    assert_same_machine(found, machine, 0)
    assert found.layer_units == machine.layer_units
    (described,) = models.described_model(tmp_path / "model")["machines"]
    assert described["units"] == [unit.name for unit in machine.layer_units]


@pytest.mark.slow
def test_functions_of_a_machine_with_groups_are_stored_and_read_back():
    machine = MIXED.machine
    states = vpf_jax.stack.complete(jax.random.key(0), (machine,), visible_of(MIXED))[0]
    compiled = jax.jit(vpf_jax.local_gradient)
    read = export.deserialize(export.export(compiled)(machine, states).serialize()).call(machine, states)
    assert jax.tree.structure(read) == jax.tree.structure(machine)
    assert_same_machine(read, compiled(machine, states), 0)


@pytest.mark.slow
@in_float64
def test_a_centred_step_descends_in_the_parameters_of_the_centred_machine():
    machine = MIXED.machine
    states = vpf_jax.stack.complete(jax.random.key(0), (machine,), visible_of(MIXED))[0]
    mu = tuple(jnp.asarray(np.random.default_rng(i).uniform(size=n)) for i, n in enumerate(machine.sizes))
    before = shifted(machine, mu, 1)

    @jax.jit
    def descended(before):
        gradient = vpf_jax.tie_intra(jax.grad(lambda m: vpf_jax.vpf_objective(shifted(m, mu, -1), states))(before))
        return shifted(jax.tree.map(lambda p, g: p - 0.1 * g, before, gradient), mu, -1)

    step = jax.jit(lambda machine: one_step(machine, vpf_jax.local_gradient(machine, states), mu))
    found = step(machine)
    assert_same_machine(found, descended(before))
    assert not np.allclose(found.own[0], machine.own[0])
    # A unit is not joined to itself.
    np.testing.assert_array_equal(couplings.hollow(found.intra[0], machine.owners(0)), found.intra[0])


@pytest.mark.slow
def test_several_seeds_are_trained_at_once_and_kept(tmp_path):
    """Centred and averaged chains on real values: each seed as alone, precisions move, a checkpoint is the state."""
    config = training("cd", batch_size=8, learning_rate=0.05, epochs=2, averaging=0.8, centred=True)
    machine = vpf_jax.init_machine(jax.random.key(0), (4, 3), (0,), (GAUSSIAN, BINARY))
    visible = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4)) * [0.5, 1, 1, 2], jnp.float32)

    def start(seed):
        return train.init_state(jax.random.key(seed), (machine,), config)

    states = jax.vmap(start)(jnp.arange(2))
    states, _ = train.train_seeds_epoch(states, visible, config=config)
    single, _ = train.train_epoch(start(1), visible, config=config)
    together = jax.tree.map(lambda leaf: leaf[1], train.learnt(states)[0])
    assert_same_machine(together, train.learnt(single)[0], 1e-4)
    assert float(jnp.abs(single.stack[0].own[0]).min()) > 0.01
    np.testing.assert_array_equal(jnp.diagonal(single.stack[0].intra[0]), 0)
    checkpoint.save_checkpoint(tmp_path, 1, single, {})
    _, restored, _ = checkpoint.restore_checkpoint(tmp_path, start(0))
    assert_same_machine(restored.stack[0], single.stack[0], 0)
    assert_same_machine(load_stack(tmp_path)[0], train.learnt(single)[0], 0)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["vpf", "pcd"])
def test_precisions_are_learnt(rule):
    """Of independent normal data: within four standard errors, sqrt(2 / n), after 60 epochs."""
    deviations = np.array([0.5, 1.0, 2.0])
    visible = jnp.asarray(np.random.default_rng(0).normal(size=(400, 3)) * deviations, jnp.float32)
    machine = vpf_jax.init_machine(jax.random.key(0), (3, 1), units=(GAUSSIAN, BINARY))
    machine = dataclasses.replace(machine, weights=(jnp.zeros((3, 1)),))
    config = training(rule, batch_size=100, learning_rate=0.05, epochs=60, schedule="cosine", weight_decay=1.0)
    state = train.init_state(jax.random.key(1), (machine,), config)
    for _ in range(config.epochs):
        state, _ = train.train_epoch(state, visible, config=config)
    np.testing.assert_allclose(state.stack[0].own[0], -2 * np.log(deviations), atol=4 * np.sqrt(2 / 400))
