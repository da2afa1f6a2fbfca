"""simulate: a scenario in, a run out; pure. Each kind of job loads only what it needs."""

from __future__ import annotations

from typing import Any

from simulator.scenario.files import Scenario
from simulator.workload.recorded import shipped_trace


def simulate(scenario: Scenario, *, unfold: bool = False) -> Any:
    """Run the job of a scenario; the same scenario gives the same run.

    Args:
        unfold: simulate every operator of every rank instead of each distinct chunk once; of a
            training step only.

    Returns:
        The run type of the job: TrainingRun for "training", ServingRun for "serving_step" ...

    Raises:
        ValueError: anything that the user can mend.
    """
    if unfold and scenario.job_name != "training":
        raise ValueError(f"--unfold: a {scenario.job_name} job has nothing to unfold")
    cluster = scenario.named_cluster
    simulated = scenario.job_name in ("collective", "serving_step", "training")
    if cluster is not None and cluster.failures and not simulated:
        raise ValueError(
            f"{scenario.where}: cluster.failures: {', '.join(cluster.failures)}: a "
            f"{scenario.job_name} job does not simulate failures of the fabric; allowed: none"
        )
    match scenario.job_name:
        case "training":
            from simulator.execution.training_run import simulate_training

            return simulate_training(scenario, shipped_trace, unfold=unfold)
        case "collective":
            from simulator.execution.collective_run import simulate_collective

            return simulate_collective(scenario)
        case "serving_step":
            from simulator.execution.serving_run import simulate_serving_step

            return simulate_serving_step(scenario, shipped_trace)
        case "tpot_limit":
            from simulator.execution.serving_run import simulate_tpot_limit

            return simulate_tpot_limit(scenario)
        case "offload":
            from simulator.execution.serving_run import simulate_offload

            return simulate_offload(scenario)
        case "fleet":
            from simulator.execution.fleet.simulation import prepare_fleet

            return prepare_fleet(scenario)
        case other:
            raise AssertionError(f"job {other} is not simulated")
