"""Show how good a calibration is: a CalibrationProfile in, tables and figures out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from hardware_profiles.schema import CalibrationProfile, FitProfile, HeldOutError
from simulator.analysis.calibration import HeldOutRow
from simulator.analysis.transfer_errors import TransferError

_KINDS_OF_ERROR = ("interpolated", "edge", "regions")
MOST_PANELS = 12
"""Families in a figure, those with most rows."""


def calibration_tables(profile: CalibrationProfile) -> list[Table]:
    """Errors of left-out rows by family, where each family has rows, and its worst rows."""
    return [_errors(profile), _coverage(profile), _worst(profile)]


def _errors(profile: CalibrationProfile) -> Table:
    table = Table(
        title=f"{profile.name}: {profile.gpu}, {profile.basis}; error of left-out rows, "
        "median / p90, worst of rows",
        title_justify="left",
    )
    table.add_column("family, kernel set", min_width=28)
    for column in ("rows", "noise floor", *_KINDS_OF_ERROR):
        table.add_column(column, justify="right")
    for fit in profile.fits:
        table.add_row(
            f"{_family(fit)}\n  {fit.kernel_set}, {fit.estimator}",
            str(fit.rows),
            _error(fit.noise),
            *(_error(getattr(fit, name)) for name in _KINDS_OF_ERROR),
        )
    return table


def _error(error: HeldOutError | None) -> str:
    """Median and p90; below them the worst and the number of rows."""
    if error is None:
        return "-"
    return f"{_percent(error.median)} / {_percent(error.p90)}%\n{error.worst:.0%} of {error.rows}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if value < 1 else f"{100 * value:.0f}"


def _coverage(profile: CalibrationProfile) -> Table:
    table = Table(
        title="sizes measured; beyond them a prediction extrapolates", title_justify="left"
    )
    table.add_column("family", overflow="fold")
    table.add_column("kernel set", overflow="fold")
    table.add_column("sizes", overflow="fold")
    for fit in profile.fits:
        ranges = ", ".join(
            f"{name} {low:,}" if low == high else f"{name} {low:,} to {high:,}"
            for name, (low, high) in fit.coverage.items()
        )
        table.add_row(_family(fit), fit.kernel_set, ranges)
    return table


def _worst(profile: CalibrationProfile) -> Table:
    table = Table(
        title="worst rows: predicted without the row / measured - 1", title_justify="left"
    )
    table.add_column("family", overflow="fold")
    table.add_column("rows", overflow="fold")
    for fit in profile.fits:
        table.add_row(f"{_family(fit)}, {fit.kernel_set}", "\n".join(fit.worst))
    return table


def _family(fit: FitProfile) -> str:
    added = ", added" if fit.accumulate else ""
    return f"{fit.kind} {fit.dtype} -> {fit.out_dtype}{added}"


def transfer_table(title: str, errors: Sequence[TransferError]) -> Table:
    """Signed errors of rows predicted from another GPU, and how many lie inside their interval."""
    rows = sum(error.rows for error in errors)
    inside = sum(error.inside for error in errors)
    table = Table(
        title=f"{title}; {inside} of {rows} rows ({inside / rows:.0%}) inside the 80 % interval",
        title_justify="left",
    )
    table.add_column("family", overflow="fold")
    table.add_column("kernel set", overflow="fold")
    for column in ("rows or sequences", "rows", "error: p10", "median", "p90", "inside"):
        table.add_column(column, justify="right")
    for error in errors:
        table.add_row(
            error.family,
            error.kernel_set,
            error.range,
            str(error.rows),
            f"{error.p10:+.1%}",
            f"{error.median:+.1%}",
            f"{error.p90:+.1%}",
            f"{error.inside}",
        )
    return table


def write_figures(rows: Sequence[HeldOutRow], path: Path) -> None:
    """Predicted over measured time of left-out rows, a panel a family; PNG or SVG by the ending.

    Hollow marks are rows at an end of their shape, where the model extrapolates: together with the
    time axis they show what the table covers.
    """
    from matplotlib.figure import Figure

    groups: dict[str, list[HeldOutRow]] = defaultdict(list)
    for row in rows:
        timed = row.measurement
        groups[f"{timed.kind} {timed.dtype}\n{timed.kernel_set}"].append(row)
    shown = sorted(groups, key=lambda name: -len(groups[name]))[:MOST_PANELS]
    across = min(3, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(4.2 * across, 3.4 * down), layout="constrained")
    for number, name in enumerate(shown):
        axes = figure.add_subplot(down, across, number + 1)
        measured = np.array([row.measurement.seconds for row in groups[name]])
        ratio = np.array([row.predicted_s / row.measurement.seconds for row in groups[name]])
        edge = np.array([row.edge for row in groups[name]])
        axes.axhline(1.0, color="0.6", linewidth=0.8)
        axes.scatter(measured[~edge], ratio[~edge], s=6, color="tab:blue", label="interpolated")
        axes.scatter(
            measured[edge], ratio[edge], s=10, facecolors="none", edgecolors="tab:orange",
            label="edge",
        )  # fmt: skip
        axes.set(xscale="log", ylim=(0.5, 2.0), yscale="log")
        axes.set_yticks([0.5, 0.7, 1.0, 1.4, 2.0], ["0.5", "0.7", "1", "1.4", "2"])
        axes.set_title(name, fontsize=8)
        axes.set_xlabel("measured time, s", fontsize=8)
        axes.set_ylabel("predicted / measured", fontsize=8)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
