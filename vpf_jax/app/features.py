"""Writes the hidden activations of the examples of a file: features for whatever comes next, such as a classifier.

    python -m vpf_jax features MODEL DATA --out=features.npy

MODEL is a model.safetensors, or the folder of a run. Each layer's units are given by their means, computed from the
means below them; nothing is sampled, and input from the own layer is left out. --out may end in .npy or in .csv. Not
here: a classifier.
"""

import dataclasses

import numpy as np

from vpf_jax import checks
from vpf_jax.app import exchange
from vpf_jax.app.folder import UsageError
from vpf_jax.evaluate.monitor import hidden_means
from vpf_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class Config(exchange.DataConfig):
    """Settings of the command; all but the first two are flags."""

    layer: int | None = setting(None, "Hidden layer, 1 being the lowest; left out: the highest", least=1)
    out: str = setting("features.npy", "File to write: .npy or .csv")


def run(config: Config) -> None:
    """Writes the activations.

    Raises:
      SettingError, UsageError, ModelError, CheckpointError, DatasetError: what is given is not allowed.
    """
    path = exchange.check_out(config.out, config.overwrite)
    model = exchange.read_model(config.model)
    layers = sum(len(machine.sizes) - 1 for machine in model.stack)
    if not layers:
        raise UsageError(f"got {config.model}, a model without hidden units; features are theirs")
    layer = layers if config.layer is None else config.layer
    allowed = f"from 1 to {layers}, as the model has {layers} hidden layer{'s' if layers > 1 else ''}"
    checks.require(layer <= layers, "layer", config.layer, allowed)
    visible = exchange.complete(config, exchange.read_data(config, model), "a feature")
    found = np.asarray(hidden_means(model.stack, visible)[layer - 1])
    exchange.write_rows(path, found, [f"h{i}" for i in range(found.shape[1])])
