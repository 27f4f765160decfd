"""Files of arrays: `.npy` (by a memory map), `.npz`, sparse matrices of SciPy, and HDF5 (read in pieces).

In an .npz or an HDF5 file, an array `x` (or `samples`, as the package rbms writes) has its labels in `y` or `labels`,
its weights in `weights` and a mask in `missing`; or arrays `train`, `validation` and `test` have theirs in
`train_labels` and so on. Objects and pickles are never loaded. Not here: which array is what (`stored.choose`).
"""

import contextlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vpf_jax.data.base import needs
from vpf_jax.data.stored import WHOLE, Contents, SparseRows, Stored, choose, refuse

# Members of an .npz that scipy.sparse.save_npz writes.
_SPARSE = {"format", "shape", "data"}


@contextlib.contextmanager
def read_npy(path: Path, array: str | None) -> Iterator[Contents]:
    """One array."""
    if array is not None:
        refuse(path, f"which is one array and has none called {array}", "no --array")
    takes = "a file that numpy.save has written, of numbers"
    try:
        held: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        if "Python objects" in str(error) or "object" in str(error):
            refuse(path, "whose array holds Python objects", takes)
        empty = _empty_npy(path)
        if empty is not None:
            held = empty
        else:
            refuse(path, f"which is damaged or no .npy file ({_short(error)})", takes)
    yield Contents(str(path), {WHOLE: Stored(held, "array")})


@contextlib.contextmanager
def read_npz(path: Path, array: str | None) -> Iterator[Contents]:
    """Arrays by their names, or one sparse matrix."""
    takes = "a file that numpy.savez or scipy.sparse.save_npz has written, of numbers"

    def guarded(read: Callable[[], Any], told: str = "") -> Any:
        try:
            return read()
        except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError) as error:
            if told and "allow_pickle" in str(error):
                refuse(path, f"whose array {told} holds Python objects", takes)
            refuse(path, f"which is damaged or no .npz file ({_short(error)})", takes)

    # Of a file that it cannot read NumPy leaves the handle open.
    with path.open("rb") as file:
        archive = guarded(lambda: np.load(file, allow_pickle=False))
        if not isinstance(archive, np.lib.npyio.NpzFile):
            refuse(path, "which is no .npz file but a single array", takes)
        names = list(archive.files)
        if _SPARSE <= set(names):
            if array is not None:
                refuse(path, f"which is one sparse matrix and has no array {array}", "no --array")
            needs("scipy", path)
            from scipy import sparse

            file.seek(0)
            matrix = guarded(lambda: sparse.load_npz(file))
            yield Contents(str(path), {WHOLE: Stored(SparseRows(matrix), "sparse matrix")})
            return
        yield choose(path, names, lambda name: guarded(lambda: archive[name], name), array)


@contextlib.contextmanager
def read_hdf5(path: Path, array: str | None) -> Iterator[Contents]:
    """Data sets of HDF5 by their names, those in groups as GROUP/NAME."""
    needs("h5py", path)
    import h5py

    takes = "an HDF5 file with numbers"
    try:
        opened = h5py.File(path, "r")
    except OSError as error:
        refuse(path, f"which is damaged or no HDF5 file ({_short(error)})", takes)
    with opened as file:
        names: list[str] = []
        try:
            file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        except (OSError, RuntimeError, KeyError) as error:
            refuse(path, f"which is damaged ({_short(error)})", takes)
        try:
            yield choose(path, names, file.__getitem__, array)
        # Of rows, which are read while the file is open.
        except OSError as error:
            refuse(path, f"which is damaged ({_short(error)})", takes)


def _empty_npy(path: Path) -> np.ndarray | None:
    """The array of a file that holds none, which cannot be mapped."""
    try:
        held = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):
        return None
    return held if isinstance(held, np.ndarray) and held.size == 0 else None


def _short(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")[:120]
