"""Chains of machines of every kind of unit: what they leave invariant, what is held, and log Z by annealing.

Distributions are those of sums and quadrature in float64. Statistics lie within five of their standard errors, which
are exact ones: deviations of the same sums.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import assert_close, in_float64
from unit_machines import EVERYTHING, make_units

import vpf_jax
from vpf_jax.sample import gibbs, tempering
from vpf_jax.sample.streams import stream_of, substream
from vpf_jax.units import BINARY, COUNT, Categorical

NUM_CHAINS = 8192
MIXED = make_units((("spin", "gaussian"), ("categorical(3)", "normal")), (0, 1), seed=1)
CHAINS = [
    make_units((("binary",) * 2, ("gaussian",)), (0,), seed=2),
    make_units((("spin",) * 2, ("categorical(3)",) * 2), seed=3),
    make_units((("categorical(3)",) * 2, ("normal", "spin")), (0,), seed=4),
    make_units((("gaussian",) * 2, ("binary",) * 2), seed=5),
    make_units((("gaussian",) * 2, ("rectified",)), (0,), seed=6),
    make_units((("rectified",) * 2, ("spin",) * 2), (0,), seed=7),
    make_units((("count",) * 2, ("categorical(3)",)), seed=8),
    make_units((("categorical(3)", "count"), ("count", "rectified")), (0,), seed=9),
    MIXED,
]


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=repr)


def features(states: np.ndarray) -> np.ndarray:
    """Values and products of any two, squares among them."""
    i, j = np.triu_indices(states.shape[1])
    return np.concatenate([states, states[:, i] * states[:, j]], axis=1)


def joined(layers) -> np.ndarray:
    return np.concatenate([np.asarray(layer, np.float64) for layer in layers], axis=1)


def assert_follow(drawn, states: np.ndarray, masses: np.ndarray) -> None:
    """Statistics of draws within five standard errors of the distribution's."""
    exact, found = features(states), features(joined(drawn))
    mean = masses @ exact
    deviation = np.sqrt(np.maximum(masses @ exact**2 - mean**2, 0))
    assert (np.abs(found.mean(axis=0) - mean) < 5 * deviation / np.sqrt(len(found)) + 1e-5).all()


def starts(case, seed=0):
    """One state for all chains, far from any typical one where values are real."""
    rng = np.random.default_rng(seed)
    values = [oracles.unit_values(kind, 3, 4)[0] for kind in case.kinds]
    return case.layered(np.concatenate([some[rng.integers(len(some))] for some in values]))


@functools.partial(jax.jit, static_argnums=3)
def ends(keys, machine, state, num_sweeps=25):
    return jax.vmap(lambda key: vpf_jax.run_chain(key, machine, state, num_sweeps))(keys)


@pytest.mark.slow
@each(CHAINS)
def test_chains_arrive_at_the_distribution(case):
    """From one state, after 25 sweeps of all units."""
    drawn = ends(jax.random.split(jax.random.key(0), NUM_CHAINS), case.machine, starts(case), 25)
    for unit, x in zip(case.machine.layer_units, drawn, strict=True):
        assert x.dtype == unit.dtype
        unit.check("the chains", x)
    assert_follow(drawn, *oracles.unit_distribution(case.oracle)[:2])


@pytest.mark.slow
def test_what_is_held_stays_and_the_others_follow_their_conditional():
    """A sweep inside a layer of several kinds shows what is held to those after it."""
    case = make_units(
        (("spin", "categorical(3)", "gaussian", "binary"), ("binary", "spin")), (0,), strength=0.8, seed=2
    )
    states, masses, _ = oracles.unit_distribution(case.oracle)

    @jax.jit
    def around(machine, given, free):
        stream = stream_of(jax.random.key(3))

        def sweep(i, state):
            uniforms = gibbs.draw_uniforms(substream(stream, i), state)
            return gibbs.sweep_around(machine, state, given, free, uniforms)

        high = jnp.zeros((len(given), 2), case.machine.layer_units[1].dtype)
        high = jax.vmap(case.machine.layer_units[1].sample)(high + 0.0, high + 0.5).astype(high.dtype)
        return jax.lax.fori_loop(0, 25, sweep, (given, high))

    given = np.array([1, 0, 0, 1, 1.5, 1], np.float32)
    for free in ([0, 1, 1, 1, 0, 1], [1, 0, 0, 0, 1, 0]):
        free = np.array(free, bool)
        rows = np.tile(given, (NUM_CHAINS, 1))
        drawn = around(case.machine, jnp.asarray(rows), jnp.asarray(np.tile(free, (NUM_CHAINS, 1))))
        np.testing.assert_array_equal(np.asarray(drawn[0])[:, ~free], rows[:, ~free])
        case.machine.layer_units[0].check("the rest", drawn[0])
        fits = (states[:, :6][:, ~free] == given[~free]).all(axis=1)
        assert_follow(drawn, states[fits], masses[fits] / masses[fits].sum())


@pytest.mark.slow
def test_no_gradient_passes_through_a_sweep():
    case = make_units((EVERYTHING, ("gaussian", "normal", "spin")), (0, 1), strength=0.2, seed=4)

    def total(machine):
        swept = gibbs.gibbs_sweep(jax.random.key(0), machine, starts(case))
        return sum(jnp.sum(layer.astype(jnp.float32)) for layer in swept)

    value, gradient = jax.jit(jax.value_and_grad(total))(case.machine)
    assert np.isfinite(value)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def draws(case, number, seed=0):
    """Exact ones; of real values nodes, of which sums of smooth functions are those of the whole line."""
    states, masses, _ = oracles.unit_distribution(case.oracle)
    return states[np.random.default_rng(seed).choice(len(masses), number, p=masses / masses.sum())]


def fitted_base(case):
    """From means and variances."""
    states, masses, _ = oracles.unit_distribution(case.oracle)
    visible = states[:, : len(case.biases[0])]
    means = masses @ visible
    variances = masses @ visible**2 - means**2
    return vpf_jax.independent_machine(case.machine, *(np.asarray(a, np.float32) for a in (means, variances)))


@pytest.mark.slow
@each([CHAINS[i] for i in (1, 3, 5, 6, 8)])
def test_annealing_both_ways_finds_log_z(case):
    """Forward and reverse within five standard errors, from a base fitted to the means and variances."""
    exact = oracles.unit_distribution(case.oracle)[2]
    base = fitted_base(case)
    forward = vpf_jax.ais_log_partition(jax.random.key(0), case.machine, 400, 30, base)
    states = case.layered(draws(case, 400))
    reverse = vpf_jax.ais_log_partition_reverse(jax.random.key(1), case.machine, states, 30, base)
    for estimate in (forward, reverse):
        assert 0 < estimate.standard_error < 0.1
        assert abs(estimate.log_z - exact) < 5 * estimate.standard_error


@pytest.mark.slow
@in_float64
def test_energies_are_linear_along_the_path():
    """Of all kinds, the logarithms of whose precisions are not."""
    one, other = (make_units((EVERYTHING, EVERYTHING), (0,), seed=seed) for seed in (1, 2))
    other = other._replace(own=tuple(2 * block for block in other.own))
    state = starts(one)

    @jax.jit
    def along(base, machine, betas):
        return jax.vmap(lambda beta: vpf_jax.energy(tempering.interpolate(base, machine, beta), state))(betas)

    betas = np.linspace(0, 1, 5)
    found = along(one.machine, other.machine, betas)
    ends = [vpf_jax.energy(case.machine, state) for case in (one, other)]
    assert_close(found, (1 - betas) * float(ends[0]) + betas * float(ends[1]))


@pytest.mark.slow
def test_tempered_replicas_follow_their_machines():
    """Three replicas of machines with precisions of their own, 2,000 times: the last one follows the machine."""
    base = dataclasses.replace(
        tempering.independent_machine(MIXED.machine), own=jax.tree.map(lambda own: own - 0.7, MIXED.machine.own)
    )
    betas = jnp.asarray([0.0, 0.5, 1.0])
    state = jax.tree.map(lambda x: jnp.stack([x] * 3), starts(MIXED))

    @jax.jit
    def run(keys):
        return jax.vmap(lambda key: vpf_jax.run_tempered(key, MIXED.machine, state, betas, 20, base).states)(keys)

    found = run(jax.random.split(jax.random.key(4), 2000))
    for replica, beta in enumerate((0.0, 0.5, 1.0)):
        at = tempering.interpolate(base, MIXED.machine, beta)
        own = [np.asarray(block, np.float64) for block in (at.own[0],)]
        oracle = oracles.unit_machine(at.biases, at.weights, at.intra, MIXED.kinds, [own[0], None])
        assert_follow([x[:, replica] for x in found], *oracles.unit_distribution(oracle)[:2])


@pytest.mark.slow
def test_chains_estimate_the_gradient_of_the_likelihood():
    """Contrastive divergence of 25 sweeps, precisions among the parameters: within five standard errors."""
    case = CHAINS[3]
    states, masses, _ = oracles.unit_distribution(case.oracle)
    visible = np.array([0.5, -1.0])
    near = (states[:, :2] == visible).all(axis=1)
    data = np.where(near, masses, 0) / masses[near].sum()
    rows = case.layered(np.tile(np.concatenate([visible, [1, 0]]), (NUM_CHAINS, 1)))
    call = jax.jit(vpf_jax.contrastive_divergence, static_argnums=3)
    gradient = call(jax.random.key(6), case.machine, rows, 25).gradient
    expected = [oracles.unit_moments(case.oracle, states, p) for p in (masses, data)]
    found = oracles.flatten(gradient.biases, gradient.weights, gradient.intra)
    for actual, (model, of_data), values in (
        (found.bias, [flat.bias for flat, _ in expected], states),
        (gradient.own[0], [own[:2] for _, own in expected], np.exp(case.own[0]) * states[:, :2] ** 2 / 2),
    ):
        deviation = np.sqrt(masses @ values**2 - (masses @ values) ** 2)
        assert (np.abs(actual - (model - of_data)) < 5 * deviation / np.sqrt(NUM_CHAINS)).all()


def test_what_units_draw_without_fields_is_uniform_over_categories():
    """The start of an annealed chain."""
    machine = vpf_jax.init_machine(jax.random.key(0), (6, 2), units=(Categorical(3), Categorical(2)))
    base = vpf_jax.independent_machine(machine)
    assert_close(base.layer_units[0].mean(base.biases[0]), np.full(6, 1 / 3), 1e-6)
    assert_close(vpf_jax.log_partition_exact(base), 2 * np.log(3) + np.log(2), 1e-6)


def test_counts_that_are_kept_in_bytes_are_drawn_beyond_them():
    """A file keeps small counts in bytes; what is drawn given them need not be small, and must not wrap around."""
    machine = vpf_jax.init_machine(jax.random.key(0), (3, 2), units=(COUNT, BINARY))
    biases = jnp.full(3, jnp.log(5000.0)), machine.biases[1]
    machine = dataclasses.replace(machine, biases=biases, weights=(jnp.zeros((3, 2)),))
    state = jnp.ones(3, jnp.uint8), jnp.zeros(2, jnp.uint8)
    for found in (
        vpf_jax.gibbs_sweep(jax.random.key(1), machine, state)[0],
        vpf_jax.run_chain(jax.random.key(1), machine, state, 3)[0],
        vpf_jax.contrastive_divergence(jax.random.key(1), machine, tuple(x[None] for x in state)).states[0][0],
        vpf_jax.inpaint(jax.random.key(1), machine, state[0][None], jnp.ones(3, bool))[0],
    ):
        assert (np.asarray(found) > 4000).all(), found
