"""Mean field to second order: its free energy, where that is stationary, and what learning by it follows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import (
    CASES,
    assert_close,
    assert_gradient,
    compiled,
    each_case,
    in_float64,
    joined,
    one_to_one,
    training,
)
from unit_machines import TERNARY

import vpf_jax
from vpf_jax import rules, tap_log_partition, tap_means, train, with_units
from vpf_jax.rules.tap import TAP
from vpf_jax.units import SPIN

moderate = pytest.mark.parametrize("case", [c for name, c in CASES.items() if name.endswith("moderate")], ids=repr)
settled = jax.jit(functools.partial(tap_means, num_steps=150))
STREAM = jnp.zeros(2, jnp.uint32)


@functools.partial(jax.jit, static_argnums=0)
def estimate(rule, machine, states, carry):
    return rule.estimate(STREAM, machine, machine, states, carry)


def some_means(case, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.uniform(0.05, 0.95, size)) for size in case.sizes)


@each_case()
@in_float64
def test_the_free_energy_is_the_expansion_to_second_order(case):
    means = some_means(case)
    found = compiled(tap_log_partition)(case.machine, means)
    assert_close(found, -oracles.mean_field_free_energy(case.flat, joined(means)))


@moderate
@in_float64
def test_the_means_are_where_it_is_stationary(case):
    means = settled(case.machine, some_means(case))
    assert_close(joined(means), oracles.mean_field_means(case.flat))
    slopes = jax.jit(jax.grad(tap_log_partition, argnums=1))(case.machine, means)
    np.testing.assert_allclose(joined(slopes), 0, atol=1e-9)


@moderate
@in_float64
def test_the_gradient_is_that_of_the_free_energies_of_data_and_model(case):
    """Of the second by differences of its stationary value, which moves with the parameters."""
    states = case.some_states(5)
    visible = states[:, : case.sizes[0]]

    def objective(machine):
        if len(machine.sizes) == 2:
            data = np.mean([oracles.free_energy(machine, row) for row in visible])
        else:
            data = oracles.energies(machine, states).mean()
        return data - oracles.mean_field_free_energy(machine, oracles.mean_field_means(machine, rounds=60))

    found = estimate(TAP(steps=150), case.machine, case.layered(states), ())
    assert_close(found.objective, objective(case.flat))
    assert_gradient(found.gradient, oracles.finite_differences(objective, case.flat), 1e-6)
    assert found.carry == ()


@moderate
@in_float64
def test_the_error_of_log_z_is_of_third_order_in_the_weights(case):
    errors = []
    for scale in (0.01, 0.005):
        machine = case.machine.replace(
            weights=jax.tree.map(lambda w, s=scale: s * w, case.machine.weights),
            intra=jax.tree.map(lambda w, s=scale: s * w, case.machine.intra),
        )
        flat = oracles.flatten(machine.biases, machine.weights, machine.intra)
        exact, first = oracles.log_partition(flat), oracles.mean_field_means(flat, order=1)
        means = settled(machine, some_means(case))
        errors.append(
            (
                abs(float(compiled(tap_log_partition)(machine, means)) - exact),
                abs(-oracles.mean_field_free_energy(flat, first, order=1) - exact),
            )
        )
    second, first = np.divide(*errors)
    assert 7 < second < 9, second
    assert 3.5 < first < 4.5, first


@pytest.mark.parametrize("case", [CASES["rbm-moderate"], CASES["intra_dbm-moderate"]], ids=repr)
@in_float64
def test_spins_are_bits_in_other_parameters(case):
    states = case.layered(case.some_states(5))
    bits, spins = case.machine, with_units(case.machine, SPIN)
    means = some_means(case)
    same = tuple(2 * m - 1 for m in means)
    # Energies differ by a constant.
    constant = compiled(vpf_jax.log_partition_exact)(spins) - oracles.log_partition(case.flat)
    assert_close(compiled(tap_log_partition)(spins, same) - constant, compiled(tap_log_partition)(bits, means))
    steps = jax.jit(functools.partial(tap_means, num_steps=2, damping=0.3))
    assert_close(joined(steps(spins, same)), 2 * joined(steps(bits, means)) - 1)
    rule, as_spins = TAP(), tuple(2 * x.astype(jnp.int8) - 1 for x in states)
    assert_close(estimate(rule, spins, as_spins, ()).objective, estimate(rule, bits, states, ()).objective, 1e-9)


@in_float64
def test_means_persist_or_start_from_the_data():
    case = CASES["rbm-peaked"]
    states = case.layered(case.some_states(4))
    kept = TAP(steps=1, damping=0.0, persistent=True)
    start = kept.start(STREAM, case.machine, states)
    once = estimate(kept, case.machine, states, start)
    twice = estimate(kept, case.machine, states, once.carry)
    at_once = estimate(TAP(steps=2, damping=0.0, persistent=True), case.machine, states, start)
    assert_close(joined(twice.carry), joined(at_once.carry))
    # The first round from the data is the same in both, as the hidden units' means given the data are.
    fresh = TAP(steps=1, damping=0.0)
    assert fresh.start(STREAM, case.machine, states) == ()
    assert_close(estimate(fresh, case.machine, states, ()).objective, once.objective)
    assert_close(start[1], jax.nn.sigmoid(states[0] @ case.machine.weights[0] + case.machine.biases[1][None]))


@in_float64
def test_damping_keeps_a_share_of_the_old_means():
    case = CASES["visible-peaked"]
    means = some_means(case)
    (old,), (new,) = means, tap_means(case.machine, means, 1, 0.0)
    (mixed,) = tap_means(case.machine, means, 1, 0.25)
    assert_close(mixed, 0.25 * old + 0.75 * new)
    assert_close(joined(tap_means(case.machine, means, 0)), joined(means))


@in_float64
def test_couplings_of_other_kinds_are_taken():
    sparse, matrix = one_to_one()
    states = (jnp.array([[0, 1, 1], [1, 0, 1]]), jnp.array([[1, 1, 0], [0, 0, 1]]))
    found, wanted = (estimate(TAP(), machine, states, ()) for machine in (sparse, matrix))
    assert_close(found.objective, wanted.objective)
    assert_close(found.gradient.weights[0].weights, jnp.diagonal(wanted.gradient.weights[0]))


@in_float64
def test_a_round_renews_odd_layers_and_then_even_ones():
    case = CASES["rbm-peaked"]
    (w,), (b, c), (v, h) = case.weights, case.biases, some_means(case)
    found = tap_means(case.machine, (v, h), 1, 0.0)
    h = 1 / (1 + np.exp(-(c + v @ w + (0.5 - h) * ((v - v**2) @ w**2))))
    v = 1 / (1 + np.exp(-(b + w @ h + (0.5 - v) * (w**2 @ (h - h**2)))))
    assert_close(joined(found), np.concatenate([v, h]))


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [True, False])
def test_epochs_by_it_raise_the_likelihood_with_weights_inside(persistent):
    stack = vpf_jax.init_stack(jax.random.key(0), (6, 4), intra=True)
    visible = jnp.asarray(np.random.default_rng(0).uniform(size=(60, 6)) < [0.8, 0.8, 0.8, 0.2, 0.2, 0.2], jnp.uint8)
    config = training("tap", persistent=persistent, batch_size=20, learning_rate=0.03, epochs=10, weight_decay=0.0)
    state = train.init_state(jax.random.key(1), stack, config)
    shapes = [((20, 6), (20, 4))] if persistent else [()]
    for _ in range(10):
        state, metrics = train.train_epoch(state, visible, config=config)
    assert [tuple(layer.shape for layer in means) for means in state.carry] == shapes
    assert np.isfinite(metrics.objective)
    (machine,) = state.stack
    np.testing.assert_array_equal(machine.intra[1], machine.intra[1].T)
    flat = oracles.flatten(machine.biases, machine.weights, machine.intra)
    found = oracles.log_likelihoods(flat)[oracles.state_numbers(np.asarray(visible))].mean()
    # Uniform bits: -6 log 2 = -4.16; the data's own pixels, independent: about -3.0.
    assert found > -3.4, found


def test_errors_say_what_is_allowed():
    machine = vpf_jax.init_machine(jax.random.key(0), (3, 2))
    means = jnp.full(3, 0.5), jnp.full(2, 0.5)
    for call in (lambda m: tap_means(m, means, 3), lambda m: tap_log_partition(m, means), TAP().accepts):
        with pytest.raises(ValueError, match=r"directed machine.*takes symmetric weights"):
            call(vpf_jax.untie(None, machine))
        with pytest.raises(ValueError, match=r"'ternary'; .* takes units of two values"):
            call(vpf_jax.init_machine(jax.random.key(0), (3, 2), units=TERNARY))
    for wrong in (1.5, -0.5, np.nan):
        with pytest.raises(ValueError, match=r"layer 1 of the means with values from .*; they are from 0 to 1"):
            tap_log_partition(machine, (means[0], jnp.full(2, wrong)))
    with pytest.raises(ValueError, match="shapes"):
        tap_means(machine, means[:1], 3)
    for damping in (1.0, -0.1):
        with pytest.raises(vpf_jax.SettingError, match=r"damping=.*; it takes .* of at least 0 and below 1"):
            tap_means(machine, means, 3, damping)
    with pytest.raises(vpf_jax.SettingError, match="num_steps=-1"):
        tap_means(machine, means, -1)
    for name, value in (("steps", 0), ("damping", 1.0)):
        with pytest.raises(vpf_jax.SettingError, match=f"got {name}="):
            rules.make("tap", **{name: value})
