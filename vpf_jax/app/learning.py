"""Stands for vpf_jax.rules and the new vpf_jax.train until they are merged; then it goes."""

import dataclasses
from typing import Any, ClassVar

from vpf_jax import train
from vpf_jax.settings import Settings, setting
from vpf_jax.train import Metrics, TrainState, check_finite, largest_weight  # noqa: F401


@dataclasses.dataclass(frozen=True)
class VPF(Settings):
    """Variational probability flow."""

    name: ClassVar[str] = "vpf"
    estep: str = setting(
        "epoch",
        "When hidden states are sampled: once per epoch for all images (the paper's), or for each minibatch",
        choices=("epoch", "minibatch"),
    )
    expectation: str = setting(
        "sample",
        "Over the hidden states: one sample of them, or the closed form (machines without weights inside the hidden "
        "layers; 15 times as slow unless --flips_per_step is given)",
        choices=("sample", "exact"),
    )
    hidden_flips: bool = setting(True, "Whether flips of hidden units count")
    flips_per_step: int | None = setting(
        None, "Visible units, drawn at random, whose flips a step counts; all where it is left out", least=1
    )
    epsilon: float = setting(0.01, "The small time of probability flow", above=0)


@dataclasses.dataclass(frozen=True)
class MPF(Settings):
    """Marginal minimum probability flow."""

    name: ClassVar[str] = "mpf"
    flips_per_step: int | None = setting(
        None, "Visible units, drawn at random, whose flips a step counts; all where it is left out", least=1
    )
    epsilon: float = setting(0.01, "The small time of probability flow", above=0)


@dataclasses.dataclass(frozen=True)
class PL(Settings):
    """Pseudo-likelihood."""

    name: ClassVar[str] = "pl"
    flips_per_step: int | None = setting(
        None, "Visible units, drawn at random, whose flips a step counts; all where it is left out", least=1
    )


@dataclasses.dataclass(frozen=True)
class RatioMatching(PL):
    """Ratio matching."""

    name: ClassVar[str] = "ratio"


@dataclasses.dataclass(frozen=True)
class CD(Settings):
    """Contrastive divergence."""

    name: ClassVar[str] = "cd"
    steps: int = setting(1, "Gibbs sweeps per step", least=1, flag="rule_steps")


@dataclasses.dataclass(frozen=True)
class PCD(CD):
    """Persistent contrastive divergence."""

    name: ClassVar[str] = "pcd"


_RULES = {rule.name: rule for rule in (VPF, MPF, CD, PCD, PL, RatioMatching)}


def names() -> tuple[str, ...]:
    return tuple(_RULES)


def get(name: str) -> Any:
    return _RULES[name]


@dataclasses.dataclass(frozen=True)
class Adam(Settings):
    """The optimizer."""

    name: ClassVar[str] = "adam"
    learning_rate: float = setting(1e-3, "Step size of Adam", above=0)
    schedule: str = setting(
        "constant", "Of the learning rate: constant, or cosine down to 0", choices=("constant", "cosine")
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig(Settings):
    """Settings of training."""

    rule: Any = VPF()
    optimizer: Any = Adam()
    epochs: int = setting(200, "Passes over the training images", least=1)
    batch_size: int = setting(40, "Images per step, up to the number of training images", least=1)
    weight_decay: float = setting(
        1e-4,
        "The gradient of the loss, 0.01 J, gains this times w (twice for weights inside a layer)",
        least=0,
    )
    max_weight: float | None = setting(None, "Bound on |w|; no bound where it is left out", above=0)
    precision: str = setting(
        "float32",
        "Of the factors in training's matrix products; sums, parameters and the optimizer stay in float32",
        choices=("float32", "bfloat16"),
    )


def old(config: TrainConfig) -> train.TrainConfig:
    rule, found = config.rule, {}
    for field in dataclasses.fields(rule):
        found["rule_steps" if field.name == "steps" else field.name] = getattr(rule, field.name)
    for name in ("epochs", "batch_size", "weight_decay", "max_weight", "precision"):
        found[name] = getattr(config, name)
    return train.TrainConfig(
        rule=rule.name, learning_rate=config.optimizer.learning_rate, schedule=config.optimizer.schedule, **found
    )


def init_state(key: Any, stack: Any, config: TrainConfig) -> TrainState:
    return train.init_state(key, stack, old(config))


def start_phase(state: TrainState, visible: Any, config: TrainConfig) -> TrainState:
    return train.start_phase(state, visible, old(config))


def compile_epoch(state: TrainState, visible: Any, config: TrainConfig, at_once: int | None = None) -> Any:
    return train.compile_epoch(state, visible, old(config), at_once)


def train_epoch(state: TrainState, visible: Any, *, config: TrainConfig) -> Any:
    return train.train_epoch(state, visible, config=old(config))
