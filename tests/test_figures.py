"""Figures: what is drawn shows what was given, a notebook shows it as it stands, and files are whole."""

import io
import types

import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from vpf_jax import figures
from vpf_jax.checks import SettingError


def pixels_of(figure):
    """[height, width, 3] in [0, 1], as a notebook shows it."""
    return matplotlib.image.imread(io.BytesIO(figure._repr_png_()))[..., :3]


def test_tiles_show_white_for_one_and_black_for_zero():
    images = np.zeros((6, 4, 4))
    images[3:] = 1.0
    pixels = pixels_of(figures.tiles(images, title="", columns=3)).mean(axis=-1)
    middle = pixels[:, pixels.shape[1] // 2]
    # From the top: margin, a row of black tiles, a row of white ones.
    black = np.flatnonzero(middle < 0.02)
    assert 0.25 < len(black) / len(middle) < 0.55
    assert middle[black.max() + 20] > 0.98


def test_signed_tiles_show_the_sign_and_each_has_its_own_scale():
    images = np.stack([np.full((4, 4), -1e-3), np.full((4, 4), 5.0)])
    pixels = pixels_of(figures.tiles(images, title="", columns=2, signed=True))
    redder = pixels[..., 0] - pixels[..., 2]
    middle = pixels.shape[1] // 2
    # Both tiles at full strength, though one weight is 5,000 times the other.
    assert redder[:, :middle].min() < -0.2
    assert redder[:, middle:].max() > 0.2
    assert redder[:, :middle].max() < 0.05
    assert redder[:, middle:].min() > -0.05


def test_an_all_zero_filter_is_drawn_without_warning():
    assert pixels_of(figures.tiles(np.zeros((1, 3, 3)), title="one", signed=True)).size


@pytest.mark.parametrize("shape", [(5, 20), (20, 5), (1, 20), (20, 1), (1, 784), (1, 1)])
def test_tiles_of_any_shape_have_their_proportions(shape):
    """Sides of the black area of one tile; very long ones are drawn thicker, so that they can be seen."""
    black = np.argwhere(pixels_of(figures.tiles(np.zeros((1, *shape)), title="", columns=1)).mean(axis=-1) < 0.02)
    height, width = black.max(axis=0) - black.min(axis=0) + 1
    assert height >= 2
    assert width >= 2
    if max(shape) <= 20:
        assert height / width == pytest.approx(shape[0] / shape[1], rel=0.35)


def test_tiles_take_colours():
    images = np.zeros((2, 4, 4, 3))
    images[0, ..., 0] = images[1, ..., 1] = 1
    pixels = pixels_of(figures.tiles(images, title="", columns=2))
    assert pixels[pixels.shape[0] // 2, 20].tolist() == [1, 1, 1]
    middle = pixels.shape[1] // 2
    for side, colour in ((pixels[:, :middle], [1, 0, 0]), (pixels[:, middle:], [0, 1, 0])):
        pure = np.all(side == np.array(colour, np.float32), axis=-1).mean()
        assert pure > 0.1
    with pytest.raises(SettingError, match=r"got images=.*\[2, 4, 4, 3\].*; it takes images \[n, height, width\]$"):
        figures.tiles(images, title="", signed=True)


@pytest.mark.parametrize("images", [np.zeros((3, 4)), np.zeros((0, 4, 4)), np.zeros((2, 4, 4, 4)), np.zeros((2, 0, 3))])
def test_what_is_no_images_is_refused(images):
    with pytest.raises(SettingError, match=r"got images=.*; it takes images"):
        figures.tiles(images, title="")


@pytest.mark.parametrize("number", [1, 5])
def test_curves_and_histograms_grow_with_their_panels(number):
    curves = {f"c{i}": ([1, 2, 3], [i, 2.0, 3.0]) for i in range(number)}
    values = [np.linspace(0, 1, 9)] * number
    for figure in (
        figures.curves(curves | {"empty": ([], [])}, title="t"),
        figures.histograms(values, names=[str(i) for i in range(number)], xlabel="x", title="t"),
    ):
        pixels = pixels_of(figure)
        assert pixels.shape[0] > 150 * number
        assert pixels.min() < 0.5
    with pytest.raises(SettingError, match=r"got curves=.*; it takes one or more that are not empty"):
        figures.curves({"empty": ([], [])}, title="t")


def test_a_picture_replaces_an_older_one_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "tiles.png"
    path.write_bytes(b"old")
    figure = figures.tiles(np.zeros((1, 3, 3)), title="a title that is\nlong")
    figures.save(path, figure)
    assert [p.name for p in tmp_path.iterdir()] == ["tiles.png"]
    assert path.read_bytes() == figure._repr_png_()
    with Image.open(path) as file:
        assert file.info["Title"] == "a title that is long"


@pytest.mark.slow
def test_the_suffix_gives_the_format(tmp_path):
    figure = figures.tiles(np.zeros((1, 3, 3)), title="t")
    for name, start in (("a.svg", b"<?xml"), ("a.pdf", b"%PDF"), ("a.PNG", b"\x89PNG"), ("a", b"\x89PNG")):
        figures.save(tmp_path / name, figure)
        assert (tmp_path / name).read_bytes().startswith(start)
    with pytest.raises(SettingError, match=r"got path='.*a.docx'; it takes the suffix of a picture: .*png"):
        figures.save(tmp_path / "a.docx", figure)
    with pytest.raises(OSError, match="No such file") as refusal:
        figures.save(tmp_path / "missing" / "a.png", figure)
    assert refusal.value.filename.endswith("a.png")
    assert not list(tmp_path.glob(".*"))


def test_a_notebook_shows_a_figure_once():
    """With its inline backend, which knows figures of its own, and without."""
    from IPython.core.formatters import DisplayFormatter
    from matplotlib_inline.backend_inline import select_figure_formats

    figure = figures.lines({"one": ([1, 2], [3, 4], None)}, xlabel="x", ylabel="y", title="t")
    shown, _ = DisplayFormatter().format(figure)
    assert sorted(shown) == ["image/png", "text/plain"]
    shell = types.SimpleNamespace(display_formatter=DisplayFormatter())
    select_figure_formats(shell, {"png"})
    shown, _ = shell.display_formatter.format(figure)
    assert sorted(shown) == ["image/png", "text/plain"]


def test_an_animation_shows_its_frames_in_turn(tmp_path):
    frames = [figures.tiles(np.full((2, 4, 4), shade), title="t") for shade in (0.0, 0.5, 1.0)]
    found = figures.animation(frames, seconds=0.2)
    figures.save(tmp_path / "samples.gif", found)
    with Image.open(tmp_path / "samples.gif") as file:
        assert file.n_frames == 3
        assert file.info["loop"] == 0
        for number, duration in enumerate((200, 200, 800)):
            file.seek(number)
            assert file.info["duration"] == duration
            shown = np.asarray(file.convert("RGB")) / 255
            np.testing.assert_allclose(shown, pixels_of(frames[number]), atol=0.05)
    assert len(repr(found)) < 80
    assert found._repr_html_().startswith('<img src="data:image/gif;base64,R0lGOD')
    with pytest.raises(SettingError, match=r"got frames=.*0 figures of 0 sizes.*; it takes figures of one size"):
        figures.animation([])
    with pytest.raises(SettingError, match="got frames="):
        figures.animation([frames[0], figures.tiles(np.zeros((30, 4, 4)), title="t")])


def test_rows_of_reconstructions_lie_one_under_the_other_right_of_their_names():
    shades = {"black": 0.0, "grey": 0.5, "white": 1.0}
    rows = {name: np.full((6, 4, 4), shade) for name, shade in shades.items()}
    pixels = pixels_of(figures.reconstructions(rows, title="")).mean(axis=-1)
    column = pixels[:, int(0.8 * pixels.shape[1])]
    black, grey = np.flatnonzero(column < 0.02), np.flatnonzero(np.abs(column - 0.5) < 0.02)
    assert 0 < black.min() < black.max() < grey.min() < grey.max() < 0.75 * len(column)
    # The names: ink in the margin at the left, beside white.
    margin = pixels[:, : int(0.05 * pixels.shape[1])]
    assert margin.min() < 0.9
    assert margin.max() > 0.98


def test_rows_of_unequal_length_are_refused():
    with pytest.raises(SettingError, match="same shape"):
        figures.reconstructions({"a": np.ones((2, 3, 3)), "b": np.ones((1, 3, 3))}, title="")
    with pytest.raises(SettingError, match="one or more"):
        figures.reconstructions({}, title="")


def test_lines_are_drawn_with_error_bars_on_linear_and_logarithmic_axes():
    x, y = [1, 10, 100], np.array([1.0, 10.0, 100.0])
    pictures = {}
    for name, errors, log in (("bare", None, False), ("bars", 0.5 * y, False), ("log", None, True)):
        figure = figures.lines({"one": (x, y, errors)}, xlabel="x", ylabel="y", title="t", logx=log, logy=log)
        pictures[name] = pixels_of(figure)
    for other in ("bars", "log"):
        differs = bool(np.any(pictures["bare"] != pictures[other]))
        assert differs
    # On both logarithmic axes the three points are evenly spread: the middle one lies in the middle, and is blue.
    blue = pictures["log"][..., 2] - pictures["log"][..., 0] > 0.4
    marked = np.argwhere(blue)
    row, column = (marked.min(axis=0) + marked.max(axis=0)) // 2
    hit = bool(blue[row - 3 : row + 4, column - 3 : column + 4].any())
    assert hit


def test_every_line_has_a_look_of_its_own():
    given = {str(i): ([0, 1], [i, i], None) for i in range(20)}
    (axes,) = figures.lines(given, xlabel="x", ylabel="y", title="t").axes
    drawn = [container.lines[0] for container in axes.containers]
    assert [line.get_color() for line in drawn[: len(figures.COLOURS)]] == list(figures.COLOURS)
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == 20
    # Colours of neighbouring lines stay apart for readers who see no red, or no green (Machado et al. 2009).
    protan = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    colours = np.array([matplotlib.colors.to_rgb(colour) for colour in figures.COLOURS])
    for seen in (np.array(protan), np.array(deutan)):
        shown = colours @ seen.T
        apart = np.linalg.norm(shown[:, None] - shown[None], axis=-1) + np.eye(len(shown))
        assert apart.min() > 0.15


def test_a_long_title_is_broken_and_stays_inside():
    pixels = pixels_of(figures.tiles(np.zeros((1, 8, 8)), title="weights of the first hidden layer, " * 3)).mean(-1)
    assert pixels[:, :2].min() > 0.98
    assert pixels[:, -2:].min() > 0.98


def test_a_confusion_matrix_shows_shares_of_its_rows():
    darkness = 1 - pixels_of(figures.confusion([[90, 0], [500, 500]], title="")).mean(axis=-1)
    height, width = darkness.shape
    # In the upper half of each field, above its count.
    shade = [
        [np.median(darkness[int(height * y), int(width * x) : int(width * x) + 20]) for x in (0.3, 0.75)]
        for y in (0.2, 0.6)
    ]
    assert shade[0][0] > shade[1][0] > shade[0][1]
    np.testing.assert_allclose(shade[1][0], shade[1][1], atol=0.02)


def test_crossed_quantities_have_a_panel_for_each_pair():
    x, y = np.array([[1.0, 10.0], [2.0, 30.0]]), np.array([[-9.0, 3.0], [-8.0, 4.0]])
    given = {"one": (x, y, 0.1 * np.abs(y)), "other": (2 * x, y + 1, None)}
    figure = figures.crossed(given, xlabels=("a", "b"), ylabels=("c", "d"), title="t")
    panels = figure.get_axes()
    assert [(axes.get_xlabel(), axes.get_ylabel()) for axes in panels] == [("", "c"), ("", ""), ("a", "d"), ("b", "")]
    drawn = panels[3].get_lines()[0].get_xydata()
    np.testing.assert_array_equal(drawn, [[10, 3], [30, 4]])
    assert all(axes.get_xscale() == "log" for axes in panels)
    with pytest.raises(SettingError, match="got lines="):
        figures.crossed({"one": (x[:, :1], y, None)}, xlabels=("a", "b"), ylabels=("c", "d"), title="t")


def test_scatters_draw_every_pair_of_numbers_and_the_line_of_equals():
    x, y = np.array([0.0, 0.5, 1.0]), np.array([0.1, 0.4, 0.8])
    many = np.random.default_rng(0).normal(size=(2, 20_000))
    figure = figures.scatters({"few": (x, y), "many": tuple(many)}, xlabel="data", ylabel="samples", title="t")
    few, dense = figure.get_axes()
    diagonal, dots = few.get_lines()
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    np.testing.assert_array_equal(dots.get_xydata(), np.stack([x, y], axis=1))
    assert (few.get_xlim(), few.get_title(), few.get_xlabel(), few.get_ylabel()) == (
        few.get_ylim(),
        "few",
        "data",
        "samples",
    )
    # Of many numbers the cells hold all.
    assert dense.collections[0].get_array().sum() == 20_000
    assert pixels_of(figure).min() < 0.1
    with pytest.raises(SettingError, match="two vectors of one length"):
        figures.scatters({"few": (x, y[:2])}, xlabel="", ylabel="", title="")
    with pytest.raises(SettingError, match="one or more"):
        figures.scatters({}, xlabel="", ylabel="", title="")


def test_densities_lie_over_one_another_on_the_same_bins():
    values = np.random.default_rng(0).normal(size=500)
    figure = figures.densities({"one": values, "other": 2 * values}, xlabel="x", title="t")
    (axes,) = figure.get_axes()
    outlines = [patch.get_xy() for patch in axes.patches]
    np.testing.assert_allclose(outlines[0][:, 0].max(), outlines[1][:, 0].max())
    # Each of area 1.
    for outline in outlines:
        steps = np.diff(outline[:, 0]) * outline[:-1, 1]
        assert steps[steps > 0].sum() == pytest.approx(1)
    # Whole numbers have bins of their own.
    figure = figures.densities({"counts": np.repeat([0, 1, 3], [2, 1, 1])}, xlabel="x", title="t")
    heights = figure.get_axes()[0].patches[0].get_xy()[:, 1]
    assert set(heights.tolist()) == {0, 0.25, 0.5}
    for wrong in (np.ones(0), np.array([np.nan])):
        with pytest.raises(ValueError, match=r"one number or more|not finite"):
            figures.densities({"one": wrong}, xlabel="x", title="t")


def test_matrices_have_one_scale_and_their_signs():
    one, other = np.diag([1.0, -1.0, 0.5]), np.zeros((3, 3))
    figure = figures.matrices({"planted": one, "learnt": other}, xlabel="neuron", ylabel="neuron", title="t")
    drawn = [axes.get_images()[0] for axes in figure.get_axes()[:2]]
    assert drawn[0].get_clim() == drawn[1].get_clim() == (-1, 1)
    np.testing.assert_array_equal(drawn[0].get_array(), one)
    red, blue = drawn[0].cmap(1.0), drawn[0].cmap(0.0)
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert pixels_of(figure).min() < 0.5
    assert pixels_of(figures.matrices({"zero": other}, xlabel="", ylabel="", title="")).size
    with pytest.raises(SettingError, match=r"got values=.an array \[3\].; it takes matrices"):
        figures.matrices({"a": np.ones(3)}, xlabel="", ylabel="", title="")


def test_a_comparison_has_a_panel_for_each_quantity():
    x = np.linspace(0, 1, 30)
    counts = {"data": np.array([0.5, 0, 0.5]), "samples": np.array([0.2, 0.6, 0.2])}
    figure = figures.comparison({"means": (x, x**2)}, counts, {"energy": {"data": x, "samples": 2 * x}}, title="t")
    scatter, probabilities, energies = figure.get_axes()
    assert (scatter.get_xlabel(), scatter.get_ylabel(), energies.get_xlabel()) == ("data", "samples", "energy")
    lines = {line.get_label(): line.get_xydata().tolist() for line in probabilities.get_lines()}
    # What never occurs has no place on a logarithmic axis.
    assert lines == {"data": [[0, 0.5], [2, 0.5]], "samples": [[0, 0.2], [1, 0.6], [2, 0.2]]}
    assert probabilities.get_yscale() == "log"
    assert pixels_of(figure).min() < 0.1


def test_a_raster_of_words_needs_no_images():
    figure = figures.raster({"spikes": ([0, 3, 5], [1, 2, 1])}, {}, title="t", xlabel="bin")
    (axes,) = figure.get_axes()
    assert axes.get_xlabel() == "bin"
    assert axes.get_legend() is None
    assert axes.get_lines()[0].get_xydata().tolist() == [[0, 1], [3, 2], [5, 1]]
