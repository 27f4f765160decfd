"""Tells what is in a file or folder: a model, a run, or data.

    python -m vpf_jax inspect PATH
    python -m vpf_jax inspect MODEL --couplings=couplings.csv

Nothing is written but the couplings that a flag asks for: what couples each pair of visible units, hidden ones summed
out with all others at their lower value. Not here: pictures and curves of a run (`report`).
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vpf_jax import units
from vpf_jax.app import exchange
from vpf_jax.app.folder import SUMMARY, UsageError, damage, read_object
from vpf_jax.data import read_examples
from vpf_jax.data.words import told_of, values_of_each
from vpf_jax.evaluate import comparison
from vpf_jax.models import NAME, described_model
from vpf_jax.settings import Settings, like, refuse_given, setting, typed
from vpf_jax.units.base import first_entries

_SUFFIX = Path(NAME).suffix


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Settings of the command; the path is its argument."""

    path: str = setting(".", "A model, the folder of a run, or a file of data")
    couplings: str | None = setting(
        None, "File to write the matrix of couplings between visible units to, of a single machine: .npy or .csv"
    )
    overwrite: bool = like(exchange.Config, "overwrite")


def run(config: Config) -> None:
    """Prints what there is.

    Raises:
      UsageError, ModelError, DatasetError: nothing is there that is known, or what has no couplings.
      SettingError: a file that cannot be written.
    """
    path = Path(config.path)
    if not os.path.exists(path):
        raise UsageError(f"got {path}, which does not exist; it takes a model, the folder of a run, or a file of data")
    if config.couplings is None:
        refuse_given(config, ["overwrite"], "nothing is written without --couplings")
    else:
        _write_couplings(config, config.couplings)
    # What has couplings is a model under any name.
    is_model = path.suffix == _SUFFIX or config.couplings is not None
    lines = _folder(path) if path.is_dir() else _model(path) if is_model else _data(path)
    print("\n".join(lines))


def _write_couplings(config: Config, out: str) -> None:
    file = exchange.check_out(out, config.overwrite, name="couplings")
    model = exchange.read_model(config.path)
    if len(model.stack) > 1:
        raise UsageError(f"got {config.path}, a stack of {len(model.stack)} machines; --couplings takes a single one")
    try:
        found = comparison.effective_couplings(model.stack[0])
    except ValueError as error:
        raise UsageError(f"{config.path}: {error}") from None
    exchange.write_rows(file, found, exchange.variable_names(model))


def _folder(path: Path) -> Iterator[str]:
    settings = read_object(path / "config.json") or read_object(path / "recipe.json")
    files = sorted(path.glob(f"*{_SUFFIX}"))
    if settings is None and not files:
        raise UsageError(f"got {path}, a folder without a run; it takes one with a config.json or a model")
    if settings is not None:
        summary = read_object(path / SUMMARY)
        yield f"{path}: a run, {'finished' if summary else 'not finished'}"
        yield _pairs("settings", settings)
        if summary:
            yield _pairs("results", {name: value for name, value in summary.items() if isinstance(value, float | int)})
        yield from (f"{name} {told}" for name, told in damage(path))
    for file in files:
        yield from _model(file)


def _model(path: Path) -> Iterator[str]:
    found = described_model(path)
    about = found["about"]
    yield f"{path}: a model, written by vpf_jax {found['version']}; its checksum is right"
    for number, machine in enumerate(found["machines"]):
        sizes = " - ".join(map(str, machine["sizes"]))
        inside = f", weights inside layers {', '.join(map(str, machine['intra']))}" if machine["intra"] else ""
        kinds = " and ".join(dict.fromkeys(machine["units"]))
        directed = ", separate weights up and down" if machine["directed"] else ""
        yield f"machine {number}: {sizes} {kinds} units{inside}{directed}"
    for name, value in about.items():
        if isinstance(value, dict) and isinstance(value.get("categories"), list):
            value = value | {"categories": told_of(value["categories"])}
        yield _pairs(name, value) if isinstance(value, dict) else f"{name}: {value}"


def _data(path: Path) -> Iterator[str]:
    part = read_examples(str(path))
    values = np.asarray(part.examples)
    known = values if part.missing is None else values[~part.missing]
    unit = units.get(part.units)
    bits = unit == units.BINARY and bool(((known == 0) | (known == 1)).all())
    firsts = first_entries(unit, values.shape[1])
    yield f"{path}: {len(values)} examples of {len(firsts)} variables"
    kind = "bits" if bits else f"numbers from {known.min():g} to {known.max():g}"
    of_each = values_of_each(unit, len(firsts))
    told = f"{kind}, mean {known.mean():.4f}" if of_each is None else f"one of {_range(of_each)} values each"
    yield told if unit == units.BINARY else f"{told}, for {unit.name} units"
    if part.missing is not None:
        missing = part.missing[:, firsts]
        yield f"missing: {missing.sum()} of {missing.size} entries"
    if part.labels is not None:
        yield f"labels: {len(np.unique(part.labels))} classes"
    if part.weights is not None:
        yield f"weights from {part.weights.min():g} to {part.weights.max():g}"


def _range(numbers: np.ndarray) -> str:
    low, high = numbers.min(), numbers.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _pairs(title: str, found: dict[str, Any]) -> str:
    """Names and values in a line; what is not set is left out."""
    told = (f"{name}={typed(value)}" for name, value in found.items() if value is not None)
    return f"{title}: {', '.join(told)}"
