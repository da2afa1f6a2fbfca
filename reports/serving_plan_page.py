"""The page of the plan of a service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hardware_profiles.units import format_seconds
from reports.charts import ChartAxis, Span, Spans
from reports.page import Answer, Cell, Figure, Page, PageBlock, Section, Table

_DRAWN = 16
"""Simulated fleets that are drawn, the recommended one first."""


def serving_plan_page(found: Mapping[str, Any], scenario: str) -> Page:
    """All that the page of a plan shows.

    Args:
        found: as `dsv3sim plan serving --json` prints it; its best plan has a fleet.
        scenario: the recommended fleet as YAML.
    """
    plan = found["plans"][found["best"]]
    run, limits, share = plan["measured"], plan["limits"], plan["percentile"]
    first, _, rest = plan["recommendation"].partition(". ")
    others = [other for place, other in enumerate(found["plans"]) if place != found["best"]]
    sections = [
        Section("Fleets that were simulated", (fleets_chart(plan), _fleets(plan))),
        Section("Best pools", (_pools(plan),)),
        *([Section("Other limits", (_variants(plan),))] if plan["sensitivity"] else []),
        *([Section("Other GPUs", (_others(others),))] if others else []),
        *([Section("Deployments that cannot serve", (_losers(plan),))] if plan["losers"] else []),
    ]
    return Page(
        kind="Plan of a service",
        name=str(plan["gpu"]),
        description=plan["question"],
        answer=Answer(
            Figure("Nodes", f"{plan['nodes']:g}", note=first.partition(": ")[2]),
            (
                Figure(f"TTFT, p{share}", _time(run["ttft_s"]),
                       note=f"asked for: {format_seconds(limits['ttft_s'])}"),
                Figure(f"TPOT, p{share}", _time(run["tpot_s"]),
                       note=f"asked for: {format_seconds(limits['tpot_s'])}"),
                Figure("GPUs", f"{plan['gpus']:,}"),
                Figure("Rent", f"{plan['usd_per_hour']:,.0f} USD/h"),
                Figure("A million tokens in", f"{plan['usd_per_million_tokens_in']:.3g} USD"),
                Figure("A million tokens out", f"{plan['usd_per_million_tokens_out']:.3g} USD"),
            ),
            limits=rest.partition(". It costs")[0] + ".",
            changed=f"{plan['question']}.",
            changed_label="Asked",
        ),
        beside=(),
        sections=tuple(sections),
        scenario=scenario,
        files=(("metrics.json", "everything of the plan"),
               ("scenario.yaml", "the recommended fleet; dsv3sim run simulates it again")),
    )  # fmt: skip


def fleets_chart(plan: Mapping[str, Any]) -> Spans:
    """Nodes of the simulated fleets, those apart that keep the limits."""
    rows = plan["simulated"][:_DRAWN]
    hues = {True: "blue", False: "grey"}
    return Spans(
        "Nodes of each fleet",
        "The first is recommended; grey fleets miss a limit.",
        ChartAxis("nodes", low=0.0),
        tuple(row["fleet"][:44] for row in rows),
        tuple(
            Span(lane, 0.0, float(row["nodes"]), "ink" if not lane else hues[bool(row["keeps"])],
                 f"{row['fleet']}\n{row['nodes']:g} nodes{_because(row)}")
            for lane, row in enumerate(rows)
        ),
        legend=(("recommended", "ink"), ("keeps the limits", "blue"), ("misses one", "grey")),
        notes=tuple(f"{row['nodes']:g}{_because(row)[:26]}" for row in rows),
    )  # fmt: skip


def _because(row: Mapping[str, Any]) -> str:
    return f", {row['reason']}" if row["reason"] else ""


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else format_seconds(seconds, digits=3)


def _fleets(plan: Mapping[str, Any]) -> Table:
    share = plan["percentile"]
    return Table(
        ("fleet", "|nodes", "|USD/h", f"|TTFT, p{share}", f"|TPOT, p{share}", "reason"),
        tuple(
            (row["fleet"], Cell(f"{row['nodes']:g}", row["nodes"]),
             Cell(f"{row['usd_per_hour']:,.0f}", row["usd_per_hour"]), _time(row["ttft_s"]),
             _time(row["tpot_s"]), row["reason"] or "recommended")
            for row in plan["simulated"]
        ),
        "Why each is not the recommended one.",
        marked=frozenset({0}),
    )  # fmt: skip


def _pools(plan: Mapping[str, Any]) -> Table:
    return Table(
        ("role, deployment", "|instances", "|nodes", "bound by", "|predicted", "|largest batch"),
        tuple(
            (Cell(row["deployment"], under=row["role"]), f"{row['instances']:,}",
             f"{row['nodes']:g}", row["binds"], _time(row["predicted_s"]), f"{row['max_batch']:,}")
            for row in plan["options"]
        ),
        f"{plan['searched']:,} deployments were searched; the fewest instances that each needs.",
    )  # fmt: skip


def _variants(plan: Mapping[str, Any]) -> Table:
    return Table(
        ("limit", "|nodes", "|change", "fleet"),
        tuple(
            (row["limit"], "-" if row["nodes"] is None else f"{row['nodes']:g}",
             "-" if row["change"] is None else f"{row['change']:+g}", row["fleet"] or "none")
            for row in plan["sensitivity"]
        ),
        "The smallest fleet if one limit were another.",
    )  # fmt: skip


def _others(plans: list[Mapping[str, Any]]) -> PageBlock:
    return Table(
        ("GPU", "|nodes", "|USD/h", "recommendation"),
        tuple(
            (plan["gpu"], "-" if plan["nodes"] is None else f"{plan['nodes']:g}",
             "-" if plan["usd_per_hour"] is None else f"{plan['usd_per_hour']:,.0f}",
             plan["recommendation"])
            for plan in plans
        ),
        "",
    )  # fmt: skip


def _losers(plan: Mapping[str, Any]) -> Table:
    return Table(
        ("reason", "|count", "example"),
        tuple((row["reason"], f"{row['count']:,}", row["example"]) for row in plan["losers"]),
        "",
    )
