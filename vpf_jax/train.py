"""Training of stacks: E-step, a rule's gradient, any Optax transformation, metrics.

Variational EM (Liu, Quek and Lin, arXiv 1711.07732, Algorithms 1 and 2): the E-step samples the hidden states given
the data, once per epoch over the whole data set (the paper's) or freshly for every minibatch, as the rule says
(`rules`); the M-step takes one step per minibatch along the gradient of

    scale * J(theta) + weight_decay / 2 * (sum of the squares of all entries of the weight matrices)

in all machines of the stack at the same time, J being what the rule minimises and scale its weight, the paper's epsilon
for probability flow. A stack of a one-layer machine is minimum probability flow. In directed machines
(`machine.untie`) forward and backward weights learn by their own halves of the local rule. A run may go on under other
settings with `start_phase`, as when weights learnt by probability flow are refined by contrastive divergence.

An epoch is one compiled call (`train_epoch`, or `compile_epoch` ahead of time): nothing returns to the host inside it,
and its input state is donated. Runs from several seeds go through it together where the state's arrays carry a leading
axis of seeds (`jax.vmap` of `init_state`, then `train_seeds_epoch`). Not here: the rules, and files, flags, figures,
the loop over epochs (`app`).
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from vpf_jax import checks
from vpf_jax.checks import AnyArray
from vpf_jax.examples import Examples, as_examples, check_shapes, check_values, completed, ordered, picked
from vpf_jax.exporting import exported
from vpf_jax.machine import WEIGHT_FIELDS, BoltzmannMachine, State
from vpf_jax.optimizers import Adam, average_of, centred
from vpf_jax.rules import VPF, Rule
from vpf_jax.sample.streams import Stream, stream_of, substream, substreams, uniform
from vpf_jax.settings import Settings, setting
from vpf_jax.sharding import DATA, MODEL, along_seeds, automatic, laid, laid_out, spread, where
from vpf_jax.stack import Stack, check_stack, climb, entries, in_chunks, join_states, rows_in_chunks

# Of visible units: values alone, such as zeros and ones, or more.
AnyExamples = Shaped[AnyArray, "num_examples n_0"] | Examples
PRECISIONS = ("float32", "bfloat16")

# Apart from the numbers of epochs, with which the key is folded too.
_START = 2**31 - 1


class NonFiniteObjectiveError(FloatingPointError):
    """The objective of an epoch is not finite: flip rates or weights have overflowed."""


@dataclasses.dataclass(frozen=True)
class TrainConfig(Settings):
    """Settings of a training run; the defaults are the paper's, where it states them.

    Raises:
      ValueError: a value of another type, or outside its range.
    """

    rule: Rule = dataclasses.field(default=VPF())
    """How the machines learn, with the options of the rule."""
    optimizer: Adam | optax.GradientTransformation = dataclasses.field(default=Adam())
    """Settings of Adam, or any transformation of Optax; a program is compiled for each one that is made."""
    epochs: int = setting(200, "Passes over the data; the length of the cosine schedule", least=1)
    batch_size: int = setting(40, "Examples per step, up to the number of examples", least=1)
    weight_decay: float = setting(1e-4, "Of weights, not of biases", least=0)
    """The gradient of the loss gains weight_decay * w, and twice that for an intra-layer weight, which is one parameter
    at two places of its symmetric matrix (the paper leaves this open); in a directed machine it is two parameters."""
    max_weight: float | None = setting(None, "Bound on |w| of every weight; left out: none", above=0)
    precision: str = setting(
        "float32",
        "Of the factors of matrix products, as the parameters are or narrowed; sums, parameters and the optimizer keep "
        "theirs",
        choices=PRECISIONS,
    )
    centred: bool = setting(
        False, "Whether the optimizer works on the weights of the centred machine, which act on differences from means"
    )
    """See `vpf_jax.optimizers`; the machine that is learnt is an ordinary one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.require(isinstance(self.rule, Rule), "rule", self.rule, "a Rule, such as rules.VPF()")
        fits = isinstance(self.optimizer, Adam | optax.GradientTransformation)
        checks.require(fits, "optimizer", self.optimizer, "settings of Adam or an optax.GradientTransformation")


@exported("vpf_jax.TrainState")
@struct.dataclass
class TrainState:
    """Everything that a run needs to go on; a pytree."""

    stack: Stack
    optimizer: optax.OptState
    key: PRNGKeyArray
    """Constant through a run: epoch e draws from fold_in(key, e)."""
    epoch: Int[Array, "*runs"]
    """Number of finished epochs."""
    carry: tuple[Any, ...]
    """What the rule goes on from, one tree per machine, such as the states of persistent chains."""


@exported("vpf_jax.Metrics")
@struct.dataclass
class Metrics:
    """What an epoch reports; scalars on the device."""

    objective: Float[Array, "*runs"]
    """Mean over the examples of J, summed over the machines, each at its own step's parameters."""
    max_abs_weight: Float[Array, "*runs"]
    """Largest |w| at the end of the epoch."""


def init_state(key: PRNGKeyArray, stack: Stack, config: TrainConfig) -> TrainState:
    """The state before the first epoch; what the rule goes on from starts at values drawn without fields, as chains
    of uniform bits.

    Raises:
      ValueError: a stack that the rule does not take, no key, or no settings.
    """
    checks.random_key(key)
    check_config(config)
    check_stack(stack)
    _check_rule(stack, config)
    # Copies of its own: training donates its input, and what the caller holds should survive.
    key, stack = jax.tree.map(jnp.copy, (key, tuple(stack)))
    return _first(key, stack, config)


def _first(key: PRNGKeyArray, stack: Stack, config: TrainConfig) -> TrainState:
    stream = stream_of(jax.random.fold_in(key, _START))

    def drawn(stream: Stream, machine: BoltzmannMachine) -> State:
        numbers = [uniform(substream(stream, l), (config.batch_size, size)) for l, size in enumerate(machine.sizes)]
        layers = zip(machine.layer_units, numbers, strict=True)
        return tuple(unit.sample(jnp.zeros_like(u), u).astype(unit.dtype) for unit, u in layers)

    states = tuple(drawn(substream(stream, i), machine) for i, machine in enumerate(stack))
    return _started(stream, stack, key, jnp.zeros((), jnp.int32), states, config)


def start_phase(state: TrainState, visible: AnyExamples, config: TrainConfig) -> TrainState:
    """The state from which a trained stack goes on under other settings: a fresh optimizer, and chains from the data.

    Raises:
      ValueError: a stack that the rule does not take, or visible states that do not fit it or are fewer than a
        minibatch.
    """
    _check_call(state, visible, config)
    examples = as_examples(visible)
    check_shapes(examples, state.stack)
    check_minibatch(config, examples.values.shape[0], 1)
    return start_phase_with(state, picked(examples, order_at_start(state.key, examples, config)), config)


def order_at_start(key: PRNGKeyArray, examples: Examples, config: TrainConfig) -> Int[Array, " batch_size"]:
    """The examples from which the rule of a phase starts, in a run with this key."""
    return ordered(_streams_at_start(key).order, examples)[: config.batch_size]


def start_phase_with(state: TrainState, some: Examples, config: TrainConfig) -> TrainState:
    """`start_phase` with the examples of `order_at_start`; ValueError for a stack that the rule does not take."""
    _check_rule(state.stack, config)
    # Copies: see `init_state`.
    stack, key, epoch = jax.tree.map(jnp.copy, (learnt(state), state.key, state.epoch))
    streams = _streams_at_start(key)
    visible = completed(streams.completing, stack, some).astype(stack[0].layer_units[0].dtype)
    states = join_states(visible, climb(streams.estep, stack, visible))
    return _started(streams.estep, stack, key, epoch, states, config)


def _streams_at_start(key: PRNGKeyArray) -> "EpochStreams":
    return epoch_streams(key, _START)


def _started(
    stream: Stream,
    stack: Stack,
    key: PRNGKeyArray,
    epoch: Int[Array, ""],
    states: tuple[State, ...],
    config: TrainConfig,
) -> TrainState:
    """A state whose rule starts from one minibatch of states for each machine."""
    rule_stream = substream(stream, len(stack))
    pairs = enumerate(zip(stack, states, strict=True))
    carry = tuple(config.rule.start(substream(rule_stream, i), machine, some) for i, (machine, some) in pairs)
    # A copy: a machine's upper and the next one's lower state may be one array, and training donates both.
    return TrainState(stack, _optimizer(config, 1).init(stack), key, epoch, jax.tree.map(jnp.copy, carry))


def train_epoch(state: TrainState, visible: AnyExamples, *, config: TrainConfig) -> tuple[TrainState, Metrics]:
    """One pass over the data in a fresh random order.

    Every example is used once, or as often as its weight says (`vpf_jax.examples`). A last short minibatch of r
    examples is a step whose gradient counts r / batch_size of a full one.

    Args:
      state: the state so far; donated, use the returned one.
      visible: values of the visible units, such as zeros and ones, where uint8 saves memory; or `Examples`, with
        weights, missing entries or probabilities.
      config: the settings, static.

    Raises:
      ValueError: visible states that are no values of the units, do not fit the stack or are fewer than a minibatch,
        or a state that was made for other settings.
    """
    _check_call(state, visible, config)
    with where(state):
        return _run_epoch(state, visible, config=config)


def train_seeds_epoch(
    states: TrainState,
    visible: AnyExamples,
    *,
    config: TrainConfig,
    at_once: int | None = None,
) -> tuple[TrainState, Metrics]:
    """`train_epoch` of several runs on the same data, each with its own stack, chains and random numbers.

    Args:
      states: states whose arrays have a leading axis of seeds; donated.
      visible: values of the visible units or `Examples`, shared.
      config: the settings, static, shared.
      at_once: runs in one batched computation (`jax.vmap`), at least 1; the others follow. None: all. The numbers are
        those of single runs up to rounding.

    Raises:
      ValueError: as `train_epoch`.
    """
    _check_call(states, visible, config)
    at_once = _check_at_once(at_once)
    with where(states):
        return _run_seeds_epoch(states, visible, config=config, at_once=at_once)


def _epochs(
    states: TrainState, visible: AnyExamples, config: TrainConfig, at_once: int | None
) -> tuple[TrainState, Metrics]:
    """`train_seeds_epoch` inside whatever compiles it."""

    def epochs(states: TrainState, visible: AnyExamples) -> tuple[TrainState, Metrics]:
        def epoch(state: TrainState) -> tuple[TrainState, Metrics]:
            return _epoch(state, visible, config)

        if at_once is None or at_once >= states.epoch.shape[0]:
            return jax.vmap(epoch)(states)
        # One run at a time is mapped without a batch axis of 1, which would take other kernels.
        return jax.lax.map(epoch, states, batch_size=None if at_once == 1 else at_once)

    return along_seeds(epochs, states, visible)


def compile_epoch(
    state: TrainState,
    visible: AnyExamples,
    config: TrainConfig,
    at_once: int | None = None,
) -> Callable[[TrainState, AnyExamples], tuple[TrainState, Metrics]]:
    """`train_epoch` compiled ahead of time for these shapes, with options that suit the backend.

    Takes (state, visible), donating the state as `train_epoch` does; for a state with a leading axis of seeds it is
    `train_seeds_epoch`, with `at_once`. On a CPU it works in vectors of 512 bits, which took about a tenth off an
    epoch of a DBM where they were measured; by itself the compiler stays at 256. Inside other compiled functions call
    `train_epoch`.

    Raises:
      ValueError: as `train_epoch`.
    """
    _check_call(state, visible, config)
    several = jnp.ndim(state.epoch) > 0
    at_once = _check_at_once(at_once)
    told = "a number for states with a leading axis of seeds alone"
    checks.require(several or at_once is None, "at_once", at_once, told)
    with where(state):
        if several:
            compiled = _compiled(_run_seeds_epoch.lower(state, visible, config=config, at_once=at_once))
        else:
            compiled = _compiled(_run_epoch.lower(state, visible, config=config))

    def run_epoch(state: TrainState, visible: AnyExamples) -> tuple[TrainState, Metrics]:
        _check_call(state, visible, config)
        return compiled(state, visible)

    return run_epoch


def _compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    if jax.default_backend() == "cpu":
        # Other versions of the compiler may not know the option.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return lowered.compile(compiler_options={"xla_cpu_prefer_vector_width": "512"})
    return lowered.compile()


def learnt(state: TrainState) -> Stack:
    """The stack that a run has come to: the average of its parameters where the optimizer keeps one, else the last."""
    average = average_of(state.optimizer)
    return state.stack if average is None else average


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
    """Largest |w| over all weights of a stack, 0 for a stack without any; nan where a parameter is not finite."""
    weights = jax.tree.leaves([getattr(machine, name) for machine in stack for name in WEIGHT_FIELDS])
    largest = jnp.max(jnp.stack([jnp.zeros(()), *(jnp.max(jnp.abs(w)) for w in weights)]))
    return checks.spoilt(largest, stack)


def _epoch(state: TrainState, visible: AnyExamples, config: TrainConfig) -> tuple[TrainState, Metrics]:
    """`train_epoch` inside whatever compiles it."""
    return automatic(functools.partial(_one_epoch, config=config), state, visible)


def _one_epoch(state: TrainState, visible: AnyExamples, config: TrainConfig) -> tuple[TrainState, Metrics]:
    """`_epoch` where the compiler may cut along all axes of a mesh, if there is one."""
    state = laid_out(state)
    # Whole on every device, where they are not yet: each step takes its rows from anywhere.
    examples = laid(as_examples(visible))
    _check_training(state, examples, config)
    num_examples = examples.values.shape[0]
    steps = steps_of(state, state.stack, config, num_examples)
    order = ordered(steps.streams.order, examples)
    if spread(DATA) * spread(MODEL) > 1:

        def own(batch: tuple[Array, Array]) -> tuple[Array, Any]:
            chosen, places = laid(batch, DATA)
            return steps.own(picked(examples, chosen), places)

        carry, total = steps.run(state, steps.cut((order, jnp.arange(num_examples))), own)
    else:
        visible = completed(steps.streams.completing, state.stack, picked(examples, order))
        hidden = None
        if steps.inference is not None:
            hidden = in_chunks(steps.streams.estep, steps.estep, visible, entries(steps.inference))
        carry, total = steps.run(state, steps.cut((visible, hidden)), lambda batch: batch)
    return closed(state, carry, total / num_examples)


class EpochStreams(NamedTuple):
    """Random numbers of an epoch."""

    order: Stream
    estep: Stream
    completing: Stream


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """The steps of an epoch: all of them, or some of its examples' at a time."""

    streams: EpochStreams
    config: TrainConfig
    num_examples: int
    """Of the whole epoch."""
    began: Stack
    """At the start of the epoch."""
    inference: Stack | None
    """With which the hidden states of the whole epoch are sampled; None: with each step's own."""

    def estep(self, stream: Stream, rows: Shaped[Array, "rows n_0"]) -> Any:
        """Samples of the hidden states of some examples."""
        return None if self.inference is None else climb(stream, self.inference, rows)

    def own(self, rows: Examples, places: Int[Array, " rows"]) -> tuple[Array, Any]:
        """A minibatch, each device with its own examples; it draws what it would draw for them alone.

        Args:
          rows: the examples.
          places: where they stand in the epoch's order.
        """
        places = laid(places, DATA)
        visible = laid(completed(self.streams.completing, self.began, rows, places), DATA, None)
        return visible, self.estep(rows_in_chunks(self.streams.estep, places), visible)

    def cut(self, rows: Any) -> tuple[Any, Any]:
        """Full minibatches of arrays with a row for each example, along a new first axis, and what is left."""
        size = self.config.batch_size
        num_full, rest = divmod(jax.tree.leaves(rows)[0].shape[0], size)
        end = num_full * size
        full = jax.tree.map(lambda a: a[:end].reshape(num_full, size, *a.shape[1:]), rows)
        return full, jax.tree.map(lambda a: a[end:], rows) if rest else None

    def run(
        self, state: TrainState, batches: tuple[Any, Any], batch: Callable[[Any], tuple[Array, Any]], first: Any = 0
    ) -> tuple[Any, Float[Array, ""]]:
        """Steps on consecutive minibatches of the epoch's order.

        Args:
          state: as it is before them.
          batches: those of one size, trees of arrays [steps, rows, ...], and a last short one or None.
          batch: from one of them its visible states and samples (`own`).
          first: number of the first step.

        Returns:
          Stack, optimizer and carry after them; the sum of the examples' objectives.
        """
        optimizer = _optimizer(self.config, -(-self.num_examples // self.config.batch_size))

        def step(carry, inputs):
            number, some = inputs
            stream = substream(self.streams.estep, number)
            return _minibatch_step(optimizer, self.config, self.inference, carry, stream, batch(some))

        full, last = batches
        num_full = jax.tree.leaves(full)[0].shape[0]
        carry, objectives = jax.lax.scan(
            step, (state.stack, state.optimizer, state.carry), (first + jnp.arange(num_full), full)
        )
        total = jnp.sum(objectives) * jax.tree.leaves(full)[0].shape[1]
        if last is not None:
            carry, objective = step(carry, (first + num_full, last))
            total += objective * jax.tree.leaves(last)[0].shape[0]
        return carry, total


def epoch_streams(key: PRNGKeyArray, epoch: Int[Array, ""] | int) -> EpochStreams:
    """Of the epoch after so many, in a run with this key."""
    return EpochStreams(*substreams(stream_of(jax.random.fold_in(key, epoch)), 3))


def steps_of(state: TrainState, began: Stack, config: TrainConfig, num_examples: int) -> Steps:
    """Of the epoch that comes after those of the state, or that it is in, from the stack with which this began."""
    streams = epoch_streams(state.key, state.epoch)
    inference = _narrowed(began, config) if config.rule.estep_per_epoch else None
    return Steps(streams, config, num_examples, began, inference)


def closed(state: TrainState, carry: Any, objective: Float[Array, ""]) -> tuple[TrainState, Metrics]:
    """The state after an epoch, and what it reports."""
    stack, optimizer, rule_carry = carry
    metrics = Metrics(objective=objective, max_abs_weight=largest_weight(stack))
    return TrainState(stack, optimizer, state.key, state.epoch + 1, rule_carry), metrics


def _minibatch_step(optimizer, config, inference, carry, stream, batch):
    """One M-step on one minibatch, hidden states sampled first where the epoch's E-step has not done so."""
    stack, optimizer_state, rule_carry = carry
    visible, hidden = batch
    narrow = _narrowed(stack, config)
    if inference is None:
        inference, hidden = narrow, climb(stream, narrow, visible)
    states = join_states(visible, hidden)
    # Streams 0, 1, ... are the E-step's.
    rule_stream = substream(stream, len(stack))
    objectives, gradients, rule_carry = zip(
        *(
            config.rule.estimate(substream(rule_stream, i), machine, inference[i], states[i], rule_carry[i])
            for i, machine in enumerate(narrow)
        ),
        strict=True,
    )
    share, scale = visible.shape[0] / config.batch_size, config.rule.scale
    loss_gradient = jax.tree.map(lambda g, decay: share * (scale * g + decay), gradients, _decay(stack, config))
    updates, optimizer_state = optimizer.update(loss_gradient, optimizer_state, stack, states=states)
    stack = optax.apply_updates(stack, updates)
    if config.max_weight is not None:
        bound = config.max_weight
        stack = _map_weights(lambda w: jnp.clip(w, -bound, bound), stack)
    after = laid_out({"stack": stack, "optimizer": optimizer_state, "carry": rule_carry})
    return (after["stack"], after["optimizer"], after["carry"]), sum(objectives)


_run_epoch = jax.jit(_epoch, static_argnames="config", donate_argnames="state")
_run_seeds_epoch = jax.jit(_epochs, static_argnames=("config", "at_once"), donate_argnames="states")


def check_config(config: TrainConfig) -> None:
    """Raises ValueError for anything but settings of training."""
    if not isinstance(config, TrainConfig):
        raise ValueError(f"got a {type(config).__name__} for the settings; it takes a TrainConfig")


def check_state(state: TrainState) -> None:
    """Raises ValueError for anything but a state of training."""
    if not isinstance(state, TrainState):
        raise ValueError(f"got a {type(state).__name__} for the state; it takes a TrainState, as init_state gives")


def check_minibatch(config: TrainConfig, num_examples: int, devices: int) -> None:
    """Raises ValueError for minibatches of more than all examples, or that so many devices along data do not divide."""
    if config.batch_size > num_examples:
        told = f"got batch_size={config.batch_size} with {num_examples} examples; it is allowed up to their number"
        raise ValueError(told)
    told = f"multiples of the {devices} devices along the data axis"
    checks.require(config.batch_size % devices == 0, "batch_size", config.batch_size, told)


def _check_call(state: TrainState, visible: AnyExamples, config: TrainConfig) -> None:
    """Raises ValueError for what cannot be seen inside the compiled epoch: types and values."""
    check_config(config)
    check_state(state)
    checks.array("a state", state.epoch)
    if state.stack:
        check_values(as_examples(visible), state.stack)


def _check_training(state: TrainState, examples: Examples, config: TrainConfig) -> None:
    """Raises ValueError unless the data fit the state and the state the settings; of shapes, so that it may trace."""
    check_shapes(examples, state.stack)
    check_minibatch(config, examples.values.shape[0], spread(DATA))
    check_belongs(state, config)
    # Seen here under `checks.checked` alone.
    check_values(examples, state.stack)


def _check_at_once(at_once: int | None) -> int | None:
    return None if at_once is None else checks.integer("at_once", at_once, 1)


def check_belongs(state: TrainState, config: TrainConfig) -> None:
    """Raises ValueError unless the state has the optimizer and the chains of these settings."""
    made = "start_phase goes on from a trained stack under other settings"
    wanted = jax.eval_shape(functools.partial(_first, config=config), state.key, state.stack)
    if _shapes(state.optimizer) != _shapes(wanted.optimizer):
        raise ValueError(
            f"got a state whose optimizer is not the one for its stack and optimizer={config.optimizer!r}; {made}"
        )
    if _shapes(state.carry) != _shapes(wanted.carry):
        found, takes = (jax.tree.map(jnp.shape, carry) for carry in (state.carry, wanted.carry))
        raise ValueError(
            f"got a state with chains of shapes {found}; rule={config.rule.name!r} with batch_size={config.batch_size} "
            f"takes {takes if jax.tree.leaves(takes) else 'a state without chains'}; {made}"
        )


def _shapes(tree: Any) -> Any:
    return jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]


def _check_rule(stack: Stack, config: TrainConfig) -> None:
    for machine in stack:
        config.rule.accepts(machine)


def _narrowed(stack: Stack, config: TrainConfig) -> Stack:
    """The stack with weights in the precision of matrix products; biases keep theirs."""
    if config.precision == "float32":
        return stack
    return _map_weights(lambda w: w.astype(config.precision), stack)


def _decay(stack: Stack, config: TrainConfig) -> Stack:
    """Gradient of the decay term; a symmetric intra-layer weight is one parameter that stands at two places."""

    def of(machine: BoltzmannMachine) -> BoltzmannMachine:
        places = 2 if machine.backward is None else 1
        (decayed,) = _map_weights(lambda w: config.weight_decay * w, (machine,))
        return dataclasses.replace(
            decayed,
            biases=tuple(jnp.zeros_like(b) for b in machine.biases),
            intra=jax.tree.map(lambda l: places * l, decayed.intra),
            own=jax.tree.map(jnp.zeros_like, machine.own),
        )

    return tuple(of(machine) for machine in stack)


def _map_weights(function, stack: Stack) -> Stack:
    return tuple(
        dataclasses.replace(m, **{name: jax.tree.map(function, getattr(m, name)) for name in WEIGHT_FIELDS})
        for m in stack
    )


def _optimizer(config: TrainConfig, steps_per_epoch: int) -> optax.GradientTransformationExtraArgs:
    optimizer = config.optimizer
    if isinstance(optimizer, Adam):
        optimizer = optimizer.transformation(config.epochs * steps_per_epoch)
    return optax.with_extra_args_support(centred(optimizer) if config.centred else optimizer)
