"""Every computation lowers for GPUs and TPUs, wherever the tests run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vpf_jax
from vpf_jax import rules, train, units
from vpf_jax.evaluate.ais import ais_log_partition, ais_log_partition_reverse
from vpf_jax.sample.tempering import run_tempered
from vpf_jax.spikes.spiking import run_spiking

PLATFORMS = ("cuda", "tpu")
KEY = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
RBM = vpf_jax.init_machine(jax.random.key(0), (12, 8))
STACK = vpf_jax.init_stack(jax.random.key(0), (12, 8, 4), intra=True)
BITS = jnp.asarray(np.random.default_rng(0).integers(0, 2, (20, 12)), jnp.uint8)
STATE = (BITS[0], BITS[0, :8])
CALLS = {
    "gibbs": lambda key: vpf_jax.run_chain(key, RBM, STATE, 3),
    "sweep inside a layer": lambda key: vpf_jax.sample_hidden(key, STACK, BITS),
    "confabulation": lambda key: vpf_jax.confabulate(key, STACK, 10),
    "annealing": lambda key: ais_log_partition(key, RBM, 4, 5),
    "annealing, reverse": lambda key: ais_log_partition_reverse(key, RBM, (BITS, BITS[:, :8]), 5),
    "tempering": lambda key: run_tempered(key, RBM, (BITS[:3], BITS[:3, :8]), jnp.array([0.0, 0.5, 1.0]), 3),
    "repair": lambda key: vpf_jax.inpaint(key, RBM, BITS, jnp.arange(12) < 4, 3),
    "parzen": lambda key: vpf_jax.parzen_log_likelihood(1.0 * BITS[:5], 1.0 * BITS, 0.2),
    "exact sums": lambda key: vpf_jax.log_partition_exact(RBM),
    "pseudo-likelihood": lambda key: vpf_jax.pseudo_log_likelihood(key, RBM, BITS),
    "spikes": lambda key: run_spiking(key, RBM, STATE, 5),
}
RULES = {
    "vpf": rules.VPF(),
    "vpf exact": rules.VPF(expectation="exact"),
    "cd": rules.CD(2),
    "pcd": rules.PCD(),
    "tethered": rules.Tethered(1, 0.2),
    "mpf": rules.MPF(),
    "pl": rules.PL(),
    "ratio": rules.RatioMatching(),
    "tap": rules.TAP(),
    "energy discrepancy": rules.EnergyDiscrepancy(particles=4),
}


def lowered(function, *arguments):
    exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    return exported


@pytest.mark.parametrize("call", CALLS)
def test_computations_lower_for_accelerators(call):
    assert lowered(CALLS[call], KEY).out_avals


@pytest.mark.parametrize("precision", train.PRECISIONS)
@pytest.mark.parametrize("rule", RULES)
def test_training_lowers_for_accelerators(rule, precision):
    config = train.TrainConfig(RULES[rule], batch_size=10, precision=precision)
    state = jax.eval_shape(functools.partial(train.init_state, stack=(RBM,), config=config), KEY)
    # Of bfloat16 the products, which on a CPU are made otherwise, are those of the accelerator.
    text = lowered(functools.partial(train.train_epoch, config=config), state, BITS).mlir_module()
    assert ("bf16" in text) == (precision == "bfloat16")


@pytest.mark.parametrize("unit", ["spin", "categorical(4)", "gaussian", "normal", "count", "rectified"])
def test_units_lower_for_accelerators(unit):
    kind = units.get(unit)
    stack = (vpf_jax.init_machine(jax.random.key(0), (12, 8), units=(kind, units.BINARY)),)
    config = train.TrainConfig(rules.PCD(), batch_size=10)
    state = jax.eval_shape(functools.partial(train.init_state, stack=stack, config=config), KEY)
    values = jax.ShapeDtypeStruct((20, 12), kind.dtype)
    assert lowered(functools.partial(train.train_epoch, config=config), state, values).out_avals
