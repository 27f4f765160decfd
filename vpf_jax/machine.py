"""The layered Boltzmann machine: parameters, initialisation and shape checks.

Every model of the library is one representation (Liu, Quek and Lin, arXiv 1711.07732, section 2): layers of units,
binary ones {0, 1} in the paper, visible layer first, full weights between consecutive layers, and optional symmetric
weights inside any layer.

    fully visible Boltzmann machine   one layer with intra-layer weights
    RBM                               two layers
    semi-restricted machine           two layers, intra-layer weights in the visible one
    DBM                               three layers or more
    intra-layer DBM                   a DBM with intra-layer weights in its hidden layers

A machine may also be directed: the synapses from a layer up to the next and those back down have matrices of their own
(`untie`), and an intra-layer matrix need not be symmetric. Local fields, flip rates and the Markov kernels are then
what they always are; an energy, and all that rests on it, a directed machine has none.

Temperature is 1: a temperature T only divides all parameters by T. Not here: what the units are (`units`), other forms
of weights (`couplings`), energies (`energy`), learning (`rules`, `train`), tuples of machines that are trained pairwise
(`stack`).
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from vpf_jax import checks, couplings
from vpf_jax.checks import AnyArray
from vpf_jax.couplings import Blocks
from vpf_jax.exporting import exported
from vpf_jax.units import BINARY, Unit
from vpf_jax.units import get as get_unit
from vpf_jax.units.base import owners

# One array per layer, visible first: [n_l] for one configuration, [batch, n_l] for a batch.
State = tuple[Shaped[Array, "*batch _n_l"], ...]
# What functions take that convert by themselves.
AnyState = tuple[Shaped[AnyArray, "*batch _n_l"], ...]
# Of a machine: what decays, is bounded or thresholded, biases not among it.
WEIGHT_FIELDS = ("weights", "intra", "backward")


def _named(static: tuple) -> bytes:
    (found,) = static
    return ";".join(unit.name for unit in (found if isinstance(found, tuple) else (found,))).encode()


def _known(stored: bytes) -> tuple:
    found = tuple(get_unit(name) for name in stored.decode().split(";"))
    return (found if len(found) > 1 else found[0],)


@exported("vpf_jax.BoltzmannMachine", stored=_named, restored=_known)
@struct.dataclass
class BoltzmannMachine:
    """Parameters of a layered Boltzmann machine; a pytree, also the container of their gradients."""

    biases: tuple[Float[Array, "*runs _n_l"], ...]
    """One vector per layer, visible first."""
    weights: Blocks
    """One matrix [n_l, n_next] per pair of consecutive layers, or a `couplings.Coupling`."""
    intra: tuple[Float[Array, "*runs _n_l _n_l"] | None, ...]
    """One entry per layer: a symmetric matrix with zero diagonal, or None for a layer without. Entry (i, j) is the
    synapse from i to j, which matters in a directed machine alone."""
    backward: Blocks | None = None
    """Of a directed machine, one matrix per pair of consecutive layers: the synapses from the next layer back down,
    `weights` then being those up. None: the weights are symmetric."""
    own: tuple[Float[Array, "*runs _n_l"] | None, ...] | None = None
    """One entry per layer: parameters of its units' own energy, such as the logarithms of the precisions of Gaussian
    ones, or None for a layer of kinds that have none; None: no layer has."""
    units: Unit | tuple[Unit, ...] = struct.field(pytree_node=False, default=BINARY)
    """What all neurons are, or those of each layer."""

    def __post_init__(self) -> None:
        """Layers of one kind are the same machine as a single kind for all."""
        if isinstance(self.units, tuple) and len(set(self.units)) == 1:
            object.__setattr__(self, "units", self.units[0])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of units of each layer, visible first."""
        return tuple(bias.shape[-1] for bias in self.biases)

    @property
    def num_units(self) -> int:
        return sum(self.sizes)

    @property
    def downward(self) -> Blocks:
        """The weights through which each layer sees the next one: `backward`, or the symmetric ones."""
        return self.weights if self.backward is None else self.backward

    @property
    def layer_units(self) -> tuple[Unit, ...]:
        """What the neurons of each layer are, with the parameters of their own energy."""
        kinds = self.units if isinstance(self.units, tuple) else (self.units,) * len(self.biases)
        if self.own is None:
            return kinds
        return tuple(unit if own is None else unit.bound(own) for unit, own in zip(kinds, self.own, strict=True))

    def owners(self, layer: int) -> np.ndarray | None:
        """To which unit each entry of a layer belongs, counted from 0; None where each is one."""
        return owners(self.layer_units[layer], self.sizes[layer])

    @property
    def has_independent_hidden(self) -> bool:
        """Whether the hidden units are independent of one another given the visible ones: at most one hidden layer,
        without weights inside it.
        """
        return len(self.biases) <= 2 and all(intra is None for intra in self.intra[1:])


def init_machine(
    key: PRNGKeyArray, sizes: Sequence[int], intra: Sequence[int] = (), units: Unit | Sequence[Unit] = BINARY
) -> BoltzmannMachine:
    """Draws a machine as the paper does.

    Weights are normal with standard deviation 1 / sqrt(n_a n_b), n_a and n_b the sizes of the two layers they join;
    intra-layer weights the same (1 / n), mirrored, with zero diagonal; biases are 0.

    Args:
      key: a random key.
      sizes: units per layer, visible first, each at least 1; of categorical units their entries, q for each.
      intra: indices of the layers that have intra-layer weights.
      units: what all neurons are, or those of each layer.

    Raises:
      ValueError: sizes that are no positive integers or do not suit the units, intra indices that name no layer or one
        layer twice, units that are not one for all layers or one per layer, or no key.
    """
    checks.random_key(key)
    sizes = checks.positive_integers("sizes", sizes, "at least one layer, each with a positive integer number of units")
    intra = check_layers("intra", intra, len(sizes))
    units = units if isinstance(units, Unit) else tuple(units)
    fits = isinstance(units, Unit) or (len(units) == len(sizes) and all(isinstance(unit, Unit) for unit in units))
    checks.require(fits, "units", units, "a kind of unit, or one per layer")
    kinds = units if isinstance(units, tuple) else (units,) * len(sizes)
    for unit, n in zip(kinds, sizes, strict=True):
        _check_width(unit, n)
    own = tuple(unit.own(n) for unit, n in zip(kinds, sizes, strict=True))
    pair_key, intra_key = jax.random.split(key)
    pair_keys = jax.random.split(pair_key, len(sizes))
    intra_keys = jax.random.split(intra_key, len(sizes))
    return BoltzmannMachine(
        biases=tuple(jnp.zeros(n) for n in sizes),
        weights=tuple(
            jax.random.normal(pair_keys[i], (n, m)) / jnp.sqrt(float(n * m))
            for i, (n, m) in enumerate(itertools.pairwise(sizes))
        ),
        intra=tuple(
            couplings.hollow(_symmetric_normal(intra_keys[i], n) / n, owners(kinds[i], n)) if i in intra else None
            for i, n in enumerate(sizes)
        ),
        own=None if all(block is None for block in own) else own,
        units=units,
    )


def untie(key: PRNGKeyArray | None, machine: BoltzmannMachine) -> BoltzmannMachine:
    """The machine made directed: matrices of its own for the synapses back down.

    Args:
      key: a random key, to draw the backward weights afresh as `init_machine` draws weights; None: they start equal to
        the forward ones. Intra-layer weights start symmetric in either case.
      machine: a machine with symmetric weights.

    Raises:
      ValueError: a machine that is directed already.
    """
    check_machine(machine)
    check_symmetric(machine, "untie")
    if key is None:
        return dataclasses.replace(machine, backward=jax.tree.map(jnp.copy, machine.weights))
    return dataclasses.replace(machine, backward=init_machine(key, machine.sizes).weights)


def with_visible_means(
    machine: BoltzmannMachine, means: Float[AnyArray, " n_0"], variances: Float[AnyArray, " n_0"] | None = None
) -> BoltzmannMachine:
    """The machine with visible biases at which its visible units, without input, have these means.

    A start from the data's statistics; also of the base from which chains are annealed.

    Args:
      machine: any machine.
      means: of the values of its visible units, such as the mean training image; of categorical units the frequency of
        each value. Where they would make a field infinite they are moved.
      variances: of real-valued units; None: 1.

    Raises:
      ValueError: means or variances of another shape, or concrete means that the units cannot have.
    """
    check_machine(machine)
    for name, given in (("visible_means", means), ("visible_variances", variances)):
        if given is None:
            continue
        checks.finite(name, given)
        if jnp.shape(given) != (machine.sizes[0],):
            raise ValueError(f"got {name} of shape {jnp.shape(given)}; the visible layer takes ({machine.sizes[0]},)")
    if variances is not None:
        checks.values(
            "visible_variances",
            variances,
            "variances",
            lambda v, xp: xp.all(v >= 0),
            lambda v: f"from {v.min():g} to {v.max():g}; they are at least 0",
        )
    dtype = machine.biases[0].dtype
    spread = None if variances is None else jnp.asarray(variances, dtype)
    biases, own = machine.layer_units[0].fitted(jnp.asarray(means, dtype), spread)
    rest = None if machine.own is None else (own, *machine.own[1:])
    return dataclasses.replace(machine, biases=(biases, *machine.biases[1:]), own=rest)


def map_own(
    function: Callable[..., Array], machine: BoltzmannMachine, *others: BoltzmannMachine
) -> tuple[Array | None, ...] | None:
    """function(layer, its parameters in each machine) of every layer whose units have parameters of their own energy.

    In the structure of `own`; the machines have one.
    """
    blocks = [one.own for one in (machine, *others)]
    if blocks[0] is None:
        return None
    layers = enumerate(zip(*(block or () for block in blocks), strict=True))
    return tuple(None if own[0] is None else function(i, *own) for i, own in layers)


def check_symmetric(machine: BoltzmannMachine, what: str) -> None:
    """Raises ValueError if the machine is directed; `what` takes symmetric weights alone."""
    if machine.backward is not None:
        raise ValueError(f"got a directed machine, with backward weights of its own; {what} takes symmetric weights")


def tie_intra(gradient: BoltzmannMachine) -> BoltzmannMachine:
    """Turns an autodiff gradient into the gradient per unordered pair of units of a layer.

    An intra-layer weight is one parameter, stored twice. `jax.grad` sees the two entries as independent and gives
    G_ij and G_ji; the derivative by the one parameter is G_ij + G_ji, and the diagonal is no parameter at all.
    Optimizer steps along the result keep intra-layer weights symmetric with zero diagonal.

    Raises:
      ValueError: anything but a gradient in the shape of a machine.
    """
    _check_type(gradient, "the gradient")
    intra = (None if g is None else couplings.tied(g, gradient.owners(i)) for i, g in enumerate(gradient.intra))
    return dataclasses.replace(gradient, intra=tuple(intra))


def check_machine(machine: BoltzmannMachine, name: str = "the machine") -> None:
    """Raises ValueError unless it is a machine whose parameters fit one another.

    One bias vector per layer, one matrix per pair of neighbouring layers, inside a layer a square matrix with zero
    diagonal, which in a machine that is not directed is symmetric; finite floating-point numbers where they are at
    hand.
    """
    _check_type(machine, name)
    fields = {name: getattr(machine, name) for name in ("biases", "weights", "intra")}
    for field, blocks in fields.items():
        if not isinstance(blocks, tuple):
            raise ValueError(f"got a {type(blocks).__name__} for the {field} of {name}; they are a tuple of arrays")
    sizes = tuple(jnp.shape(b)[-1] if jnp.ndim(b) == 1 else 0 for b in machine.biases)
    pairs = tuple(itertools.pairwise(sizes))
    wanted: dict[str, tuple] = {
        "biases": tuple((n,) for n in sizes),
        "weights": pairs,
        "intra": tuple(None if l is None else (n, n) for l, n in zip(machine.intra, sizes, strict=False)),
    }
    if machine.backward is not None:
        fields["backward"], wanted["backward"] = machine.backward, pairs
    if len(machine.layer_units) != len(sizes):
        raise ValueError(
            f"got units for {len(machine.layer_units)} layers in {name}; it has {len(sizes)}, and takes one kind for "
            "all or one per layer"
        )
    if machine.own is not None:
        fields["own"] = machine.own
        kinds = zip(machine.layer_units, sizes, strict=True)
        wanted["own"] = tuple(None if n == 0 or unit.own(n) is None else (n,) for unit, n in kinds)
    for field, blocks in fields.items():
        shapes = tuple(None if block is None else _shape(block) for block in blocks)
        if shapes != wanted[field] or not sizes or 0 in sizes or len(machine.intra) != len(sizes):
            raise ValueError(
                f"got {field} of shapes {shapes} in {name}; with biases of shapes "
                f"{tuple(jnp.shape(b) for b in machine.biases)} they have shapes {wanted[field]}, "
                "one entry of intra per layer, and no layer is empty"
            )
        for i, block in enumerate(blocks):
            if block is None:
                continue
            for leaf in jax.tree.leaves(block):
                checks.finite(f"{field}[{i}] of {name}", leaf)
            if not jnp.issubdtype(block.dtype, jnp.floating):
                raise ValueError(f"got {field}[{i}] of dtype {block.dtype} in {name}; parameters are floating-point")
            if field == "intra":
                _check_intra(f"intra[{i}] of {name}", block, machine.owners(i), tied=machine.backward is None)
    for unit, n, own in zip(machine.layer_units, sizes, machine.own or (None,) * len(sizes), strict=True):
        _check_width(unit, n)
        if own is None and unit.own(n) is not None:
            raise ValueError(f"got {name} without parameters of {unit.name} units (own); it takes {n} for their layer")


def check_state(
    machine: BoltzmannMachine, state: AnyState, *, batched: bool, ignored: Sequence[int] = (), name: str = "the state"
) -> None:
    """Raises ValueError unless `state` has values of the units in the right shape for each layer of a sound `machine`.

    The values of the layers in `ignored` may be any; those of traced states pass unseen.
    """
    check_machine(machine)
    wanted = "[batch, n_l]" if batched else "[n_l]"
    if not isinstance(state, tuple | list):
        raise ValueError(f"a state is a tuple of arrays, one per layer, visible first; got {type(state).__name__}")
    for i, x in enumerate(state):
        checks.array(f"layer {i} of {name}", x, f"one {wanted} array of values of its units per layer")
    shapes = tuple(jnp.shape(x) for x in state)
    rank = 2 if batched else 1
    fits = (
        len(shapes) == len(machine.sizes)
        and all(len(s) == rank and s[-1] == n for s, n in zip(shapes, machine.sizes, strict=True))
        and len({s[:-1] for s in shapes}) <= 1
    )
    if not fits:
        raise ValueError(
            f"got a state of shapes {shapes}; a machine of layer sizes {machine.sizes} takes one {wanted} array "
            f"per layer{', all with the same batch' if batched else ''}"
        )
    if batched and shapes[0][0] == 0:
        raise ValueError("got an empty batch; a mean over states takes at least one state")
    for i, (x, unit) in enumerate(zip(state, machine.layer_units, strict=True)):
        if i not in ignored:
            unit.check(f"layer {i} of {name}", x)


def check_layers(name: str, layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Returns `layers` as a tuple of distinct layer indices of a machine with `num_layers` layers, or raises."""
    indices = checks.as_integers(layers)
    fits = indices is not None and len(set(indices)) == len(indices) and all(0 <= i < num_layers for i in indices)
    checks.require(fits, name, layers, f"distinct layer indices from 0 to {num_layers - 1}")
    assert indices is not None
    return indices


def check_whole_units(name: str, entries: Bool[AnyArray, "*batch n_0"], machine: BoltzmannMachine) -> None:
    """Raises ValueError unless the visible entries that are chosen are all of a unit or none, of each unit."""
    owned = machine.owners(0)
    if owned is None:
        return
    first = np.unique(owned, return_index=True)[1][owned]

    def holds(chosen: Any, xp: Any) -> Any:
        return xp.all(chosen == chosen[..., first])

    told = f"all entries of a unit or none, as {machine.layer_units[0].name} units take"
    checks.values(name, entries, told, holds, lambda _: f"with some entries of a unit; it takes {told}")


def _check_type(machine: BoltzmannMachine, name: str) -> None:
    if not isinstance(machine, BoltzmannMachine):
        hint = ", such as one entry of a stack" if isinstance(machine, tuple | list) else ""
        raise ValueError(f"got a {type(machine).__name__} for {name}; it takes a BoltzmannMachine{hint}")


def _check_width(unit: Unit, n: int) -> None:
    """Raises ValueError unless a layer of n entries is made of whole units of the kind."""
    parts = unit.segments(n)
    if any((part.stop - part.start) % kind.width for kind, part in parts):
        raise ValueError(f"got a layer of {n} entries of {unit.name} units; it takes a multiple of {unit.width}")


def _check_intra(name: str, block: Float[Array, "n n"], owned: np.ndarray | None, *, tied: bool) -> None:
    """Raises ValueError unless the diagonal is 0 and, of tied weights, the matrix symmetric.

    The diagonal is of units: where these have several entries (`owned`), weights between any two of them.
    """
    diagonal = "diagonal" if owned is None else "weights inside a unit"
    allowed = f"a symmetric matrix with zero {diagonal}" if tied else f"a matrix with zero {diagonal}"

    def holds(matrix: Any, xp: Any) -> Any:
        if owned is None:
            hollow = xp.all(xp.diagonal(matrix) == 0)
        else:
            hollow = xp.all(xp.where(owned[:, None] == owned[None], matrix, 0) == 0)
        # Up to rounding, which another program's file may have done to one side.
        return hollow & (xp.abs(matrix - matrix.T).max() <= 1e-5 * xp.abs(matrix).max()) if tied else hollow

    kind = ("tied" if tied else "hollow") + ("" if owned is None else f" by units {hash(owned.tobytes())}")
    checks.values(name, block, kind, holds, lambda _: f"that is no {allowed[2:]}")


def _symmetric_normal(key: PRNGKeyArray, n: int) -> Float[Array, "n n"]:
    upper = jnp.triu(jax.random.normal(key, (n, n)), k=1)
    return upper + upper.T


def _shape(block: Any) -> tuple[int, ...]:
    return block.shape if isinstance(block, couplings.Coupling) else jnp.shape(block)
