"""The page of a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hardware_profiles.units import Dimension
from reports.charts import Chart, ChartAxis, Columns, Curve, Lines, share_axis, shown_in
from reports.page import Answer, Cell, Figure, Page, Section, Table, scenario_page
from reports.palette import SERIES
from reports.sweep import Sweep, cell, sweep_json
from reports.tables import changed_text
from simulator.analysis.every_metric import metric_of
from simulator.analysis.metric import label_of
from simulator.analysis.sweep import Point

_DIMENSIONS: dict[str, Dimension] = {"s": "time", "bytes": "data", "bytes/s": "bandwidth"}
FILES = (
    ("sweep.csv", "every metric of every point, and points.parquet the same"),
    ("rows.jsonl", "the points, from which a wider sweep goes on"),
)


def sweep_page(sweep: Sweep) -> Page:
    """All that the page of a sweep shows."""
    charts = tuple(sweep_charts(sweep))
    asked = sweep_json(sweep)
    notes = [f"Limits: {'; '.join(asked['where'])}; points outside are pale."] * bool(
        asked["where"]
    )
    if asked["objectives"]:
        notes.append(
            f"Best first by {', then '.join(_asked(sweep))}; bold: no other point is at least as "
            "good in all of them."
        )
    if sweep.note:
        notes.append(f"Note: {sweep.note}.")
    reasons = any(row.reason for row in sweep.rows)
    table = Table(
        (
            *(path.rpartition(".")[2].replace("_", " ") for path in sweep.paths),
            *(f"|{label_of(path)}" for path in sweep.metrics),
            *(["reason"] * reasons),
        ),
        tuple(
            (
                *(str(sweep.rows[place].settings[path]) for path in sweep.paths),
                *(_cell(path, sweep.rows[place]) for path in sweep.metrics),
                *([sweep.rows[place].reason or ""] * reasons),
            )
            for place in sweep.order
        ),
        f"Settings: {', '.join(sweep.paths)}. sweep.csv holds every metric of every point.",
        sortable=True,
        pale=frozenset(n for n, place in enumerate(sweep.order) if sweep.rows[place].reason),
        marked=frozenset(n for n, place in enumerate(sweep.order) if place in sweep.front),
    )
    return scenario_page(
        sweep.scenario,
        kind="Sweep",
        answer=_answer(sweep),
        sections=[
            Section("Points", (table,), " ".join(notes)),
            *([Section("Charts", charts)] if charts else []),
        ],
        files=FILES,
    )


def _asked(sweep: Sweep) -> list[str]:
    """What is better, in words: "most output tokens per second per GPU"."""
    return [
        f"{'least' if objective.sign == 1 else 'most'} {label_of(objective.metric)}"
        for objective in sweep.objectives
    ]


def _answer(sweep: Sweep) -> Answer:
    """The best point, or the range of the first metric where nothing says what is best."""
    varied = ", ".join(
        f"{path} ({len({str(row.settings[path]) for row in sweep.rows})} values)"
        for path in sweep.paths
    )
    changed = f"{varied}."
    if sweep.scenario.changes:
        changed += f" {changed_text(sweep.scenario)}"
    ran = [row for row in sweep.rows if row.reason is None]
    left = [row for row in sweep.rows if row.reason is not None]
    reasons: dict[str, int] = {}
    for row in left:
        reasons[row.reason or ""] = reasons.get(row.reason or "", 0) + 1
    most = sorted(reasons, key=lambda reason: -reasons[reason])[:2]
    limits = "Every point runs and keeps the limits."
    if left:
        told = "; ".join(f"{reasons[reason]} of them: {reason}" for reason in most)
        limits = f"{len(left)} of {len(sweep.rows)} points are outside. {told}."
    figures = [Figure("Points", f"{len(sweep.rows):,}", note=f"{len(ran):,} inside the limits")]
    if not ran or not sweep.metrics:
        return Answer(Figure("Points inside the limits", f"{len(ran):,}"), tuple(figures), limits,
                      changed)  # fmt: skip
    if sweep.objectives and sweep.rows[sweep.order[0]].reason is None:
        best, path = sweep.rows[sweep.order[0]], sweep.objectives[0].metric
        figures = [
            Figure(_upper(label_of(name)), cell(name, best.metrics.get(name)))
            for name in sweep.metrics
            if name != path
        ] + figures
        headline = Figure(
            f"Best {label_of(path)}", cell(path, best.metrics.get(path)),
            note="at " + settings_text(best),
        )  # fmt: skip
        return Answer(headline, tuple(figures), limits, changed)
    path = sweep.metrics[0]
    metric = metric_of(path)
    known = [row for row in ran if _value(row, path) is not None]
    for end, name in ((min, "Lowest"), (max, "Highest")):
        if known:
            row = end(known, key=lambda one: _value(one, path) or 0.0)
            note = f"at {settings_text(row)}"
            figures.insert(0, Figure(f"{name} {label_of(path)}", cell(path, row.metrics[path]),
                                     note=note))  # fmt: skip
    first = 0 if metric is not None and metric.better == "more" else 1
    headline = figures.pop(first) if known else Figure(_upper(label_of(path)), "-")
    return Answer(headline, tuple(figures), limits, changed)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _cell(path: str, row: Point) -> Cell:
    return Cell(cell(path, row.metrics.get(path)), _value(row, path))


# -- charts ----------------------------------------------------------------------------------------


def lines_along(sweep: Sweep) -> dict[str, list[Point]]:
    """Points along the first axis; one line for every combination of the other axes, by name."""
    rest = [path for axis in sweep.axes[1:] for path in axis.paths]
    grouped: dict[str, list[Point]] = {}
    for row in sweep.rows:
        name = ", ".join(f"{path.rpartition('.')[2]} {row.settings[path]}" for path in rest)
        grouped.setdefault(name, []).append(row)
    return grouped


def trade_off(sweep: Sweep) -> tuple[str, str] | None:
    """The first two objectives, where there are two: what a scatter plot shows."""
    names = [objective.metric for objective in sweep.objectives]
    return (names[0], names[1]) if len(names) > 1 else None


def sweep_charts(sweep: Sweep) -> Iterator[Chart]:
    """The trade-off of two objectives, then each shown metric along the first axis."""
    between = trade_off(sweep)
    if between is not None:
        yield _scatter(sweep, *between)
    along, drawn = sweep.axes[0].paths[0], lines_along(sweep)
    xs: dict[str, tuple[Any, ...]] = {
        name: tuple(_place(row.settings[along]) for row in rows) for name, rows in drawn.items()
    }
    numeric = all(is_number(x) for line in xs.values() for x in line)
    for metric in sweep.metrics:
        ys = {name: tuple(_value(row, metric) for row in rows) for name, rows in drawn.items()}
        values = [y for line in ys.values() for y in line if y is not None]
        if not values:
            continue
        axis, title = metric_axis(metric, max(values)), _upper(label_of(metric))
        first = along.rpartition(".")[2].replace("_", " ")
        caption = f"Along {along}; points outside the limits are grey."
        if numeric:
            yield Lines(
                title, caption, ChartAxis(first), axis,
                tuple(
                    Curve(name, SERIES[n % len(SERIES)], xs[name], ys[name], dots=True,
                           dashed=n >= len(SERIES))
                    for n, name in enumerate(drawn)
                ),
            )  # fmt: skip
        else:
            names = tuple(
                f"{x}{f', {name}' if name else ''}" for name, line in xs.items() for x in line
            )
            yield Columns(
                title, caption, axis, first, names,
                (
                    ("inside the limits", "blue", tuple(
                        0.0 if row.reason is not None else _value(row, metric) or 0.0
                        for rows in drawn.values() for row in rows)),
                    ("outside", "grey", tuple(
                        0.0 if row.reason is None else _value(row, metric) or 0.0
                        for rows in drawn.values() for row in rows)),
                ),
                height=240.0,
            )  # fmt: skip


def metric_axis(path: str, largest: float) -> ChartAxis:
    """The axis of a metric, in a unit that fits its largest value."""
    metric = metric_of(path)
    unit = metric.unit if metric is not None else ""
    if unit in _DIMENSIONS:
        return shown_in(label_of(path), _DIMENSIONS[unit], largest)
    if unit == "share":
        return share_axis(label_of(path))
    return ChartAxis(label_of(path), "" if unit == "ratio" else unit)


def _scatter(sweep: Sweep, x: str, y: str) -> Lines:
    best = sweep.front
    groups: dict[str, list[int]] = {"outside": [], "inside the limits": [], "front": []}
    for place, row in enumerate(sweep.rows):
        if _value(row, x) is None or _value(row, y) is None:
            continue
        kind = "outside" if row.reason else "front" if place in best else "inside the limits"
        groups[kind].append(place)
    groups["front"].sort(key=lambda place: _value(sweep.rows[place], x) or 0.0)
    hues = {"front": "red", "inside the limits": "blue", "outside": "grey"}
    xs = [_value(row, x) or 0.0 for row in sweep.rows]
    ys = [_value(row, y) or 0.0 for row in sweep.rows]
    return Lines(
        f"{_upper(label_of(x))} against {label_of(y)}",
        "The front joins the points that no other one is at least as good as in both.",
        metric_axis(x, max(xs)),
        metric_axis(y, max(ys)),
        tuple(
            Curve(
                name, hues[name], [xs[p] for p in places], [ys[p] for p in places],
                line=name == "front", dots=True,
                tips=[f"{settings_text(sweep.rows[p])}\n{cell(x, xs[p])}, {cell(y, ys[p])}"
                      for p in places],
            )
            for name, places in groups.items()
            if places
        ),
        height=340.0,
    )  # fmt: skip


def _value(row: Point, metric: str) -> float | None:
    value = row.metrics.get(metric)
    return None if isinstance(value, bool | str | None) else float(value)


def is_number(value: Any) -> bool:
    """Whether a value is a number, which no yes or no is."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _place(value: Any) -> float | int | str:
    return value if is_number(value) else str(value)


def settings_text(row: Point) -> str:
    """The settings of a point in short."""
    return ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in row.settings.items())
