"""Resolve the names in a collective scenario and simulate it."""

from dataclasses import dataclass
from typing import Any

from simulator.execution.collective import CollectiveResult, result_json, run_collective
from simulator.scenario.files import Scenario


@dataclass(frozen=True, slots=True)
class CollectiveRun:
    """A scenario and what its traffic did."""

    scenario: Scenario
    result: CollectiveResult


def simulate_collective(scenario: Scenario) -> CollectiveRun:
    """Run the collective job of a scenario. Raises ValueError for what the cluster cannot do."""
    job = scenario.file.collective
    assert job is not None, "simulate() chooses by the job that is there"
    return CollectiveRun(scenario, run_collective(job, scenario.cluster, seed=scenario.file.seed))


def collective_metrics(run: CollectiveRun) -> dict[str, Any]:
    """The run's JSON names."""
    return result_json(run.result)
