"""Energy discrepancy: data against copies of it that noise has been through twice.

Each unit of an example v is flipped with probability eps, which gives y; M particles v_m are drawn from y by the same
noise. With F the free energy and a stabiliser w, the loss of the example is

    log(w / M + (1 / M) sum_m exp(F(v) - F(v_m)))

(Schroeder, Ou, Li and Duncan, arXiv 2307.07595, with Bernoulli noise). Its gradient, the noise being no function of the
parameters, is a difference of statistics: those of each particle, by the share

    r_m = exp(F(v) - F(v_m)) / (w + sum_m exp(F(v) - F(v_m)))

that it has in the sum, against those of the example by the sum of the shares. There are no chains. For w = 0 and M to
infinity the loss becomes - log p(v | y) up to a number that does not depend on the machine, where p(v | y) is
proportional to exp(-F(v)) p(y | v): the likelihood of recovering v from y. The stabiliser bounds the loss from below.
Noise has to be so little that some particle is about as likely as the example: where none is, all shares vanish, and
nothing is learnt.

Machines with a free energy in closed form: two layers whose hidden units are independent given the visible ones, and a
single layer. Not here: p(v | y) by chains, or by sums over single flips (`flips`).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from vpf_jax.checks import AnyArray
from vpf_jax.energy import layer_field, marginal_energy
from vpf_jax.machine import BoltzmannMachine, State
from vpf_jax.rules import flips
from vpf_jax.rules.base import Estimate, Rule, register
from vpf_jax.rules.chains import moments
from vpf_jax.sample.streams import Stream, stream_of, substreams, uniform
from vpf_jax.settings import setting
from vpf_jax.stack import check_visible
from vpf_jax.units import two_valued

# Bytes of the particles of the examples that are taken at a time, with their hidden units; where one example has more,
# of that one. With a quarter of it a step on MNIST took twice as long, with more no less.
CHUNK_BYTES = 2**22


@register
@dataclasses.dataclass(frozen=True)
class EnergyDiscrepancy(Rule):
    """Energy discrepancy; the defaults are those of the paper's images."""

    name = "energy_discrepancy"

    particles: int = setting(32, "Perturbed copies of each example per step", least=1)
    noise: float = setting(
        0.005, "Probability with which each visible unit is flipped, on the way out and back", above=0, most=0.5
    )
    stabiliser: float = setting(1.0, "Weight, in particles, of the example itself among its copies", least=0)

    def accepts(self, machine: BoltzmannMachine) -> None:
        _check_machine(machine, f"rule {self.name!r}")

    def estimate(
        self, stream: Stream, machine: BoltzmannMachine, inference: BoltzmannMachine, states: State, carry: Any
    ) -> Estimate:
        return Estimate(*_estimate(stream, machine, states[0], self.particles, self.noise, self.stabiliser), carry)


def energy_discrepancy(
    key: PRNGKeyArray,
    machine: BoltzmannMachine,
    visible: Shaped[AnyArray, "batch n_0"],
    particles: int = 32,
    noise: float = 0.005,
    stabiliser: float = 1.0,
) -> Estimate:
    """The stabilised energy discrepancy of a batch and its gradient.

    Args:
      key: a random key.
      machine: one layer, or two without weights inside the hidden one; units of two values.
      visible: values of the visible units.
      particles: M, perturbed copies of each example, at least 1.
      noise: eps, the probability with which each unit is flipped on the way out and on the way back, above 0 and at
        most 1/2.
      stabiliser: w, at least 0.

    Raises:
      ValueError: a machine of another shape, states that do not fit it, an empty batch, or a number out of range.
    """
    _check_machine(machine, "energy discrepancy")
    check_visible((machine,), visible)
    rule = EnergyDiscrepancy(particles, noise, stabiliser)
    stream = stream_of(key)
    return Estimate(
        *_estimate(stream, machine, jnp.asarray(visible), rule.particles, rule.noise, rule.stabiliser), carry=()
    )


def _check_machine(machine: BoltzmannMachine, what: str) -> None:
    flips.check_closed_form(machine, what, layers=(1, 2), dense=False)


def _estimate(
    stream: Stream,
    machine: BoltzmannMachine,
    visible: Shaped[Array, "batch n_0"],
    particles: int,
    noise: float,
    stabiliser: float,
) -> tuple[Float[Array, ""], BoltzmannMachine]:
    """Of all examples, so many at a time that the rows of their particles take at most `CHUNK_BYTES`."""
    batch = visible.shape[0]
    row = machine.num_units * machine.biases[0].dtype.itemsize
    size = max(1, min(batch, CHUNK_BYTES // ((particles + 1) * row)))
    # A stream for each example, so that the numbers do not depend on how many are taken at a time.
    streams = substreams(stream, batch)

    def added(total: Any, some: tuple[Array, Array]) -> tuple[Any, None]:
        rows = jax.vmap(lambda stream, v: perturbed(stream, machine, v, particles, noise))(*some)
        return jax.tree.map(jnp.add, total, discrepancy(machine, rows, stabiliser)), None

    num_full, rest = divmod(batch, size)
    end = num_full * size
    full = streams[:end].reshape(num_full, size, 2), visible[:end].reshape(num_full, size, -1)
    # Sums are as wide as the biases, where weights are narrowed.
    zero = jax.tree.map(lambda p: jnp.zeros(p.shape, machine.biases[0].dtype), (jnp.zeros(()), machine))
    total, _ = jax.lax.scan(added, zero, full)
    if rest:
        total, _ = added(total, (streams[end:], visible[end:]))
    return jax.tree.map(lambda leaf: leaf / batch, total)


def perturbed(
    stream: Stream, machine: BoltzmannMachine, v: Shaped[Array, " n_0"], particles: int, noise: float
) -> Float[Array, "rows n_0"]:
    """An example, and its particles below it."""
    unit = two_valued(machine.layer_units[0], "noise")
    flipped = uniform(stream, (particles + 1, *v.shape)) < noise
    # The first row leads out, to y; the others lead from there back.
    differs = jnp.concatenate([jnp.zeros_like(flipped[:1]), flipped[:1] ^ flipped[1:]])
    x = v.astype(machine.biases[0].dtype)
    return jnp.where(differs, unit.flipped(x)[None], x[None])


def discrepancy(
    machine: BoltzmannMachine, rows: Float[Array, "batch rows n_0"], stabiliser: float
) -> tuple[Float[Array, ""], BoltzmannMachine]:
    """Sum over a batch of the loss of each example, the first row, against its particles, the others; its gradient."""
    batch, num_rows, _ = rows.shape
    flat = rows.reshape(batch * num_rows, -1)
    free, x = _free_energies(machine, flat)
    free = free.reshape(batch, num_rows)
    gains = free[:, :1] - free[:, 1:]
    if stabiliser:
        # The example itself, so many times.
        gains = jnp.concatenate([jnp.full_like(gains[:, :1], math.log(stabiliser)), gains], axis=1)
    log_sums = jax.nn.logsumexp(gains, axis=1)
    shares = jnp.exp(gains - log_sums[:, None])[:, -(num_rows - 1) :]
    signed = jnp.concatenate([-jnp.sum(shares, axis=1, keepdims=True), shares], axis=1).reshape(-1)
    found = moments(machine, x, signed)
    # Moments are means over all rows.
    return jnp.sum(log_sums - math.log(num_rows - 1)), jax.tree.map(lambda leaf: leaf * len(flat), found)


def _free_energies(machine: BoltzmannMachine, rows: Float[Array, "rows n_0"]) -> tuple[Float[Array, " rows"], State]:
    """Free energy of each visible vector, and the visible units' values with the means of the hidden ones."""
    if len(machine.sizes) == 1:
        return jax.vmap(lambda v: marginal_energy(machine, (v,), ()))(rows), (rows,)
    empty = jnp.zeros(machine.sizes[1], rows.dtype)
    hidden = jax.vmap(lambda v: machine.layer_units[1].mean(layer_field(machine, (v, empty), 1)))(rows)
    return jax.vmap(lambda v: marginal_energy(machine, (v, empty), (1,)))(rows), (rows, hidden)
