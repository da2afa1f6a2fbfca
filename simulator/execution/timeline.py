"""When the tasks of a TaskGraph run, where every duration is known beforehand.

A stream runs its tasks in order, one at a time, with a gap between two; a task also waits for what
it depends on. As that is earlier tasks only, one pass in issue order gives every start. Axes after
that of the tasks are ranks, samples or counterfactuals, which all run in the same pass.

Where ranks are an axis, a collective task with a barrier starts on all of them when the last is
ready, as a kernel does that first tells every rank how much will come. One without, as a
low-latency transfer, starts on each rank when that rank is ready, and ends when its own link is
done and the copies of the last sender have come.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Seconds
from simulator.workload.state_tasks import is_state_collective
from simulator.workload.task_graph import Stream, TaskGraph
from simulator.workload.tensor_parallel import shared_axis

Times = NDArray[np.float64]

ROUNDING = 1e-12
"""Of the time that has passed: less of a task than this is nothing left."""
_SAME_BEGIN_S = 1e-9
_MOST_REPLAYS = 200


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
    ready_s: Times
    """[tasks, *axes], when a task could have started on its own rank; earlier than its start where
    a collective one waited for other ranks."""
    done_s: Times
    """[tasks, *axes], when it had done its own part; earlier than its end where one without barrier
    waited for the copies of other ranks."""

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
    graph: TaskGraph,
    seconds: Times,
    gap_s: float | NDArray[Any],
    *,
    rank_axis: int | None = None,
    sends_s: Times | None = None,
    teams: Mapping[str, int] | None = None,
) -> Log:
    """Start and end of every task.

    Args:
        seconds: [tasks, *axes], duration of each task.
        gap_s: between the end of a task and the earliest start of the next in its stream; one for
            all or [*axes].
        rank_axis: which of the axes are ranks of one group; without it each is a run of its own.
        teams: {axis whose GPUs share layers: how many of neighbouring ranks meet in its
            collectives}; of an axis that it does not name, all ranks.
        sends_s: like seconds; how long a rank's own copies take to leave in tasks without barrier,
            where that is not their duration.

    Raises:
        ValueError: not one duration for each task.
    """
    if len(seconds) != len(graph.tasks):
        raise ValueError(f"{graph.name}: {len(seconds)} durations for {len(graph.tasks)} tasks")
    axes = np.broadcast_shapes(seconds.shape[1:], np.shape(gap_s))
    # Plain numbers are many times faster than arrays of no dimension.
    durations: Any = seconds if axes else seconds.tolist()
    sends: Any = durations if sends_s is None else sends_s
    passed = in_turn(
        graph,
        zip(durations, sends, strict=True),
        gap_s if axes else float(gap_s),
        axes=axes,
        ranks=_ranks(graph, rank_axis),
        teams=_teams(graph, teams),
    )
    start_s, end_s = np.empty((2, len(graph.tasks), *axes))
    ready_s, done_s = (start_s, end_s) if rank_axis is None else np.empty((2, *start_s.shape))
    for place, times in enumerate(passed):
        ready_s[place], start_s[place], done_s[place], end_s[place] = times
    return Log(graph, gap_s, start_s, end_s, ready_s, done_s)


def last_end(graph: TaskGraph, passed: Iterable[tuple[Any, Any, Any, Any]]) -> Any:
    """The end of the last task, of what `in_turn` or `each` yields: what broadcasts to [*axes]."""
    # A stream runs one task at a time, so that its last one ends last.
    last = {task.stream: end for task, (_, _, _, end) in zip(graph.tasks, passed, strict=True)}
    return reduce(np.maximum, last.values(), np.float32(0.0))


def each(
    graph: TaskGraph,
    durations: Iterable[tuple[NDArray[Any], NDArray[Any]]],
    gap_s: float | NDArray[Any],
    *,
    axes: tuple[int, ...],
    rank_axis: int | None,
    replica_axis: int | None = None,
    teams: Mapping[str, int] | None = None,
) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Ready, start, done and end of each task in turn (see Log), of durations too many to hold at
    once; each broadcasts to [*axes].

    Args:
        durations: of each task in turn, (seconds, sends_s) as `run` takes them, in the precision
            of `gap_s`.
        replica_axis: which of the axes are groups whose ranks all meet in collectives of parameters
            and gradients; without it each group is a run of its own.
        teams: as of `run`.
    """
    return in_turn(
        graph,
        durations,
        gap_s,
        axes=axes,
        ranks=_ranks(graph, rank_axis, replica_axis),
        teams=_teams(graph, teams),
    )


def _ranks(
    graph: TaskGraph, rank_axis: int | None, replica_axis: int | None = None
) -> list[tuple[int, ...]]:
    """Of each task the axes over which it waits for others, where one axis is all ranks."""
    if rank_axis is None:
        return [()] * len(graph.tasks)
    every = (rank_axis,) if replica_axis is None else (rank_axis, replica_axis)
    return [
        ()
        if not task.collective
        else every
        if is_state_collective(graph.operators[task.operator])
        else (rank_axis,)
        for task in graph.tasks
    ]


def _teams(graph: TaskGraph, teams: Mapping[str, int] | None) -> list[int | None] | None:
    """Of each task, how many neighbouring ranks meet in it; None for all."""
    if not teams or max(teams.values()) == 1:
        return None
    axes = (shared_axis(graph.operators[task.operator]) for task in graph.tasks)
    return [None if axis is None else teams.get(axis) for axis in axes]


def _last_ready(ready: Any, ranks: tuple[int, ...], team: int | None, axes: tuple[int, ...]) -> Any:
    """When the last of those is ready that meet; what broadcasts to [*axes]."""
    if team is None:
        return _latest(ready, ranks)
    (axis,) = ranks
    split = (*axes[:axis], axes[axis] // team, team, *axes[axis + 1 :])
    teams = np.broadcast_to(ready, axes).reshape(split)
    latest = np.broadcast_to(teams.max(axis=axis + 1, keepdims=True), split)
    return latest.reshape(axes)


def _latest(times: Any, ranks: tuple[int, ...]) -> Any:
    """The maximum over ranks, one axis after the other: of whole rows of the others at once."""
    for axis in ranks:
        if times.shape[axis] > 1:
            times = times.max(axis=axis, keepdims=True)
    return times


def in_turn(
    graph: TaskGraph,
    durations: Iterable[tuple[Any, Any]],
    gap_s: float | NDArray[Any],
    *,
    axes: tuple[int, ...],
    ranks: Sequence[tuple[int, ...]],
    teams: Sequence[int | None] | None = None,
) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Ready, start, done and end of each task in turn (see Log), what broadcasts to [*axes].

    Args:
        durations: of each task, (seconds, sends_s) as `run` takes them, in the precision of
            `gap_s`.
        ranks: of each task, the axes that are the ranks it waits for; none for one that is not
            collective.
        teams: of each task, how many neighbouring ranks meet in it; None for all.
    """
    later: Any = np.maximum
    plain = not axes
    compute_free: Any = 0.0 if plain else np.zeros(axes, dtype=np.asarray(gap_s).dtype)
    communication_free: Any = compute_free
    ends: dict[int, Any] = {}
    order = zip(graph.waits, graph.last_uses, ranks, durations, strict=True)
    for place, ((computes, waits), last_uses, meets, (took, sends)) in enumerate(order):
        ready = compute_free if computes else communication_free
        for earlier in waits:
            end = ends[earlier]
            if not plain:
                ready = later(ready, end)
            elif end > ready:
                ready = end
        start = ready
        barrier = graph.tasks[place].barrier
        if meets and barrier:
            team = None if teams is None else teams[place]
            start = _last_ready(ready, meets, team, axes)
        end = done = start + took
        if meets and not barrier:
            sent = done if sends is took else start + sends
            end = later(done, _latest(sent, meets))
        yield ready, start, done, end
        ends[place] = end
        for earlier in last_uses:
            del ends[earlier]
        if computes:
            compute_free = end + gap_s
        else:
            communication_free = end + gap_s


def replay_side_by_side(graph: TaskGraph, *, alone_s: Times, beside_s: Times) -> list[Log]:
    """The same graph again and again on each rank, as `run_side_by_side` has it, until ranks begin
    as far apart as the time before; times of each count from its own begin.

    No rank waits for another between two replays: one that computes faster begins earlier each
    time, until it waits in transfers for what it gained."""
    begins_s = np.zeros(len(alone_s))
    for _ in range(_MOST_REPLAYS):
        logs = run_side_by_side(graph, alone_s=alone_s, beside_s=beside_s, begins_s=begins_s)
        ends_s = np.array([log.end_s.max() for log in logs])
        last, begins_s = begins_s, ends_s - ends_s.min()
        if np.abs(begins_s - last).max() <= _SAME_BEGIN_S:
            break
    return [
        Log(graph, 0.0, *(log.start_s - begin, log.end_s - begin) * 2)
        for log, begin in zip(logs, last, strict=True)
    ]


def run_side_by_side(
    graph: TaskGraph, *, alone_s: Times, beside_s: Times, begins_s: Times | None = None
) -> list[Log]:
    """Start and end of every task on each rank, where a rank's two streams slow each other while
    both run.

    A task goes on at 1 / alone_s of itself per second while the other stream runs nothing, and at
    1 / beside_s while it runs something. A collective task ends on all ranks together, when the
    last is through; a rank that waits for others runs nothing.

    Args:
        alone_s: [ranks, tasks], duration with nothing in the other stream.
        beside_s: [ranks, tasks], duration with something in the other stream all the time.
        begins_s: [ranks], before which a rank runs nothing; None: all begin at 0.

    Raises:
        ValueError: not one duration of each for each task.
    """
    tasks = graph.tasks
    if not alone_s.shape[1] == beside_s.shape[1] == len(tasks):
        raise ValueError(
            f"{graph.name}: {alone_s.shape[1]} and {beside_s.shape[1]} durations for "
            f"{len(tasks)} tasks"
        )
    ranks = range(len(alone_s))
    queues = [graph.of_stream[stream].tolist()[::-1] for stream in Stream]
    waiting = [[list(queue) for queue in queues] for _ in ranks]
    running: list[list[int | None]] = [[None] * len(queues) for _ in ranks]
    left = np.ones(alone_s.shape)
    start_s, end_s = np.zeros(alone_s.shape), np.full(alone_s.shape, np.inf)
    begins = [0.0] * len(ranks) if begins_s is None else begins_s.tolist()
    now = 0.0
    while np.isinf(end_s).any():
        for rank in (one for one in ranks if begins[one] <= now):
            for stream, queue in enumerate(waiting[rank]):
                if running[rank][stream] is None and queue:
                    needs = tasks[queue[-1]].depends_on
                    if all(end_s[rank, earlier] <= now for earlier in needs):
                        running[rank][stream] = place = queue.pop()
                        start_s[rank, place] = now
        active = [[one for one in of_rank if one is not None] for of_rank in running]
        active = [
            [place for place in places if left[rank, place]] for rank, places in enumerate(active)
        ]
        took = [beside_s if len(places) > 1 else alone_s for places in active]
        until_next = [
            float(left[rank, place] * took[rank][rank, place])
            for rank in ranks
            for place in active[rank]
        ]
        passed = min(until_next + [begin - now for begin in begins if begin > now])
        now += passed
        for rank in ranks:
            for place in active[rank]:
                whole = took[rank][rank, place]
                remaining = left[rank, place] * whole - passed
                left[rank, place] = remaining / whole if remaining > ROUNDING * now else 0.0
        for rank in ranks:
            for stream, current in enumerate(running[rank]):
                if current is None or left[rank, current]:
                    continue
                if tasks[current].collective and left[:, current].any():
                    continue
                end_s[rank, current] = now
                running[rank][stream] = None
    return [Log(graph, 0.0, *times, *times) for times in zip(start_s, end_s, strict=True)]


def busy_intervals(log: Log, stream: Stream) -> Times:
    """[intervals, 2, *axes], start and end of each time in which a stream runs a task."""
    chosen = log.graph.of_stream[stream]
    return np.stack((log.start_s[chosen], log.end_s[chosen]), axis=1)


def critical_path(log: Log) -> tuple[list[int], Seconds]:
    """The chain of tasks that the end of the graph waits for, in order of time, and the idle time
    between them. Walks back from the last end: to whatever ended last before each task could start.

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
    return path[::-1], gaps


@dataclass(frozen=True, slots=True)
class Waiting:
    """Time in which a compute stream computes nothing, by what it waits for; seconds, [*axes] each.

    Gaps between kernels are no such time, even with a transfer under way.
    """

    transfers_s: Times
    """For a transfer under way, one that nothing follows included."""
    collectives_s: Times
    """Taking part in collectives of its own."""
    ranks_s: Times
    """For other ranks, without which a transfer or collective does not begin or end."""

    @property
    def exposed_communication_s(self) -> Times:
        """Waiting for transfers that nothing hides, in either way."""
        return self.transfers_s + self.collectives_s


def waiting(log: Log) -> Waiting:
    """What the compute stream of each rank or sample waits for."""
    compute = log.graph.of_stream[Stream.COMPUTE]
    starts, ends, ready = log.start_s[compute], log.end_s[compute], log.ready_s[compute]
    # From the end of each task, and from the beginning, until the next could start on this rank.
    since = np.concatenate((np.zeros((1, *log.spans_s.shape)), ends[:-1] + log.gap_s, ends[-1:]))
    until = np.concatenate((ready, log.spans_s[None]))
    collectives = (ends - starts)[log.graph.collective[compute]].sum(axis=0)
    transfers, ranks = (until - since).sum(axis=0), (starts - ready).sum(axis=0)
    if log.ready_s is not log.start_s:
        sent = log.graph.of_stream[Stream.COMMUNICATION]
        for begin, end in ((log.ready_s, log.start_s), (log.done_s, log.end_s)):
            idle = _covered(since, until, begin[sent], end[sent])
            transfers, ranks = transfers - idle, ranks + idle
    return Waiting(np.asarray(transfers), np.asarray(collectives), np.asarray(ranks))


def _covered(since: Times, until: Times, start: Times, stop: Times) -> Times:
    """[*axes], how much of the spans from `since` to `until` lies in those from `start` to `stop`,
    which follow each other; [spans, *axes] each."""
    shape = since.shape[1:]
    found = np.zeros(shape)
    for place in np.ndindex(shape):
        column = (slice(None), *place)
        edges = np.stack((start[column], stop[column]), axis=1).ravel()
        length = np.cumsum(stop[column] - start[column])
        before = np.repeat(np.concatenate(([0.0], length)), 2)[1:-1]
        found[place] = np.sum(
            np.interp(until[column], edges, before) - np.interp(since[column], edges, before)
        )
    return found


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
