"""Keep kernel times that a fitted calibration was asked for, for the next process of a user.

A file holds the times of one calibration on one GPU: of kernels, by their sizes and SMs. Its name
is a digest of all that they rest on: what the calibration, the GPU, the rows and the other files
that it names say, this program's code, numpy's version and the kind of CPU, whose last bits may
differ. So no answer is older than its inputs, and another input is another file. Numbers are
written so that they read back to the last bit.

A file that is damaged or cannot be read is as good as none; where it cannot be written, or the disk
is full, the next process works the times out again.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import marshal
import platform
from collections.abc import Hashable, Iterable, Mapping
from functools import cache
from pathlib import Path

import numpy as np

import hardware_profiles
import reference_model
import simulator.hardware
from hardware_profiles.tables import Measurement
from hardware_profiles.whole_files import read_text, write_whole
from reference_model.trace import user_cache_folder
from simulator.hardware.kernels.families import Family

Sizes = tuple[tuple[str, int], ...]
Time = tuple[float, float, float, int, float]
"""Seconds of a kernel, both ends of its 80% interval, its provenance, and the bytes it moves."""
Times = Mapping[tuple[bool, Family], Mapping[tuple[Sizes, int], Time]]
"""{(whether an all-to-all is beside it, family): {(sizes, SMs): time}}"""

MOST_KEPT = 20_000
"""Times in one file, which takes about 3 MB: those of a sweep over many more are not kept."""
MOST_FILES = 64
"""Calibrations on GPUs that are kept, the latest."""

_CODE = (
    *sorted(Path(next(iter(simulator.hardware.__path__))).rglob("*.py")),
    *sorted(Path(next(iter(hardware_profiles.__path__))).glob("*.py")),
    Path(next(iter(hardware_profiles.__path__))) / "common_errors.yaml",
    *sorted(Path(next(iter(reference_model.__path__))).glob("*.py")),
)
"""What makes times of rows, beside their inputs."""


def times_digest(inputs: Iterable[Hashable], rows: Iterable[Measurement]) -> str:
    """What all times of one calibration on one GPU rest on.

    Args:
        inputs: texts, and tuples of them, of what is no row.
        rows: of the calibration's own tables.
    """
    digest = hashlib.sha256(_code_digest().encode())
    digest.update(repr(tuple(inputs)).encode())
    # Plain values, which version 2 writes the same whichever objects they are.
    digest.update(marshal.dumps([_values(row) for row in rows], 2))
    return digest.hexdigest()


def _values(row: Measurement) -> tuple[object, ...]:
    return (
        row.kind,
        row.sizes,
        row.dtype,
        row.sms,
        row.seconds,
        row.spread,
        row.source,
        row.conditions,
    )


@cache
def _code_digest() -> str:
    digest = hashlib.sha256(f"{np.__version__} {_kind_of_cpu()}".encode())
    for path in _CODE:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _kind_of_cpu() -> str:
    """What the first CPU is called and can do; several machines may share a home."""
    said = [platform.machine()]
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in itertools.takewhile(str.strip, file):
            if line.startswith(("model name", "flags", "Features")):
                said.append(line)
    return "".join(said)


def _path(digest: str) -> Path:
    return user_cache_folder() / "kernel_times" / f"{digest}.json"


def read_times(digest: str) -> dict[tuple[bool, Family], dict[tuple[Sizes, int], Time]]:
    """The times that are kept; none where no file is, or it is damaged."""
    try:
        path = _path(digest)
        check, _, text = read_text(path, where=str(path)).partition("\n")
        if check != _check(digest, text):
            return {}
        found: dict[tuple[bool, Family], dict[tuple[Sizes, int], Time]] = {}
        for beside, (kind, dtype, out_dtype, accumulate), names, kernels in json.loads(text):
            family = kind, dtype, out_dtype, accumulate
            found[beside, family] = {
                (tuple(zip(names, sizes, strict=True)), sms): (seconds, low, high, code, moved)
                for sizes, sms, seconds, low, high, code, moved in kernels
            }
    except (OSError, ValueError):
        return {}
    return found


def write_times(digest: str, times: Times) -> None:
    """Keep times, whole or not at all; nothing where there are too many or it cannot be."""
    if sum(map(len, times.values())) > MOST_KEPT:
        return
    entries = [
        [
            beside,
            family,
            [name for name, _ in next(iter(known))[0]],
            [[[value for _, value in sizes], sms, *time] for (sizes, sms), time in known.items()],
        ]
        for (beside, family), known in times.items()
        if known
    ]
    text = json.dumps(entries, separators=(",", ":"))
    path = _path(digest)
    with contextlib.suppress(OSError, ValueError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, f"{_check(digest, text)}\n{text}")
        _remove_oldest(path.parent)


def _check(digest: str, text: str) -> str:
    return hashlib.sha256(f"{digest}\n{text}".encode()).hexdigest()


def _remove_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in files[:-MOST_FILES]:
        path.unlink(missing_ok=True)
