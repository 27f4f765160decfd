"""The one form of refusal: ValueError with what was given and what is allowed, in one sentence (`SettingError`).

Every public function checks its arguments here before it computes. Checks of values need numbers at hand: a traced
array, inside `jax.jit` or `jax.vmap`, passes unseen, unless the program runs under `checked`. An array that has passed
a check is remembered for as long as it lives (JAX's arrays never change), so that a training loop which passes the same
data at every epoch pays once. Scores computed from what is not finite are nan (`spoilt`), under `jax.jit` too.

Not here: what each function allows.
"""

import contextlib
import contextvars
import functools
import math
import operator
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

# What a function takes that converts by itself; what it gives is JAX's.
AnyArray = jax.Array | np.ndarray
# What becomes an array of numbers: a tuple too, which numpy.typing.ArrayLike does not admit at run time.
Numbers = ArrayLike | Sequence[float]

P = ParamSpec("P")
T = TypeVar("T")
Tree = TypeVar("Tree")

# What has passed: (id of an array, name of the check), and the array, so that a new array at its address is not taken
# for it. Only arrays that cannot change are in it.
_passed: dict[tuple[int, str], weakref.ref] = {}
_inside_checked = contextvars.ContextVar("inside_checked", default=False)


class SettingError(ValueError):
    """A named value is outside what it may be: "got NAME=GIVEN; it takes ALLOWED"."""

    def __init__(self, name: str, given: object, allowed: str) -> None:
        super().__init__(f"got {name}={_shown(given)}; it takes {allowed}")
        self.name, self.given, self.allowed = name, given, allowed

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), (self.name, self.given, self.allowed)


def require(holds: object, name: str, value: object, allowed: str) -> None:
    """Raises SettingError unless the condition holds."""
    if not holds:
        raise SettingError(name, value, allowed)


def is_traced(*values: object) -> bool:
    """Whether any array in these trees is an abstract one of a transformation, without numbers at hand."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """The value as a Python integer, of Python, of NumPy or of a concrete array without axes; booleans are none.

    Raises:
      ValueError: another type, or a number out of range.
    """
    allowed = f"an integer of at least {least}" if most is None else f"an integer from {least} to {most}"
    found = as_integer(value)
    require(found is not None and found >= least and (most is None or found <= most), name, value, allowed)
    assert found is not None
    return found


def traced_integer(name: str, value: Any, least: int) -> int | Array:
    """`integer`, but a traced number without axes is taken as it is."""
    if not is_traced(value):
        return integer(name, value, least)
    fits = jnp.shape(value) == () and jnp.issubdtype(value.dtype, jnp.integer)
    require(fits, name, value, f"an integer of at least {least}")
    return value


def as_integer(value: Any) -> int | None:
    """A Python integer for an integer of any kind, None for anything else, booleans and traced numbers among it."""
    if isinstance(value, bool | np.bool_) or is_traced(value):
        return None
    try:
        # Of a NumPy or JAX array without axes too; of booleans JAX makes an index, which are no numbers here.
        return None if getattr(value, "dtype", np.dtype(int)).kind == "b" else operator.index(value)
    except TypeError:
        return None


def as_float(value: Any) -> float | None:
    """A Python float for one real number of any kind, None for anything else, booleans and traced numbers among it."""
    if is_traced(value) or isinstance(value, str | bytes) or np.ndim(value):
        return None
    return float(value) if np.asarray(value).dtype.kind in "iuf" else None


def is_boolean(value: Any) -> bool:
    """Whether it is True or False, of Python or NumPy."""
    return isinstance(value, bool | np.bool_)


def as_integers(values: Any) -> tuple[int, ...] | None:
    """A sequence of integers of any kind as a tuple of Python's, None for anything else, booleans among it."""
    if isinstance(values, str | bytes) or is_traced(values):
        return None
    try:
        found = tuple(as_integer(value) for value in values)
    except TypeError:
        return None
    return None if None in found else cast(tuple[int, ...], found)


def positive_integers(name: str, values: Any, allowed: str, least: int = 1, most: int | None = None) -> tuple[int, ...]:
    """The values as a tuple of Python integers, each at least 1, from `least` to `most` of them; else ValueError."""
    found = as_integers(values)
    fits = found is not None and len(found) >= least and (most is None or len(found) <= most) and min(found) >= 1
    require(fits, name, values, allowed)
    return cast(tuple[int, ...], found)


def boolean(name: str, value: Any) -> bool:
    """The value, if it is True or False.

    Raises:
      ValueError: anything else, 0 and 1 and words among it.
    """
    require(is_boolean(value), name, value, "True or False")
    return bool(value)


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """The value, if it is among the choices; else ValueError."""
    require(isinstance(value, str) and value in choices, name, value, f"one of {', '.join(choices)}")
    return value


def positive(name: str, value: Any, unit: str = "") -> Any:
    """The value, if it is one positive finite number; a traced one is not compared. Else ValueError."""
    return _number(name, value, f"a positive finite number{unit and ', ' + unit}", lambda v: v > 0)


def non_negative(name: str, value: Any, unit: str = "") -> Any:
    """The value, if it is one finite number of at least 0; a traced one is not compared. Else ValueError."""
    return _number(name, value, f"a finite number of at least 0{unit and ', ' + unit}", lambda v: v >= 0)


def finite_number(name: str, value: Any) -> Any:
    """The value, if it is one finite number; a traced one is not compared. Else ValueError."""
    return _number(name, value, "a finite number", lambda v: True)


def probability(name: str, value: Any) -> Any:
    """The value, if it is one number from 0 to 1; a traced one is not compared. Else ValueError."""
    return _number(name, value, "a probability from 0 to 1", lambda v: 0 <= v <= 1)


def _number(name: str, value: Any, allowed: str, fits: Callable[[float], bool]) -> Any:
    if is_traced(value):
        require(jnp.shape(value) == () and jnp.issubdtype(value.dtype, jnp.number), name, value, allowed)
        return value
    kind = np.asarray(value).dtype.kind if np.ndim(value) == 0 and not isinstance(value, str | bytes) else "O"
    found = float(value) if kind in "iuf" else math.nan
    require(math.isfinite(found) and fits(found), name, value, allowed)
    return value


def array(name: str, value: Any, takes: str = "an array of numbers") -> Any:
    """The value, if it is an array (JAX's, NumPy's or traced) of real numbers or booleans.

    Raises:
      ValueError: lists, tables and other things, or an array of other entries, or one that training has consumed.
    """
    if isinstance(value, jax.Array):
        if not isinstance(value, jax.core.Tracer) and value.is_deleted():
            raise ValueError(f"got {name} that a donating call has consumed; use what that call returned, or a copy")
    elif not isinstance(value, np.ndarray | np.generic):
        told = "None" if value is None else f"a {type(value).__name__}"
        mend = ", as its to_numpy() gives" if hasattr(value, "to_numpy") else ""
        raise ValueError(f"got {told} for {name}; it takes {takes}{mend}")
    if not any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.integer, jnp.floating, jnp.bool_)):
        raise ValueError(f"got {name} of dtype {value.dtype}; it takes {takes}")
    return value


def binary(name: str, value: Any) -> Any:
    """The value, if it is an array of zeros and ones, or booleans.

    Raises:
      ValueError: anything else; the sentence says what was found and how to convert it.
    """
    return two_valued(name, value, 0, 1)


def two_valued(name: str, value: Any, low: int, high: int) -> Any:
    """`binary` for an array of two other numbers."""
    bits = (low, high) == (0, 1)
    told = "zeros and ones" if bits else f"{low:+d} and {high:+d}"
    array(name, value, f"an array of {told}")
    if value.dtype == bool and bits:
        return value

    def holds(given: Any, xp: Any) -> Any:
        if bits and jnp.issubdtype(given.dtype, jnp.unsignedinteger):
            return given.size == 0 or given.max() <= 1
        return xp.all((given == low) | (given == high))

    def found(given: np.ndarray) -> str:
        return _found_other_than_bits(given) if bits else f"{_range(given)}; they are {told}"

    values(name, value, "binary" if bits else f"of values {told}", holds, found)
    return value


def probabilities(name: str, value: Any) -> Any:
    """The value, if it is an array of numbers in [0, 1]; else ValueError."""
    return from_zero_to_one(name, value, "probabilities in [0, 1]")


def from_zero_to_one(name: str, value: Any, what: str = "numbers in [0, 1]") -> Any:
    """`probabilities` of another meaning, such as grey values."""
    array(name, value, f"an array of {what}")

    def found(given: np.ndarray) -> str:
        return f"{_range(given)}; they are {what}"

    values(name, value, "from 0 to 1", lambda v, xp: xp.all((v >= 0) & (v <= 1)), found)
    return value


def finite(name: str, value: Any) -> Any:
    """The value, if it is an array of finite numbers; else ValueError."""
    array(name, value)

    def found(given: np.ndarray) -> str:
        kind = "nan" if np.isnan(given).any() else "infinite"
        count = int((~np.isfinite(given)).sum())
        return f"that are not finite, {kind} among them, in {count} of {given.size} places; they are finite numbers"

    values(name, value, "finite", lambda v, xp: xp.all(xp.isfinite(v)), found)
    return value


def values(
    name: str, value: Any, kind: str, holds: Callable[[Any, Any], Any], found: Callable[[np.ndarray], str]
) -> None:
    """Raises ValueError unless the entries of an array are as they should be; a traced array is seen under `checked`.

    Args:
      name: of the array.
      value: the array.
      kind: of the check; an array of JAX's that has passed it is not looked at again.
      holds: from the array and the module to compute with, numpy or jax.numpy, whether its entries are allowed.
      found: ends the sentence "got NAME ...": what is wrong with the entries, and what they should be.
    """
    if isinstance(value, jax.core.Tracer):
        if _inside_checked.get():
            from jax.experimental import checkify

            checkify.debug_check(holds(value, jnp), f"got {name} that are not {kind}, inside compiled code")
        return
    lasting = isinstance(value, jax.Array)
    key = id(value), kind
    if lasting and (known := _passed.get(key)) is not None and known() is value:
        return
    # On a CPU NumPy sees the same memory, and is at once where JAX would compile; of several processes each has a part.
    whole = not lasting or value.is_fully_addressable or value.is_fully_replicated
    near = whole and (not lasting or all(device.platform == "cpu" for device in value.devices()))
    # A constant of a function that is being traced has its numbers at hand, too.
    with jax.ensure_compile_time_eval():
        fits = bool(holds(np.asarray(value), np) if near else holds(value, jnp))
    if not fits:
        raise ValueError(f"got {name} {found(np.asarray(value))}")
    if lasting:
        _passed[key] = weakref.ref(value, lambda _: _passed.pop(key, None))


def random_key(key: Any) -> None:
    """Raises ValueError unless it is one random key of `jax.random`."""
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    raw = isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32 and key.ndim == 1
    told = f"{'keys' if typed else 'an array'} of shape {jnp.shape(key)}" if isinstance(key, jax.Array) else _shown(key)
    if not raw and not (typed and key.shape == ()):
        raise ValueError(f"got {told} for the random key; it takes one, as jax.random.key(0) gives")
    if not is_traced(key) and isinstance(key, jax.Array) and key.is_deleted():
        raise ValueError("got a random key that a donating call has consumed; use a copy, or another key")


def spoilt(score: Tree, *sources: Any) -> Tree:
    """The score, or nan in all its entries where any of the numbers that it comes from is not finite.

    Sampling hides a nan: a unit whose field is nan does not fire. So does a maximum or a minimum in compiled code.
    """
    sound = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(sources)]).all()
    return jax.tree.map(lambda s: jnp.where(sound, s, jnp.nan), score)


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """The function with checks of values inside compiled code too, by `jax.experimental.checkify`; for finding faults.

    Where a check fails, in a program that `jax.jit`, `jax.vmap` or `jax.lax.scan` runs, a call raises ValueError with
    the same sentence as outside compiled code, without the values. Programs that were compiled without checks are
    dropped first (`jax.clear_caches`), so that it costs a compilation at each call.
    """
    from jax.experimental import checkify

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with _checks_inside():
            error, result = checkify.checkify(lambda: function(*args, **kwargs))()
        message = error.get()
        if message is not None:
            raise ValueError(message.removesuffix(" (`check` failed)"))
        return result

    return run


@contextlib.contextmanager
def _checks_inside() -> Iterator[None]:
    jax.clear_caches()
    token = _inside_checked.set(True)
    try:
        yield
    finally:
        _inside_checked.reset(token)
        jax.clear_caches()


def _found_other_than_bits(values: np.ndarray) -> str:
    """What there is instead of zeros and ones, and how it becomes zeros and ones."""
    takes = "they are zeros and ones"
    values = values.astype(np.float64)
    if np.isnan(values).any():
        return f"with nan in {int(np.isnan(values).sum())} of {values.size} places; {takes}, so fill in what is missing"
    if np.isin(values, (-1, 1)).all():
        return f"of spins -1 and +1; {takes}, which (x + 1) / 2 makes of spins"
    if values.min() >= 0 and values.max() <= 1:
        return f"{_range(values)}, not all at the ends; {takes}, which data.binarise makes of grey values"
    if values.min() >= 0 and values.max() <= 255 and (values == np.round(values)).all() and values.max() > 25:
        return f"{_range(values)}; {takes}, which data.binarise(x / 255) makes of bytes"
    if values.min() >= 0 and np.isfinite(values).all() and (values == np.round(values)).all():
        return f"of counts up to {values.max():g}; {takes}, which x > 0 makes of counts"
    return f"{_range(values)}; {takes}"


def _range(values: np.ndarray) -> str:
    return f"with values from {values.min():g} to {values.max():g}"


def _shown(value: object) -> str:
    """A value in a sentence: short, and on one line."""
    if isinstance(value, jax.core.Tracer):
        return f"a traced {value.aval.str_short()}"
    if isinstance(value, jax.Array | np.ndarray) and value.size > 8:
        return f"an array of shape {value.shape}"
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        value = value.tolist()
    # A word stands as the user of a command has typed it; what could be taken for something else is quoted.
    if isinstance(value, str) and re.fullmatch("[A-Za-z_][A-Za-z0-9_-]*", value):
        return value[:200]
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:200]}..."
