"""Steady-state bounds: the fewest instances of a deployment that a service can do with.

In a steady state an instance computes the tokens that arrive (utilisation), holds the requests that
arrive in the time they stay (Little's law), and its requests and their KV cache fit. What these
leave out, that requests come unevenly and wait, a simulated fleet adds; so no fleet with fewer
instances keeps the limits but by chance.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from hardware_profiles.units import Seconds
from simulator.scenario.fleet import RequestSource
from simulator.workload.requests import ReadCounts, generate_requests, ideal_hit_rate


@dataclass(frozen=True, slots=True)
class Demand:
    """What the requests of a service ask for, as means over all of them."""

    rate: float
    """Requests per second."""
    prompt_tokens: float
    computed_tokens: float
    """Of a prompt, that no prefix cache holds."""
    attended_tokens: float
    """That a computed token attends to, itself included, mean over them."""
    long_prompt: float
    """Tokens that as many prompts stay below as are to keep the limits."""
    long_cached: float
    """Of those, in the prefix cache."""
    output_tokens: float
    steps: float
    """Tokens after the first."""
    context: float
    """KV tokens of a request, mean over its steps."""
    span_s: Seconds
    """From the first to the last arrival."""
    random_prompts: tuple[float, ...] = ()
    """Where requests come at random (Poisson), the fewest computed tokens of each of equal shares
    of them, from the shortest to the longest; else nothing."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is asked of a service; varied one by one for its sensitivity."""

    ttft_s: Seconds
    tpot_s: Seconds
    drafting: bool = True
    """Whether decode may draft tokens."""


def demand_of(source: RequestSource, *, percentile: int, seed: int, hits: bool) -> Demand:
    """The demand of the requests that a fleet of this source simulates.

    Args:
        percentile: share of requests, in %, that are to keep the limits.
        seed: of the fleet, so that synthetic requests are the same.
        hits: whether a prefix cache without limits holds what requests with hashes share.

    Raises:
        ValueError: a closed loop, or fewer than two requests.
    """
    if source.closed_loop:
        raise ValueError("plan serving: closed_loop requests have no rate of their own")

    def stream() -> Iterator[tuple[float, int, int, int]]:
        generator = np.random.default_rng(seed).spawn(2)[0]
        for each in generate_requests(source, generator, counts=ReadCounts()):
            yield each.arrival_s, each.prompt_tokens, each.output_tokens, each.cached_tokens

    rows = np.array(list(stream()), dtype=np.float64).reshape(-1, 4)
    times, prompts, outputs, cached = rows.T
    span = float(times[-1] - times[0]) if len(rows) > 1 else 0.0
    if span <= 0:
        raise ValueError("plan serving: the requests all arrive at once; allowed: a rate")
    if hits:
        generator = np.random.default_rng(seed).spawn(2)[0]
        share = ideal_hit_rate(generate_requests(source, generator, counts=ReadCounts()))
        cached = np.floor(prompts * share)
    cached = np.minimum(cached, prompts - 1)
    computed = prompts - cached
    later = outputs - 1
    synthetic = source.synthetic if source.file is None else None
    random = (
        synthetic is not None
        and synthetic.arrivals == "poisson"
        and synthetic.hourly_load is None
        and synthetic.sessions is None
    )
    shares = np.array_split(np.sort(computed), min(_SHARES, len(rows)))
    longest = int(np.argsort(computed, kind="stable")[math.ceil(len(rows) * percentile / 100) - 1])
    return Demand(
        rate=len(rows) / span,
        prompt_tokens=float(prompts.mean()),
        computed_tokens=float(computed.mean()),
        attended_tokens=float((computed * (cached + (computed + 1) / 2)).sum() / computed.sum()),
        long_prompt=float(computed[longest]),
        long_cached=float(cached[longest]),
        output_tokens=float(outputs.mean()),
        steps=float(later.mean()),
        context=float((later * (prompts + outputs / 2)).sum() / max(later.sum(), 1.0)),
        span_s=span,
        random_prompts=tuple(float(share[0]) for share in shares) if random else (),
    )


_SHARES = 16
"""Of the requests, by the length of their prompts."""


def least_prefill(
    demand: Demand, *, ranks: int, tokens_per_pass: int, passes: Mapping[int, Seconds]
) -> int:
    """Instances whose passes, all full, compute the prompts as fast as they come.

    Args:
        passes: {tokens of one rank: seconds of a pass}.
    """
    best = max(tokens / seconds for tokens, seconds in passes.items() if tokens <= tokens_per_pass)
    return max(1, math.ceil(demand.rate * demand.computed_tokens / (ranks * best) - 1e-9))


def least_decode(
    demand: Demand, *, ranks: int, batch: float, step_s: Seconds, tokens_per_step: float
) -> int:
    """Instances that hold the requests that decode at once: rate x steps x time of a step.

    Args:
        batch: the most requests of a rank that keep the TPOT limit and fit.
        step_s: time of a step at that batch.
        tokens_per_step: that a request gains in one.
    """
    held = demand.rate * demand.steps / tokens_per_step * step_s
    return max(1, math.ceil(held / (ranks * batch) - 1e-9))


def most_colocated(
    demand: Demand,
    *,
    ranks: int,
    tokens_per_pass: int,
    passes: Mapping[int, Seconds],
    steps: Mapping[float, Seconds],
    largest: float,
    tokens_per_step: float,
    tpot_s: Seconds,
) -> tuple[float, Seconds] | None:
    """The most that an instance serves within the TPOT limit, (requests per second, time per
    token); None where one request exceeds it.

    A pass lengthens the steps that it stands between, so with a share of the time in prefill a
    token takes step / (1 - share), however many prompts a pass takes together. An instance that
    begins a pass as soon as a prompt waits cannot collect them: where prompts come at random, a
    step has a pass before it unless none came during the last one, which is seldom behind a pass.

    Args:
        steps: {requests of a rank: seconds of a decode step}, linear in between.
        largest: requests of a rank that fit.
    """
    asked = max(demand.steps, _NO_STEPS) / tokens_per_step
    """Steps of a request."""

    def room(batch: float) -> float:
        return max(tokens_per_pass - batch, 1.0)

    def prefill_s(batch: float) -> Seconds:
        """Of one request, in full passes."""
        return demand.computed_tokens * interpolated(passes, room(batch)) / (ranks * room(batch))

    def apart_s(rate: float, batch: float) -> Seconds:
        """Between two steps of a batch, at least."""
        step, busy = interpolated(steps, batch), rate * prefill_s(batch)
        shared = step / (1 - busy) if busy < 1 else math.inf
        alone = [_alone_s(passes, min(tokens, room(batch))) for tokens in demand.random_prompts]
        if not alone:
            return shared
        begins = 1 - math.exp(-rate * step)
        ends = sum(math.exp(-rate * (step + each)) for each in alone) / len(alone)
        with_pass = begins / (begins + ends)
        return max(shared, step + with_pass * sum(alone) / len(alone))

    def keeps(batch: float) -> bool:
        # At the rate at which the batch is that large if steps are as far apart as they may be: if
        # they are nearer to each other there, they are at its own rate too.
        limit_s = tpot_s * tokens_per_step
        return apart_s(ranks * batch / (asked * limit_s), batch) <= limit_s

    def at(batch: float) -> tuple[float, Seconds]:
        """By Little's law."""
        step, held = interpolated(steps, batch), ranks * batch / asked
        rate = held / step / (1 + held / step * prefill_s(batch))
        low, high = (0.0, rate) if demand.random_prompts else (rate, rate)
        for _ in range(_HALVINGS if low < high else 0):
            rate = (low + high) / 2
            low, high = (rate, high) if rate * apart_s(rate, batch) <= held else (low, rate)
        return rate, held / rate / tokens_per_step

    low, high = 1.0 / ranks, min(largest, tokens_per_pass - 1.0)
    if high < low or not keeps(low):
        return None
    if keeps(high):
        return at(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return at(low)


_HALVINGS = 60
_NO_STEPS = 1e-12


def _alone_s(passes: Mapping[int, Seconds], tokens: float) -> Seconds:
    """Of a pass with one prompt, at least: below the least that is known, its share of that."""
    return interpolated(passes, tokens) * min(1.0, tokens / min(passes))


def interpolated(times: Mapping[float, Seconds] | Mapping[int, Seconds], load: float) -> Seconds:
    """Time at a load: linear between those known, that of the least below it, and beyond the last
    as the last two go on."""
    known = sorted(times)
    if load <= known[0] or len(known) == 1:
        return times[known[0]]  # type: ignore[index]
    at = min(max(bisect_left(known, load), 1), len(known) - 1)
    low, high = known[at - 1], known[at]
    first, last = times[low], times[high]  # type: ignore[index]
    return first + (last - first) * (load - low) / (high - low)


def predicted_tpot(
    demand: Demand, *, instances: int, ranks: int, steps: Mapping[float, Seconds],
    tokens_per_step: float,
) -> Seconds:  # fmt: skip
    """Time per token of a decode pool in its steady state: the batch that Little's law gives."""
    batch, each = 1.0, demand.rate * demand.steps / tokens_per_step / (instances * ranks)
    for _ in range(200):
        batch = each * interpolated(steps, batch)
    return interpolated(steps, batch) / tokens_per_step
