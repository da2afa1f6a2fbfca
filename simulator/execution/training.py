"""Simulate one optimizer step: when every chunk and action of every rank runs.

The step is simulated at two levels. Each distinct chunk or overlapped pair (the same work on the
same layers) runs once, operator by operator, on the compute and communication streams of one rank.
The schedule then runs over all ranks of one pipeline with those durations. Data-parallel replicas
and the ranks of an expert-parallel group are alike and are represented by one: this is
the ideal step, and training_draws runs it on ranks that differ. Where the
fabric is slower for some groups than for others, a pipeline rank stands for its slowest group, for
the optimizer waits for every replica (training_fabric).

After the last micro-batch the gradients are reduced, the optimizer steps on its shard and the
parameters are gathered, but for what the chunks already hold of it (optimizer.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.by_content import Keyed, object_key
from hardware_profiles.schema import ClusterProfile
from hardware_profiles.units import Seconds
from reference_model.config import ModelConfig
from reference_model.pipeline_actions import OVERLAPPED
from simulator.execution import timeline
from simulator.execution.host_state import HostState
from simulator.execution.optimizer import (
    ChunkState,
    OptimizerStep,
    Rings,
    exchanges_in_chunks,
    optimizer_step,
    state_of_actions,
    with_exposed,
)
from simulator.execution.pipeline import PipelineRun, run_pipeline
from simulator.execution.training_chunks import ChunkKey, ChunkRun, chunk_key, run_chunks
from simulator.execution.training_fabric import StepLoads, holders_of
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.network.fabric_load import FabricLoad
from simulator.hardware.network.transfers import Transfers
from simulator.hardware.prediction import Prediction
from simulator.scenario.files import Scenario
from simulator.scenario.training import TrainingJob
from simulator.workload.chunk import (
    OperatorsOf,
)
from simulator.workload.documents import PackedWork
from simulator.workload.experts import place_experts, uniform_popularity
from simulator.workload.layout import ParallelLayout, StageLayers
from simulator.workload.load import Load
from simulator.workload.memory import GpuMemory, mtp_alone
from simulator.workload.schedules.order import Schedule
from simulator.workload.sharding import BF16_BYTES, HeldParameters, Sharding

PAIR_LAYERS: StageLayers = ("moe",) * 4
"""Layers of each chunk in the published profile of one overlapped pair."""


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One simulated step: chunks, pipeline and optimizer."""

    chunks: Mapping[ChunkKey, ChunkRun]
    """Every distinct chunk or pair of the schedule."""
    keys: tuple[tuple[ChunkKey, ...], ...]
    """[rank][action]: which of the chunks the action is."""
    pair: ChunkRun
    """The overlapped pair of the published profile: 4 MoE layers forward, 4 backward; on the rank
    whose all-to-all the fabric slows most."""
    pipeline: PipelineRun
    optimizer: tuple[OptimizerStep, ...]
    """[rank]"""
    transfers_s: Mapping[tuple[int, int], Seconds]
    """{(rank that sends, rank that receives): of the activations of one micro-batch}"""
    loads: StepLoads
    """What the fabric makes of the step's transfers."""
    host_s: Seconds
    """Launching all kernels of a rank; its host runs ahead of the GPU and waits for nothing."""

    def of_actions(self, values: Mapping[ChunkKey, Any]) -> NDArray[Any]:
        """[actions, *axes], what each action's chunk has, ordered by rank."""
        return _of_actions(self.keys, values)

    @property
    def counts(self) -> dict[ChunkKey, int]:
        """How many actions each chunk is, in the order in which they come."""
        distinct, number = _numbered(object_key(self.keys))
        return dict(zip(distinct, np.bincount(number).tolist(), strict=True))

    @property
    def pipeline_time_s(self) -> Seconds:
        """All micro-batches: the pipeline, or the host where launching takes longer."""
        return max(self.pipeline.makespan_s, self.host_s)

    @property
    def step_time_s(self) -> Seconds:
        """The optimizer starts together on all ranks, since the gradient norm needs every one; with
        post-validation the pipeline's time is that of the rank that takes longest."""
        return self.pipeline_time_s + max(step.total_s for step in self.optimizer)


@lru_cache(maxsize=8)
def _numbered(
    keys: Keyed[tuple[tuple[ChunkKey, ...], ...]],
) -> tuple[tuple[ChunkKey, ...], NDArray[np.intp]]:
    """The distinct chunks, and [actions] which of them each action is, ordered by rank."""
    place: dict[ChunkKey, int] = {}
    number = [place.setdefault(key, len(place)) for row in keys.value for key in row]
    return tuple(place), np.array(number, dtype=np.intp)


def _of_actions(
    keys: tuple[tuple[ChunkKey, ...], ...], values: Mapping[ChunkKey, Any]
) -> NDArray[Any]:
    distinct, number = _numbered(object_key(keys))
    found: NDArray[Any] = np.array([values[key] for key in distinct])[number]
    return found


@dataclass(frozen=True)
class TrainingRun:
    """A training scenario and what came out of it."""

    scenario: Scenario
    job: TrainingJob
    layout: ParallelLayout
    schedule: Schedule
    stages: tuple[StageLayers, ...]
    """Layers of each stage of the schedule, those of a rank's virtual stages one by one."""
    immediate: tuple[str, ...]
    """Matrices whose weight gradient an input-only backward computes immediately, to fit memory."""
    documents: PackedWork | None
    """Attention of packed documents; None where a token attends to its whole sequence."""
    memory: tuple[GpuMemory, ...]
    """[rank]"""
    activations: tuple[timeline.Times, ...]
    """[rank][action], bytes that a GPU keeps for backward during each action."""
    host: tuple[HostState, ...]
    """[rank], what a GPU keeps in CPU memory."""
    costs: KernelCostModel
    """Fitted kernel times of the step."""
    step: TrainingStep
    step_with: Callable[[KernelCostModel], TrainingStep]
    """The same step at other kernel times."""
    operators_at: Callable[[float], OperatorsOf]
    """Rows of a rank over the mean of its group -> the operators of its layers."""
    memory_at: Callable[[float], tuple[GpuMemory, ...]]
    """The same -> memory of a GPU of each pipeline rank, with these rows in all that it holds."""
    unfold: bool
    """Whether the operators of every action are to be listed, beside those of distinct chunks."""

    @cached_property
    def without_slowdown(self) -> TrainingStep:
        """The same step with dispatch and combine not slowed by the compute beside them."""
        return self.step_with(self.costs.without_all_to_all_slowdown())


def training_load(
    job: TrainingJob,
    layout: ParallelLayout,
    top_k: int,
    ranks_reached: float,
    *,
    rows_over_mean: float = 1.0,
) -> Load:
    """What one rank works on in one micro-batch.

    Every expert receives the same rows, and the slowest rank those of the experts and copies that a
    placement over the group puts on it.

    Args:
        ranks_reached: distinct GPUs that a token's experts sit on, own included.
        rows_over_mean: of a rank that gets more or less than that.

    Raises:
        ValueError: a skew that no choice of distinct experts makes.
    """
    tokens = job.micro_batch_tokens
    equal = uniform_popularity(1, layout.routed_experts)
    placement = place_experts(
        equal,
        gpus=layout.ep,
        nodes=1,
        groups=1,
        redundant=layout.redundant_experts,
        policy="global",
    )
    most = placement.most_over_mean(top_k)
    stated = job.skew.rows.max_over_mean
    if stated is not None and stated.high > most:
        raise ValueError(
            f"training.skew.rows.max_over_mean: {stated.high:g}: allowed: at most {most:g}, as the "
            f"{top_k} choices of a token are distinct"
        )
    slowest = placement.max_over_mean(equal) * rows_over_mean
    return Load(
        tokens=tokens,
        context=job.sequence_length,
        sequences=job.micro_batch_sequences,
        # Of all GPUs that share an expert's width, each of which works on the rows of all.
        expert_rows=round(layout.etp * tokens * top_k * slowest),
        received_rows=round(tokens * ranks_reached * slowest),
        local_experts=layout.local_experts,
        group_tokens=tokens,
        group_sequences=job.micro_batch_sequences,
    )


def send_seconds(
    job: TrainingJob,
    model: ModelConfig,
    *,
    transfers: Transfers,
    loads: StepLoads,
) -> dict[tuple[int, int], Seconds]:
    """Time to send the activations of one micro-batch: {(rank that sends, rank that receives):
    seconds}."""
    activation = job.micro_batch_tokens * model.hidden_size * BF16_BYTES
    took = {
        load: transfers.send(activation, load=load).seconds.item()
        for load in dict.fromkeys(loads.sends.values())
    }
    return {ranks: took[load] for ranks, load in loads.sends.items()}


def _exposed(
    pipeline: PipelineRun, rank: int, chunks: Sequence[ChunkRun]
) -> list[tuple[Seconds, Seconds, Prediction]]:
    """What the pipeline leaves exposed of the step's own reduction and gather in a rank's chunks:
    (reduction, gather, times of the collectives) of each chunk that holds any.

    Args:
        chunks: [actions of the rank]
    """
    places = np.flatnonzero(pipeline.rank == rank).tolist()
    found = []
    for place, chunk in zip(places, chunks, strict=True):
        if chunk.key.state is not None and any(chunk.key.state.once):
            gathers, reduces = chunk.outside_s
            late = float(pipeline.end_s[place]) + reduces - pipeline.makespan_s
            early = gathers - float(pipeline.start_s[place])
            found.append((max(late, 0.0), max(early, 0.0), chunk.state_times))
    return found


def distinct_chunks(
    layout: ParallelLayout,
    schedule: Schedule,
    stages: tuple[StageLayers, ...],
    sharding: Sharding,
    *,
    overlapped: tuple[bool, bool],
    loads: StepLoads,
) -> tuple[tuple[Rings, ...], tuple[tuple[ChunkKey, ...], ...]]:
    """[rank] the rings over the copies of its parameters, and [rank][action] which distinct chunk
    or pair it is.

    Args:
        overlapped: whether gradients are reduced, and parameters gathered, beside compute.
    """
    holders = {rank: ranks for ranks in holders_of(schedule) for rank in ranks}
    rings = tuple(
        Rings.of(layout, loads, rank=rank, holders=holders[rank]) for rank in range(schedule.ranks)
    )
    # What else a sharding says moves no collective into a chunk or out of it.
    shared = Keyed((sharding.zero, sharding.copies, sharding.expert_copies), sharding)
    # Rings are nothing to chunks that exchange nothing.
    of_chunks = rings if exchanges_in_chunks(sharding, overlapped) else ()
    keys = _keys_of_actions(
        object_key(schedule), stages, shared, overlapped, of_chunks, loads.all_to_all
    )
    return rings, keys


@lru_cache(maxsize=8)
def _keys_of_actions(
    of_schedule: Keyed[Schedule],
    stages: tuple[StageLayers, ...],
    sharding: Keyed[Sharding],
    overlapped: tuple[bool, bool],
    rings: tuple[Rings, ...],
    all_to_all: tuple[FabricLoad, ...],
) -> tuple[tuple[ChunkKey, ...], ...]:
    """`distinct_chunks`.

    Args:
        rings: [rank]; none where no chunk exchanges parameters or gradients.
    """
    schedule = of_schedule.value
    states: list[list[ChunkState | None]] = [[None] * len(row) for row in schedule.actions]
    if rings:
        states = state_of_actions(
            schedule,
            sharding.value,
            overlapped=overlapped,
            with_mtp=[
                mtp_alone(stages, schedule.stages_of(rank)) for rank in range(schedule.ranks)
            ],
            rings=rings,
        )
    found = []
    for actions, of_rank, load in zip(schedule.actions, states, all_to_all, strict=True):
        # Worked out once for each work on the same stages.
        known: dict[tuple[object, ...], ChunkKey] = {}
        row = []
        for action, state in zip(actions, of_rank, strict=True):
            mark = (*((chunk.work, chunk.stage) for chunk in action.chunks), id(state))
            key = known.get(mark)
            if key is None:
                key = known[mark] = chunk_key(stages, action, load=load, state=state)
            row.append(key)
        found.append(tuple(row))
    return tuple(found)


def simulate_step(
    model: ModelConfig,
    *,
    cluster: ClusterProfile,
    job: TrainingJob,
    schedule: Schedule,
    keys: tuple[tuple[ChunkKey, ...], ...],
    held: Sequence[HeldParameters],
    rings: Sequence[Rings],
    sharding: Sharding,
    operators: OperatorsOf,
    costs: KernelCostModel,
    immediate: Collection[str],
    loads: StepLoads,
) -> TrainingStep:
    """Simulate every distinct chunk once, then the pipeline, then the optimizer.

    Args:
        keys: [rank][action], as `distinct_chunks` gives them.
        held: [rank], parameters on a GPU.
        rings: [rank], likewise.
        sharding: how copies share their state.
        immediate: matrices whose weight gradient is never deferred.
        loads: what the fabric makes of the step's transfers.
    """
    gpu = cluster.node.gpu
    gap_s = job.gap.value
    transfers = costs.transfers_
    used, _ = _numbered(object_key(keys))
    slowest = max(
        dict.fromkeys(loads.all_to_all),
        key=lambda load: transfers.payload(1.0, load=load).seconds.item(),
    )
    profiled = ChunkKey(OVERLAPPED, PAIR_LAYERS, PAIR_LAYERS, slowest)
    chunks = run_chunks(
        [*used, profiled],
        operators=operators,
        costs=costs,
        sms=gpu.sms,
        communication_sms=job.communication_sms,
        gap_s=gap_s,
        immediate=immediate,
    )
    transfers_s = send_seconds(job, model, transfers=transfers, loads=loads)
    pipeline = run_pipeline(
        schedule,
        _of_actions(keys, {key: chunks[key].in_pipeline_s for key in used}),
        transfer_s=transfers_s,
        blocking_sends=job.blocking_sends,
        staggered=job.optimizer.post_validation,
    )
    # Ranks that hold and share the same take the same time.
    alone = {
        of_rank: optimizer_step(
            of_rank[0],
            sharding,
            overlapped=job.state_overlapped,
            rings=of_rank[1],
            transfers=transfers,
            costs=costs,
        )
        for of_rank in dict.fromkeys(zip(held, rings, strict=True))
    }
    holding = any(key.state is not None and any(key.state.once) for key in used)
    optimizer = tuple(
        with_exposed(
            alone[held[rank], rings[rank]],
            _exposed(pipeline, rank, [chunks[key] for key in keys[rank]]) if holding else (),
        )
        for rank in range(schedule.ranks)
    )
    launched = _of_actions(keys, {key: len(chunks[key].log.graph.tasks) for key in used})
    return TrainingStep(
        chunks={key: chunks[key] for key in used},
        keys=keys,
        pair=chunks[profiled],
        pipeline=pipeline,
        optimizer=optimizer,
        transfers_s=transfers_s,
        loads=loads,
        host_s=job.host_launch * int(np.bincount(pipeline.rank, launched).max()),
    )
