"""An epoch in blocks of minibatches: training on more examples than memory holds.

`train_epoch_from` is `train.train_epoch` on examples that a source reads in the order in which they are needed, such as
files (`data.on_disk`). Order and random numbers are those of `train_epoch`, so that both learn the same, and no number
depends on how large blocks are, or over how many devices and processes a machine lies: each process reads those rows
of every minibatch that its devices work on. Its three parts are there for loops of one's own, which may keep what is
between them and go on from there: `open_epoch`, `train_block` for each block, or `train_blocks` for all of a source's
that are left, `close_epoch`.

Not here: seeds at once, missing entries; how a source reads (`data.on_disk`).
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Shaped

from vpf_jax import checks
from vpf_jax.checks import AnyArray
from vpf_jax.examples import Examples, check_values, ordered
from vpf_jax.exporting import exported
from vpf_jax.sharding import DATA, automatic, laid_out, mesh_of, rows_of_process, together, where
from vpf_jax.stack import Stack
from vpf_jax.train import (
    Metrics,
    TrainConfig,
    TrainState,
    check_belongs,
    check_config,
    check_minibatch,
    check_state,
    closed,
    epoch_streams,
    order_at_start,
    start_phase_with,
    steps_of,
)

# Of a block, where nobody says how large it is.
BLOCK_BYTES = 2**27


@runtime_checkable
class Source(Protocol):
    """What examples are read from, as `data.on_disk.OnDisk`."""

    def __len__(self) -> int:
        """How many examples there are."""

    @property
    def num_visible(self) -> int:
        """Entries of an example."""

    @property
    def dtype(self) -> np.dtype:
        """Of an entry."""

    def blocks(self, rows: Sequence[Int[np.ndarray, "..."]]) -> Iterator[Shaped[np.ndarray, "... n_0"]]:
        """For each array of numbers of examples the examples, in an array with one more axis."""


@exported("vpf_jax.OpenEpoch")
@struct.dataclass
class OpenEpoch:
    """An epoch that is under way; a pytree, from which it goes on."""

    state: TrainState
    """After the steps so far; its number of epochs does not count this one."""
    began: Stack
    """The stack at the start of the epoch."""
    total: Float[Array, ""]
    """Sum of the objectives of the examples so far."""
    step: Int[Array, ""]
    """Steps that are done."""


def open_epoch(state: TrainState, config: TrainConfig) -> OpenEpoch:
    """The epoch after those of the state, which is donated, before its first step; it keeps the stack as it begins.

    Raises:
      ValueError: no state of one run under these settings.
    """
    _check_state(state, config)
    with where(state):
        return _open(state, config=config)


def order_of(state: TrainState, num_examples: int) -> Int[np.ndarray, " num_examples"]:
    """The order in which the next epoch sees the examples, the same as in `train.train_epoch`.

    Args:
      state: before the epoch.
      num_examples: at least 1.
    """
    count = checks.integer("num_examples", num_examples, 1)
    return np.asarray(_order(state.key, state.epoch, count=count))


def train_block(
    epoch: OpenEpoch, values: Shaped[AnyArray, "steps rows n_0"], *, config: TrainConfig, num_examples: int
) -> OpenEpoch:
    """Steps on the next minibatches of an epoch.

    Args:
      epoch: so far; donated, use the returned one.
      values: of the visible units, [steps, rows, n_0]: minibatches of `config.batch_size` rows, or the last one of the
        epoch with those that are left.
      config: the settings, static.
      num_examples: of the whole epoch, static.

    Raises:
      ValueError: values that are none of the units or do not fit the machine or the epoch.
    """
    check_config(config)
    num_examples = checks.integer("num_examples", num_examples, config.batch_size)
    checks.array("values", values, "an array [steps, rows, n_0] of visible values")
    shape, n_0 = jnp.shape(values), epoch.state.stack[0].sizes[0]
    rest = num_examples % config.batch_size
    fits = len(shape) == 3 and shape[2] == n_0 and shape[0] > 0 and (shape[1] == config.batch_size or shape[0] == 1)
    if not fits or shape[1] not in (config.batch_size, rest) or 0 in shape:
        last = f", or the last one, [1, {rest}, {n_0}]" if rest else ""
        raise ValueError(
            f"got values of shape {shape}; a block takes minibatches [steps, {config.batch_size}, {n_0}]{last}"
        )
    if mesh_of(values) is None or jax.process_count() == 1:
        flat = values.reshape(-1, n_0)
        check_values(Examples(flat), epoch.state.stack)
    with where(epoch):
        return _train(epoch, values, config=config, num_examples=num_examples)


def close_epoch(epoch: OpenEpoch, num_examples: int) -> tuple[TrainState, Metrics]:
    """The state after an epoch all of whose blocks are done, and what it reports.

    Args:
      epoch: donated.
      num_examples: of the whole epoch.
    """
    with where(epoch):
        return _close(epoch, checks.integer("num_examples", num_examples, 1))


def train_epoch_from(
    state: TrainState, source: Source, *, config: TrainConfig, steps_at_once: int | None = None
) -> tuple[TrainState, Metrics]:
    """`train.train_epoch` on examples that are read while others are learnt.

    Args:
      state: the state so far; donated, use the returned one. Where it lies over a mesh the examples do, too.
      source: of values of the visible units; each process reads its own rows of each minibatch.
      config: the settings.
      steps_at_once: minibatches in a block, at least 1; None: as many as `BLOCK_BYTES` hold. Some blocks are in memory
        at a time: one that is learnt and those that are read ahead.

    Raises:
      ValueError: examples that do not fit the stack or are fewer than a minibatch, minibatches that the devices do not
        divide, or a state that was made for other settings; in the middle of the epoch, when the state is gone already:
        examples that are no values of the units.
    """
    _check_state(state, config)
    steps_at_once = _checked(state, source, config, steps_at_once)
    epoch = open_epoch(state, config)
    for trained in _trained(epoch, source, config, steps_at_once):
        epoch = trained
    return close_epoch(epoch, len(source))


def train_blocks(
    epoch: OpenEpoch, source: Source, *, config: TrainConfig, steps_at_once: int | None = None
) -> Iterator[OpenEpoch]:
    """The epoch after each block that is left of it, from which it can be kept; of one that is done none.

    Args:
      epoch: so far; donated, and so is each that is given when the next one is asked for.
      source: as in `train_epoch_from`, with the examples of the blocks so far.
      config: the settings.
      steps_at_once: as in `train_epoch_from`; no number depends on it.

    Raises:
      ValueError: as `train_epoch_from`.
    """
    _check_state(epoch.state, config)
    return _trained(epoch, source, config, _checked(epoch.state, source, config, steps_at_once))


def start_phase_from(state: TrainState, source: Source, *, config: TrainConfig) -> TrainState:
    """`train.start_phase` on examples of a source; under `jax.eval_shape` none is read.

    Raises:
      ValueError: as `train.start_phase`.
    """
    _check_state(state, config)
    _checked(state, source, config, None)
    order = _order_at_start(state.key, config=config, count=len(source))
    if checks.is_traced(order):
        some = np.zeros((config.batch_size, source.num_visible), source.dtype)
    else:
        (some,) = source.blocks([np.asarray(order)])
        check_values(Examples(some), state.stack)
    with where(state):
        return _start(state, some, config=config)


def _checked(state: TrainState, source: Source, config: TrainConfig, steps_at_once: int | None) -> int:
    """Steps in a block; ValueError for a source that does not fit."""
    count, size, width = len(source), config.batch_size, source.num_visible
    if width != state.stack[0].sizes[0]:
        raise ValueError(f"got examples of {width} entries; the stack takes {state.stack[0].sizes[0]}")
    mesh = mesh_of(state)
    check_minibatch(config, count, 1 if mesh is None else mesh.shape.get(DATA, 1))
    if steps_at_once is None:
        steps_at_once = max(1, BLOCK_BYTES // (size * width * source.dtype.itemsize))
    return checks.integer("steps_at_once", steps_at_once, 1)


def _trained(epoch: OpenEpoch, source: Source, config: TrainConfig, steps_at_once: int) -> Iterator[OpenEpoch]:
    count, size, width, mesh = len(source), config.batch_size, source.num_visible, mesh_of(epoch)
    done, full = int(epoch.step) * size, count - count % size
    places = [
        np.arange(first, min(first + steps_at_once * size, full)).reshape(-1, size)
        for first in range(done, full, steps_at_once * size)
    ]
    if full < count and done <= full:
        places.append(np.arange(full, count)[None])
    order = order_of(epoch.state, count)
    mine = [slice(None) if mesh is None else rows_of_process(mesh, some.shape[1]) for some in places]
    read = source.blocks([order[some[:, own]] for some, own in zip(places, mine, strict=True)])
    for some, values in zip(places, read, strict=True):
        check_values(Examples(values.reshape(-1, width)), epoch.state.stack)
        whole = _placed(values, mesh, some.shape)
        # Else blocks would wait in memory, as a call returns before it is done.
        jax.block_until_ready(epoch.step)
        with where(epoch):
            epoch = _train(epoch, whole, config=config, num_examples=count)
        yield epoch


def _check_state(state: TrainState, config: TrainConfig) -> None:
    check_config(config)
    check_state(state)
    if jnp.ndim(state.epoch) > 0:
        raise ValueError("got a state of several seeds; an epoch in blocks takes that of one run")


def _placed(values: Shaped[np.ndarray, "steps _ n_0"], mesh: Mesh | None, shape: tuple[int, ...]) -> Array:
    """A block on its devices, of which this process has read its rows."""
    return jnp.asarray(values) if mesh is None else together(values, mesh, (*shape, values.shape[2]))


@functools.partial(jax.jit, static_argnames="count")
def _order(key: Array, epoch: Array, count: int) -> Array:
    return ordered(epoch_streams(key, epoch).order, Examples(jnp.zeros((count, 0), jnp.uint8)))


@functools.partial(jax.jit, static_argnames=("config", "count"))
def _order_at_start(key: Array, config: TrainConfig, count: int) -> Array:
    return order_at_start(key, Examples(jnp.zeros((count, 0), jnp.uint8)), config)


@functools.partial(jax.jit, static_argnames="config")
def _start(state: TrainState, some: Array, config: TrainConfig) -> TrainState:
    return start_phase_with(state, Examples(some), config)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def _open(state: TrainState, config: TrainConfig) -> OpenEpoch:
    def opened(state: TrainState) -> OpenEpoch:
        check_belongs(state, config)
        return OpenEpoch(state, jax.tree.map(jnp.copy, state.stack), jnp.zeros(()), jnp.zeros((), jnp.int32))

    return automatic(opened, state)


@functools.partial(jax.jit, static_argnames=("config", "num_examples"), donate_argnames="epoch")
def _train(epoch: OpenEpoch, values: Array, config: TrainConfig, num_examples: int) -> OpenEpoch:
    def trained(epoch: OpenEpoch, values: Array) -> OpenEpoch:
        state, began = laid_out(epoch.state), laid_out(epoch.began)
        steps = steps_of(state, began, config, num_examples)
        first = epoch.step * config.batch_size
        places = first + jnp.arange(math.prod(values.shape[:2])).reshape(values.shape[:2])

        def own(batch: tuple[Array, Array]) -> tuple[Array, Any]:
            return steps.own(Examples(batch[0]), batch[1])

        (stack, optimizer, carry), total = steps.run(state, ((values, places), None), own, epoch.step)
        after = TrainState(stack, optimizer, state.key, state.epoch, carry)
        return OpenEpoch(after, began, epoch.total + total, epoch.step + values.shape[0])

    return automatic(trained, epoch, values)


@functools.partial(jax.jit, static_argnames="num_examples", donate_argnames="epoch")
def _close(epoch: OpenEpoch, num_examples: int) -> tuple[TrainState, Metrics]:
    state = epoch.state
    return closed(state, (state.stack, state.optimizer, state.carry), epoch.total / num_examples)
