"""Kernel times of one GPU on another: a time and both datasheets in, the ratio of times out."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.schema import GpuProfile, TilesProfile
from hardware_profiles.tables import Measurement
from hardware_profiles.units import Seconds
from simulator.hardware.kernel_families import operator_of
from simulator.hardware.roofline import Batch, ideal_batch_seconds, is_tensor

Array = NDArray[np.float64]

BEYOND_CACHE = 4
"""Times the L2 cache that a kernel moves before its rate is that of the HBM."""


def same_compute(one: GpuProfile, other: GpuProfile) -> bool:
    """Whether two GPUs share everything that a compute kernel's time depends on."""
    return _compute_of(one) == _compute_of(other)


def _compute_of(gpu: GpuProfile) -> tuple[object, ...]:
    """What a compute kernel's time depends on."""
    return (gpu.sms, gpu.sm_clock, dict(gpu.peak_compute), gpu.hbm_bandwidth, gpu.l2_capacity)


def fastest_share(rows: Iterable[Measurement], gpu: GpuProfile) -> float | None:
    """Share of the HBM rate that the fastest kernel without tensor cores moves beyond the L2 cache;
    None where no row is that large.
    """
    shares = []
    for row in rows:
        if is_tensor(row.kind):
            continue
        operator = operator_of(row)
        moved = operator.bytes_read + operator.bytes_written
        if moved > BEYOND_CACHE * gpu.l2_capacity:
            shares.append(moved / row.seconds / gpu.hbm_bandwidth)
    return min(1.0, max(shares)) if shares else None


def log_transfer(
    batch: Batch,
    sms: Array,
    seconds: Array,
    *,
    source: GpuProfile,
    target: GpuProfile,
    achieved_share: float,
    floor: Seconds,
    tiles: TilesProfile,
) -> Array:
    """Log of the time on `target` over that on `source`; [operators].

    A tensor-core kernel loads its operands while it computes: its time goes as its roofline, the
    larger of waves at peak and bytes. Of another kernel's time t the share f that its bytes take at
    the rate of the fastest kernel goes with the memory, the rest with SMs x clock:

        t' = t (f B / B' + (1 - f) P / P'),   f = min(1, bytes / (achieved share x B) / t)

    Args:
        sms: [operators] on the target; the same share of the source's is meant.
        seconds: [operators] on the source.
        achieved_share: of the source's HBM rate.
        floor: of launching the operator's kernels.
    """
    if is_tensor(batch.kind):
        on = sms * (source.sms / target.sms)
        before = ideal_batch_seconds(batch, on, source, tiles) + floor
        after = ideal_batch_seconds(batch, sms, target, tiles) + floor
        log_ratio: Array = np.log(after / before)
        return log_ratio
    memory = source.hbm_bandwidth / target.hbm_bandwidth
    compute = source.sms * source.sm_clock / (target.sms * target.sm_clock)
    rate = achieved_share * source.hbm_bandwidth
    bound = np.minimum(1.0, batch.moved_bytes / rate / seconds)
    return np.log(bound * memory + (1.0 - bound) * compute)
