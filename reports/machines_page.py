"""The page of one job on several machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from hardware_profiles.units import format_seconds
from reports.charts import ChartAxis, Columns
from reports.machines import Machines, power_notes, rows_side_by_side, shown_on
from reports.page import Answer, Cell, Figure, Page, Section, Table
from reports.palette import SERIES
from simulator.analysis.kernels_used import difference_in_kind
from simulator.analysis.machines import ON_CLUSTERS
from simulator.analysis.metric import Metric, heading_of


def machines_page(name: str, changes: Sequence[str], machines: Machines) -> Page:
    """All that the page of a comparison of clusters shows.

    Args:
        name: the scenario.
        changes: texts "path=value" of it.
        machines: one at least can run the job.
    """
    able = [machine for machine in machines if "reason" not in machine]
    unable = [machine for machine in machines if "reason" in machine]
    leading = [metric for metric in ON_CLUSTERS if metric.leads]
    headline, *others = (_best(able, metric) for metric in leading)
    notes = [f"Note: {note}." for note in (difference_in_kind(able), *power_notes(able)) if note]
    sections = [
        Section(
            "Side by side",
            (*map(partial(_columns, able), leading, SERIES), _table(able)),
            " ".join(notes),
        ),
        *([Section("Clusters that cannot run it", (_unable(unable),))] if unable else []),
    ]
    return Page(
        kind="Comparison of clusters",
        name=name,
        description=f"{name} on {', '.join(machine['cluster'] for machine in machines)}",
        answer=Answer(
            headline,
            (
                *others,
                *(Figure(machine["cluster"], format_seconds(machine["step_time_s"]),
                         note=f"step on {machine['gpus']:,} {machine['gpu']}")
                  for machine in able),
            ),
            limits="; ".join(f"{machine['cluster']}: {machine['reason']}" for machine in unable)
            or "No cluster.",
            limits_label="Cannot run it",
            changed=", ".join(changes) if changes else "Nothing but the cluster.",
        ),
        beside=(),
        sections=tuple(sections),
        files=(("metrics.json", "the figures of every cluster"),),
    )  # fmt: skip


def _best(able: Machines, metric: Metric) -> Figure:
    """The cluster that a figure is best on."""
    most = metric.better == "more"
    best = (max if most else min)(able, key=lambda machine: machine[metric.name])
    label = f"{'Most' if most else 'Least'} {metric.label}"
    return Figure(label, shown_on(best, metric), note=best["cluster"])


def _columns(able: Machines, metric: Metric, hue: str) -> Columns:
    title = heading_of(metric.name)
    return Columns(
        title,
        "One column per cluster.",
        ChartAxis(metric.unit, low=0.0),
        "cluster",
        tuple(machine["cluster"] for machine in able),
        ((title, hue, tuple(float(machine[metric.name]) for machine in able)),),
        height=170.0,
    )


def _table(able: Machines) -> Table:
    rows: Iterator[tuple[str | Cell, ...]] = (
        (
            label,
            *(
                Cell(text, under="" if ratio is None else f"{ratio:.3f} of the first")
                for text, ratio in cells
            ),
        )
        for label, cells in rows_side_by_side(able)
    )
    heads = ("figure", *(f"|{machine['cluster']}" for machine in able))
    return Table(heads, tuple(rows), "Ratios are to the first cluster that can run the job.")


def _unable(unable: Machines) -> Table:
    return Table(
        ("cluster", "reason"),
        tuple((machine["cluster"], machine["reason"]) for machine in unable),
        "",
    )
