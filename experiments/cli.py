"""How an experiment's command starts and ends: flags, one-line errors, exit status.

Status 0: done. 1: training stopped by itself. 2: something the user gave is not allowed. 128 + n: stopped by signal n,
after saving. Anything else is a bug and keeps its traceback.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags
from absl import logging as absl_logging

from experiments.workdir import Stopped, UsageError
from vpf_jax.datasets import DatasetError
from vpf_jax.train import NonFiniteObjectiveError


def start(main: Callable[[list[str]], None]) -> NoReturn:
    """Parses the flags, runs main(arguments left over) and exits."""

    def guarded(argv: list[str]) -> None:
        # orbax and tensorflow-datasets log through absl what the one-line errors here say better.
        absl_logging.set_verbosity(absl_logging.ERROR)
        _keep_compiled_programs()
        try:
            main(argv)
        except (UsageError, DatasetError) as error:
            _fail(2, error)
        except NonFiniteObjectiveError as error:
            _fail(1, error)
        except Stopped as stop:
            _fail(stop.exit_status, stop)

    app.run(guarded, flags_parser=_parse)


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
    print(f"{sys.argv[0].rsplit('/', 1)[-1]}: {line}", file=sys.stderr)
    sys.exit(status)
