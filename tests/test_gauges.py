"""Other parameters of the same distribution: no probability changes, by enumeration in float64.

Energies are those of the oracles, which are linear in the entries of a state whatever the units are. Real values are
integrated out in closed form, and densities are compared with the Jacobian of the change of variables.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import OneToOne, assert_close, assert_same_machine, in_float64
from typed import refused

import vpf_jax
from vpf_jax import BoltzmannMachine, standardise, to_zero_sum, with_units
from vpf_jax.units import BINARY, COUNT, GAUSSIAN, NORMAL, SPIN, Categorical, Groups, TwoValued

THREE, FOUR = Categorical(3), Categorical(4)
WIDE = TwoValued("wide", -2, 3, np.int8)


def drawn(kinds, intra=(), seed=0, scale=1.0):
    """A machine with random parameters of layers given as [(unit, entries), ...] each."""
    rng = np.random.default_rng(seed)
    sizes = [sum(count for _, count in layer) for layer in kinds]

    def inside(layer, n):
        block = rng.normal(size=(n, n)) * scale
        numbers = owners(layer)
        return np.where(numbers[:, None] == numbers[None], 0, block + block.T)

    own = tuple(
        jnp.asarray(rng.normal(size=n)) if any(unit is GAUSSIAN for unit, _ in layer) else None
        for layer, n in zip(kinds, sizes, strict=True)
    )
    return BoltzmannMachine(
        biases=tuple(jnp.asarray(rng.normal(size=n)) for n in sizes),
        weights=tuple(jnp.asarray(rng.normal(size=pair) * scale) for pair in itertools.pairwise(sizes)),
        intra=tuple(
            jnp.asarray(inside(layer, n)) if i in intra else None
            for i, (layer, n) in enumerate(zip(kinds, sizes, strict=True))
        ),
        own=own if any(block is not None for block in own) else None,
        units=tuple(layer[0][0] if len(layer) == 1 else Groups(tuple(layer)) for layer in kinds),
    )


def owners(layer):
    """A number for each entry, the same for those of one categorical unit."""
    numbers = []
    for unit, count in layer:
        width = getattr(unit, "q", 1)
        numbers += [max(numbers, default=-1) + 1 + i // width for i in range(count)]
    return np.array(numbers)


def all_rows(kinds):
    """Every state as one row: of a categorical unit one-hot vectors, of a two-valued one its values."""
    units = []
    for unit, count in itertools.chain(*kinds):
        q = getattr(unit, "q", None)
        values = [[unit.low], [unit.high]] if q is None else np.eye(q)
        units += [values] * (count if q is None else count // q)
    return np.array([np.concatenate([np.zeros(0), *row]) for row in itertools.product(*units)], np.float64)


def energies(machine, rows):
    flat = oracles.flatten(machine.biases, machine.weights, machine.intra)
    return oracles.energies(flat, rows)


def log_law(machine, rows):
    found = -energies(machine, rows)
    return found - oracles.log_sum_exp(found)


POTTS = {
    "pairs": ([[(THREE, 6)], [(BINARY, 3)]], ()),
    "inside": ([[(FOUR, 12)]], (0,)),
    "pairs and inside": ([[(THREE, 6)], [(SPIN, 2)]], (0, 1)),
    "groups": ([[(BINARY, 2), (THREE, 6), (FOUR, 4)], [(BINARY, 2)]], (0,)),
    "hidden": ([[(BINARY, 3)], [(THREE, 6)]], (1,)),
    "both": ([[(FOUR, 8)], [(THREE, 3)]], (0,)),
    "three layers": ([[(THREE, 3)], [(SPIN, 2)], [(FOUR, 8)]], (2,)),
}
POTTS_CASES = pytest.mark.parametrize(("kinds", "intra"), POTTS.values(), ids=POTTS)


@POTTS_CASES
@in_float64
def test_the_zero_sum_gauge_changes_no_probability(kinds, intra):
    machine, rows = drawn(kinds, intra), all_rows(kinds)
    found = to_zero_sum(machine)
    assert_close(log_law(found, rows), log_law(machine, rows))
    assert np.ptp(energies(machine, rows)) > 5
    assert_same_machine(to_zero_sum(found), found)


@POTTS_CASES
@in_float64
def test_sums_over_the_values_of_a_unit_vanish(kinds, intra):
    machine = drawn(kinds, intra)
    found = to_zero_sum(machine)

    def sums(layer, block):
        """Along the first axis, over each categorical unit; of the machine as drawn they are not small."""
        numbers = owners(kinds[layer])
        several = [n for n in set(numbers) if (numbers == n).sum() > 1]
        return np.array([np.asarray(block)[numbers == n].sum(axis=0) for n in several])

    for layer in range(len(kinds)):
        blocks = {"bias": lambda m, i=layer: m.biases[i]}
        if layer < len(kinds) - 1:
            blocks["above"] = lambda m, i=layer: m.weights[i]
        if layer:
            blocks["below"] = lambda m, i=layer: m.weights[i - 1].T
        if layer in intra:
            blocks["inside"] = lambda m, i=layer: m.intra[i]
        for name, block in blocks.items():
            before, after = sums(layer, block(machine)), sums(layer, block(found))
            assert before.size == 0 or np.abs(before).max() > 0.3, name
            assert_close(after, np.zeros(after.shape))


@in_float64
def test_couplings_of_the_zero_sum_gauge_are_the_smallest():
    """Of a pair of sites against least squares over all shifts of its rows and columns."""
    kinds, intra = POTTS["inside"]
    machine = drawn(kinds, intra)
    found = np.asarray(to_zero_sum(machine).intra[0])
    pair = np.asarray(machine.intra[0])[:4, 4:8].reshape(-1)
    rows, columns = np.repeat(np.eye(4), 4, axis=0), np.tile(np.eye(4), (4, 1))
    shifts = np.concatenate([rows, columns], axis=1)
    least = pair - shifts @ np.linalg.lstsq(shifts, pair, rcond=None)[0]
    assert_close(found[:4, 4:8].reshape(-1), least)


@in_float64
def test_inputs_are_not_changed():
    kinds, intra = POTTS["pairs and inside"]
    machine, again = drawn(kinds, intra), drawn(kinds, intra)
    to_zero_sum(machine)
    assert_same_machine(machine, again, 0)


def test_what_has_no_zero_sum_gauge_is_refused():
    bits = vpf_jax.init_machine(jax.random.key(0), (4, 3))
    potts = vpf_jax.init_machine(jax.random.key(0), (6, 4), units=(THREE, BINARY))
    with refused(ValueError, match="got units of kind 'binary'; the zero-sum gauge is of categorical ones"):
        to_zero_sum(bits)
    with refused(ValueError, match="directed machine.*the zero-sum gauge takes symmetric weights"):
        to_zero_sum(vpf_jax.untie(None, potts))
    joined = dataclasses.replace(
        potts, biases=(jnp.zeros(6), jnp.zeros(6)), weights=(OneToOne(jnp.ones(6)),), intra=(None, None)
    )
    with refused(ValueError, match="got a coupling of kind OneToOne; the zero-sum gauge takes matrices of weights"):
        to_zero_sum(joined)


# Visible layers with real values, and the mean and deviation of each entry: 0 and 1 where it is none.
REAL = {
    "real": ([[(GAUSSIAN, 3)], [(BINARY, 3)]], (), [1.5, -2.0, 0.3], [0.5, 2.0, 3.0]),
    "inside": ([[(GAUSSIAN, 3)], [(SPIN, 2)]], (0, 1), [1.5, -2.0, 0.3], [0.5, 2.0, 3.0]),
    "alone": ([[(GAUSSIAN, 2)]], (0,), [0.7, -1.0], [2.0, 0.2]),
    "groups": (
        [[(BINARY, 2), (GAUSSIAN, 2), (THREE, 3)], [(BINARY, 2)], [(BINARY, 2)]],
        (0,),
        [0, 0, 1.0, -0.5, 0, 0, 0],
        [1, 1, 3.0, 0.8, 1, 1, 1],
    ),
}
REAL_CASES = pytest.mark.parametrize(("kinds", "intra", "means", "deviations"), REAL.values(), ids=REAL)


def real_entries(kinds):
    return np.concatenate([np.full(count, unit is GAUSSIAN) for unit, count in kinds[0]])


def densities(machine, kinds, x):
    """Log p of real values x and every state of the rest, [points, states]: log Z is a Gaussian integral for each."""
    real = np.zeros(machine.num_units, bool)
    real[: machine.sizes[0]] = real_entries(kinds)
    flat = oracles.flatten(machine.biases, machine.weights, machine.intra)
    others = [[(unit, count) for unit, count in layer if unit is not GAUSSIAN] for layer in kinds]
    rest = np.zeros((len(all_rows(others)), len(real)))
    rest[:, ~real] = all_rows(others)
    precisions = np.exp(np.asarray(machine.own[0])[real[: machine.sizes[0]]])
    matrix = np.diag(precisions) - flat.coupling[np.ix_(real, real)]
    assert np.linalg.eigvalsh(matrix).min() > 0
    fields = flat.bias[real] + rest @ flat.coupling[:, real]
    integrals = np.einsum("si,ij,sj->s", fields, np.linalg.inv(matrix), fields) / 2
    integrals += (real.sum() * np.log(2 * np.pi) - np.linalg.slogdet(matrix)[1]) / 2
    log_z = oracles.log_sum_exp(integrals - oracles.energies(flat, rest))
    found = []
    for point in x:
        states = rest.copy()
        states[:, real] = point
        found.append(-oracles.energies(flat, states) - (precisions * point**2).sum() / 2 - log_z)
    return np.array(found)


@REAL_CASES
@in_float64
def test_standardising_changes_densities_by_the_jacobian_alone(kinds, intra, means, deviations):
    machine = drawn(kinds, intra, scale=0.2)
    real = real_entries(kinds)
    mean, deviation = np.array(means, float), np.array(deviations, float)
    found = standardise(machine, mean, deviation)
    x = np.random.default_rng(1).normal(size=(7, real.sum())) * 2
    y = (x - mean[real][None]) / deviation[real][None]
    jacobian = np.log(deviation[real]).sum()
    assert abs(jacobian) > 0.3
    assert_close(densities(found, kinds, y), densities(machine, kinds, x) + jacobian)


@REAL_CASES
@in_float64
def test_the_inverse_gives_the_machine_back(kinds, intra, means, deviations):
    machine = drawn(kinds, intra, scale=0.2)
    mean, deviation = np.array(means, float), np.array(deviations, float)
    back = standardise(standardise(machine, mean, deviation), -mean / deviation, 1 / deviation)
    assert_same_machine(back, machine)


@in_float64
def test_independent_units_of_the_means_become_standard_ones():
    """From means and variances to mean 0 and variance 1, whatever they were."""
    machine = vpf_jax.init_machine(jax.random.key(0), (3,), units=GAUSSIAN)
    machine = jax.tree.map(lambda leaf: leaf.astype(float), machine)
    mean, deviation = np.array([3.0, -1.0, 0.2]), np.array([0.1, 2.0, 5.0])
    machine = vpf_jax.with_visible_means(machine, mean, deviation**2)
    found = standardise(machine, mean, deviation)
    assert_close(found.biases[0], np.zeros(3))
    assert_close(found.own[0], np.zeros(3))


def test_what_cannot_be_standardised_is_refused():
    real = vpf_jax.init_machine(jax.random.key(0), (2, 3), units=(GAUSSIAN, BINARY))
    zeros, ones = np.zeros(2), np.ones(2)
    for kind in (BINARY, NORMAL, COUNT):
        machine = vpf_jax.init_machine(jax.random.key(0), (2, 3), units=(kind, BINARY))
        with refused(ValueError, match=f"got visible units of kind '{kind.name}'; standardising is of gaussian ones"):
            standardise(machine, zeros, ones)
    with refused(ValueError, match="directed machine.*standardising takes symmetric weights"):
        standardise(vpf_jax.untie(None, real), zeros, ones)
    for wrong in (np.array([1.0, 0.0]), -ones, np.ones(3), np.full(2, np.nan), ones.tolist()):
        with refused(ValueError, match="got .*deviations"):
            standardise(real, zeros, wrong)
    for wrong in (np.zeros(3), np.full(2, np.inf), None):
        with refused(ValueError, match="means"):
            standardise(real, wrong, ones)
    mixed = vpf_jax.init_machine(jax.random.key(0), (2,), units=Groups(((BINARY, 1), (GAUSSIAN, 1))))
    with refused(ValueError, match="got means of other values; they are 0 but for gaussian units"):
        standardise(mixed, ones, ones)
    with refused(ValueError, match="got deviations of other values; they are 1 but for gaussian units"):
        standardise(mixed, zeros, ones * 2)


TWO_VALUED = {
    "bits": [[(BINARY, 3)], [(BINARY, 3)]],
    "spins": [[(SPIN, 3)], [(SPIN, 3)]],
    "of several kinds": [[(BINARY, 2)], [(SPIN, 3)], [(WIDE, 2)]],
}


@pytest.mark.parametrize("kinds", TWO_VALUED.values(), ids=TWO_VALUED)
@pytest.mark.parametrize("unit", [BINARY, SPIN, WIDE], ids=lambda unit: unit.name)
@in_float64
def test_other_two_valued_units_change_no_probability(kinds, unit):
    """Rows of all states are in the same order of lower and upper values."""
    machine = drawn(kinds, intra=(0, len(kinds) - 1))
    found = with_units(machine, unit)
    assert found.layer_units == (unit,) * len(kinds)
    others = [[(unit, count) for _, count in layer] for layer in kinds]
    assert_close(log_law(found, all_rows(others)), log_law(machine, all_rows(kinds)))


@in_float64
def test_directed_machines_and_lists_of_edges_keep_their_flip_rates():
    bits = drawn([[(BINARY, 3)], [(BINARY, 3)]], intra=(1,))
    directed = dataclasses.replace(bits, backward=(bits.weights[0][::-1],))
    edges = dataclasses.replace(bits, weights=(OneToOne(jnp.asarray([1.0, -2.0, 0.5])),))
    for machine in (directed, edges):
        found = with_units(machine, SPIN)
        for row in oracles.all_states(6)[::5]:
            states = [tuple(jnp.asarray(part) for part in np.split(x, [3])) for x in (row, 2 * row - 1)]
            rates = [vpf_jax.flip_rates(*pair) for pair in zip((machine, found), states, strict=True)]
            for a, b in zip(*rates, strict=True):
                assert_close(a, b)


def test_other_parameters_are_of_two_values_alone():
    potts = vpf_jax.init_machine(jax.random.key(0), (6, 4), units=(THREE, BINARY))
    bits = vpf_jax.init_machine(jax.random.key(0), (4, 3))
    for machine, unit, kind in ((potts, SPIN, THREE), (bits, THREE, THREE), (bits, GAUSSIAN, GAUSSIAN)):
        told = f"got units of kind {kind.name!r}; another parametrisation takes units of two values"
        with refused(ValueError) as refusal:
            with_units(machine, unit)
        assert str(refusal.value) == told
