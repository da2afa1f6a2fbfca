"""Attribute the gap between a fleet's figures and the published ones, one counterfactual per row.

The counterfactuals of a scenario are applied one after the other, each on top of those before it,
so that their effects and the remainder add up to the difference. An effect depends on that order.
What the rows do not explain is shown as the remainder; no input is chosen to make it small.

A day whose load rises and falls is run level by level, each as long as an even load would be: hours
are long beside the stay of a request. Its figures are those of the day: per node, over the node
hours; of a user's tokens, over all tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from simulator.analysis.parallel import run_in_order
from simulator.analysis.published import metric_at
from simulator.analysis.run import metrics_of
from simulator.execution.progress import HowFar, Watch, unwatched
from simulator.scenario.analysis_inputs import LoadOfDay
from simulator.scenario.files import Scenario, load_scenario
from simulator.scenario.fleet import FleetJob
from simulator.scenario.published import PublishedFigure

Measure = Callable[[str, Sequence[str]], Mapping[str, Any]]
"""(scenario, overrides) -> metrics; a function of a module, so that other processes import it."""

_OF_A_DAY = ("output_tokens_per_second_per_node", "tokens_per_second_per_user")
"""Figures that can be put together from those of the levels of a day."""


@dataclass(frozen=True, slots=True)
class AttributionRow:
    """One step from the scenario to the published figures."""

    name: str
    values: tuple[float | None, ...]
    """Of each figure, after this step; of the remainder, the published values."""
    effects: tuple[float | None, ...]
    """Difference from the row before; of the first row None."""
    source: str


def attribute_fleet(
    name_or_path: str,
    overrides: Sequence[str] = (),
    *,
    measure: Measure = metrics_of,
    processes: int = 1,
    watch: Watch = unwatched,
) -> tuple[tuple[PublishedFigure, ...], list[AttributionRow]]:
    """Run a fleet and its counterfactuals.

    Args:
        processes: runs at the same time; the rows do not depend on it.
        watch: told after every run how many have ended.

    Returns:
        The published figures that are not inputs, and the rows: the scenario as it is, its
        counterfactuals in their order, the remainder.

    Raises:
        ValueError: a scenario without a fleet, counterfactuals or such figures.
    """
    scenario = load_scenario(name_or_path, overrides)
    job, inputs = scenario.job_as(FleetJob), scenario.file.analysis
    if not inputs.counterfactuals:
        raise ValueError(f"{scenario.where}: no analysis.counterfactuals; nothing to attribute to")
    figures = tuple(
        figure for figure in scenario.file.published if figure.metric in inputs.attributed_metrics
    )
    if scenario.figures_left_out or not job.requests.as_published:
        raise ValueError(
            f"{scenario.where}: its published figures are of other inputs; allowed: the scenario's "
            "own inputs and requests; analysis.attribution_changes make every run shorter"
        )
    if not figures:
        raise ValueError(f"{scenario.where}: no published figures of analysis.attributed_metrics")

    changes = [*overrides, *inputs.attribution_changes]
    day: LoadOfDay | None = None
    named = [("the scenario as it is", "", [(tuple(changes), 1)])]
    for step in inputs.counterfactuals:
        changes += step.changes
        day = step.load_of_day or day
        runs = [(tuple(changes), 1)]
        if day is not None:
            runs = _levels(load_scenario(name_or_path, changes), changes, day)
        named.append((step.name, step.source, runs))
    calls = [(name_or_path, changed) for _, _, runs in named for changed, _ in runs]
    measured = _counted(run_in_order(measure, calls, jobs=processes), len(calls), watch)
    rows: list[AttributionRow] = []
    for name, source, runs in named:
        levels = [(replicas, next(measured)) for _, replicas in runs]
        now = tuple(_value(figure.metric, levels) for figure in figures)
        rows.append(AttributionRow(name, now, _effects(rows, now), source))
    published = tuple(figure.si_value for figure in figures)
    rows.append(
        AttributionRow(
            "remainder, to the published value",
            published,
            _effects(rows, published),
            "what the rows above do not explain",
        )
    )
    return figures, rows


def _counted(
    runs: Iterator[Mapping[str, Any]], of: int, watch: Watch
) -> Iterator[Mapping[str, Any]]:
    for number, run in enumerate(runs, 1):
        watch(HowFar(number / of, number, "runs"))
        yield run


def attribution_json(
    figures: Sequence[PublishedFigure], rows: Sequence[AttributionRow]
) -> dict[str, Any]:
    """The same by JSON names; values and effects of a row are in the order of the figures."""
    return {
        "figures": [
            {"name": figure.name, "metric": figure.metric, "published": figure.si_value}
            for figure in figures
        ],
        "rows": [asdict(row) for row in rows],
    }


def day_levels(day: LoadOfDay) -> list[tuple[float, int]]:
    """Load over the mean, and replicas in service, of each level of a day, by rising load.

    The replicas are as many as the level's load takes at the mean load of a replica, in whole
    numbers: rounded up above that fraction which leaves their mean nearest to the day's.
    """
    amplitude = day.peak_nodes / day.mean_nodes - 1
    # Mean of a sinusoid over the part of the time in which it lies between two of its quantiles,
    # which are -cos(pi p) for the probabilities p.
    edges = [math.pi * level / day.levels for level in range(day.levels + 1)]
    loads = [1 - amplitude * (math.sin(b) - math.sin(a)) / (b - a) for a, b in pairwise(edges)]
    wanted = [load * day.mean_replicas for load in loads]
    rounded = [
        [max(math.ceil(whole - fraction), 1) for whole in wanted]
        for fraction in sorted({whole % 1 for whole in wanted} | {0.0})
    ]
    target = day.mean_replicas * day.levels
    replicas = min(rounded, key=lambda counts: abs(sum(counts) - target))
    return list(zip(loads, replicas, strict=True))


def _levels(
    scenario: Scenario, changes: Sequence[str], day: LoadOfDay
) -> list[tuple[tuple[str, ...], int]]:
    """One run a level, at the load of one of the replicas in service: its changes, and these
    replicas."""
    job = scenario.job_as(FleetJob)
    synthetic = job.requests.synthetic
    if synthetic is None or synthetic.rate is None:
        raise ValueError(f"{scenario.where}: load_of_day needs synthetic requests with a rate")
    unknown = sorted(set(scenario.file.analysis.attributed_metrics) - set(_OF_A_DAY))
    if unknown:
        raise ValueError(
            f"{scenario.where}: analysis.attributed_metrics: {unknown[0]} is not known of a day; "
            f"allowed with load_of_day: {', '.join(_OF_A_DAY)}"
        )
    runs = []
    for load, replicas in day_levels(day):
        rate = synthetic.rate * load * day.mean_replicas / replicas
        own = f"requests.synthetic.rate={rate!r} Hz"
        runs.append(((*changes, own), replicas))
    return runs


def _value(metric: str, levels: Sequence[tuple[int, Mapping[str, Any]]]) -> float | None:
    """A figure of equally long levels with so many replicas each."""
    if len(levels) == 1:
        return metric_at(levels[0][1], metric)
    values = [metric_at(metrics, metric) for _, metrics in levels]
    if any(value is None or value <= 0 for value in values):
        return None
    known = [value or 0.0 for value in values]
    counts = [replicas for replicas, _ in levels]
    if metric == "tokens_per_second_per_user":
        # One over the time per token, a mean over tokens.
        rates = [float(metrics["output_tokens_per_second"]) for _, metrics in levels]
        tokens = [count * rate for count, rate in zip(counts, rates, strict=True)]
        seconds = [t / value for t, value in zip(tokens, known, strict=True)]
        return sum(tokens) / sum(seconds)
    each = [float(metrics["nodes"] / metrics["replicas"]) for _, metrics in levels]
    nodes = [count * own for count, own in zip(counts, each, strict=True)]
    return sum(n * value for n, value in zip(nodes, known, strict=True)) / sum(nodes)


def _effects(
    rows: Sequence[AttributionRow], now: Sequence[float | None]
) -> tuple[float | None, ...]:
    if not rows:
        return (None,) * len(now)
    return tuple(
        None if old is None or new is None else new - old
        for old, new in zip(rows[-1].values, now, strict=True)
    )
