"""Machines: initialisation, structure, and the refusal of states that do not fit."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import CASES, assert_close, each_case, in_float64
from hypothesis import given, settings
from hypothesis import strategies as st
from typed import refused

from vpf_jax import (
    BoltzmannMachine,
    directed_gradient,
    energy,
    flip_rates,
    free_energy,
    gibbs_sweep,
    init_machine,
    local_fields,
    local_gradient,
    log_partition_exact,
    run_chain,
    tie_intra,
    vpf_objective,
)


def above_diagonal(block):
    """The independent entries of a symmetric block with zero diagonal."""
    return np.asarray(block)[np.triu_indices(len(block), 1)]


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    data=st.data(),
)
def test_init_gives_the_asked_connectivity(sizes, data):
    intra = data.draw(st.lists(st.integers(0, len(sizes) - 1), unique=True))
    machine = init_machine(jax.random.key(0), sizes, intra=intra)
    assert machine.sizes == tuple(sizes)
    assert machine.num_units == sum(sizes)
    assert [layer.shape for layer in machine.biases] == [(size,) for size in sizes]
    assert [block.shape for block in machine.weights] == list(itertools.pairwise(sizes))
    assert len(machine.intra) == len(sizes)
    for layer, block in enumerate(machine.intra):
        assert (block is not None) == (layer in intra)
        if block is not None:
            assert block.shape == (sizes[layer], sizes[layer])
            np.testing.assert_array_equal(block, np.asarray(block).T)
            np.testing.assert_array_equal(np.diag(block), 0)
    for layer in machine.biases:
        np.testing.assert_array_equal(layer, 0)


def test_init_weights_have_the_stated_spread():
    machine = init_machine(jax.random.key(1), (150, 100, 60), intra=(0, 2))
    drawn = [
        (np.asarray(machine.weights[0]).ravel(), 1 / np.sqrt(150 * 100)),
        (np.asarray(machine.weights[1]).ravel(), 1 / np.sqrt(100 * 60)),
        (above_diagonal(machine.intra[0]), 1 / 150),
        (above_diagonal(machine.intra[2]), 1 / 60),
    ]
    for values, deviation in drawn:
        # Standard errors of the mean and of the standard deviation of N normal numbers: s /
        # sqrt(N), s / sqrt(2 N).
        assert abs(values.mean()) < 4 * deviation / np.sqrt(values.size)
        assert abs(values.std() - deviation) < 4 * deviation / np.sqrt(2 * values.size)
        # Normal, not uniform: the fourth moment is 3 s^4 with standard error sqrt(96 / N) s^4
        # (uniform: 1.8 s^4).
        assert abs(np.mean(values**4) / deviation**4 - 3) < 4 * np.sqrt(96 / values.size)


def test_init_takes_more_weights_than_32_bits_count():
    (weights,) = jax.eval_shape(lambda key: init_machine(key, (1000, 2**23)), jax.random.key(0)).weights
    assert weights.shape == (1000, 2**23)


def test_init_is_determined_by_the_key_and_blocks_are_independent():
    def draw(seed):
        return jax.tree.leaves(init_machine(jax.random.key(seed), (6, 6, 6), intra=(0, 1)))

    for first, second in zip(draw(0), draw(0), strict=True):
        np.testing.assert_array_equal(first, second)
    blocks = [leaf for leaf in draw(0) + draw(1) if leaf.ndim == 2]
    assert len(blocks) == 8
    independent = {above_diagonal(block).tobytes() for block in blocks}
    assert len(independent) == len(blocks)


def test_init_does_not_depend_on_the_order_of_the_intra_layers():
    first = init_machine(jax.random.key(0), (3, 4, 2), intra=(0, 2))
    second = init_machine(jax.random.key(0), (3, 4, 2), intra=(2, 0))
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize(
    ("sizes", "intra", "message"),
    [
        ((), (), "size|layer"),
        ((3, 0), (), "0"),
        ((3, -2), (), "-2"),
        ((3, 2.5), (), "2.5"),
        ((3, "4"), (), "4"),
        ((3, 2), (2,), "2"),
        ((3, 2), (-3,), "-3"),
        ((3, 2), (1, 1), "1"),
    ],
)
def test_init_refuses_bad_arguments(sizes, intra, message):
    with refused(ValueError, match=message):
        init_machine(jax.random.key(0), sizes, intra=intra)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("size", [np.int64(3), np.int32(3)])
def test_numpy_sizes_become_python_ints(size):
    machine = init_machine(jax.random.key(0), (size, 2))
    assert machine.sizes == (3, 2)
    assert all(type(size) is int for size in machine.sizes)


@each_case()
def test_a_machine_is_a_pytree_of_its_parameters(case):
    machine = case.machine
    leaves, structure = jax.tree.flatten(machine)
    assert len(leaves) == len(machine.biases) + len(machine.weights) + len(case.intra_layers)
    doubled = jax.jit(lambda machine: jax.tree.map(lambda leaf: 2 * leaf, machine))(machine)
    assert isinstance(doubled, BoltzmannMachine)
    assert jax.tree.structure(doubled) == structure
    assert (doubled.sizes, doubled.num_units) == (case.sizes, sum(case.sizes))
    assert_close(doubled.biases[0], 2 * case.biases[0], 1e-6)


@in_float64
def test_tie_intra_adds_the_two_stored_entries_of_a_pair():
    stored = np.arange(9.0).reshape(3, 3)
    gradient = BoltzmannMachine(
        biases=(jnp.ones(3), jnp.ones(2)),
        weights=(jnp.full((3, 2), 5.0),),
        intra=(jnp.asarray(stored), None),
    )
    tied = tie_intra(gradient)
    np.testing.assert_array_equal(tied.intra[0], [[0, 4, 8], [4, 0, 12], [8, 12, 0]])
    assert tied.intra[1] is None
    jax.tree.map(
        np.testing.assert_array_equal,
        (tied.biases, tied.weights),
        (gradient.biases, gradient.weights),
    )


# What every function says about a state that does not fit a machine of sizes (5, 3).

RBM = CASES["rbm-moderate"]
ONE_CONFIGURATION = {
    "energy": energy,
    "local_fields": local_fields,
    "flip_rates": flip_rates,
    "gibbs_sweep": lambda machine, state: gibbs_sweep(jax.random.key(0), machine, state),
    "run_chain": lambda machine, state: run_chain(jax.random.key(0), machine, state, 2),
}
BATCHED = {
    "vpf_objective": vpf_objective,
    "local_gradient": local_gradient,
    "directed_gradient": directed_gradient,
}


def mentions(*words):
    """A pattern for messages that contain all the words, in any order."""
    return "(?s)" + "".join(f"(?=.*{re.escape(word)})" for word in words)


def zeros(*shapes):
    return tuple(jnp.zeros(shape, jnp.uint8) for shape in shapes)


@pytest.mark.parametrize("function", ONE_CONFIGURATION.values(), ids=ONE_CONFIGURATION.keys())
@pytest.mark.parametrize(
    ("state", "given"),
    [
        (zeros(5), "(5,)"),
        (zeros(5, 3, 2), "(2,)"),
        (zeros(5, 4), "(4,)"),
        (zeros(3, 5), "(3,), (5,)"),
        (zeros((7, 5), (7, 3)), "(7, 5)"),
        (zeros((), 3), "()"),
    ],
    ids=["missing layer", "extra layer", "wrong size", "swapped layers", "batched", "scalar layer"],
)
def test_a_state_that_does_not_fit_is_refused(function, state, given):
    with refused(ValueError, match=mentions(given, "(5, 3)")):
        function(RBM.machine, state)


@pytest.mark.parametrize("function", BATCHED.values(), ids=BATCHED.keys())
@pytest.mark.parametrize(
    ("states", "words"),
    [
        (zeros((7, 5)), ["(7, 5)", "(5, 3)"]),
        (zeros((7, 5), (7, 4)), ["(7, 4)", "(5, 3)"]),
        (zeros(5, 3), ["(5,)", "(3,)", "batch"]),
        (zeros((7, 5), (6, 3)), ["(7, 5)", "(6, 3)", "batch"]),
        (zeros((7, 5), (1, 3)), ["(7, 5)", "(1, 3)", "batch"]),
        (zeros((0, 5), (0, 3)), ["empty"]),
    ],
    ids=["missing layer", "wrong size", "unbatched", "two sizes", "batch of one", "empty batch"],
)
def test_states_that_do_not_fit_are_refused(function, states, words):
    with pytest.raises(ValueError, match=mentions(*words)):
        function(RBM.machine, states)


@pytest.mark.parametrize("function", ONE_CONFIGURATION.values(), ids=ONE_CONFIGURATION.keys())
def test_the_shape_check_also_works_under_jit(function):
    with pytest.raises(ValueError, match=mentions("(4,)", "(5, 3)")):
        jax.jit(function)(RBM.machine, zeros(5, 4))


@pytest.mark.parametrize("shape", [(4,), (2, 5), ()])
def test_free_energy_refuses_a_visible_vector_that_does_not_fit(shape):
    with refused(ValueError, match="5"):
        free_energy(RBM.machine, jnp.zeros(shape))


@pytest.mark.parametrize("name", ["dbm-moderate", "intra_dbm-moderate"])
def test_free_energy_refuses_machines_of_more_than_two_layers(name):
    case = CASES[name]
    with pytest.raises(ValueError, match=mentions(str(case.sizes), "two")):
        free_energy(case.machine, jnp.zeros(case.sizes[0]))


def test_free_energy_refuses_weights_inside_the_hidden_layer():
    machine = init_machine(jax.random.key(0), (3, 2), intra=(1,))
    with pytest.raises(ValueError, match=r"hidden|intra"):
        free_energy(machine, jnp.zeros(3))


def test_enumeration_refuses_large_machines():
    machine = init_machine(jax.random.key(0), (25, 25))
    with pytest.raises(ValueError, match=mentions("25", "24")):
        log_partition_exact(machine)
