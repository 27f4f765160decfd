"""Checkpoints: bit-exact round trips, the newest readable one, and what an interrupted write leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vpf_jax
from vpf_jax import train
from vpf_jax.checkpoint import KEPT, restore_checkpoint, save_checkpoint


def state(seed):
    stack = vpf_jax.init_stack(jax.random.key(seed), (6, 5, 4), intra=True)
    return train.init_state(jax.random.key(seed + 1), stack, train.TrainConfig())


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def damage(folder):
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(b"not what was written")


def test_the_state_of_a_run_comes_back_bit_for_bit(tmp_path):
    save_checkpoint(tmp_path / "saved", 7, state(0), {"seconds": 1.5})
    step, found, info = restore_checkpoint(tmp_path / "saved", state(1))
    assert step == 7
    assert info == {"seconds": 1.5}
    assert_same(found, state(0))


def test_nothing_there_is_no_error(tmp_path):
    assert restore_checkpoint(tmp_path / "missing", state(0)) is None
    (tmp_path / "empty").mkdir()
    assert restore_checkpoint(tmp_path / "empty", state(0)) is None


def test_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, step, state(step))
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [3, 4][-KEPT:]
    step, found, _ = restore_checkpoint(tmp_path, state(0))
    assert step == 4
    assert_same(found, state(4))


def test_a_damaged_newest_one_gives_way_to_the_one_before_and_can_be_written_again(tmp_path, caplog):
    save_checkpoint(tmp_path, 1, state(1))
    save_checkpoint(tmp_path, 2, state(2))
    damage(tmp_path / "2")
    step, found, _ = restore_checkpoint(tmp_path, state(0))
    assert step == 1
    assert_same(found, state(1))
    assert "checkpoint 2" in caplog.text
    save_checkpoint(tmp_path, 2, state(3))
    step, found, _ = restore_checkpoint(tmp_path, state(0))
    assert step == 2
    assert_same(found, state(3))


def test_a_write_that_was_cut_short_is_passed_over(tmp_path):
    save_checkpoint(tmp_path, 1, state(1))
    # What a killed writer leaves: a folder under orbax's temporary name.
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (unfinished / "half").write_bytes(b"half")
    step, _, _ = restore_checkpoint(tmp_path, state(0))
    assert step == 1


def test_a_checkpoint_of_another_shape_is_not_taken_for_this_run(tmp_path, caplog):
    save_checkpoint(tmp_path, 1, state(1))
    stack = vpf_jax.init_stack(jax.random.key(0), (6, 3), intra=True)
    other = train.init_state(jax.random.key(1), stack, train.TrainConfig())
    assert restore_checkpoint(tmp_path, other) is None
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_typed_keys_keep_their_kind(tmp_path, impl):
    save_checkpoint(tmp_path, 1, {"key": jax.random.key(3, impl=impl)})
    _, found, _ = restore_checkpoint(tmp_path, {"key": jax.random.key(0, impl=impl)})
    assert found["key"].dtype == jax.random.key(3, impl=impl).dtype
    assert_same(found, {"key": jax.random.key(3, impl=impl)})
