"""Spin glasses: units of spins and bits, the sampler, the limit of many samples, measures of fits."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from vpf_jax import spin_glass
from vpf_jax.rules.flips import flip_estimate
from vpf_jax.spin_glass import Glass

RULES = ("mpf", "pl", "pcd")


def random_glass(num_units, seed=0):
    """Fields and couplings of all pairs."""
    rng = np.random.default_rng(seed)
    couplings = np.triu(0.4 * rng.normal(size=(num_units, num_units)), 1)
    return Glass(jnp.asarray(0.3 * rng.normal(size=num_units)), jnp.asarray(couplings))


def spin_energies(glass):
    """E(s) of all states, by the definition in spins."""
    s = 2 * oracles.all_states(len(glass.fields)) - 1
    h, j = (np.asarray(leaf, np.float64) for leaf in glass)
    return (
        np.array([-sum(j[a, b] * x[a] * x[b] for a, b in itertools.combinations(range(len(x)), 2)) for x in s]) - s @ h
    )


def spin_probabilities(glass):
    exponents = -spin_energies(glass)
    return np.exp(exponents - oracles.log_sum_exp(exponents))


def population(glass, size):
    """A sample in which every state stands as often as its probability says, up to rounding."""
    counts = np.round(size * spin_probabilities(glass)).astype(int)
    return jnp.asarray(np.repeat(oracles.all_states(len(glass.fields)), counts, axis=0).astype(np.uint8))


def divergence(truth, found):
    """KL(truth || found) by enumeration."""
    p, q = spin_probabilities(truth), spin_probabilities(found)
    return float(np.sum(p * np.log(p / q)))


@functools.cache
def compiled_fit(rule):
    """One compilation per rule and number of samples."""
    if rule == "pcd":
        settings = {"num_chains": 4000, "num_steps": 600, "rate": 0.2}
        return jax.jit(lambda x, decay: spin_glass.fit_pcd(jax.random.key(7), x, penalty=decay, **settings))
    return jax.jit(lambda x, decay: spin_glass.fit_flips(rule, x, penalty=decay, tolerance=1e-4, max_steps=300))


def fit(rule, samples, penalty=0.0):
    return compiled_fit(rule)(samples, penalty)


def largest_error(found, truth):
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(found, truth, strict=True))


def test_energies_in_spins_and_in_bits_differ_by_a_constant():
    with jax.enable_x64(True):
        glass = random_glass(6)
        machine = spin_glass.to_machine(glass)
        flat = oracles.flatten(machine.biases, machine.weights, machine.intra)
        difference = oracles.energies(flat, oracles.all_states(6)) - spin_energies(glass)
        np.testing.assert_allclose(difference, difference[0], atol=1e-12)
        # Not both zero.
        assert np.ptp(spin_energies(glass)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["mpf", "pl"])
def test_the_gradient_in_spins_is_that_of_the_objective(rule):
    with jax.enable_x64(True):
        glass = random_glass(5)
        samples = jnp.asarray(oracles.all_states(5)[::3])

        def objective(glass):
            return flip_estimate(rule, spin_glass.to_machine(glass), samples).objective

        expected = jax.grad(objective)(glass)
        found = spin_glass.spin_gradient(flip_estimate(rule, spin_glass.to_machine(glass), samples).gradient)
        np.testing.assert_allclose(found.fields, expected.fields, atol=1e-12)
        np.testing.assert_allclose(found.couplings, np.triu(expected.couplings, 1), atol=1e-12)
        assert np.abs(found.couplings).max() > 0.1


def test_bonds_are_those_of_a_lattice_with_open_borders():
    there = spin_glass.bonds(3)
    pairs = {(0, 1), (1, 2), (3, 4), (4, 5), (6, 7), (7, 8), (0, 3), (3, 6), (1, 4), (4, 7), (2, 5), (5, 8)}
    assert set(zip(*np.nonzero(there), strict=True)) == pairs
    glass = spin_glass.draw_glass(jax.random.key(0), 10, 0.5)
    strengths = np.asarray(glass.couplings)[spin_glass.bonds(10)]
    assert len(strengths) == 180
    assert np.count_nonzero(glass.couplings) == 180
    # Four standard errors of a standard deviation from 180 numbers.
    assert abs(strengths.std() / 0.5 - 1) < 4 / np.sqrt(360)


@pytest.mark.slow
def test_samples_follow_the_glass():
    glass = spin_glass.draw_glass(jax.random.key(3), 3, 0.8)
    draw = jax.jit(
        lambda key, glass: spin_glass.sample_glass(
            key, glass, 3, num_draws=20, num_chains=2000, burn_in=50, thin=10, num_temperatures=4
        )
    )
    draws, acceptance = draw(jax.random.key(4), glass)
    assert draws.shape == (20, 2000, 9)
    assert 0.2 < acceptance.min()
    counts = np.bincount(oracles.state_numbers(np.asarray(draws).reshape(-1, 9)), minlength=512)
    fit = oracles.fit(counts, spin_probabilities(glass))
    assert fit.worst_state < 4.5
    assert abs(fit.chi_square) < 4
    # 36 pairs, not independent: the mean of 36 squares of standard normal numbers is within 0.94 of 1 (4 errors).
    assert spin_glass.disagreement(np.asarray(draws)) < 2


def test_chains_that_differ_or_remember_disagree():
    draws = np.random.default_rng(0).integers(0, 2, (20, 400, 20), dtype=np.uint8)
    # 190 pairs: the mean of as many squares of standard normal numbers is within 0.41 of 1 (4 standard errors).
    assert abs(spin_glass.disagreement(draws) - 1) < 0.41
    assert spin_glass.disagreement(np.repeat(draws, 5, axis=0)) > 3
    draws[:, ::2, 0] = draws[:, ::2, 1]
    assert spin_glass.disagreement(draws) > 5


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "allowed"), [("mpf", 2e-3), ("pl", 2e-3), ("pcd", 0.05)])
def test_population_weights_give_back_the_glass(rule, allowed):
    # Fields too, and couplings between all pairs. PCD has the noise of its chains: about 1 / sqrt(4000) at the end of
    # its steps, less by their averaging.
    truth = random_glass(9, seed=2)
    found = fit(rule, population(truth, 200_000))
    assert largest_error(found.glass, truth) < allowed
    if rule != "pcd":
        assert found.largest_gradient <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_more_samples_bring_the_fit_closer(rule):
    truth = spin_glass.draw_glass(jax.random.key(5), 3, 0.5)
    chosen = np.random.default_rng(0).choice(512, size=30_000, p=spin_probabilities(truth))
    samples = jnp.asarray(oracles.all_states(9)[chosen].astype(np.uint8))
    sizes = (300, 3000, 30_000)
    distances = [divergence(truth, fit(rule, samples[:n], penalty=1.0).glass) for n in sizes]
    assert distances[0] > 3 * distances[1] > 9 * distances[2]
    # The expected divergence of maximum likelihood is parameters / (2 N); MPF wastes some of it.
    assert distances[2] < 4 * 45 / 60_000


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_the_penalty_holds_the_gradient_in_balance(rule):
    samples = population(random_glass(5, seed=2), 1000)
    penalty = 500.0
    found = fit(rule, samples, penalty).glass
    pull = jax.tree.map(lambda leaf: penalty / len(samples) * leaf, found)
    if rule == "pcd":
        p = spin_probabilities(found)
        s, data = (2 * np.asarray(x, np.float64) - 1 for x in (oracles.all_states(5), samples))
        push = Glass(data.mean(axis=0) - p @ s, np.triu(data.T @ data / len(data) - (s.T * p) @ s, 1))
        # The rate ends so small that the noise of 4,000 chains is averaged.
        assert largest_error(pull, push) < 0.02
    else:
        gradient = flip_estimate(rule, spin_glass.to_machine(found), samples).gradient
        push = jax.tree.map(jnp.negative, spin_glass.spin_gradient(gradient))
        assert largest_error(pull, push) < 2e-4
    assert max(float(jnp.abs(leaf).max()) for leaf in pull) > 0.1


def test_errors_are_split_into_bonds_and_others():
    truth = jax.tree.map(lambda leaf: leaf[None], spin_glass.draw_glass(jax.random.key(0), 3, 0.5))
    there = spin_glass.bonds(3)
    others = np.triu(~there, 1)
    found = truth._replace(couplings=np.asarray(truth.couplings) + 0.3 * there[None] - 0.1 * others[None])
    measured = spin_glass.coupling_errors(found, truth)
    np.testing.assert_allclose(measured["error_bonds"], [0.3], rtol=1e-6)
    np.testing.assert_allclose(measured["error_others"], [0.1], rtol=1e-6)
    np.testing.assert_allclose(measured["error"], [np.sqrt((12 * 0.09 + 24 * 0.01) / 36)], rtol=1e-6)


def test_images_shrink_to_means_of_blocks_of_their_middle():
    image = np.zeros((28, 28), np.float32)
    # Blocks of 2 x 2 from row and column 4 on: one bright, one at 3/4, one at 1/2, and brightness outside the middle.
    image[4:6, 4:6] = 1
    image[6:8, 4:6] = [[1, 1], [1, 0]]
    image[4:6, 6:8] = [[1, 1], [0, 0]]
    image[:4] = 1
    small = spin_glass.shrink_images(image.reshape(1, -1), (28, 28), 10).reshape(10, 10)
    assert set(zip(*np.nonzero(small), strict=True)) == {(0, 0), (1, 0)}
    assert spin_glass.shrink_images(image.reshape(1, -1), (28, 28), 28).reshape(28, 28)[0].all()


@pytest.mark.parametrize("size", [0, 5])
def test_images_have_no_more_blocks_than_pixels(size):
    with pytest.raises(ValueError, match=rf"got size={size}; it takes 1 to 4, as images are 4 x 6"):
        spin_glass.shrink_images(np.zeros((1, 24), np.float32), (4, 6), size)


def test_images_that_are_not_square_shrink_to_their_middle():
    image = np.arange(24).reshape(1, 4, 6) / 24
    small = spin_glass.shrink_images(image.reshape(1, -1), (4, 6), 2)
    # Columns 1 to 4; means of blocks of 2 x 2.
    means = image[0, :, 1:5].reshape(2, 2, 2, 2).mean(axis=(1, 3))
    np.testing.assert_array_equal(small, (means > 0.5).reshape(1, -1))
