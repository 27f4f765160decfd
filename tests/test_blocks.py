"""An epoch in blocks: it learns what `train_epoch` learns, wherever it is cut and over however many devices."""

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
from test_sharding import BATCH, NUM, SGD, SIZES, TRAINED, bits, close, on_one
from typed import refused

from vpf_jax import blocks, checkpoint, rules, sharding, train
from vpf_jax.app.devices import local


class InMemory:
    """A source of rows that remembers what it was asked for."""

    def __init__(self, rows):
        self.rows, self.asked = np.asarray(rows), []
        self.num_visible, self.dtype = self.rows.shape[1], self.rows.dtype

    def __len__(self):
        return len(self.rows)

    def blocks(self, rows):
        self.asked = [some.shape for some in rows]
        for some in rows:
            yield self.rows[some]


def trained(name, steps_at_once=None, axes=None, epochs=2):
    make, rule, settings = TRAINED[name]
    config = train.TrainConfig(rule, SGD, epochs=epochs, batch_size=BATCH, **settings)
    state = train.init_state(jax.random.key(0), make(), config)
    if axes is not None:
        state = sharding.shard(state, layouts.mesh(axes))
    source, objectives = InMemory(bits((NUM, SIZES[0]))), []
    for _ in range(epochs):
        state, metrics = blocks.train_epoch_from(state, source, config=config, steps_at_once=steps_at_once)
        objectives.append(metrics.objective)
    return state, objectives, source


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("vpf", None),
        ("vpf", {"data": 4}),
        ("vpf", {"data": 2, "model": 2}),
        ("vpf, fresh, centred", None),
        ("vpf, inside layers", None),
        ("pcd", None),
        ("pcd", {"model": 4}),
        ("mpf", None),
    ],
    ids=str,
)
def test_blocks_learn_what_an_epoch_learns(name, axes):
    state, objectives, source = trained(name, 2, axes)
    wanted, told = on_one(name)
    close(state.stack, wanted)
    np.testing.assert_allclose(np.asarray(objectives), np.asarray(told), rtol=1e-5)
    # Of two processes each has half of the devices along the data axis, and reads its rows alone.
    parts = jax.process_count() if (axes or {}).get("data", 1) == 4 else 1
    assert source.asked == [(2, BATCH // parts), (1, BATCH // parts), (1, NUM % BATCH // parts)]
    assert int(state.epoch) == 2


def test_numbers_do_not_depend_on_how_large_blocks_are():
    wanted, objectives, source = trained("vpf, inside layers")
    assert source.asked == [(3, BATCH), (1, NUM % BATCH)]
    found, told, _ = trained("vpf, inside layers", 1)
    for a, b in zip(jax.tree.leaves(found.stack), jax.tree.leaves(wanted.stack), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(objectives, told, rtol=1e-6)


def test_an_epoch_that_is_kept_in_its_middle_goes_on_to_the_same_end(tmp_path):
    config = train.TrainConfig(rules.PCD(), SGD, epochs=1, batch_size=BATCH)
    make = TRAINED["pcd"][0]
    data = np.asarray(bits((NUM, SIZES[0])))
    begun = train.init_state(jax.random.key(0), make(), config)
    whole, metrics = train.train_epoch(jax.tree.map(jnp.copy, begun), data, config=config)

    order = blocks.order_of(begun, NUM)
    assert sorted(order) == list(range(NUM))
    epoch = blocks.open_epoch(begun, config)
    full = data[order[: 3 * BATCH]].reshape(3, BATCH, -1)
    epoch = blocks.train_block(epoch, full[:2], config=config, num_examples=NUM)
    checkpoint.save_checkpoint(tmp_path, 2, epoch)
    step, epoch, _ = checkpoint.restore_checkpoint(tmp_path, jax.eval_shape(lambda: epoch))
    assert step == int(epoch.step) == 2
    epoch = blocks.train_block(epoch, full[2:], config=config, num_examples=NUM)
    epoch = blocks.train_block(epoch, data[order[3 * BATCH :]][None], config=config, num_examples=NUM)
    found, told = blocks.close_epoch(epoch, NUM)
    close((found.stack, found.carry), (whole.stack, whole.carry))
    np.testing.assert_allclose(told.objective, metrics.objective, rtol=1e-6)
    np.testing.assert_allclose(told.max_abs_weight, metrics.max_abs_weight, rtol=1e-6)


def test_a_block_waits_for_the_one_before_it(monkeypatch):
    # Else all blocks of an epoch would be in memory, as calls return before they are done.
    make, rule, _ = TRAINED["vpf"]
    config = train.TrainConfig(rule, SGD, epochs=1, batch_size=2)
    state = train.init_state(jax.random.key(0), make(), config)
    run, ready = blocks._train, []

    def watched(epoch, *given, **settings):
        ready.append(epoch.step.is_ready())
        return run(epoch, *given, **settings)

    monkeypatch.setattr(blocks, "_train", watched)
    source = InMemory(bits((8000, SIZES[0])))
    blocks.train_epoch_from(state, source, config=config, steps_at_once=1000)
    assert ready == [True] * 4


def test_no_more_than_its_rows_is_asked_of_a_process():
    mesh = layouts.mesh({"data": 2})
    rows = sharding.rows_of_process(mesh, 12)
    parts = np.split(np.arange(12), jax.process_count())
    np.testing.assert_array_equal(rows, parts[jax.process_index()])
    values = np.arange(2 * 12 * 3).reshape(2, 12, 3)
    np.testing.assert_array_equal(local(sharding.together(values[:, rows], mesh, values.shape)), values)
    # Of one row, and of devices along other axes than that of examples, all of them.
    np.testing.assert_array_equal(sharding.rows_of_process(mesh, 1), [0])
    np.testing.assert_array_equal(sharding.rows_of_process(layouts.mesh({"model": 2}), 12), np.arange(12))
    # Of the devices of another process no rows: half a mesh, as one of two processes has it.
    other = jax.sharding.NamedSharding(layouts.mesh({"data": 4, "model": 2}), jax.sharding.PartitionSpec("data"))
    assert {tuple(rows.indices(12)[:2]) for (rows,) in other.devices_indices_map((12,)).values()} == {
        (0, 3),
        (3, 6),
        (6, 9),
        (9, 12),
    }


def test_what_does_not_fit_is_refused():
    make, rule, _ = TRAINED["vpf"]
    config = train.TrainConfig(rule, SGD, epochs=1, batch_size=BATCH)
    state = train.init_state(jax.random.key(0), make(), config)
    data = np.asarray(bits((NUM, SIZES[0])))

    def started():
        return jax.tree.map(jnp.copy, state)

    def epoch(source, **given):
        return blocks.train_epoch_from(started(), source, config=config, **given)

    with refused(ValueError, match="got examples of 15 entries; the stack takes 16"):
        epoch(InMemory(data[:, :15]))
    with refused(ValueError, match="got batch_size=40 with 39 examples"):
        epoch(InMemory(data[:39]))
    over = sharding.shard(started(), sharding.make_mesh({"data": 3}))
    with refused(ValueError, match="multiples of the 3 devices along the data axis"):
        blocks.train_epoch_from(over, InMemory(data), config=config)
    with refused(ValueError, match="steps_at_once"):
        epoch(InMemory(data), steps_at_once=0)
    with refused(ValueError, match="visible states"):
        epoch(InMemory(data + 1))
    with refused(ValueError, match="for the settings"):
        blocks.open_epoch(started(), None)
    with refused(ValueError, match="got a tuple for the state"):
        blocks.open_epoch(make(), config)
    several = jax.vmap(lambda key: train.init_state(key, make(), config))(jax.random.split(jax.random.key(0), 2))
    with refused(ValueError, match="several seeds"):
        blocks.open_epoch(several, config)
    opened = blocks.open_epoch(started(), config)
    for shape in [(2, 39, 16), (2, 12, 16), (0, 40, 16), (1, 40, 15), (40, 16)]:
        with refused(
            ValueError, match="a block takes minibatches \\[steps, 40, 16\\], or the last one, \\[1, 12, 16\\]"
        ):
            blocks.train_block(opened, np.zeros(shape, np.uint8), config=config, num_examples=NUM)
    with refused(ValueError, match="num_examples"):
        blocks.train_block(opened, np.zeros((1, 40, 16), np.uint8), config=config, num_examples=39)
