"""Energy, local fields, marginal and free energies, and exact sums over small machines.

    E(x)   = - sum_{i<j} w_ij x_i x_j - sum_j b_j x_j          p(x) = exp(-E(x)) / Z
    z_j(x) = sum_i w_ij x_i + b_j                               the local field of unit j
    E(x) - E(x with x_j' for x_j) = (x_j' - x_j) z_j

(Liu, Quek and Lin, arXiv 1711.07732, equation 1), plus the units' own energies e(x_j) where these are not 0 (`units`).
Everything a machine does follows from its local fields and its units: conditionals (`sample.gibbs`), flip rates
(`rules.vpf`). Layers that do not see each other and have no intra-layer weights are summed out in closed form, each of
their units giving a factor exp(A(z_j)), which is 1 + exp(z_j) for binary ones. Not here: estimates of log Z for
machines too large to enumerate (`evaluate.ais`).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from vpf_jax import checks, couplings
from vpf_jax.checks import AnyArray
from vpf_jax.machine import AnyState, BoltzmannMachine, State, check_layers, check_machine, check_state, check_symmetric

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


def _energy(machine: BoltzmannMachine, x: State, summed: Sequence[int] = ()) -> Float[Array, ""]:
    """Of any numbers; a layer that is summed out has no part in it, and is 0."""
    total = jnp.zeros((), machine.biases[0].dtype)
    for b, x_l in zip(machine.biases, x, strict=True):
        total -= jnp.vdot(b, x_l)
    for i, w in enumerate(machine.weights):
        total -= jnp.vdot(couplings.up(w, x[i], total.dtype), x[i + 1])
    for i, l in enumerate(machine.intra):
        if l is not None:
            total -= 0.5 * jnp.vdot(couplings.up(l, x[i], total.dtype), x[i])
    for i, unit in enumerate(machine.layer_units):
        if i not in summed:
            total += jnp.sum(unit.own_energy(x[i]))
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
    return _energy(machine, x, summed) - sum(logs)


def summable_layers(machine: BoltzmannMachine) -> tuple[int, ...]:
    """The layers to sum out: those of one parity without intra-layer weights, of the parity where they hold more units.

    Where both hold the same number, the odd ones; of two parities of which one leaves layers whose values cannot be
    counted, the other. Empty if every layer has intra-layer weights.
    """

    def merit(layers: tuple[int, ...]) -> tuple[bool, int]:
        left = [i for i in range(len(machine.sizes)) if i not in layers]
        return all(_countable(machine, i) for i in left), sum(machine.sizes[i] for i in layers)

    parities = [tuple(i for i in range(first, len(machine.sizes), 2) if machine.intra[i] is None) for first in (1, 0)]
    return max(parities, key=merit)


def _countable(machine: BoltzmannMachine, layer: int) -> bool:
    parts = machine.layer_units[layer].segments(machine.sizes[layer])
    return all(unit.all_values() is not None for unit, _ in parts)


def num_left(machine: BoltzmannMachine, summed: Sequence[int]) -> float:
    """Bits of the states of the layers that are not summed out: units of two values, and the log2 q of others."""
    left = [i for i in range(len(machine.sizes)) if i not in summed]
    if not all(_countable(machine, i) for i in left):
        return math.inf
    return sum(count * math.log2(len(values)) for i in left for values, count in _values(machine, i))


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
      ValueError: a machine with more than `MAX_EXACT_UNITS` units of two values in the layers to enumerate, or as many
        states of other units, or with units there whose values cannot be counted.
    """
    check_machine(machine)
    check_symmetric(machine, "a partition function")
    summed = summable_layers(machine)
    bits = num_left(machine, summed)
    if math.isinf(bits):
        kinds = ", ".join(dict.fromkeys(unit.name for unit in machine.layer_units))
        raise ValueError(
            f"got a machine of {kinds} units; exact enumeration takes those of a finite number of values in all layers "
            "that cannot be summed out in closed form"
        )
    if bits > MAX_EXACT_UNITS:
        raise ValueError(
            f"got a machine of layer sizes {machine.sizes} with {bits:.4g} units to enumerate; "
            f"exact enumeration is allowed up to {MAX_EXACT_UNITS}, a unit of q values counting log2 q"
        )
    number_of_states = round(2**bits)
    # The states of a chunk hold all units, the summed ones too.
    chunk = min(number_of_states, 2 ** max(0, _EXACT_CHUNK_BITS - math.ceil(math.log2(machine.num_units))))
    low = jnp.arange(chunk, dtype=jnp.uint32)

    def log_sum(high: Array) -> Float[Array, ""]:
        numbers = low + high * jnp.uint32(chunk)
        states = jax.vmap(lambda number: _unpack(machine, number, summed))(numbers)
        energies = jax.vmap(lambda state: marginal_energy(machine, state, summed))(states)
        # The last chunk may reach past the last state.
        return jax.nn.logsumexp(jnp.where(numbers < number_of_states, -energies, -jnp.inf))

    high = jnp.arange(math.ceil(number_of_states / chunk), dtype=jnp.uint32)
    return checks.spoilt(jax.nn.logsumexp(jax.lax.map(log_sum, high)), machine)


def _unpack(machine: BoltzmannMachine, number: Array, summed: tuple[int, ...]) -> State:
    """The state whose units are the digits of `number`, first unit lowest; any values in the summed layers."""
    state, rest = [], number
    for i, n in enumerate(machine.sizes):
        if i in summed:
            state.append(jnp.zeros(n, machine.layer_units[i].dtype))
            continue
        parts = []
        for values, count in _values(machine, i):
            # Digits in the base of the number of values.
            powers = jnp.asarray(len(values) ** np.arange(count), jnp.uint32)
            digits = rest // powers % jnp.uint32(len(values))
            parts.append(jnp.asarray(values)[digits].reshape(-1))
            rest = rest // jnp.uint32(len(values) ** count)
        state.append(jnp.concatenate(parts) if len(parts) > 1 else parts[0])
    return tuple(state)


def _values(machine: BoltzmannMachine, layer: int) -> list[tuple[np.ndarray, int]]:
    """Of each group of a layer of units that can be counted what one unit may be, and how many there are."""
    parts = machine.layer_units[layer].segments(machine.sizes[layer])
    found = [(unit.all_values(), (part.stop - part.start) // unit.width) for unit, part in parts]
    return [(values, count) for values, count in found if values is not None]


def _as_parameters(machine: BoltzmannMachine, state: AnyState) -> State:
    return tuple(jnp.asarray(x).astype(b.dtype) for x, b in zip(state, machine.biases, strict=True))
