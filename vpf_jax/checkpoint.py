"""Saving and resuming: numbered checkpoints of a pytree in a folder, verified when they are read.

A checkpoint is a folder of two things: `arrays`, the leaves under their paths ("stack/0/weights/0"), by orbax, and
`record.json`, which says what they are:

    format, step, order    of this layout; number of the checkpoint; 1 + the largest order when it was saved
    leaves                 path -> shape, dtype, and of typed keys their kind; of a static field that is not at its
                           default, such as the units of a machine, the name of its value
    info                   what the caller adds
    sha256                 of the leaves' paths, shapes, dtypes and bytes; null where no process had all of them
    files                  path -> SHA-256 of what orbax has written
    record_sha256          of the record without this entry

Writes are atomic: a checkpoint is written under a hidden name and renamed when it is whole, so a process killed in
mid-write leaves the earlier ones as they were. The newest is the one saved last (the largest order), whatever its
number. Reading verifies all digests, those of files before orbax sees them, which fails on damage in many ways, not all
of them quiet. What is damaged is said (by logging, which Python shows on standard error unless the program does
otherwise), put aside as NUMBER.damaged, and passed over. A checkpoint of something else is no damage but an error, and
so is a folder without a record, which versions before 0.5.1 have written.

Of a tree that lies over the devices of several processes each process writes its own parts, and reads those of the
devices on which it is wanted, which may be others; all of them call the function, and reach the same folder. What
stands in the record the first one writes, compares and tells the others.

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vpf_jax import checks, processes

Tree = TypeVar("Tree", bound=PyTree)
T = TypeVar("T")
# The leaves of a tree under their paths, data of keys for typed keys; arrays of JAX's where they lie over processes.
Leaves = dict[str, Any]
# What a record says of each leaf: shape, dtype, and of typed keys their kind; of a static field "static".
Structure = dict[str, dict[str, Any]]

# The one before the newest is kept too, for the case that the newest cannot be read.
KEPT = 2
# 1 of what is whole, which is all that versions before 0.11 read; 2 of what lies over processes.
FORMAT = 2
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
    """Writes checkpoint number `step`; returns when it is on disk.

    Of several processes all write a tree that lies over devices of all, each its own parts, and each call this with the
    same arguments; any other tree the first one alone.

    It and the newest `KEPT` - 1 of the others stay, in the order of saving. Others are removed, but for those that
    cannot be read.

    Args:
      directory: the folder of checkpoints, made where missing; the same one for all processes that write.
      step: the number of the checkpoint, at least 0; a checkpoint of the same number is replaced.
      tree: a pytree of arrays and typed random keys.
      info: further values that JSON can hold.

    Raises:
      ValueError: a step that is no such number, or info that JSON cannot hold.
      OSError: it cannot be written, as on a full disk; those that were there stay.
      CheckpointError: this is another process than the first, and the tree is not cut over processes; or it cannot be
        written for another reason.
    """
    cut = is_cut(tree)
    if not cut and not processes.is_first():
        # Orbax leaves out NumPy arrays there, in silence.
        raise CheckpointError(
            f"got process {jax.process_index()} of {jax.process_count()}, counted from 0; the first one writes "
            "checkpoints, and all of them read them"
        )
    step = checks.integer("step", step, 0)
    directory = Path(directory).absolute()
    structure, found = _described(tree)
    leaves = {path: _plain(leaf) for path, leaf in found.items()}
    record = {
        "format": FORMAT if cut else 1,
        "step": step,
        "leaves": structure,
        "info": info or {},
        "sha256": None if cut else _digest_of_leaves(structure, leaves),
    }
    try:
        _digest_of_record(record)
    except TypeError as error:
        raise ValueError(f"got info with other values than JSON can hold ({error})") from None
    try:
        _by_first(cut, lambda: _begin(directory))
        _save_arrays(directory / ".writing" / "arrays", leaves, cut)
        _by_first(cut, lambda: _finish(directory, step, record))
    # A disk that is full fails anywhere inside orbax and tensorstore, with any exception.
    except Exception as error:
        if processes.is_first():
            shutil.rmtree(directory / ".writing", ignore_errors=True)
        place, number = directory / str(step), _system_error(error)
        if number is not None:
            raise OSError(number, f"a checkpoint cannot be written ({os.strerror(number)})", str(place)) from error
        first = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"checkpoint {place} cannot be written ({type(error).__name__}: {first})") from error
    _by_first(cut, lambda: _remove_old(directory))


def restore_checkpoint(directory: str | Path, like: Tree) -> tuple[int, Tree, dict[str, Any]] | None:
    """Reads the checkpoint that was saved last, or where it is damaged the one before it, and so on.

    Every checkpoint that is passed over is said, and put aside as NUMBER.damaged.

    Args:
      directory: the folder of checkpoints.
      like: a pytree of the structure, shapes and dtypes that were saved, of arrays or `jax.ShapeDtypeStruct`; leaves
        that are laid over devices lie there again. Where it lies over devices of several processes all of them call
        this, and each reads what is to lie on its own devices.

    Returns:
      (step, tree, info), or None where there is no checkpoint.

    Raises:
      CheckpointMismatchError: the newest sound checkpoint is of another structure, shape or dtype.
      CheckpointError: there are checkpoints, all of them damaged, or one of another version.
      OSError: the system does not let them be read.
    """
    if is_cut(like):
        return _restore_cut(Path(directory).absolute(), like)
    found = read_newest(Path(directory), _described(like)[0], put_aside=True)
    if found is None:
        return None
    tree = jax.tree_util.tree_map_with_path(lambda keys, leaf: _like(leaf, found.leaves[_path(keys)]), like)
    return found.step, tree, found.info


def is_cut(tree: PyTree) -> bool:
    """Whether some of its arrays, or of what stands for arrays, lie over the devices of several processes."""
    if jax.process_count() == 1:
        return False
    places = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree))
    return any(place is not None and not place.is_fully_addressable for place in places)


def read_newest(directory: Path, wanted: Structure | None = None, *, put_aside: bool = False) -> Found | None:
    """The newest checkpoint that is not damaged, of a wanted structure or of any; None where there are none.

    Raises:
      CheckpointError, CheckpointMismatchError: see `restore_checkpoint`.
    """
    return _newest(directory, lambda place, record: _read(place, record, wanted), put_aside)


def _newest(directory: Path, read: Callable[[Path, Any], T], put_aside: bool) -> T | None:
    """Of the newest checkpoint what `read` gives of its folder and its record; it raises _Damage for a damaged one."""
    # Those without a readable record come first: nobody knows how new they are.
    for step, record in sorted(_records(directory).items(), key=lambda item: (_order(item[1]), item[0]), reverse=True):
        place = directory / str(step)
        try:
            return read(place, record)
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
    records = _sound(directory).values()
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


def _sound(directory: Path) -> dict[int, dict[str, Any]]:
    """The records that can be read."""
    return {number: record for number, record in _records(directory).items() if isinstance(record, dict)}


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


def _restore_cut(directory: Path, like: Tree) -> tuple[int, Tree, dict[str, Any]] | None:
    """`restore_checkpoint` of a tree that lies over the devices of several processes."""
    wanted, leaves = _described(like)

    def newest() -> list[Any] | None:
        record = _newest(directory, lambda place, record: _verified(place, record, wanted), put_aside=True)
        return None if record is None else [record["step"], record["info"]]

    found = _by_first(True, newest)
    if found is None:
        return None
    step, info = found
    place = directory / str(step)
    try:
        arrays = _restore_arrays(place / "arrays", {path: _abstract(leaf) for path, leaf in leaves.items()}, cut=True)
    # As in `_read`; but here the others have begun to read it, too.
    except Exception as error:
        if isinstance(error, MemoryError) or _system_error(error) is not None:
            raise
        raise CheckpointError(f"checkpoint {place} cannot be read ({type(error).__name__})") from error
    tree = jax.tree_util.tree_map_with_path(lambda keys, leaf: _like(leaf, arrays[_path(keys)]), like)
    return step, tree, info


def _verified(place: Path, record: dict[str, Any] | Exception, wanted: Structure | None) -> dict[str, Any]:
    """The record of one checkpoint, whose files are those that it names; `record` is what `_records` has found.

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
    if str(record["step"]) != place.name:
        raise _Damage(f"it was saved as number {record['step']}")
    if wanted is not None:
        _compare(place, record["leaves"], wanted)
    if _digests_of_files(place / "arrays") != record["files"]:
        raise _Damage("its files are not those that were saved")
    return record


def _read(place: Path, found: dict[str, Any] | Exception, wanted: Structure | None) -> Found:
    """One checkpoint, verified (`_verified`)."""
    record = _verified(place, found, wanted)
    step, structure = record["step"], record["leaves"]
    arrays = {path: entry for path, entry in structure.items() if "stored" in entry}
    stored = {path: np.empty(entry["stored"], entry["dtype"]) for path, entry in arrays.items()}
    try:
        leaves = _restore_arrays(place / "arrays", stored)
    # A damaged checkpoint can fail anywhere inside orbax and tensorstore, with any exception.
    except Exception as error:
        if isinstance(error, MemoryError) or _system_error(error) is not None:
            raise
        raise _Damage(f"{type(error).__name__} on reading") from error
    known = record["sha256"]
    if set(leaves) != set(arrays) or (known is not None and known != _digest_of_leaves(structure, leaves)):
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


def _plain(leaf: Any) -> Any:
    """What is saved of a leaf: of random keys their words, and all in NumPy, but for what lies over processes."""
    array = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return array if is_cut(array) else np.asarray(array)


def _abstract(leaf: Any) -> Any:
    """How orbax is to read a leaf: as a part for each device, where it lies over processes, else in NumPy."""
    data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    if is_cut(leaf):
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)
    return np.empty(data.shape, data.dtype)


def _like(leaf: Any, found: Any) -> Any:
    """What was read as an array such as `leaf`."""
    if isinstance(leaf, np.ndarray | np.generic):
        return found
    if is_cut(leaf):
        return jax.random.wrap_key_data(found, impl=_kind(leaf)) if _is_key(leaf) else found
    array = as_jax(found)
    if hasattr(leaf, "dtype") and _is_key(leaf):
        array = jax.random.wrap_key_data(array, impl=_kind(leaf))
    return jax.device_put(array, leaf.sharding) if getattr(leaf, "committed", False) else array


def _digest_of_record(record: dict[str, Any]) -> str:
    rest = {name: value for name, value in record.items() if name != "record_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _digests_of_files(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _digest_of_leaves(structure: Structure, leaves: Leaves) -> str:
    """Of what the structure says and of the bytes there are, the shapes and dtypes of the latter among them."""
    digest = hashlib.sha256()
    for path, array in ((path, leaves[path]) for path in structure if path in leaves):
        entry = [path, structure[path], list(array.shape), str(array.dtype)]
        digest.update(json.dumps(entry, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _by_first(cut: bool, work: Callable[[], T]) -> T:
    """What the first process does for all, where the tree lies over several."""
    return processes.by_first(work, CheckpointError, CheckpointMismatchError) if cut else work()


def _begin(directory: Path) -> None:
    """Makes room for a checkpoint that is being written."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        if path.name.startswith(_HIDDEN):
            shutil.rmtree(path)
    (directory / ".writing").mkdir()


def _finish(directory: Path, step: int, record: dict[str, Any]) -> None:
    """Adds the record, by which what has been written is a checkpoint, under its number."""
    writing, place, removed = directory / ".writing", directory / str(step), directory / f".removed-{step}"
    order = 1 + max((record["order"] for record in _sound(directory).values()), default=0)
    record = record | {"order": order, "files": _digests_of_files(writing / "arrays")}
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


def _remove_old(directory: Path) -> None:
    """All but the newest `KEPT` of those whose records can be read."""
    records = _sound(directory)
    for number in sorted(records, key=lambda number: _order(records[number]), reverse=True)[KEPT:]:
        hidden = directory / f".removed-{number}"
        os.replace(directory / str(number), hidden)
        shutil.rmtree(hidden, ignore_errors=True)


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


def _save_arrays(place: Path, leaves: Leaves, cut: bool) -> None:
    ocp = _orbax()
    with _checkpointer(ocp, cut) as checkpointer:
        checkpointer.save(place, args=ocp.args.StandardSave(leaves))


def _restore_arrays(place: Path, like: dict[str, Any], cut: bool = False) -> dict[str, Any]:
    ocp = _orbax()
    with _checkpointer(ocp, cut) as checkpointer:
        return checkpointer.restore(place.absolute(), args=ocp.args.StandardRestore(like))


def _checkpointer(ocp: Any, cut: bool) -> Any:
    """For what all processes have together, or for arrays of this one alone, where none waits for the others."""
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own}, barrier_sync_key_prefix="own")
    options = ocp.options.MultiprocessingOptions() if cut or jax.process_count() == 1 else alone
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
