"""Put published figures beside what a run gives for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from simulator.scenario.published import PublishedFigure

Scalar = float | int | str | bool | None

NO_EVIDENCE = frozenset(
    {"input", "chosen", "calibrated", "reproduced", "bound", "setup_unpublished"}
)
"""Kinds of figures whose error says nothing of the model: it was given them, directly or by a fit,
they are bounds of what was published, or what was measured is not known well enough."""


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One published figure and what a run gives for it."""

    name: str
    metric: str
    """Path in the metrics."""
    published: float
    simulated: float | None
    """None where this run has no such figure."""
    error: float | None
    """simulated / published - 1."""
    source: str = ""
    kind: str = "predicted"
    """What the simulated figure is, as `PublishedFigure` has it; of a pair of chunks also
    "reproduced", where its kernels are those of the published one."""
    ideal: float | None = None
    """The same with equal ranks, where the run says so."""
    interval_80: Sequence[float] | None = None
    """Low and high end, where the run has them."""

    @property
    def is_evidence(self) -> bool:
        """Whether the model could have got it wrong."""
        return self.kind not in NO_EVIDENCE

    @property
    def inside(self) -> bool | None:
        """Whether the published value lies in the 80% interval; None without one."""
        if self.interval_80 is None:
            return None
        low, high = self.interval_80
        return low <= self.published <= high


def beside_published(
    figures: Sequence[PublishedFigure], metrics: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Published figures of a scenario beside those of its run, as JSON rows; one of a row that the
    run does not have stands beside nothing and is left out."""
    return [
        asdict(compare_published(figure, metrics))
        for figure in figures
        if not figure.of or _row_of(figure, metrics) is not None
    ]


def compare_published(figure: PublishedFigure, metrics: Mapping[str, Any]) -> PublishedRow:
    """A published figure beside the simulated one that its path leads to."""
    simulated, path = metric_at(metrics, figure.metric), figure.metric
    if figure.of:
        row = _row_of(figure, metrics) or {}
        simulated, path = metric_at(row, figure.metric.partition(".")[2]), ""
    return PublishedRow(
        name=figure.name,
        metric=figure.metric,
        published=figure.si_value,
        simulated=simulated,
        error=None if simulated is None else simulated / figure.si_value - 1,
        source=figure.source,
        kind=figure.kind,
        ideal=beside(metrics, "ideal", path),
        interval_80=beside(metrics, "interval_80", path),
    )


def beside(metrics: Mapping[str, Any], name: str, path: str) -> Any:
    """What stands in "ideal" or "interval_80" for the metric at a path; None where nothing does.
    A distribution's mean stands there under the name of the distribution."""
    known = metrics.get(name) or {}
    return known.get(path, known.get(path.removesuffix(".mean")))


def _row_of(figure: PublishedFigure, metrics: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The row that a figure is of, the first of them, or None."""
    rows: Sequence[Mapping[str, Any]] = metrics.get(figure.metric.partition(".")[0]) or ()
    has = ((row, all(row.get(name) == value for name, value in figure.of.items())) for row in rows)
    return next((row for row, all_of_it in has if all_of_it), None)


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


def plain_values(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    """Every plain value of nested metrics with its path, and both ends of intervals; other lists
    (tables) are left out."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from plain_values(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, str | int | float):
            yield f"{prefix}{name}", value
        elif prefix == "interval_80." and isinstance(value, list | tuple):
            yield from zip((f"{prefix}{name}.low", f"{prefix}{name}.high"), value, strict=True)
