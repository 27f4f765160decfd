"""Couplings of planted machines of every kind of neuron, learnt back from samples by MPF, pseudo-likelihood and PCD.

    python -m experiments.planted_units --num_seeds=5 --workdir=runs/planted-units

Machines of one layer with weights between all pairs of units, drawn at random and small enough that their law is a sum
over all states: samples are exact draws, and so is the log-likelihood of held-out ones.

    spin            16 spins
    categorical4    8 units of 4 values
    categorical21   4 units of 21 values
    gaussian        8 bits and 4 real numbers, which are normal given the bits, with precisions above their couplings
    count           4 counts, whose couplings are below 0, as without that there is no law

For each number of samples and rule: root mean square error and correlation of the couplings (categorical ones in the
zero-sum gauge), held-out log-likelihood less that of the planted machine, and seconds. All rules are trained by the
same loop with Adam, a rate that falls along a cosine, and the same decay, 1 / samples. Writes table.md, a picture for
each kind and summary.json into --workdir. A second start resumes; a finished run says so. A quick setting, a minute on
two cores:

    python -m experiments.planted_units --kinds=spin,count --sample_sizes=300 --num_seeds=2 --steps=60 \
        --num_held_out=500 --workdir=runs/quick

Not here: sparse couplings and tempered samples of large glasses (`ising_recovery`), hidden units.
"""

import dataclasses
import functools
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import vpf_jax
from vpf_jax import BoltzmannMachine, couplings, figures, rules, train
from vpf_jax.app import command, runs
from vpf_jax.app.keys import key_for
from vpf_jax.app.tables import cell, markdown_table, mean_and_error
from vpf_jax.settings import like, setting
from vpf_jax.units import BINARY, COUNT, GAUSSIAN, SPIN, Categorical, Gaussian, Groups, Unit

TITLES = {"mpf": "MPF", "pl": "pseudo-likelihood", "pcd": "PCD-1"}
RULES: dict[str, rules.Rule] = {
    "mpf": rules.VPF(estep="minibatch", epsilon=1.0),
    "pl": rules.PL(),
    "pcd": rules.PCD(),
}
# Beyond this a count of the planted machines has less than 1e-9 of the probability.
_MOST_COUNT = 24
MEASURES = {"error": "error of couplings", "correlation": "correlation", "loss": "held out, less planted, nats"}


class Kind(NamedTuple):
    """Of planted machines."""

    title: str
    unit: Unit
    entries: int
    bias: tuple[float, float]
    """Mean and standard deviation of the biases."""
    coupling: float
    """Standard deviation of the couplings."""
    repels: bool = False
    """Whether couplings are below 0."""


KINDS = {
    "spin": Kind("16 spins", SPIN, 16, (0.0, 0.2), 0.25),
    "categorical4": Kind("8 units of 4 values", Categorical(4), 32, (0.0, 0.5), 0.5),
    "categorical21": Kind("4 units of 21 values", Categorical(21), 84, (0.0, 0.5), 0.7),
    "gaussian": Kind("8 bits and 4 real numbers", Groups(((BINARY, 8), (GAUSSIAN, 4))), 12, (0.0, 0.3), 0.3),
    "count": Kind("4 counts", COUNT, 4, (1.0, 0.3), 0.15, repels=True),
}


@dataclasses.dataclass(frozen=True)
class Config(runs.SeedsConfig):
    """Settings of a run; each is a flag."""

    experiment = "planted_units"

    dataset: str = runs.planted("Machines")
    kinds: tuple[str, ...] = setting(tuple(KINDS), "Kinds of neurons", choices=tuple(KINDS))
    rules: tuple[str, ...] = setting(tuple(TITLES), "Rules to compare", choices=tuple(TITLES))
    sample_sizes: tuple[int, ...] = setting(
        (300, 1000, 3000, 10_000, 30_000), "Numbers of samples", least=100, increasing=True
    )
    num_seeds: int = like(runs.SeedsConfig, "num_seeds", default=5, help="Machines of each kind")
    steps: int = setting(3000, "Steps of training, at least", least=1, most=2**31 - 1)
    learning_rate: float = setting(0.01, "Of Adam, at the start of the cosine", above=0)
    batch_size: int = setting(100, "Samples per step, and chains of PCD", least=1, most=100)
    num_held_out: int = setting(10_000, "Held-out samples", least=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        runs.check_planted(self, "machines")

    @property
    def folder(self) -> Path:
        return Path(self.workdir or f"runs/{self.experiment}-seed{self.seed}")

    def fitting(self) -> "Fitting":
        training = self.steps, self.learning_rate, self.batch_size
        return Fitting(self.rules, self.sample_sizes, self.num_held_out, *training)


class Fitting(NamedTuple):
    """What is learnt from, and how."""

    rules: tuple[str, ...]
    sample_sizes: tuple[int, ...]
    num_held_out: int
    steps: int
    learning_rate: float
    batch_size: int

    def settings(self, rule: str, num_samples: int) -> train.TrainConfig:
        epochs = -(-self.steps // -(-num_samples // self.batch_size))
        optimizer = train.Adam(self.learning_rate, "cosine")
        return train.TrainConfig(RULES[rule], optimizer, epochs, self.batch_size, 1 / num_samples)


class Law(NamedTuple):
    """A machine's distribution: the states that are summed over, and the real units that follow given each of them."""

    states: Float[np.ndarray, "states counted"]
    """Of the entries that can be counted, which come first."""
    log_weights: Float[np.ndarray, " states"]
    """Real units integrated out."""
    means: Float[np.ndarray, "states real"]
    covariance: Float[np.ndarray, "real real"]

    @property
    def log_z(self) -> float:
        return float(np.logaddexp.reduce(self.log_weights))

    def sample(self, key: Array, count: int) -> Float[Array, "count n"]:
        choice_key, noise_key = jax.random.split(key)
        # By one number each: categorical draws take one for every state.
        shares = np.cumsum(np.exp(self.log_weights - self.log_z))
        chosen = np.searchsorted(shares[:-1], np.asarray(jax.random.uniform(choice_key, (count,))), side="right")
        # Independent numbers, of which a root of the covariance makes correlated ones.
        noise = jax.random.normal(noise_key, (count, self.real)) @ np.linalg.cholesky(self.covariance).T
        return jnp.concatenate([jnp.asarray(self.states)[chosen], jnp.asarray(self.means)[chosen] + noise], axis=1)

    @property
    def real(self) -> int:
        return len(self.covariance)


def law(machine: BoltzmannMachine) -> Law:
    """Of a machine of one layer; counts up to a bound stand for all, also where there is no distribution.

    Raises:
      FloatingPointError: real units whose precisions, less the weights between them, are not positive definite.
    """
    (bias,), (inside,), (unit,) = machine.biases, machine.intra, machine.layer_units
    b, w = np.asarray(bias, np.float64), np.asarray(inside, np.float64)
    grids, precisions = [], np.zeros(0)
    for kind, part in unit.segments(len(b)):
        if isinstance(kind, Gaussian):
            precisions = np.exp(np.asarray(kind.log_precision, np.float64))
            continue
        values = np.arange(_MOST_COUNT + 1)[:, None] if kind == COUNT else kind.all_values()
        grids += [np.asarray(values, np.float64)] * ((part.stop - part.start) // kind.width)
    indices = np.indices([len(values) for values in grids]).reshape(len(grids), -1)
    states = np.concatenate([values[index] for values, index in zip(grids, indices, strict=True)], axis=1)
    n = states.shape[1]
    own = np.asarray(jax.vmap(lambda x: jnp.sum(unit.own_energy(x)))(_padded(states, len(b))), np.float64)
    log_weights = states @ b[:n] + np.sum(states @ w[:n, :n] * states, axis=1) / 2 - own
    precision = np.diag(precisions) - w[n:, n:]
    if len(precisions) and np.linalg.eigvalsh(precision).min() <= 0:
        raise FloatingPointError("the real units of a machine have no distribution")
    covariance = np.linalg.inv(precision)
    fields = b[n:] + states @ w[:n, n:]
    means = fields @ covariance
    # log of the integral of exp(x f - x' P x / 2).
    log_weights += np.sum(fields * means, axis=1) / 2 + np.linalg.slogdet(2 * np.pi * covariance)[1] / 2
    return Law(states, log_weights, means, covariance)


def _padded(states: Float[np.ndarray, "states counted"], n: int) -> Float[Array, "states n"]:
    return jnp.asarray(np.pad(states, ((0, 0), (0, n - states.shape[1]))), jnp.float32)


def plant(kind: Kind, seed: int) -> BoltzmannMachine:
    """A random machine; of categorical units in the zero-sum gauge."""
    keys = jax.random.split(key_for(seed, "planted machine of a kind of units"), 3)
    n = kind.entries
    machine = vpf_jax.init_machine(keys[0], (n,), (0,), kind.unit)
    inside = jnp.triu(kind.coupling * jax.random.normal(keys[1], (n, n)), 1)
    inside = inside + inside.T
    inside = -jnp.abs(inside) if kind.repels else inside
    mean, deviation = kind.bias
    biases = mean + deviation * jax.random.normal(keys[2], (n,))
    inside = couplings.hollow(inside, machine.owners(0))
    machine = dataclasses.replace(machine, biases=(biases,), intra=(inside,))
    if machine.own is not None:
        real = np.concatenate([[isinstance(unit, Gaussian)] * (x.stop - x.start) for unit, x in kind.unit.segments(n)])
        # Precisions that exceed what the weights between real units take from them, so that there is a distribution.
        own = jnp.where(real, jnp.log(0.5 + jnp.sum(jnp.abs(inside)[:, real], axis=1)), 0)
        machine = dataclasses.replace(machine, own=(own,))
    return gauged(machine)


def gauged(machine: BoltzmannMachine) -> BoltzmannMachine:
    """The machine in the gauge in which couplings are compared."""
    return vpf_jax.to_zero_sum(machine) if isinstance(machine.units, Categorical) else machine


def fit(kind: Kind, settings: train.TrainConfig, samples: Array, seed: int) -> tuple[BoltzmannMachine, float]:
    """A machine learnt from samples, and the seconds of training without compilation.

    It starts from independent units, since couplings at random may be those of no distribution.
    """
    start = vpf_jax.init_machine(key_for(seed, "start on a planted machine"), (kind.entries,), (0,), kind.unit)
    start = dataclasses.replace(start, intra=(jnp.zeros((kind.entries, kind.entries)),))
    means, variances = jnp.mean(samples.astype(jnp.float32), axis=0), jnp.var(samples.astype(jnp.float32), axis=0)
    start = vpf_jax.with_visible_means(start, means, variances)
    state = train.init_state(key_for(seed, "training on a planted machine"), (start,), settings)
    # Chains from the data: of counts those that start elsewhere may never come to them.
    state = train.start_phase(state, samples, settings)
    run_epoch = train.compile_epoch(state, samples, settings)
    started = time.perf_counter()
    for _ in range(settings.epochs):
        state, metrics = run_epoch(state, samples)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - started
    train.check_finite(metrics, settings.epochs, float(metrics.max_abs_weight))
    (machine,) = train.learnt(state)
    return gauged(machine), seconds


def compare(found: BoltzmannMachine, truth: BoltzmannMachine) -> dict[str, float]:
    """Root mean square error and correlation of the couplings over all pairs of units."""
    owners = truth.owners(0)
    numbers = np.arange(truth.sizes[0]) if owners is None else owners
    pairs = numbers[:, None] < numbers[None]
    a, b = (np.asarray(machine.intra[0], np.float64)[pairs] for machine in (found, truth))
    return {"error": float(np.sqrt(np.mean((a - b) ** 2))), "correlation": float(np.corrcoef(a, b)[0, 1])}


def run(config: Config) -> dict[str, Any]:
    """Plants, samples, learns and compares; resumes. Returns what summary.json holds (errors: `app.runs`)."""
    width = max(KINDS[kind].entries for kind in config.kinds)
    runs.check_memory("sample_sizes", config.sample_sizes, 16 * config.sample_sizes[-1] * width)
    fitting = config.fitting()
    runs.check_memory("num_held_out", config.num_held_out, 16 * config.num_held_out * width)

    def work(folder: Path, stops: list[int]) -> tuple[dict[str, Any], str]:
        rows = []
        for name in config.kinds:
            of_seed = functools.partial(measure, name, fitting)
            found = runs.evaluate_seeds(folder, name, config.seeds, stops, of_seed)
            for number, size in enumerate(config.sample_sizes):
                rows += [
                    {"kind": name, "num_samples": size, "rule": rule}
                    | {key: [one[rule][number][key] for one in found] for key in (*MEASURES, "seconds")}
                    for rule in config.rules
                ]
        for name in config.kinds:
            own = [row for row in rows if row["kind"] == name]
            figures.save(folder / f"recovery-{name}.png", draw(own, f"Planted machines of {KINDS[name].title}"))
        told = f"{config.told_of_means}; seconds of training without compilation\n\n"
        return {"rows": rows}, told + tabulate(rows)

    return runs.carry_out(config, work)


def measure(name: str, fitting: Fitting, index: int, seed: int) -> dict[str, list[dict[str, float]]]:
    """Of one planted machine: for each rule one measurement for each number of samples."""
    kind = KINDS[name]
    truth = plant(kind, seed)
    planted = law(truth)
    largest = fitting.sample_sizes[-1]
    drawn = planted.sample(key_for(seed, "samples of a planted machine"), largest + fitting.num_held_out)
    samples, held_out = jnp.split(drawn.astype(kind.unit.dtype), [largest])
    energies = jax.jit(jax.vmap(vpf_jax.energy, in_axes=(None, 0)))

    def score(machine: BoltzmannMachine) -> float:
        """NaN for what few samples of real units may lead to: a machine without a distribution."""
        try:
            return -float(jnp.mean(energies(machine, (held_out,)))) - law(machine).log_z
        except FloatingPointError:
            return math.nan

    best = score(truth)
    found: dict[str, list[dict[str, float]]] = {rule: [] for rule in fitting.rules}
    for size in fitting.sample_sizes:
        for rule in fitting.rules:
            machine, seconds = fit(kind, fitting.settings(rule, size), samples[:size], seed)
            measured = compare(machine, truth) | {"loss": score(machine) - best, "seconds": seconds}
            found[rule].append(measured)
            told = ", ".join(f"{key} {value:.3g}" for key, value in measured.items())
            print(f"{kind.title}, seed {seed}, {size} samples, {TITLES[rule]}: {told}", flush=True)
    return found


def tabulate(rows: list[dict[str, Any]]) -> str:
    lines = [
        [
            KINDS[row["kind"]].title,
            str(row["num_samples"]),
            TITLES[row["rule"]],
            *(cell(row[key], 3) for key in MEASURES),
            f"{np.mean(row['seconds']):.2g}",
        ]
        for row in rows
    ]
    return markdown_table(["machine", "samples", "rule", *MEASURES.values(), "seconds"], lines)


def draw(rows: list[dict[str, Any]], title: str) -> Any:
    """Error of the couplings of one kind over the number of samples, a line for each rule."""
    lines: dict[str, tuple[list, list, list]] = {}
    for row in rows:
        mean, error = mean_and_error(row["error"])
        columns = lines.setdefault(TITLES[row["rule"]], ([], [], []))
        for column, value in zip(columns, (row["num_samples"], mean, error or 0), strict=True):
            column.append(value)
    return figures.lines(
        lines, xlabel="samples", ylabel="root mean square error of couplings", title=title, logx=True, logy=True
    )


if __name__ == "__main__":
    command.start(Config, run)
