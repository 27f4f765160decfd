"""The local learning rule: the closed-form gradient of the probability-flow objective, and its directed half.

    dJ/dw_ij = < x_i alpha_j delta_j + x_j alpha_i delta_i >        dJ/db_j = < alpha_j delta_j >

(Liu, Quek and Lin, arXiv 1711.07732, section 4): the weight of a synapse changes by the states and firing rates of
the two neurons it joins and by nothing else. The directed half x_i alpha_j delta_j, of a synapse from i to j, is the
rule whose spike-timing window is STDP-like. Not here: step sizes, momentum, decay (`train`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vpf_jax import checks
from vpf_jax.energy import local_fields, narrow_product
from vpf_jax.exporting import exported
from vpf_jax.machine import BoltzmannMachine, State, check_state, off_diagonal
from vpf_jax.rules.flow import alpha, mean_total, rates


@exported("vpf_jax.DirectedGradient")
class DirectedGradient(NamedTuple):
    """Batch means of the directed halves; i counts rows and j columns."""

    biases: tuple[Float[Array, " n_l"], ...]
    """< alpha_j delta_j >"""
    forward: tuple[Float[Array, "n_l n_next"], ...]
    """< x_i alpha_j delta_j >: synapses from a layer up to the next."""
    backward: tuple[Float[Array, "n_l n_next"], ...]
    """< alpha_i delta_i x_j >: synapses from the next layer back down."""
    intra: tuple[Float[Array, "n_l n_l"] | None, ...]
    """< x_i alpha_j delta_j > inside a layer, zero diagonal."""


class Flow(NamedTuple):
    """What both sides of the rule are made of, for a batch of states."""

    objective: Float[Array, ""]
    """Batch mean of the sum of all flip rates."""
    states: State
    """The states in the parameters' precision."""
    slopes: tuple[Float[Array, "batch n_l"], ...]
    """alpha_j delta_j, the derivative of the summed flip rates by the bias of unit j."""


def local_gradient(machine: BoltzmannMachine, states: State) -> BoltzmannMachine:
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
    machine: BoltzmannMachine, states: State, hidden_flips: bool = True
) -> tuple[Float[Array, ""], BoltzmannMachine]:
    """`vpf_objective` and `local_gradient` at the cost of the gradient alone; same arguments and errors.

    Args:
      machine: the machine.
      states: complete states, one array [batch, n_l] per layer.
      hidden_flips: whether flips of hidden units count. Where hidden states are exact samples given the visible ones
        and the present parameters, they change the expected gradient by nothing (detailed balance) and are noise.
    """
    flow = _flow(machine, states, hidden_flips)
    directed = directed_products(machine, flow.states, flow.slopes)
    if machine.backward is not None:
        return flow.objective, BoltzmannMachine(directed.biases, directed.forward, directed.intra, directed.backward)
    return flow.objective, BoltzmannMachine(
        biases=directed.biases,
        weights=tuple(f + b for f, b in zip(directed.forward, directed.backward, strict=True)),
        intra=tuple(None if g is None else g + g.T for g in directed.intra),
    )


def directed_gradient(machine: BoltzmannMachine, states: State) -> DirectedGradient:
    """The directed halves of `local_gradient`, one for each direction of a synapse; same arguments and errors."""
    flow = _flow(machine, states)
    return directed_products(machine, flow.states, flow.slopes)


def _flow(machine: BoltzmannMachine, states: State, hidden_flips: bool = True) -> Flow:
    check_state(machine, states, batched=True)
    checks.boolean("hidden_flips", hidden_flips)
    fields = jax.vmap(local_fields, in_axes=(None, 0))(machine, tuple(states))
    alphas = tuple(alpha(x, z) for x, z in zip(states, fields, strict=True))
    slopes = tuple(a * rates(a, z) for a, z in zip(alphas, fields, strict=True))
    if not hidden_flips:
        slopes = (slopes[0], *(jnp.zeros_like(g) for g in slopes[1:]))
    return Flow(
        # |alpha| is 1/2. From the slopes, so that the rates need not be stored beside them.
        objective=mean_total(tuple(2 * jnp.abs(g) for g in slopes)),
        states=tuple(0.5 - a for a in alphas),
        slopes=slopes,
    )


def directed_products(
    machine: BoltzmannMachine, x: State, slopes: tuple[Float[Array, "batch n_l"], ...]
) -> DirectedGradient:
    """The directed halves of the rule, given states and alpha_j delta_j, or an estimate of it: their mean products."""
    batch = slopes[0].shape[0]
    pairs = list(enumerate(machine.weights))
    return DirectedGradient(
        biases=tuple(jnp.sum(g, axis=0) / batch for g in slopes),
        forward=tuple(mean_products(x[i], slopes[i + 1], w) for i, w in pairs),
        backward=tuple(mean_products(slopes[i], x[i + 1], w) for i, w in pairs),
        intra=tuple(
            None if l is None else off_diagonal(mean_products(x[i], slopes[i], l)) for i, l in enumerate(machine.intra)
        ),
    )


def mean_products(
    a: Float[Array, "batch n"], b: Float[Array, "batch m"], weights: Float[Array, "n m"]
) -> Float[Array, "n m"]:
    """Mean over the batch of a_i b_j, the factors in the precision of the weights, the sums in their own."""
    narrow = weights.dtype
    return narrow_product(a.T.astype(narrow), b.astype(narrow), b.dtype) / a.shape[0]
