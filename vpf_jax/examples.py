"""What an epoch is trained on, where it is more than an array of values: weights, missing entries, probabilities.

    weights     an example of weight m counts m times in every mean: each epoch draws as many examples as there are in
                proportion to their weights, systematically (Kitagawa 1996), so that an example whose share is k comes
                floor(k) or ceil(k) times, and k times in the mean. No rule has to know of weights
    missing     entries that nobody has seen are hidden units of their example: before each epoch they are drawn given
                the example's other entries, by Gibbs sweeps of the bottom machine, and then count as if seen
    drawn       values are probabilities, of which every epoch draws bits of its own

An array alone is the same as Examples(array). Not here: files (`data`), the epoch itself (`train`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped

from vpf_jax import checks
from vpf_jax.checks import AnyArray
from vpf_jax.exporting import exported
from vpf_jax.machine import BoltzmannMachine, State, check_whole_units
from vpf_jax.sample.gibbs import draw_uniforms, sweep_around
from vpf_jax.sample.streams import Stream, of_rows, permutation, substream, substreams, uniform
from vpf_jax.stack import Stack, check_stack, check_visible_shape, climb, entries, in_chunks, rows_in_chunks
from vpf_jax.units import two_valued

# Of the bottom machine, by which missing entries are drawn before each epoch.
NUM_SWEEPS = 10


@exported("vpf_jax.Examples", stored=lambda static: bytes(static), restored=lambda stored: (bool(stored[0]),))
@struct.dataclass
class Examples:
    """Training examples; a pytree."""

    values: Shaped[AnyArray, "n n_0"]
    """Of the visible units, of any kind, such as zeros and ones; of drawn ones probabilities of the upper value, in
    [0, 1]."""
    weights: Float[AnyArray, " n"] | None = None
    """Not negative, some above 0; their scale does not matter. None: all alike, and every example once an epoch."""
    missing: Bool[AnyArray, "n n_0"] | None = None
    """Where an entry has not been seen; what `values` holds there plays no role, but is a value. Of a unit of several
    entries all are missing or none."""
    drawn: bool = struct.field(pytree_node=False, default=False)
    """Whether values are probabilities."""


def as_examples(visible: Shaped[AnyArray, "n n_0"] | Examples) -> Examples:
    """The examples that an array stands for."""
    return visible if isinstance(visible, Examples) else Examples(visible)


@jax.jit
def known_means(examples: Examples) -> Float[Array, " n_0"]:
    """Of each visible entry over the examples where it is known, by weight; 1/2 where there is none."""
    return _over_known(examples, jnp.asarray(examples.values).astype(jnp.float32), 0.5)


@jax.jit
def known_variances(examples: Examples) -> Float[Array, " n_0"]:
    """As `known_means`, of the squared differences from them; 1 where there is none."""
    values = jnp.asarray(examples.values).astype(jnp.float32)
    return _over_known(examples, (values - known_means(examples)[None]) ** 2, 1)


def _over_known(examples: Examples, values: Float[Array, "n n_0"], otherwise: float) -> Float[Array, " n_0"]:
    """Means of these values, one for each of the examples' own."""
    counts = jnp.ones_like(values) if examples.missing is None else (~examples.missing).astype(values.dtype)
    if examples.weights is not None:
        counts = counts * examples.weights[:, None]
    total = jnp.sum(counts, axis=0)
    return jnp.where(total > 0, jnp.sum(counts * values, axis=0) / jnp.where(total > 0, total, 1), otherwise)


def check_values(examples: Examples, stack: Stack) -> None:
    """Raises ValueError unless the arrays hold what they should; what a compiled epoch cannot see."""
    unit = stack[0].layer_units[0]
    if examples.drawn:
        two_valued(unit, "drawing values from probabilities")
        checks.probabilities("visible probabilities", examples.values)
    else:
        unit.check("visible states", examples.values)
    if examples.missing is not None:
        check_whole_units("missing", examples.missing, stack[0])
    if examples.weights is not None:
        checks.finite("weights", examples.weights)

        def found(given: Any) -> str:
            return f"from {given.min():g} to {given.max():g}; they are at least 0, and some above it"

        told = "of at least 0 and some above"
        checks.values("weights", examples.weights, told, lambda w, xp: xp.all(w >= 0) & xp.any(w > 0), found)


def check_shapes(examples: Examples, stack: Stack) -> None:
    """Raises ValueError unless the arrays fit the stack and one another; of shapes alone."""
    check_stack(stack)
    check_visible_shape(stack, examples.values)
    shape = jnp.shape(examples.values)
    for name, wanted in (("weights", shape[:1]), ("missing", shape)):
        given = getattr(examples, name)
        if given is None:
            continue
        checks.array(name, given)
        if jnp.shape(given) != wanted:
            raise ValueError(f"got {name} of shape {jnp.shape(given)} for values of shape {shape}; it takes {wanted}")
    if examples.missing is not None and examples.missing.dtype != bool:
        raise ValueError(f"got missing of dtype {examples.missing.dtype}; it takes booleans, True where missing")


def ordered(stream: Stream, examples: Examples) -> Int[Array, " n"]:
    """Which examples an epoch sees, in its order: each once, or as often as its weight says."""
    count = examples.values.shape[0]
    order = permutation(stream, count)
    if examples.weights is None:
        return order
    # Where the examples end when they are laid side by side, each as long as its weight; a comb falls upon them.
    ends = jnp.cumsum(jnp.asarray(examples.weights, jnp.float32))
    comb = (jnp.arange(count) + uniform(substream(stream, 0), ())) / count
    chosen = jnp.searchsorted(ends, comb * ends[-1], side="right")
    # Rounding may carry the comb's last tooth past the end, onto what may have no weight.
    last = jnp.max(jnp.where(jnp.asarray(examples.weights) > 0, jnp.arange(count), 0))
    return jnp.minimum(chosen, last)[order]


def picked(examples: Examples, order: Int[Array, " rows"]) -> Examples:
    """Some of the examples in an order; weights say how often they are picked, and have no more to say."""
    missing = None if examples.missing is None else jnp.asarray(examples.missing)[order]
    return Examples(jnp.asarray(examples.values)[order], missing=missing, drawn=examples.drawn)


def completed(
    stream: Stream, stack: Stack, examples: Examples, places: Int[Array, " rows"] | None = None
) -> Shaped[Array, "rows n_0"]:
    """Values of the examples, drawn where they are probabilities or missing.

    With `places` the examples are those at these places of a longer array, and are drawn as they would be in it.
    """
    values = jnp.asarray(examples.values)
    if not examples.drawn:
        values = stack[0].layer_units[0].widened(values)
    else:
        unit = two_valued(stack[0].layer_units[0], "drawing values from probabilities")
        drawing = substream(stream, 0)
        numbers = uniform(drawing if places is None else of_rows(drawing, places), values.shape)
        values = unit.at(numbers < values).astype(unit.dtype)
    if examples.missing is None:
        return values
    missing = jnp.asarray(examples.missing)

    filling = substream(stream, 1)
    if places is not None:
        return _filled(rows_in_chunks(filling, places), stack[0], values, missing)

    def of(stream: Stream, rows: Array) -> Array:
        return _filled(stream, stack[0], values[rows], missing[rows])

    return in_chunks(filling, of, jnp.arange(len(values)), entries(stack[:1]))


def _filled(
    stream: Stream, machine: BoltzmannMachine, values: Shaped[Array, "rows n_0"], missing: Bool[Array, "rows n_0"]
) -> Shaped[Array, "rows n_0"]:
    """The values with missing entries drawn given the others; a short chain, from units without input."""
    start, hidden, *steps = substreams(stream, NUM_SWEEPS + 2)
    unit = machine.layer_units[0]
    alone = unit.sample(jnp.broadcast_to(machine.biases[0], values.shape), uniform(start, values.shape))
    values = jnp.where(missing, alone.astype(values.dtype), values)
    (found,) = climb(hidden, (machine,), values)

    def sweep(state: State, step: Stream) -> tuple[State, None]:
        return sweep_around(machine, state, values, missing, draw_uniforms(step, state)), None

    return jax.lax.scan(sweep, (values, *found.forward), jnp.stack(steps))[0][0]
