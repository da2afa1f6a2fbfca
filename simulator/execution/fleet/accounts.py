"""The books of a fleet run: requests inside, how each one ended, and GPU time in service.

Every request is booked in once and out once; FleetRun is the balance. Nothing here is a metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import simpy

from simulator.execution.fleet.instance import Instance
from simulator.execution.fleet.live_request import LiveRequest
from simulator.execution.fleet.log import LogWriter, Outcome
from simulator.workload.requests import ReadCounts, Request


@dataclass(frozen=True, slots=True)
class InstanceSummary:
    """One instance, as the log numbers it, and what it has done."""

    pool: str
    gpus: int
    ranks: int
    kv_capacity_tokens: int
    """Of all its ranks."""
    in_service: tuple[tuple[float, float], ...]
    """(start, end) of each time for which it was paid, in order: all of the run, failures
    included, but for hours it was scaled away."""
    kv_allocated_tokens: float
    kv_freed_tokens: float

    def in_service_s(self, start_s: float, end_s: float) -> float:
        """Time for which it was paid from start to end."""
        return sum(
            max(min(end, end_s) - max(start, start_s), 0.0) for start, end in self.in_service
        )


@dataclass(frozen=True, slots=True)
class FleetRun:
    """What a fleet did, in totals; details went to the log."""

    instances: tuple[InstanceSummary, ...]
    arrived: int
    finished: int
    rejected: Mapping[str, int]
    """{reason: requests}."""
    unfinished: int
    tokens_asked: int
    """Output tokens of the requests that finished."""
    tokens_generated: int
    """Output tokens that those requests received."""
    last_arrival_s: float
    end_s: float
    """End of the simulation."""
    request_seconds: float
    """Integral of the number of requests in the service over time, kept event by event."""
    preemptions: int
    restarts: int
    read: ReadCounts
    """Lines of a trace that were read and skipped."""


class Accounts:
    """Counts kept while a fleet runs."""

    def __init__(self, env: simpy.Environment, log: LogWriter) -> None:
        self.inside: dict[LiveRequest, None] = {}
        """Requests that have arrived and not ended, in order of arrival."""
        self.done = env.event()
        """Happens when the last request has ended."""
        self.arrivals_over = False
        self.arrived = 0
        self.ended = 0
        self.preemptions = 0
        self.restarts = 0
        self._env = env
        self._log = log
        self._finished = 0
        self._rejected: dict[str, int] = {}
        self._tokens_asked = 0
        self._tokens_generated = 0
        self._last_arrival_s = 0.0
        self._request_seconds = 0.0
        self._changed_s = 0.0
        self._awaited: dict[int, simpy.Event] = {}
        self._in_service: dict[Instance, list[tuple[float, float]]] = {}
        self._in_service_since: dict[Instance, float] = {}

    def end_of(self, request: Request) -> simpy.Event:
        """The event of the end of a request that is about to arrive."""
        return self._awaited.setdefault(request.index, self._env.event())

    def arrive(self, live: LiveRequest) -> None:
        """Count a request that arrives."""
        self.arrived += 1
        self._last_arrival_s = self._integrate()
        self.inside[live] = None

    def end_arrivals(self) -> None:
        """No further request comes."""
        self.arrivals_over = True
        self._log.arrivals_ended(self._env.now)
        self._check_done()

    def end(self, live: LiveRequest, outcome: Outcome) -> None:
        """Count a request that ends."""
        now = self._integrate()
        del self.inside[live]
        self.ended += 1
        if outcome is Outcome.FINISHED:
            self._finished += 1
            self._tokens_asked += live.request.output_tokens
            self._tokens_generated += live.generated
        else:
            reason = outcome.name.removeprefix("REJECTED_").lower()
            self._rejected[reason] = self._rejected.get(reason, 0) + 1
        self._log.request(live.row(now, outcome))
        if self._awaited:
            awaited = self._awaited.pop(live.request.index, None)
            if awaited is not None:
                awaited.succeed()
        self._check_done()

    def enter_service(self, instance: Instance) -> None:
        """Pay for an instance from now on, if it was not paid for."""
        self._in_service_since.setdefault(instance, self._env.now)

    def leave_service(self, instance: Instance) -> None:
        """Pay for an instance no more."""
        since = self._in_service_since.pop(instance, None)
        if since is not None:
            self._in_service.setdefault(instance, []).append((since, self._env.now))

    def close(self, instances: Sequence[Instance], read: ReadCounts) -> FleetRun:
        """End the run: log who is still inside and return the balance."""
        now = self._integrate()
        for live in self.inside:
            self._log.request(live.row(now, Outcome.UNFINISHED))
        if not self.arrivals_over:
            self._log.arrivals_ended(now)
        self._log.flush()
        for instance in instances:
            self.leave_service(instance)
        return FleetRun(
            instances=tuple(
                InstanceSummary(
                    pool=instance.pool,
                    gpus=instance.spec.gpus_per_instance,
                    ranks=instance.spec.ranks,
                    kv_capacity_tokens=instance.cache.capacity * instance.spec.ranks,
                    in_service=tuple(self._in_service.get(instance, ())),
                    kv_allocated_tokens=instance.cache.allocated,
                    kv_freed_tokens=instance.cache.freed,
                )
                for instance in instances
            ),
            arrived=self.arrived,
            finished=self._finished,
            rejected=dict(self._rejected),
            unfinished=len(self.inside),
            tokens_asked=self._tokens_asked,
            tokens_generated=self._tokens_generated,
            last_arrival_s=self._last_arrival_s,
            end_s=now,
            request_seconds=self._request_seconds,
            preemptions=self.preemptions,
            restarts=self.restarts,
            read=read,
        )

    def _integrate(self) -> float:
        """Keep the integral of the number of requests inside up to now, which is returned."""
        now = self._env.now
        self._request_seconds += len(self.inside) * (now - self._changed_s)
        self._changed_s = now
        return now

    def _check_done(self) -> None:
        if self.arrivals_over and not self.inside and not self.done.triggered:
            self.done.succeed()
