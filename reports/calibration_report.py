"""Write the run directory of `calibrate`: page, figures and held-out measurements.

held_out.parquet holds every left-out row with its prediction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from hardware_profiles.tables import format_pairs
from reports.calibration import family_name, fit_family
from reports.calibration_charts import panels_of, table_key
from reports.calibration_page import calibration_page
from reports.page import write_page
from reports.run_directory import write_run
from simulator.calibration.family_fit import HeldOutRow, noise
from simulator.calibration.fit import Calibration
from simulator.hardware.kernels.families import Family

POOLED_ROWS = 40
"""Fewest rows of a table whose errors are pooled."""
SUSPECT = 0.5
"""An error below this share of the noise floor cannot come from fitting these rows honestly."""


@dataclass(frozen=True, slots=True)
class PooledError:
    """Errors of left-out rows of one family, of all its tables with `POOLED_ROWS` rows together."""

    family: str
    tables: int
    """Kernel sets."""
    rows: int
    """Between others of their shape; those at its ends are not pooled."""
    median: float
    p90: float
    worst: float
    noise_median: float | None
    """Noise floor of the same tables; None where no two rows do equal work."""
    noise_p90: float | None

    @property
    def suspect(self) -> bool:
        return self.noise_median is not None and self.median < SUSPECT * self.noise_median


def write_calibration_run(
    result: Calibration, directory: Path, *, inputs: Mapping[str, Any]
) -> list[PooledError]:
    """Write everything, return the pooled errors; the directory appears whole or not at all.

    Args:
        inputs: what the calibration was made from, written as scenario.yaml.
    """
    panels = panels_of(result.held_out)
    pooled = pooled_errors(result)

    def write_report(draft: Path) -> None:
        write_page(calibration_page(result, panels, pooled, POOLED_ROWS), draft)

    write_run(
        directory,
        scenario=yaml.safe_dump(dict(inputs), sort_keys=False, allow_unicode=True),
        metrics=metrics(result, pooled),
        tables={"held_out": held_out_table(result.held_out)},
        write_report=write_report,
    )
    return pooled


def metrics(result: Calibration, pooled: Sequence[PooledError]) -> dict[str, Any]:
    """The calibration's errors by their JSON names."""
    return {
        "calibration": result.profile.name,
        "gpu": result.profile.gpu,
        "measurements": len(result.read.measurements),
        "pooled": [asdict(error) for error in pooled],
        "fits": [fit.model_dump(mode="json") for fit in result.profile.fits],
        "read_by": list(result.read.read_by),
        "unmapped": list(map(str, result.read.unmapped)),
        "warnings": list(result.read.warnings),
    }


def pooled_errors(result: Calibration) -> list[PooledError]:
    """Errors by family, most rows first."""
    tables: dict[tuple[Family, str], list[HeldOutRow]] = defaultdict(list)
    for held_out in result.held_out:
        tables[table_key(held_out.measurement)].append(held_out)
    families: dict[Family, list[str]] = defaultdict(list)
    for (family, kernel_set), rows in tables.items():
        if len(rows) >= POOLED_ROWS:
            families[family].append(kernel_set)
    found = []
    for family, chosen in families.items():
        errors = np.array(
            [abs(row.error) for name in chosen for row in tables[family, name] if not row.edge]
        )
        if not len(errors):
            continue
        floor = _noise_floor(result, family, chosen)
        found.append(
            PooledError(
                family=family_name(family),
                tables=len(chosen),
                rows=len(errors),
                median=float(np.median(errors)),
                p90=float(np.quantile(errors, 0.9)),
                worst=float(errors.max()),
                noise_median=floor and floor[0],
                noise_p90=floor and floor[1],
            )
        )
    return sorted(found, key=lambda error: -error.rows)


def _noise_floor(
    result: Calibration, family: Family, kernel_sets: Sequence[str]
) -> tuple[float, float] | None:
    """Median and p90 of how far rows of equal work lie apart."""
    if len(kernel_sets) == 1:
        for fit in result.profile.fits:
            if fit.kernel_set == kernel_sets[0] and fit_family(fit) == family and fit.noise:
                return fit.noise.median, fit.noise.p90
    floors = [
        noise([row for row in result.read.measurements if table_key(row) == (family, name)])
        for name in kernel_sets
    ]
    apart = np.abs(np.expm1(np.concatenate(floors)))
    return (float(np.median(apart)), float(np.quantile(apart, 0.9))) if len(apart) else None


def held_out_table(rows: Sequence[HeldOutRow]) -> pd.DataFrame:
    """One row per left-out measurement."""
    timed = [row.measurement for row in rows]
    return pd.DataFrame(
        {
            "kind": [row.kind for row in timed],
            "sizes": [format_pairs(row.sizes) for row in timed],
            "dtype": [row.dtype for row in timed],
            "sms": [row.sms for row in timed],
            "kernel_set": [row.kernel_set for row in timed],
            "measured_s": [row.seconds for row in timed],
            "predicted_s": [row.predicted_s for row in rows],
            "edge": [row.edge for row in rows],
            "source": [row.source for row in timed],
        }
    )
