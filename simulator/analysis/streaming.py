"""Statistics of streams in bounded memory: weighted quantiles, and sums over time in bins.

Both take arrays and never keep them, so that a run of any length needs the same memory.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_RELATIVE_WIDTH = 1e-3
_SMALLEST_S = 1e-7
_LARGEST_S = 1e8
PERCENTILES = (50, 90, 95, 99)


class LogHistogram:
    """Weighted values of 0 or more in bins of equal ratio: mean exact, quantiles within 0.05%.

    Values below 1e-7 count as 0, values above 1e8 as 1e8.
    """

    def __init__(self) -> None:
        bins = math.ceil(math.log(_LARGEST_S / _SMALLEST_S) / math.log1p(_RELATIVE_WIDTH)) + 2
        # Bin 0 is for zeros; bin k covers smallest * ratio^(k-1) up to the next.
        self._weights = np.zeros(bins)
        self._sum = 0.0

    @property
    def count(self) -> float:
        """Total weight."""
        return float(self._weights.sum())

    @property
    def mean(self) -> float | None:
        count = self.count
        return self._sum / count if count else None

    def add(self, values: ArrayLike, weights: ArrayLike | None = None) -> None:
        """Count ``values``, each with its weight (1 by default)."""
        numbers = np.asarray(values, dtype=np.float64)
        shares = np.ones_like(numbers) if weights is None else np.asarray(weights, np.float64)
        clipped = np.clip(numbers, _SMALLEST_S, _LARGEST_S)
        places = 1 + np.log(clipped / _SMALLEST_S) / math.log1p(_RELATIVE_WIDTH)
        index = np.where(numbers < _SMALLEST_S, 0, places.astype(np.int64))
        self._weights += np.bincount(index, shares, minlength=len(self._weights))
        self._sum += float((numbers * shares).sum())

    def add_zeros(self, weight: float) -> None:
        """Count ``weight`` values of 0."""
        self._weights[0] += weight

    def quantiles(self, probabilities: ArrayLike) -> list[float]:
        """The smallest value that each of these parts of the weight does not exceed; empty where
        nothing was counted."""
        cumulative = np.cumsum(self._weights)
        if not cumulative[-1]:
            return []
        parts = np.asarray(probabilities, np.float64) * cumulative[-1] * (1 - 1e-12)
        width = math.log1p(_RELATIVE_WIDTH)
        # The middle of the bin, in ratio.
        return [
            _SMALLEST_S * math.exp((index - 0.5) * width) if index else 0.0
            for index in np.searchsorted(cumulative, parts).tolist()
        ]

    def summary(self) -> dict[str, float | None]:
        """Mean, percentiles and count by their JSON names; None where nothing was counted."""
        found = dict(zip(PERCENTILES, self.quantiles([p / 100 for p in PERCENTILES]), strict=False))
        percentiles = {f"p{p}": found.get(p) for p in PERCENTILES}
        return {"mean": self.mean, **percentiles, "count": round(self.count)}

    def cumulative(self, points: int) -> tuple[Floats, Floats]:
        """Return values and the share of the weight up to each: at most ``points`` of them."""
        shares = np.unique(np.linspace(0.0, 1.0, points))
        values = np.array(self.quantiles(shares), np.float64)
        return values, shares[: len(values)]


class TimeBins:
    """Sums over time in a fixed number of bins; they widen as time goes on.

    ``columns`` are summed side by side. When time passes the last bin, neighbours are merged and
    the bins become twice as wide.
    """

    def __init__(self, columns: tuple[str, ...], *, width_s: float, bins: int = 256) -> None:
        self.width_s = width_s
        self._columns = columns
        self._sums = np.zeros((len(columns), bins))

    def __getitem__(self, column: str) -> Floats:
        """Sum in each bin, from time 0 on."""
        sums: Floats = self._sums[self._columns.index(column)]
        return sums

    @property
    def starts_s(self) -> Floats:
        """Start of each bin."""
        return np.arange(self._sums.shape[1], dtype=np.float64) * self.width_s

    def add_at(self, times_s: Floats, **amounts: Floats) -> None:
        """Add amounts that belong to instants."""
        if not len(times_s):
            return
        self._reach(float(times_s.max()))
        index = (times_s / self.width_s).astype(np.int64)
        for column, values in amounts.items():
            self[column][:] += np.bincount(index, values, minlength=self._sums.shape[1])

    def add_over(self, starts_s: Floats, ends_s: Floats, **amounts: Floats) -> None:
        """Add amounts that are spread evenly from start to end."""
        if not len(starts_s):
            return
        self._reach(float(ends_s.max()))
        bins = self._sums.shape[1]
        width = self.width_s
        first = (starts_s / width).astype(np.int64)
        last = np.minimum((ends_s / width).astype(np.int64), bins - 1)
        spans = ends_s - starts_s
        # What happens in no time belongs to its first bin.
        one = (first == last) | (spans <= 0)
        rate = 1.0 / np.where(one, 1.0, spans)
        head = np.where(one, 1.0, ((first + 1) * width - starts_s) * rate)
        tail = np.where(one, 0.0, (ends_s - last * width) * rate)
        for column, values in amounts.items():
            sums = np.bincount(first, values * head, minlength=bins)
            sums += np.bincount(last, values * tail, minlength=bins)
            # Bins that a span covers whole: a step up after its first, down at its last.
            whole = np.where(one, 0.0, values * rate * width)
            steps = np.bincount(first + 1, whole, minlength=bins + 1)
            steps -= np.bincount(np.where(one, first + 1, last), whole, minlength=bins + 1)
            self[column][:] += sums + np.cumsum(steps)[:bins]

    def _reach(self, time_s: float) -> None:
        while time_s >= self.width_s * self._sums.shape[1]:
            half = self._sums.shape[1] // 2
            merged = self._sums[:, 0::2] + self._sums[:, 1::2]
            self._sums[:] = 0.0
            self._sums[:, :half] = merged
            self.width_s *= 2
