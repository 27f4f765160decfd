"""What a start costs, each in a process of its own: the import, and a first epoch with an empty and a filled cache."""

import os
import subprocess
import sys
import tempfile
import time

_IMPORT = "import vpf_jax"
_FIRST_EPOCH = """
import sys, time
import jax
from vpf_jax import train
from vpf_jax.app.recipes import Recipe
from vpf_jax.app.runs import Images
from vpf_jax.data import load_dataset
visible = Images(load_dataset(sys.argv[1], sys.argv[2] or None)).train.bits
config = train.TrainConfig()
recipe = Recipe("first epoch", tuple(int(n) for n in sys.argv[3].split(",")), (config,), intra=True)
state = recipe.initial_state(0, visible.shape[1])
started = time.perf_counter()
state, metrics = train.compile_epoch(state, visible, config)(state, visible)
jax.block_until_ready(metrics)
print(time.perf_counter() - started)
"""


def import_seconds() -> float:
    """Of a fresh interpreter that imports vpf_jax and ends."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", _IMPORT], check=True)
    return time.perf_counter() - started


def first_epoch_seconds(dataset: str, data_dir: str | None, hidden: tuple[int, ...]) -> tuple[float, float]:
    """Of the intra-layer DBM's first epoch, compilation included: with an empty cache, and in a second process."""
    names = ",".join(str(n) for n in hidden)
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}

        def start() -> float:
            command = [sys.executable, "-c", _FIRST_EPOCH, dataset, data_dir or "", names]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            return float(done.stdout)

        return start(), start()
