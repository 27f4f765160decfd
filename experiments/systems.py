"""VPF beside three neighbouring learning systems: what can be compared on the same images, in one table.

    python -m experiments.systems --dataset=mnist --workdir=runs/mnist-compare

Trains each system as its own script does by default (`experiments.comparison`, `target_propagation`, but sampled from
the released code's prior, `equilibrium_propagation`, `binary_synapses`, read as signs and as means) and measures

    Parzen          log-likelihood of the grey test images under samples, of the systems that generate any
    classification  test error: of the classifier itself, or of a linear probe on the hidden activations (and, for
                    scale, on the pixels)
    repair          clamped: a band of 12 rows or columns filled in while the other pixels are held, L1 distance from
                    the grey original; of the systems that define it
    training        seconds on the machine at hand

Beside them stands what each rule asks of a synapse. Writes table.md, summary.json, samples.png and repaired.png into
--workdir, evaluations as they are done into WORKDIR/evaluations, and trained systems into --models, which other
experiments can share. A second start resumes; a finished run says so. A quick setting, two minutes on two cores:

    python -m experiments.systems --dataset=mnist_5k --scale=quick --num_seeds=2 --workdir=runs/quick

Not here: the settings of a single system, which its own script varies.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

import vpf_jax
from experiments import comparison, features, generation, repair
from experiments import mnist_equilibrium as equilibrium_propagation
from experiments import mnist_target as target_propagation
from experiments import planted_synapses as binary_synapses
from vpf_jax import figures
from vpf_jax.app import command as cli
from vpf_jax.app import runs
from vpf_jax.app.folder import stop_requests
from vpf_jax.app.tables import cell, markdown_table
from vpf_jax.data import Dataset, Part, binarise
from vpf_jax.evaluate import monitor, reconstruction
from vpf_jax.related import binary_synapses as synapses
from vpf_jax.related import target_propagation as tp

TITLES = {
    "rbm": "RBM, VPF",
    "rbm_refined": "RBM, VPF, then PCD-1",
    "intra_dbm": "intra-layer DBM, VPF, the paper's settings",
    "intra_dbm_refined": "intra-layer DBM, VPF, then PCD-1",
    "target_propagation": "target propagation",
    "equilibrium_propagation": "equilibrium propagation, one hidden layer",
    "binary_synapses": "RBM with binary synapses, signs of the means",
    "binary_synapses_means": "the same, the means themselves (not binary)",
}
ScriptConfig = TypeVar("ScriptConfig", bound=runs.Config)

# Images of each system in the pictures.
DRAWN = 14
# Test images that are repaired: target propagation infers 15 steps for each of 20 steps of in-painting.
REPAIRED = 2000


class Scale(NamedTuple):
    """Sizes of everything that is trained and measured."""

    rbm: tuple[tuple[int, ...], int]
    """Hidden units and epochs, like the next."""
    stack: tuple[tuple[int, ...], int]
    target_propagation: dict[str, Any]
    """Settings of the script of that name, like the next two."""
    equilibrium_propagation: dict[str, Any]
    binary_synapses: dict[str, Any]
    num_samples: int
    """Generated images behind a Parzen score."""


SCALES = {
    "full": Scale(
        rbm=((196,), 40),
        stack=((196, 196, 64), 200),
        # Its samples score as the paper says.
        target_propagation={"preset": "released"},
        equilibrium_propagation={"preset": "1"},
        binary_synapses={},
        num_samples=10_000,
    ),
    "quick": Scale(
        rbm=((36,), 4),
        stack=((36, 16), 5),
        target_propagation={"hidden": (60, 20), "epochs": 3},
        equilibrium_propagation={"preset": "1", "hidden": (50,), "epochs": 2},
        binary_synapses={"hidden": (20,), "num_images": 200, "steps": 20},
        num_samples=500,
    ),
}


class Local(NamedTuple):
    """What a learning rule asks for."""

    learns_from: str
    synapse: str
    """What the change of one synapse is computed from."""
    phases: str
    symmetric: str
    """Whether the weights from i to j and from j to i have to be equal."""


LOCALITY = {
    "VPF": Local(
        "images",
        "states and flip rates of its two neurons",
        "one: the data, hidden states sampled given them",
        "yes; a directed variant learns without, and repairs worse",
    ),
    "PCD, as refinement": Local(
        "images",
        "states of its two neurons",
        "two: the data, and chains that run freely and persist",
        "yes",
    ),
    "target propagation": Local(
        "images",
        "rate of the sending neuron; of the receiving one before and after inference",
        "one: inference with the image held",
        "no: feedback weights of their own, which learn as well",
    ),
    "equilibrium propagation": Local(
        "images and labels",
        "rates of its two neurons at the ends of both phases",
        "two: free, then nudged towards the label",
        "yes",
    ),
    "binary synapses": Local(
        "images",
        "its own mean; of its hidden unit the mean and the spread of the input, which sum over all its synapses; a "
        "correlation in the dual network, by messages",
        "two: all data at once, and the dual network without data, averaged over drawn fields",
        "yes",
    ),
}


class Learnt(NamedTuple):
    """A trained system, and what it can be asked; None where it does not define that."""

    seconds: float
    """Of training."""
    test_error: float | None = None
    """Of a classifier."""
    features: Callable[[jax.Array], jax.Array] | None = None
    """Hidden activations [batch, n] of grey images."""
    samples: Callable[[jax.Array, int], list[jax.Array]] | None = None
    """From a key and a number: visible means of so many samples, of each sampler among which validation chooses."""
    repair: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None
    """From a key, grey images and a mask: the images with the pixels of the mask filled in."""


@dataclasses.dataclass(frozen=True)
class Config(comparison.Config):
    """Settings; each is a flag."""

    experiment = "compare"

    num_seeds: int = cli.setting(3, "Runs of each system, at least 1.")
    scale: str = cli.setting("full", "Sizes of the systems.", tuple(SCALES))
    systems: tuple[str, ...] = cli.setting(tuple(TITLES), "Systems.", tuple(TITLES))

    @property
    def sizes(self) -> Scale:
        return SCALES[self.scale]


def run(config: Config) -> dict[str, Any]:
    """Trains, measures and draws; resumes. Returns what summary.json holds.

    Raises:
      UsageError: a folder that does not fit.
      vpf_jax.data.DatasetError: data that cannot be read.
      vpf_jax.train.NonFiniteObjectiveError: training has overflowed.
      vpf_jax.app.folder.Stopped: SIGTERM or SIGINT arrived; what was trained and measured is saved.
    """
    return runs.carry_out(config, _run)


def _run(config: Config, data: Dataset, workdir: Path) -> tuple[dict[str, Any], str]:
    """What is found, and the table."""
    rows: dict[str, dict[str, Any]] = {}
    test = jnp.asarray(data.test.images[:DRAWN])
    mask = reconstruction.band_mask("bottom", data.image_shape)
    pictures = {"samples": {}, "repaired": {"original": test, "given": jnp.where(mask[None], 0.5, test)}}
    with stop_requests() as stops:
        for name in config.systems:
            learnt = LEARN[name](config, data, stops)
            evaluate = functools.partial(_evaluate, config, data, learnt)
            measured = runs.evaluate_seeds(workdir, name, config.seeds, stops, evaluate)
            rows[name] = {"train_seconds": [one.seconds for one in learnt], "runs": measured}
            first = learnt[0]
            if first.samples is not None:
                pictures["samples"][TITLES[name]] = first.samples(_key(config.seed, 0), DRAWN)[measured[0]["sampler"]]
            if first.repair is not None:
                pictures["repaired"][TITLES[name]] = first.repair(repair.key_of(config.seed, 1), test, mask)
    titles = {"samples": "Samples", "repaired": "The lower 12 rows filled in, the other pixels held"}
    for (file, images), told in zip(pictures.items(), titles.values(), strict=True):
        tiles = {title: np.asarray(some).reshape(-1, *data.image_shape) for title, some in images.items()}
        if tiles:
            figures.save_reconstructions(workdir / f"{file}.png", tiles, title=f"{told}, {data.name}")
    real = [generation.parzen_real_data(data, config.sizes.num_samples, seed)[0]["mean"] for seed in config.seeds]
    found = {
        "systems": rows,
        "pixel_probe_error": _probe_error(data, lambda grey: grey),
        "parzen_real_data": real,
        "median_image_errors": repair.guess_errors(_first_tested(data))["median"],
    }
    return found, _table(config, found)


def _learn_stacks(config: Config, recipe: comparison.Recipe, data: Dataset, stops: list[int]) -> list[Learnt]:
    """Stacks of all seeds."""
    trained = comparison.train_for(config, recipe, data, stops)
    return [
        of_stack(trained.stack(index), trained.seconds, generation.prior_of(_key(seed, 1), trained.stack(index), data))
        for index, seed in enumerate(config.seeds)
    ]


def of_stack(stack: vpf_jax.Stack, seconds: float, prior: jax.Array) -> Learnt:
    """A stack of two-layer machines; `prior` is that of the top layer. Only a single machine defines repair."""

    def samples(key: jax.Array, num_samples: int) -> list[jax.Array]:
        samplers = [generation.Sampler("prior", steps, steps) for steps in generation.CANDIDATE_STEPS]
        return [generation.generate(key, stack, prior, sampler, num_samples) for sampler in samplers]

    def fill_in(key: jax.Array, grey: jax.Array, mask: jax.Array) -> jax.Array:
        return repair.both(key, stack[0], jnp.asarray(binarise(grey)), mask)["clamped"]

    return Learnt(
        seconds,
        features=lambda grey: jnp.concatenate(features.hidden_means(stack, jnp.asarray(binarise(grey))), axis=1),
        samples=samples,
        repair=fill_in if len(stack) == 1 else None,
    )


def _learn_target_propagation(config: Config, data: Dataset, stops: list[int]) -> list[Learnt]:
    def learnt(script: target_propagation.Config, folder: Path) -> Learnt:
        trained = target_propagation.learn(script, data, folder, stops)
        parameters = trained.state.parameters
        prior = target_propagation.widened_prior(script, data, parameters)

        def fill_in(key: jax.Array, grey: jax.Array, mask: jax.Array) -> jax.Array:
            masks = jnp.broadcast_to(mask, grey.shape)
            return _inpaint(parameters, tp.randomise(key, grey, masks), masks)

        return Learnt(
            trained.seconds,
            features=lambda grey: jnp.concatenate(_infer(parameters, grey), axis=1),
            samples=lambda key, num: [_generate(key, parameters, prior, num)],
            repair=fill_in,
        )

    return [learnt(*one) for one in _scripts(config, "target_propagation", target_propagation.Config)]


def _learn_equilibrium_propagation(config: Config, data: Dataset, stops: list[int]) -> list[Learnt]:
    def learnt(script: equilibrium_propagation.Config, folder: Path) -> Learnt:
        trained = equilibrium_propagation.learn(script, data, folder, stops)
        return Learnt(trained.seconds, test_error=trained.metrics.column("test_error_from_zeros")[1][-1])

    return [learnt(*one) for one in _scripts(config, "equilibrium_propagation", equilibrium_propagation.Config)]


def _learn_binary_synapses(
    read: Callable[[jax.Array], jax.Array], config: Config, data: Dataset, stops: list[int]
) -> list[Learnt]:
    """Machines with the synapses that are read from the learnt means."""

    def learnt(script: binary_synapses.Config, folder: Path) -> Learnt:
        fit = binary_synapses.Fit(script.hidden[0], script.esteps[0], script.rules[0], None)
        found = binary_synapses.learn(script, fit, binary_synapses.image_data(script, data), folder, stops)
        stack = (synapses.as_machine(read(found.means[0]), script.beta),)
        return of_stack(stack, found.trained.seconds, generation.prior_of(_key(script.seed, 1), stack, data))

    return [learnt(*one) for one in _scripts(config, "binary_synapses", binary_synapses.Config)]


def _learn_rbm(rule: str, config: Config, data: Dataset, stops: list[int]) -> list[Learnt]:
    return _learn_stacks(config, comparison.rbm_recipes(*config.sizes.rbm)[rule], data, stops)


def _learn_stack(name: str, config: Config, data: Dataset, stops: list[int]) -> list[Learnt]:
    return _learn_stacks(config, comparison.stack_recipes(*config.sizes.stack)[name], data, stops)


LEARN: dict[str, Callable[[Config, Dataset, list[int]], list[Learnt]]] = {
    "rbm": functools.partial(_learn_rbm, "vpf"),
    "rbm_refined": functools.partial(_learn_rbm, "vpf_pcd"),
    "intra_dbm": functools.partial(_learn_stack, "intra_dbm"),
    "intra_dbm_refined": functools.partial(_learn_stack, "intra_dbm_refined"),
    "target_propagation": _learn_target_propagation,
    "equilibrium_propagation": _learn_equilibrium_propagation,
    "binary_synapses": functools.partial(_learn_binary_synapses, jnp.sign),
    "binary_synapses_means": functools.partial(_learn_binary_synapses, lambda means: means),
}

_infer = jax.jit(tp.infer)
_inpaint = jax.jit(tp.inpaint)
_generate = jax.jit(tp.generate, static_argnames="num_samples")


def _scripts(config: Config, name: str, script: type[ScriptConfig]) -> list[tuple[ScriptConfig, Path]]:
    """The settings of a system's own script and the folder of what it trains, for each seed."""
    shared: dict[str, Any] = {setting: getattr(config, setting) for setting in ("dataset", "data_dir")}
    found = []
    for seed in config.seeds:
        one = script(**shared, **getattr(config.sizes, name), seed=seed, checkpoint_every=config.checkpoint_every)
        settings = {setting: value for setting, value in dataclasses.asdict(one).items() if setting not in runs.FREE}
        found.append((one, config.models_folder / comparison.folder_name(f"{name}-{seed}", settings)))
    return found


def _key(seed: int, use: int) -> jax.Array:
    """0: samples, 1: the prior of stacks."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 4), use)


def _evaluate(config: Config, data: Dataset, systems: list[Learnt], index: int, seed: int) -> dict[str, Any]:
    """What the system of one seed defines, else None."""
    learnt = systems[index]
    row: dict[str, Any] = {"parzen": None, "test_error": learnt.test_error, "repair": None}
    if learnt.features is not None:
        row["test_error"] = _probe_error(data, learnt.features)
    if learnt.samples is not None:
        scores = [
            generation.parzen_scores(centres, data)
            for centres in learnt.samples(_key(seed, 0), config.sizes.num_samples)
        ]
        best = max(range(len(scores)), key=lambda i: scores[i]["validation_mean"])
        row |= {"parzen": scores[best]["mean"], "sampler": best}
    if learnt.repair is not None:
        grey = jnp.asarray(data.test.images[:REPAIRED])
        row["repair"] = {}
        for number, side in enumerate(repair.SIDES):
            mask = reconstruction.band_mask(side, data.image_shape)
            filled = learnt.repair(repair.key_of(seed, number), grey, mask)
            row["repair"][side] = float(jnp.mean(reconstruction.reconstruction_error(filled, grey, mask)))
    return row


def _first_tested(data: Dataset) -> Dataset:
    """With those test images alone that are repaired."""
    test = Part(data.test.images[:REPAIRED], data.test.labels[:REPAIRED])
    return dataclasses.replace(data, test=test)


def _probe_error(data: Dataset, of: Callable[[jax.Array], jax.Array]) -> float:
    """Test error of a linear probe on features of the grey images."""
    train, test = (
        np.concatenate([np.asarray(of(jnp.asarray(part))) for part in np.array_split(split.images, 10)])
        for split in (data.train, data.test)
    )
    return 1 - monitor.linear_probe(train, data.train.labels, test, data.test.labels).test_accuracy


def _table(config: Config, found: dict[str, Any]) -> str:
    def column(row: dict[str, Any], name: str, factor: float = 1, digits: int = 1) -> str:
        values = [one[name] for one in row["runs"]]
        return "-" if values[0] is None else cell(factor * np.array(values), digits)

    def errors(row: dict[str, Any]) -> list[str]:
        ways = [one["repair"] for one in row["runs"]]
        return ["-" if ways[0] is None else cell([way[side] for way in ways]) for side in repair.SIDES]

    rows = [
        [
            TITLES[name],
            column(row, "parzen"),
            column(row, "test_error", 100, 2) + " %",
            *errors(row),
            f"{np.mean(row['train_seconds']):.0f} s",
        ]
        for name, row in found["systems"].items()
    ]
    guess = [f"{found['median_image_errors'][side]:.1f}" for side in repair.SIDES]
    rows.append(
        [
            "training images, their pixels, their median",
            cell(found["parzen_real_data"]),
            f"{100 * found['pixel_probe_error']:.2f} %",
            *guess,
            "-",
        ]
    )
    rules = [[rule, *local] for rule, local in LOCALITY.items()]
    return (
        f"{config.dataset}, scale {config.scale}; mean +- standard error over {config.num_seeds} seeds. "
        "Classification: test error, of a linear probe on the hidden activations but for equilibrium propagation. "
        "Repair: L1 distance inside a band of 12 rows or columns, the other pixels held, binarised (but grey for "
        f"target propagation), the first {REPAIRED} test images.\n\n"
        + markdown_table(["system", "Parzen, nats", "classification", *repair.SIDES, "training"], rows)
        + "\n"
        + markdown_table(["rule", "learns from", "a synapse has to know", "phases", "symmetric weights"], rules)
    )


if __name__ == "__main__":
    cli.start_experiment(Config, run)
