"""Single figures of a run, as a table, as CSV or as JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hardware_profiles.suggestions import closest
from simulator.analysis.every_metric import METRICS, metric_of, unknown_metric
from simulator.analysis.published import beside

if TYPE_CHECKING:
    from rich.table import Table


Figures = Mapping[str, float | str | bool]
"""{path in the metrics of a run: value}"""


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


def chosen(metrics: Mapping[str, Any], names: Sequence[str]) -> Figures:
    """The figures at the paths of some names and below them, in their order; all without names. A
    name that leaves out places of a list is of all of them: "ranks.forward_s".

    Raises:
        ValueError: a name that this run does not have.
    """
    every = {path: value for path, value in _leaves(metrics) if not path.startswith(_BESIDE)}
    found: list[str] = []
    for name in names or every:
        of_name = [path for path in every if path == name or path.startswith(f"{name}.")]
        of_name = of_name or [path for path in every if _without_places(path) == name]
        if not of_name:
            raise ValueError(unknown_metric(name, every))
        found += of_name
    return {path: every[path] for path in found}


def _without_places(path: str) -> str:
    return ".".join(part for part in path.split(".") if not part.isdigit())


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


def chosen_json(metrics: Mapping[str, Any], figures: Figures) -> dict[str, Any]:
    """{path: value and what stands beside it}"""
    return {
        path: {
            "value": value,
            "unit": _unit(path),
            "ideal": beside(metrics, "ideal", path),
            "interval_80": beside(metrics, "interval_80", path),
        }
        for path, value in figures.items()
    }


def chosen_csv(metrics: Mapping[str, Any], figures: Figures) -> str:
    """A line per figure: metric, value, unit, ideal, low_80, high_80, values in SI units."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("metric", "value", "unit", "ideal", "low_80", "high_80"))
    for path, value in figures.items():
        low, high = beside(metrics, "interval_80", path) or ("", "")
        lines.writerow((path, value, _unit(path), beside(metrics, "ideal", path), low, high))
    return text.getvalue()


def _unit(path: str) -> str:
    metric = metric_of(path)
    return "" if metric is None else metric.unit


def chosen_table(title: str, metrics: Mapping[str, Any], figures: Figures) -> Table:
    """A row per figure: expected value, with equal ranks, and its interval."""
    from rich.table import Table

    from reports.tables import beside_cells, format_metric, told_columns

    table = Table(title=title, title_justify="left")
    rows = []
    for path, value in figures.items():
        shown = value if isinstance(value, str) else format_metric(path, value)
        rows.append((path, shown, *beside_cells(metrics, path)))
    told = told_columns(("metric", "expected", "ideal", "80% interval"), rows)
    for place, head in told.items():
        table.add_column(head, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*(row[place] for place in told))
    return table
