"""simulate: a scenario in, a run out; pure, and the place where names become functions.

Names of schedules and cost models are resolved, and layouts checked against memory, before anything
is simulated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import reference_model
from hardware_profiles.schema import CalibrationProfile
from reference_model.config import ModelConfig
from reference_model.trace import OperatorTrace, load_trace
from simulator.execution.training import (
    TrainingRun,
    TrainingStep,
    pipeline_stages,
    simulate_step,
    training_load,
)
from simulator.hardware.costs import COST_MODELS, calibration_measurements
from simulator.scenario import Scenario, by_name
from simulator.workload.layout import ParallelLayout
from simulator.workload.lowering import operators_of
from simulator.workload.memory import MemoryModel, check_fits
from simulator.workload.schedules import SCHEDULES

TRACES = Path(reference_model.__file__).parent / "traces"
"""Folder of the shipped operator traces."""


def shipped_trace(model: ModelConfig, job: str) -> OperatorTrace:
    """The operator trace recorded for this model and job ("train").

    Raises:
        ValueError: none of the shipped traces was recorded from this config.
    """
    known = []
    for path in sorted(TRACES.glob(f"*.{job}.jsonl")):
        trace = load_trace(path)
        if trace.config_digest == model.digest:
            return trace
        known.append(trace.model)
    raise ValueError(
        f"model: no {job} trace was recorded from this config; recorded: {', '.join(known)}; "
        "record one with: python -m reference_model trace"
    )


def simulate_training(scenario: Scenario, *, unfold: bool = False) -> TrainingRun:
    """Simulate one optimizer step, with every operator of every rank where `unfold` is set.

    Raises:
        ValueError: an unknown name, sizes that do not divide, or Infeasible where it does not fit.
    """
    job = scenario.file.training
    assert job is not None, "simulate() chooses by the job that is there"
    node = scenario.cluster.node
    build_schedule = by_name(SCHEDULES, job.schedule, "training.schedule")
    build_costs = by_name(COST_MODELS, scenario.file.cost_model, "cost_model")
    measurements = calibration_measurements(scenario.calibration)
    layout = ParallelLayout(
        gpus=scenario.cluster.gpus,
        gpus_per_node=node.gpus,
        pp=job.pp,
        ep=job.ep,
        routed_experts=scenario.model.n_routed_experts,
        redundant_experts=job.redundant_experts,
    )
    if job.communication_sms >= node.gpu.sms:
        raise ValueError(
            f"training.communication_sms: {job.communication_sms} leaves no SM for compute; "
            f"allowed: fewer than the {node.gpu.sms} SMs of {node.gpu.name}"
        )
    in_one_round = layout.dp * job.micro_batch_sequences
    if job.global_batch_sequences % in_one_round:
        raise ValueError(
            f"training.global_batch_sequences: {job.global_batch_sequences} is not a multiple of "
            f"{layout.dp} data-parallel ranks x {job.micro_batch_sequences} sequences a micro-batch"
        )
    schedule = build_schedule(job.pp, job.global_batch_sequences // in_one_round)
    trace = shipped_trace(scenario.model, "train")
    reached = scenario.calibration.all_to_all.ranks_per_token
    if layout.expert_nodes not in reached:
        raise ValueError(
            f"training.ep: {job.ep} spans {layout.expert_nodes} nodes; the calibration knows how "
            f"many GPUs a token reaches over {', '.join(map(str, sorted(reached)))} nodes "
            "(calibration.all_to_all.ranks_per_token)"
        )
    load = training_load(
        job, layout, scenario.model.num_experts_per_tok, reached[layout.expert_nodes]
    )
    operators = operators_of(trace, load)
    stages = pipeline_stages(job, schedule, scenario.model, operators)
    model = MemoryModel(
        schedule=schedule,
        stages=stages,
        config=scenario.model,
        layout=layout,
        trace=trace,
        operators=operators,
        load=load,
        reserved=job.reserved_memory,
    )
    capacity = node.gpu.hbm_capacity
    at_once = model.fitting(capacity) if job.weights_at_once == "fitting" else job.weights_at_once
    memory = model.ranks(at_once)
    check_fits(memory, capacity)

    def step(calibration: CalibrationProfile, *, unfold: bool) -> TrainingStep:
        return simulate_step(
            scenario.model,
            cluster=scenario.cluster,
            job=job,
            layout=layout,
            schedule=schedule,
            stages=stages,
            operators=operators,
            costs=build_costs(
                cluster=scenario.cluster, calibration=calibration, expert_parallel_ranks=job.ep
            ).fit(measurements),
            calibration=calibration,
            at_once=at_once,
            unfold=unfold,
        )

    return TrainingRun(
        scenario=scenario,
        job=job,
        layout=layout,
        schedule=schedule,
        stages=stages,
        at_once=tuple(at_once),
        memory=tuple(memory),
        step=step(scenario.calibration, unfold=unfold),
        without_slowdown=step(scenario.calibration.without_all_to_all_slowdown(), unfold=False),
    )


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
    match scenario.job_name:
        case "training":
            return simulate_training(scenario, unfold=unfold)
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
            from simulator.execution.fleet_simulation import prepare_fleet

            return prepare_fleet(scenario)
        case other:
            raise AssertionError(f"job {other} is not simulated")
