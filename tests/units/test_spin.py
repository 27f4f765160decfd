"""Machines of spins against the same ones of bits; what takes units of two values alone."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import CASES, assert_close, each_case, in_float64, mapped, training
from unit_machines import TERNARY

import vpf_jax
from vpf_jax import BoltzmannMachine, rules, train, with_units
from vpf_jax.units import BINARY, SPIN


def spins_of(case) -> BoltzmannMachine:
    return with_units(case.machine, SPIN)


def as_spins(states):
    return tuple(2 * jnp.asarray(x).astype(jnp.int8) - 1 for x in states)


@pytest.mark.slow
@each_case()
@in_float64
def test_spins_and_bits_are_the_same_machines(case):
    """Energies differ by one constant, fields by the step, flip rates by nothing; log Z by minus the constant."""
    spins, rows = spins_of(case), case.all_states()
    bits = tuple(jnp.asarray(layer) for layer in np.split(rows, np.cumsum(case.sizes)[:-1], axis=1))
    energies = mapped(vpf_jax.energy)
    difference = energies(spins, as_spins(bits)) - energies(case.machine, bits)
    assert_close(difference, np.full(len(rows), difference[0]))
    for function, step in ((vpf_jax.local_fields, 2), (vpf_jax.flip_rates, 1)):
        batched = mapped(function)
        for a, b in zip(batched(spins, as_spins(bits)), batched(case.machine, bits), strict=True):
            assert_close(step * a, b)
    assert_close(vpf_jax.log_partition_exact(spins) - vpf_jax.log_partition_exact(case.machine), -difference[0])
    back = with_units(spins, BINARY)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(case.machine), strict=True):
        assert_close(a, b)


@pytest.mark.slow
@each_case()
@in_float64
def test_chains_of_spins_are_those_of_bits(case):
    """The same random numbers: each spin is twice its bit minus one, the asynchronous sweep among them."""
    rng = np.random.default_rng(0)
    bits = tuple(jnp.asarray(rng.integers(0, 2, n), jnp.uint8) for n in case.sizes)
    keys = jax.random.split(jax.random.key(3), 20)
    chain = jax.vmap(vpf_jax.run_chain, in_axes=(0, None, None, None))
    ours = chain(keys, spins_of(case), as_spins(bits), 5)
    theirs = chain(jax.random.split(jax.random.key(3), 20), case.machine, bits, 5)
    for a, b in zip(ours, as_spins(theirs), strict=True):
        assert a.dtype == jnp.int8
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@each_case()
@in_float64
def test_the_local_gradient_of_spins_is_that_of_the_objective(case):
    rows = case.all_states()[::3]
    states = as_spins(np.split(rows, np.cumsum(case.sizes)[:-1], axis=1))
    spins = spins_of(case)
    wanted = vpf_jax.tie_intra(jax.grad(vpf_jax.vpf_objective)(spins, states))
    for a, b in zip(jax.tree.leaves(vpf_jax.local_gradient(spins, states)), jax.tree.leaves(wanted), strict=True):
        assert_close(a, b)


@pytest.mark.slow
@each_case("visible", "rbm", "semi_restricted")
@pytest.mark.parametrize("rule", ["mpf", "pl", "ratio"])
@in_float64
def test_sums_over_flips_are_the_same_for_spins(case, rule):
    """The objective is the same number; its gradient that of the function on the spins' own parameters."""
    visible = jnp.asarray(case.all_states()[::5, : case.sizes[0]])
    spins = spins_of(case)
    ours = vpf_jax.flip_estimate(rule, spins, as_spins((visible,))[0])
    assert_close(ours.objective, vpf_jax.flip_estimate(rule, case.machine, visible).objective)

    def objective(machine):
        return vpf_jax.flip_estimate(rule, machine, as_spins((visible,))[0]).objective

    wanted = vpf_jax.tie_intra(jax.grad(objective)(spins))
    for a, b in zip(jax.tree.leaves(ours.gradient), jax.tree.leaves(wanted), strict=True):
        assert_close(a, b)


@pytest.mark.slow
@in_float64
def test_hidden_spins_are_averaged_in_closed_form():
    case = CASES["rbm-moderate"]
    visible = jnp.asarray(case.all_states()[::5, : case.sizes[0]])
    p = jnp.asarray(np.random.default_rng(1).uniform(size=(len(visible), case.sizes[1])))
    spins, s = spins_of(case), as_spins((visible,))[0]
    objective, gradient = vpf_jax.averaged_flow(spins, s, p)
    assert_close(objective, vpf_jax.averaged_flow(case.machine, visible, p)[0])
    wanted = jax.grad(lambda machine: vpf_jax.averaged_flow(machine, s, p)[0])(spins)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        assert_close(a, b)


@pytest.mark.slow
@each_case()
@in_float64
def test_scores_of_spins_are_those_of_bits(case):
    """Pseudo-likelihood, bounds and annealing, by the same random numbers, given log Z of either."""
    visible = jnp.asarray(case.all_states()[::5, : case.sizes[0]])
    s, spins = as_spins((visible,))[0], spins_of(case)
    log_z, spin_log_z = vpf_jax.log_partition_exact(case.machine), vpf_jax.log_partition_exact(spins)
    if case.machine.has_independent_hidden:
        pairs = (spins, s), (case.machine, visible)
        assert_close(*(vpf_jax.pseudo_log_likelihood(jax.random.key(0), *pair) for pair in pairs))
    if len(case.sizes) > 1:
        assert_close(
            vpf_jax.variational_bound(spins, s, spin_log_z, num_updates=200),
            vpf_jax.variational_bound(case.machine, visible, log_z, num_updates=200),
        )
    # Mean field starts elsewhere, inputs from above being zeroed, and settles at the same point. Annealing starts at
    # uniform values in both.
    estimate = vpf_jax.ais_log_partition(jax.random.key(1), spins, 50, 50)
    assert abs(estimate.log_z - spin_log_z) < 5 * estimate.standard_error + 0.05


@pytest.mark.slow
def test_the_conditional_of_a_spin_machine_is_that_of_enumeration():
    """4,000 sweeps of single chains: means within four standard errors of exact sums."""
    machine = vpf_jax.init_machine(jax.random.key(0), (3, 2), (0,), SPIN)
    machine = jax.tree.map(lambda p: 1.5 * p, machine)
    grid = np.array(np.meshgrid(*[[-1, 1]] * 5, indexing="ij")).reshape(5, -1).T
    states = (jnp.asarray(grid[:, :3], jnp.int8), jnp.asarray(grid[:, 3:], jnp.int8))
    p = jax.nn.softmax(-jax.vmap(vpf_jax.energy, in_axes=(None, 0))(machine, states))
    start = (jnp.ones((4000, 3), jnp.int8), -jnp.ones((4000, 2), jnp.int8))
    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = jax.vmap(vpf_jax.run_chain, in_axes=(0, None, 0, None))(keys, machine, start, 20)
    found = np.concatenate([np.asarray(layer, np.float64) for layer in drawn], axis=1)
    expected = np.asarray(p) @ grid
    np.testing.assert_array_less(np.abs(found.mean(axis=0) - expected), 4 * found.std(axis=0) / np.sqrt(4000) + 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("rule", rules.names())
def test_training_on_spins_lowers_the_objective(rule):
    rng = np.random.default_rng(0)
    visible = jnp.asarray(2 * (rng.uniform(size=(60, 6)) < 0.8) - 1, jnp.int8)
    stack = vpf_jax.init_stack(jax.random.key(0), (6, 4), units=SPIN)
    config = training(rule, batch_size=20, learning_rate=0.02, epochs=30)
    state, first = train.train_epoch(train.init_state(jax.random.key(1), stack, config), visible, config=config)
    for _ in range(config.epochs - 1):
        state, last = train.train_epoch(state, visible, config=config)
    bias = np.asarray(state.stack[0].biases[0])
    assert (bias > 0).all()  # the data are mostly +1
    if rule in ("vpf", "mpf", "pl", "ratio"):
        assert float(last.objective) < float(first.objective)


def test_layers_of_different_units_make_one_machine():
    machine = vpf_jax.init_machine(jax.random.key(0), (4, 3), units=(BINARY, SPIN))
    assert machine.layer_units == (BINARY, SPIN)
    visible = jnp.asarray([[0, 1, 1, 0]], jnp.uint8)
    ((_, high),) = vpf_jax.stack.complete(jax.random.key(1), (machine,), visible)
    assert set(np.unique(high).tolist()) <= {-1, 1}
    with pytest.raises(ValueError, match="layer 1 of the state"):
        vpf_jax.energy(machine, (visible[0], jnp.zeros(3)))
    with pytest.raises(ValueError, match="units"):
        vpf_jax.init_machine(jax.random.key(0), (4, 3), units=(BINARY,) * 3)
    with pytest.raises(ValueError, match="of the same units"):
        vpf_jax.stack.check_stack((machine, vpf_jax.init_machine(jax.random.key(0), (3, 2))))


@pytest.mark.slow
def test_spiking_of_spins_flips_between_their_values():
    spins = vpf_jax.init_machine(jax.random.key(0), (4, 3), units=SPIN)
    start = jnp.ones(4, jnp.int8), -jnp.ones(3, jnp.int8)
    run = vpf_jax.run_spiking(jax.random.key(1), spins, start, 300)
    assert {int(x) for layer in run.state for x in layer} <= {-1, 1}
    bits = with_units(spins, BINARY)
    same = vpf_jax.run_spiking(jax.random.key(1), bits, tuple((x + 1) // 2 for x in start), 300)
    np.testing.assert_array_equal(run.events.units, same.events.units)
    np.testing.assert_allclose(run.events.times, same.events.times, rtol=1e-4)
    for a, b in zip(run.occupation, same.occupation, strict=True):
        np.testing.assert_allclose(a, 2 * b - 1, atol=1e-4)


def test_units_of_more_values_are_refused_where_two_are_needed():
    machine = vpf_jax.init_machine(jax.random.key(0), (3, 2), units=TERNARY)
    state = jnp.zeros(3, jnp.int8), jnp.zeros(2, jnp.int8)
    for call in (
        lambda: vpf_jax.event_gradient(jax.random.key(0), machine, tuple(x[None] for x in state), 1.0),
        lambda: vpf_jax.flip_estimate("ratio", machine, state[0][None]),
        lambda: with_units(machine, SPIN),
    ):
        with pytest.raises(ValueError, match=r"got units of kind 'ternary'; .* two values"):
            call()
    with pytest.raises(
        ValueError, match="got units of kind 'ternary'; flow to neighbouring values takes kinds that say"
    ):
        vpf_jax.run_spiking(jax.random.key(0), machine, state, 5)
    with pytest.raises(ValueError, match=r"got a machine of ternary units; .* finite number of values"):
        vpf_jax.log_partition_exact(machine)
    with pytest.raises(ValueError, match=r"got units of kind 'ternary'; a start from means takes kinds that say how"):
        vpf_jax.independent_machine(machine, jnp.full(3, 0.5))


def test_the_oracle_of_bits_is_untouched():
    """A machine without a word about units is one of bits."""
    assert vpf_jax.init_machine(jax.random.key(0), (3, 2)).units is BINARY
    assert set(np.unique(oracles.all_states(2))) == {0, 1}


@pytest.mark.slow
@each_case("rbm", "semi_restricted", "dbm", "intra_dbm")
@in_float64
def test_long_calls_on_spins_are_those_on_bits(case):
    """Repair, tempering and generation by the same random numbers; a visible mean m of bits is 2 m - 1 of spins."""
    spins = spins_of(case)
    visible = jnp.asarray(case.all_states()[::7, : case.sizes[0]], jnp.uint8)
    (s,) = as_spins((visible,))
    mask = jnp.arange(case.sizes[0]) < 2
    # Inputs from above are zeroed in the first pass, which is another start where there are several hidden layers.
    if case.machine.has_independent_hidden:
        for repair in (vpf_jax.reconstruct, vpf_jax.inpaint):
            ours, theirs = (repair(jax.random.key(1), m, v, mask) for m, v in ((spins, s), (case.machine, visible)))
            assert_close(ours, 2 * theirs - 1)
        for prior in (None, jnp.linspace(0.1, 0.9, case.sizes[-1])):
            ours, theirs = (
                vpf_jax.confabulate(jax.random.key(2), (m,), 20, steps=4, prior=prior) for m in (spins, case.machine)
            )
            if case.intra[0] is None:
                assert_close(ours, 2 * theirs - 1)
    bits = tuple(jnp.asarray(np.random.default_rng(0).integers(0, 2, (3, n)), jnp.uint8) for n in case.sizes)
    betas = jnp.array([0.0, 0.5, 1.0])
    base = with_units(vpf_jax.independent_machine(case.machine), SPIN)
    ours = vpf_jax.run_tempered(jax.random.key(3), spins, as_spins(bits), betas, 6, base)
    theirs = vpf_jax.run_tempered(jax.random.key(3), case.machine, bits, betas, 6)
    for a, b in zip(ours.states, as_spins(theirs.states), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@in_float64
def test_the_bound_and_learning_at_events_of_spins_are_those_of_their_own_machines():
    case = CASES["rbm-moderate"]
    spins, rows = spins_of(case), case.all_states()
    visible = jnp.asarray(rows[::11, : case.sizes[0]], jnp.uint8)
    pairs = ((spins, as_spins((visible,))[0]), (case.machine, visible))
    bounds = [vpf_jax.stack_bound(jax.random.key(0), (m,), v, vpf_jax.log_partition_exact(m)) for m, v in pairs]
    assert_close(*bounds)
    # Means over events, within five standard errors of the exact directed halves.
    states = as_spins(np.split(rows[::37], np.cumsum(case.sizes)[:-1], axis=1))
    exact = vpf_jax.directed_gradient(spins, states)
    found = jax.vmap(lambda key: vpf_jax.event_gradient(key, spins, states, 200.0))(
        jax.random.split(jax.random.key(5), 30)
    )
    for some, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        error = np.std(some, axis=0, ddof=1) / np.sqrt(30)
        assert (np.abs(np.mean(some, axis=0) - wanted) < 5 * error + 1e-12).all()
