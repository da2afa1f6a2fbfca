"""The page of a fleet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hardware_profiles.units import format_seconds
from reports.charts import ChartAxis, Curve, Lines, Reference, share_axis, shown_in
from reports.fleet import (
    LATENCIES,
    LATENCY_COLUMNS,
    figures_of_pools,
    format_figure,
    interval_cell,
    kernels_of_phases,
    latency_cells,
    pool_rows,
    request_counts,
    window_text,
)
from reports.page import (
    Answer,
    Cell,
    Figure,
    Page,
    Section,
    Table,
    published_section,
    scenario_page,
)
from reports.palette import SERIES
from reports.tables import changed_text
from simulator.analysis.fleet_records import FleetRecords, tpot_s, ttft_s
from simulator.analysis.metric import heading_of, label_of
from simulator.execution.fleet.log import Column
from simulator.scenario.files import Scenario

# Panels over time: title, axis, what it shows, {series: name}.
PANELS: Sequence[tuple[str, ChartAxis, str, Mapping[str, str]]] = (
    (
        "Requests over time",
        ChartAxis("requests"),
        "In the whole service, and of these those that wait.",
        {
            "in_system": "in the service",
            "waiting_prefill": "waiting for prefill",
            "waiting_decode": "waiting for decode",
        },
    ),
    (
        "Tokens over time",
        ChartAxis("tokens", "tokens/s"),
        "Prompt tokens whose prefill has ended, and tokens of answers.",
        {"input_tokens_per_second": "prompts", "output_tokens_per_second": "answers"},
    ),
    (
        "Arrivals over time",
        ChartAxis("arrivals", "requests/s"),
        "What comes in, before anything of it is rejected.",
        {"arrivals_per_second": "arrivals"},
    ),
    (
        "Batch of a decode instance over time",
        ChartAxis("requests"),
        "Requests that one instance decodes at once, mean.",
        {"batch": "batch"},
    ),
    (
        "KV cache over time",
        share_axis("in use", low=0.0, high=1.0),
        "Where requests decode.",
        {"kv_occupancy": "KV cache"},
    ),
)

_LIMITED = ("ttft_s", "tpot_s")
"""Latencies that a service level limits."""
_LATENCY_BINS = 120

FILES = (
    ("time_series.parquet", "the series over time below"),
    ("requests.parquet", "one row per request: arrival, queue, TTFT, TPOT, instances"),
    ("perfetto.json", "instances, requests and counters of part of the run; opens in Perfetto"),
)


def fleet_page(
    scenario: Scenario, metrics: Mapping[str, Any], records: FleetRecords | None = None
) -> Page:
    """All that the page of a fleet shows.

    Args:
        records: every request, for latencies over time; without them they are left out.
    """
    latencies = Table(
        ("latency", *(f"|{column}" for column in LATENCY_COLUMNS)),
        tuple(
            (
                Cell(label_of(path), under=metrics["definitions"][path]),
                *latency_cells(path, metrics),
            )
            for path in LATENCIES
        ),
        f"Window: {window_text(metrics)}.",
    )
    figures = Table(
        ("figure", "|simulated", "|80% interval"),
        (
            *(
                (Cell(label_of(path), under=metrics["definitions"].get(path, "")),
                 format_figure(path, metrics[path]), interval_cell(path, metrics))
                for path in figures_of_pools(metrics)
            ),
            *(
                (Cell(f"requests {name}", under="" if number else "each ends exactly once"),
                 f"{count:,}", "")
                for number, (name, count) in enumerate(request_counts(metrics["requests"]))
            ),
        ),
        "",
    )  # fmt: skip
    cliff = metrics.get("goodput_cliff")
    notes = [f"{cliff[0].upper()}{cliff[1:]}."] if cliff else []
    return scenario_page(
        scenario,
        kind="Serving fleet",
        answer=_answer(scenario, metrics),
        beside=published_section(metrics["published"]),
        sections=[
            Section("Latencies", (latency_chart(metrics), latencies)),
            Section("Over time", tuple(time_charts(metrics, records)),
                    "Means over equal bins. All panels zoom together: drag over a part or press "
                    "+, double-click or press 0 to see all."),
            Section("Figures", (figures, *notes)),
        ],
        provenance=[_pools(metrics)],
        files=FILES,
    )  # fmt: skip


def _answer(scenario: Scenario, metrics: Mapping[str, Any]) -> Answer:
    limit = metrics["service_level"]
    figures = [
        *(Figure(heading_of(f"{path}.p90"), *_latency(path, "p90", metrics),
                 note=f"asked for: {format_seconds(limit[path])}") for path in _LIMITED),
        *(Figure(heading_of(path),
                 format_figure(path, metrics[path]), interval_cell(path, metrics))
          for path in ("output_tokens_per_second_per_node", "nodes",
                       "cost_usd_per_million_output_tokens")),
        Figure("Requests finished", f"{metrics['requests']['finished']:,}",
               note=f"of {metrics['requests']['arrived']:,} that arrived"),
    ]  # fmt: skip
    return Answer(
        Figure(
            "Goodput: requests per second that meet the service level",
            format_figure("goodput_requests_per_second", metrics["goodput_requests_per_second"]),
            interval_cell("goodput_requests_per_second", metrics),
        ),
        tuple(figures),
        limits=limits_text(metrics),
        changed=changed_text(scenario),
        verdict=metrics["verdict"] or "",
    )


def _latency(path: str, statistic: str, metrics: Mapping[str, Any]) -> tuple[str, str]:
    value = metrics[path][statistic]
    interval = metrics.get("interval_80", {}).get(f"{path}.{statistic}")
    ends = "" if interval is None else " to ".join(format_seconds(e, digits=3) for e in interval)
    return ("-" if value is None else format_seconds(value, digits=3)), ends


def limits_text(metrics: Mapping[str, Any]) -> str:
    """Which part of the service level is missed, and which pool has least room."""
    parts = []
    for path in _LIMITED:
        found, limit = metrics[path]["p90"], metrics["service_level"][path]
        if found is not None and found > limit:
            parts.append(
                f"{label_of(path)}: its p90 is {format_seconds(found, digits=3)}, "
                f"{format_seconds(limit)} was asked for"
            )
    pools = {name: pool for name, pool in metrics["pools"].items() if pool["utilisation"]}
    if pools:
        busiest = max(pools, key=lambda name: pools[name]["utilisation"])
        fullest = max(pools, key=lambda name: pools[name]["kv_occupancy"] or 0.0)
        parts.append(
            f"the {busiest} pool is busy {pools[busiest]['utilisation']:.0%} of the time, "
            f"KV cache of the {fullest} pool is {pools[fullest]['kv_occupancy'] or 0.0:.0%} full"
        )
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else "Nothing that was measured."


def latency_chart(metrics: Mapping[str, Any]) -> Lines:
    """Cumulative distributions of the latencies, with what was asked for."""
    curves = metrics["distributions"]
    largest = max((max(curve["value_s"], default=1.0) for curve in curves.values()), default=1.0)
    return Lines(
        "Latencies: share that takes no longer",
        "Of requests that end in the window; ITL of gaps between two tokens. Dashed: the service "
        "level.",
        ChartAxis("time", "s", log=True, low=max(1e-3, largest / 1e5)),
        share_axis("share", low=0.0, high=1.0),
        tuple(
            Curve(label_of(path), hue, curve["value_s"], curve["share"])
            for (path, curve), hue in zip(curves.items(), SERIES, strict=False)
        ),
        upright=tuple(
            Reference(metrics["service_level"][path], f"{label_of(path)} limit")
            for path in _LIMITED
        ),
    )


def time_charts(metrics: Mapping[str, Any], records: FleetRecords | None) -> list[Lines]:
    """One chart per panel, on one axis of time."""
    series = metrics["time_series"]
    times = series["time_s"]
    latest = max(times, default=1.0)
    x = shown_in("time", "time", latest, low=0.0, high=latest)
    charts = [
        Lines(
            title, caption, x, axis,
            tuple(Curve(name, hue, times, series[column])
                  for (column, name), hue in zip(names.items(), SERIES, strict=False)),
            height=170.0, zoom="fleet",
        )
        for title, axis, caption, names in PANELS
    ]  # fmt: skip
    if records is None or not len(times):
        return charts
    requests = records.all_requests()
    latencies = [
        _latency_over_time(
            label_of(path), requests["arrival_s"], of(requests), metrics["service_level"][path], x
        )
        for path, of in zip(_LIMITED, (ttft_s, tpot_s), strict=True)
    ]
    return [*latencies, *charts]


def _latency_over_time(
    name: str, arrivals: Column, seconds: Column, limit: float, x: ChartAxis
) -> Lines:
    """Median and 90th percentile of a latency by arrival, under what was asked for."""
    known = np.isfinite(seconds) & (arrivals <= (x.high or np.inf))
    edges = np.linspace(0.0, float(x.high or 1.0), _LATENCY_BINS + 1)
    place = np.clip(np.digitize(arrivals[known], edges) - 1, 0, _LATENCY_BINS - 1)
    groups = [seconds[known][place == number] for number in range(_LATENCY_BINS)]
    middles = ((edges[:-1] + edges[1:]) / 2).tolist()
    curves = []
    for quantile, told, hue in ((0.5, "median", "blue"), (0.9, "90th percentile", "orange")):
        values = [float(np.quantile(own, quantile)) if len(own) else None for own in groups]
        curves.append(Curve(told, hue, middles, values))
    highest = max([limit, *(v for curve in curves for v in curve.y if v is not None)])
    return Lines(
        f"{name} over time",
        "By arrival of the request. Dashed: the service level.",
        x,
        shown_in(name, "time", highest),
        tuple(curves),
        across=(Reference(limit, f"asked for: {format_seconds(limit)}"),),
        height=170.0,
        zoom="fleet",
    )


def _pools(metrics: Mapping[str, Any]) -> Section:
    copies = metrics["replicas"]
    rows = [(*row[:-1], row[-1]) for row in pool_rows(metrics)]
    table = Table(
        ("pool", "|instances", "|nodes", "|busy", "|batch of an instance", "|KV cache in use",
         "step times from"),
        tuple(rows),
        f"Of one of {copies} equal replicas." if copies > 1 else "",
    )  # fmt: skip
    whose = Table(("what", "which"), tuple(kernels_of_phases(metrics)), "")
    intervals = (
        "Intervals: all iterations at the low or the high end of the step model's 80% interval; "
        "requests and lengths are taken as given."
        if metrics.get("interval_80")
        else ""
    )
    return Section("Pools, and where step times come from", (table, whose), intervals)
