"""Tables of a fleet run for the terminal, and the cells that its page shares with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hardware_profiles.units import format_seconds
from reports.tables import kernels_rows, published_table
from simulator.analysis.every_metric import metric_of
from simulator.analysis.metric import label_of

if TYPE_CHECKING:
    from rich.table import Table

    from simulator.analysis.fleet_attribution import AttributionRow
    from simulator.scenario.published import PublishedFigure

LATENCIES = ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queueing_s", "decode_wait_s")
"""Latencies in the order of tables."""

LATENCY_COLUMNS = ("mean", "80% interval", "p50", "p90", "p95", "p99", "count")

FIGURES_SHOWN = (
    "verdict",
    "nodes",
    "nodes_at_least",
    "output_tokens_per_second_per_node",
    "output_tokens_per_second_per_gpu",
    "input_tokens_per_second_per_node",
    "computed_input_tokens_per_second_per_node",
    "sustained_input_tokens_per_second_per_node",
    "prefill_busy_share",
    "prefill_even_ranks_share",
    "prefill_full_passes_share",
    "sustained_output_tokens_per_second_per_node",
    "tokens_per_second_per_user",
    "goodput_requests_per_second",
    "prefix_hit_rate",
    "kv_occupancy",
    "cost_usd_per_million_output_tokens",
    "littles_law_error",
)
"""Single figures in the order of tables."""

_OF_TWO_POOLS = (
    "nodes_at_least",
    "sustained_input_tokens_per_second_per_node",
    "prefill_busy_share",
    "prefill_even_ranks_share",
    "prefill_full_passes_share",
    "sustained_output_tokens_per_second_per_node",
)
"""Figures that a colocated pool does not have."""


def fleet_run_tables(name: str, metrics: Mapping[str, Any]) -> list[Table]:
    """Latencies, single figures with definitions, pools and published figures of a fleet run."""
    from rich.table import Table

    latencies = Table(title=name, title_justify="left")
    latencies.add_column("latency")
    for column in LATENCY_COLUMNS:
        latencies.add_column(column, justify="right", no_wrap=True)
    for path in LATENCIES:
        latencies.add_row(label_of(path), *latency_cells(path, metrics))
    meanings = Table(show_header=False, box=None)
    meanings.add_column(style="bold", no_wrap=True)
    meanings.add_column(style="dim")
    for path in LATENCIES:
        meanings.add_row(label_of(path), metrics["definitions"][path])
    meanings.add_row("window", window_text(metrics))
    single = Table()
    single.add_column("figure")
    single.add_column("simulated", justify="right", no_wrap=True)
    single.add_column("80% interval", justify="right", no_wrap=True)
    single.add_column("what it is", style="dim")
    for path in figures_of_pools(metrics):
        meaning = metrics["definitions"].get(path, "")
        shown = format_figure(path, metrics[path]), interval_cell(path, metrics)
        single.add_row(label_of(path), *shown, meaning)
    for key, value in request_counts(metrics["requests"]):
        single.add_row(f"requests {key}", f"{value:,}", "", "")
    single.caption, single.caption_justify = metrics.get("goodput_cliff"), "left"
    bases = Table(show_header=False, box=None)
    bases.add_column(style="bold", no_wrap=True)
    bases.add_column(style="dim")
    for pool, basis in metrics["step_times"].items():
        bases.add_row(f"step times of {pool}", basis)
    for row in kernels_of_phases(metrics):
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
    """A single figure as text, in the unit of its metric; a dash where there was nothing to
    measure."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    metric = metric_of(path, "fleet")
    unit = "" if metric is None else metric.unit
    if unit == "s":
        return format_seconds(value)
    if unit == "share":
        return f"{value:.1%}"
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{number} USD" if unit == "USD" else number


def kernels_of_phases(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, text) of whose kernels the steps of each phase are predicted with."""
    return [
        (f"{phase} {name}", text)
        for phase, kernels in metrics["kernels"].items()
        for name, text in kernels_rows({"kernels": kernels})
    ]


def figures_of_pools(metrics: Mapping[str, Any]) -> list[str]:
    """FIGURES_SHOWN that the pools of a run have."""
    colocated = "colocated" in metrics["pools"]
    return [path for path in FIGURES_SHOWN if not (colocated and path in _OF_TWO_POOLS)]


def latency_cells(path: str, metrics: Mapping[str, Any]) -> list[str]:
    summary: Mapping[str, float | None] = metrics[path]
    cells = [
        "-" if summary[key] is None else format_seconds(float(summary[key] or 0.0), digits=3)
        for key in ("mean", "p50", "p90", "p95", "p99")
    ]
    return [cells[0], interval_cell(f"{path}.mean", metrics), *cells[1:], f"{summary['count']:,}"]


def interval_cell(path: str, metrics: Mapping[str, Any]) -> str:
    """Both ends of a figure's 80% interval; nothing where it has none."""
    ends = metrics.get("interval_80", {}).get(path)
    if ends is None:
        return ""
    if path.endswith("_s.mean"):
        return " to ".join(format_seconds(end, digits=3) for end in ends)
    return " to ".join(format_figure(path, end) for end in ends)


def request_counts(requests: Mapping[str, Any]) -> list[tuple[str, Any]]:
    shown = [(key, requests[key]) for key in ("arrived", "finished", "rejected", "unfinished")]
    others = ("preemptions", "restarts", "lines_skipped_malformed", "lines_skipped_failed")
    reasons = [
        (f"rejected: {reason.replace('_', ' ')}", count)
        for reason, count in requests["rejected_by_reason"].items()
    ]
    extra = [(key.replace("_", " "), requests[key]) for key in others if requests[key]]
    return shown + reasons + extra


def pool_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
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
    for row in pool_rows(metrics):
        table.add_row(*row[:-1])
    return table
