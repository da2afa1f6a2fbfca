"""The model that predicts a kernel family, falling back from family to kind to class.

The kernel set with most rows gives a family its form, one of three, whichever predicted left-out
rows better when it was calibrated:

    curves      one a shape (kernel_curves.py); for tables that scan one size at a few shapes
    lattice     log seconds over waves and bytes (wave_lattice.py), monotone in both; for masked
                grouped products, whose groups change with their load
    surface     efficiency over all sizes at once (kernel_surface.py); for tables that fill a grid

The preferred set adds its own difference to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.schema import FitProfile, TilesProfile
from simulator.hardware.kernels.curves import (
    QUANTILE,
    SAME_PLACE,
    Curve,
    Rows,
    Shape,
    curve_residuals,
    curves_of,
    extents_of,
    fingerprints,
    nearest_mean,
    place_of,
    shape_sizes,
    shapes_of,
)
from simulator.hardware.kernels.roofline import Batch, Ideal, is_tensor
from simulator.hardware.kernels.surface import KernelSurface
from simulator.hardware.kernels.wave_lattice import WaveLattice
from simulator.hardware.kernels.work_floor import MONOTONE_KINDS, WorkFloor
from simulator.hardware.prediction import EXTRAPOLATED, INTERPOLATED, MEASURED

Array = NDArray[np.float64]

SAME_FACTOR = 1e-9
"""Most that log ratios of one factor scatter by rounding."""
ENOUGH_RESIDUALS = 5
"""Fewer held-out rows than this say nothing about a quantile; the class answers instead."""


def fit_form(
    rows: Rows, estimator: Literal["lattice", "surface"], stiffness: tuple[float, float]
) -> KernelSurface | WaveLattice:
    """A model of all sizes at once."""
    if estimator == "lattice":
        return WaveLattice(
            rows.batch, ideal=rows.ideal, log_seconds=rows.log_seconds, stiffness=stiffness
        )
    return KernelSurface(
        rows.batch,
        rows.sms,
        ideal=rows.ideal,
        log_seconds=rows.log_seconds,
        stiffness=stiffness,
    )


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
        tiles: TilesProfile,
        fit: FitProfile | None,
        twin: FamilyModel | None = None,
    ) -> None:
        """Store the rows; what they teach is worked out when it is first needed.

        Args:
            kind: kernel family.
            sets: {kernel set: its rows}, most preferred first.
            base: the set with most rows, which gives the family its shape.
            relative: the family of the same kind with most rows, where that is another one; its
                curves help where this family's own shapes are far.
            floor: seconds that the rows' ideal times hold for launching.
            tiles: that the rows' ideal times were worked out with.
            fit: what calibrate found out about the base's rows, as far as it was run.
            twin: the same rows under the other condition; where that is one factor for all of
                them, its surface is used instead of fitting another.
        """
        self.kind = kind
        self.floor = floor
        self.tiles = tiles
        names = list(sets)
        self._base = base
        self._preferred_name = names[0]
        self._sets = sets
        self._fit = fit
        self.preferred = sets[names[0]]
        self._relative = relative
        self._twin = twin
        most = sets[base]
        self.log_ratio = float(np.median(most.log_seconds - most.log_ideal))
        # A benchmark's own rows stay on its monotone curve or surface; another set, and kernels
        # with one curve that only move bytes, are met row by row.
        self.estimator = fit.estimator if fit is not None else "curves"
        smooth = is_tensor(kind) or self.estimator != "curves"
        self.corrected = names[0] != base or not smooth
        self.places = _coordinates(self.preferred.batch, self.preferred.sms)
        self.rows = sum(len(rows) for rows in sets.values())
        self._base_shapes = {shape for shape, _ in shapes_of(most.batch)}
        every_sms = np.concatenate([rows.sms for rows in sets.values()])
        self._sms_range = (float(every_sms.min()), float(every_sms.max()))
        self._ranges: dict[Shape, tuple[float, float]] = {}
        for rows in sets.values():
            extents = extents_of(rows.batch)
            for shape, numbers in shapes_of(rows.batch):
                low, high = self._ranges.get(shape, (np.inf, -np.inf))
                self._ranges[shape] = (
                    min(low, float(extents[numbers].min())),
                    max(high, float(extents[numbers].max())),
                )

    def predict(
        self, batch: Batch, sms: Array, ideal: Ideal
    ) -> tuple[Array, Array, NDArray[np.intp], Array]:
        """Predict; all arrays [operators].

        Returns log seconds; what the set with most rows says where it has the shape, else the same
        again; provenance; and the spread of exact rows, nan where there is none.

        Args:
            batch: operators of this family, or of a family that borrows it.
            sms: for the distance to rows and for provenance.
            ideal: at those SM counts.
        """
        log_seconds = base = self._on_base(batch, sms, ideal)
        if self.corrected:
            places = _coordinates(batch, sms)
            log_seconds = base + _inverse_square(places, self.places, self.differences)
        rival = log_seconds.copy()
        for shape, numbers in shapes_of(batch):
            if is_tensor(self.kind) and shape in self._base_shapes:
                rival[numbers] = base[numbers]
        provenance, spread = self._provenance(batch, sms, self.covers(batch))
        return log_seconds, rival, provenance, spread

    def covers(self, batch: Batch) -> NDArray[np.bool_]:
        """[operators] whether each lies between rows of its shape."""
        between = np.zeros(len(batch), dtype=np.bool_)
        extents = extents_of(batch)
        for shape, numbers in shapes_of(batch):
            low, high = self._ranges.get(shape, (np.inf, -np.inf))
            between[numbers] = (low <= extents[numbers]) & (extents[numbers] <= high)
        return between

    @cached_property
    def curves(self) -> dict[Shape, Curve]:
        """One a shape, of the set with most rows."""
        return curves_of(self._sets[self._base])

    @cached_property
    def _log_factor(self) -> float | None:
        """Log of these rows' times over the twin's; None where it is not one factor."""
        if self._twin is None:
            return None
        mine, others = self._sets[self._base], self._twin._sets[self._base]
        apart = mine.log_seconds - others.log_seconds
        one = len(apart) > 0 and float(np.ptp(apart)) < SAME_FACTOR
        same = np.array_equal(mine.log_ideal, others.log_ideal)
        same &= np.array_equal(mine.sms, others.sms) or not is_tensor(self.kind)
        return float(apart[0]) if one and same else None

    @cached_property
    def fitted(self) -> KernelSurface | WaveLattice:
        """Surface or lattice of the set with most rows, where the calibration says so."""
        rows = self._sets[self._base]
        assert self._fit is not None
        assert self._fit.stiffness is not None
        assert self._fit.estimator in ("lattice", "surface")
        return fit_form(rows, self._fit.estimator, self._fit.stiffness)

    @cached_property
    def differences(self) -> Array:
        """[rows of the preferred set] log seconds minus those of the set with most rows."""
        rows = self.preferred
        differences: Array = rows.log_seconds - self._on_base(rows.batch, rows.sms, rows.ideal)
        return differences

    @cached_property
    def residuals(self) -> dict[str, tuple[Array, Array]]:
        """{kernel set: held-out log errors of rows, and of whole shapes}: of curves, and of what
        the preferred set adds. Those of other forms are in the calibration.
        """
        found: dict[str, tuple[Array, Array]] = {}
        if self.estimator == "curves":
            found[self._base] = curve_residuals(self._sets[self._base], self.curves)
        if self._preferred_name != self._base:
            found[self._preferred_name] = self._difference_residuals()
        return found

    def width(self, *, row_left_out: bool) -> float | None:
        """80 % quantile of the absolute log error of held-out rows; None where there are too few.

        That of the calibration where it states one for the set with most rows; what the preferred
        set adds to another form than curves may widen it.

        Args:
            row_left_out: errors between rows of the same shape, else errors of whole shapes.
        """
        stated: float | None = None
        alone = self._preferred_name == self._base
        if self._fit is not None and (alone or self.estimator != "curves"):
            error = self._fit.interpolated if row_left_out else self._fit.regions
            if error is not None:
                stated = error.quantile_80 if error.rows >= ENOUGH_RESIDUALS else None
                if alone:
                    return stated
        errors = np.concatenate(
            [
                np.empty(0),
                *(row if row_left_out else shape for row, shape in self.residuals.values()),
            ]
        )
        if len(errors) < ENOUGH_RESIDUALS:
            return stated
        return max(stated or 0.0, float(np.quantile(np.abs(errors), QUANTILE)))

    def _provenance(
        self, batch: Batch, sms: Array, between: NDArray[np.bool_]
    ) -> tuple[NDArray[np.intp], Array]:
        """Provenance, and the spread of the exact rows.

        Args:
            between: whether an operator lies between rows of its shape.
        """
        same_sizes = np.zeros(len(batch), dtype=np.bool_)
        measured = np.zeros(len(batch), dtype=np.bool_)
        exact = np.zeros(len(batch), dtype=np.bool_)
        spread = np.full(len(batch), np.nan)
        rows = self.preferred
        keys, known = fingerprints(batch.sizes), fingerprints(rows.batch.sizes)
        candidates = np.flatnonzero(np.isin(keys, known))
        for number, key in enumerate(known.tolist()):
            same = candidates[keys[candidates] == key]
            if not len(same):
                continue
            same_sizes[same] = True
            same = same[sms[same] == rows.sms[number]]
            exact[same] = True
            measured[same] |= rows.direct[number]
            spread[same] = rows.spread[number]
        low, high = self._sms_range
        between = (between | same_sizes) & (low <= sms) & (sms <= high)
        provenance = np.where(exact | between, INTERPOLATED, EXTRAPOLATED)
        return np.where(measured, MEASURED, provenance).astype(np.intp), spread

    @property
    def base_rows(self) -> Rows:
        """Of the kernel set with most."""
        return self._sets[self._base]

    @cached_property
    def _work_floor(self) -> WorkFloor | None:
        """Lower bounds from the rows of the set with most, for kinds that have them."""
        if self.kind not in MONOTONE_KINDS:
            return None
        rows = self.base_rows
        return WorkFloor(rows.batch, rows.sms, self._between(rows.batch, rows.sms, rows.ideal))

    def _on_base(self, batch: Batch, sms: Array, ideal: Ideal) -> Array:
        log_seconds = self._between(batch, sms, ideal)
        if self._work_floor is None:
            return log_seconds
        return self._work_floor.raise_to(log_seconds, batch, sms)

    def _between(self, batch: Batch, sms: Array, ideal: Ideal) -> Array:
        """Log seconds by curves, surface or lattice alone."""
        if self.estimator == "curves":
            return self._on_curves(batch, ideal.log_seconds)
        if self._twin is not None and self._log_factor is not None:
            return self._twin.fitted.predict(batch, sms, ideal) + self._log_factor
        return self.fitted.predict(batch, sms, ideal)

    def _on_curves(self, batch: Batch, log_ideal: Array) -> Array:
        """The operator's own curve between its rows, elsewhere the mean of the nearest curves."""
        if not is_tensor(self.kind):
            return self.curves[()].at(log_ideal)
        curves = list(self.curves.values())
        relatives = list(self._relative.curves.values()) if self._relative else []
        log_seconds = np.empty(len(batch))
        for shape, numbers in shapes_of(batch):
            own = self.curves.get(shape)
            x = log_ideal[numbers]
            if own is None:
                log_seconds[numbers] = nearest_mean(curves, relatives, place_of(shape), x)
                continue
            log_seconds[numbers] = own.at(x)
            beyond = np.flatnonzero(own.octaves_beyond(x) > 0)
            if len(beyond):
                far = nearest_mean(curves, relatives, place_of(shape), x[beyond])
                log_seconds[numbers[beyond]] = far
        return log_seconds

    def _difference_residuals(self) -> tuple[Array, Array]:
        """Errors of the preferred set's rows: the nearest others left in, whole shapes left out."""
        shapes = [tuple(shape) for shape in shape_sizes(self.preferred.batch).tolist()]
        rows: list[float] = []
        whole: list[float] = []
        for number, shape in enumerate(shapes):
            place = self.places[number : number + 1]
            for keep, errors, needed in (
                ([j for j in range(len(shapes)) if j != number], rows, True),
                ([j for j, other in enumerate(shapes) if other != shape], whole, False),
            ):
                has_neighbours = any(shapes[j] == shape for j in keep)
                if keep and (has_neighbours or not needed):
                    guess = _inverse_square(place, self.places[keep], self.differences[keep])
                    errors.append(float(self.differences[number] - guess[0]))
        return np.array(rows), np.array(whole)


class ClassModel:
    """What a class of kernels, tensor-core or memory-bound, achieves over all its families."""

    def __init__(self, members: Sequence[FamilyModel]) -> None:
        """Fit to the families of the class; there must be at least one."""
        ratios = np.array([member.log_ratio for member in members])
        self.log_ratio = float(np.median(ratios))
        """Median log of seconds over ideal seconds."""
        self.modelled_width = float(np.quantile(np.abs(ratios - self.log_ratio), QUANTILE))
        self._members = members
        spreads = np.concatenate([member.preferred.spread for member in members])
        known = spreads[~np.isnan(spreads)]
        # Without a single repeat, what rows between others scatter by has to stand in.
        self.spread = float(np.median(known)) if len(known) else self.width(row_left_out=True)
        """Median spread of repeats."""

    def width(self, *, row_left_out: bool) -> float:
        """As FamilyModel.width, over the whole class; what shapes differ by where it has none."""
        return self._widths[0 if row_left_out else 1]

    @cached_property
    def _widths(self) -> tuple[float, float]:
        """Rows left out, whole shapes left out: over all rows; where most families state
        a width, the median of those."""
        pooled: list[float] = []
        for number, row_left_out in enumerate((True, False)):
            stated = [
                width
                for member in self._members
                if member.estimator != "curves"
                and (width := member.width(row_left_out=row_left_out))
            ]
            if 2 * len(stated) > len(self._members):
                pooled.append(float(np.median(stated)))
                continue
            errors = np.concatenate(
                [
                    np.empty(0),
                    *(m[number] for member in self._members for m in member.residuals.values()),
                ]
            )
            pooled.append(
                float(np.quantile(np.abs(errors), QUANTILE)) if len(errors) else self.modelled_width
            )
        return pooled[0], pooled[1]


def _coordinates(batch: Batch, sms: Array) -> Array:
    """[operators, sizes] log2 of all sizes; memory-bound kernels also by the SMs they may fill."""
    sizes = np.maximum(batch.sizes, 1).astype(np.float64)
    if not is_tensor(batch.kind):
        sizes = np.column_stack([sizes, sms])
    places: Array = np.log2(sizes)
    return places


def _inverse_square(places: Array, known: Array, values: Array) -> Array:
    """Mean of `values` [known] weighted by 1 / distance squared; [places]."""
    distance = ((places[:, None, :] - known[None, :, :]) ** 2).sum(axis=2)
    weights = 1.0 / (distance + SAME_PLACE**2)
    mean: Array = weights @ values / weights.sum(axis=1)
    return mean
