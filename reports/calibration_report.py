"""The run directory of `calibrate`: a Calibration in; page, figures and left-out rows out.

report.html holds everything and opens without a network; figures/*.png and *.svg show the same
parity plots and coverage maps, held_out.parquet every left-out row with its prediction.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pandas as pd
import yaml
from markupsafe import Markup
from numpy.typing import NDArray

from hardware_profiles.tables import Measurement, format_pairs
from hardware_profiles.units import format_seconds
from reports.calibration import family_name, fit_family
from reports.palette import GRID, INK, MUTED
from reports.run_directory import write_run
from simulator.analysis.calibration import Calibration, HeldOutRow, noise
from simulator.hardware.kernel_curves import shapes_of
from simulator.hardware.kernel_families import Family, batch_of_rows
from simulator.hardware.roofline import is_tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

REPORT_FILE, FIGURES_DIRECTORY = "report.html", "figures"
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
POOLED_ROWS = 40
"""Fewest rows of a table whose errors are pooled."""
SUSPECT = 0.5
"""An error below this share of the noise floor cannot come from fitting these rows honestly."""

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
    "dispatch": ("rows", ("sms",)),
    "combine": ("rows", ("sms",)),
}
"""{kind: (size upwards, sizes whose product goes to the right)}; of other kinds their rows or
tokens upwards and the product of their other sizes to the right."""


@dataclass(frozen=True, slots=True)
class PooledError:
    """Errors of left-out rows of one family, of all its tables with `POOLED_ROWS` rows together."""

    family: str
    tables: int
    """Kernel sets."""
    rows: int
    """Between others of their shape; those at its ends are not pooled."""
    median: float
    p90: float
    worst: float
    noise_median: float | None
    """Noise floor of the same tables; None where no two rows do equal work."""
    noise_p90: float | None

    @property
    def suspect(self) -> bool:
        return self.noise_median is not None and self.median < SUSPECT * self.noise_median


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


def write_calibration_run(
    result: Calibration, directory: Path, *, inputs: Mapping[str, Any]
) -> None:
    """Write everything; the directory appears whole or not at all.

    Args:
        inputs: what the calibration was made from, written as scenario.yaml.
    """
    panels = panels_of(result.held_out)
    pooled = pooled_errors(result)

    def write_report(draft: Path) -> None:
        (draft / REPORT_FILE).write_text(page(result, panels, pooled), encoding="utf-8")
        folder = draft / FIGURES_DIRECTORY
        folder.mkdir()
        for name, draw in PANELS.items():
            figure = panel_figure(panels, draw)
            figure.savefig(folder / f"{name}.png", dpi=130)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})

    write_run(
        directory,
        scenario=yaml.safe_dump(dict(inputs), sort_keys=False, allow_unicode=True),
        metrics=metrics(result, pooled),
        tables={"held_out": held_out_table(result.held_out)},
        write_report=write_report,
    )


def metrics(result: Calibration, pooled: Sequence[PooledError]) -> dict[str, Any]:
    """The calibration's errors by their JSON names."""
    return {
        "calibration": result.profile.name,
        "gpu": result.profile.gpu,
        "measurements": len(result.measurements),
        "pooled": [asdict(error) for error in pooled],
        "fits": [fit.model_dump(mode="json") for fit in result.profile.fits],
        "read_by": list(result.read_by),
        "unmapped": list(result.unmapped),
        "warnings": list(result.warnings),
    }


def pooled_errors(result: Calibration) -> list[PooledError]:
    """Errors by family, most rows first."""
    tables: dict[tuple[Family, str], list[HeldOutRow]] = defaultdict(list)
    for held_out in result.held_out:
        tables[_table(held_out.measurement)].append(held_out)
    families: dict[Family, list[str]] = defaultdict(list)
    for (family, kernel_set), rows in tables.items():
        if len(rows) >= POOLED_ROWS:
            families[family].append(kernel_set)
    found = []
    for family, chosen in families.items():
        errors = np.array(
            [abs(row.error) for name in chosen for row in tables[family, name] if not row.edge]
        )
        if not len(errors):
            continue
        floor = _noise_floor(result, family, chosen)
        found.append(
            PooledError(
                family=family_name(family),
                tables=len(chosen),
                rows=len(errors),
                median=float(np.median(errors)),
                p90=float(np.quantile(errors, 0.9)),
                worst=float(errors.max()),
                noise_median=floor and floor[0],
                noise_p90=floor and floor[1],
            )
        )
    return sorted(found, key=lambda error: -error.rows)


def _noise_floor(
    result: Calibration, family: Family, kernel_sets: Sequence[str]
) -> tuple[float, float] | None:
    """Median and p90 of how far rows of equal work lie apart."""
    if len(kernel_sets) == 1:
        for fit in result.profile.fits:
            if fit.kernel_set == kernel_sets[0] and fit_family(fit) == family and fit.noise:
                return fit.noise.median, fit.noise.p90
    floors = [
        noise([row for row in result.measurements if _table(row) == (family, name)])
        for name in kernel_sets
    ]
    apart = np.abs(np.expm1(np.concatenate(floors)))
    return (float(np.median(apart)), float(np.quantile(apart, 0.9))) if len(apart) else None


def _table(row: Measurement) -> tuple[Family, str]:
    return (row.kind, row.dtype, row.out_dtype, row.accumulates), row.kernel_set


def panels_of(rows: Sequence[HeldOutRow]) -> list[Panel]:
    """One panel a family and kernel set, most rows first."""
    groups: dict[tuple[Family, str], list[HeldOutRow]] = defaultdict(list)
    for row in rows:
        groups[_table(row.measurement)].append(row)
    panels = []
    for (family, kernel_set), members in groups.items():
        batch = batch_of_rows([row.measurement for row in members])
        sizes = dict(zip(batch.names, batch.sizes.T.astype(np.float64), strict=True))
        sizes["sms"] = np.array([float(row.measurement.sms) for row in members])
        up_name, right_names = _axes(family[0], batch.names)
        up = sizes[up_name]
        right = np.prod([sizes[name] for name in right_names], axis=0)
        spans = []
        if is_tensor(family[0]):
            for _, places in shapes_of(batch):
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


def _axes(kind: str, sizes: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    if kind in COVERAGE_AXES:
        return COVERAGE_AXES[kind]
    up = next((name for name in ("rows", "tokens") if name in sizes), sizes[0])
    return up, tuple(name for name in sizes if name != up) or ("sms",)


def held_out_table(rows: Sequence[HeldOutRow]) -> pd.DataFrame:
    """One row a left-out row."""
    timed = [row.measurement for row in rows]
    return pd.DataFrame(
        {
            "kind": [row.kind for row in timed],
            "sizes": [format_pairs(row.sizes) for row in timed],
            "dtype": [row.dtype for row in timed],
            "sms": [row.sms for row in timed],
            "kernel_set": [row.kernel_set for row in timed],
            "measured_s": [row.seconds for row in timed],
            "predicted_s": [row.predicted_s for row in rows],
            "edge": [row.edge for row in rows],
            "source": [row.source for row in timed],
        }
    )


# -- page ------------------------------------------------------------------------------------------


def page(result: Calibration, panels: Sequence[Panel], pooled: Sequence[PooledError]) -> str:
    """The self-contained page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": _percent}
    charts = [
        {
            "name": f"{panel.name}, {panel.kernel_set} ({len(panel.rows):,} rows)",
            "parity": parity_chart(panel),
            "coverage": coverage_chart(panel),
        }
        for panel in panels
    ]
    javascript = files("plotly").joinpath("package_data", "plotly.min.js")
    # "</script>" inside a text must not end the script that holds the charts.
    text = json.dumps(charts, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return environment.get_template("calibration.html.j2").render(
        profile=result.profile,
        measurements=len(result.measurements),
        read_by=result.read_by,
        pooled=pooled,
        pooled_rows=POOLED_ROWS,
        fits=[(family_name(fit_family(fit)), fit) for fit in result.profile.fits],
        names=[chart["name"] for chart in charts],
        most_points=MOST_POINTS,
        unmapped=result.unmapped,
        warnings=result.warnings,
        charts=Markup(text),
        plotly=Markup(javascript.read_text(encoding="utf-8")),
    )


def _percent(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if value < 1 else f"{100 * value:.0f} %"


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
