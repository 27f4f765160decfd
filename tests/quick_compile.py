"""What makes the many small programs of the tests compile in less than half the time: settings of XLA, one context.

Programs run several times slower by it; files of tests whose programs run for long are marked `long_running`. What one
run of the tests has compiled the next one finds in the user's cache, and takes two thirds of the time; `make clean`
empties it.
"""

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import jax

# They have come and may go with versions of XLA.
FLAGS = "--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"
# What programs that tests start inherit, and users do not have.
VARIABLES = "XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS"
# A sum that compiles under flags that XLA knows; others end the process.
PROBE = "import jax.numpy as jnp; jnp.ones(3).sum().block_until_ready()"

# Of kept programs, some of which no test compiles any longer; more are thrown away.
KEPT_BYTES = 10**9

# Executables of the programs of a file, by all that they are compiled of.
_compiled: dict[tuple, object] = {}


def install() -> None:
    """To be called before the first computation; programs that tests start inherit the settings, or are given none."""
    _share_context()
    _compile_once()
    _keep()
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    optimise(False)
    if "XLA_FLAGS" in os.environ:
        return
    for chosen in (FLAGS, FLAGS[:1], FLAGS[1:]):
        environment = os.environ | {"XLA_FLAGS": " ".join(chosen)}
        if not subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True).returncode:
            break
    else:
        chosen = ()
    # Where there are none it says so, to the workers that inherit it too.
    os.environ["XLA_FLAGS"] = " ".join(chosen)


def optimise(holds: bool) -> None:
    """Whether what this process compiles from here on is optimised."""
    jax.config.update("jax_disable_most_optimizations", not holds)


def forget() -> None:
    """What has been compiled in this process, and the constants that its programs have left in the context."""
    jax.clear_caches()
    _compiled.clear()
    clear = getattr(_mlir(), "make_ir_context", None)
    if hasattr(clear, "cache_clear"):
        clear.cache_clear()


def _keep() -> None:
    """Programs are kept in a folder for processors of this one's kind, as they may hold instructions of its own."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vpf_jax" / "tests"
    folder = cache / hashlib.sha256(_processor().encode()).hexdigest()[:8]
    try:
        # Not by workers, of which others read there.
        if "PYTEST_XDIST_WORKER" not in os.environ and sum(f.stat().st_size for f in cache.rglob("*")) > KEPT_BYTES:
            shutil.rmtree(cache, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _processor() -> str:
    """What compilers look at, where the system tells it."""
    told = Path("/proc/cpuinfo")
    if not told.exists():
        return platform.processor()
    lines = {line for line in told.read_text().splitlines() if line.startswith(("model name", "flags", "Features"))}
    return "".join(sorted(lines))


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


def _compile_once() -> None:
    """A loop outside compiled functions is traced anew at each call, and JAX compiles the same program again.

    Programs that call back into Python are left alone: what they call is part of them.
    """
    try:
        from jax._src import compiler
    except ImportError:
        return
    build = getattr(compiler, "backend_compile_and_load", None)
    if build is None:
        return

    @functools.wraps(build)
    def once(backend, module, devices, options, host_callbacks, *rest):
        text = module.operation.get_asm(enable_debug_info=False)
        if host_callbacks or rest or "callback" in text:
            return build(backend, module, devices, options, host_callbacks, *rest)
        key = text, options.SerializeAsString(), str(devices)
        if key not in _compiled:
            _compiled[key] = build(backend, module, devices, options, host_callbacks)
        return _compiled[key]

    compiler.backend_compile_and_load = once
