"""Flags of XLA under which the small programs of the tests compile in half the time; they run slower, and are small."""

import os
import subprocess
import sys

FLAGS = ("--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false")
# A sum that compiles under flags that XLA knows; others end the process.
PROBE = "import jax.numpy as jnp; jnp.ones(3).sum().block_until_ready()"


def install() -> None:
    """To be called before the first computation; programs that tests start inherit the flags, or are given none."""
    if "XLA_FLAGS" in os.environ:
        return
    # The second of them has come and may go with versions of XLA.
    for chosen in (FLAGS, FLAGS[:1]):
        environment = os.environ | {"XLA_FLAGS": " ".join(chosen)}
        if not subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True).returncode:
            break
    else:
        chosen = ()
    # Where there are none it says so, to the workers that inherit it too.
    os.environ["XLA_FLAGS"] = " ".join(chosen)
