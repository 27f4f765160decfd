"""VPF beside three neighbouring learning systems: what can be compared on the same images, in one table.

    python -m experiments.systems --dataset=mnist --workdir=runs/mnist-systems

Trains each system as its own script does by default (`named_recipes`, `mnist_target`, but sampled from the released
code's prior, `mnist_equilibrium`, `planted_synapses`, read as signs and as means) and measures

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import vpf_jax
from experiments import mnist_equilibrium, mnist_target, named_recipes, planted_synapses
from vpf_jax import figures
from vpf_jax.app import command, recipes, runs
from vpf_jax.app.keys import key_for
from vpf_jax.app.tables import cell, markdown_table
from vpf_jax.data import binarise
from vpf_jax.evaluate import generation, monitor, reconstruction
from vpf_jax.evaluate.reconstruction import SIDES
from vpf_jax.related import binary_synapses as synapses
from vpf_jax.related import target_propagation as tp
from vpf_jax.settings import like, setting

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
# Images of each system in the pictures.
DRAWN = 14
# Test images that are repaired: target propagation infers 15 steps for each of 20 steps of in-painting.
REPAIRED = 2000


class Scale(NamedTuple):
    """Sizes of everything that is trained and measured."""

    rbm: tuple[int, int]
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
        rbm=(196, 40),
        stack=((196, 196, 64), 200),
        # Its samples score as the paper says.
        target_propagation={"preset": "released"},
        equilibrium_propagation={"preset": "1"},
        binary_synapses={},
        num_samples=10_000,
    ),
    "quick": Scale(
        rbm=(36, 4),
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
class Config(recipes.RecipesConfig):
    """Settings; each is a flag."""

    experiment = "systems"
    # Its other systems are trained on grey values.
    takes = ()

    num_seeds: int = like(runs.SeedsConfig, "num_seeds", default=3)
    scale: str = setting("full", "Sizes of the systems", choices=tuple(SCALES))
    systems: tuple[str, ...] = setting(tuple(TITLES), "Systems", choices=tuple(TITLES))

    def bench(self) -> "Bench":
        return Bench(self.workshop(), SCALES[self.scale], {name: getattr(self, name) for name in runs.OF_DATA})


class Bench(NamedTuple):
    """Where the systems are trained, all of the same images."""

    workshop: recipes.Workshop
    scale: Scale
    data: dict[str, Any]
    """Settings of the data, as the systems' own scripts take them."""

    @property
    def images(self) -> runs.Images:
        return self.workshop.images

    def scripts(self, script: Any, title: str, settings: dict[str, Any]) -> Iterator[tuple[Any, Path]]:
        """The settings of a system's own script and the folder of what it trains, for each seed."""
        for seed in self.workshop.seeds:
            one = script(**self.data, **settings, seed=seed, checkpoint_every=self.workshop.checkpoint_every)
            known = {name: value for name, value in one.described().items() if name not in runs.FREE}
            yield one, self.workshop.folder / recipes.folder_name(f"{title}-{seed}", known)


def run(config: Config) -> dict[str, Any]:
    """Trains, measures and draws; resumes. Returns what summary.json holds (errors: `app.recipes`, `app.runs`)."""
    bench, systems, seeds = config.bench(), config.systems, config.seeds
    images, num_samples = bench.images, bench.scale.num_samples
    images.require_images()
    images.require_classes()
    told = f"{config.data_name}, scale {config.scale}; {config.told_of_means}. "

    def work(folder: Path, stops: list[int]) -> tuple[dict[str, Any], str]:
        rows: dict[str, dict[str, Any]] = {}
        test = images.test.grey[:DRAWN]
        mask = reconstruction.band_mask("bottom", images.image_shape)
        pictures = {"samples": {}, "repaired": {"original": test, "given": jnp.where(mask[None], 0.5, test)}}
        for name in systems:
            learnt = LEARN[name](bench, stops)
            measure = functools.partial(evaluate, images, num_samples, learnt)
            measured = runs.evaluate_seeds(folder, name, seeds, stops, measure)
            rows[name] = {"train_seconds": [one.seconds for one in learnt], "runs": measured}
            first = learnt[0]
            sample_key, repair_key = jax.random.split(key_for(seeds[0], "pictures of systems"))
            if first.samples is not None:
                pictures["samples"][TITLES[name]] = first.samples(sample_key, DRAWN)[measured[0]["sampler"]]
            if first.repair is not None:
                pictures["repaired"][TITLES[name]] = first.repair(repair_key, test, mask)
        titles = {"samples": "Samples", "repaired": "The lower 12 rows filled in, the other pixels held"}
        for file, some in pictures.items():
            tiles = {title: images.pictures(one) for title, one in some.items()}
            if tiles:
                figure = figures.reconstructions(tiles, title=f"{titles[file]}, {images.name}")
                figures.save(folder / f"{file}.png", figure)
        guesses = reconstruction.guess_errors(images.train.grey, images.test.grey[:REPAIRED], images.image_shape)
        found = {
            "systems": rows,
            "pixel_probe_error": probe_error(images, lambda grey: grey),
            "parzen_real_data": [real_score(images, num_samples, seed) for seed in seeds],
            "median_image_errors": guesses["median"],
        }
        return found, told + tabulate(found)

    return runs.carry_out(config, work)


def learn_stacks(recipe: Callable[[Scale], recipes.Recipe], bench: Bench, stops: list[int]) -> list[Learnt]:
    """Stacks of all seeds."""
    trained = bench.workshop.run(recipe(bench.scale), stops)
    stacks = [trained.stack(index) for index in range(len(trained.seeds))]
    return [of_stack(*one, trained.seconds, bench.images) for one in zip(trained.seeds, stacks, strict=True)]


def of_stack(seed: int, stack: vpf_jax.Stack, seconds: float, images: runs.Images) -> Learnt:
    """A stack of two-layer machines. Only a single machine defines repair."""
    prior = generation.activations(key_for(seed, "priors of systems"), stack, images.train.bits)[-1]

    def samples(key: jax.Array, num_samples: int) -> list[jax.Array]:
        samplers = [generation.Sampler("prior", steps, steps) for steps in generation.CANDIDATE_STEPS]
        keys = jax.random.split(key, len(samplers))
        return [
            generation.generate(own, stack, prior, sampler, num_samples)
            for own, sampler in zip(keys, samplers, strict=True)
        ]

    def features(grey: jax.Array) -> jax.Array:
        return jnp.concatenate(monitor.hidden_means(stack, bits(grey)), axis=1)

    def fill_in(key: jax.Array, grey: jax.Array, mask: jax.Array) -> jax.Array:
        return reconstruction.repair(key, stack[0], bits(grey), mask)["clamped"]

    return Learnt(seconds, features=features, samples=samples, repair=fill_in if len(stack) == 1 else None)


def bits(grey: jax.Array) -> jax.Array:
    return jnp.asarray(binarise(grey))


def learn_target_propagation(bench: Bench, stops: list[int]) -> list[Learnt]:
    def learnt(learner: mnist_target.Learner, folder: Path) -> Learnt:
        trained = learner.learn(folder, stops, bench.workshop.checkpoint_every)
        parameters = trained.state.parameters
        prior = learner.prior(parameters)

        def fill_in(key: jax.Array, grey: jax.Array, mask: jax.Array) -> jax.Array:
            masks = jnp.broadcast_to(mask, grey.shape)
            return _inpaint(parameters, tp.randomise(key, grey, masks), masks)

        return Learnt(
            trained.seconds,
            features=lambda grey: jnp.concatenate(_infer(parameters, grey), axis=1),
            samples=lambda key, num: [_generate(key, parameters, prior, num)],
            repair=fill_in,
        )

    scripts = bench.scripts(mnist_target.Config, "target_propagation", bench.scale.target_propagation)
    return [learnt(script.learner(bench.images), folder) for script, folder in scripts]


def learn_equilibrium_propagation(bench: Bench, stops: list[int]) -> list[Learnt]:
    def learnt(learner: mnist_equilibrium.Learner, folder: Path) -> Learnt:
        trained = learner.learn(folder, stops, bench.workshop.checkpoint_every)
        return Learnt(trained.seconds, test_error=trained.column("test_error_from_zeros")[1][-1])

    scripts = bench.scripts(mnist_equilibrium.Config, "equilibrium_propagation", bench.scale.equilibrium_propagation)
    return [learnt(script.learner(bench.images), folder) for script, folder in scripts]


def learn_binary_synapses(read: Callable[[jax.Array], jax.Array], bench: Bench, stops: list[int]) -> list[Learnt]:
    """Machines with the synapses that are read from the learnt means."""
    found = []
    for script, folder in bench.scripts(planted_synapses.Config, "binary_synapses", bench.scale.binary_synapses):
        learner = script.learner(script.hidden[0], script.esteps[0], script.rules[0])
        visible = script.example_images(bench.images)
        learnt = learner.learn(visible, None, folder, stops, bench.workshop.checkpoint_every)
        stack = (synapses.as_machine(read(learnt.means[0]), learner.settings.beta),)
        found.append(of_stack(script.seed, stack, learnt.trained.seconds, bench.images))
    return found


def _rbm(rule: str) -> Callable[[Bench, list[int]], list[Learnt]]:
    return functools.partial(learn_stacks, lambda scale: named_recipes.rbm(rule, *scale.rbm))


def _stack(name: str) -> Callable[[Bench, list[int]], list[Learnt]]:
    return functools.partial(learn_stacks, lambda scale: named_recipes.stack(name, *scale.stack))


LEARN: dict[str, Callable[[Bench, list[int]], list[Learnt]]] = {
    "rbm": _rbm("vpf"),
    "rbm_refined": _rbm("vpf_pcd"),
    "intra_dbm": _stack("intra_dbm"),
    "intra_dbm_refined": _stack("intra_dbm_refined"),
    "target_propagation": learn_target_propagation,
    "equilibrium_propagation": learn_equilibrium_propagation,
    "binary_synapses": functools.partial(learn_binary_synapses, jnp.sign),
    "binary_synapses_means": functools.partial(learn_binary_synapses, lambda means: means),
}

_infer = jax.jit(tp.infer)
_inpaint = jax.jit(tp.inpaint)
_generate = jax.jit(tp.generate, static_argnames="num_samples")


def evaluate(images: runs.Images, num_samples: int, systems: list[Learnt], index: int, seed: int) -> dict[str, Any]:
    """What the system of one seed defines, else None."""
    learnt = systems[index]
    sample_key, repair_key = jax.random.split(key_for(seed, "evaluating systems"))
    row: dict[str, Any] = {"parzen": None, "test_error": learnt.test_error, "repair": None}
    if learnt.features is not None:
        row["test_error"] = probe_error(images, learnt.features)
    if learnt.samples is not None:
        scores = [images.score(centres) for centres in learnt.samples(sample_key, num_samples)]
        best = max(range(len(scores)), key=lambda i: scores[i]["validation_mean"])
        row |= {"parzen": scores[best]["mean"], "sampler": best}
    if learnt.repair is not None:
        grey = images.test.grey[:REPAIRED]
        row["repair"] = {}
        for side, key in zip(SIDES, jax.random.split(repair_key, len(SIDES)), strict=True):
            mask = reconstruction.band_mask(side, images.image_shape)
            errors = reconstruction.reconstruction_error(learnt.repair(key, grey, mask), grey, mask)
            row["repair"][side] = float(jnp.mean(errors))
    return row


def real_score(images: runs.Images, num_samples: int, seed: int) -> float:
    key = key_for(seed, "real images beside systems")
    return images.score(generation.draw_images(key, images.train.grey, num_samples))["mean"]


def probe_error(images: runs.Images, of: Callable[[jax.Array], jax.Array]) -> float:
    """Test error of a linear probe on features of the grey images."""
    train, test = (
        np.concatenate([np.asarray(of(some)) for some in jnp.array_split(part.grey, 10)])
        for part in (images.train, images.test)
    )
    return 1 - monitor.linear_probe(train, images.train.labels, test, images.test.labels).test_accuracy


def tabulate(found: dict[str, Any]) -> str:
    def column(row: dict[str, Any], name: str, factor: float = 1, digits: int = 1) -> str:
        values = [one[name] for one in row["runs"]]
        return "-" if values[0] is None else cell(factor * np.array(values), digits)

    def errors(row: dict[str, Any]) -> list[str]:
        ways = [one["repair"] for one in row["runs"]]
        return ["-" if ways[0] is None else cell([way[side] for way in ways]) for side in SIDES]

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
    guess = [f"{found['median_image_errors'][side]:.1f}" for side in SIDES]
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
        "Classification: test error, of a linear probe on the hidden activations but for equilibrium propagation. "
        "Repair: L1 distance inside a band of 12 rows or columns, the other pixels held, binarised (but grey for "
        f"target propagation), the first {REPAIRED} test images.\n\n"
        + markdown_table(["system", "Parzen, nats", "classification", *SIDES, "training"], rows)
        + "\n"
        + markdown_table(["rule", "learns from", "a synapse has to know", "phases", "symmetric weights"], rules)
    )


if __name__ == "__main__":
    command.start(Config, run)
