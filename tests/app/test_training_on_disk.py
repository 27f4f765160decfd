"""Training on examples that stay on disk (--stream): what is learnt, what is loaded, what is kept within an epoch."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import jax
import layouts
import numpy as np
import pytest
from programs import start_here

import vpf_jax
from vpf_jax import blocks, checkpoint
from vpf_jax.app import devices, loop, training
from vpf_jax.app.folder import Stopped, UsageError
from vpf_jax.checks import SettingError
from vpf_jax.data.streamed import open_streamed

pytestmark = pytest.mark.usefixtures("blank_pictures")

TINY = {
    "dataset": "words.npy",
    "hidden": (3,),
    "epochs": 3,
    "batch_size": 30,
    "num_samples": 50,
    "evaluate_every": 0,
    "visible_biases": "data",
}
# 320 of 400 examples are for training: 10 full minibatches in 4 blocks, and 20 examples in one.
STEPS_AT_ONCE, BLOCKS = 3, 5


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    kind = rng.random((400, 1)) < 0.5
    words = (rng.random((400, 7)) < np.where(kind, 0.85, 0.15)).astype(np.uint8)
    np.save("words.npy", words)
    Path("parts").mkdir()
    for number, part in enumerate(np.split(words, [150, 151])):
        np.save(f"parts/{number}.npy", part)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", STEPS_AT_ONCE * 30 * 7)
    return tmp_path


def rows(config):
    lines = (config.folder / "metrics.csv").read_text().splitlines()[1:]
    return np.array([[float(number or "nan") for number in line.split(",")] for line in lines])


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [{}, {"rule": "pcd", "centred": True}, {"refine": "pcd", "refine_epochs": 2, "model": "semi_restricted"}],
    ids=("vpf", "pcd", "refined"),
)
def test_it_learns_what_is_learnt_in_memory(given, folder):
    config = training.Config(**TINY, **given, workdir="memory")
    found = training.run(config)
    streamed = dataclasses.replace(config, stream=True, workdir="disk")
    summary = training.run(streamed)
    np.testing.assert_allclose(rows(streamed), rows(config), rtol=2e-5, atol=1e-6)
    wanted = found["log_likelihood_test"]
    told = summary["log_likelihood_test"]
    assert told["mean"] == pytest.approx(wanted["mean"], rel=1e-5)
    assert told["independent"] == pytest.approx(wanted["independent"], rel=1e-5)
    kept, held = (vpf_jax.load_model(one.folder / "model.safetensors") for one in (streamed, config))
    for a, b in zip(jax.tree.leaves(kept.stack), jax.tree.leaves(held.stack), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    assert kept.about["data"]["num_examples"] == 320
    assert kept.about["settings"]["stream"] is True
    assert "stream" not in json.loads(Path("memory/config.json").read_text())
    again = dataclasses.replace(streamed, dataset="parts", workdir="parts-run")
    training.run(again)
    assert Path("parts-run/metrics.csv").read_bytes() == Path("disk/metrics.csv").read_bytes()


@pytest.mark.slow
def test_over_a_mesh_and_with_grey_images(folder):
    rng = np.random.default_rng(1)
    np.save("grey.npy", rng.integers(0, 256, (150, 4, 5), dtype=np.uint8))
    config = training.Config(**TINY | {"dataset": "grey.npy"}, workdir="memory", evaluation="likelihood")
    training.run(config)
    layouts.mesh({"data": 2})
    streamed = dataclasses.replace(config, stream=True, workdir="disk", mesh="data:2")
    training.run(streamed)
    np.testing.assert_allclose(rows(streamed), rows(config), rtol=2e-5, atol=1e-6)


def stopping_at(monkeypatch, number):
    """A signal arrives when it is asked for the n-th time."""
    asked = []

    def asks(stops):
        asked.append(stops)
        return signal.SIGTERM if len(asked) >= number else 0

    monkeypatch.setattr(devices, "stop_asked", asks)


@pytest.mark.slow
def test_a_run_that_is_stopped_within_an_epoch_goes_on_to_the_same_bits(folder, monkeypatch, capsys):
    # Of two phases, so that the second one's epochs are other trees.
    settings = TINY | {"refine": "pcd", "refine_epochs": 2, "stream": True, "checkpoint_every": 100}
    whole = training.Config(**settings, workdir="whole")
    training.run(whole)
    config = training.Config(**settings, workdir="parts-run")
    place = config.folder / loop.WITHIN
    # One more question before an epoch, and a phase, than within it: in the second epoch of both phases, and at once
    # again after a restart.
    for number, told in (
        (2 + BLOCKS + 1 + 2, "epoch 1 of 5 and part"),
        (2 + 1, "epoch 1 of 5 and part"),
        (2 + 3 + (1 + BLOCKS) + 2 + BLOCKS + 2, "epoch 4 of 5 and part"),
    ):
        with monkeypatch.context() as patch:
            stopping_at(patch, number)
            with pytest.raises(Stopped, match=f"SIGTERM; {told} of the next are saved; start again to resume"):
                training.run(config)
        assert [path.name for path in place.iterdir()] == [told.split()[1]]
    assert "resuming within epoch 2 of 5" in capsys.readouterr().out
    training.run(config)
    assert "resuming within epoch 5 of 5" in capsys.readouterr().out
    assert not place.exists()
    assert (config.folder / "metrics.csv").read_bytes() == (whole.folder / "metrics.csv").read_bytes()
    kept, held = (vpf_jax.load_model(one.folder / "model.safetensors") for one in (config, whole))
    for a, b in zip(jax.tree.leaves(kept.stack), jax.tree.leaves(held.stack), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_what_is_kept_within_an_epoch_may_be_damaged_or_old(folder, monkeypatch, caplog):
    settings = TINY | {"stream": True}
    whole = training.Config(**settings, workdir="whole")
    training.run(whole)
    config = training.Config(**settings, workdir="run")
    place = config.folder / loop.WITHIN
    # From now on every block is kept; the process dies after some of them.
    monkeypatch.setattr(loop, "PAUSE", 0)
    with monkeypatch.context() as patch:
        save, saved = checkpoint.save_checkpoint, []

        def counted(directory, *given):
            save(directory, *given)
            saved.append(Path(directory).name)
            if saved.count(loop.WITHIN) == BLOCKS + 2:
                raise RuntimeError("killed")

        patch.setattr(checkpoint, "save_checkpoint", counted)
        with pytest.raises(RuntimeError, match="killed"):
            training.run(config)
    # The end of an epoch of which blocks have been kept is, too.
    assert saved == [*[loop.WITHIN] * BLOCKS, "checkpoints", *[loop.WITHIN] * 2]
    shutil.copytree(config.folder, "copy")
    shutil.copytree(place, "old")
    # First of its arrays, then of its record.
    for run, name, told in (
        ("run", "arrays/manifest.ocdbt", "checkpoint 1 in run/checkpoints-within is damaged"),
        ("copy", "record.json", "copy/checkpoints-within is damaged; the epoch that it is of begins anew"),
    ):
        path = Path(run, loop.WITHIN, "1", name)
        path.write_bytes(path.read_bytes()[:-1])
        training.run(dataclasses.replace(config, workdir=run))
        assert told in caplog.text
        assert Path(run, "metrics.csv").read_bytes() == (whole.folder / "metrics.csv").read_bytes()
    # One of an epoch that has ended plays no role.
    shutil.copytree("old", place)
    for one in (config, whole):
        training.run(dataclasses.replace(one, epochs=4))
    assert (config.folder / "metrics.csv").read_bytes() == (whole.folder / "metrics.csv").read_bytes()


def test_what_does_not_fit_is_refused(folder, monkeypatch):
    def refused(match, **given):
        with pytest.raises(ValueError, match=match):
            training.run(training.Config(**TINY | {"stream": True} | given))
        assert not Path("runs").exists()

    refused("got stream=on; it takes off for mnist_5k, which is loaded whole", dataset="mnist_5k")
    refused("got binarise=sample; it takes threshold for examples that stay on disk", binarise="sample")
    refused("got batch_size=321; it takes up to 320, as words has 320 training images", batch_size=321)
    refused("got array=x; it takes nothing, as words.npy is a path", array="x")
    np.savetxt("words.csv", np.load("words.npy"))
    refused("either .npy or .array_record", dataset="words.csv")
    with pytest.raises(ValueError, match=r"got parts, which is a folder; .* stay on disk \(--stream\)"):
        training.run(training.Config(**TINY | {"dataset": "parts"}))
    monkeypatch.setattr(training.runs.os, "sysconf", lambda name: 10)
    refused(r"got split=\(0.8, 0.1, 0.1\); it takes what fits into the .* GiB of memory", hidden=(1,))


@pytest.mark.slow
def test_data_that_have_changed_are_no_resumption(folder):
    config = training.Config(**TINY | {"dataset": "parts", "epochs": 1}, stream=True, workdir="run")
    training.run(config)
    np.save("parts/3.npy", np.ones((2, 7), np.uint8))
    with pytest.raises(UsageError, match="--dataset=parts, whose contents have changed"):
        training.run(dataclasses.replace(config, epochs=2))


def test_a_folder_without_files_is_refused_with_what_one_holds(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(SettingError, match=r"that of a folder of files \(.npy, .array_record"):
            training.Config(dataset=str(folder), stream=True)


@pytest.mark.slow
def test_the_command(folder):
    flags = ["--dataset=parts", "--stream=on", "--model=visible", "--epochs=1", "--batch_size=30", "--workdir=run"]
    status, output, errors = start_here("vpf_jax train", *flags)
    assert (status, errors) == (0, "")
    assert "320 for training, which stay on disk, 40 for validation, 40 for test" in output
    assert len(open_streamed("parts")) == 320
