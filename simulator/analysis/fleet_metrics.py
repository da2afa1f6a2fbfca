"""The metrics of a fleet run, computed from its statistics.

Rates and gaps between tokens are those of the window from the end of the warm-up to the last
arrival, so that neither an empty service at the start nor the drain at the end counts (if all
requests have arrived by one look at the queues behind the warm-up, the window ends with the run).
For the same reason time per token, stay and goodput are those of the requests that end in the
window; what happens to a request before its first step of decode hardly depends on later arrivals,
so TTFT, queueing and prefix hits are those of all requests that arrive after the warm-up and come
so far.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hardware_profiles.schema import ClusterProfile
from hardware_profiles.units import format_seconds
from simulator.analysis.every_metric import METRICS
from simulator.analysis.fleet_records import FleetRecords
from simulator.analysis.fleet_statistics import FleetStatistics
from simulator.analysis.published import beside_published
from simulator.analysis.streaming import Floats
from simulator.execution.fleet.accounts import FleetRun
from simulator.execution.fleet.simulation import FleetSimulation
from simulator.execution.fleet.step_times import StepTimes
from simulator.execution.progress import Watch, unwatched
from simulator.scenario.analysis_inputs import VerdictRules
from simulator.scenario.fleet import FleetJob

_MILLION_TOKENS = 10**6
_CURVE_POINTS = 101

PREFILL_SHARES = ("prefill_busy_share", "prefill_even_ranks_share", "prefill_full_passes_share")

DEFINED = (
    "ttft_s",
    "tpot_s",
    "itl_s",
    "e2e_s",
    "queueing_s",
    "decode_wait_s",
    "goodput_requests_per_second",
    "output_tokens_per_second_per_node",
    "output_tokens_per_second_per_gpu",
    "input_tokens_per_second_per_node",
    "computed_input_tokens_per_second_per_node",
    "sustained_input_tokens_per_second_per_node",
    "prefill_busy_share",
    "prefill_even_ranks_share",
    "prefill_full_passes_share",
    "sustained_output_tokens_per_second_per_node",
    "attended_tokens",
    "nodes_at_least",
    "tokens_per_second_per_user",
    "prefix_hit_rate",
    "kv_occupancy",
    "cost_usd_per_million_output_tokens",
    "nodes",
    "littles_law_error",
    "verdict",
    "window_s",
)
"""Figures whose meaning is printed beside them."""


def definitions(job: FleetJob, rules: VerdictRules) -> dict[str, str]:
    """What each figure of a job means, the rules of the verdict filled in."""
    stated = {
        "growth": format(rules.queue_growth, ".0%"),
        "preempted": format(rules.preempted_share, ".0%"),
        "stays": format(rules.window_stays, "g"),
        "warm_up": format_seconds(job.warm_up),
        "look": format_seconds(job.sample_interval),
    }
    return {name: METRICS["fleet"][name].meaning.format(**stated) for name in DEFINED}


@dataclass(frozen=True, slots=True)
class ObservedFleet:
    """A fleet that has run, and what was counted while it did."""

    simulation: FleetSimulation
    run: FleetRun
    statistics: FleetStatistics
    records: FleetRecords | None = None
    """Rows of the run, where they were kept."""
    first: FleetStatistics | None = None
    """Of the requests that intervals rest on, the first to arrive, where they are not all."""


def observe_fleet(
    simulation: FleetSimulation, watch: Watch = unwatched, *, keep: bool = False
) -> ObservedFleet:
    """Run a fleet and count what happens.

    Args:
        watch: told how far the run has come.
        keep: also every request, and the iterations of a stretch: some 150 bytes per request.

    Raises:
        ValueError: no request that arrives after the warm-up finishes, so nothing is measured.
    """
    job, number = simulation.job, simulation.scenario.file.analysis.interval_requests
    statistics = FleetStatistics(job)
    records = FleetRecords(from_s=job.warm_up) if keep else None
    first = None if number is None else FleetStatistics(job, first=number)
    logs = [log for log in (statistics, records, first) if log is not None]
    run = simulation.run(*logs, watch=watch, first=number)
    if not statistics.counted:
        raise ValueError(f"fleet: nothing is measured: {_why_nothing(job, run)}")
    # The whole run stands for first requests that are all, or have no window of their own.
    if number is None or number >= run.arrived or (first and first.window_s[1] == math.inf):
        first = None
    return ObservedFleet(simulation, run, statistics, records, first)


def observe_first(simulation: FleetSimulation, watch: Watch = unwatched) -> ObservedFleet:
    """Run a fleet until all is known of the requests that intervals rest on, the first to arrive,
    and count what happens to these: the same as in the whole run."""
    number = simulation.scenario.file.analysis.interval_requests
    statistics = FleetStatistics(simulation.job, first=number)
    run = simulation.run(statistics, watch=watch, first=number, only_first=True)
    return ObservedFleet(simulation, run, statistics)


def _why_nothing(job: FleetJob, run: FleetRun) -> str:
    if run.last_arrival_s < job.warm_up:
        return (
            f"the last of {run.arrived} requests arrives at {format_seconds(run.last_arrival_s)}, "
            f"before fleet.warm_up = {format_seconds(job.warm_up)} ends; allowed: a shorter "
            "warm-up, or more requests"
        )
    rejected = ", ".join(f"{count} {reason}" for reason, count in run.rejected.items() if count)
    return (
        f"of {run.arrived} requests {run.finished} finish, all within the warm-up "
        f"({rejected or 'none rejected'}, {run.unfinished} unfinished at "
        f"{format_seconds(run.end_s)}); allowed: a longer fleet.horizon, or instances that "
        "hold such requests"
    )


def measure_fleet(fleet: ObservedFleet) -> dict[str, Any]:
    """The figures, time series and distributions of a fleet by their JSON names."""
    # The figures of steps are needed for one function of theirs only.
    from simulator.analysis.serving_metrics import serving_kernels

    simulation, run, statistics = fleet.simulation, fleet.run, fleet.statistics
    scenario, job = simulation.scenario, simulation.job
    metrics = measure_figures(fleet)
    published = scenario.file.published if job.requests.as_published else ()
    metrics["published"] = beside_published(published, metrics)
    metrics["step_times"] = dict(simulation.step_times_from)
    metrics["kernels"] = {
        phase: serving_kernels(model) for phase, model in simulation.models.items()
    }
    metrics["definitions"] = definitions(job, scenario.file.analysis.verdict)
    metrics["time_series"] = fleet_time_series(job, run, statistics)
    metrics["distributions"] = fleet_distributions(statistics)
    return metrics


def measure_figures(fleet: ObservedFleet) -> dict[str, Any]:
    """The figures of a fleet alone, by their JSON names."""
    simulation = fleet.simulation
    return fleet_metrics(
        simulation.job,
        simulation.scenario.cluster,
        fleet.run,
        fleet.statistics,
        step_times=simulation.step_times,
        rules=simulation.scenario.file.analysis.verdict,
    )


def fleet_distributions(statistics: FleetStatistics) -> dict[str, dict[str, list[float]]]:
    """Cumulative distributions: {figure: {"value_s": rising values, "share": share up to each}}."""
    histograms = {
        "ttft_s": statistics.ttft,
        "tpot_s": statistics.tpot,
        "itl_s": statistics.itl,
        "e2e_s": statistics.e2e,
        "queueing_s": statistics.queueing,
    }
    result = {}
    for name, histogram in histograms.items():
        values, shares = histogram.cumulative(_CURVE_POINTS)
        result[name] = {"value_s": values.tolist(), "share": shares.tolist()}
    return result


def fleet_metrics(
    job: FleetJob,
    cluster: ClusterProfile,
    run: FleetRun,
    statistics: FleetStatistics,
    *,
    step_times: Mapping[str, StepTimes],
    rules: VerdictRules,
) -> dict[str, Any]:
    """The figures of a fleet run by their JSON names; None where there is nothing to measure.

    wall_clock_s is added by whoever measures it.
    """
    start, end = statistics.window_s
    end = min(end, run.end_s)
    window = max(end - start, 0.0)
    pools = {
        name: _pool_figures(
            name, job, cluster, run=run, statistics=statistics, window_s=(start, end)
        )
        for name in job.pools
    }
    prefill = pools.get("prefill") or pools["colocated"]
    decode = pools.get("decode") or pools["colocated"]
    output_rate = _per(_sum(statistics, "output_tokens"), window)
    nodes = sum(pool["nodes"] for pool in pools.values())
    # Of one replica, as its tokens are.
    dollars_per_second = nodes * cluster.node.gpus * cluster.gpu_price
    rejected = sum(run.rejected.values())
    sustained_input = _sustained_input(job, cluster, statistics, step_times=step_times)
    sustained_output = _sustained_output(
        job, cluster, decode["kv_tokens_per_request"], step_times=step_times
    )
    figures: dict[str, Any] = {
        "ttft_s": statistics.ttft.summary(),
        "tpot_s": statistics.tpot.summary(),
        "itl_s": statistics.itl.summary(),
        "e2e_s": statistics.e2e.summary(),
        "queueing_s": statistics.queueing.summary(),
        "decode_wait_s": statistics.decode_wait.summary(),
        "requests": {
            "arrived": run.arrived,
            "finished": run.finished,
            "rejected": rejected,
            "unfinished": run.unfinished,
            "rejected_by_reason": dict(run.rejected),
            "preemptions": run.preemptions,
            "restarts": run.restarts,
            "lines_skipped_malformed": run.read.malformed,
            "lines_skipped_failed": run.read.failed,
        },
        "goodput_requests_per_second": _per(statistics.good, window),
        "output_tokens_per_second": output_rate,
        "output_tokens_per_second_per_node": _per(output_rate, decode["nodes"]),
        "output_tokens_per_second_per_gpu": _per(output_rate, decode["nodes"] * cluster.node.gpus),
        "input_tokens_per_second_per_node": _per(
            _per(_sum(statistics, "prompt_tokens"), window), prefill["nodes"]
        ),
        "computed_input_tokens_per_second_per_node": _per(
            _per(_sum(statistics, "prefill_tokens"), window), prefill["nodes"]
        ),
        "sustained_input_tokens_per_second_per_node": sustained_input,
        **_prefill_shares(
            job,
            cluster,
            statistics,
            sustained=sustained_input,
            instance_s=window * (prefill["instances"] or 0.0),
        ),
        "sustained_output_tokens_per_second_per_node": sustained_output,
        "attended_tokens": _per(
            statistics.attended_tokens, statistics.prompt_tokens - statistics.cached_tokens
        ),
        "nodes_at_least": _nodes_at_least(
            job,
            _per(_sum(statistics, "prompt_tokens"), window),
            output_rate,
            sustained=(sustained_input, sustained_output),
        ),
        "tokens_per_second_per_user": _per(1.0, statistics.itl.mean or 0.0),
        "prefix_hit_rate": _hit_rate(statistics),
        "kv_occupancy": decode["kv_occupancy"],
        "cost_usd_per_million_output_tokens": (
            dollars_per_second / output_rate * _MILLION_TOKENS if output_rate else None
        ),
        "nodes": nodes * job.replicas,
        "replicas": job.replicas,
        "pools": pools,
        "window_s": [start, end] if window else None,
        "simulated_s": run.end_s,
        "littles_law_error": (
            run.request_seconds / statistics.stay_seconds - 1 if statistics.stay_seconds else None
        ),
        **_verdict(job, statistics, start, end, rules=rules),
        "service_level": {"ttft_s": job.service_level.ttft, "tpot_s": job.service_level.tpot},
    }
    return figures


def fleet_time_series(
    job: FleetJob, run: FleetRun, statistics: FleetStatistics
) -> dict[str, list[float | None]]:
    """Means over equal bins of time, from time 0 to the end of the run: {name: one value per bin}.

    time_s is the start of a bin. A mean over nothing (no decode in the bin) is None.
    """
    series = statistics.series
    used = int(np.searchsorted(series.starts_s, run.end_s, side="left")) or 1
    width = np.minimum(series.width_s, np.maximum(run.end_s - series.starts_s, 0.0))
    decoding = [i for i in run.instances if i.pool != "prefill"]
    capacity_seconds = np.array(
        [
            sum(i.kv_capacity_tokens * i.in_service_s(t, t + series.width_s) for i in decoding)
            for t in series.starts_s
        ]
    )

    def ratio(name: str, over: Floats) -> list[float | None]:
        values = series[name][:used]
        return [
            float(value / base) if base > 0 else None
            for value, base in zip(values, over[:used], strict=True)
        ]

    return {
        "time_s": [float(value) for value in series.starts_s[:used]],
        "arrivals_per_second": ratio("arrivals", width),
        "output_tokens_per_second": ratio("output_tokens", width),
        "input_tokens_per_second": ratio("input_tokens", width),
        "batch": ratio("batch_seconds", series["decode_seconds"]),
        "kv_occupancy": ratio("kv_token_seconds", capacity_seconds),
        "waiting_prefill": ratio("waiting_prefill", series["samples"]),
        "waiting_decode": ratio("waiting_decode", series["samples"]),
        "in_system": ratio("in_system", series["samples"]),
    }


def _pool_figures(
    name: str,
    job: FleetJob,
    cluster: ClusterProfile,
    *,
    run: FleetRun,
    statistics: FleetStatistics,
    window_s: tuple[float, float],
) -> dict[str, Any]:
    members = {n: i for n, i in enumerate(run.instances) if i.pool == name}
    # Without a window, nodes are those of the whole run.
    start, end = window_s if window_s[1] > window_s[0] else (0.0, run.end_s)
    paid_s = {n: instance.in_service_s(start, end) for n, instance in members.items()}
    active = sum(paid_s.values()) / (end - start) if end > start else float(len(members))
    sums = {
        key: _sum(statistics, key, members)
        for key in (
            "busy_seconds",
            "batch_seconds",
            "decode_seconds",
            "kv_token_seconds",
            "prefill_tokens",
            "passes",
        )
    }
    capacity = sum(instance.kv_capacity_tokens for instance in members.values())
    return {
        "instances": active,
        "nodes": active * job.pools[name].gpus_per_instance / cluster.node.gpus,
        "utilisation": _per(sums["busy_seconds"], sum(paid_s.values())),
        "mean_batch_per_instance": _per(sums["batch_seconds"], sums["decode_seconds"]),
        "kv_occupancy": _per(
            sums["kv_token_seconds"],
            sum(i.kv_capacity_tokens * paid_s[n] for n, i in members.items()),
        ),
        "mean_pass_tokens": _per(sums["prefill_tokens"], sums["passes"]),
        "kv_tokens_per_request": _per(sums["kv_token_seconds"], sums["batch_seconds"]),
        "kv_capacity_tokens": capacity,
    }


def _sustained_input(
    job: FleetJob,
    cluster: ClusterProfile,
    statistics: FleetStatistics,
    *,
    step_times: Mapping[str, StepTimes],
) -> float | None:
    """Prompt tokens/s, cached ones included, of a node whose every pass is full."""
    pool = job.prefill
    computed = statistics.prompt_tokens - statistics.cached_tokens
    if pool is None or computed <= 0:
        return None
    tokens = pool.tokens_per_pass
    assert tokens is not None, "a pool that computes prompts says how many tokens a pass takes"
    pass_s = step_times["prefill"].prefill_pass_s(tokens, statistics.attended_tokens / computed)
    nodes = pool.gpus_per_instance / cluster.node.gpus
    return pool.ranks * tokens / pass_s / nodes * statistics.prompt_tokens / computed


def _nodes_at_least(
    job: FleetJob,
    input_rate: float | None,
    output_rate: float | None,
    *,
    sustained: tuple[float | None, float | None],
) -> float | None:
    """Nodes of all replicas that the tokens of the window need, every node saturated."""
    nodes = (_per(input_rate, sustained[0] or 0.0), _per(output_rate, sustained[1] or 0.0))
    if nodes[0] is None or nodes[1] is None:
        return None
    return (nodes[0] + nodes[1]) * job.replicas


def _prefill_shares(
    job: FleetJob,
    cluster: ClusterProfile,
    statistics: FleetStatistics,
    *,
    sustained: float | None,
    instance_s: float,
) -> dict[str, float | None]:
    """Why the nodes of a prefill pool take less than saturated ones, as factors."""
    pool = job.prefill
    passes = _sum(statistics, "pass_seconds")
    even = _sum(statistics, "even_pass_seconds")
    if pool is None or sustained is None or not even:
        return dict.fromkeys(PREFILL_SHARES)
    nodes = pool.gpus_per_instance / cluster.node.gpus
    computed = statistics.prompt_tokens - statistics.cached_tokens
    tokens = _sum(statistics, "prefill_tokens") * statistics.prompt_tokens / computed
    shares = (_per(passes, instance_s), even / passes, tokens / even / nodes / sustained)
    return dict(zip(PREFILL_SHARES, shares, strict=True))


def _sustained_output(
    job: FleetJob,
    cluster: ClusterProfile,
    context: float | None,
    *,
    step_times: Mapping[str, StepTimes],
) -> float | None:
    """Tokens/s of a node with the largest batch that keeps the TPOT limit; 0 if none does."""
    pool = job.decode
    if pool is None or not context:
        return None
    times = step_times["decode"]
    limit_s = job.service_level.tpot * job.tokens_per_step
    capacity = pool.kv_capacity_tokens
    if capacity is None:
        capacity = times.kv_capacity_tokens
    largest = min(pool.max_batch, int(capacity / context))
    # A step takes longer with every request.
    batch = bisect_right(
        range(1, largest + 1), limit_s, key=lambda size: times.decode_step_s(size, context)
    )
    if not batch:
        return 0.0
    tokens = pool.ranks * batch * job.tokens_per_step
    nodes = pool.gpus_per_instance / cluster.node.gpus
    return tokens / times.decode_step_s(batch, context) / nodes


def _verdict(
    job: FleetJob,
    statistics: FleetStatistics,
    start_s: float,
    end_s: float,
    *,
    rules: VerdictRules,
) -> dict[str, Any]:
    """Whether the service keeps up with its requests in the window, and what that rests on."""
    series = statistics.series
    middle = (start_s + end_s) / 2
    starts = series.starts_s
    # Bins that lie in the second half and hold samples.
    chosen = (starts >= middle) & (starts < end_s) & (series["samples"] > 0)
    in_window = (starts >= start_s) & (starts < end_s)
    seconds = float(in_window.sum()) * series.width_s
    rate = _per(float(series["arrivals"][in_window].sum()), seconds)
    preempted = _per(statistics.preempted, statistics.counted)
    in_service_s = _per(statistics.service_seconds, statistics.counted)
    stays = _per(end_s - start_s, in_service_s or 0.0)
    refused = _per(statistics.refused, statistics.arrived)
    figures = {"preempted_share": preempted, "refused_share": refused, "window_stays": stays}
    if chosen.sum() < 2 or not rate:
        return {"verdict": None, "waiting_growth": None, "mean_wait_s": None, **figures}
    samples = series["samples"][chosen]
    waiting = (series["waiting_prefill"][chosen] + series["waiting_decode"][chosen]) / samples
    slope = float(np.polyfit(starts[chosen] - middle, waiting, 1)[0])
    growth = slope / rate
    # Little's law for the queues: mean wait = mean number waiting / arrival rate.
    wait = float(waiting.mean()) / rate
    turned_away = refused or 0.0
    pressed = (
        wait > job.service_level.ttft
        or (preempted or 0.0) > rules.preempted_share
        or turned_away > rules.queue_growth
    )
    verdict: str | None
    unknown = not pressed if stays is None else stays < rules.window_stays
    if unknown:
        verdict = None
    elif pressed and growth + turned_away > rules.queue_growth:
        verdict = "overloaded"
    else:
        verdict = "backlogged" if pressed else "stable"
    return {"verdict": verdict, "waiting_growth": growth, "mean_wait_s": wait, **figures}


def _hit_rate(statistics: FleetStatistics) -> float | None:
    if statistics.blocks:
        return statistics.hit_blocks / statistics.blocks
    return _per(statistics.cached_tokens, statistics.prompt_tokens)


def _sum(statistics: FleetStatistics, name: str, members: Collection[int] | None = None) -> float:
    """Sum of a figure over the instances of ``members``, or all."""
    return sum(
        sums[name]
        for number, sums in statistics.instances.items()
        if members is None or number in members
    )


def _per(value: float | None, base: float) -> float | None:
    return value / base if value is not None and base > 0 else None
