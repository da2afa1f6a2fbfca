"""Predicted times of kernels and transfers, each with an 80% interval and its provenance."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PROVENANCES = ("measured", "interpolated", "extrapolated", "modelled")
"""What a time rests on, from what is known best to what is known least."""
MEASURED, INTERPOLATED, EXTRAPOLATED, MODELLED = range(len(PROVENANCES))
NORMAL_80 = 1.2816
"""Half-width of the central 80 % of a normal distribution, in standard deviations."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Times of a list of kernels or transfers; arrays [times]."""

    seconds: Array
    low: Array
    high: Array
    """Ends of each time's own 80 % interval, seconds; other_gpu left out."""
    provenance: NDArray[np.intp]
    """Places in PROVENANCES."""
    family: tuple[Hashable, ...]
    """What errs together: a kernel's family, or the name of an input."""
    other_gpu: Array
    """Error, each way in seconds, of restating a time of the GPU of the calibration: clocks and
    power, which all kernels have in common. Zero on that GPU itself, and of transfers."""

    def provenance_names(self) -> list[str]:
        """What each time rests on, in words."""
        return [PROVENANCES[code] for code in self.provenance.tolist()]

    def ends(self) -> tuple[Array, Array]:
        """Both ends of each interval with everything in it."""
        below = np.hypot(self.seconds - self.low, self.other_gpu)
        above = np.hypot(self.high - self.seconds, self.other_gpu)
        return self.seconds - below, self.seconds + above

    def part(self, chosen: slice) -> Prediction:
        """The predictions at some places."""
        return Prediction(
            self.seconds[chosen],
            self.low[chosen],
            self.high[chosen],
            self.provenance[chosen],
            self.family[chosen],
            self.other_gpu[chosen],
        )

    def between(self, other: Prediction, share: Array) -> Prediction:
        """Times on the line from `other` (share 0) to these (share 1); same operators but sizes."""
        return Prediction(
            other.seconds + share * (self.seconds - other.seconds),
            other.low + share * (self.low - other.low),
            other.high + share * (self.high - other.high),
            np.maximum(self.provenance, other.provenance),
            self.family,
            other.other_gpu + share * (self.other_gpu - other.other_gpu),
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
        np.zeros(1),
    )
