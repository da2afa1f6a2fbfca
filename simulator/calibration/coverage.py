"""How often 80% intervals hold the truth, beside how wide they are.

Coverage alone is no merit: an interval without ends holds everything. The interval score punishes
width and misses alike: in logarithms, high - low, and for a truth outside 10 times how far it lies
outside (2 / 0.2); the mean over all intervals is least for the true 10th and 90th percentile.

Gneiting and Raftery 2007, section 6.2; the interval of a share: Wilson 1927.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

STATED = 0.8
"""Share of truths that the intervals should hold."""
_NORMAL_95 = 1.959964
_PENALTY = 2.0 / (1.0 - STATED)


@dataclass(frozen=True, slots=True)
class Coverage:
    """Of some intervals."""

    trials: int
    inside: int
    width: float
    """Median of high over low, minus 1."""
    score: float
    """Mean interval score of logarithms; less is better."""

    @property
    def share(self) -> float:
        """Of truths inside."""
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


def coverage(truth: ArrayLike, low: ArrayLike, high: ArrayLike) -> Coverage:
    """Coverage of at least one interval; all values above zero, one shape."""
    truths, lows, highs = (
        np.log(np.asarray(each, dtype=np.float64)) for each in (truth, low, high)
    )
    missed = np.maximum(lows - truths, 0.0) + np.maximum(truths - highs, 0.0)
    return Coverage(
        trials=len(truths),
        inside=int((missed == 0.0).sum()),
        width=float(np.expm1(np.median(highs - lows))),
        score=float(np.mean(highs - lows + _PENALTY * missed)),
    )
