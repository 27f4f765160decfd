"""Starts of hidden units from what fires together: each unit begins with a few visible units of one group.

Random starts of as many hidden units as there are groups leave some groups without a unit and others with several,
whatever the rule. Here a visible unit is described by which others are on when it is, in a sample of the examples (its
triggered average, in standard errors). Those whose descriptions many others share are taken as seeds, one after the
other, and what resembles a seed is no longer one. Not here: learning the rest of a group (`train`).
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

from vpf_jax import checks
from vpf_jax.machine import BoltzmannMachine, check_machine
from vpf_jax.units import BINARY

# Standard errors from which on a difference counts as one; cosines from which on descriptions are of one group, and up
# to which they may be of different ones. A unit of two groups lies between.
DIFFERENCE, SAME, APART = 3.0, 0.75, 0.35
# Features of a description.
LEAST = 5
# Numbers of a product that are in memory at a time.
_PIECE = 2**26


def seeds_of(
    sample: Shaped[np.ndarray, "examples n_0"],
    count: int,
    size: int = 10,
    *,
    num_candidates: int = 6000,
    num_features: int = 4000,
    seed: int = 0,
) -> Int[np.ndarray, "found size_plus_1"]:
    """Groups of visible units, each a seed and those that are on most often when it is.

    Args:
      sample: zeros and ones; what is found is as sure as it is large.
      count: how many groups, at most.
      size: visible units of a group beside its seed.
      num_candidates: visible units among which seeds are looked for, drawn at random; all where there are fewer.
      num_features: visible units by which they are described while they are.
      seed: of these draws.

    Returns:
      Numbers of visible units, those of most supporters first; fewer rows than `count` where no more are found.

    Raises:
      ValueError: a sample of other values or shape, or numbers below 1.
    """
    values = np.asarray(sample)
    checks.require(values.ndim == 2 and values.size > 0, "sample", values.shape, "an array [examples, n_0]")
    BINARY.check("a sample", values)
    n = values.shape[1]
    count, size = checks.integer("count", count, 1), checks.integer("size", size, 1)
    checks.require(size < n, "size", size, f"a number below the {n} visible units")
    rng = np.random.default_rng(seed)
    candidates, features = (
        np.sort(rng.choice(n, min(n, checks.integer(name, number, 1)), replace=False))
        for name, number in (("num_candidates", num_candidates), ("num_features", num_features))
    )
    means = np.asarray(np.mean(values, axis=0, dtype=np.float64))
    described = triggered(values, candidates, features, means)
    described = np.where(described > DIFFERENCE, described, 0)
    described /= np.maximum(np.linalg.norm(described, axis=1, keepdims=True), 1e-9)
    alike = described @ described.T
    # What differs in a few features alone may do so by chance.
    supporters = np.where(np.sum(described > 0, axis=1) >= LEAST, np.sum(alike > SAME, axis=1), 0)
    chosen: list[int] = []
    for candidate in np.argsort(-supporters, kind="stable"):
        alone = supporters[candidate] < 2
        if not alone and (not chosen or alike[chosen, candidate].max() < APART):
            chosen.append(int(candidate))
        if alone or len(chosen) == count:
            break
    if not chosen:
        return np.zeros((0, size + 1), np.int64)
    found = candidates[chosen]
    others = np.argsort(-triggered(values, found, np.arange(n), means), axis=1, kind="stable")[:, :size]
    return np.concatenate([found[:, None], others], axis=1)


def triggered(
    sample: Shaped[np.ndarray, "examples n_0"],
    units: Int[np.ndarray, " units"],
    features: Int[np.ndarray, " features"],
    means: Float[np.ndarray, " n_0"],
) -> Float[np.ndarray, "units features"]:
    """By how many standard errors each feature is on more often when a unit is than otherwise; 0 of itself."""
    given = sample[:, units].astype(np.float32)
    times = np.maximum(given.sum(axis=0), 1)[:, None]
    found = np.empty((len(units), len(features)), np.float32)
    step = max(1, _PIECE // len(sample))
    for start in range(0, len(features), step):
        part = features[start : start + step]
        found[:, start : start + step] = given.T @ sample[:, part].astype(np.float32)
    rates = means[features]
    found = (found / times - rates) / np.sqrt(np.maximum(rates * (1 - rates), 1e-9) / times)
    return np.where(units[:, None] == features, 0, found).astype(np.float32)


def with_seeds(
    machine: BoltzmannMachine, seeds: Int[np.ndarray, "hidden size"], weight: float = 2.0, needed: float = 2.5
) -> BoltzmannMachine:
    """The machine whose hidden units each start with weights to one group, and are on where enough of it is.

    Args:
      machine: two layers of binary units.
      seeds: visible units of each hidden unit, of the first ones; the others keep their weights.
      weight: of all of them, above 0.
      needed: how many of them are on where the hidden unit is on with probability 1/2.

    Raises:
      ValueError: another machine, or seeds that are no visible units or of more than the hidden ones.
    """
    check_machine(machine)
    if len(machine.sizes) != 2 or machine.layer_units != (BINARY, BINARY):
        raise ValueError(f"got a machine of layer sizes {machine.sizes}; seeds are for two layers of binary units")
    n_0, n_1 = machine.sizes
    groups = np.asarray(seeds)
    fits = groups.ndim == 2 and len(groups) <= n_1 and (groups.size == 0 or 0 <= groups.min() <= groups.max() < n_0)
    told = f"numbers of visible units below {n_0}, a row for each of up to {n_1} hidden units"
    checks.require(fits, "seeds", groups.shape, told)
    checks.require(checks.finite_number("weight", weight) > 0, "weight", weight, "above 0")
    needed = checks.finite_number("needed", needed)
    weights = np.array(machine.weights[0])
    weights[:, : len(groups)] = 0
    weights[groups.T, np.arange(len(groups))] = weight
    biases = np.array(machine.biases[1])
    biases[: len(groups)] = -weight * needed
    return dataclasses.replace(
        machine, weights=(jnp.asarray(weights),), biases=(machine.biases[0], jnp.asarray(biases))
    )
