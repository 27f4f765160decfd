"""Settings of all tests: annotations are checked at every call; silent broadcasting between ranks and reuse of a random
key are errors; interrupts arrive.
"""

import gc
import io
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import layouts
import pytest
import quick_compile
import typed
from PIL import Image

quick_compile.install()
typed.install()

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


# Tracing makes so many objects that last that collecting them often takes a twentieth of the time of all tests.
gc.set_threshold(200_000, 50, 100)

# Bytes that must be free in memory for temporary files to lie there.
ROOM = 4 * 2**30


def pytest_addoption(parser: pytest.Parser) -> None:
    """--mesh, --process and --coordinator."""
    layouts.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Devices first. The small data sets are sources before a script is imported, whose choices they then are among."""
    keep_in_memory()
    layouts.join(config)
    import programs  # noqa: F401


def keep_in_memory() -> None:
    """Temporary files lie in memory, where there is room: of a disk the tests wait for what is written to last."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files of slow tests first, so that no worker is long at the last of them when the other has none left."""
    layouts.skip(config, items)
    slow, count = Counter(), Counter()
    for item in items:
        count[item.path] += 1
        slow[item.path] += item.get_closest_marker("slow") is not None
    items.sort(key=lambda item: slow[item.path] / count[item.path], reverse=True)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the tests of a file have compiled goes with it, else a worker comes to several GB."""
    quick_compile.optimise(request.node.get_closest_marker("long_running") is not None)
    yield
    quick_compile.forget()


# What a shell starts in its background ignores interrupts, and so do its children; some tests send them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def same_entries() -> None:
    """Of a sequence beartype looks at one entry, drawn at random: at the same ones in every run of a test."""
    random.seed(0)


@pytest.fixture(autouse=True)
def devices_of_the_run(request: pytest.FixtureRequest) -> Iterator[None]:
    """A mesh is current, or both processes begin the test together, where pytest was asked for it."""
    with layouts.current(request.config, request.node.nodeid):
        yield


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not drawn, of which a run has up to ten: for tests whose subject is something else.

    What is set up for a whole file draws its pictures all the same.
    """
    dot = io.BytesIO()
    Image.new("RGB", (1, 1)).save(dot, "PNG")
    monkeypatch.setattr("vpf_jax.figures._drawn", lambda figure, suffix: dot.getvalue())


@pytest.fixture
def unchecked() -> Iterator[None]:
    """For tests that hand wrong types to the library on purpose, which says so in sentences of its own."""
    with typed.unchecked():
        yield
