"""Exact answers for small Boltzmann machines, by enumeration in NumPy float64.

This module imports nothing of the library it judges. A layered machine becomes one flat Boltzmann
machine over all its units, visible first, and every quantity is read off the energy

    E(x) = - sum_{i<j} w_ij x_i x_j - sum_j b_j x_j

evaluated on whole states: local fields and flip rates are energy differences, gradients are
differences of sufficient statistics, Gibbs kernels are ratios of Boltzmann factors. No closed form
of the library (alpha, delta, the local rule, softplus free energies) appears here, so an error
there cannot be repeated here. Cost grows as 2^n: meant for n <= 10.

States are rows of 0.0 and 1.0; state number s holds bit j of s in unit j.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class FlatMachine(NamedTuple):
    """One Boltzmann machine over n units; also used for gradients with respect to its parameters."""

    coupling: np.ndarray  # [n, n], symmetric with zero diagonal in a machine
    bias: np.ndarray  # [n]
    connected: np.ndarray  # [n, n] bool: the pairs that have a weight
    sizes: tuple[int, ...]  # units per layer, visible layer first


class Fit(NamedTuple):
    """How far a histogram lies from a distribution, both numbers in standard deviations."""

    worst_state: float  # largest |count - expected| over the states
    chi_square: float  # (chi-square - degrees of freedom) / sqrt(2 degrees of freedom)


def flatten(biases: Sequence, weights: Sequence, intra: Sequence) -> FlatMachine:
    """The flat form of a layered machine; intra-layer blocks are copied as they are, asymmetric or not."""
    sizes = tuple(len(layer) for layer in biases)
    ends = np.cumsum(sizes)
    layers = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    coupling = np.zeros((ends[-1], ends[-1]))
    connected = np.zeros_like(coupling, dtype=bool)
    for lower, upper, block in zip(layers[:-1], layers[1:], weights, strict=True):
        coupling[lower, upper] = np.asarray(block, dtype=np.float64)
        coupling[upper, lower] = np.asarray(block, dtype=np.float64).T
        connected[lower, upper] = connected[upper, lower] = True
    for layer, size, block in zip(layers, sizes, intra, strict=True):
        if block is not None:
            coupling[layer, layer] = np.asarray(block, dtype=np.float64)
            connected[layer, layer] = ~np.eye(size, dtype=bool)
    bias = np.concatenate([np.asarray(layer, dtype=np.float64) for layer in biases])
    return FlatMachine(coupling, bias, connected, sizes)


def all_states(num_units: int) -> np.ndarray:
    """All 2^n states, [2^n, n]."""
    return (np.arange(2**num_units)[:, None] >> np.arange(num_units) & 1).astype(np.float64)


def state_numbers(states: np.ndarray) -> np.ndarray:
    """The row of `all_states` that each state is."""
    return np.asarray(states, dtype=np.int64) @ (1 << np.arange(np.shape(states)[-1]))


def flipped(states: np.ndarray, unit: int) -> np.ndarray:
    """The states with one unit flipped."""
    neighbours = np.array(states, dtype=np.float64)
    neighbours[:, unit] = 1 - neighbours[:, unit]
    return neighbours


def energies(machine: FlatMachine, states: np.ndarray) -> np.ndarray:
    """E(x) of every row."""
    pairs = np.triu(machine.coupling, 1)
    return -np.sum(states @ pairs * states, axis=1) - states @ machine.bias


def log_sum_exp(exponents: np.ndarray) -> float:
    """Log sum_s exp(e_s), safe for large exponents."""
    largest = np.max(exponents)
    return float(largest + np.log(np.sum(np.exp(exponents - largest))))


def log_partition(machine: FlatMachine) -> float:
    """Log Z."""
    return log_sum_exp(-energies(machine, all_states(len(machine.bias))))


def probabilities(machine: FlatMachine) -> np.ndarray:
    """p(x) of every state, [2^n]."""
    return np.exp(-energies(machine, all_states(len(machine.bias))) - log_partition(machine))


def completions(machine: FlatMachine, visible: np.ndarray) -> np.ndarray:
    """All states whose visible layer is the given vector, [2^(n - n_0), n]."""
    hidden = all_states(len(machine.bias) - len(visible))
    return np.concatenate([np.tile(visible, (len(hidden), 1)), hidden], axis=1)


def free_energy(machine: FlatMachine, visible: np.ndarray) -> float:
    """F(v) = -log sum_h exp(-E(v, h))."""
    return -log_sum_exp(-energies(machine, completions(machine, visible)))


def complete(machine: FlatMachine, data: np.ndarray) -> np.ndarray:
    """q(v, h) = data(v) p(h | v), [2^n]: a distribution over visible states completed by the exact E-step."""
    visible = all_states(machine.sizes[0])
    joint = np.zeros(2 ** len(machine.bias))
    for vector, mass in zip(visible, data, strict=True):
        states = completions(machine, vector)
        log_posterior = -energies(machine, states) + free_energy(machine, vector)
        joint[state_numbers(states)] = mass * np.exp(log_posterior)
    return joint


def local_fields(machine: FlatMachine, states: np.ndarray) -> np.ndarray:
    """z_j = E(x with x_j = 0) - E(x with x_j = 1), [S, n]."""
    fields = []
    for unit in range(len(machine.bias)):
        on, off = np.array(states, dtype=np.float64), np.array(states, dtype=np.float64)
        on[:, unit], off[:, unit] = 1, 0
        fields.append(energies(machine, off) - energies(machine, on))
    return np.stack(fields, axis=1)


def flip_rates(machine: FlatMachine, states: np.ndarray) -> np.ndarray:
    """delta_j(x) = exp((E(x) - E(x^(j))) / 2), [S, n]."""
    here = energies(machine, states)
    there = [energies(machine, flipped(states, unit)) for unit in range(len(machine.bias))]
    return np.exp((here[:, None] - np.stack(there, axis=1)) / 2)


def rate_matrix(machine: FlatMachine) -> np.ndarray:
    """Generator of the flip chain, [2^n, 2^n]: rows sum to zero."""
    num_units = len(machine.bias)
    states = all_states(num_units)
    rates = flip_rates(machine, states)
    generator = np.diag(-rates.sum(axis=1))
    for unit in range(num_units):
        generator[np.arange(len(states)), state_numbers(flipped(states, unit))] = rates[:, unit]
    return generator


def law_after(machine: FlatMachine, start: int, time: float, held: Sequence[int] = ()) -> np.ndarray:
    """Distribution of the flip chain at a time after it left a state, [2^n]; held units do not flip.

    The generator G is reversible, so that diag(sqrt p) G diag(1 / sqrt p) is symmetric, and its exponential is a sum
    over eigenvectors.
    """
    states = all_states(len(machine.bias))
    generator = rate_matrix(machine)
    for unit in held:
        generator[np.arange(len(states)), state_numbers(flipped(states, unit))] = 0
    np.fill_diagonal(generator, 0)
    np.fill_diagonal(generator, -generator.sum(axis=1))
    root = np.sqrt(probabilities(machine))
    similar = root[:, None] * generator / root
    np.testing.assert_allclose(similar, similar.T, atol=1e-8 * np.abs(similar).max())
    values, vectors = np.linalg.eigh(similar)
    law = vectors[start] * np.exp(values * time) @ vectors.T * root / root[start]
    return np.where(law > 1e-13, law, 0)


def directed_rates(coupling: np.ndarray, bias: np.ndarray, states: np.ndarray) -> np.ndarray:
    """exp((1/2 - x_j) (sum_i x_i c_ij + b_j)) of every row, [S, n]: c_ij is the synapse from i to j."""
    return np.exp((0.5 - states) * (states @ coupling + bias))


def objective(machine: FlatMachine, states: np.ndarray, masses: np.ndarray) -> float:
    """The flow out of a distribution that puts the given masses on the given states, over all one-bit neighbours."""
    return float(masses @ flip_rates(machine, states).sum(axis=1))


def finite_difference_gradient(
    machine: FlatMachine, states: np.ndarray, masses: np.ndarray, step: float = 2e-5
) -> FlatMachine:
    """Central differences of `objective`, one parameter per bias and per connected unordered pair."""
    return finite_differences(lambda moved: objective(moved, states, masses), machine, step)


def finite_differences(
    function: Callable[[FlatMachine], float], machine: FlatMachine, step: float = 2e-5
) -> FlatMachine:
    """Central differences of a function of a machine, one parameter per bias and per connected unordered pair.

    With fields below 10 the truncation error (alpha^3 step^2 / 6) and the rounding error (1e-16 /
    step) are both about 1e-11 of the objective.
    """

    def slope(coupling_step: np.ndarray, bias_step: np.ndarray) -> float:
        ahead, behind = (
            function(
                machine._replace(
                    coupling=machine.coupling + sign * coupling_step,
                    bias=machine.bias + sign * bias_step,
                )
            )
            for sign in (1, -1)
        )
        return (ahead - behind) / (2 * step)

    no_coupling, no_bias = np.zeros_like(machine.coupling), np.zeros_like(machine.bias)
    coupling, bias = no_coupling.copy(), no_bias.copy()
    for unit in range(len(bias)):
        bias_step = no_bias.copy()
        bias_step[unit] = step
        bias[unit] = slope(no_coupling, bias_step)
    for first, second in np.argwhere(np.triu(machine.connected)):
        coupling_step = no_coupling.copy()
        coupling_step[first, second] = coupling_step[second, first] = step
        coupling[first, second] = coupling[second, first] = slope(coupling_step, no_bias)
    return machine._replace(coupling=coupling, bias=bias)


def gradient_by_flip(machine: FlatMachine, states: np.ndarray, masses: np.ndarray) -> list[FlatMachine]:
    """The gradient of the expected flip rate of each unit in turn; they add up to the gradient of
    `objective`.

    d delta_j(x) / d theta = delta_j(x) (T(x^(j)) - T(x)) / 2, with T the sufficient statistics (x_i
    x_k and x_k).
    """
    rates = flip_rates(machine, states)
    gradients = []
    for unit in range(len(machine.bias)):
        there = flipped(states, unit)
        mass = masses * rates[:, unit] / 2
        pairs = np.einsum("s,si,sk->ik", mass, there, there) - np.einsum("s,si,sk->ik", mass, states, states)
        gradients.append(machine._replace(coupling=pairs * machine.connected, bias=mass @ (there - states)))
    return gradients


def add(gradients: Sequence[FlatMachine]) -> FlatMachine:
    """The sum of gradients of one machine."""
    return gradients[0]._replace(
        coupling=sum(gradient.coupling for gradient in gradients),
        bias=sum(gradient.bias for gradient in gradients),
    )


def expected_gradient(machine: FlatMachine, states: np.ndarray, masses: np.ndarray) -> FlatMachine:
    """The exact gradient of `objective`."""
    return add(gradient_by_flip(machine, states, masses))


def sweep_order(sizes: Sequence[int], clamped: Sequence[int] = ()) -> list[int]:
    """The units of a sweep: odd layers, then even layers, the units of a layer in index order.

    Inside a layer without intra-layer weights the units do not see each other, so that there the
    order says nothing.
    """
    starts = np.cumsum((0, *sizes))
    layers = [*range(1, len(sizes), 2), *range(0, len(sizes), 2)]
    return [unit for layer in layers if layer not in clamped for unit in range(starts[layer], starts[layer + 1])]


def resample(machine: FlatMachine, distribution: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """The distribution(s) [..., 2^n] after single-unit Gibbs steps on the given units, one after another."""
    energy = energies(machine, all_states(len(machine.bias)))
    for unit in order:
        partner = np.arange(len(energy)) ^ (1 << unit)
        conditional = 1 / (1 + np.exp(energy - energy[partner]))
        distribution = conditional * (distribution + distribution[..., partner])
    return distribution


def transition_matrix(machine: FlatMachine, clamped: Sequence[int] = ()) -> np.ndarray:
    """Row x, column y: the probability that one sweep leads from x to y."""
    return resample(machine, np.eye(2 ** len(machine.bias)), sweep_order(machine.sizes, clamped))


def fit(counts: np.ndarray, distribution: np.ndarray, smallest_expected: float = 100) -> Fit:
    """Compare a histogram with a distribution, each count against its standard deviation sqrt(N p (1 - p)).

    States with smaller expected counts are pooled. At an expected count of 20 the skewness (0.22) takes about one in
    twelve histograms of exact draws over 400 states beyond four standard deviations; at 100, one in a hundred. A visit
    to an impossible state is infinitely bad.
    """
    if counts[distribution == 0].any():
        return Fit(np.inf, np.inf)
    total = counts.sum()
    by_rarity = np.argsort(distribution)
    expected, found = total * distribution[by_rarity], counts[by_rarity]
    num_rare = int(np.searchsorted(expected, smallest_expected))
    if num_rare:
        enough = int(np.searchsorted(np.cumsum(expected), smallest_expected)) + 1
        num_rare = min(max(num_rare, enough), len(expected))
        expected = np.concatenate([[expected[:num_rare].sum()], expected[num_rare:]])
        found = np.concatenate([[found[:num_rare].sum()], found[num_rare:]])
    if len(expected) == 1:
        return Fit(0.0, 0.0)
    deviation = np.abs(found - expected) / np.sqrt(expected * (1 - expected / total))
    freedom = len(expected) - 1
    chi_square = np.sum((found - expected) ** 2 / expected)
    return Fit(float(deviation.max()), float((chi_square - freedom) / np.sqrt(2 * freedom)))


def asynchronous_sweep(coupling, fields, states, uniforms):
    """One layer swept unit by unit in index order, each unit seeing the newest values of the others.

    Returns the new states of the batch, and how close the closest decision was: the smallest distance of a field to
    the logit of its uniform number.
    """
    coupling, fields, uniforms = (np.asarray(a, np.float64) for a in (coupling, fields, uniforms))
    states = np.array(states, np.float64)
    with np.errstate(divide="ignore"):
        thresholds = np.log(uniforms) - np.log1p(-uniforms)
    closest = np.inf
    for j in range(states.shape[1]):
        margin = fields[:, j] + states @ coupling[:, j] - thresholds[:, j]
        states[:, j] = margin > 0
        closest = min(closest, np.abs(margin).min())
    return states, closest


def marginal_energy(machine: FlatMachine, state: np.ndarray, summed: Sequence[int]) -> float:
    """-log sum exp(-E) over all values of the units of the summed layers, the others as in the state."""
    layer_of = np.repeat(np.arange(len(machine.sizes)), machine.sizes)
    kept = ~np.isin(layer_of, summed)
    states = all_states(len(machine.bias))
    return -log_sum_exp(-energies(machine, states[(states[:, kept] == state[kept]).all(axis=1)]))


def log_likelihoods(machine: FlatMachine) -> np.ndarray:
    """Log p(v) of every visible vector, [2^n_0]."""
    free = np.array([free_energy(machine, vector) for vector in all_states(machine.sizes[0])])
    return -free - log_partition(machine)


def mean_field_free_energy(machine: FlatMachine, means: np.ndarray, order: int = 2) -> float:
    """The Gibbs free energy of means of bits, expanded in the couplings to first or second order (Plefka 1982)."""
    entropy = -np.sum(means * np.log(means) + (1 - means) * np.log(1 - means))
    variances = means * (1 - means)
    second = -np.sum(np.triu(machine.coupling, 1) ** 2 * np.outer(variances, variances)) / 2
    return float(energies(machine, means[None])[0] - entropy + (second if order == 2 else 0))


def mean_field_means(machine: FlatMachine, order: int = 2, rounds: int = 200) -> np.ndarray:
    """Where that free energy is stationary, by damped iteration from 1/2, all units at once."""
    means = np.full(len(machine.bias), 0.5)
    for _ in range(rounds):
        fields = machine.bias + machine.coupling @ means
        if order == 2:
            fields += (0.5 - means) * (machine.coupling**2 @ (means * (1 - means)))
        means = (means + 1 / (1 + np.exp(-fields))) / 2
    return means


def mix(base: FlatMachine, machine: FlatMachine, beta: float) -> FlatMachine:
    """The machine with the energies (1 - beta) E_base(x) + beta E(x)."""
    return machine._replace(
        coupling=(1 - beta) * base.coupling + beta * machine.coupling,
        bias=(1 - beta) * base.bias + beta * machine.bias,
    )


def belief_network_log_likelihoods(machines: Sequence[FlatMachine]) -> np.ndarray:
    """Log p(v) of every visible vector of a stack read as a deep belief network, bottom machine first.

    The marginal of the top machine over its visible layer is handed down through the conditional distributions of
    the lower layer of each two-layer machine below it, by enumeration.
    """
    log_marginal = log_likelihoods(machines[-1])
    for machine in reversed(machines[:-1]):
        lower, upper = (all_states(size) for size in machine.sizes)
        joint = np.array([-energies(machine, np.hstack([np.tile(x, (len(upper), 1)), upper])) for x in lower])
        conditional = joint - [log_sum_exp(column) for column in joint.T]
        log_marginal = np.array([log_sum_exp(row) for row in conditional + log_marginal])
    return log_marginal


def flip_log_ratios(machine: FlatMachine, visible: np.ndarray) -> np.ndarray:
    """Log p(v with bit i flipped) / p(v) of the marginal of the visible layer, [rows, n_0]."""
    ratios = [
        [free_energy(machine, row) - free_energy(machine, flipped(row[None], unit)[0]) for unit in range(len(row))]
        for row in visible
    ]
    return np.array(ratios)


def energy_discrepancy(machine: FlatMachine, visible: np.ndarray, particles: np.ndarray, stabiliser: float) -> float:
    """Mean over rows of log(w / M + (1 / M) sum_m exp(F(v) - F(v_m))), particles [rows, M, n_0]."""
    losses = []
    for row, copies in zip(visible, particles, strict=True):
        gains = [free_energy(machine, row) - free_energy(machine, copy) for copy in copies]
        losses.append(np.log((stabiliser + np.sum(np.exp(gains))) / len(copies)))
    return float(np.mean(losses))


def factorial(machine: FlatMachine, visible: np.ndarray, hidden_probabilities: np.ndarray) -> np.ndarray:
    """The distribution [2^n] that puts equal mass on each row of `visible`, hidden bits independent given it."""
    joint = np.zeros(2 ** len(machine.bias))
    for row, probabilities in zip(visible, hidden_probabilities, strict=True):
        states = completions(machine, row)
        hidden = states[:, len(row) :]
        masses = np.prod(np.where(hidden == 1, probabilities, 1 - probabilities), axis=1)
        joint[state_numbers(states)] += masses / len(visible)
    return joint


def statistics(machine: FlatMachine, distribution: np.ndarray) -> FlatMachine:
    """Means of x_i x_j over connected pairs and of x_j: minus the derivative of the mean energy."""
    states = all_states(len(machine.bias))
    pairs = np.einsum("s,si,sj->ij", distribution, states, states)
    return machine._replace(coupling=pairs * machine.connected, bias=distribution @ states)


def contrast(machine: FlatMachine, data: np.ndarray, chains: np.ndarray) -> FlatMachine:
    """The statistics of the chains' distribution minus those of the data's; both [2^n]."""
    found, wanted = statistics(machine, chains), statistics(machine, data)
    return machine._replace(coupling=found.coupling - wanted.coupling, bias=found.bias - wanted.bias)


def tethered_chains(
    machine: FlatMachine, data: np.ndarray, noise: float, num_visible: int, steps: int | None = None
) -> np.ndarray:
    """The distribution [2^n] of chains tethered to noisy copies of the visible units of the data [2^n].

    For each copy y the machine's visible biases gain the log odds of y's values, and its chains start at the data that
    may have given rise to y; after `steps` sweeps, or at equilibrium for None.
    """
    states = all_states(len(machine.bias))
    chains = np.zeros_like(data)
    for copy in all_states(num_visible):
        differs = np.abs(states[:, :num_visible] - copy).sum(axis=1)
        joint = data * noise**differs * (1 - noise) ** (num_visible - differs)
        bias = machine.bias.copy()
        bias[:num_visible] += np.log((1 - noise) / noise) * (2 * copy - 1)
        tethered = machine._replace(bias=bias)
        if steps is None:
            joint = joint.sum() * probabilities(tethered)
        for _ in range(steps or 0):
            joint = resample(tethered, joint, sweep_order(machine.sizes))
        chains += joint
    return chains


def recovery_loss(machine: FlatMachine, data: np.ndarray, noise: float) -> float:
    """Mean of -log p(v | y) over visible states v of the masses `data` and their noisy copies y, p(v | y) proportional
    to exp(-F(v)) p(y | v).
    """
    visible = all_states(int(np.log2(len(data))))
    energy = np.array([free_energy(machine, v) for v in visible])
    differs = np.abs(visible[:, None] - visible[None]).sum(axis=2)
    log_copy = differs * np.log(noise) + (visible.shape[1] - differs) * np.log1p(-noise)
    joint = log_copy - energy[:, None]
    posterior = joint - np.log(np.exp(joint - joint.max()).sum(axis=0))[None] - joint.max()
    return float(-np.sum(data[:, None] * np.exp(log_copy) * posterior))


def target_propagation_inference(
    maps: Sequence[Callable[[np.ndarray], np.ndarray]], x: np.ndarray, num_steps: int, delta: float, a: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(h1, h2) before and after each step of iterative inference, for maps f1, f2, g1, g2 of vectors."""
    f1, f2, g1, g2 = maps
    h1 = f1(x)
    h2 = f2(h1)
    states = [(h1, h2)]
    for _ in range(num_steps):
        h2 = h2 + delta * (f2(h1) - f2(g2(h2)))
        h1 = h1 + (delta * (f1(x) - f1(g1(h1))) + a * (g2(h2) - h1))
        states.append((h1, h2))
    return states


def stdp_change(presynaptic: np.ndarray, postsynaptic: np.ndarray) -> np.ndarray:
    """Sum over time of S_i(t) (V_j(t + 1) - V_j(t)) for rates S [n_in] held and potentials V [time, n_out]."""
    change = np.zeros((len(presynaptic), postsynaptic.shape[1]))
    for before, after in itertools.pairwise(postsynaptic):
        for i, rate in enumerate(presynaptic):
            change[i] += rate * (after - before)
    return change


def squared_error_gradient(
    activation: str, weights: np.ndarray, biases: np.ndarray, inputs: np.ndarray, targets: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Of mean_b sum_j (activation(inputs W + biases)_bj - targets_bj)^2: value and gradients, entry by entry."""
    loss, by_weight, by_bias = 0.0, np.zeros_like(weights), np.zeros_like(biases)
    for row, wanted in zip(inputs, targets, strict=True):
        for j in range(len(biases)):
            field = biases[j] + sum(row[i] * weights[i, j] for i in range(len(row)))
            firing = 1 / (1 + np.exp(-field))
            value, slope = {
                "sigmoid": (firing, firing * (1 - firing)),
                "softplus": (np.log1p(np.exp(field)), firing),
            }[activation]
            loss += (value - wanted[j]) ** 2 / len(inputs)
            by_bias[j] += 2 * (value - wanted[j]) * slope / len(inputs)
            by_weight[:, j] += 2 * (value - wanted[j]) * slope * row / len(inputs)
    return loss, by_weight, by_bias


def centred_rmsprop(
    gradients: Sequence[np.ndarray], learning_rate: float, decay: float, momentum: float, stabiliser: float
) -> list[np.ndarray]:
    """Change of a parameter at each of a sequence of gradients."""
    mean = square = step = np.zeros_like(gradients[0])
    changes = []
    for gradient in gradients:
        mean = decay * mean + (1 - decay) * gradient
        square = decay * square + (1 - decay) * gradient**2
        step = momentum * step - learning_rate * gradient / np.sqrt(square - mean**2 + stabiliser)
        changes.append(step)
    return changes


def bernoulli_log_probability(means: np.ndarray, bits: np.ndarray) -> float:
    """Of one vector of bits."""
    return float(np.sum(np.log(np.where(bits == 1, means, 1 - means))))


def normal_log_density(values: np.ndarray, means: np.ndarray, variances: np.ndarray) -> float:
    """Of independent Gaussians, as the log of the product of their densities."""
    densities = [
        np.exp(-((v - m) ** 2) / (2 * s)) / np.sqrt(2 * np.pi * s)
        for v, m, s in zip(values, means, variances, strict=True)
    ]
    return float(np.log(np.prod(densities)))


class EquilibriumGradient(NamedTuple):
    """The free fixed point of a layered network of rate units, and the gradient of its mean squared cost there."""

    states: list[np.ndarray]  # per layer above the input, [rows, n_l]
    weights: list[np.ndarray]  # d cost / d W, input layer first
    biases: list[np.ndarray]  # d cost / d b, per layer above the input


def equilibrium_gradient(
    weights: Sequence[np.ndarray], biases: Sequence[np.ndarray], inputs: np.ndarray, targets: np.ndarray
) -> EquilibriumGradient:
    """Exact, by linear solves, where every unit is strictly inside (0, 1); it is checked that it is.

    There s = A s + c, with A the symmetric weights between the layers above the input, and c the biases and what the
    first of these layers gets from the input. With cost(s) = ||s_out - target||^2 / 2 averaged over the rows, and
    lam = (I - A)^-1 d cost / ds, the gradient is lam . d(A s + c) / d theta.
    """
    sizes = [len(bias) for bias in biases]
    ends = np.cumsum(sizes)
    blocks = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    between = np.zeros((ends[-1], ends[-1]))
    for lower, upper, block in zip(blocks[:-1], blocks[1:], weights[1:], strict=True):
        between[lower, upper], between[upper, lower] = block, block.T
    constant = np.tile(np.concatenate(biases), (len(inputs), 1))
    constant[:, blocks[0]] += inputs @ weights[0]
    system = np.eye(ends[-1]) - between
    states = np.linalg.solve(system, constant.T).T
    if not ((states > 0) & (states < 1)).all():
        raise ValueError("a unit is not strictly inside (0, 1)")
    slopes = np.zeros_like(states)
    slopes[:, blocks[-1]] = (states[:, blocks[-1]] - targets) / len(inputs)
    multipliers = np.linalg.solve(system, slopes.T).T
    s, lam = ([rows[:, block] for block in blocks] for rows in (states, multipliers))
    gradients = [inputs.T @ lam[0]]
    for lower in range(len(sizes) - 1):
        gradients.append(s[lower].T @ lam[lower + 1] + lam[lower].T @ s[lower + 1])
    return EquilibriumGradient(s, gradients, [rows.sum(axis=0) for rows in lam])


class SynapseDual(NamedTuple):
    """The dual network of an RBM with binary synapses, by enumeration."""

    log_partition: float  # log sum_sigma prod_a cosh(beta (G_a + Xi_a z_a))
    correlations: np.ndarray  # [n, p], <sigma_i h_a>
    means: np.ndarray  # [p], <h_a>


def all_spins(num_units: int) -> np.ndarray:
    """All states of units that are -1 or +1, as rows."""
    return 2 * all_states(num_units) - 1


def synapse_dual(means: np.ndarray, z: np.ndarray, beta: float) -> SynapseDual:
    """Sums over all joint states of visible and hidden units; means [n, p], z [p]."""
    n, p = means.shape
    states = all_spins(n + p)
    sigma, h = states[:, :n], states[:, n:]
    spread = np.sqrt(np.sum(1 - means**2, axis=0) / n)
    exponents = beta * np.einsum("si,ia,sa->s", sigma, means, h) / np.sqrt(n) + beta * h @ (spread * z)
    total = log_sum_exp(exponents)
    masses = np.exp(exponents - total)
    return SynapseDual(total - p * np.log(2), np.einsum("s,si,sa->ia", masses, sigma, h), masses @ h)


def synapse_log_likelihoods(synapses: np.ndarray, beta: float) -> np.ndarray:
    """Log probability of every visible state, in the order of `all_spins`, given synapses [n, p] of -1 and +1."""
    n, p = synapses.shape
    states = all_spins(n + p)
    exponents = beta * np.einsum("si,ia,sa->s", states[:, :n], synapses, states[:, n:]) / np.sqrt(n)
    # Bit i of a state's number is unit i, so the visible states take turns fastest.
    joint = exponents.reshape(2**p, 2**n)
    return np.array([log_sum_exp(column) for column in joint.T]) - log_sum_exp(exponents)


def synapse_log_partition(synapses: np.ndarray, beta: float) -> float:
    """Log sum_sigma prod_a cosh(beta X_a)."""
    n = len(synapses)
    inputs = all_spins(n) @ synapses / np.sqrt(n)
    return log_sum_exp(np.sum(np.log(np.cosh(beta * inputs)), axis=1))


def all_synapses(n: int, p: int) -> np.ndarray:
    """All [n, p] arrays of -1 and +1."""
    return all_spins(n * p).reshape(-1, n, p)


def synapse_log_masses(means: np.ndarray | float, synapses: np.ndarray) -> np.ndarray:
    """Log probabilities of arrays of synapses, independent with these means."""
    return np.sum(np.log((1 + synapses * means) / 2), axis=(1, 2))


def synapse_evidence(data: np.ndarray, prior_mean: float, shape: tuple[int, int], beta: float) -> np.ndarray:
    """Log of prior times likelihood of the data, numbers of states of `all_spins`, for each of `all_synapses`."""
    synapses = all_synapses(*shape)
    likelihoods = np.array([synapse_log_likelihoods(some, beta)[data].sum() for some in synapses])
    return likelihoods + synapse_log_masses(prior_mean, synapses)


def log_cosh_of_normal(mean: float, deviation: float) -> float:
    """E log cosh of a normal number, by the trapezium rule on a fine grid."""
    z = np.linspace(-12, 12, 20_001)
    values = np.logaddexp(mean + deviation * z, -mean - deviation * z) - np.log(2)
    return float(np.sum(values * np.exp(-(z**2) / 2)) * (z[1] - z[0]) / np.sqrt(2 * np.pi))


class SummedMachine(NamedTuple):
    """A visible layer of units of any kind below hidden units that are summed out one value after another."""

    biases: tuple[np.ndarray, np.ndarray]
    weights: np.ndarray  # [n_0, n_1], by entries
    intra: np.ndarray  # [n_0, n_0]
    units: tuple[tuple[tuple[str, int, float], ...], ...]  # per layer (kind, entries, precision) of every unit


def values_of_kind(kind: str, width: int, precision: float) -> tuple[np.ndarray, np.ndarray]:
    """Values [number, entries] of one unit and what each counts for in a sum, exp(-own energy) times a step where real.

    Nodes of Gauss and Legendre over all that matters at fields within +-4, and counts up to 80.
    """
    if kind in ("gaussian", "normal", "rectified"):
        low = 0.0 if kind == "rectified" else -14.0
        nodes, steps = np.polynomial.legendre.leggauss(160)
        values = low + (14.0 - low) * (nodes + 1) / 2
        return values[:, None], np.log(steps * (14.0 - low) / 2) - precision * values**2 / 2
    if kind == "count":
        values = np.arange(81.0)
        return values[:, None], -np.concatenate([[0], np.cumsum(np.log(values[1:]))])
    values = {"binary": np.array([[0.0], [1.0]]), "spin": np.array([[-1.0], [1.0]])}.get(kind, np.eye(width))
    return values, np.zeros(len(values))


def neighbour_energy(kind: str, precision: float, value: np.ndarray) -> np.ndarray:
    """Of values [..., entries] of one unit."""
    if kind in ("gaussian", "normal", "rectified"):
        return precision * value[..., 0] ** 2 / 2
    if kind == "count":
        return np.vectorize(math.lgamma)(value[..., 0] + 1)
    return np.zeros(value.shape[:-1])


def entries_of_units(units: Sequence[tuple[str, int, float]]) -> list[slice]:
    """Where the entries of each unit stand in a layer."""
    ends = np.cumsum([0, *(width for _, width, _ in units)])
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def log_marginals(machine: SummedMachine, visible: np.ndarray) -> np.ndarray:
    """Log of sum_h exp(-E(v, h)) of rows v: a product over the hidden units of sums over the values of each."""
    total = visible @ machine.biases[0] + np.sum(visible @ np.triu(machine.intra, 1) * visible, axis=1)
    for (kind, _, precision), part in zip(machine.units[0], entries_of_units(machine.units[0]), strict=True):
        total = total - neighbour_energy(kind, precision, visible[:, part])
    fields = visible @ machine.weights + machine.biases[1]
    for unit, part in zip(machine.units[1], entries_of_units(machine.units[1]), strict=True):
        values, logs = values_of_kind(*unit)
        exponents = fields[:, part] @ values.T + logs
        largest = exponents.max(axis=1)
        total = total + largest + np.log(np.exp(exponents - largest[:, None]).sum(axis=1))
    return total


def with_value(visible: np.ndarray, part: slice, value: np.ndarray) -> np.ndarray:
    """Rows with another value of one unit."""
    moved = visible.copy()
    moved[:, part] = value
    return moved


def flow_of_unit(machine: SummedMachine, visible: np.ndarray, unit: int) -> np.ndarray:
    """Minimum probability flow from rows to the neighbouring values of one unit; of real values score matching.

    Derivatives are differences of five points.
    """
    kind, width, precision = machine.units[0][unit]
    part = entries_of_units(machine.units[0])[unit]
    here, x = log_marginals(machine, visible), visible[:, part]
    if kind in ("gaussian", "normal", "rectified"):
        step = 2e-3
        back2, back, ahead, ahead2 = (
            log_marginals(machine, with_value(visible, part, x + k * step)) for k in (-2, -1, 1, 2)
        )
        slope = (back2 - 8 * back + 8 * ahead - ahead2) / (12 * step)
        curvature = (-back2 + 16 * back - 30 * here + 16 * ahead - ahead2) / (12 * step**2)
        if kind == "rectified":
            return 2 * x[:, 0] * slope + x[:, 0] ** 2 * (slope**2 / 2 + curvature)
        return slope**2 / 2 + curvature
    if kind == "count":
        moves = [(x + 1, np.ones(len(x))), (np.maximum(x - 1, 0), x[:, 0] > 0)]
    else:
        moves = [(value, (x != value).any(axis=1)) for value in values_of_kind(kind, width, precision)[0]]
    there = [counts * np.exp((log_marginals(machine, with_value(visible, part, v)) - here) / 2) for v, counts in moves]
    return np.sum(there, axis=0)


def conditional_surprise(machine: SummedMachine, visible: np.ndarray, unit: int) -> np.ndarray:
    """- log p(the unit's value | all other visible values) of rows, by a sum over its values."""
    kind = machine.units[0][unit]
    part = entries_of_units(machine.units[0])[unit]
    values, logs = values_of_kind(*kind)
    # Of the values' own energies `logs` has the steps of a quadrature besides.
    steps = logs + neighbour_energy(kind[0], kind[2], values)
    there = [log_marginals(machine, with_value(visible, part, v)) + step for v, step in zip(values, steps, strict=True)]
    largest = np.max(there, axis=0)
    return largest + np.log(np.sum(np.exp(there - largest), axis=0)) - log_marginals(machine, visible)


def jump_law_after(machine: SummedMachine, states: np.ndarray, start: int, time: float) -> np.ndarray:
    """Distribution over the states [S, n] of the chain of jumps of single units at a time after it left one of them.

    Rates are sqrt(p(there) / p(here)), of counts to the next ones up and down alone. The exponential of the generator
    is that of a symmetric matrix (`law_after`).
    """
    log_p = log_marginals(machine, states)
    differ = np.zeros((len(states), len(states)), int)
    for (kind, _, _), part in zip(machine.units[0], entries_of_units(machine.units[0]), strict=True):
        steps = np.abs(states[:, None, part] - states[None, :, part]).sum(axis=2)
        differ += np.where(steps == 0, 0, np.where((kind == "count") & (steps > 1), 2, 1))
    generator = np.where(differ == 1, np.exp((log_p[None] - log_p[:, None]) / 2), 0)
    np.fill_diagonal(generator, -generator.sum(axis=1))
    root = np.exp((log_p - log_sum_exp(log_p)) / 2)
    values, vectors = np.linalg.eigh(root[:, None] * generator / root)
    law = vectors[start] * np.exp(values * time) @ vectors.T * root / root[start]
    return np.where(law > 1e-13, law, 0)


class UnitMachine(NamedTuple):
    """A Boltzmann machine of units of any kinds; `flat` has one row for each entry of a state.

    The kinds: binary, spin, categorical(q), gaussian, normal, rectified, count; ternary and wide ones of the tests'
    own. Integrals are sums over nodes.
    """

    flat: FlatMachine
    kinds: tuple[str, ...]  # of every unit, the visible layer's first
    log_precision: np.ndarray  # [n], 0 for entries of other than Gaussian units


def width(kind: str) -> int:
    """Entries of a state that make one unit."""
    return int(kind[len("categorical(") : -1]) if kind.startswith("categorical") else 1


def own_energy(kind: str, x: np.ndarray, log_precision: float = 0.0) -> np.ndarray:
    """The energy of values without a field."""
    if kind in ("gaussian", "normal", "rectified"):
        return np.exp(log_precision) * x**2 / 2
    if kind == "count":
        logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, x.max(initial=0) + 1)))])
        return logs[x.astype(int)]
    return np.zeros_like(x)


def unit_values(kind: str, reach: float = 10.0, most: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """The values of one unit, [V, width], and the weight of each in a sum over them.

    Of real units the nodes of a quadrature up to `reach`: equidistant over the whole line, where the error of that sum
    for a normal density of deviation s is exp(- 2 pi^2 s^2 / 0.5^2); those of Gauss and Legendre from 0. Of counts
    those up to `most`.
    """
    if kind.startswith("categorical"):
        return np.eye(width(kind)), np.ones(width(kind))
    if kind in ("gaussian", "normal"):
        values = np.arange(-2 * reach, 2 * reach + 1) / 2
        return values[:, None], np.full(len(values), 0.5)
    if kind == "rectified":
        nodes, weights = np.polynomial.legendre.leggauss(48)
        return reach * (nodes[:, None] + 1) / 2, reach * weights / 2
    finite = {"binary": (0, 1), "spin": (-1, 1), "ternary": (-1, 0, 1), "wide": (-2, 3)}
    values = np.array(finite[kind] if kind in finite else range(most + 1), np.float64)
    return values[:, None], np.ones(len(values))


def unit_masses(kind: str, field: np.ndarray | float, log_precision: float = 0.0, **reach: float) -> tuple:
    """(values [V, width], probability of each [V], log sum): one unit at one field, [width] or a number."""
    values, weights = unit_values(kind, **reach)
    exponents = values @ np.broadcast_to(field, values.shape[1:]) + np.log(weights)
    exponents = exponents - own_energy(kind, values, log_precision).sum(axis=1)
    total = log_sum_exp(exponents)
    return values, np.exp(exponents - total), total


def entries(machine: UnitMachine) -> list[slice]:
    """The entries of each unit."""
    ends = np.cumsum([width(kind) for kind in machine.kinds])
    return [slice(end - width(kind), end) for kind, end in zip(machine.kinds, ends, strict=True)]


def unit_machine(
    biases: Sequence, weights: Sequence, intra: Sequence, kinds: Sequence[str], own: Sequence | None = None
) -> UnitMachine:
    """The flat form of a layered machine of such units, given the logarithms of precisions of each layer, or None."""
    flat = flatten(biases, weights, intra)
    layers = [np.zeros(size) for size in flat.sizes] if own is None else own
    own_of = [np.zeros(size) if one is None else one for one, size in zip(layers, flat.sizes, strict=True)]
    machine = UnitMachine(flat, tuple(kinds), np.concatenate(own_of).astype(np.float64))
    connected = flat.connected.copy()
    for part in entries(machine):
        connected[part, part] = False
    return machine._replace(flat=flat._replace(connected=connected))


def unit_states(machine: UnitMachine, **reach: float) -> tuple[np.ndarray, np.ndarray]:
    """All states (or nodes) of a machine of few units, [S, n], the last unit's values nearest; and their weights."""
    states, weights = np.zeros((1, 0)), np.ones(1)
    for kind in machine.kinds:
        values, own = unit_values(kind, **reach)
        states = np.concatenate([np.repeat(states, len(values), axis=0), np.tile(values, (len(states), 1))], axis=1)
        weights = np.outer(weights, own).ravel()
    return states, weights


def unit_energies(machine: UnitMachine, states: np.ndarray) -> np.ndarray:
    """E(x) of every row, the own energies of the units among it."""
    total = energies(machine.flat, states)
    for kind, part in zip(machine.kinds, entries(machine), strict=True):
        x = states[:, part]
        total = total + own_energy(kind, x, float(machine.log_precision[part][0])).sum(axis=1)
    return total


def unit_distribution(machine: UnitMachine, **reach: float) -> tuple[np.ndarray, np.ndarray, float]:
    """(states, probability of each, log Z); of real units probabilities of nodes."""
    states, weights = unit_states(machine, **reach)
    exponents = np.log(weights) - unit_energies(machine, states)
    total = log_sum_exp(exponents)
    return states, np.exp(exponents - total), total


def unit_flows(machine: UnitMachine, states: np.ndarray) -> np.ndarray:
    """The flow out of every row by each unit, [S, units], from energies of neighbouring states.

    The root of the ratio of probabilities to every other value; of counts to the next ones; of real values score
    matching, s^2 / 2 + s' with s = - dE/dx (Hyvarinen 2005), and 2 x s + x^2 (s^2 / 2 + s') of those from 0 (2007).
    Energies are quadratic in real values, so that differences of any step are derivatives.
    """
    here = unit_energies(machine, states)

    def at(part: slice, x: np.ndarray) -> np.ndarray:
        moved = states.copy()
        moved[:, part] = x
        return unit_energies(machine, moved)

    flows = []
    for kind, part in zip(machine.kinds, entries(machine), strict=True):
        x = states[:, part]
        if kind in ("gaussian", "normal", "rectified"):
            above, below = at(part, x + 1), at(part, x - 1)
            score, slope = (below - above) / 2, 2 * here - above - below
            x = x[:, 0]
            flow = score**2 / 2 + slope
            flows.append(2 * x * score + x**2 * flow if kind == "rectified" else flow)
        elif kind == "count":
            up = np.exp((here - at(part, x + 1)) / 2)
            down = np.exp((here - at(part, np.maximum(x - 1, 0))) / 2)
            flows.append(up + np.where(x[:, 0] > 0, down, 0))
        else:
            others = [np.exp((here - at(part, value)) / 2) for value in unit_values(kind)[0]]
            # The present value is among them, with a ratio of 1.
            flows.append(sum(others) - 1)
    return np.stack(flows, axis=1)


def unit_gradient(function: Callable[[UnitMachine], float], machine: UnitMachine) -> tuple[FlatMachine, np.ndarray]:
    """Central differences of a function of a machine, those by logarithms of precisions apart, [n]."""
    flat = finite_differences(lambda moved: function(machine._replace(flat=moved)), machine.flat)
    step, own = 2e-5, np.zeros_like(machine.log_precision)
    for kind, part in zip(machine.kinds, entries(machine), strict=True):
        if kind == "gaussian":
            moved = [machine.log_precision.copy() for _ in range(2)]
            moved[0][part] += step
            moved[1][part] -= step
            ahead, behind = (function(machine._replace(log_precision=one)) for one in moved)
            own[part] = (ahead - behind) / (2 * step)
    return flat, own


def unit_moments(machine: UnitMachine, states: np.ndarray, masses: np.ndarray) -> tuple[FlatMachine, np.ndarray]:
    """Expected x_i x_j at connected pairs and x_j, in the shape of the machine, and - g x^2 / 2 of Gaussian entries."""
    pairs = np.einsum("s,si,sj->ij", masses, states, states) * machine.flat.connected
    own = np.zeros_like(machine.log_precision)
    for kind, part in zip(machine.kinds, entries(machine), strict=True):
        if kind == "gaussian":
            own[part] = -(masses @ states[:, part] ** 2) * np.exp(machine.log_precision[part]) / 2
    return machine.flat._replace(coupling=pairs, bias=masses @ states), own
