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

import jax
import jax.numpy as jnp
import numpy as np

import vpf_jax
from experiments import comparison
from vpf_jax import figures
from vpf_jax.app import command as cli
from vpf_jax.app import runs
from vpf_jax.app.folder import UsageError, stop_requests
from vpf_jax.app.tables import cell, markdown_table
from vpf_jax.data import Dataset, binarise
from vpf_jax.energy import weighted_input
from vpf_jax.evaluate import monitor

CURVES = {
    "objective": "objective J",
    "weight_sparsity": "weight sparsity",
    "squared_weight": "squared weight",
    "pseudo_log_likelihood": "log pseudo-likelihood, nats",
}


@dataclasses.dataclass(frozen=True)
class Config(comparison.Config):
    """Settings; each is a flag."""

    experiment = "features"

    rule: str = cli.setting("vpf_paper", "Rule that trains the RBMs.", comparison.RULES)
    hidden: tuple[int, ...] = cli.setting((100, 196, 400), "Hidden units of the RBMs, positive integers.")
    epochs: int = cli.setting(200, "Passes over the training images, at least 2.")
    probe_images: int = cli.setting(20_000, "Training images that the linear probe learns from, at least 20.")

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
          UsageError: a value outside its range.
        """
        super().__post_init__()
        if not self.hidden or min(self.hidden) < 1 or len(set(self.hidden)) < len(self.hidden):
            given = ",".join(map(str, self.hidden))
            raise UsageError(f"got --hidden={given}; it takes distinct positive integers, as in 100,196,400")
        self.check_at_least(epochs=2, probe_images=20)


def run(config: Config) -> dict[str, Any]:
    """Trains, probes and draws; resumes. Returns what summary.json holds.

    Raises:
      UsageError: a folder that does not fit.
      vpf_jax.data.DatasetError: data that cannot be read.
      vpf_jax.train.NonFiniteObjectiveError: training has overflowed.
      vpf_jax.app.folder.Stopped: SIGTERM or SIGINT arrived; what was trained is saved.
    """
    return runs.carry_out(config, _run)


def _run(config: Config, data: Dataset, workdir: Path) -> tuple[dict[str, Any], str]:
    """What is found, and the table."""
    models = {}
    with stop_requests() as stops:
        for hidden in config.hidden:
            recipe = comparison.rbm_recipes((hidden,), config.epochs)[config.rule]
            models[hidden] = comparison.train_for(config, recipe, data, stops)
    visible = jnp.asarray(binarise(data.train.images))
    rows = {str(hidden): _measure(config, data, trained, visible) for hidden, trained in models.items()}
    pixels = monitor.linear_probe(
        binarise(data.train.images[: config.probe_images]),
        data.train.labels[: config.probe_images],
        binarise(data.test.images),
        data.test.labels,
    )
    _draw(config, data, models, visible, workdir)
    summary = {"hidden": rows, "pixel_probe_accuracy": pixels.test_accuracy}
    return summary, _table(config, rows, pixels.test_accuracy)


def _measure(config: Config, data: Dataset, trained: comparison.Trained, visible: jax.Array) -> dict[str, Any]:
    """Monitors at the end, mean activation, and accuracy of the linear probe: one number per seed each."""
    found: dict[str, Any] = {name: curve[-1].tolist() for name, curve in trained.curves.items()}
    found["mean_activation"], found["probe_accuracy"] = [], []
    test = jnp.asarray(binarise(data.test.images))
    for index in range(trained.num_seeds):
        machine = trained.stack(index)[0]
        features = _first_layer(machine, visible)
        found["mean_activation"].append(float(features.mean()))
        probe = monitor.linear_probe(
            features[: config.probe_images],
            data.train.labels[: config.probe_images],
            _first_layer(machine, test),
            data.test.labels,
        )
        found["probe_accuracy"].append(probe.test_accuracy)
    return found | {"train_seconds": trained.seconds}


@jax.jit
def hidden_means(stack: vpf_jax.Stack, visible: jax.Array) -> tuple[jax.Array, ...]:
    """Feed-forward activations of two-layer machines, one [batch, n_l] per hidden layer.

    Each is computed from the activations below it. Nothing is sampled; inputs from the own layer are left out.
    """
    found = []
    for machine in stack:
        bias = machine.biases[1]
        visible = jax.nn.sigmoid(weighted_input(visible, machine.weights[0], bias.dtype) + bias[None])
        found.append(visible)
    return tuple(found)


def _first_layer(machine: vpf_jax.BoltzmannMachine, visible: jax.Array) -> np.ndarray:
    (means,) = hidden_means((machine,), visible)
    return np.asarray(means)


def _table(config: Config, rows: dict[str, dict[str, Any]], pixels: float) -> str:
    columns = {
        "weight sparsity": ("weight_sparsity", 3),
        "squared weight": ("squared_weight", 1),
        "mean activation": ("mean_activation", 3),
        "log pseudo-likelihood, nats": ("pseudo_log_likelihood", 1),
    }
    cells = [
        [
            hidden,
            *(cell(row[name], digits) for name, digits in columns.values()),
            cell(100 * np.array(row["probe_accuracy"]), 2) + " %",
            f"{row['train_seconds']:.1f} s",
        ]
        for hidden, row in rows.items()
    ]
    return (
        f"RBMs trained by {comparison.TITLES[config.rule]} on {config.dataset}, {config.epochs} epochs; mean +- "
        f"standard error over {config.num_seeds} seeds. A linear probe of the pixels reads {100 * pixels:.2f} %.\n\n"
        + markdown_table(["hidden units", *columns, "linear probe", "training"], cells)
    )


def _draw(
    config: Config,
    data: Dataset,
    models: dict[int, comparison.Trained],
    visible: jax.Array,
    workdir: Path,
) -> None:
    """Filters and activations of the first seed, curves of all."""
    told = f"{comparison.TITLES[config.rule]} on {config.dataset}"
    for hidden, trained in models.items():
        filters = np.asarray(trained.stack(0)[0].weights[0]).T[:196]
        figures.save_tiles(
            workdir / f"filters-{hidden}.png",
            filters.reshape(-1, *data.image_shape),
            title=f"{told}: weights of {len(filters)} of {hidden} hidden units (red > 0, blue < 0)",
            signed=True,
        )
    for name, label in CURVES.items():
        lines = {}
        for hidden, trained in models.items():
            curve = trained.curves[name]
            several = trained.num_seeds > 1
            errors = curve.std(axis=1, ddof=1) / np.sqrt(trained.num_seeds) if several else None
            lines[f"{hidden} hidden units"] = (np.arange(1, len(curve) + 1), curve.mean(axis=1), errors)
        figures.save_lines(workdir / f"{name}.png", lines, xlabel="epoch", ylabel=label, title=told)
    figures.save_histograms(
        workdir / "activations.png",
        [_first_layer(trained.stack(0)[0], visible).mean(axis=0) for trained in models.values()],
        names=[f"{hidden} hidden" for hidden in models],
        xlabel="mean activation over the training images",
        title=told,
    )


if __name__ == "__main__":
    cli.start_experiment(Config, run)
