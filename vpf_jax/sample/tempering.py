"""The path from independent units to a machine, and parallel tempering along it.

    E_beta(x) = (1 - beta) E_base(x) + beta E(x),    beta from 0 (the base machine) to 1 (the machine)

Energies are linear in the parameters, so that every point of the path is a machine itself (`interpolate`) and all
kernels and energies apply to it. Parallel tempering runs one replica at each of several inverse temperatures and lets
neighbours swap states with the Metropolis probability (Swendsen and Wang 1986; for RBMs: Desjardins, Courville,
Bengio, Vincent and Delalleau 2010). Not here: annealing along the same path (`ais`); a choice of temperatures.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from vpf_jax import checks
from vpf_jax.checks import AnyArray
from vpf_jax.energy import energy
from vpf_jax.exporting import exported
from vpf_jax.machine import (
    AnyState,
    BoltzmannMachine,
    State,
    check_machine,
    check_state,
    check_symmetric,
    map_own,
    with_visible_means,
)
from vpf_jax.sample.gibbs import draw_uniforms, sweep_layers
from vpf_jax.sample.streams import stream_of, substream, uniform
from vpf_jax.sharding import DATA, laid


@exported("vpf_jax.Tempered")
class Tempered(NamedTuple):
    """Replicas after parallel tempering."""

    states: State
    """One array [num_replicas, n_l] per layer, in the order of the inverse temperatures."""
    acceptance: Float[Array, "*batch num_pairs"]
    """Mean probability of a swap of each neighbouring pair, over all rounds."""


def independent_machine(
    machine: BoltzmannMachine,
    visible_means: Float[AnyArray, " n_0"] | None = None,
    visible_variances: Float[AnyArray, " n_0"] | None = None,
) -> BoltzmannMachine:
    """A machine of the same structure without interactions: weights, intra-layer weights and hidden biases 0.

    Args:
      machine: gives sizes, connectivity, precision, and the parameters of the units' own energy.
      visible_means: of the visible units, for example the mean training image (`with_visible_means`); None: fields
        of 0.
      visible_variances: of real-valued ones; None: 1 where there are means, and otherwise as in the machine.

    Raises:
      ValueError: means or variances of another shape, or concrete ones that the units cannot have.
    """
    check_machine(machine)
    base = dataclasses.replace(jax.tree.map(jnp.zeros_like, machine), own=machine.own)
    if visible_means is None:
        checks.require(visible_variances is None, "visible_variances", visible_variances, "nothing without means")
        return base
    return with_visible_means(base, visible_means, visible_variances)


def interpolate(base: BoltzmannMachine, machine: BoltzmannMachine, beta: Float[Array, ""] | float) -> BoltzmannMachine:
    """The machine with energy (1 - beta) E_base + beta E: every parameter (1 - beta) base + beta machine, those of the
    units' own energy such that it mixes alike.

    Raises:
      ValueError: machines of different layer sizes or connectivity, or a beta that is no finite number.
    """
    check_machine(base, "the base")
    check_machine(machine)
    checks.finite_number("beta", beta)
    check_same_structure(base, machine)
    between = jax.tree.map(lambda p, q: (1 - beta) * p + beta * q, base, machine)
    return dataclasses.replace(between, own=own_between(base, machine, jnp.asarray(beta)))


def own_between(
    base: BoltzmannMachine, machine: BoltzmannMachine, beta: Float[Array, ""]
) -> tuple[Float[Array, " _n_l"] | None, ...] | None:
    """The parameters of the units' own energy on the path at beta."""
    return map_own(lambda i, p, q: machine.layer_units[i].own_between(p, q, beta), base, machine)


def run_tempered(
    key: PRNGKeyArray,
    machine: BoltzmannMachine,
    states: AnyState,
    inverse_temperatures: Float[Array, " num_replicas"],
    num_sweeps: int,
    base: BoltzmannMachine | None = None,
) -> Tempered:
    """Parallel tempering: rounds of one Gibbs sweep of every replica, then swaps between neighbours.

    Replica r follows the machine interpolated at inverse temperature r. Even pairs, (0, 1), (2, 3) and so on, may
    swap in the first round, odd pairs in the second, and so in turn. Each replica's distribution is invariant, and
    the last one follows the machine itself.

    Args:
      key: a random key.
      machine: the machine.
      states: one array [num_replicas, n_l] of values of its units per layer.
      inverse_temperatures: increasing numbers in [0, 1], the last one 1.
      num_sweeps: number of rounds, at least 1.
      base: the machine at inverse temperature 0; None: `independent_machine(machine)`, uniform bits.

    Raises:
      ValueError: states or a base that do not fit the machine, or numbers out of range (where concrete).
    """
    num_sweeps = checks.integer("num_sweeps", num_sweeps, 1)
    check_state(machine, states, batched=True, name="the states")
    check_symmetric(machine, "tempering")
    num_replicas = jnp.shape(states[0])[0]
    betas = _check_inverse_temperatures(inverse_temperatures, num_replicas, machine)
    base = independent_machine(machine) if base is None else base
    check_machine(base, "the base")
    check_same_structure(base, machine)
    machines = jax.vmap(interpolate, in_axes=(None, None, 0))(base, machine, betas)
    stream = stream_of(key)

    def play_round(states: State, i: Array) -> tuple[State, Float[Array, " pairs"]]:
        round_stream = substream(stream, i)
        states = laid(jax.vmap(sweep_layers)(machines, states, draw_uniforms(round_stream, states)), DATA, None)
        # Linear in beta: E_a(x) + E_b(y) - E_a(y) - E_b(x) = (b - a) (U(y) - U(x)), with U = E - E_base.
        excess = jax.vmap(lambda x: energy(machine, x) - energy(base, x))(states)
        probabilities = jnp.exp(jnp.minimum(jnp.diff(betas) * jnp.diff(excess), 0))
        proposed = (jnp.arange(num_replicas - 1) + i) % 2 == 0
        swaps = proposed & (uniform(round_stream, probabilities.shape) < probabilities)
        # Replica r takes the state of r + 1 where the pair above it swaps, of r - 1 where the pair below does.
        order = jnp.arange(num_replicas) + jnp.pad(swaps, (0, 1)).astype(int) - jnp.pad(swaps, (1, 0)).astype(int)
        return tuple(x[order] for x in states), probabilities

    start = tuple(jnp.asarray(x) for x in states)
    moved, probabilities = jax.lax.scan(play_round, start, jnp.arange(num_sweeps))
    return Tempered(moved, checks.spoilt(jnp.mean(probabilities, axis=0), machine, base))


def check_same_structure(base: BoltzmannMachine, machine: BoltzmannMachine) -> None:
    """Raises ValueError unless both machines have the same layer sizes and connectivity."""
    shapes, wanted = (jax.tree.map(jnp.shape, m) for m in (base, machine))
    if shapes != wanted:
        raise ValueError(f"got a base with parameters of shapes {shapes}; the machine takes {wanted}")


def _check_inverse_temperatures(
    betas: Float[Array, " num_replicas"], num_replicas: int, machine: BoltzmannMachine
) -> Float[Array, " num_replicas"]:
    checks.array("inverse_temperatures", betas)
    if jnp.shape(betas) != (num_replicas,):
        raise ValueError(
            f"got inverse_temperatures of shape {jnp.shape(betas)}; {num_replicas} replicas take ({num_replicas},)"
        )

    def increases(betas: Any, xp: Any) -> Any:
        return (betas[0] >= 0) & xp.all(xp.diff(betas) > 0) & (betas[-1] == 1)

    def found(betas: np.ndarray) -> str:
        return f"{betas.tolist()}; they are increasing numbers in [0, 1], the last one 1"

    checks.values("inverse_temperatures", betas, "increasing to 1", increases, found)
    return jnp.asarray(betas, machine.biases[0].dtype)
