"""Every public function over arguments drawn at random: a documented error, or finite results of the right shape.

One argument of a right call (`calls`) is replaced by an array of any dtype, rank and size, with values that include
nan, infinities, negative and large numbers, or by a number. Not here: the table of named wrong values (`test_calls`).
"""

import warnings

import calls
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import CALLS
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from test_calls import assert_one_sentence

# Results that may hold nan or infinities: a pole, bins without trials, weights that are all 0, the logarithm of a
# density that underflows, and squares of 1e30, which overflow.
NOT_FINITE = {"stdp_window", "binned_means", "alignment", "parzen_log_likelihood", "squared_weight"}
# Few that are taken: every one of them is compiled for anew.
DTYPES = (np.uint8, np.float32, np.bool_, np.complex64)
VALUES = {
    "bits": (0, 1),
    "ones": (1,),
    "small": (0, 1, 2, 3),
    "spins": (-1, 1),
    "grey": (0, 0.25, 0.5, 1),
    "missing": (0, 1, np.nan),
    "infinite": (0, 1, np.inf),
    "large": (0, 1e30, -1e30),
}


def one_of_first(count: int) -> st.SearchStrategy[int]:
    """A number below `count`. Not st.integers: it favours constants of whatever modules happen to be loaded."""
    return st.sampled_from(range(count))


@st.composite
def arrays(draw: st.DrawFn, like: tuple[int, ...]) -> np.ndarray:
    """An array of the shape of a right argument, or near it, of any dtype and values."""
    shape = list(like)
    change = draw(st.sampled_from(["same", "same", "same", "longer", "empty", "axis", "flat"]))
    if change == "longer" and shape:
        shape[draw(one_of_first(len(shape)))] += 1
    elif change == "empty" and shape:
        shape[draw(one_of_first(len(shape)))] = 0
    elif change == "axis":
        shape.append(1)
    elif change == "flat":
        shape = [int(np.prod(shape))]
    values = draw(st.sampled_from(sorted(VALUES)))
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(one_of_first(4)))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        chosen = rng.choice(np.array(VALUES[values]), shape).astype(dtype)
    return jnp.asarray(chosen) if draw(st.booleans()) else chosen


NUMBERS = st.sampled_from(
    [0, 1, 2, -1, 2.5, 0.5, True, None, "2", float("nan"), float("inf"), np.int64(2), np.float32(1)]
)


@st.composite
def changes(draw: st.DrawFn, call: calls.Call) -> dict:
    """One argument of a right call and what stands there instead."""
    argument = draw(st.sampled_from(sorted(call.kinds)))
    right = call.arguments.get(argument)
    if isinstance(right, tuple) and right and hasattr(right[0], "shape"):
        layer = draw(one_of_first(len(right)))
        return {argument: (*right[:layer], draw(arrays(right[layer].shape)), *right[layer + 1 :])}
    if isinstance(right, jax.Array | np.ndarray) and argument != "key":
        return {argument: draw(st.one_of(arrays(right.shape), NUMBERS))}
    return {argument: draw(NUMBERS)}


def numbers(tree):
    """The arrays of a result, but for keys."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array | np.ndarray)]
    return [np.asarray(leaf) for leaf in leaves if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.slow  # all of them together
@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_documented_error_or_finite_results(name):
    call = CALLS[name]

    @hypothesis.settings(max_examples=8, derandomize=True, deadline=None, database=None)
    @hypothesis.given(changes(call))
    def attempt(changed):
        try:
            with warnings.catch_warnings():
                # Few chains carry an estimate of log Z from few temperatures, and a probe of one step has not
                # converged; both say so.
                warnings.simplefilter("ignore", calls.ais.LowEffectiveSampleSizeWarning)
                warnings.simplefilter("ignore", ConvergenceWarning)
                result = call.run(**changed)
        except ValueError as refusal:
            assert_one_sentence(str(refusal))
            return
        for found in numbers(result):
            assert name in NOT_FINITE or found.dtype.kind not in "fc" or np.isfinite(found).all()
        # An array of the right shape gives a result of the right shape.
        ((argument, value),) = changed.items()
        like = call.arguments.get(argument)
        if isinstance(value, jax.Array | np.ndarray) and isinstance(like, jax.Array | np.ndarray):
            assert value.shape != like.shape or [found.shape for found in numbers(result)] == right

    right = [found.shape for found in numbers(call.run())]
    attempt()
