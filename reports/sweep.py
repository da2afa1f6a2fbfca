"""Tables, figures and files of a sweep."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.palette import GRID, INK, MUTED, WORK_COLOURS
from reports.run_directory import write_run
from reports.tables import format_metric, list_inputs, write_csv
from reports.terminal import COMPARED
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
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

ROWS_FILE = "rows.jsonl"
"""Rows of a finished sweep, from which a wider one takes over what it shares."""

SHOWN = 5
"""Metrics of a sweep that are shown where fewer are asked for."""

_TIMES = frozenset({"wall_clock_s"})
"""Metrics that say how long the simulator took; never what a sweep is about."""

_COLOURS = (*WORK_COLOURS.values(), INK)
_HEADER = 14
"""Characters of a line in the head of the terminal's table."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """A finished sweep and what was asked of it."""

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

    @property
    def rows(self) -> list[Point]:
        """The same with the limits applied."""
        return apply_limits(self.ran, self.limits)

    @property
    def order(self) -> list[int]:
        return rank(self.rows, self.objectives)

    @property
    def note(self) -> str:
        """That the rows rest on kernels of different kind; empty where they do not."""
        return difference_in_kind(row.metrics for row in self.ran)

    @property
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
        table.add_column("why not")
    if sweep.note:
        notes.append(f"note: {sweep.note}")
    if notes:
        table.caption = Text("\n".join(notes))
    best = sweep.front
    for position in sweep.order:
        row = rows[position]
        cells = [str(row.settings[path]) for path in sweep.paths]
        cells += [cell(path, row.metrics.get(path)) for path in sweep.metrics]
        if trade:
            cells.append("*" if position in best else "")
        if row.reason:
            cells.append(f"({reasons.index(row.reason) + 1})")
        table.add_row(*cells, style="dim" if row.reason else None)
    return table


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
    frame = sweep_frame(sweep)

    def write_report(draft: Path) -> None:
        write_csv(frame, draft / "sweep.csv")
        for row in sweep.ran:
            if row.digest:
                append_row(draft / ROWS_FILE, row)
        _write_figures(sweep, draft / "figures")
        (draft / "report.html").write_text(sweep_page(sweep), encoding="utf-8")

    write_run(
        directory,
        scenario=write_resolved(sweep.scenario),
        metrics=sweep_json(sweep),
        tables={"points": frame},
        write_report=write_report,
    )


# -- charts ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One metric along the first axis, all other settings fixed."""

    name: str
    x: tuple[Any, ...]
    y: tuple[float | None, ...]
    outside: tuple[bool, ...]
    """Whether the point breaks a limit."""


def lines(sweep: Sweep, metric: str) -> list[Line]:
    """A metric along the first axis; one line for every combination of the other axes."""
    first, rest = sweep.axes[0].paths[0], [p for axis in sweep.axes[1:] for p in axis.paths]
    grouped: dict[str, list[Point]] = {}
    for row in sweep.rows:
        name = ", ".join(f"{path.rpartition('.')[2]} {row.settings[path]}" for path in rest)
        grouped.setdefault(name, []).append(row)
    return [
        Line(
            name or metric,
            tuple(_place(row.settings[first]) for row in rows),
            tuple(_value(row, metric) for row in rows),
            tuple(row.reason is not None for row in rows),
        )
        for name, rows in grouped.items()
    ]


def trade_off(sweep: Sweep) -> tuple[str, str] | None:
    """The first two objectives, where there are two: what a scatter plot shows."""
    names = [objective.metric for objective in sweep.objectives]
    return (names[0], names[1]) if len(names) > 1 else None


def sweep_charts(sweep: Sweep) -> dict[str, Any]:
    """Interactive charts for plotly: the trade-off of two objectives, then each shown metric."""
    result: dict[str, Any] = {}
    between = trade_off(sweep)
    if between is not None:
        result[f"{between[0]} against {between[1]}"] = _scatter(sweep, *between)
    numeric = all(_is_number(x) for line in lines(sweep, "") for x in line.x)
    for metric in sweep.metrics:
        drawn = lines(sweep, metric)
        if not any(_is_number(y) for line in drawn for y in line.y):
            continue
        result[metric] = {
            "data": [
                {
                    "type": "scatter" if numeric else "bar",
                    "mode": "lines+markers",
                    "name": line.name,
                    "x": list(line.x),
                    "y": list(line.y),
                    "marker": {
                        "color": _COLOURS[number % len(_COLOURS)],
                        "opacity": [0.35 if outside else 1.0 for outside in line.outside],
                    },
                    "hovertemplate": "%{x}: %{y}<extra>" + line.name + "</extra>",
                }
                for number, line in enumerate(drawn)
            ],
            "layout": _layout(sweep.axes[0].paths[0], metric, legend=len(drawn) > 1)
            | ({} if numeric else {"barmode": "group"}),
        }
    return result


def _scatter(sweep: Sweep, x: str, y: str) -> dict[str, Any]:
    best = sweep.front
    groups: dict[str, list[int]] = {"front": [], "inside the limits": [], "outside": []}
    for position, row in enumerate(sweep.rows):
        if _value(row, x) is None or _value(row, y) is None:
            continue
        kind = "outside" if row.reason else "front" if position in best else "inside the limits"
        groups[kind].append(position)
    groups["front"].sort(key=lambda position: _value(sweep.rows[position], x) or 0.0)
    colours = {"front": "#b5473c", "inside the limits": "#3f72af", "outside": "#c9c9c4"}
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines+markers" if name == "front" else "markers",
                "name": name,
                "x": [_value(sweep.rows[position], x) for position in positions],
                "y": [_value(sweep.rows[position], y) for position in positions],
                "text": [_settings_text(sweep.rows[position]) for position in positions],
                "marker": {"color": colours[name], "size": 8},
                "hovertemplate": "%{text}<br>%{x}, %{y}<extra></extra>",
            }
            for name, positions in groups.items()
            if positions
        ],
        "layout": _layout(x, y, legend=True),
    }


def _layout(x: str, y: str, *, legend: bool) -> dict[str, Any]:
    return {
        "height": 380,
        "margin": {"l": 80, "r": 16, "t": 30, "b": 56},
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "plot_bgcolor": "white",
        "xaxis": {"title": {"text": x}, "gridcolor": GRID},
        "yaxis": {"title": {"text": y}, "gridcolor": GRID, "rangemode": "tozero"},
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        "showlegend": legend,
    }


def _write_figures(sweep: Sweep, directory: Path) -> None:
    """Write each chart as PNG and SVG into ``directory``."""
    import matplotlib
    from matplotlib.figure import Figure

    directory.mkdir()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dsv3sim"}):
        for name, chart in sweep_charts(sweep).items():
            figure = Figure(figsize=(7.5, 4.2), layout="constrained")
            _draw(figure, figure.subplots(), chart)
            stem = name.replace(" ", "_").replace(".", "_")
            figure.savefig(directory / f"{stem}.png", dpi=150)
            figure.savefig(directory / f"{stem}.svg", metadata={"Date": None})


def _draw(figure: Figure, axes: Axes, chart: Mapping[str, Any]) -> None:
    """The same chart that the page shows, drawn by matplotlib."""
    traces, layout = chart["data"], chart["layout"]
    for number, trace in enumerate(traces):
        colour = trace["marker"]["color"]
        y = [float("nan") if value is None else value for value in trace["y"]]
        if trace["type"] == "bar":
            width = 0.8 / len(traces)
            at = [place + (number - (len(traces) - 1) / 2) * width for place in range(len(y))]
            axes.bar(at, y, width=width, color=colour, label=trace["name"])
            axes.set_xticks(range(len(y)), trace["x"], fontsize=8)
        else:
            joined = "-" if "lines" in trace["mode"] else ""
            axes.plot(
                trace["x"], y, marker="o", markersize=4, linestyle=joined, color=colour,
                label=trace["name"],
            )  # fmt: skip
    axes.set_xlabel(layout["xaxis"]["title"]["text"])
    axes.set_ylabel(layout["yaxis"]["title"]["text"])
    axes.set_ylim(bottom=0)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    if layout["showlegend"]:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)


def sweep_page(sweep: Sweep) -> str:
    """The self-contained page."""
    from reports.page import render_page

    best = sweep.front
    rows = [
        {
            "settings": [str(sweep.rows[position].settings[path]) for path in sweep.paths],
            "metrics": [
                cell(path, sweep.rows[position].metrics.get(path)) for path in sweep.metrics
            ],
            "front": position in best,
            "reason": sweep.rows[position].reason or "",
        }
        for position in sweep.order
    ]
    return render_page(
        "sweep.html.j2",
        charts=sweep_charts(sweep),
        sweep=sweep,
        asked=sweep_json(sweep),
        rows=rows,
        inputs=list(list_inputs(sweep.scenario.resolved)),
        resolved=write_resolved(sweep.scenario),
    )


def _value(row: Point, metric: str) -> float | None:
    value = row.metrics.get(metric)
    return float(value) if isinstance(value, int | float) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _place(value: Any) -> float | int | str:
    return value if _is_number(value) else str(value)


def _settings_text(row: Point) -> str:
    return ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in row.settings.items())
