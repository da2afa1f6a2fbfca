"""Make a profile of low-latency dispatch and combine kernels from rows of one node, and judge it.

Their time grows with copies from an intercept (hardware_profiles/low_latency_kernels.py). One row,
of the tokens nearest to those that DeepEP's buffers hold, says what the links achieve; the
intercept is that of least relative error over the rows of fewer tokens, and leaves copies to other
GPUs at least their time at line rate. No such row says how a kernel's time is shared between its
sending and its receiving half; the receiving half is that of the shipped profile.

Errors are those of rows of one number of tokens, predicted by the others. SI units; errors are log
measured minus log predicted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.fields import Raw
from hardware_profiles.low_latency_kernels import (
    LowLatencyProfile,
    MoeOperation,
    fp8_row_bytes,
    load_low_latency,
    message_bytes,
)
from hardware_profiles.same_gpu import same_gpu
from hardware_profiles.schema import GpuProfile, known_clusters, load_cluster
from hardware_profiles.tables import Measurement
from hardware_profiles.units import Seconds, parse_quantity
from simulator.calibration.collective_fit import half_width

Array = NDArray[np.float64]

_OPERATIONS: tuple[MoeOperation, ...] = get_args(MoeOperation)
BASE = "deepep_h200_nvlink"
"""Shipped profile of the same link, whose receiving kernels and buffers are taken over."""
TOKENS, TOP_K, EXPERTS = 128, 8, 256
"""Of a rank's buffers in DeepEP's tests, and of DeepSeek-V3: rows of the nearest ones are taken."""
LEAST_SIZES = 3
"""Numbers of tokens up to that row, itself among them, that an intercept needs."""


@dataclass(frozen=True, slots=True)
class FittedLowLatency:
    """Low-latency kernels among the GPUs of one node, as their rows say."""

    gpu: GpuProfile
    gpus_per_node: int
    tokens: int
    hidden: int
    top_k: int
    experts: int
    seconds: Mapping[MoeOperation, Seconds]
    """Of so many tokens, as measured."""
    intercepts: Mapping[MoeOperation, Seconds]
    longest: Mapping[MoeOperation, Seconds]
    """That an intercept can be, on links at line rate."""
    left_out: Mapping[MoeOperation, Array]
    """[numbers of tokens] errors of rows that had no part in the intercept."""
    source: str


def is_low_latency(row: Measurement) -> bool:
    """Whether a row is of low-latency kernels within one node, alone, that copied anything."""
    alone = row.layout == "low_latency" and not row.beside_compute
    copied = all(size > 0 for _, size in row.sizes)
    return row.kind in _OPERATIONS and alone and row.nodes == 1 and copied


def fit_low_latency(
    rows: Iterable[Measurement], *, gpu: GpuProfile, gpus_per_node: int | None = None
) -> FittedLowLatency | None:
    """What rows say of low-latency kernels; None where no experts have rows of three numbers of
    tokens of both directions.

    Args:
        gpu: that was measured.
        gpus_per_node: among which; None for those of the shipped clusters of that GPU.

    Raises ValueError where neither says how many.
    """
    tables: dict[tuple[int, ...], dict[str, dict[int, list[Measurement]]]] = {}
    for row in filter(is_low_latency, rows):
        sizes = dict(row.sizes)
        experts = int(row.condition("experts", str(EXPERTS)))
        table = tables.setdefault((sizes["top_k"], experts, sizes["hidden"]), {})
        table.setdefault(row.kind, {}).setdefault(sizes["tokens"], []).append(row)
    counts = {
        key: _up_to_buffers(set.intersection(*(set(table.get(kind, ())) for kind in _OPERATIONS)))
        for key, table in tables.items()
    }
    known = [key for key, tokens in counts.items() if len(tokens) >= LEAST_SIZES]
    if not known:
        return None
    nearest = min(known, key=lambda key: (_octaves(key[0], TOP_K), _octaves(key[1], EXPERTS), key))
    tokens, table = np.array(counts[nearest], dtype=float), tables[nearest]
    times = {
        kind: np.array(
            [np.median([row.seconds for row in table[kind][count]]) for count in counts[nearest]]
        )
        for kind in _OPERATIONS
    }
    top_k, experts, hidden = nearest
    among = gpus_per_node or _of_shipped_nodes(gpu)
    # Copies that leave for other GPUs, experts lying evenly on all.
    others = tokens[-1] * top_k * (among - 1) / among
    most = {
        kind: _longest_intercept(kind, of[-1], gpu, copies=others, hidden=hidden)
        for kind, of in times.items()
    }
    return FittedLowLatency(
        gpu=gpu,
        gpus_per_node=among,
        tokens=counts[nearest][-1],
        hidden=hidden,
        top_k=top_k,
        experts=experts,
        seconds={kind: float(of[-1]) for kind, of in times.items()},
        intercepts={kind: _intercept(tokens, of, most[kind]) for kind, of in times.items()},
        longest=most,
        left_out={kind: _left_out(tokens, of, most[kind]) for kind, of in times.items()},
        source=table[_OPERATIONS[0]][counts[nearest][-1]][0].source,
    )


def _octaves(value: int, of: int) -> float:
    return abs(float(np.log2(value / of)))


def _up_to_buffers(tokens: Collection[int]) -> list[int]:
    """Ascending numbers of tokens up to the one that is nearest to what buffers hold."""
    last = min(tokens, key=lambda count: _octaves(count, TOKENS), default=0)
    return sorted(count for count in tokens if count <= last)


def _longest_intercept(
    operation: MoeOperation, seconds: Seconds, gpu: GpuProfile, *, copies: float, hidden: int
) -> Seconds:
    """What a time leaves once copies to other GPUs have crossed the link at line rate; none where
    it was shorter than that."""
    message = message_bytes(hidden, dispatched=fp8_row_bytes(hidden))[operation]
    return max(0.0, seconds - copies * message / gpu.nvlink_bandwidth)


def _intercept(tokens: Array, seconds: Array, most: Seconds) -> Seconds:
    """Time of no tokens, at most `most`, on the line through the last row that is nearest to the
    others.

    The least sum of absolute log errors lies at the intercept of some row's own line.
    """
    share = tokens[:-1] / tokens[-1]
    own = (seconds[:-1] - share * seconds[-1]) / (1.0 - share)
    candidates = np.clip(own, 0.0, most)[:, None]
    line = candidates + (seconds[-1] - candidates) * share
    errors = np.abs(np.log(line / seconds[:-1])).sum(axis=1)
    return float(candidates[errors.argmin(), 0])


def _left_out(tokens: Array, seconds: Array, most: Seconds) -> Array:
    """[tokens but the last] errors of rows by the line of the others."""
    found = []
    for out in range(len(tokens) - 1):
        kept = np.arange(len(tokens)) != out
        start = _intercept(tokens[kept], seconds[kept], most)
        line = start + (seconds[-1] - start) * tokens[out] / tokens[-1]
        found.append(np.log(seconds[out] / line))
    return np.array(found)


def low_latency_kernels(name: str, fitted: FittedLowLatency) -> Raw:
    """What a profile's file says of fitted kernels."""
    base, gpu, ranks = load_low_latency(BASE), fitted.gpu, fitted.gpus_per_node
    rows = (
        f"{fitted.source}: 1 node, {fitted.tokens} tokens, top {fitted.top_k} of {fitted.experts}"
    )
    times = {operation: _us(seconds) for operation, seconds in fitted.seconds.items()}
    return {
        "name": name,
        "link": "nvlink",
        "link_bandwidth": f"{gpu.nvlink_bandwidth / _GB:g} GB/s",
        "tokens": fitted.tokens,
        "hidden": fitted.hidden,
        "top_k": fitted.top_k,
        "buffers": base.buffers,
        "header": f"{base.header:g} B",
        "latency": _us(base.latency),
        "intercepts": [
            {"ranks": ranks, **{kind: _start(fitted, kind) for kind in fitted.intercepts}}
        ],
        **_halves(fitted, base),
        "rows": [{"ranks": ranks, **times}],
        "sources": {
            "rows": f"{rows}, among the {ranks} GPUs of a node",
            "link_bandwidth": f"hardware profile of {gpu.name}",
            **dict.fromkeys(("latency", "buffers", "header"), f"as {BASE}"),
        },
    }


def _start(fitted: FittedLowLatency, operation: MoeOperation) -> Raw:
    """An intercept, whose ends are those of the error of rows left out."""
    value, errors = fitted.intercepts[operation], np.abs(fitted.left_out[operation])
    width = half_width(errors)
    off = np.expm1(errors)
    return {
        "value": _us(value),
        "low": _us(value * np.exp(-width)),
        "high": _us(min(value * np.exp(width), fitted.longest[operation])),
        "source": "the rows of fewer tokens: intercept of the line through that of "
        f"{fitted.tokens}. Rows of one token count predicted without themselves: "
        f"{np.median(off):.1%} off in median, {off.max():.1%} at most",
    }


def _halves(fitted: FittedLowLatency, base: LowLatencyProfile) -> Raw:
    """Sending and receiving kernels: what one does not take is the other's."""
    found: Raw = {}
    for operation, seconds in fitted.seconds.items():
        received = getattr(base, f"{operation}_receive")
        found[f"{operation}_receive"] = {
            "value": _us(received.value),
            "low": _us(received.low),
            "high": _us(received.high),
            "source": f"as {BASE}: {received.source}",
        }
        left = [max(0.0, seconds - at) for at in (received.value, received.high, received.low)]
        found[f"{operation}_send"] = {
            **dict(zip(("value", "low", "high"), map(_us, left), strict=True)),
            "source": "derived: within a node the send kernel stores every copy over NVLink "
            f"itself, so it takes the whole {operation} but for {operation}_receive",
        }
    return found


def _of_shipped_nodes(gpu: GpuProfile) -> int:
    """GPUs per node of the shipped clusters of a GPU."""
    nodes = (load_cluster(name).node for name in known_clusters())
    of_gpu = [node.gpus for node in nodes if same_gpu(node.gpu, gpu)]
    if not of_gpu:
        raise ValueError(
            f"low-latency kernels within one node: no shipped cluster has the GPU {gpu.name}, so "
            "that GPUs per node are not known; allowed: --gpus-per-node 8"
        )
    return max(of_gpu)


_GB = parse_quantity("1 GB/s", "bandwidth", "")
_MICROSECOND = parse_quantity("1 us", "time", "")


def _us(seconds: Seconds) -> str:
    return f"{seconds / _MICROSECOND:.5g} us"
