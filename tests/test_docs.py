"""The README and the sources of the documentation: what they name exists. Not here: the build, which is `make docs`."""

import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vpf_jax
from vpf_jax.__main__ import COMMANDS
from vpf_jax.app import training
from vpf_jax.settings import options

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SOURCES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"] + [
    path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts
]
SCRIPTS = sorted(
    path.stem
    for path in (ROOT / "experiments").glob("*.py")
    if "command.start(Config" in path.read_text(encoding="utf-8")
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands(path: Path) -> list[str]:
    """The lines of a page's shell blocks, comments gone and continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(shlex.split(line, comments=True)) for line in lines if shlex.split(line, comments=True)]


def prose(path: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Of the headings, as forges and MyST name them."""
    headings = re.findall(r"^#+ (.*)$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short_and_begins_with_a_picture():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert any(line.startswith("![") for line in lines[:20])


def test_headline_numbers_are_those_of_the_pages():
    table = (ROOT / "README.md").read_text().partition("## Results")[2].partition("\n## ")[0]
    numbers = re.findall(r"-?\d+\.\d+(?: \+- \d+\.\d+)?", table)
    assert len(numbers) >= 10
    pages = [*(DOCS / "results").glob("*.md"), DOCS / "speed.md", ROOT / "benchmarks" / "README.md"]
    told = "\n".join(path.read_text() for path in pages)
    assert [number for number in numbers if number not in told] == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if link.startswith(("https://", "http://")):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{link} in {name(path)}"
        assert not anchor or anchor in anchors(target), f"{link} in {name(path)}"


def test_every_picture_stands_on_a_page():
    pages = "\n".join(path.read_text() for path in SOURCES)
    for picture in (DOCS / "pictures").iterdir():
        assert f"pictures/{picture.name})" in pages


@pytest.mark.parametrize("path", [path for path in SOURCES if commands(path)], ids=name)
def test_commands_can_be_given(path):
    for line in commands(path):
        program, *words = line.removeprefix("vpf ").split()
        if line.startswith("vpf "):
            program, *words = f"python -m vpf_jax {line.removeprefix('vpf ')}".split()
        launched = re.search(r"\bexperiments/launch/\S+", line)
        if launched:
            assert (ROOT / launched[0]).exists(), line
            if launched[0].endswith(".sh"):
                assert_settings_are_taken(training.Config, [word for word in words if word.startswith("--")])
        elif program == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), line
        elif program == "pip":
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            extras = re.search(r"\[(.*)\]", line)
            assert not extras or set(extras[1].split(",")) <= set(project["optional-dependencies"]), line
        elif words[1].startswith("experiments."):
            assert_settings_are_taken(importlib.import_module(words[1]).Config, words[2:])
        elif words[1] == "vpf_jax":
            command = COMMANDS[words[2]]
            config = importlib.import_module(command.module).Config
            given = [word for word in words[3:] if not word.startswith("-")]
            assert len(given) == len(command.arguments) or options(config)[command.arguments[0]].many, line
            assert_settings_are_taken(config, [word for word in words[3:] if word.startswith("-")])
        else:
            assert (program, words[0]) == ("python", "-m"), line
            assert importlib.util.find_spec(words[1]), line


def assert_settings_are_taken(config: type, flags: list[str]) -> None:
    known = {option.flag: option for option in options(config).values()}
    given = {}
    for flag, text in (flag.removeprefix("--").split("=") for flag in flags):
        given[known[flag].name] = known[flag].read(text.replace("SEED", "0"))
    config(**given)


def test_each_script_has_one_page_of_results():
    pages = [path for path in (DOCS / "results").glob("*.md") if path.stem != "index"]
    assert len(SCRIPTS) == 16
    for script in SCRIPTS:
        run = re.compile(rf"python -m experiments\.{script}\b")
        (page,) = [path for path in pages if any(run.match(line) for line in commands(path))]
        assert f"`{script}`" in (DOCS / "results" / "index.md").read_text()
        assert page.stem in (DOCS / "results" / "index.md").read_text()


def test_every_module_has_one_place_in_the_reference():
    told = re.findall(r"automodule:: (\S+)", "\n".join(path.read_text() for path in (DOCS / "api").glob("*.rst")))
    files = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "vpf_jax").rglob("*.py"))
    assert sorted(told) == sorted(".".join(file.parts) for file in files if not file.name.startswith("__"))


def test_every_public_function_has_a_purpose():
    table = (DOCS / "functions.md").read_text()
    told = set(re.findall(r"\{py:func\}`([\w.]+)`", table))
    told = {one.rpartition(".")[2] for one in told}
    types = {name for name in vpf_jax.__all__ if isinstance(getattr(vpf_jax, name), type) or name in ("Stack", "State")}
    assert set(vpf_jax.__all__) - types <= told


def test_broken_links_of_the_built_site_are_found(tmp_path):
    (tmp_path / "index.html").write_text(
        '<h1 id="top">.</h1><a href="#top">1</a> <a href="other.html#there">2</a> <img src="gone.png">'
        '<a href="other.html#nowhere">3</a> <a href="https://example.org/x">4</a>'
    )
    (tmp_path / "other.html").write_text('<p id="there">.</p> <a href="index.html">back</a>')
    check = [sys.executable, DOCS / "check_links.py", tmp_path]
    told = subprocess.run(check, capture_output=True, text=True)
    assert told.returncode == 1
    assert told.stdout.splitlines() == [
        "index.html: gone.png: no such file",
        "index.html: other.html#nowhere: no such place in the page",
    ]
    (tmp_path / "index.html").write_text('<a href="other.html#there">2</a>')
    assert subprocess.run(check, capture_output=True).returncode == 0
