"""Weight sparsity and squared weight against their definitions and in their limits."""

import jax.numpy as jnp
import numpy as np

from vpf_jax import squared_weight, weight_sparsity


def test_both_follow_their_definitions():
    weights = np.random.default_rng(0).normal(size=(7, 4))
    sparsity = total = 0.0
    for j in range(4):
        sparsity += sum(w**2 for w in weights[:, j]) ** 2 / sum(w**4 for w in weights[:, j])
        total += sum(w**2 for w in weights[:, j])
    np.testing.assert_allclose(weight_sparsity(jnp.asarray(weights)), sparsity / (7 * 4), rtol=1e-5)
    np.testing.assert_allclose(squared_weight(jnp.asarray(weights)), total / 4, rtol=1e-5)


def test_sparsity_is_the_fraction_of_connected_visible_units():
    one_each = jnp.eye(8)[:, :3] * 2.0
    np.testing.assert_allclose(weight_sparsity(one_each), 1 / 8)
    np.testing.assert_allclose(weight_sparsity(-0.5 * jnp.ones((8, 3))), 1.0)
    half = jnp.concatenate([jnp.ones((4, 3)), jnp.zeros((4, 3))])
    np.testing.assert_allclose(weight_sparsity(half), 0.5)


def test_hidden_units_without_weights_count_as_zero():
    weights = jnp.concatenate([jnp.ones((6, 1)), jnp.zeros((6, 1))], axis=1)
    np.testing.assert_allclose(weight_sparsity(weights), 0.5)
