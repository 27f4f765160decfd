"""Energy, local fields, marginal and free energies, and exact sums over small machines.

    E(x)   = - sum_{i<j} w_ij x_i x_j - sum_j b_j x_j          p(x) = exp(-E(x)) / Z
    z_j(x) = sum_i w_ij x_i + b_j                               the local field of unit j
    E(x) - E(x with bit j flipped) = (1 - 2 x_j) z_j

(Liu, Quek and Lin, arXiv 1711.07732, equation 1.) Everything a machine does follows from its local fields: Gibbs
conditionals are sigmoid(z) (`gibbs`), flip rates exp(alpha z) (`flow`). Layers that do not see each other and have no
intra-layer weights are summed out in closed form, each of their units giving a factor 1 + exp(z_j). Not here:
estimates of log Z for machines too large to enumerate (`ais`).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from vpf_jax import checks
from vpf_jax.machine import BoltzmannMachine, State, check_layers, check_machine, check_state, check_symmetric

MAX_EXACT_UNITS = 24
# Entries of the states that the enumeration sums at once: 2^19 in single precision are 2 MB.
_EXACT_CHUNK_BITS = 19


def energy(machine: BoltzmannMachine, state: State) -> Float[Array, ""]:
    """Energy E(x) of one configuration, in units of the temperature.

    Args:
      machine: the machine.
      state: one array [n_l] of zeros and ones per layer.

    Raises:
      ValueError: a state whose layers do not fit the machine, or a directed machine, which has no energy.
    """
    check_state(machine, state, batched=False)
    check_symmetric(machine, "an energy")
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
        z = z + weighted_input(state[layer + 1], machine.downward[layer].T, z.dtype)
    intra = machine.intra[layer]
    if intra is not None:
        z = z + weighted_input(state[layer], intra, z.dtype)
    return z


def weighted_input(
    x: Num[Array, "*batch n"], weights: Float[Array, "n m"], dtype: DTypeLike
) -> Float[Array, "*batch m"]:
    """The product x W: operands in the precision of the weights, sums and result in `dtype`."""
    return narrow_product(x.astype(weights.dtype), weights, dtype)


def narrow_product(a: Num[Array, "*batch n"], b: Num[Array, "n m"], dtype: DTypeLike) -> Float[Array, "*batch m"]:
    """The product of two matrices of one precision, sums and result in another.

    On a CPU XLA has no such product for every shape and place in a program; the entries widened first are the same
    numbers, and so are their products.
    """
    if a.dtype == dtype:
        return jnp.matmul(a, b)
    return jax.lax.platform_dependent(
        a,
        b,
        cpu=lambda a, b: jnp.matmul(a.astype(dtype), b.astype(dtype)),
        default=lambda a, b: jnp.matmul(a, b, preferred_element_type=dtype),
    )


def marginal_energy(machine: BoltzmannMachine, state: State, summed: Sequence[int]) -> Float[Array, ""]:
    """Energy of one configuration with some layers summed out: -log sum_{x_summed} exp(-E(x)).

    Closed form, E(x with the summed layers at 0) - sum_j log(1 + exp(z_j)) over their units j, which are independent
    given the other layers.

    Args:
      machine: the machine.
      state: one array [n_l] of zeros and ones per layer; the values of the summed layers are ignored.
      summed: indices of layers without intra-layer weights, no two of them neighbours.

    Raises:
      ValueError: a state that does not fit the machine, or layers that cannot be summed out in closed form.
    """
    check_machine(machine)
    summed = check_layers("summed", summed, len(machine.sizes))
    check_state(machine, state, batched=False, ignored=summed)
    if any(machine.intra[i] is not None or i + 1 in summed for i in summed):
        raise ValueError(f"got summed={summed}; it takes layers without intra-layer weights, no two of them neighbours")
    x = tuple(jnp.zeros_like(x_l) if i in summed else x_l for i, x_l in enumerate(_as_parameters(machine, state)))
    fields = (layer_field(machine, x, i) for i in summed)
    return energy(machine, x) - sum(jnp.sum(jax.nn.softplus(z)) for z in fields)


def summable_layers(machine: BoltzmannMachine) -> tuple[int, ...]:
    """The layers to sum out: those of one parity without intra-layer weights, of the parity where they hold more units.

    Where both hold the same number, the odd ones. Empty if every layer has intra-layer weights.
    """
    parities = [tuple(i for i in range(first, len(machine.sizes), 2) if machine.intra[i] is None) for first in (1, 0)]
    return max(parities, key=lambda layers: sum(machine.sizes[i] for i in layers))


def free_energy(machine: BoltzmannMachine, visible: Num[Array, " n_0"]) -> Float[Array, ""]:
    """Free energy F(v) of a two-layer machine: exp(-F(v)) = sum_h exp(-E(v, h)).

    The marginal energy with the hidden layer summed out. Visible intra-layer weights are allowed.

    Raises:
      ValueError: a machine of another shape, or a visible vector that does not fit it.
    """
    check_machine(machine)
    if len(machine.sizes) != 2 or machine.intra[1] is not None:
        raise ValueError(
            f"got a machine of layer sizes {machine.sizes}"
            f"{' with hidden intra-layer weights' if any(l is not None for l in machine.intra[1:]) else ''}; "
            "the free energy has a closed form for two layers without weights inside the hidden one"
        )
    return marginal_energy(machine, (visible, jnp.zeros(machine.sizes[1])), (1,))


def log_partition_exact(machine: BoltzmannMachine) -> Float[Array, ""]:
    """Exact log Z in bounded memory: `summable_layers` in closed form, all states of the other layers enumerated.

    Raises:
      ValueError: a machine with more than `MAX_EXACT_UNITS` units in the layers to enumerate.
    """
    check_machine(machine)
    check_symmetric(machine, "a partition function")
    summed = summable_layers(machine)
    num_units = sum(n for i, n in enumerate(machine.sizes) if i not in summed)
    if num_units > MAX_EXACT_UNITS:
        raise ValueError(
            f"got a machine of layer sizes {machine.sizes} with {num_units} units to enumerate; "
            f"exact enumeration is allowed up to {MAX_EXACT_UNITS}"
        )
    # The states of a chunk hold all units, the summed ones too.
    low_bits = min(num_units, max(0, _EXACT_CHUNK_BITS - math.ceil(math.log2(machine.num_units))))
    low = jnp.arange(2**low_bits, dtype=jnp.uint32)

    def log_sum(high: Array) -> Float[Array, ""]:
        numbers = low + high * jnp.uint32(2**low_bits)
        states = jax.vmap(lambda number: _unpack(machine, number, summed))(numbers)
        return jax.nn.logsumexp(-jax.vmap(lambda state: marginal_energy(machine, state, summed))(states))

    high = jnp.arange(2 ** (num_units - low_bits), dtype=jnp.uint32)
    return checks.spoilt(jax.nn.logsumexp(jax.lax.map(log_sum, high)), machine)


def _unpack(machine: BoltzmannMachine, number: Array, summed: tuple[int, ...]) -> State:
    """The state whose units are the binary digits of `number`, first unit lowest; zeros in the summed layers."""
    state, start = [], 0
    for i, n in enumerate(machine.sizes):
        if i in summed:
            state.append(jnp.zeros(n, jnp.uint32))
        else:
            state.append(jnp.right_shift(number[None], jnp.arange(start, start + n, dtype=jnp.uint32)) & 1)
            start += n
    return tuple(state)


def _as_parameters(machine: BoltzmannMachine, state: State) -> State:
    return tuple(jnp.asarray(x).astype(b.dtype) for x, b in zip(state, machine.biases, strict=True))
