"""Write the run directory of a replay: page, figure, table and Perfetto trace.

The measured and the simulated timeline stand side by side everywhere: lane by lane in report.html
and timeline.png, as two processes in perfetto.json, as columns in kernels.parquet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from hardware_profiles.units import Seconds, format_seconds, unit_factor
from reports.page import render_page
from reports.palette import GRID, INK, MUTED
from reports.run_directory import write_run
from simulator.analysis.profile_replay import Replay
from simulator.analysis.what_if import is_unmapped
from simulator.scenario.files import write_resolved

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from simulator.analysis.run import Run

REPORT_FILE, PERFETTO_FILE, FIGURE_NAME = "report.html", "perfetto.json", "timeline"

CLASSES = {
    "compute": "#3f72af",
    "communication": "#d9813b",
    "rank_wait": "#efd3b4",
    "unmapped": "#b9b9b4",
}
"""What a kernel is shown as, with its colour."""
NAMES = {
    "compute": "compute",
    "communication": "transfers between GPUs",
    "rank_wait": "waits for other ranks",
    "unmapped": "unmapped",
}
TIMELINES = ("measured", "simulated")

_MILLISECOND = unit_factor("ms", "time")
_MICROSECOND = unit_factor("us", "time")
_RESULTS = {
    "span_s": "span",
    "compute_busy_s": "compute streams busy",
    "communication_busy_s": "communication streams busy",
    "exposed_communication_s": "compute waiting for transfers",
    "waiting_for_ranks_s": "compute waiting for other ranks",
    "launch_bound_s": "compute waiting for launches",
    "other_idle_s": "other gaps of compute",
}


def write_replay_run(run: Run[Replay], metrics: Mapping[str, Any], directory: Path) -> None:
    """Write everything; the directory appears whole or not at all."""
    kernels = kernel_table(run.result)

    def write_report(draft: Path) -> None:
        (draft / REPORT_FILE).write_text(_page(metrics, kernels), encoding="utf-8")
        trace = {"displayTimeUnit": "ms", "traceEvents": list(replay_events(run.result, kernels))}
        text = json.dumps(trace, separators=(",", ":"), allow_nan=False)
        (draft / PERFETTO_FILE).write_text(text, encoding="utf-8")
        figure = timeline_figure(kernels)
        figure.savefig(draft / f"{FIGURE_NAME}.png", dpi=150)
        figure.savefig(draft / f"{FIGURE_NAME}.svg", metadata={"Date": None})

    write_run(
        directory,
        scenario=write_resolved(run.scenario),
        metrics=metrics,
        tables={"kernels": kernels},
        write_report=write_report,
    )


def kernel_table(run: Replay) -> pd.DataFrame:
    """One row per kernel: what it is, when it ran in the recording and in the replay."""
    kernels, mapped = run.graph.kernels, run.mapped
    shown = [
        "unmapped" if is_unmapped(kernel, place) else place.role.value
        for kernel, place in zip(kernels, mapped, strict=True)
    ]
    return pd.DataFrame(
        {
            "stream": [kernel.stream for kernel in kernels],
            "operator": [place.label for place in mapped],
            "class": pd.Categorical(shown, categories=list(CLASSES)),
            "annotation": [place.annotation for place in mapped],
            "kernel": [kernel.name for kernel in kernels],
            "basis": list(run.durations.basis),
            "measured_start_s": run.measured.start_s,
            "measured_end_s": run.measured.end_s,
            "simulated_start_s": run.simulated.start_s,
            "simulated_end_s": run.simulated.end_s,
        }
    )


def replay_events(run: Replay, kernels: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Chrome trace events: a process per timeline, a track per stream, the replayed host."""
    for process, timeline in enumerate(TIMELINES, start=1):
        yield _name("process_name", process, 0, f"{timeline} GPU")
        for stream in run.graph.streams:
            carries = "communication" if stream in run.graph.communication_streams else "compute"
            yield _name("thread_name", process, stream, f"stream {stream} ({carries})")
        columns = ["stream", "operator", "annotation", "basis", "kernel"]
        columns += [f"{timeline}_start_s", f"{timeline}_end_s"]
        for stream, operator, annotation, basis, kernel, start, end in _rows(kernels, columns):
            details = {"annotation": annotation, "kernel": kernel, "basis": basis}
            yield _slice((process, stream), operator, (start, end), details)
    host = len(TIMELINES) + 1
    threads = list(dict.fromkeys(action.call.thread for action in run.graph.actions))
    yield _name("process_name", host, 0, "simulated host")
    for number, thread in enumerate(threads):
        yield _name("thread_name", host, number, f"thread {thread}")
    times = zip(run.log.call_start_s.tolist(), run.log.call_end_s.tolist(), strict=True)
    for action, span in zip(run.graph.actions, times, strict=True):
        yield _slice((host, threads.index(action.call.thread)), action.call.name, span, {})


def timeline_figure(kernels: pd.DataFrame) -> Figure:
    """Streams of both timelines over time."""
    # Figure without pyplot draws with the Agg canvas and keeps no global state.
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    lanes = _lanes(kernels)
    figure = Figure(figsize=(12, 1.2 + 0.42 * len(lanes)), layout="constrained")
    axes = figure.subplots()
    for name, colour in CLASSES.items():
        rows = kernels[kernels["class"] == name]
        corners = [
            [(left, y - 0.4), (right, y - 0.4), (right, y + 0.4), (left, y + 0.4)]
            for y, (stream, timeline) in enumerate(lanes)
            for left, right in _spans(rows[rows["stream"] == stream], timeline)
        ]
        if corners:
            axes.add_collection(PolyCollection(corners, facecolors=colour, label=NAMES[name]))
    axes.set_xlim(0, _latest(kernels) / _MILLISECOND)
    axes.set_ylim(len(lanes) - 0.5, -0.5)
    axes.set_yticks(range(len(lanes)), [_lane_name(lane) for lane in lanes])
    axes.set_xlabel("time since the first kernel (ms)")
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


def _page(result: Mapping[str, Any], kernels: pd.DataFrame) -> str:
    """The self-contained page of a replay's metrics."""
    return render_page(
        "replay.html.j2",
        charts={"timeline": timeline_chart(kernels)},
        filters={"seconds": format_seconds},
        result=result,
        rows=[
            # Whole nanoseconds: below that is rounding of the sums.
            (
                name,
                result["measured"][key],
                result[key],
                round(result[key] - result["measured"][key], 9) + 0.0,  # no "-0 ns"
            )
            for key, name in _RESULTS.items()
        ],
        error=result["span_s"] / result["measured_span_s"] - 1 if result["measured_span_s"] else 0,
        classes=[(NAMES[name], colour) for name, colour in CLASSES.items()],
    )


def timeline_chart(kernels: pd.DataFrame) -> dict[str, Any]:
    """The same timelines as a plotly figure: hover for the kernel, drag to zoom."""
    lanes = _lanes(kernels)
    traces = []
    for name, colour in CLASSES.items():
        of_class = kernels[kernels["class"] == name]
        y: list[str] = []
        base: list[float] = []
        width: list[float] = []
        hover: list[str] = []
        for lane in lanes:
            rows = of_class[of_class["stream"] == lane[0]]
            for (start, end), operator, annotation in zip(
                _spans(rows, lane[1]), rows["operator"], rows["annotation"], strict=True
            ):
                y.append(_lane_name(lane))
                base.append(round(start, 4))
                width.append(round(end - start, 4))
                place = f" in {annotation}" if annotation else ""
                took = format_seconds((end - start) * _MILLISECOND)
                hover.append(f"<b>{operator}</b>{place}<br>{took}")
        if y:
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": NAMES[name],
                    "y": y,
                    "base": base,
                    "x": width,
                    "marker": {"color": colour, "line": {"color": "white", "width": 0.1}},
                    "customdata": hover,
                    "hovertemplate": "%{customdata}<br>%{y}, from %{base:.3f} ms<extra></extra>",
                }
            )
    axis = {"gridcolor": GRID, "linecolor": MUTED, "zeroline": False}
    layout = {
        "height": 160 + 46 * len(lanes),
        "barmode": "overlay",
        "bargap": 0.2,
        "margin": {"l": 150, "r": 16, "t": 36, "b": 48},
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "plot_bgcolor": "white",
        "xaxis": axis | {"title": {"text": "time since the first kernel (ms)"}},
        "yaxis": axis
        | {
            "categoryorder": "array",
            "categoryarray": [_lane_name(lane) for lane in lanes],
            "autorange": "reversed",
            "fixedrange": True,
        },
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
    }
    return {"data": traces, "layout": layout}


Lane = tuple[int, str]
"""(stream, timeline)"""


def _lanes(kernels: pd.DataFrame) -> list[Lane]:
    """Each stream, measured above simulated."""
    streams = sorted(int(stream) for stream in kernels["stream"].unique())
    return [(stream, timeline) for stream in streams for timeline in TIMELINES]


def _lane_name(lane: Lane) -> str:
    return f"stream {lane[0]}, {lane[1]}"


def _spans(rows: pd.DataFrame, timeline: str) -> list[tuple[float, float]]:
    """Start and end of each row, ms."""
    starts = (rows[f"{timeline}_start_s"] / _MILLISECOND).tolist()
    ends = (rows[f"{timeline}_end_s"] / _MILLISECOND).tolist()
    return list(zip(starts, ends, strict=True))


def _latest(kernels: pd.DataFrame) -> Seconds:
    return float(kernels[[f"{timeline}_end_s" for timeline in TIMELINES]].to_numpy().max())


def _rows(frame: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    return zip(*(frame[column].tolist() for column in columns), strict=True)


def _slice(
    track: tuple[int, int], name: str, span: tuple[Seconds, Seconds], details: dict[str, Any]
) -> dict[str, Any]:
    # Whole nanoseconds at both ends keep slices of one track from overlapping by rounding.
    first, last = (round(instant / _MICROSECOND, 3) for instant in span)
    return {
        "ph": "X",
        "pid": track[0],
        "tid": track[1],
        "name": name,
        "ts": first,
        "dur": round(last - first, 3),
        "args": details,
    }


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": process, "tid": thread, "name": kind, "args": {"name": name}}
