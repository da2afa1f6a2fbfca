"""80% intervals of the headline figures of a finished fleet run, and those of ideal ranks.

What is uncertain of a fleet is how long its iterations take; requests, lengths and policies are the
scenario's. The interval of one iteration of each phase, at the mean load of the run, comes from the
step model, and so does the time of ideal ranks. The fleet is run again with all iterations of all
phases at the low end, at the high end, and at the time of ideal ranks: one error for all of them,
which is wide rather than narrow. Where the scenario says so these runs end with fewer requests, the
first to arrive, and the interval is their ratio to what the run has of the same requests. Others
keep coming behind them in both, so that equal times give equal figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hardware_profiles.units import format_seconds
from simulator.analysis.fleet_metrics import (
    ObservedFleet,
    measure_figures,
    measure_fleet,
    observe_first,
    observe_fleet,
)
from simulator.analysis.intervals import serving_interval
from simulator.analysis.published import metric_at
from simulator.execution.fleet.simulation import (
    FleetSimulation,
    decode_at,
    prefill_at,
)
from simulator.execution.fleet.step_times import StepTimes
from simulator.execution.progress import Watch, unwatched, watch_part
from simulator.execution.serving_draws import expected_s
from simulator.execution.serving_step import iteration

FIGURES = (
    "ttft_s.mean",
    "tpot_s.mean",
    "itl_s.mean",
    "e2e_s.mean",
    "tokens_per_second_per_user",
    "goodput_requests_per_second",
    "output_tokens_per_second_per_node",
    "sustained_input_tokens_per_second_per_node",
    "sustained_output_tokens_per_second_per_node",
    "nodes_at_least",
    "cost_usd_per_million_output_tokens",
)
"""Figures that get an interval."""

CLIFF = 0.5
"""Low end of goodput over its high end below which it is called a cliff: at one end most requests
meet the service level, at the other most do not, and values in between are not likelier."""


@dataclass(frozen=True, slots=True)
class ScaledStepTimes:
    """StepTimes whose iterations take other times by a factor for each phase."""

    base: StepTimes
    factors: Mapping[str, float]
    """{"prefill", "decode"}"""

    @property
    def kv_capacity_tokens(self) -> int:
        return self.base.kv_capacity_tokens

    @property
    def page_tokens(self) -> int:
        return self.base.page_tokens

    def decode_step_s(self, batch: float, mean_context: float) -> float:
        return self.factors["decode"] * self.base.decode_step_s(batch, mean_context)

    def prefill_pass_s(self, tokens: float, context: float) -> float:
        return self.factors["prefill"] * self.base.prefill_pass_s(tokens, context)


def fleet_metrics_with_intervals(fleet: ObservedFleet, watch: Watch = unwatched) -> dict[str, Any]:
    """Figures of a fleet with their intervals, {"interval_80": {path: [low, high]}}, those of ideal
    ranks, {"ideal": {path: value}}, and what `goodput_cliff` says of them."""
    metrics = measure_fleet(fleet)
    found = fleet_intervals(fleet, metrics, watch)
    metrics["interval_80"] = {path: ends for path, (*ends, _) in found.items()}
    metrics["ideal"] = {path: ideal for path, (_, _, ideal) in found.items()}
    metrics["goodput_cliff"] = goodput_cliff(metrics)
    return metrics


def goodput_cliff(metrics: Mapping[str, Any]) -> str | None:
    """Why the ends of goodput lie far apart, and how near its edge the run is; None where they do
    not."""
    intervals = metrics["interval_80"]
    low, high = intervals.get("goodput_requests_per_second", (0.0, 0.0))
    if low >= CLIFF * high:
        return None
    reasons = []
    for name in ("ttft", "tpot"):
        limit, mean = metrics["service_level"][f"{name}_s"], metrics[f"{name}_s"]["mean"]
        ends = intervals.get(f"{name}_s.mean")
        if ends is not None and ends[0] <= limit <= ends[1]:
            shown = [format_seconds(value, digits=3) for value in (limit, *ends, mean)]
            away = limit / mean - 1.0
            reasons.append(
                f"the {name.upper()} limit of {shown[0]} lies within the interval of the mean, "
                f"{shown[1]} to {shown[2]}: times {abs(away):.1%} "
                f"{'above' if away >= 0 else 'below'} the {shown[3]} simulated reach it"
            )
    reason = "; ".join(reasons) or "times of single requests spread around the limits"
    return f"goodput is a cliff, {low:.3g} or {high:.3g} requests/s rather than between: {reason}"


def fleet_intervals(
    fleet: ObservedFleet, metrics: Mapping[str, Any], watch: Watch = unwatched
) -> dict[str, list[float]]:
    """{path: [low, high, of ideal ranks]} of FIGURES; empty for step times that are coefficients of
    the scenario.

    Args:
        metrics: of the whole run.
        watch: told how far the further runs have come.
    """
    ends = _iteration_ends(fleet.simulation, metrics)
    if not ends:
        return {}
    middle = metrics
    if fleet.first is not None:
        middle = measure_figures(replace(fleet, statistics=fleet.first))
    # Where ranks are alike the third is the run itself once more.
    runs = [
        middle
        if all(factors[end] == 1.0 for factors in ends.values())
        else _at_end(fleet, ends, end, watch_part(watch, end, 3))
        for end in range(3)
    ]
    intervals = {}
    for path in FIGURES:
        value, base = metric_at(metrics, path), metric_at(middle, path)
        found = [metric_at(run, path) for run in runs]
        if value is None or not base or any(end is None for end in found):
            continue
        *ends_of, ideal = (value * (end or 0.0) / base for end in found)
        intervals[path] = [min(*ends_of, value), max(*ends_of, value), ideal]
    return intervals


def _at_end(
    fleet: ObservedFleet, ends: Mapping[str, Sequence[float]], end: int, watch: Watch
) -> dict[str, Any]:
    """Figures with all iterations at one end of their interval, or of ideal ranks."""
    factors = {phase: both[end] for phase, both in ends.items()}
    base = fleet.simulation.step_times
    times = {name: ScaledStepTimes(of_pool, factors) for name, of_pool in base.items()}
    observe = observe_fleet if fleet.first is None else observe_first
    return measure_figures(observe(replace(fleet.simulation, step_times=times), watch))


def _iteration_ends(
    simulation: FleetSimulation, metrics: Mapping[str, Any]
) -> dict[str, Sequence[float]]:
    """{phase: ends of an iteration's time, and that of ideal ranks, over the expected time}, at the
    mean load."""
    ends: dict[str, Sequence[float]] = {}
    for phase, model in simulation.models.items():
        pool = metrics["pools"].get(phase) or metrics["pools"]["colocated"]
        ranks = (simulation.job.pools.get(phase) or simulation.job.pools["colocated"]).ranks
        if phase == "decode":
            batch, context = pool["mean_batch_per_instance"], pool["kv_tokens_per_request"]
            if not batch or not context:
                return {}
            step = iteration(decode_at(model, max(round(batch / ranks), 1), round(context)))
        else:
            tokens, attended = pool["mean_pass_tokens"], metrics["attended_tokens"]
            if not tokens or not attended:
                return {}
            step = iteration(prefill_at(model, max(round(tokens / ranks), 1), round(attended)))
        expected = expected_s(step)
        low, high = serving_interval(step, seed=simulation.scenario.file.seed)
        ends[phase] = [time / expected for time in (low, high, step.step_s)]
    return ends
