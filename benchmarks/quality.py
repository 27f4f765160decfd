"""Time to quality: learners trained in turn, epoch by epoch, and looked at between their epochs.

What counts is the time inside epochs: compilation, a first epoch that warms a learner up and is forgotten, and all
looking are left out. A learner runs for a fixed number of epochs or seconds, whichever ends first, and its time to a
score is that of the first look at which the score is there or better. A learning rate that falls over the run is part
of the learner: a shorter run of the same recipe would be there sooner, or not at all. So a learner's curve says what
its run of this length does, and no more.

Here are RBMs, which are judged by log-likelihood and by repair (`judge`), ours and those of the peers. Stacks are in
`target`, tables and plots in `report`.
"""

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import MissingPeerError, timed
from benchmarks.peers import Port, Rbms, Sklearn
from experiments import named_recipes
from vpf_jax import train
from vpf_jax.app.keys import key_for
from vpf_jax.app.recipes import Recipe
from vpf_jax.app.runs import Placed
from vpf_jax.evaluate import ais, likelihood, reconstruction
from vpf_jax.sample import tempering
from vpf_jax.stack import Stack

Scores = dict[str, float]
# Constant, as the peers offer no other; chosen by the log-likelihood of the validation images (README.md).
SKLEARN_RATE = 0.003
RBMS_RATE = 0.1
# Temperatures of a look are so many times as many where a few chains carry the estimate of log Z.
FINER = 5
# Its name in the tables.
RBMS = "rbms, PCD-1"


class Learner(Protocol):
    """Something that learns; at the start of its training when it is made."""

    def reset(self) -> None:
        """Back to the start."""

    def epoch(self) -> None:
        """One pass over the training images; returns when the work is done."""

    def stack(self) -> Stack:
        """What it has learnt, valid until the next epoch."""


class Competitor(NamedTuple):
    """A learner in a race."""

    name: str
    setup: Callable[[], Learner]
    """Raises MissingPeerError where its package is not installed."""
    epochs: int
    peer: bool = False


class Look(NamedTuple):
    """What a learner was worth after an epoch."""

    epoch: int
    seconds: float
    """In the epochs so far."""
    scores: Scores
    """A score that could not be told is nan."""


class Curve(NamedTuple):
    """All looks at a competitor; none where it could not run, and the note says why."""

    competitor: Competitor
    looks: list[Look]
    note: str = ""


class Goal(NamedTuple):
    """Values of a score that are to be passed."""

    score: str
    told: str
    wanted: tuple[float, ...]
    """From the first that is passed to the last."""
    compared: float
    """The one of them at which times are compared."""

    @property
    def rising(self) -> bool:
        """Whether more is better."""
        return self.wanted[0] < self.wanted[-1]

    def first(self, looks: Sequence[Look], wanted: float) -> Look | None:
        """The first look that is there or better, which a score that could not be told is not; None where none is."""
        return next((look for look in looks if self._worth(look.scores[self.score]) >= self._worth(wanted)), None)

    def best(self, looks: Sequence[Look]) -> Look:
        """The look at which the score was best."""
        return max(looks, key=lambda look: self._worth(look.scores[self.score]))

    def _worth(self, score: float) -> float:
        if math.isnan(score):
            return -math.inf
        return score if self.rising else -score


NATS = Goal("nats", "log-likelihood of the test images, nats", (-110, -100, -90, -86), compared=-90)
REPAIR = Goal("repair", "error of clamped repair, mean over four sides", (40, 35, 32, 30, 28), compared=32)


class RecipeLearner:
    """A recipe of ours from seed 0, all phases compiled before it starts."""

    def __init__(self, recipe: Recipe, visible: jax.Array):
        self._recipe, self._visible = recipe, visible
        self._epochs: list[Callable] = []
        # After so many epochs.
        self._starts: dict[int, Callable] = {}
        self.reset()
        state = self._state
        for config in recipe.phases:
            if self._epochs:
                start = jax.jit(functools.partial(train.start_phase, config=config))
                self._starts[len(self._epochs)] = start
                state = start(state, visible)
            self._epochs += [train.compile_epoch(state, visible, config)] * config.epochs

    def reset(self) -> None:
        means = jnp.mean(self._visible, axis=0, dtype=jnp.float32)
        self._state = self._recipe.initial_state(0, self._visible.shape[1], means)
        self._done = 0

    def epoch(self) -> None:
        state = self._state
        if self._done in self._starts:
            state = self._starts[self._done](state, self._visible)
        self._state, _ = jax.block_until_ready(self._epochs[self._done](state, self._visible))
        self._done += 1

    def stack(self) -> Stack:
        return train.learnt(self._state)


class Race(NamedTuple):
    """Competitors, how they are looked at, and where they are to get."""

    title: str
    competitors: Sequence[Competitor]
    look: Callable[[Stack, int], Scores]
    """Scores of a stack after so many epochs."""
    goals: tuple[Goal, ...]
    against: tuple[str, ...]
    """Names of the competitors with whose times the others' are compared."""
    told: str
    """How the scores were measured."""

    def run(self, most_seconds: float, say: Callable[[str], None]) -> list[Curve]:
        """Trains all in turn, so that what else the machine does falls on all of them alike.

        Args:
          most_seconds: a competitor that has trained so long has run its last epoch.
          say: prints a line.
        """
        curves, trainings = [], []
        for competitor in self.competitors:
            say(f"setting up: {competitor.name}")
            try:
                learner = competitor.setup()
            except MissingPeerError as error:
                say(f"  {error}")
                curves.append(Curve(competitor, [], str(error)))
            else:
                # The first epoch is the slowest.
                learner.epoch()
                learner.reset()
                curves.append(Curve(competitor, []))
                trainings.append(self._train(learner, curves[-1], most_seconds, say))
        for _ in itertools.zip_longest(*trainings):
            pass
        return curves

    def _train(self, learner: Learner, curve: Curve, most_seconds: float, say: Callable[[str], None]) -> Iterator[None]:
        """Epoch by epoch."""
        (name, _, epochs, _), looks, _ = curve
        seconds, epoch = 0.0, 0
        while epoch < epochs and seconds < most_seconds:
            epoch, seconds = epoch + 1, seconds + timed(learner.epoch)
            if epoch == epochs or seconds >= most_seconds or looked_at(epoch):
                scores = self.look(learner.stack(), epoch)
                looks.append(Look(epoch, seconds, scores))
                told = ", ".join(f"{what.replace('_', ' ')} {value:.4g}" for what, value in scores.items())
                say(f"{name}, epoch {epoch}, {seconds:.1f} s: {told}")
            yield


def looked_at(epoch: int) -> bool:
    """Whether there is a look after this epoch: after each of the first 8, then four times per doubling."""
    return epoch % max(1, 2 ** (epoch.bit_length() - 3)) == 0


def rbms(visible: np.ndarray, hidden: int, epochs: int, batch_size: int, recipes: Sequence[str]) -> list[Competitor]:
    """RBMs: recipes of ours, of `named_recipes.RBMS`, and the peers'."""
    images = jnp.asarray(visible)

    def ours(name: str) -> Competitor:
        recipe = named_recipes.rbm(name, hidden, epochs)
        return Competitor(recipe.title, functools.partial(RecipeLearner, recipe, images), recipe.epochs)

    peers: dict[str, Callable[[], Learner]] = {
        RBMS: lambda: Rbms(visible, hidden, batch_size, RBMS_RATE),
        "scikit-learn, PCD-1": lambda: Sklearn(visible, hidden, batch_size, SKLEARN_RATE),
        "PyTorch port, VPF": lambda: Port(visible, (hidden,)),
    }
    return [ours(name) for name in recipes] + [Competitor(name, peer, epochs, True) for name, peer in peers.items()]


def judge(
    train_bits: jax.Array, test: Placed, image_shape: tuple[int, int], annealing: tuple[int, int], num_repaired: int
) -> Callable[[Stack, int], Scores]:
    """Scores of RBMs on test images: log-likelihood, and the error of repair of the first `num_repaired`.

    Args:
      train_bits: whose means are the base from which the annealing starts.
      test: the images.
      image_shape: rows and columns.
      annealing: chains and inverse temperatures, `FINER` times as many of these where they do not tell.
      num_repaired: images.

    Returns:
      A function from a stack of one RBM and the number of an epoch. Where a few chains carry the estimate of log Z, the
      log-likelihood is nan: it would be too high.
    """
    means = jnp.mean(train_bits, axis=0, dtype=jnp.float32)
    bits, grey = test.bits[:num_repaired], test.grey[:num_repaired]
    log_likelihood = jax.jit(likelihood.rbm_log_likelihood)

    def look(stack: Stack, epoch: int) -> Scores:
        (machine,) = stack
        anneal_key, repair_key = jax.random.split(key_for(0, "looking at the quality of an RBM", epoch))
        base = tempering.independent_machine(machine, means)
        for times, key in zip((1, FINER), jax.random.split(anneal_key), strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ais.LowEffectiveSampleSizeWarning)
                estimate = ais.ais_log_partition(key, machine, annealing[0], times * annealing[1], base)
            effective = float(estimate.effective_sample_size)
            if effective >= ais.MIN_EFFECTIVE_SAMPLES:
                break
        nats = float(jnp.mean(log_likelihood(machine, test.bits, estimate.log_z)))
        errors = reconstruction.band_errors(repair_key, machine, bits, grey, image_shape)["clamped"]
        return {
            "nats": nats if effective >= ais.MIN_EFFECTIVE_SAMPLES else math.nan,
            "standard_error": float(estimate.standard_error),
            "effective_samples": effective,
            "repair": float(np.mean(list(errors.values()))),
        }

    return look
