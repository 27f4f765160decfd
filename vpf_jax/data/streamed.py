"""A data set whose training examples stay on disk: parts, values and units as of one in memory, found out in pieces.

    streamed = open_streamed("recording/")
    streamed.data        # validation and test part, and of the training part a sample
    streamed.source      # all training examples, as states of the visible units (`blocks.Source`)

The examples of each part are those that `load_dataset` would give it, and their values are recognised likewise, which
reads everything once; nothing is in memory but the two small parts and the sample, whose sizes the split says. Not
here: labels, weights, missing entries; how rows are read (`on_disk`).
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vpf_jax import checks, units
from vpf_jax.data import parts
from vpf_jax.data.base import PARTS, Dataset, binarise, needs
from vpf_jax.data.loading import short_name
from vpf_jax.data.on_disk import OnDisk, RandomAccess, rows_of_files
from vpf_jax.data.stored import WHOLE, Contents, Stored, refuse
from vpf_jax.data.tensorflow import SCHEME, open_tfds, splits_of
from vpf_jax.data.values import VALUES, states_of

# Training examples in memory, drawn at random: what is looked at while training goes on.
SAMPLED = 10_000


@dataclasses.dataclass(frozen=True, eq=False)
class Streamed:
    """A data set of which the training part stays on disk."""

    name: str
    """Of the data set."""
    contents: Contents
    """Of the source."""
    plan: parts.Plan
    """What its values are, and which rows belong to which part."""

    def __len__(self) -> int:
        """Training examples."""
        return len(self._rows)

    @property
    def held_bytes(self) -> int:
        """What `data` takes of memory, nearly."""
        unit, variables = self.plan.recognised.unit, int(np.prod(self._stored.shape, dtype=np.int64))
        entries = variables * unit.width * np.dtype(self.plan.recognised.dtype).itemsize
        return entries * (min(SAMPLED, len(self)) + sum(len(self.plan.rows[part][1]) for part in PARTS[1:]))

    @functools.cached_property
    def data(self) -> Dataset:
        """The validation and the test part, and of the training part at most `SAMPLED` examples drawn at random."""
        plan, count = self.plan, len(self)
        # Apart from the stream of the split.
        chosen = np.random.default_rng([plan.seed, 4]).choice(count, min(SAMPLED, count), replace=False)
        held, rows = plan.rows["train"]
        fewer = plan._replace(rows={**plan.rows, "train": (held, rows[np.sort(chosen)])})
        made = parts.made(self.name, self.contents, fewer)
        told = made.told.replace(f"{len(made.train)} for training", f"{count} for training, which stay on disk")
        return dataclasses.replace(made, told=told)

    @functools.cached_property
    def source(self) -> OnDisk:
        """The training examples, in the order that they would have in memory."""
        return OnDisk(_Some(self._stored.values.rows, self._rows), self._states, self.contents.source)

    @functools.cached_property
    def moments(self) -> tuple[Float[np.ndarray, " n_0"], Float[np.ndarray, " n_0"]]:
        """Mean and variance of each visible entry over the training examples, which are read once for it."""
        # Of differences from an example, so that large means leave the variances their digits.
        first_one = self.source.read(np.zeros(1, np.int64))[0].astype(np.float64)
        total = square = np.zeros(self.source.num_visible)
        for start, rows in self._stored.pieces():
            first, last = np.searchsorted(self._rows, (start, start + len(rows)))
            states = self._states(rows[self._rows[first:last] - start]) - first_one
            total, square = total + states.sum(axis=0), square + (states**2).sum(axis=0)
        means = total / len(self)
        return means + first_one, np.maximum(square / len(self) - means**2, 0)

    @property
    def _stored(self) -> Stored:
        return self.contents.parts[self.plan.rows["train"][0]]

    @property
    def _rows(self) -> Int[np.ndarray, " n"]:
        return self.plan.rows["train"][1]

    def _states(self, rows: np.ndarray) -> np.ndarray:
        """States of the visible units, as `Dataset` has them; of probabilities and grey values bits."""
        made = states_of(self.plan.recognised, rows.reshape(len(rows), -1))
        return binarise(made) if self.plan.recognised.unit == units.BINARY else made


def open_streamed(
    name: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    split: Sequence[float] = parts.SPLIT,
    split_seed: int = 0,
    values: str = "auto",
    array: str | None = None,
) -> Streamed:
    """Looks at all examples of files or of a data set of tensorflow-datasets, and leaves the training part there.

    Args:
      name: a .npy file, an .array_record file of bytes, or a folder of files of one of these kinds, which follow one
        another in the order of their names; or `tfds:NAME`, prepared in the format array_record.
      data_dir: of `tfds:NAME`, where tensorflow-datasets keeps its data.
      split: as of `load_dataset`; of a large recording the parts that are held out should be small, as they are loaded.
      split_seed: as of `load_dataset`.
      values: as of `load_dataset`.
      array: of `tfds:NAME`, the feature that holds the examples.

    Raises:
      ValueError: an argument that does not apply.
      DatasetError: what is missing, damaged or of another kind; missing entries.
    """
    name = os.fspath(name)
    parts.check_split(split, split_seed)
    checks.one_of("values", values, VALUES)
    # Before everything is looked at, and not when training begins.
    needs("grain", name, "stream")
    if name.startswith(SCHEME):
        splits = [part for part in PARTS if part in splits_of(name, data_dir)] or ["train"]
        rows = {part: open_tfds(name, part, array, data_dir) for part in splits}
        stored = {part: _stored_of(name, own, f"split {part}") for part, own in rows.items()}
        contents = Contents(name, stored if len(stored) > 1 else {WHOLE: stored["train"]})
    else:
        for argument, given in (("data_dir", data_dir), ("array", array)):
            checks.require(given is None, argument, given, f"nothing, as {name} is a path")
        contents = Contents(name, {WHOLE: _stored_of(name, rows_of_files([name], name), "array")})
    plan = parts.planned(contents, split, split_seed, values)
    if plan.recognised.missing:
        refuse(name, "which has missing entries", "whole examples where they stay on disk")
    return Streamed(short_name(name), contents, plan)


def _stored_of(source: str, rows: RandomAccess, name: str) -> Stored:
    if len(rows) == 0:
        refuse(source, "which holds no examples", "at least one")
    return Stored(_Sliced(rows), name)


class _Sliced:
    """Rows on disk as an array that is read by slices, as `Stored` takes it."""

    def __init__(self, rows: RandomAccess) -> None:
        self.rows = rows
        first = np.asarray(rows[0])
        self.shape, self.dtype = (len(rows), *first.shape), first.dtype

    def __getitem__(self, some: slice) -> np.ndarray:
        return _read(self.rows, np.arange(*some.indices(self.shape[0])))


class _Some:
    """Some of the rows of a source, by their places among them."""

    def __init__(self, rows: RandomAccess, numbers: Int[np.ndarray, " n"]) -> None:
        self._rows, self._numbers = rows, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.read(np.array([index]))[0]

    def read(self, places: Int[np.ndarray, " _"]) -> np.ndarray:
        """Rows by their places."""
        return _read(self._rows, self._numbers[places])


def _read(rows: RandomAccess, numbers: Int[np.ndarray, " _"]) -> np.ndarray:
    many: Any = getattr(rows, "read", None)
    return many(numbers) if many else np.stack([np.asarray(rows[int(number)]) for number in numbers])
