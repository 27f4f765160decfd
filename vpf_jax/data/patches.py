"""Grey patches of the two photographs that come with scikit-learn, a temple and a flower.

Squares of 12 x 12 pixels, after each block of 2 x 2 pixels has been made one: 8,000 for training, 1,000 each for
validation and test, which come from other columns of the pictures. Not here: whitening (`experiments.unit_machines`).
"""

import importlib.util

import numpy as np
from jaxtyping import Float

from vpf_jax.data.base import PARTS, Dataset, DatasetError, Part, register_source

SIDE = 12
_COUNTS = {"train": 8000, "validation": 1000, "test": 1000}
# Shares of the columns of a picture, from the left.
_COLUMNS = {"train": (0.0, 0.7), "validation": (0.7, 0.85), "test": (0.85, 1.0)}


@register_source("patches")
def load_patches(name: str = "patches", data_dir: object = None) -> Dataset:
    """Grey values in [0, 1]; the same patches at every call, and `data_dir` plays no role.

    Raises:
      DatasetError: scikit-learn or Pillow, by which it reads its pictures, is not installed.
    """
    for package in ("sklearn", "PIL"):
        if importlib.util.find_spec(package) is None:
            told = f"got no {package}, with which patches are read"
            raise DatasetError(f"{told}; it takes `pip install scikit-learn pillow`")
    from sklearn.datasets import load_sample_images

    pictures = [_halved(np.asarray(picture, np.float64).mean(axis=2) / 255) for picture in load_sample_images().images]
    rng = np.random.default_rng(0)
    parts = (Part(_cut(rng, pictures, _COLUMNS[part], _COUNTS[part])) for part in PARTS)
    train, validation, test = parts
    return Dataset(name, train, validation, test, (SIDE, SIDE))


def _halved(picture: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "half_rows half_columns"]:
    rows, columns = (length // 2 for length in picture.shape)
    return picture[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).mean(axis=(1, 3))


def _cut(
    rng: np.random.Generator,
    pictures: list[Float[np.ndarray, "rows columns"]],
    share: tuple[float, float],
    count: int,
) -> Float[np.ndarray, "count pixels"]:
    """Patches at random places of all pictures in turn, inside a share of their columns."""
    found = []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        left, right = (round(edge * picture.shape[1]) for edge in share)
        row = rng.integers(picture.shape[0] - SIDE + 1)
        column = rng.integers(left, right - SIDE + 1)
        found.append(picture[row : row + SIDE, column : column + SIDE].ravel())
    return np.asarray(found, np.float32)
