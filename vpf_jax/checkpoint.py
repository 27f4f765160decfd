"""Saving and resuming: numbered checkpoints of a pytree in a folder, and the trained stack of a run.

A checkpoint is a folder of two things: `arrays`, the leaves under their paths ("stack/0/weights/0"), by orbax, and
`record.json`, which says what they are:

    format, step, order    of this layout; number of the checkpoint; 1 + the largest order when it was saved
    leaves                 path -> shape, dtype, and of typed keys their kind
    info                   what the caller adds
    sha256                 of the leaves' paths, shapes, dtypes and bytes
    files                  path -> SHA-256 of what orbax has written
    record_sha256          of the record without this entry

Writes are atomic: a checkpoint is written under a hidden name and renamed when it is whole, so a process killed in
mid-write leaves the earlier ones as they were. The newest is the one saved last (the largest order), whatever its
number. Reading verifies all digests, those of files before orbax sees them, which fails on damage in many ways, not all
of them quiet. What is damaged is said (by logging, which Python shows on standard error unless
the program does otherwise), put aside as NUMBER.damaged, and passed over. A checkpoint of something else is no damage
but an error. Those of version 0.5 have no record: they are read unverified, and count as older than any that has one.

Not here: what is saved and when (`experiments`).
"""

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vpf_jax import checks
from vpf_jax.machine import BoltzmannMachine
from vpf_jax.stack import Stack

Tree = TypeVar("Tree", bound=PyTree)
# The leaves of a tree under their paths, data of keys for typed keys.
Leaves = dict[str, np.ndarray]
# What a record says of each leaf: shape, dtype, and of typed keys their kind.
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


def save_checkpoint(directory: str | Path, step: int, tree: PyTree, info: dict[str, Any] | None = None) -> None:
    """Writes checkpoint number `step`; returns when it is on disk.

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
    """
    step = checks.integer("step", step, 0)
    directory = Path(directory).absolute()
    structure, leaves = _described(tree)
    others = _records(directory)
    record = {
        "format": FORMAT,
        "step": step,
        "order": 1 + max((_order(record) for record in others.values()), default=0),
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
        raise _writing_failed(directory / str(step), error) from error
    sound = [number for number, record in others.items() if number != step and not isinstance(record, _Damage)]
    for number in sorted(sound, key=lambda n: _precedence(n, others[n]), reverse=True)[KEPT - 1 :]:
        _remove(directory / str(number))


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
      CheckpointError: there are checkpoints, all of them damaged, or one of a later version.
      OSError: the system does not let them be read.
    """
    wanted, _ = _described(like, with_data=False)
    found = _newest_sound(Path(directory), wanted, put_aside=True)
    if found is None:
        return None
    leaves = iter(found.leaves[path] for path in wanted)
    return found.step, jax.tree.map(lambda leaf: _like(leaf, next(leaves)), like), found.info


def load_stack(folder: str | Path, seed_index: int | None = None) -> Stack:
    """The trained stack of a run, as its newest checkpoint has it.

    Args:
      folder: of a run (`--workdir` of `experiments.mnist_dbm`, or a folder in `--models` of the scripts that compare
        rules), or its folder of checkpoints. Of a run of several phases it is the stack of the last one begun.
      seed_index: which of several seeds that were trained together, from 0; None for a run of one seed.

    Raises:
      ValueError: a folder without checkpoints or with those of something else than stacks, or an index that does not
        fit.
      CheckpointError: there are checkpoints, all of them damaged.
    """
    checks.require(isinstance(folder, str | os.PathLike), "folder", folder, "the folder of a run")
    folder = Path(folder)
    found = None
    for directory in (*_phases(folder), folder):
        found = found or _newest_sound(directory, None, put_aside=False)
    if found is None:
        raise ValueError(f"got folder={str(folder)!r}, which holds no checkpoints; it takes the folder of a run")
    leaves = {path.split("/", 1)[1]: leaf for path, leaf in found.leaves.items() if path.startswith("stack/")}
    if "0/biases/0" not in leaves:
        raise ValueError(f"got folder={str(folder)!r}, whose checkpoints hold no stack; it takes the run of a stack")
    if leaves["0/biases/0"].ndim == 1:
        checks.require(seed_index is None, "seed_index", seed_index, "None, as the run is of one seed")
    else:
        index = checks.integer("seed_index", seed_index, 0, len(leaves["0/biases/0"]) - 1)
        leaves = {path: leaf[index] for path, leaf in leaves.items()}
    return tuple(_machine(leaves, f"{number}/") for number in range(_count(leaves, "")))


class _Found(NamedTuple):
    step: int
    leaves: Leaves
    info: dict[str, Any]


class _Damage(Exception):
    """Of one checkpoint; says what is wrong."""


def _newest_sound(directory: Path, wanted: Structure | None, *, put_aside: bool) -> _Found | None:
    """The newest checkpoint that is not damaged, of a wanted structure; None where there are no checkpoints.

    Raises:
      CheckpointError, CheckpointMismatchError: see `restore_checkpoint`.
    """
    for step, record in sorted(_records(directory).items(), key=lambda item: _precedence(*item), reverse=True):
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


def _read(place: Path, record: Any, wanted: Structure | None) -> _Found:
    """One checkpoint, verified; `record` is what `_records` has found.

    Raises:
      _Damage: it is not what was saved.
      CheckpointError: it is of a later version, or of another structure.
    """
    if isinstance(record, _Damage):
        raise record
    if record.get("format", FORMAT) > FORMAT:
        raise CheckpointError(
            f"{place} is of format {record['format']}, which a later version has written; this one reads up to {FORMAT}"
        )
    step = int(place.name)
    if not record:
        leaves, info = _sound(_read_of_version_0_5, place)
        _compare(place, {path: _plain_entry(leaf) for path, leaf in leaves.items()}, _without_kinds(wanted))
        return _Found(step, leaves, info)
    if record["step"] != step:
        raise _Damage(f"it was saved as number {record['step']}")
    structure = record["leaves"]
    _compare(place, structure, wanted)
    if _digests_of_files(place / "arrays") != record["files"]:
        raise _Damage("its files are not those that were saved")
    stored = {path: np.empty(entry["stored"], entry["dtype"]) for path, entry in structure.items()}
    leaves = _sound(_restore_arrays, place / "arrays", stored)
    if set(leaves) != set(structure) or _digest_of_leaves(structure, leaves) != record["sha256"]:
        raise _Damage("its arrays are not those that were saved")
    return _Found(step, {path: leaves[path] for path in structure}, record["info"])


def _sound(read: Any, *args: Any) -> Any:
    """What a reader gives; whatever it raises is damage, but for what the system refuses."""
    try:
        return read(*args)
    # A damaged checkpoint can fail anywhere inside orbax and tensorstore, with any exception.
    except Exception as error:
        if isinstance(error, MemoryError) or _system_error(error) is not None:
            raise
        raise _Damage(f"{type(error).__name__} on reading") from error


def _compare(place: Path, held: Structure, wanted: Structure | None) -> None:
    """Raises CheckpointMismatchError with the first leaf that differs."""
    if wanted is None or held == wanted:
        return
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
    kind = f"random keys of kind {entry['key']}" if entry.get("key") else str(entry["dtype"])
    return f"{path} of shape {tuple(entry['shape'])} and {kind}"


def _described(tree: PyTree, *, with_data: bool = True) -> tuple[Structure, Leaves]:
    """Structure and data of the leaves of a tree (arrays, keys, numbers or abstract arrays), by path."""
    structure: Structure = {}
    leaves: Leaves = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = "/".join(_name(key) for key in keys) or "leaf"
        if path in structure:
            raise ValueError(f"got a tree with two leaves at {path!r}; it takes names without slashes")
        leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
        shape = list(leaf.shape)
        if _is_key(leaf):
            data = jax.eval_shape(jax.random.key_data, leaf)
            entry = {"shape": shape, "stored": list(data.shape), "dtype": str(data.dtype)}
            entry |= {"key": _kind(leaf)}
        else:
            entry = {"shape": shape, "stored": shape, "dtype": str(leaf.dtype)}
        structure[path] = entry
        if with_data:
            leaves[path] = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    return structure, leaves


def _name(key: Any) -> str:
    """Of one step on the way to a leaf: a field, an index or a key."""
    for attribute in ("name", "idx", "key"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


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
    array = _as_jax(found)
    if hasattr(leaf, "dtype") and _is_key(leaf):
        array = jax.random.wrap_key_data(array, impl=_kind(leaf))
    return jax.device_put(array, leaf.sharding) if getattr(leaf, "committed", False) else array


def _as_jax(found: np.ndarray) -> jax.Array:
    array = jnp.asarray(found)
    if array.dtype != found.dtype:
        raise ValueError(f"got a checkpoint of {found.dtype}; it takes jax.config.update('jax_enable_x64', True)")
    return array


def _machine(leaves: Mapping[str, np.ndarray], prefix: str) -> BoltzmannMachine:
    """The machine whose leaves stand under a prefix."""

    def layers(name: str, count: int) -> tuple[Any, ...]:
        found = [leaves.get(f"{prefix}{name}/{number}") for number in range(count)]
        return tuple(None if array is None else _as_jax(array) for array in found)

    num_layers = _count(leaves, f"{prefix}biases/")
    directed = f"{prefix}backward/0" in leaves
    return BoltzmannMachine(
        biases=layers("biases", num_layers),
        weights=layers("weights", num_layers - 1),
        intra=layers("intra", num_layers),
        backward=layers("backward", num_layers - 1) if directed else None,
    )


def _count(leaves: Mapping[str, Any], prefix: str) -> int:
    """How many numbers from 0 follow a prefix."""
    return len({path[len(prefix) :].split("/")[0] for path in leaves if path.startswith(prefix)})


def _phases(folder: Path) -> Iterator[Path]:
    """Folders of checkpoints of a run, those of its last phase first."""
    numbered = [
        int(path.name.split("-")[1]) for path in folder.glob("checkpoints-*") if path.name.split("-")[1].isdecimal()
    ]
    yield from (folder / f"checkpoints-{number}" for number in sorted(numbered, reverse=True))
    yield folder / "checkpoints"


def _numbers(directory: Path) -> list[int]:
    return [int(path.name) for path in directory.glob("*") if path.name.isdecimal() and path.is_dir()]


def _records(directory: Path) -> dict[int, Any]:
    """By number of the checkpoint: its record, {} for one of version 0.5, or the damage of it."""
    return {number: _record(directory / str(number)) for number in _numbers(directory)}


def _record(place: Path) -> Any:
    if not (place / "record.json").exists() and (place / "tree").exists():
        return {}
    try:
        record = json.loads((place / "record.json").read_bytes())
        return record if record["record_sha256"] == _digest_of_record(record) else _Damage("its record is damaged")
    except OSError as error:
        if error.errno in SYSTEM_ERRORS:
            raise
        return _Damage("its record cannot be read")
    except (ValueError, TypeError, KeyError, RecursionError):
        return _Damage("its record is damaged")


def _order(record: Any) -> int:
    return 0 if isinstance(record, _Damage) else record.get("order", 0)


def _precedence(step: int, record: Any) -> tuple[bool, int, int]:
    """Larger for what is tried earlier: those without a readable record, whose order nobody knows, then the newest."""
    return isinstance(record, _Damage), _order(record), step


def _digest_of_record(record: dict[str, Any]) -> str:
    rest = {name: value for name, value in record.items() if name != "record_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _digests_of_files(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _digest_of_leaves(structure: Structure, leaves: Leaves) -> str:
    """Of what the structure says and of the bytes there are, the shapes and dtypes of the latter among them."""
    digest = hashlib.sha256()
    for path, entry in structure.items():
        array = np.ascontiguousarray(leaves[path])
        digest.update(json.dumps([path, entry, list(leaves[path].shape), str(array.dtype)], sort_keys=True).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _write(directory: Path, step: int, leaves: Leaves, record: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        # What a killed writer has left, of version 0.5 too.
        if path.name.startswith(_HIDDEN) or ".orbax-checkpoint-tmp" in path.name:
            shutil.rmtree(path)
    writing, place = directory / ".writing", directory / str(step)
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
        os.replace(place, directory / f".removed-{step}")
    os.replace(writing, place)
    shutil.rmtree(directory / f".removed-{step}", ignore_errors=True)


def _remove(place: Path) -> None:
    hidden = place.with_name(f".removed-{place.name}")
    os.replace(place, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


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


def _writing_failed(place: Path, error: Exception) -> Exception:
    """One sentence for whatever writing has raised."""
    number = _system_error(error)
    if number is None:
        first = str(error).strip().partition("\n")[0]
        return CheckpointError(f"checkpoint {place} cannot be written ({type(error).__name__}: {first})")
    return OSError(number, f"a checkpoint cannot be written ({os.strerror(number)})", str(place))


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


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """Of what orbax does: where it fails, the tasks that it leaves behind fail later, in threads of tensorstore, and
    Python would print a traceback for each ("Event loop is closed") beside the error itself.
    """
    # Before orbax begins: some speak before its own error arrives here.
    usual = sys.unraisablehook
    if getattr(usual, "func", None) is not _tell_but_of_closed_loops:
        sys.unraisablehook = functools.partial(_tell_but_of_closed_loops, usual)
        # Other threads of tensorstore print theirs as if nobody had caught them.
        sys.excepthook = functools.partial(_print_but_of_closed_loops, sys.excepthook)
    yield


def _tell_but_of_closed_loops(usual: Callable[[Any], Any], unraisable: Any) -> None:
    if "Event loop is closed" not in str(unraisable.exc_value):
        usual(unraisable)


def _print_but_of_closed_loops(usual: Callable[..., Any], kind: Any, error: Any, trace: Any) -> None:
    if "Event loop is closed" not in str(error):
        usual(kind, error, trace)


def _save_arrays(place: Path, leaves: Leaves) -> None:
    ocp = _orbax()
    with _one_error(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(place, args=ocp.args.StandardSave(leaves))


def _restore_arrays(place: Path, like: Leaves) -> Leaves:
    ocp = _orbax()
    with _one_error(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        return checkpointer.restore(place.absolute(), args=ocp.args.StandardRestore(like))


def _read_of_version_0_5(place: Path) -> tuple[Leaves, dict[str, Any]]:
    """Leaves and info of a checkpoint without a record: a nested tree that orbax describes itself."""
    ocp = _orbax()
    leaves: Leaves = {}
    with _one_error(), ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata((place / "tree").absolute()).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        tree = checkpointer.restore((place / "tree").absolute(), restore_args=as_numpy)
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        leaves["/".join(_name(key) for key in keys)] = leaf
    info = json.loads((place / "info" / "metadata").read_bytes())
    return leaves, dict(info)


def _plain_entry(leaf: np.ndarray) -> dict[str, Any]:
    return {"shape": list(leaf.shape), "stored": list(leaf.shape), "dtype": str(leaf.dtype)}


def _without_kinds(wanted: Structure | None) -> Structure | None:
    """A structure as version 0.5 kept it: the data of keys, without their kind."""
    if wanted is None:
        return None
    return {
        path: {"shape": entry["stored"], "stored": entry["stored"], "dtype": entry["dtype"]}
        for path, entry in wanted.items()
    }


def _orbax() -> Any:
    # Imported late: it takes as long to import as JAX itself, and most uses of the library need no files.
    import orbax.checkpoint

    return orbax.checkpoint
