"""Show a whole training run: tables for the terminal, and its run directory with a page.

The page draws one run over time, the one whose length lies in the middle; causes and intervals are
of all runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from hardware_profiles.units import format_bytes, format_seconds, unit_factor
from reports.figures import STYLE
from reports.page import render_page
from reports.palette import GRID, INK, MUTED
from reports.run_directory import write_run
from reports.tables import format_interval, format_metric, published_cells, published_table
from simulator.scenario.files import write_resolved

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    from simulator.analysis.pretraining import PretrainingRun
    from simulator.analysis.run import Run
    from simulator.execution.pretraining import RunLog

REPORT_FILE = "report.html"

CAUSES = {
    "training": ("training", "#3f72af"),
    "slow": ("slow nodes", "#8fb3d1"),
    "checkpoints": ("checkpoints", "#6f9c76"),
    "lost": ("work done again", "#b5473c"),
    "detection": ("until the failure is seen", "#d9813b"),
    "restart": ("restart", "#e3b778"),
    "waiting_for_nodes": ("waiting for a node", "#8c6bb1"),
    "reload": ("reading the checkpoint", "#b9b9b4"),
}
"""What a cause of time is called, and its colour."""

HEADLINES = {
    "days": "days",
    "gpu_hours": "GPU-hours",
    "cost_usd": "cost",
    "tokens_per_day": "tokens per day",
    "gpu_hours_per_trillion_tokens": "GPU-hours per trillion tokens",
    "goodput": "goodput",
    "mfu_causal": "MFU of the whole run (causal)",
    "interruptions_per_day": "interruptions per day",
}
"""Figures of the first table, in order, and what they are called."""

_DAY = unit_factor("d", "time")


def pretraining_tables(name: str, metrics: Mapping[str, Any]) -> list[Table]:
    """Headlines with intervals, time by cause, phases, and published figures."""
    from rich.table import Table

    first = Table(title=name, title_justify="left")
    first.add_column("figure")
    for column in ("expected", "80 % interval", "nothing fails"):
        first.add_column(column, justify="right", no_wrap=True)
    for path, label in HEADLINES.items():
        if path in metrics:
            first.add_row(label, *_headline(path, metrics))
    first.caption = f"{metrics['runs']} runs of different seeds on {metrics['gpus']:,} GPUs"
    first.caption_justify = "left"
    phases = Table(title="phases", title_justify="left")
    phases.add_column("phase")
    for column in ("tokens", "steps", "step", "days", "GPU-hours"):
        phases.add_column(column, justify="right", no_wrap=True)
    for row in metrics["phases"]:
        phases.add_row(
            row["name"],
            f"{row['tokens']:.4g}",
            f"{row['steps']:,}",
            format_seconds(row["step_time_s"]),
            f"{row['days']:.2f}",
            f"{row['gpu_hours']:,.0f}",
        )
    tables = [first, causes_table("where the time goes", metrics), phases]
    if metrics["published"]:
        tables.append(published_table(metrics["published"]))
    return tables


def causes_table(title: str, metrics: Mapping[str, Any]) -> Table:
    """Time of the run by cause; the causes sum to it."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("cause")
    for column in ("days", "share"):
        table.add_column(column, justify="right")
    for cause, (label, _) in CAUSES.items():
        days, share = metrics["days_by_cause"][cause], metrics["share_by_cause"][cause]
        table.add_row(label, f"{days:.3f}", f"{share:.2%}")
    table.add_section()
    table.add_row("the run", f"{metrics['days']:.3f}", "100.00%")
    return table


def _headline(path: str, metrics: Mapping[str, Any]) -> tuple[str, str, str]:
    alone = metrics["without_failures"].get(path)
    return (
        format_metric(path, metrics[path]),
        format_interval(path, metrics["interval_80"][path]),
        "" if alone is None else format_metric(path, alone),
    )


def write_pretraining_run(
    run: Run[PretrainingRun], metrics: Mapping[str, Any], directory: Path
) -> None:
    """Write page, figures and tables; the directory appears whole or not at all."""
    import matplotlib

    middle = middle_run(run.result.logs)

    def write_report(draft: Path) -> None:
        with matplotlib.rc_context(STYLE):
            figures = {
                "timeline": progress_figure(run.result, run.result.logs[middle]),
                "causes": causes_figure(metrics),
                "days": days_figure(run.result.logs),
            }
            for name, figure in figures.items():
                figure.savefig(draft / f"{name}.png", dpi=150)
                figure.savefig(draft / f"{name}.svg", metadata={"Date": None})
        drawn = {name: _svg(draft / f"{name}.svg") for name in figures}
        page = _page(run, metrics, drawn, middle=middle)
        (draft / REPORT_FILE).write_text(page, encoding="utf-8")

    write_run(
        directory,
        scenario=write_resolved(run.scenario),
        metrics=metrics,
        tables={"incidents": incident_table(run.result), "runs": run_table(run.result)},
        write_report=write_report,
    )


def middle_run(logs: Sequence[RunLog]) -> int:
    """Place of the run whose length is the median, of an even number the shorter of the two."""
    return int(np.argsort([log.wall_s for log in logs], kind="stable")[(len(logs) - 1) // 2])


def incident_table(run: PretrainingRun) -> pd.DataFrame:
    """One row per incident of every run: when, of what kind, and what it cost."""
    import pandas as pd

    rows = [
        (place, incident.at_s, incident.kind, incident.lost_s)
        for place, log in enumerate(run.logs)
        for incident in log.incidents
    ]
    return pd.DataFrame(rows, columns=["run", "at_s", "kind", "lost_s"])


def run_table(run: PretrainingRun) -> pd.DataFrame:
    """One row per run: its length, its step times over the expected ones, seconds by cause."""
    import pandas as pd

    return pd.DataFrame(
        {
            "wall_s": [log.wall_s for log in run.logs],
            "slower": run.slower,
            **{f"{cause}_s": [log.seconds[cause] for log in run.logs] for cause in CAUSES},
        }
    )


def progress_figure(run: PretrainingRun, log: RunLog) -> Figure:
    """Tokens trained on for good over the days of one run, and what stopped it."""
    figure, (above, below) = _figure(5.4, 4, 1)
    counted = np.cumsum(np.concatenate([phase.sequences * 1.0 for phase in run.phases]))
    lengths = np.concatenate(
        [np.full(len(phase.seconds), phase.step.sequence_length) for phase in run.phases]
    )
    tokens = np.cumsum(np.diff(counted, prepend=0.0) * lengths)
    steps = np.cumsum(np.concatenate([phase.seconds for phase in run.phases]))
    days, seen = [], []
    for part in log.stretches:
        days += [part.from_s / _DAY, part.to_s / _DAY]
        passed = run.plan.passed(part.position, part.speed) + part.to_s - part.from_s
        until = run.plan.position_at(passed, part.speed)
        done = [run.plan.trained(at) for at in (part.position, until)]
        ends = np.interp(done, steps, tokens)
        seen += (ends / 1e12).tolist()
    above.plot(days, seen, color=CAUSES["training"][1], linewidth=1.4)
    reached = 0.0
    for phase in run.phases:
        reached += float(phase.seconds.sum())
        at = log.reached_s(run.plan, reached) / _DAY
        above.axvline(at, color=MUTED, linewidth=0.8, linestyle=":")
        above.annotate(
            phase.phase.name,
            (at, 0.02),
            xycoords=("data", "axes fraction"),
            ha="right",
            fontsize=8,
            color=MUTED,
            rotation=90,
            va="bottom",
        )
    above.set_ylabel("tokens (trillion)")
    above.grid(color=GRID)
    above.set_title("One run of middle length", loc="left")
    for cause, (label, colour) in CAUSES.items():
        spans = [(a / _DAY, (b - a) / _DAY) for a, b, what in log.states if what == cause]
        if spans:
            below.broken_barh(spans, (0, 1), color=colour, label=label)
    stops = [incident.at_s / _DAY for incident in log.incidents]
    below.plot(stops, [1.15] * len(stops), "v", color=INK, markersize=3, clip_on=False)
    below.set_yticks([])
    below.set_ylim(0, 1.2)
    below.set_xlabel("time (days); triangles: what stopped or slowed the run")
    for axes in (above, below):
        axes.set_xlim(0, log.wall_s / _DAY)
        axes.set_axisbelow(True)
    handles, names = below.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    return figure


def causes_figure(metrics: Mapping[str, Any]) -> Figure:
    """Time beside the training itself, by cause."""
    figure, (axes,) = _figure(3.2, 1)
    shown = [cause for cause in CAUSES if cause != "training"]
    hours = [metrics["days_by_cause"][cause] * 24 for cause in shown]
    axes.barh([CAUSES[cause][0] for cause in shown], hours, color=[CAUSES[c][1] for c in shown])
    for place, (cause, value) in enumerate(zip(shown, hours, strict=True)):
        share = metrics["share_by_cause"][cause]
        axes.text(value, place, f" {value:.1f} h, {share:.2%}", va="center", fontsize=8, color=INK)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("time (hours of the run), mean over the runs")
    axes.xaxis.grid(visible=True, color=GRID)
    axes.set_axisbelow(True)
    axes.set_title("What the run needs beside its training", loc="left")
    return figure


def days_figure(logs: Sequence[RunLog]) -> Figure:
    """How long the runs of all seeds are."""
    figure, (axes,) = _figure(2.8, 1)
    days = [log.wall_s / _DAY for log in logs]
    axes.hist(days, bins=min(30, max(5, len(days) // 6)), color=CAUSES["training"][1])
    axes.set_xlabel("days")
    axes.set_ylabel("runs")
    axes.yaxis.grid(visible=True, color=GRID)
    axes.set_axisbelow(True)
    axes.set_title("Length of the runs: failures and the interval of the step time", loc="left")
    return figure


def _page(
    run: Run[PretrainingRun],
    metrics: Mapping[str, Any],
    figures: Mapping[str, Markup],
    *,
    middle: int,
) -> str:
    return render_page(
        "pretraining.html.j2",
        filters={"seconds": format_seconds, "bytes": format_bytes},
        name=run.scenario.name,
        description=run.scenario.file.description,
        metrics=metrics,
        headlines=[
            (label, *_headline(path, metrics))
            for path, label in HEADLINES.items()
            if path in metrics
        ],
        causes=[
            (label, metrics["days_by_cause"][cause], metrics["share_by_cause"][cause])
            for cause, (label, _) in CAUSES.items()
        ],
        published=[published_cells(row) for row in metrics["published"]],
        checkpoint=metrics["checkpoint"],
        figures=figures,
        scenario=write_resolved(run.scenario),
        middle=middle,
    )


def _svg(path: Path) -> Markup:
    text = path.read_text(encoding="utf-8")
    # Drawn here: matplotlib has escaped every text in it.
    return Markup(text[text.index("<svg") :])


def _figure(height: float, *rows: float) -> tuple[Figure, Sequence[Axes]]:
    """A figure of axes below each other, with their heights."""
    # Figure without pyplot draws with the Agg canvas and keeps no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, height), layout="constrained")
    drawn = figure.subplots(len(rows), 1, height_ratios=rows, squeeze=False)
    return figure, [row[0] for row in drawn]
