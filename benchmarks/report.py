"""The table and the plot of a run of the benchmarks."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.measure import Row, ratio
from vpf_jax.app.tables import markdown_table

_COLUMNS = ("what", "seconds", "range", "GFLOP/s", "of the product peak", "times as long as", "note")


def table(rows: Sequence[Row], peak: Row) -> str:
    """A Markdown table: medians, ranges, rates, fractions of the peak and ratios within rounds."""
    by_name = {row.case.name: row for row in rows}
    return markdown_table(_COLUMNS, [_cells(row, by_name, peak) for row in rows])


def growth_table(curves: dict[str, list[tuple[int, Row]]]) -> str:
    """A Markdown table of the medians along each curve."""
    cells = [
        [name, str(size), f"{row.median:.3g}", f"{row.case.flops / row.median / 1e9:.0f}"]
        for name, points in curves.items()
        for size, row in points
    ]
    return markdown_table(("an epoch of the RBM by", "", "seconds", "GFLOP/s"), cells)


def _cells(row: Row, by_name: dict[str, Row], peak: Row) -> list[str]:
    if not row.seconds:
        return [row.case.name, "not measured", "", "", "", "", row.note]
    rate = share = ""
    if row.case.flops:
        rate = f"{row.case.flops / row.median / 1e9:.0f}"
        # Of the best round: what the machine can do, not what it did while something else ran.
        share = f"{row.case.flops / row.median / (peak.case.flops / min(peak.seconds)):.0%}"
    others = [by_name[name] for name in row.case.against if name in by_name]
    return [
        row.case.name,
        f"{row.median:.3g}",
        f"{min(row.seconds):.3g} to {max(row.seconds):.3g}",
        rate,
        share,
        "; ".join(f"{ratio(row, other):.3g} x {other.case.name}" for other in others if other.seconds),
        row.note,
    ]


def growth_plot(path: Path, curves: dict[str, list[tuple[int, Row]]], title: str) -> None:
    """One panel per curve, both axes logarithmic, with the line that is in proportion to the flops."""
    figure, axes = plt.subplots(1, len(curves), figsize=(3.6 * len(curves), 3.6), layout="constrained")
    for axis, (name, points) in zip(axes, curves.items(), strict=True):
        sizes = [size for size, _ in points]
        medians = [row.median for _, row in points]
        axis.loglog(sizes, medians, "o-", label="measured")
        last = points[-1][1]
        proportional = [last.median * row.case.flops / last.case.flops for _, row in points]
        axis.loglog(sizes, proportional, "k:", label="in proportion to the flops")
        axis.set_xlabel(name)
        axis.set_xticks(sizes, [str(size) for size in sizes], rotation=60)
        axis.xaxis.minorticks_off()
        axis.set_ylim(0.5 * min(medians), 2 * max(medians))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds per epoch")
    axes[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)
