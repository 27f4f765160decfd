"""--mesh, and several processes that work as one: what they compute, how they stop, and how they end."""

import json
import signal
import time

import jax
import numpy as np
import processes
import pytest
from processes import assert_same_run, ended
from programs import start_here

from vpf_jax.app import devices
from vpf_jax.app.command import failure
from vpf_jax.checkpoint import CheckpointError
from vpf_jax.checks import SettingError
from vpf_jax.data import load_dataset

pytestmark = pytest.mark.usefixtures("blank_pictures")

TRAINED = ["--model=rbm", "--hidden=6", "--batch_size=100", "--evaluation=likelihood"]
TRAINED += ["--evaluate_every=0", "--num_samples=20", "--checkpoint_every=2"]


def test_a_mesh_as_it_is_typed():
    assert devices.MeshSettings().devices(data=40) is None
    assert devices.MeshSettings("data:1").devices(data=40) is None
    mesh = devices.MeshSettings("data:2,model:4").devices(data=40, model=8)
    assert dict(mesh.shape) == {"seeds": 1, "data": 2, "model": 4}


@pytest.mark.parametrize(("whole", "count"), [({"data": 40}, 8), ({"data": 10}, 5), ({"data": 0}, 8)])
def test_auto_takes_all_devices_that_divide_the_work(whole, count):
    assert jax.device_count() == 8
    assert devices.MeshSettings("auto").devices(**whole).size == count


def test_auto_gives_each_seed_a_device():
    assert devices.MeshSettings("auto").devices(seeds=6).shape["seeds"] == 6


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ("data", "auto, or axes among seeds, data, model with their devices, such as data:4,model:2"),
        ("rows:2", "auto, or axes among"),
        ("data:2,data:2", "auto, or axes among"),
        ("data:0", "auto, or axes among"),
        ("data:3", "a number of devices along data that divides 40"),
        ("seeds:2", "axes among data, model here"),
        ("data:40", "axes of 8 devices together, which there are"),
        ("model:3", "a number of devices along model that divides 8"),
    ],
)
def test_what_is_no_mesh(given, allowed):
    with pytest.raises(SettingError) as refusal:
        devices.MeshSettings(given).devices(data=40, model=8)
    assert refusal.value.name == "mesh"
    assert allowed in refusal.value.allowed


@pytest.mark.parametrize(
    ("given", "name", "allowed"),
    [
        ({"processes": 2}, "processes", "nothing, as one process has no --coordinator"),
        ({"coordinator": "auto", "mesh": "auto", "process": 1}, "process", "nothing, as with --coordinator=auto"),
        ({"coordinator": "here", "mesh": "auto"}, "coordinator", "HOST:PORT, or auto"),
        ({"coordinator": "a:1", "mesh": "auto", "process": 0}, "processes", "the number of processes"),
        ({"coordinator": "a:1", "mesh": "auto", "processes": 2}, "process", "the number of this process"),
        ({"coordinator": "a:1", "mesh": "auto", "processes": 2, "process": 2}, "process", "a number below the 2"),
        ({"coordinator": "a:1", "processes": 2, "process": 1}, "mesh", "a mesh, or auto, with --coordinator"),
    ],
)
def test_what_are_no_processes(given, name, allowed):
    with pytest.raises(SettingError) as refusal:
        devices.ProcessSettings(**given)
    assert refusal.value.name == name
    assert allowed in refusal.value.allowed


def test_a_single_process_agrees_with_itself():
    stops = [signal.SIGTERM]
    assert devices.stop_asked(stops) == signal.SIGTERM
    assert devices.stop_asked([]) == 0
    assert devices.death(ValueError("UNKNOWN: Gloo AllGather failed")) is None


def test_a_checkpoint_that_another_process_ends_is_told_as_its_end(monkeypatch):
    written = CheckpointError("checkpoint 2 cannot be written")
    assert failure(written)[0] == 2
    written.__cause__ = ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
    assert failure(written)[0] == 2
    monkeypatch.setattr(devices, "several", lambda: True)
    status, told = failure(written)
    assert status == 1
    assert "has ended; what was saved stays" in told
    assert failure(CheckpointError("checkpoint 2 cannot be written"))[0] == 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Flags of a run on digits of a file, which are read sooner than scikit-learn is imported."""
    file = tmp_path_factory.mktemp("data") / "digits.npy"
    np.save(file, load_dataset("digits_8x8").train.examples.reshape(-1, 8, 8))
    return [*TRAINED, f"--dataset={file}"]


@pytest.fixture
def start(trained):
    """Begins both processes of one run, each with a device."""
    return lambda folder, *flags: processes.start([*trained, f"--workdir={folder}", "--mesh=auto", *flags], 2)


def run_here(trained, folder, *flags):
    """A run of this process, which must succeed."""
    assert start_here("vpf_jax train", *trained, f"--workdir={folder}", *flags)[::2] == (0, "")


def wait_for(file, text):
    for _ in range(10 * processes.PATIENCE):
        if file.exists() and text in file.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"{file} has no {text!r}")


@pytest.fixture(scope="module")
def single(trained, tmp_path_factory):
    """A run of one process on one device."""
    folder = tmp_path_factory.mktemp("single") / "run"
    run_here(trained, folder, "--epochs=6")
    return folder


@pytest.mark.slow
def test_a_run_over_devices_goes_on_over_others(trained, single, tmp_path):
    folder = tmp_path / "run"
    for epochs, mesh in ((3, "data:2,model:2"), (5, "auto"), (6, "data:1")):
        run_here(trained, folder, f"--epochs={epochs}", f"--mesh={mesh}")
    assert_same_run(folder, single)


@pytest.mark.slow
def test_two_processes_are_one_run(start, single, tmp_path):
    folder = tmp_path / "run"
    first, second = ended(start(folder, "--epochs=6"))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "process 0 of 2: 1 of 2 devices (cpu)" in first[1]
    assert "epoch 6/6" in first[1]
    assert second[1] == "process 1 of 2: 1 of 2 devices (cpu)\n"
    assert_same_run(folder, single)
    summaries = [json.loads((place / "summary.json").read_text()) for place in (folder, single)]
    scores = [summary["log_likelihood_test"]["mean"] for summary in summaries]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    first, second = ended(start(folder, "--epochs=6"))
    assert (first[0], second[0]) == (0, 0)
    assert "finished already" in first[1]


@pytest.mark.slow
def test_a_signal_at_one_process_stops_both_and_one_process_goes_on(trained, start, tmp_path):
    folder, whole = tmp_path / "run", tmp_path / "whole"
    # Enough of them that the signal comes before the last.
    flags = "--epochs=300", "--checkpoint_every=100"
    both = start(folder, *flags)
    wait_for(folder / "metrics.csv", "\n3,")
    both[1].send_signal(signal.SIGTERM)
    for status, _, errors in ended(both):
        assert status == 128 + signal.SIGTERM
        assert "stopped by SIGTERM; epoch" in errors
    # The last checkpoint is of the epoch at which both have stopped.
    rows = (folder / "metrics.csv").read_text().splitlines()[1:]
    assert len(rows) < 300
    assert max(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal()) == len(rows)
    for place in (folder, whole):
        run_here(trained, place, *flags)
    assert_same_run(folder, whole, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_one_process_ends_the_other_with_a_sentence(start, tmp_path, victim):
    folder = tmp_path / "run"
    both = start(folder, "--epochs=4000")
    wait_for(folder / "metrics.csv", "\n3,")
    both[victim].kill()
    began = time.monotonic()
    found = ended(both)
    assert time.monotonic() - began < 60
    status, _, errors = found[1 - victim]
    assert status == 1, errors
    assert "another of the 2 processes has ended; what was saved stays" in errors
    assert "Traceback" not in errors
