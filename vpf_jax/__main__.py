"""The commands of the library: python -m vpf_jax COMMAND, with --help for the flags of one.

A command is a module with a dataclass of settings, `Config`, and a function `run` of one; it is imported when it is
called. Not here: what commands do; the scripts of experiments/, which are commands of their own.
"""

import importlib
import signal
import sys
from typing import NamedTuple


class Command(NamedTuple):
    """A line of the table."""

    module: str
    arguments: tuple[str, ...]
    """The settings that are given without flags."""
    told: str


COMMANDS = {
    "train": Command("vpf_jax.app.training", (), "trains a machine or a stack on data of any source"),
    "sample": Command("vpf_jax.app.sampling", ("model",), "draws samples of a trained model"),
    "score": Command("vpf_jax.app.scoring", ("model", "data"), "scores each example of a file by a trained model"),
    "repair": Command("vpf_jax.app.repairing", ("model", "data"), "fills in missing or covered entries of a file"),
    "features": Command("vpf_jax.app.features", ("model", "data"), "writes hidden activations of a file's examples"),
    "inspect": Command("vpf_jax.app.inspection", ("path",), "tells what is in a model, a run or a data file"),
    "report": Command("vpf_jax.app.report", ("runs",), "writes one HTML page of one run, or of several side by side"),
    "playground": Command("vpf_jax.app.playground", ("run",), "writes one HTML page in which a trained model samples"),
}


def main() -> None:
    """Runs the command that is named, or lists all."""
    # Ctrl-C ends it without a traceback while a command is imported, too; where a shell has it ignored it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(told())
        return
    if name not in COMMANDS:
        _fail(f"got the command {name!r}; it takes one of {', '.join(COMMANDS)}, and --help tells what they do")
    command = COMMANDS[name]
    sys.argv[:2] = [f"vpf_jax {name}"]
    module = importlib.import_module(command.module)
    # Late, as it imports all that a command needs.
    from vpf_jax.app.command import start

    # What --help shows above the flags.
    sys.modules["__main__"].__doc__ = module.__doc__
    start(module.Config, module.run, arguments=command.arguments)


def told() -> str:
    """What --help says."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.told}" for name, command in COMMANDS.items()]
    return "\n".join(["python -m vpf_jax COMMAND, with --help for the flags of one:", "", *lines])


def _fail(message: str) -> None:
    print(f"vpf_jax: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
