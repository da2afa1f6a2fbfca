"""Keep kernel times that a fitted calibration was asked for, for the next process of a user.

A file (hardware_profiles/kept_files.py) holds the times of one calibration on one GPU: of kernels,
by their sizes and SMs. They rest on what the calibration, the GPU, the rows and the other files
that it names say, and on this program's code. Numbers are written so that they read back to the
last bit.
"""

from __future__ import annotations

import hashlib
import json
import marshal
from collections.abc import Hashable, Iterable, Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path

import hardware_profiles
import reference_model
import simulator.hardware
from hardware_profiles.by_content import Keyed, profile_key, rows_key
from hardware_profiles.fields import ROOT
from hardware_profiles.kept_files import code_digest, digest_of, keep, read_kept
from hardware_profiles.schema import (
    CalibrationProfile,
    known_calibrations,
    load_calibration,
    load_gpu,
)
from hardware_profiles.tables import Measurement, table_path
from reference_model.trace import user_cache_folder
from simulator.hardware.kernels.calibrated import NOT_OF_KERNELS
from simulator.hardware.kernels.families import Family

Sizes = tuple[tuple[str, int], ...]
Time = tuple[float, float, float, int, float]
"""Seconds of a kernel, both ends of its 80% interval, its provenance, and the bytes it moves."""
Times = Mapping[tuple[bool, Family], Mapping[tuple[Sizes, int], Time]]
"""{(whether an all-to-all is beside it, family): {(sizes, SMs): time}}"""

MOST_KEPT = 20_000
"""Times in one file, which takes about 3 MB: those of a sweep over many more are not kept."""
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
    digest.update(_rows_digest(rows_key(rows)))
    return digest.hexdigest()


@lru_cache(maxsize=16)
def _rows_digest(rows: Keyed[tuple[Measurement, ...]]) -> bytes:
    # Plain values, which version 2 writes the same whichever objects they are.
    text = marshal.dumps([_values(row) for row in rows.value], 2)
    return hashlib.sha256(text).digest()


def files_behind(
    calibration: CalibrationProfile, seen: frozenset[str] = frozenset()
) -> Iterator[Hashable]:
    """What the files say that a calibration names: its GPU, and the calibrations that complete it
    or that it is restated from, with their GPUs and tables.

    Args:
        seen: calibrations that are left out.
    """
    yield profile_key(load_gpu(calibration.gpu)).key
    for name in (*calibration.completed_by, *calibration.restated_from):
        if name in seen:
            continue
        if name in known_calibrations():
            yield from _files_behind_shipped(name, seen)
            continue
        other = load_calibration(name)
        yield profile_key(other, without=NOT_OF_KERNELS).key
        for table in other.measurements:
            yield digest_of((table_path(table),))
        yield from files_behind(other, seen | {name})


def _files_behind_shipped(name: str, seen: frozenset[str]) -> Iterator[Hashable]:
    """The same of a calibration that lies in the package, and what it says itself."""
    gpu, others, tables = _named_in(name)
    yield _shipped_digest(Path("calibrations") / f"{name}.yaml")
    yield _shipped_digest(Path("gpus") / f"{gpu}.yaml")
    for table in tables:
        yield _shipped_digest(table_path(table))
    for other in others:
        if other not in seen:
            yield from _files_behind_shipped(other, seen | {name})


@cache
def _shipped_digest(path: Path) -> str:
    return digest_of((ROOT / path,))


@cache
def _named_in(name: str) -> tuple[str, list[str], list[str]]:
    """GPU, other calibrations and tables that a shipped calibration names: looked up, where a
    process before has read it, in a hundredth of the time."""
    folder = user_cache_folder() / "calibrations"
    digest = digest_of((_shipped_digest(Path("calibrations") / f"{name}.yaml"), _code_digest()))
    kept = read_kept(folder, digest)
    if kept is None:
        read = load_calibration(name)
        others = [*read.completed_by, *read.restated_from]
        kept = json.dumps((read.gpu, others, read.measurements))
        keep(folder, digest, kept)
    gpu, others, tables = json.loads(kept)
    return gpu, others, tables


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
    return code_digest(_CODE)


def _folder() -> Path:
    return user_cache_folder() / "kernel_times"


def read_times(digest: str) -> dict[tuple[bool, Family], dict[tuple[Sizes, int], Time]]:
    """The times that are kept; none where no file is, or it is damaged."""
    found: dict[tuple[bool, Family], dict[tuple[Sizes, int], Time]] = {}
    text = read_kept(_folder(), digest) or "[]"
    for beside, (kind, dtype, out_dtype, accumulate), names, kernels in json.loads(text):
        family = kind, dtype, out_dtype, accumulate
        found[beside, family] = {
            (tuple(zip(names, sizes, strict=True)), sms): (seconds, low, high, code, moved)
            for sizes, sms, seconds, low, high, code, moved in kernels
        }
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
    keep(_folder(), digest, json.dumps(entries, separators=(",", ":")))
