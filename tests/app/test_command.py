"""Commands: flags made of settings, in a process of their own, and what importing the programs leaves undone."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from vpf_jax.app import command
from vpf_jax.app.folder import UsageError
from vpf_jax.settings import Settings, options, setting

ROOT = Path(__file__).parents[2]
PROGRAM = """
import dataclasses
from vpf_jax.app import command
from vpf_jax.app.folder import UsageError
from vpf_jax.settings import Settings, setting

@dataclasses.dataclass(frozen=True)
class Config(Settings):
    sizes: tuple[int, ...] = setting((4, 3), "How large", least=1)
    switch: bool = setting(True, "Whether")
    steps: int | None = setting(None, "How many", least=1, flag="rule_steps")

def run(config):
    if config.steps == 7:
        raise UsageError("seven\\nis too many")
    if config.steps == 8:
        raise ValueError("a bug")
    print(config)

command.start(Config, run)
"""


def start(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Config(sizes=(4, 3), switch=True, steps=None)\n"),
        (["--sizes=5", "--switch=off", "--rule_steps=2"], "Config(sizes=(5,), switch=False, steps=2)\n"),
    ],
)
def test_flags_become_settings(arguments, told):
    ended = start(*arguments)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, told, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sizes=5,x"], "got --sizes=5,x; it takes distinct positive integers"),
        (["--sizes="], "got --sizes=; it takes distinct positive integers"),
        (["--switch"], "--switch"),
        (["--rule_steps=0"], "got --rule_steps=0; it takes an integer of at least 1"),
        (["--steps=1"], "'steps'"),
        (["--rule_steps=7"], "seven is too many"),
        (["more"], "got the argument 'more'"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, told):
    ended = start(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert told in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@dataclasses.dataclass(frozen=True)
class One(Settings):
    run: str = setting(".", "The folder of a run")
    count: int = setting(1, "How many")


@dataclasses.dataclass(frozen=True)
class Many(Settings):
    runs: tuple[str, ...] = setting((".",), "The folder of a run, or of each of several")


def test_an_argument_is_a_setting_without_a_flag():
    assert command._arguments(["a"], ("run",), options(One)) == {"run": "a"}
    assert command._arguments(["a", "b"], ("runs",), options(Many)) == {"runs": ("a", "b")}
    assert command._arguments([], (), options(One)) == {}
    assert command._arguments(["a", "3"], ("run", "count"), options(One)) == {"run": "a", "count": 3}
    for given, names, group, told in (
        (
            ["a", "b"],
            ("run",),
            One,
            "^got the arguments a b; it takes one, the folder of a run, and --help lists the flags$",
        ),
        ([], ("run",), One, "^got no argument; it takes the folder of a run, and --help lists the flags$"),
        ([], ("runs",), Many, "^got no argument; it takes the folder of a run, or of each of several, and --help"),
        (
            ["a"],
            ("run", "count"),
            One,
            "^got the argument a; it takes two, the folder of a run and how many, and --help",
        ),
        (["a"], (), One, "^got the argument 'a'; only flags are allowed, --help lists them$"),
    ):
        with pytest.raises(UsageError, match=told):
            command._arguments(given, names, options(group))


@pytest.mark.slow
def test_a_bug_keeps_its_traceback():
    ended = start("--rule_steps=8")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


@pytest.mark.slow
def test_help_says_meaning_range_and_default():
    ended = start("--help")
    assert ended.returncode == 0
    told = " ".join(ended.stdout.split())
    assert "--sizes: How large: distinct positive integers. (default: '4,3')" in told
    assert "--switch: Whether: on or off. (default: 'on')" in told
    assert "--rule_steps: How many: an integer of at least 1." in told


@pytest.mark.slow
def test_importing_programs_defines_no_flags():
    program = """
import importlib, pathlib
from absl import app, flags, logging
before = set(flags.FLAGS)
for folder in ("experiments", "benchmarks"):
    for path in sorted(pathlib.Path(folder).glob("*.py")):
        if "torch" not in path.read_text() or path.stem in ("peers", "run"):
            importlib.import_module(f"{folder}.{path.stem}")
print(sorted(set(flags.FLAGS) - before))
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "[]\n"), ended.stderr


def test_small_programs_are_kept_for_the_next_start(tmp_path, monkeypatch):
    names = "compilation_cache_dir", "persistent_cache_min_compile_time_secs", "compilation_cache_max_size"
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    try:
        # What the user has said about it holds.
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
        command._keep_compiled_programs()
        # Where nothing can be written nothing is kept, or said.
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        (tmp_path / "cache").write_text("no folder")
        command._keep_compiled_programs()
        assert {name: getattr(jax.config, name) for name in before} == before
        (tmp_path / "cache").unlink()
        command._keep_compiled_programs()
        found = [getattr(jax.config, name) for name in before]
        assert found == [str(tmp_path / "cache" / "vpf_jax" / "programs"), 0, 2**30]
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
