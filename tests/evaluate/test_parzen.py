"""Parzen log-likelihood against a float64 double loop, its memory, the choice of sigma, and what is refused."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typed import refused

from vpf_jax import choose_sigma, parzen_log_likelihood
from vpf_jax.evaluate import parzen
from vpf_jax.evaluate.parzen import SIGMAS


def exact(centres, points, sigma):
    found = []
    for point in np.asarray(points, np.float64):
        exponents = -np.sum((point - np.asarray(centres, np.float64)) ** 2, axis=1) / (2 * sigma**2)
        highest = exponents.max()
        found.append(highest + np.log(np.mean(np.exp(exponents - highest))))
    return np.array(found) - points.shape[1] * np.log(sigma * np.sqrt(2 * np.pi))


def images(number, seed, dimension=784):
    return np.random.default_rng(seed).random((number, dimension)).astype(np.float32)


@pytest.mark.parametrize("num_centres", [1, 999, 1000, 1001])
@pytest.mark.parametrize("num_points", [1, 1001])
def test_log_likelihood_is_exact_across_chunks(num_centres, num_points):
    # So near to zeros that those which fill up a tile would be seen if they counted.
    centres, points = images(num_centres, 0, 20), 0.1 * images(num_points, 1, 20)
    found = parzen_log_likelihood(centres, points, 0.2)
    assert found.shape == (num_points,)
    # float32 distances: cancellation of norms near 20/3 leaves about 1e-6 in each, over 2 sigma^2 = 0.08.
    np.testing.assert_allclose(found, exact(centres, points, 0.2), atol=2e-4)


@pytest.mark.parametrize("size", [7, 4000])
def test_log_likelihood_is_exact_in_tiles_of_any_size(monkeypatch, size):
    monkeypatch.setattr(parzen, "tile_at_once", lambda count: min(size, count))
    # Of shapes that have been compiled for no other tile.
    centres, points = images(1100 + size, 0, 20), 0.1 * images(30, 1, 20)
    found = parzen_log_likelihood(centres, points, 0.2)
    np.testing.assert_allclose(found, exact(centres, points, 0.2), atol=2e-4)


@pytest.mark.parametrize("sigma", [0.05, 0.2, 3.0])
def test_images_far_from_every_centre_do_not_underflow(sigma):
    centres, points = images(30, 2), images(40, 3)
    np.testing.assert_allclose(parzen_log_likelihood(centres, points, sigma), exact(centres, points, sigma), rtol=2e-5)


def test_a_point_on_its_only_centre():
    centre = images(1, 4, 5)
    found = parzen_log_likelihood(centre, centre, 0.3)
    np.testing.assert_allclose(found, -5 * np.log(0.3 * np.sqrt(2 * np.pi)), atol=1e-4)


def test_it_compiles_with_a_traced_sigma():
    centres, points = images(10, 5, 8), images(3, 6, 8)
    found = jax.jit(parzen_log_likelihood)(centres, points, 0.25)
    np.testing.assert_allclose(found, parzen_log_likelihood(centres, points, 0.25), atol=1e-5)


def test_the_chosen_sigma_is_the_best_of_those_tried():
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(500, 3)).astype(np.float32)
    validation = (centres + 0.17 * rng.normal(size=centres.shape)).astype(np.float32)
    scores = [exact(centres, validation, sigma).mean() for sigma in SIGMAS]
    assert choose_sigma(centres, validation) == SIGMAS[int(np.argmax(scores))]
    assert choose_sigma(centres, validation, [3.0]) == 3.0


@pytest.mark.parametrize(
    ("centres", "points", "sigma", "message"),
    [
        (jnp.ones((2, 3)), jnp.ones((2, 4)), 0.2, r"\(2, 3\).*\(2, 4\)"),
        (jnp.ones((0, 3)), jnp.ones((2, 3)), 0.2, r"\(0, 3\)"),
        (jnp.ones(3), jnp.ones((2, 3)), 0.2, "non-empty"),
        (jnp.ones((2, 3)), jnp.ones((2, 3)), 0.0, "sigma=0.0; it takes a positive finite number"),
        (jnp.ones((2, 3)), jnp.ones((2, 3)), float("nan"), "sigma=nan"),
        (jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones(2), r"sigma of shape \(2,\)"),
    ],
)
def test_what_is_refused(centres, points, sigma, message):
    with refused(ValueError, match=message):
        parzen_log_likelihood(centres, points, sigma)


def test_no_sigmas_are_refused():
    with pytest.raises(ValueError, match="at least one positive number"):
        choose_sigma(jnp.ones((2, 3)), jnp.ones((2, 3)), [])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_ten_thousand_by_ten_thousand_images_fit_in_a_gigabyte():
    # In a process of its own, whose peak is its own: the 63 MB of images, the runtime and the chunks. The peak of
    # getrusage will not do: a new process starts it at what its parent used.
    program = """
import jax, numpy as np
from vpf_jax import parzen_log_likelihood
rng = np.random.default_rng(0)
centres, points = (rng.random((10_000, 784), np.float32) for _ in range(2))
assert np.isfinite(np.asarray(parzen_log_likelihood(centres, points, 0.2))).all()
print(*[line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")])
"""
    ended = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    peak_kilobytes = int(ended.stdout)
    assert 60_000 < peak_kilobytes < 1_000_000
