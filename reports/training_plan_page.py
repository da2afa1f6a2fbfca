"""The page of the plan of a training job."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hardware_profiles.units import format_bytes, format_quantity, format_seconds, unit_factor
from reports.charts import ChartAxis, Curve, Lines, Reference, Span, Spans, shown_in
from reports.page import Answer, Cell, Figure, Page, Section, Table
from simulator.analysis.plan.training import PARTS

_DRAWN = 16
"""Layouts whose steps are drawn, the fastest first."""
_POINTS = 300
"""Points of the line of bounds."""
_ROOM = 0.05
"""Of the least step and memory, below them on the axes of points."""
_HUES = dict(zip(PARTS, ("blue", "orange", "purple", "sky", "grey"), strict=True))
"""Of the parts of a step, as causes of one have them elsewhere."""

FILES = (
    ("metrics.json", "everything of the plan"),
    ("scenario.yaml", "the recommended layout; dsv3sim run simulates it again"),
    ("layouts.csv", "every metric of every simulated layout, and layouts.parquet the same"),
    ("bounds.parquet", "the bound of every layout"),
    ("rows.jsonl", "the simulated layouts, from which a wider plan goes on"),
)


def training_plan_page(found: Mapping[str, Any], bounds: Sequence[float], scenario: str) -> Page:
    """All that the page of a plan shows.

    Args:
        found: as `dsv3sim plan training --json` prints it, with what a budget buys where one was
            given; its first row runs.
        bounds: of every layout, rising, seconds.
        scenario: that of the best layout as YAML.
    """
    ran = [row for row in found["rows"] if row["metrics"]]
    unfit = [row for row in found["rows"] if not row["metrics"]]
    best = ran[0]
    step = _step(best)
    name = str(found["scenario"]).partition(" with ")[0]
    limits = found["recommendation"].partition("; ")[2]
    budget = found.get("budget")
    sections = [
        *([] if budget is None else [Section("What the budget buys", (_bought(budget),))]),
        Section("Layouts that were simulated", (steps_chart(ran), _layouts(ran, found))),
        Section("Time and memory", (trade_chart(ran, found),)),
        Section(
            "What bounds say of the others",
            (bounds_chart(ran, bounds), _losers(found["losers"])),
            "A bound is proven from below: no step of its layout is shorter.",
        ),
        *([Section("Layouts that do not fit as simulated", (_unfit(unfit),))] if unfit else []),
        Section("What was searched", (_axes(found["axes"]),)),
    ]
    return Page(
        kind="Plan of a training job",
        name=name,
        description=f"The fastest layout of {name} on {found['gpus']:,} GPUs",
        answer=Answer(
            Figure("Ideal step", format_seconds(step), note=best["layout"]),
            (
                Figure("MFU", f"{best['metrics']['mfu_causal']:.1%}"),
                Figure("Memory of a GPU", format_bytes(best["metrics"]["peak_memory_bytes"]),
                       note=f"of {format_bytes(found['hbm_capacity_bytes'])}"),
                Figure("Layouts", f"{found['bounded']:,}",
                       note=f"bounded; {found['simulated']:,} simulated, {found['pruned']:,} "
                       "cannot be faster"),
                *([] if budget is None else [_budget(budget, found["gpus"])]),
                *_tightness(found["bound_over_simulated"]),
                *_own(found["own"], step),
            ),
            limits=f"{limits[:1].upper()}{limits[1:]}",
            changed="The layout whose ideal step is shortest; the run of the recommended scenario "
            "says what it expects of ranks that differ.",
            changed_label="Asked",
        ),
        beside=(),
        sections=tuple(sections),
        scenario=scenario,
        files=FILES,
    )  # fmt: skip


def _step(row: Mapping[str, Any]) -> float:
    return float(row["metrics"]["step_time_s"])


def _budget(budget: Mapping[str, Any], gpus: int) -> Figure:
    """What was given, and what it is spent on."""
    usd = budget["usd"]
    given = _rent(budget["usd_per_hour"]) if usd is None else format_quantity(usd, "price")
    return Figure("Budget", given, note=f"spent on {gpus:,} GPUs")


def _rent(usd_per_hour: float) -> str:
    return format_quantity(usd_per_hour / unit_factor("h", "time"), "price_rate")


def _bought(budget: Mapping[str, Any]) -> Table:
    """Layouts of every number of GPUs of which no other is as good in time, memory and GPUs."""
    rows = budget["front"]
    day = unit_factor("d", "time")
    tokens = budget["tokens"] is not None
    return Table(
        ("layout", "|GPUs", "|rent", "|ideal step", "|memory",
         *(("|all tokens", "|cost") if tokens else ())),
        tuple(
            (
                row["layout"],
                Cell(f"{row['gpus']:,}", row["gpus"]),
                Cell(_rent(row["usd_per_hour"]), row["usd_per_hour"]),
                Cell(format_seconds(row["step_time_s"]), row["step_time_s"]),
                Cell(format_bytes(row["peak_memory_bytes"]), row["peak_memory_bytes"]),
                *((Cell(f"{row['run_s'] / day:.1f} days", row["run_s"]),
                   Cell(format_quantity(row["usd"], "price"), row["usd"])) if tokens else ()),
            )
            for row in rows
        ),
        f"Of {', '.join(f'{gpus:,}' for gpus in budget['gpus_tried'])} GPUs, those that no other "
        "layout is as good as in time, memory and GPUs; bold: within the budget. Cost is that of "
        "ideal steps, without failures and what surrounds them.",
        sortable=True,
        marked=frozenset(n for n, row in enumerate(rows) if row["within"]),
    )  # fmt: skip


def _tightness(share: float | None) -> list[Figure]:
    if share is None:
        return []
    return [Figure("Bound over simulated step", f"{share:.2f}", note="median")]


def _own(own: Mapping[str, Any] | None, best_s: float) -> list[Figure]:
    """Where the scenario's own layout stands."""
    if own is None:
        return []
    if not own["metrics"]:
        return [Figure("The scenario's own layout", "does not run", note=str(own["reason"]))]
    behind = _step(own) / best_s - 1
    note = f"{behind:.1%} behind the best" if own["rank"] > 1 else "the best"
    return [Figure("The scenario's own layout", f"number {own['rank']}", note=note)]


def steps_chart(ran: Sequence[Mapping[str, Any]]) -> Spans:
    """What the step of each layout is made of, with its bound."""
    rows = ran[:_DRAWN]
    spans = []
    for lane, row in enumerate(rows):
        reached = 0.0
        for part, hue in _HUES.items():
            seconds = float(row["metrics"][f"parts.{part}"])
            tip = f"{row['layout']}\n{part}: {format_seconds(seconds)}"
            spans.append(Span(lane, reached, reached + seconds, hue, tip))
            reached += seconds
    longest = max(map(_step, rows))
    names, shared = _told_apart([row["layout"] for row in rows])
    return Spans(
        "Ideal steps",
        "Each bar is a layout's step on the mean of its ranks, the point in it its bound."
        + (f" In all of them: {', '.join(shared)}." if shared else ""),
        shown_in("time", "time", longest, low=0.0, high=longest),
        tuple(f"{row['rank']}. {name}" for row, name in zip(rows, names, strict=True)),
        tuple(spans),
        legend=tuple(_HUES.items()),
        notes=tuple(format_seconds(_step(row)) for row in rows),
        marks=tuple(
            (lane, float(row["bound_s"]), "paper",
             f"{row['layout']}\nbound: {format_seconds(row['bound_s'])}")
            for lane, row in enumerate(rows)
        ),
    )  # fmt: skip


def _told_apart(layouts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Layouts without the parts that all of them share, and those parts."""
    parts = [re.findall(r"micro-batch \d+|\S+", layout) for layout in layouts]
    shared = [part for part in parts[0] if all(part in other for other in parts)]
    if len(layouts) == 1:
        return [layouts[0]], []
    return [" ".join(part for part in of if part not in shared) for of in parts], shared


def trade_chart(ran: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> Lines:
    """The step of each layout over its memory; those apart that nothing else is as good as."""
    front = [row for row in ran if row["layout"] in found["front"]]
    front.sort(key=lambda row: float(row["metrics"]["peak_memory_bytes"]))
    others = [row for row in ran if row not in front]
    capacity = float(found["hbm_capacity_bytes"])
    steps = list(map(_step, ran))
    least = min(float(row["metrics"]["peak_memory_bytes"]) for row in ran)
    return Lines(
        "Step over memory",
        "Of the front, no other simulated layout is at least as good in both.",
        shown_in("memory of a GPU", "data", capacity, low=(1 - _ROOM) * least),
        shown_in("ideal step", "time", max(steps), low=(1 - _ROOM) * min(steps)),
        (
            _cloud("front", "blue", front, line=True),
            *([_cloud("others", "grey", others, line=False)] if others else []),
        ),
        upright=(Reference(capacity, "capacity"),),
    )


def _cloud(name: str, hue: str, rows: Sequence[Mapping[str, Any]], *, line: bool) -> Curve:
    memory = tuple(float(row["metrics"]["peak_memory_bytes"]) for row in rows)
    tips = tuple(
        f"{row['layout']}\n{format_seconds(_step(row))}, {format_bytes(size)}"
        for row, size in zip(rows, memory, strict=True)
    )
    return Curve(name, hue, memory, tuple(map(_step, rows)), line=line, dots=True, tips=tips)


def bounds_chart(ran: Sequence[Mapping[str, Any]], bounds: Sequence[float]) -> Lines:
    """The bound of every layout by its place, and the simulated steps."""
    # As many of the first as of the last, on an axis of logarithms.
    ends = math.log(len(bounds)) if len(bounds) > 1 else 0.0
    places = sorted({round(math.exp(ends * n / _POINTS)) for n in range(_POINTS + 1)})
    fastest = min(map(_step, ran))
    return Lines(
        "Bounds of all layouts",
        "Layouts whose bound lies above the dashed line, the fastest step, cannot be faster.",
        ChartAxis("place by bound", log=True, low=1.0),
        shown_in("time", "time", max(*map(_step, ran), bounds[-1])),
        (
            Curve("bound", "ink", places, tuple(bounds[place - 1] for place in places)),
            Curve("simulated step", "blue", tuple(row["place_by_bound"] for row in ran),
                  tuple(map(_step, ran)), line=False, dots=True,
                  tips=tuple(f"{row['layout']}\n{format_seconds(_step(row))}" for row in ran)),
        ),
        across=(Reference(fastest, ""),),
    )  # fmt: skip


def _layouts(ran: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> Table:
    own = found["own"]["layout"] if found["own"] else None
    best = _step(ran[0])
    return Table(
        ("|rank", "layout", "|ideal step", "|behind", "|MFU", "|memory", "|bound", "|by bound"),
        tuple(
            (
                Cell(f"{row['rank']}", row["rank"]),
                Cell(row["layout"], under="of the scenario itself" if row["layout"] == own else ""),
                Cell(format_seconds(_step(row)), _step(row)),
                Cell(f"{_step(row) / best - 1:.1%}", _step(row)),
                Cell(f"{row['metrics']['mfu_causal']:.1%}", row["metrics"]["mfu_causal"]),
                Cell(format_bytes(row["metrics"]["peak_memory_bytes"]),
                     row["metrics"]["peak_memory_bytes"]),
                Cell(format_seconds(row["bound_s"]), row["bound_s"]),
                Cell(f"{row['place_by_bound']:,}", row["place_by_bound"]),
            )
            for row in ran
        ),
        "Bold: on the front of time and memory. Press a head to sort.",
        sortable=True,
        marked=frozenset(n for n, row in enumerate(ran) if row["layout"] in found["front"]),
    )  # fmt: skip


def _losers(losers: Mapping[str, int]) -> Table:
    ordered = sorted(losers.items(), key=lambda entry: -entry[1])
    return Table(
        ("reason", "|layouts"),
        tuple((kind, f"{count:,}") for kind, count in ordered),
        "Why each of the other layouts is not the one that is recommended.",
        title="The other layouts",
    )


def _unfit(rows: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        ("layout", "|bound", "reason"),
        tuple((row["layout"], format_seconds(row["bound_s"]), str(row["reason"])) for row in rows),
        "",
    )


def _axes(axes: Mapping[str, Sequence[object]]) -> Table:
    return Table(
        ("axis", "values"),
        tuple((axis.replace("_", " "), ", ".join(map(str, values)))
              for axis, values in axes.items()),
        "--fix AXIS=VALUE,VALUE holds an axis to some of them.",
    )  # fmt: skip
