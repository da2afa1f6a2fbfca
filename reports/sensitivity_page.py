"""The page of what a step's time depends on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reports.page import Answer, Cell, Figure, Page, Section, Table, scenario_page
from reports.sensitivity import needed, tornado_chart
from reports.tables import changed_text, format_metric
from simulator.analysis.metric import label_of
from simulator.scenario.files import Scenario

_TOLD = 3
"""Inputs that the answer names."""


def sensitivity_page(scenario: Scenario, found: Mapping[str, Any]) -> Page:
    """All that the page shows.

    Args:
        found: as `dsv3sim sensitivity --json` prints it, the strongest input first.
    """
    rows, path = found["rows"], found["metric"]
    named = ", ".join(f"{row['name']} {row['elasticity']:+.2f}" for row in rows[:_TOLD])
    wanted = [row for row in rows if row["need"] is not None]
    table = Table(
        ("input", "now", "|elasticity", "|1% better saves", "|1% worse costs",
         f"|for {found['target']:.0%} off"),
        tuple(
            (Cell(row["name"], under=row["group"]), row["value"],
             Cell(f"{row['elasticity']:+.3f}", row["elasticity"]),
             Cell(f"{row['saves']:.3f}%", row["saves"]), Cell(f"{row['costs']:.3f}%", row["costs"]),
             needed(row))
            for row in rows
        ),
        "Elasticity: relative change of the answer over that of the input. The last column is what "
        "the input alone must become, times what it is now; in brackets the most that it can save.",
        sortable=True,
    )  # fmt: skip
    return scenario_page(
        scenario,
        kind="What a step depends on",
        answer=Answer(
            Figure(
                label_of(path)[:1].upper() + label_of(path)[1:],
                format_metric(path, found["value"]),
                note=f"{found['ranks']} ranks",
            ),
            (
                Figure("Inputs changed", f"{len(rows):,}"),
                Figure(f"Inputs that alone can take {found['target']:.0%} off", f"{len(wanted):,}"),
            ),
            limits=f"{named}: relative change of the answer over that of the input."
            if rows
            else "None of the inputs.",
            limits_label="Depends on",
            changed=changed_text(scenario),
        ),
        sections=[Section("What it depends on", (tornado_chart(found), table))],
    )
