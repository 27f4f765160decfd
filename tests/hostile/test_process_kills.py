"""One of two processes is killed, at moments drawn at random: the other ends by itself, and other devices go on.

Two moments by default; VPF_DRILLS=10 in the environment tries ten. What happened is printed (`pytest -rP` shows it).
"""

import os
import resource
import signal
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import processes
import pytest
from programs import start_here

EPOCHS, CHECKPOINTS, EVALUATIONS = 12, 2, 4
FLAGS = ["--hidden=4", "--batch_size=20", f"--epochs={EPOCHS}", f"--evaluate_every={EVALUATIONS}", "--num_samples=20"]
FLAGS += [f"--checkpoint_every={CHECKPOINTS}"]
# Seconds within which the other process ends.
PATIENCE = 60
# Processes of a run that goes on, devices of each; a single one is this process.
AFTERWARDS = ((1, 2), (2, 1), (1, 1))
DRILLS = int(os.environ.get("VPF_DRILLS", 2))


class Moment(NamedTuple):
    """When a process is killed."""

    phase: str
    epoch: int
    """After whose line."""
    seconds: float
    """After that, or after the phase has begun."""
    victim: int


def moments(count):
    """Drawn over the phases of a run, which take turns."""
    rng = np.random.default_rng(20)
    found = []
    for number in range(count):
        phase = ("checkpoint", "compilation", "evaluation", "epoch")[number % 4]
        # An evaluation and a checkpoint follow the epoch after the line, the last evaluation the last line.
        epoch, longest = {
            "compilation": (0, 2.0),
            "epoch": (int(rng.integers(1, EPOCHS)), 0.1),
            "evaluation": (int(rng.choice([EVALUATIONS - 1, EPOCHS - 1, EPOCHS])), 2.0),
            "checkpoint": (int(rng.choice(range(1, EPOCHS, CHECKPOINTS))), 0.005),
        }[phase]
        found.append(Moment(phase, epoch, float(rng.uniform(0, longest)), int(rng.integers(2))))
    return found


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Of a small training."""
    file = tmp_path_factory.mktemp("data") / "bits.npy"
    np.save(file, np.random.default_rng(0).integers(0, 2, (200, 6)))
    return [f"--dataset={file}", *FLAGS]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs, for runs that go on."""
    folder = str(tmp_path_factory.mktemp("cache"))
    return {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


@pytest.fixture(scope="module")
def straight(flags, tmp_path_factory):
    """A run of one process that nothing happens to."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert start_here("vpf_jax train", *flags, f"--workdir={folder}")[::2] == (0, "")
    return folder


def wait_for(moment: Moment, process, folder: Path) -> None:
    """Until a moment of the first of the processes has come."""
    beginning = f"epoch {moment.epoch}/" if moment.epoch else "process 0 of 2"
    for line in process.stdout:
        if line.startswith(beginning):
            break
    while moment.phase == "checkpoint" and process.poll() is None:
        if (folder / "checkpoints" / ".writing").exists():
            break
        time.sleep(0.0005)
    time.sleep(moment.seconds)


def checkpoints(folder: Path) -> list[int]:
    """Epochs of those that are there."""
    kept = folder / "checkpoints"
    return sorted(int(path.name) for path in kept.iterdir() if path.name.isdecimal()) if kept.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("number", range(DRILLS))
def test_a_killed_process_ends_the_other_and_nothing_saved_is_lost(flags, cache, straight, tmp_path, number):
    moment, folder = moments(DRILLS)[number], tmp_path / "run"
    given = [*flags, f"--workdir={folder}"]
    # What is killed while it compiles finds nothing compiled.
    own = cache | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")} if moment.phase == "compilation" else cache
    both = processes.start([*given, "--mesh=auto"], 2, **own)
    wait_for(moment, both[0], folder)
    assert both[moment.victim].poll() is None
    both[moment.victim].kill()
    began, saved = time.monotonic(), checkpoints(folder)
    found = processes.ended(both)
    seconds = time.monotonic() - began
    status, _, errors = found[1 - moment.victim]
    assert seconds < PATIENCE
    # JAX may say more before it.
    *rest, last = errors.splitlines()
    assert (status, last.partition(": ")[0]) == (1, "vpf_jax train"), errors
    assert "another of the 2 processes has ended; what was saved stays" in last
    by_jax = "JAX has ended this process, as it does when" in last
    assert not rest or by_jax or "This most likely indicates that another task died" in errors
    done = (folder / "metrics.csv").read_text().count("\n") - 1 if (folder / "metrics.csv").exists() else 0
    count, devices = AFTERWARDS[number % 3]
    if count > 1:
        others = processes.ended(processes.start([*given, "--mesh=auto"], count, devices, **cache))
    else:
        others = [start_here("vpf_jax train", *given, *([f"--mesh=data:{devices}"] if devices > 1 else []))]
    assert all(one[0] == 0 for one in others), others
    first = others[0]
    newest = max(saved, default=0)
    resumed = [int(line.split()[3]) for line in first[1].splitlines() if line.startswith("resuming after epoch")]
    # One that was being written may have become whole meanwhile; that of the last epoch is no longer resumed from.
    assert max([newest, *resumed]) == (resumed[0] if resumed else newest)
    assert resumed or newest in (0, EPOCHS)
    objectives, weights = processes.differences(folder, straight)
    print(
        f"| {number + 1} | {moment.phase} after epoch {moment.epoch}, {moment.seconds:.3f} s | process {moment.victim} "
        f"| {seconds:.1f}{', by JAX' * by_jax} | {done - (resumed[0] if resumed else newest)} | {count} x {devices} "
        f"| {objectives:.1e}, {weights:.1e} |"
    )
    processes.assert_same_run(folder, straight)


@pytest.mark.slow
def test_a_part_that_cannot_be_written_ends_both_each_with_its_sentence(flags, cache, tmp_path):
    folder = tmp_path / "run"
    given = [*flags, "--hidden=4000", "--epochs=2", f"--workdir={folder}"]
    both = processes.start([*given, "--mesh=model:2"], 2, **cache)
    # Room for the report of its own folder, not for its half of the weights.
    resource.prlimit(both[1].pid, resource.RLIMIT_FSIZE, (25_000, 25_000))
    (status, _, errors), (own_status, _, own_errors) = processes.ended(both)
    assert (status, own_status) == (1, 1), errors + own_errors
    assert "another of the 2 processes has ended; what was saved stays" in errors.splitlines()[-1]
    assert "a checkpoint cannot be written (File too large); what was saved stays" in own_errors
    assert not checkpoints(folder)
    assert start_here("vpf_jax train", *given)[::2] == (0, "")
    assert checkpoints(folder) == [2]


@pytest.mark.slow
def test_a_signal_before_training_is_not_lost(flags, cache, tmp_path):
    both = processes.start([*flags, f"--workdir={tmp_path / 'run'}", "--mesh=auto"], 2, **cache)
    for process in both:
        assert process.stdout.readline().startswith("process ")
    for process in both:
        process.send_signal(signal.SIGTERM)
    # By itself, or after saving.
    for status, _, errors in processes.ended(both):
        assert status in (-signal.SIGTERM, 128 + signal.SIGTERM), errors
