"""Numbers and the picture of samples against data that a run leaves."""

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from vpf_jax import figures, init_stack, untie_stack
from vpf_jax.app import compare
from vpf_jax.evaluate import comparison

MOMENTS = ("mean_r", "pair_r", "triple_r", "count_distance", "nearest_distance")


def bits(seed, count, num_units=8):
    drawn = np.random.default_rng(seed).random((count, num_units)) < np.linspace(0.2, 0.7, num_units)
    return jnp.asarray(drawn, jnp.uint8)


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing takes longer than all that is measured."""
    monkeypatch.setattr(figures, "save", lambda path, picture: None)


def compared(folder, stack, centres, train, held_out):
    key = jax.random.key(0)
    return compare.compare_with_data(folder, "a run", key, stack, jnp.asarray(centres, jnp.float32), train, held_out)


def test_numbers_are_those_of_samples_and_of_training_data(tmp_path):
    train, held_out, centres = bits(1, 90), bits(2, 70), bits(3, 90)
    stack = init_stack(jax.random.key(1), (8, 3))
    found = compared(tmp_path, stack, centres, train, held_out)
    wanted = comparison.moments(held_out)
    # Means of zeros and ones are the bits themselves; and as many training examples as samples are all of them.
    for end, rows in (("", centres), ("_data", train)):
        for name, one, other in zip(MOMENTS, comparison.moments(rows), wanted, strict=False):
            assert found[name + end] == pytest.approx(np.corrcoef(one, other)[0, 1], abs=1e-5)
        counts = [np.bincount(np.asarray(x).sum(axis=1), minlength=9) / len(x) for x in (rows, held_out)]
        assert found[f"count_distance{end}"] == pytest.approx(np.abs(np.subtract(*counts)).sum() / 2)
        energies = (comparison.free_energies(stack[0], x) for x in (rows, held_out))
        assert found[f"energy_distance{end}"] == pytest.approx(comparison.energy_distance(*energies))
    for end, rows in (("", centres), ("_data", held_out)):
        distances = (np.asarray(rows)[:, None] != np.asarray(train)[None]).sum(axis=2).min(axis=1)
        assert found[f"nearest_distance{end}"] == pytest.approx(distances.mean())
    picture = matplotlib.image.imread(tmp_path / compare.NAME)
    assert min(picture.shape[:2]) > 500
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.usefixtures("undrawn")
def test_samples_that_are_means_become_bits(tmp_path):
    train = bits(1, 90)
    found = compared(tmp_path, init_stack(jax.random.key(1), (8, 3)), np.full((90, 8), 0.5), train, bits(2, 70))
    # Of fair bits 4 of 8 are on most often, while all means are 1/2.
    assert found["count_distance"] < 0.5


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "stack",
    [
        init_stack(jax.random.key(1), (8, 3, 2)),
        init_stack(jax.random.key(1), (8, 3), intra=True),
        untie_stack(None, init_stack(jax.random.key(1), (8, 3))),
    ],
    ids=["deep", "intra-layer", "directed"],
)
def test_energies_without_closed_form_are_left_out(stack, tmp_path):
    found = compared(tmp_path, stack, bits(3, 90), bits(1, 90), bits(2, 70))
    assert set(found) == {name + end for name in MOMENTS for end in ("", "_data")}


def test_an_r_that_does_not_exist_is_none(tmp_path):
    """JSON knows no nan; and of two units there are no triples."""
    same = jnp.ones((5, 2), jnp.uint8)
    found = compared(tmp_path, init_stack(jax.random.key(1), (2, 3)), same, same, same)
    assert (found["mean_r"], found["pair_r"]) == (None, None)
    assert "triple_r" not in found
    assert found["nearest_distance"] == 0
