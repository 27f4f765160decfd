"""Markov kernels of Gibbs sampling: layer blocks, the asynchronous sweep inside a layer, whole sweeps and chains.

A unit is resampled from its conditional given all others, which its local field determines. Layers of the same parity
do not see each other, so a layer without intra-layer weights is resampled as one block; the units of a layer with
intra-layer weights go one after another in index order, each seeing the newest values of the others (the asynchronous
sweep of Liu, Quek and Lin, arXiv 1711.07732, section 5). Both kernels leave the machine's distribution invariant.

The kernels are deterministic functions of uniform random numbers; only the functions that take a key or a stream draw
them. All take one configuration; under `jax.vmap` over configurations the asynchronous sweep runs as a kernel of its
own for the whole batch, with matrix products between blocks of units. Not here: samplers that pass through the
machines of a stack (`stack`), tempering.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from vpf_jax import checks, couplings
from vpf_jax.checks import AnyArray
from vpf_jax.energy import layer_field
from vpf_jax.machine import AnyState, BoltzmannMachine, State, check_layers, check_state
from vpf_jax.sample.streams import Stream, stream_of, substream, uniform
from vpf_jax.sharding import DATA, MODEL, laid
from vpf_jax.units import BINARY, TwoValued, Unit

# Units of a layer that the asynchronous sweep resamples between two matrix products: more of them cost more in the
# recurrence between units, fewer cost more products.
_BLOCK = 8


def gibbs_sweep(key: PRNGKeyArray, machine: BoltzmannMachine, state: AnyState, clamped: Sequence[int] = ()) -> State:
    """Resamples every unclamped unit of one configuration once: odd layers first, then even ones.

    Args:
      key: a random key.
      machine: the machine.
      state: one array [n_l] of values of its units per layer.
      clamped: indices of the layers held fixed.

    Returns:
      The new state, each layer in the dtype it came in, or in that of its units where it would not hold all values.

    Raises:
      ValueError: a state that does not fit the machine, or clamped indices that name no layer or one layer twice.
    """
    check_state(machine, state, batched=False)
    clamped = check_layers("clamped", clamped, len(machine.sizes))
    start = widened(machine, state)
    return sweep_layers(machine, start, draw_uniforms(stream_of(key), start), clamped)


def widened(machine: BoltzmannMachine, state: AnyState) -> State:
    """The state, each layer in a type that holds all values of its units (`Unit.widened`)."""
    return tuple(unit.widened(x) for unit, x in zip(machine.layer_units, state, strict=True))


def draw_uniforms(stream: Stream, state: State) -> tuple[Float[Array, "*batch _n_l"], ...]:
    """One uniform number in [0, 1) for each entry of a state."""
    return tuple(uniform(substream(stream, i), x.shape) for i, x in enumerate(state))


def sweep_layers(
    machine: BoltzmannMachine,
    state: State,
    uniforms: tuple[Float[Array, " _n_l"], ...],
    clamped: tuple[int, ...] = (),
    held: tuple[Shaped[Array, " n_0"], Bool[Array, " n_0"]] | None = None,
) -> State:
    """`gibbs_sweep` driven by one uniform number in [0, 1) per entry of the state.

    With `held`, values of the visible layer and where they are not held, the units of its asynchronous sweep see those.
    """
    layers = (*range(1, len(state), 2), *range(0, len(state), 2))
    for i in layers:
        if i not in clamped:
            resampled = resample_layer(machine, state, i, uniforms[i], held if i == 0 else None)
            state = (*state[:i], resampled, *state[i + 1 :])
    return state


def sweep_around(
    machine: BoltzmannMachine,
    states: State,
    given: Shaped[Array, "batch n_0"],
    free: Bool[Array, "batch n_0"],
    uniforms: tuple[Float[Array, "batch _n_l"], ...],
) -> State:
    """`sweep_layers` of a batch, in which visible units hold what is given where not free."""

    def sweep(state: State, given: Array, free: Array, uniforms: State) -> State:
        state = sweep_layers(machine, state, uniforms, (), (given, free))
        # Without weights inside the layer its units do not see one another, and are put back here.
        return (jnp.where(free, state[0], given.astype(state[0].dtype)), *state[1:])

    return jax.vmap(sweep)(states, given, free, uniforms)


def run_chain(
    key: PRNGKeyArray,
    machine: BoltzmannMachine,
    state: AnyState,
    num_sweeps: int,
    clamped: Sequence[int] = (),
) -> State:
    """The state after `num_sweeps` (at least 0) Gibbs sweeps; otherwise as `gibbs_sweep`.

    Raises:
      ValueError: a negative number of sweeps, and what `gibbs_sweep` refuses.
    """
    num_sweeps = checks.integer("num_sweeps", num_sweeps, 0)
    check_state(machine, state, batched=False)
    clamped = check_layers("clamped", clamped, len(machine.sizes))
    stream = stream_of(key)

    def sweep(state: State, i: Array) -> tuple[State, None]:
        return sweep_layers(machine, state, draw_uniforms(substream(stream, i), state), clamped), None

    start = widened(machine, state)
    return jax.lax.scan(sweep, start, jnp.arange(num_sweeps))[0]


def resample_layer(
    machine: BoltzmannMachine,
    state: State,
    layer: int,
    uniforms: Float[Array, " n_l"],
    held: tuple[Shaped[Array, " n_l"], Bool[Array, " n_l"]] | None = None,
) -> Shaped[Array, " n_l"]:
    """New values of one layer given the rest of the state, driven by one uniform number in [0, 1) per entry."""
    outside, x, unit = layer_field(machine, state, layer, inside=False), state[layer], machine.layer_units[layer]
    intra = machine.intra[layer]
    if intra is None:
        return unit.sample(outside, uniforms).astype(x.dtype)
    return asynchronous_sweep(intra, outside, x, uniforms, unit, held)


def asynchronous_sweep(
    intra: Float[Array, "n n"],
    fields: Float[Array, " n"],
    x: Shaped[Array, " n"],
    uniforms: Float[Array, " n"],
    unit: Unit = BINARY,
    held: tuple[Shaped[Array, " n"], Bool[Array, " n"]] | None = None,
) -> Shaped[Array, " n"]:
    """Resamples the units of one layer in index order, each seeing the newest values of the others.

    A two-valued unit takes its upper value where its field passes the threshold that its uniform number sets. The
    samples carry no gradient.

    Args:
      intra: intra-layer weights with zero diagonal, entry (i, j) from unit i to j; symmetric but for directed machines.
      fields: bias plus the inputs from other layers.
      x: values before the sweep.
      uniforms: one number in [0, 1) per entry.
      unit: what the neurons of the layer are.
      held: of a layer in which some entries hold a value: the values, and where they are not held.
    """
    intra, fields, before = jax.lax.stop_gradient((intra, fields, x.astype(fields.dtype)))
    if not isinstance(unit, TwoValued):
        return _sweep_by_unit(intra, fields, before, uniforms, unit, held).astype(x.dtype)
    # In shares of the way from the lower to the upper value, which for binary units are the values.
    origin = 0 if unit.low == 0 else couplings.up(intra, jnp.full_like(before, unit.low), fields.dtype)
    if held is not None:
        # A unit takes its upper value where its number is below that probability: 0 holds the upper, 1 the lower one,
        # unless the probability underflows.
        given, free = held
        uniforms = jnp.where(free, uniforms, 1 - unit.share(given))
    margins = fields + origin - unit.threshold(uniforms)
    steps = intra if unit.step == 1 else unit.step * intra
    return unit.at(_sweep(steps, margins, unit.share(before))).astype(x.dtype)


def _sweep_by_unit(
    intra: Float[Array, "n n"],
    fields: Float[Array, " n"],
    x: Float[Array, " n"],
    uniforms: Float[Array, " n"],
    unit: Unit,
    held: tuple[Shaped[Array, " n"], Bool[Array, " n"]] | None,
) -> Float[Array, " n"]:
    """The sweep of units of any kinds, whose states may have several entries, one after another."""
    for part_unit, part in unit.segments(len(x)):

        def resample(j: Array, x: Array, part_unit: Unit = part_unit, first: int = part.start) -> Array:
            width = part_unit.width
            start = first + j * width

            def own(a: Array) -> Array:
                return jax.lax.dynamic_slice_in_dim(a, start, width)

            z = own(fields) + couplings.up(couplings.columns(intra, start, width), x, fields.dtype)
            drawn = part_unit.entry(j).sample(z, own(uniforms)).astype(x.dtype)
            if held is not None:
                given, free = held
                drawn = jnp.where(own(free), drawn, own(given).astype(x.dtype))
            return jax.lax.dynamic_update_slice_in_dim(x, drawn, start, axis=0)

        x = jax.lax.fori_loop(0, (part.stop - part.start) // part_unit.width, resample, x)
    return x


@jax.custom_batching.custom_vmap
def _sweep(intra: Float[Array, "n n"], margins: Float[Array, " n"], x: Float[Array, " n"]) -> Float[Array, " n"]:
    """The sweep of one configuration of zeros and ones; margin: field outside the layer minus threshold."""
    return _sweep_columns(intra, margins[:, None], x[:, None])[:, 0]


@_sweep.def_vmap
def _sweep_batch(axis_size: int, batched: list[bool], *operands: AnyArray) -> tuple[Array, bool]:
    # Constants of a program come as a kind of array that is JAX's own.
    intra, margins, x = map(jnp.asarray, operands)
    if batched[0]:
        axes = tuple(0 if b else None for b in batched)
        single = jax.vmap(_sweep.fun, in_axes=axes, axis_size=axis_size)
        return single(intra, margins, x), True
    margins, x = (
        a if b else jnp.broadcast_to(a, (axis_size, *a.shape)) for a, b in zip((margins, x), batched[1:], strict=True)
    )
    # Units wait for one another, examples do not: over devices each sweeps examples of its own, with all weights.
    intra = laid(intra, None, None)
    margins, x = laid((margins, x), (DATA, MODEL), None)
    return _sweep_columns(intra, margins.T, x.T).T, True


def _sweep_columns(
    intra: Float[Array, "n n"], margins: Float[Array, "n batch"], x: Float[Array, "n batch"]
) -> Float[Array, "n batch"]:
    """The asynchronous sweep of a batch of configurations, one per column so that a unit's values lie together.

    A block of units takes the input from the whole layer in one matrix product; inside it, a unit that changes adds
    its weights to the margins of the units after it, and to theirs only, so that at the end every margin is the one
    its unit was resampled with.
    """

    def resample_block(start: Array, size: int, x: Array) -> Array:
        incoming = couplings.columns(intra, start, size)
        # Entry (j, i): what unit j of the block adds to unit i after it.
        later = jnp.triu(jax.lax.dynamic_slice_in_dim(incoming, start, size), 1).astype(margins.dtype)
        before = jax.lax.dynamic_slice_in_dim(x, start, size)
        margin = jax.lax.dynamic_slice_in_dim(margins, start, size)
        margin = margin + couplings.up(incoming, x.T, margins.dtype).T

        def resample(j: Array, margin: Array) -> Array:
            change = (_row(margin, j) > 0).astype(x.dtype) - _row(before, j)
            return margin + _row(later, j)[:, None] * change[None]

        margin = jax.lax.fori_loop(_index(0), _index(size), resample, margin)
        return jax.lax.dynamic_update_slice_in_dim(x, (margin > 0).astype(x.dtype), start, axis=0)

    size = min(_BLOCK, x.shape[0])
    num_blocks, rest = divmod(x.shape[0], size)
    x = jax.lax.fori_loop(_index(0), _index(num_blocks), lambda b, x: resample_block(b * size, size, x), x)
    return resample_block(_index(num_blocks * size), rest, x) if rest else x


def _row(matrix: Float[Array, "n m"], i: Array) -> Float[Array, " m"]:
    return jax.lax.dynamic_index_in_dim(matrix, i, keepdims=False)


def _index(i: int) -> Array:
    """A loop index that cannot be negative, which spares every access a correction for negative ones."""
    return jnp.uint32(i)
