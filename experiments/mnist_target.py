"""Target propagation: digits from feed-forward and feedback networks that learn locally, without backpropagation.

    python -m experiments.mnist_target --dataset=mnist --preset=paper --workdir=runs/mnist-target_propagation

The generative experiments of Bengio, Lee, Bornschein, Mesnard and Lin, arXiv 1502.04156, on grey images. Writes into
--workdir:

    table.md, summary.json   Parzen scores of the grey test images under samples with and without encoding and decoding,
                             beside training images as centres, at the paper's width and at the best on validation
                             images; log p(x, h) over the steps of inference; errors of in-painting
    log_joint.png            its rise, mean over the test images with standard errors, and what each term has in it
    losses.png               of the four maps after each epoch
    samples.png, direct.png  samples with and without encoding and decoding
    inpainted.png            digits of which half the pixels were replaced by noise, and what is filled in

The two presets learn alike and differ in how far the prior of the top layer is widened for sampling: the paper
multiplies its variance by 4, the released code its standard deviation. A second start resumes; a finished run says so.
A quick setting, under a minute on two cores:

    python -m experiments.mnist_target --dataset=mnist_5k --epochs=40 --hidden=200,50 --num_samples=1000 \
        --workdir=runs/quick

Not here: supervised target propagation.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import generation
from vpf_jax import figures
from vpf_jax.app import command as cli
from vpf_jax.app import runs
from vpf_jax.app.folder import Growth, UsageError, stop_requests
from vpf_jax.app.tables import markdown_table, mean_and_error
from vpf_jax.data import Dataset
from vpf_jax.evaluate import parzen, reconstruction
from vpf_jax.related import target_propagation as tp

# The paper's width of the Parzen kernels.
SIGMA = 0.2
SAMPLERS = {
    "encode/decode": "3 rounds of encoding and decoding",
    "direct": "p(x given h) p(h), none",
}
REAL = "training images"
# What the two readings of the model's middle layer are called.
WIDTHS = {
    "inference": "as inference weighs it",
    "fitted": "fitted to the inferred states",
}
TERMS = {"total": "log p(x, h)", "visible": "log p(x | h1)", "h1": "log p(h1 | h2)", "h2": "log p(h2)"}
COLUMNS = tuple(f"loss_{name}" for name in tp.Losses._fields)
DRAWN_SAMPLES, DRAWN_REPAIRS = 140, 20


@dataclasses.dataclass(frozen=True)
class Config(runs.Config):
    """Settings; each is a flag."""

    experiment = "target_propagation"

    preset: str = cli.setting(
        "paper", "Widening of the top layer's prior: variance or deviation x 4.", tuple(tp.PRESETS)
    )
    epochs: int = cli.setting(0, "Passes over the training images; 0: as many as the preset, 20.")
    hidden: tuple[int, ...] = cli.setting(tp.SIZES[1:], "Units of the two hidden layers, positive integers.")
    learning_rate: float = cli.setting(tp.TargetConfig.learning_rate, "Of RMSprop, positive.")
    num_samples: int = cli.setting(10_000, "Generated images behind a Parzen score, at least 1.")

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
          UsageError: a value outside its range.
        """
        super().__post_init__()
        if self.preset not in tp.PRESETS:
            raise UsageError(f"got --preset={self.preset}; it takes one of {', '.join(tp.PRESETS)}")
        self.check_at_least(epochs=0, num_samples=1)
        if len(self.hidden) != 2 or min(self.hidden) < 1:
            given = ",".join(map(str, self.hidden))
            raise UsageError(f"got --hidden={given}; it takes two positive integers, as in 1000,100")
        try:
            self.training  # noqa: B018
        except ValueError as error:
            raise UsageError(str(error).replace("got ", "got --", 1)) from None

    def growth(self) -> dict[str, Growth]:
        return {"epochs": Growth(tp.PRESETS[self.preset].epochs)}

    @property
    def num_epochs(self) -> int:
        return self.epochs or tp.PRESETS[self.preset].epochs

    @property
    def training(self) -> tp.TargetConfig:
        return tp.TargetConfig(learning_rate=self.learning_rate)


def run(config: Config) -> dict[str, Any]:
    """Trains, samples, measures and draws; resumes. Returns what summary.json holds.

    Raises:
      UsageError: a folder that does not fit.
      vpf_jax.data.DatasetError: data that cannot be read.
      vpf_jax.train.NonFiniteObjectiveError: training has overflowed.
      vpf_jax.app.folder.Stopped: SIGTERM or SIGINT arrived; what was trained is saved.
    """
    return runs.carry_out(config, _run)


def _run(config: Config, data: Dataset, workdir: Path) -> tuple[dict[str, Any], str]:
    """What is found, and the table."""
    with stop_requests() as stops:
        trained = learn(config, data, workdir, stops)
    parameters = trained.state.parameters
    prior = widened_prior(config, data, parameters)
    _, sample_key, mask_key = _keys(config)
    told = f"Target propagation on {config.dataset}, {config.num_epochs} epochs, preset {config.preset}"
    found: dict[str, Any] = {
        "preset": config.preset,
        "train_seconds": trained.seconds,
        "losses": {name: trained.metrics.column(name)[1][-1] for name in COLUMNS},
        "h1_variance": {"inference": tp.OBSERVED.h1_variance, "fitted": float(prior.h1_variance)},
        "parzen": _score(config, data, sample_key, parameters, prior, workdir, told),
        "log_joint": _observe(data, parameters, prior, workdir, told),
        "inpainting_error": _inpaint(data, mask_key, parameters, workdir, told),
    }
    figures.save_curves(
        workdir / "losses.png",
        {name.replace("loss_", "squared error of "): trained.metrics.column(name) for name in COLUMNS},
        title=told,
    )
    return found, _table(config, found)


def learn(config: Config, data: Dataset, folder: Path, stops: list[int]) -> runs.Trained:
    """Runs the epochs that are left."""
    visible = jnp.asarray(data.train.images)
    start = tp.init_state(_keys(config)[0], (visible.shape[1], config.hidden[0], config.hidden[1]), config.training)

    def run_epoch(state: tp.TargetState, _: int) -> tuple[tp.TargetState, dict[str, jax.Array]]:
        state, losses = tp.train_epoch(state, visible, config=config.training)
        return state, dict(zip(COLUMNS, losses, strict=True))

    return runs.train_epochs(
        folder,
        start,
        run_epoch,
        epochs=config.num_epochs,
        columns=COLUMNS,
        checkpoint_every=config.checkpoint_every,
        stops=stops,
    )


def widened_prior(config: Config, data: Dataset, parameters: tp.Parameters) -> tp.Prior:
    """Of the model that is sampled: fitted to the states inferred from the training images, widened by the preset."""
    fitted = _fit_prior(parameters, jnp.asarray(data.train.images))
    return tp.widen(fitted, tp.PRESETS[config.preset].widening)


def _keys(config: Config) -> jax.Array:
    """Of learning, of the samples, and of the masks and noise of in-painting."""
    return jax.random.split(jax.random.key(config.seed), 3)


_fit_prior = jax.jit(tp.fit_prior)
_generate = jax.jit(tp.generate, static_argnames=("num_samples", "num_rounds"))
_log_joint_curve = jax.jit(tp.log_joint_curve)
_fill_in = jax.jit(tp.inpaint)


def _score(
    config: Config,
    data: Dataset,
    key: jax.Array,
    parameters: tp.Parameters,
    prior: tp.Prior,
    workdir: Path,
    told: str,
) -> dict[str, dict[str, float | None]]:
    """Parzen scores under each sampler and under training images; draws samples."""
    sample = functools.partial(_generate, parameters=parameters, prior=prior, num_samples=config.num_samples)
    keys = jax.random.split(key)
    chosen = np.random.default_rng(config.seed).permutation(len(data.train.images))[: config.num_samples]
    centres = {
        "encode/decode": sample(keys[0], num_rounds=3),
        "direct": sample(keys[1], num_rounds=0),
        REAL: data.train.images[chosen],
    }
    for name, file in (("encode/decode", "samples"), ("direct", "direct")):
        drawn = np.asarray(centres[name][:DRAWN_SAMPLES]).reshape(-1, *data.image_shape)
        figures.save_tiles(workdir / f"{file}.png", drawn, title=f"{told}: {SAMPLERS[name]}")
    rows: dict[str, dict[str, float | None]] = {}
    for name, some in centres.items():
        scores = generation.parzen_scores(some, data)
        test = np.asarray(parzen.parzen_log_likelihood(some, data.test.images, SIGMA), np.float64)
        at_paper, error = mean_and_error(test)
        rows[name] = {**scores, "num_centres": len(some), "mean_at_paper": at_paper, "sem_at_paper": error}
    return rows


def _observe(
    data: Dataset, parameters: tp.Parameters, prior: tp.Prior, workdir: Path, told: str
) -> dict[str, dict[str, list[float]]]:
    """Log p(x, h) of the test images over the steps of inference, for both widths of the middle layer; drawn too.

    Of each term and their sum the mean over the images, and of the sum's rise since the start the standard error.
    """
    visible = jnp.asarray(data.test.images)
    found, panels = {}, {}
    for name, told_width in WIDTHS.items():
        model = prior if name == "fitted" else prior._replace(h1_variance=jnp.float32(tp.OBSERVED.h1_variance))
        curve = _log_joint_curve(parameters, model, visible)
        terms = {"total": curve.total, **curve._asdict()}
        means = {term: np.asarray(values, np.float64).mean(axis=0) for term, values in terms.items()}
        rises = np.asarray(curve.total - curve.total[:, :1], np.float64)
        errors = rises.std(axis=0, ddof=1) / np.sqrt(len(rises))
        found[name] = {term: mean.tolist() for term, mean in means.items()} | {"sem_of_rise": errors.tolist()}
        panels[f"rise, nats; h1 given h2\n{told_width}"] = {
            TERMS[term]: (np.arange(len(mean)), mean - mean[0], errors if term == "total" else None)
            for term, mean in means.items()
        }
    figures.save_panels(
        workdir / "log_joint.png", panels, xlabel="step of inference", title=f"{told}: mean log p(x, h)"
    )
    return found


def _inpaint(
    data: Dataset, key: jax.Array, parameters: tp.Parameters, workdir: Path, told: str
) -> dict[str, dict[str, float]]:
    """Mean absolute error per unknown pixel of the test images, beside the mean training image; draws some."""
    mask_key, *noise_keys = jax.random.split(key, 3)
    visible = jnp.asarray(data.test.images)
    masks = {
        "random": reconstruction.random_mask(mask_key, visible.shape, 0.5),
        "left": jnp.broadcast_to(
            reconstruction.band_mask("left", data.image_shape, data.image_shape[1] // 2), visible.shape
        ),
    }
    guess = jnp.asarray(data.train.images.mean(axis=0))
    found, rows = {}, {"original": visible[:DRAWN_REPAIRS]}
    for noise_key, (name, mask) in zip(noise_keys, masks.items(), strict=True):
        corrupted = tp.randomise(noise_key, visible, mask)
        filled = _fill_in(parameters, corrupted, mask)
        found[name] = {
            "filled in": _error(filled, visible, mask),
            "noise": _error(corrupted, visible, mask),
            "mean image": _error(jnp.broadcast_to(guess, visible.shape), visible, mask),
        }
        rows |= {f"{name} half": corrupted[:DRAWN_REPAIRS], f"{name}, filled in": filled[:DRAWN_REPAIRS]}
    figures.save_reconstructions(
        workdir / "inpainted.png",
        {name: np.asarray(images).reshape(-1, *data.image_shape) for name, images in rows.items()},
        title=f"{told}: half the pixels filled in",
    )
    return found


def _error(images: jax.Array, originals: jax.Array, mask: jax.Array) -> float:
    """Mean absolute error over the pixels of the mask."""
    return float(jnp.sum(jnp.where(mask, jnp.abs(images - originals), 0)) / jnp.sum(mask))


def _table(config: Config, found: dict[str, Any]) -> str:
    scores = [
        [
            f"{name} ({SAMPLERS[name]})" if name in SAMPLERS else name,
            str(row["num_centres"]),
            f"{row['mean_at_paper']:.1f} +- {row['sem_at_paper']:.1f}",
            f"{row['mean']:.1f} +- {row['sem']:.1f}",
            f"{row['sigma']:g}",
        ]
        for name, row in found["parzen"].items()
    ]
    rises = [
        [WIDTHS[name], f"{found['h1_variance'][name]:.3g}"]
        + [f"{row[term][-1] - row[term][0]:+.1f}" for term in TERMS]
        + [f"{row['sem_of_rise'][-1]:.1f}"]
        for name, row in found["log_joint"].items()
    ]
    errors = [[f"{name} half", *(f"{e:.3f}" for e in row.values())] for name, row in found["inpainting_error"].items()]
    guesses = list(found["inpainting_error"]["random"])
    return (
        f"Target propagation on {config.dataset}, layers of {config.hidden[0]} and {config.hidden[1]} units, "
        f"{config.num_epochs} epochs, preset {config.preset}, seed {config.seed}; {found['train_seconds']:.0f} s of "
        "training. Parzen: log-likelihood of the grey test images in nats, mean +- standard error over them.\n\n"
        + markdown_table(["centres", "number", f"Parzen, sigma {SIGMA:g}", "Parzen, best sigma", "sigma"], scores)
        + f"\nRise of log p(x, h), nats, over {tp.OBSERVED.num_steps} steps of inference, mean over the test images; "
        "the prior of h2 is widened as for the samples.\n\n"
        + markdown_table(["h1 given h2", "variance", *TERMS.values(), "standard error"], rises)
        + "\nMean absolute error per unknown pixel.\n\n"
        + markdown_table(["unknown", *guesses], errors)
    )


if __name__ == "__main__":
    cli.start_experiment(Config, run)
