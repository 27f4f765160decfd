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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vpf_jax
from experiments import comparison, generation
from vpf_jax.app import command as cli
from vpf_jax.app import runs
from vpf_jax.app.folder import UsageError, stop_requests
from vpf_jax.app.tables import cell, markdown_table
from vpf_jax.data import Dataset, binarise
from vpf_jax.evaluate import ais, likelihood
from vpf_jax.sample import tempering

# Gibbs sweeps between the end of a forward annealing and the start of a reverse one.
EQUILIBRATION = 500
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
class Config(comparison.Config):
    """Settings; each is a flag."""

    experiment = "likelihood"

    rules: tuple[str, ...] = cli.setting(comparison.RULES, "Rules of the RBMs.", comparison.RULES)
    hidden: int = cli.setting(196, "Hidden units of the RBMs, at least 1.")
    epochs: int = cli.setting(40, "Passes over the training images for the RBMs, at least 2.")
    stacks: tuple[str, ...] = cli.setting(comparison.STACKS, "Deep models.", comparison.STACKS)
    deep_hidden: tuple[int, ...] = cli.setting((196, 196, 64), "Hidden units of the deep models, two layers or more.")
    deep_epochs: int = cli.setting(200, "Passes over the training images for the deep models, at least 2.")
    num_chains: int = cli.setting(200, "Annealed chains, at least 2.")
    num_temperatures: int = cli.setting(5000, "Inverse temperatures of the annealing, at least 2.")
    num_samples: int = cli.setting(10_000, "Generated images behind a Parzen score, at least 1.")

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
          UsageError: a value outside its range.
        """
        super().__post_init__()
        self.check_at_least(hidden=1, epochs=2, deep_epochs=2, num_chains=2, num_temperatures=2, num_samples=1)
        if len(self.deep_hidden) < 2 or min(self.deep_hidden) < 1:
            given = ",".join(map(str, self.deep_hidden))
            raise UsageError(f"got --deep_hidden={given}; it takes two or more positive integers, as in 196,196,64")


def run(config: Config) -> dict[str, Any]:
    """Trains and evaluates; resumes. Returns what summary.json holds.

    Raises:
      UsageError: a folder that does not fit.
      vpf_jax.data.DatasetError: data that cannot be read.
      vpf_jax.train.NonFiniteObjectiveError: training has overflowed.
      vpf_jax.app.folder.Stopped: SIGTERM or SIGINT arrived; what was trained and evaluated is saved.
    """
    return runs.carry_out(config, _run)


def _run(config: Config, data: Dataset, workdir: Path) -> tuple[dict[str, Any], str]:
    """What is found, and the table."""
    rbms = comparison.rbm_recipes((config.hidden,), config.epochs)
    deep = comparison.stack_recipes(config.deep_hidden, config.deep_epochs)
    found: dict[str, dict[str, Any]] = {"rbms": {}, "stacks": {}}
    with stop_requests() as stops:
        for kind, names, recipes, evaluate in (
            ("rbms", config.rules, rbms, _evaluate_rbm),
            ("stacks", config.stacks, deep, _evaluate_stack),
        ):
            for name in names:
                trained = comparison.train_for(config, recipes[name], data, stops)
                of_seed = functools.partial(_evaluate, config, data, trained, name, evaluate)
                found[kind][name] = {
                    "epochs": len(next(iter(trained.curves.values()))),
                    "train_seconds": trained.seconds,
                    "runs": runs.evaluate_seeds(workdir, name, config.seeds, stops, of_seed),
                }
    real = [
        generation.parzen_real_data(data, config.num_samples, seed)[0]["mean"] for seed in config.seeds if config.stacks
    ]
    pixels = independent_pixels(data)
    summary = found | {"independent_pixels": pixels, "parzen_real_data": real, "published_by_others": PUBLISHED}
    return summary, _table(config, found, pixels, real)


def independent_pixels(data: Dataset) -> float:
    """Mean log-likelihood of the binarised test images, nats, where each pixel is drawn from its training frequency.

    One image of each value is added to the counts (Laplace), so that no pixel is certain.
    """
    train_images, test = (binarise(part.images).astype(np.float64) for part in (data.train, data.test))
    means = (train_images.sum(axis=0) + 1) / (len(train_images) + 2)
    return float((test @ np.log(means) + (1 - test) @ np.log1p(-means)).mean())


def _evaluate(
    config: Config,
    data: Dataset,
    trained: comparison.Trained,
    name: str,
    evaluate: Callable[[Config, Dataset, vpf_jax.Stack, jax.Array], dict[str, Any]],
    index: int,
    seed: int,
) -> dict[str, Any]:
    """What is measured on the model of one seed."""
    result = evaluate(config, data, trained.stack(index), jax.random.fold_in(jax.random.key(seed), 2))
    print(f"{name}, seed {seed}: {_line(result)}", flush=True)
    return result


def _evaluate_rbm(config: Config, data: Dataset, stack: vpf_jax.Stack, key: jax.Array) -> dict[str, Any]:
    """Log-likelihood of the test images, and how sure log Z is."""
    (machine,) = stack
    result = _log_partition(config, key, machine, jnp.mean(binarise(data.train.images), axis=0))
    test = jnp.asarray(binarise(data.test.images))
    scores = jax.jit(likelihood.rbm_log_likelihood)(machine, test, 0.0)
    return result | {"log_likelihood": float(jnp.mean(scores)) - result["log_z"]}


def _evaluate_stack(config: Config, data: Dataset, stack: vpf_jax.Stack, key: jax.Array) -> dict[str, Any]:
    """Parzen scores under all samplers, and the likelihood bound."""
    ais_key, bound_key, prior_key, sample_key, lower_key = jax.random.split(key, 5)
    visible, test = (jnp.asarray(binarise(part.images)) for part in (data.train, data.test))
    if len(stack) == 1:
        result = _log_partition(config, ais_key, stack[0], jnp.mean(visible, axis=0, dtype=jnp.float32))
        bounds = jax.jit(likelihood.variational_bound)(stack[0], test, result["log_z"])
        result |= {"bound": float(jnp.mean(bounds))}
    else:
        result = _log_partition(config, ais_key, stack[-1], _top_means(lower_key, stack, visible))
        bound = jax.jit(likelihood.stack_bound, static_argnames="num_samples")
        plain = jnp.mean(bound(bound_key, stack, test, result["log_z"]))
        weighted = jnp.mean(bound(bound_key, stack, test, result["log_z"], num_samples=BOUND_SAMPLES))
        result |= {"bound": float(plain), "importance_weighted_bound": float(weighted)}
    prior = generation.prior_of(prior_key, stack, data)
    samplers = []
    for number, sampler in enumerate(SAMPLERS):
        centres = generation.generate(jax.random.fold_in(sample_key, number), stack, prior, sampler, config.num_samples)
        samplers.append(dataclasses.asdict(sampler) | generation.parzen_scores(centres, data))
    return result | {"samplers": samplers, "chosen": max(samplers, key=lambda row: row["validation_mean"])}


@jax.jit
def _top_means(key: jax.Array, stack: vpf_jax.Stack, visible: jax.Array) -> jax.Array:
    """Mean state of the top machine's lower layer under the E-step."""
    return vpf_jax.mean_activations(key, stack, visible)[-2]


def _log_partition(
    config: Config, key: jax.Array, machine: vpf_jax.BoltzmannMachine, means: jax.Array
) -> dict[str, float]:
    """Log Z forward and reverse, with the forward estimate's standard error and effective sample size."""
    base = tempering.independent_machine(machine, means)
    sizes = {"num_chains": config.num_chains, "num_temperatures": config.num_temperatures}
    log_weights, reverse = _anneal(key, machine, base, **sizes)
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


def _table(config: Config, found: dict[str, dict[str, Any]], pixels: float, real: list[float]) -> str:
    """RBMs, stacks, and what they stand beside."""

    def column(name: str, runs: list[dict[str, Any]], digits: int = 1) -> str:
        return cell([run[name] for run in runs], digits)

    text = f"{config.dataset}; mean +- standard error over {config.num_seeds} seeds\n"
    if found["rbms"]:
        header = [
            "RBM",
            "log-likelihood, nats",
            "reverse - forward log Z",
            "effective samples",
            "training",
        ]
        rows = [
            [
                comparison.TITLES[rule],
                column("log_likelihood", row["runs"], 2),
                cell([run["log_z_reverse"] - run["log_z"] for run in row["runs"]], 2),
                column("effective_sample_size", row["runs"]),
                f"{row['train_seconds']:.1f} s",
            ]
            for rule, row in found["rbms"].items()
        ]
        text += (
            f"\n{config.hidden} hidden units, {config.epochs} epochs; {config.num_chains} chains, "
            f"{config.num_temperatures} temperatures\n\n"
            + markdown_table(header, rows)
            + f"\nIndependent pixels of the training frequencies: {pixels:.2f} nats\n"
        )
    if found["stacks"]:
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
                comparison.STACK_TITLES[name],
                *(cell(scores) for scores in zip(*(_shown(run) for run in row["runs"]), strict=True)),
                column("bound", row["runs"]),
                str(row["epochs"]),
                f"{row['train_seconds']:.0f} s",
            ]
            for name, row in found["stacks"].items()
        ]
        layers = "-".join(map(str, config.deep_hidden))
        text += (
            f"\nParzen log-likelihood of the grey test images under {config.num_samples} generated means, hidden "
            f"layers {layers}; 'best on validation': of all samplers, 1 to 5 steps in every machine among them; the "
            "bound is on the log-likelihood of the binarised test images\n\n"
            + markdown_table(header, rows)
            + f"\nReal training images as centres: {cell(real)}\n"
        )
        if config.dataset == "mnist":
            others = "; ".join(f"{name} {score}" for name, score in PUBLISHED.items())
            text += f"\nPublished by others, not measured here: {others}\n"
    return text


def _shown(run: dict[str, Any]) -> list[float]:
    """The Parzen scores of a run that the table shows."""

    def score(sampler: generation.Sampler) -> float:
        wanted = dataclasses.asdict(sampler).items()
        (row,) = [row for row in run["samplers"] if wanted <= row.items()]
        return float(row["mean"])

    prior, uniform, top_chain = (score(SAMPLERS[i]) for i in (0, 1, -1))
    return [prior, uniform, float(run["chosen"]["mean"]), top_chain]


def _line(result: dict[str, Any]) -> str:
    """One line for a person."""
    if "samplers" in result:
        scores = ", ".join(f"{score:.1f}" for score in _shown(result))
        return f"Parzen {scores}; bound {result['bound']:.1f}"
    return f"{result['log_likelihood']:.2f} nats, {result['effective_sample_size']:.0f} effective samples"


if __name__ == "__main__":
    cli.start_experiment(Config, run)
