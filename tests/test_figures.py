"""Figures: the files are whole PNGs, and the tiles show what was given."""

import matplotlib.image
import numpy as np
import pytest

from vpf_jax import figures


def read(path):
    pixels = matplotlib.image.imread(path)
    assert pixels.ndim == 3
    return pixels[..., :3]


def test_tiles_show_white_for_one_and_black_for_zero(tmp_path):
    images = np.zeros((6, 4, 4))
    images[3:] = 1.0
    figures.save_tiles(tmp_path / "tiles.png", images, title="", columns=3)
    pixels = read(tmp_path / "tiles.png").mean(axis=-1)
    middle = pixels[:, pixels.shape[1] // 2]
    # From the top: margin, a row of black tiles, a row of white ones.
    black = np.flatnonzero(middle < 0.02)
    assert 0.25 < len(black) / len(middle) < 0.55
    assert middle[black.max() + 20] > 0.98


def test_signed_tiles_show_the_sign_and_each_has_its_own_scale(tmp_path):
    images = np.stack([np.full((4, 4), -1e-3), np.full((4, 4), 5.0)])
    figures.save_tiles(tmp_path / "tiles.png", images, title="", columns=2, signed=True)
    pixels = read(tmp_path / "tiles.png")
    redder = pixels[..., 0] - pixels[..., 2]
    middle = pixels.shape[1] // 2
    # Both tiles at full strength, though one weight is 5,000 times the other.
    assert redder[:, :middle].min() < -0.2
    assert redder[:, middle:].max() > 0.2
    assert redder[:, :middle].max() < 0.05
    assert redder[:, middle:].min() > -0.05


def test_an_all_zero_filter_is_drawn_without_warning(tmp_path):
    figures.save_tiles(tmp_path / "tiles.png", np.zeros((1, 3, 3)), title="one", signed=True)
    assert read(tmp_path / "tiles.png").size


@pytest.mark.parametrize("number", [1, 5])
def test_curves_and_histograms_grow_with_their_panels(tmp_path, number):
    curves = {f"c{i}": ([1, 2, 3], [i, 2.0, 3.0]) for i in range(number)}
    figures.save_curves(tmp_path / "curves.png", curves | {"empty": ([], [])}, title="t")
    values = [np.linspace(0, 1, 9)] * number
    figures.save_histograms(tmp_path / "h.png", values, names=[str(i) for i in range(number)], xlabel="x", title="t")
    for name in ("curves.png", "h.png"):
        pixels = read(tmp_path / name)
        assert pixels.shape[0] > 150 * number
        assert pixels.min() < 0.5


def test_a_picture_replaces_an_older_one_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "tiles.png"
    path.write_bytes(b"old")
    figures.save_tiles(path, np.zeros((1, 3, 3)), title="")
    assert [p.name for p in tmp_path.iterdir()] == ["tiles.png"]
    assert read(path).size


def test_rows_of_reconstructions_lie_one_under_the_other_right_of_their_names(tmp_path):
    shades = {"black": 0.0, "grey": 0.5, "white": 1.0}
    rows = {name: np.full((6, 4, 4), shade) for name, shade in shades.items()}
    figures.save_reconstructions(tmp_path / "rows.png", rows, title="")
    pixels = read(tmp_path / "rows.png").mean(axis=-1)
    column = pixels[:, int(0.8 * pixels.shape[1])]
    black, grey = np.flatnonzero(column < 0.02), np.flatnonzero(np.abs(column - 0.5) < 0.02)
    assert 0 < black.min() < black.max() < grey.min() < grey.max() < 0.75 * len(column)
    # The names: ink in the margin at the left, beside white.
    margin = pixels[:, : int(0.05 * pixels.shape[1])]
    assert margin.min() < 0.9
    assert margin.max() > 0.98


def test_rows_of_unequal_length_are_refused(tmp_path):
    with pytest.raises(ValueError, match="same shape"):
        figures.save_reconstructions(tmp_path / "r.png", {"a": np.ones((2, 3, 3)), "b": np.ones((1, 3, 3))}, title="")


def test_lines_are_drawn_with_error_bars_on_linear_and_logarithmic_axes(tmp_path):
    x, y = [1, 10, 100], np.array([1.0, 10.0, 100.0])
    pictures = {}
    for name, errors, log in (("bare", None, False), ("bars", 0.5 * y, False), ("log", None, True)):
        path = tmp_path / f"{name}.png"
        figures.save_lines(path, {"one": (x, y, errors)}, xlabel="x", ylabel="y", title="t", logx=log, logy=log)
        pictures[name] = read(path)
    for other in ("bars", "log"):
        differs = bool(np.any(pictures["bare"] != pictures[other]))
        assert differs
    # On both logarithmic axes the three points are evenly spread: the middle one lies in the middle, and is blue.
    blue = pictures["log"][..., 2] - pictures["log"][..., 0] > 0.4
    marked = np.argwhere(blue)
    row, column = (marked.min(axis=0) + marked.max(axis=0)) // 2
    hit = bool(blue[row - 3 : row + 4, column - 3 : column + 4].any())
    assert hit


def test_a_confusion_matrix_shows_shares_of_its_rows(tmp_path):
    figures.save_confusion(tmp_path / "confusion.png", [[90, 0], [500, 500]], title="")
    darkness = 1 - read(tmp_path / "confusion.png").mean(axis=-1)
    height, width = darkness.shape
    # In the upper half of each field, above its count.
    shade = [
        [np.median(darkness[int(height * y), int(width * x) : int(width * x) + 20]) for x in (0.3, 0.75)]
        for y in (0.2, 0.6)
    ]
    assert shade[0][0] > shade[1][0] > shade[0][1]
    np.testing.assert_allclose(shade[1][0], shade[1][1], atol=0.02)
