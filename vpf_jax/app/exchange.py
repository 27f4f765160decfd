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
from vpf_jax.checks import AnyArray
from vpf_jax.data import DatasetError, binarise, read_examples
from vpf_jax.data.fasta import as_fasta
from vpf_jax.loading import load_stack
from vpf_jax.models import NAME, Model, load_model
from vpf_jax.settings import Settings, setting
from vpf_jax.units import Categorical, TwoValued, Unit

# Suffixes of files of rows, and of letters.
ROWS = (".npy", ".csv")
FASTA = ".fasta"


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
        "What the numbers of the file are, for a model of two-valued units; auto: as they look, and for other models "
        "what their units are",
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


def visible_unit(model: Model) -> Unit:
    """Of the visible layer."""
    return model.stack[0].layer_units[0]


def read_data(config: DataConfig, model: Model) -> Examples:
    """The examples of a file for a model; values between the two of two-valued units are taken for the nearer one.

    Raises:
      SettingError: values said for a model whose units say them.
      vpf_jax.data.DatasetError: the file cannot be read, or its examples are none of the model's.
    """
    unit = visible_unit(model)
    plain = isinstance(unit, TwoValued)
    checks.require(plain or config.values == "auto", "values", config.values, f"auto, as the units are {unit.name}")
    part = read_examples(config.data, config.values, config.array, unit, alphabet(model))
    wanted, found = model.stack[0].sizes[0] // unit.width, part.examples.shape[1] // unit.width
    if found != wanted:
        raise DatasetError(
            f"got {config.data} with {found} variables per example; the model {config.model} takes {wanted}"
            f"{_told_of(model)}"
        )
    if len(part) == 0:
        raise DatasetError(f"got {config.data} without examples; it takes one at least")
    if isinstance(unit, TwoValued):
        bits = jnp.asarray(binarise(part.examples), bool)
        return Examples(unit.at(bits).astype(unit.dtype), part.missing)
    try:
        return Examples(unit.widened(unit.check("examples", part.examples)), part.missing)
    except ValueError as error:
        raise DatasetError(f"got {config.data}, whose examples are none of {unit.name} units: {error}") from None


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


def check_letters(out: str, model: Model) -> None:
    """Raises SettingError for a file of letters from a model of none."""
    letters = Path(out).suffix.lower() == FASTA
    told = f"a file that ends in {' or '.join(ROWS)}, as the model is not one of letters"
    checks.require(not letters or alphabet(model), "out", out, told)


def write_values(path: Path, model: Model, values: Shaped[AnyArray, "n n_0"]) -> None:
    """Writes states of visible units in the form in which data come: of categories their codes or letters."""
    unit, rows = visible_unit(model), np.asarray(values)
    if isinstance(unit, Categorical):
        rows = np.asarray(unit.decode(rows)).astype(np.uint8)
    if path.suffix.lower() == FASTA:
        write_bytes(path, as_fasta(rows, alphabet(model)).encode())
        print(f"{path}: {len(rows)} sequences of {rows.shape[1]} letters")
    else:
        write_rows(path, rows, variable_names(model))


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
    names = _of_data(model, "names")
    count = model.stack[0].sizes[0] // visible_unit(model).width
    if isinstance(names, list) and len(names) == count:
        return [str(name) for name in names]
    return [f"x{i}" for i in range(count)]


def entry_names(model: Model) -> list[str]:
    """Of the entries of their states: of a unit with several its name and the number or the letter of each."""
    names, width = variable_names(model), visible_unit(model).width
    letters = alphabet(model) or range(width)
    return names if width == 1 else [f"{name}={letter}" for name in names for letter in letters]


def alphabet(model: Model) -> str:
    """Of a model of letters those in the order of their codes; of others no text."""
    letters, unit = _of_data(model, "alphabet"), visible_unit(model)
    return letters if isinstance(letters, str) and isinstance(unit, Categorical) and len(letters) == unit.q else ""


def image_shape(model: Model) -> tuple[int, ...] | None:
    """Of one example, where the model knows it: any number of axes."""
    shape = _of_data(model, "shape")
    if not isinstance(shape, list) or not all(isinstance(n, int) for n in shape) or visible_unit(model).width > 1:
        return None
    return tuple(shape) if math.prod(shape) == model.stack[0].sizes[0] else None


def _of_data(model: Model, name: str) -> Any:
    """What the model says of the data that it was trained on; None where it does not."""
    data = model.about.get("data")
    return data.get(name) if isinstance(data, dict) else None


def _told_of(model: Model) -> str:
    name = _of_data(model, "name")
    return f", as its training data {name} has" if name else ""
