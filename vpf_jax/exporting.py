"""Pytrees of the library under names of their own, so that functions which take or give them can be stored.

`jax.export` writes a compiled function to a file with the structure of its arguments and results, and knows the
classes that have been registered with it. Not here: the optimizer states of Optax in a `train.TrainState`, which Optax
would have to register; machines as files (`checkpoint`).
"""

from collections.abc import Callable
from typing import TypeVar

from jax import export

Class = TypeVar("Class", bound=type)


def exported(
    name: str,
    *,
    stored: Callable[[tuple], bytes] = lambda static: b"",
    restored: Callable[[bytes], tuple] = lambda stored: (),
) -> Callable[[Class], Class]:
    """Registers a named tuple, or a dataclass of `flax.struct`, under a name that stays.

    Args:
      name: unique.
      stored: bytes that stand for the values of the dataclass's static fields, where it has some.
      restored: the inverse.
    """

    def register(tree: Class) -> Class:
        if issubclass(tree, tuple):
            export.register_namedtuple_serialization(tree, serialized_name=name)
        else:
            export.register_pytree_node_serialization(
                tree,
                serialized_name=name,
                # Flax keeps the values of static fields there.
                serialize_auxdata=stored,
                deserialize_auxdata=restored,
            )
        return tree

    return register
