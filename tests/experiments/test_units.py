"""The experiments on kinds of units: planted laws against sums over states, quick runs, resuming, wrong input."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import assert_close, in_float64
from programs import SMALL, quick_flags, start_here

import vpf_jax
from experiments import planted_units, unit_machines
from vpf_jax.app import runs
from vpf_jax.data import load_dataset

SCRIPTS = {"planted_units": planted_units, "unit_machines": unit_machines}


@pytest.mark.parametrize("name", ["spin", "categorical4", "categorical21"])
def test_a_planted_law_has_the_partition_function_of_the_library(name):
    machine = planted_units.plant(planted_units.KINDS[name], 3)
    assert_close(planted_units.law(machine).log_z, vpf_jax.log_partition_exact(machine), 1e-5)


@in_float64
def test_the_law_of_bits_and_real_numbers_is_an_integral():
    """On a grid, of two bits and two reals."""
    unit = vpf_jax.units.Groups(((vpf_jax.units.BINARY, 2), (vpf_jax.units.GAUSSIAN, 2)))
    kind = planted_units.Kind("small", unit, 4, (0.2, 0.4), 0.4)
    machine = planted_units.plant(kind, 0)
    found = planted_units.law(machine)
    line, step = np.linspace(-12, 12, 401, retstep=True)
    grid = np.array(list(itertools.product((0, 1), (0, 1), line, line)))
    energies = np.asarray(jax.vmap(lambda v: vpf_jax.energy(machine, (v,)))(jnp.asarray(grid)))
    weights = np.exp(-energies) * step**2
    assert_close(found.log_z, np.log(weights.sum()), 1e-6)
    drawn = np.asarray(found.sample(jax.random.key(0), 40_000))
    wanted, second = weights @ grid / weights.sum(), weights @ grid**2 / weights.sum()
    error = np.sqrt((second - wanted**2) / len(drawn))
    np.testing.assert_array_less(np.abs(drawn.mean(axis=0) - wanted), 4.5 * error)
    held = (drawn[:, 2] * drawn[:, 3]).mean()
    assert abs(held - weights @ (grid[:, 2] * grid[:, 3]) / weights.sum()) < 0.05


def test_real_units_without_a_distribution_are_said():
    """Planted ones have one, however strong the couplings."""
    unit = vpf_jax.units.Groups(((vpf_jax.units.BINARY, 1), (vpf_jax.units.GAUSSIAN, 2)))
    machine = planted_units.plant(planted_units.Kind("small", unit, 3, (0.0, 1.0), 3.0), 0)
    assert np.isfinite(planted_units.law(machine).log_z)
    with pytest.raises(FloatingPointError, match="no distribution"):
        planted_units.law(dataclasses.replace(machine, own=(jnp.zeros(3),)))


@pytest.mark.slow
def test_chains_of_counts_do_not_escape_from_the_start():
    """From couplings at random they do, and PCD does not come back in so few steps."""
    kind = planted_units.KINDS["count"]
    truth = planted_units.plant(kind, 0)
    samples = planted_units.law(truth).sample(jax.random.key(1), 3000).astype(kind.unit.dtype)
    settings = planted_units.Fitting(("pcd",), (3000,), 2, 1500, 0.01, 100).settings("pcd", 3000)
    found, _ = planted_units.fit(kind, settings, samples, 0)
    assert planted_units.compare(found, truth)["error"] < 0.05


def test_a_fit_without_a_distribution_scores_nan(monkeypatch):
    """And what is measured of its couplings stays."""
    kind = planted_units.KINDS["gaussian"]
    truth = planted_units.plant(kind, 0)
    wide = dataclasses.replace(truth, own=(truth.own[0] - 9,))
    monkeypatch.setattr(planted_units, "fit", lambda *_: (wide, 1.0))
    fitting = planted_units.Fitting(("mpf",), (100,), 10, 1, 0.01, 100)
    (row,) = planted_units.measure("gaussian", fitting, 0, 0)["mpf"]
    assert np.isnan(row["loss"])
    assert row["error"] == 0


@pytest.mark.slow
def test_planted_couplings_are_found_from_many_samples(tmp_path):
    short = {"num_seeds": 1, "steps": 300, "learning_rate": 0.03, "workdir": str(tmp_path)}
    config = planted_units.Config(kinds=("spin",), rules=("mpf", "pcd"), sample_sizes=(300, 3000), **short)
    rows = planted_units.run(config)["rows"]
    for row in rows:
        if row["num_samples"] == 3000:
            assert row["correlation"][0] > 0.95, row
            assert row["loss"][0] > -0.1, row
    errors = {(row["kind"], row["rule"], row["num_samples"]): row["error"][0] for row in rows}
    for kind, rule in itertools.product(config.kinds, config.rules):
        assert errors[kind, rule, 3000] < errors[kind, rule, 300] / 1.5


@pytest.fixture(scope="module", params=SCRIPTS)
def quick(request, tmp_path_factory):
    """A run of each script with the quick flags of its docstring."""
    name = request.param
    workdir = tmp_path_factory.mktemp("quick") / name
    flags = [*quick_flags(SCRIPTS[name]), f"--workdir={workdir}"]
    if name == "unit_machines":
        flags += ["--forms=levels,whitened", f"--dataset={SMALL}", "--noise=0.2", "--num_temperatures=500"]
    return name, workdir, flags, start_here(name, *flags)


@pytest.mark.slow
def test_the_quick_setting_writes_its_table_and_summary(quick):
    name, workdir, _, ended = quick
    assert ended.returncode == 0, ended.stderr
    summary = json.loads((workdir / "summary.json").read_text())
    table = (workdir / "table.md").read_text()
    assert "nan" not in table
    assert table in ended.stdout
    pictures = {path.name for path in workdir.glob("*.png")}
    if name == "planted_units":
        assert pictures == {"recovery-spin.png", "recovery-count.png"}
        assert {len(row["error"]) for row in summary["rows"]} == {2}
    else:
        forms = ("levels", "whitened")
        assert pictures == {f"{what}-{form}-cd10.png" for what in ("samples", "filters") for form in forms}
        assert all(np.isfinite(one["log_likelihood"]) for row in summary["rows"] for one in row["runs"])


@pytest.mark.slow
def test_a_finished_run_says_so_and_a_lost_measurement_is_made_again(quick):
    name, workdir, flags, ended = quick
    assert ended.returncode == 0, ended.stderr
    again = start_here(name, *flags)
    assert "finished" in again.stdout
    summary = json.loads((workdir / "summary.json").read_text())
    (workdir / "summary.json").unlink()
    lost = sorted((workdir / "evaluations").glob("*-1.json"))[0]
    lost.unlink()
    assert start_here(name, *flags).returncode == 0
    after = json.loads((workdir / "summary.json").read_text())
    for found in (summary, after):
        for row in found["rows"]:
            row.pop("seconds", None)
            for one in row.get("runs", ()):
                one.pop("seconds")
    assert after["rows"] == summary["rows"]


@pytest.mark.slow
def test_forms_of_images_are_values_of_their_units():
    images = runs.Images(load_dataset("digits_8x8"))
    for name in unit_machines.FORMS:
        data = unit_machines.form(name, images, noise=0.1)
        data.unit.check(name, data.train)
        data.unit.check(name, data.test)
        grey = data.grey(np.asarray(data.test[:50], np.float64))
        assert grey.shape == (50, 64)
        # Back to what they were, but for thresholds, steps of shades and noise.
        assert np.abs(grey - np.asarray(images.test.grey[:50])).mean() < {"bits": 0.2, "spins": 0.2}.get(name, 0.1)
    white = unit_machines.form("whitened", images, noise=0.1)
    np.testing.assert_allclose(np.cov(np.asarray(white.train).T), np.eye(64), atol=2e-3)


def test_hidden_units_of_uncorrelated_data_are_seldom_on():
    """Relative to off, exp(-2) of the time given anything that is normal, in weights of the stated deviation."""
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(20_000, 16)), jnp.float32)
    data = unit_machines.Form(vpf_jax.units.GAUSSIAN, values, values, None, None, uncorrelated=True)
    machine = unit_machines.start(0, data, 64)
    assert abs(float(jnp.std(machine.weights[0])) - 0.3) < 4.5 * 0.3 / np.sqrt(2 * 16 * 64)
    odds = np.exp(np.asarray(values @ machine.weights[0]) + np.asarray(machine.biases[1]))
    error = odds.std(axis=0) / np.sqrt(len(odds))
    np.testing.assert_array_less(np.abs(odds.mean(axis=0) - np.exp(-2)), 4.5 * error)


def test_patches_are_parts_of_pictures():
    data = load_dataset("patches")
    assert data.shape == (12, 12)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [8000, 1000, 1000]
    assert 0 <= data.train.examples.min() < 0.1
    assert 0.9 < data.train.examples.max() <= 1
    np.testing.assert_array_equal(data.test.examples, load_dataset("patches").test.examples)
