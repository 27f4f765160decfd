"""Log-likelihoods and lower bounds on them, in nats per image.

    RBM             log p(v) = -F(v) - log Z, exact up to the error of log Z
    any machine     log p(v) >= E_q[-E(v, h)] + H(q) - log Z, q(h) factorial by mean field (Salakhutdinov and Hinton,
                    "Deep Boltzmann machines", 2009)
    missing         log p(seen) >= E_q[log (1/S) sum_s p(v_s) / q(unseen of v_s | seen)], where entries of v are missing
    stack           log p(v) >= E_q[log (1/S) sum_s p(v, h_s) / q(h_s | v)], the stack read as a deep belief network:
                    its top machine undirected, the lower ones directed downwards (Hinton, Osindero and Teh 2006)

Visible units are of any kind; hidden ones of the variational bound have a finite number of values, as the entropy of
others does not go with their means. All take log Z as given: `log_partition_exact`, `ais_log_partition`. An estimate of
log Z that is too low raises all of them, bounds too. Not here: Parzen windows (`parzen`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from vpf_jax import checks, couplings
from vpf_jax.checks import AnyArray
from vpf_jax.energy import downward_field, energy, free_energy, layer_field, upward_field
from vpf_jax.evaluate.reconstruction import by_entry, inpaint
from vpf_jax.machine import BoltzmannMachine, State, check_machine, check_symmetric
from vpf_jax.sample.streams import Stream, stream_of, substream, substreams, uniform
from vpf_jax.stack import Stack, check_visible, entries, in_chunks, rows_at_once
from vpf_jax.units import Categorical, TwoValued, Unit
from vpf_jax.units.base import owners
from vpf_jax.units.two_valued import LEAST_MEAN

# Chains behind the means of missing entries, and their sweeps.
_MISSING_CHAINS, _MISSING_SWEEPS = 10, 20
# Rounds of mean field; machines with weak weights settle within a few, strong intra-layer weights take the most.
NUM_UPDATES = 20


def rbm_log_likelihood(
    machine: BoltzmannMachine, visible: Shaped[AnyArray, "batch n_0"], log_z: Float[Array, ""] | float
) -> Float[Array, " batch"]:
    """Log p(v) = -F(v) - log Z of each visible vector, for one or two layers without weights inside the hidden one.

    Args:
      machine: the machine.
      visible: values of its visible units.
      log_z: its log Z.

    Raises:
      ValueError: a machine without a closed form, or visible vectors that do not fit.
    """
    check_machine(machine)
    check_visible((machine,), visible)
    _check_log_z("log_z", log_z)
    found = -jax.vmap(free_energy, in_axes=(None, 0))(machine, jnp.asarray(visible)) - log_z
    return checks.spoilt(found, machine, visible)


def mean_field(
    machine: BoltzmannMachine, visible: Shaped[AnyArray, "batch n_0"], num_updates: int = NUM_UPDATES
) -> tuple[Float[Array, "batch _n_l"], ...]:
    """Means of a factorial approximation q(h) of p(h | v), one [batch, n_l] per hidden layer, bottom first.

    Coordinate ascent on the variational bound, which therefore never falls: each mean becomes that of its unit
    at its field, which the means of the others give. Odd layers go first, then even ones; a layer without intra-layer
    weights as one block, the units of a layer with them one after another. The start is the bottom-up pass, inputs from
    above zeroed.

    Args:
      machine: a machine of any family.
      visible: values of its visible units.
      num_updates: updates of every mean, at least 0; one is exact for an RBM.

    Raises:
      ValueError: a negative number of updates, or visible vectors that do not fit.
    """
    num_updates = checks.integer("num_updates", num_updates, 0)
    check_machine(machine)
    check_symmetric(machine, "mean field")
    check_visible((machine,), visible)
    size = rows_at_once(entries((machine,)))
    means = jax.lax.map(lambda v: _mean_field(machine, v, num_updates)[1:], jnp.asarray(visible), batch_size=size)
    return checks.spoilt(means, machine, visible)


def variational_bound(
    machine: BoltzmannMachine,
    visible: Shaped[AnyArray, "batch n_0"],
    log_z: Float[Array, ""] | float,
    num_updates: int = NUM_UPDATES,
) -> Float[Array, " batch"]:
    """The lower bound E_q[-E(v, h)] + H(q) - log Z on log p(v) of each visible vector, q by `mean_field`.

    A bound for any number of updates, and equal to log p(v) where the hidden units are independent given v.

    Args:
      machine: a machine of any family, its hidden units of a finite number of values.
      visible: values of its visible units.
      log_z: its log Z.
      num_updates: of `mean_field`.

    Raises:
      ValueError: as `mean_field`; hidden units of other kinds.
    """
    num_updates = checks.integer("num_updates", num_updates, 0)
    check_machine(machine)
    check_symmetric(machine, "the variational bound")
    check_visible((machine,), visible)
    _check_log_z("log_z", log_z)
    kinds = [_with_entropy(unit) for unit in machine.layer_units[1:]]

    def bound(v: Shaped[Array, " n_0"]) -> Float[Array, ""]:
        means = _mean_field(machine, v, num_updates)
        entropies = (jnp.sum(unit.entropy(m)) for unit, m in zip(kinds, means[1:], strict=True))
        # No hidden unit meets itself in the energy, so its mean under q is its value at the means.
        return sum(entropies, -energy(machine, means)) - log_z

    bounds = jax.lax.map(bound, jnp.asarray(visible), batch_size=rows_at_once(entries((machine,))))
    return checks.spoilt(bounds, machine, visible)


def missing_bound(
    key: PRNGKeyArray,
    machine: BoltzmannMachine,
    visible: Shaped[AnyArray, "batch n_0"],
    missing: Bool[AnyArray, "batch n_0"],
    log_z: Float[Array, ""] | float,
    num_samples: int = 100,
) -> Float[Array, " batch"]:
    """A lower bound, in the mean over `key`, on the log-likelihood of those entries that are not missing.

    The missing ones are drawn from independent units, with the means of `inpaint` over some chains, of real-valued ones
    their variances, too; the bound grows
    with the number of samples towards log p of the entries seen (Burda, Grosse and Salakhutdinov 2016). Where nothing
    is missing it is log p(v).

    Args:
      key: a random key.
      machine: whose hidden units are independent given the visible ones.
      visible: values of its visible units; what stands at missing entries plays no role.
      missing: True where an entry is missing; of a unit of several entries all are or none.
      log_z: log Z of the machine.
      num_samples: samples per visible vector, at least 1.

    Raises:
      ValueError: a machine without a closed form, numbers out of range, or arrays that do not fit.
    """
    num_samples = checks.integer("num_samples", num_samples, 1)
    check_machine(machine)
    check_visible((machine,), visible)
    _check_log_z("log_z", log_z)
    unit = machine.layer_units[0]
    missing = by_entry(missing, machine)
    means_key, key = jax.random.split(key)

    def chain(key: PRNGKeyArray) -> Float[Array, "batch n_0"]:
        return inpaint(key, machine, visible, missing, _MISSING_SWEEPS)

    chains = jax.lax.map(chain, jax.random.split(means_key, _MISSING_CHAINS))
    given, unseen = unit.widened(visible), jnp.asarray(missing)
    draw = _shares(unit, chains) if isinstance(unit, TwoValued) else _proposals(unit, chains)

    def log_weights(stream: Stream) -> Float[Array, " batch"]:
        x, log_q = draw(uniform(stream, given.shape), unseen)
        drawn = jnp.where(unseen, x.astype(given.dtype), given)
        return -jax.vmap(free_energy, in_axes=(None, 0))(machine, drawn) - log_q

    found = jax.lax.map(log_weights, substreams(stream_of(key), num_samples))
    bounds = jax.nn.logsumexp(found, axis=0) - jnp.log(num_samples) - log_z
    return checks.spoilt(bounds, machine, visible)


# From uniform numbers and where entries are missing: values of all, and log q of the missing ones.
_Draw = Callable[
    [Float[Array, "batch n"], Bool[Array, "batch n"]], tuple[Shaped[Array, "batch n"], Float[Array, " batch"]]
]


def _shares(unit: TwoValued, chains: Float[Array, "chains batch n"]) -> _Draw:
    """Independent units with the means of the chains, of two values each."""
    share = jnp.clip(unit.share(jnp.mean(chains, axis=0)), LEAST_MEAN, 1 - LEAST_MEAN)

    def draw(uniforms: Float[Array, "batch n"], missing: Bool[Array, "batch n"]) -> tuple[Array, Array]:
        up = uniforms < share
        return unit.at(up), jnp.sum(jnp.where(missing, jnp.log(jnp.where(up, share, 1 - share)), 0), axis=1)

    return draw


def _proposals(unit: Unit, chains: Float[Array, "chains batch n"]) -> _Draw:
    """The same of units of any kind, fitted to means and variances."""
    # The derivative of a mean by the field is the variance given the field, which of real values is the same at all.
    zeros, ones = jnp.zeros(chains.shape[-1]), jnp.ones(chains.shape[-1])
    given_field = jax.jvp(unit.mean, (zeros,), (ones,))[1]

    def fitted(chains: Float[Array, "chains n"]) -> tuple[Array, Array | None]:
        return unit.fitted(jnp.mean(chains, axis=0), given_field + jnp.var(chains, axis=0))

    fields, own = jax.vmap(fitted, in_axes=1)(chains)
    owned = owners(unit, chains.shape[-1])
    firsts = np.arange(chains.shape[-1]) if owned is None else np.unique(owned, return_index=True)[1]

    def of_one(z: Array, own: Array | None, uniforms: Array, missing: Array) -> tuple[Array, Array]:
        bound = unit.bound(own)
        x = bound.sample(z, uniforms).astype(z.dtype)
        terms = x * z - bound.own_energy(x)
        normalisers = jnp.where(missing[firsts], bound.log_normaliser(z), 0)
        return x, jnp.sum(jnp.where(missing, terms, 0)) - jnp.sum(normalisers)

    return lambda uniforms, missing: jax.vmap(of_one)(fields, own, uniforms, missing)


def stack_bound(
    key: PRNGKeyArray,
    stack: Stack,
    visible: Shaped[AnyArray, "batch n_0"],
    log_z_top: Float[Array, ""] | float,
    num_samples: int = 1,
) -> Float[Array, " batch"]:
    """A lower bound, in the mean over `key`, on log p(v) of each visible vector under the stack as a belief network.

    The top machine is undirected; each machine below it draws its lower layer given its upper one. The
    hidden states come from the feed-forward distributions q of the E-step, without the asynchronous sweep, whose
    density is not tractable. The bound log mean_s p(v, h_s) / q(h_s | v) grows with the number of samples towards log
    p(v) (Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2016). In the top machine the hidden
    units are summed out where they have a closed form, else bounded by mean field, and then so is the limit.

    Args:
      key: a random key.
      stack: machines, bottom first; below the top one of two layers, without weights inside the lower one.
      visible: values of its visible units.
      log_z_top: log Z of the top machine.
      num_samples: samples per visible vector, at least 1.

    Raises:
      ValueError: a machine that cannot be read as directed, numbers out of range, or visible vectors that do not fit.
    """
    num_samples = checks.integer("num_samples", num_samples, 1)
    check_visible(stack, visible)
    _check_log_z("log_z_top", log_z_top)
    check_symmetric(stack[-1], "the top machine of a belief network")
    for machine in stack[:-1]:
        if len(machine.sizes) != 2 or machine.intra[0] is not None:
            raise ValueError(
                f"got a lower machine of layer sizes {machine.sizes}"
                f"{' with intra-layer weights in its lower layer' if machine.intra[0] is not None else ''}; a directed "
                "one has two layers without weights inside the lower one"
            )

    def log_weights(stream: Stream, rows: Shaped[Array, "rows n_0"]) -> Float[Array, " rows"]:
        total = jnp.zeros(rows.shape[0], stack[0].biases[0].dtype)
        for i, machine in enumerate(stack[:-1]):
            below, above = machine.layer_units
            up = upward_field(machine, 1, rows)
            upper = above.sample(up, uniform(substream(stream, i), up.shape)).astype(total.dtype)
            down = downward_field(machine, 0, upper)
            total += _log_probability(below, rows, down) - _log_probability(above, upper, up)
            rows = upper
        top = stack[-1]
        if len(top.sizes) == 2 and top.has_independent_hidden:
            return total + rbm_log_likelihood(top, rows, log_z_top)
        return total + variational_bound(top, rows, log_z_top)

    def bound(stream: Stream, rows: Shaped[Array, "rows n_0"]) -> Float[Array, " rows"]:
        found = jax.lax.map(lambda s: log_weights(s, rows), substreams(stream, num_samples))
        return jax.nn.logsumexp(found, axis=0) - jnp.log(num_samples)

    bounds = in_chunks(stream_of(key), bound, jnp.asarray(visible), entries(stack))
    return checks.spoilt(bounds, stack, visible, log_z_top)


def _mean_field(machine: BoltzmannMachine, visible: Shaped[Array, " n_0"], num_updates: int) -> State:
    """The visible vector and the means of the hidden layers."""
    kinds = machine.layer_units
    start: tuple[Array, ...] = (visible.astype(machine.biases[0].dtype),)
    for i in range(1, len(machine.sizes)):
        start = (*start, kinds[i].mean(upward_field(machine, i, start[-1])))
    layers = (*range(1, len(start), 2), *range(2, len(start), 2))

    def update(means: State, _: None) -> tuple[State, None]:
        for i in layers:
            updated = _update_layer(kinds[i], machine.intra[i], layer_field(machine, means, i, inside=False), means[i])
            means = (*means[:i], updated, *means[i + 1 :])
        return means, None

    return jax.lax.scan(update, start, length=num_updates)[0]


def _update_layer(
    unit: Unit, intra: Float[Array, "n n"] | None, fields: Float[Array, " n"], means: Float[Array, " n"]
) -> Float[Array, " n"]:
    """New means of a layer given its fields from outside."""
    if intra is None:
        return unit.mean(fields)

    for kind, part in unit.segments(len(means)):

        def update(j: Array, means: Array, kind: Unit = kind, first: int = part.start) -> Array:
            start, width = first + j * kind.width, kind.width
            z = jax.lax.dynamic_slice_in_dim(fields, start, width)
            # Weights inside a layer are symmetric here.
            z = z + jax.lax.dynamic_slice_in_dim(couplings.dense(intra), start, width) @ means
            return jax.lax.dynamic_update_slice_in_dim(means, kind.entry(j).mean(z), start, axis=0)

        means = jax.lax.fori_loop(0, (part.stop - part.start) // kind.width, update, means)
    return means


def _with_entropy(unit: Unit) -> TwoValued | Categorical:
    if not isinstance(unit, TwoValued | Categorical):
        raise ValueError(
            f"got hidden units of kind {unit.name!r}; the variational bound takes two-valued or categorical ones"
        )
    return unit


def _log_probability(
    unit: Unit, x: Shaped[Array, "batch n"], fields: Float[Array, "batch n"]
) -> Float[Array, " batch"]:
    """Of each row under independent units with these fields."""
    linear = jnp.sum(x * fields - unit.own_energy(x.astype(fields.dtype)), axis=1)
    return linear - jnp.sum(unit.log_normaliser(fields), axis=1)


def _check_log_z(name: str, log_z: Float[Array, ""] | float) -> None:
    """An estimate of log Z that is nan is refused; the log-likelihood that came of it could be taken for a low one."""
    checks.finite_number(name, log_z)
