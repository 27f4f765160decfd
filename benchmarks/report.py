"""The tables and the plots of a run of the benchmarks."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.measure import FEWEST, LEAST_GAP, Row, modes, ratio
from benchmarks.quality import Curve, Goal, Race
from vpf_jax import figures
from vpf_jax.app.tables import markdown_table

_COLUMNS = (
    "what",
    "seconds, median",
    "least",
    "most",
    "modes",
    "GFLOP/s",
    "of the product peak",
    "times as long as, within rounds",
    "by medians",
    "by minima",
    "note",
)


def table(rows: Sequence[Row], peak: Row) -> str:
    """A Markdown table: medians, ranges, modes, rates, fractions of the peak, ratios; and a line on the modes."""
    by_name = {row.case.name: row for row in rows}
    return markdown_table(_COLUMNS, [_cells(row, by_name, peak) for row in rows]) + told_modes(rows)


def told_modes(rows: Sequence[Row]) -> str:
    """A sentence: how many cases were timed in two modes, and how far these lie apart."""
    found = [modes(row.seconds) for row in rows if len(row.seconds) >= 2 * FEWEST]
    two = [one for one in found if one is not None]
    split = f"a gap of {LEAST_GAP:g} x or more, wider than what lies on either side, {FEWEST} timings or more on each"
    if not found:
        return f"\nmodes are told of {2 * FEWEST} timings or more\n"
    if not two:
        return f"\nno case of {len(found)} was timed in two modes ({split})\n"
    ratios, shares = ([getattr(one, name) for one in two] for name in ("ratio", "share"))
    return (
        f"\n{len(two)} of {len(found)} cases were timed in two modes ({split}): slow {min(ratios):.2f} to "
        f"{max(ratios):.2f} x fast, {min(shares):.0%} to {max(shares):.0%} of the timings slow; ratios by minima "
        "compare the fast ones\n"
    )


def growth_table(curves: dict[str, list[tuple[int, Row]]]) -> str:
    """A Markdown table of the medians along each curve."""
    cells = [
        [name, str(size), f"{row.median:.3g}", f"{row.case.flops / row.median / 1e9:.0f}"]
        for name, points in curves.items()
        for size, row in points
    ]
    return markdown_table(("an epoch of the RBM by", "", "seconds", "GFLOP/s"), cells)


def race_tables(race: Race, curves: Sequence[Curve]) -> str:
    """A Markdown table per goal, and how sure the looks were."""
    references = [curve for curve in curves if curve.competitor.name in race.against and curve.looks]
    tables = [race_table(goal, curves, references) for goal in race.goals]
    looks = [look for curve in curves for look in curve.looks]
    (score, *_), *_ = race.goals
    errors = [look.scores["standard_error"] for look in looks if not math.isnan(look.scores[score])]
    sure = f"of {len(looks)} looks {len(looks) - len(errors)} could not be told, standard errors of the others up to"
    return "\n".join([*tables, f"{race.told}; {sure} {max(errors, default=math.nan):.2g}\n"])


def race_table(goal: Goal, curves: Sequence[Curve], references: Sequence[Curve] = ()) -> str:
    """Seconds to each wanted score, and how many times as long as the references a competitor took.

    Where one of the two did not get there, the ratio is a bound; where neither did, there is none.
    """
    header = [f"seconds to: {goal.told}", *(f"{wanted:g}" for wanted in goal.wanted), "best", "trained for"]
    header += [f"to {goal.compared:g}: times as long as {curve.competitor.name}" for curve in references]
    return markdown_table(header, [_race_cells(goal, curve, references) for curve in curves])


def _race_cells(goal: Goal, curve: Curve, references: Sequence[Curve]) -> list[str]:
    name = curve.competitor.name
    if not curve.looks:
        return [name, *["not measured"] * len(goal.wanted), curve.note, "", *[""] * len(references)]

    def seconds_to(wanted: float) -> str:
        first = goal.first(curve.looks, wanted)
        return f"{first.seconds:.3g} (epoch {first.epoch})" if first else "not reached"

    best, last = goal.best(curve.looks), curve.looks[-1]
    score = best.scores[goal.score]
    return [
        name,
        *(seconds_to(wanted) for wanted in goal.wanted),
        "not known" if math.isnan(score) else f"{score:.1f} after {best.seconds:.3g} s",
        f"{last.epoch} epochs, {last.seconds:.3g} s",
        *(_race_ratio(goal, curve, reference) for reference in references),
    ]


def _race_ratio(goal: Goal, curve: Curve, reference: Curve) -> str:
    own, other = (goal.first(one.looks, goal.compared) for one in (curve, reference))
    if not own and not other:
        return ""
    # What has not got there trained for all of its time in vain.
    share = (own or curve.looks[-1]).seconds / (other or reference.looks[-1]).seconds
    return f"{'' if own and other else '> ' if other else '< '}{share:.2g}"


def race_plot(path: Path, race: Race, curves: Sequence[Curve], machine: str) -> None:
    """One panel per goal: scores over training seconds, those wanted dotted, the lines of peers dashed."""
    seen = [curve for curve in curves if curve.looks]
    lines = {}
    for name, looks in ((curve.competitor.name, curve.looks) for curve in seen):
        scores = [[look.scores[goal.score] for goal in race.goals] for look in looks]
        lines[name] = ([[look.seconds] for look in looks], scores, None)
    labels, title = [goal.told for goal in race.goals], f"{race.title} ({machine})"
    figure = figures.crossed(lines, xlabels=["seconds of training"], ylabels=labels, title=title)
    # Room for the names.
    figure.set_figwidth(8)
    for axes, goal in zip(figure.axes, race.goals, strict=True):
        for wanted in goal.wanted:
            axes.axhline(wanted, color="black", linewidth=1, linestyle=":", zorder=0)
        # What the first epochs are worth is not what is compared.
        worst = goal.wanted[0] - 2 * (goal.wanted[-1] - goal.wanted[0])
        if goal.rising:
            axes.set_ylim(bottom=worst)
        else:
            axes.set_ylim(top=worst)
        for curve, drawn in zip(seen, axes.containers, strict=True):
            drawn[0].set_linestyle("--" if curve.competitor.peer else "-")
    figures.save(path, figure)


def _cells(row: Row, by_name: dict[str, Row], peak: Row) -> list[str]:
    if not row.seconds:
        return [row.case.name, "not measured", *[""] * (len(_COLUMNS) - 3), row.note]
    rate = share = ""
    if row.case.flops:
        rate = f"{row.case.flops / row.median / 1e9:.0f}"
        # Of the best round: what the machine can do, not what it did while something else ran.
        share = f"{row.case.flops / row.median / (peak.case.flops / min(peak.seconds)):.0%}"
    others = [by_name[name] for name in row.case.against if name in by_name and by_name[name].seconds]
    return [
        row.case.name,
        f"{row.median:.3g}",
        f"{row.least:.3g}",
        f"{max(row.seconds):.3g}",
        _told(row),
        rate,
        share,
        "; ".join(f"{ratio(row, other):.3g} x {other.case.name}" for other in others),
        "; ".join(f"{row.median / other.median:.3g} x" for other in others),
        "; ".join(f"{row.least / other.least:.3g} x" for other in others),
        row.note,
    ]


def _told(row: Row) -> str:
    """The modes of a row's timings."""
    if len(row.seconds) < 2 * FEWEST:
        return ""
    found = modes(row.seconds)
    return "one" if found is None else f"two: slow {found.ratio:.2f} x fast, {found.share:.0%} slow"


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
