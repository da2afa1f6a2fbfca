"""The page of a validation: every published figure beside what a run gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from reports.charts import ChartAxis, Reference, Span, Spans
from reports.page import Answer, Figure, Page, Section, Table, published_section
from simulator.analysis.published import PublishedRow
from simulator.analysis.validation import coverage_of, median_error

Found = Mapping[str, Sequence[PublishedRow]]
_MOST = 1.0
"""Error at which an axis ends; bars that are longer are cut there."""


def validation_page(found: Found) -> Page:
    """All that the page of a validation shows.

    Args:
        found: {scenario: its published figures}.
    """
    rows = [row for figures in found.values() for row in figures]
    judged = [row for row in rows if row.is_evidence and row.error is not None]
    error, held = median_error(rows), coverage_of(rows)
    figures = [
        Figure("Predictions", f"{len(judged):,}", note=f"of {len(rows):,} published figures"),
        Figure("Scenarios", f"{len(found):,}"),
    ]
    if held is not None:
        low, high = held.share_95
        figures += [
            Figure("Inside their 80% intervals", f"{held.inside} of {held.trials}",
                   note=f"{held.share:.0%}, by chance {low:.0%} to {high:.0%}"),
            Figure("Width of the intervals, median", f"{held.width:.0%}"),
        ]  # fmt: skip
    limits = "Nothing: no figure was predicted."
    if judged:
        worst = max(judged, key=lambda row: abs(row.error or 0.0))
        where = next(name for name, of in found.items() if worst in of)
        limits = f"{worst.error:+.1%}, {worst.name} of {where}."
    charts = (errors_chart(found),) if judged else ()
    per = tuple(
        Section(name, published_section([asdict(row) for row in figures_])[0].blocks)
        for name, figures_ in found.items()
        if figures_
    )
    return Page(
        kind="Validation",
        name=f"{len(found)} scenarios",
        description="Published figures beside what runs give",
        answer=Answer(
            Figure("Error of predictions, median", "-" if error is None else f"{error:.1%}"),
            tuple(figures),
            limits=limits,
            limits_label="Largest error",
            changed="Nothing: scenarios as they are shipped.",
        ),
        beside=(Section("By scenario", (_summary(found),)),),
        sections=(*([Section("Error of each prediction", charts)] if charts else []), *per),
        files=(("metrics.json", "every row"),),
    )


def _summary(found: Found) -> Table:
    rows = []
    for name, figures in found.items():
        error, held = median_error(figures), coverage_of(figures)
        rows.append(
            (name, f"{len(figures)}", f"{sum(row.is_evidence for row in figures)}",
             "-" if error is None else f"{error:.1%}",
             "-" if held is None else f"{held.inside} of {held.trials}")
        )  # fmt: skip
    heads = ("scenario", "|figures", "|predictions", "|median error", "|inside 80% intervals")
    return Table(heads, tuple(rows), "A prediction rests on neither the figure nor a part of it.",
                 sortable=True)  # fmt: skip


def errors_chart(found: Found) -> Spans:
    """Error of each prediction as a point, its 80% interval as a bar around it."""
    lanes: list[str] = []
    spans: list[Span] = []
    marks: list[tuple[int, float, str, str]] = []
    for name, figures in found.items():
        for row in figures:
            if not row.is_evidence or row.error is None:
                continue
            lane = len(lanes)
            lanes.append(f"{name}: {row.name}"[:52])
            told = f"{row.name}: {row.error:+.1%}"
            if row.interval_80 is not None:
                low, high = (end / row.published - 1 for end in row.interval_80)
                hue = "sky" if row.inside else "red"
                spans.append(Span(lane, max(low, -_MOST), min(high, _MOST), hue,
                                  f"80% interval {low:+.1%} to {high:+.1%}"))  # fmt: skip
            marks.append((lane, min(max(row.error, -_MOST), _MOST), "ink", told))
    ends = [abs(value) for _, value, _, _ in marks]
    ends += [abs(end) for span in spans for end in (span.start, span.end)]
    reach = min(_MOST, 1.05 * max(ends, default=_MOST))
    return Spans(
        "Simulated over published, less one",
        "Points are errors, bars the 80% intervals of the predictions around them: one that does "
        "not reach the line in the middle misses the published value. Bars end at 100%.",
        ChartAxis("error", "%", 0.01, low=-reach, high=reach),
        tuple(lanes),
        tuple(spans),
        legend=(("interval holds the published value", "sky"), ("misses it", "red"),
                ("expected value", "ink")),
        marks=tuple(marks),
        references=(Reference(0.0, ""),),
        lane_height=18.0,
    )  # fmt: skip
