"""Progress of a training loop: a bar with the time left on a terminal, one line per epoch otherwise."""

import sys
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Reports epochs as they end; a context manager, so that the bar is closed before anything else is printed."""

    def __init__(self, epochs: int, done: int, name: str = "") -> None:
        """Starts after the `done`-th of the epochs; `name` tells one training from others of the same command."""
        self._epochs = epochs
        self._prefix = f"{name}, " if name else ""
        bar = {"total": epochs, "initial": done, "unit": "epoch", "desc": name or None}
        self._bar = tqdm(**bar) if sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def report(self, epoch: int, told: str, seconds: float) -> None:
        """Shows what is told of an epoch that took `seconds`."""
        if self._bar is None:
            print(f"{self._prefix}epoch {epoch}/{self._epochs}: {told}, {seconds:.2f} s", flush=True)
        else:
            self._bar.set_postfix_str(told, refresh=False)
            self._bar.update()


def told_of_flow(row: dict[str, float]) -> str:
    """What is told of an epoch of `vpf_jax.train`."""
    score = f", Parzen {row['parzen_validation']:.1f}" if "parzen_validation" in row else ""
    return f"objective {row['objective']:.2f}, max |w| {row['max_abs_weight']:.2f}{score}"
