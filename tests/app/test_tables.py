"""Cells and tables."""

import numpy as np
import pytest

from vpf_jax.app import tables


def test_the_standard_error_is_that_of_the_mean():
    mean, error = tables.mean_and_error([1, 2, 3, 4])
    assert mean == 2.5
    # The sample variance is 5 / 3.
    assert error == pytest.approx(np.sqrt(5 / 3 / 4))
    assert tables.mean_and_error([2.0]) == (2.0, None)


def test_cells_and_tables():
    assert tables.cell([1.0, 2.0, 3.0, 4.0]) == "2.5 +- 0.6"
    assert tables.cell(np.array([2.0]), 2) == "2.00"
    assert tables.markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_bars_do_not_end_a_cell():
    assert tables.markdown_table(["p(x | h)"], [["|w|"]]) == "| p(x \\| h) |\n| --- |\n| \\|w\\| |\n"


def test_a_line_over_seeds_has_bars_from_two_on():
    x, means, errors = tables.line_over_seeds([5, 6], [[1, 2, 3, 4], [2, 2, 2, 2]])
    assert x.tolist() == [5, 6]
    assert means.tolist() == [2.5, 2]
    assert errors.tolist() == pytest.approx([np.sqrt(5 / 3 / 4), 0])
    assert tables.line_over_seeds([5], [[1.0]])[2] is None
