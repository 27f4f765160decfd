"""Programs on data of every kind of unit: trained, sampled, scored, repaired and looked at, in the form of the data.

Not here: bits (tests/app/test_training.py, tests/app/test_model_commands.py), how values are recognised
(tests/data/test_files.py).
"""

import csv
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vpf_jax
from vpf_jax import units
from vpf_jax.app import inspection, repairing, sampling, scoring, training
from vpf_jax.checks import SettingError
from vpf_jax.data import DatasetError
from vpf_jax.evaluate import scores
from vpf_jax.models import save_model

pytestmark = pytest.mark.usefixtures("blank_pictures")

TINY = {"epochs": 8, "batch_size": 20, "learning_rate": 0.02, "num_samples": 100, "hidden": (3,), "evaluate_every": 0}
RNG = np.random.default_rng(0)
KIND = RNG.random((500, 1)) < 0.5
COUNTS = RNG.poisson(np.where(KIND, [6, 1, 4, 0.5, 2], [1, 6, 0.2, 5, 2]))
REALS = RNG.normal(np.where(KIND, [1, -1, 2, 0, 1], [-1, 1, -2, 1, -1]), 1)
CODES = np.where(RNG.random((500, 5)) < 0.7, np.where(KIND, 1, 2), RNG.integers(0, 5, (500, 5)))
LETTERS = "-ACGT"
# The last variable has three words, the others five.
WORDS = tuple(f"{letter}, or so" for letter in "abcde")
CODES_OF_WORDS = np.minimum(CODES, [4, 4, 4, 4, 2])


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "COMPARED_SWEEPS", 20)


def written(kind):
    """The file of the data, and the flags that say what is in it."""
    if kind == "fasta":
        rows = ("".join(LETTERS[code] for code in row) for row in CODES)
        Path("family.fasta").write_text("".join(f">s{number}\n{row}\n" for number, row in enumerate(rows)))
        return "family.fasta", {}
    if kind == "words":
        with open("words.csv", "w", newline="") as file:
            csv.writer(file).writerows(
                [[f"v{i}" for i in range(5)], *([WORDS[k] for k in row] for row in CODES_OF_WORDS)]
            )
        return "words.csv", {}
    array, how = {"count": (COUNTS, {}), "gaussian": (REALS, {}), "categorical": (CODES, {"values": "categories"})}[
        kind
    ]
    np.save(f"{kind}.npy", array)
    return f"{kind}.npy", how


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "unit", "array", "suffix"),
    [
        ("count", "count", COUNTS, "npy"),
        ("gaussian", "gaussian", REALS, "csv"),
        ("categorical", "categorical(5)", CODES, "csv"),
        ("fasta", "categorical(5)", CODES, "fasta"),
        ("words", "groups(20 categorical(5) + 3 categorical(3))", CODES_OF_WORDS, "csv"),
    ],
)
def test_what_comes_in_comes_out(kind, unit, array, suffix, capsys):
    dataset, how = written(kind)
    summary = training.run(training.Config(dataset=dataset, workdir="run", **how, **TINY))
    model = vpf_jax.load_model("run/model.safetensors")
    assert model.stack[0].layer_units[0].name == unit
    assert model.stack[0].layer_units[1] == units.BINARY
    found = summary["log_likelihood_test"]
    assert found["mean"] > found["independent"] + 0.3
    assert found["log_z_standard_error"] == 0
    assert Path("run/comparison.png").exists()
    assert Path("run/filters.png").exists()
    capsys.readouterr()

    def read(path):
        if suffix == "npy":
            return np.load(path)
        if kind == "words":
            with open(path, newline="") as file:
                names, *rows = csv.reader(file)
            assert names == [f"v{i}" for i in range(5)]
            return np.array([[WORDS.index(word) for word in row] for row in rows])
        if suffix == "csv":
            return np.loadtxt(path, delimiter=",", skiprows=1)
        rows = Path(path).read_text().split()[1::2]
        return np.array([[LETTERS.index(letter) for letter in row] for row in rows])

    sampling.run(sampling.Config(model="run", number=200, steps=300, out=f"samples.{suffix}"))
    drawn = read(f"samples.{suffix}")
    assert drawn.shape == (200, 5)
    categories = "categorical" in unit
    states = np.eye(5)[drawn.astype(int)].reshape(200, -1)[:, : model.stack[0].sizes[0]] if categories else drawn
    errors = states.std(axis=0) / np.sqrt(200)
    assert (np.abs(states.mean(axis=0) - exact_means(model.stack[0])) < 5 * errors + 1e-2).all()
    if kind != "gaussian":
        assert (drawn == np.rint(drawn)).all()
        assert drawn.min() >= 0
        assert kind == "count" or drawn.max() < 5
    scoring.run(scoring.Config(model="run", data=dataset, out="scores.npy"))
    table = np.load("scores.npy")
    # What a unit is, given the others, is a sum where its values can be counted.
    summed = ("pseudo_log_likelihood",) if categories else ()
    assert table.dtype.names == ("log_likelihood", "free_energy", *summed)
    assert table["log_likelihood"].mean() == pytest.approx(found["mean"], abs=6 * found["sem"])
    # A file with holes is filled in, and what was there stays.
    mask = np.array([True, False, False, False, False])
    np.save("mask.npy", mask)
    for means in (True, False):
        out = f"repaired-{means}.{suffix}"
        repairing.run(repairing.Config(model="run", data=dataset, mask="mask.npy", steps=20, means=means, out=out))
        repaired = read(out)
        np.testing.assert_allclose(repaired[:, 1:], array[:, 1:].astype(np.float32), rtol=1e-6)
        guessed = np.abs(repaired[:, 0] - array[:, 0]).mean()
        assert not means or guessed < np.abs(np.median(array[:, 0]) - array[:, 0]).mean()
        assert kind in ("gaussian", "count") or set(np.unique(repaired[:, 0])) <= set(range(5))
    assert "500 of 2500 entries filled in" in capsys.readouterr().out
    inspection.run(inspection.Config("run"))
    assert f"machine 0: {model.stack[0].sizes[0]} - 3 {unit} and binary units\n" in capsys.readouterr().out
    if kind != "categorical":
        inspection.run(inspection.Config(dataset))
        told = capsys.readouterr().out
        assert told.startswith(f"{dataset}: 500 examples of 5 variables\n")
        assert told.endswith(f", for {unit} units\n")


@pytest.mark.slow
def test_a_run_on_counts_goes_on_to_the_same_bits():
    """With missing entries, whose draws come from the run's own numbers."""
    np.save("holes.npy", np.where(RNG.random(COUNTS.shape) < 0.1, np.nan, COUNTS))
    whole = training.Config(dataset="holes.npy", workdir="whole", **TINY)
    training.run(whole)
    for epochs in (3, 8):
        training.run(training.Config(dataset="holes.npy", workdir="parts", **TINY | {"epochs": epochs}))
    for name in ("whole", "parts"):
        assert (
            json.loads(Path(name, "summary.json").read_text())["log_likelihood_test"]["score"] == "log likelihood bound"
        )
    one, other = (vpf_jax.load_model(f"{name}/model.safetensors").stack for name in ("whole", "parts"))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_does_not_apply_is_refused():
    dataset, how = written("count")
    for given, told in (
        ({"model": "visible", "hidden": None}, "got model=visible; it takes one without weights between counts"),
        ({"evaluation": "parzen"}, "got evaluation=parzen; it takes likelihood, as the values are counts"),
        ({"binarise": "sample"}, "got binarise=sample; it takes threshold, as the values are counts"),
        ({"hidden_units": "potts"}, "got hidden_units=potts; it takes one of binary, spin, "),
        ({"model": "visible", "hidden": None, "hidden_units": "spin"}, "machine of one layer has no hidden units"),
    ):
        with pytest.raises(SettingError, match=told):
            training.run(training.Config(dataset=dataset, **how, **TINY | given))
    save_model("model.safetensors", (machine_of("count"),), {})
    model = {"model": "model.safetensors"}
    with pytest.raises(SettingError, match="got values=bits; it takes auto, as the units are count"):
        scoring.run(scoring.Config(**model, data=dataset, values="bits"))
    np.save("half.npy", COUNTS / 2)
    with pytest.raises(DatasetError, match=r"half\.npy, whose array holds .*\.5 in row .* whole numbers of at least 0"):
        scoring.run(scoring.Config(**model, data="half.npy"))
    with pytest.raises(
        SettingError, match=r"got out='s\.fasta'; it takes a file .*, as the model is not one of letters"
    ):
        sampling.run(sampling.Config(**model, out="s.fasta"))


def machine_of(kind, seed=0):
    """Five visible units of a kind, or five of four values, over three bits, with parameters that matter."""
    unit = units.get(kind)
    machine = vpf_jax.init_machine(jax.random.key(seed), (5 * unit.width, 3), units=(unit, units.BINARY))
    return jax.tree.map(lambda a: a + 0.3 * jax.random.normal(jax.random.key(9), a.shape), machine)


def exact_means(machine):
    """Of visible units, by the sum over the states of three hidden bits."""
    hidden = ((np.arange(8)[:, None] >> np.arange(3)) & 1).astype(np.float32)
    fields = machine.biases[0][None] + hidden @ machine.weights[0].T
    unit = machine.layer_units[0]
    logs = np.asarray(hidden @ machine.biases[1] + unit.log_normaliser(fields).sum(axis=1), np.float64)
    law = np.exp(logs - np.logaddexp.reduce(logs))
    return law @ np.asarray(unit.mean(fields), np.float64)


def log_density(machine, log_z):
    """Of every joint state of three bits and some visible ones, by the energy as it is written, in double precision."""
    weights, below, above = (np.asarray(a, np.float64) for a in (machine.weights[0], *machine.biases))
    hidden = (np.arange(8)[:, None] >> np.arange(3)) & 1
    unit = machine.layer_units[0]

    def of(v):
        own = np.asarray(unit.own_energy(jnp.asarray(v, jnp.float32)), np.float64)
        joint = (v @ weights + above) @ hidden.T + (v @ below - np.broadcast_to(own, v.shape).sum(axis=1))[:, None]
        return np.logaddexp.reduce(joint, axis=1) - log_z

    return of


@pytest.mark.parametrize("kind", ["count", "gaussian", "categorical(4)"])
def test_scores_and_bounds_of_what_is_missing(kind):
    """Against sums over the hidden bits, and, of a missing unit, over its values or a fine grid of them."""
    machine, rng = machine_of(kind), np.random.default_rng(1)
    unit = machine.layer_units[0]
    log_z = scores.log_partition(jax.random.key(0), (machine,), example(kind, rng, 2), 10, 10)
    assert log_z.standard_error == 0
    of = log_density(machine, log_z.value)
    v = example(kind, rng, 6)
    found = scores.scores(jax.random.key(1), (machine,), v, log_z.value)
    np.testing.assert_allclose(found["log_likelihood"], of(v.astype(float)), atol=1e-4)
    summed = {"pseudo_log_likelihood"} if unit.all_values() is not None else set()
    assert set(found) == {"log_likelihood", "free_energy"} | summed
    # The first unit is missing: the sum, or integral, over its values.
    grid = {"count": np.arange(60.0)[:, None], "gaussian": np.linspace(-30, 30, 4001)[:, None]}.get(kind, np.eye(4))
    step = 60 / 4000 if kind == "gaussian" else 1
    missing = np.zeros(v.shape, bool)
    missing[:, : unit.width] = True
    bound = scores.scores(jax.random.key(1), (machine,), v, log_z.value, missing)["log_likelihood_bound"]
    rest = np.array(
        [np.logaddexp.reduce(of(np.hstack([grid, np.tile(row[unit.width :], (len(grid), 1))]))) for row in v]
    )
    # One unit of five drawn a hundred times.
    np.testing.assert_allclose(bound, rest + np.log(step), atol=0.1)
    if unit.width > 1:
        missing[:, 0] = False
        with pytest.raises(ValueError, match=r"some entries of a unit; it takes all entries of a unit or none"):
            scores.scores(jax.random.key(1), (machine,), v, log_z.value, missing)


def example(kind, rng, count):
    if kind == "count":
        return rng.poisson(2, (count, 5)).astype(np.uint8)
    if kind == "gaussian":
        return rng.normal(0, 1, (count, 5)).astype(np.float32)
    return np.eye(4, dtype=np.uint8)[rng.integers(0, 4, (count, 5))].reshape(count, 20)


@pytest.mark.slow
@pytest.mark.parametrize("hidden", ["spin", "normal", "rectified", "categorical(3)"])
def test_hidden_units_of_other_kinds_learn_and_are_kept(hidden):
    """Of bits, which any kind of hidden unit may be joined to: better than independent units, and read again."""
    np.save("bits.npy", (COUNTS > 2).astype(np.uint8))
    tiny = TINY | {"epochs": 40, "rule": "cd", "learning_rate": 0.05}
    summary = training.run(training.Config(dataset="bits.npy", hidden_units=hidden, workdir="run", **tiny))
    found = summary["log_likelihood_test"]
    assert found["mean"] > found["independent"] + 0.3
    (machine,) = vpf_jax.load_model("run/model.safetensors").stack
    assert machine.layer_units[1] == units.get(hidden)
    assert machine.sizes[1] == 3 * units.get(hidden).width
