"""Simulate the steps of a whole training run, and then the run, once for each seed.

A phase's step is simulated with what its ranks are expected to wait, and its interval moves all
steps of a run together: one draw for each seed, of the phase that trains longest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import yaml
from numpy.typing import NDArray

from hardware_profiles.units import Bytes, Seconds, format_bytes, format_seconds
from reference_model.parameter_counts import parameter_counts
from simulator.execution.pretraining import (
    Plan,
    RunLog,
    checkpoint_ends,
    optimal_interval,
    run_once,
)
from simulator.execution.progress import HowFar, Watch, unwatched
from simulator.execution.training import TrainingRun
from simulator.hardware.prediction import NORMAL_80
from simulator.scenario.files import Scenario, load_scenario
from simulator.scenario.pretraining import HOUR, PretrainingJob, StatedStep, TrainingPhase
from simulator.scenario.training import TrainingJob
from simulator.workload.batch_schedule import batch_sizes, step_seconds
from simulator.workload.chunk import FORWARD
from simulator.workload.layout import model_layers
from simulator.workload.memory import layer_parameters
from simulator.workload.muon import values
from simulator.workload.sharding import OPTIMIZERS, master_and_moments_bytes

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SimulatedStep:
    """A step of full size of one phase."""

    seconds: Seconds
    ideal_s: Seconds
    """With ranks that are alike."""
    low_s: Seconds
    high_s: Seconds
    """Ends of its 80% interval."""
    sequences: int
    sequence_length: int
    flops: float | None
    """Model FLOP of the step, attention counted causally; None of a stated one."""
    state: Bytes | None
    """Master weights and optimizer state."""
    parts: int
    """That can train without each other."""


@dataclass(frozen=True, slots=True)
class PhaseSteps:
    """All steps of one phase."""

    phase: TrainingPhase
    step: SimulatedStep
    """Of full size."""
    sequences: NDArray[np.int64]
    """[steps]"""
    seconds: Array
    """[steps]"""

    @property
    def tokens(self) -> float:
        """Trained on; the last step is whole."""
        return float(self.sequences.sum()) * self.step.sequence_length


@dataclass(frozen=True, slots=True)
class PretrainingRun:
    """A whole training run, for every seed."""

    scenario: Scenario
    gpus: int
    phases: tuple[PhaseSteps, ...]
    plan: Plan
    checkpoint_size: Bytes | None
    slower: Array
    """[runs], step times of each over the expected ones."""
    logs: tuple[RunLog, ...]

    @property
    def training_s(self) -> Seconds:
        """All steps, if nothing failed."""
        return float(self.plan.ends_s[-1])


def simulate_pretraining(scenario: Scenario, watch: Watch = unwatched) -> PretrainingRun:
    """Simulate the step of every phase, and the run for every seed.

    Args:
        watch: told after every run how far it has come.

    Raises:
        ValueError: a phase that cannot run, or a checkpoint that its interval cannot hold.
    """
    job = scenario.job_as(PretrainingJob)
    gpus = _gpus(scenario, job)
    phases = tuple(_phase(scenario, phase, number) for number, phase in enumerate(job.phases))
    ends = np.cumsum(np.concatenate([phase.seconds for phase in phases]))
    size = _checkpoint_size(scenario, job, phases)
    plan = _plan(scenario, job, phases, ends, gpus=gpus, size=size)
    seeds = np.random.SeedSequence(scenario.file.seed).spawn(job.runs)
    longest = max(phases, key=lambda phase: float(phase.seconds.sum())).step
    slower = np.array([_slower(longest, seed) for seed in seeds])
    logs = []
    for factor, seed in zip(slower, seeds, strict=True):
        logs.append(run_once(plan, slower=float(factor), seed=seed))
        watch(HowFar(len(logs) / job.runs, len(logs), "runs"))
    return PretrainingRun(scenario, gpus, phases, plan, size, slower, tuple(logs))


def _gpus(scenario: Scenario, job: PretrainingJob) -> int:
    held = scenario.cluster.gpus
    if job.gpus is None or job.gpus == held:
        return held
    simulated = [phase.name for phase in job.phases if phase.scenario is not None]
    if simulated:
        raise ValueError(
            f"{scenario.where}: pretraining.gpus: {job.gpus} is not allowed: phase "
            f"{simulated[0]!r} is simulated on all {held} GPUs of the cluster; "
            "set cluster.nodes, or state the step"
        )
    return job.gpus


def _slower(step: SimulatedStep, seed: np.random.SeedSequence) -> float:
    """A draw of a step's time over the expected one, from its interval."""
    normal = float(np.random.default_rng(seed).standard_normal()) / NORMAL_80
    end = step.high_s if normal > 0 else step.low_s
    return float((end / step.seconds) ** abs(normal))


# -- steps -----------------------------------------------------------------------------------------


def _phase(scenario: Scenario, phase: TrainingPhase, number: int) -> PhaseSteps:
    if phase.stated is not None:
        step = _stated(phase.stated)
        sizes = batch_sizes(phase.tokens, step.sequences, sequence_length=step.sequence_length)
        return PhaseSteps(phase, step, sizes, np.full(len(sizes), step.seconds))
    where = f"{scenario.where}: pretraining.phases.{number}"
    step = _simulated(scenario, phase, (), where=where)
    times = {step.sequences: step.seconds}
    growing = phase.warm_up
    if growing is not None:
        if growing.sequences > step.sequences:
            raise ValueError(
                f"{where}.warm_up.sequences: {growing.sequences} is not allowed: at most the "
                f"{step.sequences} of the step"
            )
        points = {point.sequences: point.changes for point in growing.points}
        for sequences, changes in ({growing.sequences: ()} | points).items():
            size = f"training.global_batch_sequences={sequences}"
            found = _simulated(scenario, phase, (size, *changes), where=where)
            times[sequences] = found.seconds
    sizes = batch_sizes(
        phase.tokens,
        step.sequences,
        sequence_length=step.sequence_length,
        first_sequences=growing.sequences if growing else None,
        growing_tokens=growing.tokens if growing else 0.0,
    )
    return PhaseSteps(phase, step, sizes, step_seconds(sizes, times))


def _stated(stated: StatedStep) -> SimulatedStep:
    return SimulatedStep(
        seconds=stated.time.value,
        ideal_s=stated.time.value,
        low_s=stated.time.low,
        high_s=stated.time.high,
        sequences=stated.sequences,
        sequence_length=stated.sequence_length,
        flops=None,
        state=stated.state,
        parts=stated.replicas,
    )


def _simulated(
    run: Scenario, phase: TrainingPhase, changes: Sequence[str], *, where: str
) -> SimulatedStep:
    """The step of a phase's scenario on the run's model and cluster."""
    from simulator.analysis.run import simulate

    assert phase.scenario is not None, "the phase's validator wants one or the other"
    named = load_scenario(phase.scenario)
    if not isinstance(named.job, TrainingJob):
        raise ValueError(
            f"{where}.scenario: {phase.scenario} holds a {named.job_name} job; allowed: training"
        )
    other = [
        f"{field}={_as_yaml(run.resolved[field])}"
        for field in ("model", "cluster")
        if run.resolved.get(field) is not None and run.resolved[field] != named.resolved[field]
    ]
    try:
        training = load_scenario(phase.scenario, [*other, *phase.changes, *changes])
        found = simulate(training)
        metrics = found.metrics if not changes else found.quick_metrics
    except ValueError as error:
        raise ValueError(f"{where} ({phase.name}): {error}") from None
    job = training.job_as(TrainingJob)
    assert isinstance(found.result, TrainingRun), "a phase's scenario is a training step"
    seconds = float(metrics["step_time_s"])
    low, high = metrics.get("interval_80", {}).get("step_time_s", (seconds, seconds))
    peak = training.cluster.node.gpu.peak("bfloat16") * training.cluster.gpus
    return SimulatedStep(
        seconds=seconds,
        ideal_s=float(metrics.get("ideal", metrics)["step_time_s"]),
        low_s=min(low, seconds),
        high_s=max(high, seconds),
        sequences=job.global_batch_sequences,
        sequence_length=job.sequence_length,
        flops=metrics["mfu_causal"] * peak * seconds,
        state=whole_state_bytes(found.result),
        parts=found.result.layout.expert_replicas,
    )


def whole_state_bytes(run: TrainingRun) -> Bytes:
    """Master weights and optimizer state of the whole model, each parameter once."""
    model, types, layout = run.scenario.model, run.job.optimizer, run.layout
    counts = parameter_counts(model)
    matrices = 0
    if OPTIMIZERS[types.name].of_matrices is not None:
        operators = run.operators_at(1.0)
        for kind in model_layers(model):
            held = layer_parameters(
                model, kind, operators(kind, FORWARD), local_experts=layout.local_experts
            )
            of_expert = values(held.experts.matrices) // layout.local_experts
            matrices += values(held.replicated.matrices) + of_expert * layout.routed_experts
    each = master_and_moments_bytes(types)
    of_matrices = master_and_moments_bytes(types, orthogonalized=True)
    return float((counts.total + counts.mtp - matrices) * each + matrices * of_matrices)


def _as_yaml(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).strip()


# -- checkpoints and failures ----------------------------------------------------------------------


def _checkpoint_size(
    scenario: Scenario, job: PretrainingJob, phases: Sequence[PhaseSteps]
) -> Bytes | None:
    if job.checkpoint is None:
        return None
    if job.checkpoint.size is not None:
        return job.checkpoint.size
    states = [phase.step.state for phase in phases if phase.step.state is not None]
    if not states:
        raise ValueError(
            f"{scenario.where}: pretraining.checkpoint.size is missing; a run of stated steps "
            "needs it, or stated.state of a phase"
        )
    return max(states)


def _plan(
    scenario: Scenario,
    job: PretrainingJob,
    phases: Sequence[PhaseSteps],
    step_ends_s: Array,
    *,
    gpus: int,
    size: Bytes | None,
) -> Plan:
    nodes = gpus / scenario.cluster.node.gpus
    spares = job.spares
    if spares is not None and spares.nodes >= nodes:
        raise ValueError(
            f"{scenario.where}: pretraining.spares.nodes: {spares.nodes} is not allowed: "
            f"fewer than the {nodes:g} nodes of the run"
        )
    parts = min(phase.step.parts for phase in phases)
    saved = job.checkpoint
    stall = write = reload = 0.0
    interval = math.inf
    if saved is not None and size is not None:
        written = size / (nodes * saved.write_bandwidth_per_node)
        stall, write = written, 0.0
        if saved.overlapped:
            assert saved.copy_bandwidth_per_gpu is not None, "the validator wants it"
            stall, write = size / (gpus * saved.copy_bandwidth_per_gpu), written
        read = saved.read_bandwidth_per_node or saved.write_bandwidth_per_node
        reload = size / (nodes * read)
        total_rate = sum(kind.rate(gpus) for kind in job.failures.values())
        if saved.interval == "optimal":
            between = 1 / total_rate if total_rate else math.inf
            interval = max(optimal_interval(stall, between), write)
        else:
            interval = saved.interval
        if interval < written:
            raise ValueError(
                f"{scenario.where}: pretraining.checkpoint.interval: {format_seconds(interval)} is "
                f"not allowed: writing {format_bytes(size)} takes {format_seconds(written)}; a "
                "longer interval, or more write_bandwidth_per_node"
            )
    slow = job.slow_nodes
    return Plan(
        ends_s=checkpoint_ends(step_ends_s, interval),
        stall_s=stall,
        write_s=write,
        reload_s=reload,
        restart_s=job.restart,
        kinds=job.failures,
        gpus=gpus,
        slow_rate=gpus / HOUR / slow.gpu_hours_between if slow else 0.0,
        slowdown=slow.slowdown if slow else 1.0,
        found_after_s=slow.found_after if slow else 0.0,
        spares=spares.nodes if spares else 0,
        repair_s=spares.repair if spares else 0.0,
        shrinks=spares is not None and spares.exhausted == "shrink",
        parts=parts,
        nodes_per_part=max(1, int(nodes) // parts),
    )
