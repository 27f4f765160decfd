"""The trained stack of a run, by the run's folder. Not here: how checkpoints are read (`checkpoint`)."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vpf_jax import checks, units
from vpf_jax.checkpoint import as_jax, read_newest
from vpf_jax.checks import AnyArray
from vpf_jax.machine import BoltzmannMachine
from vpf_jax.stack import Stack


def load_stack(folder: str | Path, seed_index: int | None = None) -> Stack:
    """The trained stack of a run, as its newest checkpoint has it: the average of its parameters where one is kept.

    Args:
      folder: of a run (`--workdir` of `experiments.mnist_dbm`, or a folder in `--models` of the scripts that compare
        rules), or its folder of checkpoints. Of a run of several phases it is the stack of the last one begun.
      seed_index: which of several seeds that were trained together, from 0; None for a run of one seed.

    Raises:
      ValueError: a folder without checkpoints or with those of something else than stacks, or an index that does not
        fit.
      CheckpointError: there are checkpoints, all of them damaged.
    """
    checks.require(isinstance(folder, str | os.PathLike), "folder", folder, "the folder of a run")
    folder, found = Path(folder), None
    # Those of the last phase first.
    phases = (path for path in folder.glob("checkpoints-*") if path.name.split("-")[1].isdecimal())
    later = sorted(phases, key=lambda path: int(path.name.split("-")[1]), reverse=True)
    for directory in (*later, folder / "checkpoints", folder):
        found = found or read_newest(directory)
    told = f"got folder={str(folder)!r}, which holds"
    if found is None:
        raise ValueError(f"{told} no checkpoints; it takes the folder of a run")
    prefix = _learnt(found.leaves)
    leaves = {path.removeprefix(prefix): leaf for path, leaf in found.leaves.items() if path.startswith(prefix)}
    if "0/biases/0" not in leaves:
        raise ValueError(f"{told} checkpoints without a stack; it takes the run of a stack")
    if any(path.count("/") > 2 for path in leaves):
        raise ValueError(f"{told} a stack with couplings that are no matrices; it takes one with matrices")
    if leaves["0/biases/0"].ndim == 1:
        checks.require(seed_index is None, "seed_index", seed_index, "None, as the run is of one seed")
    else:
        index = checks.integer("seed_index", seed_index, 0, len(leaves["0/biases/0"]) - 1)
        leaves = {path: leaf[index] for path, leaf in leaves.items()}
    kinds = [found.structure.get(f"stack/{number}/units", {"static": "binary"}) for number in range(_count(leaves, ""))]
    return tuple(machine_of(leaves, f"{number}/", kind["static"].split(", ")) for number, kind in enumerate(kinds))


def _learnt(paths: Iterable[str]) -> str:
    """Under which path the stack lies that `train.learnt` gives."""
    averages = (path.partition("average/")[0] + "average/" for path in paths if "/average/" in path)
    return next((path for path in averages if path.startswith("optimizer/")), "stack/")


def machine_of(leaves: Mapping[str, AnyArray], prefix: str, kinds: Sequence[str]) -> BoltzmannMachine:
    """The machine whose leaves stand under a prefix of their paths, of registered units: one kind, or one per layer."""

    def layers(name: str, count: int) -> tuple[Any, ...]:
        found = [leaves.get(f"{prefix}{name}/{number}") for number in range(count)]
        return tuple(None if array is None else as_jax(array) for array in found)

    num_layers = _count(leaves, f"{prefix}biases/")
    directed, own = f"{prefix}backward/0" in leaves, layers("own", num_layers)
    return BoltzmannMachine(
        biases=layers("biases", num_layers),
        weights=layers("weights", num_layers - 1),
        intra=layers("intra", num_layers),
        backward=layers("backward", num_layers - 1) if directed else None,
        own=own if any(block is not None for block in own) else None,
        units=tuple(units.get(kind) for kind in kinds),
    )


def _count(leaves: Mapping[str, Any], prefix: str) -> int:
    """How many numbers from 0 follow a prefix."""
    return len({path[len(prefix) :].split("/")[0] for path in leaves if path.startswith(prefix)})
