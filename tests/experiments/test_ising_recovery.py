"""Recovery of couplings: units of spins and bits, the sampler, the limit of many samples, resuming, wrong settings."""

import functools
import itertools
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import oracles
import pytest

from experiments import ising_recovery
from experiments.ising_recovery import Config, Glass
from vpf_jax.app import folder as workdir
from vpf_jax.app.folder import Stopped, UsageError
from vpf_jax.data import load_dataset
from vpf_jax.rules import baselines

ROOT = Path(__file__).parents[2]
# The quick settings of the module's docstring, and smaller ones still.
QUICK = ["--sample_sizes=300,1000,3000", "--num_seeds=3", "--sampler_chains=600"]
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


def start(*arguments):
    command = [sys.executable, "-m", "experiments.ising_recovery", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def random_glass(num_units, seed=0):
    """Fields and couplings of all pairs."""
    rng = np.random.default_rng(seed)
    couplings = np.triu(0.4 * rng.normal(size=(num_units, num_units)), 1)
    return Glass(jnp.asarray(0.3 * rng.normal(size=num_units)), jnp.asarray(couplings))


def spin_energies(glass):
    """E(s) of all states, by the definition in spins."""
    s = 2 * oracles.all_states(len(glass.fields)) - 1
    h, j = (np.asarray(leaf, np.float64) for leaf in glass)
    return (
        np.array([-sum(j[a, b] * x[a] * x[b] for a, b in itertools.combinations(range(len(x)), 2)) for x in s]) - s @ h
    )


def spin_probabilities(glass):
    exponents = -spin_energies(glass)
    return np.exp(exponents - oracles.log_sum_exp(exponents))


def population(glass, size):
    """A sample in which every state stands as often as its probability says, up to rounding."""
    counts = np.round(size * spin_probabilities(glass)).astype(int)
    return jnp.asarray(np.repeat(oracles.all_states(len(glass.fields)), counts, axis=0).astype(np.uint8))


def divergence(truth, found):
    """KL(truth || found) by enumeration."""
    p, q = spin_probabilities(truth), spin_probabilities(found)
    return float(np.sum(p * np.log(p / q)))


@functools.cache
def compiled_fit(rule):
    """One compilation per rule and number of samples."""
    if rule == "pcd":
        settings = {"num_chains": 4000, "num_steps": 600, "rate": 0.2}
        return jax.jit(lambda x, decay: ising_recovery.fit_pcd(jax.random.key(7), x, penalty=decay, **settings))
    return jax.jit(lambda x, decay: ising_recovery.fit_flips(rule, x, penalty=decay, tolerance=1e-4, max_steps=300))


def fit(rule, samples, penalty=0.0):
    return compiled_fit(rule)(samples, penalty)


def largest_error(found, truth):
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(found, truth, strict=True))


def test_energies_in_spins_and_in_bits_differ_by_a_constant():
    with jax.enable_x64(True):
        glass = random_glass(6)
        machine = ising_recovery.to_machine(glass)
        flat = oracles.flatten(machine.biases, machine.weights, machine.intra)
        difference = oracles.energies(flat, oracles.all_states(6)) - spin_energies(glass)
        np.testing.assert_allclose(difference, difference[0], atol=1e-12)
        # Not both zero.
        assert np.ptp(spin_energies(glass)) > 1


@pytest.mark.parametrize("rule", ["mpf", "pl"])
def test_the_gradient_in_spins_is_that_of_the_objective(rule):
    with jax.enable_x64(True):
        glass = random_glass(5)
        samples = jnp.asarray(oracles.all_states(5)[::3])

        def objective(glass):
            return baselines.flip_estimate(rule, ising_recovery.to_machine(glass), samples).objective

        expected = jax.grad(objective)(glass)
        found = ising_recovery.spin_gradient(
            baselines.flip_estimate(rule, ising_recovery.to_machine(glass), samples).gradient
        )
        np.testing.assert_allclose(found.fields, expected.fields, atol=1e-12)
        np.testing.assert_allclose(found.couplings, np.triu(expected.couplings, 1), atol=1e-12)
        assert np.abs(found.couplings).max() > 0.1


def test_bonds_are_those_of_a_lattice_with_open_borders():
    there = ising_recovery.bonds(3)
    pairs = {(0, 1), (1, 2), (3, 4), (4, 5), (6, 7), (7, 8), (0, 3), (3, 6), (1, 4), (4, 7), (2, 5), (5, 8)}
    assert set(zip(*np.nonzero(there), strict=True)) == pairs
    glass = ising_recovery.draw_glass(jax.random.key(0), 10, 0.5)
    strengths = np.asarray(glass.couplings)[ising_recovery.bonds(10)]
    assert len(strengths) == 180
    assert np.count_nonzero(glass.couplings) == 180
    # Four standard errors of a standard deviation from 180 numbers.
    assert abs(strengths.std() / 0.5 - 1) < 4 / np.sqrt(360)


def test_samples_follow_the_glass():
    glass = ising_recovery.draw_glass(jax.random.key(3), 3, 0.8)
    draw = jax.jit(
        lambda key, glass: ising_recovery.sample_glass(
            key, glass, 3, num_draws=20, num_chains=2000, burn_in=50, thin=10, num_temperatures=4
        )
    )
    draws, acceptance = draw(jax.random.key(4), glass)
    assert draws.shape == (20, 2000, 9)
    assert 0.2 < acceptance.min()
    counts = np.bincount(oracles.state_numbers(np.asarray(draws).reshape(-1, 9)), minlength=512)
    fit = oracles.fit(counts, spin_probabilities(glass))
    assert fit.worst_state < 4.5
    assert abs(fit.chi_square) < 4
    # 36 pairs, not independent: the mean of 36 squares of standard normal numbers is within 0.94 of 1 (4 errors).
    assert ising_recovery.disagreement(np.asarray(draws)) < 2


def test_chains_that_differ_or_remember_disagree():
    draws = np.random.default_rng(0).integers(0, 2, (20, 400, 20), dtype=np.uint8)
    # 190 pairs: the mean of as many squares of standard normal numbers is within 0.41 of 1 (4 standard errors).
    assert abs(ising_recovery.disagreement(draws) - 1) < 0.41
    assert ising_recovery.disagreement(np.repeat(draws, 5, axis=0)) > 3
    draws[:, ::2, 0] = draws[:, ::2, 1]
    assert ising_recovery.disagreement(draws) > 5


@pytest.mark.parametrize(("rule", "allowed"), [("mpf", 2e-3), ("pl", 2e-3), ("pcd", 0.05)])
def test_population_weights_give_back_the_glass(rule, allowed):
    # Fields too, and couplings between all pairs. PCD has the noise of its chains: about 1 / sqrt(4000) at the end of
    # its steps, less by their averaging.
    truth = random_glass(9, seed=2)
    found = fit(rule, population(truth, 200_000))
    assert largest_error(found.glass, truth) < allowed
    if rule != "pcd":
        assert found.largest_gradient <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("rule", ising_recovery.RULES)
def test_more_samples_bring_the_fit_closer(rule):
    truth = ising_recovery.draw_glass(jax.random.key(5), 3, 0.5)
    chosen = np.random.default_rng(0).choice(512, size=30_000, p=spin_probabilities(truth))
    samples = jnp.asarray(oracles.all_states(9)[chosen].astype(np.uint8))
    sizes = (300, 3000, 30_000)
    distances = [divergence(truth, fit(rule, samples[:n], penalty=1.0).glass) for n in sizes]
    assert distances[0] > 3 * distances[1] > 9 * distances[2]
    # The expected divergence of maximum likelihood is parameters / (2 N); MPF wastes some of it.
    assert distances[2] < 4 * 45 / 60_000


@pytest.mark.parametrize("rule", ising_recovery.RULES)
def test_the_penalty_holds_the_gradient_in_balance(rule):
    samples = population(random_glass(5, seed=2), 1000)
    penalty = 500.0
    found = fit(rule, samples, penalty).glass
    pull = jax.tree.map(lambda leaf: penalty / len(samples) * leaf, found)
    if rule == "pcd":
        p = spin_probabilities(found)
        s, data = (2 * np.asarray(x, np.float64) - 1 for x in (oracles.all_states(5), samples))
        push = Glass(data.mean(axis=0) - p @ s, np.triu(data.T @ data / len(data) - (s.T * p) @ s, 1))
        # The rate ends so small that the noise of 4,000 chains is averaged.
        assert largest_error(pull, push) < 0.02
    else:
        gradient = baselines.flip_estimate(rule, ising_recovery.to_machine(found), samples).gradient
        push = jax.tree.map(jnp.negative, ising_recovery.spin_gradient(gradient))
        assert largest_error(pull, push) < 2e-4
    assert max(float(jnp.abs(leaf).max()) for leaf in pull) > 0.1


@pytest.mark.parametrize("rule", ising_recovery.RULES)
def test_seeds_fitted_together_agree_with_one_alone(rule):
    samples = jnp.asarray(np.random.default_rng(1).integers(0, 2, (3, 200, 9), dtype=np.uint8))
    config = Config(**TINY | {"num_seeds": 3, "seeds_at_once": 3})
    together = ising_recovery.fit_seeds(config, rule, samples)[0].glass.couplings
    alone = ising_recovery.fit_seeds(Config(**TINY | {"num_seeds": 1, "seed": 1}), rule, samples[1:2])[0]
    np.testing.assert_allclose(together[1], alone.glass.couplings[0], atol=1e-3)
    assert jnp.abs(together[1] - together[0]).max() > 0.01


def test_seeds_have_chains_of_their_own():
    samples = jnp.asarray(np.random.default_rng(1).integers(0, 2, (200, 9), dtype=np.uint8))
    found, _ = ising_recovery.fit_seeds(Config(**TINY), "pcd", jnp.stack([samples, samples]))
    assert jnp.abs(found.glass.couplings[0] - found.glass.couplings[1]).max() > 1e-3


def test_errors_are_split_into_bonds_and_others():
    truth = jax.tree.map(lambda leaf: leaf[None], ising_recovery.draw_glass(jax.random.key(0), 3, 0.5))
    there = ising_recovery.bonds(3)
    others = np.triu(~there, 1)
    found = truth._replace(couplings=np.asarray(truth.couplings) + 0.3 * there[None] - 0.1 * others[None])
    measured = ising_recovery.errors(found, truth)
    np.testing.assert_allclose(measured["error_bonds"], [0.3], rtol=1e-6)
    np.testing.assert_allclose(measured["error_others"], [0.1], rtol=1e-6)
    np.testing.assert_allclose(measured["error"], [np.sqrt((12 * 0.09 + 24 * 0.01) / 36)], rtol=1e-6)


def test_images_shrink_to_means_of_blocks_of_their_middle():
    image = np.zeros((28, 28), np.float32)
    # Blocks of 2 x 2 from row and column 4 on: one bright, one at 3/4, one at 1/2, and brightness outside the middle.
    image[4:6, 4:6] = 1
    image[6:8, 4:6] = [[1, 1], [1, 0]]
    image[4:6, 6:8] = [[1, 1], [0, 0]]
    image[:4] = 1
    small = ising_recovery.shrink_images(image.reshape(1, -1), 10).reshape(10, 10)
    assert set(zip(*np.nonzero(small), strict=True)) == {(0, 0), (1, 0)}
    assert ising_recovery.shrink_images(image.reshape(1, -1), 28).reshape(28, 28)[0].all()


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
    fit_seeds = ising_recovery.fit_seeds

    def stop_in_the_third(config, rule, samples):
        if len(list((tmp_path / "run" / "fits").glob("*.npz"))) == 2:
            signal.raise_signal(signal.SIGTERM)
        return fit_seeds(config, rule, samples)

    with monkeypatch.context() as patch:
        patch.setattr(ising_recovery, "fit_seeds", stop_in_the_third)
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


@pytest.mark.slow
def test_the_quick_setting_of_the_docstring_recovers_the_couplings(tmp_path):
    command = re.search(r"ising_recovery (--sample_sizes\S+ .*?) --workdir", ising_recovery.__doc__)
    assert command[1].split() == QUICK
    done = start(*QUICK, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    summary = workdir.read_json(tmp_path / "run" / "summary.json")
    assert abs(summary["sampler"]["mean_disagreement_of_starts"] - 1) < 0.1
    for rule in ising_recovery.RULES:
        found = [row["error"]["mean"] for row in summary["rows"] if row["rule"] == rule]
        assert found[0] > found[1] > found[2]
        assert found[2] < 0.06


@pytest.mark.slow
def test_images_are_fitted_with_the_quick_setting(tmp_path):
    done = start(*QUICK, "--dataset=mnist_5k", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    summary = workdir.read_json(tmp_path / "run" / "summary.json")
    images = ising_recovery.shrink_images(load_dataset("mnist_5k").test.images, 10)
    means = np.clip(images.mean(axis=0), 1e-3, 1 - 1e-3)
    independent = np.mean(np.sum(np.where(images, np.log(means), np.log(1 - means)), axis=1))
    scores = {row["rule"]: row["held_out"]["mean"] for row in summary["rows"] if row["num_samples"] == 3000}
    # The pixels are far from independent, even where independent ones are told the means of the test images.
    assert all(independent * 2 / 3 < score < 0 for score in scores.values())
    assert len(summary["agreement"]) == 9
    assert all(0.3 < row["correlation"]["mean"] < 1 for row in summary["agreement"])
    assert summary["sampler"] is None


def test_more_samples_than_images_are_refused(tmp_path):
    config = Config(dataset="mnist_5k", sample_sizes=(100, 4001), workdir=str(tmp_path / "run"))
    with pytest.raises(UsageError, match="--sample_sizes=4001; mnist_5k has 4000 training images"):
        ising_recovery.run(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "cifar"}, "--dataset=cifar; it takes one of glass, mnist_5k, mnist, fashion_mnist"),
        ({"rules": ("mpf", "cd")}, "--rules=mpf,cd; it takes some of mpf, pl, pcd"),
        ({"rules": ("pl", "pl")}, "--rules=pl,pl"),
        ({"rules": ()}, "--rules=; it takes"),
        ({"sample_sizes": (100, 100)}, "--sample_sizes=100,100; it takes increasing positive integers"),
        ({"sample_sizes": (0, 100)}, "--sample_sizes=0,100"),
        ({"size": 1}, "--size=1; it takes an integer from 2 to 28"),
        ({"size": 29}, "--size=29"),
        ({"coupling_std": 0.0}, "--coupling_std=0.0; it takes a positive finite number"),
        ({"coupling_std": float("nan")}, "--coupling_std=nan"),
        ({"tolerance": -1.0}, "--tolerance=-1.0"),
        ({"pcd_rate": float("inf")}, "--pcd_rate=inf"),
        ({"penalty": -1.0}, "--penalty=-1.0; it takes a finite number of at least 0"),
        ({"num_seeds": 0}, "--num_seeds=0; it takes an integer of at least 1"),
        ({"seed": -1}, "--seed=-1"),
        ({"seed": 2**32 - 5}, "--seed=4294967291; it takes an integer that leaves every seed below 2\\^32"),
        ({"seeds_at_once": -1}, "--seeds_at_once=-1"),
        ({"max_steps": 0}, "--max_steps=0"),
        ({"pcd_chains": 0}, "--pcd_chains=0"),
        ({"pcd_steps": 0}, "--pcd_steps=0"),
        ({"sampler_chains": 99}, "--sampler_chains=99; it takes an even number"),
        ({"sampler_burn_in": 0}, "--sampler_burn_in=0"),
        ({"sampler_thin": 0}, "--sampler_thin=0"),
        ({"temperatures": 1}, "--temperatures=1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        Config(**settings)


def test_defaults_depend_on_the_data():
    assert Config().sample_sizes[-1] == 100_000
    assert Config(dataset="mnist_5k").sample_sizes == (1000, 4000)
    assert Config(dataset="mnist_5k", seed=3).workdir == "runs/ising_recovery-mnist_5k-seed3"


def test_the_command_explains_its_flags_and_refuses_wrong_ones_in_one_line():
    told = start("--help").stdout
    assert all(f"--{name}:" in told for name in Config.__dataclass_fields__)
    wrong = start("--sample_sizes=many")
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1
    assert "--sample_sizes=many; it takes" in wrong.stderr
