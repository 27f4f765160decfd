"""The command that trains, on data that are no images: every machine, its likelihood, the model that it leaves.

What it does with digits is tested as `experiments.mnist_dbm` (tests/experiments/test_mnist_dbm.py), which it is.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from programs import start_here

import vpf_jax
from vpf_jax.app import training
from vpf_jax.checks import SettingError
from vpf_jax.data import Dataset, Part, register_source
from vpf_jax.evaluate import scores

pytestmark = pytest.mark.usefixtures("blank_pictures")

TINY = {"dataset": "words", "epochs": 8, "batch_size": 20, "num_samples": 50, "learning_rate": 0.05}
NAMES = ("a", "b", "c", "d", "e", "f", "g")


@register_source("words")
def words(name, data_dir):
    """Seven variables of two kinds of examples, without labels."""
    rng = np.random.default_rng(0)

    def part(count):
        kind = rng.random((count, 1)) < 0.5
        return Part((rng.random((count, 7)) < np.where(kind, 0.85, 0.15)).astype(np.float32))

    return Dataset(name, part(400), part(100), part(100), shape=(7,), names=NAMES)


@register_source("gaps")
def gaps(name, data_dir):
    """The same words, a fifth of their entries missing."""
    whole, rng = words(name, data_dir), np.random.default_rng(1)

    def part(of):
        missing = rng.random(of.examples.shape) < 0.2
        return Part(np.where(missing, 0, of.examples).astype(np.float32), missing=missing)

    return Dataset(name, part(whole.train), part(whole.validation), part(whole.test), shape=(7,))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "hidden", "machines"),
    [
        ("visible", None, [((7,), (0,))]),
        ("semi_restricted", (3,), [((7, 3), (0,))]),
        ("intra_dbm", (4, 3), [((7, 4), (1,)), ((4, 3), (1,))]),
    ],
)
def test_every_machine_trains_on_what_is_no_image(model, hidden, machines, folder, capsys):
    config = training.Config(model=model, hidden=hidden, evaluate_every=4, **TINY)
    summary = training.run(config)
    (run,) = (folder / "runs").iterdir()
    assert run.name == f"words-{model}-seed0"
    kept = vpf_jax.load_model(run / "model.safetensors")
    intra = [tuple(i for i, block in enumerate(machine.intra) if block is not None) for machine in kept.stack]
    assert [machine.sizes for machine in kept.stack] == [sizes for sizes, _ in machines]
    assert intra == [layers for _, layers in machines]
    for a, b in zip(jax.tree.leaves(kept.stack), jax.tree.leaves(vpf_jax.load_stack(run)), strict=True):
        np.testing.assert_array_equal(a, b)
    data = {"dataset": "words", "name": "words", "shape": [7], "names": list(NAMES), "num_examples": 400}
    assert kept.about["data"] == data
    assert "workdir" not in kept.about["settings"]
    found = summary["log_likelihood_test"]
    visible = words("words", None).test.examples.astype(np.uint8)
    log_z = scores.log_partition(jax.random.key(0), kept.stack, visible, 100, 100)
    assert found["log_z"] == pytest.approx(log_z.value)
    assert found["log_z_standard_error"] == 0
    assert found["independent"] == pytest.approx(-7 * np.log(2), abs=0.1)
    if model != "intra_dbm":
        assert found["score"] == "log likelihood"
        assert found["mean"] > found["independent"] + 0.3
    head, *rows = (run / "metrics.csv").read_text().splitlines()
    assert head.endswith(",log_likelihood_validation")
    assert [bool(row.rpartition(",")[2]) for row in rows] == ([False] * 3 + [True]) * 2
    assert (run / "filters.png").exists() == (model != "visible")
    assert (run / "samples.png").exists()
    assert json.loads((run / "summary.json").read_text()) == summary
    assert "of test examples" in capsys.readouterr().out


@pytest.mark.slow
def test_a_damaged_model_is_made_again(folder, capsys, caplog):
    config = training.Config(model="visible", **TINY)
    training.run(config)
    model = config.folder / "model.safetensors"
    sound = model.read_bytes()
    model.write_bytes(sound[:-1])
    training.run(config)
    assert "model.safetensors is damaged, and is now model.safetensors.damaged; it is made again" in caplog.text
    assert model.read_bytes() == sound


def test_what_is_evaluated_follows_from_the_data():
    few = training.Config(dataset="few")
    images = few.images()
    assert isinstance(few.evaluated_by(images), training.Parzen)
    assert isinstance(dataclasses.replace(few, evaluation="likelihood").evaluated_by(images), training.Likelihood)
    some = training.Config(dataset="words", model="dbm", weights="directed")
    assert isinstance(some.evaluated_by(some.images()), training.Parzen)
    with pytest.raises(SettingError, match="got evaluation=likelihood; it takes parzen for directed weights"):
        dataclasses.replace(some, evaluation="likelihood").evaluated_by(some.images())


def test_settings_that_do_not_fit_are_refused():
    for settings, told in (
        ({}, "got dataset=''; it takes one of"),
        (
            {"dataset": "words", "model": "visible", "hidden": (3,)},
            "it takes no hidden layer for visible",
        ),
        ({"dataset": "words", "model": "semi_restricted", "hidden": (3, 2)}, "one hidden layer for semi_restricted"),
        ({"dataset": "words", "model": "visible", "weights": "directed"}, "no weights between layers"),
    ):
        with pytest.raises(SettingError, match=told):
            training.Config(**settings)
    assert training.Config(dataset="words", model="dbm").recipe().hidden == (196, 196, 64)
    assert training.Config(dataset="words", model="visible").recipe().hidden == ()
    assert training.Config(dataset="words").folder == Path("runs", "words-rbm-seed0")


def test_the_library_lists_its_commands_and_their_flags(folder):
    listed = start_here("vpf_jax")
    for name in ("train", "sample MODEL", "score MODEL DATA"):
        assert name.split()[0] in listed.stdout
    told = start_here("vpf_jax train", "--help").stdout
    assert "visible has no hidden units" in " ".join(told.split())
    wrong = start_here("vpf_jax sing")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "got the command 'sing'; it takes one of train, sample" in wrong.stderr


@pytest.mark.slow
def test_missing_entries_are_learnt_around_and_scored_by_what_is_seen(folder, capsys):
    summary = training.run(training.Config(**TINY | {"dataset": "gaps", "model": "rbm", "hidden": (3,), "epochs": 40}))
    found = summary["log_likelihood_test"]
    assert found["score"] == "log likelihood bound"
    # Independent units know nothing of the two kinds of words.
    assert found["mean"] > found["independent"] + 5 * found["sem"] / 2
    assert "no comparison.png" in capsys.readouterr().out
    kept = vpf_jax.load_model(folder / "runs" / "gaps-rbm-seed0" / "model.safetensors")
    whole = words("words", None).test.examples.astype(np.uint8)
    log_z = scores.log_partition(jax.random.key(0), kept.stack, whole, 100, 100)
    exact = scores.scores(jax.random.key(1), kept.stack, whole, log_z.value)["log_likelihood"]
    # Not of words in which every missing entry is a 0.
    assert -4.85 < exact.mean() < -3.5


def test_no_parzen_score_of_what_is_missing(folder):
    with pytest.raises(SettingError, match=r"evaluation=.*likelihood, as validation or test examples have missing"):
        training.run(
            training.Config(**TINY | {"dataset": "gaps", "model": "rbm", "hidden": (3,), "evaluation": "parzen"})
        )


def test_examples_count_by_their_weights():
    values = np.array([1.0, 2.0, 4.0, 8.0])
    assert training.weighted_mean(values, None) == pytest.approx((3.75, values.std(ddof=1) / 2))
    mean, error = training.weighted_mean(values, np.array([0, 3, 1, 0]))
    assert (mean, error) == pytest.approx((2.5, np.sqrt((0.75 * 0.5) ** 2 + (0.25 * 1.5) ** 2)))
