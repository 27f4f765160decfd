"""Spike timing from the learning rule, a spiking RBM that recalls a digit, and learning without symmetric weights.

    python -m experiments.spike_timing --workdir=runs/stdp

Writes into --workdir:

    stdp.png       the window of the directed rule (Liu, Quek and Lin, arXiv 1711.07732, section 4): closed form, its
                   event-driven simulation with standard errors, and a window measured in hippocampal neurons
    raster.png     the spikes of an RBM that holds the upper half of a digit and completes the rest in continuous time
    alignment.png  forward and backward weights that learn by their own halves of the rule, from equal and unequal
                   starts
    summary.json   max_abs_z, the largest deviation of the simulation's binned means from the closed form in standard
                   errors, num_bins, num_trials and more

The measured window is drawn as the curve that Abarbanel, Huerta and Rabinovich (PNAS 99, 10132, 2002) fitted to data of
Bi and Poo (J. Neurosci. 18, 10464, 1998), with their parameters; no point of the data is drawn. Bi and Poo report
potentiation for post-synaptic spikes within 20 ms after the pre-synaptic one, and depression within 20 ms before. The
simulated relaxation times are of that order and not fitted. Under two minutes on two cores; a second start resumes. A
quick setting, under a minute:

    python -m experiments.spike_timing --num_trials=200000 --num_bins=20 --epochs=4 --num_seeds=2 --hidden=64 \
        --workdir=runs/quick

Not here: the comparison of directed with symmetric learning (`experiments.directed`).
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

import vpf_jax
from experiments import comparison
from experiments.directed import alignment_curve, save_alignment
from vpf_jax import figures
from vpf_jax.app import command as cli
from vpf_jax.app import runs
from vpf_jax.app.folder import UsageError, stop_requests
from vpf_jax.app.tables import cell, markdown_table
from vpf_jax.data import SOURCES, Dataset, binarise
from vpf_jax.spikes import stdp

# The directed recipes whose alignment is drawn.
DIRECTED = ("equal_epoch", "drawn_epoch")
FITTED = "fit of Abarbanel et al. (2002)\nto Bi and Poo (1998)"
# Times in ms that do not see the bounds of the simulated drives (`vpf_jax.spikes.stdp`).
SHORTEST, LONGEST = 0.01, 10_000.0
# Events that are drawn, and those after them over which the recalled image is averaged.
DRAWN_EVENTS, AVERAGED_EVENTS = 20_000, 100_000


@dataclasses.dataclass(frozen=True)
class Config(comparison.Config):
    """Settings; each is a flag."""

    experiment = "stdp"

    dataset: str = cli.setting("mnist_5k", "Data of the RBMs; mnist_5k comes with a package.", SOURCES)
    num_seeds: int = cli.setting(3, "Runs of each directed RBM, at least 1.")
    seeds_at_once: int = cli.setting(1, "Runs trained in one batched computation, the others after them; 0: all.")
    num_trials: int = cli.setting(4_000_000, "Simulated pairs of spikes, at least 2.")
    num_bins: int = cli.setting(50, "Bins of spike-time differences, an even number of at least 2.")
    shortest: float = cli.setting(2.0, "Smallest |dt| of the bins, ms, at least 0.01.")
    longest: float = cli.setting(102.0, "Largest |dt| of the bins, ms, above --shortest, at most 10000.")
    pre_relaxation_rate: float = cli.setting(0.06, "Of the pre-synaptic neuron, per ms, positive.")
    post_relaxation_rate: float = cli.setting(0.03, "Of the post-synaptic neuron, per ms, positive.")
    hidden: int = cli.setting(196, "Hidden units of the RBMs, at least 1.")
    epochs: int = cli.setting(20, "Passes over the training images, at least 2.")
    digit: int = cli.setting(0, "Number of the test image to recall, at least 0.")

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
          UsageError: a value outside its range.
        """
        super().__post_init__()
        self.check_at_least(num_trials=2, num_bins=2, hidden=1, epochs=2, digit=0)
        if self.num_bins % 2:
            raise UsageError(f"got --num_bins={self.num_bins}; it takes an even number")
        if not SHORTEST <= self.shortest < self.longest <= LONGEST:
            given = f"--shortest={self.shortest} --longest={self.longest}"
            raise UsageError(f"got {given}; they take increasing times from {SHORTEST:g} to {LONGEST:g} ms")
        try:
            stdp.relaxation_depression(self.pre_relaxation_rate, self.post_relaxation_rate)
        except ValueError as error:
            raise UsageError(str(error).replace("got ", "got --", 1)) from None
        if self.num_trials < self.num_bins:
            raise self.empty_bin()
        # With all trials in one bin its error is the smallest that it can have.
        counts = np.full(self.num_bins // 2, self.num_trials)
        if not all(np.all(stdp.binned_errors(some, counts, *self.rates) > 0) for some in self.edges):
            given = (
                f"--longest={self.longest} --pre_relaxation_rate={self.pre_relaxation_rate} "
                f"--post_relaxation_rate={self.post_relaxation_rate}"
            )
            raise UsageError(
                f"got {given}; no pair so far apart changes the synapse: take a shorter time or lower rates"
            )

    @property
    def rates(self) -> tuple[float, float]:
        """Of relaxation, of the pre-synaptic neuron first."""
        return self.pre_relaxation_rate, self.post_relaxation_rate

    @property
    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the bins, negative and positive times."""
        side = np.linspace(self.shortest, self.longest, self.num_bins // 2 + 1)
        return -side[::-1], side

    def empty_bin(self) -> UsageError:
        given = f"--num_trials={self.num_trials} --num_bins={self.num_bins}"
        return UsageError(f"got {given}; a bin holds no trial: take more trials or fewer bins")


def run(config: Config) -> dict[str, Any]:
    """Simulates, trains and draws; resumes. Returns what summary.json holds.

    Raises:
      UsageError: a folder that does not fit, or a digit that is not there.
      vpf_jax.data.DatasetError: data that cannot be read.
      vpf_jax.train.NonFiniteObjectiveError: training has overflowed.
      vpf_jax.app.folder.Stopped: SIGTERM or SIGINT arrived; what was trained is saved.
    """
    return runs.carry_out(config, _run, functools.partial(_check_digit, config))


def _run(config: Config, data: Dataset, workdir: Path) -> tuple[dict[str, Any], str]:
    """What is found, and the table."""
    found = _window(config, workdir)
    with stop_requests() as stops:
        recipe = comparison.rbm_recipes((config.hidden,), config.epochs)["vpf_pcd"]
        trained = comparison.train_for(config, recipe, data, stops)
        found |= _recall(config, data, trained.stack(0)[0], workdir)
        recipes = comparison.directed_recipes((config.hidden,), config.epochs)
        curves = {
            name: alignment_curve(config, recipes[name], data, comparison.train_for(config, recipes[name], data, stops))
            for name in DIRECTED
        }
    save_alignment(workdir / "alignment.png", curves, title=f"Directed learning on {config.dataset}")
    found |= {"alignment": {name: curve[-1].tolist() for name, curve in curves.items()}}
    return found, _table(config, found)


def _check_digit(config: Config, data: Dataset) -> None:
    if config.digit >= len(data.test.images):
        raise UsageError(f"got --digit={config.digit}; {config.dataset} has {len(data.test.images)} test images")


def _table(config: Config, found: dict[str, Any]) -> str:
    rows = [[comparison.DIRECTED_TITLES[name], cell(values, 3)] for name, values in found["alignment"].items()]
    return (
        f"{config.num_trials} pairs of spikes, {config.num_bins} bins: largest deviation of a bin's mean from the "
        f"closed form {found['max_abs_z']:.2f} standard errors\n\nCosine of forward and backward weights after "
        f"{config.epochs} epochs on {config.dataset}, mean +- standard error over {config.num_seeds} seeds\n\n"
        + markdown_table(["weights", "cosine"], rows)
    )


def measured_window(dt: ArrayLike) -> np.ndarray:
    """Relative change of synaptic strength in per cent, as Abarbanel, Huerta and Rabinovich fitted it, dt in ms.

    The parameters are those of their fit to the data of Bi and Poo (1998).
    """
    dt = np.asarray(dt, np.float64)
    rise, fall, ratio, scale = 10.2, 28.6, 4.0, 42.0
    up = scale / (1 / rise + ratio / fall)
    down = scale / (ratio / rise + 1 / fall)
    time = np.abs(dt) / np.where(dt > 0, rise, fall)
    later = up * np.exp(-time) - down * np.exp(-ratio * time)
    earlier = up * np.exp(-ratio * time) - down * np.exp(-time)
    return np.where(dt > 0, later, earlier)


def _window(config: Config, workdir: Path) -> dict[str, Any]:
    """Simulation against the closed form, in bins and as a picture."""
    rates, edges = config.rates, config.edges
    side = edges[1]
    pairs = stdp.simulate_pairings(jax.random.key(config.seed), config.num_trials, *rates)
    means, _, counts = (
        np.concatenate(parts)
        for parts in zip(*(stdp.binned_means(pairs.dt, pairs.change, some) for some in edges), strict=True)
    )
    if not counts.all():
        raise config.empty_bin()
    expected = np.concatenate([stdp.binned_window(some, *rates) for some in edges])
    errors = np.concatenate(
        [stdp.binned_errors(some, count, *rates) for some, count in zip(edges, np.split(counts, 2), strict=True)]
    )
    deviations = (means - expected) / errors
    # What the paper leaves out, the loss at the relaxation after a pair with dt > 0, has the form of the other side.
    later, _, later_counts = stdp.binned_means(pairs.dt, pairs.later_change, side)
    depression = stdp.relaxation_depression(*rates)
    later_expected = stdp.binned_window(-side[::-1], rates[1], rates[0], depression)[::-1]
    # All or nothing, lambda_post / 2 or 0.
    later_errors = np.sqrt(-later_expected * (rates[1] / 2 + later_expected) / later_counts)
    centres = np.concatenate([(some[1:] + some[:-1]) / 2 for some in edges])
    fine = np.concatenate([np.linspace(some[0], some[-1], 400) for some in edges])
    gap = np.where(np.abs(fine) < config.shortest * 1.001, np.nan, 1)
    change, measured, z = "mean change, 1/ms", "measured, %", "deviation,\nstandard errors"
    figures.save_panels(
        workdir / "stdp.png",
        {
            change: {
                "closed form": (fine, gap * np.asarray(stdp.stdp_window(fine, *rates)), None),
                "simulation": (centres, means, errors),
            },
            measured: {FITTED: (fine, gap * measured_window(fine), None)},
            z: {"simulation - closed form": (centres, deviations, np.ones_like(deviations))},
        },
        xlabel="time of the post-synaptic spike minus that of the pre-synaptic one, ms",
        title=f"The directed rule's window, {config.num_trials:,} simulated pairs",
        limits={change: (-depression, 4 * depression)},
    )
    return {
        "max_abs_z": float(np.max(np.abs(deviations))),
        "num_bins": len(deviations),
        "num_trials": config.num_trials,
        "fewest_trials_in_a_bin": int(counts.min()),
        "later_change_max_abs_z": float(np.max(np.abs((later - later_expected) / later_errors))),
        "depression_rate": depression,
        "bins": {
            "centre_ms": centres.tolist(),
            "mean": means.tolist(),
            "standard_error": errors.tolist(),
            "closed_form": expected.tolist(),
        },
    }


def _recall(config: Config, data: Dataset, machine: vpf_jax.BoltzmannMachine, workdir: Path) -> dict[str, Any]:
    """Spikes of an RBM that holds the upper half of an image and starts with everything else at rest."""
    height, width = data.image_shape
    image = jnp.asarray(binarise(data.test.images[config.digit]))
    held = jnp.arange(height * width) < height // 2 * width
    start = jnp.where(held, image, 0), jnp.zeros(machine.sizes[1], image.dtype)
    first_key, second_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 3))
    first = _spike(first_key, machine, start, held, num_events=DRAWN_EVENTS)
    second = _spike(second_key, machine, first.state, held, num_events=AVERAGED_EVENTS)
    units, times, values = (np.asarray(part) for part in first.events)
    groups = {
        f"visible ({int(held.sum())} held)": units < machine.sizes[0],
        "hidden": units >= machine.sizes[0],
    }
    recalled = np.asarray(second.occupation[0])
    figures.save_raster(
        workdir / "raster.png",
        {name: (times[some & (values == 1)], units[some & (values == 1)]) for name, some in groups.items()},
        {
            "held": np.where(held, image, 0.5).reshape(height, width),
            "recalled": recalled.reshape(height, width),
            "original": np.asarray(image).reshape(height, width),
        },
        title=f"{DRAWN_EVENTS:,} flips of an RBM in continuous time; recalled: fraction of the time excited afterwards",
    )
    rest = np.asarray(~held)
    return {
        "recall_error": float(np.mean(np.abs(recalled - np.asarray(image))[rest])),
        "recall_error_of_a_dark_image": float(np.mean(np.asarray(image)[rest])),
        "recall_duration": float(second.duration),
    }


@functools.partial(jax.jit, static_argnames="num_events")
def _spike(
    key: jax.Array, machine: vpf_jax.BoltzmannMachine, state: vpf_jax.State, held: jax.Array, *, num_events: int
) -> vpf_jax.SpikingRun:
    return vpf_jax.run_spiking(key, machine, state, num_events, held=held)


if __name__ == "__main__":
    cli.start_experiment(Config, run)
