"""Variational probability flow for binary Boltzmann machines, in JAX (Liu, Quek and Lin, arXiv 1711.07732).

The public functions stand here; the modules they come from hold one concept each and say so in their first lines:
`machine`, `energy`, `flow`, `local_rule`, `gibbs`, `stack`, `train`, `parzen`, `monitor`, `datasets`, `checkpoint`,
`figures`.
"""

from vpf_jax.energy import energy, free_energy, local_fields, log_partition_exact
from vpf_jax.flow import flip_rates, vpf_objective
from vpf_jax.gibbs import gibbs_sweep, run_chain
from vpf_jax.local_rule import DirectedGradient, directed_gradient, local_gradient
from vpf_jax.machine import BoltzmannMachine, State, init_machine, tie_intra
from vpf_jax.monitor import squared_weight, weight_sparsity
from vpf_jax.parzen import choose_sigma, parzen_log_likelihood
from vpf_jax.stack import Stack, complete, confabulate, init_stack, mean_activations, sample_hidden

__version__ = "0.2.0"

__all__ = [
    "BoltzmannMachine",
    "DirectedGradient",
    "Stack",
    "State",
    "choose_sigma",
    "complete",
    "confabulate",
    "directed_gradient",
    "energy",
    "flip_rates",
    "free_energy",
    "gibbs_sweep",
    "init_machine",
    "init_stack",
    "local_fields",
    "local_gradient",
    "log_partition_exact",
    "mean_activations",
    "parzen_log_likelihood",
    "run_chain",
    "sample_hidden",
    "squared_weight",
    "tie_intra",
    "vpf_objective",
    "weight_sparsity",
]
