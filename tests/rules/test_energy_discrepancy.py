"""Energy discrepancy against enumeration: its loss, its gradient, and the likelihood that it becomes."""

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
    assert_same_machine,
    each_case,
    in_float64,
    make_case,
    one_to_one,
    training,
)

import vpf_jax
from vpf_jax import energy_discrepancy, rules, train, with_units
from vpf_jax.rules import energy_discrepancy as rule
from vpf_jax.sample.streams import stream_of, substreams
from vpf_jax.units import SPIN

closed_form = each_case("visible", "rbm", "semi_restricted")


def some_visible(case, number=6, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (number, case.sizes[0])).astype(np.float64)


@functools.cache
def compiled(particles, noise, stabiliser=1.0):
    """The estimate of a batch, and the examples and particles that it draws: [batch, 1 + particles, n_0]."""

    def both(key, machine, visible):
        streams = substreams(stream_of(jax.random.clone(key)), visible.shape[0])
        drawn = jax.vmap(lambda s, v: rule.perturbed(s, machine, v, particles, noise))(streams, visible)
        return energy_discrepancy(key, machine, visible, particles, noise, stabiliser), drawn

    return jax.jit(both)


@closed_form
@in_float64
def test_loss_and_gradient_are_those_of_the_definition(case):
    visible = some_visible(case)
    for stabiliser in (0.0, 0.7):
        found, rows = compiled(5, 0.3, stabiliser)(jax.random.key(0), case.machine, jnp.asarray(visible))
        rows = np.asarray(rows)
        np.testing.assert_array_equal(rows[:, 0], visible)

        def loss(machine, rows=rows, stabiliser=stabiliser):
            return oracles.energy_discrepancy(machine, visible, rows[:, 1:], stabiliser)

        assert_close(found.objective, loss(case.flat))
        assert_gradient(found.gradient, oracles.finite_differences(loss, case.flat), 1e-7)


@pytest.mark.parametrize(("sizes", "noise"), [((4, 2), 0.1), ((4,), 0.5)])
@in_float64
def test_with_many_particles_it_is_the_likelihood_of_recovering_the_data(sizes, noise):
    """40 batches of 200 examples with 400 particles, their mean within 4.5 standard errors of the exact gradient."""
    case = make_case("recovered", sizes, (0,), 3.0, seed=2)
    visible = np.tile(some_visible(case, 8, seed=3), (25, 1))

    def gradient(key):
        return energy_discrepancy(key, case.machine, jnp.asarray(visible), 400, noise, 0.0).gradient

    found = jax.jit(lambda keys: jax.lax.map(gradient, keys))(jax.random.split(jax.random.key(0), 40))
    masses = np.bincount(oracles.state_numbers(visible), minlength=2 ** case.sizes[0]) / len(visible)
    exact = oracles.finite_differences(lambda machine: oracles.recovery_loss(machine, masses, noise), case.flat)
    wanted = np.concatenate([exact.bias, exact.coupling.ravel()])
    each = [jax.tree.map(lambda leaf, b=b: leaf[b], found) for b in range(40)]
    flat = [oracles.flatten(one.biases, one.weights, one.intra) for one in each]
    flat = np.stack([np.concatenate([one.bias, one.coupling.ravel()]) for one in flat])
    error = flat.std(axis=0, ddof=1) / np.sqrt(40)
    assert (np.abs(flat.mean(axis=0) - wanted) <= 4.5 * error + 1e-12).all()
    # What is tested is more than noise.
    assert np.abs(wanted).max() > 20 * error.max()


def test_particles_have_been_through_the_noise_twice_from_one_copy():
    """Any two of the example and its particles differ in a unit with probability 2 eps (1 - eps)."""
    machine = vpf_jax.init_machine(jax.random.key(0), (50, 3))
    rows = np.asarray(compiled(2, 0.1)(jax.random.key(1), machine, jnp.zeros((800, 50)))[1])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        differing = (rows[:, one] != rows[:, other]).mean()
        assert abs(differing - 0.18) < 4 * np.sqrt(0.18 * 0.82 / 40_000)
    # All three differ from y together where it is y's noise alone: (eps (1 - eps)^2 + (1 - eps) eps^2).
    together = ((rows[:, 1] != rows[:, 0]) & (rows[:, 2] != rows[:, 0])).mean()
    assert abs(together - 0.09) < 4 * np.sqrt(0.09 * 0.91 / 40_000)


@in_float64
def test_how_many_examples_are_taken_at_a_time_does_not_show(monkeypatch):
    case = CASES["semi_restricted-peaked"]
    visible = jnp.asarray(some_visible(case, 7))

    def found():
        # A function of its own, which is compiled afresh.
        return jax.jit(lambda key: energy_discrepancy(key, case.machine, visible, 5, 0.3))(jax.random.key(0))

    whole = found()
    # Three at a time leaves one.
    monkeypatch.setattr(rule, "CHUNK_BYTES", 3 * 6 * sum(case.sizes) * 8)
    pieces = found()
    assert_close(pieces.objective, whole.objective)
    assert_same_machine(pieces.gradient, whole.gradient)


def test_the_particles_never_take_more_than_the_stated_memory():
    machine = vpf_jax.init_machine(jax.random.key(0), (784, 196))
    discrepancy = jax.jit(lambda key, m, v: energy_discrepancy(key, m, v).gradient)
    lowered = discrepancy.lower(jax.random.key(1), machine, jnp.zeros((400, 784), jnp.uint8))
    used = lowered.compile().memory_analysis().temp_size_in_bytes
    # Some arrays of that size, and of the size of the weights, live at once; all particles would take 52 MB.
    assert used < 3 * rule.CHUNK_BYTES + 4 * 784 * 196 * 4


@in_float64
def test_couplings_of_other_kinds_are_taken():
    visible = jnp.array([[0, 1, 1], [1, 0, 1]])
    found, wanted = (compiled(8, 0.2)(jax.random.key(0), machine, visible)[0] for machine in one_to_one())
    assert_close(found.objective, wanted.objective)
    assert_close(found.gradient.weights[0].weights, jnp.diagonal(wanted.gradient.weights[0]))


@in_float64
def test_spins_learn_as_bits_do():
    case = CASES["semi_restricted-moderate"]
    bits, visible = case.machine, some_visible(case)
    spins = with_units(bits, SPIN)
    found, _ = compiled(8, 0.2)(jax.random.key(0), bits, jnp.asarray(visible))
    same, _ = compiled(8, 0.2)(jax.random.key(0), spins, jnp.asarray(2 * visible - 1))
    assert_close(same.objective, found.objective)
    # The loss falls by as much along one direction in both parametrisations, which are linear in one another.
    direction = case.machine.replace(weights=(jnp.ones((4, 3)),), intra=(1 - jnp.eye(4), None))
    there = with_units(direction, SPIN)
    assert_close(slope(same.gradient, there), slope(found.gradient, direction))


def slope(gradient, direction):
    """Along a direction in the parameters, pairs inside a layer counted once."""
    products = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)
    return sum(jax.tree.leaves((products.biases, products.weights))) + sum(jax.tree.leaves(products.intra)) / 2


@pytest.mark.slow
def test_epochs_lower_it():
    visible = jnp.asarray(2 * (np.random.default_rng(0).uniform(size=(60, 6)) < 0.8) - 1, jnp.int8)
    config = training("energy_discrepancy", noise=0.2, particles=8, batch_size=20, learning_rate=0.05, epochs=8)
    state = train.init_state(jax.random.key(1), vpf_jax.init_stack(jax.random.key(0), (6, 4), units=SPIN), config)
    objectives = []
    for _ in range(8):
        state, metrics = train.train_epoch(state, visible, config=config)
        objectives.append(float(metrics.objective))
    assert objectives[-1] < objectives[0] - 0.05
    assert state.carry == ((),)


def test_errors_say_what_is_allowed():
    rows = jnp.zeros((2, 4), jnp.uint8)
    machine = vpf_jax.init_machine(jax.random.key(0), (4, 3))
    for wrong in (
        vpf_jax.init_machine(jax.random.key(0), (4, 3, 2)),
        vpf_jax.init_machine(jax.random.key(0), (4, 3), intra=(1,)),
    ):
        with pytest.raises(ValueError, match="1 or 2 layers without weights inside the hidden one"):
            energy_discrepancy(jax.random.key(0), wrong, rows)
        with pytest.raises(ValueError, match="rule 'energy_discrepancy' takes machines of 1 or 2 layers"):
            rules.EnergyDiscrepancy().accepts(wrong)
    with pytest.raises(ValueError, match="symmetric weights"):
        energy_discrepancy(jax.random.key(0), vpf_jax.untie(None, machine), rows)
    with pytest.raises(ValueError, match="batch at least 1"):
        energy_discrepancy(jax.random.key(0), machine, rows[:0])
    for name, value in (("particles", 0), ("noise", 0.0), ("noise", 0.6), ("stabiliser", -1.0)):
        with pytest.raises(vpf_jax.SettingError, match=f"got {name}="):
            energy_discrepancy(jax.random.key(0), machine, rows, **{name: value})
