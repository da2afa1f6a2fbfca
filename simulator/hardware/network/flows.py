"""Flows over a fabric in simulated time, at max-min fair rates.

A flow is a number of bytes between two GPUs along one route, all of whose resources it holds at
once (a fluid model: no packets, no queues, no congestion spreading). Rates change only when flows
start or finish or links fail. There is one solve an instant: everything that happens at one moment
is gathered, and only flows that share a resource with it, directly or through others, are solved
again. The last byte arrives one route latency after it was sent.

Flows may be lanes, which move at one rate, of streams, which send in order (see lanes.py).

Completions closer together than ``window`` may be taken as one instant: the first one's bandwidth
is then handed to others only at the last one's, so that times are at most ``window`` late each and
never early, and bytes are exact. Zero is exact.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import simpy
from simpy.events import EventPriority

from simulator.hardware.network.fairness import Floats, Incidence, Indices, Integers, fill
from simulator.hardware.network.lanes import Lanes, LanesUnderWay, gather_lanes
from simulator.hardware.network.routing import (
    Failure,
    Mask,
    Routes,
    no_live_path,
    route,
    stack_paths,
    struck_resources,
)
from simulator.hardware.network.topology import Fabric

_AFTER_EVERYTHING = cast(EventPriority, 2)
"""simpy priority behind URGENT and NORMAL: the solve of an instant comes last in it."""

_SAME_INSTANT = 1e-12
"""Completions this close, relative to the time since the flows' start, are one instant anyway."""


@dataclass(slots=True)
class Flows:
    """Transfers that start together; arrays [flows]."""

    source: Integers
    """GPU"""
    destination: Integers
    """GPU"""
    size: Floats
    """Payload bytes of one flow."""
    multiplicity: Floats
    """Identical flows that a row stands for."""
    wire: Floats
    """Bytes of one flow on the wire: payload, headers, and the time that a message-rate limit
    costs, expressed in bytes."""
    choice: Integers
    """Tells flows of one pair apart for ECMP, as a queue pair does."""
    rdma: bool = False
    """Through NICs even inside a node."""
    also: Indices | None = None
    """[flows, hops], resources that each crosses besides its route; -1 where it has fewer."""
    lanes: Lanes | None = None
    """Which of them move at one rate."""

    def __len__(self) -> int:
        return len(self.source)

    def of(self, rows: Integers) -> "Flows":
        """Some of the flows."""
        return Flows(
            self.source[rows],
            self.destination[rows],
            self.size[rows],
            self.multiplicity[rows],
            self.wire[rows],
            self.choice[rows],
            rdma=self.rdma,
            also=None if self.also is None else self.also[rows],
            lanes=None if self.lanes is None else self.lanes.of(rows),
        )

    @property
    def payload(self) -> float:
        """Bytes of all flows together; added up by numpy, whose order no number of threads changes
        as it does that of a product of vectors."""
        return float((self.size * self.multiplicity).sum())


def make_flows(
    source: Integers,
    destination: Integers,
    size: Floats | float,
    *,
    multiplicity: Floats | float = 1.0,
    wire: Floats | None = None,
    choice: Integers | int = 0,
    rdma: bool = False,
) -> Flows:
    """Return Flows with scalars spread over all rows and flows of zero bytes left out."""
    count = len(source)
    sizes = np.broadcast_to(np.asarray(size, dtype=float), (count,))
    some = sizes > 0
    full = (
        sizes,
        np.broadcast_to(np.asarray(multiplicity, dtype=float), (count,)),
        sizes if wire is None else wire,
        np.broadcast_to(np.asarray(choice, dtype=np.int64), (count,)),
    )
    if not some.all():
        source, destination = source[some], destination[some]
        full = tuple(array[some] for array in full)  # type: ignore[assignment]
    return Flows(source, destination, *full, rdma=rdma)


Arrived: TypeAlias = Callable[["FlowBatch", Integers, Floats], None]
"""(batch, rows that are sent completely, when the last byte of each arrives, at the soonest now)"""


@dataclass(slots=True)
class FlowBatch:
    """A batch of flows under way; the value of the event that ``Network.transfer`` returns."""

    flows: Flows
    start: float
    finish: Floats
    """[flows], seconds, when the last byte arrives; NaN while under way."""
    priority: int
    done: simpy.Event = field(repr=False)
    waiting: int = 0
    """Rows not yet sent completely."""
    arrived: Arrived | None = field(default=None, repr=False)
    """Told of rows as they are sent completely."""

    @property
    def seconds(self) -> float:
        """Time from the start to the last arrival."""
        return float(self.finish.max() - self.start) if len(self.finish) else 0.0


@dataclass(slots=True)
class _Group:
    """Flows that are solved together; arrays over its own flows and its own resources."""

    resources: Integers
    """[local resources], their numbers in the fabric."""
    incidence: Incidence
    """Paths over the resources that can bind, by their local numbers."""
    paths: Indices
    """[flows, hops], all resources, by their local numbers."""
    batch: Integers
    """[flows], index into ``transfers``."""
    row: Integers
    """[flows], row in its transfer."""
    transfers: list[FlowBatch]
    initial: Floats
    """Wire bytes of each flow when the group was formed."""
    remaining: Floats
    multiplicity: Floats
    active: Mask
    load: Floats
    since: float
    """Time at which ``remaining`` held."""
    rate: Floats
    lanes: LanesUnderWay | None = None
    generation: int = 0
    """Of the latest solve; a timeout of an earlier one is stale."""


class Network:
    """Carries flows over a fabric inside a simpy environment."""

    def __init__(self, env: simpy.Environment, fabric: Fabric, *, window: float = 0.0) -> None:
        if window < 0:
            raise ValueError(f"window must not be negative, got {window:g} s")
        self.env = env
        self.fabric = fabric
        self.window = window
        self.carried = np.zeros(fabric.resources)
        """[resources], bytes on the wire of flows that are done; links and bundles apart."""
        self.solves = 0
        self.solved_again = 0
        """Flows of all solves that follow a completion, which the work goes with."""
        self.stalled: list[str] = []
        """One line for each transfer that a failure has cut off."""
        self._factor = np.ones(fabric.resources)
        self._capacity = fabric.capacity.copy()
        self._binds = fabric.can_bind(self._capacity)
        self._owner = np.full(fabric.resources, -1, dtype=np.int64)
        self._groups: dict[int, _Group] = {}
        self._next_group = 0
        self._arrivals: list[FlowBatch] = []
        self._struck: list[Failure] = []
        self._due: list[int] = []
        self._solve_is_coming = False

    # --- what callers use

    def transfer(
        self, flows: Flows, *, priority: int = 0, arrived: Arrived | None = None
    ) -> simpy.Event:
        """Start ``flows`` now; the event fires with the ``FlowBatch`` when the last byte is there.

        Higher ``priority`` is a traffic class served first: lower ones share what it leaves.
        ``arrived`` is told of rows as they are sent completely.
        Raises ValueError where the fabric, as it is now, does not join a source to a destination.
        """
        transfer = FlowBatch(
            flows=flows,
            start=self.env.now,
            finish=np.full(len(flows), np.nan),
            priority=priority,
            done=self.env.event(),
            waiting=len(flows),
            arrived=arrived,
        )
        if not len(flows):
            transfer.done.succeed(transfer)
            return transfer.done
        self._arrivals.append(transfer)
        self._solve_this_instant()
        return transfer.done

    def strike(self, failure: Failure) -> None:
        """Let something fail, or a link become slow, now; ``failure.at`` is not looked at."""
        self._struck.append(failure)
        self._solve_this_instant()

    def dead(self) -> Mask | None:
        """Mask [resources] of what has failed, or None while all is well."""
        mask = self._capacity <= 0
        return mask if mask.any() else None

    def link_bytes(self) -> Floats:
        """Bytes on the wire of each link so far [resources]; bundles' are on their links."""
        carried = self.carried.copy()
        for group in self._groups.values():
            carried += self._moved(group)
        return self.fabric.spread_over_links(carried, self._capacity)

    # --- one solve an instant

    def _solve_this_instant(self) -> None:
        if self._solve_is_coming:
            return
        self._solve_is_coming = True
        event = self.env.event()
        event._ok, event._value = True, None
        event.callbacks = [self._solve]
        self.env.schedule(event, priority=_AFTER_EVERYTHING)

    def _solve(self, _: simpy.Event) -> None:
        self._solve_is_coming = False
        arrivals, self._arrivals = self._arrivals, []
        struck, self._struck = self._struck, []
        due, self._due = self._due, []
        survivors: list[tuple[_Group, Integers]] = []
        if struck:
            survivors = self._break_up(list(self._groups))
            self._apply(struck)
        if arrivals or survivors:
            self._regroup(arrivals, survivors)
        for number in due:
            if number in self._groups:
                group = self._groups[number]
                self._advance(group)
                self._next(number, group)

    def _apply(self, struck: list[Failure]) -> None:
        # What was carried so far went over the links as they were.
        self.carried = self.link_bytes()
        for failure in struck:
            self._factor[struck_resources(self.fabric, failure)] *= failure.factor
        alive = self._factor > 0
        left = np.multiply(
            self.fabric.capacity, self._factor, where=alive, out=np.zeros(len(alive))
        )
        self._capacity = self.fabric.bundle_capacity(left)
        self._binds = self.fabric.can_bind(self._capacity)

    def _break_up(self, numbers: list[int]) -> list[tuple[_Group, Integers]]:
        """Take groups apart; returns each with its rows that are still under way."""
        parts: list[tuple[_Group, Integers]] = []
        for number in numbers:
            group = self._groups.pop(number)
            self._advance(group)
            self.carried += self._moved(group)
            self._owner[group.resources] = -1
            parts.append((group, np.flatnonzero(group.active)))
        return parts

    def _regroup(self, arrivals: list[FlowBatch], survivors: list[tuple[_Group, Integers]]) -> None:
        """Join new flows and those that they meet into one group, and solve it."""
        dead = self.dead()
        routes = [self._route(transfer.flows, dead) for transfer in arrivals]
        if not survivors:
            met: set[int] = set()
            for found in routes:
                owners = self._owner[self._crossed(found.paths)]
                met.update(np.unique(owners[owners >= 0]).tolist())
            survivors = self._break_up(sorted(met))
            rerouted = False
        else:
            rerouted = True
        paths: list[Indices] = []
        batch: list[npt.NDArray[Any]] = []
        row: list[npt.NDArray[Any]] = []
        remaining: list[Floats] = []
        transfers: list[FlowBatch] = []
        for transfer, found in zip(arrivals, routes, strict=True):
            lost = np.flatnonzero(~found.reachable)
            if len(lost):
                raise ValueError(f"fabric: {self._cut_off(transfer.flows, lost)}")
            paths.append(found.paths)
            batch.append(np.broadcast_to(np.int32(len(transfers)), (len(transfer.flows),)))
            row.append(np.arange(len(transfer.flows), dtype=np.int32))
            remaining.append(transfer.flows.wire)
            transfers.append(transfer)
        for group, rows in survivors:
            local = group.paths[rows]
            numbers = np.append(group.resources, -1)[local]
            keep = np.ones(len(rows), dtype=bool)
            if rerouted:
                numbers, keep = self._reroute(group, rows, numbers, dead)
            paths.append(numbers[keep].astype(np.int32))
            batch.append(group.batch[rows][keep] + len(transfers))
            row.append(group.row[rows][keep])
            remaining.append(group.remaining[rows][keep])
            transfers.extend(group.transfers)
        joined = stack_paths(paths)
        if len(joined):
            self._start(joined, _joined(batch), _joined(row), _joined(remaining), transfers)

    def _route(self, flows: Flows, dead: Mask | None) -> Routes:
        found = route(
            self.fabric,
            flows.source,
            flows.destination,
            choice=flows.choice,
            rdma=flows.rdma,
            dead=dead,
        )
        if flows.also is None:
            return found
        return Routes(np.concatenate([found.paths, flows.also], axis=1), found.reachable)

    def _reroute(
        self, group: _Group, rows: Integers, numbers: Indices, dead: Mask | None
    ) -> tuple[Indices, Mask]:
        """New routes for the rows of a group after a failure, and which rows still have one."""
        keep = np.ones(len(rows), dtype=bool)
        if dead is None:
            return numbers, keep
        width = numbers.shape[1]
        for index in np.unique(group.batch[rows]).tolist():
            transfer = group.transfers[index]
            mine = np.flatnonzero(group.batch[rows] == index)
            of_flow = group.row[rows[mine]]
            found = self._route(transfer.flows.of(of_flow), dead)
            if found.paths.shape[1] > width:
                wider = np.full((len(rows), found.paths.shape[1]), -1, dtype=numbers.dtype)
                wider[:, :width] = numbers
                numbers, width = wider, found.paths.shape[1]
            numbers[mine] = -1
            numbers[mine, : found.paths.shape[1]] = found.paths
            lost = ~found.reachable
            if lost.any():
                keep[mine[lost]] = False
                self.stalled.append(self._cut_off(transfer.flows, of_flow[lost]))
        return numbers, keep

    def _cut_off(self, flows: Flows, lost: Integers) -> str:
        source, target = int(flows.source[lost[0]]), int(flows.destination[lost[0]])
        path = no_live_path(self.fabric, source, target)
        return f"{len(lost)} of {len(flows)} flows cut off at {self.env.now:g} s: {path}"

    def _start(
        self,
        paths: Indices,
        batch: Integers,
        row: Integers,
        remaining: Floats,
        transfers: list[FlowBatch],
    ) -> None:
        resources = self._crossed(paths)
        local = np.full(self.fabric.resources + 1, len(resources), dtype=np.int32)
        local[resources] = np.arange(len(resources))
        # Hops that hold nothing that can bind go last, so that what is solved is a view. Column by
        # column and in place: with millions of flows, fresh memory costs more than arithmetic.
        can_bind = np.append(self._binds, False)
        binds = [bool(can_bind[hop].any()) for hop in paths.T]
        order = sorted(range(len(binds)), key=lambda hop: not binds[hop])
        everything = np.empty((len(order), len(paths)), dtype=np.int32).T
        for place, hop in enumerate(order):
            np.take(local, paths[:, hop], out=everything[:, place], mode="wrap")
        binding = everything[:, : max(sum(binds), 1)]
        never = np.flatnonzero(~self._binds[resources])
        if len(never) and np.isin(binding, never).any():
            keep = np.arange(len(resources) + 1, dtype=np.int32)
            keep[never] = len(resources)
            binding = keep[binding]
        lanes = gather_lanes(
            [transfer.flows.lanes for transfer in transfers],
            [transfer.flows.wire for transfer in transfers],
            batch,
            row,
        )
        if lanes is None:
            incidence = Incidence(binding, len(resources))
        else:
            incidence = lanes.over_streams(binding, len(resources))
        if len(transfers) == 1 and len(row) == len(transfers[0].flows):
            multiplicity = transfers[0].flows.multiplicity
        else:
            multiplicity = np.empty(len(row))
            for index, transfer in enumerate(transfers):
                mine = batch == index
                multiplicity[mine] = transfer.flows.multiplicity[row[mine]]
        group = _Group(
            resources=resources,
            incidence=incidence,
            paths=everything,
            batch=batch,
            row=row,
            transfers=transfers,
            initial=remaining,
            remaining=remaining.copy(),
            multiplicity=multiplicity,
            active=np.ones(len(paths), dtype=bool),
            load=incidence.load(multiplicity),
            since=self.env.now,
            rate=np.zeros(len(paths)),
            lanes=lanes,
        )
        self._owner[resources] = self._next_group
        self._groups[self._next_group] = group
        self._next(self._next_group, group)
        self._next_group += 1

    def _crossed(self, paths: Indices) -> Integers:
        """Resources that any of the paths crosses, sorted."""
        used = np.zeros(self.fabric.resources + 1, dtype=bool)
        for hop in paths.T:
            used[hop] = True  # index -1, unused, is the last
        return np.flatnonzero(used[:-1])

    def _next(self, number: int, group: _Group) -> None:
        """Solve a group's rates and set the timeout of its next completions."""
        group.generation += 1
        if not group.active.any():
            self._groups.pop(number)
            self._owner[group.resources] = -1
            self.carried += self._moved(group)
            return
        self._fill(group)
        self.solves += 1
        if group.generation > 1:
            self.solved_again += int(np.count_nonzero(group.active))
        running: Any = slice(None) if group.active.all() else group.active
        until = _time_left(group.remaining[running], group.rate[running])
        if group.lanes is not None:
            held = group.lanes.until_held(group.remaining, group.rate, group.active)
            until = np.concatenate([until, held])
        first = until.min()
        until[until > first * (1 + _SAME_INSTANT) + self.window] = first
        generation = group.generation
        timeout = self.env.timeout(float(until.max()))
        timeout.callbacks.append(lambda _: self._is_due(number, generation))

    def _is_due(self, number: int, generation: int) -> None:
        group = self._groups.get(number)
        if group is not None and group.generation == generation:
            self._due.append(number)
            self._solve_this_instant()

    def _fill(self, group: _Group) -> None:
        """Set the rates of a group; lanes that wait for others of their stream go with them."""
        lanes = group.lanes
        if lanes is None:
            group.rate = self._rates(group, group.multiplicity)
            return
        alone = np.arange(len(lanes.stream))
        group.rate = self._joint_rates(group, lanes, alone)
        held = lanes.held(group.remaining, group.rate, group.active)
        if (held != alone).any():
            group.rate = self._joint_rates(group, lanes, held)

    def _joint_rates(self, group: _Group, lanes: LanesUnderWay, joint: Integers) -> Floats:
        growth = lanes.growth(joint)
        weight = group.multiplicity * growth
        return np.asarray(growth * self._rates(group, weight, joint[lanes.lane]))

    def _rates(self, group: _Group, weight: Floats, joint: Integers | None = None) -> Floats:
        """Rates of flows that put so much more than them on their resources, [flows] each."""
        incidence = group.incidence
        capacity = self._capacity[group.resources]
        # What lanes and streams share besides has no limit.
        capacity = np.append(capacity, np.full(incidence.resources - len(capacity), np.inf))
        priorities = sorted({t.priority for t in group.transfers if t.waiting}, reverse=True)
        if len(priorities) == 1:
            load = group.load if joint is None else incidence.load(weight * group.active)
            return fill(incidence, capacity, weight, load=load, active=group.active, joint=joint)
        level = np.array([t.priority for t in group.transfers])[group.batch]
        rates = np.zeros(len(level))
        whole = capacity.copy()
        for priority in priorities:
            active = group.active & (level == priority)
            flows = np.flatnonzero(active)
            load = incidence.load(weight, flows)
            rates += fill(incidence, capacity, weight, load=load, active=active, joint=joint)
            crossed = incidence.paths[flows]
            for hop in range(crossed.shape[1]):
                used = rates[flows] * weight[flows]
                capacity -= np.bincount(crossed[:, hop], used, len(capacity) + 1)[:-1]
            # What rounding leaves of a full link is not bandwidth.
            capacity[capacity < whole * _SAME_INSTANT] = 0.0
        return rates

    def _advance(self, group: _Group) -> None:
        """Move bytes up to now and finish the flows that have sent all of theirs."""
        now = self.env.now
        elapsed = now - group.since
        everyone = bool(group.active.all())
        running: Any = slice(None) if everyone else np.flatnonzero(group.active)
        rate, before = group.rate[running], group.remaining[running]
        needed = _time_left(before, rate)
        # The clock's resolution: a rest shorter than it would never become due.
        done = needed <= elapsed * (1 + _SAME_INSTANT) + 4 * np.spacing(now)
        with np.errstate(divide="ignore", invalid="ignore"):
            group.remaining[running] = (
                0.0 if done.all() else np.where(done, 0.0, before * (1 - elapsed / needed))
            )
        finished = np.flatnonzero(done) if everyone else running[done]
        if len(finished):
            group.active[finished] = False
            group.load -= group.incidence.load(group.multiplicity, finished)
            arrival = np.minimum(group.since + needed[done], now) + self._latency(group, finished)
            if len(finished) == len(group.row) and len(group.transfers) == 1:
                self._arrive(group.transfers[0], group.row, arrival)
                group.since = now
                return
            of_batch = group.batch[finished]
            for index in np.flatnonzero(np.bincount(of_batch)).tolist():
                mine = of_batch == index
                self._arrive(group.transfers[index], group.row[finished[mine]], arrival[mine])
        group.since = now

    def _arrive(self, transfer: FlowBatch, rows: Integers, times: Floats) -> None:
        """Note when flows arrived, and let the transfer's event fire when the last one has."""
        if len(rows) == len(transfer.finish):
            transfer.finish = (
                times if rows[0] == 0 and (np.diff(rows) == 1).all() else (times[np.argsort(rows)])
            )
        else:
            transfer.finish[rows] = times
        transfer.waiting -= len(rows)
        if transfer.arrived is not None:
            transfer.arrived(transfer, rows, times)
        if not transfer.waiting:
            self._fire(transfer, float(transfer.finish.max()) - self.env.now)

    def _latency(self, group: _Group, flows: Integers) -> Floats:
        """Seconds that the last byte of each flow is on its way."""
        of_resource = np.append(self.fabric.latency[group.resources], 0.0)
        paths = group.paths if len(flows) == len(group.paths) else group.paths[flows]
        total = np.zeros(len(flows))
        for hop in paths.T:
            total += of_resource[hop]
        return total

    def _fire(self, transfer: FlowBatch, delay: float) -> None:
        timeout = self.env.timeout(max(delay, 0.0))

        def arrive(_: simpy.Event) -> None:
            transfer.done.succeed(transfer)

        timeout.callbacks.append(arrive)

    def _moved(self, group: _Group) -> Floats:
        """Bytes on the wire [resources] of a group's flows since it was formed."""
        moved = np.zeros(len(group.resources) + 1)
        sent = (group.initial - group.remaining) * group.multiplicity
        for hop in range(group.paths.shape[1]):
            moved += np.bincount(group.paths[:, hop], sent, minlength=len(moved))
        carried = np.zeros(self.fabric.resources)
        carried[group.resources] = moved[:-1]
        return carried


def _joined(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _time_left(remaining: Floats, rate: Floats) -> Floats:
    """Seconds until each flow has sent the rest; infinite at rate 0, none without a limit."""
    with np.errstate(divide="ignore"):
        return remaining / rate
