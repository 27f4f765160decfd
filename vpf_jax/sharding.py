"""Which device of a mesh works on what: names of axes, where each array lies, and the compiler's hints.

A mesh (`jax.sharding.Mesh`) has up to three axes:

    seeds    runs from several seeds, which never speak to one another
    data     examples: each device works on its own rows of every minibatch, and the gradient is summed once a step
    model    units of the upper layer of each pair, so that weights are cut by columns: a step moves the states of the
             lower layer, one sum of fields, and nothing of the size of the weights

`RULES` says where the arrays of machines, optimizers and chains lie; `shard` puts them there, and from then on every
function computes where its arguments are. Data lie whole on every device, so that each takes its own examples from them
in an order that is drawn for all: nothing is exchanged, and the numbers do not depend on how many devices there are.
The engine is JAX's own: the functions of this library state what an array should look like at a few places (`laid`),
and the compiler does the rest. Without a mesh they state nothing.

Not here: what processes tell one another (`processes`), what is saved (`checkpoint`).
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Shaped

from vpf_jax import checks
from vpf_jax.couplings import Coupling

SEEDS, DATA, MODEL = AXES = ("seeds", "data", "model")
# By the name of the field of a machine, an optimizer's state or chains: how an array is cut. The units of the lowest
# layer of a machine are not; what has no rule lies whole on every device.
RULES: dict[str, tuple[str | None, ...]] = {
    "biases": (MODEL,),
    "weights": (None, MODEL),
    "backward": (None, MODEL),
    "intra": (None, MODEL),
    "own": (MODEL,),
    "carry": (DATA, MODEL),
}
# Fields with an entry per layer, visible first; those of chains are in a tuple for each machine.
_OF_LAYERS = {"biases": 0, "intra": 0, "own": 0, "carry": 1}

Tree = TypeVar("Tree")


def make_mesh(axes: dict[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of devices.

    Args:
      axes: how many devices along each axis, such as {"data": 4, "model": 2}; those that are left out are 1, and all
        together as many as there are devices, or fewer. None: all of them along "data".
      devices: None: all there are, of all processes.

    Raises:
      SettingError: an axis of another name, or numbers that are not positive or more than there are devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    axes = {DATA: len(devices)} if axes is None else dict(axes)
    for name, count in axes.items():
        checks.require(name in AXES, "mesh", axes, f"axes among {', '.join(AXES)}")
        checks.require((checks.as_integer(count) or 0) >= 1, "mesh", axes, "positive numbers of devices")
    shape = tuple(int(axes.get(name, 1)) for name in AXES)
    needed = math.prod(shape)
    checks.require(needed <= len(devices), "mesh", axes, f"axes of {len(devices)} devices together, which there are")
    found = np.array(devices[:needed]).reshape(shape)
    return Mesh(found, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def layout(tree: Any, seeds: bool = False) -> Any:
    """How each array of a tree is cut, in the same structure: a `jax.sharding.PartitionSpec` for each leaf.

    Args:
      tree: machines, stacks, states of training; anything else lies whole on every device.
      seeds: whether each array has a leading axis of seeds.
    """
    first = (SEEDS,) if seeds else ()

    def of(path: Any, leaf: Any) -> Any:
        if isinstance(leaf, Coupling):
            return jax.tree.map(lambda spec: P(*first, *spec), leaf.cut(MODEL), is_leaf=_is_spec)
        return P(*first, *_cut(path, leaf, len(first)))

    return jax.tree_util.tree_map_with_path(of, tree, is_leaf=lambda node: isinstance(node, Coupling))


def shard(tree: Tree, mesh: Mesh, seeds: bool = False) -> Tree:
    """The tree with each array laid over the mesh (`layout`); as everywhere, functions then work where it lies.

    Args:
      tree: machines, stacks, states of training, data; a `jax.ShapeDtypeStruct` then says where its array would lie.
      mesh: of `make_mesh`, or one with axes of these names and others, of any type.
      seeds: whether each array has a leading axis of seeds.

    Raises:
      ValueError: no mesh, or an axis that does not divide what it should cut.
    """
    if not isinstance(mesh, Mesh):
        raise ValueError(f"got a {type(mesh).__name__} for the mesh; it takes a jax.sharding.Mesh, as make_mesh gives")

    def put(path: Any, leaf: Any, spec: P) -> Any:
        spec = _known(spec, mesh.axis_names)
        for size, name in zip(np.shape(leaf), spec, strict=False):
            if name is not None and size % mesh.shape[name]:
                field = jax.tree_util.keystr(path)
                raise ValueError(
                    f"got a mesh of {mesh.shape[name]} devices along {name!r} for {field} of shape {np.shape(leaf)}; "
                    f"it takes a number that divides {size}"
                )
        return _put(leaf, NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(put, tree, layout(tree, seeds))


def described(tree: Any, mesh: Mesh, seeds: bool = False) -> str:
    """A line for each array: its place in the tree, shape, how it is cut, and its bytes on each device."""
    specs = jax.tree.leaves(layout(tree, seeds), is_leaf=_is_spec)
    lines = []
    for (path, leaf), spec in zip(jax.tree_util.tree_leaves_with_path(tree), specs, strict=True):
        spec = _known(spec, mesh.axis_names)
        parts = math.prod(mesh.shape[name] for name in spec if name is not None)
        size = math.prod(np.shape(leaf)) * leaf.dtype.itemsize // parts
        place = jax.tree_util.keystr(path).lstrip(".")
        lines.append(f"{place:40} {tuple(np.shape(leaf))!s:16} {tuple(spec)!s:24} {size:>14,} bytes")
    return "\n".join(lines)


def rows_of_process(mesh: Mesh, count: int) -> Int[np.ndarray, " _"]:
    """Which rows of a minibatch lie on devices of this process: those that it has to read for `together`."""
    places = NamedSharding(mesh, _of_rows(mesh, count)).addressable_devices_indices_map((count,)).values()
    return np.array(sorted({row for found in places for row in range(*(found or (slice(None),))[0].indices(count))}))


def together(values: Shaped[np.ndarray, "steps _ ..."], mesh: Mesh, shape: tuple[int, ...]) -> Array:
    """Minibatches [steps, rows, ...] of this shape over the devices of a mesh, each process giving its own rows."""
    place = NamedSharding(mesh, P(None, *_of_rows(mesh, shape[1])))
    return jax.make_array_from_process_local_data(place, values, shape)


def laid(array: Tree, *axes: str | tuple[str, ...] | None) -> Tree:
    """States that arrays are cut along these axes, leading ones first, where there is a mesh that has them.

    An axis that does not divide a dimension leaves it whole. Without a mesh, and inside `jax.shard_map` along an axis
    that it maps over, the same as the arrays.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = _free(mesh)
    if not free:
        return array

    def of(leaf: Any) -> Any:
        spec = []
        for size, wanted in zip(leaf.shape, axes, strict=False):
            names = tuple(name for name in ((wanted,) if isinstance(wanted, str) else wanted or ()) if name in free)
            parts = math.prod(mesh.shape[name] for name in names)
            spec.append(names if parts > 1 and size % parts == 0 else None)
        return jax.lax.with_sharding_constraint(leaf, P(*spec))

    return jax.tree.map(of, array)


def laid_out(tree: Tree) -> Tree:
    """States that a tree lies as `layout` says, where there is a mesh."""
    if not _free(jax.sharding.get_abstract_mesh()):
        return tree
    return jax.tree.map(lambda leaf, spec: leaf if leaf.ndim == 0 else laid(leaf, *spec), tree, layout(tree))


def mean_of_parts(function: Callable[..., Tree], *batches: Any) -> Tree:
    """function(*batches), whose results are means over the first axis of the batches' arrays.

    Over devices each takes the means of its own rows first: what function adds up then travels once, as one sum. Units
    stay where they are, and each device makes the part of a machine's gradient that lies on it.
    """
    count = spread(DATA)
    if count == 1 or any(a.shape[0] % count for a in jax.tree.leaves(batches)):
        return function(*batches)

    def rows(array: Any) -> Any:
        free = (P.UNCONSTRAINED,) * array.ndim
        return jax.lax.with_sharding_constraint(array.reshape(count, -1, *array.shape[1:]), P(DATA, *free))

    found = jax.vmap(function)(*jax.tree.map(rows, batches))
    found = jax.tree.map(lambda a, spec: laid(a, DATA, *spec[1:]), found, layout(found, seeds=True))
    return jax.tree.map(lambda a: jnp.mean(a, axis=0), found)


def spread(axis: str) -> int:
    """Devices along an axis over which the compiler cuts what is traced here; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[axis] if axis in _free(mesh) else 1


def mesh_of(*trees: Any) -> Mesh | None:
    """The mesh over which the arrays of these trees lie, where one of them lies over one that has an axis of ours."""
    for leaf in jax.tree.leaves(trees):
        found = getattr(leaf, "sharding", None) if isinstance(leaf, jax.Array) and not checks.is_traced(leaf) else None
        if isinstance(found, NamedSharding) and isinstance(found.mesh, Mesh) and set(AXES) & set(found.mesh.axis_names):
            return found.mesh
    return None


@contextlib.contextmanager
def where(*trees: Any) -> Iterator[None]:
    """Inside it the mesh over which these arrays lie is JAX's current one, unless there is one already."""
    mesh = mesh_of(*trees)
    if mesh is None or not jax.sharding.get_abstract_mesh().empty:
        yield
    else:
        with jax.set_mesh(mesh):
            yield


def automatic(function: Callable[..., Tree], *trees: Any) -> Tree:
    """function(*trees), explicit axes of the arrays' mesh being the compiler's inside; results lie as in `layout`."""
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(trees) if hasattr(leaf, "dtype")]
    if not any(AxisType.Explicit in mesh.axis_types for mesh in meshes):
        return function(*trees)
    (mesh,) = {mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types}
    specs = layout(jax.eval_shape(jax.sharding.auto_axes(function, out_sharding=P()), *trees))
    specs = jax.tree.map(lambda spec: _known(spec, mesh.axis_names), specs, is_leaf=_is_spec)
    return jax.sharding.auto_axes(function, out_sharding=specs)(*trees)


def along_seeds(function: Callable[..., Tree], states: Any, shared: Any) -> Tree:
    """function(states, shared) of states with a leading axis of seeds, each device along that axis with its own."""
    if spread(SEEDS) == 1:
        return function(states, shared)
    return jax.shard_map(function, in_specs=(P(SEEDS), P()), out_specs=P(SEEDS), axis_names={SEEDS})(states, shared)


def _put(leaf: Any, place: NamedSharding) -> Any:
    """The array laid out so; over several processes each of them has all of it, or it is theirs together already.

    The dtype is told, as a process may have none of the devices.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
    if place.is_fully_addressable:
        return jax.device_put(leaf, place)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(lambda leaf: leaf, out_shardings=place)(leaf)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        words = np.asarray(jax.random.key_data(leaf))
        whole = jax.make_array_from_callback(words.shape, place, lambda index: words[index], dtype=words.dtype)
        return jax.random.wrap_key_data(whole, impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, place, lambda index: values[index], dtype=values.dtype)


def _is_spec(node: Any) -> bool:
    return isinstance(node, P)


def _free(mesh: Any) -> tuple[str, ...]:
    """Axes of ours along which the compiler may cut, of more than one device."""
    return tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if name in AXES and kind == AxisType.Auto and mesh.shape[name] > 1
    )


def _of_rows(mesh: Mesh, count: int) -> P:
    """How the rows of a minibatch are cut: over the data axis, or not where that does not divide them."""
    parts = mesh.shape.get(DATA, 1)
    return P(DATA) if parts > 1 and count % parts == 0 else P()


def _known(spec: P, names: Sequence[str]) -> P:
    """The spec without axes that a mesh does not have."""
    return P(*(name if name in names else None for name in spec))


def _cut(path: Any, leaf: Any, skipped: int) -> tuple[str | None, ...]:
    """The rule of an array, by the last field in its path that has one."""
    steps: list[Any] = [getattr(step, "name", getattr(step, "idx", getattr(step, "key", None))) for step in path]
    rank = np.ndim(leaf) - skipped
    for place in reversed(range(len(steps))):
        rule = RULES.get(steps[place]) if isinstance(steps[place], str) else None
        if rule is None:
            continue
        # Of another rank is what a rule carries that are no chains.
        if rank != len(rule):
            return ()
        inside, layer = steps[place + 1 :], _OF_LAYERS.get(steps[place])
        visible = layer is not None and inside[layer : layer + 1] == [0]
        return tuple(None if visible and axis == MODEL else axis for axis in rule)
    return ()
