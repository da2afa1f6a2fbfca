"""Single figures of a run, as a table, as CSV or as JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hardware_profiles.suggestions import closest
from simulator.analysis.every_metric import METRICS, metric_of, unknown_metric
from simulator.analysis.published import beside

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class ChosenFigure:
    """One value of a run with what stands beside it."""

    path: str
    value: float | str | bool
    unit: str
    ideal: float | None
    """With ranks that are alike."""
    interval_80: tuple[float, float] | None


def check_asked(names: Sequence[str], job: str) -> None:
    """Raise ValueError for the first name that no metric of a job has, before anything runs."""
    for name in names:
        if metric_of(name, job) is None:
            raise ValueError(unknown_metric(name, METRICS[job]))


def check_spelt(names: Sequence[str], job: str) -> None:
    """Raise ValueError for the first name that is no metric of a job and is spelt nearly as one;
    what else a row of a sweep has, its first row says."""
    for name in names:
        if "." not in name and metric_of(name, job) is None and closest(name, METRICS[job]):
            raise ValueError(unknown_metric(name, METRICS[job]))


def chosen(metrics: Mapping[str, Any], names: Sequence[str]) -> list[ChosenFigure]:
    """The figures at the paths of some names and below them, in their order; all without names.

    Raises:
        ValueError: a name that this run does not have.
    """
    every = {path: value for path, value in _leaves(metrics) if not path.startswith(_BESIDE)}
    found: list[str] = []
    for name in names or every:
        of_name = [path for path in every if path == name or path.startswith(f"{name}.")]
        if not of_name:
            raise ValueError(unknown_metric(name, every))
        found += of_name
    return [_figure(metrics, path, every[path]) for path in dict.fromkeys(found)]


_BESIDE = ("ideal.", "interval_80.")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, float | str | bool]]:
    """Every plain value with its path; places of lists are numbers."""
    inner: Any = ()
    if isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    elif value is not None:
        yield path, value
    for name, one in inner:
        yield from _leaves(one, f"{path}.{name}" if path else str(name))


def _figure(metrics: Mapping[str, Any], path: str, value: float | str | bool) -> ChosenFigure:
    metric = metric_of(path)
    ends = beside(metrics, "interval_80", path)
    return ChosenFigure(
        path,
        value,
        "" if metric is None else metric.unit,
        beside(metrics, "ideal", path),
        None if ends is None else (ends[0], ends[1]),
    )


def chosen_json(figures: Sequence[ChosenFigure]) -> dict[str, Any]:
    """{path: value and what stands beside it}"""
    return {
        figure.path: {
            "value": figure.value,
            "unit": figure.unit,
            "ideal": figure.ideal,
            "interval_80": figure.interval_80,
        }
        for figure in figures
    }


def chosen_csv(figures: Sequence[ChosenFigure]) -> str:
    """A line per figure: metric, value, unit, ideal, low_80, high_80, values in SI units."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("metric", "value", "unit", "ideal", "low_80", "high_80"))
    for one in figures:
        low, high = one.interval_80 or ("", "")
        ideal = "" if one.ideal is None else one.ideal
        lines.writerow((one.path, one.value, one.unit, ideal, low, high))
    return text.getvalue()


def chosen_table(title: str, metrics: Mapping[str, Any], figures: Sequence[ChosenFigure]) -> Table:
    """A row per figure: expected value, with equal ranks, and its interval."""
    from rich.table import Table

    from reports.tables import beside_cells, format_metric, told_columns

    table = Table(title=title, title_justify="left")
    rows = []
    for one in figures:
        shown = one.value if isinstance(one.value, str) else format_metric(one.path, one.value)
        rows.append((one.path, shown, *beside_cells(metrics, one.path)))
    told = told_columns(("metric", "expected", "ideal", "80% interval"), rows)
    for place, head in told.items():
        table.add_column(head, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*(row[place] for place in told))
    return table
