"""Saving and resuming: numbered checkpoints of a pytree in a folder, verified when they are read.

A checkpoint is a folder of two things: `arrays`, the leaves under their paths ("stack/0/weights/0"), by orbax, and
`record.json`, which says what they are:

    format, step, order    of this layout; number of the checkpoint; 1 + the largest order when it was saved
    leaves                 path -> shape, dtype, and of typed keys their kind; of a static field that is not at its
                           default, such as the units of a machine, the name of its value
    info                   what the caller adds
    sha256                 of the leaves' paths, shapes, dtypes and bytes
    files                  path -> SHA-256 of what orbax has written
    record_sha256          of the record without this entry

Writes are atomic: a checkpoint is written under a hidden name and renamed when it is whole, so a process killed in
mid-write leaves the earlier ones as they were. The newest is the one saved last (the largest order), whatever its
number. Reading verifies all digests, those of files before orbax sees them, which fails on damage in many ways, not all
of them quiet. What is damaged is said (by logging, which Python shows on standard error unless the program does
otherwise), put aside as NUMBER.damaged, and passed over. A checkpoint of something else is no damage but an error, and
so is a folder without a record, which versions before 0.5.1 have written.

Not here: what is saved and when (`app`); the stack of a run by its folder (`loading`).
"""

import dataclasses
import errno
import functools
import hashlib
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vpf_jax import checks

Tree = TypeVar("Tree", bound=PyTree)
# The leaves of a tree under their paths, data of keys for typed keys.
Leaves = dict[str, np.ndarray]
# What a record says of each leaf: shape, dtype, and of typed keys their kind; of a static field "static".
Structure = dict[str, dict[str, Any]]

# The one before the newest is kept too, for the case that the newest cannot be read.
KEPT = 2
FORMAT = 1
# Of what is being written, or on its way out: no checkpoints, and removed by the next writer.
_HIDDEN = (".writing", ".removed")
# Errors of the system that say nothing about what a file holds.
SYSTEM_ERRORS = tuple(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EFBIG", "EIO", "EMFILE", "ENFILE", "ENOMEM")
)

_log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """Checkpoints are there, and none of them can be read; the message says which, and what to do."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint holds something else than is asked for; the message names the first leaf that differs."""


class _Damage(Exception):
    """Of one checkpoint; says what is wrong."""


class Found(NamedTuple):
    """A checkpoint as it is on disk."""

    step: int
    structure: Structure
    leaves: Leaves
    info: dict[str, Any]


def save_checkpoint(directory: str | Path, step: int, tree: PyTree, info: dict[str, Any] | None = None) -> None:
    """Writes checkpoint number `step`; returns when it is on disk. Of several processes the first one alone writes.

    It and the newest `KEPT` - 1 of the others stay, in the order of saving. Others are removed, but for those that
    cannot be read.

    Args:
      directory: the folder of checkpoints, made where missing.
      step: the number of the checkpoint, at least 0; a checkpoint of the same number is replaced.
      tree: a pytree of arrays and typed random keys.
      info: further values that JSON can hold.

    Raises:
      ValueError: a step that is no such number, or info that JSON cannot hold.
      OSError: it cannot be written, as on a full disk; those that were there stay.
      CheckpointError: this is another process than the first, or it cannot be written for another reason.
    """
    if jax.process_index() > 0:
        # Orbax leaves out NumPy arrays there, in silence.
        raise CheckpointError(
            f"got process {jax.process_index()} of {jax.process_count()}, counted from 0; the first one writes "
            "checkpoints, and all of them read them"
        )
    step = checks.integer("step", step, 0)
    directory = Path(directory).absolute()
    structure, found = _described(tree)
    leaves = {path: np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf) for path, leaf in found.items()}
    others = {number: record for number, record in _records(directory).items() if isinstance(record, dict)}
    record = {
        "format": FORMAT,
        "step": step,
        "order": 1 + max((record["order"] for record in others.values()), default=0),
        "leaves": structure,
        "info": info or {},
        "sha256": _digest_of_leaves(structure, leaves),
    }
    try:
        _digest_of_record(record)
    except TypeError as error:
        raise ValueError(f"got info with other values than JSON can hold ({error})") from None
    try:
        _write(directory, step, leaves, record)
    # A disk that is full fails anywhere inside orbax and tensorstore, with any exception.
    except Exception as error:
        shutil.rmtree(directory / ".writing", ignore_errors=True)
        place, number = directory / str(step), _system_error(error)
        if number is not None:
            raise OSError(number, f"a checkpoint cannot be written ({os.strerror(number)})", str(place)) from error
        first = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"checkpoint {place} cannot be written ({type(error).__name__}: {first})") from error
    others.pop(step, None)
    for number in sorted(others, key=lambda number: others[number]["order"], reverse=True)[KEPT - 1 :]:
        hidden = directory / f".removed-{number}"
        os.replace(directory / str(number), hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def restore_checkpoint(directory: str | Path, like: Tree) -> tuple[int, Tree, dict[str, Any]] | None:
    """Reads the checkpoint that was saved last, or where it is damaged the one before it, and so on.

    Every checkpoint that is passed over is said, and put aside as NUMBER.damaged.

    Args:
      directory: the folder of checkpoints.
      like: a pytree of the structure, shapes and dtypes that were saved, of arrays or `jax.ShapeDtypeStruct`; leaves
        that are laid over devices lie there again.

    Returns:
      (step, tree, info), or None where there is no checkpoint.

    Raises:
      CheckpointMismatchError: the newest sound checkpoint is of another structure, shape or dtype.
      CheckpointError: there are checkpoints, all of them damaged, or one of another version.
      OSError: the system does not let them be read.
    """
    found = read_newest(Path(directory), _described(like)[0], put_aside=True)
    if found is None:
        return None
    tree = jax.tree_util.tree_map_with_path(lambda keys, leaf: _like(leaf, found.leaves[_path(keys)]), like)
    return found.step, tree, found.info


def read_newest(directory: Path, wanted: Structure | None = None, *, put_aside: bool = False) -> Found | None:
    """The newest checkpoint that is not damaged, of a wanted structure or of any; None where there are none.

    Raises:
      CheckpointError, CheckpointMismatchError: see `restore_checkpoint`.
    """
    # Those without a readable record come first: nobody knows how new they are.
    for step, record in sorted(_records(directory).items(), key=lambda item: (_order(item[1]), item[0]), reverse=True):
        place = directory / str(step)
        try:
            return _read(place, record, wanted)
        except _Damage as error:
            moved = aside(place) if put_aside else None
            told = f", and is now {moved.name}" if moved else ""
            _log.warning(
                "checkpoint %s in %s is damaged (%s)%s; the one before it is tried", step, directory, error, told
            )
    # Those put aside count: a second start too must not begin from nothing.
    if any(path.name.partition(".")[0].isdecimal() for path in directory.glob("*")):
        raise CheckpointError(
            f"all checkpoints in {directory} are damaged; put back a copy of one, or remove that folder to start over"
        )
    return None


def newest_info(directory: Path) -> dict[str, Any] | None:
    """What goes with the checkpoint that was saved last, of those whose records are sound; no arrays are read."""
    records = [record for record in _records(directory).values() if isinstance(record, dict)]
    return max(records, key=_order)["info"] if records else None


def aside(path: Path) -> Path | None:
    """Renames a damaged file or folder to NAME.damaged (or .damaged-2, ...) and gives the new path; None: refused."""
    moved, number = path.with_name(f"{path.name}.damaged"), 1
    while moved.exists():
        number += 1
        moved = path.with_name(f"{path.name}.damaged-{number}")
    try:
        os.replace(path, moved)
    except OSError:
        return None
    return moved


def as_jax(array: checks.AnyArray) -> jax.Array:
    """What was read as an array of JAX's; ValueError where that would narrow it."""
    converted = jnp.asarray(array)
    if converted.dtype != array.dtype:
        raise ValueError(f"got parameters of {array.dtype}; that takes jax.config.update('jax_enable_x64', True)")
    return converted


def _records(directory: Path) -> dict[int, Any]:
    """By number of the checkpoint: its record, or the exception that says why there is none."""
    numbers = (int(path.name) for path in directory.glob("*") if path.name.isdecimal() and path.is_dir())
    return {number: _record(directory / str(number)) for number in numbers}


def _order(record: dict[str, Any] | Exception) -> int | float:
    return record["order"] if isinstance(record, dict) else math.inf


def _record(place: Path) -> dict[str, Any] | Exception:
    try:
        record = json.loads((place / "record.json").read_bytes())
        return record if record["record_sha256"] == _digest_of_record(record) else _Damage("its record is damaged")
    except FileNotFoundError:
        return CheckpointError(
            f"got {place} without record.json, which is no checkpoint of this version or a damaged one; remove it, or "
            "give another folder"
        )
    except OSError as error:
        if error.errno in SYSTEM_ERRORS:
            raise
        return _Damage("its record cannot be read")
    except (ValueError, TypeError, KeyError, RecursionError):
        return _Damage("its record is damaged")


def _read(place: Path, record: dict[str, Any] | Exception, wanted: Structure | None) -> Found:
    """One checkpoint, verified; `record` is what `_records` has found.

    Raises:
      _Damage: it is not what was saved.
      CheckpointError: it is of another version, or of another structure.
    """
    if isinstance(record, Exception):
        raise record
    if record["format"] > FORMAT:
        raise CheckpointError(
            f"{place} is of format {record['format']}, which a later version has written; this one reads up to {FORMAT}"
        )
    step, structure = record["step"], record["leaves"]
    if str(step) != place.name:
        raise _Damage(f"it was saved as number {step}")
    if wanted is not None:
        _compare(place, structure, wanted)
    if _digests_of_files(place / "arrays") != record["files"]:
        raise _Damage("its files are not those that were saved")
    arrays = {path: entry for path, entry in structure.items() if "stored" in entry}
    stored = {path: np.empty(entry["stored"], entry["dtype"]) for path, entry in arrays.items()}
    try:
        leaves = _restore_arrays(place / "arrays", stored)
    # A damaged checkpoint can fail anywhere inside orbax and tensorstore, with any exception.
    except Exception as error:
        if isinstance(error, MemoryError) or _system_error(error) is not None:
            raise
        raise _Damage(f"{type(error).__name__} on reading") from error
    if set(leaves) != set(arrays) or _digest_of_leaves(structure, leaves) != record["sha256"]:
        raise _Damage("its arrays are not those that were saved")
    return Found(step, structure, {path: leaves[path] for path in arrays}, record["info"])


def _compare(place: Path, held: Structure, wanted: Structure) -> None:
    """Raises CheckpointMismatchError with the first leaf that differs."""
    for path in (*wanted, *held):
        if held.get(path) != wanted.get(path):
            raise CheckpointMismatchError(
                f"checkpoint {place} holds {_told(path, held)}, where {_told(path, wanted)} is asked for; it is of "
                "another model or other settings"
            )


def _told(path: str, structure: Structure) -> str:
    """One leaf in a sentence."""
    entry = structure.get(path)
    if entry is None:
        return f"no {path}"
    if "static" in entry:
        return f"{path} {entry['static']}"
    kind = f"random keys of kind {entry['key']}" if "key" in entry else str(entry["dtype"])
    return f"{path} of shape {tuple(entry['shape'])} and {kind}"


def _described(tree: PyTree) -> tuple[Structure, dict[str, Any]]:
    """Structure and leaves (arrays or abstract arrays, keys among them), by path."""
    structure: Structure = {}
    leaves: dict[str, Any] = {}
    for path, leaf in _walk(tree):
        if path in structure:
            raise ValueError(f"got a tree with two leaves at {path!r}; it takes names without slashes")
        if isinstance(leaf, str):
            structure[path] = {"static": leaf}
            continue
        leaves[path] = leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
        data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        structure[path] = {"shape": list(leaf.shape), "stored": list(data.shape), "dtype": str(data.dtype)}
        structure[path] |= {"key": _kind(leaf)} if _is_key(leaf) else {}
    return structure, leaves


def _walk(tree: PyTree, above: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Leaves with their paths, and by name what static fields of dataclasses hold, where it is not the default."""
    for keys, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=dataclasses.is_dataclass)[0]:
        if not dataclasses.is_dataclass(node):
            yield _path((*above, *keys)), node
            continue
        for field in dataclasses.fields(node):
            value, path = getattr(node, field.name), (*above, *keys, jax.tree_util.GetAttrKey(field.name))
            if field.metadata.get("pytree_node", True):
                yield from _walk(value, path)
            elif value != field.default:
                values = value if isinstance(value, tuple) else (value,)
                yield _path(path), ", ".join(str(getattr(value, "name", value)) for value in values)


def _path(keys: tuple[Any, ...]) -> str:
    """Of a leaf: fields, indices and keys with slashes between."""
    steps = (next(getattr(key, kind) for kind in ("name", "idx", "key") if hasattr(key, kind)) for key in keys)
    return "/".join(map(str, steps)) or "leaf"


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _kind(leaf: Any) -> str:
    """Of a typed key, which may be abstract."""
    found: list[str] = []
    jax.eval_shape(lambda key: found.append(str(jax.random.key_impl(key))), leaf)
    return found[0]


def _like(leaf: Any, found: np.ndarray) -> Any:
    """What was read as an array such as `leaf`."""
    if isinstance(leaf, np.ndarray | np.generic):
        return found
    array = as_jax(found)
    if hasattr(leaf, "dtype") and _is_key(leaf):
        array = jax.random.wrap_key_data(array, impl=_kind(leaf))
    return jax.device_put(array, leaf.sharding) if getattr(leaf, "committed", False) else array


def _digest_of_record(record: dict[str, Any]) -> str:
    rest = {name: value for name, value in record.items() if name != "record_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _digests_of_files(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _digest_of_leaves(structure: Structure, leaves: Leaves) -> str:
    """Of what the structure says and of the bytes there are, the shapes and dtypes of the latter among them."""
    digest = hashlib.sha256()
    for path, array in ((path, leaves[path]) for path in structure if path in leaves):
        entry = [path, structure[path], list(array.shape), str(array.dtype)]
        digest.update(json.dumps(entry, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _write(directory: Path, step: int, leaves: Leaves, record: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        if path.name.startswith(_HIDDEN):
            shutil.rmtree(path)
    writing, place, removed = directory / ".writing", directory / str(step), directory / f".removed-{step}"
    writing.mkdir()
    _save_arrays(writing / "arrays", leaves)
    record = record | {"files": _digests_of_files(writing / "arrays")}
    record["record_sha256"] = _digest_of_record(record)
    with (writing / "record.json").open("w") as file:
        file.write(json.dumps(record))
        file.flush()
        os.fsync(file.fileno())
    if place.exists():
        # Renamed first, so that a half removed one is never taken for a checkpoint.
        os.replace(place, removed)
    os.replace(writing, place)
    shutil.rmtree(removed, ignore_errors=True)


def _system_error(error: BaseException | None) -> int | None:
    """The number of the system's error behind an exception; tensorstore has it in words alone."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in SYSTEM_ERRORS:
            return error.errno
        for number in SYSTEM_ERRORS:
            if os.strerror(number) in str(error):
                return number
        error = error.__cause__ or error.__context__
    return None


def _save_arrays(place: Path, leaves: Leaves) -> None:
    ocp = _orbax()
    with _checkpointer(ocp) as checkpointer:
        checkpointer.save(place, args=ocp.args.StandardSave(leaves))


def _restore_arrays(place: Path, like: Leaves) -> Leaves:
    ocp = _orbax()
    with _checkpointer(ocp) as checkpointer:
        return checkpointer.restore(place.absolute(), args=ocp.args.StandardRestore(like))


def _checkpointer(ocp: Any) -> Any:
    """For arrays of this process alone: of several processes none waits for the others here."""
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own}, barrier_sync_key_prefix="own")
    options = alone if jax.process_count() > 1 else ocp.options.MultiprocessingOptions()
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


@functools.cache
def _orbax() -> Any:
    # Imported late: it takes as long to import as JAX itself, and most uses of the library need no files.
    import orbax.checkpoint

    # Where it fails, the tasks that it leaves behind fail later, in threads of tensorstore, and Python would print a
    # traceback for each ("Event loop is closed") beside the error itself: by one hook or the other.
    unraisable, uncaught = sys.unraisablehook, sys.excepthook

    def tell_unraisable(args: Any) -> None:
        if "Event loop is closed" not in str(args.exc_value):
            unraisable(args)

    def tell_uncaught(kind: Any, error: BaseException, trace: Any) -> None:
        if "Event loop is closed" not in str(error):
            uncaught(kind, error, trace)

    sys.unraisablehook, sys.excepthook = tell_unraisable, tell_uncaught
    return orbax.checkpoint
