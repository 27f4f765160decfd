"""The devices of a command: --mesh, and several processes that work as one.

`Devices` are settings: how many devices along each axis (`vpf_jax.sharding`), and which process of how many this one
is. Every process starts the same command; JAX joins them (`jax.distributed`) and each reads the data for itself. All
compute the same, with their devices together; the first one alone keeps files and prints, the others work in a folder
that is removed at the end. What one of them must know of another, they say to one another between epochs: that a
signal has arrived, and where the run goes on. A process that dies ends the others.

Not here: where arrays lie (`vpf_jax.sharding`), what one process says to all (`vpf_jax.processes`).
"""

import contextlib
import ctypes
import dataclasses
import functools
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vpf_jax import checks, sharding
from vpf_jax.app.folder import UsageError
from vpf_jax.processes import is_first
from vpf_jax.settings import Settings, refuse_given, setting

# Seconds after which a process that says nothing counts as dead, and for which one waits for the others at the start.
HEARTBEAT, PATIENCE = 20, 120
AUTO = "auto"
# Of what may be cut into any number of parts.
ANY = 0

# In what is raised where another process does not answer.
_OF_DEATH = re.compile(r"Gloo|heartbeat|[Cc]oordination|UNAVAILABLE|DEADLINE_EXCEEDED|Connection (reset|closed)")

_handlers: list[Any] = []

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class MeshSettings(Settings):
    """What commands share that can work on several devices; each setting is a flag."""

    mesh: str | None = setting(
        None,
        "Devices along the axes data (examples), model (units) and seeds, such as data:4,model:2, or auto: as many as "
        "there are and divide the work; left out: one device",
    )

    def devices(self, **whole: int) -> Mesh | None:
        """The mesh that is asked for, None where that is one device.

        Args:
          whole: by axis, the number that is to be cut along it, such as data=40 for minibatches of 40 examples, or
            `ANY`.

        Raises:
          SettingError: no such mesh, or one that does not divide these numbers.
        """
        if self.mesh is None:
            return None
        axes = _automatic(whole) if self.mesh == AUTO else _read(self.mesh)
        for name, number in whole.items():
            fits = number % axes.get(name, 1) == 0
            checks.require(fits, "mesh", self.mesh, f"a number of devices along {name} that divides {number}")
        for name in axes:
            checks.require(name in whole, "mesh", self.mesh, f"axes among {', '.join(whole)} here")
        try:
            mesh = sharding.make_mesh(axes)
        except checks.SettingError as error:
            raise checks.SettingError("mesh", self.mesh, error.allowed) from None
        everyone = {device.process_index for device in mesh.devices.flat}
        told = f"a mesh with devices of all {jax.process_count()} processes, {jax.device_count()} in all"
        checks.require(len(everyone) == jax.process_count(), "mesh", self.mesh, told)
        return mesh if mesh.size > 1 else None


@dataclasses.dataclass(frozen=True)
class ProcessSettings(MeshSettings):
    """What commands share that can run as several processes; each setting is a flag."""

    coordinator: str | None = setting(
        None,
        "Of several processes: host and port on which the first one is reached, or auto where JAX finds the cluster "
        "itself (SLURM, Kubernetes, Cloud TPU); left out: one process",
    )
    processes: int | None = setting(None, "How many processes there are, where --coordinator is an address", least=1)
    process: int | None = setting(None, "Which of them this one is, counted from 0", least=0)

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
          SettingError: a value outside its range, or one that the others make meaningless.
        """
        super().__post_init__()
        numbers = ["processes", "process"]
        if self.coordinator is None:
            refuse_given(self, numbers, "one process has no --coordinator")
        elif self.coordinator == AUTO:
            refuse_given(self, numbers, "with --coordinator=auto JAX finds them")
        else:
            host, _, port = self.coordinator.rpartition(":")
            checks.require(host and port.isdecimal(), "coordinator", self.coordinator, "HOST:PORT, or auto")
            checks.require(self.processes is not None, "processes", self.processes, "the number of processes")
            checks.require(self.process is not None, "process", self.process, "the number of this process")
            below = f"a number below the {self.processes} of --processes"
            checks.require((self.process or 0) < (self.processes or 0), "process", self.process, below)
        if self.coordinator is not None:
            checks.require(self.mesh is not None, "mesh", self.mesh, "a mesh, or auto, with --coordinator")

    def join(self) -> None:
        """Joins the processes, where there are several, and says so; to be called before the first computation.

        Raises:
          UsageError: they do not come together.
        """
        if self.coordinator is None:
            return
        address = None if self.coordinator == AUTO else self.coordinator
        # It takes SIGTERM for itself, which then goes unnoticed until a run asks for signals.
        jax.config.update("jax_enable_preemption_service", False)
        try:
            jax.distributed.initialize(
                address,
                self.processes,
                self.process,
                initialization_timeout=PATIENCE,
                heartbeat_timeout_seconds=HEARTBEAT,
            )
        except (RuntimeError, ValueError) as error:
            first = str(error).strip().partition("\n")[0]
            raise UsageError(
                f"--coordinator={self.coordinator} brings no processes together ({first}); all of them take the same "
                "address, which the first one can listen on, and numbers of their own"
            ) from None
        local, kind = jax.local_device_count(), jax.devices()[0].device_kind
        print(
            f"process {jax.process_index()} of {jax.process_count()}: {local} of {jax.device_count()} devices ({kind})",
            flush=True,
        )
        if not is_first():
            # What all of them would say the first one says.
            sys.stdout.flush()
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def several() -> bool:
    """Whether this process is one of several; asks nothing of JAX before they are joined."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """The folder of a run, or in other processes than the first a temporary one."""
    if is_first():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="vpf_jax-") as made:
        yield Path(made) / folder.name


def arrays_of_first(tree: Tree) -> Tree:
    """Arrays of the first process, of trees that have the same structure and shapes in all; random keys among them."""
    if jax.process_count() == 1:
        return tree

    def plain(leaf: Any) -> Any:
        is_key = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    def whole(leaf: Any, found: Any) -> Any:
        is_key = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(jnp.asarray(found), impl=jax.random.key_impl(leaf)) if is_key else found

    return jax.tree.map(whole, tree, multihost_utils.broadcast_one_to_all(jax.tree.map(plain, tree)))


def stop_asked(stops: Sequence[int]) -> int:
    """The signal by which all processes stop here, 0 for none: one that any of them has received before it asked.

    One that arrives while they ask counts when they ask again; whoever looked at `stops` itself would stop alone.
    """
    received = stops[0] if stops else 0
    if jax.process_count() == 1:
        return received
    return int(np.asarray(multihost_utils.process_allgather(np.array(received, np.int32))).max())


def local(tree: Tree) -> Tree:
    """The tree with whole arrays on a device of this process, where it lies over those of several."""
    mesh = sharding.mesh_of(tree) if jax.process_count() > 1 else None
    if mesh is None:
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), _gathering(mesh)(tree))


@functools.cache
def _gathering(mesh: Mesh) -> Callable[[Tree], Tree]:
    """What makes arrays whole on every device; compiled once for each structure."""
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))


@contextlib.contextmanager
def within(mesh: Mesh | None) -> Iterator[None]:
    """Inside it functions cut what they compute over the mesh; not over several processes, where each evaluates all."""
    if mesh is None or jax.process_count() > 1:
        yield
    else:
        with jax.set_mesh(mesh):
            yield


def death(error: Exception) -> str | None:
    """A sentence for an error that another process's end has caused, as of a checkpoint; None for others."""
    if not several():
        return None
    cause: BaseException | None = error
    while cause is not None:
        if _OF_DEATH.search(str(cause)):
            return _told_of_death()
        cause = cause.__cause__
    return None


def speak_when_aborted(program: str) -> None:
    """From here on this process says so and exits with 1 where JAX would end it by SIGABRT, having lost another one.

    JAX does that from a thread of its own, at any time, as while this process compiles or evaluates; Python's handlers
    of signals wait for the main thread, so that this one is the C library's.

    Args:
      program: before the sentence.
    """
    if not several():
        return
    sentence = f"{program}: JAX has ended this process, as it does when {_told_of_death()}\n".encode()

    def speak(number: int) -> None:
        os.write(2, sentence)
        os._exit(1)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(speak)
    # It must live as long as the process.
    _handlers.append(handler)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)


def _told_of_death() -> str:
    return (
        f"another of the {jax.process_count()} processes has ended; what was saved stays, start all of them again to "
        "go on from the last checkpoint"
    )


def _automatic(whole: dict[str, int]) -> dict[str, int]:
    """All devices along the first axis that is there, as far as they divide what is cut."""
    count = jax.device_count()
    name = sharding.SEEDS if whole.get(sharding.SEEDS, 1) > 1 else sharding.DATA
    return {name: max(n for n in range(1, count + 1) if whole[name] % n == 0)} if name in whole else {}


def _read(text: str) -> dict[str, int]:
    axes: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.partition(":")
        fits = name in sharding.AXES and name not in axes and number.isdecimal() and int(number) >= 1
        told = f"auto, or axes among {', '.join(sharding.AXES)} with their devices, such as data:4,model:2"
        checks.require(fits, "mesh", text, told)
        axes[name] = int(number)
    return axes
