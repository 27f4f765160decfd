"""The spike-timing window: closed form by hand, and the event-driven simulation against it.

Statistical tests compare means over trials with fixed keys, within four standard errors of the trials.
"""

import jax
import numpy as np
import pytest
from typed import refused

from vpf_jax import (
    binned_errors,
    binned_means,
    binned_window,
    relaxation_depression,
    simulate_pairings,
    stdp_window,
)
from vpf_jax.spikes.stdp import FASTEST, SLOWEST

RATES = 0.06, 0.03
EDGES = np.linspace(2, 62, 13)


@pytest.fixture(scope="module")
def pairs():
    return jax.tree.map(np.asarray, simulate_pairings(jax.random.key(0), 600_000, *RATES))


@pytest.mark.slow
def test_the_closed_form_by_hand():
    c = relaxation_depression(*RATES)
    np.testing.assert_allclose(c, 0.03 * 0.03 / 0.09)
    expected = [np.exp(-0.06 * 10) / 20, np.exp(-0.06 * 0.5), -c / 2 * np.exp(-0.03 * 10), -0.1 * np.exp(-0.03 * 5)]
    found = [
        *np.asarray(stdp_window(np.array([10, 0.5, -10]), *RATES)),
        float(stdp_window(-5.0, *RATES, depression_rate=0.2)),
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.isinf(stdp_window(0.0, *RATES))
    # Differentiable on both sides of the pole.
    slopes = jax.vmap(jax.grad(lambda dt: stdp_window(dt, *RATES)))(np.array([-3.0, 3.0], np.float32))
    exact = [-c / 2 * 0.03 * np.exp(-0.09), -np.exp(-0.18) / 6 * (0.06 + 1 / 3)]
    np.testing.assert_allclose(slopes, exact, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1, -1], ids=["pre before post", "post before pre"])
def test_the_simulation_follows_the_closed_form(pairs, sign):
    edges = np.sort(sign * EDGES)
    means, errors, counts = binned_means(pairs.dt, pairs.change, edges)
    assert counts.min() > 1000
    assert np.abs((means - binned_window(edges, *RATES)) / errors).max() < 4
    # Told apart from windows with the relaxation rates exchanged, or depression at the bare relaxation rate.
    other = binned_window(edges, *RATES[::-1]) if sign > 0 else binned_window(edges, *RATES, depression_rate=RATES[1])
    assert np.abs((means - other) / errors).max() > 8


@pytest.mark.parametrize("sign", [1, -1], ids=["pre before post", "post before pre"])
def test_the_scatter_of_the_simulation_is_that_of_the_closed_form(pairs, sign):
    """Within four standard errors of an estimated variance, which come from the sample's fourth moment."""
    edges = np.sort(sign * EDGES)
    means, errors, counts = binned_means(pairs.dt, pairs.change, edges)
    bins = np.digitize(pairs.dt, edges) - 1
    for number, (mean, error, count) in enumerate(zip(means, errors, counts, strict=True)):
        squares = (pairs.change[bins == number].astype(np.float64) - mean) ** 2
        expected = binned_errors(edges, counts, *RATES)[number] ** 2 * count
        assert abs(error**2 * count - expected) < 4 * squares.std() / np.sqrt(count)


def test_the_scatter_in_a_narrow_bin_by_hand():
    """At dt = 10 the rate is exponential with mean 1 / 10 with probability exp(-0.6), else nothing changes."""
    potentiation = np.sqrt(np.exp(-0.6) * 2 * (0.1 / 2) ** 2 - (np.exp(-0.6) * 0.05) ** 2)
    np.testing.assert_allclose(binned_errors([9.999, 10.001], [4], *RATES), [potentiation / 2], rtol=1e-6)
    chance = np.exp(-0.3) * 0.03 / 0.09
    depression = 0.015 * np.sqrt(chance * (1 - chance))
    np.testing.assert_allclose(binned_errors([-10.001, -9.999], [9], *RATES), [depression / 3], rtol=1e-6)


def test_the_relaxation_after_a_pair_takes_back_as_much_as_a_pair_in_the_other_order(pairs):
    means, errors, _ = binned_means(pairs.dt, pairs.later_change, EDGES)
    mirrored = binned_window(-EDGES[::-1], RATES[1], RATES[0], relaxation_depression(*RATES))[::-1]
    assert np.abs((means - mirrored) / errors).max() < 4
    assert (pairs.later_change[pairs.dt < 0] == 0).all()


def test_times_between_spikes_have_no_scale(pairs):
    """The logarithm of |dt| is uniform far inside the range of drives; either order is as likely."""
    n = len(pairs.dt)
    assert abs((pairs.dt > 0).mean() - 0.5) < 4 * 0.5 / np.sqrt(n)
    edges = np.geomspace(0.1, 1000, 9)
    counts = np.histogram(np.abs(pairs.dt), edges)[0]
    expected = n * np.log(edges[1] / edges[0]) / np.log(FASTEST / SLOWEST)
    assert np.abs((counts - expected) / np.sqrt(expected)).max() < 4


def test_changes_happen_at_rates_the_rule_knows(pairs):
    """Depression is always half the relaxation rate; potentiation is half a drive, or nothing."""
    before = pairs.change[pairs.dt < 0]
    assert set(np.unique(before)) == {np.float32(-RATES[1] / 2), np.float32(0)}
    after = pairs.change[pairs.dt > 0]
    assert after.min() == 0
    assert after[after > 0].min() >= SLOWEST / 2
    assert after.max() <= FASTEST / 2


def test_means_in_bins():
    dt = np.array([1.0, 1.5, 2.0, 3.0, -1.0, 9.0])
    means, errors, counts = binned_means(dt, np.array([2.0, 4.0, 1.0, 1.0, 7.0, 7.0]), [1, 2, 4, 5])
    np.testing.assert_array_equal(counts, [2, 2, 0])
    np.testing.assert_allclose(means, [3, 1, np.nan])
    np.testing.assert_allclose(errors, [1, 0, np.nan])


def test_the_window_in_bins_weighs_by_one_over_the_time():
    low, high = 2.0, 12.0
    times = np.linspace(low, high, 200_001)
    times = (times[1:] + times[:-1]) / 2
    weighted = np.average(np.exp(-0.06 * times) / (2 * times), weights=1 / times)
    np.testing.assert_allclose(binned_window([low, high], *RATES), [weighted], rtol=1e-7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stdp_window(1.0, -0.1, 0.1), "pre_relaxation_rate=-0.1; it takes a positive finite number, per ms"),
        (lambda: stdp_window(1.0, 0.1, np.inf), "post_relaxation_rate=inf"),
        (lambda: stdp_window(1.0, 0.1, 0.1, -1), "depression_rate=-1"),
        (lambda: stdp_window(np.array([1.0, np.nan]), 0.1, 0.1), "times dt that are not finite"),
        (lambda: stdp_window(-np.inf, 0.1, 0.1), "times dt that are not finite"),
        (lambda: relaxation_depression(0.1, 0), "post_relaxation_rate=0"),
        (lambda: simulate_pairings(jax.random.key(0), 0, 0.1, 0.1), "num_trials=0; it takes an integer"),
        (lambda: simulate_pairings(jax.random.key(0), 5, np.nan, 0.1), "pre_relaxation_rate=nan"),
        (lambda: binned_means([1.0], [1.0], [2, 1]), "increasing times"),
        (lambda: binned_window([-1, 1], 0.1, 0.1), "a bin that contains dt = 0"),
        (lambda: binned_errors([1, 2, 3], [3, 0], 0.1, 0.1), "got 0 trials in a bin"),
    ],
)
def test_what_makes_no_window_is_refused(call, message):
    with refused(ValueError, match=message):
        call()
