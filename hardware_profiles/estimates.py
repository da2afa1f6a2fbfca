"""Inputs that are known only within an interval, with where they come from."""

from typing import Self

from pydantic import model_validator

from hardware_profiles.fields import Profile, Ratio, TimeValue

WIDEST = 1e6
"""Most times that the high end of an interval is its low end, or its value where that is 0: draws
from a wider one, which says nothing, would be beyond any number."""


class Estimate(Profile):
    """An input that is known only within an interval; a ratio or share."""

    value: Ratio
    """The value itself."""
    low: Ratio
    """Lower end of the interval that is likely to hold it."""
    high: Ratio
    """Upper end of that interval."""
    source: str
    """Where value and interval come from: measurement, paper, or an assumption that says so."""

    @model_validator(mode="before")
    @classmethod
    def _has_an_interval(cls, given: object) -> object:
        if isinstance(given, int | float | str) and not isinstance(given, bool):
            raise ValueError(
                f"{given!r} has no interval; allowed: value, low, high and source, such as "
                f"{{value: {given}, low: {given}, high: {given}, source: where it comes from}}"
            )
        return given

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.value <= self.high:
            end = "low" if self.value < self.low else "high"
            raise ValueError(
                f"needs low <= value <= high, found {self.low:g}, {self.value:g}, {self.high:g}; "
                f"allowed: a value between them, or another {end} with it"
            )
        least = self.low or self.value
        if least and self.high > WIDEST * least:
            raise ValueError(
                f"high is {self.high / least:.3g} times {least:g}; "
                f"allowed: up to {WIDEST:.0e} times"
            )
        return self


class TimeEstimate(Estimate):
    """A duration that is known only within an interval."""

    value: TimeValue
    """The value itself."""
    low: TimeValue
    """Lower end of the interval that is likely to hold it."""
    high: TimeValue
    """Upper end of that interval."""


class SlowdownEstimate(Estimate):
    """How much slower kernels run beside an all-to-all than alone: a time ratio."""

    in_rows: Ratio | None = None
    """Ratio that rows measured beside an all-to-all hold; `value` where not given. A larger value
    slows predictions, what was measured stays what it is."""

    @property
    def of_rows(self) -> float:
        """Ratio by which rows measured beside an all-to-all are slower than alone."""
        return self.value if self.in_rows is None else self.in_rows
