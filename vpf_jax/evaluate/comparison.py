"""Samples of a model against data: moments, numbers of units on, free energies, couplings, nearest training examples.

What one looks at where a likelihood is out of reach, and beside it. Of zeros and ones x, or other numbers,

    means       m_i = <x_i>
    pairs       <(x_i - m_i) (x_j - m_j)>                    covariances, not divided by standard deviations
    triples     <(x_i - m_i) (x_j - m_j) (x_k - m_k)>        connected: 0 unless all three depend on one another
    counts      P(K) of K = sum_i x_i                        in how many examples K units are on

Of categories these are frequencies of values, and what those of pairs and triples of values of different units are
beside them; numbers of units on are of zeros and ones alone. (Schneidman, Berry, Segev and Bialek 2006; Tkacik et al.,
"Searching for collective behavior in a large network of sensory neurons", 2014, for spike words; Tubiana, Cocco and
Monasson, "Learning protein constitutive motifs from sequence data", 2019, for RBMs.) A fully visible machine that
maximises the likelihood has the means and pairs of its data; triples and counts it can only predict. Samples as near to
training examples as held-out data, not nearer, are not learnt by heart. Put beside each number what two sets of data
read: a finite number of examples has moments of its own.

Of an RBM the hidden units are summed out, and what couples two visible units depends on the others,

    w_ij(x) = -F(x_i = 1, x_j = 1) + F(1, 0) + F(0, 1) - F(0, 0),    the other units as in x

which is the weight of a machine without hidden units (Tubiana et al. 2019, there averaged over the data). All here is
for whole sets at once, outside compiled code; results are NumPy arrays. Not here: pictures (`figures`), likelihoods
(`likelihood`), how samples are drawn.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real, Shaped, UInt8

from vpf_jax import checks, couplings
from vpf_jax.checks import AnyArray
from vpf_jax.energy import free_energy, upward_field
from vpf_jax.machine import BoltzmannMachine, check_machine, check_symmetric
from vpf_jax.stack import check_visible, entries, rows_at_once, tile_at_once
from vpf_jax.units import BINARY, Unit, two_valued
from vpf_jax.units.base import owners

# Triples that are looked at, where there are more: a fixed choice, the same for all sets of as many units.
NUM_TRIPLES = 10_000
_CHOICE = 3


class Moments(NamedTuple):
    """Of one set of examples."""

    means: Float[np.ndarray, " n"]
    pairs: Float[np.ndarray, " n_pairs"]
    """Covariances of entries i < j, in the order of `np.triu_indices(n, 1)`, without those of one categorical unit."""
    triples: Float[np.ndarray, " n_triples"]
    """Connected, of the entries of `chosen_triples`, without those of which two are of one categorical unit."""


class Agreement(NamedTuple):
    """Of two vectors of numbers."""

    r: float
    """Pearson's; nan where one of them is constant."""
    rms: float
    """Root mean square difference."""


class CountDistance(NamedTuple):
    """Between two distributions."""

    total_variation: float
    """Half the summed differences, from 0 to 1."""
    divergence: float
    """Jensen and Shannon's, from 0 to log 2 nats; finite where a value never occurs in one of them."""


class Nearest(NamedTuple):
    """Of each row, among examples."""

    distances: Int[np.ndarray, " n"]
    """Hamming distance: in how many units it differs from the nearest example."""
    examples: Int[np.ndarray, " n"]
    """Number of that example; the first of several."""


class Matched(NamedTuple):
    """Of each planted feature."""

    overlaps: Float[np.ndarray, " planted"]
    """Absolute cosine with the hidden unit that is its partner, from 0 to 1; 0 without a partner."""
    partners: Int[np.ndarray, " planted"]
    """Number of the hidden unit, each at most once; -1 for none."""


def chosen_triples(num_units: int, num_triples: int = NUM_TRIPLES) -> Int[np.ndarray, "n_triples 3"]:
    """Units i < j < k of all triples, or of so many where there are more: a fixed random choice, each at most once.

    Raises:
      ValueError: numbers below 1.
    """
    num_units = checks.integer("num_units", num_units, 1)
    num_triples = checks.integer("num_triples", num_triples, 1)
    there = math.comb(num_units, 3)
    rng = np.random.default_rng(_CHOICE)
    few = there <= num_triples
    numbers = np.arange(there) if few else np.sort(rng.choice(there, num_triples, replace=False, shuffle=False))
    # Number = C(k, 3) + C(j, 2) + i, each of k and j the largest that fits.
    units: np.ndarray = np.arange(num_units + 1)
    cubes, squares = units * (units - 1) * (units - 2) // 6, units * (units - 1) // 2
    k = np.searchsorted(cubes, numbers, side="right") - 1
    rest = numbers - cubes[k]
    j = np.searchsorted(squares, rest, side="right") - 1
    return np.stack([rest - squares[j], j, k], axis=1)


def moments(
    visible: Shaped[AnyArray, "batch n"],
    *,
    unit: Unit = BINARY,
    weights: Real[AnyArray, " batch"] | None = None,
    missing: Bool[AnyArray, "batch n"] | None = None,
    num_triples: int = NUM_TRIPLES,
) -> Moments:
    """Means, covariances and connected triples of examples.

    Args:
      visible: values of the units.
      unit: what the units are.
      weights: of the examples, at least 0 and not all 0; None: all count the same.
      missing: True where an entry, 0 in `visible`, is not known. A mean is over the examples in which the unit is
        known, a covariance over those in which both are, and is nan where there are none.
      num_triples: the most that are looked at, those of `chosen_triples`.

    Raises:
      ValueError: other entries or shapes, or examples without weight.
    """
    rows = _rows("visible", visible, unit)
    count, num_units = rows.shape
    triples, apart = chosen_triples(num_units, num_triples), np.triu_indices(num_units, 1)
    owned = owners(unit, num_units)
    if owned is not None:
        i, j, k = owned[triples.T]
        triples = triples[(i != j) & (j != k) & (i != k)]
        apart = tuple(entries[owned[apart[0]] != owned[apart[1]]] for entries in apart)
    parts = [rows, _weights(weights, count)]
    if missing is not None:
        fits = isinstance(missing, np.ndarray | jax.Array) and (missing.dtype, missing.shape) == (bool, rows.shape)
        checks.require(fits, "missing", _told(missing), f"booleans {list(rows.shape)}, as visible has")
        unknown = np.asarray(missing)
        parts = [np.where(unknown, 0, rows), parts[1], ~unknown]
    summed = _sums(triples, *(_chunks(part) for part in parts))
    means, pairs, third = (np.asarray(part, np.float64) for part in summed)
    return Moments(means, pairs[apart], third)


def agreement(found: Real[AnyArray, " n"], wanted: Real[AnyArray, " n"]) -> Agreement:
    """How near numbers of samples, such as covariances, come to those of data.

    Args:
      found: finite numbers.
      wanted: as many.

    Raises:
      ValueError: numbers that are not finite, vectors of two lengths, or none.
    """
    for name, given in (("found", found), ("wanted", wanted)):
        checks.finite(name, given)
        checks.require(given.ndim == 1 and given.size, name, _told(given), "one number or more, in a vector")
    checks.require(len(found) == len(wanted), "found", _told(found), f"as many numbers as wanted, {len(wanted)}")
    a, b = (np.asarray(given, np.float64) for given in (found, wanted))
    varies = np.ptp(a) > 0 and np.ptp(b) > 0
    r = np.corrcoef(a, b)[0, 1] if varies else np.nan
    return Agreement(float(r), float(np.sqrt(np.mean((a - b) ** 2))))


def count_probabilities(
    visible: Shaped[AnyArray, "batch n"], *, weights: Real[AnyArray, " batch"] | None = None
) -> Float[np.ndarray, " n_plus_1"]:
    """Probability of each number of units on, from 0 to all n, among examples.

    Args:
      visible: zeros and ones; what is missing has to be filled in first.
      weights: as `moments`.

    Raises:
      ValueError: other entries or shapes, or examples without weight.
    """
    rows = _rows("visible", visible)
    share = _weights(weights, len(rows)).astype(np.float64)
    return np.bincount(rows.sum(axis=1, dtype=int), share, minlength=rows.shape[1] + 1) / share.sum()


def count_distance(found: Float[AnyArray, " n"], wanted: Float[AnyArray, " n"]) -> CountDistance:
    """How far apart two distributions are, such as those of `count_probabilities`; the same either way round.

    Raises:
      ValueError: anything but two vectors of as many probabilities that add up to 1.
    """
    for name, given in (("found", found), ("wanted", wanted)):
        checks.probabilities(name, given)
        fits = given.ndim == 1 and abs(float(np.sum(given, dtype=np.float64)) - 1) < 1e-3
        checks.require(fits, name, _told(given), "a vector of probabilities that add up to 1")
    checks.require(len(found) == len(wanted), "found", _told(found), f"as many probabilities as wanted, {len(wanted)}")
    a, b = (np.asarray(given, np.float64) for given in (found, wanted))
    middle = (a + b) / 2
    terms = [p * np.log(np.divide(p, middle, out=np.ones_like(p), where=p > 0)) for p in (a, b)]
    return CountDistance(float(np.abs(a - b).sum() / 2), float(max(np.sum(terms), 0) / 2))


def free_energies(machine: BoltzmannMachine, visible: Shaped[AnyArray, "batch n_0"]) -> Float[np.ndarray, " batch"]:
    """F(v) of each example, in nats, log Z left out: of a good model those of samples and of new data look alike.

    Args:
      machine: one or two layers, no weights inside the hidden one.
      visible: values of its visible units.

    Raises:
      ValueError: a machine whose free energy has no closed form, or examples that do not fit it.
    """
    check_visible((machine,), visible)
    # Of one alone first, which says what is wrong with the machine.
    free_energy(machine, jnp.asarray(visible[0]))
    return np.asarray(_free_energies(machine, jnp.asarray(visible)), np.float64)


def energy_distance(found: Real[AnyArray, " n"], wanted: Real[AnyArray, " m"]) -> float:
    """Largest distance between the distribution functions of two sets of numbers (Kolmogorov and Smirnov).

    From 0 to 1; two sets of n numbers of one distribution reach 1.4 sqrt(2 / n) once in twenty times.

    Raises:
      ValueError: numbers that are not finite, or none.
    """
    for name, given in (("found", found), ("wanted", wanted)):
        checks.finite(name, given)
        checks.require(given.ndim == 1 and given.size, name, _told(given), "one number or more, in a vector")
    a, b = np.sort(np.asarray(found)), np.sort(np.asarray(wanted))
    at = np.concatenate([a, b])
    below = (np.searchsorted(some, at, side="right") / len(some) for some in (a, b))
    return float(np.abs(np.subtract(*below)).max())


def effective_couplings(
    machine: BoltzmannMachine, background: Shaped[AnyArray, "batch n_0"] | None = None
) -> Float[np.ndarray, "n_0 n_0"]:
    """What couples each pair of visible units, hidden ones summed out: the weight that a machine without them has.

    Of binary units the second difference of -F(v) by v_i and v_j. It depends on the other units, but for those of a
    fully visible machine, whose weights these are. By hidden units with fields z at v_i = v_j = 0 and log-normaliser A
    it is

        sum_k A(z_k + w_ik + w_jk) - A(z_k + w_ik) - A(z_k + w_jk) + A(z_k)

    beside the weight between the two, where there is one.

    Args:
      machine: one or two layers of two-valued visible units, no weights inside the hidden one. Of spins the second
        difference is 4 w_ij, and w_ij is given.
      background: values of the visible units over which the couplings are averaged, such as examples; the time taken
        is proportional to their number. None: all other units at their lower value, which in binary units gives the
        coefficient of v_i v_j in -F(v) written as a polynomial in bits.

    Returns:
      symmetric, with zeros on the diagonal.

    Raises:
      ValueError: a machine whose hidden units are not independent, a directed one, or a background that does not fit.
    """
    check_machine(machine)
    check_symmetric(machine, "a coupling")
    unit = two_valued(machine.layer_units[0], "a coupling")
    if background is None:
        background = np.full((1, machine.sizes[0]), unit.low, unit.dtype)
    check_visible((machine,), background)
    # Of one alone first, which says what is wrong with the machine.
    free_energy(machine, jnp.asarray(background[0]))
    inside = machine.intra[0]
    found = np.zeros((machine.sizes[0],) * 2) if inside is None else np.array(couplings.dense(inside), np.float64)
    if len(machine.sizes) == 2:
        by_hidden = np.asarray(_second_differences(machine, jnp.asarray(background)), np.float64)
        found += (by_hidden + by_hidden.T) / 2
    np.fill_diagonal(found, 0)
    return found


def nearest_examples(rows: Shaped[AnyArray, "batch n"], examples: Shaped[AnyArray, "many n"]) -> Nearest:
    """The example nearest to each row, by Hamming distance.

    Where samples lie nearer to training examples than held-out examples do, some were learnt by heart. Distances are
    formed for a chunk of rows and examples at a time.

    Args:
      rows: zeros and ones, such as samples, or held-out examples.
      examples: zeros and ones, such as the training examples.

    Raises:
      ValueError: other entries, or shapes that do not fit.
    """
    some, many = _rows("rows", rows), _rows("examples", examples)
    wanted = f"{many.shape[1]} units, as the examples have"
    checks.require(some.shape[1] == many.shape[1], "rows", _told(some), wanted)
    found = _nearest(_chunks(some), _chunks(many), len(many))
    return Nearest(*(np.asarray(part).reshape(-1)[: len(some)] for part in found))


def match_features(weights: Float[AnyArray, "n n_hidden"], planted: Float[AnyArray, "n n_planted"]) -> Matched:
    """Pairs planted features with hidden units, each at most once, so that the summed absolute cosines are largest.

    A hidden unit may stand for a feature by being off where it is there: the sign plays no part.

    Args:
      weights: of an RBM, one column per hidden unit.
      planted: one column per feature, such as the weights of the machine that the data was drawn from.

    Raises:
      ValueError: no matrices of finite numbers with the same number of rows.
    """
    from scipy.optimize import linear_sum_assignment  # takes longer to import than all the rest

    for name, given in (("weights", weights), ("planted", planted)):
        checks.finite(name, given)
        checks.require(given.ndim == 2 and given.size, name, _told(given), "a matrix [visible units, features]")
    checks.require(len(weights) == len(planted), "weights", _told(weights), f"{len(planted)} rows, as planted has")
    found, wanted = (_unit_columns(np.asarray(given, np.float64)) for given in (weights, planted))
    cosines = np.abs(wanted.T @ found)
    features, units = linear_sum_assignment(cosines, maximize=True)
    overlaps, partners = np.zeros(len(cosines)), np.full(len(cosines), -1)
    overlaps[features], partners[features] = cosines[features, units], units
    return Matched(overlaps, partners)


def _told(given: object) -> str:
    return f"an array {list(np.shape(given))}" if hasattr(given, "shape") else f"a {type(given).__name__}"


def _rows(name: str, given: Shaped[AnyArray, "batch n"], unit: Unit = BINARY) -> Shaped[np.ndarray, "batch n"]:
    """Values of the units, if they are a set of examples; zeros and ones as bytes, others in single precision."""
    unit.check(name, given)
    fits = given.ndim == 2 and given.size
    told = "zeros and ones" if unit == BINARY else "values"
    checks.require(fits, name, _told(given), f"{told} [examples, units], of each one or more")
    return np.asarray(given).astype(np.uint8 if unit == BINARY or unit.width > 1 else np.float32)


def _weights(given: Real[AnyArray, " batch"] | None, count: int) -> Float[np.ndarray, " batch"]:
    if given is None:
        return np.ones(count, np.float32)
    checks.finite("weights", given)
    fits = given.shape == (count,) and np.min(given) >= 0 and np.max(given) > 0
    checks.require(fits, "weights", _told(given), f"{count} numbers of at least 0, not all 0, one per example")
    return np.asarray(given, np.float32)


def _chunks(rows: Shaped[np.ndarray, "batch ..."]) -> Shaped[Array, "chunks size ..."]:
    """The rows in pieces of one size, the last filled up with zeros, which as weights count for nothing."""
    size = tile_at_once(len(rows))
    padded = np.pad(rows, ((0, -len(rows) % size), *[(0, 0)] * (rows.ndim - 1)))
    return jnp.asarray(padded.reshape(-1, size, *rows.shape[1:]))


def _unit_columns(matrix: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
    """Columns of length 1; those of zeros stay."""
    lengths = np.linalg.norm(matrix, axis=0)
    return matrix / np.where(lengths > 0, lengths, 1)


@jax.jit
def _sums(
    triples: Int[AnyArray, "n_triples 3"],
    rows: Real[Array, "chunks size n"],
    weights: Float[Array, "chunks size"],
    known: Bool[Array, "chunks size n"] | None = None,
) -> tuple[Float[Array, " n"], Float[Array, "n n"], Float[Array, " n_triples"]]:
    """Weighted means of x_i, and of products of the differences from them, over what is known."""
    i, j, k = triples.T
    masks = jnp.ones((*weights.shape, 1)) if known is None else known.astype(jnp.float32)

    def summed(function: Callable[..., Any]) -> Any:
        """Over the chunks."""
        chunks = (rows.astype(jnp.float32), weights, masks)
        total, _ = jax.lax.scan(
            lambda total, chunk: (jax.tree.map(jnp.add, total, function(*chunk)), None),
            jax.tree.map(jnp.zeros_like, function(*(part[0] for part in chunks))),
            chunks,
        )
        return total

    def products(of: Float[Array, "size n"], share: Float[Array, " size"]) -> tuple[Array, Array]:
        # Units in rows, which are gathered faster than columns.
        by_unit = of.T
        return (by_unit * share[None]) @ by_unit.T, (by_unit[i] * by_unit[j] * by_unit[k]) @ share

    sums, counts = summed(lambda x, share, mask: (share @ x, share @ mask))
    means = sums / counts
    sums = summed(lambda x, share, mask: products((x - means[None]) * mask, share))
    counts = (counts[0], counts[0]) if known is None else summed(lambda x, share, mask: products(mask, share))
    return means, *jax.tree.map(jnp.divide, sums, counts)


@jax.jit
def _free_energies(machine: BoltzmannMachine, visible: Shaped[Array, "batch n_0"]) -> Float[Array, " batch"]:
    size = rows_at_once(entries((machine,)))
    return jax.lax.map(functools.partial(free_energy, machine), visible, batch_size=size)


@jax.jit
def _second_differences(machine: BoltzmannMachine, background: Shaped[Array, "batch n_0"]) -> Float[Array, "n_0 n_0"]:
    """Of the summed log-normalisers of the hidden units, over the squared step of the visible ones."""
    unit, hidden = two_valued(machine.layer_units[0], "a coupling"), machine.layer_units[1]
    steps = unit.step * couplings.dense(machine.weights[0])
    normaliser = hidden.log_normaliser

    def add(total, visible):
        z = upward_field(machine, 1, visible)
        lowered = unit.share(visible).astype(steps.dtype)[:, None] * steps

        def row(i):
            base = z[None] - lowered[i][None] - lowered
            up, both = base + steps[i][None], base + steps[i][None] + steps
            return jnp.sum(normaliser(both) - normaliser(up) - (normaliser(base + steps) - normaliser(base)), axis=1)

        return total + jax.lax.map(row, jnp.arange(len(steps))), None

    zeros = jnp.zeros((len(steps), len(steps)), steps.dtype)
    return jax.lax.scan(add, zeros, background)[0] / (len(background) * unit.step**2)


@jax.jit
def _nearest(
    rows: UInt8[Array, "row_chunks row_size n"], examples: UInt8[Array, "chunks size n"], count: int | Array
) -> tuple[Int[Array, "row_chunks row_size"], Int[Array, "row_chunks row_size"]]:
    """Of each row the smallest distance among the first `count` examples, and the first of them at it."""
    size, num_units = examples.shape[1:]
    numbers = jnp.arange(examples.shape[0] * size, dtype=jnp.int32).reshape(-1, size)

    def nearest(some: UInt8[Array, "row_size n"]) -> tuple[Array, Array]:
        x = some.astype(jnp.float32)

        def nearer(best: tuple[Array, Array], chunk: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            y, number = chunk[0].astype(jnp.float32), chunk[1]
            # Whole numbers, which single precision holds exactly.
            found = jnp.sum(x, axis=1)[:, None] + jnp.sum(y, axis=1)[None] - 2 * x @ y.T
            # What fills up the last chunk is farther away than any example.
            found = jnp.where(number[None] < count, found, num_units + 1).astype(jnp.int32)
            distance = jnp.min(found, axis=1)
            closer = distance < best[0]
            at = number[jnp.argmin(found, axis=1)]
            return (jnp.where(closer, distance, best[0]), jnp.where(closer, at, best[1])), None

        start = jnp.full(len(x), num_units + 1, jnp.int32), jnp.zeros(len(x), jnp.int32)
        return jax.lax.scan(nearer, start, (examples, numbers))[0]

    return jax.lax.map(nearest, rows)
