"""Trains a machine or a stack on data of any source, evaluates it and draws its pictures.

    python -m vpf_jax train --dataset=spikes.npy --model=visible --workdir=runs/spikes

writes into --workdir: model.safetensors, the trained model, which the other commands take and `vpf_jax.load_model`
reads; config.json, metrics.csv (one row per epoch), summary.json, checkpoints/, samples.png, filters.png, curves.png,
activations.png, comparison.png (samples against data), report.html with all of these, which can be read while the run
goes on, and files.sha256, by which `sha256sum -c` checks them; with --gif samples.gif, too, the samples of one
evaluation after the other, from what frames/ keeps of each. A second start with the same folder resumes; a finished run
says so, and goes on where --epochs is larger than before.

The units of the visible layer are those that the data are for: bits, categories, counts or real numbers.

Not here: many runs side by side (`recipes`), what is done with a trained model (the other commands).
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import vpf_jax
from vpf_jax import checks, figures, rules, units
from vpf_jax.app import compare, devices, loop, recipes, runs, sampling
from vpf_jax.app.folder import Growth, UsageError, write_arrays
from vpf_jax.app.keys import key_for
from vpf_jax.data import Dataset
from vpf_jax.data.loading import OF_FILES
from vpf_jax.data.streamed import Streamed, open_streamed
from vpf_jax.evaluate import generation, scores
from vpf_jax.settings import like, options, refuse_given, setting
from vpf_jax.train import Adam, TrainConfig, learnt
from vpf_jax.units import TwoValued
from vpf_jax.units.base import first_entries

_log = logging.getLogger(__name__)

COLUMNS = (
    "objective",
    "max_abs_weight",
    "weight_sparsity",
    "squared_weight",
    "mean_activation",
    "pseudo_log_likelihood",
)
# What log Z is annealed with: while training goes on, and at its end.
WATCHING, FINAL = (100, 500), (500, 5000)
# Of the machines: the hidden layers that are left out, and what their number may be.
MODELS = {
    "visible": ((), "no hidden layer for visible"),
    "rbm": ((196,), "one hidden layer for rbm"),
    "semi_restricted": ((196,), "one hidden layer for semi_restricted"),
    "dbm": ((196, 196, 64), "two or more hidden layers"),
    "intra_dbm": ((196, 196, 64), "two or more hidden layers"),
}
# Flags that are options of rules, those of a rule being found by its class.
RULE_OPTIONS = (
    "rule_steps",
    "noise",
    "hidden_flips",
    "expectation",
    "flips_per_step",
    "estep",
    "particles",
    "stabiliser",
    "damping",
    "persistent",
)
# Samples that are compared with data that are no pictures: ends of so many chains, and their sweeps.
COMPARED, COMPARED_SWEEPS = 1000, 500
# Samples in each frame of the animation.
FILMED = 50
REFINING = ("refine_epochs", "refine_learning_rate", "refine_weight_decay")


class Parzen:
    """Evaluation of what a stack generates, by Parzen windows."""

    columns = ("parzen_validation", "parzen_sigma")

    def __init__(self, images: runs.Images, sampler: generation.Sampler, num_samples: int, seed: int) -> None:
        self._images, self._sampler, self._num_samples, self._seed = images, sampler, num_samples, seed
        self._scores: dict[str, float] = {}

    def check(self, recipe: recipes.Recipe) -> None:
        """All machines generate."""

    def look(self, judge: "Judge") -> None:
        """Scores the samples of an epoch."""
        self._scores = self._images.score(judge.centres)

    @property
    def row(self) -> loop.Row:
        """What metrics.csv has of it."""
        return {"parzen_validation": self._scores["validation_mean"], "parzen_sigma": self._scores["sigma"]}

    def summary(self, judge: "Judge", stops: Sequence[int]) -> dict[str, Any]:
        """The final numbers."""
        samplers = []
        for number, sampler in enumerate(generation.compared_samplers(self._sampler)):
            runs.stop_if_asked(stops, "training is saved, start again for the evaluation")
            scored = self._images.score(judge.sample(number, sampler)) if number else self._scores
            samplers.append(dataclasses.asdict(sampler) | scored)
            print(f"Parzen {generation.describe(sampler, scored)}", flush=True)
        chosen = generation.choose_by_validation(samplers)
        grey = self._images.train.grey
        real_images = generation.draw_images(key_for(self._seed, "real images"), grey, self._num_samples)
        real = self._images.score(real_images)
        return {
            **{f"parzen_{name}": samplers[0][name] for name in ("mean", "sem", "sigma")},
            "parzen_chosen_steps": chosen["gibbs_steps"],
            **{f"parzen_chosen_{name}": chosen[name] for name in ("mean", "sem", "sigma")},
            "parzen_real_data": real["mean"],
            "parzen_real_data_sem": real["sem"],
            "parzen_real_data_sigma": real["sigma"],
            "parzen_real_data_centres": len(real_images),
            "num_samples": self._num_samples,
            "samplers": samplers,
        }


class Likelihood:
    """Evaluation of held-out examples, by their log-likelihood or a bound on it."""

    columns = ("log_likelihood_validation",)

    def __init__(self, images: runs.Images, seed: int) -> None:
        self._images, self._seed = images, seed
        self._found: dict[str, Any] = {}

    def check(self, recipe: recipes.Recipe) -> None:
        """Raises ValueError, before anything is trained, where the machines have no such score."""
        images = self._images
        key = key_for(self._seed, "whether there is a score")
        stack = recipe.stack(key, images.num_visible, images.unit)
        if all(isinstance(unit, TwoValued) for machine in stack for unit in machine.layer_units):
            return
        some = images.test.states[:1]
        missing = None if images.test.missing is None else images.test.missing[:1]
        jax.eval_shape(lambda key: scores.scores(key, stack, some, 0.0, missing), key)

    def look(self, judge: "Judge") -> None:
        """Scores the validation examples."""
        self._found = self._of(judge, self._images.validation, WATCHING)

    @property
    def row(self) -> loop.Row:
        """What metrics.csv has of it."""
        return {"log_likelihood_validation": self._found["mean"]}

    def summary(self, judge: "Judge", stops: Sequence[int]) -> dict[str, Any]:
        """The final numbers."""
        runs.stop_if_asked(stops, "training is saved, start again for the evaluation")
        found = self._of(judge, self._images.test, FINAL)
        test = self._images.test
        independent = independent_log_likelihood(self._images.unit, self._images.train, test)
        print(
            f"{found['score']} of test examples {found['mean']:.3f} +- {found['sem']:.3f} nats, of independent units "
            f"{independent:.3f}; {found.pop('told')}",
            flush=True,
        )
        return {"log_likelihood_test": found | {"independent": independent}}

    def _of(self, judge: "Judge", part: runs.Placed, annealing: tuple[int, int]) -> dict[str, Any]:
        whole = judge.completed(part)
        log_z = scores.log_partition(key_for(self._seed, "log Z"), judge.stack, whole, *annealing)
        found = scores.scores(key_for(self._seed, "likelihood"), judge.stack, whole, log_z.value, part.missing)
        name = next(name for name in found if name.startswith("log_likelihood"))
        mean, sem = weighted_mean(np.asarray(found[name], np.float64), part.weights)
        return {
            "score": name.replace("_", " "),
            "mean": mean,
            "sem": sem,
            "log_z": log_z.value,
            "log_z_standard_error": log_z.standard_error,
            "told": log_z.told,
        }


@dataclasses.dataclass(frozen=True)
class Config(runs.TrainingConfig, devices.ProcessSettings):
    """Settings of a run; each is the flag of the same name."""

    dataset: str = like(runs.Config, "dataset", default="")
    model: str = setting(
        "rbm",
        "Machine to train; visible has no hidden units and weights inside its layer (a pairwise maximum-entropy "
        "model), semi_restricted one hidden layer and weights inside the visible one",
        choices=tuple(MODELS),
    )
    hidden: tuple[int, ...] | None = setting(
        None,
        "Units of the hidden layers, bottom first; one layer for rbm and semi_restricted (left out: 196), two or more "
        "for dbm and intra_dbm (left out: 196,196,64)",
        least=1,
        distinct=False,
    )
    hidden_units: str | None = like(
        recipes.Recipe,
        "hidden_units",
        default=None,
        help="What the units of the hidden layers are: binary (left out), spin, normal, rectified or categorical(q) of "
        "q values",
    )
    epochs: int = like(TrainConfig, "epochs")
    batch_size: int = like(TrainConfig, "batch_size")
    learning_rate: float = like(Adam, "learning_rate")
    weight_decay: float = like(TrainConfig, "weight_decay")
    schedule: str = like(Adam, "schedule")
    averaging: float = like(Adam, "averaging")
    centred: bool = like(TrainConfig, "centred")
    visible_biases: str = like(recipes.Recipe, "visible_biases")
    max_weight: float | None = like(TrainConfig, "max_weight")
    coupling: str = setting(
        "pairwise",
        "Of the layers: pairwise, each pair a machine of its own (the paper's), or joint, one deep machine (a research "
        "option: with the bottom-up E-step it samples badly)",
        choices=("pairwise", "joint"),
    )
    weights: str = setting(
        "symmetric",
        "Symmetric, or directed: separate forward and backward matrices, each changed by its own half of the rule (VPF "
        "alone)",
        choices=("symmetric", "directed"),
    )
    backward_start: str | None = setting(
        None,
        "Of directed weights: backward weights equal to the forward ones at the start (left out), or drawn afresh",
        choices=recipes.BACKWARD_STARTS[1:],
    )
    rule: str = setting("vpf", "Learning rule; the others are what VPF is compared with", choices=rules.names())
    rule_steps: int | None = like(
        rules.CD, "steps", default=None, help="Gibbs sweeps per step of rules with chains, rounds of tap"
    )
    noise: float | None = like(rules.Tethered, "noise", default=None)
    hidden_flips: bool | None = like(rules.VPF, "hidden_flips", default=None)
    expectation: str | None = like(rules.VPF, "expectation", default=None)
    flips_per_step: int | None = like(rules.VPF, "flips_per_step")
    estep: str | None = like(rules.VPF, "estep", default=None)
    particles: int | None = like(rules.EnergyDiscrepancy, "particles", default=None)
    stabiliser: float | None = like(rules.EnergyDiscrepancy, "stabiliser", default=None)
    damping: float | None = like(rules.TAP, "damping", default=None)
    persistent: bool | None = like(rules.TAP, "persistent", default=None)
    refine: str = setting(
        "none",
        "Rule by which training goes on after --epochs, with --rule_steps sweeps per step, its learning rate falling "
        "to 0 along a cosine",
        choices=("none", "pcd", "cd", "tethered"),
    )
    refine_epochs: int | None = like(TrainConfig, "epochs", default=None, help="Epochs of --refine; left out: 40")
    refine_learning_rate: float | None = like(
        Adam, "learning_rate", default=None, help="First step size of --refine; left out: 0.002"
    )
    refine_weight_decay: float | None = like(
        TrainConfig, "weight_decay", default=None, help="Weight decay of --refine; left out: 0.002"
    )
    precision: str = like(TrainConfig, "precision")
    stream: bool = setting(
        False,
        "Whether training examples stay on disk and are read while others are learnt, for more of them than memory "
        "holds: of a .npy or .array_record file, a folder of such files, or tfds:NAME; validation and test examples, "
        "whose share --split says, are loaded",
    )
    gibbs_steps: int = setting(3, "Gibbs steps per machine when generating", least=0, most=2**31 - 1)
    top_gibbs_steps: int | None = setting(
        None, "The same in the top machine; left out: --gibbs_steps", least=0, most=2**31 - 1
    )
    num_samples: int = setting(10_000, "Generated images that the Parzen score uses", least=1)
    evaluate_every: int = setting(
        25, "Epochs between evaluations on the validation examples; 0 evaluates only at the end", least=0
    )
    evaluation: str | None = setting(
        None,
        "Of what is generated, by Parzen windows as in the paper (left out: of images), or of held-out examples, by "
        "their log-likelihood or a bound on it (left out: of other data)",
        choices=("parzen", "likelihood"),
    )
    gif: bool = setting(False, "Whether the samples of all evaluations become an animation, samples.gif")

    experiment = "train"
    takes = ("weights", "missing", "drawn", "units")

    def __post_init__(self) -> None:
        """Checks the settings one against the other.

        Raises:
          SettingError: a value outside its range, or one that the others make meaningless.
        """
        super().__post_init__()
        if self.stream:
            checks.require(self.found, "stream", "on", f"off for {self.dataset}, which is loaded whole")
            told = "threshold for examples that stay on disk"
            checks.require(self.binarise == "threshold", "binarise", self.binarise, told)
        default, told = MODELS[self.model]
        fits = self.hidden is None or min(len(self.hidden), 2) == min(len(default), 2)
        checks.require(fits, "hidden", self.hidden, told)
        if self.model == "visible":
            refuse_given(self, ["weights"], "a machine of one layer has no weights between layers")
            refuse_given(self, ["hidden_units"], "a machine of one layer has no hidden units")
        if self.weights == "symmetric":
            refuse_given(self, ["backward_start"], "symmetric weights have one matrix")
        else:
            checks.require(self.refine == "none", "refine", self.refine, "none for directed weights")
        if self.refine == "none":
            refuse_given(self, REFINING, "nothing is refined without --refine")
        taken = {option.flag for rule in self.rules for option in options(rules.get(rule)).values()}
        told = " and ".join(f"rule {rule}" for rule in self.rules)
        strangers = [name for name in RULE_OPTIONS if name not in taken]
        refuse_given(self, strangers, f"{told} {'has' if len(self.rules) == 1 else 'have'} no such option")
        self.recipe()

    @property
    def rules(self) -> tuple[str, ...]:
        """Of the phases."""
        return (self.rule,) if self.refine == "none" else (self.rule, self.refine)

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.workdir or f"runs/{self.data_name}-{self.model}-seed{self.seed}")

    @property
    def title(self) -> str:
        return f"{self.model} on {self.data_name}"

    def recipe(self) -> recipes.Recipe:
        """Training by the rule, and the refinement where one is asked for."""
        phases = [
            TrainConfig(
                self._rule(self.rule),
                Adam(self.learning_rate, self.schedule, self.averaging),
                self.epochs,
                self.batch_size,
                self.weight_decay,
                self.max_weight,
                self.precision,
                self.centred,
            )
        ]
        if self.refine != "none":
            rate, decay = (2e-3 if v is None else v for v in (self.refine_learning_rate, self.refine_weight_decay))
            phases.append(
                dataclasses.replace(
                    phases[0],
                    rule=self._rule(self.refine),
                    optimizer=Adam(rate, "cosine", self.averaging),
                    epochs=self.refine_epochs or 40,
                    weight_decay=decay,
                )
            )
        return recipes.Recipe(
            self.title,
            MODELS[self.model][0] if self.hidden is None else self.hidden,
            tuple(phases),
            intra=self.model == "intra_dbm",
            visible_intra=self.model in ("visible", "semi_restricted"),
            joint=self.coupling == "joint",
            backward_start="tied" if self.weights == "symmetric" else self.backward_start or "equal",
            visible_biases=self.visible_biases,
            hidden_units=self.hidden_units or "binary",
        )

    @functools.cached_property
    def streamed(self) -> Streamed:
        """The data where training examples stay on disk; errors as of `data`."""
        of_files = {name: getattr(self, name) for name in OF_FILES}
        found = open_streamed(self.dataset, self.data_dir, **of_files)
        runs.check_memory("split", self.split, found.held_bytes)
        return found

    @functools.cached_property
    def data(self) -> Dataset:
        """The data set, as it was read first; of one that stays on disk what is loaded of it."""
        return self.streamed.data if self.stream else super().data

    def described(self) -> dict[str, Any]:
        """The settings, as config.json holds them."""
        # Runs of versions that loaded all data had no such setting, and are found again.
        return {name: value for name, value in super().described().items() if name != "stream" or value}

    def images(self) -> runs.Images:
        """The data set on the device, but for what stays on disk; errors as of `runs.Config.images`."""
        if not self.stream:
            return super().images()
        return runs.Images(self.streamed, self.binarise, self.of_data)

    def sampler(self) -> generation.Sampler:
        top = self.gibbs_steps if self.top_gibbs_steps is None else self.top_gibbs_steps
        return generation.Sampler("prior", self.gibbs_steps, top)

    def evaluated_by(self, images: runs.Images) -> Parzen | Likelihood:
        """What the flag asks for, or what suits the data and the machine."""
        binary = images.unit == units.BINARY
        whole = images.validation.complete and images.test.complete
        suits = binary and whole and (images.are_pictures or self.weights == "directed")
        kind = self.evaluation or ("parzen" if suits else "likelihood")
        told = "likelihood, as validation or test examples have missing entries"
        checks.require(kind == "likelihood" or whole, "evaluation", kind, told)
        told = f"likelihood, as the values are {images.values}"
        checks.require(kind == "likelihood" or binary, "evaluation", kind, told)
        if kind == "likelihood":
            checks.require(self.weights == "symmetric", "evaluation", kind, "parzen for directed weights")
            return Likelihood(images, self.seed)
        return Parzen(images, self.sampler(), self.num_samples, self.seed)

    def growth(self) -> dict[str, Growth]:
        """Whether a run may go on after its --epochs."""
        refused = "" if self.schedule == "constant" else "the cosine schedule depends on their number"
        return {"epochs": Growth(refused=refused if self.refine == "none" else "a refinement follows them")}

    def _rule(self, name: str) -> Any:
        rule = rules.get(name)
        given = {option.name: getattr(self, option.flag, None) for option in options(rule).values()}
        return rule(**{option: value for option, value in given.items() if value is not None})


@dataclasses.dataclass
class Judge:
    """Evaluates and draws what a stack generates; what belongs to the newest epoch is kept, for the summary."""

    folder: Path
    title: str
    images: runs.Images
    evaluation: Parzen | Likelihood
    sampler: generation.Sampler
    num_samples: int
    seed: int
    films: bool
    """Whether samples of each epoch are kept for an animation."""
    epoch: int = -1

    def look(self, epoch: int, stack: vpf_jax.Stack) -> None:
        """Measures and draws an epoch's stack, unless this has been done."""
        if self.epoch == epoch:
            return
        self.epoch, self.stack = epoch, stack
        visible = self.completed(self.images.train)
        self.activations = generation.activations(key_for(self.seed, "activations"), stack, visible)
        self.centres = self.sample(0, self.sampler)
        self.evaluation.look(self)
        self.draw()

    def completed(self, part: runs.Placed) -> Array:
        """States of a part, missing ones drawn by the newest stack."""
        return part.completed(key_for(self.seed, "missing entries", self.epoch), self.stack)

    def draw(self) -> None:
        """Samples, filters and activations, and of the samples what an animation needs."""
        samples = self.images.pictures(self.centres[:140])
        told = f"{self.title}, epoch {self.epoch}"
        title = f"{told}: generated visible means, {self.sampler.gibbs_steps} Gibbs steps"
        figures.save(self.folder / "samples.png", figures.tiles(samples, title=title))
        if self.activations:
            filters = self.images.pictures(np.asarray(self.stack[0].weights[0]).T[:196], signed=True)
            title = f"{told}: weights of the first hidden layer (red > 0, blue < 0{self.images.told_of_colours})"
            figures.save(self.folder / "filters.png", figures.tiles(filters, title=title, signed=True))
            figure = figures.histograms(
                self.activations,
                names=[f"layer {i + 1}" for i in range(len(self.activations))],
                xlabel="mean activation over the training images",
                title=told,
            )
            figures.save(self.folder / "activations.png", figure)
        if self.films:
            frame = np.round(255 * samples[:FILMED]).astype(np.uint8)
            write_arrays(self.folder / "frames" / f"{self.epoch:06d}.npz", images=frame)

    def sample(self, number: int, sampler: generation.Sampler) -> jax.Array:
        """Generated means of one sampler."""
        key = key_for(self.seed, "generated images", number)
        top = self.stack[-1].layer_units[-1]
        if not isinstance(top, TwoValued):
            return self.chains()[1]
        prior = top.share(self.activations[-1] if self.activations else self.images.train.means)
        return generation.generate(key, self.stack, prior, sampler, self.num_samples)

    def chains(self) -> tuple[Array, Array]:
        """Values and means at the ends of long chains: of a stack in its top machine, from which it passes down."""
        key, count = key_for(self.seed, "compared chains"), min(COMPARED, self.num_samples)
        return sampling.drawn(key, self.stack, count, COMPARED_SWEEPS, lower_steps=1)

    def compare(self) -> dict[str, float | None]:
        """What `app.compare` measures of the newest samples, and its picture; nothing where entries are missing."""
        if not (self.images.train.complete and self.images.test.complete):
            print("no comparison.png: samples are compared with whole examples, and entries are missing")
            return {}
        key, train, test = key_for(self.seed, "compared samples"), self.images.train.states, self.images.test.states
        samples, told = self.compared()
        title = f"{self.title}, epoch {self.epoch}: samples ({told}) against test examples"
        return compare.compare_with_data(self.folder, title, key, self.stack, samples, train, test)

    def compared(self) -> tuple[Array, str]:
        """Samples, and how they were drawn: of pictures those that are scored, else what the machine itself samples."""
        binary = self.images.unit == units.BINARY
        if binary and isinstance(self.evaluation, Parzen):
            return self.centres, f"{self.sampler.gibbs_steps} Gibbs steps"
        if binary and len(self.stack) > 1:
            sampler = generation.Sampler("prior", *generation.TOP_CHAIN)
            return self.sample(1, sampler), f"{sampler.top_gibbs_steps} Gibbs steps in the top machine"
        return self.chains()[0].astype(np.float32), f"{COMPARED_SWEEPS} Gibbs sweeps"


def run(config: Config) -> dict[str, Any]:
    """Trains, evaluates and draws; resumes where the folder holds part of the run. Returns what summary.json holds.

    Raises:
      SettingError, UsageError: settings or a folder that do not fit, or a folder that another process works in.
      vpf_jax.checkpoint.CheckpointError: all checkpoints are damaged, or those of something else.
      vpf_jax.data.DatasetError: data that cannot be read.
      vpf_jax.train.NonFiniteObjectiveError: training has overflowed; the last good checkpoint stays.
      Stopped: SIGTERM or SIGINT arrived; a checkpoint has been saved.
    """
    recipe, images = config.recipe(), config.images()
    images.require("batch_size", config.batch_size)
    joined = recipe.visible_intra and isinstance(images.unit, units.Count)
    allowed = "one without weights between counts, which have no distribution where these are above 0"
    checks.require(not joined, "model", config.model, allowed)
    runs.check_memory("num_samples", config.num_samples, 8 * config.num_samples * images.num_visible)
    try:
        recipes.check_recipe(recipe, images.num_visible, unit=images.unit)
        evaluation = config.evaluated_by(images)
        evaluation.check(recipe)
    except checks.SettingError:
        raise
    except ValueError as error:
        raise UsageError(f"--model={config.model} with --coupling={config.coupling}: {error}") from None
    mesh = config.devices(data=config.batch_size, model=math.gcd(*sizes) if (sizes := recipe.hidden) else 1)
    details = {"model": config.model, "seed": config.seed, "epochs": recipe.epochs}
    due, pace, films = config.evaluate_every, config.checkpoint_every, config.gif
    sampler, num_samples, seed = config.sampler(), config.num_samples, config.seed
    settings = {name: value for name, value in config.described().items() if name not in runs.FREE}
    about = {"rule": config.rule, "settings": settings, "data": images.about}

    def work(folder: Path, stops: Sequence[int]) -> tuple[dict[str, Any], str]:
        judge = Judge(folder, recipe.title, images, evaluation, sampler, num_samples, seed, films)
        trained = train(recipe, judge, due, mesh=mesh, checkpoint_every=pace, stops=stops)
        stack = devices.local(learnt(trained.state))
        runs.keep_model(folder, stack, about)
        judge.look(recipe.epochs, stack)
        summary = details | summarise(judge, trained, stops) | judge.compare()
        draw_curves(folder, recipe.title, trained)
        if films:
            figures.save(folder / "samples.gif", film(folder, recipe.title))
        return summary, ""

    with devices.within(mesh):
        summary = runs.carry_out(config, work)
    if films and not (config.folder / "samples.gif").exists():
        print("no samples.gif: the run was finished without --gif, and has kept no samples of its evaluations")
    print(told(summary))
    return summary


def train(recipe: recipes.Recipe, judge: Judge, evaluate_every: int, **options: Any) -> loop.Trained:
    """Runs the epochs that are left."""
    images, seed = judge.images, np.uint32(judge.seed)
    source = images.train.source
    columns = (*COLUMNS, *judge.evaluation.columns, *(["alignment"] if recipe.backward_start != "tied" else []))

    def evaluated(epoch: int) -> bool:
        return evaluate_every > 0 and (epoch % evaluate_every == 0 or epoch == recipe.epochs)

    def measure(state: Any, epoch: int) -> loop.Row:
        key, stack = key_for(judge.seed, "watched examples", epoch), devices.local(learnt(state))
        row = dict(recipes.watch(seed, epoch, stack, images.train.completed(key, stack, recipes.NUM_WATCHED)))
        if evaluated(epoch):
            judge.look(epoch, jax.tree.map(lambda leaf: leaf.copy(), stack))
            row |= judge.evaluation.row
        return row

    return recipe.run(
        judge.folder,
        recipe.initial_state(
            judge.seed,
            images.num_visible,
            images.train.means,
            images.train.variances if images.unit.own(images.num_visible) is not None else None,
            images.unit,
        ),
        images.train.visible if source is None else source,
        columns=columns,
        measure=measure,
        evaluated=evaluated,
        told=recipes.told_of_flow,
        **options,
    )


def summarise(judge: Judge, trained: loop.Trained, stops: Sequence[int]) -> dict[str, Any]:
    """The final numbers."""
    found, last = judge.evaluation.summary(judge, stops), trained.rows[-1]
    return {
        "objective": last["objective"],
        "max_abs_weight": last["max_abs_weight"],
        "train_seconds": round(trained.seconds, 2),
        "seconds_per_epoch": round(trained.seconds / last["epoch"], 4),
        **found,
    }


def weighted_mean(values: np.ndarray, weights: np.ndarray | None) -> tuple[float, float]:
    """Mean over examples, each as much as it counts, and its standard error."""
    if weights is None:
        return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    shares = np.asarray(weights, np.float64) / np.sum(weights, dtype=np.float64)
    mean = float(shares @ values)
    return mean, float(np.sqrt(np.sum((shares * (values - mean)) ** 2)))


def independent_log_likelihood(unit: units.Unit, seen: runs.Placed, part: runs.Placed) -> float:
    """Mean log-likelihood of examples under independent units fitted to the means and variances of others.

    Entries that are missing do not count.
    """
    with jax.enable_x64(True):
        means, variances, x = (jnp.asarray(a, jnp.float64) for a in (seen.means, seen.variances, part.states))
        fields, own = unit.fitted(means, variances)
        bound = unit.bound(own)
        terms = np.array(x * fields[None] - bound.own_energy(x))
        normalisers = np.asarray(bound.log_normaliser(fields))
    terms[:, first_entries(unit, len(fields))] -= normalisers
    known = terms if part.missing is None else np.where(part.missing, 0, terms)
    return weighted_mean(known.sum(axis=1), part.weights)[0]


def draw_curves(folder: Path, title: str, trained: loop.Trained) -> None:
    """What was measured over the epochs."""
    names = {
        "objective": "objective J",
        "weight_sparsity": "weight sparsity",
        "squared_weight": "squared weight",
        "mean_activation": "mean activation",
        "pseudo_log_likelihood": "log pseudo-\nlikelihood",
        "parzen_validation": "Parzen, validation",
        "log_likelihood_validation": "log-likelihood,\nvalidation",
        "alignment": "cosine of forward\nand backward",
    }
    curves = {label: trained.column(column) for column, label in names.items()}
    curves = {label: curve for label, curve in curves.items() if curve[0]}
    figures.save(folder / "curves.png", figures.curves(curves, title=title))


def film(folder: Path, title: str) -> figures.Animation:
    """The samples of all evaluations, those before a stop among them."""
    frames = []
    for path in sorted((folder / "frames").glob("*.npz")):
        try:
            with np.load(path) as file:
                images = file["images"] / 255
        # What is no archive, or a damaged one, fails in many ways.
        except Exception as error:
            _log.warning("%s cannot be read (%s); samples.gif goes without it", path, error)
            continue
        frames.append(figures.tiles(images, title=f"{title}, epoch {int(path.stem)}", columns=10))
    return figures.animation(frames, title=f"{title}: samples of {len(frames)} evaluations")


def told(summary: dict[str, Any]) -> str:
    """A line of what came of a run."""
    line = f"objective {summary['objective']:.2f}, {summary['train_seconds']:.0f} s of training"
    if "parzen_mean" in summary:
        line += (
            f"; Parzen {summary['parzen_mean']:.1f} +- {summary['parzen_sem']:.1f}, with steps chosen on validation "
            f"images ({summary['parzen_chosen_steps']}) {summary['parzen_chosen_mean']:.1f}, real data "
            f"{summary['parzen_real_data']:.1f}"
        )
    return line
