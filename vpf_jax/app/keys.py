"""Random keys of programs: one per seed and purpose. Not here: what is drawn."""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, UInt32


def key_for(seed: Any, purpose: str, *numbers: Any) -> PRNGKeyArray:
    """The key of a seed for a purpose, apart from those of all other purposes.

    Args:
      seed: from 0 to 2^32 - 1; may be traced.
      purpose: a name that stands at one place of the program, so that two uses never share their numbers.
      numbers: such as that of the epoch, where one purpose needs several keys; may be traced.
    """
    key = jax.random.key(seed if isinstance(seed, jax.Array) else np.uint32(seed))
    words = np.frombuffer(hashlib.sha256(purpose.encode()).digest()[:8], ">u4")
    for number in (*words, *numbers):
        key = jax.random.fold_in(key, number)
    return key


def as_array(seeds: Sequence[int]) -> UInt32[jax.Array, " num_seeds"]:
    """Seeds to map over."""
    return jnp.asarray(np.array(seeds, np.uint32))
