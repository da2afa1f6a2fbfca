"""Keep what takes long to work out for a user's next process.

The name of a file is a digest of all that its text rests on: inputs, code, numpy's version and the
kind of CPU, whose last bits may differ. So no text is older than its inputs, and other inputs are
another file. One that is damaged or cannot be read is as good as none; where it cannot be written,
or the disk is full, the next process works it out again.
"""

import contextlib
import hashlib
import itertools
import platform
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from hardware_profiles.whole_files import read_text, write_whole

MOST_FILES = 64
"""Of one folder that are kept, the latest."""


def digest_of(parts: Iterable[str | Path]) -> str:
    """A digest of texts, and of files by what they hold."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part.read_bytes()
        digest.update(b"%d " % len(content))
        digest.update(content)
    return digest.hexdigest()


def code_digest(modules: Iterable[Path]) -> str:
    """A digest of code that works numbers out, and of what its last bits depend on."""
    return digest_of((np.__version__, _kind_of_cpu(), *modules))


def _kind_of_cpu() -> str:
    """What the first CPU is called and can do; several machines may share a home."""
    said = [platform.machine()]
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in itertools.takewhile(str.strip, file):
            if line.startswith(("model name", "flags", "Features")):
                said.append(line)
    return "".join(said)


def read_kept(folder: Path, digest: str) -> str | None:
    """The text that is kept under a digest; None where no file is, or it is damaged."""
    path = _path(folder, digest)
    try:
        check, _, text = read_text(path, where=str(path)).partition("\n")
    except (OSError, ValueError):
        return None
    return text if check == digest_of((digest, text)) else None


def keep(folder: Path, digest: str, text: str) -> None:
    """Keep a text, whole or not at all; nothing where it cannot be."""
    path = _path(folder, digest)
    with contextlib.suppress(OSError, ValueError):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, f"{digest_of((digest, text))}\n{text}")
        _remove_oldest(folder)


def _path(folder: Path, digest: str) -> Path:
    return folder / f"{digest}.json"


def _remove_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in files[:-MOST_FILES]:
        path.unlink(missing_ok=True)
