"""Write a run as a trace for Perfetto and chrome://tracing.

One process a pipeline rank, its actions as slices; one process a distinct chunk or pair, with a
compute and a communication track on which each block (such as attn(F)) holds its operators.
Timestamps and durations are microseconds, as the format wants; arguments are SI.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reports.perfetto import name_process, name_thread, slice_of
from reports.tables import RunTables, blocks

_STREAMS = ("compute", "communication")


def trace_events(tables: RunTables) -> Iterator[dict[str, Any]]:
    """The events of the trace: names first, then slices in order of start on every track."""
    ranks = len(tables.stages)
    for rank, stages in enumerate(tables.stages):
        yield from name_process(rank + 1, f"pipeline rank {rank} (stages {stages})")
        yield from name_thread((rank + 1, 0), "actions")
    columns = ["rank", "label", "work", "chunk", "start_s", "end_s"]
    for rank, label, work, chunk, start, end in _rows(tables.actions, columns):
        arguments = {"work": work, "chunk": chunk} if chunk else {"work": work}
        yield slice_of((rank + 1, 0), label, (start, end), arguments)
    chunks = list(dict.fromkeys(tables.operators["chunk"]))
    for process, chunk in enumerate(chunks, start=ranks + 1):
        mark = " (as in the published profile)" if chunk == tables.pair else ""
        yield from name_process(process, f"chunk {chunk}{mark}")
        for thread, stream in enumerate(_STREAMS):
            yield from name_thread((process, thread), stream)
    process_of = {chunk: ranks + 1 + number for number, chunk in enumerate(chunks)}
    # A block comes before its operators, so that slices with one start nest as they should.
    for chunk, stream, layer, block, start, end in _rows(
        blocks(tables.operators), ["chunk", "stream", "layer", "block", "start_s", "end_s"]
    ):
        track = (process_of[chunk], _STREAMS.index(stream))
        yield slice_of(track, block, (start, end), {"layer": layer})
    columns = ["chunk", "stream", "name", "start_s", "end_s"]
    details = ["kind", "dtype", "sizes", "provenance", "low_s", "high_s", "flops", "bytes"]
    for row in _rows(tables.operators, columns + details):
        chunk, stream, name, start, end = row[:5]
        track = (process_of[chunk], _STREAMS.index(stream))
        yield slice_of(track, name, (start, end), dict(zip(details, row[5:], strict=True)))


def _rows(frame: Any, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Rows of a frame as plain Python values."""
    return zip(*(frame[column].tolist() for column in columns), strict=True)
