"""The model that predicts a kernel family, falling back from family to kind to class.

The kernel set with most rows gives a family its form: a Gaussian process on what its times hold
over the time at peak (gaussian_process.py). A family with too few rows for lengths of its own
starts from the kind's largest family, and the preferred kernel set adds its own difference to the
one with most rows: each is a process on what the one before it leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.calibration_parts import FitProfile, TilesProfile
from hardware_profiles.schema import GpuProfile
from simulator.hardware.kernels.gaussian_process import (
    DEFAULT_NOISE,
    Process,
    feature_names,
    features_of,
)
from simulator.hardware.kernels.measured_rows import (
    Rows,
    Shape,
    extents_of,
    fingerprints,
    shapes_of,
)
from simulator.hardware.kernels.reach import (
    BETWEEN,
    EDGE,
    QUANTILE,
    REACHES,
    Known,
    Scales,
    held_out_scales,
)
from simulator.hardware.kernels.roofline import Batch, Ideal, is_tensor, waves_and_bytes
from simulator.hardware.kernels.work_floor import MONOTONE_KINDS, WorkFloor
from simulator.hardware.prediction import EXTRAPOLATED, INTERPOLATED, MEASURED

Array = NDArray[np.float64]
Index = NDArray[np.intp]


def process_of(rows: Rows, log_ratios: Array, fit: FitProfile | None) -> Process:
    """The process of rows of one family, with the lengths and noise that calibrate found, if
    any."""
    features = features_of(rows.batch, rows.sms, rows.ideal)
    if fit is None or not fit.lengths:
        return Process(features, log_ratios)
    names = feature_names(rows.batch)
    lengths = [fit.lengths[name] for name in names]
    slopes = np.where(np.array(names) == "peak", fit.noise_slope, 0.0) if fit.noise_slope else None
    return Process(features, log_ratios, lengths, fit.noise_share or DEFAULT_NOISE, slopes)


@dataclass(frozen=True, slots=True)
class Told:
    """What a family's model says of some operators; arrays [operators]."""

    log_seconds: Array
    width: Array
    """Half of their 80% interval, in logarithms."""
    rival: Array
    """Log seconds of the set with most rows where that has the shape, else the same again."""
    provenance: NDArray[np.intp]
    spread: Array
    """Of a row with these sizes and SMs; nan without one."""
    slowed: Array
    """Share of the time beside an all-to-all that this slows."""


class FamilyModel:
    """Log seconds of one family under one condition."""

    def __init__(
        self,
        kind: str,
        sets: Mapping[str, Rows],
        *,
        base: str,
        relative: FamilyModel | None,
        floor: float,
        gpu: GpuProfile,
        tiles: TilesProfile,
        fit: FitProfile | None,
    ) -> None:
        """Store the rows; what they teach is worked out when it is first needed.

        Args:
            kind: kernel family.
            sets: {kernel set: its rows}, most preferred first.
            base: the set with most rows, which gives the family its form.
            relative: the family of the same kind with most rows, where that is another one.
            floor: seconds that the rows' ideal times hold for launching.
            gpu: that the rows were measured on.
            tiles: that the rows' ideal times were worked out with.
            fit: what calibrate found out about the base's rows, as far as it was run.
        """
        self.kind = kind
        self.floor = floor
        self.tiles = tiles
        self._gpu = gpu
        self._base = sets[base]
        self._preferred = sets[next(iter(sets))]
        self._fit = fit
        # Rows enough for lengths of their own need no other family.
        self._relative = None if fit is not None and fit.lengths else relative
        self.log_ratio = float(np.median(self._base.log_seconds - self._base.ideal.log_seconds))
        # A benchmark's rows without repeats, and of attention, which lower bounds go by, stay on
        # its smooth process; those that were repeated, of another set, of kernels that only move
        # bytes, and of families with few rows are met one by one.
        smooth = fit is not None and bool(fit.lengths) and is_tensor(kind)
        self._exact = self._preferred is not self._base or not smooth
        self.rows = sum(len(rows) for rows in sets.values())
        every_sms = np.concatenate([rows.sms for rows in sets.values()])
        self._sms_range = (float(every_sms.min()), float(every_sms.max()))
        self._sets = sets

    def predict(self, batch: Batch, sms: Array, ideal: Ideal, achieved: ClassModel | None) -> Told:
        """Predict, with width, rival and provenance.

        Args:
            batch: operators of this family, or of a family that borrows it.
            sms: [operators] that they have.
            ideal: at those.
            achieved: the family's class, for widths where its own rows are too few; without it
                only seconds and provenance are told.
        """
        provenance, exact, reach = self._provenance(batch, sms)
        widths = achieved is not None
        base, deviation = self._on_base(batch, sms, ideal, widths=widths)
        width = deviation
        if achieved is not None:
            width = deviation * self._scale(0, reach, achieved)
        log_seconds = base
        if self._own is not None:
            features = self._features(self._preferred, batch, sms)
            more, deviation = self._own.predict(features, widths=widths)
            log_seconds = base + more
            if achieved is not None:
                width = np.maximum(width, deviation * self._scale(1, reach, achieved))
        known = exact >= 0
        spread = np.where(known, self._preferred.spread[exact], np.nan)
        repeated = ~np.isnan(spread) & (self.kind not in MONOTONE_KINDS)
        met = known & (self._exact | repeated)
        log_seconds = np.where(met, self._preferred.log_seconds[exact], log_seconds)
        rival = log_seconds
        if widths and is_tensor(self.kind):
            rival = log_seconds.copy()
            for shape, numbers in shapes_of(batch):
                if shape in self._base_shapes:
                    rival[numbers] = base[numbers]
        return Told(
            log_seconds,
            width,
            rival,
            provenance,
            spread=spread,
            slowed=np.where(known, self._preferred.slowed[exact], 1.0),
        )

    def repeated(self, batch: Batch, sms: Array) -> NDArray[np.bool_]:
        """[operators] whether each has a row of the preferred set that states its spread."""
        _, exact, _ = self._provenance(batch, sms)
        return (exact >= 0) & ~np.isnan(self._preferred.spread[exact])

    def covers(self, batch: Batch) -> NDArray[np.bool_]:
        """[operators] whether each lies between rows of its shape."""
        between = np.zeros(len(batch), dtype=np.bool_)
        extents = extents_of(batch)
        for shape, numbers in shapes_of(batch):
            low, high = self._ranges.get(shape, (np.inf, -np.inf))
            between[numbers] = (low <= extents[numbers]) & (extents[numbers] <= high)
        return between

    @cached_property
    def _base_shapes(self) -> set[Shape]:
        return {shape for shape, _ in shapes_of(self._base.batch)}

    @cached_property
    def _ranges(self) -> Mapping[Shape, tuple[float, float]]:
        """{shape: least and largest extent of its rows, of all kernel sets}"""
        ranges: dict[Shape, tuple[float, float]] = {}
        for rows in self._sets.values():
            extents = extents_of(rows.batch)
            for shape, numbers in shapes_of(rows.batch):
                low, high = ranges.get(shape, (np.inf, -np.inf))
                ranges[shape] = (
                    min(low, float(extents[numbers].min())),
                    max(high, float(extents[numbers].max())),
                )
        return ranges

    @cached_property
    def _marks(self) -> tuple[NDArray[np.int64], Index, NDArray[np.int64]]:
        """Fingerprints of the preferred rows with their SMs, ascending, the rows that have them,
        and fingerprints of their sizes alone."""
        rows = self._preferred
        known = fingerprints(np.column_stack([rows.batch.sizes, rows.sms.astype(np.int64)]))
        order = np.argsort(known)
        return known[order], order, fingerprints(rows.batch.sizes)

    @property
    def base_rows(self) -> Rows:
        """The rows of the kernel set that has most."""
        return self._base

    @cached_property
    def scales(self) -> tuple[Scales, ...]:
        """80% quantiles of the log error of held-out rows over the deviation of the process.

        Of the set with most rows, and of what the preferred set adds to it. Those of the
        calibration where it states them.
        """
        stated = None if self._fit is None else self._fit.widths
        found = [stated or held_out_scales(self._process, self._base)]
        if self._own is not None:
            found.append(held_out_scales(self._own, self._preferred))
        return tuple(found)

    @cached_property
    def _process(self) -> Process:
        rows = self._base
        left = rows.log_seconds - rows.ideal.log_seconds
        return process_of(rows, left - self._expected(rows.batch, rows.sms, rows.ideal), self._fit)

    @cached_property
    def _own(self) -> Process | None:
        """What the preferred set's times hold over those of the set with most rows."""
        if self._preferred is self._base:
            return None
        rows = self._preferred
        expected, _ = self._on_base(rows.batch, rows.sms, rows.ideal, widths=False)
        return process_of(rows, rows.log_seconds - expected, None)

    def _expected(self, batch: Batch, sms: Array, ideal: Ideal) -> Array:
        """[operators] log of time over that at peak by the kind's largest family."""
        if self._relative is None:
            return np.zeros(len(batch))
        on_base, _ = self._relative._on_base(batch, sms, ideal, widths=False)
        return on_base - ideal.log_seconds

    def _on_base(
        self, batch: Batch, sms: Array, ideal: Ideal, *, widths: bool
    ) -> tuple[Array, Array]:
        """Log seconds by the set with most rows, and the deviation of its process."""
        log_seconds, deviation = self._by_process(batch, sms, ideal, widths=widths)
        if self._work_floor is not None:
            log_seconds = self._work_floor.raise_to(log_seconds, batch, sms)
        return log_seconds, deviation

    @cached_property
    def _work_floor(self) -> WorkFloor | None:
        """Lower bounds from the rows of the set with most, for kinds that have them."""
        if self.kind not in MONOTONE_KINDS:
            return None
        rows = self._base
        known, _ = self._by_process(rows.batch, rows.sms, rows.ideal, widths=False)
        return WorkFloor(rows.batch, rows.sms, known)

    def _by_process(
        self, batch: Batch, sms: Array, ideal: Ideal, *, widths: bool
    ) -> tuple[Array, Array]:
        features = self._features(self._base, batch, sms)
        ratio, deviation = self._process.predict(features, widths=widths)
        return ideal.log_seconds + self._expected(batch, sms, ideal) + ratio, deviation

    def _features(self, rows: Rows, batch: Batch, sms: Array) -> Array:
        """Of operators, on no more and no fewer SMs than rows had: beyond those the roofline alone
        says what SMs are worth."""
        near = np.clip(sms, rows.sms.min(), rows.sms.max())
        parts = waves_and_bytes(batch, near, self._gpu, self.tiles)
        return features_of(batch, near, Ideal(*parts, self.floor))

    @cached_property
    def _known(self) -> tuple[Known, ...]:
        """Where the rows of each kernel set lie."""
        return tuple(Known(rows.batch) for rows in self._sets.values())

    def _scale(self, number: int, reach: Index, achieved: ClassModel) -> Array:
        """[operators] of `scales`, by place in REACHES; of the class where there is none."""
        known = {**achieved.scales, **self.scales[number]}
        return np.array([known[name] for name in REACHES])[reach]

    def _provenance(self, batch: Batch, sms: Array) -> tuple[NDArray[np.intp], Index, Index]:
        """Provenance, the row of the preferred set with these sizes and SMs, -1 without one, and
        how far from rows each operator lies; on SMs beyond those of rows, beside them."""
        rows = self._preferred
        asked = fingerprints(np.column_stack([batch.sizes, sms.astype(np.int64)]))
        known, order, sizes = self._marks
        place = np.minimum(np.searchsorted(known, asked), len(known) - 1)
        exact = np.where(known[place] == asked, order[place], -1)
        same_sizes = np.isin(fingerprints(batch.sizes), sizes)
        low, high = self._sms_range
        reach = np.minimum.reduce([known.reach(batch) for known in self._known])
        between = ((reach == BETWEEN) | same_sizes) & (low <= sms) & (sms <= high)
        inside = (exact >= 0) | between
        reach = np.where(inside, BETWEEN, np.maximum(reach, EDGE))
        provenance = np.where(inside, INTERPOLATED, EXTRAPOLATED)
        measured = (exact >= 0) & rows.direct[exact]
        return np.where(measured, MEASURED, provenance).astype(np.intp), exact, reach


class ClassModel:
    """What a class of kernels, tensor-core or memory-bound, achieves over all its families."""

    def __init__(self, members: Sequence[FamilyModel]) -> None:
        """Fit to the families of the class; there must be at least one."""
        ratios = np.array([member.log_ratio for member in members])
        self.log_ratio = float(np.median(ratios))
        """Median log of seconds over ideal seconds."""
        self.modelled_width = float(np.quantile(np.abs(ratios - self.log_ratio), QUANTILE))
        self._members = members
        spreads = np.concatenate([member._preferred.spread for member in members])
        known = spreads[~np.isnan(spreads)]
        # Without a single repeat, what rows between others scatter by has to stand in.
        stand_in = self.scales[REACHES[BETWEEN]] * DEFAULT_NOISE
        self.spread = float(np.median(known)) if len(known) else stand_in
        """Median spread of repeats."""

    @cached_property
    def scales(self) -> Scales:
        """Median over the families of what `FamilyModel.scales` says of them."""
        stated = [scales for member in self._members for scales in member.scales]
        known = {name: [each[name] for each in stated if name in each] for name in REACHES}
        return {
            name: float(np.median(found)) if found else self.modelled_width
            for name, found in known.items()
        }
