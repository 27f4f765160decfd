"""Machines of every pair of kinds, and of all kinds in one, against sums over states and quadrature in float64.

Energies, fields, flows and gradients are judged by energies of whole states; expectations by the probabilities of all
states, which of real values are nodes of a quadrature.
"""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import assert_close, in_float64
from unit_machines import EVERYTHING, FINITE, LAYERS, UnitCase, has_distribution, make_units

import vpf_jax
from vpf_jax.rules import chains, vpf

PURE = [name for name in LAYERS if name in (*FINITE, "gaussian", "rectified", "count")]
OTHERS = [
    *(("normal", "spin"), ("binary", "normal"), ("gaussian", "normal"), ("normal", "rectified")),
    *(("spin and gaussian", "binary"), ("spin and gaussian", "spin and gaussian")),
    *(
        ("categorical and count", "spin"),
        ("categorical and count", "categorical and count"),
        ("spin", "spin and gaussian"),
    ),
]


def pair(number: int, below: str, above: str) -> UnitCase:
    """Above one unit where it takes quadrature; weights inside the visible layer of every other kind above it."""
    upper = LAYERS[above] if above in FINITE or " " in above else LAYERS[above][:1]
    return make_units((LAYERS[below], upper), (0,) if number % 2 else (), seed=number)


PAIRS = [pair(i + j, below, above) for i, below in enumerate(PURE) for j, above in enumerate(PURE)]
PAIRS += [pair(i, *names) for i, names in enumerate(OTHERS)]
ALONE = [make_units((layer,), (0,), seed=i) for i, layer in enumerate(LAYERS.values())]
IN_ALL = make_units((EVERYTHING, EVERYTHING[::-1]), (0, 1), seed=3)


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=repr)


@jax.jit
def found(machine, states, masses, batch):
    """What the library says at each state, gradients summed with the masses."""

    def at(state):
        rows = tuple(x[None] for x in state)
        both = [vpf.objective_and_gradient(machine, rows, hidden_flips) for hidden_flips in (True, False)]
        return vpf_jax.energy(machine, state), vpf_jax.local_fields(machine, state), both[0][0], [g for _, g in both]

    energies, fields, flows, gradients = jax.vmap(at)(states)
    summed = jax.tree.map(lambda g: jnp.tensordot(masses, g, 1), gradients)
    statistics = None if batch is None else chains.statistics(machine, batch)
    return energies, fields, flows, summed, statistics


def flat(case: UnitCase, gradient, row=None):
    """A gradient of the library as the oracle has it: (coupling, bias, own), of one row of masses."""
    taken = gradient if row is None else jax.tree.map(lambda g: g[row], gradient)
    one = oracles.flatten(taken.biases, taken.weights, taken.intra)
    own = [np.zeros(len(b)) for b in taken.biases] if taken.own is None else taken.own
    parts = [np.zeros(len(b)) if part is None else part for part, b in zip(own, taken.biases, strict=True)]
    return one.coupling, one.bias, np.concatenate(parts)


def assert_same(actual, expected, tolerance):
    coupling, bias, own = actual
    gradient, wanted = expected
    for one, other in ((coupling, gradient.coupling), (bias, gradient.bias), (own, wanted)):
        assert_close(one, other, tolerance)


def some_states(case: UnitCase, number: int, seed: int = 0) -> np.ndarray:
    """Random states of few values."""
    rng = np.random.default_rng(seed)
    columns = []
    for kind in case.kinds:
        values = oracles.unit_values(kind, 2, 6)[0]
        columns.append(values[rng.integers(len(values), size=number)])
    return np.concatenate(columns, axis=1)


def layered(case: UnitCase, states: np.ndarray) -> tuple:
    """In the precision of the parameters, which holds the nodes of the quadrature."""
    return tuple(jnp.asarray(part) for part in np.split(states, np.cumsum(case.oracle.flat.sizes)[:-1], axis=-1))


def assert_right_at(case, states, masses, energies, fields, flows, gradient):
    """Energies, fields and flow of every state, and the gradient of the mean flow, by energies of the oracle."""
    oracle = case.oracle
    assert_close(energies, oracles.unit_energies(oracle, states))
    assert_close(np.concatenate(fields, axis=1), oracles.local_fields(oracle.flat, states))
    assert_close(flows, oracles.unit_flows(oracle, states).sum(axis=1))
    there, mass = states[masses > 0], masses[masses > 0]
    wanted = oracles.unit_gradient(lambda m: mass @ oracles.unit_flows(m, there).sum(axis=1), oracle)
    # The flow of real values is a second difference of energies; theirs is rounded, and divided by 4e-5.
    rounding = 1e-11 * np.abs(oracles.unit_energies(oracle, there)).max()
    for one, other in zip(gradient, (wanted[0].coupling, wanted[0].bias, wanted[1]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=rounding + 1e-8 * np.abs(other).max())


def along(oracle, states, gradient, num_units=None) -> np.ndarray:
    """How the mean flow of the first units changes along random directions, over what the gradient says of each."""
    rng, (coupling, bias, own), ratios = np.random.default_rng(0), gradient, []
    gaussian = np.repeat([kind == "gaussian" for kind in oracle.kinds], [oracles.width(kind) for kind in oracle.kinds])
    for _ in range(10):
        upper = np.triu(rng.normal(size=coupling.shape), 1) * oracle.flat.connected
        bias_step, own_step = rng.normal(size=bias.shape), rng.normal(size=own.shape) * gaussian

        def mean_flow(step, upper=upper, bias_step=bias_step, own_step=own_step):
            moved = oracle.flat._replace(
                coupling=oracle.flat.coupling + step * (upper + upper.T), bias=oracle.flat.bias + step * bias_step
            )
            own = oracle.log_precision + step * own_step
            flows = oracles.unit_flows(oracle._replace(flat=moved, log_precision=own), states)
            return flows[:, :num_units].sum(axis=1).mean()

        change = (mean_flow(1e-5) - mean_flow(-1e-5)) / 2e-5
        ratios.append(change / (np.sum(upper * coupling) + bias_step @ bias + own_step @ own))
    return np.array(ratios)


@pytest.mark.slow
@in_float64
def test_a_machine_of_all_kinds_at_single_states():
    """Every pair of kinds, inside layers and between them; autodiff, and the two halves of the rule."""
    case = IN_ALL
    states, masses = some_states(case, 15), np.full(15, 1 / 15)
    oracle = case.oracle
    energies, fields, flows, (gradient, without), _ = found(case.machine, layered(case, states), masses[None], None)
    assert_close(energies, oracles.unit_energies(oracle, states))
    assert_close(np.concatenate(fields, axis=1), oracles.local_fields(oracle.flat, states))
    assert_close(flows, oracles.unit_flows(oracle, states).sum(axis=1))
    gradient = flat(case, gradient, 0)
    assert_close(along(oracle, states, gradient), 1, 1e-7)
    # Without the flips of hidden units.
    assert_close(along(oracle, states, flat(case, without, 0), len(EVERYTHING)), 1, 1e-7)
    tied = vpf_jax.tie_intra(jax.jit(jax.grad(vpf_jax.vpf_objective))(case.machine, layered(case, states)))
    for one, other in zip(flat(case, tied), gradient, strict=True):
        assert_close(one, other)
    halves = jax.jit(vpf_jax.directed_gradient)(case.machine, layered(case, states))
    assert_close(halves.forward[0] + halves.backward[0], tied.weights[0])


@pytest.mark.slow
@each([case for case in PAIRS if not has_distribution(case.layers, case.intra_layers)])
@in_float64
def test_pairs_without_a_distribution(case):
    states, masses = some_states(case, 20), np.full(20, 1 / 20)
    energies, fields, flows, (gradient, _), _ = found(case.machine, layered(case, states), masses[None], None)
    assert_right_at(case, states, masses, energies, fields, flows, flat(case, gradient, 0))


@pytest.mark.slow
@each([case for case in (*PAIRS, *ALONE) if has_distribution(case.layers, case.intra_layers)])
@in_float64
def test_pairs_against_all_their_states(case):
    """All of the above, THEORY 4a and 4b, the statistics of contrastive divergence, free energies and log Z."""
    oracle = case.oracle
    states, p, log_z = oracles.unit_distribution(oracle)
    num_above = len(states) // len(weights_of(case))
    joint = p.reshape(-1, num_above)
    # Visible states that are more and less probable.
    rows = np.unique(np.argsort(-joint.sum(axis=1))[[0, len(joint) // 10, len(joint) // 4]])
    completed = np.zeros_like(joint)
    completed[rows] = joint[rows] / joint[rows].sum(axis=1, keepdims=True) / len(rows)
    visible = states[rows * num_above]
    energies, fields, flows, (both, without_hidden), (mean_free_energy, moments) = found(
        case.machine, layered(case, states), np.stack([p, completed.ravel()]), layered(case, visible)
    )
    assert_right_at(case, states, completed.ravel(), energies, fields, flows, flat(case, both, 1))
    # 4a: at data of the machine's own distribution no parameter has a gradient.
    size = np.abs(flat(case, both, 1)[1]).max()
    for part in flat(case, both, 0):
        np.testing.assert_allclose(part, 0, atol=1e-8 * max(size, 1))
    # 4b: after an exact E-step hidden flips are noise.
    for one, other in zip(flat(case, both, 1), flat(case, without_hidden, 1), strict=True):
        assert_close(one, other, 1e-8)
    assert_same(flat(case, moments), oracles.unit_moments(oracle, states, completed.ravel()), 1e-8)
    exact = -log_z - np.log(joint[rows].sum(axis=1)) + np.log(weights_of(case)[rows])
    assert_close(mean_free_energy, exact.mean(), 1e-8)
    if summable(case):
        assert_close(vpf_jax.log_partition_exact(case.machine), log_z, 1e-9)
    else:
        with pytest.raises(ValueError, match=r"^got a machine of .* units; exact enumeration takes"):
            vpf_jax.log_partition_exact(case.machine)


def summable(case: UnitCase) -> bool:
    """Whether layers that are summed in closed form leave only units of a finite number of values."""
    finite = [all(kind in FINITE for kind in layer) for layer in case.layers]
    free = [good or block is None for good, block in zip(finite, case.intra, strict=True)]
    return all(finite) or any(all(free[i] if i == one else finite[i] for i in range(len(free))) for one in (0, 1))


def weights_of(case: UnitCase) -> np.ndarray:
    """Of the nodes of the visible layer."""
    weights = np.ones(1)
    for kind in case.layers[0]:
        weights = np.outer(weights, oracles.unit_values(kind)[1]).ravel()
    return weights


@in_float64
def test_log_z_of_several_layers_and_groups_that_are_enumerated():
    """Nothing can be summed out: states are digits in several bases."""
    case = make_units((("binary", "categorical(3)", "spin"), ("spin", "categorical(3)")), (0, 1), strength=0.8)
    assert_close(vpf_jax.log_partition_exact(case.machine), oracles.unit_distribution(case.oracle)[2])
