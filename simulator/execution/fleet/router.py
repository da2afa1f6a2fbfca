"""Route each request to a prefill instance, and then its KV cache to a decode instance.

The router chooses instances, moves KV cache and cached prefixes over links, and starts requests
again that lost their place. It is what every instance reports to.

Assumptions: without a transport, a transfer has the links of the sending and receiving rank to
itself and others queue behind it (the network between is not congested: each GPU has its own NIC
and plane); a preempted request frees its KV cache at once and the copy to host memory delays only
its own return.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from functools import partial
from operator import attrgetter

import numpy as np
import simpy

from hardware_profiles.schema import ClusterProfile, load_transport
from simulator.execution.fleet.accounts import Accounts
from simulator.execution.fleet.instance import Instance
from simulator.execution.fleet.live_request import LiveRequest
from simulator.execution.fleet.log import LogWriter, Outcome
from simulator.execution.fleet.prefix_cache import BlockStore, match_prefix
from simulator.execution.fleet.step_times import StepTimes
from simulator.hardware.network.clusters import cluster_fabric, first_gpus
from simulator.hardware.network.fairness import Integers
from simulator.hardware.network.flows import Network, make_flows
from simulator.hardware.network.transfers import Link, host_link, network_link
from simulator.scenario.fleet import CacheTier, FleetJob, PoolSpec

_ORDER = attrgetter("order")
_QUEUED_S = attrgetter("queue.cost_s")


class Router:
    """Instances of all pools, and the requests between them."""

    def __init__(
        self,
        env: simpy.Environment,
        job: FleetJob,
        cluster: ClusterProfile,
        *,
        step_times: Mapping[str, StepTimes],
        accounts: Accounts,
        log: LogWriter,
    ) -> None:
        self._env = env
        self._job = job
        assert job.kv_bytes_per_token is not None, "given, or that of the steps"
        self._token_bytes = job.kv_bytes_per_token
        self._accounts = accounts
        self._log = log
        self._fleet_tiers = [
            BlockStore(_blocks(job, tier)) for tier in _tiers(job) if tier.scope == "fleet"
        ]
        sizes = [
            spec.gpus_per_instance for spec in job.pools.values() for _ in range(spec.instances)
        ]
        self._first_gpu = first_gpus(cluster, sizes)
        """Of each instance, on the cluster."""
        self._network: Network | None = None
        transport = job.kv_transfer.transport if job.kv_transfer is not None else None
        if transport is not None:
            fabric = cluster_fabric(cluster, load_transport(transport), group=max(sizes, default=1))
            self._network = Network(env, fabric)
        self.instances: list[Instance] = []
        for pool, spec in job.pools.items():
            for _ in range(spec.instances):
                self.instances.append(self._build(pool, spec, step_times[pool], cluster))
        self.prefilling = [i for i in self.instances if i.prefills]
        self.decoding = [i for i in self.instances if i.decodes]
        self._prefill_times = step_times["prefill" if "prefill" in job.pools else "colocated"]
        self._turn = 0
        self._parked: list[LiveRequest] = []
        """Requests for which no prefill instance is in service."""
        self._waiting_decode: list[LiveRequest] = []
        self._sources: dict[LiveRequest, Instance] = {}
        """Where the KV cache of each request that waits for decode lies."""
        self._transfers: dict[LiveRequest, tuple[Instance | None, Instance, simpy.Event]] = {}
        """From where KV cache of a request is on its way, None out of host memory, and to where."""
        self._loading: dict[LiveRequest, tuple[Instance, simpy.Event]] = {}
        """Requests whose cached prefix is on its way to their prefill instance."""

    def _build(
        self, pool: str, spec: PoolSpec, step_times: StepTimes, cluster: ClusterProfile
    ) -> Instance:
        job = self._job
        instance = Instance(
            self._env,
            self,
            self._log,
            index=len(self.instances),
            pool=pool,
            spec=spec,
            step_times=step_times,
            tokens_per_step=job.tokens_per_step,
            reserve_full=job.kv_admission == "reserve",
            watermark=job.kv_watermark,
        )
        gpus_per_rank = spec.gpus_per_instance / spec.ranks
        ranks = range(spec.ranks)
        instance.host_links = [host_link(cluster, gpus=gpus_per_rank) for _ in ranks]
        if job.kv_transfer is not None and job.kv_transfer.latency is not None:
            instance.links_in, instance.links_out = (
                [
                    network_link(
                        cluster,
                        gpus=gpus_per_rank,
                        rate=job.kv_transfer.bandwidth,
                        latency_s=job.kv_transfer.latency,
                    )
                    for _ in ranks
                ]
                for _ in ("in", "out")
            )
        if instance.prefills:
            own = [tier for tier in _tiers(job) if tier.scope == "instance"]
            shared = [tier for tier in _tiers(job) if tier.scope == "fleet"]
            instance.tiers = [BlockStore(_blocks(job, tier)) for tier in own]
            instance.tier_links = [
                None if tier.load_bandwidth is None else Link(tier.load_bandwidth, 0.0)
                for tier in (*own, *shared)
            ]
        return instance

    # What a fleet asks

    @property
    def moving(self) -> bool:
        """Whether KV cache is on its way anywhere."""
        return bool(self._transfers or self._loading)

    def waiting_for_decode(self) -> int:
        """Requests with a first token that wait for KV cache in a decode instance."""
        return len(self._waiting_decode) + sum(len(i.swapped) for i in self.decoding)

    # Prefill

    def waiting_for_prefill(self) -> int:
        queued = sum(len(instance.queue) for instance in self.prefilling)
        return queued + len(self._parked) + len(self._loading)

    def route(self, live: LiveRequest) -> None:
        """Choose a prefill instance and let the request wait there."""
        choices = [i for i in self.prefilling if i.up and i.accepting]
        if not choices:
            self._parked.append(live)
            return
        job = self._job
        # Turn by turn, also among equally loaded instances.
        self._turn += 1
        turn = self._turn % len(choices)
        choices = choices[turn:] + choices[:turn]
        if job.routing == "round_robin":
            instance = choices[0]
            live.cost_s = self._prefill_cost_s(live, self._cached_in(live, instance))
        elif job.routing == "least_loaded" or len(choices) == 1:
            instance = min(choices, key=_QUEUED_S)
            live.cost_s = self._prefill_cost_s(live, self._cached_in(live, instance))
        else:
            # Without hashes a prompt is cached in one instance as in any other.
            asked = choices if live.request.block_hashes else choices[:1]
            costs = [self._prefill_cost_s(live, self._cached_in(live, i)) for i in asked]
            costs *= len(choices) // len(costs)
            totals = [i.queue.cost_s + cost for i, cost in zip(choices, costs, strict=True)]
            best = totals.index(min(totals))
            instance, live.cost_s = choices[best], costs[best]
        self._load_prefix(live, instance)

    def _prefill_cost_s(self, live: LiveRequest, cached: int) -> float:
        """Time of a pass with this prompt alone: its tokens and its attention cost."""
        if len(self.prefilling) == 1:
            return 0.0  # Nothing to choose between.
        new = live.context - cached
        return self._prefill_times.prefill_pass_s(new, cached + (new + 1) / 2)

    def _cached_in(self, live: LiveRequest, instance: Instance) -> int:
        request = live.request
        spec = self._job.prefix_cache
        if spec is None:
            return 0
        tokens = request.cached_tokens
        if request.block_hashes:
            found = match_prefix((*instance.tiers, *self._fleet_tiers), request.block_hashes)
            tokens = sum(found) * spec.block_tokens
        return min(tokens, request.prompt_tokens - 1)

    def _load_prefix(self, live: LiveRequest, instance: Instance) -> None:
        """Fetch what slower tiers hold of the prompt, then let it wait for a pass."""
        now = self._env.now
        spec = self._job.prefix_cache
        ready = now
        live.loaded_tokens = 0
        if spec is not None:
            request = live.request
            block_bytes = spec.block_tokens * self._token_bytes
            if request.block_hashes:
                found = match_prefix((*instance.tiers, *self._fleet_tiers), request.block_hashes)
                live.loaded_tokens = sum(found) * spec.block_tokens
                for link, blocks in zip(instance.tier_links, found, strict=True):
                    if link is not None and blocks:
                        ready = max(ready, link.send(now, blocks * block_bytes))
            elif request.cached_tokens:
                live.loaded_tokens = request.cached_tokens
                link = instance.tier_links[-1]
                if link is not None:
                    ready = link.send(now, request.cached_tokens * self._token_bytes)
        if ready <= now:
            instance.enqueue(live)
            return
        event = self._env.timeout(ready - now)
        event.callbacks.append(partial(self._loaded, live))
        self._loading[live] = (instance, event)

    def _loaded(self, live: LiveRequest, _event: simpy.Event) -> None:
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
                found = match_prefix(instance.tiers[:1], request.block_hashes)
                cached = max(cached, sum(found) * spec.block_tokens)
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
            self._accounts.end(live, Outcome.FINISHED)
        elif instance.decodes:
            instance.join(live)
        else:
            self._sources[live] = instance
            waiting = self._waiting_decode
            bisect.insort(waiting, live, key=_ORDER)
            # Behind others it waits with them: only room that becomes free can help.
            if waiting[0] is live:
                self._place(self.decoding)

    # Decode

    def _place(self, candidates: list[Instance]) -> None:
        """Move waiting requests to decode instances, in order, until one finds no room."""
        for instance in candidates:
            while instance.swapped and instance.up and self._swap_in(instance):
                pass
        while self._waiting_decode:
            live = self._waiting_decode[0]
            open_ones = [i for i in candidates if i.up and i.accepting]
            if len(open_ones) > 1:
                open_ones.sort(key=Instance.load)
            for instance in open_ones:
                rank = instance.room_for(live)
                if rank is not None:
                    break
            else:
                return
            self._waiting_decode.pop(0)
            instance.expect(live, rank)
            source = self._sources.pop(live)
            self._move(live, source, instance, self._send(live, source, instance, rank))

    def _send(
        self, live: LiveRequest, source: Instance, target: Instance, rank: int
    ) -> simpy.Event:
        """Send the KV cache of a request to a rank; the event of its arrival."""
        size = live.kv_tokens * self._token_bytes
        if self._network is None:
            now = self._env.now
            arrival = max(
                source.links_out[live.rank].send(now, size), target.links_in[rank].send(now, size)
            )
            return self._env.timeout(arrival - now)
        senders, receivers = self._gpus(source, live.rank), self._gpus(target, rank)
        # Each GPU of the wider rank has its own part.
        parts = np.arange(max(len(senders), len(receivers)))
        flows = make_flows(
            senders[parts % len(senders)], receivers[parts % len(receivers)], size / len(parts)
        )
        return self._network.transfer(flows)

    def _gpus(self, instance: Instance, rank: int) -> Integers:
        """GPUs of a rank on the cluster."""
        spec = instance.spec
        first = self._first_gpu[instance.index]
        edges = [spec.gpus_per_instance * r // spec.ranks for r in (rank, rank + 1)]
        return first + np.arange(edges[0], max(edges[1], edges[0] + 1))

    def _move(
        self, live: LiveRequest, source: Instance | None, target: Instance, event: simpy.Event
    ) -> None:
        assert event.callbacks is not None  # it has not happened
        event.callbacks.append(partial(self._moved, live))
        self._transfers[live] = (source, target, event)

    def _moved(self, live: LiveRequest, _event: simpy.Event) -> None:
        source, target, _ = self._transfers.pop(live)
        target.arrive(live)
        if source is not None:
            source.release(live)
            self.retire_if_empty(source)

    def answer_done(self, live: LiveRequest, instance: Instance) -> None:
        live.generated = live.request.output_tokens
        self._accounts.end(live, Outcome.FINISHED)

    def preempted(self, live: LiveRequest, instance: Instance) -> None:
        self._accounts.preemptions += 1
        job = self._job
        if job.preemption == "swap":
            held = sum(other.kv_tokens for other in instance.swapped if other.rank == live.rank)
            if held + live.kv_tokens <= job.swap_capacity_tokens:
                size = live.kv_tokens * self._token_bytes
                live.ready_s = instance.host_links[live.rank].send(self._env.now, size)
                instance.swapped.append(live)
                return
        self.route(live)

    def _swap_in(self, instance: Instance) -> bool:
        """Bring the first swapped request back if its rank has room."""
        live = instance.swapped[0]
        if not instance.fits(live, live.rank):
            return False
        instance.swapped.pop(0)
        instance.expect(live, live.rank)
        size = live.kv_tokens * self._token_bytes
        now = self._env.now
        arrival = instance.host_links[live.rank].send(max(now, live.ready_s), size)
        self._move(live, None, instance, self._env.timeout(arrival - now))
        return True

    def room_freed(self, instance: Instance) -> None:
        if instance.decodes and (instance.swapped or self._waiting_decode):
            self._place([instance])
        self.retire_if_empty(instance)

    # Failures and return

    def fail(self, instance: Instance) -> None:
        lost, queued = instance.fail()
        lost += instance.swapped
        instance.swapped = []
        for live in lost:
            if live in self._transfers:
                source, target, event = self._transfers.pop(live)
                event.callbacks.clear()
                if target is not instance:
                    target.unexpect(live)
                elif source is not None:
                    source.release(live)
            if self._sources.pop(live, None) is not None:
                self._waiting_decode.remove(live)
            live.restarts += 1
            self._accounts.restarts += 1
        for live in [one for one, (where, _) in self._loading.items() if where is instance]:
            _, event = self._loading.pop(live)
            event.callbacks.clear()
            queued.append(live)
        for live in sorted(lost + queued, key=_ORDER):
            self.route(live)
        # Room that was set aside for KV cache on its way is free again.
        self._place(self.decoding)
        self.retire_if_empty(instance)

    def serve_again(self) -> None:
        """An instance has come into service: what waited for one gets its chance."""
        parked, self._parked = self._parked, []
        for live in sorted(parked, key=_ORDER):
            self.route(live)
        self._place(self.decoding)

    def retire_if_empty(self, instance: Instance) -> None:
        """End the service of an instance that was asked to leave, once its requests have."""
        if instance.accepting or not instance.empty or instance.swapped:
            return
        if not any(where is instance for where, _ in self._loading.values()):
            self._accounts.leave_service(instance)


def _tiers(job: FleetJob) -> tuple[CacheTier, ...]:
    return job.prefix_cache.tiers if job.prefix_cache is not None else ()


def _blocks(job: FleetJob, tier: CacheTier) -> int | None:
    assert job.prefix_cache is not None  # it has this tier
    if tier.capacity_tokens == "unlimited":
        return None
    return tier.capacity_tokens // job.prefix_cache.block_tokens
