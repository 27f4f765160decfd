"""Our own cases: epochs of training, block Gibbs sampling, spiking machines and Parzen scores.

Flops of an epoch are 8 per weight and example: two products for the fields and two for the gradient, 2 flops each.
The E-step's own product, sweeps, random numbers and the optimizer are in the time and not in the flops. A Gibbs sweep
counts 4 per weight and chain.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

import vpf_jax
from benchmarks.measure import Case
from vpf_jax import train
from vpf_jax.app.keys import key_for
from vpf_jax.app.recipes import Recipe

FLOPS_PER_WEIGHT = 8
# Chains whose states pass through their sweeps together, as they fit the cache of a core.
CHAINS_AT_ONCE = 1000


def epoch_case(
    name: str,
    visible: UInt8[Array, "num_examples n_0"],
    hidden: tuple[int, ...],
    config: train.TrainConfig,
    intra: bool = False,
    num_seeds: int = 1,
    against: tuple[str, ...] = (),
) -> Case:
    """One epoch of training; with several seeds, of all of them at once under vmap."""
    recipe, sizes = Recipe(name, hidden, (config,), intra), (visible.shape[1], *hidden)

    def setup() -> Callable[[], object]:
        if num_seeds == 1:
            state = recipe.initial_state(0, sizes[0])
            epoch = train.compile_epoch(state, visible, config)
        else:
            state = recipe.initial_states(range(num_seeds), sizes[0])
            epochs = jax.vmap(lambda s, v: train.train_epoch(s, v, config=config), in_axes=(0, None))
            epoch = jax.jit(epochs, donate_argnums=0)

        def run() -> None:
            nonlocal state
            state, metrics = epoch(state, visible)
            jax.block_until_ready(metrics)

        return run

    flops = FLOPS_PER_WEIGHT * num_weights(sizes, intra) * visible.shape[0] * num_seeds
    return Case(name, setup, flops=flops, against=against)


def gibbs_case(name: str, sizes: tuple[int, int], num_chains: int, num_sweeps: int) -> Case:
    """Block Gibbs sampling of an RBM: every chain resamples all its units `num_sweeps` times."""

    def setup() -> Callable[[], object]:
        machine = vpf_jax.init_machine(key_for(0, "machine that is sampled"), sizes)
        rng = np.random.default_rng(0)
        states = tuple(jnp.asarray(rng.integers(0, 2, (num_chains, n)), jnp.uint8) for n in sizes)

        @jax.jit
        def sample(key: Array, states: tuple[Array, ...]) -> tuple[Array, ...]:
            def chain(key_and_state: tuple[Array, tuple[Array, ...]]) -> tuple[Array, ...]:
                key, state = key_and_state
                return vpf_jax.run_chain(key, machine, state, num_sweeps)

            keys = jax.random.split(key, num_chains)
            return jax.lax.map(chain, (keys, states), batch_size=min(CHAINS_AT_ONCE, num_chains))

        return lambda: jax.block_until_ready(sample(key_for(0, "timed chains"), states))

    return Case(name, setup, flops=4.0 * sizes[0] * sizes[1] * num_chains * num_sweeps)


def spiking_case(name: str, sizes: tuple[int, int], num_runs: int, num_events: int) -> Case:
    """Continuous-time dynamics of as many RBMs at once, every flip recorded and the occupation averaged."""

    def setup() -> Callable[[], object]:
        # Weights of a size at which units neither freeze nor flip at random.
        machine = jax.tree.map(lambda p: 20 * p, vpf_jax.init_machine(key_for(0, "machine that spikes"), sizes))
        rng = np.random.default_rng(0)
        states = tuple(jnp.asarray(rng.integers(0, 2, (num_runs, n)), jnp.uint8) for n in sizes)

        @jax.jit
        def simulate(key: Array) -> vpf_jax.SpikingRun:
            keys = jax.random.split(key, num_runs)
            run = functools.partial(vpf_jax.run_spiking, num_events=num_events)
            return jax.vmap(run, in_axes=(0, None, 0))(keys, machine, states)

        return lambda: jax.block_until_ready(simulate(key_for(0, "timed spikes")))

    return Case(name, setup)


def parzen_case(name: str, dimension: int, num_points: int) -> Case:
    """Parzen log-likelihood of as many points as centres; counted as the product inside their distances."""

    def setup() -> Callable[[], object]:
        centres, points = jax.random.uniform(key_for(0, "Parzen points"), (2, num_points, dimension))
        return lambda: jax.block_until_ready(vpf_jax.parzen_log_likelihood(centres, points, 0.2))

    return Case(name, setup, flops=2.0 * dimension * num_points**2)


def num_weights(sizes: tuple[int, ...], intra: bool) -> int:
    """Weights of a pairwise stack, an intra-layer one counted once for each of its two places."""
    pairs = sum(a * b for a, b in itertools.pairwise(sizes))
    return pairs + (sum(n * n for n in sizes[1:]) if intra else 0)
