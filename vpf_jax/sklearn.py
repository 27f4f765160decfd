"""An estimator of scikit-learn: RBMs, and stacks of them, that turn data into the activations of hidden units.

`BoltzmannTransformer` stands where `sklearn.neural_network.BernoulliRBM` does in a pipeline, and learns by any of the
`rules`. Beyond that class it takes missing entries (NaN) and weighted examples, trains stacks, fills in what is missing
and draws samples. A program is compiled for each shape of the data and of the machine, for each rule and size of a
minibatch and for each weight decay, once in a process: learning rates, numbers of passes and seeds share it.

Visible units are binary, or of another kind by `units`: real values, which are standardised for the training and
nowhere else, so that weights and biases are of the values as they are given; counts; categories as codes.

Needs scikit-learn, and is imported by name. Not here: the learning (`train`); likelihoods (`evaluate`), for which
`stack_[0]` is the machine.
"""

import functools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from vpf_jax import checks, couplings, rules, stack, train
from vpf_jax.energy import downward_field, upward_field
from vpf_jax.evaluate import monitor, reconstruction
from vpf_jax.examples import Examples, known_means, known_variances
from vpf_jax.gauges import standardise
from vpf_jax.machine import BoltzmannMachine, with_visible_means
from vpf_jax.sample.gibbs import run_chain
from vpf_jax.units import BINARY, COUNT, GAUSSIAN, Categorical, Unit, two_valued
from vpf_jax.units.count import MOST

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "vpf_jax.sklearn needs scikit-learn, not installed here: install vpf_jax[sklearn]"
    ) from error

BINARISE = ("sample", "threshold")
UNITS = ("binary", "gaussian", "count", "categorical")
# Of codes, whose states have as many entries for each variable.
MOST_VALUES = 255
# Steps of training that n_iter="auto" comes to, within bounds of the passes: docs/guides/scikit_learn.md.
AUTO_STEPS = 8000
AUTO_PASSES = (10, 400)
# Rows that pass through a machine together; fewer are filled up to a power of two, so that few programs are compiled.
MAX_ROWS, MIN_ROWS = 1024, 64
# By which what is missing is completed in `transform` and `score_samples`.
MEAN_FIELD_STEPS = 30
# Rows whose score is printed after each pass.
WATCHED = 256

# One transformation for all: a program belongs to the object. The rate is part of its state.
_ADAM = optax.inject_hyperparams(optax.adam, static_args=("b1", "b2", "eps", "eps_root"))(learning_rate=1e-3)


class BoltzmannTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A restricted Boltzmann machine, or a stack of them, as a transformer.

    Entries of X are, by `units`,

        "binary"        bits, or probabilities in [0, 1] of which bits are made (`binarise`); others are moved to the
                        nearer end, in `fit` with a warning
        "gaussian"      real values, on any scale: they are standardised inside, by the data of `fit` or of the first
                        `partial_fit`, and the machine is put back into their own
        "count"         whole numbers of at least 0
        "categorical"   codes, whole numbers from 0; the largest in `fit` says how many values there are

    NaN is a missing entry. Sparse matrices become dense, in `fit` all of them at
    one byte per entry where they hold bits and four where they do not.

    Weights act on differences from running means and are updated by Adam (`TrainConfig.centred`); visible biases start
    at the data's means.

    Args:
      n_components: hidden units; several numbers make a stack, bottom first, whose features are the top one's.
      rule: how the machine learns: a name of `rules.names()`, or a `Rule` with options, such as rules.CD(5).
      learning_rate: of Adam, at the start of a fall to 0 along a cosine in `fit`; throughout in `partial_fit`.
      batch_size: examples per step. Fewer rows than that are repeated.
      n_iter: passes over the data in `fit`, at least 0, or "auto": as many as make `AUTO_STEPS` steps, within
        `AUTO_PASSES`.
      weight_decay: of weights, not of biases.
      binarise: "sample": bits are drawn from the probabilities, afresh in every pass, and `transform` and
        `score_samples` take the probabilities as they are; "threshold": 1 where the entry is above 1/2.
      units: what the visible units are, one of `UNITS`.
      verbose: whether each pass prints a line.
      random_state: a seed, a numpy.random.RandomState, or None, as everywhere in scikit-learn.

    Attributes:
      stack_: the machines, a tuple with one for each entry of n_components.
      components_: weights of the bottom machine, [n_components, n_features]; of categories a column for each value of
        each feature, [n_components, n_features * n_values_].
      intercept_hidden_: biases of its hidden units.
      intercept_visible_: biases of its visible units.
      n_iter_: passes over the data that `fit` has made.
      n_values_: of categories, how many values there are.
      random_state_: the generator from which methods that sample draw.
      n_features_in_, feature_names_in_: as everywhere in scikit-learn.
    """

    def __init__(
        self,
        n_components: Any = 256,
        *,
        rule: Any = "cd",
        learning_rate: Any = 1e-2,
        batch_size: Any = 40,
        n_iter: Any = "auto",
        weight_decay: Any = 1e-3,
        binarise: Any = "sample",
        units: Any = "binary",
        verbose: Any = 0,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.rule = rule
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.n_iter = n_iter
        self.weight_decay = weight_decay
        self.binarise = binarise
        self.units = units
        self.verbose = verbose
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "BoltzmannTransformer":
        """Trains from the start.

        Args:
          X: array-like or sparse, [n_samples, n_features].
          y: ignored.
          sample_weight: [n_samples], at least 0. Every pass draws n_samples examples in proportion to them, so that a
            weight of 2 is two copies, in the mean; the scale of the weights does not matter.

        Raises:
          ValueError: parameters or data outside their range, in one sentence.
          NonFiniteObjectiveError: the training has overflowed.
        """
        config, sizes = self._config(), self._hidden_sizes()
        passes = self._passes()
        examples = self._examples(X, sample_weight, config, reset=True)
        self._begin(examples, config, sizes)
        if passes is None:
            steps = math.ceil(len(examples.values) / config.batch_size)
            passes = int(np.clip(round(AUTO_STEPS / steps), *AUTO_PASSES))
        self._train(examples, config, self.learning_rate * (1 + np.cos(np.pi * np.arange(passes) / passes)) / 2)
        self.n_iter_ = passes
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "BoltzmannTransformer":
        """One more pass, over these data, at the learning rate; what is given, and raised, as in `fit`.

        The first call of an estimator that has not been fitted makes the machine. (BernoulliRBM takes one step here.)
        """
        config, sizes = self._config(), self._hidden_sizes()
        first = not hasattr(self, "stack_")
        examples = self._examples(X, sample_weight, config, reset=first)
        if first:
            self._begin(examples, config, sizes)
        known = tuple(machine.sizes[1] for machine in self.stack_)
        checks.require(sizes == known, "n_components", self.n_components, f"{known}, as the machine that goes on")
        self._train(examples, config, [self.learning_rate])
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Probabilities that the hidden units are on, [n_samples, n_components], of a stack those of the top.

        Missing entries are completed by the mean-field equations of the bottom machine given the others.
        """
        X = self._checked(X)
        found = self._by_rows(lambda values, seen: monitor.hidden_means(self.stack_, values)[-1], X)
        return found.astype(_float_of(X), copy=False)

    def score_samples(self, X: Any) -> np.ndarray:
        """Log pseudo-likelihood sum_i log p(v_i | all other v) of each row under the bottom machine, in nats.

        Over all visible units, so that it is no random number: what BernoulliRBM estimates by one unit drawn for each
        row. Of a probability v_i between 0 and 1, the mean of log p over its two values; a missing entry is completed
        as in `transform`, and has no term of its own.

        Raises:
          ValueError: other units than binary ones.
        """
        if self.units != "binary":
            raise ValueError(f"got units={self.units!r}; score_samples and score take binary units")
        return self._by_rows(
            lambda values, seen: _pseudo_log_likelihoods(self.stack_[0], values, seen), self._checked(X)
        )

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of `score_samples`."""
        return float(np.mean(self.score_samples(X)))

    def gibbs(self, v: Any, n_sweeps: int = 1) -> np.ndarray:
        """Visible states after Gibbs sweeps of the bottom machine from these, [n_samples, n_features], of binary units
        booleans.

        Every call draws new numbers, from `random_state_`.

        Raises:
          ValueError: missing entries, which `inpaint` fills in, or no positive number of sweeps.
        """
        n_sweeps = checks.integer("n_sweeps", n_sweeps, 1)
        v = self._checked(v)
        if self._values(v)[1].any():
            raise ValueError("got v with missing entries; gibbs takes whole rows, which inpaint makes")
        bits = self._bits(v, self.random_state_)
        keys = jax.random.split(_key_of(self.random_state_), len(bits))
        return self._rows(np.asarray(_chains(keys, self.stack_[0], bits, n_sweeps)))

    def sample(self, n_samples: int = 1, *, n_sweeps: int = 1000, random_state: Any = None) -> np.ndarray:
        """New examples, [n_samples, n_features], of binary units booleans, from as many independent chains.

        Args:
          n_samples: how many, at least 1.
          n_sweeps: Gibbs sweeps of each chain, in the top machine, from uniform bits; at least 1. How many a machine
            needs depends on its training.
          random_state: a seed or a generator of this call; None: `random_state_`.
        """
        check_is_fitted(self)
        n_samples = checks.integer("n_samples", n_samples, 1)
        n_sweeps = checks.integer("n_sweeps", n_sweeps, 1)
        rng = self._generator(random_state)
        values, means = _samples(_key_of(rng), self.stack_, n_sweeps, num_samples=n_samples)
        if self.units == "binary":
            return rng.random_sample(means.shape) < np.asarray(means)
        return self._rows(np.asarray(values))

    def inpaint(
        self, X: Any, mask: Any = None, *, n_sweeps: int = 20, n_chains: int = 10, random_state: Any = None
    ) -> np.ndarray:
        """X with means, given the entries that are there, in the place of those that are not.

        Of bits they are probabilities of being 1; of categories the most probable code stands for them.

        Args:
          X: [n_samples, n_features]; NaN is missing.
          mask: booleans, [n_features] or [n_samples, n_features], True for further entries to be filled in.
          n_sweeps: Gibbs sweeps of the bottom machine, with what is there held; at least 1.
          n_chains: over which a probability is averaged; at least 1.
          random_state: a seed or a generator of this call; None: `random_state_`.

        Raises:
          ValueError: a mask of another shape or of other than booleans, or numbers out of range.
        """
        n_sweeps, n_chains = checks.integer("n_sweeps", n_sweeps, 1), checks.integer("n_chains", n_chains, 1)
        X = self._checked(X)
        missing = np.isnan(_dense(X))
        if mask is not None:
            mask = np.asarray(mask)
            fits = mask.dtype == bool and mask.shape in (X.shape, X.shape[1:])
            checks.require(fits, "mask", mask, f"booleans of shape {X.shape} or {X.shape[1:]}")
            missing = missing | mask
        rng, machine = self._generator(random_state), self.stack_[0]
        absent, total = missing.repeat(self._unit.width, axis=1), np.zeros((len(missing), machine.sizes[0]))
        for _ in range(n_chains):
            total += _inpainted(_key_of(rng), machine, self._bits(X, rng), absent, n_sweeps)
        means = total / n_chains
        if isinstance(self._unit, Categorical):
            means = np.asarray(self._unit.decode(means))
        return np.where(missing, means, _dense(X)).astype(_float_of(X), copy=False)

    @property
    def components_(self) -> np.ndarray:
        return np.asarray(couplings.dense(self.stack_[0].weights[0])).T

    @property
    def intercept_hidden_(self) -> np.ndarray:
        return np.asarray(self.stack_[0].biases[1])

    @property
    def intercept_visible_(self) -> np.ndarray:
        return np.asarray(self.stack_[0].biases[0])

    @property
    def _n_features_out(self) -> int:
        """From which scikit-learn makes names of features."""
        return self.stack_[-1].sizes[-1]

    def _config(self) -> train.TrainConfig:
        checks.one_of("binarise", self.binarise, BINARISE)
        checks.one_of("units", self.units, UNITS)
        fits = self.units == "binary" or self.binarise == BINARISE[0]
        checks.require(fits, "binarise", self.binarise, f"{BINARISE[0]}, as units are {self.units}")
        checks.positive("learning_rate", self.learning_rate)
        rule = rules.make(self.rule) if isinstance(self.rule, str) else self.rule
        return train.TrainConfig(
            rule, _ADAM, epochs=1, batch_size=self.batch_size, weight_decay=self.weight_decay, centred=True
        )

    def _hidden_sizes(self) -> tuple[int, ...]:
        allowed = "a positive integer, or several, bottom first"
        if (one := checks.as_integer(self.n_components)) is None:
            return checks.positive_integers("n_components", self.n_components, allowed)
        checks.require(one >= 1, "n_components", one, allowed)
        return (one,)

    def _passes(self) -> int | None:
        """None: as many as suit the number of examples."""
        if isinstance(self.n_iter, str) and self.n_iter == "auto":
            return None
        found = checks.as_integer(self.n_iter)
        checks.require(found is not None and found >= 0, "n_iter", self.n_iter, "an integer of at least 0, or 'auto'")
        return found

    def _checked(self, X: Any, reset: bool = False) -> Any:
        """X as an array or a sparse matrix of rows, in a type that holds probabilities or bits."""
        if not reset:
            check_is_fitted(self)
        kept = (np.float64, np.float32, np.uint8, np.bool_)
        return validate_data(self, X, reset=reset, accept_sparse="csr", dtype=kept, ensure_all_finite="allow-nan")

    def _examples(self, X: Any, sample_weight: Any, config: train.TrainConfig, reset: bool) -> Examples:
        """What is trained on, at least one minibatch of it."""
        X = self._checked(X, reset)
        found = X.data if hasattr(X, "toarray") else X
        if reset:
            self._survey(X)
        if self.units == "binary" and ((found < 0).any() or (found > 1).any()):
            warnings.warn(
                f"got X with values from {np.nanmin(found):g} to {np.nanmax(found):g}, which are taken for the nearer "
                "of 0 and 1; BoltzmannTransformer takes probabilities in [0, 1], as MinMaxScaler makes",
                stacklevel=3,
            )
        binary, count = self.units == "binary", X.shape[0]
        drawn = binary and self.binarise == "sample" and bool(((found > 0) & (found < 1)).any())
        shape = count, X.shape[1] * self._unit.width
        values, missing = np.empty(shape, np.float32 if drawn else self._unit.dtype), np.zeros(shape, bool)
        for start in range(0, count, MAX_ROWS):
            rows = slice(start, start + MAX_ROWS)
            some, missing[rows] = self._values(X[rows])
            values[rows] = (some - self._means) / self._deviations if self.units == "gaussian" else some
        weights = _weights(sample_weight, count)
        if count < config.batch_size:
            again = np.arange(config.batch_size) % count
            values, missing, weights = values[again], missing[again], None if weights is None else weights[again]
        return Examples(
            jnp.asarray(values),
            None if weights is None else jnp.asarray(weights, jnp.float32),
            jnp.asarray(missing) if missing.any() else None,
            drawn,
        )

    def _begin(self, examples: Examples, config: train.TrainConfig, hidden: tuple[int, ...]) -> None:
        self.random_state_ = check_random_state(self.random_state)
        sizes = (examples.values.shape[1], *hidden)
        means, variances = known_means(examples), known_variances(examples) if self.units == "gaussian" else None
        key = _key_of(self.random_state_)
        self._keep(_first_state(key, means, variances, sizes=sizes, config=config, unit=self._unit))

    def _train(self, examples: Examples, config: train.TrainConfig, rates: Any) -> None:
        # A copy: training donates its input, and a training that is interrupted leaves what was there.
        state = jax.tree.map(jnp.copy, self._state)
        metrics = None
        for number, rate in enumerate(rates):
            begun = time.perf_counter()
            largest = train.largest_weight(state.stack) if metrics is None else metrics.max_abs_weight
            state = state.replace(optimizer=_with_rate(state.optimizer, float(rate)))
            state, metrics = train.train_epoch(state, examples, config=config)
            if self.verbose:
                self._tell(state, examples, number + 1, begun)
        if metrics is not None:
            train.check_finite(metrics, number, float(largest))
        self._keep(state)

    def _keep(self, state: train.TrainState) -> None:
        self._state, self.stack_ = state, train.learnt(state)
        if self.units == "gaussian":
            bottom = standardise(self.stack_[0], -self._means / self._deviations, 1 / self._deviations)
            self.stack_ = (bottom, *self.stack_[1:])

    def _tell(self, state: train.TrainState, examples: Examples, number: int, begun: float) -> None:
        name, seconds = type(self).__name__, time.perf_counter() - begun
        if self.units != "binary":
            print(f"[{name}] Iteration {number}, time = {seconds:.2f}s")
            return
        values = jnp.asarray(examples.values[:WATCHED], jnp.float32)
        missing = jnp.zeros(values.shape, bool) if examples.missing is None else examples.missing[:WATCHED]
        machine = state.stack[0]
        score = _pseudo_log_likelihoods(
            machine, _completed(machine, _running_means(state), values, missing), ~missing
        ).mean()
        print(f"[{name}] Iteration {number}, pseudo-likelihood = {score:.2f}, time = {seconds:.2f}s")

    def _by_rows(self, function: Callable[[Array, Array], Array], X: Any) -> np.ndarray:
        """function(values, seen) of the rows of X, at most `MAX_ROWS` at a time, joined."""
        return np.concatenate([np.asarray(function(*block))[:count] for block, count in self._blocks(X)])

    def _blocks(self, X: Any) -> Iterator[tuple[tuple[Array, Array], int]]:
        for start in range(0, X.shape[0], MAX_ROWS):
            values, missing = self._values(X[start : start + MAX_ROWS])
            count = len(values)
            size = max(MIN_ROWS, 1 << (count - 1).bit_length())
            values, missing = (np.pad(a, ((0, size - count), (0, 0))) for a in (values, missing))
            given, absent = jnp.asarray(values), jnp.asarray(missing)
            if missing.any():
                beginning = _running_means(self._state)
                if self.units == "gaussian":
                    beginning = beginning * self._deviations + self._means
                given = _completed(self.stack_[0], beginning, given, absent)
            yield (given, ~absent), count

    def _values(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """(values, missing): float32, of binary units in [0, 1], or of 0 and 1, of categories one-hot; and where they
        are missing, and 0.
        """
        X = _dense(X)
        missing = np.isnan(X)
        if self.units != "binary":
            return self._states(np.where(missing, 0, X)), missing.repeat(self._unit.width, axis=1)
        values = np.clip(np.where(missing, np.zeros((), X.dtype), X), 0, 1).astype(np.float32)
        return (values > 0.5).astype(np.float32) if self.binarise == "threshold" else values, missing

    def _bits(self, X: Any, rng: np.random.RandomState) -> np.ndarray:
        """The rows as bits, drawn where they hold probabilities, or states of other units; 0 where one is missing."""
        values, _ = self._values(X)
        if self.units != "binary":
            return values.astype(self._unit.dtype)
        return (rng.random_sample(values.shape) < values).astype(np.uint8)

    @property
    def _unit(self) -> Unit:
        """What the visible units are."""
        known: dict[str, Unit] = {"binary": BINARY, "gaussian": GAUSSIAN, "count": COUNT}
        return Categorical(self.n_values_) if self.units == "categorical" else known[self.units]

    def _survey(self, X: Any) -> None:
        """What has to be known of the first data: the scales of real values, the number of categories."""
        if self.units == "gaussian":
            known = np.ma.masked_invalid(_dense(X).astype(np.float64))
            self._means = known.mean(axis=0).filled(0).astype(np.float32)
            variances = known.var(axis=0).filled(1)
            # A feature that is constant stays on its scale.
            self._deviations = np.sqrt(np.where(variances > 0, variances, 1)).astype(np.float32)
        if self.units == "categorical":
            found = _dense(X)
            known = found[~np.isnan(found)]
            least, most = (known.min(), known.max()) if known.size else (0, 0)
            whole = bool((known == np.rint(known)).all()) and 0 <= least and most < MOST_VALUES
            checks.require(whole, "X", found, f"codes, whole numbers from 0 to {MOST_VALUES - 1}")
            self.n_values_ = max(2, int(most) + 1)

    def _states(self, rows: np.ndarray) -> np.ndarray:
        """Values of units that are not binary, float32."""
        if self.units == "gaussian":
            return rows.astype(np.float32)
        most = MOST if self.units == "count" else self.n_values_ - 1
        fits = ((rows >= 0) & (rows <= most) & (rows == np.rint(rows))).all()
        told = "codes" if self.units == "categorical" else "counts"
        checks.require(fits, "X", rows, f"{told}, whole numbers from 0 to {most}")
        if self.units == "count":
            return rows.astype(np.float32)
        return np.eye(self.n_values_, dtype=np.float32)[rows.astype(np.intp)].reshape(len(rows), -1)

    def _rows(self, states: np.ndarray) -> np.ndarray:
        """Examples in the form of X: of bits booleans, of categories codes."""
        if isinstance(self._unit, Categorical):
            return np.asarray(self._unit.decode(states))
        return states.astype(bool) if self.units == "binary" else states

    def _generator(self, random_state: Any) -> np.random.RandomState:
        return self.random_state_ if random_state is None else check_random_state(random_state)


def _dense(X: Any) -> np.ndarray:
    return X.toarray() if hasattr(X, "toarray") else X


def _float_of(X: Any) -> Any:
    """In which results are given: as the rows came, in double precision where they were no floating-point numbers."""
    return np.float32 if X.dtype == np.float32 else np.float64


def _weights(sample_weight: Any, count: int) -> np.ndarray | None:
    if sample_weight is None:
        return None
    found = np.asarray(sample_weight, dtype=np.float64)
    if found.ndim == 0:
        found = np.full(count, found)
    allowed = f"{count} finite numbers of at least 0, and not all weights zero"
    fits = found.shape == (count,) and bool(np.isfinite(found).all() and (found >= 0).all() and (found > 0).any())
    checks.require(fits, "sample_weight", sample_weight, allowed)
    return found / found.max()


def _key_of(rng: np.random.RandomState) -> PRNGKeyArray:
    # Of the older kind, which can be pickled with the state of the training.
    return jax.random.PRNGKey(rng.randint(np.iinfo(np.int32).max))


@functools.partial(jax.jit, static_argnames=("sizes", "config", "unit"))
def _first_state(
    key: PRNGKeyArray,
    means: Float[Array, " n_0"],
    variances: Float[Array, " n_0"] | None,
    *,
    sizes: tuple[int, ...],
    config: train.TrainConfig,
    unit: Unit,
) -> train.TrainState:
    machines_key, key = jax.random.split(key)
    bottom, *others = stack.init_stack(machines_key, sizes, units=(unit, *(BINARY for _ in sizes[1:])))
    return train.init_state(key, (with_visible_means(bottom, means, variances), *others), config)


def _running_means(state: train.TrainState) -> Float[Array, " n_0"]:
    """Of the visible units, which centring keeps."""
    return state.optimizer.offsets[0][0]


def _with_rate(optimizer: Any, rate: float) -> Any:
    return optax.tree_utils.tree_set(optimizer, learning_rate=jnp.asarray(rate, jnp.float32))


@jax.jit
def _completed(
    machine: BoltzmannMachine,
    start: Float[Array, " n_0"],
    values: Float[Array, "rows n_0"],
    missing: Bool[Array, "rows n_0"],
) -> Float[Array, "rows n_0"]:
    """The values, missing ones by the mean-field equations given the others, from `start`."""
    lower, upper = machine.layer_units

    def step(_: Array, v: Array) -> Array:
        hidden = upper.mean(upward_field(machine, 1, v))
        return jnp.where(missing, lower.mean(downward_field(machine, 0, hidden)), values)

    first = jnp.where(missing, start[None], values)
    return jax.lax.fori_loop(0, MEAN_FIELD_STEPS, step, first)


@jax.jit
def _pseudo_log_likelihoods(
    machine: BoltzmannMachine, values: Float[Array, "rows n_0"], seen: Bool[Array, "rows n_0"]
) -> Float[Array, " rows"]:
    """sum_i of v_i log p_i + (1 - v_i) log(1 - p_i), p_i = p(unit i on | all other v), over the units seen."""
    upper = two_valued(machine.layer_units[1], "the pseudo-likelihood")
    z = upward_field(machine, 1, values)

    def add(total: Array, of_unit: tuple[Array, ...]) -> tuple[Array, None]:
        bias, row, v, counts = of_unit
        off = z - v[:, None] * row[None]
        odds = bias + jnp.sum(upper.log_normaliser_difference(off + row[None], off), axis=1)
        return total + counts * (v * odds - jax.nn.softplus(odds)), None

    units = machine.biases[0], couplings.dense(machine.weights[0]), values.T, seen.T
    return jax.lax.scan(add, jnp.zeros(len(values)), units)[0]


@functools.partial(jax.jit, static_argnames="n_sweeps")
def _chains(keys: Any, machine: BoltzmannMachine, visible: Any, n_sweeps: int) -> Any:
    hidden = jnp.zeros((len(visible), machine.sizes[1]), machine.layer_units[1].dtype)
    return jax.vmap(lambda key, *state: run_chain(key, machine, state, n_sweeps)[0])(keys, visible, hidden)


@functools.partial(jax.jit, static_argnames="num_samples")
def _samples(key: PRNGKeyArray, machines: stack.Stack, n_sweeps: Any, num_samples: int) -> tuple[Array, Array]:
    return stack.generated(key, machines, num_samples, steps=1, top_steps=n_sweeps)


@jax.jit
def _inpainted(key: PRNGKeyArray, machine: BoltzmannMachine, bits: Any, missing: Any, n_sweeps: Any) -> Array:
    return reconstruction.inpaint(key, machine, bits, missing, n_sweeps)
