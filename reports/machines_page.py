"""The page of one job on several machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hardware_profiles.units import format_seconds
from reports.charts import ChartAxis, Columns
from reports.machines import COMPARED, ROWS, power_notes
from reports.page import Answer, Cell, Figure, Page, Section, Table
from simulator.analysis.kernels_used import difference_in_kind

_CHARTS = (
    ("tokens_per_second_per_gpu", "Tokens per second per GPU", "tokens/s", "blue"),
    ("usd_per_million_tokens", "Cost of a million tokens", "USD", "orange"),
    ("joules_per_token", "Energy of a token", "J", "green"),
)
"""(field, title, unit, hue)"""

Machines = Sequence[Mapping[str, Any]]


def machines_page(name: str, changes: Sequence[str], machines: Machines) -> Page:
    """All that the page of a comparison of clusters shows.

    Args:
        name: the scenario.
        changes: texts "path=value" of it.
        machines: as `dsv3sim compare --cluster --json` prints them; one at least can run the job.
    """
    able = [machine for machine in machines if "reason" not in machine]
    unable = [machine for machine in machines if "reason" in machine]
    best = max(able, key=lambda machine: machine["tokens_per_second_per_gpu"])
    cheapest = min(able, key=lambda machine: machine["usd_per_million_tokens"])
    least = min(able, key=lambda machine: machine["joules_per_token"])
    notes = [f"Note: {note}." for note in (difference_in_kind(able), *power_notes(able)) if note]
    sections = [
        Section(
            "Side by side",
            (*(_columns(able, *of) for of in _CHARTS), _table(able)),
            " ".join(notes),
        ),
        *([Section("Clusters that cannot run it", (_unable(unable),))] if unable else []),
    ]
    return Page(
        kind="Comparison of clusters",
        name=name,
        description=f"{name} on {', '.join(machine['cluster'] for machine in machines)}",
        answer=Answer(
            Figure("Most tokens per second per GPU", f"{best['tokens_per_second_per_gpu']:,.0f}",
                   note=best["cluster"]),
            (
                Figure("Cheapest million tokens", f"{cheapest['usd_per_million_tokens']:.3f} USD",
                       note=cheapest["cluster"]),
                Figure("Least energy per token", f"{least['joules_per_token']:.3f} J",
                       note=least["cluster"]),
                *(Figure(machine["cluster"], format_seconds(machine["seconds"]),
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


def _columns(able: Machines, field: str, title: str, unit: str, hue: str) -> Columns:
    return Columns(
        title,
        "One column per cluster.",
        ChartAxis(unit, low=0.0),
        "cluster",
        tuple(machine["cluster"] for machine in able),
        ((title, hue, tuple(float(machine[field]) for machine in able)),),
        height=170.0,
    )


def _table(able: Machines) -> Table:
    rows: list[tuple[str | Cell, ...]] = []
    for label, field, show in ROWS:
        first = able[0][field]
        rows.append(
            (
                label,
                *(
                    Cell(
                        show(machine[field]),
                        under=f"{machine[field] / first:.3f} of the first"
                        if field in COMPARED and machine is not able[0]
                        else "",
                    )
                    for machine in able
                ),
            )
        )
    heads = ("figure", *(f"|{machine['cluster']}" for machine in able))
    return Table(heads, tuple(rows), "Ratios are to the first cluster that can run the job.")


def _unable(unable: Machines) -> Table:
    return Table(
        ("cluster", "reason"),
        tuple((machine["cluster"], machine["reason"]) for machine in unable),
        "",
    )
