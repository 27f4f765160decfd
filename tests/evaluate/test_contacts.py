"""Contact scores against sums written out pair by pair in NumPy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import assert_close, in_float64
from typed import refused

from vpf_jax import BoltzmannMachine, contact_scores, init_machine, precision_at, to_zero_sum, untie
from vpf_jax.units import BINARY, Categorical, Groups

SITES, Q = 5, 4
UNIT = Categorical(Q)


def potts(seed=0):
    """A machine in no gauge: couplings with shifts of rows and columns."""
    rng = np.random.default_rng(seed)
    block = rng.normal(size=(SITES, Q, SITES, Q)) + rng.normal(size=(SITES, Q, SITES, 1))
    block = block + block.transpose(2, 3, 0, 1)
    block[np.arange(SITES), :, np.arange(SITES)] = 0
    n = SITES * Q
    return BoltzmannMachine(
        (jnp.asarray(rng.normal(size=n)),), (), (jnp.asarray(block.reshape(n, n)),), units=UNIT
    ), block


def by_pairs(block, kept):
    """Lengths of the blocks in the zero-sum gauge, one pair at a time."""
    lengths = np.zeros((SITES, SITES))
    for i, j in itertools.permutations(range(SITES), 2):
        pair = block[i, :, j]
        centred = pair - pair.mean(axis=0)[None] - pair.mean(axis=1)[:, None] + pair.mean()
        lengths[i, j] = np.sqrt(sum(centred[a, b] ** 2 for a in kept for b in kept))
    return lengths


def less_average_product(lengths):
    """Dunn, Wahl and Gloor, equations 4 and 5: means over the other sites, and over all pairs."""
    means = [np.mean([lengths[i, j] for j in range(SITES) if j != i]) for i in range(SITES)]
    overall = np.mean([lengths[i, j] for i, j in itertools.combinations(range(SITES), 2)])
    found = np.zeros_like(lengths)
    for i, j in itertools.permutations(range(SITES), 2):
        found[i, j] = lengths[i, j] - means[i] * means[j] / overall
    return found


@pytest.mark.parametrize("gap", [None, 0, 2, Q - 1])
@in_float64
def test_scores_are_lengths_of_blocks_in_the_zero_sum_gauge(gap):
    machine, block = potts()
    lengths = by_pairs(block, [a for a in range(Q) if a != gap])
    assert_close(contact_scores(machine, gap=gap, corrected=False), lengths)
    assert_close(contact_scores(machine, gap=gap), less_average_product(lengths))


@in_float64
def test_scores_know_no_gauge_and_no_biases():
    machine, _ = potts(1)
    assert_close(contact_scores(to_zero_sum(machine)), contact_scores(machine))
    assert_close(contact_scores(dataclasses.replace(machine, biases=(machine.biases[0] + 3,))), contact_scores(machine))


def test_scores_are_symmetric_with_zero_diagonal():
    found = contact_scores(init_machine(jax.random.key(0), (SITES * Q,), intra=(0,), units=UNIT))
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    np.testing.assert_array_equal(np.diag(found), 0)
    # The correction takes the mean over all other sites to 0, but for terms of second order.
    assert np.abs(found.sum()) < 0.1 * np.abs(found).sum()


def test_without_couplings_no_pair_has_a_score():
    machine = init_machine(jax.random.key(0), (SITES * Q,), intra=(0,), units=UNIT)
    silent = dataclasses.replace(machine, intra=(jnp.zeros_like(machine.intra[0]),))
    np.testing.assert_array_equal(contact_scores(silent), np.zeros((SITES, SITES)))
    alone = init_machine(jax.random.key(0), (Q,), intra=(0,), units=UNIT)
    np.testing.assert_array_equal(contact_scores(alone), [[0]])


@pytest.mark.parametrize("number", [1, 3, 10])
@pytest.mark.parametrize("separation", [1, 2])
def test_precision_is_the_share_among_the_highest(number, separation):
    rng = np.random.default_rng(number)
    scores, touch = rng.normal(size=(SITES, SITES)), rng.random((SITES, SITES)) < 0.4
    scores, touch = scores + scores.T, touch | touch.T
    pairs = [(i, j) for i, j in itertools.combinations(range(SITES), 2) if j - i >= separation]
    if number > len(pairs):
        with pytest.raises(ValueError, match=f"got number={number}; it takes an integer from 1 to {len(pairs)}"):
            precision_at(scores, touch, number, separation)
        return
    highest = sorted(pairs, key=lambda pair: -scores[pair])[:number]
    assert precision_at(scores, touch, number, separation) == np.mean([touch[pair] for pair in highest])


def test_of_pairs_with_one_score_the_first_is_taken():
    touch = np.zeros((3, 3), bool)
    touch[0, 1] = touch[1, 0] = True
    assert precision_at(np.zeros((3, 3)), touch, 1) == 1


def test_neighbours_along_the_sequence_are_left_out():
    """They score highest and touch; of the others one touches, and it scores lowest."""
    near = np.abs(np.subtract.outer(range(4), range(4))) == 1
    scores, touch = np.where(near, 9.0, 1.0), near.copy()
    scores[0, 3] = scores[3, 0] = 0
    touch[0, 3] = touch[3, 0] = True
    assert [precision_at(scores, touch, number, 2) for number in (1, 2, 3)] == [0, 0, 1 / 3]
    assert precision_at(scores, touch, 3) == 1


def test_what_has_no_contacts_is_refused():
    machine, _ = potts()
    rbm = init_machine(jax.random.key(0), (SITES * Q, 3), intra=(0,), units=(UNIT, BINARY))
    silent = dataclasses.replace(machine, intra=(None,))
    bits = init_machine(jax.random.key(0), (4,), intra=(0,))
    groups = init_machine(jax.random.key(0), (8,), intra=(0,), units=Groups(((UNIT, 4), (BINARY, 4))))
    for wrong in (rbm, silent, bits, groups):
        with refused(ValueError, match="contacts are read from one layer of categorical units with weights inside it"):
            contact_scores(wrong)
    with refused(ValueError, match="directed machine"):
        contact_scores(untie(None, machine))
    for gap in (-1, Q, "-"):
        with refused(ValueError, match="got gap"):
            contact_scores(machine, gap=gap)
    with refused(ValueError, match="got corrected"):
        contact_scores(machine, corrected=1)
    scores, touch = np.zeros((3, 3)), np.zeros((3, 3), bool)
    lopsided = np.triu(np.ones((3, 3)), 1)
    for wrong in (lopsided, scores * np.nan, scores[:2], scores.tolist()):
        with refused(ValueError, match="scores"):
            precision_at(wrong, touch, 1)
    for wrong in (lopsided > 0, scores, touch[:2, :2], None):
        with refused(ValueError, match="contacts"):
            precision_at(scores, wrong, 1)
    for separation in (0, 3):
        with refused(ValueError, match="separation"):
            precision_at(scores, touch, 1, separation)
