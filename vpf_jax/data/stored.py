"""What lies in a file, as it is stored: arrays, whole or one per part, before anything is known of their values.

An array here is whatever has a shape, a dtype and rows that are read by `array[start:stop]`: NumPy's, a memory map, a
data set of HDF5, `SparseRows`. Readers (`arrays`, `tables`, `fasta`, `tensorflow`) make `Contents`, and `parts` makes a
data set of them. Not here: what the values mean (`values`).
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from vpf_jax.data.base import PARTS, DatasetError

WHOLE = ""
# Entries that are in memory at a time.
PIECE = 2**20
TAKES = "numbers [examples, variables], images [examples, rows, columns] or colours [examples, rows, columns, 3]"
# What an array of this name holds beside one of examples, NAME_labels for NAME.
BESIDE = ("labels", "weights", "missing")


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """Examples, one in a row, and what stands beside them."""

    values: Any
    """[n, ...]."""
    name: str
    """As sentences call the array."""
    labels: Any = None
    weights: Any = None
    missing: Any = None
    names: tuple[str, ...] | None = None
    """Of the variables."""
    lines: np.ndarray | None = None
    """Of a text, the line of each row."""
    alphabet: str = ""
    """Where the values are letters, as ASCII: those that have a code, in the order of the codes."""
    categories: tuple[tuple[str, ...], ...] = ()
    """Where the values are codes of words, the words of each variable in the order of the codes."""

    def __len__(self) -> int:
        return int(self.values.shape[0])

    def row(self, index: int) -> str:
        """As sentences call a row: counted from 0, or its line."""
        return f"row {index}" if self.lines is None else f"line {self.lines[index]}"

    def variable(self, column: int) -> str:
        """As sentences call a column of a table."""
        return f"column {column + 1 if self.names is None else repr(self.names[column])}"

    def having(self, **changed: Any) -> "Stored":
        """With other fields."""
        return dataclasses.replace(self, **changed)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example; an image with one grey value in a pixel has two axes."""
        shape = tuple(int(length) for length in self.values.shape[1:])
        return tuple(length for length in shape if length != 1) or (1,) if len(shape) > 1 else shape

    def pieces(self, array: Any = None) -> Iterator[tuple[int, np.ndarray]]:
        """The first row and the rows [k, variables] of one piece after the other, of the values or another array."""
        array = self.values if array is None else array
        step = max(1, PIECE // max(1, int(np.prod(array.shape[1:], dtype=np.int64))))
        for start in range(0, array.shape[0], step):
            rows = np.asarray(array[start : start + step])
            yield start, rows.reshape(len(rows), -1)


@dataclasses.dataclass(frozen=True)
class Contents:
    """Of a file or another source."""

    source: str
    """As sentences call it."""
    parts: Mapping[str, Stored]
    """By the names of parts, or a single one, WHOLE, that is to be cut."""
    aside: tuple[str, ...] = ()
    """What else is there and is not read."""

    def __post_init__(self) -> None:
        for stored in self.parts.values():
            check(self.source, stored)
        first, *others = self.parts.values()
        for stored in others:
            if stored.shape != first.shape:
                told = f"whose {stored.name} holds examples of shape {stored.shape} and {first.name} of {first.shape}"
                refuse(self.source, told, "examples of one shape")


class SparseRows:
    """A sparse matrix of SciPy as rows that are dense when they are read."""

    def __init__(self, matrix: Any) -> None:
        self._matrix = matrix.tocsr()
        self.shape, self.dtype = self._matrix.shape, self._matrix.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._matrix[rows].toarray()


def refuse(source: str | os.PathLike[str], told: str, takes: str) -> NoReturn:
    """Raises DatasetError: "got SOURCE, TOLD; it takes TAKES"."""
    raise DatasetError(f"got {os.fspath(source)}, {told}; it takes {takes}")


def check(source: str, stored: Stored) -> None:
    """Refuses arrays that are no numbers or no examples, or that do not fit one another."""
    dtype, shape = np.dtype(stored.values.dtype), tuple(stored.values.shape)
    if dtype.kind not in "biuf":
        kinds = {"O": "Python objects", "U": "text", "S": "text", "V": "records", "c": "complex numbers"}
        refuse(source, f"whose {stored.name} holds {kinds.get(dtype.kind, f'values of type {dtype}')}", TAKES)
    if len(shape) < 2 or 0 in shape:
        refuse(source, f"whose {stored.name} has shape {shape}", f"{TAKES}, one example or more")
    for beside in BESIDE:
        array, wanted = getattr(stored, beside), shape if beside == "missing" else shape[:1]
        if array is not None and tuple(array.shape) != wanted:
            told = f"whose {stored.name} has shape {shape} and its {beside} {tuple(array.shape)}"
            refuse(source, told, f"{beside} of shape {wanted}")
    if stored.names is not None and len(stored.names) != np.prod(shape[1:]):
        told = f"whose {stored.name} has {np.prod(shape[1:])} variables and {len(stored.names)} names"
        refuse(source, told, "one name for each variable")


def choose(source: Path, names: Sequence[str], get: Callable[[str], Any], array: str | None) -> Contents:
    """The contents of a file of named arrays.

    Args:
      source: the file.
      names: of its arrays.
      get: the array of a name.
      array: the name that is asked for, or None: `train` with `validation` and `test`, else `x` or `samples`, else the
        only one.
    """
    if not names:
        refuse(source, "which holds no arrays", "arrays of numbers")
    found = ", ".join(names)
    if array is not None and array not in names:
        refuse(source, f"which has no array {array}", f"one of its arrays: {found}")
    if array is None and "train" in names:
        chosen = {part: part for part in PARTS if part in names}
    else:
        whole = array or next((name for name in ("x", "samples") if name in names), None)
        alone = [name for name in names if name not in (*BESIDE, "y", "names")]
        whole = alone[0] if whole is None and len(alone) == 1 else whole
        if whole is None:
            refuse(source, f"with the arrays {found}", "one named x, samples or train, or --array=NAME")
        chosen = {WHOLE: whole}
    used = {"names", *chosen.values()}

    def fits(one: str, name: str) -> bool:
        return one in names and get(one).shape[:1] == get(name).shape[:1]

    def beside(name: str, kind: str) -> Any:
        own, common = [f"{name}_{kind}"], [kind, "y"] if kind == "labels" else [kind]
        if WHOLE in chosen:
            # Beside one of several arrays there may be labels of another.
            own += [one for one in common if array is None or fits(one, name)]
        there = [one for one in own if one in names]
        used.update(there)
        if len(there) > 1:
            refuse(source, f"which has the arrays {' and '.join(there)}", f"one array of {kind}")
        return get(there[0]) if there else None

    told = tuple(str(name) for name in np.ravel(_texts(source, get("names")))) if "names" in names else None
    parts = {
        part: Stored(get(name), f"array {name}", **{kind: beside(name, kind) for kind in BESIDE}, names=told)
        for part, name in chosen.items()
    }
    return Contents(str(source), parts, tuple(name for name in names if name not in used))


def _texts(source: Path, array: Any) -> np.ndarray:
    given = np.asarray(array[:] if array.shape else array)
    if given.dtype.kind == "O" and all(isinstance(one, bytes | str) for one in given.ravel()):
        return np.array([one.decode() if isinstance(one, bytes) else one for one in given.ravel()])
    if given.dtype.kind == "S":
        return np.char.decode(given, "utf-8")
    if given.dtype.kind != "U":
        refuse(source, f"whose array names holds values of type {given.dtype}", "names of the variables, as text")
    return given
