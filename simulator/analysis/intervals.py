"""80% intervals of simulated times, from draws of all that they rest on."""

from __future__ import annotations

from hardware_profiles.units import Seconds
from simulator.execution.draws import interval
from simulator.execution.serving_draws import step_draws
from simulator.execution.serving_step import ServingStep


def serving_interval(step: ServingStep, *, seed: int) -> list[Seconds]:
    """80% interval of the time of a serving iteration, host overhead included, of the ranks that
    its job's skew states."""
    draws = step_draws(step, seed=seed, attributed=False)
    value = step.step_s if step.model.job.skew.is_none else draws.expected_s
    return interval(draws.step_s, value=value)
