"""Times of transfers between the GPUs of one host, interpolated over message size.

    times = TransferTimes(gpu=load_gpu("h200_sxm"), fits=calibration.fits).fit(rows)
    times.predict("all_gather", np.array([64 * MIB]), ranks=2)

A transfer takes as long as the host needs to launch it, or its start and its bytes on the wire at
the share of NVLink that it achieves, whichever is longer:

    physics = max(launch, start + wire / (share x NVLink))

Behind a start the achieved rate, wire / seconds, saturates with size. What the rows say beyond that
is a monotone curve of log seconds over the log of the physics, as for kernels: no transfer is
faster than a smaller one. One GPU sends on the wire, of `bytes` and n ranks:

    peer_copy, send                          bytes
    all_to_all, all_gather, reduce_scatter   bytes (n - 1) / n
    all_reduce                               2 bytes (n - 1) / n

`bytes` are what a rank holds of an all-to-all and what the whole group holds of the others. The
last three kinds are not measured: rings keep both directions of the links busy, as an all-to-all
does, so they take its time for the same bytes on the wire.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.schema import FitProfile, GpuProfile, LinkProfile
from hardware_profiles.tables import Measurement
from hardware_profiles.units import BytesPerSecond
from simulator.hardware.kernels.curves import Curve, ascending_curve
from simulator.hardware.prediction import (
    EXTRAPOLATED,
    INTERPOLATED,
    MEASURED,
    MODELLED,
    Prediction,
)

Array = NDArray[np.float64]

LINK_SIZES = ("bytes", "ranks")
LINK_KINDS = frozenset({"peer_copy", "send", "all_to_all"})
"""Kinds that tables hold."""
MODELLED_ON: Mapping[str, tuple[str, ...]] = {
    "all_gather": ("all_to_all", "send"),
    "reduce_scatter": ("all_to_all", "send"),
    "all_reduce": ("all_to_all", "send"),
}
"""{kind without rows: measured kinds whose times stand in, the first that there is}"""

OUTLIER = 0.1
"""Log error from which on a row counts by its size and no longer by its square: small transfers
are launched one by one, and one that waits for the host takes half as long again."""
MOST_ROWS = 200
"""Rows that the physics is fitted to; more are thinned out evenly by size."""
GRID_POINTS, GRID_REFINEMENTS, GRID_SHRINKS = 9, 14, 0.5
"""Points a parameter, rounds, and how much narrower each is: the last step is below 0.1 %."""


@dataclass(frozen=True, slots=True)
class LinkCurve:
    """What the rows of one kind and number of ranks teach."""

    link: LinkProfile
    curve: Curve
    """Log seconds over log seconds of the physics."""
    bandwidth: BytesPerSecond
    """Of NVLink, one direction of one GPU."""

    def at(self, wire: Array) -> Array:
        """Log seconds of transfers by their bytes on the wire."""
        return self.curve.at(np.log(physics(wire, self.link, self.bandwidth)))


def wire_bytes(kind: str, size: Array, ranks: Array | int) -> Array:
    """Bytes that one GPU sends; ValueError for a kind that is unknown."""
    if kind in ("peer_copy", "send"):
        return np.asarray(size, dtype=np.float64)
    if kind not in LINK_KINDS and kind not in MODELLED_ON:
        known = ", ".join(sorted({*LINK_KINDS, *MODELLED_ON}))
        raise ValueError(f"transfer {kind!r} is unknown; known: {known}")
    others = np.asarray(size) * (1.0 - 1.0 / np.asarray(ranks))
    return np.asarray(2.0 * others if kind == "all_reduce" else others)


def physics(wire: Array, link: LinkProfile, bandwidth: BytesPerSecond) -> Array:
    """Seconds by launch, start and bytes on the wire."""
    sent: Array = np.maximum(link.launch_s, link.start_s + wire / (link.share * bandwidth))
    return sent


def fit_link(wire: Array, seconds: Array, bandwidth: BytesPerSecond) -> LinkProfile:
    """Launch, start and share of least log error; at least one row.

    Args:
        wire: [rows] bytes.
        seconds: [rows]
    """
    if len(wire) > MOST_ROWS:
        chosen = np.argsort(wire, kind="stable")[
            np.linspace(0, len(wire) - 1, MOST_ROWS).astype(np.intp)
        ]
        wire, seconds = wire[chosen], seconds[chosen]
    fastest = min(1.0, float((wire / seconds).max()) / bandwidth)
    least = float(np.median(np.sort(seconds)[: max(1, len(seconds) // 3)]))
    # Logarithms of launch, start and share. A grid around the best point so far, finer every time.
    best, reach = np.log([least, least / 2, fastest]), np.log([4.0, 8.0, 1.5])
    steps = np.linspace(-1.0, 1.0, GRID_POINTS)
    for _ in range(GRID_REFINEMENTS):
        axes = [centre + half * steps for centre, half in zip(best, reach, strict=True)]
        axes[2] = np.minimum(axes[2], 0.0)
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        launch, start, share = np.exp(points).T[:, :, None]
        modelled = np.maximum(launch, start + wire / (share * bandwidth))
        apart = np.log(seconds / modelled) / OUTLIER
        best = points[np.argmin((np.sqrt(1.0 + apart**2) - 1.0).sum(axis=1))]
        reach = reach * GRID_SHRINKS
    launch_s, start_s, achieved = (float(f"{value:.4g}") for value in np.exp(best))
    return LinkProfile(launch_s=launch_s, start_s=start_s, share=min(achieved, 1.0))


def link_curve(
    wire: Array, seconds: Array, bandwidth: BytesPerSecond, link: LinkProfile | None = None
) -> LinkCurve:
    """Physics, fitted unless it is given, and the monotone curve through the rows."""
    link = link or fit_link(wire, seconds, bandwidth)
    expected = np.log(physics(wire, link, bandwidth))
    return LinkCurve(link, ascending_curve(expected, np.log(seconds)), bandwidth)


def link_tables(rows: Iterable[Measurement]) -> dict[tuple[str, str, int], list[Measurement]]:
    """{(kind, kernel set, ranks): rows of transfers, by bytes}"""
    tables: dict[tuple[str, str, int], list[Measurement]] = {}
    for row in rows:
        if row.kind in LINK_KINDS:
            check_link(row)
            key = (row.kind, row.kernel_set, dict(row.sizes)["ranks"])
            tables.setdefault(key, []).append(row)
    return {key: sorted(table, key=bytes_of) for key, table in sorted(tables.items())}


def check_link(row: Measurement) -> None:
    """Raise ValueError for other sizes than bytes and ranks, or ones that no transfer has."""
    sizes = dict(row.sizes)
    if set(sizes) != set(LINK_SIZES) or sizes["bytes"] < 1 or sizes["ranks"] < 2:
        raise ValueError(
            f"measurement of {row.source}: sizes: {row.kind} needs bytes (at least 1) and ranks "
            f"(at least 2); found {', '.join(f'{name}={size}' for name, size in row.sizes)}"
        )


def bytes_of(row: Measurement) -> int:
    """Size of a measured transfer."""
    return dict(row.sizes)["bytes"]


def wire_of(rows: Sequence[Measurement]) -> Array:
    """[rows] bytes on the wire of one kind."""
    sizes = np.array([bytes_of(row) for row in rows], dtype=np.float64)
    return wire_bytes(rows[0].kind, sizes, np.array([dict(row.sizes)["ranks"] for row in rows]))


class TransferTimes:
    """Times of transfers between GPUs of one host, by size."""

    def __init__(self, *, gpu: GpuProfile, fits: Sequence[FitProfile]) -> None:
        """Store the inputs.

        Args:
            gpu: that the rows were measured on.
            fits: of the calibration; those of transfers say how wide an interval is.
        """
        self.gpu = gpu
        self.fits = fits

    def fit(self, measurements: Iterable[Measurement]) -> Self:
        """Learn from the rows of transfers that `fits` judged; sets `curves_` {(kind, ranks):
        LinkCurve}."""
        tables = link_tables(measurements)
        self._fit_of: dict[tuple[str, int], FitProfile] = {}
        self._sizes: dict[tuple[str, int], NDArray[np.int64]] = {}
        self.curves_: dict[tuple[str, int], LinkCurve] = {}
        for fit in self.fits:
            if fit.link is None:
                continue
            ranks = fit.coverage["ranks"][0]
            rows = tables.get((fit.kind, fit.kernel_set, ranks))
            # The first of several kernel sets is the preferred one.
            if rows is None or (fit.kind, ranks) in self.curves_:
                continue
            seconds = np.array([row.seconds for row in rows])
            key = (fit.kind, ranks)
            self._fit_of[key] = fit
            self._sizes[key] = np.array([bytes_of(row) for row in rows], dtype=np.int64)
            self.curves_[key] = link_curve(
                wire_of(rows), seconds, self.gpu.nvlink_bandwidth, fit.link
            )
        return self

    def predict(self, kind: str, size: NDArray[np.int64], *, ranks: int) -> Prediction:
        """Predict transfers of one kind.

        Args:
            size: [transfers] bytes, as the module's table has them.

        Raises ValueError for an unknown kind, or one that no row answers for.
        """
        wire = wire_bytes(kind, np.asarray(size, dtype=np.float64), ranks)
        answering = (kind,) if kind in LINK_KINDS else MODELLED_ON[kind]
        known = [key for name in answering for key in self._nearest(name, ranks)]
        if not known:
            raise ValueError(f"transfer {kind}: no row of {' or '.join(answering)} is measured")
        key = known[0]
        log_seconds = self.curves_[key].at(wire)
        fit = self._fit_of[key]
        sizes = self._sizes[key]
        between = (sizes.min() <= size) & (size <= sizes.max()) & (key[1] == ranks)
        provenance = np.where(between, INTERPOLATED, EXTRAPOLATED)
        exact = between & np.isin(size, sizes)
        provenance = np.where(exact, MEASURED, provenance).astype(np.intp)
        near = fit.interpolated.quantile_80 if fit.interpolated else 0.0
        far = max(near, fit.regions.quantile_80 if fit.regions else 0.0)
        width = np.where(provenance == EXTRAPOLATED, far, near)
        apart = np.zeros(len(wire))
        if kind not in LINK_KINDS:
            provenance = np.full_like(provenance, MODELLED)
            width = np.full(len(wire), far)
            # How far the other measured kind lies says how much the kind of a transfer matters.
            for other in known[1:]:
                apart = self.curves_[other].at(wire) - log_seconds
        least = wire / self.gpu.nvlink_bandwidth
        seconds = np.maximum(np.exp(log_seconds), least)
        lower = seconds * np.exp(np.minimum(-width, apart))
        return Prediction(
            seconds=seconds,
            low=np.maximum(lower, least),
            high=seconds * np.exp(np.maximum(width, apart)),
            provenance=provenance,
            family=(key[0],) * len(wire),
            other_gpu=np.zeros(len(wire)),
        )

    def _nearest(self, kind: str, ranks: int) -> list[tuple[str, int]]:
        """The measured number of ranks that is nearest, if the kind has rows."""
        keys = [key for key in self.curves_ if key[0] == kind]
        return sorted(keys, key=lambda key: abs(np.log2(key[1] / ranks)))[:1]
