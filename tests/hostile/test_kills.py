"""The command among kills, signals, a full disk, a second process and closed pipes: it ends quietly, and resumes.

Every process shares one cache of compiled programs, and the start that nothing happens to fills it. What goes on to the
end does so in this process.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from programs import start_here

import vpf_jax
from vpf_jax.data import load_dataset

ROOT = Path(__file__).parents[2]
# Small, as most of a start is what every start takes; with several checkpoints, more bytes than a report has at first.
FLAGS = [
    "--model=rbm",
    "--hidden=128",
    "--epochs=12",
    "--num_samples=20",
    "--checkpoint_every=2",
    "--evaluate_every=6",
    "--gif=on",
]
TIMINGS = ("train_seconds", "seconds_per_epoch")
KILLS = 4


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    # Everything is kept, however short its compilation.
    kept = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return os.environ | kept


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Flags of a run on images of a file, which are read sooner than scikit-learn is imported."""
    file = tmp_path_factory.mktemp("data") / "digits.npy"
    np.save(file, load_dataset("digits_8x8").train.examples.reshape(-1, 8, 8))
    return [*FLAGS, f"--dataset={file}"]


def begin(folder, environment, flags, under=()):
    command = [*under, sys.executable, "-m", "experiments.mnist_dbm", *flags, f"--workdir={folder}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def end(process):
    """Exit status and standard error."""
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def go_on(folder, flags):
    """A start that nothing happens to, in this process."""
    ended = start_here("mnist_dbm", *flags, f"--workdir={folder}")
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.fixture(scope="module")
def straight(environment, digits, tmp_path_factory):
    """What a run that nothing happens to arrives at, and the seconds that it takes."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert end(begin(folder, environment, digits)) == (0, "")
    # The first start has compiled; the next ones take as long as this.
    shutil.rmtree(folder)
    kept, started = compiled(environment), time.perf_counter()
    assert end(begin(folder, environment, digits)) == (0, "")
    seconds = time.perf_counter() - started
    assert any("epoch" in name for name in kept)
    assert compiled(environment) == kept
    return outcome(folder), seconds


def compiled(environment):
    return {file.name for file in Path(environment["JAX_COMPILATION_CACHE_DIR"]).glob("*-cache")}


def outcome(folder):
    summary = json.loads((folder / "summary.json").read_text())
    stack = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(vpf_jax.load_stack(folder))]
    rest = {name: value for name, value in summary.items() if name not in TIMINGS}
    written = [file.read_bytes() for file in (folder / "metrics.csv", folder / "samples.gif") if file.exists()]
    return stack, written, rest


def assert_quiet(errors, lines=1):
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    assert len(errors.splitlines()) <= lines, errors


@pytest.mark.slow
def test_a_run_killed_again_and_again_arrives_at_the_same_bits(straight, environment, digits, tmp_path):
    """At random moments, and twice in the middle of writing a checkpoint."""
    expected, seconds = straight
    folder = tmp_path / "run"
    rng = np.random.default_rng(5)
    for number in range(KILLS):
        process = begin(folder, environment, digits)
        if number % 2:
            wait_for_checkpoint(process)
            # In the middle, and shortly after.
            time.sleep((number // 2) * 0.05)
        else:
            time.sleep(rng.uniform(0.3, 1) * seconds)
        kill(process)
    go_on(folder, digits)
    assert outcome(folder) == expected


@pytest.mark.slow
def test_a_run_on_counts_killed_arrives_at_the_same_bits(environment, tmp_path):
    """With chains that go on, of counts, and missing entries: between two checkpoints, and in the middle of one."""
    rng = np.random.default_rng(0)
    rates = np.where(rng.random((200, 1)) < 0.5, [4, 1, 3], [1, 5, 0.5])
    counts = np.where(rng.random((200, 3)) < 0.1, np.nan, rng.poisson(rates))
    np.save(tmp_path / "counts.npy", counts)
    flags = [f"--dataset={tmp_path / 'counts.npy'}", "--model=rbm", "--hidden=2", "--rule=pcd", "--batch_size=20"]
    flags += ["--learning_rate=0.01", "--epochs=20", "--checkpoint_every=4", "--num_samples=20", "--evaluate_every=0"]
    go_on(tmp_path / "straight", flags)
    folder = tmp_path / "run"
    for wait in (wait_for_line("epoch 6/"), wait_for_checkpoint):
        process = begin(folder, environment, flags=flags)
        wait(process)
        assert kill(process) == -signal.SIGKILL
    assert {path.name for path in (folder / "checkpoints").iterdir()} - {".writing"}
    assert not (folder / "summary.json").exists()
    go_on(folder, flags)
    assert outcome(folder) == outcome(tmp_path / "straight")
    (machine,) = vpf_jax.load_stack(folder)
    assert machine.layer_units[0] == vpf_jax.units.COUNT


def kill(process):
    """The exit status; what is killed says nothing, and what an earlier one has left is no damage to it."""
    process.kill()
    status, errors = end(process)
    assert status in (0, -signal.SIGKILL)
    assert_quiet(errors, lines=0)
    return status


def wait_for_checkpoint(process):
    folder = Path(process.args[-1].removeprefix("--workdir="))
    while process.poll() is None and not (folder / "checkpoints" / ".writing").exists():
        time.sleep(0.0005)


def wait_for_import(process):
    maps = Path(f"/proc/{process.pid}/maps")
    while "jaxlib" not in maps.read_text():
        time.sleep(0.002)


def wait_for_opening(process):
    folder = Path(process.args[-1].removeprefix("--workdir="))
    while not (folder / ".lock-holder").exists():
        time.sleep(0.002)
    # It compiles next.
    time.sleep(0.3)


def wait_for_line(beginning):
    def wait(process):
        for line in process.stdout:
            if line.startswith(beginning):
                return

    return wait


@pytest.mark.slow
def test_signals_at_every_stage_end_quietly_and_the_run_resumes(straight, environment, digits, tmp_path):
    folder = tmp_path / "run"
    stages = (
        (wait_for_import, signal.SIGINT),
        (wait_for_opening, signal.SIGTERM),
        (wait_for_line("epoch 3/"), signal.SIGINT),
        (wait_for_line("Parzen"), signal.SIGTERM),
    )
    for wait, number in stages:
        process = begin(folder, environment, digits)
        wait(process)
        process.send_signal(number)
        status, errors = end(process)
        # After saving, or, where nothing is to be saved, by the signal itself.
        assert status in (128 + number, -number), (number, status, errors)
        assert_quiet(errors)
        assert status < 0 or f"stopped by {signal.Signals(number).name}" in errors
    # A second Ctrl-C does not wait for the epoch.
    process = begin(folder, environment, digits)
    wait_for_opening(process)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    status, errors = end(process)
    assert status in (128 + signal.SIGINT, -signal.SIGINT)
    assert_quiet(errors)
    go_on(folder, digits)
    assert outcome(folder) == straight[0]


@pytest.mark.slow
def test_of_two_processes_in_one_folder_one_is_refused(straight, environment, digits, tmp_path):
    folder = tmp_path / "run"
    processes = [begin(folder, environment, digits) for _ in range(2)]
    found = {process.pid: end(process) for process in processes}
    (worked,) = [pid for pid, (status, _) in found.items() if status == 0]
    (refused,) = [pid for pid in found if pid != worked]
    status, errors = found[refused]
    assert status == 2
    assert_quiet(errors)
    assert f"is in use by process {worked} on " in errors or "is in use by another process" in errors
    assert outcome(folder) == straight[0]


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_run_resumes_where_there_is_room(straight, environment, digits, tmp_path):
    folder = tmp_path / "run"
    # Room for the report, not for the weights: over how many files orbax spreads a checkpoint differs between runs.
    limited = ["bash", "-c", 'ulimit -f 25; exec "$@"', "bash"]
    status, errors = end(begin(folder, environment, digits, limited))
    assert status == 1, errors
    assert_quiet(errors)
    assert "checkpoints/2: a checkpoint cannot be written (File too large); what was saved stays" in errors
    go_on(folder, digits)
    assert outcome(folder) == straight[0]


@pytest.mark.slow
def test_nobody_reading_is_a_quiet_end(straight, environment, digits, tmp_path):
    for flags in (["--help"], digits):
        process = begin(tmp_path / "run", environment, flags=flags)
        assert process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        # All of the help may have been written before the reader left.
        assert process.wait(timeout=300) in ((0, 141) if flags == ["--help"] else (141,))
        assert errors == ""
        process.stderr.close()
