"""Parity plots and coverage maps of the measurements left out of a fit.

Both as plotly figures (plain mappings, for the page) and as matplotlib ones (for PNG and SVG).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.tables import Measurement
from hardware_profiles.units import format_seconds
from reports.calibration import family_name
from reports.palette import GRID, INK, MUTED
from simulator.calibration.family_fit import HeldOutRow
from simulator.hardware.kernels.families import Family, batch_of_rows, family_of
from simulator.hardware.kernels.measured_rows import shapes_of
from simulator.hardware.kernels.roofline import is_tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

INTERPOLATED, EDGE = "#3f72af", "#d9813b"
"""Colours of left-out rows between others of their shape, and at its ends."""
SPAN = "#9dbbe0"
MOST_POINTS = 3000
"""Rows of a family that an interactive chart draws; more are thinned out evenly, the worst kept."""
MOST_PANELS = 12
"""Families in a static figure, those with most rows."""
LEAST_RANGE = 8.0
"""Largest over smallest value that an axis of a static figure shows at least."""
LONG_AXIS = 300.0
"""The same ratio from which on only decades are labelled."""
MOST_VECTORS = 1000
"""Marks of a panel that an SVG holds one by one; more become a picture."""

COVERAGE_AXES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "gemm": ("m", ("n", "k")),
    "batched_gemm": ("m", ("n", "k")),
    "grouped_gemm": ("rows", ("n", "k")),
    "masked_grouped_gemm": ("rows", ("n", "k")),
    "grouped_gemm_weight_grad": ("rows", ("m", "n")),
    "attention_forward": ("kv_length", ("sequences", "heads")),
    "attention_backward": ("kv_length", ("sequences", "heads")),
    "mla_decode": ("kv_length", ("sequences",)),
    "mla_prefill": ("kv_length", ("sequences", "heads")),
    "index_scores": ("kv_length", ("sequences", "query_length")),
    "sparse_mla": ("kv_length", ("sequences", "query_length")),
    "dispatch": ("rows", ("sms",)),
    "combine": ("rows", ("sms",)),
}
"""{kind: (size upwards, sizes whose product goes to the right)}; of other kinds their rows or
tokens upwards and the product of their other sizes to the right."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Left-out rows of one family in one kernel set, as both charts draw them."""

    name: str
    kernel_set: str
    rows: tuple[HeldOutRow, ...]
    right: Array
    """[rows] product of sizes that goes to the right in the coverage map."""
    up: Array
    """[rows]"""
    right_name: str
    up_name: str
    spans: tuple[tuple[float, float, float], ...]
    """(right, lowest up, highest up) of every shape: the model interpolates between. Empty where it
    goes by bytes moved in the place of shapes."""
    measured: Array
    predicted: Array
    edge: NDArray[np.bool_]
    """[rows], the same as `rows` say, seconds."""


def table_key(row: Measurement) -> tuple[Family, str]:
    """Family and kernel set: rows of one key are one table."""
    return family_of(row), row.kernel_set


def panels_of(rows: Sequence[HeldOutRow]) -> list[Panel]:
    """One panel a family and kernel set, most rows first."""
    groups: dict[tuple[Family, str], list[HeldOutRow]] = defaultdict(list)
    for row in rows:
        groups[table_key(row.measurement)].append(row)
    panels = []
    for (family, kernel_set), members in groups.items():
        names = tuple(name for name, _ in members[0].measurement.sizes)
        columns = np.array([[size for _, size in row.measurement.sizes] for row in members])
        sizes = dict(zip(names, columns.T.astype(np.float64), strict=True))
        sizes["sms"] = np.array([float(row.measurement.sms) for row in members])
        up_name, right_names = _axes(family[0], names)
        up = sizes[up_name]
        right = np.prod([sizes[name] for name in right_names], axis=0)
        spans = []
        if is_tensor(family[0]):
            for places in _places_of_shapes(members):
                spans.append((right[places[0]], up[places].min(), up[places].max()))
        panels.append(
            Panel(
                name=family_name(family),
                kernel_set=kernel_set,
                rows=tuple(members),
                right=right,
                up=up,
                right_name=" x ".join(right_names),
                up_name=up_name,
                spans=tuple((float(x), float(low), float(high)) for x, low, high in spans),
                measured=np.array([row.measurement.seconds for row in members]),
                predicted=np.array([row.predicted_s for row in members]),
                edge=np.array([row.edge for row in members]),
            )
        )
    return sorted(panels, key=lambda panel: (-len(panel.rows), panel.name))


def _places_of_shapes(members: Sequence[HeldOutRow]) -> list[NDArray[np.intp]]:
    """Rows of each shape."""
    measured = [row.measurement for row in members]
    return [places for _, places in shapes_of(batch_of_rows(measured))]


def _axes(kind: str, sizes: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    if kind in COVERAGE_AXES:
        return COVERAGE_AXES[kind]
    up = next((name for name in ("rows", "tokens") if name in sizes), sizes[0])
    return up, tuple(name for name in sizes if name != up) or ("sms",)


def parity_chart(panel: Panel) -> dict[str, Any]:
    """Predicted over measured time of every left-out row, log-log, the diagonal between."""
    drawn = _drawn(panel)
    ends = [
        float(min(panel.measured.min(), panel.predicted.min())) / 1.2,
        float(max(panel.measured.max(), panel.predicted.max())) * 1.2,
    ]
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": ends,
            "y": ends,
            "line": {"color": MUTED, "width": 1},
            "name": "equal",
            "hoverinfo": "skip",
        }
    ]
    for name, edge, marker in _MARKERS:
        chosen = [i for i in drawn if panel.edge[i] == edge]
        if chosen:
            traces.append(
                {
                    "type": "scattergl",
                    "mode": "markers",
                    "name": name,
                    "x": _short(panel.measured[chosen]),
                    "y": _short(panel.predicted[chosen]),
                    "marker": marker,
                    "customdata": [_hover(panel.rows[i]) for i in chosen],
                    "hovertemplate": "%{customdata}<extra></extra>",
                }
            )
    layout = _layout("measured time (s)", "predicted without the row (s)")
    return {"data": traces, "layout": layout}


def coverage_chart(panel: Panel) -> dict[str, Any]:
    """Where the rows lie; a line joins those of one shape."""
    drawn = _drawn(panel)
    x: list[float | None] = []
    y: list[float | None] = []
    for right, low, high in panel.spans:
        x += [right, right, None]
        y += [low, high, None]
    traces: list[dict[str, Any]] = []
    if x:
        traces.append(
            {
                "type": "scattergl",
                "mode": "lines",
                "name": "interpolates",
                "x": x,
                "y": y,
                "line": {"color": SPAN, "width": 3},
                "hoverinfo": "skip",
            }
        )
    error = np.array([abs(panel.rows[i].error) for i in drawn])
    traces.append(
        {
            "type": "scattergl",
            "mode": "markers",
            "name": "measured row",
            "x": _short(panel.right[drawn]),
            "y": _short(panel.up[drawn]),
            "marker": {
                "size": 6,
                "color": [round(100 * min(float(value), 0.5), 1) for value in error],
                "colorscale": [[0, "#2f7d62"], [0.3, "#e0b458"], [1, "#b23a2e"]],
                "cmin": 0,
                "cmax": 50,
                "colorbar": {"title": {"text": "error, %"}, "thickness": 10},
            },
            "customdata": [_hover(panel.rows[i]) for i in drawn],
            "hovertemplate": "%{customdata}<extra></extra>",
        }
    )
    layout = _layout(panel.right_name, panel.up_name)
    return {"data": traces, "layout": layout}


_MARKERS: tuple[tuple[str, bool, dict[str, Any]], ...] = (
    ("between rows of its shape", False, {"color": INTERPOLATED, "size": 5, "opacity": 0.6}),
    ("at an end of its shape", True, {"color": EDGE, "size": 7, "symbol": "circle-open"}),
)
"""(name, whether at an end, marker)"""


def _drawn(panel: Panel) -> list[int]:
    """Rows that an interactive chart shows."""
    count = len(panel.rows)
    if count <= MOST_POINTS:
        return list(range(count))
    worst = np.argsort(-np.abs(np.log(panel.predicted / panel.measured)))[:10]
    even = np.linspace(0, count - 1, MOST_POINTS).astype(np.intp)
    return sorted({*worst.tolist(), *even.tolist()})


def _short(values: Array) -> list[float]:
    """Four digits are enough to draw."""
    return [float(f"{value:.4g}") for value in values.tolist()]


def _hover(row: HeldOutRow) -> str:
    timed = row.measurement
    sizes = ", ".join(f"{name} {size:,}" for name, size in timed.sizes)
    edge = ", at an end of its shape" if row.edge else ""
    return (
        f"<b>{sizes}</b>, {timed.sms} SMs<br>measured {format_seconds(timed.seconds)}, "
        f"predicted {format_seconds(row.predicted_s)}<br>{row.error:+.1%}{edge}"
    )


def _layout(right: str, up: str) -> dict[str, Any]:
    axis = {
        "type": "log",
        "gridcolor": GRID,
        "linecolor": MUTED,
        "zeroline": False,
        "exponentformat": "SI",
        "minexponent": 1,
    }
    return {
        "height": 480,
        "margin": {"l": 76, "r": 16, "t": 30, "b": 96},
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "plot_bgcolor": "white",
        "xaxis": axis | {"title": {"text": right}},
        "yaxis": axis | {"title": {"text": up}},
        "legend": {"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top"},
    }


# -- static figures --------------------------------------------------------------------------------


def panel_figure(panels: Sequence[Panel], draw: Callable[[Axes, Panel], None]) -> Figure:
    """One panel a family, those with most rows."""
    from matplotlib.figure import Figure

    shown = panels[:MOST_PANELS]
    across = min(3, max(1, len(shown)))
    down = max(1, -(-len(shown) // across))
    width, height = 4.4 * across, 3.7 * down + 0.8
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(
        left=0.7 / width, right=1 - 0.25 / width, wspace=0.3,
        bottom=1.0 / height, top=1 - 0.8 / height, hspace=0.45,
    )  # fmt: skip
    for number, panel in enumerate(shown):
        axes = figure.add_subplot(down, across, number + 1)
        draw(axes, panel)
        limits = [_limits(axis.get_data_interval()) for axis in (axes.xaxis, axes.yaxis)]
        axes.set(xscale="log", yscale="log", xlim=limits[0], ylim=limits[1])
        for axis, (low, high) in zip((axes.xaxis, axes.yaxis), limits, strict=True):
            _label(axis, high / low)
        axes.set_title(f"{panel.name}\n{_cut(panel.kernel_set)}", fontsize=8)
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
    if shown:
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="lower center", ncols=len(names), fontsize=8)
    if len(panels) > MOST_PANELS:
        title = f"{MOST_PANELS} of {len(panels)} families, those with most rows"
        figure.suptitle(title, fontsize=9, y=1 - 0.2 / height)
    return figure


def _limits(data: Sequence[float]) -> tuple[float, float]:
    """Ends of a logarithmic axis: a factor of `LEAST_RANGE` at least."""
    low, high = float(data[0]), float(data[1])
    spare = max(1.15, (LEAST_RANGE * low / high) ** 0.5)
    return low / spare, high * spare


def _label(axis: Axis, span: float) -> None:
    """Labels at 1, 2 and 5 of every decade, of a long axis at 1."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span < LONG_AXIS else (1.0,)))
    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(labelsize=7)


def _cut(text: str) -> str:
    longest = 44
    return text if len(text) <= longest else text[: longest - 3] + "..."


def draw_parity(axes: Axes, panel: Panel) -> None:
    """Predicted against measured."""
    ends = [min(panel.measured.min(), panel.predicted.min()) / 1.2,
            max(panel.measured.max(), panel.predicted.max()) * 1.2]  # fmt: skip
    axes.plot(ends, ends, color=MUTED, linewidth=0.8, label="equal")
    edge = panel.edge
    axes.scatter(
        panel.measured[~edge], panel.predicted[~edge], s=5, color=INTERPOLATED, alpha=0.6,
        linewidths=0, rasterized=len(edge) > MOST_VECTORS, label=_MARKERS[0][0],
    )  # fmt: skip
    axes.scatter(
        panel.measured[edge], panel.predicted[edge], s=12, facecolors="none", edgecolors=EDGE,
        linewidths=0.8, rasterized=len(edge) > MOST_VECTORS, label=_MARKERS[1][0],
    )  # fmt: skip
    axes.set_xlabel("measured (s)", fontsize=8)
    axes.set_ylabel("predicted (s)", fontsize=8)


def draw_coverage(axes: Axes, panel: Panel) -> None:
    """Where rows lie."""
    for number, (right, low, high) in enumerate(panel.spans):
        label = "interpolates between rows of one shape" if not number else None
        axes.plot([right, right], [low, high], color=SPAN, linewidth=1.6, label=label)
    axes.scatter(
        panel.right, panel.up, s=9, color=INTERPOLATED, linewidths=0, zorder=3,
        rasterized=len(panel.rows) > MOST_VECTORS, label="measured row",
    )  # fmt: skip
    axes.set_xlabel(panel.right_name, fontsize=8)
    axes.set_ylabel(panel.up_name, fontsize=8)


PANELS: Mapping[str, Callable[[Axes, Panel], None]] = {
    "parity": draw_parity,
    "coverage": draw_coverage,
}
"""Static figures: file name -> how a panel is drawn."""
