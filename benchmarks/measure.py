"""Timing: cases run in turn, round after round, so that what else a machine does falls on all of them alike.

A case is set up, run once to warm up (compilation, caches), and then timed once per round. Its figures are the median
and the range over the rounds; ratios are medians of the ratios within each round, and those of medians and of minima,
which differ where a shared host gives a case now more of itself and now less: timings that fall into two `modes`. The
rate of a large matrix product is a case like the others, and rates read as fractions of its best round. Not here: what
is measured (`cases`, `peers`), how it is printed (`report`).
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vpf_jax.app.keys import key_for

# Threads of a library that has just worked may spin a while before they sleep.
_PAUSE_SECONDS = 0.3
_PEAK_SIZE = 2048
_PEAK_REPEATS = 20
LEAST_GAP = 1.15
"""Two modes: the longest of the fast timings and the shortest of the slow ones are at least so many times apart."""
FEWEST = 2
"""Timings of each mode; one alone is an accident."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to time."""

    name: str
    setup: Callable[[], Callable[[], object]]
    """Prepares the case; returns what one timed run calls, which returns when the work is done."""
    flops: float = 0.0
    """Of one run, 0 where none are counted."""
    against: tuple[str, ...] = ()
    """Names of the cases it is compared with: the table shows seconds of this one divided by seconds of those."""
    work: float = 1.0
    """Share of the full work that a run does; its seconds are divided by it."""
    note: str = ""


class MissingPeerError(ImportError):
    """A peer is not installed; raised by the setup of its case."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A case and its seconds, one per round; none where it could not be run, and the note says why."""

    case: Case
    seconds: tuple[float, ...]
    note: str

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def least(self) -> float:
        return min(self.seconds)


@dataclasses.dataclass(frozen=True)
class Modes:
    """Timings in two groups."""

    fast: tuple[float, ...]
    slow: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median of the slow ones divided by that of the fast ones."""
        return float(np.median(self.slow) / np.median(self.fast))

    @property
    def share(self) -> float:
        """Of the slow ones among all."""
        return len(self.slow) / (len(self.slow) + len(self.fast))


def modes(seconds: Sequence[float]) -> Modes | None:
    """Two groups, split at the largest gap between timings in their order, gaps and ranges being ratios.

    None: they are one group, as the gap is less than `LEAST_GAP`, or no wider than one of the groups beside it, or has
    fewer than `FEWEST` timings on one side.
    """
    logs = np.sort(np.log(seconds))
    if len(logs) < 2 * FEWEST:
        return None
    gaps = np.diff(logs)
    place = int(np.argmax(gaps)) + 1
    fast, slow = logs[:place], logs[place:]
    widest = max(np.ptp(fast), np.ptp(slow))
    gap = gaps[place - 1]
    if gap < np.log(LEAST_GAP) or gap <= widest or min(len(fast), len(slow)) < FEWEST:
        return None
    ordered = tuple(sorted(seconds))
    return Modes(ordered[:place], ordered[place:])


def measure(cases: Sequence[Case], rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Times the cases in turn, `rounds` times each."""
    runs: list[Callable[[], object] | None] = []
    notes = []
    for case in cases:
        run: Callable[[], object] | None
        say(f"setting up: {case.name}")
        try:
            run = case.setup()
            run()
        except MissingPeerError as error:
            runs.append(None)
            notes.append(str(error))
            say(f"  {error}")
        else:
            runs.append(run)
            notes.append(case.note)
    seconds: list[list[float]] = [[] for _ in cases]
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for found, run, case in zip(seconds, runs, cases, strict=True):
            if run is not None:
                found.append(timed(run) / case.work)
    return [Row(case, tuple(s), note) for case, s, note in zip(cases, seconds, notes, strict=True)]


def timed(run: Callable[[], object]) -> float:
    """Seconds of a run."""
    time.sleep(_PAUSE_SECONDS)
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def ratio(row: Row, other: Row) -> float:
    """Median over the rounds of the seconds of one case divided by those of another."""
    return float(np.median(np.divide(row.seconds, other.seconds)))


def peak_case(size: int = _PEAK_SIZE) -> Case:
    """The matrix-product peak: the product of two square float32 matrices in JAX."""

    def setup() -> Callable[[], object]:
        a, b = (jax.random.normal(key, (size, size)) for key in jax.random.split(key_for(0, "product")))
        product = jax.jit(jnp.matmul)
        return lambda: [product(a, b).block_until_ready() for _ in range(_PEAK_REPEATS)]

    name = f"matrix product {size} x {size} x {size}, {_PEAK_REPEATS} times"
    return Case(name, setup, flops=_PEAK_REPEATS * 2.0 * size**3)
