"""Models that last: a trained stack in one file, which another process, machine or version of JAX reads.

The file is of the format safetensors: numbers and their shapes, no code, readable by other programs. Its tensors have
the paths of their leaves, "0/weights/0" being the weights of the first machine above its visible layer, and its
metadata hold under the name vpf_jax, as JSON,

    format, version    of this layout; of the library that wrote it
    machines           of each its sizes, layers with weights inside, whether it is directed, units of each layer
    about              what the caller adds: rule, settings, data
    sha256             of all of these and of the tensors

A file is read whole or refused: damage, a later format, units that are not known here. Files are written atomically.
Not here: optimizers and random numbers, with which a training goes on (`checkpoint`).
"""

import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from vpf_jax import checks, units
from vpf_jax.atomic import write_bytes
from vpf_jax.checkpoint import SYSTEM_ERRORS, as_jax
from vpf_jax.couplings import check_dense
from vpf_jax.loading import machine_of
from vpf_jax.machine import BoltzmannMachine
from vpf_jax.stack import Stack, check_stack

# What a run's folder calls it.
NAME = "model.safetensors"
FORMAT = 1
_KEY = "vpf_jax"
_RECORD = {"format", "version", "machines", "about", "sha256"}
_MACHINE = {"sizes", "intra", "directed", "units"}
# Of parameters: the format's names of them.
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Bytes before the metadata, which say how long they are.
_HEAD = 8


class ModelError(ValueError):
    """A file holds no model, or a damaged one, or one that is not known here; the message says which."""


class Model(NamedTuple):
    """What a file holds."""

    stack: Stack
    about: dict[str, Any]
    """What was saved with it."""


def save_model(path: str | Path, stack: Stack, about: Mapping[str, Any] | None = None) -> None:
    """Writes a stack into a file, atomically.

    Args:
      path: the file; one that is there is replaced.
      stack: machines of registered units, their weights matrices.
      about: names and values that JSON can hold, such as how the stack was trained and on what.

    Raises:
      ValueError: no stack, or one with other couplings than matrices, with units that are not registered or parameters
        in another precision than 16, 32 or 64 bits; values that JSON cannot hold.
      OSError: the file cannot be written; one that was there stays.
    """
    from vpf_jax import __version__

    checks.require(isinstance(path, str | os.PathLike), "path", path, "the path of a file")
    check_stack(stack)
    tensors = _tensors(stack)
    record = {
        "format": FORMAT,
        "version": __version__,
        "machines": [_described(machine) for machine in stack],
        "about": _plain(about),
    }
    record["sha256"] = _digest(record, tensors)
    # In one entry: the format does not keep several in order, and the same model is then the same bytes.
    write_bytes(Path(path), safetensors.numpy.save(tensors, {_KEY: json.dumps(record, sort_keys=True)}))


def load_model(path: str | Path) -> Model:
    """Reads what `save_model` has written, verified.

    Raises:
      ModelError: no such file; one of something else; a damaged one; one of a later format, with units that are not
        registered here, or in double precision where JAX's is single.
      OSError: the system does not let it be read.
    """
    record, tensors = _read(path)
    try:
        machines = tuple(_machine(number, described, tensors) for number, described in enumerate(record["machines"]))
        check_stack(machines)
        if strangers := set(tensors) - {name for name in tensors if int(name.partition("/")[0]) < len(machines)}:
            raise ValueError(f"{min(strangers)} belongs to no machine")
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"got {path}, which holds no model that can be used here: {error}") from error
    return Model(machines, record["about"])


def described_model(path: str | Path) -> dict[str, Any]:
    """What a file says of its model, verified: version, machines, about; raises as `load_model`.

    Units need not be known here.
    """
    record, _ = _read(path)
    return {name: record[name] for name in ("version", "machines", "about")}


def _tensors(stack: Stack) -> dict[str, np.ndarray]:
    """The leaves by their paths."""
    found = {}
    for number, machine in enumerate(stack):
        check_dense((*machine.weights, *(machine.backward or ())), "a file")
        for field in ("biases", "weights", "intra", "backward", "own"):
            for i, leaf in enumerate(getattr(machine, field) or ()):
                if leaf is not None:
                    found[f"{number}/{field}/{i}"] = np.ascontiguousarray(leaf)
    for name, leaf in found.items():
        kinds = tuple(_DTYPES.values())
        if leaf.dtype.name not in kinds:
            raise ValueError(f"got {name} of dtype {leaf.dtype} in the stack; a file takes {', '.join(kinds)}")
    return found


def _described(machine: BoltzmannMachine) -> dict[str, Any]:
    for unit in machine.layer_units:
        checks.require(_is_known(unit), "units", unit, "registered ones (vpf_jax.units.register), which a file names")
    return {
        "sizes": list(machine.sizes),
        "intra": [i for i, block in enumerate(machine.intra) if block is not None],
        "directed": machine.backward is not None,
        "units": [unit.name for unit in machine.layer_units],
    }


def _is_known(unit: units.Unit) -> bool:
    try:
        return units.get(unit.name) == unit
    except ValueError:
        return False


def _plain(about: Mapping[str, Any] | None) -> dict[str, Any]:
    """As it comes back from the file."""
    checks.require(about is None or isinstance(about, Mapping), "about", about, "names and values that JSON can hold")
    try:
        return json.loads(json.dumps(dict(about or {}), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"got about with other values than JSON can hold ({error}); it takes these alone") from None


def _digest(record: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    told = {name: value for name, value in record.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name, array in sorted(tensors.items()):
        digest.update(json.dumps([name, list(array.shape), array.dtype.name]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record and the tensors of a sound file."""
    checks.require(isinstance(path, str | os.PathLike), "path", path, "the path of a file")
    told, takes = f"got {path}, which", f"it takes a file of save_model, such as the {NAME} of a run"
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{told} does not exist; {takes}") from None
    except OSError as error:
        if error.errno in SYSTEM_ERRORS:
            raise
        raise ModelError(f"{told} cannot be read ({error.strerror}); {takes}") from None
    try:
        found = safetensors.deserialize(content)
        end = _HEAD + int.from_bytes(content[:_HEAD], "little")
        record = json.loads(content[_HEAD:end]).get("__metadata__", {}).get(_KEY)
    # Damage is found in many ways, and named in as many.
    except Exception as error:
        raise ModelError(
            f"{told} is no safetensors file, or a damaged one ({' '.join(str(error).split())}); {takes}"
        ) from error
    if record is None:
        raise ModelError(f"{told} is a safetensors file of something else; {takes}")
    try:
        record = json.loads(record)
        version, wrote = record["format"], record["version"]
        later = isinstance(version, int) and version > FORMAT
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ModelError(f"{told} is damaged: its metadata cannot be read; {takes}") from None
    if later:
        raise ModelError(
            f"{told} is of format {version}, which vpf_jax {wrote} has written; this version reads up to {FORMAT}"
        )
    if unknown := sorted({entry["dtype"] for _, entry in found} - set(_DTYPES)):
        raise ModelError(f"{told} holds parameters of type {unknown[0]}; they are {', '.join(_DTYPES)}")
    tensors = {
        name: np.frombuffer(entry["data"], jnp.dtype(_DTYPES[entry["dtype"]])).reshape(entry["shape"])
        for name, entry in found
    }
    if set(record) != _RECORD or _digest(record, tensors) != record["sha256"]:
        raise ModelError(f"{told} is damaged: what it holds is not what was saved; put back a copy of it")
    return record, tensors


def _machine(number: int, described: dict[str, Any], tensors: Mapping[str, np.ndarray]) -> BoltzmannMachine:
    """One machine; raises ValueError for leaves that are not those described."""
    if not isinstance(described, dict) or set(described) != _MACHINE:
        raise ValueError(f"machine {number} is described by {described!r}, not by {', '.join(sorted(_MACHINE))}")
    sizes, prefix = described["sizes"], f"{number}/"
    pairs = dict(enumerate(itertools.pairwise(sizes)))
    shapes = {f"biases/{i}": (n,) for i, n in enumerate(sizes)} | {f"weights/{i}": pair for i, pair in pairs.items()}
    shapes |= {f"intra/{i}": (sizes[i], sizes[i]) for i in described["intra"]}
    shapes |= {f"backward/{i}": pair for i, pair in pairs.items()} if described["directed"] else {}
    kinds = [units.get(kind) for kind in described["units"]]
    shapes |= {
        f"own/{i}": (n,) for i, (n, kind) in enumerate(zip(sizes, kinds, strict=True)) if kind.own(n) is not None
    }
    found = {name.removeprefix(prefix): leaf.shape for name, leaf in tensors.items() if name.startswith(prefix)}
    if found != shapes:
        raise ValueError(f"machine {number} has leaves of shapes {found}, where {shapes} are described")
    return machine_of({name: as_jax(leaf) for name, leaf in tensors.items()}, prefix, described["units"])
