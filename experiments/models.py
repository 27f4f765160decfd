"""The models that the scripts train, drawn at random. Not here: how they are trained (`comparison`, `phases`)."""

from collections.abc import Sequence

import jax

import vpf_jax

# Of the backward weights at the start: the forward ones for good (symmetric machines), or, of directed machines, equal
# to the forward ones or drawn afresh.
BACKWARD_STARTS = ("tied", "equal", "drawn")
# Apart from the keys that drawing a stack splits off.
_BACKWARD = 2**31 - 1


def draw_stack(
    key: jax.Array, sizes: Sequence[int], *, intra: bool = False, joint: bool = False, backward_start: str = "tied"
) -> vpf_jax.Stack:
    """A stack before training.

    Args:
      key: a random key.
      sizes: units per layer, visible first.
      intra: whether every hidden layer has intra-layer weights.
      joint: whether it is one deep machine and not a two-layer machine per pair of layers.
      backward_start: one of `BACKWARD_STARTS`.
    """
    if joint:
        stack: vpf_jax.Stack = (vpf_jax.init_machine(key, sizes, tuple(range(1, len(sizes))) if intra else ()),)
    else:
        stack = vpf_jax.init_stack(key, sizes, intra)
    if backward_start == "tied":
        return stack
    return vpf_jax.untie_stack(jax.random.fold_in(key, _BACKWARD) if backward_start == "drawn" else None, stack)
