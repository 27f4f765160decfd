"""Energies, local fields, free energies and log Z against enumeration."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import (
    CASES,
    assert_close,
    cases,
    compiled,
    each_case,
    in_float64,
    joined,
    mapped,
    on_states,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from vpf_jax import (
    BoltzmannMachine,
    energy,
    free_energy,
    init_machine,
    local_fields,
    log_partition_exact,
)
from vpf_jax.energy import MAX_EXACT_UNITS, marginal_energy, summable_layers

log_partition = compiled(log_partition_exact)


def flip(states, unit):
    """The library's states (uint8 rows) with one unit flipped."""
    return oracles.flipped(states, unit).astype(np.uint8)


@each_case()
@in_float64
def test_energy_is_that_of_the_formula(case):
    states = case.all_states()
    found = on_states(energy, case.machine, case.layered(states))
    assert found.dtype == jnp.float64
    assert_close(found, oracles.energies(case.flat, states))


@each_case()
@in_float64
def test_local_fields_are_energy_differences(case):
    states = case.all_states()
    found = on_states(local_fields, case.machine, case.layered(states))
    assert_close(joined(found), oracles.local_fields(case.flat, states))


@each_case()
@in_float64
def test_energy_difference_by_flip_is_the_full_recomputation(case):
    states = case.all_states()
    here = np.asarray(on_states(energy, case.machine, case.layered(states)))
    fields = joined(on_states(local_fields, case.machine, case.layered(states)))
    for unit in range(states.shape[1]):
        there = np.asarray(on_states(energy, case.machine, case.layered(flip(states, unit))))
        assert_close(here - there, (1 - 2 * states[:, unit]) * fields[:, unit])


@pytest.mark.parametrize("function", [energy, local_fields], ids=["energy", "local_fields"])
@pytest.mark.parametrize("dtype", [jnp.bool_, jnp.float32, jnp.int32, jnp.float64], ids=str)
@in_float64
def test_any_state_type_gives_the_same_answer(function, dtype):
    case = CASES["intra_dbm-moderate"]
    states = case.some_states(6)
    expected = on_states(function, case.machine, case.layered(states, jnp.uint8))
    found = on_states(function, case.machine, case.layered(states, dtype))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@each_case()
def test_single_precision(case):
    states = case.all_states()
    found = on_states(energy, case.machine, case.layered(states))
    fields = joined(on_states(local_fields, case.machine, case.layered(states)))
    assert found.dtype == jnp.float32
    assert_close(found, oracles.energies(case.flat, states), 2e-6)
    assert_close(fields, oracles.local_fields(case.flat, states), 2e-6)
    assert_close(log_partition(case.machine), oracles.log_partition(case.flat), 2e-6)


@pytest.mark.parametrize("function", [energy, local_fields], ids=["energy", "local_fields"])
@in_float64
def test_mapped_and_compiled_is_the_same_as_a_loop(function):
    case = CASES["semi_restricted-peaked"]
    states = case.some_states(6)
    together = on_states(function, case.machine, case.layered(states))
    for number, row in enumerate(states):
        one = function(case.machine, case.layered(row))
        jax.tree.map(lambda a, b, n=number: assert_close(a[n], b, 1e-14), together, one)


@each_case()
@in_float64
def test_log_partition_is_that_of_the_enumeration(case):
    assert_close(log_partition(case.machine), oracles.log_partition(case.flat))


@in_float64
def test_log_partition_compiled_is_the_same_as_eager():
    machine = CASES["semi_restricted-peaked"].machine
    assert_close(log_partition(machine), log_partition_exact(machine), 1e-14)


@in_float64
def test_log_partition_of_independent_units_is_a_sum_of_softplus():
    biases = np.linspace(-4, 4, 16)
    machine = BoltzmannMachine(biases=(jnp.asarray(biases),), weights=(), intra=(None,))
    assert_close(log_partition_exact(machine), np.logaddexp(0, biases).sum())


@in_float64
def test_gradient_of_log_partition_is_the_mean_state():
    case = CASES["dbm-moderate"]
    gradient = jax.jit(jax.grad(log_partition_exact))(case.machine)
    mean = oracles.probabilities(case.flat) @ case.all_states()
    assert_close(joined(gradient.biases), mean)


def test_large_parameters_do_not_overflow():
    biases = (jnp.array([300.0, -300.0]), jnp.array([500.0, -500.0]))
    machine = BoltzmannMachine(biases=biases, weights=(jnp.zeros((2, 2)),), intra=(None, None))
    # Units at +-300 and +-500 are frozen: Z is one state's Boltzmann factor.
    assert_close(log_partition_exact(machine), 800.0, 1e-6)
    assert_close(free_energy(machine, jnp.array([1.0, 0.0])), -800.0, 1e-6)


@each_case("visible", "rbm", "semi_restricted")
@in_float64
def test_free_energy_sums_out_the_hidden_units(case):
    visible = oracles.all_states(case.sizes[0])
    found = mapped(free_energy)(case.machine, jnp.asarray(visible, jnp.uint8))
    assert_close(found, [oracles.free_energy(case.flat, vector) for vector in visible])
    one = free_energy(case.machine, jnp.asarray(visible[3], bool))
    assert_close(one, found[3], 1e-14)


@each_case("rbm", "semi_restricted")
@in_float64
def test_free_energies_add_up_to_the_partition_function(case):
    visible = jnp.asarray(oracles.all_states(case.sizes[0]), jnp.uint8)
    free = mapped(free_energy)(case.machine, visible)
    assert_close(oracles.log_sum_exp(-np.asarray(free)), log_partition(case.machine))


def upside_down(machine):
    """The same machine with its layers in reverse order."""
    return BoltzmannMachine(
        biases=machine.biases[::-1],
        weights=tuple(block.T for block in machine.weights[::-1]),
        intra=machine.intra[::-1],
    )


@each_case("rbm")
@in_float64
def test_log_partition_is_equal_through_either_layer(case):
    totals = []
    for machine in (case.machine, upside_down(case.machine)):
        states = jnp.asarray(oracles.all_states(machine.sizes[0]), jnp.uint8)
        totals.append(oracles.log_sum_exp(-np.asarray(mapped(free_energy)(machine, states))))
    assert_close(totals[0], totals[1])
    assert_close(totals[0], oracles.log_partition(case.flat))


@each_case("semi_restricted", "intra_dbm")
@in_float64
def test_turning_a_machine_upside_down_changes_nothing(case):
    states = case.layered(case.all_states())
    turned = upside_down(case.machine)
    assert_close(on_states(energy, turned, states[::-1]), on_states(energy, case.machine, states))
    fields = on_states(local_fields, turned, states[::-1])
    assert_close(joined(fields[::-1]), joined(on_states(local_fields, case.machine, states)))
    assert_close(log_partition(turned), log_partition(case.machine))


@each_case()
@in_float64
def test_permuting_the_units_of_a_layer_changes_nothing(case):
    rng = np.random.default_rng(0)
    orders = [rng.permutation(size) for size in case.sizes]
    pairs = zip(case.weights, orders[:-1], orders[1:], strict=True)
    permuted = case._replace(
        biases=tuple(bias[order] for bias, order in zip(case.biases, orders, strict=True)),
        weights=tuple(block[np.ix_(lower, upper)] for block, lower, upper in pairs),
        intra=tuple(
            None if block is None else block[np.ix_(order, order)]
            for block, order in zip(case.intra, orders, strict=True)
        ),
    )
    states = case.layered(case.all_states())
    moved = [layer[:, order] for layer, order in zip(states, orders, strict=True)]
    assert_close(on_states(energy, permuted.machine, moved), on_states(energy, case.machine, states))
    fields = on_states(local_fields, case.machine, states)
    expected = [layer[:, order] for layer, order in zip(fields, orders, strict=True)]
    assert_close(joined(on_states(local_fields, permuted.machine, moved)), joined(expected))
    assert_close(log_partition(permuted.machine), log_partition(case.machine))


@each_case("rbm", "intra_dbm")
@in_float64
def test_zero_intra_layer_weights_are_no_intra_layer_weights(case):
    without = case._replace(intra=(None,) * len(case.sizes))
    zero = case._replace(intra=tuple(np.zeros((size, size)) for size in case.sizes))
    states = case.layered(case.all_states())
    for function in (energy, local_fields):
        one, other = (on_states(function, plain.machine, states) for plain in (without, zero))
        jax.tree.map(assert_close, one, other)
    assert_close(log_partition(zero.machine), log_partition(without.machine))


@in_float64
def test_a_disconnected_top_layer_changes_nothing_below():
    case = CASES["intra_dbm-peaked"]
    top = case.sizes[-1]
    cut = case._replace(
        biases=(*case.biases[:-1], np.zeros(top)),
        weights=(*case.weights[:-1], np.zeros_like(case.weights[-1])),
        intra=(*case.intra[:-1], None),
    )
    lower = case._replace(biases=case.biases[:-1], weights=case.weights[:-1], intra=case.intra[:-1])
    states = case.layered(case.some_states(8))
    assert_close(on_states(energy, cut.machine, states), on_states(energy, lower.machine, states[:-1]))
    fields = on_states(local_fields, cut.machine, states)
    assert_close(joined(fields[:-1]), joined(on_states(local_fields, lower.machine, states[:-1])))
    np.testing.assert_array_equal(fields[-1], 0)
    expected = log_partition_exact(lower.machine) + top * np.log(2)
    assert_close(log_partition_exact(cut.machine), expected)


def test_a_new_machine_has_nearly_independent_units():
    machine = init_machine(jax.random.key(0), (6, 4))
    # Weights of 0.2: log Z differs from 10 log 2 by the sum of w / 4, plus second-order terms below
    # 0.02 per unit.
    expected = 10 * np.log(2) + float(machine.weights[0].sum()) / 4
    assert abs(float(log_partition_exact(machine)) - expected) < 0.2


def energy_and_fields(machine, state):
    return energy(machine, state), local_fields(machine, state)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(case=cases())
@in_float64
def test_any_connectivity(case):
    states = case.all_states()
    found, fields = on_states(energy_and_fields, case.machine, case.layered(states))
    assert_close(found, oracles.energies(case.flat, states))
    assert_close(joined(fields), oracles.local_fields(case.flat, states))
    assert_close(log_partition(case.machine), oracles.log_partition(case.flat))


def closed_form_layers(case):
    """The sets of layers that can be summed out of a machine."""
    free = [i for i, block in enumerate(case.intra) if block is None]
    subsets = (chosen for size in range(len(free) + 1) for chosen in itertools.combinations(free, size))
    return [chosen for chosen in subsets if not any(i + 1 in chosen for i in chosen)]


def assert_sums_out(case, summed):
    states = case.all_states()
    found = mapped(functools.partial(marginal_energy, summed=summed))(case.machine, case.layered(states))
    assert_close(found, [oracles.marginal_energy(case.flat, state, summed) for state in states])


@pytest.mark.slow
@each_case()
@in_float64
def test_marginal_energy_sums_over_the_states_of_the_summed_layers(case):
    """From every state, so that the values given for the summed layers are seen to be ignored."""
    for summed in closed_form_layers(case):
        assert_sums_out(case, summed)


@settings(max_examples=10, deadline=None)
@given(case=cases(max_units=6), data=st.data())
@in_float64
def test_marginal_energy_of_any_connectivity(case, data):
    assert_sums_out(case, data.draw(st.sampled_from(closed_form_layers(case))))


@pytest.mark.parametrize(
    ("family", "summed"), [("rbm", (0, 1)), ("dbm", (0, 2, 3)), ("intra_dbm", (1,)), ("semi_restricted", (0,))]
)
def test_layers_without_a_closed_form_are_refused(family, summed):
    case = CASES[f"{family}-moderate"]
    with pytest.raises(ValueError, match=re.escape(str(summed))):
        marginal_energy(case.machine, case.layered(case.some_states(1)[0]), summed)


def test_a_summed_layer_that_does_not_exist_is_refused():
    case = CASES["rbm-moderate"]
    with pytest.raises(ValueError, match="summed"):
        marginal_energy(case.machine, case.layered(case.some_states(1)[0]), (2,))


@pytest.mark.parametrize(
    ("sizes", "intra", "expected"),
    [
        ((5, 3), (), (0,)),
        ((3, 5), (), (1,)),
        ((4, 4), (), (1,)),
        ((5, 3), (0,), (1,)),
        ((3, 2, 4, 2), (), (0, 2)),
        ((3, 2, 4, 2), (2,), (1, 3)),
        ((4, 3), (0, 1), ()),
        ((4,), (), (0,)),
    ],
)
def test_the_larger_part_of_a_machine_is_summed_out(sizes, intra, expected):
    assert summable_layers(init_machine(jax.random.key(0), sizes, intra=intra)) == expected


@in_float64
def test_log_partition_of_a_wide_machine_is_equal_through_either_layer():
    """784 units summed out for each state of the other 10, and the free energies of those 10 as the visible layer."""
    rng = np.random.default_rng(0)
    biases = (jnp.asarray(rng.normal(size=784)), jnp.asarray(rng.normal(size=10)))
    machine = BoltzmannMachine(biases=biases, weights=(jnp.asarray(rng.normal(size=(784, 10))),), intra=(None, None))
    narrow = jnp.asarray(oracles.all_states(10), jnp.uint8)
    expected = oracles.log_sum_exp(-np.asarray(mapped(free_energy)(upside_down(machine), narrow)))
    assert_close(log_partition(machine), expected)
    assert_close(log_partition(upside_down(machine)), expected)


def test_enumeration_is_refused_by_the_units_that_cannot_be_summed_out():
    with pytest.raises(ValueError, match=rf"{MAX_EXACT_UNITS + 1} units"):
        log_partition_exact(init_machine(jax.random.key(0), (30, MAX_EXACT_UNITS + 1)))
    with pytest.raises(ValueError, match=r"30 units"):
        log_partition_exact(init_machine(jax.random.key(0), (30, 3), intra=(0,)))
