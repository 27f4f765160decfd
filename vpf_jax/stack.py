"""Stacks of machines: the E-step of VPF, mean activations and confabulation.

A stack is a tuple of machines; the top layer of each is the visible layer of the next.

    pairwise coupling   two-layer machines, each with its own biases (the authors' experiments; the default):
                        an inner layer is the hidden layer of one machine and the visible layer of the next
    joint coupling      one deep machine: an inner unit's field sums both of its neighbours

An RBM is a stack of one two-layer machine, and there the two couplings are the same. The algorithms are 1 to 3 of
Liu, Quek and Lin, arXiv 1711.07732. Not here: the M-step (`train`); Gibbs kernels of one machine (`gibbs`).
"""

import functools
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from vpf_jax import checks
from vpf_jax.checks import AnyArray
from vpf_jax.energy import downward_field, layer_field, upward_field
from vpf_jax.exporting import exported
from vpf_jax.machine import BoltzmannMachine, State, check_machine, init_machine, untie
from vpf_jax.sample.gibbs import asynchronous_sweep, draw_uniforms, sweep_layers
from vpf_jax.sample.streams import Stream, of_rows, stream_of, substream, substreams, uniform
from vpf_jax.sharding import DATA, MODEL, laid, spread
from vpf_jax.units import BINARY, Unit, two_valued

Stack = tuple[BoltzmannMachine, ...]
Tree = TypeVar("Tree")


@exported("vpf_jax.Hidden")
class Hidden(NamedTuple):
    """What the E-step samples in one machine, bottom layer first: [batch, n_l] each, uint8 for binary units."""

    forward: tuple[Array, ...]
    """States of the feed-forward pass; the next machine takes the last one."""
    swept: tuple[Array | None, ...]
    """States after the asynchronous sweep; None for a layer without intra-layer weights, which keeps its own."""


# Rows whose random numbers are drawn from one stream, however many pass through a stack together.
CHUNK = 1000
# Bytes that a pass over many rows takes on a CPU; of the memory of another device it is a share.
CPU_BYTES, SHARE = 2**26, 1 / 8
# Numbers of four bytes that a compiled pass holds for each entry of a row; the others never reach memory.
_NUMBERS = 2


def init_stack(
    key: PRNGKeyArray, sizes: Sequence[int], intra: bool = False, units: Unit | Sequence[Unit] = BINARY
) -> Stack:
    """Draws a pairwise stack: one two-layer machine per pair of consecutive layers.

    Args:
      key: a random key.
      sizes: units per layer, visible first; at least two layers.
      intra: whether every hidden layer has intra-layer weights.
      units: what all neurons are, or those of each layer.

    Raises:
      ValueError: fewer than two layers, sizes that are no positive integers or do not suit the units, or units that are
        not one for all layers or one per layer.
    """
    layers = "a visible and at least one hidden layer, each with a positive integer number of units"
    sizes = checks.positive_integers("sizes", sizes, layers, least=2)
    checks.boolean("intra", intra)
    checks.random_key(key)
    keys = jax.random.split(key, len(sizes) - 1)
    kinds = (units,) * len(sizes) if isinstance(units, Unit) else tuple(units)
    checks.require(len(kinds) == len(sizes), "units", units, "a kind of unit, or one per layer")
    inside = (1,) if intra else ()
    return tuple(init_machine(keys[i], sizes[i : i + 2], inside, kinds[i : i + 2]) for i in range(len(sizes) - 1))


def untie_stack(key: PRNGKeyArray | None, stack: Stack) -> Stack:
    """The stack with every machine made directed (`machine.untie`); None: all backward weights equal to the forward."""
    check_stack(stack)
    if key is not None:
        checks.random_key(key)
    keys = [None] * len(stack) if key is None else list(jax.random.split(key, len(stack)))
    return tuple(untie(own, machine) for machine, own in zip(stack, keys, strict=True))


def sample_hidden(key: PRNGKeyArray, stack: Stack, visible: Shaped[AnyArray, "batch n_0"]) -> tuple[State, State]:
    """E-step of a pairwise stack: bottom-up sample, then the asynchronous sweep of layers with intra-layer weights.

    The feed-forward pass of all layers comes first, inputs from above zeroed. Then each machine's upper state is
    swept given that machine's feed-forward lower state; the swept state is not handed to the next machine, so the
    upper state of one machine and the lower state of the next differ where there are intra-layer weights.

    Args:
      key: a random key.
      stack: two-layer machines.
      visible: zeros and ones.

    Returns:
      (lower, upper): for each machine the state of its lower and of its upper layer, [batch, n] each, uint8 (the
      first lower state is `visible` as given).

    Raises:
      ValueError: a machine with other than two layers, or visible states that do not fit.
    """
    check_stack(stack)
    for machine in stack:
        if len(machine.sizes) != 2:
            raise ValueError(
                f"got a machine of layer sizes {machine.sizes}; sample_hidden takes a stack of two-layer machines "
                "(complete takes any)"
            )
    lower, upper = zip(*complete(key, stack, visible), strict=True)
    return lower, upper


def complete(key: PRNGKeyArray, stack: Stack, visible: Shaped[AnyArray, "batch n_0"]) -> tuple[State, ...]:
    """The E-step for machines of any depth: for each machine of the stack its state, one [batch, n_l] per layer.

    As `sample_hidden`, of which this is the general form; inside a deep machine, too, inputs from above are zeroed.
    The samples carry no gradient.
    """
    check_visible(stack, visible)
    states = jnp.asarray(visible)
    return join_states(states, climb(stream_of(key), stack, states))


def climb(stream: Stream, stack: Stack, visible: Shaped[Array, "batch n_0"]) -> tuple[Hidden, ...]:
    """The samples of `complete`, each once; `join_states` makes states of them."""
    found = []
    top = len(stack) - 1, len(stack[-1].sizes) - 1
    for number, machine in enumerate(stack):
        machine_stream = substream(stream, number)
        forward: list[Array] = []
        swept: list[Array | None] = []
        for i in range(1, len(machine.sizes)):
            unit, field = machine.layer_units[i], laid(upward_field(machine, i, visible), DATA, MODEL)
            visible = _sample(substream(machine_stream, 2 * i), unit, field)
            if (number, i) != top:
                # Bits travel, where units are spread over devices, and not the numbers that they become.
                visible = laid(visible, DATA, None)
            forward.append(visible)
            intra = machine.intra[i]
            if intra is None:
                swept.append(None)
            else:
                uniforms = uniform(substream(machine_stream, 2 * i + 1), visible.shape)
                sweep = functools.partial(asynchronous_sweep, unit=unit)
                new = jax.vmap(sweep, in_axes=(None, 0, 0, 0))(intra, field, visible, uniforms)
                swept.append(laid(new, DATA, None))
        found.append(Hidden(tuple(forward), tuple(swept)))
    return tuple(found)


def join_states(visible: Shaped[Array, "batch n_0"], hidden: tuple[Hidden, ...]) -> tuple[State, ...]:
    """For each machine its state, made of the visible states and the samples of `climb`."""
    states = []
    for forward, swept in hidden:
        states.append((visible, *(f if s is None else s for f, s in zip(forward, swept, strict=True))))
        visible = forward[-1] if forward else visible
    return tuple(states)


def mean_activations(
    key: PRNGKeyArray, stack: Stack, visible: Shaped[AnyArray, "batch n_0"]
) -> tuple[Float[Array, " _n_l"], ...]:
    """Mean feed-forward activation of each hidden unit, in [0, 1] of binary ones: one [n_l] per hidden layer.

    Bottom first: the mean over `visible` of the units' mean given their field, the layer below sampled; the last entry
    is the prior from which `confabulate` starts its "-P" variant (Algorithm 3).
    """
    check_visible(stack, visible)

    def activations(stream: Stream, rows: Shaped[Array, "rows n_0"]) -> list[Array]:
        found: list[Array] = []
        for machine in stack:
            for i in range(1, len(machine.sizes)):
                unit, field = machine.layer_units[i], upward_field(machine, i, rows)
                rows = _sample(substream(stream, len(found)), unit, field)
                found.append(unit.mean(field))
        return found

    found = in_chunks(stream_of(key), activations, jnp.asarray(visible), entries(stack))
    means = tuple(jnp.mean(a, axis=0) for a in found)
    return checks.spoilt(means, stack, visible)


def confabulate(
    key: PRNGKeyArray,
    stack: Stack,
    num_samples: int,
    steps: int | Array = 3,
    top_steps: int | Array | None = None,
    prior: Float[AnyArray, " n_top"] | None = None,
) -> Float[Array, "num_samples n_0"]:
    """Generates visible means from the top down (Algorithm 3).

    The top layer starts from values drawn from `prior`. In each machine, top first, k Gibbs steps (down, up) run; the
    lower state of the last step becomes the upper state of the next machine. The result is the visible mean of the last
    step. Where the upper layer has intra-layer weights its step up is one asynchronous sweep from its
    present values, so that a chain leaves the machine's own distribution invariant.

    A step's second half, up, changes nothing below it, so k = 0 and k = 1 are the same single pass down. A long chain
    in the top machine alone (`top_steps`), with few steps in the lower ones, samples the stack as a deep belief
    network. How far chains drift from the data depends on the training; choose both numbers on validation data.

    Args:
      key: a random key.
      stack: the machines, bottom first; in a deep one the first step passes down with inputs from below zeroed.
      num_samples: number of independent samples, at least 1.
      steps: k in the machines below the top one, at least 0; may be traced.
      top_steps: k in the top machine, at least 0, may be traced; None: `steps`.
      prior: probabilities in [0, 1] of the upper values of the top layer's units; None: all values alike, uniform bits.

    Raises:
      ValueError: numbers out of range, or a prior that does not fit the top layer.
    """
    return generated(key, stack, num_samples, steps, top_steps, prior)[1]


def generated(
    key: PRNGKeyArray,
    stack: Stack,
    num_samples: int,
    steps: int | Array = 3,
    top_steps: int | Array | None = None,
    prior: Float[AnyArray, " n_top"] | None = None,
) -> tuple[Shaped[Array, "num_samples n_0"], Float[Array, "num_samples n_0"]]:
    """Visible values with the means that `confabulate` gives, from which they are drawn."""
    check_stack(stack)
    num_samples = checks.integer("num_samples", num_samples, 1)
    steps = checks.traced_integer("steps", steps, 0)
    top_steps = steps if top_steps is None else checks.traced_integer("top_steps", top_steps, 0)
    num_top = stack[-1].sizes[-1]
    if prior is not None:
        checks.probabilities("a prior", prior)
        if jnp.shape(prior) != (num_top,):
            raise ValueError(f"got a prior of shape {jnp.shape(prior)}; the top layer takes one of shape ({num_top},)")
    unit = stack[-1].layer_units[-1]
    probabilities = None if prior is None else jnp.asarray(prior)

    def sample(stream: Stream, rows: Array) -> tuple[Array, Array]:
        start = uniform(substream(stream, len(stack)), (rows.shape[0], num_top))
        if probabilities is None:
            x = unit.sample(jnp.zeros_like(start), start)
        else:
            x = two_valued(unit, "a prior").at(start < probabilities[None])
        x = x.astype(unit.dtype)
        for i in reversed(range(len(stack))):
            num_steps = top_steps if i == len(stack) - 1 else steps
            x, means = _descend(substream(stream, i), stack[i], x, num_steps)
        return x, means

    values, means = in_chunks(stream_of(key), sample, jnp.arange(num_samples), entries(stack))
    return values, checks.spoilt(means, stack, prior)


def entries(stack: Stack) -> int:
    """How many a state has, in all layers of all machines of a stack together."""
    return sum(sum(machine.sizes) for machine in stack)


def rows_at_once(width: int) -> int:
    """Rows of so many entries that pass together, as many as the device's memory has room for.

    On a CPU `CHUNK` at most: the states of so many, of machines of usual size, fit the cache of a core. The device is
    that of `jax.default_device`, or the first one of this process.

    Args:
      width: entries of four bytes.
    """
    numbers, most = _room()
    return min(most, max(1, numbers // max(1, width)))


def tile_at_once(count: int) -> int:
    """Rows and columns of a tile of a table over pairs of rows, such as their distances, likewise; `count` at most.

    Args:
      count: of all rows, or columns.
    """
    numbers, most = _room()
    return min(most, math.isqrt(numbers), max(1, count))


def _room() -> tuple[int, int]:
    """Numbers that a pass may hold, and rows at most."""
    known: Any = jax.config
    chosen = known.jax_default_device
    device = chosen if isinstance(chosen, jax.Device) else jax.local_devices(backend=chosen)[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    room = CPU_BYTES if limit is None else int(SHARE * limit)
    return room // (4 * _NUMBERS), CHUNK if limit is None else sys.maxsize


def in_chunks(stream: Stream, function: Callable[[Stream, Array], Tree], rows: Array, width: int) -> Tree:
    """Applies function(stream, rows) to some rows at a time, and joins the results.

    Bounds the memory of passes over whole data sets. The random numbers are those of `CHUNK` rows at a time, each
    with its own stream, whatever number passes together (`rows_in_chunks`); over devices each takes consecutive ones.

    Args:
      stream: of all rows.
      function: of a stream, or one for each row, and rows.
      rows: along the first axis.
      width: entries of the states of a row (`rows_at_once`).
    """
    count, size = spread(DATA), rows_at_once(width)
    if count > 1 or size != CHUNK:
        return _by_places(stream, function, rows, count, size)
    full, rest = divmod(rows.shape[0], CHUNK)
    streams = substreams(stream, full + 1)
    parts = []
    if full:
        chunks = rows[: full * CHUNK].reshape(full, CHUNK, *rows.shape[1:])
        mapped = jax.lax.map(lambda part: function(*part), (streams[:full], chunks))
        parts.append(jax.tree.map(lambda a: a.reshape(full * CHUNK, *a.shape[2:]), mapped))
    if rest:
        parts.append(function(streams[full], rows[full * CHUNK :]))
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)


def rows_in_chunks(stream: Stream, rows: Int[Array, " rows"]) -> Stream:
    """For each of some rows the stream of the random numbers that `in_chunks` gives it."""
    return of_rows(jax.vmap(substream, in_axes=(None, 0))(stream, rows // CHUNK), rows % CHUNK)


def _by_places(stream: Stream, function: Callable[[Stream, Array], Tree], rows: Array, count: int, size: int) -> Tree:
    """`in_chunks` of so many rows at a time on each of some devices along the data axis, with a stream for each row."""
    number = rows.shape[0]
    each = -(-number // count)
    # The last rows once more, so that all devices have as many.
    places = laid(jnp.minimum(jnp.arange(count * each), number - 1).reshape(count, each), DATA, None)
    full, rest = divmod(each, size)

    def of(places: Array) -> Tree:
        flat = laid(places.reshape(-1), DATA)
        found = function(rows_in_chunks(stream, flat), laid(rows[flat], DATA))
        return jax.tree.map(lambda a: laid(a.reshape(*places.shape, *a.shape[1:]), DATA), found)

    some = []
    if full:
        chunks = jnp.moveaxis(places[:, : full * size].reshape(count, full, size), 1, 0)
        mapped = jax.lax.map(of, chunks)
        some.append(jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(count, full * size, *a.shape[3:]), mapped))
    if rest:
        some.append(of(places[:, full * size :]))
    joined = some[0] if len(some) == 1 else jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis=1), *some)
    return jax.tree.map(lambda a: laid(a.reshape(count * each, *a.shape[2:]), DATA)[:number], joined)


def check_stack(stack: Stack) -> None:
    """Raises ValueError unless it is a tuple of sound machines, each going on where the one below ends."""
    if not isinstance(stack, tuple | list) or not stack:
        told = f"a {type(stack).__name__}" if not isinstance(stack, tuple | list) else "no machine"
        raise ValueError(f"got {told} for the stack; it takes a tuple of machines, (machine,) for a single one")
    for i, machine in enumerate(stack):
        check_machine(machine, f"stack[{i}]")
    for i, (below, above) in enumerate(itertools.pairwise(stack)):
        if below.sizes[-1] != above.sizes[0] or below.layer_units[-1] != above.layer_units[0]:
            raise ValueError(
                f"got a stack whose machine {i} has layer sizes {below.sizes} and whose machine {i + 1} "
                f"{above.sizes}; the top layer of each is the visible layer of the next, of the same units"
            )


def check_visible(stack: Stack, visible: Shaped[AnyArray, "batch n_0"]) -> None:
    """Raises ValueError unless `visible` is a non-empty batch of values of a sound stack's visible units."""
    check_stack(stack)
    check_visible_shape(stack, visible)
    stack[0].layer_units[0].check("visible states", visible)


def check_visible_shape(stack: Stack, visible: Shaped[AnyArray, "batch n_0"]) -> None:
    """Raises ValueError unless `visible` is a non-empty batch for the stack's visible layer; of shapes alone."""
    checks.array("visible states", visible, f"an array [batch, {stack[0].sizes[0]}] of its units' values")
    shape = jnp.shape(visible)
    if len(shape) != 2 or shape[1] != stack[0].sizes[0] or shape[0] == 0:
        raise ValueError(
            f"got visible states of shape {shape}; the stack takes [batch, {stack[0].sizes[0]}], batch at least 1"
        )


def _descend(
    stream: Stream, machine: BoltzmannMachine, x: Shaped[Array, "batch n_top"], num_steps: int | Array
) -> tuple[Shaped[Array, "batch n_0"], Float[Array, "batch n_0"]]:
    """Runs Gibbs steps in one machine from a state of its top layer; returns the bottom layer's sample and mean."""

    def step(i: Array, state: State) -> State:
        uniforms = draw_uniforms(substream(stream, i), state)
        return jax.vmap(sweep_layers, in_axes=(None, 0, 0))(machine, state, uniforms)

    # The pass down is the first step; a loop of a traced length serves all lengths with one compilation.
    state = jax.lax.fori_loop(1, num_steps, step, _pass_down(substream(stream, 0), machine, x))
    fields = jax.vmap(lambda s: layer_field(machine, s, 0))(state)
    return state[0], machine.layer_units[0].mean(fields)


def _pass_down(stream: Stream, machine: BoltzmannMachine, x: Shaped[Array, "batch n_top"]) -> State:
    """Top-down state of one machine given its top layer, inputs from below zeroed."""
    states = [x]
    for i in reversed(range(len(machine.weights))):
        x = _sample(substream(stream, i), machine.layer_units[i], downward_field(machine, i, x))
        states.insert(0, x)
    return tuple(states)


def _sample(stream: Stream, unit: Unit, fields: Float[Array, "batch n"]) -> Shaped[Array, "batch n"]:
    return unit.sample(fields, uniform(stream, fields.shape)).astype(unit.dtype)
