"""Several processes that work as one: what the first one says, told to all, and whether all reach its folder.

JAX has joined them (`jax.distributed`), and each makes the calls here together with the others. Of one process alone
everything is as if the others agreed. Not here: where arrays lie (`sharding`); who joins, prints and dies
(`app.devices`).
"""

import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_first() -> bool:
    """Whether this process is the one that keeps files."""
    return jax.process_index() == 0


def of_first(value: Callable[[], Any]) -> Any:
    """What value() gives in the first process, known to all; JSON."""
    if jax.process_count() == 1:
        return value()
    text = json.dumps(value()).encode() if is_first() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(text), np.int64)))
    content = np.frombuffer(text, np.uint8) if is_first() else np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes())


def by_first(work: Callable[[], Any], *errors: type[Exception]) -> Any:
    """What work() gives in the first process, known to all, JSON; or an error in all, where it raises one there.

    Args:
      work: done by the first process alone.
      errors: kinds of exceptions that take a sentence and are the same in all; of another kind it is the first of them
        in the other processes.
    """
    failed: Exception | None = None

    def told() -> list[Any]:
        nonlocal failed
        try:
            return [None, None, work()]
        except Exception as error:
            failed = error
            return [type(error).__name__, str(error), None]

    kind, sentence, value = of_first(told)
    if failed is not None:
        raise failed
    if kind is not None:
        raise {error.__name__: error for error in errors}.get(kind, errors[0])(sentence)
    return value


def shared(folder: Path) -> Path | None:
    """A folder of the first process, which has to be there, where all processes reach it; None where one does not."""
    if jax.process_count() == 1:
        return folder
    mark = folder.absolute() / f".seen-by-all-{secrets.token_hex(8)}"

    def written() -> str:
        mark.touch()
        return str(mark)

    mark = Path(of_first(written))
    # All have looked when all have answered.
    everyone = np.asarray(multihost_utils.process_allgather(np.array(mark.exists()))).all()
    if is_first():
        mark.unlink()
    return mark.parent if everyone else None
