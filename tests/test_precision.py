"""Training with narrow factors in its matrix products: every model, on every machine that runs the tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import training

import vpf_jax
from vpf_jax import couplings, train

SIZES = (12, 8, 6, 4)


# The models of the main command, small.
MODELS = {
    "rbm": lambda key: vpf_jax.init_stack(key, SIZES[:2]),
    "dbm": lambda key: vpf_jax.init_stack(key, SIZES),
    "intra_dbm": lambda key: vpf_jax.init_stack(key, SIZES, intra=True),
    "joint intra_dbm": lambda key: (vpf_jax.init_machine(key, SIZES, tuple(range(1, len(SIZES)))),),
    "directed intra_dbm": lambda key: vpf_jax.untie_stack(None, vpf_jax.init_stack(key, SIZES, intra=True)),
}


@functools.cache
def stack_of(model):
    keys = dict(zip(MODELS, jax.random.split(jax.random.key(0), len(MODELS)), strict=True))
    return MODELS[model](keys[model])


@pytest.mark.slow
@pytest.mark.parametrize("estep", ["epoch", "minibatch"])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_learns_in_bfloat16(model, estep):
    visible = jnp.asarray(np.random.default_rng(0).integers(0, 2, (60, SIZES[0])), jnp.uint8)
    objectives = {}
    for precision in train.PRECISIONS:
        config = training(epochs=2, batch_size=20, estep=estep, precision=precision, learning_rate=0.01)
        state = train.init_state(jax.random.key(1), stack_of(model), config)
        for _ in range(2):
            state, metrics = train.train_epoch(state, visible, config=config)
        objectives[precision] = float(metrics.objective)
    # Narrow weights are off by 2^-9 of their size, and they are small: the rates hardly differ.
    assert objectives["bfloat16"] == pytest.approx(objectives["float32"], rel=2e-3)
    assert objectives["bfloat16"] != objectives["float32"]


def test_products_of_narrow_factors_are_those_of_the_rounded_numbers():
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((5, 7), (7, 3)))
    up = jax.jit(lambda weights, x: couplings.up(weights, x, jnp.float32))
    product = up(b, a)
    assert product.dtype == jnp.float32
    np.testing.assert_allclose(product, np.asarray(a, np.float64) @ np.asarray(b, np.float64), rtol=1e-5)
    lowered = jax.export.export(up, platforms=["cuda"])(b, a)
    assert "tensor<5x7xbf16>, tensor<7x3xbf16>) -> tensor<5x3xf32>" in lowered.mlir_module()
