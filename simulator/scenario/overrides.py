"""Read overrides of a scenario: texts "path=value" whose path may begin within its job."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hardware_profiles.fields import Raw, parse_yaml
from hardware_profiles.renames import path_of_today
from hardware_profiles.suggestions import did_you_mean
from simulator.scenario.describe import is_field, paths_meant
from simulator.scenario.scenario_file import FIELDS, JOBS, job_type


def parse_override(text: str) -> tuple[str, Any]:
    """Read "path=value", the value as YAML. Raises ValueError for any other text."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ValueError(f"--set {text!r}: allowed: path=value, such as training.schedule=zb_h1")
    return path, parse_yaml(value, where=f"--set {text!r}")


def full_path(path: str, raw: Raw, where: str) -> str:
    """The path from the root of the scenario; fields of its job may be given without the job."""
    full = path_of_today(rooted(path, raw), "scenarios", where="--set")
    job = _job_of(raw)
    if full == path or full.split(".")[0] != job:
        return full
    fields_of_job = job_type(job).model_fields
    if full.split(".")[1] in fields_of_job:
        return full
    meant = paths_meant(path, job)
    known = sorted({*FIELDS, *fields_of_job})
    raise ValueError(
        f"{where}: --set {path}: unknown field {path.split('.', maxsplit=1)[0]!r}; "
        f"{did_you_mean(meant) if meant else 'known: ' + ', '.join(known)}"
    )


def rooted(path: str, raw: Raw) -> str:
    """A path that may begin within the job, from the root of the scenario."""
    job = _job_of(raw)
    return path if path.split(".", maxsplit=1)[0] in FIELDS or job is None else f"{job}.{path}"


def _job_of(raw: Raw) -> str | None:
    return next((job for job in JOBS if raw.get(job) is not None), None)


def check_paths(paths: Iterable[str], raw: Raw, where: str) -> None:
    """Raise ValueError for the first path that is no field of a file, where another is meant."""
    for path in paths:
        meant = [] if is_field(path) else paths_meant(path, _job_of(raw))
        if meant:
            raise ValueError(f"{where}: --set {path}: unknown field; {did_you_mean(meant)}")
