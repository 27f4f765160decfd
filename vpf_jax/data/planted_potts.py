"""Sequences of a planted Potts machine: a protein family of 40 sites and 21 letters whose contacts are known.

The sites are coupled along the chain, weakly, and where the fold brings them together: two hairpins, and the ends. No
two of these contacts cross, so that sites can be summed out one after another, each of them joined to two others at
most, in tables of 21 x 21. Sequences are therefore drawn exactly, one independently of another, and the log-likelihood
of a sequence is exact. NumPy alone, the same sequences wherever they are drawn. Not here: relatives, which a real
family has (`alignment`), files of one's own (`fasta`).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from vpf_jax import checks
from vpf_jax.data.base import Dataset, Part, register_source

SITES = 40
# The twenty amino acids and the gap, in the order of `fasta`.
LETTERS = 21
# Sequences of the training, validation and test part.
_PARTS = (10_000, 2_000, 2_000)
_SEED = 62
# First and last site of each hairpin, and the pairs of opposite sites in it.
_HAIRPINS, _RUNGS = ((2, 17), (21, 36)), 6
_ENDS = ((0, 39), (0, 38), (1, 38))


class PlantedPotts(NamedTuple):
    """Parameters of a planted machine; the log-probability of a sequence is their sum over it, less log Z."""

    biases: Float[np.ndarray, "sites letters"]
    couplings: Float[np.ndarray, "sites letters sites letters"]
    """Symmetric, of pairs in contact alone, summing to 0 over either letter."""
    contacts: Bool[np.ndarray, "sites sites"]


class _Step(NamedTuple):
    """A site that is summed out, given those left that it is joined to."""

    site: int
    near: tuple[int, ...]
    log_weights: Float[np.ndarray, "..."]
    """[letters of the site, letters of each of those]."""


def planted_potts(seed: int = _SEED) -> PlantedPotts:
    """Normal biases of deviation 1; normal couplings, of a pair along the chain of 0.2 to 0.4, of others of 0.4 to 1.

    Args:
      seed: of NumPy's generator; another seed is another machine with the same contacts.

    Raises:
      ValueError: a seed below 0.
    """
    rng = np.random.default_rng(checks.integer("seed", seed, 0))
    contacts = _fold()
    couplings = np.zeros((SITES, LETTERS, SITES, LETTERS))
    for i, j in np.argwhere(np.triu(contacts)):
        block = rng.uniform(*((0.2, 0.4) if j - i == 1 else (0.4, 1))) * rng.normal(size=(LETTERS, LETTERS))
        block -= block.mean(axis=0)[None]
        block -= block.mean(axis=1)[:, None]
        couplings[i, :, j], couplings[j, :, i] = block, block.T
    return PlantedPotts(rng.normal(size=(SITES, LETTERS)), couplings, contacts)


def log_likelihood(machine: PlantedPotts, codes: Int[np.ndarray, "n sites"]) -> Float[np.ndarray, " n"]:
    """Exact log p of each sequence under the planted machine, in nats."""
    sites = np.arange(codes.shape[1])
    found = machine.biases[sites[None], codes].sum(axis=1)
    for i, j in np.argwhere(np.triu(machine.contacts)):
        found += machine.couplings[i, codes[:, i], j, codes[:, j]]
    return found - _summed_out(machine)[1]


def draw_sequences(machine: PlantedPotts, number: int, seed: int) -> Int[np.ndarray, "n sites"]:
    """Independent sequences, codes from 0.

    Raises:
      ValueError: no sequences, a seed below 0, or contacts that cross, so that a site is joined to three others.
    """
    number, seed = checks.integer("number", number, 1), checks.integer("seed", seed, 0)
    uniforms = np.random.default_rng(seed).random((number, len(machine.biases)))
    codes = np.zeros(uniforms.shape, int)
    for step in reversed(_summed_out(machine)[0]):
        given = step.log_weights[(slice(None), *(codes[:, site] for site in step.near))]
        given = given.reshape(len(given), -1)
        law = np.exp(given - given.max(axis=0))
        below = np.cumsum(law, axis=0) / law.sum(axis=0)
        codes[:, step.site] = (uniforms[:, step.site] >= below[:-1]).sum(axis=0)
    return codes


@register_source("planted_proteins")
def load_planted_proteins(name: str = "planted_proteins", data_dir: object = None) -> Dataset:
    """10,000 / 2,000 / 2,000 sequences, drawn on the spot; `data_dir` plays no role. There are no classes.

    Each is a one-hot vector of 21 entries for each of 40 sites.
    """
    codes = draw_sequences(planted_potts(), sum(_PARTS), _SEED + 1)
    examples: UInt8[np.ndarray, "n entries"] = np.eye(LETTERS, dtype=np.uint8)[codes].reshape(len(codes), -1)
    train, validation, test = (Part(some) for some in np.split(examples, np.cumsum(_PARTS)[:-1]))
    units = f"categorical({LETTERS})"
    return Dataset(name, train, validation, test, (SITES, LETTERS), units=units, values="categories")


def _fold() -> Bool[np.ndarray, "sites sites"]:
    """Neighbours along the chain, two hairpins whose strands are joined by rungs and slants, and the ends."""
    pairs = [(i, i + 1) for i in range(SITES - 1)]
    for first, last in _HAIRPINS:
        pairs += [(first + rung, last - rung - slant) for rung in range(_RUNGS) for slant in (0, 1)]
    contacts = np.zeros((SITES, SITES), bool)
    for i, j in (*pairs, *_ENDS):
        contacts[i, j] = contacts[j, i] = True
    return contacts


def _summed_out(machine: PlantedPotts) -> tuple[list[_Step], float]:
    """The sites in an order in which each is joined to two of those left at most, and log Z.

    What a site leaves behind is a table of the two that it was joined to, which are then coupled by it, too.
    """
    fields, couplings, joined = (part.copy() for part in machine)
    left, steps, log_z = list(range(len(fields))), [], 0.0
    while left:
        site = min(left, key=lambda i: joined[i, left].sum())
        left.remove(site)
        near = tuple(j for j in left if joined[site, j])
        checks.require(len(near) <= 2, "machine", f"contacts {near} of site {site}", "contacts that do not cross")
        log_weights = fields[site].reshape(-1, *(1 for _ in near))
        for axis, other in enumerate(near):
            block = couplings[site, :, other]
            log_weights = log_weights + (block if len(near) == 1 else np.expand_dims(block, 2 - axis))
        steps.append(_Step(site, near, log_weights))
        message = np.logaddexp.reduce(log_weights, axis=0)
        if len(near) == 2:
            i, j = near
            couplings[i, :, j] += message
            couplings[j, :, i] += message.T
            joined[i, j] = joined[j, i] = True
        elif near:
            fields[near[0]] += message
        else:
            log_z += float(message)
    return steps, log_z
