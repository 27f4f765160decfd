"""The data set, the table of sources that load one by its name, and binarisation by a threshold.

A source is a function of the name and a folder, registered where it is defined:

    @register_source("stripes")
    def stripes(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset: ...

`load_dataset("stripes")`, and --dataset=stripes of the experiments, then load it once its module is imported. Not here:
the sources that come with the library (`images`).
"""

import os
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy.typing import ArrayLike

from vpf_jax import checks


class DatasetError(ValueError):
    """A data source is missing, unreadable or not what it should be; the message says which."""


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a data set."""

    images: Float[np.ndarray, "n num_visible"]
    """In [0, 1]; of images the grey values, pixels row by row."""
    labels: Int[np.ndarray, " n"]
    """Classes, from 0."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in its three parts; no example is in two of them.

    Raises:
      DatasetError: parts whose arrays do not fit one another, the image's shape or the number of classes.
    """

    name: str
    train: Part
    validation: Part
    test: Part
    image_shape: tuple[int, int]
    """Rows and columns of one image."""
    classes: int
    """Number of classes."""
    units: str = "binary"
    """The type of the visible units that the examples are for."""

    def __post_init__(self) -> None:
        rows, columns = self.image_shape
        for name in ("train", "validation", "test"):
            images, labels = getattr(self, name).images, getattr(self, name).labels
            fits = images.shape == (len(labels), rows * columns) and labels.ndim == 1
            if not fits or (labels.size and not 0 <= labels.min() <= labels.max() < self.classes):
                raise DatasetError(
                    f"got a {name} part with images of shape {images.shape} and labels of shape {labels.shape}; it "
                    f"takes (n, {rows * columns}) and (n,), and labels from 0 to {self.classes - 1}"
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


def load_dataset(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Loads a data set with its fixed parts; the same call always gives the same arrays.

    Args:
      name: one of `SOURCES`.
      data_dir: folder of the files, for the sources that read some; for the bundled ones see `vpf_jax.data.images`.

    Raises:
      ValueError: a name that no source has.
      DatasetError: a folder, file or package that is missing; a file that is not what it should be.
    """
    return _sources[checks.one_of("dataset", name, tuple(SOURCES))](name, data_dir)


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
    values = checks.from_zero_to_one("images", np.asarray(images), "grey values in [0, 1]")
    return (values > threshold).astype(np.uint8)
