"""How an experiment's command starts and ends: settings and their flags, one-line errors, exit status.

Status 0: done. 1: training stopped by itself, or the system refused to read or write, as on a full disk. 2: something
the user gave is not allowed, checkpoints that are all damaged among it. 128 + n: stopped by signal n, after saving;
141: nobody reads the output any more. Anything else is a bug and keeps its traceback. What the library and the scripts
warn of is one line each on standard error.
"""

import dataclasses
import logging
import os
import signal
import sys
import threading
import types
import typing
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags
from absl import logging as absl_logging

from vpf_jax.app.folder import Stopped, UsageError
from vpf_jax.checkpoint import SYSTEM_ERRORS, CheckpointError
from vpf_jax.data import DatasetError
from vpf_jax.train import NonFiniteObjectiveError


def setting(default: Any, help: str, choices: Collection[str] | None = None) -> Any:
    """A field of a `Config` dataclass that `start_experiment` makes a flag of.

    Args:
      default: an int, float, string or tuple of ints or strings, or None where the field's type allows it.
      help: what --help says; it states the range.
      choices: the values allowed, of a string or of each entry of a tuple of strings.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def start_experiment(config_class: type, run: Callable[[Any], Any]) -> NoReturn:
    """Makes a flag of every setting of the class, and runs run(config) on what was given."""
    fields = dataclasses.fields(config_class)
    hints = typing.get_type_hints(config_class)
    kinds = {field.name: _kind(hints[field.name]) for field in fields}
    for field in fields:
        _define_flag(field, kinds[field.name])
        # --help shows the flags of the program, not those of this module.
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[field.name])

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise UsageError(f"got the argument {argv[1]!r}; only flags are allowed, --help lists them")
        run(config_class(**{f.name: _value(f, kinds[f.name], flags.FLAGS[f.name].value) for f in fields}))

    start(main)


def start(main: Callable[[list[str]], None]) -> NoReturn:
    """Parses the flags, runs main(arguments left over) and exits."""

    def guarded(argv: list[str]) -> None:
        # orbax and tensorflow-datasets log through absl what the one-line errors here say better.
        absl_logging.set_verbosity(absl_logging.FATAL)
        _keep_compiled_programs()
        try:
            main(argv)
        except Exception as error:
            found = failure(error)
            if found is None:
                raise
            _fail(*found)

    _end_quietly_on_interrupts()
    _say_warnings()
    try:
        try:
            app.run(guarded, flags_parser=_parse)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffers has nowhere to go, at the interpreter's end too.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(128 + signal.SIGPIPE)
    raise AssertionError("app.run returns by SystemExit alone")


def failure(error: Exception) -> tuple[int, str] | None:
    """Exit status and sentence for what a command may raise; None for a bug, which keeps its traceback."""
    if isinstance(error, UsageError | DatasetError | CheckpointError):
        return 2, str(error)
    if isinstance(error, NonFiniteObjectiveError):
        return 1, str(error)
    if isinstance(error, Stopped):
        return error.exit_status, str(error)
    if isinstance(error, OSError) and error.errno in SYSTEM_ERRORS:
        where = f"{error.filename}: " if error.filename else ""
        return 1, f"{where}{error.strerror}; what was saved stays, start again to resume when this is mended"
    return None


def _end_quietly_on_interrupts() -> None:
    """Ctrl-C kills without a traceback, as SIGTERM does; `workdir.stop_requests` sees it first."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    # In a shell's background it is ignored, and stays so.
    if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _say_warnings() -> None:
    """One line on standard error for each, whatever absl lets through."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Line(f"{_program()}: %(message)s"))
    for name in ("vpf_jax", "experiments"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
        logger.propagate = False


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join(super().format(record).split())


def _kind(hint: Any) -> Any:
    """The type of a setting: int, float, str, or (tuple, type of its entries); None is left out of a union."""
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is tuple:
        return tuple, typing.get_args(hint)[0]
    return hint


def _define_flag(field: dataclasses.Field, kind: Any) -> None:
    name, default, told = field.name, field.default, field.metadata["help"]
    choices = field.metadata["choices"]
    if isinstance(kind, tuple):
        flags.DEFINE_list(name, [str(value) for value in typing.cast(tuple, default)], told)
    elif kind is str and choices:
        flags.DEFINE_enum(name, typing.cast(str, default), choices, told)
    elif kind is int:
        flags.DEFINE_integer(name, typing.cast(int | None, default), told)
    elif kind is float:
        flags.DEFINE_float(name, typing.cast(float | None, default), told)
    else:
        flags.DEFINE_string(name, typing.cast(str | None, default), told)


def _value(field: dataclasses.Field, kind: Any, given: Any) -> Any:
    """What a flag's value is in the config."""
    if not isinstance(kind, tuple):
        return given
    choices = field.metadata["choices"]
    try:
        values = tuple(kind[1](text.strip()) for text in given)
    except ValueError:
        told = f"it takes integers separated by commas ({field.metadata['help']})"
        raise UsageError(f"got --{field.name}={','.join(given)}; {told}") from None
    strangers = [value for value in values if choices and value not in choices]
    if strangers:
        raise UsageError(f"got --{field.name}={','.join(given)}; it takes some of {', '.join(choices)}")
    return values


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except SystemExit:
        # --help has printed; absl ends it with status 1.
        sys.exit(0)
    except flags.UnrecognizedFlagError as error:
        _fail(2, f"{error}; --help lists the flags")
    except flags.IllegalFlagValueError as error:
        name = str(error).removeprefix("flag --").split("=")[0]
        # For an enum absl itself says what is allowed.
        told = name not in flags.FLAGS or "one of" in str(error)
        allowed = "" if told else f"; --{name}: {flags.FLAGS[name].help}"
        _fail(2, f"{error}{allowed}")
    except flags.Error as error:
        _fail(2, error)


def _keep_compiled_programs() -> None:
    """Lets a second start reuse what the first has compiled, in $JAX_COMPILATION_CACHE_DIR or the user's cache."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "vpf_jax"))


def _fail(status: int, message: object) -> NoReturn:
    line = " ".join(str(message).split())
    print(f"{_program()}: {line}", file=sys.stderr)
    sys.exit(status)


def _program() -> str:
    return sys.argv[0].rsplit("/", 1)[-1]
