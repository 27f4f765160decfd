"""RBMs whose synapses are -1 or +1, learnt as a factorised posterior: variational EM with a dual network as E-step.

Haiping Huang, "Variational mean-field theory for training restricted Boltzmann machines with binary synapses", arXiv
1911.07662; Xiangming Meng, arXiv 2007.04676, for the update in natural parameters. Visible units sigma_i, hidden units
h_a and synapses xi_ia are all -1 or +1, without biases:

    p(sigma, h | xi) proportional to exp(beta sum_ia xi_ia sigma_i h_a / sqrt N)

Learnt are the means lambda_ia in (-1, 1) of independent synapses. Under them X_a = sum_i xi_ia sigma_i / sqrt N is
nearly normal, with mean G_a = sum_i lambda_ia sigma_i / sqrt N and variance Xi_a^2 = sum_i (1 - lambda_ia^2) / N. What
rises is, over M examples,

    L = - KL(q || prior) + sum_mu sum_a E log cosh(beta (G_a + Xi_a z)) - M E_z log Z(z)
    Z(z) = sum_sigma prod_a cosh(beta (G_a(sigma) + Xi_a z_a)),    z standard normal, one number per hidden unit

with E_z over drawn z. Z(z) belongs to the dual network: an RBM with couplings lambda / sqrt N and fields Xi_a z_a on
its hidden units. Its correlations C_ia = <sigma_i h_a> and means m_a = <h_a> are the E-step, exact by a sum over the
hidden states or approximate by message passing; the M-step is one step along

    dL / d lambda_ia = atanh(prior) - atanh(lambda_ia)
        + beta / sqrt N sum_mu sigma_i <tanh> - beta^2 lambda_ia / N sum_mu <1 - tanh^2>
        - M beta / sqrt N E_z[C_ia - beta lambda_ia / sqrt N (1 - m_a^2)]

L is a surrogate and no bound: the z of one hidden unit is the same for all sigma, as if X_a varied with the synapses by
the same amount everywhere, and log Z is then too small where lambda is near 0. At lambda = 0 all gradients are 0 by
symmetry, so learning starts beside it. Functions take one data set and one draw of z, or several draws where they say
so; runs from several seeds are mapped (`jax.vmap`). Not here: images, files, the loop over epochs.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Num, PRNGKeyArray

from vpf_jax import checks
from vpf_jax.machine import BoltzmannMachine
from vpf_jax.settings import Settings, setting

MSTEPS = ("huang", "meng")
SYNAPSE_ESTEPS = ("exact", "messages")
# Bound on |lambda| that Huang states; atanh of it is 6.1.
LARGEST_MEAN = 0.99999
# Hidden units over whose states a sum is formed.
MOST_SUMMED = 12
# Of the normal distribution, for the examples' term.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(30)
_WEIGHTS = _WEIGHTS / np.sum(_WEIGHTS)


@dataclasses.dataclass(frozen=True)
class SynapseConfig(Settings):
    """Settings of learning.

    Raises:
      SettingError: a value outside its range.
    """

    rule: str = setting("huang", "Of the M-step, Adam in lambda or a step of the natural gradient", choices=MSTEPS)
    estep: str = setting("exact", "Of the dual network, exact for up to 12 hidden units", choices=SYNAPSE_ESTEPS)
    beta: float = setting(1.0, "Inverse temperature", above=0)
    prior_mean: float = setting(0.0, "Prior mean of every synapse", above=-1, below=1)
    learning_rate: float = setting(0.1, "Of Adam, of Huang's rule", above=0)
    mixing_rate: float = setting(0.1, "r of Meng's rule", above=0, most=1)
    """theta = (1 - r) theta + r (its value where the gradient is 0)."""
    num_iterations: int = setting(100, "Iterations of message passing at most", least=1)
    tolerance: float = setting(1e-5, "Largest change of a message at which message passing stops", least=0)
    damping: float = setting(0.5, "Share of the old message in the new one", least=0, below=1)

    @property
    def solve(self) -> "Callable[[Array, Array], Dual]":
        """The E-step: from lambda and one z."""
        if self.estep == "exact":
            return functools.partial(exact_dual, beta=self.beta)
        settings = {name: getattr(self, name) for name in ("beta", "num_iterations", "tolerance", "damping")}
        return functools.partial(message_passing, **settings)


class Dual(NamedTuple):
    """The dual network of one z."""

    log_partition: Float[Array, ""]
    """log Z(z); of message passing its Bethe approximation."""
    correlations: Float[Array, "n p"]
    """C_ia = <sigma_i h_a>"""
    means: Float[Array, " p"]
    """m_a = <h_a>"""
    residual: Float[Array, ""]
    """Largest change of a message in the last iteration; 0 where the sum is exact."""


class Surrogate(NamedTuple):
    """The three terms of L, in nats, summed over the examples."""

    divergence: Float[Array, "*steps"]
    """KL(q || prior), at least 0."""
    data: Float[Array, "*steps"]
    """sum_mu sum_a E log cosh(beta X_a)"""
    model: Float[Array, "*steps"]
    """M E_z log Z(z)"""

    @property
    def total(self) -> Float[Array, "*steps"]:
        """L"""
        return self.data - self.model - self.divergence


class SynapseEstimate(NamedTuple):
    """What one E-step and the examples say about lambda."""

    surrogate: Surrogate
    gradient: Float[Array, "n p"]
    """Of L by lambda, in Stein's form: exact on average over z, and not for the z at hand."""
    residual: Float[Array, ""]
    """Largest over the draws of z."""


class SynapseState(NamedTuple):
    """Everything that learning needs to go on; a pytree."""

    means: Float[Array, "n p"]
    """lambda, within `LARGEST_MEAN`."""
    optimizer: optax.OptState


class Trace(NamedTuple):
    """What each step has found before it moved."""

    surrogate: Surrogate
    """Terms [num_steps]."""
    residual: Float[Array, " num_steps"]


def exact_dual(means: Float[Array, "n p"], z: Float[Array, " p"], beta: Float[Array, ""] | float) -> Dual:
    """The dual network by a sum over its hidden states, visible units summed in closed form given each.

        log Z = logsumexp_h [sum_i log 2 cosh(beta sum_a lambda_ia h_a / sqrt N) + beta sum_a Xi_a z_a h_a] - P log 2

    Args:
      means: lambda, within (-1, 1); up to 12 hidden units.
      z: one normal number per hidden unit.
      beta: inverse temperature, positive.

    Raises:
      ValueError: values outside these ranges, or shapes that do not fit.
    """
    _check_dual(means, z, beta)
    n, p = means.shape
    if p > MOST_SUMMED:
        raise ValueError(f"got {p} hidden units; a sum over their states takes up to {MOST_SUMMED}")
    h = hidden_states(p).astype(means.dtype)
    visible_fields = beta / math.sqrt(n) * h @ means.T
    exponents = jnp.sum(_log_2cosh(visible_fields), axis=1) + beta * h @ (_spread(means) * z)
    masses = jax.nn.softmax(exponents)
    correlations = jnp.tanh(visible_fields).T @ (masses[:, None] * h)
    log_partition = jax.nn.logsumexp(exponents) - p * math.log(2)
    return Dual(log_partition, correlations, masses @ h, jnp.zeros((), means.dtype))


def message_passing(
    means: Float[Array, "n p"],
    z: Float[Array, " p"],
    beta: Float[Array, ""] | float,
    *,
    num_iterations: int = 100,
    tolerance: float = 1e-5,
    damping: float = 0.5,
) -> Dual:
    """The dual network by belief propagation, all messages at once, from messages 0.

    With t_ia = tanh(beta lambda_ia / sqrt N), a hidden unit's field without synapse i and its message are

        F_{a->i} = beta Xi_a z_a + sum_{j != i} atanh(t_ja m_{j->a}),    u_{a->i} = atanh(t_ia tanh F_{a->i})
        m_{i->a} = tanh(sum_{b != a} u_{b->i})

    Huang's chi_{a->i} = sum_{j != i} lambda_ja m_{j->a} / sqrt N is the leading order in 1 / sqrt N of the sum in F.
    This form is exact wherever the couplings that are not 0 form no loop, as with a single hidden unit, and its
    correlations are the derivatives of the Bethe log-partition that it returns. Loops cost accuracy where the columns
    of lambda overlap while the hidden units have no mean: correlations between hidden units by way of the visible ones
    are then missed. Where the columns overlap strongly, of either sign, undamped messages can swing between two
    solutions for ever, and the Bethe log-partition of what they stop at is far off: watch the residual.

    Args:
      means: lambda, within (-1, 1).
      z: one normal number per hidden unit.
      beta: inverse temperature, positive.
      num_iterations: at most, at least 1.
      tolerance: largest change of a message m at which it stops earlier, at least 0.
      damping: share of the old message in the new one, from 0 up to but not 1.

    Raises:
      ValueError: values outside these ranges, or shapes that do not fit.
    """
    _check_dual(means, z, beta)
    _check_messages(num_iterations, tolerance, damping)
    coupling = beta / math.sqrt(means.shape[0]) * means
    t = jnp.tanh(coupling)
    fields = beta * _spread(means) * z

    def to_visible(messages: Array) -> tuple[Array, Array, Array]:
        """Fields of hidden units, the tanh of those without one synapse each, and t times it."""
        inputs = jnp.arctanh(t * messages)
        total = fields + jnp.sum(inputs, axis=0)
        without = jnp.tanh(total[None] - inputs)
        return total, without, t * without

    def iterate(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        messages, _, number = carry
        inputs = jnp.arctanh(to_visible(messages)[2])
        new = jnp.tanh(jnp.sum(inputs, axis=1, keepdims=True) - inputs)
        new = damping * messages + (1 - damping) * new
        return new, jnp.max(jnp.abs(new - messages)), number + 1

    start = jnp.zeros_like(means), jnp.asarray(jnp.inf, means.dtype), jnp.int32(0)
    messages, residual, _ = jax.lax.while_loop(
        lambda carry: (carry[1] > tolerance) & (carry[2] < num_iterations), iterate, start
    )
    total, without, sent = to_visible(messages)
    product = t * messages * without
    # The parts of visible and of hidden units, less those of the synapses, which both contain.
    log_partition = (
        jnp.sum(_log_2cosh(jnp.sum(jnp.arctanh(sent), axis=1)))
        + jnp.sum(_log_2cosh(total) - math.log(2))
        + jnp.sum(_log_2cosh(coupling) - math.log(2))
        + jnp.sum((jnp.log1p(-(sent**2)) + jnp.log1p(-((t * messages) ** 2))) / 2 - jnp.log1p(product))
    )
    return Dual(log_partition, (t + messages * without) / (1 + product), jnp.tanh(total), residual)


def surrogate_and_gradient(
    means: Float[Array, "n p"],
    visible: Num[Array, "num_examples n"],
    draws: Float[Array, "num_draws p"],
    config: SynapseConfig,
) -> SynapseEstimate:
    """L and its gradient by lambda.

    Args:
      means: lambda, within (-1, 1).
      visible: examples of -1 and +1.
      draws: standard normal numbers z, over which E_z is the mean.
      config: the settings, static.

    Raises:
      ValueError: values outside these ranges, or shapes that do not fit.
    """
    _check_means(means)
    _check_visible(visible, means)
    n, p = means.shape
    checks.finite("draws", draws)
    if draws.ndim != 2 or draws.shape[0] == 0 or draws.shape[1] != p:
        raise ValueError(f"got draws of shape {draws.shape}; they take [num_draws, {p}], at least one draw")
    beta, num_examples = config.beta, visible.shape[0]
    dual = jax.vmap(config.solve, in_axes=(None, 0))(means, draws)
    x = visible.astype(means.dtype)
    nodes, weights = jnp.asarray(_NODES, means.dtype), jnp.asarray(_WEIGHTS, means.dtype)
    field = beta / math.sqrt(n) * x @ means
    inputs = field[:, :, None] + (beta * _spread(means))[None, :, None] * nodes[None, None]
    hidden = jnp.tanh(inputs)
    surrogate = Surrogate(
        divergence=_divergence(means, config.prior_mean),
        data=jnp.sum((_log_2cosh(inputs) - math.log(2)) * weights[None, None]),
        model=num_examples * jnp.mean(dual.log_partition),
    )
    average = jnp.sum(hidden * weights[None, None], axis=2)
    variance = jnp.sum((1 - hidden**2) * weights[None, None], axis=(0, 2))
    by_data = beta / math.sqrt(n) * x.T @ average - beta**2 / n * means * variance[None]
    uncertain = beta / math.sqrt(n) * means * jnp.mean(1 - dual.means**2, axis=0)[None]
    by_model = num_examples * beta / math.sqrt(n) * (jnp.mean(dual.correlations, axis=0) - uncertain)
    by_prior = math.atanh(config.prior_mean) - jnp.arctanh(means)
    return SynapseEstimate(surrogate, by_prior + by_data - by_model, jnp.max(dual.residual))


def init_synapses(
    key: PRNGKeyArray, num_visible: int, num_hidden: int, config: SynapseConfig, scale: float = 0.01
) -> SynapseState:
    """The state before the first step: lambda normal around 0.

    Args:
      key: a random key.
      num_visible: N, at least 1.
      num_hidden: P, at least 1; up to 12 for the exact E-step.
      config: the settings.
      scale: standard deviation of lambda, positive: at 0 itself there is no gradient.

    Raises:
      ValueError: values outside these ranges.
    """
    _check_sizes(num_visible, num_hidden)
    if config.estep == "exact":
        checks.require(
            num_hidden <= MOST_SUMMED, "num_hidden", num_hidden, f"up to {MOST_SUMMED} with the exact E-step"
        )
    checks.positive("scale", scale)
    checks.random_key(key)
    means = _bounded(scale * jax.random.normal(key, (num_visible, num_hidden)))
    return SynapseState(means, _optimizer(config).init(means))


def learn_synapses(
    state: SynapseState,
    visible: Num[Array, "num_examples n"],
    draws: Float[Array, "num_steps num_draws p"],
    config: SynapseConfig,
) -> tuple[SynapseState, Trace]:
    """Full-batch steps of variational EM, one for each set of draws.

    Huang: lambda plus Adam's step up L, within `LARGEST_MEAN`. Meng: in the natural parameters theta = atanh(lambda),

        theta = (1 - r) theta + r (atanh(prior) + gradients of the examples' and the model's term by lambda)

    which is theta + r dL / d lambda, as the gradient of -KL is atanh(prior) - theta; |lambda| has the same bound.

    Args:
      state: the state so far.
      visible: examples of -1 and +1.
      draws: standard normal numbers z.
      config: the settings, static.

    Raises:
      ValueError: as `surrogate_and_gradient`.
    """
    _check_means(state.means)
    _check_visible(visible, state.means)
    optimizer = _optimizer(config)

    def step(state: SynapseState, z: Array) -> tuple[SynapseState, Trace]:
        found = surrogate_and_gradient(state.means, visible, z, config)
        # Optimizers go down.
        updates, memory = optimizer.update(-found.gradient, state.optimizer, state.means)
        means = _bounded(optax.apply_updates(state.means, updates))
        return SynapseState(means, memory), Trace(found.surrogate, found.residual)

    return jax.lax.scan(step, state, draws)


def plant_synapses(
    key: PRNGKeyArray, num_visible: int, num_hidden: int, correlation: float = 0.0
) -> Float[Array, "n p"]:
    """Random synapses of -1 and +1, the two of any pair of hidden units equal with probability (1 + correlation) / 2.

    Args:
      key: a random key.
      num_visible: N, at least 1.
      num_hidden: P, at least 1.
      correlation: of the columns, from 0 to 1. Each column differs from a common one independently.

    Raises:
      ValueError: values outside these ranges.
    """
    _check_sizes(num_visible, num_hidden)
    checks.non_negative("correlation", correlation)
    checks.require(correlation <= 1, "correlation", correlation, "a number from 0 to 1")
    checks.random_key(key)
    common_key, own_key = jax.random.split(key)
    common = jax.random.rademacher(common_key, (num_visible, 1), jnp.result_type(float))
    same = jax.random.bernoulli(own_key, (1 + math.sqrt(correlation)) / 2, (num_visible, num_hidden))
    return jnp.where(same, common, -common)


def sample_visible(
    key: PRNGKeyArray, synapses: Num[Array, "n p"], num_examples: int, beta: float
) -> Float[Array, "num_examples n"]:
    """Independent examples of -1 and +1 from the RBM: hidden states from their exact marginal, visible ones given them.

    Args:
      key: a random key.
      synapses: -1 and +1; up to 12 hidden units.
      num_examples: at least 1.
      beta: inverse temperature, positive.

    Raises:
      ValueError: values outside these ranges.
    """
    _check_beta(beta)
    checks.array("synapses", synapses)
    if synapses.ndim != 2:
        raise ValueError(f"got synapses of shape {synapses.shape}; they take [n, p]")
    _check_spins("synapses", synapses)
    n, p = synapses.shape
    checks.require(1 <= p <= MOST_SUMMED, "num_hidden", p, f"1 to {MOST_SUMMED} where hidden states are enumerated")
    num_examples = checks.integer("num_examples", num_examples, 1)
    checks.random_key(key)
    hidden_key, visible_key = jax.random.split(key)
    fields = beta / math.sqrt(n) * hidden_states(p) @ synapses.T.astype(jnp.result_type(float))
    numbers = jax.random.categorical(hidden_key, jnp.sum(_log_2cosh(fields), axis=1), shape=(num_examples,))
    up = jax.random.bernoulli(visible_key, jax.nn.sigmoid(2 * fields[numbers]))
    return jnp.where(up, 1.0, -1.0)


def overlaps(means: Float[Array, "n p"], synapses: Num[Array, "n p"]) -> Float[Array, " p"]:
    """|sum_i sign(lambda_ia) xi_ib| / N of each hidden unit b of the truth and the learnt unit a matched with it.

    The pair with the largest overlap is matched first, then the largest among the units left, and so on.

    Raises:
      ValueError: shapes that differ.
    """
    checks.finite("means", means)
    checks.finite("synapses", synapses)
    if means.ndim != 2 or means.shape != synapses.shape:
        raise ValueError(f"got means of shape {means.shape} and synapses of shape {synapses.shape}; both are [n, p]")
    n, p = means.shape
    agreement = jnp.abs(jnp.sign(means).T @ synapses.astype(means.dtype)) / n

    def match(left: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        learnt, true = jnp.unravel_index(jnp.argmax(left), (p, p))
        return left.at[learnt].set(-1).at[:, true].set(-1), (true, left[learnt, true])

    order, found = jax.lax.scan(match, agreement, length=p)[1]
    return jnp.zeros(p, means.dtype).at[order].set(found)


def as_machine(synapses: Num[Array, "n p"], beta: float) -> BoltzmannMachine:
    """The same distribution over units that are 0 or 1: sigma_i = 2 v_i - 1 and h_a = 2 g_a - 1.

    What the library does with machines, it does with this one: chains, likelihoods, repair.

    Args:
      synapses: xi, -1 and +1, as in sign(lambda), or any other finite values.
      beta: inverse temperature, positive.

    Raises:
      ValueError: values outside these ranges, or synapses of another shape.
    """
    _check_beta(beta)
    synapses = jnp.asarray(checks.array("synapses", synapses), jnp.result_type(float))
    if synapses.ndim != 2 or 0 in synapses.shape:
        raise ValueError(f"got synapses of shape {synapses.shape}; they take [n, p], neither 0")
    checks.finite("synapses", synapses)
    couplings = beta / math.sqrt(synapses.shape[0]) * synapses
    biases = -2 * jnp.sum(couplings, axis=1), -2 * jnp.sum(couplings, axis=0)
    return BoltzmannMachine(biases=biases, weights=(4 * couplings,), intra=(None, None))


def hidden_states(num_hidden: int) -> Float[Array, "num_states num_hidden"]:
    """All states of the hidden units as rows of -1 and +1; state number s has bit a of s in unit a."""
    bits = np.arange(2**num_hidden)[:, None] >> np.arange(num_hidden)[None] & 1
    return jnp.asarray(2.0 * bits - 1)


def _optimizer(config: SynapseConfig) -> optax.GradientTransformation:
    if config.rule == "huang":
        return optax.adam(config.learning_rate)
    # Needs no memory: theta is atanh of lambda.
    return optax.stateless(lambda down, means: jnp.tanh(jnp.arctanh(means) - config.mixing_rate * down) - means)


def _bounded(means: Array) -> Array:
    return jnp.clip(means, -LARGEST_MEAN, LARGEST_MEAN)


def _spread(means: Float[Array, "n p"]) -> Float[Array, " p"]:
    """Xi_a"""
    return jnp.sqrt(jnp.mean(1 - means**2, axis=0))


def _divergence(means: Float[Array, "n p"], prior_mean: float) -> Float[Array, ""]:
    """KL of independent synapses from the prior."""
    up, down = (1 + means) / 2, (1 - means) / 2
    return jnp.sum(up * jnp.log(up / ((1 + prior_mean) / 2)) + down * jnp.log(down / ((1 - prior_mean) / 2)))


def _log_2cosh(x: Array) -> Array:
    return jnp.logaddexp(x, -x)


def _check_dual(means: Array, z: Array, beta: Array | float) -> None:
    _check_means(means)
    checks.finite("z", z)
    if z.shape != means.shape[1:]:
        raise ValueError(f"got z of shape {z.shape} with {means.shape[1]} hidden units; it takes one number for each")
    _check_beta(beta)


def _check_means(means: Array) -> None:
    checks.array("means", means)
    if means.ndim != 2 or 0 in means.shape:
        raise ValueError(f"got means of shape {means.shape}; they take [n, p], neither 0")

    def found(means: np.ndarray) -> str:
        return f"up to |lambda|={np.abs(means).max()}; they take numbers between -1 and 1"

    checks.values("means", means, "between -1 and 1", lambda m, xp: xp.all(xp.abs(m) < 1), found)


def _check_visible(visible: Array, means: Array) -> None:
    checks.array("visible states", visible, "an array of spins -1 and +1")
    if visible.ndim != 2 or visible.shape[0] == 0 or visible.shape[1] != means.shape[0]:
        raise ValueError(
            f"got visible states of shape {visible.shape}; they take [num_examples, {means.shape[0]}], at least one"
        )
    _check_spins("visible states", visible)


def _check_spins(name: str, values: Array) -> None:
    checks.array(name, values, "an array of spins -1 and +1")

    def found(values: np.ndarray) -> str:
        return f"other than -1 and +1, from {values.min()} to {values.max()}; they are spins"

    checks.values(name, values, "spins", lambda s, xp: xp.all(xp.abs(s) == 1), found)


def _check_beta(beta: Array | float) -> None:
    checks.positive("beta", beta)


def _check_messages(num_iterations: int, tolerance: float, damping: float) -> None:
    checks.integer("num_iterations", num_iterations, 1)
    checks.non_negative("tolerance", tolerance)
    checks.non_negative("damping", damping)
    checks.require(0 <= damping < 1, "damping", damping, "a number of at least 0 and below 1")


def _check_sizes(num_visible: int, num_hidden: int) -> None:
    checks.integer("num_visible", num_visible, 1)
    checks.integer("num_hidden", num_hidden, 1)
