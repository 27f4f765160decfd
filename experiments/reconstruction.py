"""Repair of corrupted images by RBMs, one table over learning rules: Table 1 of Liu, Quek and Lin, arXiv 1711.07732.

    python -m experiments.reconstruction --dataset=mnist --workdir=runs/mnist-reconstruction

Every rule trains the same RBM in the same loop from the same seeds. A band of 12 rows or columns of each test image is
corrupted and repaired under two protocols, the paper's and the stricter one that holds the uncorrupted pixels
(`vpf_jax.reconstruction`); the error is the L1 distance to the grey original over the band, mean over the test images.
Below the rules stands what a band scores that is the same for all images: L1 is kind to pale and to dark bands.
Writes table.md, summary.json and reconstructions.png into --workdir, and the trained machines into --models, which
other experiments can share. A second start resumes; a finished run says so. A quick setting, two minutes on two cores:

    python -m experiments.reconstruction --dataset=mnist_5k --epochs=12 --num_seeds=2 --hidden=64 --workdir=runs/quick
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vpf_jax
from experiments import cli, comparison
from experiments.tables import cell, markdown_table
from experiments.workdir import stop_requests
from vpf_jax import datasets, figures, reconstruction

SIDES = ("top", "bottom", "left", "right")
PROTOCOLS = {
    "paper": "the paper's protocol: 2 free Gibbs steps",
    "clamped": "clamped: 10 steps, uncorrupted pixels held",
}
# What is painted into the band without a look at the rest of the image: the median is the best such guess in L1.
GUESSES = {
    "black": "no machine: black",
    "mean": "no machine: mean of the training images",
    "median": "no machine: median of the training images",
}
NUM_DRAWN = 12


@dataclasses.dataclass(frozen=True)
class Config(comparison.Config):
    """Settings; each is a flag."""

    experiment = "reconstruction"

    rules: tuple[str, ...] = cli.setting(comparison.RULES, "Rules in the table.", comparison.RULES)
    hidden: int = cli.setting(196, "Hidden units, at least 1.")
    epochs: int = cli.setting(40, "Passes over the training images for every rule, at least 2.")

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
          UsageError: a value outside its range.
        """
        super().__post_init__()
        self.check_at_least(hidden=1, epochs=2)


def run(config: Config) -> dict[str, Any]:
    """Trains, repairs and draws; resumes. Returns what summary.json holds.

    Raises:
      UsageError: a folder that does not fit.
      vpf_jax.datasets.DatasetError: data that cannot be read.
      vpf_jax.train.NonFiniteObjectiveError: training has overflowed.
      experiments.workdir.Stopped: SIGTERM or SIGINT arrived; what was trained is saved.
    """
    data, workdir, summary = comparison.open_run(config)
    if summary is not None:
        return summary
    recipes = comparison.rbm_recipes((config.hidden,), config.epochs)
    rows, machines = {}, {}
    with stop_requests() as stops:
        for rule in config.rules:
            trained = comparison.train_for(config, recipes[rule], data, stops)
            rows[rule] = {"train_seconds": trained.seconds, **_errors(config, data, trained)}
            machines[rule] = trained.stack(0)[0]
    _draw(config, data, machines, workdir)
    guesses = guess_errors(data)
    return comparison.close_run(config, workdir, {"rules": rows, "guesses": guesses}, _table(config, rows, guesses))


def guess_errors(data: datasets.Dataset) -> dict[str, dict[str, float]]:
    """Mean error of each of `GUESSES` and each side."""
    train_images, grey = np.asarray(data.train.images), np.asarray(data.test.images, np.float64)
    painted = {
        "black": np.zeros(grey.shape[1]),
        "mean": train_images.mean(axis=0, dtype=np.float64),
        "median": np.median(train_images, axis=0),
    }
    masks = {side: np.asarray(reconstruction.band_mask(side, data.image_shape)) for side in SIDES}
    return {
        guess: {side: float(np.abs(grey - image)[:, mask].sum(axis=1).mean()) for side, mask in masks.items()}
        for guess, image in painted.items()
    }


def _errors(config: Config, data: datasets.Dataset, trained: comparison.Trained) -> dict[str, dict[str, list[float]]]:
    """Mean error of each protocol and side, one number per seed."""
    grey = jnp.asarray(data.test.images)
    visible = jnp.asarray(datasets.binarise(data.test.images))
    found: dict[str, dict[str, list[float]]] = {protocol: {} for protocol in PROTOCOLS}
    for number, side in enumerate(SIDES):
        mask = reconstruction.band_mask(side, data.image_shape)
        for index, seed in enumerate(config.seeds):
            machine = trained.stack(index)[0]
            for protocol, repaired in _repair(_key(seed, number), machine, visible, mask).items():
                error = jnp.mean(reconstruction.reconstruction_error(repaired, grey, mask))
                found[protocol].setdefault(side, []).append(float(error))
    return found


@jax.jit
def _repair(
    key: jax.Array, machine: vpf_jax.BoltzmannMachine, visible: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """The same corrupted images repaired under both protocols."""
    corrupt_key, paper_key, clamped_key = jax.random.split(key, 3)
    corrupted = reconstruction.corrupt(corrupt_key, visible, mask)
    return {
        "paper": reconstruction.reconstruct(paper_key, machine, corrupted, mask),
        "clamped": reconstruction.inpaint(clamped_key, machine, corrupted, mask),
    }


def _key(seed: int, number: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), number)


def _table(config: Config, rows: dict[str, dict[str, Any]], guesses: dict[str, dict[str, float]]) -> str:
    """Both protocols, mean +- standard error over the seeds, and what needs no machine."""
    without = [[GUESSES[guess], *(f"{errors[side]:.1f}" for side in SIDES), ""] for guess, errors in guesses.items()]
    text = (
        f"Mean L1 error over the corrupted band, {config.dataset}, {config.hidden} hidden units, {config.epochs} "
        f"epochs; mean +- standard error over {config.num_seeds} seeds\n"
    )
    for protocol, told in PROTOCOLS.items():
        cells = [
            [
                comparison.TITLES[rule],
                *(cell(row[protocol][side]) for side in SIDES),
                f"{row['train_seconds']:.1f} s",
            ]
            for rule, row in rows.items()
        ]
        text += f"\n{told[0].upper() + told[1:]}\n\n" + markdown_table(["rule", *SIDES, "training"], cells + without)
    return text


def _draw(config: Config, data: datasets.Dataset, machines: dict[str, vpf_jax.BoltzmannMachine], workdir: Path) -> None:
    """The first test images, each corrupted on one side in turn, and what the first seed's machines make of them."""
    shown = min(NUM_DRAWN, len(data.test.images))
    visible = jnp.asarray(datasets.binarise(data.test.images[:shown]))
    masks = np.stack([reconstruction.band_mask(SIDES[i % len(SIDES)], data.image_shape) for i in range(shown)])

    def key() -> jax.Array:
        """The same for all rules, which repair the same corruption."""
        return _key(config.seed, len(SIDES))

    corrupt_key, *_ = jax.random.split(key(), 3)
    corrupted = np.asarray(reconstruction.corrupt(corrupt_key, visible, jnp.asarray(masks)), np.float32)
    repaired = {rule: _repair(key(), machine, visible, jnp.asarray(masks)) for rule, machine in machines.items()}
    rows = {"original": data.test.images[:shown], "corrupted": corrupted}
    for protocol in PROTOCOLS:
        for rule, both in repaired.items():
            name = comparison.TITLES[rule]
            rows[name if protocol == "paper" else f"{name}, clamped"] = np.asarray(both[protocol])
    figures.save_reconstructions(
        workdir / "reconstructions.png",
        {name: np.reshape(images, (shown, *data.image_shape)) for name, images in rows.items()},
        title=f"{config.dataset}: bands of 12 pixels repaired by RBMs of {config.hidden} hidden units",
    )


if __name__ == "__main__":
    cli.start_experiment(Config, run)
