"""PNG figures: tiles of images, curves over epochs, histograms. Needs matplotlib (the extra `experiments`).

Each function takes arrays and a path, and replaces the file atomically. Not here: what the arrays mean.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike


def save_tiles(path: str | Path, images: ArrayLike, *, title: str, columns: int = 14, signed: bool = False) -> None:
    """Draws images side by side, on one grey scale.

    Args:
      path: the PNG file.
      images: [n, height, width].
      title: above the tiles.
      columns: tiles in a row.
      signed: values of either sign, such as weights: each tile on its own symmetric scale, blue below 0, red above.
        Otherwise values in [0, 1], 1 drawn white.
    """
    images = np.asarray(images)
    rows = -(-len(images) // columns)
    height, width = images.shape[1:]
    sheet = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1), np.nan)
    for n, image in enumerate(images):
        top, left = (n // columns) * (height + 1) + 1, (n % columns) * (width + 1) + 1
        scale = max(float(np.abs(image).max()), 1e-12) if signed else 1.0
        sheet[top : top + height, left : left + width] = image / scale
    figure = Figure(figsize=(columns * 0.6, rows * 0.6 + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(sheet, cmap="RdBu_r" if signed else "gray", vmin=-1 if signed else 0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title)
    _save(figure, path)


def save_curves(path: str | Path, curves: Mapping[str, tuple[ArrayLike, ArrayLike]], *, title: str) -> None:
    """Draws one panel per named curve (epochs, values) over a common epoch axis; empty curves are left out."""
    drawn = {name: curve for name, curve in curves.items() if len(np.asarray(curve[0]))}
    figure = Figure(figsize=(7, 2.1 * len(drawn) + 0.6), layout="constrained")
    panels = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, (epochs, values)) in zip(panels, drawn.items(), strict=True):
        marker = "o" if len(np.asarray(epochs)) < 30 else ""
        axes.plot(np.asarray(epochs), np.asarray(values), marker=marker, markersize=3)
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("epoch")
    figure.suptitle(title)
    _save(figure, path)


def save_histograms(
    path: str | Path, values: Sequence[ArrayLike], *, names: Sequence[str], xlabel: str, title: str
) -> None:
    """Draws a histogram over [0, 1] of each set of values, one panel under the other."""
    figure = Figure(figsize=(7, 1.9 * len(values) + 0.6), layout="constrained")
    panels = figure.subplots(len(values), 1, sharex=True, squeeze=False)[:, 0]
    for axes, some, name in zip(panels, values, names, strict=True):
        axes.hist(np.asarray(some), bins=np.linspace(0, 1, 41))
        axes.set_ylabel(f"units, {name}")
    panels[-1].set_xlabel(xlabel)
    figure.suptitle(title)
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, format="png", dpi=100)
    os.replace(temporary, path)
