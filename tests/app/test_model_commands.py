"""The commands for trained models: what they write against enumeration, the forms of files, nothing overwritten.

Not here: commands that are wrong (tests/hostile/test_commands.py), the commands in the wheel (tests/test_package.py).
"""

import csv
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import oracles
import pytest
from families import CASES, each_case

import vpf_jax
from vpf_jax import units
from vpf_jax.app import features, inspection, repairing, sampling, scoring
from vpf_jax.app.exchange import read_model
from vpf_jax.app.folder import UsageError, write_json
from vpf_jax.checkpoint import save_checkpoint
from vpf_jax.checks import SettingError
from vpf_jax.data import DatasetError
from vpf_jax.evaluate import scores
from vpf_jax.models import save_model


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kept(*machines, name="model.safetensors", **about):
    save_model(name, machines, about)
    return name


def single(name):
    """A case as a machine in single precision."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), CASES[name].machine)


def law_of_visible(name):
    """All visible vectors and their probabilities."""
    case = CASES[name]
    states, count = case.all_states(), case.sizes[0]
    law = oracles.probabilities(case.flat)
    visible, inverse = np.unique(states[:, :count], axis=0, return_inverse=True)
    return visible, np.bincount(inverse.ravel(), weights=law)


def saved(array, name="data.npy"):
    np.save(name, array)
    return name


@pytest.mark.parametrize("name", ["visible-moderate", "rbm-moderate", "semi_restricted-moderate", "intra_dbm-moderate"])
def test_samples_follow_the_machine(name):
    model = kept(single(name))
    sampling.run(sampling.Config(model=model, number=3000, steps=40))
    drawn = np.load("samples.npy")
    assert drawn.dtype == np.uint8
    visible, law = law_of_visible(name)
    counts = np.array([(drawn == row).all(axis=1).sum() for row in visible])
    assert counts.sum() == 3000
    assert (np.abs(counts - 3000 * law) < 5 * np.sqrt(3000 * law * (1 - law)) + 1).all()


def test_samples_of_spins_and_means_and_stacks():
    machine = single("rbm-moderate")
    spins = kept(vpf_jax.with_units(machine, units.SPIN), name="spins.safetensors")
    sampling.run(sampling.Config(model=spins, number=40, steps=3, out="spins.npy"))
    assert set(np.unique(np.load("spins.npy"))) == {-1, 1}
    stack = kept(*vpf_jax.init_stack(jax.random.key(0), (6, 4, 3), intra=True))
    sampling.run(sampling.Config(model=stack, number=40, steps=3, out="stack.npy"))
    assert set(np.unique(np.load("stack.npy"))) == {0, 1}
    for model in (spins, stack):
        sampling.run(sampling.Config(model=model, number=5, steps=3, means=True, out="means.npy", overwrite=True))
        means = np.load("means.npy")
        assert means.dtype == np.float32
        assert (np.abs(means) < 1).all()
        assert len(np.unique(means)) > 5


def test_the_same_seed_draws_the_same_samples():
    model = kept(single("rbm-moderate"))
    found = []
    for seed in (0, 0, 1):
        sampling.run(sampling.Config(model=model, number=30, steps=3, seed=seed, overwrite=True))
        found.append(Path("samples.npy").read_bytes())
    assert found[0] == found[1] != found[2]


def test_tables_have_the_names_of_the_variables():
    model = kept(single("rbm-moderate"), data={"names": ["a", "b", "c, d", "e", "f"]})
    sampling.run(sampling.Config(model=model, number=3, steps=2, out="samples.csv"))
    with open("samples.csv", newline="") as file:
        names, *rows = csv.reader(file)
    assert names == ["a", "b", "c, d", "e", "f"]
    assert np.isin(np.array(rows), ["0", "1"]).all()
    assert len(rows) == 3


def test_samples_of_images_become_a_picture():
    stack = vpf_jax.init_stack(jax.random.key(0), (12, 4))
    model = kept(*stack, data={"shape": [3, 4]})
    sampling.run(sampling.Config(model=model, number=9, steps=2, out="samples.png"))
    assert matplotlib.image.imread("samples.png").shape[1] > 100
    model = kept(*stack, data={"shape": [12]})
    with pytest.raises(SettingError, match=r"ends in \.npy or \.csv, as the model is not one of images"):
        sampling.run(sampling.Config(model=model, out="samples.png", overwrite=True))


def columns(path):
    return np.load(path)


@each_case("visible", "rbm", "semi_restricted")
def test_scores_are_those_of_enumeration(case):
    model = kept(single(case.name))
    visible, law = law_of_visible(case.name)
    scoring.run(scoring.Config(model=model, data=saved(visible), out="scores.npy"))
    found = columns("scores.npy")
    assert found.dtype.names == ("log_likelihood", "free_energy", "pseudo_log_likelihood")
    np.testing.assert_allclose(found["log_likelihood"], np.log(law), atol=2e-5)
    np.testing.assert_allclose(np.diff(found["free_energy"]), -np.diff(np.log(law)), atol=2e-5)
    assert (found["pseudo_log_likelihood"] <= 0).all()


def test_scores_of_spins_are_those_of_bits(capsys):
    machine = single("semi_restricted-moderate")
    visible, law = law_of_visible("semi_restricted-moderate")
    model = kept(vpf_jax.with_units(machine, units.SPIN))
    scoring.run(scoring.Config(model=model, data=saved(2 * visible - 1)))
    with open("scores.csv", newline="") as file:
        found = [float(row["log_likelihood"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(found, np.log(law), atol=2e-5)
    told = capsys.readouterr().out
    assert "an exact sum" in told
    assert f"log likelihood: mean {np.log(law).mean():.3f} +- " in told


def test_a_long_sum_is_annealed_and_its_error_said(monkeypatch, capsys):
    visible, law = law_of_visible("rbm-peaked")
    monkeypatch.setattr(scores, "MOST_SUMMED", 0)
    model = kept(single("rbm-peaked"))
    scoring.run(
        scoring.Config(model=model, data=saved(visible), num_chains=500, num_temperatures=100, out="scores.npy")
    )
    told = capsys.readouterr().out
    assert "log Z of 8 units: annealing 500 chains over 100 temperatures" in told
    error = float(told.split(" +- ")[1].split()[0])
    assert 0 < error < 0.1
    off = columns("scores.npy")["log_likelihood"] - np.log(law)
    assert np.ptp(off) < 1e-4
    assert np.abs(off).max() < 5 * error


@pytest.mark.parametrize("deep", ["intra_dbm-moderate", "dbm-peaked"])
def test_of_deep_machines_and_stacks_bounds_are_told(deep):
    visible, law = law_of_visible(deep)
    scoring.run(scoring.Config(model=kept(single(deep)), data=saved(visible), out="scores.npy"))
    found = columns("scores.npy")
    assert found.dtype.names == ("log_likelihood_bound",)
    assert (found["log_likelihood_bound"] <= np.log(law) + 1e-5).all()
    assert np.abs(found["log_likelihood_bound"] - np.log(law)).max() < 2


def test_of_a_stack_the_bound_is_that_of_a_belief_network():
    stack = vpf_jax.init_stack(jax.random.key(0), (6, 4, 3), intra=True)
    data = saved(np.random.default_rng(0).integers(0, 2, (50, 6)))
    scoring.run(scoring.Config(model=kept(*stack), data=data, out="scores.npy"))
    found = columns("scores.npy")["log_likelihood_bound"]
    # Weights are small and biases 0: nearly uniform bits.
    assert abs(found.mean() + 6 * np.log(2)) < 0.5


@pytest.mark.parametrize("name", ["visible-moderate", "semi_restricted-moderate", "intra_dbm-moderate"])
@pytest.mark.parametrize("masked", [False, True])
def test_repair_draws_from_the_conditional(name, masked):
    visible, law = law_of_visible(name)
    example = np.tile(visible[5].astype(float), (3000, 1))
    if masked:
        mask = np.arange(example.shape[1]) < 2
        given = {"data": saved(example), "mask": saved(mask, "mask.npy")}
    else:
        example[:, :2] = np.nan
        given = {"data": saved(example)}
    repairing.run(repairing.Config(model=kept(single(name)), steps=30, means=False, **given))
    repaired = np.load("repaired.npy")
    assert repaired.dtype == np.uint8
    assert (repaired[:, 2:] == visible[5, 2:]).all()
    fits = (visible[:, 2:] == visible[5, 2:]).all(axis=1)
    share = law * fits / law[fits].sum()
    counts = np.array([(repaired == row).all(axis=1).sum() for row in visible])
    assert (np.abs(counts - 3000 * share) < 5 * np.sqrt(3000 * share * (1 - share)) + 1).all()


def test_repair_gives_means_inside_bands_and_whole_files(capsys):
    stack = vpf_jax.init_stack(jax.random.key(0), (12, 4, 3))
    model = kept(*stack, data={"shape": [3, 4]})
    bits = np.random.default_rng(0).integers(0, 2, (5, 12))
    repairing.run(repairing.Config(model=model, data=saved(bits), mask="left", steps=3))
    repaired = np.load("repaired.npy").reshape(5, 3, 4)
    inside = np.arange(4) < 2
    assert (repaired[..., ~inside] == bits.reshape(5, 3, 4)[..., ~inside]).all()
    assert ((repaired[..., inside] > 0) & (repaired[..., inside] < 1)).all()
    assert "30 of 60 entries filled in, by the bottom machine of 2" in capsys.readouterr().out
    with pytest.raises(
        UsageError, match=r"got data\.npy without missing entries, and no --mask; nothing is to be repair"
    ):
        repairing.run(repairing.Config(model=model, data="data.npy", out="other.npy"))


def test_features_are_the_means_of_hidden_units():
    stack = vpf_jax.init_stack(jax.random.key(0), (6, 4, 3), intra=True)
    bits = np.random.default_rng(0).integers(0, 2, (20, 6))
    first, second = (
        lambda x, machine=machine: (
            1 / (1 + np.exp(-(x @ np.asarray(machine.weights[0]) + np.asarray(machine.biases[1]))))
        )
        for machine in stack
    )
    features.run(features.Config(model=kept(*stack), data=saved(bits)))
    np.testing.assert_allclose(np.load("features.npy"), second(first(bits)), atol=1e-6)
    features.run(features.Config(model="model.safetensors", data="data.npy", layer=1, out="first.csv"))
    found = np.loadtxt("first.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(found, first(bits), atol=1e-6)
    assert Path("first.csv").read_text().startswith("h0,h1,h2,h3\n")


def test_nothing_is_overwritten_unless_that_is_asked_for():
    model = kept(single("rbm-moderate"))
    Path("samples.npy").write_text("mine")
    with pytest.raises(
        SettingError, match=r"got out='samples.npy'; it takes a file that is not there yet, or --overwrite=on"
    ):
        sampling.run(sampling.Config(model=model, number=2, steps=1))
    assert Path("samples.npy").read_text() == "mine"
    sampling.run(sampling.Config(model=model, number=2, steps=1, overwrite=True))
    assert np.load("samples.npy").shape == (2, 5)


def test_a_model_is_found_by_its_file_or_its_folder():
    machine = single("rbm-moderate")
    with pytest.raises(
        UsageError, match=r"holds no checkpoints; it takes the folder of a run, or a model\.safetensors"
    ):
        read_model(".")
    write_json(Path("config.json"), {"dataset": "spikes.npy"})
    save_checkpoint("checkpoints", 1, {"stack": (machine,)})
    assert read_model(".").about["data"] == {"name": "spikes.npy"}
    kept(machine, name="model-3.safetensors")
    with pytest.raises(UsageError, match=r"holds several models; it takes one of them: model-3\.safetensors"):
        read_model(".")
    kept(machine, rule="pcd")
    assert read_model(".").about == read_model("model.safetensors").about == {"rule": "pcd"}


def test_data_that_do_not_fit_are_refused():
    model = kept(single("rbm-moderate"), data={"name": "spikes"})
    config = scoring.Config(model=model, data=saved(np.zeros((3, 4))))
    with pytest.raises(
        DatasetError, match=r"data\.npy with 4 variables per example; the model .* takes 5, as its training"
    ):
        scoring.run(config)
    holes = np.zeros((3, 5))
    holes[1, 2] = np.nan
    deep = kept(*vpf_jax.init_stack(jax.random.key(0), (5, 4, 3)), name="deep.safetensors")
    with pytest.raises(
        UsageError, match=r"missing entries for machines of layer sizes \[\(5, 4\), \(4, 3\)\]; their score"
    ):
        scoring.run(dataclasses.replace(config, model=deep, data=saved(holes)))
    directed = kept(vpf_jax.untie(None, single("rbm-moderate")), name="directed.safetensors")
    with pytest.raises(UsageError, match="a directed machine, which has no likelihood"):
        scoring.run(dataclasses.replace(config, model=directed))
    with pytest.raises(SettingError, match=r"got layer=2; it takes from 1 to 1, as the model has 1 hidden layer$"):
        features.run(features.Config(model=model, data=config.data, layer=2))


def test_examples_with_missing_entries_are_scored_by_the_others():
    case, holes = CASES["rbm-moderate"], np.array([[0, 1, np.nan, 1, 0], [1, 1, 0, 0, 1]])
    scoring.run(scoring.Config(model=kept(single("rbm-moderate")), data=saved(holes)))
    (name, *found), law = Path("scores.csv").read_text().split(), np.exp(oracles.log_likelihoods(case.flat))
    assert name == "log_likelihood_bound"
    alike = (np.isnan(holes)[:, None] | (oracles.all_states(5) == holes[:, None])).all(axis=2)
    # One entry of a hundred draws each; the second example has none.
    np.testing.assert_allclose(np.array(found, float), np.log(alike @ law), atol=0.05)


def test_couplings_are_written():
    machine = single("visible-moderate")
    inspection.run(inspection.Config(kept(machine), couplings="couplings.npy"))
    np.testing.assert_allclose(np.load("couplings.npy"), machine.intra[0], atol=1e-6)
    deep = kept(*vpf_jax.init_stack(jax.random.key(0), (5, 4, 3)), name="deep.safetensors")
    with pytest.raises(UsageError, match="a stack of 2 machines; --couplings takes a single one"):
        inspection.run(inspection.Config(deep, couplings="others.npy"))


def test_what_there_is_is_told(capsys):
    kept(
        *vpf_jax.init_stack(jax.random.key(0), (5, 4, 3), intra=True),
        rule="vpf",
        data={"name": "spikes", "names": None},
    )
    inspection.run(inspection.Config("model.safetensors"))
    told = capsys.readouterr().out
    assert f"written by vpf_jax {vpf_jax.__version__}; its checksum is right" in told
    assert "machine 1: 4 - 3 binary units, weights inside layers 1\n" in told
    assert "rule: vpf\n" in told
    assert "data: name=spikes\n" in told
    write_json(Path("config.json"), {"dataset": "spikes", "epochs": 3, "hidden": None})
    write_json(Path("summary.json"), {"objective": 2.5, "samplers": []})
    inspection.run(inspection.Config("."))
    told = capsys.readouterr().out
    assert told.startswith(
        ".: a run, finished\nsettings: dataset=spikes, epochs=3\nresults: objective=2.5\nmodel.safet"
    )
    holes = np.array([[0, 1, np.nan], [1, 1, 1]])
    inspection.run(inspection.Config(saved(holes)))
    assert (
        capsys.readouterr().out == "data.npy: 2 examples of 3 variables\nbits, mean 0.8000\nmissing: 1 of 6 entries\n"
    )
    for path in ("gone", "empty"):
        Path("empty").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match=f"got {path}, (which does not exist|a folder without a run); it takes"):
            inspection.run(inspection.Config(path))
