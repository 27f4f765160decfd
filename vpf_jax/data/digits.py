"""The 8 x 8 digits that come with scikit-learn: 1,797 grey images of ten classes, from the UCI repository.

Too few and too small to choose a rule on, but at hand wherever scikit-learn is. Not here: digits of 28 x 28 (`images`).
"""

import importlib.util

import numpy as np

from vpf_jax.data.base import Dataset, DatasetError, Part, register_source

_IMAGE_SHAPE, _CLASSES, _HIGHEST = (8, 8), 10, 16
# Examples of the validation and of the test part, from the end of the file.
_HELD_OUT = 250


@register_source("digits_8x8")
def load_digits_8x8(name: str = "digits_8x8", data_dir: object = None) -> Dataset:
    """1,297 / 250 / 250 digits in file order; `data_dir` plays no role.

    Raises:
      DatasetError: scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise DatasetError("got no scikit-learn, which holds digits_8x8; it takes `pip install vpf_jax[experiments]`")
    from sklearn.datasets import load_digits

    data, labels = load_digits(return_X_y=True)
    images = np.asarray(data / _HIGHEST, np.float32)
    cuts = [-2 * _HELD_OUT, -_HELD_OUT]
    parts = zip(np.split(images, cuts), np.split(np.asarray(labels, np.int32), cuts), strict=True)
    train, validation, test = (Part(some, own) for some, own in parts)
    return Dataset(name, train, validation, test, _IMAGE_SHAPE, _CLASSES)
