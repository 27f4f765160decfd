"""Tables of text, `.csv` and `.csv.gz`, as pandas and spreadsheets write them: one example in a line.

Columns are separated by commas, else semicolons, else tabs. A first line that is no example, as not all of it are
numbers, holds the names of the columns; so does one that counts them from 0, as pandas names columns without names. A
column `label` or `class` holds labels, a column `weight` weights; a first column without a name that counts the lines
is left out. An empty cell, `nan`, `NA`, `null` or `none` is a missing entry. A table whose columns all hold words, and
no number, is one of categories (`words`); its first line is an example where every word in it is found again below it.
Not here: what the values mean (`values`).
"""

import contextlib
import csv
import gzip
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vpf_jax.data import words
from vpf_jax.data.base import fault
from vpf_jax.data.stored import WHOLE, Contents, Stored, refuse

LABELS, WEIGHTS = ("label", "class"), ("weight",)
_NUMBERS = "numbers, or words in all columns"
_BLANK = ("", "nan", "na", "n/a", "null", "none")
_TAKES = "lines of as many numbers each, separated by commas, or of as many words"
# Lines that are in memory as text at a time.
_LINES = 4096


@contextlib.contextmanager
def read_csv(path: Path, array: str | None) -> Iterator[Contents]:
    """One table."""
    if array is not None:
        refuse(path, f"which is one table and has no array {array}", "no --array")
    yield Contents(str(path), {WHOLE: _stored(path)})


class Columns(NamedTuple):
    """What the columns of a table are."""

    names: tuple[str, ...] | None
    label: int | None
    weight: int | None
    counter: int | None
    """Counts the lines, as pandas does."""
    variables: list[int]


class Piece(NamedTuple):
    """Some lines of a table."""

    values: np.ndarray
    """Numbers, or words."""
    labels: np.ndarray | None
    """As text."""
    weights: np.ndarray | None
    lines: list[int]


def _stored(path: Path) -> Stored:
    try:
        with _open(path) as file:
            return _table(path, _rows(file))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        told = f"is no table: {error}" if isinstance(error, csv.Error) else fault(error)
        refuse(path, f"which {'is no text in UTF-8' if isinstance(error, UnicodeDecodeError) else told}", _TAKES)


def _table(path: Path, rows: Iterator[tuple[int, list[str]]]) -> Stored:
    first = next(rows, None)
    if first is None:
        refuse(path, "which is empty", _TAKES)
    columns = _columns(path, first[1])
    rows = rows if columns.names is not None else itertools.chain([first], rows)
    several = iter(lambda: list(itertools.islice(rows, _LINES)), [])
    pieces: list[Piece] = []
    for some in several:
        pieces.append(_piece(path, columns, some, *first, pieces[0].values.dtype if pieces else None))
    if not pieces:
        refuse(path, "which has a line of names and no examples", _TAKES)
    lines = [line for piece in pieces for line in piece.lines]
    labels = [piece.labels for piece in pieces if piece.labels is not None]
    weights = [piece.weights for piece in pieces if piece.weights is not None]
    values, names = np.concatenate([piece.values for piece in pieces]), columns.names
    categories: words.Categories = ()
    if values.dtype.kind == "U":
        if _is_example(columns, values):
            values, lines, names = np.concatenate([[columns.names], values]), [first[0], *lines], None
        values, categories = words.coded(values)
    return Stored(
        values,
        "table",
        labels=_labels(path, np.concatenate(labels), lines) if labels else None,
        weights=np.concatenate(weights) if weights else None,
        names=names,
        lines=np.array(lines),
        categories=categories,
    )


def _is_example(columns: Columns, values: np.ndarray) -> bool:
    """Whether what was taken for names of variables is a line of words like the others."""
    named = columns.names is not None and (columns.label, columns.weight, columns.counter) == (None, None, None)
    return named and all(name and name in values[:, column] for column, name in enumerate(columns.names or ()))


def _piece(
    path: Path,
    columns: Columns,
    some: Sequence[tuple[int, list[str]]],
    first_line: int,
    first: Sequence[str],
    dtype: np.dtype | None,
) -> Piece:
    """Some lines as arrays, of words where those before them are; refuses one that is not as long as the first."""
    for line, row in some:
        if len(row) != len(first):
            told = f"whose line {line} has {len(row)} column{'s' * (len(row) != 1)}"
            refuse(path, f"{told} and line {first_line} has {len(first)}", _TAKES)
    lines, cells = [line for line, _ in some], np.array([row for _, row in some])
    labels, weights = (None if one is None else cells[:, one] for one in (columns.label, columns.weight))
    variables = cells[:, columns.variables]
    if dtype.kind == "U" if dtype is not None else _are_words(variables):
        held = _words(path, variables, lines, columns.variables)
    else:
        held = _numbers(path, variables, lines, columns.variables).astype(np.float32)
    return Piece(
        held,
        None if labels is None else np.char.strip(labels),
        None if weights is None else _numbers(path, weights[:, None], lines, [columns.weight or 0])[:, 0],
        lines,
    )


def _open(path: Path) -> io.TextIOWrapper:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _rows(file: io.TextIOWrapper) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not empty, with their numbers from 1."""
    start = file.readline()
    delimiter = next((one for one in ",;\t" if one in start), ",")
    reader = csv.reader(itertools.chain([start], file), delimiter=delimiter, strict=True)
    for row in reader:
        if row:
            yield reader.line_num, row


def _columns(path: Path, first: Sequence[str]) -> Columns:
    """What the first line says."""
    cells = [cell.strip() for cell in first]
    index = 0 if len(cells) > 1 and not cells[0] else None
    low = [cell.lower() for cell in cells]

    def place(names: Sequence[str]) -> int | None:
        found = [index for index, name in enumerate(low) if name in names]
        if len(found) > 1:
            refuse(path, f"which has {len(found)} columns called {' or '.join(names)}", "one at most")
        return found[0] if found else None

    label, weight = place(LABELS), place(WEIGHTS)
    variables = [column for column in range(len(cells)) if column not in (label, weight, index)]
    names = tuple(cells[column] for column in variables)
    counting = list(names) == [str(number) for number in range(len(names))]
    if all(_is_number(cell) for cell in cells) and not (counting and len(names) > 2):
        return Columns(None, None, None, None, list(range(len(cells))))
    if not variables:
        refuse(path, f"whose columns are {', '.join(cells)}", "columns of variables, too")
    if not counting and (numbers := [name for name in names if _is_number(name)]):
        told = f"whose first line holds names and numbers, such as {numbers[0]!r}"
        refuse(path, told, "names of all columns in the first line, or numbers in all lines")
    return Columns(names, label, weight, index, variables)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell.lower() in _BLANK
    return True


def _are_words(cells: np.ndarray) -> bool:
    """Whether some cell is a word and none is a number."""
    there = (cell for cell in cells.flat if cell.strip().lower() not in _BLANK)
    first = next(there, None)
    return first is not None and not any(_is_number(cell.strip()) for cell in itertools.chain([first], there))


def _words(path: Path, cells: np.ndarray, lines: Sequence[int], columns: Sequence[int]) -> np.ndarray:
    """The words in some cells, empty where there is none; the first cell that is a number is refused."""
    found = np.char.strip(cells)
    found[np.isin(np.char.lower(found), _BLANK)] = ""
    for column in range(found.shape[1]):
        for word in np.unique(found[:, column]):
            if word and _is_number(word):
                row = int(np.argmax(found[:, column] == word))
                told = f"whose line {lines[row]} holds the number {_cut(str(word))!r} in column {columns[column] + 1}"
                refuse(path, told, "words in all columns, as in the lines before it, or numbers in all")
    return found


def _numbers(path: Path, cells: np.ndarray, lines: Sequence[int], columns: Sequence[int]) -> np.ndarray:
    """The numbers in some cells, NaN where there is none; the first cell that is neither is refused."""
    try:
        return cells.astype(np.float64)
    except ValueError:
        pass
    found = np.full(cells.shape, np.nan)
    for (row, column), cell in np.ndenumerate(cells):
        if cell.strip().lower() in _BLANK:
            continue
        try:
            found[row, column] = float(cell)
        except ValueError:
            told = f"whose line {lines[row]} holds {_cut(str(cell))!r} in column {columns[column] + 1}"
            refuse(path, told, f"{_NUMBERS}, and labels in a column called label or class")
    return found


def _labels(path: Path, cells: np.ndarray, lines: Sequence[int]) -> np.ndarray:
    """Numbers where all are, else words."""
    for line, cell in zip(lines, cells, strict=True):
        if cell.lower() in _BLANK:
            refuse(path, f"whose line {line} has no label", "a label in each line")
    try:
        return cells.astype(np.float64)
    except ValueError:
        return cells


def _cut(cell: str) -> str:
    return cell if len(cell) <= 20 else f"{cell[:17]}..."
