"""When the tasks of a planned iteration run: durations in, starts, ends and the critical path out.

The rules are those of engine.py: a stream runs its tasks in order, one at a time, with a gap
between two; a task waits for what it depends on. As every duration is known beforehand and a task
depends on earlier ones only, one pass over the plan in issue order gives every start, much faster
than an event loop. Durations may differ by rank, [tasks, ranks]; a collective task starts when its
last rank does. A test holds the pass against the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Seconds
from simulator.workload.iteration import StepPlan
from simulator.workload.task_graph import Stream

Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StepLog:
    """Seconds from the start of the iteration. [tasks] for one rank, [tasks, ranks] for several."""

    start_s: Times
    end_s: Times

    @property
    def span_s(self) -> Seconds:
        return float(self.end_s.max(initial=0.0))


@dataclass(frozen=True, slots=True)
class TaskOrder:
    """What the pass needs of a plan, as plain lists."""

    compute: tuple[bool, ...]
    """Whether the task is on the compute stream."""
    collective: tuple[bool, ...]
    depends_on: tuple[tuple[int, ...], ...]


def task_order(plan: StepPlan) -> TaskOrder:
    """The lists of a plan, made once."""
    return TaskOrder(
        tuple(task.stream is Stream.COMPUTE for task in plan.tasks),
        tuple(task.collective for task in plan.tasks),
        tuple(task.depends_on for task in plan.tasks),
    )


def run_order(order: TaskOrder, seconds: Times, *, gap_s: Seconds) -> StepLog:
    """Start and end of every task.

    Args:
        seconds: [tasks] for one rank, or [tasks, ranks].
        gap_s: time between the end of a task and the earliest start of the next in its stream.
    """
    if seconds.ndim == 1:
        return _run_one(order, seconds.tolist(), gap_s)
    return _run_ranks(order, seconds, gap_s)


def _run_one(order: TaskOrder, seconds: Sequence[float], gap_s: float) -> StepLog:
    ends: list[float] = []
    starts: list[float] = []
    free = {True: 0.0, False: 0.0}
    for compute, waits, duration in zip(order.compute, order.depends_on, seconds, strict=True):
        start = free[compute]
        for index in waits:
            start = max(start, ends[index])
        end = start + duration
        starts.append(start)
        ends.append(end)
        free[compute] = end + gap_s
    return StepLog(np.array(starts), np.array(ends))


def _run_ranks(order: TaskOrder, seconds: Times, gap_s: float) -> StepLog:
    starts, ends = np.empty_like(seconds), np.empty_like(seconds)
    ranks = seconds.shape[1]
    free = {True: np.zeros(ranks), False: np.zeros(ranks)}
    rows = zip(order.compute, order.collective, order.depends_on, strict=True)
    for task, (compute, collective, waits) in enumerate(rows):
        start = free[compute]
        for index in waits:
            start = np.maximum(start, ends[index])
        if collective:
            start = np.full(ranks, start.max())
        starts[task] = start
        ends[task] = start + seconds[task]
        free[compute] = ends[task] + gap_s
    return StepLog(starts, ends)


@dataclass(frozen=True, slots=True)
class CriticalPath:
    """The chain of tasks that the end of the iteration waits for."""

    tasks: tuple[int, ...]
    """In order of time."""
    gaps_s: Seconds
    """Idle time between them."""


def critical_path(order: TaskOrder, log: StepLog) -> CriticalPath:
    """Walk back from the last end: to whatever ended last before each task could start.

    With several ranks the path may change rank at a collective; its tasks are those of the plan.
    """
    latest_end = log.end_s if log.end_s.ndim == 1 else log.end_s.max(axis=1)
    latest_start = log.start_s if log.start_s.ndim == 1 else log.start_s.max(axis=1)
    before: list[int | None] = []
    last: dict[bool, int | None] = {True: None, False: None}
    for task, compute in enumerate(order.compute):
        before.append(last[compute])
        last[compute] = task
    path: list[int] = []
    gaps = 0.0
    current: int | None = int(np.argmax(latest_end)) if len(latest_end) else None
    while current is not None:
        path.append(current)
        candidates = [*order.depends_on[current]]
        previous = before[current]
        if previous is not None:
            candidates.append(previous)
        if not candidates:
            break
        # Of equal ends the dependency is the cause: the stream was free by then.
        chosen = max(candidates, key=lambda index: latest_end[index])
        gaps += float(max(0.0, latest_start[current] - latest_end[chosen]))
        current = chosen
    return CriticalPath(tuple(reversed(path)), gaps)


def exposed_communication(order: TaskOrder, log: StepLog, *, gap_s: Seconds) -> Seconds:
    """Time in which the compute stream waits for transfers or takes part in a collective, mean over
    ranks. Gaps between kernels are no such time, even with a transfer under way."""
    starts = log.start_s if log.start_s.ndim == 2 else log.start_s[:, None]
    ends = log.end_s if log.end_s.ndim == 2 else log.end_s[:, None]
    compute = np.array(order.compute)
    if not compute.any():
        return float(ends.max(axis=0, initial=0.0).mean())
    free = np.vstack((np.zeros((1, ends.shape[1])), ends[compute][:-1] + gap_s))
    waiting = starts[compute] - free
    taking_part = (ends - starts)[compute & np.array(order.collective)]
    tail = ends.max(axis=0) - ends[compute][-1]
    exposed = waiting.sum(axis=0) + taking_part.sum(axis=0) + tail
    return float(exposed.mean())
