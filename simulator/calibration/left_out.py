"""Errors of the kernel model on groups of rows that were left out together, as tables.

    python -m simulator.calibration.left_out h100_sxm=FOLDER h200_sxm=FOLDER ...

A folder holds one GPU's published tables as `calibrate` reads them; one that is not there is named
and passed over. Of each table the lengths and the widths are found on every other group alone and
judged on the rest, so that no judged row has a part in them. What is left out together follows the
question that a prediction answers: another shape of a product (all m of one n and k), another load
of attention (all heads of one batch and length), of the experts' products another load of each
expert. Harder cuts stand below them: a band of m, with the row on either side of it, a number of
heads, of experts. Beside the errors stands the noise floor of the table, and how often the 80%
interval held.

A second table counts coverage, width and score of intervals (coverage.py) by how a time is known,
one row of each left-out group, so that the trials are not of one error: interpolated, between rows
of its shape; extrapolated, in another shape or beyond the rows of its own; measured, a row of the
whole steps' operators by the row of the same operator in another lease on the same type of GPU.
Families with fewer than 40 groups are pooled. "before" is what earlier releases said: a measured
row by the spread of its repeats alone, and all extrapolated ones by shapes left out.

Last, the times of one GPU by the rows of another (gpu_ratio.py), signed.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.calibration_parts import FitProfile, HeldOutError
from hardware_profiles.fields import ROOT
from hardware_profiles.schema import CalibrationProfile, load_calibration, load_cluster, load_gpu
from hardware_profiles.tables import (
    TRANSFER_KINDS,
    Measurement,
    load_measurements,
    table_path,
)
from reference_model.trace import ALL_TO_ALL_KINDS, KINDS
from simulator.calibration.coverage import COLUMNS, coverage
from simulator.calibration.family_fit import (
    LEAST_ROWS_FOR_LENGTHS,
    averaged,
    fit_rows,
    held_out_width,
    noise,
    summary,
    table_of,
    with_tiles,
)
from simulator.calibration.sources import read_sources
from simulator.hardware.common_errors import common_ends, common_errors
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernels.families import (
    Family,
    calibration_measurements,
    family_of,
    operator_of,
)
from simulator.hardware.kernels.gaussian_process import features_of
from simulator.hardware.kernels.measured_rows import Rows, extents_of, shapes_of
from simulator.hardware.kernels.models import (
    BETWEEN,
    BEYOND,
    ELSEWHERE,
    Scales,
    held_out_scales,
    process_of,
)
from simulator.hardware.kernels.roofline import batch_of, is_tensor
from simulator.hardware.prediction import (
    EXTRAPOLATED,
    INTERPOLATED,
    MEASURED,
    NORMAL_80,
    PROVENANCES,
)

Array = NDArray[np.float64]
Index = NDArray[np.intp]

CUTS: Mapping[str, tuple[str, ...]] = {
    "gemm": ("n", "k"),
    "batched_gemm": ("m", "n", "k"),
    "grouped_gemm": ("rows", "groups"),
    "masked_grouped_gemm": ("rows", "groups"),
    "mla_decode": ("sequences", "kv_length"),
    "mla_prefill": ("sequences", "kv_length"),
}
"""{kind: sizes of which rows of equal values are left out together}"""
HARDER: Mapping[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "batched_gemm": ("batch",),
    "grouped_gemm": ("groups",),
    "masked_grouped_gemm": ("groups",),
    "mla_decode": ("heads", "kv_length"),
    "mla_prefill": ("heads", "kv_length"),
}
"""{kind: sizes of which one value at a time is left out; of these an octave at a time:}"""
BANDS = ("m", "kv_length")
MOST_JUDGED = 3000
LEAST_TRIALS = 40
"""Families with fewer left-out groups are pooled."""
CLUSTERS: Mapping[str, str] = {
    "h100_sxm": "h100_96",
    "h200_sxm": "h200_8",
    "h800_sxm": "h800_2048",
    "b200_sxm": "b200_32",
    "gb200": "gb200_nvl72",
}
PAIRS = (("h200_sxm", "h100_sxm"), ("b200_sxm", "gb200"), ("h100_sxm", "h800_sxm"))


@dataclass(frozen=True, slots=True)
class CutErrors:
    """One cut of one table."""

    gpu: str
    family: str
    kernel_set: str
    cut: str
    rows: int
    groups: int
    """Parts that were left out, one at a time."""
    errors: Array
    """[judged rows] log measured minus log predicted."""
    inside: float
    """Share of them within the 80% interval."""
    noise: Array
    trials: Trials

    def line(self) -> str:
        """A row of a Markdown table."""
        error, floor = summary(self.errors), summary(self.noise)
        return (
            f"| {self.gpu} | {self.family} | {self.kernel_set} | {self.cut} | {self.rows:,} | "
            f"{self.groups} | {_pair(error)} | {self.inside:.0%} | {_pair(floor)} |"
        )


def _pair(error: HeldOutError | None) -> str:
    return "-" if error is None else f"{100 * error.median:.1f} / {100 * error.p90:.1f}"


def left_out_errors(
    gpu: str, rows: Sequence[Measurement], calibration: CalibrationProfile
) -> Iterator[CutErrors]:
    """All cuts of every table of one GPU whose kind has one.

    Args:
        calibration: whose kernel floor and tiles the times at peak take.
    """
    tables: dict[tuple[Family, str], list[Measurement]] = defaultdict(list)
    for row in rows:
        if row.kind in CUTS:
            family = family_of(row)
            tables[family, row.kernel_set].append(row)
    for (family, kernel_set), members in sorted(tables.items()):
        distinct = averaged(members)
        if len(distinct) < 2 * LEAST_ROWS_FOR_LENGTHS:
            continue
        yield from _errors_of(gpu, family, kernel_set, distinct, noise(members), calibration)


def _errors_of(
    gpu: str,
    family: Family,
    kernel_set: str,
    rows: Sequence[Measurement],
    floor: Array,
    calibration: CalibrationProfile,
) -> Iterator[CutErrors]:
    profile = load_gpu(gpu)
    table = table_of(rows, profile, calibration.kernel_floor.value, calibration.tiles)
    groups = _values(table, CUTS[family[0]])
    learned = np.flatnonzero(groups % 2 == 0)
    fit, _ = fit_rows(family, kernel_set, table.take(learned), groups[learned], gpu=profile)
    if fit.tiles is not None:
        table = with_tiles(table, profile, fit.tiles)
    process = process_of(table, table.log_seconds - table.ideal.log_seconds, fit)
    some = _some(learned)
    width = held_out_width(*process.held_out(groups, chosen=some)[0])
    judged = _some(np.flatnonzero(groups % 2 == 1))
    ((errors, deviation),) = process.held_out(groups, chosen=judged)
    name = f"{family[0]} {family[1]} -> {family[2]}"
    scales = held_out_scales(process, table, some)
    rng = np.random.default_rng(2)

    def told(
        cut: str, parts: int, errors: Array, deviation: Array, place: Index, reach: Index
    ) -> CutErrors:
        """Args:
        place: one judged row of each group.
        reach: where these lie.
        """
        inside = float(np.mean(np.abs(errors) <= (width or np.nan) * deviation))
        trials = trials_of(errors[place], deviation[place], reach, scales)
        return CutErrors(
            gpu, name, kernel_set, cut, len(rows), parts, errors, inside, floor, trials
        )

    alone = judged[_first_of(groups[judged], rng)]
    ((errors_alone, deviation_alone),) = process.held_out(np.arange(len(table)), chosen=alone)
    every = np.arange(len(alone))
    reach = reach_of(table, np.arange(len(table)), alone)
    yield told("a row", len(alone), errors_alone, deviation_alone, every, reach)
    some_of = _first_of(groups[judged], rng)
    reach = reach_of(table, groups, judged[some_of])
    parts = len(np.unique(groups[judged]))
    yield told(", ".join(CUTS[family[0]]), parts, errors, deviation, some_of, reach)
    for size in HARDER[family[0]]:
        bands = list(left_out_bands(table, size))
        if len(bands) > 1:
            found = [_without(table, fit, out, beside) for out, beside in bands]
            errors, deviation, places, reached = (
                np.concatenate(each) for each in zip(*found, strict=True)
            )
            some_of = _first_of(groups[places], rng)
            band = f"an octave of {size}, and beside it" if size in BANDS else size
            yield told(f"*{band}*", len(bands), errors, deviation, some_of, reached[some_of])


@dataclass(frozen=True, slots=True)
class Trials:
    """Log errors of rows of different groups, and half the width of their 80% intervals."""

    errors: Array
    before: Array
    now: Array
    known: NDArray[np.intp]
    """Places in prediction.PROVENANCES."""


def trials_of(errors: Array, deviation: Array, reach: Index, scales: Scales) -> Trials:
    """Trials of rows by the process's deviation, as earlier releases scaled it and as now."""
    inside, outside, beyond = (scale if scale is not None else np.nan for scale in scales)
    earlier = np.array([inside, outside, outside])
    now = np.fmax.accumulate([inside, outside, beyond])
    known = np.where(reach == BETWEEN, INTERPOLATED, EXTRAPOLATED).astype(np.intp)
    return Trials(errors, deviation * earlier[reach], deviation * now[reach], known)


def reach_of(table: Rows, groups: Index, chosen: Index) -> Index:
    """[chosen] where each row lies once its group is left out: BETWEEN, ELSEWHERE or BEYOND."""
    shape = np.empty(len(table), dtype=np.intp)
    for number, (_, members) in enumerate(shapes_of(table.batch)):
        shape[members] = number
    extents = extents_of(table.batch)
    found = np.full(len(chosen), ELSEWHERE, dtype=np.intp)
    for place, row in enumerate(chosen):
        left = extents[(shape == shape[row]) & (groups != groups[row])]
        if len(left):
            inside = left.min() <= extents[row] <= left.max()
            found[place] = BETWEEN if inside else BEYOND
    return found


def _first_of(groups: Index, rng: np.random.Generator) -> Index:
    """Position of one row of each group, at random."""
    order = rng.permutation(len(groups))
    return order[np.unique(groups[order], return_index=True)[1]]


def _values(table: Rows, sizes: Sequence[str]) -> Index:
    """[rows] number of each combination of sizes, in a random order that is always the same."""
    columns = table.batch.sizes[:, [table.batch.names.index(size) for size in sizes]]
    which = np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1)
    order = np.random.default_rng(0).permutation(which.max() + 1)
    return order[which].astype(np.intp)


def left_out_bands(table: Rows, size: str) -> Iterator[tuple[Index, Index]]:
    """Rows left out at a time, and the rows beside them that do not take part either."""
    values = table.batch.sizes[:, table.batch.names.index(size)]
    marks = np.floor(np.log2(values)) if size in BANDS else values
    known = np.unique(values)
    for mark in np.unique(marks):
        out = marks == mark
        beside = np.zeros_like(out)
        if size in BANDS:
            first, last = np.searchsorted(known, [values[out].min(), values[out].max()])
            near = known[max(first - 1, 0) : last + 2]
            beside = np.isin(values, near) & ~out
        yield np.flatnonzero(out), np.flatnonzero(beside)


def _without(
    table: Rows, fit: FitProfile, out: Index, beside: Index
) -> tuple[Array, Array, Index, Index]:
    """Log errors of some rows left out, the model's deviation, which they are and how they lie."""
    gone = np.concatenate([out, beside])
    rest = table.take(np.setdiff1d(np.arange(len(table)), gone))
    process = process_of(rest, rest.log_seconds - rest.ideal.log_seconds, fit)
    places = _some(out, MOST_JUDGED // 10)
    some = table.take(places)
    mean, deviation = process.predict(features_of(some.batch, some.sms, some.ideal))
    groups = np.zeros(len(table), dtype=np.intp)
    groups[gone] = 1
    errors = some.log_seconds - some.ideal.log_seconds - mean
    return errors, deviation, places, reach_of(table, groups, places)


def _some(places: Index, most: int = MOST_JUDGED) -> Index:
    if len(places) <= most:
        return places
    return np.sort(np.random.default_rng(1).choice(places, most, replace=False))


def measured_trials(
    again: Iterable[tuple[str, Sequence[Measurement], Sequence[Measurement]]],
) -> Iterator[tuple[str, Trials]]:
    """Rows by rows of the same work, timed again on another GPU of the same type.

    Yields (family, trials) of each pair of tables, one trial for each distinct work. All trials of
    a pair share the difference of its two GPUs, whose deviation is sqrt(2) times that of one.

    Args:
        again: (GPU type, rows that are known, rows that are judged)
    """
    errors = common_errors()
    for gpu, known_rows, judged_rows in again:
        profile = load_gpu(gpu)
        known, judged = (
            {_same_work(row): row for row in rows if row.kind in KINDS}
            for rows in (known_rows, judged_rows)
        )
        calibration = load_calibration(gpu)
        ends = common_ends(calibration, profile, known.values(), sustained_job=False)
        spreads = [row.spread for row in known.values() if row.spread is not None]
        least = float(np.median(spreads)) / 2
        families: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
        for key in sorted(known.keys() & judged.keys(), key=str):
            row = known[key]
            repeats = max(row.spread or 0.0, least)
            apart = errors.repeat(tensor=is_tensor(row.kind))
            seconds = np.array([row.seconds])
            device = ends.of(batch_of([operator_of(row)]), seconds, profile)[0, 0]
            # Both of the two times are of one run, on one GPU.
            wide = np.hypot(NORMAL_80 * np.hypot(repeats, 2**0.5 * apart), 2**0.5 * device)
            families[f"{row.kind} {row.dtype} -> {row.out_dtype}"].append(
                (float(np.log(judged[key].seconds / row.seconds)), NORMAL_80 * repeats, float(wide))
            )
        for family, found in families.items():
            error, before, now = np.array(found).T
            yield family, Trials(error, before, now, np.full(len(found), MEASURED, dtype=np.intp))


def whole_step_operators() -> Iterator[tuple[str, Sequence[Measurement], Sequence[Measurement]]]:
    """(GPU type, rows, rows of the next lease) of the operators of whole steps."""
    tables: dict[str, list[Sequence[Measurement]]] = defaultdict(list)
    for path in sorted((ROOT / "measurements" / "whole").glob("*_operators.csv")):
        tables[path.stem.removesuffix("_operators").rpartition("_")[0]].append(
            load_measurements(path)
        )
    for gpu, leases in tables.items():
        for known, judged in pairwise(leases):
            yield gpu, known, judged


def _same_work(row: Measurement) -> tuple[object, ...]:
    state, job = row.condition("state"), row.condition("job")
    return (row.kernel_set, row.kind, row.dtype, row.out_dtype, row.sizes, row.sms, state, job)


def coverage_table(trials: Iterable[tuple[str, Trials]]) -> Iterator[str]:
    """Coverage, width and score by how times are known, before and now, as Markdown.

    Args:
        trials: (family, its trials)
    """
    groups: dict[tuple[int, str], list[Trials]] = defaultdict(list)
    for family, found in trials:
        usable = np.isfinite(found.before) & np.isfinite(found.now)
        for known in np.unique(found.known[usable]).tolist():
            chosen = usable & (found.known == known)
            groups[known, family].append(
                Trials(
                    found.errors[chosen],
                    found.before[chosen],
                    found.now[chosen],
                    found.known[chosen],
                )
            )
    large: dict[tuple[int, str], list[Trials]] = defaultdict(list)
    for (known, family), parts in groups.items():
        enough = sum(len(part.errors) for part in parts) >= LEAST_TRIALS
        large[known, family if enough else "others, pooled"] += parts
        large[known, "*all*"] += parts
    heads = [
        *(f"{name}, before" for name in COLUMNS[1:]),
        *(f"{name}, now" for name in COLUMNS[1:]),
    ]
    yield f"| known | family | {COLUMNS[0]} | " + " | ".join(heads) + " |"
    yield "|" + "---|" * (3 + len(heads))
    for (known, family), parts in sorted(large.items()):
        errors, before, now = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("errors", "before", "now")
        )
        told = [coverage(np.exp(errors), np.exp(-w), np.exp(w)).cells() for w in (before, now)]
        cells = [PROVENANCES[known], family, told[0][0], *told[0][1:], *told[1][1:]]
        yield "| " + " | ".join(cells) + " |"


def from_another(
    source: str, rows: Sequence[Measurement], target: str, judged: Sequence[Measurement]
) -> Iterator[str]:
    """Signed errors of one GPU's rows by those of another, a line of Markdown a family."""
    rows, judged = (
        [row for row in part if row.kind not in ALL_TO_ALL_KINDS | TRANSFER_KINDS]
        for part in (rows, judged)
    )
    shipped = load_calibration(source)
    sets = tuple(dict.fromkeys(row.kernel_set for row in rows))
    profile = shipped.model_copy(
        update={
            "gpu": source, "kernel_sets": sets, "fits": (), "measurements": (), "basis": "measured",
            "restated_from": (),
        }
    )  # fmt: skip
    model = KernelCostModel(
        cluster=load_cluster(CLUSTERS[target]), calibration=profile, expert_parallel_ranks=8
    ).fit(rows)
    known = {(row.kind, row.dtype, row.out_dtype) for row in rows}
    families: dict[tuple[str, str, str], list[Measurement]] = defaultdict(list)
    for row in judged:
        key = (row.kind, row.dtype, row.out_dtype)
        if key in known and row.condition("pair") != "yes":
            families[key].append(row)
    for (kind, dtype, out_dtype), members in sorted(families.items()):
        chosen = [members[place] for place in _some(np.arange(len(members)), 300)]
        told = model.predict(
            [operator_of(row) for row in chosen],
            sms=[row.sms for row in chosen],
            overlapped=False,
        )
        ratio = told.seconds / np.array([row.seconds for row in chosen]) - 1
        low, middle, high = np.quantile(ratio, [0.1, 0.5, 0.9])
        yield (
            f"| {source} -> {target} | {kind} {dtype} -> {out_dtype} | {len(members):,} | "
            f"{low:+.0%} | {middle:+.1%} | {high:+.0%} |"
        )


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m simulator.calibration.left_out")
    parser.add_argument("folders", nargs="*", metavar="GPU=FOLDER")
    parser.add_argument(
        "--again", nargs="*", default=[], metavar="GPU=TABLE.csv",
        help="tables of `reference_model measure` on other GPUs, judged by those that are shipped",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    known: dict[str, Sequence[Measurement]] = {}
    trials: list[tuple[str, Trials]] = []
    for text in options.folders:
        gpu, _, folder = text.partition("=")
        if not Path(folder).is_dir():
            print(f"{gpu}: no folder {folder!r}, passed over")
            continue
        known[gpu] = read_sources([Path(folder)], gpu=gpu).measurements
    print("| GPU | family | kernel set | left out | rows | groups | error | inside | noise |")
    print("|---|---|---|---|---|---|---|---|---|")
    for gpu, rows in known.items():
        for judged in left_out_errors(gpu, rows, load_calibration(gpu)):
            print(judged.line(), flush=True)
            trials.append((judged.family, judged.trials))
    print()
    again = [
        (gpu, load_measurements(table_path(f"{gpu}_reference")), load_measurements(Path(path)))
        for gpu, _, path in (text.partition("=") for text in options.again)
    ]
    for line in coverage_table([*trials, *measured_trials([*whole_step_operators(), *again])]):
        print(line, flush=True)
    known.setdefault("h800_sxm", calibration_measurements(load_calibration("h800_sxm")))
    print("\n| by the rows of | family | rows | 10% | median | 90% |\n|---|---|---|---|---|---|")
    for source, target in PAIRS:
        if source in known and target in known:
            for line in from_another(source, known[source], target, known[target]):
                print(line, flush=True)


if __name__ == "__main__":
    main()
