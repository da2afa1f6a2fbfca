"""Write what ran when as a trace that Perfetto and chrome://tracing open.

The trace-event format: processes and threads with names, slices, flow arrows from one slice to
another, and counters. Times and durations are microseconds, as the format wants; arguments are SI.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from hardware_profiles.units import Seconds, unit_factor

PERFETTO_FILE = "perfetto.json"

Event: TypeAlias = dict[str, Any]
Track: TypeAlias = tuple[int, int]
"""(process, thread)"""
OnTrack: TypeAlias = tuple[Track, Seconds]
"""A place on a track that an arrow begins or ends at; a slice has to be there."""

_MICROSECOND = unit_factor("us", "time")
_NANO = 1e-3
_AT_ONCE = 1000


def write_trace(events: Iterable[Event], path: Path) -> None:
    """Write events as a trace file; they are never held all at once."""
    encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False).encode
    left = iter(events)
    with path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[')
        between = ""
        while some := list(islice(left, _AT_ONCE)):
            file.write(between + encode(some)[1:-1])
            between = ","
        file.write("]}")


def name_process(process: int, name: str) -> Iterator[Event]:
    """Say what a process is; processes are shown in the order of their numbers."""
    yield _metadata("process_name", process, 0, name=name)
    yield _metadata("process_sort_index", process, 0, sort_index=process)


def name_thread(track: Track, name: str, place: int | None = None) -> Iterator[Event]:
    """Say what a thread is, and its place in the process where that is not its number."""
    process, thread = track
    yield _metadata("thread_name", process, thread, name=name)
    index = thread if place is None else place
    yield _metadata("thread_sort_index", process, thread, sort_index=index)


def _metadata(kind: str, process: int, thread: int, **arguments: Any) -> Event:
    return {"ph": "M", "pid": process, "tid": thread, "name": kind, "args": arguments}


def microseconds(at_s: Seconds) -> float:
    """An instant as the format has it, in whole nanoseconds, so that slices of one track do not
    overlap by rounding."""
    return round(float(at_s) / _MICROSECOND, 3)


def slice_of(
    track: Track,
    name: str,
    span: tuple[Seconds, Seconds],
    arguments: Mapping[str, Any] | None = None,
) -> Event:
    """A slice on a track from start to end."""
    first, last = microseconds(span[0]), microseconds(span[1])
    event: Event = {"ph": "X", "pid": track[0], "tid": track[1], "name": name, "ts": first,
                    "dur": round(last - first, 3)}  # fmt: skip
    if arguments:
        event["args"] = dict(arguments)
    return event


def arrow(number: int, name: str, start: OnTrack, end: OnTrack) -> Iterator[Event]:
    """An arrow from a slice to a later one.

    Args:
        number: of the arrow, one for each in a trace.
        start: within the slice that it comes from.
        end: the beginning of the slice that it leads to.
    """
    (source, start_s), (target, end_s) = start, end
    first, last = microseconds(start_s), microseconds(end_s)
    both = {"id": number, "name": name, "cat": name}
    yield both | {"ph": "s", "pid": source[0], "tid": source[1], "ts": min(first, last)}
    yield both | {"ph": "f", "bp": "e", "pid": target[0], "tid": target[1], "ts": last}


def within(span: tuple[Seconds, Seconds], track: Track) -> OnTrack:
    """The last moment that lies inside a slice."""
    start, end = span
    return (track, max(start, end - _NANO * _MICROSECOND))


def counter(process: int, name: str, at_s: Seconds, values: Mapping[str, float]) -> Event:
    """What a counter of a process says from an instant on; its name says its unit."""
    return {"ph": "C", "pid": process, "tid": 0, "name": name, "ts": microseconds(at_s),
            "args": {key: float(value) for key, value in values.items()}}  # fmt: skip
