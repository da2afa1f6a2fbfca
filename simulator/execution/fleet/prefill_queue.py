"""Choose the prompts of the next prefill pass from the queue and the free KV cache.

First come, first served within a priority. Each data-parallel rank takes up to a token budget; a
prompt that does not fit is computed in chunks over several passes on its rank. Ranks wait for each
other, so they are balanced by tokens and by attention cost, as DeepSeek's prefill load balancer
does (open-infra-index, Day 6): a new prompt goes to the rank with the least estimated time, and no
rank takes more than the time of one whole prompt of the token budget.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass

from simulator.execution.fleet.live_request import LiveRequest
from simulator.execution.fleet.step_times import StepTimes


@dataclass(slots=True)
class PrefillPass:
    """What one pass computes."""

    duration_s: float
    """Of the slowest rank."""
    even_s: float
    """The same if all ranks shared the work alike."""
    tokens: int
    """New tokens, over all ranks."""
    completed: list[LiveRequest]
    """Requests whose whole context has been computed when the pass ends."""


@dataclass(slots=True)
class _RankLoad:
    """What one rank computes in the pass that is being formed."""

    tokens_left: int
    slots: int
    """Requests that it may still take."""
    tokens: int = 0
    attended: float = 0.0
    """Tokens attended to, summed over its tokens."""
    work_s: float = 0.0
    """Estimated time beyond that of an empty pass."""


ROUNDING = 1e-9
"""Share of the work of a pass that is none."""


class PrefillQueue:
    """Requests that wait for prefill in one instance, and those in the middle of it."""

    def __init__(
        self,
        step_times: StepTimes,
        *,
        ranks: int,
        tokens_per_pass: int,
        requests_per_pass: int | None,
    ) -> None:
        self._step_times = step_times
        # Ranks wait for the slowest of them; a rank alone waits for nobody.
        self._token_s, self._attended_s, self._limit_s = 0.0, 0.0, math.inf
        if ranks > 1:
            self._token_s, self._attended_s = _marginal_costs(step_times, tokens_per_pass)
            whole = self._token_s + self._attended_s * (tokens_per_pass + 1) / 2
            self._limit_s = tokens_per_pass * whole
        self._tokens_per_pass = tokens_per_pass
        self._requests_per_pass = requests_per_pass
        self._waiting: list[tuple[tuple[int, int], LiveRequest]] = []
        self._partial: list[dict[LiveRequest, None]] = [{} for _ in range(ranks)]
        self._partials = 0
        self.cost_s = 0.0
        """Estimated prefill time of all requests whose last pass has not ended."""

    def __len__(self) -> int:
        """Requests that no pass has begun."""
        return len(self._waiting)

    @property
    def empty(self) -> bool:
        return not self._waiting and not self._partials

    def push(self, live: LiveRequest) -> None:
        # What an earlier attempt computed was lost with its instance, or preempted.
        live.computed = 0
        heapq.heappush(self._waiting, (live.order, live))
        self.cost_s += live.cost_s

    def settle(self, done: PrefillPass) -> None:
        """A pass has ended: what it completed is no longer work to do."""
        self.cost_s -= sum(live.cost_s for live in done.completed)
        if self.empty:
            # Rounding must not add up over a long run.
            self.cost_s = 0.0

    def clear(self) -> list[LiveRequest]:
        """Forget all requests and return those that no pass has begun, in order."""
        waiting = [live for _, live in sorted(self._waiting, key=lambda entry: entry[0])]
        self._waiting.clear()
        for partial in self._partial:
            partial.clear()
        self._partials = 0
        self.cost_s = 0.0
        return waiting

    def next_pass(
        self,
        *,
        decoding: list[int],
        admit: Callable[[LiveRequest, int], bool],
        begin: Callable[[LiveRequest], int],
    ) -> PrefillPass | None:
        """Form the next pass, or return None where nothing can be computed.

        Args:
            decoding: [rank], requests whose decode step shares the pass's token budget.
            admit: reserves the KV cache of a request's context on a rank, if it fits.
            begin: returns how many tokens of an admitted request's context are cached.
        """
        if self.empty:
            return None
        loads = [self._empty_load(decoding[rank]) for rank in range(len(self._partial))]
        completed: list[LiveRequest] = []

        for load, partial in zip(loads, self._partial, strict=True):
            for live in list(partial):
                chunk = self._room(live, load)
                if not chunk:
                    break
                if self._compute(live, load, chunk):
                    completed.append(live)
        work = [load.work_s for load in loads]
        while self._waiting:
            live = self._waiting[0][1]
            rank = self._place(live, loads, work, admit)
            if rank is None:
                break
            heapq.heappop(self._waiting)
            live.rank = rank
            live.computed = begin(live)
            self._partial[rank][live] = None
            self._partials += 1
            load = loads[rank]
            if self._compute(live, load, self._room(live, load)):
                completed.append(live)
            work[rank] = load.work_s
        for live in completed:
            del self._partial[live.rank][live]
        self._partials -= len(completed)
        busy = [load for load in loads if load.tokens]
        if not busy:
            return None
        # Mostly all ranks compute the same.
        different = {(load.tokens, load.attended / load.tokens) for load in busy}
        duration = max([self._step_times.prefill_pass_s(*of_rank) for of_rank in different])
        tokens = sum(load.tokens for load in busy)
        even = duration
        if len(loads) > 1:
            attended = sum(load.attended for load in busy) / tokens
            even = self._step_times.prefill_pass_s(tokens / len(loads), attended)
        return PrefillPass(duration, min(even, duration), tokens, completed)

    def _place(
        self,
        live: LiveRequest,
        loads: list[_RankLoad],
        work: list[float],
        admit: Callable[[LiveRequest, int], bool],
    ) -> int | None:
        """The rank of least work that can take a request, which is admitted there, or None.

        Args:
            work: [rank], that of its load.
        """

        def takes(rank: int) -> bool:
            load = loads[rank]
            return bool(load.slots and self._room(live, load)) and admit(live, rank)

        # Of equally loaded ranks the first. Mostly it has room, and the others need no order.
        least = work.index(min(work))
        if takes(least):
            return least
        others = sorted((rank for rank in range(len(loads)) if rank != least), key=work.__getitem__)
        return next((rank for rank in others if takes(rank)), None)

    def _empty_load(self, decoding: int) -> _RankLoad:
        return _RankLoad(
            tokens_left=max(self._tokens_per_pass - decoding, 0),
            slots=self._requests_per_pass or self._tokens_per_pass,
        )

    def _room(self, live: LiveRequest, load: _RankLoad) -> int:
        """Tokens of a request that a rank can still take: within its tokens and its work."""
        left = live.context - live.computed
        left = min(left, load.tokens_left)
        if self._limit_s == math.inf or not left:
            return left
        work_s = max(self._limit_s - load.work_s, 0.0)
        # n tokens behind c computed ones: n (t + a (c + (n + 1) / 2)) = work, solved for n.
        attended_s = self._attended_s
        half = self._token_s + attended_s * (live.computed + 0.5)
        n = 2 * work_s / (half + math.sqrt(half * half + 2 * attended_s * work_s))
        # A full pass is all of its tokens, not one less by rounding.
        return min(left, math.floor(n * (1 + ROUNDING)) or (0 if load.tokens else 1))

    def _compute(self, live: LiveRequest, load: _RankLoad, chunk: int) -> bool:
        """Let a rank take a chunk of a request; return whether that is the rest of it."""
        # Token i of a chunk behind c computed ones attends to c + i tokens.
        attended = chunk * (live.computed + (chunk + 1) / 2)
        load.attended += attended
        load.work_s += chunk * self._token_s + attended * self._attended_s
        load.tokens += chunk
        load.tokens_left -= chunk
        load.slots -= 1
        live.computed += chunk
        return live.computed == live.context


def _marginal_costs(step_times: StepTimes, tokens: int) -> tuple[float, float]:
    """Seconds of one more token, and of one more token attended to, near a pass of ``tokens``."""
    if tokens == 1:
        return 1.0, 0.0
    half = tokens // 2
    here = step_times.prefill_pass_s(tokens, half)
    attended_s = (step_times.prefill_pass_s(tokens, tokens) - here) / (tokens * (tokens - half))
    token_s = (here - step_times.prefill_pass_s(half, half)) / (tokens - half)
    return max(token_s - attended_s * half, 0.0), max(attended_s, 0.0)
