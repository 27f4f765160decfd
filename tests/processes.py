"""A training, or another program, as several processes of this machine; whether two trainings are the same run."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from vpf_jax.models import load_model

PATIENCE = 120
# Relative, of objectives; weights differ by ten times as much at most. Sums over devices add in another order.
ROUNDING = 1e-5


def start(flags: Sequence[str], count: int = 1, devices: int = 1, **environment: str) -> list[subprocess.Popen]:
    """The processes of `vpf_jax train` with these flags, each with so many devices."""
    command = ["-m", "vpf_jax", "train", *flags]
    several = [f"--coordinator={_address()}", f"--processes={count}"] if count > 1 else []
    return [
        _begin(command + ([*several, f"--process={i}"] if several else []), devices, environment) for i in range(count)
    ]


def start_program(program: str, *arguments: str, count: int, devices: int) -> list[subprocess.Popen]:
    """The processes of a program in Python, which JAX has joined when it begins."""
    joined = "import sys, jax; jax.distributed.initialize(sys.argv.pop(1), int(sys.argv.pop(1)), int(sys.argv.pop(1)))"
    given = ["-c", f"{joined}\n{program}", _address(), str(count)]
    return [_begin([*given, str(i), *arguments], devices, {}) for i in range(count)]


def _address() -> str:
    """That nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def _begin(command: Sequence[str], devices: int, environment: dict[str, str]) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)} | environment
    return subprocess.Popen([sys.executable, *command], env=environment, **pipes)


def ended(processes: Sequence[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Of each process its status, output and errors, once all have ended."""
    told = [process.communicate(timeout=PATIENCE) for process in processes]
    return [(process.returncode, *text) for process, text in zip(processes, told, strict=True)]


def differences(found: Path, wanted: Path) -> tuple[float, float]:
    """Largest relative difference of the objectives of two runs, and largest difference of their weights."""
    rows = [np.genfromtxt(folder / "metrics.csv", delimiter=",", names=True)["objective"] for folder in (found, wanted)]
    stacks = [load_model(folder / "model.safetensors").stack for folder in (found, wanted)]
    pairs = zip(*map(jax.tree.leaves, stacks), strict=True)
    return np.max(np.abs(rows[0] / rows[1] - 1)), max(float(np.max(np.abs(a - b))) for a, b in pairs)


def assert_same_run(found: Path, wanted: Path, tolerance: float = ROUNDING) -> None:
    """All objectives and the trained machines agree to rounding."""
    objectives, weights = differences(found, wanted)
    assert objectives <= tolerance
    assert weights <= 10 * tolerance
