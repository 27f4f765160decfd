"""Data sets whose parts do not fit, sources of one's own, binarisation."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vpf_jax import data, load_stack
from vpf_jax.data import SOURCES, Dataset, DatasetError, Part, base, binarise, load_dataset, register_source


def part(n, pixels=6, label=0):
    return Part(np.zeros((n, pixels), np.float32), np.full(n, label, np.int32))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: part(2, pixels=5), r"examples of shape \(2, 5\) and labels of shape \(2,\); it takes \(n, 6\) and"),
        (lambda: part(2, label=4), "labels from 0 to 3"),
        (lambda: part(2, label=-1), "labels from 0 to 3"),
    ],
)
def test_parts_that_do_not_fit_are_refused(wrong, told):
    with pytest.raises(DatasetError, match=f"got a validation part with .*{told}"):
        Dataset("own", part(4), wrong(), part(2), (2, 3), 4)


def test_a_label_belongs_to_each_image():
    # Under jaxtyping's import hook the annotations say it first.
    with pytest.raises((DatasetError, TypeError)):
        Dataset("own", part(4), Part(part(2).examples, part(3).labels), part(2), (2, 3), 4)


def test_labels_weights_missing_entries_and_names_may_be_left_out_and_fit():
    plain = Part(np.zeros((4, 6), np.uint8))
    data = Dataset("own", *[plain] * 3, (2, 3), names=tuple("abcdef"))
    assert (data.num_visible, data.classes, len(data.train), data.train.labels) == (6, 0, 4, None)
    for how, told in (
        ({"weights": np.array([1, -1, 1, 1], np.float32)}, "weights of shape .*at least 0"),
        ({"weights": np.zeros(4, np.float32)}, "weights of shape .*not all 0"),
        ({"missing": np.zeros((4, 5), bool)}, "a mask of shape"),
        ({"labels": np.zeros(4, np.int32)}, "labels of shape .*no labels, as there are no classes"),
    ):
        # Under jaxtyping's import hook the annotations say some of it first.
        with pytest.raises((DatasetError, TypeError), match=f"got a test part with .*{told}|Type-check error"):
            Dataset("own", plain, plain, Part(plain.examples, **how), (2, 3))
    with pytest.raises(DatasetError, match="got 2 names for examples of shape"):
        Dataset("own", *[plain] * 3, (2, 3), names=("a", "b"))


def test_the_bundled_sources():
    program = "from vpf_jax.data import SOURCES; print(*SOURCES)"
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert told.split() == [
        *("digits_8x8", "mnist_5k", "mnist", "fashion_mnist", "patches"),
        *("planted_spikes", "planted_pairs", "planted_proteins"),
    ]
    with pytest.raises(ValueError, match="got dataset=cifar10; it takes one of digits_8x8, mnist_5k, mnist, "):
        load_dataset("cifar10")
    assert set(data.__all__) <= set(dir(data))


@pytest.fixture
def registered():
    """Takes out what a test has registered."""
    known = set(SOURCES)
    yield
    for name in set(SOURCES) - known:
        del base._sources[name]


def test_a_source_of_ones_own_is_loaded_by_its_names(registered):
    given = []

    @register_source("ones", "twos")
    def load(name, data_dir):
        given.append((name, data_dir))
        return Dataset(name, part(4), part(1), part(2), (2, 3), 4)

    assert load_dataset("twos", "somewhere").name == "twos"
    assert load_dataset("ones").shape == (2, 3)
    assert given == [("twos", "somewhere"), ("ones", None)]
    assert SOURCES["ones"] is load
    # Run again, as a cell of a notebook is.
    assert register_source("ones")(load) is load


def test_a_name_is_a_word_that_no_other_source_has(registered):
    def load(name, data_dir):
        raise AssertionError

    known = tuple(SOURCES)
    with pytest.raises(ValueError, match="got name=mnist; it takes another one than digits_8x8, mnist_5k, mnist, "):
        register_source("own", "mnist")(load)
    assert "own" not in SOURCES
    for name in ("", "a b", "-", 3):
        # Under jaxtyping's import hook the annotation refuses what is no string.
        told = f"got name={re.escape(repr(name))}; it takes a word|Type-check error"
        with pytest.raises((ValueError, TypeError), match=told):
            register_source(name)(load)
    assert tuple(SOURCES) == known


STRIPES = """
import runpy
import numpy as np
from vpf_jax.data import Dataset, Part, register_source

@register_source("stripes")
def stripes(name, data_dir):
    rng = np.random.default_rng(0)
    def part(n):
        rows = rng.integers(0, 2, (n, 4, 1))
        return Part(np.tile(rows, 5).reshape(n, 20).astype(np.float32), rows.sum((1, 2)).astype(np.int32))
    return Dataset(name, part(200), part(20), part(20), shape=(4, 5), classes=5)

if __name__ == "__main__":
    runpy.run_module("experiments.mnist_dbm", run_name="__main__")
"""


@pytest.mark.slow
def test_a_users_file_trains_on_its_own_source_and_resumes(tmp_path):
    (tmp_path / "stripes.py").write_text(STRIPES)
    root = Path(data.__file__).parents[2]
    flags = ["--dataset=stripes", "--model=rbm", "--hidden=4", "--num_samples=20", f"--workdir={tmp_path / 'run'}"]
    for epochs in (1, 2):
        subprocess.run(
            [sys.executable, tmp_path / "stripes.py", *flags, f"--epochs={epochs}"],
            env=os.environ | {"PYTHONPATH": str(root)},
            check=True,
            timeout=300,
        )
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 3
    assert (tmp_path / "run" / "samples.png").exists()
    assert load_stack(tmp_path / "run")[0].sizes == (20, 4)


def test_binarise_is_strictly_above_the_threshold():
    images = np.array([[0.0, 0.25, 0.5], [0.50001, 0.75, 1.0]], np.float32)
    result = binarise(images)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, [[0, 0, 0], [1, 1, 1]])
    np.testing.assert_array_equal(binarise(images, 0.0), [[0, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(binarise(images, threshold=0.75), [[0, 0, 0], [0, 0, 1]])


def test_binarise_keeps_the_shape_of_an_empty_array():
    assert binarise(np.zeros((0, 784))).shape == (0, 784)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_binarise_refuses_a_threshold_outside_its_range(threshold):
    with pytest.raises(ValueError, match=r"got threshold=.*; it takes a number in \[0, 1\)"):
        binarise(np.zeros(3), threshold)


@pytest.mark.parametrize("value", [-0.01, 1.01, 255, float("nan")])
def test_binarise_refuses_values_outside_the_unit_interval(value):
    with pytest.raises(ValueError, match=r"got images with values from .* to .*; they are grey values in \[0, 1\]"):
        binarise(np.array([0.5, value]))
