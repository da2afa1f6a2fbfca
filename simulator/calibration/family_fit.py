"""Fit each kernel family to its measured rows, and judge it on rows that are left out.

Every kernel family in every kernel set is judged on its own rows: versions of a kernel never share
a fit. Three kinds of error, each relative to the measured time:

    interpolated    rows left out one at a time, with rows of the same shape on both sides
    edge            rows left out one at a time at the ends of their shape: extrapolated
    regions         whole shapes left out (a quarter at a time), or octaves of time
                    where there are fewer shapes than that

The lengths of a family's process (gaussian_process.py), its noise, and the tiles of matrix products
are those of the smallest error of rows left out, alone and with their whole shape; how the noise
falls with time at peak is a slope through the errors of rows left out alone. Beside the errors
stands the noise floor, how far rows of equal work lie apart: the same sizes, or GEMM rows that fill
the same tile of 64. No model gets below it but by luck.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.calibration_parts import FitProfile, HeldOutError, TilesProfile
from hardware_profiles.schema import GpuProfile
from hardware_profiles.tables import TRANSFER_KINDS, Measurement, format_pairs
from simulator.execution.progress import HowFar, Watch, unwatched
from simulator.hardware.kernels.families import Family, batch_of_rows, check_row, family_of
from simulator.hardware.kernels.gaussian_process import (
    DEFAULT_LENGTH,
    DEFAULT_NOISE,
    Process,
    feature_names,
    features_of,
)
from simulator.hardware.kernels.measured_rows import Rows, shapes_of
from simulator.hardware.kernels.models import process_of
from simulator.hardware.kernels.reach import QUANTILE, held_out_scales
from simulator.hardware.kernels.roofline import SMALL_TILE_ROWS, Ideal, waves_and_bytes

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Mask = NDArray[np.bool_]

LEAST_ROWS = 5
"""Fewer rows of a family are used but not judged."""
LEAST_ROWS_FOR_LENGTHS = 16
"""Fewer say too little of how far a family's rows differ over each feature."""
SEARCHED_ROWS = 300
"""Rows that lengths are chosen on, drawn at random."""
SEARCHED_AMONG = 8192
"""Rows that take part in predicting those: all, or of more so many at random."""
JUDGED_ROWS = 3000
"""Rows that are left out and judged; of more, so many at random."""
LEAST_ROWS_FOR_SLOPE = 1000
"""Fewer say too little of how a family's noise falls with time."""
SLOPE_ROWS, SLOPE_PARTS = 2000, 10
"""Rows, and parts of them by time at peak, that the slope of a family's noise is found on."""
LEAST_ERROR = 1e-4
"""Log error that no measurement tells from 0."""
STEPS = (1.2, 0.6)
"""Of the search, in logarithms of lengths and noise: each is gone through once for every step."""
LONGEST = 400.0
"""Octaves, of a feature that tells nothing; the shortest is its inverse."""
HELPS = 0.9998
"""Share of the error so far that a move must stay below."""
CLIPPED = 0.5
"""Log error beyond which a row counts no further in that choice: it is an outlier."""
TILED = frozenset({"gemm", "grouped_gemm", "masked_grouped_gemm", "grouped_gemm_weight_grad"})
OTHER_TILES = (
    TilesProfile(narrowest=16, overhead=32, half_height_rows=0),
    TilesProfile(narrowest=128, overhead=32, half_height_rows=0),
)
"""Tiles that are tried besides the base's: always of full height, and also of full width, as a
library has them that does not search."""
LEAST_ROWS_FOR_TILES = 40
CLEARLY_BETTER = 0.9
"""Other tiles must bring the error below this share of it: less is chance."""
FOLDS = 4
WORST = 10


@dataclass(frozen=True, slots=True)
class HeldOutRow:
    """One measured row and what the model says without it."""

    measurement: Measurement
    predicted_s: float
    edge: bool
    """At an end of its shape, where the model extrapolates."""

    @property
    def error(self) -> float:
        """Predicted over measured time, less 1."""
        return self.predicted_s / self.measurement.seconds - 1


def fit_families(
    rows: Iterable[Measurement],
    *,
    gpu: GpuProfile,
    floor: float,
    tiles: TilesProfile,
    watch: Watch = unwatched,
) -> tuple[list[FitProfile], list[HeldOutRow]]:
    """Judge every family of every kernel set with at least `LEAST_ROWS` distinct sizes.

    Args:
        floor: added to times at peak: what a kernel takes that does nothing.
        tiles: of matrix products, unless others fit a kernel set better.
        watch: told before every family how many rows have been judged.
    """
    groups: dict[tuple[Family, str], list[Measurement]] = defaultdict(list)
    rows = list(rows)
    for row in rows:
        if row.kind in TRANSFER_KINDS:
            continue
        check_row(row)
        family = family_of(row)
        groups[family, row.kernel_set].append(row)
    fits: list[FitProfile] = []
    held_out: list[HeldOutRow] = []
    judged, of = 0, sum(map(len, groups.values()))
    for (family, kernel_set), members in sorted(groups.items(), key=lambda entry: str(entry[0])):
        what = f"fitting {family[0]} {family[1]}, {len(members):,} rows"
        watch(HowFar(judged / of, judged, "rows", what=what))
        judged += len(members)
        distinct = averaged(members)
        if len(distinct) < LEAST_ROWS:
            continue
        table = table_of(distinct, gpu, floor, tiles)
        groups_of_table = region_groups(table)
        fit, table = fit_rows(family, kernel_set, table, groups_of_table, gpu=gpu)
        fit, errors = _judged(members, distinct, table, groups_of_table, fit)
        fits.append(fit)
        held_out.extend(errors)
    return fits, held_out


def averaged(rows: Sequence[Measurement]) -> list[Measurement]:
    """Rows of the same sizes and SMs as one, the mean of logarithms: a shape is left out whole."""
    groups: dict[tuple[object, ...], list[Measurement]] = defaultdict(list)
    for row in rows:
        groups[row.sizes, row.sms].append(row)
    return [
        replace(group[0], seconds=statistics.geometric_mean([row.seconds for row in group]))
        if len(group) > 1
        else group[0]
        for group in groups.values()
    ]


def table_of(
    rows: Sequence[Measurement], gpu: GpuProfile, floor: float, tiles: TilesProfile
) -> Rows:
    """Rows of one family, under the condition that they were measured in."""
    batch = batch_of_rows(rows)
    sms = np.array([row.sms for row in rows], dtype=np.float64)
    return Rows(
        batch=batch,
        sms=sms,
        log_seconds=np.log(np.array([row.seconds for row in rows])),
        ideal=Ideal(*waves_and_bytes(batch, sms, gpu, tiles), floor),
        weights=np.ones(len(rows)),
        direct=np.ones(len(rows), dtype=np.bool_),
        spread=np.full(len(rows), np.nan),
        slowed=np.ones(len(rows)),
    )


def with_tiles(table: Rows, gpu: GpuProfile, tiles: TilesProfile) -> Rows:
    """The same rows with the times at peak of other tiles."""
    ideal = Ideal(*waves_and_bytes(table.batch, table.sms, gpu, tiles), table.ideal.floor)
    return replace(table, ideal=ideal)


def _varying(row: Measurement, names: Collection[str]) -> str:
    """The sizes that tell a row from the others of its family."""
    return format_pairs(pair for pair in (*row.sizes, ("sms", row.sms)) if pair[0] in names)


def fit_rows(
    family: Family, kernel_set: str, table: Rows, groups: Index, *, gpu: GpuProfile
) -> tuple[FitProfile, Rows]:
    """Choose the tiles and the lengths of a family; its rows with the times of those tiles.

    Args:
        table: of distinct sizes and SMs, with the calibration's own tiles, which are kept unless
            others are clearly better.
        groups: [rows] number of what is left out together.
    """
    fit = FitProfile(
        kind=family[0],
        dtype=family[1],
        out_dtype=family[2],
        accumulate=family[3],
        kernel_set=kernel_set,
        rows=len(table),
    )
    if len(table) < LEAST_ROWS_FOR_LENGTHS or len(np.unique(groups)) == 1:
        return fit, table
    among = _some(len(table), SEARCHED_AMONG)
    searched, groups = table.take(among), groups[among]
    fit = _with_lengths(searched, groups, fit)
    if family[0] not in TILED or len(table) < LEAST_ROWS_FOR_TILES:
        return fit, table
    least = CLEARLY_BETTER * _score(searched, groups, fit)
    for candidate in OTHER_TILES:
        rival = with_tiles(searched, gpu, candidate)
        error = _score(rival, groups, fit)
        if error < least:
            searched, least, fit = rival, error, fit.model_copy(update={"tiles": candidate})
    if fit.tiles is None:
        return fit, table
    return _with_lengths(searched, groups, fit), with_tiles(table, gpu, fit.tiles)


def _with_lengths(table: Rows, groups: Index, fit: FitProfile) -> FitProfile:
    """The lengths and the noise of least error of left-out groups, one after another, and a slope.

    Each is moved in logarithms as long as that helps, first by the larger and then by the smaller
    step; of what makes no difference the start remains. A length of SMs is no shorter than the gap
    between two numbers that were measured, or nothing would be known of those between.
    """
    names = feature_names(table.batch)
    found = np.log([*[DEFAULT_LENGTH] * len(names), DEFAULT_NOISE])

    def at(point: Array) -> FitProfile:
        values = [_short(value) for value in np.exp(point)]
        lengths = dict(zip(names, values[:-1], strict=True))
        return fit.model_copy(update={"lengths": lengths, "noise_share": values[-1]})

    least = _score(table, groups, at(found))
    features = features_of(table.batch, table.sms, table.ideal)
    moving = [*(np.ptp(features, axis=0) > 0), True]
    shortest = np.full(len(found), -math.log(LONGEST))
    if moving[place := names.index("sms")]:
        shortest[place] = math.log(np.diff(np.unique(features[:, place])).max())
    for step in STEPS:
        for number in np.flatnonzero(moving):
            for direction in (step, -step):
                helped = False
                while True:
                    candidate = found.copy()
                    candidate[number] += direction
                    if not shortest[number] <= candidate[number] <= math.log(LONGEST):
                        break
                    error = _score(table, groups, at(candidate))
                    if error >= least * HELPS:
                        break
                    found, least, helped = candidate, error, True
                if helped:
                    break
    return at(found).model_copy(update={"noise_slope": _noise_slope(table, at(found))})


def _noise_slope(table: Rows, fit: FitProfile) -> float | None:
    """Octaves of error of rows left out alone by octave of time at peak; None of few rows."""
    if len(table) < LEAST_ROWS_FOR_SLOPE:
        return None
    asked = _some(len(table), SLOPE_ROWS)
    ((errors, _),) = _process(table, fit).held_out(np.arange(len(table)), chosen=asked)
    names = feature_names(table.batch)
    peak = features_of(table.batch, table.sms, table.ideal)[asked, names.index("peak")]
    if not np.ptp(peak) > 0:
        return None
    parts = np.array_split(np.argsort(peak, kind="stable"), SLOPE_PARTS)
    sizes = np.clip(np.abs(errors), LEAST_ERROR, CLIPPED)
    means = [sizes[part].mean() for part in parts]
    middles = [peak[part].mean() for part in parts]
    slope, _ = np.polyfit(middles, np.log2(means), 1)
    return _short(slope)


def _score(table: Rows, groups: Index, fit: FitProfile) -> float:
    """Mean absolute log error of rows left out alone and with their group, outliers clipped."""
    both = _process(table, fit).held_out(
        np.arange(len(table)), groups, chosen=_some(len(table), SEARCHED_ROWS)
    )
    return float(np.mean([np.minimum(np.abs(errors), CLIPPED).mean() for errors, _ in both]))


def _process(table: Rows, fit: FitProfile) -> Process:
    return process_of(table, table.log_seconds - table.ideal.log_seconds, fit)


def _some(count: int, most: int) -> Index:
    """Positions of rows: all, or so many of them at random, always the same."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def region_groups(table: Rows) -> Index:
    """[rows] the shape of each, or its octave of time at peak where shapes are too few."""
    shapes = shapes_of(table.batch)
    if len(shapes) < FOLDS:
        octaves = np.round(table.ideal.log_seconds / math.log(2.0))
        return np.unique(octaves, return_inverse=True)[1].astype(np.intp)
    groups = np.empty(len(table), dtype=np.intp)
    for number, (_, rows) in enumerate(shapes):
        groups[rows] = number
    return groups


def _judged(
    repeated: Sequence[Measurement],
    rows: Sequence[Measurement],
    table: Rows,
    groups: Index,
    fit: FitProfile,
) -> tuple[FitProfile, list[HeldOutRow]]:
    judged = _some(len(table), JUDGED_ROWS)
    asked = [np.arange(len(table)), *([groups] if groups.max() > 0 else [])]
    (errors, _), *regions = _process(table, fit).held_out(*asked, chosen=judged)
    edge = at_edge(table)[judged]
    predicted = np.exp(table.log_seconds[judged] - errors)
    held_out = [
        HeldOutRow(rows[place], float(seconds), bool(outside))
        for place, seconds, outside in zip(judged, predicted, edge, strict=True)
    ]
    left = regions[0][0] if regions else np.empty(0)
    sizes = dict(zip(table.batch.names, table.batch.sizes.T, strict=True))
    varying = {name for name, values in sizes.items() if values.min() < values.max()}
    if table.sms.min() < table.sms.max():
        varying.add("sms")
    found = {
        "noise": summary(noise(repeated)),
        "interpolated": summary(errors[~edge]),
        "edge": summary(errors[edge]),
        "regions": summary(left),
        "widths": {
            reach: _short(scale)
            for reach, scale in held_out_scales(_process(table, fit), table).items()
        },
        "coverage": {
            **{name: (int(values.min()), int(values.max())) for name, values in sizes.items()},
            "sms": (int(table.sms.min()), int(table.sms.max())),
        },
        "worst": _worst(held_out, varying),
    }
    return fit.model_copy(update=found), held_out


def _worst(held_out: Sequence[HeldOutRow], varying: Collection[str]) -> tuple[str, ...]:
    """The rows of the largest errors, by the sizes that tell rows apart."""
    worst = sorted(held_out, key=lambda row: -abs(np.log1p(row.error)))[:WORST]
    return tuple(
        f"{_varying(row.measurement, varying)}: {row.error:+.1%}" + (" (edge)" if row.edge else "")
        for row in worst
    )


def at_edge(table: Rows) -> Mask:
    """[rows] whether a row is the first or last of its shape."""
    edge = np.ones(len(table), dtype=np.bool_)
    for _, rows in shapes_of(table.batch):
        for sms in np.unique(table.sms[rows]):
            members = rows[table.sms[rows] == sms]
            extents = table.batch.moved_bytes[members]
            edge[members] = (extents <= extents.min()) | (extents >= extents.max())
    return edge


def noise(rows: Sequence[Measurement]) -> Array:
    """Log of each row over the median of the others of equal work; empty without any."""
    groups: dict[tuple[object, ...], list[float]] = defaultdict(list)
    for row in rows:
        sizes = dict(row.sizes)
        if row.kind == "gemm" and not row.accumulate:
            sizes["m"] = -(-sizes["m"] // SMALL_TILE_ROWS)
        groups[tuple(sorted(sizes.items())), row.sms].append(math.log(row.seconds))
    return np.array(
        [
            value - statistics.median(group[:place] + group[place + 1 :])
            for group in groups.values()
            if len(group) > 1
            for place, value in enumerate(group)
        ]
    )


def summary(errors: Array) -> HeldOutError | None:
    """Summary of log measured minus log predicted; None without a row."""
    if not len(errors):
        return None
    relative = np.expm1(-errors)
    size = np.abs(relative)
    return HeldOutError(
        rows=len(errors),
        median=_short(np.median(size)),
        p90=_short(np.quantile(size, 0.9)),
        worst=_short(size.max()),
        bias=_short(np.median(relative)),
        quantile_80=_short(np.quantile(np.abs(errors), QUANTILE)),
    )


def _short(value: Any) -> float:
    """Four digits: a file that is read by people, and the same on every machine."""
    return float(f"{float(value):.4g}")
