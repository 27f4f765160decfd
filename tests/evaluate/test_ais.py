"""Annealed importance sampling against enumerated log Z, forward and reverse.

Repeated estimates come from one compiled map over keys per family, with few enough temperatures that errors are seen.
Statistical assertions state their standard error; seeds are fixed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import CASES, FAMILIES, assert_close, each_case, in_float64, joined, make_case

from vpf_jax import BoltzmannMachine
from vpf_jax.energy import summable_layers
from vpf_jax.evaluate.ais import (
    LowEffectiveSampleSizeWarning,
    ais_log_partition,
    ais_log_partition_reverse,
    anneal,
)
from vpf_jax.sample.tempering import independent_machine

NUM_REPEATS = 200
NUM_CHAINS = 100
STRONG = {
    family: make_case(f"{family}-strong", sizes, intra, 12.0, seed)
    for seed, (family, (sizes, intra)) in enumerate(FAMILIES.items())
}
every_strength = pytest.mark.parametrize("case", [*CASES.values(), *STRONG.values()], ids=repr)


def base_of(case):
    return independent_machine(case.machine, np.linspace(0.2, 0.7, case.sizes[0]))


@functools.cache
def repeated(function, *numbers):
    """The compiled map of an estimate over keys (and states, where the second argument is a batch of them)."""

    def estimate(key, machine, base, states):
        arguments = numbers if states is None else (states, *numbers)
        return function(key, machine, *arguments, base=base)

    return jax.jit(jax.vmap(estimate, in_axes=(0, None, None, 0)))


def forward_estimates(case, seed, num_temperatures=12):
    keys = jax.random.split(jax.random.key(seed), NUM_REPEATS)
    return repeated(ais_log_partition, NUM_CHAINS, num_temperatures)(keys, case.machine, base_of(case), None)


def reverse_estimates(case, seed, num_temperatures=12):
    """From exact draws."""
    target = oracles.probabilities(case.flat)
    draws = np.random.default_rng(seed).choice(len(target), (NUM_REPEATS, NUM_CHAINS), p=target)
    states = case.layered(case.all_states()[draws])
    keys = jax.random.split(jax.random.key(seed), NUM_REPEATS)
    return repeated(ais_log_partition_reverse, num_temperatures)(keys, case.machine, base_of(case), states)


def mean_and_error(values):
    values = np.asarray(values, np.float64)
    return values.mean(), values.std(ddof=1) / np.sqrt(len(values))


@pytest.mark.slow
@every_strength
def test_forward_estimates_lie_below_and_reverse_ones_above(case):
    """In the mean over repeats, up to three standard errors of that mean; and both close to log Z."""
    exact = oracles.log_partition(case.flat)
    low, low_error = mean_and_error(forward_estimates(case, 1).log_z)
    high, high_error = mean_and_error(reverse_estimates(case, 2).log_z)
    assert low <= exact + 3 * low_error
    assert high >= exact - 3 * high_error
    assert exact - 1 < low
    assert high < exact + 1


@each_case()
def test_the_standard_error_is_that_of_repeated_estimates(case):
    """The variance of 200 z-scores has a standard deviation of 0.1 where they are normal, their mean one of 0.07."""
    exact = oracles.log_partition(case.flat)
    for found in (forward_estimates(case, 3), reverse_estimates(case, 4)):
        scores = (np.asarray(found.log_z) - exact) / np.asarray(found.standard_error)
        assert abs(scores.var(ddof=1) - 1) < 0.5
        assert abs(scores.mean()) < 0.5


@pytest.mark.slow
@each_case()
@in_float64
def test_the_mean_weight_is_the_ratio_of_partition_functions(case):
    """Even with two steps; within four standard errors of the mean of 40,000 weights. And under the weights the last
    states follow the machine: their mean likewise.
    """
    base = base_of(case)
    states, log_weights = anneal(jax.random.key(5), case.machine, 40_000, 3, base=base)
    log_z_base = sum(np.logaddexp(0, b).sum() for b in base.biases)
    ratios = np.exp(np.asarray(log_weights) + log_z_base - oracles.log_partition(case.flat))
    mean, error = mean_and_error(ratios)
    assert abs(mean - 1) < 4 * error
    exact = oracles.probabilities(case.flat) @ case.all_states()
    for found, expected in zip(joined(states).T, exact, strict=True):
        mean, error = mean_and_error(ratios * (found - expected))
        assert abs(mean) < 4 * error


@pytest.mark.filterwarnings("ignore::vpf_jax.evaluate.ais.LowEffectiveSampleSizeWarning")
@each_case()
@in_float64
def test_one_step_weighs_states_by_their_marginal_energies(case):
    """With two temperatures the reverse weights are known functions of the given states."""
    base, rows = base_of(case), case.some_states(50)
    found = ais_log_partition_reverse(jax.random.key(0), case.machine, case.layered(rows), 2, base=base)
    summed = summable_layers(case.machine)
    flat_base = oracles.flatten(base.biases, base.weights, base.intra)
    log_weights = np.array(
        [oracles.marginal_energy(case.flat, x, summed) - oracles.marginal_energy(flat_base, x, summed) for x in rows]
    )
    log_mean = oracles.log_sum_exp(log_weights) - np.log(50)
    assert_close(found.log_z, oracles.log_partition(flat_base) - log_mean)
    weights = np.exp(log_weights - log_mean)
    assert_close(found.standard_error, weights.std(ddof=1) / np.sqrt(50))
    assert_close(found.effective_sample_size, 50**2 / np.sum(weights**2))


@pytest.mark.slow
@each_case()
@in_float64
def test_many_temperatures_bring_both_estimates_to_log_z(case):
    exact = oracles.log_partition(case.flat)
    target = oracles.probabilities(case.flat)
    rows = case.all_states()[np.random.default_rng(6).choice(len(target), 400, p=target)]
    estimates = (
        ais_log_partition(jax.random.key(6), case.machine, 400, 300),
        ais_log_partition_reverse(jax.random.key(7), case.machine, case.layered(rows), 300),
    )
    for found in estimates:
        assert found.standard_error < 0.03
        assert abs(found.log_z - exact) < 4 * found.standard_error
        assert found.effective_sample_size > 200


@pytest.mark.slow
@each_case()
@in_float64
def test_a_machine_without_interactions_is_exact(case):
    """From itself as the base: every weight is 1."""
    alone = BoltzmannMachine(
        biases=case.machine.biases,
        weights=jax.tree.map(jnp.zeros_like, case.machine.weights),
        intra=jax.tree.map(jnp.zeros_like, case.machine.intra),
    )
    exact = sum(np.logaddexp(0, b).sum() for b in case.biases)
    states = case.layered(case.some_states(20))
    for found in (
        ais_log_partition(jax.random.key(0), alone, 20, 10, base=alone),
        ais_log_partition_reverse(jax.random.key(0), alone, states, 10, base=alone),
    ):
        assert_close(found.log_z, exact, 1e-12)
        assert_close(found.standard_error, 0, 1e-12)
        assert_close(found.effective_sample_size, 20, 1e-12)


@pytest.mark.slow
def test_log_z_of_two_machines_side_by_side_is_the_sum():
    """Within four standard errors of the difference."""
    one, other = CASES["rbm-moderate"], STRONG["rbm"]
    corner = np.zeros((5, 3))
    both = BoltzmannMachine(
        biases=tuple(jnp.concatenate(pair) for pair in zip(one.machine.biases, other.machine.biases, strict=True)),
        weights=(jnp.asarray(np.block([[one.weights[0], corner], [corner, other.weights[0]]])),),
        intra=(None, None),
    )
    keys = jax.random.split(jax.random.key(1), 3)
    parts = [ais_log_partition(k, c.machine, 300, 200) for k, c in zip(keys[:2], (one, other), strict=True)]
    whole = ais_log_partition(keys[2], both, 300, 200)
    error = np.sqrt(sum(float(found.standard_error) ** 2 for found in (*parts, whole)))
    assert abs(float(whole.log_z - parts[0].log_z - parts[1].log_z)) < 4 * error
    assert error < 0.1


@pytest.mark.slow
def test_a_low_effective_sample_size_warns():
    strong, moderate = STRONG["intra_dbm"], CASES["rbm-moderate"]
    with pytest.warns(LowEffectiveSampleSizeWarning, match="200 chains"):
        found = ais_log_partition(jax.random.key(0), strong.machine, 200, 2)
    assert found.effective_sample_size < 10
    with pytest.warns(LowEffectiveSampleSizeWarning, match="200 chains"):
        ais_log_partition_reverse(jax.random.key(0), strong.machine, strong.layered(strong.some_states(200)), 2)
    # Warnings are errors here: none inside a compiled function, none from a good estimate, however few its chains.
    jax.jit(ais_log_partition, static_argnums=(2, 3))(jax.random.key(0), strong.machine, 200, 2)
    ais_log_partition(jax.random.key(0), moderate.machine, 4, 20)


@pytest.mark.slow
@each_case("intra_dbm")
def test_compiled_is_the_same_as_eager(case):
    eager = ais_log_partition(jax.random.key(0), case.machine, 50, 30)
    compiled = jax.jit(ais_log_partition, static_argnums=(2, 3))(jax.random.key(0), case.machine, 50, 30)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), eager, compiled)


@pytest.mark.parametrize(("num_chains", "num_temperatures", "words"), [(1, 10, "num_chains=1"), (10, 1, "num_temp")])
def test_numbers_out_of_range_are_refused(num_chains, num_temperatures, words):
    with pytest.raises(ValueError, match=words):
        ais_log_partition(jax.random.key(0), CASES["rbm-moderate"].machine, num_chains, num_temperatures)


def test_wrong_states_and_bases_are_refused():
    case, other = CASES["rbm-moderate"], CASES["dbm-moderate"]
    states = case.layered(case.some_states(10))
    with pytest.raises(ValueError, match="shapes"):
        ais_log_partition_reverse(jax.random.key(0), case.machine, states[::-1], 10)
    with pytest.raises(ValueError, match="num_chains=1"):
        ais_log_partition_reverse(jax.random.key(0), case.machine, case.layered(case.some_states(1)), 10)
    with pytest.raises(ValueError, match="shapes"):
        ais_log_partition(jax.random.key(0), case.machine, 10, 10, base=independent_machine(other.machine))
    with pytest.raises(ValueError, match="weights other than 0"):
        ais_log_partition(jax.random.key(0), case.machine, 10, 10, base=case.machine)
