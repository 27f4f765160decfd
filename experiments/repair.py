"""Repair of the test images by trained RBMs: a band of 12 rows or columns corrupted, both protocols, mean errors.

The protocols are those of `vpf_jax.evaluate.reconstruction`. Not here: training, tables.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

import vpf_jax
from experiments import comparison
from vpf_jax.data import Dataset, binarise
from vpf_jax.evaluate import reconstruction

SIDES = ("top", "bottom", "left", "right")
PROTOCOLS = {
    "paper": "the paper's protocol: 2 free Gibbs steps",
    "clamped": "clamped: 10 steps, uncorrupted pixels held",
}
# What is painted into the band without a look at the rest of the image: the median is the best such guess in L1.
GUESSES = {
    "black": "no machine: black",
    "mean": "no machine: mean of the training images",
    "median": "no machine: median of the training images",
}


def errors(trained: comparison.Trained, seeds: Sequence[int], data: Dataset) -> dict[str, dict[str, list[float]]]:
    """Mean error over the test images for each protocol and side, one number per seed of `trained`."""
    grey = jnp.asarray(data.test.images)
    visible = jnp.asarray(binarise(data.test.images))
    found: dict[str, dict[str, list[float]]] = {protocol: {} for protocol in PROTOCOLS}
    for number, side in enumerate(SIDES):
        mask = reconstruction.band_mask(side, data.image_shape)
        for index, seed in enumerate(seeds):
            machine = trained.stack(index)[0]
            for protocol, repaired in both(key_of(seed, number), machine, visible, mask).items():
                error = jnp.mean(reconstruction.reconstruction_error(repaired, grey, mask))
                found[protocol].setdefault(side, []).append(float(error))
    return found


@jax.jit
def both(
    key: jax.Array, machine: vpf_jax.BoltzmannMachine, visible: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """The same corrupted images repaired under both protocols."""
    corrupt_key, paper_key, clamped_key = jax.random.split(key, 3)
    corrupted = reconstruction.corrupt(corrupt_key, visible, mask)
    return {
        "paper": reconstruction.reconstruct(paper_key, machine, corrupted, mask),
        "clamped": reconstruction.inpaint(clamped_key, machine, corrupted, mask),
    }


def key_of(seed: int, number: int) -> jax.Array:
    """The key with which side `number` is corrupted and repaired, for every rule alike."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), number)


def guess_errors(data: Dataset) -> dict[str, dict[str, float]]:
    """Mean error of each of `GUESSES` and each side."""
    train_images, grey = np.asarray(data.train.images), np.asarray(data.test.images, np.float64)
    painted = {
        "black": np.zeros(grey.shape[1]),
        "mean": train_images.mean(axis=0, dtype=np.float64),
        "median": np.median(train_images, axis=0),
    }
    masks = {side: np.asarray(reconstruction.band_mask(side, data.image_shape)) for side in SIDES}
    return {
        guess: {side: float(np.abs(grey - image)[:, mask].sum(axis=1).mean()) for side, mask in masks.items()}
        for guess, image in painted.items()
    }
