"""Trains an RBM, a DBM or an intra-layer DBM on digits by VPF, evaluates it and draws its pictures.

    python -m experiments.mnist_dbm --model=intra_dbm --dataset=mnist --workdir=runs/mnist-intra

The experiment behind Table 2 and the sample figures of Liu, Quek and Lin, arXiv 1711.07732: `vpf_jax.app.training`, the
command `python -m vpf_jax train`, with the paper's machines and digits for its defaults. What it leaves in --workdir,
and how it resumes, stands there. Not here: the comparison with other training rules.
"""

import dataclasses

from vpf_jax.app import command, runs, training
from vpf_jax.settings import like


@dataclasses.dataclass(frozen=True)
class Config(training.Config):
    """Settings of a run; each is the flag of the same name."""

    dataset: str = like(runs.Config, "dataset", default="mnist_5k")
    model: str = like(
        training.Config, "model", default="intra_dbm", choices=("rbm", "dbm", "intra_dbm"), help="Machine to train"
    )

    experiment = "mnist_dbm"


run = training.run


if __name__ == "__main__":
    command.start(Config, run)
