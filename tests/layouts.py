"""The tests on two devices (`--mesh`), or in two processes (`--process`, `--coordinator`; see two_processes.py).

With --mesh=data:2 a mesh of two devices is current in every test, so that every hint of the library counts. With
--process=0 and --process=1 two runs of pytest are the processes of one cluster. They begin every test together, each
on devices of its own; meshes made by `mesh` have devices of both. What is left out, and why, stands here.
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

OWN_MESH = "with a mesh of its own"
FIRST_WRITES = "of several processes the first one alone writes checkpoints"
OF_ONE = "runs of one process, whose files it reads; tests/app/test_devices.py starts runs of two"
STARTS = "starts processes of its own"
ODD = "minibatches of an odd number, which two devices refuse"

# By folder, file, or file and test: what does not run with a mesh.
NOT_WITH_A_MESH = {
    "test_examples.py::test_several_seeds_and_further_phases_take_examples": ODD,
    "test_optimizers.py::test_an_average_follows_its_definition_and_leaves_the_run_alone": ODD,
    "test_optimizers.py::test_several_seeds_are_averaged_and_centred_apart": ODD,
    "app/test_loop.py::test_a_measure_that_raises_leaves_the_last_checkpoint": ODD,
    "hostile/test_calls.py::test_a_state_of_other_settings_is_refused": ODD,
    "test_sklearn.py::test_other_rates_passes_and_seeds_compile_nothing": ODD,
    "test_sharding.py::test_passes_over_rows_draw_the_same_over_devices": OWN_MESH,
    "hostile/test_kills.py": STARTS,
    "hostile/test_process_kills.py": STARTS,
    "test_processes.py": STARTS,
}
# What does not run in two processes.
NOT_IN_PROCESSES = {
    "app/test_devices.py::test_a_mesh_as_it_is_typed": OF_ONE,
    "app/test_devices.py::test_a_single_process_agrees_with_itself": OF_ONE,
    "app/test_kinds_of_data.py": OF_ONE,
    "app/test_loop.py": OF_ONE,
    "app/test_model_commands.py": OF_ONE,
    "app/test_playground.py": OF_ONE,
    "app/test_recipes.py": OF_ONE,
    "app/test_report.py": OF_ONE,
    "app/test_runs.py": OF_ONE,
    "app/test_training.py": OF_ONE,
    "app/test_training_on_disk.py": OF_ONE,
    "benchmarks": OF_ONE,
    "experiments": OF_ONE,
    "hostile/test_commands.py": OF_ONE,
    "hostile/test_damage.py": OF_ONE,
    "hostile/test_kills.py": STARTS,
    "hostile/test_process_kills.py": STARTS,
    "test_contributing.py": OF_ONE,
    "test_processes.py": STARTS,
}
# What runs in the first of two processes alone.
NOT_IN_THE_SECOND = {
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
    table = NOT_WITH_A_MESH if with_mesh else NOT_IN_PROCESSES if process is not None else {}
    for item in items:
        reason = _reason(table, item.nodeid)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


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
    # Imported late: what the library checks of types is installed first.
    from vpf_jax import sharding

    places = [[device for device in jax.devices() if device.process_index == i] for i in range(jax.process_count())]
    return sharding.make_mesh(axes, [device for some in zip(*places, strict=True) for device in some])


def _reason(table: dict[str, str], test: str) -> str | None:
    """What a table says of a test, of all parameters of it, of its file or of the folder."""
    name = test.removeprefix("tests/")
    names = name, name.partition("[")[0], name.partition("::")[0], name.partition("/")[0]
    return next((table[one] for one in names if one in table), None)
