"""Flip rates and the probability-flow objective (MPF and VPF).

The continuous-time Markov chain over states that differ in one bit, with rate from x to (x with bit j flipped)

    delta_j(x) = exp((E(x) - E(x with bit j flipped)) / 2) = exp(alpha_j z_j),      alpha_j = 1/2 - x_j

satisfies detailed balance with p(x) = exp(-E(x)) / Z. Minimum probability flow (Sohl-Dickstein, Battaglino and
DeWeese, arXiv 0906.4779) minimises, to first order in a small time epsilon, KL(data || data after time epsilon):
epsilon times the mean of the sum of all flip rates. Variational probability flow (Liu, Quek and Lin, arXiv
1711.07732, section 3) applies it to states completed by sampled hidden units; MPF is the case without hidden layers.

Convention: strictly, only flips that leave the data set count. Like the paper's own experiments this module sums
over all flips. Not here: epsilon and weight decay (`train`), the closed-form gradient (`local_rule`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from vpf_jax.energy import local_fields
from vpf_jax.machine import BoltzmannMachine, State, check_state


def flip_rates(machine: BoltzmannMachine, state: State) -> tuple[Float[Array, " n_l"], ...]:
    """Rates delta_j >= 0 at which the units of one configuration flip, one array [n_l] per layer.

    The "firing rates" of the paper, per unit of the chain's time. float32 overflows to inf where |z| > 176.

    Raises:
      ValueError: a state whose layers do not fit the machine.
    """
    fields = local_fields(machine, state)
    return tuple(rates(alpha(x, z), z) for x, z in zip(state, fields, strict=True))


def alpha(x: Num[Array, "*batch n"], field: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """1/2 - x in the precision of the field: the derivative of log delta by the field."""
    return 0.5 - jnp.asarray(x).astype(field.dtype)


def rates(alpha: Float[Array, "*batch n"], field: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """Flip rates delta = exp(alpha z)."""
    return jnp.exp(alpha * field)


def vpf_objective(machine: BoltzmannMachine, states: State) -> Float[Array, ""]:
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


def mean_total(deltas: tuple[Float[Array, "batch n_l"], ...]) -> Float[Array, ""]:
    """Batch mean of the sum of all flip rates."""
    return jnp.mean(sum(jnp.sum(delta, axis=1) for delta in deltas))
