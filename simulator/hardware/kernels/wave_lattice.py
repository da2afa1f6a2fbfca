"""Times of grouped GEMMs, monotone in waves of tiles and in bytes.

Where the number of groups changes with the load, as in masked grouped products, every load is
another shape and no curve runs through them. What its time grows with are the two parts of its time
at peak (roofline.py): the busiest SM's tiles and the bytes. The lattice holds log seconds over the
logarithms of both, and over columns and depth where they vary, linear between its knots. It is
fitted like a surface, to the ratio to the time at peak, and then moved to the nearest values that
rise along waves and bytes: no prediction falls as either of them grows, so that more rows, more
experts with rows or fewer SMs never take less time where they do not make less work. Beyond the
knots the time goes on as the roofline does.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from simulator.hardware.kernels.roofline import Batch, Ideal
from simulator.hardware.kernels.surfaces import Lattice, Surface, Term

Array = NDArray[np.float64]

SHAPE: Mapping[str, tuple[str, ...]] = {
    "grouped_gemm": ("n", "k"),
    "masked_grouped_gemm": ("n", "k"),
}
"""Kinds that a lattice is for, and the sizes that it has axes for besides waves and bytes."""
LEAST_SECONDS = 1e-12
"""A part of no time at all counts as this."""


class WaveLattice:
    """Log seconds of one family and kernel set."""

    def __init__(
        self, batch: Batch, *, ideal: Ideal, log_seconds: Array, stiffness: tuple[float, float]
    ) -> None:
        """Fit.

        Args:
            batch: operators of the rows.
            ideal: time at peak of the rows.
            log_seconds: [rows] measured.
            stiffness: along waves and bytes, and across the sizes of the shape.
        """
        coordinates = _coordinates(batch, ideal)
        varying = [len(np.unique(axis.round(6))) > 1 for axis in coordinates.T]
        self._axes = np.flatnonzero(varying) if any(varying) else np.array([0])
        rising = int((self._axes < 2).sum())
        self._fixed = coordinates[0]
        self._floor = ideal.floor
        used = coordinates[:, self._axes]
        shape_axes = len(self._axes) - rising
        term = Term(
            used, np.ones(len(used)), (stiffness[0],) * rising + (stiffness[1],) * shape_axes
        )
        self._lattice = Lattice(used)
        places = np.tile(self._fixed, (self._lattice.size, 1))
        places[:, self._axes] = self._lattice.places()
        at_knots = _log_peak(places, self._floor)
        # The peak as the lattice has it, linear between knots: the fit meets the rows themselves.
        ratio = Surface([term], log_seconds - self._lattice.between(at_knots, used)).knot_values_
        self._log_seconds = _rising((at_knots + ratio).reshape(self._lattice.shape), rising).ravel()

    def predict(self, batch: Batch, sms: Array, ideal: Ideal) -> Array:
        """[operators] log seconds; SMs are in the waves already."""
        coordinates = _coordinates(batch, ideal)
        inside = self._lattice.between(self._log_seconds, coordinates[:, self._axes])
        nearest = np.tile(self._fixed, (len(batch), 1))
        nearest[:, self._axes] = self._lattice.clipped(coordinates[:, self._axes])
        beyond = _log_peak(coordinates, self._floor) - _log_peak(nearest, self._floor)
        log_seconds: Array = inside + beyond
        return log_seconds


def _coordinates(batch: Batch, ideal: Ideal) -> Array:
    """[operators, axes] octaves: of waves and bytes in seconds, then of the shape's sizes."""
    sizes = dict(zip(batch.names, batch.sizes.T.astype(np.float64), strict=True))
    columns = [ideal.waves, ideal.bytes, *(sizes[name] for name in SHAPE[batch.kind])]
    octaves: Array = np.log2(np.maximum(np.column_stack(columns), LEAST_SECONDS))
    return octaves


def _log_peak(coordinates: Array, floor: float) -> Array:
    """[places] log seconds at peak."""
    peak: Array = np.log(np.exp2(coordinates[:, :2].max(axis=1)) + floor)
    return peak


def _rising(values: Array, axes: int) -> Array:
    """Values that rise along the first axes: halfway between the envelopes from above and below."""
    above, below = values, values
    for axis in range(axes):
        above = np.maximum.accumulate(above, axis=axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis=axis), axis)
    middle: Array = (above + below) / 2
    return middle
