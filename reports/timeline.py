"""Write a run as a trace for Perfetto and chrome://tracing.

One process a pipeline rank, its actions as slices; one process a distinct chunk or pair, with a
compute and a communication track on which each block (such as attn(F)) holds its operators.
Timestamps and durations are microseconds, as the format wants; arguments are SI.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hardware_profiles.units import Seconds, unit_factor
from reports.tables import RunTables, blocks

_MICROSECOND = unit_factor("us", "time")
_STREAMS = ("compute", "communication")


def write_perfetto(tables: RunTables, path: Path) -> None:
    """Write the trace of a run."""
    trace = {"displayTimeUnit": "ms", "traceEvents": list(trace_events(tables))}
    path.write_text(json.dumps(trace, separators=(",", ":"), allow_nan=False), encoding="utf-8")


def trace_events(tables: RunTables) -> Iterator[dict[str, Any]]:
    """The events of the trace: names first, then slices in order of start on every track."""
    ranks = len(tables.stages)
    for rank, stages in enumerate(tables.stages):
        yield from _name_process(rank + 1, f"pipeline rank {rank} (stages {stages})")
        yield _metadata("thread_name", rank + 1, 0, name="actions")
    columns = ["rank", "label", "work", "chunk", "start_s", "end_s"]
    for rank, label, work, chunk, start, end in _rows(tables.actions, columns):
        arguments = {"work": work, "chunk": chunk} if chunk else {"work": work}
        yield _slice((rank + 1, 0), label, (start, end), arguments)
    chunks = list(dict.fromkeys(tables.operators["chunk"]))
    for process, chunk in enumerate(chunks, start=ranks + 1):
        mark = " (as in the published profile)" if chunk == tables.pair else ""
        yield from _name_process(process, f"chunk {chunk}{mark}")
        for thread, stream in enumerate(_STREAMS):
            yield _metadata("thread_name", process, thread, name=stream)
            yield _metadata("thread_sort_index", process, thread, sort_index=thread)
    process_of = {chunk: ranks + 1 + number for number, chunk in enumerate(chunks)}
    # A block comes before its operators, so that slices with one start nest as they should.
    for chunk, stream, layer, block, start, end in _rows(
        blocks(tables.operators), ["chunk", "stream", "layer", "block", "start_s", "end_s"]
    ):
        track = (process_of[chunk], _STREAMS.index(stream))
        yield _slice(track, block, (start, end), {"layer": layer})
    columns = ["chunk", "stream", "name", "start_s", "end_s"]
    details = ["kind", "dtype", "sizes", "provenance", "low_s", "high_s", "flops", "bytes"]
    for row in _rows(tables.operators, columns + details):
        chunk, stream, name, start, end = row[:5]
        track = (process_of[chunk], _STREAMS.index(stream))
        yield _slice(track, name, (start, end), dict(zip(details, row[5:], strict=True)))


def _rows(frame: Any, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Rows of a frame as plain Python values."""
    return zip(*(frame[column].tolist() for column in columns), strict=True)


def _slice(
    track: tuple[int, int], name: str, span: tuple[Seconds, Seconds], arguments: dict[str, Any]
) -> dict[str, Any]:
    """A slice on the track (process, thread)."""
    # Whole nanoseconds at both ends keep slices of one track from overlapping by rounding.
    first, last = (round(instant / _MICROSECOND, 3) for instant in span)
    return {
        "ph": "X",
        "pid": track[0],
        "tid": track[1],
        "name": name,
        "ts": first,
        "dur": round(last - first, 3),
        "args": arguments,
    }


def _name_process(process: int, name: str) -> Iterator[dict[str, Any]]:
    yield _metadata("process_name", process, 0, name=name)
    yield _metadata("process_sort_index", process, 0, sort_index=process)


def _metadata(kind: str, process: int, thread: int, **arguments: Any) -> dict[str, Any]:
    return {"ph": "M", "pid": process, "tid": thread, "name": kind, "args": arguments}
