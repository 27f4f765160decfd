"""What a model of any kind says of each example: log-likelihood or a bound on it, free energy, pseudo-likelihood.

    one or two layers, hidden units independent    log p(v) = -F(v) - log Z
    any other single machine                       the variational bound on log p(v)
    a stack of several                             the bound on log p(v) of the stack as a belief network

Where entries of examples are missing, it is the bound on log p of the others, of machines of the first line alone.

Units are of any kind that the scores take. Log Z is an exact sum where few states are left when layers are summed out,
and elsewhere annealed. Not here: the scores themselves (`likelihood`, `monitor`, `ais`), of which this chooses the one
that fits.
"""

import functools
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from vpf_jax.checks import AnyArray
from vpf_jax.energy import log_partition_exact, marginal_energy, num_left, summable_layers
from vpf_jax.evaluate.ais import LowEffectiveSampleSizeWarning, ais_log_partition, least_effective
from vpf_jax.evaluate.likelihood import missing_bound, stack_bound, variational_bound
from vpf_jax.evaluate.monitor import has_pseudo_log_likelihood, pseudo_log_likelihood
from vpf_jax.machine import BoltzmannMachine, check_symmetric, check_whole_units
from vpf_jax.sample.tempering import independent_machine
from vpf_jax.stack import Stack, check_visible, mean_activations
from vpf_jax.units import Unit

# Units up to which the sum over all their states, which takes a second or two at that number, is done.
MOST_SUMMED = 20
# What the scores are called, in the order in which they are given.
NAMES = ("log_likelihood", "log_likelihood_bound", "free_energy", "pseudo_log_likelihood")
# Belief networks: samples per example behind the bound.
NUM_SAMPLES = 10


class LogZ(NamedTuple):
    """Of a machine, in nats."""

    value: float
    standard_error: float
    """0 of an exact sum."""
    effective_samples: float | None = None
    """Of the chains behind an estimate; None of an exact sum."""
    reliable: bool = True
    """Whether these are enough."""

    @property
    def told(self) -> str:
        if self.effective_samples is None:
            return f"log Z {self.value:.3f}, an exact sum"
        doubt = "" if self.reliable else "; too few to rely on, more temperatures are needed"
        return (
            f"log Z {self.value:.3f} +- {self.standard_error:.3f} (standard error of annealed importance sampling, "
            f"{self.effective_samples:.1f} effective chains{doubt})"
        )


def is_summable(machine: BoltzmannMachine) -> bool:
    """Whether log Z is an exact sum here."""
    return num_left(machine, summable_layers(machine)) <= MOST_SUMMED


def log_partition(
    key: PRNGKeyArray, stack: Stack, visible: Shaped[AnyArray, "batch n_0"], num_chains: int, num_temperatures: int
) -> LogZ:
    """Log Z of the top machine of a stack.

    Args:
      key: a random key.
      stack: of which the top machine has symmetric weights.
      visible: examples; chains are annealed from independent units with the means that they give its lower layer, and
        of a single machine their variances.
      num_chains: of annealed importance sampling, where the sum is too long.
      num_temperatures: of the same.

    Raises:
      ValueError: a directed top machine, examples that do not fit, numbers out of range.
    """
    check_visible(stack, visible)
    top = stack[-1]
    check_symmetric(top, "a likelihood")
    if is_summable(top):
        return LogZ(float(_log_partition_exact(top)), 0.0)
    means_key, key = jax.random.split(key)
    given = jnp.asarray(visible, jnp.float32)
    below, spread = jnp.mean(given, axis=0), jnp.var(given, axis=0) if len(stack) == 1 else None
    if len(stack) > 1:
        below = mean_activations(means_key, stack[:-1], visible)[-1]
    means = _possible(top.layer_units[0], below)
    with warnings.catch_warnings():
        # It is part of what is given.
        warnings.simplefilter("ignore", LowEffectiveSampleSizeWarning)
        base = independent_machine(top, means, spread)
        found = ais_log_partition(key, top, num_chains, num_temperatures, base)
    log_z, error, effective = (float(number) for number in found)
    return LogZ(log_z, error, effective, effective >= least_effective(num_chains))


def scores(
    key: PRNGKeyArray,
    stack: Stack,
    visible: Shaped[AnyArray, "batch n_0"],
    log_z: float,
    missing: Bool[AnyArray, "batch n_0"] | None = None,
) -> dict[str, Float[Array, " batch"]]:
    """Scores of each example by name, in nats; which there are follows from the model (see above).

    Args:
      key: a random key.
      stack: a model with symmetric weights.
      visible: examples.
      log_z: of its top machine.
      missing: True where an entry is missing; None: nowhere.

    Returns:
      log_likelihood or log_likelihood_bound; of one machine with independent hidden units free_energy, and, where it
      is defined, pseudo_log_likelihood, an estimate from one unit per example.

    Raises:
      ValueError: a stack that has no such score, or examples that do not fit.
    """
    check_visible(stack, visible)
    for machine in stack:
        check_symmetric(machine, "a score")
    if missing is not None:
        if len(stack) > 1 or not stack[0].has_independent_hidden:
            raise ValueError(
                f"got examples with missing entries for machines of layer sizes {[m.sizes for m in stack]}; their "
                "score takes a single machine whose hidden units are independent"
            )
        check_whole_units("missing", missing, stack[0])
        return {"log_likelihood_bound": _missing_bound(key, stack[0], visible, missing, log_z)}
    found = _scores(key, stack, jnp.asarray(visible), jnp.float32(log_z))
    return {name: found[name] for name in NAMES if name in found}


@jax.jit
def _scores(
    key: PRNGKeyArray, stack: Stack, visible: Shaped[Array, "batch n_0"], log_z: Float[Array, ""]
) -> dict[str, Float[Array, " batch"]]:
    (machine, *above) = stack
    if above:
        return {"log_likelihood_bound": stack_bound(key, stack, visible, log_z, NUM_SAMPLES)}
    if not machine.has_independent_hidden:
        return {"log_likelihood_bound": variational_bound(machine, visible, log_z)}
    free = jax.vmap(functools.partial(_free_energy, machine))(visible)
    found = {"log_likelihood": -free - log_z, "free_energy": free}
    if has_pseudo_log_likelihood(machine):
        found["pseudo_log_likelihood"] = pseudo_log_likelihood(key, machine, visible)
    return found


def _possible(unit: Unit, means: Float[Array, " n"]) -> Float[Array, " n"]:
    """Means that rounding has not carried past the largest value."""
    found = []
    for kind, part in unit.segments(len(means)):
        values = kind.all_values()
        found.append(means[part] if values is None else jnp.clip(means[part], int(values.min()), int(values.max())))
    return jnp.concatenate(found)


def _free_energy(machine: BoltzmannMachine, visible: Shaped[Array, " n_0"]) -> Float[Array, ""]:
    hidden = tuple(jnp.zeros(n) for n in machine.sizes[1:])
    return marginal_energy(machine, (visible, *hidden), tuple(range(1, len(machine.sizes))))


_missing_bound = jax.jit(missing_bound)
_log_partition_exact = jax.jit(log_partition_exact)
