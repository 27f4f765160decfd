"""Time to a Parzen score: trains the intra-layer DBM at the library's defaults until validation images read it."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from vpf_jax.app.keys import key_for
from vpf_jax.app.loop import Row
from vpf_jax.app.recipes import Recipe
from vpf_jax.app.runs import Images
from vpf_jax.evaluate import generation
from vpf_jax.train import TrainConfig


@dataclasses.dataclass(frozen=True)
class Reached:
    """What the run did; scores in nats per image."""

    wanted: float
    epochs: int
    train_seconds: float
    """In epochs, without compilation."""
    evaluation_seconds: float
    validation: float
    test: float
    test_sem: float

    @property
    def reached(self) -> bool:
        return self.validation >= self.wanted


def time_to_parzen(
    images: Images,
    hidden: tuple[int, ...],
    wanted: float,
    every: int,
    most_epochs: int,
    num_samples: int,
    say: Callable[[str], None],
) -> Reached:
    """Trains until `wanted` or for `most_epochs`, looking every `every` epochs at `num_samples` generated images."""
    recipe = Recipe("intra-layer DBM", hidden, (TrainConfig(epochs=most_epochs),), intra=True)
    visible = images.train.bits
    evaluating = 0.0

    def look(state: Any, epoch: int) -> Row:
        nonlocal evaluating
        if epoch % every and epoch != most_epochs:
            return {}
        began = time.perf_counter()
        prior_key, sample_key = jax.random.split(key_for(0, "looking at a benchmark", epoch))
        prior = generation.activations(prior_key, state.stack, visible)[-1]
        centres = generation.generate(sample_key, state.stack, prior, generation.Sampler("prior", 3, 3), num_samples)
        scores = images.score(centres)
        evaluating += time.perf_counter() - began
        say(f"epoch {epoch}: validation {scores['validation_mean']:.1f}, test {scores['mean']:.1f}")
        return scores

    with tempfile.TemporaryDirectory() as folder:
        trained = recipe.run(
            Path(folder),
            recipe.initial_state(0, visible.shape[1]),
            visible,
            measure=look,
            until=lambda row: row.get("validation_mean", wanted - 1) >= wanted,
            checkpoint_every=most_epochs,
            stops=[],
        )
    row = trained.rows[-1]
    scored = row["validation_mean"], row["mean"], row["sem"]
    return Reached(wanted, row["epoch"], trained.seconds, evaluating, *scored)
