"""Mark moments of a device's work, and read the seconds between them later.

On a GPU a mark is an event in the current stream, which costs the work nothing and can be read once
the GPU has passed it; on a CPU it is the time at which it was made."""

from __future__ import annotations

import time
from typing import TypeAlias

import torch

Moment: TypeAlias = "torch.cuda.Event | float"

_MILLI = 1e-3
"""torch reports elapsed time in milliseconds."""


def moment(device: torch.device) -> Moment:
    """This point of the current stream."""
    if device.type == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def seconds_between(start: Moment, end: Moment) -> float:
    """Seconds from one moment to a later one of the same device; waits until the later one is
    there."""
    if isinstance(start, float) or isinstance(end, float):
        assert isinstance(start, float)
        assert isinstance(end, float)
        return end - start
    end.synchronize()
    return float(start.elapsed_time(end)) * _MILLI


def wait_for_device(device: torch.device) -> None:
    """Return when all work that was launched on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
