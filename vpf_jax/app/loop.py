"""The one loop over epochs: resumed from the newest sound checkpoint, measured, saved, stopped without loss.

A training is one phase or more. A phase is made of functions, so that any pytree is a state and any function an epoch.
The checkpoints of the first phase lie in checkpoints/, those of the n-th in checkpoints-n/; each holds the rows of
metrics.csv up to it, too. Not here: what an epoch does (`recipes`, `vpf_jax.related`), what is measured.
"""

import itertools
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from vpf_jax import checkpoint
from vpf_jax.app import devices, follow
from vpf_jax.app.folder import MetricsFile, Stopped, locked
from vpf_jax.train import NonFiniteObjectiveError

# Seconds that a start waits for another one in a folder of trained systems: reading a finished one takes less.
WAIT = 10
# Of an epoch: scalars, or lists of one number per seed.
Row = dict[str, Any]
RunEpoch = Callable[[Any, int], tuple[Any, Row]]

_log = logging.getLogger(__name__)


class Phase(NamedTuple):
    """Epochs of one kind."""

    epochs: int
    prepare: Callable[[Any], RunEpoch]
    """From the phase's first state, the function that runs an epoch: from a state, which it may donate, and the number
    of the epoch, 1 for the first of the training, it gives the next state and scalars, or an array over seeds each.
    Whatever is random in it comes from a key in the state or is derived from the number, so that a resumed run goes on
    with the same bits. What is compiled here does not count as training."""
    start: Callable[[Any], Any] = lambda state: state
    """The phase's first state, from the last one of the phase before."""


class Trained(NamedTuple):
    """A training at its end."""

    state: Any
    rows: list[Row]
    """One per epoch."""
    seconds: float
    """Spent in epochs."""

    def column(self, name: str) -> tuple[list[float], list[Any]]:
        """(epochs, values) where it was measured."""
        rows = [row for row in self.rows if name in row]
        return [row["epoch"] for row in rows], [row[name] for row in rows]


def train(
    folder: Path,
    state: Any,
    phases: Sequence[Phase],
    *,
    checkpoint_every: int,
    stops: Sequence[int],
    place: Callable[[Any], Any] = lambda state: state,
    columns: Sequence[str] = (),
    measure: Callable[[Any, int], Row] | None = None,
    told: Callable[[Row], str] | None = None,
    until: Callable[[Row], bool] | None = None,
    evaluated: Callable[[int], bool] = lambda epoch: False,
    name: str = "",
) -> Trained:
    """Runs the epochs that are left.

    Args:
      folder: of the run, or of one of several trainings of a run.
      state: a pytree of arrays and typed random keys, before the first epoch.
      phases: follow one another.
      checkpoint_every: epochs between checkpoints; the end of a phase has one too.
      stops: signals received (`folder.stop_requests`); of several processes that of one stops all.
      place: lays a state over devices; as it is given, and as it comes from a checkpoint or another phase, it may lie
        elsewhere.
      columns: of metrics.csv: what epochs and `measure` give; none: no such file.
      measure: more scalars of a state after an epoch, outside the time that is counted; it may leave some out.
      told: what is reported of a row; None: its numbers.
      until: whether an epoch with such a row is the last one.
      evaluated: whether `measure` has evaluated after an epoch of this number; the run's page is then written again.
      name: tells one training from others of the same command.

    Raises:
      Stopped: a signal has arrived; a checkpoint is saved.
      UsageError: another process trains in the folder.
      vpf_jax.checkpoint.CheckpointError: all checkpoints are damaged, or one is of something else or of an epoch beyond
        its phase.
      NonFiniteObjectiveError: a scalar is not finite; the last good checkpoint stays.
    """
    prefix = f"{name}, " if name else ""
    ends = list(itertools.accumulate(phase.epochs for phase in phases))
    with locked(folder, WAIT):
        number, done, state, info = _restored(folder, state, phases, ends)
        state = place(state)
        if 0 < done < ends[-1]:
            print(f"{prefix}resuming after epoch {done} of {ends[-1]}")
        saved, rows = done, info["rows"]
        table = MetricsFile(folder / "metrics.csv", columns, rows) if columns else None
        tell = follow.training(folder, name, rows, ends[-1])
        run_epoch: RunEpoch | None = None

        def save() -> int:
            whole = devices.local(state)
            if devices.is_first():
                checkpoint.save_checkpoint(_checkpoints(folder, number), done, whole, info)
            return done

        with Progress(ends[-1], done, name) as progress:
            stop = 0
            while done < ends[-1] and not (until and rows and until(rows[-1])):
                stop = devices.stop_asked(stops)
                if stop:
                    break
                if done == ends[number]:
                    number += 1
                    state, run_epoch = place(phases[number].start(state)), None
                if run_epoch is None:
                    run_epoch = phases[number].prepare(state)
                    # Compiling takes long, and a signal may have arrived meanwhile.
                    continue
                started = time.perf_counter()
                state, scalars = jax.block_until_ready(run_epoch(state, done + 1))
                took = time.perf_counter() - started
                done, info["train_seconds"] = done + 1, info["train_seconds"] + took
                row = scalars | (measure(state, done) if measure else {})
                row = {"epoch": done, **{key: np.asarray(value, np.float64).tolist() for key, value in row.items()}}
                _check_finite(row)
                rows.append(row)
                if table is not None:
                    table.append(row)
                progress.report(done, (told or _numbers)(row), took)
                tell(evaluated(done))
                if done % checkpoint_every == 0 or done == ends[number]:
                    saved = save()
            if saved < done:
                saved = save()
    if stop:
        raise Stopped(stop, f"{prefix}epoch {done} of {ends[-1]} is saved; start again to resume")
    return Trained(state, rows, info["train_seconds"])


class Progress:
    """Reports epochs as they end: a bar with the time left on a terminal, else one line each.

    A context manager, so that the bar is closed before anything else is printed.
    """

    def __init__(self, epochs: int, done: int, name: str = "") -> None:
        """Starts after the `done`-th of the epochs; `name` tells one training from others of the same command."""
        self._epochs = epochs
        self._prefix = f"{name}, " if name else ""
        bar = {"total": epochs, "initial": done, "unit": "epoch", "desc": name or None}
        self._bar = tqdm(**bar) if sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def report(self, epoch: int, told: str, seconds: float) -> None:
        """Shows what is told of an epoch that took `seconds`."""
        if self._bar is None:
            print(f"{self._prefix}epoch {epoch}/{self._epochs}: {told}, {seconds:.2f} s", flush=True)
        else:
            self._bar.set_postfix_str(told, refresh=False)
            self._bar.update()


def _restored(
    folder: Path, state: Any, phases: Sequence[Phase], ends: Sequence[int]
) -> tuple[int, int, Any, dict[str, Any]]:
    """Of the last phase that has a sound checkpoint: its number, epochs done, the state after them, what goes with it.

    Else 0, 0 and the state that is given. Of several processes the first one reads, for all.
    """
    if jax.process_count() == 1:
        return _read(folder, state, phases, ends)
    found = _read(folder, state, phases, ends) if devices.is_first() else None
    number, done, info = devices.of_first(lambda: found and (found[0], found[1], found[3]))
    like = _shapes(state, phases)[number] if done else state
    state = found[2] if found else jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    return number, done, devices.arrays_of_first(state), info


def _shapes(state: Any, phases: Sequence[Phase]) -> list[Any]:
    """Of the states of each phase."""
    shapes = [state]
    for phase in phases[1:]:
        shapes.append(jax.eval_shape(phase.start, shapes[-1]))
    return shapes


def _read(
    folder: Path, state: Any, phases: Sequence[Phase], ends: Sequence[int]
) -> tuple[int, int, Any, dict[str, Any]]:
    """`_restored` in one process."""
    shapes = _shapes(state, phases)
    damage = None
    for number in reversed(range(len(phases))):
        try:
            found = checkpoint.restore_checkpoint(_checkpoints(folder, number), shapes[number])
        except checkpoint.CheckpointMismatchError:
            raise
        except checkpoint.CheckpointError as error:
            # The phase can be trained again from the end of the one before it.
            damage = damage or error
            continue
        if found is None:
            continue
        if found[0] > ends[number]:
            raise checkpoint.CheckpointError(
                f"{_checkpoints(folder, number) / str(found[0])} is of an epoch beyond the {ends[number]} of this run; "
                "remove it to go on from the one before it"
            )
        if damage is not None:
            _log.warning("%s: trained again from the end of epoch %s", folder, found[0])
        return number, *found
    if damage is not None:
        raise damage
    return 0, 0, state, {"train_seconds": 0.0, "rows": []}


def _checkpoints(folder: Path, number: int) -> Path:
    return folder / ("checkpoints" if number == 0 else f"checkpoints-{number + 1}")


def _check_finite(row: Row) -> None:
    for name, value in row.items():
        if not all(math.isfinite(one) for one in np.ravel(value)):
            raise NonFiniteObjectiveError(
                f"{name} is {value} in epoch {row['epoch']}; the last good checkpoint stays, try a lower learning rate"
            )


def _numbers(row: Row) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {np.mean(value):.4g}" for name, value in row.items() if name != "epoch")
