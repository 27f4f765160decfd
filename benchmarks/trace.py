"""Where an epoch's time goes: a jax.profiler trace of one epoch, summed by operation.

    python -m benchmarks.trace --hidden=196,196,64 --intra

Milliseconds are summed over threads, waiting inside a parallel operation included, so they add up to more than the
epoch; names are those of the compiled program, which XLA_FLAGS=--xla_dump_to=FOLDER writes out.
"""

import collections
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks.cases import epoch_case
from vpf_jax import train
from vpf_jax.app import command as cli
from vpf_jax.app.folder import UsageError
from vpf_jax.data import SOURCES, binarise, load_dataset

# Recorded around the operations that they consist of.
_WRAPPERS = ("Execute", "while", "call", "end:", "$")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UsageError(f"got {argv[1]}; benchmarks.trace takes flags alone, --help lists them")
    values = flags.FLAGS
    if not values.hidden or not all(n.isdecimal() and int(n) for n in values.hidden):
        raise UsageError(f"got --hidden={','.join(values.hidden)}; it takes positive integers, as in 196,196,64")
    try:
        hidden = tuple(int(n) for n in values.hidden)
        settings = {"batch_size": values.batch_size, "estep": values.estep, "precision": values.precision}
        data = load_dataset(values.dataset, values.data_dir)
        visible = jnp.asarray(binarise(data.train.images))
        epoch = epoch_case("traced", visible, hidden, values.intra, **settings).setup()
        epoch()
    except ValueError as error:
        raise UsageError(str(error).replace("got ", "got --", 1)) from None
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
    for name, found in milliseconds.most_common(values.rows):
        print(f"| {name} | {counts[name]} | {found:.1f} |")


def define_flags() -> None:
    """Called where this is the program, as flags of one name may be defined only once in a process."""
    flags.DEFINE_enum("dataset", "mnist", SOURCES, "Data to train on.")
    flags.DEFINE_string("data_dir", None, "Folder with mnist/ and fashion_mnist/, as in the experiments.")
    flags.DEFINE_list("hidden", ["196"], "Units of the hidden layers.")
    flags.DEFINE_bool("intra", False, "Whether the hidden layers have intra-layer weights.")
    flags.DEFINE_integer("batch_size", 40, "Images per step.")
    flags.DEFINE_enum("estep", "epoch", train.ESTEPS, "When hidden states are sampled.")
    flags.DEFINE_enum("precision", "float32", train.PRECISIONS, "Of the factors in matrix products.")
    flags.DEFINE_integer("rows", 25, "Operations to print.")


if __name__ == "__main__":
    define_flags()
    cli.start(main)
