"""Tables, page, figures and parquet files of a fleet run.

Everything shown comes from the metrics: figures with their definitions, time series of equal bins,
cumulative distributions of the latencies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardware_profiles.units import format_seconds
from reports.page import render_page
from reports.palette import GRID, INK, MUTED
from reports.run_directory import write_run
from reports.tables import (
    kernels_rows,
    left_out_note,
    list_inputs,
    published_cells,
    published_table,
)
from simulator.scenario.files import write_resolved

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    from simulator.analysis.fleet_attribution import AttributionRow
    from simulator.analysis.fleet_metrics import ObservedFleet
    from simulator.analysis.run import Run
    from simulator.scenario.files import Scenario
    from simulator.scenario.published import PublishedFigure

REPORT_FILE, FIGURES_DIRECTORY = "report.html", "figures"

LATENCIES: Mapping[str, str] = {
    "ttft_s": "TTFT",
    "tpot_s": "TPOT",
    "itl_s": "ITL",
    "e2e_s": "end to end",
    "queueing_s": "queueing",
    "decode_wait_s": "decode wait",
}
"""Latencies in the order of tables, with their names."""

LATENCY_COLUMNS = ("mean", "its 80 %", "p50", "p90", "p95", "p99", "count")

FIGURES_SHOWN: Mapping[str, str] = {
    "verdict": "verdict",
    "nodes": "nodes",
    "nodes_at_least": "nodes at least",
    "output_tokens_per_second_per_node": "output tokens/s per decode node",
    "output_tokens_per_second_per_gpu": "output tokens/s per decode GPU",
    "input_tokens_per_second_per_node": "input tokens/s per prefill node",
    "computed_input_tokens_per_second_per_node": "of which computed",
    "sustained_input_tokens_per_second_per_node": "a saturated prefill node",
    "prefill_busy_share": "of that: time in passes",
    "prefill_even_ranks_share": "of that: even ranks",
    "prefill_full_passes_share": "of that: full passes",
    "sustained_output_tokens_per_second_per_node": "a decode node at the TPOT limit",
    "tokens_per_second_per_user": "tokens/s per user",
    "goodput_requests_per_second": "goodput, requests/s",
    "prefix_hit_rate": "prefix hits",
    "kv_occupancy": "KV cache in use",
    "cost_usd_per_million_output_tokens": "USD per million output tokens",
    "littles_law_error": "error of Little's law",
}
"""Single figures in the order of tables, with their names."""

_OF_TWO_POOLS = (
    "nodes_at_least",
    "sustained_input_tokens_per_second_per_node",
    "prefill_busy_share",
    "prefill_even_ranks_share",
    "prefill_full_passes_share",
    "sustained_output_tokens_per_second_per_node",
)
"""Figures that a colocated pool does not have."""

_FRACTIONS = ("prefix_hit_rate", "kv_occupancy", "utilisation")
"""Figures that are shares; so is everything whose name ends with _share."""
_COLOURS = ("#3f72af", "#d9813b", "#6aa568", "#8d86b8", "#b5473c")

# Panels over time: title, axis, {series: name}.
PANELS: Sequence[tuple[str, str, Mapping[str, str]]] = (
    (
        "Requests",
        "requests",
        {
            "in_system": "in the service",
            "waiting_prefill": "waiting for prefill",
            "waiting_decode": "waiting for decode",
        },
    ),
    (
        "Tokens",
        "tokens/s",
        {"input_tokens_per_second": "prompts", "output_tokens_per_second": "answers"},
    ),
    ("Arrivals", "requests/s", {"arrivals_per_second": "arrivals"}),
    ("Batch of a decode instance", "requests", {"batch": "batch"}),
    ("KV cache where requests decode", "share in use", {"kv_occupancy": "KV cache"}),
)


def fleet_run_tables(name: str, metrics: Mapping[str, Any]) -> list[Table]:
    """Latencies, single figures with definitions, pools and published figures of a fleet run."""
    from rich.table import Table

    latencies = Table(title=name, title_justify="left")
    latencies.add_column("latency")
    for column in LATENCY_COLUMNS:
        latencies.add_column(column, justify="right", no_wrap=True)
    for path, label in LATENCIES.items():
        latencies.add_row(label, *_latency_cells(path, metrics))
    meanings = Table(show_header=False, box=None)
    meanings.add_column(style="bold", no_wrap=True)
    meanings.add_column(style="dim")
    for path, label in LATENCIES.items():
        meanings.add_row(label, metrics["definitions"][path])
    meanings.add_row("window", window_text(metrics))
    single = Table()
    single.add_column("figure")
    single.add_column("simulated", justify="right", no_wrap=True)
    single.add_column("80 % interval", justify="right", no_wrap=True)
    single.add_column("what it is", style="dim")
    for path, label in _figures(metrics).items():
        meaning = metrics["definitions"].get(path, "")
        single.add_row(label, format_figure(path, metrics[path]), _interval(path, metrics), meaning)
    for key, value in _request_counts(metrics["requests"]):
        single.add_row(f"requests {key}", f"{value:,}", "", "")
    single.caption, single.caption_justify = metrics.get("goodput_cliff"), "left"
    bases = Table(show_header=False, box=None)
    bases.add_column(style="bold", no_wrap=True)
    bases.add_column(style="dim")
    for pool, basis in metrics["step_times"].items():
        bases.add_row(f"step times of {pool}", basis)
    for row in _kernels(metrics):
        bases.add_row(*row)
    tables = [latencies, meanings, single, _pool_table(metrics), bases]
    if metrics["published"]:
        tables.append(published_table(metrics["published"]))
    return tables


def window_text(metrics: Mapping[str, Any]) -> str:
    """What the figures of a run are of; that there are none where it ended within the warm-up."""
    meaning = metrics["definitions"]["window_s"]
    if metrics["window_s"] is None:
        return f"none: the run has ended before it begins, so that nothing is measured; {meaning}"
    start, end = (format_seconds(edge) for edge in metrics["window_s"])
    return f"{start} to {end}; {meaning}"


def attribution_table(
    name: str, figures: Sequence[PublishedFigure], rows: Sequence[AttributionRow]
) -> Table:
    """Counterfactuals in their order, with the value of each figure and the change to it."""
    from rich.table import Table

    table = Table(
        title=f"{name}: from simulated to published, each row on top of those before it",
        title_justify="left",
    )
    table.add_column("counterfactual")
    for figure in figures:
        table.add_column(figure.name, justify="right")
        table.add_column("effect", justify="right")
    table.add_column("source", style="dim")
    for row in rows:
        cells = [row.name]
        for value, effect in zip(row.values, row.effects, strict=True):
            cells.append(format_figure("published", value))
            cells.append("-" if effect is None else f"{effect:+,.4g}")
        table.add_row(*cells, row.source)
    return table


def format_figure(path: str, value: Any) -> str:
    """A single figure as text; a dash where there was nothing to measure."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if path.endswith("_s"):
        return format_seconds(value)
    if path in _FRACTIONS or path.endswith("_share"):
        return f"{value:.1%}"
    if path == "littles_law_error":
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def write_fleet_run(run: Run[ObservedFleet], metrics: Mapping[str, Any], directory: Path) -> None:
    """Write scenario, metrics, time series and report; all of it appears or nothing does."""

    def write_report(draft: Path) -> None:
        write_columns(metrics["time_series"], draft / "time_series.parquet")
        (draft / REPORT_FILE).write_text(fleet_page(run.scenario, metrics), encoding="utf-8")
        _write_figures(metrics, draft / FIGURES_DIRECTORY)

    write_run(
        directory,
        scenario=write_resolved(run.scenario),
        metrics=metrics,
        tables={},
        write_report=write_report,
    )


def write_columns(columns: Mapping[str, Sequence[float | None]], path: Path) -> None:
    """Write columns of numbers as parquet; None becomes null."""
    import numpy as np
    import pyarrow
    import pyarrow.parquet

    def array(values: Sequence[float | None]) -> pyarrow.Array:
        # From buffers: given a list, pyarrow imports pandas, which takes longer than all the rest.
        known = np.packbits([value is not None for value in values], bitorder="little")
        numbers = np.array([value or 0.0 for value in values], dtype=np.float64)
        buffers = [pyarrow.py_buffer(known), pyarrow.py_buffer(numbers)]
        return pyarrow.Array.from_buffers(pyarrow.float64(), len(values), buffers)

    table = pyarrow.Table.from_arrays([array(values) for values in columns.values()], list(columns))
    pyarrow.parquet.write_table(table, path)


def _kernels(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, text) of whose kernels the steps of each phase are predicted with."""
    return [
        (f"{phase} {name}", text)
        for phase, kernels in metrics["kernels"].items()
        for name, text in kernels_rows({"kernels": kernels})
    ]


def fleet_page(scenario: Scenario, metrics: Mapping[str, Any]) -> str:
    """The self-contained page."""
    return render_page(
        "fleet.html.j2",
        charts=fleet_charts(metrics),
        name=scenario.name,
        description=scenario.file.description,
        left_out=left_out_note(scenario),
        metrics=metrics,
        window=window_text(metrics),
        latencies=[
            (label, _latency_cells(path, metrics), metrics["definitions"][path])
            for path, label in LATENCIES.items()
        ],
        latency_columns=LATENCY_COLUMNS,
        figures=[
            (
                label,
                format_figure(path, metrics[path]),
                _interval(path, metrics),
                metrics["definitions"].get(path, ""),
            )
            for path, label in _figures(metrics).items()
        ],
        requests=_request_counts(metrics["requests"]),
        pools=_pool_rows(metrics),
        kernels=_kernels(metrics),
        published=[(*published_cells(row), row["source"]) for row in metrics["published"]],
        inputs=list(list_inputs(scenario.resolved)),
        resolved=write_resolved(scenario),
    )


def fleet_charts(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Interactive charts for plotly: one of distributions, one per panel over time."""
    distributions = [
        {
            "name": LATENCIES[path],
            "x": curve["value_s"],
            "y": curve["share"],
            "hovertemplate": "%{y:.0%} within %{x:.4g} s",
        }
        for path, curve in metrics["distributions"].items()
    ]
    shares = _layout("time (s)", "share of requests (ITL: of gaps)", lines=len(distributions))
    shares["xaxis"]["type"] = "log"
    result = {"Latencies: share that takes no longer": _chart(distributions, shares)}
    series = metrics["time_series"]
    for title, axis, names in PANELS:
        lines = [
            {"name": name, "x": series["time_s"], "y": series[column]}
            for column, name in names.items()
        ]
        result[f"{title} over time"] = _chart(lines, _layout("time (s)", axis, lines=len(lines)))
    return result


def _chart(lines: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> dict[str, Any]:
    drawn = [
        {"type": "scatter", "mode": "lines", "line": {"color": colour, "width": 1.5}, **line}
        for line, colour in zip(lines, _COLOURS, strict=False)
    ]
    return {"data": drawn, "layout": layout}


def _write_figures(metrics: Mapping[str, Any], directory: Path) -> None:
    """Write the same charts as PNG and SVG into ``directory``, which is made."""
    import matplotlib

    directory.mkdir()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dsv3sim"}):
        for name, figure in (
            ("latencies", latency_figure(metrics)),
            ("time_series", time_series_figure(metrics)),
        ):
            figure.savefig(directory / f"{name}.png", dpi=150)
            figure.savefig(directory / f"{name}.svg", metadata={"Date": None})


def latency_figure(metrics: Mapping[str, Any]) -> Figure:
    """Cumulative distributions of the latencies."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5))
    # Fixed margins: a layout that looks for its own draws everything twice.
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.12, top=0.97)
    axes = figure.subplots()
    for (path, curve), colour in zip(metrics["distributions"].items(), _COLOURS, strict=True):
        # Zeros have no place on a logarithmic axis.
        points = [(x, y) for x, y in zip(curve["value_s"], curve["share"], strict=True) if x > 0]
        axes.plot(
            [x for x, _ in points], [y for _, y in points], label=LATENCIES[path], color=colour
        )
    axes.set_xscale("log")
    axes.set_xlabel("time (s)")
    axes.set_ylabel("share of requests (ITL: of gaps)")
    _finish(axes)
    return figure


def time_series_figure(metrics: Mapping[str, Any]) -> Figure:
    """All panels over time, one above the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.1 * len(PANELS)))
    figure.subplots_adjust(left=0.1, right=0.98, bottom=0.05, top=0.97, hspace=0.3)
    series = metrics["time_series"]
    all_axes = figure.subplots(len(PANELS), sharex=True)
    for axes, (title, unit, lines) in zip(all_axes, PANELS, strict=True):
        for (column, name), colour in zip(lines.items(), _COLOURS, strict=False):
            values = [float("nan") if value is None else value for value in series[column]]
            axes.plot(series["time_s"], values, label=name, color=colour, linewidth=1.2)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylabel(unit)
        _finish(axes)
    all_axes[-1].set_xlabel("time (s)")
    return figure


def _finish(axes: Axes) -> None:
    axes.grid(color=GRID, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=MUTED)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def _layout(x: str, y: str, *, lines: int) -> dict[str, Any]:
    return {
        "height": 320,
        "margin": {"l": 64, "r": 16, "t": 30, "b": 48},
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "plot_bgcolor": "white",
        "xaxis": {"title": {"text": x}, "gridcolor": GRID},
        "yaxis": {"title": {"text": y}, "gridcolor": GRID, "rangemode": "tozero"},
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        "showlegend": lines > 1,
    }


def _figures(metrics: Mapping[str, Any]) -> dict[str, str]:
    """FIGURES_SHOWN that the pools of a run have."""
    colocated = "colocated" in metrics["pools"]
    return {
        path: label
        for path, label in FIGURES_SHOWN.items()
        if not (colocated and path in _OF_TWO_POOLS)
    }


def _latency_cells(path: str, metrics: Mapping[str, Any]) -> list[str]:
    summary: Mapping[str, float | None] = metrics[path]
    cells = [
        "-" if summary[key] is None else format_seconds(float(summary[key] or 0.0), digits=3)
        for key in ("mean", "p50", "p90", "p95", "p99")
    ]
    return [cells[0], _interval(f"{path}.mean", metrics), *cells[1:], f"{summary['count']:,}"]


def _interval(path: str, metrics: Mapping[str, Any]) -> str:
    """Both ends of a figure's 80 % interval; nothing where it has none."""
    ends = metrics.get("interval_80", {}).get(path)
    if ends is None:
        return ""
    if path.endswith("_s.mean"):
        return " to ".join(format_seconds(end, digits=3) for end in ends)
    return " to ".join(format_figure(path, end) for end in ends)


def _request_counts(requests: Mapping[str, Any]) -> list[tuple[str, Any]]:
    shown = [(key, requests[key]) for key in ("arrived", "finished", "rejected", "unfinished")]
    others = ("preemptions", "restarts", "lines_skipped_malformed", "lines_skipped_failed")
    reasons = [
        (f"rejected: {reason.replace('_', ' ')}", count)
        for reason, count in requests["rejected_by_reason"].items()
    ]
    extra = [(key.replace("_", " "), requests[key]) for key in others if requests[key]]
    return shown + reasons + extra


def _pool_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            format_figure("instances", pool["instances"]),
            format_figure("nodes", pool["nodes"]),
            format_figure("utilisation", pool["utilisation"]),
            format_figure("batch", pool["mean_batch_per_instance"]),
            format_figure("kv_occupancy", pool["kv_occupancy"]),
            metrics["step_times"][name],
        ]
        for name, pool in metrics["pools"].items()
    ]


def _pool_table(metrics: Mapping[str, Any]) -> Table:
    from rich.table import Table

    copies = metrics["replicas"]
    title = "pools" if copies == 1 else f"pools of one of {copies} equal replicas"
    table = Table(title=title, title_justify="left")
    table.add_column("pool")
    for column in ("instances", "nodes", "busy", "batch", "KV cache"):
        table.add_column(column, justify="right")
    for row in _pool_rows(metrics):
        table.add_row(*row[:-1])
    return table
