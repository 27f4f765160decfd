"""The tests on two devices (`--mesh`), or in two processes (`--process`, `--coordinator`; see two_processes.py).

With --mesh=data:2 a mesh of two devices is current in every test, so that every hint of the library counts. With
--process=0 and --process=1 two runs of pytest are the processes of one cluster. Both run the same tests in the same
order, each on devices of its own; meshes made by `mesh` have devices of both.
"""

import contextlib
from collections.abc import Iterator

import jax
import pytest
from jax.experimental import multihost_utils
from jax.sharding import Mesh

# All processes together have so many.
DEVICES, PROCESSES = 8, 2
# Seconds that a process waits for the other at the start and at the end.
PATIENCE = 120

FIRST_WRITES = "of several processes the first one alone writes checkpoints"

# By file, or file and test: what does not run with a mesh, and why.
NOT_WITH_A_MESH: dict[str, str] = {
    "test_sharding.py::test_passes_over_rows_draw_the_same_over_devices": "with a mesh of its own",
}
# What does not run in two processes.
NOT_IN_PROCESSES: dict[str, str] = {}
# What runs in the first of them alone.
NOT_IN_THE_SECOND: dict[str, str] = {
    "test_checkpoint.py": FIRST_WRITES,
    "test_blocks.py::test_an_epoch_that_is_kept_in_its_middle_goes_on_to_the_same_end": FIRST_WRITES,
}


def add_options(parser: pytest.Parser) -> None:
    """The options of pytest by which tests run on several devices."""
    group = parser.getgroup("devices")
    group.addoption("--mesh", help="a mesh that is current in every test, such as data:2")
    group.addoption("--process", type=int, choices=range(PROCESSES), help="which of two processes this is")
    group.addoption("--coordinator", help="host:port on which the first of them is reached")


def join(config: pytest.Config) -> None:
    """Joins the two processes where there are two; to be called before the first computation."""
    process, address = config.getoption("process"), config.getoption("coordinator")
    if (process is None) != (address is None):
        raise pytest.UsageError("--process and --coordinator go together")
    if process is not None and config.getoption("mesh"):
        raise pytest.UsageError("--mesh is of one process; in two each test has the devices of its own")
    jax.config.update("jax_num_cpu_devices", DEVICES if process is None else DEVICES // PROCESSES)
    if process is None:
        return
    # It would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        address, PROCESSES, process, initialization_timeout=PATIENCE, shutdown_timeout_seconds=PATIENCE
    )


def skip(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what makes no sense on the devices of this run."""
    with_mesh, process = config.getoption("mesh") is not None, config.getoption("process")
    for item in items:
        reason = _reason(NOT_WITH_A_MESH, item.nodeid) if with_mesh else None
        reason = _reason(NOT_IN_PROCESSES, item.nodeid) if process is not None else reason
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _reason(table: dict[str, str], test: str) -> str | None:
    """What a table says of a test, its file, or all of its parameters."""
    name = test.removeprefix("tests/")
    return table.get(name) or table.get(name.partition("[")[0]) or table.get(name.partition("::")[0])


@contextlib.contextmanager
def current(config: pytest.Config, test: str) -> Iterator[None]:
    """Of one test: within the mesh of this run, or beginning together in both processes."""
    process, given = config.getoption("process"), config.getoption("mesh")
    if process is not None:
        multihost_utils.sync_global_devices(test)
        reason = _reason(NOT_IN_THE_SECOND, test) if process > 0 else None
        if reason:
            pytest.skip(reason)
    if given is None:
        yield
        return
    with jax.set_mesh(mesh({name: int(count) for name, count in (axis.split(":") for axis in given.split(","))})):
        yield


def mesh(axes: dict[str, int]) -> Mesh:
    """A mesh with devices of all processes in turn: of two processes one of 2 devices has one of each."""
    from vpf_jax import sharding

    places = [[device for device in jax.devices() if device.process_index == i] for i in range(jax.process_count())]
    return sharding.make_mesh(axes, [device for some in zip(*places, strict=True) for device in some])
