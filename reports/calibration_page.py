"""The page of a calibration: how well a fit predicts rows that were left out of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hardware_profiles.calibration_parts import HeldOutError
from hardware_profiles.units import format_seconds
from reports.calibration import family_name, fit_family
from reports.calibration_charts import Panel
from reports.charts import Chart, ChartAxis, Curve, Lines, shown_in
from reports.page import Answer, Cell, Figure, Page, PageBlock, Section, Table
from simulator.calibration.family_fit import HeldOutRow

if TYPE_CHECKING:
    from reports.calibration_report import PooledError
    from simulator.calibration.fit import Calibration

MOST_POINTS = 700
"""Rows of a family that its charts draw; more are thinned out evenly, the worst kept."""
MOST_PANELS = 12
"""Families that are drawn, those with most rows."""
_WORST = 10

FILES = (
    ("held_out.parquet", "every left-out row with its prediction"),
    ("metrics.json", "every error, as shares"),
    ("scenario.yaml", "what the calibration was made from"),
)


def calibration_page(
    result: Calibration, panels: Sequence[Panel], pooled: Sequence[PooledError], pooled_rows: int
) -> Page:
    """All that the page of a calibration shows.

    Args:
        pooled: errors by family.
        pooled_rows: rows that a table needs for its errors to be pooled.
    """
    profile = result.profile
    worst = max(pooled, key=lambda error: error.median) if pooled else None
    limits = "Tables of few rows: none has enough for its errors to be pooled."
    if worst is not None:
        floor = "" if worst.noise_median is None else (
            f"; rows of equal work lie {worst.noise_median:.1%} apart there, and no honest error "
            "gets far below that"
        )  # fmt: skip
        limits = f"{worst.family}, whose median error is {worst.median:.1%}{floor}."
    rows = sum(error.rows for error in pooled)
    median = (
        float(np.average([e.median for e in pooled], weights=[e.rows for e in pooled]))
        if rows
        else None
    )
    answer = Answer(
        Figure(
            "Error of left-out rows, median of each family, by rows",
            "-" if median is None else f"{median:.1%}",
        ),
        (
            Figure("Measured rows", f"{len(result.read.measurements):,}"),
            Figure("Families judged", f"{len(profile.fits):,}"),
            Figure("GPU", profile.gpu),
        ),
        limits=limits,
        limits_label="Worst known",
        changed=f"{'; '.join(result.read.read_by)}.",
        changed_label="Read from",
    )
    sections = [
        Section("By family", (_pooled(pooled, pooled_rows),), _ERRORS),
        *([_charts(panels)] if panels else []),
        Section("Every table", (_fits(result),)),
        Section("Worst rows of each table", (_worst_rows(result),)),
        *_set_aside(result),
    ]
    return Page(
        kind="Calibration",
        name=profile.name,
        description=f"Calibration {profile.name}: kernel times of {profile.gpu}",
        answer=answer,
        beside=(),
        sections=tuple(sections),
        files=FILES,
    )


_ERRORS = (
    "Every error is that of a row predicted by a model that was fitted without it, predicted / "
    "measured - 1. Interpolated: rows of the same shape lie on both sides. Edge: the row is the "
    "first or last of its shape, so the model extrapolates. Regions: whole shapes were left out. "
    "The noise floor is how far rows of equal work lie apart in the table itself."
)


def _percent(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}%" if value < 1 else f"{100 * value:.0f}%"


def _share(value: float | None) -> Cell:
    return Cell(_percent(value), value)


def _pooled(pooled: Sequence[PooledError], pooled_rows: int) -> PageBlock:
    if not pooled:
        return "No table has that many rows; see the errors of each table below."
    return Table(
        ("family", "|tables", "|rows", "|median", "|p90", "|worst", "|noise floor, median",
         "|noise floor, p90", "remark"),
        tuple(
            (e.family, f"{e.tables}", Cell(f"{e.rows:,}", e.rows), _share(e.median), _share(e.p90),
             _share(e.worst), _share(e.noise_median), _share(e.noise_p90),
             "below the noise: by luck, or because rows of equal sizes differ in what the sizes do "
             "not tell" if e.suspect else "")
            for e in pooled
        ),
        f"Tables of at least {pooled_rows} rows, pooled; rows at the ends of their shape apart.",
        sortable=True,
    )  # fmt: skip


def _charts(panels: Sequence[Panel]) -> Section:
    charts: list[Chart] = []
    for panel in panels[:MOST_PANELS]:
        charts += [parity_chart(panel), coverage_chart(panel)]
    left = len(panels) - MOST_PANELS
    note = f"The {MOST_PANELS} families with most rows; {left} more are in the tables." * (left > 0)
    return Section("Parity and coverage", tuple(charts), note)


def _title(panel: Panel) -> str:
    return f"{panel.name}, {panel.kernel_set}"


def parity_chart(panel: Panel) -> Lines:
    """Predicted over measured time of every left-out row, log-log, the diagonal between."""
    drawn = _drawn(panel)
    times = np.concatenate([panel.measured, panel.predicted])
    low, high = float(times.min()) / 1.2, float(times.max()) * 1.2
    axes = [
        shown_in(title, "time", float(np.median(panel.measured)), log=True, low=low, high=high)
        for title in ("measured", "predicted without the row")
    ]
    series = [Curve("equal", "grey", (low, high), (low, high))]
    for name, edge, hue in (
        ("between rows of its shape", False, "blue"),
        ("at an end of its shape", True, "orange"),
    ):
        chosen = [place for place in drawn if panel.edge[place] == edge]
        if chosen:
            series.append(
                Curve(name, hue, panel.measured[chosen].tolist(),
                       panel.predicted[chosen].tolist(), line=False, dots=True,
                       tips=[_told(panel.rows[place]) for place in chosen])
            )  # fmt: skip
    return Lines(
        f"{_title(panel)}: predicted against measured",
        f"{len(panel.rows):,} rows"
        + (f", of which {len(drawn):,} are drawn." if len(drawn) < len(panel.rows) else "."),
        axes[0],
        axes[1],
        tuple(series),
        height=300.0,
    )


def coverage_chart(panel: Panel) -> Lines:
    """Where the rows lie; a line joins those of one shape."""
    drawn = _drawn(panel)
    x: list[float] = []
    y: list[float | None] = []
    for right, low, high in panel.spans:
        x += [right, right, right]
        y += [low, high, None]
    series = [Curve("interpolates", "sky", x, y)] if x else []
    series.append(
        Curve("measured row", "blue", panel.right[drawn].tolist(), panel.up[drawn].tolist(),
               line=False, dots=True, tips=[_told(panel.rows[place]) for place in drawn])
    )  # fmt: skip
    return Lines(
        f"{_title(panel)}: where there are rows",
        "On a line the model interpolates, anywhere else it extrapolates; kernels that only move "
        "bytes have no shapes, they interpolate over the bytes moved.",
        ChartAxis(panel.right_name, log=True),
        ChartAxis(panel.up_name, log=True),
        tuple(series),
        height=300.0,
    )


def _drawn(panel: Panel) -> list[int]:
    count = len(panel.rows)
    if count <= MOST_POINTS:
        return list(range(count))
    worst = np.argsort(-np.abs(np.log(panel.predicted / panel.measured)))[:_WORST]
    even = np.linspace(0, count - 1, MOST_POINTS).astype(np.intp)
    return sorted({*worst.tolist(), *even.tolist()})


def _told(row: HeldOutRow) -> str:
    timed = row.measurement
    sizes = ", ".join(f"{name} {size:,}" for name, size in timed.sizes)
    return (
        f"{sizes}, {timed.sms} SMs\nmeasured {format_seconds(timed.seconds)}, predicted "
        f"{format_seconds(row.predicted_s)}, {row.error:+.1%}"
    )


def _fits(result: Calibration) -> Table:
    def error(found: HeldOutError | None) -> Cell:
        if found is None:
            return Cell("-")
        return Cell(
            f"{_percent(found.median)} / {_percent(found.p90)}",
            found.median,
            f"worst {_percent(found.worst)} of {found.rows:,}",
        )

    return Table(
        ("family", "kernel set", "|rows", "|noise floor", "|interpolated", "|edge", "|regions"),
        tuple(
            (family_name(fit_family(fit)), fit.kernel_set, Cell(f"{fit.rows:,}", fit.rows),
             error(fit.noise), error(fit.interpolated), error(fit.edge), error(fit.regions))
            for fit in result.profile.fits
        ),
        "Median / p90.",
        sortable=True,
    )  # fmt: skip


def _worst_rows(result: Calibration) -> Table:
    return Table(
        ("family", "kernel set", "sizes that vary, and the error"),
        tuple(
            (family_name(fit_family(fit)), fit.kernel_set, text)
            for fit in result.profile.fits
            for text in fit.worst
        ),
        "Ten of each table.",
    )


def _set_aside(result: Calibration) -> Iterator[Section]:
    lists: tuple[tuple[str, Any], ...] = (
        ("Set aside", result.read.warnings),
        ("Unmapped kernels", tuple(map(str, result.read.unmapped))),
    )
    for title, lines in lists:
        if lines:
            yield Section(title, (Table(("what",), tuple((line,) for line in lines), ""),))
