"""Variational probability flow for Boltzmann machines, in JAX (Liu, Quek and Lin, arXiv 1711.07732).

The public functions stand here; the modules they come from hold one concept each and say so in their first lines:
`units`, `couplings`, `machine`, `energy`, `gauges`, `sample`, `stack`, `examples`, `rules`, `train`, `blocks`,
`seeding`, `evaluate`, `spikes`, `data`, `checkpoint`, `loading`, `models`, `figures`, `settings`, `checks`.
Neighbouring learning systems lie in `vpf_jax.related`, what turns functions into programs in `vpf_jax.app`; both are
imported by name. What deals with files, pictures, data and training is loaded when it is first used: it needs more
than the pure functions do.
"""

import importlib
from typing import TYPE_CHECKING, Any

from vpf_jax.checks import SettingError, checked
from vpf_jax.energy import energy, free_energy, local_fields, log_partition_exact, marginal_energy
from vpf_jax.evaluate.ais import LogPartition, ais_log_partition, ais_log_partition_reverse
from vpf_jax.evaluate.contacts import contact_scores, precision_at
from vpf_jax.evaluate.likelihood import rbm_log_likelihood, stack_bound, variational_bound
from vpf_jax.evaluate.monitor import alignment, linear_probe, pseudo_log_likelihood, squared_weight, weight_sparsity
from vpf_jax.evaluate.parzen import choose_sigma, parzen_log_likelihood
from vpf_jax.evaluate.reconstruction import band_mask, corrupt, inpaint, random_mask, reconstruct, reconstruction_error
from vpf_jax.examples import Examples
from vpf_jax.gauges import standardise, to_zero_sum, with_units
from vpf_jax.machine import BoltzmannMachine, State, init_machine, tie_intra, untie, with_visible_means
from vpf_jax.rules.chains import contrastive_divergence, persistent_contrastive_divergence
from vpf_jax.rules.energy_discrepancy import energy_discrepancy
from vpf_jax.rules.flips import averaged_flow, flip_estimate
from vpf_jax.rules.tap import tap_log_partition, tap_means
from vpf_jax.rules.tethered import tethered_contrastive_divergence
from vpf_jax.rules.vpf import DirectedGradient, directed_gradient, flip_rates, local_gradient, vpf_objective
from vpf_jax.sample.gibbs import gibbs_sweep, run_chain
from vpf_jax.sample.tempering import independent_machine, run_tempered
from vpf_jax.spikes.event_learning import OnlineResult, event_gradient, learn_from_events
from vpf_jax.spikes.spiking import SpikeTrain, SpikingRun, run_spiking
from vpf_jax.spikes.stdp import (
    Pairings,
    binned_errors,
    binned_means,
    binned_window,
    relaxation_depression,
    simulate_pairings,
    stdp_window,
)
from vpf_jax.stack import Stack, complete, confabulate, init_stack, mean_activations, sample_hidden, untie_stack

if TYPE_CHECKING:
    from vpf_jax import checkpoint as checkpoint
    from vpf_jax import data as data
    from vpf_jax import figures as figures
    from vpf_jax import train as train
    from vpf_jax.loading import load_stack as load_stack
    from vpf_jax.models import load_model as load_model
    from vpf_jax.models import save_model as save_model

__version__ = "0.10.0"

_LAZY_MODULES = ("checkpoint", "data", "figures", "train")
_LAZY_FUNCTIONS = {"load_stack": "loading", "load_model": "models", "save_model": "models"}


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return importlib.import_module(f"vpf_jax.{name}")
    if name in _LAZY_FUNCTIONS:
        return getattr(importlib.import_module(f"vpf_jax.{_LAZY_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_LAZY_MODULES})


__all__ = [
    "BoltzmannMachine",
    "DirectedGradient",
    "Examples",
    "LogPartition",
    "OnlineResult",
    "Pairings",
    "SettingError",
    "SpikeTrain",
    "SpikingRun",
    "Stack",
    "State",
    "ais_log_partition",
    "ais_log_partition_reverse",
    "alignment",
    "averaged_flow",
    "band_mask",
    "binned_errors",
    "binned_means",
    "binned_window",
    "checked",
    "choose_sigma",
    "complete",
    "confabulate",
    "contact_scores",
    "contrastive_divergence",
    "corrupt",
    "directed_gradient",
    "energy",
    "energy_discrepancy",
    "event_gradient",
    "flip_estimate",
    "flip_rates",
    "free_energy",
    "gibbs_sweep",
    "independent_machine",
    "init_machine",
    "init_stack",
    "inpaint",
    "learn_from_events",
    "linear_probe",
    "load_model",
    "load_stack",
    "local_fields",
    "local_gradient",
    "log_partition_exact",
    "marginal_energy",
    "mean_activations",
    "parzen_log_likelihood",
    "persistent_contrastive_divergence",
    "precision_at",
    "pseudo_log_likelihood",
    "random_mask",
    "rbm_log_likelihood",
    "reconstruct",
    "reconstruction_error",
    "relaxation_depression",
    "run_chain",
    "run_spiking",
    "run_tempered",
    "sample_hidden",
    "save_model",
    "simulate_pairings",
    "squared_weight",
    "stack_bound",
    "standardise",
    "stdp_window",
    "tap_log_partition",
    "tap_means",
    "tethered_contrastive_divergence",
    "tie_intra",
    "to_zero_sum",
    "untie",
    "untie_stack",
    "variational_bound",
    "vpf_objective",
    "weight_sparsity",
    "with_units",
    "with_visible_means",
]
