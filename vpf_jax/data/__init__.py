"""Where examples come from: data sets as NumPy arrays, from a table of sources that a user's file can add to.

`base` holds the data set, the table and binarisation; `images` the three sets of images that the experiments use;
`digits` and `planted` small sets that played no part in choosing how rules are trained. Not here: batching, shuffling,
augmentation, stochastic binarisation, and anything that touches an accelerator.
"""

from vpf_jax.data.base import SOURCES, Dataset, DatasetError, Part, binarise, load_dataset, register_source
from vpf_jax.data.digits import load_digits_8x8
from vpf_jax.data.images import load_tfds, read_idx
from vpf_jax.data.planted import load_planted_spikes

__all__ = [
    "SOURCES",
    "Dataset",
    "DatasetError",
    "Part",
    "binarise",
    "load_dataset",
    "load_digits_8x8",
    "load_planted_spikes",
    "load_tfds",
    "read_idx",
    "register_source",
]
