"""What the values of examples are: recognised, or said by the user, and made to states of units in pieces.

    bits            0 and 1; they become bytes, so that nothing larger than the result is ever in memory
    spins           -1 and +1, which become 0 and 1
    probabilities   numbers in [0, 1]
    bytes           grey values or colours of images, whole numbers from 0 to 255, which are divided by 255
    categories      letters, words, or codes from 0 that the user says are such, which become one-hot vectors
    counts          whole numbers of at least 0, some above 1
    reals           any other finite numbers, as they are: whoever wants them standardised does it before

The first four are for binary units. NaN, or a mask, says which entries are missing. Not here: files (`arrays`,
`tables`, `fasta`), codes of words (`words`), which examples go to which part (`parts`).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Bool, Int, Real, Shaped

from vpf_jax.data import words
from vpf_jax.data.base import Part
from vpf_jax.data.fasta import NO_CODE, codes, told_of
from vpf_jax.data.stored import Contents, Stored, refuse
from vpf_jax.units import BINARY, COUNT, GAUSSIAN, Categorical, Count, Groups, TwoValued, Unit
from vpf_jax.units.count import MOST

# Of categories that are no letters.
MOST_CATEGORIES = 255
# What each is made of, in words.
KINDS = {
    "bits": "0 and 1",
    "spins": "-1 and +1",
    "probabilities": "numbers in [0, 1]",
    "bytes": "whole numbers from 0 to 255",
    "categories": f"codes, whole numbers from 0 to {MOST_CATEGORIES - 1}",
    "counts": f"whole numbers of at least 0, up to {MOST}",
    "reals": "finite numbers",
}
# Those that are for units of two values.
BINARY_KINDS = ("bits", "spins", "probabilities", "bytes")
VALUES = ("auto", *KINDS)
_TAKES_BITS = "bits (0, 1), spins (-1, +1), probabilities in [0, 1] or bytes of images (0 to 255)"
_TAKES = f"{_TAKES_BITS.replace(' or', ',')}, counts, letters, words or finite real numbers"
# Images whose lightest pixel is below this are not recognised: such numbers may be counts.
_LIGHT = 128
# Of the single precision in which real numbers are kept.
_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass
class Survey:
    """What is known of the values of one or more arrays."""

    lowest: float = np.inf
    highest: float = -np.inf
    whole: bool = True
    zeros: bool = False
    missing: int = 0
    limits: Int[np.ndarray, " variables"] | None = None
    """Of the codes of each variable, which are below; None: of none."""
    beyond: bool = False
    """Whether any is not."""

    def see(self, rows: np.ndarray, unknown: np.ndarray | None) -> None:
        """Looks at some rows, without their unknown entries."""
        if self.limits is not None:
            above = rows >= self.limits
            self.beyond = self.beyond or bool((above if unknown is None else above & ~unknown).any())
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
        if kind == "reals":
            return bool(max(-self.lowest, self.highest) <= _LARGEST)
        if kind == "spins":
            return self.whole and self.lowest >= -1 and self.highest <= 1 and not self.zeros
        ends = {"bytes": 255, "categories": MOST_CATEGORIES - 1, "counts": MOST}
        inside = 0 <= self.lowest <= self.highest <= ends.get(kind, 1)
        return inside and (self.whole or kind == "probabilities")


@dataclasses.dataclass(frozen=True)
class Recognised:
    """What the values of a source are."""

    kind: str
    """One of `KINDS`."""
    missing: bool
    """Whether any entry is."""
    unit: Unit
    """What they are states of."""
    highest: float
    """Of the values that are there."""

    @property
    def dtype(self) -> Any:
        """Of the examples: the smallest in which they fit; of large counts that of their units."""
        if self.kind == "counts":
            small = (one for one in (np.uint8, np.uint16) if self.highest <= np.iinfo(one).max)
            return next(small, np.int32)
        return np.uint8 if self.kind in ("bits", "spins", "categories") else np.float32


def unknown(rows: np.ndarray, mask: np.ndarray | None) -> np.ndarray | None:
    """Which entries of some rows are missing; None where none can be."""
    blank = np.isnan(rows) if rows.dtype.kind == "f" else None
    blank = None if blank is None or not blank.any() else blank
    if mask is None or blank is None:
        return blank if mask is None else mask
    return mask | blank


def recognise(contents: Contents, given: str = "auto", unit: Unit | None = None) -> Recognised:
    """What the values are.

    Args:
      contents: of a source.
      given: "auto", or the kind as the user says it.
      unit: that they are to be states of; None: of that which suits them.

    Raises:
      DatasetError: values that are no states, or of another kind than was said; a row where they are.
    """
    _check_letters(contents, given, unit)
    _check_words(contents, given, unit)
    survey = Survey(limits=_limits(contents, unit))
    for stored in contents.parts.values():
        for _, rows, blank in _pieces(contents.source, stored):
            survey.see(rows, blank)
    if survey.lowest > survey.highest:
        names = " and ".join(stored.name for stored in contents.parts.values())
        refuse(contents.source, f"whose {names} holds missing entries alone", _TAKES)
    first = next(iter(contents.parts.values()))
    named = bool(first.alphabet or first.categories)
    kind = given if given != "auto" else "categories" if named else _guess(survey, _is_image(first), unit)
    if kind is None or not survey.fits(kind) or survey.beyond:
        _refuse_values(contents, survey, kind, unit)
    made = words.unit_of(first.categories) if first.categories else _unit(kind, survey, first.alphabet)
    return Recognised(kind, bool(survey.missing), unit or made, survey.highest)


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
    source: str, stored: Stored, found: Recognised, rows: Mapping[str, Int[np.ndarray, " some"]]
) -> dict[str, Part]:
    """Parts made of some of the rows each, in pieces; without labels and weights.

    Args:
      source: as sentences call it.
      stored: the examples.
      found: what their values are.
      rows: numbers of the rows of each part, increasing.
    """
    variables = int(np.prod(stored.values.shape[1:], dtype=np.int64))
    of_each = words.values_of_each(found.unit, variables)
    width = variables if of_each is None else int(of_each.sum())
    values = {part: np.empty((len(own), width), found.dtype) for part, own in rows.items()}
    masks = {part: np.zeros((len(own), width), bool) for part, own in rows.items()} if found.missing else {}
    for start, some, blank in _pieces(source, stored):
        made = states_of(found, some if blank is None else np.where(blank, np.zeros((), some.dtype), some))
        for part, own in rows.items():
            first, last = np.searchsorted(own, (start, start + len(some)))
            inside = own[first:last] - start
            values[part][first:last] = made[inside]
            if blank is not None:
                masks[part][first:last] = np.repeat(blank[inside], 1 if of_each is None else of_each, axis=1)
    return {
        part: Part(values[part], missing=masks[part] if masks and masks[part].any() else None, units=found.unit.name)
        for part in rows
    }


def _pieces(source: str, stored: Stored) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
    """First row, rows and which of their entries are missing, of one piece after the other; of letters the codes."""
    table = codes(stored.alphabet) if stored.alphabet else None
    for start, rows in stored.pieces():
        yield start, rows if table is None else table[rows], unknown(rows, mask_rows(source, stored, start, len(rows)))


def states_of(found: Recognised, rows: Shaped[np.ndarray, "n variables"]) -> Real[np.ndarray, "n n_0"]:
    """Rows of a source, without missing entries, as `Part.examples` holds them."""
    of_each = words.values_of_each(found.unit, rows.shape[1])
    if of_each is not None:
        starts = np.cumsum(of_each) - of_each
        made = np.zeros((len(rows), int(of_each.sum())), np.uint8)
        made[np.arange(len(rows))[:, None], starts + rows.astype(np.intp)] = 1
        return made
    if found.kind == "spins":
        rows = rows > 0
    if found.kind == "bytes":
        return np.divide(rows, 255, dtype=np.float32, casting="unsafe")
    return rows.astype(found.dtype)


def _is_image(stored: Stored) -> bool:
    return len(stored.shape) == 2 or (len(stored.shape) == 3 and stored.shape[2] == 3)


def _guess(survey: Survey, images: bool, unit: Unit | None) -> str | None:
    """The first kind that fits; None: no kind of the unit does."""
    if unit is not None and not isinstance(unit, TwoValued):
        if words.values_of_each(unit, 1) is not None:
            return "categories"
        return "counts" if isinstance(unit, Count) else "reals"
    for kind in ("bits", "spins", "probabilities"):
        if survey.fits(kind):
            return kind
    light = survey.highest == 255 or (images and survey.highest >= _LIGHT)
    if light and survey.fits("bytes"):
        return "bytes"
    return next((kind for kind in ("counts", "reals") if unit is None and survey.fits(kind)), None)


def _unit(kind: str, survey: Survey, alphabet: str) -> Unit:
    """What values of a kind are states of; of codes the largest says how many there are."""
    if kind == "categories":
        return Categorical(len(alphabet) or max(2, int(survey.highest) + 1))
    return {"counts": COUNT, "reals": GAUSSIAN}.get(kind, BINARY)


def _check_letters(contents: Contents, given: str, unit: Unit | None) -> None:
    """Refuses letters where no categories are asked for, or other ones."""
    for stored in contents.parts.values():
        if not stored.alphabet:
            continue
        told = f"whose {stored.name} holds {told_of(stored.alphabet)}: categories"
        if given not in ("auto", "categories"):
            refuse(contents.source, told, f"{KINDS[given]} where the values are {given} (--values)")
        if unit is not None and unit != Categorical(len(stored.alphabet)):
            refuse(contents.source, told, f"values of {unit.name} units")
        table = codes(stored.alphabet)
        for start, rows in stored.pieces():
            strange = np.argwhere(table[rows] == NO_CODE)
            if len(strange):
                row, column = (int(index) for index in strange[0])
                place = f"{chr(rows[row, column])!r} in {stored.row(start + row)}"
                refuse(contents.source, f"whose {stored.name} holds {place}", told_of(stored.alphabet))


def _check_words(contents: Contents, given: str, unit: Unit | None) -> None:
    """Refuses words where no categories are asked for, those that make no units, or not those of a unit."""
    for stored in contents.parts.values():
        if not stored.categories:
            continue
        told = f"whose {stored.name} holds {words.told_of(stored.categories)}: categories"
        if given not in ("auto", "categories"):
            refuse(contents.source, told, f"{KINDS[given]} where the values are {given} (--values)")
        if unit is None:
            words.check(contents)
        elif unit != words.unit_of(stored.categories):
            refuse(contents.source, told, f"values of {unit.name} units")


def _limits(contents: Contents, unit: Unit | None) -> Int[np.ndarray, " variables"] | None:
    """How many values each variable may have, of categorical units."""
    for stored in contents.parts.values():
        variables = math.prod(stored.values.shape[1:])
        limits = None if unit is None else words.values_of_each(unit, variables)
        if limits is not None and len(limits) != variables:
            told = f"with {variables} variables per example"
            refuse(contents.source, told, f"{len(limits)}, as the units are {unit.name if unit else ''}")
        return limits
    return None


def _refuse_values(contents: Contents, survey: Survey, kind: str | None, unit: Unit | None) -> NoReturn:
    """Says where the first value is that does not fit."""
    # Of all that may be recognised, whatever is finite fits; of bits and what becomes bits, probabilities fit last.
    last = "reals" if unit is None else "probabilities"
    for stored in contents.parts.values():
        for start, rows, blank in _pieces(contents.source, stored):
            wrong = ~_FITTING[kind or last](rows)
            if survey.limits is not None:
                wrong |= rows >= survey.limits
            if blank is not None:
                wrong &= ~blank
            if wrong.any():
                row, column = (int(index) for index in np.argwhere(wrong)[0])
                place = f"{rows[row, column]:g} in {stored.row(start + row)}, variable {column}"
                if kind is not None:
                    most = None if survey.limits is None else int(survey.limits[column]) - 1
                    _refuse_of_kind(contents.source, f"whose {stored.name} holds {place}", kind, unit, most)
                told = f"whose {stored.name} holds {_named(survey)}, such as {place}"
                takes = _TAKES if unit is None else _TAKES_BITS
                refuse(contents.source, told, f"{takes}; --values says which, where it is not recognised")
    raise AssertionError("values that do not fit are somewhere")


def _refuse_of_kind(source: str, told: str, kind: str, unit: Unit | None, most: int | None) -> NoReturn:
    if most is not None and unit is not None:
        refuse(source, told, f"codes, whole numbers from 0 to {most}, where units are {unit.name}")
    asked = f"units are {unit.name}" if unit is not None else f"the values are {kind} (--values)"
    refuse(source, told, f"{KINDS[kind]} where {asked}")


def _named(survey: Survey) -> str:
    """Values of no kind that units are for."""
    low, high = survey.lowest, survey.highest
    if survey.whole and low >= 0:
        return f"counts or categories, whole numbers from {low:g} to {high:g}"
    return f"{'whole' if survey.whole else 'real'} numbers from {low:g} to {high:g}"


def _whole(rows: np.ndarray, most: float) -> Any:
    return (rows >= 0) & (rows <= most) & (rows == np.rint(rows))


_FITTING: dict[str, Callable[[np.ndarray], Any]] = {
    "bits": lambda rows: (rows == 0) | (rows == 1),
    "spins": lambda rows: (rows == -1) | (rows == 1),
    "probabilities": lambda rows: (rows >= 0) & (rows <= 1),
    "bytes": lambda rows: _whole(rows, 255),
    "categories": lambda rows: _whole(rows, MOST_CATEGORIES - 1),
    "counts": lambda rows: _whole(rows, MOST),
    "reals": lambda rows: np.abs(rows.astype(np.float64)) <= _LARGEST,
}


def deviations(part: Part) -> Real[np.ndarray, " num_visible"]:
    """Of each variable over the entries that are known, in double precision; nan where none is."""
    columns = range(part.examples.shape[1])
    known = (part.examples[:, i] if part.missing is None else part.examples[~part.missing[:, i], i] for i in columns)
    return np.array([column.std(dtype=np.float64) if len(column) else np.nan for column in known])


def shape_of(stored: Stored, unit: Unit) -> Sequence[int]:
    """Of one example: of units of several entries [units, entries], of groups of them [entries]."""
    of_each = words.values_of_each(unit, math.prod(stored.shape))
    if of_each is not None and isinstance(unit, Groups):
        return (int(of_each.sum()),)
    return stored.shape if unit.width == 1 else (math.prod(stored.shape), unit.width)
