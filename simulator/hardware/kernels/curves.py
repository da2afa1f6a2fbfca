"""One monotone curve per shape, fitted to its measurements.

A family is one kind with its operand and result types; a shape all its sizes but the one that was
scanned. A curve is log seconds over log ideal seconds, ascending, so that a step in waves is a step
in time. All logarithms of seconds are natural, those of sizes base 2 (octaves).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.hardware.kernels.roofline import Batch, Ideal, is_tensor

Array = NDArray[np.float64]

QUANTILE = 0.8
"""Share of the truth that an interval should hold."""
NEAREST_CURVES = 4
"""Shapes that a shape without rows of its own is predicted from."""
OTHER_TYPES = 4.0
"""Octaves that a curve of other operand types counts as further away. Large GEMMs of both types
reach like shares of their peaks: on H200 at m = 4,096, n = 16,384, k = 7,168 in AIConfigurator's
table 70 % in BF16 and 65 % in FP8, where a BF16 GEMM of 256 columns reaches 45 %."""
SAME_PLACE = 1e-4
"""Softening of the inverse square distance, in octaves: nearer rows are one row."""
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio, as in Fibonacci hashing."""

# The size that runs along a curve; the other sizes make its shape. Attention's query grows with it.
_AXES: Mapping[str, tuple[str, ...]] = {
    "gemm": ("m",),
    "grouped_gemm": ("rows",),
    "masked_grouped_gemm": ("rows",),
    "grouped_gemm_weight_grad": ("rows",),
    "batched_gemm": ("m",),
    "attention_forward": ("kv_length", "query_length"),
    "attention_backward": ("kv_length", "query_length"),
    "mla_decode": ("kv_length",),
    "mla_prefill": ("kv_length", "query_length"),
}

Shape = tuple[int, ...]
"""The sizes that are not along the axis, in the order of their names."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Measurements of one family and kernel set, converted to one condition; arrays [rows]."""

    batch: Batch
    sms: Array
    """SMs that the kernel had."""
    log_seconds: Array
    ideal: Ideal
    """At the rows' own SM counts."""
    weights: Array
    """Repeats behind each row."""
    direct: NDArray[np.bool_]
    """Whether the row was measured under this condition rather than converted to it."""
    spread: Array
    """Standard deviation over mean of the repeats; nan where unknown."""

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def log_ideal(self) -> Array:
        """Log seconds at peak."""
        return self.ideal.log_seconds

    def without_redundant(self) -> Rows:
        """Of rows of the same sizes and SMs keep the one with most repeats, direct ones first."""
        best: dict[tuple[tuple[int, ...], float], int] = {}
        keys = zip(map(tuple, self.batch.sizes.tolist()), self.sms.tolist(), strict=True)
        for number, key in enumerate(keys):
            kept = best.setdefault(key, number)
            if (self.weights[number], self.direct[number]) > (
                self.weights[kept],
                self.direct[kept],
            ):
                best[key] = number
        return self.take(np.array(sorted(best.values()), dtype=np.intp))

    def take(self, chosen: NDArray[np.intp]) -> Rows:
        """The rows at some positions."""
        return Rows(
            batch=self.batch.take(chosen),
            sms=self.sms[chosen],
            log_seconds=self.log_seconds[chosen],
            ideal=self.ideal.take(chosen),
            weights=self.weights[chosen],
            direct=self.direct[chosen],
            spread=self.spread[chosen],
        )


@dataclass(frozen=True, slots=True)
class Curve:
    """Log seconds over log ideal seconds of one shape, both ascending."""

    place: Array
    """log2 of the sizes that make the shape."""
    log_ideal: Array
    log_seconds: Array

    def at(self, log_ideal: Array) -> Array:
        """Linear between the points; slope 1, constant efficiency, beyond them."""
        inside = np.interp(log_ideal, self.log_ideal, self.log_seconds)
        below = np.minimum(log_ideal - self.log_ideal[0], 0.0)
        above = np.maximum(log_ideal - self.log_ideal[-1], 0.0)
        log_seconds: Array = inside + below + above
        return log_seconds

    def octaves_beyond(self, log_ideal: Array) -> Array:
        """How far outside the points' ideal times, in octaves; 0 between them."""
        below = np.maximum(self.log_ideal[0] - log_ideal, 0.0)
        above = np.maximum(log_ideal - self.log_ideal[-1], 0.0)
        octaves: Array = (below + above) / np.log(2.0)
        return np.where(octaves > SAME_PLACE, octaves, 0.0)


def fingerprints(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """[operators] one number for each set of sizes: sorting those is faster than sorting rows.

    Odd multipliers of 64 bits, wrapping; two of a million sets share one with odds of 1 in 10^7.
    """
    total = np.zeros(len(sizes), dtype=np.uint64)
    for number, column in enumerate(sizes.T):
        mixed = (column.astype(np.uint64) + np.uint64(number + 1)) * MULTIPLIER
        total = (total ^ mixed ^ (mixed >> np.uint64(29))) * MULTIPLIER
    return total.view(np.int64)


def shape_sizes(batch: Batch) -> NDArray[np.int64]:
    """[operators, sizes of the shape]; no sizes where a kind only moves bytes."""
    axes = _AXES[batch.kind] if is_tensor(batch.kind) else batch.names
    return batch.sizes[:, [name not in axes for name in batch.names]]


def shapes_of(batch: Batch) -> list[tuple[Shape, NDArray[np.intp]]]:
    """Distinct shapes, each with the positions of its operators."""
    sizes = shape_sizes(batch)
    if not sizes.shape[1]:
        return [((), np.arange(len(batch)))]
    _, first, which = np.unique(fingerprints(sizes), return_index=True, return_inverse=True)
    shapes = sizes[first]
    order = np.argsort(which, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(which))[:-1])
    return [(tuple(shape), part) for shape, part in zip(shapes.tolist(), parts, strict=True)]


def extents_of(batch: Batch) -> Array:
    """How far along its curve each operator lies: its axis, or the bytes where it moves them."""
    if not is_tensor(batch.kind):
        return batch.moved_bytes
    axis = batch.names.index(_AXES[batch.kind][0])
    extents: Array = batch.sizes[:, axis].astype(np.float64)
    return extents


def place_of(shape: Shape) -> Array:
    """log2 of the sizes that make a shape."""
    return np.log2(np.array([max(value, 1) for value in shape], dtype=np.float64))


def nearest_mean(
    curves: Sequence[Curve], relatives: Sequence[Curve], place: Array, log_ideal: Array
) -> Array:
    """Mean of the nearest curves at the same ideal time, by inverse square distance.

    Distance in octaves: between the shapes, beyond the ends of the curve, and of other types.
    """
    candidates = [*curves, *relatives]
    fixed = np.array([float(((curve.place - place) ** 2).sum()) for curve in candidates])
    fixed[len(curves) :] += OTHER_TYPES**2
    beyond = np.stack([curve.octaves_beyond(log_ideal) for curve in candidates])
    distance = fixed[:, None] + beyond**2
    values = np.stack([curve.at(log_ideal) for curve in candidates])
    chosen = np.argsort(distance, axis=0, kind="stable")[:NEAREST_CURVES]
    weights = 1.0 / (np.take_along_axis(distance, chosen, axis=0) + SAME_PLACE**2)
    weighted = weights * np.take_along_axis(values, chosen, axis=0)
    mean: Array = weighted.sum(axis=0) / weights.sum(axis=0)
    return mean


def curves_of(rows: Rows) -> dict[Shape, Curve]:
    """The curve of each shape."""
    return {shape: _curve(rows, shape, numbers) for shape, numbers in shapes_of(rows.batch)}


def _curve(rows: Rows, shape: Shape, index: NDArray[np.intp]) -> Curve:
    """The monotone curve through some rows of one shape."""
    return ascending_curve(
        rows.log_ideal[index], rows.log_seconds[index], rows.weights[index], place_of(shape)
    )


def ascending_curve(
    log_ideal: Array,
    log_seconds: Array,
    weights: Array | None = None,
    place: Array | None = None,
) -> Curve:
    """The monotone curve through points; those of equal ideal time are averaged.

    Args:
        weights: [points] equal where not given.
        place: of the curve's shape; without sizes where not given.
    """
    weights = np.ones(len(log_ideal)) if weights is None else weights
    x, group = np.unique(log_ideal.round(9), return_inverse=True)
    weight: Array = np.bincount(group, weights=weights).astype(np.float64)
    y = np.bincount(group, weights=weights * log_seconds) / weight
    return Curve(np.empty(0) if place is None else place, x, _ascending(y, weight))


def _ascending(values: Array, weights: Array) -> Array:
    """Nearest ascending sequence in weighted least squares (pool adjacent violators)."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, total, count = value, weight, 1
        while pools and pools[-1][0] > mean:
            before, before_total, before_count = pools.pop()
            mean = (before * before_total + mean * total) / (before_total + total)
            total, count = total + before_total, count + before_count
        pools.append((mean, total, count))
    return np.concatenate([np.full(count, mean) for mean, _, count in pools])


def curve_held_out(rows: Rows, others: Rows | None = None) -> Array:
    """Curves on rows that they were not drawn from.

    Returns log measured minus log predicted of each row without itself, [rows]; or, where `others`
    are given, the log seconds predicted for them, [others].
    """
    curves = curves_of(rows)
    if others is not None:
        log_seconds = np.empty(len(others))
        for shape, numbers in shapes_of(others.batch):
            log_seconds[numbers] = _from_curves(curves, shape, others.log_ideal[numbers], rows)
        return log_seconds
    errors = np.empty(len(rows))
    for shape, numbers in shapes_of(rows.batch):
        for number in numbers:
            rest = numbers[numbers != number]
            without = {name: curve for name, curve in curves.items() if name != shape}
            if len(rest):
                without[shape] = _curve(rows, shape, rest)
            x = rows.log_ideal[number : number + 1]
            errors[number] = rows.log_seconds[number] - _from_curves(without, shape, x, rows)[0]
    return errors


def _from_curves(curves: Mapping[Shape, Curve], shape: Shape, x: Array, rows: Rows) -> Array:
    """The shape's own curve between its rows, elsewhere the mean of the nearest."""
    if not curves:
        return x + float(np.median(rows.log_seconds - rows.log_ideal))
    own = curves.get(shape)
    if own is not None and not is_tensor(rows.batch.kind):
        return own.at(x)
    guess = nearest_mean(list(curves.values()), [], place_of(shape), x)
    return guess if own is None else np.where(own.octaves_beyond(x) > 0, guess, own.at(x))


def curve_residuals(rows: Rows, curves: Mapping[Shape, Curve]) -> tuple[Array, Array]:
    """Held-out log errors: rows between others of their shape, and rows of whole shapes."""
    row_errors: list[float] = []
    shape_errors: list[float] = []
    for shape, numbers in shapes_of(rows.batch):
        ordered = numbers[np.argsort(rows.log_ideal[numbers], kind="stable")]
        for left_out in range(1, len(ordered) - 1):
            rest = _curve(rows, shape, np.delete(ordered, left_out))
            row = ordered[left_out : left_out + 1]
            row_errors.extend((rows.log_seconds[row] - rest.at(rows.log_ideal[row])).tolist())
        others = [curve for other, curve in curves.items() if other != shape]
        if others:
            guess = nearest_mean(others, [], curves[shape].place, rows.log_ideal[numbers])
            shape_errors.extend((rows.log_seconds[numbers] - guess).tolist())
    return np.array(row_errors), np.array(shape_errors)
