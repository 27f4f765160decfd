"""Settings of all tests: annotations are checked at every call; silent broadcasting between ranks and reuse of a random
key are errors; interrupts arrive.
"""

import random
import signal
from collections.abc import Iterator

import jax
import pytest
import quick_compile
import typed

quick_compile.install()
typed.install()

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


def pytest_configure() -> None:
    """The small data set is a source before a script is imported, whose choices it then is one of."""
    import programs  # noqa: F401


# What a shell starts in its background ignores interrupts, and so do its children; some tests send them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def same_entries() -> None:
    """Of a sequence beartype looks at one entry, drawn at random: at the same ones in every run of a test."""
    random.seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """For tests that hand wrong types to the library on purpose, which says so in sentences of its own."""
    with typed.unchecked():
        yield
