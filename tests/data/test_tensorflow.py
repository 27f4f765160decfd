"""Data sets of tensorflow-datasets: what is taken, with a stand-in for the package, and two small ones for real."""

import importlib.machinery
import os
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from vpf_jax import data
from vpf_jax.data import DatasetError, load_dataset


class Tensor:
    def __init__(self, shape, np_dtype=np.float32):
        self.shape, self.np_dtype = shape, np_dtype


class Image(Tensor):
    pass


class ClassLabel(Tensor):
    pass


class Text(Tensor):
    pass


class Builder:
    """Of 20 examples in the split train and 5 in the others."""

    def __init__(self, features, splits=("train", "test")):
        self.prepared = False
        self.info = types.SimpleNamespace(features=features, splits=splits)

    def is_prepared(self):
        return self.prepared

    def download_and_prepare(self):
        self.prepared = True

    def as_dataset(self, split, batch_size):
        assert self.prepared
        assert batch_size == -1
        count = 20 if split == "train" else 5
        made = {}
        for name, feature in self.info.features.items():
            top = 3 if isinstance(feature, ClassLabel) else 256 if isinstance(feature, Image) else 2
            made[name] = np.random.default_rng(count).integers(0, top, (count, *feature.shape)).astype(feature.np_dtype)
        return made


LABEL, IMAGE = ClassLabel((), np.int64), Image((4, 5, 1), np.uint8)
KNOWN = {
    "grey": Builder({"image": IMAGE, "label": LABEL, "id": Text((), np.int64)}),
    "colours": Builder({"image": Image((4, 5, 3), np.uint8)}, ("train", "validation", "test", "extra")),
    "table": Builder({"features": Tensor((6,)), "kind": LABEL}, ("train",)),
    "two": Builder({"a": Tensor((6,)), "b": Tensor((7,))}),
    "text": Builder({"text": Text((), np.int64)}),
    "sizes": Builder({"image": Image((None, None, 3), np.uint8)}),
    "no split": Builder({"image": IMAGE}, ("test",)),
}


@pytest.fixture
def package(monkeypatch):
    """A stand-in for the packages of the extra; gives the folders that were asked for."""
    folders = []

    def builder(name, data_dir):
        folders.append(data_dir)
        if name not in KNOWN:
            raise LookupError(f"Dataset {name} not found.\nA long list follows")
        return KNOWN[name]

    for name in ("tensorflow_datasets", "tensorflow", "importlib_resources"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
        monkeypatch.setitem(sys.modules, name, module)
    module = sys.modules["tensorflow_datasets"]
    module.features = types.SimpleNamespace(Tensor=Tensor, Image=Image, ClassLabel=ClassLabel)
    module.builder, module.as_numpy = builder, lambda arrays: arrays
    return folders


def test_images_with_classes_have_their_splits(package, tmp_path):
    found = load_dataset("tfds:grey", tmp_path)
    assert (found.name, found.shape, found.classes, found.values) == ("grey", (4, 5), 3, "bytes")
    assert [len(part) for part in (found.train, found.validation, found.test)] == [18, 2, 5]
    made = KNOWN["grey"].as_dataset("test", -1)
    np.testing.assert_array_equal(found.test.examples, made["image"].reshape(5, 20) / np.float32(255))
    np.testing.assert_array_equal(found.test.labels, made["label"])
    assert "not read: id" in found.told
    assert package == [str(tmp_path)]


def test_colours_without_classes(package):
    found = load_dataset("tfds:colours")
    assert (found.shape, found.classes) == ((4, 5, 3), 0)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [20, 5, 5]
    assert "not read: extra" in found.told
    with pytest.raises(ValueError, match="got split_seed=1; it takes nothing, as tfds:colours has parts of its own"):
        load_dataset("tfds:colours", split_seed=1)


def test_features_that_are_numbers(package):
    found = load_dataset("tfds:table", split=(0.5, 0.25, 0.25))
    assert (found.shape, found.classes, found.values) == ((6,), 3, "bits")
    assert [len(part) for part in (found.train, found.validation, found.test)] == [10, 5, 5]
    assert load_dataset("tfds:two", array="b").shape == (7,)


@pytest.mark.parametrize(
    ("name", "how", "told"),
    [
        ("gone", {}, r"which fails \(LookupError: Dataset gone not found\); it takes the name of a data set that"),
        ("two", {}, "with the features a, b; it takes one of images or arrays of numbers, or --array=NAME"),
        ("two", {"array": "c"}, "which has no feature c; it takes one of its features: a, b"),
        ("text", {}, "with the features text; it takes one of images"),
        ("sizes", {}, r"whose feature image has shape \(None, None, 3\); it takes examples of one shape"),
        ("no split", {}, "which has the splits test; it takes a data set with a split train"),
        ("grey", {"values": "bits"}, "whose split train holds .* in row 0, variable .*; it takes 0 and 1 where"),
    ],
)
def test_what_is_not_taken(package, name, how, told):
    with pytest.raises(DatasetError, match=f"got tfds:{name}, {told}"):
        load_dataset(f"tfds:{name}", **how)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = "got tfds:grey and no tensorflow_datasets and tensorflow and importlib_resources, which it is read with"
    with pytest.raises(DatasetError, match=told):
        load_dataset("tfds:grey")


REAL = """
import sys
import numpy as np
import tensorflow_datasets as tfds
from vpf_jax.data import binarise, load_dataset
from vpf_jax.data.streamed import open_streamed

class Own(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    def _split_generators(self, manager):
        return {"train": self._generate_examples(30), "test": self._generate_examples(5)}

class OwnImages(Own):
    def _info(self):
        image, label = tfds.features.Image(shape=(4, 5, 3)), tfds.features.ClassLabel(num_classes=3)
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features)
    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": np.full((4, 5, 3), 8 * i, np.uint8), "label": i % 3}

class OwnFeatures(Own):
    def _info(self):
        features = {"spikes": tfds.features.Tensor(shape=(6,), dtype=np.int64), "session": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))
    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"spikes": np.arange(6) % 2, "session": "one"}

images = load_dataset("tfds:own_images", sys.argv[1])
assert images.shape == (4, 5, 3) and images.classes == 3 and images.values == "bytes", images.told
assert sorted(images.test.examples[:, 0] * 255 / 8) == [0, 1, 2, 3, 4]
assert [len(part) for part in (images.train, images.validation, images.test)] == [27, 3, 5]
features = load_dataset("tfds:own_features", sys.argv[1])
assert features.classes == 0 and features.train.examples.dtype == np.uint8
assert "not read: session" in features.told
streamed = open_streamed("tfds:own_images", sys.argv[2])
assert streamed.data.told.endswith("27 for training, which stay on disk, 3 for validation, 5 for test (train and "
    "validation at random, 0.8, 0.1, 0.1, seed 0)"), streamed.data.told
assert (streamed.source.read(np.arange(27)) == binarise(images.train.examples)).all()
assert (streamed.data.test.examples == images.test.examples).all()
print("READ")
"""


@pytest.mark.slow
def test_two_data_sets_for_real(tmp_path):
    for package in ("tensorflow_datasets", "tensorflow", "importlib_resources"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed (the extra tfds)")
    # In a process of its own: TensorFlow warns while it is imported, and it would stay in memory.
    (tmp_path / "own.py").write_text(REAL)
    result = subprocess.run(
        [sys.executable, tmp_path / "own.py", str(tmp_path / "prepared"), str(tmp_path / "records")],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(Path(data.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.endswith("READ\n")
