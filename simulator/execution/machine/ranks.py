"""Run one TaskGraph on every rank of a group in simulated time, kernels and transfers contending.

Each rank has its GPU and a simpy process for each stream, which runs its tasks in order with a gap
between two, as on the timeline. A kernel runs on the GPU's SMs and HBM; a collective takes its SMs
when its rank is ready, and meets the others as its kind says: with a barrier it begins when the
last rank has come, without one each rank begins by itself and ends when its own copies have left
and those of the last sender have come. Its bytes are flows on the network of the group, or take a
time that is known beforehand.

Where nothing contends, times are those of `timeline.run` on the same seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from hardware_profiles.units import BytesPerSecond, Seconds
from simulator.execution import timeline
from simulator.execution.machine.gpu import Gpu, KernelLaunch, Resident
from simulator.hardware.network.fairness import Integers
from simulator.hardware.network.flows import FlowBatch, Flows, Network
from simulator.hardware.network.routing import Failure
from simulator.hardware.network.topology import Fabric
from simulator.workload.task_graph import Stream, TaskGraph

Times = NDArray[np.float64]

TRANSFERS_FIRST = 1
"""Priority of the communication stream: its kernels take SMs before the pending CTAs of compute."""

Processes = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, slots=True)
class GroupTransfer:
    """A collective of the group as flows."""

    flows: Flows
    owner: Integers
    """[flows], the rank that starts each, as its tokens are its own."""
    first_gpu: int
    """Rank 0; the others follow it."""
    hbm_bytes: Times
    """[ranks], moved over the HBM of each."""
    alone_s: Seconds
    """On an idle fabric, the delay left out: over which HBM is drawn."""
    delay_s: Seconds
    """From its beginning to the first byte."""
    fill_s: Seconds = 0.0
    """Of the time alone, until the first bytes have gone the whole way."""


@dataclass(frozen=True, slots=True)
class RankWork:
    """What every task asks of its rank."""

    seconds: Times
    """[tasks, ranks], of tasks that neither launch a kernel nor are flows."""
    launches: Sequence[Sequence[KernelLaunch | None]]
    """[tasks][ranks], kernels; none where nothing contends."""
    transfers: Mapping[int, GroupTransfer] = field(default_factory=dict)
    """{task: its flows}"""
    transfer_sms: Sequence[int] = ()
    """[tasks], SMs that a collective holds; none where nothing contends."""
    joins: Sequence[int] = ()
    """[tasks], ranks that meet in a collective, neighbours; all of them where not given."""
    start_window_s: Seconds = 0.0
    """Flows of a task without barrier begin at whole multiples of it, so that fewer networks are
    solved; each is at most so much late."""
    sends_s: Times | None = None
    """[tasks, ranks], how long a rank's own copies take to leave in a task without barrier, where
    that is not its time."""


@dataclass(frozen=True, slots=True)
class MachineLog:
    """What happened on the ranks of a group."""

    log: timeline.Log
    """Axes [tasks, ranks]."""
    gpus: tuple[Gpu, ...]
    """[ranks]"""
    network: Network | None
    events: int
    """Of simulated time that were processed."""
    link_rates: tuple[tuple[str, Seconds, BytesPerSecond], ...] = ()
    """(link, from when on, bytes/s) of the links that carried anything."""


def run_on_ranks(
    graph: TaskGraph,
    work: RankWork,
    gap_s: Seconds,
    *,
    gpu_of: Callable[[simpy.Environment], Gpu],
    after_wait_s: Seconds = 0.0,
    network_of: Callable[[simpy.Environment], Network] | None = None,
    beside: Sequence[Callable[[simpy.Environment, Network], Processes]] = (),
    failures: Sequence[Failure] = (),
) -> MachineLog:
    """Run the graph once on each rank.

    Args:
        gpu_of: makes the GPU of a rank.
        after_wait_s: from the end of what a task waits for on another stream to its start, at the
            soonest; on the timeline none.
        network_of: makes the network of the group's flows, where it has any.
        beside: traffic of other jobs on that network.
        failures: of it, and when.

    Raises:
        ValueError: a failure cut ranks off from each other, so that the graph does not end.
    """
    env = simpy.Environment()
    network = None if network_of is None else network_of(env)
    ranks = work.seconds.shape[1]
    gpus = [gpu_of(env) for _ in range(ranks)]
    run = _Run(env, graph, work, (gap_s, after_wait_s), gpus, network)
    mine = [
        env.process(run.stream(rank, stream))
        for rank in range(ranks)
        for stream in Stream
        if any(task.stream is stream for task in graph.tasks)
    ]
    if network is not None:
        for failure in failures:
            env.process(_strike(env, network, failure))
        for process in beside:
            env.process(process(env, network))
    events, finished = 0, env.all_of(mine)
    while not finished.triggered and env.peek() < np.inf:
        env.step()
        events += 1
    if not finished.triggered:
        cut = network.stalled[0] if network and network.stalled else "a transfer never ended"
        raise ValueError(f"{graph.name}: {cut}")
    for gpu in gpus:
        gpu.settle()
    log = timeline.Log(graph, gap_s, run.start, run.end, run.ready, run.done)
    check_times(log)
    rates: list[tuple[str, Seconds, BytesPerSecond]] = []
    if network is not None:
        check_bytes(network)
        rates = _rates(network.fabric, [*run.carried, (env.now, network.link_bytes())])
    return MachineLog(log, tuple(gpus), network, events, tuple(rates))


def check_times(log: timeline.Log) -> None:
    """Hold every rank to max(compute, communication) <= time <= their sum, gaps included.

    Raises AssertionError, as no input may break it.
    """
    busy = log.end_s - log.ready_s
    of_stream = np.stack([busy[log.graph.of_stream[stream]].sum(axis=0) for stream in Stream])
    spans = log.end_s.max(axis=0, initial=0.0)
    rounding = 1e-9 * spans
    gaps = 2 * len(log.graph.tasks) * log.gap_s
    assert (of_stream.max(axis=0) <= spans + rounding).all(), "a rank is shorter than a stream"
    assert (spans <= of_stream.sum(axis=0) + gaps + rounding).all(), "a rank idles for nothing"


def check_bytes(network: Network) -> None:
    """Hold what GPUs received over NVLink, and NICs over the fabric, to what was sent.

    Raises AssertionError, as no input may break it.
    """
    fabric, carried = network.fabric, network.link_bytes()
    sent, received = carried[: fabric.gpus].sum(), carried[fabric.gpus : 2 * fabric.gpus].sum()
    assert np.isclose(sent, received, rtol=1e-9), "NVLink lost bytes"
    for plane, inside in enumerate(fabric.planes):
        first, ports = int(fabric.plane_start[plane]), inside.end_ports
        up, down = carried[first:][:ports].sum(), carried[first + ports :][:ports].sum()
        assert np.isclose(up, down, rtol=1e-9), "the fabric lost bytes"


def _rates(
    fabric: Fabric, carried: Sequence[tuple[Seconds, Times]]
) -> list[tuple[str, Seconds, BytesPerSecond]]:
    """(link, from when on, bytes/s until the next) of every link that carried anything.

    Args:
        carried: (when, bytes of each link until then), in order.
    """
    used = np.flatnonzero(carried[-1][1])
    names, found = fabric.resource_names(used), []
    for (since, before), (until, after) in pairwise(carried):
        if until > since:
            rates = (after[used] - before[used]) / (until - since)
            found += [(name, since, rate) for name, rate in zip(names, rates.tolist(), strict=True)]
    return found


def _strike(env: simpy.Environment, network: Network, failure: Failure) -> Processes:
    yield env.timeout(failure.at)
    network.strike(failure)


@dataclass(slots=True)
class _Meeting:
    """Ranks that come to a collective."""

    missing: int
    everyone: simpy.Event
    last_copy_s: Seconds = 0.0
    """When the copies of the last sender are there, of a task without barrier."""


@dataclass(slots=True)
class _Arrivals:
    """What the ranks of a transfer still wait for."""

    rows: list[NDArray[np.int64]]
    """[ranks], flows that each starts."""
    flows_left: NDArray[np.int64]
    """[ranks], that it sends or receives."""
    last_s: Times
    """[ranks], arrival of the last flow so far."""
    done: list[simpy.Event]
    ranks_left: int


class _Run:
    """State of one run while simulated time passes."""

    def __init__(
        self,
        env: simpy.Environment,
        graph: TaskGraph,
        work: RankWork,
        gaps_s: tuple[Seconds, Seconds],
        gpus: Sequence[Gpu],
        network: Network | None,
    ) -> None:
        self.env, self.graph, self.work = env, graph, work
        self.gap_s, self.after_wait_s = gaps_s
        self.gpus, self.network = gpus, network
        shape = work.seconds.shape
        self.ready, self.start, self.done, self.end = np.full((4, *shape), np.nan)
        self.carried: list[tuple[Seconds, Times]] = []
        """(when, bytes of each link until then)"""
        self._ranks = shape[1]
        self._ended: dict[tuple[int, int], simpy.Event] = {}
        self._meetings: dict[tuple[int, int], _Meeting] = {}
        self._arrivals: dict[int, _Arrivals] = {}

    def stream(self, rank: int, stream: Stream) -> Processes:
        """Run the tasks of one stream of a rank."""
        env, end = self.env, self.end
        free = 0.0
        for place in self.graph.of_stream[stream].tolist():
            task = self.graph.tasks[place]
            for earlier in task.depends_on:
                if np.isnan(end[earlier, rank]):
                    self._ended[earlier, rank] = env.event()
                    yield self._ended[earlier, rank]
                free = max(free, end[earlier, rank] + self.after_wait_s)
            if free > env.now:
                yield env.timeout(free - env.now)
            self.ready[place, rank] = env.now
            if task.collective:
                yield from self._collective(place, rank)
            else:
                self.start[place, rank] = env.now
                yield self._kernel(place, rank, stream)
                self.done[place, rank] = env.now
            end[place, rank] = env.now
            if (place, rank) in self._ended:
                self._ended.pop((place, rank)).succeed()
            free = env.now + self.gap_s

    def _kernel(self, place: int, rank: int, stream: Stream) -> simpy.Event:
        launch = self.work.launches[place][rank] if self.work.launches else None
        if launch is None:
            return self.env.timeout(float(self.work.seconds[place, rank]))
        first = TRANSFERS_FIRST if stream is Stream.COMMUNICATION else 0
        return self.gpus[rank].run(launch, priority=first)

    def _collective(self, place: int, rank: int) -> Processes:
        env, task = self.env, self.graph.tasks[place]
        held: Resident | None = None
        if self.work.transfer_sms and self.work.transfer_sms[place]:
            held = self.gpus[rank].hold(self.work.transfer_sms[place], priority=TRANSFERS_FIRST)
            yield held.done
        meeting = self._meeting(place, rank)
        meeting.missing -= 1
        if task.barrier:
            if meeting.missing:
                yield meeting.everyone
            else:
                meeting.everyone.succeed()
        self.start[place, rank] = env.now
        if place in self.work.transfers:
            yield from self._flows(place, rank, held)
            self.done[place, rank] = env.now
        else:
            yield from self._known_time(place, rank, meeting)
        if held is not None:
            self.gpus[rank].release(held)

    def _known_time(self, place: int, rank: int, meeting: _Meeting) -> Processes:
        env, task = self.env, self.graph.tasks[place]
        took = float(self.work.seconds[place, rank])
        sends = took if self.work.sends_s is None else float(self.work.sends_s[place, rank])
        if not task.barrier:
            meeting.last_copy_s = max(meeting.last_copy_s, env.now + sends)
            if not meeting.missing:
                meeting.everyone.succeed()
        yield env.timeout(took)
        self.done[place, rank] = env.now
        if not task.barrier:
            if not meeting.everyone.triggered:
                yield meeting.everyone
            if meeting.last_copy_s > env.now:
                yield env.timeout(meeting.last_copy_s - env.now)

    def _meeting(self, place: int, rank: int) -> _Meeting:
        joins = self.work.joins[place] if self.work.joins else self._ranks
        key = place, rank // joins
        if key not in self._meetings:
            size = min(joins, self._ranks - key[1] * joins)
            self._meetings[key] = _Meeting(size, self.env.event())
        return self._meetings[key]

    # --- transfers as flows

    def _flows(self, place: int, rank: int, held: Resident | None) -> Processes:
        """Send a rank's own flows, and wait for those and for all that others send it."""
        env, transfer = self.env, self.work.transfers[place]
        assert self.network is not None, "flows need a network"
        arrivals = self._arrivals_of(place)
        window = self.work.start_window_s
        if transfer.delay_s or transfer.fill_s:
            yield env.timeout(transfer.delay_s + transfer.fill_s)
        if window and not self.graph.tasks[place].barrier:
            yield env.timeout(np.ceil(env.now / window) * window - env.now)
        gpu = self.gpus[rank]
        drawing = held or gpu.hold(0, priority=TRANSFERS_FIRST)
        if transfer.alone_s > 0:
            gpu.draw(drawing, float(transfer.hbm_bytes[rank]) / transfer.alone_s)
        if len(arrivals.rows[rank]):
            self.network.transfer(
                transfer.flows.of(arrivals.rows[rank]), arrived=partial(self._arrived, place)
            )
        if arrivals.flows_left[rank]:
            yield arrivals.done[rank]
        if arrivals.last_s[rank] > env.now:
            yield env.timeout(arrivals.last_s[rank] - env.now)
        if held is None:
            gpu.release(drawing)
        else:
            gpu.draw(drawing, 0.0)
        arrivals.ranks_left -= 1
        if not arrivals.ranks_left:
            self._count_bytes()

    def _count_bytes(self) -> None:
        """Note what links have carried as a transfer begins or has ended on all ranks."""
        assert self.network is not None
        self.carried.append((self.env.now, self.network.link_bytes()))

    def _arrivals_of(self, place: int) -> _Arrivals:
        if place not in self._arrivals:
            transfer, ranks = self.work.transfers[place], self._ranks
            source = transfer.flows.source - transfer.first_gpu
            destination = transfer.flows.destination - transfer.first_gpu
            starts = np.bincount(transfer.owner, minlength=ranks)
            sends = np.bincount(source, minlength=ranks)
            self._arrivals[place] = _Arrivals(
                rows=np.split(np.argsort(transfer.owner, kind="stable"), np.cumsum(starts)[:-1]),
                flows_left=sends + np.bincount(destination, minlength=ranks),
                last_s=np.zeros(ranks),
                done=[self.env.event() for _ in range(ranks)],
                ranks_left=ranks,
            )
            self._count_bytes()
        return self._arrivals[place]

    def _arrived(self, place: int, batch: FlowBatch, rows: NDArray[np.int64], at: Times) -> None:
        arrivals, first = self._arrivals[place], self.work.transfers[place].first_gpu
        for side in (batch.flows.source, batch.flows.destination):
            np.subtract.at(arrivals.flows_left, side[rows] - first, 1)
            np.maximum.at(arrivals.last_s, side[rows] - first, at)
        for rank in np.flatnonzero(arrivals.flows_left == 0).tolist():
            if not arrivals.done[rank].triggered:
                arrivals.done[rank].succeed()
