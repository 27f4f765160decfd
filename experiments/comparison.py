"""Recipes of training, one per learning rule, and the loop that trains one from several seeds and keeps the result.

The scripts that compare rules share trained machines: each recipe's lie in a folder of their own, named after the rule
and a digest of its settings, so that a second script, or a second start, finds them. A recipe has one phase or more;
phases follow one another with a fresh optimizer (`vpf_jax.train.start_phase`). Not here: what is measured on trained
machines.
"""

import dataclasses
import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import vpf_jax
from experiments import models
from vpf_jax import train
from vpf_jax.app import command as cli
from vpf_jax.app import runs
from vpf_jax.app.folder import Stopped, UsageError, locked, write_json
from vpf_jax.app.phases import PhasedRun
from vpf_jax.app.progress import Progress, told_of_flow
from vpf_jax.data import Dataset, binarise
from vpf_jax.evaluate import monitor

# Training images on which the monitors of an epoch are measured.
NUM_WATCHED = 1000
# The version since which the same settings have trained to the same bits: machines of releases since then are found.
_TRAINED_AS = "0.5.0"
# Rules of an RBM and their names in tables.
TITLES = {
    "vpf_paper": "VPF, the paper's settings",
    "vpf": "VPF",
    "vpf_pcd": "VPF, then PCD-1",
    "cd1": "CD-1",
    "pcd1": "PCD-1",
    "pcd1_decay": "PCD-1, strong decay",
    "pcd10": "PCD-10",
    "pl": "PL",
    "ratio": "ratio matching",
    "mpf": "marginal MPF",
}
RULES = tuple(TITLES)
# Deep models and their names in tables.
STACK_TITLES = {
    "dbm": "DBM, the paper's settings",
    "intra_dbm": "intra-layer DBM, the paper's settings",
    "dbm_refined": "DBM, then PCD-1",
    "intra_dbm_refined": "intra-layer DBM, then PCD-1",
    "joint_dbm": "one deep machine, joint coupling",
}
STACKS = tuple(STACK_TITLES)
# RBMs with symmetric and with directed weights, under both E-steps, and their names in tables.
DIRECTED_TITLES = {
    f"{weights}_{estep}": f"{told}, E-step per {estep}"
    for estep in train.ESTEPS
    for weights, told in (
        ("tied", "symmetric"),
        ("equal", "directed from equal starts"),
        ("drawn", "directed from unequal starts"),
    )
}


@dataclasses.dataclass(frozen=True)
class Config(runs.Config):
    """What the scripts that compare rules share; each setting is a flag."""

    num_seeds: int = cli.setting(10, "Runs of each recipe, at least 1.")
    seed: int = cli.setting(0, "Seed of the first run, at least 0; the others count up from it.")
    seeds_at_once: int = cli.setting(
        0, "Runs trained in one batched computation (jax.vmap), the others after them, at least 1; 0: all."
    )
    models: str | None = cli.setting(None, "Folder of trained machines, shared between experiments; WORKDIR/models.")

    def __post_init__(self) -> None:
        """Fills in the folder, and checks the settings.

        Raises:
          UsageError: a value outside its range.
        """
        super().__post_init__()
        self.check_at_least(num_seeds=1, seeds_at_once=0)
        there = next(path for path in (self.models_folder, *self.models_folder.parents) if os.path.exists(path))
        if self.models and not there.is_dir():
            raise UsageError(
                f"got --models={self.models}; {there} is a file, and it takes a folder, which may be missing"
            )

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + self.num_seeds))

    @property
    def models_folder(self) -> Path:
        return Path(self.models or Path(self.workdir) / "models")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A model and how it is trained."""

    name: str
    hidden: tuple[int, ...]
    phases: tuple[train.TrainConfig, ...]
    intra: bool = False
    joint: bool = False
    backward_start: str = "tied"
    """One of `models.BACKWARD_STARTS`."""

    @property
    def epochs(self) -> int:
        """Of all phases."""
        return sum(phase.epochs for phase in self.phases)

    def folder_name(self, dataset: str, seeds: Sequence[int]) -> str:
        """Of the trained machines: readable, and different for different settings."""
        settings = dataclasses.asdict(self) | {"dataset": dataset, "seeds": list(seeds)}
        return folder_name(self.name, settings)


class Trained(NamedTuple):
    """Machines trained from several seeds."""

    stacks: vpf_jax.Stack
    """Arrays with a leading axis of seeds."""
    seconds: float
    """Of training per seed, without compilation."""
    curves: dict[str, np.ndarray]
    """Monitors after each epoch, [epochs, num_seeds] each."""

    def stack(self, index: int) -> vpf_jax.Stack:
        """The machines of one seed."""
        return jax.tree.map(lambda leaf: leaf[index], self.stacks)

    @property
    def num_seeds(self) -> int:
        return int(self.stacks[0].biases[0].shape[0])


def folder_name(name: str, settings: dict[str, Any]) -> str:
    """Of what is trained: readable, and different for different settings."""
    settings = settings | {"version": _TRAINED_AS}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    return f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}-{digest}"


def rbm_recipes(hidden: tuple[int, ...], epochs: int) -> dict[str, Recipe]:
    """How each rule trains an RBM in a number of epochs, with the settings that suit it (docs/likelihood-gap.md)."""
    first = max(1, epochs // 4)
    paper = train.TrainConfig(epochs=epochs)
    flow = dataclasses.replace(paper, estep="minibatch", weight_decay=4e-4)
    cosine = dataclasses.replace(paper, schedule="cosine")
    # So strong a decay costs PCD likelihood, and repairs images better.
    decayed = dataclasses.replace(cosine, rule="pcd", learning_rate=3e-3, weight_decay=4e-3)
    # An eighth of the flips per step: all pairs of units are summed over for each, where others take one product.
    flips = dataclasses.replace(cosine, flips_per_step=98)
    phases = {
        "vpf_paper": (paper,),
        "vpf": (flow,),
        "vpf_pcd": (
            dataclasses.replace(flow, epochs=first),
            dataclasses.replace(decayed, epochs=epochs - first),
        ),
        "cd1": (dataclasses.replace(paper, rule="cd", weight_decay=3e-3),),
        "pcd1": (dataclasses.replace(cosine, rule="pcd"),),
        "pcd1_decay": (decayed,),
        "pcd10": (dataclasses.replace(cosine, rule="pcd", rule_steps=10),),
        "pl": (dataclasses.replace(flips, rule="pl", weight_decay=3e-3),),
        "ratio": (dataclasses.replace(flips, rule="ratio", weight_decay=1e-3),),
        "mpf": (dataclasses.replace(flips, rule="mpf", weight_decay=3e-4),),
    }
    return {rule: Recipe(TITLES[rule], hidden, phases[rule]) for rule in RULES}


def stack_recipes(hidden: tuple[int, ...], epochs: int) -> dict[str, Recipe]:
    """How deep models are trained: by the paper's settings for a number of epochs, and, a fifth of them, otherwise."""
    flow = train.TrainConfig(epochs=epochs)
    fifth = max(1, epochs // 5)
    short = dataclasses.replace(flow, epochs=fifth)
    refinement = train.TrainConfig(rule="pcd", epochs=fifth, learning_rate=2e-3, weight_decay=2e-3, schedule="cosine")
    phases = {
        "dbm": (flow,),
        "intra_dbm": (flow,),
        "dbm_refined": (short, refinement),
        "intra_dbm_refined": (short, refinement),
        "joint_dbm": (short,),
    }
    return {
        name: Recipe(title, hidden, phases[name], intra="intra" in name, joint="joint" in name)
        for name, title in STACK_TITLES.items()
    }


def directed_recipes(hidden: tuple[int, ...], epochs: int) -> dict[str, Recipe]:
    """RBMs trained by VPF with symmetric and with directed weights, under both E-steps, each with its decay."""
    rbms = rbm_recipes(hidden, epochs)
    rules = {"epoch": rbms["vpf_paper"], "minibatch": rbms["vpf"]}
    return {
        name: dataclasses.replace(rules[estep], name=title, backward_start=weights)
        for name, title in DIRECTED_TITLES.items()
        for weights, estep in (name.split("_"),)
    }


def train_for(config: Config, recipe: Recipe, data: Dataset, stops: list[int]) -> Trained:
    """`train_recipe` with the folder, seeds and pace that a script's settings say."""
    return train_recipe(
        config.models_folder,
        recipe,
        data,
        config.seeds,
        stops,
        at_once=config.seeds_at_once or config.num_seeds,
        checkpoint_every=config.checkpoint_every,
    )


def initial_state(recipe: Recipe, num_visible: int, seeds: Sequence[int]) -> train.TrainState:
    """The states before the first epoch, one per seed along a leading axis.

    Raises:
      ValueError: a recipe whose rule does not take its model.
    """
    sizes = (num_visible, *recipe.hidden)

    def start(seed: jax.Array) -> train.TrainState:
        init_key, train_key = jax.random.split(jax.random.key(seed))
        options = {name: getattr(recipe, name) for name in ("intra", "joint", "backward_start")}
        stack = models.draw_stack(init_key, sizes, **options)
        return train.init_state(train_key, stack, recipe.phases[0])

    return jax.vmap(start)(jnp.asarray(seeds))


def train_recipe(
    folder: Path,
    recipe: Recipe,
    data: Dataset,
    seeds: Sequence[int],
    stops: list[int],
    *,
    at_once: int,
    checkpoint_every: int,
) -> Trained:
    """Trains a recipe from all seeds, or goes on where an earlier start left off, or finds it finished.

    Args:
      folder: of all recipes' trained machines.
      recipe: the model and its training.
      data: the images; training sees the binarised training images alone.
      seeds: one run each.
      stops: signals received (`workdir.stop_requests`).
      at_once: runs in one batched computation.
      checkpoint_every: epochs between checkpoints.

    Raises:
      Stopped: a signal has arrived; a checkpoint is saved.
      vpf_jax.app.folder.UsageError: another process trains the recipe.
      vpf_jax.checkpoint.CheckpointError: all checkpoints are damaged.
      vpf_jax.train.NonFiniteObjectiveError: training has overflowed in one of the runs; the last good checkpoint stays.
    """
    own = folder / recipe.folder_name(data.name, seeds)
    with locked(own, runs.WAIT):
        write_json(own / "recipe.json", dataclasses.asdict(recipe) | {"dataset": data.name, "seeds": list(seeds)})
        return _train_recipe(own, recipe, data, seeds, stops, at_once, checkpoint_every)


def _train_recipe(
    own: Path,
    recipe: Recipe,
    data: Dataset,
    seeds: Sequence[int],
    stops: list[int],
    at_once: int,
    checkpoint_every: int,
) -> Trained:
    """`train_recipe` in the recipe's own folder."""
    visible = jnp.asarray(binarise(data.train.images))
    start = initial_state(recipe, visible.shape[1], seeds)
    run = PhasedRun(own, start, visible, recipe.phases, checkpoint_every=checkpoint_every, at_once=at_once)
    rows = run.info.setdefault("rows", [])
    with Progress(recipe.epochs, run.epoch, recipe.name) as progress:
        started = time.perf_counter()
        for epoch, measured in run.epochs(stops):
            largest = rows[-1]["max_abs_weight"] if rows else [0.0] * len(seeds)
            for i in range(len(seeds)):
                train.check_finite(jax.tree.map(lambda leaf, i=i: leaf[i], measured), epoch, largest[i])
            watched = _watch(jax.random.key(epoch), run.state.stack, visible[:NUM_WATCHED])
            values = {"objective": measured.objective, "max_abs_weight": measured.max_abs_weight, **watched}
            rows.append({name: np.asarray(value, np.float64).tolist() for name, value in values.items()})
            means = {"objective": np.mean(measured.objective), "max_abs_weight": np.max(measured.max_abs_weight)}
            progress.report(epoch, told_of_flow(means), time.perf_counter() - started)
            started = time.perf_counter()
    if run.epoch < recipe.epochs:
        raise Stopped(stops[0], f"{recipe.name}, epoch {run.saved} of {recipe.epochs}, is saved; start again to resume")
    seconds = run.info["train_seconds"] / len(seeds)
    print(f"{recipe.name}: {seconds:.1f} s of training per seed", flush=True)
    return Trained(run.state.stack, seconds, {name: np.array([row[name] for row in rows]) for name in rows[-1]})


@jax.jit
def _watch(key: jax.Array, stacks: vpf_jax.Stack, visible: jax.Array) -> dict[str, jax.Array]:
    """What is watched of the stack of each seed."""
    return jax.vmap(lambda stack: monitor.watch(key, stack, visible))(stacks)
