"""Tables and pictures of `scaling`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks import cost, hardware
from benchmarks.cost import Plan
from vpf_jax.app.tables import markdown_table

if TYPE_CHECKING:
    from benchmarks.scaling import Row

SHARED, WIDER, MORE = (
    "pair, one minibatch shared",
    "pair, wider with the devices",
    "pair, more examples with the devices",
)
# Of the tables of what fits: examples of a step, devices, and examples of a data set that lies whole on each.
_BATCH, _COUNTS, _EXAMPLES = 512, (1, 8, 64, 512, 4096, 16384), 50_000
# Machines for which meshes are recommended.
_MACHINES = {
    "pair 8,192 x 65,536": ((8192, 2**16), (8, 64, 512)),
    "pair 65,536 x 65,536": ((2**16, 2**16), (8, 64, 512)),
    "pair 10^6 x 10^6": ((2**20, 2**20), (512, 4096)),
    "four pairs of 65,536": ((2**16,) * 5, (8, 64, 512)),
    "1,000 x 10^6": ((1000, 2**20), (1, 8, 64, 512)),
    "1,000 x 10^8": ((1000, 2**27), (64, 512, 4096)),
    "1,000 x 10^9": ((1000, 2**30), (512, 4096)),
    "1,000 x 10^10": ((1000, 2**33 + 2**30 + 2**28 + 2**27), (4096, 16384)),
}
# Lines of the pictures: name, and plan by the number of devices.
_LINES = {
    "data": lambda pair, batch, n: Plan(pair, batch, n, 1),
    "model": lambda pair, batch, n: Plan(pair, batch, 1, n),
    "both, model 8": lambda pair, batch, n: Plan(pair, batch, max(n // 8, 1), min(n, 8)),
}
_DRAWN = tuple(2**k for k in range(13))


def mesh(plan: Plan) -> str:
    """A mesh as flags say it."""
    parts = [f"{name}:{count}" for name, count in (("data", plan.data), ("model", plan.model)) if count > 1]
    return ",".join(parts) or "one device"


def machine(plan: Plan) -> str:
    """Sizes of the layers in words."""
    return " x ".join(f"{n:,}" for n in plan.sizes) + (", inside too" if plan.intra else "")


def text(rows: Sequence["Row"], share: float, most_batch: int) -> str:
    """All tables, each under a heading."""
    tables = {
        "Figures and assumptions": assumptions(),
        "What compiled steps send": programs(rows),
        "What they compute and hold": loads(rows),
        "What they would take": times(rows),
        "Largest machines": largest(),
        "RBMs of 1,000 inputs": wide(),
        f"Meshes whose travel takes less than {share:.0%}": recommended(share, most_batch),
    }
    return "\n\n".join(f"## {name}\n\n{table.strip()}" for name, table in tables.items()) + "\n"


def assumptions() -> str:
    """Every figure of the chips, a column for each."""

    def network(one: hardware.Network) -> list[str]:
        return [one.name, f"{one.peak / 1e9:g} GB/s", f"{one.reached:.0%}", f"{one.latency * 1e6:g} us"]

    names = ["", *(chip.name for chip in hardware.CHIPS)]
    kinds = ("{}", "one direction, peak", "of it reached (assumed)", "latency for each doubling (assumed)")
    lines = [
        ("memory", lambda c: f"{c.memory / 1e9:g} GB"),
        ("of it usable (assumed)", lambda c: f"{c.usable:.0%}"),
        ("memory, peak", lambda c: f"{c.memory_peak / 1e12:g} TB/s"),
        ("of it reached (assumed)", lambda c: f"{c.memory_reached:.0%}"),
        ("products of bfloat16, peak", lambda c: f"{c.bfloat16 / 1e12:g} TFLOP/s"),
        ("of it reached (assumed)", lambda c: f"{c.reached:.0%}"),
        ("devices that the faster network joins", lambda c: f"{c.node:,}"),
        ("largest job", lambda c: f"{c.most:,} devices" if c.most else "no bound"),
        *(
            (kind.format("faster network"), lambda c, place=place: network(c.inside)[place])
            for place, kind in enumerate(kinds)
        ),
        *(
            (kind.format("network between those"), lambda c, place=place: network(c.between)[place])
            for place, kind in enumerate(kinds)
        ),
    ]
    return markdown_table(names, [[name, *(of(chip) for chip in hardware.CHIPS)] for name, of in lines])


def programs(rows: Sequence["Row"]) -> str:
    """Collectives and bytes of each compiled step, beside the formulas."""
    header = ["machine", "mesh", "examples of a step", "collectives", "MB that a device sends", "by the formula"]
    return markdown_table([*header, "by the short one"], [_sent_cells(row) for row in rows])


def _sent_cells(row: "Row") -> list[str]:
    kinds = [one.kind for one in row.found]
    told = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    ratio = f"{row.sent / row.formula:.4f}" if row.formula else ""
    short = f"{row.sent / cost.told(row.plan):.3f}" if row.formula else ""
    size = f"{row.sent / 1e6:,.1f}" if row.sent else "0"
    return [machine(row.plan), mesh(row.plan), f"{row.plan.batch:,}", told or "none", size, ratio, short]


def loads(rows: Sequence["Row"]) -> str:
    """Flops and memory of each compiled program on one device."""

    def cells(row: "Row") -> list[str]:
        weights = row.plan.weights / row.plan.model
        units = cost.UNIT * row.plan.rows * row.plan.own_units
        return [
            machine(row.plan),
            mesh(row.plan),
            f"{row.plan.batch:,}",
            f"{row.flops:.3g}",
            f"{row.flops / cost.flops(row.plan):.2f}",
            f"{row.state / 1e9:,.2f}",
            f"{row.temporary / 1e9:,.2f}",
            f"{(row.state + row.temporary) / (cost.MEASURED * weights + units):.2f}",
        ]

    header = [
        "machine",
        "mesh",
        "examples of a step",
        "flops of a device",
        "by the formula",
        "GB of weights and moments",
    ]
    return markdown_table([*header, "GB beside them", "both by the formula"], [cells(row) for row in rows])


def times(rows: Sequence["Row"]) -> str:
    """Milliseconds of each compiled step on all chips, the share of travel, and how it scales."""
    first = {row.series: row for row in reversed(rows)}

    def cells(row: "Row") -> list[str]:
        found = [row.series, machine(row.plan), mesh(row.plan), f"{row.plan.batch:,}"]
        for chip in hardware.CHIPS:
            step, alone = cost.step(chip, row.plan, row.found), first[row.series]
            ours, theirs = cost.step(chip, row.plan, row.found), cost.step(chip, alone.plan, alone.found)
            per_weight = row.plan.batch * row.plan.weights / (alone.plan.batch * alone.plan.weights)
            speed = per_weight * theirs.total / ours.total
            found += [f"{1e3 * step.total:.3g}", f"{step.share:.1%}", f"{speed:.3g} x"]
        return found

    header = ["", "machine", "mesh", "examples of a step"]
    for chip in hardware.CHIPS:
        header += [f"{chip.name}: ms", "travel", "weights times examples a second, against the first"]
    return markdown_table(header, [cells(row) for row in rows])


def largest() -> str:
    """Units of the largest machine of each shape by the number of devices."""

    def units(plan: Plan | None) -> str:
        return "none" if plan is None else f"{plan.units:.3g}"

    cells = []
    for chip in hardware.CHIPS:
        for count in _COUNTS:
            if chip.most is not None and count > chip.most:
                continue
            row = [chip.name, f"{count:,}"]
            for shape in cost.SHAPES:
                free, with_data = (cost.largest(chip, shape, count, _BATCH, examples) for examples in (0, _EXAMPLES))
                travel = "" if free is None else f"{cost.step(chip, free).share:.1%}"
                row += [units(free), units(with_data), travel]
            cells.append(row)
    header = ["", "devices"]
    for shape in cost.SHAPES:
        header += [f"{shape}: units", f"with {_EXAMPLES:,} examples", "travel"]
    return markdown_table(header, cells)


def wide() -> str:
    """Devices and time of RBMs of 1,000 inputs up to 10^10 units."""
    cells = []
    for chip in hardware.CHIPS:
        for power in range(6, 11):
            sizes = (1000, 10**power - 1000)
            row = [chip.name, f"10^{power}", f"{cost.STATE * 1000 * sizes[1] / 1e12:,.3g}"]
            at_least = cost.devices_for(chip, sizes, _BATCH, cost.STATE)
            count = cost.devices_for(chip, sizes, _BATCH)
            row.append(f"{at_least:,}" if at_least else "more than a job has")
            if count is None:
                cells.append([*row, "more than a job has", "", "", ""])
                continue
            step = cost.step(chip, Plan(sizes, _BATCH, model=count))
            weights = 1e3 * sizes[1]
            cells.append([*row, f"{count:,}", f"{1e3 * step.total:.3g}", f"{step.share:.2%}", f"{weights / count:.2g}"])
    header = ["", "units", "TB of state", f"devices at {cost.STATE} bytes a weight", f"at {cost.MEASURED}"]
    return markdown_table([*header, f"ms of a step of {_BATCH}", "travel", "weights of a device"], cells)


def recommended(share: float, most_batch: int) -> str:
    """The fastest mesh that keeps to the share, for some machines, or what comes closest to it."""
    cells = []
    for chip in hardware.CHIPS:
        for name, (sizes, counts) in _MACHINES.items():
            for count in counts:
                if chip.most is not None and count > chip.most:
                    continue
                found = cost.recommended(chip, sizes, count, most_batch, share)
                row = [chip.name, name, f"{count:,}"]
                if found is None:
                    cells.append([*row, "does not fit", "", "", "", "", ""])
                    continue
                step = cost.step(chip, found.plan)
                row += [mesh(found.plan), f"{found.plan.batch:,}", f"{step.share:.1%}"]
                row += [f"{1e3 * step.total:.3g}", f"{found.plan.batch / step.total:,.0f}"]
                if found.keeps:
                    cells.append([*row, ""])
                elif found.needed is None:
                    cells.append([*row, "**not met** at any minibatch that fits"])
                else:
                    told = f"{found.needed.batch:,} examples, {mesh(found.needed)}"
                    cells.append([*row, f"**not met**; it would be with {told}"])
    header = ["", "machine", "devices", "mesh", "examples of a step", "travel", "ms of a step", "examples a second"]
    return markdown_table([*header, f"less than {share:.0%}"], cells)


def speed_plot(path: Path, rows: Sequence["Row"]) -> None:
    """Strong and weak scaling on each chip: lines by the formulas, marks from compiled programs."""
    figure, axes = plt.subplots(len(hardware.CHIPS), 2, figsize=(10, 4 * len(hardware.CHIPS)), layout="constrained")
    for (strong, weak), chip in zip(axes, hardware.CHIPS, strict=True):
        _strong(strong, chip, [row for row in rows if row.series == SHARED])
        _weak(weak, chip, [row for row in rows if row.series in (WIDER, MORE)])
    figure.suptitle("Lines by the formulas, marks from compiled programs; travel and work one after the other")
    _save(path, figure)


def _strong(axis: plt.Axes, chip: hardware.Chip, rows: Sequence["Row"]) -> None:
    pair, batch = rows[0].plan.sizes, rows[0].plan.batch
    one = cost.step(chip, Plan(pair, batch)).total
    for place, (name, make) in enumerate(_LINES.items()):
        some = [make(pair, batch, n) for n in _DRAWN if batch % n == 0 and pair[1] % n == 0]
        axis.loglog([p.devices for p in some], [one / cost.step(chip, p).total for p in some], color=f"C{place}")
        marks = [row for row in rows if row.plan == make(pair, batch, row.plan.devices)]
        found = [one / cost.step(chip, row.plan, row.found).total for row in marks]
        axis.plot([row.plan.devices for row in marks], found, "os^"[place], color=f"C{place}", label=name)
    axis.plot(_DRAWN, _DRAWN, "k:", linewidth=1, label="in proportion")
    axis.set_title(f"{chip.name}: {pair[0]:,} x {pair[1]:,}, {batch:,} examples a step", fontsize=10)
    axis.set_ylabel("times as fast as one device")
    axis.set_ylim(0.7, 2 * _DRAWN[-1])
    _finish(axis)


def _weak(axis: plt.Axes, chip: hardware.Chip, rows: Sequence["Row"]) -> None:
    wider, more = ([row for row in rows if row.series == series] for series in (WIDER, MORE))
    pair, each = (wider[0].plan.sizes[0],) * 2, wider[0].plan.batch
    narrow = more[0].plan.sizes
    lines = {
        f"model: {pair[0]:,} x {pair[1]:,} on each": (
            wider,
            lambda n: Plan((pair[0], pair[1] * n), each, 1, n),
        ),
        f"data: {each:,} examples on each": (more, lambda n: Plan(narrow, each * n, n, 1)),
        "model: 1,000 x 2^20 on each, 512 examples": ([], lambda n: Plan((1000, 2**20 * n), 512, 1, n)),
    }
    for place, (name, (marks, make)) in enumerate(lines.items()):
        some = [make(n) for n in _DRAWN]
        one = 100 * cost.step(chip, some[0]).total
        axis.semilogx(
            [p.devices for p in some], [one / cost.step(chip, p).total for p in some], color=f"C{place}", label=name
        )
        found = [one / cost.step(chip, row.plan, row.found).total for row in marks]
        axis.plot([row.plan.devices for row in marks], found, "os^"[place], color=f"C{place}")
    axis.set_title(f"{chip.name}: work of a device stays the same", fontsize=10)
    axis.set_ylabel("% of the rate of one device")
    axis.set_ylim(0, 105)
    _finish(axis)


def size_plot(path: Path, rows: Sequence["Row"]) -> None:
    """Memory of a device, and the largest machine, by the number of devices."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    _memory(left, [row for row in rows if row.series == SHARED])
    for place, chip in enumerate(hardware.CHIPS):
        for shape, style in zip(cost.SHAPES, ("-", "--", ":"), strict=True):
            counts = [n for n in (2**k for k in range(15)) if chip.most is None or n <= chip.most]
            some = [(n, cost.largest(chip, shape, n, _BATCH)) for n in counts]
            known = [(n, plan.units) for n, plan in some if plan is not None]
            right.loglog(*zip(*known, strict=True), style, color=f"C{place}", label=f"{chip.name}, {shape}")
    right.axhline(1e10, color="black", linewidth=1, linestyle=":")
    right.set_title(f"largest machine, {cost.MEASURED} bytes a weight, model axis alone", fontsize=10)
    right.set_ylabel("units")
    _finish(right)
    _save(path, figure)


def _memory(axis: plt.Axes, rows: Sequence["Row"]) -> None:
    pair, batch = rows[0].plan.sizes, rows[0].plan.batch
    for place, (name, make) in enumerate(_LINES.items()):
        some = [make(pair, batch, n) for n in _DRAWN if batch % n == 0 and pair[1] % n == 0]
        axis.loglog([p.devices for p in some], [cost.memory(p) / 1e9 for p in some], color=f"C{place}")
        marks = [row for row in rows if row.plan == make(pair, batch, row.plan.devices)]
        found = [(row.state + row.temporary) / 1e9 for row in marks]
        axis.plot([row.plan.devices for row in marks], found, "os^"[place], color=f"C{place}", label=name)
    axis.set_title(f"{pair[0]:,} x {pair[1]:,}, {batch:,} examples a step", fontsize=10)
    axis.set_ylabel("GB on a device")
    ticks = (1, 2, 5, 10, 20, 50)
    axis.set_yticks(ticks, [str(tick) for tick in ticks])
    axis.yaxis.minorticks_off()
    _finish(axis)


def _finish(axis: plt.Axes) -> None:
    axis.set_xlabel("devices")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _save(path: Path, figure: plt.Figure) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)
