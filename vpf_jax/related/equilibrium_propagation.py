"""Equilibrium propagation: supervised learning from two relaxations of one network of rate units.

B. Scellier and Y. Bengio, "Equilibrium propagation: bridging the gap between energy-based models and backpropagation"
(2017), arXiv 1602.05179; centred estimates and the MNIST preset of sigmoid units after A. Laborieux and others,
"Scaling equilibrium propagation to deep convnets" (2021), arXiv 2006.03824. With s_0 = x held, s_k in [0, 1] the
hidden layers and the output s_L, symmetric weights between consecutive layers, and the target d,

    E = sum_k [G(s_k) - b_k . s_k - s_{k-1} W_k s_k],   C = ||s_L - d||^2 / 2,   F = E + beta C

A free phase (beta = 0) relaxes to a fixed point s^0, whose output is the prediction. A nudged phase goes on from there
to s^beta, pulled weakly towards the target. For J the cost at the free fixed point (theorem 1 of the paper)

    dJ/dtheta = lim_{beta -> 0} (dE/dtheta(s^beta) - dE/dtheta(s^0)) / beta

so each weight learns from the activities of its two units. One-sided estimates take the quotient at one beta, with an
error of order beta; centred ones take it between -beta and beta, with an error of order beta^2. Units are

    'hard'       G(s) = s^2 / 2; Euler steps of ds/dt = -dF/ds, clipped to [0, 1] (the paper's rho = clip)
    'sigmoid'    G'(s) = the inverse of sigma; s <- sigma(field), sigma(a) = 1 / (1 + exp(-4 (a - 1/2)))

The paper's rho is the identity on [0, 1], which states never leave, so it stands nowhere: a derivative of clip, 1/2 at
the bounds in JAX, would slow down the units that sit there. An epoch is one compiled call. Not here: data, the loop
over epochs, figures (`experiments.mnist_equilibrium`); convolutions, other costs.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray

from vpf_jax import checks
from vpf_jax.checks import AnyArray
from vpf_jax.sample.streams import permutation, stream_of, substreams, uniform
from vpf_jax.settings import Settings, setting
from vpf_jax.stack import rows_at_once

ESTIMATORS = ("one_sided", "centred")
OPTIMIZERS = ("sgd", "adam")

# One array per layer above the input, the output last: [batch, n_l].
Layers = tuple[Float[Array, "*batch _n_l"], ...]


class Units(NamedTuple):
    """What kind of unit a network is made of."""

    own_energy: Callable[[Array], Array]
    """G(s) of each unit, its energy apart from fields."""
    pull: Callable[[Array], Array]
    """G'(s), what a field has to balance at a fixed point."""
    step: Callable[[Array, Array, float], Array]
    """The next s, from s, its field and the step size."""


def _inverse_sigma(s: Array) -> Array:
    return 0.5 + (jnp.log(s) - jnp.log1p(-s)) / 4


ACTIVATIONS = {
    "hard": Units(
        own_energy=lambda s: s * s / 2,
        pull=lambda s: s,
        step=lambda s, field, size: jnp.clip(s + size * (field - s), 0, 1),
    ),
    "sigmoid": Units(
        own_energy=lambda s: s / 2 + (jax.scipy.special.xlogy(s, s) + jax.scipy.special.xlog1py(1 - s, -s)) / 4,
        pull=_inverse_sigma,
        step=lambda s, field, size: s + size * (jax.nn.sigmoid(4 * field - 2) - s),
    ),
}


def _check_beta(beta: AnyArray | float) -> None:
    checks.finite_number("beta", beta)
    checks.require(checks.is_traced(beta) or beta != 0, "beta", beta, "a finite number other than 0")


@struct.dataclass
class EquilibriumNetwork:
    """Parameters; a pytree, also the container of their gradients."""

    weights: tuple[Float[Array, "_n_l _n_next"], ...]
    """One matrix per pair of consecutive layers, the input's first."""
    biases: tuple[Float[Array, " _n_l"], ...]
    """One vector per layer above the input."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of units of each layer, input first."""
        return (self.weights[0].shape[0], *(bias.shape[0] for bias in self.biases))


@dataclasses.dataclass(frozen=True)
class EquilibriumConfig(Settings):
    """Settings of a training; the defaults are those of one hidden layer (`PRESETS` holds the others).

    Raises:
      SettingError: a value outside its range.
    """

    activation: str = setting("hard", "Kind of unit, see the module", choices=tuple(ACTIVATIONS))
    step_size: float = setting(
        0.5, "Part of the way towards the field (or sigma of it) that a step of the relaxation goes", above=0, most=1
    )
    free_steps: int = setting(20, "Steps of the free phase", least=1)
    nudged_steps: int = setting(4, "Steps of a nudged phase", least=1)
    beta: float = setting(1.0, "Strength of the nudge", other_than=0)
    """Of one-sided estimates its sign is drawn anew for each minibatch."""
    estimator: str = setting("one_sided", "Of the gradient", choices=ESTIMATORS)
    persistent: bool = setting(
        True, "Whether the free phase of an example starts where that example's last one ended; otherwise from zeros"
    )
    optimizer: str = setting("sgd", "What the gradient goes through", choices=OPTIMIZERS)
    learning_rates: tuple[float, ...] = setting(
        (0.2, 0.1),
        "One per weight matrix, input first; the biases of its upper layer share it",
        above=0,
        fewest=2,
        distinct=False,
    )
    batch_size: int = setting(20, "Examples per step, up to the number of examples", least=1)


class EquilibriumPreset(NamedTuple):
    """A published setting."""

    hidden: tuple[int, ...]
    """Units per hidden layer."""
    epochs: int
    config: EquilibriumConfig


PRESETS = {
    "1": EquilibriumPreset((500,), 25, EquilibriumConfig()),
    "2": EquilibriumPreset(
        (500, 500),
        60,
        EquilibriumConfig(free_steps=100, nudged_steps=6, beta=4.0, learning_rates=(0.8, 0.2, 0.02)),
    ),
    "3": EquilibriumPreset(
        (500, 500, 500),
        500,
        EquilibriumConfig(free_steps=500, nudged_steps=8, beta=2.0, learning_rates=(0.128, 0.032, 0.008, 0.002)),
    ),
    "centred": EquilibriumPreset(
        (512,),
        25,
        EquilibriumConfig(
            activation="sigmoid",
            step_size=1.0,
            free_steps=30,
            nudged_steps=10,
            beta=0.1,
            estimator="centred",
            persistent=False,
            optimizer="adam",
            learning_rates=(5e-4, 5e-4),
            batch_size=50,
        ),
    ),
}
"""For images of ten classes: '1', '2' and '3' hidden layers of the paper (its table 1), and sigmoid units with centred
estimates, whose number of epochs is ours.

The authors' code, with which the paper's networks were trained, has C = ||s_L - d||^2 without the half: in our units
its rates are twice those of the table and its nudge is twice as strong, beta 1 with one hidden layer (0.5 in the code)
and 2 with more (1 in the code). With one hidden layer the preset has both. With two, that nudge left an output at 0 for
good within the first epochs; one of 4 does not. At the rates of the table a nudge of 2 does not either, and learns more
slowly: with three, the preset has these.
"""


@struct.dataclass
class EquilibriumState:
    """Everything that a run needs to go on; a pytree."""

    network: EquilibriumNetwork
    optimizer: optax.OptState
    particles: Layers
    """Free states, one row per training example in the order of the data; empty unless persistent."""
    key: PRNGKeyArray
    """Constant through a run: epoch e draws from fold_in(key, e)."""
    epoch: Int[Array, ""]
    """Number of finished epochs."""


@struct.dataclass
class EquilibriumMetrics:
    """What an epoch reports, measured on the free states that it learns from; scalars on the device."""

    error: Float[Array, ""]
    """Fraction of the training examples that are misclassified."""
    cost: Float[Array, ""]
    """Mean of C over the training examples."""
    residual: Float[Array, ""]
    """Largest |ds| in the last free step of an example, mean over the examples."""
    largest_residual: Float[Array, ""]
    """Largest |ds| in the last free step of all examples."""


def init_network(key: PRNGKeyArray, sizes: Sequence[int]) -> EquilibriumNetwork:
    """Draws a network as the paper does: weights uniform up to sqrt(6 / (n_l + n_next)) either way, biases 0.

    Args:
      key: a random key.
      sizes: units per layer, input first, output last, at least one hidden layer.

    Raises:
      ValueError: fewer than three sizes, or sizes that are no positive integers.
    """
    sizes = checks.positive_integers("sizes", sizes, "three or more positive integers", least=3)
    checks.random_key(key)
    pairs = list(itertools.pairwise(sizes))
    keys = jax.random.split(key, len(pairs))
    glorot = jax.nn.initializers.glorot_uniform()
    return EquilibriumNetwork(
        weights=tuple(glorot(k, pair) for k, pair in zip(keys, pairs, strict=True)),
        biases=tuple(jnp.zeros(above) for _, above in pairs),
    )


def energy(
    network: EquilibriumNetwork, x: Float[Array, "batch n_0"], state: Layers, activation: str = "hard"
) -> Float[Array, " batch"]:
    """E of each example, for states in [0, 1]; what the input alone contributes is left out."""
    total = jnp.zeros(())
    for below, weights, bias, s in zip((x, *state[:-1]), network.weights, network.biases, state, strict=True):
        total = total + jnp.sum(ACTIVATIONS[activation].own_energy(s) - (below @ weights + bias[None]) * s, axis=1)
    return total


def cost(state: Layers, target: Float[Array, "batch n_out"]) -> Float[Array, " batch"]:
    """C of each example: half the squared distance of the output from the target."""
    return jnp.sum((state[-1] - target) ** 2, axis=1) / 2


def predict(network: EquilibriumNetwork, state: Layers) -> Int[Array, " batch"]:
    """The class of each example: its highest output, and of equal ones that with the highest field.

    Outputs at a bound are equal: where all are 0, a plain argmax would call the example a 0.
    """
    output = state[-1]
    field = state[-2] @ network.weights[-1] + network.biases[-1][None]
    highest = output == jnp.max(output, axis=1, keepdims=True)
    return jnp.argmax(jnp.where(highest, field, -jnp.inf), axis=1)


def force(
    network: EquilibriumNetwork,
    x: Float[Array, "batch n_0"],
    state: Layers,
    activation: str = "hard",
    target: Float[Array, "batch n_out"] | None = None,
    beta: Float[Array, ""] | float = 0.0,
) -> Layers:
    """-dF/ds of each unit: its field minus its own pull; at a bound the derivative from inside [0, 1].

    Args:
      network: the network.
      x: inputs.
      state: in [0, 1]; of sigmoid units inside (0, 1), at whose ends the force is infinite.
      activation: kind of the units.
      target: the nudge's target; None: a free network.
      beta: strength of the nudge.
    """
    fields = _fields(network, _drive(network, x), state, target, beta)
    return tuple(field - ACTIVATIONS[activation].pull(s) for s, field in zip(state, fields, strict=True))


def relax(
    network: EquilibriumNetwork,
    x: Float[Array, "batch n_0"],
    state: Layers,
    config: EquilibriumConfig,
    steps: int,
    target: Float[Array, "batch n_out"] | None = None,
    beta: Float[Array, ""] | float = 0.0,
) -> tuple[Layers, Float[Array, " batch"]]:
    """Where the network is after a number of steps, all units in parallel, and how far it still moved at the last one.

    Args:
      network: the network.
      x: inputs, held.
      state: where it starts, in [0, 1].
      config: of it, the activation and the step size.
      steps: at least 1.
      target: the nudge's target; None: a free phase.
      beta: strength of the nudge.

    Returns:
      The state, and per example the largest |ds| of the last step: 0 at a fixed point.

    Raises:
      ValueError: steps below 1.
    """
    steps = checks.integer("steps", steps, 1)
    return _relax(network, _drive(network, x), state, config, steps, target, beta)


def estimate_gradient(
    network: EquilibriumNetwork,
    x: Float[Array, "batch n_0"],
    free: Layers,
    target: Float[Array, "batch n_out"],
    config: EquilibriumConfig,
    beta: Float[Array, ""] | float,
) -> EquilibriumNetwork:
    """The gradient of the mean cost of a minibatch as `config.estimator` estimates it, from nudged phases.

    Args:
      network: the network.
      x: inputs.
      free: the states at the end of the free phase.
      target: what the outputs should be.
      config: of it, the activation, the step size, the steps of a nudged phase and the estimator.
      beta: strength of the nudge, of either sign.

    Raises:
      ValueError: a concrete beta that is 0 or not finite.
    """
    _check_beta(beta)
    return _estimate(network, x, _drive(network, x), free, target, config, beta)


def init_state(
    key: PRNGKeyArray, network: EquilibriumNetwork, num_examples: int, config: EquilibriumConfig
) -> EquilibriumState:
    """The state before the first epoch; particles start from zeros.

    Raises:
      ValueError: a network that does not fit the learning rates, or fewer examples than a minibatch takes.
    """
    _check(network, num_examples, config)
    checks.random_key(key)
    # Copies of its own: training donates its input, and what the caller holds should survive.
    network, key = jax.tree.map(jnp.copy, (network, key))
    particles = _rest(network, num_examples) if config.persistent else ()
    return EquilibriumState(network, _optimizer(config).init(network), particles, key, jnp.zeros((), jnp.int32))


def train_epoch(
    state: EquilibriumState,
    images: Float[AnyArray, "num_examples n_0"],
    labels: Integer[AnyArray, " num_examples"],
    *,
    config: EquilibriumConfig,
) -> tuple[EquilibriumState, EquilibriumMetrics]:
    """One pass over the data in a fresh random order, every example used once.

    A last short minibatch of r examples is a step whose gradient counts r / batch_size of a full one.

    Args:
      state: the state so far; donated, use the returned one.
      images: inputs, grey values in [0, 1] in the paper.
      labels: classes, 0 to n_out - 1.
      config: the settings, static.

    Raises:
      ValueError: images or labels that do not fit the network or the particles, images that are not finite, or labels
        outside their range.
    """
    if not isinstance(state, EquilibriumState):
        raise ValueError(
            f"got a {type(state).__name__} for the state; it takes an EquilibriumState, as init_state gives"
        )
    checks.array("a state", state.epoch)
    checks.finite("images", images)
    checks.array("labels", labels, "an array of integers")
    sizes, num_examples = state.network.sizes, len(images) if images.ndim else 0
    _check(state.network, num_examples, config)
    if images.shape != (num_examples, sizes[0]) or labels.shape != (num_examples,):
        raise ValueError(
            f"got images of shape {images.shape} and labels of shape {labels.shape}; the network takes "
            f"[n, {sizes[0]}] and [n]"
        )
    if config.persistent != bool(state.particles) or any(len(p) != num_examples for p in state.particles):
        raise ValueError(
            f"got {num_examples} examples and particles of shapes {[p.shape for p in state.particles]} with "
            f"persistent={config.persistent}; they are one per example if persistent, and none otherwise"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"got labels of dtype {labels.dtype}; they are integers")

    def found(labels: np.ndarray) -> str:
        return f"from {labels.min()} to {labels.max()}; with {sizes[-1]} outputs they are 0 to {sizes[-1] - 1}"

    kind = f"0 to {sizes[-1] - 1}"
    checks.values("labels", labels, kind, lambda y, xp: xp.all((y >= 0) & (y < sizes[-1])), found)
    return _epoch(state, images, labels, config=config)


@functools.partial(jax.jit, static_argnames="config")
def free_phase(
    network: EquilibriumNetwork,
    images: Float[Array, "num_images n_0"],
    start: Layers | None = None,
    *,
    config: EquilibriumConfig,
) -> tuple[Layers, Float[Array, " num_images"]]:
    """`relax` without a nudge for `config.free_steps`, in chunks of images; `predict` reads it.

    Args:
      network: the network.
      images: inputs.
      start: where it starts; None: zeros.
      config: of it, the activation, the step size and the free steps.

    Returns:
      The states, and per image the largest |ds| of the last step.
    """

    def settle(example: tuple[Array, Layers]) -> tuple[Layers, Array]:
        x, state = jax.tree.map(lambda a: a[None], example)
        return jax.tree.map(lambda a: a[0], relax(network, x, state, config, config.free_steps))

    start = _rest(network, images.shape[0]) if start is None else start
    width = images.shape[1] + sum(biases.size for biases in network.biases)
    return jax.lax.map(settle, (images, start), batch_size=rows_at_once(width))


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def _epoch(
    state: EquilibriumState, images: Array, labels: Array, *, config: EquilibriumConfig
) -> tuple[EquilibriumState, EquilibriumMetrics]:
    num_examples = images.shape[0]
    num_full, rest = divmod(num_examples, config.batch_size)
    order_stream, sign_stream = substreams(stream_of(jax.random.fold_in(state.key, state.epoch)), 2)
    order = permutation(order_stream, num_examples)
    betas = jnp.where(uniform(sign_stream, (num_full + 1,)) < 0.5, -config.beta, config.beta)
    optimizer = _optimizer(config)

    def step(carry, inputs):
        network, optimizer_state, particles = carry
        index, beta = inputs
        x, label = images[index], labels[index]
        target = jax.nn.one_hot(label, network.sizes[-1], dtype=x.dtype)
        drive = _drive(network, x)
        start = tuple(p[index] for p in particles) if config.persistent else _rest(network, len(index))
        free, residual = _relax(network, drive, start, config, config.free_steps)
        sums = {
            "error": jnp.sum(predict(network, free) != label),
            "cost": jnp.sum(cost(free, target)),
            "residual": jnp.sum(residual),
        }
        if config.persistent:
            particles = jax.tree.map(lambda p, s: p.at[index].set(s, unique_indices=True), particles, free)
        gradient = _estimate(network, x, drive, free, target, config, beta)
        gradient = jax.tree.map(lambda g: g * (len(index) / config.batch_size), gradient)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        network = optax.apply_updates(network, updates)
        return (network, optimizer_state, particles), (sums, jnp.max(residual))

    carry = state.network, state.optimizer, state.particles
    full = order[: num_full * config.batch_size].reshape(num_full, config.batch_size)
    carry, (sums, largest) = jax.lax.scan(step, carry, (full, betas[:num_full]))
    totals, largest = jax.tree.map(jnp.sum, sums), jnp.max(largest)
    if rest:
        carry, (sums, last) = step(carry, (order[-rest:], betas[-1]))
        totals, largest = jax.tree.map(jnp.add, totals, sums), jnp.maximum(largest, last)
    network, optimizer_state, particles = carry
    means = {name: total / num_examples for name, total in totals.items()}
    metrics = EquilibriumMetrics(**means, largest_residual=largest)
    return EquilibriumState(network, optimizer_state, particles, state.key, state.epoch + 1), metrics


def _drive(network: EquilibriumNetwork, x: Array) -> tuple[Array, ...]:
    """The constant part of the fields while the input is held, which costs more than a step of small networks."""
    lowest, *others = network.biases
    return (x @ network.weights[0] + lowest[None], *(bias[None] for bias in others))


def _fields(
    network: EquilibriumNetwork,
    drive: tuple[Array, ...],
    state: Layers,
    target: Array | None,
    beta: Array | float,
) -> Layers:
    """The local fields: what each unit gets from its bias, its neighbours and the nudge."""
    fields = list(drive)
    for lower, weights in enumerate(network.weights[1:]):
        fields[lower] = fields[lower] + state[lower + 1] @ weights.T
        fields[lower + 1] = fields[lower + 1] + state[lower] @ weights
    if target is not None:
        fields[-1] = fields[-1] + beta * (target - state[-1])
    return tuple(fields)


def _relax(
    network: EquilibriumNetwork,
    drive: tuple[Array, ...],
    state: Layers,
    config: EquilibriumConfig,
    steps: int,
    target: Array | None = None,
    beta: Array | float = 0.0,
) -> tuple[Layers, Float[Array, " batch"]]:
    """`relax` with the drive of the input given."""

    def step(_, state: Layers) -> Layers:
        fields = _fields(network, drive, state, target, beta)
        move = ACTIVATIONS[config.activation].step
        return tuple(move(s, field, config.step_size) for s, field in zip(state, fields, strict=True))

    before = jax.lax.fori_loop(0, steps - 1, step, state)
    after = step(None, before)
    moved = [jnp.max(jnp.abs(new - old), axis=1) for new, old in zip(after, before, strict=True)]
    return after, functools.reduce(jnp.maximum, moved)


def _estimate(
    network: EquilibriumNetwork,
    x: Array,
    drive: tuple[Array, ...],
    free: Layers,
    target: Array,
    config: EquilibriumConfig,
    beta: Array | float,
) -> EquilibriumNetwork:
    """`estimate_gradient` with the drive of the input given."""

    def nudged(strength: Array | float) -> Layers:
        return _relax(network, drive, free, config, config.nudged_steps, target, strength)[0]

    plus, minus, distance = nudged(beta), free, beta
    if config.estimator == "centred":
        minus, distance = nudged(-beta), 2 * beta
    # dE/dW is minus the mean product of the activities that W joins; the input's are the same on both sides.
    scale = -1 / (distance * x.shape[0])
    differences = [p - m for p, m in zip(plus, minus, strict=True)]
    weights = [x.T @ differences[0]]
    for lower in range(len(free) - 1):
        # One product for both correlations: [p_k, -m_k]' [p_{k+1}, m_{k+1}].
        below = jnp.concatenate([plus[lower], -minus[lower]])
        weights.append(below.T @ jnp.concatenate([plus[lower + 1], minus[lower + 1]]))
    return EquilibriumNetwork(
        weights=tuple(scale * w for w in weights),
        biases=tuple(scale * jnp.sum(d, axis=0) for d in differences),
    )


def _rest(network: EquilibriumNetwork, rows: int) -> Layers:
    return tuple(jnp.zeros((rows, bias.shape[0]), bias.dtype) for bias in network.biases)


def _optimizer(config: EquilibriumConfig) -> optax.GradientTransformation:
    """Descent along the gradient, or Adam's direction, each layer at its own rate."""

    def scaled(updates: EquilibriumNetwork) -> EquilibriumNetwork:
        rates = config.learning_rates
        return EquilibriumNetwork(
            weights=tuple(-rate * w for rate, w in zip(rates, updates.weights, strict=True)),
            biases=tuple(-rate * b for rate, b in zip(rates, updates.biases, strict=True)),
        )

    descent = optax.stateless(lambda updates, _: scaled(updates))
    return optax.chain(optax.scale_by_adam(), descent) if config.optimizer == "adam" else descent


def _check(network: EquilibriumNetwork, num_examples: int, config: EquilibriumConfig) -> None:
    if not isinstance(network, EquilibriumNetwork) or not isinstance(config, EquilibriumConfig):
        raise ValueError(
            f"got a {type(network).__name__} and a {type(config).__name__}; it takes an EquilibriumNetwork and an "
            "EquilibriumConfig"
        )
    for parameter in jax.tree.leaves(network):
        checks.finite("a network", parameter)
    if len(config.learning_rates) != len(network.weights):
        raise ValueError(
            f"got {len(config.learning_rates)} learning_rates for {len(network.weights)} weight matrices; "
            "it takes one per matrix"
        )
    if config.batch_size > num_examples:
        raise ValueError(
            f"got batch_size={config.batch_size} with {num_examples} examples; it is allowed up to their number"
        )
