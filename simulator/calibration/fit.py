"""Fit cost models to measured kernel times and report their held-out errors.

    result = fit_calibration([Path("gemm.csv")], gpu="h200_sxm", name="mine", base="h200_sxm")

Every kernel family in every kernel set is judged on its own rows: versions of a kernel never share
a fit. Three kinds of error, each relative to the measured time:

    interpolated    rows left out one at a time, with rows of the same shape on both sides
    edge            rows left out one at a time at the ends of their shape: extrapolated
    regions         whole shapes left out (a quarter at a time), or octaves of time
                    where there are fewer shapes than that

The form of the model (curves, a lattice or a surface, and its stiffness) is the one with the
smallest error of left-out rows, and so are the tiles of matrix products. Beside the errors stands
the noise floor, how far rows of equal work lie apart: the same sizes, or GEMM rows that fill the
same tile of 64. No model gets below it but by luck.

Rows of transfers between GPUs are no kernels; `collective_fit` makes a transport of them.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.fields import ROOT, read_yaml
from hardware_profiles.schema import (
    CalibrationProfile,
    FitProfile,
    GpuProfile,
    HeldOutError,
    TilesProfile,
    known_calibrations,
    load_calibration,
    load_gpu,
    read_profile,
)
from hardware_profiles.tables import (
    TRANSFER_KINDS,
    Measurement,
    format_pairs,
    table_path,
    write_measurements,
)
from hardware_profiles.whole_files import write_whole
from simulator.calibration.collective_fit import (
    KINDS,
    FittedTransport,
    beside_text,
    fitted_transport,
)
from simulator.calibration.kernel_choice import choose_versions
from simulator.calibration.normal_fit import (
    NIC,
    SOURCE,
    FittedLaw,
    Key,
    fit_normal,
    normal_kernels,
    normal_key,
    normal_tables_of,
)
from simulator.calibration.sources import read_sources
from simulator.calibration.tables import kernel_sets
from simulator.hardware.kernels.curves import QUANTILE, Rows, curve_held_out, shapes_of
from simulator.hardware.kernels.families import (
    Family,
    batch_of_rows,
    calibration_measurements,
    check_row,
    family_of,
    operator_of,
)
from simulator.hardware.kernels.models import fit_form
from simulator.hardware.kernels.roofline import (
    SMALL_TILE_ROWS,
    Ideal,
    batch_of_sizes,
    waves_and_bytes,
)
from simulator.hardware.kernels.surface import CANDIDATES, ROWS_OF, KernelSurface
from simulator.hardware.kernels.wave_lattice import SHAPE, WaveLattice

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

FormName = Literal["best", "monotone", "surface"]
"""How a family is modelled; monotone: curves, or a lattice over waves and bytes."""

LEAST_ROWS = 5
"""Fewer rows of a family are used but not judged."""
SEARCH_ROWS = 3000
"""Rows that the form of a model is chosen on; more are thinned out evenly."""
REGION_ROWS = 6000
"""Rows whose regions are left out; more are thinned out evenly."""
MOST_CURVE_ROWS = 200
"""Rows up to which curves are tried: they are for tables that scan one size at a few shapes."""
CLIPPED = 0.5
"""Log error beyond which a row counts no further in that choice: it is an outlier."""
TILED = frozenset({"gemm", "grouped_gemm", "masked_grouped_gemm", "grouped_gemm_weight_grad"})
OTHER_TILES = (
    TilesProfile(narrowest=16, overhead=32, half_height_rows=0),
    TilesProfile(narrowest=128, overhead=32, half_height_rows=0),
)
"""Tiles that are tried besides the base's: always of full height, and also of full width, as a
library has them that does not search."""
LEAST_ROWS_FOR_TILES = 40
CLEARLY_BETTER = 0.9
"""Other tiles must bring the error below this share of it: less is chance."""
FOLDS = 4
WORST = 10
FALL_STEPS = 100
"""Numbers of rows at which each shape is looked at for times that fall."""
DEFAULT_BASE = "h800_sxm"


@dataclass(frozen=True, slots=True)
class HeldOutRow:
    """One measured row and what the model says without it."""

    measurement: Measurement
    predicted_s: float
    edge: bool
    """At an end of its shape, where the model extrapolates."""

    @property
    def error(self) -> float:
        """predicted / measured - 1."""
        return self.predicted_s / self.measurement.seconds - 1


@dataclass(frozen=True, slots=True)
class Calibration:
    """What `fit_calibration` gives."""

    profile: CalibrationProfile
    measurements: tuple[Measurement, ...]
    held_out: tuple[HeldOutRow, ...]
    unmapped: tuple[str, ...]
    """Kernels of traces without a row, one line each."""
    warnings: tuple[str, ...]
    read_by: tuple[str, ...]
    """The mapping of each source."""
    completed: tuple[str, ...] = ()
    """What the rows lack: "calibration that answers: kinds of kernels"."""
    transport: FittedTransport | None = None
    """Of rows of collective operations, which a file of its own holds."""
    normal: Mapping[Key, FittedLaw] = field(default_factory=dict)
    """Laws of normal dispatch and combine kernels by SMs, likewise."""
    modules: tuple[Path, ...] = ()
    """Tables of whole modules among the sources."""


def fit_calibration(
    sources: Sequence[Path],
    *,
    gpu: str,
    name: str,
    base: CalibrationProfile,
    mappings: Sequence[str] = (),
    sets: Sequence[str] = (),
    form: FormName = "best",
    completed_by: Sequence[str] = (),
    stated: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """Read sources, fit every family and judge the fits.

    Args:
        gpu: GPU profile that all sources were measured on.
        name: of the calibration.
        base: inputs that no table holds.
        mappings: how sources are read, as `sources.read_sources` takes them.
        sets: kernel sets to prefer, in order; of kernels of which they have no row, and where
            empty, those of the base, else the newest version (kernel_choice.py).
        form: of the models; "best" chooses by the error of left-out rows.
        completed_by: calibrations that answer for kernels without a row.
        stated: {column that tables lack: its value in every line}
        progress: told what is being done.

    Raises ValueError, one line, for a source that cannot be used or sources without a row.
    """
    read = read_sources(sources, gpu=gpu, mappings=mappings, stated=stated, progress=progress)
    warnings = list(read.warnings)
    unknown = [name for name in sets if name not in kernel_sets(read.measurements)]
    if unknown:
        raise ValueError(
            f"kernel set {unknown[0]!r} is in none of the sources; found: "
            f"{', '.join(kernel_sets(read.measurements))}"
        )
    choice = choose_versions(read.measurements, read.sets, named=(*sets, *base.kernel_sets))
    rows = list(choice.rows)
    warnings += [f"{count} rows set aside: {reason}" for reason, count in choice.aside.items()]
    progress(f"fitting {len(rows):,} rows")
    profile = load_gpu(gpu)
    normal = fit_normal(normal_tables_of(rows, base, profile, nic=NIC))
    kernels = [row for row in rows if normal_key(row) not in normal]
    fits, held_out = fit_families(
        kernels, gpu=profile, floor=base.kernel_floor.value, tiles=base.tiles, form=form
    )
    judged = {(fit.kind, fit.dtype, fit.out_dtype, fit.kernel_set) for fit in fits}
    unused = [row.kind for row in rows if row.kind in TRANSFER_KINDS - KINDS]
    if unused:
        warnings.append(
            f"{len(unused)} rows are of no kernel or collective operation and decide nothing: "
            f"{', '.join(sorted(set(unused)))}"
        )
    few = [
        row
        for row in kernels
        if row.kind not in TRANSFER_KINDS
        and (row.kind, row.dtype, row.out_dtype, row.kernel_set) not in judged
    ]
    if few:
        kinds = ", ".join(sorted({row.kind for row in few}))
        warnings.append(
            f"{len(few)} rows of fewer than {LEAST_ROWS} sizes a family are not judged: {kinds}"
        )
    found = choice.sets
    named = base.kernels if set(found) <= set(base.kernel_sets) else None
    if named is None:
        warnings.append(
            "the file does not say whose kernels these are: add `kernels` with kind (engine or "
            "reference), name, date and jobs, so that comparisons of runs can name them"
        )
    values = {
        "name": name,
        "kernels": named,
        "gpu": gpu,
        "kernel_sets": found,
        "basis": "measured",
        "completed_by": tuple(completed_by),
        "fits": tuple(fits),
    }
    return Calibration(
        profile=base.model_copy(update=values),
        measurements=tuple(rows),
        held_out=tuple(held_out),
        unmapped=read.unmapped,
        warnings=tuple(warnings),
        read_by=read.mappings,
        completed=_completed(completed_by, rows),
        transport=fitted_transport(f"{name}{_COLLECTIVES}", rows, gpu=profile),
        normal=normal,
        modules=read.modules,
    )


def _completed(names: Sequence[str], rows: Iterable[Measurement]) -> tuple[str, ...]:
    """Kinds of kernels that have no row and are answered for by other calibrations, one line a
    calibration."""
    known = {family_of(operator_of(row)) for row in rows if row.kind not in TRANSFER_KINDS}
    kinds = {kind for kind, *_ in known}
    lines = []
    for name in names:
        families = {
            family_of(operator_of(row))
            for row in calibration_measurements(load_calibration(name))
            if row.kind not in TRANSFER_KINDS
        }
        missing = sorted(
            {
                f"{kind} {dtype} -> {out_dtype}" if kind in kinds else kind
                for kind, dtype, out_dtype, _ in families - known
            }
        )
        known |= families
        if missing:
            lines.append(f"{name}: {', '.join(missing)}")
    return tuple(lines)


def fit_families(
    rows: Iterable[Measurement],
    *,
    gpu: GpuProfile,
    floor: float,
    tiles: TilesProfile,
    form: FormName = "best",
) -> tuple[list[FitProfile], list[HeldOutRow]]:
    """Judge every family of every kernel set with at least `LEAST_ROWS` distinct sizes.

    Args:
        floor: added to times at peak: what a kernel takes that does nothing.
        tiles: of matrix products, unless others fit a kernel set better.
        form: of the models; "best" chooses by the error of left-out rows.
    """
    groups: dict[tuple[Family, str], list[Measurement]] = defaultdict(list)
    rows = list(rows)
    for row in rows:
        if row.kind in TRANSFER_KINDS:
            continue
        check_row(row)
        family = (row.kind, row.dtype, row.out_dtype, row.accumulates)
        groups[family, row.kernel_set].append(row)
    fits: list[FitProfile] = []
    held_out: list[HeldOutRow] = []
    for (family, kernel_set), members in sorted(groups.items(), key=lambda entry: str(entry[0])):
        distinct = _averaged(members)
        if len(distinct) < LEAST_ROWS:
            continue
        fit, errors = _judge(
            family,
            kernel_set,
            members,
            distinct,
            table_of(distinct, gpu, floor, tiles),
            form=form,
            gpu=gpu,
            tiles=tiles,
        )
        fits.append(fit)
        held_out.extend(errors)
    return fits, held_out


def _averaged(rows: Sequence[Measurement]) -> list[Measurement]:
    """Rows of the same sizes and SMs as one, the mean of logarithms: a shape is left out whole."""
    groups: dict[tuple[object, ...], list[Measurement]] = defaultdict(list)
    for row in rows:
        groups[row.sizes, row.sms].append(row)
    return [
        replace(group[0], seconds=statistics.geometric_mean([row.seconds for row in group]))
        if len(group) > 1
        else group[0]
        for group in groups.values()
    ]


def table_of(
    rows: Sequence[Measurement], gpu: GpuProfile, floor: float, tiles: TilesProfile
) -> Rows:
    """Rows of one family, under the condition that they were measured in."""
    batch = batch_of_rows(rows)
    sms = np.array([row.sms for row in rows], dtype=np.float64)
    return Rows(
        batch=batch,
        sms=sms,
        log_seconds=np.log(np.array([row.seconds for row in rows])),
        ideal=Ideal(*waves_and_bytes(batch, sms, gpu, tiles), floor),
        weights=np.ones(len(rows)),
        direct=np.ones(len(rows), dtype=np.bool_),
        spread=np.full(len(rows), np.nan),
    )


def _with_tiles(table: Rows, gpu: GpuProfile, tiles: TilesProfile) -> Rows:
    """The same rows with the times at peak of other tiles."""
    ideal = Ideal(*waves_and_bytes(table.batch, table.sms, gpu, tiles), table.ideal.floor)
    return replace(table, ideal=ideal)


def _varying(row: Measurement, names: Collection[str]) -> str:
    """The sizes that tell a row from the others of its family."""
    return format_pairs(pair for pair in (*row.sizes, ("sms", row.sms)) if pair[0] in names)


@dataclass(frozen=True, slots=True)
class Form:
    """One way to model a family."""

    estimator: Literal["curves", "lattice", "surface"]
    stiffness: tuple[float, float] | None = None


CURVES = Form("curves")


def _judge(
    family: Family,
    kernel_set: str,
    repeated: Sequence[Measurement],
    rows: Sequence[Measurement],
    table: Rows,
    *,
    form: FormName,
    gpu: GpuProfile,
    tiles: TilesProfile,
) -> tuple[FitProfile, list[HeldOutRow]]:
    """Choose the form and the tiles, and judge them.

    Args:
        repeated: all rows; `rows` has those of the same sizes and SMs as one.
        table: of `rows`.
        tiles: of `table`, used unless others are clearly better.
    """
    chosen, error = _best_form(table, form)
    other_tiles = None
    if family[0] in TILED and len(rows) >= LEAST_ROWS_FOR_TILES:
        error = _score(table, chosen) if error is None else error
        for candidate in OTHER_TILES:
            rival = _with_tiles(table, gpu, candidate)
            rival_error = _score(rival, chosen)
            if rival_error < CLEARLY_BETTER * error:
                table, error, other_tiles = rival, rival_error, candidate
    fit, held_out = _judged(family, kernel_set, repeated, rows, table, chosen, other_tiles)
    falls = _falls(table, chosen, gpu, other_tiles or tiles)
    return fit.model_copy(update={"falls": falls}), held_out


def _judged(
    family: Family,
    kernel_set: str,
    repeated: Sequence[Measurement],
    rows: Sequence[Measurement],
    table: Rows,
    form: Form,
    tiles: TilesProfile | None,
) -> tuple[FitProfile, list[HeldOutRow]]:
    errors = _leave_one_out(table, form)
    edge = at_edge(table)
    predicted = np.exp(table.log_seconds - errors)
    held_out = [
        HeldOutRow(row, float(seconds), bool(outside))
        for row, seconds, outside in zip(rows, predicted, edge, strict=True)
    ]
    sizes = dict(zip(table.batch.names, table.batch.sizes.T, strict=True))
    varying = {name for name, values in sizes.items() if values.min() < values.max()}
    if table.sms.min() < table.sms.max():
        varying.add("sms")
    fit = FitProfile(
        kind=family[0],
        dtype=family[1],
        out_dtype=family[2],
        accumulate=family[3],
        kernel_set=kernel_set,
        rows=len(rows),
        estimator=form.estimator,
        stiffness=form.stiffness,
        tiles=tiles,
        noise=summary(noise(repeated)),
        interpolated=summary(errors[~edge]),
        edge=summary(errors[edge]),
        regions=summary(_leave_regions_out(_thinned(table, REGION_ROWS), form)),
        coverage={
            **{name: (int(values.min()), int(values.max())) for name, values in sizes.items()},
            "sms": (int(table.sms.min()), int(table.sms.max())),
        },
        worst=_worst(held_out, varying),
    )
    return fit, held_out


def _falls(table: Rows, form: Form, gpu: GpuProfile, tiles: TilesProfile) -> float | None:
    """Largest share by which a product of more rows is predicted faster than one of fewer.

    Between the first and the last row of each shape, with the SMs that most rows had; None for
    kinds whose rows are no tokens, and where no shape has two.
    """
    batch, axis = table.batch, ROWS_OF.get(table.batch.kind)
    if axis is None or batch.kind == "grouped_gemm_weight_grad":
        return None
    column = batch.names.index(axis)
    scans: list[NDArray[np.int64]] = []
    for _, rows in shapes_of(batch):
        ends = batch.sizes[rows, column]
        counts = np.unique(np.geomspace(max(ends.min(), 1), max(ends.max(), 1), FALL_STEPS).round())
        if len(counts) > 1:
            sizes = np.repeat(batch.sizes[rows[:1]], len(counts), axis=0)
            sizes[:, column] = counts
            scans.append(sizes)
    if not scans:
        return None
    stacked = batch_of_sizes(batch.like, np.concatenate(scans))
    known, times = np.unique(table.sms, return_counts=True)
    sms = np.full(len(stacked), known[times.argmax()])
    nothing = np.zeros(len(stacked))
    others = Rows(
        batch=stacked,
        sms=sms,
        log_seconds=nothing,
        ideal=Ideal(*waves_and_bytes(stacked, sms, gpu, tiles), table.ideal.floor),
        weights=nothing,
        direct=np.zeros(len(stacked), dtype=np.bool_),
        spread=nothing,
    )
    told = np.split(predictor(table, form)(others), np.cumsum([len(scan) for scan in scans])[:-1])
    largest = max(float((np.maximum.accumulate(scan) - scan).max()) for scan in told)
    return round(-math.expm1(-largest), 4)


def _worst(held_out: Sequence[HeldOutRow], varying: Collection[str]) -> tuple[str, ...]:
    """The rows of the largest errors, by the sizes that tell rows apart."""
    worst = sorted(held_out, key=lambda row: -abs(np.log1p(row.error)))[:WORST]
    return tuple(
        f"{_varying(row.measurement, varying)}: {row.error:+.1%}" + (" (edge)" if row.edge else "")
        for row in worst
    )


def _best_form(table: Rows, wanted: FormName) -> tuple[Form, float | None]:
    """The form with the smallest error of left-out rows, and that error where forms were tried."""
    forms: list[Form] = []
    few = len(table) <= MOST_CURVE_ROWS
    if wanted == "monotone" or (wanted == "best" and few):
        forms.append(CURVES)
    if wanted != "surface" and table.batch.kind in SHAPE and few:
        forms += [Form("lattice", stiffness) for stiffness in CANDIDATES]
    if wanted != "monotone":
        forms += [Form("surface", stiffness) for stiffness in CANDIDATES]
    if len(forms) == 1:
        return forms[0], None
    scores = [_score(table, candidate) for candidate in forms]
    best = min(scores)
    return forms[scores.index(best)], best


def _score(table: Rows, form: Form) -> float:
    """Mean absolute log error of left-out rows, outliers clipped."""
    errors = _leave_one_out(_thinned(table, SEARCH_ROWS), form)
    return float(np.minimum(np.abs(errors), CLIPPED).mean())


def _thinned(table: Rows, most: int) -> Rows:
    if len(table) <= most:
        return table
    return table.take(np.linspace(0, len(table) - 1, most).astype(np.intp))


def _leave_one_out(table: Rows, form: Form) -> Array:
    """[rows] log measured minus log predicted without the row."""
    if form.estimator == "curves":
        return curve_held_out(table)
    model = _fitted(table, form)
    if isinstance(model, KernelSurface):
        return model.leave_one_out
    errors = np.empty(len(table))
    for row in range(len(table)):
        rest = np.delete(np.arange(len(table)), row)
        alone = table.take(np.array([row]))
        without = predictor(table.take(rest), form)(alone)
        errors[row] = alone.log_seconds[0] - without[0]
    return errors


def _leave_regions_out(table: Rows, form: Form) -> Array:
    """[rows] the same with all rows of a region left out."""
    regions = np.empty(len(table), dtype=np.intp)
    shapes = shapes_of(table.batch)
    if len(shapes) >= FOLDS:
        for number, (_, rows) in enumerate(shapes):
            regions[rows] = number % FOLDS
    else:
        regions = np.round(np.log2(np.exp(table.log_ideal))).astype(np.intp)
    errors = np.full(len(table), np.nan)
    for region in np.unique(regions):
        out = regions == region
        if out.all():
            continue
        predict = predictor(table.take(np.flatnonzero(~out)), form)
        errors[out] = table.log_seconds[out] - predict(table.take(np.flatnonzero(out)))
    judged: Array = errors[~np.isnan(errors)]
    return judged


def predictor(table: Rows, form: Form) -> Callable[[Rows], Array]:
    """Log seconds of other rows, from a model of one form fitted to a table."""
    if form.estimator == "curves":
        return lambda others: curve_held_out(table, others)
    model = _fitted(table, form)
    return lambda others: model.predict(others.batch, others.sms, others.ideal)


def _fitted(table: Rows, form: Form) -> KernelSurface | WaveLattice:
    assert form.estimator != "curves"
    assert form.stiffness is not None
    return fit_form(table, form.estimator, form.stiffness)


def at_edge(table: Rows) -> Mask:
    """[rows] whether a row is the first or last of its shape."""
    edge = np.ones(len(table), dtype=np.bool_)
    for _, rows in shapes_of(table.batch):
        for sms in np.unique(table.sms[rows]):
            members = rows[table.sms[rows] == sms]
            extents = table.batch.moved_bytes[members]
            edge[members] = (extents <= extents.min()) | (extents >= extents.max())
    return edge


def noise(rows: Sequence[Measurement]) -> Array:
    """Log of each row over the median of the others of equal work; empty without any."""
    groups: dict[tuple[object, ...], list[float]] = defaultdict(list)
    for row in rows:
        sizes = dict(row.sizes)
        axis = ROWS_OF.get(row.kind)
        if axis is not None and not row.accumulates and row.kind == "gemm":
            sizes[axis] = -(-sizes[axis] // SMALL_TILE_ROWS)
        groups[tuple(sorted(sizes.items())), row.sms].append(math.log(row.seconds))
    return np.array(
        [
            value - statistics.median(group[:place] + group[place + 1 :])
            for group in groups.values()
            if len(group) > 1
            for place, value in enumerate(group)
        ]
    )


def summary(errors: Array) -> HeldOutError | None:
    """Of log measured minus log predicted; None without a row."""
    if not len(errors):
        return None
    relative = np.expm1(-errors)
    size = np.abs(relative)
    return HeldOutError(
        rows=len(errors),
        median=_short(np.median(size)),
        p90=_short(np.quantile(size, 0.9)),
        worst=_short(size.max()),
        bias=_short(np.median(relative)),
        quantile_80=_short(np.quantile(np.abs(errors), QUANTILE)),
    )


def _short(value: Any) -> float:
    """Four digits: a file that is read by people, and the same on every machine."""
    return float(f"{float(value):.4g}")


def profile_text(profile: CalibrationProfile, raw_base: Mapping[str, Any]) -> str:
    """The calibration as a YAML file: inputs as the base states them, fits as they were found."""
    import yaml

    raw: dict[str, Any] = {
        "name": profile.name,
        "gpu": profile.gpu,
        "measurements": list(profile.measurements),
        "kernel_sets": list(profile.kernel_sets),
        "completed_by": list(profile.completed_by),
        "restated_from": list(profile.restated_from),
        "basis": profile.basis,
    }
    left = {*raw, "fits"} | (set() if profile.kernels else {"kernels"})
    kept = {key: value for key, value in raw_base.items() if key not in left}
    head = yaml.safe_dump({**raw, **kept}, sort_keys=False, allow_unicode=True, width=100)
    fits = [fit.model_dump(mode="json", exclude_none=True) for fit in profile.fits]
    lines = [
        "# Written by `dsv3sim calibrate`; inputs that no table holds are copied from the base.\n",
        head,
    ]
    if fits:
        lines.append("fits:\n")
        for fit in fits:
            text = yaml.safe_dump(fit, sort_keys=False, default_flow_style=None, width=1000)
            lines.append("  - " + text.rstrip().replace("\n", "\n    ") + "\n")
    return "".join(lines)


def calibrate_to_file(
    sources: Sequence[Path],
    *,
    gpu: str,
    out: Path,
    mappings: Sequence[str] = (),
    base: str | None,
    sets: Sequence[str] = (),
    form: FormName = "best",
    stated: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Calibration, list[Path]]:
    """Fit a calibration and write it; returns the result and the files written.

    Args:
        base: calibration whose other inputs are taken over: the GPU's own where not given, else
            that of the H800, the only one with a published overlapped pair.

    Raises ValueError for sources that cannot be used and an `out` that cannot be written.
    """
    if out.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--out {out}: allowed: a file ending in .yaml")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no directory {out.parent}")
    load_gpu(gpu)
    check_outputs(out, sources)
    name = base_of(gpu, base)
    raw, _ = read_profile("calibrations", name)
    base_profile = load_calibration(name)
    # A base without rows is answered for by others alone. No calibration completes itself.
    rows_of = (name,) if base_profile.measurements else base_profile.restated_from
    whose = tuple(dict.fromkeys((*rows_of, *base_profile.completed_by)))
    shipped = out.resolve().parent == (ROOT / "calibrations").resolve()
    result = fit_calibration(
        sources,
        gpu=gpu,
        name=out.stem,
        base=base_profile,
        completed_by=() if shipped else whose,
        mappings=mappings,
        sets=sets,
        form=form,
        stated=stated,
        progress=progress,
    )
    return result, write_calibration(result, out, base_raw=raw, sources=sources)


def base_of(gpu: str, base: str | None) -> str:
    """The calibration whose other inputs are taken over: the one named, else the GPU's own, else
    that of the H800."""
    return base or (gpu if gpu in known_calibrations() else DEFAULT_BASE)


def check_outputs(out: Path, sources: Sequence[Path]) -> None:
    """Refuse a calibration whose files would replace a source, or a table that is not its own.

    A table beside `out` is its own where the calibration that stands there rests on it.
    """
    table, beside = _table_to_write(out, sources), _to_write_beside(out)
    way_out = f"allowed: another name, such as --out {out.with_stem(f'{out.stem}_calibration')}"
    stands = read_yaml(out, where=str(out)) if out.exists() else {}
    for named, path in beside.items():
        if path.exists() and stands.get(named) != str(path):
            raise ValueError(
                f"--out {out}: would replace {path}, which no calibration of that name rests on; "
                f"{way_out}"
            )
    for written in (out, table, *beside.values()):
        if written is not None and written.resolve() in {source.resolve() for source in sources}:
            raise ValueError(f"--out {out}: would replace the source {written}; {way_out}")
    if table is None or not table.exists():
        return
    rests_on = stands.get("measurements")
    if not isinstance(rests_on, list) or not {str(table), table.stem} & set(map(str, rests_on)):
        raise ValueError(
            f"--out {out}: would replace {table}, which no calibration of that name rests on; "
            f"{way_out}"
        )


def _shipped_tables() -> dict[Path, str]:
    return {path.resolve(): path.stem for path in (ROOT / "measurements").glob("*.csv")}


def _table_to_write(out: Path, sources: Sequence[Path]) -> Path | None:
    """Where the rows of a calibration are written; None where this project's own tables hold them.

    Beside `out` with the ending .csv, for a shipped calibration among the shipped tables.
    """
    if {source.resolve() for source in sources} <= _shipped_tables().keys():
        return None
    if out.resolve().parent == (ROOT / "calibrations").resolve():
        return table_path(out.stem)
    return out.with_suffix(".csv").resolve()


_COLLECTIVES, _NORMAL = "_collectives", "_normal"
"""What the names of a calibration's own transport and normal kernels end in."""


def _to_write_beside(out: Path) -> dict[str, Path]:
    """{field that names it: file beside `out`, for a shipped calibration among its like}"""
    shipped = out.resolve().parent == (ROOT / "calibrations").resolve()
    folders = {"collectives": (_COLLECTIVES, "transports"), "normal_kernels": (_NORMAL, "normal")}
    return {
        named: (ROOT / folder if shipped else out.resolve().parent) / f"{out.stem}{ending}.yaml"
        for named, (ending, folder) in folders.items()
    }


def write_calibration(
    result: Calibration, out: Path, *, base_raw: Mapping[str, Any], sources: Sequence[Path]
) -> list[Path]:
    """Write a calibration, the table it rests on, its transport and its normal kernels; returns the
    files written.

    The calibration comes last, so that none ever rests on what is not there.
    """
    table = _table_to_write(out, sources)
    if table is None:
        shipped = _shipped_tables()
        names = [shipped[source.resolve()] for source in sources]
    else:
        write_measurements(table, result.measurements)
        names = [table.stem if table == table_path(out.stem) else str(table)]
    written = [out] if table is None else [out, table]
    texts = {}
    if result.transport is not None:
        texts["collectives"] = beside_text(result.transport.raw)
    if result.normal:
        raw = normal_kernels(
            f"{out.stem}{_NORMAL}", result.normal, gpus=[result.profile.gpu], source=SOURCE
        )
        texts["normal_kernels"] = beside_text(raw)
    for named, path in _to_write_beside(out).items():
        if named in texts:
            write_whole(path, texts[named])
            written.append(path)
            base_raw = {**base_raw, named: str(path)}
    profile = result.profile.model_copy(update={"measurements": tuple(names)})
    write_whole(out, profile_text(profile, base_raw))
    return written
