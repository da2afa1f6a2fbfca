"""Fit cost models to measured kernel times and report their held-out errors.

    result = fit_calibration([Path("gemm.csv")], gpu="h200_sxm", name="mine", base="h200_sxm")

Every kernel family in every kernel set is judged on its own rows: versions of a kernel never share
a fit. Three kinds of error, each relative to the measured time:

    interpolated    rows left out one at a time, with rows of the same shape on both sides
    edge            rows left out one at a time at the ends of their shape: extrapolated
    regions         whole shapes left out (a quarter at a time), or octaves of time
                    where there are fewer shapes than that

The lengths of a family's process (gaussian_process.py), its noise, and the tiles of matrix products
are those of the smallest error of rows left out, alone and with their whole shape. Beside the
errors stands the noise floor, how far rows of equal work lie apart: the same sizes, or GEMM rows
that fill the same tile of 64. No model gets below it but by luck.

Rows of transfers between GPUs are no kernels; `collective_fit` makes a transport of them.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
from simulator.hardware.kernels.families import (
    Family,
    batch_of_rows,
    calibration_measurements,
    check_row,
    family_of,
    operator_of,
)
from simulator.hardware.kernels.gaussian_process import (
    DEFAULT_LENGTH,
    DEFAULT_NOISE,
    Process,
    feature_names,
    features_of,
)
from simulator.hardware.kernels.measured_rows import Rows, shapes_of
from simulator.hardware.kernels.models import ENOUGH_RESIDUALS, QUANTILE, process_of
from simulator.hardware.kernels.roofline import SMALL_TILE_ROWS, Ideal, waves_and_bytes

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Mask = NDArray[np.bool_]

LEAST_ROWS = 5
"""Fewer rows of a family are used but not judged."""
LEAST_ROWS_FOR_LENGTHS = 16
"""Fewer say too little of how far a family's rows differ over each feature."""
SEARCHED_ROWS = 300
"""Rows that lengths are chosen on, drawn at random; all others take part in predicting them."""
JUDGED_ROWS = 4000
"""Rows that are left out and judged; of more, so many at random."""
STEPS = (1.2, 0.6)
"""Of the search, in logarithms of lengths and noise: each is gone through once for every step."""
LONGEST = 400.0
"""Octaves, of a feature that tells nothing; the shortest is its inverse."""
HELPS = 0.9998
"""Share of the error so far that a move must stay below."""
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
        kernels, gpu=profile, floor=base.kernel_floor.value, tiles=base.tiles
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
) -> tuple[list[FitProfile], list[HeldOutRow]]:
    """Judge every family of every kernel set with at least `LEAST_ROWS` distinct sizes.

    Args:
        floor: added to times at peak: what a kernel takes that does nothing.
        tiles: of matrix products, unless others fit a kernel set better.
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
        distinct = averaged(members)
        if len(distinct) < LEAST_ROWS:
            continue
        table = table_of(distinct, gpu, floor, tiles)
        groups_of_table = region_groups(table)
        fit, table = fit_rows(family, kernel_set, table, groups_of_table, gpu=gpu)
        fit, errors = _judged(members, distinct, table, groups_of_table, fit)
        fits.append(fit)
        held_out.extend(errors)
    return fits, held_out


def averaged(rows: Sequence[Measurement]) -> list[Measurement]:
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
        slowed=np.ones(len(rows)),
    )


def with_tiles(table: Rows, gpu: GpuProfile, tiles: TilesProfile) -> Rows:
    """The same rows with the times at peak of other tiles."""
    ideal = Ideal(*waves_and_bytes(table.batch, table.sms, gpu, tiles), table.ideal.floor)
    return replace(table, ideal=ideal)


def _varying(row: Measurement, names: Collection[str]) -> str:
    """The sizes that tell a row from the others of its family."""
    return format_pairs(pair for pair in (*row.sizes, ("sms", row.sms)) if pair[0] in names)


def fit_rows(
    family: Family, kernel_set: str, table: Rows, groups: Index, *, gpu: GpuProfile
) -> tuple[FitProfile, Rows]:
    """Choose the tiles and the lengths of a family; its rows with the times of those tiles.

    Args:
        table: of distinct sizes and SMs, with the calibration's own tiles, which are kept unless
            others are clearly better.
        groups: [rows] number of what is left out together.
    """
    fit = FitProfile(
        kind=family[0],
        dtype=family[1],
        out_dtype=family[2],
        accumulate=family[3],
        kernel_set=kernel_set,
        rows=len(table),
    )
    if len(table) < LEAST_ROWS_FOR_LENGTHS or len(np.unique(groups)) == 1:
        return fit, table
    fit = _with_lengths(table, groups, fit)
    if family[0] not in TILED or len(table) < LEAST_ROWS_FOR_TILES:
        return fit, table
    least = CLEARLY_BETTER * _score(table, groups, fit)
    for candidate in OTHER_TILES:
        rival = with_tiles(table, gpu, candidate)
        error = _score(rival, groups, fit)
        if error < least:
            table, least, fit = rival, error, fit.model_copy(update={"tiles": candidate})
    if fit.tiles is not None:
        fit = _with_lengths(table, groups, fit)
    return fit, table


def _with_lengths(table: Rows, groups: Index, fit: FitProfile) -> FitProfile:
    """The lengths and the noise of least error of left-out groups, one after another.

    Each is moved in logarithms as long as that helps, first by the larger and then by the smaller
    step; of what makes no difference the start remains.
    """
    names = feature_names(table.batch)
    found = np.log([*[DEFAULT_LENGTH] * len(names), DEFAULT_NOISE])

    def at(point: Array) -> FitProfile:
        values = [_short(value) for value in np.exp(point)]
        lengths = dict(zip(names, values[:-1], strict=True))
        return fit.model_copy(update={"lengths": lengths, "noise_share": values[-1]})

    least = _score(table, groups, at(found))
    features = features_of(table.batch, table.sms, table.ideal)
    moving = [*(np.ptp(features, axis=0) > 0), True]
    for step in STEPS:
        for number in np.flatnonzero(moving):
            for direction in (step, -step):
                helped = False
                while True:
                    candidate = found.copy()
                    candidate[number] += direction
                    if abs(candidate[number]) > math.log(LONGEST):
                        break
                    error = _score(table, groups, at(candidate))
                    if error >= least * HELPS:
                        break
                    found, least, helped = candidate, error, True
                if helped:
                    break
    return at(found)


def _score(table: Rows, groups: Index, fit: FitProfile) -> float:
    """Mean absolute log error of rows left out alone and with their group, outliers clipped."""
    both = (_held_out(table, out, fit, SEARCHED_ROWS)[0] for out in (np.arange(len(table)), groups))
    return float(np.mean([np.minimum(np.abs(errors), CLIPPED).mean() for errors in both]))


def _held_out(table: Rows, groups: Index, fit: FitProfile, most: int) -> tuple[Array, Array]:
    """Log errors of some rows without those of their group, and the model's deviation."""
    return _process(table, fit).held_out(groups, _some(len(table), most))


def _process(table: Rows, fit: FitProfile) -> Process:
    return process_of(table, table.log_seconds - table.ideal.log_seconds, fit)


def _some(count: int, most: int) -> Index:
    """Positions of rows: all, or so many of them at random, always the same."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def region_groups(table: Rows) -> Index:
    """[rows] the shape of each, or its octave of time at peak where shapes are too few."""
    shapes = shapes_of(table.batch)
    if len(shapes) < FOLDS:
        octaves = np.round(table.ideal.log_seconds / math.log(2.0))
        return np.unique(octaves, return_inverse=True)[1].astype(np.intp)
    groups = np.empty(len(table), dtype=np.intp)
    for number, (_, rows) in enumerate(shapes):
        groups[rows] = number
    return groups


def _judged(
    repeated: Sequence[Measurement],
    rows: Sequence[Measurement],
    table: Rows,
    groups: Index,
    fit: FitProfile,
) -> tuple[FitProfile, list[HeldOutRow]]:
    judged = _some(len(table), JUDGED_ROWS)
    errors, deviation = _held_out(table, np.arange(len(table)), fit, JUDGED_ROWS)
    edge = at_edge(table)[judged]
    predicted = np.exp(table.log_seconds[judged] - errors)
    held_out = [
        HeldOutRow(rows[place], float(seconds), bool(outside))
        for place, seconds, outside in zip(judged, predicted, edge, strict=True)
    ]
    left, left_deviation = np.empty(0), np.empty(0)
    if groups.max() > 0:
        left, left_deviation = _held_out(table, groups, fit, JUDGED_ROWS)
    sizes = dict(zip(table.batch.names, table.batch.sizes.T, strict=True))
    varying = {name for name, values in sizes.items() if values.min() < values.max()}
    if table.sms.min() < table.sms.max():
        varying.add("sms")
    found = {
        "noise": summary(noise(repeated)),
        "interpolated": summary(errors[~edge]),
        "edge": summary(errors[edge]),
        "regions": summary(left),
        "widths": (held_out_width(errors, deviation), held_out_width(left, left_deviation)),
        "coverage": {
            **{name: (int(values.min()), int(values.max())) for name, values in sizes.items()},
            "sms": (int(table.sms.min()), int(table.sms.max())),
        },
        "worst": _worst(held_out, varying),
    }
    return fit.model_copy(update=found), held_out


def held_out_width(errors: Array, deviation: Array) -> float | None:
    """80% quantile of log errors over the model's deviation; None where too few say so."""
    if len(errors) < ENOUGH_RESIDUALS:
        return None
    return _short(np.quantile(np.abs(errors) / deviation, QUANTILE))


def _worst(held_out: Sequence[HeldOutRow], varying: Collection[str]) -> tuple[str, ...]:
    """The rows of the largest errors, by the sizes that tell rows apart."""
    worst = sorted(held_out, key=lambda row: -abs(np.log1p(row.error)))[:WORST]
    return tuple(
        f"{_varying(row.measurement, varying)}: {row.error:+.1%}" + (" (edge)" if row.edge else "")
        for row in worst
    )


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
        if row.kind == "gemm" and not row.accumulates:
            sizes["m"] = -(-sizes["m"] // SMALL_TILE_ROWS)
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
