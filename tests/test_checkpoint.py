"""Checkpoints: bit-exact round trips, the newest sound one, damage that is never loaded, stacks read from a run."""

import dataclasses
import errno
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import training
from flax import struct
from typed import refused

import vpf_jax
from vpf_jax import checkpoint, train, units
from vpf_jax.checkpoint import (
    KEPT,
    CheckpointError,
    CheckpointMismatchError,
    restore_checkpoint,
    save_checkpoint,
)
from vpf_jax.loading import load_stack


@functools.cache
def state(seed, sizes=(6, 5, 4), **settings):
    stack = vpf_jax.init_stack(jax.random.key(seed), sizes, intra=True)
    return train.init_state(jax.random.key(seed + 1), stack, training(**settings))


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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: state(0, (6, 3)),
            r"stack/0/biases/1 of shape \(5,\) and float32, where .* of shape \(3,\) and float32",
        ),
        (
            lambda: state(0, schedule="cosine"),
            r"no optimizer/1/count, where optimizer/1/count of shape \(\) and int32",
        ),
        (lambda: state(0, rule="pcd"), "no carry/0/0, where carry/0/0 of shape"),
        (lambda: dataclasses.replace(state(0), optimizer=()), "optimizer/0/count .*, where no optimizer/0/count is"),
        (lambda: dataclasses.replace(state(0), epoch=jnp.zeros((), jnp.uint8)), r"epoch of .* int32, where .* uint8"),
        (lambda: dataclasses.replace(state(0), key=jax.random.key(0, impl="rbg")), "key .* threefry2x32, where .* rbg"),
    ],
)
def test_a_checkpoint_of_something_else_is_an_error_that_names_the_leaf(tmp_path, other, message):
    save_checkpoint(tmp_path, 1, state(1))
    with refused(CheckpointMismatchError, match=message) as caught:
        restore_checkpoint(tmp_path, other())
    assert isinstance(caught.value, ValueError)
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


def test_the_newest_is_what_was_saved_last_and_is_never_removed(tmp_path):
    for step in (10, 20, 1, 2, 3):
        save_checkpoint(tmp_path, step, state(step))
        found, tree, _ = restore_checkpoint(tmp_path, state(0))
        assert found == step
        assert_same(tree, state(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]


@pytest.mark.parametrize("step", [1.5, -1, True, "3", None])
def test_a_step_is_an_integer_of_at_least_0(tmp_path, step):
    # Under jaxtyping's import hook the annotation refuses other types.
    with pytest.raises((ValueError, TypeError), match=r"it takes an integer of at least 0|Type-check error"):
        save_checkpoint(tmp_path / "saved", step, state(0))
    assert not (tmp_path / "saved").exists()


def test_what_cannot_be_stored_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"values than JSON can hold .*int64"):
        save_checkpoint(tmp_path, 1, state(1), {"epoch": np.int64(3)})
    with pytest.raises(ValueError, match="two leaves at 'a/b'"):
        save_checkpoint(tmp_path, 1, {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}})


def flip(file, byte, bit):
    data = bytearray(file.read_bytes())
    data[byte] ^= 1 << bit
    file.write_bytes(data)


def test_no_flipped_bit_is_loaded(tmp_path):
    saved = tmp_path / "saved"
    save_checkpoint(saved, 1, state(1), {"seconds": 0.1})
    rng = np.random.default_rng(0)
    refused = 0
    for file in sorted(p for p in (saved / "1").rglob("*") if p.is_file()):
        for byte, bit in zip(rng.integers(0, file.stat().st_size, 6), rng.integers(0, 8, 6), strict=True):
            shutil.copytree(saved, tmp_path / "flipped")
            flip(tmp_path / "flipped" / file.relative_to(saved), byte, bit)
            try:
                step, tree, info = restore_checkpoint(tmp_path / "flipped", state(0))
            except CheckpointError:
                refused += 1
            else:
                # A byte that says nothing of the arrays.
                assert (step, info) == (1, {"seconds": 0.1})
                assert_same(tree, state(1))
            shutil.rmtree(tmp_path / "flipped")
    assert refused > 20


def test_arrays_of_another_checkpoint_are_not_taken_for_its_own(tmp_path, caplog):
    save_checkpoint(tmp_path, 1, state(1))
    save_checkpoint(tmp_path, 2, state(2))
    shutil.rmtree(tmp_path / "2" / "arrays")
    shutil.copytree(tmp_path / "1" / "arrays", tmp_path / "2" / "arrays")
    step, tree, _ = restore_checkpoint(tmp_path, state(0))
    assert step == 1
    assert_same(tree, state(1))
    assert "checkpoint 2 in" in caplog.text
    assert "its files are not those that were saved" in caplog.text


def test_what_orbax_reads_is_compared_with_what_was_saved(tmp_path, caplog, monkeypatch):
    save_checkpoint(tmp_path, 1, state(1))
    read = checkpoint._restore_arrays
    monkeypatch.setattr(checkpoint, "_restore_arrays", lambda *args: read(*args) | {"epoch": np.full((), 7, np.int32)})
    with pytest.raises(CheckpointError, match="are damaged"):
        restore_checkpoint(tmp_path, state(0))
    assert "its arrays are not those that were saved" in caplog.text


def test_a_copy_under_another_number_is_damage(tmp_path, caplog):
    save_checkpoint(tmp_path, 4, state(4))
    shutil.copytree(tmp_path / "4", tmp_path / "999")
    assert restore_checkpoint(tmp_path, state(0))[0] == 4
    assert "checkpoint 999" in caplog.text
    assert "saved as number 4" in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "999.damaged"]


def test_all_damaged_is_an_error_and_no_second_start_begins_from_nothing(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state(step))
        damage(tmp_path / str(step))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"all checkpoints in .* are damaged; put back a copy"):
            restore_checkpoint(tmp_path, state(0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.damaged", "2.damaged"]


def test_damaged_ones_push_out_no_good_one(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state(step))
    (tmp_path / "2" / "record.json").write_text("{}")
    save_checkpoint(tmp_path, 3, state(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2", "3"]
    assert restore_checkpoint(tmp_path, state(0))[0] == 3
    # Of which the arrays alone are damaged, as resuming finds out.
    damage(tmp_path / "3" / "arrays")
    assert restore_checkpoint(tmp_path, state(0))[0] == 1
    save_checkpoint(tmp_path, 4, state(4))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdecimal()) == ["1", "4"]


def test_a_later_format_is_no_damage(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, state(1))
    monkeypatch.setattr(checkpoint, "FORMAT", 0)
    with pytest.raises(CheckpointError, match="of format 1, which a later version has written"):
        restore_checkpoint(tmp_path, state(0))
    assert (tmp_path / "1").exists()


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (ValueError("OUT_OF_RANGE: Failed to write 27 bytes\nto file 7: File too large"), errno.EFBIG),
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (RuntimeError("something\nelse"), None),
    ],
)
def test_what_cannot_be_written_is_one_sentence_and_leaves_the_earlier_ones(tmp_path, monkeypatch, raised, kind):
    save_checkpoint(tmp_path, 1, state(1))

    def failing(place, leaves, cut):
        place.mkdir()
        (place / "half").write_bytes(b"half")
        raise raised

    monkeypatch.setattr(checkpoint, "_save_arrays", failing)
    with pytest.raises(CheckpointError if kind is None else OSError, match="cannot be written") as caught:
        save_checkpoint(tmp_path, 2, state(2))
    assert getattr(caught.value, "errno", None) == kind
    assert len(str(caught.value).splitlines()) == 1
    monkeypatch.undo()
    assert restore_checkpoint(tmp_path, state(0))[0] == 1
    save_checkpoint(tmp_path, 2, state(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_abstract_arrays_say_what_to_read(tmp_path):
    save_checkpoint(tmp_path, 1, state(1))
    _, found, _ = restore_checkpoint(tmp_path, jax.eval_shape(lambda: state(0)))
    assert_same(found, state(1))


def test_a_folder_without_a_record_is_an_error_and_stays(tmp_path):
    # As versions before 0.5.1 have written.
    save_checkpoint(tmp_path, 1, state(1))
    (tmp_path / "2" / "tree").mkdir(parents=True)
    for read in (lambda: restore_checkpoint(tmp_path, state(0)), lambda: load_stack(tmp_path)):
        with pytest.raises(CheckpointError, match=r"got .*/2 without record.json, which is no checkpoint") as caught:
            read()
        assert not isinstance(caught.value, CheckpointMismatchError)
    save_checkpoint(tmp_path, 3, state(3))
    save_checkpoint(tmp_path, 4, state(4))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3", "4"]


@struct.dataclass
class Marked:
    """A tree with a static field, whose leaf stands under a path through it."""

    inner: dict
    kind: str | tuple = struct.field(pytree_node=False, default="binary")


def test_what_a_static_field_holds_is_part_of_the_structure(tmp_path):
    spin = [Marked({"a": jnp.ones(3)}, "spin")]
    save_checkpoint(tmp_path, 1, spin)
    assert_same(restore_checkpoint(tmp_path, [Marked({"a": jnp.zeros(3)}, "spin")])[1], spin)
    for other, told in (("binary", "no 0/kind"), (("spin", "binary"), "0/kind spin, binary")):
        with pytest.raises(CheckpointMismatchError, match=f"holds 0/kind spin, where {told} is asked for"):
            restore_checkpoint(tmp_path, [Marked({"a": jnp.zeros(3)}, other)])
    record = json.loads((tmp_path / "1" / "record.json").read_text())
    assert list(record["leaves"]) == ["0/inner/a", "0/kind"]


@pytest.mark.parametrize("directed", [False, True])
def test_a_stack_is_loaded_by_the_folder_of_its_run(tmp_path, directed):
    def saved(seed):
        stack = state(seed).stack
        return vpf_jax.untie_stack(jax.random.key(9), stack) if directed else stack

    assert load_stack is vpf_jax.load_stack
    with pytest.raises(ValueError, match="holds no checkpoints; it takes the folder of a run"):
        load_stack(tmp_path)
    save_checkpoint(tmp_path / "checkpoints", 3, {"stack": saved(1), "epoch": jnp.zeros(())})
    assert_same(load_stack(tmp_path), saved(1))
    assert_same(load_stack(tmp_path / "checkpoints"), saved(1))
    with pytest.raises(ValueError, match="seed_index=0; it takes None"):
        load_stack(tmp_path, 0)
    (tmp_path / "checkpoints-2").mkdir()
    assert_same(load_stack(tmp_path), saved(1))
    save_checkpoint(tmp_path / "checkpoints-2", 4, {"stack": saved(2)})
    save_checkpoint(tmp_path / "checkpoints-10", 5, {"stack": saved(3)})
    assert_same(load_stack(str(tmp_path)), saved(3))
    # Reading moves nothing.
    damage(tmp_path / "checkpoints-10" / "5")
    with pytest.raises(CheckpointError, match=r"all checkpoints in .*checkpoints-10 are damaged"):
        load_stack(tmp_path)
    assert (tmp_path / "checkpoints-10" / "5").exists()


def test_a_stack_of_one_seed_of_several_is_loaded(tmp_path):
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), state(1).stack, state(2).stack)
    save_checkpoint(tmp_path / "checkpoints", 3, {"stack": together})
    assert_same(load_stack(tmp_path, seed_index=1), state(2).stack)
    for index in (None, 2, -1):
        with pytest.raises(ValueError, match=f"seed_index={index}; it takes an integer from 0 to 1"):
            load_stack(tmp_path, seed_index=index)


@pytest.mark.parametrize("kinds", [units.SPIN, (units.BINARY, units.SPIN)])
def test_the_units_of_a_stack_are_saved_with_it(tmp_path, kinds):
    binary = state(1).stack
    stack = tuple(dataclasses.replace(machine, units=kinds) for machine in binary)
    save_checkpoint(tmp_path, 3, {"stack": stack})
    assert_same(load_stack(tmp_path), stack)
    assert load_stack(tmp_path)[1].units == kinds
    assert_same(restore_checkpoint(tmp_path, {"stack": stack})[1]["stack"], stack)
    with pytest.raises(
        CheckpointMismatchError, match=r"holds stack/0/units .*spin, where no stack/0/units is asked for"
    ):
        restore_checkpoint(tmp_path, {"stack": binary})


def test_a_stack_of_other_couplings_than_matrices_is_refused(tmp_path):
    machine = {"biases": (jnp.ones(2), jnp.ones(1)), "weights": ({"edges": jnp.ones(2)},)}
    save_checkpoint(tmp_path, 3, {"stack": (machine,)})
    with pytest.raises(ValueError, match="holds a stack with couplings that are no matrices; it takes"):
        load_stack(tmp_path)


def test_what_is_no_stack_is_refused(tmp_path):
    save_checkpoint(tmp_path / "checkpoints", 3, {"means": jnp.ones(3)})
    with pytest.raises(ValueError, match="holds checkpoints without a stack; it takes the run"):
        load_stack(tmp_path)


def test_float64_is_not_narrowed_in_silence(tmp_path):
    with jax.enable_x64(True):
        stack = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), state(1).stack)
        save_checkpoint(tmp_path, 1, {"stack": stack})
        assert_same(load_stack(tmp_path), stack)
    with pytest.raises(ValueError, match=r"of float64; that takes jax.config.update"):
        load_stack(tmp_path)


def test_a_record_says_what_is_in_the_checkpoint(tmp_path):
    save_checkpoint(tmp_path, 7, {"a": {"b": jnp.ones((2, 3))}, "key": jax.random.key(0)})
    record = json.loads((tmp_path / "7" / "record.json").read_text())
    assert (record["format"], record["step"], record["order"]) == (1, 7, 1)
    assert record["leaves"]["a/b"] == {"shape": [2, 3], "stored": [2, 3], "dtype": "float32"}
    assert record["leaves"]["key"]["key"] == "threefry2x32"


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_typed_keys_keep_their_kind(tmp_path, impl):
    save_checkpoint(tmp_path, 1, {"key": jax.random.key(3, impl=impl)})
    _, found, _ = restore_checkpoint(tmp_path, {"key": jax.random.key(0, impl=impl)})
    assert found["key"].dtype == jax.random.key(3, impl=impl).dtype
    assert_same(found, {"key": jax.random.key(3, impl=impl)})


def test_of_several_processes_the_first_one_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(CheckpointError, match="got process 1 of 2, counted from 0; the first one writes"):
        save_checkpoint(tmp_path, 1, {"a": jnp.zeros(3)})
    assert not list(tmp_path.iterdir())
