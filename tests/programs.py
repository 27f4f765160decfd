"""Scripts as commands, at the quick settings that their docstrings give."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def quick_flags(script):
    """The quick setting that the script's own docstring gives, but for its folder."""
    command = re.search(r"^    (python -m .*--workdir=runs/quick)$", script.__doc__, re.DOTALL | re.MULTILINE)[1]
    *_, quick = command.split("python -m ")
    return [word for word in quick.replace("\\", " ").split()[1:] if not word.startswith("--workdir")]


def users_environment():
    """Without what makes small programs compile fast, and larger ones run slowly."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def start(name, *arguments):
    command = [sys.executable, "-m", f"experiments.{name}", *arguments]
    environment = users_environment()
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
