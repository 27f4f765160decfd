"""Corruption masks, both repair protocols against exact distributions, the error, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import Case, compiled, make_case
from typed import refused

from vpf_jax.data import load_dataset
from vpf_jax.evaluate import reconstruction
from vpf_jax.evaluate.reconstruction import band_mask, corrupt, inpaint, random_mask, reconstruct, reconstruction_error
from vpf_jax.machine import init_machine
from vpf_jax.stack import CHUNK

NUM_IMAGES = 40_000
# Largest deviation of a mean that chance is granted, in standard errors.
LARGEST = 4.5

CASES = {
    "rbm": make_case("rbm", (5, 3), (), 5.0, 1),
    "visible": make_case("visible", (5,), (0,), 5.0, 2),
    "semi_restricted": make_case("semi_restricted", (5, 3), (0,), 5.0, 3),
    "intra": make_case("intra", (5, 3), (0, 1), 5.0, 4),
    "deep": make_case("deep", (5, 3, 2), (1,), 5.0, 5),
}
RBM = CASES["rbm"].machine
GIVEN = np.array([1, 0, 1, 1, 0])
MASK = np.array([False, True, True, False, True])
each_case = pytest.mark.parametrize("case", CASES.values(), ids=repr)


def repeated(row, dtype=jnp.uint8):
    return jnp.asarray(np.tile(row, (NUM_IMAGES, 1)), dtype)


def units_of(case: Case, layers):
    ends = np.cumsum(case.sizes)
    return [unit for layer in layers for unit in range(ends[layer] - case.sizes[layer], ends[layer])]


def exact_distribution(case: Case, num_steps, clamp):
    """Of the whole state after the feed-forward pass and `num_steps` times up and down."""
    even, odd = (units_of(case, range(first, len(case.sizes), 2)) for first in (0, 1))
    if clamp:
        even = [unit for unit in even if unit >= len(MASK) or MASK[unit]]
    # All hidden units start at 0, so that nothing comes from above on the way up.
    mass = np.zeros(2 ** sum(case.sizes))
    mass[oracles.state_numbers(GIVEN)] = 1
    bare = oracles.flatten(case.biases, case.weights, (None,) * len(case.sizes))
    mass = oracles.resample(bare, mass, units_of(case, range(1, len(case.sizes))))
    for _ in range(num_steps):
        mass = oracles.resample(case.flat, mass, odd + even)
    return mass


def exact_moments(case: Case, num_steps, clamp):
    """Mean of the repaired image and of the products of its pixels."""
    mass = exact_distribution(case, num_steps, clamp)
    means = 1 / (1 + np.exp(-oracles.local_fields(case.flat, case.all_states())[:, : len(MASK)]))
    repaired = np.where(MASK, means, GIVEN)
    return mass @ repaired, np.einsum("s,si,sj->ij", mass, repaired, repaired)


def deviations(found, expected):
    """Of a mean over images from its expectation, in standard errors; where nothing varies, in units of 1e-6."""
    standard_error = np.maximum(found.std(axis=0, ddof=1) / np.sqrt(len(found)), 1e-6)
    return np.abs(found.mean(axis=0) - expected) / standard_error


@pytest.mark.parametrize(("repair", "clamp"), [(reconstruct, False), (inpaint, True)])
@pytest.mark.parametrize("num_steps", [1, 2, 4])
@each_case
def test_repaired_images_have_the_exact_moments(case, repair, clamp, num_steps):
    repaired = np.asarray(compiled(repair)(jax.random.key(0), case.machine, repeated(GIVEN), MASK, num_steps), float)
    mean, products = exact_moments(case, num_steps, clamp)
    assert deviations(repaired, mean).max() < LARGEST
    assert deviations(repaired[:, :, None] * repaired[:, None], products).max() < LARGEST
    # The test sees a step too many or too few.
    if num_steps == 1:
        assert deviations(repaired, exact_moments(case, 2, clamp)[0]).max() > 2 * LARGEST


@pytest.mark.slow
@each_case
def test_a_long_clamped_chain_samples_the_conditional_distribution_from_any_start(case):
    states = case.all_states()
    fits = (states[:, : len(MASK)] == GIVEN)[:, ~MASK].all(axis=1)
    mass = np.where(fits, oracles.probabilities(case.flat), 0)
    exact = mass @ states[:, : len(MASK)] / mass.sum()
    for filling in (0, 1):
        start = repeated(np.where(MASK, filling, GIVEN))
        repaired = compiled(inpaint)(jax.random.key(1), case.machine, start, MASK, 60)
        assert deviations(np.asarray(repaired, float), exact).max() < LARGEST


@pytest.mark.slow
@pytest.mark.parametrize("repair", [reconstruct, inpaint])
def test_only_masked_pixels_change(repair):
    rng = np.random.default_rng(0)
    # More than a chunk and not a multiple of it, one mask for each image.
    images = rng.integers(0, 2, (CHUNK + 7, 5)).astype(np.uint8)
    masks = rng.random(images.shape) < 0.5
    repaired = np.asarray(compiled(repair)(jax.random.key(2), CASES["intra"].machine, images, masks, 2))
    np.testing.assert_array_equal(repaired[~masks], images[~masks])
    assert np.all((repaired[masks] > 0) & (repaired[masks] < 1))


@pytest.mark.parametrize("intra", [None, np.zeros((3, 3))], ids=["plain", "intra"])
def test_held_pixels_stay_against_any_field(intra):
    """Held at 1 against a field of -200, at 0 against 200; the hidden unit is on only while both are."""
    weights = np.array([[24.0], [-24.0], [8.0]])
    case = Case("strong", (np.array([-200.0, 200.0, 0.0]), np.array([-12.0])), (weights,), (None, None))
    case = case._replace(intra=(intra, None))
    mask = np.array([False, False, True])
    repaired = compiled(inpaint)(jax.random.key(3), case.machine, jnp.tile(jnp.array([[1, 0, 1]]), (500, 1)), mask, 5)
    # The field of h is at least 12 and the mean sigmoid(8); with either pixel lost it is -4 or less, the mean 1/2.
    assert float(jnp.mean(repaired[:, 2])) > 0.99


@pytest.mark.slow
@pytest.mark.parametrize(("case", "repair"), [(CASES["rbm"], reconstruct), (CASES["intra"], inpaint)])
def test_mapped_over_machines_it_is_the_same(case, repair):
    images = jnp.asarray(np.random.default_rng(0).integers(0, 2, (9, 5)), jnp.uint8)
    machines = [case.machine, make_case("other", case.sizes, case.intra_layers, 3.0, 9).machine]
    keys = jax.random.split(jax.random.key(5), 2)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *machines)
    together = jax.jit(jax.vmap(repair, in_axes=(0, 0, None, None, None)))(keys, stacked, images, MASK, 3)
    for key, machine, found in zip(keys, machines, together, strict=True):
        np.testing.assert_allclose(found, compiled(repair)(key, machine, images, MASK, 3), atol=1e-6)


@pytest.mark.slow
def test_compiled_it_is_the_same():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 2, (9, 5)), jnp.uint8)
    eager, found = (
        function(jax.random.key(8), CASES["intra"].machine, images, MASK, 3)
        for function in (inpaint, compiled(inpaint))
    )
    np.testing.assert_allclose(found, eager, atol=1e-6)


@pytest.mark.parametrize("mask", [MASK, np.array([MASK, ~MASK] * (NUM_IMAGES // 2))], ids=["one", "each"])
def test_corruption_adds_ones_to_half_of_the_masked_zeros_and_touches_nothing_else(mask):
    images = repeated(GIVEN)
    corrupted = np.asarray(corrupt(jax.random.key(6), images, mask))
    assert corrupted.dtype == np.uint8
    masks = np.broadcast_to(mask, images.shape)
    np.testing.assert_array_equal(corrupted[~masks], np.asarray(images)[~masks])
    assert corrupted[masks & (np.asarray(images) == 1)].all()
    zeros = masks & (np.asarray(images) == 0)
    for pixel in np.flatnonzero(GIVEN == 0):
        bits = corrupted[zeros[:, pixel], pixel]
        assert abs(bits.mean() - 0.5) < LARGEST * 0.5 / np.sqrt(len(bits))


@pytest.mark.parametrize(
    ("side", "inside"),
    [
        ("top", np.s_[:2]),
        ("bottom", np.s_[-2:]),
        ("left", np.s_[:, :2]),
        ("right", np.s_[:, -2:]),
    ],
)
def test_bands_lie_along_their_side(side, inside):
    expected = np.zeros((5, 3), bool)
    expected[inside] = True
    np.testing.assert_array_equal(band_mask(side, (5, 3), 2), expected.ravel())
    paper = band_mask(side)
    assert (paper.shape, paper.dtype, int(paper.sum())) == ((784,), bool, 12 * 28)


def test_random_masks_have_independent_pixels_at_their_rate():
    mask = np.asarray(jax.jit(random_mask, static_argnums=1)(jax.random.key(7), (NUM_IMAGES, 3), 0.3))
    assert mask.dtype == bool
    patterns = np.bincount(oracles.state_numbers(mask), minlength=8)
    ones = oracles.all_states(3).sum(axis=1)
    assert oracles.fit(patterns, 0.3**ones * 0.7 ** (3 - ones)).worst_state < LARGEST
    assert random_mask(jax.random.key(7), (50,), 1.0).all()
    assert not random_mask(jax.random.key(7), (50,), 0).any()


def test_the_error_is_the_l1_distance_inside_the_mask():
    grey = np.random.default_rng(0).random((4, 5)).astype(np.float32)
    other = np.random.default_rng(1).random((4, 5)).astype(np.float32)
    np.testing.assert_array_equal(reconstruction_error(grey, grey, MASK), np.zeros(4))
    expected = [sum(abs(float(other[n, i]) - float(grey[n, i])) for i in np.flatnonzero(MASK)) for n in range(4)]
    np.testing.assert_allclose(reconstruction_error(other, grey, MASK), expected, rtol=1e-6)
    # Bits count as numbers, and each image may have a mask of its own.
    bits = np.ones((4, 5), np.uint8)
    masks = np.eye(5, dtype=bool)[:4]
    np.testing.assert_allclose(reconstruction_error(bits, grey, masks), 1 - np.diag(grey), rtol=1e-6)


IMAGES = np.ones((2, 5), np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: band_mask("middle"), "side=middle; it takes one of top, bottom, left, right"),
        (lambda key: band_mask("top", (5, 9), 6), r"width=6; a band at the top of images \(5, 9\) takes 1 to 5"),
        (lambda key: band_mask("left", (5, 9), 0), "width=0.*1 to 9"),
        (lambda key: random_mask(key, (3,), 1.1), "rate=1.1; it takes a probability"),
        (lambda key: random_mask(key, (3,), float("nan")), "rate=nan"),
        (lambda key: corrupt(key, IMAGES, MASK[:4]), r"mask of shape \(4,\).*images of shape \(2, 5\)"),
        (lambda key: corrupt(key, IMAGES, MASK.astype(int)), "dtype int32.*it takes booleans"),
        (lambda key: corrupt(key, IMAGES[0], MASK), r"images of shape \(5,\)"),
        (lambda key: reconstruct(key, RBM, IMAGES[:, :4], MASK[:4]), r"shape \(2, 4\).*\[batch, 5\]"),
        (lambda key: reconstruct(key, RBM, IMAGES, MASK[None]), r"mask of shape \(1, 5\)"),
        (lambda key: reconstruct(key, RBM, IMAGES, MASK, 0), "num_steps=0; it takes an integer of at least 1"),
        (lambda key: inpaint(key, RBM, IMAGES, MASK, -1), "num_steps=-1"),
        (lambda key: inpaint(key, RBM, IMAGES[0], MASK), r"shape \(5,\)"),
        (lambda key: reconstruction_error(IMAGES, IMAGES[:1], MASK), r"\(2, 5\).*\(1, 5\)"),
        (lambda key: reconstruction_error(IMAGES, IMAGES, MASK[:2]), r"mask of shape \(2,\)"),
    ],
)
def test_what_is_refused(call, message):
    with refused(ValueError, match=message):
        call(jax.random.key(0))


def test_a_band_that_is_the_same_for_all_images_is_scored_by_the_same_error():
    data = load_dataset("mnist_5k")
    examples, test = (part.examples.reshape(-1, 28, 28).astype(np.float64) for part in (data.train, data.test))
    bands = {"top": np.s_[:, :12], "bottom": np.s_[:, 16:], "left": np.s_[:, :, :12], "right": np.s_[:, :, 16:]}
    found = reconstruction.guess_errors(data.train.examples, data.test.examples, data.shape)
    for side, band in bands.items():
        guesses = {"black": 0, "mean": examples.mean(axis=0)[None], "median": np.median(examples, axis=0)[None]}
        for name, guess in guesses.items():
            expected = np.abs(test - guess)[band].sum(axis=(1, 2)).mean()
            np.testing.assert_allclose(found[name][side], expected, rtol=1e-6)
        # No other constant band is better on the images that the median is taken of; on others, nearly none.
        assert found["median"][side] < min(found["black"][side], found["mean"][side])


@pytest.mark.slow
def test_both_protocols_repair_the_same_corruption():
    machine = init_machine(jax.random.key(0), (24, 5))
    visible = jnp.asarray(np.random.default_rng(0).integers(0, 2, (7, 24)), jnp.uint8)
    mask = band_mask("top", (6, 4), 3)
    found = reconstruction.repair(jax.random.key(1), machine, visible, mask)
    corrupt_key, paper_key, clamped_key = jax.random.split(jax.random.key(1), 3)
    corrupted = corrupt(corrupt_key, visible, mask)
    np.testing.assert_array_equal(found["corrupted"], corrupted)
    np.testing.assert_allclose(found["paper"], reconstruct(paper_key, machine, corrupted, mask), rtol=1e-6)
    np.testing.assert_allclose(found["clamped"], inpaint(clamped_key, machine, corrupted, mask), rtol=1e-6)


@pytest.mark.slow
def test_errors_of_bands_are_those_of_their_repairs():
    machine = init_machine(jax.random.key(0), (784, 5))
    grey = jnp.asarray(np.random.default_rng(0).random((6, 784)), jnp.float32)
    visible = (grey > 0.5).astype(jnp.uint8)
    found = reconstruction.band_errors(jax.random.key(1), machine, visible, grey, (28, 28))
    for side, key in zip(reconstruction.SIDES, jax.random.split(jax.random.key(1), 4), strict=True):
        mask = band_mask(side, (28, 28))
        repaired = reconstruction.repair(key, machine, visible, mask)
        for protocol in ("paper", "clamped"):
            expected = np.abs(np.asarray(repaired[protocol]) - np.asarray(grey))[:, np.asarray(mask)].sum(axis=1).mean()
            np.testing.assert_allclose(found[protocol][side], expected, rtol=1e-5)
