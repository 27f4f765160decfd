"""The one loop over epochs: resumed from the newest sound checkpoint, measured, saved, stopped without loss.

A training is one phase or more. A phase is made of functions, so that any pytree is a state and any function an epoch.
The checkpoints of the first phase lie in checkpoints/, those of the n-th in checkpoints-n/; each holds the rows of
metrics.csv up to it, too. Where epochs can be left before they end (`Phase.within`), one that is under way is saved in
checkpoints-within/, under the number of epochs before it, when a signal arrives and every `PAUSE` seconds. Not here:
what an epoch does (`recipes`, `vpf_jax.related`), what is measured.
"""

import itertools
import logging
import math
import shutil
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

from vpf_jax import checkpoint, processes
from vpf_jax.app import devices, follow
from vpf_jax.app.folder import MetricsFile, Stopped, locked
from vpf_jax.train import NonFiniteObjectiveError

# Seconds that a start waits for another one in a folder of trained systems: reading a finished one takes less.
WAIT = 10
# Seconds between checkpoints within an epoch.
PAUSE = 600
WITHIN = "checkpoints-within"
# Of an epoch: scalars, or lists of one number per seed.
Row = dict[str, Any]
RunEpoch = Callable[..., tuple[Any, Row]]

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
    within: Callable[[Any], Any] | None = None
    """Of epochs that can be left: from a state what stands for an epoch after it that has begun, a pytree. The function
    that runs an epoch then takes one of these in place of a state, too, and as a third argument a function, which it
    calls with each that it comes to, and from which an exception may come."""


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
      place: lays a state over devices, and says of one of abstract arrays where it would lie; as it is given, and as it
        comes from a checkpoint or another phase, it may lie elsewhere.
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
        checkpoints = _Checkpoints(folder, state, place)
        number, done, state, info = _restored(checkpoints, state, phases, ends)
        state = place(state)
        # Whether the epoch after those that are done has a checkpoint within, of which the state may be.
        kept = info.pop("within", False)
        if kept:
            print(f"{prefix}resuming within epoch {done + 1} of {ends[-1]}")
        elif 0 < done < ends[-1]:
            print(f"{prefix}resuming after epoch {done} of {ends[-1]}")
        saved, rows = done, info["rows"]
        table = MetricsFile(folder / "metrics.csv", columns, rows) if columns else None
        tell = follow.training(folder, name, rows, ends[-1])
        run_epoch: RunEpoch | None = None
        started = last = 0.0

        def save() -> int:
            checkpoints.save(_name(number), done, state, info)
            checkpoints.remove(WITHIN)
            return done

        def keep(epoch: Any) -> None:
            """Saves an epoch that has begun, where it is time, or where the run is to stop, and then ends it."""
            nonlocal kept, last
            asked, now = devices.stop_asked(stops), time.perf_counter()
            if not asked and not processes.of_first(lambda: now - last >= PAUSE):
                return
            if not kept:
                checkpoints.remove(WITHIN)
            seconds = info["train_seconds"] + now - started
            checkpoints.save(WITHIN, done, epoch, {**info, "train_seconds": seconds, "phase": number})
            kept, last = True, time.perf_counter()
            if asked:
                raise Stopped(
                    asked, f"{prefix}epoch {done} of {ends[-1]} and part of the next are saved; start again to resume"
                )

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
                started = last = time.perf_counter()
                given = (state, done + 1) if phases[number].within is None else (state, done + 1, keep)
                state, scalars = jax.block_until_ready(run_epoch(*given))
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
                if done % checkpoint_every == 0 or done == ends[number] or kept:
                    saved, kept = save(), False
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


class _Checkpoints:
    """The folders of checkpoints of a training, and which processes write and read them.

    Where several processes all reach the run's folder each writes and reads its own parts of what lies over them; else
    the first one does all of it, for all.
    """

    def __init__(self, folder: Path, state: Any, place: Callable[[Any], Any]) -> None:
        """Of a run's folder, such a state as is kept there, and of what lays it over devices."""
        self._place = place
        home = processes.shared(folder)
        self._together = jax.process_count() > 1 and home is not None and checkpoint.is_cut(self._laid(state))
        self.folder = home if home is not None else folder

    def _laid(self, like: Any) -> Any:
        """Abstract arrays where they are to lie."""
        return self._place(jax.eval_shape(lambda state: state, like))

    def save(self, name: str, done: int, state: Any, info: dict[str, Any]) -> None:
        """A checkpoint in a folder of this name."""
        if not self._together:
            state = devices.local(state)
        if self._together or processes.is_first():
            checkpoint.save_checkpoint(self.folder / name, done, state, info)

    def restore(self, name: str, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """`checkpoint.restore_checkpoint` of the folder of this name."""
        if self._together:
            return checkpoint.restore_checkpoint(self.folder / name, self._laid(like))
        found: Any = None

        def read() -> Any:
            nonlocal found
            found = checkpoint.restore_checkpoint(self.folder / name, like)
            return found and [found[0], found[2]]

        told = processes.by_first(read, checkpoint.CheckpointError, checkpoint.CheckpointMismatchError)
        if told is None:
            return None
        state = found[1] if found else jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        return told[0], devices.arrays_of_first(state), told[1]

    def remove(self, name: str) -> None:
        """The folder of this name, where it is there."""
        if processes.is_first():
            shutil.rmtree(self.folder / name, ignore_errors=True)


def _restored(
    kept: _Checkpoints, state: Any, phases: Sequence[Phase], ends: Sequence[int]
) -> tuple[int, int, Any, dict[str, Any]]:
    """Of the last phase that has a sound checkpoint: its number, epochs done, the state after them, what goes with it.

    Else 0, 0 and the state that is given.
    """
    shapes = [state]
    for phase in phases[1:]:
        shapes.append(jax.eval_shape(phase.start, shapes[-1]))
    found = _between_epochs(kept, state, shapes, ends)
    folder = kept.folder / WITHIN
    info, is_there = processes.by_first(
        lambda: [checkpoint.newest_info(folder), folder.exists()], checkpoint.CheckpointError
    )
    if info is None and is_there:
        _warn(f"{folder} is damaged; the epoch that it is of begins anew")
    number = (info or {}).get("phase", len(phases))
    within = phases[number].within if number < len(phases) else None
    if within is None:
        return found
    try:
        epoch = kept.restore(WITHIN, jax.eval_shape(within, shapes[number]))
    except checkpoint.CheckpointMismatchError:
        raise
    except checkpoint.CheckpointError:
        # That it is damaged has been said.
        epoch = None
    # One that is older is of an epoch that has been finished.
    if epoch is None or not found[1] <= epoch[0] < ends[number]:
        return found
    done, state, info = epoch
    return number, done, state, {**info, "within": True}


def _between_epochs(
    kept: _Checkpoints, state: Any, shapes: Sequence[Any], ends: Sequence[int]
) -> tuple[int, int, Any, dict[str, Any]]:
    """`_restored` of checkpoints after whole epochs."""
    damage = None
    for number in reversed(range(len(shapes))):
        try:
            found = kept.restore(_name(number), shapes[number])
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
                f"{kept.folder / _name(number) / str(found[0])} is of an epoch beyond the {ends[number]} of this run; "
                "remove it to go on from the one before it"
            )
        if damage is not None:
            _warn(f"{kept.folder}: trained again from the end of epoch {found[0]}")
        return number, *found
    if damage is not None:
        raise damage
    return 0, 0, state, {"train_seconds": 0.0, "rows": []}


def _warn(sentence: str) -> None:
    """Once, of several processes that see the same."""
    if processes.is_first():
        _log.warning(sentence)


def _name(number: int) -> str:
    """Of the folder of a phase's checkpoints."""
    return "checkpoints" if number == 0 else f"checkpoints-{number + 1}"


def _check_finite(row: Row) -> None:
    for name, value in row.items():
        if not all(math.isfinite(one) for one in np.ravel(value)):
            raise NonFiniteObjectiveError(
                f"{name} is {value} in epoch {row['epoch']}; the last good checkpoint stays, try a lower learning rate"
            )


def _numbers(row: Row) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {np.mean(value):.4g}" for name, value in row.items() if name != "epoch")
