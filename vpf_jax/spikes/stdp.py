"""Spike-timing-dependent plasticity from the directed rule: the window of one synapse, closed form and simulation.

Two neurons, pre-synaptic i and post-synaptic j, are two-state Markov chains in continuous time: at rest a driven neuron
fires at its flip rate, an excited one relaxes at another. The synapse i -> j changes when j flips while i is excited,
in proportion to the rate of the flip and with the sign of the state that j flips into:

    + delta_j / 2 when j fires,      - lambda_post / 2 when j relaxes,      in units of the learning rate

(Liu, Quek and Lin, arXiv 1711.07732, section 4; alpha_j = 1/2 - x_j at the new state in -x_i alpha_j delta_j). One
spike of each, dt = t_post - t_pre apart, leaves on average

    dt > 0:   + 1 / (2 dt) exp(-lambda_pre dt)      j fires while i is still excited; its rate, inferred from the wait
    dt < 0:   - c / 2 exp(-lambda_post |dt|)        i fires while j is still excited; then j relaxes

c = lambda_post * lambda_post / (lambda_pre + lambda_post): the relaxation rate of j times the probability that i is
still excited when j relaxes.

Where 1 / dt comes from: the paper says that the rate of j is the inverse of its expected waiting time. The simulation
need not be told so. The drive of the second neuron, its rate of firing, is drawn without a scale (its logarithm uniform
over many decades), the rule uses the true rate, and among pairs with the same dt the mean rate is 1 / dt, a posterior
mean. What the paper leaves out is simulated too, and kept apart: after a pair with dt > 0, j relaxes, and if i is still
excited then, the synapse loses again, c / 2 exp(-lambda_pre dt) on average.

Times are in milliseconds and rates in 1 / ms throughout; any other unit does as well, if one is used for all. Not here:
whole machines (`spiking`), learning of data (`event_learning`), measured windows (`experiments/stdp.py`).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Real
from numpy.typing import ArrayLike

from vpf_jax import checks
from vpf_jax.checks import AnyArray
from vpf_jax.exporting import exported
from vpf_jax.sample.streams import Stream, stream_of, substream, substreams, uniform

# The second neuron's rate of firing, in 1 / ms: its logarithm is uniform between these. Times between a hundredth and
# ten thousand ms do not see the bounds: at dt the mean rate is 1 / dt + SLOWEST, up to exp(-FASTEST * dt).
SLOWEST, FASTEST = 1e-6, 1e3


@exported("vpf_jax.Pairings")
class Pairings(NamedTuple):
    """Trials of one synapse: one spike of each neuron."""

    dt: Float[Array, " num_trials"]
    """Time of the post-synaptic spike minus that of the pre-synaptic one, ms."""
    change: Float[Array, " num_trials"]
    """What the window describes, in units of the learning rate: the change at the post-synaptic spike where it comes
    second, at the post-synaptic relaxation where the pre-synaptic spike comes second."""
    later_change: Float[Array, " num_trials"]
    """Where dt > 0, the change at the post-synaptic relaxation after it; else 0."""


def stdp_window(
    dt: Float[AnyArray, "*times"] | float,
    pre_relaxation_rate: float,
    post_relaxation_rate: float,
    depression_rate: float | None = None,
) -> Float[Array, "*times"]:
    """The closed form: mean change of the synapse over pairs of spikes dt apart, in units of the learning rate, 1 / ms.

    Args:
      dt: time of the post-synaptic spike minus that of the pre-synaptic one, ms; 0 counts as pre before post, where
        the window has a pole (inf).
      pre_relaxation_rate: lambda_pre, 1 / ms, positive; an excited pre-synaptic neuron rests again at this rate.
      post_relaxation_rate: lambda_post, 1 / ms, positive.
      depression_rate: c, 1 / ms, at least 0; None: `relaxation_depression` of the two.

    Raises:
      ValueError: rates out of range, or concrete times that are not finite.
    """
    _check_rates(pre_relaxation_rate=pre_relaxation_rate, post_relaxation_rate=post_relaxation_rate)
    if depression_rate is None:
        depression_rate = relaxation_depression(pre_relaxation_rate, post_relaxation_rate)
    checks.non_negative("depression_rate", depression_rate, "per ms")
    if not checks.is_traced(dt):
        _finite_times("times dt", dt)
    dt = jnp.asarray(dt, jnp.result_type(float))
    wait = jnp.abs(dt)
    # A wait of 0 on the other side of the pole, so that no derivative there is undefined.
    potentiation = jnp.exp(-pre_relaxation_rate * wait) / (2 * jnp.where(dt < 0, 1, wait))
    depression = -depression_rate / 2 * jnp.exp(-post_relaxation_rate * wait)
    return jnp.where(dt < 0, depression, potentiation)


def relaxation_depression(pre_relaxation_rate: float, post_relaxation_rate: float) -> float:
    """The depression rate c = lambda_post^2 / (lambda_pre + lambda_post), 1 / ms: the relaxation rate of the
    post-synaptic neuron times the probability that the pre-synaptic one is still excited when it relaxes.

    Raises:
      ValueError: rates that are not positive and finite.
    """
    _check_rates(pre_relaxation_rate=pre_relaxation_rate, post_relaxation_rate=post_relaxation_rate)
    return post_relaxation_rate**2 / (pre_relaxation_rate + post_relaxation_rate)


def simulate_pairings(
    key: PRNGKeyArray, num_trials: int, pre_relaxation_rate: float, post_relaxation_rate: float
) -> Pairings:
    """Simulates trials of one spike of each neuron, event by event, and applies the rule at post-synaptic flips.

    At time 0 one of the two neurons, chosen by a coin, is made to fire. From then on the other is driven, until it
    fires: at a rate whose logarithm is uniform between log `SLOWEST` and log `FASTEST`, drawn for each trial. What
    happens next is the race of the exponential clocks of all possible flips: an excited neuron relaxes at its
    relaxation rate, and after that stays at rest. There are three events, in any order that the rates allow: each
    neuron's relaxation and the second spike. Times are not discretised.

    Args:
      key: a random key.
      num_trials: at least 1.
      pre_relaxation_rate: 1 / ms, positive.
      post_relaxation_rate: 1 / ms, positive.

    Raises:
      ValueError: numbers out of range.
    """
    num_trials = checks.integer("num_trials", num_trials, 1)
    _check_rates(pre_relaxation_rate=pre_relaxation_rate, post_relaxation_rate=post_relaxation_rate)
    relaxation = jnp.array([pre_relaxation_rate, post_relaxation_rate])
    streams = substreams(stream_of(key), num_trials)
    return jax.jit(jax.vmap(_pair, in_axes=(0, None)))(streams, relaxation)


def binned_means(
    dt: Real[AnyArray, " num_trials"] | Sequence[float],
    change: Real[AnyArray, " num_trials"] | Sequence[float],
    edges: Real[AnyArray, " num_edges"] | Sequence[float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean change of the trials in each bin of dt, its standard error, and their number; float64, [num_bins] each.

    A bin with fewer than two trials has a mean or error of nan.

    Raises:
      ValueError: edges that do not increase, or trials whose numbers are not finite or not one for one.
    """
    edges = _increasing(edges)
    dt, change = _finite_times("times dt", dt), _finite_times("change", change)
    if dt.ndim != 1 or dt.shape != change.shape:
        raise ValueError(f"got dt of shape {dt.shape} and change of shape {change.shape}; both are [num_trials]")
    bins = np.digitize(dt, edges) - 1
    inside = (bins >= 0) & (bins < len(edges) - 1)
    bins, change = bins[inside], change[inside]
    count = np.bincount(bins, minlength=len(edges) - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(bins, change, len(count)) / count
        variance = np.bincount(bins, (change - mean[bins]) ** 2, len(count)) / (count - 1)
        return mean, np.sqrt(variance / count), count


def binned_window(
    edges: Real[AnyArray, " num_edges"] | Sequence[float],
    pre_relaxation_rate: float,
    post_relaxation_rate: float,
    depression_rate: float | None = None,
) -> np.ndarray:
    """What `binned_means` of `simulate_pairings` estimates: the closed form averaged over each bin, float64.

    Times of pairs have density 1 / |dt| where drives have no scale, and the mean over a bin weighs by it
    (Gauss-Legendre quadrature of 32 points).

    Args:
      edges: increasing, in ms; no bin contains 0.
      pre_relaxation_rate: as in `stdp_window`, like the others.
      post_relaxation_rate: 1 / ms, positive.
      depression_rate: 1 / ms, at least 0.

    Raises:
      ValueError: edges that do not increase, or a bin that contains 0.
    """
    return _bin_average(
        edges, lambda times: stdp_window(times, pre_relaxation_rate, post_relaxation_rate, depression_rate)
    )


def binned_errors(
    edges: Real[AnyArray, " num_edges"] | Sequence[float],
    counts: Real[AnyArray, " num_bins"] | Sequence[float],
    pre_relaxation_rate: float,
    post_relaxation_rate: float,
) -> np.ndarray:
    """Standard errors that `binned_means` of the change has under the closed form, with so many trials in each bin.

    Most trials of a long dt leave the synapse as it is, the others change it by much. Where few of a bin's trials do,
    their scatter says little about the error of their mean (nothing if none does); the closed form's variance does.
    Depression is all or nothing, -lambda_post / 2 or 0; the rate behind potentiation is exponential with mean 1 / dt.

    Args:
      edges: as in `binned_window`.
      counts: trials in each bin, at least 1.
      pre_relaxation_rate: 1 / ms, positive.
      post_relaxation_rate: 1 / ms, positive.

    Raises:
      ValueError: edges that do not increase, a bin that contains 0, or a bin without a trial.
    """
    counts = _finite_times("counts", counts)
    if counts.shape != (len(_increasing(edges)) - 1,):
        raise ValueError(f"got counts of shape {counts.shape}; they are one number for each bin between the edges")
    if not np.all(counts >= 1):
        raise ValueError(f"got {counts.min():g} trials in a bin; every bin takes at least 1")

    def mean_square(times: Array) -> Array:
        window = stdp_window(times, pre_relaxation_rate, post_relaxation_rate)
        return window * jnp.where(times < 0, -post_relaxation_rate / 2, 1 / times)

    mean = binned_window(edges, pre_relaxation_rate, post_relaxation_rate)
    return np.sqrt((_bin_average(edges, mean_square) - mean**2) / counts)


def _bin_average(edges: Real[AnyArray, " num_edges"] | Sequence[float], of: Callable[[Array], Array]) -> np.ndarray:
    """Averages over each bin with density 1 / |dt|."""
    edges = _increasing(edges)
    low, high = edges[:-1], edges[1:]
    if np.any((low <= 0) & (high >= 0)):
        raise ValueError("got a bin that contains dt = 0, where the window has a pole; bins lie on one side of it")
    points, weights = np.polynomial.legendre.leggauss(32)
    times = (low + high)[:, None] / 2 + (high - low)[:, None] / 2 * points
    weights = weights / np.abs(times)
    with jax.enable_x64(True):
        values = np.asarray(of(jnp.asarray(times)))
    return (weights * values).sum(axis=1) / weights.sum(axis=1)


class _Trial(NamedTuple):
    """One trial between two events; the neurons in the order pre, post."""

    time: Float[Array, ""]
    excited: Bool[Array, "2"]
    spikes: Float[Array, "2"]
    """Times of the spikes, inf before."""
    at_spike: Float[Array, ""]
    at_relaxation: Float[Array, ""]


def _pair(stream: Stream, relaxation: Float[Array, "2"]) -> Pairings:
    """One trial of `simulate_pairings`."""
    of_order, of_drive = uniform(substream(stream, 0), (2,))
    first = jnp.where(of_order < 0.5, jnp.array([True, False]), jnp.array([False, True]))
    drive = SLOWEST * (FASTEST / SLOWEST) ** of_drive

    def event(trial: _Trial, number: Array) -> tuple[_Trial, None]:
        fires = jnp.where(jnp.isinf(trial.spikes), drive, 0)
        rates = jnp.where(trial.excited, relaxation, fires)
        clocks = -jnp.log1p(-uniform(substream(stream, number), (2,)))
        waits = jnp.where(rates > 0, clocks / jnp.where(rates > 0, rates, 1), jnp.inf)
        flips = jnp.arange(2) == jnp.argmin(waits)
        time = trial.time + jnp.min(waits)
        # The rule: at post-synaptic flips, if the pre-synaptic neuron is excited.
        size = jnp.where(flips[1] & trial.excited[0], rates[1] / 2, 0)
        return _Trial(
            time=time,
            excited=trial.excited ^ flips,
            spikes=jnp.where(flips & ~trial.excited, time, trial.spikes),
            at_spike=trial.at_spike + jnp.where(trial.excited[1], 0, size),
            at_relaxation=trial.at_relaxation - jnp.where(trial.excited[1], size, 0),
        ), None

    start = _Trial(jnp.zeros(()), first, jnp.where(first, 0, jnp.inf), jnp.zeros(()), jnp.zeros(()))
    trial, _ = jax.lax.scan(event, start, jnp.arange(1, 4))
    dt = trial.spikes[1] - trial.spikes[0]
    pre_first = first[0]
    return Pairings(
        dt=dt,
        change=jnp.where(pre_first, trial.at_spike, trial.at_relaxation),
        later_change=jnp.where(pre_first, trial.at_relaxation, 0),
    )


def _increasing(edges: Real[AnyArray, " num_edges"] | Sequence[float]) -> np.ndarray:
    edges = _finite_times("edges", edges)
    if edges.ndim != 1 or len(edges) < 2 or not np.all(np.diff(edges) > 0):
        raise ValueError(f"got edges {edges.tolist()}; they take two or more increasing times, in ms")
    return edges


def _finite_times(name: str, times: ArrayLike) -> np.ndarray:
    """Numbers, times among them, as float64; raises ValueError unless all are finite."""
    try:
        if np.iscomplexobj(times):
            raise TypeError
        found = np.asarray(times, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"got a {type(times).__name__} for {name}; it takes an array of finite numbers") from None
    checks.finite(name, found)
    return found


def _check_rates(**rates: float) -> None:
    for name, rate in rates.items():
        checks.positive(name, rate, "per ms")
