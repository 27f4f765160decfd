"""Categorical RBMs of the package rbms beside ours, on images as four shades: log-likelihood and seconds of training.

    python -m benchmarks.potts --num_seeds=5
    python -m benchmarks.potts --hidden=8 --epochs=2 --num_seeds=1 --rates=0.1 --num_chains=20 --num_temperatures=50

The data, our machines and the annealing are those of `experiments.unit_machines` ("4 shades"). rbms' Potts-Bernoulli
RBM trains from its own start by PCD, with as many chains as a minibatch has examples; of the rates given the one is
taken at which the machine of the first seed has the highest log-likelihood on the validation images. Its parameters
become a machine of ours, and one annealing measures all. Prints a table; keeps nothing. Without rbms the table says so.
Not here: time to a given log-likelihood, of binary RBMs (`run --parts=quality`).
"""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Shaped

import vpf_jax
from benchmarks.measure import MissingPeerError
from benchmarks.peers import RbmsPotts
from experiments import unit_machines
from experiments.unit_machines import SHADE, Form, Work, as_shades
from vpf_jax.app import command, runs
from vpf_jax.app.tables import cell, markdown_table
from vpf_jax.settings import like, setting

OURS = ("cd10", "pcd1")
HEADER = ("machine", "log-likelihood, nats", "reverse - forward log Z", "effective samples", "seconds")


@dataclasses.dataclass(frozen=True)
class Config(runs.SeedsConfig):
    """Settings; each is a flag."""

    experiment = "potts"

    dataset: str = like(unit_machines.Config, "dataset")
    num_seeds: int = like(unit_machines.Config, "num_seeds")
    hidden: int = like(unit_machines.Config, "hidden")
    epochs: int = like(unit_machines.Config, "epochs", default=200)
    batch_size: int = like(unit_machines.Config, "batch_size")
    steps: tuple[int, ...] = setting((1, 10), "Gibbs steps of rbms' chains from gradient to gradient", least=1)
    rates: tuple[float, ...] = setting((0.01, 0.03, 0.1, 0.3), "Learning rates of rbms to choose from", above=0)
    num_chains: int = like(unit_machines.Config, "num_chains")
    num_temperatures: int = like(unit_machines.Config, "num_temperatures")

    def work(self) -> Work:
        annealing = {"num_chains": self.num_chains, "num_temperatures": self.num_temperatures}
        return Work(self.hidden, self.epochs, self.batch_size, 0, annealing)


def run(config: Config) -> str:
    """Trains, measures and prints; returns the table."""
    images, work = config.images(), config.work()
    images.require_images()
    images.require("batch_size", config.batch_size)
    data = unit_machines.form("levels", images, 0.0)
    validation = as_shades(np.asarray(images.validation.grey, np.float64))
    cells = [ours(data, rule, config.seeds, work) for rule in OURS]
    for steps in config.steps:
        try:
            rate = best_rate(data, validation, steps, config.rates, config.seed, work)
            found = [
                scores(data, data.test, *learn(data, steps, rate, seed, work), seed, work) for seed in config.seeds
            ]
            cells.append(row(f"rbms, PCD-{steps}, rate {rate:g}", found))
        except MissingPeerError as error:
            cells.append([f"rbms, PCD-{steps}", f"not measured: {error}", "", "", ""])
    table = markdown_table(HEADER, cells)
    print(table)
    return table


def ours(data: Form, rule: str, seeds: Sequence[int], work: Work) -> list[str]:
    """The row of one of our rules."""
    found = [scores(data, data.test, *unit_machines.learn(data, rule, seed, work), seed, work) for seed in seeds]
    return row(f"ours, {unit_machines.RULES[rule][0]}", found)


def best_rate(
    data: Form, validation: Shaped[Array, "n entries"], steps: int, rates: Sequence[float], seed: int, work: Work
) -> float:
    """Of rbms, by the log-likelihood of images that nothing trains on."""
    found = {}
    for rate in rates:
        found[rate] = scores(data, validation, *learn(data, steps, rate, seed, work), seed, work)[0]
        print(f"rbms, PCD-{steps}, rate {rate:g}: {found[rate]:.2f} nats on validation images", flush=True)
    return max(rates, key=lambda rate: found[rate])


def learn(data: Form, steps: int, rate: float, seed: int, work: Work) -> tuple[vpf_jax.BoltzmannMachine, float]:
    """A machine that rbms has trained, and the seconds of its training without the first epoch's compilation.

    Raises:
      MissingPeerError: rbms is not installed.
    """
    codes = np.asarray(SHADE.decode(data.train))
    rbm = RbmsPotts(codes, work.hidden, work.batch_size, rate, steps, seed)
    rbm.epoch()
    rbm.reset()
    started = time.perf_counter()
    for _ in range(work.epochs):
        rbm.epoch()
    seconds = time.perf_counter() - started
    (machine,) = rbm.stack()
    return machine, seconds


def scores(
    data: Form,
    images: Shaped[Array, "n entries"],
    machine: vpf_jax.BoltzmannMachine,
    seconds: float,
    seed: int,
    work: Work,
) -> tuple[float, float, float, float]:
    """What a column of `HEADER` each is made of."""
    found = unit_machines.score(data, machine, images, seed, work.annealing)
    reverse = found["log_z_reverse"] - found["log_z"]
    return found["log_likelihood"], reverse, found["effective_sample_size"], seconds


def row(name: str, found: Sequence[tuple[float, ...]]) -> list[str]:
    columns = zip(*found, strict=True)
    return [name, *(cell(column, digits) for column, digits in zip(columns, (2, 2, 0, 1), strict=True))]


if __name__ == "__main__":
    command.start(Config, run)
