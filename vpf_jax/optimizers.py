"""What turns gradients into updates: the paper's Adam, averages, sparse weights, homeostasis, centring.

Each is an `optax.GradientTransformation` on the stack, or makes one of another, so that they combine with all of Optax.
`averaged`, `sparse` and `centred` keep what they need in the optimizer's state, and leave the machine an ordinary one.

Centring (Montavon and Mueller 2012; Melchior, Fischer and Wiskott, "How to center deep Boltzmann machines", 2016) lets
weights act on x - mu instead of x, mu being running means of the units over completed data:

    z_j = sum_i w_ij (x_i - mu_i) + b'_j = sum_i w_ij x_i + b_j,        b_j = b'_j - sum_i w_ij mu_i

The machine is the same, and its gradient in the parameters (w, b') is, for whatever is minimised,

    dJ/dw_ij - mu_i dJ/db_j - mu_j dJ/db_i      and      dJ/db_j

so that the transformation underneath, its moments and weight decay work in these, and its updates of w and b' are put
back into w and b. A change of mu changes no probability. Not here: what is minimised (`rules`), the steps (`train`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vpf_jax import checks, couplings
from vpf_jax.exporting import exported
from vpf_jax.machine import WEIGHT_FIELDS, BoltzmannMachine, State
from vpf_jax.settings import Settings, setting
from vpf_jax.stack import Stack
from vpf_jax.units import two_valued

SCHEDULES = ("constant", "cosine")
# Share of a minibatch's means in the running means, and 1/t in the t-th step where that is more.
CENTRING_RATE = 0.01

# One vector per layer, for each machine of a stack.
Offsets = tuple[tuple[Float[Array, "*runs _n_l"], ...], ...]


@dataclasses.dataclass(frozen=True)
class Adam(Settings):
    """The paper's optimizer, with the decay rates 0.9 and 0.999."""

    learning_rate: float = setting(1e-3, "Of Adam", above=0)
    schedule: str = setting(
        "constant", "Of the learning rate, the same throughout or falling from it to 0 over the run", choices=SCHEDULES
    )
    averaging: float = setting(
        0.0,
        "Share that a step leaves of the average of the weights, 1 for their plain mean, 0 for no average",
        least=0,
        most=1,
    )

    def transformation(self, num_steps: int) -> optax.GradientTransformation:
        """The Optax transformation of a run of so many steps."""
        constant = self.schedule == "constant"
        rate = self.learning_rate if constant else optax.cosine_decay_schedule(self.learning_rate, num_steps)
        return averaged(optax.adam(rate), self.averaging) if self.averaging else optax.adam(rate)


@exported("vpf_jax.AveragedState")
class AveragedState(NamedTuple):
    """Of `averaged`."""

    inner: Any
    average: Any
    """In the structure of the parameters."""
    steps: Int[Array, "*runs"]
    """That are averaged."""


@exported("vpf_jax.CentredState")
class CentredState(NamedTuple):
    """Of `centred`."""

    inner: Any
    offsets: Offsets
    """Running means of the units' values."""
    steps: Int[Array, "*runs"]
    """Minibatches in them."""


@exported("vpf_jax.SteppedState")
class SteppedState(NamedTuple):
    """Of `sparse`."""

    inner: Any
    steps: Int[Array, "*runs"]


def averaged(inner: optax.GradientTransformation, decay: float) -> optax.GradientTransformationExtraArgs:
    """The transformation, with an average of the parameters beside it, which `average_of` finds in its state.

    After each step the average moves towards the parameters from which the step was taken, by 1 - decay of the way, or
    by 1/t in step t where that is more: early parameters leave no trace, and decay = 1 is their plain mean (Polyak and
    Juditsky 1992).

    Raises:
      SettingError: a decay that is not above 0 and at most 1, and, of the update, no parameters.
    """
    checks.require(0 < checks.finite_number("decay", decay) <= 1, "decay", decay, "above 0 and at most 1")
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> AveragedState:
        return AveragedState(inner.init(params), jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: AveragedState, params: Any = None, **more: Any) -> tuple[Any, AveragedState]:
        checks.require(params is not None, "params", params, "the parameters, which are averaged")
        updates, inner_state = inner.update(updates, state.inner, params, **more)
        steps = state.steps + 1
        share = jnp.maximum(1 - decay, 1 / steps)
        average = jax.tree.map(lambda a, p: a + share.astype(a.dtype) * (p - a), state.average, params)
        return updates, AveragedState(inner_state, average, steps)

    return optax.GradientTransformationExtraArgs(init, update)


def average_of(optimizer_state: Any) -> Any:
    """The average that `averaged` keeps, wherever in an optimizer's state; None where nothing is averaged."""
    found = [node for node in jax.tree.leaves(optimizer_state, is_leaf=_is_averaged) if _is_averaged(node)]
    return found[0].average if found else None


def sparse(
    inner: optax.GradientTransformation, threshold: float | Callable[[Array], Array | float]
) -> optax.GradientTransformationExtraArgs:
    """The transformation, after whose steps weights nearer to 0 than a threshold are 0, and others nearer by it.

    That is the proximal step of a penalty on the sum of |w| (Daubechies, Defrise and De Mol 2004). Of a rate r and a
    threshold of c r a weight stays at 0 where the mean of its gradient is less than about c of its size. Biases are
    left alone.

    Args:
      inner: such as `optax.adam(rate)`.
      threshold: at least 0; or a schedule of it, a function of the number of steps, as a learning rate is.

    Raises:
      SettingError: a threshold below 0, and, of the update, no parameters.
    """
    if not callable(threshold):
        fits = checks.finite_number("threshold", threshold) >= 0
        checks.require(fits, "threshold", threshold, "at least 0, or a schedule")
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> SteppedState:
        return SteppedState(inner.init(params), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: SteppedState, params: Any = None, **more: Any) -> tuple[Any, SteppedState]:
        checks.require(params is not None, "params", params, "the parameters, which are thresholded")
        updates, inner_state = inner.update(updates, state.inner, params, **more)
        least = threshold(state.steps) if callable(threshold) else threshold

        def thresholded(step: Array, weight: Array) -> Array:
            moved = weight + step
            return jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - least, 0) - weight

        def of(step: BoltzmannMachine, machine: BoltzmannMachine) -> BoltzmannMachine:
            pairs = {name: (getattr(step, name), getattr(machine, name)) for name in WEIGHT_FIELDS}
            return dataclasses.replace(step, **{name: jax.tree.map(thresholded, *pair) for name, pair in pairs.items()})

        return tuple(map(of, updates, params)), SteppedState(inner_state, state.steps + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def homeostatic(
    inner: optax.GradientTransformation, activity: float, rate: float
) -> optax.GradientTransformationExtraArgs:
    """The transformation, but hidden biases move so that each hidden unit is on in a given share of the examples.

    After each step the bias of a hidden unit changes by rate times the share less its mean over the minibatch
    (homeostasis, as in Foldiak 1990, and in Lee, Ekanadham and Ng 2008). Probability flow needs something of the kind
    where hidden states are sampled just before each step: its expected gradient by hidden biases then is 0, as flips of
    visible units do not hold them and those of hidden units balance.

    Args:
      inner: moves all other parameters. Its `update` may need `states`, as that of the result does: for each machine
        one array [batch, n_l] per layer.
      activity: share of the upper value of two-valued hidden units, above 0 and below 1.
      rate: above 0, in units of a bias.

    Raises:
      SettingError: numbers out of range, and, of the update, no states.
      ValueError: of the update, hidden units of more than two values.
    """
    fits = 0 < checks.finite_number("activity", activity) < 1
    checks.require(fits, "activity", activity, "above 0 and below 1")
    checks.require(checks.finite_number("rate", rate) > 0, "rate", rate, "above 0")
    inner = optax.with_extra_args_support(inner)

    def update(
        updates: Stack, state: Any, params: Any = None, *, states: tuple[State, ...] | None = None, **more: Any
    ) -> tuple[Stack, Any]:
        checks.require(states is not None, "states", states, "those of the stack, whose means the biases follow")
        updates, state = inner.update(updates, state, params, states=states, **more)

        def of(machine: BoltzmannMachine, layers: State) -> BoltzmannMachine:
            biases = list(machine.biases)
            for i in range(1, len(biases)):
                unit = two_valued(machine.layer_units[i], "homeostasis")
                mean = jnp.mean(unit.share(layers[i].astype(biases[i].dtype)), axis=0)
                biases[i] = rate * (activity - mean)
            return dataclasses.replace(machine, biases=tuple(biases))

        return tuple(map(of, updates, states or ())), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def centred(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The transformation in the parameters of the centred stack.

    Its `update` takes `states`, too: for each machine of the stack one array [batch, n_l] per layer, completed data.

    Raises:
      SettingError: of the update, no states.
    """
    inner = optax.with_extra_args_support(inner)

    def init(stack: Stack) -> CentredState:
        offsets = tuple(jax.tree.map(jnp.zeros_like, machine.biases) for machine in stack)
        return CentredState(inner.init(stack), offsets, jnp.zeros((), jnp.int32))

    def update(
        updates: Stack,
        state: CentredState,
        params: Stack | None = None,
        *,
        states: tuple[State, ...] | None = None,
        **more: Any,
    ) -> tuple[Stack, CentredState]:
        checks.require(states is not None, "states", states, "those of the stack, whose means are the offsets")
        steps = state.steps + 1
        share = jnp.maximum(CENTRING_RATE, 1 / steps)

        def moved(mu: Array, x: Array) -> Array:
            return mu + share.astype(mu.dtype) * (jnp.mean(x.astype(mu.dtype), axis=0) - mu)

        offsets = jax.tree.map(moved, state.offsets, states)
        gradients = tuple(map(_gradient_of_centred, updates, offsets))
        updates, inner_state = inner.update(gradients, state.inner, params, states=states, **more)
        return tuple(map(_update_of_ordinary, updates, offsets)), CentredState(inner_state, offsets, steps)

    return optax.GradientTransformationExtraArgs(init, update)


def _gradient_of_centred(gradient: BoltzmannMachine, mu: tuple[Array, ...]) -> BoltzmannMachine:
    """By the weights at fixed biases of the centred machine."""
    by_bias, directed = gradient.biases, gradient.backward is not None

    def less(block: Any, *some: Any) -> Any:
        return jax.tree.map(lambda g, *parts: g - sum(parts), block, *some)

    pairs = list(enumerate(gradient.weights))
    up = [couplings.outer(w, mu[i], by_bias[i + 1]) for i, w in pairs]
    down = [couplings.outer(w, by_bias[i], mu[i + 1]) for i, w in pairs]
    inside: list[Any] = []
    for i, l in enumerate(gradient.intra):
        if l is not None:
            part = couplings.outer(l, mu[i], by_bias[i])
            owners = gradient.owners(i)
            l = l - (couplings.hollow(part, owners) if directed else couplings.tied(part, owners))
        inside.append(l)
    return dataclasses.replace(
        gradient,
        weights=tuple(less(w, up[i]) if directed else less(w, up[i], down[i]) for i, w in pairs),
        intra=tuple(inside),
        backward=None if gradient.backward is None else tuple(map(less, gradient.backward, down)),
    )


def _update_of_ordinary(update: BoltzmannMachine, mu: tuple[Array, ...]) -> BoltzmannMachine:
    """The same step with the biases of the ordinary machine."""
    biases = []
    for i, b in enumerate(update.biases):
        if i > 0:
            b = b - couplings.up(update.weights[i - 1], mu[i - 1], b.dtype)
        if i < len(update.weights):
            b = b - couplings.down(update.downward[i], mu[i + 1], b.dtype)
        if (intra := update.intra[i]) is not None:
            b = b - couplings.up(intra, mu[i], b.dtype)
        biases.append(b)
    return dataclasses.replace(update, biases=tuple(biases))


def _is_averaged(node: Any) -> bool:
    return isinstance(node, AveragedState)
