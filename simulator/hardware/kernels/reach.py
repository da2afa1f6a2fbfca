"""How far an operator lies from the rows of its family, and how wrong the model is that far away.

A prediction's deviation (gaussian_process.py) grows with the distance from rows; that it grows
rightly is not known, so that each class of distance has a scale of its own: the 80% quantile of the
error of rows that were left out, over the deviation. What is left out together puts the judged rows
into that class (`cuts`); each group left out has one vote, however many rows it holds, since rows
of a group err together.

    between    rows of its shape on either side, no more than `WIDE_GAP` apart
    edge       rows of its shape, but on one side alone or further apart, and of others at its load
    shape      no rows of its shape, but of other shapes at its load
    size       one of the sizes of its shape is in no row at all
    gap        no row of any shape at its load: those on either side are further apart
    beyond     more load than any row has, or less
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.calibration_parts import RowReach
from simulator.hardware.kernels.gaussian_process import Process
from simulator.hardware.kernels.measured_rows import Rows, extents_of, shape_sizes, shapes_of
from simulator.hardware.kernels.roofline import Batch

Array = NDArray[np.float64]
Index = NDArray[np.intp]

REACHES: tuple[RowReach, ...] = get_args(RowReach)
BETWEEN, EDGE, SHAPE, SIZE, GAP, BEYOND = range(len(REACHES))
WIDE_GAP = 4.0
"""Times the load of the row below that the row above may have: two octaves, what leaving out one
row makes of a table of powers of two."""
QUANTILE = 0.8
"""Share of the truth that an interval should hold."""
ENOUGH_GROUPS = 3
"""Fewer groups left out say nothing about a quantile; other families answer instead."""
MOST_JUDGED = 1000
"""Rows that are left out of one cut and judged; of more, one of each group and then others at
random."""

TOGETHER: Mapping[str, tuple[str, ...]] = {
    "batched_gemm": ("m", "n", "k"),
    "grouped_gemm": ("rows", "groups"),
    "masked_grouped_gemm": ("rows", "groups"),
    "mla_decode": ("sequences", "kv_length"),
    "mla_prefill": ("sequences", "kv_length"),
}
"""{kind: sizes of which rows of equal values tell of one another, whatever their shape}; of other
kinds each row stands for itself."""

Scales = Mapping[RowReach, float]
"""{one of REACHES: scale}, of those that enough groups say something of."""


def numbered(columns: NDArray[np.int64]) -> Index:
    """[rows] number of each combination of values."""
    return np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1).astype(np.intp)


def together(batch: Batch) -> Index:
    """[rows] number of the group that each is left out with, to be judged between rows."""
    sizes = TOGETHER.get(batch.kind)
    if sizes is None:
        return np.arange(len(batch))
    return numbered(batch.sizes[:, [batch.names.index(size) for size in sizes]])


def cuts(batch: Batch) -> Iterator[tuple[str, Index, tuple[int, ...]]]:
    """Ways of leaving rows out: (name, [rows] number of each one's group, reaches it judges).

    A group of -1 is never left out.
    """
    yield "alike", together(batch), (BETWEEN, EDGE)
    shapes = np.empty(len(batch), dtype=np.intp)
    for number, (_, members) in enumerate(shapes_of(batch)):
        shapes[members] = number
    yield "shape", shapes, (SHAPE,)
    for name in shape_sizes(batch):
        values = batch.sizes[:, batch.names.index(name)]
        yield name, numbered(values[:, None]), (SIZE,)
    octaves = np.log2(np.maximum(extents_of(batch), 1.0))
    yield "two octaves of load", np.floor(octaves / 2).astype(np.intp), (GAP,)
    first, last = octaves.min() + 1.0, octaves.max() - 1.0
    ends = np.full(len(batch), -1, dtype=np.intp)
    if last > first + 1.0:
        ends[octaves <= first], ends[octaves >= last] = 0, 1
    yield "ends", ends, (BEYOND,)


class Known:
    """Where the rows of a family lie: all of them, or without one group at a time."""

    def __init__(self, batch: Batch) -> None:
        """Number the loads and the values of the sizes; there must be at least one row."""
        self._batch = batch
        self._extents = extents_of(batch)
        columns = {name: batch.sizes[:, batch.names.index(name)] for name in shape_sizes(batch)}
        self._loads = _Values(self._extents)
        self._sizes = {name: _Values(column) for name, column in columns.items()}
        self._of_shape = dict(shapes_of(batch))

    def reach(self, batch: Batch, left_out: NDArray[np.bool_] | None = None) -> Index:
        """[operators] places in REACHES.

        Args:
            left_out: [rows] those that do not count.
        """
        out = np.empty(0, dtype=np.intp) if left_out is None else np.flatnonzero(left_out)
        extents = extents_of(batch)
        below, above = _beside(self._loads.without(out), extents)
        found = np.full(len(batch), SHAPE, dtype=np.intp)
        for name, values in self._sizes.items():
            asked = batch.sizes[:, batch.names.index(name)]
            found[~np.isin(asked, values.without(out))] = SIZE
        for shape, members in shapes_of(batch):
            rows = self._of_shape.get(shape)
            if rows is not None:
                rows = rows if left_out is None else rows[~left_out[rows]]
                low, high = _beside(np.unique(self._extents[rows]), extents[members])
                if len(rows):
                    found[members] = np.where(high <= WIDE_GAP * low, BETWEEN, EDGE)
        found[above > WIDE_GAP * below] = GAP
        found[(below == -np.inf) | (above == np.inf)] = BEYOND
        return found

    def reach_without(self, groups: Index, chosen: Index) -> Index:
        """[chosen] where each row lies once its group is left out."""
        found = np.empty(len(chosen), dtype=np.intp)
        for group in np.unique(groups[chosen]):
            places = np.flatnonzero(groups[chosen] == group)
            found[places] = self.reach(self._batch.take(chosen[places]), groups == group)
        return found


class _Values:
    """Distinct values of rows, and how many rows have each."""

    def __init__(self, column: NDArray[Any]) -> None:
        self._distinct, self._place, self._count = np.unique(
            column, return_inverse=True, return_counts=True
        )

    def without(self, rows: Index) -> NDArray[Any]:
        """Ascending, those that other rows have too."""
        if not len(rows):
            return self._distinct
        gone = np.bincount(self._place[rows], minlength=len(self._count))
        return self._distinct[gone < self._count]


def _beside(loads: Array, asked: Array) -> tuple[Array, Array]:
    """The load at or below each, -inf without one, and that at or above it, inf without one."""
    padded = np.concatenate([[-np.inf], loads, [np.inf]])
    below = padded[np.searchsorted(loads, asked, "right")]
    above = padded[np.searchsorted(loads, asked, "left") + 1]
    return below, above


def one_more_within(errors: Array, groups: Index, share: float) -> float:
    """What holds so much of the errors of one more group, each with one vote.

    One more group lies within the r-th of G alike in r of G + 1 cases (Vovk et al. 2005), so that
    `share` of G + 1 votes are asked for, between two by interpolation, and all where G are too few.

    Args:
        errors: [rows], none below zero; at least one.
        groups: [rows]
    """
    _, which, count = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(errors)
    votes = np.cumsum(1.0 / count[which[order]])
    return float(np.interp(share * (len(count) + 1), votes, errors[order]))


@dataclass(frozen=True, slots=True)
class JudgedCut:
    """Judged rows of one cut that lie alike; arrays [rows]."""

    cut: str
    reach: int
    """Place in REACHES."""
    errors: Array
    """Log measured minus log predicted without the row's group."""
    deviation: Array
    """That the model gives them."""
    groups: Index

    @property
    def parts(self) -> int:
        """Groups that were left out, one at a time."""
        return len(np.unique(self.groups))

    def within(self, share: float) -> float:
        """Deviations that hold so much of the errors of one more group."""
        return one_more_within(np.abs(self.errors) / self.deviation, self.groups, share)


def left_out(
    process: Process,
    rows: Rows,
    some: Index | None = None,
    half: int | None = None,
    *,
    whole: str = "",
) -> Iterator[JudgedCut]:
    """Errors of rows without their group, for every cut and every reach that it judges.

    Args:
        some: rows to judge; all where not given, at most `MOST_JUDGED` of a cut.
        half: of the values and loads that whole tables are cut at, 0 or 1; both where not given.
        whole: a cut of which all of these rows are judged, however many.
    """
    known = Known(rows.batch)
    rng = np.random.default_rng(0)
    for cut, groups, judged in cuts(rows.batch):
        chosen = np.arange(len(rows)) if some is None else some
        chosen = chosen[groups[chosen] >= 0]
        if half is not None and judged[0] in (SIZE, GAP):
            halves = np.random.default_rng(1).permutation(groups.max() + 1) % 2
            chosen = chosen[halves[groups[chosen]] == half]
        if len(chosen) > MOST_JUDGED and cut != whole:
            chosen = rng.permutation(chosen)
            first = np.unique(groups[chosen], return_index=True)[1]
            order = np.concatenate([rng.permutation(first), np.arange(len(chosen))])
            order = order[np.sort(np.unique(order, return_index=True)[1])]
            chosen = np.sort(chosen[order[:MOST_JUDGED]])
        if len(np.unique(groups)) == 1 or not len(chosen):
            continue
        ((errors, deviation),) = process.held_out(groups, chosen=chosen)
        found = known.reach_without(groups, chosen)
        for reach in judged:
            here = found == reach
            if here.any():
                part = chosen[here]
                yield JudgedCut(cut, reach, errors[here], deviation[here], groups[part])


def held_out_scales(
    process: Process, rows: Rows, some: Index | None = None, half: int | None = None
) -> Scales:
    """What errors of left-out rows are over the deviation of a process, by how far they lie.

    Args:
        some, half: what to judge, as in `left_out`.
    """
    by_reach: dict[int, list[JudgedCut]] = {}
    for part in left_out(process, rows, some, half):
        by_reach.setdefault(part.reach, []).append(part)
    scales: dict[RowReach, float] = {}
    for reach, parts in sorted(by_reach.items()):
        several = np.cumsum([0, *(part.groups.max() + 1 for part in parts)])
        pooled = JudgedCut(
            cut="",
            reach=reach,
            errors=np.concatenate([part.errors for part in parts]),
            deviation=np.concatenate([part.deviation for part in parts]),
            groups=np.concatenate(
                [part.groups + first for part, first in zip(parts, several, strict=False)]
            ),
        )
        if pooled.parts >= ENOUGH_GROUPS or reach == BEYOND:
            scales[REACHES[reach]] = pooled.within(QUANTILE)
    return scales
