"""Fit a calibration to measured kernel times.

    result = fit_calibration([Path("gemm.csv")], gpu="h200_sxm", name="mine", base="h200_sxm")

Every kernel family is fitted and judged on its own rows (family_fit.py). Rows of transfers between
GPUs are no kernels; `collective_fit` makes a transport of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hardware_profiles.fields import Raw
from hardware_profiles.schema import CalibrationProfile, load_calibration, load_gpu
from hardware_profiles.tables import TRANSFER_KINDS, Measurement
from simulator.calibration.collective_fit import KINDS, CollectiveErrors, fitted_transport
from simulator.calibration.family_fit import LEAST_ROWS, HeldOutRow, fit_families
from simulator.calibration.imported_rows import ImportedRows
from simulator.calibration.kernel_choice import choose_versions
from simulator.calibration.low_latency_fit import (
    FittedLowLatency,
    fit_low_latency,
    is_low_latency,
)
from simulator.calibration.normal_fit import (
    NIC,
    FittedLaw,
    Key,
    fit_normal,
    normal_key,
    normal_tables_of,
)
from simulator.calibration.sources import read_sources
from simulator.calibration.tables import kernel_sets
from simulator.execution.progress import Watch, unwatched
from simulator.hardware.kernels.families import (
    calibration_measurements,
    family_of,
)
from simulator.hardware.power_state import AMONG_OTHERS

COLLECTIVES = "_collectives"
"""What the name of a calibration's own transport ends in."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What `fit_calibration` gives."""

    profile: CalibrationProfile
    read: ImportedRows
    """Of all sources; rows of one version of each kernel."""
    held_out: tuple[HeldOutRow, ...]
    completed: tuple[str, ...] = ()
    """What the rows lack: "calibration that answers: kinds of kernels"."""
    transport: tuple[Raw, Mapping[tuple[str, str], CollectiveErrors]] | None = None
    """Of rows of collective operations: a file of its own, and errors by operation and types."""
    normal: Mapping[Key, FittedLaw] = field(default_factory=dict)
    """Laws of normal dispatch and combine kernels by SMs, likewise."""
    low_latency: FittedLowLatency | None = None
    """Of rows of low-latency kernels within a node, likewise."""


def fit_calibration(
    sources: Sequence[Path],
    *,
    gpu: str,
    name: str,
    base: CalibrationProfile,
    mappings: Sequence[str] = (),
    sets: Sequence[str] = (),
    completed_by: Sequence[str] = (),
    stated: Mapping[str, str] | None = None,
    gpus_per_node: int | None = None,
    watch: Watch = unwatched,
) -> Calibration:
    """Read sources, fit every family and judge the fits.

    Args:
        gpu: GPU profile that all sources were measured on.
        name: of the calibration.
        base: inputs that no table holds.
        mappings: how sources are read, as `sources.read_sources` takes them.
        sets: kernel sets to prefer, in order; of kernels of which they have no row, and where
            empty, those of the base, else the newest version (kernel_choice.py).
        completed_by: calibrations that answer for kernels without a row.
        stated: {column that tables lack: its value in every line}
        gpus_per_node: that low-latency kernels were timed among, as `fit_low_latency` takes it.
        watch: told what is being done.

    Raises ValueError, one line, for a source that cannot be used or sources without a row.
    """
    read = read_sources(sources, gpu=gpu, mappings=mappings, stated=stated, watch=watch)
    unknown = [name for name in sets if name not in kernel_sets(read.measurements)]
    if unknown:
        raise ValueError(
            f"kernel set {unknown[0]!r} is in none of the sources; found: "
            f"{', '.join(kernel_sets(read.measurements))}"
        )
    chosen = choose_versions(read, named=(*sets, *base.kernel_sets))
    rows, warnings = chosen.measurements, list(chosen.warnings)
    profile = load_gpu(gpu)
    normal = fit_normal(normal_tables_of(rows, base, profile, nic=NIC))
    low_latency = fit_low_latency(rows, gpu=profile, gpus_per_node=gpus_per_node)
    kernels = [
        row
        for row in rows
        if normal_key(row) not in normal and not (low_latency and is_low_latency(row))
    ]
    among = sum(row.state in AMONG_OTHERS for row in kernels)
    if among:
        kernels = [row for row in kernels if row.state not in AMONG_OTHERS]
        warnings.append(
            f"{among} rows of operators timed among the others of a step (state=sustained, "
            "in_order) answer such steps; fits are of bursts alone"
        )
    fits, held_out = fit_families(
        kernels, gpu=profile, floor=base.kernel_floor.value, tiles=base.tiles, watch=watch
    )
    judged = {(fit.kind, fit.dtype, fit.out_dtype, fit.kernel_set) for fit in fits}
    unused = [row.kind for row in rows if row.kind in TRANSFER_KINDS - KINDS]
    if unused:
        warnings.append(
            f"{len(unused)} rows are of no kernel or collective operation and decide nothing: "
            f"{', '.join(sorted(set(unused)))}"
        )
    few = [
        row
        for row in kernels
        if row.kind not in TRANSFER_KINDS
        and (row.kind, row.dtype, row.out_dtype, row.kernel_set) not in judged
    ]
    if few:
        kinds = ", ".join(sorted({row.kind for row in few}))
        warnings.append(
            f"{len(few)} rows of fewer than {LEAST_ROWS} sizes a family are not judged: {kinds}"
        )
    found = tuple(known.name for known in chosen.sets)
    named = base.kernels if set(found) <= set(base.kernel_sets) else None
    if named is None:
        warnings.append(
            "the file does not say whose kernels these are: add `kernels` with kind (engine or "
            "reference), name, date and jobs, so that comparisons of runs can name them"
        )
    values = {
        "name": name,
        "kernels": named,
        "gpu": gpu,
        "kernel_sets": found,
        "basis": "measured",
        "completed_by": tuple(completed_by),
        "fits": tuple(fits),
    }
    return Calibration(
        profile=base.model_copy(update=values),
        read=replace(chosen, warnings=tuple(warnings)),
        held_out=tuple(held_out),
        completed=_completed(completed_by, rows),
        transport=fitted_transport(f"{name}{COLLECTIVES}", rows, gpu=profile),
        normal=normal,
        low_latency=low_latency,
    )


def _completed(names: Sequence[str], rows: Iterable[Measurement]) -> tuple[str, ...]:
    """Kinds of kernels that have no row and are answered for by other calibrations, one line a
    calibration."""
    known = {family_of(row) for row in rows if row.kind not in TRANSFER_KINDS}
    kinds = {kind for kind, *_ in known}
    lines = []
    for name in names:
        families = {
            family_of(row)
            for row in calibration_measurements(load_calibration(name))
            if row.kind not in TRANSFER_KINDS
        }
        missing = sorted(
            {
                f"{kind} {dtype} -> {out_dtype}" if kind in kinds else kind
                for kind, dtype, out_dtype, _ in families - known
            }
        )
        known |= families
        if missing:
            lines.append(f"{name}: {', '.join(missing)}")
    return tuple(lines)
