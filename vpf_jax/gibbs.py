"""Markov kernels of Gibbs sampling: layer blocks, the asynchronous sweep inside a layer, whole sweeps and chains.

A unit is resampled from p(x_j = 1 | all others) = sigmoid(z_j). Layers of the same parity do not see each other, so a
layer without intra-layer weights is resampled as one block; the units of a layer with intra-layer weights go one
after another in index order, each seeing the newest values of the others (the asynchronous sweep of Liu, Quek and
Lin, arXiv 1711.07732, section 5). Both kernels leave the machine's distribution invariant.

The kernels are deterministic functions of uniform random numbers; only the functions that take a key draw them. Not
here: samplers that pass through the machines of a stack (`stack`), tempering.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray

from vpf_jax.energy import layer_field
from vpf_jax.machine import BoltzmannMachine, State, check_layers, check_state
from vpf_jax.random_numbers import uniform


def gibbs_sweep(key: PRNGKeyArray, machine: BoltzmannMachine, state: State, clamped: Sequence[int] = ()) -> State:
    """Resamples every unclamped unit of one configuration once: odd layers first, then even ones.

    Args:
      key: a random key.
      machine: the machine.
      state: one array [n_l] of zeros and ones per layer.
      clamped: indices of the layers held fixed.

    Returns:
      The new state, each layer in the dtype it came in.

    Raises:
      ValueError: a state that does not fit the machine, or clamped indices that name no layer or one layer twice.
    """
    check_state(machine, state, batched=False)
    clamped = check_layers("clamped", clamped, len(machine.sizes))
    state = tuple(jnp.asarray(x) for x in state)
    return sweep_layers(machine, state, draw_uniforms(key, state), clamped)


def draw_uniforms(key: PRNGKeyArray, state: State) -> tuple[Float[Array, "*batch n_l"], ...]:
    """One uniform number in [0, 1) for each entry of a state."""
    keys = jax.random.split(key, len(state))
    return tuple(uniform(k, x.shape) for k, x in zip(keys, state, strict=True))


def sweep_layers(
    machine: BoltzmannMachine,
    state: State,
    uniforms: tuple[Float[Array, " n_l"], ...],
    clamped: tuple[int, ...] = (),
) -> State:
    """`gibbs_sweep` driven by one uniform number in [0, 1) per unit."""
    layers = (*range(1, len(state), 2), *range(0, len(state), 2))
    for i in layers:
        if i not in clamped:
            resampled = resample_layer(machine, state, i, uniforms[i])
            state = (*state[:i], resampled, *state[i + 1 :])
    return state


def run_chain(
    key: PRNGKeyArray,
    machine: BoltzmannMachine,
    state: State,
    num_sweeps: int,
    clamped: Sequence[int] = (),
) -> State:
    """The state after `num_sweeps` (at least 0) Gibbs sweeps; otherwise as `gibbs_sweep`.

    Raises:
      ValueError: a negative number of sweeps, and what `gibbs_sweep` refuses.
    """
    if not isinstance(num_sweeps, int) or num_sweeps < 0:
        raise ValueError(f"got num_sweeps={num_sweeps}; it takes an integer of at least 0")
    check_state(machine, state, batched=False)
    check_layers("clamped", clamped, len(machine.sizes))

    def sweep(state: State, i: Array) -> tuple[State, None]:
        # fold_in, not a scan over split keys: under vmap JAX's check of key reuse takes the latter for a reuse.
        return gibbs_sweep(jax.random.fold_in(key, i), machine, state, clamped), None

    start = tuple(jnp.asarray(x) for x in state)
    return jax.lax.scan(sweep, start, jnp.arange(num_sweeps))[0]


def resample_layer(
    machine: BoltzmannMachine, state: State, layer: int, uniforms: Float[Array, " n_l"]
) -> Num[Array, " n_l"]:
    """New values of one layer given the rest of the state, driven by one uniform number in [0, 1) per unit."""
    intra = machine.intra[layer]
    if intra is None:
        return fires(layer_field(machine, state, layer), uniforms).astype(state[layer].dtype)
    outside = layer_field(dataclasses.replace(machine, intra=(None,) * len(machine.intra)), state, layer)
    return asynchronous_sweep(intra, outside, state[layer], uniforms)


def asynchronous_sweep(
    intra: Float[Array, "n n"],
    fields: Float[Array, " n"],
    x: Num[Array, " n"],
    uniforms: Float[Array, " n"],
) -> Num[Array, " n"]:
    """Resamples the units of one layer in index order, each seeing the newest values of the others.

    Args:
      intra: intra-layer weights, symmetric with zero diagonal.
      fields: bias plus the inputs from other layers.
      x: values before the sweep, zeros and ones.
      uniforms: one number in [0, 1) per unit.
    """

    def resample(j: Array, values: Float[Array, " n"]) -> Float[Array, " n"]:
        field = fields[j] + values @ intra[:, j]
        return values.at[j].set(fires(field, uniforms[j]).astype(values.dtype))

    return jax.lax.fori_loop(0, x.shape[0], resample, x.astype(fields.dtype)).astype(x.dtype)


def fires(field: Float[Array, "..."], uniform: Float[Array, "..."]) -> Array:
    """Bernoulli(sigmoid(field)) as booleans, driven by uniform numbers in [0, 1)."""
    return uniform < jax.nn.sigmoid(field)
