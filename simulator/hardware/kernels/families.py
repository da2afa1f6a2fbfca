"""Kernel families: which operator each measurement of a table timed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hardware_profiles.schema import CalibrationProfile
from hardware_profiles.tables import Measurement, load_measurements, table_path
from reference_model.trace import KINDS, Operator
from simulator.hardware.kernels.roofline import Batch, batch_of_sizes

Family = tuple[str, str, str, bool]
"""(kind, operand type, result type, whether it adds into the result)."""


def calibration_measurements(calibration: CalibrationProfile) -> tuple[Measurement, ...]:
    """All rows of the tables that a calibration names."""
    return tuple(
        row for name in calibration.measurements for row in load_measurements(table_path(name))
    )


def check_row(row: Measurement) -> None:
    """Raise ValueError for an unknown kind, or other sizes than the kind has."""
    if row.kind not in KINDS:
        raise ValueError(
            f"measurement of {row.source}: kind: {row.kind!r} is unknown; "
            f"known: {', '.join(sorted(KINDS))}"
        )
    sizes, needed = {name for name, _ in row.sizes}, set(KINDS[row.kind].sizes)
    if sizes != needed:
        raise ValueError(
            f"measurement of {row.source}: sizes: {row.kind} needs {', '.join(sorted(needed))}; "
            f"found {', '.join(sorted(sizes))}"
        )


def operator_of(row: Measurement) -> Operator:
    """The operator that a row timed."""
    return Operator(
        name=row.source,
        kind=row.kind,
        phase="forward",
        segment="",
        dtype=row.dtype,
        out_dtype=row.out_dtype,
        sizes=row.sizes,
        recompute=False,
        accumulate=row.accumulate,
    )


def family_of(kernel: Operator | Measurement) -> Family:
    """What a kernel's measurements are pooled by."""
    return (kernel.kind, kernel.dtype, kernel.out_dtype, kernel.accumulate)


def batch_of_rows(rows: Sequence[Measurement]) -> Batch:
    """The operators that rows of one family timed, without an object each."""
    values = (size for row in rows for _, size in row.sizes)
    sizes = np.fromiter(values, dtype=np.int64).reshape(len(rows), -1)
    return batch_of_sizes(operator_of(rows[0]), sizes)
