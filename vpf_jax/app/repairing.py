"""Fills in what is missing or covered in the examples of a file, given the rest of each.

    python -m vpf_jax repair MODEL DATA --mask=bottom --out=repaired.npy

MODEL is a model.safetensors, or the folder of a run. Filled in are the entries that the file leaves open (NaN), and
those of --mask: an .npy file of booleans, one for each variable or for each entry of DATA, or, of images, a band at the
top, bottom, left or right. The other entries are held in every one of the Gibbs steps. Of a stack the bottom machine
repairs, as its machines share no distribution. Filled in are means, of categories the most probable value, and with
--means=off values. --out may end in .npy or in .csv, of a model of letters in .fasta; of a model of words .csv holds
words. Not here: corruption of whole images, and how well repair works (`experiments.repair_table`).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PRNGKeyArray, Shaped

from vpf_jax.app import devices, exchange
from vpf_jax.app.folder import UsageError
from vpf_jax.app.keys import key_for
from vpf_jax.app.runs import END_OF_SEEDS
from vpf_jax.checks import SettingError
from vpf_jax.evaluate.reconstruction import SIDES, band_mask, filled
from vpf_jax.machine import BoltzmannMachine
from vpf_jax.models import Model
from vpf_jax.settings import setting
from vpf_jax.units import TwoValued
from vpf_jax.units.base import by_entry, first_entries


@dataclasses.dataclass(frozen=True)
class Config(exchange.DataConfig, devices.MeshSettings):
    """Settings of the command; all but the first two are flags."""

    mask: str | None = setting(
        None, "What is covered: an .npy file of booleans, or top, bottom, left or right of images"
    )
    steps: int = setting(100, "Gibbs steps", least=1, most=2**31 - 1)
    seed: int = setting(0, "Seed of the random numbers", least=0, most=END_OF_SEEDS - 1)
    means: bool = setting(True, "Whether means of the units after the last step are filled in, not values")
    out: str = setting("repaired.npy", "File to write: .npy or .csv")


def run(config: Config) -> None:
    """Writes the repaired examples.

    Raises:
      SettingError, UsageError, ModelError, CheckpointError, DatasetError: what is given is not allowed.
    """
    with devices.within(config.devices(data=devices.ANY)):
        _write(config)


def _write(config: Config) -> None:
    path = exchange.check_out(config.out, config.overwrite, (*exchange.ROWS, exchange.FASTA))
    model = exchange.read_model(config.model)
    exchange.check_letters(config.out, model)
    examples = exchange.read_data(config, model)
    visible, mask = examples.visible, _mask(config, model, len(examples.visible))
    if examples.missing is not None:
        mask = mask | examples.missing
    if not mask.any():
        raise UsageError(f"got {config.data} without missing entries, and no --mask; nothing is to be repaired")
    machine, unit = model.stack[0], exchange.visible_unit(model)
    start_key, chain_key, draw_key = jax.random.split(key_for(config.seed, "repaired examples"), 3)
    # What the file holds there is forgotten.
    given = jnp.where(mask, _start(start_key, machine, len(visible)), visible)
    values, means = jax.jit(filled)(chain_key, machine, given, jnp.asarray(mask), jnp.int32(config.steps))
    if isinstance(unit, TwoValued):
        drawn = unit.at(jax.random.uniform(draw_key, means.shape) < unit.share(means))
        values = jnp.where(mask, drawn, visible).astype(unit.dtype)
    told = f", by the bottom machine of {len(model.stack)}" if len(model.stack) > 1 else ""
    units_filled = mask[:, first_entries(unit, machine.sizes[0])]
    print(f"{units_filled.sum()} of {units_filled.size} entries filled in{told}")
    exchange.write_values(path, model, means if config.means else values)


def _start(key: PRNGKeyArray, machine: BoltzmannMachine, count: int) -> Shaped[Array, "count n_0"]:
    """Random visible values, all alike where they can be counted, and else those of units without input."""
    unit, bias = machine.layer_units[0], machine.biases[0]
    fields = jnp.broadcast_to(bias if unit.all_values() is None else jnp.zeros_like(bias), (count, len(bias)))
    return unit.sample(fields, jax.random.uniform(key, fields.shape)).astype(unit.dtype)


def _mask(config: Config, model: Model, count: int) -> Bool[np.ndarray, "n n_0"]:
    """What the setting covers, for each example: one entry of the file for each variable."""
    machine = model.stack[0]
    unit, entries = machine.layer_units[0], machine.sizes[0]
    shape = (count, exchange.num_variables(model))
    if config.mask is None:
        return np.zeros((count, machine.sizes[0]), bool)
    if config.mask in SIDES:
        image = exchange.image_shape(model)
        if image is None or len(image) != 2:
            raise SettingError("mask", config.mask, "an .npy file of booleans, as the model is not one of grey images")
        rows, columns = image
        return np.broadcast_to(band_mask(config.mask, (rows, columns)), shape)
    allowed = f"an .npy file of booleans of shape {shape[1:]} or {shape}, or one of {', '.join(SIDES)}"
    try:
        mask = np.load(config.mask, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SettingError("mask", config.mask, f"{allowed} ({' '.join(str(error).split())})") from None
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape not in (shape, shape[1:]):
        told = f"of shape {mask.shape} and dtype {mask.dtype}" if isinstance(mask, np.ndarray) else "an archive"
        raise SettingError("mask", config.mask, f"{allowed}; this is one {told}")
    return np.asarray(by_entry(unit, entries, np.broadcast_to(mask, shape)))
