"""Files of one's own: written by the tools that people write them with, parted, recognised, and refused."""

import gzip
import pickle
import re
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vpf_jax import units
from vpf_jax.data import DatasetError, load_dataset, read_examples, tables
from vpf_jax.data.fasta import as_fasta
from vpf_jax.data.loading import Names, digest_of, is_found, short_name

RNG = np.random.default_rng(0)
BITS = RNG.random((60, 7)) < 0.3
LABELS = np.arange(60) % 3
GREY = RNG.integers(0, 256, (60, 4, 5)).astype(np.uint8)
GREY[0, 0, 0] = 255


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def together(data):
    """The examples of all parts in the order of the file, which random parts keep, sorted as words."""
    return sorted(row.tobytes() for part in (data.train, data.validation, data.test) for row in part.examples)


def words(rows, dtype=np.uint8):
    return sorted(row.tobytes() for row in np.asarray(rows, dtype).reshape(len(rows), -1))


# --- files as their users write them


def by_numpy(path):
    np.save(path, BITS)


def by_numpy_named(path):
    np.savez_compressed(path, x=BITS.astype(float), y=LABELS)


def by_pandas(path):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(BITS.astype(int), columns=[f"cell {i}" for i in range(7)])
    table["label"] = LABELS
    table.to_csv(path)


def by_pandas_plain(path):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(BITS.astype(int))
    table.insert(0, "class", [f"kind {label}" for label in LABELS])
    table.to_csv(path, index=False)


def by_h5py(path):
    """As the package rbms writes."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file["samples"] = 2.0 * BITS - 1
        file["labels"] = LABELS


def by_scipy(path):
    sparse = pytest.importorskip("scipy.sparse")
    sparse.save_npz(path, sparse.csr_matrix(BITS.astype(np.float32)))


def by_scipy_coo(path):
    sparse = pytest.importorskip("scipy.sparse")
    sparse.save_npz(path, sparse.coo_matrix(BITS.astype(np.int8)))


@pytest.mark.parametrize(
    ("path", "write", "classes", "names"),
    [
        ("spikes.npy", by_numpy, 0, None),
        ("spikes.npz", by_numpy_named, 3, None),
        ("spikes.csv", by_pandas, 3, tuple(f"cell {i}" for i in range(7))),
        ("spikes.csv.gz", by_pandas_plain, 3, tuple("0123456")),
        ("spikes.h5", by_h5py, 3, None),
        ("spikes.hdf5", by_h5py, 3, None),
        ("sparse.npz", by_scipy, 0, None),
        ("sparse.npz", by_scipy_coo, 0, None),
    ],
)
def test_every_format_gives_the_same_bits(path, write, classes, names):
    write(path)
    data = load_dataset(path)
    assert together(data) == words(BITS)
    assert (data.name, data.shape, data.classes, data.names) == (short_name(path), (7,), classes, names)
    assert data.values == ("spins" if write is by_h5py else "bits")
    assert data.told.startswith(f"{path}: 60 examples of shape [7]; {data.values} (")
    assert data.told.endswith("; 48 for training, 6 for validation, 6 for test (at random, 0.8, 0.1, 0.1, seed 0)")
    whole = read_examples(path)
    np.testing.assert_array_equal(whole.examples, BITS)
    if classes:
        np.testing.assert_array_equal(whole.labels, LABELS)
    else:
        assert whole.labels is None


def test_sequences_that_biopython_writes_are_recognised():
    Bio = pytest.importorskip("Bio")
    from Bio import SeqIO
    from Bio.Seq import Seq
    from Bio.SeqRecord import SeqRecord

    assert Bio.__version__
    SeqIO.write([SeqRecord(Seq("MKV-L" * 20), id=f"s{i}") for i in range(3)], "family.fasta", "fasta")
    data = load_dataset("family.fasta")
    assert (data.shape, data.units) == ((100, 21), "categorical(21)")
    codes = [data.alphabet.index(letter) for letter in "MKV-L"]
    np.testing.assert_array_equal(data.train.examples.reshape(-1, 100, 21).argmax(-1), [codes * 20])


@pytest.mark.parametrize(
    ("letters", "told"),
    [("ACGT-N", "letters of DNA, 5 "), ("acgu.", "letters of RNA, 5 "), ("ACDEFX", "letters of proteins, 21 ")],
)
def test_alphabets_of_sequences(letters, told):
    given = f";a comment\n>one of them\n{letters}\n{letters}\n\n>two\n{letters * 2}\n>three\n{letters * 2}\n"
    Path("a.fasta").write_text(given)
    data = load_dataset("a.fasta")
    q = len(data.alphabet)
    assert data.told.startswith(f"a.fasta: 3 examples of shape [{2 * len(letters)}]; categories ({told}with the gap)")
    assert f"for categorical({q}) units" in data.told
    # The gap is the first letter; what stands for several is one.
    wanted = [data.alphabet.index(letter) if letter in data.alphabet else 0 for letter in letters.upper()]
    wanted = [0 if letter == "." else code for letter, code in zip(letters, wanted, strict=True)]
    for part in (data.train, data.validation, data.test):
        np.testing.assert_array_equal(part.examples.reshape(-1, q).argmax(-1), wanted * 2)
        assert (part.examples.reshape(-1, q).sum(-1) == 1).all()
    np.testing.assert_array_equal(read_examples("a.fasta").examples[0], data.train.examples[0])


def test_letters_of_a_model_are_read_by_its_alphabet():
    """Sequences of a protein may have letters of DNA alone."""
    proteins = "-ACDEFGHIKLMNPQRSTVWY"
    Path("a.fasta").write_text(">a\nACG\n>b\nTN-\n")
    read = read_examples("a.fasta", unit=units.Categorical(21), alphabet=proteins).examples
    found = read.reshape(2, 3, 21).argmax(-1)
    np.testing.assert_array_equal(found, [[proteins.index(letter) for letter in row] for row in ("ACG", "TN-")])
    assert as_fasta(found, proteins) == ">0\nACG\n>1\nTN-\n"
    with pytest.raises(DatasetError, match=r"alignment holds 'N' in line 3; it takes letters of ACGT, 4 with the gap"):
        read_examples("a.fasta", unit=units.Categorical(4), alphabet="ACGT")
    for unit in (units.BINARY, units.Categorical(4)):
        with pytest.raises(DatasetError, match=r"holds letters of DNA, .*; it takes values of .* units$"):
            read_examples("a.fasta", unit=unit)


def test_parts_of_a_file_are_kept_and_what_is_not_read_is_said():
    parts = {"train": BITS[:40], "validation": BITS[40:50], "test": BITS[50:]}
    labels = {"train_labels": LABELS[:40], "validation_labels": LABELS[40:50], "test_labels": LABELS[50:]}
    np.savez("own.npz", **parts, **labels, scores=np.zeros(3))
    data = load_dataset("own.npz")
    for name, rows in parts.items():
        np.testing.assert_array_equal(getattr(data, name).examples, rows)
        np.testing.assert_array_equal(getattr(data, name).labels, labels[f"{name}_labels"])
    assert data.told.endswith("3 classes; not read: scores; 40 for training, 10 for validation, 10 for test")
    np.testing.assert_array_equal(read_examples("own.npz", array="test").labels, LABELS[50:])
    for given in ({"split": (0.5, 0.25, 0.25)}, {"split_seed": 1}):
        with pytest.raises(ValueError, match=r"it takes nothing, as own\.npz has parts of its own"):
            load_dataset("own.npz", **given)


def test_one_of_several_arrays_has_the_labels_that_fit():
    np.savez("several.npz", early=BITS[:30], late=BITS, labels=LABELS, weights=np.ones(60))
    assert load_dataset("several.npz", array="early").classes == 0
    part = read_examples("several.npz", array="late")
    np.testing.assert_array_equal(part.labels, LABELS)
    assert part.weights.sum() == 60
    with pytest.raises(ValueError, match=r"got data_dir=here; it takes nothing, as several\.npz is a path"):
        load_dataset("several.npz", "here", array="late")


def test_a_part_that_is_missing_is_cut_from_training():
    np.savez("own.npz", train=BITS[:40], test=BITS[40:])
    data = load_dataset("own.npz", split=(0.5, 0.3, 0.2), split_seed=1)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [25, 15, 20]
    np.testing.assert_array_equal(data.test.examples, BITS[40:])
    assert together(data) == words(BITS)


def test_random_parts_depend_on_the_seed_and_keep_the_order():
    numbers = (np.arange(100)[:, None] >> np.arange(7) & 1).astype(np.uint8)
    np.save("numbers.npy", numbers)

    def rows(**how):
        data = load_dataset("numbers.npy", **how)
        return [part.examples @ (1 << np.arange(7)) for part in (data.train, data.validation, data.test)]

    first, again, other = rows(), rows(), rows(split_seed=1, split=[0.2, 0.3, 0.5])
    assert [len(part) for part in first] == [80, 10, 10]
    assert [len(part) for part in other] == [20, 30, 50]
    for part, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(part, same)
        assert (np.diff(part) > 0).all()
    for parts in (first, other):
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(100))


@pytest.mark.parametrize("count", [3, 4, 7])
def test_few_examples_give_each_part_one(count):
    np.save("few.npy", BITS[:count])
    data = load_dataset("few.npy")
    sizes = [len(part) for part in (data.train, data.validation, data.test)]
    assert sizes == [count - 2, 1, 1]


# --- values


def test_images_keep_their_shape_and_become_grey_values():
    np.save("grey.npy", GREY)
    data = load_dataset("grey.npy")
    assert (data.shape, data.values) == ((4, 5), "bytes")
    assert together(data) == words(GREY / np.float32(255), np.float32)
    np.save("colours.npy", np.stack([GREY, GREY, 255 - GREY], axis=-1))
    assert load_dataset("colours.npy").shape == (4, 5, 3)
    np.save("channel.npy", GREY[..., None])
    assert load_dataset("channel.npy").shape == (4, 5)


@pytest.mark.parametrize(
    ("array", "given", "kind"),
    [
        (BITS, "auto", "bits"),
        (BITS.astype(np.int64), "auto", "bits"),
        (2 * BITS.astype(np.int8) - 1, "auto", "spins"),
        (BITS / 2, "auto", "probabilities"),
        (BITS.astype(np.float16), "probabilities", "probabilities"),
        (GREY.reshape(60, 20).astype(np.int64), "auto", "bytes"),
        (GREY.astype(">i4") // 2, "bytes", "bytes"),
        (np.where(BITS, 1.0, np.nan), "auto", "bits"),
    ],
)
def test_kinds_of_values(array, given, kind):
    np.save("some.npy", array)
    data = load_dataset("some.npy", values=given)
    assert data.values == kind
    assert data.train.examples.dtype == (np.uint8 if kind in ("bits", "spins") else np.float32)


COUNTS = RNG.poisson(3, (60, 7))
REALS = RNG.normal(2, 3, (60, 7))


@pytest.mark.parametrize(
    ("array", "given", "kind", "unit", "dtype"),
    [
        (COUNTS, "auto", "counts", "count", np.uint8),
        (COUNTS.astype(float), "auto", "counts", "count", np.uint8),
        (BITS.astype(int), "counts", "counts", "count", np.uint8),
        (100 * COUNTS, "auto", "counts", "count", np.uint16),
        (10**5 * COUNTS, "auto", "counts", "count", np.int32),
        (REALS, "auto", "reals", "gaussian", np.float32),
        (COUNTS - 1, "auto", "reals", "gaussian", np.float32),
        (BITS / 2, "reals", "reals", "gaussian", np.float32),
        (COUNTS, "categories", "categories", f"categorical({COUNTS.max() + 1})", np.uint8),
        (np.zeros((60, 7), int), "categories", "categories", "categorical(2)", np.uint8),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "csv", "h5"])
def test_kinds_of_values_that_are_no_bits(array, given, kind, unit, dtype, suffix):
    path = f"some.{suffix}"
    if suffix == "npy":
        np.save(path, array)
    elif suffix == "csv":
        pytest.importorskip("pandas").DataFrame(array).to_csv(path, index=False)
    else:
        with_h5py(samples=array)(path)
    data = load_dataset(path, values=given)
    assert (data.values, data.units, data.train.examples.dtype) == (kind, unit, dtype)
    wanted = np.eye(data.shape[1], dtype=int)[array].reshape(60, -1) if kind == "categories" else array
    assert data.shape == ((7, COUNTS.max() + 1) if array is COUNTS and kind == "categories" else data.shape)
    assert data.num_variables == 7
    assert together(data) == words(wanted.astype(np.float32).astype(dtype), dtype)
    units.get(data.units).check("examples", data.train.examples)
    assert f"; {kind} (" in data.told


def test_of_real_numbers_scales_are_told():
    np.save("some.npy", REALS)
    assert "standardise" not in load_dataset("some.npy").told
    np.save("some.npy", REALS * np.array([1, 1, 1, 1, 100, 1, 0.001]))
    told = load_dataset("some.npy").told
    assert re.search(r"; deviations of variables from 0\.00\d+ to [\d.]+e\+02: standardise them first", told)


def test_missing_entries_of_every_kind():
    mask = np.zeros((60, 7), bool)
    mask[3, 2] = mask[5, 6] = True
    for values, how in ((COUNTS, "counts"), (REALS, "reals"), (COUNTS, "categories")):
        np.save("holes.npy", np.where(mask, np.nan, values))
        part = read_examples("holes.npy", values=how)
        width = part.examples.shape[1] // 7
        np.testing.assert_array_equal(part.missing, np.repeat(mask, width, axis=1))
        known = part.examples.reshape(60, 7, width)
        if how == "categories":
            # What stands at a missing entry is a value, too.
            assert (known.sum(-1) == 1).all()
            known = known.argmax(-1)[..., None]
        np.testing.assert_array_equal(known[..., 0], np.where(mask, 0, values).astype(known.dtype))
        load_dataset("holes.npy", values=how)


def test_names_are_of_variables_not_of_values():
    Path("some.csv").write_text("a,b\n0,2\n1,1\n2,0\n")
    data = load_dataset("some.csv", values="categories")
    assert (data.names, data.shape, data.num_visible) == (("a", "b"), (2, 3), 6)


def test_words_are_categories_of_each_column(monkeypatch):
    """In the order of the alphabet, over the whole file however long; whoever knows the words reads others by them."""
    monkeypatch.setattr(tables, "_LINES", 2)
    Path("w.csv").write_text("hue,size,class\nred,big,u\n green ,small,v\nred,,u\nblue,small,u\nNA,big,v\n")
    data = load_dataset("w.csv", split=(0.6, 0.2, 0.2))
    assert data.categories == (("blue", "green", "red"), ("big", "small"))
    assert (data.units, data.shape) == ("groups(3 categorical(3) + 2 categorical(2))", (5,))
    assert (data.names, data.num_variables, data.classes) == (("hue", "size"), 2, 2)
    assert "categories (words, 2 to 3 in a column), for groups(" in data.told
    part = read_examples("w.csv")
    np.testing.assert_array_equal(
        part.examples, [[0, 0, 1, 1, 0], [0, 1, 0, 0, 1], [0, 0, 1, 1, 0], [1, 0, 0, 0, 1], [1, 0, 0, 1, 0]]
    )
    np.testing.assert_array_equal(np.argwhere(part.missing), [[2, 3], [2, 4], [4, 0], [4, 1], [4, 2]])
    np.testing.assert_array_equal(part.labels, [0, 1, 0, 0, 1])
    unit = units.get(data.units)
    Path("some.csv").write_text("hue,size\ngreen,\nred,\n")
    read = read_examples("some.csv", unit=unit, categories=data.categories)
    np.testing.assert_array_equal(read.examples, [[0, 1, 0, 1, 0], [0, 0, 1, 1, 0]])
    np.testing.assert_array_equal(read.missing, 2 * [[False, False, False, True, True]])
    np.save("codes.npy", [[2, 1], [0, 0]])
    np.testing.assert_array_equal(read_examples("codes.npy", unit=unit).examples, [[0, 0, 1, 0, 1], [1, 0, 0, 1, 0]])
    for name, held, told in (
        (
            "some.csv",
            "hue,size\nred,big\nred,huge\n",
            "line 3 holds 'huge' in column 'size'; it takes big, small there",
        ),
        ("some.csv", "hue\nred\nblue\n", "with 1 variables per example; it takes 2"),
    ):
        Path(name).write_text(held)
        with pytest.raises(DatasetError, match=told):
            read_examples(name, unit=unit, categories=data.categories)
    with pytest.raises(DatasetError, match=r"whose table holds words; it takes values of categorical\(3\) units"):
        read_examples("some.csv", unit=units.Categorical(3))
    for codes, told in (
        ([[2, 2]], "holds 2 in row 0, variable 1; .* from 0 to 1, where"),
        ([[1]], "1 variables .* takes 2"),
    ):
        np.save("codes.npy", codes)
        with pytest.raises(DatasetError, match=told):
            read_examples("codes.npy", unit=unit)


@pytest.mark.parametrize(
    ("held", "names", "count"),
    [
        ("red,big\nblue,small\nblue,big\nred,small\n", None, 4),
        # Not found again: names, as a table of numbers has them.
        ("red,big\nblue,small\nblue,tiny\nred,small\n", ("red", "big"), 3),
        ("red;big\nblue;small\nred;big\nblue;big\n", None, 4),
    ],
)
def test_a_first_line_of_words_that_are_found_again_is_an_example(held, names, count):
    Path("w.csv").write_text(held)
    data = load_dataset("w.csv")
    assert data.names == names
    assert len(read_examples("w.csv")) == count
    if names is None:
        # As many words in each column: one kind of unit.
        assert (data.units, data.shape) == ("categorical(2)", (2, 2))
        np.testing.assert_array_equal(read_examples("w.csv").examples[0], [0, 1, 1, 0])


def test_states_of_a_model_are_read_whatever_they_look_like():
    """Bits may be counts, codes or real numbers, where a model says so."""
    np.save("some.npy", BITS.astype(int))
    for unit in (units.COUNT, units.GAUSSIAN, units.RECTIFIED):
        np.testing.assert_array_equal(read_examples("some.npy", unit=unit).examples, BITS)
    found = read_examples("some.npy", unit=units.Categorical(4)).examples
    np.testing.assert_array_equal(found.reshape(60, 7, 4).argmax(-1), BITS)
    for array, unit, told in (
        (
            changed(9, 4, 3),
            units.Categorical(3),
            "holds 3 in row 9, variable 4; it takes codes, whole numbers from 0 to 2",
        ),
        (
            changed(9, 4, -1),
            units.COUNT,
            "holds -1 in row 9, variable 4; it takes whole numbers of at least 0, .*count",
        ),
        (
            changed(9, 4, 0.5),
            units.COUNT,
            "holds 0.5 in row 9, variable 4; it takes whole numbers of at least 0, .*count",
        ),
        (
            changed(9, 4, np.inf),
            units.GAUSSIAN,
            "holds inf in row 9, variable 4; it takes finite numbers where units are",
        ),
        (changed(9, 4, 3), units.BINARY, "holds counts .* such as 3 in row 9, variable 4; it takes bits"),
    ):
        np.save("wrong.npy", array)
        with pytest.raises(DatasetError, match=told):
            read_examples("wrong.npy", unit=unit)


def test_missing_entries_are_those_of_nan_and_of_a_mask():
    values, mask = BITS.astype(float), np.zeros((60, 7), bool)
    values[3, 2], mask[5, 6] = np.nan, True
    np.savez("holes.npz", x=values, missing=mask)
    part = read_examples("holes.npz")
    assert np.argwhere(part.missing).tolist() == [[3, 2], [5, 6]]
    np.testing.assert_array_equal(part.examples, np.where(part.missing, 0, BITS))
    assert "missing entries" in load_dataset("holes.npz").told
    Path("holes.csv").write_text("a,b\n1,\n0,1\nNA,0\n")
    part = read_examples("holes.csv")
    np.testing.assert_array_equal(part.missing, [[False, True], [False, False], [True, False]])
    np.testing.assert_array_equal(part.examples, [[1, 0], [0, 1], [0, 0]])


def test_weights_go_with_their_examples():
    weights = np.arange(60) + 1.0
    np.savez("weighted.npz", x=(np.arange(60)[:, None] >> np.arange(6) & 1), weights=weights)
    data = load_dataset("weighted.npz")
    for part in (data.train, data.validation, data.test):
        np.testing.assert_array_equal(part.examples @ (1 << np.arange(6)), part.weights - 1)
    Path("weighted.csv").write_text("a;Weight;b;class\n1;0,5;0;x\n".replace("0,5", "0.5") + "1;2;1;y\n0;1;1;x\n")
    part = read_examples("weighted.csv")
    np.testing.assert_array_equal(part.weights, [0.5, 2, 1])
    np.testing.assert_array_equal(part.labels, [0, 1, 0])
    np.testing.assert_array_equal(part.examples, [[1, 0], [1, 1], [0, 1]])


@pytest.mark.parametrize("suffix", ["npy", "h5"])
def test_a_file_of_real_numbers_is_made_to_bits_in_pieces(suffix):
    """Eight bytes an entry in the file, one in memory: the peak is near the result, and far from any copy."""
    rows, width = 40_000, 500
    if suffix == "npy":
        array = np.lib.format.open_memmap("large.npy", "w+", np.float64, (rows, width))
        array[::2, ::3] = 1
        array.flush()
        del array
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File("large.h5", "w") as file:
            made = file.create_dataset("samples", (rows, width), np.float64, chunks=(2000, width))
            made[:2000] = np.tile(np.arange(width) % 3 == 0, (2000, 1)).astype(float)
    tracemalloc.start()
    try:
        part = read_examples(f"large.{suffix}")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    result = rows * width
    assert part.examples.nbytes == result
    # Of one piece: 8 MB of numbers, and as much again while they are looked at.
    assert peak < result + 30e6, peak / 1e6
    assert part.examples[0, :4].tolist() == [1, 0, 0, 1]


# --- names


def test_what_stands_for_data():
    np.save("mine.npy", BITS)
    Path("mine.dat").write_bytes(b"")
    for name in ("mnist", "tfds:cifar10", "mine.npy", "elsewhere/gone.h5", "mine.dat"):
        assert name in Names()
    for name in ("mnits", "tfds:", "gone.mat", "", 3):
        assert name not in Names()
    assert "glass" in Names("glass")
    assert not is_found("mnist")
    named = {"a/b c.npy": "b-c", "x.CSV.gz": "x", "tfds:mnist_corrupted/fog:1.0.0": "mnist_corrupted-fog-1.0.0"}
    assert {name: short_name(name) for name in named} == named
    with pytest.raises(
        ValueError, match=r"got dataset=mnits; it takes one of digits_8x8, .*, tfds:NAME, the path of a f"
    ):
        load_dataset("mnits")
    assert digest_of("mine.dat").startswith("e3b0c442")


@pytest.mark.parametrize(
    "given",
    [{"split": (0.5, 0.2, 0.3)}, {"split_seed": 1}, {"values": "bits"}, {"array": "x"}],
    ids=str,
)
def test_what_is_of_files_is_refused_for_other_data(given):
    (name,) = given
    with pytest.raises(ValueError, match=f"got {name}=.*; it takes nothing, as planted_spikes is no file"):
        load_dataset("planted_spikes", **given)


@pytest.mark.parametrize(
    "split", [(0.5, 0.5), (0.5, 0.4, 0.2), (1.0, 0.0, 0.0), (2, -0.5, -0.5), (float("nan"), 0.5, 0.5)]
)
def test_fractions_are_three_that_sum_to_one(split):
    np.save("mine.npy", BITS)
    with pytest.raises(ValueError, match=r"got split=.*; it takes three positive fractions that sum to 1"):
        load_dataset("mine.npy", split=split)


# --- files that are wrong


def damaged(keep, write, path):
    write(path)
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: int(keep * len(data))])


def save(**arrays):
    return lambda path: np.savez(path, **arrays)


def array(values):
    return lambda path: np.save(path, values)


def text(content):
    return lambda path: Path(path).write_text(content)


def raw(content):
    return lambda path: Path(path).write_bytes(content)


def with_h5py(**arrays):
    def write(path):
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                file[name] = values

    return write


def chunked_h5py(path):
    """The index of the chunks lies in what is cut off."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.create_dataset("samples", data=np.tile(BITS, (50, 1)).astype(float), chunks=(100, 7), compression="gzip")


def flipped_h5py(path):
    """A chunk is no sound gzip stream any more."""
    chunked_h5py(path)
    import h5py

    with h5py.File(path) as file:
        place = file["samples"].id.get_chunk_info(3).byte_offset
    data = bytearray(Path(path).read_bytes())
    data[place : place + 40] = b"\xff" * 40
    Path(path).write_bytes(data)


def broken_sparse(path):
    by_scipy(path)
    with np.load(path) as file:
        np.savez(path, **{name: file[name] for name in file.files if name != "indices"})


def zipped(path):
    np.savez("other.npz", x=BITS)
    Path("other.npz").rename(path)


def renamed(path):
    np.save("other.npy", BITS)
    Path("other.npy").rename(path)


def pickled(path):
    Path(path).write_bytes(pickle.dumps([1, 2]))


def changed(row, column, value):
    values = BITS.astype(float)
    values[row, column] = value
    return values


WRONG = {
    "npy missing": ("gone.npy", lambda path: None, {}, "which does not exist"),
    "npy folder": ("some.npy", lambda path: Path(path).mkdir(), {}, "which is no file"),
    "npy empty": ("some.npy", raw(b""), {}, "damaged or no .npy"),
    "npy half a header": ("some.npy", lambda path: damaged(0.05, by_numpy, path), {}, "damaged or no .npy"),
    "npy half": ("some.npy", lambda path: damaged(0.7, by_numpy, path), {}, "damaged or no .npy"),
    "npy other bytes": ("some.npy", raw(bytes(range(256))), {}, "damaged or no .npy"),
    "npy objects": ("some.npy", array(np.array([[1, None]])), {}, "whose array holds Python objects"),
    "npy pickle": ("some.npy", pickled, {}, "damaged or no .npy"),
    "npy zip": ("some.npy", zipped, {}, "damaged or no .npy"),
    "npy one number": ("some.npy", array(np.array(1)), {}, r"whose array has shape \(\);"),
    "npy one row": ("some.npy", array(BITS[0]), {}, r"whose array has shape \(7,\);"),
    "npy no rows": ("some.npy", array(BITS[:0]), {}, r"whose array has shape \(0, 7\);"),
    "npy no columns": ("some.npy", array(BITS[:, :0]), {}, r"whose array has shape \(60, 0\);"),
    "npy text": ("some.npy", array(np.array([["a", "b"]])), {}, "whose array holds text"),
    "npy complex": ("some.npy", array(BITS * 1j), {}, "whose array holds complex numbers"),
    "npy records": ("some.npy", array(np.zeros((2, 2), "i4,f4")), {}, "whose array holds records"),
    "npy dates": ("some.npy", array(np.zeros((2, 2), "M8[s]")), {}, "whose array holds values of type datetime64"),
    "npy no counts": ("some.npy", array(changed(9, 4, -1)), {"values": "counts"}, "holds -1 in row 9, variable 4; .*0"),
    "npy half a count": ("some.npy", array(changed(9, 4, 0.5)), {"values": "counts"}, "holds 0.5 in row 9, variable 4"),
    "npy no codes": (
        "some.npy",
        array(changed(9, 4, 2.5)),
        {"values": "categories"},
        "holds 2.5 in row 9, .*codes, wh",
    ),
    "npy code 255": (
        "some.npy",
        array(changed(9, 4, 255)),
        {"values": "categories"},
        "holds 255 in row 9, .* 0 to 254",
    ),
    "npy no reals": (
        "some.npy",
        array(changed(9, 4, 1e39)),
        {"values": "reals"},
        r"holds 1e\+39 in row 9, .*finite num",
    ),
    "npy too large": (
        "some.npy",
        array(changed(9, 4, -1e39)),
        {},
        r"such as -1e\+39 in row 9, variable 4; it takes bits",
    ),
    "npy infinite": ("some.npy", array(changed(2, 0, np.inf)), {}, "real numbers from 0 to inf, such as inf in row 2"),
    "npy nothing known": ("some.npy", array(np.full((4, 2), np.nan)), {}, "holds missing entries alone"),
    "npy no bits": ("some.npy", array(BITS / 2), {"values": "bits"}, r"holds 0\.5 in row .*; it takes 0 and 1 where"),
    "npy no spins": ("some.npy", array(BITS), {"values": "spins"}, "holds 0 in row .*; it takes -1 and [+]1 where"),
    "npy too likely": ("some.npy", array(changed(7, 1, 1.5)), {"values": "probabilities"}, "holds 1.5 in row 7, .* 1"),
    "npy no bytes": (
        "some.npy",
        array(changed(7, 1, 256)),
        {"values": "bytes"},
        "holds 256 in row 7, variable 1; .*255",
    ),
    "npy named": ("some.npy", by_numpy, {"array": "x"}, "has none called x"),
    "npy two examples": ("some.npy", array(BITS[:2]), {}, "holds 2 examples; it takes at least one for each of train"),
    "npz other bytes": ("some.npz", raw(b"PK" + bytes(99)), {}, "damaged or no .npz"),
    "npz half": ("some.npz", lambda path: damaged(0.5, by_numpy_named, path), {}, "damaged or no .npz"),
    "npz an array": ("some.npz", renamed, {}, "no .npz file but"),
    "npz objects": ("some.npz", save(x=np.array([[1, None]])), {}, "whose array x holds Python objects"),
    "npz empty": ("some.npz", lambda path: zipfile.ZipFile(path, "w").close(), {}, "which holds no arrays"),
    "npz which": ("some.npz", save(a=BITS, b=BITS), {}, "with the arrays a, b; it takes one named x, samples or train"),
    "npz no such": (
        "some.npz",
        save(a=BITS, b=BITS),
        {"array": "c"},
        "has no array c; it takes one of its arrays: a, b",
    ),
    "npz labels": ("some.npz", save(x=BITS, y=LABELS[:9]), {}, r"array x has shape \(60, 7\) and its labels \(9,\)"),
    "npz label -1": ("some.npz", save(x=BITS, y=LABELS - 1), {}, "labels of array x hold -1 in row 0"),
    "npz label 0.5": ("some.npz", save(x=BITS, y=LABELS / 2), {}, r"labels of array x hold 0\.5 in row 1"),
    "npz two labels": ("some.npz", save(x=BITS, y=LABELS, labels=LABELS), {}, "has the arrays labels and y"),
    "npz weight -1": ("some.npz", save(x=BITS, weights=5.0 - np.arange(60)), {}, "weights of array x hold -1 in row 6"),
    "npz weight nan": ("some.npz", save(x=BITS, weights=changed(4, 0, np.nan)[:, 0]), {}, "hold nan in row 4"),
    "npz weights 0": ("some.npz", save(x=BITS, weights=np.zeros(60)), {}, "weights of array x are all 0"),
    "npz weights": ("some.npz", save(x=BITS, weights=np.ones(61)), {}, r"its weights \(61,\)"),
    "npz weights text": ("some.npz", save(x=BITS, weights=LABELS.astype(str)), {}, "weights of array x are of type <U"),
    "npz mask": ("some.npz", save(x=BITS, missing=BITS[:, 1:]), {}, r"its missing \(60, 6\)"),
    "npz mask 2": (
        "some.npz",
        save(x=BITS, missing=2 * BITS),
        {},
        "mask of missing entries of array x is of int64, row",
    ),
    "npz parts": ("some.npz", save(train=BITS, test=BITS[:, 1:]), {}, r"array test holds .* \(6,\) and array train of"),
    "npz labels of one": (
        "some.npz",
        save(train=BITS, test=BITS, train_labels=LABELS),
        {},
        "labels of array train and",
    ),
    "npz names": ("some.npz", save(x=BITS, names=np.array(["a", "b"])), {}, "array x has 7 variables and 2 names"),
    "npz names 7": ("some.npz", save(x=BITS, names=np.arange(7)), {}, "array names holds values of type int64"),
    "npz sparse": ("some.npz", broken_sparse, {}, "damaged or no .npz"),
    "npz sparse named": ("some.npz", by_scipy, {"array": "x"}, "one sparse matrix and has no array x"),
    "csv empty": ("some.csv", text(""), {}, "which is empty"),
    "csv names alone": ("some.csv", text("a,b\n"), {}, "a line of names and no examples"),
    "csv ragged": ("some.csv", text("a,b\n1,0\n\n1\n"), {}, "whose line 4 has 1 column and line 1 has 2"),
    "csv word in numbers": ("some.csv", text("a,b\n1,red\n0,red\n"), {}, "line 2 holds 'red' in column 2; .* or words"),
    "csv number in words": (
        "some.csv",
        text("a,b\n" + 5000 * "x,y\ny,x\n" + "x,1\n"),
        {},
        "line 10002 holds the number '1' in column 2; it takes words in all columns",
    ),
    "csv words, empty column": ("some.csv", text("a,b\nx,\ny,NA\n"), {}, "column 'b' holds missing entries alone; it"),
    "csv words, no names": ("some.csv", text("x,y\n,x\nx,y\n,\nx,x\n"), {}, "column 1 holds no other word than 'x'"),
    "csv one word": ("some.csv", text("a,b\nx,u\ny,u\n"), {}, "'b' holds no other word than 'u'; it takes two to 255"),
    "csv many words": (
        "some.csv",
        text("a\n" + "".join(f"w{n}\n" for n in range(256))),
        {},
        "column 'a' holds 256 different words; it takes two to 255 different words in a column",
    ),
    "csv words as counts": (
        "some.csv",
        text("a\nx\ny\n"),
        {"values": "counts"},
        "words, 2 in a column: categories; it",
    ),
    "csv word": ("some.csv", text("a,b\n1,0\n0,one\n"), {}, "line 3 holds 'one' in column 2; it takes numbers"),
    "csv counts": (
        "some.csv",
        text("a,b\n1,0\n0,7\n"),
        {"values": "bits"},
        "table holds 7 in line 3, variable 1; .*1 w",
    ),
    "csv bytes": ("some.csv", raw(b"a,b\n\xff\xfe,1\n"), {}, "no text in UTF-8"),
    "csv quote": ("some.csv", text('a,b\n"1,0\n'), {}, "no table: unexpected end of data"),
    "csv labels twice": ("some.csv", text("a,label,class\n1,0,1\n"), {}, "has 2 columns called label or class"),
    "csv no label": ("some.csv", text("a,label\n1,x\n0,\n"), {}, "line 3 has no label"),
    "csv labels alone": ("some.csv", text("label,weight\n1,1\n"), {}, "columns are label, weight; it takes columns of"),
    "csv half names": ("some.csv", text("cat,1,0\ndog,1,1\n"), {}, "first line holds names and numbers, such as '1'"),
    "csv named": ("some.csv", text("1,0\n"), {"array": "x"}, "one table and has no array x"),
    "csv.gz plain": ("some.csv.gz", text("1,0\n"), {}, "not a sound gzip file"),
    "csv.gz half": ("some.csv.gz", raw(gzip.compress(b"1,0\n" * 999)[:-9]), {}, "truncated"),
    "h5 other bytes": ("some.h5", raw(b"no file"), {}, "damaged or no HDF5"),
    "h5 half": ("some.h5", lambda path: damaged(0.5, chunked_h5py, path), {}, "damaged or no HDF5"),
    "h5 chunk": ("some.h5", flipped_h5py, {}, "which is damaged"),
    "h5 empty": ("some.h5", with_h5py(), {}, "which holds no arrays"),
    "h5 which": ("some.h5", with_h5py(**{"a/b": BITS, "c": BITS}), {}, "with the arrays a/b, c; it takes one named x"),
    "h5 labels": ("some.h5", with_h5py(samples=BITS, labels=LABELS[:5]), {}, r"array samples has .* its labels \(5,\)"),
    "h5 text": ("some.h5", with_h5py(samples=[["a", "b"]]), {}, "array samples holds Python objects"),
    "h5 one number": ("some.h5", with_h5py(x=1.0), {}, r"array x has shape \(\)"),
    "fasta empty": ("some.fasta", text("\n"), {}, "which is empty"),
    "fasta no name": (
        "some.fasta",
        text("ACGT\n>a\nACGT\n"),
        {},
        "line 1 comes before the first line that starts with >",
    ),
    "fasta lengths": (
        "some.fasta",
        text(">a\nACGT\n>b x\nACG\n"),
        {},
        r"sequence b \(line 3\) has 3 letters and the fi",
    ),
    "fasta letter": ("some.fa", text(">a\nACGT\n>b\nAC1T\n"), {}, r"sequence b \(line 3\) holds '1'"),
    "fasta T and U": ("some.fasta", text(">a\nACGTU1\n>b\nACGTU1\n"), {}, "holds '1'"),
    "fasta bytes": ("some.fasta", raw(b">a\nAC\xe9\n"), {}, "which is no text"),
    "fasta counts": ("some.fasta", text(">a\nMKVL\n"), {"values": "counts"}, "holds letters of proteins.*: categories"),
    "suffix": (
        "some.mat",
        raw(b""),
        {},
        "of which the suffix does not say how it is read; it takes a file that ends in",
    ),
}


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_a_file_that_does_not_fit_ends_in_one_sentence(case):
    path, write, how, told = WRONG[case]
    write(path)
    with pytest.raises(DatasetError, match=f"got {path}, .*{told}") as caught:
        load_dataset(path, **how)
    sentence = str(caught.value)
    assert "; it takes " in sentence
    assert "\n" not in sentence
    assert len(sentence) < 420


def test_a_package_that_is_missing_is_named(monkeypatch):
    import importlib.util

    by_h5py("some.h5")
    by_scipy("some.npz")
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("h5py", "scipy") else there(name))
    for path, package in (("some.h5", "h5py"), ("some.npz", "scipy")):
        told = rf"got {path} and no {package}, which it is read with; it takes `pip install vpf_jax\[files\]`"
        with pytest.raises(DatasetError, match=told):
            load_dataset(path)
