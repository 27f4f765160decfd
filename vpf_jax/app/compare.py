"""Samples of a trained stack against data: comparison.png and numbers of a run.

Beside each number stands what training examples read in place of samples (`..._data`): no model need come nearer to
held-out examples. Not here: what the numbers mean (`vpf_jax.evaluate.comparison`).
"""

import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray, UInt8

from vpf_jax import figures
from vpf_jax.evaluate import comparison
from vpf_jax.stack import Stack

NAME = "comparison.png"
# Examples of each set that are looked at, and those whose nearest training example is looked for.
MOST_EXAMPLES, MOST_SOUGHT = 10_000, 300
_TOLD = {"means": "means", "pairs": "pairs (covariances)", "triples": "triples (connected)"}


class _Measured(NamedTuple):
    """Of one set of examples."""

    moments: comparison.Moments
    counts: Float[np.ndarray, " n_plus_1"]
    energies: Float[np.ndarray, " batch"] | None
    """None where they have no closed form."""


def compare_with_data(
    folder: Path,
    title: str,
    key: PRNGKeyArray,
    stack: Stack,
    centres: Float[jax.Array, "num_samples n_0"],
    train: UInt8[jax.Array, "num_train n_0"],
    held_out: UInt8[jax.Array, "num_held_out n_0"],
) -> dict[str, float | None]:
    """Draws comparison.png; returns r of means, pairs and triples, and distances of counts, energies and examples.

    Args:
      folder: of the run.
      title: of the picture.
      key: a random key, consumed.
      stack: the trained machines; only a single one has free energies in closed form, if its hidden units are
        independent.
      centres: visible means that it has generated; bits are drawn from them.
      train: training examples, zeros and ones.
      held_out: examples that it has not seen.

    Returns:
      None for an r that does not exist, as where all units are the same.
    """
    bits_key, order_key = jax.random.split(key)
    samples = jax.random.bernoulli(bits_key, centres[:MOST_EXAMPLES]).astype(jnp.uint8)
    some = train[jnp.sort(jax.random.permutation(order_key, len(train))[: len(samples)])]
    data, drawn, seen = (_measure(stack, rows[:MOST_EXAMPLES]) for rows in (held_out, samples, some))
    distances = {
        name: comparison.nearest_examples(rows[:MOST_SOUGHT], train).distances
        for name, rows in (("held-out data", held_out), ("samples", samples))
    }
    laws = {"differing units, nearest training example": distances}
    if data.energies is not None and drawn.energies is not None:
        laws["free energy, nats"] = {"held-out data": data.energies, "samples": drawn.energies}
    counts = {"held-out data": data.counts, "samples": drawn.counts}
    figures.save(folder / NAME, figures.comparison(_scatter(drawn, data), counts, laws, title=title))
    return {
        **_numbers(drawn, data, ""),
        **_numbers(seen, data, "_data"),
        "nearest_distance": float(np.mean(distances["samples"])),
        "nearest_distance_data": float(np.mean(distances["held-out data"])),
    }


def _measure(stack: Stack, visible: UInt8[jax.Array, "batch n_0"]) -> _Measured:
    machine = stack[0]
    closed = len(stack) == 1 and machine.backward is None and machine.has_independent_hidden
    return _Measured(
        comparison.moments(visible),
        comparison.count_probabilities(visible),
        comparison.free_energies(machine, visible) if closed else None,
    )


def _agreements(found: _Measured, wanted: _Measured) -> dict[str, comparison.Agreement]:
    """By the name of the moments; of fewer than three units there are no triples."""
    pairs = zip(comparison.Moments._fields, found.moments, wanted.moments, strict=True)
    return {name: comparison.agreement(one, other) for name, one, other in pairs if one.size}


def _scatter(found: _Measured, wanted: _Measured) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        f"{_TOLD[name]}\nr = {agreed.r:.3f}, rms {agreed.rms:.2g}": (
            getattr(wanted.moments, name),
            getattr(found.moments, name),
        )
        for name, agreed in _agreements(found, wanted).items()
    }


def _numbers(found: _Measured, wanted: _Measured, end: str) -> dict[str, float | None]:
    numbers: dict[str, float | None] = {
        f"{name.removesuffix('s')}_r{end}": None if math.isnan(agreed.r) else agreed.r
        for name, agreed in _agreements(found, wanted).items()
    }
    numbers[f"count_distance{end}"] = comparison.count_distance(found.counts, wanted.counts).total_variation
    if found.energies is not None and wanted.energies is not None:
        numbers[f"energy_distance{end}"] = comparison.energy_distance(found.energies, wanted.energies)
    return numbers
