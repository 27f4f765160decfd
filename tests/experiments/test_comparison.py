"""The scripts that compare rules, at quick settings: what they write, resuming, shared machines, wrong input, help."""

import dataclasses
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest
from families import training

import vpf_jax
from experiments import comparison, directed, features, repair
from experiments import likelihood_table as likelihood
from experiments import mnist_equilibrium as equilibrium_propagation
from experiments import mnist_target as target_propagation
from experiments import planted_synapses as binary_synapses
from experiments import repair_table as reconstruction
from experiments import spike_timing as stdp
from experiments import systems as compare
from vpf_jax.app import runs
from vpf_jax.app.folder import Stopped, UsageError, locked, stop_requests
from vpf_jax.data import Dataset, Part, load_dataset

ROOT = Path(__file__).parents[2]
SCRIPTS = {
    "reconstruction": reconstruction,
    "likelihood": likelihood,
    "features": features,
    "directed": directed,
    "stdp": stdp,
    "compare": compare,
}
NEIGHBOURS = {
    "target_propagation": target_propagation,
    "equilibrium_propagation": equilibrium_propagation,
    "binary_synapses": binary_synapses,
}


def quick_flags(script):
    """The quick setting that the script's own docstring gives, but for its folder."""
    command = re.search(r"^    (python -m .*--workdir=runs/quick)$", script.__doc__, re.DOTALL | re.MULTILINE)[1]
    *_, quick = command.split("python -m ")
    return [word for word in quick.replace("\\", " ").split()[1:] if not word.startswith("--workdir")]


def start(name, *arguments):
    command = [sys.executable, "-m", f"experiments.{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module", params=SCRIPTS)
def quick(request, tmp_path_factory):
    """A quick run of each script as a command."""
    workdir = tmp_path_factory.mktemp("quick") / request.param
    flags = [*quick_flags(SCRIPTS[request.param]), f"--workdir={workdir}"]
    return request.param, workdir, flags, start(request.param, *flags)


@pytest.mark.slow
def test_the_quick_setting_writes_its_table_and_summary(quick):
    name, workdir, _, ended = quick
    assert ended.returncode == 0, ended.stderr
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["seeds"] == [0, 1]
    table = (workdir / "table.md").read_text()
    assert "+-" in table
    assert "nan" not in table
    assert table in ended.stdout
    if name == "reconstruction":
        assert set(summary["rules"]) == set(comparison.RULES)
        for row in summary["rules"].values():
            for protocol in ("paper", "clamped"):
                assert {side: len(found) for side, found in row[protocol].items()} == dict.fromkeys(
                    ("top", "bottom", "left", "right"), 2
                )
        assert table.count("no machine") == 2 * len(summary["guesses"]) == 6
        assert matplotlib.image.imread(workdir / "reconstructions.png").shape[0] > 300
    if name == "likelihood":
        assert set(summary["rbms"]) == {"vpf", "pcd1"}
        for row in summary["rbms"].values():
            assert all(run["log_likelihood"] < 0 for run in row["runs"])
        for row in summary["stacks"].values():
            assert all(run["bound"] < 0 for run in row["runs"])
            assert all(len(run["samplers"]) > 5 for run in row["runs"])
        assert summary["independent_pixels"] < 0
        assert len(summary["parzen_real_data"]) == 2
    if name == "directed":
        assert set(summary["variants"]) == set(comparison.DIRECTED_TITLES)
        for variant, row in summary["variants"].items():
            tied = variant.startswith("tied")
            assert all((abs(cosine - 1) < 1e-5) == tied for cosine in row["alignment"])
            assert all(error > 0 for error in row["clamped"]["left"])
        assert (workdir / "alignment.png").exists()
    if name == "compare":
        assert set(summary["systems"]) == set(compare.TITLES)
        for system, row in summary["systems"].items():
            generates = system != "equilibrium_propagation"
            assert all((one["parzen"] is not None) == generates for one in row["runs"])
            assert all((one["repair"] is not None) == (generates and "dbm" not in system) for one in row["runs"])
            assert all(0 < one["test_error"] < 0.95 for one in row["runs"])
        # One training, read in two ways.
        signs, means = (summary["systems"][name] for name in ("binary_synapses", "binary_synapses_means"))
        assert signs["train_seconds"] == means["train_seconds"]
        assert all(a["repair"] != b["repair"] for a, b in zip(signs["runs"], means["runs"], strict=True))
        assert all(rule in table for rule in compare.LOCALITY)
        assert {p.name for p in workdir.glob("*.png")} == {"samples.png", "repaired.png"}
    if name == "stdp":
        assert summary["max_abs_z"] < 4
        assert summary["later_change_max_abs_z"] < 4
        assert summary["num_bins"] == len(summary["bins"]["mean"]) == 20
        assert summary["num_trials"] == 200_000
        # Four epochs recall little: better than coins is all that a short run can be asked.
        assert summary["recall_error"] < 0.5
        assert {p.name for p in workdir.glob("*.png")} == {"stdp.png", "raster.png", "alignment.png"}
    if name == "features":
        pictures = {p.name for p in workdir.glob("*.png")}
        assert pictures == {
            *(f"{curve}.png" for curve in features.CURVES),
            "activations.png",
            "filters-36.png",
            "filters-64.png",
        }
        assert all(0.3 < accuracy < 1 for row in summary["hidden"].values() for accuracy in row["probe_accuracy"])


@pytest.mark.slow
def test_a_finished_run_says_so(quick):
    name, workdir, flags, ended = quick
    assert ended.returncode == 0, ended.stderr
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file() and p.name != "config.json"}
    again = start(name, *flags)
    assert again.returncode == 0
    assert "finished already" in again.stdout
    assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.mark.slow
def test_trained_machines_are_shared_and_a_lost_table_is_made_again(quick, tmp_path):
    name, workdir, flags, ended = quick
    assert ended.returncode == 0, ended.stderr
    shared = [*flags[:-1], f"--models={workdir / 'models'}", f"--workdir={tmp_path / 'other'}"]
    again = start(name, *shared)
    assert again.returncode == 0, again.stderr
    assert not (tmp_path / "other" / "models").exists()
    assert (tmp_path / "other" / "table.md").read_text() == (workdir / "table.md").read_text()


RECIPE = comparison.Recipe(
    "two phases",
    (5,),
    (training(epochs=3, batch_size=40), training(rule="pcd", epochs=2, batch_size=40)),
)


def small_data():
    data = load_dataset("mnist_5k")
    some = Part(data.train.images[:200], data.train.labels[:200])
    return dataclasses.replace(data, train=some)


def train_small(folder, seeds, stops=(), at_once=1):
    return comparison.train_recipe(folder, RECIPE, small_data(), seeds, stops, at_once=at_once, checkpoint_every=10)


def test_a_stopped_recipe_resumes_to_the_same_machines(tmp_path, monkeypatch):
    straight = train_small(tmp_path / "straight", (0, 1))
    assert straight.num_seeds == 2
    assert {name: curve.shape for name, curve in straight.curves.items()}["objective"] == (5, 2)

    stops = []
    watch = comparison._watch

    def watch_and_stop(key, stacks, visible):
        stops.append(15)
        return watch(key, stacks, visible)

    # A signal that arrives while the first epoch is being measured.
    monkeypatch.setattr(comparison, "_watch", watch_and_stop)
    with pytest.raises(Stopped, match="two phases, epoch 1 of 5, is saved"):
        train_small(tmp_path / "stopped", (0, 1), stops)
    monkeypatch.undo()
    resumed = train_small(tmp_path / "stopped", (0, 1))
    for one, other in zip(jax.tree.leaves(straight.stacks), jax.tree.leaves(resumed.stacks), strict=True):
        np.testing.assert_array_equal(one, other)
    for name, curve in straight.curves.items():
        np.testing.assert_array_equal(resumed.curves[name], curve)


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

    monkeypatch.setattr(runs, "WAIT", 0)
    with locked(folder):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1
    assert f"{folder} is in use by process" in refused[0]
    train_small(tmp_path, (0, 1))


def test_seeds_trained_at_once_equal_single_runs(tmp_path):
    together = train_small(tmp_path / "together", (3, 4), at_once=2)
    for index, seed in enumerate((3, 4)):
        single = train_small(tmp_path / f"single-{seed}", (seed,))
        for one, other in zip(jax.tree.leaves(single.stack(0)), jax.tree.leaves(together.stack(index)), strict=True):
            np.testing.assert_allclose(other, one, atol=1e-5)


def test_other_settings_go_to_another_folder():
    other = dataclasses.replace(RECIPE, phases=(training(epochs=4), RECIPE.phases[1]))
    names = {
        RECIPE.folder_name("mnist", (0, 1)),
        RECIPE.folder_name("mnist", (0,)),
        RECIPE.folder_name("fashion_mnist", (0, 1)),
        other.folder_name("mnist", (0, 1)),
    }
    assert len(names) == 4
    assert all(name.startswith("two-phases-") for name in names)


def test_recipes_fit_their_models_and_keep_the_number_of_epochs():
    for recipe in comparison.rbm_recipes((20,), 10).values():
        assert recipe.epochs == 10
        comparison.initial_state(recipe, 784, (0,))
    for name, recipe in comparison.stack_recipes((6, 5), 10).items():
        assert recipe.epochs == (10 if name in ("dbm", "intra_dbm") else 4 if "refined" in name else 2)
        comparison.initial_state(recipe, 9, (0,))


def test_a_band_that_is_the_same_for_all_images_is_scored_by_the_same_error():
    data = load_dataset("mnist_5k")
    train, test = (part.images.reshape(-1, 28, 28).astype(np.float64) for part in (data.train, data.test))
    bands = {"top": np.s_[:, :12], "bottom": np.s_[:, 16:], "left": np.s_[:, :, :12], "right": np.s_[:, :, 16:]}
    found = repair.guess_errors(data)
    for side, band in bands.items():
        guesses = {"black": 0, "mean": train.mean(axis=0)[None], "median": np.median(train, axis=0)[None]}
        for name, guess in guesses.items():
            expected = np.abs(test - guess)[band].sum(axis=(1, 2)).mean()
            np.testing.assert_allclose(found[name][side], expected, rtol=1e-6)
        # No other constant band is better on the images that the median is taken of; on others, nearly none.
        assert found["median"][side] < min(found["black"][side], found["mean"][side])


def test_independent_pixels_have_the_likelihood_of_their_frequencies():
    images = np.array([[0.9, 0.1, 0.8], [0.7, 0.2, 0.1]], np.float32)
    part = Part(images, np.zeros(2, np.int32))
    data = Dataset("tiny", part, part, Part(images[:1], np.zeros(1, np.int32)), (1, 3), 10)
    # Counts 2, 0 and 1 of 2, and one image of each value more; the test image has bits 1, 0, 1.
    np.testing.assert_allclose(likelihood.independent_pixels(data), np.log([3 / 4, 3 / 4, 1 / 2]).sum(), rtol=1e-6)


def test_the_folder_is_named_after_data_and_script():
    assert reconstruction.Config().workdir == "runs/mnist-reconstruction"
    assert features.Config(dataset="mnist_5k").workdir == "runs/mnist_5k-features"
    assert likelihood.Config(workdir="here").workdir == "here"


@pytest.mark.parametrize(
    ("script", "settings", "message"),
    [
        (reconstruction, {"dataset": "cifar"}, "--dataset=cifar; it takes one of"),
        (reconstruction, {"num_seeds": 0}, "--num_seeds=0; it takes an integer of at least 1"),
        (reconstruction, {"hidden": 0}, "--hidden=0"),
        (reconstruction, {"epochs": 1}, "--epochs=1; it takes an integer of at least 2"),
        (directed, {"epochs": 0}, "--epochs=0; it takes an integer of at least 1"),
        (stdp, {"num_bins": 5}, "--num_bins=5; it takes an even number"),
        (stdp, {"shortest": 0.0}, "--shortest=0.0 --longest=102.0; they take increasing times from 0.01 to 10000 ms"),
        (stdp, {"longest": 2e4}, "--shortest=2.0 --longest=20000.0"),
        (stdp, {"pre_relaxation_rate": -1.0}, "--pre_relaxation_rate=-1.0; it takes a positive finite number"),
        (stdp, {"digit": -1}, "--digit=-1; it takes an integer of at least 0"),
        (likelihood, {"num_chains": 1}, "--num_chains=1"),
        (likelihood, {"deep_hidden": (4,)}, "--deep_hidden=4; it takes two or more positive integers"),
        (features, {"hidden": ()}, "--hidden=; it takes distinct positive integers"),
        (features, {"hidden": (4, 4)}, "--hidden=4,4; it takes distinct positive integers"),
        (features, {"probe_images": 3}, "--probe_images=3"),
    ],
)
def test_settings_out_of_range_are_refused(script, settings, message):
    with pytest.raises(UsageError, match=message):
        script.Config(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_trials": 20}, "--num_trials=20 --num_bins=50; a bin holds no trial: take more trials or fewer bins"),
        ({"post_relaxation_rate": 40.0}, "--post_relaxation_rate=40.0; no pair so far apart changes the synapse"),
    ],
)
def test_a_window_without_pairs_is_refused_before_anything_is_trained(settings, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        stdp.run(stdp.Config(workdir=str(tmp_path / "run"), **settings))
    assert not (tmp_path / "run" / "models").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("reconstruction", ["--rules=vpf,gan"], "--rules=vpf,gan; it takes some of vpf"),
        ("features", ["--hidden=12,x"], "--hidden=12,x; it takes"),
        ("features", ["--rule=gan"], "--rule=gan.*vpf"),
        ("compare", ["--systems=rbm,gan"], "--systems=rbm,gan; it takes some of rbm"),
        ("compare", ["--scale=huge"], "--scale=huge.*full"),
        ("likelihood", ["--epochs=many"], "--epochs=many.*at least 2"),
        ("likelihood", ["--dataset=mnist", "--data_dir=EMPTY"], "no folder mnist"),
        ("reconstruction", ["stray"], "'stray'; only flags are allowed"),
    ],
)
def test_wrong_flags_give_one_line_and_status_2(name, arguments, message, tmp_path):
    arguments = [argument.replace("EMPTY", str(tmp_path)) for argument in arguments]
    ended = start(name, f"--workdir={tmp_path / 'run'}", *arguments)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert re.search(message, ended.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "script"), (SCRIPTS | NEIGHBOURS).items())
def test_help_explains_every_flag(name, script):
    ended = start(name, "--help")
    assert ended.returncode == 0
    for field in dataclasses.fields(script.Config):
        assert re.search(rf"--(\[no\])?{field.name}:", ended.stdout)


@pytest.mark.slow
def test_a_request_to_stop_ends_the_script_with_what_was_trained(tmp_path):
    folders = {"models": str(tmp_path / "models"), "workdir": str(tmp_path / "run")}
    config = reconstruction.Config(dataset="mnist_5k", num_seeds=1, hidden=8, epochs=2, rules=("vpf", "cd1"), **folders)
    data = load_dataset("mnist_5k")
    with stop_requests() as stops:
        stops.append(15)
        with pytest.raises(Stopped, match="start again to resume"):
            comparison.train_for(config, comparison.rbm_recipes((8,), 2)["vpf"], data, stops)
    assert reconstruction.run(config)["rules"]["vpf"]["train_seconds"] > 0
