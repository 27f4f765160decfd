"""Cheap measures of how a machine develops while it learns: weights, pseudo-likelihood, use of its features.

In the compositional regime of an RBM the sparsity measure falls while the squared weight grows (Tubiana and Monasson,
arXiv 1611.06759; used by Liu, Quek and Lin, arXiv 1711.07732, section 6). The pseudo-likelihood (Besag 1975) needs no
partition function; the linear probe asks what hidden features are worth to a classifier. Not here: mean activations
(`stack`), likelihoods.
"""

import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, PRNGKeyArray, Real, Shaped

from vpf_jax import checks, couplings
from vpf_jax.checks import AnyArray
from vpf_jax.couplings import Weights
from vpf_jax.energy import upward_field
from vpf_jax.machine import BoltzmannMachine, check_machine, check_symmetric
from vpf_jax.rules.flips import PL
from vpf_jax.rules.neighbours import num_visible_units, of_unit
from vpf_jax.sample.streams import Stream, stream_of, uniform
from vpf_jax.stack import Stack, check_visible, entries, in_chunks, mean_activations
from vpf_jax.units import TwoValued


class ProbeResult(NamedTuple):
    """Fractions of examples that a linear classifier labels correctly, in [0, 1]."""

    train_accuracy: float
    test_accuracy: float


def weight_sparsity(weights: Float[Array, "n_visible n_hidden"]) -> Float[Array, ""]:
    """Weight sparsity rho = 1 / (V H) sum_j (sum_i w_ij^2)^2 / sum_i w_ij^4, in (0, 1].

    The mean over hidden units j of the participation ratio of their incoming weights: about the fraction of visible
    units that a hidden unit is connected to. A hidden unit without any weight counts as 0.

    Raises:
      ValueError: no matrix, an empty one, or, where values are at hand, weights that are not finite.
    """
    _check_weights(weights)
    weights = jnp.asarray(weights)
    # The ratio knows no scale; at its own, no column's powers overflow or vanish.
    largest = jnp.max(jnp.abs(weights), axis=0)
    squares = (weights / jnp.where(largest > 0, largest, 1)[None]) ** 2
    fourth = jnp.sum(squares**2, axis=0)
    ratio = jnp.where(fourth > 0, jnp.sum(squares, axis=0) ** 2 / jnp.where(fourth > 0, fourth, 1), 0)
    return checks.spoilt(jnp.mean(ratio) / weights.shape[0], weights)


def squared_weight(weights: Float[Array, "n_visible n_hidden"]) -> Float[Array, ""]:
    """(1 / H) sum_ij w_ij^2: the mean over hidden units of their summed squared incoming weights.

    Raises:
      ValueError: as `weight_sparsity`.
    """
    _check_weights(weights)
    return jnp.sum(jnp.asarray(weights) ** 2) / weights.shape[1]


def _check_weights(weights: Float[Array, "n_visible n_hidden"]) -> None:
    checks.finite("weights", weights)
    if jnp.ndim(weights) != 2 or 0 in jnp.shape(weights):
        raise ValueError(f"got weights of shape {jnp.shape(weights)}; they are [n_visible, n_hidden], neither 0")


def alignment(machine: BoltzmannMachine) -> tuple[Float[Array, ""], ...]:
    """Cosine between the forward and the backward weights of each pair of layers, in [-1, 1]; bottom pair first.

    1 where the two matrices are the same but for a positive factor, as the weights of a symmetric machine always are;
    nan where one of them is zero.

    Raises:
      ValueError: parameters that do not fit one another, or, where values are at hand, are not finite.
    """
    check_machine(machine)

    def cosine(*pair: Weights) -> Float[Array, ""]:
        forward, backward = (couplings.dense(weights) for weights in pair)
        # Three sums of one kind: `vdot` adds in another order, so that a matrix with itself would not quite give 1.
        return jnp.sum(forward * backward) / jnp.sqrt(jnp.sum(forward**2) * jnp.sum(backward**2))

    return tuple(cosine(f, b) for f, b in zip(machine.weights, machine.downward, strict=True))


@jax.jit
def hidden_means(stack: Stack, visible: Shaped[Array, "batch n_0"]) -> tuple[Array, ...]:
    """Feed-forward activations of a stack's machines, one [batch, n_l] per hidden layer.

    Each is computed from the activations below it. Nothing is sampled; inputs from the own layer are left out.
    """
    found = []
    for machine in stack:
        for i in range(1, len(machine.sizes)):
            visible = machine.layer_units[i].mean(upward_field(machine, i, visible))
            found.append(visible)
    return tuple(found)


def pseudo_log_likelihood(
    key: PRNGKeyArray, machine: BoltzmannMachine, visible: Shaped[AnyArray, "batch n_0"]
) -> Float[Array, " batch"]:
    """An unbiased estimate, for each example, of its log pseudo-likelihood sum_i log p(v_i | all other v), in nats.

    One visible unit i per example is drawn uniformly, and the result is n_0 log p(v_i | all other v): what
    scikit-learn's `BernoulliRBM.score_samples` and the RBM of the Theano tutorials report, there with the same unit or
    one unit per example. Hidden units are summed out:

        log p(flipped) / p(v) = (1 - 2 v_i) z_i + sum_j softplus(z_j + (1 - 2 v_i) w_ij) - softplus(z_j)

    with z_i the bias and the visible intra-layer input of unit i, z_j the fields of the hidden units, so that an epoch
    costs one matrix product. Of visible units of other kinds all values of the unit are summed over (`rules.flips.PL`).

    Args:
      key: a random key.
      machine: one or two layers, no intra-layer weights in the hidden one; below a hidden layer, visible units of a
        finite number of values.
      visible: values of the visible units.

    Raises:
      ValueError: another machine, or visible states that do not fit.
    """
    check_machine(machine)
    check_symmetric(machine, "the pseudo-likelihood")
    if not machine.has_independent_hidden:
        raise ValueError(
            f"got a machine of layer sizes {machine.sizes}"
            f"{' with hidden intra-layer weights' if any(l is not None for l in machine.intra[1:]) else ''}; the "
            "pseudo-likelihood has a closed form for one or two layers without weights inside the hidden one"
        )
    check_visible((machine,), visible)
    terms = PL.terms(machine)
    num_visible = num_visible_units(machine)
    unit = machine.layer_units[0]

    def log_odds_of_flip(v: Array, i: Array) -> Float[Array, ""]:
        assert isinstance(unit, TwoValued)
        change = 2 * unit.half_way(v[i], machine.biases[0].dtype)
        field = machine.biases[0][i]
        if machine.intra[0] is not None:
            field += jnp.vdot(couplings.rows(machine.intra[0], i), v.astype(field.dtype))
        log_odds = change * field
        for weights, hidden in zip(machine.weights, machine.layer_units[1:], strict=True):
            z = upward_field(machine, 1, v)
            flipped = z + change * couplings.rows(weights, i)
            log_odds += jnp.sum(hidden.log_normaliser(flipped) - hidden.log_normaliser(z))
        return log_odds

    def of_rows(stream: Stream, rows: Array) -> Float[Array, " rows"]:
        # The largest uniform number is 1 - 2^-24, and its float32 product with n_0 still rounds to below n_0.
        units = (num_visible * uniform(stream, rows.shape[:1])).astype(jnp.int32)
        if isinstance(unit, TwoValued):
            return num_visible * jax.nn.log_sigmoid(-jax.vmap(log_odds_of_flip)(rows, units))
        return -num_visible * jax.vmap(lambda v, i: of_unit(machine, v, terms, i))(rows, units)

    found = in_chunks(stream_of(key), of_rows, jnp.asarray(visible), entries((machine,)))
    return checks.spoilt(found, machine, visible)


def has_pseudo_log_likelihood(machine: BoltzmannMachine) -> bool:
    """Whether `pseudo_log_likelihood` takes the machine."""
    return machine.backward is None and machine.has_independent_hidden and PL.defined(machine)


def watch(key: PRNGKeyArray, stack: Stack, visible: Shaped[AnyArray, "batch n_0"]) -> dict[str, Float[Array, ""]]:
    """What is worth a look after every epoch: scalars of the stack's bottom machine, at the cost of a few steps.

    Args:
      key: a random key.
      stack: the machines.
      visible: some of the training images, zeros and ones.

    Returns:
      weight_sparsity and squared_weight of the weights between the visible and the first hidden layer, mean_activation
      of the first hidden layer, and the mean of `pseudo_log_likelihood`. A fully visible machine has the last alone; a
      machine with several hidden layers, or weights inside them, or hidden units above visible ones of infinitely many
      values, has all but the last. A directed machine has, instead
      of the last, alignment: of its weights between the visible and the first hidden layer.

    Raises:
      ValueError: no stack, or visible states that do not fit it.
    """
    check_visible(stack, visible)
    checks.random_key(key)
    bottom = stack[0]
    found = {}
    if bottom.weights:
        activity_key, key = jax.random.split(key)
        weights = couplings.dense(bottom.weights[0])
        found["weight_sparsity"], found["squared_weight"] = weight_sparsity(weights), squared_weight(weights)
        found["mean_activation"] = jnp.mean(mean_activations(activity_key, stack, visible)[0])
    if bottom.backward is not None:
        found["alignment"] = alignment(bottom)[0]
    elif has_pseudo_log_likelihood(bottom):
        found["pseudo_log_likelihood"] = jnp.mean(pseudo_log_likelihood(key, bottom, visible))
    return found


def linear_probe(
    features_train: Real[AnyArray, "num_train n"],
    labels_train: Integer[AnyArray, " num_train"] | Sequence[int],
    features_test: Real[AnyArray, "num_test n"],
    labels_test: Integer[AnyArray, " num_test"] | Sequence[int],
    *,
    C: float = 1.0,
    max_iter: int = 1000,
) -> ProbeResult:
    """Accuracy of multinomial logistic regression on given features, such as hidden activations.

    Each feature is standardised by its mean and deviation over the training examples. scikit-learn fits the
    regression with L-BFGS, which is deterministic: about ten seconds for 50,000 x 196 features on two idle cores.

    Args:
      features_train: one row per example.
      labels_train: classes, at least two.
      features_test: as `features_train`.
      labels_test: as `labels_train`.
      C: inverse strength of the L2 penalty ||w||^2 / (2 C) beside the summed log loss.
      max_iter: steps of L-BFGS at most; where they do not suffice scikit-learn warns.

    Raises:
      ModuleNotFoundError: scikit-learn is not installed.
      ValueError: features and labels whose shapes do not fit, features that are not finite, labels of one class alone,
        or numbers out of range.
    """
    checks.positive("C", C)
    max_iter = checks.integer("max_iter", max_iter, 1)
    train = _check_examples("train", features_train, labels_train)
    test = _check_examples("test", features_test, labels_test)
    if train[0].shape[1] != test[0].shape[1]:
        raise ValueError(
            f"got {train[0].shape[1]} features in training and {test[0].shape[1]} in the test; they are the same"
        )
    if len(np.unique(train[1])) < 2:
        raise ValueError("got training labels of one class; a classifier takes at least two")
    if importlib.util.find_spec("sklearn") is None:
        raise ModuleNotFoundError("linear_probe needs scikit-learn, not installed here: install vpf_jax[experiments]")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=max_iter)).fit(*train)
    return ProbeResult(*(float(model.score(*examples)) for examples in (train, test)))


def _check_examples(
    part: str, features: Real[AnyArray, "num n"], labels: Integer[AnyArray, " num"] | Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The features and labels as NumPy arrays; raises ValueError unless there is one finite row per label."""
    x, y = np.asarray(features), np.asarray(labels)
    checks.finite(f"{part} features", x)
    if x.ndim != 2 or y.ndim != 1 or len(x) != len(y) or 0 in x.shape or y.dtype.kind not in "iu":
        raise ValueError(
            f"got {part} features of shape {x.shape} and labels of shape {y.shape} and dtype {y.dtype}; they are "
            "[num, n] and num integers, neither 0"
        )
    return x, y
