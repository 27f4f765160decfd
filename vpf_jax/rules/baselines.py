"""Other learning rules, as estimators of one form: what probability flow on completed states is compared with.

    cd      contrastive divergence, k sweeps from the data (Hinton 2002)
    pcd     persistent contrastive divergence, k sweeps from where the chains were (Tieleman 2008)
    pl      pseudo-likelihood: - sum_i log p(x_i | the other visible bits) (Besag 1975)
    ratio   ratio matching: sum_i p(bit i flipped | the other visible bits)^2 (Hyvarinen 2007)
    mpf     minimum probability flow on the marginal: sum_i exp((F(x) - F(x with bit i flipped)) / 2), F the free energy
            (Sohl-Dickstein et al., arXiv 0906.4779; Im, Buchman and Taylor, arXiv 1412.6617)

cd and pcd take machines of every family and follow differences of sufficient statistics; pl, ratio and mpf take fully
visible machines, and two-layer machines without weights inside the hidden layer, whose sums over flips are closed
(`visible_flips`). No gradient passes through sampled states. Not here: variational probability flow (`local_rule`);
optimizers and schedules (`train`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray

from vpf_jax import checks
from vpf_jax.energy import energy, free_energy, layer_field
from vpf_jax.exporting import exported
from vpf_jax.machine import BoltzmannMachine, State, check_state, check_symmetric, off_diagonal
from vpf_jax.rules.local_rule import mean_products
from vpf_jax.rules.visible_flips import summed_flow
from vpf_jax.sample.gibbs import draw_uniforms, sweep_layers
from vpf_jax.sample.streams import Stream, stream_of, substream


@exported("vpf_jax.Estimate")
class Estimate(NamedTuple):
    """What a rule says of a minibatch."""

    objective: Float[Array, ""]
    """Mean over the batch of what the rule minimises. Contrastive divergence minimises nothing of its own: there the
    mean (free) energy of the data minus that of the chains."""
    gradient: BoltzmannMachine
    """In the shape of the machine; of intra-layer weights as in `local_gradient`."""
    states: State
    """Where the chains have arrived, one array [num_chains, n_l] per layer; empty for rules without chains."""


# Function of log p(x with bit i flipped) / p(x), summed over the visible bits.
FLIP_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "mpf": lambda log_ratio: jnp.exp(log_ratio / 2),
    "pl": jax.nn.softplus,
    "ratio": lambda log_ratio: jax.nn.sigmoid(log_ratio) ** 2,
}


def contrastive_divergence(key: PRNGKeyArray, machine: BoltzmannMachine, states: State, num_steps: int = 1) -> Estimate:
    """CD-k: the data's sufficient statistics against those of chains that start from the data.

    Hidden units without weights inside their layer enter with their conditional means given the layer below, in a
    two-layer machine, and as sampled otherwise.

    Args:
      key: a random key.
      machine: the machine.
      states: the data, completed: one array [batch, n_l] per layer.
      num_steps: k, Gibbs sweeps, at least 1. The bias of the gradient vanishes as it grows.

    Raises:
      ValueError: a directed machine, states that do not fit the machine, an empty batch, or a number of steps below 1.
    """
    return chain_estimate(stream_of(key), machine, states, states, num_steps)


def persistent_contrastive_divergence(
    key: PRNGKeyArray, machine: BoltzmannMachine, states: State, chains: State, num_steps: int = 1
) -> Estimate:
    """PCD-k: as `contrastive_divergence`, but the chains go on from `chains`, any number of them.

    The chains' new states are in the result, for the next call. Same errors.
    """
    return chain_estimate(stream_of(key), machine, states, chains, num_steps)


def flip_estimate(
    rule: str, machine: BoltzmannMachine, visible: Num[Array, "batch n_0"], units: Array | None = None
) -> Estimate:
    """Pseudo-likelihood, ratio matching or marginal MPF: 'pl', 'ratio' or 'mpf'.

    Args:
      rule: its name.
      machine: one layer, or two without weights inside the hidden one.
      visible: zeros and ones.
      units: visible units whose flips count, scaled up to all (an unbiased estimate); None: all.

    Raises:
      ValueError: another rule, a machine of another shape, states or units that do not fit it, or an empty batch.
    """
    checks.one_of("rule", rule, tuple(FLIP_FUNCTIONS))
    return Estimate(*summed_flow(machine, visible, FLIP_FUNCTIONS[rule], units), states=())


def chain_estimate(stream: Stream, machine: BoltzmannMachine, states: State, chains: State, num_steps: int) -> Estimate:
    """Difference of the statistics of the data and of chains after `num_steps` sweeps, random numbers from a stream."""
    num_steps = checks.integer("num_steps", num_steps, 1)
    check_state(machine, states, batched=True, name="the states")
    check_state(machine, chains, batched=True, name="the chains")
    check_symmetric(machine, "contrastive divergence")

    def sweep(chains: State, i: Array) -> tuple[State, None]:
        uniforms = draw_uniforms(substream(stream, i), chains)
        return jax.vmap(sweep_layers, in_axes=(None, 0, 0))(machine, chains, uniforms), None

    chains = jax.lax.scan(sweep, tuple(jnp.asarray(x) for x in chains), jnp.arange(num_steps))[0]
    data_energy, data = _statistics(machine, states)
    chain_energy, model = _statistics(machine, chains)
    return Estimate(
        objective=data_energy - chain_energy,
        # The derivative of the mean energy is minus the statistics.
        gradient=jax.tree.map(lambda m, d: m - d, model, data),
        states=chains,
    )


def _statistics(machine: BoltzmannMachine, states: State) -> tuple[Float[Array, ""], BoltzmannMachine]:
    """Mean (free) energy of a batch, and the means of x_i x_j and x_j, in the shape of the machine."""
    summed = len(machine.sizes) == 2 and machine.intra[1] is None
    x = tuple(layer.astype(b.dtype) for layer, b in zip(states, machine.biases, strict=True))
    if summed:
        hidden = jax.nn.sigmoid(jax.vmap(lambda s: layer_field(machine, s, 1))(x))
        x = (x[0], hidden)
        mean_energy = jnp.mean(jax.vmap(free_energy, in_axes=(None, 0))(machine, x[0]))
    else:
        mean_energy = jnp.mean(jax.vmap(energy, in_axes=(None, 0))(machine, x))
    return mean_energy, BoltzmannMachine(
        biases=tuple(jnp.mean(layer, axis=0) for layer in x),
        weights=tuple(mean_products(x[i], x[i + 1], w) for i, w in enumerate(machine.weights)),
        intra=tuple(
            None if l is None else off_diagonal(mean_products(x[i], x[i], l)) for i, l in enumerate(machine.intra)
        ),
    )
