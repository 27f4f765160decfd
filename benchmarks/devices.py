"""What several devices of a CPU are worth: seeds one on each, and minibatches shared by processes.

    python -m benchmarks.devices

Epochs of several seeds one after another on one device with all threads, by `jax.vmap`, and one on each device, in turn
in one process; and epochs of one RBM whose minibatches are shared by processes that speak over loopback, next to those
of one process. Prints both tables; keeps nothing. Not here: other libraries (`run`), clusters.
"""

import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

import vpf_jax
from vpf_jax import checks, sharding, train
from vpf_jax.app import command
from vpf_jax.app.folder import UsageError
from vpf_jax.app.keys import as_array, key_for
from vpf_jax.app.runs import Config as RunConfig
from vpf_jax.app.tables import markdown_table
from vpf_jax.data import binarise, load_dataset
from vpf_jax.settings import Settings, like, setting

# Of one of several processes: its number, theirs, the port of the first one, and what is trained.
_WORKER = """
import sys
import jax
number, processes, port, timings, dataset, hidden, *sizes = sys.argv[1:]
if int(processes) > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(number))
from benchmarks import devices
for size in sizes:
    seconds = devices.shared_epochs(dataset, int(hidden), int(size), int(timings), int(processes))
    print(size, *seconds, flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Settings; each is a flag."""

    dataset: str = like(RunConfig, "dataset", default="mnist_5k")
    hidden: tuple[int, ...] = setting(
        (196, 196, 64), "Units of the hidden layers; the RBM has the first", least=1, distinct=False
    )
    num_seeds: int = setting(4, "Runs at once, a multiple of --devices", least=1)
    devices: int = setting(2, "Devices of the CPU, as many as it has cores", least=2)
    processes: int = setting(2, "Processes that share a minibatch", least=2)
    batch_sizes: tuple[int, ...] = setting((40, 500), "Examples that they share", least=1)
    timings: int = setting(7, "Epochs of each kind that are timed, in turn", least=2)

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
          SettingError: a value outside its range.
        """
        super().__post_init__()
        for name, parts in (("num_seeds", self.devices), ("batch_sizes", self.processes)):
            given: Any = getattr(self, name)
            numbers = given if isinstance(given, tuple) else (given,)
            told = f"multiples of {parts}"
            checks.require(all(number % parts == 0 for number in numbers), name, given, told)


def run(config: Config) -> str:
    """Measures, prints and returns the tables.

    Raises:
      UsageError: fewer devices than asked for, or a process that fails.
    """
    if jax.device_count() < config.devices:
        raise UsageError(f"got --devices={config.devices}; JAX has been started with {jax.device_count()}")
    tables = [of_seeds(config), of_processes(config)]
    print("\n\n".join(tables))
    return "\n\n".join(tables)


def of_seeds(config: Config) -> str:
    """The table of several seeds."""
    bits, settings = _bits(config.dataset), train.TrainConfig()
    mesh = sharding.make_mesh({"seeds": config.devices}, jax.devices()[: config.devices])
    cells = []
    machines = (("RBM, VPF", config.hidden[:1], False), ("intra-layer DBM, VPF", config.hidden, True))
    for name, hidden, intra in machines:
        over = (
            sharding.shard(_states(config, hidden, intra, settings, bits), mesh, seeds=True),
            sharding.shard(bits, mesh),
        )
        kinds = {
            "one after another": (_states(config, hidden, intra, settings, bits), bits, 1),
            "vmap": (_states(config, hidden, intra, settings, bits), bits, None),
            f"one on each of {config.devices} devices": (*over, 1),
        }
        seconds = in_turn({kind: _epochs(settings, *of) for kind, of in kinds.items()}, config.timings)
        first = seconds["one after another"]
        for kind, found in seconds.items():
            ratios = first / found
            cells.append([name, kind, *(f"{x:.3f}" for x in (np.median(found), found.min(), np.median(ratios)))])
    header = [
        "machine",
        f"{config.num_seeds} seeds",
        "seconds of an epoch of all, median",
        "least",
        "times as fast, median",
    ]
    return markdown_table(header, cells)


def of_processes(config: Config) -> str:
    """The table of processes."""
    found = {count: _in_processes(config, count) for count in (1, config.processes)}
    cells = []
    for size in map(str, config.batch_sizes):
        for count, by_size in found.items():
            seconds = np.array(by_size[size])
            ratio = np.median(seconds) / np.median(found[1][size])
            cells.append([size, str(count), f"{np.median(seconds):.4f}", f"{seconds.min():.4f}", f"{ratio:.2f}"])
    header = ["minibatch", "processes", "seconds of an epoch of the RBM, median", "least", "against one process"]
    return markdown_table(header, cells)


def shared_epochs(dataset: str, hidden: int, batch_size: int, timings: int, processes: int) -> list[float]:
    """Seconds of epochs of an RBM whose minibatches all processes share; to be called in each of them."""
    bits, config = _bits(dataset), train.TrainConfig(batch_size=batch_size)
    state, visible = _state(0, (bits.shape[1], hidden), False, config), bits
    if processes > 1:
        state, visible = sharding.shard((state, visible), sharding.make_mesh({"data": processes}))
    return list(in_turn({"": _epochs(config, state, visible)}, timings)[""])


def in_turn(runs: dict[str, Callable[[], Any]], timings: int) -> dict[str, np.ndarray]:
    """Seconds of each, called one after the other, so often after a first call of each that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(timings + 1):
        for name, call in runs.items():
            started = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - started)
    return {name: np.array(found[1:]) for name, found in seconds.items()}


def _in_processes(config: Config, count: int) -> dict[str, list[float]]:
    """What the first of so many processes has measured, by size of the minibatch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = [str(config.timings), config.dataset, str(config.hidden[0]), *map(str, config.batch_sizes)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(number), str(count), str(port), *given],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    told = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise UsageError(f"one of {count} processes ended with status {max(worker.returncode for worker in workers)}")
    lines = [line.split() for line in told[0].splitlines() if line[:1].isdigit()]
    return {size: [float(one) for one in seconds] for size, *seconds in lines}


def _bits(dataset: str) -> UInt8[Array, "n n_0"]:
    return jnp.asarray(binarise(load_dataset(dataset).train.examples))


def _states(
    config: Config, hidden: tuple[int, ...], intra: bool, settings: train.TrainConfig, bits: Array
) -> train.TrainState:
    sizes = (bits.shape[1], *hidden)
    return jax.vmap(lambda seed: _state(seed, sizes, intra, settings))(as_array(range(config.num_seeds)))


def _state(seed: int | Array, sizes: tuple[int, ...], intra: bool, settings: train.TrainConfig) -> train.TrainState:
    stack = vpf_jax.init_stack(key_for(seed, "machine on several devices"), sizes, intra)
    return train.init_state(key_for(seed, "training on several devices"), stack, settings)


def _epochs(
    config: train.TrainConfig, state: train.TrainState, visible: Any, at_once: int | None = None
) -> Callable[[], Any]:
    """A function that runs the next epoch."""
    compiled = train.compile_epoch(state, visible, config, at_once)

    def run() -> Any:
        nonlocal state
        state, metrics = compiled(state, visible)
        return state, metrics

    return run


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 2)
    command.start(Config, run)
