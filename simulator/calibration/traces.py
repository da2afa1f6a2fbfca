"""Read profiler traces as measured kernel times, as a mapping file says.

    result = import_trace("profile.json.gz", mapping="deepseek_training_profile")
    write_measurements(path, result.measurements)

One row is one operator at one size: the mean over its launches, their spread over the mean, and
what they ran beside. All kernels of one launch of an operator count together: one after the other
with a gap between them, or, where they share several streams, from the first start to the last end.
Nothing is lost in silence: `unmapped` lists every kernel without a row and why, `warnings` counts
what the file holds and could not be used.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from hardware_profiles.schema import load_cluster, load_gpu
from hardware_profiles.tables import Measurement
from hardware_profiles.units import Seconds, format_bandwidth
from reference_model.trace import ALL_TO_ALL_KINDS, Operator
from simulator.calibration.imported_rows import ImportedRows
from simulator.workload.profile.kernel_mapping import KernelMapping, load_mapping
from simulator.workload.profile.kineto import read_kineto
from simulator.workload.profile.mapped_kernels import (
    MappedKernel,
    best_mapping,
    gpu_of_recording,
    map_kernels,
    unmapped_kernels,
)
from simulator.workload.profile.recording import Kernel, Trace
from simulator.workload.profile.replay_graph import Role

Interval = tuple[Seconds, Seconds]


@dataclass(frozen=True, slots=True)
class _Launch:
    """One launch of an operator."""

    operator: Operator
    seconds: Seconds
    sms: int
    beside: float
    """Share of the time with kernels of the other sort (all-to-all or compute) in flight."""
    on_exchange: bool
    """Whether it ran on the stream of the all-to-all."""


def import_trace(
    path: str | Path, *, mapping: str | KernelMapping | None = None, gpu: str | None = None
) -> ImportedRows:
    """Read a profiler trace as measured kernel times.

    Args:
        mapping: shipped name or path of a mapping, or one that is loaded; the shipped one that
            names most of the kernel time where not given.
        gpu: GPU the rows are for; the trace must be recorded on it.

    Raises ValueError, one line, for a file that is no usable trace, an unknown mapping or another
    device. Kernels with broken events are left out and counted in `warnings`.
    """
    trace = read_kineto(path)
    if mapping is None:
        rules, mapped = best_mapping(trace)
    else:
        rules = load_mapping(mapping) if isinstance(mapping, str) else mapping
        mapped = map_kernels(trace, rules)
    recorded = gpu_of_recording(trace, rules, gpu)
    launches, zero = _launches(trace, rules, mapped, load_gpu(recorded).sms)
    rows = _rows(launches, rules, Path(path).name)
    lost = unmapped_kernels(trace, mapped, _why_no_row)
    total = sum(kernel.seconds for kernel in trace.kernels)
    warnings = [str(problem) for problem in trace.problems]
    if zero:
        warnings.append(f"{len(zero)} x operator of no measurable time: {', '.join(sorted(zero))}")
    share = sum(entry.seconds for entry in lost) / total if total else 0.0
    return ImportedRows(
        measurements=rows,
        read_by=(f"{rules.name}, {share:.1%} of the kernel time unmapped",),
        warnings=tuple(f"{Path(path).name}: {text}" for text in warnings),
        unmapped=lost,
    )


def _why_no_row(_: Kernel, place: MappedKernel) -> str | None:
    if place.operator is None:
        return place.reason
    by_bytes = place.operator.kind == "memory_bound"
    return "is told by its bytes only, which no table is of" if by_bytes else None


def _launches(
    trace: Trace, mapping: KernelMapping, mapped: Sequence[MappedKernel], sms: int
) -> tuple[list[_Launch], set[str]]:
    """Launches of operators, and the names of those too short for the profiler's clock."""
    start = trace.kernel_start_s
    spans = [(float(s), float(s) + k.seconds) for s, k in zip(start, trace.kernels, strict=True)]
    exchange = [i for i, place in enumerate(mapped) if place.role is Role.COMMUNICATION]
    exchange_streams = {trace.kernels[i].stream for i in exchange}
    exchanging = _union([spans[i] for i in exchange])
    computing = _union(
        [
            span
            for span, kernel in zip(spans, trace.kernels, strict=True)
            if kernel.stream not in exchange_streams
        ]
    )
    taken = max((trace.kernels[i].blocks for i in exchange), default=0)
    # Longer gaps are the host's, not the kernels'.
    gap = min(_gap(trace, spans), mapping.gap.high)
    members: dict[tuple[tuple[str, int, int], Operator], list[int]] = defaultdict(list)
    for index, place in enumerate(mapped):
        if place.operator is not None and place.operator.kind != "memory_bound":
            members[place.launch, place.operator].append(index)
    launches: list[_Launch] = []
    zero: set[str] = set()
    for chosen in members.values():
        operator = mapped[chosen[0]].operator
        assert operator is not None
        main = [i for i in chosen if mapped[i].label not in mapping.helpers]
        busy = sum(trace.kernels[i].seconds for i in main)
        seconds = busy + gap * (len(main) - 1)
        if len({trace.kernels[i].stream for i in main}) > 1:
            seconds = max(spans[i][1] for i in main) - min(spans[i][0] for i in main)
        seconds += sum(trace.kernels[i].seconds + gap for i in chosen if i not in main)
        if seconds <= 0:
            zero.add(operator.name)
            continue
        on_exchange = trace.kernels[main[0]].stream in exchange_streams
        others = computing if on_exchange else exchanging
        shared = sum(_covered(spans[i], others) for i in main) / busy if busy else 0.0
        free = sms - taken
        if on_exchange:
            free = taken if shared or mapped[main[0]].role is Role.COMMUNICATION else sms
        launches.append(_Launch(operator, seconds, free, min(shared, 1.0), on_exchange))
    return launches, zero


def _rows(
    launches: Sequence[_Launch], mapping: KernelMapping, source: str
) -> tuple[Measurement, ...]:
    groups: dict[tuple[object, ...], list[_Launch]] = defaultdict(list)
    for launch in launches:
        op = launch.operator
        types = (op.dtype, op.out_dtype, op.accumulate)
        groups[op.kind, op.sizes, *types, launch.sms].append(launch)
    exchanges = any(launch.on_exchange for launch in launches)
    network = _network(mapping)
    rows = []
    for group in groups.values():
        op = group[0].operator
        seconds = [launch.seconds for launch in group]
        mean = statistics.fmean(seconds)
        share = sum(launch.beside * launch.seconds for launch in group) / sum(seconds)
        conditions = {
            "set": mapping.kernel_set,
            "out_dtype": op.out_dtype,
            "repeats": str(len(group)),
        }
        if op.accumulate:
            conditions["accumulate"] = "yes"
        if op.kind in ALL_TO_ALL_KINDS:
            conditions |= network
        if group[0].on_exchange:
            conditions |= {"beside": "compute"} if share else {}
        elif exchanges:
            conditions |= {"pair": "yes"} | ({"all_to_all": f"{share:.3f}"} if share else {})
        names = ", ".join(sorted({launch.operator.name for launch in group}))
        rows.append(
            Measurement(
                kind=op.kind,
                sizes=op.sizes,
                dtype=op.dtype,
                sms=group[0].sms,
                seconds=mean,
                spread=statistics.stdev(seconds) / mean if len(group) > 1 else None,
                source=f"{source}: {names}",
                conditions=tuple(sorted(conditions.items())),
            )
        )
    return tuple(sorted(rows, key=lambda row: (row.kind, row.sizes, row.dtype, row.sms)))


def _network(mapping: KernelMapping) -> dict[str, str]:
    """Conditions of dispatch and combine: nodes of the group and the line rate between them."""
    if mapping.cluster is None or mapping.expert_parallel_ranks is None:
        return {}
    node = load_cluster(mapping.cluster).node
    return {
        "nodes": str(max(1, mapping.expert_parallel_ranks // node.gpus)),
        "nic": format_bandwidth(node.nic_bandwidth_per_gpu),
    }


def _gap(trace: Trace, spans: Sequence[Interval]) -> Seconds:
    """Median time between two kernels of one stream."""
    by_stream: dict[int, list[Interval]] = defaultdict(list)
    for kernel, span in zip(trace.kernels, spans, strict=True):
        by_stream[kernel.stream].append(span)
    gaps = [
        max(0.0, after[0] - before[1])
        for found in by_stream.values()
        for before, after in pairwise(sorted(found))
    ]
    return statistics.median(gaps) if gaps else 0.0


def _union(spans: Sequence[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def _covered(span: Interval, others: Sequence[Interval]) -> Seconds:
    """How much of the span lies inside the union `others`."""
    covered = 0.0
    for begin, end in others[max(0, bisect_left(others, span) - 1) :]:
        if begin >= span[1]:
            break
        covered += max(0.0, min(end, span[1]) - max(begin, span[0]))
    return covered
