"""Learning without symmetric weights: RBMs whose forward and backward matrices learn by their own halves of the rule.

    python -m experiments.directed --dataset=mnist --workdir=runs/mnist-directed

The directed rule of Liu, Quek and Lin, arXiv 1711.07732, section 4, from equal and from unequal starts, beside the
symmetric rule, with the E-step once per epoch and before each step. Measured: how the two matrices align (the cosine
between them), how much the forward one has learnt (its cosine with itself at the start, its size), repair of corrupted
images, and Parzen scores. Writes table.md, summary.json and alignment.png into --workdir, and the trained machines into
--models. A second start resumes; a finished run says so. A quick setting, a minute on two cores:

    python -m experiments.directed --dataset=mnist_5k --epochs=6 --num_seeds=2 --hidden=64 --num_samples=1000 \
        --workdir=runs/quick

What is found is in docs/results/directed.md. Not here: the timing of spikes (`experiments.spike_timing`).
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments import named_recipes
from vpf_jax.app import command, recipes, runs
from vpf_jax.app.keys import key_for
from vpf_jax.app.tables import cell, markdown_table
from vpf_jax.couplings import dense
from vpf_jax.evaluate import generation, reconstruction
from vpf_jax.evaluate.reconstruction import GUESSES, PROTOCOLS, SIDES
from vpf_jax.settings import setting

# Generated images behind a Parzen score: the paper's three Gibbs steps from the prior.
SAMPLER = generation.Sampler("prior", 3, 3)


@dataclasses.dataclass(frozen=True)
class Config(recipes.RecipesConfig):
    """Settings; each is a flag."""

    experiment = "directed"

    hidden: int = setting(196, "Hidden units", least=1)
    epochs: int = setting(40, "Passes over the training images", least=1)
    variants: tuple[str, ...] = setting(
        tuple(named_recipes.DIRECTED), "What is compared", choices=tuple(named_recipes.DIRECTED)
    )
    num_samples: int = setting(10_000, "Generated images behind a Parzen score", least=1)


def run(config: Config) -> dict[str, Any]:
    """Trains, measures and draws; resumes. Returns what summary.json holds (errors: `app.recipes`, `app.runs`)."""
    workshop = config.workshop()
    images, num_samples = workshop.images, config.num_samples
    images.require_images()
    runs.check_memory("num_samples", num_samples, 8 * num_samples * images.num_visible)
    some = {name: named_recipes.directed(name, config.hidden, config.epochs) for name in config.variants}
    workshop.check(some[config.variants[0]])
    told = (
        f"{config.data_name}, RBM of {config.hidden} hidden units, {config.epochs} epochs; {config.told_of_means}. "
        "F, B: forward and backward weights, their sizes Frobenius norms. Parzen: of the grey test images under "
        f"{num_samples} generated means, 3 Gibbs steps from the prior. Then the L1 error over a repaired band, by the "
        "paper's protocol and clamped.\n\n"
    )

    def work(folder: Path, stops: list[int]) -> tuple[dict[str, Any], str]:
        rows, aligning = {}, []
        for name, recipe in some.items():
            trained = workshop.run(recipe, stops)
            rows[name] = measure(trained, images, num_samples)
            if recipe.backward_start != "tied":
                aligning.append(trained)
        if aligning:
            named_recipes.draw_alignment(folder / "alignment.png", aligning, f"Directed learning on {images.name}")
        guesses = reconstruction.guess_errors(images.train.grey, images.test.grey, images.image_shape)
        return {"variants": rows, "guesses": guesses}, told + tabulate(rows, guesses)

    return runs.carry_out(config, work)


def measure(trained: recipes.Seeds, images: runs.Images, num_samples: int) -> dict[str, Any]:
    """One number per seed of everything in the table."""
    start = jax.vmap(dense)(trained.initial_stacks[0].weights[0])
    found: dict[str, Any] = {"alignment": trained.alignment()[-1].tolist()}
    for index, seed in enumerate(trained.seeds):
        (machine,) = stack = trained.stack(index)
        forward, backward, before = dense(machine.weights[0]), dense(machine.downward[0]), start[index]
        prior_key, sample_key = jax.random.split(key_for(seed, "generated images of an RBM"))
        prior = generation.activations(prior_key, stack, images.train.bits)[-1]
        centres = generation.generate(sample_key, stack, prior, SAMPLER, num_samples)
        scores = images.score(centres)
        row = {
            "kept": float(jnp.vdot(forward, before) / jnp.linalg.norm(forward) / jnp.linalg.norm(before)),
            "forward_norm": float(jnp.linalg.norm(forward)),
            "backward_norm": float(jnp.linalg.norm(backward)),
            "parzen_prior": scores["mean"],
            "parzen_sigma": scores["sigma"],
        }
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return found | {"train_seconds": trained.seconds, **named_recipes.repair_errors_of_seeds(trained, images)}


def tabulate(rows: dict[str, dict[str, Any]], guesses: dict[str, dict[str, float]]) -> str:
    header = [
        "weights, E-step",
        "cosine(F, B)",
        "cosine(F, F at the start)",
        "size of F",
        "size of B",
        "Parzen",
        *(f"{side}{ending}" for ending in ("", ", clamped") for side in SIDES),
    ]
    digits = {"alignment": 3, "kept": 3, "forward_norm": 1, "backward_norm": 1, "parzen_prior": 1}
    cells = [
        [
            named_recipes.DIRECTED[name],
            *(cell(row[column], number) for column, number in digits.items()),
            *(cell(row[protocol][side]) for protocol in PROTOCOLS for side in SIDES),
        ]
        for name, row in rows.items()
    ]
    without = [
        [GUESSES[guess], *[""] * len(digits), *(f"{errors[side]:.1f}" for _ in PROTOCOLS for side in SIDES)]
        for guess, errors in guesses.items()
    ]
    return markdown_table(header, cells + without)


if __name__ == "__main__":
    command.start(Config, run)
