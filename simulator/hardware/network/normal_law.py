"""Say how long normal dispatch and combine kernels take by SMs, links and tokens.

    copies    bytes copied to GPUs / (SMs x copy rate of an SM)
    both      (copies^corner + links^corner)^(1 / corner)        the slower one, the other near it
    payload   both + ramp (1 - exp(-both / ramp))                 filling the pipeline
    kernel    (start^softness + payload^softness)^(1 / softness)  from a start to a rate

`links` is what NVLink or NICs need for their bytes at the share of line rate that they reach. SI
units; arrays [transfers].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import BytesPerSecond, Seconds

Array = NDArray[np.float64]

PARTS = 16
"""Of the range that holds a link's time, which are looked at together when a kernel's is turned
into it."""
STEPS = 40
"""Such looks at most; fewer where no number lies in between any more."""


@dataclass(frozen=True, slots=True)
class NormalLaw:
    """Times of one direction's kernels among some nodes; parameters as of NormalLawProfile."""

    start: Seconds
    ramp: Seconds
    softness: float
    copy: BytesPerSecond
    corner: float

    def seconds(self, copied: Array, sms: Array, links: Array) -> Array:
        """Times of kernels.

        Args:
            copied: bytes that SMs copy to GPUs.
            links: seconds of the slower link.
        """
        both = _joined(copied / (self.copy * sms), links, self.corner)
        payload = both + self.ramp * -np.expm1(-both / self.ramp)
        return _joined(np.full_like(payload, self.start), payload, self.softness)

    def link_seconds(self, seconds: Array, copied: Array, sms: Array) -> Array:
        """What the slower link needs in kernels that take so long; 0 where copies alone take it or
        longer."""
        low, high = np.zeros_like(seconds), seconds
        shares = np.arange(PARTS + 1)[:, None] / PARTS
        for _ in range(STEPS):
            points = low + (high - low) * shares
            points[-1] = high
            inside = points[1:-1]
            if ((inside == low) | (inside == high)).all():
                break
            below = (self.seconds(copied, sms, inside) < seconds).sum(axis=0)[None]
            low, high = (np.take_along_axis(points, below + more, axis=0)[0] for more in (0, 1))
        return low


def _joined(one: Array, other: Array, sharpness: float) -> Array:
    """The longer of two times, lengthened by one near it."""
    longer = np.maximum(np.maximum(one, other), np.finfo(float).tiny)
    shorter = np.minimum(one, other) / longer
    joined: Array = longer * (1.0 + shorter**sharpness) ** (1.0 / sharpness)
    return joined
