"""Measured rows beside the same work timed again, on another GPU of the type or on a later lease.

What the two GPUs have in common is drawn once for a run, so that the median difference of a pair of
tables is taken out. `repeats_of` finds what is left by the rule of docs/priors.md (repeat);
`judged_by_other_cards` judges the rows of two cards by what all others say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.estimates import Estimate
from hardware_profiles.fields import ROOT
from hardware_profiles.tables import Measurement, load_measurements
from reference_model.trace import KINDS
from simulator.calibration.coverage import STATED, Trials
from simulator.hardware.common_errors import CommonErrors, common_errors
from simulator.hardware.kernels.families import family_of
from simulator.hardware.kernels.reach import ENOUGH_GROUPS, TOGETHER
from simulator.hardware.kernels.roofline import is_tensor
from simulator.hardware.prediction import MEASURED, NORMAL_80

CUTS: Mapping[str, tuple[str, ...]] = {"gemm": ("n", "k"), **TOGETHER}
"""{kind: sizes of which rows of equal values are left out together}"""

Pair = tuple[Sequence[Measurement], Sequence[Measurement]]
"""Rows, and rows of the same work timed again."""


@dataclass(frozen=True, slots=True)
class Again:
    """A row, and the same work timed again on another GPU of the type."""

    row: Measurement
    group: tuple[object, ...]
    apart: float
    """Log of the second time over the first, less what the two GPUs have in common."""
    repeats: float
    """Relative spread within one run, at least half of what is usual."""

    def share(self, errors: CommonErrors) -> float:
        """Relative deviation of one time, besides repeats and the least scatter of any, that would
        just hold the second within 80%."""
        both = (self.apart / NORMAL_80) ** 2 - self.repeats**2
        least = (errors.repeat_seconds.value / self.row.seconds) ** 2
        return float(max(both / 2 - least, 0.0) ** 0.5)

    def half(self, share: float, errors: CommonErrors) -> float:
        """Half of the 80% interval of `apart`: both of the two times are of one run, and each is
        off by a share of it and by the least scatter of any."""
        again = np.hypot(share, errors.repeat_seconds.value / self.row.seconds)
        return NORMAL_80 * float(np.hypot(self.repeats, 2**0.5 * again))


def _by_work(rows: Iterable[Measurement]) -> dict[tuple[Any, ...], Measurement]:
    """{kernel and sizes: row}, in one order whatever that of the rows."""
    found = {_same_work(row): row for row in rows if row.kind in KINDS}
    return dict(sorted(found.items(), key=lambda entry: str(entry[0])))


def _timed_again(
    known: Mapping[tuple[Any, ...], Measurement], judged: Mapping[tuple[Any, ...], Measurement]
) -> list[Again]:
    """Rows of the first table that the second has too.

    The median difference of a pair's tensor-core kernels, and that of the others, is of its two
    GPUs; of rows timed under the load of a job, of the clocks that either kept in it.
    """
    keys = [key for key in known if key in judged]
    spreads = [row.spread for row in known.values() if row.spread is not None]
    least = float(np.median(spreads)) / 2
    apart = np.log([judged[key].seconds / known[key].seconds for key in keys])
    loads = [(is_tensor(key[1]), *key[-2:]) for key in keys]
    for load in set(loads):
        those = [place for place, of in enumerate(loads) if of == load]
        apart[those] -= np.median(apart[those])
    return [
        Again(known[key], _group(known[key]), float(far), max(known[key].spread or 0.0, least))
        for key, far in zip(keys, apart, strict=True)
    ]


def _of_each_two(cards: Sequence[Sequence[Measurement]]) -> dict[tuple[int, int], list[Again]]:
    """{numbers of two cards: rows of the first timed again on the second}"""
    tables = [_by_work(rows) for rows in cards]
    return {
        (a, b): _timed_again(tables[a], tables[b]) for a, b in combinations(range(len(cards)), 2)
    }


def measured_trials(
    again: Iterable[Pair], errors: CommonErrors | None = None
) -> Iterator[tuple[str, Trials]]:
    """Rows by rows of the same work, timed again on another GPU of the same type.

    Yields (family, trials) of each pair of tables, one trial for each group of rows.

    Args:
        again: pairs of tables of one type of GPU, the rows that are known first.
        errors: what timing again makes of a row; that of every run where not given.
    """
    errors = errors or common_errors()
    rng = np.random.default_rng(3)
    for pair in again:
        groups: dict[tuple[object, ...], list[Again]] = defaultdict(list)
        for one in _timed_again(*map(_by_work, pair)):
            groups[one.group].append(one)
        families: dict[str, list[Again]] = defaultdict(list)
        for members in groups.values():
            one = members[rng.integers(len(members))]
            families[f"{one.row.kind} {one.row.dtype} -> {one.row.out_dtype}"].append(one)
        for family, found in families.items():
            half = np.array([one.half(errors.repeat_share(one.row.kind), errors) for one in found])
            apart = np.array([one.apart for one in found])
            yield family, Trials(apart, half, np.full(len(found), MEASURED, dtype=np.intp))


def repeats_of(cards: Sequence[Sequence[Measurement]]) -> CommonErrors:
    """What GPUs of one type say of rows timed again, by the rule of docs/priors.md (repeat).

    The share of a kind is what holds 80% of one more group of it, over each two of the GPUs. A kind
    of too few groups is one more kind of its class.
    """
    again = [one for rows in _of_each_two(cards).values() for one in rows]
    shares, kinds, groups = _columns(again)
    errors = _of_classes(shares, kinds)
    of_kinds = {
        kind: _held(shares[of], groups[of], errors.of_class(kind))
        for kind in np.unique(kinds).tolist()
        for of in [kinds == kind]
    }
    return errors.model_copy(
        update={"repeat_of": {kind: own for kind, own in of_kinds.items() if own is not None}}
    )


def _columns(
    rows: Sequence[Again],
) -> tuple[NDArray[np.float64], NDArray[np.str_], NDArray[np.intp]]:
    """[rows] shares, kinds, and the group of each as a number."""
    errors = common_errors()
    numbers: dict[tuple[object, ...], int] = {}
    return (
        np.array([one.share(errors) for one in rows]),
        np.array([one.row.kind for one in rows]),
        np.array([numbers.setdefault(one.group, len(numbers)) for one in rows], dtype=np.intp),
    )


def _of_classes(shares: NDArray[np.float64], kinds: NDArray[np.str_]) -> CommonErrors:
    """What holds one more kind, of those on tensor cores and of the others."""
    errors = common_errors()
    names, of = np.unique(kinds, return_inverse=True)
    tensor = np.array([is_tensor(name) for name in names.tolist()])[of]
    compute = _held(shares[tensor], of[tensor], errors.repeat_compute)
    memory = _held(shares[~tensor], of[~tensor], errors.repeat_memory)
    return errors.model_copy(
        update={
            "repeat_compute": compute or errors.repeat_compute,
            "repeat_memory": memory or errors.repeat_memory,
        }
    )


def _held(
    shares: NDArray[np.float64], units: NDArray[np.intp], before: Estimate
) -> Estimate | None:
    """What holds one more unit, as the estimate before it; None where units are too few to say."""
    value = _one_more_share(shares, units)
    if value is None:
        return None
    return before.model_copy(update={"value": value, "low": value / 2, "high": 2 * value})


def _one_more_share(shares: NDArray[np.float64], units: NDArray[np.intp]) -> float | None:
    """What holds the stated share of one more unit's rows; None where units are too few to say.

    How many rows of the known units that takes depends on how far units differ. So each unit is
    left out in turn: its rows lie at levels of the others' distribution, and the level below which
    the stated share of them lies is the one that is taken of all units. Each unit has one vote.
    """
    order = np.argsort(shares, kind="stable")
    shares = shares[order]
    _, of, rows = np.unique(units[order], return_inverse=True, return_counts=True)
    if len(rows) < ENOUGH_GROUPS:
        return None
    votes = 1.0 / rows[of]
    by_unit = np.argsort(of, kind="stable")
    own = np.empty(len(of))
    own[by_unit] = 1.0 + np.arange(len(of)) - np.repeat(np.cumsum(rows) - rows, rows)
    others = np.cumsum(votes) - own * votes
    level = _quantile(others / (len(rows) - 1), votes, STATED)
    return _quantile(shares, votes, level)


def _quantile(values: NDArray[np.float64], votes: NDArray[np.float64], share: float) -> float:
    """Between the middles of the votes by interpolation (Hazen 1914)."""
    order = np.argsort(values, kind="stable")
    middles = np.cumsum(votes[order]) - votes[order] / 2
    return float(np.interp(share * votes.sum(), middles, values[order]))


def judged_by_other_cards(cards: Sequence[Sequence[Measurement]]) -> Iterator[tuple[str, Trials]]:
    """One row of each group of a card and the next, by what pairs of all others say without it.

    Neither the judged cards nor the judged group have a part in a width. A group counts once for
    all judged pairs. Yields nothing of fewer than four cards.

    Args:
        cards: tables of several GPUs of one type.
    """
    if len(cards) < 4:
        return
    rng = np.random.default_rng(3)
    pairs = _of_each_two(cards)
    again = [one for rows in pairs.values() for one in rows]
    shares, kinds, groups = _columns(again)
    pair_of = np.repeat(np.arange(len(pairs)), [len(rows) for rows in pairs.values()])
    of_kind = {kind: np.flatnonzero(kinds == kind) for kind in np.unique(kinds).tolist()}
    for place, pair in enumerate(pairs):
        if pair[1] > pair[0] + 1:
            continue
        apart_from = np.array([not {*pair} & {*other} for other in pairs])[pair_of]
        classes = _of_classes(shares[apart_from], kinds[apart_from])
        others = {kind: rows[apart_from[rows]] for kind, rows in of_kind.items()}
        members: dict[int, list[int]] = defaultdict(list)
        for row in np.flatnonzero(pair_of == place).tolist():
            members[groups[row]].append(row)
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for group, rows in members.items():
            one = again[rows[rng.integers(len(rows))]]
            rest = others[one.row.kind]
            rest = rest[groups[rest] != group]
            share = _one_more_share(shares[rest], groups[rest])
            share = classes.of_class(one.row.kind).value if share is None else share
            family = f"{one.row.kind} {one.row.dtype} -> {one.row.out_dtype}"
            found[family].append((one.apart, one.half(share, classes)))
        for family, judgements in found.items():
            apart, half = np.array(judgements).T
            known = np.full(len(apart), MEASURED, dtype=np.intp)
            yield family, Trials(apart, half, known, splits=len(cards) - 1)


def _group(row: Measurement) -> tuple[object, ...]:
    """What rows that err together share: of products and attention those that are left out
    together, of other kernels every size."""
    sizes = dict(row.sizes)
    cut = CUTS.get(row.kind, tuple(sizes))
    return (family_of(row), row.kernel_set, *(sizes[name] for name in cut))


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
    state, job = row.state, row.job
    kernel = (row.kernel_set, row.kind, row.dtype, row.out_dtype)
    return (*kernel, row.sizes, row.sms, state, job)
