"""Flips of visible units of every kind against ratios of enumerated, or integrated, marginal probabilities.

Hidden units are summed out one value after another, real ones by quadrature; derivatives by real values are finite
differences of the logarithm of that. Fields lie within +-4, where the quadrature is exact to 1e-12.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import assert_close, assert_same_machine, compiled, in_float64, training

from vpf_jax import flip_estimate, init_machine, train, units
from vpf_jax.evaluate.monitor import pseudo_log_likelihood
from vpf_jax.rules import flips, make, neighbours
from vpf_jax.sample.streams import stream_of

MIXED = "groups(2 binary + 6 categorical(3) + 2 gaussian + 1 count + 1 rectified)"
ABOVE = "groups(1 binary + 3 categorical(3) + 1 gaussian)"
SIZES = {MIXED: 12, ABOVE: 5, "categorical(3)": 6}
# Every kind below every sort of hidden layer once, and without one.
PAIRS = [
    ("categorical(3)", "binary"),
    ("categorical(3)", "categorical(3)"),
    ("categorical(3)", "rectified"),
    ("count", "spin"),
    ("count", "normal"),
    ("gaussian", "binary"),
    ("gaussian", "categorical(3)"),
    ("normal", "rectified"),
    ("rectified", "spin"),
    ("binary", "gaussian"),
    ("spin", "count"),
    (MIXED, ABOVE),
    ("categorical(3)", None),
    ("gaussian", None),
    (MIXED, None),
]
FINITE = [pair for pair in PAIRS if pair[1] is None or pair[0] in ("categorical(3)", "binary", "spin")]


def machine_of(visible, hidden, seed=0, inside=True, sizes=None):
    """Random parameters, in the precision at hand."""
    kinds = [units.get(name) for name in (visible, hidden) if name]
    sizes = sizes or [SIZES.get(name, 2 + (i == 0)) for i, name in enumerate((visible, hidden)) if name]
    machine = init_machine(jax.random.key(0), sizes, (0,) if inside else (), kinds)
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(machine)
    machine = jax.tree.unflatten(tree, [jnp.asarray(rng.normal(size=leaf.shape) * 0.4) for leaf in leaves])
    if not inside:
        return machine
    intra = -jnp.abs(jnp.triu(machine.intra[0], 1)) / 2
    owned = machine.owners(0)
    joined = intra if owned is None else jnp.where(owned[:, None] == owned[None], 0, intra)
    return dataclasses.replace(machine, intra=(joined + joined.T, *machine.intra[1:]))


def summed(machine):
    """As the oracles want it."""
    described = []
    for i, n in enumerate(machine.sizes):
        own = np.zeros(n) if machine.own is None or machine.own[i] is None else np.asarray(machine.own[i])
        described.append(
            tuple(
                (kind.name, kind.width, 1.0 if kind.own(1) is None else float(np.exp(own[start])))
                for kind, part in machine.layer_units[i].segments(n)
                for start in range(part.start, part.stop, kind.width)
            )
        )
    below = [np.asarray(block, np.float64) for block in (*machine.biases, *machine.weights)]
    n = machine.sizes[0]
    if len(machine.sizes) == 1:
        described.append(())
        below += [np.zeros(0), np.zeros((n, 0))]
    inside = np.zeros((n, n)) if machine.intra[0] is None else np.asarray(machine.intra[0], np.float64)
    return oracles.SummedMachine((below[0], below[1]), below[2], inside, tuple(described))


def some_rows(machine, number=5, seed=1):
    rng = np.random.default_rng(seed)
    columns = []
    for kind, width, _ in summed(machine).units[0]:
        values = {
            "gaussian": rng.normal(size=(number, 1)),
            "normal": rng.normal(size=(number, 1)),
            "rectified": np.abs(rng.normal(size=(number, 1))) * (rng.uniform(size=(number, 1)) < 0.8),
            "count": rng.poisson(1.2, (number, 1)),
            "binary": rng.integers(0, 2, (number, 1)),
            "spin": 2 * rng.integers(0, 2, (number, 1)) - 1,
        }
        columns.append(values[kind] if kind in values else np.eye(width)[rng.integers(0, width, number)])
    return np.concatenate(columns, axis=1).astype(np.float64)


@functools.cache
def estimator(rule):
    return jax.jit(lambda machine, rows: flip_estimate(rule, machine, rows)[:2])


def check_gradient(rule, machine, rows):
    """Each parameter against central differences of the objective, an intra-layer weight moved at both its places."""
    gradient = estimator(rule)(machine, rows)[1]
    assert jax.tree.structure(gradient) == jax.tree.structure(machine)
    leaves, tree = jax.tree.flatten(machine)
    step = 1e-5
    for number, (leaf, found) in enumerate(zip(leaves, jax.tree.leaves(gradient), strict=True)):
        tied = any(leaf is block for block in machine.intra)
        for place in np.random.default_rng(number).permutation(list(np.ndindex(leaf.shape)))[:12]:
            place = tuple(place)
            move = np.zeros(leaf.shape)
            move[place] = step
            if tied:
                owned = machine.owners(0)
                owned = np.arange(len(leaf)) if owned is None else owned
                if owned[place[0]] == owned[place[1]]:
                    assert found[place] == 0
                    continue
                move[place[::-1]] = step
            ahead, behind = (
                estimator(rule)(
                    jax.tree.unflatten(tree, [*leaves[:number], leaf + sign * move, *leaves[number + 1 :]]), rows
                )[0]
                for sign in (1, -1)
            )
            np.testing.assert_allclose(found[place], (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


# By rule the oracle of one unit. Of real values its second differences carry rounding.
ENUMERATED = {"mpf": (oracles.flow_of_unit, 1e-7), "pl": (oracles.conditional_surprise, 1e-9)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "visible", "hidden"), [*(("mpf", *pair) for pair in PAIRS), *(("pl", *pair) for pair in FINITE)]
)
@in_float64
def test_sums_over_units_are_those_of_the_enumerated_marginal(rule, visible, hidden):
    machine = machine_of(visible, hidden)
    rows, oracle = some_rows(machine), summed(machine)
    of_unit, tolerance = ENUMERATED[rule]
    expected = sum(of_unit(oracle, rows, unit) for unit in range(len(oracle.units[0])))
    assert_close(estimator(rule)(machine, rows)[0], expected.mean(), tolerance)
    check_gradient(rule, machine, rows)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "kind"), [("mpf", "categorical(3)"), ("pl", "categorical(3)"), ("mpf", "count")])
@pytest.mark.parametrize("hidden", ["binary", None])
@in_float64
def test_where_the_data_are_the_machine_s_own_the_expected_gradient_is_zero(rule, kind, hidden):
    expected_gradient_is_zero(rule, machine_of(kind, hidden, sizes=[SIZES.get(kind, 2), 2][: 1 + bool(hidden)]))


@pytest.mark.slow
@pytest.mark.parametrize("rule_kind", ["mpf gaussian", "mpf rectified", "pl gaussian"])
@in_float64
def test_where_real_data_are_the_machine_s_own_the_expected_gradient_is_zero(rule_kind):
    rule, kind = rule_kind.split()
    expected_gradient_is_zero(
        rule, machine_of(kind, "binary" if rule == "mpf" else None, sizes=[2, 2][: 1 + (rule == "mpf")])
    )


def expected_gradient_is_zero(rule, machine):
    """Of two visible units over all of their values, or the nodes of a quadrature."""
    oracle = summed(machine)
    found = [oracles.values_of_kind(*unit) for unit in oracle.units[0]]
    found = [
        (v[:25], logs[:25]) if unit[0] == "count" else (v, logs)
        for (v, logs), unit in zip(found, oracle.units[0], strict=True)
    ]
    rows = np.array([np.concatenate(pair) for pair in itertools.product(*(values for values, _ in found))])
    steps = [
        logs + oracles.neighbour_energy(unit[0], unit[2], v)
        for (v, logs), unit in zip(found, oracle.units[0], strict=True)
    ]
    logs = oracles.log_marginals(oracle, rows) + np.array([sum(pair) for pair in itertools.product(*steps)])
    p = np.exp(logs - oracles.log_sum_exp(logs))
    one = jax.jit(jax.vmap(lambda machine, row: flip_estimate(rule, machine, row[None]).gradient, in_axes=(None, 0)))
    for leaf in jax.tree.leaves(one(machine, jnp.asarray(rows))):
        means, sizes = (np.tensordot(p, part, axes=1) for part in (np.asarray(leaf), np.abs(np.asarray(leaf))))
        np.testing.assert_allclose(means, 0, atol=1e-9 * max(1e-3, sizes.max()))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["mpf", "pl"])
@in_float64
def test_some_units_scaled_up_average_to_all(rule):
    """Units, not entries: of a layer of groups, too."""
    machine = machine_of("groups(2 binary + 6 categorical(3))", "binary", sizes=[8, 2])
    rows = some_rows(machine)
    assert neighbours.num_visible_units(machine) == 4
    some = jax.jit(lambda units: flip_estimate(rule, machine, rows, units)[:2])
    parts = [some(jnp.array([i])) for i in range(4)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 4, *parts)
    whole = estimator(rule)(machine, rows)
    assert_close(mean[0], whole[0])
    assert_same_machine(mean[1], whole[1])


@pytest.mark.slow
@in_float64
def test_chunks_of_units_do_not_show(monkeypatch):
    machine = machine_of("categorical(3)", "categorical(3)", sizes=[12, 6])
    rows = some_rows(machine)

    def found():
        # A new function, which is traced anew.
        return jax.jit(lambda m: flip_estimate("mpf", m, rows)[:2])(machine)

    whole = found()
    # Three units at a time leaves a rest of one.
    monkeypatch.setattr(neighbours, "CHUNK_BYTES", 3 * len(rows) * 3 * 6 * 8)
    chunked = found()
    assert_close(chunked[0], whole[0])
    assert_same_machine(chunked[1], whole[1])


def test_the_terms_never_take_more_than_the_stated_memory():
    machine = init_machine(jax.random.key(0), (800, 196), units=(units.Categorical(4), units.BINARY))
    rows = jnp.tile(jnp.array([1, 0, 0, 0], jnp.uint8), (40, 200))
    flow = jax.jit(lambda m, x: flip_estimate("pl", m, x)[:2])
    used = flow.lower(machine, rows).compile().memory_analysis().temp_size_in_bytes
    # Some arrays of that size, and of the size of the weights, live at once; all terms together would take 25 MB each.
    assert used < 8 * neighbours.CHUNK_BYTES + 4 * 800 * 196 * 4


@pytest.mark.slow
def test_drawn_units_are_of_categories_and_not_of_their_entries():
    machine = machine_of("categorical(3)", "binary", sizes=[21, 2])
    drawn = np.asarray(flips.draw_units(stream_of(jax.random.key(0)), machine, 7))
    np.testing.assert_array_equal(np.sort(drawn), np.arange(7))
    with pytest.raises(ValueError, match="flips_per_step=8; it takes up to the 7 units"):
        make("pl", flips_per_step=8).accepts(machine)


@pytest.mark.slow
@in_float64
def test_two_categories_are_the_two_values_of_bits():
    """A bit is a category of two values whose second field is its own and whose first is 0."""
    bits = machine_of("binary", "binary", sizes=[3, 2])
    spread = np.kron(np.eye(3), [[0.0], [1.0]])
    categories = dataclasses.replace(
        bits,
        biases=(jnp.asarray(spread @ bits.biases[0]), bits.biases[1]),
        weights=(jnp.asarray(spread @ bits.weights[0]),),
        intra=(jnp.asarray(spread @ bits.intra[0] @ spread.T), None),
        units=(units.Categorical(2), units.BINARY),
    )
    rows = some_rows(bits)
    codes = units.Categorical(2).encode(rows.astype(np.int32))
    for rule in ("mpf", "pl"):
        assert_close(estimator(rule)(categories, codes)[0], estimator(rule)(bits, rows)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["categorical(3)", "groups(2 binary + 3 categorical(3))"])
@in_float64
def test_the_monitored_pseudo_likelihood_is_that_of_one_unit_drawn_uniformly(name):
    hidden = "spin" if name == "categorical(3)" else "categorical(3)"
    machine = machine_of(name, hidden, sizes=[6 if hidden == "spin" else 5, 3])
    oracle = summed(machine)
    num = len(oracle.units[0])
    rows = np.tile(some_rows(machine, 1), (60, 1))
    found = np.asarray(compiled(pseudo_log_likelihood)(jax.random.key(0), machine, rows.astype(np.int8)))
    of_units = [-num * oracles.conditional_surprise(oracle, rows[:1], unit)[0] for unit in range(num)]
    which = np.abs(found[:, None] - np.array(of_units)).argmin(axis=1)
    assert_close(found, np.array(of_units)[which], 1e-9)
    # Each of at most three units is missed by sixty draws once in 10^10.
    assert set(which) == set(range(num))


@pytest.mark.slow
def test_the_monitored_pseudo_likelihood_takes_any_kind_without_a_hidden_layer():
    machine = machine_of("gaussian", None)
    oracle, rows = summed(machine), some_rows(machine, 40).astype(np.float32)
    num = len(oracle.units[0])
    found = compiled(pseudo_log_likelihood)(jax.random.key(1), machine, rows)
    of_units = np.array([-num * oracles.conditional_surprise(oracle, rows.astype(np.float64), u) for u in range(num)])
    assert np.abs(np.asarray(found) - of_units).min(axis=0).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("visible", "rule"), [("categorical(3)", "pl"), ("gaussian", "mpf")])
def test_an_epoch_lowers_the_objective(visible, rule):
    source = machine_of(visible, "binary", seed=3, inside=False, sizes=[6, 3])
    rows = some_rows(source, 400, seed=5).astype(source.layer_units[0].dtype)
    config = training(rule, batch_size=20, learning_rate=0.01, weight_decay=0.0)
    start = init_machine(jax.random.key(0), source.sizes, units=source.units)
    state = train.init_state(jax.random.key(1), (start,), config)
    for _ in range(4):
        state, _ = train.train_epoch(state, rows, config=config)
    (learnt,) = train.learnt(state)
    before, after = (estimator(rule)(machine, rows)[0] for machine in (start, learnt))
    assert after < before - 0.01 * abs(before)


def test_what_is_not_defined_is_refused():
    reals, counts = (machine_of(kind, "binary") for kind in ("gaussian", "count"))
    for machine in (reals, counts):
        with pytest.raises(
            ValueError, match=r"below a hidden layer; the pseudo-likelihood sums over all values of a unit"
        ):
            make("pl").accepts(machine)
    for kind in ("categorical(3)", "count", "gaussian", "rectified", MIXED):
        with pytest.raises(ValueError, match="ratio matching takes units of two values"):
            make("ratio").accepts(machine_of(kind, "binary"))
    with pytest.raises(ValueError, match="the exact expectation takes units of two values"):
        make("vpf", expectation="exact").accepts(machine_of("binary", "normal"))
    with pytest.raises(ValueError, match="takes values that are separate"):
        flips.summed_flow(reals, jnp.zeros((2, 3)), jnp.exp)
    with pytest.raises(ValueError, match=r"got units=.* from 0 to 1, at least one"):
        flip_estimate(
            "pl", machine_of("categorical(3)", "binary"), some_rows(machine_of("categorical(3)", None)), np.array([2])
        )
    with pytest.raises(ValueError, match="below a hidden layer; the pseudo-likelihood"):
        pseudo_log_likelihood(jax.random.key(0), counts, jnp.zeros((2, 3), jnp.int32))


@dataclasses.dataclass(frozen=True)
class Ternary(units.Unit):
    """Spins that may rest, at a cost in energy: a kind of which `neighbours` is the default."""

    name: str = "resting spin"

    dtype = np.int8

    def mean(self, z):
        return jnp.zeros_like(z)

    sample = flow = log_normaliser = check = lambda self, *_: None

    def own_energy(self, x):
        return 0.3 * x**2

    def all_values(self):
        return np.array([[-1], [0], [1]], np.int8)


def test_neighbours_are_all_other_values_of_a_finite_number():
    values, log_weights = Ternary().neighbours(jnp.array([[0.0, 1.0]]))
    np.testing.assert_array_equal(jnp.broadcast_to(values, (1, 2, 3, 1))[0, 0, :, 0], [-1, 0, 1])
    np.testing.assert_allclose(log_weights[0], [[-0.3, -np.inf, -0.3], [0, 0.3, -np.inf]], atol=1e-7)
