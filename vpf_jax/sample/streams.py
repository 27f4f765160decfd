"""Uniform random numbers in bulk, from the counter-based generator threefry-2x32 with 20 rounds.

J. Salmon, M. Moraes, R. Dror and D. Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011). The same generator as
JAX's default, written as one chain of elementwise operations: the compiler fuses it into the comparison that uses the
numbers, so that they never travel through memory, and a Gibbs sampler is not bound by its random numbers.

A stream is the two key words of the cipher. Streams are derived from one another by the cipher itself, one fused
operation each, where `jax.random.split` takes a loop of small ones; and they may be derived inside a mapped scan,
which JAX's check of key reuse takes for a reuse of keys. The numbers differ from those of `jax.random.uniform`.

What passes over many rows in parts draws for row r of a part the numbers of row r of one array. Where the rows lie over
devices, or come in other parts, `of_rows` gives every row a stream of its own from which it draws the same numbers. Not
here: other distributions; keys (`jax.random`), which public functions take and open with `stream_of`.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from vpf_jax import checks

# The words of the cipher's key; or those of each of some rows, and where the row stands in the array that is drawn.
Stream = UInt32[Array, "2"] | UInt32[Array, "_rows 3"]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
# First counter word of blocks that become streams; those that become numbers count from 0 in it.
_DERIVED = 0xFFFFFFFF


def stream_of(key: PRNGKeyArray) -> Stream:
    """The stream of a random key of any implementation; consumes the key.

    Raises:
      ValueError: anything but one key.
    """
    checks.random_key(key)
    return jax.random.bits(key, (2,), jnp.uint32)


@functools.partial(jax.jit, inline=True)
def substream(stream: Stream, index: int | Int[Array, ""]) -> Stream:
    """One of 2^32 independent streams derived from a stream, apart from its own numbers."""
    counter = jnp.uint32(_DERIVED), jnp.asarray(index).astype(jnp.uint32)
    if stream.ndim == 1:
        # The barrier keeps the rounds that derive a stream out of every kernel that draws from it: some of these, with
        # a sum in them, took the compiler fifteen seconds.
        return jax.lax.optimization_barrier(jnp.stack(threefry_2x32((stream[0], stream[1]), counter)))
    first, second, rows = stream.T
    words = threefry_2x32((first, second), (jnp.full_like(rows, counter[0]), jnp.broadcast_to(counter[1], rows.shape)))
    return jnp.stack((*words, rows), axis=1)


def substreams(stream: Stream, count: int) -> UInt32[Array, "..."]:
    """The first `count` substreams."""
    return jax.vmap(substream, in_axes=(None, 0))(stream, jnp.arange(count))


def of_rows(streams: UInt32[Array, "2"] | UInt32[Array, "rows 2"], rows: Int[Array, " rows"]) -> Stream:
    """A stream for each row r of some, from which it draws what row r of an array draws from the stream given.

    Args:
      streams: one for all rows, or one for each.
      rows: where they stand in that array.
    """
    words = jnp.broadcast_to(streams, (rows.shape[0], 2)) if streams.ndim == 1 else streams
    return jnp.concatenate((words, rows.astype(jnp.uint32)[:, None]), axis=1)


@functools.partial(jax.jit, static_argnums=1, inline=True)
def uniform(stream: Stream, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Independent uniform numbers in [0, 1), multiples of 2^-24, float32, the same in every call.

    Args:
      stream: of `stream_of` or `substream`; a stream of each row where the first axis of the result is the rows'.
      shape: of the result, up to 2^32 rows of as many numbers.

    Raises:
      OverflowError: a larger shape.
    """
    bits = _words(stream, 0, shape)
    return jnp.right_shift(bits, 8).astype(jnp.float32) * jnp.float32(2**-24)


def permutation(stream: Stream, count: int) -> Int[Array, " count"]:
    """A uniformly random order of `count` things, by sorting 64-bit numbers: one sort where JAX takes several."""
    words = _words(stream, 0, (count,)), _words(stream, 1, (count,))
    return jax.lax.sort((*words, jnp.arange(count)), num_keys=2)[2]


@jax.jit
def threefry_2x32(
    key: tuple[UInt32[Array, "..."], UInt32[Array, "..."]], counter: tuple[UInt32[Array, "*n"], UInt32[Array, "*n"]]
) -> tuple[UInt32[Array, "*n"], UInt32[Array, "*n"]]:
    """The block cipher: two 32-bit words per counter, elementwise, under one key or a key for each.

    Of primitive operations, and traced once for all calls at one shape, since it stands in programs many times.
    """
    shape = counter[0].shape
    keys = [
        word if word.shape == shape else jax.lax.broadcast(word, shape)
        for word in (*key, key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    ]
    add, left, right = jax.lax.add, jax.lax.shift_left, jax.lax.shift_right_logical
    x0, x1 = add(counter[0], keys[0]), add(counter[1], keys[1])
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            by, back = (jax.lax.full_like(x1, count) for count in (rotation, 32 - rotation))
            x0 = add(x0, x1)
            x1 = jax.lax.bitwise_xor(jax.lax.bitwise_or(left(x1, by), right(x1, back)), x0)
        x0 = add(x0, keys[(group + 1) % 3])
        x1 = add(add(x1, keys[(group + 2) % 3]), jax.lax.full_like(x1, group + 1))
    return x0, x1


def _words(stream: Stream, which: int, shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """One of the two words of each of the blocks 0, 1, 2, ..., in 64 bits where there may be more than 2^32 of them."""
    size = math.prod(shape)
    if stream.ndim == 1 and size <= 2**32:
        counters = jax.lax.iota(jnp.uint32, size).reshape(shape)
        return threefry_2x32((stream[0], stream[1]), (jnp.zeros_like(counters), counters))[which]
    count = math.prod(shape[1:])
    if max(shape[0], count) > 2**32:
        raise OverflowError(f"got random numbers of shape {shape}; a stream has up to {2**32} rows of as many")
    rows = jax.lax.iota(jnp.uint32, shape[0]) if stream.ndim == 1 else stream[:, 2]
    keys = (jnp.broadcast_to(word, shape[:1]) for word in (stream[:2] if stream.ndim == 1 else stream.T[:2]))
    first, second, high, low = (
        jnp.broadcast_to(one[:, None], (shape[0], count)) for one in (*keys, *_times(rows, count))
    )
    counters = low + jax.lax.broadcasted_iota(jnp.uint32, (shape[0], count), 1)
    carried = high + (counters < low).astype(jnp.uint32)
    return threefry_2x32((first, second), (carried, counters))[which].reshape(shape)


def _times(rows: UInt32[Array, " rows"], count: int) -> tuple[UInt32[Array, " rows"], UInt32[Array, " rows"]]:
    """The two words of rows * count, the upper one first."""
    upper, lower = jnp.right_shift(rows, 16), rows & 0xFFFF
    top, bottom = jnp.uint32(count >> 16), jnp.uint32(count & 0xFFFF)
    middle = lower * top
    sums = jnp.right_shift(lower * bottom, 16) + (middle & 0xFFFF) + ((upper * bottom) & 0xFFFF)
    high = upper * top + jnp.right_shift(middle, 16) + jnp.right_shift(upper * bottom, 16) + jnp.right_shift(sums, 16)
    return high, rows * jnp.uint32(count & 0xFFFFFFFF)
