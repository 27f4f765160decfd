"""Energy, local fields, free energy, and exact sums over small machines.

    E(x)   = - sum_{i<j} w_ij x_i x_j - sum_j b_j x_j          p(x) = exp(-E(x)) / Z
    z_j(x) = sum_i w_ij x_i + b_j                               the local field of unit j
    E(x) - E(x with bit j flipped) = (1 - 2 x_j) z_j

(Liu, Quek and Lin, arXiv 1711.07732, equation 1.) Everything a machine does follows from its local fields: Gibbs
conditionals are sigmoid(z) (`gibbs`), flip rates exp(alpha z) (`flow`). Not here: estimates of log Z for machines
too large to enumerate.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from vpf_jax.machine import BoltzmannMachine, State, check_state

MAX_EXACT_UNITS = 24
# States summed at once by the enumeration: 2^14 states of 24 units are 1.5 MB.
_EXACT_CHUNK_BITS = 14


def energy(machine: BoltzmannMachine, state: State) -> Float[Array, ""]:
    """Energy E(x) of one configuration, in units of the temperature.

    Args:
      machine: the machine.
      state: one array [n_l] of zeros and ones per layer.

    Raises:
      ValueError: a state whose layers do not fit the machine.
    """
    check_state(machine, state, batched=False)
    x = _as_parameters(machine, state)
    total = jnp.zeros((), machine.biases[0].dtype)
    for b, x_l in zip(machine.biases, x, strict=True):
        total -= jnp.vdot(b, x_l)
    for i, w in enumerate(machine.weights):
        total -= jnp.vdot(x[i] @ w, x[i + 1])
    for i, l in enumerate(machine.intra):
        if l is not None:
            total -= 0.5 * jnp.vdot(x[i] @ l, x[i])
    return total


def local_fields(machine: BoltzmannMachine, state: State) -> tuple[Float[Array, " n_l"], ...]:
    """Local fields z of all units in one configuration, one array [n_l] per layer.

    Raises:
      ValueError: a state whose layers do not fit the machine.
    """
    check_state(machine, state, batched=False)
    x = _as_parameters(machine, state)
    return tuple(layer_field(machine, x, i) for i in range(len(x)))


def layer_field(machine: BoltzmannMachine, state: State, layer: int) -> Float[Array, " n_l"]:
    """Local fields of one layer: its bias and the inputs from below, from above and from inside."""
    z = machine.biases[layer]
    if layer > 0:
        z = z + weighted_input(state[layer - 1], machine.weights[layer - 1], z.dtype)
    if layer < len(machine.weights):
        z = z + weighted_input(state[layer + 1], machine.weights[layer].T, z.dtype)
    intra = machine.intra[layer]
    if intra is not None:
        z = z + weighted_input(state[layer], intra, z.dtype)
    return z


def weighted_input(
    x: Num[Array, "*batch n"], weights: Float[Array, "n m"], dtype: DTypeLike
) -> Float[Array, "*batch m"]:
    """The product x W: operands in the precision of the weights, sums and result in `dtype`."""
    return jnp.matmul(x.astype(weights.dtype), weights, preferred_element_type=dtype)


def free_energy(machine: BoltzmannMachine, visible: Num[Array, " n_0"]) -> Float[Array, ""]:
    """Free energy F(v) of a two-layer machine: exp(-F(v)) = sum_h exp(-E(v, h)).

    Closed form, F(v) = E(v, 0) - sum_j log(1 + exp(z_j)), since hidden units without intra-layer weights are
    independent given v. Visible intra-layer weights are allowed.

    Raises:
      ValueError: a machine of another shape, or a visible vector that does not fit it.
    """
    if len(machine.sizes) != 2 or machine.intra[1] is not None:
        raise ValueError(
            f"got a machine of layer sizes {machine.sizes}"
            f"{' with hidden intra-layer weights' if any(l is not None for l in machine.intra[1:]) else ''}; "
            "the free energy has a closed form for two layers without weights inside the hidden one"
        )
    state = (visible, jnp.zeros(machine.sizes[1], machine.biases[1].dtype))
    return energy(machine, state) - jnp.sum(jax.nn.softplus(layer_field(machine, state, 1)))


def log_partition_exact(machine: BoltzmannMachine) -> Float[Array, ""]:
    """Exact log Z by enumeration of all 2^n states, in bounded memory.

    Raises:
      ValueError: a machine of more than `MAX_EXACT_UNITS` units.
    """
    if machine.num_units > MAX_EXACT_UNITS:
        raise ValueError(
            f"got a machine of {machine.num_units} units; exact enumeration is allowed up to {MAX_EXACT_UNITS}"
        )
    low_bits = min(machine.num_units, _EXACT_CHUNK_BITS)
    low = jnp.arange(2**low_bits, dtype=jnp.uint32)

    def log_sum(high: Array) -> Float[Array, ""]:
        numbers = low + high * jnp.uint32(2**low_bits)
        states = jax.vmap(lambda number: _unpack(machine, number))(numbers)
        return jax.nn.logsumexp(-jax.vmap(lambda state: energy(machine, state))(states))

    high = jnp.arange(2 ** (machine.num_units - low_bits), dtype=jnp.uint32)
    return jax.nn.logsumexp(jax.lax.map(log_sum, high))


def _unpack(machine: BoltzmannMachine, number: Array) -> State:
    """The state whose units are the binary digits of `number`, first unit lowest."""
    shifts = jnp.arange(machine.num_units, dtype=jnp.uint32)
    bits = jnp.right_shift(number[None], shifts) & 1
    ends = [sum(machine.sizes[: i + 1]) for i in range(len(machine.sizes) - 1)]
    return tuple(jnp.split(bits, ends))


def _as_parameters(machine: BoltzmannMachine, state: State) -> State:
    return tuple(jnp.asarray(x).astype(b.dtype) for x, b in zip(state, machine.biases, strict=True))
