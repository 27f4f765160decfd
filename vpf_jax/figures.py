"""Figures: images in tiles or rows, curves, lines with error bars, histograms, rasters, matrices, scatters.

Each function takes arrays and gives a matplotlib `Figure`, which a notebook shows as it stands and `save` writes into a
file. Figures that follow one another become a GIF (`animation`). Lines have the colours of Okabe and Ito (2008), which
colour-blind readers tell apart, then other dashes; values of either sign lie between blue and red, images on a scale of
grey, shares on one of blue. Not here: what the arrays mean.
"""

import base64
import dataclasses
import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from vpf_jax import checks
from vpf_jax.atomic import write_bytes
from vpf_jax.checks import Numbers

# Okabe and Ito's, the darker ones first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DOTS_PER_INCH = 100
# Inches: the side of a square tile, and the widest row of tiles that nobody has asked for.
_TILE, _WIDEST = 0.6, 8.4
# Dots of a scatter; of more, the density is drawn. And bins of a histogram of densities.
_MOST_DOTS, _BINS = 4000, 40
_CYCLE = cycler(linestyle=["-", "--", ":", "-."]) * cycler(color=COLOURS)


@dataclasses.dataclass(frozen=True)
class Animation:
    """A GIF, which a notebook shows as it stands."""

    gif: bytes = dataclasses.field(repr=False)

    def _repr_html_(self) -> str:
        return f'<img src="data:image/gif;base64,{base64.b64encode(self.gif).decode()}" alt="animation">'


def save(path: str | Path, picture: Figure | Animation) -> None:
    """Replaces a file by a picture, atomically.

    Args:
      path: its suffix gives the format of a figure: PNG where there is none, or such as .svg and .pdf. A PNG and an SVG
        keep the figure's title.
      picture: of an animation the file is a GIF whatever its name.

    Raises:
      SettingError: a suffix that matplotlib knows no format for.
      OSError: the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix[1:].lower() or "png"
    if isinstance(picture, Figure):
        known = sorted(picture.canvas.get_supported_filetypes())
        checks.require(suffix in known, "path", str(path), f"the suffix of a picture: {', '.join(known)}")
    write_bytes(path, picture.gif if isinstance(picture, Animation) else _drawn(picture, suffix))


def animation(frames: Sequence[Figure], *, title: str = "", seconds: float = 0.5) -> Animation:
    """Figures one after the other, without end; the last one stays four times as long.

    Args:
      frames: one or more, of one size.
      title: kept in the file, as its comment.
      seconds: that each is seen.

    Raises:
      SettingError: no figures, figures of several sizes, or a time that is not positive.
    """
    checks.positive("seconds", seconds)
    sizes = {tuple(frame.get_size_inches()) for frame in frames}
    checks.require(len(sizes) == 1, "frames", f"{len(frames)} figures of {len(sizes)} sizes", "figures of one size")
    images = [Image.open(io.BytesIO(_drawn(frame, "png"))).convert("RGB") for frame in frames]
    durations = [int(1000 * seconds)] * (len(images) - 1) + [int(4000 * seconds)]
    file = io.BytesIO()
    told = {"duration": durations, "loop": 0, "comment": title.encode()}
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], **told)
    return Animation(file.getvalue())


def tiles(images: Numbers, *, title: str, columns: int | None = None, signed: bool = False) -> Figure:
    """Images side by side, on one scale.

    Args:
      images: [n, height, width], or colours [n, height, width, 3]; any height and width, a single row of pixels too.
      title: above the tiles.
      columns: tiles in a row; None: as many as fit.
      signed: values of either sign, such as weights: each tile on its own symmetric scale, blue below 0, red above.
        Otherwise values in [0, 1], 1 drawn white.

    Raises:
      SettingError: arrays of another shape, or colours that are to have a sign.
    """
    figure, axes = _tiles(_images("images", images, signed), columns, title, signed)
    axes.set_axis_off()
    return figure


def reconstructions(rows: Mapping[str, Numbers], *, title: str) -> Figure:
    """One row of images per entry, its name at the left: originals, corrupted ones, repairs of the same.

    Args:
      rows: name of the row and its images [n, height, width] or [n, height, width, 3], values in [0, 1], 1 drawn white;
        the same shape in all.
      title: above the rows.

    Raises:
      SettingError: no rows, or arrays of other shapes.
    """
    checks.require(rows, "rows", rows, "one or more")
    some = {name: _images(name, row) for name, row in rows.items()}
    shapes = {images.shape for images in some.values()}
    checks.require(len(shapes) == 1, "rows", f"images of shapes {sorted(shapes)}", "images of the same shape in all")
    ((count, height, *_),) = shapes
    figure, axes = _tiles(np.concatenate(list(some.values())), count, title)
    figure.set_figwidth(figure.get_figwidth() + 0.12 * max(map(len, rows)))
    axes.set_xticks([])
    axes.set_yticks((height + 1) * (np.arange(len(rows)) + 0.5), labels=list(rows))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def curves(curves: Mapping[str, tuple[Numbers, Numbers]], *, title: str) -> Figure:
    """One panel per named curve (epochs, values) over a common epoch axis; empty curves are left out."""
    drawn = {name: curve for name, curve in curves.items() if len(np.asarray(curve[0]))}
    checks.require(drawn, "curves", curves, "one or more that are not empty")
    figure, panels = _panels(len(drawn), title, width=7, height=2.1)
    for axes, (name, (epochs, values)) in zip(panels, drawn.items(), strict=True):
        marker = "o" if len(np.asarray(epochs)) < 30 else ""
        axes.plot(np.asarray(epochs), np.asarray(values), marker=marker, markersize=3)
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("epoch")
    return figure


def lines(
    lines: Mapping[str, tuple[Numbers, Numbers, Numbers | None]],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    logx: bool = False,
    logy: bool = False,
) -> Figure:
    """Several lines (x, y, standard errors of y or None) in one panel, with a legend."""
    figure = _figure(7, 4.5, title)
    axes = _axes(figure)
    for name, (x, y, standard_error) in lines.items():
        axes.errorbar(x, y, yerr=standard_error, label=name, marker="o", markersize=3, capsize=2)
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log" if logx else "linear", yscale="log" if logy else "linear")
    if not logx:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # an axis of epochs; a short one has fractions still
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def crossed(
    lines: Mapping[str, tuple[Numbers, Numbers, Numbers | None]],
    *,
    xlabels: Sequence[str],
    ylabels: Sequence[str],
    title: str,
) -> Figure:
    """A panel for each pair of an x and a y quantity of the same points; the x axes are logarithmic.

    Args:
      lines: name, and x [n, quantities], y [n, quantities] and standard errors of y or None; its points are joined.
      xlabels: one per x quantity.
      ylabels: one per y quantity.
      title: above the panels.

    Raises:
      SettingError: arrays that do not have one column per label.
    """
    figure = _figure(5 * len(xlabels), 3.6 * len(ylabels) + 0.6, title)
    grid = figure.subplots(len(ylabels), len(xlabels), squeeze=False, sharex="col", sharey="row")
    # A line of one point is told by its marker, where colours come again.
    marked = cycler(linestyle=["-", "--", ":", "-."], marker=["o", "s", "^", "D"]) * cycler(color=COLOURS)
    for axes in grid.ravel():
        axes.set_prop_cycle(marked)
    for name, (x, y, standard_error) in lines.items():
        for given, labels in ((x, xlabels), (y, ylabels)):
            shape = np.shape(given)
            checks.require(len(shape) == 2 and shape[1] == len(labels), "lines", shape, f"[points, {len(labels)}]")
        for row, column in np.ndindex(grid.shape):
            error = None if standard_error is None else np.asarray(standard_error)[:, row]
            points = np.asarray(x)[:, column], np.asarray(y)[:, row]
            panel = cast(Axes, grid[row, column])
            panel.errorbar(*points, yerr=error, label=name, markersize=4, capsize=2)
    for axes in grid.ravel():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    for axes, label in zip(grid[-1], xlabels, strict=True):
        axes.set_xlabel(label)
    for axes, label in zip(grid[:, 0], ylabels, strict=True):
        axes.set_ylabel(label)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=1 + len(xlabels))
    return figure


def panels(
    panels: Mapping[str, Mapping[str, tuple[Numbers, Numbers, Numbers | None]]],
    *,
    xlabel: str,
    title: str,
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Panels under one another over a common x axis, each with its lines and a line at 0.

    Args:
      panels: label of the y axis, and the panel's entries: name, and (x, y, None) for a line or (x, y, standard errors
        of y) for points with error bars. The first entry is drawn on top.
      xlabel: of the common axis.
      title: above the panels.
      limits: of the y axis, for some of the panels.
    """
    figure, axes_of = _panels(len(panels), title, width=8, height=2.8)
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
    return figure


def raster(
    spikes: Mapping[str, tuple[Numbers, Numbers]],
    images: Mapping[str, Numbers],
    *,
    title: str,
    xlabel: str = "time, mean waiting times of a neuron without input",
) -> Figure:
    """Spikes as dots, units over times, one colour per group of units, and a column of images beside them.

    Args:
      spikes: name of a group, and (times, units) of its spikes; of several groups the names are told.
      images: name and image [height, width] or [height, width, 3] with values in [0, 1], 1 drawn white; may be none.
      title: above the picture.
      xlabel: what times are.
    """
    figure = _figure(11, 6 if images else 3.5, title)
    grid = figure.add_gridspec(len(images), 2, width_ratios=(4, 1)) if images else figure.add_gridspec(1, 1)
    axes = figure.add_subplot(grid[:, 0])
    axes.set_prop_cycle(_CYCLE)
    for name, (times, units) in spikes.items():
        axes.plot(times, units, ".", markersize=2, label=name)
    axes.set(xlabel=xlabel, ylabel="unit")
    if len(spikes) > 1:
        axes.legend(loc="upper right", markerscale=5)
    for row, (name, image) in enumerate(images.items()):
        panel = figure.add_subplot(grid[row, 1])
        panel.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        panel.set_title(name)
        panel.set_axis_off()
    return figure


def histograms(values: Sequence[Numbers], *, names: Sequence[str], xlabel: str, title: str) -> Figure:
    """A histogram of each set of values, over [0, 1] where all are inside, one panel under the other."""
    figure, panels = _panels(len(values), title, width=7, height=1.9)
    low, high = (
        limit([limit(np.asarray(some), initial=end) for some in values]) for limit, end in ((np.min, 0), (np.max, 1))
    )
    for axes, some, name in zip(panels, values, names, strict=True):
        axes.hist(np.asarray(some), bins=np.linspace(low, high, 41))
        axes.set_ylabel(f"units, {name}")
    panels[-1].set_xlabel(xlabel)
    return figure


def confusion(counts: Numbers, *, title: str) -> Figure:
    """A confusion matrix with its counts: a row per true class, a column per predicted one.

    Args:
      counts: [classes, classes]; the shade of a field is its share of the row, on a square-root scale so that rare
        errors can be seen.
      title: above the matrix.
    """
    counts = np.asarray(counts)
    shares = np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    figure = _figure(7, 7, title)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        axes.text(
            column, row, str(count), ha="center", va="center", color="white" if shares[row, column] > 0.6 else "black"
        )
    axes.set(xlabel="predicted", ylabel="true", xticks=range(len(counts)), yticks=range(len(counts)))
    return figure


def scatters(panels: Mapping[str, tuple[Numbers, Numbers]], *, xlabel: str, ylabel: str, title: str) -> Figure:
    """Numbers against those that they should be, a panel for each kind, with the line on which both are equal.

    Args:
      panels: name, such as "covariances, r = .98", and the numbers along both axes, x first; where they are many,
        their density is drawn, on a logarithmic scale, darker where there are more.
      xlabel: of all panels, such as "data".
      ylabel: of all panels, such as "samples".
      title: above the panels.

    Raises:
      SettingError: no panels, or numbers that are no two vectors of one length.
    """
    checks.require(panels, "panels", panels, "one or more")
    columns = min(len(panels), 3)
    figure = _figure(3.3 * columns, 3.5 * -(-len(panels) // columns) + 0.4, title)
    for place, (name, (x, y)) in enumerate(panels.items()):
        axes = figure.add_subplot(-(-len(panels) // columns), columns, place + 1)
        _scatter(axes, name, x, y, xlabel, ylabel)
    return figure


def densities(values: Mapping[str, Numbers], *, xlabel: str, title: str) -> Figure:
    """The distributions of several sets of numbers over common bins, as outlines in one panel.

    Args:
      values: name of a set, and its numbers.
      xlabel: what they are.
      title: above the panel.

    Raises:
      SettingError: no sets, an empty one, or numbers that are not finite.
    """
    figure = _figure(7, 4, title)
    _densities(_axes(figure), values, xlabel)
    return figure


def matrices(values: Mapping[str, Numbers], *, xlabel: str, ylabel: str, title: str) -> Figure:
    """Matrices of values of either sign side by side on one scale, blue below 0, red above, with a bar that tells it.

    Args:
      values: name of a matrix, and its entries [rows, columns], the first row at the top; such as couplings. Colours
        are at full strength from the 99.5th percentile of all magnitudes on, so that a few large ones hide no others.
      xlabel: of the columns.
      ylabel: of the rows.
      title: above the matrices.

    Raises:
      SettingError: no matrices, or arrays that are none.
    """
    checks.require(values, "values", values, "one or more matrices")
    some = {name: np.asarray(matrix) for name, matrix in values.items()}
    for matrix in some.values():
        fits = matrix.ndim == 2 and matrix.size
        checks.require(fits, "values", f"an array {list(matrix.shape)}", "matrices [rows, columns]")
    scale = float(np.percentile(np.concatenate([np.abs(matrix).ravel() for matrix in some.values()]), 99.5)) or 1.0
    figure = _figure(4.2 * len(some) + 0.8, 4.6, title)
    grid = figure.subplots(1, len(some), squeeze=False)[0]
    for axes, (name, matrix) in zip(grid, some.items(), strict=True):
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest")
        axes.set(title=name, xlabel=xlabel, ylabel=ylabel)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, integer=True))
    figure.colorbar(image, ax=list(grid), extend="both", shrink=0.9)
    return figure


def comparison(
    scatter: Mapping[str, tuple[Numbers, Numbers]],
    counts: Mapping[str, Numbers],
    distributions: Mapping[str, Mapping[str, Numbers]],
    *,
    title: str,
) -> Figure:
    """A model's samples against data in one picture.

    Args:
      scatter: as `scatters`, data along x.
      counts: name of a set, and the probability of each number of units on, from 0 on; none: no such panel.
      distributions: label of an x axis, such as "free energy, nats", and sets of numbers as `densities` takes them.
      title: above the panels.

    Raises:
      SettingError: as `scatters` and `densities`.
    """
    number, columns = len(scatter) + bool(counts) + len(distributions), 3
    figure = _figure(3.5 * columns, 3.4 * -(-number // columns) + 0.4, title)
    axes = [figure.add_subplot(-(-number // columns), columns, place + 1) for place in range(number)]
    for panel, (name, (x, y)) in zip(axes, scatter.items(), strict=False):
        _scatter(panel, name, x, y, "data", "samples")
    if counts:
        _counts(axes[len(scatter)], counts)
    for panel, (xlabel, values) in zip(axes[len(scatter) + bool(counts) :], distributions.items(), strict=True):
        panel.set_prop_cycle(_CYCLE)
        _densities(panel, values, xlabel)
    return figure


def _counts(panel: Axes, counts: Mapping[str, Numbers]) -> None:
    panel.set_prop_cycle(_CYCLE)
    for name, probabilities in counts.items():
        found = np.asarray(probabilities)
        units = np.flatnonzero(found)
        panel.plot(units, found[units], label=name, linewidth=1)
    panel.set(xlabel="units on", ylabel="probability", yscale="log")
    panel.grid(alpha=0.3)
    panel.legend()


class _Shown(Figure):
    """A figure that notebooks show without pyplot, whose backend would otherwise have to be chosen first."""

    def _repr_png_(self) -> bytes:
        return _drawn(self, "png")


def _figure(width: float, height: float, title: str) -> Figure:
    """Of a size in inches; a title that is too long for it is broken, and the figure higher for that."""
    broken = "\n".join(textwrap.fill(line, max(20, int(width / 0.088))) for line in title.split("\n"))
    figure = _Shown(figsize=(width, height + 0.2 * broken.count("\n")), layout="constrained")
    if title:
        figure.suptitle(broken)
    return figure


def _axes(figure: Figure) -> Axes:
    axes = figure.subplots()
    axes.set_prop_cycle(_CYCLE)
    return axes


def _panels(number: int, title: str, *, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """Panels of this size under one another, and their axes."""
    figure = _figure(width, height * number + 0.6, title)
    panels = figure.subplots(number, 1, sharex=True, squeeze=False)[:, 0]
    for axes in panels:
        axes.set_prop_cycle(_CYCLE)
    return figure, panels


def _scatter(axes: Axes, name: str, x: Numbers, y: Numbers, xlabel: str, ylabel: str) -> None:
    x, y = np.asarray(x), np.asarray(y)
    fits = x.ndim == 1 and x.shape == y.shape and x.size
    checks.require(fits, "panels", f"arrays {list(x.shape)} and {list(y.shape)}", "two vectors of one length")
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.04 * (high - low) or 0.5
    span = low - margin, high + margin
    axes.plot(span, span, color="black", linewidth=0.6, zorder=3)
    if len(x) <= _MOST_DOTS:
        axes.plot(x, y, ".", color=COLOURS[0], markersize=4, alpha=0.5, markeredgewidth=0)
    else:
        cells = axes.hexbin(x, y, gridsize=70, extent=(*span, *span), bins="log", mincnt=1, linewidths=0.1)
        cells.set_cmap("viridis_r")
    axes.set(title=name, xlabel=xlabel, ylabel=ylabel, xlim=span, ylim=span, box_aspect=1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4))
    # A power of ten beside the axis would lie in the title.
    axes.ticklabel_format(scilimits=(-5, 5))
    axes.grid(alpha=0.3)


def _densities(axes: Axes, values: Mapping[str, Numbers], xlabel: str) -> None:
    checks.require(values, "values", values, "one or more sets of numbers")
    some = {name: np.asarray(numbers).ravel() for name, numbers in values.items()}
    for name, numbers in some.items():
        checks.require(numbers.size, name, f"an array {list(numbers.shape)}", "one number or more")
        checks.finite(name, numbers)
    together = np.concatenate(list(some.values()))
    edges = np.histogram_bin_edges(together, _BINS)
    if np.issubdtype(together.dtype, np.integer):
        # As many whole numbers in each bin.
        width = -(-int(np.ptp(together) + 1) // _BINS)
        edges = np.arange(together.min(), together.max() + width + 1, width) - 0.5
    for (name, numbers), line in zip(some.items(), _CYCLE(), strict=False):
        axes.hist(numbers, bins=edges.tolist(), density=True, histtype="step", label=name, **line)
    # Room for the names.
    axes.set(xlabel=xlabel, ylabel="density", ylim=(0, 1.3 * axes.get_ylim()[1]))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")


def _images(name: str, given: Numbers, signed: bool = False) -> np.ndarray:
    """Images [n, height, width] or [n, height, width, 3]."""
    images = np.asarray(given)
    fits = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3 and not signed)
    allowed = "images [n, height, width]" + ("" if signed else " or [n, height, width, 3]")
    checks.require(fits and images.size, name, f"an array {list(images.shape)}", allowed)
    return images


def _tiles(images: np.ndarray, columns: int | None, title: str, signed: bool = False) -> tuple[Figure, Axes]:
    """Images side by side, a white line around each; scales as `tiles` says."""
    height, width = images.shape[1:3]
    # As large as a square tile, but for images that are very long.
    tile_width = min(max(_TILE * np.sqrt(width / height), 0.1), _WIDEST)
    tile_height = min(max(tile_width * height / width, 0.1), _WIDEST)
    columns = min(len(images), max(1, round(_WIDEST / tile_width))) if columns is None else columns
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, *images.shape[3:]), np.nan)
    for n, image in enumerate(images):
        top, left = (n // columns) * (height + 1) + 1, (n % columns) * (width + 1) + 1
        scale = max(float(np.abs(image).max()), 1e-12) if signed else 1.0
        sheet[top : top + height, left : left + width] = image / scale
    if sheet.ndim == 3:
        # What is missing is transparent on a scale of grey, and black in colours.
        sheet = np.clip(np.nan_to_num(sheet, nan=1.0), 0, 1)
    # Room for the title of a few tiles.
    figure = _figure(max(columns * tile_width, 3.0), rows * tile_height + 0.5, title)
    axes = figure.subplots()
    square = np.isclose(tile_height / tile_width, height / width)
    axes.imshow(
        sheet,
        cmap="RdBu_r" if signed else "gray",
        vmin=-1 if signed else 0,
        vmax=1,
        interpolation="nearest",
        aspect="equal" if square else "auto",
    )
    return figure, axes


def _drawn(figure: Figure, suffix: str) -> bytes:
    """The file of a figure, which keeps its title where the format has a place for it."""
    file = io.BytesIO()
    title = " ".join(figure.get_suptitle().split())
    metadata = {"Title": title} if title and suffix in ("png", "svg", "pdf") else None
    figure.savefig(file, format=suffix, dpi=DOTS_PER_INCH, metadata=metadata)
    return file.getvalue()
