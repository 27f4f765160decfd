"""Training of stacks by variational probability flow: E-step, local gradient, Optax update, metrics.

Variational EM (Liu, Quek and Lin, arXiv 1711.07732, Algorithms 1 and 2): the E-step samples the hidden states given
the data, once per epoch over the whole data set (the paper's) or freshly for every minibatch; the M-step takes one
step per minibatch along the local gradient of

    epsilon * J(theta) + weight_decay / 2 * (sum of the squares of all entries of the weight matrices)

in all machines of the stack at the same time. A stack of a one-layer machine is minimum probability flow.

An epoch is one compiled call (`train_epoch`, or `compile_epoch` ahead of time): nothing returns to the host inside it,
and its input state is donated. Not here: files, flags, figures, the loop over epochs (`experiments`).
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from vpf_jax.local_rule import objective_and_gradient
from vpf_jax.machine import BoltzmannMachine
from vpf_jax.random_numbers import permutation, stream_of, substream, substreams
from vpf_jax.stack import Stack, check_visible, climb, in_chunks, join_states

ESTEPS = ("epoch", "minibatch")
SCHEDULES = ("constant", "cosine")
PRECISIONS = ("float32", "bfloat16")


class NonFiniteObjectiveError(FloatingPointError):
    """The objective of an epoch is not finite: flip rates or weights have overflowed."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; the defaults are the paper's, where it states them.

    Raises:
      ValueError: a value outside its range.
    """

    epochs: int = 200
    """Passes over the data, at least 1; the length of the cosine schedule."""
    batch_size: int = 40
    """Examples per step, at least 1 and at most the number of examples."""
    learning_rate: float = 1e-3
    """Of Adam, positive."""
    schedule: str = "constant"
    """Of the learning rate: 'constant', or 'cosine' from learning_rate to 0 over the run."""
    weight_decay: float = 1e-4
    """Of weights, not of biases; at least 0. The gradient of the loss gains weight_decay * w, and twice that for an
    intra-layer weight, which is one parameter at two places of its symmetric matrix (the paper leaves this open)."""
    epsilon: float = 0.01
    """The small time of probability flow, which scales the objective against the decay; positive."""
    estep: str = "epoch"
    """When hidden states are sampled: 'epoch' (all, at its start) or 'minibatch' (just before each step)."""
    max_weight: float | None = None
    """Bound on |w| of every weight, positive; None: no bound."""
    precision: str = "float32"
    """Of the factors of matrix products: 'float32' leaves them as the parameters are, 'bfloat16' narrows them; sums,
    parameters and the optimizer keep their precision."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "an integer of at least 1")
        for name in ("learning_rate", "epsilon"):
            value = getattr(self, name)
            _require(0 < value < math.inf, name, value, "a positive finite number")
        _require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "a finite number of at least 0")
        _require(self.schedule in SCHEDULES, "schedule", self.schedule, f"one of {SCHEDULES}")
        _require(self.estep in ESTEPS, "estep", self.estep, f"one of {ESTEPS}")
        _require(self.precision in PRECISIONS, "precision", self.precision, f"one of {PRECISIONS}")
        bound = self.max_weight
        allowed = "a positive finite number, or None for no bound"
        _require(bound is None or 0 < bound < math.inf, "max_weight", bound, allowed)


@struct.dataclass
class TrainState:
    """Everything that a run needs to go on; a pytree."""

    stack: Stack
    optimizer: optax.OptState
    key: PRNGKeyArray
    """Constant through a run: epoch e draws from fold_in(key, e)."""
    epoch: Int[Array, ""]
    """Number of finished epochs."""


@struct.dataclass
class Metrics:
    """What an epoch reports; scalars on the device."""

    objective: Float[Array, ""]
    """Mean over the examples of J, summed over the machines, each at its own step's parameters."""
    max_abs_weight: Float[Array, ""]
    """Largest |w| at the end of the epoch."""


def init_state(key: PRNGKeyArray, stack: Stack, config: TrainConfig) -> TrainState:
    """The state before the first epoch."""
    optimizer = _optimizer(config, steps_per_epoch=1)
    # A copy of its own: training donates its input, and the caller's stack should survive.
    stack = jax.tree.map(jnp.copy, stack)
    return TrainState(stack=stack, optimizer=optimizer.init(stack), key=key, epoch=jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def train_epoch(
    state: TrainState, visible: Num[Array, "num_examples n_0"], *, config: TrainConfig
) -> tuple[TrainState, Metrics]:
    """One pass over the data in a fresh random order, every example used once.

    A last short minibatch of r examples is a step whose gradient counts r / batch_size of a full one.

    Args:
      state: the state so far; donated, use the returned one.
      visible: zeros and ones, uint8 saves memory.
      config: the settings, static.

    Raises:
      ValueError: visible states that do not fit the stack, or fewer of them than a minibatch.
    """
    check_visible(state.stack, visible)
    num_examples = visible.shape[0]
    if config.batch_size > num_examples:
        raise ValueError(
            f"got batch_size={config.batch_size} with {num_examples} examples; it is allowed up to their number"
        )
    order_stream, estep_stream = substreams(stream_of(jax.random.fold_in(state.key, state.epoch)), 2)
    visible = visible[permutation(order_stream, num_examples)]
    hidden = None
    if config.estep == "epoch":
        stack = _narrowed(state.stack, config)
        hidden = in_chunks(estep_stream, lambda stream, rows: climb(stream, stack, rows), visible)
    num_full, rest = divmod(num_examples, config.batch_size)
    optimizer = _optimizer(config, num_full + (rest > 0))

    def step(carry, inputs):
        number, batch = inputs
        return _minibatch_step(optimizer, config, carry, substream(estep_stream, number), batch)

    batches, last = _cut((visible, hidden), num_full, config.batch_size)
    carry, objectives = jax.lax.scan(step, (state.stack, state.optimizer), (jnp.arange(num_full), batches))
    total = jnp.sum(objectives) * config.batch_size
    if rest:
        carry, objective = step(carry, (num_full, last))
        total += objective * rest
    stack, optimizer_state = carry
    metrics = Metrics(objective=total / num_examples, max_abs_weight=largest_weight(stack))
    return TrainState(stack, optimizer_state, state.key, state.epoch + 1), metrics


def compile_epoch(
    state: TrainState, visible: Num[Array, "num_examples n_0"], config: TrainConfig
) -> Callable[[TrainState, Array], tuple[TrainState, Metrics]]:
    """`train_epoch` compiled ahead of time for these shapes, with options that suit the backend.

    Takes (state, visible), donating the state as `train_epoch` does. On a CPU it works in vectors of 512 bits, which
    took about a tenth off an epoch of a DBM where they were measured; by itself the compiler stays at 256. Inside other
    compiled functions call `train_epoch`.

    Raises:
      ValueError: as `train_epoch`.
    """
    lowered = train_epoch.lower(state, visible, config=config)
    if jax.default_backend() == "cpu":
        # Other versions of the compiler may not know the option.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return lowered.compile(compiler_options={"xla_cpu_prefer_vector_width": "512"})
    return lowered.compile()


def check_finite(metrics: Metrics, epoch: int, last_largest: float) -> None:
    """Raises unless the epoch's objective is finite.

    Args:
      metrics: of the epoch just run.
      epoch: its number.
      last_largest: largest |w| before the epoch.

    Raises:
      NonFiniteObjectiveError: one sentence with the epoch, the largest |w| and what to try.
    """
    objective, largest = float(metrics.objective), float(metrics.max_abs_weight)
    if not (math.isfinite(objective) and math.isfinite(largest)):
        raise NonFiniteObjectiveError(
            f"the objective is {objective} in epoch {epoch} (largest |w| before it: {last_largest:.3g}); flip rates "
            "overflow where a local field passes 176, so try a lower learning rate, more weight decay or a bound "
            "max_weight"
        )


def largest_weight(stack: Stack) -> Float[Array, ""]:
    """Largest |w| over all weights of a stack, 0 for a stack without any."""
    weights = jax.tree.leaves([(machine.weights, machine.intra) for machine in stack])
    return jnp.max(jnp.stack([jnp.zeros(()), *(jnp.max(jnp.abs(w)) for w in weights)]))


def _cut(data, num_full, batch_size):
    """Full minibatches, stacked along a new first axis, and what is left after them."""
    end = num_full * batch_size
    full = jax.tree.map(lambda a: a[:end].reshape(num_full, batch_size, *a.shape[1:]), data)
    return full, jax.tree.map(lambda a: a[end:], data)


def _minibatch_step(optimizer, config, carry, stream, batch):
    """One M-step on one minibatch, hidden states sampled first where the E-step is per minibatch."""
    stack, optimizer_state = carry
    visible, hidden = batch
    narrow = _narrowed(stack, config)
    if config.estep == "minibatch":
        hidden = climb(stream, narrow, visible)
    states = join_states(visible, hidden)
    objectives, gradients = zip(
        *(objective_and_gradient(m, s) for m, s in zip(narrow, states, strict=True)), strict=True
    )
    scale = visible.shape[0] / config.batch_size
    loss_gradient = jax.tree.map(
        lambda g, decay: scale * (config.epsilon * g + decay), gradients, _decay(stack, config)
    )
    updates, optimizer_state = optimizer.update(loss_gradient, optimizer_state)
    stack = optax.apply_updates(stack, updates)
    if config.max_weight is not None:
        bound = config.max_weight
        stack = _map_weights(lambda w: jnp.clip(w, -bound, bound), stack)
    return (stack, optimizer_state), sum(objectives)


def _narrowed(stack: Stack, config: TrainConfig) -> Stack:
    """The stack with weights in the precision of matrix products; biases keep theirs."""
    if config.precision == "float32":
        return stack
    return _map_weights(lambda w: w.astype(config.precision), stack)


def _decay(stack: Stack, config: TrainConfig) -> Stack:
    """Gradient of the decay term, an intra-layer weight being one parameter that stands at two places."""
    return tuple(
        BoltzmannMachine(
            biases=tuple(jnp.zeros_like(b) for b in m.biases),
            weights=tuple(config.weight_decay * w for w in m.weights),
            intra=tuple(None if l is None else 2 * config.weight_decay * l for l in m.intra),
        )
        for m in stack
    )


def _map_weights(function, stack: Stack) -> Stack:
    return tuple(
        dataclasses.replace(m, weights=jax.tree.map(function, m.weights), intra=jax.tree.map(function, m.intra))
        for m in stack
    )


def _optimizer(config: TrainConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    if config.schedule == "constant":
        return optax.adam(config.learning_rate)
    steps = config.epochs * steps_per_epoch
    return optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps))


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"got {name}={value}; it takes {allowed}")
