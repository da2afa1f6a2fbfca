"""Restate kernel times measured on an H200 for an H800, which has the same SMs.

The H200's SMs are those of the H800; its memory is faster. Of a measured time t, the share that the
kernel's bytes explain at the copy rate that the GPU achieves goes with the memory, the rest stays:

    t' = t (1 + f (B / B' - 1)),   f = min(1, bytes / (achieved share x B) / t)

where the achieved share is that of the fastest copy among the rows that the L2 cache does not hold.

Only kernels that the H800 table lacks in their inference form are restated: small element-wise
ones, products a head, BF16 products, sampling, the gate as one kernel. Of two versions of a kernel
the faster counts. What remains unknown (other kernels, other clocks) is `other_gpu` of the
calibration that uses the rows.

`python -m simulator.calibration.shipping.h800_from_h200` writes measurements/h800_from_h200.csv.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hardware_profiles.schema import GpuProfile, load_gpu
from hardware_profiles.tables import (
    Measurement,
    load_measurements,
    table_path,
    write_measurements,
)
from simulator.hardware.kernels.families import operator_of
from simulator.hardware.kernels.gpu_ratio import BEYOND_CACHE

SOURCE_TABLES, TARGET_TABLE = ("h200_sxm_reference", "h200_decode_probe"), "h800_from_h200"
SOURCE_GPU, TARGET_GPU = "h200_sxm", "h800_sxm"
KERNEL_SET = "h200_restated"
PROBE_SET = "dsv3sim_decode_probe"
"""Rows of python -m reference_model.decode_probe: the gate as one kernel. The reference model's own
gate is many."""

KINDS = frozenset(
    {
        "add", "batched_gemm", "concat", "copy", "embedding", "quantize", "rmsnorm",
        "rmsnorm_residual", "rope", "sample", "swiglu", "unpermute",
    }
)  # fmt: skip
"""Families restated whole; of "gemm" the BF16 ones are."""

MOST_ROWS = 2**14
"""Rows, tokens or m of the largest kernels restated: decode and sampling need no more."""

_ROW_SIZES = ("rows", "m", "tokens")


def restate(
    rows: Iterable[Measurement], *, source: GpuProfile, target: GpuProfile
) -> list[Measurement]:
    """Rows of the families above, all SMs free, restated for the target GPU."""
    rows = list(rows)
    share = copy_share(rows, source)
    best: dict[tuple[object, ...], Measurement] = {}
    for row in rows:
        if not _wanted(row, source):
            continue
        key = (row.kind, row.sizes, row.dtype, row.out_dtype)
        if key not in best or row.seconds < best[key].seconds:
            best[key] = row
    return [_restated(row, share, source, target) for _, row in sorted(best.items(), key=_order)]


def copy_share(rows: Iterable[Measurement], gpu: GpuProfile) -> float:
    """Share of the GPU's HBM rate that its fastest copy reaches.

    Copies count that move more than `BEYOND_CACHE` L2 caches hold. Raises ValueError without one.
    """
    moved = [(_moved_bytes(row), row.seconds) for row in rows if row.kind == "copy"]
    rates = [size / seconds for size, seconds in moved if size > BEYOND_CACHE * gpu.l2_capacity]
    if not rates:
        raise ValueError(f"no row of a copy on {gpu.name} beyond its L2 cache: its rate is unknown")
    return min(1.0, max(rates) / gpu.hbm_bandwidth)


def _wanted(row: Measurement, gpu: GpuProfile) -> bool:
    largest = max((value for name, value in row.sizes if name in _ROW_SIZES), default=0)
    family = row.kind in KINDS or (row.kind == "gemm" and row.dtype == "bfloat16")
    fused_gate = row.kind == "gate" and row.kernel_set == PROBE_SET
    family = family or fused_gate
    return family and not row.accumulate and row.sms == gpu.sms and largest <= MOST_ROWS


def _order(entry: tuple[tuple[object, ...], Measurement]) -> tuple[str, str, str]:
    _, row = entry
    return row.kind, f"{row.dtype} {row.out_dtype}", str(row.sizes)


def _moved_bytes(row: Measurement) -> float:
    operator = operator_of(row)
    return operator.bytes_read + operator.bytes_written


def _restated(
    row: Measurement, copy_share: float, source: GpuProfile, target: GpuProfile
) -> Measurement:
    share = min(1.0, _moved_bytes(row) / (copy_share * source.hbm_bandwidth) / row.seconds)
    factor = 1.0 + share * (source.hbm_bandwidth / target.hbm_bandwidth - 1.0)
    kept = {
        name: value for name, value in row.conditions if name in ("out_dtype", "repeats", "kernels")
    }
    conditions = kept | {"set": KERNEL_SET, "measured_on": source.name}
    return replace(
        row,
        seconds=float(f"{row.seconds * factor:.5g}"),
        conditions=tuple(sorted(conditions.items())),
    )


def main() -> None:
    """Write the table from the shipped H200 measurements."""
    rows = restate(
        [row for name in SOURCE_TABLES for row in load_measurements(table_path(name))],
        source=load_gpu(SOURCE_GPU),
        target=load_gpu(TARGET_GPU),
    )
    write_measurements(table_path(TARGET_TABLE), rows)


if __name__ == "__main__":
    main()
