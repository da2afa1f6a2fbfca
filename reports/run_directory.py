"""Write a run directory that appears whole or not at all: scenario, metrics, events and report.

Everything is written beside the final place and exchanged with what stands there at the end, so
that a run that is killed, interrupted or out of disk leaves the earlier run as it was. The draft of
a killed run is removed by the next run of the same place.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardware_profiles.whole_files import (
    draft_prefix,
    is_draft_of,
    read_text,
    real_path,
    remove_dead_drafts,
    to_disk,
)

if TYPE_CHECKING:
    import pandas as pd

METRICS_FILE = "metrics.json"
MANIFEST_FILE = ".dsv3sim-run"
"""Lists what a run wrote, so that a later run replaces nothing else."""
SCENARIO_FILE = "scenario.yaml"


def write_run(
    directory: Path,
    *,
    scenario: str,
    metrics: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    write_report: Callable[[Path], None],
) -> None:
    """Write a run directory, replacing an earlier run of the same place.

    Args:
        scenario: the resolved scenario as YAML; empty of what is not of one.
        tables: file name without ending -> frame, written as parquet with units in its schema.
        write_report: writes the report's files into the directory it is given.

    Raises:
        ValueError: the place exists and is no run directory, or cannot be written.
    """
    from reports.parquet import write_frame

    check_replaceable(directory)
    directory = real_path(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _restore_former(directory)
        remove_dead_drafts(directory)
        draft = Path(tempfile.mkdtemp(prefix=draft_prefix(directory), dir=directory.parent))
    except OSError as error:
        raise ValueError(f"{directory}: cannot be written: {error.strerror}") from error
    try:
        draft.chmod(0o755)
        if scenario:
            (draft / SCENARIO_FILE).write_text(scenario, encoding="utf-8")
        for name, frame in tables.items():
            write_frame(frame, draft / f"{name}.parquet")
        write_report(draft)
        # Last, because it marks the directory as a complete run.
        text = json.dumps(metrics, indent=2, allow_nan=False)
        (draft / METRICS_FILE).write_text(f"{text}\n", encoding="utf-8")
        names = sorted(path.name for path in draft.iterdir())
        (draft / MANIFEST_FILE).write_text("".join(f"{name}\n" for name in names), "utf-8")
        for path in (*draft.rglob("*"), draft):
            to_disk(path)
        _put_in_place(draft, directory)
    except OSError as error:
        raise ValueError(f"{directory}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_replaceable(directory: Path) -> None:
    """Raise ValueError where `directory` holds anything that no earlier run wrote, or cannot be."""
    above = next((path for path in (directory, *directory.parents) if os.path.lexists(path)), None)
    if above is not None and not above.is_dir():
        raise ValueError(
            f"{above}: exists and is not a directory; allowed: a new path or an earlier run"
        )
    if not directory.exists() or not any(directory.iterdir()):
        return
    manifest = directory / MANIFEST_FILE
    if not manifest.is_file():
        raise ValueError(
            f"{directory}: exists and is not a run directory (no {MANIFEST_FILE}); "
            "allowed: a new path or an earlier run"
        )
    written = {MANIFEST_FILE, *manifest.read_text("utf-8").splitlines()}
    for path in sorted(directory.iterdir()):
        if path.name not in written:
            raise ValueError(
                f"{directory}: holds {path.name}, which no run wrote; "
                "allowed: a new path or an earlier run with nothing added"
            )


def read_metrics(directory: Path) -> dict[str, Any]:
    """The metrics of a run directory.

    Raises:
        ValueError: it is no run directory, or its metrics cannot be read.
    """
    path = directory / METRICS_FILE
    text = read_text(path, where=f"{directory}: not a run directory: {path}")
    try:
        metrics = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(metrics, dict):
        raise ValueError(f"{path}: holds {type(metrics).__name__}, not the metrics of a run")
    return metrics


def check_comparable(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Raise ValueError where (name, metrics) of runs are of different jobs, whose metrics of one
    name are different things: the step of a training run, the step of a decode run."""
    (first, metrics), *others = runs
    for name, other in runs:
        if job_of(other) == "a sweep":
            raise ValueError(
                f"compare: {name} is a sweep; allowed: runs (its report.html and sweep.csv hold "
                "all its points beside each other)"
            )
    for name, other in others:
        if job_of(other) != job_of(metrics):
            raise ValueError(
                f"compare: {first} is {job_of(metrics)}, {name} is {job_of(other)}; allowed: runs "
                "of one job and phase (a run's report.html shows it by itself)"
            )


def job_of(metrics: Mapping[str, Any]) -> str:
    """What kind of run metrics are of: "a training run", "a serving_step run, decode"."""
    scenario = metrics.get("scenario")
    if isinstance(scenario, Mapping):
        phase = f", {metrics['phase']}" if "phase" in metrics else ""
        return f"a {scenario['job']} run{phase}"
    if "rows" in metrics and isinstance(scenario, str):
        return "a sweep"
    return "a run that names no job"


def _put_in_place(draft: Path, directory: Path) -> None:
    """Move a draft to its place; what stood there is under the draft's name afterwards."""
    if directory.exists():
        _exchange(draft, directory)
    else:
        draft.rename(directory)
    to_disk(directory.parent)


def _exchange(one: Path, other: Path) -> None:
    """Give each of two directories the other's name, in one step where the file system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is not None:
        names = (os.fsencode(one), os.fsencode(other))
        if rename(_HERE, names[0], _HERE, names[1], _RENAME_EXCHANGE) == 0:
            return
    former = one.with_name(f"{one.name}{_FORMER}")
    other.rename(former)
    one.rename(other)
    former.rename(one)


_FORMER = ".former"
"""What the name ends in of an earlier run that three renames exchange with a draft."""


def _restore_former(directory: Path) -> None:
    """Put an earlier run back in its place, from which a killed run had moved it."""
    drafts = [path for path in directory.parent.iterdir() if is_draft_of(path, directory)]
    for path in drafts:
        if path.name.endswith(_FORMER) and not directory.exists():
            path.rename(directory)


_HERE, _RENAME_EXCHANGE = -100, 2
"""Linux: AT_FDCWD and RENAME_EXCHANGE of renameat2(2)."""
