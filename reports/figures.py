"""Static figures of a run, drawn with matplotlib and written as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from hardware_profiles.units import unit_factor
from reports.palette import (
    BUDGET,
    CAUSES,
    GRID,
    INK,
    MUTED,
    PHASE_COLOURS,
    PHASES,
    PROVENANCE_COLOURS,
    WORK_COLOURS,
    WORKS,
)
from reports.tables import PHASE_LETTERS, RunTables, blocks, causes, format_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MILLISECOND = unit_factor("ms", "time")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "dsv3sim",
}
"""Of every figure of this package that is drawn with matplotlib."""


def pipeline_figure(tables: RunTables) -> Figure:
    """What every pipeline rank does when."""
    figure, axes = _figure(11, 1.6 + 0.28 * len(tables.stages))
    for work, name in WORKS.items():
        rows = tables.actions[tables.actions["work"] == work]
        if len(rows):
            _spans(
                axes,
                lane=rows["rank"],
                start=rows["start_s"],
                end=rows["end_s"],
                colour=WORK_COLOURS[work],
                label=name,
                edge=0.2,
            )
    axes.set_title(f"Pipeline timeline of one step ({tables.facts['schedule']})", loc="left")
    axes.set_xlabel("time (s)")
    axes.set_ylabel("pipeline rank")
    axes.set_yticks(range(len(tables.stages)))
    axes.set_ylim(len(tables.stages) - 0.4, -0.6)
    axes.set_xlim(0, tables.actions["end_s"].max())
    _legend_below(figure, axes)
    return figure


def budget_figure(tables: RunTables) -> Figure:
    """Where the step of every pipeline rank goes."""
    figure, axes = _figure(11, 4.2)
    ranks = tables.metrics["ranks"]
    bottom = np.zeros(len(ranks))
    for part, (name, colour) in BUDGET.items():
        values = np.array([rank[part] for rank in ranks])
        axes.bar(range(len(ranks)), values, bottom=bottom, color=colour, label=name, width=0.78)
        bottom += values
    axes.set_title("Time budget of each pipeline rank", loc="left")
    axes.set_xlabel("pipeline rank")
    axes.set_ylabel("time (s)")
    axes.set_xticks(range(len(ranks)))
    axes.yaxis.grid(visible=True, color=GRID)
    axes.set_axisbelow(True)
    _legend_below(figure, axes)
    return figure


def attribution_figure(tables: RunTables) -> Figure:
    """What adds up to the step, cause after cause."""
    figure, axes = _figure(11, 5.2)
    rows, total = causes(tables.metrics), tables.metrics["step_time_s"]
    names = [*(row.name for row in rows), "step"]
    seconds = [*(row.seconds for row in rows), total]
    starts = [*accumulate((row.seconds for row in rows[:-1]), initial=0.0), 0.0]
    colours = [*(CAUSES[row.name] for row in rows), INK]
    axes.barh(names, seconds, left=starts, color=colours, height=0.74)
    for place, (start, value) in enumerate(zip(starts, seconds, strict=True)):
        text = f"{value:+.3f} s, {value / total:.1%}" if place < len(rows) else f"{value:.3f} s"
        end = max(start, start + value)
        axes.text(end + 0.006 * total, place, text, va="center", fontsize=8, color=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.14 * total)
    axes.set_title("What the step's time is made of", loc="left")
    axes.set_xlabel("time (s)")
    axes.set_ylabel("cause")
    axes.xaxis.grid(visible=True, color=GRID)
    axes.set_axisbelow(True)
    return figure


def pair_breakdown(tables: RunTables) -> Figure:
    """The overlapped pair: its two streams above, its longest operators below."""
    figure = _empty_figure(11, 9.4)
    top, bottom = figure.subplots(2, 1, height_ratios=[1, 1.5])
    _draw_streams(top, tables)
    _draw_longest_operators(bottom, tables, count=18)
    return figure


def _draw_streams(axes: Axes, tables: RunTables) -> None:
    """Blocks and operators of the pair on the compute and the communication stream."""
    operators, grouped = tables.pair_operators, blocks(tables.pair_operators)
    lanes = {"compute": (0, 1), "communication": (3, 2)}
    span = float(operators["end_s"].max()) / _MILLISECOND
    for phase, name in PHASES.items():
        for frame, level, edge in ((grouped, 0, 0.8), (operators, 1, 0.1)):
            rows = frame[frame["phase"] == phase]
            _spans(
                axes,
                lane=[lanes[stream][level] for stream in rows["stream"]],
                start=rows["start_s"] / _MILLISECOND,
                end=rows["end_s"] / _MILLISECOND,
                colour=PHASE_COLOURS[phase],
                label=name if level == 0 and len(rows) else "",
                edge=edge,
            )
    columns = ("stream", "block", "start_s", "end_s")
    for stream, block, start, end in zip(*(grouped[c].tolist() for c in columns), strict=True):
        # Upright text is as wide as it is high: a hundredth of this figure's width.
        if end - start > 0.012 * span * _MILLISECOND:
            axes.text(
                (start + end) / 2 / _MILLISECOND,
                lanes[stream][0],
                block,
                ha="center",
                va="center",
                rotation=90,
                fontsize=6.5,
                color="white",
            )
    kind = tables.metrics["pair_time_kind"]
    axes.set_title(f"Overlapped pair {tables.pair}: {span:.1f} ms ({kind})", loc="left", pad=22)
    names = [f"{stream}, by {level}" for stream in lanes for level in ("block", "operator")]
    axes.set_yticks([0, 1, 3, 2], names)
    axes.set_ylim(3.55, -0.55)
    axes.set_xlim(0, span)
    axes.set_xlabel("time in the pair (ms)")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.98), ncols=3, borderaxespad=0)


def _draw_longest_operators(axes: Axes, tables: RunTables, *, count: int) -> None:
    """Time of the longest operators of the pair, stacked by provenance."""
    operators = tables.pair_operators
    milliseconds = (operators["end_s"] - operators["start_s"]) / _MILLISECOND
    labels = operators["name"] + " (" + operators["phase"].map(PHASE_LETTERS) + ")"
    parts = milliseconds.groupby([labels, operators["provenance"]]).sum().unstack(fill_value=0)
    parts = parts.loc[parts.sum(axis=1).nlargest(count).index[::-1]]
    left = np.zeros(len(parts))
    for provenance, colour in PROVENANCE_COLOURS.items():
        if provenance in parts:
            values = parts[provenance].to_numpy()
            if not values.any():
                continue
            axes.barh(range(len(parts)), values, left=left, color=colour, label=provenance)
            left += values
    for row, value in enumerate(left.tolist()):
        axes.text(value, row, f" {value:.2f}", va="center", fontsize=7.5, color=MUTED)
    axes.set_yticks(range(len(parts)), parts.index.tolist())
    axes.set_title("Longest operators of the pair, all layers together", loc="left")
    axes.set_xlabel("time (ms)")
    axes.margins(y=0.01)
    axes.legend(loc="lower right", title="operator times are")


def published_comparison(tables: RunTables) -> Figure:
    """Relative error of the simulated against the published numbers."""
    pairs = zip(tables.published, tables.metrics["published"], strict=True)
    paths_and_rows = [(path, row) for path, row in pairs if row["error"] is not None][::-1]
    rows = [row for _, row in paths_and_rows]
    figure, axes = _figure(11, 1.3 + 0.32 * max(len(rows), 1))
    errors = [row["error"] for row in rows]
    axes.barh(range(len(rows)), errors, color=WORK_COLOURS["F"], height=0.62)
    reach = max((abs(error) for error in errors), default=0.0) or 0.01
    for line, (path, row) in enumerate(paths_and_rows):
        side = 1 if row["error"] >= 0 else -1
        simulated, published = (format_metric(path, row[of]) for of in ("simulated", "published"))
        text = f"{row['error']:+.1%}  ({simulated} for {published})"
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
    axes.set_xlim(-1.9 * reach, 1.9 * reach)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.0%}")
    axes.set_xlabel("error: simulated / published - 1")
    axes.set_title("Simulated against published numbers", loc="left")
    return figure


FIGURES: Mapping[str, Callable[[RunTables], Figure]] = {
    "pipeline_timeline": pipeline_figure,
    "attribution": attribution_figure,
    "time_budget": budget_figure,
    "pair_breakdown": pair_breakdown,
    "published_comparison": published_comparison,
}


def write_figures(tables: RunTables, directory: Path) -> None:
    """Write every figure as PNG and SVG into `directory`, which is made."""
    import matplotlib

    directory.mkdir()
    with matplotlib.rc_context(STYLE):
        for name, draw in FIGURES.items():
            figure = draw(tables)
            figure.savefig(directory / f"{name}.png", dpi=150)
            # The layout stands; finding it a second time would take as long as the drawing.
            figure.set_layout_engine("none")
            figure.savefig(directory / f"{name}.svg", metadata={"Date": None})


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = _empty_figure(width, height)
    return figure, figure.subplots()


def _empty_figure(width: float, height: float) -> Figure:
    # Figure without pyplot draws with the Agg canvas and keeps no global state.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _spans(
    axes: Axes,
    *,
    lane: ArrayLike,
    start: ArrayLike,
    end: ArrayLike,
    colour: str,
    label: str,
    edge: float,
) -> None:
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
            list(corners), facecolors=colour, edgecolors="white", linewidths=edge, label=label
        )
    )


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
