"""Runs of several phases: their order, checkpoints, and resuming to the same bits from wherever they were stopped."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import training
from flax import struct

import vpf_jax
from vpf_jax import checkpoint, train
from vpf_jax.app.phases import PhasedRun

PHASES = (
    training(batch_size=5, epochs=3, learning_rate=0.01),
    training(rule="pcd", batch_size=4, epochs=2, learning_rate=0.01, schedule="cosine"),
)
VISIBLE = jnp.asarray(np.random.default_rng(0).integers(0, 2, (22, 6)), jnp.uint8)


def initial(num_seeds=None):
    def start(seed):
        init_key, train_key = jax.random.split(jax.random.key(seed))
        return train.init_state(train_key, vpf_jax.init_stack(init_key, (6, 4)), PHASES[0])

    return start(0) if num_seeds is None else jax.vmap(start)(jnp.arange(num_seeds))


def open_run(folder, num_seeds=None, checkpoint_every=1):
    return PhasedRun(folder, initial(num_seeds), VISIBLE, PHASES, checkpoint_every=checkpoint_every)


def finish(run):
    return [(epoch, np.asarray(measured.objective).tolist()) for epoch, measured in run.epochs([])]


def leaves(run):
    return [np.asarray(leaf) for leaf in jax.tree.leaves((run.state.stack, run.state.optimizer, run.state.carry))]


def test_phases_follow_one_another(tmp_path):
    run = open_run(tmp_path)
    assert run.epoch == 0
    assert [epoch for epoch, _ in finish(run)] == [1, 2, 3, 4, 5]
    assert len(run.state.carry) == 1
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoints", "checkpoints-2"}
    assert run.info["train_seconds"] > 0
    again = open_run(tmp_path)
    assert again.epoch == 5
    assert finish(again) == []
    assert again.info == run.info


def damage(folder):
    for file in folder.rglob("record.json"):
        file.write_text("{}")


def test_a_phase_whose_checkpoints_are_damaged_is_trained_again(tmp_path, caplog):
    run = open_run(tmp_path)
    finish(run)
    damage(tmp_path / "checkpoints-2")
    again = open_run(tmp_path)
    assert again.epoch == 3
    assert "trained again from the end of epoch 3" in caplog.text
    finish(again)
    for one, other in zip(leaves(run), leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
    # What the last phase has saved needs no earlier one.
    damage(tmp_path / "checkpoints")
    assert open_run(tmp_path).epoch == 5
    damage(tmp_path / "checkpoints-2")
    with pytest.raises(checkpoint.CheckpointError, match=r"all checkpoints in .*checkpoints-2 are damaged"):
        open_run(tmp_path)


def test_a_checkpoint_beyond_its_phase_is_refused(tmp_path):
    run = open_run(tmp_path)
    next(run.epochs([]))
    saved = {field.name: getattr(run.state, field.name) for field in dataclasses.fields(run.state)}
    del saved["chains"]
    checkpoint.save_checkpoint(tmp_path / "checkpoints", 999, saved, run.info)
    with pytest.raises(checkpoint.CheckpointError, match="checkpoints/999 is of an epoch beyond the 3 of this run"):
        open_run(tmp_path)


@pytest.mark.parametrize("num_seeds", [None, 2])
def test_a_run_resumes_to_the_same_bits_from_any_epoch(tmp_path, num_seeds):
    straight = open_run(tmp_path / "straight", num_seeds)
    rows = finish(straight)
    for stopped_after in range(1, 5):
        folder = tmp_path / f"stopped-{stopped_after}"
        stops, seen = [], []
        run = open_run(folder, num_seeds, checkpoint_every=100)
        for epoch, measured in run.epochs(stops):
            seen.append((epoch, np.asarray(measured.objective).tolist()))
            if epoch == stopped_after:
                stops.append(15)
        assert run.saved == stopped_after
        resumed = open_run(folder, num_seeds, checkpoint_every=100)
        assert resumed.epoch == stopped_after
        assert seen + finish(resumed) == rows
        for one, other in zip(leaves(straight), leaves(resumed), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_caller_that_raises_leaves_the_last_checkpoint(tmp_path):
    run = open_run(tmp_path)
    epochs = run.epochs([])
    assert [next(epochs)[0] for _ in range(2)] == [1, 2]
    # What a caller that raises leaves behind.
    epochs.close()
    assert open_run(tmp_path).epoch == 1


def test_what_the_caller_adds_is_saved_with_the_epoch(tmp_path):
    run = open_run(tmp_path)
    for epoch, _ in run.epochs([]):
        run.info.setdefault("rows", []).append(epoch)
    assert open_run(tmp_path).info["rows"] == [1, 2, 3, 4, 5]


@struct.dataclass
class EarlierState:
    """What version 0.2 saved."""

    stack: tuple
    optimizer: tuple
    key: jax.Array
    epoch: jax.Array


def test_a_run_of_an_earlier_version_resumes(tmp_path):
    straight = open_run(tmp_path / "straight")
    rows = finish(straight)
    run = open_run(tmp_path / "earlier")
    epoch, _ = next(run.epochs([]))
    names = [field.name for field in dataclasses.fields(EarlierState)]
    state = EarlierState(**{name: getattr(run.state, name) for name in names})
    checkpoint.save_checkpoint(tmp_path / "earlier" / "checkpoints", epoch, state, run.info)
    resumed = open_run(tmp_path / "earlier")
    assert resumed.epoch == 1
    assert finish(resumed) == rows[1:]
