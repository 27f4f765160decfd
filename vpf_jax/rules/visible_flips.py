"""Flips of visible units with the hidden layer averaged or summed out in closed form: objectives and gradients.

For a two-layer machine whose hidden units are independent given the visible ones, and for a fully visible machine, two
quantities belong to the flip of each visible bit i. With s_i = 1 - 2 x_i, the field z_i of bit i without the hidden
layer (bias and visible intra-layer input), and probabilities p_j of the hidden units,

    averaged   log E_h[delta_i]            = (1/2) s_i z_i + sum_j log(1 + p_j (exp(s_i w_ij / 2) - 1))
    summed     log p(x with i flipped)/p(x) =      s_i z_i + sum_j log(1 + p_j (exp(s_i w_ij) - 1))

The first, h drawn from p, is the flip rate of variational probability flow (Liu, Quek and Lin, arXiv 1711.07732)
without the noise of sampled hidden states. The second, p_j = p(h_j = 1 | x), belongs to the free energy; minimum
probability flow on the marginal, pseudo-likelihood and ratio matching are sums of functions of it (`baselines`).

Both are sums over all pairs (i, j) for every example: batch * n_0 * n_1 terms, formed for some visible units at a time
so that they take at most `CHUNK_BYTES`. Not here: what is done with sampled hidden states (`local_rule`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from vpf_jax import checks
from vpf_jax.energy import weighted_input
from vpf_jax.machine import BoltzmannMachine, check_machine, check_symmetric, off_diagonal
from vpf_jax.rules.local_rule import mean_products
from vpf_jax.sample.streams import Stream, permutation

# Bytes of the terms formed at once (one array of [batch, units, n_1]): what stays in the cache of a core.
CHUNK_BYTES = 2**20


def averaged_flow(
    machine: BoltzmannMachine,
    visible: Num[Array, "batch n_0"],
    probabilities: Float[Array, "batch n_1"],
    hidden_flips: bool = True,
    units: Int[Array, " num_units"] | None = None,
) -> tuple[Float[Array, ""], BoltzmannMachine]:
    """The probability-flow objective and its local gradient, averaged over hidden states in closed form.

    The expectation of `objective_and_gradient` over independent hidden bits with the given probabilities, which are
    held fixed, as sampled states are.

    Args:
      machine: two layers, without weights inside the hidden one.
      visible: zeros and ones.
      probabilities: of the hidden units, in [0, 1].
      hidden_flips: whether flips of hidden units count.
      units: distinct indices of the visible units whose flips count, scaled up to all; None: all.

    Raises:
      ValueError: a machine of another shape, states, probabilities or units that do not fit it, or an empty batch.
    """
    check_closed_form(machine, "the closed-form expectation over hidden states", layers=(2,))
    visible, units = _check_flips(machine, visible, units)
    probabilities = jnp.asarray(checks.probabilities("probabilities", probabilities))
    wanted = (visible.shape[0], machine.sizes[1])
    if probabilities.shape != wanted:
        raise ValueError(f"got probabilities of shape {probabilities.shape}; they are [batch, n_1], here {wanted}")
    checks.boolean("hidden_flips", hidden_flips)
    objective, gradient = _visible_flips(
        machine, visible, probabilities, jnp.exp, scale=0.5, through_hidden=False, units=units
    )
    if not hidden_flips:
        return objective, gradient
    # E[delta_j] = p_j exp(-z_j / 2) + (1 - p_j) exp(z_j / 2); a hidden unit's field has no other hidden unit in it.
    x = visible.astype(machine.biases[1].dtype)
    z = weighted_input(x, machine.weights[0], x.dtype) + machine.biases[1][None]
    down, up = probabilities * jnp.exp(-z / 2), (1 - probabilities) * jnp.exp(z / 2)
    slopes = (up - down) / 2
    return objective + jnp.sum(up + down) / len(x), BoltzmannMachine(
        biases=(gradient.biases[0], gradient.biases[1] + jnp.mean(slopes, axis=0)),
        weights=(gradient.weights[0] + mean_products(x, slopes, machine.weights[0]),),
        intra=gradient.intra,
    )


def summed_flow(
    machine: BoltzmannMachine,
    visible: Num[Array, "batch n_0"],
    function: Callable[[Array], Array],
    units: Int[Array, " num_units"] | None = None,
) -> tuple[Float[Array, ""], BoltzmannMachine]:
    """Batch mean of sum_i function(log p(x with bit i flipped) / p(x)) and its gradient by the parameters.

    Args:
      machine: one layer, or two without weights inside the hidden one.
      visible: zeros and ones.
      function: elementwise and differentiable.
      units: distinct indices of the visible units whose flips count, scaled up to all; None: all.

    Raises:
      ValueError: a machine of another shape, states or units that do not fit it, or an empty batch.
    """
    check_closed_form(machine, "a rule on the free energy", layers=(1, 2))
    visible, units = _check_flips(machine, visible, units)
    if len(machine.sizes) == 1:
        return _fully_visible(machine, visible, function, units)
    fields = weighted_input(visible, machine.weights[0], machine.biases[1].dtype) + machine.biases[1][None]
    probabilities = jax.nn.sigmoid(fields)
    return _visible_flips(machine, visible, probabilities, function, scale=1.0, through_hidden=True, units=units)


def draw_units(stream: Stream, machine: BoltzmannMachine, num_units: int | None) -> Int[Array, " num_units"] | None:
    """A random choice of visible units for the argument `units`; None for None."""
    return None if num_units is None else permutation(stream, machine.sizes[0])[:num_units]


def check_closed_form(machine: BoltzmannMachine, what: str, layers: tuple[int, ...]) -> None:
    """Raises ValueError unless the machine has symmetric weights, layers as allowed, and independent hidden units."""
    check_machine(machine)
    check_symmetric(machine, what)
    if len(machine.sizes) not in layers or any(l is not None for l in machine.intra[1:]):
        inside = " with weights inside a hidden layer" if any(l is not None for l in machine.intra[1:]) else ""
        raise ValueError(
            f"got a machine of layer sizes {machine.sizes}{inside}; {what} takes machines of "
            f"{' or '.join(str(n) for n in layers)} layers without weights inside the hidden one"
        )


def _visible_flips(machine, visible, probabilities, function, *, scale, through_hidden, units):
    """The objective and gradient of both quantities; `through_hidden`: p_j depends on the parameters."""
    b, w = machine.biases[0], machine.weights[0]
    batch, (n_0, n_1) = visible.shape[0], w.shape
    x = visible.astype(b.dtype)
    fields = _fields_inside(machine, x)
    signs = 1 - 2 * x
    p = probabilities
    chosen = jnp.arange(n_0) if units is None else units
    # The mean over chosen units, as many times as there are units: unbiased for the sum over all.
    weight = n_0 / (batch * len(chosen))

    def of_units(carry: tuple[Array, Array], some: Array):
        """Adds the flips of some units; what depends on the unit is returned, the rest carried."""
        total, by_hidden = carry
        s, rows = signs[:, some], w[some].astype(b.dtype)
        up, down = jnp.exp(scale * rows), jnp.exp(-scale * rows)
        factor = jnp.where(s[:, :, None] > 0, up[None], down[None])
        mixed = 1 + p[:, None] * (factor - 1)
        log_ratio = scale * s * fields[:, some] + jnp.sum(jnp.log(mixed), axis=2)
        value, pull = jax.vjp(function, log_ratio)
        (slope,) = pull(jnp.full_like(value, weight))
        # The probability of hidden unit j once the bit is flipped (half flipped, for the average).
        after = p[:, None] * factor / mixed
        if through_hidden:
            by_hidden += jnp.einsum("bi,bij->bj", slope, after) - jnp.sum(slope, axis=1)[:, None] * p
        return (total + weight * jnp.sum(value), by_hidden), (
            scale * slope * s,
            scale * jnp.einsum("bi,bij->ij", slope * s, after),
        )

    carry = jnp.zeros((), b.dtype), jnp.zeros_like(p)
    size = max(1, min(len(chosen), CHUNK_BYTES // (batch * n_1 * b.dtype.itemsize)))
    num_full, rest = divmod(len(chosen), size)
    full = chosen[: num_full * size].reshape(num_full, size)
    carry, (slopes, rows) = jax.lax.scan(of_units, carry, full)
    slopes = jnp.moveaxis(slopes, 1, 0).reshape(batch, -1)
    rows = rows.reshape(-1, n_1)
    if rest:
        carry, (last_slopes, last_rows) = of_units(carry, chosen[num_full * size :])
        slopes, rows = jnp.concatenate([slopes, last_slopes], axis=1), jnp.concatenate([rows, last_rows])
    objective, by_hidden = carry
    if units is not None:
        slopes = jnp.zeros_like(x).at[:, units].set(slopes)
        rows = jnp.zeros((n_0, n_1), b.dtype).at[units].set(rows)
    if through_hidden:
        rows += batch * mean_products(x, by_hidden, w)
    inside = machine.intra[0]
    return objective, BoltzmannMachine(
        biases=(jnp.sum(slopes, axis=0), jnp.sum(by_hidden, axis=0)),
        weights=(rows,),
        intra=(None if inside is None else _tied(batch * mean_products(x, slopes, inside)), None),
    )


def _fully_visible(machine, visible, function, units):
    """As `_visible_flips` for a machine without hidden units."""
    (b,), (inside,) = machine.biases, machine.intra
    x = visible.astype(b.dtype)
    signs = 1 - 2 * x
    counted = jnp.ones_like(b) if units is None else jnp.zeros_like(b).at[units].set(len(b) / len(units))
    value, pull = jax.vjp(function, signs * _fields_inside(machine, x))
    slopes = pull(jnp.broadcast_to(counted[None] / len(x), x.shape))[0] * signs
    return jnp.sum(value * counted[None]) / len(x), BoltzmannMachine(
        biases=(jnp.sum(slopes, axis=0),),
        weights=(),
        intra=(None if inside is None else _tied(len(x) * mean_products(x, slopes, inside)),),
    )


def _fields_inside(machine: BoltzmannMachine, x: Float[Array, "batch n_0"]) -> Float[Array, "batch n_0"]:
    """Fields of the visible units without the input of the hidden ones."""
    inside = machine.intra[0]
    fields = jnp.broadcast_to(machine.biases[0][None], x.shape)
    return fields if inside is None else fields + weighted_input(x, inside, x.dtype)


def _tied(products: Float[Array, "n n"]) -> Float[Array, "n n"]:
    return off_diagonal(products + products.T)


def _check_flips(
    machine: BoltzmannMachine, visible: Num[Array, "batch n_0"], units: Int[Array, " num_units"] | None
) -> tuple[Num[Array, "batch n_0"], Int[Array, " num_units"] | None]:
    """The states and the units as arrays; raises ValueError unless both fit the machine."""
    n_0 = machine.sizes[0]
    checks.array("visible states", visible, f"an array [batch, {n_0}] of zeros and ones")
    if jnp.ndim(visible) != 2 or jnp.shape(visible)[1] != n_0:
        raise ValueError(f"got visible states of shape {jnp.shape(visible)}; the machine takes [batch, {n_0}]")
    if jnp.shape(visible)[0] == 0:
        raise ValueError("got an empty batch; a mean over states takes at least one state")
    checks.binary("visible states", visible)
    if units is not None:
        allowed = f"distinct indices of visible units, from 0 to {n_0 - 1}, at least one"
        if not checks.is_traced(units):
            # By NumPy, which a trace around the call does not see.
            indices = np.asarray(units)
            fits = indices.ndim == 1 and indices.size > 0 and indices.dtype.kind in "iu"
            fits = fits and 0 <= indices.min() and indices.max() < n_0 and len(np.unique(indices)) == indices.size
            checks.require(fits, "units", units, allowed)
        units = jnp.asarray(units)
        fits = units.ndim == 1 and units.size > 0 and jnp.issubdtype(units.dtype, jnp.integer)
        checks.require(fits, "units", units, allowed)
    return jnp.asarray(visible), units
