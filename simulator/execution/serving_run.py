"""Resolve the names in a serving step's scenario, check its memory and simulate it.

The step of ideal ranks is compared to the same without slow-down of transfers, and without drafted
tokens where it drafts. Where the job's ranks differ, it is drawn as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hardware_profiles.calibration_parts import BesideCompute
from hardware_profiles.low_latency_kernels import (
    LowLatencyProfile,
    known_low_latency,
    load_low_latency,
)
from hardware_profiles.same_gpu import same_gpu
from hardware_profiles.schema import CalibrationProfile, load_gpu
from hardware_profiles.units import Seconds
from reference_model.parameter_counts import parameter_counts
from simulator.execution.serving_draws import StepDraws, expected_s, step_draws
from simulator.execution.serving_model import (
    KernelSource,
    ServingModel,
    kernel_source,
    placed_experts,
    serving_model,
)
from simulator.execution.serving_rows import windows
from simulator.execution.serving_step import ServingStep, decode_step, serving_step
from simulator.hardware.costs import COST_MODELS
from simulator.hardware.network.fabric_load import NO_LIMIT
from simulator.hardware.power_state import rows_for
from simulator.scenario.files import Scenario, by_name
from simulator.scenario.serving import ServingStepJob
from simulator.workload.experts import (
    RebalanceCost,
    place_experts,
    rebalance_cost,
    uniform_popularity,
)
from simulator.workload.recipes import recipe_name
from simulator.workload.recorded import TraceOf
from simulator.workload.serving_memory import KvCapacity, check_kv_fits, kv_capacity

"""(model config, job) -> the shipped trace of it."""


@dataclass(frozen=True, slots=True)
class SpeculationPoint:
    """What drafting gains at one batch."""

    batch: int
    """Requests of the whole deployment."""
    step_s: Seconds
    """With draft and verification."""
    step_without_s: Seconds
    speed_up: float
    """Tokens a second of a request, with over without."""
    active_experts: float
    """Local experts that a micro-batch touches, mean over GPUs and layers."""
    active_experts_without: float
    experts_speed_up: float
    """The speed-up if the routed experts' kernels were all of a step."""


@dataclass(frozen=True, slots=True)
class ServingRun:
    """A serving step with what it is compared to."""

    scenario: Scenario
    job: ServingStepJob
    step: ServingStep
    """Of ideal ranks."""
    draws: StepDraws | None
    """Of the ranks that the job's skew states; None where they are ideal."""
    without_slowdown: ServingStep
    """The same with transfers beside compute as fast as alone."""
    without_speculation: ServingStep | None
    """The same requests without drafted tokens, where the job drafts."""
    speculation_curve: tuple[SpeculationPoint, ...]
    kv: KvCapacity
    rebalance: RebalanceCost | None


def simulate_serving_step(scenario: Scenario, trace_of: TraceOf) -> ServingRun:
    """Simulate the serving step of a scenario.

    Raises:
        ValueError: an unknown name, sizes that do not divide, or Infeasible where weights or the
            requests' KV cache exceed the memory, saying by how much.
    """
    job = scenario.job_as(ServingStepJob)
    model = prepare_serving(scenario, job, trace_of)
    step = serving_step(model)
    kv = _capacity(job, step)
    check_kv_fits(kv)
    plain = _without_speculation(model, scenario, trace_of)
    unslowed = _without_slowdown(scenario, model)
    return ServingRun(
        scenario=scenario,
        job=job,
        step=step,
        draws=None if job.skew.is_none else step_draws(step, seed=scenario.file.seed),
        without_slowdown=step if unslowed is model else serving_step(unslowed),
        without_speculation=None if plain is None else serving_step(plain),
        speculation_curve=() if plain is None else _speculation_curve(model, plain, kv),
        kv=kv,
        rebalance=rebalancing(model, job.experts.rebalance_interval),
    )


def expected_serving_seconds(
    scenario: Scenario, trace_of: TraceOf, *, like: StepDraws | None
) -> Seconds:
    """The time of a scenario's serving step alone, on the ranks that its job's skew states: what
    `simulate_serving_step` makes of it, without what it is compared to.

    Raises as it does.

    Args:
        like: of the same job on other kernels, whose ranks it has.
    """
    job = scenario.job_as(ServingStepJob)
    step = serving_step(prepare_serving(scenario, job, trace_of))
    check_kv_fits(_capacity(job, step))
    return expected_s(step, None if like is None else like.ranks)


def prepare_serving(
    scenario: Scenario,
    job: ServingStepJob,
    trace_of: TraceOf,
    kernels: KernelSource | None = None,
) -> ServingModel:
    """The deployment of a job, made ready for any batch and context.

    Args:
        kernels: those of another job on the same GPUs; fitted anew without it.
    """
    if kernels is None:
        kernels = _kernels(scenario, job, scenario.calibration)
    return serving_model(
        job,
        config=scenario.model,
        cluster=scenario.cluster,
        kernels=kernels,
        trace=trace_of(scenario.model, job.phase, recipe_name(job.recipe, scenario.model)),
        low_latency=_low_latency(scenario, job),
        seed=scenario.file.seed,
    )


def _low_latency(scenario: Scenario, job: ServingStepJob) -> LowLatencyProfile | None:
    """The kernels that a job names; of a shipped profile the copies over NVLink are those that the
    calibration timed on the job's GPU, where it did."""
    name, calibration = job.all_to_all.low_latency, scenario.calibration
    if name is None:
        return None
    named, own = load_low_latency(name), calibration.low_latency_kernels
    timed_on, gpu = load_gpu(calibration.gpu), scenario.cluster.node.gpu
    # Whatever a job makes of its rates.
    on_this = timed_on.name == gpu.name or same_gpu(timed_on, gpu)
    if own is None or not on_this or name not in known_low_latency() or named.link == "nic":
        return named
    timed = load_low_latency(own)
    return timed if named.link == "nvlink" else named.model_copy(update={"within": timed})


def _kernels(
    scenario: Scenario, job: ServingStepJob, calibration: CalibrationProfile
) -> KernelSource:
    return kernel_source(
        job,
        config=scenario.model,
        cluster=scenario.cluster,
        calibration=calibration,
        cost_model=by_name(COST_MODELS, scenario.file.cost_model, "cost_model"),
        measurements=rows_for(calibration, "prefill" if job.phase == "prefill" else "decode_step"),
        low_latency=_low_latency(scenario, job),
        seed=scenario.file.seed,
    )


def _capacity(job: ServingStepJob, step: ServingStep) -> KvCapacity:
    """Room of the deployment; a step of few requests may run in fewer micro-batches than it."""
    model = step.model
    return kv_capacity(
        job,
        config=model.config,
        cluster=model.cluster,
        low_latency=model.low_latency,
        operators=[op for layer in step.operators.values() for op in layer.operators],
    )


def _without_slowdown(scenario: Scenario, model: ServingModel) -> ServingModel:
    """The same deployment with transfers beside compute as fast as alone."""
    job = model.job
    ratios = job.all_to_all.beside_compute
    if job.expert_tp > 1 or (
        ratios is not None and ratios.dispatch.value == ratios.combine.value == 1.0
    ):
        return model
    if ratios is not None:
        unit = BesideCompute.none("set to 1 for comparison")
        alone = job.all_to_all.model_copy(update={"beside_compute": unit})
        # Kernel times stay what they are: only wires know the ratio.
        return replace(model, job=job.model_copy(update={"all_to_all": alone}))
    unslowed = model.kernels.calibration.without_all_to_all_slowdown()
    return replace(model, kernels=_kernels(scenario, job, unslowed))


def _without_speculation(
    model: ServingModel, scenario: Scenario, trace_of: TraceOf
) -> ServingModel | None:
    """The deployment of a job that drafts, not drafting."""
    if model.job.speculative_decoding is None:
        return None
    changed = model.job.model_copy(update={"speculative_decoding": None})
    return prepare_serving(scenario, changed, trace_of, model.kernels)


def _speculation_curve(
    model: ServingModel, plain: ServingModel, kv: KvCapacity
) -> tuple[SpeculationPoint, ...]:
    """What drafting gains at batches of one request on the deployment, two, four and so on, as far
    as KV cache and all-to-all buffers reach."""
    job = model.job
    assert job.speculative_decoding is not None
    context = job.requests.context_tokens
    assert context is not None, "only decode jobs draft"
    groups = job.gpus // job.attention_tp
    points = []
    batch = 1
    while batch <= kv.largest_group * groups:
        together = -(-batch // groups)
        idle = job.gpus - min(batch, groups) * job.attention_tp
        with_draft, without = (
            decode_step(
                deployment,
                -(-together // job.attention_tp),
                context,
                idle_gpus=idle,
                group_batch=together,
            )
            for deployment in (model, plain)
        )
        gained = job.speculative_decoding.tokens_per_step
        points.append(
            SpeculationPoint(
                batch=batch,
                step_s=with_draft.step_s,
                step_without_s=without.step_s,
                speed_up=gained * without.step_s / with_draft.step_s,
                active_experts=with_draft.active_experts,
                active_experts_without=without.active_experts,
                experts_speed_up=gained * without.expert_s / with_draft.expert_s,
            )
        )
        batch *= 2
    return tuple(points)


def rebalancing(model: ServingModel, interval: Seconds | None) -> RebalanceCost | None:
    """Cost of going from a placement that knows nothing of the load to the job's; None where
    experts are equally popular or there is no interval."""
    if interval is None or model.job.skew.rows.form != "popularity":
        return None
    load = None if model.over_nvlink else NO_LIMIT
    placement, _ = placed_experts(model, windows(model)[0])
    before = place_experts(
        uniform_popularity(len(placement.slots), placement.experts),
        gpus=placement.gpus,
        nodes=1,
        groups=1,
        redundant=placement.slots.shape[1] - placement.experts,
        policy="in_order",
    )
    return rebalance_cost(
        before,
        placement,
        # A byte each; block scales, 0.02%, are left out.
        expert_bytes=float(parameter_counts(model.config).expert),
        seconds_of=lambda size: model.transfers.payload(size, load=load).seconds.item(),
        interval=interval,
    )
