"""Published figures of a scenario file, which a run is held against."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from hardware_profiles.fields import Profile
from hardware_profiles.renames import path_of_today
from hardware_profiles.units import parse_quantity

_OF_TRANSFERS = {
    "time": "rows.mean_gpu_s",
    "bandwidth": "rows.algorithm_bandwidth_bytes_per_s",
    "relative_to_adaptive": "rows.bandwidth_over_adaptive",
}
"""{field of a published transfer as older files state it: metric of its operation}"""


def _of_today(metric: str) -> str:
    return path_of_today(metric, "metrics", where="published")


class PublishedFigure(Profile):
    """A published number that a run of this scenario is held against."""

    name: str
    """What the figure is, in a few words; its row in tables."""
    metric: Annotated[str, AfterValidator(_of_today)]
    """Path in the metrics, e.g. "step_time_s", "ranks.0.forward_s" or "rows.mean_gpu_s"."""
    of: dict[str, str | int] = Field(default_factory=dict)
    """What tells its row from others where the path leads to many: {operation: dispatch, gpus: 8}.
    A run without such a row is not held against the figure."""
    value: float | str
    """A plain number, or text with a unit of time or bandwidth."""
    source: str
    """Where it was published: paper with section or table, repository with date."""
    kind: Literal["input", "chosen", "bound", "predicted", "calibrated", "setup_unpublished"] = (
        "predicted"
    )
    """What the simulated figure is: an input of the scenario, what follows from a size that was
    chosen for it, the most that a machine could do of which an average was published, a prediction
    of the model, or what its values were fitted to; setup_unpublished: what was measured is not
    known well enough to call it a prediction."""

    @model_validator(mode="before")
    @classmethod
    def _as_of_any_job(cls, given: Any) -> Any:
        """A transfer as older files state it, {operation, gpus, time | bandwidth ...}, as one."""
        if not isinstance(given, dict) or "operation" not in given:
            return given
        of = {
            field: given[old]
            for old, field in (
                ("operation", "operation"),
                ("gpus", "gpus"),
                ("group", "group_gpus"),
                ("routing", "routing"),
            )
            if old in given
        }
        figures = [
            {"metric": metric, "value": given[field]}
            for field, metric in _OF_TRANSFERS.items()
            if field in given
        ]
        if len(figures) != 1:
            raise ValueError(f"needs one of {', '.join(_OF_TRANSFERS)}")
        kept = {"kind", "source", "sources"} & set(given)
        name = " ".join(map(str, of.values()))
        return {"name": name, "of": of, **figures[0], **{field: given[field] for field in kept}}

    @model_validator(mode="after")
    def _is_positive(self) -> Self:
        if not self.si_value > 0.0:
            raise ValueError(f"value of {self.name!r} is {self.value!r}; allowed: above 0")
        return self

    @cached_property
    def si_value(self) -> float:
        """The value in SI units."""
        if not isinstance(self.value, str):
            return self.value
        where = f"published: {self.name}"
        try:
            return parse_quantity(self.value, "bandwidth", where)
        except ValueError:
            return parse_quantity(self.value, "time", where)
