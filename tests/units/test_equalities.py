"""Machines that are the same in two kinds of units, or the same as a model of another name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import assert_close, in_float64, mapped
from unit_machines import make_units

import vpf_jax
from vpf_jax import BoltzmannMachine, gauges, with_units
from vpf_jax.units import BINARY, GAUSSIAN, SPIN, Categorical, Groups


def as_bits(machine: BoltzmannMachine) -> BoltzmannMachine:
    """Of categorical units of two values: the bit is the second value."""

    def both(block):
        cut = block.reshape(len(block) // 2, 2, block.shape[1] // 2, 2)
        return cut[:, 1, :, 1] - cut[:, 1, :, 0] - cut[:, 0, :, 1] + cut[:, 0, :, 0]

    # What is left is linear: fields at the first values of all other units.
    first = tuple(jnp.tile(jnp.asarray([1.0, 0.0]), len(b) // 2) for b in machine.biases)
    fields = vpf_jax.local_fields(machine, first)
    return BoltzmannMachine(
        biases=tuple(z.reshape(-1, 2)[:, 1] - z.reshape(-1, 2)[:, 0] for z in fields),
        weights=tuple(both(w) for w in machine.weights),
        intra=tuple(None if l is None else both(l) for l in machine.intra),
    )


@pytest.mark.slow
@in_float64
def test_categories_of_two_values_are_bits_and_spins():
    """Energies but for a constant, flip rates, flow and gradients of what is linear, log Z, conditionals."""
    case = make_units((("categorical(2)",) * 3, ("categorical(2)",) * 2), (0, 1), strength=0.8)
    bits = as_bits(case.machine)
    rows = oracles.all_states(5)
    states = tuple(jnp.asarray(part) for part in np.split(rows, [3], axis=1))
    unit = Categorical(2)
    one_hot = tuple(unit.encode(x.astype(int)) for x in states)
    difference = mapped(vpf_jax.energy)(case.machine, one_hot) - mapped(vpf_jax.energy)(bits, states)
    assert_close(difference, np.full(len(rows), difference[0]))
    assert_close(vpf_jax.log_partition_exact(case.machine) + difference[0], vpf_jax.log_partition_exact(bits))
    rates = mapped(vpf_jax.flip_rates)(case.machine, one_hot)
    spins = with_units(bits, SPIN)
    spin_states = tuple(2 * x.astype(jnp.int8) - 1 for x in states)
    for potts, bit, spin in zip(
        rates,
        mapped(vpf_jax.flip_rates)(bits, states),
        mapped(vpf_jax.flip_rates)(spins, spin_states),
        strict=True,
    ):
        assert_close(potts.reshape(len(rows), -1, 2).sum(axis=2), bit)
        assert_close(spin, bit)
    assert_close(vpf_jax.vpf_objective(case.machine, one_hot), vpf_jax.vpf_objective(bits, states))
    # One unit after another by the same uniform numbers, of which the first of a unit counts: P(second) from above.
    z = jnp.asarray(np.random.default_rng(0).normal(size=(50, 6)))
    u = jnp.asarray(np.random.default_rng(1).uniform(size=(50, 3)))
    drawn = unit.decode(unit.sample(z, jnp.repeat(u, 2, axis=1)))
    field = z.reshape(50, 3, 2)
    np.testing.assert_array_equal(drawn, BINARY.sample(field[..., 1] - field[..., 0], 1 - u))


def gaussian(precision: np.ndarray, mean: np.ndarray) -> BoltzmannMachine:
    """One layer whose distribution is normal with this precision matrix and mean."""
    diagonal = np.diagonal(precision)
    return BoltzmannMachine(
        biases=(jnp.asarray(precision @ mean),),
        weights=(),
        intra=(jnp.asarray(np.diag(diagonal) - precision),),
        own=(jnp.asarray(np.log(diagonal)),),
        units=GAUSSIAN,
    )


@in_float64
def test_flow_of_gaussian_units_is_score_matching_of_a_multivariate_gaussian():
    """(1/2) |K (x - m)|^2 - tr K on average (Hyvarinen 2005), least where K is the inverse of the covariance."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 4)) @ rng.normal(size=(4, 4)) + rng.normal(size=4)
    mean, covariance = x.mean(axis=0), np.cov(x.T, bias=True)
    other = np.linalg.inv(covariance + np.diag(rng.uniform(0.5, 1, 4)))
    for precision in (np.linalg.inv(covariance), other):
        machine = gaussian(precision, mean + 0.1)
        exact = (((x - mean - 0.1) @ precision) ** 2).sum(axis=1).mean() / 2 - np.trace(precision)
        assert_close(vpf_jax.vpf_objective(machine, (x,)), exact)
    machine = gaussian(np.linalg.inv(covariance), mean)
    gradient = vpf_jax.local_gradient(machine, (x,))
    largest = float(jnp.abs(vpf_jax.local_gradient(gaussian(other, mean), (x,)).intra[0]).max())
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, 0, atol=1e-10 * max(largest, 1))
    # So are the likelihood's.
    model = -0.5 * np.linalg.slogdet(np.linalg.inv(covariance) / (2 * np.pi))[1]
    energies = jax.vmap(vpf_jax.energy, in_axes=(None, 0))(machine, (x,))
    shift = 0.5 * mean @ np.linalg.inv(covariance) @ mean
    log_p = -energies - shift - model
    centred = x - mean
    exact = -0.5 * np.sum(centred @ np.linalg.inv(covariance) * centred, axis=1) - model
    assert_close(log_p, exact)


@in_float64
def test_gaussian_units_under_bits_are_a_mixture_of_normal_densities():
    """exp(-F(v)) / Z is sum_h p(h) N(v; (b + W h) / g, 1 / g), a component for each hidden state."""
    case = make_units((("gaussian",) * 2, ("binary",) * 3), strength=0.7, seed=1)
    machine, g = case.machine, np.exp(case.own[0])
    h = oracles.all_states(3)
    centres = (case.biases[0] + h @ case.weights[0].T) / g
    logs = h @ case.biases[1] + 0.5 * np.sum(g * centres**2, axis=1)
    shares = np.exp(logs - oracles.log_sum_exp(logs))
    v = np.random.default_rng(0).normal(size=(20, 2))
    squares = np.sum(g * (v[:, None] - centres[None]) ** 2, axis=2)
    density = np.exp(-squares / 2) * np.sqrt(np.prod(g)) / (2 * np.pi) @ shares
    free = jax.vmap(vpf_jax.free_energy, in_axes=(None, 0))(machine, jnp.asarray(v))
    assert_close(-free - vpf_jax.log_partition_exact(machine), np.log(density))


@in_float64
def test_normal_units_are_gaussian_ones_of_precision_1():
    gaussians = make_units((("gaussian",) * 2, ("gaussian",)), (0,), seed=2)
    gaussians = gaussians._replace(own=(np.zeros(2), np.zeros(1)))
    normals = gaussians._replace(layers=(("normal",) * 2, ("normal",)), own=(None, None))
    states = tuple(jnp.asarray(np.random.default_rng(0).normal(size=(6, n))) for n in (2, 1))
    one, other = (vpf_jax.local_gradient(case.machine, states) for case in (gaussians, normals))
    for a, b in zip(jax.tree.leaves(dataclasses.replace(one, own=None)), jax.tree.leaves(other), strict=True):
        assert_close(a, b)
    assert_close(*(vpf_jax.vpf_objective(case.machine, states) for case in (gaussians, normals)))


def test_what_one_machine_takes_is_looked_at_again_for_another():
    """Arrays that have passed a check are not looked at again, but that of other places is another check."""
    groups = [Groups(parts) for parts in (((Categorical(3), 3), (BINARY, 1)), ((BINARY, 1), (Categorical(3), 3)))]
    machine = vpf_jax.init_machine(jax.random.key(0), (4,), (0,), (groups[0],))
    vpf_jax.energy(machine, (np.array([1, 0, 0, 1]),))
    with pytest.raises(ValueError, match="zero weights inside a unit"):
        vpf_jax.energy(dataclasses.replace(machine, units=groups[1]), (np.array([1, 0, 0, 1]),))
    kinds = GAUSSIAN, Groups(((BINARY, 1), (GAUSSIAN, 2)))
    real, mixed = (vpf_jax.init_machine(jax.random.key(0), (3, 2), units=(kind, BINARY)) for kind in kinds)
    means, deviations = jnp.ones(3), jnp.full(3, 2.0)
    gauges.standardise(real, means, deviations)
    with pytest.raises(ValueError, match="got means of other values; they are 0 but for gaussian units"):
        gauges.standardise(mixed, means, deviations)
