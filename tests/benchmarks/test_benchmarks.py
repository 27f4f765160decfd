"""The benchmarks: that they run, what they write, and that peers compute what we compute. Nothing is timed."""

import dataclasses
import itertools
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import SMALL, users_environment

import vpf_jax
from benchmarks import devices, measure, peers, potts, quality, report, run, versions
from benchmarks.cases import num_weights
from experiments import named_recipes
from vpf_jax.app.folder import UsageError
from vpf_jax.app.runs import Images
from vpf_jax.checks import SettingError
from vpf_jax.data import load_dataset
from vpf_jax.evaluate import likelihood

ROOT = Path(__file__).parents[2]
RACES = ("quality", "target")


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
    assert lines[3] == "| ours | 3 | 2 | 4 |  | 20 | 20% |  |  |  |  |"
    # Within rounds 4, 3 and 2; medians 8 and 3; minima 6 and 2.
    assert lines[4] == "| peer | 8 | 6 | 12 |  |  |  | 3 x ours | 2.67 x | 3 x |  |"


FAST, SLOW = (1.0, 1.01, 1.02), (1.4, 1.41)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_timings_of_two_modes_are_split_at_their_gap(order):
    found = measure.modes(np.random.default_rng(order).permutation([*FAST, *SLOW]).tolist())
    assert found == measure.Modes(FAST, SLOW)
    np.testing.assert_allclose((found.ratio, found.share), (1.405 / 1.01, 0.4))


@pytest.mark.parametrize(
    "seconds",
    [
        (),
        (1.0, 2.0, 2.0),
        # A spread without a gap, one slow timing among many, a gap that is too small, one no wider than a group.
        tuple(np.linspace(1, 2, 9)),
        (1.0, 1.01, 1.02, 1.03, 3.0),
        (1.0, 1.01, 1.14, 1.15),
        (1.0, 1.1, 1.2, 1.4, 1.5, 1.6),
        tuple(np.exp(np.random.default_rng(3).normal(0, 0.05, 30))),
    ],
    ids=str,
)
def test_timings_of_one_mode_are_not_split(seconds):
    assert measure.modes(seconds) is None


def test_the_table_says_which_modes_it_saw():
    def row(name, seconds, against=()):
        return measure.Row(case(name, [], 0.0, against), seconds, "")

    ours, peer = row("ours", (1.0, 1.4, 1.4, 1.4, 1.0)), row("peer", (3.1, 3.1, 3.1, 3.1, 3.1), ("ours",))
    table = report.table([ours, peer], ours)
    assert "| ours | 1.4 | 1 | 1.4 | two: slow 1.40 x fast, 60% slow |" in table
    # Medians compare the slow epochs with the peer's, minima the clean ones.
    assert "| peer | 3.1 | 3.1 | 3.1 | one |  |  | 2.21 x ours | 2.21 x | 3.1 x |  |" in table
    assert "1 of 2 cases were timed in two modes" in table
    assert "slow 1.40 to 1.40 x fast, 60% to 60% of the timings slow" in table
    assert "no case of 1 was timed in two modes" in report.table([peer], peer)
    assert "modes are told of 4 timings or more" in report.table([row("few", (1.0, 2.0))], ours)


def test_seconds_are_divided_by_the_share_of_the_work():
    (row,) = measure.measure([case("a", [], work=1e-9)], rounds=1, say=lambda line: None)
    assert row.seconds[0] > 1


def test_weights_are_counted_as_the_products_see_them():
    assert num_weights((784, 196), intra=False) == 784 * 196
    assert num_weights((8, 5, 3), intra=True) == 8 * 5 + 5 * 3 + 5 * 5 + 3 * 3


@pytest.mark.slow
def test_the_command_runs_at_tiny_sizes(tmp_path):
    parts = ",".join(part for part in run.PARTS if part not in RACES)
    command = [sys.executable, "-m", "benchmarks.run", "--tiny=on", "--rounds=1", "--dataset=mnist_5k"]
    done = subprocess.run(
        [*command, f"--parts={parts}", f"--workdir={tmp_path}"],
        cwd=ROOT,
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
    table = (tmp_path / "table.md").read_text()
    assert "first epoch of the intra-layer DBM" in table
    assert (tmp_path / "growth.png").stat().st_size > 1000


@pytest.mark.slow
def test_races_run_at_tiny_sizes(tmp_path):
    sizes = dataclasses.replace(run.TINY, hidden=(12, 8), raced_stacks=("dbm",))
    results = run.measure_parts(tmp_path, Images(load_dataset(SMALL)), None, RACES, 1, sizes)
    table = (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "results.json").read_text()).keys() == results.keys()
    for part in RACES:
        assert (tmp_path / f"{part}.png").stat().st_size > 1000
        for curve in results[part]:
            assert "not installed" in curve["note"] or [look["epoch"] for look in curve["looks"]] == [1, 2]
            assert f"| {curve['name']} | not " in table


class Counted:
    """A learner that counts its epochs, and whose stack is their number."""

    def __init__(self):
        self.log = []
        self.done = 0

    def reset(self):
        self.log.append("reset")
        self.done = 0

    def epoch(self):
        self.done += 1
        self.log.append(self.done)

    def stack(self):
        return self.done


def race(learners, epochs=12, look=lambda stack, epoch: {"score": float(stack)}):
    entrants = [quality.Competitor(name, lambda learner=learner: learner, epochs) for name, learner in learners.items()]
    return quality.Race("a race", [*entrants, quality.Competitor("peer", missing, epochs)], look, (), (), "")


def quiet(line):
    pass


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(measure, "_PAUSE_SECONDS", 0.0)


def test_learners_take_turns_after_a_warm_up_and_are_looked_at_ever_less_often(no_pauses, unchecked):
    log = []
    learners = {"a": Counted(), "b": Counted()}
    for learner in learners.values():
        learner.log = log
    a, b, peer = race(learners).run(math.inf, quiet)
    assert log[:4] == [1, "reset", 1, "reset"]
    assert log[4:] == [epoch for epoch in range(1, 13) for _ in learners]
    assert [look.epoch for look in a.looks] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12]
    assert [look.scores["score"] for look in b.looks] == [look.epoch for look in b.looks]
    assert peer.looks == []
    assert "nothing is not installed" in peer.note
    assert [epoch for epoch in range(8, 130) if quality.looked_at(epoch)][::4] == [8, 16, 32, 64, 128]


def test_looks_and_what_precedes_the_first_epoch_are_not_counted(no_pauses, unchecked, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    class Slow(Counted):
        def epoch(self):
            super().epoch()
            clock[0] += 3

    def look(stack, epoch):
        clock[0] += 1000
        return {"score": 0.0}

    learner = Slow()
    curve, _ = race({"slow": learner}, look=look).run(26.0, quiet)
    assert [look.seconds for look in curve.looks] == [3, 6, 9, 12, 15, 18, 21, 24, 27]
    assert learner.done == 9


def looks(*scores):
    return [quality.Look(number, 10.0 * number, {"score": score}) for number, score in enumerate(scores, 1)]


def test_a_score_is_passed_at_the_first_look_that_is_there():
    rising = quality.Goal("score", "nats", (-110, -90), compared=-90)
    some = looks(-120.0, math.nan, -110.0, -95.0, -111.0, -89.0, -92.0)
    assert rising.first(some, -110).epoch == 3
    assert rising.first(some, -100).epoch == 4
    assert rising.first(some, -90).epoch == 6
    assert rising.first(some, -80) is None
    assert rising.best(some).epoch == 6
    falling = quality.Goal("score", "error", (40, 30), compared=30)
    some = looks(50.0, 40.0, math.nan, 35.0, 29.0, 31.0)
    assert [falling.first(some, wanted).epoch for wanted in (40, 30)] == [2, 5]
    assert falling.first(some, 20) is None
    assert falling.best(some).epoch == 5


def test_ratios_of_times_are_bounds_where_one_was_not_reached():
    goal = quality.Goal("score", "nats", (-110, -90), compared=-90)
    curves = [
        quality.Curve(quality.Competitor(name, Counted, 3), some)
        for name, some in (
            ("ours", looks(-100.0, -89.0)),
            ("slower", looks(-120.0, -111.0, -91.0, -90.0)),
            ("never", looks(-130.0, math.nan, -120.0)),
            ("nothing", looks(math.nan)),
        )
    ]
    curves.append(quality.Curve(quality.Competitor("peer", missing, 3), [], "not installed"))
    header, _, *rows = report.race_table(goal, curves, [curves[0], curves[2]]).splitlines()
    assert header.endswith("| to -90: times as long as ours | to -90: times as long as never |")
    assert rows[0] == "| ours | 10 (epoch 1) | 20 (epoch 2) | -89.0 after 20 s | 2 epochs, 20 s | 1 | < 0.67 |"
    assert rows[1] == "| slower | 30 (epoch 3) | 40 (epoch 4) | -90.0 after 40 s | 4 epochs, 40 s | 2 | < 1.3 |"
    assert rows[2] == "| never | not reached | not reached | -120.0 after 30 s | 3 epochs, 30 s | > 1.5 |  |"
    assert rows[3] == "| nothing | not reached | not reached | not known | 1 epochs, 10 s | > 0.5 |  |"
    assert rows[4] == "| peer | not measured | not measured | not installed |  |  |  |"


def digits(count=120):
    return (np.random.default_rng(0).random((count, 12)) < np.linspace(0.1, 0.9, 12)).astype(np.uint8)


def codes(images):
    """From 0 to 2."""
    return images[:, :6] + images[:, 6:]


LEARNERS = {
    "recipe": lambda images: quality.RecipeLearner(named_recipes.rbm("vpf_pcd", 5, 2), jnp.asarray(images)),
    "sklearn": lambda images: peers.Sklearn(images, 5, 40, 0.1),
    "rbms": lambda images: peers.Rbms(images, 5, 40, 0.1),
    "rbms, shades": lambda images: peers.RbmsPotts(codes(images), 5, 40, 0.1, steps=2, seed=1),
    "port": lambda images: peers.Port(images, (5,)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_learners_train_and_begin_again(name):
    try:
        learner = LEARNERS[name](digits())
    except measure.MissingPeerError as error:
        pytest.skip(str(error))

    def parameters():
        return [np.array(leaf) for leaf in jax.tree.leaves(learner.stack())]

    states = [parameters()]
    for _ in range(2):
        learner.epoch()
        states.append(parameters())
    for before, after in itertools.pairwise(states):
        assert not any(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
        assert all(np.isfinite(leaf).all() for leaf in after)
    learner.reset()
    learner.epoch()
    for again, first in zip(parameters(), states[1], strict=True):
        np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize("name", ["sklearn", "rbms", "rbms, shades"])
def test_an_rbm_of_a_peer_has_its_free_energy(name):
    images = digits()
    try:
        learner = LEARNERS[name](images)
    except measure.MissingPeerError as error:
        pytest.skip(str(error))
    learner.epoch()
    (machine,) = learner.stack()
    if name == "sklearn":
        theirs = learner._rbm._free_energy(images.astype(np.float32))
    else:
        theirs = learner._rbm.compute_energy_visibles(learner._images).numpy()
    states = machine.layer_units[0].encode(jnp.asarray(codes(images))) if "shades" in name else jnp.asarray(images)
    ours = jax.vmap(vpf_jax.free_energy, in_axes=(None, 0))(machine, states)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_parameters_of_a_potts_bernoulli_rbm_have_its_energy():
    """As its authors write it, with a weight and a bias for each value of each visible unit; without the package."""
    rng = np.random.default_rng(3)
    weights, visible, hidden = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3)), rng.normal(size=4)
    (machine,) = peers.potts_stack(weights, visible, hidden)
    assert machine.layer_units == (vpf_jax.units.Categorical(3), vpf_jax.units.BINARY)
    energies = []
    for v in itertools.product(range(3), repeat=2):
        for h in itertools.product(range(2), repeat=4):
            energies.append(-sum(visible[i, v[i]] + weights[i, v[i]] @ h for i in range(2)) - hidden @ h)
            states = machine.layer_units[0].encode(jnp.asarray(v)), jnp.asarray(h)
            np.testing.assert_allclose(vpf_jax.energy(machine, states), energies[-1], rtol=1e-4, atol=1e-5)
    log_z = np.log(np.sum(np.exp(-np.array(energies))))
    np.testing.assert_allclose(vpf_jax.log_partition_exact(machine), log_z, rtol=1e-5)


def quick_potts(**changed):
    quick = {"hidden": 3, "epochs": 1, "num_seeds": 2, "rates": (0.1, 0.2), "num_chains": 10, "num_temperatures": 10}
    return potts.Config(dataset=SMALL, steps=(1,), **quick, **changed)


@pytest.mark.slow
def test_shades_beside_the_peer(capsys):
    pytest.importorskip("rbms")
    table = potts.run(quick_potts())
    assert [line.split(" |")[0] for line in table.splitlines()[2:4]] == ["| ours, CD-10", "| ours, PCD-1"]
    assert re.search(r"^\| rbms, PCD-1, rate 0.[12] \| -\d+", table, re.MULTILINE)
    assert len(re.findall("nats on validation images", capsys.readouterr().out)) == 2


@pytest.mark.slow
def test_shades_without_the_peer_are_ours_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    ours, ours_too, peer = potts.run(quick_potts()).splitlines()[2:]
    assert all(line.startswith("| ours, ") and " +- " in line for line in (ours, ours_too))
    assert peer == "| rbms, PCD-1 | not measured: torch is not installed (pip install torch) |  |  |  |"


@pytest.mark.slow
def test_two_trees_are_timed_in_turn(capfd):
    """Here the same tree twice, each in a process of its own."""
    config = versions.Config(
        before=str(ROOT), after=str(ROOT), dataset="digits_8x8", hidden=(4, 3), batch_size=400, epochs=1, pairs=2
    )
    rows = versions.run(config).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {case}" for case in versions.CASES]
    seconds = np.array([[float(cell) for cell in row.split(" | ")[1:3]] for row in rows])
    assert (seconds > 0).all()
    assert capfd.readouterr().err == ""


def test_ratios_of_two_trees_are_of_pairs():
    table = versions.tabulate({"a": np.array([[1.0, 2.0], [2.0, 2.0], [4.0, 2.0]])}, 10)
    row = table.splitlines()[2]
    assert row == "| a | 0.2000 | 0.2000 | 1.000 | 0.750 to 1.500 | 0.500 to 2.000 | 2.000 |"


def test_a_tree_without_the_project_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"which holds no vpf_jax; it takes a tree of this project"):
        versions.run(versions.Config(before=str(tmp_path)))


def test_the_rate_is_that_of_the_best_score(monkeypatch):
    nats = {0.1: -3.0, 0.2: -1.0, 0.3: -2.0}
    monkeypatch.setattr(potts, "learn", lambda data, steps, rate, seed, work: (rate, 1.0))
    monkeypatch.setattr(potts, "scores", lambda data, images, rate, *_: (nats[rate],))
    assert potts.best_rate(None, None, 1, tuple(nats), 0, None) == 0.2


@pytest.mark.slow
def test_a_log_likelihood_that_few_chains_carry_is_not_told():
    images = Images(load_dataset(SMALL))
    look = quality.judge(images.train.bits, images.test, images.image_shape, (20, 30), 10)
    machine = vpf_jax.init_machine(jax.random.key(0), (images.num_visible, 4))
    scores = look((machine,), 1)
    assert scores["effective_samples"] > 10
    exact = likelihood.rbm_log_likelihood(machine, images.test.bits, vpf_jax.log_partition_exact(machine)).mean()
    np.testing.assert_allclose(scores["nats"], exact, atol=5 * scores["standard_error"])
    assert math.isnan(look((jax.tree.map(lambda p: 300 * p, machine),), 1)["nats"])


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


@pytest.mark.slow
def test_devices_are_timed_in_turn():
    config = devices.Config(dataset="digits_8x8", hidden=(4, 4), num_seeds=2, batch_sizes=(400,), timings=2)
    seeds, processes = devices.run(config).split("\n\n")
    assert [row.split(" | ")[1] for row in seeds.splitlines()[2:5]] == [
        "one after another",
        "vmap",
        "one on each of 2 devices",
    ]
    assert [row.split(" | ")[:2] for row in processes.strip().splitlines()[2:]] == [["| 400", "1"], ["| 400", "2"]]


def test_seeds_and_minibatches_that_devices_do_not_divide_are_refused():
    with pytest.raises(SettingError, match="num_seeds=3; it takes multiples of 2"):
        devices.Config(num_seeds=3)
    with pytest.raises(SettingError, match="it takes multiples of 2"):
        devices.Config(batch_sizes=(5,))
