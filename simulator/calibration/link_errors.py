"""Errors of predicted transfer times on message sizes that were left out of the fit.

All errors are log measured minus log predicted; [rows] arrays are in the order of their sizes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.schema import LinkProfile
from hardware_profiles.units import BytesPerSecond
from simulator.hardware.network.transfer_times import link_curve

Array = NDArray[np.float64]

REGIONS = 4
"""Ranges of size that are left out in turn."""
SAME_WORK = 0.05
"""Share of the launch that bytes take at line rate below which transfers do equal work."""


def leave_one_out(wire: Array, seconds: Array, bandwidth: BytesPerSecond) -> Array:
    """[rows] errors of rows left out one at a time, everything fitted anew without them."""
    every = np.arange(len(wire))
    return np.concatenate(
        [_without(wire, seconds, bandwidth, out=every == number) for number in every]
    )


def leave_regions_out(wire: Array, seconds: Array, bandwidth: BytesPerSecond) -> Array:
    """[rows] errors with a whole range of sizes left out."""
    region = np.arange(len(wire)) * REGIONS // len(wire)
    return np.concatenate(
        [_without(wire, seconds, bandwidth, out=region == number) for number in np.unique(region)]
    )


def launch_noise(
    wire: Array, seconds: Array, link: LinkProfile, bandwidth: BytesPerSecond
) -> Array:
    """[rows of equal work] log of each over the median of the others; empty below two rows.

    Transfers that are launches and next to no bytes differ by chance alone.
    """
    logs = np.log(seconds[wire / bandwidth < SAME_WORK * link.launch_s])
    if len(logs) < 2:
        return np.empty(0)
    return np.array([log - np.median(np.delete(logs, place)) for place, log in enumerate(logs)])


def _without(
    wire: Array, seconds: Array, bandwidth: BytesPerSecond, *, out: NDArray[np.bool_]
) -> Array:
    curve = link_curve(wire[~out], seconds[~out], bandwidth)
    errors: Array = np.log(seconds[out]) - curve.at(wire[out])
    return errors
