"""Examples that stay on disk and are read a block at a time, by Grain: more of them than memory holds.

    source = open_on_disk("recording/")      # all .npy files of a folder, in the order of their names
    state, metrics = blocks.train_epoch_from(state, source, config=config)

Files of arrays are read by their rows, from as many places as are asked for, without a map of them in memory. Which
rows are read, and in which order, is the caller's: an epoch's order is drawn once for all processes (`blocks`), so that
reading goes on where it ended without a position of its own. Not here: whole data sets, of which it is found out what
their values are (in memory `loading`, on disk `streamed`); here they are states of the units already, or a function
makes them so.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Shaped

from vpf_jax import checks
from vpf_jax.data.base import DatasetError, needs
from vpf_jax.data.stored import refuse
from vpf_jax.data.tensorflow import SCHEME, open_tfds

# Blocks that are read ahead while one is learnt, by as many threads.
AHEAD = 2
RECORDS = (".array_record", ".arrayrecord")

Transform = Callable[[Shaped[np.ndarray, "rows ..."]], Shaped[np.ndarray, "rows n_0"]]


@runtime_checkable
class RandomAccess(Protocol):
    """What Grain calls a random access data source."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Any: ...


class OnDisk:
    """Examples in a source of rows, a `blocks.Source`."""

    def __init__(self, rows: RandomAccess, transform: Transform | None = None, told: str = "the source") -> None:
        """Looks at the first row, for the width and the type of all.

        Args:
          rows: gives the example of each number from 0 on, an array of any shape, the same of all; or reads many at
            once where it has a method `read`, as `NpyFiles`.
          transform: from some rows, as they are read, their visible values [rows, n_0]; None: they are such values.
          told: what it is called in sentences.

        Raises:
          DatasetError: no rows, or such as are no arrays of numbers.
        """
        self._rows, self._transform, self._told = rows, transform, told
        # Not known before the first row.
        self._width: int | None = None
        if len(rows) == 0:
            refuse(told, "which holds no examples", "at least one")
        first = self.read(np.zeros(1, np.int64))
        self._width, self._dtype = first.shape[1], first.dtype

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self._rows)

    def __repr__(self) -> str:
        return f"OnDisk({self._told}: {len(self)} examples of {self.num_visible} entries, {self.dtype})"

    @property
    def num_visible(self) -> int:
        """Entries of an example."""
        return int(self._width or 0)

    @property
    def dtype(self) -> np.dtype:
        """Of an entry."""
        return self._dtype

    def read(self, rows: Int[np.ndarray, "..."]) -> Shaped[np.ndarray, "... n_0"]:
        """Examples by their numbers.

        Raises:
          DatasetError: a row that cannot be read, or is of another shape than the first.
        """
        numbers = np.asarray(rows)
        flat = numbers.reshape(-1)
        if flat.size and not 0 <= flat.min() <= flat.max() < len(self):
            wrong = flat.min() if flat.min() < 0 else flat.max()
            refuse(self._told, f"and number {wrong} of its examples", f"numbers from 0 to {len(self) - 1}")
        many = getattr(self._rows, "read", None)
        try:
            found = many(flat) if many else np.stack([np.asarray(self._rows[int(row)]) for row in flat])
        except ValueError as error:
            if isinstance(error, DatasetError):
                raise
            refuse(self._told, f"whose rows differ in shape ({error})", "rows of one shape")
        values = np.asarray(self._transform(found) if self._transform else found.reshape(len(flat), -1))
        fits = values.ndim == 2 and len(values) == len(flat) and values.dtype.kind in "buif"
        if not fits or self._width not in (None, values.shape[1]):
            refuse(
                self._told,
                f"whose rows become an array {values.shape} of {values.dtype} for {len(flat)} of them",
                "an array [rows, entries] of numbers, as many entries in each",
            )
        return values.reshape(*numbers.shape, -1)

    def sample(self, count: int, seed: int = 0) -> Shaped[np.ndarray, "rows n_0"]:
        """So many examples drawn at random, all where there are fewer, in their order."""
        count = checks.integer("count", count, 1)
        # Apart from the streams of what is planted (`planted_recordings`) from the same seed.
        rng = np.random.default_rng([seed, 3])
        return self.read(np.sort(rng.choice(len(self), min(count, len(self)), replace=False)))

    def blocks(self, rows: Sequence[Int[np.ndarray, "..."]]) -> Iterator[Shaped[np.ndarray, "... n_0"]]:
        """The examples of each array of numbers, read ahead by threads of Grain's in the order given."""
        grain = _grain(self._told)
        options = grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)
        data = grain.MapDataset.range(len(rows)).map(lambda number: self.read(rows[number]))
        yield from data.to_iter_dataset(options)


class NpyFiles:
    """Rows of one or more .npy files of arrays [rows, ...], one after another."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        """Reads the head of each file.

        Raises:
          DatasetError: a file that is missing, damaged, shorter than its head says, or of other rows than the first.
        """
        self._files = [_File(Path(path)) for path in paths]
        for file in self._files:
            if (file.shape[1:], file.dtype) != (self._files[0].shape[1:], self._files[0].dtype):
                told = f"whose rows are of shape {file.shape[1:]} and {file.dtype}"
                like = f"{self._files[0].shape[1:]} and {self._files[0].dtype}, as in {self._files[0].path.name}"
                refuse(file.path, told, like)
        self._starts = np.cumsum([0, *(file.shape[0] for file in self._files)])

    def __len__(self) -> int:
        """How many rows there are in all files."""
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        """A row."""
        return self.read(np.array([index]))[0]

    def read(self, rows: Int[np.ndarray, " _"]) -> np.ndarray:
        """Some rows, in this order.

        Raises:
          DatasetError: a file that ends before one of them, or cannot be read.
        """
        first = self._files[0]
        found = np.empty((len(rows), *first.shape[1:]), first.dtype)
        places = np.searchsorted(self._starts, rows, side="right") - 1
        for place in np.unique(places).tolist():
            wanted = np.flatnonzero(places == place)
            self._files[place].read(rows[wanted] - self._starts[place], wanted, found)
        return found


class _File:
    """A .npy file, whose rows are read by their places in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        takes = "a file that numpy.save has written, of numbers [rows, ...]"
        try:
            with path.open("rb") as file:
                version = np.lib.format.read_magic(file)
                headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                self.shape, columns, self.dtype = headers[version](file)
                self._start, held = file.tell(), os.fstat(file.fileno()).st_size
        except OSError as error:
            refuse(path, f"which cannot be read ({error.strerror})", takes)
        except (ValueError, KeyError, EOFError) as error:
            refuse(path, f"which is damaged or no .npy file ({error})", takes)
        if self.dtype.kind not in "buif" or len(self.shape) < 2:
            refuse(path, f"an array {self.shape} of {self.dtype}", takes)
        if columns:
            refuse(path, "whose array lies column by column", "one in rows, as numpy.ascontiguousarray makes")
        self._size = math.prod(self.shape[1:]) * self.dtype.itemsize
        wanted = self._start + self.shape[0] * self._size
        if held < wanted:
            refuse(path, f"which ends after {held} of {wanted} bytes", "a whole file")

    def read(self, rows: Int[np.ndarray, " _"], places: Int[np.ndarray, " _"], into: np.ndarray) -> None:
        """Reads some rows into these places of an array."""
        raw, size = memoryview(into).cast("B"), self._size  # type: ignore[arg-type]
        # Rows that follow one another are read at once.
        starts = np.flatnonzero(np.append(True, (np.diff(rows) != 1) | (np.diff(places) != 1)))
        counts = np.diff(np.append(starts, len(rows)))
        runs = zip(rows[starts].tolist(), places[starts].tolist(), counts.tolist(), strict=True)
        try:
            with self.path.open("rb", buffering=0) as file:
                for row, place, number in runs:
                    file.seek(self._start + row * size)
                    left = raw[place * size : (place + number) * size]
                    while left:
                        count = file.readinto(left)
                        if not count:
                            ended = row + number - 1 - (len(left) - 1) // size
                            refuse(self.path, f"which ends in row {ended}", "a whole file that does not change")
                        left = left[count:]
        except OSError as error:
            refuse(self.path, f"which cannot be read any more ({error.strerror})", "a whole file that does not change")


def open_on_disk(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    transform: Transform | None = None,
    split: str = "train",
    array: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> OnDisk:
    """Examples of files, by their rows.

    Args:
      path: a .npy file [rows, ...]; an .array_record file whose records are the bytes of a row, one of them an entry;
        a folder of files of one of these kinds, or a list of files, which follow one another; or `tfds:NAME` for a data
        set of tensorflow-datasets that is prepared, or can be, in the format array_record.
      transform: as in `OnDisk`, such as `lambda rows: rows > 127`.
      split: of `tfds:NAME`, its part.
      array: of `tfds:NAME`, the feature that holds the examples, where there are several.
      data_dir: of `tfds:NAME`, where the package keeps its data.

    Raises:
      DatasetError: what is not there, damaged, or of another kind.
    """
    if isinstance(path, str) and path.startswith(SCHEME):
        return OnDisk(open_tfds(path, split, array, data_dir), transform, path)
    # Of a file or a folder there is nothing to choose.
    for name, given, free in (("split", split, "train"), ("array", array, None), ("data_dir", data_dir, None)):
        if given != free:
            refuse(name, f"which is {given!r}", f"its default where there is no {SCHEME}NAME")
    some = [path] if isinstance(path, str | os.PathLike) else list(path)
    told = os.fspath(some[0]) if len(some) == 1 else f"{len(some)} files"
    return OnDisk(rows_of_files(some, told), transform, told)


def rows_of_files(some: Sequence[str | os.PathLike[str]], told: str) -> RandomAccess:
    """The rows of files and of those in folders, one file after another; DatasetError as `open_on_disk`."""
    files = [file for one in some for file in files_of(Path(one).expanduser())]
    if not files:
        refuse(told, "which holds no files", f"files of {' or '.join(('.npy', *RECORDS))}")
    missing = [file for file in files if not file.exists()]
    if missing:
        refuse(missing[0], "which does not exist", "a file or a folder")
    kinds = {file.suffix.lower() for file in files}
    if kinds == {".npy"}:
        return NpyFiles(files)
    if kinds <= set(RECORDS):
        return _Records(files, told)
    refuse(told, f"with files of {', '.join(sorted(kinds)) or 'no suffix'}", "either .npy or .array_record")


class _Records:
    """Rows of array-record files, bytes each."""

    def __init__(self, files: Sequence[Path], told: str) -> None:
        grain = _grain(told)
        try:
            self._rows = grain.sources.ArrayRecordDataSource([os.fspath(file) for file in files])
        # Its reader is one of C++ and raises what it will.
        except Exception as error:
            first = (str(error).strip().splitlines() or ["no message"])[0][:160]
            refuse(told, f"which is damaged or no array-record file ({first})", "what array_record has written")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.frombuffer(self._rows[index], np.uint8)


def files_of(path: Path) -> list[Path]:
    """Those of a folder that are of a kind that is read here, in the order of their names; of a file itself."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix.lower() in (".npy", *RECORDS))


def _grain(told: str) -> Any:
    needs("grain", told, "stream")
    import grain

    return grain
