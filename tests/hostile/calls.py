"""Right calls of every public function, small, and wrong values for each kind of argument: data for the hostile tests.

A call names its function, its right arguments, and the kind of each argument that has wrong values in `WRONG`. Not
here: what is asserted.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from families import training
from typed import unchecked

import vpf_jax as V
from vpf_jax import rules, train
from vpf_jax.data import alignment
from vpf_jax.evaluate import ais, comparison, likelihood, monitor
from vpf_jax.related import binary_synapses, equilibrium_propagation, target_propagation
from vpf_jax.sample import tempering


@dataclasses.dataclass(frozen=True)
class Call:
    """A right call of a function."""

    function: Callable
    arguments: dict[str, Any]
    kinds: dict[str, str]
    """Argument -> key of `WRONG`."""

    def run(self, **changed: Any) -> Any:
        # A key of its own for each call: keys are consumed.
        keys = {name: jax.random.key(0) for name in ("key",) if isinstance(self.arguments.get(name), jax.Array)}
        return self.function(**self.arguments | keys | changed)


class Table:
    """Something like a table of the package pandas, which is not installed."""

    shape = (5, 4)

    def __init__(self) -> None:
        self.dtypes = "uint8"

    def to_numpy(self) -> np.ndarray:
        return np.zeros((5, 4))


def parameters_of(machine: V.BoltzmannMachine, **changed: Any) -> V.BoltzmannMachine:
    with unchecked():
        return dataclasses.replace(machine, **changed)


_FOLDER = tempfile.TemporaryDirectory()
KEY = jax.random.key(0)
_KEYS = iter(jax.random.split(jax.random.key(1), 20))
RBM = V.init_machine(next(_KEYS), (4, 3))
DEEP = V.init_machine(next(_KEYS), (4, 3, 2), intra=(1, 2))
STACK = V.init_stack(next(_KEYS), (4, 3, 2), intra=True)
VISIBLE = jnp.asarray(np.random.default_rng(0).integers(0, 2, (5, 4)), jnp.uint8)
HIDDEN = jnp.asarray(np.random.default_rng(1).integers(0, 2, (5, 3)), jnp.uint8)
STATES = (VISIBLE, HIDDEN)
STATE = (VISIBLE[0], HIDDEN[0])
MEANS = jnp.full((5, 3), 0.5)
MASK = np.array([True, False, True, False])
GREY = np.linspace(0, 1, 20, dtype=np.float32).reshape(5, 4)
SPINS = 2.0 * np.asarray(VISIBLE) - 1
CONFIG = training(batch_size=2, epochs=3)
EQUILIBRIUM = equilibrium_propagation.EquilibriumConfig(batch_size=2, free_steps=2, nudged_steps=1)
NETWORK = equilibrium_propagation.init_network(next(_KEYS), (4, 3, 2))
TARGETS = target_propagation.TargetConfig(batch_size=2)
MAPS = target_propagation.init_parameters(next(_KEYS), (4, 3, 2))
PRIOR = target_propagation.fit_prior(MAPS, GREY)
SYNAPSES = binary_synapses.SynapseConfig()
LEARNT = binary_synapses.init_synapses(next(_KEYS), 4, 2, SYNAPSES)
BETAS = jnp.array([0.0, 0.3, 0.6, 0.8, 1.0])
EDGES = np.array([1.0, 2.0, 4.0])

NAN = parameters_of(RBM, weights=(RBM.weights[0].at[1, 1].set(jnp.nan),))
INFINITE = parameters_of(RBM, biases=(RBM.biases[0], RBM.biases[1].at[0].set(jnp.inf)))
MISFIT = parameters_of(RBM, weights=(jnp.zeros((3, 4)),))
UNTIED = parameters_of(V.init_machine(next(_KEYS), (4, 3), intra=(1,)), intra=(None, jnp.triu(jnp.ones((3, 3)), 1)))
LOOPED = parameters_of(V.init_machine(next(_KEYS), (4, 3), intra=(1,)), intra=(None, jnp.ones((3, 3))))
WHOLE_NUMBERS = jax.tree.map(lambda p: p.astype(int), RBM)
DIRECTED = V.untie(None, RBM)
POTTS = V.init_machine(next(_KEYS), (6,), intra=(0,), units=V.units.Categorical(3))
REAL = V.init_machine(next(_KEYS), (4, 3), units=(V.units.GAUSSIAN, V.units.BINARY))


def states_with(visible: Any) -> tuple:
    return visible, *STATES[1:]


def of_bits(right: Any) -> dict[str, Any]:
    """Wrong values where an array of zeros and ones of the shape and dtype of the right one is taken."""
    x = np.asarray(right, np.float32)
    missing = x.copy()
    missing.flat[0] = np.nan
    return {
        "a list": x.tolist(),
        "a table": Table(),
        "nothing": None,
        "words": np.full(x.shape, "one"),
        "spins": 2 * x - 1,
        "grey values": np.linspace(0, 1, x.size, dtype=np.float32).reshape(x.shape),
        "bytes": np.linspace(0, 255, x.size).astype(np.uint8).reshape(x.shape),
        "counts": np.arange(x.size).reshape(x.shape) % 5,
        "a missing value": missing,
        "infinite values": np.where(x > 0, np.inf, 0),
        "a unit too many": np.concatenate([x, x[..., :1]], axis=-1),
        "an axis too many": x[..., None],
        "a number": 1.0,
    }


BATCH = {"no example": VISIBLE[:0], "one example without its axis": VISIBLE[0]}
WRONG: dict[str, dict[str, Any]] = {
    "key": {
        "a seed": 0,
        "nothing": None,
        "several keys": jax.random.split(next(_KEYS), 3),
        "floats": np.zeros(2),
        "a word": "seed",
    },
    "machine": {
        "nothing": None,
        "a stack": STACK,
        "a weight that is nan": NAN,
        "an infinite bias": INFINITE,
        "weights of another shape": MISFIT,
        "weights inside a layer that are not symmetric": UNTIED,
        "a unit joined to itself": LOOPED,
        "whole numbers": WHOLE_NUMBERS,
        "parameters in lists": parameters_of(RBM, biases=list(RBM.biases)),
        "no intra": parameters_of(RBM, intra=()),
        "no layers": V.BoltzmannMachine((), (), ()),
    },
    "stack": {
        "nothing": None,
        "a machine": RBM,
        "no machine": (),
        "machines that do not chain": (RBM, RBM),
        "a weight that is nan": (NAN, STACK[1]),
        "other things": (1, 2),
    },
    "gradient": {"nothing": None, "a stack": STACK, "an array": RBM.weights[0]},
    "visible": of_bits(VISIBLE) | BATCH,
    "state": {
        "one array": VISIBLE[0],
        "a layer too few": STATE[:1],
        "a batch": STATES,
        "spins": (2.0 * STATE[0] - 1, STATE[1]),
        "a value of 3": (STATE[0].at[0].set(3), STATE[1]),
        "a missing value": (jnp.array([0, 1, jnp.nan, 0]), STATE[1]),
        "lists": ([0, 1, 0, 1], [0, 1, 0]),
        "nothing": None,
    },
    "states": {
        "one configuration": STATE,
        "a layer too few": STATES[:1],
        "no example": (VISIBLE[:0], HIDDEN[:0]),
        "other batches": (VISIBLE, HIDDEN[:3]),
        "grey values": states_with(GREY),
        "spins": states_with(SPINS),
        "a missing value": states_with(np.where(SPINS > 0, np.nan, 0)),
        "a list": states_with(np.asarray(VISIBLE).tolist()),
    },
    "layers": {
        "booleans": [False, True],
        "a mask": np.array([False, True]),
        "twice": (1, 1),
        "no such layer": (2,),
        "a negative one": (-1,),
        "a number": 0,
        "floats": (0.0,),
        "words": "01",
    },
    "count": {
        "half": 2.5,
        "none": 0,
        "negative": -1,
        "a word": "3",
        "nan": float("nan"),
        "True": True,
        "nothing": None,
    },
    "steps": {"half": 2.5, "negative": -1, "a word": "3", "nan": float("nan"), "True": True, "an array": np.ones(2)},
    "positive": {
        "zero": 0.0,
        "negative": -1.0,
        "nan": float("nan"),
        "infinite": float("inf"),
        "a word": "1",
        "an array": np.ones(2),
        "True": True,
        "nothing": None,
    },
    "number": {"nan": float("nan"), "infinite": -float("inf"), "a word": "1", "nothing": None, "an array": np.ones(2)},
    "switch": {"a word": "off", "a number": 1, "nothing": None},
    "sizes": {
        "nothing": (),
        "zero": (4, 0),
        "negative": (4, -3),
        "floats": (4.0, 3.0),
        "a number": 4,
        "words": "43",
        "booleans": (True, True),
    },
    "probabilities": {
        "above 1": np.full(MEANS.shape, 2.0),
        "negative": np.full(MEANS.shape, -0.1),
        "nan": np.full(MEANS.shape, np.nan),
        "another shape": np.full((5, 4), 0.5),
        "a number": 0.5,
        "a list": MEANS.tolist(),
    },
    "units": {
        "no such unit": np.array([99]),
        "a negative one": np.array([-1]),
        "twice": np.array([1, 1]),
        "none": np.array([], int),
        "a mask": MASK,
        "floats": np.array([0.0]),
        "a matrix": np.array([[0, 1]]),
    },
    "mask": {
        "numbers": np.ones(4),
        "another shape": np.array([True, False]),
        "nothing": None,
        "a list": [True, False, True, False],
        "words": "top",
    },
    "images": {
        "nan": np.where(GREY > 0.5, np.nan, GREY),
        "infinite": np.where(GREY > 0.5, np.inf, GREY),
        "one image": GREY[0],
        "none": GREY[:0],
        "a list": GREY.tolist(),
        "nothing": None,
        "words": np.full((5, 4), "dark"),
    },
    "features": {
        "nan": np.where(GREY > 0.5, np.nan, GREY),
        "one example": GREY[0],
        "none": GREY[:0],
        "nothing": None,
        "words": np.full((5, 4), "dark"),
    },
    "path": {"nothing": None, "a number": 3, "bytes": b"model"},
    "about": {"a number": 3, "a list": [1], "a word": "vpf", "nan": {"rate": float("nan")}, "an array": {"w": KEY}},
    "folder": {"nothing": None, "a number": 3, "one that is not there": "no-such-folder", "a file": __file__},
    "grey": {
        "nan": np.where(GREY > 0.5, np.nan, GREY),
        "bytes": 255 * GREY,
        "negative": -GREY - 1,
        "one image": GREY[0],
        "a pixel too many": np.zeros((5, 5), np.float32),
        "none": GREY[:0],
        "a list": GREY.tolist(),
    },
    "weights": {
        "nan": NAN.weights[0],
        "a vector": RBM.biases[0],
        "none": np.zeros((0, 3), np.float32),
        "a list": [[0.1]],
        "a machine": RBM,
    },
    "times": {"nan": np.array([1.0, np.nan]), "infinite": np.array([np.inf]), "a word": "now", "nothing": None},
    "edges": {
        "falling": np.array([2.0, 1.0]),
        "one": np.array([1.0]),
        "nan": np.array([1.0, np.nan, 2.0]),
        "a word": "edges",
        "a matrix": np.ones((2, 2)),
    },
    "train state": {"a stack": STACK, "nothing": None},
    "settings": {"nothing": None, "a dictionary": {"epochs": 3}, "other settings": EQUILIBRIUM},
    "choice": {"another": "sgd", "nothing": None, "a number": 1},
    "betas": {
        "falling": BETAS[::-1],
        "not to 1": BETAS / 2,
        "negative": BETAS - 0.1,
        "nan": BETAS.at[1].set(jnp.nan),
        "too few": BETAS[1:],
        "a list": BETAS.tolist(),
    },
    "labels": {
        "out of range": np.array([0, 1, 2, 0, 1]),
        "negative": np.array([0, 1, -1, 0, 1]),
        "floats": np.zeros(5),
        "too few": np.array([0, 1]),
        "a list": [0, 1, 0, 1, 0],
    },
    "spins": {
        "bits": np.asarray(VISIBLE, np.float32),
        "nan": np.where(SPINS > 0, np.nan, SPINS),
        "another shape": SPINS[:, :2],
        "one example": SPINS[0],
        "a list": SPINS.tolist(),
    },
}

L = np.array([0, 1, 0, 1, 0])


def _fresh_training() -> train.TrainState:
    return train.init_state(jax.random.key(1), (RBM,), CONFIG)


def _train_epoch(state: Any = "fresh", visible: Any = VISIBLE, config: Any = CONFIG) -> Any:
    return train.train_epoch(_fresh_training() if isinstance(state, str) else state, visible, config=config)


def _train_equilibrium(images: Any = GREY, labels: Any = L, config: Any = EQUILIBRIUM, state: Any = "fresh") -> Any:
    fresh = equilibrium_propagation.init_state(jax.random.key(1), NETWORK, 5, EQUILIBRIUM)
    return equilibrium_propagation.train_epoch(
        fresh if isinstance(state, str) else state, images, labels, config=config
    )


def _train_targets(visible: Any = GREY, config: Any = TARGETS, state: Any = "fresh") -> Any:
    fresh = target_propagation.init_state(jax.random.key(1), (4, 3, 2), TARGETS)
    return target_propagation.train_epoch(fresh if isinstance(state, str) else state, visible, config=config)


def _settings(**changed: Any) -> Any:
    # Steps are an option of another rule than the right call's.
    return rules.make("cd", steps=changed["steps"]) if "steps" in changed else training(**changed)


MACHINE_STATE = {"machine": RBM, "state": STATE}
MACHINE_STATES = {"machine": RBM, "states": STATES}
OF_STATE = {"machine": "machine", "state": "state"}
OF_STATES = {"machine": "machine", "states": "states"}
KEYED = {"key": KEY}
OF_KEY = {"key": "key"}
VISIBLE_OF = {"machine": RBM, "visible": VISIBLE}
OF_VISIBLE = {"machine": "machine", "visible": "visible"}
STACKED = {"stack": STACK, "visible": VISIBLE}
OF_STACK = {"stack": "stack", "visible": "visible"}
RATES = {"pre_relaxation_rate": 0.05, "post_relaxation_rate": 0.03}
OF_RATES = dict.fromkeys(RATES, "positive")
REPAIR = KEYED | VISIBLE_OF | {"mask": MASK, "num_steps": 2}
OF_REPAIR = OF_KEY | OF_VISIBLE | {"mask": "mask", "num_steps": "count"}

CALLS: dict[str, Call] = {
    "init_machine": Call(
        V.init_machine, KEYED | {"sizes": (4, 3), "intra": (1,)}, OF_KEY | {"sizes": "sizes", "intra": "layers"}
    ),
    "init_stack": Call(
        V.init_stack, KEYED | {"sizes": (4, 3, 2), "intra": True}, OF_KEY | {"sizes": "sizes", "intra": "switch"}
    ),
    "untie": Call(V.untie, {"key": KEY, "machine": RBM}, {"machine": "machine"}),
    "untie_stack": Call(V.untie_stack, {"key": KEY, "stack": STACK}, {"stack": "stack"}),
    "with_units": Call(V.with_units, {"machine": RBM, "unit": V.units.SPIN}, {"machine": "machine"}),
    "to_zero_sum": Call(V.to_zero_sum, {"machine": POTTS}, {"machine": "machine"}),
    "standardise": Call(
        V.standardise,
        {"machine": REAL, "means": np.ones(4), "deviations": np.full(4, 2.0)},
        {"machine": "machine", "means": "of the visible", "deviations": "of the visible"},
    ),
    "energy": Call(V.energy, MACHINE_STATE, OF_STATE),
    "local_fields": Call(V.local_fields, MACHINE_STATE, OF_STATE),
    "flip_rates": Call(V.flip_rates, MACHINE_STATE, OF_STATE),
    "marginal_energy": Call(
        V.marginal_energy,
        MACHINE_STATE | {"summed": (1,)},
        {"machine": "machine", "state": "state", "summed": "layers"},
    ),
    "free_energy": Call(
        V.free_energy, {"machine": RBM, "visible": VISIBLE[0]}, {"machine": "machine", "visible": "one"}
    ),
    "log_partition_exact": Call(V.log_partition_exact, {"machine": RBM}, {"machine": "machine"}),
    "vpf_objective": Call(V.vpf_objective, MACHINE_STATES, OF_STATES),
    "local_gradient": Call(V.local_gradient, MACHINE_STATES, OF_STATES),
    "directed_gradient": Call(V.directed_gradient, MACHINE_STATES, OF_STATES),
    "tie_intra": Call(V.tie_intra, {"gradient": RBM}, {"gradient": "gradient"}),
    "gibbs_sweep": Call(
        V.gibbs_sweep, KEYED | MACHINE_STATE | {"clamped": (0,)}, OF_KEY | OF_STATE | {"clamped": "layers"}
    ),
    "run_chain": Call(
        V.run_chain,
        KEYED | MACHINE_STATE | {"num_sweeps": 2, "clamped": (0,)},
        OF_KEY | OF_STATE | {"num_sweeps": "steps", "clamped": "layers"},
    ),
    "sample_hidden": Call(V.sample_hidden, KEYED | STACKED, OF_KEY | OF_STACK),
    "complete": Call(V.complete, KEYED | STACKED, OF_KEY | OF_STACK),
    "mean_activations": Call(V.mean_activations, KEYED | STACKED, OF_KEY | OF_STACK),
    "confabulate": Call(
        V.confabulate,
        KEYED | {"stack": STACK, "num_samples": 3, "steps": 2, "top_steps": 3, "prior": jnp.full(2, 0.5)},
        OF_KEY
        | {"stack": "stack", "num_samples": "count", "steps": "steps", "top_steps": "steps", "prior": "probabilities"},
    ),
    "averaged_flow": Call(
        V.averaged_flow,
        VISIBLE_OF | {"probabilities": MEANS, "hidden_flips": True, "units": np.array([0, 2])},
        OF_VISIBLE | {"probabilities": "probabilities", "hidden_flips": "switch", "units": "units"},
    ),
    "flip_estimate": Call(
        V.flip_estimate,
        VISIBLE_OF | {"rule": "pl", "units": np.array([0, 2])},
        OF_VISIBLE | {"rule": "choice", "units": "units"},
    ),
    "energy_discrepancy": Call(
        V.energy_discrepancy,
        KEYED | VISIBLE_OF | {"particles": 2, "noise": 0.2, "stabiliser": 0.5},
        OF_KEY | OF_VISIBLE | {"particles": "count", "noise": "rate", "stabiliser": "number"},
    ),
    # What is no state is no means either.
    "tap_means": Call(
        V.tap_means,
        {"machine": RBM, "start": STATE, "num_steps": 2, "damping": 0.2},
        {"machine": "machine", "start": "state", "num_steps": "steps", "damping": "rate"},
    ),
    "tap_log_partition": Call(
        V.tap_log_partition, {"machine": RBM, "means": STATE}, {"machine": "machine", "means": "state"}
    ),
    "contrastive_divergence": Call(
        V.contrastive_divergence,
        KEYED | MACHINE_STATES | {"num_steps": 1},
        OF_KEY | OF_STATES | {"num_steps": "count"},
    ),
    "persistent_contrastive_divergence": Call(
        V.persistent_contrastive_divergence,
        KEYED | MACHINE_STATES | {"chains": STATES, "num_steps": 1},
        OF_KEY | OF_STATES | {"chains": "states", "num_steps": "count"},
    ),
    "tethered_contrastive_divergence": Call(
        V.tethered_contrastive_divergence,
        KEYED | MACHINE_STATES | {"noise": 0.2, "num_steps": 1},
        OF_KEY | OF_STATES | {"noise": "rate", "num_steps": "count"},
    ),
    "with_visible_means": Call(
        V.with_visible_means,
        {"machine": RBM, "means": jnp.full(4, 0.5)},
        {"machine": "machine", "means": "probabilities"},
    ),
    "parzen_log_likelihood": Call(
        V.parzen_log_likelihood,
        {"centres": GREY, "points": GREY, "sigma": 0.2},
        {"centres": "images", "points": "images", "sigma": "positive"},
    ),
    "choose_sigma": Call(
        V.choose_sigma,
        {"centres": GREY, "validation": GREY, "sigmas": (0.1, 0.2)},
        {"centres": "images", "validation": "images"},
    ),
    "ais_log_partition": Call(
        V.ais_log_partition,
        KEYED | {"machine": RBM, "num_chains": 20, "num_temperatures": 5, "base": None},
        OF_KEY | {"machine": "machine", "num_chains": "count", "num_temperatures": "count"},
    ),
    "ais_log_partition_reverse": Call(
        V.ais_log_partition_reverse,
        KEYED | MACHINE_STATES | {"num_temperatures": 5},
        OF_KEY | OF_STATES | {"num_temperatures": "count"},
    ),
    "anneal": Call(
        ais.anneal,
        KEYED | {"machine": RBM, "num_chains": 20, "num_temperatures": 5},
        OF_KEY | {"machine": "machine", "num_chains": "count", "num_temperatures": "count"},
    ),
    "log_partition_of_weights": Call(
        ais.log_partition_of_weights,
        {"log_weights": jnp.zeros(20), "base": V.independent_machine(RBM)},
        {"base": "machine"},
    ),
    "rbm_log_likelihood": Call(V.rbm_log_likelihood, VISIBLE_OF | {"log_z": 5.0}, OF_VISIBLE | {"log_z": "number"}),
    "variational_bound": Call(
        V.variational_bound,
        VISIBLE_OF | {"log_z": 5.0, "num_updates": 2},
        OF_VISIBLE | {"log_z": "number", "num_updates": "steps"},
    ),
    "free_energies": Call(comparison.free_energies, VISIBLE_OF, OF_VISIBLE),
    "effective_couplings": Call(
        comparison.effective_couplings,
        {"machine": RBM, "background": VISIBLE},
        {"machine": "machine"},
    ),
    "contact_scores": Call(
        V.contact_scores,
        {"machine": POTTS, "gap": 0, "corrected": False},
        {"machine": "machine", "gap": "steps", "corrected": "switch"},
    ),
    "precision_at": Call(
        V.precision_at,
        {"scores": np.ones((4, 4)), "contacts": np.eye(4) > 0, "number": 2, "separation": 2},
        {"scores": "scores", "contacts": "contacts", "number": "count", "separation": "count"},
    ),
    "sequence_weights": Call(
        alignment.sequence_weights, {"codes": VISIBLE, "identity": 0.5}, {"codes": "codes", "identity": "rate"}
    ),
    "nearest_examples": Call(
        comparison.nearest_examples,
        {"rows": VISIBLE, "examples": VISIBLE},
        {"rows": "visible", "examples": "visible"},
    ),
    "mean_field": Call(likelihood.mean_field, VISIBLE_OF | {"num_updates": 2}, OF_VISIBLE | {"num_updates": "steps"}),
    "stack_bound": Call(
        V.stack_bound,
        KEYED | STACKED | {"log_z_top": 3.0, "num_samples": 2},
        OF_KEY | OF_STACK | {"log_z_top": "number", "num_samples": "count"},
    ),
    "save_model": Call(
        V.save_model,
        {"path": f"{_FOLDER.name}/model", "stack": STACK, "about": {"rule": "vpf"}},
        {"path": "path", "stack": "stack", "about": "about"},
    ),
    "independent_machine": Call(
        V.independent_machine,
        {"machine": RBM, "visible_means": jnp.full(4, 0.5)},
        {"machine": "machine", "visible_means": "probabilities"},
    ),
    "interpolate": Call(
        tempering.interpolate,
        {"base": V.independent_machine(RBM), "machine": RBM, "beta": 0.5},
        {"base": "machine", "machine": "machine", "beta": "number"},
    ),
    "run_tempered": Call(
        V.run_tempered,
        KEYED | MACHINE_STATES | {"inverse_temperatures": BETAS, "num_sweeps": 2},
        OF_KEY | OF_STATES | {"inverse_temperatures": "betas", "num_sweeps": "count"},
    ),
    "band_mask": Call(
        V.band_mask,
        {"side": "top", "image_shape": (4, 5), "width": 2},
        {"side": "choice", "image_shape": "sizes", "width": "steps"},
    ),
    "random_mask": Call(
        V.random_mask, KEYED | {"shape": (5, 4), "rate": 0.5}, OF_KEY | {"shape": "sizes", "rate": "rate"}
    ),
    "corrupt": Call(
        V.corrupt, KEYED | {"visible": VISIBLE, "mask": MASK}, OF_KEY | {"visible": "visible", "mask": "mask"}
    ),
    "reconstruct": Call(lambda visible, **rest: V.reconstruct(corrupted=visible, **rest), REPAIR, OF_REPAIR),
    "inpaint": Call(V.inpaint, REPAIR, OF_REPAIR),
    "reconstruction_error": Call(
        V.reconstruction_error,
        {"reconstructed": GREY, "grey": GREY, "mask": MASK},
        {"reconstructed": "images", "grey": "images", "mask": "mask"},
    ),
    "weight_sparsity": Call(V.weight_sparsity, {"weights": RBM.weights[0]}, {"weights": "weights"}),
    "squared_weight": Call(V.squared_weight, {"weights": RBM.weights[0]}, {"weights": "weights"}),
    "alignment": Call(V.alignment, {"machine": DIRECTED}, {"machine": "machine"}),
    "pseudo_log_likelihood": Call(V.pseudo_log_likelihood, KEYED | VISIBLE_OF, OF_KEY | OF_VISIBLE),
    "watch": Call(monitor.watch, KEYED | STACKED, OF_KEY | OF_STACK),
    "linear_probe": Call(
        V.linear_probe,
        {"features_train": GREY, "labels_train": L, "features_test": GREY, "labels_test": L, "C": 1.0, "max_iter": 50},
        {"features_train": "features", "features_test": "features", "C": "positive", "max_iter": "count"},
    ),
    "run_spiking": Call(
        V.run_spiking,
        KEYED | MACHINE_STATE | {"num_events": 5, "clamped": (1,), "held": MASK},
        OF_KEY | OF_STATE | {"num_events": "count", "clamped": "layers", "held": "held"},
    ),
    "event_gradient": Call(
        V.event_gradient, KEYED | MACHINE_STATES | {"duration": 1.0}, OF_KEY | OF_STATES | {"duration": "positive"}
    ),
    "learn_from_events": Call(
        V.learn_from_events,
        KEYED | MACHINE_STATES | {"duration": 1.0, "learning_rate": 0.1},
        OF_KEY | OF_STATES | {"duration": "positive", "learning_rate": "positive"},
    ),
    "stdp_window": Call(V.stdp_window, {"dt": np.array([1.0, -2.0])} | RATES, {"dt": "times"} | OF_RATES),
    "relaxation_depression": Call(V.relaxation_depression, RATES, OF_RATES),
    "simulate_pairings": Call(
        V.simulate_pairings, KEYED | {"num_trials": 3} | RATES, OF_KEY | {"num_trials": "count"} | OF_RATES
    ),
    "binned_means": Call(
        V.binned_means,
        {"dt": np.array([1.5, 1.7, 3.0, 3.1]), "change": np.ones(4), "edges": EDGES},
        {"dt": "times", "change": "times", "edges": "edges"},
    ),
    "binned_window": Call(V.binned_window, {"edges": EDGES} | RATES, {"edges": "edges"} | OF_RATES),
    "binned_errors": Call(
        V.binned_errors, {"edges": EDGES, "counts": np.array([5.0, 6.0])} | RATES, {"edges": "edges"} | OF_RATES
    ),
    "TrainConfig": Call(
        _settings,
        {"rule": "vpf", "epochs": 3, "hidden_flips": True, "learning_rate": 0.1, "batch_size": 2},
        {
            "rule": "choice",
            "expectation": "choice",
            "estep": "choice",
            "schedule": "choice",
            "precision": "choice",
            "epochs": "count",
            "steps": "count",
            "batch_size": "count",
            "hidden_flips": "switch",
            "learning_rate": "positive",
            "epsilon": "positive",
            "weight_decay": "number",
        },
    ),
    "init_state": Call(
        train.init_state, KEYED | {"stack": STACK, "config": CONFIG}, OF_KEY | {"stack": "stack", "config": "settings"}
    ),
    "train_epoch": Call(
        _train_epoch, {"visible": VISIBLE}, {"visible": "visible", "state": "train state", "config": "settings"}
    ),
    "start_phase": Call(
        lambda visible, config: train.start_phase(_fresh_training(), visible, config),
        {"visible": VISIBLE, "config": CONFIG},
        {"visible": "visible", "config": "settings"},
    ),
    "compile_epoch": Call(
        lambda visible, config: train.compile_epoch(_fresh_training(), visible, config)(_fresh_training(), visible),
        {"visible": VISIBLE, "config": CONFIG},
        {"visible": "visible", "config": "settings"},
    ),
    "equilibrium init_network": Call(
        equilibrium_propagation.init_network, KEYED | {"sizes": (4, 3, 2)}, OF_KEY | {"sizes": "sizes"}
    ),
    "equilibrium train_epoch": Call(
        _train_equilibrium,
        {"images": GREY, "labels": L},
        {"images": "images", "labels": "labels", "config": "foreign settings", "state": "train state"},
    ),
    "target train_epoch": Call(
        _train_targets, {"visible": GREY}, {"visible": "grey", "config": "settings", "state": "train state"}
    ),
    "target init_parameters": Call(
        target_propagation.init_parameters, KEYED | {"sizes": (4, 3, 2)}, OF_KEY | {"sizes": "sizes"}
    ),
    "target infer": Call(target_propagation.infer, {"parameters": MAPS, "visible": GREY}, {"visible": "grey"}),
    "target generate": Call(
        target_propagation.generate,
        KEYED | {"parameters": MAPS, "prior": PRIOR, "num_samples": 2, "num_rounds": 1},
        OF_KEY | {"num_samples": "count", "num_rounds": "steps"},
    ),
    "target inpaint": Call(
        target_propagation.inpaint,
        {"parameters": MAPS, "corrupted": GREY, "mask": np.asarray(VISIBLE, bool), "num_steps": 2},
        {"corrupted": "grey", "mask": "mask", "num_steps": "count"},
    ),
    "synapses init": Call(
        binary_synapses.init_synapses,
        KEYED | {"num_visible": 4, "num_hidden": 2, "config": SYNAPSES, "scale": 0.1},
        OF_KEY | {"num_visible": "count", "num_hidden": "count", "scale": "positive"},
    ),
    "synapses learn": Call(
        binary_synapses.learn_synapses,
        {"state": LEARNT, "visible": SPINS, "draws": jnp.ones((2, 3, 2)), "config": SYNAPSES},
        {"visible": "spins"},
    ),
    "synapses plant": Call(
        binary_synapses.plant_synapses,
        KEYED | {"num_visible": 4, "num_hidden": 2, "correlation": 0.3},
        OF_KEY | {"num_visible": "count", "num_hidden": "count", "correlation": "rate"},
    ),
    "synapses sample": Call(
        binary_synapses.sample_visible,
        KEYED | {"synapses": SPINS[:, :2], "num_examples": 3, "beta": 1.0},
        OF_KEY | {"num_examples": "count", "beta": "positive"},
    ),
    "synapses as_machine": Call(binary_synapses.as_machine, {"synapses": SPINS, "beta": 1.0}, {"beta": "positive"}),
}
WRONG["one"] = of_bits(VISIBLE[0])
WRONG["rate"] = {"above 1": 1.5, "negative": -0.1, "nan": float("nan"), "a word": "half", "nothing": None}
WRONG["held"] = {
    "numbers": np.ones(4),
    "another shape": np.array([True]),
    "a list": MASK.tolist(),
    "indices": np.array([0]),
}
WRONG["of the visible"] = {
    "nothing": None,
    "a list": [1.0] * 4,
    "one too many": np.ones(5),
    "nan": np.full(4, np.nan),
    "infinite": np.full(4, np.inf),
    "words": np.full(4, "one"),
}
WRONG["scores"] = {
    "nothing": None,
    "a list": np.ones((4, 4)).tolist(),
    "nan": np.full((4, 4), np.nan),
    "one side alone": np.triu(np.ones((4, 4))),
    "another shape": np.ones((4, 3)),
}
WRONG["contacts"] = {
    "nothing": None,
    "numbers": np.eye(4),
    "one side alone": np.triu(np.ones((4, 4))) > 0,
    "of fewer sites": np.eye(3) > 0,
}
WRONG["codes"] = {
    "nothing": None,
    "a list": [[0, 1], [1, 1]],
    "letters": np.full((2, 3), "A"),
    "one sequence without its axis": VISIBLE[0],
    "no sequences": VISIBLE[:0],
    "real numbers": GREY,
    "booleans": np.asarray(VISIBLE, bool),
}
WRONG["foreign settings"] = {"nothing": None, "a dictionary": {"epochs": 3}, "other settings": TARGETS}

# Functions that refuse a directed machine.
SYMMETRIC = (
    "energy",
    "marginal_energy",
    "free_energy",
    "log_partition_exact",
    "contrastive_divergence",
    "persistent_contrastive_divergence",
    "tethered_contrastive_divergence",
    "ais_log_partition",
    "ais_log_partition_reverse",
    "rbm_log_likelihood",
    "free_energies",
    "effective_couplings",
    "to_zero_sum",
    "standardise",
    "contact_scores",
    "variational_bound",
    "mean_field",
    "run_tempered",
    "averaged_flow",
    "flip_estimate",
    "energy_discrepancy",
    "tap_means",
    "tap_log_partition",
    "pseudo_log_likelihood",
)
