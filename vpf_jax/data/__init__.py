"""Where examples come from: data sets as NumPy arrays, by name, or from a user's file.

`base` holds the data set, the table of sources and binarisation; `images` the three sets of images that the
experiments use; `digits`, `patches`, `planted`, `planted_pairs` and `planted_potts` smaller ones, on which no rule has
been chosen. `planted_recordings` writes large ones to disk, `on_disk` reads what stays there, and `streamed` makes a
data set of it. `loading` is the
door to all others and to files, which `arrays`, `tables`, `fasta` and `tensorflow` read; `values` says what the values
are, `words` gives words their codes, `parts` makes a data set, `alignment` weighs sequences. Not here: batching,
shuffling, augmentation, stochastic binarisation, and anything that touches an accelerator.
"""

from vpf_jax.data.alignment import sequence_weights
from vpf_jax.data.base import SOURCES, Dataset, DatasetError, Part, binarise, register_source
from vpf_jax.data.digits import load_digits_8x8
from vpf_jax.data.images import load_tfds, read_idx
from vpf_jax.data.loading import load_dataset, read_examples
from vpf_jax.data.patches import load_patches
from vpf_jax.data.planted import load_planted_spikes
from vpf_jax.data.planted_pairs import load_planted_pairs
from vpf_jax.data.planted_potts import load_planted_proteins

__all__ = [
    "SOURCES",
    "Dataset",
    "DatasetError",
    "Part",
    "binarise",
    "load_dataset",
    "load_digits_8x8",
    "load_patches",
    "load_planted_pairs",
    "load_planted_proteins",
    "load_planted_spikes",
    "load_tfds",
    "read_examples",
    "read_idx",
    "register_source",
    "sequence_weights",
]
