"""Draws samples of a trained model into a file.

    python -m vpf_jax sample MODEL --number=100 --out=samples.npy

MODEL is a model.safetensors, or the folder of a run. Of a single machine each sample is the end of a Gibbs chain of its
own, which starts from random bits. A stack is sampled from the top down as a deep belief network: the chain runs in its
top machine, and --lower_steps of Gibbs sampling in each machine below. Samples have the form of the data, such as codes
of categories. --out may end in .npy, in .csv, of a model of letters in .fasta, or, of a model of images, in .png. Not
here: samples given part of an example (`repair`).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PRNGKeyArray, Shaped

from vpf_jax import checks, figures
from vpf_jax.app import devices, exchange
from vpf_jax.app.keys import key_for
from vpf_jax.app.runs import END_OF_SEEDS, as_pictures, check_memory
from vpf_jax.energy import layer_field
from vpf_jax.machine import BoltzmannMachine
from vpf_jax.models import Model
from vpf_jax.sample.gibbs import run_chain
from vpf_jax.settings import setting
from vpf_jax.sharding import DATA, laid
from vpf_jax.stack import Stack, generated
from vpf_jax.units import TwoValued

# Chains that run at once.
_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True)
class Config(exchange.Config, devices.MeshSettings):
    """Settings of the command; all but the first are flags."""

    number: int = setting(100, "Samples", least=1)
    steps: int = setting(1000, "Gibbs sweeps of each chain", least=1, most=2**31 - 1)
    lower_steps: int = setting(1, "Of a stack: Gibbs steps in each machine below the top one", least=1, most=2**31 - 1)
    seed: int = setting(0, "Seed of the random numbers", least=0, most=END_OF_SEEDS - 1)
    means: bool = setting(False, "Whether means of the units at the ends of the chains are written, not values")
    out: str = setting("samples.npy", "File to write: .npy, .csv, .fasta of letters, or .png of images")


def run(config: Config) -> None:
    """Writes the samples, and says where they are.

    Raises:
      SettingError, UsageError, ModelError, CheckpointError: what is given is not allowed.
    """
    several = config.number if config.number <= _AT_ONCE else math.gcd(config.number, _AT_ONCE)
    with devices.within(config.devices(data=several)):
        _write(config)


def _write(config: Config) -> None:
    path = exchange.check_out(config.out, config.overwrite, (*exchange.ROWS, exchange.FASTA, ".png"))
    model = exchange.read_model(config.model)
    exchange.check_letters(config.out, model)
    letters = path.suffix.lower() == exchange.FASTA
    checks.require(not (letters and config.means), "means", config.means, f"off where --out ends in {exchange.FASTA}")
    shape, picture = exchange.image_shape(model), path.suffix.lower() == ".png"
    is_image = shape is not None and (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3))
    told = f"a file that ends in {' or '.join(exchange.ROWS)}, as the model is not one of images"
    checks.require(is_image or not picture, "out", config.out, told)
    check_memory("number", config.number, 8 * config.number * model.stack[0].num_units)
    if len(model.stack) == 1:
        parts = []
        for start in range(0, config.number, _AT_ONCE):
            count = min(_AT_ONCE, config.number - start)
            found = drawn(key_for(config.seed, "samples", start), model.stack, count, config.steps)
            parts.append(tuple(np.asarray(part) for part in found))
            if config.number > _AT_ONCE:
                print(f"{start + count} of {config.number} samples", flush=True)
        values, means = (np.concatenate(part) for part in zip(*parts, strict=True))
    else:
        key = key_for(config.seed, "samples of a stack")
        found = drawn(key, model.stack, config.number, config.steps, config.lower_steps)
        values, means = (np.asarray(part) for part in found)
    if picture:
        assert shape is not None
        title = f"{config.number} samples after {config.steps} Gibbs sweeps"
        tiles = as_pictures(_shades(model, means if config.means else values), shape)
        figures.save(path, figures.tiles(tiles, title=title))
        print(f"{path}: {len(values)} samples")
    elif config.means:
        exchange.write_rows(path, means, exchange.entry_names(model))
    else:
        exchange.write_values(path, model, values)


def drawn(
    key: PRNGKeyArray, stack: Stack, number: int, steps: int, lower_steps: int = 1
) -> tuple[Shaped[Array, "number n"], Float[Array, "number n"]]:
    """Visible values and means of independent samples, as the command draws them."""
    if len(stack) == 1:
        return chains(jax.random.split(key, number), stack[0], steps=steps)
    draw_key, key = jax.random.split(key)
    lower, top = jnp.int32(lower_steps), jnp.int32(steps)
    values, means = jax.jit(functools.partial(generated, num_samples=number))(key, stack, steps=lower, top_steps=top)
    unit = stack[0].layer_units[0]
    if isinstance(unit, TwoValued):
        values = unit.at(jax.random.uniform(draw_key, means.shape) < unit.share(means)).astype(unit.dtype)
    return values, means


def _shades(model: Model, rows: np.ndarray) -> np.ndarray:
    """In [0, 1]: the share of the upper of two values, of other units between the least and the largest value drawn."""
    unit = model.stack[0].layer_units[0]
    if isinstance(unit, TwoValued):
        return np.asarray(unit.share(jnp.asarray(rows, jnp.float32)))
    low, high = float(rows.min()), float(rows.max())
    return (rows.astype(np.float64) - low) / (high - low or 1)


@functools.partial(jax.jit, static_argnames="steps")
def chains(
    keys: Key[Array, " chains"], machine: BoltzmannMachine, *, steps: int
) -> tuple[Shaped[Array, "chains n"], Float[Array, "chains n"]]:
    """Visible values and means at the ends of chains."""
    return jax.vmap(lambda key: _chain(key, machine, steps))(laid(keys, DATA))


def _chain(key: PRNGKeyArray, machine: BoltzmannMachine, steps: int) -> tuple[Shaped[Array, " n"], Float[Array, " n"]]:
    """Of one chain, from random values, all alike where they can be counted, and else those of units without input."""
    start_key, chain_key = jax.random.split(key)
    layers = zip(machine.layer_units, machine.biases, jax.random.split(start_key, len(machine.sizes)), strict=True)
    start = tuple(
        unit.sample(b if unit.all_values() is None else jnp.zeros_like(b), jax.random.uniform(key, b.shape)).astype(
            unit.dtype
        )
        for unit, b, key in layers
    )
    state = run_chain(chain_key, machine, start, steps)
    return state[0], machine.layer_units[0].mean(layer_field(machine, state, 0))
