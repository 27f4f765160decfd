"""Recovery of couplings: fits of several seeds, what a run leaves, resuming, wrong settings."""

import itertools
import json
import re
import signal
from pathlib import Path

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import programs
import pytest
import quick_compile

from experiments import ising_recovery
from experiments.ising_recovery import Config
from vpf_jax.app import folder as workdir
from vpf_jax.app.folder import Stopped
from vpf_jax.checks import SettingError
from vpf_jax.data import load_dataset
from vpf_jax.settings import options
from vpf_jax.spin_glass import shrink_images

ROOT = Path(__file__).parents[2]
RULES = tuple(ising_recovery.TITLES)
# The quick settings of the module's docstring, and smaller ones still.
QUICK = ["--size=6", "--sample_sizes=300,1000,3000", "--num_seeds=2", "--sampler_chains=600"]
TINY = {
    "size": 3,
    "sample_sizes": (50, 200),
    "num_seeds": 2,
    "sampler_chains": 100,
    "sampler_burn_in": 20,
    "temperatures": 3,
    "pcd_chains": 20,
    "pcd_steps": 30,
}


def fitting(**changed):
    return Config(**TINY | changed).fitting()


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_seeds_fitted_together_agree_with_one_alone(rule):
    samples = jnp.asarray(np.random.default_rng(1).integers(0, 2, (3, 200, 9), dtype=np.uint8))
    together = fitting(num_seeds=3, seeds_at_once=3).fit(rule, samples)[0].glass.couplings
    alone = fitting(num_seeds=1, seed=1).fit(rule, samples[1:2])[0]
    np.testing.assert_allclose(together[1], alone.glass.couplings[0], atol=1e-3)
    assert jnp.abs(together[1] - together[0]).max() > 0.01


def test_seeds_have_chains_of_their_own():
    samples = jnp.asarray(np.random.default_rng(1).integers(0, 2, (200, 9), dtype=np.uint8))
    found, _ = fitting().fit("pcd", jnp.stack([samples, samples]))
    assert jnp.abs(found.glass.couplings[0] - found.glass.couplings[1]).max() > 1e-3


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run without interruption."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    config = Config(workdir=str(folder), **TINY)
    return folder, config, ising_recovery.run(config)


def comparable(summary):
    """What does not depend on the clock."""
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in summary["rows"]]
    return summary | {"rows": rows}


@pytest.mark.slow
def test_a_run_leaves_everything_it_promises(straight):
    folder, config, summary = straight
    assert {p.name for p in folder.iterdir()} == {
        "config.json",
        "fits",
        "recovery.png",
        "samples",
        "summary.json",
        "files.sha256",
        ".lock",
        "report.html",
        "table.md",
    }
    assert {p.name for p in (folder / "samples").iterdir()} == {"glass-0.npz", "glass-1.npz"}
    assert {p.name for p in (folder / "fits").iterdir()} == {
        f"{rule}-{n}.npz" for rule in config.rules for n in config.sample_sizes
    }
    assert json.loads((folder / "summary.json").read_text()) == summary
    rows = {(row["rule"], row["num_samples"]): row for row in summary["rows"]}
    assert set(rows) == set(itertools.product(config.rules, config.sample_sizes))
    for row in rows.values():
        assert 0 < row["error"]["mean"] < 3
        assert row["error"]["sem"] > 0
        assert row["seconds"] > 0
        assert row["converged"] == (None if row["rule"] == "pcd" else 2)
    assert all(rows[rule, 200]["error"]["mean"] < rows[rule, 50]["error"]["mean"] for rule in config.rules)
    assert 0 < summary["sampler"]["mean_disagreement_of_starts"] < 3
    assert len((folder / "table.md").read_text().splitlines()) == 2 + 2 + 6
    assert matplotlib.image.imread(folder / "recovery.png").shape[0] > 100


@pytest.mark.slow
def test_a_finished_run_says_so_and_is_left_as_it_is(straight, capsys):
    folder, config, summary = straight
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != "config.json"}
    assert ising_recovery.run(config) == summary
    assert "finished already" in capsys.readouterr().out
    assert all(p.stat().st_mtime_ns == time for p, time in before.items() if p != folder)


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_numbers(straight, tmp_path, monkeypatch, capsys):
    folder, _, summary = straight
    other = Config(workdir=str(tmp_path / "run"), **TINY)
    fit = ising_recovery.Fitting.fit

    def stop_in_the_third(self, rule, samples):
        if len(list((tmp_path / "run" / "fits").glob("*.npz"))) == 2:
            signal.raise_signal(signal.SIGTERM)
        return fit(self, rule, samples)

    with monkeypatch.context() as patch:
        patch.setattr(ising_recovery.Fitting, "fit", stop_in_the_third)
        with pytest.raises(Stopped, match="fit 3 of 6 is saved, start again to resume"):
            ising_recovery.run(other)
    assert not (tmp_path / "run" / "summary.json").exists()
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("*/*.npz")}
    assert len(kept) == 2 + 3
    assert comparable(ising_recovery.run(other)) == comparable(summary)
    assert "resuming after fit 3 of 6" in capsys.readouterr().out
    assert all(p.stat().st_mtime_ns == time for p, time in kept.items())
    for file in (folder / "fits").iterdir():
        with np.load(file) as one, np.load(tmp_path / "run" / "fits" / file.name) as same:
            for name in {*one.files} - {"seconds"}:
                np.testing.assert_array_equal(one[name], same[name])


@pytest.fixture
def optimised():
    """What a test compiles runs as fast as it does for users."""
    quick_compile.optimise(True)
    yield
    quick_compile.optimise(False)


@pytest.mark.slow
def test_the_quick_setting_of_the_docstring_recovers_the_couplings(tmp_path, optimised):
    command = re.search(r"ising_recovery (--size\S+ .*?) --workdir", ising_recovery.__doc__, re.DOTALL)
    assert command[1].replace("\\", " ").split() == QUICK
    done = programs.start_here("ising_recovery", *QUICK, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    summary = workdir.read_json(tmp_path / "run" / "summary.json")
    assert abs(summary["sampler"]["mean_disagreement_of_starts"] - 1) < 0.1
    for rule in RULES:
        found = [row["error"]["mean"] for row in summary["rows"] if row["rule"] == rule]
        assert found[0] > found[1] > found[2]
        assert found[2] < 0.06


@pytest.mark.slow
def test_images_are_fitted_with_the_quick_setting(tmp_path, optimised):
    quick = [flag for flag in QUICK if not flag.startswith(("--size", "--sampler_chains", "--sample_sizes"))]
    quick += ["--sample_sizes=3000"]
    done = programs.start_here("ising_recovery", *quick, "--dataset=mnist_5k", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    summary = workdir.read_json(tmp_path / "run" / "summary.json")
    images = shrink_images(load_dataset("mnist_5k").test.examples, (28, 28), 10)
    means = np.clip(images.mean(axis=0), 1e-3, 1 - 1e-3)
    independent = np.mean(np.sum(np.where(images, np.log(means), np.log(1 - means)), axis=1))
    scores = {row["rule"]: row["held_out"]["mean"] for row in summary["rows"]}
    assert set(scores) == set(RULES)
    # The pixels are far from independent, even where independent ones are told the means of the test images.
    assert all(independent * 2 / 3 < score < 0 for score in scores.values())
    assert len(summary["agreement"]) == 3
    assert all(0.3 < row["correlation"]["mean"] < 1 for row in summary["agreement"])
    assert summary["sampler"] is None


def test_more_samples_than_images_are_refused(tmp_path):
    config = Config(dataset="mnist_5k", sample_sizes=(100, 4001), workdir=str(tmp_path / "run"))
    with pytest.raises(
        SettingError, match="got sample_sizes=4001; it takes up to 4000, as mnist_5k has 4000 training images"
    ):
        ising_recovery.run(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "cifar"}, "got dataset=cifar; it takes one of glass, digits_8x8, mnist_5k, mnist, fashion_mnist"),
        ({"rules": ("mpf", "cd")}, "it takes some of mpf, pl, pcd, each once"),
        ({"rules": ("pl", "pl")}, "got rules=.*each once"),
        ({"rules": ()}, "got rules=.*each once"),
        ({"sample_sizes": (100, 100)}, "got sample_sizes=.*; it takes increasing positive integers"),
        ({"sample_sizes": (0, 100)}, "got sample_sizes="),
        ({"size": 1}, "got size=1; it takes an integer from 2 to 28"),
        ({"size": 29}, "got size=29"),
        ({"coupling_std": 0.0}, "got coupling_std=0.0; it takes a positive finite number"),
        ({"coupling_std": float("nan")}, "got coupling_std=nan"),
        ({"tolerance": -1.0}, "got tolerance=-1.0"),
        ({"pcd_rate": float("inf")}, "got pcd_rate=inf"),
        ({"penalty": -1.0}, "got penalty=-1.0; it takes a finite number of at least 0"),
        ({"num_seeds": 0}, "got num_seeds=0; it takes an integer from 1 to 100000"),
        ({"seed": -1}, "got seed=-1"),
        ({"seed": 2**32 - 5}, "got seed=4294967291; it takes up to 4294967286, as 10 seeds count up from it"),
        ({"seeds_at_once": -1}, "got seeds_at_once=-1"),
        ({"max_steps": 0}, "got max_steps=0"),
        ({"pcd_chains": 0}, "got pcd_chains=0"),
        ({"pcd_steps": 0}, "got pcd_steps=0"),
        ({"sampler_chains": 99}, "got sampler_chains=99; it takes an even integer"),
        ({"sampler_burn_in": 0}, "got sampler_burn_in=0"),
        ({"sampler_thin": 0}, "got sampler_thin=0"),
        ({"dataset": "mnist_5k", "temperatures": 9}, "got temperatures=9; it takes nothing, as images are not drawn"),
        ({"rules": ("mpf",), "pcd_rate": 1.0}, "got pcd_rate=1.0; it takes nothing, as it belongs to rule pcd"),
        ({"temperatures": 1}, "got temperatures=1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        Config(**settings)


def test_defaults_depend_on_the_data():
    assert Config().sample_sizes[-1] == 100_000
    assert Config(dataset="mnist_5k").sample_sizes == (1000, 4000)
    assert Config(dataset="mnist_5k", seed=3).folder == Path("runs/ising_recovery-mnist_5k-seed3")


def test_the_command_explains_its_flags_and_refuses_wrong_ones_in_one_line():
    told = programs.start_here("ising_recovery", "--help").stdout
    assert all(f"--{name}:" in told for name in options(Config))
    wrong = programs.start_here("ising_recovery", "--sample_sizes=many")
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1
    assert "--sample_sizes=many; it takes" in wrong.stderr
