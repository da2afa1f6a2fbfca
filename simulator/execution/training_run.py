"""Resolve the names in a training scenario, check its memory and simulate its step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import lru_cache
from math import lcm
from pathlib import Path
from typing import TypeAlias

import numpy as np

from hardware_profiles.by_content import Keyed, object_key, profile_key
from hardware_profiles.schema import GpuProfile
from hardware_profiles.suggestions import meant_or_known
from hardware_profiles.units import Bytes, Seconds
from reference_model.config import ModelConfig
from reference_model.pipeline_actions import OVERLAPPED, WEIGHT_GRADIENT
from reference_model.trace import Operator, OperatorTrace, Split, part_of
from simulator.execution.expert_reach import expert_reach
from simulator.execution.host_state import host_states
from simulator.execution.other_schedules import fitting_schedules
from simulator.execution.stages import PipelineTimes, SpansOf, choose_stages
from simulator.execution.timeline import Times
from simulator.execution.training import (
    TrainingRun,
    TrainingStep,
    distinct_chunks,
    send_seconds,
    simulate_step,
    training_load,
)
from simulator.execution.training_chunks import ChunkKey, run_chunks
from simulator.execution.training_fabric import collective_groups, step_loads
from simulator.hardware.costs import COST_MODELS, KernelCostModel
from simulator.hardware.kernels.completed import completed_kernels, price_side_by_side
from simulator.hardware.network.clusters import gpus_per_domain
from simulator.hardware.power_state import rows_for
from simulator.scenario.files import Scenario, by_name, check_names
from simulator.scenario.training import TrainingJob
from simulator.workload.chunk import OperatorsOf, with_state
from simulator.workload.context_parallel import check_pieces, operators_of_part
from simulator.workload.documents import PackedWork, packed_work, with_documents
from simulator.workload.layout import (
    ParallelLayout,
    StageLayers,
    explicit_stages,
    model_layers,
    parse_stage,
    recomputations_of,
)
from simulator.workload.load import Load
from simulator.workload.memory import (
    GpuMemory,
    Infeasible,
    LayerMemory,
    MemoryModel,
    check_fits,
    layer_memory,
    parameter_copies,
)
from simulator.workload.recipes import TRAINED, check_multiplied
from simulator.workload.recorded import TraceOf
from simulator.workload.schedules.files import is_schedule_file
from simulator.workload.schedules.held import held_activations
from simulator.workload.schedules.known import SCHEDULES, build_schedule
from simulator.workload.schedules.order import Schedule
from simulator.workload.sharding import HeldParameters, Sharding, check_optimizer
from simulator.workload.state_tasks import state_operators
from simulator.workload.tensor_parallel import check_tokens

MOST_CHUNKS = 1_000_000
"""Micro-batches times pipeline ranks that are simulated: a few minutes of work."""


def sequences_in_one_round(job: TrainingJob, layout: ParallelLayout) -> int:
    """Sequences of one micro-batch of every pipeline.

    Raises:
        ValueError: a batch that is no multiple of it.
    """
    sharing = job.context_parallel * job.tensor_parallel
    found = layout.dp * job.micro_batch_sequences
    if job.global_batch_sequences % found:
        ranks = (
            "data-parallel ranks" if sharing == 1 else f"groups of {sharing} GPUs that share them"
        )
        raise ValueError(
            f"training.global_batch_sequences: {job.global_batch_sequences} is not a multiple of "
            f"{layout.dp} {ranks} x {job.micro_batch_sequences} sequences per "
            f"micro-batch; allowed: a multiple of {found}"
        )
    return found


def training_layout(scenario: Scenario, job: TrainingJob) -> ParallelLayout:
    """The GPUs of a job by what they work on.

    Raises:
        ValueError: GPUs that do not divide what they share.
    """
    split = Split(job.tensor_parallel, job.expert_tensor_parallel)
    try:
        part_of(scenario.model, split)
    except ValueError as error:
        raise ValueError(f"training.{error}") from None
    check_pieces(job.sequence_length, job.context_parallel)
    check_tokens(job.sequence_length, tensor=job.tensor_parallel, context=job.context_parallel)
    group = lcm(split.tensor, job.ep * split.expert_tensor)
    return ParallelLayout(
        gpus=scenario.cluster.gpus,
        gpus_per_domain=gpus_per_domain(scenario.cluster, group=group),
        pp=job.pp,
        ep=job.ep,
        routed_experts=scenario.model.n_routed_experts,
        redundant_experts=job.experts.redundant,
        tp=split.tensor,
        cp=job.context_parallel,
        etp=split.expert_tensor,
        axes=job.axes,
    )


def sharding_of(job: TrainingJob, layout: ParallelLayout, schedule: Schedule) -> Sharding:
    """How copies share the state of their parameters.

    Raises:
        ValueError: gradients that are shared and put off at once.
    """
    if job.zero >= 2 and WEIGHT_GRADIENT in schedule.works:
        raise ValueError(
            f"training.zero: {job.zero}: shares each micro-batch's gradients as its backward ends, "
            f"and the schedule {job.schedule} puts weight gradients off, so that a layer would "
            "exchange its parameters twice; allowed: zero 0 or 1, or a schedule that computes "
            "gradients at once, such as 1f1b or interleaved_overlapped"
        )
    copies = parameter_copies(schedule)
    reduces, gathers = job.state_overlapped
    return Sharding(
        zero=job.zero,
        types=job.optimizer,
        copies=layout.dense_copies * copies,
        expert_copies=layout.expert_replicas * copies,
        gathers_ahead=gathers,
        reduces_beside=reduces,
        pairs=OVERLAPPED in schedule.works,
    )


def check_training_names(job: TrainingJob, gpu: GpuProfile) -> None:
    """Raise ValueError for a schedule, recipe or optimizer that does not exist, an optimizer that
    cannot keep its state as the job says, or a GPU without SMs left."""
    if not is_schedule_file(job.schedule):
        by_name(SCHEDULES, job.schedule, "training.schedule")
    elif not Path(job.schedule).is_file():
        meant = meant_or_known(Path(job.schedule).stem, SCHEDULES)
        raise ValueError(
            f"training.schedule: {job.schedule}: no such file; {meant} or a file in the form that "
            "`dsv3sim show schedule` prints"
        )
    check_multiplied(job.recipe, gpu, field="training.recipe", allowed=TRAINED)
    check_optimizer(job)
    if job.communication_sms >= gpu.sms:
        raise ValueError(
            f"training.communication_sms: {job.communication_sms} leaves no SM for compute; "
            f"allowed: fewer than the {gpu.sms} SMs of {gpu.name}"
        )


def _virtual_stages(job: TrainingJob, microbatches: int) -> int | None:
    """Stages on each rank, None for the schedule's default.

    Raises:
        ValueError: more chunks than are simulated.
    """
    found = None if job.virtual_stages == "default" else job.virtual_stages
    if job.pp * microbatches * (found or 1) > MOST_CHUNKS:
        raise ValueError(
            f"training.global_batch_sequences: {job.global_batch_sequences} makes {microbatches} "
            f"micro-batches on {job.pp * (found or 1)} pipeline stages; allowed: a product of at "
            f"most {MOST_CHUNKS}"
        )
    return found


def layers_of_job(
    scenario: Scenario, job: TrainingJob, trace_of: TraceOf
) -> tuple[OperatorTrace, list[str]]:
    """The trace of the job's layers, and those among them that stages say recompute something of
    their own."""
    texts = () if isinstance(job.stages, str) else job.stages
    listed = [stage for text in texts if "|" not in text for stage in parse_stage(text)]
    others = recomputations_of(listed)
    split = Split(job.tensor_parallel, job.expert_tensor_parallel)
    usual, *own = (
        trace_of(scenario.model, "train", job.recipe, split, recompute=choice)
        for choice in (job.recompute, *others)
    )
    layers = dict.fromkeys(layer for stage in listed for layer in stage if "/" in layer)
    return usual.beside(own), list(layers)


@lru_cache(maxsize=64)
def _memory_of(
    trace: Keyed[OperatorTrace],
    model: ModelConfig,
    load: Load,
    context_parallel: int,
    kinds: tuple[str, ...],
) -> Mapping[str, LayerMemory]:
    """`layer_memory` of some kinds of layers."""
    parts = operators_of_part(trace.value, load, context_parallel)
    return layer_memory(model, trace.value, parts, load, kinds)


def _memory_key(model: MemoryModel) -> Keyed[MemoryModel]:
    """A model of memory by all that it says; its layers and schedule never change."""
    own = {field.name: getattr(model.sharding, field.name) for field in fields(model.sharding)}
    own["types"] = profile_key(model.sharding.types).key
    return Keyed((id(model.layers), id(model.schedule), *own.values(), model.reserved), model)


@lru_cache(maxsize=64)
def _fitting(
    model: Keyed[MemoryModel], stages: tuple[StageLayers, ...], capacity: Bytes
) -> tuple[str, ...]:
    """`MemoryModel.fitting`, worked out once: scenarios differ mostly in rates of hardware."""
    return model.value.fitting(stages, capacity)


@lru_cache(maxsize=64)
def _memory_of_ranks(
    of_model: Keyed[MemoryModel], stages: tuple[StageLayers, ...], immediate: tuple[str, ...]
) -> tuple[tuple[GpuMemory, ...], tuple[HeldParameters, ...], tuple[Times, ...]]:
    """[rank] memory, parameters and activations of a GPU, likewise."""
    model = of_model.value
    ranks = range(model.schedule.ranks)
    return (
        tuple(model.ranks(stages, immediate)),
        tuple(model.held(rank, stages) for rank in ranks),
        tuple(model.activations(rank, stages, immediate) for rank in ranks),
    )


_State: TypeAlias = tuple[tuple[tuple[str, str], Sequence[Operator]], ...]


@lru_cache(maxsize=64)
def _state_of(of_model: Keyed[MemoryModel], *, accumulates: bool) -> _State:
    """`state_operators` of the layers of a model, likewise."""
    model = of_model.value
    parameters = {kind: layer.parameters for kind, layer in model.layers.items()}
    return tuple(state_operators(parameters, model.sharding, accumulates=accumulates).items())


@lru_cache(maxsize=64)
def _operators_of(
    trace: Keyed[OperatorTrace],
    load: Load,
    context_parallel: int,
    state: _State,
    share: float | None,
) -> OperatorsOf:
    """The operators of layers at a load, with those that exchange their state.

    Args:
        share: of the attention of whole sequences, that of packed documents; None without any.
    """
    own = with_state(operators_of_part(trace.value, load, context_parallel), dict(state))
    return own if share is None else with_documents(own, share)


@lru_cache(maxsize=16)
def _chunk_spans(
    operators: Keyed[OperatorsOf],
    costs: Keyed[KernelCostModel],
    *,
    sms: int,
    communication_sms: int,
    gap_s: Seconds,
) -> SpansOf:
    """How long chunks take whose weight gradients may all be put off, each worked out once; of the
    keys that are asked for, and of those that were before. Shared by scenarios that differ in
    schedule or batch: their chunks are mostly the same."""
    known: dict[ChunkKey, Seconds] = {}

    def spans_of(keys: Iterable[ChunkKey]) -> Mapping[ChunkKey, Seconds]:
        new = [key for key in dict.fromkeys(keys) if key not in known]
        if new:
            chunks = run_chunks(
                new,
                operators=operators.value,
                costs=costs.value,
                sms=sms,
                communication_sms=communication_sms,
                gap_s=gap_s,
                immediate=(),
            )
            known.update((key, chunk.log.span_s) for key, chunk in chunks.items())
        return known

    return spans_of


def _times_key(costs: KernelCostModel) -> Keyed[KernelCostModel]:
    """A cost model by all that its times rest on."""
    collectives = costs.transfers_.measured
    key = (
        id(costs.kernels_),
        costs.common_,
        profile_key(costs.cluster),
        profile_key(costs.calibration),
        None if collectives is None else profile_key(collectives.measured),
        costs.expert_parallel_ranks,
        tuple(costs.sharing.items()),
        costs.reach,
    )
    return Keyed(key, costs)


def _documents(job: TrainingJob, *, seed: int) -> PackedWork | None:
    """The attention of the documents that the job packs."""
    if job.documents is None:
        return None
    return packed_work(
        job.documents,
        sequence_length=job.sequence_length,
        sequences=job.micro_batch_sequences,
        rng=np.random.default_rng([seed, 7]),
    )


def _least_deferred(job: TrainingJob, model: MemoryModel) -> tuple[str, ...]:
    """Matrices whose weight gradient no rank puts off: those that are named, or as many as can be.

    Raises:
        ValueError: a name that no matrix has.
    """
    if job.immediate_weights == "fitting":
        return tuple(model.matrices())
    check_names(job.immediate_weights, model.matrices(), "training.immediate_weights")
    return tuple(job.immediate_weights)


def price_kernels_of(scenarios: Iterable[Scenario]) -> None:
    """Work out at once the kernel times of steps whose GPUs differ in rates alone.

    What is wrong with a scenario it leaves to its own run to say.
    """
    kernels = []
    for scenario in scenarios:
        with suppress(ValueError, OSError):
            rows = rows_for(scenario.calibration, "train_microbatch")
            gpu = scenario.cluster.node.gpu
            kernels.append(completed_kernels(scenario.calibration, gpu, rows))
    with suppress(ValueError):
        price_side_by_side(kernels)


def simulate_training(scenario: Scenario, trace_of: TraceOf, *, unfold: bool) -> TrainingRun:
    """Simulate one optimizer step.

    Args:
        trace_of: the operator trace of a model, a job ("train"), a recipe and the GPUs that share
            a layer.
        unfold: list every operator of every rank too.

    Raises:
        ValueError: an unknown name, sizes that do not divide, or Infeasible where it does not fit.
    """
    job = scenario.job_as(TrainingJob)
    node = scenario.cluster.node
    check_training_names(job, node.gpu)
    layout = training_layout(scenario, job)
    in_one_round = sequences_in_one_round(job, layout)
    microbatches = job.global_batch_sequences // in_one_round
    virtual_stages = _virtual_stages(job, microbatches)
    trace, of_stages = layers_of_job(scenario, job, trace_of)
    reach = expert_reach(
        np.arange(layout.routed_experts + layout.redundant_experts) % layout.routed_experts,
        config=scenario.model,
        parts=layout.expert_parts,
        seed=scenario.file.seed,
    )

    def load_at(rows_over_mean: float) -> Load:
        return training_load(
            job,
            layout,
            scenario.model.num_experts_per_tok,
            reach.gpus,
            rows_over_mean=rows_over_mean,
        )

    capacity = node.gpu.hbm_capacity
    layers = model_layers(scenario.model)

    def memory_of_layers(load: Load) -> Mapping[str, LayerMemory]:
        kinds = (*layers, *of_stages)
        return _memory_of(object_key(trace), scenario.model, load, job.context_parallel, kinds)

    usual_load = load_at(1.0)
    usual_layers = memory_of_layers(usual_load)

    def memory_with(schedule: Schedule) -> MemoryModel:
        return MemoryModel(
            layers=usual_layers,
            schedule=schedule,
            in_flight=tuple(held_activations(schedule, rank) for rank in range(schedule.ranks)),
            sharding=sharding_of(job, layout, schedule),
            reserved=job.memory.reserved,
        )

    def way_out() -> str:
        """Of the schedules, those that the job fits as it is otherwise."""
        found = fitting_schedules(
            layers,
            ranks=job.pp,
            microbatches=microbatches,
            model_of=memory_with,
            capacity=capacity,
        )
        return (
            f"; with this batch and memory training.schedule={found[0]}"
            + (" training.virtual_stages=default" if virtual_stages is not None else "")
            + (" training.stages=default" if job.stages != "default" else "")
            + " fits"
            + (f", and so do {', '.join(found[1:])}" if found[1:] else "")
            if found
            else ""
        )

    try:
        schedule = build_schedule(job.schedule, job.pp, microbatches, virtual_stages=virtual_stages)
    except ValueError as error:
        raise ValueError(
            f"training: {microbatches} micro-batches of {in_one_round} sequences "
            f"(global_batch_sequences) on {job.pp} ranks (pp): {error}"
            # What is wrong in a file is no matter of memory.
            f"{'' if is_schedule_file(job.schedule) else way_out()}"
        ) from None
    costs = by_name(COST_MODELS, scenario.file.cost_model, "cost_model")(
        cluster=scenario.cluster,
        calibration=scenario.calibration,
        expert_parallel_ranks=job.ep,
        sharing=collective_groups(layout),
        reach=reach,
        sustained_job=True,
    ).fit(rows_for(scenario.calibration, "train_microbatch"))
    loads = step_loads(scenario.cluster, layout, schedule)
    documents = _documents(job, seed=scenario.file.seed)
    model = memory_with(schedule)
    of_model = _memory_key(model)
    state = _state_of(of_model, accumulates=job.zero >= 2 and microbatches > 1)

    def operators_at(load: Load) -> OperatorsOf:
        return _operators_of(
            object_key(trace),
            load,
            job.context_parallel,
            state,
            None if documents is None else documents.share,
        )

    operators = operators_at(usual_load)
    least_deferred = _least_deferred(job, model)

    if job.stages == "default":
        stages = choose_stages(
            layers,
            PipelineTimes(
                schedule,
                _chunk_spans(
                    object_key(operators),
                    _times_key(costs),
                    sms=node.gpu.sms,
                    communication_sms=job.communication_sms,
                    gap_s=job.gap.value,
                ),
                loads.all_to_all,
                send_seconds(job, scenario.model, transfers=costs.transfers_, loads=loads),
                blocking_sends=job.blocking_sends,
                staggered=job.optimizer.post_validation,
            ),
            rank_bytes=lambda rank, split: model.total(rank, split, least_deferred),
            capacity=capacity,
        )
    else:
        stages = tuple(explicit_stages(job.stages, config=scenario.model, stages=schedule.stages))
    fitting = job.immediate_weights == "fitting"
    immediate = _fitting(of_model, stages, capacity) if fitting else least_deferred
    memory, held, activations = _memory_of_ranks(of_model, stages, immediate)
    try:
        check_fits(memory, stages, capacity, chosen=job.stages == "default")
    except Infeasible as error:
        recomputed = "" if job.recompute == "layer" else ", as does training.recompute=layer"
        raise Infeasible(f"{error.reason}{recomputed}", way_out) from None
    host = host_states(held, model.sharding, ema=job.ema, cluster=scenario.cluster)

    rings, keys = distinct_chunks(
        layout, schedule, stages, model.sharding, overlapped=job.state_overlapped, loads=loads
    )

    def step(costs: KernelCostModel) -> TrainingStep:
        return simulate_step(
            scenario.model,
            cluster=scenario.cluster,
            job=job,
            schedule=schedule,
            keys=keys,
            held=held,
            rings=rings,
            sharding=model.sharding,
            operators=operators,
            costs=costs,
            immediate=immediate,
            loads=loads,
        )

    return TrainingRun(
        scenario=scenario,
        job=job,
        layout=layout,
        schedule=schedule,
        stages=stages,
        immediate=immediate,
        documents=documents,
        memory=memory,
        activations=activations,
        host=host,
        costs=costs,
        step=step(costs),
        step_with=step,
        operators_at=lambda rows: operators_at(load_at(rows)),
        memory_at=lambda rows: tuple(
            replace(model, layers=memory_of_layers(load_at(rows))).ranks(stages, immediate)
        ),
        unfold=unfold,
    )
