"""What a scenario file says of the analysis of its run: nothing of it is part of the job."""

from pydantic import PositiveFloat, PositiveInt, model_validator

from hardware_profiles.fields import Profile
from simulator.scenario.inputs import Fraction


class VerdictRules(Profile):
    """When a service counts as keeping up; where the lines are is a choice, not a finding."""

    queue_growth: Fraction = 0.05
    """Share of the arriving requests that may stay in the queues or be turned away before the
    service counts as overloaded."""
    preempted_share: Fraction = 0.05
    """Share of the requests that may be preempted in a stable service."""
    window_stays: PositiveFloat = 5.0
    """The window must hold so many mean times in service, queues left out, for any verdict."""


class LoadOfDay(Profile):
    """A load that rises and falls over a day, and replicas that follow it in whole numbers.

    The load of a replica's scenario is taken as that at the mean; over the day it is a sinusoid
    (assumed) with the same ratio of peak to mean as the nodes.
    """

    mean_nodes: PositiveFloat
    """Nodes of the whole service, on average over the day."""
    peak_nodes: PositiveFloat
    """Nodes of the whole service at its peak."""
    mean_replicas: PositiveFloat
    """In service on average; that the replicas at each hour are whole moves load between hours."""
    levels: PositiveInt
    """Equally long parts of the day, by rising load, each run at its mean load."""

    @model_validator(mode="after")
    def _peak_is_above_mean(self) -> "LoadOfDay":
        if not self.mean_nodes <= self.peak_nodes <= 2 * self.mean_nodes:
            raise ValueError(
                f"peak_nodes is {self.peak_nodes:g}; allowed: from mean_nodes "
                f"({self.mean_nodes:g}) to twice that, where a sinusoid reaches 0"
            )
        return self


class Counterfactual(Profile):
    """How a service may have differed from the scenario, to explain published figures."""

    name: str
    """What is different, in a few words; its row in the table."""
    changes: tuple[str, ...] = ()
    """Texts "path=value", as with --set."""
    load_of_day: LoadOfDay | None = None
    """Replaces the even load from here on; the figures are then those of the whole day."""
    source: str
    """Where it says that the service may have been so."""

    @model_validator(mode="after")
    def _changes_something(self) -> "Counterfactual":
        if not self.changes and self.load_of_day is None:
            raise ValueError(f"{self.name}: needs changes or load_of_day")
        return self


class AnalysisInputs(Profile):
    """How a run is judged, explained and given its intervals; no simulated figure rests on it."""

    interval_requests: PositiveInt | None = None
    """The first requests to arrive, on which alone 80% intervals rest where the last of them comes
    at least one look at the queues behind the warm-up; by default all."""
    verdict: VerdictRules = VerdictRules()
    """When a service counts as keeping up; where the lines are is a choice, not a finding."""
    counterfactuals: tuple[Counterfactual, ...] = ()
    """For `dsv3sim attribute` of a fleet, each on top of those before it."""
    attributed_metrics: tuple[str, ...] = ()
    """Metrics of the published figures whose differences they explain."""
    attribution_changes: tuple[str, ...] = ()
    """Texts "path=value" for every row of an attribution, the first included: a shorter run."""
