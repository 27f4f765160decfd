"""The loop over epochs: resumed runs equal uninterrupted ones through all phases, and nothing good is lost."""

import io
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpf_jax import checkpoint, rules
from vpf_jax.app import loop
from vpf_jax.app.folder import Stopped
from vpf_jax.app.loop import Phase, Progress
from vpf_jax.app.recipes import Recipe, told_of_flow
from vpf_jax.checkpoint import CheckpointError
from vpf_jax.train import Adam, NonFiniteObjectiveError, TrainConfig


def walk(state, epoch):
    key, step = jax.random.split(state["key"])
    x = state["x"] + jax.random.normal(step, (3,))
    return {"key": key, "x": x}, {"size": jnp.sum(x * x)}


def twice(state, epoch):
    return {"twice": 2.0 * epoch} if epoch % 2 == 0 else {}


def start():
    return {"key": jax.random.key(0), "x": jnp.zeros(3)}


def train(folder, state, run_epoch, *, epochs, **options):
    given = {"columns": ("size", "twice"), "checkpoint_every": 2} | options
    return loop.train(folder, state, [Phase(epochs, lambda _: run_epoch)], **given)


def test_a_stopped_run_resumes_to_the_same_bits(tmp_path, capsys):
    whole = train(tmp_path / "whole", start(), walk, epochs=5, stops=[], measure=twice)
    stops = []

    def stopping(state, epoch):
        if epoch == 3:
            stops.append(15)
        return twice(state, epoch)

    with pytest.raises(Stopped, match="SIGTERM; walk, epoch 3 of 5 is saved"):
        train(tmp_path / "parts", start(), walk, epochs=5, stops=stops, measure=stopping, name="walk")
    capsys.readouterr()
    parts = train(tmp_path / "parts", start(), walk, epochs=5, stops=[], measure=twice, name="walk")
    told = capsys.readouterr().out
    assert told.startswith("walk, resuming after epoch 3 of 5\nwalk, epoch 4/5: size ")
    assert ", twice 8, " in told
    np.testing.assert_array_equal(whole.state["x"], parts.state["x"])
    assert whole.rows == parts.rows
    assert whole.column("twice") == ([2, 4], [4.0, 8.0])
    assert (tmp_path / "whole" / "metrics.csv").read_bytes() == (tmp_path / "parts" / "metrics.csv").read_bytes()
    # A finished training is found, and not run again.
    again = train(tmp_path / "parts", start(), None, epochs=5, stops=[], name="walk")
    np.testing.assert_array_equal(again.state["x"], parts.state["x"])
    assert again.seconds == parts.seconds > 0


def test_what_is_not_finite_ends_training_and_the_last_checkpoint_stays(tmp_path):
    def failing(state, epoch):
        state, scalars = walk(state, epoch)
        return state, scalars if epoch < 4 else {"size": jnp.nan}

    with pytest.raises(NonFiniteObjectiveError, match="size is nan in epoch 4"):
        train(tmp_path, start(), failing, epochs=5, stops=[])
    found = train(tmp_path, start(), None, epochs=2, stops=[])
    expected = start()
    for epoch in (1, 2):
        expected, _ = walk(expected, epoch)
    np.testing.assert_array_equal(found.state["x"], expected["x"])


def test_a_finished_training_goes_on_to_the_bits_of_a_longer_one(tmp_path):
    whole = train(tmp_path / "whole", start(), walk, epochs=5, stops=[], measure=twice)
    train(tmp_path / "parts", start(), walk, epochs=3, stops=[], measure=twice)
    parts = train(tmp_path / "parts", start(), walk, epochs=5, stops=[], measure=twice)
    np.testing.assert_array_equal(whole.state["x"], parts.state["x"])
    assert (tmp_path / "whole" / "metrics.csv").read_bytes() == (tmp_path / "parts" / "metrics.csv").read_bytes()


def test_the_table_is_made_again_from_the_checkpoint(tmp_path, caplog):
    train(tmp_path, start(), walk, epochs=4, stops=[], measure=twice)
    table = (tmp_path / "metrics.csv").read_bytes()
    for damaged in (b"", b"null", table[:50], table.replace(b"1", b"2")):
        (tmp_path / "metrics.csv").write_bytes(damaged)
        train(tmp_path, start(), None, epochs=4, stops=[])
        assert (tmp_path / "metrics.csv").read_bytes() == table
    assert "is now metrics.csv.damaged-2" in caplog.text


def test_a_checkpoint_beyond_the_end_is_refused(tmp_path):
    train(tmp_path, start(), walk, epochs=4, stops=[])
    with pytest.raises(CheckpointError, match=r"checkpoints/4 is of an epoch beyond the 3 of this run; remove it"):
        train(tmp_path, start(), walk, epochs=3, stops=[])


def test_a_training_may_end_early(tmp_path):
    found = train(tmp_path, start(), walk, epochs=5, stops=[], measure=twice, until=lambda row: row.get("twice") == 4)
    assert [row["epoch"] for row in found.rows] == [1, 2]
    again = train(tmp_path, start(), None, epochs=5, stops=[], until=lambda row: row.get("twice") == 4)
    np.testing.assert_array_equal(again.state["x"], found.state["x"])


def test_a_signal_between_two_checkpoints_saves_first(tmp_path):
    stops = []

    class Late(list):
        """Arrives after an epoch was looked at."""

        looks = 0

        def __bool__(self):
            Late.looks += 1
            return Late.looks > 4

        def __getitem__(self, _):
            return 15

    with pytest.raises(Stopped, match=r"epoch \d of 5 is saved"):
        train(tmp_path, start(), walk, epochs=5, stops=Late(stops), checkpoint_every=100)
    (saved,) = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert train(tmp_path, start(), walk, epochs=5, stops=[]).rows[saved - 1]["epoch"] == saved


# Phases.

RECIPE = Recipe(
    "walks",
    (4,),
    (
        TrainConfig(epochs=3, batch_size=5, optimizer=Adam(0.01)),
        TrainConfig(rules.PCD(), Adam(0.01, "cosine"), epochs=2, batch_size=4),
    ),
)
VISIBLE = jnp.asarray(np.random.default_rng(0).integers(0, 2, (22, 6)), jnp.uint8)


def run(folder, num_seeds=None, checkpoint_every=1, **options):
    state = RECIPE.initial_state(0, 6) if num_seeds is None else RECIPE.initial_states(range(num_seeds), 6)
    return RECIPE.run(folder, state, VISIBLE, checkpoint_every=checkpoint_every, **{"stops": []} | options)


def stop_after(last):
    """Options with which a signal arrives in an epoch."""
    stops = []

    def measure(state, epoch):
        if epoch == last:
            stops.append(15)
        return {}

    return {"stops": stops, "measure": measure}


def leaves(trained):
    state = trained.state
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state.stack, state.optimizer, state.carry))]


def objectives(trained):
    return trained.column("objective")


@pytest.mark.slow
def test_phases_follow_one_another(tmp_path):
    trained = run(tmp_path, columns=("objective", "max_abs_weight"))
    assert [row["epoch"] for row in trained.rows] == [1, 2, 3, 4, 5]
    assert len(jax.tree.leaves(trained.state.carry)) == 2
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoints", "checkpoints-2", "metrics.csv", ".lock"}
    assert trained.seconds > 0
    again = run(tmp_path)
    assert again.rows == trained.rows
    assert again.seconds == trained.seconds


def damage(folder):
    for file in folder.rglob("record.json"):
        file.write_text("{}")


@pytest.mark.slow
def test_a_phase_whose_checkpoints_are_damaged_is_trained_again(tmp_path, caplog):
    trained = run(tmp_path)
    damage(tmp_path / "checkpoints-2")
    again = run(tmp_path)
    assert "trained again from the end of epoch 3" in caplog.text
    for one, other in zip(leaves(trained), leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
    # What the last phase has saved needs no earlier one.
    damage(tmp_path / "checkpoints")
    assert run(tmp_path).rows == trained.rows
    damage(tmp_path / "checkpoints-2")
    with pytest.raises(checkpoint.CheckpointError, match=r"all checkpoints in .*checkpoints-2 are damaged"):
        run(tmp_path)


@pytest.mark.slow
def test_a_checkpoint_beyond_its_phase_is_refused(tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path, **stop_after(1))
    _, state, info = checkpoint.restore_checkpoint(tmp_path / "checkpoints", RECIPE.initial_state(0, 6))
    checkpoint.save_checkpoint(tmp_path / "checkpoints", 999, state, info)
    with pytest.raises(checkpoint.CheckpointError, match="checkpoints/999 is of an epoch beyond the 3 of this run"):
        run(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [None, 2])
def test_a_run_of_phases_resumes_to_the_same_bits_from_any_epoch(tmp_path, num_seeds):
    straight = run(tmp_path / "straight", num_seeds)
    for last in range(1, 5):
        folder = tmp_path / f"stopped-{last}"
        with pytest.raises(Stopped, match=f"epoch {last} of 5 is saved"):
            run(folder, num_seeds, 100, **stop_after(last))
        resumed = run(folder, num_seeds, 100)
        assert objectives(resumed) == objectives(straight)
        for one, other in zip(leaves(straight), leaves(resumed), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_measure_that_raises_leaves_the_last_checkpoint(tmp_path):
    def fail(state, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, measure=fail)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


@pytest.mark.slow
def test_more_seeds_go_through_as_many_at_once_as_is_asked(tmp_path):
    state = RECIPE.initial_states(range(3), 6)
    found = RECIPE.run(tmp_path / "one", state, VISIBLE, 1, checkpoint_every=9, stops=[])
    both = run(tmp_path / "all", 3)
    # That of PCD is a difference of energies of order one in single precision, and may be near 0.
    np.testing.assert_allclose(objectives(found)[1], objectives(both)[1], rtol=1e-5, atol=5e-7)


ROW = {"objective": 512.25, "max_abs_weight": 0.5}


def test_one_line_per_epoch_without_a_terminal(capsys):
    with Progress(10, 2) as progress:
        progress.report(3, told_of_flow(ROW), 1.25)
        progress.report(4, told_of_flow(ROW | {"parzen_validation": 201.0}), 2.5)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "epoch 3/10: objective 512.25, max |w| 0.50, 1.25 s",
        "epoch 4/10: objective 512.25, max |w| 0.50, Parzen 201.0, 2.50 s",
    ]


def test_a_name_tells_trainings_apart(capsys):
    with Progress(10, 2, "PCD-1") as progress:
        progress.report(3, told_of_flow(ROW), 1.25)
    assert capsys.readouterr().out == "PCD-1, epoch 3/10: objective 512.25, max |w| 0.50, 1.25 s\n"


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(10, 2) as progress:
        progress.report(3, told_of_flow(ROW), 1.25)
    assert capsys.readouterr().out == ""
    # tqdm shows done/total and [elapsed<left].
    assert "3/10" in terminal.getvalue()
    assert "<" in terminal.getvalue()
    assert "objective 512.25" in terminal.getvalue()
