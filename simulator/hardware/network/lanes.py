"""Flows that move at one rate, and senders that send their tokens in one order.

A lane is flows that the same bytes cross one after the other, as tokens do that pass a NIC and then
NVLink: each moves in proportion to its bytes, at the rate that the slowest of them allows. A stream
is lanes whose bytes leave in one order, as a channel's tokens do to their nodes: each lane is ahead
of every other of its stream by at most what its buffers hold, and one that is ahead by so much goes
no faster than the one that it waits for (head of line).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.hardware.network.fairness import Floats, Incidence, Indices, Integers

_AT_LIMIT = 1e-6
"""Share of a lead that is missing when a lane counts as held up."""

_FASTER = 1 + 1e-9


@dataclass(frozen=True, slots=True)
class Lanes:
    """Which flows of a batch are a lane, and which lanes a stream."""

    lane: Integers
    """[flows]"""
    stream: Integers
    """[lanes]"""
    size: Floats
    """[lanes], bytes that its rate counts in beside other lanes and flows."""
    lead: float
    """Share of a lane's bytes by which it may be ahead of another of its stream."""

    def of(self, rows: Integers) -> Lanes:
        """The same of some of the flows."""
        return Lanes(self.lane[rows], self.stream, self.size, self.lead)


@dataclass(frozen=True, slots=True)
class LanesUnderWay:
    """Lanes of flows that are solved together."""

    lane: Integers
    """[flows]"""
    first: Integers
    """[lanes], one flow of each."""
    stream: Integers
    """[lanes]"""
    lead: Floats
    """[lanes]"""
    total: Floats
    """[flows], bytes on the wire when they started."""
    size: Floats
    """[lanes], bytes that its rate counts in."""

    @property
    def streams(self) -> int:
        """How many there are."""
        return int(self.stream.max()) + 1

    def over_streams(self, paths: Indices, resources: int) -> Incidence:
        """Flows over their resources, and over their stream as one more, which has no limit.

        Args:
            paths: [flows, hops], by number; `resources` itself stands for none.
        """
        every = resources + self.streams
        wider = np.empty((paths.shape[1] + 1, len(paths)), dtype=np.int32).T
        wider[:, :-1] = np.where(paths == resources, every, paths)
        wider[:, -1] = resources + self.stream[self.lane]
        return Incidence(wider, every)

    def growth(self, joint: Integers) -> Floats:
        """[flows], rate of each over that of the lane that it goes with.

        Args:
            joint: [lanes], the lane whose rate each has.
        """
        return np.asarray(self.total / self.size[joint][self.lane], dtype=float)

    def held(self, remaining: Floats, rate: Floats, active: np.ndarray) -> Integers:
        """[lanes], the lane that each waits for, or itself.

        Args:
            remaining: [flows], bytes on the wire.
            rate: [flows], bytes/s if no lane waited.
            active: [flows], whether each is still under way.
        """
        found = np.arange(len(self.stream))
        ahead, behind, lead = self._pairs(remaining, active)
        speed = rate[self.first] / self.total[self.first]
        waits = (lead <= _AT_LIMIT * self.lead[ahead]) & (speed[ahead] > speed[behind] * _FASTER)
        # The slowest that a lane waits for is written last.
        order = np.argsort(-speed[behind[waits]], kind="stable")
        found[ahead[waits][order]] = behind[waits][order]
        return found

    def until_held(self, remaining: Floats, rate: Floats, active: np.ndarray) -> Floats:
        """Seconds until a lane is as far ahead of another as it may be, at these rates."""
        ahead, behind, lead = self._pairs(remaining, active)
        speed = rate[self.first] / self.total[self.first]
        faster = speed[ahead] - speed[behind]
        comes = (lead > _AT_LIMIT * self.lead[ahead]) & (speed[ahead] > speed[behind] * _FASTER)
        return np.asarray(lead[comes] / faster[comes], dtype=float)

    def _pairs(self, remaining: Floats, active: np.ndarray) -> tuple[Integers, Integers, Floats]:
        """Ordered pairs of lanes of one stream, both under way, and the lead left to the first."""
        position = 1 - remaining[self.first] / self.total[self.first]
        runs = np.flatnonzero(active[self.first] & (self.lead < 1))
        order = runs[np.argsort(self.stream[runs], kind="stable")]
        sizes = np.bincount(self.stream[order], minlength=self.streams)
        starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
        of_each = sizes[self.stream[order]]
        ahead = np.repeat(order, of_each)
        within = np.arange(len(ahead)) - np.repeat(np.cumsum(of_each) - of_each, of_each)
        behind = order[np.repeat(starts, of_each) + within]
        differ = ahead != behind
        ahead, behind = ahead[differ], behind[differ]
        lead = self.lead[ahead] - (position[ahead] - position[behind])
        return ahead, behind, lead


def gather_lanes(
    lanes: Sequence[Lanes | None], wires: Sequence[Floats], batch: Integers, row: Integers
) -> LanesUnderWay | None:
    """Lanes of flows of several batches; a flow of a batch without lanes is one by itself.

    Args:
        lanes: [batches]
        wires: [batches][flows], bytes on the wire.
        batch: [flows], of each flow that is solved.
        row: [flows], in its batch.
    """
    if all(one is None for one in lanes):
        return None
    count = len(batch)
    lane, stream = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    lead, total, size = np.ones(count), np.empty(count), np.empty(count)
    next_lane = next_stream = 0
    for number, (one, wire) in enumerate(zip(lanes, wires, strict=True)):
        mine = np.flatnonzero(batch == number)
        rows = row[mine]
        total[mine] = size[mine] = wire[rows]
        own = np.arange(len(mine)) if one is None else one.lane[rows]
        lane[mine] = next_lane + own
        stream[mine] = next_stream + (own if one is None else one.stream[own])
        if one is not None:
            lead[mine], size[mine] = one.lead, one.size[own]
        next_lane += len(mine) if one is None else len(one.stream)
        next_stream += len(mine) if one is None else int(one.stream.max(initial=-1)) + 1
    _, first, lane = np.unique(lane, return_index=True, return_inverse=True)
    _, of_stream = np.unique(stream[first], return_inverse=True)
    return LanesUnderWay(lane, first, of_stream, lead[first], total, size[first])
