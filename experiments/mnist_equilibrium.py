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
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vpf_jax import checks, figures
from vpf_jax.app import command, loop, runs
from vpf_jax.app.folder import Growth
from vpf_jax.app.keys import key_for
from vpf_jax.app.tables import markdown_table
from vpf_jax.related import equilibrium_propagation as ep
from vpf_jax.settings import like, setting

ERRORS = {
    "train_error": "training images, while training",
    "test_error_from_zeros": "test images, from zeros",
    "test_error_persistent": "test images, persistent states",
}
COLUMNS = (*ERRORS, "cost", "residual", "largest_residual", "test_residual_from_zeros")
# Flags that replace settings of the preset.
OVERRIDES = ("batch_size", "free_steps", "nudged_steps", "beta", "estimator")


@dataclasses.dataclass(frozen=True)
class Config(runs.TrainingConfig):
    """Settings; each is a flag. What is left out is the preset's."""

    experiment = "equilibrium"

    preset: str = setting("1", "Network and training", choices=tuple(ep.PRESETS))
    hidden: tuple[int, ...] | None = setting(
        None,
        "Units of each hidden layer, as many layers as the preset has; any number where its rates are equal (centred)",
        least=1,
        distinct=False,
    )
    epochs: int | None = setting(None, "Passes over the training images", least=1)
    batch_size: int | None = like(ep.EquilibriumConfig, "batch_size", default=None)
    free_steps: int | None = like(ep.EquilibriumConfig, "free_steps", default=None)
    nudged_steps: int | None = like(ep.EquilibriumConfig, "nudged_steps", default=None)
    beta: float | None = like(ep.EquilibriumConfig, "beta", default=None)
    estimator: str | None = like(ep.EquilibriumConfig, "estimator", default=None)
    rate_factor: float = setting(1.0, "Factor on the learning rates", above=0)
    evaluate_every: int = setting(1, "Epochs between test errors; the end has them too", least=1)

    def __post_init__(self) -> None:
        """Checks the settings one against the other.

        Raises:
          SettingError: a value outside its range.
        """
        super().__post_init__()
        hidden, _, settings = ep.PRESETS[self.preset]
        fits = self.hidden is None or len(set(settings.learning_rates)) == 1 or len(self.hidden) == len(hidden)
        allowed = f"{len(hidden)} positive integers with preset={self.preset}"
        checks.require(fits, "hidden", self.hidden, allowed)
        self.plan()

    @property
    def folder(self) -> Path:
        return Path(self.workdir or f"runs/{self.data_name}-{self.experiment}-{self.preset}")

    def growth(self) -> dict[str, Growth]:
        return {"epochs": Growth(ep.PRESETS[self.preset].epochs)}

    def plan(self) -> ep.EquilibriumPreset:
        """The preset as the flags change it."""
        preset = ep.PRESETS[self.preset]
        given = {name: value for name in OVERRIDES if (value := getattr(self, name)) is not None}
        hidden, own = self.hidden or preset.hidden, preset.config.learning_rates
        # Presets of equal rates have them for any number of layers.
        rates = own if len(own) == len(hidden) + 1 else own[:1] * (len(hidden) + 1)
        given["learning_rates"] = tuple(self.rate_factor * rate for rate in rates)
        return ep.EquilibriumPreset(hidden, self.epochs or preset.epochs, dataclasses.replace(preset.config, **given))

    def learner(self, images: runs.Images) -> "Learner":
        """What learns the images.

        Raises:
          SettingError: batches of more images than there are, or a network that does not fit into memory.
        """
        plan = self.plan()
        images.require("batch_size", plan.config.batch_size)
        learner = Learner(images, self.seed, plan, self.evaluate_every)
        runs.check_memory("hidden", plan.hidden, lambda: [learner.start()] * 2)
        return learner


class Learner(NamedTuple):
    """A network and its training; the states of the test images persist beside those of the training images."""

    images: runs.Images
    seed: int
    plan: ep.EquilibriumPreset
    evaluate_every: int

    def untrained(self) -> ep.EquilibriumNetwork:
        sizes = (self.images.num_visible, *self.plan.hidden, self.images.classes)
        return ep.init_network(key_for(self.seed, "network of equilibrium propagation"), sizes)

    def start(self) -> dict[str, Any]:
        """Before the first epoch."""
        key = key_for(self.seed, "equilibrium propagation")
        train = ep.init_state(key, self.untrained(), len(self.images.train), self.plan.config)
        tested = tuple(jnp.zeros((len(self.images.test), p.shape[1]), p.dtype) for p in train.particles)
        return {"train": train, "tested": tested}

    def wrong(self, network: ep.EquilibriumNetwork, states: ep.Layers) -> jax.Array:
        return jnp.mean(ep.predict(network, states) != jnp.asarray(self.images.test.labels))

    def test(self, network: ep.EquilibriumNetwork, start: ep.Layers | None = None) -> tuple[ep.Layers, jax.Array]:
        """States of the test images after a free phase, and how far they still move."""
        return ep.free_phase(network, self.images.test.grey, start, config=self.plan.config)

    def learn(self, folder: Path, stops: list[int], checkpoint_every: int) -> loop.Trained:
        """Runs the epochs that are left."""
        images, labels = self.images.train.grey, jnp.asarray(self.images.train.labels)

        def due(epoch: int) -> bool:
            return epoch % self.evaluate_every == 0 or epoch == self.plan.epochs

        def run_epoch(state: dict[str, Any], epoch: int) -> tuple[dict[str, Any], loop.Row]:
            train, metrics = ep.train_epoch(state["train"], images, labels, config=self.plan.config)
            row = {
                "train_error": metrics.error,
                "cost": metrics.cost,
                "residual": metrics.residual,
                "largest_residual": metrics.largest_residual,
            }
            tested = state["tested"]
            if tested and due(epoch):
                tested, _ = self.test(train.network, tested)
                row["test_error_persistent"] = self.wrong(train.network, tested)
            return {"train": train, "tested": tested}, row

        def measure(state: dict[str, Any], epoch: int) -> loop.Row:
            if not due(epoch):
                return {}
            network = state["train"].network
            free, residual = self.test(network)
            return {
                "test_error_from_zeros": self.wrong(network, free),
                "test_residual_from_zeros": jnp.mean(residual),
            }

        return loop.train(
            folder,
            self.start(),
            [loop.Phase(self.plan.epochs, lambda _: run_epoch)],
            columns=COLUMNS,
            measure=measure,
            evaluated=due,
            checkpoint_every=checkpoint_every,
            stops=stops,
        )


def run(config: Config) -> dict[str, Any]:
    """Trains, tests and draws; resumes. Returns what summary.json holds (errors: `app.loop`, `app.runs`)."""
    images = config.images()
    images.require_classes()
    learner, pace = config.learner(images), config.checkpoint_every
    plan = learner.plan
    sizes = "-".join(map(str, plan.hidden))
    title = f"Equilibrium propagation on {config.data_name}, preset {config.preset}, hidden units {sizes}"

    def work(folder: Path, stops: list[int]) -> tuple[dict[str, Any], str]:
        trained = learner.learn(folder, stops, pace)
        network = trained.state["train"].network
        confusion = np.zeros((images.classes, images.classes), int)
        predicted = np.asarray(ep.predict(network, learner.test(network)[0]))
        np.add.at(confusion, (images.test.labels, predicted), 1)
        draw(folder, trained, learner.untrained(), confusion, images, title)
        found = {
            "sizes": list(network.sizes),
            "settings": dataclasses.asdict(plan.config),
            "epochs": plan.epochs,
            **{name: values[-1] for name in COLUMNS if (values := trained.column(name)[1])},
            "confusion": confusion.tolist(),
            "seconds_per_epoch": trained.seconds / plan.epochs,
        }
        return found, tabulate(found, title)

    return runs.carry_out(config, work)


def tabulate(found: dict[str, Any], title: str) -> str:
    names = {name: told for name, told in ERRORS.items() if name in found}
    rows = [[told, f"{100 * found[name]:.2f} %"] for name, told in names.items()]
    return (
        f"{title}, {found['epochs']} epochs, {found['seconds_per_epoch']:.2f} s each. In the last free step a "
        f"unit moved by at most {found['residual']:.1e} (mean over the training images of the last epoch), "
        f"{found['test_residual_from_zeros']:.1e} (test images, from zeros).\n\n"
        + markdown_table(["images", "error"], rows)
    )


def draw(
    folder: Path,
    trained: loop.Trained,
    untrained: ep.EquilibriumNetwork,
    confusion: np.ndarray,
    images: runs.Images,
    title: str,
) -> None:
    """The four figures."""
    lines = {}
    for name, label in ERRORS.items():
        epochs, values = trained.column(name)
        if epochs:
            lines[label] = epochs, 100 * np.array(values), None
    figures.save(folder / "errors.png", figures.lines(lines, xlabel="epoch", ylabel="error, %", title=title))
    curves = {"cost C": "cost", "residual, mean": "residual", "residual, largest": "largest_residual"}
    columns = {label: trained.column(name) for label, name in curves.items()}
    figures.save(folder / "curves.png", figures.curves(columns, title=title))
    wrong = confusion.sum() - np.trace(confusion)
    told = f"{title}\n{wrong} of {confusion.sum()} test images wrong"
    figures.save(folder / "confusion.png", figures.confusion(confusion, title=told))
    # What was learnt: the uniform weights of the start would hide it.
    network = trained.state["train"].network
    filters = np.asarray(network.weights[0] - untrained.weights[0]).T[:98]
    figures.save(
        folder / "filters.png",
        figures.tiles(
            images.pictures(filters, signed=True),
            title=f"Learnt change of the input weights of {len(filters)} units (red > 0, blue < 0"
            f"{images.told_of_colours})\n{title}",
            signed=True,
        ),
    )


if __name__ == "__main__":
    command.start(Config, run)
