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
from jaxtyping import Float, PRNGKeyArray, Real

from vpf_jax import figures
from vpf_jax.evaluate import comparison
from vpf_jax.stack import Stack
from vpf_jax.units import BINARY, Unit

NAME = "comparison.png"
# Examples of each set that are looked at, and those whose nearest training example is looked for.
MOST_EXAMPLES, MOST_SOUGHT = 10_000, 300
_TOLD = {"means": "means", "pairs": "pairs (covariances)", "triples": "triples (connected)"}


class _Measured(NamedTuple):
    """Of one set of examples."""

    moments: comparison.Moments
    counts: Float[np.ndarray, " n_plus_1"] | None
    """Of zeros and ones alone."""
    sums: Float[np.ndarray, " batch"] | None
    """Over the variables of each example, of counts and real numbers."""
    energies: Float[np.ndarray, " batch"] | None
    """None where they have no closed form."""


def compare_with_data(
    folder: Path,
    title: str,
    key: PRNGKeyArray,
    stack: Stack,
    centres: Float[jax.Array, "num_samples n_0"],
    train: Real[jax.Array, "num_train n_0"],
    held_out: Real[jax.Array, "num_held_out n_0"],
) -> dict[str, float | None]:
    """Draws comparison.png; returns r of means, pairs and triples, and distances of counts, energies and examples.

    Of counts and real numbers the sum over the variables stands for the number of units on, and no nearest example is
    looked for, as they have no Hamming distance.

    Args:
      folder: of the run.
      title: of the picture.
      key: a random key, consumed.
      stack: the trained machines; only a single one has free energies in closed form, if its hidden units are
        independent.
      centres: visible means that it has generated, from which bits are drawn; of other units than binary ones values.
      train: training examples, values of the units.
      held_out: examples that it has not seen.

    Returns:
      None for an r that does not exist, as where all units are the same.
    """
    bits_key, order_key = jax.random.split(key)
    unit, samples = stack[0].layer_units[0], centres[:MOST_EXAMPLES]
    if unit == BINARY:
        samples = jax.random.bernoulli(bits_key, samples).astype(jnp.uint8)
    some = train[jnp.sort(jax.random.permutation(order_key, len(train))[: len(samples)])]
    data, drawn, seen = (_measure(stack, rows[:MOST_EXAMPLES]) for rows in (held_out, samples, some))
    laws: dict[str, dict[str, np.ndarray]] = {}
    # A categorical unit of another value differs in two entries.
    each = {2 if kind.width > 1 else 1 for kind, _ in unit.segments(samples.shape[1])}
    if _are_counted(unit, samples.shape[1]) and len(each) == 1:
        (entries,) = each
        laws["differing units, nearest training example"] = {
            name: comparison.nearest_examples(rows[:MOST_SOUGHT].astype(jnp.uint8), train).distances / entries
            for name, rows in (("held-out data", held_out), ("samples", samples))
        }
    nearest = {name: float(np.mean(some)) for law in laws.values() for name, some in law.items()}
    for name, values in (("sum over the variables", "sums"), ("free energy, nats", "energies")):
        if getattr(data, values) is not None:
            laws[name] = {"held-out data": getattr(data, values), "samples": getattr(drawn, values)}
    sets = {"held-out data": data.counts, "samples": drawn.counts}
    counts = {name: some for name, some in sets.items() if some is not None}
    figures.save(folder / NAME, figures.comparison(_scatter(drawn, data), counts, laws, title=title))
    found = {**_numbers(drawn, data, ""), **_numbers(seen, data, "_data")}
    if nearest:
        found |= {"nearest_distance": nearest["samples"], "nearest_distance_data": nearest["held-out data"]}
    return found


def _measure(stack: Stack, visible: Real[jax.Array, "batch n_0"]) -> _Measured:
    machine = stack[0]
    unit = machine.layer_units[0]
    closed = len(stack) == 1 and machine.backward is None and machine.has_independent_hidden
    return _Measured(
        comparison.moments(visible, unit=unit),
        comparison.count_probabilities(visible) if unit == BINARY else None,
        None if _are_counted(unit, visible.shape[1]) else np.asarray(visible, np.float64).sum(axis=1),
        comparison.free_energies(machine, visible) if closed else None,
    )


def _are_counted(unit: Unit, n: int) -> bool:
    """Whether values of all of n entries are finitely many."""
    return all(kind.all_values() is not None for kind, _ in unit.segments(n))


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
    if found.counts is not None and wanted.counts is not None:
        numbers[f"count_distance{end}"] = comparison.count_distance(found.counts, wanted.counts).total_variation
    if found.sums is not None and wanted.sums is not None:
        numbers[f"sum_distance{end}"] = comparison.energy_distance(found.sums, wanted.sums)
    if found.energies is not None and wanted.energies is not None:
        numbers[f"energy_distance{end}"] = comparison.energy_distance(found.energies, wanted.energies)
    return numbers
