"""Energy, local fields, marginal and free energies, and exact sums over small machines.

    E(x)   = - sum_{i<j} w_ij x_i x_j - sum_j b_j x_j          p(x) = exp(-E(x)) / Z
    z_j(x) = sum_i w_ij x_i + b_j                               the local field of unit j
    E(x) - E(x with x_j' for x_j) = (x_j' - x_j) z_j

(Liu, Quek and Lin, arXiv 1711.07732, equation 1.) Everything a machine does follows from its local fields and its
units: conditionals (`sample.gibbs`), flip rates (`rules.vpf`). Layers that do not see each other and have no
intra-layer weights are summed out in closed form, each of their units giving a factor exp(A(z_j)), which is
1 + exp(z_j) for binary ones. Not here: estimates of log Z for machines too large to enumerate (`evaluate.ais`).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from vpf_jax import checks, couplings
from vpf_jax.checks import AnyArray
from vpf_jax.machine import AnyState, BoltzmannMachine, State, check_layers, check_machine, check_state, check_symmetric
from vpf_jax.units import two_valued

MAX_EXACT_UNITS = 24
# Entries of the states that the enumeration sums at once: 2^19 in single precision are 2 MB.
_EXACT_CHUNK_BITS = 19


def energy(machine: BoltzmannMachine, state: AnyState) -> Float[Array, ""]:
    """Energy E(x) of one configuration, in units of the temperature.

    Args:
      machine: the machine.
      state: one array [n_l] of values of its units per layer.

    Raises:
      ValueError: a state whose layers do not fit the machine, or a directed machine, which has no energy.
    """
    check_state(machine, state, batched=False)
    check_symmetric(machine, "an energy")
    return _energy(machine, _as_parameters(machine, state))


def _energy(machine: BoltzmannMachine, x: State) -> Float[Array, ""]:
    """Of any numbers, a layer without a part in it being 0."""
    total = jnp.zeros((), machine.biases[0].dtype)
    for b, x_l in zip(machine.biases, x, strict=True):
        total -= jnp.vdot(b, x_l)
    for i, w in enumerate(machine.weights):
        total -= jnp.vdot(couplings.up(w, x[i], total.dtype), x[i + 1])
    for i, l in enumerate(machine.intra):
        if l is not None:
            total -= 0.5 * jnp.vdot(couplings.up(l, x[i], total.dtype), x[i])
    return total


def local_fields(machine: BoltzmannMachine, state: AnyState) -> tuple[Float[Array, " _n_l"], ...]:
    """Local fields z of all units in one configuration, one array [n_l] per layer.

    Raises:
      ValueError: a state whose layers do not fit the machine.
    """
    check_state(machine, state, batched=False)
    x = _as_parameters(machine, state)
    return tuple(layer_field(machine, x, i) for i in range(len(x)))


def layer_field(machine: BoltzmannMachine, state: State, layer: int, *, inside: bool = True) -> Float[Array, " n_l"]:
    """Local fields of one layer: its bias and the inputs from below, from above and, where asked for, from inside."""
    z = machine.biases[layer]
    if layer > 0:
        z = z + couplings.up(machine.weights[layer - 1], state[layer - 1], z.dtype)
    if layer < len(machine.weights):
        z = z + couplings.down(machine.downward[layer], state[layer + 1], z.dtype)
    intra = machine.intra[layer]
    if intra is not None and inside:
        z = z + couplings.up(intra, state[layer], z.dtype)
    return z


def upward_field(
    machine: BoltzmannMachine, layer: int, below: Shaped[Array, "*batch n_below"]
) -> Float[Array, "*batch n_l"]:
    """Bias plus the input from the layer below: inputs from above and from inside are zeroed."""
    b = machine.biases[layer]
    return couplings.up(machine.weights[layer - 1], below, b.dtype) + _for_each(below, b)


def downward_field(
    machine: BoltzmannMachine, layer: int, above: Shaped[Array, "*batch n_above"]
) -> Float[Array, "*batch n_l"]:
    """Bias plus the input from the layer above: inputs from below and from inside are zeroed."""
    b = machine.biases[layer]
    return couplings.down(machine.downward[layer], above, b.dtype) + _for_each(above, b)


def _for_each(x: Shaped[Array, "*batch n"], b: Float[Array, " m"]) -> Float[Array, "..."]:
    """The biases, to be added to fields of a batch like that of x."""
    return jnp.expand_dims(b, tuple(range(jnp.ndim(x) - 1)))


def marginal_energy(machine: BoltzmannMachine, state: AnyState, summed: Sequence[int]) -> Float[Array, ""]:
    """Energy of one configuration with some layers summed out: -log sum_{x_summed} exp(-E(x)).

    Closed form, E(x without the summed layers) - sum_j A(z_j) over their units j, which are independent given the other
    layers, A being the log-normaliser of the unit, log(1 + exp(z)) for binary ones.

    Args:
      machine: the machine.
      state: one array [n_l] of values of its units per layer; the values of the summed layers are ignored.
      summed: indices of layers without intra-layer weights, no two of them neighbours.

    Raises:
      ValueError: a state that does not fit the machine, or layers that cannot be summed out in closed form.
    """
    check_machine(machine)
    check_symmetric(machine, "an energy")
    summed = check_layers("summed", summed, len(machine.sizes))
    check_state(machine, state, batched=False, ignored=summed)
    if any(machine.intra[i] is not None or i + 1 in summed for i in summed):
        raise ValueError(f"got summed={summed}; it takes layers without intra-layer weights, no two of them neighbours")
    x = tuple(jnp.zeros_like(x_l) if i in summed else x_l for i, x_l in enumerate(_as_parameters(machine, state)))
    logs = (jnp.sum(machine.layer_units[i].log_normaliser(layer_field(machine, x, i))) for i in summed)
    return _energy(machine, x) - sum(logs)


def summable_layers(machine: BoltzmannMachine) -> tuple[int, ...]:
    """The layers to sum out: those of one parity without intra-layer weights, of the parity where they hold more units.

    Where both hold the same number, the odd ones. Empty if every layer has intra-layer weights.
    """
    parities = [tuple(i for i in range(first, len(machine.sizes), 2) if machine.intra[i] is None) for first in (1, 0)]
    return max(parities, key=lambda layers: sum(machine.sizes[i] for i in layers))


def free_energy(machine: BoltzmannMachine, visible: Shaped[AnyArray, " n_0"]) -> Float[Array, ""]:
    """Free energy F(v) of a machine of one or two layers: exp(-F(v)) = sum_h exp(-E(v, h)).

    The marginal energy with the hidden layer summed out; without one, the energy. Visible intra-layer weights are
    allowed.

    Raises:
      ValueError: a machine of another shape, or a visible vector that does not fit it.
    """
    check_machine(machine)
    if not machine.has_independent_hidden:
        raise ValueError(
            f"got a machine of layer sizes {machine.sizes}"
            f"{' with hidden intra-layer weights' if any(l is not None for l in machine.intra[1:]) else ''}; "
            "the free energy has a closed form for one or two layers without weights inside the hidden one"
        )
    hidden = tuple(jnp.zeros(size) for size in machine.sizes[1:])
    return marginal_energy(machine, (visible, *hidden), range(1, len(machine.sizes)))


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
    """The state whose units are the binary digits of `number`, first unit lowest; lower values in the summed layers."""
    state, start = [], 0
    for i, n in enumerate(machine.sizes):
        unit = two_valued(machine.layer_units[i], "enumeration")
        bits = jnp.zeros(n, jnp.uint32)
        if i not in summed:
            bits = jnp.right_shift(number[None], jnp.arange(start, start + n, dtype=jnp.uint32)) & 1
            start += n
        state.append(unit.at(bits == 1))
    return tuple(state)


def _as_parameters(machine: BoltzmannMachine, state: AnyState) -> State:
    return tuple(jnp.asarray(x).astype(b.dtype) for x, b in zip(state, machine.biases, strict=True))
