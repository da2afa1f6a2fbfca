"""One prefill or decode instance in simulated time.

An instance is an expert-parallel group whose data-parallel ranks step together at the pace of the
slowest. It works in iterations: a prefill pass, decode steps, or in a colocated pool one prefill
pass and then one decode step. Requests join and leave only between iterations (continuous
batching); decode steps of an unchanged batch are one event (fleet_iteration).

Assumption: in a colocated iteration the pass and the decode step run one after the other, which is
an upper bound for engines that fuse them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import simpy

from simulator.execution.fleet.decode_batch import DecodeBatch
from simulator.execution.fleet.iteration import Iteration, plan_steps
from simulator.execution.fleet.kv_cache import KvCache, longest_kv_tokens
from simulator.execution.fleet.live_request import NEVER, LiveRequest
from simulator.execution.fleet.log import LogWriter
from simulator.execution.fleet.prefill_queue import PrefillQueue
from simulator.execution.fleet.prefix_cache import BlockStore
from simulator.execution.fleet.step_times import StepTimes
from simulator.hardware.network.transfers import Link
from simulator.scenario.fleet import PoolSpec


class InstanceOwner(Protocol):
    """What an instance tells its fleet, between two iterations."""

    def prompt_done(self, live: LiveRequest, instance: Instance) -> None:
        """Its context has been computed, which gives its next token."""
        ...

    def answer_done(self, live: LiveRequest, instance: Instance) -> None:
        """It has all its tokens; the instance has let go of it."""
        ...

    def preempted(self, live: LiveRequest, instance: Instance) -> None:
        """Its KV cache had to make room; the instance has let go of it."""
        ...

    def room_freed(self, instance: Instance) -> None:
        """KV cache may have become free."""
        ...

    def begin_prompt(self, live: LiveRequest, instance: Instance) -> int:
        """A pass is about to compute its context; return how many tokens of it are cached."""
        ...


class Instance:
    """An expert-parallel group that prefills, decodes, or both."""

    def __init__(
        self,
        env: simpy.Environment,
        owner: InstanceOwner,
        log: LogWriter,
        *,
        index: int,
        pool: str,
        spec: PoolSpec,
        step_times: StepTimes,
        tokens_per_step: float,
        reserve_full: bool,
        watermark: float,
    ) -> None:
        self.env = env
        self.index = index
        """Number within the fleet."""
        self.pool = pool
        self.spec = spec
        self.prefills = pool != "decode"
        self.decodes = pool != "prefill"
        self.up = True
        self.accepting = True
        page = step_times.page_tokens if spec.page_tokens is None else spec.page_tokens
        self.batch = DecodeBatch(spec.ranks, tokens_per_step, slack=page // 2)
        self.cache = KvCache(
            self.batch,
            capacity=(
                step_times.kv_capacity_tokens
                if spec.kv_capacity_tokens is None
                else spec.kv_capacity_tokens
            ),
            max_batch=spec.max_batch,
            reserve_full=reserve_full,
        )
        self.queue = PrefillQueue(
            step_times,
            ranks=spec.ranks,
            tokens_per_pass=(spec.tokens_per_pass or 1) if self.prefills else 1,
            requests_per_pass=spec.requests_per_pass,
        )
        self.tiers: list[BlockStore] = []
        """Prefix cache tiers of its own, fastest first."""
        self.tier_links: list[Link | None] = []
        """One for each tier that the instance can read, those of the fleet last."""
        self.links_in: list[Link] = []
        """[rank], for KV cache that arrives."""
        self.links_out: list[Link] = []
        """[rank], for KV cache that leaves."""
        self.host_links: list[Link] = []
        """[rank], between its HBM and host memory, for preempted requests."""
        self.swapped: list[LiveRequest] = []
        """Preempted requests whose KV cache is in host memory; they go before new ones."""
        self._owner = owner
        self._log = log
        self._step_times = step_times
        self._reserve_full = reserve_full
        self._watermark = watermark
        self._joining: list[LiveRequest] = []
        self._iteration: Iteration | None = None
        self._wake_up: simpy.Event | None = None
        self._busy = False
        self._next_rebalance_s = spec.rebalance.interval if spec.rebalance else math.inf

    # What a fleet asks

    @property
    def idle(self) -> bool:
        """Nothing to do, and nothing about to begin."""
        return not self._busy and self._wake_up is None

    @property
    def empty(self) -> bool:
        """No request anywhere in it."""
        return self.cache.empty and not len(self.queue)

    @property
    def iterating_since_s(self) -> float:
        """Start of the present iteration; infinity without one."""
        return math.inf if self._iteration is None else self._iteration.start_s

    def load(self) -> float:
        """Load for decode balancing: KV use plus request count, each over its limit."""
        cache, ranks = self.cache, self.spec.ranks
        requests = self.batch.total + sum(cache.expected)
        return cache.tokens / (cache.capacity * ranks) + requests / (self.spec.max_batch * ranks)

    def room_for(self, live: LiveRequest) -> int | None:
        """Return the rank of least load that can decode ``live``, or None."""
        if self.swapped:
            return None
        loads = self.cache.loads()
        best = int(loads.argmin())
        # Mostly it has room, and the others need no order.
        if self.fits(live, best):
            return best
        return self._first_fitting(live, loads.argsort(kind="stable").tolist())

    def expect(self, live: LiveRequest, rank: int) -> None:
        """Set KV cache aside for a request that will join."""
        self.cache.expect(live, rank, self._need(live))
        iteration = self._iteration
        # What was set aside is no longer there for the batch to grow into.
        if (
            iteration is not None
            and not self._reserve_full
            and iteration.steps > 1
            and self.batch.size[rank]
            and self.cache.steps_of_room_on(rank) < iteration.steps
        ):
            self._shorten()

    def unexpect(self, live: LiveRequest) -> None:
        """Undo ``expect``: the request will not come."""
        self.cache.unexpect(live)
        self._notice()

    # What happens to it

    def enqueue(self, live: LiveRequest) -> None:
        """Let a request wait for prefill."""
        self.queue.push(live)
        self._notice()

    def arrive(self, live: LiveRequest) -> None:
        """Let an expected request decode from the next iteration on."""
        live.rank = self.cache.arrive(live)
        self.join(live)

    def join(self, live: LiveRequest) -> None:
        """Let a request whose context was computed here decode from the next iteration on."""
        self._joining.append(live)
        self._notice()

    def release(self, live: LiveRequest) -> None:
        """Free the KV cache of a request that was computed here and does not decode here."""
        self.cache.free(live)
        self._notice()

    def fail(self) -> tuple[list[LiveRequest], list[LiveRequest]]:
        """Go down. Return the requests whose KV cache is lost and those that were only queued."""
        self.up = False
        last_s = self._break_off()
        queued = self.queue.clear()
        lost = self.cache.requests
        for live in lost:
            if live.order in self.batch.residents[self.cache.rank_of(live)]:
                self._leave_early(live, last_s)
            else:
                self.cache.free(live)
        self._joining.clear()
        self.cache.expected = [0] * self.spec.ranks
        for tier in self.tiers:
            tier.clear()
        return lost, queued

    def stop(self) -> None:
        """The simulation ends: log the part of the present iteration that has been done."""
        self._break_off()
        for rank in range(self.spec.ranks):
            for live in self.batch.residents[rank].values():
                live.generated += self.batch.received(live)

    def _break_off(self) -> float:
        """End the present iteration with its complete steps; return when the last one ended."""
        now = self.env.now
        self._cancel()
        self._busy = False
        iteration, self._iteration = self._iteration, None
        if iteration is None:
            return now
        done = iteration.steps_done(now)
        last_s = iteration.start_s
        if done:
            last_s += iteration.lead_s + iteration.steps_s(done)
        iteration.steps = done
        iteration.prefill = None
        complete = self._decode(iteration, last_s)
        self._record(iteration, now, tokens=self._tokens(iteration, complete))
        for live in complete:
            self._owner.answer_done(live, self)
        return last_s

    def come_back(self) -> None:
        """Return to service, with empty caches."""
        self.up = True
        for link in (*self.links_in, *self.links_out, *self.host_links, *self.tier_links):
            if link is not None:
                link.reset(self.env.now)

    # Iterations

    def _notice(self) -> None:
        """Something has come: begin if idle, or end the present span of steps early."""
        if not self._busy:
            if self._wake_up is None:
                # Later in the same instant, so that all that comes now begins together.
                self._wake_up = self.env.timeout(0)
                self._wake_up.callbacks.append(self._begin)
        elif self._iteration is not None:
            self._shorten()

    def _shorten(self) -> None:
        iteration = self._iteration
        assert iteration is not None
        if iteration.steps <= 1:
            return
        now = self.env.now
        done = iteration.steps_done(now)
        in_step = iteration.steps_s(done) < now - iteration.start_s - iteration.lead_s
        steps = max(done + 1 if in_step else done, 1)
        if steps >= iteration.steps:
            return
        iteration.steps = steps
        self._cancel()
        self._schedule_end(iteration)

    def _schedule_end(self, iteration: Iteration) -> None:
        delay = iteration.start_s + iteration.duration_s() - self.env.now
        self._wake_up = self.env.timeout(max(delay, 0.0))
        self._wake_up.callbacks.append(self._end)

    def _cancel(self) -> None:
        # simpy cannot take an event back; without callbacks it passes unnoticed.
        if self._wake_up is not None and self._wake_up.callbacks is not None:
            self._wake_up.callbacks.clear()
        self._wake_up = None

    def _begin(self, _event: simpy.Event | None) -> None:
        """Start the next iteration, or become idle."""
        now = self.env.now
        self._wake_up = None
        self.cache.forget_loads()
        # Busy from here on: what comes while the iteration is being put together is part of it.
        self._busy = True
        joined, self._joining = self._joining, []
        for live in joined:
            self.cache.start_decoding(live)
        room = self.cache.steps_of_room()
        if room < 1:
            joined = self._make_room(joined)
            room = self.cache.steps_of_room()
        waiting = len(self.queue)
        prefill = (
            self.queue.next_pass(
                decoding=self.batch.size, admit=self._admit, begin=self._begin_prompt
            )
            if self.prefills
            else None
        )
        if prefill is None and not self.batch.total:
            self._busy = False
            return
        lead = prefill.duration_s if prefill else 0.0
        if now >= self._next_rebalance_s:
            assert self.spec.rebalance is not None
            assert self.spec.rebalance.pause is not None  # prepare_fleet has filled it in
            lead += self.spec.rebalance.pause
            self._next_rebalance_s = now + self.spec.rebalance.interval
        steps, first, slope = plan_steps(
            self.batch,
            self._step_times,
            limit=1 if prefill is not None else room,
            rebalance_s=self._next_rebalance_s - now,
        )
        self._iteration = iteration = Iteration(
            start_s=now,
            lead_s=lead,
            steps=steps,
            first_s=first,
            slope_s=slope,
            batch=self.batch.total,
            joined=joined,
            prefill=prefill,
            kv_tokens=self.cache.tokens,
            waiting=waiting,
        )
        for live in joined:
            if live.decode_start_s == NEVER:
                live.decode_start_s, live.decode_instance = now, self.index
        self._schedule_end(iteration)

    def _end(self, _event: simpy.Event) -> None:
        """Finish the present iteration and start the next."""
        iteration = self._iteration
        assert iteration is not None
        now = self.env.now
        self._iteration = None
        self._wake_up = None
        self.cache.forget_loads()
        complete = self._decode(iteration, now)
        prefill = iteration.prefill
        first_tokens = len(prefill.completed) if prefill else 0
        self._record(iteration, now, tokens=self._tokens(iteration, complete) + first_tokens)
        for live in complete:
            self._owner.answer_done(live, self)
        if prefill is not None:
            self.queue.settle(prefill)
            for live in prefill.completed:
                self._owner.prompt_done(live, self)
        self._owner.room_freed(self)
        if self.up:
            self._begin(None)

    def _decode(self, iteration: Iteration, last_s: float) -> list[LiveRequest]:
        """Do the iteration's decode steps; return the requests that have all their tokens."""
        steps = iteration.steps
        if not steps:
            return []
        batch = self.batch
        first_end = iteration.start_s + iteration.lead_s + iteration.first_s
        for live in iteration.joined:
            self._log.gap(first_end, first_end - live.last_token_s)
        self.cache.grow(steps)
        complete = batch.advance(steps)
        for live in complete:
            self.cache.free_decoded(live)
            live.last_token_s = last_s
        return complete

    def _tokens(self, iteration: Iteration, complete: list[LiveRequest]) -> float:
        """Tokens that the iteration's decode steps gave, those beyond an answer's end left out."""
        batch = self.batch
        beyond = sum(
            batch.tokens_per_step * (batch.step - live.join_step) - live.remaining
            for live in complete
        )
        return batch.tokens_per_step * iteration.steps * iteration.batch - beyond

    def _record(self, iteration: Iteration, end_s: float, *, tokens: float) -> None:
        prefill = iteration.prefill
        steps = iteration.steps
        grown = self.cache.growth(steps, iteration.batch)
        self._log.iteration(
            (
                self.index,
                iteration.start_s,
                end_s,
                steps,
                iteration.batch,
                len(iteration.joined) if steps else 0,
                tokens,
                iteration.lead_s + iteration.first_s,
                iteration.first_s + iteration.slope_s * max(steps - 1, 0),
                prefill.tokens if prefill else 0,
                sum(live.request.prompt_tokens for live in prefill.completed) if prefill else 0,
                iteration.kv_tokens + grown / 2,
                iteration.waiting,
                prefill.duration_s if prefill else 0.0,
                prefill.even_s if prefill else 0.0,
            )
        )

    # KV cache

    def _make_room(self, joined: list[LiveRequest]) -> list[LiveRequest]:
        """Preempt until every rank can do one more step; return who joined and stayed."""
        for rank in range(self.spec.ranks):
            while self.batch.size[rank] and self.cache.steps_of_room_on(rank) < 1:
                live = self.batch.last_joined(rank)
                self._leave_early(live, self.env.now)
                joined = [other for other in joined if other is not live]
                live.preemptions += 1
                self._owner.preempted(live, self)
        return joined

    def _leave_early(self, live: LiveRequest, last_s: float) -> None:
        """Take a request out of the batch, keeping the tokens that it received."""
        self.cache.free_decoded(live)
        tokens = self.batch.remove(live)
        if tokens:
            live.generated += tokens
            live.last_token_s = last_s

    def _need(self, live: LiveRequest) -> float:
        """KV tokens that are set aside when a request is let in."""
        if self._reserve_full and self.decodes:
            return longest_kv_tokens(live.request, self.batch.tokens_per_step)
        return live.context if self.prefills else live.kv_tokens

    def fits(self, live: LiveRequest, rank: int) -> bool:
        """Whether a rank has KV cache and, if it decodes, a place in the batch for a request."""
        return self._first_fitting(live, (rank,)) is not None

    def _first_fitting(self, live: LiveRequest, ranks: Sequence[int]) -> int | None:
        """The first of some ranks that has both, or None."""
        ahead = 0
        if self._iteration is not None and self.decodes:
            ahead = self._iteration.steps_done(self.env.now) + 1
        return self.cache.first_fitting(
            ranks,
            self._need(live),
            more=int(self.decodes and live.request.output_tokens > 1),
            ahead=ahead,
            watermark=self._watermark,
        )

    def _admit(self, live: LiveRequest, rank: int) -> bool:
        """Reserve the KV cache of a prompt on a rank, if it fits."""
        if not self.fits(live, rank):
            return False
        self.cache.take(live, rank, self._need(live))
        return True

    def _begin_prompt(self, live: LiveRequest) -> int:
        if live.prefill_start_s == NEVER:
            live.prefill_start_s, live.prefill_instance = self.env.now, self.index
        return self._owner.begin_prompt(live, self)
