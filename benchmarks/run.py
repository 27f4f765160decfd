"""Measures vpf_jax beside its peers, in one process and in turn; prints and writes the table and the plot.

    python -m benchmarks.run --dataset=mnist --workdir=runs/bench

writes into --workdir: table.md, results.json (every single timing), growth.png, quality.png and target.png. A peer that
is not installed is a row that says so. --tiny runs everything at sizes that mean nothing, to see that it runs.
"""

import dataclasses
import json
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vpf_jax
from benchmarks import quality, report, start, target
from benchmarks.cases import epoch_case, gibbs_case, parzen_case, spiking_case
from benchmarks.measure import Case, Row, measure, modes, peak_case
from benchmarks.peers import port_case, rbms_case, sklearn_case, thrml_case
from experiments import named_recipes
from vpf_jax.app import command, runs
from vpf_jax.rules import VPF
from vpf_jax.settings import setting
from vpf_jax.train import TrainConfig

PARTS = ("epochs", "sampling", "spiking", "start", "growth", "quality", "target")


@dataclasses.dataclass(frozen=True)
class Config(runs.Config):
    """Settings; each is a flag."""

    experiment = "bench"

    parts: tuple[str, ...] = setting(PARTS, "What to measure", choices=PARTS)
    rounds: int = setting(5, "Timings of each case", least=1, most=1000)
    tiny: bool = setting(False, "Everything at sizes that mean nothing, to see that it runs")

    @property
    def folder(self) -> Path:
        return Path(self.workdir or "runs/bench")


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
    samples: int = 10_000
    raced_rbms: tuple[str, ...] = ("vpf_pcd", "vpf_tethered", "tethered1", "tethered10", "cd10", "pcd1", "pcd10")
    rbm_epochs: int = 40
    annealing: tuple[int, int] = (200, 2000)
    repaired: int = 1000
    raced_stacks: tuple[str, ...] = ("intra_dbm", "intra_dbm_refined")
    stack_epochs: int = 200
    most_seconds: float = 240.0


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
    samples=50,
    raced_rbms=("vpf_pcd",),
    rbm_epochs=2,
    annealing=(20, 5),
    repaired=20,
    raced_stacks=("intra_dbm_refined",),
    stack_epochs=2,
)


def epoch_cases(visible: np.ndarray, sizes: Sizes) -> list[Case]:
    """One epoch of each model, ours and the peers'."""
    images = jnp.asarray(visible)
    first, large = sizes.hidden[:1], sizes.large_batch
    names = "-".join(str(n) for n in (visible.shape[1], *sizes.hidden))
    rbm, fresh = f"RBM {first[0]}", f"RBM {first[0]}, fresh E-step"
    dbm, intra = f"DBM {names}", f"intra-layer DBM {names}"
    paper = TrainConfig(batch_size=sizes.batch_size)
    minibatch = dataclasses.replace(paper, rule=VPF("minibatch"))
    narrow = dataclasses.replace(paper, precision="bfloat16")
    batch = sizes.batch_size
    return [
        epoch_case(rbm, images, first, paper),
        epoch_case(fresh, images, first, minibatch),
        epoch_case(f"{rbm}, batch {large}", images, first, dataclasses.replace(paper, batch_size=large)),
        epoch_case(f"{fresh}, batch {large}", images, first, dataclasses.replace(minibatch, batch_size=large)),
        epoch_case(f"{rbm}, bfloat16 products", images, first, narrow, against=(rbm,)),
        epoch_case(dbm, images, sizes.hidden, paper),
        epoch_case(intra, images, sizes.hidden, paper, intra=True),
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
    images, first, paper = jnp.asarray(visible), sizes.hidden[:1], TrainConfig(batch_size=sizes.batch_size)
    make = {
        "hidden units": lambda name, n: epoch_case(name, images, (n,), paper),
        "batch size": lambda name, n: epoch_case(name, images, first, TrainConfig(batch_size=n)),
        "images": lambda name, n: epoch_case(name, images[:n], first, paper),
        "seeds at once": lambda name, n: epoch_case(name, images, first, paper, num_seeds=n),
    }
    return {name: [(n, make[name](f"RBM, {name}: {n}", n)) for n in values] for name, values in sizes.growth}


def quality_race(images: runs.Images, visible: np.ndarray, sizes: Sizes) -> quality.Race:
    """RBMs of ours and of the peers to log-likelihoods and to errors of repair."""
    first, (chains, temperatures) = sizes.hidden[0], sizes.annealing
    return quality.Race(
        f"RBMs of {first} hidden units",
        quality.rbms(visible, first, sizes.rbm_epochs, sizes.batch_size, sizes.raced_rbms),
        quality.judge(jnp.asarray(visible), images.test, images.image_shape, sizes.annealing, sizes.repaired),
        (quality.NATS, quality.REPAIR),
        (named_recipes.RBMS["pcd1"], quality.RBMS),
        f"annealed importance sampling with {chains} chains and {temperatures} temperatures; repair of the first "
        f"{sizes.repaired} test images; learning rates of the peers: scikit-learn {quality.SKLEARN_RATE:g}, "
        f"rbms {quality.RBMS_RATE:g}",
    )


def target_race(images: runs.Images, visible: np.ndarray, sizes: Sizes) -> quality.Race:
    """Stacks of ours to Parzen scores."""
    bits = jnp.asarray(visible)
    return quality.Race(
        f"Stacks of {'-'.join(map(str, sizes.hidden))} hidden units",
        target.stacks(bits, sizes.hidden, sizes.stack_epochs, sizes.raced_stacks),
        target.judge(images, bits, sizes.samples),
        (target.PARZEN,),
        (),
        f"{sizes.samples} generated images, by {target.TOLD_SAMPLERS}",
    )


def run(config: Config) -> dict[str, Any]:
    """Measures the parts, writes the files, and returns what results.json holds."""
    sizes = TINY if config.tiny else Sizes()
    images = config.images()
    return measure_parts(config.folder, images, config.data_dir, config.parts, config.rounds, sizes)


def measure_parts(
    folder: Path, images: runs.Images, data_dir: str | None, parts: Sequence[str], rounds: int, sizes: Sizes
) -> dict[str, Any]:
    """`run` of some parts, at some sizes."""
    visible = np.asarray(images.train.bits[: sizes.examples])
    dataset = images.name
    folder.mkdir(parents=True, exist_ok=True)

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
        report.growth_plot(folder / "growth.png", grown, f"an epoch of the RBM ({_machine()})")
        text.append(report.growth_table(grown))
        results["growth"] = {name: [[n, list(row.seconds)] for n, row in points] for name, points in grown.items()}
    for part, make in {"quality": quality_race, "target": target_race}.items():
        if part in parts:
            race = make(images, visible, sizes)
            raced = race.run(sizes.most_seconds, say)
            report.race_plot(folder / f"{part}.png", race, raced, _machine())
            text.append(report.race_tables(race, raced))
            results[part] = [_plain_curve(curve) for curve in raced]
    (folder / "table.md").write_text("\n".join(text))
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    print("\n" + "\n".join(text))
    return results


def _machine() -> str:
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = f"jax {jax.__version__}, vpf_jax {vpf_jax.__version__}"
    return f"{device.device_kind}, {platform.machine()}, {cores} cores, {versions}"


def _plain(row: Row) -> dict[str, Any]:
    found = modes(row.seconds)
    told = None if found is None else {"slow_to_fast": found.ratio, "slow": found.share}
    return {
        "name": row.case.name,
        "seconds": row.seconds,
        "modes": told,
        "flops": row.case.flops,
        "note": row.note,
    }


def _plain_curve(curve: quality.Curve) -> dict[str, Any]:
    def plain(scores: quality.Scores) -> dict[str, float | None]:
        return {name: None if math.isnan(score) else score for name, score in scores.items()}

    looks = [look._asdict() | {"scores": plain(look.scores)} for look in curve.looks]
    return {"name": curve.competitor.name, "looks": looks, "note": curve.note}


if __name__ == "__main__":
    command.start(Config, run)
