"""Digits classified by equilibrium propagation: the MNIST experiment of Scellier and Bengio, arXiv 1602.05179.

    python -m experiments.mnist_equilibrium --preset=1 --dataset=mnist --workdir=runs/equilibrium

The presets 1, 2 and 3 are the paper's networks of as many hidden layers, centred is a network of sigmoid units with
centred estimates (Laborieux and others, arXiv 2006.03824). Writes into --workdir: metrics.csv (one row per epoch),
table.md, summary.json, checkpoints/, errors.png, curves.png, confusion.png (rows: true digit) and filters.png (what the
input weights have learnt). All errors are of free phases:

    train_error             while training, from the states that the epoch learns from, as in the paper
    test_error_from_zeros   of a free phase from zeros
    test_error_persistent   of states that persist from epoch to epoch as the training examples' do, without any nudge:
                            how the paper's authors measure errors on held-out images; left out where the training
                            examples' states do not persist

The relaxation has several fixed points, so the last two differ. The residual is how far a unit still moves in the last
step. The 10,000 validation images are not used. A second start resumes; a finished run says so. A quick setting, under
a minute on two cores:

    python -m experiments.mnist_equilibrium --preset=1 --dataset=mnist_5k --epochs=3 --workdir=runs/quick
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vpf_jax import figures
from vpf_jax.app import command as cli
from vpf_jax.app import runs
from vpf_jax.app.folder import Growth, MetricsFile, UsageError, stop_requests
from vpf_jax.app.tables import markdown_table
from vpf_jax.data import Dataset
from vpf_jax.related import equilibrium_propagation as ep

ERRORS = {
    "train_error": "training images, while training",
    "test_error_from_zeros": "test images, from zeros",
    "test_error_persistent": "test images, persistent states",
}
COLUMNS = (*ERRORS, "cost", "residual", "largest_residual", "test_residual_from_zeros")
NUM_CLASSES = 10
# Flags that replace settings of the preset.
OVERRIDES = ("batch_size", "free_steps", "nudged_steps", "beta", "estimator")


@dataclasses.dataclass(frozen=True)
class Config(runs.Config):
    """Settings; each is a flag. What is left out is the preset's."""

    experiment = "equilibrium"

    preset: str = cli.setting("1", "Network and training.", tuple(ep.PRESETS))
    hidden: tuple[int, ...] = cli.setting(
        (),
        "Units of each hidden layer, as many layers as the preset has; any number where its rates are equal (centred).",
    )
    epochs: int | None = cli.setting(None, "Passes over the training images, at least 1.")
    batch_size: int | None = cli.setting(None, "Examples per step, at least 1.")
    free_steps: int | None = cli.setting(None, "Steps of the free phase, at least 1.")
    nudged_steps: int | None = cli.setting(None, "Steps of a nudged phase, at least 1.")
    beta: float | None = cli.setting(None, "Strength of the nudge, not 0.")
    estimator: str | None = cli.setting(None, "Of the gradient: one_sided or centred.")
    rate_factor: float = cli.setting(1.0, "Factor on the learning rates, positive.")
    evaluate_every: int = cli.setting(1, "Epochs between test errors, at least 1; the end has them too.")

    def __post_init__(self) -> None:
        """Fills in the folder, and checks the settings.

        Raises:
          UsageError: a value outside its range.
        """
        if self.preset not in ep.PRESETS:
            raise UsageError(f"got --preset={self.preset}; it takes one of {', '.join(ep.PRESETS)}")
        object.__setattr__(self, "workdir", self.workdir or f"runs/{self.dataset}-{self.experiment}-{self.preset}")
        super().__post_init__()
        self.check_at_least(evaluate_every=1)
        hidden, _, settings = ep.PRESETS[self.preset]
        fixed = len(set(settings.learning_rates)) > 1
        if self.hidden and (min(self.hidden) < 1 or (fixed and len(self.hidden) != len(hidden))):
            given, allowed = ",".join(map(str, self.hidden)), f"{len(hidden)} " if fixed else ""
            raise UsageError(f"got --hidden={given}; with --preset={self.preset} it takes {allowed}positive integers")
        if not 0 < self.rate_factor < np.inf:
            raise UsageError(f"got --rate_factor={self.rate_factor}; it takes a positive finite number")
        try:
            plan = self.plan()
        except ValueError as error:
            raise UsageError(str(error).replace("got ", "got --", 1)) from None
        if plan.epochs < 1:
            raise UsageError(f"got --epochs={self.epochs}; it takes an integer of at least 1")

    def growth(self) -> dict[str, Growth]:
        return {"epochs": Growth(ep.PRESETS[self.preset].epochs)}

    def plan(self) -> ep.EquilibriumPreset:
        """The preset as the flags change it.

        Raises:
          ValueError: a value outside its range.
        """
        preset = ep.PRESETS[self.preset]
        given = {name: value for name in OVERRIDES if (value := getattr(self, name)) is not None}
        hidden = self.hidden or preset.hidden
        own = preset.config.learning_rates
        # Presets of equal rates have them for any number of layers.
        rates = own if len(own) == len(hidden) + 1 else own[:1] * (len(hidden) + 1)
        rates = tuple(self.rate_factor * rate for rate in rates)
        return ep.EquilibriumPreset(
            hidden=hidden,
            epochs=preset.epochs if self.epochs is None else self.epochs,
            config=dataclasses.replace(preset.config, learning_rates=rates, **given),
        )


def run(config: Config) -> dict[str, Any]:
    """Trains, tests and draws; resumes. Returns what summary.json holds.

    Raises:
      UsageError: a folder that does not fit, or a batch of more images than there are.
      vpf_jax.data.DatasetError: data that cannot be read.
      vpf_jax.train.NonFiniteObjectiveError: training has overflowed.
      vpf_jax.app.folder.Stopped: SIGTERM or SIGINT arrived; what was trained is saved.
    """
    return runs.carry_out(config, _run, functools.partial(_check_start, config))


def _run(config: Config, data: Dataset, workdir: Path) -> tuple[dict[str, Any], str]:
    """What is found, and the table."""
    _, epochs, settings = config.plan()
    with stop_requests() as stops:
        trained = learn(config, data, workdir, stops)
    network = trained.state["train"].network
    free, _ = ep.free_phase(network, jnp.asarray(data.test.images), config=settings)
    confusion = np.zeros((NUM_CLASSES, NUM_CLASSES), int)
    np.add.at(confusion, (data.test.labels, np.asarray(ep.predict(network, free))), 1)
    _draw(config, data, network, trained.metrics, confusion, workdir)
    found = {
        "sizes": list(network.sizes),
        "settings": dataclasses.asdict(settings),
        "epochs": epochs,
        **{name: values[-1] for name in COLUMNS if (values := trained.metrics.column(name)[1])},
        "confusion": confusion.tolist(),
        "seconds_per_epoch": trained.seconds / epochs,
    }
    return found, _table(config, found)


def learn(config: Config, data: Dataset, workdir: Path, stops: list[int]) -> runs.Trained:
    """Runs the epochs that are left; the state holds the states of the test images beside those of training."""
    _, epochs, settings = config.plan()
    images, labels, test_images, test_labels = (
        jnp.asarray(part) for part in (data.train.images, data.train.labels, data.test.images, data.test.labels)
    )
    train = _initial_state(config, data)
    tested = tuple(jnp.zeros((len(test_labels), p.shape[1]), p.dtype) for p in train.particles)

    def due(epoch: int) -> bool:
        return epoch % config.evaluate_every == 0 or epoch == epochs

    def wrong(network: ep.EquilibriumNetwork, states: ep.Layers) -> jax.Array:
        return jnp.mean(ep.predict(network, states) != test_labels)

    def run_epoch(state: dict[str, Any], epoch: int) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        train, metrics = ep.train_epoch(state["train"], images, labels, config=settings)
        scalars = {
            "train_error": metrics.error,
            "cost": metrics.cost,
            "residual": metrics.residual,
            "largest_residual": metrics.largest_residual,
        }
        tested = state["tested"]
        if tested and due(epoch):
            tested, _ = ep.free_phase(train.network, test_images, tested, config=settings)
            scalars["test_error_persistent"] = wrong(train.network, tested)
        return {"train": train, "tested": tested}, scalars

    def measure(state: dict[str, Any], epoch: int) -> dict[str, float]:
        if not due(epoch):
            return {}
        network = state["train"].network
        free, residual = ep.free_phase(network, test_images, config=settings)
        return {
            "test_error_from_zeros": float(wrong(network, free)),
            "test_residual_from_zeros": float(jnp.mean(residual)),
        }

    return runs.train_epochs(
        workdir,
        {"train": train, "tested": tested},
        run_epoch,
        epochs=epochs,
        columns=COLUMNS,
        checkpoint_every=config.checkpoint_every,
        stops=stops,
        measure=measure,
    )


def _check_start(config: Config, data: Dataset) -> None:
    """Refuses what does not fit the data, without computing anything."""
    jax.eval_shape(lambda: _initial_state(config, data))


def _initial_state(config: Config, data: Dataset) -> ep.EquilibriumState:
    """The state before the first epoch.

    Raises:
      UsageError: a batch of more images than there are.
    """
    try:
        return ep.init_state(_key(config, 1), _untrained(config, data), len(data.train.labels), config.plan().config)
    except ValueError as error:
        raise UsageError(str(error).replace("got ", "got --", 1)) from None


def _key(config: Config, use: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.seed), use)


def _untrained(config: Config, data: Dataset) -> ep.EquilibriumNetwork:
    return ep.init_network(_key(config, 0), (data.train.images.shape[1], *config.plan().hidden, NUM_CLASSES))


def _table(config: Config, found: dict[str, Any]) -> str:
    names = {name: told for name, told in ERRORS.items() if name in found}
    rows = [[told, f"{100 * found[name]:.2f} %"] for name, told in names.items()]
    return (
        f"{_told(config)}, {found['epochs']} epochs, {found['seconds_per_epoch']:.2f} s each. In the last free step a "
        f"unit moved by at most {found['residual']:.1e} (mean over the training images of the last epoch), "
        f"{found['test_residual_from_zeros']:.1e} (test images, from zeros).\n\n"
        + markdown_table(["images", "error"], rows)
    )


def _told(config: Config) -> str:
    sizes = "-".join(map(str, config.plan().hidden))
    return f"Equilibrium propagation on {config.dataset}, preset {config.preset}, hidden units {sizes}"


def _draw(
    config: Config,
    data: Dataset,
    network: ep.EquilibriumNetwork,
    metrics: MetricsFile,
    confusion: np.ndarray,
    workdir: Path,
) -> None:
    told = _told(config)
    lines = {}
    for name, label in ERRORS.items():
        epochs, values = metrics.column(name)
        if epochs:
            lines[label] = epochs, 100 * np.array(values), None
    figures.save_lines(workdir / "errors.png", lines, xlabel="epoch", ylabel="error, %", title=told)
    curves = {"cost C": "cost", "residual, mean": "residual", "residual, largest": "largest_residual"}
    figures.save_curves(
        workdir / "curves.png", {label: metrics.column(name) for label, name in curves.items()}, title=told
    )
    wrong = confusion.sum() - np.trace(confusion)
    figures.save_confusion(
        workdir / "confusion.png", confusion, title=f"{told}\n{wrong} of {confusion.sum()} test images wrong"
    )
    # What was learnt: the uniform weights of the start would hide it.
    filters = np.asarray(network.weights[0] - _untrained(config, data).weights[0]).T[:98]
    figures.save_tiles(
        workdir / "filters.png",
        filters.reshape(-1, *data.image_shape),
        title=f"Learnt change of the input weights of {len(filters)} units, {config.dataset} (red > 0, blue < 0)",
        signed=True,
    )


if __name__ == "__main__":
    cli.start_experiment(Config, run)
