"""Planted recordings: rates as they are planted, the same wherever they are drawn, whole files or none."""

import dataclasses
import json

import numpy as np
import pytest

from vpf_jax.data import DatasetError, planted_recordings
from vpf_jax.data.planted_recordings import PART, Recording

SMALL = Recording(neurons=300, bins=6000, assemblies=5, members=40, active=0.2, background=0.05, firing=0.4)


def test_neurons_fire_as_planted():
    spikes, activity, membership = SMALL.spikes(0), SMALL.activity(0), SMALL.membership()
    assert spikes.shape == (PART, 300)
    assert membership.sum(axis=1).tolist() == [40] * 5
    active = activity.astype(int) @ membership.astype(int)
    step = np.log(0.4 / 0.6) - np.log(0.05 / 0.95)
    for number in range(3):
        bits = spikes[active == number]
        wanted = 1 / (1 + np.exp(-(np.log(0.05 / 0.95) + number * step)))
        # Within five standard errors.
        assert abs(bits.mean() - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / bits.size)
    assert abs(activity.mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / activity.size)


def test_parts_do_not_depend_on_how_they_are_drawn(monkeypatch):
    whole = SMALL.spikes(1)
    assert len(whole) == 1000
    monkeypatch.setattr(planted_recordings, "_PIECE", 7 * 300)
    np.testing.assert_array_equal(SMALL.spikes(1), whole)
    assert not np.array_equal(dataclasses.replace(SMALL, seed=1).spikes(1), whole)
    assert not np.array_equal(SMALL.spikes(0)[:1000], whole)


def test_files_are_written_once_and_whole(tmp_path, monkeypatch):
    paths = [SMALL.write(tmp_path, part) for part in range(SMALL.parts)]
    assert [path.name for path in paths] == ["bins-000000000.npy", "bins-000005000.npy"]
    np.testing.assert_array_equal(np.load(paths[1]), SMALL.spikes(1))
    assert json.loads((tmp_path / "planted.json").read_text())["neurons"] == 300
    before = paths[0].stat().st_mtime_ns
    assert SMALL.write(tmp_path, 0).stat().st_mtime_ns == before
    with pytest.raises(DatasetError, match="holds another recording"):
        dataclasses.replace(SMALL, active=0.1).write(tmp_path, 0)

    paths[1].unlink()

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(planted_recordings.atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        SMALL.write(tmp_path, 1)
    assert not paths[1].exists()


@pytest.mark.parametrize("changed", [{"members": 301}, {"active": 0.0}, {"firing": 1.0}, {"neurons": 1}], ids=str)
def test_what_cannot_be_planted_is_refused(changed):
    with pytest.raises(ValueError, match=next(iter(changed))):
        dataclasses.replace(SMALL, **changed).membership()
