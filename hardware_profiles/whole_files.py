"""Read small files whole, and write files that appear whole or not at all.

A file is drafted beside its place, forced to the disk and moved there, so that a full disk, a kill
or a failure on the way leaves what stood there before. Drafts that a killed process left are
removed by the next that writes to the same place.
"""

import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Mapping
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


def real_path(path: Path) -> Path:
    """Where a path leads. Of links in a circle it is one of them, which cannot be opened."""
    return Path(os.path.realpath(path))


def write_whole(path: Path, text: str) -> None:
    """Write UTF-8 text, replacing what stands at `path`.

    Raises:
        ValueError: it cannot be written; nothing has changed then.
    """
    draft = _draft(path, text)
    try:
        _put(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    remove_dead_drafts(path)


def write_together(
    texts: Mapping[Path, str], last: Path, naming: Callable[[Mapping[Path, Path]], str]
) -> None:
    """Write files and one more, `last`, that names them; whenever this is killed, `last` names
    files of one time: all former ones or all new ones.

    While the others are moved to their places, `last` names drafts of them that stay.

    Args:
        texts: {file: its text}
        naming: {file: where it lies} -> text of `last`.

    Raises:
        ValueError: something cannot be written; nothing has changed then.
    """
    drafts: list[Path] = []

    def draft(path: Path, text: str) -> Path:
        drafts.append(_draft(path, text))
        return drafts[-1]

    try:
        # All that takes room on the disk comes before the first change.
        named = {path: draft(path, text) for path, text in texts.items()}
        moved = {path: draft(path, text) for path, text in texts.items()}
        between = draft(last, naming(named))
        final = draft(last, naming({path: path for path in texts}))
        rests_on = set(named.values())
        _put(between, last)
        try:
            for path, new in moved.items():
                _put(new, path)
            _put(final, last)
            rests_on = set()
        finally:
            drafts = [path for path in drafts if path not in rests_on]
    finally:
        for path in drafts:
            path.unlink(missing_ok=True)
    for path in (*texts, last):
        remove_dead_drafts(path)


def _draft(path: Path, text: str) -> Path:
    """A file beside `path` that holds the text, on the disk; removed again where it cannot."""
    try:
        if path.exists() and not path.is_file():
            # Root may move a file to the place of a device, which is gone then.
            raise ValueError(f"{path}: cannot be written: not a file")
        number, name = tempfile.mkstemp(prefix=draft_prefix(path), dir=path.parent)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with open(number, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ValueError(f"{path}: cannot be written: {error.strerror}") from None
        raise
    return Path(name)


def _put(draft: Path, path: Path) -> None:
    try:
        draft.replace(path)
        to_disk(path.parent)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror}") from None


def draft_prefix(path: Path) -> str:
    """Drafts say who writes them, so that nobody removes the draft of a run that goes on."""
    return f"{_drafts_here(path)}{os.getpid()}."


def is_draft_of(draft: Path, path: Path) -> bool:
    """Whether a file is a draft of what stands at `path`, of whichever process."""
    return draft.parent == path.parent and draft.name.startswith(f".{path.name[:150]}.")


def remove_dead_drafts(path: Path) -> None:
    """Remove drafts of this place, files or directories, whose process on this machine is gone."""
    ours = _drafts_here(path)
    for draft in path.parent.iterdir():
        writer = draft.name.removeprefix(ours).partition(".")[0]
        if draft.name.startswith(ours) and writer.isdigit() and not _is_alive(int(writer)):
            if draft.is_dir():
                shutil.rmtree(draft, ignore_errors=True)
            else:
                draft.unlink(missing_ok=True)


def _drafts_here(path: Path) -> str:
    return f".{path.name[:150]}.{socket.gethostname()[:40]}."


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def to_disk(path: Path) -> None:
    """Force a file, or the names in a directory, to the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
