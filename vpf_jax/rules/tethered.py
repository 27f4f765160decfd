"""Tethered contrastive divergence: chains that learn p(v | a noisy copy of v) and persist nowhere.

Each unit of the data v is flipped with probability eps, which gives y. What is maximised is the likelihood of
recovering v from y under the machine,

    p(v | y) proportional to exp(-F(v)) p(y | v),    log p(y | v) = const + gamma sum_i [y_i = v_i],
    gamma = log((1 - eps) / eps)

(recovery likelihood: Gao, Song, Poole, Wu and Kingma, arXiv 2012.08125; the same loss, up to a constant, as energy
discrepancy, arXiv 2307.07595). Its gradient is the statistics of the data against those of p(v | y), for which stand k
Gibbs sweeps from v under one more input to each visible unit: the tether, which adds gamma to the log odds of the value
that y has. As v itself follows p(v | y) where the machine is the data's law, chains need not travel, and a synapse
still sees the states of its two units and nothing else. At eps = 1/2 the tether is nothing and the rule is CD-k, which
with many sweeps follows the likelihood; at eps near 0 the chains stay at the data, and what is learnt is local, as in
probability flow.

In a stack each machine's lower layer is tethered. Not here: chains without a tether (`chains`).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from vpf_jax import checks
from vpf_jax.machine import AnyState, BoltzmannMachine, State, check_state
from vpf_jax.rules.base import Estimate, register
from vpf_jax.rules.chains import ChainRule, chain_estimate
from vpf_jax.sample.streams import Stream, stream_of, substreams, uniform
from vpf_jax.settings import setting
from vpf_jax.units import two_valued


@register
@dataclasses.dataclass(frozen=True)
class Tethered(ChainRule):
    """Tethered contrastive divergence."""

    name = "tethered"

    noise: float = setting(0.3, "Probability with which a visible unit of the noisy copy differs", above=0, most=0.5)

    def accepts(self, machine: BoltzmannMachine) -> None:
        super().accepts(machine)
        two_valued(machine.layer_units[0], f"rule {self.name!r}")

    def estimate(
        self, stream: Stream, machine: BoltzmannMachine, inference: BoltzmannMachine, states: State, carry: Any
    ) -> Estimate:
        return _estimate(stream, machine, states, self.noise, self.steps)._replace(carry=carry)


def tethered_contrastive_divergence(
    key: PRNGKeyArray, machine: BoltzmannMachine, states: AnyState, noise: float, num_steps: int = 1
) -> Estimate:
    """The data's sufficient statistics against those of chains that start from the data, tethered to noisy copies.

    Args:
      key: a random key.
      machine: visible units of two values.
      states: the data, completed: one array [batch, n_l] per layer.
      noise: eps, the probability with which a visible unit of the copy differs, above 0 and at most 1/2.
      num_steps: k, Gibbs sweeps, at least 1. The bias of the gradient vanishes as it grows.

    Raises:
      ValueError: a directed machine, units of other values, states that do not fit the machine, an empty batch, or a
        number out of range.
    """
    two_valued(machine.layer_units[0], "a tether")
    checks.probability("noise", noise)
    checks.require(0 < noise <= 0.5, "noise", noise, "above 0 and at most 1/2")
    check_state(machine, states, batched=True, name="the states")
    return _estimate(stream_of(key), machine, states, noise, num_steps)


def _estimate(stream: Stream, machine: BoltzmannMachine, states: AnyState, noise: float, num_steps: int) -> Estimate:
    noise_stream, chain_stream = substreams(stream, 2)
    tether = _tether(noise_stream, machine, jnp.asarray(states[0]), noise)
    return chain_estimate(chain_stream, machine, states, states, num_steps, tether)


def _tether(stream: Stream, machine: BoltzmannMachine, visible: Array, noise: float) -> Float[Array, "batch n_0"]:
    """What each visible unit's field gains: towards the value of a noisy copy."""
    unit = two_valued(machine.layer_units[0], "a tether")
    dtype = machine.biases[0].dtype
    flipped = uniform(stream, visible.shape) < noise
    # From the middle of the two values towards that of the copy.
    towards = jnp.where(flipped, 1, -1) * jnp.sign(unit.half_way(visible, dtype))
    return towards * np.asarray(np.log((1 - noise) / noise) / unit.step, dtype)
