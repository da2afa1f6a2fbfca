"""What a step depends on, shown: a table with bars, and a tornado chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from reports.charts import ChartAxis, Span, Spans
from reports.drawing import Hue
from reports.tables import format_metric
from simulator.analysis.metric import label_of

HALF = 9
"""Characters of the longest bar to either side."""
LEAST_SHOWN = 0.0005
"""Elasticity below which an input is only named."""
_SIDES: tuple[tuple[str, int, Hue, str], ...] = (
    ("saves", -1, "green", "1% better"),
    ("costs", 1, "orange", "1% worse"),
)
"""(elasticity towards a side, where its bar goes, hue, what it is)"""


def sensitivity_table(found: Mapping[str, Any]) -> Table:
    """Inputs by elasticity, with bars of what 1% of each saves and costs, and what each must become
    by itself for the answer to fall by the target."""
    answer = format_metric(found["metric"], found["value"])
    title = f"{found['scenario']['name']}: {found['metric']} {answer}, {found['ranks']} ranks"
    shown, rest = _told_apart(found["rows"])
    caption = (
        "elasticity: relative change of the answer over that of the input; bars: the same towards "
        f"the better | the worse side, to {_longest(shown):.2g}; in brackets: the most that the "
        "input alone can save"
    )
    if rest:
        caption += f"; without effect: {', '.join(row['name'] for row in rest)}"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("input", no_wrap=True)
    table.add_column("now", no_wrap=True)
    table.add_column("elasticity", justify="right", no_wrap=True)
    table.add_column(f"{'saves':>{HALF}}|costs", no_wrap=True)
    table.add_column(f"{found['target']:.0%} off", no_wrap=True)
    for row in shown:
        table.add_row(
            row["name"],
            row["value"],
            f"{row['elasticity']:+.3f}",
            _bar(row, _longest(shown)),
            needed(row),
        )
    return table


def needed(row: Mapping[str, Any]) -> str:
    """What an input must become, or that it cannot."""
    need = row["need"]
    if need is None:
        return f"cannot ({row['at_most']:.1%})"
    factor = need["factor"]
    return f"x {factor:.3g}" if factor else "none of it"


def _told_apart(
    rows: Sequence[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Inputs that move the answer, and those that do not."""
    moving = [row for row in rows if _most(row) >= LEAST_SHOWN]
    return moving, [row for row in rows if _most(row) < LEAST_SHOWN]


def _most(row: Mapping[str, Any]) -> float:
    return max(abs(float(row[side])) for side in ("elasticity", "saves", "costs"))


def _longest(rows: Sequence[Mapping[str, Any]]) -> float:
    return max((_most(row) for row in rows), default=1.0)


def _bar(row: Mapping[str, Any], longest: float) -> str:
    saves, costs = (round(max(row[side], 0.0) / longest * HALF) for side in ("saves", "costs"))
    return f"{'█' * saves:>{HALF}}|{'▒' * costs}"


def tornado_chart(found: Mapping[str, Any]) -> Spans:
    """Bars of what each input saves and costs, 1% better or worse, the strongest input first."""
    rows, _ = _told_apart(found["rows"])
    spans = []
    for lane, row in enumerate(rows):
        for side, sign, hue, name in _SIDES:
            start, end = sorted((0.0, sign * max(row[side], 0.0)))
            spans.append(Span(lane, start, end, hue, f"{name}: {row[side]:.3f}%"))
    answer = format_metric(found["metric"], found["value"])
    return Spans(
        title=f"What {answer} depends on",
        caption=f"Change of the {label_of(found['metric'])} for 1% of each input by itself, and "
        f"what it must become for {found['target']:.0%} off; in brackets the most it can save.",
        x=ChartAxis(f"change of the {label_of(found['metric'])}", "%"),
        lanes=tuple(f"{row['name']} ({row['value']})" for row in rows),
        spans=tuple(spans),
        legend=tuple((name, hue) for _, _, hue, name in _SIDES),
        notes=tuple(needed(row) for row in rows),
    )
