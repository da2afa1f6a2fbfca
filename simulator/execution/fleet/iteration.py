"""One iteration of an instance: several decode steps simulated as one event.

While a batch stays the same, many decode steps are one event: step k of n takes first + k * slope,
and the number of steps done at any instant follows from that sum.

Assumptions: the slowest rank is the one with most work by the cost of a request and of a token at
the mean load, and that of the first step is the slowest of all n; within SPAN_TOKENS tokens of
growth the time of a step is linear in the context (exact for affine step times).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from simulator.execution.fleet.decode_batch import DecodeBatch
from simulator.execution.fleet.live_request import LiveRequest
from simulator.execution.fleet.prefill_queue import PrefillPass
from simulator.execution.fleet.step_times import StepTimes

SPAN_TOKENS = 256
"""Context growth after which the time of a decode step is asked anew."""


@dataclass(slots=True)
class Iteration:
    """What an instance is doing. Step k = 0, 1, ... takes first_s + k * slope_s."""

    start_s: float
    lead_s: float
    """Before the first decode step: rebalancing pause and prefill pass."""
    steps: int
    first_s: float
    slope_s: float
    batch: int
    joined: list[LiveRequest]
    prefill: PrefillPass | None
    kv_tokens: float
    waiting: int

    def duration_s(self) -> float:
        return self.lead_s + self.steps_s(self.steps)

    def steps_s(self, steps: int) -> float:
        """Time of the first ``steps`` decode steps: the sum of an arithmetic series."""
        return steps * self.first_s + self.slope_s * steps * (steps - 1) / 2

    def steps_done(self, now_s: float) -> int:
        """Decode steps that have ended by now."""
        elapsed = now_s - self.start_s - self.lead_s
        if elapsed <= 0 or elapsed < self.first_s or not self.steps:
            return 0
        # Solve steps_s(n) = elapsed, in the form that also holds for slope 0.
        half = self.first_s - self.slope_s / 2
        root = half + math.sqrt(max(half * half + 2 * self.slope_s * elapsed, 0.0))
        done = min(math.floor(2 * elapsed / root), self.steps)
        # The root is rounded; the sum decides.
        while done and self.steps_s(done) > elapsed:
            done -= 1
        while done < self.steps and self.steps_s(done + 1) <= elapsed:
            done += 1
        return done


class Steps(NamedTuple):
    """Decode steps that can be one event."""

    number: int
    first_s: float
    slope_s: float
    """By how much each takes longer than the one before."""


def plan_steps(batch: DecodeBatch, times: StepTimes, *, limit: float, rebalance_s: float) -> Steps:
    """The steps that nothing known interrupts.

    Args:
        limit: at most so many; there is KV cache for no more, or a prompt is being computed.
        rebalance_s: time to the next rebalancing; infinite without one.
    """
    if not batch.total:
        return Steps(0, 0.0, 0.0)
    step_time = times.decode_step_s
    pace = _slowest_rank(batch, times) if len(batch.size) > 1 else 0
    size = batch.size[pace]
    first_s = step_time(size, batch.kv_tokens(pace) / size)
    if limit < 2:
        return Steps(1, first_s, 0.0)
    count = min(batch.steps_to_next_leave(), max(int(SPAN_TOKENS / batch.tokens_per_step), 1))
    if rebalance_s < math.inf:
        # Steps only grow longer than the first.
        count = min(count, math.ceil(max(rebalance_s, 0.0) / first_s) or 1)
    if limit < count:
        count = math.floor(limit)
    if count <= 1:
        return Steps(1, first_s, 0.0)
    last_s = step_time(size, batch.kv_tokens(pace, count - 1) / size)
    return Steps(count, first_s, (last_s - first_s) / (count - 1))


def _slowest_rank(batch: DecodeBatch, times: StepTimes) -> int:
    """The rank that sets the pace: most work, by the cost of one more request and of one more token
    of KV cache at the mean load."""
    busy = len(batch.size) - batch.size.count(0)
    size, kv = batch.total / busy, batch.total_kv_tokens / busy
    step_time = times.decode_step_s
    here = step_time(size, kv / size)
    per_request = step_time(size + 1, kv / (size + 1)) - here
    per_kv_token = step_time(size, (kv + size) / size) - here
    return batch.heaviest_rank(per_request, per_kv_token / size)
