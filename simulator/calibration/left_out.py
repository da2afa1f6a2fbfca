"""Errors of the kernel model on groups of rows that were left out together, as tables.

    python -m simulator.calibration.left_out h100_sxm=FOLDER h200_sxm=FOLDER ...

A folder holds one GPU's published tables as `calibrate` reads them; one that is not there is named
and passed over. Of each table the lengths and the widths are found on every other group alone and
judged on the rest, then the other way round, so that no judged row has a part in them. What is left
out together follows the question that a prediction answers: another shape of a product (all m of
one n and k), another load of attention (all heads of one batch and length), of the experts'
products another load of each expert. Harder cuts stand below them: one value of a size in no row,
two octaves of load, the first and the last octave (reach.py). Beside the errors stands the noise
floor of the table, and how often the 80% interval held.

A second table counts coverage, width and score of intervals (coverage.py) by how a time is known,
one row of each left-out group, so that the trials are not of one error: interpolated, between rows
of its shape; extrapolated, in another shape, with a size or a load that no row has. Families with
fewer than 40 groups are pooled. A measured row is judged by the same row timed again on another GPU
of the type (--again), one for each shape or kernel; what the two GPUs have in common is drawn once
for a run, so that the median difference of a pair of tables is taken out first. Operators of whole
steps stand apart: between their leases some kernels were rewritten.

Last, the times of one GPU by the rows of another (gpu_ratio.py), signed.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.calibration_parts import HeldOutError
from hardware_profiles.fields import ROOT
from hardware_profiles.schema import CalibrationProfile, load_calibration, load_cluster, load_gpu
from hardware_profiles.tables import TRANSFER_KINDS, Measurement, load_measurements
from reference_model.trace import ALL_TO_ALL_KINDS, KINDS
from simulator.calibration.coverage import COLUMNS, coverage
from simulator.calibration.family_fit import (
    LEAST_ROWS_FOR_LENGTHS,
    averaged,
    fit_rows,
    noise,
    summary,
    table_of,
    with_tiles,
)
from simulator.calibration.sources import read_sources
from simulator.hardware.common_errors import common_errors
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernels.families import (
    Family,
    calibration_measurements,
    family_of,
    operator_of,
)
from simulator.hardware.kernels.models import process_of
from simulator.hardware.kernels.reach import (
    BETWEEN,
    REACHES,
    TOGETHER,
    JudgedCut,
    held_out_scales,
    left_out,
    numbered,
)
from simulator.hardware.kernels.roofline import is_tensor
from simulator.hardware.prediction import (
    EXTRAPOLATED,
    INTERPOLATED,
    MEASURED,
    NORMAL_80,
    PROVENANCES,
)

Array = NDArray[np.float64]

CUTS: Mapping[str, tuple[str, ...]] = {"gemm": ("n", "k"), **TOGETHER}
"""{kind: sizes of which rows of equal values are left out together}"""
MOST_JUDGED = 300
"""Rows of one family by those of another GPU."""
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
    """One cut of one table: rows left out, and half the width of their 80% intervals."""

    gpu: str
    family: str
    kernel_set: str
    cut: str
    rows: int
    judged: Sequence[tuple[JudgedCut, float]]
    """Rows that lie alike, and the deviations that make half of their interval; nan where too few
    other groups say."""
    noise: Array

    @property
    def errors(self) -> Array:
        """[judged rows] log measured minus log predicted."""
        return np.concatenate([part.errors for part, _ in self.judged])

    def line(self) -> str:
        """A row of a Markdown table."""
        inside = [
            np.abs(part.errors) <= scale * part.deviation
            for part, scale in self.judged
            if np.isfinite(scale)
        ]
        share = f"{np.concatenate(inside).mean():.0%}" if inside else "-"
        groups = len(np.unique(np.concatenate([part.groups for part, _ in self.judged])))
        error, floor = summary(self.errors), summary(self.noise)
        return (
            f"| {self.gpu} | {self.family} | {self.kernel_set} | {self.cut} | {self.rows:,} | "
            f"{groups} | {_pair(error)} | {share} | {_pair(floor)} |"
        )

    def trials(self, rng: np.random.Generator) -> Trials:
        """One row of each group, at random."""
        found: list[tuple[float, float, int]] = []
        for part, scale in self.judged:
            known = INTERPOLATED if part.reach == BETWEEN else EXTRAPOLATED
            order = rng.permutation(len(part.groups))
            for place in order[np.unique(part.groups[order], return_index=True)[1]]:
                found.append((part.errors[place], scale * part.deviation[place], known))
        errors, half, known_ = np.array(found).T
        return Trials(errors, half, known_.astype(np.intp))


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
    plain = table_of(rows, profile, calibration.kernel_floor.value, calibration.tiles)
    groups = numbered(
        plain.batch.sizes[:, [plain.batch.names.index(size) for size in CUTS[family[0]]]]
    )
    halves = np.random.default_rng(0).permutation(groups.max() + 1)[groups] % 2
    judged: dict[str, list[tuple[JudgedCut, float]]] = defaultdict(list)
    for half in (0, 1):
        learned = np.flatnonzero(halves == half)
        fit, _ = fit_rows(family, kernel_set, plain.take(learned), groups[learned], gpu=profile)
        table = plain if fit.tiles is None else with_tiles(plain, profile, fit.tiles)
        process = process_of(table, table.log_seconds - table.ideal.log_seconds, fit)
        scales = held_out_scales(process, table, learned, half)
        others = np.flatnonzero(halves != half)
        for part in left_out(process, table, others, 1 - half, whole="shape"):
            judged[part.cut].append((part, scales.get(REACHES[part.reach], np.nan)))
    name = f"{family[0]} {family[1]} -> {family[2]}"
    for cut, parts in judged.items():
        yield CutErrors(gpu, name, kernel_set, cut, len(rows), parts, floor)


@dataclass(frozen=True, slots=True)
class Trials:
    """Log errors of rows of different groups, and half the width of their 80% intervals."""

    errors: Array
    half: Array
    known: NDArray[np.intp]
    """Places in prediction.PROVENANCES."""


def measured_trials(
    again: Iterable[Pair],
) -> Iterator[tuple[str, Trials]]:
    """Rows by rows of the same work, timed again on another GPU of the same type.

    Yields (family, trials) of each pair of tables, one trial for each group of rows. The median
    difference of a pair's tensor-core kernels, and that of the others, is of its two GPUs; of rows
    timed under the load of a job, of the clocks that either kept in it.

    Args:
        again: pairs of tables of one type of GPU, the rows that are known first.
    """
    errors = common_errors()
    rng = np.random.default_rng(3)
    for known_rows, judged_rows in again:
        known, judged = (
            {_same_work(row): row for row in rows if row.kind in KINDS}
            for rows in (known_rows, judged_rows)
        )
        keys = sorted(known.keys() & judged.keys(), key=str)
        spreads = [row.spread for row in known.values() if row.spread is not None]
        least = float(np.median(spreads)) / 2
        apart = np.log([judged[key].seconds / known[key].seconds for key in keys])
        loads = [(is_tensor(key[1]), *key[-2:]) for key in keys]
        for load in set(loads):
            those = [place for place, of in enumerate(loads) if of == load]
            apart[those] -= np.median(apart[those])
        groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for place, key in enumerate(keys):
            groups[_group(known[key])].append(place)
        families: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for members in groups.values():
            place = members[rng.integers(len(members))]
            row = known[keys[place]]
            repeats = max(row.spread or 0.0, least)
            # Both of the two times are of one run.
            again = errors.repeat(row.kind, row.seconds)
            half = NORMAL_80 * float(np.hypot(repeats, 2**0.5 * again))
            families[f"{row.kind} {row.dtype} -> {row.out_dtype}"].append((apart[place], half))
        for family, found in families.items():
            error, half = np.array(found).T
            yield family, Trials(error, half, np.full(len(found), MEASURED, dtype=np.intp))


def _group(row: Measurement) -> tuple[object, ...]:
    """What rows that err together share: of products and attention those that are left out
    together, of other kernels every size."""
    sizes = dict(row.sizes)
    cut = CUTS.get(row.kind, tuple(sizes))
    return (family_of(row), row.kernel_set, *(sizes[name] for name in cut))


Pair = tuple[Sequence[Measurement], Sequence[Measurement]]
"""Rows, and rows of the same work timed again."""


def whole_step_operators() -> Mapping[str, list[Pair]]:
    """{"1 to 2": of each type of GPU the operators of its first lease's whole steps, and those of
    the second's}, and so on."""
    tables: dict[str, list[Sequence[Measurement]]] = defaultdict(list)
    for path in sorted((ROOT / "measurements" / "whole").glob("*_operators.csv")):
        gpu = path.stem.removesuffix("_operators").rpartition("_")[0]
        tables[gpu].append(load_measurements(path))
    found: dict[str, list[Pair]] = defaultdict(list)
    for leases in tables.values():
        for number, pair in enumerate(pairwise(leases), start=1):
            found[f"{number} to {number + 1}"].append(pair)
    return found


def _same_work(row: Measurement) -> tuple[Any, ...]:
    state, job = row.condition("state"), row.condition("job")
    kernel = (row.kernel_set, row.kind, row.dtype, row.out_dtype)
    return (*kernel, row.sizes, row.sms, state, job)


def coverage_table(trials: Iterable[tuple[str, Trials]]) -> Iterator[str]:
    """Coverage, width and score by how times are known, as Markdown.

    Args:
        trials: (family, its trials)
    """
    groups: dict[tuple[int, str], list[Trials]] = defaultdict(list)
    for family, found in trials:
        usable = np.isfinite(found.half)
        for known in np.unique(found.known[usable]).tolist():
            chosen = usable & (found.known == known)
            part = Trials(found.errors[chosen], found.half[chosen], found.known[chosen])
            groups[known, family].append(part)
    large: dict[tuple[int, str], list[Trials]] = defaultdict(list)
    for (known, family), parts in groups.items():
        enough = sum(len(part.errors) for part in parts) >= LEAST_TRIALS
        large[known, family if enough else "others, pooled"] += parts
        large[known, "*all*"] += parts
    yield "| known | family | " + " | ".join(COLUMNS) + " |"
    yield "|" + "---|" * (2 + len(COLUMNS))
    for (known, family), parts in sorted(large.items()):
        errors, half = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("errors", "half")
        )
        told = coverage(np.exp(errors), np.exp(-half), np.exp(half))
        yield "| " + " | ".join([PROVENANCES[known], family, *told.cells()]) + " |"


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
        chosen = members
        if len(members) > MOST_JUDGED:
            places = np.random.default_rng(1).choice(len(members), MOST_JUDGED, replace=False)
            chosen = [members[place] for place in np.sort(places)]
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
        "--again", nargs="*", default=[], metavar="KNOWN.csv=TABLE.csv",
        help="tables of `reference_model measure` on two GPUs of a type, the second judged",
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
    rng = np.random.default_rng(2)
    for gpu, rows in known.items():
        for judged in left_out_errors(gpu, rows, load_calibration(gpu)):
            print(judged.line(), flush=True)
            trials.append((judged.family, judged.trials(rng)))
    print()
    again = []
    for text in options.again:
        first, _, second = text.partition("=")
        again.append((load_measurements(Path(first)), load_measurements(Path(second))))
    for line in coverage_table([*trials, *measured_trials(again)]):
        print(line, flush=True)
    for leases, pairs in whole_step_operators().items():
        print(f"\nOperators of whole steps, by those of the lease before: lease {leases}\n")
        for line in coverage_table(measured_trials(pairs)):
            print(line, flush=True)
    known.setdefault("h800_sxm", calibration_measurements(load_calibration("h800_sxm")))
    print("\n| by the rows of | family | rows | 10% | median | 90% |\n|---|---|---|---|---|---|")
    for source, target in PAIRS:
        if source in known and target in known:
            for line in from_another(source, known[source], target, known[target]):
                print(line, flush=True)


if __name__ == "__main__":
    main()
