"""Spike words of a planted machine: 60 neurons, silent or firing in a bin, in twelve assemblies that overlap.

The machine is an RBM whose hidden units are the assemblies. With twelve of them their law is a sum over 4,096 states,
so that words are drawn from it exactly, one independently of another, and the log-likelihood of a word is exact: the
highest that a model can reach on words it has not seen. NumPy alone, the same words wherever they are drawn. Not here:
recordings (files of one's own), spikes in continuous time (`vpf_jax.spikes`).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vpf_jax.data.base import Dataset, Part, register_source

NEURONS, ASSEMBLIES = 60, 12
# Words of the training, validation and test part.
_PARTS = (20_000, 5_000, 5_000)
_SEED = 60


class Planted(NamedTuple):
    """Parameters of the planted machine."""

    visible: Float[np.ndarray, " neurons"]
    hidden: Float[np.ndarray, " assemblies"]
    weights: Float[np.ndarray, "neurons assemblies"]


def planted_machine() -> Planted:
    """Each assembly drives six neurons by weights from 2 to 4, the last of them shared with the next assembly.

    A neuron without an assembly fires in 3 % of the bins.
    """
    rng = np.random.default_rng(_SEED)
    order, own = rng.permutation(NEURONS), NEURONS // ASSEMBLIES
    weights = np.zeros((NEURONS, ASSEMBLIES))
    for assembly in range(ASSEMBLIES):
        members = order[(own * assembly + np.arange(own + 1)) % NEURONS]
        weights[members, assembly] = rng.uniform(2, 4, own + 1)
    visible = np.full(NEURONS, -3.5)
    # Against what its members' normalisers add, so that an assembly is on in some of the bins and off in most.
    drive = np.logaddexp(0, visible[:, None] + weights) - np.logaddexp(0, visible)[:, None]
    return Planted(visible, -1.5 - drive.sum(axis=0), weights)


def log_likelihood(words: Float[np.ndarray, "n neurons"]) -> Float[np.ndarray, " n"]:
    """Exact log p of each word, zeros and ones, under the planted machine, in nats."""
    machine = planted_machine()
    log_z = np.logaddexp.reduce(_log_weights(machine, _assemblies()))
    own = np.logaddexp(0, machine.hidden + words @ machine.weights).sum(axis=1)
    return words @ machine.visible + own - log_z


@register_source("planted_spikes")
def load_planted_spikes(name: str = "planted_spikes", data_dir: object = None) -> Dataset:
    """20,000 / 5,000 / 5,000 words, drawn on the spot; `data_dir` plays no role. There are no classes.

    They count as images of 6 x 10 neurons.
    """
    machine, states = planted_machine(), _assemblies()
    rng = np.random.default_rng(_SEED + 1)
    log_weights = _log_weights(machine, states)
    law = np.exp(log_weights - log_weights.max())
    chosen = states[rng.choice(len(states), sum(_PARTS), p=law / law.sum())]
    fields = machine.visible + chosen @ machine.weights.T
    words = (rng.random(fields.shape) < 1 / (1 + np.exp(-fields))).astype(np.float32)
    parts = np.split(words, np.cumsum(_PARTS)[:-1])
    train, validation, test = map(Part, parts)
    return Dataset(name, train, validation, test, (6, 10), values="bits")


def _assemblies() -> Float[np.ndarray, "states assemblies"]:
    """All states of the assemblies."""
    return (np.arange(2**ASSEMBLIES)[:, None] >> np.arange(ASSEMBLIES) & 1).astype(float)


def _log_weights(machine: Planted, states: Float[np.ndarray, "states assemblies"]) -> Float[np.ndarray, " states"]:
    """Log of the summed exp(-E) over the words, of each state of the assemblies."""
    fields = machine.visible + states @ machine.weights.T
    return states @ machine.hidden + np.logaddexp(0, fields).sum(axis=1)
