"""Annotations of the library checked at every call: jaxtyping's import hook with beartype, and what goes past it."""

import contextlib
import functools
import sys
import warnings
from collections.abc import Callable, Iterator

import beartype
import jaxtyping
import pytest
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning

# An int is a float, as PEP 484 has it and mypy too.
_beartype = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def install() -> None:
    """To be called before the library is imported."""
    _check_by_what_is_made_once()
    jaxtyping.install_import_hook("vpf_jax", "typed.checking")


def _check_by_what_is_made_once() -> None:
    """For the functions inside others, which jaxtyping takes apart, at some milliseconds, whenever these are called.

    What it makes of their annotations is the same each time, if `Float[Array, "n"]` is. Its names may go; then all of
    it is made anew.
    """
    array_types, decorator = (getattr(jaxtyping, name, None) for name in ("_array_types", "_decorator"))
    if hasattr(array_types, "_make_array"):
        array_types._make_array = _once(array_types._make_array)
        for name in ("_destring_annotation", "_make_fn_with_signature"):
            if hasattr(decorator, name):
                setattr(decorator, name, _once(getattr(decorator, name)))


def _once(make: Callable) -> Callable:
    """The function with its results kept; those of what cannot be hashed are made anew."""
    made = {}

    @functools.wraps(make)
    def once(*args, **kwargs):
        # Of dictionaries there are the globals of modules, which stay.
        known = [id(value) if isinstance(value, dict) else value for value in (*args, *kwargs.values())]
        try:
            key = (*known, *kwargs)
            if key not in made:
                made[key] = make(*args, **kwargs)
            return made[key]
        except TypeError:
            return make(*args, **kwargs)

    return once


@functools.cache
def checking(function: Callable) -> Callable:
    """The function with its annotations checked; not where JAX rebuilds a tree, with anything at its leaves."""
    with warnings.catch_warnings():
        # Of types of Optax's, in the words of older Pythons.
        warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
        checked = _beartype(function)

    @functools.wraps(function)
    def check(*args, **kwargs):
        frame = sys._getframe(1)
        while frame.f_globals["__name__"].startswith("jaxtyping."):
            frame = frame.f_back
        return None if frame.f_globals["__name__"].startswith("jax.") else checked(*args, **kwargs)

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
