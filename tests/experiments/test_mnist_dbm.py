"""The main command: what it writes, resuming bit for bit, stopping, and one-line errors."""

import base64
import csv
import dataclasses
import functools
import io
import json
import re
import subprocess
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest
from PIL import Image
from programs import SMALL, start_here

import vpf_jax
from experiments import mnist_dbm
from vpf_jax.app import runs, training
from vpf_jax.app.folder import UsageError, write_arrays
from vpf_jax.checks import SettingError
from vpf_jax.evaluate import generation, parzen
from vpf_jax.settings import options

ROOT = Path(__file__).parents[2]
TINY = {"dataset": SMALL, "hidden": (12, 8), "epochs": 6, "num_samples": 60, "checkpoint_every": 2, "evaluate_every": 3}
TINY_FLAGS = [
    f"--dataset={SMALL}",
    "--hidden=12,8",
    "--epochs=6",
    "--num_samples=60",
    "--checkpoint_every=2",
    "--evaluate_every=3",
]


start = functools.partial(start_here, "mnist_dbm")


def parameters(workdir):
    return jax.tree.leaves(vpf_jax.load_stack(workdir))


def assert_same_run(one, other):
    for a, b in zip(parameters(one), parameters(other), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    summaries = [json.loads((w / "summary.json").read_text()) for w in (one, other)]
    for summary in summaries:
        del summary["train_seconds"], summary["seconds_per_epoch"]
    assert summaries[0] == summaries[1]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run without interruption."""
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    config = mnist_dbm.Config(workdir=str(workdir), gif=True, **TINY)
    return workdir, config, mnist_dbm.run(config)


@pytest.mark.slow
def test_a_run_leaves_everything_it_promises(straight):
    workdir, config, summary = straight
    assert {p.name for p in workdir.iterdir()} == {
        "config.json",
        "metrics.csv",
        "model.safetensors",
        "summary.json",
        "checkpoints",
        "samples.png",
        "filters.png",
        "curves.png",
        "activations.png",
        "comparison.png",
        "samples.gif",
        "frames",
        "report.html",
        "files.sha256",
        ".lock",
    }
    subprocess.run(["sha256sum", "--check", "--strict", "files.sha256"], cwd=workdir, check=True, capture_output=True)
    assert json.loads((workdir / "summary.json").read_text()) == summary
    model = vpf_jax.load_model(workdir / "model.safetensors")
    for a, b in zip(jax.tree.leaves(model.stack), parameters(workdir), strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.about["data"] == {
        "dataset": SMALL,
        "name": SMALL,
        "shape": [14, 14],
        "names": None,
        "num_examples": 300,
    }
    assert (model.about["rule"], model.about["settings"]["hidden"]) == ("vpf", [12, 8])
    for name in ("parzen_mean", "parzen_sem", "parzen_sigma", "parzen_real_data", "objective", "train_seconds"):
        assert np.isfinite(summary[name])
    with (workdir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [bool(row["parzen_validation"]) for row in rows] == [False, False, True, False, False, True]
    assert float(rows[-1]["objective"]) < float(rows[0]["objective"])
    page = (workdir / "report.html").read_text()
    for picture in workdir.glob("*.png"):
        assert matplotlib.image.imread(picture).shape[0] > 100
        assert base64.b64encode(picture.read_bytes()).decode() in page
    for name in ("samples", "weight sparsity", "validation mean", "learning_rate", "samples of 2 evaluations"):
        assert name in page
    with Image.open(workdir / "samples.gif") as film:
        assert film.n_frames == 2
    assert json.loads((workdir / "config.json").read_text())["hidden"] == list(config.hidden)


@pytest.mark.slow
def test_the_summary_compares_samplers_and_chooses_on_validation(straight):
    _, _, summary = straight
    rows = summary["samplers"]
    settings = [(row["start"], row["gibbs_steps"], row["top_gibbs_steps"]) for row in rows]
    assert settings[0] == ("prior", 3, 3)
    assert len(set(settings)) == len(settings)
    assert {("uniform", 3, 3), ("prior", 2, 1000), ("uniform", 2, 1000), ("prior", 30, 30)} <= set(settings)
    assert summary["parzen_mean"] == rows[0]["mean"]
    candidates = [r for r, s in zip(rows, settings, strict=True) if s in {("prior", k, k) for k in range(1, 6)}]
    assert len(candidates) == len(generation.CANDIDATE_STEPS)
    best = max(candidates, key=lambda row: row["validation_mean"])
    assert summary["parzen_chosen_mean"] == best["mean"]
    assert summary["parzen_chosen_steps"] == best["gibbs_steps"]


@pytest.mark.slow
def test_a_finished_run_says_so_and_is_left_as_it_is(straight, capsys):
    workdir, config, summary = straight
    before = {p: p.stat().st_mtime_ns for p in workdir.glob("*.png")}
    assert mnist_dbm.run(config) == summary
    assert "finished already" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in workdir.glob("*.png")}


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.slow
def test_a_finished_run_goes_on_to_the_bits_of_a_longer_one(straight, tmp_path):
    workdir, _, summary = straight
    shorter = mnist_dbm.Config(workdir=str(tmp_path / "run"), **TINY | {"epochs": 3})
    assert mnist_dbm.run(shorter)["epochs"] == 3
    longer = dataclasses.replace(shorter, epochs=6)
    found = mnist_dbm.run(longer)
    assert found["epochs"] == 6
    for name in ("objective", "parzen_mean", "samplers"):
        assert found[name] == summary[name]
    for a, b in zip(parameters(workdir), parameters(tmp_path / "run"), strict=True):
        np.testing.assert_array_equal(a, b)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["epochs"] == 6
    with pytest.raises(UsageError, match="--epochs=6, but --epochs=3 was given"):
        mnist_dbm.run(shorter)


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"schedule": "cosine"}, "the cosine schedule depends on their number"),
        ({"refine": "pcd", "refine_epochs": 1}, "a refinement follows them"),
    ],
)
def test_where_more_epochs_would_be_another_training_they_are_refused(settings, reason, tmp_path):
    tiny = {
        "dataset": SMALL,
        "model": "rbm",
        "hidden": (6,),
        "epochs": 1,
        "num_samples": 20,
        "workdir": str(tmp_path / "run"),
    }
    config = mnist_dbm.Config(**tiny | settings)
    mnist_dbm.run(config)
    with pytest.raises(UsageError, match=rf"--epochs=1, but --epochs=2 was given \({reason}\)"):
        mnist_dbm.run(dataclasses.replace(config, epochs=2))
    # Of a refined run it is the refined stack.
    last = "checkpoints-2" if config.refine != "none" else "checkpoints"
    for a, b in zip(parameters(tmp_path / "run"), parameters(tmp_path / "run" / last), strict=True):
        np.testing.assert_array_equal(a, b)
    mnist_dbm.run(config)


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.slow
def test_evaluating_more_often_changes_no_parameter(straight, tmp_path):
    workdir, _, _ = straight
    other = mnist_dbm.Config(workdir=str(tmp_path / "run"), **TINY | {"evaluate_every": 0})
    mnist_dbm.run(other)
    for a, b in zip(parameters(workdir), parameters(tmp_path / "run"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.slow
def test_images_are_sent_and_the_last_epoch_is_evaluated_once(tmp_path, monkeypatch):
    calls = {"binarised": [], "scored": 0}
    binarise, choose = runs.binarise, parzen.choose_sigma

    def counting(images):
        calls["binarised"].append(len(images))
        return binarise(images)

    def chosen(*args):
        calls["scored"] += 1
        return choose(*args)

    monkeypatch.setattr(runs, "binarise", counting)
    monkeypatch.setattr(parzen, "choose_sigma", chosen)
    config = mnist_dbm.Config(workdir=str(tmp_path / "run"), **TINY | {"epochs": 2, "evaluate_every": 1})
    summary = mnist_dbm.run(config)
    # Training images once, and test images once, with which samples are compared.
    assert calls["binarised"] == [300, 100]
    # Of epoch 1, of each sampler, the configured one being that of epoch 2, and of real images.
    assert calls["scored"] == 1 + len(summary["samplers"]) + 1
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert float(rows[-1].split(",")[-2]) == summary["samplers"][0]["validation_mean"]


@pytest.mark.slow
def test_a_damaged_frame_is_said_and_left_out(tmp_path, caplog):
    for epoch in (1, 2, 3):
        write_arrays(tmp_path / "frames" / f"{epoch:06d}.npz", images=np.full((2, 4, 4), 80 * epoch, np.uint8))
    (tmp_path / "frames" / "000002.npz").write_bytes(b"damaged")
    with Image.open(io.BytesIO(training.film(tmp_path, "a run").gif)) as film:
        assert film.n_frames == 2
    assert "000002.npz cannot be read" in caplog.text


@pytest.mark.slow
def test_an_animation_that_comes_too_late_is_said(straight, capsys):
    workdir, config, _ = straight
    (workdir / "samples.gif").rename(workdir / "kept.gif")
    (workdir / "files.sha256").unlink()
    mnist_dbm.run(config)
    (workdir / "kept.gif").rename(workdir / "samples.gif")
    (workdir / "files.sha256").unlink()
    assert "no samples.gif: the run was finished without --gif" in capsys.readouterr().out


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_only_its_epochs(straight, tmp_path):
    workdir, _, _ = straight
    flags = [*TINY_FLAGS, f"--workdir={tmp_path / 'run'}"]
    assert start(*flags).returncode == 0
    (tmp_path / "run" / "summary.json").unlink()
    for file in (tmp_path / "run" / "checkpoints" / "6").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    finished = start(*flags)
    assert finished.returncode == 0, finished.stderr
    assert "resuming after epoch 4 of 6" in finished.stdout
    lost, damaged = finished.stderr.splitlines()
    assert "summary.json is missing; it is made again" in lost
    assert re.search("checkpoint 6 in .* is damaged", damaged)
    assert_same_run(workdir, tmp_path / "run")


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"model": "rbm", "hidden": (10,), "estep": "minibatch"},
        {"model": "dbm", "coupling": "joint", "max_weight": 0.5, "schedule": "cosine"},
        {"model": "intra_dbm", "coupling": "joint", "batch_size": 37, "gibbs_steps": 1, "top_gibbs_steps": 5},
        {"model": "rbm", "hidden": (10,), "rule": "pl", "flips_per_step": 50},
        {"model": "dbm", "expectation": "exact", "hidden_flips": False, "flips_per_step": 8},
        {"model": "intra_dbm", "rule": "tap", "rule_steps": 2, "damping": 0.3, "persistent": True},
        {"model": "rbm", "hidden": (10,), "rule": "energy_discrepancy", "noise": 0.1, "particles": 4, "stabiliser": 0},
        {"model": "intra_dbm", "rule": "tethered", "rule_steps": 2, "noise": 0.1, "averaging": 0.9},
        {"model": "intra_dbm", "refine": "pcd", "refine_epochs": 2, "centred": True, "visible_biases": "data"},
        {"model": "intra_dbm", "weights": "directed", "backward_start": "drawn"},
    ],
)
def test_every_model_and_option_runs(settings, tmp_path):
    config = mnist_dbm.Config(workdir=str(tmp_path / "run"), **TINY | {"epochs": 2, "evaluate_every": 0} | settings)
    summary = mnist_dbm.run(config)
    assert np.isfinite(summary["parzen_mean"])
    assert summary["samplers"][0]["top_gibbs_steps"] == (config.top_gibbs_steps or config.gibbs_steps)


@pytest.mark.slow
def test_overflow_ends_in_one_line_and_keeps_the_last_good_checkpoint(tmp_path):
    workdir = tmp_path / "run"
    ended = start(*TINY_FLAGS, f"--workdir={workdir}", "--learning_rate=30", "--checkpoint_every=1")
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "the objective is" in ended.stderr
    assert "largest |w|" in ended.stderr
    assert "max_weight" in ended.stderr
    assert not (workdir / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=gan"], "--model=gan; it takes one of rbm, dbm, intra_dbm"),
        (["--learning_rate=-1"], "--learning_rate=-1; it takes a positive finite number"),
        (["--epochs=many"], "--epochs=many.*at least 1"),
        (["--hidden=12,x"], "--hidden=12,x; it takes positive integers"),
        (["--batch_size=4001"], "--batch_size=4001; it takes up to 4000, as mnist_5k has 4000 training images"),
        (["--dataset=mnist", "--data_dir=EMPTY"], "no folder mnist"),
        (["--nonsense=1"], "nonsense.*--help"),
        (["stray"], "'stray'; only flags are allowed"),
        (["--weights=directed", "--rule=pcd"], "--model=intra_dbm.*directed machine.*'pcd'"),
        (["--rule=pl"], "--model=intra_dbm.*rule 'pl' takes machines of 1 or 2 layers without weights inside"),
    ],
)
def test_wrong_flags_give_one_line_and_status_2(arguments, message, tmp_path):
    arguments = [argument.replace("EMPTY", str(tmp_path)) for argument in arguments]
    ended = start(f"--workdir={tmp_path / 'run'}", *arguments)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert re.search(message, ended.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_workdir_of_another_configuration_gives_one_line_and_status_2(straight):
    workdir, _, _ = straight
    ended = start(*TINY_FLAGS, f"--workdir={workdir}", "--seed=5")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "--seed=0" in ended.stderr
    assert "--seed=5" in ended.stderr


def test_help_explains_every_flag_and_its_range():
    ended = start("--help")
    assert ended.returncode == 0
    for name in options(mnist_dbm.Config):
        assert f"--{name}:" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "vae"}, "got model=vae"),
        ({"dataset": "cifar"}, "got dataset=cifar; it takes one of digits_8x8, mnist_5k, mnist, fashion_mnist"),
        ({"coupling": "loose"}, "got coupling=loose"),
        ({"estep": "never"}, "got estep=never"),
        ({"schedule": "steps"}, "got schedule=steps"),
        ({"hidden": (4, 0)}, r"got hidden=\(4, 0\); it takes positive integers"),
        ({"hidden": (4,)}, r"got hidden=\(4,\); it takes two or more hidden layers"),
        ({"model": "rbm", "hidden": (4, 3)}, r"got hidden=\(4, 3\); it takes one hidden layer for rbm"),
        ({"epochs": 0}, "got epochs=0"),
        ({"weights": "loose"}, "got weights=loose; it takes one of symmetric, directed"),
        ({"backward_start": "tied"}, "got backward_start=tied; it takes one of equal, drawn"),
        ({"rule": "nce"}, "got rule=nce"),
        ({"rule_steps": 3}, "got rule_steps=3; it takes nothing, as rule vpf has no such option"),
        ({"noise": 0.1}, "got noise=0.1; it takes nothing, as rule vpf has no such option"),
        ({"visible_biases": "ones"}, "got visible_biases=ones; it takes one of zero, data"),
        ({"averaging": 1.5}, "got averaging=1.5"),
        ({"rule": "cd", "estep": "epoch"}, "got estep=epoch; it takes nothing, as rule cd has no such option"),
        ({"refine": "cd", "expectation": "sample", "rule": "pcd"}, "rule pcd and rule cd have no such option"),
        ({"flips_per_step": 3}, "got flips_per_step=3; it takes nothing where hidden states are sampled"),
        ({"backward_start": "drawn"}, "got backward_start=drawn; it takes nothing, as symmetric weights"),
        ({"refine_epochs": 2}, "got refine_epochs=2; it takes nothing, as nothing is refined"),
        ({"seed": 2**32}, "got seed=4294967296; it takes an integer from 0 to 4294967295"),
        ({"rule_steps": 0}, "got rule_steps=0"),
        ({"hidden_flips": "maybe"}, "got hidden_flips=maybe; it takes True or False"),
        ({"expectation": "mean"}, "got expectation=mean"),
        ({"flips_per_step": 0}, "got flips_per_step=0"),
        ({"refine": "vpf"}, "got refine=vpf; it takes one of none, pcd, cd, tethered"),
        ({"refine": "pcd", "weights": "directed"}, "got refine=pcd; it takes none for directed weights"),
        ({"refine": "pcd", "refine_epochs": 0}, "got refine_epochs=0"),
        ({"batch_size": 0}, "got batch_size=0"),
        ({"weight_decay": -1.0}, "got weight_decay=-1.0"),
        ({"max_weight": -1.0}, "got max_weight=-1.0"),
        ({"gibbs_steps": -1}, "got gibbs_steps=-1"),
        ({"top_gibbs_steps": -1}, "got top_gibbs_steps=-1"),
        ({"num_samples": 0}, "got num_samples=0"),
        ({"evaluate_every": -1}, "got evaluate_every=-1"),
        ({"checkpoint_every": 0}, "got checkpoint_every=0"),
        ({"seed": -1}, "got seed=-1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        mnist_dbm.Config(**settings)


def test_defaults_depend_on_the_model():
    assert mnist_dbm.Config(model="rbm").recipe().hidden == (196,)
    assert mnist_dbm.Config(model="dbm").recipe().hidden == (196, 196, 64)
    assert mnist_dbm.Config(model="dbm", seed=3).folder == Path("runs", "mnist_5k-dbm-seed3")
    assert mnist_dbm.Config(weights="directed").recipe().backward_start == "equal"
    # Sweeps belong to the refinement where the rule has none.
    first, second = mnist_dbm.Config(refine="pcd", rule_steps=4, estep="minibatch").recipe().phases
    assert (first.rule.estep, second.rule.steps, second.epochs) == ("minibatch", 4, 40)
    assert (second.optimizer.learning_rate, second.weight_decay) == (2e-3, 2e-3)
    first, second = mnist_dbm.Config(refine="tethered", noise=0.1, averaging=0.9, centred=True).recipe().phases
    assert (second.rule.noise, second.optimizer.averaging, first.centred, second.centred) == (0.1, 0.9, True, True)
