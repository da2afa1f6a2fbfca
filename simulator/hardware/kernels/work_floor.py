"""Lower bounds by work: a kernel with more work never takes less time.

Products, norms, casts and the like. One of fewer rows could be run as one of more, padded with
zeros, so that it never needs longer. `RisingRows` scans each shape at numbers of rows between which
no tile begins, and predicts the least of what was found at no fewer: a measured row that a larger
measured one beats counts as noise here, and what no row was measured at gives way to what one was.
(A row whose own repeats leave no room for that answers for itself alone, in completed.py.) Between
the numbers scanned, time goes as the time at peak does.

Attention. Measured rows bound from below whatever is larger in every size. Rows are few and lie far
apart; the efficiency of one sequence and that of sixteen differ so much that a mean of their curves
would dip between them, by a third on the H800. Between the contexts of rows a dip of up to 2%
remains at two and three sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from reference_model.trace import KINDS
from simulator.hardware.kernels.measured_rows import fingerprints
from simulator.hardware.kernels.roofline import SMALL_TILE_ROWS, TILE_ROWS, Batch, batch_of_sizes

Array = NDArray[np.float64]

MONOTONE_KINDS = frozenset(
    {"mla_decode", "sparse_mla", "index_scores", "attention_forward", "attention_backward"}
)
"""Kinds that this holds for: no size of theirs is rounded up to a tile that a larger one fills."""


PADDED: Mapping[str, str] = {
    name: next(size for size in ("rows", "m", "tokens") if size in kind.sizes)
    for name, kind in KINDS.items()
    if not {"rows", "m", "tokens"}.isdisjoint(kind.sizes)
}
"""{kind of product, norm, cast and the like: its size that could be padded}"""
FEW_ROWS = (1, 2, 4, 8, 16, 24, 32, 48)
EVERY_TILE = 1024
"""Rows up to which each tile of the lower height is scanned; beyond, a quarter of an octave."""
MOST_ROWS = 2**20
SCANNED_AT_ONCE = 256
"""Shapes: bounds memory."""
MOST_PAIRS = 2**18
"""Operators and rows compared at once, likewise."""

Scan = Callable[[Batch, Array], tuple[Array, NDArray[np.bool_], Array]]
"""A batch and its SMs to seconds, whether each was measured, and seconds at peak; [operators], or
of GPUs side by side [GPUs, operators]."""


class RisingRows:
    """Seconds of the kernels of one family that never fall as rows grow."""

    def __init__(self, kind: str, scan: Scan, *, also: Set[int], known: Set[int]) -> None:
        """Store how to predict.

        Args:
            kind: one of `PADDED`.
            scan: predicts kernels one by one; its time at peak must never fall as rows grow.
            also: rows to scan besides the usual ones: those of measurements.
            known: rows that some answer may be measured at, those of `also` among them. Below what
                is asked for, only these can matter.
        """
        self._axis = PADDED[kind]
        self._scan = scan
        self._rows, self._known = _scanned(frozenset(also), frozenset(known))
        self._found: dict[tuple[int, float], tuple[int, Array, Array]] = {}

    def seconds(self, batch: Batch, sms: Array, seconds: Array, at_peak: Array) -> Array:
        """[*GPUs, operators] the rising seconds of kernels, on one GPU or on several side by side.

        Args:
            sms: [operators] that they have.
            seconds: as `scan` predicts them, kept beyond the largest rows scanned.
            at_peak: as `scan` has them.
        """
        axis = batch.names.index(self._axis)
        others = batch.sizes.copy()
        others[:, axis] = 0
        marks = fingerprints(np.column_stack([others, sms.astype(np.int64)]))
        _, first, which = np.unique(marks, return_index=True, return_inverse=True)
        rows = batch.sizes[:, axis]
        last = len(self._rows) - 1
        above = np.searchsorted(self._rows, rows)
        to = np.minimum(above, last)
        after = np.maximum(to - 1, 0)
        least = int(after.min())
        keys = [(int(marks[number]), float(sms[number])) for number in first]
        new = [
            number
            for number, key in zip(first, keys, strict=True)
            if key not in self._found or self._found[key][0] > least
        ]
        for start in range(0, len(new), SCANNED_AT_ONCE):
            some = new[start : start + SCANNED_AT_ONCE]
            scanned = self._scan_shapes(batch, axis, others[some], sms[some], least)
            for number, (of_shape, at_peak_of_shape) in zip(some, scanned, strict=True):
                key = int(marks[number]), float(sms[number])
                self._found[key] = (least, of_shape, at_peak_of_shape)
        found = zip(*(self._found[key][1:] for key in keys), strict=True)
        rising, peaks = (np.stack(part, axis=-2) for part in found)
        low, high = rising[..., which, after], rising[..., which, to]
        start, end = np.log(peaks[..., which, after]), np.log(peaks[..., which, to])
        with np.errstate(divide="ignore", invalid="ignore"):
            way = np.clip((np.log(at_peak) - start) / (end - start), 0.0, 1.0)
        whole = (end <= start) | (rows == self._rows[to]) | (way == 1.0)
        between: Array = np.where(whole, high, low * (high / low) ** way)
        return np.where(above > last, np.maximum(seconds, high), between)

    def _scan_shapes(
        self, batch: Batch, axis: int, others: NDArray[np.int64], sms: Array, least: int
    ) -> list[tuple[Array, Array]]:
        """Of each shape, rising seconds and seconds at peak; [*GPUs, rows], nan before `least`."""
        scanned = np.flatnonzero(self._known | (np.arange(len(self._rows)) >= least))
        sizes = np.repeat(others, len(scanned), axis=0)
        sizes[:, axis] = np.tile(self._rows[scanned], len(others))
        found = self._scan(batch_of_sizes(batch.like, sizes), np.repeat(sms, len(scanned)))
        seconds, measured, at_peak = found
        gpus = seconds.shape[:-1]
        each = (len(others), len(scanned))
        never_falling, peaks = np.full((2, *gpus, len(others), len(self._rows)), np.nan)
        never_falling[..., scanned] = rising(
            seconds.reshape(*gpus, *each), measured.reshape(*measured.shape[:-1], *each)
        )
        peaks[..., scanned] = at_peak.reshape(*gpus, *each)
        return [
            (never_falling[..., shape, :], peaks[..., shape, :]) for shape in range(len(others))
        ]


@lru_cache(maxsize=256)
def _scanned(
    also: frozenset[int], known: frozenset[int]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Numbers of rows to scan, ascending, and which of them are known; as of RisingRows."""
    coarse = EVERY_TILE * 2 ** np.arange(0, np.log2(MOST_ROWS / EVERY_TILE) + 0.01, 1 / 4)
    steps = (
        np.array(FEW_ROWS),
        np.arange(SMALL_TILE_ROWS, EVERY_TILE, SMALL_TILE_ROWS),
        np.ceil(coarse / TILE_ROWS) * TILE_ROWS,
        np.array(sorted(also)),
    )
    rows = np.unique(np.concatenate(steps).astype(np.int64))
    return rows, np.isin(rows, sorted(known))


def rising(seconds: Array, measured: NDArray[np.bool_]) -> Array:
    """[..., rows ascending] seconds that never fall along the rows.

    A measured time is the least of the measured ones at no fewer rows. Any other is brought between
    those around it first, and is then the least of all at no fewer rows.
    """
    least = _least_from_here(np.where(measured, seconds, np.inf))
    most = np.maximum.accumulate(np.where(measured, least, 0.0), axis=-1)
    result: Array = _least_from_here(np.clip(seconds, most, least))
    return result


def _least_from_here(values: Array) -> Array:
    least: Array = np.minimum.accumulate(values[..., ::-1], axis=-1)[..., ::-1]
    return least


def _at_once(rows: int) -> int:
    """Operators that are compared with so many rows at once."""
    return math.ceil(MOST_PAIRS / rows)


class WorkFloor:
    """Times of rows as lower bounds."""

    def __init__(self, batch: Batch, sms: Array, log_seconds: Array) -> None:
        """Store the distinct rows.

        Args:
            batch: operators of the rows.
            sms: [rows] that they had.
            log_seconds: [*GPUs, rows] what the family's model says for them.
        """
        work = np.column_stack([batch.sizes.astype(np.float64), sms])
        work, first = np.unique(work, axis=0, return_index=True)
        self._sizes, self._sms = work[:, :-1], work[:, -1]
        self._log_seconds = log_seconds[..., first]
        self._varies = np.ptp(self._sizes, axis=0) > 0

    def raise_to(self, log_seconds: Array, batch: Batch, sms: Array) -> Array:
        """[*GPUs, operators] log seconds, raised to the longest row with no more work.

        On more SMs than a row had, its time shrinks by no more than their share.
        """
        sizes = batch.sizes.astype(np.float64)
        fixed = ~self._varies
        comparable = np.flatnonzero((sizes[:, fixed] >= self._sizes[0, fixed]).all(axis=1))
        sizes, log_sms = sizes[np.ix_(comparable, self._varies)], np.log(sms[comparable])
        raised = log_seconds.copy()
        rows, log_row_sms = self._sizes[:, self._varies], np.log(self._sms)
        lowest = np.full((*self._log_seconds.shape[:-1], len(comparable)), -np.inf)
        step = _at_once(self._log_seconds.size)
        for some in (slice(start, start + step) for start in range(0, len(comparable), step)):
            larger = (sizes[some, None] >= rows).all(axis=2)
            beyond = np.maximum(log_sms[some, None] - log_row_sms, 0.0)
            least = self._log_seconds[..., None, :] - beyond
            lowest[..., some] = np.where(larger, least, -np.inf).max(axis=-1)
        raised[..., comparable] = np.maximum(raised[..., comparable], lowest)
        return raised
