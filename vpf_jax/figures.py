"""PNG figures: images in tiles or rows, curves, lines with error bars, histograms, rasters, confusion matrices.

Each function takes arrays and a path, and replaces the file atomically. Needs matplotlib (the extra `experiments`). Not
here: what the arrays mean.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vpf_jax.checks import Numbers

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "matplotlib":
        raise
    raise ModuleNotFoundError(
        "vpf_jax.figures needs matplotlib, not installed here: install vpf_jax[experiments]", name="matplotlib"
    ) from None


def save_tiles(path: str | Path, images: Numbers, *, title: str, columns: int = 14, signed: bool = False) -> None:
    """Draws images side by side, on one grey scale.

    Args:
      path: the PNG file.
      images: [n, height, width].
      title: above the tiles.
      columns: tiles in a row.
      signed: values of either sign, such as weights: each tile on its own symmetric scale, blue below 0, red above.
        Otherwise values in [0, 1], 1 drawn white.
    """
    figure, axes = _tiles(np.asarray(images), columns, title, signed)
    axes.set_axis_off()
    _save(figure, path)


def save_reconstructions(path: str | Path, rows: Mapping[str, Numbers], *, title: str) -> None:
    """Draws one row of images per entry, its name at the left: originals, corrupted ones, repairs of the same.

    Args:
      path: the PNG file.
      rows: name of the row and its images [n, height, width], values in [0, 1], 1 drawn white; the same shape in all.
      title: above the rows.
    """
    images = np.stack([np.asarray(row) for row in rows.values()])
    _, count, height, width = images.shape
    figure, axes = _tiles(images.reshape(-1, height, width), count, title)
    figure.set_figwidth(figure.get_figwidth() + 0.12 * max(map(len, rows)))
    axes.set_xticks([])
    axes.set_yticks((height + 1) * (np.arange(len(rows)) + 0.5), labels=list(rows))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _save(figure, path)


def save_curves(path: str | Path, curves: Mapping[str, tuple[Numbers, Numbers]], *, title: str) -> None:
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


def save_lines(
    path: str | Path,
    lines: Mapping[str, tuple[Numbers, Numbers, Numbers | None]],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    logx: bool = False,
    logy: bool = False,
) -> None:
    """Draws several lines (x, y, standard errors of y or None) in one panel, with a legend."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, (x, y, standard_error) in lines.items():
        axes.errorbar(x, y, yerr=standard_error, label=name, marker="o", markersize=3, capsize=2)
    axes.set(
        xlabel=xlabel,
        ylabel=ylabel,
        title=title,
        xscale="log" if logx else "linear",
        yscale="log" if logy else "linear",
    )
    if not logx:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # an axis of epochs; a short one has fractions still
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def save_panels(
    path: str | Path,
    panels: Mapping[str, Mapping[str, tuple[Numbers, Numbers, Numbers | None]]],
    *,
    xlabel: str,
    title: str,
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Draws panels under one another over a common x axis, each with its lines and a line at 0.

    Args:
      path: the PNG file.
      panels: label of the y axis, and the panel's entries: name, and (x, y, None) for a line or (x, y, standard errors
        of y) for points with error bars. The first entry is drawn on top.
      xlabel: of the common axis.
      title: above the panels.
      limits: of the y axis, for some of the panels.
    """
    figure = Figure(figsize=(8, 2.8 * len(panels) + 0.6), layout="constrained")
    axes_of = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (ylabel, entries) in zip(axes_of, panels.items(), strict=True):
        for depth, (name, (x, y, standard_error)) in enumerate(entries.items()):
            order = 10 - depth
            if standard_error is None:
                axes.plot(x, y, label=name, zorder=order)
            else:
                axes.errorbar(x, y, yerr=standard_error, fmt="o", markersize=3, capsize=2, label=name, zorder=order)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_ylabel(ylabel)
        axes.grid(alpha=0.3)
        axes.legend(loc="best")
        if limits and ylabel in limits:
            axes.set_ylim(*limits[ylabel])
    axes_of[-1].set_xlabel(xlabel)
    figure.suptitle(title)
    _save(figure, path)


def save_raster(
    path: str | Path,
    spikes: Mapping[str, tuple[Numbers, Numbers]],
    images: Mapping[str, Numbers],
    *,
    title: str,
) -> None:
    """Draws spikes as dots, units over times, one colour per group of units, and a column of images beside them.

    Args:
      path: the PNG file.
      spikes: name of a group, and (times, units) of its spikes.
      images: name and image [height, width] with values in [0, 1], 1 drawn white.
      title: above the picture.
    """
    figure = Figure(figsize=(11, 6), layout="constrained")
    grid = figure.add_gridspec(len(images), 2, width_ratios=(4, 1))
    axes = figure.add_subplot(grid[:, 0])
    for name, (times, units) in spikes.items():
        axes.plot(times, units, ".", markersize=2, label=name)
    axes.set(xlabel="time, mean waiting times of a neuron without input", ylabel="unit")
    axes.legend(loc="upper right", markerscale=5)
    for row, (name, image) in enumerate(images.items()):
        panel = figure.add_subplot(grid[row, 1])
        panel.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        panel.set_title(name)
        panel.set_axis_off()
    figure.suptitle(title)
    _save(figure, path)


def save_histograms(
    path: str | Path, values: Sequence[Numbers], *, names: Sequence[str], xlabel: str, title: str
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


def save_confusion(path: str | Path, counts: Numbers, *, title: str) -> None:
    """Draws a confusion matrix with its counts: a row per true class, a column per predicted one.

    Args:
      path: the PNG file.
      counts: [classes, classes]; the shade of a field is its share of the row, on a square-root scale so that rare
        errors can be seen.
      title: above the matrix.
    """
    counts = np.asarray(counts)
    shares = np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        axes.text(
            column, row, str(count), ha="center", va="center", color="white" if shares[row, column] > 0.6 else "black"
        )
    axes.set(xlabel="predicted", ylabel="true", xticks=range(len(counts)), yticks=range(len(counts)), title=title)
    _save(figure, path)


def _tiles(images: np.ndarray, columns: int, title: str, signed: bool = False) -> tuple[Figure, Axes]:
    """Images [n, height, width] side by side, a white line around each; scales as `save_tiles` says."""
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
    axes.set_title(title)
    return figure, axes


def _save(figure: Figure, path: str | Path) -> None:
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(temporary, format="png", dpi=100)
        os.replace(temporary, path)
    except OSError as error:
        # The system does not say which file it could not write.
        raise OSError(error.errno, error.strerror, str(path)) from error
