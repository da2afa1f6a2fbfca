"""Which prompts a prefill pass computes: queued requests and free KV cache in, a PrefillPass out.

First come, first served within a priority. Each data-parallel rank takes up to a token budget; a
prompt that does not fit is computed in chunks over several passes on its rank. A new prompt goes to
the rank with the least estimated time in this pass, that is by tokens and attention cost, as
DeepSeek's prefill load balancer does (open-infra-index, Day 6).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from simulator.execution.fleet_request import LiveRequest
from simulator.execution.step_times import StepTimes


@dataclass(slots=True)
class PrefillPass:
    """What one pass computes."""

    duration_s: float
    """Of the slowest rank."""
    tokens: int
    """New tokens, over all ranks."""
    started: list[LiveRequest]
    """Requests whose first chunk this is."""
    completed: list[LiveRequest]
    """Requests whose whole context has been computed when the pass ends."""


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
        self._tokens_per_pass = tokens_per_pass
        self._requests_per_pass = requests_per_pass
        self._waiting: list[tuple[tuple[int, int], LiveRequest]] = []
        self._partial: list[dict[LiveRequest, None]] = [{} for _ in range(ranks)]
        self._partials = 0
        self.cost_s = 0.0
        """Estimated prefill time of all requests that are not completed."""

    def __len__(self) -> int:
        """Requests that no pass has begun."""
        return len(self._waiting)

    @property
    def empty(self) -> bool:
        return not self._waiting and not self._partials

    def push(self, live: LiveRequest) -> None:
        heapq.heappush(self._waiting, (live.order, live))
        self.cost_s += live.cost_s

    def discard(self, live: LiveRequest) -> None:
        """Forget a request in the middle of its prefill."""
        if live in self._partial[live.rank]:
            self._end(live)

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
        ranks = range(len(self._partial))
        budget = [max(self._tokens_per_pass - decoding[rank], 0) for rank in ranks]
        slots = [self._requests_per_pass or self._tokens_per_pass for _ in ranks]
        load_s = [0.0 for _ in ranks]
        tokens = [0 for _ in ranks]
        attended = [0.0 for _ in ranks]
        started: list[LiveRequest] = []
        completed: list[LiveRequest] = []

        def compute(live: LiveRequest, rank: int) -> None:
            left = live.context - live.computed
            chunk = min(left, budget[rank])
            # Token i of a chunk behind c cached ones attends to c + i tokens.
            attended[rank] += chunk * (live.computed + (chunk + 1) / 2)
            tokens[rank] += chunk
            budget[rank] -= chunk
            load_s[rank] += live.cost_s * chunk / live.context
            live.computed += chunk
            if chunk == left:
                completed.append(live)

        for rank in ranks:
            for live in list(self._partial[rank]):
                if not budget[rank]:
                    break
                slots[rank] -= 1
                compute(live, rank)
        while self._waiting:
            live = self._waiting[0][1]
            # Stable: of equally loaded ranks the first.
            for rank in sorted(ranks, key=load_s.__getitem__) if len(ranks) > 1 else ranks:
                if budget[rank] and slots[rank] > 0 and admit(live, rank):
                    break
            else:
                break
            heapq.heappop(self._waiting)
            live.rank = rank
            live.computed = begin(live)
            self._partial[rank][live] = None
            self._partials += 1
            slots[rank] -= 1
            started.append(live)
            compute(live, rank)
        for live in completed:
            self._end(live)
        if not any(tokens):
            return None
        duration = max(
            self._step_times.prefill_pass_s(tokens[rank], attended[rank] / tokens[rank])
            for rank in ranks
            if tokens[rank]
        )
        return PrefillPass(duration, sum(tokens), started, completed)

    def _end(self, live: LiveRequest) -> None:
        del self._partial[live.rank][live]
        self._partials -= 1
        self.cost_s -= live.cost_s
        if self.empty:
            # Rounding must not add up over a long run.
            self.cost_s = 0.0
