"""Scripts as commands, at the quick settings that their docstrings give."""

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


def start(name, *arguments):
    command = [sys.executable, "-m", f"experiments.{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
