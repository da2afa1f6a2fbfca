"""The efficiency of one kernel family as a function of its sizes.

The surface learns log seconds minus the log of the time at peak (roofline.py). Its coordinates are
physical: rows of a GEMM count in whole tiles of 64, since those cost the same; rows that are no
multiple of 4 lose the 16-byte alignment of their FP32 scales; and how many 128 x 128 tiles fall on
an SM decides which tile shape a kernel takes and how full its last wave is. Terms:

    main        all sizes that vary, in octaves
    alignment   GEMMs: rows and columns, for rows that break alignment
    waves       GEMMs: tiles an SM up to `MOST_WAVES`, and columns

Between rows the surface interpolates linearly in these coordinates. Beyond them it keeps the
efficiency of its edge: time goes on as the roofline does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simulator.hardware.kernels.roofline import SMALL_TILE_ROWS, TILE_ROWS, Batch, Ideal
from simulator.hardware.kernels.surfaces import Surface, Term

Array = NDArray[np.float64]

ROWS_OF = {
    "gemm": "m",
    "grouped_gemm": "rows",
    "grouped_gemm_weight_grad": "m",
    "masked_grouped_gemm": "rows",
}
"""Size that counts the rows of a product: of a weight gradient its output features."""
ALIGNED_ROWS = 4
MOST_WAVES = 12.0
"""Tiles an SM beyond which the last wave no longer matters: half a wave is 4 % of twelve."""
WAVE_SCALE = 4.0
"""Knots of the wave axis lie 0.1 tiles an SM apart, those of octaves 0.4."""

CANDIDATES = ((0.001, 0.01), (0.01, 0.01), (0.01, 0.05), (0.01, 0.1), (0.1, 0.1), (0.1, 1.0))
"""Stiffness along the size that was scanned most finely and across the others: calibrate chooses by
the error of left-out rows."""
WAVE_STIFFNESS, WAVE_SHRINKAGE = (0.005, 0.005), 0.03
ALIGNMENT_STIFFNESS, ALIGNMENT_SHRINKAGE = (0.03, 0.03), 0.05


class KernelSurface:
    """Log seconds of one family and kernel set."""

    def __init__(
        self,
        batch: Batch,
        sms: Array,
        *,
        ideal: Ideal,
        log_seconds: Array,
        stiffness: tuple[float, float],
    ) -> None:
        """Fit.

        Args:
            batch: operators of the rows.
            sms: [rows] SMs they had.
            ideal: time at peak of the rows.
            log_seconds: [rows] measured.
            stiffness: along the most finely scanned size, and across the others.
        """
        coordinates = _coordinates(batch, sms)
        distinct = np.array([len(np.unique(axis.round(6))) for axis in coordinates.T])
        # The axis with most values first: it is the one that stiffness[0] belongs to.
        order = np.argsort(-distinct, kind="stable")
        self._axes = [int(axis) for axis in order if distinct[axis] > 1] or [0]
        self._stiffness = (stiffness[0], *([stiffness[1]] * (len(self._axes) - 1)))
        self._tiled = _is_tiled(batch) and len(self._axes) > 1
        self._surface = Surface(self._terms(batch, sms), log_seconds - ideal.log_seconds)

    @property
    def leave_one_out(self) -> Array:
        """[rows] log seconds minus prediction without the row."""
        return self._surface.leave_one_out_

    def predict(self, batch: Batch, sms: Array, ideal: Ideal) -> Array:
        """[operators] log seconds."""
        log_seconds: Array = ideal.log_seconds + self._surface.predict(self._terms(batch, sms))
        return log_seconds

    def _terms(self, batch: Batch, sms: Array) -> Sequence[Term]:
        coordinates = _coordinates(batch, sms)[:, self._axes]
        terms = [Term(coordinates, np.ones(len(batch)), self._stiffness)]
        if self._tiled:
            rows, columns, tiles = _rows_columns_tiles(batch)
            broken = (rows % ALIGNED_ROWS != 0) & (rows > SMALL_TILE_ROWS / ALIGNED_ROWS)
            terms.append(
                Term(
                    np.column_stack([np.log2(np.maximum(rows, 1)), np.log2(columns)]),
                    broken.astype(np.float64),
                    ALIGNMENT_STIFFNESS,
                    ALIGNMENT_SHRINKAGE,
                )
            )
            waves = WAVE_SCALE * np.minimum(tiles / sms, MOST_WAVES)
            terms.append(
                Term(
                    np.column_stack([waves, np.log2(columns)]),
                    np.ones(len(batch)),
                    WAVE_STIFFNESS,
                    WAVE_SHRINKAGE,
                )
            )
        return terms


def _is_tiled(batch: Batch) -> bool:
    return batch.kind in ROWS_OF


def _rows_columns_tiles(batch: Batch) -> tuple[Array, Array, Array]:
    """Rows and columns of one product, and 128 x 128 tiles of all."""
    sizes = dict(zip(batch.names, batch.sizes.T.astype(np.float64), strict=True))
    rows, columns = sizes[ROWS_OF[batch.kind]], np.maximum(sizes["n"], 1.0)
    groups = np.ones_like(rows)
    if batch.kind == "grouped_gemm_weight_grad":
        groups = sizes["groups"]
    if batch.kind == "masked_grouped_gemm":
        groups = np.maximum(np.minimum(sizes["groups"], rows), 1.0)
        rows = np.ceil(rows / groups)
    tiles = groups * np.ceil(rows / TILE_ROWS) * np.ceil(columns / TILE_ROWS)
    return rows, columns, tiles


def _coordinates(batch: Batch, sms: Array) -> Array:
    """[operators, axes]: sizes in octaves, rows of products in whole tiles; dispatch also by SMs.

    Of a dispatch or combine the received rows follow from tokens and group, so that their number a
    token, the copies made of each, takes their place.
    """
    columns: list[Array] = []
    sizes = dict(zip(batch.names, batch.sizes.T.astype(np.float64), strict=True))
    for name, values in sizes.items():
        axis = values
        if name == ROWS_OF.get(batch.kind):
            rows = _rows_columns_tiles(batch)[0]
            axis = np.ceil(np.maximum(rows, 1) / SMALL_TILE_ROWS) * SMALL_TILE_ROWS
        if batch.kind in ("dispatch", "combine") and name == "rows":
            axis = (values / np.maximum(sizes["tokens"], 1)).round(1)
        columns.append(np.log2(np.maximum(axis, 0.5)))
    if batch.kind in ("dispatch", "combine"):
        columns.append(sms / WAVE_SCALE)
    return np.column_stack(columns)
