"""The local rule applied at spikes: learning in continuous time from the events of clamped neurons.

While a state x is clamped, every neuron keeps trying to flip, at its flip rate delta_j(x); the clamp holds it, so that
the attempts of unit j are a Poisson process of that rate. At each attempt the synapses onto j, and no others, change:

    w_ij -> w_ij - eta x_i alpha_j          b_j -> b_j - eta alpha_j

The factor delta_j of the local rule x_i alpha_j delta_j (`local_rule`; Liu, Quek and Lin, arXiv 1711.07732, section 4)
is not computed by anyone: it is how often the event happens, so that the mean change per unit of time is the directed
half of the gradient of probability flow. A symmetric weight changes at the events of both of its ends, and learns along
the whole gradient; in a directed machine (`machine.untie`) each of the two synapses changes at its own.

The sign is that of spike timing (`stdp`), alpha_j being taken at the state that the neuron flips into: a flip that the
clamp undoes is followed by one back into the data, and this is the one that changes the synapses. The size is another:
there an event counts delta_j, and a rule that did so at every event of a clamped neuron would go along delta_j squared.
Not here: hidden states of data (`stack.complete` samples them), optimizers (`train`), free dynamics (`spiking`).
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from vpf_jax import checks, couplings
from vpf_jax.energy import local_fields
from vpf_jax.exporting import exported
from vpf_jax.machine import AnyState, BoltzmannMachine, check_state
from vpf_jax.rules.vpf import DirectedGradient, directed_products, flip_rates
from vpf_jax.sample.streams import Stream, stream_of, substream, substreams
from vpf_jax.spikes.spiking import coupling_matrix, layered_machine, next_event
from vpf_jax.units import two_valued


@exported("vpf_jax.OnlineResult")
class OnlineResult(NamedTuple):
    """What `learn_from_events` returns."""

    machine: BoltzmannMachine
    num_events: Int[Array, ""]
    """Attempts to flip, and so changes, in all."""


def event_gradient(
    key: PRNGKeyArray, machine: BoltzmannMachine, states: AnyState, duration: float | Float[Array, ""]
) -> DirectedGradient:
    """Mean change per unit of time over the events of clamped states, the parameters held: an unbiased estimate of
    `directed_gradient`.

    The variance falls as 1 / (batch * duration). The sum of `forward` and `backward`, and of an intra-layer matrix and
    its transpose, estimates `local_gradient`.

    Args:
      key: a random key.
      machine: the machine.
      states: complete states, one array [batch, n_l] per layer, each clamped for the same time.
      duration: of each, in units in which a neuron without input tries to flip once; positive, may be traced.

    Raises:
      ValueError: states that do not fit, an empty batch, a duration that is not positive and finite, or, where values
        are concrete, flip rates that overflow.
    """
    check_state(machine, states, batched=True, name="the states")
    checks.positive("duration", duration)
    layers = tuple(jnp.asarray(x) for x in states)
    fields = jax.vmap(local_fields, in_axes=(None, 0))(machine, layers)
    kinds = [two_valued(unit, "learning at events") for unit in machine.layer_units]
    alphas = tuple(unit.half_way(x, z.dtype) for unit, x, z in zip(kinds, layers, fields, strict=True))
    deltas = jnp.concatenate([jnp.exp(a * z) for a, z in zip(alphas, fields, strict=True)], axis=1)
    _check_finite(deltas)

    def count(stream: Stream, deltas: Float[Array, " n"]) -> Float[Array, " n"]:
        """Attempts of each unit while one state is clamped."""

        def attempt(carry):
            counts, unit, time, number = carry
            counts = counts + (jnp.arange(deltas.shape[0]) == unit)
            unit, wait = next_event(deltas, substream(stream, number))
            return counts, unit, time + wait, number + 1

        unit, wait = next_event(deltas, substream(stream, 0))
        start = jnp.zeros_like(deltas), unit, wait, jnp.int32(1)
        return jax.lax.while_loop(lambda carry: carry[2] < duration, attempt, start)[0]

    counts = jax.vmap(count)(substreams(stream_of(key), len(deltas)), deltas)
    bounds = list(itertools.accumulate(machine.sizes))[:-1]
    seen = jnp.split(counts / duration, bounds, axis=1)
    slopes = tuple(a * rate for a, rate in zip(alphas, seen, strict=True))
    return directed_products(machine, tuple(x.astype(a.dtype) for x, a in zip(layers, alphas, strict=True)), slopes)


def learn_from_events(
    key: PRNGKeyArray,
    machine: BoltzmannMachine,
    states: AnyState,
    duration: float | Float[Array, ""],
    learning_rate: float | Float[Array, ""],
) -> OnlineResult:
    """Clamps one state after the other, in the order given, and changes the machine at every event.

    What changes at one event acts on the rates of the next. For small learning rates the change is -learning_rate *
    duration * (the sum over the states of `local_gradient`), on average. Nothing is batched: the cost is O(n) per event
    and a pass over the n^2 couplings per state.

    Args:
      key: a random key.
      machine: symmetric or directed.
      states: complete states, one array [num_states, n_l] per layer.
      duration: for which each is clamped, as in `event_gradient`.
      learning_rate: eta, the change of a bias at one event being eta / 2; positive, may be traced.

    Raises:
      ValueError: states that do not fit, an empty batch, numbers that are not positive and finite, or, where values are
        concrete, flip rates that overflow, at the start or in the end.
    """
    check_state(machine, states, batched=True, name="the states")
    checks.positive("duration", duration)
    checks.positive("learning_rate", learning_rate)
    couplings.check_dense((*machine.weights, *machine.downward), "learning at events")
    start = jnp.stack([jnp.sum(delta) for delta in flip_rates(machine, tuple(x[0] for x in states))])
    _check_finite(start)
    x = jnp.concatenate([jnp.asarray(x).astype(machine.biases[0].dtype) for x in states], axis=1)
    learnt, num_events = _learn(stream_of(key), machine, x, duration, learning_rate)
    _check_finite(jnp.concatenate(learnt.biases))
    return OnlineResult(learnt, num_events)


@jax.jit
def _learn(stream, machine, x, duration, learning_rate):
    """`learn_from_events` on flat states [batch, n]."""
    n = machine.num_units
    middle = _middles(machine)
    joined = coupling_matrix(jax.tree.map(jnp.ones_like, machine)) * (1 - jnp.eye(n, dtype=x.dtype))

    def clamp(carry, inputs):
        number, x = inputs
        stream_here = substream(stream, number)

        def attempt(carry):
            coupling, bias, fields, unit, time, number = carry
            a = middle[unit] - x[unit]
            # Of the synapses onto the unit; entry i of a row or column belongs to unit i.
            change = -learning_rate * a * x * joined[:, unit]
            coupling = coupling.at[:, unit].add(change)
            fields = fields.at[unit].add(jnp.vdot(change, x) - learning_rate * a)
            bias = bias.at[unit].add(-learning_rate * a)
            if machine.backward is None:
                coupling = coupling.at[unit].add(change)
                fields = fields + x[unit] * change
            unit, wait = next_event(jnp.exp((middle - x) * fields), substream(stream_here, number))
            return coupling, bias, fields, unit, time + wait, number + 1

        coupling, bias, events = carry
        fields = bias + jnp.matmul(x, coupling, precision="highest")
        unit, wait = next_event(jnp.exp((middle - x) * fields), substream(stream_here, 0))
        start = coupling, bias, fields, unit, wait, jnp.int32(1)
        coupling, bias, *_, number = jax.lax.while_loop(lambda carry: carry[4] < duration, attempt, start)
        return (coupling, bias, events + number - 1), None

    start = coupling_matrix(machine), jnp.concatenate(machine.biases), jnp.int32(0)
    (coupling, bias, events), _ = jax.lax.scan(clamp, start, (jnp.arange(len(x)), x))
    return layered_machine(machine, coupling, bias), events


def _middles(machine: BoltzmannMachine) -> Float[Array, " n"]:
    """Half way between the two values of each unit, visible first: alpha is this minus the value."""
    layers = zip(machine.layer_units, machine.biases, strict=True)
    kinds = [(two_valued(unit, "learning at events"), bias) for unit, bias in layers]
    return jnp.concatenate([jnp.full_like(bias, (unit.low + unit.high) / 2) for unit, bias in kinds])


def _check_finite(values: Array) -> None:
    if not isinstance(values, jax.core.Tracer) and not bool(jnp.all(jnp.isfinite(values))):
        raise ValueError("flip rates have overflowed; in float32 they are finite for local fields below 176")
