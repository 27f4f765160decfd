"""Experiments with vpf_jax: one script per result, run from a checkout as `python -m experiments.<name>`."""

import signal
import sys
import threading

# Where Python starts one of the scripts it imports this package first, under the name "-m": Ctrl-C then ends it without
# a traceback while it imports, too. In a shell's background it is ignored, and stays so.
if (
    sys.argv[:1] == ["-m"]
    and threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
