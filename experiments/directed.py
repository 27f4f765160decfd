"""Learning without symmetric weights: RBMs whose forward and backward matrices learn by their own halves of the rule.

    python -m experiments.directed --dataset=mnist --workdir=runs/mnist-directed

The directed rule of Liu, Quek and Lin, arXiv 1711.07732, section 4, from equal and from unequal starts, beside the
symmetric rule, with the E-step once per epoch and before each step. Measured: how the two matrices align (the cosine
between them), how much the forward one has learnt (its cosine with itself at the start, its size), repair of corrupted
images, and Parzen scores. Writes table.md, summary.json and alignment.png into --workdir, and the trained machines into
--models. A second start resumes; a finished run says so. A quick setting, a minute on two cores:

    python -m experiments.directed --dataset=mnist_5k --epochs=6 --num_seeds=2 --hidden=64 --num_samples=1000 \
        --workdir=runs/quick

What is found is in the README. Not here: the timing of spikes (`experiments.spike_timing`).
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import comparison, generation, repair
from vpf_jax import figures
from vpf_jax.app import command as cli
from vpf_jax.app import runs
from vpf_jax.app.folder import stop_requests
from vpf_jax.app.tables import cell, markdown_table, mean_and_error
from vpf_jax.data import Dataset
from vpf_jax.evaluate.monitor import alignment

# Generated images behind a Parzen score: the paper's three Gibbs steps from the prior.
SAMPLER = generation.Sampler("prior", 3, 3)


@dataclasses.dataclass(frozen=True)
class Config(comparison.Config):
    """Settings; each is a flag."""

    experiment = "directed"

    hidden: int = cli.setting(196, "Hidden units, at least 1.")
    epochs: int = cli.setting(40, "Passes over the training images, at least 1.")
    variants: tuple[str, ...] = cli.setting(
        tuple(comparison.DIRECTED_TITLES), "What is compared.", tuple(comparison.DIRECTED_TITLES)
    )
    num_samples: int = cli.setting(10_000, "Generated images behind a Parzen score, at least 1.")

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
          UsageError: a value outside its range.
        """
        super().__post_init__()
        self.check_at_least(hidden=1, epochs=1, num_samples=1)


def run(config: Config) -> dict[str, Any]:
    """Trains, measures and draws; resumes. Returns what summary.json holds.

    Raises:
      UsageError: a folder that does not fit.
      vpf_jax.data.DatasetError: data that cannot be read.
      vpf_jax.train.NonFiniteObjectiveError: training has overflowed.
      vpf_jax.app.folder.Stopped: SIGTERM or SIGINT arrived; what was trained is saved.
    """
    return runs.carry_out(config, _run)


def _run(config: Config, data: Dataset, workdir: Path) -> tuple[dict[str, Any], str]:
    """What is found, and the table."""
    recipes = comparison.directed_recipes((config.hidden,), config.epochs)
    rows, curves = {}, {}
    with stop_requests() as stops:
        for name in config.variants:
            recipe = recipes[name]
            trained = comparison.train_for(config, recipe, data, stops)
            rows[name] = _measure(config, data, recipe, trained)
            if recipe.backward_start != "tied":
                curves[name] = alignment_curve(config, recipe, data, trained)
    if curves:
        save_alignment(workdir / "alignment.png", curves, title=f"Directed learning on {config.dataset}")
    guesses = repair.guess_errors(data)
    return {"variants": rows, "guesses": guesses}, _table(config, rows, guesses)


def alignment_curve(
    config: comparison.Config, recipe: comparison.Recipe, data: Dataset, trained: comparison.Trained
) -> np.ndarray:
    """The cosine between forward and backward weights at the start and after each epoch, [epochs + 1, num_seeds]."""
    start = comparison.initial_state(recipe, data.train.images.shape[1], config.seeds)
    first = jax.vmap(lambda stack: alignment(stack[0])[0])(start.stack)
    return np.concatenate([np.asarray(first)[None], trained.curves["alignment"]])


def save_alignment(path: Any, curves: dict[str, np.ndarray], title: str) -> None:
    """Draws curves of `alignment_curve` under the names of their models."""
    lines = {}
    for name, curve in curves.items():
        means, errors = zip(*(mean_and_error(values) for values in curve), strict=True)
        shown = None if errors[0] is None else np.array(errors, float)
        lines[comparison.DIRECTED_TITLES[name]] = (np.arange(len(curve)), means, shown)
    figures.save_lines(path, lines, xlabel="epoch", ylabel="cosine of forward and backward weights", title=title)


def _measure(config: Config, data: Dataset, recipe: comparison.Recipe, trained: comparison.Trained) -> dict[str, Any]:
    """One number per seed of everything in the table."""
    start = comparison.initial_state(recipe, data.train.images.shape[1], config.seeds)
    found: dict[str, Any] = {
        name: [] for name in ("alignment", "kept", "forward_norm", "backward_norm", "parzen_prior", "parzen_sigma")
    }
    for index, seed in enumerate(config.seeds):
        stack = trained.stack(index)
        (machine,) = stack
        forward, backward = machine.weights[0], machine.downward[0]
        before = start.stack[0].weights[0][index]
        found["alignment"].append(float(alignment(machine)[0]))
        found["kept"].append(float(jnp.vdot(forward, before) / jnp.linalg.norm(forward) / jnp.linalg.norm(before)))
        found["forward_norm"].append(float(jnp.linalg.norm(forward)))
        found["backward_norm"].append(float(jnp.linalg.norm(backward)))
        prior_key, sample_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2))
        prior = generation.prior_of(prior_key, stack, data)
        scores = generation.parzen_scores(
            generation.generate(sample_key, stack, prior, SAMPLER, config.num_samples), data
        )
        found["parzen_prior"].append(scores["mean"])
        found["parzen_sigma"].append(scores["sigma"])
    return found | {"train_seconds": trained.seconds, **repair.errors(trained, config.seeds, data)}


def _table(config: Config, rows: dict[str, dict[str, Any]], guesses: dict[str, dict[str, float]]) -> str:
    header = [
        "weights, E-step",
        "cosine(F, B)",
        "cosine(F, F at the start)",
        "size of F",
        "size of B",
        "Parzen",
        *(f"{side}{told}" for told in ("", ", clamped") for side in repair.SIDES),
    ]
    cells = [
        [
            comparison.DIRECTED_TITLES[name],
            cell(row["alignment"], 3),
            cell(row["kept"], 3),
            cell(row["forward_norm"], 1),
            cell(row["backward_norm"], 1),
            cell(row["parzen_prior"]),
            *(cell(row[protocol][side]) for protocol in repair.PROTOCOLS for side in repair.SIDES),
        ]
        for name, row in rows.items()
    ]
    without = [
        [repair.GUESSES[guess], *[""] * 5, *(f"{errors[side]:.1f}" for _ in repair.PROTOCOLS for side in repair.SIDES)]
        for guess, errors in guesses.items()
    ]
    return (
        f"{config.dataset}, RBM of {config.hidden} hidden units, {config.epochs} epochs; mean +- standard error over "
        f"{config.num_seeds} seeds. F, B: forward and backward weights, their sizes Frobenius norms. Parzen: of the "
        f"grey test images under {config.num_samples} generated means, 3 Gibbs steps from the prior. Then the L1 error "
        "over a repaired band, by the paper's protocol and clamped.\n\n" + markdown_table(header, cells + without)
    )


if __name__ == "__main__":
    cli.start_experiment(Config, run)
