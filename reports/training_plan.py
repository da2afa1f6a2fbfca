"""Tables and files of a plan of a training job."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardware_profiles.units import format_bytes, format_quantity, format_seconds, unit_factor
from reports.run_directory import write_run
from reports.sweep import ROWS_FILE
from reports.tables import write_csv
from simulator.analysis.plan.training import (
    SimulatedLayout,
    TrainingPlan,
    training_plan_json,
    training_recommendation,
)
from simulator.analysis.plan.training_bounds import TrainingBound
from simulator.analysis.sweep import append_row

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from simulator.analysis.plan.training_budget import BudgetPlan

SHOWN = 10
"""Layouts of the table that are shown where more were simulated; the rest stand in the files."""


def layouts_table(plan: TrainingPlan, *, shown: int = SHOWN) -> Table:
    """The fastest layouts, those of the Pareto front and the scenario's own."""
    from rich.table import Table

    scenario = plan.scenario
    table = Table(
        title=f"{scenario.name}: {scenario.cluster.gpus} GPUs, {len(plan.ranked)} layouts bounded, "
        f"{len(plan.ran)} simulated",
        title_justify="left",
    )
    for name in ("", "layout"):
        table.add_column(name)
    for name in ("ideal step", "MFU", "memory", "bound", "by bound"):
        table.add_column(name, justify="right")
    front = plan.front
    for rank, each in enumerate(plan.simulated, 1):
        own = each is plan.of_own
        if each.step_s is None or not (rank <= shown or own or each in front):
            continue
        marks = ("*" if each in front else "") + ("=" if own else "")
        table.add_row(f"{rank}{marks}", str(each.layout), *_figures(each))
    return table


def budget_table(found: BudgetPlan) -> Table:
    """What a budget buys: layouts of which no other is as good in time, memory and GPUs."""
    from rich.table import Table

    tried = ", ".join(f"{plan.scenario.cluster.gpus:,}" for plan in found.plans)
    table = Table(title=f"within the budget, of {tried} GPUs", title_justify="left")
    table.add_column("layout")
    for name in ("GPUs", "USD/h", "ideal step", "memory", "all tokens", "cost"):
        table.add_column(name, justify="right")
    for each in found.front[:SHOWN]:
        table.add_row(
            str(each.layout.layout),
            f"{each.gpus:,}",
            format_quantity(each.usd_per_s, "price_rate").removesuffix(" USD/h"),
            format_seconds(each.step_s),
            format_bytes(float(each.layout.row.metrics["peak_memory_bytes"] or 0.0)),
            "" if each.run_s is None else f"{each.run_s / unit_factor('d', 'time'):.1f} days",
            "" if each.usd is None else format_quantity(each.usd, "price"),
            style="bold" if each == found.best else None,
        )
    return table


def _figures(each: SimulatedLayout) -> list[str]:
    metrics = each.row.metrics
    assert each.step_s is not None
    return [
        format_seconds(each.step_s),
        f"{float(metrics['mfu_causal'] or 0.0):.1%}",
        format_bytes(float(metrics["peak_memory_bytes"] or 0.0)),
        format_seconds(each.bound_s),
        str(each.place + 1),
    ]


def losers_table(plan: TrainingPlan) -> Table:
    """How many layouts each kind of reason leaves out."""
    from rich.table import Table

    table = Table(title="the other layouts", title_justify="left")
    table.add_column("reason")
    table.add_column("layouts", justify="right")
    for kind, count in sorted(plan.losers.items(), key=lambda entry: -entry[1]):
        table.add_row(kind, f"{count:,}")
    return table


def plan_lines(plan: TrainingPlan) -> list[str]:
    """What is said below the tables."""
    lines = ["* of the Pareto front of time and memory; = the layout of the scenario itself"]
    if plan.tightness is not None:
        lines.append(
            f"bounds: median bound / simulated step {plan.tightness:.2f}; {plan.pruned:,} layouts "
            "cannot be faster than the best"
        )
    own = plan.of_own
    best = plan.best
    if own is not None and own.step_s and best is not None and best.step_s:
        rank = plan.simulated.index(own) + 1
        lines.append(
            f"the scenario's own layout is number {rank} of {len(plan.ran)} simulated and number "
            f"{own.place + 1} by bound, {own.step_s / best.step_s - 1:.1%} behind the best"
            + (f": {_apart(own, best)}" if rank > 1 else "")
        )
    elif own is not None:
        lines.append(f"the scenario's own layout does not run: {own.row.reason}")
    elif plan.own is not None:
        lines.append("the scenario's own layout is not among those that may fit")
    return [*lines, training_recommendation(plan)]


def _apart(own: SimulatedLayout, best: SimulatedLayout) -> str:
    """The two parts of a step in which a layout loses most."""
    names = [name for name in own.row.metrics if name.startswith("parts.")]
    more = {
        name.removeprefix("parts."): float(own.row.metrics[name] or 0.0)
        - float(best.row.metrics[name] or 0.0)
        for name in names
    }
    most = sorted(more, key=more.__getitem__, reverse=True)[:2]
    return ", ".join(
        f"{format_seconds(more[name])} more of {name}" for name in most if more[name] > 0
    )


def bounded_line(ranked: Sequence[TrainingBound], lost: Mapping[str, int]) -> str:
    """What is known before any layout is simulated."""
    first = f"; the least bound is {format_seconds(ranked[0].seconds)}" if ranked else ""
    return f"{len(ranked):,} layouts bounded, {sum(lost.values()):,} cannot run{first}"


def plan_frame(plan: TrainingPlan) -> pd.DataFrame:
    """One row per layout that was simulated."""
    import pandas as pd

    return pd.DataFrame([_row(row) for row in training_plan_json(plan)["rows"]])


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: row[name] for name in ("rank", "layout", "place_by_bound", "bound_s", "reason")}
    settings = {path: str(value) for path, value in row["settings"].items()}
    metrics: Mapping[str, Any] = row["metrics"]
    return {**flat, **settings, **metrics}


def bounds_frame(plan: TrainingPlan) -> pd.DataFrame:
    """One row per layout that was bounded, by bound."""
    import pandas as pd

    return pd.DataFrame(
        [
            {name: str(value) for name, value in each.layout.settings.items()}
            | {
                "bound_s": each.seconds,
                "pipeline_s": each.pipeline_s,
                "optimizer_s": each.optimizer_s,
            }
            for each in plan.ranked
        ]
    )


def write_training_plan(
    plan: TrainingPlan, directory: Path, *, chosen: str, found: Mapping[str, Any]
) -> None:
    """Write the directory of a plan: the chosen scenario, every bound, rows and metrics.

    Args:
        chosen: the scenario of the best layout as YAML.
        found: as `dsv3sim plan training --json` prints it.
    """
    frame = plan_frame(plan)

    from reports.page import write_page
    from reports.training_plan_page import training_plan_page

    bounds = [each.seconds for each in plan.ranked]

    def write_report(draft: Path) -> None:
        write_page(training_plan_page(found, bounds, chosen), draft)
        write_csv(frame, draft / "layouts.csv")
        for each in plan.simulated:
            append_row(draft / ROWS_FILE, each.row)
        text = "\n".join(plan_lines(plan))
        (draft / "recommendation.txt").write_text(f"{text}\n", encoding="utf-8")

    write_run(
        directory,
        scenario=chosen,
        metrics=json.loads(json.dumps(found)),
        tables={"layouts": frame, "bounds": bounds_frame(plan)},
        write_report=write_report,
    )
