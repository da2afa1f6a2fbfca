"""What a figure of a run is: its unit, its meaning, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of a run."""

    name: str
    unit: str
    """SI, or what is counted; "share" of one, "ratio"; empty where it has none of its own."""
    better: Literal["less", "more"] | None
    """None where neither is."""
    meaning: str
