"""The KV cache of one instance, allocated and freed in whole pages on each rank.

What a request decodes is counted by its DecodeBatch, which grows without being asked; what is set
aside for requests outside the batch, or for the longest that one can become (reserve), stands here.
A page belongs to one request: its last page is half empty on average, and every request counts half
a page beyond its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simulator.execution.fleet.decode_batch import DecodeBatch
from simulator.execution.fleet.live_request import LiveRequest
from simulator.workload.requests import Request


class KvCache:
    """KV cache of the ranks of an instance."""

    def __init__(
        self, batch: DecodeBatch, *, capacity: int, max_batch: int, reserve_full: bool
    ) -> None:
        self.capacity = capacity
        """KV tokens of one rank."""
        self.held: list[float] = [0] * len(batch.size)
        """[rank], KV tokens set aside outside the decode batch."""
        self.expected = [0] * len(batch.size)
        """[rank], requests on their way into the decode batch."""
        self.allocated: float = 0
        """KV tokens ever taken into use."""
        self.freed: float = 0
        self._batch = batch
        self._max_batch = max_batch
        self._reserve_full = reserve_full
        self._held_total: float = 0
        self._held_by: dict[LiveRequest, tuple[int, float]] = {}
        self._holders = [0] * len(batch.size)
        self._loads: NDArray[np.float64] | None = None

    @property
    def requests(self) -> list[LiveRequest]:
        """Everyone who has some of it, in order of arrival in the instance."""
        return list(self._held_by)

    @property
    def empty(self) -> bool:
        return not self._held_by

    @property
    def tokens(self) -> float:
        """KV cache in use or set aside, over all ranks, at the last step boundary."""
        return self._held_total + (0 if self._reserve_full else self._batch.total_held_tokens)

    def rank_of(self, live: LiveRequest) -> int:
        return self._held_by[live][0]

    def holds(self, tokens: float) -> bool:
        """Whether a request of so many KV tokens fits a rank, alone."""
        return tokens + self._batch.slack <= self.capacity

    # In and out

    def take(self, live: LiveRequest, rank: int, tokens: float) -> None:
        """Set KV cache aside on a rank."""
        tokens += self._batch.slack
        self._held_by[live] = (rank, tokens)
        self._holders[rank] += 1
        self.held[rank] += tokens
        self._held_total += tokens
        self.allocated += tokens
        self._loads = None

    def expect(self, live: LiveRequest, rank: int, tokens: float) -> None:
        """Set KV cache aside for a request that will join the batch."""
        loads = self._loads
        self.take(live, rank, tokens)
        self.expected[rank] += 1
        if loads is not None:
            loads[rank] = self._load(rank)
            self._loads = loads

    def arrive(self, live: LiveRequest) -> int:
        """An expected request is here; return its rank."""
        rank = self._held_by[live][0]
        self.expected[rank] -= 1
        return rank

    def unexpect(self, live: LiveRequest) -> None:
        """An expected request will not come."""
        self.arrive(live)
        self.free(live)

    def start_decoding(self, live: LiveRequest) -> None:
        """Let the request join the batch; without reservation the batch counts it from here on."""
        if not self._reserve_full:
            rank, tokens = self._held_by[live]
            self._held_by[live] = (rank, 0)
            self.held[rank] -= tokens
            self._held_total -= tokens
            self._loads = None
            self.allocated += live.kv_tokens + self._batch.slack - tokens
        self._batch.join(live)

    def grow(self, steps: int) -> None:
        """The batch is about to do so many steps."""
        if not self._reserve_full:
            self.allocated += self._batch.tokens_per_step * steps * self._batch.total

    def growth(self, steps: int, batch: int) -> float:
        """KV tokens that so many steps of ``batch`` requests add."""
        return 0 if self._reserve_full else self._batch.tokens_per_step * steps * batch

    def free_decoded(self, live: LiveRequest) -> None:
        """Free the KV cache of a request that has decoded up to the present step."""
        batch = self._batch
        if not self._reserve_full:
            grown = batch.tokens_per_step * (batch.step - live.join_step)
            self.freed += live.kv_tokens + batch.slack + grown
        self.free(live)

    def free(self, live: LiveRequest) -> None:
        """Free what was set aside for a request."""
        rank, tokens = self._held_by.pop(live)
        self._holders[rank] -= 1
        # Parts of tokens do not sum to exactly nothing, and only an empty rank is all of use.
        self.held[rank] = self.held[rank] - tokens if self._holders[rank] else 0
        self._held_total = self._held_total - tokens if self._held_by else 0
        self.freed += tokens
        self._loads = None

    # Room

    def first_fitting(
        self, ranks: Sequence[int], need: float, *, more: int, ahead: int, watermark: float
    ) -> int | None:
        """The first of some ranks that has a place in the batch and ``need`` tokens for a newcomer,
        or None.

        Args:
            more: 1 for a newcomer whose next token needs room too, else 0.
            ahead: decode steps that the batch will have done by then.
            watermark: part of the cache that stays free, unless the rank is empty.
        """
        # Asked for every request, and of every rank where none has room, so in one piece.
        batch, held, expected = self._batch, self.held, self.expected
        sizes, base, slack = batch.size, batch.base, batch.slack
        counted = not self._reserve_full
        per_token = batch.tokens_per_step if counted else 0
        each = per_token * (batch.step + ahead)
        need += slack
        whole, most = self.capacity, self._max_batch
        rest = whole * (1 - watermark)
        for rank in ranks:
            size = sizes[rank]
            decoding = size + expected[rank]
            if decoding >= most:
                continue
            used = held[rank]
            if counted:
                used += base[rank] + each * size + slack * size
            if used + (need + per_token * (decoding + more)) <= (rest if used > 0 else whole):
                return rank
        return None

    def steps_of_room(self) -> float:
        """Decode steps until the first rank is full; infinite where nothing grows."""
        if self._reserve_full:
            return math.inf
        return self._batch.steps_of_room(self.capacity, self.held)

    def steps_of_room_on(self, rank: int) -> int:
        """Decode steps that the free KV cache of a rank with requests allows."""
        batch = self._batch
        free = self.capacity - self.held[rank] - batch.held_tokens(rank)
        return math.floor(free / (batch.tokens_per_step * batch.size[rank]))

    # Load, for balancing

    def loads(self) -> NDArray[np.float64]:
        """[rank], KV use plus requests, each over its limit; as at the start of the iteration, but
        for the requests that were expected since."""
        if self._loads is None:
            self._loads = np.array(self._of_all_ranks())
        return self._loads

    def forget_loads(self) -> None:
        """The batch has changed."""
        self._loads = None

    def _load(self, rank: int) -> float:
        batch = self._batch
        used = self.held[rank] + (0 if self._reserve_full else batch.held_tokens(rank))
        count = batch.size[rank] + self.expected[rank]
        return used / max(self.capacity, 1) + count / self._max_batch

    def _of_all_ranks(self) -> list[float]:
        """[rank], the same of each: asked anew behind every iteration, so in one piece."""
        if self._reserve_full:
            return [self._load(rank) for rank in range(len(self.held))]
        batch, capacity, most = self._batch, max(self.capacity, 1), self._max_batch
        each, slack = batch.tokens_per_step * batch.step, batch.slack
        of_ranks = zip(self.held, batch.base, batch.size, self.expected, strict=True)
        return [
            (held + (base + each * size + slack * size)) / capacity + (size + coming) / most
            for held, base, size, coming in of_ranks
        ]


def longest_kv_tokens(request: Request, tokens_per_step: float) -> float:
    """KV tokens of a request at its last decode step."""
    return request.prompt_tokens + tokens_per_step * math.ceil(
        (request.output_tokens - 1) / tokens_per_step
    )
