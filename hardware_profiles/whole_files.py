"""Read small files whole, and write files that appear whole or not at all.

A file is drafted beside its place, forced to the disk and moved there, so that a full disk, a kill
or a failure on the way leaves what stood there before.
"""

import os
import stat
import tempfile
from pathlib import Path

MOST_BYTES = 256 * 2**20
"""Of a file that is read whole; shipped ones have at most a few."""


def read_text(path: Path, *, where: str) -> str:
    """Read a UTF-8 text file, which errors call `where`.

    Raises:
        ValueError: it is no regular file, larger than MOST_BYTES, not UTF-8 or cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{where}: cannot be read: not a file")
        if status.st_size > MOST_BYTES:
            raise ValueError(
                f"{where}: cannot be read: {status.st_size} bytes; allowed: at most {MOST_BYTES}"
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{where}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{where}: cannot be read: not UTF-8 text") from None


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
