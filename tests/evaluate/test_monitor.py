"""Weight sparsity and squared weight against their definitions and limits, pseudo-likelihood against enumeration."""

import sys
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import compiled, make_case

from vpf_jax.evaluate.monitor import linear_probe, pseudo_log_likelihood, squared_weight, weight_sparsity
from vpf_jax.stack import CHUNK

NUM_DRAWS = 20 * CHUNK + 3
# Largest deviation of a count or mean that chance is granted, in standard errors.
LARGEST = 4.5


def test_both_follow_their_definitions():
    weights = np.random.default_rng(0).normal(size=(7, 4))
    sparsity = total = 0.0
    for j in range(4):
        sparsity += sum(w**2 for w in weights[:, j]) ** 2 / sum(w**4 for w in weights[:, j])
        total += sum(w**2 for w in weights[:, j])
    np.testing.assert_allclose(weight_sparsity(jnp.asarray(weights)), sparsity / (7 * 4), rtol=1e-5)
    np.testing.assert_allclose(squared_weight(jnp.asarray(weights)), total / 4, rtol=1e-5)


def test_sparsity_is_the_fraction_of_connected_visible_units():
    one_each = jnp.eye(8)[:, :3] * 2.0
    np.testing.assert_allclose(weight_sparsity(one_each), 1 / 8)
    np.testing.assert_allclose(weight_sparsity(-0.5 * jnp.ones((8, 3))), 1.0)
    half = jnp.concatenate([jnp.ones((4, 3)), jnp.zeros((4, 3))])
    np.testing.assert_allclose(weight_sparsity(half), 0.5)


def test_hidden_units_without_weights_count_as_zero():
    weights = jnp.concatenate([jnp.ones((6, 1)), jnp.zeros((6, 1))], axis=1)
    np.testing.assert_allclose(weight_sparsity(weights), 0.5)


def log_conditionals(case, visible):
    """Log p(v_i | all other v) of each visible unit, from free energies of whole states."""
    flat = case.flat
    here = oracles.free_energy(flat, visible)
    there = [oracles.free_energy(flat, oracles.flipped(visible[None], i)[0]) for i in range(len(visible))]
    return -np.log1p(np.exp(here - np.array(there)))


@pytest.mark.parametrize(
    "case",
    [
        make_case("rbm", (5, 3), (), 5.0, 0),
        make_case("visible", (5,), (0,), 5.0, 1),
        make_case("semi_restricted", (5, 3), (0,), 5.0, 2),
    ],
    ids=repr,
)
def test_pseudo_likelihood_is_that_of_one_unit_drawn_uniformly(case):
    for number, row in enumerate(np.array([[0, 1, 1, 0, 1.0], [1, 1, 0, 0, 0]])):
        visible = jnp.asarray(np.tile(row, (NUM_DRAWS, 1)), jnp.uint8)
        found = compiled(pseudo_log_likelihood)(jax.random.key(number), case.machine, visible)
        found = np.asarray(found, np.float64)
        exact = log_conditionals(case, row)
        # Each estimate is 5 log p of one of the units,
        unit = np.abs(found[:, None] - 5 * exact[None]).argmin(axis=1)
        np.testing.assert_allclose(found, 5 * exact[unit], rtol=1e-4, atol=1e-5)
        # of each equally often,
        assert oracles.fit(np.bincount(unit, minlength=5), np.full(5, 0.2)).worst_state < LARGEST
        # so that the mean is the log pseudo-likelihood.
        assert abs(found.mean() - exact.sum()) < LARGEST * found.std() / np.sqrt(NUM_DRAWS)


@pytest.mark.slow
def test_pseudo_likelihood_of_one_visible_unit_is_its_likelihood():
    case = make_case("one", (1, 3), (), 3.0, 3)
    found = pseudo_log_likelihood(jax.random.key(0), case.machine, np.array([[0], [1]]))
    marginal = oracles.probabilities(case.flat).reshape(8, 2).sum(axis=0)
    np.testing.assert_allclose(found, np.log(marginal), rtol=1e-5)


def test_pseudo_likelihood_maps_over_machines():
    machines = [make_case("some", (5, 3), (), 4.0, seed).machine for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *machines)
    visible = jnp.asarray(np.random.default_rng(0).integers(0, 2, (9, 5)), jnp.uint8)
    keys = jax.random.split(jax.random.key(0), 2)
    together = jax.jit(jax.vmap(pseudo_log_likelihood, in_axes=(0, 0, None)))(keys, stacked, visible)
    for key, machine, found in zip(keys, machines, together, strict=True):
        np.testing.assert_allclose(found, compiled(pseudo_log_likelihood)(key, machine, visible), rtol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "intra", "width", "message"),
    [
        ((4, 3, 2), (), 4, r"layer sizes \(4, 3, 2\); the pseudo-likelihood"),
        ((4, 3), (1,), 4, "with hidden intra-layer weights"),
        ((4, 3), (), 5, r"shape \(2, 5\).*\[batch, 4\]"),
    ],
)
def test_pseudo_likelihood_refuses_what_has_no_closed_form(sizes, intra, width, message):
    with pytest.raises(ValueError, match=message):
        pseudo_log_likelihood(
            jax.random.key(0), make_case("", sizes, intra, 1.0, 0).machine, np.ones((2, width), np.uint8)
        )


needs_sklearn = pytest.mark.skipif(find_spec("sklearn") is None, reason="scikit-learn not installed")


@needs_sklearn
def test_a_probe_finds_classes_that_are_linear_in_features_of_any_scale():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(600, 3))
    labels = np.argmax(features, axis=1)
    # Without standardising, the penalty would hide the first feature and the constant would be divided by 0.
    scaled = np.concatenate([1e-4 * features[:, :1] + 7, features[:, 1:], np.ones((600, 1))], axis=1)
    found = linear_probe(jnp.asarray(scaled[:400], jnp.float32), labels[:400], scaled[400:], labels[400:])
    assert found.train_accuracy > 0.95
    assert found.test_accuracy > 0.95


@needs_sklearn
def test_the_two_accuracies_of_a_probe_are_of_their_own_examples():
    features = np.array([[-1.0], [1.0], [-2.0], [2.0]])
    found = linear_probe(features, [0, 1, 0, 1], features, [1, 1, 0, 1])
    assert found == (1.0, 0.75)
    # A strong penalty leaves the majority class.
    assert linear_probe(features, [0, 1, 1, 1], features, [0, 1, 1, 1], C=1e-9).train_accuracy == 0.75


def test_the_probe_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs scikit-learn, not installed here: install vpf_jax\[exp"):
        linear_probe(np.ones((2, 1)), np.arange(2), np.ones((2, 1)), np.arange(2))
