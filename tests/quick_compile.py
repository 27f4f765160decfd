"""What makes the many small programs of the tests compile in less than half the time: flags of XLA, and what is kept.

Under the flags programs run slower, and are small.
"""

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax

# The second and the third of them have come and may go with versions of XLA.
FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
# A sum that compiles under flags that XLA knows; others end the process.
PROBE = "import jax.numpy as jnp; jnp.ones(3).sum().block_until_ready()"
# Programs that are kept from one run of the tests to the next take as much at most; then all are compiled anew.
MOST_BYTES = 1 << 30


def install() -> None:
    """To be called before the first computation; programs that tests start inherit the flags, or are given none."""
    _share_context()
    if "XLA_FLAGS" in os.environ:
        return
    for chosen in (FLAGS, FLAGS[:2], FLAGS[:1]):
        environment = os.environ | {"XLA_FLAGS": " ".join(chosen)}
        if not subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True).returncode:
            break
    else:
        chosen = ()
    # Where there are none it says so, to the workers that inherit it too.
    os.environ["XLA_FLAGS"] = " ".join(chosen)


def forget() -> None:
    """What has been compiled in this process, and the constants that its programs have left in the context."""
    jax.clear_caches()
    clear = getattr(_mlir(), "make_ir_context", None)
    if hasattr(clear, "cache_clear"):
        clear.cache_clear()


def _mlir() -> object:
    """JAX's own module, in which names come and go; nothing depends on them but seconds."""
    try:
        from jax._src.interpreters import mlir
    except ImportError:
        return None
    return mlir


def _share_context() -> None:
    """JAX loads every dialect for each program anew, which takes longer than to lower a small one."""
    mlir = _mlir()
    if hasattr(mlir, "make_ir_context"):
        mlir.make_ir_context = functools.cache(mlir.make_ir_context)


def kept_as() -> str:
    """A folder's name, of each kind of processor its own: the machine code of one may be none of another's."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"compiled-{hashlib.sha256((platform.machine() + features).encode()).hexdigest()[:12]}"


def begin(folder: Path) -> None:
    """Before any process keeps programs there: a folder that has grown beyond its size is emptied."""
    if sum(file.stat().st_size for file in folder.iterdir()) > MOST_BYTES:
        shutil.rmtree(folder)
        folder.mkdir()


def keep(folder: Path) -> None:
    """Programs that any process or an earlier run has compiled, from the same code and for the same flags, are read."""
    try:
        from jax._src.lru_cache import LRUCache
    except ImportError:
        return
    LRUCache.put = _put
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _put(cache: object, key: str, program: bytes) -> None:
    """JAX's own writes in place, where another process, or a run after one that was killed, reads half a program."""
    path = Path(cache.path) / f"{key}-cache"
    if not path.exists():
        part = path.with_name(f"{key}-{os.getpid()}-{threading.get_ident()}")
        part.write_bytes(program)
        part.replace(path)
