"""The ratio of a kernel's times on two GPUs, from their datasheets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.by_content import Keyed, object_key
from hardware_profiles.calibration_parts import TilesProfile
from hardware_profiles.same_gpu import KERNEL_RATES
from hardware_profiles.schema import GpuProfile
from hardware_profiles.tables import Measurement
from reference_model.formats import multiplied_as
from simulator.hardware.kernels.families import Family, batch_of_rows, family_of
from simulator.hardware.kernels.roofline import (
    Batch,
    is_tensor,
    needed_bytes,
    waves_and_bytes,
)

Array = NDArray[np.float64]

BEYOND_CACHE = 4
"""Times the L2 cache that a kernel moves before its rate is that of the HBM."""


@dataclass(frozen=True, slots=True)
class Achieved:
    """What the fastest measured kernels make of a GPU's ceilings: shares, at most 1."""

    memory: float | None
    """Of the HBM rate, by kernels that move far more than the L2 cache holds; None where no row is
    that large."""
    compute: Mapping[str, float]
    """{operand type: of the peak of the SMs that a product ran on, by its useful FLOPs}"""

    def compute_share(self, dtype: str) -> float:
        """Share of the peak that products of an operand type achieve; the most of any where it has
        no row, 1 without rows."""
        return self.compute.get(dtype, max(self.compute.values(), default=1.0))


def side_by_side(gpus: Sequence[GpuProfile]) -> GpuProfile:
    """GPUs that differ in rates alone as one, whose peaks and KERNEL_RATES are columns [GPUs, 1]:
    times of operators [operators] at such rates are [GPUs, operators]."""

    def column(values: Iterable[float]) -> Array:
        return np.array(list(values), dtype=np.float64)[:, None]

    stacked = {field: column(getattr(gpu, field) for gpu in gpus) for field in KERNEL_RATES}
    peaks = {dtype: column(gpu.peak(dtype) for gpu in gpus) for dtype in gpus[0].peak_compute}
    stated = {"peak_compute": peaks, "peak_sms": None, "peak_clock": None}
    return gpus[0].model_copy(update=stacked | stated)


def achieved_shares(rows: Iterable[Measurement], gpu: GpuProfile) -> Achieved:
    """The largest shares of a GPU's ceilings that measured compute kernels reach."""
    families: dict[Family, list[Measurement]] = {}
    for row in rows:
        key = family_of(row)
        families.setdefault(key, []).append(row)
    memory: list[float] = []
    compute: dict[str, float] = {}
    for (kind, dtype, *_), members in families.items():
        batch = batch_of_rows(members)
        seconds = np.array([row.seconds for row in members])
        moved = needed_bytes(batch)
        far = moved > BEYOND_CACHE * gpu.l2_capacity
        memory += (moved[far] / seconds[far] / gpu.hbm_bandwidth).tolist()
        if is_tensor(kind):
            sms = np.array([row.sms for row in members])
            peak = gpu.peak(multiplied_as(dtype)) * sms / gpu.sms
            share = float((batch.flops / seconds / peak).max())
            compute[dtype] = min(1.0, max(compute.get(dtype, 0.0), share))
    return Achieved(min(1.0, max(memory)) if memory else None, compute)


def log_restatement(
    batch: Batch,
    seconds: Array,
    *,
    before: Array,
    to: Array,
    source: GpuProfile,
    target: GpuProfile,
    achieved: Achieved,
    tiles: TilesProfile,
) -> Array:
    """Log of the time on `target` over that on `source`; [operators].

    The bound of a kernel is what its work takes at the rates that the fastest kernels reach: bytes
    over HBM or, for a product, the busiest SM's tiles if those take longer. So much of its time
    goes with the ceiling that binds, what it takes beyond that is latency and instructions and goes
    with the clock; of a kernel without tensor cores, whose time here is on all SMs, also with
    their number:

        t' = t (f bound' / bound + (1 - f) P / P'),   f = min(1, bound / t)

    Args:
        seconds: [operators] on the source.
        before: [operators] `bound_seconds` there, on the SMs that each had.
        to: [operators] SMs that it has on the target; on more of them it never takes longer.
        achieved: on the source.
    """
    after = bound_seconds(batch, to, target, achieved, tiles)
    pace = source.sm_clock / target.sm_clock
    if not is_tensor(batch.kind):
        pace *= source.sms / target.sms
    at_bound = np.minimum(1.0, before / seconds)
    log_ratio: Array = np.log(at_bound * after / before + (1.0 - at_bound) * pace)
    return log_ratio


def bound_seconds(
    batch: Batch, sms: Array, gpu: GpuProfile, achieved: Achieved, tiles: TilesProfile
) -> Array:
    """Seconds of a batch's work at the rates of the fastest kernels; [operators]."""
    # What a tile costs beyond its own columns is no work of the tensor cores.
    waves, memory = waves_and_bytes(batch, sms, gpu, _of_work_alone(object_key(tiles)))
    share = achieved.compute_share(batch.like.dtype)
    bound = np.maximum(waves / share, memory / (achieved.memory or 1.0))
    return np.maximum(bound, np.finfo(np.float64).tiny)


@lru_cache(maxsize=64)
def _of_work_alone(tiles: Keyed[TilesProfile]) -> TilesProfile:
    return tiles.value.model_copy(update={"overhead": 0})
