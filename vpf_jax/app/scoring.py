"""Scores each example of a file by a trained model, in nats.

    python -m vpf_jax score MODEL DATA --out=scores.csv

MODEL is a model.safetensors, or the folder of a run. The columns are log_likelihood, free_energy and
pseudo_log_likelihood (an estimate from one unit per example) of a machine whose hidden units are independent, and
log_likelihood_bound of any other, or where entries of DATA are missing, then of those that are not: a lower bound, in
the mean over the random numbers where they are drawn. The
partition function is an exact sum where few units are left when a layer is summed out, and else annealed, with its
standard error said; an estimate that is too low raises every score alike. --out may end in .csv or in .npy, there one
array with a field per column. Not here: scores of what is generated.
"""

import dataclasses

import numpy as np

from vpf_jax.app import devices, exchange
from vpf_jax.app.folder import UsageError
from vpf_jax.app.keys import key_for
from vpf_jax.app.runs import END_OF_SEEDS, check_memory
from vpf_jax.evaluate import scores
from vpf_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class Config(exchange.DataConfig, devices.MeshSettings):
    """Settings of the command; all but the first two are flags."""

    num_chains: int = setting(500, "Chains of the annealing, where log Z is not summed", least=2)
    num_temperatures: int = setting(5000, "Inverse temperatures of the annealing", least=2, most=2**31 - 1)
    seed: int = setting(0, "Seed of the random numbers", least=0, most=END_OF_SEEDS - 1)
    out: str = setting("scores.csv", "File to write: .csv or .npy")


def run(config: Config) -> None:
    """Writes the scores, and says their means.

    Raises:
      SettingError, UsageError, ModelError, CheckpointError, DatasetError: what is given is not allowed.
    """
    with devices.within(config.devices(data=config.num_chains)):
        _write(config)


def _write(config: Config) -> None:
    path = exchange.check_out(config.out, config.overwrite)
    model = exchange.read_model(config.model)
    if any(machine.backward is not None for machine in model.stack):
        raise UsageError(f"got {config.model}, a directed machine, which has no likelihood; it takes symmetric weights")
    visible, missing = exchange.read_data(config, model)
    top = model.stack[-1]
    check_memory("num_chains", config.num_chains, 16 * config.num_chains * top.num_units)
    if not scores.is_summable(top):
        told = f"{config.num_chains} chains over {config.num_temperatures} temperatures"
        print(f"log Z of {top.num_units} units: annealing {told} ...", flush=True)
    try:
        key = key_for(config.seed, "log Z of a score")
        log_z = scores.log_partition(key, model.stack, visible, config.num_chains, config.num_temperatures)
        found = scores.scores(key_for(config.seed, "scores"), model.stack, visible, log_z.value, missing)
    except ValueError as error:
        raise UsageError(f"{config.model}: {error}") from None
    print(log_z.told)
    exchange.write_columns(path, found)
    for name, values in found.items():
        column = np.asarray(values, np.float64)
        told = f"{name.replace('_', ' ')}: mean {column.mean():.3f}"
        if len(column) > 1:
            told += f" +- {column.std(ddof=1) / np.sqrt(len(column)):.3f} (standard error over the examples)"
        print(told)
