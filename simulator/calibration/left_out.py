"""Errors of the kernel model on groups of rows that were left out together, as tables.

    python -m simulator.calibration.left_out h100_sxm=FOLDER h200_sxm=FOLDER ...

A folder holds one GPU's published tables as `calibrate` reads them; one that is not there is named
and passed over. Of each table the lengths and the widths are found on every other group alone and
judged on the rest, then the other way round, so that no judged row has a part in them; a table of
at most 300 rows is split so ten times, and its groups count once for all of them. What is left
out together follows the question that a prediction answers: another shape of a product (all m of
one n and k), another load of attention (all heads of one batch and length), of the experts'
products another load of each expert. Harder cuts stand below them: one value of a size in no row,
two octaves of load, the first and the last octave (reach.py). Beside the errors stands the noise
floor of the table, and how often the 80% interval held.

A second table counts coverage, width and score of intervals (coverage.py) by how a time is known,
one row of each left-out group, so that the trials are not of one error: interpolated, between rows
of its shape; extrapolated, in another shape, with a size or a load that no row has. Families with
fewer than 40 groups are pooled. A measured row is judged by the same row timed again on another GPU
of the type, of the cards that are kept in measurements/cards or of the tables of --cards, one for
each shape or kernel; what the two GPUs have in common is drawn once for a run, so that the median
difference of a pair of tables is taken out first. Operators of whole steps stand apart: between
their leases some kernels were rewritten.

Last, the times of one GPU by the rows of another (gpu_ratio.py), signed.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.calibration_parts import HeldOutError
from hardware_profiles.schema import CalibrationProfile, load_calibration, load_cluster, load_gpu
from hardware_profiles.tables import (
    CARDS,
    TRANSFER_KINDS,
    Measurement,
    kept_cards,
    load_measurements,
)
from reference_model.trace import ALL_TO_ALL_KINDS
from simulator.calibration.coverage import Trials, coverage_table
from simulator.calibration.family_fit import (
    LEAST_ROWS_FOR_LENGTHS,
    SEARCHED_ROWS,
    averaged,
    fit_rows,
    noise,
    summary,
    table_of,
    with_tiles,
)
from simulator.calibration.sources import read_sources
from simulator.calibration.timed_again import (
    CUTS,
    judged_by_other_cards,
    measured_trials,
    whole_step_operators,
)
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
    JudgedCut,
    held_out_scales,
    left_out,
    numbered,
)
from simulator.hardware.prediction import EXTRAPOLATED, INTERPOLATED

Array = NDArray[np.float64]

MOST_JUDGED = 300
"""Rows of one family by those of another GPU."""
SPLITS = 10
"""Of a small table into halves: of 14 to 42 groups the share inside goes by the halves that chance
makes, 61% of one family's in one split and 78% of them over three others."""
CLUSTERS: Mapping[str, str] = {
    "h100_sxm": "h100_96",
    "h200_sxm": "h200_8",
    "h800_sxm": "h800_2048",
    "b200_sxm": "b200_32",
    "gb200": "gb200_nvl72",
}
PAIRS = (
    ("h200_sxm", "h100_sxm"),
    ("b200_sxm", "gb200"),
    ("h200_sxm_reference", "h100_sxm_reference"),
    ("h100_sxm", "h800_sxm"),
)
"""Calibrations, the second's rows by those of the first; of rows that are shipped where no folder
has them."""


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
    splits: int = 1
    """Into halves, in each of which every row was judged."""

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
        return Trials(errors, half, known_.astype(np.intp), self.splits)


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
    splits = SPLITS if len(rows) <= SEARCHED_ROWS else 1
    judged: dict[str, list[tuple[JudgedCut, float]]] = defaultdict(list)
    for split, half in product(range(splits), (0, 1)):
        halves = np.random.default_rng(split).permutation(groups.max() + 1)[groups] % 2
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
        yield CutErrors(gpu, name, kernel_set, cut, len(rows), parts, floor, splits)


def from_another(
    source: str, rows: Sequence[Measurement], target: str, judged: Sequence[Measurement]
) -> Iterator[str]:
    """Signed errors of one GPU's rows by those of another, a line of Markdown a table.

    A kernel set that both have is held against itself, the same kernel of one version; of a family
    of which they share none, all rows of either.

    Args:
        source, target: calibrations, whose GPUs rows and judged were measured on.
    """
    theirs, mine = (
        [row for row in part if row.kind not in ALL_TO_ALL_KINDS | TRANSFER_KINDS]
        for part in (rows, judged)
    )
    sets_of: tuple[dict[Types, set[str]], dict[Types, set[str]]] = ({}, {})
    for part, sets in zip((theirs, mine), sets_of, strict=True):
        for row in part:
            sets.setdefault(_types(row), set()).add(row.kernel_set)
    known, own = sets_of
    tables = {
        types: sorted(known[types] & own[types]) or [""] for types in known.keys() & own.keys()
    }
    lines: dict[tuple[Types, str], str] = {}
    for turn in range(max(map(len, tables.values()), default=0)):
        asked = {types: names[turn] for types, names in tables.items() if turn < len(names)}
        # Every table has a part in what kernels reach of the ceilings, but one set of each family.
        taken = [r for r in theirs if asked.get(_types(r), r.kernel_set) in ("", r.kernel_set)]
        model = _on_other_gpu(source, target, taken)
        for types, name in asked.items():
            members = [
                row
                for row in mine
                if _types(row) == types and name in ("", row.kernel_set) and not row.pair
            ]
            if members:
                low, middle, high = np.quantile(_ratios(model, members), [0.1, 0.5, 0.9])
                kind, dtype, out_dtype = types
                lines[types, name] = (
                    f"| {source} -> {target} | {kind} {dtype} -> {out_dtype} | {name or '-'} | "
                    f"{len(members):,} | {low:+.0%} | {middle:+.1%} | {high:+.0%} |"
                )
    yield from (lines[key] for key in sorted(lines))


Types = tuple[str, str, str]
"""Kind, operand and result type."""


def _types(row: Measurement) -> Types:
    return row.kind, row.dtype, row.out_dtype


def _on_other_gpu(source: str, target: str, rows: Sequence[Measurement]) -> KernelCostModel:
    """What a calibration says of another one's GPU by some of its rows alone."""
    profile = load_calibration(source).model_copy(
        update={
            "kernel_sets": tuple(dict.fromkeys(row.kernel_set for row in rows)),
            "fits": (), "measurements": (), "basis": "measured", "restated_from": (),
            "completed_by": (),
        }
    )  # fmt: skip
    cluster = load_cluster(CLUSTERS[load_calibration(target).gpu])
    return KernelCostModel(cluster=cluster, calibration=profile, expert_parallel_ranks=8).fit(rows)


def _ratios(model: KernelCostModel, rows: Sequence[Measurement]) -> Array:
    """Predicted over measured of at most `MOST_JUDGED` rows, less 1."""
    chosen = rows
    if len(rows) > MOST_JUDGED:
        places = np.random.default_rng(1).choice(len(rows), MOST_JUDGED, replace=False)
        chosen = [rows[place] for place in np.sort(places)]
    told = model.predict(
        [operator_of(row) for row in chosen], sms=[row.sms for row in chosen], overlapped=False
    )
    ratios: Array = told.seconds / np.array([row.seconds for row in chosen]) - 1
    return ratios


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m simulator.calibration.left_out")
    parser.add_argument("folders", nargs="*", metavar="GPU=FOLDER")
    parser.add_argument(
        "--cards", nargs="*", default=[], metavar="TABLE.csv", type=Path,
        help="tables of `reference_model measure` on several GPUs of a type; default: those kept",
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
    cards: list[Sequence[Measurement]] = [load_measurements(path) for path in options.cards]
    kept = sorted(path.name for path in CARDS.iterdir())
    for tables in [cards] if cards else map(kept_cards, kept):
        trials += judged_by_other_cards(tables)
    _print_coverage(trials)
    if not known:
        return
    for name in ("h200_sxm_reference", "h100_sxm_reference", "h800_sxm"):
        known.setdefault(name, calibration_measurements(load_calibration(name)))
    print("\n| by the rows of | family | kernel set | rows | 10% | median | 90% |")
    print("|---|---|---|---|---|---|---|")
    for source, target in PAIRS:
        if source in known and target in known:
            for line in from_another(source, known[source], target, known[target]):
                print(line, flush=True)


def _print_coverage(trials: Sequence[tuple[str, Trials]]) -> None:
    """Coverage of left-out rows, of rows timed again, and of operators of whole steps."""
    parts = {"": trials}
    for leases, pairs in whole_step_operators().items():
        of_steps = f"Operators of whole steps, by those of the lease before: lease {leases}"
        parts[of_steps] = [*measured_trials(pairs)]
    for title, found in parts.items():
        print(f"\n{title}\n" if title else "")
        for line in coverage_table(found):
            print(line, flush=True)


if __name__ == "__main__":
    main()
