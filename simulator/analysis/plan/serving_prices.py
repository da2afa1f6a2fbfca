"""What a deployment takes for its passes and steps, and what fits it; and a fleet that has run.

Times are those of the fleet simulation, asked of the same step times: of ideal ranks first, which
costs a tenth, and of ranks that differ for the deployments that are still in question.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hardware_profiles.fields import Raw
from hardware_profiles.units import Seconds
from simulator.analysis.fleet_metrics import fleet_metrics, observe_fleet
from simulator.analysis.plan.serving_bounds import Demand
from simulator.execution.fleet.kept_points import KnownTimes
from simulator.execution.fleet.simulation import FleetSimulation, kv_tokens, prepare_fleet
from simulator.execution.serving_model import ServingModel
from simulator.scenario.files import scenario_from
from simulator.scenario.starting_serving import Deployment, Pool, Service, fleet_scenario

BATCHES = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
"""Batch limits of a rank that are searched."""
PASSES = (4096, 8192, 16384)
"""Token budgets of a pass of a rank that are searched."""
HEADROOM = 1.25
"""Batch limit over the mean batch at least: requests do not come evenly."""

_NO_TIME = "1 ns"
_OTHER_POOL: Raw = {
    "instances": 1,
    "gpus_per_instance": 1,
    "ranks": 1,
    "affine": {
        "decode_fixed": _NO_TIME,
        "decode_per_request": _NO_TIME,
        "decode_per_context_token": "0 s",
        "prefill_fixed": _NO_TIME,
        "prefill_per_token": _NO_TIME,
        "prefill_per_attended_token": "0 s",
        "kv_capacity_tokens": 10**15,
    },
    "max_batch": 10**6,
    "tokens_per_pass": 10**9,
}
"""The pool beside one that is looked at alone: it takes no time and holds everything."""


@dataclass(frozen=True, slots=True)
class BatchPrice:
    """The batch of a decode deployment at one TPOT limit."""

    batch: float
    """The most requests of a rank that keep it and fit; 0 where none does."""
    tpot_batch: float
    """The most that keep it, whether they fit or not."""
    step_s: Seconds
    max_batch: int
    """The batch limit that goes with it: the next of BATCHES."""
    binds: str
    """TPOT, KV cache, or batch limit."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a deployment takes; `reason` where it cannot run."""

    expected: bool
    """Of ranks that differ; else of ideal ones."""
    reason: str | None = None
    seconds: Mapping[float, Seconds] = field(default_factory=dict)
    """{tokens of a pass of a rank, or requests of a rank that decode: time}."""
    alone_s: Mapping[int, Seconds] = field(default_factory=dict)
    """Prefill: {token budget of a pass: time of a long prompt that meets no other}; budgets that
    do not fit are left out."""
    kv_tokens: Mapping[int, int] = field(default_factory=dict)
    """KV cache of a rank beside its largest iteration: {token budget or batch limit: tokens}."""
    batches: Mapping[float, BatchPrice] = field(default_factory=dict)
    """Decode: {TPOT limit: its batch}."""

    def to_json(self) -> dict[str, Any]:
        """The price as a row of a file; keys of mappings as texts."""
        return {
            "expected": self.expected,
            "reason": self.reason,
            "seconds": {repr(k): v for k, v in self.seconds.items()},
            "alone_s": {repr(k): v for k, v in self.alone_s.items()},
            "kv_tokens": {repr(k): v for k, v in self.kv_tokens.items()},
            "batches": {
                repr(limit): [
                    found.batch,
                    found.tpot_batch,
                    found.step_s,
                    found.max_batch,
                    found.binds,
                ]
                for limit, found in self.batches.items()
            },
        }

    @classmethod
    def of_json(cls, row: Mapping[str, Any]) -> Price:
        """The price of such a row."""
        return cls(
            expected=row["expected"],
            reason=row["reason"],
            seconds={float(k): v for k, v in row["seconds"].items()},
            alone_s={int(k): v for k, v in row["alone_s"].items()},
            kv_tokens={int(k): v for k, v in row["kv_tokens"].items()},
            batches={float(k): BatchPrice(*v) for k, v in row["batches"].items()},
        )


def pool_alone(service: Service, pool: Pool) -> Raw:
    """The scenario of a prefill or decode pool beside another that takes no time."""
    raw = fleet_scenario(service, [pool], description="one pool of a plan")
    other = {"prefill": "decode", "decode": "prefill"}[pool.role]
    link = {"latency": "0 s", "bandwidth": "1 EB/s"}
    return raw | {"fleet": {**raw["fleet"], other: _OTHER_POOL, "kv_transfer": link}}


def price_of(
    service: Service,
    demand: Demand,
    deployment: Deployment,
    *,
    expected: bool,
    tpot_limits: Sequence[Seconds],
    ideal: Price | None = None,
    known: KnownTimes | None = None,
) -> Price:
    """Price the passes or steps of a deployment at the mean load of a service.

    Args:
        tpot_limits: at which the batch of a decode deployment is looked for.
        ideal: its price of ideal ranks, near which the expected one is looked for.
        known: times of its grid points, see `prepare_fleet`; new ones are added.
    """
    asked: dict[str, KnownTimes] = {deployment.phase: {} if known is None else known}
    try:
        if deployment.phase == "prefill":
            return _of_passes(service, demand, deployment, expected, asked)
        return _of_steps(service, demand, deployment, expected, tpot_limits, ideal, asked)
    except ValueError as error:
        return Price(expected, reason=str(error))


def _prepared(
    service: Service, pool: Pool, known: Mapping[str, KnownTimes], *, expected: bool
) -> tuple[FleetSimulation, ServingModel]:
    """The step times of a pool, and the model of its step."""
    raw = pool_alone(service, pool)
    step = raw["fleet"][pool.role][f"{pool.role}_step"]
    if not expected:
        step["changes"] = [*step["changes"], "skew=none"]
    scenario = scenario_from("plan", raw, (), where="plan serving")
    fleet = prepare_fleet(scenario, known=known)
    return fleet, fleet.models[pool.role]


def _largest_that_fits(
    service: Service,
    pools: Sequence[Pool],
    known: Mapping[str, KnownTimes],
    *,
    expected: bool,
) -> tuple[Pool, FleetSimulation, ServingModel]:
    """The first of some pools whose deployment fits its GPUs. Raises what the last one raises."""
    *larger, last = pools
    for pool in larger:
        try:
            return pool, *_prepared(service, pool, known, expected=expected)
        except ValueError:
            continue
    return last, *_prepared(service, last, known, expected=expected)


def _of_passes(
    service: Service,
    demand: Demand,
    deployment: Deployment,
    expected: bool,
    known: Mapping[str, KnownTimes],
) -> Price:
    pools = [Pool((deployment,), 1, 1, tokens) for tokens in reversed(PASSES)]
    largest, fleet, model = _largest_that_fits(service, pools, known, expected=expected)
    assert largest.tokens_per_pass is not None
    pass_s = fleet.step_times["prefill"].prefill_pass_s
    budgets = [tokens for tokens in PASSES if tokens <= largest.tokens_per_pass]

    def alone(budget: int) -> Seconds:
        """Time of a long prompt in chunks of a budget."""
        done, total = 0.0, 0.0
        while done < demand.long_prompt:
            chunk = min(budget, demand.long_prompt - done)
            total += pass_s(chunk, demand.long_cached + done + (chunk + 1) / 2)
            done += chunk
        return total

    return Price(
        expected,
        seconds={float(n): pass_s(n, demand.attended_tokens) for n in budgets},
        alone_s={budget: alone(budget) for budget in budgets},
        kv_tokens=dict.fromkeys(budgets, kv_tokens(model)),
    )


def _of_steps(
    service: Service,
    demand: Demand,
    deployment: Deployment,
    expected: bool,
    tpot_limits: Sequence[Seconds],
    ideal: Price | None,
    known: Mapping[str, KnownTimes],
) -> Price:
    pools = [Pool((deployment,), 1, batch) for batch in (256, 64, BATCHES[0])]
    _, fleet, model = _largest_that_fits(service, pools, known, expected=expected)
    step_times = fleet.step_times["decode"]
    asked: dict[float, Seconds] = {}

    def step_s(batch: float) -> Seconds:
        if batch not in asked:
            asked[batch] = step_times.decode_step_s(batch, demand.context)
        return asked[batch]

    gained = fleet.job.tokens_per_step
    capacity: dict[int, int] = {}

    def held(max_batch: int) -> int:
        """Tokens of KV cache beside a step of so many requests; 0 where that does not fit."""
        if max_batch not in capacity:
            capacity[max_batch] = _kv_beside(model, max_batch)
        return capacity[max_batch]

    found = {}
    for limit in sorted(tpot_limits):
        near = None if ideal is None else ideal.batches.get(limit)
        batch = _most(step_s, limit * gained, near=near.tpot_batch if near else None)
        found[limit] = _fitting(batch, step_s, held, demand, model)
    if not expected:
        # Few requests on a rank, for instances that compute prompts too, or whose load is low: a
        # step of fewer than one takes as long as that of one in a fleet too.
        step_s(1.0)
        step_s(8.0)
    return Price(expected, seconds=asked, kv_tokens=capacity, batches=found)


def _most(step_s: Callable[[float], Seconds], limit_s: Seconds, *, near: float | None) -> float:
    """The largest batch whose step takes no longer than a limit; 0 where none does.

    Args:
        near: the same of ideal ranks, which mostly take a little less.
    """
    high = float(BATCHES[-1])
    first = _NEAR if near is None else near
    # From where it may be, twice as far at each look.
    if step_s(first) <= limit_s:
        low = first
        while low < high and step_s(min(2 * low, high)) <= limit_s:
            low = min(2 * low, high)
        high = min(2 * low, high)
    else:
        high, low = first, max(1.0, float(int(_LESS * first)))
        while step_s(low) > limit_s:
            if low == 1.0:
                return 0.0
            high, low = low, max(1.0, float(int(low / 2)))
    # A step is linear between the batches that the model is asked at.
    while high - low > 1:
        middle = float(round((low + high) / 2))
        low, high = (middle, high) if step_s(middle) <= limit_s else (low, middle)
    if low == high:
        return low
    below, above = step_s(low), step_s(high)
    return low + max(0.0, (limit_s - below) / (above - below)) * (high - low)


_NEAR, _LESS = 64.0, 0.75
"""A batch to begin with, and the share of an ideal batch that is looked at after it."""


def _fitting(
    batch: float,
    step_s: Callable[[float], Seconds],
    held: Callable[[int], int],
    demand: Demand,
    model: ServingModel,
) -> BatchPrice:
    """The batch limit that goes with a batch, and the batch that its KV cache leaves."""
    if not batch:
        return BatchPrice(0.0, 0.0, step_s(1.0), BATCHES[0], "TPOT")
    page = model.job.memory.page_tokens
    each = demand.context + page / 2
    binds = "TPOT" if batch < BATCHES[-1] else "batch limit"
    limit = _limit_above(batch)
    fits = held(limit) / each
    if fits < batch:
        # A smaller batch leaves more of the memory to the cache.
        limit = _limit_above(fits)
        fits = min(held(limit) / each, float(limit))
        binds = "KV cache"
    fitting = min(batch, fits)
    return BatchPrice(fitting, batch, step_s(max(fitting, 1.0)), limit, binds)


def _limit_above(batch: float) -> int:
    return next((limit for limit in BATCHES if limit >= HEADROOM * batch), BATCHES[-1])


def _kv_beside(model: ServingModel, max_batch: int) -> int:
    """KV cache of one rank beside a step of `max_batch` requests, buffers for them included."""
    job = model.job
    drafted = 1 if job.speculative_decoding is None else 1 + job.speculative_decoding.draft_tokens
    memory = job.memory
    if memory.buffer_tokens is not None:
        each = -(-max_batch // job.attention_tp) * drafted
        memory = memory.model_copy(update={"buffer_tokens": -(-each // job.micro_batches)})
    requests = job.requests.model_copy(update={"requests_per_group": max_batch})
    sized = job.model_copy(update={"memory": memory, "requests": requests})
    try:
        return kv_tokens(replace(model, job=sized))
    except ValueError:
        return 0


@dataclass(frozen=True, slots=True)
class Measured:
    """What a simulated fleet shows of its limits; `reason` where it does not run."""

    ttft_s: Seconds = math.inf
    """That the asked share of the requests stays within."""
    tpot_s: Seconds = math.inf
    verdict: str | None = None
    queueing_s: Seconds = 0.0
    """Mean wait for prefill."""
    decode_wait_s: Seconds = 0.0
    """Mean wait from the first token to the first step of decode."""
    rejected: int = 0
    prefill_share: float = 1.0
    """Of the busy time of instances that do both, in passes."""
    reason: str | None = None


def run_of(raw: Raw, percentile: int, known: Mapping[str, KnownTimes]) -> Measured:
    """Simulate a fleet scenario of a plan. `known`: see `prepare_fleet`."""
    try:
        scenario = scenario_from("plan", raw, (), where="plan serving")
        fleet = observe_fleet(prepare_fleet(scenario, known=known))
    except ValueError as error:
        return Measured(reason=str(error))
    job, statistics = fleet.simulation.job, fleet.statistics
    metrics = fleet_metrics(
        job,
        scenario.cluster,
        fleet.run,
        statistics,
        step_times=fleet.simulation.step_times,
        rules=scenario.file.analysis.verdict,
    )
    passes, busy = (
        sum(each[name] for each in statistics.instances.values())
        for name in ("pass_seconds", "busy_seconds")
    )
    # Where no request has ended, no limit is kept; beside a pool of no time, and of answers of one
    # token, there is none.
    alone = any(pool.affine for pool in job.pools.values())
    nothing = 0.0 if alone or metrics["requests"]["finished"] else math.inf
    tpot = metrics["tpot_s"][f"p{percentile}"]
    return Measured(
        ttft_s=metrics["ttft_s"][f"p{percentile}"],
        tpot_s=nothing if tpot is None else tpot,
        verdict=metrics["verdict"],
        queueing_s=metrics["queueing_s"]["mean"] or 0.0,
        decode_wait_s=metrics["decode_wait_s"]["mean"] or 0.0,
        rejected=metrics["requests"]["rejected"],
        prefill_share=passes / busy if busy else 1.0,
    )


def first_tokens_only(service: Service, demand: Demand, ttft_s: Seconds) -> Service:
    """The same service with answers of one token, as long as a prefill pool needs to settle; a
    trace as it is."""
    synthetic = service.requests.get("synthetic")
    if service.requests.get("file") is not None or synthetic is None:
        return service
    alone = synthetic | {
        "output_tokens": {"kind": "constant", "mean": 1},
        "count": min(synthetic["count"], math.ceil(demand.rate * _SETTLES * ttft_s)),
    }
    return replace(
        service, requests=service.requests | {"synthetic": alone}, stay_s=_FILLS * ttft_s
    )


_SETTLES, _FILLS = 40.0, 5.0
"""TTFT limits that a prefill pool is simulated for, and that it fills in: its requests stay for
about one."""
