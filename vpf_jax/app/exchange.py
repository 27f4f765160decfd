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
from vpf_jax.data import DatasetError, binarise, read_examples, words
from vpf_jax.data.fasta import as_fasta
from vpf_jax.loading import load_stack
from vpf_jax.models import NAME, Model, load_model
from vpf_jax.settings import Settings, setting
from vpf_jax.units import Categorical, TwoValued, Unit
from vpf_jax.units.base import num_units

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
    part = read_examples(config.data, config.values, config.array, unit, alphabet(model), categories(model))
    wanted, found = num_variables(model), part.examples.shape[1] // unit.width
    # Of groups, what is read has their entries.
    found = wanted if part.examples.shape[1] == model.stack[0].sizes[0] else found
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
    """Writes states of visible units in the form in which data come: of categories codes, letters, or in .csv words."""
    rows = np.asarray(values)
    parts = visible_unit(model).segments(rows.shape[1])
    if all(isinstance(kind, Categorical) for kind, _ in parts):
        codes = [np.asarray(kind.decode(rows[:, part])) for kind, part in parts if isinstance(kind, Categorical)]
        rows = np.concatenate(codes, axis=1).astype(np.uint8)
    if path.suffix.lower() == FASTA:
        write_bytes(path, as_fasta(rows, alphabet(model)).encode())
        print(f"{path}: {len(rows)} sequences of {rows.shape[1]} letters")
    elif categories(model) and path.suffix.lower() == ".csv":
        write_rows(path, words.written(rows, categories(model)), variable_names(model))
    else:
        write_rows(path, rows, variable_names(model))


def write_rows(path: Path, rows: np.ndarray, names: Sequence[str]) -> None:
    """Writes one row per example, of numbers or words, atomically: .npy as it is, .csv with a line of names first."""
    content = io.BytesIO()
    if path.suffix.lower() == ".npy":
        np.save(content, rows, allow_pickle=False)
    else:
        head = io.StringIO(newline="")
        writer = csv.writer(head, lineterminator="\n")
        writer.writerow(names)
        if rows.dtype.kind == "O":
            writer.writerows(rows)
        content.write(head.getvalue().encode())
        if rows.dtype.kind != "O":
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
    count = num_variables(model)
    if isinstance(names, list) and len(names) == count:
        return [str(name) for name in names]
    return [f"x{i}" for i in range(count)]


def entry_names(model: Model) -> list[str]:
    """Of the entries of their states: of a unit with several its name and the number or the letter of each."""
    names, unit = variable_names(model), visible_unit(model)
    of_each = words.values_of_each(unit, len(names))
    if of_each is None:
        return names
    letters = categories(model) or [alphabet(model) or range(count) for count in of_each]
    return [f"{name}={letter}" for name, some in zip(names, letters, strict=True) for letter in some]


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


def categories(model: Model) -> words.Categories:
    """Of a model of words those of each variable in the order of their codes; of others none."""
    given = _of_data(model, "categories")
    try:
        found = tuple(tuple(str(word) for word in some) for some in given or ())
        return found if found and words.unit_of(found) == visible_unit(model) else ()
    except (TypeError, ValueError):
        return ()


def num_variables(model: Model) -> int:
    """Visible units."""
    return num_units(visible_unit(model), model.stack[0].sizes[0])


def _of_data(model: Model, name: str) -> Any:
    """What the model says of the data that it was trained on; None where it does not."""
    data = model.about.get("data")
    return data.get(name) if isinstance(data, dict) else None


def _told_of(model: Model) -> str:
    name = _of_data(model, "name")
    return f", as its training data {name} has" if name else ""
