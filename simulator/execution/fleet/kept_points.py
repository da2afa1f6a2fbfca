"""Keep the times of a fleet's iterations at grid points for the next process of a user.

A file (hardware_profiles/kept_files.py) holds those of one deployment. They rest on all that the
deployment is made of: what its job, machine, calibration and trace say, its kernel times, and this
program's code. Numbers are written so that they read back to the last bit.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TypeAlias

import hardware_profiles
import reference_model
import simulator.execution
import simulator.hardware
import simulator.workload
from hardware_profiles.fields import Profile
from hardware_profiles.kept_files import code_digest, digest_of, keep, read_kept
from reference_model.trace import user_cache_folder
from simulator.execution.serving_model import ServingModel

KnownTimes: TypeAlias = dict[tuple[str, int, int], float]
"""{("seconds", or "more" of what ranks that differ make of it; size; context): its value} of grid
points of one deployment, whatever its largest batch or pass."""

_CODE = (
    *((package, "**/*.py") for package in (simulator.execution, simulator.workload)),
    (simulator.hardware, "**/*.py"),
    (hardware_profiles, "*.py"),
    (hardware_profiles, "**/*.yaml"),
    (reference_model, "*.py"),
)
"""What makes times of a deployment, shipped profiles that it may look up by name included."""


def points_digest(model: ServingModel) -> str | None:
    """What all times of a deployment's iterations rest on; None where its kernel times are of
    somebody who keeps none."""
    kernels = model.kernels.costs.kernels_.digest
    if kernels is None:
        return None
    rows = model.job.skew.rows
    normal, collectives = model.transfers.normal, model.transfers.measured
    profiles: tuple[Profile | None, ...] = (
        model.job,
        model.cluster,
        model.kernels.calibration,
        model.low_latency,
        *(() if normal is None else normal.kernels),
        None if collectives is None else collectives.measured,
    )
    return digest_of(
        (
            _code_digest(),
            kernels,
            *("" if profile is None else profile.model_dump_json() for profile in profiles),
            *("" if name is None else Path(name) for name in (rows.file, rows.placed_for)),
            *(repr(part) for part in (model.config, model.trace, model.seed)),
        )
    )


@cache
def _code_digest() -> str:
    return code_digest(
        path
        for package, pattern in _CODE
        for path in sorted(Path(next(iter(package.__path__))).glob(pattern))
    )


def read_points(model: ServingModel) -> KnownTimes:
    """The times that are kept, if any."""
    digest = points_digest(model)
    text = None if digest is None else read_kept(_folder(), digest)
    return {(what, size, context): value for what, size, context, value in json.loads(text or "[]")}


def write_points(model: ServingModel, known: KnownTimes) -> None:
    """Keep times, where there are new ones."""
    digest = points_digest(model)
    if digest is not None and len(known) > len(read_points(model)):
        keep(_folder(), digest, json.dumps([[*key, value] for key, value in known.items()]))


def _folder() -> Path:
    return user_cache_folder() / "fleet_points"
