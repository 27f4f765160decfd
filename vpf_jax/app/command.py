"""How a program's command starts and ends: flags made of its settings, one-line errors, exit status.

Status 0: done. 1: training stopped by itself, or the system refused to read or write, as on a full disk. 2: something
the user gave is not allowed, checkpoints that are all damaged among it. 128 + n: stopped by signal n, after saving;
141: nobody reads the output any more. Anything else is a bug and keeps its traceback. What the library and the scripts
warn of is one line each on standard error.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags
from absl import logging as absl_logging

from vpf_jax.app import devices
from vpf_jax.app.folder import Stopped, UsageError
from vpf_jax.checkpoint import SYSTEM_ERRORS, CheckpointError
from vpf_jax.checks import SettingError
from vpf_jax.data import DatasetError
from vpf_jax.models import ModelError
from vpf_jax.settings import Option, options, typed
from vpf_jax.train import NonFiniteObjectiveError

# Of compiled programs that are kept: a start of `train` compiles a hundred, a megabyte in all.
CACHE_BYTES = 2**30


def start(config_class: type, run: Callable[[Any], Any], *, arguments: Sequence[str] = ()) -> NoReturn:
    """Makes a flag of every setting of the class, runs run(config) on what was given, and exits.

    Args:
      config_class: of settings.
      run: what the command does.
      arguments: the settings that are given without a flag, in this order: one value each, or where a single one is a
        tuple all that are given. They have no flag.
    """

    def main(argv: list[str]) -> None:
        # orbax and tensorflow-datasets log through absl what the one-line errors here say better.
        absl_logging.set_verbosity(absl_logging.FATAL)
        _keep_compiled_programs()
        try:
            given = _arguments(argv[1:], arguments, options(config_class))
            given |= {name: flags.FLAGS[option.flag].value for name, option in flagged.items()}
            for name, option in flagged.items():
                if option.needed and given[name] is None:
                    raise UsageError(f"got no --{option.flag}; it takes {option.allowed}")
            config = config_class(**given)
            if isinstance(config, devices.ProcessSettings):
                config.join()
                devices.speak_when_aborted(_program())
            run(config)
        except Exception as error:
            found = failure(error)
            if found is None:
                raise
            _fail(*found)

    flagged = {name: option for name, option in options(config_class).items() if name not in arguments}
    for option in flagged.values():
        default = None if option.needed else option.default
        flags.DEFINE(_Parser(option), option.flag, default, option.told, serializer=_Serializer())
        # --help shows the flags of the program, not those of this module.
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[option.flag])
    _end_quietly_on_interrupts()
    _say_warnings()
    try:
        try:
            app.run(main, flags_parser=_parse)
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
    # First, as a checkpoint that the other process does not write any more is an error of checkpoints, too.
    if (told := devices.death(error)) is not None:
        return 1, told
    if isinstance(error, SettingError):
        return 2, f"got --{error.name}={typed(error.given)}; it takes {error.allowed}"
    if isinstance(error, UsageError | DatasetError | CheckpointError | ModelError):
        return 2, str(error)
    if isinstance(error, NonFiniteObjectiveError):
        return 1, str(error)
    if isinstance(error, Stopped):
        return error.exit_status, str(error)
    if isinstance(error, OSError) and error.errno in SYSTEM_ERRORS:
        where = f"{error.filename}: " if error.filename else ""
        return 1, f"{where}{error.strerror}; what was saved stays, start again to resume when this is mended"
    return None


def _arguments(given: Sequence[str], names: Sequence[str], known: Mapping[str, Option]) -> dict[str, Any]:
    """The settings that have no flags, from what stands beside the flags."""
    if not names:
        if given:
            raise UsageError(f"got the argument {given[0]!r}; only flags are allowed, --help lists them")
        return {}
    found = [known[name] for name in names]
    told = " and ".join(option.setting.help[0].lower() + option.setting.help[1:] for option in found)
    if not given:
        raise UsageError(f"got no argument; it takes {told}, and --help lists the flags")
    if found[0].many:
        return {names[0]: tuple(given)}
    if len(given) != len(names):
        number = {1: "one", 2: "two"}[len(names)]
        some = f"the argument{'s' if len(given) > 1 else ''} {' '.join(given)}"
        raise UsageError(f"got {some}; it takes {number}, {told}, and --help lists the flags")
    return {option.name: option.read(text) for option, text in zip(found, given, strict=True)}


class _Parser(flags.ArgumentParser):
    """Of the flag of a setting."""

    def __init__(self, option: Option) -> None:
        self._option = option

    def parse(self, argument: Any) -> Any:
        return self._option.read(argument) if isinstance(argument, str) else argument

    def flag_type(self) -> str:
        return f"{self._option.kind.__name__}{' list' if self._option.many else ''}"


class _Serializer(flags.ArgumentSerializer):
    def serialize(self, value: Any) -> str:
        return typed(value)


def _end_quietly_on_interrupts() -> None:
    """Ctrl-C kills without a traceback, as SIGTERM does; `folder.stop_requests` sees it first."""
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


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except SystemExit:
        # --help has printed; absl ends it with status 1.
        sys.exit(0)
    except flags.UnrecognizedFlagError as error:
        _fail(2, f"{error}; --help lists the flags")
    except BrokenPipeError:
        raise
    except UnicodeDecodeError:
        _fail(2, "got a --flagfile that cannot be read, as it is no text")
    # Whatever absl's own flags make of what they were given, such as a --flagfile that is no text.
    except Exception as error:
        found = failure(error.__context__) if isinstance(error.__context__, SettingError) else None
        _fail(2, found[1] if found else f"{error}; --help lists the flags")


def _keep_compiled_programs() -> None:
    """Lets a second start reuse what the first has compiled, in $JAX_COMPILATION_CACHE_DIR or the user's cache."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    # A folder of its own: JAX fails in a bounded cache where there is what an unbounded one has kept.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vpf_jax" / "programs"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache))
    # Of small programs there are so many that a start waits longer for them than for all others; a bounded cache is one
    # that processes lock, too.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)


def _fail(status: int, message: object) -> NoReturn:
    line = " ".join(str(message).split())
    print(f"{_program()}: {line}", file=sys.stderr)
    if devices.several() and status < 128:
        # The others end by that; one that is stopped waits for them, one that has failed would wait for nothing.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _program() -> str:
    return sys.argv[0].rsplit("/", 1)[-1]
