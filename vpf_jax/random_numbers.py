"""Uniform random numbers in bulk, from the counter-based generator threefry-2x32 with 20 rounds.

J. Salmon, M. Moraes, R. Dror and D. Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011). The same generator as
JAX's default, written as one chain of elementwise operations: the compiler fuses it into the comparison that uses the
numbers, so that they never travel through memory, and a Gibbs sampler is not bound by its random numbers. The streams
differ from those of `jax.random.uniform`. Not here: other distributions, keys and their splitting (`jax.random`).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def uniform(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Independent uniform numbers in [0, 1), multiples of 2^-24, float32.

    Args:
      key: a random key of any implementation.
      shape: of the result, up to 2^32 numbers.
    """
    words = jax.random.bits(key, (2,), jnp.uint32)
    counters = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    zeros = jnp.zeros_like(counters)
    bits, _ = threefry_2x32((words[0], words[1]), (zeros, counters))
    return jnp.right_shift(bits, 8).astype(jnp.float32) * jnp.float32(2**-24)


def threefry_2x32(
    key: tuple[UInt32[Array, ""], UInt32[Array, ""]], counter: tuple[UInt32[Array, "*n"], UInt32[Array, "*n"]]
) -> tuple[UInt32[Array, "*n"], UInt32[Array, "*n"]]:
    """The block cipher: two 32-bit words per counter, elementwise."""
    keys = (*key, key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    x0, x1 = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = (jnp.left_shift(x1, rotation) | jnp.right_shift(x1, 32 - rotation)) ^ x0
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return x0, x1
