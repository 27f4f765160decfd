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
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vpf_jax import figures
from vpf_jax.app import command, loop, runs
from vpf_jax.app.folder import Growth
from vpf_jax.app.keys import key_for
from vpf_jax.app.tables import markdown_table, mean_and_error
from vpf_jax.evaluate import generation, parzen, reconstruction
from vpf_jax.related import target_propagation as tp
from vpf_jax.settings import like, setting

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
class Config(runs.TrainingConfig):
    """Settings; each is a flag."""

    experiment = "target_propagation"

    preset: str = setting(
        "paper", "Widening of the top layer's prior: variance or deviation x 4", choices=tuple(tp.PRESETS)
    )
    epochs: int | None = setting(None, "Passes over the training images; left out: as many as the preset, 20", least=1)
    hidden: tuple[int, ...] = setting(
        tp.SIZES[1:], "Units of the two hidden layers", least=1, fewest=2, longest=2, distinct=False
    )
    learning_rate: float = like(tp.TargetConfig, "learning_rate")
    num_samples: int = setting(10_000, "Generated images behind a Parzen score", least=1)

    def growth(self) -> dict[str, Growth]:
        return {"epochs": Growth(tp.PRESETS[self.preset].epochs)}

    def learner(self, images: runs.Images) -> "Learner":
        """What learns the images.

        Raises:
          SettingError: it does not fit into memory.
        """
        epochs = self.epochs or tp.PRESETS[self.preset].epochs
        settings = tp.TargetConfig(learning_rate=self.learning_rate)
        learner = Learner(images, self.seed, self.hidden, epochs, tp.PRESETS[self.preset].widening, settings)
        runs.check_memory("hidden", self.hidden, lambda: [learner.start()] * 2)
        return learner


class Learner(NamedTuple):
    """Feed-forward and feedback networks and their training."""

    images: runs.Images
    seed: int
    hidden: tuple[int, ...]
    epochs: int
    widening: float
    settings: tp.TargetConfig

    def start(self) -> tp.TargetState:
        """Before the first epoch."""
        sizes = (self.images.num_visible, self.hidden[0], self.hidden[1])
        return tp.init_state(key_for(self.seed, "target propagation"), sizes, self.settings)

    def learn(self, folder: Path, stops: list[int], checkpoint_every: int) -> loop.Trained:
        """Runs the epochs that are left."""
        visible = self.images.train.grey

        def run_epoch(state: tp.TargetState, _: int) -> tuple[tp.TargetState, loop.Row]:
            state, losses = tp.train_epoch(state, visible, config=self.settings)
            return state, dict(zip(COLUMNS, losses, strict=True))

        phases = [loop.Phase(self.epochs, lambda _: run_epoch)]
        return loop.train(folder, self.start(), phases, columns=COLUMNS, checkpoint_every=checkpoint_every, stops=stops)

    def prior(self, parameters: tp.Parameters) -> tp.Prior:
        """Of the model that is sampled: fitted to the states inferred from the training images, and widened."""
        return tp.widen(_fit_prior(parameters, self.images.train.grey), self.widening)


def run(config: Config) -> dict[str, Any]:
    """Trains, measures and draws; resumes. Returns what summary.json holds (errors: `app.loop`, `app.runs`)."""
    images = config.images()
    images.require_images()
    learner, pace = config.learner(images), config.checkpoint_every
    runs.check_memory("num_samples", config.num_samples, 16 * config.num_samples * images.num_visible)
    title = f"Target propagation on {config.data_name}, {learner.epochs} epochs, preset {config.preset}"
    told = (
        f"{title}, layers of {config.hidden[0]} and {config.hidden[1]} units, seed {config.seed}; {{seconds:.0f}} s of "
        "training. Parzen: log-likelihood of the grey test images in nats, mean +- standard error over them.\n\n"
    )
    seed, num_samples, preset = config.seed, config.num_samples, config.preset

    def work(folder: Path, stops: list[int]) -> tuple[dict[str, Any], str]:
        trained = learner.learn(folder, stops, pace)
        prior = learner.prior(trained.state.parameters)
        model = Model(trained.state.parameters, prior, images, seed, folder, title)
        found = {
            "preset": preset,
            "train_seconds": trained.seconds,
            "losses": {name: trained.column(name)[1][-1] for name in COLUMNS},
            "h1_variance": {"inference": tp.OBSERVED.h1_variance, "fitted": float(prior.h1_variance)},
            "parzen": model.score(num_samples),
            "log_joint": model.observe(),
            "inpainting_error": model.fill_in(),
        }
        losses = {name.replace("loss_", "squared error of "): trained.column(name) for name in COLUMNS}
        figures.save(folder / "losses.png", figures.curves(losses, title=title))
        return found, told.format(seconds=trained.seconds) + tabulate(found)

    return runs.carry_out(config, work)


_fit_prior = jax.jit(tp.fit_prior)
_generate = jax.jit(tp.generate, static_argnames=("num_samples", "num_rounds"))
_log_joint_curve = jax.jit(tp.log_joint_curve)
_fill_in = jax.jit(tp.inpaint)


class Model(NamedTuple):
    """What was learnt, and where its pictures go."""

    parameters: tp.Parameters
    prior: tp.Prior
    images: runs.Images
    seed: int
    folder: Path
    title: str

    def score(self, num_samples: int) -> dict[str, dict[str, float | None]]:
        """Parzen scores under each sampler and under training images; draws samples."""
        keys = jax.random.split(key_for(self.seed, "samples of target propagation"), 3)
        model = self.parameters, self.prior
        centres = {
            "encode/decode": _generate(keys[0], *model, num_samples=num_samples, num_rounds=3),
            "direct": _generate(keys[1], *model, num_samples=num_samples, num_rounds=0),
            REAL: generation.draw_images(keys[2], self.images.train.grey, num_samples),
        }
        for name, file in (("encode/decode", "samples"), ("direct", "direct")):
            drawn = self.images.pictures(centres[name][:DRAWN_SAMPLES])
            figures.save(self.folder / f"{file}.png", figures.tiles(drawn, title=f"{self.title}: {SAMPLERS[name]}"))
        rows: dict[str, dict[str, float | None]] = {}
        for name, some in centres.items():
            scores = self.images.score(some)
            at_paper, error = mean_and_error(parzen.parzen_log_likelihood(some, self.images.test.grey, SIGMA))
            rows[name] = {**scores, "num_centres": len(some), "mean_at_paper": at_paper, "sem_at_paper": error}
        return rows

    def observe(self) -> dict[str, dict[str, list[float]]]:
        """Log p(x, h) of the test images over the steps of inference, for both widths of the middle layer; drawn too.

        Of each term and their sum the mean over the images, and of the sum's rise since the start the standard error.
        """
        found, panels = {}, {}
        for name, told_width in WIDTHS.items():
            widths = {} if name == "fitted" else {"h1_variance": jnp.float32(tp.OBSERVED.h1_variance)}
            curve = _log_joint_curve(self.parameters, self.prior._replace(**widths), self.images.test.grey)
            terms = {"total": curve.total, **curve._asdict()}
            means = {term: np.asarray(values, np.float64).mean(axis=0) for term, values in terms.items()}
            rises = np.asarray(curve.total - curve.total[:, :1], np.float64)
            errors = rises.std(axis=0, ddof=1) / np.sqrt(len(rises))
            found[name] = {term: mean.tolist() for term, mean in means.items()} | {"sem_of_rise": errors.tolist()}
            panels[f"rise, nats; h1 given h2\n{told_width}"] = {
                TERMS[term]: (np.arange(len(mean)), mean - mean[0], errors if term == "total" else None)
                for term, mean in means.items()
            }
        title = f"{self.title}: mean log p(x, h)"
        figures.save(self.folder / "log_joint.png", figures.panels(panels, xlabel="step of inference", title=title))
        return found

    def fill_in(self) -> dict[str, dict[str, float]]:
        """Mean absolute error per unknown pixel of the test images, beside the mean training image; draws some."""
        mask_key, *noise_keys = jax.random.split(key_for(self.seed, "in-painting"), 3)
        visible, shape = self.images.test.grey, self.images.image_shape
        left = reconstruction.band_mask("left", shape, shape[1] // 2)
        masks = {
            "random": reconstruction.random_mask(mask_key, visible.shape, 0.5),
            "left": jnp.broadcast_to(left, visible.shape),
        }
        guess = jnp.mean(self.images.train.grey, axis=0)
        found, rows = {}, {"original": visible[:DRAWN_REPAIRS]}
        for noise_key, (name, mask) in zip(noise_keys, masks.items(), strict=True):
            corrupted = tp.randomise(noise_key, visible, mask)
            filled = _fill_in(self.parameters, corrupted, mask)
            found[name] = {
                "filled in": mean_error(filled, visible, mask),
                "noise": mean_error(corrupted, visible, mask),
                "mean image": mean_error(jnp.broadcast_to(guess, visible.shape), visible, mask),
            }
            rows |= {f"{name} half": corrupted[:DRAWN_REPAIRS], f"{name}, filled in": filled[:DRAWN_REPAIRS]}
        figures.save(
            self.folder / "inpainted.png",
            figures.reconstructions(
                {name: self.images.pictures(images) for name, images in rows.items()},
                title=f"{self.title}: half the pixels filled in",
            ),
        )
        return found


def mean_error(images: jax.Array, originals: jax.Array, mask: jax.Array) -> float:
    """Mean absolute error over the pixels of the mask."""
    return float(jnp.sum(jnp.where(mask, jnp.abs(images - originals), 0)) / jnp.sum(mask))


def tabulate(found: dict[str, Any]) -> str:
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
        markdown_table(["centres", "number", f"Parzen, sigma {SIGMA:g}", "Parzen, best sigma", "sigma"], scores)
        + f"\nRise of log p(x, h), nats, over {tp.OBSERVED.num_steps} steps of inference, mean over the test images; "
        "the prior of h2 is widened as for the samples.\n\n"
        + markdown_table(["h1 given h2", "variance", *TERMS.values(), "standard error"], rises)
        + "\nMean absolute error per unknown pixel.\n\n"
        + markdown_table(["unknown", *guesses], errors)
    )


if __name__ == "__main__":
    command.start(Config, run)
