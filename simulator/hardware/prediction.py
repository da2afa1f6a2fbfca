"""Predicted times of kernels and transfers, each with an 80% interval and its provenance."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PROVENANCES = ("measured", "interpolated", "extrapolated", "modelled")
"""What a time rests on, from what is known best to what is known least."""
MEASURED, INTERPOLATED, EXTRAPOLATED, MODELLED = range(len(PROVENANCES))
NORMAL_80 = 1.2816
"""Half-width of the central 80% of a normal distribution, in standard deviations."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Times of a list of kernels or transfers; arrays [times]."""

    seconds: Array
    low: Array
    high: Array
    """Ends of each time's own 80% interval, seconds; `common` left out."""
    provenance: NDArray[np.intp]
    """Places in PROVENANCES."""
    family: tuple[Hashable, ...]
    """What errs together: a kernel's family, or the name of an input."""
    common: Array
    """[2, times] logarithms of each time over its low end and of its high end over it, by what
    moves all kernels as one (common_errors.py), 80%. Zero of transfers."""

    def provenance_names(self) -> list[str]:
        """What each time rests on, in words."""
        return [PROVENANCES[code] for code in self.provenance.tolist()]

    def ends(self) -> tuple[Array, Array]:
        """Both ends of each interval with everything in it."""
        least = np.finfo(np.float64).tiny
        value = np.maximum(self.seconds, least)
        below = np.hypot(np.log(value / np.clip(self.low, least, value)), self.common[0])
        above = np.hypot(np.log(np.maximum(self.high, value) / value), self.common[1])
        return self.seconds * np.exp(-below), self.seconds * np.exp(above)

    def at(self, places: Sequence[int] | NDArray[np.intp]) -> Prediction:
        """The predictions at some places."""
        chosen = np.asarray(places, dtype=np.intp)
        return Prediction(
            self.seconds[chosen],
            self.low[chosen],
            self.high[chosen],
            self.provenance[chosen],
            tuple(map(self.family.__getitem__, chosen.tolist())),
            self.common[:, chosen],
        )

    def part(self, chosen: slice) -> Prediction:
        """The predictions of a slice."""
        return Prediction(
            self.seconds[chosen],
            self.low[chosen],
            self.high[chosen],
            self.provenance[chosen],
            self.family[chosen],
            self.common[:, chosen],
        )

    @classmethod
    def none(cls, families: Sequence[Hashable]) -> Prediction:
        """Times that are zero, to be filled in."""
        zero = np.zeros(len(families))
        codes = np.zeros(len(families), dtype=np.intp)
        return cls(zero, zero, zero, codes, tuple(families), np.zeros((2, len(families))))

    def with_at(self, places: NDArray[np.intp], other: Prediction) -> Prediction:
        """The same with other times of the same families at some places."""
        seconds, low, high = (ends.copy() for ends in (self.seconds, self.low, self.high))
        seconds[places], low[places], high[places] = other.seconds, other.low, other.high
        provenance, common = self.provenance.copy(), self.common.copy()
        provenance[places], common[:, places] = other.provenance, other.common
        return Prediction(seconds, low, high, provenance, self.family, common)

    def with_others(self, others: Mapping[int, Prediction]) -> Prediction:
        """The same with other single times at some places: {place: its time}."""
        seconds, low, high = (np.array(ends) for ends in (self.seconds, self.low, self.high))
        provenance, common = self.provenance.copy(), self.common.copy()
        family = list(self.family)
        for place, other in others.items():
            seconds[place], low[place], high[place] = other.seconds[0], other.low[0], other.high[0]
            provenance[place], family[place] = other.provenance[0], other.family[0]
            common[:, place] = other.common[:, 0]
        return Prediction(seconds, low, high, provenance, tuple(family), common)

    def between(self, other: Prediction, share: Array) -> Prediction:
        """Times on the line from `other` (share 0) to these (share 1); same operators but sizes."""
        return Prediction(
            other.seconds + share * (self.seconds - other.seconds),
            other.low + share * (self.low - other.low),
            other.high + share * (self.high - other.high),
            np.maximum(self.provenance, other.provenance),
            self.family,
            other.common + share * (self.common - other.common),
        )


def one_time(
    seconds: float, low: float, high: float, *, provenance: int, family: Hashable
) -> Prediction:
    """The prediction of a single time, in seconds."""
    return Prediction(
        np.array([seconds]),
        np.array([low]),
        np.array([high]),
        np.array([provenance], dtype=np.intp),
        (family,),
        np.zeros((2, 1)),
    )
