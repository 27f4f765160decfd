"""RBMs with every kind of visible unit on images seen as data of its kind: log-likelihood, filters, samples.

    python -m experiments.unit_machines --num_seeds=5 --workdir=runs/unit-machines
    python -m experiments.unit_machines --dataset=patches --forms=reals,whitened --noise=0.01 --workdir=runs/patches
    python -m experiments.unit_machines --dataset=mnist --forms=reals --num_seeds=5 --workdir=runs/grey

The same grey images are seen as

    bits        1 above 1/2                              binary units
    spins       the same as -1 and +1                    spins
    levels      four shades                              categorical units of 4 values
    counts      0 to 16, in sixteenths                   counts
    reals       grey values and a little normal noise, without which a pixel that is always dark would have no density,
                less the mean and over the deviation of each pixel           Gaussian units
    whitened    the same, rotated and scaled until all covariances vanish    Gaussian units

with binary hidden units. For each form and rule: log-likelihood of the test images in nats, log Z by annealed
importance sampling forward and reverse from independent units with the data's means and variances; beside it
independent units themselves, and for real numbers a normal distribution of the training images' covariance. Writes
table.md, summary.json, and of the first seed samples-FORM-RULE.png and filters-FORM-RULE.png into --workdir. A second
start resumes; a finished run says so. A quick setting, a minute on two cores:

    python -m experiments.unit_machines --forms=levels,reals --rules=cd10 --num_seeds=2 --hidden=16 --epochs=4 \
        --gibbs_steps=20 --num_chains=20 --num_temperatures=50 --workdir=runs/quick

Not here: bits with more care (`frontier`), planted machines (`planted_units`).
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

import vpf_jax
from experiments import named_recipes
from vpf_jax import figures, rules, train
from vpf_jax.app import command, runs
from vpf_jax.app.keys import key_for
from vpf_jax.app.tables import cell, markdown_table
from vpf_jax.settings import like, setting
from vpf_jax.units import BINARY, COUNT, GAUSSIAN, SPIN, Categorical, Unit

LEVELS, SIXTEENTHS = 4, 16
SHADE = Categorical(LEVELS)
FORMS = {
    "bits": "bits",
    "spins": "spins",
    "levels": f"{LEVELS} shades",
    "counts": "counts",
    "reals": "real numbers",
    "whitened": "real numbers, whitened",
}
REAL = ("reals", "whitened")
# Rule, learning rate at the start of a cosine, weight decay.
RULES: dict[str, tuple[str, rules.Rule, float, float]] = {
    "vpf": ("VPF, fresh E-step", rules.VPF(estep="minibatch"), 1e-3, 1e-4),
    "mpf": ("marginal MPF", rules.MPF(), 3e-3, 3e-4),
    "cd10": ("CD-10", rules.CD(10), 3e-3, 1e-3),
    "pcd1": ("PCD-1", rules.PCD(), 3e-3, 1e-3),
}
# On uncorrelated data: deviation of the first weights, and the first log odds of a hidden unit.
_DIRECTIONS, _SELDOM = 0.3, -2.0


@dataclasses.dataclass(frozen=True)
class Config(runs.SeedsConfig):
    """Settings of a run; each is a flag."""

    experiment = "unit_machines"

    dataset: str = like(runs.Config, "dataset", default="digits_8x8")
    num_seeds: int = like(runs.SeedsConfig, "num_seeds", default=5)
    forms: tuple[str, ...] = setting(("bits", "spins", "levels", "counts", "reals"), "As what", choices=tuple(FORMS))
    rules: tuple[str, ...] = setting(tuple(RULES), "Rules", choices=tuple(RULES))
    hidden: int = setting(64, "Hidden units", least=1)
    epochs: int = setting(100, "Passes over the training images", least=1)
    batch_size: int = setting(40, "Examples per step", least=1)
    noise: float = setting(0.05, "Standard deviation of the noise of real numbers, of grey values in [0, 1]", above=0)
    gibbs_steps: int = setting(1000, "Gibbs steps behind each sample that is drawn", least=1)
    num_chains: int = setting(100, "Annealed chains", least=2)
    num_temperatures: int = setting(5000, "Inverse temperatures of the annealing", least=2, most=2**31 - 1)

    def work(self) -> "Work":
        training = self.hidden, self.epochs, self.batch_size, self.gibbs_steps
        return Work(*training, {"num_chains": self.num_chains, "num_temperatures": self.num_temperatures})


class Work(NamedTuple):
    """How machines are trained and annealed."""

    hidden: int
    epochs: int
    batch_size: int
    gibbs_steps: int
    annealing: dict[str, int]


class Form(NamedTuple):
    """Images as data of one kind."""

    unit: Unit
    train: Shaped[Array, "n entries"]
    test: Shaped[Array, "m entries"]
    grey: Callable[[Float[np.ndarray, "k entries"]], Float[np.ndarray, "k pixels"]]
    """Of means of the units, in [0, 1]."""
    strokes: Callable[[Float[np.ndarray, "k entries"]], Float[np.ndarray, "k pixels"]]
    """Of weights, what they do to grey values."""
    uncorrelated: bool = False
    """Whether means and covariances tell nothing of one entry by another."""


def form(name: str, images: runs.Images, noise: float) -> Form:
    """The training and test images in one form."""
    grey = [np.asarray(part.grey, np.float64) for part in (images.train, images.test)]
    plain = functools.partial(np.clip, a_min=0, a_max=1)
    if name in REAL:
        return _real(name, grey, noise)
    if name == "levels":
        shades = np.linspace(0, 1, LEVELS)

        def shade(entries: np.ndarray) -> np.ndarray:
            return entries.reshape(len(entries), -1, LEVELS) @ shades

        return Form(SHADE, as_shades(grey[0]), as_shades(grey[1]), shade, shade)
    if name == "counts":
        counts = [jnp.asarray(np.rint(part * SIXTEENTHS), jnp.int32) for part in grey]
        return Form(COUNT, counts[0], counts[1], lambda entries: plain(entries / SIXTEENTHS), lambda weights: weights)
    bits = [jnp.asarray(part.bits) for part in (images.train, images.test)]
    if name == "bits":
        return Form(BINARY, bits[0], bits[1], plain, lambda weights: weights)
    spins = [2 * part.astype(jnp.int8) - 1 for part in bits]
    return Form(SPIN, spins[0], spins[1], lambda entries: (entries + 1) / 2, lambda weights: weights)


def as_shades(grey: Float[np.ndarray, "n pixels"]) -> Shaped[Array, "n entries"]:
    """States of images in [0, 1]."""
    return SHADE.encode(jnp.asarray(np.rint(grey * (LEVELS - 1)), jnp.int32))


def _real(name: str, grey: list[Float[np.ndarray, "n pixels"]], noise: float) -> Form:
    """Noise, then each pixel standardised by the training images, or all of them rotated and scaled to be white."""
    keys = jax.random.split(key_for(0, "noise of real values"), len(grey))
    noisy = [
        part + noise * np.asarray(jax.random.normal(key, part.shape), np.float64)
        for key, part in zip(keys, grey, strict=True)
    ]
    mean, deviation = noisy[0].mean(axis=0), noisy[0].std(axis=0)
    forward, back = np.diag(1 / deviation), np.diag(deviation)
    if name == "whitened":
        values, axes = np.linalg.eigh(np.cov(noisy[0].T))
        forward, back = (axes * values**power @ axes.T for power in (-0.5, 0.5))
    train, test = (jnp.asarray((part - mean) @ forward, jnp.float32) for part in noisy)

    def grey_of(entries: Float[np.ndarray, "k entries"]) -> Float[np.ndarray, "k pixels"]:
        return np.clip(entries @ back + mean, 0, 1)

    return Form(GAUSSIAN, train, test, grey_of, lambda weights: weights @ back, uncorrelated=name == "whitened")


def start(seed: int, data: Form, hidden: int) -> vpf_jax.BoltzmannMachine:
    """A machine whose visible units, without input, have the means and variances of the data.

    Of uncorrelated data these are all moments that small weights would learn from; hidden units start there as random
    directions that are seldom taken (after Melchior, Wang and Wiskott 2017).
    """
    sizes = data.train.shape[1], hidden
    machine = vpf_jax.init_machine(key_for(seed, "machine of a kind of units"), sizes, units=(data.unit, BINARY))
    machine = vpf_jax.with_visible_means(machine, *moments(data))
    if data.uncorrelated:
        weights = _DIRECTIONS * jax.random.normal(key_for(seed, "directions of hidden units"), sizes)
        # Hidden units on as often, relative to off, as exp of this, whatever the length of their weights.
        seldom = _SELDOM - jnp.sum(weights**2, axis=0) / 2
        machine = dataclasses.replace(machine, weights=(weights,), biases=(machine.biases[0], seldom))
    return machine


def moments(data: Form) -> tuple[Float[Array, " entries"], Float[Array, " entries"]]:
    values = data.train.astype(jnp.float32)
    return jnp.mean(values, axis=0), jnp.var(values, axis=0)


def learn(data: Form, rule: str, seed: int, work: Work) -> tuple[vpf_jax.BoltzmannMachine, float]:
    """A trained machine, and the seconds of training without compilation."""
    _, kind, rate, decay = RULES[rule]
    # Decay and centring lead back to where uncorrelated data teach nothing.
    decay = 0 if data.uncorrelated else decay
    settings = train.TrainConfig(
        kind, train.Adam(rate, "cosine"), work.epochs, work.batch_size, decay, centred=not data.uncorrelated
    )
    machine = start(seed, data, work.hidden)
    state = train.init_state(key_for(seed, "training on a kind of units"), (machine,), settings)
    state = train.start_phase(state, data.train, settings)
    run_epoch = train.compile_epoch(state, data.train, settings)
    started = time.perf_counter()
    largest = 0.0
    for epoch in range(work.epochs):
        state, metrics = run_epoch(state, data.train)
        train.check_finite(metrics, epoch + 1, largest)
        largest = float(metrics.max_abs_weight)
    return train.learnt(state)[0], time.perf_counter() - started


def run(config: Config) -> dict[str, Any]:
    """Trains, measures and draws; resumes. Returns what summary.json holds (errors: `app.runs`)."""
    images = config.images()
    images.require_images()
    images.require("batch_size", config.batch_size)
    entries = LEVELS * images.num_visible
    runs.check_memory("hidden", config.hidden, 16 * entries * config.hidden)
    runs.check_memory("num_chains", config.num_chains, 8 * config.num_chains * (entries + config.hidden))

    how = config.work()

    def work(folder: Path, stops: list[int]) -> tuple[dict[str, Any], str]:
        rows = []
        for name in config.forms:
            data = form(name, images, config.noise)
            for rule in config.rules:
                of_seed = functools.partial(measure, folder, how, images, name, data, rule)
                found = runs.evaluate_seeds(folder, f"{name}-{rule}", config.seeds, stops, of_seed)
                rows.append({"form": name, "rule": rule, "runs": found, "baselines": baselines(name, data)})
        told = f"{config.data_name}, {config.hidden} hidden units, {config.epochs} epochs, {config.told_of_means}\n\n"
        return {"rows": rows}, told + tabulate(rows)

    return runs.carry_out(config, work)


def score(
    data: Form,
    machine: vpf_jax.BoltzmannMachine,
    states: Shaped[Array, "n entries"],
    seed: int,
    annealing: dict[str, int],
) -> dict[str, float]:
    """Mean log-likelihood of states in nats, and what log Z was annealed to."""
    key = key_for(seed, "annealing of kinds of units")
    found = named_recipes.log_partition(key, machine, moments(data), **annealing)
    likelihoods = jax.jit(vpf_jax.rbm_log_likelihood)(machine, states, 0.0)
    return found | {"log_likelihood": float(jnp.mean(likelihoods)) - found["log_z"]}


def measure(
    folder: Path, work: Work, images: runs.Images, name: str, data: Form, rule: str, index: int, seed: int
) -> dict[str, float]:
    """Trains one machine; its test log-likelihood; pictures of the first one."""
    machine, seconds = learn(data, rule, seed, work)
    found = score(data, machine, data.test, seed, work.annealing) | {"seconds": seconds}
    told = f"{RULES[rule][0]}, {images.name} as {FORMS[name]}"
    print(f"{told}, seed {seed}: {found['log_likelihood']:.2f} nats, {seconds:.0f} s", flush=True)
    if index == 0:
        samples = vpf_jax.confabulate(key_for(seed, "samples of a kind of units"), (machine,), 60, work.gibbs_steps)
        shown = images.pictures(data.grey(np.asarray(samples, np.float64)))
        figures.save(folder / f"samples-{name}-{rule}.png", figures.tiles(shown, title=f"Samples: {told}"))
        weights = np.asarray(machine.weights[0], np.float64).T[:60]
        filters = images.pictures(data.strokes(weights), signed=True)
        picture = figures.tiles(filters, title=f"Filters: {told}", signed=True)
        figures.save(folder / f"filters-{name}-{rule}.png", picture)
    return found


def baselines(name: str, data: Form) -> dict[str, float]:
    """Log-likelihood of the test images under independent units, and of real ones under a normal distribution."""
    lone = vpf_jax.init_machine(key_for(0, "independent units"), (data.train.shape[1],), units=data.unit)
    lone = vpf_jax.with_visible_means(lone, *moments(data))
    energies = jax.vmap(lambda v: vpf_jax.energy(lone, (v,)))(data.test)
    log_z = jnp.sum(lone.layer_units[0].log_normaliser(lone.biases[0]))
    found = {"independent": -float(jnp.mean(energies) + log_z)}
    if name in REAL:
        known, held_out = (np.asarray(part, np.float64) for part in (data.train, data.test))
        covariance, apart = np.cov(known.T), held_out - known.mean(axis=0)
        log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
        found["normal"] = float(-(np.mean(np.sum(apart @ np.linalg.inv(covariance) * apart, axis=1)) + log_det) / 2)
    return found


def tabulate(rows: list[dict[str, Any]]) -> str:
    header = ["seen as", "rule", "log-likelihood, nats", "reverse - forward log Z", "effective samples", "seconds"]
    cells = [
        [
            FORMS[row["form"]],
            RULES[row["rule"]][0],
            cell([one["log_likelihood"] for one in row["runs"]], 2),
            cell([one["log_z_reverse"] - one["log_z"] for one in row["runs"]], 2),
            cell([one["effective_sample_size"] for one in row["runs"]], 0),
            f"{np.mean([one['seconds'] for one in row['runs']]):.0f}",
        ]
        for row in rows
    ]
    for name in dict.fromkeys(row["form"] for row in rows):
        found = next(row["baselines"] for row in rows if row["form"] == name)
        for baseline, told in (("independent", "independent units"), ("normal", "normal of the same covariance")):
            if baseline in found:
                cells.append([FORMS[name], told, f"{found[baseline]:.2f}", "", "", ""])
    return markdown_table(header, cells)


if __name__ == "__main__":
    command.start(Config, run)
