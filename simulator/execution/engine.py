"""Run a TaskGraph in simulated time: graph and durations in, start and end of every task out.

One long-lived simpy process per stream takes its tasks in order. A task starts when the stream has
finished the task before it, the gap between kernels has passed and everything it depends on has
ended. Dependencies are counters with one event for the stream that waits, so that a graph of
millions of tasks costs about one timeout each.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import simpy
from numpy.typing import NDArray

from hardware_profiles.units import Seconds
from simulator.workload.task_graph import Stream, TaskGraph


@dataclass(frozen=True, slots=True)
class TaskLog:
    """When each task of a graph ran, in seconds since the graph was started."""

    graph: TaskGraph
    start_s: NDArray[np.float64]
    """[tasks]"""
    end_s: NDArray[np.float64]
    """[tasks]"""

    @property
    def span_s(self) -> Seconds:
        return float(self.end_s.max(initial=0.0))

    def busy(self, stream: Stream) -> NDArray[np.float64]:
        """Disjoint intervals [intervals, 2] in which the stream runs a kernel, in seconds."""
        chosen = [i for i, task in enumerate(self.graph.tasks) if task.stream is stream]
        return np.column_stack((self.start_s[chosen], self.end_s[chosen]))

    @property
    def communication_s(self) -> Seconds:
        return _length(self.busy(Stream.COMMUNICATION))

    @property
    def hidden_communication_s(self) -> Seconds:
        """Communication time during which a compute kernel runs."""
        return _overlap(self.busy(Stream.COMMUNICATION), self.busy(Stream.COMPUTE))

    @property
    def exposed_communication_s(self) -> Seconds:
        return self.communication_s - self.hidden_communication_s


def _length(intervals: NDArray[np.float64]) -> float:
    return float((intervals[:, 1] - intervals[:, 0]).sum())


def _overlap(some: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Total length of the intersection of two sets of disjoint, sorted intervals."""
    if not len(some) or not len(others):
        return 0.0
    edges = others.ravel()
    covered = np.concatenate(([0.0], np.cumsum(others[:, 1] - others[:, 0])))
    # Time covered by `others` before each instant, by interpolation between their edges.
    before = np.interp(some, edges, np.repeat(covered, 2)[1:-1])
    return float((before[:, 1] - before[:, 0]).sum())


def perform(
    env: simpy.Environment,
    graph: TaskGraph,
    seconds: Sequence[float],
    gap_s: Seconds,
    log: TaskLog,
) -> Generator[simpy.Event, object, None]:
    """Run `graph` from now on; ends when its last task has. Times go to `log`, from now on as 0.

    Args:
        seconds: duration of each task, in graph order.
        gap_s: time between the end of a kernel and the earliest start of the next in its stream.
    """
    tasks = graph.tasks
    missing = [len(task.depends_on) for task in tasks]
    dependents: list[list[int]] = [[] for _ in tasks]
    queues: dict[Stream, list[int]] = {stream: [] for stream in Stream}
    for index, task in enumerate(tasks):
        queues[task.stream].append(index)
        for earlier in task.depends_on:
            dependents[earlier].append(index)
    waiting: dict[int, simpy.Event] = {}
    origin = env.now

    def run_stream(queue: list[int]) -> Generator[simpy.Event, object, None]:
        for position, index in enumerate(queue):
            if position and gap_s:
                yield env.timeout(gap_s)
            if missing[index]:
                waiting[index] = env.event()
                yield waiting[index]
            log.start_s[index] = env.now - origin
            yield env.timeout(seconds[index])
            log.end_s[index] = env.now - origin
            for dependent in dependents[index]:
                missing[dependent] -= 1
                if not missing[dependent] and dependent in waiting:
                    waiting[dependent].succeed()

    yield env.all_of([env.process(run_stream(queue)) for queue in queues.values() if queue])


def execute(graph: TaskGraph, seconds: Sequence[float], *, gap_s: Seconds) -> TaskLog:
    """Run one graph on its own and return its log."""
    if len(seconds) != len(graph.tasks):
        raise ValueError(f"{graph.name}: {len(seconds)} durations for {len(graph.tasks)} tasks")
    log = empty_log(graph)
    env = simpy.Environment()
    env.process(perform(env, graph, seconds, gap_s, log))
    env.run()
    return log


def empty_log(graph: TaskGraph) -> TaskLog:
    return TaskLog(graph, np.zeros(len(graph.tasks)), np.zeros(len(graph.tasks)))
