"""Random Ising spin glasses on a square lattice: drawn, sampled by parallel tempering, and fitted to samples.

In spins s = 2 x - 1 of -1 and +1 a glass has

    E(s) = - sum_{i<j} J_ij s_i s_j - sum_j h_j s_j

On the lattice bonds join black and white sites only, as on a checkerboard, so that it is sampled as a machine of two
layers. Fitted is a machine of one layer with weights between all pairs of units: no rule is told the lattice. The two
parametrisations have the same energies up to a constant,

    w_ij = 4 J_ij        b_j = 2 h_j - 2 sum_i J_ij

Fits descend in J and h, where the statistics of different parameters depend on each other far less than in w and b. All
minimise their objective plus penalty / (2 N) times the squared parameters, N the number of samples: where N is so small
that there is no finite minimum, this gives one. Not here: other lattices, a choice of the penalty.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Num, PRNGKeyArray, UInt8

from vpf_jax import checks, couplings
from vpf_jax.machine import BoltzmannMachine, State
from vpf_jax.rules.chains import chain_estimate
from vpf_jax.rules.flips import flip_estimate
from vpf_jax.sample import tempering
from vpf_jax.sample.streams import stream_of, substream


class Glass(NamedTuple):
    """Parameters in spin units; one free number each, so that inner products of two glasses count each pair once."""

    fields: Float[Array, "*seeds n"]
    """h_j"""
    couplings: Float[Array, "*seeds n n"]
    """J_ij at i < j, and 0 elsewhere."""


class Fit(NamedTuple):
    """A glass as a rule sees it."""

    glass: Glass
    steps: Num[Array, "*seeds"]
    """Of the optimizer."""
    largest_gradient: Float[Array, "*seeds"]
    """Largest derivative of the objective at the end; nan for PCD, which does not know it."""


def bonds(size: int) -> Bool[np.ndarray, "n n"]:
    """Which pairs i < j of sites are neighbours on the square lattice with open borders; site = row size + column."""
    row, column = np.divmod(np.arange(size**2), size)
    distance = np.abs(row[:, None] - row[None]) + np.abs(column[:, None] - column[None])
    return np.triu(distance == 1)


def draw_glass(key: PRNGKeyArray, size: int, coupling_std: float | Float[Array, ""]) -> Glass:
    """A glass without fields whose bonds are normal with mean 0."""
    there = bonds(size)
    strengths = coupling_std * jax.random.normal(key, there.shape)
    return Glass(jnp.zeros(size**2), jnp.where(there, strengths, 0))


def to_machine(glass: Glass) -> BoltzmannMachine:
    """The machine of one layer on x = (1 + s) / 2 whose energies are those of the glass up to a constant."""
    weights = 4 * (glass.couplings + glass.couplings.T)
    return BoltzmannMachine(biases=(2 * glass.fields - jnp.sum(weights, axis=0) / 2,), weights=(), intra=(weights,))


def spin_gradient(gradient: BoltzmannMachine) -> Glass:
    """A gradient by the parameters of `to_machine(glass)` as the gradient by the glass: the chain rule."""
    (by_bias,), (by_weight,) = gradient.biases, gradient.intra
    assert by_weight is not None
    by_coupling = 4 * by_weight - 2 * (by_bias[:, None] + by_bias[None])
    return Glass(2 * by_bias, jnp.triu(by_coupling, 1))


def sample_glass(
    key: PRNGKeyArray,
    glass: Glass,
    size: int,
    *,
    num_draws: int,
    num_chains: int,
    burn_in: int,
    thin: int,
    num_temperatures: int,
) -> tuple[UInt8[Array, "num_draws num_chains n"], Float[Array, " num_pairs"]]:
    """Draws from a glass on the lattice by parallel tempering, and the mean acceptance of each neighbouring swap.

    Chains with even numbers start from all units 1, the others from random bits, at every temperature.
    """
    sites = np.arange(size**2)
    black = (sites // size + sites % size) % 2 == 0
    colours = sites[black], sites[~black]
    (biases,), (weights,) = (flat := to_machine(glass)).biases, flat.intra
    assert weights is not None
    machine = BoltzmannMachine(
        biases=tuple(biases[colour] for colour in colours), weights=(weights[np.ix_(*colours)],), intra=(None, None)
    )
    betas = jnp.linspace(0, 1, num_temperatures)
    start_key, burn_key, draw_key = jax.random.split(key, 3)
    random = jax.random.bernoulli(start_key, shape=(num_chains, num_temperatures, size**2))
    ones = (jnp.arange(num_chains) % 2 == 0)[:, None, None]
    start = (random | ones).astype(jnp.float32)

    def advance(key: PRNGKeyArray, states: State, num_sweeps: int) -> tempering.Tempered:
        chain = jax.vmap(lambda key, state: tempering.run_tempered(key, machine, state, betas, num_sweeps))
        return chain(jax.random.split(key, num_chains), states)

    def draw(states: State, key: PRNGKeyArray):
        states, acceptance = advance(key, states, thin)
        coldest = tuple(x[:, -1].astype(jnp.uint8) for x in states)
        return states, (coldest, jnp.mean(acceptance, axis=0))

    states = advance(burn_key, tuple(start[..., colour] for colour in colours), burn_in).states
    drawn, acceptance = jax.lax.scan(draw, states, jax.random.split(draw_key, num_draws))[1]
    order = np.argsort(np.concatenate(colours))
    return jnp.concatenate(drawn, axis=-1)[..., order], jnp.mean(acceptance, axis=0)


def disagreement(draws: UInt8[np.ndarray, "num_draws num_chains n"]) -> float:
    """How far correlations between units differ between the chains that started differently.

    The mean over pairs of the squared difference over its variance for independent draws: 1 where all draws come from
    the same distribution and do not depend on one another, more where the chains remember.
    """
    halves = [2 * half.reshape(-1, half.shape[-1]).astype(np.float32) - 1 for half in (draws[:, ::2], draws[:, 1::2])]
    first, second = (half.T @ half / len(half) for half in halves)
    variance = (1 - ((first + second) / 2) ** 2) * (1 / len(halves[0]) + 1 / len(halves[1]))
    pairs = np.triu_indices(len(first), 1)
    # A pair that is always equal, or never, has no variance and no difference.
    return float(np.mean((first - second)[pairs] ** 2 / np.maximum(variance[pairs], 1e-12)))


def fit_flips(
    rule: str,
    samples: UInt8[Array, "num_samples n"],
    *,
    penalty: float | Float[Array, ""],
    tolerance: float,
    max_steps: int,
) -> Fit:
    """The minimum of the flow ('mpf') or of the negative pseudo-log-likelihood ('pl') by L-BFGS.

    It stops where no derivative is larger than `tolerance`, or after `max_steps`.
    """
    decay = penalty / len(samples)
    optimizer = optax.lbfgs()

    def objective(glass: Glass) -> Float[Array, ""]:
        held = jax.lax.stop_gradient(glass)
        value, gradient, _ = flip_estimate(rule, to_machine(held), samples)
        # The last term is 0, and its derivative is the closed gradient: nothing is differentiated twice.
        step = jax.tree.map(jnp.subtract, glass, held)
        return value + decay / 2 * optax.tree.vdot(glass, glass) + optax.tree.vdot(spin_gradient(gradient), step)

    measure = optax.value_and_grad_from_state(objective)

    def descend(carry):
        glass, state, _, steps = carry
        value, gradient = measure(glass, state=state)
        update, state = optimizer.update(gradient, state, glass, value=value, grad=gradient, value_fn=objective)
        # The line search has measured the gradient at its end.
        largest = optax.tree.norm(optax.tree.get(state, "grad"), ord="inf")
        return optax.apply_updates(glass, update), state, largest, steps + 1

    start = _no_glass(samples.shape[1])
    carry = start, optimizer.init(start), jnp.float32(jnp.inf), jnp.int32(0)
    glass, _, largest, steps = jax.lax.while_loop(
        lambda carry: (carry[2] > tolerance) & (carry[3] < max_steps), descend, carry
    )
    return Fit(glass, steps, largest)


def fit_pcd(
    key: PRNGKeyArray,
    samples: UInt8[Array, "num_samples n"],
    *,
    penalty: float | Float[Array, ""],
    num_chains: int,
    num_steps: int,
    rate: float,
) -> Fit:
    """Maximum likelihood by PCD-1, full batch, the rate falling to 0; the chains start from the samples.

    Step t of T has the rate (1 - t / T)^2 times the first: larger steps first, smaller noise last.
    """
    decay = penalty / len(samples)
    x = samples.astype(jnp.float32)
    wanted = BoltzmannMachine(
        biases=(jnp.mean(x, axis=0),), weights=(), intra=(couplings.hollow(jnp.matmul(x.T, x)) / len(x),)
    )
    # All statistics of this state are 0, so that an estimate against it holds those of the chains. The data's never
    # change in a machine without hidden units: PCD need not pay for them at every step.
    origin = (jnp.zeros((1, x.shape[1])),)

    stream = stream_of(key)

    def step(carry: tuple[Glass, State], number: Array):
        glass, chains = carry
        # PCD, from a stream: JAX's check takes keys in a scan that is mapped over seeds for used ones.
        found = chain_estimate(substream(stream, number), to_machine(glass), origin, chains, 1)
        gradient = spin_gradient(jax.tree.map(jnp.subtract, found.gradient, wanted))
        eta = rate * (1 - number / num_steps) ** 2
        glass = jax.tree.map(lambda p, g: p - eta * (g + decay * p), glass, gradient)
        return (glass, found.carry), None

    start = _no_glass(x.shape[1]), (x[jnp.arange(num_chains) % len(x)],)
    glass, _ = jax.lax.scan(step, start, jnp.arange(num_steps))[0]
    return Fit(glass, jnp.int32(num_steps), jnp.float32(jnp.nan))


def coupling_errors(found: Glass, truth: Glass) -> dict[str, Float[np.ndarray, " num_seeds"]]:
    """Root mean square errors of J over all pairs, over the bonds, and over the pairs that are none."""
    squared = (np.asarray(found.couplings, np.float64) - np.asarray(truth.couplings, np.float64)) ** 2
    num_units = squared.shape[-1]
    pairs = np.triu(np.ones((num_units, num_units), bool), 1)
    there = bonds(round(num_units**0.5))
    return {
        "error": np.sqrt(squared[:, pairs].mean(axis=1)),
        "error_bonds": np.sqrt(squared[:, there].mean(axis=1)),
        "error_others": np.sqrt(squared[:, pairs & ~there].mean(axis=1)),
    }


def held_out_score(
    found: Glass, images: UInt8[np.ndarray, "num_images n"]
) -> dict[str, Float[np.ndarray, " num_seeds"]]:
    """Pseudo-log-likelihood in nats per test image."""
    score = jax.jit(lambda glass: -flip_estimate("pl", to_machine(glass), jnp.asarray(images)).objective)
    seeds = (Glass(*(jnp.asarray(leaf) for leaf in leaves)) for leaves in zip(*found, strict=True))
    return {"held_out": np.array([score(glass) for glass in seeds], np.float64)}


def coupling_agreement(first: Glass, second: Glass) -> dict[str, Float[np.ndarray, " num_seeds"]]:
    """Correlation of the J of two rules over all pairs, and the root mean square of their difference."""
    pairs = np.triu_indices(first.couplings.shape[-1], 1)
    found = [np.asarray(glass.couplings, np.float64)[:, *pairs] for glass in (first, second)]
    return {
        "correlation": np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(*found, strict=True)]),
        "difference": np.sqrt(np.mean((found[0] - found[1]) ** 2, axis=1)),
    }


def shrink_images(
    images: Float[np.ndarray, "num_images pixels"], image_shape: tuple[int, int], size: int
) -> UInt8[np.ndarray, "num_images n"]:
    """The middle of each image as size x size blocks, as large as fit; 1 where the mean of a block is above 1/2.

    Raises:
      ValueError: a size below 1, or above the smaller side of an image.
    """
    least = min(image_shape)
    checks.require(1 <= size <= least, "size", size, f"1 to {least}, as images are {image_shape[0]} x {image_shape[1]}")
    block = min(image_shape) // size
    square = np.asarray(images).reshape(-1, *image_shape)
    for axis, length in zip((1, 2), image_shape, strict=True):
        first = (length - block * size) // 2
        square = np.moveaxis(np.moveaxis(square, axis, 0)[first : first + block * size], 0, axis)
    means = square.reshape(-1, size, block, size, block).mean(axis=(2, 4))
    return (means > 0.5).astype(np.uint8).reshape(len(images), -1)


def _no_glass(num_units: int) -> Glass:
    return Glass(jnp.zeros(num_units), jnp.zeros((num_units, num_units)))
