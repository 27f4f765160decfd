"""Runs pytest as the two processes of one cluster, each with the same arguments: `python tests/two_processes.py -q`.

The first one prints as it runs, what the second has said follows. The exit status is 0 if that of both is; if one dies
the other is ended.
"""

import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

# What pytest ends with after it has run its tests, some of which may have failed.
RAN = 0, 1
# Both at once, in the same order.
TOGETHER = "-p", "no:xdist", "-p", "no:randomly"
# Seconds between two looks, and those that one process has to end by itself after the other.
PAUSE, PATIENCE = 0.2, 180


def run(arguments: Sequence[str]) -> int:
    """The exit status of both: 0, or the larger one."""
    # Whoever ends this one ends both.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pytest", *TOGETHER, f"--coordinator=127.0.0.1:{port}", *arguments]
    with tempfile.TemporaryFile() as said:
        second = {"stdout": said, "stderr": subprocess.STDOUT}
        both = [subprocess.Popen([*command, f"--process={i}"], **(second if i else {})) for i in range(2)]
        try:
            found = _wait(both)
        finally:
            for process in both:
                process.kill()
                process.wait()
            said.seek(0)
            print("\nThe second process:\n", said.read().decode(errors="replace"), sep="", flush=True)
    return max(abs(status) for status in found)


def _wait(both: Sequence[subprocess.Popen]) -> list[int]:
    """The statuses of both, once both have ended or one of them can go on no more."""
    since = None
    while any(process.poll() is None for process in both):
        ended = [process.returncode for process in both if process.returncode is not None]
        since = time.monotonic() if ended and since is None else since
        if ended and (ended[0] not in RAN or time.monotonic() - since > PATIENCE):
            print(f"one process has ended with status {ended[0]}; the other is ended", file=sys.stderr, flush=True)
            for process in both:
                if process.poll() is None:
                    process.terminate()
                    try:
                        process.wait(10)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.wait()
        time.sleep(PAUSE)
    return [process.wait() for process in both]


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
