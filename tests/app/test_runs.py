"""The loop over epochs: resumed runs equal uninterrupted ones, and nothing good is lost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import mnist_equilibrium as equilibrium_propagation
from experiments import mnist_target as target_propagation
from vpf_jax.app import runs
from vpf_jax.app.folder import Stopped
from vpf_jax.checkpoint import CheckpointError
from vpf_jax.train import NonFiniteObjectiveError

train = functools.partial(runs.train_epochs, columns=("size", "twice"), checkpoint_every=2)


def walk(state, epoch):
    key, step = jax.random.split(state["key"])
    x = state["x"] + jax.random.normal(step, (3,))
    return {"key": key, "x": x}, {"size": jnp.sum(x * x)}


def twice(state, epoch):
    return {"twice": 2.0 * epoch} if epoch % 2 == 0 else {}


def start():
    return {"key": jax.random.key(0), "x": jnp.zeros(3)}


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
    assert whole.metrics.rows == parts.metrics.rows
    assert whole.metrics.column("twice") == ([2, 4], [4.0, 8.0])
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


def test_a_damaged_measurement_is_made_again(tmp_path, caplog):
    calls = []

    def evaluate(index, seed):
        calls.append(seed)
        return {"value": 10 * seed}

    first = runs.evaluate_seeds(tmp_path, "rule", (3, 4), [], evaluate)
    file = tmp_path / "evaluations" / "rule-4.json"
    good = file.read_bytes()
    # The last one is a measurement in all but its value.
    for damaged in (b"", b"{}", b"[]", b"null", good[:9], good.replace(b"40", b"41")):
        file.write_bytes(damaged)
        assert runs.evaluate_seeds(tmp_path, "rule", (3, 4), [], evaluate) == first
        assert file.read_bytes() == good
    assert calls == [3, 4, *[4] * 6]
    assert "rule-4.json is damaged, and is now rule-4.json.damaged; it is made again" in caplog.text


@pytest.mark.parametrize(
    ("config", "longest"),
    [(target_propagation.Config, 20), (equilibrium_propagation.Config, equilibrium_propagation.ep.PRESETS["1"].epochs)],
)
def test_scripts_say_what_their_epochs_stand_for(config, longest):
    growth = config().growth()["epochs"]
    assert growth.of(config().epochs) == longest
    assert not growth.refused


def test_measurements_are_made_once_for_each_seed(tmp_path):
    calls = []

    def evaluate(index, seed):
        calls.append((index, seed))
        return {"value": 10 * seed + index}

    first = runs.evaluate_seeds(tmp_path, "rule", (3, 4), [], evaluate)
    assert first == [{"value": 30}, {"value": 41}]
    (tmp_path / "evaluations" / "rule-4.json").unlink()
    assert runs.evaluate_seeds(tmp_path, "rule", (3, 4), [], evaluate) == first
    assert calls == [(0, 3), (1, 4), (1, 4)]
    with pytest.raises(Stopped, match="evaluated is saved"):
        runs.evaluate_seeds(tmp_path, "rule", (3, 4), [15], evaluate)
