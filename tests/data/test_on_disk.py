"""Files whose rows are read while others are learnt: every row where it belongs, and damage said aloud."""

import numpy as np
import pytest

from vpf_jax.data import DatasetError
from vpf_jax.data.on_disk import NpyFiles, OnDisk, open_on_disk

ROWS = np.random.default_rng(0).integers(0, 2, (57, 6), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    for number, part in enumerate(np.split(ROWS, [20, 21])):
        np.save(tmp_path / f"part-{number}.npy", part)
    (tmp_path / "notes.txt").write_text("of the recording")
    return tmp_path


def test_files_of_a_folder_are_one_array(folder):
    source = open_on_disk(folder)
    assert (len(source), source.num_visible, source.dtype) == (57, 6, np.uint8)
    assert repr(source) == f"OnDisk({folder}: 57 examples of 6 entries, uint8)"
    order = np.random.default_rng(1).permutation(57)
    np.testing.assert_array_equal(source.read(order), ROWS[order])
    np.testing.assert_array_equal(source.read(order[:56].reshape(2, 4, 7)), ROWS[order[:56]].reshape(2, 4, 7, 6))


def test_a_sample_has_every_row_once(folder):
    source = open_on_disk(folder)
    np.testing.assert_array_equal(source.sample(100), ROWS)
    some = source.sample(10, seed=1)
    assert some.shape == (10, 6)
    np.testing.assert_array_equal(source.sample(10, seed=1), some)
    assert not np.array_equal(source.sample(10, seed=2), some)


def test_blocks_come_in_the_order_that_is_asked_for(folder):
    source = open_on_disk(sorted(folder.glob("*.npy")))
    order = np.random.default_rng(2).permutation(57)
    asked = [order[:30].reshape(3, 10), order[30:31].reshape(1, 1), order[31:].reshape(2, 13)]
    found = list(source.blocks(asked))
    for some, rows in zip(found, asked, strict=True):
        np.testing.assert_array_equal(some, ROWS[rows])
    # And once more the same.
    np.testing.assert_array_equal(next(iter(source.blocks(asked))), found[0])


def test_rows_of_any_shape_become_values_of_units(tmp_path):
    images = np.random.default_rng(3).integers(0, 256, (9, 4, 5), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    source = open_on_disk(tmp_path / "images.npy", transform=lambda rows: rows.reshape(len(rows), -1) > 127)
    assert source.dtype == bool
    np.testing.assert_array_equal(source.read(np.array([8, 0])), images[[8, 0]].reshape(2, -1) > 127)
    assert open_on_disk(str(tmp_path / "images.npy")).num_visible == 20


def test_anything_with_rows_is_a_source():
    np.testing.assert_array_equal(OnDisk(ROWS).read(np.array([[3], [1]])), ROWS[[[3], [1]]])
    with pytest.raises(DatasetError, match="which holds no examples"):
        OnDisk(ROWS[:0])
    with pytest.raises(DatasetError, match="rows differ in shape"):
        OnDisk([ROWS[0], ROWS[0][:3]]).read(np.array([0, 1]))
    with pytest.raises(DatasetError, match="become an array"):
        OnDisk([ROWS[0], ROWS[0][:3]]).read(np.array([1]))
    with pytest.raises(DatasetError, match="numbers from 0 to 56"):
        OnDisk(ROWS).read(np.array([57]))
    with pytest.raises(DatasetError, match="and number -1 of its examples"):
        OnDisk(ROWS).read(np.array([-1, 3]))
    with pytest.raises(ValueError, match="count"):
        OnDisk(ROWS).sample(0)
    with pytest.raises(DatasetError, match="an array \\[rows, entries\\] of numbers"):
        OnDisk(ROWS, transform=lambda rows: rows.sum())


def test_array_records(tmp_path):
    module = pytest.importorskip("array_record.python.array_record_module")
    for number, part in enumerate(np.split(ROWS, [20])):
        writer = module.ArrayRecordWriter(str(tmp_path / f"{number}.array_record"), "group_size:1")
        for row in part:
            writer.write(row.tobytes())
        writer.close()
    source = open_on_disk(tmp_path)
    assert (len(source), source.num_visible) == (57, 6)
    order = np.random.default_rng(4).permutation(57)
    np.testing.assert_array_equal(source.read(order), ROWS[order])
    np.testing.assert_array_equal(np.concatenate(list(source.blocks([order[:9], order[9:]]))), ROWS[order])
    (tmp_path / "0.array_record").write_bytes(b"no records")
    with pytest.raises(DatasetError, match="damaged or no array-record file"):
        open_on_disk(tmp_path / "0.array_record")


def test_damaged_files_are_refused_in_a_sentence(folder):
    def refused(path, match):
        with pytest.raises(DatasetError, match=match):
            open_on_disk(path)

    refused(folder / "none.npy", "none.npy, which does not exist")
    refused(folder / "typo", "typo, which does not exist")
    refused(folder / "notes.txt", "either .npy or .array_record")
    refused([], "holds no files")
    (folder / "some.array_record").write_bytes(b"")
    refused([folder / "part-0.npy", folder / "some.array_record"], "either .npy or .array_record")
    (folder / "some.array_record").unlink()
    refused(folder / "none.array_record", "which does not exist")
    (folder / "empty").mkdir()
    refused(folder / "empty", "which holds no files")
    with pytest.raises(DatasetError, match="got split, which is 'test'"):
        open_on_disk(folder, split="test")

    def saved(array, match):
        np.save(folder / "other.npy", array)
        refused(folder / "other.npy", match)

    saved(np.zeros(5), "an array \\(5,\\) of float64")
    saved(np.zeros((5, 2), object), "of object")
    saved(np.asfortranarray(np.zeros((5, 2))), "column by column")
    saved(np.zeros((0, 6), np.uint8), "which holds no examples")
    np.save(folder / "other.npy", np.zeros((5, 7), np.uint8))
    refused(folder, "whose rows are of shape \\(6,\\) and uint8; it takes \\(7,\\)")
    whole = (folder / "part-0.npy").read_bytes()
    (folder / "part-0.npy").write_bytes(whole[:-1])
    refused(folder / "part-0.npy", f"which ends after {len(whole) - 1} of {len(whole)} bytes")
    (folder / "part-0.npy").write_bytes(b"PK" + whole)
    refused(folder / "part-0.npy", "which is damaged or no .npy file")


def test_a_file_that_becomes_shorter_while_it_is_read_is_said(folder):
    rows = NpyFiles([folder / "part-0.npy"])
    np.testing.assert_array_equal(rows[19], ROWS[19])
    with (folder / "part-0.npy").open("r+b") as file:
        file.truncate(200)
    with pytest.raises(DatasetError, match="which ends in row 19"):
        rows.read(np.array([19]))
