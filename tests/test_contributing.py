"""The worked examples of CONTRIBUTING.md, each a file outside the package: imported, trained with, saved, resumed."""

import importlib.util
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import assert_close, training

import vpf_jax
from vpf_jax import rules, train, units
from vpf_jax.checkpoint import restore_checkpoint, save_checkpoint
from vpf_jax.data import base as data_base
from vpf_jax.data import binarise, load_dataset

ROOT = Path(__file__).parents[1]
EXAMPLES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL))
TABLES = units.base._registered, units.base._families, rules.base._registered, data_base._sources
BITS = jnp.asarray(np.random.default_rng(0).uniform(size=(40, 6)) < [0.9, 0.9, 0.9, 0.1, 0.1, 0.5], jnp.uint8)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Imports the file of an example, once; what the files register is forgotten after the last test of this module."""
    folder = tmp_path_factory.mktemp("examples")
    registered = [(table, table.copy()) for table in TABLES]

    def imported(name):
        if f"example_{name}" not in sys.modules:
            file = folder / f"{name}.py"
            file.write_text(EXAMPLES[name])
            spec = importlib.util.spec_from_file_location(f"example_{name}", file)
            module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        return sys.modules[f"example_{name}"]

    yield imported
    for name in EXAMPLES:
        sys.modules.pop(f"example_{name}", None)
    for table, before in registered:
        table.clear()
        table.update(before)


def run(state, visible, config, epochs):
    for _ in range(epochs):
        state, metrics = train.train_epoch(state, visible, config=config)
    return state, float(metrics.objective)


def trained_and_resumed(stack, visible, config, folder):
    """The state after the epochs of the settings, which a saved and restored run reaches too; first, last objective."""
    start = train.init_state(jax.random.key(1), stack, config)
    half, first = run(start, visible, config, 1)
    save_checkpoint(folder, 1, half)
    whole, last = run(half, visible, config, config.epochs - 1)
    _, restored, _ = restore_checkpoint(folder, train.init_state(jax.random.key(7), stack, config))
    again, _ = run(restored, visible, config, config.epochs - 1)
    for one, other in zip(jax.tree.leaves(whole.stack), jax.tree.leaves(again.stack), strict=True):
        np.testing.assert_array_equal(one, other)
    return whole, first, last


def test_every_noun_has_an_example():
    assert set(EXAMPLES) == {"ternary", "one_to_one", "log_flow", "stripes", "stripes_table"}


@pytest.mark.slow
def test_a_unit_from_a_users_file(example, tmp_path):
    ternary = example("ternary").TERNARY
    assert units.get("ternary") is ternary
    stack = vpf_jax.init_stack(jax.random.key(0), (6, 4, 3), units=ternary)
    visible = BITS.astype(jnp.int8) - jnp.asarray(np.random.default_rng(1).integers(0, 2, BITS.shape), jnp.int8)
    config = training(batch_size=10, epochs=6, learning_rate=0.02)
    state, first, last = trained_and_resumed(stack, visible, config, tmp_path)
    assert last < first
    means = vpf_jax.confabulate(jax.random.key(2), state.stack, 50)
    assert -1 <= float(means.min()) < float(means.max()) <= 1
    with pytest.raises(ValueError, match="with values from 0 to 2; they are -1, 0 and 1"):
        train.train_epoch(state, 2 * BITS, config=config)


@pytest.mark.slow
def test_a_coupling_from_a_users_file(example, tmp_path):
    machine = example("one_to_one").MACHINE
    dense = vpf_jax.BoltzmannMachine(machine.biases, (jnp.diag(machine.weights[0].weights),), (None, None))
    states = BITS, BITS[::-1]
    for function in (vpf_jax.vpf_objective, lambda m, s: jax.vmap(vpf_jax.energy, in_axes=(None, 0))(m, s)):
        assert_close(function(machine, states), function(dense, states), 1e-5)
    found, expected = (vpf_jax.local_gradient(one, states) for one in (machine, dense))
    assert_close(found.weights[0].weights, jnp.diag(expected.weights[0]), 1e-5)
    for refusing in (
        lambda: vpf_jax.flip_estimate("pl", machine, BITS),
        lambda: vpf_jax.learn_from_events(jax.random.key(0), machine, states, 1.0, 0.1),
    ):
        with pytest.raises(ValueError, match=r"got a coupling of kind OneToOne; .* takes matrices of weights"):
            refusing()
    for rule in ("vpf", "pcd"):
        config = training(rule, batch_size=10, epochs=4, learning_rate=0.02, max_weight=0.25)
        state, _, _ = trained_and_resumed((machine,), BITS, config, tmp_path / rule)
        weights = state.stack[0].weights[0].weights
        assert weights.shape == (6,)
        assert float(jnp.abs(weights).max()) <= 0.25


@pytest.mark.slow
def test_a_rule_from_a_users_file(example, tmp_path):
    rule = example("log_flow").LogFlow(strength=0.5)
    assert rules.make("log_flow", strength=0.5) == rule
    stack = vpf_jax.init_stack(jax.random.key(0), (6, 4))
    config = train.TrainConfig(rule=rule, optimizer=train.Adam(learning_rate=0.02), batch_size=10, epochs=8)
    _, first, last = trained_and_resumed(stack, BITS, config, tmp_path)
    assert last < first
    with pytest.raises(vpf_jax.SettingError, match="got strength=-1; it takes a positive finite number"):
        rules.make("log_flow", strength=-1)
    with pytest.raises(vpf_jax.SettingError, match="got epsilon=1; it takes nothing with rule=log_flow"):
        rules.make("log_flow", epsilon=1)


@pytest.mark.slow
def test_a_source_from_a_users_file(example, tmp_path):
    example("stripes")
    data = load_dataset("stripes")
    visible = jnp.asarray(binarise(data.train.examples))
    assert visible.shape == (200, 36)
    stack = vpf_jax.init_stack(jax.random.key(0), (36, 8))
    _, first, last = trained_and_resumed(stack, visible, training(epochs=5), tmp_path)
    assert last < first


@pytest.mark.slow
def test_an_experiment_from_a_users_file(example, tmp_path, capsys):
    example("stripes")
    script = example("stripes_table")
    config = script.Config(dataset="stripes", num_seeds=2, epochs=3, workdir=str(tmp_path / "run"))
    summary = script.run(config)
    assert set(summary["rules"]) == {"vpf", "pcd"}
    assert all(len(scores) == 2 for scores in summary["rules"].values())
    assert "| vpf |" in (tmp_path / "run" / "table.md").read_text()
    assert script.run(config) == summary
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(vpf_jax.SettingError, match=r"got rules=.*; it takes some of .*vpf, .*each once"):
        script.Config(rules=("vpf", "vpf"))
