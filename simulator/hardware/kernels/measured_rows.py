"""Measured rows of one kernel family, and what tells its shapes apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.hardware.kernels.roofline import Batch, Ideal, is_tensor

Array = NDArray[np.float64]
Index = NDArray[np.intp]

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio, as in Fibonacci hashing."""

# The sizes that a load changes; the other sizes make the shape.
_LOADED: Mapping[str, tuple[str, ...]] = {
    "gemm": ("m",),
    "grouped_gemm": ("rows",),
    "masked_grouped_gemm": ("rows",),
    "grouped_gemm_weight_grad": ("rows",),
    "batched_gemm": ("m",),
    "attention_forward": ("kv_length", "query_length"),
    "attention_backward": ("kv_length", "query_length"),
    "attention_masked_forward": ("kv_length", "query_length"),
    "attention_masked_backward": ("kv_length", "query_length"),
    "index_scores": ("kv_length", "query_length"),
    "sparse_mla": ("kv_length", "query_length"),
    "mla_decode": ("kv_length",),
    "mla_prefill": ("kv_length", "query_length"),
}

Shape = tuple[int, ...]
"""The sizes that no load changes, in the order of their names."""


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
    slowed: Array
    """Share of its time that an all-to-all slows: of a row of a pair as it was, else all."""

    def __len__(self) -> int:
        return len(self.batch)

    def without_redundant(self) -> Rows:
        """Keep of rows of the same sizes and SMs the one with most repeats, direct ones first."""
        marks = fingerprints(np.column_stack([self.batch.sizes, self.sms.astype(np.int64)]))
        order = np.lexsort((~self.direct, -self.weights, marks))
        best = np.concatenate([[True], np.diff(marks[order]) != 0])
        return self if best.all() else self.take(np.sort(order[best]))

    def take(self, chosen: Index) -> Rows:
        """The rows at some positions."""
        return Rows(
            batch=self.batch.take(chosen),
            sms=self.sms[chosen],
            log_seconds=self.log_seconds[chosen],
            ideal=self.ideal.take(chosen),
            weights=self.weights[chosen],
            direct=self.direct[chosen],
            spread=self.spread[chosen],
            slowed=self.slowed[chosen],
        )


def fingerprints(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """[operators] one number for each set of sizes: sorting those is faster than sorting rows.

    Odd multipliers of 64 bits, wrapping; two of a million sets share one with odds of 1 in 10^7.
    """
    total = np.zeros(len(sizes), dtype=np.uint64)
    for number, column in enumerate(sizes.T):
        mixed = (column.astype(np.uint64) + np.uint64(number + 1)) * MULTIPLIER
        total = (total ^ mixed ^ (mixed >> np.uint64(29))) * MULTIPLIER
    return total.view(np.int64)


def shape_sizes(batch: Batch) -> tuple[str, ...]:
    """Names of the sizes that no load changes."""
    loaded = _LOADED[batch.kind] if is_tensor(batch.kind) else batch.names
    return tuple(name for name in batch.names if name not in loaded)


def shapes_of(batch: Batch) -> list[tuple[Shape, Index]]:
    """Distinct shapes, each with the positions of its operators; of kernels that only move bytes
    there is one."""
    sizes = batch.sizes[:, [batch.names.index(name) for name in shape_sizes(batch)]]
    if not sizes.shape[1]:
        return [((), np.arange(len(batch)))]
    _, first, which = np.unique(fingerprints(sizes), return_index=True, return_inverse=True)
    shapes = sizes[first]
    order = np.argsort(which, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(which))[:-1])
    return [(tuple(shape), part) for shape, part in zip(shapes.tolist(), parts, strict=True)]


def extents_of(batch: Batch) -> Array:
    """How far along its shape each operator lies: its load, or the bytes where it moves them."""
    if not is_tensor(batch.kind):
        return batch.moved_bytes
    axis = batch.names.index(_LOADED[batch.kind][0])
    extents: Array = batch.sizes[:, axis].astype(np.float64)
    return extents
