"""The playground: one HTML file that holds the trained machines of a run and a Gibbs sampler in JavaScript.

    python -m vpf_jax playground RUN

The page needs no network. One watches the machines dream, draws, erases and holds pixels, has an example repaired, and
sees the hidden layers. What it samples is said at the head of `pages/sampler.js`, and on the page: of one machine Gibbs
sweeps, with held pixels the conditional distribution given them; of a stack the deep belief network that `confabulate`
samples with one step below the top machine and a long chain in it, and with held pixels its conditional distribution.

Weights are stored as float32, as float16, or as whole multiples of a 127th of the largest of their matrix (int8); what
is stored is the machine that the page samples. Biases are float32. Not here: training, the command line (`command`).
"""

import base64
import dataclasses
import html
import json
import math
import re
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vpf_jax
from vpf_jax import checks
from vpf_jax.app.folder import UsageError, read_object, write_text
from vpf_jax.app.keys import key_for
from vpf_jax.checkpoint import CheckpointError
from vpf_jax.data import Dataset, DatasetError, binarise, load_dataset
from vpf_jax.data.loading import OF_FILES, Names, is_found
from vpf_jax.data.streamed import open_streamed
from vpf_jax.evaluate import generation
from vpf_jax.loading import load_stack
from vpf_jax.machine import BoltzmannMachine
from vpf_jax.settings import Settings, setting
from vpf_jax.stack import Stack, check_stack
from vpf_jax.units import two_valued

PRECISIONS = {
    "float32": "32-bit floating-point numbers, as they were trained",
    "float16": "16-bit floating-point numbers, within one part in 2,000 of what was trained",
    "int8": "whole numbers from -127 to 127 times one factor per matrix, within 0.4 % of its largest weight",
}


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Settings of the command; all but the first are flags."""

    run: str = setting(".", "The folder of the run")
    out: str | None = setting(None, "File to write; left out: playground.html in the folder of the run")
    precision: str = setting("float16", "In which weights are stored, and sampled", choices=tuple(PRECISIONS))
    examples: int = setting(10, "Test images that the page can repair; 0 needs no data", least=0, most=40)
    data_dir: str | None = setting(None, "Folder with the data; left out: as the run had it")
    seed_index: int | None = setting(None, "Which of several seeds that were trained together, from 0", least=0)


def run(config: Config) -> Path:
    """Writes the page, says where it is, and returns its path; raises as `write_playground`."""
    options = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    path = write_playground(Path(options.pop("run")), **options)
    print(f"{path}: {path.stat().st_size / 1000:.0f} KB; open it in a browser")
    return path


def write_playground(
    run: str | Path,
    out: str | Path | None = None,
    *,
    precision: str = "float16",
    examples: int = 10,
    data_dir: str | Path | None = None,
    seed_index: int | None = None,
) -> Path:
    """Writes the playground of a run, atomically.

    Args:
      run: the folder of the run, or of its checkpoints, as `load_stack` takes it; its config.json names the data.
      out: the file; None: playground.html in the folder of the run.
      precision: of the weights in the page, one of `PRECISIONS`.
      examples: test images that it can repair, the first of each class in turn; 0: none, and no data are read. Then the
        chains start from uniform bits and not from the "-P" prior, and pixels are laid out as square as they can be.
      data_dir: folder of the data; None: as config.json has it.
      seed_index: which of several seeds that were trained together.

    Returns:
      The file.

    Raises:
      UsageError: no folder, or one without a trained stack, or with one that the page cannot sample.
      SettingError: an option out of range.
      vpf_jax.data.DatasetError: data that cannot be read.
      vpf_jax.checkpoint.CheckpointError: all checkpoints are damaged.
    """
    run = Path(run)
    checks.one_of("precision", precision, tuple(PRECISIONS))
    examples = checks.integer("examples", examples, 0)
    if not run.is_dir():
        raise UsageError(f"got {run}, which is no folder; the playground takes the folder of a run")
    path = run / "playground.html" if out is None else Path(out)
    checks.require(path.parent.is_dir() and not path.is_dir(), "out", str(path), "a file in a folder that exists")
    try:
        stack = load_stack(run, seed_index)
        page = playground_page(
            stack,
            run.resolve().name,
            precision=precision,
            data=_data(run, data_dir) if examples else None,
            examples=examples,
        )
    except (checks.SettingError, UsageError, DatasetError, CheckpointError):
        raise
    except ValueError as error:
        raise UsageError(str(error)) from None
    write_text(path, page)
    return path


def playground_page(
    stack: Stack, title: str, *, precision: str = "float16", data: Dataset | None = None, examples: int = 10
) -> str:
    """The page of a stack.

    Args:
      stack: machines of two-valued units. Below the top one, two layers each without weights inside the lower one.
      title: what the page is called.
      precision: of the weights, one of `PRECISIONS`.
      data: where examples, the shape of the image and the prior of the top layer come from; None: see
        `write_playground`.
      examples: at most so many of its test images.

    Raises:
      ValueError: a stack that the page cannot sample, data that do not fit it, or weights beyond the precision.
    """
    _check(stack)
    num_visible = stack[0].sizes[0]
    content: dict[str, Any] = {
        "title": title,
        "precision": PRECISIONS[precision],
        "machines": [stored_machine(machine, precision) for machine in stack],
        "shape": _layout(num_visible),
        "prior": None,
        "examples": [],
        "version": vpf_jax.__version__,
    }
    if data is not None:
        if (found := data.num_visible) != num_visible:
            raise ValueError(f"got data {data.name} of {found} pixels for a stack of {num_visible}; they are the same")
        content |= {
            "dataset": data.name,
            "shape": list(data.shape) if len(data.shape) == 2 else _layout(num_visible),
            "prior": stored(_prior(stack, data), "float32"),
            "examples": _examples(data, examples),
        }
    return assembled(content)


def assembled(content: dict[str, Any]) -> str:
    """The page around what one page differs from another by; also of the content of a page that is there already."""
    parts = {
        "TITLE": html.escape(content["title"]),
        "STYLE": _source("playground.css"),
        # No "</script>" may end the element early, whatever the names are.
        "CONTENT": json.dumps(content).replace("<", r"\u003c"),
        "SAMPLER": _source("sampler.js"),
        "PAGE": _source("playground.js"),
    }
    return re.sub("@@([A-Z]+)@@", lambda place: parts[place[1]], _source("playground.html"))


def stored_machine(machine: BoltzmannMachine, precision: str) -> dict[str, Any]:
    """A machine as values of JSON, from which `pages/sampler.js` makes it again."""
    directed = machine.backward is not None
    kinds = [two_valued(unit, "the playground") for unit in machine.layer_units]

    def matrices(blocks: tuple[Any, ...], symmetric: bool = False) -> list[dict[str, Any] | None]:
        return [None if block is None else stored(block, precision, symmetric=symmetric) for block in blocks]

    return {
        "units": [{"low": unit.low, "high": unit.high} for unit in kinds],
        "biases": [stored(bias, "float32") for bias in machine.biases],
        "weights": matrices(machine.weights),
        "backward": matrices(machine.downward) if directed else None,
        "intra": matrices(machine.intra, symmetric=not directed),
    }


def stored(array: Any, precision: str, *, symmetric: bool = False) -> dict[str, Any]:
    """An array as values of JSON: shape, format, and the numbers in base64, little-endian, row by row.

    Args:
      array: numbers.
      precision: one of `PRECISIONS`.
      symmetric: a symmetric matrix with zero diagonal, of which the entries above the diagonal are kept.

    Raises:
      ValueError: numbers that are not finite, or beyond the range of the precision.
    """
    values = np.asarray(array, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("got parameters that are not finite; the playground takes finite ones")
    shape = list(values.shape)
    numbers = values[np.triu_indices(len(values), 1)] if symmetric else values.ravel()
    found: dict[str, Any] = {"shape": shape, "format": precision, "symmetric": symmetric}
    if precision == "int8":
        found["scale"] = float(np.abs(numbers).max(initial=0) / 127) or 1.0
        kept = np.round(numbers / found["scale"]).astype("<i1")
    else:
        with np.errstate(over="ignore"):
            kept = numbers.astype({"float32": "<f4", "float16": "<f2"}[precision])
        if not np.isfinite(kept).all():
            raise ValueError(f"got weights up to {np.abs(numbers).max():g}; {precision} holds up to 65504")
    return found | {"data": base64.b64encode(kept.tobytes()).decode()}


def _check(stack: Stack) -> None:
    """Raises ValueError for a stack that the page cannot sample."""
    check_stack(stack)
    for i, machine in enumerate(stack[:-1]):
        if len(machine.sizes) != 2 or machine.intra[0] is not None:
            inside = "" if machine.intra[0] is None else " and weights inside its lower layer"
            raise ValueError(
                f"got a stack whose machine {i}, below the top one, has layer sizes {machine.sizes}{inside}; the "
                "playground takes two layers there, without weights inside the lower one"
            )


def _data(run: Path, data_dir: str | Path | None) -> Dataset:
    """The data of a run, as its config.json names them."""
    config = read_object(run / "config.json") or read_object(run / "recipe.json") or {}
    name = config.get("dataset")
    if not isinstance(name, str) or name not in Names():
        told = (
            "no config.json that names its data" if name is None else f"a run on {name!r}, which no source loads here"
        )
        raise UsageError(f"{run} holds {told}; --examples=0 writes a page without examples")
    try:
        how = {key: config[key] for key in OF_FILES if key in config} if is_found(name) else {}
        place = config.get("data_dir") if data_dir is None else data_dir
        return open_streamed(name, place, **how).data if config.get("stream") else load_dataset(name, place, **how)
    except DatasetError as error:
        raise DatasetError(f"{error}; or --examples=0 for a page without examples") from None


def _prior(stack: Stack, data: Dataset) -> np.ndarray:
    """Mean share of the upper value of each top unit over the training images: the "-P" start of `confabulate`."""
    pixels, top = (two_valued(unit, "the playground") for unit in (stack[0].layer_units[0], stack[-1].layer_units[-1]))
    visible = pixels.at(jnp.asarray(binarise(data.train.examples), bool)).astype(pixels.dtype)
    if len(stack) == 1 and len(stack[0].sizes) == 1:
        mean: jax.Array = jnp.mean(visible.astype(jnp.float32), axis=0)
    else:
        mean = generation.activations(key_for(0, "start of the playground"), stack, visible)[-1]
    return np.asarray(top.share(mean))


def _examples(data: Dataset, count: int) -> list[dict[str, Any]]:
    """Test images as bits, eight in a byte, one class after another."""
    labels = np.zeros(len(data.test), int) if data.test.labels is None else data.test.labels
    # The first of every class, then the second of every class, ...
    turn = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)], int)
    chosen = np.lexsort((labels, turn))[:count]
    packed = np.packbits(binarise(data.test.examples[chosen]), axis=1)
    return [
        {"label": int(labels[i]) if data.classes else None, "bits": base64.b64encode(row.tobytes()).decode()}
        for i, row in zip(chosen, packed, strict=True)
    ]


def _layout(count: int) -> list[int]:
    """Rows and columns of so many pixels, as square as they can be without a rest."""
    rows = next(n for n in range(math.isqrt(count), 0, -1) if count % n == 0)
    return [rows, count // rows]


def _source(name: str) -> str:
    return resources.files("vpf_jax.app").joinpath("pages", name).read_text(encoding="utf-8")
