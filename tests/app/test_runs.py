"""What all scripts share: their settings, images on the device, memory, measurements that are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import ising_recovery, mnist_equilibrium, mnist_target
from vpf_jax.app import runs
from vpf_jax.app.folder import Stopped, UsageError, read_json
from vpf_jax.checks import SettingError
from vpf_jax.data import Dataset, DatasetError, Part, load_dataset


def test_a_damaged_measurement_is_made_again(tmp_path, caplog):
    calls = []

    def evaluate(index, seed):
        calls.append(seed)
        return {"value": 10 * seed}

    first = runs.evaluate_seeds(tmp_path, "rule", (3, 4), [], evaluate)
    file = tmp_path / "evaluations" / "rule-4.json"
    good = file.read_bytes()
    # The last one is a measurement in all but its value.
    for damaged in (b"", b"{}", b"[]", b"null", good[:9], good.replace(b"40", b"41")):
        file.write_bytes(damaged)
        assert runs.evaluate_seeds(tmp_path, "rule", (3, 4), [], evaluate) == first
        assert file.read_bytes() == good
    assert calls == [3, 4, *[4] * 6]
    assert "rule-4.json is damaged, and is now rule-4.json.damaged; it is made again" in caplog.text


@pytest.mark.parametrize(
    ("config", "longest"),
    [(mnist_target.Config, 20), (mnist_equilibrium.Config, mnist_equilibrium.ep.PRESETS["1"].epochs)],
)
def test_scripts_say_what_their_epochs_stand_for(config, longest):
    growth = config().growth()["epochs"]
    assert growth.of(config().epochs) == longest
    assert not growth.refused


def test_measurements_are_made_once_for_each_seed(tmp_path):
    calls = []

    def evaluate(index, seed):
        calls.append((index, seed))
        return {"value": 10 * seed + index}

    first = runs.evaluate_seeds(tmp_path, "rule", (3, 4), [], evaluate)
    assert first == [{"value": 30}, {"value": 41}]
    (tmp_path / "evaluations" / "rule-4.json").unlink()
    assert runs.evaluate_seeds(tmp_path, "rule", (3, 4), [], evaluate) == first
    assert calls == [(0, 3), (1, 4), (1, 4)]
    with pytest.raises(Stopped, match="evaluated is saved"):
        runs.evaluate_seeds(tmp_path, "rule", (3, 4), [15], evaluate)


def test_images_are_binarised_and_sent_once(monkeypatch):
    data = load_dataset("mnist_5k")
    calls = []
    binarise = runs.binarise
    monkeypatch.setattr(runs, "binarise", lambda images: calls.append(len(images)) or binarise(images))
    images = runs.Images(data)
    assert calls == []
    for _ in range(2):
        assert images.train.bits is images.train.bits
        np.testing.assert_array_equal(images.test.bits, binarise(data.test.examples))
        np.testing.assert_array_equal(images.test.grey, data.test.examples)
    assert calls == [4000, 500]
    assert images.num_visible == 784
    images.require("batch_size", 4000)
    with pytest.raises(SettingError, match="got batch_size=4001; it takes up to 4000, as mnist_5k has 4000 training"):
        images.require("batch_size", 4001)


@pytest.mark.parametrize(
    ("shape", "drawn", "signed"),
    [((3, 4), (3, 4), (3, 4)), ((2, 2, 3), (2, 2, 3), (2, 6)), ((12,), (3, 4), (3, 4)), ((2, 5), (2, 5), (2, 5))],
)
def test_examples_of_any_shape_have_pictures(shape, drawn, signed):
    values = np.arange(2.0 * np.prod(shape), dtype=np.float32).reshape(2, -1) / 30
    images = runs.Images(Dataset("own", *[Part(values)] * 3, shape))
    assert images.pictures(values).shape == (2, *drawn)
    assert images.pictures(-values, signed=True).shape == (2, *signed)
    np.testing.assert_array_equal(images.pictures(values).ravel(), values.ravel())
    if len(shape) == 2:
        assert images.image_shape == shape
    else:
        with pytest.raises(SettingError, match=r"got dataset=own; it takes grey images, \[rows, columns\], of which"):
            images.require_images()


def test_what_is_left_of_a_tile_is_white():
    images = runs.Images(Dataset("own", *[Part(np.zeros((1, 7), np.uint8))] * 3, (7,)))
    np.testing.assert_array_equal(images.pictures(np.zeros(7)), [[[0, 0, 0, 0], [0, 0, 0, 1]]])
    np.testing.assert_array_equal(images.pictures(-np.ones(7), signed=True)[0, -1], [-1, -1, -1, 0])


class Own(runs.Config):
    experiment = "none"


def test_a_file_is_part_of_what_config_holds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("my spikes.npy", np.eye(20, dtype=np.int8))
    config = Own(dataset="my spikes.npy", split=(0.5, 0.25, 0.25))
    assert str(config.folder) == "runs/my-spikes-none"
    images = config.images()
    runs.carry_out(config, lambda folder, stops: ({}, ""))
    assert "my spikes.npy: 20 examples of shape [20]; bits (0 and 1); 10 for training, 5" in capsys.readouterr().out
    assert (len(images.train), images.num_visible, images.classes) == (10, 20, 0)
    first = config.described()
    assert first["split"] == [0.5, 0.25, 0.25]
    assert images.described.items() <= first.items()
    np.save("my spikes.npy", 1 - np.eye(20, dtype=np.int8))
    second = Own(dataset="my spikes.npy", split=(0.5, 0.25, 0.25)).described()
    assert [name for name in first if first[name] != second[name]] == ["dataset_sha256"]


def placed(**more):
    rows = np.array([[1, 0, 0.25], [1, 0, 0.75], [0, 1, 0.5], [0, 0, 1]], np.float32)
    part = Part(rows, **more)
    return runs.Images(Dataset("own", part, part, part, (3,)), "sample" if more == {} else "threshold").train


def test_training_takes_weights_missing_entries_and_drawn_bits():
    weights, missing = np.array([1, 2, 0, 1], np.float32), np.zeros((4, 3), bool)
    missing[3, 0] = missing[:, 1] = True
    drawn, weighted, holes = placed(), placed(weights=weights), placed(missing=missing)
    assert drawn.visible.drawn
    assert drawn.visible.values.dtype == np.float32
    np.testing.assert_allclose(drawn.means, [0.5, 0.25, 0.625])
    np.testing.assert_array_equal(weighted.visible.weights, weights)
    np.testing.assert_array_equal(weighted.visible.values, [[1, 0, 0], [1, 0, 1], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(weighted.means, [0.75, 0, 0.75])
    np.testing.assert_array_equal(holes.visible.missing, missing)
    # Of the second variable nothing is known.
    np.testing.assert_allclose(holes.means, [2 / 3, 0.5, 0.5], rtol=1e-6)
    assert (holes.complete, holes.weighted, weighted.complete, weighted.weighted) == (False, False, True, True)
    plain = runs.Images(load_dataset("planted_spikes")).train
    assert plain.visible is plain.bits


def test_a_script_refuses_what_its_training_does_not_take(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = np.tile(np.linspace(0, 1, 4, dtype=np.float32), (20, 1))
    np.savez("weighted.npz", x=rows, weights=np.ones(20))
    np.savez("holes.npz", x=np.where(rows == 0, np.nan, rows))
    np.save("plain.npy", rows)
    np.save("bits.npy", rows > 0.5)

    class Taking(runs.Config):
        experiment = "some"
        takes = ("weights", "missing", "drawn")

    for name, how, told in (
        ("weighted.npz", {}, r"got dataset='weighted\.npz'; it takes examples without weights"),
        ("holes.npz", {}, r"got dataset='holes\.npz'; it takes examples without missing entries"),
        ("plain.npy", {"binarise": "sample"}, "got binarise=sample; it takes threshold here"),
    ):
        with pytest.raises(SettingError, match=told):
            Own(dataset=name, **how).images()
        assert Taking(dataset=name, **how).images().num_visible == 4
    with pytest.raises(SettingError, match="got binarise=sample; it takes threshold, as the values are bits"):
        Taking(dataset="bits.npy", binarise="sample").images()


def test_a_run_goes_on_with_the_same_data_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("spikes.npy", np.eye(20, dtype=np.int8))
    runs.carry_out(Own(dataset="spikes.npy"), lambda folder, stops: ({"a": 1}, ""))
    assert runs.carry_out(Own(dataset="spikes.npy"), lambda folder, stops: ({"a": 2}, ""))["a"] == 1
    np.save("spikes.npy", np.ones((20, 20), np.int8))
    with pytest.raises(UsageError, match=r"got --dataset=spikes\.npy, whose contents have changed since the run in"):
        runs.carry_out(Own(dataset="spikes.npy"), lambda folder, stops: ({"a": 3}, ""))


def test_a_file_that_is_called_as_what_a_script_draws_is_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glass").write_text("")
    config = ising_recovery.Config(dataset="glass")
    assert not config.found
    assert "dataset_sha256" not in config.described()


def test_runs_of_other_data_are_described_as_before(tmp_path):
    assert set(Own().described()) == {"dataset", "data_dir", "seed", "workdir"}
    assert runs.Images(load_dataset("planted_spikes")).described == {"dataset": "planted_spikes"}
    assert Own(dataset="tfds:cifar10").described().keys() >= {"split", "split_seed", "values", "array"}
    with pytest.raises(DatasetError, match=r"got gone\.npy, which does not exist"):
        Own(dataset="gone.npy").images()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"dataset": "mnits"}, "got dataset=mnits; it takes one of digits_8x8, "),
        ({"split_seed": 1}, "got split_seed=1; it takes nothing, as mnist is no file"),
        ({"dataset": "a.npy", "split": (0.5, 0.2, 0.2)}, r"got split=\(0.5, 0.2, 0.2\); it takes three positive"),
        ({"dataset": "a.npy", "split": (0.5, 0.5)}, "got split="),
        ({"dataset": "a.npy", "values": "words"}, "got values=words; it takes one of auto, bits, spins, prob"),
    ],
)
def test_settings_of_data_are_checked(given, told):
    with pytest.raises(SettingError, match=told):
        Own(**given)


def test_more_than_the_memory_is_refused():
    runs.check_memory("hidden", 3, lambda: jnp.zeros((3, 5)))
    runs.check_memory("num_samples", 3, 10**6, times=4)
    with pytest.raises(SettingError, match=r"got hidden=9; it takes what fits into the .* GiB of memory; this needs"):
        runs.check_memory("hidden", 9, lambda: jnp.zeros((10**6, 10**8)))
    # What JAX cannot even describe.
    with pytest.raises(SettingError, match="got hidden="):
        runs.check_memory("hidden", 10**12, lambda: jax.random.normal(jax.random.key(0), (784, 10**12)))
    with pytest.raises(SettingError, match="got num_samples="):
        runs.check_memory("num_samples", 3, 10**6, times=10**12)


def test_seeds_stay_below_their_end():
    class Config(runs.SeedsConfig):
        experiment = "none"

    assert Config(seed=2**32 - 10).seeds[-1] == 2**32 - 1
    for given in ({"seed": 2**32 - 9}, {"seed": 2**32}, {"seed": -1}, {"num_seeds": 0}, {"num_seeds": 100_001}):
        with pytest.raises(SettingError):
            Config(**given)


def test_what_is_refused_late_leaves_no_run_that_holds_one_to_it(tmp_path):
    class Config(runs.Config):
        experiment = "none"

    def work(folder, stops):
        raise SettingError("seed", 3, "another one, as this leaves a bin empty")

    config = Config(seed=3, workdir=str(tmp_path / "run"))
    with pytest.raises(SettingError, match="leaves a bin empty"):
        runs.carry_out(config, work)
    other = Config(seed=4, workdir=str(tmp_path / "run"))
    assert runs.carry_out(other, lambda folder, stops: ({"a": 1}, "table"))["a"] == 1
    # A run that was there stays what it is.
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(SettingError, match="leaves a bin empty"):
        runs.carry_out(other, work)
    assert read_json(tmp_path / "run" / "config.json")["seed"] == 4
