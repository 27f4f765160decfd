"""Machines of spiking neurons: the flip dynamics in continuous time, simulated exactly, event by event.

A unit is a neuron with two states. Resting (0) it fires, excited (1) it relaxes, in either case at its flip rate

    delta_j(x) = exp(alpha_j z_j),      alpha_j = 1/2 - x_j

(`flow`). Every unit runs an exponential clock at its rate; the first to ring flips, which changes the fields and rates
of the units it is joined to, and the race starts anew, clocks having no memory. The chain satisfies detailed balance
with p(x) = exp(-E(x)) / Z, so that fractions of time are the machine's probabilities (Sohl-Dickstein, Battaglino and
DeWeese, arXiv 0906.4779, for the chain; Gillespie 1977, "Exact stochastic simulation of coupled chemical reactions",
for its simulation). Nothing is discretised: the waiting time is exponential with the sum of the rates, and the winner
of the race is drawn in proportion to its rate. An event costs O(n): a row of couplings is added to the fields.

Units of more values have a clock for each neighbouring value (`jumps`): categories jump to any other, counts go up or
down by one. Time is counted in units in which a neuron without input (z = 0) flips once on average. In a directed
machine (`machine.untie`) the dynamics are the same and the stationary distribution is no longer known. Not here:
learning from the events (`event_learning`), spike-timing windows of one synapse (`stdp`), Gibbs sampling (`gibbs`).
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, Num, PRNGKeyArray

from vpf_jax import checks, couplings
from vpf_jax.checks import AnyArray
from vpf_jax.energy import local_fields
from vpf_jax.exporting import exported
from vpf_jax.machine import AnyState, BoltzmannMachine, State, check_layers, check_machine, check_state
from vpf_jax.sample.streams import Stream, stream_of, substream, uniform
from vpf_jax.spikes.jumps import Jumps

# Events after which the fields are summed afresh, so that rounding does not pile up in them.
REFRESH = 1024


@exported("vpf_jax.SpikeTrain")
class SpikeTrain(NamedTuple):
    """Flips, or jumps of units of more values, in the order in which they happened."""

    units: Int[Array, " num_events"]
    """Which unit flipped, counted through the layers, visible first; one of several entries counts once."""
    times: Float[Array, " num_events"]
    """Times since the start of the run, not decreasing, in the precision of the parameters: in float32, events closer
    than about 1e-7 of the time share one."""
    values: Integer[Array, " num_events"]
    """What it flipped to: 1 is a spike, 0 a relaxation. A raster plots units over times where this is 1. Of categories
    the code, of counts the count."""


@exported("vpf_jax.SpikingRun")
class SpikingRun(NamedTuple):
    """What `run_spiking` returns."""

    state: State
    """After the last event, each layer in the dtype it came in."""
    events: SpikeTrain
    occupation: tuple[Float[Array, " _n_l"], ...]
    """The mean over time of each entry: for bits the fraction of the time for which each was excited, in [0, 1], for
    categories that of each value."""
    duration: Float[Array, ""]
    """Time of the last event; positive."""


def run_spiking(
    key: PRNGKeyArray,
    machine: BoltzmannMachine,
    state: AnyState,
    num_events: int,
    clamped: Sequence[int] = (),
    held: Bool[AnyArray, " n_0"] | None = None,
) -> SpikingRun:
    """Simulates one machine from one configuration for a number of flips.

    Under `jax.jit` events that are not used cost no memory. Batches come by `jax.vmap` over keys and states.

    Args:
      key: a random key.
      machine: the machine, of any connectivity.
      state: one array [n_l] of values of its units per layer; they are of any kinds but real ones.
      num_events: number of flips, at least 1.
      clamped: indices of the layers held fixed.
      held: visible units held fixed besides, True for held, a unit of several entries by any of them; None: none.

    Raises:
      ValueError: units of real values, a state or `held` that does not fit the machine, numbers out of range, nothing
        left to flip, or, where values are concrete, flip rates that overflow (in float32 where a local field passes
        176) or all underflow.
    """
    num_events = checks.integer("num_events", num_events, 1)
    check_state(machine, state, batched=False)
    jumps = Jumps(machine)
    free = _free_units(machine, jumps, check_layers("clamped", clamped, len(machine.sizes)), held)[jumps.unit]
    coupling, bias = coupling_matrix(machine), jnp.concatenate(machine.biases)
    start = jnp.concatenate([jnp.asarray(x).astype(bias.dtype) for x in state])
    rates, _ = jumps.rates_and_changes(start, jnp.concatenate(local_fields(machine, state)))
    _check_rates(jnp.sum(jnp.where(free, rates, 0)), "at the start")
    stream = stream_of(key)

    def play(x: Array, first: Int[Array, ""] | int, count: int) -> tuple[Array, tuple[Array, ...]]:
        """Some events, from freshly summed fields; times and durations from the first of them on."""

        def step(carry, number):
            x, fields, occupied, time = carry
            rates, changes = jumps.rates_and_changes(x, fields)
            jump, wait = next_event(jnp.where(free, rates, 0), substream(stream, number))
            time = time + wait
            change, unit = jumps.change(changes, jump), jnp.asarray(jumps.unit)[jump]
            first_entry = jnp.asarray(jumps.first_entry)[unit]
            # Of entries beside those of the unit the change is 0, so that a window of one size does for all.
            some, rows = (jax.lax.dynamic_slice_in_dim(a, first_entry, jumps.width) for a in (change, coupling))
            fields = fields + jnp.sum(some[:, None] * rows, axis=0)
            moved = x + change
            return (moved, fields, occupied + wait * x, time), (unit, time, jumps.value(moved, unit))

        fields = bias + jnp.matmul(x, coupling, precision="highest")
        carry = x, fields, jnp.zeros_like(x), jnp.zeros((), x.dtype)
        (x, _, occupied, time), events = jax.lax.scan(step, carry, first + jnp.arange(count))
        return x, (occupied, time, *events)

    full, rest = divmod(num_events, REFRESH)
    x, parts = jax.lax.scan(lambda x, i: play(x, i * REFRESH, REFRESH), start, jnp.arange(full))
    if rest:
        x, last = play(x, full * REFRESH, rest)
        parts = jax.tree.map(lambda a, b: (a, b[None]), parts, last)
    else:
        parts = jax.tree.map(lambda a: (a,), parts)
    return _joined(machine, state, x, parts)


def coupling_matrix(machine: BoltzmannMachine) -> Float[Array, "n n"]:
    """All weights of a machine as one matrix over its units, visible first: entry (i, j) is the synapse from i to j."""
    check_machine(machine)
    n, layers = machine.num_units, _slices(machine)
    coupling = jnp.zeros((n, n), machine.biases[0].dtype)
    pairs = zip(itertools.pairwise(layers), machine.weights, machine.downward, strict=True)
    for (lower, upper), forward, backward in pairs:
        coupling = coupling.at[lower, upper].set(couplings.dense(forward))
        coupling = coupling.at[upper, lower].set(couplings.dense(backward).T)
    for layer, intra in zip(layers, machine.intra, strict=True):
        if intra is not None:
            coupling = coupling.at[layer, layer].set(intra)
    return coupling


def layered_machine(
    like: BoltzmannMachine, coupling: Float[Array, "n n"], bias: Float[Array, " n"]
) -> BoltzmannMachine:
    """The inverse of `coupling_matrix`: a machine of the connectivity of another, from couplings and biases."""
    layers = _slices(like)
    pairs = list(itertools.pairwise(layers))
    return dataclasses.replace(
        like,
        biases=tuple(bias[layer] for layer in layers),
        weights=tuple(coupling[lower, upper] for lower, upper in pairs),
        intra=tuple(None if l is None else coupling[s, s] for s, l in zip(layers, like.intra, strict=True)),
        backward=None if like.backward is None else tuple(coupling[upper, lower].T for lower, upper in pairs),
    )


def _slices(machine: BoltzmannMachine) -> list[slice]:
    """Where the units of each layer stand among all of them."""
    ends = itertools.accumulate(machine.sizes)
    return [slice(end - size, end) for size, end in zip(machine.sizes, ends, strict=True)]


def next_event(deltas: Float[Array, " n"], stream: Stream) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """Winner and waiting time of a race of exponential clocks, given their rates; a clock of rate 0 never wins.

    The waiting time is infinite where all rates are 0.
    """
    # In two stages, a block and a unit in it: O(sqrt n) work beyond the sum of the rates.
    size = max(1, 2 ** round(math.log2(deltas.shape[0]) / 2))
    blocks = jnp.pad(deltas, (0, -deltas.shape[0] % size)).reshape(-1, size)
    of_block, of_unit, of_wait = uniform(stream, (3,))
    block, total = _draw(jnp.sum(blocks, axis=1), of_block)
    unit, _ = _draw(blocks[block], of_unit)
    return block * size + unit, -jnp.log1p(-of_wait.astype(total.dtype)) / total


def _draw(weights: Float[Array, " n"], uniform: Float[Array, ""]) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """An index in proportion to its weight, driven by a number in [0, 1), and the sum of the weights."""
    n = weights.shape[0]
    # Partial sums as one product: several times as fast as a cumulative sum for the few numbers there are. An entry
    # without weight has the partial sum of the one before it, and so is never the first above.
    running = jnp.matmul(jnp.tri(n, dtype=weights.dtype), weights, precision="highest")
    below = running <= uniform.astype(weights.dtype) * running[-1]
    return jnp.minimum(jnp.sum(below), n - 1), running[-1]


def _joined(machine: BoltzmannMachine, state: AnyState, x: Array, parts: tuple[tuple[Array, ...], ...]) -> SpikingRun:
    """One run of its parts: the flat state in layers, times counted from the start."""
    occupied, durations, units, times, values = parts
    elapsed = jnp.concatenate(durations)
    starts = jnp.cumsum(elapsed) - elapsed
    shifted = tuple(t + start[:, None] for t, start in zip(times, jnp.split(starts, [len(times[0])]), strict=False))
    duration = jnp.sum(elapsed)
    _check_rates(1 / duration, "during the run")
    bounds = list(itertools.accumulate(machine.sizes))[:-1]
    layers = jnp.split(x, bounds)
    return SpikingRun(
        state=tuple(layer.astype(jnp.asarray(given).dtype) for layer, given in zip(layers, state, strict=True)),
        events=SpikeTrain(*(jnp.concatenate([a.reshape(-1) for a in arrays]) for arrays in (units, shifted, values))),
        occupation=checks.spoilt(
            tuple(jnp.split(jnp.sum(jnp.concatenate(occupied), axis=0) / duration, bounds)), machine
        ),
        duration=duration,
    )


def _free_units(
    machine: BoltzmannMachine, jumps: Jumps, clamped: tuple[int, ...], held: Bool[AnyArray, " n_0"] | None
) -> Bool[Array, " num_units"]:
    """Which units may flip."""
    layers = [jnp.full(n, i not in clamped) for i, n in enumerate(machine.sizes)]
    if held is not None:
        held = jnp.asarray(checks.array("held", held, "an array of booleans"))
        if held.shape != layers[0].shape or held.dtype != bool:
            raise ValueError(
                f"got held of shape {held.shape} and dtype {held.dtype}; it takes booleans of shape {layers[0].shape}, "
                "one per visible unit"
            )
        layers[0] = layers[0] & ~held
    free = jumps.free(jnp.concatenate(layers))
    if not isinstance(free, jax.core.Tracer) and not bool(jnp.any(free)):
        raise ValueError("got every unit clamped or held; at least one has to be free to flip")
    return free


def _check_rates(total: Num[Array, ""], when: str) -> None:
    """Raises where the sum of the rates, or a mean of it, is a concrete number that says they are out of range."""
    if not isinstance(total, jax.core.Tracer) and not 0 < float(total) < math.inf:
        raise ValueError(
            f"flip rates overflow, or all of them are 0, {when}; they have to be finite, which in float32 takes local "
            "fields below 176"
        )
