"""Functions of machines stored by `jax.export` and read back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import CASES, each_case
from jax import export

import vpf_jax
from vpf_jax import rules, stack, train
from vpf_jax.evaluate import ais
from vpf_jax.sample import tempering
from vpf_jax.spikes import spiking, stdp
from vpf_jax.units import BINARY, SPIN


def stored_and_read(function, *arguments):
    """The function after a round trip through bytes."""
    return export.deserialize(export.export(jax.jit(function))(*arguments).serialize()).call


@each_case()
def test_a_function_of_a_machine_is_stored_and_read_back(case):
    machine, states = case.machine, case.layered(case.some_states(4))
    for function in (vpf_jax.vpf_objective, vpf_jax.local_gradient):
        read = stored_and_read(function, machine, states)(machine, states)
        jax.tree.map(np.testing.assert_array_equal, read, jax.jit(function)(machine, states))


def test_a_directed_machine_is_stored_and_read_back():
    machine = vpf_jax.untie(None, CASES["rbm-moderate"].machine)
    read = stored_and_read(lambda m: jax.tree.map(lambda p: 2 * p, m), machine)(machine)
    assert jax.tree.structure(read) == jax.tree.structure(machine)
    np.testing.assert_array_equal(read.backward[0], 2 * machine.backward[0])


RESULTS = {
    "BoltzmannMachine": vpf_jax.BoltzmannMachine((jnp.zeros(2),), (), (None,)),
    "machine of two kinds of units": vpf_jax.init_machine(jax.random.key(0), (2, 3), units=(BINARY, SPIN)),
    "LogPartition": ais.LogPartition(*(jnp.zeros(()) for _ in range(3))),
    "Estimate": rules.Estimate(jnp.zeros(()), jnp.zeros(()), ()),
    "DirectedGradient": vpf_jax.DirectedGradient((), (), (), ()),
    "Tempered": tempering.Tempered((), jnp.zeros(1)),
    "SpikeTrain": spiking.SpikeTrain(*(jnp.zeros(1) for _ in range(3))),
    "SpikingRun": spiking.SpikingRun((), (), (), jnp.zeros(())),
    "OnlineResult": vpf_jax.OnlineResult(jnp.zeros(()), jnp.zeros(())),
    "Pairings": stdp.Pairings(*(jnp.zeros(1) for _ in range(3))),
    "Hidden": stack.Hidden((jnp.zeros(1),), (None,)),
    "Examples": vpf_jax.Examples(jnp.zeros((2, 3)), drawn=True),
    "Metrics": train.Metrics(jnp.zeros(()), jnp.zeros(())),
}


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_stored_under_its_own_name(name):
    value = RESULTS[name]
    assert jax.tree.structure(stored_and_read(lambda tree: tree, value)(value)) == jax.tree.structure(value)
