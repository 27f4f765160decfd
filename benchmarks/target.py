"""Time to a Parzen score: trains the intra-layer DBM at the library's defaults until validation images read it."""

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

import vpf_jax
from experiments import generation
from vpf_jax import train
from vpf_jax.data import Dataset, binarise


@dataclasses.dataclass(frozen=True)
class Reached:
    """What the run did; scores in nats per image."""

    wanted: float
    epochs: int
    train_seconds: float
    """In epochs, the first one's compilation included."""
    evaluation_seconds: float
    validation: float
    test: float
    test_sem: float

    @property
    def reached(self) -> bool:
        return self.validation >= self.wanted


def time_to_parzen(
    data: Dataset,
    hidden: tuple[int, ...],
    wanted: float,
    every: int,
    most_epochs: int,
    num_samples: int,
    say: Callable[[str], None],
) -> Reached:
    """Trains until `wanted` or for `most_epochs`, looking every `every` epochs at `num_samples` generated images."""
    config = train.TrainConfig()
    stack_key, train_key, looking_key = jax.random.split(jax.random.key(0), 3)
    stack = vpf_jax.init_stack(stack_key, (data.train.images.shape[1], *hidden), intra=True)
    state = train.init_state(train_key, stack, config)
    visible = jnp.asarray(binarise(data.train.images))
    sampler = generation.Sampler("prior", 3, 3)
    run_epoch = None
    training, evaluating, epoch = 0.0, 0.0, 0
    while True:
        started = time.perf_counter()
        run_epoch = run_epoch or train.compile_epoch(state, visible, config)
        state, metrics = run_epoch(state, visible)
        jax.block_until_ready(metrics)
        training += time.perf_counter() - started
        epoch += 1
        if epoch % every and epoch != most_epochs:
            continue
        started = time.perf_counter()
        prior_key, sample_key = jax.random.split(jax.random.fold_in(looking_key, epoch))
        prior = generation.prior_of(prior_key, state.stack, data)
        centres = generation.generate(sample_key, state.stack, prior, sampler, num_samples)
        score = generation.parzen_scores(centres, data)
        evaluating += time.perf_counter() - started
        found = Reached(wanted, epoch, training, evaluating, score["validation_mean"], score["mean"], score["sem"])
        say(f"epoch {epoch}: {training:.0f} s of training, validation {found.validation:.1f}, test {found.test:.1f}")
        if found.reached or epoch == most_epochs:
            return found
