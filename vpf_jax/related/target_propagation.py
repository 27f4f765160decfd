"""Target propagation: variational EM with a top-down and a bottom-up network, no gradient passing between layers.

Bengio, Lee, Bornschein, Mesnard and Lin, "Towards Biologically Plausible Deep Learning", arXiv 1502.04156. Two hidden
layers over an image x in [0, 1]; feed-forward maps f with weights W and biases B, feedback maps g with weights V and
biases C of their own, tied nowhere:

    f1(x)  = softplus(x W1 + B1)        g1(h1) = sigmoid(h1 V1 + C1)
    f2(h1) = sigmoid(h1 W2 + B2)        g2(h2) = softplus(h2 V2 + C2)

E-step (`infer`): from h1 = f1(x), h2 = f2(h1), repeat one after the other, the second line with the new h2,

    h2 <- h2 + delta (f2(h1) - f2(g2(h2)))
    h1 <- h1 + delta (f1(x) - f1(g1(h1))) + a (g2(h2) - h1)

f(x) - f(g(h)) stands for the derivative of log p(x | h), which it is, up to the variance, for linear maps with f the
transpose of g around a Gaussian. M-step (`train_epoch`): with the states held, each map learns its own target from a
corrupted input. A synapse that changes by S_i dV_j/dt while the presynaptic rate S_i is held and V_j moves from
f(S)_j to the inferred state changes by S_i (V_T - V_0)_j in all: the delta rule, and the descent direction of the
squared error but for the factor f'_j.

The model p(x, h1, h2) = p(x | h1) p(h1 | h2) p(h2) that `log_joint` evaluates is our reading of the paper, which leaves
the widths open: x Bernoulli with means g1(h1); h1 Gaussian around g2(h2), one variance for all units; h2 Gaussian, a
mean and a variance per unit. `fit_prior` fits them to the inferred states. The second line above climbs log p(x | h1) +
log p(h1 | h2) where that variance is delta / a (`Inference.h1_variance`), which is far wider than the fitted one: the
choice decides whether log p(x, h) rises during inference (`log_joint_curve`).

Here: inference, learning, sampling (`generate`), in-painting (`inpaint`). Not here: supervised target propagation;
difference target propagation; the score of samples (`vpf_jax.evaluate.parzen`); the loop over epochs (`experiments`).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from vpf_jax import checks
from vpf_jax.checks import AnyArray
from vpf_jax.settings import Settings, setting
from vpf_jax.stack import rows_at_once

Map = Callable[[Array], Array]

# Of two hidden layers over 28 x 28 pixels.
SIZES = (784, 1000, 100)


class Affine(NamedTuple):
    """Weights and biases of one map."""

    weights: Float[Array, "n_in n_out"]
    biases: Float[Array, " n_out"]

    def __call__(self, inputs: Float[Array, " n_in"]) -> Float[Array, " n_out"]:
        """The input of the units of the layer that the map leads to."""
        return inputs @ self.weights + self.biases


class Parameters(NamedTuple):
    """The four maps; also used for gradients."""

    f1: Affine
    """W1 [n_0, n_1], B1 [n_1]."""
    f2: Affine
    """W2 [n_1, n_2], B2 [n_2]."""
    g1: Affine
    """V1 [n_1, n_0], C1 [n_0]."""
    g2: Affine
    """V2 [n_2, n_1], C2 [n_1]."""

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Units of the visible and the two hidden layers."""
        n_0, n_1 = self.f1.weights.shape
        return n_0, n_1, self.f2.weights.shape[1]

    @property
    def maps(self) -> "Maps":
        """The maps with the paper's activation functions."""
        return Maps(
            f1=lambda x: jax.nn.softplus(self.f1(x)),
            f2=lambda h1: jax.nn.sigmoid(self.f2(h1)),
            g1=lambda h1: jax.nn.sigmoid(self.g1(h1)),
            g2=lambda h2: jax.nn.softplus(self.g2(h2)),
        )


class Maps(NamedTuple):
    """What inference needs: four functions of single vectors."""

    f1: Map
    """[n_0] -> [n_1]."""
    f2: Map
    """[n_1] -> [n_2]."""
    g1: Map
    """[n_1] -> [n_0]."""
    g2: Map
    """[n_2] -> [n_1]."""


class HiddenLayers(NamedTuple):
    """States of the hidden layers."""

    h1: Float[Array, "*batch n_1"]
    h2: Float[Array, "*batch n_2"]


class Prior(NamedTuple):
    """The Gaussians of the model, fitted to inferred states."""

    mean: Float[Array, " n_2"]
    """Of h2."""
    variance: Float[Array, " n_2"]
    """Of h2, per unit, not negative."""
    h1_variance: Float[Array, ""]
    """Of h1 around g2(h2), one for all units; `fit_prior` gives the mean square of h1 - g2(h2)."""


class LogJoint(NamedTuple):
    """The three terms of log p(x, h1, h2), in nats."""

    visible: Float[Array, "*batch"]
    """Log p(x | h1). For a grey pixel, the mean of it over a bit that is 1 with probability x."""
    h1: Float[Array, "*batch"]
    """Log p(h1 | h2)."""
    h2: Float[Array, "*batch"]
    """Log p(h2)."""

    @property
    def total(self) -> Float[Array, "*batch"]:
        """Log p(x, h1, h2)."""
        return self.visible + self.h1 + self.h2


class Losses(NamedTuple):
    """Mean over the batch of the squared error of each map, summed over its output units."""

    f1: Float[Array, ""]
    f2: Float[Array, ""]
    g1: Float[Array, ""]
    g2: Float[Array, ""]


class Inputs(NamedTuple):
    """What each map sees in learning: corrupted states of the layer that it reads."""

    f1: Float[Array, "batch n_0"]
    f2: Float[Array, "batch n_1"]
    g1: Float[Array, "batch n_1"]
    g2: Float[Array, "batch n_2"]


@dataclasses.dataclass(frozen=True)
class Inference(Settings):
    """How states are inferred; the defaults are those of learning.

    Raises:
      SettingError: a value outside its range.
    """

    num_steps: int = setting(15, "N", least=0)
    rate: float = setting(0.1, "delta, of both layers' targets", above=0)
    top_down: float = setting(0.001, "a, the pull of g2(h2) on h1", least=0)

    @property
    def h1_variance(self) -> float:
        """Of h1 around g2(h2) in the model whose log p(x, h1 | h2) the steps of h1 climb; infinite without top_down."""
        return self.rate / self.top_down if self.top_down else math.inf


LEARNING = Inference()
# The encoder of `generate` and `inpaint`: the layer above is trusted more.
ENCODING = Inference(top_down=0.3)
# Of the paper's curve of log p(x, h).
OBSERVED = Inference(num_steps=20)


@dataclasses.dataclass(frozen=True)
class TargetConfig(Settings):
    """Settings of learning; the defaults are the paper's.

    Raises:
      SettingError: a value outside its range.
    """

    inference: Inference = LEARNING
    """Of the E-step."""
    feedback_noise: float = setting(0.3, "Standard deviation of the noise on h1 as g1 sees it", least=0)
    forward_noise: float = setting(0.5, "Standard deviation of the noise on what f1 and f2 see", least=0)
    spikes: int = setting(3, "Bernoulli samples of h2 whose mean g2 sees", least=1)
    batch_size: int = setting(100, "Examples per step, up to the number of examples", least=1)
    learning_rate: float = setting(1e-5, "Of centred RMSprop", above=0)
    """With momentum 0.9 a parameter moves ten times as far."""
    decay: float = setting(0.95, "Of the running means of the gradient and its square", least=0, below=1)
    momentum: float = setting(0.9, "Of RMSprop", least=0, below=1)
    stabiliser: float = setting(1e-4, "Added to the variance of the gradient, under the root", above=0)


@dataclasses.dataclass(frozen=True)
class TargetPreset:
    """What the paper and its released code set differently; they learn alike."""

    widening: float
    """Factor on the standard deviations of the prior of h2 (`widen`), of the model that is sampled."""
    epochs: int


PRESETS = {
    # "paper": the variance is multiplied by 4; "released": the standard deviation is.
    "paper": TargetPreset(widening=2.0, epochs=20),
    "released": TargetPreset(widening=4.0, epochs=20),
}


@struct.dataclass
class TargetState:
    """Everything that a run needs to go on; a pytree."""

    parameters: Parameters
    optimizer: optax.OptState
    key: PRNGKeyArray
    """Constant through a run: epoch e draws from fold_in(key, e)."""
    epoch: Int[Array, ""]
    """Number of finished epochs."""


def init_parameters(key: PRNGKeyArray, sizes: tuple[int, int, int] = SIZES) -> Parameters:
    """Random orthogonal weights, all singular values 1, and biases 0.

    Args:
      key: a random key.
      sizes: units of the visible and the two hidden layers, positive.

    Raises:
      ValueError: sizes that are not three positive integers.
    """
    n_0, n_1, n_2 = checks.positive_integers("sizes", sizes, "three positive integers", 3, 3)
    checks.random_key(key)
    orthogonal = jax.nn.initializers.orthogonal()
    f1_key, f2_key, g1_key, g2_key = jax.random.split(key, 4)

    def affine(key: PRNGKeyArray, n_in: int, n_out: int) -> Affine:
        return Affine(orthogonal(key, (n_in, n_out)), jnp.zeros(n_out))

    return Parameters(
        f1=affine(f1_key, n_0, n_1),
        f2=affine(f2_key, n_1, n_2),
        g1=affine(g1_key, n_1, n_0),
        g2=affine(g2_key, n_2, n_1),
    )


def target_direction(
    f: Map, g: Map, below: Float[Array, " n_below"], above: Float[Array, " n_above"]
) -> Float[Array, " n_above"]:
    """f(below) - f(g(above)): the direction in which the state above explains the state below better.

    Equal to the gradient of -||below - g(above)||^2 / 2 with respect to the state above where the maps are linear and f
    is the transpose of g (the paper's argument for it); in general an approximation of it.
    """
    return f(below) - f(g(above))


def inference_step(
    maps: Maps, visible: Float[Array, " n_0"], hidden: HiddenLayers, inference: Inference
) -> HiddenLayers:
    """One step of both hidden layers, the upper one first."""
    h1, h2 = hidden
    h2 = h2 + inference.rate * target_direction(maps.f2, maps.g2, h1, h2)
    # Both terms at the h1 of before the step, as the formula has it.
    h1 = h1 + inference.rate * target_direction(maps.f1, maps.g1, visible, h1) + inference.top_down * (maps.g2(h2) - h1)
    return HiddenLayers(h1, h2)


def infer_single(maps: Maps, visible: Float[Array, " n_0"], inference: Inference = LEARNING) -> HiddenLayers:
    """States of the hidden layers inferred from one example, by any maps."""
    h1 = maps.f1(visible)

    def step(hidden: HiddenLayers, _: None) -> tuple[HiddenLayers, None]:
        return inference_step(maps, visible, hidden, inference), None

    return jax.lax.scan(step, HiddenLayers(h1, maps.f2(h1)), length=inference.num_steps)[0]


def infer(
    parameters: Parameters, visible: Shaped[AnyArray, "batch n_0"], inference: Inference = LEARNING
) -> HiddenLayers:
    """States of the hidden layers inferred from images: h1 [batch, n_1], h2 [batch, n_2].

    h2 may leave [0, 1] and h1 may become negative: nothing clips them.

    Raises:
      ValueError: images that do not fit, or, where they are concrete, values outside [0, 1].
    """
    visible = _check_visible(parameters, visible)
    return jax.vmap(lambda x: infer_single(parameters.maps, x, inference))(visible)


def fit_prior(parameters: Parameters, visible: Shaped[AnyArray, "batch n_0"], inference: Inference = LEARNING) -> Prior:
    """Mean and variance of the inferred h2 over the images, and the mean square of h1 - g2(h2).

    The variance is the mean square of deviations from the mean. As the mean of squares minus the square of the mean it
    would be a difference of nearly equal numbers for units that are nearly constant, and negative in float32.

    Raises:
      ValueError: as `infer`.
    """
    visible = _check_visible(parameters, visible)

    def of_one(x: Float[Array, " n_0"]) -> tuple[Array, Array]:
        h1, h2 = infer_single(parameters.maps, x, inference)
        return h2, jnp.mean((h1 - parameters.maps.g2(h2)) ** 2)

    h2, squares = jax.lax.map(of_one, visible, batch_size=rows_at_once(sum(parameters.sizes)))
    mean, variance = mean_and_variance(h2)
    return Prior(mean, variance, jnp.mean(squares))


def widen(prior: Prior, factor: float | Float[Array, ""]) -> Prior:
    """The prior with the standard deviations of h2 multiplied by a factor, which may be traced.

    Raises:
      ValueError: a concrete factor that is negative or not finite.
    """
    checks.non_negative("factor", factor)
    return prior._replace(variance=factor**2 * prior.variance)


def mean_and_variance(values: Float[Array, "n d"]) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """Mean and variance over the first axis in two passes; the variance is never negative."""
    mean = jnp.mean(values, axis=0)
    return mean, jnp.mean((values - mean[None]) ** 2, axis=0)


def log_joint(parameters: Parameters, prior: Prior, visible: Float[Array, " n_0"], hidden: HiddenLayers) -> LogJoint:
    """Log p(x, h1, h2) of one example under the model of the module's docstring; -inf or NaN where a variance is 0."""
    h1, h2 = hidden
    field = parameters.g1(h1)
    return LogJoint(
        visible=jnp.sum(visible * field - jax.nn.softplus(field)),
        h1=_log_normal(h1, parameters.maps.g2(h2), prior.h1_variance),
        h2=_log_normal(h2, prior.mean, prior.variance),
    )


def log_joint_curve(
    parameters: Parameters,
    prior: Prior,
    visible: Shaped[AnyArray, "batch n_0"],
    inference: Inference = OBSERVED,
) -> LogJoint:
    """Log p(x, h) of each image before inference and after each of its steps.

    Returns:
      Terms of shape [batch, num_steps + 1].

    Raises:
      ValueError: as `infer`.
    """
    visible = _check_visible(parameters, visible)
    maps = parameters.maps

    def of_one(x: Float[Array, " n_0"]) -> LogJoint:
        def step(hidden: HiddenLayers, _: None) -> tuple[HiddenLayers, LogJoint]:
            hidden = inference_step(maps, x, hidden, inference)
            return hidden, log_joint(parameters, prior, x, hidden)

        start = infer_single(maps, x, dataclasses.replace(inference, num_steps=0))
        _, later = jax.lax.scan(step, start, length=inference.num_steps)
        first = log_joint(parameters, prior, x, start)
        return jax.tree.map(lambda one, rest: jnp.concatenate([one[None], rest]), first, later)

    return jax.lax.map(of_one, visible, batch_size=rows_at_once(sum(parameters.sizes)))


def corrupt(
    key: PRNGKeyArray, visible: Float[Array, "batch n_0"], hidden: HiddenLayers, config: TargetConfig
) -> Inputs:
    """What each map sees of the states: Gaussian noise on x and h1, means of Bernoulli samples of h2.

    Inferred h2 may lie outside [0, 1]; as probabilities they are clipped.
    """
    f1_key, f2_key, g1_key, g2_key = jax.random.split(key, 4)
    h1, h2 = hidden

    def noisy(key: PRNGKeyArray, states: Array, deviation: float) -> Array:
        return states + deviation * jax.random.normal(key, states.shape, states.dtype)

    spikes = jax.random.bernoulli(g2_key, jnp.clip(h2, 0, 1)[None], (config.spikes, *h2.shape))
    return Inputs(
        f1=noisy(f1_key, visible, config.forward_noise),
        f2=noisy(f2_key, h1, config.forward_noise),
        g1=noisy(g1_key, h1, config.feedback_noise),
        g2=jnp.mean(spikes.astype(h2.dtype), axis=0),
    )


def layer_losses(
    parameters: Parameters, inputs: Inputs, visible: Float[Array, "batch n_0"], hidden: HiddenLayers
) -> Losses:
    """The squared error of each map against the state that it should give, all states held."""
    maps = parameters.maps
    targets = Inputs(f1=hidden.h1, f2=hidden.h2, g1=visible, g2=hidden.h1)
    return Losses(
        *(
            jnp.mean(jnp.sum((jax.vmap(function)(seen) - target) ** 2, axis=1))
            for function, seen, target in zip(maps, inputs, targets, strict=True)
        )
    )


def layer_gradients(
    parameters: Parameters, inputs: Inputs, visible: Float[Array, "batch n_0"], hidden: HiddenLayers
) -> tuple[Losses, Parameters]:
    """Losses, and of each map's parameters the gradient of its own loss.

    The states are arguments and no functions of the parameters, so that a loss depends on its own map alone: the
    gradient of the sum of the losses is the four local gradients side by side.
    """

    def total(parameters: Parameters) -> tuple[Array, Losses]:
        losses = layer_losses(parameters, inputs, visible, hidden)
        return sum(losses, jnp.zeros(())), losses

    gradients, losses = jax.grad(total, has_aux=True)(parameters)
    return losses, gradients


def init_state(key: PRNGKeyArray, sizes: tuple[int, int, int], config: TargetConfig) -> TargetState:
    """The state before the first epoch.

    Raises:
      ValueError: as `init_parameters`.
    """
    _check_config(config)
    checks.random_key(key)
    parameters_key, key = jax.random.split(key)
    parameters = init_parameters(parameters_key, sizes)
    return TargetState(parameters, _optimizer(config).init(parameters), key, jnp.zeros((), jnp.int32))


def train_epoch(
    state: TargetState, visible: Shaped[AnyArray, "num_examples n_0"], *, config: TargetConfig
) -> tuple[TargetState, Losses]:
    """One pass over the images in a fresh random order, in full minibatches; a rest smaller than one is left out.

    Args:
      state: the state so far; donated, use the returned one.
      visible: values in [0, 1].
      config: the settings, static.

    Returns:
      The next state, and the losses averaged over the minibatches, each at its own step's parameters.

    Raises:
      ValueError: images that do not fit, values outside [0, 1], or fewer of them than a minibatch.
    """
    _check_config(config)
    if not isinstance(state, TargetState):
        raise ValueError(f"got a {type(state).__name__} for the state; it takes a TargetState, as init_state gives")
    checks.array("a state", state.epoch)
    checks.from_zero_to_one("images", visible)
    return _epoch(state, visible, config=config)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def _epoch(
    state: TargetState, visible: Float[Array, "num_examples n_0"], *, config: TargetConfig
) -> tuple[TargetState, Losses]:
    """`train_epoch` inside whatever compiles it."""
    visible = _check_visible(state.parameters, visible)
    num_batches = visible.shape[0] // config.batch_size
    if num_batches == 0:
        raise ValueError(
            f"got batch_size={config.batch_size} with {visible.shape[0]} images; it is allowed up to their number"
        )
    order_key, noise_key = jax.random.split(jax.random.fold_in(state.key, state.epoch))
    order = jax.random.permutation(order_key, visible.shape[0])[: num_batches * config.batch_size]
    optimizer = _optimizer(config)

    def step(carry: tuple[Parameters, optax.OptState], inputs: tuple[Array, Array]):
        parameters, optimizer_state = carry
        key, rows = inputs
        batch = visible[rows]
        hidden = infer(parameters, batch, config.inference)
        losses, gradients = layer_gradients(parameters, corrupt(key, batch, hidden, config), batch, hidden)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state)
        return (optax.apply_updates(parameters, updates), optimizer_state), losses

    start = state.parameters, state.optimizer
    batches = jax.random.split(noise_key, num_batches), order.reshape(num_batches, config.batch_size)
    (parameters, optimizer_state), losses = jax.lax.scan(step, start, batches)
    return TargetState(parameters, optimizer_state, state.key, state.epoch + 1), jax.tree.map(jnp.mean, losses)


def generate(
    key: PRNGKeyArray,
    parameters: Parameters,
    prior: Prior,
    num_samples: int,
    num_rounds: int = 3,
    inference: Inference = ENCODING,
) -> Float[Array, "num_samples n_0"]:
    """Visible means of samples: h2 from the prior, decoded, then encoded and decoded again several times.

    Args:
      key: a random key.
      parameters: of the maps.
      prior: of `fit_prior`, for good samples widened by `PRESETS` (`widen`).
      num_samples: at least 1.
      num_rounds: times that an image is encoded and decoded, at least 0. 0 is the direct sampler: p(x | h) p(h), h1 at
        its mean.
      inference: the encoder.

    Raises:
      ValueError: a number outside its range.
    """
    num_samples = checks.integer("num_samples", num_samples, 1)
    num_rounds = checks.integer("num_rounds", num_rounds, 0)
    checks.random_key(key)
    for number in jax.tree.leaves((parameters, prior)):
        checks.finite("the parameters and the prior", number)
    maps = parameters.maps
    normal = jax.random.normal(key, (num_samples, *prior.mean.shape), prior.mean.dtype)
    h2 = prior.mean[None] + jnp.sqrt(prior.variance)[None] * normal

    def of_one(h2: Float[Array, " n_2"]) -> Float[Array, " n_0"]:
        x = maps.g1(maps.g2(h2))
        return jax.lax.fori_loop(0, num_rounds, lambda _, x: maps.g1(infer_single(maps, x, inference).h1), x)

    return jax.lax.map(of_one, h2, batch_size=rows_at_once(sum(parameters.sizes)))


def randomise(
    key: PRNGKeyArray, visible: Shaped[AnyArray, "batch n_0"], mask: Bool[AnyArray, "batch n_0"]
) -> Float[Array, "batch n_0"]:
    """Uniform random values in [0, 1) where the mask is True, the image elsewhere.

    Raises:
      ValueError: a mask of another shape, or of other than booleans.
    """
    checks.random_key(key)
    visible = jnp.asarray(checks.array("images", visible))
    mask = _check_mask(mask, visible)
    return jnp.where(mask, jax.random.uniform(key, visible.shape, visible.dtype), visible)


def inpaint(
    parameters: Parameters,
    corrupted: Shaped[AnyArray, "batch n_0"],
    mask: Bool[AnyArray, "batch n_0"],
    num_steps: int = 20,
    inference: Inference = ENCODING,
) -> Float[Array, "batch n_0"]:
    """Fills in the pixels where the mask is True; the others are held in every step.

    Args:
      parameters: of the maps.
      corrupted: images in [0, 1]; where the mask is True, what the first encoding sees (`randomise`).
      mask: True where a pixel is unknown.
      num_steps: times that an image is encoded and decoded, at least 1.
      inference: the encoder.

    Returns:
      Visible means inside the mask, `corrupted` outside it, bit for bit.

    Raises:
      ValueError: images or a mask that do not fit, values outside [0, 1], or a number of steps below 1.
    """
    corrupted = _check_visible(parameters, corrupted)
    mask = _check_mask(mask, corrupted)
    num_steps = checks.integer("num_steps", num_steps, 1)
    maps = parameters.maps

    def of_one(given: tuple[Array, Array]) -> Float[Array, " n_0"]:
        known, unknown = given

        def step(_: Array, x: Array) -> Array:
            return jnp.where(unknown, maps.g1(infer_single(maps, x, inference).h1), known)

        return jax.lax.fori_loop(0, num_steps, step, known)

    return jax.lax.map(of_one, (corrupted, mask), batch_size=rows_at_once(sum(parameters.sizes)))


def _check_config(config: TargetConfig) -> None:
    if not isinstance(config, TargetConfig):
        raise ValueError(f"got a {type(config).__name__} for the settings; it takes a TargetConfig")


def _optimizer(config: TargetConfig) -> optax.GradientTransformation:
    """Centred RMSprop as it was written for Theano: g / sqrt(E[g^2] - E[g]^2 + stabiliser), then momentum.

    The running means have the present gradient in them, and their start from 0 is not corrected.
    """
    return optax.rmsprop(
        config.learning_rate,
        decay=config.decay,
        eps=config.stabiliser,
        # Under the root 1e-4 damps gradients that vary by less than 0.01; outside it, by less than 0.0001.
        eps_in_sqrt=True,
        centered=True,
        momentum=config.momentum,
    )


def _log_normal(values: Array, mean: Array, variance: Array) -> Float[Array, ""]:
    """Summed log density of independent Gaussians."""
    return -0.5 * jnp.sum((values - mean) ** 2 / variance + jnp.log(2 * jnp.pi * variance))


def _check_visible(parameters: Parameters, visible: Shaped[AnyArray, "batch n_0"]) -> Float[Array, "batch n_0"]:
    """The images in the precision of the parameters, or ValueError."""
    for number in jax.tree.leaves(parameters):
        checks.finite("the parameters", number)
    checks.array("images", visible)
    n_0 = parameters.sizes[0]
    shape = jnp.shape(visible)
    if len(shape) != 2 or shape[1] != n_0 or shape[0] == 0:
        raise ValueError(f"got images of shape {shape}; the maps take [batch, {n_0}], batch at least 1")
    checks.from_zero_to_one("images", visible)
    return jnp.asarray(visible).astype(parameters.f1.weights.dtype)


def _check_mask(mask: Bool[AnyArray, "batch n_0"], images: Float[Array, "batch n_0"]) -> Bool[Array, "batch n_0"]:
    mask = jnp.asarray(checks.array("a mask", mask, "an array of booleans"))
    if mask.shape != images.shape or mask.dtype != bool:
        raise ValueError(
            f"got a mask of shape {mask.shape} and dtype {mask.dtype} for images of shape {images.shape}; it takes "
            "booleans, one for each pixel"
        )
    return mask
