"""The figures of a whole training run, over its seeds.

A figure is the mean over the runs, so that its causes sum to it; its 80% interval holds the runs
from the 10th to the 90th in a hundred, with what failures and the time of a step make of each.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import unit_factor
from simulator.analysis.pretraining import PretrainingRun
from simulator.analysis.published import beside_published
from simulator.execution.draws import ends
from simulator.execution.pretraining import CAUSES

Array = NDArray[np.float64]

_DAY, _HOUR = unit_factor("d", "time"), unit_factor("h", "time")
_TRILLION = 10**12

NO_FAILURES = frozenset({"slow_node", "slow_node_found", "whole_again"})
"""Incidents that stop no work or are planned."""


def pretraining_metrics(run: PretrainingRun) -> dict[str, Any]:
    """The figures of a run by their JSON names, plain numbers, lists and mappings."""
    wall = np.array([log.wall_s for log in run.logs])
    price = run.scenario.cluster.gpu_price
    tokens = sum(phase.tokens for phase in run.phases)
    seconds = {cause: np.array([log.seconds[cause] for log in run.logs]) for cause in CAUSES}
    counts: Counter[str] = sum((log.counts() for log in run.logs), Counter())
    interruptions = np.array(
        [
            sum(count for kind, count in log.counts().items() if kind not in NO_FAILURES)
            for log in run.logs
        ]
    )
    every: dict[str, Array] = {
        "days": wall / _DAY,
        "gpu_hours": wall * run.gpus / _HOUR,
        "cost_usd": wall * run.gpus * price,
        "tokens_per_day": tokens / wall * _DAY,
        "gpu_hours_per_trillion_tokens": wall * run.gpus / _HOUR / tokens * _TRILLION,
        "goodput": seconds["training"] / wall,
        "interruptions_per_day": interruptions / wall * _DAY,
    }
    flops = [phase.step.flops for phase in run.phases]
    if None not in flops:
        work = sum(
            (phase.step.flops or 0.0) * float(phase.sequences.sum()) / phase.step.sequences
            for phase in run.phases
        )
        peak = run.scenario.cluster.node.gpu.peak("bfloat16")
        every["mfu_causal"] = work / (wall * run.gpus * peak)
    mean_wall = float(wall.mean())
    metrics: dict[str, Any] = {
        **{name: float(values.mean()) for name, values in every.items()},
        # Rates are those of all runs together, so that they agree with the days.
        "tokens_per_day": tokens / mean_wall * _DAY,
        "goodput": float(seconds["training"].mean()) / mean_wall,
        "gpus": run.gpus,
        "runs": len(run.logs),
        "tokens": tokens,
        "steps": sum(len(phase.seconds) for phase in run.phases),
        "days_by_cause": {c: float(values.mean()) / _DAY for c, values in seconds.items()},
        "share_by_cause": {c: float(values.mean()) / mean_wall for c, values in seconds.items()},
        "without_failures": _without_failures(run, run.training_s, price),
        "ideal": _without_failures(run, _ideal_s(run), price),
        "incidents": {kind: count / len(run.logs) for kind, count in sorted(counts.items())},
        "checkpoint": _checkpoint(run),
        "phases": _phases(run, price),
        "interval_80": {name: ends(values) for name, values in every.items()},
    }
    metrics["published"] = beside_published(run.scenario.file.published, metrics)
    return metrics


def _without_failures(run: PretrainingRun, seconds: float, price: float) -> dict[str, float]:
    return {
        "days": seconds / _DAY,
        "gpu_hours": seconds * run.gpus / _HOUR,
        "cost_usd": seconds * run.gpus * price,
    }


def _ideal_s(run: PretrainingRun) -> float:
    """All steps of ranks that are alike, if nothing failed."""
    return sum(
        float(phase.seconds.sum()) * phase.step.ideal_s / phase.step.seconds for phase in run.phases
    )


def _checkpoint(run: PretrainingRun) -> dict[str, Any] | None:
    if run.checkpoint_size is None:
        return None
    ends = run.plan.ends_s
    return {
        "size_bytes": run.checkpoint_size,
        "interval_s": float(ends[0]),
        "stall_s": run.plan.stall_s,
        "write_s": run.plan.write_s,
        "reload_s": run.plan.reload_s,
        "count": len(ends) - 1,
    }


def _phases(run: PretrainingRun, price: float) -> list[dict[str, Any]]:
    """Every phase, from the time at which its first step began for good."""
    ends = np.cumsum([float(phase.seconds.sum()) for phase in run.phases])
    reached = np.array(
        [[*(log.reached_s(run.plan, end) for end in ends[:-1]), log.wall_s] for log in run.logs]
    ).mean(axis=0)
    took = np.diff(reached, prepend=0.0)
    return [
        {
            "name": phase.phase.name,
            "tokens": phase.tokens,
            "steps": len(phase.seconds),
            "sequence_length": phase.step.sequence_length,
            "step_time_s": phase.step.seconds,
            "ideal_step_time_s": phase.step.ideal_s,
            "first_step_time_s": float(phase.seconds[0]),
            "days": float(seconds) / _DAY,
            "gpu_hours": float(seconds) * run.gpus / _HOUR,
            "gpu_hours_per_trillion_tokens": float(seconds)
            * run.gpus
            / _HOUR
            / phase.tokens
            * _TRILLION,
            "cost_usd": float(seconds) * run.gpus * price,
        }
        for phase, seconds in zip(run.phases, took, strict=True)
    ]
