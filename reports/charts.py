"""Interactive charts of the HTML report, as plotly figures in plain mappings.

A figure is what Plotly.newPlot takes: {"data": [...], "layout": {...}}. Building it from plain
lists keeps plotly's Python side out of the run; only its JavaScript goes into the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import pandas as pd

from hardware_profiles.units import format_seconds, unit_factor
from reports.palette import (
    BUDGET,
    CAUSES,
    GRID,
    INK,
    MEMORY,
    MUTED,
    PHASE_COLOURS,
    PHASES,
    WORK_COLOURS,
    WORKS,
)
from reports.tables import RunTables, blocks, causes

Chart = dict[str, Any]

_MILLISECOND = unit_factor("ms", "time")
_GIB = unit_factor("GiB", "data")
_LANES = {
    ("compute", "block"): "compute, by block",
    ("compute", "operator"): "compute, by operator",
    ("communication", "operator"): "communication, by operator",
    ("communication", "block"): "communication, by block",
}


def pipeline_chart(tables: RunTables) -> Chart:
    """What every pipeline rank does when; one trace per work."""
    traces = []
    for work, name in WORKS.items():
        rows = tables.actions[tables.actions["work"] == work]
        if len(rows):
            hover = [
                [label, chunk, format_seconds(start), format_seconds(end - start)]
                for label, chunk, start, end in zip(
                    rows["label"], rows["chunk"], rows["start_s"], rows["end_s"], strict=True
                )
            ]
            traces.append(
                _bars(rows["rank"].tolist(), rows["start_s"], rows["end_s"], digits=6)
                | {
                    "name": name,
                    "marker": {
                        "color": WORK_COLOURS[work],
                        "line": {"color": "white", "width": 0.5},
                    },
                    "customdata": hover,
                    "hovertemplate": "<b>%{customdata[0]}</b> on rank %{y}<br>%{customdata[1]}<br>"
                    "starts %{customdata[2]}, takes %{customdata[3]}<extra></extra>",
                }
            )
    layout = _layout(
        height=120 + 24 * len(tables.stages),
        x=_axis("time (s)", range=[0, float(tables.actions["end_s"].max())]),
        y=_axis("pipeline rank", autorange="reversed", dtick=1, fixedrange=True, showgrid=False),
    )
    return {"data": traces, "layout": layout | {"barmode": "overlay", "bargap": 0.15}}


def budget_chart(tables: RunTables) -> Chart:
    """Where the step of every rank goes, stacked."""
    return _stacked(
        [
            (name, colour, [rank[part] for rank in tables.metrics["ranks"]])
            for part, (name, colour) in BUDGET.items()
        ],
        unit="s",
        title="time (s)",
    )


def attribution_chart(tables: RunTables) -> Chart:
    """What adds up to the step, cause after cause."""
    rows, total = causes(tables.metrics), tables.metrics["step_time_s"]
    starts = accumulate((row.seconds for row in rows[:-1]), initial=0.0)
    trace = {
        "type": "bar",
        "orientation": "h",
        "y": [*(row.name for row in rows), "step"],
        "base": [*(float(f"{start:.6g}") for start in starts), 0.0],
        "x": [float(f"{seconds:.6g}") for seconds in (*(row.seconds for row in rows), total)],
        "marker": {"color": [*(CAUSES[row.name] for row in rows), INK]},
        "text": [*(f"{row.seconds:+.3f} s" for row in rows), f"{total:.3f} s"],
        "textposition": "outside",
        "cliponaxis": False,
        "customdata": [
            *(f"{row.meaning}<br>{row.seconds / total:.1%} of the step" for row in rows),
            "sum of the causes",
        ],
        "hovertemplate": "<b>%{y}</b>: %{text}<br>%{customdata}<extra></extra>",
        "showlegend": False,
    }
    layout = _layout(
        height=110 + 27 * (len(rows) + 1),
        x=_axis("time (s)", range=[0, 1.12 * total]),
        y=_axis("", autorange="reversed", fixedrange=True, ticks=""),
    )
    layout["margin"] = layout["margin"] | {"l": 170, "t": 8}
    return {"data": [trace], "layout": layout | {"bargap": 0.25}}


def waiting_ranks(tables: RunTables) -> Chart:
    """How many ranks of an expert-parallel group wait how long for the others."""
    waits = tables.metrics.get("waiting", {}).get("by_rank_s", [])
    trace = {
        "type": "histogram",
        "x": [float(f"{1e3 * seconds:.5g}") for seconds in waits],
        "marker": {"color": "#b5473c"},
        "hovertemplate": "%{y} ranks wait %{x} ms<extra></extra>",
    }
    layout = _layout(
        height=240, x=_axis("waiting of a rank (ms)"), y=_axis("ranks", fixedrange=True)
    )
    return {"data": [trace], "layout": layout | {"bargap": 0.05}}


def communication(tables: RunTables) -> Chart:
    """All-to-all time of every rank inside its chunks, with and without compute beside it."""
    parts = {
        "hidden_communication_s": ("hidden under compute", "#8fb3d1"),
        "exposed_communication_s": ("exposed", "#b5473c"),
    }
    return _stacked(
        [
            (name, colour, [rank[part] for rank in tables.metrics["ranks"]])
            for part, (name, colour) in parts.items()
        ],
        unit="s",
        title="all-to-all time (s)",
    )


def memory(tables: RunTables) -> Chart:
    """Memory of one GPU of every rank, stacked, and what it has."""
    chart = _stacked(
        [
            (name, colour, [rank[part] / _GIB for rank in tables.metrics["memory"]])
            for part, (name, colour) in MEMORY.items()
        ],
        unit="GiB",
        title="memory (GiB)",
    )
    capacity = tables.memory_capacity / _GIB
    chart["layout"]["shapes"] = [
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": capacity,
            "y1": capacity,
            "line": {"color": INK, "width": 1, "dash": "dash"},
        }
    ]
    chart["layout"]["annotations"] = [
        {
            "text": f"capacity {capacity:.1f} GiB",
            "xref": "paper",
            "x": 1,
            "xanchor": "right",
            "y": capacity,
            "yanchor": "bottom",
            "showarrow": False,
            "font": {"size": 11},
        }
    ]
    chart["layout"]["yaxis"]["range"] = [0, 1.1 * capacity]
    return chart


def pair_timeline(tables: RunTables) -> Chart:
    """The overlapped pair on its two streams, block by block and operator by operator."""
    operators = tables.pair_operators
    grouped = blocks(operators)
    traces = []
    for phase, name in PHASES.items():
        rows, parts = operators[operators["phase"] == phase], grouped[grouped["phase"] == phase]
        if not len(rows):
            continue
        starts = pd.concat([rows["start_s"], parts["start_s"]]) / _MILLISECOND
        ends = pd.concat([rows["end_s"], parts["end_s"]]) / _MILLISECOND
        lanes = [_LANES[stream, "operator"] for stream in rows["stream"]]
        lanes += [_LANES[stream, "block"] for stream in parts["stream"]]
        hover = _operator_hovers(rows)
        hover += [
            f"<b>{block}</b>, {layer}<br>{format_seconds(end - start)}"
            for block, layer, start, end in zip(
                parts["block"], parts["layer"], parts["start_s"], parts["end_s"], strict=True
            )
        ]
        traces.append(
            _bars(lanes, starts, ends, digits=5)
            | {
                "name": name,
                "marker": {
                    "color": PHASE_COLOURS[phase],
                    # Operators can be thinner than a border of the usual width.
                    "line": {
                        "color": "white",
                        "width": [0.1] * len(rows) + [1.0] * len(parts),
                    },
                },
                "text": [""] * len(rows) + parts["block"].tolist(),
                "textposition": "inside",
                "insidetextanchor": "middle",
                "textangle": -90,
                "insidetextfont": {"color": "white"},
                "hovertext": hover,
                "hovertemplate": "%{hovertext}<extra></extra>",
            }
        )
    layout = _layout(
        height=420,
        x=_axis("time in the pair (ms)", range=[0, float(operators["end_s"].max()) / _MILLISECOND]),
        y=_axis(
            "",
            categoryorder="array",
            categoryarray=list(_LANES.values())[::-1],
            fixedrange=True,
            showgrid=False,
            automargin=True,
        ),
    )
    layout |= {
        "barmode": "overlay",
        "bargap": 0.15,
        "uniformtext": {"mode": "hide", "minsize": 9},
    }
    return {"data": traces, "layout": layout}


CHARTS = {
    "pipeline-timeline": pipeline_chart,
    "attribution": attribution_chart,
    "waiting-ranks": waiting_ranks,
    "time-budget": budget_chart,
    "communication": communication,
    "pair-timeline": pair_timeline,
    "memory": memory,
}
"""Chart of each place in the page."""


def _operator_hovers(operators: pd.DataFrame) -> list[str]:
    columns = ("name", "layer", "kind", "dtype", "sizes", "provenance")
    texts = zip(*(operators[column].tolist() for column in columns), strict=True)
    times = zip(
        *(operators[column].tolist() for column in ("start_s", "end_s", "low_s", "high_s")),
        strict=True,
    )
    return [
        f"<b>{name}</b>, {layer}<br>{kind} {dtype}<br>{sizes}<br>{format_seconds(end - start)} "
        f"({provenance}; {format_seconds(low)} to {format_seconds(high)})"
        for (name, layer, kind, dtype, sizes, provenance), (start, end, low, high) in zip(
            texts, times, strict=True
        )
    ]


def _bars(lane: Sequence[Any], starts: pd.Series, ends: pd.Series, *, digits: int) -> Chart:
    """Horizontal bars from start to end; `digits` decimals keep the page small."""
    return {
        "type": "bar",
        "orientation": "h",
        "y": lane,
        "base": starts.round(digits).tolist(),
        "x": (ends - starts).round(digits).tolist(),
    }


def _stacked(parts: Sequence[tuple[str, str, Sequence[float]]], *, unit: str, title: str) -> Chart:
    traces = [
        {
            "type": "bar",
            "name": name,
            "x": list(range(len(values))),
            "y": [float(f"{value:.6g}") for value in values],
            "marker": {"color": colour},
            "hovertemplate": f"rank %{{x}}, {name}: %{{y:.4g}} {unit}<extra></extra>",
        }
        for name, colour, values in parts
    ]
    layout = _layout(height=360, x=_axis("pipeline rank", dtick=1, showgrid=False), y=_axis(title))
    return {"data": traces, "layout": layout | {"barmode": "stack", "bargap": 0.22}}


def _axis(title: str, **more: Any) -> Chart:
    axis = {
        "title": {"text": title, "standoff": 8},
        "gridcolor": GRID,
        "linecolor": MUTED,
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": MUTED,
    }
    return axis | more


def _layout(*, height: int, x: Chart, y: Chart) -> Chart:
    return {
        "height": height,
        "margin": {"l": 60, "r": 16, "t": 36, "b": 48},
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": x,
        "yaxis": y,
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.0,
            "yanchor": "bottom",
            "traceorder": "normal",
        },
        "hoverlabel": {"align": "left"},
    }
