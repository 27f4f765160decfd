"""Every kind of unit alone, against sums over its values and quadrature in float64: what is asserted is the protocol.

Two kinds of the tests' own are among them. Machines of them are in `test_pairs`.
"""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from families import assert_close, in_float64
from typed import refused
from unit_machines import TERNARY

import vpf_jax
from vpf_jax import units
from vpf_jax.units import BINARY, COUNT, GAUSSIAN, NORMAL, RECTIFIED, SPIN, Categorical, Groups, TwoValued, base

WIDE = TwoValued("wide", -2, 3, np.int8)
# Of Gaussian units.
OWN = 0.4
FINITE = (BINARY, SPIN, WIDE, TERNARY, Categorical(3))
ALL = (*FINITE, GAUSSIAN.bound(jnp.full(1, OWN, jnp.float32)), NORMAL, RECTIFIED, COUNT)


def each(*kinds):
    return pytest.mark.parametrize("unit", kinds, ids=lambda unit: unit.name)


def own_of(unit):
    return OWN if unit == GAUSSIAN else 0.0


def in_double(unit):
    return unit.bound(jnp.full(1, OWN)) if unit == GAUSSIAN else unit


def fields_of(unit, number=17):
    """Spread over [-4, 4] and, of counts, over [-4, 2]."""
    rng = np.random.default_rng(1)
    top = 2 if unit == COUNT else 4
    return np.stack([rng.permutation(np.linspace(-4, top, number)) for _ in range(unit.width)], axis=1)


def sums(unit, z):
    """(values [V, width], probabilities [fields, V], log sums [fields])."""
    found = [oracles.unit_masses(unit.name, field, own_of(unit), reach=14, most=80) for field in z]
    return found[0][0], np.stack([p for _, p, _ in found]), np.array([total for *_, total in found])


@each(*ALL)
@in_float64
def test_mean_and_log_normaliser_are_sums_over_the_values(unit):
    unit, z = in_double(unit), fields_of(unit)
    values, p, logs = sums(unit, z)
    assert_close(unit.log_normaliser(jnp.asarray(z))[:, 0], logs)
    assert_close(unit.mean(jnp.asarray(z)), p @ values)
    slopes = jax.vmap(jax.grad(lambda field: jnp.sum(unit.log_normaliser(field))))(jnp.asarray(z))
    assert_close(slopes, p @ values)
    assert_close(unit.log_normaliser_difference(jnp.asarray(z), jnp.asarray(z[::-1]))[:, 0], logs - logs[::-1])


@pytest.mark.parametrize("z", [-60.0, -30.0, -10.01, -9.99, -3.0, 5.0, 40.0])
def test_the_mean_of_rectified_units_far_from_0(z):
    """Against quadrature; in single precision at -10 it is a tenth, left of numbers of ten and exp(-50)."""
    deviation = 1 / max(1.0, -z)
    x = np.linspace(0, max(z, 0) + 40 * deviation, 400_001)
    p = np.exp(x * z - x**2 / 2 - max(z, 0) ** 2 / 2)
    p[0] /= 2
    np.testing.assert_allclose(RECTIFIED.mean(jnp.full(1, z)), [p @ x / p.sum()], rtol=3e-4)


@each(*FINITE)
def test_shares_of_samples_are_the_probabilities(unit):
    """Uniform numbers on a grid: the share of each value is its probability up to one grid step."""
    steps = 20_000
    grid = np.zeros((steps, unit.width), np.float32)
    grid[:, 0] = (np.arange(steps) + 0.5) / steps
    for z in fields_of(unit, 5):
        values, p, _ = oracles.unit_masses(unit.name, z)
        drawn = np.asarray(unit.sample(jnp.tile(jnp.asarray(z, jnp.float32), (steps, 1)), jnp.asarray(grid)), float)
        shares = [(drawn == value).all(axis=1).mean() for value in values]
        assert sum(shares) == pytest.approx(1)
        np.testing.assert_allclose(shares, p, atol=2 / steps)


@pytest.mark.parametrize("rate", [0.01, 1.0, 7.3, 99.0, 101.0, 300.0, 3e4, 2e5])
def test_samples_of_counts_are_quantiles(rate):
    """Probabilities below x and up to x enclose the uniform number, but for the rounding of sums."""
    u = ((np.arange(5000) + 0.5) / 5000).astype(np.float32)
    z = np.float32(np.log(rate))
    x = np.asarray(COUNT.sample(jnp.full(len(u), z), jnp.asarray(u)))
    exact = np.exp(np.float64(z))
    values = np.arange(max(0, int(exact - 9 * exact**0.5)), int(exact + 9 * exact**0.5 + 12))
    logs = values * np.float64(z) - exact - np.array([math.lgamma(v + 1) for v in values])
    below = np.concatenate([[0], np.cumsum(np.exp(logs))])
    at = x - values[0]
    assert (below[at] < u + 1e-4).all()
    assert (u < below[at + 1] + 1e-4).all()


def test_samples_of_counts_end_where_uniform_numbers_do():
    """The first and the last of them in single precision: within half of what lies between them and their quantiles."""
    rates = np.array([0.01, 1.0, 7.3, 50.0, 99.0, 101.0, 300.0, 2e5])
    ends = [COUNT.sample(jnp.log(jnp.asarray(rates, jnp.float32)), jnp.full(8, u)) for u in (0.0, 1 - 2.0**-24)]
    deviation = np.sqrt(rates)
    assert (ends[0] >= rates - 6.5 * deviation).all()
    assert (ends[0] <= np.maximum(rates - 4.5 * deviation, 0)).all()
    assert (ends[1] >= rates + 4.5 * deviation - 1).all()
    assert (ends[1] <= rates + 7.5 * deviation + 3).all()
    # As high as counts go, whatever the field.
    assert int(COUNT.sample(jnp.full(1, 80.0), jnp.full(1, 0.5))[0]) == 2**24


@pytest.mark.parametrize("z", [-30.0, -10.01, -9.99, -3.0, 0.0, 0.5, 5.0])
def test_samples_of_rectified_units_are_quantiles(z):
    u = ((np.arange(5000) + 0.5) / 5000).astype(np.float32)
    x = np.asarray(RECTIFIED.sample(jnp.full(len(u), z), jnp.asarray(u)), np.float64)
    assert (x >= 0).all()
    above = np.array([math.erfc((value - z) / math.sqrt(2)) for value in x]) / math.erfc(-z / math.sqrt(2))
    np.testing.assert_allclose(1 - above, u, atol=2e-4)


def test_samples_of_rectified_units_with_a_high_field_are_not_0():
    ends = RECTIFIED.sample(jnp.full(2, 1000.0), jnp.asarray([0.0, 1 - 2.0**-24], jnp.float32))
    np.testing.assert_allclose(ends, [994.6, 1005.4], atol=0.2)


def test_samples_of_real_units_are_quantiles_up_to_five_deviations():
    """Every uniform number has a finite quantile, the first and the last one the same up to the sign."""
    u = np.concatenate([np.arange(1, 5000) / 5000, [0.0, 1 - 2.0**-24]]).astype(np.float32)
    unit = GAUSSIAN.bound(jnp.full(1, OWN))
    x = np.asarray(unit.sample(jnp.full((len(u), 1), 0.7), jnp.asarray(u)[:, None]), np.float64)[:, 0]
    w = (x - 0.7 / np.exp(OWN)) * np.exp(OWN / 2)
    np.testing.assert_allclose([0.5 * math.erfc(-value / math.sqrt(2)) for value in w], u, atol=1e-6)
    np.testing.assert_allclose(w[-2:], [-5.42, 5.42], atol=1e-2)
    # Moments of the grid without its ends; what the ends hold of the fourth one is 2e-2 of it.
    np.testing.assert_allclose([w[:-2].mean(), (w[:-2] ** 2).mean()], [0, 1], atol=4e-3)
    assert (w[:-2] ** 4).mean() == pytest.approx(3, rel=3e-2)
    np.testing.assert_allclose(NORMAL.sample(jnp.zeros(len(u)), jnp.asarray(u)), w, rtol=1e-5, atol=1e-5)


@each(*ALL)
@in_float64
def test_the_flow_is_that_of_energy_differences_and_the_slope_its_derivative(unit):
    unit = in_double(unit)
    values = oracles.unit_values(unit.name, 4, 12)[0][:: 3 if unit in (RECTIFIED, NORMAL, GAUSSIAN) else 1]
    for z in fields_of(unit, 5):
        field = jnp.tile(jnp.asarray(z), (len(values), 1))
        rates, slope = unit.flow(jnp.asarray(values), field)

        def flows(z, unit=unit):
            machine = oracles.unit_machine([z], [], [None], [unit.name], [np.full(unit.width, own_of(unit))])
            return oracles.unit_flows(machine, values)[:, 0]

        assert_close(rates.sum(axis=1), flows(z))
        steps = 1e-5 * np.eye(unit.width)
        differences = np.stack([(flows(z + step) - flows(z - step)) / 2e-5 for step in steps], axis=1)
        assert_close(slope, differences, 1e-8)
        assert_close(slope, jax.grad(lambda z, unit=unit: jnp.sum(unit.flow(jnp.asarray(values), z)[0]))(field))


@each(*ALL)
@in_float64
def test_the_expected_slope_is_zero_under_the_conditional(unit):
    """THEORY 4b: flips of exact samples are noise; and so for the parameters of the own energy."""
    unit = in_double(unit)
    z = fields_of(unit)
    values, p, _ = sums(unit, z)
    x, field = (jnp.asarray(a) for a in (np.broadcast_to(values, (len(z), *values.shape)), z[:, None]))
    field = jnp.broadcast_to(field, x.shape)
    slopes = [unit.flow(x, field)[1]]
    if unit == GAUSSIAN:
        slopes.append(unit.own_slope(x, field))
    for slope in slopes:
        assert float(jnp.abs(slope).max()) > 0.1
        assert_close(np.einsum("fv,fvk->fk", p, slope), np.zeros((len(z), unit.width)), 1e-8)


@in_float64
def test_the_parameters_of_the_own_energy_of_gaussian_units():
    """Statistics and slopes against autodiff and quadrature."""
    z = fields_of(GAUSSIAN)
    values, p, _ = sums(GAUSSIAN, z)
    x, field = jnp.asarray(values[:, 0]), jnp.asarray(z[:, 0])
    own = jnp.full(1, OWN)

    def by_own(function):
        return jax.jacobian(lambda own: function(GAUSSIAN.bound(own)))(own)[..., 0]

    unit = GAUSSIAN.bound(own)
    assert_close(unit.own_energy(x), oracles.own_energy("gaussian", values[:, 0], OWN))
    assert_close(unit.own_statistics(x), by_own(lambda unit: -unit.own_energy(x)))
    assert_close(unit.mean_own_statistics(field), p @ np.asarray(unit.own_statistics(x)))
    assert_close(unit.mean_own_statistics(field), by_own(lambda unit: unit.log_normaliser(field)) + 0)
    some = x[::3][:17]
    assert_close(unit.own_slope(some, field), by_own(lambda unit: unit.flow(some, field)[0]))
    np.testing.assert_array_equal(GAUSSIAN.own(3), np.zeros(3))
    one = GAUSSIAN.bound(jnp.arange(3.0)).entry(jnp.asarray(1))
    assert_close(one.mean(jnp.ones(1)), [np.exp(-1)])


@in_float64
def test_energies_are_linear_between_two_parameters():
    a, b, x = jnp.asarray([0.3, -2.0]), jnp.asarray([-1.0, 1.5]), jnp.asarray([0.7, -1.1])
    groups = Groups(((BINARY, 1), (GAUSSIAN, 2)))
    for share in (0.0, 0.25, 1.0):
        mixed = GAUSSIAN.own_between(a, b, jnp.asarray(share))
        ends = [GAUSSIAN.bound(own).own_energy(x) for own in (a, b, mixed)]
        assert_close(ends[2], (1 - share) * ends[0] + share * ends[1])
        with_bit = [jnp.concatenate([jnp.zeros(1), own]) for own in (a, b)]
        assert_close(groups.own_between(*with_bit, jnp.asarray(share))[1:], mixed)


@each(*FINITE, RECTIFIED, COUNT)
def test_other_kinds_have_no_parameters_of_their_own(unit):
    assert unit.own(unit.width) is None
    x = jnp.ones(unit.width)
    for call in (
        lambda: unit.own_statistics(x),
        lambda: unit.mean_own_statistics(x),
        lambda: unit.own_slope(x, x),
    ):
        with pytest.raises(NotImplementedError, match=re.escape(f"kind {unit.name!r} have no parameters")):
            call()


FITTED = {
    BINARY: [0.1, 0.7],
    SPIN: [-0.5, 0.2],
    WIDE: [-1.0, 2.5],
    Categorical(3): [0.1, 0.7, 0.2],
    GAUSSIAN: [-3.0, 0.5],
    NORMAL: [-3.0, 0.5],
    COUNT: [0.3, 120.0],
    RECTIFIED: [0.3, 120.0],
}


@each(*FITTED)
@in_float64
def test_a_start_has_the_means_and_variances_that_it_is_fitted_to(unit):
    means, variances = jnp.asarray(FITTED[unit]), jnp.linspace(0.5, 2, len(FITTED[unit]))
    biases, own = unit.fitted(means, variances)
    assert_close(unit.bound(own).mean(biases), means)
    if unit == GAUSSIAN:
        assert_close(jnp.exp(-own), variances)
        assert_close(unit.fitted(means, None)[1], np.zeros(2))
    else:
        assert own is None


@pytest.mark.parametrize(
    ("unit", "means"),
    [
        (BINARY, [0.0, 1.0]),
        (SPIN, [-1.0, 1.0]),
        (Categorical(3), [0.0, 1.0, 0.0]),
        (COUNT, [0.0, 0.0]),
        (RECTIFIED, [0.0, 0.0]),
    ],
)
def test_a_start_from_means_at_an_end_has_finite_fields(unit, means):
    """Off by no more than one value in a hundred."""
    biases, _ = unit.fitted(jnp.asarray(means), None)
    assert np.isfinite(biases).all()
    np.testing.assert_allclose(unit.mean(biases), means, atol=0.021)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rectified_units_have_the_means_of_data_by_integrals(dtype):
    """From where the density is next to an exponential one to where next to nothing is cut off."""
    means = np.concatenate([np.geomspace(0.01, 1, 30), np.linspace(1.1, 9, 20)]).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        fields, own = RECTIFIED.fitted(jnp.asarray(means), None)
    assert own is None
    assert fields.dtype == dtype
    for z, mean in zip(np.asarray(fields, np.float64), means, strict=True):
        x = np.linspace(0, mean + min(20, 60 * mean), 400_001)
        p = np.exp(x * z - x**2 / 2 - max(z, 0) ** 2 / 2)
        p[[0, -1]] /= 2
        np.testing.assert_allclose(p @ x / p.sum(), mean, rtol=1e-3 if dtype == np.float32 else 3e-4)
        assert dtype == np.float32 or z < -10 or abs(p @ x / p.sum() / mean - 1) < 1e-8


def test_variances_near_0_are_held_away_from_it():
    biases, own = GAUSSIAN.fitted(jnp.ones(2), jnp.asarray([0.0, 1.0]))
    assert np.isfinite(own).all()
    np.testing.assert_allclose(GAUSSIAN.bound(own).mean(biases), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("unit", "means", "message"),
    [
        (BINARY, [0.5, 1.5], r"got visible_means from 0.5 to 1.5; they are from 0 to 1"),
        (SPIN, [-2.0, 0.0], r"got visible_means from -2 to 0; they are from -1 to 1"),
        (Categorical(2), [0.5, 0.2], "got visible_means of other sums; .* sum to 1 for each unit"),
        (Categorical(2), [1.5, -0.5], "probabilities"),
        (COUNT, [-1.0, 2.0], "got visible_means from -1 to 2; those of counts are at least 0"),
        (RECTIFIED, [-1.0, 2.0], "got visible_means from -1 to 2; those of rectified units are at least 0"),
        (TERNARY, [0.0, 0.5], "got units of kind 'ternary'; a start from means takes kinds that say how"),
        (GAUSSIAN, [0.0, np.nan], "got visible_means that are not finite"),
        (GAUSSIAN, [0.0], r"got visible_means of shape \(1,\)"),
    ],
)
def test_means_that_units_cannot_have_are_refused(unit, means, message):
    machine = vpf_jax.init_machine(jax.random.key(0), (2, 2), units=(unit, BINARY))
    for function in (vpf_jax.independent_machine, vpf_jax.with_visible_means):
        with pytest.raises(ValueError, match=message):
            function(machine, np.asarray(means, np.float32))


def test_variances_below_0_are_refused():
    machine = vpf_jax.init_machine(jax.random.key(0), (2, 2), units=(GAUSSIAN, BINARY))
    with pytest.raises(ValueError, match="got visible_variances from -1 to 1; they are at least 0"):
        vpf_jax.independent_machine(machine, jnp.zeros(2), jnp.asarray([-1.0, 1.0]))
    with pytest.raises(ValueError, match="it takes nothing without means"):
        vpf_jax.independent_machine(machine, None, jnp.ones(2))


GROUPS = Groups(((BINARY, 2), (Categorical(3), 3), (COUNT, 1), (GAUSSIAN, 2)))
VALID = {
    BINARY: [0, 1],
    SPIN: [-1, 1],
    WIDE: [-2, 3],
    TERNARY: [-1, 0, 1],
    Categorical(3): [0, 1, 0, 1, 0, 0],
    GAUSSIAN: [-1e30, 2.5],
    NORMAL: [-1.5, 0],
    RECTIFIED: [0, 3.5],
    COUNT: [0, 2**24],
    GROUPS: [0, 1, 0, 0, 1, 7, -2.5, 0],
}
ONE_HOT = r"got x with other entries; it takes one-hot vectors of 3 entries for each unit"
HOSTILE = [
    (BINARY, [0.5, 1], "they are zeros and ones"),
    (SPIN, [0, 1], r"they are -1 and \+1"),
    (WIDE, [-2, 2], r"they are -2 and \+3"),
    (Categorical(3), [1, 1, 0], ONE_HOT),
    (Categorical(3), [0, 0, 0], ONE_HOT),
    (Categorical(3), [2, -1, 0], ONE_HOT),
    (Categorical(3), [0.5, 0.5, 0], ONE_HOT),
    (Categorical(3), [np.nan, 1, 0], ONE_HOT),
    (Categorical(3), [1, 0], r"got x of shape \(2,\); it takes one-hot vectors of 3 entries"),
    (GAUSSIAN, [0, np.nan], "got x that are not finite, nan among them, in 1 of 2 places"),
    (GAUSSIAN, [np.inf, 0], "got x that are not finite, infinite among them"),
    (NORMAL, [0, -np.inf], "they are finite numbers"),
    (RECTIFIED, [0, -0.1], "got x from -0.1 to 0; they are at least 0"),
    (RECTIFIED, [np.inf, 0], "they are finite numbers"),
    (COUNT, [0, -1], r"with values from -1 to 0; they are whole numbers of at least 0, up to 16777216"),
    (COUNT, [0, 1.5], "they are whole numbers"),
    (COUNT, [0, 2.0**25], "up to 16777216"),
    (COUNT, [0, np.inf], "they are whole numbers"),
    (COUNT, [0, np.nan], "they are whole numbers"),
    (GROUPS, [0, 1, 0, 0, 1, 7, np.nan, 0], "got gaussian units of x that are not finite"),
    (GROUPS, [0, 1, 0, 0, 1, -7, 0, 0], "got count units of x with values from -7 to -7"),
    (GROUPS, [0, 1, 0, 1, 1, 7, 0, 0], r"got categorical\(3\) units of x with other entries"),
    (GROUPS, [0, 2, 0, 0, 1, 7, 0, 0], "got binary units of x"),
    (GROUPS, [0, 1, 0, 0, 1, 7, 0], r"got a layer of 7 entries; the groups of .* have 8"),
]


@each(*VALID)
def test_values_pass_in_either_kind_of_array(unit):
    values = np.array(VALID[unit])
    for x in (values, jnp.asarray(values, unit.dtype), np.array([values, values])):
        assert unit.check("x", x) is x


@pytest.mark.parametrize(("unit", "values", "message"), HOSTILE)
def test_other_values_are_refused_in_one_sentence(unit, values, message):
    for x in (np.array(values), jnp.asarray(np.array(values, np.float32))):
        with pytest.raises(ValueError, match=f"^got .*{message.removeprefix('got ')}") as refusal:
            unit.check("x", x)
        assert "\n" not in str(refusal.value)


@each(*(unit for unit in VALID if unit != TERNARY))
def test_what_is_no_array_of_numbers_is_refused(unit):
    for given in (VALID[unit], None, np.array(["a"])):
        with refused(ValueError, match="^got .* it takes"):
            unit.check("x", given)
    if unit.width > 1 or unit == GROUPS:
        with pytest.raises(ValueError, match=r"^got .*\(\)"):
            unit.check("x", np.zeros(()))


def test_codes_of_categories():
    unit = Categorical(4)
    codes = np.array([[0, 3], [2, 1]])
    x = unit.encode(codes)
    np.testing.assert_array_equal(x, [[1, 0, 0, 0, 0, 0, 0, 1], [0, 0, 1, 0, 0, 1, 0, 0]])
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(unit.decode(x), codes)
    np.testing.assert_array_equal(unit.decode(np.array([0.1, 0.2, 0.4, 0.3])), [2])
    for wrong in (np.array([4]), np.array([-1])):
        with pytest.raises(ValueError, match=r"got codes from .*; they are integers from 0 to 3"):
            unit.encode(wrong)
    for wrong in (np.array([0.5]), [0, 1]):
        with refused(ValueError, match="^got .*codes.* integers from 0 to 3"):
            unit.encode(wrong)
    for q in (1, 0, -3, 2.5, True):
        with refused(ValueError, match="got q=.*; it takes an integer of at least 2"):
            Categorical(q)


@each(BINARY, SPIN, Categorical(3), GAUSSIAN, NORMAL, RECTIFIED, COUNT, GROUPS)
def test_names_lead_back_to_kinds(unit):
    assert units.get(unit.name) == unit
    assert hash(units.get(unit.name)) == hash(unit)
    machine = vpf_jax.init_machine(
        jax.random.key(0), (8 if unit == GROUPS else 3 * unit.width, 2), units=(unit, BINARY)
    )
    # The kind that a machine binds to its parameters is the kind.
    assert machine.layer_units[0] == unit


def test_the_table_of_units_knows_names_and_refuses_doubles():
    assert units.names()[:2] == ("binary", "spin")
    assert set(units.names()) >= {"gaussian", "normal", "rectified", "count"}
    assert units.get("spin") is SPIN
    told = r"got unit=.*; it takes one of binary, spin, .*categorical\(\.\.\.\), groups\(\.\.\.\)"
    for name in ("boson", "bosons(3)", "categorical", "", 3, None, "spin "):
        with refused(ValueError, match=told):
            units.get(name)
    with refused(ValueError, match="name other than 'spin'"):
        units.register(TwoValued("spin", -2, 2, np.int8))
    with refused(ValueError, match="a Unit"):
        units.register("spin")
    assert units.register(SPIN) is SPIN
    with pytest.raises(ValueError, match="got name=categorical; it takes a name that no other family has"):
        units.register_family("categorical", lambda argument: SPIN)


def test_kinds_of_ones_own_are_registered(monkeypatch):
    monkeypatch.setattr(base, "_registered", base._registered.copy())
    monkeypatch.setattr(base, "_families", base._families.copy())
    assert units.register(TERNARY) is TERNARY
    assert units.get("ternary") is TERNARY
    assert "ternary" in units.names()
    units.register_family("bounded", lambda argument: Categorical(int(argument) + 1))
    assert units.get("bounded(3)") == Categorical(4)


@pytest.mark.parametrize(
    "name", ["categorical(1)", "categorical(x)", "categorical()", "categorical(-3)", "categorical(2.5)"]
)
def test_families_refuse_arguments(name):
    with pytest.raises(ValueError, match=r"got unit=.*; it takes categorical\(q\), q >= 2"):
        units.get(name)


@pytest.mark.parametrize(
    "groups",
    [
        (),
        [(BINARY, 2)],
        ((BINARY, 0),),
        ((BINARY, 2.5),),
        ((BINARY, True),),
        ((Categorical(3), 4),),
        (("binary", 2),),
        ((BINARY,),),
        ((Groups(((BINARY, 1),)), 1),),
    ],
    ids=str,
)
def test_groups_refuse_what_is_no_kinds_with_numbers(groups):
    with refused(ValueError, match="got groups=.*; it takes pairs "):
        Groups(groups)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("groups()", r"it takes groups\(NUMBER KIND \+ ...\)"),
        ("groups(binary)", r"it takes groups\(NUMBER KIND"),
        ("groups(2 binary + )", r"it takes groups\(NUMBER KIND"),
        ("groups(-2 binary)", r"it takes groups\(NUMBER KIND"),
        ("groups(2 boson)", "it takes one of binary"),
        ("groups(4 categorical(3))", "it takes pairs"),
        ("groups(0 binary)", "it takes pairs"),
        ("groups(1 groups(1 binary))", "it takes pairs"),
    ],
)
def test_names_of_groups_that_are_none_are_refused(name, message):
    with pytest.raises(ValueError, match=f"^got .*{message}"):
        units.get(name)


def test_groups_do_what_their_kinds_do():
    rng = np.random.default_rng(0)
    own = jnp.asarray([0, 0, 0, 0, 0, 0, 0.5, -0.5])
    unit = GROUPS.bound(own)
    z, y = (jnp.asarray(rng.normal(size=(3, 8)), jnp.float32) for _ in range(2))
    u = jnp.asarray(rng.uniform(size=(3, 8)), jnp.float32)
    x = unit.sample(z, u)
    unit.check("x", x)
    parts = [(BINARY, slice(0, 2)), (Categorical(3), slice(2, 5)), (COUNT, slice(5, 6)), (GAUSSIAN, slice(6, 8))]
    assert unit.segments(8) == parts
    assert GROUPS.dtype == np.float32
    assert Groups(((BINARY, 2), (COUNT, 1))).dtype == np.int32
    np.testing.assert_array_equal(GROUPS.own(8), np.zeros(8))
    assert Groups(((BINARY, 2), (SPIN, 1))).own(3) is None
    np.testing.assert_array_equal(base.owners(GROUPS, 8), [0, 1, 2, 2, 2, 3, 4, 5])
    first = 0

    @functools.partial(jax.jit, static_argnums=0)
    def found(kind, own, z, y, x, u):
        kind = kind if own is None else kind.bound(own)
        energies = jnp.broadcast_to(kind.own_energy(x), x.shape)
        by_entry = [kind.sample(z, u), kind.mean(z), *kind.flow(x, z), energies]
        if own is not None:
            by_entry += [kind.own_slope(x, z), kind.own_statistics(x), kind.mean_own_statistics(z)]
        return by_entry, [kind.log_normaliser(z), kind.log_normaliser_difference(z, y)]

    by_entry, by_unit = found(GROUPS, own, z, y, x, u)
    for kind, part in parts:
        its, of_units = found(kind, own[part] if kind == GAUSSIAN else None, *(a[:, part] for a in (z, y, x, u)))
        units_of = slice(first, first + (part.stop - part.start) // kind.width)
        first = units_of.stop
        for whole, its_own in zip(by_unit, of_units, strict=True):
            np.testing.assert_allclose(whole[:, units_of], its_own, rtol=1e-6)
        for whole, its_own in itertools.zip_longest(by_entry, its):
            np.testing.assert_allclose(whole[:, part], 0 if its_own is None else its_own, rtol=1e-6)
    means = jnp.asarray([0.2, 0.8, 0.5, 0.25, 0.25, 3.0, -1.0, 2.0])
    biases, fitted = GROUPS.fitted(means, jnp.full(8, 0.5))
    np.testing.assert_allclose(GROUPS.bound(fitted).mean(biases), means, rtol=1e-5)
    np.testing.assert_allclose(fitted, [0] * 6 + [np.log(2)] * 2, rtol=1e-6)


@each(*ALL)
def test_no_gradient_passes_through_samples(unit):
    z, u = jnp.full(unit.width, 0.3), jnp.full(unit.width, 0.6)
    assert not jax.grad(lambda z: jnp.sum(unit.sample(z, u).astype(jnp.float32)))(z).any()
    if unit == GAUSSIAN:
        assert not jax.grad(lambda own: jnp.sum(unit.bound(own).sample(z, u)))(jnp.ones(1)).any()


def test_layers_take_whole_units():
    for sizes in ((4, 2), (2, 2)):
        with pytest.raises(ValueError, match=rf"got a layer of {sizes[0]} entries of categorical\(3\) units; .* of 3"):
            vpf_jax.init_machine(jax.random.key(0), sizes, units=(Categorical(3), BINARY))
    with pytest.raises(ValueError, match="got a layer of 7 entries; the groups of"):
        vpf_jax.init_machine(jax.random.key(0), (7, 2), units=(GROUPS, BINARY))
