"""Learning at spikes: means over independent runs against the gradient, within four standard errors of the runs."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import CASES, assert_same_machine, each_case, in_float64
from typed import refused

from vpf_jax import directed_gradient, event_gradient, learn_from_events, local_gradient, untie, vpf_objective

NUM_RUNS = 600


def deviation(found, expected):
    """Largest deviation of the mean over runs from what is expected, in standard errors."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    errors = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    silent = errors == 0
    np.testing.assert_allclose(found.mean(axis=0)[silent], expected[silent], atol=1e-6)
    return np.max(np.abs(found.mean(axis=0) - expected)[~silent] / errors[~silent], initial=0)


def worst(found, expected):
    return max(deviation(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))


def over_runs(function, seed):
    return jax.jit(jax.vmap(function))(jax.random.split(jax.random.key(seed), NUM_RUNS))


def machines(case):
    """The symmetric machine and, where it has two layers or more, a directed one."""
    return [case.machine, *([untie(jax.random.key(9), case.machine)] if case.weights else [])]


some_cases = each_case("semi_restricted", "intra_dbm")


@pytest.mark.slow
@some_cases
def test_events_of_clamped_neurons_average_to_the_directed_halves(case):
    states = case.layered(case.some_states(6))
    for number, machine in enumerate(machines(case)):
        found = over_runs(lambda key, machine=machine: event_gradient(key, machine, states, 3.0), number)
        assert worst(found, directed_gradient(machine, states)) < 4


@pytest.mark.slow
@some_cases
def test_both_halves_together_average_to_the_gradient(case):
    """Against finite differences of the enumerated objective."""
    states = case.some_states(6)
    found = over_runs(lambda key: event_gradient(key, case.machine, case.layered(states), 3.0), 2)
    expected = oracles.finite_difference_gradient(case.flat, states, np.full(len(states), 1 / len(states)))
    sums = [np.asarray(f) + np.asarray(b) for f, b in zip(found.forward, found.backward, strict=True)]
    insides = [None if g is None else np.asarray(g) + np.swapaxes(g, 1, 2) for g in found.intra]
    flat = [
        oracles.flatten(*(tuple(None if part is None else part[r] for part in parts) for parts in all_parts))
        for r, all_parts in enumerate([(found.biases, sums, insides)] * NUM_RUNS)
    ]
    assert deviation([f.coupling for f in flat], expected.coupling) < 4
    assert deviation([f.bias for f in flat], expected.bias) < 4


@pytest.mark.slow
def test_the_error_falls_with_the_duration():
    case = CASES["rbm-moderate"]
    states = case.layered(case.some_states(6))
    spread = [
        np.std(over_runs(lambda key, t=t: event_gradient(key, case.machine, states, t), 3).biases[0], axis=0).mean()
        for t in (1.0, 16.0)
    ]
    assert 3 < spread[0] / spread[1] < 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["visible-moderate", "rbm-moderate", "intra_dbm-moderate"])
@in_float64
def test_small_changes_at_every_event_go_along_the_gradient(name):
    case = CASES[name]
    states, duration, rate = case.layered(case.some_states(4)), 3.0, 1e-7
    for number, machine in enumerate(machines(case)):
        learnt = over_runs(lambda key, m=machine: learn_from_events(key, m, states, duration, rate), 4 + number)
        found = jax.tree.map(lambda new, old: (old[None] - new) / (rate * duration * 4), learnt.machine, machine)
        assert worst(found, local_gradient(machine, states)) < 4
        # As many events as the rates say.
        expected = 4 * duration * vpf_objective(machine, states)
        assert deviation(np.asarray(learnt.num_events)[:, None], np.asarray(expected)[None]) < 4


@pytest.mark.slow
@in_float64
def test_intra_layer_weights_stay_tied_in_a_symmetric_machine_alone():
    case = CASES["intra_dbm-moderate"]
    states = case.layered(case.some_states(10))
    symmetric, directed = (
        learn_from_events(jax.random.key(0), machine, states, 5.0, 0.02).machine
        for machine in (case.machine, untie(None, case.machine))
    )
    for before, tied, free in zip(case.machine.intra, symmetric.intra, directed.intra, strict=True):
        if before is not None:
            assert np.abs(tied - before).max() > 1e-3
            np.testing.assert_allclose(tied, tied.T, atol=1e-12)
            assert np.abs(free - free.T).max() > 1e-3
            assert not np.diagonal(tied).any()
            assert not np.diagonal(free).any()
    assert np.abs(directed.weights[0] - directed.backward[0]).max() > 1e-3


@pytest.mark.slow
def test_what_was_learnt_at_one_event_acts_on_the_next():
    """Clamped long enough, a state silences the flips out of it, which a rule without feedback would not."""
    case = CASES["rbm-peaked"]
    states = case.layered(case.some_states(1, seed=1))
    before = float(vpf_objective(case.machine, states))
    learnt = learn_from_events(jax.random.key(0), case.machine, states, 2000.0, 0.05)
    assert float(vpf_objective(learnt.machine, states)) < 0.2 * before
    assert int(learnt.num_events) < 0.5 * 2000 * before


@pytest.mark.slow
def test_nothing_happens_where_no_event_does():
    case = CASES["dbm-moderate"]
    states = case.layered(case.some_states(3))
    assert_same_machine(learn_from_events(jax.random.key(0), case.machine, states, 1e-9, 1.0).machine, case.machine)
    gradient = event_gradient(jax.random.key(0), case.machine, states, 1e-9)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"duration": 0.0}, "duration=0.0; it takes a positive finite number"),
        ({"duration": np.inf}, "duration=inf"),
        ({"learning_rate": -0.1}, "learning_rate=-0.1; it takes a positive finite number"),
        ({"states": (np.zeros((2, 5)), np.zeros((3, 3)))}, "a state of shapes"),
        ({"states": (np.zeros((0, 5)), np.zeros((0, 3)))}, "an empty batch"),
        ({"machine": jax.tree.map(lambda p: jnp.full_like(p, 400.0), CASES["rbm-moderate"].machine)}, "overflowed"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(changes, message):
    case = CASES["rbm-moderate"]
    given = {"machine": case.machine, "states": (np.zeros((2, 5)), np.zeros((2, 3))), "duration": 1.0, **changes}
    rate = given.pop("learning_rate", 0.1)
    with refused(ValueError, match=message):
        learn_from_events(jax.random.key(0), **given, learning_rate=rate)
    if rate > 0:
        with refused(ValueError, match=message):
            event_gradient(jax.random.key(0), **given)
