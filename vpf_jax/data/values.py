"""What the values of examples are: recognised, or said by the user, and made to numbers in [0, 1] in pieces.

    bits            0 and 1; they become bytes, so that nothing larger than the result is ever in memory
    spins           -1 and +1, which become 0 and 1
    probabilities   numbers in [0, 1]
    bytes           grey values or colours of images, whole numbers from 0 to 255, which are divided by 255

NaN, or a mask, says which entries are missing. Categories, counts and real numbers are recognised and refused: there
are no units for them yet. Not here: files (`arrays`, `tables`, `fasta`), which examples go to which part (`parts`).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Bool, Int

from vpf_jax.data.base import Part
from vpf_jax.data.stored import Contents, Stored, refuse

# What each is made of, in words.
KINDS = {
    "bits": "0 and 1",
    "spins": "-1 and +1",
    "probabilities": "numbers in [0, 1]",
    "bytes": "whole numbers from 0 to 255",
}
VALUES = ("auto", *KINDS)
_TAKES = "bits (0, 1), spins (-1, +1), probabilities in [0, 1] or bytes of images (0 to 255)"
# Images whose lightest pixel is below this are not recognised: such numbers may be counts.
_LIGHT = 128


@dataclasses.dataclass
class Survey:
    """What is known of the values of one or more arrays."""

    lowest: float = np.inf
    highest: float = -np.inf
    whole: bool = True
    zeros: bool = False
    missing: int = 0

    def see(self, rows: np.ndarray, unknown: np.ndarray | None) -> None:
        """Looks at some rows, without their unknown entries."""
        if unknown is not None:
            self.missing += int(unknown.sum())
            rows = rows[~unknown]
        if not rows.size:
            return
        self.lowest, self.highest = min(self.lowest, float(rows.min())), max(self.highest, float(rows.max()))
        if rows.dtype.kind == "f":
            self.whole = self.whole and math.isfinite(self.highest) and bool((rows == np.rint(rows)).all())
        # Of spins alone it is of interest.
        self.zeros = self.zeros or (self.lowest >= -1 and self.highest <= 1 and not rows.all())

    def fits(self, kind: str) -> bool:
        """Whether the values are of this kind."""
        if kind == "spins":
            return self.whole and self.lowest >= -1 and self.highest <= 1 and not self.zeros
        inside = 0 <= self.lowest <= self.highest <= (255 if kind == "bytes" else 1)
        return inside and (self.whole or kind == "probabilities")


def unknown(rows: np.ndarray, mask: np.ndarray | None) -> np.ndarray | None:
    """Which entries of some rows are missing; None where none can be."""
    blank = np.isnan(rows) if rows.dtype.kind == "f" else None
    blank = None if blank is None or not blank.any() else blank
    if mask is None or blank is None:
        return blank if mask is None else mask
    return mask | blank


def recognise(contents: Contents, given: str = "auto") -> tuple[str, bool]:
    """The kind of the values, and whether any entry is missing.

    Args:
      contents: of a source.
      given: "auto", or the kind as the user says it.

    Raises:
      DatasetError: values of no kind that units are for, or of another kind than was said; a row where they are.
    """
    survey = Survey()
    for stored in contents.parts.values():
        if stored.categories:
            refuse(contents.source, f"whose {stored.name} holds {stored.categories}: categories", _TAKES)
        for start, rows in stored.pieces():
            survey.see(rows, unknown(rows, mask_rows(contents.source, stored, start, len(rows))))
    if survey.lowest > survey.highest:
        names = " and ".join(stored.name for stored in contents.parts.values())
        refuse(contents.source, f"whose {names} holds missing entries alone", _TAKES)
    kind = _guess(survey, _is_image(next(iter(contents.parts.values())).shape)) if given == "auto" else given
    if kind is None or not survey.fits(kind):
        _refuse_values(contents, survey, kind)
    return kind, bool(survey.missing)


def mask_rows(source: str, stored: Stored, start: int, count: int) -> Bool[np.ndarray, "count num_visible"] | None:
    """The mask of missing entries of some rows, where the source has one."""
    if stored.missing is None:
        return None
    mask = np.asarray(stored.missing[start : start + count]).reshape(count, -1)
    if mask.dtype != bool:
        wrong = ~np.isin(mask, (0, 1))
        if mask.dtype.kind not in "iuf" or wrong.any():
            row = f", {stored.row(start + int(np.argwhere(wrong)[0, 0]))}" if mask.dtype.kind in "iuf" else ""
            refuse(source, f"whose mask of missing entries of {stored.name} is of {mask.dtype}{row}", "True and False")
        mask = mask.astype(bool)
    return mask


def convert(
    source: str, stored: Stored, kind: str, missing: bool, rows: Mapping[str, Int[np.ndarray, " some"]]
) -> dict[str, Part]:
    """Parts made of some of the rows each, in pieces; without labels and weights.

    Args:
      source: as sentences call it.
      stored: the examples.
      kind: of their values.
      missing: whether any entry is.
      rows: numbers of the rows of each part, increasing.
    """
    width = int(np.prod(stored.values.shape[1:], dtype=np.int64))
    dtype = np.uint8 if kind in ("bits", "spins") else np.float32
    values = {part: np.empty((len(own), width), dtype) for part, own in rows.items()}
    masks = {part: np.zeros((len(own), width), bool) for part, own in rows.items()} if missing else {}
    for start, some in stored.pieces():
        blank = unknown(some, mask_rows(source, stored, start, len(some)))
        made = _MADE[kind](some if blank is None else np.where(blank, np.zeros((), some.dtype), some))
        if blank is not None:
            made[blank] = 0
        for part, own in rows.items():
            first, last = np.searchsorted(own, (start, start + len(some)))
            inside = own[first:last] - start
            values[part][first:last] = made[inside]
            if blank is not None:
                masks[part][first:last] = blank[inside]
    return {part: Part(values[part], missing=masks[part] if masks and masks[part].any() else None) for part in rows}


_MADE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bits": lambda rows: rows.astype(np.uint8),
    "spins": lambda rows: (rows > 0).astype(np.uint8),
    "probabilities": lambda rows: rows.astype(np.float32),
    "bytes": lambda rows: np.divide(rows, 255, dtype=np.float32, casting="unsafe"),
}


def _is_image(shape: Sequence[int]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)


def _guess(survey: Survey, images: bool) -> str | None:
    for kind in ("bits", "spins", "probabilities"):
        if survey.fits(kind):
            return kind
    light = survey.highest == 255 or (images and survey.highest >= _LIGHT)
    return "bytes" if light and survey.fits("bytes") else None


def _refuse_values(contents: Contents, survey: Survey, kind: str | None) -> NoReturn:
    """Says where the first value is that does not fit."""
    for stored in contents.parts.values():
        for start, rows in stored.pieces():
            blank = unknown(rows, mask_rows(contents.source, stored, start, len(rows)))
            wrong = ~_FITTING[kind or "probabilities"](rows)
            if blank is not None:
                wrong &= ~blank
            if wrong.any():
                row, column = (int(index) for index in np.argwhere(wrong)[0])
                place = f"{rows[row, column]:g} in {stored.row(start + row)}, variable {column}"
                if kind is not None:
                    told = f"whose {stored.name} holds {place}"
                    refuse(contents.source, told, f"{KINDS[kind]} where the values are {kind} (--values)")
                told = f"whose {stored.name} holds {_named(survey)}, such as {place}"
                refuse(contents.source, told, f"{_TAKES}; --values says which, where it is not recognised")
    raise AssertionError("values that do not fit are somewhere")


def _named(survey: Survey) -> str:
    """Values of no kind that units are for."""
    low, high = survey.lowest, survey.highest
    if survey.whole and low >= 0:
        return f"counts or categories, whole numbers from {low:g} to {high:g}"
    return f"{'whole' if survey.whole else 'real'} numbers from {low:g} to {high:g}"


_FITTING: dict[str, Callable[[np.ndarray], Any]] = {
    "bits": lambda rows: (rows == 0) | (rows == 1),
    "spins": lambda rows: (rows == -1) | (rows == 1),
    "probabilities": lambda rows: (rows >= 0) & (rows <= 1),
    "bytes": lambda rows: (rows >= 0) & (rows <= 255) & (rows == np.rint(rows)),
}
