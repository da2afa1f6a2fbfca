"""Tables for the terminal that show how good a calibration is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from hardware_profiles.calibration_parts import FitProfile, HeldOutError, KernelsProfile
from hardware_profiles.estimates import Estimate, TimeEstimate
from hardware_profiles.fields import Profile
from hardware_profiles.schema import CalibrationProfile
from hardware_profiles.units import format_bandwidth, format_bytes, format_seconds, unit_factor
from simulator.calibration.collective_fit import CollectiveErrors
from simulator.calibration.imported_rows import ImportedRows
from simulator.calibration.kernel_choice import RULE, kernel_of, kernel_text
from simulator.calibration.low_latency_fit import FittedLowLatency
from simulator.calibration.modules import ModuleError
from simulator.calibration.normal_fit import FittedLaw
from simulator.calibration.restated_errors import RestatedError
from simulator.hardware.kernels.families import Family

if TYPE_CHECKING:
    from reports.calibration_report import PooledError

_KINDS_OF_ERROR = ("interpolated", "edge", "regions")


def calibration_tables(profile: CalibrationProfile) -> list[Table]:
    """Errors of left-out rows by family, where each family has rows, its worst rows, and inputs."""
    judged = [_errors(profile), _coverage(profile), _worst(profile)] if profile.fits else []
    if profile.restated_from:
        judged.append(_elsewhere(profile))
    return [*judged, _inputs(profile)]


def collective_table(name: str, fitted: Mapping[tuple[str, str], CollectiveErrors]) -> Table:
    """How well collective operations are known, by operation and range of size."""
    table = Table(
        title=f"transport {name}: error of left-out sizes, all numbers of GPUs at once",
        title_justify="left",
    )
    table.add_column("operation, types")
    for column in ("up to", "rows", "median / p90", "repeats", "in 80% interval"):
        table.add_column(column, justify="right")
    for (operation, types), errors in fitted.items():
        noise = np.expm1(np.abs(errors.noise))
        repeats = "none"
        if len(noise):
            repeats = f"{np.median(noise):.1%} / {np.quantile(noise, 0.9):.1%}"
        for number in np.unique(errors.group):
            chosen = errors.group == number
            found = np.expm1(np.abs(errors.error[chosen]))
            table.add_row(
                f"{operation}, {types}",
                format_bytes(errors.size[chosen].max()),
                f"{len(found):,}",
                f"{np.median(found):.1%} / {np.quantile(found, 0.9):.1%}",
                repeats,
                f"{errors.covered[chosen].mean():.0%}",
            )
    return table


def normal_table(fitted: Mapping[tuple[str, int], FittedLaw]) -> Table:
    """How well normal dispatch and combine kernels are known, by direction and nodes."""
    table = Table(
        title="normal kernels by SMs: error of left-out rows, median / 90th percentile",
        title_justify="left",
    )
    table.add_column("operation, nodes")
    for column in ("rows", "tokens left out", "SM count left out"):
        table.add_column(column, justify="right")
    for (operation, nodes), found in fitted.items():
        errors = [np.expm1(np.abs(e)) for e in (found.tokens_left_out, found.sms_left_out)]
        table.add_row(
            f"{operation}, {nodes}",
            f"{len(errors[0]):,}",
            *(f"{np.median(e):.1%} / {np.quantile(e, 0.9):.1%}" for e in errors),
        )
    return table


def low_latency_table(fitted: FittedLowLatency) -> Table:
    """How well low-latency dispatch and combine kernels within a node are known."""
    table = Table(
        title="low-latency kernels within a node: error of left-out rows, median / worst",
        title_justify="left",
    )
    table.add_column("operation")
    for column in ("rows", "tokens left out"):
        table.add_column(column, justify="right")
    for operation, errors in fitted.left_out.items():
        off = np.expm1(np.abs(errors))
        table.add_row(operation, f"{len(off)}", f"{np.median(off):.1%} / {off.max():.1%}")
    return table


def explained_tables(read: ImportedRows, chosen: ImportedRows) -> list[Table]:
    """What sources were read as, which kernels are taken of them, and what is set aside."""
    sources = Table("sources, read by", title_justify="left")
    for line in read.read_by:
        sources.add_row(line)
    taken = {(kernel_of(row), row.kernel_set) for row in chosen.measurements}
    counts = Counter((kernel_of(row), row.kernel_set) for row in read.measurements)
    kernels = Table("kernel", "kernel set", "taken", title_justify="left", caption_justify="left")
    kernels.add_column("rows", justify="right")
    for (kernel, name), rows in sorted(counts.items()):
        is_taken = "yes" if (kernel, name) in taken else "no"
        kernels.add_row(kernel_text(kernel), name, is_taken, f"{rows:,}")
    kernels.caption = f"of one kernel in several sets: {RULE}"
    aside = Table("set aside", title_justify="left")
    for line in (*chosen.warnings, *map(str, chosen.unmapped)) or ("nothing",):
        aside.add_row(line)
    return [sources, kernels, aside]


def module_table(errors: Sequence[ModuleError]) -> Table:
    """Whole modules as they were timed, and the sum of their kernels over that."""
    table = Table(
        "module", "size", title="whole modules beside the sum of their kernels",
        title_justify="left",
    )  # fmt: skip
    for name in ("rows", "measured", "sum / measured - 1", "10% to 90%"):
        table.add_column(name, justify="right")
    for error in errors:
        table.add_row(
            error.module,
            error.size,
            str(error.rows),
            format_seconds(error.seconds),
            f"{error.error:+.1%}",
            f"{error.low:+.0%} to {error.high:+.0%}",
        )
    return table


def _elsewhere(profile: CalibrationProfile) -> Table:
    """What kernel times rest on where the calibration has no rows of its own."""
    table = Table(
        title=f"{profile.name}: {profile.gpu}, {profile.basis}; rows of other GPUs, scaled by the "
        "ceilings of both",
        title_justify="left",
    )
    for column in ("for", "from calibration", "time here / scaled one"):
        table.add_column(column, overflow="fold")
    table.add_column("source", overflow="fold")
    families = "kernel families without rows" if profile.measurements else "every kernel family"
    error = profile.restatement or profile.other_gpu
    table.add_row(
        families,
        "\n".join(profile.restated_from),
        f"{error.value:g}\n{error.low:g} to {error.high:g}",
        error.source,
    )
    table.caption = "dsv3sim show calibration NAME: the errors of those rows"
    table.caption_justify = "left"
    return table


def pooled_table(pooled: Sequence[PooledError], least_rows: int) -> Table:
    """Errors of left-out rows by family, of all its tables together, beside the noise floor."""
    table = Table(
        title=f"error of left-out rows by family, tables of at least {least_rows} rows pooled, "
        "rows at the ends of their shape apart",
        title_justify="left",
    )
    table.add_column("family", min_width=28)
    for column in ("tables", "rows", "median / p90", "noise floor"):
        table.add_column(column, justify="right")
    if any(error.suspect for error in pooled):
        table.add_column("")
        table.caption = (
            "below the noise: less than half the noise floor, by luck, or because rows of equal "
            "sizes differ in what the sizes do not tell"
        )
        table.caption_justify = "left"
    for error in pooled:
        known = error.noise_median is not None and error.noise_p90 is not None
        table.add_row(
            error.family,
            str(error.tables),
            f"{error.rows:,}",
            f"{_percent(error.median)} / {_percent(error.p90)}%",
            f"{_percent(error.noise_median or 0.0)} / {_percent(error.noise_p90 or 0.0)}%"
            if known
            else "-",
            *(["below the noise"] if error.suspect else []),
        )
    if not pooled:
        table.add_row("none: every table has fewer rows")
    return table


def _inputs(profile: CalibrationProfile) -> Table:
    """What no table holds: value, interval and source of each, under the name to set it by."""
    table = Table(
        title="inputs that no table holds; --set calibration.NAME=VALUE changes one",
        title_justify="left",
    )
    table.add_column("name", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("source", overflow="fold")
    for name, value, source in _stated(profile, ""):
        table.add_row(name, value, source)
    return table


def _stated(profile: Profile, path: str) -> Iterator[tuple[str, str, str]]:
    """Name, value and source of every number of a profile and of the profiles in it."""
    for name in type(profile).model_fields:
        value, where = getattr(profile, name), f"{path}{name}"
        if isinstance(value, Estimate):
            yield _estimate(value, where)
        elif isinstance(value, KernelsProfile):
            whose = f"{value.name} ({value.date}), for {' and '.join(value.jobs)}"
            yield f"{where}.kind", value.kind, f"{whose}; {value.sources.get('name', '')}"
        elif isinstance(value, Profile):
            yield from _stated(value, f"{where}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            text = format_bandwidth(value) if "bandwidth" in name else f"{value:g}"
            yield where, text, profile.sources.get(name, "")
        elif isinstance(value, dict) and all(isinstance(v, Estimate) for v in value.values()):
            yield from (_estimate(entry, f"{where}.{key}") for key, entry in value.items())
        elif isinstance(value, dict) and name != "sources":
            text = "\n".join(f"{key}: {entry:g}" for key, entry in value.items())
            yield where, text, profile.sources.get(name, "")


def _estimate(value: Estimate, where: str) -> tuple[str, str, str]:
    ends = (value.value, value.low, value.high)
    at, low, high = (
        format_seconds(end) if isinstance(value, TimeEstimate) else f"{end:g}" for end in ends
    )
    return f"{where}.value", f"{at}\n{low} to {high}", value.source


def _errors(profile: CalibrationProfile) -> Table:
    table = Table(
        title=f"{profile.name}: {profile.gpu}, {profile.basis}; error of left-out rows, "
        "median / p90, worst of rows",
        title_justify="left",
    )
    table.add_column("family, kernel set", min_width=28, overflow="fold")
    for column in ("rows", "noise floor", *_KINDS_OF_ERROR):
        table.add_column(column, justify="right")
    for fit in profile.fits:
        table.add_row(
            f"{family_name(fit_family(fit))}\n  {fit.kernel_set}",
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
        table.add_row(family_name(fit_family(fit)), fit.kernel_set, ranges)
    return table


def _worst(profile: CalibrationProfile) -> Table:
    table = Table(
        title="worst rows: predicted without the row / measured - 1", title_justify="left"
    )
    table.add_column("family", overflow="fold")
    table.add_column("rows", overflow="fold")
    for fit in profile.fits:
        table.add_row(f"{family_name(fit_family(fit))}, {fit.kernel_set}", "\n".join(fit.worst))
    return table


def family_name(family: Family) -> str:
    """A kernel family as people read it."""
    kind, dtype, out_dtype, accumulates = family
    return f"{kind} {dtype} -> {out_dtype}{', added' if accumulates else ''}"


def fit_family(fit: FitProfile) -> Family:
    """The family that a fit is of."""
    return fit.kind, fit.dtype, fit.out_dtype, fit.accumulate


def restatement_table(title: str, errors: Sequence[RestatedError]) -> Table:
    """Signed errors of rows predicted from another GPU, and how many lie inside their interval."""
    rows = sum(error.rows for error in errors)
    inside = sum(error.inside for error in errors)
    table = Table(
        title=f"{title}; {inside} of {rows} rows ({inside / rows:.0%}) inside the 80% interval",
        title_justify="left",
    )
    table.add_column("family, kernel set", min_width=30)
    columns = ("size", "rows", "error: median\np10 to p90", "inside", "measured\npredicted")
    for column in columns:
        table.add_column(column, justify="right")
    for error in errors:
        table.add_row(
            f"{error.family}\n  {error.kernel_set}",
            error.range,
            str(error.rows),
            f"{error.median:+.1%}\n{error.p10:+.0%} to {error.p90:+.0%}",
            f"{error.inside}",
            f"{format_ms(error.measured_s)}\n{format_ms(error.predicted_s)}",
        )
    return table


def format_ms(seconds: float) -> str:
    """Milliseconds with three digits."""
    return f"{seconds / unit_factor('ms', 'time'):.3g} ms"
