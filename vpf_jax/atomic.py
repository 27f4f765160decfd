"""Writing a file so that it is there whole, or as it was, whatever happens meanwhile.

Not here: folders that are written so (`checkpoint`).
"""

import os
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a file, atomically; on disk when it returns.

    Raises:
      OSError: it cannot be written; what was there stays.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # The system does not say which file it could not write.
        raise OSError(error.errno, error.strerror, str(path)) from error
