"""The folder of a run: its configuration, metrics, summary, and stopping without loss.

Every write is atomic or, for the metrics, cut back on resuming to what the checkpoint knows. Not here: checkpoints
(`vpf_jax.checkpoint`), what is computed.
"""

import contextlib
import csv
import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any


class UsageError(ValueError):
    """Something the user gave is not allowed: one sentence that says what was given and what is allowed."""


class Stopped(Exception):
    """The run was asked to stop by a signal, and has saved."""

    def __init__(self, signal_number: int, saved: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; {saved}")
        self.exit_status = 128 + signal_number


def open_workdir(
    path: str | Path, config: dict[str, Any], free: Sequence[str] = (), defaults: Mapping[str, Any] | None = None
) -> Path:
    """Makes the folder and its config.json, or checks that it holds a run of the same configuration.

    Args:
      path: the folder.
      config: values that JSON can hold.
      free: names of settings that may differ between starts of one run, such as where the data lie.
      defaults: what settings stand for that a run of an earlier version does not know.

    Raises:
      UsageError: a path that is no folder, a folder with other contents, or a run of another configuration.
    """
    path = Path(path)
    file = path / "config.json"
    if path.exists() and not path.is_dir():
        raise UsageError(f"--workdir={path} is a file; it takes a folder, which may be missing")
    if file.exists():
        try:
            held = json.loads(file.read_text())
        except ValueError:
            raise UsageError(f"{file} cannot be read as JSON; give a new --workdir") from None
        held = dict(defaults or {}) | held
        # As JSON gives them back, tuples being lists.
        config = json.loads(json.dumps(config))
        names = [n for n in config if n not in free and config[n] != held.get(n)]
        names += [n for n in held if n not in config]
        if names:
            held_text = ", ".join(f"--{n}={held.get(n)}" for n in names)
            given_text = ", ".join(f"--{n}={config.get(n)}" for n in names)
            raise UsageError(
                f"--workdir={path} holds a run with {held_text}, but {given_text} was given; "
                "give the same configuration to resume it, or another --workdir"
            )
    elif path.is_dir() and any(path.iterdir()):
        raise UsageError(f"--workdir={path} holds files that are no run; it takes a new, an empty or a run's folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_json(file, config)
    except OSError as error:
        raise UsageError(f"--workdir={path} cannot be written ({error.strerror})") from None
    return path


def finished_summary(workdir: Path) -> dict[str, Any] | None:
    """The summary of a run that is finished already, which is said; None of one that is not."""
    summary = read_json(workdir / "summary.json")
    if summary is not None:
        print(f"finished already, in {workdir}: nothing left to do (a new --workdir starts afresh)")
    return summary


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text)
    os.replace(temporary, path)


def read_json(path: Path) -> Any | None:
    """The contents of a JSON file, None where there is none."""
    return json.loads(path.read_text()) if path.exists() else None


class MetricsFile:
    """metrics.csv: one row per epoch, declared columns, empty cells where a value was not measured."""

    def __init__(self, path: Path, columns: Sequence[str], last_epoch: int) -> None:
        """Opens the file and cuts off rows after `last_epoch`, which the resumed run will write again."""
        self._path = path
        self._columns = ("epoch", *columns)
        kept = [row for row in self._read() if row["epoch"] <= last_epoch]
        temporary = path.with_name(f".{path.name}.partial")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(kept)
        os.replace(temporary, path)
        self.rows: list[dict[str, float]] = kept

    def append(self, row: dict[str, float]) -> None:
        """Adds the row of an epoch and forces it to the disk, so that it is there before its checkpoint is."""
        strangers = set(row) - set(self._columns)
        if strangers:
            raise ValueError(f"got columns {sorted(strangers)}; declared are {self._columns}")
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """(epochs, values) where the column was measured."""
        rows = [row for row in self.rows if name in row]
        return [row["epoch"] for row in rows], [row[name] for row in rows]

    def _read(self) -> list[dict[str, float]]:
        if not self._path.exists():
            return []
        with self._path.open(newline="") as file:
            # A row cut short by a kill lacks columns (None) or its newline; it lies after the last checkpoint.
            return [
                {"epoch": int(row["epoch"]), **{k: float(v) for k, v in row.items() if k != "epoch" and v}}
                for row in csv.DictReader(file)
                if None not in row and None not in row.values()
            ]


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in the list it gives, instead of dying; a second one has its usual effect."""
    received: list[int] = []
    usual = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    for number in usual:
        signal.signal(number, note)
    try:
        yield received
    finally:
        restore()
