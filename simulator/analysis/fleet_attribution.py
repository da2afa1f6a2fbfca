"""Why a fleet's figures differ from published ones: a scenario in, one row a counterfactual out.

The counterfactuals of a scenario are applied one after the other, each on top of those before it,
so that their effects and the remainder add up to the difference. An effect depends on that order.
What the rows do not explain is shown as the remainder; no input is chosen to make it small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.analysis.fleet_metrics import measure_fleet
from simulator.analysis.metrics import metric_at
from simulator.execution.fleet_simulation import prepare_fleet
from simulator.scenario import PublishedFigure, Scenario, load_scenario


@dataclass(frozen=True, slots=True)
class AttributionRow:
    """One step from the scenario to the published figures."""

    name: str
    values: tuple[float | None, ...]
    """Of each figure, after this step; of the remainder, the published values."""
    effects: tuple[float | None, ...]
    """Difference from the row before; of the first row None."""
    source: str


def attribute(
    name_or_path: str,
    overrides: Sequence[str] = (),
    *,
    measure: Callable[[Scenario], dict[str, Any]] | None = None,
) -> tuple[tuple[PublishedFigure, ...], list[AttributionRow]]:
    """Run a fleet and its counterfactuals.

    Returns:
        The published figures that are not inputs, and the rows: the scenario as it is, its
        counterfactuals in their order, the remainder.

    Raises:
        ValueError: a scenario without a fleet, counterfactuals or such figures.
    """
    measure = measure or (lambda scenario: measure_fleet(prepare_fleet(scenario)))
    scenario = load_scenario(name_or_path, overrides)
    job = scenario.file.fleet
    if job is None or not job.counterfactuals:
        raise ValueError(f"{scenario.where}: no fleet.counterfactuals; nothing to attribute to")
    figures = tuple(
        figure for figure in scenario.file.published if figure.metric in job.attributed_metrics
    )
    if not figures or not job.requests.as_published:
        raise ValueError(f"{scenario.where}: no published figures of fleet.attributed_metrics")

    def values(changed: Scenario) -> tuple[float | None, ...]:
        metrics = measure(changed)
        return tuple(metric_at(metrics, figure.metric) for figure in figures)

    rows = [AttributionRow("the scenario as it is", values(scenario), (None,) * len(figures), "")]
    changes = list(overrides)
    for step in job.counterfactuals:
        changes += step.changes
        now = values(load_scenario(name_or_path, changes))
        rows.append(AttributionRow(step.name, now, _effects(rows[-1].values, now), step.source))
    published = tuple(figure.si_value for figure in figures)
    rows.append(
        AttributionRow(
            "remainder, to the published value",
            published,
            _effects(rows[-1].values, published),
            "what the rows above do not explain",
        )
    )
    return figures, rows


def _effects(
    before: Sequence[float | None], after: Sequence[float | None]
) -> tuple[float | None, ...]:
    return tuple(
        None if old is None or new is None else new - old
        for old, new in zip(before, after, strict=True)
    )
