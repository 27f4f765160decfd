"""Epochs of training in two trees of this project, in turn: whether a change has made them slower.

    git worktree add ../before v0.9.0
    taskset -c 0 env XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python -m benchmarks.versions --before=../before

Each tree has a process of its own, which compiles first and is asked for so many epochs at a time, one tree after the
other, each as often the first as the second; whoever is not asked sleeps. What a machine does beside falls on both
alike, and seconds are those of the processor, in which waiting for others does not count. One core and one thread, as
above, make that so. Prints the median, the quartiles and the range of the ratios pair by pair, and the ratio of the
least seconds; keeps nothing. Not here: other libraries (`run`).
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vpf_jax.app import command
from vpf_jax.app.folder import UsageError
from vpf_jax.app.runs import Config as RunConfig
from vpf_jax.app.tables import markdown_table
from vpf_jax.settings import Settings, like, setting

CASES = ("RBM, VPF", "intra-layer DBM, VPF", "RBM, PCD-1")
# What runs in a tree, by names that both have: sets up all cases, then does what it is asked for.
_WORKER = """
import sys, time
import jax.numpy as jnp
from benchmarks.cases import epoch_case
from vpf_jax import rules
from vpf_jax.data import binarise, load_dataset
from vpf_jax.train import TrainConfig

dataset, epochs, hidden, batch_size, *names = sys.argv[1:]
hidden = tuple(map(int, hidden.split(",")))
bits = jnp.asarray(binarise(load_dataset(dataset).train.examples))
paper, pcd = TrainConfig(batch_size=int(batch_size)), TrainConfig(rules.PCD(), batch_size=int(batch_size))
made = zip(names, ((hidden[:1], paper, False), (hidden, paper, True), (hidden[:1], pcd, False)), strict=True)
runs = {name: epoch_case(name, bits, *how).setup() for name, how in made}
for run in runs.values():
    run()
print("ready", flush=True)
for line in sys.stdin:
    run, started = runs[line.strip()], time.process_time()
    for _ in range(int(epochs)):
        run()
    print(time.process_time() - started, flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Settings; each is a flag."""

    before: str = setting("../before", "The other tree, such as a git worktree of an earlier version")
    after: str = setting(".", "The tree that is compared with it")
    dataset: str = like(RunConfig, "dataset", default="mnist_5k")
    hidden: tuple[int, ...] = setting(
        (196, 196, 64), "Units of the hidden layers; the RBM has the first", least=1, distinct=False
    )
    batch_size: int = setting(40, "Examples per step", least=1)
    epochs: int = setting(20, "Epochs of a timing", least=1)
    pairs: int = setting(20, "Timings of each case in each tree", least=2)


class Worker:
    """A process in a tree."""

    def __init__(self, tree: str, config: Config) -> None:
        self._tree = tree
        given = config.dataset, str(config.epochs), ",".join(map(str, config.hidden)), str(config.batch_size)
        # Its own packages come first where it runs.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, *given, *CASES],
            cwd=tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self) -> str:
        """The next line.

        Raises:
          UsageError: the process has ended, and said why.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            told = f"whose process ended with status {self._process.wait()}"
            raise UsageError(f"got {self._tree}, {told}; it takes a tree with these cases")
        return line.strip()

    def seconds(self, case: str) -> float:
        assert self._process.stdin is not None
        print(case, file=self._process.stdin, flush=True)
        return float(self.answer())

    def close(self) -> None:
        self._process.communicate()


def run(config: Config) -> str:
    """Measures, prints and returns the table."""
    for tree in (config.before, config.after):
        if not (Path(tree) / "vpf_jax").is_dir():
            raise UsageError(f"got {tree}, which holds no vpf_jax; it takes a tree of this project")
    workers = [Worker(tree, config) for tree in (config.before, config.after)]
    try:
        for worker in workers:
            worker.answer()
        seconds = {case: np.zeros((config.pairs, 2)) for case in CASES}
        for pair in range(config.pairs):
            for case, found in seconds.items():
                for which in (0, 1) if pair % 2 else (1, 0):
                    found[pair, which] = workers[which].seconds(case)
    finally:
        for worker in workers:
            worker.close()
    table = tabulate(seconds, config.epochs)
    print(table)
    return table


def tabulate(seconds: dict[str, Any], epochs: int) -> str:
    """Of seconds [pairs, before and after]."""
    header = [
        "what",
        "seconds of an epoch, before",
        "after",
        "after / before, median",
        "quartiles",
        "range",
        "of the least",
    ]
    cells = []
    for case, found in seconds.items():
        ratios = found[:, 1] / found[:, 0]
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        least = found.min(axis=0)
        medians = [f"{median / epochs:.4f}" for median in np.median(found, axis=0)]
        spread = [f"{low:.3f} to {high:.3f}", f"{ratios.min():.3f} to {ratios.max():.3f}"]
        cells.append([case, *medians, f"{middle:.3f}", *spread, f"{least[1] / least[0]:.3f}"])
    return markdown_table(header, cells)


if __name__ == "__main__":
    command.start(Config, run)
