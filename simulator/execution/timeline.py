"""When the tasks of a TaskGraph run, where every duration is known beforehand.

A stream runs its tasks in order, one at a time, with a gap between two; a task also waits for what
it depends on. As that is earlier tasks only, one pass in issue order gives every start. Axes after
that of the tasks are ranks, samples or counterfactuals, which all run in the same pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Seconds
from simulator.workload.task_graph import Stream, TaskGraph

Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Log:
    """When each task of a graph ran, in seconds from the start of the graph."""

    graph: TaskGraph
    gap_s: float | Times
    """Least time between two tasks of a stream, one for all or [*axes]."""
    start_s: Times
    """[tasks, *axes]"""
    end_s: Times
    """[tasks, *axes]"""

    @property
    def spans_s(self) -> Times:
        """[*axes], the end of the last task."""
        ends: Times = np.asarray(self.end_s.max(axis=0, initial=0.0))
        return ends

    @property
    def span_s(self) -> Seconds:
        """The end of the last task of any rank or sample."""
        return float(self.end_s.max(initial=0.0))


def run(
    graph: TaskGraph, seconds: Times, gap_s: float | Times, *, rank_axis: int | None = None
) -> Log:
    """Start and end of every task.

    Args:
        seconds: [tasks, *axes], duration of each task.
        gap_s: between the end of a task and the earliest start of the next in its stream; one for
            all or [*axes].
        rank_axis: which of the axes are ranks of one group. A collective task starts on all of them
            when the last is ready; without it each is a run of its own.

    Raises:
        ValueError: not one duration for each task.
    """
    if len(seconds) != len(graph.tasks):
        raise ValueError(f"{graph.name}: {len(seconds)} durations for {len(graph.tasks)} tasks")
    axes = np.broadcast_shapes(seconds.shape[1:], np.shape(gap_s))
    # Plain numbers are several times faster than arrays of no dimension.
    later: Any = np.maximum if axes else max
    durations: Any = seconds if axes else seconds.tolist()
    compute_free: Any = np.zeros(axes) if axes else 0.0
    communication_free: Any = compute_free
    starts: list[Any] = []
    ends: list[Any] = []
    for task, took in zip(graph.tasks, durations, strict=True):
        computes = task.stream is Stream.COMPUTE
        start = compute_free if computes else communication_free
        for earlier in task.depends_on:
            start = later(start, ends[earlier])
        if rank_axis is not None and task.collective:
            start = np.broadcast_to(start.max(axis=rank_axis, keepdims=True), axes)
        end = start + took
        starts.append(start)
        ends.append(end)
        if computes:
            compute_free = end + gap_s
        else:
            communication_free = end + gap_s
    shape = (len(graph.tasks), *axes)
    return Log(graph, gap_s, np.array(starts).reshape(shape), np.array(ends).reshape(shape))


def of_stream(graph: TaskGraph, stream: Stream) -> NDArray[np.intp]:
    """Places of the tasks of a stream, in order."""
    return np.array(
        [place for place, task in enumerate(graph.tasks) if task.stream is stream], dtype=np.intp
    )


def busy_intervals(log: Log, stream: Stream) -> Times:
    """[intervals, 2, *axes], start and end of each time in which a stream runs a task."""
    chosen = of_stream(log.graph, stream)
    return np.stack((log.start_s[chosen], log.end_s[chosen]), axis=1)


@dataclass(frozen=True, slots=True)
class CriticalPath:
    """The chain of tasks that the end of the graph waits for."""

    tasks: tuple[int, ...]
    """In order of time."""
    gaps_s: Seconds
    """Idle time between them."""


def critical_path(log: Log) -> CriticalPath:
    """Walk back from the last end: to whatever ended last before each task could start.

    With several ranks the path may change rank at a collective; its tasks are those of the graph.
    """
    over = tuple(range(1, log.end_s.ndim))
    latest_end, latest_start = log.end_s.max(axis=over), log.start_s.max(axis=over)
    before: list[int | None] = []
    last: dict[Stream, int] = {}
    for place, task in enumerate(log.graph.tasks):
        before.append(last.get(task.stream))
        last[task.stream] = place
    path: list[int] = []
    gaps = 0.0
    current: int | None = int(np.argmax(latest_end)) if len(latest_end) else None
    while current is not None:
        path.append(current)
        candidates = [*log.graph.tasks[current].depends_on]
        previous = before[current]
        if previous is not None:
            candidates.append(previous)
        if not candidates:
            break
        # Of equal ends the dependency is the cause: the stream was free by then.
        chosen = max(candidates, key=lambda place: latest_end[place])
        gaps += float(max(0.0, latest_start[current] - latest_end[chosen]))
        current = chosen
    return CriticalPath(tuple(reversed(path)), gaps)


def exposed_communication(log: Log) -> Times:
    """[*axes], time in which the compute stream computes nothing because of a transfer.

    That is: it waits for one, takes part in a collective, or has nothing left while one ends. Gaps
    between kernels are no such time, even with a transfer under way.
    """
    tasks, compute = log.graph.tasks, of_stream(log.graph, Stream.COMPUTE)
    if not len(compute):
        return log.spans_s
    starts, ends = log.start_s[compute], log.end_s[compute]
    free = np.concatenate((np.zeros_like(starts[:1]), ends[:-1] + log.gap_s))
    taking_part = (ends - starts)[[tasks[place].collective for place in compute]]
    tail = log.spans_s - ends[-1]
    exposed: Times = (starts - free).sum(axis=0) + taking_part.sum(axis=0) + tail
    return np.asarray(exposed)


def hidden_communication(log: Log) -> Times:
    """Communication time during which a compute kernel runs, of a log without axes."""
    some = busy_intervals(log, Stream.COMMUNICATION)
    others = busy_intervals(log, Stream.COMPUTE)
    if not len(some) or not len(others):
        return np.zeros(())
    # Time covered by compute before each instant, by interpolation between its edges.
    covered = np.concatenate(([0.0], np.cumsum(others[:, 1] - others[:, 0])))
    before = np.interp(some, others.ravel(), np.repeat(covered, 2)[1:-1])
    return np.asarray((before[:, 1] - before[:, 0]).sum())
