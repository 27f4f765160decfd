"""A data set whose training part stays on disk: its parts, values and moments are those of the same one in memory."""

import numpy as np
import pytest
from typed import refused

from vpf_jax.checks import SettingError
from vpf_jax.data import DatasetError, binarise, load_dataset
from vpf_jax.data import streamed as module
from vpf_jax.data.loading import digest_of, is_found
from vpf_jax.data.on_disk import NpyFiles
from vpf_jax.data.streamed import open_streamed

RNG = np.random.default_rng(0)
KINDS = {
    "bits": RNG.integers(0, 2, (211, 6), dtype=np.uint8),
    "spins": RNG.choice(np.array([-1, 1], np.int8), (211, 6)),
    "grey": RNG.integers(0, 256, (211, 2, 3), dtype=np.uint8),
    "probabilities": RNG.random((211, 6)),
    "counts": RNG.poisson(2, (211, 6)),
    "reals": RNG.normal(1, 2, (211, 6)),
    "reals far from 0": RNG.normal(1e6, 0.5, (211, 6)),
}


def states(data, part):
    return binarise(part.examples) if data.units == "binary" else part.examples


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", [(0.8, 0.1, 0.1), (0.98, 0.01, 0.01)])
def test_parts_are_those_in_memory(kind, split, tmp_path):
    np.save(tmp_path / "some.npy", KINDS[kind])
    wanted = load_dataset(tmp_path / "some.npy", split=split, split_seed=3)
    found = open_streamed(tmp_path / "some.npy", split=split, split_seed=3)
    for part in ("validation", "test"):
        np.testing.assert_array_equal(getattr(found.data, part).examples, getattr(wanted, part).examples)
    train = states(wanted, wanted.train)
    assert (len(found), len(found.source)) == (len(train), len(train))
    np.testing.assert_array_equal(found.source.read(np.arange(len(train))), train)
    assert found.source.dtype == train.dtype
    # Of so few all are in the sample.
    np.testing.assert_array_equal(found.data.train.examples, wanted.train.examples)
    for name in ("name", "shape", "units", "values"):
        assert getattr(found.data, name) == getattr(wanted, name)
    assert found.data.told == wanted.told.replace("for training", "for training, which stay on disk")
    means, variances = found.moments
    np.testing.assert_allclose(means, train.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(variances, train.var(axis=0, dtype=np.float64), rtol=1e-9)


def test_categories_are_units_of_several_entries(tmp_path):
    np.save(tmp_path / "codes.npy", RNG.integers(0, 4, (50, 3)))
    wanted = load_dataset(tmp_path / "codes.npy", values="categories")
    found = open_streamed(tmp_path / "codes.npy", values="categories")
    np.testing.assert_array_equal(found.source.read(np.arange(40)), wanted.train.examples)
    assert (found.source.num_visible, found.data.units) == (12, "categorical(4)")
    np.testing.assert_allclose(found.moments[0], wanted.train.examples.mean(axis=0))


def test_a_sample_is_in_memory_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAMPLED", 30)
    np.save(tmp_path / "some.npy", KINDS["bits"])
    found = open_streamed(tmp_path / "some.npy")
    train = load_dataset(tmp_path / "some.npy").train.examples
    kept = found.data.train.examples
    assert kept.shape == (30, 6)
    places = [int(np.flatnonzero((train == row).all(axis=1))[0]) for row in kept]
    assert len(set(map(bytes, kept))) > 10
    assert max(places) > 30
    assert "169 for training, which stay on disk, 21 for validation, 21 for test" in found.data.told
    assert found.held_bytes == (30 + 21 + 21) * 6


def test_files_of_a_folder_are_one_source(tmp_path):
    folder = tmp_path / "recording"
    folder.mkdir()
    for number, part in enumerate(np.split(KINDS["bits"], [20, 21, 130])):
        np.save(folder / f"part-{number}.npy", part)
    np.save(tmp_path / "whole.npy", KINDS["bits"])
    found, wanted = open_streamed(str(folder)), open_streamed(tmp_path / "whole.npy")
    order = np.random.default_rng(1).permutation(len(wanted))
    np.testing.assert_array_equal(found.source.read(order), wanted.source.read(order))
    np.testing.assert_array_equal(found.moments, wanted.moments)
    assert (found.name, is_found(str(folder)), is_found(str(tmp_path / "none"))) == ("recording", True, False)
    before = digest_of(folder)
    (folder / "part-3.npy").rename(folder / "part-4.npy")
    assert before != digest_of(folder)
    with pytest.raises(DatasetError, match=r"recording, which is a folder; it takes a file .* \(--stream\)"):
        load_dataset(folder)


def test_what_does_not_fit_is_refused(tmp_path):
    def saved(array, match, **how):
        np.save(tmp_path / "other.npy", array)
        with pytest.raises(DatasetError, match=match):
            open_streamed(tmp_path / "other.npy", **how)

    holes = np.where(RNG.random((20, 3)) < 0.2, np.nan, 1.0)
    saved(holes, "which has missing entries; it takes whole examples where they stay on disk")
    saved(KINDS["grey"], "of spins|where the values are spins", values="spins")
    saved(np.zeros((0, 3)), "which holds no examples")
    saved(np.zeros((2, 3)), "at least one for each of train, validation, test")
    wrong = KINDS["bits"].astype(np.float32)
    wrong[150, 2] = np.inf
    saved(wrong, "inf in row 150, variable 2")
    with pytest.raises(DatasetError, match=r"gone\.npy, which does not exist"):
        open_streamed(tmp_path / "gone.npy")
    np.save(tmp_path / "some.npy", KINDS["bits"])
    for how in ({"array": "x"}, {"data_dir": tmp_path}):
        with pytest.raises(SettingError, match=f"got {next(iter(how))}=.*some.npy is a path"):
            open_streamed(tmp_path / "some.npy", **how)
    with refused(SettingError, match="got split="):
        open_streamed(tmp_path / "some.npy", split=(1.0, 0.0, 0.0))
    with refused(SettingError, match="got values=words"):
        open_streamed(tmp_path / "some.npy", values="words")


def test_rows_that_follow_one_another_are_read_at_once(tmp_path):
    for number, part in enumerate(np.split(KINDS["bits"], [100])):
        np.save(tmp_path / f"{number}.npy", part)
    files = NpyFiles(sorted(tmp_path.glob("*.npy")))
    for rows in (np.arange(211), np.arange(95, 105), np.array([3, 4, 5, 0, 1, 150, 151, 99, 100, 7]), np.arange(0)):
        np.testing.assert_array_equal(files.read(rows), KINDS["bits"][rows])
    # A file that has become shorter ends in the row at which it does.
    content = (tmp_path / "1.npy").read_bytes()
    (tmp_path / "1.npy").write_bytes(content[:-13])
    with pytest.raises(DatasetError, match=r"1\.npy, which ends in row 108"):
        files.read(np.arange(100, 211))
