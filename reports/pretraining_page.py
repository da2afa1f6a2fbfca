"""The page of a whole training run.

It draws one run over time, the one whose length lies in the middle; causes and intervals are of all
runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hardware_profiles.units import format_bytes, format_seconds, unit_factor
from reports.charts import (
    ChartAxis,
    Columns,
    Curve,
    Lines,
    Reference,
    Span,
    Spans,
    binned,
    shown_in,
)
from reports.page import (
    Answer,
    Figure,
    Page,
    PageBlock,
    Section,
    Table,
    published_section,
    scenario_page,
)
from reports.pretraining import CAUSES, headline_cells
from reports.tables import changed_text, format_metric
from simulator.analysis.every_metric import leading
from simulator.analysis.metric import heading_of, label_of
from simulator.analysis.pretraining import PretrainingRun
from simulator.analysis.run import Run
from simulator.execution.pretraining import RunLog

_DAY = unit_factor("d", "time")
_TRILLION = 10.0**12

FILES = (
    ("incidents.parquet", "what stopped or slowed every run, and when"),
    ("runs.parquet", "one row per run: its length and seconds by cause"),
)


def pretraining_page(run: Run[PretrainingRun], metrics: Mapping[str, Any], middle: int) -> Page:
    """All that the page of a whole training run shows.

    Args:
        middle: place of the run that is drawn.
    """
    log = run.result.logs[middle]
    causes = Table(
        ("cause", "|days", "|share"),
        (
            *(
                (label, f"{metrics['days_by_cause'][cause]:.3f}",
                 f"{metrics['share_by_cause'][cause]:.2%}")
                for cause, (label, _) in CAUSES.items()
            ),
            ("the run", f"{metrics['days']:.3f}", "100.00%"),
        ),
        "Mean over the runs; the causes sum to the run.",
        marked=frozenset({len(CAUSES)}),
    )  # fmt: skip
    figures = Table(
        ("figure", "|expected", "|80% interval", "|nothing fails"),
        tuple(
            (label_of(path), *headline_cells(path, metrics))
            for path in leading("pretraining")
            if path in metrics
        ),
        f"{metrics['runs']} runs of different seeds on {metrics['gpus']:,} GPUs.",
    )
    drawn = f"Run {middle} of {metrics['runs']}, of middle length."
    sections = [
        Section("One run over time", (progress_chart(run.result, log), states_chart(log)), drawn),
        Section("Where the time goes", (causes_chart(metrics), causes)),
        Section("Length of the runs", (days_chart(run.result.logs),)),
        Section("Figures", (figures,)),
        Section("Phases", (_phases(metrics),)),
        *_checkpoints(metrics),
    ]
    return scenario_page(
        run.scenario,
        kind="Whole training run",
        answer=_answer(run, metrics),
        beside=published_section(metrics["published"]),
        sections=sections,
        files=FILES,
    )


def _answer(run: Run[PretrainingRun], metrics: Mapping[str, Any]) -> Answer:
    value, interval, _ = headline_cells("days", metrics)
    alone = metrics["without_failures"]["days"]
    figures = [
        Figure(heading_of(path), *headline_cells(path, metrics)[:2])
        for path in leading("pretraining")
        if path in metrics and path != "days"
    ]
    beside = {c: s for c, s in metrics["share_by_cause"].items() if c != "training" and s > 0}
    most = sorted(beside, key=lambda cause: -beside[cause])[:3]
    named = ", ".join(f"{CAUSES[cause][0]} {beside[cause]:.2%}" for cause in most)
    limits = f"The steps themselves: {metrics['goodput']:.2%} of the time trains."
    if named:
        limits += f" Of the rest most is {named}."
    return Answer(
        Figure("Length of the run", f"{value} days", f"{interval} days",
               f"{alone:.1f} days if nothing failed"),
        tuple(figures),
        limits=limits,
        changed=changed_text(run.scenario),
    )  # fmt: skip


def progress_chart(run: PretrainingRun, log: RunLog) -> Lines:
    """Tokens trained on for good over the days of one run."""
    counted = np.cumsum(np.concatenate([phase.sequences * 1.0 for phase in run.phases]))
    lengths = np.concatenate(
        [np.full(len(phase.seconds), phase.step.sequence_length) for phase in run.phases]
    )
    tokens = np.cumsum(np.diff(counted, prepend=0.0) * lengths)
    steps = np.cumsum(np.concatenate([phase.seconds for phase in run.phases]))
    times: list[float] = []
    seen: list[float] = []
    for part in log.stretches:
        times += [part.from_s, part.to_s]
        passed = run.plan.passed(part.position, part.speed) + part.to_s - part.from_s
        until = run.plan.position_at(passed, part.speed)
        done = [run.plan.trained(at) for at in (part.position, until)]
        seen += np.interp(done, steps, tokens).tolist()
    reached, ends = 0.0, []
    for phase in run.phases:
        reached += float(phase.seconds.sum())
        ends.append((log.reached_s(run.plan, reached), phase.phase.name))
    # Phases that end close together would write over each other: the last of them speaks.
    told = [
        Reference(at, f"end of {name}")
        for place, (at, name) in enumerate(ends[:-1])
        if ends[place + 1][0] - at > 0.02 * log.wall_s or place == 0
    ]
    return Lines(
        "Tokens trained on",
        "Work that a failure takes back is not counted.",
        _days_of(log),
        ChartAxis("tokens", "trillion", _TRILLION),
        (Curve("tokens", "blue", times, seen),),
        upright=tuple(told[:1]),
        height=230.0,
        zoom="run",
    )


def _days_of(log: RunLog) -> ChartAxis:
    return shown_in("time", "time", log.wall_s, low=0.0, high=log.wall_s)


def states_chart(log: RunLog) -> Spans:
    """What the run did when, and what stopped or slowed it."""
    spans = [
        Span(0, start, end, CAUSES[what][1],
             f"{CAUSES[what][0]}\nday {start / _DAY:.2f}, for {format_seconds(end - start)}")
        for start, end, what in log.states
    ]  # fmt: skip
    marks = tuple(
        (1, incident.at_s, "red",
         f"{incident.kind.replace('_', ' ')}, day {incident.at_s / _DAY:.2f}\n"
         f"takes back {format_seconds(incident.lost_s)} of work")
        for incident in log.incidents
    )  # fmt: skip
    seen = {what for _, _, what in log.states}
    return Spans(
        "What the run did",
        "Above: what the time went to. Below: what stopped or slowed it.",
        _days_of(log),
        ("state", "incidents"),
        tuple(spans),
        legend=tuple(entry for cause, entry in CAUSES.items() if cause in seen),
        marks=marks,
        lane_height=34.0,
        zoom="run",
    )


def causes_chart(metrics: Mapping[str, Any]) -> Spans:
    """Time beside the training itself, by cause."""
    shown = [cause for cause in CAUSES if cause != "training"]
    seconds = [metrics["days_by_cause"][cause] * _DAY for cause in shown]
    return Spans(
        "What the run needs beside its training",
        "Mean over the runs.",
        ChartAxis("time", "h", unit_factor("h", "time"), low=0.0),
        tuple(CAUSES[cause][0] for cause in shown),
        tuple(
            Span(lane, 0.0, value, CAUSES[cause][1],
                 f"{CAUSES[cause][0]}: {format_seconds(value)}")
            for lane, (cause, value) in enumerate(zip(shown, seconds, strict=True))
        ),
        notes=tuple(
            f"{value / unit_factor('h', 'time'):.2f} h, {metrics['share_by_cause'][cause]:.2%}"
            for cause, value in zip(shown, seconds, strict=True)
        ),
    )  # fmt: skip


def days_chart(logs: Sequence[RunLog]) -> Columns:
    """How long the runs of all seeds are."""
    names, counts = binned([log.wall_s for log in logs], ChartAxis("length", "d", _DAY))
    return Columns(
        "Runs by length",
        "Failures, and the interval of the step time.",
        ChartAxis("runs"),
        "length (d), from",
        names,
        (("runs", "blue", counts),),
        height=180.0,
    )


def _phases(metrics: Mapping[str, Any]) -> Table:
    return Table(
        ("phase", "|tokens", "|steps", "|sequence", "|first step", "|step", "|ideal step",
         "|days", "|GPU-hours", "|GPU-hours per trillion tokens"),
        tuple(
            (row["name"], f"{row['tokens']:.4g}", f"{row['steps']:,}",
             f"{row['sequence_length']:,}", format_seconds(row["first_step_time_s"]),
             format_seconds(row["step_time_s"]), format_seconds(row["ideal_step_time_s"]),
             f"{row['days']:.2f}", f"{row['gpu_hours']:,.0f}",
             format_metric("gpu_hours_per_trillion_tokens", row["gpu_hours_per_trillion_tokens"]))
            for row in metrics["phases"]
        ),
        "",
    )  # fmt: skip


def _checkpoints(metrics: Mapping[str, Any]) -> list[Section]:
    checkpoint = metrics["checkpoint"]
    incidents = Table(
        ("incident", "|in a run, mean"),
        tuple((kind.replace("_", " "), f"{n:.2f}") for kind, n in metrics["incidents"].items()),
        "",
    )
    blocks: tuple[PageBlock, ...] = (incidents,)
    if checkpoint:
        later = (
            f", and it can be read {format_seconds(checkpoint['write_s'])} later"
            if checkpoint["write_s"]
            else ""
        )
        text = (
            f"A checkpoint holds {format_bytes(checkpoint['size_bytes'])}, every "
            f"{format_seconds(checkpoint['interval_s'])} of training; training stops for "
            f"{format_seconds(checkpoint['stall_s'])}{later}. All nodes read it in "
            f"{format_seconds(checkpoint['reload_s'])}."
        )
        blocks = (text, incidents)
    return [Section("Checkpoints and incidents", blocks)]
