"""One door to all data: a registered name, `tfds:NAME`, or the path of a file, whose suffix says how it is read.

Not here: how a file is read (`arrays`, `tables`, `fasta`, `tensorflow`), what the values are (`values`), how examples
are parted (`parts`).
"""

import contextlib
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from vpf_jax import checks
from vpf_jax.data import parts, words
from vpf_jax.data.arrays import read_hdf5, read_npy, read_npz
from vpf_jax.data.base import SOURCES, Dataset, DatasetError, Part, fault
from vpf_jax.data.fasta import read_fasta
from vpf_jax.data.on_disk import RECORDS, files_of
from vpf_jax.data.stored import Contents, Stored, refuse
from vpf_jax.data.tables import read_csv
from vpf_jax.data.tensorflow import SCHEME, read_tfds
from vpf_jax.data.values import VALUES
from vpf_jax.units import Unit

Reader = Callable[[Path, str | None], contextlib.AbstractContextManager[Contents]]
READERS: dict[str, Reader] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".csv": read_csv,
    ".csv.gz": read_csv,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
    ".fasta": read_fasta,
    ".fasta.gz": read_fasta,
    ".fa": read_fasta,
}
SUFFIXES = ", ".join(READERS)
# Arguments of `load_dataset` that files and data sets of tensorflow-datasets have, and registered ones have not.
OF_FILES = ("split", "split_seed", "values", "array")


class Names(Collection[str]):
    """What may stand for data: names of sources first, then what is recognised by its form.

    Args:
      more: other names, which come before.
    """

    def __init__(self, *more: str) -> None:
        self.more = more

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in (*self.more, *SOURCES) or is_found(name))

    def __iter__(self) -> Iterator[str]:
        folder = f"that of a folder of files ({', '.join(('.npy', *RECORDS))}) from which examples are streamed"
        yield from (*self.more, *SOURCES, f"{SCHEME}NAME", f"the path of a file ({SUFFIXES})", folder)

    def __len__(self) -> int:
        return len(list(iter(self)))


def is_found(name: str) -> bool:
    """Whether it is no registered name and has the form of another: `tfds:NAME`, a file, or a path that may be one."""
    if name in SOURCES:
        return False
    return (name.startswith(SCHEME) and len(name) > len(SCHEME)) or suffix_of(name) is not None or is_there(name)


def is_there(name: str) -> bool:
    """Whether it is a file, or a folder of files whose examples can stay on disk (`streamed`)."""
    try:
        path = Path(name).expanduser()
        return bool(name) and (path.is_file() or (path.is_dir() and bool(files_of(path))))
    # A name that is too long or holds what no name may; the home folder of a user that there is not.
    except (OSError, ValueError, RuntimeError):
        return False


def suffix_of(path: str | os.PathLike[str]) -> str | None:
    """The longest suffix of `READERS` that the path has, in small letters."""
    name = os.fspath(path).lower()
    return max((suffix for suffix in READERS if name.endswith(suffix)), key=len, default=None)


def short_name(name: str) -> str:
    """Of a data set, for folders and titles: a registered name as it is, of a path what stands before the suffix."""
    if name in SOURCES:
        return name
    name = name.removeprefix(SCHEME) if name.startswith(SCHEME) else Path(name).name
    name = name[: len(name) - len(suffix_of(name) or "")]
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "data"


def digest_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, or over those of a folder's files and their names; DatasetError where it cannot be read."""
    try:
        place = Path(path).expanduser()
        if place.is_dir():
            lines = (f"{digest_of(file)}  {file.name}\n" for file in files_of(place))
            return hashlib.sha256("".join(lines).encode()).hexdigest()
        with place.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, RuntimeError) as error:
        refuse(path, f"which {fault(error)}", "a file of data")


def load_dataset(
    name: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    split: Sequence[float] = parts.SPLIT,
    split_seed: int = 0,
    values: str = "auto",
    array: str | None = None,
) -> Dataset:
    """Loads a data set in its three parts; the same call always gives the same arrays.

    Args:
      name: one of `SOURCES`; `tfds:NAME` for one of tensorflow-datasets; or the path of a file (`READERS`).
      data_dir: folder of the files, for the sources that read some (for the bundled ones see `vpf_jax.data.images`);
        of `tfds:NAME`, where tensorflow-datasets keeps its data.
      split: fractions of the training, validation and test part, where a file or a data set has none.
      split_seed: of the random choice of their examples.
      values: what the values are, one of "bits", "spins", "probabilities", "bytes", "categories", "counts" and "reals"
        (`vpf_jax.data.values`), from which the units follow; "auto": as they are recognised.
      array: name of the array that holds the examples, in a file of several.

    Raises:
      ValueError: a name that no source has, or an argument that does not apply to the source.
      DatasetError: a folder, file or package that is missing; a file that is not what it should be.
    """
    name = os.fspath(name)
    parts.check_split(split, split_seed)
    checks.one_of("values", values, VALUES)
    checks.require(name in Names(), "dataset", name, f"one of {', '.join(Names())}")
    if name in SOURCES:
        told = f"nothing, as {name} is no file"
        checks.require(tuple(split) == parts.SPLIT, "split", tuple(split), told)
        checks.require(split_seed == 0, "split_seed", split_seed, told)
        checks.require(values == "auto", "values", values, told)
        checks.require(array is None, "array", array, told)
        return SOURCES[name](name, data_dir)
    if not name.startswith(SCHEME):
        checks.require(data_dir is None, "data_dir", data_dir, f"nothing, as {name} is a path")
    with _opened(name, data_dir, array) as contents:
        return parts.data_set(short_name(name), contents, split, split_seed, values)


def read_examples(
    path: str | os.PathLike[str],
    values: str = "auto",
    array: str | None = None,
    unit: Unit | None = None,
    alphabet: str = "",
    categories: words.Categories = (),
) -> Part:
    """All examples of a file, in their order.

    Args:
      path: of the file (`READERS`).
      values: as of `load_dataset`.
      array: as of `load_dataset`; of a file that has parts, one of them.
      unit: of which they are to be states, such as that of a model; None: what suits them.
      alphabet: of a file of letters, those that have a code, in its order; left out: as recognised.
      categories: of a table of words, those of each variable in the order of their codes; left out: as recognised.

    Raises:
      ValueError: values of no such name.
      DatasetError: a file or package that is missing; a file that is not what it should be.
    """
    checks.one_of("values", values, VALUES)
    with _read(path, array) as contents:
        given = {
            name: _known(contents.source, part, unit, alphabet, categories) for name, part in contents.parts.items()
        }
        contents = dataclasses.replace(contents, parts=given)
        return parts.whole(contents, values, unit)


def _known(source: str, part: Stored, unit: Unit | None, alphabet: str, categories: words.Categories) -> Stored:
    """By the codes of letters or words that are given; refuses words of which units that are given know none."""
    if part.alphabet and alphabet:
        return part.having(alphabet=alphabet)
    if not part.categories or (unit is None and not categories):
        return part
    if not categories:
        refuse(source, f"whose {part.name} holds words", f"values of {unit.name if unit else ''} units")
    return words.recoded(source, part, categories)


def _opened(
    name: str, data_dir: str | os.PathLike[str] | None, array: str | None
) -> contextlib.AbstractContextManager[Contents]:
    return read_tfds(name, data_dir, array) if name.startswith(SCHEME) else _read(name, array)


def _read(path: str | os.PathLike[str], array: str | None) -> contextlib.AbstractContextManager[Contents]:
    suffix, takes = suffix_of(path), f"a file that ends in one of {SUFFIXES}"
    if suffix is None and is_there(os.fspath(path)) and Path(path).expanduser().is_dir():
        refuse(path, "which is a folder", f"{takes}; the examples of a folder stay on disk (--stream)")
    if suffix is None:
        refuse(path, "of which the suffix does not say how it is read", takes)
    try:
        place = Path(path).expanduser()
        if not place.exists():
            refuse(path, "which does not exist", takes)
        if not place.is_file():
            refuse(path, "which is no file", takes)
        with place.open("rb"):
            pass
    except DatasetError:
        raise
    # A path that holds what no path may; the home folder of a user that there is not.
    except (OSError, ValueError, RuntimeError) as error:
        refuse(path, f"which {fault(error)}", takes)
    return READERS[suffix](place, array)
