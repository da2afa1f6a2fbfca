"""What a scenario file may have: its own fields, and one of eight jobs."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from pydantic import Field, NonNegativeInt

from hardware_profiles.fields import Profile
from simulator.scenario.analysis_inputs import AnalysisInputs
from simulator.scenario.events import EventsInputs
from simulator.scenario.published import PublishedFigure

if TYPE_CHECKING:
    from simulator.scenario.collective import CollectiveJob
    from simulator.scenario.fleet import FleetJob
    from simulator.scenario.pretraining import PretrainingJob
    from simulator.scenario.replay import ReplayJob
    from simulator.scenario.serving import OffloadJob, ServingStepJob, TpotLimitJob
    from simulator.scenario.training import TrainingJob

    Job: TypeAlias = (
        TrainingJob
        | PretrainingJob
        | CollectiveJob
        | ServingStepJob
        | TpotLimitJob
        | OffloadJob
        | FleetJob
        | ReplayJob
    )
    """What a scenario asks for."""


class ScenarioFile(Profile):
    """The fields of a scenario file beside its job; model, cluster, gpu and calibration are names
    or fields in full."""

    description: str
    """One line that lists and reports show."""
    model: str | dict[str, Any] | None = None
    """A shipped model, a config.json or its folder, or its fields."""
    cluster: str | dict[str, Any] | None = None
    """A shipped cluster, a path to a YAML file, or its fields."""
    gpu: str | dict[str, Any] | None = None
    """Of a replay; other jobs run on the GPU of their cluster."""
    calibration: str | dict[str, Any] | None = None
    """Whose kernel times: a shipped calibration, a path to a YAML file, or its fields."""
    traces: str | None = None
    """Folder with recordings of the model's operators; by default the user's cache folder."""
    cost_model: str = "measured"
    """How kernel times are predicted; "measured", from measurements, is the only way so far."""
    seed: NonNegativeInt = 0
    """Of everything that is drawn; equal seeds give equal runs."""
    published: tuple[PublishedFigure, ...] = ()
    """Published numbers that a run of this scenario is held against."""
    vary: dict[str, Any] = Field(default_factory=dict)
    """Of a collective: {field of the scenario: values that it takes in turn}, nested as fields."""
    analysis: AnalysisInputs = AnalysisInputs()
    """How a run is judged, explained and given its intervals; no simulated figure rests on it."""
    fidelity: Literal["timeline", "events"] = "timeline"
    """Of a training or serving step: durations known beforehand, or devices that contend."""
    events: EventsInputs = EventsInputs()
    """Of a step with fidelity events."""


NAMED = ("model", "cluster", "gpu", "calibration")
"""Fields of a scenario that name a file of their own."""

JobT = TypeVar("JobT", bound=Profile)

JOBS = {
    "training": "training:TrainingJob",
    "pretraining": "pretraining:PretrainingJob",
    "collective": "collective:CollectiveJob",
    "serving_step": "serving:ServingStepJob",
    "tpot_limit": "serving:TpotLimitJob",
    "offload": "serving:OffloadJob",
    "fleet": "fleet:FleetJob",
    "replay": "replay:ReplayJob",
}
"""{field of a scenario file that holds a job, and so says of which kind: its module here, and its
type there}; a file has exactly one of them."""


@cache
def job_type(name: str) -> type[Job]:
    """The type of a job of JOBS: only those that a file has are loaded."""
    module, _, held = JOBS[name].partition(":")
    found: type[Job] = getattr(import_module(f"simulator.scenario.{module}"), held)
    return found


def name_of_job(kind: type[Profile]) -> str:
    """What a file calls jobs of a type."""
    return next(name for name, held in JOBS.items() if held.endswith(f":{kind.__name__}"))


FIELDS = frozenset({*ScenarioFile.model_fields, *JOBS})
"""All that a scenario file may have."""
