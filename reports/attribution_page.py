"""The pages of attributions: what a step, a run or a difference is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hardware_profiles.units import format_seconds
from reports.charts import ChartAxis, Span, Spans
from reports.fleet import format_figure
from reports.page import Answer, Cell, Figure, Page, Section, Table, scenario_page
from reports.pretraining import CAUSES
from reports.pretraining_page import causes_chart
from reports.tables import causes, changed_text
from reports.training_page import attribution_chart
from simulator.analysis.fleet_attribution import AttributionRow
from simulator.scenario.files import Scenario
from simulator.scenario.published import PublishedFigure


def step_attribution_page(
    scenario: Scenario, metrics: Mapping[str, Any], published_s: float | None
) -> Page:
    """What a training step is made of.

    Args:
        published_s: a published step time of the same inputs, where there is one.
    """
    rows, total = causes(metrics), metrics["step_time_s"]
    reached, cells = 0.0, []
    for row in rows:
        reached += row.seconds
        cells.append(
            (row.name, Cell(f"{row.seconds:.3f} s", row.seconds), f"{reached:.3f} s",
             Cell(f"{row.seconds / total:.1%}", row.seconds), row.meaning)
        )  # fmt: skip
    largest = max((row for row in rows if row.name != "arithmetic"), key=lambda r: r.seconds)
    beside = []
    if published_s is not None:
        table = Table(
            ("what", "|time"),
            (("published", f"{published_s:.3f} s"), ("simulated", f"{total:.3f} s"),
             ("what the causes do not explain", f"{published_s - total:+.3f} s")),
            "",
        )  # fmt: skip
        beside.append(Section("Beside the published step", (table,)))
    return scenario_page(
        scenario,
        kind="What a training step is made of",
        answer=Answer(
            Figure("Step time", format_seconds(total)),
            tuple(
                Figure(row.name[:1].upper() + row.name[1:], format_seconds(row.seconds),
                       note=f"{row.seconds / total:.1%} of the step")
                for row in sorted(rows, key=lambda row: -row.seconds)[:4]
            ),
            limits=f"Beside the arithmetic most by {largest.name}, {largest.seconds / total:.0%} "
            f"of the step: {largest.meaning}.",
            changed=changed_text(scenario),
        ),
        beside=beside,
        sections=[
            Section("Causes", (attribution_chart(metrics),
                    Table(("cause", "|seconds", "|sum", "|of the step", "what it adds"),
                          tuple(cells), ""))),
        ],
    )  # fmt: skip


def run_attribution_page(scenario: Scenario, metrics: Mapping[str, Any]) -> Page:
    """What a whole training run is made of."""
    days = metrics["days"]
    rows = tuple(
        (name, f"{metrics['days_by_cause'][cause]:.3f}", f"{metrics['share_by_cause'][cause]:.2%}")
        for cause, (name, _) in CAUSES.items()
    )
    beside = {c: s for c, s in metrics["share_by_cause"].items() if c != "training"}
    most = max(beside, key=lambda cause: beside[cause])
    return scenario_page(
        scenario,
        kind="What a whole run is made of",
        answer=Answer(
            Figure("Length of the run", f"{days:.1f} days"),
            tuple(Figure(name[:1].upper() + name[1:], f"{metrics['days_by_cause'][cause]:.2f} days",
                         note=f"{metrics['share_by_cause'][cause]:.2%}")
                  for cause, (name, _) in CAUSES.items()),
            limits=f"Training itself; of the rest most is {CAUSES[most][0]}, {beside[most]:.2%}.",
            changed=changed_text(scenario),
        ),
        sections=[Section("Causes", (causes_chart(metrics),
                                     Table(("cause", "|days", "|share"), rows, "")))],
    )  # fmt: skip


def fleet_attribution_page(
    scenario: Scenario, figures: Sequence[PublishedFigure], rows: Sequence[AttributionRow]
) -> Page:
    """How a fleet differs from what was published, one counterfactual after another."""
    heads: list[str] = ["counterfactual"]
    for figure in figures:
        heads += [f"|{figure.name}", "|effect"]
    cells = []
    for row in rows:
        line: list[str | Cell] = [Cell(row.name, under=row.source)]
        for value, effect in zip(row.values, row.effects, strict=True):
            line.append(format_figure("published", value))
            line.append("-" if effect is None else f"{effect:+,.4g}")
        cells.append(tuple(line))
    first, last, figure = rows[0], rows[-1], figures[0]
    effects = [row for row in rows if row.effects[0] is not None]
    most = max(effects, key=lambda row: abs(row.effects[0] or 0.0)) if effects else None
    return scenario_page(
        scenario,
        kind="From simulated to published",
        answer=Answer(
            Figure(figure.name, format_figure("published", first.values[0]),
                   note=f"published {format_figure('published', last.values[0])}"),
            tuple(Figure(one.name, format_figure("published", first.values[place]),
                         note=f"published {format_figure('published', last.values[place])}")
                  for place, one in enumerate(figures) if place),
            limits="Nothing is known of the difference." if most is None else
            f"{most.name}: {most.effects[0]:+,.4g}.",
            changed=changed_text(scenario),
        ),
        sections=[Section("One counterfactual after another",
                          (*(fleet_attribution_chart(figures, rows, place)
                             for place in range(len(figures))),
                           Table(tuple(heads), tuple(cells),
                                 "Each row on top of those before it.")))],
    )  # fmt: skip


def fleet_attribution_chart(
    figures: Sequence[PublishedFigure], rows: Sequence[AttributionRow], place: int
) -> Spans:
    """The value of one figure after each counterfactual, from the one before it."""
    spans, before = [], 0.0
    for lane, row in enumerate(rows):
        value, effect = row.values[place], row.effects[place]
        if value is None:
            continue
        whole = effect is None or lane == len(rows) - 1
        hue = "ink" if whole else "green" if value > before else "orange"
        tip = f"{row.name}: {format_figure('published', value)}"
        spans.append(Span(lane, 0.0 if whole else before, value, hue, tip))
        before = value
    return Spans(
        figures[place].name,
        "Black: simulated at the top, published at the bottom; between them what each "
        "counterfactual adds or takes.",
        ChartAxis(figures[place].name, low=0.0),
        tuple(row.name[:52] for row in rows),
        tuple(spans),
        notes=tuple("-" if row.values[place] is None else
                    format_figure("published", row.values[place]) for row in rows),
    )  # fmt: skip
