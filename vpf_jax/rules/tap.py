"""Mean field to second order: the equations of Thouless, Anderson and Palmer in place of chains.

With means m_i of independent units, their variances V_i = (m_i - low)(high - m_i), S the entropy and z the local
fields at the means, the Gibbs free energy expanded in the weights to second order is (Plefka 1982)

    G(m) = - sum_i S(m_i) + E(m) - (1/2) sum_{i<j} w_ij^2 V_i V_j

and - G at its stationary point estimates log Z. There each mean is that of its unit in the field of the others less
Onsager's reaction, what it sees of itself in them:

    m_i = mean(z_i(m) + alpha_i sum_j w_ij^2 V_j),    alpha_i = (low + high) / 2 - m_i, 1/2 - m_i for bits

The statistics of the model are then <x_j> = m_j and <x_i x_j> = m_i m_j + w_ij V_i V_j, the derivatives of - G by the
parameters. Learning replaces the chains of contrastive divergence by some rounds of these equations, from the data or
from where the means were (Gabrie, Tramel and Krzakala, arXiv 1506.02914). No random numbers are drawn, and a synapse
sees the mean and the variance of its two units. Without noise, means that persist may all come to one fixed point,
where those that start from the data stay at as many as the machine has near them.

Machines of every family, of two-valued units. The expansion is good where weights are weak: a machine with sharp
conditionals is beyond it. Not here: mean field to first order, of hidden units given visible ones
(`evaluate.likelihood`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from vpf_jax import checks
from vpf_jax.checks import AnyArray
from vpf_jax.energy import layer_field
from vpf_jax.machine import BoltzmannMachine, State, check_machine, check_state, check_symmetric
from vpf_jax.rules.base import Estimate, Rule, register
from vpf_jax.rules.chains import moments, statistics
from vpf_jax.sample.streams import Stream
from vpf_jax.settings import setting
from vpf_jax.sharding import mean_of_parts
from vpf_jax.units import TwoValued, two_valued

# Means of the units of one configuration, visible first, or of a batch.
Means = tuple[Float[Array, "*batch _n_l"], ...]
AnyMeans = tuple[Shaped[AnyArray, " _n_l"], ...]


@register
@dataclasses.dataclass(frozen=True)
class TAP(Rule):
    """Statistics of the data against those of mean field to second order."""

    name = "tap"

    steps: int = setting(3, "Rounds of the mean-field equations per step", least=1, flag="rule_steps")
    damping: float = setting(0.5, "Share of its old value that a mean keeps in a round", least=0, below=1)
    persistent: bool = setting(
        False, "Whether means go on from step to step, as many as a minibatch has examples, or start from the data"
    )

    @property
    def keeps_chains(self) -> bool:
        return self.persistent

    def accepts(self, machine: BoltzmannMachine) -> None:
        _check(machine, f"rule {self.name!r}")

    def start(self, stream: Stream, machine: BoltzmannMachine, states: State) -> Any:
        return _conditional_means(machine, states) if self.persistent else ()

    def estimate(
        self, stream: Stream, machine: BoltzmannMachine, inference: BoltzmannMachine, states: State, carry: Any
    ) -> Estimate:
        start = carry if self.persistent else _conditional_means(machine, states)
        means = jax.vmap(lambda m: _iterate(machine, m, self.steps, self.damping))(start)

        def difference(
            states: State, means: tuple[Float[Array, "num_chains _n_l"], ...]
        ) -> tuple[Array, BoltzmannMachine]:
            data_energy, data = statistics(machine, states)
            free = -jax.vmap(lambda m: _log_partition(machine, m))(means)
            gradient = jax.tree.map(lambda m, d: m - d, _model_statistics(machine, means), data)
            return data_energy - jnp.mean(free), gradient

        return Estimate(*mean_of_parts(difference, states, means), carry=means if self.persistent else carry)


def tap_means(machine: BoltzmannMachine, start: AnyMeans, num_steps: int, damping: float = 0.5) -> Means:
    """Means of all units after some rounds of the mean-field equations.

    A round renews odd layers, then even ones, all units of a layer at once.

    Args:
      machine: a machine of any family, of two-valued units.
      start: one array [n_l] per layer of means, from the lower to the upper value of its units, or of such values.
      num_steps: rounds, at least 0.
      damping: share of its old value that a mean keeps in a round, at least 0 and below 1.

    Raises:
      ValueError: a directed machine, units of more values, means that do not fit the machine, or a number out of range.
    """
    num_steps = checks.integer("num_steps", num_steps, 0)
    found = _iterate(machine, _check_means(machine, start), num_steps, TAP(damping=damping).damping)
    return checks.spoilt(found, machine, start)


def tap_log_partition(machine: BoltzmannMachine, means: AnyMeans) -> Float[Array, ""]:
    """- G(m), at the means of `tap_means` an estimate of log Z whose error is of third order in the weights.

    Args:
      machine: a machine of any family, of two-valued units.
      means: one array [n_l] per layer, from the lower to the upper value of its units.

    Raises:
      ValueError: a directed machine, units of more values, or means that do not fit the machine.
    """
    return checks.spoilt(_log_partition(machine, _check_means(machine, means)), machine, means)


def _iterate(machine: BoltzmannMachine, start: Means, num_steps: int, damping: float) -> Means:
    kinds, squared = _kinds(machine), _squared(machine)
    layers = (*range(1, len(start), 2), *range(0, len(start), 2))

    def round_of_all(means: Means, _: None) -> tuple[Means, None]:
        for i in layers:
            unit, m = kinds[i], means[i]
            reaction = unit.half_way(m, m.dtype) * layer_field(squared, _variances(kinds, means), i)
            renewed = damping * m + (1 - damping) * unit.mean(layer_field(machine, means, i) + reaction)
            means = (*means[:i], renewed, *means[i + 1 :])
        return means, None

    return jax.lax.scan(round_of_all, start, length=num_steps)[0]


def _log_partition(machine: BoltzmannMachine, means: Means) -> Float[Array, ""]:
    """Of one configuration; a pair of units is in the fields of both."""
    kinds, squared = _kinds(machine), _squared(machine)
    variances = _variances(kinds, means)
    total = jnp.zeros((), machine.biases[0].dtype)
    for i, (unit, m, v) in enumerate(zip(kinds, means, variances, strict=True)):
        total += jnp.sum(unit.entropy(m)) + jnp.vdot(m, machine.biases[i] + layer_field(machine, means, i)) / 2
        total += jnp.vdot(v, layer_field(squared, variances, i)) / 4
    return total


def _model_statistics(machine: BoltzmannMachine, means: Means) -> BoltzmannMachine:
    """Means over a batch of the derivatives of - G by the parameters."""
    correlated = moments(machine, _variances(_kinds(machine), means))

    def added(products: Any, weights: Any, variances: Any) -> Any:
        return jax.tree.map(lambda p, w, v: p + w * v, products, weights, variances)

    found = moments(machine, means)
    return dataclasses.replace(
        found,
        weights=added(found.weights, machine.weights, correlated.weights),
        intra=added(found.intra, machine.intra, correlated.intra),
    )


def _conditional_means(machine: BoltzmannMachine, states: State) -> Means:
    """The visible units' values, and the hidden units' means given all others, of a batch."""

    def of(state: State) -> Means:
        hidden = range(1, len(state))
        return (state[0], *(machine.layer_units[i].mean(layer_field(machine, state, i)) for i in hidden))

    x = tuple(jnp.asarray(layer, b.dtype) for layer, b in zip(states, machine.biases, strict=True))
    return jax.vmap(of)(x)


def _squared(machine: BoltzmannMachine) -> BoltzmannMachine:
    """The machine whose fields are sums over squared weights."""
    return dataclasses.replace(
        machine,
        biases=jax.tree.map(jnp.zeros_like, machine.biases),
        weights=jax.tree.map(jnp.square, machine.weights),
        intra=jax.tree.map(jnp.square, machine.intra),
    )


def _variances(kinds: tuple[TwoValued, ...], means: Means) -> Means:
    return tuple((m - unit.low) * (unit.high - m) for unit, m in zip(kinds, means, strict=True))


def _kinds(machine: BoltzmannMachine) -> tuple[TwoValued, ...]:
    return tuple(two_valued(unit, "mean field to second order") for unit in machine.layer_units)


def _check(machine: BoltzmannMachine, what: str) -> None:
    check_machine(machine)
    check_symmetric(machine, what)
    for unit in machine.layer_units:
        two_valued(unit, what)


def _check_means(machine: BoltzmannMachine, means: AnyMeans) -> Means:
    """The means as the parameters are, if they fit the machine; else raises ValueError."""
    _check(machine, "mean field to second order")
    check_state(machine, means, batched=False, ignored=range(len(machine.sizes)), name="the means")
    for i, (unit, m) in enumerate(zip(_kinds(machine), means, strict=True)):
        _check_between(f"layer {i} of the means", m, unit.low, unit.high)
    return tuple(jnp.asarray(m, b.dtype) for m, b in zip(means, machine.biases, strict=True))


def _check_between(name: str, value: AnyArray, low: int, high: int) -> None:
    def holds(given: Any, xp: Any) -> Any:
        return xp.all((given >= low) & (given <= high))

    def found(given: np.ndarray) -> str:
        return f"with values from {given.min():g} to {given.max():g}; they are from {low} to {high}"

    checks.values(name, value, f"from {low} to {high}", holds, found)
