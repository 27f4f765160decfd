"""Flags of XLA under which the small programs of the tests compile in half the time; they run slower, and are small."""

import mmap
import os
from pathlib import Path

import jaxlib

FLAGS = {"xla_backend_optimization_level": "0", "xla_cpu_use_fusion_emitters": "false"}


def install() -> None:
    """To be called before the first computation; programs that tests start inherit the flags, or are given none.

    XLA ends a process that is given a flag which it does not know, so the library is asked first.
    """
    if "XLA_FLAGS" in os.environ:
        return
    path = Path(jaxlib.__file__).parent / "libjax_common.so"
    known = []
    if path.exists():
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
            known = [f"--{name}={value}" for name, value in FLAGS.items() if library.find(name.encode()) >= 0]
    os.environ["XLA_FLAGS"] = " ".join(known)
