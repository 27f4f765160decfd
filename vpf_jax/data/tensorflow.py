"""Any data set of images or features of tensorflow-datasets, `tfds:NAME`, as its builder prepares it.

Examples are its only feature of images, else its only feature of numbers that is an array; --array names another.
Labels are its classes. `train`, `validation` and `test` are its splits of these names; those that it lacks are cut from
`train`. Not here: MNIST and Fashion-MNIST in the order of their files (`images.load_tfds`).
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from vpf_jax.data.base import PARTS, DatasetError
from vpf_jax.data.stored import WHOLE, Contents, Stored, refuse

SCHEME = "tfds:"


@contextlib.contextmanager
def read_tfds(name: str, data_dir: str | os.PathLike[str] | None, array: str | None) -> Iterator[Contents]:
    """A data set by its name, downloaded and prepared where it is not in `data_dir`, or the package's own folder."""
    check_installed(name)
    try:
        contents = _contents(name, data_dir, array)
    except DatasetError:
        raise
    except Exception as error:
        raise _failed(name, error) from error
    yield contents


def _contents(name: str, data_dir: str | os.PathLike[str] | None, array: str | None) -> Contents:
    import tensorflow_datasets as tfds

    builder = tfds.builder(name.removeprefix(SCHEME), data_dir=None if data_dir is None else os.fspath(data_dir))
    features = builder.info.features
    chosen = _examples(name, features, array)
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    label = "label" if "label" in labels else labels[0] if len(labels) == 1 else None
    if not builder.is_prepared():
        builder.download_and_prepare()
    splits = [part for part in PARTS if part in builder.info.splits]
    if "train" not in splits:
        told = f"which has the splits {', '.join(builder.info.splits) or 'none'}"
        refuse(name, told, "a data set with a split train")
    parts = {}
    for part in splits:
        arrays = tfds.as_numpy(builder.as_dataset(split=part, batch_size=-1))
        parts[part] = Stored(arrays[chosen], f"split {part}", labels=None if label is None else arrays[label])
    aside = tuple(key for key in features if key not in (chosen, label))
    aside += tuple(split for split in builder.info.splits if split not in splits)
    return Contents(name, parts if len(parts) > 1 else {WHOLE: parts["train"]}, aside)


def _examples(name: str, features: Any, array: str | None) -> str:
    """The feature that holds the examples."""
    import tensorflow_datasets as tfds

    known = ", ".join(features)
    if array is not None:
        if array not in features:
            refuse(name, f"which has no feature {array}", f"one of its features: {known}")
        chosen = array
    else:
        images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
        arrays = [key for key, feature in features.items() if type(feature) is tfds.features.Tensor]
        numbers = [key for key in arrays if features[key].shape and np.dtype(features[key].np_dtype).kind in "biuf"]
        few = images or numbers
        if len(few) != 1:
            refuse(name, f"with the features {known}", "one of images or arrays of numbers, or --array=NAME")
        (chosen,) = few
    shape = getattr(features[chosen], "shape", None)
    if shape is None or None in shape:
        refuse(name, f"whose feature {chosen} has shape {shape}", "examples of one shape")
    return chosen


def splits_of(name: str, data_dir: str | os.PathLike[str] | None) -> tuple[str, ...]:
    """The splits of a data set, prepared in the format array_record; DatasetError as `open_tfds`."""
    check_installed(name)
    try:
        return tuple(_prepared(name, data_dir).info.splits)
    except Exception as error:
        raise _failed(name, error) from error


def _prepared(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    import tensorflow_datasets as tfds

    folder = None if data_dir is None else os.fspath(data_dir)
    builder = tfds.builder(name.removeprefix(SCHEME), data_dir=folder, file_format="array_record")
    if not builder.is_prepared():
        builder.download_and_prepare()
    return builder


def open_tfds(name: str, split: str, array: str | None, data_dir: str | os.PathLike[str] | None) -> "Rows":
    """The examples of a split, by their numbers, which stay on disk.

    Raises:
      DatasetError: no such data set, split or feature, or one that cannot be had in the format array_record.
    """
    check_installed(name)
    try:
        builder = _prepared(name, data_dir)
        chosen = _examples(name, builder.info.features, array)
        if split not in builder.info.splits:
            refuse(
                name, f"which has the splits {', '.join(builder.info.splits) or 'none'}", f"one of them, not {split}"
            )
        return Rows(builder.as_data_source(split=split), chosen)
    except DatasetError:
        raise
    except Exception as error:
        raise _failed(name, error) from error


class Rows:
    """One feature of the examples of a source."""

    def __init__(self, source: Any, feature: str) -> None:
        self._source, self._feature = source, feature

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.asarray(self._source[index][self._feature])


def check_installed(name: str) -> None:
    """Raises DatasetError where a package is missing that data sets of tensorflow-datasets are read with."""
    needed = ("tensorflow_datasets", "tensorflow", "importlib_resources")
    if missing := [package for package in needed if importlib.util.find_spec(package) is None]:
        told = f"got {name} and no {' and '.join(missing)}, which it is read with"
        raise DatasetError(f"{told}; it takes `pip install vpf_jax[tfds]`")


def _failed(name: str, error: Exception) -> DatasetError:
    """The network, the disk, the checksums and TensorFlow each fail with errors of their own."""
    summary = (str(error).strip().splitlines() or ["no message"])[0].rstrip(":.")[:160]
    takes = "the name of a data set that tensorflow-datasets knows and can prepare"
    return DatasetError(f"got {name}, which fails ({type(error).__name__}: {summary}); it takes {takes}")
