"""Put published figures beside what a run gives for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from simulator.scenario.files import PublishedFigure


@dataclass(frozen=True, slots=True)
class PublishedRow:
    name: str
    metric: str
    """Path in the metrics."""
    published: float
    simulated: float | None
    """None where this run has no such figure."""
    error: float | None
    """simulated / published - 1."""
    source: str
    kind: str
    """What the simulated figure is: "input", "chosen", "bound" or "predicted"."""


def beside_published(
    figures: Sequence[PublishedFigure], metrics: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Published figures of a scenario beside those of its run, as JSON rows."""
    return [asdict(compare_published(figure, metrics)) for figure in figures]


def compare_published(figure: PublishedFigure, metrics: Mapping[str, Any]) -> PublishedRow:
    """A published figure beside the simulated one that its path leads to."""
    simulated = metric_at(metrics, figure.metric)
    return PublishedRow(
        name=figure.name,
        metric=figure.metric,
        published=figure.si_value,
        simulated=simulated,
        error=None if simulated is None else simulated / figure.si_value - 1,
        source=figure.source,
        kind=figure.kind,
    )


def metric_at(metrics: Mapping[str, Any], path: str) -> float | None:
    """The number at a dotted path such as "ranks.0.forward_s"; None where there is none."""
    found: Any = metrics
    for part in path.split("."):
        if isinstance(found, Mapping):
            found = found.get(part)
        elif isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    return float(found) if isinstance(found, int | float) else None
