"""Variational probability flow: flip rates, the objective, and the local rule, its gradient in closed form.

The continuous-time Markov chain over states that differ in one unit, with rate from x to (x with x_j' for x_j)

    delta_j(x) = exp((E(x) - E(x with x_j'))/2) = exp(alpha_j z_j),      alpha_j = (x_j' - x_j)/2, 1/2 - x_j for bits

satisfies detailed balance with p(x) = exp(-E(x)) / Z. Minimum probability flow (Sohl-Dickstein, Battaglino and
DeWeese, arXiv 0906.4779) minimises, to first order in a small time epsilon, KL(data || data after time epsilon):
epsilon times the mean J of the sum of all flip rates. Variational probability flow (Liu, Quek and Lin, arXiv
1711.07732, sections 3 and 4) applies it to states completed by sampled hidden units; MPF is the case without them.

    dJ/dw_ij = < x_i alpha_j delta_j + x_j alpha_i delta_i >        dJ/db_j = < alpha_j delta_j >

The weight of a synapse changes by the states and firing rates of the two neurons it joins and by nothing else. The
directed half x_i alpha_j delta_j, of a synapse from i to j, is the rule whose spike-timing window is STDP-like.

Convention: strictly, only flips that leave the data set count. Like the paper's own experiments this module sums over
all flips. Not here: what a unit's rates are (`units`); hidden states averaged in closed form (`flips`); step sizes,
decay, the E-step (`train`).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vpf_jax import checks, couplings
from vpf_jax.couplings import Blocks
from vpf_jax.energy import layer_field, local_fields
from vpf_jax.exporting import exported
from vpf_jax.machine import AnyState, BoltzmannMachine, State, check_state, map_own
from vpf_jax.rules import flips
from vpf_jax.rules.base import ESTEPS, Estimate, Rule, register
from vpf_jax.sample.streams import Stream
from vpf_jax.settings import setting
from vpf_jax.sharding import MODEL, mean_of_parts, spread
from vpf_jax.units import two_valued


@register
@dataclasses.dataclass(frozen=True)
class VPF(Rule):
    """Variational probability flow; the defaults are the paper's."""

    name = "vpf"

    estep: str = setting(
        "epoch", "When hidden states are sampled, all at its start or just before each step", choices=ESTEPS
    )
    expectation: str = setting(
        "sample",
        "Over the hidden states, one sample per example or in closed form given the layer below (two layers, without "
        "weights inside the hidden one)",
        choices=("sample", "exact"),
    )
    hidden_flips: bool = setting(True, "Whether the flips of hidden units count")
    flips_per_step: int | None = setting(
        None,
        "Visible units, drawn at random, whose flips a step counts, with the exact expectation; left out: all",
        least=1,
    )
    epsilon: float = setting(0.01, "The small time of probability flow, which scales it against the decay", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = self.flips_per_step is None or self.expectation == "exact"
        checks.require(counts, "flips_per_step", self.flips_per_step, "nothing where hidden states are sampled")

    @property
    def scale(self) -> float:
        return self.epsilon

    @property
    def estep_per_epoch(self) -> bool:
        return self.estep == "epoch"

    def accepts(self, machine: BoltzmannMachine) -> None:
        if self.expectation == "exact":
            flips.check_closed_form(machine, "the exact expectation", layers=(2,))
            flips.check_flips_per_step(self.flips_per_step, machine)

    def estimate(
        self, stream: Stream, machine: BoltzmannMachine, inference: BoltzmannMachine, states: State, carry: Any
    ) -> Estimate:
        if self.expectation == "sample":
            return Estimate(*objective_and_gradient(machine, states, self.hidden_flips), carry)
        field = jax.vmap(lambda s: layer_field(inference, s, 1))(states)
        probabilities = two_valued(machine.layer_units[1], "the exact expectation").probability(field)
        units = flips.draw_units(stream, machine, self.flips_per_step)

        def flow(visible: Array, probabilities: Array) -> tuple[Array, BoltzmannMachine]:
            return flips.averaged_flow(machine, visible, probabilities, self.hidden_flips, units)

        return Estimate(*mean_of_parts(flow, states[0], probabilities), carry)


@exported("vpf_jax.DirectedGradient")
class DirectedGradient(NamedTuple):
    """Batch means of the directed halves; i counts rows and j columns."""

    biases: tuple[Float[Array, " _n_l"], ...]
    """< alpha_j delta_j >"""
    forward: Blocks
    """< x_i alpha_j delta_j >: synapses from a layer up to the next."""
    backward: Blocks
    """< alpha_i delta_i x_j >: synapses from the next layer back down."""
    intra: tuple[Float[Array, "_n_l _n_l"] | None, ...]
    """< x_i alpha_j delta_j > inside a layer, zero diagonal."""


class Flow(NamedTuple):
    """What both sides of the rule are made of, for a batch of states."""

    objective: Float[Array, ""]
    """Batch mean of the sum of all flip rates."""
    states: State
    """The states in the parameters' precision."""
    slopes: tuple[Float[Array, "batch _n_l"], ...]
    """alpha_j delta_j, the derivative of the summed flip rates by the bias of unit j."""
    own: tuple[Float[Array, " _n_l"] | None, ...] | None
    """Mean derivatives by the parameters of the units' own energy."""


def flip_rates(machine: BoltzmannMachine, state: AnyState) -> tuple[Float[Array, " _n_l"], ...]:
    """Rates delta_j >= 0 at which the units of one configuration flip, one array [n_l] per layer.

    The "firing rates" of the paper, per unit of the chain's time; of units with more than two values the sum of the
    rates to all others. float32 overflows to inf where |z| > 176.

    Raises:
      ValueError: a state whose layers do not fit the machine.
    """
    fields = local_fields(machine, state)
    return tuple(unit.flow(jnp.asarray(x), z)[0] for unit, x, z in zip(machine.layer_units, state, fields, strict=True))


def vpf_objective(machine: BoltzmannMachine, states: AnyState) -> Float[Array, ""]:
    """Mean over a batch of the sum of all flip rates, visible and hidden: J without epsilon and decay.

    Differentiable in the machine's parameters. For a machine with intra-layer weights pass the result of `jax.grad`
    through `tie_intra`, or use `local_gradient`, which is also cheaper.

    Args:
      machine: the machine.
      states: complete states, one array [batch, n_l] per layer.

    Raises:
      ValueError: states whose layers do not fit the machine, or an empty batch.
    """
    check_state(machine, states, batched=True)
    return mean_total(jax.vmap(flip_rates, in_axes=(None, 0))(machine, tuple(states)))


def mean_total(deltas: tuple[Float[Array, "batch _n_l"], ...]) -> Float[Array, ""]:
    """Batch mean of the sum of all flip rates."""
    return jnp.mean(sum(jnp.sum(delta, axis=1) for delta in deltas))


def local_gradient(machine: BoltzmannMachine, states: AnyState) -> BoltzmannMachine:
    """Gradient of `vpf_objective` in closed form, from states and firing rates alone.

    Args:
      machine: the machine.
      states: complete states, one array [batch, n_l] per layer.

    Returns:
      The gradient in the shape of the machine. An intra-layer weight is one parameter per unordered pair of units:
      its derivative stands at both places of a symmetric matrix with zero diagonal. In a directed machine every
      synapse is a parameter of its own, and its derivative is its directed half.

    Raises:
      ValueError: states whose layers do not fit the machine, or an empty batch.
    """
    return objective_and_gradient(machine, states)[1]


def objective_and_gradient(
    machine: BoltzmannMachine, states: AnyState, hidden_flips: bool = True
) -> tuple[Float[Array, ""], BoltzmannMachine]:
    """`vpf_objective` and `local_gradient` at the cost of the gradient alone; same arguments and errors.

    Args:
      machine: the machine.
      states: complete states, one array [batch, n_l] per layer.
      hidden_flips: whether flips of hidden units count. Where hidden states are exact samples given the visible ones
        and the present parameters, they change the expected gradient by nothing (detailed balance) and are noise.
    """
    flow = _flow(machine, states, hidden_flips)

    def gradient(x: State, slopes: tuple[Array, ...]) -> BoltzmannMachine:
        halves = directed_products(machine, x, slopes)
        if machine.backward is not None:
            weights, intra, backward = halves.forward, halves.intra, halves.backward
        else:
            weights, backward = jax.tree.map(jnp.add, halves.forward, halves.backward), None
            intra = tuple(
                None if g is None else _tied(machine, i, g, x[i], slopes[i]) for i, g in enumerate(halves.intra)
            )
        return dataclasses.replace(
            machine, biases=halves.biases, weights=weights, intra=intra, backward=backward, own=None
        )

    found = mean_of_parts(gradient, flow.states, flow.slopes)
    return flow.objective, dataclasses.replace(found, own=flow.own)


def directed_gradient(machine: BoltzmannMachine, states: AnyState) -> DirectedGradient:
    """The directed halves of `local_gradient`, one for each direction of a synapse; same arguments and errors."""
    flow = _flow(machine, states)
    return directed_products(machine, flow.states, flow.slopes)


def directed_products(
    machine: BoltzmannMachine, x: State, slopes: tuple[Float[Array, "batch _n_l"], ...]
) -> DirectedGradient:
    """The directed halves of the rule, given states and alpha_j delta_j, or an estimate of it: their mean products."""
    batch = slopes[0].shape[0]
    pairs = list(enumerate(machine.weights))
    return DirectedGradient(
        biases=tuple(jnp.sum(g, axis=0) / batch for g in slopes),
        forward=tuple(couplings.products(w, x[i], slopes[i + 1]) for i, w in pairs),
        backward=tuple(couplings.products(w, slopes[i], x[i + 1]) for i, w in pairs),
        intra=tuple(
            None if l is None else couplings.hollow(couplings.products(l, x[i], slopes[i]), machine.owners(i))
            for i, l in enumerate(machine.intra)
        ),
    )


def _tied(machine: BoltzmannMachine, layer: int, half: Array, x: Array, slopes: Array) -> Array:
    """Of symmetric weights inside a layer, the gradient: the sum of both halves of the rule, of which one is given."""
    if spread(MODEL) == 1:
        return half + half.T
    # A matrix that is cut by columns is transposed by sending all of it; rates of a minibatch are less.
    other = couplings.products(half, slopes, x)
    return half + couplings.hollow(other, machine.owners(layer))


def _flow(machine: BoltzmannMachine, states: AnyState, hidden_flips: bool = True) -> Flow:
    check_state(machine, states, batched=True)
    checks.boolean("hidden_flips", hidden_flips)
    fields = jax.vmap(local_fields, in_axes=(None, 0))(machine, tuple(states))
    flows = [unit.flow(jnp.asarray(x), z) for unit, x, z in zip(machine.layer_units, states, fields, strict=True)]
    if not hidden_flips:
        flows = [flows[0], *(jax.tree.map(jnp.zeros_like, flow) for flow in flows[1:])]
    rates, slopes = zip(*flows, strict=True)
    x = tuple(jnp.asarray(layer).astype(z.dtype) for layer, z in zip(states, fields, strict=True))

    def own_slope(i: int, _: Array) -> Float[Array, " n_l"]:
        if i > 0 and not hidden_flips:
            return jnp.zeros_like(machine.biases[i])
        return jnp.mean(machine.layer_units[i].own_slope(x[i], fields[i]), axis=0)

    return Flow(mean_total(rates), x, slopes, map_own(own_slope, machine))
