"""The data set, the table of sources that come by name, and binarisation by a threshold.

A source is a function of the name and a folder, registered where it is defined:

    @register_source("stripes")
    def stripes(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset: ...

`load_dataset("stripes")`, and --dataset=stripes of the experiments, then load it once its module is imported. Not here:
the sources that come with the library (`images`, `digits`, `planted`), files and packages (`loading`).
"""

import gzip
import importlib.util
import math
import os
import types
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int, Real, UInt8
from numpy.typing import ArrayLike

from vpf_jax import checks, units
from vpf_jax.units.base import num_units

# Numbers that are made to bits at a time.
_PIECE = 2**20
PARTS = ("train", "validation", "test")


class DatasetError(ValueError):
    """A data source is missing, unreadable or not what it should be; the message says which."""


def fault(error: Exception) -> str:
    """What is wrong with a file, from what reading it has raised."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, gzip.BadGzipFile):
        return f"is not a sound gzip file: {error}"
    if isinstance(error, EOFError):
        return "is truncated: its gzip stream has no end"
    if isinstance(error, zlib.error):
        return f"is corrupt: {error}"
    return f"cannot be read: {error.strerror or error}" if isinstance(error, OSError) else str(error)


def needs(package: str, source: str | os.PathLike[str], extra: str = "files") -> None:
    """Raises DatasetError where a package is not installed that a source is read with."""
    if importlib.util.find_spec(package) is None:
        told = f"got {os.fspath(source)} and no {package}, which it is read with"
        raise DatasetError(f"{told}; it takes `pip install vpf_jax[{extra}]`")


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a data set."""

    examples: Real[np.ndarray, "n num_visible"]
    """In [0, 1]: bits, probabilities, or of images the grey values, pixels row by row; bits may be bytes. Of other
    units than binary ones their states: one-hot vectors, counts, real numbers."""
    labels: Int[np.ndarray, " n"] | None = None
    """Classes, from 0."""
    weights: Float[np.ndarray, " n"] | None = None
    """How much each example counts, at least 0; None: all alike."""
    missing: Bool[np.ndarray, "n num_visible"] | None = None
    """Which entries are not known; `examples` holds 0 there, of categories the first. All of a unit or none."""

    units: str = "binary"
    """The kind of the units that the examples are for, by its name."""

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in its three parts; no example is in two of them.

    Raises:
      DatasetError: parts whose arrays do not fit one another, the shape, the names or the number of classes.
    """

    name: str
    train: Part
    validation: Part
    test: Part
    shape: tuple[int, ...]
    """Of one example: of images [rows, columns] or [rows, columns, 3], of categories [variables, values], or
    [entries] where variables have different numbers of values; of other data any number of axes."""
    classes: int = 0
    """Number of classes; 0: without labels."""
    units: str = "binary"
    """The kind of the visible units that the examples are for, by its name (`vpf_jax.units.get`)."""
    names: tuple[str, ...] | None = None
    """Of the variables, where they have some."""
    values: str = "probabilities"
    """What the source holds, before it is made to states of units (`vpf_jax.data.values`)."""
    told: str = ""
    """What was found in a source that is no registered one, in a sentence."""
    alphabet: str = ""
    """Of letters, those that the categories stand for, in their order."""
    categories: tuple[tuple[str, ...], ...] = ()
    """Of words, those that the categories of each variable stand for, in their order."""

    def __post_init__(self) -> None:
        for name in PARTS:
            _check_part(name, getattr(self, name), self.num_visible, self.classes)
        if self.names is not None and len(self.names) != self.num_variables:
            raise DatasetError(
                f"got {len(self.names)} names for examples of shape {self.shape}; it takes {self.num_variables}"
            )

    @property
    def num_visible(self) -> int:
        """Entries of an example: of categories as many for each variable as there are values."""
        return math.prod(self.shape)

    @property
    def num_variables(self) -> int:
        """Variables of an example."""
        return num_units(units.get(self.units), self.num_visible)


def _check_part(name: str, part: Part, num_visible: int, classes: int) -> None:
    count, labels = len(part), part.labels
    fits = part.examples.shape == (count, num_visible) and (labels is not None) == (classes > 0)
    fits = fits and (labels is None or labels.shape == (count,))
    if not fits or (labels is not None and labels.size and not 0 <= labels.min() <= labels.max() < classes):
        told = "no labels" if labels is None else f"labels of shape {labels.shape}"
        takes = f"(n,), and labels from 0 to {classes - 1}" if classes else "no labels, as there are no classes"
        raise DatasetError(
            f"got a {name} part with examples of shape {part.examples.shape} and {told}; it takes (n, {num_visible}) "
            f"and {takes}"
        )
    weights, missing = part.weights, part.missing
    if weights is not None and not (
        weights.shape == (count,) and np.isfinite(weights).all() and (weights >= 0).all() and (weights > 0).any()
    ):
        raise DatasetError(
            f"got a {name} part with weights of shape {weights.shape}; it takes ({count},), finite ones of at least 0, "
            "not all 0"
        )
    if missing is not None and missing.shape != part.examples.shape:
        raise DatasetError(
            f"got a {name} part with a mask of shape {missing.shape}; it takes that of the examples, "
            f"{part.examples.shape}"
        )


# Loads a data set from its name and a folder or None; the same arguments give the same arrays.
Source = Callable[[str, str | os.PathLike[str] | None], Dataset]
AnySource = TypeVar("AnySource", bound=Source)

_sources: dict[str, Source] = {}
SOURCES: Mapping[str, Source] = types.MappingProxyType(_sources)
"""The sources by the names that they load, in the order of registration."""


def register_source(*names: str) -> Callable[[AnySource], AnySource]:
    """Decorates a function that loads the data sets of these names; `Source` says how it is called.

    Raises:
      ValueError: names that are no words, or one that another source has.
    """

    def register(source: AnySource) -> AnySource:
        for name in names:
            checks.require(isinstance(name, str) and name.isidentifier(), "name", name, "a word")
            held = _sources.get(name, source)
            # The same function once more, as when a cell of a notebook is run twice, takes the place of the first.
            same = (held.__module__, held.__qualname__) == (source.__module__, source.__qualname__)
            checks.require(same, "name", name, f"another one than {', '.join(_sources)}, which are taken")
        _sources.update(dict.fromkeys(names, source))
        return source

    return register


def binarise(images: ArrayLike, threshold: float = 0.5) -> UInt8[np.ndarray, "..."]:
    """1 where a grey value is above the threshold, and 0 elsewhere, in the shape of `images`.

    Args:
      images: grey values in [0, 1], any shape.
      threshold: in [0, 1); a value equal to it becomes 0.

    Raises:
      ValueError: threshold or a grey value outside its range (NaN is outside).
    """
    value = checks.as_float(threshold)
    checks.require(value is not None and 0 <= value < 1, "threshold", threshold, "a number in [0, 1)")
    values = np.asarray(images)
    bits = np.empty(values.shape, np.uint8)
    # In pieces, so that no array beside the result is large.
    step = max(1, _PIECE // max(1, math.prod(values.shape[1:])))
    for start in range(0, len(values) if values.ndim else 1, step):
        rows = slice(start, start + step) if values.ndim else ...
        bits[rows] = checks.from_zero_to_one("images", values[rows], "grey values in [0, 1]") > threshold
    return bits
