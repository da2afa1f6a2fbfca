"""A serving fleet in simulated time: a FleetJob and step times in, a FleetRun and a raw log out.

Requests arrive, find a prefill instance, are computed in passes, move their KV cache to a decode
instance over the network and are decoded in a continuous batch; in a colocated pool one instance
does both. Every request ends exactly once: finished, rejected with a reason, or unfinished when the
simulation ends. Nothing here knows a metric: rows go to a FleetLog, analysis reads them.

Assumptions: a transfer has the sending and the receiving rank's links to itself and others queue
behind it (the network between is not congested: each GPU has its own NIC and plane); a preempted
request frees its KV cache at once and the copy to host memory delays only its own return.
"""

from __future__ import annotations

import bisect
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from hardware_profiles.schema import ClusterProfile
from hardware_profiles.units import unit_factor
from simulator.execution.fleet_instance import Instance, longest_kv_tokens
from simulator.execution.fleet_log import FleetLog, LogWriter, Outcome, SampleRow
from simulator.execution.fleet_request import LiveRequest
from simulator.execution.prefix_cache import BlockStore, Link, match_prefix
from simulator.execution.step_times import StepTimes
from simulator.fleet_job import CacheTier, Failure, FleetJob, PoolSpec
from simulator.workload.requests import ReadCounts, Request, generate_requests


@dataclass(frozen=True, slots=True)
class InstanceSummary:
    """One instance, as the log numbers it, and what it has done."""

    pool: str
    gpus: int
    ranks: int
    kv_capacity_tokens: int
    """Of all its ranks."""
    in_service_s: float
    """Time for which it was paid: all of the run, but for hours it was scaled away."""
    kv_allocated_tokens: float
    kv_freed_tokens: float


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


@dataclass(slots=True, eq=False)
class _Transfer:
    """KV cache of a request on its way."""

    source: Instance | None
    """None when it comes out of host memory."""
    target: Instance
    event: simpy.Event = field(repr=False)


def run_fleet(
    job: FleetJob,
    step_times: Mapping[str, StepTimes],
    cluster: ClusterProfile,
    *,
    seed: int,
    log: FleetLog,
) -> FleetRun:
    """Simulate a fleet.

    Args:
        step_times: of each pool of the job, {"prefill": ..., "decode": ...} or {"colocated": ...}.
        seed: equal seeds give equal logs.
        log: takes the rows while the simulation runs.

    Raises:
        ValueError: more GPUs than the cluster has, a pool without step times, a bad trace.
    """
    missing = sorted(set(job.pools) - set(step_times))
    if missing:
        raise ValueError(f"fleet: no step times for the pool {missing[0]}")
    gpus = sum(pool.instances * pool.gpus_per_instance for pool in job.pools.values())
    if gpus > cluster.gpus:
        raise ValueError(
            f"fleet: the pools have {gpus} GPUs; allowed: at most the {cluster.gpus} of "
            f"cluster {cluster.name}"
        )
    return _Fleet(job, step_times, cluster, seed=seed, log=log).run()


class _Fleet:
    """Router, queues between the pools, and everything that happens to instances."""

    def __init__(
        self,
        job: FleetJob,
        step_times: Mapping[str, StepTimes],
        cluster: ClusterProfile,
        *,
        seed: int,
        log: FleetLog,
    ) -> None:
        self._env = simpy.Environment()
        self._job = job
        self._log = LogWriter(log)
        requests, thinking = np.random.default_rng(seed).spawn(2)
        self._counts = ReadCounts()
        self._stream = generate_requests(job.requests, requests, counts=self._counts)
        self._thinking = thinking
        self._fleet_tiers = [
            BlockStore(_blocks(job, tier)) for tier in _tiers(job) if tier.scope == "fleet"
        ]
        self._instances: list[Instance] = []
        for pool, spec in job.pools.items():
            for _ in range(spec.instances):
                self._instances.append(self._build(pool, spec, step_times[pool], cluster))
        self._prefilling = [i for i in self._instances if i.prefills]
        self._decoding = [i for i in self._instances if i.decodes]
        self._prefill_times = step_times["prefill" if "prefill" in job.pools else "colocated"]
        self._users: dict[int, simpy.Event] = {}
        """{request: event of its end}, for which a user of a closed loop waits."""
        self._turn = 0
        self._parked: list[LiveRequest] = []
        """Requests for which no prefill instance is in service."""
        self._waiting_decode: list[LiveRequest] = []
        self._sources: dict[LiveRequest, Instance] = {}
        """Where the KV cache of each request that waits for decode lies."""
        self._transfers: dict[LiveRequest, _Transfer] = {}
        self._loading: dict[LiveRequest, tuple[Instance, simpy.Event]] = {}
        """Requests whose cached prefix is on its way to their prefill instance."""
        self._inside: dict[LiveRequest, None] = {}
        self._done = self._env.event()
        self._arrivals_over = False
        self._arrived = 0
        self._ended = 0
        self._finished = 0
        self._rejected: dict[str, int] = {}
        self._tokens_asked = 0
        self._tokens_generated = 0
        self._last_arrival_s = 0.0
        self._request_seconds = 0.0
        self._changed_s = 0.0
        self._preemptions = 0
        self._restarts = 0
        self._in_service_s = [0.0 for _ in self._instances]
        self._in_service_since: list[float | None] = [0.0 for _ in self._instances]
        self._awaited_returns = 0

    def run(self) -> FleetRun:
        env, job = self._env, self._job
        if job.requests.closed_loop:
            assert job.requests.synthetic is not None  # closed_loop says so
            for _ in range(job.requests.synthetic.users or 0):
                env.process(self._think_and_send())
        else:
            env.process(self._send_arrivals())
        env.process(self._sample())
        for failure in job.failures:
            env.process(self._fail_and_return(failure))
        for pool, spec in job.pools.items():
            if spec.hourly_instances is not None:
                env.process(self._follow_hours(pool, spec.hourly_instances))
        stop = self._done
        if job.horizon is not None:
            stop = self._done | env.timeout(job.horizon)
        env.run(until=stop)
        return self._finish()

    def _finish(self) -> FleetRun:
        now = self._env.now
        for instance in self._instances:
            instance.stop()
        self._count_inside()
        unfinished = list(self._inside)
        for live in unfinished:
            self._log.request(live.row(now, Outcome.UNFINISHED))
        if not self._arrivals_over:
            self._log.arrivals_ended(now)
        self._log.flush()
        for number in range(len(self._instances)):
            self._leave_service(number)
        return FleetRun(
            instances=tuple(
                InstanceSummary(
                    pool=instance.pool,
                    gpus=instance.spec.gpus_per_instance,
                    ranks=instance.spec.ranks,
                    kv_capacity_tokens=instance.capacity * instance.spec.ranks,
                    in_service_s=self._in_service_s[instance.index],
                    kv_allocated_tokens=instance.allocated,
                    kv_freed_tokens=instance.freed,
                )
                for instance in self._instances
            ),
            arrived=self._arrived,
            finished=self._finished,
            rejected=dict(self._rejected),
            unfinished=len(unfinished),
            tokens_asked=self._tokens_asked,
            tokens_generated=self._tokens_generated,
            last_arrival_s=self._last_arrival_s,
            end_s=now,
            request_seconds=self._request_seconds,
            preemptions=self._preemptions,
            restarts=self._restarts,
            read=self._counts,
        )

    # Building

    def _build(
        self, pool: str, spec: PoolSpec, step_times: StepTimes, cluster: ClusterProfile
    ) -> Instance:
        job = self._job
        instance = Instance(
            self._env,
            self,
            self._log,
            index=len(self._instances),
            pool=pool,
            spec=spec,
            step_times=step_times,
            tokens_per_step=job.tokens_per_step,
            reserve_full=job.kv_admission == "reserve",
            watermark=job.kv_watermark,
        )
        gpus_per_rank = spec.gpus_per_instance / spec.ranks
        pcie = cluster.node.gpu.pcie_bandwidth * gpus_per_rank
        ranks = range(spec.ranks)
        instance.host_links = [Link(pcie, 0.0) for _ in ranks]
        if job.kv_transfer is not None:
            network = min(cluster.node.nic_bandwidth_per_gpu * gpus_per_rank, pcie)
            rate = job.kv_transfer.bandwidth or network
            instance.links_in = [Link(rate, job.kv_transfer.latency) for _ in ranks]
            instance.links_out = [Link(rate, job.kv_transfer.latency) for _ in ranks]
        if instance.prefills:
            own = [tier for tier in _tiers(job) if tier.scope == "instance"]
            shared = [tier for tier in _tiers(job) if tier.scope == "fleet"]
            instance.tiers = [BlockStore(_blocks(job, tier)) for tier in own]
            instance.tier_links = [
                None if tier.load_bandwidth is None else Link(tier.load_bandwidth, 0.0)
                for tier in (*own, *shared)
            ]
        return instance

    # Arrivals

    def _send_arrivals(self) -> Generator[simpy.Event, Any, None]:
        """Submit each request of the stream at its time."""
        for request in self._stream:
            delay = request.arrival_s - self._env.now
            if delay > 0:
                yield self._env.timeout(delay)
            request.arrival_s = self._env.now
            self._submit(request)
        self._end_arrivals()

    def _think_and_send(self) -> Generator[simpy.Event, Any, None]:
        """One user of a closed loop: think, send, wait for the end, again."""
        synthetic = self._job.requests.synthetic
        assert synthetic is not None
        think_s = synthetic.think_time or 0.0
        while True:
            yield self._env.timeout(self._thinking.exponential(think_s) if think_s else 0.0)
            request = next(self._stream, None)
            if request is None:
                if not self._arrivals_over:
                    self._end_arrivals()
                return
            request.arrival_s = self._env.now
            ended = self._env.event()
            self._users[request.index] = ended
            self._submit(request)
            yield ended

    def _end_arrivals(self) -> None:
        self._arrivals_over = True
        self._log.arrivals_ended(self._env.now)
        self._check_done()

    def _submit(self, request: Request) -> None:
        self._arrived += 1
        self._last_arrival_s = self._env.now
        live = LiveRequest(request)
        self._count_inside()
        self._inside[live] = None
        reason = self._reason_to_reject(request)
        if reason is None:
            self._route(live)
        else:
            self._end(live, reason)

    def _reason_to_reject(self, request: Request) -> Outcome | None:
        if not (self._prefilling and self._decoding):
            return Outcome.REJECTED_NO_CAPACITY
        context = request.prompt_tokens + request.output_tokens - 1
        decoded = longest_kv_tokens(request, self._job.tokens_per_step)
        if decoded > self._decoding[0].capacity or context > self._prefilling[0].capacity:
            return Outcome.REJECTED_TOO_LONG
        limit = self._job.max_waiting
        if limit is not None and self._waiting_for_prefill() >= limit:
            return Outcome.REJECTED_QUEUE_FULL
        return None

    # Prefill

    def _waiting_for_prefill(self) -> int:
        queued = sum(len(instance.queue) for instance in self._prefilling)
        return queued + len(self._parked) + len(self._loading)

    def _route(self, live: LiveRequest) -> None:
        """Choose a prefill instance and let the request wait there."""
        choices = [i for i in self._prefilling if i.up and i.accepting]
        if not choices:
            self._parked.append(live)
            return
        job = self._job
        if job.routing == "round_robin":
            instance = choices[self._turn % len(choices)]
            self._turn += 1
            live.cost_s = self._prefill_cost_s(live, self._cached_in(live, instance))
        elif job.routing == "least_loaded" or len(choices) == 1:
            instance = min(choices, key=lambda choice: choice.queue.cost_s)
            live.cost_s = self._prefill_cost_s(live, self._cached_in(live, instance))
        else:
            costs = [self._prefill_cost_s(live, self._cached_in(live, i)) for i in choices]
            totals = [i.queue.cost_s + cost for i, cost in zip(choices, costs, strict=True)]
            best = totals.index(min(totals))
            instance, live.cost_s = choices[best], costs[best]
        self._load_prefix(live, instance)

    def _prefill_cost_s(self, live: LiveRequest, cached: int) -> float:
        """Time of a pass with this prompt alone: its tokens and its attention cost."""
        new = live.context - cached
        return self._prefill_times.prefill_pass_s(new, cached + (new + 1) / 2)

    def _cached_in(self, live: LiveRequest, instance: Instance) -> int:
        request = live.request
        spec = self._job.prefix_cache
        if spec is None:
            return 0
        tokens = request.cached_tokens
        if request.block_hashes:
            match = match_prefix((*instance.tiers, *self._fleet_tiers), request.block_hashes)
            tokens = match.blocks * spec.block_tokens
        return min(tokens, request.prompt_tokens - 1)

    def _load_prefix(self, live: LiveRequest, instance: Instance) -> None:
        """Fetch what slower tiers hold of the prompt, then let it wait for a pass."""
        now = self._env.now
        spec = self._job.prefix_cache
        ready = now
        live.loaded_tokens = 0
        if spec is not None:
            request = live.request
            block_bytes = spec.block_tokens * self._job.kv_bytes_per_token
            if request.block_hashes:
                match = match_prefix((*instance.tiers, *self._fleet_tiers), request.block_hashes)
                live.loaded_tokens = match.blocks * spec.block_tokens
                for link, blocks in zip(instance.tier_links, match.by_tier, strict=True):
                    if link is not None and blocks:
                        ready = max(ready, link.send(now, blocks * block_bytes))
            elif request.cached_tokens:
                live.loaded_tokens = request.cached_tokens
                link = instance.tier_links[-1]
                if link is not None:
                    ready = link.send(now, request.cached_tokens * self._job.kv_bytes_per_token)
        if ready <= now:
            instance.enqueue(live)
            return
        event = self._env.timeout(ready - now)
        event.callbacks.append(lambda _: self._loaded(live))
        self._loading[live] = (instance, event)

    def _loaded(self, live: LiveRequest) -> None:
        instance, _ = self._loading.pop(live)
        instance.enqueue(live)

    def begin_prompt(self, live: LiveRequest, instance: Instance) -> int:
        """Look once more into the instance's own cache, which may have gained since arrival."""
        spec = self._job.prefix_cache
        request = live.request
        cached = 0
        if spec is not None:
            cached = live.loaded_tokens
            if request.block_hashes and instance.tiers and instance.tier_links[0] is None:
                match = match_prefix(instance.tiers[:1], request.block_hashes)
                cached = max(cached, match.blocks * spec.block_tokens)
            if live.generated == 0 and live.restarts == 0:
                live.hit_blocks = cached // spec.block_tokens if request.block_hashes else 0
        # The last token of a prompt is always computed: it gives the first token of the answer.
        cached = min(cached, request.prompt_tokens - 1)
        if live.generated == 0 and live.restarts == 0:
            live.cached_tokens = cached
        return cached

    def prompt_done(self, live: LiveRequest, instance: Instance) -> None:
        now = self._env.now
        live.generated += 1
        if live.first_token_s < 0:
            live.first_token_s = now
        else:
            self._log.gap(now, now - live.last_token_s)
        live.last_token_s = now
        if live.request.block_hashes:
            for tier in (*instance.tiers, *self._fleet_tiers):
                tier.touch(live.request.block_hashes)
        if not live.remaining:
            instance.release(live)
            self._end(live, Outcome.FINISHED)
        elif instance.decodes:
            instance.join(live)
        else:
            self._sources[live] = instance
            waiting = self._waiting_decode
            bisect.insort(waiting, live, key=_order)
            # Behind others it waits with them: only room that becomes free can help.
            if waiting[0] is live:
                self._place(self._decoding)

    # Decode

    def _place(self, candidates: list[Instance]) -> None:
        """Move waiting requests to decode instances, in order, until one finds no room."""
        for instance in candidates:
            while instance.swapped and instance.up and self._swap_in(instance):
                pass
        while self._waiting_decode:
            live = self._waiting_decode[0]
            for instance in sorted(
                (i for i in candidates if i.up and i.accepting), key=Instance.load
            ):
                rank = instance.room_for(live)
                if rank is not None:
                    break
            else:
                return
            self._waiting_decode.pop(0)
            instance.expect(live, rank)
            source = self._sources.pop(live)
            size = live.kv_tokens * self._job.kv_bytes_per_token
            now = self._env.now
            arrival = max(
                source.links_out[live.rank].send(now, size),
                instance.links_in[rank].send(now, size),
            )
            self._move(live, source, instance, arrival)

    def _move(
        self, live: LiveRequest, source: Instance | None, target: Instance, arrival_s: float
    ) -> None:
        event = self._env.timeout(arrival_s - self._env.now)
        event.callbacks.append(lambda _: self._moved(live))
        self._transfers[live] = _Transfer(source, target, event)

    def _moved(self, live: LiveRequest) -> None:
        transfer = self._transfers.pop(live)
        transfer.target.arrive(live)
        if transfer.source is not None:
            transfer.source.release(live)
            self._retire_if_empty(transfer.source)

    def answer_done(self, live: LiveRequest, instance: Instance) -> None:
        live.generated = live.request.output_tokens
        self._end(live, Outcome.FINISHED)

    def preempted(self, live: LiveRequest, instance: Instance) -> None:
        self._preemptions += 1
        job = self._job
        if job.preemption == "swap":
            held = sum(other.kv_tokens for other in instance.swapped if other.rank == live.rank)
            if held + live.kv_tokens <= job.swap_capacity_tokens:
                size = live.kv_tokens * job.kv_bytes_per_token
                live.ready_s = instance.host_links[live.rank].send(self._env.now, size)
                instance.swapped.append(live)
                return
        self._route(live)

    def _swap_in(self, instance: Instance) -> bool:
        """Bring the first swapped request back if its rank has room."""
        live = instance.swapped[0]
        if not instance.fits(live, live.rank):
            return False
        instance.swapped.pop(0)
        instance.expect(live, live.rank)
        size = live.kv_tokens * self._job.kv_bytes_per_token
        now = self._env.now
        arrival = instance.host_links[live.rank].send(max(now, live.ready_s), size)
        self._move(live, None, instance, arrival)
        return True

    def room_freed(self, instance: Instance) -> None:
        if instance.decodes and (instance.swapped or self._waiting_decode):
            self._place([instance])
        self._retire_if_empty(instance)

    # Failures, return, hours

    def _fail_and_return(self, failure: Failure) -> Generator[simpy.Event, Any, None]:
        """Take an instance down at its time; its requests start again elsewhere."""
        pool = [i for i in self._instances if i.pool == failure.pool]
        instance = pool[failure.instance]
        if failure.returns_after is not None:
            self._awaited_returns += 1
        yield self._env.timeout(failure.at)
        if instance.up:
            self._fail(instance)
        if failure.returns_after is None:
            return
        yield self._env.timeout(failure.returns_after)
        self._awaited_returns -= 1
        instance.come_back()
        self._serve_again()

    def _fail(self, instance: Instance) -> None:
        lost, queued = instance.fail()
        lost += instance.swapped
        instance.swapped = []
        for live in lost:
            transfer = self._transfers.pop(live, None)
            if transfer is not None:
                transfer.event.callbacks.clear()
                other = transfer.source if transfer.target is instance else transfer.target
                if other is instance:
                    other = None
                if other is transfer.target and other is not None:
                    other.unexpect(live)
                elif other is not None:
                    other.release(live)
            if self._sources.pop(live, None) is not None:
                self._waiting_decode.remove(live)
            live.restarts += 1
            self._restarts += 1
        for live in [one for one, (where, _) in self._loading.items() if where is instance]:
            _, event = self._loading.pop(live)
            event.callbacks.clear()
            queued.append(live)
        for live in sorted(lost + queued, key=_order):
            self._route(live)

    def _serve_again(self) -> None:
        """An instance has come into service: what waited for one gets its chance."""
        parked, self._parked = self._parked, []
        for live in sorted(parked, key=_order):
            self._route(live)
        self._place(self._decoding)

    def _follow_hours(
        self, pool: str, hourly_instances: tuple[int, ...]
    ) -> Generator[simpy.Event, Any, None]:
        """Keep as many instances in service as the hour says, the first ones."""
        instances = [i for i in self._instances if i.pool == pool]
        hour = 0
        while True:
            wanted = hourly_instances[hour % len(hourly_instances)]
            for position, instance in enumerate(instances):
                instance.accepting = position < wanted
                if instance.accepting and self._in_service_since[instance.index] is None:
                    self._in_service_since[instance.index] = self._env.now
                self._retire_if_empty(instance)
            self._serve_again()
            yield self._env.timeout(unit_factor("h", "time"))
            hour += 1

    def _retire_if_empty(self, instance: Instance) -> None:
        if not instance.accepting and instance.empty and not instance.swapped:
            self._leave_service(instance.index)

    def _leave_service(self, number: int) -> None:
        since = self._in_service_since[number]
        if since is not None:
            self._in_service_s[number] += self._env.now - since
            self._in_service_since[number] = None

    # Counting

    def _count_inside(self) -> None:
        """Keep the integral of the number of requests inside up to now."""
        now = self._env.now
        self._request_seconds += len(self._inside) * (now - self._changed_s)
        self._changed_s = now

    def _end(self, live: LiveRequest, outcome: Outcome) -> None:
        request = live.request
        now = self._env.now
        self._count_inside()
        del self._inside[live]
        self._ended += 1
        if outcome is Outcome.FINISHED:
            self._finished += 1
            self._tokens_asked += request.output_tokens
            self._tokens_generated += live.generated
        else:
            reason = outcome.name.removeprefix("REJECTED_").lower()
            self._rejected[reason] = self._rejected.get(reason, 0) + 1
        self._log.request(live.row(now, outcome))
        user = self._users.pop(request.index, None)
        if user is not None:
            user.succeed()
        self._check_done()

    def _check_done(self) -> None:
        if self._arrivals_over and not self._inside and not self._done.triggered:
            self._done.succeed()

    def _sample(self) -> Generator[simpy.Event, Any, None]:
        """Look at the queues at regular times; end a run in which nothing can happen any more."""
        while True:
            self._log.sample(
                SampleRow(
                    time_s=self._env.now,
                    waiting_prefill=self._waiting_for_prefill(),
                    waiting_decode=len(self._waiting_decode)
                    + sum(len(i.swapped) for i in self._decoding),
                    in_system=len(self._inside),
                    arrived=self._arrived,
                    ended=self._ended,
                )
            )
            if self._job.horizon is None and self._stuck() and not self._done.triggered:
                self._done.succeed()
            yield self._env.timeout(self._job.sample_interval)

    def _stuck(self) -> bool:
        """Whether the requests inside can never end: what they need is down for good."""
        if not self._arrivals_over or self._awaited_returns or self._transfers or self._loading:
            return False
        if not all(instance.idle for instance in self._instances):
            return False
        if any(pool.hourly_instances for pool in self._job.pools.values()):
            return not all(any(i.up for i in pool) for pool in (self._prefilling, self._decoding))
        return True


def _order(live: LiveRequest) -> tuple[int, int]:
    return live.order


def _tiers(job: FleetJob) -> tuple[CacheTier, ...]:
    return job.prefix_cache.tiers if job.prefix_cache is not None else ()


def _blocks(job: FleetJob, tier: CacheTier) -> int | None:
    assert job.prefix_cache is not None  # it has this tier
    if tier.capacity_tokens == "unlimited":
        return None
    return tier.capacity_tokens // job.prefix_cache.block_tokens
