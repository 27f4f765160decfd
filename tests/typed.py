"""Annotations of the library checked at every call: jaxtyping's import hook with beartype, and what goes past it."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator

import beartype
import jaxtyping
import pytest

# An int is a float, as PEP 484 has it and mypy too.
_beartype = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def install() -> None:
    """To be called before the library is imported."""
    jaxtyping.install_import_hook("vpf_jax", "typed.checking")


def checking(function: Callable) -> Callable:
    """The function with its annotations checked; not where JAX rebuilds a tree, with anything at its leaves."""
    checked = _beartype(function)

    @functools.wraps(function)
    def check(*args, **kwargs):
        # Over the two frames of jaxtyping's that lie between.
        if sys._getframe(3).f_globals["__name__"].startswith(("jax.", "jax._src")):
            return kwargs.get("ret0")
        return checked(*args, **kwargs)

    return check if function.__name__ == "__init__" else checked


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Arguments of wrong types reach the library, whose own sentences are tested."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@contextlib.contextmanager
def refused(*error: type[Exception], match: str | None = None) -> Iterator[pytest.ExceptionInfo]:
    """`pytest.raises` where arguments are of wrong types on purpose."""
    with unchecked(), pytest.raises(*error, match=match) as refusal:
        yield refusal
