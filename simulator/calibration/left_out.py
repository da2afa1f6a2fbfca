"""Errors of the kernel model on groups of rows that were left out together, as tables.

    python -m simulator.calibration.left_out h100_sxm=FOLDER h200_sxm=FOLDER ...

A folder holds one GPU's published tables as `calibrate` reads them; one that is not there is named
and passed over. Of each table the lengths and the widths are found on every other group alone and
judged on the rest, so that no judged row has a part in them. What is left out together follows the
question that a prediction answers: another shape of a product (all m of one n and k), another load
of attention (all heads of one batch and length), of the experts' products another load of each
expert. Harder cuts stand below them: a band of m, with the row on either side of it, a number of
heads, of experts. Beside the errors stands the noise floor of the table, and how often the 80%
interval held. Last, the times of one GPU by the rows of another (gpu_ratio.py), signed.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.schema import (
    CalibrationProfile,
    FitProfile,
    HeldOutError,
    load_calibration,
    load_cluster,
    load_gpu,
)
from hardware_profiles.tables import TRANSFER_KINDS, Measurement
from reference_model.trace import ALL_TO_ALL_KINDS
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
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernels.families import (
    Family,
    calibration_measurements,
    family_of,
    operator_of,
)
from simulator.hardware.kernels.gaussian_process import features_of
from simulator.hardware.kernels.measured_rows import Rows
from simulator.hardware.kernels.models import process_of

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
    """CutErrors."""
    errors: Array
    """[judged rows] log measured minus log predicted."""
    inside: float
    """Share of them within the 80% interval."""
    noise: Array

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
    width = held_out_width(*process.held_out(groups, some))
    judged = _some(np.flatnonzero(groups % 2 == 1))
    errors, deviation = process.held_out(groups, judged)
    name = f"{family[0]} {family[1]} -> {family[2]}"

    def told(cut: str, parts: int, errors: Array, deviation: Array) -> CutErrors:
        inside = float(np.mean(np.abs(errors) <= (width or np.nan) * deviation))
        return CutErrors(gpu, name, kernel_set, cut, len(rows), parts, errors, inside, floor)

    yield told(", ".join(CUTS[family[0]]), len(np.unique(groups[judged])), errors, deviation)
    for size in HARDER[family[0]]:
        parts = list(left_out_bands(table, size))
        if len(parts) > 1:
            found = [_without(table, fit, out, beside) for out, beside in parts]
            errors, deviation = (np.concatenate(each) for each in zip(*found, strict=True))
            band = f"an octave of {size}, and beside it" if size in BANDS else size
            yield told(f"*{band}*", len(parts), errors, deviation)


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


def _without(table: Rows, fit: FitProfile, out: Index, beside: Index) -> tuple[Array, Array]:
    rest = table.take(np.setdiff1d(np.arange(len(table)), np.concatenate([out, beside])))
    process = process_of(rest, rest.log_seconds - rest.ideal.log_seconds, fit)
    some = table.take(_some(out, MOST_JUDGED // 10))
    mean, deviation = process.predict(features_of(some.batch, some.sms, some.ideal))
    return some.log_seconds - some.ideal.log_seconds - mean, deviation


def _some(places: Index, most: int = MOST_JUDGED) -> Index:
    if len(places) <= most:
        return places
    return np.sort(np.random.default_rng(1).choice(places, most, replace=False))


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
    parser.add_argument("folders", nargs="+", metavar="GPU=FOLDER")
    options = parser.parse_args(arguments)
    known: dict[str, Sequence[Measurement]] = {}
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
    known.setdefault("h800_sxm", calibration_measurements(load_calibration("h800_sxm")))
    print("\n| by the rows of | family | rows | 10% | median | 90% |\n|---|---|---|---|---|---|")
    for source, target in PAIRS:
        if source in known and target in known:
            for line in from_another(source, known[source], target, known[target]):
                print(line, flush=True)


if __name__ == "__main__":
    main()
