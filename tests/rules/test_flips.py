"""Closed forms over hidden states and over flips of visible units, against enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import CASES, assert_close, assert_gradient, assert_same_machine, each_case, in_float64

from vpf_jax import init_machine
from vpf_jax.rules import flips, neighbours, vpf

two_layers = each_case("rbm", "semi_restricted")
FUNCTIONS = {
    "flow": (lambda r: jnp.exp(r / 2), lambda r: np.exp(r / 2)),
    "log": (jax.nn.softplus, lambda r: np.logaddexp(0, r)),
    "square": (lambda r: jax.nn.sigmoid(r) ** 2, lambda r: (1 + np.exp(-r)) ** -2.0),
}


def some_visible(case, number=6, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (number, case.sizes[0])).astype(np.float64)


@two_layers
@pytest.mark.parametrize("hidden_flips", [True, False])
@in_float64
def test_averaged_flow_is_the_expectation_over_hidden_states(case, hidden_flips):
    rows = some_visible(case)
    p = np.random.default_rng(1).uniform(size=(len(rows), case.sizes[1]))
    masses = oracles.factorial(case.flat, rows, p)
    objective, gradient = flips.averaged_flow(case.machine, jnp.asarray(rows), jnp.asarray(p), hidden_flips)
    counted = len(case.flat.bias) if hidden_flips else case.sizes[0]
    by_flip = oracles.gradient_by_flip(case.flat, case.all_states(), masses)
    assert_close(objective, masses @ oracles.flip_rates(case.flat, case.all_states())[:, :counted].sum(axis=1))
    assert_gradient(gradient, oracles.add(by_flip[:counted]))


@two_layers
@in_float64
def test_with_the_posterior_hidden_flips_change_no_gradient(case):
    rows = jnp.asarray(some_visible(case))
    p = jax.nn.sigmoid(rows @ case.machine.weights[0] + case.machine.biases[1][None])
    _, with_hidden = flips.averaged_flow(case.machine, rows, p, hidden_flips=True)
    _, without = flips.averaged_flow(case.machine, rows, p, hidden_flips=False)
    assert_same_machine(with_hidden, without)


@each_case("visible", "rbm", "semi_restricted")
@pytest.mark.parametrize("name", FUNCTIONS)
@in_float64
def test_summed_flow_is_the_enumerated_objective_and_its_derivative(case, name):
    function, reference = FUNCTIONS[name]
    rows = some_visible(case)

    def enumerated(machine):
        return float(np.mean(reference(oracles.flip_log_ratios(machine, rows)).sum(axis=1)))

    objective, gradient = flips.summed_flow(case.machine, jnp.asarray(rows), function)
    assert_close(objective, enumerated(case.flat))
    assert_gradient(gradient, oracles.finite_differences(enumerated, case.flat), 1e-7)


@pytest.mark.slow
@each_case("visible", "rbm", "semi_restricted")
@in_float64
def test_some_units_scaled_up_average_to_all(case):
    rows = jnp.asarray(some_visible(case))
    whole = flips.summed_flow(case.machine, rows, jax.nn.softplus)
    num = case.sizes[0]
    parts = [flips.summed_flow(case.machine, rows, jax.nn.softplus, jnp.array([i])) for i in range(num)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / num, *parts)
    assert_close(mean[0], whole[0])
    assert_same_machine(mean[1], whole[1])


@pytest.mark.slow
@in_float64
def test_chunks_of_units_do_not_show(monkeypatch):
    case = CASES["semi_restricted-peaked"]
    rows = jnp.asarray(some_visible(case))
    whole = flips.summed_flow(case.machine, rows, jax.nn.softplus)
    # Three units at a time leaves a rest of one.
    monkeypatch.setattr(neighbours, "CHUNK_BYTES", 3 * len(rows) * case.sizes[1] * 8)
    chunked = flips.summed_flow(case.machine, rows, jax.nn.softplus)
    assert_close(chunked[0], whole[0])
    assert_same_machine(chunked[1], whole[1])


def test_the_terms_never_take_more_than_the_stated_memory():
    machine = init_machine(jax.random.key(0), (784, 196))
    rows = jnp.zeros((40, 784), jnp.uint8)
    flow = jax.jit(lambda m, x: flips.summed_flow(m, x, jax.nn.softplus))
    used = flow.lower(machine, rows).compile().memory_analysis().temp_size_in_bytes
    # Some arrays of that size, and of the size of the weights, live at once; all terms together would take 25 MB each.
    assert used < 6 * neighbours.CHUNK_BYTES + 4 * 784 * 196 * 4


@pytest.mark.slow
def test_drawn_units_are_distinct_and_all_equally_likely():
    machine = init_machine(jax.random.key(0), (7, 3))
    streams = jax.random.bits(jax.random.key(1), (7000, 2), jnp.uint32)
    drawn = np.asarray(jax.vmap(lambda s: flips.draw_units(s, machine, 3))(streams))
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    counts = np.bincount(drawn.ravel(), minlength=7)
    deviation = np.sqrt(7000 * (3 / 7) * (4 / 7))
    assert np.abs(counts - 3000).max() < 4 * deviation
    assert flips.draw_units(streams[0], machine, None) is None


@pytest.mark.slow
def test_sampled_flow_averages_to_the_closed_form():
    case = CASES["rbm-peaked"]
    row = jnp.asarray(some_visible(case, 1), jnp.float32)
    p = jax.nn.sigmoid(row @ case.machine.weights[0] + case.machine.biases[1][None])
    hidden = (jax.random.uniform(jax.random.key(0), (20_000, case.sizes[1])) < p).astype(jnp.uint8)
    one = jax.vmap(lambda h: vpf.objective_and_gradient(case.machine, (row, h[None]))[0])
    found = np.asarray(one(hidden), np.float64)
    expected, _ = flips.averaged_flow(case.machine, row, p)
    error = found.std(ddof=1) / np.sqrt(len(found))
    assert abs(found.mean() - float(expected)) < 4 * error


def test_errors_say_what_is_allowed():
    deep = init_machine(jax.random.key(0), (4, 3, 2))
    inside = init_machine(jax.random.key(0), (4, 3), intra=(1,))
    rows = jnp.zeros((2, 4))
    for machine in (deep, inside):
        with pytest.raises(ValueError, match="layer sizes"):
            flips.summed_flow(machine, rows, jnp.exp)
        with pytest.raises(ValueError, match="without weights inside"):
            flips.averaged_flow(machine, rows, jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="2 layers"):
        flips.averaged_flow(init_machine(jax.random.key(0), (4,), (0,)), rows, jnp.zeros((2, 0)))
    with pytest.raises(ValueError, match="empty batch"):
        flips.summed_flow(init_machine(jax.random.key(0), (4, 3)), rows[:0], jnp.exp)
