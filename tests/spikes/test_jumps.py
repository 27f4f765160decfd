"""Jumps of units of more than two values against the exponential of the enumerated generator."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from vpf_jax import init_machine, run_spiking, units
from vpf_jax.spikes.spiking import coupling_matrix

KINDS = (units.Groups(((units.BINARY, 1), (units.Categorical(3), 3))), units.COUNT)
# Of (bit, category, count); counts of 12 and more have a mass of 1e-9.
CODES = list(itertools.product(range(2), range(3), range(13)))
NUM_RUNS = 20_000


def mixed_machine():
    """A bit and a category below a count, the first two joined to one another as well."""
    machine = init_machine(jax.random.key(0), (4, 1), (0,), KINDS)
    inside = jnp.zeros((4, 4)).at[0, 1:].set(jnp.array([0.8, -0.5, 0.3]))
    return dataclasses.replace(
        machine,
        biases=(jnp.array([0.2, -0.3, 0.4, 0.1]), jnp.array([-0.2])),
        weights=(jnp.array([[-0.6], [0.5], [-0.4], [0.2]]),),
        intra=(inside + inside.T, None),
    )


def flat_state(bit, category, count):
    return np.array([bit, *np.eye(3)[category], count], np.float64)


def oracle_of(machine):
    coupling = np.asarray(coupling_matrix(machine), np.float64)
    bias = np.concatenate([np.asarray(b, np.float64) for b in machine.biases])
    kinds = (("binary", 1, 1.0), ("categorical(3)", 3, 1.0), ("count", 1, 1.0))
    return oracles.SummedMachine((bias, np.zeros(0)), np.zeros((5, 0)), coupling, (kinds, ()))


@pytest.fixture(scope="module")
def runs():
    """From one state, (1, the second category, 2)."""
    state = jnp.array([1, 0, 1, 0], jnp.int32), jnp.array([2], jnp.int32)
    keys = jax.random.split(jax.random.key(1), NUM_RUNS)
    return jax.jit(jax.vmap(lambda key: run_spiking(key, mixed_machine(), state, 40)))(keys)


def codes_at(events, time):
    """(bit, category, count) of each run, from the jumps up to a time."""
    found = np.tile([1, 1, 2], (NUM_RUNS, 1))
    assert (np.asarray(events.times)[:, -1] > time).all(), "runs are too short for this time"
    for unit, value, when in zip(
        *(np.asarray(part).T for part in (events.units, events.values, events.times)), strict=True
    ):
        happened = when <= time
        found[happened, unit[happened]] = value[happened]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("time", [0.3, 3.0], ids=["early", "late"])
def test_the_state_at_a_time_has_the_law_of_the_chain(runs, time):
    """Every state, and the chi-square statistic, within four standard deviations."""
    machine, states = oracle_of(mixed_machine()), np.array([flat_state(*codes) for codes in CODES])
    law = oracles.jump_law_after(machine, states, CODES.index((1, 1, 2)), time)
    found = codes_at(runs.events, time)
    counts = np.bincount(found @ [39, 13, 1], minlength=len(CODES))
    assert max(oracles.fit(counts, law)) < 4
    if time < 1:
        later = oracles.jump_law_after(machine, states, CODES.index((1, 1, 2)), 1.2 * time)
        assert max(oracles.fit(counts, later)) > 4


@pytest.mark.slow
def test_state_and_occupation_are_those_of_the_events(runs):
    units_, times, values = (np.asarray(part[:20], np.float64) for part in runs.events)
    for r in range(20):
        codes, occupied, before = [1, 1, 2], np.zeros(5), 0.0
        for unit, time, value in zip(units_[r].astype(int), times[r], values[r].astype(int), strict=True):
            occupied += (time - before) * flat_state(*codes)
            assert codes[unit] != value
            assert unit < 2 or abs(codes[2] - value) == 1
            codes[unit], before = value, time
        ours = np.concatenate([np.asarray(layer[r], np.float64) for layer in runs.state])
        np.testing.assert_array_equal(ours, flat_state(*codes))
        spent = np.concatenate([np.asarray(layer[r], np.float64) for layer in runs.occupation])
        np.testing.assert_allclose(spent, occupied / before, atol=1e-4)


@pytest.mark.slow
def test_a_unit_is_held_by_any_of_its_entries():
    state = jnp.array([1, 0, 1, 0], jnp.int32), jnp.array([2], jnp.int32)
    held = np.array([False, False, True, False])
    run = run_spiking(jax.random.key(0), mixed_machine(), state, 60, held=held)
    assert set(np.asarray(run.events.units).tolist()) == {0, 2}
    np.testing.assert_array_equal(run.state[0][1:], [0, 1, 0])


def test_real_values_are_refused():
    machine = init_machine(jax.random.key(0), (3, 2), units=(units.GAUSSIAN, units.BINARY))
    with pytest.raises(ValueError, match="units of kind 'gaussian'; a simulation of jumps takes kinds whose"):
        run_spiking(jax.random.key(0), machine, (jnp.zeros(3), jnp.zeros(2, jnp.uint8)), 5)
