"""Every learning rule in the one training loop: first steps, chains, phases, several seeds, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from families import assert_close, assert_same_machine, make_case, training
from test_train import TINY_STEP, bits, copy_of, run, start
from typed import refused

import vpf_jax
from vpf_jax import rules, train
from vpf_jax.rules import flips

CASE = make_case("rbm", (6, 4), (), 3.0, seed=5)
RULES = {
    "vpf": {},
    "vpf without hidden flips": {"hidden_flips": False},
    "vpf exact": {"expectation": "exact"},
    "vpf exact, each minibatch": {"expectation": "exact", "estep": "minibatch", "hidden_flips": False},
    "mpf": {"rule": "mpf"},
    "pl": {"rule": "pl"},
    "pl, some flips": {"rule": "pl", "flips_per_step": 2},
    "ratio": {"rule": "ratio"},
    "cd": {"rule": "cd", "steps": 3},
    "pcd": {"rule": "pcd"},
    "tethered": {"rule": "tethered", "noise": 0.2},
}


def first_gradient(config, visible, case=CASE):
    """The gradient of the first step, of which Adam's first momentum is a tenth."""
    state, metrics = run(start((case.machine,), config), visible, config, epochs=1)
    return jax.tree.map(lambda g: 10 * g, state.optimizer[0].mu[0]), metrics


def tiny(visible, **settings):
    return training(batch_size=len(visible), learning_rate=TINY_STEP, weight_decay=0.0, epochs=1, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["mpf", "pl", "ratio"])
def test_a_step_follows_the_rule_and_only_flow_is_scaled_by_epsilon(rule):
    visible = bits((20, 6))
    scale = {"epsilon": 0.25} if rule == "mpf" else {}
    gradient, metrics = first_gradient(tiny(visible, rule=rule, **scale), visible)
    estimate = flips.flip_estimate(rule, CASE.machine, visible)
    scale = scale.get("epsilon", 1.0)
    assert_close(metrics.objective, estimate.objective, 1e-5)
    assert_same_machine(gradient, jax.tree.map(lambda g: scale * g, estimate.gradient), 2e-5)


@pytest.mark.parametrize("estep", ["epoch", "minibatch"])
@pytest.mark.parametrize("hidden_flips", [True, False])
def test_the_exact_expectation_is_taken_with_the_parameters_of_the_estep(estep, hidden_flips):
    visible = bits((20, 6))
    settings = {"expectation": "exact", "estep": estep, "hidden_flips": hidden_flips, "epsilon": 1.0}
    gradient, metrics = first_gradient(tiny(visible, **settings), visible)
    p = jax.nn.sigmoid(visible @ CASE.machine.weights[0] + CASE.machine.biases[1][None])
    objective, expected = flips.averaged_flow(CASE.machine, visible, p, hidden_flips)
    assert_close(metrics.objective, objective, 1e-5)
    assert_same_machine(gradient, expected, 2e-5)


@pytest.mark.slow
def test_a_stale_exact_expectation_keeps_the_probabilities_of_the_epochs_start():
    visible = bits((20, 6))
    settings = {"batch_size": 10, "learning_rate": 0.3, "expectation": "exact", "epochs": 1}
    stale, _ = run(start((CASE.machine,), training(**settings)), visible, training(**settings))
    fresh_config = training(**settings, estep="minibatch")
    fresh, _ = run(start((CASE.machine,), fresh_config), visible, fresh_config)
    # The first of the two steps is the same, the second is not.
    assert np.abs(np.asarray(stale.stack[0].weights[0] - fresh.stack[0].weights[0])).max() > 1e-3


@pytest.mark.slow
def test_flips_of_hidden_units_count_or_not():
    visible = bits((40, 6))
    with_hidden, metrics = first_gradient(tiny(visible, epsilon=1.0), visible)
    without, fewer = first_gradient(tiny(visible, epsilon=1.0, hidden_flips=False), visible)
    # Flip rates are positive; without hidden flips a hidden bias has no gradient at all.
    assert float(fewer.objective) < float(metrics.objective)
    assert np.abs(np.asarray(with_hidden.biases[1])).max() > 1e-3
    np.testing.assert_array_equal(without.biases[1], 0)
    np.testing.assert_allclose(without.biases[0], with_hidden.biases[0], atol=1e-5)


@pytest.mark.slow
def test_chains_persist_through_steps_and_epochs_and_only_for_pcd():
    visible = bits((23, 6))
    for rule in rules.names():
        config = training(rule=rule, batch_size=5, epochs=2)
        state = start((CASE.machine,), config)
        assert [tuple(layer.shape for layer in chain) for chain in state.carry] == (
            [((5, 6), (5, 4))] if rule == "pcd" else [()]
        )
        if rule == "pcd":
            before = np.asarray(state.carry[0][0])
            state, _ = run(state, visible, config, epochs=1)
            assert (np.asarray(state.carry[0][0]) != before).any()


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_learns_two_patterns(rule):
    patterns = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
    visible = jnp.asarray(np.tile(patterns, (50, 1)), jnp.uint8)
    config = training(batch_size=20, learning_rate=0.03, epochs=60, weight_decay=0.0, **RULES[rule])
    case = make_case("rbm", (6, 4), (), 0.1, seed=1)
    state, _ = run(start((case.machine,), config), visible, config)
    (machine,) = state.stack
    flat = oracles.flatten(machine.biases, machine.weights, machine.intra)
    found = sum(np.exp(-oracles.free_energy(flat, row) - oracles.log_partition(flat)) for row in patterns.astype(float))
    # Uniform bits put 2 / 64 there.
    assert found > 0.5, found


@pytest.mark.slow
def test_pcd_learns_a_stack_with_weights_inside_layers():
    visible = bits((40, 7))
    config = training(rule="pcd", batch_size=8, learning_rate=0.01, epochs=5)
    state, metrics = run(start(vpf_jax.init_stack(jax.random.key(0), (7, 5, 4), intra=True), config), visible, config)
    assert np.isfinite(metrics.objective)
    assert [tuple(x.shape for x in chain) for chain in state.carry] == [((8, 7), (8, 5)), ((8, 5), (8, 4))]
    for machine in state.stack:
        matrix = np.asarray(machine.intra[1])
        np.testing.assert_array_equal(matrix, matrix.T)
        np.testing.assert_array_equal(np.diag(matrix), 0)


@pytest.mark.slow
def test_a_phase_starts_with_a_fresh_optimizer_and_chains_from_the_data():
    visible = jnp.asarray(np.tile([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]], (20, 1)), jnp.uint8)
    flow = training(batch_size=10, epochs=2)
    state, _ = run(start((CASE.machine,), flow), visible, flow)
    trained = copy_of(state.stack)
    refinement = training(rule="pcd", batch_size=10, epochs=3, schedule="cosine")
    state = train.start_phase(state, visible, refinement)
    assert int(state.epoch) == 2
    assert_same_machine(state.stack[0], trained[0], 0)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(state.optimizer))
    rows = {tuple(row) for row in np.asarray(state.carry[0][0]).tolist()}
    assert rows <= {(1, 1, 1, 0, 0, 0), (0, 0, 0, 1, 1, 1)}
    state, metrics = run(state, visible, refinement)
    assert int(state.epoch) == 5
    assert np.isfinite(metrics.objective)
    assert train.start_phase(state, visible, flow).carry == ((),)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["vpf", "pcd", "pl"])
@pytest.mark.parametrize("at_once", [None, 1, 2])
def test_seeds_together_equal_single_runs(rule, at_once):
    visible = bits((33, 6))
    config = training(rule=rule, batch_size=8, learning_rate=0.01, epochs=3)

    def initial(key):
        init_key, train_key = jax.random.split(key)
        return train.init_state(train_key, vpf_jax.init_stack(init_key, (6, 4)), config)

    seeds = (3, 4, 5)
    states = jax.vmap(lambda seed: initial(jax.random.key(seed)))(jnp.array(seeds))
    run_epoch = train.compile_epoch(states, visible, config, at_once)
    for _ in range(config.epochs):
        states, metrics = run_epoch(states, visible)
    for i, seed in enumerate(seeds):
        single, single_metrics = run(initial(jax.random.key(seed)), visible, config)
        for one, other in zip(jax.tree.leaves(single.stack), jax.tree.leaves(states.stack), strict=True):
            np.testing.assert_allclose(other[i], one, atol=2e-6)
        np.testing.assert_allclose(metrics.objective[i], single_metrics.objective, rtol=2e-5)


def test_refused_settings_are_told():
    deep = (vpf_jax.init_machine(jax.random.key(0), (6, 4, 3)),)
    inside = vpf_jax.init_stack(jax.random.key(0), (6, 4), intra=True)
    for stack in (deep, inside):
        for settings in ({"rule": "pl"}, {"rule": "mpf"}, {"rule": "ratio"}, {"expectation": "exact"}):
            with pytest.raises(ValueError, match="got a machine of layer sizes"):
                start(stack, training(**settings))
    plain = vpf_jax.init_stack(jax.random.key(0), (6, 4))
    with pytest.raises(ValueError, match="flips_per_step=7; it takes up to the 6 units"):
        start(plain, training(rule="pl", flips_per_step=7))
    for rule, name, value in (("cd", "steps", 0), ("vpf", "expectation", "mean"), ("pl", "flips_per_step", 0)):
        with pytest.raises(vpf_jax.SettingError, match=f"got {name}="):
            rules.make(rule, **{name: value})
    with pytest.raises(vpf_jax.SettingError, match="got rule=nce; it takes one of"):
        rules.make("nce")


def test_an_option_that_does_not_belong_to_a_rule_cannot_be_given():
    for rule, option in (
        ("cd", "expectation"),
        ("pcd", "estep"),
        ("pl", "epsilon"),
        ("vpf", "steps"),
        ("mpf", "steps"),
    ):
        with pytest.raises(vpf_jax.SettingError, match=f"got {option}=.*; it takes nothing with rule={rule}"):
            rules.make(rule, **{option: "exact"})
    with pytest.raises(
        vpf_jax.SettingError, match="flips_per_step=3; it takes nothing where hidden states are sampled"
    ):
        rules.VPF(flips_per_step=3)
    with pytest.raises(TypeError):
        rules.CD(expectation="exact")


def test_a_minibatch_larger_than_the_data_is_refused():
    plain = vpf_jax.init_stack(jax.random.key(0), (6, 4))
    config = training(rule="pcd", batch_size=40)
    state = start(plain, dataclasses.replace(config, batch_size=5))
    with pytest.raises(ValueError, match="batch_size=40 with 9 examples"):
        train.start_phase(state, bits((9, 6)), config)


@pytest.mark.slow
def test_any_optax_transformation_trains():
    """A step of plain gradient descent is the gradient times the rate; one that needs the parameters has them."""
    visible = bits((20, 6))
    plain = training(batch_size=20, weight_decay=0.0, epochs=1, epsilon=0.5)
    config = dataclasses.replace(plain, optimizer=optax.sgd(0.1))
    state, _ = run(start((CASE.machine,), config), visible, config)
    # Adam's first moment holds a tenth of the same gradient.
    gradient, _ = first_gradient(training(batch_size=20, weight_decay=0.0, epochs=1, epsilon=0.5), visible)
    wanted = jax.tree.map(lambda p, g: p - 0.1 * g, CASE.machine, gradient)
    assert_same_machine(state.stack[0], wanted, 1e-5)
    decayed = dataclasses.replace(plain, optimizer=optax.chain(optax.clip(1.0), optax.adamw(1e-2, weight_decay=0.5)))
    state, metrics = run(start((CASE.machine,), decayed), visible, decayed)
    assert np.isfinite(metrics.objective)
    with pytest.raises(ValueError, match="start_phase goes on from a trained stack under other settings"):
        train.train_epoch(state, visible, config=plain)
    with refused(vpf_jax.SettingError, match="got optimizer=adam; it takes settings of Adam or an optax"):
        dataclasses.replace(plain, optimizer="adam")


def test_the_table_of_rules_refuses_doubles_and_strangers():
    @dataclasses.dataclass(frozen=True)
    class Other(rules.PL):
        """Of a name that is taken."""

    with pytest.raises(vpf_jax.SettingError, match="a name other than 'pl', which is taken"):
        rules.register(Other)
    with refused(vpf_jax.SettingError, match="a dataclass derived from Rule, with a name"):
        rules.register(dict)
    assert rules.get("pl") is rules.PL
