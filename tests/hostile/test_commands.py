"""Wrong commands: every one ends with status 2 and one line that says what was given, and leaves nothing behind.

In: for each script of experiments/ and each command of the library lines with unknown flags, values of the wrong kind
or out of range, settings that do not fit one another, the model or the data, folders that cannot be the run's, and
damaged files. The table, `COMMANDS`, holds what is given and what the line has to say. A command runs inside this
process as `python -m experiments.NAME` or `python -m vpf_jax NAME` would run it (`programs.start_here`); a few are
started as processes too, to see that both agree.

Among them are sizes beyond memory, settings that others make meaningless, and lists that are empty. Not in: runs that
are damaged or killed after a good start, and calls of the library.
"""

import gzip
import hashlib
import io
import json
import logging
import os
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from absl import app, flags
from absl import logging as absl_logging
from programs import Ended, start_here

import vpf_jax
from vpf_jax.__main__ import COMMANDS as COMMANDS_OF_THE_LIBRARY
from vpf_jax.app import runs
from vpf_jax.data import images

ROOT = Path(__file__).parents[2]
# All programs, found in the folder, so that the table cannot forget a new one.
PROGRAMS = sorted(p.stem for p in (ROOT / "experiments").glob("*.py") if "__main__" in p.read_text())
# What the tiny data set of the table has in each half, and of those in the validation part.
HALVES, NUM_VALIDATION = {"train": 60, "t10k": 20}, 10


# Those that draw their data.
DRAWN = ("planted_units", "recordings")


class Command(NamedTuple):
    """A wrong command."""

    program: str
    given: str
    """Arguments, as a shell takes them apart; --workdir=run is added where there is none."""
    told: tuple[str, ...]
    """What the line has to contain: what was given, and what is allowed."""
    files: dict[str, bytes | None] = {}  # noqa: RUF012
    """In the folder where the command starts, by path; None makes a folder."""
    environment: str | None = None
    """The variable VPF_DATA_DIR."""


def idx(*shape: int, fill: int = 0, header: bytes | None = None) -> bytes:
    """An IDX file before compression; `header` stands in for the one that fits."""
    fitting = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return (fitting if header is None else header) + bytes([fill]) * int(np.prod(shape))


def packed(content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)


TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
SOUND: dict[str, bytes | None] = {
    f"data/mnist/{TRAIN_IMAGES}": packed(idx(60, 28, 28)),
    f"data/mnist/{TRAIN_LABELS}": packed(idx(60)),
    f"data/mnist/{TEST_IMAGES}": packed(idx(20, 28, 28)),
    f"data/mnist/{TEST_LABELS}": packed(idx(20)),
}
DATA_DIR = "--dataset=mnist --data_dir=data"


def with_data(file: str, content: bytes | None, told: str, *more: str, program: str = "mnist_dbm") -> Command:
    """A command whose data folder is sound but for one file."""
    return Command(
        program, DATA_DIR, (f"data/mnist/{file}, which {told}", *more), SOUND | {f"data/mnist/{file}": content}
    )


def other_data(file: str, content: bytes, program: str) -> Command:
    """A command whose data folder has a sound file of other data than the published."""
    half = file.partition("-")[0]
    told = (
        f"got data/mnist/{half}-images-idx3-ubyte.gz and {half}-labels",
        "SHA-256 differs",
        "the published IDX files",
    )
    return Command(program, DATA_DIR, told, SOUND | {f"data/mnist/{file}": content})


def without_data(file: str) -> Command:
    """A command whose data folder lacks one file."""
    files = {path: content for path, content in SOUND.items() if not path.endswith(file)}
    return Command("mnist_dbm", DATA_DIR, (f"data/mnist/{file}, which does not exist", "gzipped IDX file"), files)


# Of every program, beside its own flags.
FOR_ALL = (
    ("--nonsense=1", ("'nonsense'", "--help lists the flags")),
    ("--workdri=runs", ("'workdri'", "Did you mean: workdir")),
    ("stray", ("got the argument 'stray'", "only flags are allowed")),
    ("--seed=one", ("got --seed=one", "from 0 to 4294967295")),
    ("--seed=-1", ("got --seed=-1", "from 0 to 4294967295")),
    ("--seed=4294967296", ("got --seed=4294967296", "from 0 to 4294967295")),
    ("--data_dir=", ("got --data_dir=;", "text that is not empty")),
    ("--workdir=", ("got --workdir=;", "text that is not empty")),
    ("--flagfile=taken.bin", ("--flagfile", "cannot be read")),
    ("--stderrthreshold=loud", ("--stderrthreshold", "'loud'")),
    ("--dataset=cifar10", ("--dataset=cifar10", "mnist_5k, mnist, fashion_mnist")),
    ("--dataset=gone.npy", ("got gone.npy, which does not exist", "a file that ends in one of .npy")),
    ("--dataset=mnist_5k --workdir=taken", ("got --workdir=taken;", "a folder, which may be missing")),
    ("--dataset=mnist_5k --workdir=others", ("got --workdir=others;", "a new, an empty")),
    ("--dataset=mnist_5k --workdir=held", ("--workdir=held holds a run with", "--alien=1", "the same configuration")),
    (DATA_DIR, ("data_dir=data, which does not exist", "a folder that holds mnist/")),
)
FILES_FOR_ALL: dict[str, bytes | None] = {
    "taken": b"",
    "taken.bin": bytes(range(128, 256)),
    "others/notes.txt": b"mine",
    "held/config.json": b'{"alien": 1}',
}

# Of one program: what is given, what of it the line repeats (all, where it says so as it stands), what is allowed.
OWN: dict[str, tuple[tuple[str, ...], ...]] = {
    "mnist_dbm": (
        ("--hidden=", "got --hidden=;", "positive integers"),
        ("--hidden=99999999999,5", "got --hidden=99999999999,5;", "GiB of memory"),
        ("--num_samples=1000000000", "got --num_samples=1000000000;", "GiB of memory"),
        ("--rule_steps=3", "got --rule_steps=3;", "rule vpf has no such option"),
        ("--model=rbm --rule=cd --estep=epoch", "got --estep=epoch;", "rule cd has no such option"),
        ("--rule=tap --noise=0.1", "got --noise=0.1;", "rule tap has no such option"),
        ("--model=rbm --rule=pl --hidden_flips=off", "got --hidden_flips=off;", "rule pl has no such option"),
        ("--flips_per_step=5", "got --flips_per_step=5;", "nothing where hidden states are sampled"),
        ("--backward_start=drawn", "got --backward_start=drawn;", "symmetric weights have one matrix"),
        ("--refine_epochs=3", "got --refine_epochs=3;", "nothing is refined without --refine"),
        ("--refine_weight_decay=0.5", "got --refine_weight_decay=0.5;", "nothing is refined"),
        ("--refine=pcd --hidden_flips=perhaps", "--hidden_flips=perhaps", "on or off"),
        ("-x", "'x'", "--help lists the flags"),
        ("--noseed", "'noseed'", "Did you mean: seed"),
        ("--seed=", "--seed=", "from 0 to 4294967295"),
        ("--seed=1.5", "--seed=1.5", "from 0 to 4294967295"),
        ("--seed=1e400", "--seed=1e400", "from 0 to 4294967295"),
        ("--seed=4294967296", "--seed=4294967296", "from 0 to 4294967295"),
        ("--seed=18446744073709551616", "--seed=18446744073709551616", "from 0 to 4294967295"),
        ("--seed=0 --seed=x", "--seed=x", "from 0 to 4294967295"),
        ("--model=cnn", "--model=cnn", "rbm, dbm, intra_dbm"),
        ("--model=RBM", "--model=RBM", "rbm, dbm, intra_dbm"),
        ("--model=", "--model=", "rbm, dbm, intra_dbm"),
        ("--hidden=a,b", "--hidden=a,b", "positive integers"),
        ("--hidden=12.5,4", "--hidden=12.5,4", "positive integers"),
        ("--hidden=0,3", "--hidden=0,3", "positive integers"),
        ("--hidden=5,,4", "--hidden=5,,4", "positive integers"),
        ("--hidden=12", "--hidden=12", "two or more hidden layers"),
        ("--model=rbm --hidden=5,4", "--hidden=5,4", "one hidden layer for rbm"),
        ("--epochs=0", "--epochs=0", "at least 1"),
        ("--epochs=many", "--epochs=many", "at least 1"),
        ("--epochs=1e2", "--epochs=1e2", "at least 1"),
        ("--batch_size=0", "--batch_size=0", "at least 1"),
        ("--batch_size=4001", "--batch_size=4001", "mnist_5k has 4000 training images"),
        ("--batch_size=18446744073709551616", "--batch_size=18446744073709551616", "4000 training images"),
        ("--learning_rate=0", "got --learning_rate=0;", "a positive finite number"),
        ("--learning_rate=nan", "--learning_rate=nan", "a positive finite number"),
        ("--learning_rate=-inf", "--learning_rate=-inf", "a positive finite number"),
        ("--learning_rate=1e400", "--learning_rate=1e400", "a positive finite number"),
        ("--learning_rate=fast", "--learning_rate=fast", "positive"),
        ("--learning_rate=", "--learning_rate=", "positive"),
        ("--weight_decay=-1", "--weight_decay=-1;", "a finite number of at least 0"),
        ("--weight_decay=nan", "--weight_decay=nan", "a finite number of at least 0"),
        ("--schedule=linear", "--schedule=linear", "constant, cosine"),
        ("--max_weight=0", "--max_weight=0;", "a positive finite number"),
        ("--max_weight=inf", "--max_weight=inf", "a positive finite number"),
        ("--coupling=both", "--coupling=both", "pairwise, joint"),
        ("--rule=hebb", "--rule=hebb", "cd, pcd, mpf, pl, ratio, energy_discrepancy, tap, tethered, vpf"),
        ("--rule=ratio", "rule 'ratio'", "machines of 1 or 2 layers without weights inside"),
        ("--rule_steps=0", "--rule_steps=0", "at least 1"),
        ("--rule=tap --damping=1", "--damping=1;", "at least 0 and below 1"),
        ("--rule=tap --persistent=yes", "--persistent=yes", "on or off"),
        ("--rule=energy_discrepancy", "rule 'energy_discrepancy'", "machines of 1 or 2 layers without weights inside"),
        ("--model=rbm --rule=energy_discrepancy --noise=0.6", "--noise=0.6;", "at most 0.5"),
        ("--hidden_flips=true", "--hidden_flips=true", "on or off"),
        ("--expectation=exact", "--model=intra_dbm", "the exact expectation takes machines of 2 layers"),
        ("--flips_per_step=0", "--flips_per_step=0", "at least 1"),
        ("--model=rbm --rule=mpf --flips_per_step=785", "flips_per_step=785", "up to the 784 units"),
        ("--estep=never", "--estep=never", "epoch, minibatch"),
        ("--weights=asymmetric", "--weights=asymmetric", "symmetric, directed"),
        ("--weights=directed --rule=cd", "rule 'cd'", "takes symmetric weights"),
        ("--weights=directed --refine=pcd", "--refine=pcd", "none for directed weights"),
        ("--backward_start=tied", "--backward_start=tied", "equal, drawn"),
        ("--refine=vpf", "--refine=vpf", "none, pcd, cd"),
        ("--refine=pcd --refine_epochs=0", "--refine_epochs=0", "at least 1"),
        ("--refine=pcd --refine_learning_rate=nan", "--refine_learning_rate=nan", "a positive finite number"),
        ("--refine=cd --refine_weight_decay=-1", "--refine_weight_decay=-1;", "of at least 0"),
        ("--precision=float16", "--precision=float16", "float32, bfloat16"),
        ("--gibbs_steps=-1", "--gibbs_steps=-1", "from 0 to"),
        ("--top_gibbs_steps=-1", "--top_gibbs_steps=-1", "from 0 to"),
        ("--num_samples=0", "--num_samples=0", "at least 1"),
        ("--evaluate_every=-1", "--evaluate_every=-1", "at least 0"),
        ("--checkpoint_every=0", "--checkpoint_every=0", "at least 1"),
    ),
    "repair_table": (
        ("--rules=", "got --rules=;", "each once"),
        ("--rules=vpf,vpf", "got --rules=vpf,vpf;", "each once"),
        ("--dataset=mnist_5k --hidden=99999999999", "got --hidden=99999999999;", "GiB of memory"),
        ("--seed=4294967290", "got --seed=4294967290;", "as 10 seeds count up from it"),
        ("--num_seeds=99999999", "got --num_seeds=99999999;", "from 1 to 100000"),
        ("--rules=hebb", "--rules=hebb", "some of vpf_paper, vpf"),
        ("--rules=VPF", "--rules=VPF", "some of vpf_paper, vpf"),
        ("--rules='vpf;cd1'", "--rules=vpf;cd1", "some of vpf_paper, vpf"),
        ("--rules=vpf,,cd1", "--rules=vpf,,cd1", "some of vpf_paper, vpf"),
        ("--hidden=0", "--hidden=0", "at least 1"),
        ("--hidden=64,32", "--hidden=64,32", "an integer of at least 1"),
        ("--epochs=1", "--epochs=1", "at least 2"),
        ("--num_seeds=0", "--num_seeds=0", "from 1 to"),
        ("--num_seeds=2.0", "--num_seeds=2.0", "from 1 to"),
        ("--seeds_at_once=-1", "--seeds_at_once=-1", "at least 0"),
        ("--checkpoint_every=inf", "--checkpoint_every=inf", "at least 1"),
        ("--flagfile=gone", "gone", "No such file"),
        ("--flagfile=.", "'.'", "Is a directory"),
        ("-", "'-'", "only flags are allowed"),
        ("-- --seed=1", "'--seed=1'", "only flags are allowed"),
        ("---seed=1", "'-seed'", "--help lists the flags"),
        ("--help=perhaps", "--help=perhaps", "boolean"),
    ),
    "likelihood_table": (
        ("--rules=", "got --rules=;", "each once"),
        ("--stacks=", "got --stacks=;", "each once"),
        ("--stacks=dbm,dbm", "got --stacks=dbm,dbm;", "each once"),
        ("--dataset=mnist_5k --deep_hidden=9999999,5", "got --deep_hidden=9999999,5;", "GiB of memory"),
        ("--dataset=mnist_5k --num_samples=1000000000", "got --num_samples=1000000000;", "GiB of memory"),
        ("--dataset=mnist_5k --num_chains=1000000000", "got --num_chains=1000000000;", "GiB of memory"),
        ("--rules=cd", "--rules=cd", "some of vpf_paper, vpf"),
        ("--stacks=rbm", "--stacks=rbm", "some of dbm, intra_dbm"),
        ("--stacks=dbm,vpf", "--stacks=dbm,vpf", "some of dbm, intra_dbm"),
        ("--deep_hidden=32", "--deep_hidden=32", "2 or more positive integers"),
        ("--deep_hidden=32,0", "--deep_hidden=32,0", "2 or more positive integers"),
        ("--deep_hidden=", "--deep_hidden=", "2 or more positive integers"),
        ("--deep_hidden=32,16.5", "--deep_hidden=32,16.5", "2 or more positive integers"),
        ("--deep_epochs=1", "--deep_epochs=1", "at least 2"),
        ("--num_chains=1", "--num_chains=1", "at least 2"),
        ("--num_temperatures=1e4", "--num_temperatures=1e4", "from 2 to"),
        ("--num_samples=0", "--num_samples=0", "at least 1"),
        ("''", "''", "only flags are allowed"),
    ),
    "frontier": (
        ("--rules=", "got --rules=;", "each once"),
        ("--rules=cd", "--rules=cd", "some of vpf_paper, vpf"),
        ("--dataset=mnist_5k --hidden=99999999999", "got --hidden=99999999999;", "GiB of memory"),
        ("--dataset=mnist_5k --num_chains=1000000000", "got --num_chains=1000000000;", "GiB of memory"),
        ("--lengths=0", "got --lengths=0;", "distinct positive integers"),
        ("--lengths=", "got --lengths=;", "distinct positive integers"),
        ("--lengths=2,2", "got --lengths=2,2;", "distinct positive integers"),
        ("--epochs=1", "--epochs=1", "at least 2"),
        ("--num_temperatures=1", "--num_temperatures=1", "from 2 to"),
    ),
    "tuning": (
        ("--rule=gan", "--rule=gan", "one of cd, pcd"),
        ("--rule=pl --rule_steps=2", "got --rule_steps=2;", "rule pl has no such option"),
        ("--rule=cd --noise=0.1", "got --noise=0.1;", "rule cd has no such option"),
        ("--rule=tethered --noise=0.6", "got --noise=0.6;", "0.5"),
        ("--rule=cd --particles=3", "got --particles=3;", "rule cd has no such option"),
        ("--learning_rates=0", "got --learning_rates=0;", "positive finite numbers"),
        ("--weight_decays=-1", "got --weight_decays=-1;", "at least 0"),
        ("--averaging=1.5", "got --averaging=1.5;", "from 0 to 1"),
        ("--centred=maybe", "--centred=maybe", "on or off"),
        ("--visible_biases=ones", "--visible_biases=ones", "zero, data"),
        ("--epochs=0", "got --epochs=0;", "distinct positive integers"),
        ("--dataset=mnist_5k --batch_sizes=4001", "got --batch_sizes=4001;", "up to the 4000 training images"),
        ("--dataset=mnist_5k --hidden=99999999999", "got --hidden=99999999999;", "GiB of memory"),
        ("--dataset=mnist_5k --num_chains=1000000000", "got --num_chains=1000000000;", "GiB of memory"),
    ),
    "features": (
        ("--dataset=mnist_5k --hidden=64,99999999999", "got --hidden=99999999999;", "GiB of memory"),
        ("--dataset=planted_spikes", "got --dataset=planted_spikes;", "two classes or more"),
        ("--rule=dbm", "--rule=dbm", "vpf_paper, vpf"),
        ("--rule=vpf,cd1", "--rule=vpf,cd1", "vpf_paper, vpf"),
        ("--hidden=0", "--hidden=0", "distinct positive integers"),
        ("--hidden=64,64", "--hidden=64,64", "distinct positive integers"),
        ("--hidden=", "--hidden=", "distinct positive integers"),
        ("--hidden=36,x", "--hidden=36,x", "distinct positive integers"),
        ("--probe_images=19", "--probe_images=19", "at least 20"),
        ("--probe_images=all", "--probe_images=all", "at least 20"),
    ),
    "ising_recovery": (
        ("--rules=", "got --rules=;", "each once"),
        ("--sample_sizes=", "got --sample_sizes=;", "increasing positive integers"),
        ("--sample_sizes=100,99999999999", "got --sample_sizes=100,99999999999;", "GiB of memory"),
        ("--sampler_chains=9999999998", "got --sampler_chains=9999999998;", "GiB of memory"),
        ("--dataset=mnist_5k --sampler_thin=3", "got --sampler_thin=3;", "images are not drawn from a glass"),
        ("--dataset=mnist_5k --coupling_std=1", "got --coupling_std=1.0;", "images are not drawn"),
        ("--data_dir=data", "got --data_dir=data;", "there are no images"),
        ("--rules=mpf,pl --pcd_steps=5", "got --pcd_steps=5;", "belongs to rule pcd"),
        ("--rules=pcd --tolerance=1", "got --tolerance=1.0;", "belongs to rules mpf and pl"),
        ("--checkpoint_every=2", "'checkpoint_every'", "--help lists the flags"),
        ("--rules=cd", "--rules=cd", "some of mpf, pl, pcd"),
        ("--rules=mpf,mpf", "--rules=mpf,mpf", "each once"),
        ("--size=1", "--size=1", "from 2 to 28"),
        ("--size=29", "--size=29", "from 2 to 28"),
        ("--coupling_std=0", "--coupling_std=0;", "a positive finite number"),
        ("--coupling_std=nan", "--coupling_std=nan", "a positive finite number"),
        ("--sample_sizes=0", "--sample_sizes=0", "increasing positive integers"),
        ("--sample_sizes=300,100", "--sample_sizes=300,100", "increasing positive integers"),
        ("--sample_sizes=1.5", "--sample_sizes=1.5", "increasing positive integers"),
        ("--dataset=mnist_5k --sample_sizes=4001", "--sample_sizes=4001", "mnist_5k has 4000 training images"),
        ("--dataset=planted", "--dataset=planted", "glass, digits_8x8, mnist_5k"),
        ("--penalty=-1", "--penalty=-1;", "of at least 0"),
        ("--tolerance=0", "--tolerance=0;", "a positive finite number"),
        ("--pcd_rate=1e400", "--pcd_rate=1e400", "a positive finite number"),
        ("--pcd_steps=0", "--pcd_steps=0", "from 1 to"),
        ("--sampler_chains=3", "--sampler_chains=3", "an even integer"),
        ("--temperatures=1", "--temperatures=1", "at least 2"),
        ("--seed=4294967295", "--seed=4294967295", "up to 4294967286, as 10 seeds count up from it"),
        ("--models=machines", "'models'", "--help lists the flags"),
    ),
    "spike_timing": (
        ("--num_trials=999999999999", "got --num_trials=999999999999;", "GiB of memory"),
        ("--hidden=99999999999", "got --hidden=99999999999;", "GiB of memory"),
        ("--num_trials=1", "--num_trials=1", "at least 2"),
        ("--num_trials=1e6", "--num_trials=1e6", "at least 2"),
        ("--num_trials=49", "--num_trials=49", "more, or fewer bins than 50"),
        ("--num_bins=3", "--num_bins=3", "an even integer"),
        ("--shortest=0", "--shortest=0;", "from 0.01 to 10000"),
        ("--shortest=nan", "--shortest=nan", "from 0.01 to 10000"),
        ("--shortest=200", "--longest=102.0", "more than shortest=200.0"),
        ("--longest=10001", "--longest=10001", "from 0.01 to 10000"),
        ("--pre_relaxation_rate=0", "--pre_relaxation_rate=0;", "a positive finite number"),
        ("--pre_relaxation_rate=1e300", "pre_relaxation_rate=1e+300", "a shorter time or lower rates"),
        ("--post_relaxation_rate=1e400", "--post_relaxation_rate=1e400", "a positive finite number"),
        ("--digit=-1", "--digit=-1", "at least 0"),
        ("--digit=500", "--digit=500", "mnist_5k has 500 test images"),
    ),
    "directed": (
        ("--variants=", "got --variants=;", "each once"),
        ("--variants=tied_epoch,tied_epoch", "--variants=tied_epoch,tied_epoch", "each once"),
        ("--dataset=mnist_5k --hidden=99999999999", "got --hidden=99999999999;", "GiB of memory"),
        ("--dataset=mnist_5k --num_samples=1000000000", "got --num_samples=1000000000;", "GiB of memory"),
        ("--seed=4294967291", "got --seed=4294967291;", "as 10 seeds count up from it"),
        ("--variants=tied", "--variants=tied", "some of tied_epoch"),
        ("--variants=tied_epoch,other", "--variants=tied_epoch,other", "some of tied_epoch"),
        ("--hidden=16,8", "--hidden=16,8", "an integer of at least 1"),
        ("--epochs=0", "--epochs=0", "at least 1"),
        ("--num_samples=0", "--num_samples=0", "at least 1"),
    ),
    "mnist_target": (
        ("--dataset=mnist_5k --hidden=99999999999,5", "got --hidden=99999999999,5;", "GiB of memory"),
        ("--dataset=mnist_5k --num_samples=1000000000", "got --num_samples=1000000000;", "GiB of memory"),
        ("--epochs=0", "got --epochs=0;", "at least 1"),
        ("--preset=1", "--preset=1", "paper, released"),
        ("--epochs=-1", "--epochs=-1", "at least 1"),
        ("--hidden=10", "--hidden=10", "2 positive integers"),
        ("--hidden=10,5,2", "--hidden=10,5,2", "2 positive integers"),
        ("--hidden=x,5", "--hidden=x,5", "2 positive integers"),
        ("--learning_rate=nan", "--learning_rate=nan", "a positive finite number"),
        ("--num_samples=none", "--num_samples=none", "at least 1"),
    ),
    "mnist_equilibrium": (
        ("--dataset=mnist_5k --hidden=99999999999", "got --hidden=99999999999;", "GiB of memory"),
        ("--hidden=", "got --hidden=;", "positive integers"),
        ("--preset=4", "--preset=4", "1, 2, 3, centred"),
        ("--preset=", "--preset=", "1, 2, 3, centred"),
        ("--hidden=10,10", "--hidden=10,10", "1 positive integers with preset=1"),
        ("--preset=2 --hidden=10", "--hidden=10", "2 positive integers with preset=2"),
        ("--preset=centred --hidden=5,-5", "--hidden=5,-5", "positive integers"),
        ("--epochs=0", "--epochs=0", "at least 1"),
        ("--batch_size=0", "--batch_size=0", "at least 1"),
        ("--dataset=mnist_5k --batch_size=4001", "--batch_size=4001", "mnist_5k has 4000 training images"),
        ("--free_steps=0", "--free_steps=0", "at least 1"),
        ("--beta=-0.0", "--beta=-0.0", "other than 0"),
        ("--beta=nan", "--beta=nan", "a finite number"),
        ("--estimator=both", "--estimator=both", "one of one_sided, centred"),
        ("--rate_factor=0", "--rate_factor=0;", "a positive finite number"),
        ("--evaluate_every=0", "--evaluate_every=0", "at least 1"),
    ),
    "planted_synapses": (
        ("--rules=", "got --rules=;", "each once"),
        ("--esteps=", "got --esteps=;", "each once"),
        ("--num_visible=99999999", "got --num_visible=99999999;", "GiB of memory"),
        ("--num_images=5", "got --num_images=5;", "there are no images"),
        ("--data_dir=data", "got --data_dir=data;", "there are no images"),
        ("--dataset=mnist_5k --alpha=1", "got --alpha=1;", "no synapses are planted"),
        ("--dataset=mnist_5k --num_visible=5", "got --num_visible=5;", "no synapses are planted"),
        ("--rules=meng --learning_rate=1", "got --learning_rate=1.0;", "belongs to rule huang"),
        ("--mixing_rate=0.5", "got --mixing_rate=0.5;", "belongs to rule meng"),
        ("--esteps=exact --damping=0", "got --damping=0.0;", "no messages are passed"),
        ("--num_seeds=0", "got --num_seeds=0;", "from 1 to"),
        ("--seed=4294967295", "got --seed=4294967295;", "as 10 seeds count up from it"),
        ("--dataset=glass", "--dataset=glass", "planted, digits_8x8, mnist_5k"),
        ("--hidden=2,2", "--hidden=2,2", "distinct positive integers"),
        ("--hidden=13", "--hidden=13", "up to 12"),
        ("--dataset=mnist_5k --hidden=13 --esteps=exact", "--hidden=13", "up to 12"),
        ("--esteps=exact,exact", "--esteps=exact,exact", "each once"),
        ("--rules=adam", "--rules=adam", "some of huang, meng"),
        ("--alpha=2,1", "--alpha=2,1", "increasing positive integers"),
        ("--alpha=1.5", "--alpha=1.5", "increasing positive integers"),
        ("--num_visible=0", "--num_visible=0", "at least 1"),
        ("--correlation=1.1", "--correlation=1.1", "from 0 to 1"),
        ("--correlation=nan", "--correlation=nan", "from 0 to 1"),
        ("--dataset=mnist_5k --num_images=4001", "--num_images=4001", "mnist_5k has 4000 training images"),
        ("--dataset=mnist_5k --size=29", "--size=29", "from 2 to 28"),
        ("--beta=1e400", "--beta=1e400", "a positive finite number"),
        ("--prior_mean=1", "--prior_mean=1;", "above -1 and below 1"),
        ("--mixing_rate=0", "--mixing_rate=0;", "a positive finite number at most 1"),
        ("--steps=15", "--steps=15", "a positive multiple of steps_per_epoch=10"),
        ("--steps_per_epoch=0", "--steps_per_epoch=0", "at least 1"),
        ("--tolerance=-1", "--tolerance=-1;", "of at least 0"),
        ("--damping=1", "--damping=1;", "below 1"),
    ),
    "planted_units": (
        ("--kinds=", "got --kinds=;", "each once"),
        ("--kinds=spin,boson", "--kinds=spin,boson", "some of spin, categorical4"),
        ("--dataset=mnist_5k", "got --dataset=mnist_5k;", "planted, as machines are drawn"),
        ("--data_dir=data", "got --data_dir=data;", "machines are drawn"),
        ("--rules=", "got --rules=;", "each once"),
        ("--sample_sizes=300,100", "--sample_sizes=300,100", "increasing"),
        ("--sample_sizes=99", "--sample_sizes=99", "at least 100"),
        ("--sample_sizes=99999999999", "got --sample_sizes=99999999999;", "GiB of memory"),
        ("--num_held_out=99999999999", "got --num_held_out=99999999999;", "GiB of memory"),
        ("--batch_size=101", "--batch_size=101", "from 1 to 100"),
        ("--steps=0", "--steps=0", "from 1 to"),
        ("--learning_rate=0", "--learning_rate=0;", "a positive finite number"),
    ),
    "recordings": (
        ("--dataset=mnist_5k", "got --dataset=mnist_5k;", "planted, as recordings are drawn"),
        ("--data_dir=data", "got --data_dir=data;", "recordings are drawn"),
        ("--neurons=1", "--neurons=1;", "at least 2"),
        ("--neurons=99999999999", "got --neurons=99999999999;", "GiB of memory"),
        ("--bins=199", "got --batch_size=200;", "up to 199"),
        ("--members=40001", "got --members=40001;", "up to 40000"),
        ("--assemblies=0", "--assemblies=0;", "at least 1"),
        ("--hidden=0", "--hidden=0;", "at least 1"),
        ("--hidden=99999999999", "got --hidden=99999999999;", "GiB of memory"),
        ("--assemblies=99999999999", "got --assemblies=99999999999;", "GiB of memory"),
        ("--active=1", "--active=1;", "below 1"),
        ("--background=0", "--background=0;", "a positive finite number below 1"),
        ("--firing=nan", "--firing=nan;", "below 1"),
        ("--activity=0", "--activity=0;", "a positive finite number below 1"),
        ("--start=pca", "--start=pca;", "seeds, random"),
        ("--num_sampled=1", "--num_sampled=1;", "at least 2"),
        ("--homeostasis=0", "--homeostasis=0;", "a positive finite number"),
        ("--sparsity=-1", "--sparsity=-1;", "at least 0"),
    ),
    "unit_machines": (
        ("--forms=", "got --forms=;", "each once"),
        ("--forms=bits,bits", "--forms=bits,bits", "each once"),
        ("--rules=sgd", "--rules=sgd", "some of vpf, mpf, cd10, pcd1"),
        ("--hidden=99999999999", "got --hidden=99999999999;", "GiB of memory"),
        ("--num_chains=99999999999", "got --num_chains=99999999999;", "GiB of memory"),
        ("--batch_size=1298", "--batch_size=1298", "digits_8x8 has 1297 training images"),
        ("--noise=0", "--noise=0;", "a positive finite number"),
        ("--noise=nan", "--noise=nan", "a positive finite number"),
        ("--num_temperatures=1", "--num_temperatures=1", "from 2 to"),
        ("--dataset=planted_proteins", "got --dataset=planted_proteins;", "binary units"),
    ),
    "systems": (
        ("--systems=", "got --systems=;", "each once"),
        ("--systems=rbm,rbm", "got --systems=rbm,rbm;", "each once"),
        ("--scale=huge", "--scale=huge", "full, quick"),
        ("--scale=", "--scale=", "full, quick"),
        ("--systems=gan", "--systems=gan", "some of rbm, rbm_refined"),
        ("--num_seeds=0", "--num_seeds=0", "from 1 to"),
        ("--rule=vpf", "'rule'", "--help lists the flags"),
        ("--models=taken/machines", "--models=taken/machines", "a folder, which may be missing; taken is a file"),
    ),
}


def model_bytes(stack: tuple, **about: Any) -> bytes:
    with tempfile.TemporaryDirectory() as place:
        vpf_jax.save_model(f"{place}/model", stack, about)
        return Path(place, "model").read_bytes()


def array_bytes(values: Any, dtype: Any = np.uint8) -> bytes:
    content = io.BytesIO()
    np.save(content, np.asarray(values, dtype), allow_pickle=True)
    return content.getvalue()


# Of the commands of the library: what lies in the folder.
RBM_FILE = model_bytes(vpf_jax.init_stack(jax.random.key(0), (4, 3)), data={"name": "spikes", "shape": [4]})
MODELS: dict[str, bytes | None] = {
    "rbm": RBM_FILE,
    "visible": model_bytes((vpf_jax.init_machine(jax.random.key(0), (4,), (0,)),)),
    "directed": model_bytes(vpf_jax.untie_stack(None, vpf_jax.init_stack(jax.random.key(0), (4, 3)))),
    "images": model_bytes(vpf_jax.init_stack(jax.random.key(0), (4, 3)), data={"shape": [2, 2]}),
    "damaged": RBM_FILE[:-9] + b"\1" + RBM_FILE[-8:],
    "short": RBM_FILE[:-9],
    "later": RBM_FILE.replace(b'\\"format\\": 1', b'\\"format\\": 7'),
    "text": b"weights",
    "empty": None,
    "several/model-1.safetensors": RBM_FILE,
    "several/model-2.safetensors": RBM_FILE,
    "data.npy": array_bytes([[0, 1, 1, 0], [1, 1, 0, 0]]),
    "five.npy": array_bytes(np.zeros((2, 5))),
    "holes.npy": array_bytes([[0, 1, np.nan, 0], [1, 1, 0, 0]], np.float32),
    "none.npy": array_bytes(np.zeros((0, 4))),
    "objects.npy": array_bytes([["a", None]], object),
    "short.npy": array_bytes(np.zeros((20, 4)))[:-7],
    "mask.npy": array_bytes([True, False, True], bool),
    "numbers.npy": array_bytes([1, 0, 1, 0]),
    "samples.npy": b"mine",
    "scores.csv": b"mine",
    "repaired.npy": b"mine",
    "features.npy": b"mine",
}
# Wrong models, data and files to write, of every command that takes them; OUT is replaced by a sound one.
OF_MODELS = (
    ("gone OUT", "got gone, which does not exist", "a file of save_model"),
    ("text OUT", "got text, which is no safetensors file, or a damaged one"),
    ("short OUT", "got short, which is no safetensors file, or a damaged one"),
    ("damaged OUT", "got damaged, which is damaged", "put back a copy"),
    ("later OUT", "got later, which is of format 7", "reads up to 1"),
    ("empty OUT", "got folder='empty', which holds no checkpoints", "or a model.safetensors"),
    ("several OUT", "got several, which holds several models", "model-1.safetensors, model-2.safetensors"),
    ("rbm", "--overwrite=on"),
    ("rbm --out=there.txt", "got --out=there.txt;", "a file that ends in"),
    ("rbm --out=gone/out.npy", "got --out=gone/out.npy;", "a folder that exists"),
    ("rbm --out=", "got --out=;", "text that is not empty"),
    ("rbm OUT --overwrite=perhaps", "--overwrite=perhaps", "on or off"),
    ("rbm OUT --modle=3", "'modle'", "--help lists the flags"),
)
OF_DATA = (
    ("rbm gone.npy OUT", "gone.npy", "not exist"),
    ("rbm five.npy OUT", "got five.npy with 5 variables", "the model rbm takes 4, as its training data spikes has"),
    ("rbm none.npy OUT", "none.npy"),
    ("rbm objects.npy OUT", "objects.npy"),
    ("rbm short.npy OUT", "short.npy"),
    ("rbm text OUT", "text"),
    ("rbm data.npy OUT --values=counts", "--values=counts", "bits, spins"),
)
LIBRARY: dict[str, tuple[tuple[str, ...], ...]] = {
    "train": (
        ("", "got no --dataset; it takes"),
        ("--dataset=gone.npy", "gone.npy"),
        ("--dataset=data.npy --model=gan", "got --model=gan;", "visible, rbm, semi_restricted, dbm, intra_dbm"),
        ("--dataset=data.npy --model=visible --hidden=3", "got --hidden=3;", "no hidden layer for visible"),
        ("--dataset=data.npy --model=semi_restricted --hidden=3,2", "got --hidden=3,2;", "one hidden layer for semi"),
        (
            "--dataset=data.npy --model=visible --weights=directed",
            "got --weights=directed;",
            "no weights between layers",
        ),
        ("--dataset=mnist_5k --weights=directed --evaluation=likelihood", "--evaluation=likelihood;", "parzen for dir"),
        ("--dataset=mnist_5k --evaluation=looks", "--evaluation=looks", "parzen, likelihood"),
        ("--dataset=mnist_5k --stream=on", "got --stream=on;", "off for mnist_5k, which is loaded whole"),
        (
            "--dataset=data.npy --stream=on --binarise=sample",
            "got --binarise=sample;",
            "threshold for examples that stay",
        ),
        ("--dataset=five.npy --stream=on --array=x", "got --array=x;", "nothing, as five.npy is a path"),
        ("--dataset=text --stream=on", "got text", "either .npy or .array_record"),
        ("--dataset=rbm --stream=on", "got rbm", "either .npy or .array_record"),
        ("--dataset=data.npy --stream=yes", "got --stream=yes;", "on or off"),
        ("data.npy", "got the argument 'data.npy'", "only flags are allowed"),
    ),
    "sample": (
        *OF_MODELS,
        ("", "got no argument; it takes a model.safetensors, or the folder of a run"),
        ("rbm data.npy OUT", "got the arguments rbm data.npy; it takes one"),
        ("rbm --out=samples.png", "got --out=samples.png;", "as the model is not one of images"),
        ("rbm OUT --number=0", "--number=0", "at least 1"),
        ("rbm OUT --number=100000000000", "--number=100000000000;", "GiB of memory"),
        ("rbm OUT --steps=0", "--steps=0", "from 1 to"),
        ("rbm OUT --seed=-1", "--seed=-1", "from 0 to"),
    ),
    "score": (
        *((f"{given.partition(' ')[0]} data.npy {given.partition(' ')[2]}", *told) for given, *told in OF_MODELS),
        *OF_DATA,
        ("rbm OUT", "got the argument rbm; it takes two, a model.safetensors, or the folder of a run and a file"),
        ("directed data.npy OUT", "got directed, a directed machine, which has no likelihood"),
        ("rbm data.npy OUT --num_chains=1", "--num_chains=1", "at least 2"),
        ("rbm data.npy --out=scores.png", "got --out=scores.png;", ".npy, .csv"),
    ),
    "repair": (
        *((f"{given.partition(' ')[0]} data.npy {given.partition(' ')[2]}", *told) for given, *told in OF_MODELS),
        *OF_DATA,
        ("rbm data.npy OUT", "got data.npy without missing entries, and no --mask"),
        ("rbm data.npy OUT --mask=bottom", "got --mask=bottom;", "not one of grey images"),
        ("images data.npy OUT --mask=middle", "got --mask=middle;", "top, bottom, left, right"),
        ("rbm data.npy OUT --mask=mask.npy", "got --mask=mask.npy;", "this is one of shape (3,)"),
        ("rbm data.npy OUT --mask=numbers.npy", "got --mask=numbers.npy;", "dtype uint8"),
        ("rbm data.npy OUT --mask=text", "got --mask=text;", "an .npy file of booleans"),
        ("rbm data.npy OUT --mask=gone.npy", "got --mask=gone.npy;", "No such file"),
        ("rbm holes.npy OUT --steps=0", "--steps=0", "from 1 to"),
    ),
    "features": (
        *((f"{given.partition(' ')[0]} data.npy {given.partition(' ')[2]}", *told) for given, *told in OF_MODELS),
        *OF_DATA,
        ("rbm holes.npy OUT", "got holes.npy with missing entries", "a feature takes whole examples"),
        ("rbm data.npy OUT --layer=2", "got --layer=2;", "from 1 to 1"),
        ("rbm data.npy OUT --layer=0", "--layer=0", "at least 1"),
        ("visible data.npy OUT", "got visible, a model without hidden units"),
    ),
    "inspect": (
        ("", "got no argument; it takes a model, the folder of a run, or a file of data"),
        ("gone", "got gone, which does not exist"),
        ("empty", "got empty, a folder without a run"),
        ("objects.npy", "objects.npy"),
        ("rbm data.npy", "got the arguments rbm data.npy; it takes one"),
        ("rbm --overwrite=on", "got --overwrite=on;", "nothing is written without --couplings"),
        ("rbm --couplings=couplings.png", "got --couplings=couplings.png;", ".npy, .csv"),
        ("rbm --couplings=data.npy", "got --couplings=data.npy;", "not there yet, or --overwrite"),
        ("data.npy --couplings=couplings.npy", "got data.npy, which is no safetensors file"),
        ("directed --couplings=couplings.npy", "a directed machine"),
    ),
}
SOUND_OUT = "--out=out.csv"

# Folders of runs, and of data.
RBM = {"model": "rbm"}
COUNTS: dict[str, bytes | None] = {"counts.csv": b"1,0\n0,7\n1,1\n"}
BITS: dict[str, bytes | None] = {"bits.csv": b"1,0\n0,1\n1,1\n"}
FOLDERS = (
    Command("mnist_dbm", "--workdir=taken/run", ("taken/run cannot be written", "Not a directory"), {"taken": b""}),
    Command("mnist_dbm", "--workdir=old", ("old/config.json cannot be read as JSON",), {"old/config.json": b"{"}),
    Command("mnist_dbm", "--workdir=old", ("old/config.json cannot be read as JSON",), {"old/config.json": b""}),
    Command("mnist_dbm", "--workdir=old", ("old/config.json cannot be read as JSON",), {"old/config.json": b"\xff"}),
    Command(
        "mnist_dbm",
        "--workdir=old",
        ("--workdir=old holds a run with --model=rbm", "--model=intra_dbm", "give the same configuration"),
        {"old/config.json": json.dumps(RBM).encode()},
    ),
    Command(
        "mnist_dbm",
        "--model=rbm --workdir=old --epochs=7",
        ("--workdir=old holds a run with --epochs=9", "--epochs=7 was given"),
        {"old/config.json": json.dumps(RBM | {"epochs": 9}).encode()},
    ),
    Command(
        "mnist_dbm", "--dataset=counts.csv --values=bits", ("got counts.csv,", "holds 7 in line 2", "--val"), COUNTS
    ),
    Command(
        "features", "--dataset=counts.csv", ("got --dataset=counts.csv;", "binary units here, not of count"), COUNTS
    ),
    Command("mnist_dbm", "--dataset=counts.csv --split=0.5,0.5", ("got --split=0.5,0.5;", "3 "), COUNTS),
    Command("mnist_dbm", "--dataset=mnist_5k --values=bits", ("got --values=bits;", "mnist_5k is no file")),
    Command("repair_table", "--dataset=bits.csv", ("got --dataset=bits.csv;", "grey images"), BITS),
    Command("features", "--dataset=bits.csv", ("got --dataset=bits.csv;", "two classes or more"), BITS),
    Command("ising_recovery", "--array=x", ("got --array=x;", "glass is no file")),
    Command("repair_table", "--dataset=mnist_5k --models=taken", ("--models=taken", "folder"), {"taken": b""}),
    Command("mnist_dbm", f"{DATA_DIR} --batch_size=51", ("--batch_size=51", "mnist has 50 training images"), SOUND),
    Command("mnist_dbm", DATA_DIR, ("data_dir=data, which is not a folder", "that holds mnist/"), {"data": b""}),
    Command("mnist_dbm", f"{DATA_DIR}/mnist", ("data_dir=data/mnist, which does not exist",), {"data": b""}),
    Command("mnist_dbm", DATA_DIR, ("data_dir=data, which has no folder mnist", "that holds mnist/"), {"data": None}),
    Command(
        "mnist_dbm",
        DATA_DIR,
        ("data_dir=data, which has no folder mnist", "that holds mnist/"),
        {"data/mnist": b""},
    ),
    Command("mnist_dbm", f"{DATA_DIR}/mnist", ("data_dir=data/mnist, which has no folder mnist",), SOUND),
    Command(
        "mnist_dbm",
        "--dataset=fashion_mnist --data_dir=data",
        ("data_dir=data, which has no folder fashion_mnist",),
        SOUND,
    ),
    Command("mnist_dbm", f"{DATA_DIR}{'x' * 300}", ("data_dir=dataxxx", "File name too long", "that holds mnist/")),
    Command("mnist_dbm", "--dataset=mnist --data_dir=~nobody-here/data", ("data_dir=~nobody-here/data", "home")),
    Command("mnist_dbm", "--dataset=mnist", ("VPF_DATA_DIR=elsewhere, which does not exist",), {}, "elsewhere"),
    Command("directed", "--dataset=mnist", ("VPF_DATA_DIR=data, which has no folder mnist",), {"data": None}, "data"),
)

SIZES = struct.pack(">3I", 60, 28, 28)
FILES = (
    *(without_data(file) for file in (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)),
    with_data(TRAIN_IMAGES, None, "cannot be read: Is a directory"),
    with_data(TRAIN_IMAGES, b"", "has magic number 0x,", "not 0x000008"),
    with_data(TRAIN_IMAGES, packed(b""), "has magic number 0x,", "not 0x000008"),
    with_data(TRAIN_IMAGES, b"<html>Not Found</html>", "is not a sound gzip file"),
    with_data(TRAIN_IMAGES, idx(60, 28, 28), "is not a sound gzip file"),
    with_data(TRAIN_IMAGES, packed(idx(60, 28, 28))[:3], "is truncated"),
    with_data(TRAIN_IMAGES, packed(idx(60, 28, 28))[:-9], "is truncated"),
    with_data(TRAIN_LABELS, packed(idx(60))[:-8] + bytes(8), "is not a sound gzip file: CRC check failed"),
    with_data(TRAIN_LABELS, packed(idx(60))[:10] + b"\xff" * 30, "is corrupt"),
    with_data(TRAIN_LABELS, packed(idx(60)) + b"junk", "is not a sound gzip file"),
    with_data(TRAIN_LABELS, packed(idx(60)) * 2, "holds 128 values, its header says 60"),
    with_data(TRAIN_IMAGES, packed(b"\0\0\x0d\x03" + SIZES + bytes(60 * 784)), "has magic number 0x00000d03"),
    with_data(TRAIN_IMAGES, packed(b"\0\0\x08\x04" + SIZES + bytes(60 * 784)), "has magic number 0x00000804"),
    # Dimensions by the smallest byte first, as some writers have them.
    with_data(
        TRAIN_LABELS, packed(b"\0\0\x08\x01\x3c\0\0\0" + bytes(60)), "holds 60 values, its header says 1006632960"
    ),
    with_data(TRAIN_IMAGES, packed(b"\0\0\x08\x03" + SIZES[:5]), "ends inside its header of 16 bytes"),
    with_data(TRAIN_IMAGES, packed(idx(60, 28, 28)[:-1]), "holds 47039 values, its header says 47040"),
    with_data(TRAIN_IMAGES, packed(idx(60, 28, 28) + b"\0"), "holds 47041 values, its header says 47040"),
    with_data(TRAIN_IMAGES, packed(b"\0\0\x08\x03" + b"\xff" * 12), "holds 0 values, its header says 79228162458924"),
    with_data(
        TRAIN_IMAGES, packed(b"\0\0\x08\x03\x80\0\0\0" + SIZES[4:] + bytes(9)), "holds 9 values, its header says"
    ),
    *(
        other_data(file, packed(content), program)
        for file, content, program in (
            (TRAIN_IMAGES, idx(0, 28, 28), "mnist_dbm"),
            (TRAIN_IMAGES, idx(60, 0, 28), "mnist_dbm"),
            (TRAIN_LABELS, idx(59), "repair_table"),
            (TEST_IMAGES, idx(20, 28, 27), "mnist_dbm"),
            (TEST_IMAGES, idx(21, 28, 28), "spike_timing"),
            (TEST_LABELS, idx(21, 1), "features"),
            (TRAIN_IMAGES, idx(60), "systems"),
            (TRAIN_LABELS, idx(60, fill=10), "likelihood_table"),
            (TEST_LABELS, idx(20, fill=255), "mnist_dbm"),
        )
    ),
)

COMMANDS = (
    *(
        Command(program, given, told, FILES_FOR_ALL)
        for program in PROGRAMS
        for given, told in FOR_ALL
        # Machines and recordings are drawn there, from no data set.
        if program not in DRAWN or "--dataset=" not in given
    ),
    *(
        Command(program, given.removeprefix("--dataset=mnist_5k "), told, FILES_FOR_ALL)
        for program in DRAWN
        for given, told in FOR_ALL
        if given.startswith("--dataset=mnist_5k ")
    ),
    *(Command(program, row[0], row[1:], {"taken": b""}) for program, rows in OWN.items() for row in rows),
    *(
        Command(f"vpf_jax {name}", row[0].replace("OUT", SOUND_OUT), row[1:], MODELS)
        for name, rows in LIBRARY.items()
        for row in rows
    ),
    *FOLDERS,
    *FILES,
)


class AcceptedError(AssertionError):
    """The command was about to train."""


def arguments(command: Command) -> list[str]:
    given = shlex.split(command.given)
    trains = command.program.partition(" ")[2] in ("", "train")
    return ["--workdir=run", *given] if trains and "--workdir" not in command.given else given


def write(files: dict[str, bytes | None]) -> None:
    for name, content in files.items():
        path = Path(name)
        (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content)


def contents() -> dict[str, bytes | None]:
    """All that lies in the folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


def check(command: Command, ended: Ended, before: dict[str, bytes | None]) -> None:
    """The one form that every refusal has."""
    assert ended.returncode == 2, ended
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    (line,) = ended.stderr.splitlines()
    assert ended.stderr == line + "\n"
    assert line.startswith(command.program + (": " if " " in command.program else ".py: ")), line
    assert [told for told in command.told if told not in line] == [], line
    assert contents() == before


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder; data are small, and come from where the command says or from nowhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("VPF_DATA_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr(images, "_NUM_VALIDATION", NUM_VALIDATION)
    for half, size in HALVES.items():
        monkeypatch.setitem(images._SHA256, ("mnist", half), hashlib.sha256(bytes(size * 785)).hexdigest())
    return tmp_path


def refuse_to_train() -> Any:
    raise AcceptedError("the command was accepted: it was about to start its work")


def named(command: Command) -> str:
    return f"{command.program} {command.given}"[:60]


@pytest.mark.parametrize("command", COMMANDS, ids=named)
def test_a_wrong_command_is_refused_in_one_line(command, folder, monkeypatch, capfd):
    monkeypatch.setattr(runs, "stop_requests", refuse_to_train)
    if command.environment is not None:
        monkeypatch.setenv("VPF_DATA_DIR", command.environment)
    write(command.files)
    before = contents()
    check(command, start_here(command.program, *arguments(command)), before)
    # Nor has anything outside Python written.
    assert capfd.readouterr() == ("", "")


def test_the_table_is_large_and_holds_every_program():
    assert len(COMMANDS) >= 250
    assert len(FILES) >= 25
    assert len(PROGRAMS) == 16
    assert set(OWN) == set(PROGRAMS)
    # The tests of the two others that write pages have rows of their own.
    assert set(LIBRARY) == set(COMMANDS_OF_THE_LIBRARY) - {"report", "playground"}
    counts = Counter(command.program for command in COMMANDS)
    assert min(counts[program] for program in PROGRAMS) >= 14
    rows = [(command.program, command.given, command.told, repr(command.files)) for command in COMMANDS]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("program", ["mnist_dbm", "spike_timing"])
def test_a_start_inside_this_process_leaves_it_as_it_was(program, folder):
    def state():
        held = {name: repr(flags.FLAGS[name].value) for name in flags.FLAGS}
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        verbosity, loggers = absl_logging.get_verbosity(), logging.getLogger().handlers[:]
        return sys.modules["__main__"], sys.argv[:], held, flags.FLAGS.is_parsed(), handlers, verbosity, loggers

    app.define_help_flags()
    before = state()
    assert start_here(program, "--seed=-1", "--workdir=run").returncode == 2
    assert state() == before


def test_a_command_that_is_right_is_let_through(folder, monkeypatch):
    monkeypatch.setattr(runs, "stop_requests", refuse_to_train)
    with pytest.raises(AcceptedError):
        start_here("mnist_dbm", "--model=rbm", "--dataset=mnist_5k", "--workdir=run")
    assert set(contents()) == {"run", "run/.lock", "run/config.json", "run/report.html"}


@pytest.mark.slow
# One by the flags' parser, one by the settings' ranges and the data.
@pytest.mark.parametrize(
    "command",
    [
        Command("spike_timing", "--num_bins=many", ("--num_bins=many", "an even integer")),
        Command("mnist_dbm", "--batch_size=4001", ("--batch_size=4001", "mnist_5k has 4000 training images")),
    ],
    ids=named,
)
def test_a_process_says_the_same(command, folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    given = [sys.executable, "-m", f"experiments.{command.program}", *arguments(command)]
    done = subprocess.run(given, capture_output=True, text=True, timeout=300, env=environment, check=False)
    check(command, Ended(done.returncode, done.stdout, done.stderr), {})
    assert start_here(command.program, *arguments(command)) == (done.returncode, done.stdout, done.stderr)
