"""Repair of corrupted images by RBMs, one table over learning rules: Table 1 of Liu, Quek and Lin, arXiv 1711.07732.

    python -m experiments.repair_table --dataset=mnist --workdir=runs/mnist-repair

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

import jax.numpy as jnp

import vpf_jax
from experiments import named_recipes
from vpf_jax import figures
from vpf_jax.app import command, recipes, runs
from vpf_jax.app.keys import key_for
from vpf_jax.app.tables import cell, markdown_table
from vpf_jax.evaluate import reconstruction
from vpf_jax.evaluate.reconstruction import GUESSES, PROTOCOLS, SIDES
from vpf_jax.settings import setting

NUM_DRAWN = 12


@dataclasses.dataclass(frozen=True)
class Config(recipes.RecipesConfig):
    """Settings; each is a flag."""

    experiment = "repair_table"

    rules: tuple[str, ...] = setting(tuple(named_recipes.RBMS), "Rules in the table", choices=tuple(named_recipes.RBMS))
    hidden: int = setting(196, "Hidden units", least=1)
    epochs: int = setting(40, "Passes over the training images for every rule", least=2)


def run(config: Config) -> dict[str, Any]:
    """Trains, repairs and draws; resumes. Returns what summary.json holds (errors: `app.recipes`, `app.runs`)."""
    workshop = config.workshop()
    some = {rule: named_recipes.rbm(rule, config.hidden, config.epochs) for rule in config.rules}
    workshop.check(some[config.rules[0]])
    images = workshop.images
    images.require_images()
    told = f"{config.data_name}, {config.hidden} hidden units, {config.epochs} epochs"

    def work(folder: Path, stops: list[int]) -> tuple[dict[str, Any], str]:
        rows, machines = {}, {}
        for recipe in some.values():
            trained = workshop.run(recipe, stops)
            rows[recipe.title] = {
                "train_seconds": trained.seconds,
                **named_recipes.repair_errors_of_seeds(trained, images),
            }
            machines[recipe.title] = trained.stack(0)[0]
        draw(folder, workshop, machines, told)
        guesses = reconstruction.guess_errors(images.train.grey, images.test.grey, images.image_shape)
        by_rule = dict(zip(some, rows.values(), strict=True))
        return {"rules": by_rule, "guesses": guesses}, tabulate(rows, guesses, f"{told}; {config.told_of_means}")

    return runs.carry_out(config, work)


def tabulate(rows: dict[str, dict[str, Any]], guesses: dict[str, dict[str, float]], told: str) -> str:
    """Both protocols, mean +- standard error over the seeds, and what needs no machine."""
    without = [[GUESSES[guess], *(f"{errors[side]:.1f}" for side in SIDES), ""] for guess, errors in guesses.items()]
    text = f"Mean L1 error over the corrupted band, {told}\n"
    for protocol, name in PROTOCOLS.items():
        cells = [
            [title, *(cell(row[protocol][side]) for side in SIDES), f"{row['train_seconds']:.1f} s"]
            for title, row in rows.items()
        ]
        text += f"\n{name[0].upper() + name[1:]}\n\n" + markdown_table(["rule", *SIDES, "training"], cells + without)
    return text


def draw(folder: Path, workshop: recipes.Workshop, machines: dict[str, vpf_jax.BoltzmannMachine], told: str) -> None:
    """The first test images, each corrupted on one side in turn, and what the first seed's machines make of them."""
    test, shape = workshop.images.test, workshop.images.image_shape
    shown = min(NUM_DRAWN, len(test))
    masks = jnp.stack([reconstruction.band_mask(SIDES[i % len(SIDES)], shape) for i in range(shown)])
    # The same key for all rules, which repair the same corruption.
    repaired = {
        title: reconstruction.repair(key_for(workshop.seeds[0], "repaired pictures"), machine, test.bits[:shown], masks)
        for title, machine in machines.items()
    }
    rows = {"original": test.grey[:shown], "corrupted": next(iter(repaired.values()))["corrupted"]}
    for protocol, ending in (("paper", ""), ("clamped", ", clamped")):
        rows |= {f"{title}{ending}": found[protocol] for title, found in repaired.items()}
    figures.save(
        folder / "reconstructions.png",
        figures.reconstructions(
            {name: workshop.images.pictures(some) for name, some in rows.items()},
            title=f"Bands of 12 pixels repaired by RBMs: {told}",
        ),
    )


if __name__ == "__main__":
    command.start(Config, run)
