"""Write files that appear whole or not at all.

A file is drafted beside its place, forced to the disk and moved there, so that a full disk, a kill
or a failure on the way leaves what stood there before.
"""

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write UTF-8 text, replacing what stands at `path`.

    Raises:
        ValueError: it cannot be written; nothing has changed then.
    """
    try:
        number, draft = tempfile.mkstemp(prefix=f".{path.name[:200]}.", dir=path.parent)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with open(number, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).chmod(0o644)
        Path(draft).replace(path)
    except OSError as error:
        Path(draft).unlink(missing_ok=True)
        raise ValueError(f"{path}: cannot be written: {error.strerror}") from None
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
