"""Repair of corrupted images by RBMs, one table over learning rules: Table 1 of Liu, Quek and Lin, arXiv 1711.07732.

    python -m experiments.repair_table --dataset=mnist --workdir=runs/mnist-reconstruction

Every rule trains the same RBM in the same loop from the same seeds. A band of 12 rows or columns of each test image is
corrupted and repaired under two protocols, the paper's and the stricter one that holds the uncorrupted pixels
(`vpf_jax.evaluate.reconstruction`); the error is the L1 distance to the grey original over the band, mean over the test
images. Below the rules stands what a band scores that is the same for all images: L1 is kind to pale and to dark bands.
Writes table.md, summary.json and reconstructions.png into --workdir, and the trained machines into --models, which
other experiments can share. A second start resumes; a finished run says so. A quick setting, two minutes on two cores:

    python -m experiments.repair_table --dataset=mnist_5k --epochs=12 --num_seeds=2 --hidden=64 --workdir=runs/quick
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vpf_jax
from experiments import comparison, repair
from experiments.repair import GUESSES, PROTOCOLS, SIDES
from vpf_jax import figures
from vpf_jax.app import command as cli
from vpf_jax.app import runs
from vpf_jax.app.folder import stop_requests
from vpf_jax.app.tables import cell, markdown_table
from vpf_jax.data import Dataset, binarise
from vpf_jax.evaluate import reconstruction

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
      vpf_jax.data.DatasetError: data that cannot be read.
      vpf_jax.train.NonFiniteObjectiveError: training has overflowed.
      vpf_jax.app.folder.Stopped: SIGTERM or SIGINT arrived; what was trained is saved.
    """
    return runs.carry_out(config, _run)


def _run(config: Config, data: Dataset, workdir: Path) -> tuple[dict[str, Any], str]:
    """What is found, and the table."""
    recipes = comparison.rbm_recipes((config.hidden,), config.epochs)
    rows, machines = {}, {}
    with stop_requests() as stops:
        for rule in config.rules:
            trained = comparison.train_for(config, recipes[rule], data, stops)
            rows[rule] = {"train_seconds": trained.seconds, **repair.errors(trained, config.seeds, data)}
            machines[rule] = trained.stack(0)[0]
    _draw(config, data, machines, workdir)
    guesses = repair.guess_errors(data)
    return {"rules": rows, "guesses": guesses}, _table(config, rows, guesses)


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


def _draw(config: Config, data: Dataset, machines: dict[str, vpf_jax.BoltzmannMachine], workdir: Path) -> None:
    """The first test images, each corrupted on one side in turn, and what the first seed's machines make of them."""
    shown = min(NUM_DRAWN, len(data.test.images))
    visible = jnp.asarray(binarise(data.test.images[:shown]))
    masks = np.stack([reconstruction.band_mask(SIDES[i % len(SIDES)], data.image_shape) for i in range(shown)])

    def key() -> jax.Array:
        """The same for all rules, which repair the same corruption."""
        return repair.key_of(config.seed, len(SIDES))

    corrupt_key, *_ = jax.random.split(key(), 3)
    corrupted = np.asarray(reconstruction.corrupt(corrupt_key, visible, jnp.asarray(masks)), np.float32)
    repaired = {rule: repair.both(key(), machine, visible, jnp.asarray(masks)) for rule, machine in machines.items()}
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
