"""Likelihoods of RBMs under every rule and of deep stacks, beside their Parzen scores: Table 2 of Liu, Quek and Lin,
arXiv 1711.07732, and what stands behind it.

    python -m experiments.likelihood_table --dataset=mnist --workdir=runs/mnist-likelihood

RBMs: log-likelihood of the binarised test images in nats per image, exact free energy minus log Z by annealed
importance sampling, forward and reverse. Stacks: Parzen scores of their samples from the prior ("-P") and from uniform
bits ("-R"), of the sampler that is best on validation images, and of long chains in the top machine; and the likelihood
bound of the stack read as a deep belief network. One deep machine with joint coupling: its variational bound. Beside
them what independent pixels and real images score, and figures that others have published, marked as such.

Writes table.md and summary.json into --workdir, evaluations as they are done into WORKDIR/evaluations, and the trained
machines into --models, which other experiments can share. A second start resumes; a finished run says so. A quick
setting, two minutes on two cores:

    python -m experiments.likelihood_table --dataset=mnist_5k --num_seeds=2 --rules=vpf,pcd1 --hidden=32 --epochs=4 \
        --stacks=dbm,intra_dbm --deep_hidden=32,16 --deep_epochs=4 --num_samples=500 --num_chains=50 \
        --num_temperatures=200 --workdir=runs/quick
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import vpf_jax
from experiments import named_recipes
from vpf_jax.app import command, recipes, runs
from vpf_jax.app.keys import key_for
from vpf_jax.app.tables import cell, markdown_table
from vpf_jax.evaluate import generation, likelihood
from vpf_jax.settings import setting

# Posterior samples of the importance-weighted bound, beside the plain one.
BOUND_SAMPLES = 20
# The paper's "-P" and "-R" first; a long chain in the top machine, started at uniform bits, last.
SAMPLERS = (
    generation.Sampler("prior", 3, 3),
    generation.Sampler("uniform", 3, 3),
    *(generation.Sampler("prior", steps, steps) for steps in (1, 2, 4, 5)),
    generation.Sampler("uniform", *generation.TOP_CHAIN),
)
# Parzen log-likelihoods on MNIST as published, with the standard error stated there: Bengio et al. 2014 (arXiv
# 1306.1091) and Goodfellow et al. 2014 (arXiv 1406.2661), Table 1.
PUBLISHED = {
    "deep belief network": "138 +- 2",
    "stacked contractive autoencoder": "121 +- 1.6",
    "deep generative stochastic network": "214 +- 1.1",
    "generative adversarial network": "225 +- 2",
}


@dataclasses.dataclass(frozen=True)
class Config(recipes.RecipesConfig):
    """Settings; each is a flag."""

    experiment = "likelihood_table"

    rules: tuple[str, ...] = setting(tuple(named_recipes.RBMS), "Rules of the RBMs", choices=tuple(named_recipes.RBMS))
    hidden: int = setting(196, "Hidden units of the RBMs", least=1)
    epochs: int = setting(40, "Passes over the training images for the RBMs", least=2)
    stacks: tuple[str, ...] = setting(tuple(named_recipes.STACKS), "Deep models", choices=tuple(named_recipes.STACKS))
    deep_hidden: tuple[int, ...] = setting(
        (196, 196, 64), "Hidden units of the deep models", least=1, fewest=2, distinct=False
    )
    deep_epochs: int = setting(200, "Passes over the training images for the deep models", least=2)
    num_chains: int = setting(200, "Annealed chains", least=2)
    num_temperatures: int = setting(5000, "Inverse temperatures of the annealing", least=2, most=2**31 - 1)
    num_samples: int = setting(10_000, "Generated images behind a Parzen score", least=1)


class Judge(NamedTuple):
    """Measures trained machines."""

    images: runs.Images
    annealing: dict[str, int]
    """num_chains and num_temperatures."""
    num_samples: int

    def rbm(self, stack: vpf_jax.Stack, seed: int) -> dict[str, Any]:
        """Log-likelihood of the test images, and how sure log Z is."""
        return named_recipes.rbm_log_likelihood(stack[0], self.images, seed, **self.annealing)

    def stack(self, stack: vpf_jax.Stack, seed: int) -> dict[str, Any]:
        """Parzen scores under all samplers, and the likelihood bound."""
        ais_key, bound_key, prior_key, sample_key = jax.random.split(key_for(seed, "judging stacks"), 4)
        visible, test = self.images.train.bits, self.images.test.bits
        activations = generation.activations(prior_key, stack, visible)
        if len(stack) == 1:
            result = named_recipes.log_partition(ais_key, stack[0], (self.images.train.means,), **self.annealing)
            bounds = jax.jit(likelihood.variational_bound)(stack[0], test, result["log_z"])
            result |= {"bound": float(jnp.mean(bounds))}
        else:
            result = named_recipes.log_partition(ais_key, stack[-1], (activations[-2],), **self.annealing)
            bound = jax.jit(likelihood.stack_bound, static_argnames="num_samples")
            plain_key, weighted_key = jax.random.split(bound_key)
            plain = jnp.mean(bound(plain_key, stack, test, result["log_z"]))
            weighted = jnp.mean(bound(weighted_key, stack, test, result["log_z"], num_samples=BOUND_SAMPLES))
            result |= {"bound": float(plain), "importance_weighted_bound": float(weighted)}
        samplers = []
        for key, sampler in zip(jax.random.split(sample_key, len(SAMPLERS)), SAMPLERS, strict=True):
            centres = generation.generate(key, stack, activations[-1], sampler, self.num_samples)
            samplers.append(dataclasses.asdict(sampler) | self.images.score(centres))
        return result | {"samplers": samplers, "chosen": max(samplers, key=lambda row: row["validation_mean"])}

    def real(self, seed: int) -> float:
        """Mean score of real images as centres."""
        key = key_for(seed, "real images beside stacks")
        return self.images.score(generation.draw_images(key, self.images.train.grey, self.num_samples))["mean"]


def run(config: Config) -> dict[str, Any]:
    """Trains and evaluates; resumes. Returns what summary.json holds (errors: `app.recipes`, `app.runs`)."""
    workshop = config.workshop()
    images, seeds = workshop.images, config.seeds
    kinds = {
        "rbms": {rule: named_recipes.rbm(rule, config.hidden, config.epochs) for rule in config.rules},
        "stacks": {name: named_recipes.stack(name, config.deep_hidden, config.deep_epochs) for name in config.stacks},
    }
    workshop.check(kinds["rbms"][config.rules[0]])
    for recipe in kinds["stacks"].values():
        workshop.check(recipe, "deep_hidden")
    pixels = images.num_visible
    runs.check_memory("num_samples", config.num_samples, 8 * config.num_samples * pixels)
    units = pixels + max(config.hidden, *config.deep_hidden)
    runs.check_memory("num_chains", config.num_chains, 8 * config.num_chains * units)
    judge = Judge(
        images, {"num_chains": config.num_chains, "num_temperatures": config.num_temperatures}, config.num_samples
    )
    measures = {"rbms": judge.rbm, "stacks": judge.stack}
    means = f"{config.data_name}; {config.told_of_means}\n"
    told_of_rbms = (
        f"\n{config.hidden} hidden units, {config.epochs} epochs; {config.num_chains} chains, "
        f"{config.num_temperatures} temperatures\n\n"
    )
    told_of_stacks = (
        f"\nParzen log-likelihood of the grey test images under {config.num_samples} generated means, hidden layers "
        f"{'-'.join(map(str, config.deep_hidden))}; 'best on validation': of all samplers, 1 to 5 steps in every "
        "machine among them; the bound is on the log-likelihood of the binarised test images\n\n"
    )

    def work(folder: Path, stops: list[int]) -> tuple[dict[str, Any], str]:
        found: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
        for kind, some in kinds.items():
            for name, recipe in some.items():
                trained = workshop.run(recipe, stops)
                evaluate = functools.partial(judged, name, measures[kind], trained)
                rows = runs.evaluate_seeds(folder, name, seeds, stops, evaluate)
                found[kind][name] = {"epochs": recipe.epochs, "train_seconds": trained.seconds, "runs": rows}
        real = [judge.real(seed) for seed in seeds]
        independent = independent_pixels(images.train.bits, images.test.bits)
        table = means + told_of_rbms + table_of_rbms(found["rbms"], independent)
        table += told_of_stacks + table_of_stacks(found["stacks"], real, images.name)
        more = {"independent_pixels": independent, "parzen_real_data": real, "published_by_others": PUBLISHED}
        return found | more, table

    return runs.carry_out(config, work)


def judged(
    name: str, measure: Callable[[vpf_jax.Stack, int], dict[str, Any]], trained: recipes.Seeds, index: int, seed: int
) -> dict[str, Any]:
    """What is measured on the machines of one seed; says so."""
    result = measure(trained.stack(index), seed)
    if "samplers" in result:
        scores = ", ".join(f"{score:.1f}" for score in shown(result))
        told = f"Parzen {scores}; bound {result['bound']:.1f}"
    else:
        told = f"{result['log_likelihood']:.2f} nats, {result['effective_sample_size']:.0f} effective samples"
    print(f"{name}, seed {seed}: {told}", flush=True)
    return result


def independent_pixels(train: Any, test: Any) -> float:
    """Mean log-likelihood of the test images, nats, where each pixel is drawn from its training frequency.

    One image of each value is added to the counts (Laplace), so that no pixel is certain. Images are zeros and ones.
    """
    train, test = (np.asarray(part, np.float64) for part in (train, test))
    means = (train.sum(axis=0) + 1) / (len(train) + 2)
    return float((test @ np.log(means) + (1 - test) @ np.log1p(-means)).mean())


def table_of_rbms(found: dict[str, Any], pixels: float) -> str:
    header = ["RBM", "log-likelihood, nats", "reverse - forward log Z", "effective samples", "training"]
    rows = [
        [
            named_recipes.RBMS[rule],
            cell([run["log_likelihood"] for run in row["runs"]], 2),
            cell([run["log_z_reverse"] - run["log_z"] for run in row["runs"]], 2),
            cell([run["effective_sample_size"] for run in row["runs"]]),
            f"{row['train_seconds']:.1f} s",
        ]
        for rule, row in found.items()
    ]
    ending = f"\nIndependent pixels of the training frequencies: {pixels:.2f} nats\n"
    return markdown_table(header, rows) + ending


def table_of_stacks(found: dict[str, Any], real: list[float], dataset: str) -> str:
    header = [
        "stack",
        "-P, 3 steps",
        "-R, 3 steps",
        "best on validation",
        "-R, 1000 on top, 2 below",
        "bound, nats",
        "epochs",
        "training",
    ]
    rows = [
        [
            named_recipes.STACKS[name],
            *(cell(scores) for scores in zip(*(shown(run) for run in row["runs"]), strict=True)),
            cell([run["bound"] for run in row["runs"]]),
            str(row["epochs"]),
            f"{row['train_seconds']:.0f} s",
        ]
        for name, row in found.items()
    ]
    text = markdown_table(header, rows) + f"\nReal training images as centres: {cell(real)}\n"
    if dataset == "mnist":
        others = "; ".join(f"{name} {score}" for name, score in PUBLISHED.items())
        text += f"\nPublished by others, not measured here: {others}\n"
    return text


def shown(run: dict[str, Any]) -> list[float]:
    """The Parzen scores of a run that the table shows."""
    prior, uniform, *_, top_chain = (float(row["mean"]) for row in run["samplers"])
    return [prior, uniform, float(run["chosen"]["mean"]), top_chain]


if __name__ == "__main__":
    command.start(Config, run)
