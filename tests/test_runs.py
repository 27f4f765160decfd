"""The loop over epochs: resumed runs equal uninterrupted ones, and nothing good is lost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import runs
from experiments.workdir import Stopped
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
