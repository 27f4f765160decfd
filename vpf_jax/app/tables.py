"""Tables in Markdown, means over runs with their standard errors, and lines of them. Not here: what is tabulated."""

from collections.abc import Sequence

import numpy as np

from vpf_jax.checks import Numbers


def mean_and_error(values: Numbers) -> tuple[float, float | None]:
    """Mean over runs and its standard error; None from a single run."""
    values = np.asarray(values, np.float64)
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return float(values.mean()), error


def cell(values: Numbers, digits: int = 1) -> str:
    """Mean +- standard error over runs, or the value of a single one."""
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f}" if error is None else f"{mean:.{digits}f} +- {error:.{digits}f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of ready cells; bars inside them are escaped."""
    lines = [[text.replace("|", r"\|") for text in line] for line in (header, ["---"] * len(header), *rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def line_over_seeds(x: Numbers, curve: Numbers) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """A line with error bars for `vpf_jax.figures.lines`, from [points, num_seeds] values."""
    means, errors = zip(*(mean_and_error(values) for values in np.asarray(curve)), strict=True)
    return np.asarray(x), np.array(means), None if errors[0] is None else np.array(errors)
