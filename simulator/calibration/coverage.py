"""How often 80% intervals hold the truth, beside how wide they are.

Coverage alone is no merit: an interval without ends holds everything. The interval score punishes
width and misses alike: in logarithms, high - low, and for a truth outside 10 times how far it lies
outside (2 / 0.2); the mean over all intervals is least for the true 10th and 90th percentile.

Gneiting and Raftery 2007, section 6.2; the interval of a share: Wilson 1927.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.hardware.prediction import PROVENANCES

Array = NDArray[np.float64]

STATED = 0.8
"""Share of truths that the intervals should hold."""
LEAST_TRIALS = 40
"""Families with fewer left-out groups are pooled."""
_NORMAL_95 = 1.959964
_PENALTY = 2.0 / (1.0 - STATED)


@dataclass(frozen=True, slots=True)
class Coverage:
    """How often some intervals hold the truth, and how wide they are."""

    trials: int
    inside: int
    width: float
    """Median of high over low, minus 1."""
    score: float
    """Mean interval score of logarithms; less is better."""

    @property
    def share(self) -> float:
        """Share of the truths that lie inside."""
        return self.inside / self.trials

    @property
    def share_95(self) -> tuple[float, float]:
        """95% interval of that share, were each truth inside by chance alone."""
        z2 = _NORMAL_95**2
        middle = (self.inside + z2 / 2) / (self.trials + z2)
        spread = self.share * (1 - self.share) / self.trials + z2 / (4 * self.trials**2)
        half = _NORMAL_95 * spread**0.5 / (1 + z2 / self.trials)
        return middle - half, middle + half

    @property
    def as_stated(self) -> bool:
        """Whether 80% is within what chance makes of the share."""
        low, high = self.share_95
        return low <= STATED <= high

    def cells(self) -> tuple[str, ...]:
        """Trials, share inside, its 95% interval, width and score, as text."""
        low, high = self.share_95
        return (
            f"{self.trials:,}",
            f"{self.share:.0%}",
            f"{low:.0%} to {high:.0%}{'' if self.as_stated else ', not 80%'}",
            f"{self.width:.1%}",
            f"{self.score:.3f}",
        )


COLUMNS = ("intervals", "inside", "95% of that", "width", "score")
"""Heads of the columns of `Coverage.cells`."""


def coverage(truth: ArrayLike, low: ArrayLike, high: ArrayLike, times: ArrayLike = 1.0) -> Coverage:
    """Coverage of at least one interval; all values above zero, one shape.

    Args:
        times: how often the truth of each was judged: all of those count as one together.
    """
    truths, lows, highs = (
        np.log(np.asarray(each, dtype=np.float64)) for each in (truth, low, high)
    )
    votes = 1.0 / np.broadcast_to(np.asarray(times, dtype=np.float64), truths.shape)
    missed = np.maximum(lows - truths, 0.0) + np.maximum(truths - highs, 0.0)
    order = np.argsort(highs - lows)
    half = votes.sum() / 2.0
    # Where half of the votes end between two widths, both: the usual median of as many.
    middle = np.searchsorted(np.cumsum(votes[order]), [half * (1 - 1e-9), half * (1 + 1e-9)])
    return Coverage(
        trials=round(votes.sum()),
        inside=round(votes[missed == 0.0].sum()),
        width=float(np.expm1((highs - lows)[order][middle].mean())),
        score=float(np.average(highs - lows + _PENALTY * missed, weights=votes)),
    )


@dataclass(frozen=True, slots=True)
class Trials:
    """Log errors of rows of different groups, and half the width of their 80% intervals."""

    errors: Array
    half: Array
    known: NDArray[np.intp]
    """Places in prediction.PROVENANCES."""
    splits: int = 1
    """Times that each group is among them."""


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
            part = Trials(
                found.errors[chosen], found.half[chosen], found.known[chosen], found.splits
            )
            groups[known, family].append(part)
    large: dict[tuple[int, str], list[Trials]] = defaultdict(list)
    for (known, family), parts in groups.items():
        enough = sum(len(part.errors) / part.splits for part in parts) >= LEAST_TRIALS
        large[known, family if enough else "others, pooled"] += parts
        large[known, "*all*"] += parts
    yield "| known | family | " + " | ".join(COLUMNS) + " |"
    yield "|" + "---|" * (2 + len(COLUMNS))
    for (known, family), parts in sorted(large.items()):
        errors, half = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("errors", "half")
        )
        times = np.concatenate([np.full(len(part.errors), part.splits) for part in parts])
        told = coverage(np.exp(errors), np.exp(-half), np.exp(half), times)
        yield "| " + " | ".join([PROVENANCES[known], family, *told.cells()]) + " |"
