"""A data set made of what lies in a file: parts, labels, weights, and one sentence about what was found.

A source without parts of its own is cut at random by fractions and a seed; a part that it lacks is cut from its
training part in the same way. Inside a part the examples keep their order. Not here: values (`values`), files.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vpf_jax import checks
from vpf_jax.data import values
from vpf_jax.data.base import PARTS, Dataset, Part
from vpf_jax.data.fasta import told_of
from vpf_jax.data.stored import WHOLE, Contents, Stored, refuse
from vpf_jax.data.values import Recognised
from vpf_jax.data.words import told_of as told_of_words
from vpf_jax.units import Unit

SPLIT = (0.8, 0.1, 0.1)
# What the parts are for.
_USES = ("training", "validation", "test")
# More classes are taken for numbers that are no classes.
_MOST_CLASSES = 100_000
# Deviations of real variables between which a machine learns as it is meant to; its weights start with such in mind.
_SCALES = 0.1, 10.0


class Plan(NamedTuple):
    """Of a source, before examples are made of it."""

    recognised: Recognised
    """What its values are."""
    rows: Mapping[str, tuple[str, Int[np.ndarray, " some"]]]
    """Of each part the array of the source that it is made of, and the numbers of its rows, increasing."""
    cut: str
    """How the source was cut, in words."""
    seed: int
    """Of the random choice."""


def check_split(split: Sequence[float], split_seed: int) -> None:
    """Raises SettingError for fractions that are no three positive numbers that sum to 1, or a seed below 0."""
    fits = len(split) == len(PARTS) and all(0 < fraction < 1 for fraction in split)
    fits = fits and math.isclose(sum(split), 1, abs_tol=1e-6)
    told = "three positive fractions that sum to 1, of training, validation and test"
    checks.require(fits, "split", tuple(split), told)
    checks.integer("split_seed", split_seed, 0)


def data_set(
    name: str, contents: Contents, split: Sequence[float] = SPLIT, split_seed: int = 0, given: str = "auto"
) -> Dataset:
    """The data set of a source.

    Args:
      name: of the data set.
      contents: of the source.
      split: fractions of training, validation and test.
      split_seed: of the random choice.
      given: kind of the values, or "auto".

    Raises:
      SettingError: a split that does not apply, as the source has its own.
      DatasetError: values, labels or weights that do not fit; too few examples.
    """
    return made(name, contents, planned(contents, split, split_seed, given))


def planned(contents: Contents, split: Sequence[float], split_seed: int, given: str) -> Plan:
    """What the values of a source are, and which rows go to which part; arguments and errors as of `data_set`."""
    if all(part in contents.parts for part in PARTS):
        told = f"nothing, as {contents.source} has parts of its own"
        checks.require(tuple(split) == SPLIT, "split", tuple(split), told)
        checks.require(split_seed == 0, "split_seed", split_seed, told)
    recognised = values.recognise(contents, given)
    rows: dict[str, tuple[str, np.ndarray]] = {}
    cut = ""
    for held, stored in contents.parts.items():
        own = _uses(held, contents)
        found = {held: np.arange(len(stored))}
        if own != [held]:
            found = _cut(contents.source, stored, own, split, split_seed)
            told = "" if held == WHOLE else f"{' and '.join(own)} "
            cut = f" ({told}at random, {', '.join(f'{one:g}' for one in split)}, seed {split_seed})"
        rows |= {part: (held, numbers) for part, numbers in found.items()}
    return Plan(recognised, rows, cut, split_seed)


def made(name: str, contents: Contents, plan: Plan) -> Dataset:
    """The data set of this name; DatasetError for labels or weights that do not fit."""
    classes, labels = _labels(contents)
    recognised = plan.recognised
    parts: dict[str, Part] = {}
    for held, stored in contents.parts.items():
        rows = {part: numbers for part, (own, numbers) in plan.rows.items() if own == held}
        converted = values.convert(contents.source, stored, recognised, rows)
        weights = _weights(contents.source, stored)
        for part, indices in rows.items():
            parts[part] = Part(
                converted[part].examples,
                None if labels is None else labels[held][indices],
                None if weights is None else weights[indices],
                converted[part].missing,
                converted[part].units,
            )
    first = next(iter(contents.parts.values()))
    sizes = ", ".join(f"{len(parts[part])} for {use}" for part, use in zip(PARTS, _USES, strict=True))
    told = f"{found(contents, first, recognised, classes)}; {sizes}{plan.cut}"
    train, validation, test = (parts[part] for part in PARTS)
    if recognised.kind == "reals":
        told += _advice(train)
    return Dataset(
        name,
        train,
        validation,
        test,
        tuple(values.shape_of(first, recognised.unit)),
        classes,
        recognised.unit.name,
        first.names,
        recognised.kind,
        told,
        first.alphabet,
        first.categories,
    )


def whole(contents: Contents, given: str = "auto", unit: Unit | None = None) -> Part:
    """All examples of a source that has no parts, as states of a unit where one is given; errors as `data_set`."""
    if WHOLE not in contents.parts:
        told = f"which has the parts {', '.join(contents.parts)}"
        refuse(contents.source, told, "one of them, by --array=NAME")
    recognised = values.recognise(contents, given, unit)
    stored = contents.parts[WHOLE]
    made = values.convert(contents.source, stored, recognised, {WHOLE: np.arange(len(stored))})[WHOLE]
    labels, weights = _labels(contents)[1], _weights(contents.source, stored)
    return dataclasses.replace(made, labels=None if labels is None else labels[WHOLE], weights=weights)


def found(contents: Contents, stored: Stored, recognised: Recognised, classes: int) -> str:
    """One sentence about what a source holds."""
    number = sum(len(one) for one in contents.parts.values())
    kind, missing = recognised.kind, recognised.missing
    held = told_of(stored.alphabet) if stored.alphabet else values.KINDS[kind]
    held = told_of_words(stored.categories) if stored.categories else held
    made = {
        "spins": ", taken as 0 and 1",
        "bytes": ", taken as grey values" if len(stored.shape) < 3 else "",
        "categories": f", for {recognised.unit.name} units",
        "counts": f", for count units (--values=categories if they are codes), the largest {recognised.highest:g}",
        "reals": ", for gaussian units",
    }
    words = [f"{number} examples of shape {list(stored.shape)}", f"{kind} ({held}){made.get(kind, '')}"]
    words += [f"{classes} classes"] if classes else []
    words += ["weights"] if stored.weights is not None else []
    words += ["missing entries"] if missing else []
    words += ["names of the variables"] if stored.names else []
    words += [f"not read: {', '.join(contents.aside)}"] if contents.aside else []
    return f"{contents.source}: {'; '.join(words)}"


def _advice(train: Part) -> str:
    """What is said of variables on other scales than a machine is meant for."""
    scales = values.deviations(train)
    least, most = np.nanmin(scales), np.nanmax(scales)
    if least >= _SCALES[0] and most <= _SCALES[1]:
        return ""
    return (
        f"; deviations of variables from {least:.2g} to {most:.2g}: standardise them first, learning takes some near 1"
    )


def _uses(held: str, contents: Contents) -> list[str]:
    """The parts that are made of one of a source: of its training part those that it lacks, too."""
    lacking = [part for part in PARTS if part not in contents.parts]
    if held == WHOLE:
        return lacking
    return ["train", *lacking] if held == "train" else [held]


def _cut(
    source: str, stored: Stored, parts: list[str], split: Sequence[float], seed: int
) -> dict[str, Int[np.ndarray, " some"]]:
    """Row numbers of each part, increasing; at least one in each."""
    count = len(stored)
    if count < len(parts):
        told = f"whose {stored.name} holds {count} example{'s' * (count > 1)}"
        refuse(source, told, f"at least one for each of {', '.join(parts)}")
    fractions = np.array([split[PARTS.index(part)] for part in parts])
    sizes = np.maximum(np.rint(count * fractions / fractions.sum()).astype(int)[1:], 1)
    # The first takes what is left, of very few examples at least one.
    while sizes.sum() >= count:
        sizes[np.argmax(sizes)] -= 1
    order = np.random.default_rng(seed).permutation(count)
    cuts = np.split(order, np.cumsum([count - sizes.sum(), *sizes])[:-1])
    return {part: np.sort(rows) for part, rows in zip(parts, cuts, strict=True)}


def _weights(source: str, stored: Stored) -> Float[np.ndarray, " n"] | None:
    if stored.weights is None:
        return None
    given = np.asarray(stored.weights[:])
    if given.dtype.kind not in "biuf":
        refuse(source, f"whose weights of {stored.name} are of type {given.dtype}", "numbers of at least 0")
    wrong = ~(np.isfinite(given) & (given >= 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        told = f"whose weights of {stored.name} hold {given[row]:g} in {stored.row(row)}"
        refuse(source, told, "finite numbers of at least 0")
    if not given.any():
        refuse(source, f"whose weights of {stored.name} are all 0", "some above 0")
    return given.astype(np.float32)


def _labels(contents: Contents) -> tuple[int, Mapping[str, Int[np.ndarray, " n"]] | None]:
    """Number of classes, and classes from 0 by part: whole numbers as they are, texts in the order of the alphabet."""
    stored = contents.parts
    having = [part for part in stored if stored[part].labels is not None]
    if not having:
        return 0, None
    if lacking := [part for part in stored if part not in having]:
        told = f"which has labels of {', '.join(stored[part].name for part in having)}"
        refuse(contents.source, f"{told} and none of {stored[lacking[0]].name}", "labels of all parts or of none")
    given = {part: _plain(stored[part].labels[:]) for part in stored}
    kinds = {labels.dtype.kind for labels in given.values()}
    if kinds == {"U"}:
        known = np.unique(np.concatenate(list(given.values())))
        return len(known), {part: np.searchsorted(known, own).astype(np.int32) for part, own in given.items()}
    for part, labels in given.items():
        _check_labels(contents.source, stored[part], labels)
    classes = 1 + max(int(labels.max()) for labels in given.values())
    return classes, {part: labels.astype(np.int32) for part, labels in given.items()}


def _plain(labels: Any) -> np.ndarray:
    """Labels as NumPy's text where they are bytes, as HDF5 keeps them."""
    given = np.asarray(labels)
    if given.dtype.kind in "SO" and all(isinstance(one, bytes | str) for one in given):
        return np.array([one.decode("utf-8", "replace") if isinstance(one, bytes) else one for one in given])
    return given


def _check_labels(source: str, stored: Stored, labels: np.ndarray) -> None:
    takes = f"whole numbers from 0 to {_MOST_CLASSES - 1}, or words"
    if labels.dtype.kind not in "biuf":
        refuse(source, f"whose labels of {stored.name} are of type {labels.dtype}", takes)
    wrong = ~((labels >= 0) & (labels < _MOST_CLASSES) & (labels == np.rint(labels)))
    if wrong.any():
        row = int(np.argmax(wrong))
        refuse(source, f"whose labels of {stored.name} hold {labels[row]:g} in {stored.row(row)}", takes)
