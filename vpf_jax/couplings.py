"""How two layers are joined: the one place where weights meet states.

A coupling joins a lower layer of n units to an upper one of m, and says what is linear in its weights

    up(x)             sum_i w_ij x_i          what the upper layer's fields gain
    down(y)           sum_j w_ij y_j          what the lower layer's fields gain
    products(a, b)    mean over a batch of a_i b_j at every weight, in the structure of the coupling: its gradient

The couplings of `init_machine` are plain arrays [n, m], "dense". Another kind is a subclass of `Coupling` that is a
pytree whose leaves are its weights, so that optimizers, decay and bounds reach them; the functions of this module take
either. Weights inside a layer are dense: symmetric with zero diagonal (`tied`), or with zero diagonal alone (`hollow`).
Not here: which layers are joined (`machine`), fields (`energy`).
"""

import abc
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Integer, Num, Shaped


class Coupling(abc.ABC):
    """Weights between two layers in another form than a matrix; a pytree of weights."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """Units of the lower and of the upper layer."""

    @property
    @abc.abstractmethod
    def dtype(self) -> DTypeLike:
        """Of the weights."""

    @abc.abstractmethod
    def up(self, x: Shaped[Array, "*batch n"], dtype: DTypeLike) -> Float[Array, "*batch m"]:
        """Sums over the lower units, factors in the precision of the weights, sums and result in `dtype`."""

    @abc.abstractmethod
    def down(self, y: Shaped[Array, "*batch m"], dtype: DTypeLike) -> Float[Array, "*batch n"]:
        """Sums over the upper units."""

    @abc.abstractmethod
    def products(self, a: Float[Array, "batch n"], b: Float[Array, "batch m"]) -> "Coupling":
        """Mean over the batch of a_i b_j at the place of every weight."""

    def cut(self, axis: str) -> "Coupling":
        """How its arrays are cut where upper units are spread over an axis of devices: specs in their places.

        By default each lies whole on every device.
        """
        return jax.tree.map(lambda leaf: PartitionSpec(), self)


Weights = Float[Array, "n m"] | Coupling
# One per pair of consecutive layers, whose sizes differ: a leading underscore leaves an axis unbound.
Blocks = tuple[Float[Array, "*runs _n _m"] | Coupling, ...]
AnyWeights = TypeVar("AnyWeights", bound=Array | Coupling)


def up(weights: Weights, x: Shaped[Array, "*batch n"], dtype: DTypeLike) -> Float[Array, "*batch m"]:
    """What the upper layer receives: operands in the precision of the weights, sums and result in `dtype`."""
    if isinstance(weights, Coupling):
        return weights.up(x, dtype)
    return _product(x.astype(weights.dtype), weights, dtype)


def down(weights: Weights, y: Shaped[Array, "*batch m"], dtype: DTypeLike) -> Float[Array, "*batch n"]:
    """What the lower layer receives."""
    if isinstance(weights, Coupling):
        return weights.down(y, dtype)
    return _product(y.astype(weights.dtype), weights.T, dtype)


def products(weights: AnyWeights, a: Float[Array, "batch n"], b: Float[Array, "batch m"]) -> AnyWeights:
    """Mean over the batch of a_i b_j, the factors in the precision of the weights, the sums in their own."""
    if isinstance(weights, Coupling):
        return cast(AnyWeights, weights.products(a, b))
    narrow = weights.dtype
    return cast(AnyWeights, _product(a.T.astype(narrow), b.astype(narrow), b.dtype) / a.shape[0])


def outer(weights: AnyWeights, a: Float[Array, " n"], b: Float[Array, " m"]) -> AnyWeights:
    """a_i b_j at every weight; of matrices as an elementwise product, which the compiler fuses into what follows."""
    if isinstance(weights, Coupling):
        return cast(AnyWeights, weights.products(a[None], b[None]))
    return cast(AnyWeights, a[:, None] * b[None])


def dense(weights: Weights) -> Float[Array, "n m"]:
    """The weights as a matrix."""
    if isinstance(weights, Coupling):
        return weights.up(jnp.eye(weights.shape[0], dtype=weights.dtype), weights.dtype)
    return weights


def check_dense(blocks: Blocks, what: str) -> None:
    """Raises ValueError for a coupling that is no matrix; `what` takes matrices alone."""
    for block in blocks:
        if isinstance(block, Coupling):
            raise ValueError(f"got a coupling of kind {type(block).__name__}; {what} takes matrices of weights")


def rows(weights: Weights, units: Integer[Array, "*k"] | int) -> Float[Array, "..."]:
    """The weights of some lower units, [k, m], or of one, [m]."""
    return dense(weights)[units]


def columns(weights: Float[Array, "n m"], start: Integer[Array, ""], count: int) -> Float[Array, "n count"]:
    """The weights of consecutive upper units."""
    return jax.lax.dynamic_slice_in_dim(weights, start, count, axis=1)


def hollow(matrix: Float[Array, "n n"], owners: Int[np.ndarray, " n"] | None = None) -> Float[Array, "n n"]:
    """The matrix with its diagonal set to 0; where units have several entries, whatever joins a unit to itself.

    Args:
      matrix: weights inside a layer, or products.
      owners: to which unit each entry belongs (`units.base.owners`); None: each is one.
    """
    own = jnp.eye(matrix.shape[0], dtype=bool) if owners is None else owners[:, None] == owners[None]
    return jnp.where(own, 0, matrix)


def tied(products: Float[Array, "n n"], owners: Int[np.ndarray, " n"] | None = None) -> Float[Array, "n n"]:
    """Products inside a layer as the gradient of symmetric weights, one parameter per unordered pair of units."""
    return hollow(products + products.T, owners)


def _product(a: Num[Array, "*batch n"], b: Num[Array, "n m"], dtype: DTypeLike) -> Float[Array, "*batch m"]:
    """The product of two matrices of one precision, sums and result in another.

    On a CPU XLA has no such product for every shape and place in a program; the entries widened first are the same
    numbers, and so are their products.
    """
    if a.dtype == dtype:
        return jnp.matmul(a, b)
    return jax.lax.platform_dependent(
        a,
        b,
        cpu=lambda a, b: jnp.matmul(a.astype(dtype), b.astype(dtype)),
        default=lambda a, b: jnp.matmul(a, b, preferred_element_type=dtype),
    )
