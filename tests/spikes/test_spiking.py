"""Continuous-time dynamics against the exponential of the enumerated generator.

The law of the state at a fixed time after a fixed start is known exactly, transients included; it tests rates, choice
and waiting times at once. `NUM_RUNS` independent runs with fixed keys; every state within four standard deviations and
the chi-square statistic too (`oracles.fit`), or means within four standard errors over the runs where so stated.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import CASES, assert_same_machine, cases, each_case, in_float64, joined
from hypothesis import given, settings
from typed import refused

from vpf_jax import init_machine, local_fields, run_spiking, untie
from vpf_jax.sample.streams import stream_of, substreams
from vpf_jax.spikes.spiking import REFRESH, coupling_matrix, layered_machine, next_event

# Of many events each.
pytestmark = pytest.mark.long_running
NUM_RUNS = 40_000


@functools.cache
def runs(num_events, clamped=()):
    """The compiled map over keys and states, for one machine."""

    def run(key, machine, state, held):
        return run_spiking(key, machine, state, num_events, clamped, held)

    return jax.jit(jax.vmap(run, in_axes=(0, None, 0, None)))


def spikes(case, starts, num_events, seed, clamped=(), held=None):
    """Runs from flat states, held visible units given by their indices."""
    mask = np.isin(np.arange(case.sizes[0]), [] if held is None else held)
    keys = jax.random.split(jax.random.key(seed), len(starts))
    return runs(num_events, clamped)(keys, case.machine, case.layered(starts), mask)


def numbers_at(start_numbers, events, time):
    """The states at a time, from the flips up to it."""
    units, times = np.asarray(events.units), np.asarray(events.times)
    assert (times[:, -1] > time).all(), "runs are too short for this time"
    return start_numbers ^ np.bitwise_xor.reduce(np.where(times <= time, 1 << units.astype(np.int64), 0), axis=1)


def restless(case):
    """The state that is left fastest, and a time in which it mostly is."""
    rates = oracles.flip_rates(case.flat, case.all_states()).sum(axis=1)
    return int(np.argmax(rates)), 2 / rates.max()


@pytest.mark.slow
@each_case()
@pytest.mark.parametrize("multiple", [1, 6], ids=["early", "late"])
def test_the_state_at_a_time_has_the_law_of_the_chain(case, multiple):
    start, time = restless(case)
    time *= multiple
    run = spikes(case, np.tile(case.all_states()[start], (NUM_RUNS, 1)), 24 * multiple + 16, seed=multiple)
    counts = np.bincount(numbers_at(np.full(NUM_RUNS, start), run.events, time), minlength=2 ** sum(case.sizes))
    assert max(oracles.fit(counts, oracles.law_after(case.flat, start, time))) < 4
    if multiple == 1:
        assert max(oracles.fit(counts, oracles.law_after(case.flat, start, 1.2 * time))) > 4


@pytest.mark.slow
@each_case("rbm", "intra_dbm")
def test_held_and_clamped_units_stay_and_the_others_follow_the_conditional_law(case):
    start, time = restless(case)
    held, clamped = [1], (len(case.sizes) - 1,)
    units = [*held, *range(sum(case.sizes[:-1]), sum(case.sizes))]
    run = spikes(case, np.tile(case.all_states()[start], (NUM_RUNS, 1)), 48, 3, clamped, held)
    assert not np.isin(np.asarray(run.events.units), units).any()
    counts = np.bincount(numbers_at(np.full(NUM_RUNS, start), run.events, time), minlength=2 ** sum(case.sizes))
    assert max(oracles.fit(counts, oracles.law_after(case.flat, start, time, units))) < 4


@pytest.mark.slow
@each_case()
def test_fractions_of_time_are_the_machine_s_probabilities(case):
    """Over a fixed time from exact draws, a state is occupied for p of it on average, within four standard errors."""
    target = oracles.probabilities(case.flat)
    draws = np.random.default_rng(4).choice(len(target), 8000, p=target)
    rates = oracles.flip_rates(case.flat, case.all_states()).sum(axis=1)
    duration = 40 / (target @ rates)
    run = spikes(case, case.all_states()[draws], 400, seed=5)
    units, times = np.asarray(run.events.units, np.int64), np.asarray(run.events.times, np.float64)
    assert (times[:, -1] > duration).all()
    passed = draws[:, None] ^ np.bitwise_xor.accumulate(1 << units, axis=1)
    passed = np.concatenate([draws[:, None], passed[:, :-1]], axis=1)
    spent = np.diff(np.minimum(times, duration), axis=1, prepend=0) / duration
    cells = (np.arange(len(draws))[:, None] * len(target) + passed).ravel()
    fractions = np.bincount(cells, spent.ravel(), len(draws) * len(target)).reshape(len(draws), len(target))
    np.testing.assert_allclose(fractions.sum(axis=1), 1, atol=1e-5)
    often = target > 1e-3
    means, errors = fractions.mean(axis=0)[often], fractions.std(axis=0, ddof=1)[often] / np.sqrt(len(draws))
    assert np.abs((means - target[often]) / errors).max() < 4
    # The jump chain, which forgets how long it stays, would be refused.
    jumps = target * rates / (target @ rates)
    assert np.abs((means - jumps[often]) / errors).max() > 6


@each_case()
def test_occupation_state_and_duration_are_those_of_the_events(case):
    starts = case.some_states(3, seed=6)
    run = spikes(case, starts, REFRESH + 300, seed=7)
    units, times, values = (np.asarray(part, np.float64) for part in run.events)
    assert (np.diff(times, axis=1) >= 0).all()
    np.testing.assert_array_equal(np.asarray(run.duration), np.asarray(run.events.times)[:, -1])
    for r, start in enumerate(starts):
        x, occupied, before = start.copy(), np.zeros(len(start)), 0.0
        for unit, time, value in zip(units[r].astype(int), times[r], values[r], strict=True):
            occupied += (time - before) * x
            x[unit] = 1 - x[unit]
            assert x[unit] == value
            before = time
        np.testing.assert_array_equal(joined([layer[r] for layer in run.state]), x)
        np.testing.assert_allclose(joined([layer[r] for layer in run.occupation]), occupied / before, atol=1e-4)


@pytest.mark.slow
def test_long_runs_agree_however_they_are_cut_into_parts():
    """Times go on through the refreshes, and a multiple of `REFRESH` is no special number."""
    case = CASES["rbm-moderate"]
    start = case.some_states(1)
    longer = spikes(case, start, 3 * REFRESH + 1, seed=8)
    shorter = spikes(case, start, 3 * REFRESH, seed=8)
    few = spikes(case, start, 5, seed=8)
    for some in (shorter, few):
        count = some.events.units.shape[1]
        np.testing.assert_array_equal(longer.events.units[:, :count], some.events.units)
        np.testing.assert_allclose(longer.events.times[:, :count], some.events.times, rtol=1e-6)
    waits = np.diff(np.asarray(longer.events.times[0], np.float64), prepend=0)
    assert 0.8 < waits[:REFRESH].mean() / waits[-REFRESH:].mean() < 1.25


@pytest.mark.slow
def test_each_layer_comes_back_in_its_dtype_and_jit_changes_nothing():
    case = CASES["dbm-moderate"]
    state = tuple(x[0] for x in case.layered(case.some_states(1)))
    plain = run_spiking(jax.random.key(0), case.machine, state, 50)
    compiled = jax.jit(run_spiking, static_argnums=3)(jax.random.key(0), case.machine, state, 50)
    assert [x.dtype for x in plain.state] == [jnp.uint8] * 4
    np.testing.assert_array_equal(plain.events.units, compiled.events.units)
    np.testing.assert_allclose(plain.events.times, compiled.events.times, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 17, 96, 200])
def test_the_race_is_won_in_proportion_to_the_rates(size):
    deltas = np.random.default_rng(size).exponential(size=size).astype(np.float32) ** 3
    deltas[size // 2 + 1 :: 5] = 0
    units, waits = jax.jit(jax.vmap(next_event, in_axes=(None, 0)))(
        jnp.asarray(deltas), substreams(stream_of(jax.random.key(1)), NUM_RUNS)
    )
    counts = np.bincount(np.asarray(units), minlength=size)
    assert len(counts) == size
    exact = deltas.astype(np.float64)
    assert max(oracles.fit(counts, exact / exact.sum())) < 4
    scaled = np.asarray(waits, np.float64) * exact.sum()
    # Exponential: the probability transform is uniform; twenty bins of equal mass.
    uniform = np.histogram(np.exp(-scaled), bins=20, range=(0, 1))[0]
    assert max(oracles.fit(uniform, np.full(20, 1 / 20))) < 4
    # The wait does not depend on the winner.
    often = counts > 500
    means = np.bincount(np.asarray(units), scaled, size)[often] / counts[often]
    assert np.abs((means - 1) * np.sqrt(counts[often])).max() < 4


@pytest.mark.slow
def test_clocks_without_a_rate_never_ring():
    _, wait = next_event(jnp.zeros(5), stream_of(jax.random.key(0)))
    assert np.isinf(wait)


@pytest.mark.slow
@given(case=cases())
@settings(max_examples=25, deadline=None)
@in_float64
def test_the_coupling_matrix_is_the_machine_flattened(case):
    coupling = coupling_matrix(case.machine)
    np.testing.assert_array_equal(coupling, case.flat.coupling)
    assert_same_machine(layered_machine(case.machine, coupling, jnp.concatenate(case.machine.biases)), case.machine)


@pytest.mark.slow
def test_the_coupling_matrix_of_a_directed_machine_gives_its_fields():
    machine = untie(jax.random.key(1), init_machine(jax.random.key(0), (4, 3, 5), (1,)))
    state = tuple(jnp.asarray(np.random.default_rng(0).integers(0, 2, n)) for n in machine.sizes)
    coupling = coupling_matrix(machine)
    np.testing.assert_allclose(joined(state) @ np.asarray(coupling), joined(local_fields(machine, state)), rtol=1e-5)
    assert_same_machine(layered_machine(machine, coupling, jnp.concatenate(machine.biases)), machine)


@pytest.mark.slow
def test_strong_fields_are_simulated_and_overflowing_ones_refused():
    machine = CASES["rbm-moderate"].machine
    state = tuple(jnp.zeros(n, jnp.uint8) for n in machine.sizes)

    def with_bias(value):
        return jax.tree.map(lambda b: jnp.full_like(b, value), machine)

    assert np.isfinite(run_spiking(jax.random.key(0), with_bias(40.0), state, 20).duration)
    with pytest.raises(ValueError, match=r"flip rates overflow, or all of them are 0, at the start.*fields below 176"):
        run_spiking(jax.random.key(0), with_bias(200.0), state, 20)
    with pytest.raises(ValueError, match="not finite, nan among them"):
        run_spiking(jax.random.key(0), with_bias(np.nan), state, 20)
    # A clamped unit does not race, whatever its rate would be.
    hidden = dataclasses.replace(machine, biases=(machine.biases[0], jnp.full_like(machine.biases[1], 400.0)))
    assert np.isfinite(run_spiking(jax.random.key(0), hidden, state, 20, clamped=(1,)).duration)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_events": 0}, "got num_events=0; it takes an integer of at least 1"),
        ({"num_events": 2.5}, "num_events=2.5"),
        ({"clamped": (0, 1)}, "got every unit clamped or held"),
        ({"clamped": (2,)}, "got clamped="),
        ({"held": np.zeros(3, bool)}, r"held of shape \(3,\)"),
        ({"held": np.zeros(5)}, "dtype float"),
        ({"state": (np.zeros(5), np.zeros(5))}, "a state of shapes"),
    ],
)
def test_what_cannot_be_simulated_is_refused(changes, message):
    case = CASES["rbm-moderate"]
    given = {"state": tuple(np.zeros(n) for n in case.sizes), "num_events": 3, **changes}
    with refused(ValueError, match=message):
        run_spiking(jax.random.key(0), case.machine, **given)
