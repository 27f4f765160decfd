"""Contrastive divergence: the statistics of the data against those of chains.

    cd      k sweeps from the data (Hinton 2002)
    pcd     k sweeps from where the chains were (Tieleman 2008)

Machines of every family. Both follow differences of sufficient statistics; no gradient passes through sampled states.
Not here: chains that are held to where they start (`tethered`);
optimizers and schedules (`train`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from vpf_jax import checks, couplings
from vpf_jax.checks import AnyArray
from vpf_jax.energy import energy, free_energy, layer_field
from vpf_jax.machine import AnyState, BoltzmannMachine, State, check_state, check_symmetric, map_own
from vpf_jax.rules.base import Estimate, Rule, register
from vpf_jax.sample.gibbs import draw_uniforms, sweep_layers, widened
from vpf_jax.sample.streams import Stream, stream_of, substream
from vpf_jax.settings import setting
from vpf_jax.sharding import DATA, laid, mean_of_parts

# States apart from those of the data, as many as there are chains.
Chains = tuple[Shaped[AnyArray, "num_chains _n_l"], ...]


@dataclasses.dataclass(frozen=True)
class ChainRule(Rule):
    """Statistics of the data against those of chains."""

    steps: int = setting(1, "Gibbs sweeps of the chains per step", least=1, flag="rule_steps")

    def accepts(self, machine: BoltzmannMachine) -> None:
        check_symmetric(machine, f"rule {self.name!r}")


@register
@dataclasses.dataclass(frozen=True)
class CD(ChainRule):
    """Contrastive divergence: chains start at the data at every step."""

    name = "cd"

    def estimate(
        self, stream: Stream, machine: BoltzmannMachine, inference: BoltzmannMachine, states: State, carry: Any
    ) -> Estimate:
        found = chain_estimate(stream, machine, states, states, self.steps)
        return found._replace(carry=carry)


@register
@dataclasses.dataclass(frozen=True)
class PCD(ChainRule):
    """Persistent contrastive divergence: chains, as many as a minibatch has examples, go on from step to step."""

    name = "pcd"

    @property
    def keeps_chains(self) -> bool:
        return True

    def start(self, stream: Stream, machine: BoltzmannMachine, states: State) -> State:
        return states

    def estimate(
        self, stream: Stream, machine: BoltzmannMachine, inference: BoltzmannMachine, states: State, carry: Chains
    ) -> Estimate:
        return chain_estimate(stream, machine, states, carry, self.steps)


def contrastive_divergence(
    key: PRNGKeyArray, machine: BoltzmannMachine, states: AnyState, num_steps: int = 1
) -> Estimate:
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
    key: PRNGKeyArray, machine: BoltzmannMachine, states: AnyState, chains: Chains, num_steps: int = 1
) -> Estimate:
    """PCD-k: as `contrastive_divergence`, but the chains go on from `chains`, any number of them.

    The chains' new states are in `carry` of the result, for the next call. Same errors.
    """
    return chain_estimate(stream_of(key), machine, states, chains, num_steps)


def chain_estimate(
    stream: Stream,
    machine: BoltzmannMachine,
    states: AnyState,
    chains: Chains,
    num_steps: int,
    tether: Float[Array, "num_chains n_0"] | None = None,
) -> Estimate:
    """Difference of the statistics of the data and of chains after `num_steps` sweeps, random numbers from a stream.

    Each chain may have a tether, one more input to each of its visible units, which is no parameter of the machine.
    """
    num_steps = checks.integer("num_steps", num_steps, 1)
    check_state(machine, states, batched=True, name="the states")
    check_state(machine, chains, batched=True, name="the chains")
    check_symmetric(machine, "contrastive divergence")

    def sweep_one(state: State, uniforms: State, tether: Array | None) -> State:
        tethered = machine
        if tether is not None:
            tethered = dataclasses.replace(machine, biases=(machine.biases[0] + tether, *machine.biases[1:]))
        return sweep_layers(tethered, state, uniforms)

    def sweep(chains: State, i: Array) -> tuple[State, None]:
        uniforms = draw_uniforms(substream(stream, i), chains)
        swept = jax.vmap(sweep_one)(chains, uniforms, tether)
        # What the layer above sees lies whole over devices that share its units.
        return (*(laid(x, DATA, None) for x in swept[:-1]), swept[-1]), None

    moved = jax.lax.scan(sweep, widened(machine, chains), jnp.arange(num_steps))[0]

    def difference(states: State, chains: Chains) -> tuple[Array, BoltzmannMachine]:
        data_energy, data = statistics(machine, states)
        chain_energy, model = statistics(machine, chains)
        # The derivative of the mean energy is minus the statistics.
        return data_energy - chain_energy, jax.tree.map(lambda m, d: m - d, model, data)

    objective, gradient = mean_of_parts(difference, tuple(jnp.asarray(x) for x in states), moved)
    return Estimate(objective, gradient, carry=moved)


def statistics(machine: BoltzmannMachine, states: AnyState) -> tuple[Float[Array, ""], BoltzmannMachine]:
    """Mean (free) energy of a batch, and the means of x_i x_j and x_j, in the shape of the machine."""
    summed = len(machine.sizes) == 2 and machine.has_independent_hidden
    x = tuple(jnp.asarray(layer, b.dtype) for layer, b in zip(states, machine.biases, strict=True))
    if summed:
        fields = jax.vmap(lambda s: layer_field(machine, s, 1))(x)
        mean_energy = jnp.mean(jax.vmap(free_energy, in_axes=(None, 0))(machine, x[0]))
        return mean_energy, moments(machine, (x[0], machine.layer_units[1].mean(fields)), hidden_fields=fields)
    return jnp.mean(jax.vmap(energy, in_axes=(None, 0))(machine, x)), moments(machine, x)


def moments(
    machine: BoltzmannMachine,
    x: State,
    shares: Float[Array, " batch"] | None = None,
    hidden_fields: Float[Array, "batch n_1"] | None = None,
) -> BoltzmannMachine:
    """Means of x_i x_j and x_j over a batch of values or means of the units, in the shape of the machine.

    Each example counts as often as its share says, where shares are given. Of hidden units that enter with their means
    the fields are given: the means of what belongs to their own energy are no function of their means alone.
    """

    def own(i: int, _: Array) -> Float[Array, " n_l"]:
        unit = machine.layer_units[i]
        means = i == 1 and hidden_fields is not None
        found = unit.mean_own_statistics(jnp.asarray(hidden_fields)) if means else unit.own_statistics(x[i])
        return jnp.mean(found if shares is None else shares[:, None] * found, axis=0)

    y = x if shares is None else tuple(shares[:, None] * layer for layer in x)
    return dataclasses.replace(
        machine,
        biases=tuple(jnp.mean(layer, axis=0) for layer in y),
        weights=tuple(couplings.products(w, x[i], y[i + 1]) for i, w in enumerate(machine.weights)),
        intra=tuple(
            None if l is None else couplings.hollow(couplings.products(l, x[i], y[i]), machine.owners(i))
            for i, l in enumerate(machine.intra)
        ),
        own=map_own(own, machine),
    )
