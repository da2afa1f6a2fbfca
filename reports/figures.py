"""Static figures of a run: RunTables in, matplotlib figures and their PNG and SVG files out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hardware_profiles.units import unit_factor
from reports.palette import (
    BUDGET,
    GRID,
    INK,
    MUTED,
    PHASE_COLOURS,
    PHASES,
    PROVENANCE_COLOURS,
    WORK_COLOURS,
    WORKS,
)
from reports.tables import RunTables, blocks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MILLISECOND = unit_factor("ms", "time")
_STYLE = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "dsv3sim",
}


def pipeline_timeline(tables: RunTables) -> Figure:
    """What every pipeline rank does when."""
    figure, axes = _figure(11, 1.6 + 0.28 * len(tables.stages))
    for work, name in WORKS.items():
        rows = tables.actions[tables.actions["work"] == work]
        if len(rows):
            _spans(axes, rows["rank"], rows["start_s"], rows["end_s"], WORK_COLOURS[work], name)
    axes.set_title(f"Pipeline timeline of one step ({tables.facts['schedule']})")
    axes.set_xlabel("time (s)")
    axes.set_ylabel("pipeline rank")
    axes.set_yticks(range(len(tables.stages)))
    axes.set_ylim(len(tables.stages) - 0.4, -0.6)
    axes.set_xlim(0, tables.actions["end_s"].max())
    _legend_below(figure, axes)
    return figure


def time_budget(tables: RunTables) -> Figure:
    """Where the step of every pipeline rank goes."""
    figure, axes = _figure(11, 4.2)
    ranks = tables.metrics["ranks"]
    bottom = np.zeros(len(ranks))
    for part, (name, colour) in BUDGET.items():
        values = np.array([rank[part] for rank in ranks])
        axes.bar(range(len(ranks)), values, bottom=bottom, color=colour, label=name, width=0.78)
        bottom += values
    axes.set_title("Time budget of each pipeline rank")
    axes.set_xlabel("pipeline rank")
    axes.set_ylabel("time (s)")
    axes.set_xticks(range(len(ranks)))
    axes.yaxis.grid(visible=True, color=GRID)
    axes.set_axisbelow(True)
    _legend_below(figure, axes)
    return figure


def pair_breakdown(tables: RunTables) -> Figure:
    """The overlapped pair: its two streams above, its longest operators below."""
    figure, (top, bottom) = _figure(11, 7.6, rows=2, height_ratios=[1, 2.1])
    operators = tables.pair_operators
    for phase, name in PHASES.items():
        rows = operators[operators["phase"] == phase]
        lane = (rows["stream"] == "communication").astype(int)
        starts, ends = rows["start_s"] / _MILLISECOND, rows["end_s"] / _MILLISECOND
        _spans(top, lane, starts, ends, PHASE_COLOURS[phase], name)
    span = operators["end_s"].max() / _MILLISECOND
    for block in blocks(operators).itertuples():
        start, end = block.start_s / _MILLISECOND, block.end_s / _MILLISECOND
        if end - start > 0.03 * span:
            y = 0.45 + 0.1 if block.stream == "compute" else 1.55
            top.text((start + end) / 2, y, block.block, ha="center", va="center", fontsize=7)
    top.set_title(
        f"Overlapped pair {tables.pair}: {span:.1f} ms ({tables.metrics['pair_time_kind']})"
    )
    top.set_yticks([0, 1], ["compute", "communication"])
    top.set_ylim(1.75, -0.5)
    top.set_xlim(0, span)
    top.set_xlabel("time in the pair (ms)")
    top.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    seconds = (operators["end_s"] - operators["start_s"]) / _MILLISECOND
    parts = seconds.groupby([operators["phase"], operators["name"], operators["provenance"]]).sum()
    totals = parts.groupby(level=[0, 1]).sum().nlargest(18)[::-1]
    for provenance, colour in PROVENANCE_COLOURS.items():
        values = [parts.get((*key, provenance), 0.0) for key in totals.index]
        left = np.zeros(len(totals))
        for other in PROVENANCE_COLOURS:
            if other == provenance:
                break
            left += [parts.get((*key, other), 0.0) for key in totals.index]
        if any(values):
            bottom.barh(range(len(totals)), values, left=left, color=colour, label=provenance)
    for row, value in enumerate(totals):
        bottom.text(value, row, f" {value:.2f}", va="center", fontsize=7.5, color=MUTED)
    names = [f"{name} ({'FBW'[list(PHASES).index(phase)]})" for phase, name in totals.index]
    bottom.set_yticks(range(len(totals)), names)
    bottom.set_title("Longest operators of the pair, all layers together")
    bottom.set_xlabel("time (ms)")
    bottom.margins(y=0.01)
    bottom.legend(loc="lower right", title="operator times are")
    return figure


def published_comparison(tables: RunTables) -> Figure:
    """Relative error of the simulated against the published numbers."""
    rows = [row for row in tables.metrics["published"] if row["error"] is not None][::-1]
    figure, axes = _figure(11, 1.3 + 0.32 * max(len(rows), 1))
    errors = [row["error"] for row in rows]
    axes.barh(range(len(rows)), errors, color=WORK_COLOURS["F"], height=0.62)
    reach = max((abs(error) for error in errors), default=0.0) or 0.01
    for line, row in enumerate(rows):
        side = 1 if row["error"] >= 0 else -1
        text = f"{row['error']:+.1%}  ({row['simulated']:.4g} for {row['published']:.4g})"
        axes.text(
            row["error"] + side * 0.015 * reach,
            line,
            text,
            va="center",
            ha="left" if side > 0 else "right",
            fontsize=8,
        )
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_xlim(-1.75 * reach, 1.75 * reach)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.0%}")
    axes.set_xlabel("simulated / published - 1 (published values in SI units)")
    axes.set_title("Simulated against published numbers")
    return figure


FIGURES: Mapping[str, Callable[[RunTables], Figure]] = {
    "pipeline_timeline": pipeline_timeline,
    "time_budget": time_budget,
    "pair_breakdown": pair_breakdown,
    "published_comparison": published_comparison,
}


def write_figures(tables: RunTables, directory: Path) -> None:
    """Write every figure as PNG and SVG into `directory`, which is made."""
    import matplotlib

    directory.mkdir()
    with matplotlib.rc_context(_STYLE):
        for name, draw in FIGURES.items():
            figure = draw(tables)
            figure.savefig(directory / f"{name}.png", dpi=150)
            figure.savefig(directory / f"{name}.svg", metadata={"Date": None})


def _figure(
    width: float, height: float, *, rows: int = 1, height_ratios: list[float] | None = None
) -> tuple[Figure, Axes]:
    # Figure without pyplot draws with the Agg canvas and keeps no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, 1, height_ratios=height_ratios)


def _spans(axes: Axes, lane: object, start: object, end: object, colour: str, label: str) -> None:
    """Bars of height 0.8 from start to end on the given lanes, as one collection."""
    from matplotlib.collections import PolyCollection

    y, left, right = (np.asarray(values, dtype=float) for values in (lane, start, end))
    low, high = y - 0.4, y + 0.4
    corners = np.stack(
        [np.stack([left, left, right, right], axis=1), np.stack([low, high, high, low], axis=1)],
        axis=2,
    )
    axes.add_collection(
        PolyCollection(
            list(corners), facecolors=colour, edgecolors="white", linewidths=0.2, label=label
        )
    )


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
