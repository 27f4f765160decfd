"""What the commands for trained models read and write: a model, a file of examples, a file of rows.

Not here: what is computed between the two.
"""

import csv
import dataclasses
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped

from vpf_jax import checks
from vpf_jax.app.folder import UsageError, read_object
from vpf_jax.atomic import write_bytes
from vpf_jax.data import DatasetError, binarise, read_examples
from vpf_jax.loading import load_stack
from vpf_jax.models import NAME, Model, load_model
from vpf_jax.settings import Settings, setting
from vpf_jax.units import TwoValued, two_valued

# Suffixes of files of rows.
ROWS = (".npy", ".csv")


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """What the commands for trained models share; each setting but the first is a flag."""

    model: str = setting("model.safetensors", "A model.safetensors, or the folder of a run")
    overwrite: bool = setting(False, "Whether a file that is there is replaced")


@dataclasses.dataclass(frozen=True)
class DataConfig(Config):
    """What those that take data share, too."""

    data: str = setting("data.npy", "A file of examples")
    values: str = setting(
        "auto",
        "What the numbers of the file are; auto: as they look",
        choices=("auto", "bits", "spins", "probabilities"),
    )
    array: str | None = setting(None, "Which array of a file with several")


class Examples(NamedTuple):
    """The examples of a file, as a model takes them."""

    visible: Shaped[Array, "n n_0"]
    """Values of its visible units."""
    missing: Bool[np.ndarray, "n n_0"] | None
    """Entries that the file leaves open; None: none."""


def read_model(path: str) -> Model:
    """The model of a file, or of a run by its folder.

    Raises:
      ModelError, CheckpointError: it cannot be read.
      UsageError: a folder without a model.
    """
    place = Path(path)
    if not os.path.isdir(place):
        return load_model(place)
    if (place / NAME).exists():
        return load_model(place / NAME)
    if found := sorted(file.name for file in place.glob("*.safetensors")):
        raise UsageError(f"got {path}, which holds several models; it takes one of them: {', '.join(found)}")
    try:
        stack = load_stack(place)
    except checks.SettingError as error:
        raise UsageError(f"got {path}, a run of several seeds; it takes the model of one ({error})") from None
    except ValueError as error:
        raise UsageError(f"{error}, or a {NAME}") from None
    settings = read_object(place / "config.json") or {}
    return Model(stack, {"settings": settings, "data": {"name": settings.get("dataset")}})


def visible_unit(model: Model) -> TwoValued:
    """Of the visible layer; ValueError for others than two-valued ones."""
    return two_valued(model.stack[0].layer_units[0], "a file of examples")


def read_data(config: DataConfig, model: Model) -> Examples:
    """The examples of a file for a model; values between the two of its units are taken for the nearer one.

    Raises:
      vpf_jax.data.DatasetError: the file cannot be read, or its examples are none of the model's.
    """
    part = read_examples(config.data, config.values, config.array)
    wanted, found = model.stack[0].sizes[0], part.examples.shape[1]
    if found != wanted:
        raise DatasetError(
            f"got {config.data} with {found} variables per example; the model {config.model} takes {wanted}"
            f"{_told_of(model)}"
        )
    if len(part) == 0:
        raise DatasetError(f"got {config.data} without examples; it takes one at least")
    unit, bits = visible_unit(model), jnp.asarray(binarise(part.examples), bool)
    return Examples(unit.at(bits).astype(unit.dtype), part.missing)


def complete(config: DataConfig, examples: Examples, what: str) -> Shaped[Array, "n n_0"]:
    """The examples, if none has a missing entry; else raises DatasetError, as `what` takes whole ones."""
    if examples.missing is not None and examples.missing.any():
        row = int(np.argmax(examples.missing.any(axis=1)))
        raise DatasetError(
            f"got {config.data} with missing entries, the first of them in example {row}; {what} takes whole examples, "
            "as `repair` makes them"
        )
    return examples.visible


def check_out(out: str, overwrite: bool, suffixes: Sequence[str] = ROWS, name: str = "out") -> Path:
    """The file to write, before anything is computed; the setting's name is for what is said.

    Raises:
      SettingError: a suffix that is not known, no folder for it, or a file that is there already.
    """
    path = Path(out)
    checks.require(path.suffix.lower() in suffixes, name, out, f"a file that ends in {', '.join(suffixes)}")
    # Unlike those of a path, these take a name that the system does not for one that is not there.
    checks.require(os.path.isdir(path.parent) and not os.path.isdir(path), name, out, "a file in a folder that exists")
    checks.require(overwrite or not os.path.exists(path), name, out, "a file that is not there yet, or --overwrite=on")
    return path


def write_rows(path: Path, rows: np.ndarray, names: Sequence[str]) -> None:
    """Writes one row per example, atomically: .npy as it is, .csv with a line of names first."""
    content = io.BytesIO()
    if path.suffix.lower() == ".npy":
        np.save(content, rows, allow_pickle=False)
    else:
        head = io.StringIO(newline="")
        csv.writer(head, lineterminator="\n").writerow(names)
        content.write(head.getvalue().encode())
        # So many digits that the same number is read back.
        np.savetxt(content, rows, fmt="%.9g" if rows.dtype.kind == "f" else "%d", delimiter=",")
    write_bytes(path, content.getvalue())
    print(f"{path}: {len(rows)} rows of {rows.shape[1]}")


def write_columns(path: Path, columns: Mapping[str, Any]) -> None:
    """Writes named columns with one entry per example, atomically; of .npy they are the fields of one array."""
    arrays = {name: np.asarray(column) for name, column in columns.items()}
    (count,) = {len(column) for column in arrays.values()}
    if path.suffix.lower() == ".csv":
        write_rows(path, np.stack(list(arrays.values()), axis=1), list(arrays))
        return
    table = np.empty(count, [(name, column.dtype) for name, column in arrays.items()])
    for name, column in arrays.items():
        table[name] = column
    content = io.BytesIO()
    np.save(content, table, allow_pickle=False)
    write_bytes(path, content.getvalue())
    print(f"{path}: {count} rows of {', '.join(arrays)}")


def variable_names(model: Model) -> list[str]:
    """Of the visible units: as in the training data, or x0, x1, ..."""
    data = model.about.get("data")
    names = data.get("names") if isinstance(data, dict) else None
    count = model.stack[0].sizes[0]
    if isinstance(names, list) and len(names) == count:
        return [str(name) for name in names]
    return [f"x{i}" for i in range(count)]


def image_shape(model: Model) -> tuple[int, ...] | None:
    """Of one example, where the model knows it: any number of axes."""
    data = model.about.get("data")
    shape = data.get("shape") if isinstance(data, dict) else None
    if not isinstance(shape, list) or not all(isinstance(n, int) for n in shape):
        return None
    return tuple(shape) if math.prod(shape) == model.stack[0].sizes[0] else None


def _told_of(model: Model) -> str:
    data = model.about.get("data")
    name = data.get("name") if isinstance(data, dict) else None
    return f", as its training data {name} has" if name else ""
