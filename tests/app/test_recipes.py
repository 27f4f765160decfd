"""Recipes: training that resumes and is shared, folders by digest, models, what is watched."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vpf_jax
from vpf_jax import rules
from vpf_jax.app import loop, recipes
from vpf_jax.app.folder import Stopped, UsageError, locked
from vpf_jax.app.recipes import Recipe, Workshop
from vpf_jax.app.runs import Images
from vpf_jax.checks import SettingError
from vpf_jax.data import Part, load_dataset
from vpf_jax.settings import described
from vpf_jax.train import TrainConfig

RECIPE = Recipe(
    "two phases", (5,), (TrainConfig(epochs=3, batch_size=40), TrainConfig(rules.PCD(), epochs=2, batch_size=40))
)


def small_images():
    data = load_dataset("mnist_5k")
    some = Part(data.train.examples[:200], data.train.labels[:200])
    return Images(dataclasses.replace(data, train=some))


def train_small(folder, seeds, stops=(), at_once=1):
    return Workshop(folder, small_images(), seeds, at_once, 10).run(RECIPE, stops)


@pytest.mark.slow
def test_a_stopped_recipe_resumes_to_the_same_machines(tmp_path, monkeypatch):
    straight = train_small(tmp_path / "straight", (0, 1))
    assert straight.seeds == (0, 1)
    assert {name: curve.shape for name, curve in straight.curves.items()}["objective"] == (5, 2)

    stops = []
    watch = recipes._watch_seeds

    def watch_and_stop(*args):
        stops.append(15)
        return watch(*args)

    # A signal that arrives while the first epoch is being measured.
    monkeypatch.setattr(recipes, "_watch_seeds", watch_and_stop)
    with pytest.raises(Stopped, match="two phases, epoch 1 of 5 is saved"):
        train_small(tmp_path / "stopped", (0, 1), stops)
    monkeypatch.undo()
    resumed = train_small(tmp_path / "stopped", (0, 1))
    for one, other in zip(jax.tree.leaves(straight.stacks), jax.tree.leaves(resumed.stacks), strict=True):
        np.testing.assert_array_equal(one, other)
    for name, curve in straight.curves.items():
        np.testing.assert_array_equal(resumed.curves[name], curve)


@pytest.mark.slow
def test_a_recipe_is_trained_by_one_process_and_its_stacks_are_loaded_by_its_folder(tmp_path, monkeypatch):
    trained = train_small(tmp_path, (0, 1))
    (folder,) = tmp_path.iterdir()
    for index in (0, 1):
        loaded = vpf_jax.load_stack(folder, seed_index=index)
        for one, other in zip(jax.tree.leaves(trained.stack(index)), jax.tree.leaves(loaded), strict=True):
            np.testing.assert_array_equal(one, other)
    refused = []

    def other():
        try:
            train_small(tmp_path, (0, 1))
        except UsageError as error:
            refused.append(str(error))

    monkeypatch.setattr(loop, "WAIT", 0)
    with locked(folder):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1
    assert f"{folder} is in use by process" in refused[0]
    train_small(tmp_path, (0, 1))


@pytest.mark.slow
def test_seeds_trained_at_once_equal_single_runs(tmp_path):
    together = train_small(tmp_path / "together", (3, 4), at_once=2)
    for index, seed in enumerate((3, 4)):
        single = train_small(tmp_path / f"single-{seed}", (seed,))
        for one, other in zip(jax.tree.leaves(single.stack(0)), jax.tree.leaves(together.stack(index)), strict=True):
            np.testing.assert_allclose(other, one, atol=1e-5)


def test_other_settings_go_to_another_folder_and_another_version_to_the_same(monkeypatch):
    def name(recipe, **more):
        return recipes.folder_name(recipe.title, described(recipe) | more)

    other = dataclasses.replace(RECIPE, phases=(TrainConfig(epochs=4), RECIPE.phases[1]))
    rule = dataclasses.replace(RECIPE, phases=(TrainConfig(rules.VPF("minibatch"), epochs=3), RECIPE.phases[1]))
    names = {name(RECIPE), name(RECIPE, dataset="mnist"), name(RECIPE, seeds=[0]), name(other), name(rule)}
    assert len(names) == 5
    assert all(found.startswith("two-phases-") for found in names)
    monkeypatch.setattr(vpf_jax, "__version__", "99.0")
    assert name(RECIPE) in names
    monkeypatch.setattr(recipes, "FORMAT", recipes.FORMAT + 1)
    assert name(RECIPE) not in names


def test_machines_too_large_for_memory_are_refused():
    recipes.check_recipe(RECIPE, 784)
    for hidden, name in (((10**7,), "hidden"), ((5, 10**11), "deep_hidden")):
        with pytest.raises(SettingError, match=f"got {name}=.* GiB of memory"):
            recipes.check_recipe(dataclasses.replace(RECIPE, hidden=hidden), 784, 10, name)


@pytest.mark.slow
def test_alignment_begins_before_training(tmp_path):
    recipe = Recipe("directed", (5,), (TrainConfig(epochs=2),), backward_start="drawn")
    trained = Workshop(tmp_path, small_images(), (0, 1), 1, 10).run(recipe, [])
    curve = trained.alignment()
    assert curve.shape == (3, 2)
    for index, seed in enumerate((0, 1)):
        stack = recipe.initial_state(seed, 784).stack
        np.testing.assert_allclose(curve[0, index], vpf_jax.alignment(stack[0])[0], rtol=1e-5)
        np.testing.assert_allclose(curve[-1, index], vpf_jax.alignment(trained.stack(index)[0])[0], rtol=1e-5)
    tied = trained._replace(recipe=RECIPE, curves={})
    np.testing.assert_array_equal(tied.alignment(), 1)


def test_models_are_drawn_as_their_recipe_says():
    def stack(**changed):
        return dataclasses.replace(RECIPE, hidden=(5, 4), **changed).initial_state(3, 6).stack

    assert [machine.sizes for machine in stack()] == [(6, 5), (5, 4)]
    assert [machine.sizes for machine in stack(joint=True)] == [(6, 5, 4)]
    assert all(machine.intra[1] is not None for machine in stack(intra=True))
    (joint,) = stack(joint=True, intra=True)
    assert [block is not None for block in joint.intra] == [False, True, True]
    flow = {"phases": (TrainConfig(),)}
    equal, drawn = (stack(backward_start=start, **flow)[0] for start in ("equal", "drawn"))
    np.testing.assert_array_equal(equal.backward[0], equal.weights[0])
    assert np.abs(drawn.backward[0] - drawn.weights[0]).max() > 0


def test_visible_biases_start_at_zero_or_at_the_datas_means():
    means = jnp.array([0.1, 0.2, 0.5, 0.7, 0.001, 0.999])
    recipe = dataclasses.replace(RECIPE, visible_biases="data")
    found = recipe.initial_states((0, 1), 6, means).stack[0].biases[0]
    # Means that are nearly 0 or 1 are moved away from them.
    expected = np.clip(means, 0.01, 0.99)
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), np.stack([expected, expected]), rtol=1e-5)
    np.testing.assert_array_equal(RECIPE.initial_state(0, 6, means).stack[0].biases[0], 0)
    with pytest.raises(SettingError, match="got means=None; it takes those of the data"):
        recipe.initial_state(0, 6)


def test_only_what_differs_from_the_defaults_names_a_folder():
    told = described(RECIPE, changed=True)
    first, second = told.pop("phases")
    assert told == {"title": "two phases", "hidden": [5]}
    assert first == {"epochs": 3}
    assert second == {"rule": {"kind": "pcd"}, "epochs": 2}


def test_watching_draws_by_seed_and_epoch():
    stack = RECIPE.initial_state(0, 784).stack
    visible = small_images().train.bits

    def watched(seed, epoch):
        return float(recipes.watch(np.uint32(seed), epoch, stack, visible)["pseudo_log_likelihood"])

    assert len({watched(seed, epoch) for seed in (0, 1) for epoch in (1, 2)}) == 4
    assert watched(1, 2) == watched(1, 2)


def test_an_optimizer_that_no_file_can_describe_is_refused():
    with pytest.raises(SettingError, match=r"got optimizer=.*; it takes settings such as train.Adam\(\)"):
        Recipe("bare", (5,), (TrainConfig(optimizer=optax.sgd(0.1)),))
