"""What goes along with a run: its page, report.html, and its metrics as TensorBoard events where these are asked for.

`runs.carry_out` opens and closes it, and `loop.train` tells it of every epoch; nothing else has to know of it. The page
is written at the start, at each evaluation, between these as often as costs no more than a hundredth of the time, and
at the end. Neither it nor the events are ever the reason that a run fails: what cannot be written is said once. Events
are written anew from the rows that the checkpoint keeps, so that a resumed run has each step once. Not here: what
stands in the page (`report`).
"""

import contextlib
import contextvars
import datetime
import importlib.util
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vpf_jax.app import report
from vpf_jax.app.folder import Stopped, UsageError, read_object, write_text
from vpf_jax.checks import SettingError

EVENTS = "tensorboard"
# Of the time that passes between two writings of the page, so many times what one takes, and these seconds at least.
_SELDOM, _PAUSE = 100, 1.0

_log = logging.getLogger(__name__)
_followed: contextvars.ContextVar["Follower | None"] = contextvars.ContextVar("followed", default=None)


class Follower:
    """Of one run."""

    def __init__(self, folder: Path, command: str, about: Mapping[str, Any], events: bool) -> None:
        self._folder, self._command, self._about, self._events = folder, command, about, events
        self._trainings: dict[Path, report.Training] = {}
        self._writers: list[Any] = []
        self._broken: set[str] = set()
        self._written = self._took = -math.inf
        self._told = "begins"

    def begin(self, folder: Path, name: str, rows: list[dict[str, Any]], epochs: int) -> Callable[[bool], None]:
        """Of a training with the rows that it has already; what is given is to be called after each epoch.

        It is told whether the epoch was evaluated; the rows are read in place.
        """
        own = "" if folder == self._folder else report.name_of(folder)
        if own == folder.name and name:
            own = name
        self._trainings[folder] = report.Training(own, rows, epochs)
        writer = self._try("TensorBoard events", lambda: self._writer(own, rows)) if self._events else None

        def epoch(evaluated: bool) -> None:
            self._told = f"{own} {self._trainings[folder].told}".strip()
            if writer is not None:
                self._try("TensorBoard events", lambda: _add(writer, rows[-1]))
            if evaluated or self._due():
                self.write()

        if rows:
            self._told = f"{own} {self._trainings[folder].told}".strip()
        self.write()
        return epoch

    def say(self, told: str) -> None:
        """Of what is done after training."""
        self._told = told
        if self._due():
            self.write()

    def write(self, ending: str = "", summary: Mapping[str, Any] | None = None) -> None:
        """The page, as far as the run is; at its end with what it has found."""
        now = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
        state = f"{ending}, {now}" if ending else f"Going on: {self._told}, {now}"
        started = time.perf_counter()
        self._try(report.NAME, lambda: self._write(state, summary, not ending))
        self._written = time.perf_counter()
        self._took = self._written - started

    def close(self) -> None:
        """Ends the events."""
        for writer in self._writers:
            self._try("TensorBoard events", writer.close)

    def _due(self) -> bool:
        return time.perf_counter() - self._written > max(_PAUSE, _SELDOM * self._took)

    def _write(self, state: str, summary: Mapping[str, Any] | None, goes_on: bool) -> None:
        run = report.Run(
            name=self._folder.resolve().name,
            settings=read_object(self._folder / "config.json") or {},
            trainings=list(self._trainings.values()),
            summary=summary or self._about,
            table=report.read_table(self._folder) if summary else "",
            pictures=report.read_pictures(self._folder),
            state=state,
        )
        page = report.page([run], run.name, command=self._command, goes_on=goes_on)
        write_text(self._folder / report.NAME, page)

    def _writer(self, training: str, rows: list[dict[str, Any]]) -> Any:
        writer = _fresh_writer(self._folder, training)
        self._writers.append(writer)
        for row in rows:
            _add(writer, row)
        return writer

    def _try(self, what: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:
            if what not in self._broken:
                self._broken.add(what)
                _log.warning("%s of %s cannot be written (%s); the run goes on", what, self._folder, error)
            return None


@contextlib.contextmanager
def following(folder: Path, command: str, about: Mapping[str, Any], *, events: bool = False) -> Iterator[Follower]:
    """Follows what this thread does in the folder of a run.

    Args:
      folder: of the run.
      command: what was typed, as the page shows it.
      about: what of the summary is known before the end.
      events: whether metrics become TensorBoard events, too.
    """
    new = not (folder / report.NAME).exists()
    follower = Follower(folder, command, about, events)
    before = _followed.set(follower)
    try:
        follower.write()
        yield follower
    except BaseException as error:
        if isinstance(error, SettingError) and new:
            # The folder should not hold the user to settings that are not allowed.
            (folder / report.NAME).unlink(missing_ok=True)
        else:
            follower.write(_ending(error))
        raise
    finally:
        _followed.reset(before)
        follower.close()


def training(folder: Path, name: str, rows: list[dict[str, Any]], epochs: int) -> Callable[[bool], None]:
    """`Follower.begin` of the run that this thread carries out; where it carries out none nothing happens."""
    follower = _followed.get()
    return (lambda evaluated: None) if follower is None else follower.begin(folder, name, rows, epochs)


def say(told: str) -> None:
    """`Follower.say` of the run that this thread carries out, if any."""
    follower = _followed.get()
    if follower is not None:
        follower.say(told)


def require_events() -> None:
    """Raises UsageError where nothing can write TensorBoard events."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise UsageError(
            "--tensorboard needs the package tensorboardX, not installed here: install vpf_jax[tensorboard]"
        )


def write_events(folder: Path) -> None:
    """TensorBoard events of a finished run that has none; where they cannot be written this is said."""
    try:
        for one in report.read_trainings(folder):
            with contextlib.closing(_fresh_writer(folder, one.name)) as writer:
                for row in one.rows:
                    _add(writer, row)
    except Exception as error:
        _log.warning("TensorBoard events of %s cannot be written (%s)", folder, error)


def _fresh_writer(run: Path, training: str) -> Any:
    """Of the events of a training, without those that an earlier start has written."""
    import tensorboardX

    place = run / EVENTS / training.replace("/", "-")
    for old in place.glob("events.out.tfevents.*"):
        old.unlink()
    return tensorboardX.SummaryWriter(str(place))


def _add(writer: Any, row: dict[str, Any]) -> None:
    for name, value in row.items():
        if name != "epoch":
            writer.add_scalar(name, float(np.mean(value)), int(row["epoch"]))


def _ending(error: BaseException) -> str:
    if isinstance(error, Stopped):
        return str(error)[0].upper() + str(error)[1:]
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted"
    return f"Ended by {type(error).__name__}: {error}"
