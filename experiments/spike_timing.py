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
from experiments import named_recipes
from vpf_jax import checks, figures
from vpf_jax.app import command, recipes, runs
from vpf_jax.app.keys import key_for
from vpf_jax.app.tables import cell, markdown_table
from vpf_jax.settings import like, setting
from vpf_jax.spikes import stdp

# The directed recipes whose alignment is drawn.
DIRECTED = ("equal_epoch", "drawn_epoch")
FITTED = "fit of Abarbanel et al. (2002)\nto Bi and Poo (1998)"
# Events that are drawn, and those after them over which the recalled image is averaged.
DRAWN_EVENTS, AVERAGED_EVENTS = 20_000, 100_000


@dataclasses.dataclass(frozen=True)
class Config(recipes.RecipesConfig):
    """Settings; each is a flag."""

    experiment = "spike_timing"

    dataset: str = like(runs.Config, "dataset", default="mnist_5k")
    num_seeds: int = like(runs.SeedsConfig, "num_seeds", default=3)
    seeds_at_once: int = like(recipes.RecipesConfig, "seeds_at_once", default=1)
    num_trials: int = setting(4_000_000, "Simulated pairs of spikes", least=2)
    num_bins: int = setting(50, "Bins of spike-time differences", least=2, multiple_of=2)
    # Times that do not see the bounds of the simulated drives (`vpf_jax.spikes.stdp`).
    shortest: float = setting(2.0, "Smallest |dt| of the bins, ms", least=0.01, most=10_000)
    longest: float = setting(102.0, "Largest |dt| of the bins, ms, above --shortest", least=0.01, most=10_000)
    pre_relaxation_rate: float = setting(0.06, "Of the pre-synaptic neuron, per ms", above=0)
    post_relaxation_rate: float = setting(0.03, "Of the post-synaptic neuron, per ms", above=0)
    hidden: int = setting(196, "Hidden units of the RBMs", least=1)
    epochs: int = setting(20, "Passes over the training images", least=2)
    digit: int = setting(0, "Number of the test image to recall", least=0)

    def __post_init__(self) -> None:
        """Checks the settings one against the other.

        Raises:
          SettingError: a value outside its range, or a window in which nothing is measured.
        """
        super().__post_init__()
        allowed = f"more than shortest={self.shortest}"
        checks.require(self.longest > self.shortest, "longest", self.longest, allowed)
        window = self.window()
        window.require_trials(self.num_trials >= self.num_bins)
        # With all trials in one bin its error is the smallest that it can have.
        counts = np.full(self.num_bins // 2, self.num_trials)
        measurable = all(np.all(stdp.binned_errors(some, counts, *window.rates) > 0) for some in window.edges)
        rates = "pre_relaxation_rate={}, post_relaxation_rate={}".format(*window.rates)
        allowed = f"a shorter time or lower rates: with {rates} no pair so far apart changes the synapse"
        checks.require(measurable, "longest", self.longest, allowed)

    def window(self) -> "Window":
        side = np.linspace(self.shortest, self.longest, self.num_bins // 2 + 1)
        rates = self.pre_relaxation_rate, self.post_relaxation_rate
        return Window(self.seed, self.num_trials, (-side[::-1], side), rates)


def run(config: Config) -> dict[str, Any]:
    """Simulates, trains and draws; resumes. Returns what summary.json holds (errors: `app.recipes`, `app.runs`).

    Raises:
      SettingError: a digit that is not there, or a bin that is empty by chance.
    """
    workshop = config.workshop()
    images, window, digit = workshop.images, config.window(), config.digit
    images.require_images()
    count = len(images.test)
    checks.require(digit < count, "digit", digit, f"a number below {count}, as {images.name} has {count} test images")
    # Four numbers of each pair, and what sorting them takes.
    runs.check_memory("num_trials", config.num_trials, 64 * config.num_trials)
    recalling = named_recipes.rbm("vpf_pcd", config.hidden, config.epochs)
    some = {name: named_recipes.directed(name, config.hidden, config.epochs) for name in DIRECTED}
    workshop.check(recalling)
    told = f"after {config.epochs} epochs on {config.data_name}, {config.told_of_means}\n\n"

    def work(folder: Path, stops: list[int]) -> tuple[dict[str, Any], str]:
        found = window.simulate(folder)
        found |= recall(folder, workshop.run(recalling, stops), images, digit)
        aligning = {name: workshop.run(recipe, stops) for name, recipe in some.items()}
        title = f"Directed learning on {images.name}"
        named_recipes.draw_alignment(folder / "alignment.png", list(aligning.values()), title)
        ends = {name: trained.alignment()[-1] for name, trained in aligning.items()}
        rows = [[some[name].title, cell(end, 3)] for name, end in ends.items()]
        table = (
            f"{found['num_trials']} pairs of spikes, {found['num_bins']} bins: largest deviation of a bin's mean from "
            f"the closed form {found['max_abs_z']:.2f} standard errors\n\nCosine of forward and backward weights {told}"
        )
        found |= {"alignment": {name: end.tolist() for name, end in ends.items()}}
        return found, table + markdown_table(["weights", "cosine"], rows)

    return runs.carry_out(config, work)


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


@dataclasses.dataclass(frozen=True)
class Window:
    """The directed rule's window, as it is simulated."""

    seed: int
    num_trials: int
    edges: tuple[np.ndarray, np.ndarray]
    """Of the bins, negative and positive times."""
    rates: tuple[float, float]
    """Of relaxation, of the pre-synaptic neuron first."""

    def require_trials(self, enough: bool) -> None:
        allowed = f"more, or fewer bins than {2 * len(self.edges[1]) - 2}: a bin holds no trial"
        checks.require(enough, "num_trials", self.num_trials, allowed)

    def simulate(self, folder: Path) -> dict[str, Any]:
        """Simulation against the closed form, in bins and as a picture."""
        rates, edges = self.rates, self.edges
        side = edges[1]
        pairs = stdp.simulate_pairings(key_for(self.seed, "pairs of spikes"), self.num_trials, *rates)
        means, _, counts = (
            np.concatenate(parts)
            for parts in zip(*(stdp.binned_means(pairs.dt, pairs.change, some) for some in edges), strict=True)
        )
        self.require_trials(bool(counts.all()))
        expected = np.concatenate([stdp.binned_window(some, *rates) for some in edges])
        errors = np.concatenate(
            [stdp.binned_errors(some, count, *rates) for some, count in zip(edges, np.split(counts, 2), strict=True)]
        )
        deviations = (means - expected) / errors
        # What the paper leaves out, the loss at the relaxation after a pair with dt > 0, has the form of the other
        # side.
        later, _, later_counts = stdp.binned_means(pairs.dt, pairs.later_change, side)
        depression = stdp.relaxation_depression(*rates)
        later_expected = stdp.binned_window(-side[::-1], rates[1], rates[0], depression)[::-1]
        # All or nothing, lambda_post / 2 or 0.
        later_errors = np.sqrt(-later_expected * (rates[1] / 2 + later_expected) / later_counts)
        centres = np.concatenate([(some[1:] + some[:-1]) / 2 for some in edges])
        fine = np.concatenate([np.linspace(some[0], some[-1], 400) for some in edges])
        gap = np.where(np.abs(fine) < side[0] * 1.001, np.nan, 1)
        change, measured, z = "mean change, 1/ms", "measured, %", "deviation,\nstandard errors"
        figures.save(
            folder / "stdp.png",
            figures.panels(
                {
                    change: {
                        "closed form": (fine, gap * np.asarray(stdp.stdp_window(fine, *rates)), None),
                        "simulation": (centres, means, errors),
                    },
                    measured: {FITTED: (fine, gap * measured_window(fine), None)},
                    z: {"simulation - closed form": (centres, deviations, np.ones_like(deviations))},
                },
                xlabel="time of the post-synaptic spike minus that of the pre-synaptic one, ms",
                title=f"The directed rule's window, {self.num_trials:,} simulated pairs",
                limits={change: (-depression, 4 * depression)},
            ),
        )
        return {
            "max_abs_z": float(np.max(np.abs(deviations))),
            "num_bins": len(deviations),
            "num_trials": self.num_trials,
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


def recall(folder: Path, trained: recipes.Seeds, images: runs.Images, digit: int) -> dict[str, Any]:
    """Spikes of an RBM that holds the upper half of an image and starts with everything else at rest."""
    height, width = images.image_shape
    image = images.test.bits[digit]
    (machine,) = trained.stack(0)
    held = jnp.arange(height * width) < height // 2 * width
    start = jnp.where(held, image, 0), jnp.zeros(machine.sizes[1], image.dtype)
    first_key, second_key = jax.random.split(key_for(trained.seeds[0], "spikes of an RBM"))
    first = _spike(first_key, machine, start, held, num_events=DRAWN_EVENTS)
    second = _spike(second_key, machine, first.state, held, num_events=AVERAGED_EVENTS)
    units, times, values = (np.asarray(part) for part in first.events)
    groups = {
        f"visible ({int(held.sum())} held)": units < machine.sizes[0],
        "hidden": units >= machine.sizes[0],
    }
    recalled = np.asarray(second.occupation[0])
    figures.save(
        folder / "raster.png",
        figures.raster(
            {name: (times[some & (values == 1)], units[some & (values == 1)]) for name, some in groups.items()},
            {
                "held": np.where(held, image, 0.5).reshape(height, width),
                "recalled": recalled.reshape(height, width),
                "original": np.asarray(image).reshape(height, width),
            },
            title=f"{DRAWN_EVENTS:,} flips of an RBM in continuous time; recalled: fraction of the time excited "
            "afterwards",
        ),
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
    command.start(Config, run)
