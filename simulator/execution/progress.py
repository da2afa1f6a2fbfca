"""How far a simulation has come, as it tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from hardware_profiles.units import Seconds


@dataclass(frozen=True, slots=True)
class HowFar:
    """What a simulation has done so far."""

    share: float | None
    """Of all that it will do, 0 to 1; None where nobody knows how much that is."""
    count: int
    unit: str
    """What is counted, in the plural: requests."""
    simulated_s: Seconds | None = None
    what: str = ""
    """What is being done, where that changes; empty where it does not."""


Watch: TypeAlias = Callable[[HowFar], object]
"""Told now and then how far a simulation has come; returns at once."""


def unwatched(_: HowFar) -> None:
    """Nobody watches."""


def watch_part(watch: Watch, number: int, of: int) -> Watch:
    """What watches one of several equal parts of a task, the first being number 0."""

    def watch_one(progress: HowFar) -> None:
        share = progress.share
        watch(replace(progress, share=None if share is None else (number + share) / of))

    return watch_one
