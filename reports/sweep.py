"""Tables, figures and files of a sweep."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.run_directory import write_run
from reports.tables import COMPARED, format_interval, format_metric, write_csv
from simulator.analysis.kernels_used import difference_in_kind
from simulator.analysis.sweep import (
    Limit,
    Objective,
    Point,
    append_row,
    apply_limits,
    front,
    rank,
)
from simulator.scenario.axes import Axis
from simulator.scenario.files import Scenario, write_resolved

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

ROWS_FILE = "rows.jsonl"
"""Rows of a finished sweep, from which a wider one takes over what it shares."""

SHOWN = 5
"""Metrics of a sweep that are shown where fewer are asked for."""

_TIMES = frozenset({"wall_clock_s"})
"""Metrics that say how long the simulator took; never what a sweep is about."""

_HEADER = 14
"""Characters of a line in the head of the terminal's table."""


@dataclass(frozen=True)
class Sweep:
    """A finished sweep and what was asked of it.

    What its rows say is worked out once: pages ask for it at every row.
    """

    scenario: Scenario
    axes: tuple[Axis, ...]
    ran: tuple[Point, ...]
    """What the points gave, in the order of the grid."""
    metrics: tuple[str, ...]
    """Paths that are shown."""
    limits: tuple[Limit, ...]
    objectives: tuple[Objective, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(path for axis in self.axes for path in axis.paths)

    @cached_property
    def rows(self) -> list[Point]:
        """The same with the limits applied."""
        return apply_limits(self.ran, self.limits)

    @cached_property
    def order(self) -> list[int]:
        return rank(self.rows, self.objectives)

    @cached_property
    def note(self) -> str:
        """A note that the rows rest on kernels of different kinds; empty where they do not."""
        return difference_in_kind(row.metrics for row in self.ran)

    @cached_property
    def front(self) -> frozenset[int]:
        return front(self.rows, self.objectives)


def telling_metrics(
    rows: Sequence[Point], asked: Sequence[str], *, room: int = SHOWN
) -> tuple[str, ...]:
    """The metrics to show: those asked for, then the first that differ between the rows.

    Args:
        room: metrics to show where fewer are asked for.
    """
    ran = [row.metrics for row in rows if row.metrics]
    present = dict.fromkeys(path for metrics in ran for path in metrics)
    ordered = [path for path in COMPARED if path in present]
    ordered += [path for path in present if path not in COMPARED and path not in _TIMES]
    numbers = [
        path
        for path in ordered
        if any(_is_number(metrics.get(path)) and metrics[path] for metrics in ran)
    ]
    moving = [path for path in numbers if len({metrics.get(path) for metrics in ran}) > 1]
    first = tuple(dict.fromkeys(asked))
    others = [path for path in moving or numbers if path not in first]
    return first + tuple(others[: max(0, room - len(first))])


def sweep_json(sweep: Sweep) -> dict[str, Any]:
    """The JSON of a sweep: rows in the order of the grid, each with its rank."""
    order = sweep.order
    best = sweep.front
    return {
        "scenario": sweep.scenario.name,
        "vary": {
            "+".join(axis.paths): [list(value) for value in axis.values] for axis in sweep.axes
        },
        "note": sweep.note or None,
        "where": [limit.text for limit in sweep.limits],
        "objectives": [
            f"{'min' if objective.sign == 1 else 'max'}:{objective.metric}"
            for objective in sweep.objectives
        ],
        "rows": [
            row.to_json() | {"rank": order.index(position) + 1, "front": position in best}
            for position, row in enumerate(sweep.rows)
        ],
    }


def sweep_table(sweep: Sweep) -> Table:
    """One row per point, best first where an objective was given; reasons as notes below."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=sweep.scenario.name, title_justify="left", caption_justify="left")
    for path in sweep.paths:
        table.add_column(_broken(path.rpartition(".")[2]), no_wrap=True)
    for path in sweep.metrics:
        table.add_column(_broken(path), justify="right", no_wrap=True)
    trade = len(sweep.objectives) > 1
    if trade:
        table.add_column("front")
    rows = sweep.rows
    reasons = list(dict.fromkeys(rows[i].reason for i in sweep.order if rows[i].reason))
    notes = [f"({number}) {reason}" for number, reason in enumerate(reasons, 1)]
    if reasons:
        table.add_column("reason")
    if sweep.note:
        notes.append(f"note: {sweep.note}")
    if notes:
        table.caption = Text("\n".join(notes))
    best = sweep.front
    for position in sweep.order:
        row = rows[position]
        cells = [str(row.settings[path]) for path in sweep.paths]
        cells += ["\n".join(_with_beside(path, row)) for path in sweep.metrics]
        if trade:
            cells.append("*" if position in best else "")
        if row.reason:
            cells.append(f"({reasons.index(row.reason) + 1})")
        table.add_row(*cells, style="dim" if row.reason else None)
    return table


def _with_beside(path: str, row: Point) -> Iterator[str]:
    """A metric of a row, and below it what stands beside it where the row has its interval: its
    value with ideal ranks, and the ends."""
    yield cell(path, row.metrics.get(path))
    for name in (path, path.removesuffix(".mean")):
        ends = [row.metrics.get(f"interval_80.{name}.{end}") for end in ("low", "high")]
        known = [float(end) for end in ends if isinstance(end, int | float)]
        if len(known) == len(ends):
            ideal = row.metrics.get(f"ideal.{name}")
            if ideal is not None:
                yield f"ideal {cell(path, ideal)}"
            yield format_interval(path, known)
            return


def _broken(name: str) -> str:
    """A name of the metrics over several short lines, broken after underscores and dots."""
    lines = [""]
    for part in re.findall(r"[^_.]*[_.]?", name):
        if lines[-1] and len(lines[-1]) + len(part) > _HEADER:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def cell(path: str, value: Any) -> str:
    """A metric with its unit; "-" for one that the row does not have."""
    if value is None:
        return "-"
    return format_metric(path, value) if _is_number(value) else str(value)


def sweep_frame(sweep: Sweep) -> pd.DataFrame:
    """One row per point: settings, every metric, reason, rank and front."""
    import pandas as pd

    described = sweep_json(sweep)["rows"]
    return pd.DataFrame(
        [
            {path: str(value) for path, value in row["settings"].items()}
            | row["metrics"]
            | {key: row[key] for key in ("reason", "rank", "front")}
            for row in described
        ]
    )


def write_sweep(sweep: Sweep, directory: Path) -> None:
    """Write the run directory of a sweep: tables, rows, figures, page, metrics."""
    from reports.page import write_page
    from reports.sweep_page import sweep_page

    frame = sweep_frame(sweep)

    def write_report(draft: Path) -> None:
        write_csv(frame, draft / "sweep.csv")
        for row in sweep.ran:
            if row.digest:
                append_row(draft / ROWS_FILE, row)
        write_page(sweep_page(sweep), draft)

    write_run(
        directory,
        scenario=write_resolved(sweep.scenario),
        metrics=sweep_json(sweep),
        tables={"points": frame},
        write_report=write_report,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
