"""Fit curves of collective operations to measured rows, and judge them on sizes left out.

A curve goes through the median of each size's rows, of repeats and of types that move the same
bytes; neighbouring sizes whose medians fall are pooled, because no operation is faster than a
smaller one. Integers are summed by other kernels than floating-point numbers (switches do not add
them), so sums of int8 are an operation of their own.

Errors are those of sizes left out: all rows of one operation and size, of every number of GPUs,
are predicted from all other sizes. SI units; errors are log measured minus log predicted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.fields import Raw
from hardware_profiles.measured_collectives import CollectiveKind
from hardware_profiles.schema import GpuProfile
from hardware_profiles.tables import Measurement
from hardware_profiles.units import parse_quantity
from simulator.hardware.network.collective_times import SizeCurve, seconds_at, sent_share

Array = NDArray[np.float64]
Key = tuple[str, str]
"""Operation and types."""

KINDS: frozenset[str] = frozenset(get_args(CollectiveKind))
SUMS = frozenset({"all_reduce", "reduce_scatter"})
RANGES = tuple(parse_quantity(text, "data", "") for text in ("64 KiB", "16 MiB"))
"""Ends of the ranges of size whose errors are counted apart: up to the first, starts decide; up to
the second, protocols change; beyond, links decide."""
OTHER_LINK = 1.25
"""Time at another NVLink rate over the restated one, either way: a stated prior, as no two hosts
differ by their links alone."""
UNKNOWN_RANKS = 0.5
"""Log error at other numbers of GPUs where only one is measured: assumed, a factor of 1.65."""
QUANTILE = 0.8

NICS_AS = "deepep_h800"
"""Transport whose share of a NIC's rate stands for that of rows within one host."""


@dataclass(frozen=True, slots=True)
class CollectiveErrors:
    """Rows of one operation that others predicted; arrays [rows]."""

    size: Array
    ranks: NDArray[np.int64]
    error: Array
    noise: Array
    """[rows that were repeated], log of each over the median of its repeats; what no curve gets
    below."""

    @property
    def group(self) -> NDArray[np.intp]:
        """[rows] range of size, a position in RANGES or one beyond."""
        return np.searchsorted(np.array(RANGES), self.size)

    @property
    def covered(self) -> NDArray[np.bool_]:
        """[rows] whether the interval that the errors of the range's other sizes make holds it."""
        group, inside = self.group, []
        for size, number, error in zip(self.size, group, self.error, strict=True):
            others = np.abs(self.error[(group == number) & (self.size != size)])
            inside.append(bool(len(others)) and abs(error) <= half_width(others))
        return np.array(inside, dtype=bool)


def fit_collectives(
    rows: Iterable[Measurement], *, gpu: GpuProfile, library: str
) -> tuple[Raw, Mapping[Key, CollectiveErrors]]:
    """`measured` of a transport's file, and the errors of its left-out sizes by operation.

    Raises ValueError where no operation has rows of three sizes at one number of GPUs.
    """
    operations, errors = [], {}
    for key, table in tables_of(rows).items():
        found = leave_sizes_out(table)
        if not len(found.error):
            continue
        errors[key] = found
        operations.append(_operation(key, table, found))
    if not operations:
        raise ValueError(
            "collective operations: no rows of three sizes of one operation at one number of GPUs; "
            f"known operations: {', '.join(sorted(KINDS))}"
        )
    measured = {
        "gpu": gpu.name,
        "nvlink_bandwidth": f"{gpu.nvlink_bandwidth / _GB:g} GB/s",
        "library": library,
        "other_link": OTHER_LINK,
        "operations": operations,
    }
    return measured, errors


def repeat_noise(rows: Sequence[Measurement]) -> Array:
    """[rows that were repeated] log of each over the median of all repeats of its size."""
    repeats: dict[tuple[int, int, str], list[float]] = {}
    for row in rows:
        key = (_size(row, "bytes"), _size(row, "ranks"), row.dtype)
        repeats.setdefault(key, []).append(np.log(row.seconds))
    found = [np.array(each) - np.median(each) for each in repeats.values() if len(each) > 1]
    return np.concatenate([np.zeros(0), *found])


def half_width(errors: Array) -> float:
    """The half-width of an interval that holds one more error of the same kind with 80%
    (split conformal): the error of rank 0.8 (n + 1) of n, the largest where that is beyond them.

    Args:
        errors: [rows] absolute log errors, at least one.
    """
    rank = min(len(errors), int(np.ceil(QUANTILE * (len(errors) + 1))))
    return max(float(np.sort(errors)[rank - 1]), 1e-4)


def tables_of(rows: Iterable[Measurement]) -> dict[Key, list[Measurement]]:
    """{(operation, types): rows of collective operations}, sorted."""
    tables: dict[Key, list[Measurement]] = {}
    for row in rows:
        if row.kind in KINDS:
            types = "int8" if row.dtype == "int8" and row.kind in SUMS else "any"
            tables.setdefault((row.kind, types), []).append(row)
    return dict(sorted(tables.items()))


def group_curves(rows: Sequence[Measurement]) -> tuple[SizeCurve, ...]:
    """One curve for each number of GPUs that has rows of two sizes."""
    by_ranks: dict[int, dict[int, list[float]]] = {}
    for row in rows:
        by_size = by_ranks.setdefault(_size(row, "ranks"), {})
        by_size.setdefault(_size(row, "bytes"), []).append(row.seconds)
    return tuple(
        SizeCurve.through(_points(by_size), ranks=ranks)
        for ranks, by_size in sorted(by_ranks.items())
        if len(by_size) > 1
    )


def leave_sizes_out(rows: Sequence[Measurement]) -> CollectiveErrors:
    """Errors of the rows of one operation, all of a size predicted from its other sizes.

    Rows of numbers of GPUs that have no two other sizes are passed over.
    """
    found = []
    for left_out in sorted({_size(row, "bytes") for row in rows}):
        kept = group_curves([row for row in rows if _size(row, "bytes") != left_out])
        by_ranks = {curve.ranks: curve for curve in kept}
        for row in rows:
            curve = by_ranks.get(_size(row, "ranks"))
            if _size(row, "bytes") == left_out and curve is not None:
                error = np.log(row.seconds) - curve.log_at(left_out)
                found.append((float(left_out), curve.ranks, float(error)))
    return _errors(found, rows)


def leave_ranks_out(rows: Sequence[Measurement], ranks: int) -> CollectiveErrors:
    """Errors of all rows at one number of GPUs, predicted from the other numbers."""
    others = group_curves([row for row in rows if _size(row, "ranks") != ranks])
    return _errors(
        [
            (float(size), ranks, np.log(row.seconds / seconds_at(row.kind, others, size, ranks)))
            for row in rows
            for size in (_size(row, "bytes"),)
            if others and _size(row, "ranks") == ranks
        ],
        rows,
    )


_GB = parse_quantity("1 GB/s", "bandwidth", "")
_MICROSECOND = parse_quantity("1 us", "time", "")


def _size_text(size: float) -> str:
    """Bytes in the largest binary unit that they are a whole number of."""
    for unit in ("GiB", "MiB", "KiB"):
        number = size / parse_quantity(f"1 {unit}", "data", "")
        if abs(number - round(number)) < 1e-6 * number and number > 0.5:
            return f"{round(number)} {unit}"
    return f"{round(size)} B"


def _size(row: Measurement, name: str) -> int:
    return dict(row.sizes)[name]


def _errors(
    found: Sequence[tuple[float, int, float]], rows: Sequence[Measurement]
) -> CollectiveErrors:
    size, ranks, error = np.array(found, dtype=float).reshape(-1, 3).T
    return CollectiveErrors(size, ranks.astype(np.int64), error, repeat_noise(rows))


def _points(by_size: Mapping[int, Sequence[float]]) -> dict[float, float]:
    """{bytes: seconds}: medians, neighbours that fall pooled to the median of all their rows."""
    pooled: list[tuple[list[int], list[float]]] = []
    for size, seconds in sorted(by_size.items()):
        pooled.append(([size], list(seconds)))
        while len(pooled) > 1 and np.median(pooled[-2][1]) > np.median(pooled[-1][1]):
            sizes, rows = pooled.pop()
            pooled[-1] = (pooled[-1][0] + sizes, pooled[-1][1] + rows)
    return {float(size): float(np.median(rows)) for sizes, rows in pooled for size in sizes}


def _operation(key: Key, rows: Sequence[Measurement], errors: CollectiveErrors) -> Raw:
    """Curves of one operation as a file has them, with what left-out sizes say about them."""
    curves = group_curves(rows)
    parts = []
    for number in np.unique(errors.group):
        chosen = errors.group == number
        found = np.abs(errors.error[chosen])
        parts.append(
            {
                "up_to": _size_text(errors.size[chosen].max()),
                "rows": len(found),
                "median": round(float(np.median(np.expm1(found))), 4),
                "p90": round(float(np.quantile(np.expm1(found), 0.9)), 4),
                "quantile_80": round(half_width(found), 4),
            }
        )
    others = np.abs(leave_ranks_out(rows, curves[-1].ranks).error)
    further = half_width(others) if len(others) else UNKNOWN_RANKS
    return {
        "operation": key[0],
        "types": key[1],
        "curves": [
            {
                "ranks": curve.ranks,
                "points": {
                    _size_text(size): f"{seconds / _MICROSECOND:.4g} us"
                    for size, seconds in zip(
                        np.exp(curve.log_size), np.exp(curve.log_seconds), strict=True
                    )
                },
            }
            for curve in curves
        ],
        "left_out": parts,
        "other_ranks": round(further, 4),
    }


def transport_of(
    name: str, rows: Sequence[Measurement], *, gpu: GpuProfile, library: str, source: str
) -> tuple[Raw, Mapping[Key, CollectiveErrors]]:
    """A transport's file of measured collective operations, and the errors of its left-out sizes by
    operation and types.

    The achieved share of NVLink, for what has no rows, is that of the largest all-gather among most
    GPUs, with that of all operations as its interval. NICs are not measured within a host: theirs
    is that of NICS_AS.

    Args:
        source: of the rows, in words.
    """
    measured, errors = fit_collectives(rows, gpu=gpu, library=library)
    measured["sources"] = {
        "operations": f"{source}; median of each size's rows, left_out as if a size had none",
        "other_link": "assumed: no two hosts differ by their links alone",
    }
    shortest = min(
        curve.shortest for table in tables_of(rows).values() for curve in group_curves(table)
    )
    raw = {
        "name": name,
        "achieved": {
            "nic": NICS_AS,
            "nvlink": _nvlink_share(rows, gpu, source),
        },
        "start": f"{shortest / _MICROSECOND:.4g} us",
        "message_overhead": "4.65 ns",
        "copy_bandwidth_per_sm": "1000 TB/s",
        "chunk_tokens": 1,
        "sms_per_channel": 1,
        "measured": measured,
        "sources": {
            "start": "assumed, of operations without rows: that of the shortest with",
            "message_overhead": "assumed: 215 million messages a second, NVIDIA's figure for the "
            "ConnectX-6; no limit at these sizes",
            "copy_bandwidth_per_sm": "no limit: the library takes the SMs that it needs",
        },
    }
    return raw, errors


def fitted_transport(
    name: str, rows: Sequence[Measurement], *, gpu: GpuProfile
) -> tuple[Raw, Mapping[Key, CollectiveErrors]] | None:
    """The transport of what a calibration's rows hold of collective operations; None where no
    operation has rows of three sizes at one number of GPUs."""
    mine = [row for row in rows if row.kind in KINDS]
    judged = any(len(leave_sizes_out(table).error) for table in tables_of(mine).values())
    if not judged:
        return None
    library = ", ".join(dict.fromkeys(row.kernel_set for row in mine))
    source = "; ".join(dict.fromkeys(row.source for row in mine))
    return transport_of(name, mine, gpu=gpu, library=library, source=source)


def beside_text(raw: Raw) -> str:
    """A file that is written beside a calibration."""
    import yaml

    head = "# Written by `dsv3sim calibrate`.\n"
    return head + yaml.safe_dump(raw, sort_keys=False, width=100, default_flow_style=None)


def _nvlink_share(rows: Sequence[Measurement], gpu: GpuProfile, source: str) -> Raw:
    """Bytes that a GPU sends over time and line rate, where links decide."""
    shares = [
        (key == ("all_gather", "any"), curve.ranks, _share(key[0], curve, gpu))
        for key, table in tables_of(rows).items()
        for curve in group_curves(table)
        if np.exp(curve.log_size[-1]) >= RANGES[-1]
    ]
    if not shares:
        return {
            "value": 0.75,
            "low": 0.5,
            "high": 0.95,
            "source": "assumed: no row is large enough for links to decide; as on Hopper hosts",
        }
    return {
        "value": max(shares)[-1],
        "low": min(share for *_, share in shares),
        "high": max(share for *_, share in shares),
        "source": f"{source}; all-gather of the largest size among most GPUs, bytes that a GPU "
        "sends over time and line rate; ends: all operations",
    }


def _share(operation: str, curve: SizeCurve, gpu: GpuProfile) -> float:
    size, seconds = np.exp(curve.log_size[-1]), np.exp(curve.log_seconds[-1])
    rate = float(sent_share(operation, curve.ranks) * size / seconds)
    return round(min(1.0, rate / gpu.nvlink_bandwidth), 3)
