"""Equilibrium propagation: forces, fixed points and gradients against closed forms; epochs against single steps.

Networks of the oracle have all units strictly inside (0, 1), so that the exact gradient is a linear solve.
"""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import assert_close, in_float64
from jax.flatten_util import ravel_pytree
from programs import start, start_here
from typed import refused

from experiments import mnist_equilibrium as script
from vpf_jax.checks import SettingError
from vpf_jax.data import load_dataset
from vpf_jax.related import equilibrium_propagation as ep

ROOT = Path(__file__).parents[2]
SIZES = {"one hidden": (4, 6, 3), "three hidden": (3, 5, 4, 5, 2)}
LONG = ep.EquilibriumConfig(free_steps=2000, nudged_steps=2000)
UNITS = {"hard": LONG, "sigmoid": dataclasses.replace(LONG, activation="sigmoid", step_size=1.0)}
each_size = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
each_kind = pytest.mark.parametrize("units", UNITS.values(), ids=UNITS)
relax = jax.jit(ep.relax, static_argnames=("config", "steps"))
estimate = jax.jit(ep.estimate_gradient, static_argnames="config")


def problem(sizes, rows=7, seed=0):
    """A network with weak couplings and biases near 1/2, inputs in [0, 1] and targets; NumPy float64."""
    rng = np.random.default_rng(seed)
    weights = [rng.uniform(-0.25, 0.25, (m, n)) / np.sqrt(m) for m, n in itertools.pairwise(sizes)]
    biases = [rng.uniform(0.4, 0.6, n) for n in sizes[1:]]
    inputs = rng.uniform(size=(rows, sizes[0]))
    targets = np.eye(sizes[-1])[rng.integers(sizes[-1], size=rows)]
    network = ep.EquilibriumNetwork(tuple(map(jnp.asarray, weights)), tuple(map(jnp.asarray, biases)))
    return (
        network,
        jnp.asarray(inputs),
        jnp.asarray(targets),
        oracles.equilibrium_gradient(weights, biases, inputs, targets),
    )


def interior(network, rows, seed=1):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.uniform(0.05, 0.95, (rows, n))) for n in network.sizes[1:])


def zeros(network, rows):
    return tuple(jnp.zeros((rows, n)) for n in network.sizes[1:])


def flat(network):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(network)])


def exact(found):
    return ep.EquilibriumNetwork(tuple(map(jnp.asarray, found.weights)), tuple(map(jnp.asarray, found.biases)))


@pytest.mark.slow
@in_float64
@each_size
@each_kind
def test_the_force_is_minus_the_derivative_of_the_total_energy(sizes, units):
    network, x, target, _ = problem(sizes)
    state = interior(network, len(x))

    def total(state):
        free = ep.energy(network, x, state, units.activation)
        return jnp.sum(free + 0.7 * ep.cost(state, target))

    found = ep.force(network, x, state, units.activation, target, 0.7)
    for force, slope in zip(found, jax.grad(total)(state), strict=True):
        assert_close(force, -slope)
    # Without a target the nudge is absent.
    assert_close(ep.force(network, x, state, units.activation)[-1], found[-1] - 0.7 * (target - state[-1]))


def test_the_energy_by_hand():
    network = ep.EquilibriumNetwork((jnp.array([[2.0]]), jnp.array([[3.0]])), (jnp.array([0.5]), jnp.array([-1.0])))
    state = (jnp.array([[0.25]]), jnp.array([[0.5]]))
    x = jnp.array([[0.1]])
    fields = 0.1 * 2 * 0.25 + 0.25 * 3 * 0.5 + 0.5 * 0.25 - 0.5
    np.testing.assert_allclose(ep.energy(network, x, state), [0.25**2 / 2 + 0.5**2 / 2 - fields], rtol=1e-6)
    own = sum(s / 2 + (s * np.log(s) + (1 - s) * np.log(1 - s)) / 4 for s in (0.25, 0.5))
    np.testing.assert_allclose(ep.energy(network, x, state, "sigmoid"), [own - fields], rtol=1e-6)
    np.testing.assert_allclose(ep.cost(state, jnp.array([[1.0]])), [0.125], rtol=1e-6)


def test_the_prediction_is_the_highest_output_and_fields_break_ties():
    network = ep.EquilibriumNetwork(
        (jnp.zeros((1, 1)), jnp.array([[1.0, 2.0, -1.0]])), (jnp.zeros(1), jnp.array([-2.0, -2.5, -0.5]))
    )
    # Fields of the outputs: (-1, -0.5, -1.5), (-1.8, -2.1, -0.7), (-1, -0.5, -1.5), (-1, -0.5, -1.5).
    hidden = jnp.array([[1.0], [0.2], [1.0], [1.0]])
    outputs = jnp.array([[0, 0, 0], [0, 0, 0], [0.1, 0, 0], [1, 0, 1.0]])
    np.testing.assert_array_equal(ep.predict(network, (hidden, outputs)), [1, 2, 0, 0])


@pytest.mark.parametrize(
    ("start", "bias", "force", "after"),
    [
        (0.0, 0.6, 0.6, 0.3),  # a derivative of clip would give half of both, or none
        (0.0, -0.6, -0.6, 0.0),
        (1.0, 0.4, -0.6, 0.7),
        (1.0, 1.6, 0.6, 1.0),
        (0.3, 0.5, 0.2, 0.4),
    ],
)
def test_at_the_bounds_the_force_is_whole_and_states_stay_inside(start, bias, force, after):
    """Two unconnected units, step size 1/2; the output is nudged as well, by 2 (target - s)."""
    network = ep.EquilibriumNetwork((jnp.zeros((1, 1)), jnp.zeros((1, 1))), (jnp.array([bias]), jnp.array([bias])))
    state, x, target = (jnp.array([[start]]),) * 2, jnp.zeros((1, 1)), jnp.array([[start]])
    for found in ep.force(network, x, state, target=target, beta=2.0):
        np.testing.assert_allclose(found, [[force]], atol=1e-6)
    arrived, moved = relax(network, x, state, LONG, 1, target, 2.0)
    for found in arrived:
        np.testing.assert_allclose(found, [[after]], atol=1e-6)
    np.testing.assert_allclose(moved, [abs(after - start)], atol=1e-6)
    nudged, _ = relax(network, x, state, LONG, 1, jnp.array([[0.5]]), 2.0)
    np.testing.assert_allclose(
        nudged[1], [[np.clip(start + 0.5 * (bias - start + 2 * (0.5 - start)), 0, 1)]], atol=1e-6
    )


@in_float64
@each_size
def test_the_free_phase_ends_at_the_exact_fixed_point(sizes):
    network, x, _, found = problem(sizes)
    state, residual = relax(network, x, zeros(network, len(x)), LONG, LONG.free_steps)
    for s, expected in zip(state, found.states, strict=True):
        assert_close(s, expected)
    assert float(residual.max()) < 1e-14
    # The residual is the largest change of the last step, per example.
    before, _ = relax(network, x, zeros(network, len(x)), LONG, 4)
    after, moved = relax(network, x, zeros(network, len(x)), LONG, 5)
    changes = np.concatenate([np.abs(new - old) for new, old in zip(after, before, strict=True)], axis=1)
    assert_close(moved, changes.max(axis=1))


@in_float64
def test_sigmoid_units_settle_where_the_force_vanishes():
    network, x, target, _ = problem(SIZES["one hidden"])
    units = UNITS["sigmoid"]
    state, _ = relax(network, x, zeros(network, len(x)), units, units.free_steps, target, 0.3)
    for force in ep.force(network, x, state, "sigmoid", target, 0.3):
        np.testing.assert_allclose(force, 0, atol=1e-12)
    # One step is s <- sigma(field).
    (hidden, output), _ = relax(network, x, interior(network, len(x)), units, 1)
    start = interior(network, len(x))
    field = x @ network.weights[0] + start[1] @ network.weights[1].T + network.biases[0][None]
    assert_close(hidden, 1 / (1 + np.exp(-4 * (field - 0.5))))
    assert_close(output, 1 / (1 + np.exp(-4 * (start[0] @ network.weights[1] + network.biases[1][None] - 0.5))))


def implicit_gradient(network, x, target, state, activation):
    """Of the mean cost at a free fixed point, by the implicit function theorem on the library's energy."""

    def of_example(x, target, state):
        point, unravel = ravel_pytree(state)

        def rows(point):
            return tuple(s[None] for s in unravel(point))

        def energy(point, network):
            return ep.energy(network, x[None], rows(point), activation)[0]

        slope = jax.grad(lambda point: ep.cost(rows(point), target[None])[0])(point)
        multiplier = jnp.linalg.solve(jax.hessian(energy)(point, network), slope)
        return jax.grad(lambda network: -jnp.vdot(multiplier, jax.grad(energy)(point, network)))(network)

    return jax.tree.map(lambda g: g.mean(axis=0), jax.vmap(of_example)(x, target, state))


@pytest.mark.slow
@in_float64
@each_size
def test_the_implicit_gradient_of_the_energy_is_the_oracles(sizes):
    network, x, target, found = problem(sizes)
    state = tuple(map(jnp.asarray, found.states))
    assert_close(flat(implicit_gradient(network, x, target, state, "hard")), flat(exact(found)))


@pytest.mark.slow
@in_float64
@each_size
@each_kind
@pytest.mark.parametrize(("estimator", "slope"), [("one_sided", 1), ("centred", 2)])
def test_the_error_of_the_estimates_falls_with_beta(sizes, units, estimator, slope):
    network, x, target, found = problem(sizes)
    free, _ = relax(network, x, zeros(network, len(x)), units, units.free_steps)
    wanted = (
        flat(exact(found))
        if units.activation == "hard"
        else flat(implicit_gradient(network, x, target, free, units.activation))
    )
    config = dataclasses.replace(units, estimator=estimator)
    errors = []
    for beta in (0.1, 0.01, 0.001):
        estimated = flat(estimate(network, x, free, target, config, beta))
        errors.append(np.linalg.norm(estimated - wanted) / np.linalg.norm(wanted))
    slopes = -np.diff(np.log10(errors))
    assert 0.001 < errors[0] < 0.2
    np.testing.assert_allclose(slopes, slope, atol=0.06)


@pytest.fixture(scope="module")
def digits():
    part = load_dataset("mnist_5k").train
    return jnp.asarray(part.examples[:50]), jnp.asarray(part.labels[:50])


@pytest.mark.slow
def test_particles_follow_their_examples_through_shuffles(digits):
    """With rates so small that the network stays what it is, two epochs are two free phases of every example."""
    images, labels = digits
    config = ep.EquilibriumConfig(batch_size=15, free_steps=4, learning_rates=(1e-30, 1e-30))
    network = ep.init_network(jax.random.key(0), (784, 20, 10))
    state = ep.init_state(jax.random.key(1), network, 50, config)
    state, first = ep.train_epoch(state, images, labels, config=config)
    state, second = ep.train_epoch(state, images, labels, config=config)
    expected, residual = relax(network, images, zeros(network, 50), config, 8)
    for particles, s in zip(state.particles, expected, strict=True):
        np.testing.assert_allclose(particles, s, atol=1e-6)
    wrong = ep.predict(network, expected) != labels
    np.testing.assert_allclose(second.error, wrong.mean(), rtol=1e-6)
    np.testing.assert_allclose(second.cost, ep.cost(expected, jnp.eye(10)[labels]).mean(), rtol=1e-5)
    np.testing.assert_allclose(second.residual, residual.mean(), rtol=1e-4)
    np.testing.assert_allclose(second.largest_residual, residual.max(), rtol=1e-4)
    assert first.residual > 1.2 * second.residual
    assert int(state.epoch) == 2
    # Without persistence every epoch begins at zeros.
    config = dataclasses.replace(config, persistent=False)
    state = ep.init_state(jax.random.key(1), network, 50, config)
    assert state.particles == ()
    for _ in range(2):
        state, metrics = ep.train_epoch(state, images, labels, config=config)
        np.testing.assert_allclose(metrics.residual, first.residual, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ep.ESTIMATORS)
def test_an_epoch_of_one_minibatch_is_one_step_with_a_random_sign(digits, estimator):
    images, labels = digits
    config = ep.EquilibriumConfig(batch_size=50, estimator=estimator, learning_rates=(0.3, 0.7))
    network = ep.init_network(jax.random.key(0), (784, 20, 10))
    free, _ = relax(network, images, zeros(network, 50), config, config.free_steps)
    rates = jax.tree.unflatten(jax.tree.structure(network), (0.3, 0.7, 0.3, 0.7))
    candidates = []
    for beta in (1.0, -1.0):
        gradient = estimate(network, images, free, jnp.eye(10)[labels], config, beta)
        candidates.append(flat(jax.tree.map(lambda r, g: -r * g, rates, gradient)))
    found = set()
    for seed in range(8):
        state = ep.init_state(jax.random.key(seed), network, 50, config)
        state, metrics = ep.train_epoch(state, images, labels, config=config)
        np.testing.assert_allclose(metrics.error, np.mean(ep.predict(network, free) != labels), rtol=1e-6)
        step = flat(state.network) - flat(network)
        errors = [np.abs(step - candidate).max() / np.abs(candidate).max() for candidate in candidates]
        assert min(errors) < 1e-4
        found.add(int(np.argmin(errors)))
    if estimator == "centred":
        np.testing.assert_allclose(*candidates, atol=1e-6)
    else:
        # One sign alone in eight epochs has a probability of 1/128.
        assert found == {0, 1}
        assert np.abs(candidates[0] - candidates[1]).max() > 1e-3


@pytest.mark.slow
def test_a_short_last_minibatch_counts_less(digits):
    images, labels = digits
    config = ep.EquilibriumConfig(batch_size=25, estimator="centred", beta=0.1, learning_rates=(1e-3, 1e-3))
    network = ep.init_network(jax.random.key(0), (784, 20, 10))

    def step(rows):
        state = ep.init_state(jax.random.key(1), network, rows, config)
        state, _ = ep.train_epoch(state, images[:rows], labels[:rows], config=config)
        return flat(state.network) - flat(network)

    # At small rates the order does not matter: the sums of the gradients of all examples are what is left.
    free, _ = relax(network, images, zeros(network, 50), config, config.free_steps)
    for rows in (50, 35):
        some = tuple(s[:rows] for s in free)
        gradient = estimate(network, images[:rows], some, jnp.eye(10)[labels[:rows]], config, 0.1)
        wanted = -1e-3 * rows / 25 * flat(gradient)
        np.testing.assert_allclose(step(rows), wanted, atol=0.02 * np.abs(wanted).max())


def test_adam_steps_have_the_size_of_the_rates(digits):
    images, labels = digits
    config = dataclasses.replace(ep.PRESETS["centred"].config, learning_rates=(1e-3, 4e-3))
    network = ep.init_network(jax.random.key(0), (784, 20, 10))
    state = ep.init_state(jax.random.key(1), network, 50, config)
    state, _ = ep.train_epoch(state, images, labels, config=config)
    for layer, rate in enumerate(config.learning_rates):
        step = np.abs(state.network.biases[layer] - network.biases[layer])
        np.testing.assert_allclose(step, rate, rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "epochs", "bound"), [("1", 2, 0.13), ("centred", 8, 0.13)])
def test_training_learns_digits(preset, epochs, bound):
    """4,000 training images; a guess is wrong nine times in ten."""
    data = load_dataset("mnist_5k")
    _, _, config = ep.PRESETS[preset]
    images, labels = jnp.asarray(data.train.examples), jnp.asarray(data.train.labels)
    network = ep.init_network(jax.random.key(0), (784, 100, 10))
    state = ep.init_state(jax.random.key(1), network, len(labels), config)
    for _ in range(epochs):
        state, metrics = ep.train_epoch(state, images, labels, config=config)
    assert metrics.error < bound
    free, residual = ep.free_phase(state.network, jnp.asarray(data.test.examples), config=config)
    assert np.mean(ep.predict(state.network, free) != data.test.labels) < bound
    assert residual.shape == (500,)


@pytest.mark.slow
def test_a_free_phase_in_chunks_is_a_relaxation(digits, monkeypatch):
    images, _ = digits
    monkeypatch.setattr(ep, "rows_at_once", lambda width: 20)
    config = ep.EquilibriumConfig(free_steps=3)
    network = ep.init_network(jax.random.key(0), (784, 7, 10))
    once, _ = ep.free_phase(network, images, config=config)
    twice, residual = ep.free_phase(network, images, once, config=config)
    expected, moved = relax(network, images, zeros(network, 50), config, 6)
    for s, wanted in zip(twice, expected, strict=True):
        np.testing.assert_allclose(s, wanted, atol=1e-6)
    np.testing.assert_allclose(residual, moved, atol=1e-6)


def test_networks_start_as_glorot_and_bengio_say():
    network = ep.init_network(jax.random.key(0), (784, 500, 10))
    assert network.sizes == (784, 500, 10)
    for weights in network.weights:
        bound = np.sqrt(6 / sum(weights.shape))
        assert np.abs(weights).max() <= bound
        # Standard error of the mean square of n uniform numbers: sqrt(4 / 45 / n) of bound^2.
        error = np.mean(np.square(weights)) / bound**2 - 1 / 3
        assert abs(error) < 4 * np.sqrt(4 / 45 / weights.size)
    assert all((np.asarray(bias) == 0).all() for bias in network.biases)


def test_the_presets_fit_their_networks():
    assert set(ep.PRESETS) == {"1", "2", "3", "centred"}
    for hidden, _, config in ep.PRESETS.values():
        network = ep.init_network(jax.random.key(0), (6, *(4 for _ in hidden), 3))
        state = ep.init_state(jax.random.key(1), network, 50, config)
        assert len(state.particles) == (len(hidden) + 1 if config.persistent else 0)


def small(**changes):
    return dataclasses.replace(ep.EquilibriumConfig(batch_size=2), **changes)


def epoch(images=(4, 3), labels=(0, 1, 0, 1), rows=4, **changes):
    network = ep.init_network(jax.random.key(0), (3, 2, 2))
    state = ep.init_state(jax.random.key(1), network, rows, small())
    return ep.train_epoch(state, jnp.zeros(images), jnp.array(labels, jnp.int32), config=small(**changes))


def gradient_at(beta):
    network, x, target, _ = problem((4, 6, 3))
    return ep.estimate_gradient(network, x, zeros(network, len(x)), target, ep.EquilibriumConfig(), beta)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small(beta=0.0), r"got beta=0.0; it takes a finite number other than 0"),
        (lambda: small(beta=np.inf), "beta=inf"),
        (lambda: gradient_at(0.0), "beta=0.0; it takes a finite number other than 0"),
        (lambda: gradient_at(np.nan), "beta=nan"),
        (lambda: small(activation="relu"), "activation=relu; it takes one of hard, sigmoid"),
        (lambda: small(estimator="both"), "estimator=both"),
        (lambda: small(optimizer="lion"), "optimizer=lion"),
        (lambda: small(step_size=1.5), r"step_size=1.5; it takes a positive finite number at most 1"),
        (lambda: small(free_steps=0), "free_steps=0; it takes an integer of at least 1"),
        (lambda: small(nudged_steps=0), "nudged_steps=0"),
        (lambda: small(batch_size=0), "batch_size=0"),
        (lambda: small(learning_rates=(0.1, -0.1)), r"learning_rates=\(0.1, -0.1\); it takes 2 or more positive"),
        (lambda: small(learning_rates=(0.1,)), "2 or more positive finite numbers"),
        (lambda: ep.init_network(jax.random.key(0), (3, 2)), r"sizes=\(3, 2\); it takes three or more"),
        (lambda: ep.init_network(jax.random.key(0), (3, 0, 2)), "positive integers"),
        (lambda: epoch(rows=1), "batch_size=2 with 1 examples"),
        (lambda: epoch(images=(4, 5)), r"images of shape \(4, 5\).*takes \[n, 3\] and \[n\]"),
        (lambda: epoch(labels=(0, 1, 0)), r"labels of shape \(3,\)"),
        (lambda: epoch(labels=(0, 1, 2, 0)), "labels from 0 to 2; with 2 outputs they are 0 to 1"),
        (lambda: epoch(labels=(0, -1, 1, 0)), "labels from -1 to 1"),
        (lambda: epoch(rows=5), "4 examples and particles of shapes"),
        (lambda: epoch(persistent=False), "persistent=False"),
        (lambda: epoch(learning_rates=(1, 1, 1)), "3 learning_rates for 2 weight matrices"),
    ],
)
def test_wrong_input_is_refused(call, message):
    with refused(ValueError, match=message):
        call()


def test_relaxing_takes_a_step():
    network, x, _, _ = problem((4, 6, 3))
    with pytest.raises(ValueError, match="steps=0; it takes an integer of at least 1"):
        ep.relax(network, x, zeros(network, len(x)), LONG, 0)


# The script.


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The quick setting that the script's own docstring gives, in another folder."""
    workdir = tmp_path_factory.mktemp("quick") / "run"
    line = re.search(r"^    python -m (.* --epochs=3) --workdir=runs/quick$", script.__doc__, re.MULTILINE)[1]
    flags = [*line.split()[1:], f"--workdir={workdir}"]
    return workdir, flags, start("mnist_equilibrium", *flags)


@pytest.mark.slow
def test_the_quick_setting_learns_and_draws(quick):
    workdir, flags, ended = quick
    assert ended.returncode == 0, ended.stderr
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["sizes"] == [784, 500, 10]
    for name in script.ERRORS:
        assert 0 < summary[name] < 0.15
    assert np.sum(summary["confusion"]) == 500
    wrong = 1 - np.trace(summary["confusion"]) / 500
    np.testing.assert_allclose(wrong, summary["test_error_from_zeros"], atol=1e-6)
    assert 0 < summary["residual"] < 0.01
    assert summary["seconds_per_epoch"] > 0
    assert (workdir / "table.md").read_text() in ended.stdout
    assert {p.name for p in workdir.glob("*.png")} == {"errors.png", "curves.png", "confusion.png", "filters.png"}
    lines = (workdir / "metrics.csv").read_text().splitlines()
    assert lines[0] == ",".join(("epoch", *script.COLUMNS))
    assert len(lines) == 4
    again = start_here("mnist_equilibrium", *flags)
    assert again.returncode == 0
    assert "finished already" in again.stdout


@pytest.mark.slow
def test_more_images_per_step_than_there_are_is_one_line(tmp_path):
    flags = ["--dataset=mnist_5k", "--batch_size=5000", f"--workdir={tmp_path / 'run'}"]
    ended = start_here("mnist_equilibrium", *flags)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "--batch_size=5000; it takes up to 4000, as mnist_5k has 4000 training images" in ended.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "4"}, "got preset='4'; it takes one of 1, 2, 3, centred"),
        ({"epochs": 0}, "got epochs=0; it takes an integer of at least 1"),
        ({"beta": 0.0}, "got beta=0.0; it takes a finite number other than 0"),
        ({"free_steps": 0}, "got free_steps=0"),
        ({"estimator": "both"}, "got estimator=both"),
        ({"hidden": (5, 5)}, "got hidden=.*; it takes 1 positive integers with preset=1"),
        ({"hidden": (0,)}, "got hidden="),
        ({"rate_factor": 0.0}, "got rate_factor=0.0; it takes a positive finite number"),
        ({"evaluate_every": 0}, "got evaluate_every=0"),
        ({"dataset": "cifar"}, "got dataset=cifar"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        script.Config(**settings)


def test_flags_change_the_preset():
    config = script.Config(preset="2", hidden=(7, 6), rate_factor=0.5, beta=1.0, free_steps=150)
    hidden, epochs, settings = config.plan()
    assert (hidden, epochs, str(config.folder)) == ((7, 6), 60, "runs/mnist-equilibrium-2")
    assert settings == dataclasses.replace(
        ep.PRESETS["2"].config, beta=1.0, free_steps=150, learning_rates=(0.4, 0.1, 0.01)
    )


def test_a_preset_of_equal_rates_takes_any_number_of_layers():
    hidden, _, settings = script.Config(preset="centred", hidden=(7, 6, 5)).plan()
    assert hidden == (7, 6, 5)
    assert settings.learning_rates == (5e-4,) * 4
