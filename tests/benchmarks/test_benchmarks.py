"""The benchmarks: that they run, what they write, and that the port computes what we compute. Nothing is timed."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from programs import users_environment

import vpf_jax
from benchmarks import measure, peers, report, run
from benchmarks.cases import num_weights

ROOT = Path(__file__).parents[2]


def case(name, log, flops=0.0, against=(), work=1.0):
    def setup():
        return lambda: log.append(name)

    return measure.Case(name, setup, flops=flops, against=against, work=work)


def missing():
    raise measure.MissingPeerError("nothing is not installed (pip install nothing)")


@pytest.mark.slow
def test_cases_run_in_turn_after_a_warm_up():
    log = []
    rows = measure.measure([case("a", log), case("b", log)], rounds=2, say=lambda line: None)
    assert log == ["a", "b", "a", "b", "a", "b"]
    assert [len(row.seconds) for row in rows] == [2, 2]


def test_a_missing_peer_is_a_row_that_says_so():
    log = []
    cases = [case("ours", log, flops=1e9), measure.Case("peer", missing, against=("ours",))]
    rows = measure.measure(cases, rounds=2, say=lambda line: None)
    table = report.table(rows, rows[0])
    assert "| peer | not measured |" in table
    assert "nothing is not installed" in table


def test_the_table_holds_medians_rates_shares_and_ratios_within_rounds():
    def row(name, seconds, flops=0.0, against=()):
        return measure.Row(case(name, [], flops, against), seconds, "")

    peak = row("peak", (1.0, 2.0, 1.0), flops=100e9)
    ours = row("ours", (2.0, 4.0, 3.0), flops=60e9)
    peer = row("peer", (8.0, 12.0, 6.0), against=("ours",))
    lines = report.table([peak, ours, peer], peak).splitlines()
    assert lines[3] == "| ours | 3 | 2 to 4 | 20 | 20% |  |  |"
    assert lines[4] == "| peer | 8 | 6 to 12 |  |  | 3 x ours |  |"


def test_seconds_are_divided_by_the_share_of_the_work():
    (row,) = measure.measure([case("a", [], work=1e-9)], rounds=1, say=lambda line: None)
    assert row.seconds[0] > 1


def test_weights_are_counted_as_the_products_see_them():
    assert num_weights((784, 196), intra=False) == 784 * 196
    assert num_weights((8, 5, 3), intra=True) == 8 * 5 + 5 * 3 + 5 * 5 + 3 * 3


@pytest.mark.slow
def test_the_command_runs_at_tiny_sizes(tmp_path):
    command = [sys.executable, "-m", "benchmarks.run", "--tiny=on", "--rounds=1", "--dataset=mnist_5k"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}"],
        cwd=ROOT,
        env=users_environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    names = [row["name"] for row in results["rows"]]
    assert len(names) == len(set(names))
    for row in results["rows"]:
        assert row["seconds"] or "not installed" in row["note"]
    assert set(results["growth"]) == {name for name, _ in run.TINY.growth}
    assert results["target"]["epochs"] == run.TINY.most_epochs
    table = (tmp_path / "table.md").read_text()
    assert "first epoch of the intra-layer DBM" in table
    assert "NOT reached" in table
    assert (tmp_path / "growth.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_trace_names_operations_and_how_often_they_ran():
    flags = ["--dataset=mnist_5k", "--hidden=12,8", "--intra=on", "--batch_size=100", "--rows=200"]
    command = [sys.executable, "-m", "benchmarks.trace", *flags]
    done = subprocess.run(command, cwd=ROOT, env=users_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    steps = [name for name, times, _ in rows if int(times) % 40 == 0]
    assert len(steps) > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "flag", "message"),
    [
        ("run", "--parts=epochs,tea", "--parts=epochs,tea; it takes some of epochs"),
        ("run", "--rounds=0", "--rounds=0; it takes"),
        ("trace", "--hidden=12,x", "--hidden=12,x; it takes positive integers"),
        ("trace", "--batch_size=0", "--batch_size=0; it takes an integer of at least 1"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(program, flag, message):
    command = [sys.executable, "-m", f"benchmarks.{program}", "--dataset=mnist_5k", flag]
    done = subprocess.run(command, cwd=ROOT, env=users_environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_pytorch_port_has_our_objective_and_gradient():
    torch = pytest.importorskip("torch")
    from benchmarks.dense_port import DensePair

    torch.manual_seed(0)
    pair = DensePair(7, 5, intra=True)
    states = np.random.default_rng(0).integers(0, 2, (20, 12)).astype(np.float32)
    objective = pair.objective(torch.from_numpy(states))
    objective.backward()
    weights = jnp.asarray(pair.symmetric().detach().numpy())
    machine = vpf_jax.BoltzmannMachine(
        biases=(jnp.zeros(7), jnp.zeros(5)), weights=(weights[:7, 7:],), intra=(None, weights[7:, 7:])
    )
    layers = jnp.asarray(states[:, :7]), jnp.asarray(states[:, 7:])
    np.testing.assert_allclose(objective.item(), vpf_jax.vpf_objective(machine, layers), rtol=1e-5)
    gradient = vpf_jax.local_gradient(machine, layers)
    np.testing.assert_allclose(pair.weights.grad[:7, 7:], gradient.weights[0], atol=1e-5)
    np.testing.assert_allclose(pair.weights.grad[7:, 7:], jnp.triu(gradient.intra[1]), atol=1e-5)
    np.testing.assert_allclose(pair.biases.grad, jnp.concatenate(gradient.biases), atol=1e-5)


@pytest.mark.parametrize("module", ["sklearn", "thrml", "torch"])
def test_each_peer_says_how_to_install_it(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    images = np.zeros((4, 3), np.uint8)
    setup = {
        "sklearn": peers.sklearn_case("peer", images, 2, 2, ()).setup,
        "thrml": peers.thrml_case("peer", (3, 2), 2, 1, (4, 2), ()).setup,
        "torch": peers.rbms_case("peer", images, 2, 2, ()).setup,
    }[module]
    monkeypatch.setitem(sys.modules, f"{module}.neural_network", None)
    with pytest.raises(measure.MissingPeerError, match="pip install"):
        setup()
