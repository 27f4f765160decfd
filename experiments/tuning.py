"""Trials of one learning rule on an RBM over a grid of settings, scored on validation images.

    python -m experiments.tuning --dataset=mnist --rule=tethered --rule_steps=1,5 --noise=0.1,0.3 \
        --learning_rates=3e-3 --weight_decays=1e-3,2e-3 --workdir=runs/tuning-tethered

Every combination of the lists is a trial: log-likelihood of the binarised validation images in nats (annealed
importance sampling, forward), errors of repaired bands of the first of them under both protocols, largest weight, and
seconds of training; test images are never looked at. With --start_epochs each trial begins with so many epochs of VPF
(fresh E-step, decay 4e-4, centred where the trial is), --epochs being those that follow. Writes table.md and
summary.json into --workdir and the trained machines into --models. A second start resumes. A quick setting, a
minute on two cores:

    python -m experiments.tuning --dataset=mnist_5k --rule=cd --rule_steps=1,2 --num_seeds=2 --hidden=32 --epochs=4 \
        --num_chains=50 --num_temperatures=200 --workdir=runs/quick
"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import vpf_jax
from experiments import named_recipes
from vpf_jax import checks, rules
from vpf_jax.app import command, recipes, runs
from vpf_jax.app.keys import key_for
from vpf_jax.app.tables import cell, markdown_table
from vpf_jax.evaluate import ais, likelihood, reconstruction
from vpf_jax.optimizers import SCHEDULES
from vpf_jax.sample import tempering
from vpf_jax.settings import like, options, refuse_given, setting
from vpf_jax.train import Adam, TrainConfig, largest_weight

# Lists of settings of rules, under the names that the rules give them.
RULE_LISTS = {"rule_steps": "steps", "noise": "noise"}
# Settings of rules that are the same in all trials.
RULE_FIXED = ("flips_per_step", "particles", "stabiliser", "damping", "persistent")


@dataclasses.dataclass(frozen=True)
class Config(recipes.RecipesConfig):
    """Settings; each is a flag."""

    experiment = "tuning"

    num_seeds: int = like(runs.SeedsConfig, "num_seeds", default=1)
    rule: str = setting("cd", "Rule that is tried", choices=rules.names())
    rule_steps: tuple[int, ...] | None = setting(None, "Gibbs sweeps per step, of rules with chains", least=1)
    noise: tuple[float, ...] | None = setting(None, "Probabilities of flips in noisy copies", above=0, most=0.5)
    flips_per_step: int | None = like(rules.MPF, "flips_per_step")
    particles: int | None = like(rules.EnergyDiscrepancy, "particles", default=None)
    stabiliser: float | None = like(rules.EnergyDiscrepancy, "stabiliser", default=None)
    damping: float | None = like(rules.TAP, "damping", default=None)
    persistent: bool | None = like(rules.TAP, "persistent", default=None)
    learning_rates: tuple[float, ...] = setting((1e-3,), "Of Adam", above=0)
    weight_decays: tuple[float, ...] = setting((1e-4,), "Of weights", least=0)
    schedule: str = setting("cosine", "Of the learning rate", choices=SCHEDULES)
    averaging: tuple[float, ...] = setting((0.0,), "Decays of averages of the weights; 0: none", least=0, most=1)
    centred: bool = like(TrainConfig, "centred")
    visible_biases: str = like(recipes.Recipe, "visible_biases")
    epochs: tuple[int, ...] = setting((40,), "Passes over the training images by the rule", least=1)
    start_epochs: int = setting(0, "Epochs of VPF, in minibatches of 40, before the rule", least=0)
    batch_sizes: tuple[int, ...] = setting((40,), "Examples per step", least=1)
    hidden: int = setting(196, "Hidden units", least=1)
    num_chains: int = setting(100, "Annealed chains", least=2)
    num_temperatures: int = setting(3000, "Inverse temperatures of the annealing", least=2, most=2**31 - 1)
    num_repaired: int = setting(2000, "Validation images that are repaired, all of them where there are fewer", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        own = options(rules.get(self.rule))
        strangers = [flag for flag, name in RULE_LISTS.items() if name not in own]
        strangers += [name for name in RULE_FIXED if name not in own]
        refuse_given(self, strangers, f"rule {self.rule} has no such option")

    def trials(self) -> Iterator[recipes.Recipe]:
        """One recipe for each combination."""
        lists = {name: getattr(self, flag) for flag, name in RULE_LISTS.items() if getattr(self, flag) is not None}
        fixed = {name: getattr(self, name) for name in RULE_FIXED if getattr(self, name) is not None}
        for values in itertools.product(*lists.values()):
            own = dict(zip(lists, values, strict=True))
            rule = rules.make(self.rule, **fixed, **own)
            told = "".join(f", {name.replace('_', ' ')} {value:g}" for name, value in (own | fixed).items())
            rest = (self.batch_sizes, self.learning_rates, self.weight_decays, self.averaging, self.epochs)
            for batch_size, rate, decay, averaging, epochs in itertools.product(*rest):
                optimizer = Adam(rate, self.schedule, averaging)
                config = TrainConfig(rule, optimizer, epochs, batch_size, decay, centred=self.centred)
                title = f"{self.rule}{told}, batch {batch_size}, rate {rate:g}, decay {decay:g}, {epochs} epochs"
                title += f", averaging {averaging:g}" if averaging else ""
                title += ", centred" if self.centred else ""
                title += ", biases from data" if self.visible_biases == "data" else ""
                phases: tuple[TrainConfig, ...] = (config,)
                if self.start_epochs:
                    title = f"{self.start_epochs} epochs of VPF, then {title}"
                    phases = (named_recipes.flow(self.start_epochs, self.centred), config)
                yield recipes.Recipe(title, (self.hidden,), phases, visible_biases=self.visible_biases)


def run(config: Config) -> dict[str, Any]:
    """Trains and scores; resumes. Returns what summary.json holds (errors: `app.recipes`, `app.runs`)."""
    workshop = config.workshop()
    trials = list(config.trials())
    workshop.check(trials[0])
    images = workshop.images
    images.require_images()
    for batch_size in config.batch_sizes:
        allowed = f"up to the {len(images.train)} training images"
        checks.require(batch_size <= len(images.train), "batch_sizes", batch_size, allowed)
    runs.check_memory("num_chains", config.num_chains, 8 * config.num_chains * (images.num_visible + config.hidden))
    annealing = {"num_chains": config.num_chains, "num_temperatures": config.num_temperatures}

    def work(folder: Path, stops: list[int]) -> tuple[dict[str, Any], str]:
        found = {}
        for recipe in trials:
            trained = workshop.run(recipe, stops)

            def evaluate(index: int, seed: int, trained: recipes.Seeds = trained) -> dict[str, Any]:
                result = measure(trained.stack(index)[0], images, seed, annealing, config.num_repaired)
                print(f"{trained.recipe.title}, seed {seed}: {told(result)}", flush=True)
                return result

            name = recipes.folder_name(recipe.title, {})
            rows = runs.evaluate_seeds(folder, name, config.seeds, stops, evaluate)
            found[recipe.title] = {"train_seconds": trained.seconds, "runs": rows}
        return {"trials": found}, f"{config.data_name}, validation images; {config.told_of_means}\n\n" + tabulate(found)

    return runs.carry_out(config, work)


def measure(
    machine: vpf_jax.BoltzmannMachine, images: runs.Images, seed: int, annealing: dict[str, int], num_repaired: int
) -> dict[str, Any]:
    """Scores of one machine on the validation images."""
    base = tempering.independent_machine(machine, images.train.means)
    key = key_for(seed, "annealing in trials")
    estimate = jax.jit(ais.ais_log_partition, static_argnums=(2, 3))(key, machine, *annealing.values(), base)
    part = images.validation
    scores = jax.jit(likelihood.rbm_log_likelihood)(machine, part.bits, 0.0)
    key, shown = key_for(seed, "repair in trials"), slice(num_repaired)
    return {
        "log_likelihood": float(jnp.mean(scores)) - float(estimate.log_z),
        "log_z_standard_error": float(estimate.standard_error),
        "max_abs_weight": float(largest_weight((machine,))),
        **reconstruction.band_errors(key, machine, part.bits[shown], part.grey[shown], images.image_shape),
    }


def told(result: dict[str, Any]) -> str:
    clamped = " ".join(f"{error:.1f}" for error in result["clamped"].values())
    error = result["log_z_standard_error"]
    return f"{result['log_likelihood']:.2f} nats (log Z +- {error:.2f}), clamped {clamped}"


def tabulate(found: dict[str, Any]) -> str:
    """One row per trial: mean over the seeds, with the standard error where there are several."""
    header = ["trial", "log-likelihood", "log Z +-", "repair, the paper's protocol", "clamped", "max w", "training"]
    rows = []
    for title, trial in found.items():
        some = trial["runs"]
        repairs = [
            " ".join(f"{sum(run[protocol][side] for run in some) / len(some):.1f}" for side in reconstruction.SIDES)
            for protocol in reconstruction.PROTOCOLS
        ]
        likelihoods = cell([run["log_likelihood"] for run in some], 2)
        error, largest = (max(run[name] for run in some) for name in ("log_z_standard_error", "max_abs_weight"))
        row = [title, likelihoods, f"{error:.2f}", *repairs, f"{largest:.2f}", f"{trial['train_seconds']:.0f} s"]
        rows.append(row)
    return markdown_table(header, rows)


if __name__ == "__main__":
    command.start(Config, run)
