"""The recipes that the scripts compare, their names in tables, and what several scripts measure on them.

Not here: how a recipe is trained (`vpf_jax.app.recipes`).
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import vpf_jax
from vpf_jax import figures, rules
from vpf_jax.app.keys import key_for
from vpf_jax.app.recipes import Recipe, Seeds
from vpf_jax.app.runs import Images
from vpf_jax.app.tables import line_over_seeds
from vpf_jax.evaluate import ais, likelihood, reconstruction
from vpf_jax.sample import tempering
from vpf_jax.train import Adam, TrainConfig

RBMS = {
    "vpf_paper": "VPF, the paper's settings",
    "vpf": "VPF",
    "vpf_pcd": "VPF, then PCD-1",
    "vpf_centred": "VPF, centred",
    "vpf_refined": "VPF, centred, then PCD-1",
    "vpf_refined10": "VPF, centred, then PCD-10",
    "vpf_tethered": "VPF, centred, then tethered CD-1",
    "cd1": "CD-1",
    "cd2": "CD-2",
    "cd5": "CD-5",
    "cd10": "CD-10",
    "tethered1": "tethered CD-1",
    "tethered5": "tethered CD-5",
    "tethered10": "tethered CD-10",
    "pcd1": "PCD-1",
    "pcd1_decay": "PCD-1, strong decay",
    "pcd10": "PCD-10",
    "tap": "TAP-3",
    "pl": "PL",
    "ratio": "ratio matching",
    "mpf": "marginal MPF",
}
STACKS = {
    "dbm": "DBM, the paper's settings",
    "intra_dbm": "intra-layer DBM, the paper's settings",
    "dbm_refined": "DBM, then PCD-1",
    "intra_dbm_refined": "intra-layer DBM, then PCD-1",
    "joint_dbm": "one deep machine, joint coupling",
}
# RBMs with symmetric and with directed weights, under both E-steps.
DIRECTED = {
    f"{start}_{estep}": f"{told}, E-step per {estep}"
    for estep in ("epoch", "minibatch")
    for start, told in (
        ("tied", "symmetric"),
        ("equal", "directed from equal starts"),
        ("drawn", "directed from unequal starts"),
    )
}
# An eighth of the flips per step: all pairs of units are summed over for each, where others take one product.
FLIPS = 98
# Rule, learning rate at the start of a cosine schedule, weight decay: of centred RBMs, chosen on validation images
# (docs/results/tuning.md).
TUNED: dict[str, tuple[rules.Rule, float, float]] = {
    "cd1": (rules.CD(), 1e-2, 4e-3),
    "cd2": (rules.CD(2), 1e-2, 3e-3),
    "cd5": (rules.CD(5), 1e-2, 1e-3),
    "cd10": (rules.CD(10), 6e-3, 1e-3),
    "tethered1": (rules.Tethered(1, 0.1), 1e-2, 2e-3),
    "tethered5": (rules.Tethered(5, 0.2), 6e-3, 4e-3),
    "tethered10": (rules.Tethered(10, 0.2), 1e-2, 2e-3),
    "pcd1": (rules.PCD(), 3e-3, 1e-3),
    "pcd1_decay": (rules.PCD(), 6e-3, 4e-3),
    "pcd10": (rules.PCD(10), 6e-3, 2.5e-4),
    "tap": (rules.TAP(3), 3e-3, 2e-3),
    "pl": (rules.PL(FLIPS), 6e-3, 3e-3),
    "ratio": (rules.RatioMatching(FLIPS), 6e-3, 1e-3),
    "mpf": (rules.MPF(FLIPS), 6e-3, 3e-5),
}
# Gibbs sweeps between the end of a forward annealing and the start of a reverse one.
EQUILIBRATION = 500


def flow(epochs: int, centred: bool = False) -> TrainConfig:
    """VPF with a fresh E-step."""
    return TrainConfig(rules.VPF(estep="minibatch"), epochs=epochs, weight_decay=4e-4, centred=centred)


def tuned(rule: str, epochs: int) -> TrainConfig:
    """Training by one of `TUNED`."""
    kind, rate, decay = TUNED[rule]
    return TrainConfig(kind, Adam(rate, "cosine"), epochs=epochs, weight_decay=decay, centred=True)


def rbm(rule: str, hidden: int, epochs: int) -> Recipe:
    """How one of `RBMS` is trained in a number of epochs; docs/results/tuning.md says how that was chosen."""
    first = max(1, epochs // 4)
    match rule:
        case "vpf_paper":
            phases: tuple[TrainConfig, ...] = (TrainConfig(epochs=epochs),)
        case "vpf" | "vpf_centred":
            phases = (flow(epochs, centred=rule == "vpf_centred"),)
        case "vpf_pcd":
            # So strong a decay costs PCD likelihood, and repairs images better.
            refined = TrainConfig(rules.PCD(), Adam(3e-3, "cosine"), epochs=epochs - first, weight_decay=4e-3)
            phases = (flow(first), refined)
        case "vpf_refined" | "vpf_refined10" | "vpf_tethered":
            then = {"vpf_refined": "pcd1", "vpf_refined10": "pcd10", "vpf_tethered": "tethered1"}[rule]
            phases = (flow(first, centred=True), tuned(then, epochs - first))
        case _:
            phases = (tuned(rule, epochs),)
    return Recipe(RBMS[rule], (hidden,), phases, visible_biases="data" if phases[-1].centred else "zero")


def stack(name: str, hidden: tuple[int, ...], epochs: int) -> Recipe:
    """How one of `STACKS` is trained: by the paper's settings for a number of epochs, or otherwise a fifth of them."""
    fifth = max(1, epochs // 5)
    phases = [TrainConfig(epochs=epochs if name in ("dbm", "intra_dbm") else fifth)]
    if "refined" in name:
        phases.append(TrainConfig(rules.PCD(), Adam(2e-3, "cosine"), epochs=fifth, weight_decay=2e-3))
    return Recipe(STACKS[name], hidden, tuple(phases), intra="intra" in name, joint="joint" in name)


def directed(name: str, hidden: int, epochs: int) -> Recipe:
    """How one of `DIRECTED` is trained by VPF, each E-step with its decay."""
    start, estep = name.split("_")
    phases = rbm("vpf_paper" if estep == "epoch" else "vpf", hidden, epochs).phases
    return Recipe(DIRECTED[name], (hidden,), phases, backward_start=start)


def draw_alignment(path: Path, some: Sequence[Seeds], title: str) -> None:
    """How the forward and backward weights of RBMs align over the epochs."""
    lines = {one.recipe.title: line_over_seeds(np.arange(one.recipe.epochs + 1), one.alignment()) for one in some}
    label = "cosine of forward and backward weights"
    figures.save(path, figures.lines(lines, xlabel="epoch", ylabel=label, title=title))


def repair_errors(stack: vpf_jax.Stack, images: Images, seed: int) -> dict[str, dict[str, float]]:
    """Mean error of an RBM over the test images for each protocol and side."""
    test = images.test
    return reconstruction.band_errors(key_for(seed, "repair"), stack[0], test.bits, test.grey, images.image_shape)


def repair_errors_of_seeds(trained: Seeds, images: Images) -> dict[str, dict[str, list[float]]]:
    """`repair_errors`, one number per seed."""
    found = [repair_errors(trained.stack(index), images, seed) for index, seed in enumerate(trained.seeds)]
    return {
        protocol: {side: [errors[protocol][side] for errors in found] for side in reconstruction.SIDES}
        for protocol in reconstruction.PROTOCOLS
    }


def log_partition(
    key: jax.Array,
    machine: vpf_jax.BoltzmannMachine,
    moments: tuple[jax.Array, ...],
    num_chains: int,
    num_temperatures: int,
) -> dict[str, float]:
    """Log Z forward and reverse, with the forward estimate's standard error and effective sample size.

    From independent units with the means, and where they are given the variances, of the visible ones.
    """
    base = tempering.independent_machine(machine, *moments)
    log_weights, reverse = _anneal(key, machine, base, num_chains=num_chains, num_temperatures=num_temperatures)
    # Outside the compiled part, so that it warns where few chains carry the weight.
    forward = ais.log_partition_of_weights(log_weights, base)
    return {
        "log_z": float(forward.log_z),
        "log_z_standard_error": float(forward.standard_error),
        "effective_sample_size": float(forward.effective_sample_size),
        "log_z_reverse": float(reverse.log_z),
    }


@functools.partial(jax.jit, static_argnames=("num_chains", "num_temperatures"))
def _anneal(key, machine, base, *, num_chains, num_temperatures):
    """Forward log weights, and the estimate of reverse chains from the forward ones' states.

    Before they turn back the states are resampled by weight and go on for a while as chains of the machine.
    """
    forward_key, resample_key, sweep_key, reverse_key = jax.random.split(key, 4)
    states, log_weights = ais.anneal(forward_key, machine, num_chains, num_temperatures, base)
    chosen = jax.random.categorical(resample_key, log_weights, shape=(num_chains,))
    states = jax.tree.map(lambda layer: layer[chosen], states)
    keys = jax.random.split(sweep_key, num_chains)
    chain = functools.partial(vpf_jax.run_chain, num_sweeps=EQUILIBRATION)
    states = jax.vmap(chain, in_axes=(0, None, 0))(keys, machine, states)
    return log_weights, ais.ais_log_partition_reverse(reverse_key, machine, states, num_temperatures, base)


def rbm_log_likelihood(
    machine: vpf_jax.BoltzmannMachine, images: Images, seed: int, num_chains: int, num_temperatures: int
) -> dict[str, float]:
    """Mean log-likelihood of the test images in nats, and how sure log Z is."""
    key = key_for(seed, "annealing of RBMs")
    result = log_partition(key, machine, (images.train.means,), num_chains, num_temperatures)
    scores = jax.jit(likelihood.rbm_log_likelihood)(machine, images.test.bits, 0.0)
    return result | {"log_likelihood": float(jnp.mean(scores)) - result["log_z"]}


def sweeps_per_step(recipe: Recipe) -> float:
    """Gibbs sweeps of chains in a step, mean over the epochs of all phases; 0 of rules without chains."""
    return sum(getattr(phase.rule, "steps", 0) * phase.epochs for phase in recipe.phases) / recipe.epochs


def is_persistent(recipe: Recipe) -> bool:
    """Whether chains, or means, go on from step to step in any phase."""
    return any(phase.rule.keeps_chains for phase in recipe.phases)
