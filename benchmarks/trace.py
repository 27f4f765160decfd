"""Where an epoch's time goes: a jax.profiler trace of one epoch, summed by operation.

    python -m benchmarks.trace --hidden=196,196,64 --intra=on

Milliseconds are summed over threads, waiting inside a parallel operation included, so they add up to more than the
epoch; names are those of the compiled program, which XLA_FLAGS=--xla_dump_to=FOLDER writes out.
"""

import collections
import dataclasses
import tempfile
import time
from pathlib import Path

import jax

from benchmarks.cases import epoch_case
from vpf_jax.app import command, runs
from vpf_jax.rules import VPF
from vpf_jax.settings import like, setting
from vpf_jax.train import TrainConfig

# Recorded around the operations that they consist of.
_WRAPPERS = ("Execute", "while", "call", "end:", "$")


@dataclasses.dataclass(frozen=True)
class Config(runs.Config):
    """Settings; each is a flag."""

    experiment = "trace"

    hidden: tuple[int, ...] = setting((196,), "Units of the hidden layers", least=1, distinct=False)
    intra: bool = setting(False, "Whether the hidden layers have intra-layer weights")
    batch_size: int = like(TrainConfig, "batch_size")
    estep: str = like(VPF, "estep")
    precision: str = like(TrainConfig, "precision")
    rows: int = setting(25, "Operations to print", least=1)


def run(config: Config) -> None:
    """Traces an epoch and prints where its time goes."""
    training = TrainConfig(VPF(config.estep), batch_size=config.batch_size, precision=config.precision)
    images, num_rows = config.images(), config.rows
    images.require("batch_size", config.batch_size)
    epoch = epoch_case("traced", images.train.bits, config.hidden, training, config.intra).setup()
    epoch()
    started = time.perf_counter()
    epoch()
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            epoch()
        (file,) = Path(folder).glob("**/*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(file))
    milliseconds: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    for plane in profile.planes:
        for line in plane.lines:
            for event in line.events:
                if not any(name in event.name for name in _WRAPPERS):
                    milliseconds[event.name] += event.duration_ns / 1e6
                    counts[event.name] += 1
    print(f"an epoch takes {seconds:.3f} s without the trace\n\n| operation | times | ms |\n| --- | ---: | ---: |")
    for name, found in milliseconds.most_common(num_rows):
        print(f"| {name} | {counts[name]} | {found:.1f} |")


if __name__ == "__main__":
    command.start(Config, run)
