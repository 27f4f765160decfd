"""What the hidden units of an RBM learn, for several numbers of them: the RBM figures of Liu, Quek and Lin, arXiv
1711.07732, section 6.

    python -m experiments.features --dataset=mnist --workdir=runs/mnist-features

For 100, 196 and 400 hidden units: the weights as pictures (filters-N.png), the objective, the sparsity of the weights,
their squares and the pseudo-likelihood after each epoch (objective.png, weight_sparsity.png, squared_weight.png,
pseudo_log_likelihood.png, mean +- standard error over the seeds), the histogram of mean activations (activations.png),
and the accuracy of a linear probe of the hidden activations on the classes, beside one of the pixels (table.md,
summary.json). In the compositional regime the sparsity falls while the squared weight grows. A second start resumes; a
finished run says so. A quick setting, two minutes on two cores:

    python -m experiments.features --dataset=mnist_5k --epochs=5 --num_seeds=2 --hidden=36,64 --workdir=runs/quick
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

import vpf_jax
from experiments import named_recipes
from vpf_jax import figures
from vpf_jax.app import command, recipes, runs
from vpf_jax.app.tables import cell, line_over_seeds, markdown_table
from vpf_jax.evaluate import monitor
from vpf_jax.settings import setting

CURVES = {
    "objective": "objective J",
    "weight_sparsity": "weight sparsity",
    "squared_weight": "squared weight",
    "pseudo_log_likelihood": "log pseudo-likelihood, nats",
}
# Columns of the table, and their digits.
COLUMNS = {
    "weight sparsity": ("weight_sparsity", 3),
    "squared weight": ("squared_weight", 1),
    "mean activation": ("mean_activation", 3),
    "log pseudo-likelihood, nats": ("pseudo_log_likelihood", 1),
}


@dataclasses.dataclass(frozen=True)
class Config(recipes.RecipesConfig):
    """Settings; each is a flag."""

    experiment = "features"

    rule: str = setting("vpf_paper", "Rule that trains the RBMs", choices=tuple(named_recipes.RBMS))
    hidden: tuple[int, ...] = setting((100, 196, 400), "Hidden units of the RBMs", least=1)
    epochs: int = setting(200, "Passes over the training images", least=2)
    probe_images: int = setting(20_000, "Training images that the linear probe learns from at most", least=20)


def run(config: Config) -> dict[str, Any]:
    """Trains, probes and draws; resumes. Returns what summary.json holds (errors: `app.recipes`, `app.runs`)."""
    workshop = config.workshop()
    workshop.images.require_classes()
    some = {hidden: named_recipes.rbm(config.rule, hidden, config.epochs) for hidden in config.hidden}
    workshop.check(some[max(config.hidden)])
    images, probed = workshop.images, config.probe_images
    title = f"{named_recipes.RBMS[config.rule]} on {config.data_name}"
    told = f"RBMs trained by {title}, {config.epochs} epochs; {config.told_of_means}."

    def work(folder: Path, stops: list[int]) -> tuple[dict[str, Any], str]:
        models = {hidden: workshop.run(recipe, stops) for hidden, recipe in some.items()}
        rows = {str(hidden): measure(trained, images, probed) for hidden, trained in models.items()}
        pixels = probe(images.train.bits, images.test.bits, images, probed)
        draw(folder, models, images, title)
        table = f"{told} A linear probe of the pixels reads {100 * pixels:.2f} %.\n\n{tabulate(rows)}"
        return {"hidden": rows, "pixel_probe_accuracy": pixels}, table

    return runs.carry_out(config, work)


def measure(trained: recipes.Seeds, images: runs.Images, probed: int) -> dict[str, Any]:
    """Monitors at the end, mean activation, and accuracy of the linear probe: one number per seed each."""
    found: dict[str, Any] = {name: curve[-1].tolist() for name, curve in trained.curves.items()}
    found["mean_activation"], found["probe_accuracy"] = [], []
    for index in range(len(trained.seeds)):
        train, test = (first_layer(trained.stack(index), part) for part in (images.train, images.test))
        found["mean_activation"].append(float(train.mean()))
        found["probe_accuracy"].append(probe(train, test, images, probed))
    return found | {"train_seconds": trained.seconds}


def probe(train: Any, test: Any, images: runs.Images, probed: int) -> float:
    """Test accuracy of a linear probe on features of the images."""
    labels = images.train.labels[:probed], images.test.labels
    return monitor.linear_probe(train[:probed], labels[0], test, labels[1]).test_accuracy


def first_layer(stack: vpf_jax.Stack, part: runs.Placed) -> np.ndarray:
    """Activations of the first hidden layer."""
    return np.asarray(monitor.hidden_means(stack[:1], part.bits)[0])


def tabulate(rows: dict[str, dict[str, Any]]) -> str:
    cells = [
        [
            hidden,
            *(cell(row[name], digits) for name, digits in COLUMNS.values()),
            cell(100 * np.array(row["probe_accuracy"]), 2) + " %",
            f"{row['train_seconds']:.1f} s",
        ]
        for hidden, row in rows.items()
    ]
    return markdown_table(["hidden units", *COLUMNS, "linear probe", "training"], cells)


def draw(folder: Path, models: dict[int, recipes.Seeds], images: runs.Images, title: str) -> None:
    """Filters and activations of the first seed, curves of all."""
    for hidden, trained in models.items():
        filters = np.asarray(trained.stack(0)[0].weights[0]).T[:196]
        figures.save(
            folder / f"filters-{hidden}.png",
            figures.tiles(
                images.pictures(filters, signed=True),
                title=f"{title}: weights of {len(filters)} of {hidden} hidden units (red > 0, blue < 0"
                f"{images.told_of_colours})",
                signed=True,
            ),
        )
    for name, label in CURVES.items():
        lines = {
            f"{hidden} hidden units": line_over_seeds(1 + np.arange(trained.recipe.epochs), trained.curves[name])
            for hidden, trained in models.items()
        }
        figures.save(folder / f"{name}.png", figures.lines(lines, xlabel="epoch", ylabel=label, title=title))
    figures.save(
        folder / "activations.png",
        figures.histograms(
            [first_layer(trained.stack(0), images.train).mean(axis=0) for trained in models.values()],
            names=[f"{hidden} hidden" for hidden in models],
            xlabel="mean activation over the training images",
            title=title,
        ),
    )


if __name__ == "__main__":
    command.start(Config, run)
