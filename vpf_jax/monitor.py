"""Scalars that show how the weights of a layer pair develop while it learns.

In the compositional regime of an RBM the sparsity measure falls while the squared weight grows (Tubiana and Monasson,
arXiv 1611.06759; used by Liu, Quek and Lin, arXiv 1711.07732, section 6). Not here: mean activations (`stack`),
likelihoods.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def weight_sparsity(weights: Float[Array, "n_visible n_hidden"]) -> Float[Array, ""]:
    """Weight sparsity rho = 1 / (V H) sum_j (sum_i w_ij^2)^2 / sum_i w_ij^4, in (0, 1].

    The mean over hidden units j of the participation ratio of their incoming weights: about the fraction of visible
    units that a hidden unit is connected to. A hidden unit without any weight counts as 0.
    """
    squares = weights**2
    fourth = jnp.sum(squares**2, axis=0)
    ratio = jnp.where(fourth > 0, jnp.sum(squares, axis=0) ** 2 / jnp.where(fourth > 0, fourth, 1), 0)
    return jnp.mean(ratio) / weights.shape[0]


def squared_weight(weights: Float[Array, "n_visible n_hidden"]) -> Float[Array, ""]:
    """(1 / H) sum_ij w_ij^2: the mean over hidden units of their summed squared incoming weights."""
    return jnp.sum(weights**2) / weights.shape[1]
