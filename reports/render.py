"""Write the report directory of a training run.

report.html holds everything, plotly's JavaScript included, and opens without a network. Beside it
lie the static figures (figures/*.png, *.svg) and the trace for Perfetto (perfetto.json).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hardware_profiles.units import format_bandwidth, format_bytes, format_compute, format_seconds
from reports.charts import CHARTS
from reports.figures import FIGURES, write_figures
from reports.page import render_page
from reports.palette import PROVENANCE_COLOURS
from reports.tables import (
    PHASE_LETTERS,
    RunTables,
    beside_cells,
    format_metric,
    format_published,
    published_cells,
)
from reports.timeline import write_perfetto

REPORT_FILE = "report.html"
FIGURES_DIRECTORY = "figures"
PERFETTO_FILE = "perfetto.json"


def write_html(tables: RunTables, directory: Path) -> None:
    """Write the self-contained page."""
    (directory / REPORT_FILE).write_text(training_page(tables), encoding="utf-8")


def training_page(tables: RunTables) -> str:
    """The self-contained page."""
    return render_page(
        "report.html.j2",
        charts={name: draw(tables) for name, draw in CHARTS.items()},
        filters={"seconds": format_seconds},
        tables=tables,
        metrics=tables.metrics,
        cards=headline_cards(tables),
        published=published_rows(tables),
        operators=operator_rows(tables),
        slowdown=slowdown_rows(tables),
        shares={name: shares(tables, name) for name in ("step", "pair")},
        colours=PROVENANCE_COLOURS,
        static_figures=[f"{FIGURES_DIRECTORY}/{name}" for name in FIGURES],
        perfetto=PERFETTO_FILE,
    )


def shares(tables: RunTables, of: str) -> dict[str, float]:
    """Shares of kernel time by provenance in the "step" or the "pair", without empty ones."""
    return {
        name: share for name, share in tables.metrics["kernel_time_share"][of].items() if share > 0
    }


def headline_cards(tables: RunTables) -> list[dict[str, str]]:
    """The figures at the top: name, value, note, and what they rest on."""
    metrics = tables.metrics
    steps, pairs = _shares_text(tables, "step"), _shares_text(tables, "pair")
    step_note = f"{tables.facts['step']}"
    for row in published_rows(tables):
        if row["path"] == "step_time_s" and row["error"] is not None:
            step_note = f"published {row['published_text']}, error {row['error']:+.1%}"
    bubble = max(rank["bubble_s"] for rank in metrics["ranks"])
    peak, capacity = metrics["peak_memory_bytes"], tables.memory_capacity
    cards = [
        ("Step time", format_seconds(metrics["step_time_s"]), step_note, steps),
        (
            "Model FLOP/s per GPU",
            format_metric("tflops", metrics["tflops_per_gpu_causal"]),
            f"causal; MFU {metrics['mfu_causal']:.1%} (non-causal {metrics['mfu_non_causal']:.1%})",
            steps,
        ),
        (
            "Tokens per second and GPU",
            f"{metrics['tokens_per_second_per_gpu']:,.0f}",
            f"{metrics['gpu_hours_per_trillion_tokens']:,.0f} GPU hours per trillion tokens",
            steps,
        ),
        (
            "Overlapped pair",
            format_seconds(metrics["pair_time_s"]),
            f"4 MoE layers forward and backward, {metrics['pair_time_kind']}",
            pairs,
        ),
        (
            "Largest bubble",
            format_seconds(bubble),
            f"{bubble / metrics['step_time_s']:.1%} of the step",
            steps,
        ),
        (
            "Peak memory of a GPU",
            format_bytes(peak),
            f"{peak / capacity:.1%} of {format_bytes(capacity)}",
            "modelled: parameters, and the tensors the recorded model keeps",
        ),
    ]
    of_card = {
        "Step time": "step_time_s",
        "Model FLOP/s per GPU": "tflops_per_gpu_causal",
        "Tokens per second and GPU": "tokens_per_second_per_gpu",
        "Overlapped pair": "pair_time_s",
    }
    found = []
    for name, value, note, basis in cards:
        ideal, interval = beside_cells(metrics, of_card.get(name, ""))
        beside = [
            f"ideal {ideal}" if ideal else "",
            f"80 % interval {interval}" if interval else "",
        ]
        text = "; ".join(part for part in (*beside, note) if part)
        found.append({"name": name, "value": value, "note": text, "basis": basis})
    return found


def published_rows(tables: RunTables) -> list[dict[str, Any]]:
    """Published numbers beside the simulated ones, with units and what the latter rest on."""
    rows = []
    for path, row in zip(tables.published, tables.metrics["published"], strict=True):
        of_pair = path == "pair_time_s"
        simulated = row["simulated"]
        rows.append(
            dict(row)
            | {
                "path": path,
                "cells": published_cells(dict(row) | {"metric": path, "kind": ""}),
                "published_text": format_published(path, row["published"]),
                "simulated_text": "none"
                if simulated is None
                else format_published(path, simulated),
                "kind": tables.metrics["pair_time_kind"] if of_pair else "predicted",
                "basis": _shares_text(tables, "pair" if of_pair else "step"),
            }
        )
    return rows


def slowdown_rows(tables: RunTables) -> list[tuple[str, str, str]]:
    """Figures with and without the slowdown of all-to-all kernels beside compute."""
    without = tables.metrics["without_all_to_all_slowdown"]
    names = {"step_time_s": "step time", "pair_time_s": "overlapped pair"}
    return [
        (name, format_seconds(tables.metrics[key]), format_seconds(without[key]))
        for key, name in names.items()
    ]


def operator_rows(tables: RunTables) -> list[dict[str, Any]]:
    """Operators of the pair, those of one name and phase together, longest first."""
    frame = tables.pair_operators
    frame = frame.assign(seconds=frame["end_s"] - frame["start_s"])
    span = frame["end_s"].max()
    grouped = frame.groupby(["name", "phase", "stream"], sort=False).agg(
        kind=("kind", "first"),
        dtype=("dtype", "first"),
        calls=("name", "size"),
        seconds=("seconds", "sum"),
        low_s=("low_s", "sum"),
        high_s=("high_s", "sum"),
        flops=("flops", "sum"),
        bytes=("bytes", "sum"),
        provenance=("provenance", lambda values: ", ".join(sorted(set(values)))),
    )
    ordered = grouped.sort_values("seconds", ascending=False).reset_index()
    rows = []
    for record in ordered.to_dict("records"):
        row: dict[str, Any] = {str(name): value for name, value in record.items()}
        seconds = row["seconds"]
        row["phase"] = PHASE_LETTERS[row["phase"]]
        row["share"] = seconds / span if span else 0.0
        row["compute_rate"] = row["flops"] / seconds if seconds else 0.0
        row["byte_rate"] = row["bytes"] / seconds if seconds else 0.0
        row["compute_text"] = format_compute(row["compute_rate"], digits=3) if row["flops"] else ""
        row["byte_text"] = format_bandwidth(row["byte_rate"], digits=3) if row["bytes"] else ""
        row["interval_text"] = " to ".join(
            format_seconds(row[bound], digits=3) for bound in ("low_s", "high_s")
        )
        rows.append(row)
    return rows


REPORTS: Mapping[str, Callable[[RunTables, Path], None]] = {
    "page": write_html,
    "figures": lambda tables, directory: write_figures(tables, directory / FIGURES_DIRECTORY),
    "perfetto": lambda tables, directory: write_perfetto(tables, directory / PERFETTO_FILE),
}
"""What a run directory shows: name -> function that writes it from the tables of a run."""


def _shares_text(tables: RunTables, of: str) -> str:
    parts = [f"{share:.0%} {name}" for name, share in shares(tables, of).items()]
    return f"kernel time {', '.join(parts)}"
