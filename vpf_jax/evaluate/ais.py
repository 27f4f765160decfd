"""Log Z of machines of any size by annealed importance sampling, forward and reverse.

Chains pass along the path of machines E_beta = (1 - beta) E_base + beta E from independent units, whose Z is a
product, to the machine (R. Neal, "Annealed importance sampling", 2001; for deep machines: R. Salakhutdinov and
I. Murray, "On the quantitative analysis of deep belief networks", 2008). With f_k the unnormalised probability at the
k-th inverse temperature and x_k the state after a Gibbs sweep that leaves f_k invariant,

    w = prod_k f_k(x_{k-1}) / f_{k-1}(x_{k-1}),    E[w] = Z / Z_base

so that log Z_base + log mean w is on average too low. Chains that start from draws of the machine and pass down to
the base give the inverse ratio, and an estimate that is on average too high (Burda, Grosse and Salakhutdinov 2015).
Layers that can be are summed out of f (`summable_layers`), which lowers the variance of the weights. Not here: exact
sums (`energy`); the path itself (`tempering`).
"""

import dataclasses
import functools
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from vpf_jax import checks, couplings
from vpf_jax.energy import layer_field, summable_layers
from vpf_jax.exporting import exported
from vpf_jax.machine import AnyState, BoltzmannMachine, State, check_machine, check_state, check_symmetric
from vpf_jax.sample.gibbs import asynchronous_sweep, draw_uniforms
from vpf_jax.sample.streams import Stream, stream_of, substream
from vpf_jax.sample.tempering import check_same_structure, independent_machine, own_between
from vpf_jax.sharding import DATA, laid
from vpf_jax.units import Unit

# An effective sample size below this number (or below half the chains, where they are few) or below this fraction of
# the chains means that a handful of chains make the estimate, and neither it nor its standard error can be trusted.
MIN_EFFECTIVE_SAMPLES = 10
MIN_EFFECTIVE_FRACTION = 0.05


class LowEffectiveSampleSizeWarning(UserWarning):
    """A few chains carry nearly all the weight of an estimate of log Z."""


@exported("vpf_jax.LogPartition")
class LogPartition(NamedTuple):
    """An estimate of log Z."""

    log_z: Float[Array, ""]
    """In nats."""
    standard_error: Float[Array, ""]
    """Of log_z, by the delta method: the standard deviation of the mean weight over the mean weight."""
    effective_sample_size: Float[Array, ""]
    """(sum w)^2 / sum w^2, from 1 to the number of chains."""


def ais_log_partition(
    key: PRNGKeyArray,
    machine: BoltzmannMachine,
    num_chains: int,
    num_temperatures: int,
    base: BoltzmannMachine | None = None,
) -> LogPartition:
    """Estimates log Z from chains annealed from the base to the machine: on average too low.

    Warns with `LowEffectiveSampleSizeWarning`, outside `jax.jit`, if few chains carry the weight.

    Args:
      key: a random key.
      machine: a machine of any family.
      num_chains: independent chains, at least 2.
      num_temperatures: inverse temperatures, evenly spaced from 0 to 1 with both ends, at least 2.
      base: a machine without interactions, of `independent_machine`; None: uniform bits. The nearer its visible means
        are to the machine's (the mean training image), the smaller the error.

    Raises:
      ValueError: numbers out of range, a base that does not fit or has weights, or a directed machine.
    """
    check_machine(machine)
    base = independent_machine(machine) if base is None else base
    _, log_weights = anneal(key, machine, num_chains, num_temperatures, base)
    return log_partition_of_weights(log_weights, base)


def log_partition_of_weights(log_weights: Float[Array, " num_chains"], base: BoltzmannMachine) -> LogPartition:
    """The estimate that `ais_log_partition` makes of the weights of `anneal`, for who needs the states too.

    Raises:
      ValueError: weights that are no vector of two or more numbers.
    """
    checks.array("log_weights", log_weights)
    if jnp.ndim(log_weights) != 1 or jnp.shape(log_weights)[0] < 2:
        raise ValueError(
            f"got log_weights of shape {jnp.shape(log_weights)}; they are one number per chain, at least 2"
        )
    check_machine(base, "the base")
    return _warned(_estimate(log_weights, _log_partition_independent(base), 1), log_weights.shape[0])


def ais_log_partition_reverse(
    key: PRNGKeyArray,
    machine: BoltzmannMachine,
    states: AnyState,
    num_temperatures: int,
    base: BoltzmannMachine | None = None,
) -> LogPartition:
    """Estimates log Z from chains annealed from the machine down to the base: on average too high.

    That holds for exact draws of the machine. States of long chains come close: those of `anneal`, after further
    Gibbs sweeps, for a machine too large to enumerate.

    Args:
      key: a random key.
      machine: a machine of any family.
      states: draws of the machine, one array [num_chains, n_l] of values of its units per layer, at least 2 chains.
      num_temperatures: as `ais_log_partition`.
      base: as `ais_log_partition`.

    Raises:
      ValueError: states that do not fit the machine, and what `ais_log_partition` refuses.
    """
    check_state(machine, states, batched=True)
    num_chains = jnp.shape(states[0])[0]
    checks.integer("num_chains", num_chains, 2)
    num_temperatures = checks.integer("num_temperatures", num_temperatures, 2)
    base = independent_machine(machine) if base is None else base
    _check_machines(base, machine)
    betas = jnp.linspace(1, 0, num_temperatures, dtype=machine.biases[0].dtype)
    _, log_weights = _pass_along(stream_of(key), machine, base, tuple(states), betas)
    return _warned(_estimate(log_weights, _log_partition_independent(base), -1), num_chains)


def anneal(
    key: PRNGKeyArray,
    machine: BoltzmannMachine,
    num_chains: int,
    num_temperatures: int,
    base: BoltzmannMachine | None = None,
) -> tuple[State, Float[Array, " num_chains"]]:
    """Chains annealed from draws of the base to the machine; arguments as `ais_log_partition`.

    Returns:
      (states, log_weights): one array [num_chains, n_l] per layer, uint8 for binary units, after one sweep at inverse
      temperature 1, and log w of each chain. Under the weights the states follow the machine.

    Raises:
      ValueError: as `ais_log_partition`.
    """
    num_chains = checks.integer("num_chains", num_chains, 2)
    num_temperatures = checks.integer("num_temperatures", num_temperatures, 2)
    check_machine(machine)
    base = independent_machine(machine) if base is None else base
    _check_machines(base, machine)
    stream = stream_of(key)
    fields = tuple(jnp.broadcast_to(b, (num_chains, b.shape[0])) for b in base.biases)
    # The sweeps count from 1 in the stream.
    uniforms = draw_uniforms(substream(stream, 0), fields)
    start = tuple(unit.sample(z, u) for unit, z, u in zip(base.layer_units, fields, uniforms, strict=True))
    betas = jnp.linspace(0, 1, num_temperatures, dtype=machine.biases[0].dtype)
    return _pass_along(stream, machine, base, start, betas)


@jax.jit
def _pass_along(
    stream: Stream,
    machine: BoltzmannMachine,
    base: BoltzmannMachine,
    states: State,
    betas: Float[Array, " num_temperatures"],
) -> tuple[State, Float[Array, " num_chains"]]:
    """States and log weights of chains that pass from the first inverse temperature to the last.

    The interpolated machines are never formed: their fields are (1 - beta) b_base + beta z, so one matrix product per
    layer and step serves the weights and the sweep. A sweep begins with the layers that are summed out of the weights,
    whose values are thus forgotten, and which leaves the marginal of the others invariant.
    """
    summed = summable_layers(machine)
    first = tuple(range(summed[0] % 2 if summed else 1, len(machine.sizes), 2))
    second = tuple(i for i in range(len(machine.sizes)) if i not in first)
    dtype = machine.biases[0].dtype
    kinds = machine.layer_units
    has_own = [machine.own is not None and machine.own[i] is not None for i in range(len(kinds))]

    def unit_at(beta: Array, layer: int) -> Unit:
        """With the parameters of its own energy in the machine at beta."""
        return dataclasses.replace(machine, own=own_between(base, machine, beta)).layer_units[layer]

    def outside_fields(x: State, layers: tuple[int, ...]) -> dict[int, Float[Array, "num_chains _n_l"]]:
        """Fields in the machine at beta = 1, without the inputs from inside the layer."""
        return {i: jax.vmap(lambda one, i=i: layer_field(machine, one, i, inside=False))(x) for i in layers}

    def at(beta: Array, layer: int, fields: Float[Array, "num_chains n_l"]) -> Float[Array, "num_chains n_l"]:
        return (1 - beta) * base.biases[layer][None] + beta * fields

    def log_ratio(x: State, fields: dict[int, Array], old: Array, new: Array) -> Float[Array, " num_chains"]:
        """Log f_new(x) - log f_old(x): differences of log-normalisers of summed layers, the rest linear in beta."""
        slope = jnp.zeros(x[0].shape[0], dtype)
        total = jnp.zeros_like(slope)
        for i, intra in enumerate(machine.intra):
            if i in summed:
                after, before = at(new, i, fields[i]), at(old, i, fields[i])
                if has_own[i]:
                    total += jnp.sum(unit_at(new, i).log_normaliser(after), axis=1)
                    total -= jnp.sum(unit_at(old, i).log_normaliser(before), axis=1)
                else:
                    total += jnp.sum(kinds[i].log_normaliser_difference(after, before), axis=1)
                continue
            if has_own[i]:
                total -= jnp.sum(unit_at(new, i).own_energy(x[i]) - unit_at(old, i).own_energy(x[i]), axis=1)
            # Weights between two layers that stay are counted in the fields of the first.
            tilt = (fields[i] if i in first else machine.biases[i][None]) - base.biases[i][None]
            if intra is not None:
                tilt = tilt + 0.5 * couplings.up(intra, x[i], dtype)
            slope += jnp.sum(x[i] * tilt, axis=1)
        return total + (new - old) * slope

    def resample(
        x: State, i: int, beta: Array, fields: Array, uniforms: Float[Array, "num_chains n_l"]
    ) -> Float[Array, "num_chains n_l"]:
        intra = machine.intra[i]
        if intra is None:
            return unit_at(beta, i).sample(at(beta, i, fields), uniforms).astype(dtype)
        sweep = jax.vmap(functools.partial(asynchronous_sweep, unit=unit_at(beta, i)), in_axes=(None, 0, 0, 0))
        return sweep(beta * intra, at(beta, i, fields), x[i], uniforms)

    def step(carry: tuple[State, Array], inputs: tuple[Array, Array, Array]) -> tuple[tuple[State, Array], None]:
        x, log_weights = carry
        number, old, new = inputs
        uniforms = draw_uniforms(substream(stream, number), x)
        fields = outside_fields(x, first)
        log_weights += log_ratio(x, fields, old, new)
        for layers in (first, second):
            fields = fields if layers is first else outside_fields(x, layers)
            x = tuple(resample(x, i, new, fields[i], uniforms[i]) if i in layers else x[i] for i in range(len(x)))
            x = laid(x, DATA, None)
        return (x, log_weights), None

    start = laid(tuple(jnp.asarray(x).astype(dtype) for x in states), DATA, None)
    steps = jnp.arange(1, betas.shape[0]), betas[:-1], betas[1:]
    (x, log_weights), _ = jax.lax.scan(step, (start, jnp.zeros(start[0].shape[0], dtype)), steps)
    # A unit whose field is nan does not fire, and so the weights could hide it.
    drawn = tuple(layer.astype(unit.dtype) for layer, unit in zip(x, kinds, strict=True))
    return drawn, checks.spoilt(log_weights, machine, base)


def _estimate(log_weights: Float[Array, " num_chains"], log_z_base: Float[Array, ""], sign: int) -> LogPartition:
    """Log Z = log Z_base + sign log mean w, with its standard error and effective sample size."""
    # The compiled logarithm of a sum of exponentials can pass over nan, as in weights of a machine that is not finite.
    count = log_weights.shape[0]
    log_mean = jax.nn.logsumexp(log_weights) - jnp.log(count)
    shares = jax.nn.softmax(log_weights)
    error = jnp.sqrt(jnp.sum((shares - 1 / count) ** 2) * count / (count - 1))
    estimate = LogPartition(log_z_base + sign * log_mean, error, 1 / jnp.sum(shares**2))
    return checks.spoilt(estimate, log_weights, log_z_base)


def least_effective(num_chains: int) -> float:
    """The effective sample size below which an estimate warns."""
    return max(MIN_EFFECTIVE_FRACTION * num_chains, min(MIN_EFFECTIVE_SAMPLES, num_chains / 2))


def _warned(estimate: LogPartition, num_chains: int) -> LogPartition:
    size, least = estimate.effective_sample_size, least_effective(num_chains)
    # Written as "not enough" because nan, of a machine that is not finite, compares false.
    if not isinstance(size, jax.core.Tracer) and not size >= least:
        warnings.warn(
            f"got an effective sample size of {float(size):.1f} from {num_chains} chains; below {least:g} the estimate "
            "of log Z and its standard error are unreliable, and more temperatures or a nearer base are needed",
            LowEffectiveSampleSizeWarning,
            stacklevel=3,
        )
    return estimate


def _log_partition_independent(base: BoltzmannMachine) -> Float[Array, ""]:
    layers = zip(base.layer_units, base.biases, strict=True)
    return sum((jnp.sum(unit.log_normaliser(b)) for unit, b in layers), jnp.zeros((), base.biases[0].dtype))


def _check_machines(base: BoltzmannMachine, machine: BoltzmannMachine) -> None:
    check_symmetric(machine, "annealing")
    check_machine(base, "the base")
    check_same_structure(base, machine)

    def told(_: object) -> str:
        return "with weights other than 0; it takes one of independent_machine"

    for block in jax.tree.leaves((base.weights, base.intra)):
        checks.values("a base", block, "zero", lambda w, xp: xp.all(w == 0), told)
