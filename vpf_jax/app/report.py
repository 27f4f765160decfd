"""Pages of runs, each one HTML file without network: what was run, results, zoomable curves, tables and pictures.

    python -m vpf_jax report RUN... [--out=report.html]

lays runs side by side: settings that differ, scores, curves over one another, pictures and tables. The page of a single
run is the same with one column; every command writes it into its folder (`follow`). A page is made of what lies in the
folder: config.json, summary.json, metrics.csv or the rows that checkpoints keep, table.md, pictures with their titles.
Not here: what is measured and drawn; when pages are written.
"""

import base64
import csv
import dataclasses
import datetime
import functools
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markdown_it import MarkdownIt
from PIL import Image, UnidentifiedImageError

from vpf_jax.app.folder import SUMMARY, UsageError, damage, read_manifest, read_object, write_text
from vpf_jax.app.tables import cell
from vpf_jax.checkpoint import newest_info
from vpf_jax.settings import Settings, setting, typed

NAME = "report.html"
# Points of a curve in the page; longer ones are thinned.
MOST_POINTS = 2000
# Results of a comparison that are shown without a click.
_SHOWN = 40
# What one looks at first.
_FIRST = ("samples", "filters", "activations")
_KINDS = {".png": "image/png", ".gif": "image/gif"}


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Settings of the command; the runs are its arguments."""

    runs: tuple[str, ...] = setting((".",), "The folder of a run, or of each of several", distinct=False)
    out: str = setting(NAME, "The page; left out: report.html where the command is called")


class Training(NamedTuple):
    """Rows of one training: of the epoch, and of scalars or lists of one number per seed."""

    name: str
    rows: list[dict[str, Any]]
    epochs: int | None = None
    """Of the whole training, where it is known."""

    @property
    def told(self) -> str:
        done = self.rows[-1]["epoch"] if self.rows else 0
        return f"epoch {done:.0f}{f' of {self.epochs}' if self.epochs else ''}"


class Picture(NamedTuple):
    """A file of the folder."""

    name: str
    title: str
    uri: str
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Run:
    """What is known of a run."""

    name: str
    settings: Mapping[str, Any]
    trainings: Sequence[Training]
    summary: Mapping[str, Any] | None
    """Before its end what is known of it, or None."""
    table: str
    """Markdown, or nothing."""
    pictures: Sequence[Picture]
    state: str
    """How far it is, in a sentence."""


class Table(NamedTuple):
    """Of a page."""

    title: str
    header: Sequence[str]
    """Empty: the rows are pairs."""
    rows: Sequence[Sequence[str]]
    folded: bool = False


def run(config: Config) -> Path:
    """Writes the page of runs and says where it lies; raises UsageError for what is no run, or cannot be read."""
    folders = [Path(given) for given in config.runs]
    names = [folder.resolve().name for folder in folders]
    same = len({folder.resolve() for folder in folders}) < len(folders)
    if same:
        raise UsageError(f"got {', '.join(config.runs)}; it takes folders that differ from one another")
    labels = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    runs = [read_run(folder, label) for folder, label in zip(folders, labels, strict=True)]
    out = Path(config.out)
    if not out.parent.is_dir() or out.is_dir():
        raise UsageError(f"got --out={out}; it takes a file in a folder that exists")
    if out.name in (read_manifest(out.parent) or {}):
        raise UsageError(f"got --out={out}, which a run has written itself; it takes another file")
    title = labels[0] if len(labels) == 1 else f"{len(labels)} runs side by side"
    write_text(out, page(runs, title))
    print(f"{out}: {out.stat().st_size / 1000:.0f} KB; open it in a browser")
    return out


def read_run(folder: Path, name: str) -> Run:
    """What lies in the folder of a run, whether it is finished or not.

    Raises:
      UsageError: a folder that holds no run, or a file that cannot be read as what it should be.
    """
    if not (folder / "config.json").is_file():
        what = "holds no config.json" if folder.is_dir() else "is a file" if folder.exists() else "is missing"
        raise UsageError(f"got {folder}, which {what}; it takes the folder of a run")
    settings, summary = _object(folder / "config.json"), None
    if (folder / SUMMARY).exists():
        summary = _object(folder / SUMMARY)
        broken = [file for file, _ in damage(folder) if Path(file).suffix not in (*_KINDS, ".html")]
        if broken:
            raise UsageError(f"{folder / broken[0]} is not as the run has written it; start the run again, to mend it")
    trainings = read_trainings(folder)
    if summary is not None:
        ended = datetime.datetime.fromtimestamp((folder / SUMMARY).stat().st_mtime, datetime.UTC)
        state = f"Finished, {ended:%Y-%m-%d %H:%M:%S} UTC"
    else:
        told = [f"{training.name} {training.told}".strip() for training in trainings if training.rows]
        state = f"Not finished; saved is {', '.join(told) or 'nothing yet'}"
    return Run(name, settings, trainings, summary, read_table(folder), read_pictures(folder), state)


def read_trainings(folder: Path) -> list[Training]:
    """Of metrics.csv, and of the rows that the checkpoints of the folder and of folders inside it keep.

    Raises:
      UsageError: a metrics.csv that is none.
    """
    found = []
    if (folder / "metrics.csv").exists():
        found.append(Training("", _metrics(folder / "metrics.csv")))
    inside = {path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/checkpoints")}
    for own in sorted(inside):
        infos = (newest_info(path) for path in own.glob("checkpoints*"))
        kept = [info["rows"] for info in infos if info and info.get("rows")]
        if kept:
            found.append(Training(name_of(own), max(kept, key=len)))
    return found


def name_of(folder: Path) -> str:
    """Of the training in a folder: of a recipe its title and sizes, else that of the folder."""
    recipe = read_object(folder / "recipe.json") or {}
    title, hidden = recipe.get("title"), recipe.get("hidden")
    if not isinstance(title, str) or not isinstance(hidden, list):
        return folder.name
    return f"{title}, {'-'.join(map(str, hidden))} hidden"


def read_table(folder: Path) -> str:
    """table.md, or nothing."""
    path = folder / "table.md"
    return path.read_text(errors="replace") if path.exists() else ""


def read_pictures(folder: Path) -> list[Picture]:
    """The pictures of a folder with the titles that they keep; what is no picture is left out."""
    paths = [path for path in folder.iterdir() if path.suffix in _KINDS and not path.name.startswith(".")]

    def order(path: Path) -> tuple[int, bool, str]:
        number = next((n for n, first in enumerate(_FIRST) if path.stem.startswith(first)), len(_FIRST))
        return number, path.suffix == ".gif", path.name

    found = (_picture(path, path.stat().st_mtime_ns) for path in sorted(paths, key=order))
    return [picture for picture in found if picture is not None]


def page(runs: Sequence[Run], title: str, *, command: str = "", goes_on: bool = False) -> str:
    """HTML of one run, or of several side by side; of one that goes on the page loads itself again."""
    differ, same = _settings(runs)
    shown = {
        "title": title,
        "command": command,
        "goes_on": goes_on,
        "runs": runs,
        "first": [table for table in (_told(runs), differ, _scores(runs)) if table.rows],
        "prose": [(run.name, _MARKDOWN.render(run.table)) for run in runs if run.table],
        "groups": _pictures(runs),
        "charts": json.dumps(charts(runs)).replace("<", "\\u003c"),
        "last": [table for table in (*_lists(runs), same) if table.rows],
    }
    return _template().render(shown)


def charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Of each quantity that was measured over epochs: its name, and the curves of all trainings."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for training in run.trainings:
            alone = len(runs) == 1 and (training.name or len(run.trainings) == 1)
            parts = [run.name] * (not alone) + [training.name] * bool(training.name)
            names = dict.fromkeys(name for row in training.rows for name in row if name != "epoch")
            for name in names:
                points = [(row["epoch"], float(np.mean(row[name]))) for row in training.rows if name in row]
                points = [point for point in _thinned(points) if math.isfinite(point[1])]
                x, y = zip(*points, strict=True) if points else ((), ())
                curve = {"name": ", ".join(parts), "x": x, "y": [float(f"{value:.6g}") for value in y]}
                found.setdefault(name, []).append(curve)
    return [{"name": name.replace("_", " "), "curves": curves} for name, curves in found.items()]


def _object(path: Path) -> dict[str, Any]:
    found = read_object(path)
    if found is None:
        raise UsageError(f"{path} cannot be read as JSON that holds names and values; put back a copy of it")
    return found


def _metrics(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="") as file:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file, strict=True)]
    except (ValueError, TypeError, AttributeError, csv.Error):
        rows = [{}]
    if any("epoch" not in row for row in rows):
        raise UsageError(f"{path} cannot be read as a table of numbers; start the run again, to mend it")
    return rows


@functools.lru_cache(maxsize=32)
def _picture(path: Path, _written: int) -> Picture | None:
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as image:
            kept = image.info.get("Title") or image.info.get("comment") or path.stem
            width, height = image.size
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return None
    told = kept.decode(errors="replace") if isinstance(kept, bytes) else kept
    uri = f"data:{_KINDS[path.suffix]};base64,{base64.b64encode(content).decode()}"
    return Picture(path.name, told, uri, width, height)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS`, the last among them."""
    step = -(-len(points) // MOST_POINTS)
    return points[::-1][:: max(step, 1)][::-1]


def _text(value: Any) -> str:
    """A value of JSON in a cell."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value) if isinstance(value, dict) else typed(value)


def _told(runs: Sequence[Run]) -> Table:
    """How far each is, and where and how long it ran."""
    facts = {
        "state": lambda run: run.state,
        "version": lambda run: (run.summary or {}).get("version"),
        "JAX": lambda run: (run.summary or {}).get("jax_version"),
        "device": lambda run: (run.summary or {}).get("device"),
        "training": lambda run: _seconds((run.summary or {}).get("train_seconds")),
    }
    rows = [[name, *(_text(fact(run)) for run in runs)] for name, fact in facts.items()]
    # Of a single run the head of the page says how far it is.
    rows = [row for row in rows[len(runs) == 1 :] if set(row[1:]) != {"-"}]
    return Table("", _header(runs), rows)


def _header(runs: Sequence[Run]) -> list[str]:
    """Over values of runs; none over those of a single one."""
    return ["", *(run.name for run in runs)] if len(runs) > 1 else []


def _seconds(given: Any) -> str | None:
    if not isinstance(given, int | float):
        return None
    return f"{given:.1f} s" if given < 120 else f"{given / 60:.1f} min" if given < 7200 else f"{given / 3600:.1f} h"


def _scores(runs: Sequence[Run]) -> Table:
    """Numbers of the summaries; those of several seeds as mean +- standard error."""
    beside = {
        "version",
        "jax_version",
        "device",
        "train_seconds",
        "seeds",
        *(name for run in runs for name in run.settings),
    }
    found = [dict(_flat(run.summary or {}, len((run.summary or {}).get("seeds", [])))) for run in runs]
    names = [name for name in dict.fromkeys(name for some in found for name in some) if name not in beside]
    # The table of a single run says better what lies deeper.
    names = [name for name in names if len(runs) > 1 or ", " not in name]
    rows = [[name.replace("_", " "), *(_text(some.get(name)) for some in found)] for name in names]
    return Table("Results", _header(runs), rows, folded=len(rows) > _SHOWN)


def _flat(value: Any, num_seeds: int, name: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, num_seeds, f"{name}, {key}" if name else str(key))
    elif isinstance(value, list):
        if len(value) == num_seeds and all(isinstance(one, int | float) for one in value):
            yield name, cell(value, 4)
    else:
        yield name, value


def _lists(runs: Sequence[Run]) -> list[Table]:
    """Of the summaries: lists of things of the same names, such as the samplers that were compared."""
    found = []
    for run in runs:
        for name, value in (run.summary or {}).items():
            if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
                columns = [key for key in value[0] if not isinstance(value[0][key], dict | list)]
                rows = [[_text(one.get(column)) for column in columns] for one in value]
                title = " - ".join([name.replace("_", " ").capitalize(), *([run.name] if len(runs) > 1 else [])])
                found.append(Table(title, [column.replace("_", " ") for column in columns], rows))
    return found


def _settings(runs: Sequence[Run]) -> tuple[Table, Table]:
    """Those that differ, and those that are the same in all."""
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    rows = {name: [_text(run.settings[name]) if name in run.settings else "" for run in runs] for name in names}
    differ = [[name, *values] for name, values in rows.items() if len(set(values)) > 1]
    same = [[name, values[0]] for name, values in rows.items() if len(set(values)) == 1]
    alone = len(runs) == 1
    title = "Settings" if alone else "Settings that are the same in all"
    return Table("Settings that differ", _header(runs), differ), Table(title, [], same, folded=not alone)


def _pictures(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, Picture]]]]:
    """Those of one name together: the name, and names of runs with their picture."""
    names = dict.fromkeys(picture.name for run in runs for picture in run.pictures)
    return [(name, [(run.name, one) for run in runs for one in run.pictures if one.name == name]) for name in names]


@functools.cache
def _template() -> jinja2.Template:
    folder = resources.files(__package__) / "pages"
    pages = {path.name: path.read_text() for path in folder.iterdir() if path.name.startswith("report.")}
    loader = jinja2.DictLoader(pages)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(NAME)


# Of a table.md that somebody else has written no HTML passes.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
