"""Meshes of devices: how arrays lie, that numbers do not depend on it, and what a step sends."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import optax
import pytest
from families import OneToOne, one_to_one
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from typed import refused

import vpf_jax
from benchmarks.collectives import bytes_of, collectives
from vpf_jax import rules, sharding, train
from vpf_jax.app.devices import local
from vpf_jax.evaluate.ais import ais_log_partition
from vpf_jax.examples import Examples
from vpf_jax.sample import streams
from vpf_jax.stack import in_chunks

SIZES = (16, 8, 8)
MESHES = ({"data": 8}, {"model": 4}, {"data": 2, "model": 2})
BOTH = MESHES[-1]
# A last minibatch of 12, which 8 devices do not divide.
BATCH, NUM = 40, 132
# Steps proportional to the gradient: Adam's first ones have its sign, also where it is 0 but for rounding.
SGD = optax.sgd(0.05)
ROUNDING = 2e-6


def bits(shape, seed=0, share=0.3):
    return jnp.asarray(np.random.default_rng(seed).random(shape) < share, jnp.uint8)


def close(found, wanted, tolerance=ROUNDING):
    for a, b in zip(jax.tree.leaves(local(found)), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=tolerance)


def rbm(seed=1):
    return vpf_jax.init_stack(jax.random.key(seed), SIZES[:2])


def intra(seed=1):
    return vpf_jax.init_stack(jax.random.key(seed), SIZES, intra=True)


def deep(seed=1):
    return (vpf_jax.init_machine(jax.random.key(seed), SIZES, (1, 2)),)


def visible_only(seed=1):
    return (vpf_jax.init_machine(jax.random.key(seed), SIZES[:1], (0,)),)


def directed(seed=1):
    return vpf_jax.untie_stack(jax.random.key(9), rbm(seed))


def reals(seed=1):
    return vpf_jax.init_stack(jax.random.key(seed), SIZES[:2], units=("normal", vpf_jax.units.BINARY))


TRAINED = {
    "vpf": (rbm, rules.VPF(), {}),
    "vpf, fresh, centred": (rbm, rules.VPF(estep="minibatch"), {"centred": True}),
    "vpf exact": (rbm, rules.VPF(expectation="exact"), {}),
    "vpf, inside layers": (intra, rules.VPF(), {}),
    "vpf, deep": (deep, rules.VPF(), {}),
    "vpf, visible": (visible_only, rules.VPF(), {}),
    "vpf, directed": (directed, rules.VPF(), {}),
    "cd, inside layers": (intra, rules.CD(2), {}),
    "pcd": (rbm, rules.PCD(), {"max_weight": 1.0}),
    "tethered": (rbm, rules.Tethered(1, 0.2), {}),
    "mpf": (rbm, rules.MPF(), {}),
    "pl": (rbm, rules.PL(), {}),
    "ratio": (rbm, rules.RatioMatching(), {}),
    "tap": (rbm, rules.TAP(), {}),
    "energy discrepancy": (rbm, rules.EnergyDiscrepancy(particles=4), {}),
}


@functools.cache
def on_one(name):
    return trained(name)


def trained(name, axes=None, visible=None, epochs=2):
    """The stack and the objectives after some epochs, over a mesh."""
    make, rule, settings = TRAINED[name]
    config = train.TrainConfig(rule, SGD, epochs=epochs, batch_size=BATCH, **settings)
    state = train.init_state(jax.random.key(0), make(), config)
    visible = bits((NUM, SIZES[0])) if visible is None else visible
    if axes is not None:
        state, visible = sharding.shard((state, visible), layouts.mesh(axes))
    objectives = []
    for _ in range(epochs):
        state, metrics = train.train_epoch(state, visible, config=config)
        objectives.append(metrics.objective)
    return state.stack, objectives


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "axes"),
    [(name, BOTH) for name in TRAINED]
    + [(name, axes) for name in ("vpf, inside layers", "pcd") for axes in MESHES[:2]],
    ids=str,
)
def test_training_over_devices_is_training_on_one(name, axes):
    found, objectives = trained(name, axes)
    wanted, told = on_one(name)
    close(found, wanted)
    np.testing.assert_allclose(np.asarray(objectives), np.asarray(told), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["weights", "missing", "drawn"])
def test_weights_missing_entries_and_drawn_bits_over_devices(what):
    numbers = np.random.default_rng(3).random((NUM, SIZES[0]), np.float32)
    given = {
        "weights": Examples(bits((NUM, SIZES[0])), weights=jnp.asarray(numbers[:, 0])),
        "missing": Examples(bits((NUM, SIZES[0])), missing=jnp.asarray(numbers < 0.2)),
        "drawn": Examples(jnp.asarray(numbers), drawn=True),
    }[what]
    close(trained("vpf", {"data": 4}, given), trained("vpf", None, given))


def test_a_mesh_says_what_it_takes():
    assert sharding.make_mesh().shape == {"seeds": 1, "data": jax.device_count(), "model": 1}
    assert sharding.make_mesh({"model": 2, "data": 2}).shape == {"seeds": 1, "data": 2, "model": 2}
    with refused(ValueError, match="axes among seeds, data, model"):
        sharding.make_mesh({"rows": 2})
    with refused(ValueError, match="positive numbers of devices"):
        sharding.make_mesh({"data": 0})
    with refused(ValueError, match="devices together, which there are"):
        sharding.make_mesh({"data": 10**6})
    with refused(ValueError, match="got a dict for the mesh"):
        sharding.shard(rbm(), {"data": 2})
    with refused(ValueError, match="for \\[0\\].biases\\[1\\] of shape \\(8,\\); it takes a number that divides 8"):
        sharding.shard(rbm(), sharding.make_mesh({"model": 3}))


def test_arrays_lie_on_devices_of_one_process_too():
    first = [device for device in jax.devices() if device.process_index == 0]
    given = {"key": jax.random.key(1), "machine": rbm()[0], "bits": np.asarray(bits((8, 4)))}
    found = sharding.shard(given, sharding.make_mesh({"model": 2}, first))
    for leaf, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(given), strict=True):
        assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)
        assert len(leaf.addressable_shards) == (2 if jax.process_index() == 0 else 0)


def test_where_arrays_lie():
    config = train.TrainConfig(rules.PCD(), batch_size=BATCH)
    state = train.init_state(jax.random.key(0), intra(), config)
    found = sharding.layout(state)
    first = found.stack[0]
    assert first.biases == (P(None), P("model"))
    assert first.weights == (P(None, "model"),)
    assert first.intra == (None, P(None, "model"))
    assert found.optimizer[0].mu[1].weights == (P(None, "model"),)
    assert found.optimizer[0].count == found.epoch == found.key == P()
    assert found.carry[0] == (P("data", None), P("data", "model"))
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    assert sharding.layout(several, seeds=True).stack[0].weights == (P("seeds", None, "model"),)
    assert sharding.layout(bits((4, 4))) == P()


def test_what_is_told_of_a_layout_counts_the_bytes_of_a_device():
    told = sharding.described(rbm(), sharding.make_mesh({"model": 4})).splitlines()
    assert len(told) == 3
    assert told[2].split()[0] == "[0].weights[0]"
    assert told[2].endswith("128 bytes")
    assert told[0].endswith("64 bytes")


def test_a_coupling_says_how_it_is_cut():
    machine, _ = one_to_one()
    assert sharding.layout(machine).weights[0].weights == P()

    class Halved(OneToOne):
        def cut(self, axis):
            return OneToOne(P(axis))

    halved = dataclasses.replace(machine, weights=(Halved(machine.weights[0].weights),))
    assert sharding.layout(halved).weights[0].weights == P("model")


@pytest.mark.parametrize("share", [None, 3])
def test_streams_of_rows_draw_the_rows_of_one_array(share):
    stream = streams.stream_of(jax.random.key(4))
    rows = jnp.array([5, 0, 2, 11])
    own = streams.of_rows(stream, rows)
    if share is not None:
        stream, own = streams.substream(stream, share), streams.substream(own, share)
    whole = streams.uniform(stream, (12, 3, 2))
    np.testing.assert_array_equal(streams.uniform(own, (4, 3, 2)), whole[rows])
    found = streams.substreams(own, 3)
    assert found.shape == (3, 4, 3)
    wanted = streams.uniform(streams.substreams(stream, 3)[2], (12, 5))
    np.testing.assert_array_equal(streams.uniform(found[2], (4, 5)), wanted[rows])


@pytest.mark.parametrize("number", [2, 7, 2500])
def test_passes_over_rows_draw_the_same_over_devices(number):
    stream = streams.stream_of(jax.random.key(4))

    def of(stream, rows):
        return rows, streams.uniform(streams.substream(stream, 1), (rows.shape[0], 2))

    wanted = in_chunks(stream, of, jnp.arange(number), 2)
    with jax.set_mesh(layouts.mesh({"data": 4})):
        found = jax.jit(lambda stream: in_chunks(stream, of, jnp.arange(number), 2))(stream)
    for a, b in zip(local(found), wanted, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_several_seeds_each_on_devices_of_its_own():
    config = train.TrainConfig(rules.VPF(), SGD, epochs=2, batch_size=BATCH)
    visible = bits((NUM, SIZES[0]))

    def start():
        return jax.vmap(lambda seed: train.init_state(jax.random.key(seed), rbm(), config))(jnp.arange(4))

    wanted, _ = train.train_seeds_epoch(start(), visible, config=config, at_once=1)
    for axes in ({"seeds": 4}, {"seeds": 2, "data": 2, "model": 2}):
        mesh = layouts.mesh(axes)
        states = sharding.shard(start(), mesh, seeds=True)
        found, metrics = train.train_seeds_epoch(states, sharding.shard(visible, mesh), config=config, at_once=1)
        close(found.stack, wanted.stack)
        assert metrics.objective.shape == (4,)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vpf", "pcd"])
def test_explicit_axes_and_meshes_of_ones_own(name):
    make, rule, settings = TRAINED[name]
    config = train.TrainConfig(rule, SGD, epochs=2, batch_size=BATCH, **settings)
    devices = layouts.mesh(BOTH).devices.reshape(2, 2)
    mesh = Mesh(devices, ("data", "model"), axis_types=(AxisType.Explicit, AxisType.Explicit))
    wanted, _ = train.train_epoch(train.init_state(jax.random.key(0), make(), config), bits((NUM, 16)), config=config)
    state, visible = sharding.shard((train.init_state(jax.random.key(0), make(), config), bits((NUM, 16))), mesh)
    found, _ = train.train_epoch(state, visible, config=config)
    close(found.stack, wanted.stack)
    assert jax.typeof(found.stack[0].weights[0]).sharding.spec == P(None, "model")


@pytest.mark.slow
def test_data_that_are_cut_by_rows_are_put_together_once_an_epoch():
    config = train.TrainConfig(rules.VPF(), SGD, epochs=1, batch_size=BATCH)
    mesh = layouts.mesh({"data": 4})
    state = sharding.shard(train.init_state(jax.random.key(0), rbm(), config), mesh)
    rows = jax.device_put(bits((NUM, 16)), NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        lowered = jax.jit(lambda state, rows: train.train_epoch(state, rows, config=config)).lower(state, rows)
    found = collectives(lowered.compile().as_text())
    assert [one.times for one in found if (NUM, 16) in one.shapes and one.kind == "all-gather"] == [1]
    assert all(one.kind == "all-reduce" for one in found if one.times > 1)
    found, _ = train.train_epoch(state, rows, config=config)
    wanted, _ = train.train_epoch(train.init_state(jax.random.key(0), rbm(), config), bits((NUM, 16)), config=config)
    close(found.stack, wanted.stack)


@pytest.mark.slow
def test_inside_a_users_own_compiled_function():
    config = train.TrainConfig(rules.VPF(), SGD, epochs=2, batch_size=BATCH)
    wanted, _ = train.train_epoch(train.init_state(jax.random.key(0), rbm(), config), bits((NUM, 16)), config=config)
    mesh = layouts.mesh({"data": 2, "model": 2})
    state, visible = sharding.shard((train.init_state(jax.random.key(0), rbm(), config), bits((NUM, 16))), mesh)

    @jax.jit
    def mine(state, visible):
        return train.train_epoch(state, visible, config=config)[0].stack

    with jax.set_mesh(mesh):
        close(mine(state, visible), wanted.stack)


@pytest.mark.slow
def test_inside_a_users_own_shard_map():
    config = train.TrainConfig(rules.VPF(), SGD, epochs=2, batch_size=10)
    visible = bits((40, 16))

    def mine(visible):
        state = train.init_state(jax.random.key(0), rbm(), config)
        return jax.tree.map(lambda a: a[None], train.train_epoch(state, visible, config=config)[0].stack)

    mesh = Mesh(layouts.mesh({"data": 2}).devices.reshape(2), ("data",), axis_types=(AxisType.Auto,))
    found = jax.jit(jax.shard_map(mine, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False))(visible)
    for i in range(2):
        state = train.init_state(jax.random.key(0), rbm(), config)
        wanted, _ = train.train_epoch(state, visible[20 * i : 20 * i + 20], config=config)
        close(jax.tree.map(lambda a, i=i: a[i], local(found)), wanted.stack)


def program(name, axes, sizes=(64, 32, 32)):
    """Collectives of an epoch of 10 steps of 40 examples."""
    make, rule, settings = TRAINED[name]
    inside = make is intra
    stack = vpf_jax.init_stack(jax.random.key(1), sizes if inside else sizes[:2], intra=inside)
    config = train.TrainConfig(rule, SGD, batch_size=BATCH, epochs=1, **settings)
    mesh = layouts.mesh(axes)
    state, visible = sharding.shard((train.init_state(jax.random.key(0), stack, config), bits((400, sizes[0]))), mesh)
    with jax.set_mesh(mesh):
        lowered = jax.jit(lambda state, visible: train.train_epoch(state, visible, config=config)).lower(state, visible)
    found = collectives(lowered.compile().as_text())
    weights = sum(leaf.size for leaf in jax.tree.leaves(stack)) * 4
    return [one for one in found if one.times == 10], [one for one in found if one.times == 1], weights


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (make, _, _) in TRAINED.items() if make in (rbm, intra)])
def test_along_the_data_axis_a_step_sends_one_gradient(name):
    steps, once, weights = program(name, {"data": 4})
    # Beside it the objective and sums of units, as of centring.
    assert weights <= bytes_of(steps) / 10 <= 1.02 * weights + 4 * 40 + 8 * (64 + 32 + 32)
    assert bytes_of(once) <= 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (make, _, _) in TRAINED.items() if make in (rbm, intra)])
def test_along_the_model_axis_a_step_sends_minibatches_of_units(name):
    steps, _, _ = program(name, {"model": 4})
    # Fields of the lower layer; of layers with weights inside each sweep gathers the weights, fields and states, too.
    of_units, of_weights = 4 * BATCH * (64 + 32 * ("inside" in name)), 4 * 2 * 32**2
    bound = 6 * of_units + 2 * of_weights if "inside" in name else 2.1 * of_units
    assert bytes_of(steps) / 10 <= bound


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vpf", "vpf, inside layers"])
def test_along_both_axes_a_step_sends_both_by_the_parts_of_a_device(name):
    steps, _, weights = program(name, {"data": 2, "model": 4}, (64, 256, 64))
    inside = "inside" in name
    if not inside:
        # Its share of the gradient, and the lower fields of its examples: upper units go nowhere.
        assert bytes_of(steps) / 10 <= (weights + 4 * 64 * 3) / 4 + 4 * (BATCH // 2) * (64 + 1) + 4
    else:
        # Two machines: states and rates of each inner layer, for the gradient, and for the sweep what it takes.
        layers = 256 + 64
        per_sweep, gathered = 2 * 4 * (256**2 + 64**2), 4 * (BATCH // 2) * layers
        assert bytes_of(steps) / 10 <= per_sweep + weights / 4 + 6 * gathered + 4 * BATCH * 64 * 4


@pytest.mark.slow
def test_sampling_and_evaluation_over_devices():
    mesh = layouts.mesh(BOTH)
    stack = intra()
    over = sharding.shard(stack, mesh)
    machine = vpf_jax.init_machine(jax.random.key(8), SIZES[:2])
    whole, rows = sharding.shard(machine, mesh), sharding.shard(bits((21, 16)), mesh)
    betas = jnp.linspace(0, 1, 4)
    points = jnp.asarray(np.random.default_rng(2).random((23, 16)), jnp.float32)

    def measured(stack, machine, rows):
        keys = iter(jax.random.split(jax.random.key(3), 6))
        return (
            vpf_jax.confabulate(next(keys), stack, 37),
            vpf_jax.sample_hidden(next(keys), stack, rows),
            vpf_jax.mean_activations(next(keys), stack, rows),
            vpf_jax.run_tempered(next(keys), machine, (rows[:4], bits((4, 8))), betas, 5),
            vpf_jax.inpaint(next(keys), machine, rows, jnp.arange(16) < 5, 6),
            vpf_jax.parzen_log_likelihood(points[:11], points, 0.3),
            ais_log_partition(next(keys), machine, 16, 20),
        )

    with jax.set_mesh(mesh):
        found = measured(over, whole, rows)
    close(found, measured(stack, machine, bits((21, 16))), 2e-5)
