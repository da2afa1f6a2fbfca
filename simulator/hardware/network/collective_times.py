"""Say how long collective operations within an NVLink domain take, from measured times.

    times = CollectiveTimes.of(transport.measured, nvlink_bandwidth=gpu.nvlink_bandwidth)
    times.predict("all_reduce", 64 * MIB, ranks=8).seconds

Over size, one curve per operation and number of GPUs: a monotone cubic of log seconds over log
bytes (Fritsch and Carlson), constant below the smallest measured size and at a constant rate
beyond the largest. Over GPUs:

    between measured numbers    log seconds linear in log GPUs, at the same size
    beyond them                 the nearest number's time for as many bytes sent by a GPU, and what
                                the shortest operation gains or saves per GPU, half of it at most

At another NVLink rate an operation takes as long as one that kept the measured links busy for the
same time: bytes count by the ratio of both rates. SI units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.measured_collectives import MeasuredCollectives, OperationCurves
from hardware_profiles.profile_files import known_profiles
from hardware_profiles.same_gpu import shipped_name
from hardware_profiles.schema import NCCL, GpuProfile, load_transport
from hardware_profiles.units import Bytes, BytesPerSecond, Seconds
from simulator.hardware.prediction import (
    EXTRAPOLATED,
    INTERPOLATED,
    MEASURED,
    Prediction,
    one_time,
)

Array = NDArray[np.float64]


IDEAL = "ideal"
"""The transport of links at their rates."""


def sent_share(operation: str, ranks: int) -> float:
    """Bytes that a GPU sends over the operation's size."""
    if operation in ("send", "peer_copy"):
        return 1.0
    share = 1.0 - 1.0 / ranks
    return 2.0 * share if operation == "all_reduce" else share


@dataclass(frozen=True, slots=True)
class SizeCurve:
    """Seconds over bytes at one number of GPUs, through points that never fall."""

    ranks: int
    log_size: Array
    log_seconds: Array
    slopes: Array

    @classmethod
    def through(cls, points: Mapping[float, float], *, ranks: int) -> SizeCurve:
        """The curve through at least two points, {bytes: seconds}, ascending in both."""
        x, y = np.log(np.array(list(points.items()), dtype=float)).T
        step = np.diff(x)
        rise = np.diff(y) / step
        slopes = np.zeros(len(x))
        slopes[0], slopes[-1] = rise[0], rise[-1]
        # The harmonic mean of the neighbouring rises keeps the curve monotone; 0 beside a flat one.
        near, far = 2 * step[1:] + step[:-1], step[1:] + 2 * step[:-1]
        steep = np.flatnonzero((rise[:-1] > 0) & (rise[1:] > 0))
        near, far, before, after = near[steep], far[steep], rise[:-1][steep], rise[1:][steep]
        slopes[1:-1][steep] = (near + far) / (near / before + far / after)
        return cls(ranks, x, y, slopes)

    @property
    def shortest(self) -> Seconds:
        """Time of the smallest size."""
        return float(np.exp(self.log_seconds[0]))

    def log_at(self, size: Bytes) -> float:
        """Log seconds of one size."""
        place = _log_of(size)
        i = int(np.clip(np.searchsorted(self.log_size, place) - 1, 0, len(self.log_size) - 2))
        step = float(self.log_size[i + 1] - self.log_size[i])
        t = min(max((place - float(self.log_size[i])) / step, 0.0), 1.0)
        inside = (
            (1 + 2 * t) * (1 - t) ** 2 * self.log_seconds[i]
            + t * (1 - t) ** 2 * step * self.slopes[i]
            + t**2 * (3 - 2 * t) * self.log_seconds[i + 1]
            + t**2 * (t - 1) * step * self.slopes[i + 1]
        )
        return float(inside) + max(place - float(self.log_size[-1]), 0.0)


def _log_of(size: Bytes) -> float:
    """Of a size in bytes; that of none lies below all others."""
    return float(np.log(size)) if size > 0 else -np.inf


def seconds_at(operation: str, curves: Sequence[SizeCurve], size: Bytes, ranks: int) -> Seconds:
    """Time of an operation at any number of GPUs, on the measured links.

    Args:
        curves: of one operation, by ascending number of GPUs; at least one.
    """
    nearest = curves[0] if ranks <= curves[0].ranks else curves[-1]
    if curves[0].ranks <= ranks <= curves[-1].ranks and nearest.ranks != ranks:
        below, above = next(pair for pair in pairwise(curves) if ranks <= pair[1].ranks)
        share = np.log(ranks / below.ranks) / np.log(above.ranks / below.ranks)
        return float(np.exp((1 - share) * below.log_at(size) + share * above.log_at(size)))
    sent = sent_share(operation, ranks) / sent_share(operation, nearest.ranks)
    seconds = float(np.exp(nearest.log_at(size * sent)))
    spread = curves[-1].ranks - curves[0].ranks
    gained = (curves[-1].shortest - curves[0].shortest) / spread if spread else 0.0
    further = max(0.0, gained) * (ranks - nearest.ranks)
    return max(seconds / 2, seconds + further)


@dataclass(frozen=True, slots=True)
class CollectiveTimes:
    """Times of collective operations within an NVLink domain."""

    measured: MeasuredCollectives
    nvlink_bandwidth: BytesPerSecond
    """Of the GPUs that perform them, one direction."""
    curves: Mapping[tuple[str, str], tuple[OperationCurves, tuple[SizeCurve, ...]]]
    """{(operation, types): as the file has it, curves by number of GPUs}"""

    @classmethod
    def of(
        cls, measured: MeasuredCollectives, *, nvlink_bandwidth: BytesPerSecond
    ) -> CollectiveTimes:
        """The curves that a file states, for GPUs of some NVLink rate."""
        curves: dict[tuple[str, str], tuple[OperationCurves, tuple[SizeCurve, ...]]] = {
            (entry.operation, entry.types): (
                entry,
                tuple(SizeCurve.through(one.points, ranks=one.ranks) for one in entry.curves),
            )
            for entry in measured.operations
        }
        return cls(measured, nvlink_bandwidth, curves)

    def knows(self, operation: str) -> bool:
        """Whether the operation has rows."""
        return (operation, "any") in self.curves

    def predict(self, operation: str, size: Bytes, *, ranks: int, types: str = "any") -> Prediction:
        """Time of one operation.

        Args:
            size: bytes, as NCCL's tests count them.
            types: int8 for sums of integers, which are other kernels where they have own rows.

        Raises ValueError for an operation without rows, and for fewer than two GPUs.
        """
        if ranks < 2:
            raise ValueError(f"{operation}: ranks: {ranks} is not allowed: 2 or more")
        key = (operation, types) if (operation, types) in self.curves else (operation, "any")
        if key not in self.curves:
            known = ", ".join(sorted({name for name, _ in self.curves}))
            raise ValueError(
                f"{operation}: no rows of {self.measured.library} on {self.measured.gpu}; "
                f"known: {known}"
            )
        entry, curves = self.curves[key]
        ratio = self.measured.nvlink_bandwidth / self.nvlink_bandwidth
        counted = size * ratio
        seconds = seconds_at(operation, curves, counted, ranks)
        parts = entry.left_out
        width = next((part for part in parts if counted <= part.up_to), parts[-1]).quantile_80
        near = [curve for curve in curves if curve.ranks == ranks]
        # Other numbers of GPUs are further off than other sizes, and so are other links.
        further = 0.0 if near else entry.other_ranks
        link = 0.0 if ratio == 1.0 else float(np.log(self.measured.other_link))
        factor = float(np.exp(np.sqrt(width**2 + further**2 + link**2)))
        return one_time(
            seconds,
            seconds / factor,
            seconds * factor,
            provenance=_provenance(near, _log_of(size)) if ratio == 1.0 else EXTRAPOLATED,
            family="transfers",
        )

    def shortest(self, operation: str, ranks: int) -> Seconds:
        """What an operation takes however small it is."""
        return self.predict(operation, 0.0, ranks=ranks).seconds.item()


def measured_collectives(transport: str, *, gpu: GpuProfile) -> CollectiveTimes | None:
    """What a transport measured of collective operations, for some GPU; None without rows.

    Args:
        transport: name or path; "nccl" is the shipped one of the GPU, where there is one.

    Raises ValueError for a transport that is not "nccl" and has none.
    """
    named = shipped_name(gpu)
    if transport == NCCL and f"{NCCL}_{named}" not in known_profiles("transports"):
        return None
    found = load_transport(transport, gpu=named)
    if found.measured is None:
        if transport == IDEAL:
            return None
        raise ValueError(
            f"calibration: collectives: transport {transport} has no measured operations; allowed: "
            f"one that has, such as nccl_h100_sxm, or {NCCL}, or {IDEAL} for links at their "
            "achieved rates"
        )
    return CollectiveTimes.of(found.measured, nvlink_bandwidth=gpu.nvlink_bandwidth)


def _provenance(near: Sequence[SizeCurve], log_size: float) -> int:
    """Of a size at a number of GPUs, by the curve of that number where it has one."""
    for curve in near:
        if np.isclose(curve.log_size, log_size, rtol=0.0, atol=1e-9).any():
            return MEASURED
        if curve.log_size[0] <= log_size <= curve.log_size[-1]:
            return INTERPOLATED
    return EXTRAPOLATED
