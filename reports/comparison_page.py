"""Pages of several runs: a comparison of some, and the index of all in a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reports.charts import Chart, Columns, Span, Spans, shown_in
from reports.page import Answer, Cell, Figure, Page, Section, Table, render_page
from reports.palette import CAUSES, SORTS
from reports.run_directory import MANIFEST_FILE, METRICS_FILE, job_of, read_metrics
from reports.sweep_page import is_number, metric_axis
from reports.tables import COMPARED, beside_cells, format_metric
from reports.terminal import compared_paths
from simulator.analysis.every_metric import metric_of
from simulator.analysis.kernels_used import difference_in_kind
from simulator.analysis.metric import label_of
from simulator.analysis.published import metric_at

INDEX_FILE = "index.html"
_FIRST = ("days", "goodput_requests_per_second", *COMPARED)
"""Figures of which the first that a run has stands for it."""
_JOBS = {
    "a training run": "Training steps",
    "a pretraining run": "Whole training runs",
    "a serving_step run, decode": "Decode steps",
    "a serving_step run, prefill": "Prefill passes",
    "a fleet run": "Serving fleets",
    "a collective run": "Collectives",
    "a tpot_limit run": "Bounds on TPOT",
    "a offload run": "Offload servers",
    "a replay run": "Replays",
    "a sweep": "Sweeps",
}
"""What runs of a kind are called together."""
_TOLD = 3
"""Causes of a difference that an answer names."""

Runs = Sequence[tuple[str, Mapping[str, Any]]]
"""(name, metrics) of each."""


def headline_path(metrics: Mapping[str, Any]) -> str | None:
    """The figure that stands for a run; None where it has none of those that are compared."""
    return next((path for path in _FIRST if metric_at(metrics, path) is not None), None)


def comparison_page(runs: Runs) -> Page:
    """All that the page of a comparison shows."""
    first, path = runs[0][1], headline_path(runs[0][1]) or ""
    values = [metric_at(metrics, path) for _, metrics in runs]
    metric = metric_of(path)
    known = [(value, name) for value, (name, _) in zip(values, runs, strict=True)
             if value is not None]  # fmt: skip
    more = metric is not None and metric.better == "more"
    best, name = (max if more else min)(known) if known else (None, "")
    ratio = best / values[0] if best is not None and values[0] else None
    figures = tuple(
        Figure(
            _short(run),
            "-" if value is None else format_metric(path, value),
            beside_cells(metrics, path)[1],
            f"{value / values[0]:.3f} of the first" if place and value and values[0] else "",
        )
        for place, ((run, metrics), value) in enumerate(zip(runs, values, strict=True))
    )
    note = difference_in_kind(metrics for _, metrics in runs)
    attributed = all(metrics.get("attribution") for _, metrics in runs)
    sections = [
        Section("Figures side by side", (*_bars(runs, path), _table(runs)),
                f"Note: {note}." if note else ""),
        *([Section("What each step is made of", (causes_compared(runs),))] if attributed else []),
    ]  # fmt: skip
    return Page(
        kind="Comparison",
        name=", ".join(_short(run) for run, _ in runs),
        description=f"{len(runs)} runs of {_what(first)} side by side",
        answer=Answer(
            Figure(
                f"{'Highest' if more else 'Lowest'} {label_of(path)}",
                "-" if best is None else format_metric(path, best),
                note=f"{_short(name)}; {ratio:.3f} of the first" if ratio is not None else "",
            ),
            figures,
            limits=_difference(runs) if attributed else "The table says it figure by figure.",
            limits_label="Differ by",
            changed="; ".join(f"{_short(run)}: {_changes(metrics)}" for run, metrics in runs),
        ),
        beside=(),
        sections=tuple(sections),
        files=((METRICS_FILE, "the figures of every run"),),
    )


def _what(metrics: Mapping[str, Any]) -> str:
    return str(metrics["scenario"]["name"]) if "scenario" in metrics else "one job"


def _short(run: str) -> str:
    return Path(run).name


def _changes(metrics: Mapping[str, Any]) -> str:
    scenario = metrics.get("scenario") or {}
    changes = scenario.get("changes") if isinstance(scenario, Mapping) else None
    return ", ".join(changes) if changes else "nothing"


def _bars(runs: Runs, path: str) -> Iterator[Chart]:
    values = [metric_at(metrics, path) or 0.0 for _, metrics in runs]
    if any(values):
        yield Columns(
            label_of(path)[:1].upper() + label_of(path)[1:],
            "One column per run.",
            metric_axis(path, max(values)),
            "run",
            tuple(_short(run) for run, _ in runs),
            ((label_of(path), "blue", tuple(values)),),
            height=200.0,
        )


def _table(runs: Runs) -> Table:
    rows: list[tuple[str | Cell, ...]] = []
    for path in compared_paths(metrics for _, metrics in runs):
        values = [metric_at(metrics, path) for _, metrics in runs]
        first = values[0]
        cells: list[str | Cell] = [label_of(path)]
        for value, (_, metrics) in zip(values, runs, strict=True):
            text = "-" if value is None else format_metric(path, value)
            interval = beside_cells(metrics, path)[1]
            under = f"80%: {interval}" if interval else ""
            if value is not None and first and value is not first:
                under = f"{value / first:.3f} of the first{'; ' if under else ''}{under}"
            cells.append(Cell(text, value, under))
        rows.append(tuple(cells))
    heads = ("figure", *(f"|{_short(run)}" for run, _ in runs))
    return Table(heads, tuple(rows), "Ratios are to the first run.")


def causes_compared(runs: Runs) -> Spans:
    """What each step is made of, cause after cause."""
    spans = []
    for lane, (_, metrics) in enumerate(runs):
        reached = 0.0
        for cause in metrics["attribution"]:
            name, seconds = cause["name"], cause["seconds"]
            if name in CAUSES and seconds > 0:
                tip = f"{name}: {seconds:.3f} s\n{cause['meaning']}"
                spans.append(Span(lane, reached, reached + seconds, CAUSES[name], tip))
                reached += seconds
    longest = max(metrics["step_time_s"] for _, metrics in runs)
    return Spans(
        "Causes of each step",
        "Each bar is a step; its parts are the causes of its time, in the order of their pages.",
        shown_in("time", "time", longest, low=0.0, high=longest),
        tuple(_short(run) for run, _ in runs),
        tuple(spans),
        legend=tuple(SORTS.items()),
        notes=tuple(f"{metrics['step_time_s']:.3f} s" for _, metrics in runs),
        lane_height=34.0,
    )


def _difference(runs: Runs) -> str:
    """The causes in which the last step differs most from the first."""
    first, last = (
        {cause["name"]: cause["seconds"] for cause in metrics["attribution"]}
        for _, metrics in (runs[0], runs[-1])
    )
    apart = {name: last.get(name, 0.0) - first.get(name, 0.0) for name in {**first, **last}}
    most = sorted(apart, key=lambda name: -abs(apart[name]))[:_TOLD]
    told = ", ".join(f"{name} {apart[name]:+.3f} s" for name in most if abs(apart[name]) >= 5e-4)
    between = f"from {_short(runs[0][0])} to {_short(runs[-1][0])}"
    return f"{told}, {between}." if told else f"Nothing, {between}."


# -- index -----------------------------------------------------------------------------------------


def runs_in(folder: Path) -> list[tuple[Path, Mapping[str, Any]]]:
    """Run directories of a folder with their metrics, the latest first; what cannot be read is left
    out."""
    found = []
    for directory in folder.iterdir():
        if (directory / MANIFEST_FILE).is_file():
            try:
                found.append((directory, read_metrics(directory)))
            except ValueError:
                continue
    return sorted(found, key=lambda run: -(run[0] / METRICS_FILE).stat().st_mtime)


def index_page(folder: Path) -> Page:
    """The page that lists the runs of a folder, those of one job beside each other."""
    by_job: dict[str, list[tuple[Path, Mapping[str, Any]]]] = {}
    runs = runs_in(folder)
    for directory, metrics in runs:
        by_job.setdefault(_JOBS.get(job_of(metrics), "Other runs"), []).append((directory, metrics))
    sections = [Section(job, (_listed(members),)) for job, members in by_job.items()]
    latest = runs[0][0].name if runs else ""
    return Page(
        kind="Runs",
        name=folder.name,
        description=f"Runs in {folder.name}/",
        answer=Answer(
            Figure("Runs", f"{len(runs):,}", note=f"latest: {latest}" if latest else ""),
            tuple(Figure(job, f"{len(members):,}")
                  for job, members in by_job.items()),
            limits="dsv3sim compare RUN RUN --out DIRECTORY puts runs of one table side by side.",
            limits_label="Compare",
            changed="Each run's own changes stand in its row.",
        ),
        beside=(),
        sections=tuple(sections) or (Section("Runs", ("None yet.",)),),
    )  # fmt: skip


def _listed(members: Sequence[tuple[Path, Mapping[str, Any]]]) -> Table:
    paths = list(dict.fromkeys(
        path for _, metrics in members for path in _FIRST if is_number(metric_at(metrics, path))
    ))[:_TOLD + 1]  # fmt: skip
    rows = []
    for directory, metrics in members:
        at = datetime.fromtimestamp((directory / METRICS_FILE).stat().st_mtime, UTC)
        cells: list[str | Cell] = [
            Cell(directory.name, under=_changes(metrics).removeprefix("nothing"),
                 href=f"{directory.name}/report.html"),
            Cell(f"{at:%Y-%m-%d %H:%M} UTC"),
        ]  # fmt: skip
        for path in paths:
            value = metric_at(metrics, path)
            interval = beside_cells(metrics, path)[1]
            text = "-" if value is None else format_metric(path, value)
            cells.append(Cell(text, value, f"80%: {interval}" if interval else ""))
        rows.append(tuple(cells))
    heads = ("run", "written", *(f"|{label_of(path)}" for path in paths))
    return Table(heads, tuple(rows), "Press a head to sort.", sortable=True)


def write_index(folder: Path) -> Path:
    """Write the index of a folder of runs; returns its place.

    Raises:
        ValueError: it cannot be written.
    """
    from hardware_profiles.whole_files import write_whole

    place = folder / INDEX_FILE
    write_whole(place, render_page(index_page(folder)))
    return place
