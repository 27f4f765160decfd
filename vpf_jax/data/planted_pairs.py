"""Spike words of a planted pairwise machine: 60 neurons, each coupled to some of ten others, without hidden units.

In an order that the words do not show, each neuron is coupled to the five before it and the five after it. Words are
therefore drawn exactly, one neuron after another given the last five, after a sum over all later ones (as a transfer
matrix gives it); they are independent of one another, and the log-likelihood of a word is exact. NumPy alone, the same
words wherever they are drawn. Not here: assemblies (`planted`), other graphs of couplings.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vpf_jax import checks
from vpf_jax.data.base import Dataset, Part, register_source

NEURONS = 60
# Neurons before it that a neuron is coupled to.
_REACH = 5
# Words of the training, validation and test part.
_PARTS = (20_000, 5_000, 5_000)
_SEED = 61


class PlantedPairs(NamedTuple):
    """Parameters of the planted machine."""

    biases: Float[np.ndarray, " neurons"]
    couplings: Float[np.ndarray, "neurons neurons"]
    """Symmetric, zeros on the diagonal."""
    order: Int[np.ndarray, " neurons"]
    """In which neurons are coupled to their neighbours alone."""


def planted_pairs(seed: int = _SEED) -> PlantedPairs:
    """Normal couplings of deviation 1; biases from -3 to -1.5, less a quarter of the summed couplings.

    Args:
      seed: of NumPy's generator; another seed is another machine.

    Raises:
      ValueError: a seed below 0.
    """
    rng = np.random.default_rng(checks.integer("seed", seed, 0))
    order = rng.permutation(NEURONS)
    distance = np.abs(np.arange(NEURONS)[:, None] - np.arange(NEURONS)[None])
    upper = np.triu(rng.normal(size=(NEURONS, NEURONS)) * (distance <= _REACH), 1)
    couplings = np.zeros((NEURONS, NEURONS))
    couplings[np.ix_(order, order)] = upper + upper.T
    biases = rng.uniform(-3, -1.5, NEURONS) - couplings.sum(axis=1) / 4
    return PlantedPairs(biases, couplings, order)


def log_likelihood(machine: PlantedPairs, words: Float[np.ndarray, "n neurons"]) -> Float[np.ndarray, " n"]:
    """Exact log p of each word, zeros and ones, under the planted machine, in nats."""
    pairs = np.einsum("si,ij,sj->s", words, machine.couplings, words, optimize=True) / 2
    return words @ machine.biases + pairs - _log_futures(machine)[0, 0]


def draw_words(machine: PlantedPairs, number: int, seed: int) -> Float[np.ndarray, "n neurons"]:
    """Independent words, zeros and ones.

    Raises:
      ValueError: no words, or a seed below 0.
    """
    number, seed = checks.integer("number", number, 1), checks.integer("seed", seed, 0)
    uniforms = np.random.default_rng(seed).random((number, NEURONS))
    futures = _log_futures(machine)
    words, last = np.zeros((number, NEURONS), np.float32), np.zeros(number, int)
    for place, neuron in enumerate(machine.order):
        silent = _next(last)
        log_odds = _fields(machine, place)[last] + futures[place + 1][silent | 1] - futures[place + 1][silent]
        fires = uniforms[:, place] < 1 / (1 + np.exp(-log_odds))
        words[:, neuron], last = fires, silent | fires
    return words


@register_source("planted_pairs")
def load_planted_pairs(name: str = "planted_pairs", data_dir: object = None) -> Dataset:
    """20,000 / 5,000 / 5,000 words, drawn on the spot; `data_dir` plays no role. There are no classes.

    They count as images of 6 x 10 neurons.
    """
    parts = np.split(draw_words(planted_pairs(), sum(_PARTS), _SEED + 1), np.cumsum(_PARTS)[:-1])
    train, validation, test = (Part(some) for some in parts)
    return Dataset(name, train, validation, test, (6, 10), values="bits")


def _next(last: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The neurons before, bit d the one d + 1 places back, once one more has been silent."""
    return last << 1 & 2**_REACH - 1


def _fields(machine: PlantedPairs, place: int) -> Float[np.ndarray, " states"]:
    """Of the neuron at a place in the order, from its bias and each state of the neurons before it."""
    bits = np.arange(2**_REACH)[:, None] >> np.arange(_REACH) & 1
    before = machine.order[max(place - _REACH, 0) : place][::-1]
    neuron = machine.order[place]
    return machine.biases[neuron] + bits[:, : len(before)] @ machine.couplings[before, neuron]


def _log_futures(machine: PlantedPairs) -> Float[np.ndarray, "places states"]:
    """Log of the summed exp(-E) over the neurons from each place on, given each state of those before; [0, 0] is log Z.

    States in which neurons before the first one fire play no part.
    """
    futures = np.zeros((NEURONS + 1, 2**_REACH))
    silent = _next(np.arange(2**_REACH))
    for place in reversed(range(NEURONS)):
        fires = _fields(machine, place) + futures[place + 1][silent | 1]
        futures[place] = np.logaddexp(futures[place + 1][silent], fires)
    return futures
