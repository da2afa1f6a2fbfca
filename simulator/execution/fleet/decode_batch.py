"""The batch of a decode instance: admits requests, advances them, and frees their KV cache.

Between two changes of the batch every request gains the same tokens at every step. So nothing is
done per step: a request that joins at step s with k steps to go leaves at s + k, and the KV cache
of a rank is base + tokens_per_step * step * requests, both linear in the step count.
"""

from __future__ import annotations

import heapq
import math

from simulator.execution.fleet.live_request import LiveRequest


class DecodeBatch:
    """Continuous batch over the data-parallel ranks of one instance."""

    __slots__ = (
        "_leave_steps",
        "_leaving",
        "_total_base",
        "base",
        "residents",
        "size",
        "slack",
        "step",
        "tokens_per_step",
        "total",
    )

    def __init__(self, ranks: int, tokens_per_step: float, *, slack: int) -> None:
        whole = tokens_per_step == int(tokens_per_step)
        self.tokens_per_step = int(tokens_per_step) if whole else tokens_per_step
        """Tokens that a step gives each request; an int where whole, so that sums stay exact."""
        self.slack = slack
        """Tokens of KV cache that a request takes beyond its own: the rest of its last page."""
        self.step = 0
        """Decode steps done so far."""
        self.size = [0] * ranks
        """[rank], requests."""
        self.total = 0
        self.residents: list[dict[tuple[int, int], LiveRequest]] = [{} for _ in range(ranks)]
        """[rank], its requests by their order, first joined first."""
        self.base: list[float] = [0] * ranks
        """[rank], KV tokens of its requests at step 0, had they all been there: the part of its KV
        cache that steps leave as it is."""
        self._total_base: float = 0
        self._leaving: dict[int, list[LiveRequest]] = {}
        self._leave_steps: list[int] = []

    def kv_tokens(self, rank: int, steps_ahead: int = 0) -> float:
        """KV cache of a rank's requests after ``steps_ahead`` more steps."""
        return self.base[rank] + self.tokens_per_step * (self.step + steps_ahead) * self.size[rank]

    def held_tokens(self, rank: int) -> float:
        """The same with the rest of every request's last page."""
        size = self.size[rank]
        return self.base[rank] + self.tokens_per_step * self.step * size + self.slack * size

    def heaviest_rank(self, per_request: float, per_kv_token: float) -> int:
        """The rank with most work, given what one request and one token of KV cache cost."""
        all_steps = self.tokens_per_step * self.step
        work = [
            per_request * size + per_kv_token * (base + all_steps * size) if size else -math.inf
            for size, base in zip(self.size, self.base, strict=True)
        ]
        return work.index(max(work))

    def steps_of_room(self, capacity: float, held: list[float]) -> float:
        """Steps after which the first rank's KV cache is full; infinity for an empty batch.

        ``capacity`` is that of one rank; ``held[rank]`` tokens of it belong to others.
        """
        per_step = self.tokens_per_step
        each = per_step * self.step + self.slack
        return min(
            [
                (capacity - taken - base - each * size) / (per_step * size)
                for size, base, taken in zip(self.size, self.base, held, strict=True)
                if size
            ],
            default=math.inf,
        )

    @property
    def total_kv_tokens(self) -> float:
        """KV cache of all ranks together."""
        return self._total_base + self.tokens_per_step * self.step * self.total

    @property
    def total_held_tokens(self) -> float:
        """The same with the rest of every request's last page."""
        # Asked of every instance for every request, so in one piece.
        total = self.total
        return self._total_base + self.tokens_per_step * self.step * total + self.slack * total

    def join(self, live: LiveRequest) -> None:
        """Let a request with at least one token to come join its rank."""
        rank = live.rank
        live.join_step = self.step
        live.leave_step = self.step + math.ceil(live.remaining / self.tokens_per_step)
        self.size[rank] += 1
        self.total += 1
        self.residents[rank][live.order] = live
        base = live.kv_tokens - self.tokens_per_step * self.step
        self.base[rank] += base
        self._total_base += base
        leaving = self._leaving.get(live.leave_step)
        if leaving is None:
            self._leaving[live.leave_step] = [live]
            heapq.heappush(self._leave_steps, live.leave_step)
        else:
            leaving.append(live)

    def steps_to_next_leave(self) -> int:
        """Steps until the first request has all its tokens. The batch is not empty."""
        # Steps whose requests were all preempted stay in the heap until they come up here.
        while self._leave_steps[0] not in self._leaving:
            heapq.heappop(self._leave_steps)
        return self._leave_steps[0] - self.step

    def advance(self, steps: int) -> list[LiveRequest]:
        """Do ``steps`` steps, at most to the next leave; return the requests that are complete.

        Their KV cache is no longer counted.
        """
        self.step += steps
        complete = self._leaving.pop(self.step, [])
        for live in complete:
            self._drop(live)
        return complete

    def remove(self, live: LiveRequest) -> int:
        """Take a request out before its end; return the tokens that it received."""
        leaving = self._leaving[live.leave_step]
        leaving.remove(live)
        if not leaving:
            del self._leaving[live.leave_step]
        self._drop(live)
        return self.received(live)

    def received(self, live: LiveRequest) -> int:
        """Whole tokens that an incomplete request has received since it joined."""
        steps = self.step - live.join_step
        return min(math.floor(steps * self.tokens_per_step), live.remaining - 1)

    def last_joined(self, rank: int) -> LiveRequest:
        """The rank's request to preempt first: least urgent, then latest arrival."""
        residents = self.residents[rank]
        return residents[max(residents)]

    def _drop(self, live: LiveRequest) -> None:
        rank = live.rank
        self.size[rank] -= 1
        self.total -= 1
        del self.residents[rank][live.order]
        base = live.kv_tokens - self.tokens_per_step * live.join_step
        self.base[rank] -= base
        self._total_base -= base
        # Rounding of fractional tokens per step must not add up over a long run.
        if not self.size[rank]:
            self.base[rank] = 0
        if not self.total:
            self._total_base = 0
