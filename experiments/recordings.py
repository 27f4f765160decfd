"""Assemblies of a large recording, learnt by an RBM from files that are larger than memory need be.

    python -m experiments.recordings --workdir=runs/recordings

Plants 200 assemblies of 300 neurons among 40,000, writes 100,000 time bins to disk (4 GB, in the folder recording/ of
the run), and trains an RBM of as many hidden units by variational probability flow, examples being read while others
are learnt (`vpf_jax.blocks`). Each hidden unit starts from a seed: a neuron and the ten that fire most with it in a
sample of the bins (`vpf_jax.seeding`). Weights are sparse and hidden units homeostatic (`vpf_jax.optimizers`).
Measured: the correlation of each assembly's membership with the weights of the hidden unit that matches it best, after
each epoch; seconds; the largest memory of the process. Writes table.md, metrics.csv, overlaps.png and summary.json into
--workdir. A second start resumes; a finished run says so. A quick setting, a minute on two cores:

    python -m experiments.recordings --neurons=2000 --bins=10000 --assemblies=20 --members=60 --active=0.05 \
        --epochs=3 --workdir=runs/quick

What is found is in docs/results/recordings.md, and how to train on a recording of one's own in a guide. Not here: small
planted machines whose law is known (`planted_units`).
"""

import dataclasses
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import vpf_jax
from vpf_jax import blocks, figures, optimizers, rules, seeding, train
from vpf_jax.app import command, loop, runs
from vpf_jax.app.keys import key_for
from vpf_jax.app.tables import markdown_table
from vpf_jax.couplings import dense
from vpf_jax.data.on_disk import OnDisk, open_on_disk
from vpf_jax.data.planted_recordings import Recording
from vpf_jax.evaluate.assemblies import matched
from vpf_jax.settings import like, setting
from vpf_jax.train import TrainConfig

STARTS = ("seeds", "random")
# Overlap from which on an assembly counts as recovered.
RECOVERED = 0.9
# Of visible units at the start: no neuron is taken to be silent.
_LEAST_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Config(runs.Config):
    """Settings of a run; each is a flag."""

    experiment = "recordings"

    dataset: str = runs.planted("Recordings")
    neurons: int = like(Recording, "neurons")
    bins: int = like(Recording, "bins")
    assemblies: int = like(Recording, "assemblies")
    members: int = like(Recording, "members")
    active: float = like(Recording, "active")
    background: float = like(Recording, "background")
    firing: float = like(Recording, "firing")
    hidden: int | None = setting(None, "Hidden units; left out: as many as assemblies", least=1)
    start: str = setting("seeds", "Weights of hidden units at the start", choices=STARTS)
    num_sampled: int = setting(10_000, "Bins, drawn at random, from which the start takes rates and seeds", least=2)
    epochs: int = like(TrainConfig, "epochs", default=3)
    batch_size: int = like(TrainConfig, "batch_size", default=200)
    learning_rate: float = like(train.Adam, "learning_rate", default=0.05)
    sparsity: float = setting(0.1, "Threshold of weights in each step, in learning rates", least=0)
    activity: float | None = setting(
        None, "Share of the bins in which a hidden unit is to be on; left out: that of the assemblies", above=0, below=1
    )
    homeostasis: float = setting(20.0, "Rate at which hidden biases follow it", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        runs.check_planted(self, "recordings")
        for name, most in (("members", self.neurons), ("batch_size", self.bins)):
            given = getattr(self, name)
            vpf_jax.checks.require(given <= most, name, given, f"up to {most}")

    @property
    def folder(self) -> Path:
        return Path(self.workdir or f"runs/{self.experiment}-seed{self.seed}")

    def recording(self) -> Recording:
        names = [field.name for field in dataclasses.fields(Recording)]
        return Recording(**{name: getattr(self, name) for name in names})

    def training(self) -> TrainConfig:
        """Fresh hidden states for each step, and an optimizer that suits them."""
        steps = self.epochs * -(-self.bins // self.batch_size)
        rate = optax.cosine_decay_schedule(self.learning_rate, steps)
        optimizer = optimizers.sparse(optax.adam(rate), lambda step: self.sparsity * rate(step))
        activity = self.active if self.activity is None else self.activity
        optimizer = optimizers.homeostatic(optimizer, activity, self.homeostasis)
        rule = rules.VPF(estep="minibatch")
        return TrainConfig(rule, optimizer, self.epochs, self.batch_size, weight_decay=0.0, centred=True)


def run(config: Config) -> dict[str, Any]:
    """Plants, writes, learns and compares; resumes. Returns what summary.json holds (errors: `app.runs`)."""
    num_hidden = config.assemblies if config.hidden is None else config.hidden
    # Weights with the moments of Adam, gradient and copies; a sample; blocks.
    needed = (
        32 * config.neurons * num_hidden
        + min(config.num_sampled, config.bins) * config.neurons
        + 4 * blocks.BLOCK_BYTES
    )
    largest = max(("neurons", "hidden", "assemblies"), key=lambda name: getattr(config, name) or 0)
    runs.check_memory(largest, getattr(config, largest), needed + 5 * config.neurons * config.assemblies)
    recording, settings = config.recording(), config.training()

    def work(folder: Path, stops: list[int]) -> tuple[dict[str, Any], str]:
        source = write(recording, folder / "recording", stops)
        membership = recording.membership()
        started = time.perf_counter()
        machine = begin(source, num_hidden, config.start, config.num_sampled, config.seed)
        start_seconds = time.perf_counter() - started
        at_start = matched(dense(machine.weights[0]), membership).overlap
        state = train.init_state(key_for(config.seed, "training on a recording"), (machine,), settings)
        found = fit(folder, state, source, settings, membership, stops)
        overlap = matched(dense(found.state.stack[0].weights[0]), membership).overlap
        figures.save(folder / "overlaps.png", draw(at_start, overlap))
        measured = {
            "overlap_at_start": float(np.mean(at_start)),
            "overlap": float(np.mean(overlap)),
            "recovered": float(np.mean(overlap >= RECOVERED)),
            "least_overlap": float(np.min(overlap)),
            "train_seconds": found.seconds,
            "start_seconds": start_seconds,
            "peak_memory_gb": peak_memory(),
            "overlaps": overlap.tolist(),
        }
        return measured, tabulate(config.start, measured)

    return runs.carry_out(config, work)


def write(recording: Recording, folder: Path, stops: list[int]) -> OnDisk:
    """The recording on disk, written where it is not there yet."""
    print(f"writing {recording.bins:,} bins of {recording.neurons:,} neurons to {folder}", flush=True)
    for part in range(recording.parts):
        runs.stop_if_asked(stops, "what is written stays, start again to resume")
        recording.write(folder, part)
    return open_on_disk(folder)


def begin(source: OnDisk, num_hidden: int, start: str, num_sampled: int, seed: int) -> vpf_jax.BoltzmannMachine:
    """The machine before training: rates of the neurons, and weights to seeds or at random."""
    sample = source.sample(num_sampled, seed)
    machine = vpf_jax.init_machine(key_for(seed, "start on a recording"), (source.num_visible, num_hidden))
    rates = np.maximum(np.mean(sample, axis=0, dtype=np.float64), _LEAST_RATE)
    machine = vpf_jax.with_visible_means(machine, jax.numpy.asarray(rates, jax.numpy.float32))
    if start == "seeds":
        seeds = seeding.seeds_of(sample, num_hidden, min(10, source.num_visible - 1), seed=seed)
        print(f"{len(seeds)} seeds for {num_hidden} hidden units", flush=True)
        machine = seeding.with_seeds(machine, seeds)
    return machine


def fit(
    folder: Path,
    state: train.TrainState,
    source: OnDisk,
    settings: TrainConfig,
    membership: np.ndarray,
    stops: list[int],
) -> loop.Trained:
    """Trains, with a checkpoint after each epoch."""

    def epoch(state: train.TrainState, number: int) -> tuple[train.TrainState, loop.Row]:
        state, metrics = blocks.train_epoch_from(state, source, config=settings)
        return state, {"objective": metrics.objective, "max_abs_weight": metrics.max_abs_weight}

    def measure(state: train.TrainState, number: int) -> loop.Row:
        overlap = matched(dense(state.stack[0].weights[0]), membership).overlap
        return {"overlap": np.mean(overlap), "recovered": np.mean(overlap >= RECOVERED)}

    phase = loop.Phase(settings.epochs, lambda state: epoch)
    columns = ("objective", "max_abs_weight", "overlap", "recovered")
    return loop.train(folder, state, [phase], checkpoint_every=1, stops=stops, columns=columns, measure=measure)


def peak_memory() -> float:
    """Of this process, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def tabulate(start: str, measured: dict[str, Any]) -> str:
    header = [
        "start",
        "overlap at the start",
        "overlap",
        "least",
        f"assemblies of at least {RECOVERED}",
        "minutes of training",
        "minutes of the start",
        "GB of memory",
    ]
    row = [
        start,
        f"{measured['overlap_at_start']:.3f}",
        f"{measured['overlap']:.3f}",
        f"{measured['least_overlap']:.3f}",
        f"{100 * measured['recovered']:.1f} %",
        f"{measured['train_seconds'] / 60:.1f}",
        f"{measured['start_seconds'] / 60:.1f}",
        f"{measured['peak_memory_gb']:.2f}",
    ]
    return markdown_table(header, [row])


def draw(at_start: np.ndarray, overlap: np.ndarray) -> Any:
    """Overlaps of all assemblies, in their order, before and after training."""
    ranks = np.arange(1, len(overlap) + 1)
    lines: dict[str, tuple[np.ndarray, np.ndarray, None]] = {
        "after training": (ranks, np.sort(overlap)[::-1], None),
        "at the start": (ranks, np.sort(at_start)[::-1], None),
    }
    return figures.lines(lines, xlabel="assembly, best first", ylabel="overlap", title="Assemblies of a recording")


if __name__ == "__main__":
    command.start(Config, run)
