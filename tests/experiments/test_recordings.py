"""Recordings: most assemblies are found in a small one, a stopped run goes on to the same end, wrong settings."""

import csv
import json

import matplotlib.image
import numpy as np
import pytest
from programs import quick_flags, start_here

from experiments import recordings
from vpf_jax.app.folder import Stopped
from vpf_jax.checks import SettingError

SHORT = {"neurons": 500, "bins": 2000, "assemblies": 6, "members": 40, "num_sampled": 1000, "epochs": 2}


@pytest.mark.slow
def test_the_quick_setting_finds_most_assemblies(tmp_path):
    flags = [*quick_flags(recordings), f"--workdir={tmp_path / 'run'}"]
    ended = start_here("recordings", *flags)
    assert ended.returncode == 0, ended.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["overlap_at_start"] < 0.5 < summary["recovered"]
    assert summary["overlap"] > 0.7
    assert len(summary["overlaps"]) == 20
    assert 0.1 < summary["peak_memory_gb"] < 4
    assert (tmp_path / "run" / "table.md").read_text() in ended.stdout
    assert matplotlib.image.imread(tmp_path / "run" / "overlaps.png").ndim == 3
    assert "finished" in start_here("recordings", *flags).stdout


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_end(tmp_path, monkeypatch):
    def run(name):
        recordings.run(recordings.Config(**SHORT, workdir=str(tmp_path / name)))
        with (tmp_path / name / "metrics.csv").open() as file:
            return list(csv.DictReader(file))

    wanted = run("whole")
    assert len(wanted) == 2
    fit, phase = recordings.fit, recordings.loop.Phase

    def stopped(*given):
        # After its first epoch.
        with monkeypatch.context() as patched:
            patched.setattr(recordings.loop, "Phase", lambda epochs, prepare: phase(1, prepare))
            fit(*given)
        raise Stopped(15, "epoch 1 of 2 is saved")

    with monkeypatch.context() as patched:
        patched.setattr(recordings, "fit", stopped)
        with pytest.raises(Stopped):
            run("stopped")
    assert run("stopped") == wanted


def test_a_random_start_has_no_seeds(tmp_path):
    config = recordings.Config(
        neurons=60, bins=200, assemblies=3, members=10, start="random", epochs=1, workdir=str(tmp_path / "run")
    )
    found = recordings.run(config)
    assert found["overlap_at_start"] < 0.6
    assert np.isfinite(found["overlap"])


def test_settings_that_do_not_fit_are_refused():
    for given, name in (
        ({"members": 41_000}, "members"),
        ({"bins": 100}, "batch_size"),
        ({"num_sampled": 1}, "num_sampled"),
        ({"dataset": "mnist_5k"}, "dataset"),
        ({"activity": 1.0}, "activity"),
    ):
        with pytest.raises(SettingError) as error:
            recordings.Config(**given)
        assert error.value.name == name
