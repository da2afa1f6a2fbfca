"""Times of collective operations over their size, as a transport's file states them.

One curve per operation and number of GPUs, all within one NVLink domain: `points` maps bytes to
seconds, both ascending. Sizes are those of NCCL's tests: the larger of the buffers that a GPU sends
from and receives into.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hardware_profiles.fields import BandwidthValue, Count, DataValue, Profile, Ratio, TimeValue

CollectiveKind = Literal["all_gather", "all_reduce", "all_to_all", "reduce_scatter", "send"]

Share = Annotated[float, Field(ge=0, le=1)]


class GroupTimes(Profile):
    """Times of one operation among one number of GPUs."""

    ranks: Annotated[int, Field(strict=True, ge=2)]
    points: dict[DataValue, TimeValue]
    """{bytes: seconds}"""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        sizes, times = list(self.points), list(self.points.values())
        if len(sizes) < 2 or sizes != sorted(set(sizes)):
            raise ValueError("points: allowed: at least two sizes, ascending")
        if times != sorted(times) or times[0] == 0.0:
            raise ValueError("points: allowed: times above 0 that never fall with size")
        return self


class LeftOut(Profile):
    """Errors of rows of one range of sizes, each predicted without all rows of its size."""

    up_to: DataValue
    """Largest size of the range."""
    rows: Count
    median: Share
    """Of |predicted / measured - 1|."""
    p90: Annotated[float, Field(ge=0)]
    quantile_80: Ratio
    """80% quantile of the absolute log error: the half-width of an interval."""


class OperationCurves(Profile):
    """What is measured of one operation."""

    operation: CollectiveKind
    types: Literal["any", "int8"] = "any"
    """int8: sums of integers, which switches do not make; any: everything else."""
    curves: tuple[GroupTimes, ...]
    left_out: tuple[LeftOut, ...]
    other_ranks: Annotated[float, Field(ge=0)]
    """80% quantile of the absolute log error where the most GPUs are predicted from the fewer."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for field, key in (("curves", "ranks"), ("left_out", "up_to")):
            values = [getattr(entry, key) for entry in getattr(self, field)]
            if not values or values != sorted(set(values)):
                raise ValueError(f"{field}: {key} {values}; allowed: at least one, ascending")
        return self


class MeasuredCollectives(Profile):
    """Measured times of the collective operations of one library on one GPU."""

    gpu: str
    """GPU whose hosts were measured."""
    nvlink_bandwidth: BandwidthValue
    """Its line rate, per GPU and direction."""
    library: str
    other_link: Ratio
    """Time at another NVLink rate over the restated one: a factor either way, an assumption."""
    operations: tuple[OperationCurves, ...]

    @model_validator(mode="after")
    def _once(self) -> Self:
        names = [(entry.operation, entry.types) for entry in self.operations]
        if not names or len(names) != len(set(names)):
            raise ValueError("operations: allowed: at least one, each once per types")
        return self
