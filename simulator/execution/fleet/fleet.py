"""A serving fleet in simulated time: instances, router, failures and the raw log of a run.

Requests arrive, find a prefill instance, are computed in passes, move their KV cache to a decode
instance over the network and are decoded in a continuous batch; in a colocated pool one instance
does both. Every request ends exactly once: finished, rejected with a reason, or unfinished when the
simulation ends. Nothing here knows a metric: rows go to a FleetLog, analysis reads them.

This module holds what happens to a fleet from outside: arrivals, failures, the hours of the day.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np
import simpy

from hardware_profiles.schema import ClusterProfile
from hardware_profiles.units import unit_factor
from simulator.execution.fleet.accounts import Accounts, FleetRun
from simulator.execution.fleet.instance import Instance
from simulator.execution.fleet.kv_cache import longest_kv_tokens
from simulator.execution.fleet.live_request import NEVER, LiveRequest
from simulator.execution.fleet.log import FleetLog, LogWriter, Outcome, SampleRow
from simulator.execution.fleet.router import Router
from simulator.execution.fleet.step_times import StepTimes
from simulator.execution.progress import HowFar, Watch, unwatched
from simulator.scenario.fleet import FleetJob, InstanceFailure
from simulator.workload.requests import (
    ReadCounts,
    Request,
    expected_requests,
    generate_requests,
)

MOST_SAMPLES = 1_000_000
"""Looks at the queues of one run; that many take some ten seconds."""


def run_fleet(
    job: FleetJob,
    step_times: Mapping[str, StepTimes],
    cluster: ClusterProfile,
    *,
    seed: int,
    logs: Sequence[FleetLog],
    watch: Watch = unwatched,
    first: int | None = None,
    only_first: bool = False,
) -> FleetRun:
    """Simulate a fleet.

    Args:
        step_times: of each pool of the job, {"prefill": ..., "decode": ...} or {"colocated": ...}.
        seed: equal seeds give equal logs.
        logs: take the rows while the simulation runs.
        watch: told at every look at the queues how far it has come.
        first: requests, the first to arrive, whose last arrival the logs are told of.
        only_first: end the run once all that these have met up to their last arrival, and the
            first token of each, is known. Others keep coming meanwhile, so that rows up to then
            are those of the whole run.

    Raises:
        ValueError: more GPUs than the cluster has, a pool without step times, a bad trace.
    """
    missing = sorted(set(job.pools) - set(step_times))
    if missing:
        raise ValueError(f"fleet: no step times for the pool {missing[0]}")
    writer = LogWriter(logs)
    fleet = _Fleet(job, step_times, cluster, seed=seed, log=writer, watch=watch, first=first)
    return fleet.run(only_first=only_first)


class _Fleet:
    """One run: the processes that act on a router, and the books."""

    def __init__(
        self,
        job: FleetJob,
        step_times: Mapping[str, StepTimes],
        cluster: ClusterProfile,
        *,
        seed: int,
        log: LogWriter,
        watch: Watch,
        first: int | None,
    ) -> None:
        self._env = simpy.Environment()
        self._job = job
        self._log = log
        self._first = first
        self._first_arrived_s = math.inf
        self._without_token: list[LiveRequest] = []
        """Those of the first requests that had no token when the last of them arrived."""
        self._watch = watch
        self._requests = expected_requests(job.requests)
        requests, thinking = np.random.default_rng(seed).spawn(2)
        self._read = ReadCounts()
        self._stream = generate_requests(job.requests, requests, counts=self._read)
        self._thinking = thinking
        self._accounts = Accounts(self._env, self._log)
        self._router = Router(
            self._env,
            job,
            cluster,
            step_times=step_times,
            accounts=self._accounts,
            log=self._log,
        )
        self._awaited_returns = 0
        self._down_until_s: dict[Instance, float] = {}
        """The latest return of each instance that has failed; infinite if it never returns."""

    def run(self, *, only_first: bool) -> FleetRun:
        env, job = self._env, self._job
        for instance in self._router.instances:
            self._accounts.enter_service(instance)
        if job.requests.closed_loop:
            assert job.requests.synthetic is not None  # closed_loop says so
            for _ in range(job.requests.synthetic.users or 0):
                env.process(self._think_and_send())
        else:
            env.process(self._send_arrivals())
        env.process(self._sample(only_first))
        for failure in job.failures:
            env.process(self._fail_and_return(failure))
        for pool, spec in job.pools.items():
            if spec.hourly_instances is not None:
                env.process(self._follow_hours(pool, spec.hourly_instances))
        stop = self._accounts.done
        if job.horizon is not None:
            stop = self._accounts.done | env.timeout(job.horizon)
        env.run(until=stop)
        for instance in self._router.instances:
            instance.stop()
        return self._accounts.close(self._router.instances, self._read)

    # Arrivals

    def _send_arrivals(self) -> Generator[simpy.Event, Any, None]:
        """Submit each request of the stream at its time."""
        for request in self._stream:
            delay = request.arrival_s - self._env.now
            if delay > 0:
                yield self._env.timeout(delay)
            request.arrival_s = self._env.now
            self._submit(request)
        self._accounts.end_arrivals()

    def _think_and_send(self) -> Generator[simpy.Event, Any, None]:
        """One user of a closed loop: think, send, wait for the end, again."""
        synthetic = self._job.requests.synthetic
        assert synthetic is not None
        think_s = synthetic.think_time or 0.0
        while True:
            yield self._env.timeout(self._thinking.exponential(think_s) if think_s else 0.0)
            request = next(self._stream, None)
            if request is None:
                if not self._accounts.arrivals_over:
                    self._accounts.end_arrivals()
                return
            request.arrival_s = self._env.now
            ended = self._accounts.end_of(request)
            self._submit(request)
            yield ended

    def _submit(self, request: Request) -> None:
        """Take a request in, or reject it."""
        live = LiveRequest(request)
        self._accounts.arrive(live)
        reason = self._reason_to_reject(request)
        if reason is None:
            self._router.route(live)
        else:
            self._accounts.end(live, reason)
        if self._accounts.arrived == self._first:
            self._first_arrived_s = self._env.now
            inside = self._accounts.inside
            self._without_token = [live for live in inside if live.first_token_s == NEVER]
            self._log.first_arrived(self._env.now)

    def _reason_to_reject(self, request: Request) -> Outcome | None:
        if not (self._router.prefilling and self._router.decoding):
            return Outcome.REJECTED_NO_CAPACITY
        context = request.prompt_tokens + request.output_tokens - 1
        decoded = longest_kv_tokens(request, self._job.tokens_per_step)
        if not (
            self._router.decoding[0].cache.holds(decoded)
            and self._router.prefilling[0].cache.holds(context)
        ):
            return Outcome.REJECTED_TOO_LONG
        limit = self._job.max_waiting
        if limit is not None and self._router.waiting_for_prefill() >= limit:
            return Outcome.REJECTED_QUEUE_FULL
        return None

    # What happens at its own time

    def _fail_and_return(self, failure: InstanceFailure) -> Generator[simpy.Event, Any, None]:
        """Take an instance down at its time; its requests start again elsewhere."""
        pool = [i for i in self._router.instances if i.pool == failure.pool]
        instance = pool[failure.instance]
        returns_after = math.inf if failure.returns_after is None else failure.returns_after
        if returns_after < math.inf:
            self._awaited_returns += 1
        yield self._env.timeout(failure.at)
        if instance.up:
            self._router.fail(instance)
        # Of failures that overlap, the one that lasts longest decides.
        until_s = max(self._down_until_s.get(instance, 0.0), self._env.now + returns_after)
        self._down_until_s[instance] = until_s
        if returns_after == math.inf:
            return
        yield self._env.timeout(returns_after)
        self._awaited_returns -= 1
        if not instance.up and self._env.now >= self._down_until_s[instance]:
            instance.come_back()
            self._router.serve_again()

    def _follow_hours(
        self, pool: str, hourly_instances: tuple[int, ...]
    ) -> Generator[simpy.Event, Any, None]:
        """Keep as many instances in service as the hour says, the first ones that are up."""
        instances = [i for i in self._router.instances if i.pool == pool]
        hour = 0
        while True:
            wanted = hourly_instances[hour % len(hourly_instances)]
            for position, instance in enumerate(sorted(instances, key=lambda one: not one.up)):
                instance.accepting = position < wanted
                if instance.accepting:
                    self._accounts.enter_service(instance)
                self._router.retire_if_empty(instance)
            self._router.serve_again()
            yield self._env.timeout(unit_factor("h", "time"))
            hour += 1

    def _sample(self, only_first: bool) -> Generator[simpy.Event, Any, None]:
        """Look at the queues at regular times; end a run in which nothing can happen any more, or
        nothing more is asked of the first requests."""
        for _ in range(MOST_SAMPLES):
            self._log.sample(
                SampleRow(
                    time_s=self._env.now,
                    waiting_prefill=self._router.waiting_for_prefill(),
                    waiting_decode=self._router.waiting_for_decode(),
                    in_system=len(self._accounts.inside),
                    arrived=self._accounts.arrived,
                    ended=self._accounts.ended,
                )
            )
            self._watch(self._progress())
            over = self._job.horizon is None and self._stuck()
            over = over or (only_first and self._first_known())
            if over and not self._accounts.done.triggered:
                self._accounts.done.succeed()
            yield self._env.timeout(self._job.sample_interval)
        raise ValueError(
            f"fleet.sample_interval {self._job.sample_interval:g} s: the run has not ended after "
            f"{MOST_SAMPLES:,} looks, {self._env.now:g} s; allowed: an interval of which the run "
            "needs fewer, such as '1 s'"
        )

    def _progress(self) -> HowFar:
        """How far the run has come: by its end where that is set, else by its requests."""
        now_s, ended = self._env.now, self._accounts.ended
        share = None
        if self._job.horizon is not None:
            share = min(now_s / self._job.horizon, 1.0)
        elif self._requests is not None:
            share = min(ended / self._requests, 1.0)
        return HowFar(share, ended, "requests", now_s)

    def _first_known(self) -> bool:
        """Whether each of the first requests has its first token or has ended, and the iterations
        in which the last of them arrived are over."""
        if self._first_arrived_s == math.inf:
            return False
        # Mostly the last one waits longest.
        waiting = self._without_token
        while waiting and waiting[-1].first_token_s != NEVER:
            waiting.pop()
        return not waiting and all(
            instance.iterating_since_s >= self._first_arrived_s
            for instance in self._router.instances
        )

    def _stuck(self) -> bool:
        """Whether the requests inside can never end: what they need is down for good."""
        if self._awaited_returns or self._router.moving:
            return False
        if not (self._accounts.arrivals_over or self._all_users_wait()):
            return False
        if not all(instance.idle for instance in self._router.instances):
            return False
        if any(pool.hourly_instances for pool in self._job.pools.values()):
            return not all(
                any(i.up for i in pool) for pool in (self._router.prefilling, self._router.decoding)
            )
        return True

    def _all_users_wait(self) -> bool:
        """Whether the request of every user of a closed loop is inside, so that none can come."""
        requests = self._job.requests
        if not requests.closed_loop or requests.synthetic is None:
            return False
        return len(self._accounts.inside) == requests.synthetic.users
