"""Run a recorded profile's graph in simulated time, kernel by kernel and call by call.

One simpy process for each stream and for each group of host threads. A kernel starts when the
kernel before it in its stream and everything it waits for on other streams have ended (plus the
gap that the GPU takes between kernels), when its own launch has arrived, and when at least one of
its blocks fits on the SMs beside what runs there. CPU time goes with the host's speed; what a
synchronising call spends waiting is a result. No recorded GPU start is an input.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import simpy
from numpy.typing import NDArray

from hardware_profiles.units import Seconds
from simulator.execution.occupancy import SmPool
from simulator.workload.profile.recording import SmLimits, Trace
from simulator.workload.profile.replay_graph import ReplayGraph, Role

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ReplayMachine:
    """What a replay runs on, besides the kernel durations."""

    host_speed: float
    """CPU speed relative to the recorded host: 2 halves every CPU time."""
    launch_latency_s: Seconds
    """From the end of a launch call to the earliest start of its kernel."""
    kernel_gap_s: Seconds
    """From the end of what a kernel waits for on the GPU to its earliest start."""
    sms: int | None
    """None: SMs are not a limit."""
    sm_limits: SmLimits | None
    """None: SMs are not a limit."""


@dataclass(frozen=True, slots=True)
class ReplayLog:
    """When each kernel and host call of a profile ran, and what held kernels back; arrays
    [kernels], seconds from the first start.

    The same for a simulated and for a measured timeline, so that both are judged alike.
    """

    graph: ReplayGraph
    start_s: Array
    end_s: Array
    stream_ready_s: Array
    """End of the kernel before it in its stream, gap included; -inf for the first."""
    launched_s: Array
    """Arrival of its launch; -inf where unknown."""
    compute_ready_s: Array
    """End of the latest kernel it waits for on a compute stream, gap included; -inf for none."""
    communication_ready_s: Array
    """The same on communication streams."""
    call_start_s: Array
    """[actions]"""
    call_end_s: Array
    """[actions]"""

    @property
    def span_s(self) -> Seconds:
        return float(self.end_s.max(initial=0.0))


def execute_replay(
    graph: ReplayGraph,
    seconds: Sequence[float] | Array,
    blocks: Sequence[int],
    machine: ReplayMachine,
) -> ReplayLog:
    """Run the graph once.

    Args:
        seconds: duration of each kernel.
        blocks: thread blocks of each kernel.
    """
    count = len(graph.kernels)
    duration = np.asarray(seconds, dtype=np.float64)
    if duration.shape != (count,) or len(blocks) != count:
        raise ValueError(f"{graph.name}: {duration.size} durations for {count} kernels")
    run = _Run(graph, duration, blocks, machine)
    for queue in graph.streams.values():
        run.env.process(run.stream(queue))
    for group in _chains(graph):
        run.env.process(run.host(group))
    run.env.run()
    # Every edge leads forward in the order of the host's calls, so nothing can wait for ever.
    assert not np.isnan(run.end).any(), "a kernel never ran"
    origin = float(run.start.min())
    return _log(
        graph,
        (run.start - origin, run.end - origin),
        run.launched - origin,
        (run.call_start - origin, run.call_end - origin),
        machine.kernel_gap_s,
    )


class _Run:
    """State of one run while simulated time passes."""

    def __init__(
        self, graph: ReplayGraph, seconds: Array, blocks: Sequence[int], machine: ReplayMachine
    ) -> None:
        self.env = simpy.Environment()
        self.graph, self.seconds, self.blocks, self.machine = graph, seconds, blocks, machine
        count = len(graph.kernels)
        self.start, self.end = np.full(count, np.nan), np.full(count, np.nan)
        self.launched = np.where([a is None for a in graph.launched_by], -np.inf, np.nan)
        self.call_start = np.zeros(len(graph.actions))
        self.call_end = np.zeros(len(graph.actions))
        self.dependents: list[list[int]] = [[] for _ in range(count)]
        for index, waits in enumerate(graph.waits):
            for earlier in waits:
                self.dependents[earlier].append(index)
        self.missing = [
            len(waits) + (action is not None)
            for waits, action in zip(graph.waits, graph.launched_by, strict=True)
        ]
        """Launch and waits that a kernel still lacks."""
        self.ready: dict[int, simpy.Event] = {}
        self.ended: dict[int, simpy.Event] = {}
        """Events of kernels that a host thread waits for."""
        for action in graph.actions:
            for kernel in (*action.polls, *action.blocks_until):
                self.ended.setdefault(kernel, self.env.event())
        self.pool: SmPool | None = None
        if machine.sms is not None and machine.sm_limits is not None:
            self.pool = SmPool(machine.sms, machine.sm_limits)
        self.crowded: list[tuple[int, simpy.Event]] = []
        """Kernels that are ready but do not fit, longest waiting first."""

    def stream(self, queue: Sequence[int]) -> Generator[simpy.Event, object, None]:
        """Run the kernels of one stream."""
        env, gap = self.env, self.machine.kernel_gap_s
        before = -np.inf
        for kernel in queue:
            if self.missing[kernel]:
                self.ready[kernel] = env.event()
                yield self.ready[kernel]
            waited = max((self.end[k] for k in self.graph.waits[kernel]), default=-np.inf)
            earliest = max(max(before, waited) + gap, self.launched[kernel])
            if earliest > env.now:
                yield env.timeout(earliest - env.now)
            if not self._fits(kernel):
                self.crowded.append((kernel, env.event()))
                yield self.crowded[-1][1]
            self.start[kernel] = env.now
            yield env.timeout(self.seconds[kernel])
            self._finish(kernel)
            before = env.now

    def host(self, actions: Sequence[int]) -> Generator[simpy.Event, object, None]:
        """Make the calls of one group of host threads."""
        env, speed = self.env, self.machine.host_speed
        for index in actions:
            action = self.graph.actions[index]
            for kernel in action.polls:
                yield self.ended[kernel]
            if action.cpu_before_s:
                yield env.timeout(action.cpu_before_s / speed)
            self.call_start[index] = env.now
            if action.cpu_s:
                yield env.timeout(action.cpu_s / speed)
            for kernel in action.launches:
                self.launched[kernel] = env.now + self.machine.launch_latency_s
                self._release(kernel)
            for kernel in action.blocks_until:
                yield self.ended[kernel]
            self.call_end[index] = env.now

    def _fits(self, kernel: int) -> bool:
        pool = self.pool
        return pool is None or pool.start(kernel, self.graph.kernels[kernel], self.blocks[kernel])

    def _release(self, kernel: int) -> None:
        self.missing[kernel] -= 1
        if not self.missing[kernel] and kernel in self.ready:
            self.ready.pop(kernel).succeed()

    def _finish(self, kernel: int) -> None:
        self.end[kernel] = self.env.now
        if self.pool is not None and self.pool.end(kernel):
            for waiting in list(self.crowded):
                if self._fits(waiting[0]):
                    self.crowded.remove(waiting)
                    waiting[1].succeed()
        for dependent in self.dependents[kernel]:
            self._release(dependent)
        if kernel in self.ended:
            self.ended[kernel].succeed()


def _log(
    graph: ReplayGraph,
    kernels: tuple[Array, Array],
    launched: Array,
    calls: tuple[Array, Array],
    gap: Seconds,
) -> ReplayLog:
    """Add to starts and ends what each kernel was waiting for."""
    (start, end), count = kernels, len(graph.kernels)
    stream_ready, compute_ready, communication_ready = (np.full(count, -np.inf) for _ in range(3))
    for queue in graph.streams.values():
        stream_ready[list(queue[1:])] = end[list(queue[:-1])] + gap
    for kernel, waits in enumerate(graph.waits):
        for earlier in waits:
            communicates = graph.kernels[earlier].stream in graph.communication_streams
            target = communication_ready if communicates else compute_ready
            target[kernel] = max(target[kernel], end[earlier] + gap)
    return ReplayLog(
        graph, start, end, stream_ready, launched, compute_ready, communication_ready, *calls
    )


def measured_times(graph: ReplayGraph, trace: Trace, machine: ReplayMachine) -> ReplayLog:
    """The recorded timeline in the same form, for the comparison only."""
    start, origin = trace.kernel_start_s, trace.first_kernel_s
    seconds = np.array([kernel.seconds for kernel in graph.kernels])
    begun = np.array([action.call.start_s for action in graph.actions])
    ended = np.array([action.call.end_s for action in graph.actions])
    launched = np.array(
        [
            -np.inf if action is None else ended[action] + machine.launch_latency_s - origin
            for action in graph.launched_by
        ]
    )
    calls = (begun - origin, ended - origin)
    return _log(graph, (start, start + seconds), launched, calls, machine.kernel_gap_s)


def _chains(graph: ReplayGraph) -> list[list[int]]:
    """Actions of each group of host threads, in order."""
    chains: list[list[int]] = []
    chain_of: dict[int, list[int]] = {}
    for index, action in enumerate(graph.actions):
        if action.after is None:
            chains.append([])
            chain_of[index] = chains[-1]
        else:
            chain_of[index] = chain_of[action.after]
        chain_of[index].append(index)
    return chains


# --------------------------------------------------------------------------------- what it means


IDLE = ("exposed_communication_s", "waiting_for_ranks_s", "launch_bound_s", "other_idle_s")
"""What the next compute kernel was held by where none runs: a transfer, on a communication stream
or its own; a kernel that waits for other ranks, likewise; its own launch on the host; gaps between
kernels, room on the SMs, and the ends of the span."""


def compute_kernels(graph: ReplayGraph) -> list[int]:
    """Places of the kernels that compute. No other kernel of a compute stream does: a collective of
    its own moves data, and a barrier waits, as on a communication stream."""
    return [index for index in _of_compute_streams(graph) if graph.roles[index] is Role.COMPUTE]


def _of_compute_streams(graph: ReplayGraph) -> list[int]:
    return [
        index
        for index, kernel in enumerate(graph.kernels)
        if kernel.stream not in graph.communication_streams
    ]


def union_s(start: Array, end: Array) -> Seconds:
    """Length of the union of intervals."""
    return float(sum(stop - begin for begin, stop in _merged(start, end)))


def _merged(start: Array, end: Array) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for index in np.argsort(start, kind="stable"):
        begin, stop = float(start[index]), float(end[index])
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((begin, stop))
    return merged


def _within(spans: Sequence[tuple[float, float]], since: Seconds, until: Seconds) -> Seconds:
    """How much of some disjoint spans lies between two times."""
    return sum(max(0.0, min(last, until) - max(first, since)) for first, last in spans)


def idle_time(times: ReplayLog) -> dict[str, Seconds]:
    """Split the time without a compute kernel: {one of IDLE: seconds}.

    While a compute stream takes part in a collective of its own, and no other computes, that is
    exposed communication, and while it waits in a barrier, waiting for other ranks. Each stretch in
    which no compute stream runs anything ends with a kernel's start. From the moment when
    everything but the communication it waits for was ready, the stretch is exposed communication,
    and while a kernel that waits for other ranks runs, waiting for them; before that, from the
    moment when everything but its launch was ready, it is launch-bound; the rest is none of these.
    Transfers that nothing follows are exposed as well.
    """
    graph = times.graph
    chosen, computing = _of_compute_streams(graph), compute_kernels(graph)
    if not chosen:
        return dict(zip(IDLE, (0.0, 0.0, 0.0, times.span_s), strict=True))
    is_barrier = np.array([role is Role.RANK_WAIT for role in graph.roles])
    is_chosen = np.isin(np.arange(len(graph.kernels)), chosen)
    barriers, others = (
        _merged(times.start_s[some], times.end_s[some]) for some in (is_barrier, ~is_chosen)
    )
    waits_or_computes = [index for index in chosen if is_barrier[index]] + computing
    busy_s, waiting_s, computing_s = (
        union_s(times.start_s[some], times.end_s[some])
        for some in (chosen, waits_or_computes, computing)
    )
    exposed, ranks, launch = busy_s - waiting_s, waiting_s - computing_s, 0.0
    busy = _merged(times.start_s[chosen], times.end_s[chosen])
    order = sorted(chosen, key=lambda index: (times.start_s[index], index))
    first_of: dict[float, int] = {}
    for index in order:
        first_of.setdefault(float(times.start_s[index]), index)
    previous = 0.0
    for begin, stop in busy:
        kernel = first_of[begin]
        on_gpu = max(times.stream_ready_s[kernel], times.compute_ready_s[kernel], previous)
        before = max(on_gpu, times.launched_s[kernel])
        until = max(before, times.communication_ready_s[kernel])
        stalled = min(until - before, begin - previous)
        late = _within(barriers, until - stalled, until)
        ranks += late
        exposed += stalled - late
        launch += min(max(0.0, times.launched_s[kernel] - on_gpu), begin - previous - stalled)
        previous = stop
    late = _within(barriers, previous, times.span_s)
    ranks += late
    exposed += _within(others, previous, times.span_s) - late
    other = times.span_s - computing_s - exposed - ranks - launch
    return dict(zip(IDLE, map(float, (exposed, ranks, launch, other)), strict=True))
