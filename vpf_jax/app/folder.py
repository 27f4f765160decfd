"""The folder of a run: its configuration, one process at a time, files that are verified, stopping without loss.

`run_once` frames every script: it checks that the folder fits, locks it, and keeps what the script has found in
summary.json, with `files.sha256` (checked by `sha256sum -c` too) over what the finished run consists of. A second start
verifies these files: damaged ones are said and put aside as NAME.damaged, and everything is made again from the
checkpoints, to the same bits. Every write is atomic, and what can be made again is never trusted: metrics.csv is
written from the rows that the checkpoint keeps.

Hidden files: `.lock` stays, `.lock-holder` says who has it. Not here: checkpoints (`vpf_jax.checkpoint`), what is
computed.
"""

import contextlib
import csv
import datetime
import errno
import hashlib
import io
import json
import logging
import os
import re
import signal
import socket
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import filelock
import numpy as np

from vpf_jax.atomic import write_bytes
from vpf_jax.checkpoint import aside
from vpf_jax.checks import SettingError
from vpf_jax.settings import typed

MANIFEST = "files.sha256"
SUMMARY = "summary.json"
# What a finished run consists of, beside its checkpoints and what lies in folders.
OUTPUTS = ("config.json", "metrics.csv", "table.md", SUMMARY, "*.safetensors", "*.png", "*.gif", "report.html")
# Neither a run nor somebody's files: locks, and what a killed writer leaves.
_OURS = re.compile(r"\.lock(-holder)?|\..*\.partial")

_log = logging.getLogger(__name__)
# Folders that this process has locked, and in which thread.
_held: dict[Path, int] = {}


class UsageError(ValueError):
    """What the user asks for is not possible here, in one sentence; a setting that is wrong is a `SettingError`."""


class Stopped(Exception):
    """The run was asked to stop by a signal, and has saved."""

    def __init__(self, signal_number: int, saved: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; {saved}")
        self.exit_status = 128 + signal_number


class Growth(NamedTuple):
    """Of a setting that may be larger at a later start, which then goes on where the run had ended."""

    default: int | None = None
    """The number that 0 or None stands for."""
    refused: str = ""
    """Why it must stay as it is, in these settings."""

    def of(self, value: Any) -> Any:
        return value or self.default

    def same(self, held: Any, given: Any) -> bool:
        return self.of(held) == self.of(given)


_NONE_GROW: Mapping[str, Growth] = types.MappingProxyType({})


def run_once(
    path: str | Path,
    config: dict[str, Any],
    work: Callable[[Path], dict[str, Any]],
    *,
    free: Sequence[str] = (),
    grows: Mapping[str, Growth] = _NONE_GROW,
    agreed: Callable[[Callable[[], Any]], Any] = lambda look: look(),
) -> dict[str, Any]:
    """What work(folder) finds, or what an earlier start has found; it is kept in the folder, which is locked meanwhile.

    Args:
      path: the folder.
      config: values that JSON can hold.
      work: goes on from what is in the folder; whatever it writes can be made again.
      free: names of settings that may differ between starts of one run, such as where the data lie.
      grows: settings that may be larger than at an earlier start.
      agreed: of several processes that work as one, what the first one sees (`processes.of_first`).

    Raises:
      UsageError: a folder that does not fit (`open_workdir`), or that another process works in.
    """
    path = Path(path)

    def finished() -> dict[str, Any] | None:
        held = _check_workdir(path, config, free, grows)
        if held is None or _grown(held, config, grows) or damage(path):
            return None
        return read_object(path / SUMMARY)

    summary, whole = agreed(lambda: (finished(), (path / MANIFEST).exists()))
    # Where all is as it was written nothing is, the lock among it: the folder may be one that is only read.
    if summary is None or not whole:
        with locked(path):
            # Another process may have been here meanwhile.
            summary = agreed(finished)
            if summary is None:
                return _finish(path, lambda: open_workdir(path, config, free, grows), work)
            write_manifest(path, OUTPUTS)
    print(f"finished already, in {path}: nothing left to do (a new folder starts afresh)")
    return summary


def open_workdir(
    path: str | Path,
    config: dict[str, Any],
    free: Sequence[str] = (),
    grows: Mapping[str, Growth] = _NONE_GROW,
) -> Path:
    """Makes the folder and its config.json, or checks that it holds a run of the same configuration.

    Args:
      path: the folder.
      config: values that JSON can hold.
      free: names of settings that may differ between starts of one run, such as where the data lie.
      grows: settings that may be larger than at an earlier start.

    Raises:
      SettingError: a path that is no folder, or a folder with other contents.
      UsageError: a run of another configuration, or a folder that cannot be written.
    """
    path = Path(path)
    _check_workdir(path, config, free, grows)
    with _usable(path):
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "config.json", config)
    return path


@contextlib.contextmanager
def locked(folder: Path, wait: float = 0) -> Iterator[None]:
    """Holds a folder, made where missing, so that no other process or thread works in it; the system lets go of it when
    the process dies. Where this thread holds it already nothing is done.

    Args:
      folder: what is locked.
      wait: seconds to wait for another one that has it.

    Raises:
      UsageError: another one has it, which the message names, or the folder cannot be written.
    """
    given, folder = folder, folder.resolve()
    if _held.get(folder) == threading.get_ident():
        yield
        return
    lock = filelock.FileLock(folder / ".lock")
    with _usable(given):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=wait)
        except filelock.Timeout:
            raise UsageError(
                f"{given} is in use by {_holder(folder)}; wait for its end or stop it, or give another folder"
            ) from None
    holder = folder / ".lock-holder"
    _held[folder] = threading.get_ident()
    try:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": now})
        yield
    finally:
        holder.unlink(missing_ok=True)
        del _held[folder]
        lock.release()


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically."""
    write_bytes(path, text.encode())


def write_arrays(path: Path, **arrays: Any) -> None:
    """Writes an .npz file atomically, and its folder where it is missing."""
    path.parent.mkdir(exist_ok=True)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_bytes(path, content.getvalue())


def kept_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """What `write_arrays` has written; None where it is missing, or damaged, which is said and put aside."""
    if not path.exists():
        return None
    try:
        # Its entries have checksums.
        with np.load(io.BytesIO(path.read_bytes())) as file:
            return dict(file.items())
    # What is no archive, or a damaged one, fails in many ways.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        put_aside(path, "is damaged")
        return None


def read_json(path: Path) -> Any | None:
    """The contents of a JSON file, None where there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def read_object(path: Path) -> dict[str, Any] | None:
    """The names and values of a JSON file; None where it is missing, or holds anything else, or nothing."""
    try:
        found = read_json(path)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found else None


def write_manifest(folder: Path, patterns: Sequence[str]) -> None:
    """Writes files.sha256 over files of these names, as sha256sum does, and a comment that holds its own digest."""
    files = sorted(path for pattern in patterns for path in folder.glob(pattern))
    lines = "".join(f"{_sha256(path)}  {path.name}\n" for path in files)
    write_text(folder / MANIFEST, lines + _last_line(lines))


def read_manifest(folder: Path) -> dict[str, str] | None:
    """Digests by name of files; empty where there is no manifest, None where it is damaged."""
    try:
        text = (folder / MANIFEST).read_text()
    except FileNotFoundError:
        return {}
    except ValueError:
        return None
    lines, mark, _ = text.rpartition("# ")
    if not mark or text != lines + _last_line(lines):
        return None
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines.splitlines())}


def _last_line(lines: str) -> str:
    return f"# {hashlib.sha256(lines.encode()).hexdigest()} of the lines above\n"


def kept_object(path: Path) -> dict[str, Any] | None:
    """`read_object` of a file that is among those of its folder's manifest, where it has one.

    A damaged one is said and put aside, and None.
    """
    if not path.exists():
        return None
    digest = (read_manifest(path.parent) or {}).get(path.name)
    found = read_object(path)
    if found is None or digest not in (None, _sha256(path)):
        put_aside(path, "is damaged")
        return None
    return found


def put_aside(path: Path, told: str) -> None:
    """Says what is wrong with a file that can be made again, and renames it to NAME.damaged."""
    moved = aside(path) if path.exists() else None
    _log.warning("%s %s%s; it is made again", path, told, f", and is now {moved.name}" if moved else "")


class MetricsFile:
    """metrics.csv: one row per epoch, declared columns, empty cells where a value was not measured."""

    def __init__(self, path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
        """Writes the file anew.

        Args:
          path: the file.
          columns: beside that of the epoch.
          rows: what the checkpoint keeps. Later ones that the file has are cut off, as the resumed run writes them
            again.
        """
        self._path = path
        self._columns = ("epoch", *columns)
        head = io.StringIO(newline="")
        csv.DictWriter(head, self._columns).writeheader()
        text = head.getvalue() + "".join(self._line(row) for row in rows)
        if path.exists() and not path.read_bytes().startswith(text.encode()):
            put_aside(path, "does not begin with what the checkpoint keeps")
        write_text(path, text)

    def append(self, row: dict[str, Any]) -> None:
        """Adds the row of an epoch."""
        strangers = set(row) - set(self._columns)
        if strangers:
            raise ValueError(f"got columns {sorted(strangers)}; declared are {self._columns}")
        with _naming(self._path), self._path.open("a", newline="") as file:
            file.write(self._line(row))

    def _line(self, row: dict[str, Any]) -> str:
        line = io.StringIO(newline="")
        csv.DictWriter(line, self._columns).writerow(row)
        return line.getvalue()


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in the list it gives, instead of dying; a second one has its usual effect.

    Outside the main thread, where Python lets nobody handle signals, the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    # As in the background of a shell, which its terminal's Ctrl-C should not reach.
    usual = {number: handler for number, handler in usual.items() if handler is not signal.SIG_IGN}

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


def _finish(path: Path, open_folder: Callable[[], Path], work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Does the work of a run that is not finished, is damaged, or goes on after its end."""
    for name, told in damage(path):
        put_aside(path / name, told)
    # In this order: a kill leaves the finished run, or one that is not and can go on.
    for name in (MANIFEST, SUMMARY):
        (path / name).unlink(missing_ok=True)
    new = not (path / "config.json").exists()
    try:
        summary = work(open_folder())
    except SettingError:
        # Found out late; the folder should not hold the user to settings that are not allowed.
        if new:
            (path / "config.json").unlink(missing_ok=True)
        raise
    write_json(path / SUMMARY, summary)
    write_manifest(path, OUTPUTS)
    return summary


def _check_workdir(
    path: Path,
    config: dict[str, Any],
    free: Sequence[str],
    grows: Mapping[str, Growth],
) -> dict[str, Any] | None:
    """The settings of the run in the folder, None where it holds none; raises as `open_workdir`."""
    file = path / "config.json"
    if path.exists() and not path.is_dir():
        raise SettingError("workdir", str(path), "a folder, which may be missing; this is a file")
    if not file.exists():
        if path.is_dir() and not all(_OURS.fullmatch(found.name) for found in path.iterdir()):
            allowed = "a new, an empty or a run's folder; this one holds files and no config.json"
            raise SettingError("workdir", str(path), allowed)
        return None
    held = read_object(file)
    if held is None:
        raise UsageError(
            f"{file} cannot be read as JSON that holds settings; put back a copy of it, or give a new folder"
        )
    grown = _grown(held, config, grows)
    same = {name for name, growth in grows.items() if growth.same(held.get(name), config[name])}
    same |= {*free, *(name for name in grown if not grows[name].refused)}
    names = [n for n in config if n not in same and config[n] != held.get(n)]
    names = [*(n for n in names if n in held), *(n for n in held if n not in config)] or names
    if names:
        held_text, given_text = (
            ", ".join(f"--{n}={typed(a[n])}" if n in a else f"no --{n}" for n in names) for a in (held, config)
        )
        reasons = [f" ({grows[name].refused})" for name in grown if grows[name].refused]
        raise UsageError(
            f"--workdir={path} holds a run with {held_text}, but {given_text} was given{''.join(reasons)}; "
            "give the same configuration as its config.json to resume it, or another --workdir"
        )
    return held


def _grown(held: Mapping[str, Any], config: Mapping[str, Any], grows: Mapping[str, Growth]) -> list[str]:
    """Settings that are larger than those held, among those that may grow."""
    found = []
    for name, growth in grows.items():
        before, now = growth.of(held.get(name)), growth.of(config[name])
        if isinstance(before, int) and isinstance(now, int) and now > before:
            found.append(name)
    return found


def damage(path: Path) -> list[tuple[str, str]]:
    """Names of files of a finished run that are not as they were written, and what is wrong with them."""
    digests = read_manifest(path)
    if digests is None:
        return [(MANIFEST, "is damaged")]
    found = [
        (name, "is damaged" if (path / name).exists() else "is missing")
        for name, digest in digests.items()
        if not (path / name).exists() or _sha256(path / name) != digest
    ]
    # Without a manifest, as a kill leaves it, it should be whole at least.
    if (path / SUMMARY).exists() and read_object(path / SUMMARY) is None and SUMMARY not in dict(found):
        found.append((SUMMARY, "is damaged"))
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _holder(folder: Path) -> str:
    """Who has locked a folder, as far as it is known."""
    held = read_object(folder / ".lock-holder") or {}
    if not {"pid", "host", "since"} <= set(held):
        return "another process"
    return f"process {held['pid']} on {held['host']} since {held['since']}"


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Gives errors of writing the file's name, which the system does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Where a folder is the wrong one to write in the user is told; a full or failing disk is another matter."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        raise UsageError(f"{folder} cannot be written ({error.strerror}); it takes a folder that can") from None
