"""Saving and resuming: numbered checkpoints of a pytree in a folder, by orbax.

Writes are atomic: a checkpoint is written under a temporary name and renamed when it is whole, so a process killed in
mid-write leaves the earlier ones as they were. Reading takes the newest one that can be read. Not here: what is saved
and when (`experiments`).
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from vpf_jax.machine import BoltzmannMachine

Tree = TypeVar("Tree", bound=PyTree)

# The one before the newest is kept too, for the case that the newest cannot be read.
KEPT = 2


def save_checkpoint(directory: str | Path, step: int, tree: PyTree, info: dict[str, Any] | None = None) -> None:
    """Writes checkpoint number `step` and removes all but the newest `KEPT`; returns when it is on disk.

    Args:
      directory: the folder of checkpoints, made where missing.
      step: the number of the checkpoint; a checkpoint of the same number is replaced.
      tree: a pytree of arrays and typed random keys.
      info: further values that JSON can hold.
    """
    ocp = _orbax()
    with _manager(directory) as manager:
        if step in manager.all_steps():
            # A checkpoint of this number that resuming could not read.
            manager.delete(step)
        manager.save(
            step,
            args=ocp.args.Composite(
                tree=ocp.args.StandardSave(_plain(tree)),
                info=ocp.args.JsonSave(info or {}),
            ),
        )
        manager.wait_until_finished()


def restore_checkpoint(directory: str | Path, like: Tree) -> tuple[int, Tree, dict[str, Any]] | None:
    """Reads the newest checkpoint that can be read.

    Args:
      directory: the folder of checkpoints.
      like: a pytree of the structure, shapes and dtypes that were saved.

    Returns:
      (step, tree, info), or None where there is no readable checkpoint.
    """
    if not Path(directory).is_dir():
        return None
    ocp = _orbax()
    target = _plain(like)
    with _manager(directory) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            args = ocp.args.Composite(tree=ocp.args.StandardRestore(target), info=ocp.args.JsonRestore())
            try:
                found = manager.restore(step, args=args)
            # A damaged checkpoint can fail anywhere inside orbax and tensorstore, with any exception.
            except Exception as error:
                logging.getLogger(__name__).warning(
                    "checkpoint %s in %s cannot be read (%s); trying the one before it",
                    step,
                    directory,
                    type(error).__name__,
                )
                continue
            return step, _restored(like, found["tree"]), dict(found["info"])
    return None


def _orbax() -> Any:
    # Imported late: it takes as long to import as JAX itself, and most uses of the library need no files.
    import orbax.checkpoint

    return orbax.checkpoint


def _manager(directory: str | Path) -> Any:
    ocp = _orbax()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEPT, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(Path(directory).absolute(), options=options)


def _plain(tree: PyTree) -> PyTree:
    """The tree as it is stored: data of keys, and symmetric machines without a mention of backward weights, as before
    version 0.4 knew of them, so that what one version wrote the other reads.
    """

    def plain(node: Any) -> Any:
        if not _is_machine(node):
            return _without_key(node)
        fields = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
        return fields if node.backward is not None else {k: v for k, v in fields.items() if k != "backward"}

    return jax.tree.map(plain, tree, is_leaf=_is_machine)


def _restored(like: Tree, stored: PyTree) -> Tree:
    """The inverse of `_plain`."""

    def restore(node: Any, found: Any) -> Any:
        if _is_machine(node):
            return BoltzmannMachine(**jax.tree.map(jnp.asarray, found))
        return _with_key(node, found)

    return jax.tree.map(restore, like, stored, is_leaf=_is_machine)


def _is_machine(node: Any) -> bool:
    return isinstance(node, BoltzmannMachine)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_key(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _with_key(like: Any, found: Any) -> Any:
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(found), impl=jax.random.key_impl(like))
    return jnp.asarray(found)
