"""Every public function called wrongly: each wrong value of each argument ends in one sentence, a ValueError.

The right calls and the wrong values stand in `calls`. Beside the table: what only a wrong use in time shows (a donated
state, a state of other settings), nan planted into every evaluation, and the checks that `checked` puts into compiled
code. Not here: commands (`test_commands`), files (`test_damage`).
"""

import inspect
import re

import calls
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import CALLS, SYMMETRIC, WRONG
from families import training

import vpf_jax as V
from vpf_jax import checks, rules, train
from vpf_jax.evaluate import likelihood, monitor

CASES = [
    pytest.param(call, argument, value, id=f"{name}-{argument}-{label}")
    for name, call in CALLS.items()
    for argument, kind in call.kinds.items()
    for label, value in WRONG[kind].items()
]


def assert_one_sentence(message):
    assert "\n" not in message
    assert 20 < len(message) < 450
    # What was given, and what is allowed.
    assert re.search(r"\b(got|ever)\b", message), message
    assert re.search(r"\b(takes?|are|is|have|has|use)\b", message), message


def test_the_campaign_is_as_large_as_it_says():
    assert len(CASES) >= 500
    called = {call.function for call in CALLS.values()}
    public = {getattr(V, name) for name in V.__all__ if inspect.isfunction(getattr(V, name))}
    # `reconstruct` is called through a function that gives its argument another name; `checked` takes any function;
    # `load_stack` and `load_model` have right calls where there is something to read, in tests of their own.
    assert public - called <= {V.reconstruct, V.checked, V.load_stack, V.load_model}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("folder", WRONG["folder"].values(), ids=WRONG["folder"])
def test_no_stack_is_loaded_from_what_is_no_run(folder):
    with pytest.raises(ValueError, match="takes the folder of a run") as refusal:
        V.load_stack(folder)
    assert_one_sentence(str(refusal.value))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("path", WRONG["folder"].values(), ids=WRONG["folder"])
def test_no_model_is_loaded_from_what_is_no_file_of_one(path):
    with pytest.raises(ValueError, match=r"takes (the path|a file)") as refusal:
        V.load_model(path)
    assert_one_sentence(str(refusal.value))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "argument", "value"), CASES)
def test_a_wrong_call_ends_in_one_sentence(call, argument, value):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        call.run(**{argument: value})
    assert_one_sentence(str(refusal.value))


@pytest.mark.parametrize("name", SYMMETRIC)
def test_directed_machines_are_refused_where_weights_have_to_be_symmetric(name):
    with pytest.raises(ValueError, match="directed machine") as refusal:
        CALLS[name].run(machine=calls.DIRECTED)
    assert_one_sentence(str(refusal.value))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (calls.SPINS, r"spins -1 and \+1; .*\(x \+ 1\) / 2"),
        (calls.GREY, "from 0 to 1, not all at the ends; .*binarise"),
        (np.round(255 * calls.GREY).astype(np.uint8), r"from 0 to 255; .*binarise\(x / 255\)"),
        (np.arange(20).reshape(5, 4) % 4, "counts up to 3; .*x > 0"),
        (np.where(calls.GREY > 0.5, np.nan, 0), "nan in 10 of 20 places; .*fill in"),
        (np.full((5, 4), -2.5), "from -2.5 to -2.5"),
    ],
)
def test_the_sentence_says_what_was_found_and_how_to_convert_it(given, told):
    with pytest.raises(ValueError, match=told):
        V.sample_hidden(jax.random.key(0), calls.STACK, given)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint32, jnp.int32])
def test_integers_of_numpy_and_of_jax_are_integers(kind):
    assert_same(CALLS["run_chain"].run(num_sweeps=kind(2)), CALLS["run_chain"].run())
    assert training(epochs=kind(3)) == training(epochs=3)
    assert type(training(epochs=kind(3)).epochs) is int


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


# What the caller holds survives training.


@pytest.mark.slow
def test_the_callers_key_and_stack_survive_training():
    key, stack = jax.random.key(3), V.init_stack(jax.random.key(4), (4, 3))
    for rule in ("vpf", "pcd"):
        settings = training(rule=rule, batch_size=2)
        state = train.init_state(key, stack, settings)
        train.train_epoch(state, calls.VISIBLE, config=settings)
        assert V.confabulate(jax.random.clone(key), stack, 3).shape == (3, 4)
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((key, stack)))


def test_the_callers_key_survives_equilibrium_propagation():
    key = jax.random.key(3)
    settings = calls.EQUILIBRIUM
    state = calls.equilibrium_propagation.init_state(key, calls.NETWORK, 5, settings)
    calls.equilibrium_propagation.train_epoch(state, calls.GREY, calls.L, config=settings)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((key, calls.NETWORK)))


def test_a_state_that_training_has_consumed_is_refused():
    state = train.init_state(jax.random.key(3), (calls.RBM,), calls.CONFIG)
    train.train_epoch(state, calls.VISIBLE, config=calls.CONFIG)
    with pytest.raises(ValueError, match="a donating call has consumed; use what that call returned"):
        train.train_epoch(state, calls.VISIBLE, config=calls.CONFIG)


# A state belongs to its settings.


@pytest.mark.parametrize(
    ("made", "used", "told"),
    [
        ({"rule": "vpf"}, {"rule": "pcd"}, "chains of shapes"),
        ({"rule": "pcd"}, {"rule": "cd"}, "takes a state without chains"),
        ({"rule": "pcd"}, {"rule": "vpf"}, "takes a state without chains"),
        ({"rule": "pcd"}, {"rule": "pcd", "batch_size": 3}, "batch_size=3"),
        ({"schedule": "constant"}, {"schedule": "cosine"}, "optimizer"),
        ({"schedule": "cosine"}, {"schedule": "constant"}, "optimizer"),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_state_of_other_settings_is_refused(made, used, told, compiled):
    stack = V.init_stack(jax.random.key(4), (4, 3))
    made, used = (training(**{"batch_size": 2} | settings) for settings in (made, used))
    state = train.init_state(jax.random.key(3), stack, made)
    train_by = train.compile_epoch if compiled else train.train_epoch
    with pytest.raises(ValueError, match=told) as refusal:
        train_by(state, calls.VISIBLE, config=used)
    assert "start_phase" in str(refusal.value)
    # And it is still there.
    train.start_phase(state, calls.VISIBLE, used)


# No score hides a nan.


def poisoned(machine, field, layer):
    blocks = list(getattr(machine, field))
    blocks[layer] = blocks[layer].at[(0,) * blocks[layer].ndim].set(jnp.nan)
    return calls.parameters_of(machine, **{field: tuple(blocks)})


SCORES = {
    "log_partition_exact": V.log_partition_exact,
    "ais": lambda m: V.ais_log_partition(jax.random.key(1), m, 20, 5),
    "ais, reverse": lambda m: V.ais_log_partition_reverse(jax.random.key(1), m, calls.STATES, 5),
    "rbm_log_likelihood": lambda m: V.rbm_log_likelihood(m, calls.VISIBLE, 3.0),
    "variational_bound": lambda m: V.variational_bound(m, calls.VISIBLE, 3.0),
    "mean_field": lambda m: likelihood.mean_field(m, calls.VISIBLE),
    "stack_bound, top": lambda m: V.stack_bound(jax.random.key(1), (m,), calls.VISIBLE, 3.0),
    "stack_bound, below": lambda m: V.stack_bound(
        jax.random.key(1), (m, V.init_machine(jax.random.key(2), (3, 2))), calls.VISIBLE, 3.0
    ),
    # Where the mask is False the given image stands; repair is what is inside it.
    "reconstruct": lambda m: V.reconstruct(jax.random.key(1), m, calls.VISIBLE, np.ones(4, bool)),
    "inpaint": lambda m: V.inpaint(jax.random.key(1), m, calls.VISIBLE, np.ones(4, bool)),
    "confabulate": lambda m: V.confabulate(jax.random.key(1), (m,), 3),
    "mean_activations": lambda m: V.mean_activations(jax.random.key(1), (m,), calls.VISIBLE),
    "pseudo_log_likelihood": lambda m: V.pseudo_log_likelihood(jax.random.key(1), m, calls.VISIBLE),
    "watch": lambda m: monitor.watch(jax.random.key(1), (m,), calls.VISIBLE)["mean_activation"],
    "run_tempered": lambda m: V.run_tempered(jax.random.key(1), m, calls.STATES, calls.BETAS, 2).acceptance,
    "run_spiking": lambda m: V.run_spiking(jax.random.key(1), m, calls.STATE, 5).occupation,
    "energy_discrepancy": lambda m: V.energy_discrepancy(jax.random.key(1), m, calls.VISIBLE).objective,
    "tap_means": lambda m: V.tap_means(m, calls.STATE, 2),
    "tap_log_partition": lambda m: V.tap_log_partition(m, calls.STATE),
    "vpf_objective": lambda m: V.vpf_objective(m, calls.STATES),
    "weights' largest": lambda m: train.largest_weight((m,)),
}


@pytest.mark.parametrize(("field", "layer"), [("biases", 0), ("biases", 1), ("weights", 0)])
@pytest.mark.parametrize("name", SCORES)
def test_no_score_hides_a_nan(name, field, layer):
    score = SCORES[name]
    machine = poisoned(calls.RBM, field, layer)
    found = jax.tree.leaves(jax.jit(score)(machine))
    assert found
    assert all(np.all(np.isnan(leaf)) for leaf in found)
    # Outside compiled code it is refused where it comes in.
    if name != "weights' largest":
        with pytest.raises(ValueError, match="nan"):
            score(machine)


@pytest.mark.parametrize("where", [(3, 2), (0, 0)])
def test_parzen_windows_hide_no_nan(where):
    centres = calls.GREY.copy()
    centres[where] = np.nan
    scored = jax.jit(V.parzen_log_likelihood)
    assert np.all(np.isnan(scored(centres, calls.GREY, 0.2)))
    of_points = np.asarray(scored(calls.GREY, centres, 0.2))
    assert np.isnan(of_points[where[0]])
    assert np.isfinite(np.delete(of_points, where[0])).all()
    centres[where] = np.inf
    assert np.all(np.isnan(scored(centres, calls.GREY, 0.2)))
    for wrong in ((centres, calls.GREY), (calls.GREY, centres)):
        with pytest.raises(ValueError, match="not finite"):
            V.choose_sigma(*wrong)


OF_IMAGES = {
    "rbm_log_likelihood": lambda x: V.rbm_log_likelihood(calls.RBM, x, 3.0),
    "variational_bound": lambda x: V.variational_bound(calls.RBM, x, 3.0),
    "mean_field": lambda x: likelihood.mean_field(calls.RBM, x),
    "stack_bound": lambda x: V.stack_bound(jax.random.key(1), calls.STACK, x, 3.0),
    "mean_activations": lambda x: V.mean_activations(jax.random.key(1), calls.STACK, x),
    "pseudo_log_likelihood": lambda x: V.pseudo_log_likelihood(jax.random.key(1), calls.RBM, x),
    "reconstruct": lambda x: V.reconstruct(jax.random.key(1), calls.RBM, x, calls.MASK),
    "inpaint": lambda x: V.inpaint(jax.random.key(1), calls.RBM, x, calls.MASK),
}


@pytest.mark.parametrize("name", OF_IMAGES)
def test_no_score_hides_a_nan_in_the_images(name):
    broken = np.asarray(calls.VISIBLE, np.float32)
    broken[2, 1] = np.nan
    assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(jax.jit(OF_IMAGES[name])(broken)))


def test_no_width_is_chosen_by_scores_that_are_nan():
    large = calls.GREY.copy()
    large[0, 0] = 1e30
    assert np.isnan(V.parzen_log_likelihood(large, large, 0.2)[0])
    with pytest.raises(ValueError, match="squares overflow"):
        V.choose_sigma(large, large)


@pytest.mark.parametrize("score", [V.weight_sparsity, V.squared_weight])
def test_monitors_of_weights_hide_no_nan(score):
    weights = calls.NAN.weights[0]
    assert np.isnan(jax.jit(score)(weights))


def test_errors_of_repair_hide_no_nan():
    repaired = jnp.asarray(calls.GREY).at[2, 0].set(jnp.nan)
    errors = jax.jit(V.reconstruction_error)(repaired, calls.GREY, calls.MASK)
    np.testing.assert_array_equal(np.isnan(errors), np.arange(5) == 2)


@pytest.mark.slow
def test_an_epoch_of_a_machine_that_is_nan_is_not_finite():
    for rule in rules.names():
        settings = training(rule=rule, batch_size=2, max_weight=1.0)
        state = train.init_state(jax.random.key(3), (calls.RBM,), settings)
        # The state has arrays of its own, which the epoch donates.
        broken = poisoned(state.stack[0], "biases", 1)
        _, metrics = train.train_epoch(state.replace(stack=(broken,)), calls.VISIBLE, config=settings)
        assert np.isnan(metrics.max_abs_weight)
        with pytest.raises(train.NonFiniteObjectiveError):
            train.check_finite(metrics, 1, 0.0)


# Values inside compiled code.


@pytest.mark.slow
def test_checked_sees_values_inside_compiled_code():
    def score(visible):
        return jnp.sum(jax.jit(V.mean_activations)(jax.random.key(0), calls.STACK, visible)[0])

    assert np.isfinite(jax.jit(score)(calls.GREY))
    assert V.checked(jax.jit(score))(calls.VISIBLE) == jax.jit(score)(calls.VISIBLE)
    with pytest.raises(ValueError, match="got visible states that are not binary, inside compiled code"):
        V.checked(jax.jit(score))(calls.GREY)
    # Afterwards compiled code is as it was.
    assert np.isfinite(jax.jit(score)(calls.GREY))


@pytest.mark.slow
def test_checked_sees_values_inside_vmap_and_scan():
    def energies(states):
        return jax.lax.map(lambda state: V.energy(calls.RBM, state), states)

    V.checked(jax.vmap(V.energy, in_axes=(None, 0)))(calls.RBM, calls.STATES)
    with pytest.raises(ValueError, match="inside compiled code"):
        V.checked(jax.vmap(V.energy, in_axes=(None, 0)))(calls.RBM, calls.states_with(calls.GREY))
    with pytest.raises(ValueError, match="inside compiled code"):
        V.checked(energies)(calls.states_with(calls.GREY))


def test_constants_of_a_traced_function_are_looked_at():
    visible = jnp.asarray(calls.GREY)
    with pytest.raises(ValueError, match="not all at the ends"):
        jax.jit(lambda stack: V.mean_activations(jax.random.key(0), stack, visible))(calls.STACK)
    # By JAX itself, too, as where they lie on an accelerator.
    seen = []
    jax.jit(lambda x: checks.values("x", x, "seen", lambda v, _: seen.append(jnp.all(v == v)) or seen[-1], str))(1.0)
    jax.jit(lambda: checks.values("x", visible, "seen", lambda v, _: seen.append(jnp.all(v == v)) or seen[-1], str))()
    assert len(seen) == 1
    assert not isinstance(seen[0], jax.core.Tracer)


def test_an_array_is_looked_at_once_and_a_changed_one_again():
    looked = []

    def holds(values, xp):
        looked.append(xp)
        return xp.all(values == 0)

    lasting, changing = jnp.zeros(3), np.zeros(3)
    for _ in range(2):
        checks.values("x", lasting, "zero, for a test", holds, str)
        checks.values("x", changing, "zero, for a test", holds, str)
    assert looked == [np, np, np]
    changing[1] = 1
    with pytest.raises(ValueError, match="got x"):
        checks.values("x", changing, "zero, for a test", holds, str)
    size = len(checks._passed)
    del lasting
    assert len(checks._passed) == size - 1
