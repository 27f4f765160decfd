"""The scripts that compare rules, at quick settings: what they write, resuming, shared machines, wrong input, help."""

import ast
import dataclasses
import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from programs import FEW, SMALL, quick_flags, start_here

from experiments import (
    directed,
    features,
    frontier,
    likelihood_table,
    mnist_equilibrium,
    mnist_target,
    named_recipes,
    planted_synapses,
    repair_table,
    spike_timing,
    systems,
    tuning,
)
from vpf_jax.app.folder import Stopped, stop_requests
from vpf_jax.checks import SettingError

SCRIPTS = {
    script.__name__.removeprefix("experiments."): script
    for script in (repair_table, likelihood_table, frontier, tuning, features, directed, spike_timing, systems)
}
SYSTEMS = [name for name in systems.TITLES if "refined" not in name]
# What is smaller than in the quick flags, as are the images: one rule of each kind.
SMALLER = {
    "repair_table": ("--rules=vpf_paper,vpf_pcd,cd1,pl", "--epochs=4"),
    "likelihood_table": ("--stacks=intra_dbm", "--num_samples=100"),
    "directed": ("--num_samples=100",),
    "frontier": ("--rules=vpf_pcd,ratio", "--lengths=1,2"),
    "tuning": ("--centred=on", "--averaging=0.9"),
    # Not the refined ones; and binary synapses are of 28 x 28 images there.
    "systems": (f"--systems={','.join(SYSTEMS)}", f"--dataset={FEW}"),
}
NEIGHBOURS = {
    "mnist_target": mnist_target,
    "mnist_equilibrium": mnist_equilibrium,
    "planted_synapses": planted_synapses,
}


@pytest.fixture(scope="module", params=SCRIPTS)
def quick(request, tmp_path_factory):
    """A run of each script with the quick flags of its docstring, of small images and networks."""
    name = request.param
    workdir = tmp_path_factory.mktemp("quick") / name
    flags = [*quick_flags(SCRIPTS[name]), f"--dataset={SMALL}", *SMALLER.get(name, ()), f"--workdir={workdir}"]
    return name, workdir, flags, start_here(name, *flags)


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
    if name == "repair_table":
        assert set(summary["rules"]) == {"vpf_paper", "vpf_pcd", "cd1", "pl"}
        for row in summary["rules"].values():
            for protocol in ("paper", "clamped"):
                assert {side: len(found) for side, found in row[protocol].items()} == dict.fromkeys(
                    ("top", "bottom", "left", "right"), 2
                )
        assert table.count("no machine") == 2 * len(summary["guesses"]) == 6
        assert matplotlib.image.imread(workdir / "reconstructions.png").shape[0] > 300
    if name == "likelihood_table":
        assert set(summary["rbms"]) == {"vpf", "pcd1"}
        for row in summary["rbms"].values():
            assert all(run["log_likelihood"] < 0 for run in row["runs"])
        for row in summary["stacks"].values():
            assert all(run["bound"] < 0 for run in row["runs"])
            assert all(len(run["samplers"]) > 5 for run in row["runs"])
        assert summary["independent_pixels"] < 0
        assert len(summary["parzen_real_data"]) == 2
    if name == "frontier":
        found = [(row["rule"], row["epochs"], row["sweeps_per_step"], row["persistent"]) for row in summary["rows"]]
        assert found == [
            ("vpf_pcd", 4, 0.75, True),
            ("vpf_pcd", 8, 0.75, True),
            *(("ratio", n, 0, False) for n in (4, 8)),
        ]
        assert all(run["log_likelihood"] < 0 for row in summary["rows"] for run in row["runs"])
        assert {p.name for p in workdir.glob("*.png")} == {"frontier.png"}
    if name == "tuning":
        assert [title.split(", ")[1] for title in summary["trials"]] == ["steps 1", "steps 2"]
        assert all(", averaging 0.9, centred" in title for title in summary["trials"])
        assert all(run["log_likelihood"] < 0 for row in summary["trials"].values() for run in row["runs"])
    if name == "directed":
        assert set(summary["variants"]) == set(named_recipes.DIRECTED)
        for variant, row in summary["variants"].items():
            tied = variant.startswith("tied")
            assert all((abs(cosine - 1) < 1e-5) == tied for cosine in row["alignment"])
            assert all(error > 0 for error in row["clamped"]["left"])
        assert (workdir / "alignment.png").exists()
    if name == "systems":
        assert set(summary["systems"]) == set(SYSTEMS)
        for system, row in summary["systems"].items():
            generates = system != "equilibrium_propagation"
            assert all((one["parzen"] is not None) == generates for one in row["runs"])
            assert all((one["repair"] is not None) == (generates and "dbm" not in system) for one in row["runs"])
            assert all(0 < one["test_error"] < 0.95 for one in row["runs"])
        # One training, read in two ways.
        signs, means = (summary["systems"][name] for name in ("binary_synapses", "binary_synapses_means"))
        assert signs["train_seconds"] == means["train_seconds"]
        assert all(a["repair"] != b["repair"] for a, b in zip(signs["runs"], means["runs"], strict=True))
        assert all(rule in table for rule in systems.LOCALITY)
        assert {p.name for p in workdir.glob("*.png")} == {"samples.png", "repaired.png"}
    if name == "spike_timing":
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
    again = start_here(name, *flags)
    assert again.returncode == 0
    assert "finished already" in again.stdout
    assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.mark.slow
def test_trained_machines_are_shared_and_a_lost_table_is_made_again(quick, tmp_path):
    name, workdir, flags, ended = quick
    if name in ("likelihood_table", "directed", "frontier", "tuning"):
        pytest.skip("machines are found as in repair_table, and evaluating them again takes long")
    assert ended.returncode == 0, ended.stderr
    shared = [*flags[:-1], f"--models={workdir / 'models'}", f"--workdir={tmp_path / 'other'}"]
    again = start_here(name, *shared)
    assert again.returncode == 0, again.stderr
    assert not (tmp_path / "other" / "models").exists()
    assert (tmp_path / "other" / "table.md").read_text() == (workdir / "table.md").read_text()


@pytest.mark.slow
def test_recipes_fit_their_models_and_keep_the_number_of_epochs():
    for rule in named_recipes.RBMS:
        recipe = named_recipes.rbm(rule, 20, 10)
        assert recipe.epochs == 10
        jax.eval_shape(functools.partial(recipe.initial_states, (0,), 784, jnp.full(784, 0.1)))
    for name in named_recipes.STACKS:
        recipe = named_recipes.stack(name, (6, 5), 10)
        assert recipe.epochs == (10 if name in ("dbm", "intra_dbm") else 4 if "refined" in name else 2)
        jax.eval_shape(functools.partial(recipe.initial_states, (0,), 9))
    # One epoch is enough where there is one phase.
    assert named_recipes.directed("drawn_minibatch", 4, 1).epochs == 1
    titles = [recipe for titles in (named_recipes.RBMS, named_recipes.DIRECTED) for recipe in titles.values()]
    assert len(set(titles)) == len(titles)


def test_independent_pixels_have_the_likelihood_of_their_frequencies():
    # Counts 2, 0 and 1 of 2, and one image of each value more.
    found = likelihood_table.independent_pixels(np.array([[1, 0, 1], [1, 0, 0]]), np.array([[1, 0, 1]]))
    np.testing.assert_allclose(found, np.log([3 / 4, 3 / 4, 1 / 2]).sum(), rtol=1e-6)


def test_the_folder_is_named_after_data_and_script():
    assert repair_table.Config().folder == Path("runs/mnist-repair_table")
    assert features.Config(dataset="mnist_5k").folder == Path("runs/mnist_5k-features")
    assert likelihood_table.Config(workdir="here").folder == Path("here")


@pytest.mark.parametrize(
    ("script", "settings", "message"),
    [
        (repair_table, {"dataset": "cifar"}, "got dataset=cifar; it takes one of"),
        (repair_table, {"num_seeds": 0}, "got num_seeds=0; it takes an integer from 1 to 100000"),
        (repair_table, {"hidden": 0}, "got hidden=0"),
        (repair_table, {"epochs": 1}, "got epochs=1; it takes an integer of at least 2"),
        (directed, {"epochs": 0}, "got epochs=0; it takes an integer of at least 1"),
        (spike_timing, {"num_bins": 5}, "got num_bins=5; it takes an even integer of at least 2"),
        (spike_timing, {"shortest": 0.0}, "got shortest=0.0; it takes a finite number from 0.01 to 10000"),
        (spike_timing, {"longest": 2e4}, "got longest=20000.0; it takes a finite number from 0.01 to 10000"),
        (spike_timing, {"longest": 1.0}, "got longest=1.0; it takes more than shortest=2.0"),
        (spike_timing, {"pre_relaxation_rate": -1.0}, "got pre_relaxation_rate=-1.0; it takes a positive finite"),
        (spike_timing, {"digit": -1}, "got digit=-1; it takes an integer of at least 0"),
        (likelihood_table, {"num_chains": 1}, "got num_chains=1"),
        (likelihood_table, {"deep_hidden": (4,)}, "got deep_hidden=.*; it takes 2 or more positive integers"),
        (frontier, {"lengths": (0,)}, "got lengths="),
        (tuning, {"noise": (0.7,), "rule": "tethered"}, "got noise="),
        (tuning, {"rule": "cd", "flips_per_step": 3}, "got flips_per_step=3; it takes nothing"),
        (features, {"hidden": ()}, "got hidden=.*; it takes distinct positive integers"),
        (features, {"hidden": (4, 4)}, "got hidden=.*; it takes distinct positive integers"),
        (features, {"probe_images": 3}, "got probe_images=3"),
    ],
)
def test_settings_out_of_range_are_refused(script, settings, message):
    with pytest.raises(SettingError, match=message):
        script.Config(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_trials": 20}, "got num_trials=20; it takes more, or fewer bins than 50: a bin holds no trial"),
        ({"post_relaxation_rate": 40.0}, "post_relaxation_rate=40.0 no pair so far apart changes the synapse"),
    ],
)
def test_a_window_without_pairs_is_refused_before_anything_is_trained(settings, message, tmp_path):
    with pytest.raises(SettingError, match=message):
        spike_timing.run(spike_timing.Config(workdir=str(tmp_path / "run"), **settings))
    assert not (tmp_path / "run" / "models").exists()


@pytest.mark.slow
def test_a_bin_that_is_empty_by_chance_leaves_no_run(tmp_path):
    """Sixty pairs in fifty bins: enough, and some bin will get none."""
    small = {"dataset": SMALL, "epochs": 2, "num_seeds": 1, "hidden": 4}
    settings = small | {"num_trials": 60, "workdir": str(tmp_path / "run")}
    with pytest.raises(SettingError, match="got num_trials=60; it takes more, or fewer bins than 50"):
        spike_timing.run(spike_timing.Config(**settings))
    assert not (tmp_path / "run" / "config.json").exists()
    found = spike_timing.run(spike_timing.Config(**settings | {"num_trials": 5000, "num_bins": 4}))
    assert found["num_trials"] == 5000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("repair_table", ["--rules=vpf,gan"], "--rules=vpf,gan; it takes some of vpf"),
        ("features", ["--hidden=12,x"], "--hidden=12,x; it takes"),
        ("features", ["--rule=gan"], "--rule=gan.*vpf"),
        ("systems", ["--systems=rbm,gan"], "--systems=rbm,gan; it takes some of rbm"),
        ("systems", ["--scale=huge"], "--scale=huge.*full"),
        ("likelihood_table", ["--epochs=many"], "--epochs=many.*at least 2"),
        ("likelihood_table", ["--dataset=mnist", "--data_dir=EMPTY"], "no folder mnist"),
        ("repair_table", ["stray"], "'stray'; only flags are allowed"),
        ("tuning", ["--rule=pl", "--noise=0.1"], "--noise=0.1; it takes nothing, as rule pl has no such option"),
    ],
)
def test_wrong_flags_give_one_line_and_status_2(name, arguments, message, tmp_path):
    arguments = [argument.replace("EMPTY", str(tmp_path)) for argument in arguments]
    ended = start_here(name, f"--workdir={tmp_path / 'run'}", *arguments)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert re.search(message, ended.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "script"), (SCRIPTS | NEIGHBOURS).items())
def test_help_explains_every_flag(name, script):
    ended = start_here(name, "--help")
    assert ended.returncode == 0
    for field in dataclasses.fields(script.Config):
        assert re.search(rf"--(\[no\])?{field.name}:", ended.stdout)


@pytest.mark.slow
def test_a_request_to_stop_ends_the_script_with_what_was_trained(tmp_path):
    folders = {"models": str(tmp_path / "models"), "workdir": str(tmp_path / "run")}
    given = {"dataset": SMALL, "num_seeds": 1, "hidden": 8, "epochs": 2, "rules": ("vpf", "cd1"), **folders}
    config = repair_table.Config(**given)
    with stop_requests() as stops:
        stops.append(15)
        with pytest.raises(Stopped, match="start again to resume"):
            config.workshop().run(named_recipes.rbm("vpf", 8, 2), stops)
    assert repair_table.run(config)["rules"]["vpf"]["train_seconds"] > 0


@pytest.mark.parametrize("path", sorted(Path(repair_table.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_the_configuration_visits_few_rooms(path):
    """A script turns it into recipes and values at its door: methods of its own class aside."""
    taking = [
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        for argument in (*node.args.args, *node.args.kwonlyargs)
        if argument.annotation is not None and "Config" in ast.unparse(argument.annotation).split(".")
    ]
    assert set(taking) <= {"run", "main"}
