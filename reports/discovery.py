"""Tables of what there is: names, fields of files, metrics of runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table

from simulator.analysis.every_metric import METRICS
from simulator.analysis.metric import Metric
from simulator.scenario.describe import Field


def name_table(title: str, names: Mapping[str, str]) -> Table:
    """A list of names with a line on each."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, description in names.items():
        table.add_row(name, description)
    return table


def field_tables(fields: Sequence[Field]) -> list[Table]:
    """Fields with what they may hold and what they mean: a table for each block that holds some."""
    blocks: dict[str, list[Field]] = {}
    for field in fields:
        blocks.setdefault(field.path.rpartition(".")[0], []).append(field)
    return [_field_table(block, inside) for block, inside in blocks.items()]


def _field_table(block: str, fields: Sequence[Field]) -> Table:
    table = Table(title=block or "a scenario file", title_justify="left")
    table.add_column("field", no_wrap=True)
    for column in ("value", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for field in fields:
        value = f"{field.kind}, such as {field.example}" if field.example else field.kind
        table.add_row(field.path.rpartition(".")[2], value, field.default, field.meaning)
    return table


def metrics_by_name(jobs: Iterable[str] = METRICS) -> dict[str, tuple[Metric, list[str]]]:
    """{name: (metric, jobs that have it)} of some jobs."""
    found: dict[str, tuple[Metric, list[str]]] = {}
    for job in jobs:
        for name, metric in METRICS[job].items():
            found.setdefault(name, (metric, []))[1].append(job)
    return found


def metrics_table(metrics: Mapping[str, tuple[Metric, Sequence[str]]]) -> Table:
    """Metrics with their units, which way is better, what they mean and which jobs have them."""
    table = Table(title="metrics", title_justify="left")
    several = len({tuple(jobs) for _, jobs in metrics.values()}) > 1
    table.add_column("metric", overflow="fold", min_width=20)
    table.add_column("unit", overflow="fold")
    table.add_column("better")
    table.add_column("meaning", overflow="fold")
    if several:
        table.add_column("jobs", overflow="fold")
    for name, (metric, jobs) in metrics.items():
        of = "all" if len(jobs) == len(METRICS) else ", ".join(jobs)
        cells = (name, metric.unit, metric.better or "", metric.meaning)
        table.add_row(*cells, *([of] if several else []))
    return table
