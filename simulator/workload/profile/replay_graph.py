"""Build the dependency graph of a recorded profile.

The graph holds durations, order and waits, never a recorded GPU start. A kernel runs after the
kernel before it in its stream, after the kernels of other streams that it waits for, and after the
host call that launched it; a host call runs after the call before it and the CPU time between.

Order. Kernels of one stream run in the order in which the host launched them.

Host threads. Threads whose CUDA calls never overlap take turns, as a caller and its autograd
thread do: each continues where the other stopped. Threads whose calls do overlap run side by side.
A synchronising call returns when the work it waits for has ended. A thread that polls memory
written by a kernel (role "polled" of the mapping) makes no call while it waits: its longest pause
until the next call is that wait, the rest is CPU time.

Waits between streams. Profiles made with CUDA synchronisation events say which streams a
cudaStreamWaitEvent joins, and that is used. Otherwise the profile has the calls but neither the
streams nor the event records, and this rule decides. The main stream has the most kernels; every
other is a side stream. A wait call directly followed by work of a side stream (no other wait call
and no work of that stream between) is a *fork*; every other is a *join*.

- A fork makes the side stream wait for the main stream, up to the last record point of the main
  stream that was launched before the call and that started before the forked kernel in the
  recorded order. Record points are where launching onto the stream was interrupted: by a wait
  call, by another stream or by another thread.
- A join makes the main stream wait for one group of a side stream. A group is the work between
  forks; one without a communication kernel (a cast, a layout count) belongs to the next. The side
  stream is the one most recently launched onto that has a group left to join; the n-th join takes
  the n-th group, and where there are more groups than joins the last joins take the last groups,
  always one launched before the call and started before the waiting kernel in the recorded order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from hardware_profiles.units import Seconds
from simulator.workload.profile.recording import HostCall, Kernel, Trace

WAIT_CALLS = frozenset({"cudaStreamWaitEvent", "cuStreamWaitEvent", "hipStreamWaitEvent"})
DEVICE_SYNCS = frozenset({"cudaDeviceSynchronize", "cuCtxSynchronize", "hipDeviceSynchronize"})
STREAM_SYNCS = frozenset(
    f"{api}{what}Synchronize" for api in ("cuda", "cu", "hip") for what in ("Stream", "Event")
)
BLOCKING_COPIES = frozenset({"cudaMemcpy", "hipMemcpy", "cuMemcpyDtoH_v2", "cuMemcpyHtoD_v2"})


class Role(StrEnum):
    """What a kernel is to a replay."""

    COMPUTE = "compute"
    COMMUNICATION = "communication"
    """Moves data between GPUs."""
    RANK_WAIT = "rank_wait"
    """Exchanges counts and holds a barrier: its recorded duration is mostly waiting for slower
    ranks, which one rank's profile cannot explain."""


@dataclass(frozen=True, slots=True)
class HostAction:
    """One CUDA call of the replayed host."""

    call: HostCall
    after: int | None
    """Index of the action before it in the same group of threads."""
    cpu_before_s: Seconds
    """CPU time between the end of that action and the start of this one, polling excluded."""
    cpu_s: Seconds
    """CPU time of the call itself; 0 for one that synchronises."""
    polls: tuple[int, ...]
    """Kernels that the thread saw end before `cpu_before_s` began."""
    blocks_until: tuple[int, ...]
    """Kernels that end before the call returns."""
    launches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReplayGraph:
    """Kernels and host calls of one recorded profile, by index, with what each waits for."""

    name: str
    kernels: tuple[Kernel, ...]
    roles: tuple[Role, ...]
    streams: dict[int, tuple[int, ...]]
    """{stream: its kernels in launch order}"""
    communication_streams: frozenset[int]
    """Streams that spend most of their kernel time on communication and waiting for ranks."""
    waits: tuple[tuple[int, ...], ...]
    """[kernels] -> kernels of other streams that end first."""
    actions: tuple[HostAction, ...]
    launched_by: tuple[int | None, ...]
    """[kernels] -> index of the launching action; None where the profile lacks it."""
    wait_calls: int
    """Calls that make one stream wait for another."""
    idle_waits: int
    """Those of them for which the rule finds nothing that is still to be waited for."""


def build_replay(
    trace: Trace, *, roles: Sequence[Role], polled: Sequence[bool] = ()
) -> ReplayGraph:
    """Read order, host times and waits off a trace.

    Args:
        roles: [kernels], from a mapping.
        polled: [kernels], whether the launching thread polls for the kernel's result.

    Raises ValueError where kernels share a correlation id or have no duration: what was launched
    when would be a guess.
    """
    unclear = [str(problem) for problem in trace.problems if problem.loses_kernels]
    if unclear:
        raise ValueError(f"{trace.path}: cannot be replayed: {'; '.join(unclear)}")
    position = {
        call.correlation: index
        for index, call in reversed(list(enumerate(trace.calls)))
        if call.correlation is not None
    }
    launch = [
        None if kernel.correlation is None else position.get(kernel.correlation)
        for kernel in trace.kernels
    ]
    streams = _in_launch_order(trace.kernels, launch)
    waits, wait_calls, idle = _infer_waits(trace, launch, streams, roles, position)
    actions = _host(trace, launch, polled or [False] * len(trace.kernels))
    return ReplayGraph(
        name=trace.path,
        kernels=trace.kernels,
        roles=tuple(roles),
        streams=streams,
        communication_streams=_communicating(trace.kernels, streams, roles),
        waits=waits,
        actions=actions,
        launched_by=tuple(launch),
        wait_calls=wait_calls,
        idle_waits=idle,
    )


def _in_launch_order(
    kernels: Sequence[Kernel], launch: Sequence[int | None]
) -> dict[int, tuple[int, ...]]:
    """Kernels of each stream by launch; one without a launch follows the one recorded before it."""
    queues: dict[int, list[tuple[int, int]]] = {}
    for index, kernel in enumerate(kernels):
        queue = queues.setdefault(kernel.stream, [])
        called = launch[index]
        queue.append((called if called is not None else queue[-1][0] if queue else -1, index))
    return {stream: tuple(i for _, i in sorted(queues[stream])) for stream in sorted(queues)}


def _communicating(
    kernels: Sequence[Kernel], streams: dict[int, tuple[int, ...]], roles: Sequence[Role]
) -> frozenset[int]:
    def busy(chosen: Sequence[int]) -> float:
        return sum(kernels[index].seconds for index in chosen)

    return frozenset(
        stream
        for stream, queue in streams.items()
        if 2 * busy([i for i in queue if roles[i] is not Role.COMPUTE]) > busy(queue)
    )


# ---------------------------------------------------------------------------------- host threads


def _turns(calls: Sequence[HostCall]) -> dict[str, int]:
    """{thread: group}; threads of one group take turns, groups run side by side."""
    overlapping: set[tuple[str, str]] = set()
    last_end: dict[str, float] = {}
    for call in calls:
        for thread, end in last_end.items():
            if thread != call.thread and call.start_s < end:
                overlapping.update(((thread, call.thread), (call.thread, thread)))
        last_end[call.thread] = max(last_end.get(call.thread, call.end_s), call.end_s)
    groups: list[list[str]] = []
    for thread in last_end:
        for group in groups:
            if not any((thread, other) in overlapping for other in group):
                group.append(thread)
                break
        else:
            groups.append([thread])
    return {thread: number for number, group in enumerate(groups) for thread in group}


def _host(
    trace: Trace, launch: Sequence[int | None], polled: Sequence[bool]
) -> tuple[HostAction, ...]:
    launches: dict[int, list[int]] = {}
    for kernel, called in enumerate(launch):
        if called is not None:
            launches.setdefault(called, []).append(kernel)
    group_of = _turns(trace.calls)
    activity = _activity(trace)
    actions: list[HostAction] = []
    last_in_group: dict[int, int] = {}
    last_on_stream: dict[int, int] = {}
    last_stream_of: dict[str, int] = {}
    for index, call in enumerate(trace.calls):
        group = group_of[call.thread]
        after = last_in_group.get(group)
        pause = 0.0
        polls: tuple[int, ...] = ()
        if after is not None:
            before = actions[after]
            pause = max(0.0, call.start_s - before.call.end_s)
            polls = tuple(kernel for kernel in before.launches if polled[kernel])
            if polls:
                idle = _longest_idle(
                    activity.get(before.call.thread, []), before.call.end_s, call.start_s
                )
                pause -= idle
            elif before.call.end_s > call.start_s and not before.blocks_until:
                # Nested calls: the outer one's CPU time stops where the inner one begins.
                actions[after] = replace(before, cpu_s=call.start_s - before.call.start_s)
        own = tuple(launches.get(index, ()))
        for kernel in own:
            last_on_stream[trace.kernels[kernel].stream] = kernel
            last_stream_of[call.thread] = trace.kernels[kernel].stream
        blocks = _blocks_until(call, own, trace.kernels, last_on_stream, last_stream_of)
        # What a synchronising call spends is waiting for the GPU, which is the replay's result.
        cpu = 0.0 if blocks else call.seconds
        actions.append(HostAction(call, after, pause, cpu, polls, blocks, own))
        last_in_group[group] = index
    return tuple(actions)


def _blocks_until(
    call: HostCall,
    own: Sequence[int],
    kernels: Sequence[Kernel],
    last_on_stream: dict[int, int],
    last_stream_of: dict[str, int],
) -> tuple[int, ...]:
    """Kernels that a call waits for: of all streams, of the stream its thread last launched onto,
    or its own copy."""
    if call.name in DEVICE_SYNCS:
        return tuple(last_on_stream.values())
    if call.name in STREAM_SYNCS and call.thread in last_stream_of:
        return (last_on_stream[last_stream_of[call.thread]],)
    if call.name in BLOCKING_COPIES or any("Device -> Pageable" in kernels[k].name for k in own):
        return tuple(own)
    return ()


def _activity(trace: Trace) -> dict[str, list[tuple[float, float]]]:
    """{thread: [(start, end)]} of calls and operators, in order of start; annotations enclose the
    pauses and are left out."""
    found: dict[str, list[tuple[float, float]]] = {}
    for call in trace.calls:
        found.setdefault(call.thread, []).append((call.start_s, call.end_s))
    for span in trace.spans:
        if span.category == "cpu_op":
            found.setdefault(span.thread, []).append((span.start_s, span.end_s))
    for intervals in found.values():
        intervals.sort()
    return found


def _longest_idle(activity: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """Longest stretch of [start, end] in which the thread does nothing that was recorded."""
    longest, reached = 0.0, start
    # What began earlier cannot reach past `start`: a thread's calls and operators nest.
    for begin, stop in activity[bisect_left(activity, (start, start)) :]:
        if begin >= end:
            break
        longest = max(longest, begin - reached)
        reached = max(reached, stop)
    return max(longest, end - reached)


# ---------------------------------------------------------------------------- waits of streams


@dataclass(frozen=True, slots=True)
class _Step:
    """A launch or a stream wait, in host order."""

    position: int
    """Index of the call."""
    thread: str
    kernel: int | None
    """None for a wait."""
    stream: int
    """-1 for a wait."""


def _steps(
    trace: Trace, launch: Sequence[int | None], streams: dict[int, tuple[int, ...]]
) -> list[_Step]:
    steps: list[_Step] = []
    for stream, queue in streams.items():
        for kernel in queue:
            called = launch[kernel]
            if called is not None:
                steps.append(_Step(called, trace.calls[called].thread, kernel, stream))
    for index, call in enumerate(trace.calls):
        if call.name in WAIT_CALLS:
            steps.append(_Step(index, call.thread, None, -1))
    return sorted(steps, key=lambda step: (step.position, step.kernel or 0))


_Launches = Sequence[tuple[int, int]]
"""[(position of the launch, kernel)] of one stream in launch order."""


def _last_before(launches: _Launches, position: int) -> int | None:
    at = bisect_left(launches, (position, -1))
    return launches[at - 1][1] if at else None


def _first_after(launches: _Launches, position: int) -> int | None:
    at = bisect_left(launches, (position + 1, -1))
    return launches[at][1] if at < len(launches) else None


def _infer_waits(
    trace: Trace,
    launch: Sequence[int | None],
    streams: dict[int, tuple[int, ...]],
    roles: Sequence[Role],
    position: dict[int, int],
) -> tuple[tuple[tuple[int, ...], ...], int, int]:
    """Waits of each kernel, the number of wait calls, and of those that bind nothing."""
    waits: list[set[int]] = [set() for _ in trace.kernels]
    steps = _steps(trace, launch, streams)
    by_stream = {
        stream: [(at, kernel) for kernel in queue if (at := launch[kernel]) is not None]
        for stream, queue in streams.items()
    }
    wait_calls = sum(step.kernel is None for step in steps)
    if not trace.stream_waits:
        main = max(streams, key=lambda stream: (len(streams[stream]), -stream))
        bound = _forks_and_joins(steps, main, by_stream, roles, waits)
        forward = tuple(
            tuple(sorted(earlier for earlier in found if _called_before(launch, earlier, later)))
            for later, found in enumerate(waits)
        )
        return forward, wait_calls, wait_calls - bound
    bound = 0
    for wait in trace.stream_waits:
        called = position.get(wait.correlation)
        if called is None or wait.stream == wait.waits_on:
            continue
        record = position.get(wait.record, called)
        earlier = _last_before(by_stream.get(wait.waits_on, ()), record)
        later = _first_after(by_stream.get(wait.stream, ()), called)
        if earlier is not None and later is not None:
            waits[later].add(earlier)
            bound += 1
    return tuple(tuple(sorted(found)) for found in waits), wait_calls, wait_calls - bound


def _called_before(launch: Sequence[int | None], earlier: int, later: int) -> bool:
    """Whether a kernel was launched before another; else it cannot be what that one waits for, and
    a host that waits for the later one would never come to launch it."""
    first, second = launch[earlier], launch[later]
    return first is None or second is None or first < second


def _forks_and_joins(
    steps: Sequence[_Step],
    main: int,
    by_stream: Mapping[int, _Launches],
    roles: Sequence[Role],
    waits: list[set[int]],
) -> int:
    """Add the waits of the rule in the module's docstring; return how many calls bind something.

    Kernel indices are the recorded order of starts.
    """
    forks = _forks(steps, main)
    points = _record_points(steps, main)
    sides = [stream for stream in by_stream if stream != main]
    communicates = {
        stream: any(roles[kernel] is Role.COMMUNICATION for _, kernel in by_stream[stream])
        for stream in sides
    }
    groups: dict[int, list[tuple[int, int]]] = {stream: [] for stream in sides}
    """{side stream: [(position of the last launch, last kernel) of each group]}"""
    complete = dict.fromkeys(sides, True)
    """{side stream: whether its next launch begins a group}"""
    joins: dict[int, list[tuple[int | None, int]]] = {stream: [] for stream in sides}
    """{side stream: [(waiting kernel, groups launched by then)]}"""
    bound = 0
    for number, step in enumerate(steps):
        if step.kernel is not None:
            if step.stream == main:
                continue
            if complete[step.stream]:
                groups[step.stream].append((step.position, step.kernel))
            else:
                groups[step.stream][-1] = (step.position, step.kernel)
            complete[step.stream] = roles[step.kernel] is Role.COMMUNICATION
        elif number in forks:
            kernel, stream = forks[number]
            complete[stream] = complete[stream] or not communicates[stream]
            before = bisect_left(points, (step.position, -1))
            point = next((p for _, p in reversed(points[:before]) if p < kernel), None)
            if point is not None:
                waits[kernel].add(point)
                bound += 1
        else:
            open_streams = [s for s in sides if len(groups[s]) > len(joins[s])]
            if open_streams:
                latest = max(open_streams, key=lambda stream: groups[stream][-1][0])
                waiting = _first_after(by_stream[main], step.position)
                joins[latest].append((waiting, len(groups[latest])))
    return bound + sum(_bind_joins(joins[stream], groups[stream], waits) for stream in sides)


def _forks(steps: Sequence[_Step], main: int) -> dict[int, tuple[int, int]]:
    """{step number of a wait: (first kernel after it, side stream)}: forks, each used once."""
    forks: dict[int, tuple[int, int]] = {}
    last_wait: int | None = None
    last_launch: dict[int, int] = {}
    for number, step in enumerate(steps):
        if step.kernel is None:
            last_wait = number
            continue
        if (
            step.stream != main
            and last_wait is not None
            and last_wait not in forks
            and last_launch.get(step.stream, -1) < last_wait
        ):
            forks[last_wait] = (step.kernel, step.stream)
        last_launch[step.stream] = number
    return forks


def _record_points(steps: Sequence[_Step], main: int) -> _Launches:
    """Those after which launching onto the main stream paused."""
    points = []
    for number, step in enumerate(steps):
        following = steps[number + 1] if number + 1 < len(steps) else None
        if step.kernel is not None and step.stream == main:
            same = following is not None and following.stream == main
            if not (same and following is not None and following.thread == step.thread):
                points.append((step.position, step.kernel))
    return points


def _bind_joins(
    joins: Sequence[tuple[int | None, int]],
    groups: Sequence[tuple[int, int]],
    waits: list[set[int]],
) -> int:
    """Give each join of one side stream its group, see the module's docstring."""
    bound, distinct = 0, len(groups)
    for number in reversed(range(len(joins))):
        waiting, launched = joins[number]
        distinct = min(distinct, launched)
        latest = max(min(number + 1, launched), distinct)
        distinct -= 1
        for _, kernel in reversed(groups[:latest]):
            if waiting is not None and kernel < waiting:
                waits[waiting].add(kernel)
                bound += 1
                break
    return bound
