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

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.by_content import Keyed, object_key
from hardware_profiles.schema import ClusterProfile
from hardware_profiles.units import Seconds, format_bandwidth
from reference_model.config import ModelConfig
from reference_model.trace import ALL_TO_ALL_KINDS, Operator
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
    with_state_collectives,
)
from simulator.execution.pipeline import PipelineRun, run_pipeline
from simulator.execution.training_fabric import StepLoads, holders_of
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernels.families import family_of
from simulator.hardware.kernels.roofline import is_tensor
from simulator.hardware.network.fabric_load import NO_LIMIT, FabricLoad
from simulator.hardware.network.transfers import Transfers, exchange_sms
from simulator.hardware.prediction import Prediction
from simulator.scenario.files import Scenario
from simulator.scenario.training import TrainingJob
from simulator.workload.chunk import (
    OperatorsOf,
    lower_chunk,
    lower_weights,
)
from simulator.workload.documents import PackedWork
from simulator.workload.experts import place_experts, uniform_popularity
from simulator.workload.layout import ParallelLayout, Stage, stage_text
from simulator.workload.load import Load
from simulator.workload.memory import GpuMemory, mtp_alone
from simulator.workload.schedules.order import (
    FORWARD_WORK,
    FULL_BACKWARD,
    INPUT_BACKWARD,
    OVERLAPPED,
    WEIGHT_GRADIENT,
    Action,
    Schedule,
)
from simulator.workload.sharding import BF16_BYTES, HeldParameters, Sharding
from simulator.workload.state_tasks import STATE, StateTasks, is_state_collective
from simulator.workload.task_graph import Stream, TaskGraph
from simulator.workload.tensor_parallel import gathered_bytes, shared_axis

PAIR_LAYERS: Stage = ("moe",) * 4
"""Layers of each chunk in the published profile of one overlapped pair."""


@dataclass(frozen=True, slots=True)
class ChunkKey:
    """What makes two actions take the same time: the work and the layers it works on."""

    work: str
    """One of simulator.workload.schedules.order.WORKS."""
    forward: Stage
    """Layers of the forward chunk, empty where the action has none."""
    backward: Stage
    """Layers whose gradients are computed, empty where the action has none."""
    load: FabricLoad
    """What the fabric makes of dispatch and combine on the action's rank."""
    state: ChunkState | None = None
    """Collectives of parameters and gradients inside it."""
    _hash: int = field(init=False, repr=False, compare=False)
    """Worked out once: thousands of actions look up what their chunk takes."""

    def __post_init__(self) -> None:
        parts = (self.work, self.forward, self.backward, self.load, self.state)
        object.__setattr__(self, "_hash", hash(parts))

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        layers = [stage_text(stage) for stage in (self.forward, self.backward) if stage]
        exchanges = "" if self.state is None else str(self.state.tasks)
        return f"{self.work} {' & '.join(layers)}{_limits(self.load)}{exchanges}"


def _limits(load: FabricLoad) -> str:
    """What sets a rank apart: ", NICs x1.5, links 20 GB/s"; nothing where nothing limits it."""
    nics = f", NICs x{load.nic_stretch:.6g}" if load.nic_stretch != 1.0 else ""
    links = f", links {format_bandwidth(load.bandwidth)}" if load.bandwidth < math.inf else ""
    return nics + links


@dataclass(frozen=True, slots=True)
class ChunkRun:
    """One distinct chunk or pair, simulated operator by operator."""

    key: ChunkKey
    log: timeline.Log
    cost: Prediction
    """Predicted duration of each task, with interval and provenance."""

    @property
    def outside_s(self) -> tuple[Seconds, Seconds]:
        """How long it gathers before its first kernel and reduces after its last, where the step
        does so once (ChunkState.once)."""
        if self.key.state is None:
            return 0.0, 0.0
        graph = self.log.graph
        rest = [
            place
            for place, operator in enumerate(graph.task_operators())
            if operator.segment != STATE
        ]
        gathers, reduces = self.key.state.once
        return (
            float(self.log.start_s[rest].min()) if gathers else 0.0,
            self.log.span_s - float(self.log.end_s[rest].max()) if reduces else 0.0,
        )

    @property
    def in_pipeline_s(self) -> Seconds:
        """How long its rank is busy with it."""
        return self.log.span_s - sum(self.outside_s)

    @property
    def state_times(self) -> Prediction:
        """Of its collectives of parameters and gradients."""
        return self.cost.at(
            [
                place
                for place, operator in enumerate(self.log.graph.task_operators())
                if is_state_collective(operator)
            ]
        )


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
    stages: tuple[Stage, ...]
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


def chunk_key(
    schedule_stages: tuple[Stage, ...],
    action: Action,
    *,
    load: FabricLoad,
    state: ChunkState | None = None,
) -> ChunkKey:
    """The layers that an action works on, what the fabric makes of their all-to-all, and which of
    their parameters and gradients it exchanges."""
    forward: Stage = ()
    backward: Stage = ()
    for chunk in action.chunks:
        layers = schedule_stages[chunk.stage]
        if chunk.work == FORWARD_WORK:
            forward = layers
        else:
            backward = layers
    return ChunkKey(action.work, forward, backward, load, state)


def lower_key(key: ChunkKey, operators: OperatorsOf, *, immediate: Collection[str]) -> TaskGraph:
    """The tasks of a distinct chunk or pair; of the same operators the same graph."""
    state = None if key.state is None else key.state.tasks
    return _lowered(
        str(key),
        key.work,
        key.forward,
        key.backward,
        state,
        tuple(immediate),
        object_key(operators),
    )


@lru_cache(maxsize=256)
def _lowered(
    name: str,
    work: str,
    forward: Stage,
    backward: Stage,
    state: StateTasks | None,
    immediate: tuple[str, ...],
    operators: Keyed[OperatorsOf],
) -> TaskGraph:
    if work == WEIGHT_GRADIENT:
        return lower_weights(name, operators.value, backward, immediate=immediate, state=state)
    if work not in (FORWARD_WORK, FULL_BACKWARD, INPUT_BACKWARD, OVERLAPPED):
        raise ValueError(f"work {work!r} has no lowering")
    return lower_chunk(
        name,
        operators.value,
        forward=forward,
        backward=backward,
        defer_weights=work == INPUT_BACKWARD,
        immediate=immediate,
        state=state,
    )


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


def cost_graphs(
    graphs: Mapping[ChunkKey, TaskGraph],
    *,
    costs: KernelCostModel,
    sms: int,
    communication_sms: int,
    lone_keep: bool = False,
) -> dict[ChunkKey, Prediction]:
    """Duration of every task of every distinct chunk.

    Args:
        lone_keep: as of `task_sms`.
    """
    of_graphs = _kernels_of(
        tuple((object_key(graph), key.work == OVERLAPPED) for key, graph in graphs.items()),
        Keyed((id(costs.kernels_), costs.common_), costs),
        # A GPU that holds every expert exchanges no tokens, so none travel beside its kernels.
        exchanges=costs.expert_parallel_ranks > 1,
        sms=sms,
        communication_sms=communication_sms,
        lone_keep=lone_keep,
    )
    known = dict(zip(graphs, of_graphs, strict=True))
    sent = [
        (key, graphs[key].operators[graphs[key].tasks[place].operator], one.sms[place], place)
        for key, one in known.items()
        for place in one.exchanges
    ]
    moved = costs.predict(
        [operator for _, operator, _, _ in sent],
        sms=[count for _, _, count, _ in sent],
        overlapped=[known[key].beside_tokens[place] for key, _, _, place in sent],
        load=[key.load for key, _, _, _ in sent],
    )
    predictions, start = {}, 0
    for key, one in known.items():
        end = start + len(one.exchanges)
        found = one.times.with_at(one.exchanges, moved.part(slice(start, end)))
        start = end
        of_tasks = graphs[key].task_operators()
        if one.shared:
            found = with_collectives(found, of_tasks, costs)
        if key.state is not None:
            states = [key.state] * len(of_tasks)
            found = with_state_collectives(found, of_tasks, states, costs.transfers_)
            found = beside_state(
                found,
                [(key, operator) for operator in of_tasks],
                one.alone,
                costs,
                sms=sms - communication_sms,
            )
        predictions[key] = found
    return predictions


@dataclass(frozen=True, slots=True)
class _Kernels:
    """What a graph's kernels take, whatever its transfers do."""

    times: Prediction
    """[tasks], zero of dispatch and combine."""
    exchanges: tuple[int, ...]
    """Places of these."""
    shared: bool
    """Whether GPUs that share layers or sequences exchange anything in it."""
    sms: tuple[int, ...]
    """[tasks], as of `task_sms`."""
    beside_tokens: tuple[bool, ...]
    """[tasks], whether tokens, or compute, are beside it."""
    alone: tuple[bool, ...]
    """[tasks], whether it is a kernel with nothing of that beside it."""


@lru_cache(maxsize=128)
def _kernels_of(
    graphs: tuple[tuple[Keyed[TaskGraph], bool], ...],
    costs: Keyed[KernelCostModel],
    *,
    exchanges: bool,
    sms: int,
    communication_sms: int,
    lone_keep: bool,
) -> list[_Kernels]:
    """Worked out once for the same graphs and kernel times: scenarios differ mostly in links,
    schedules, or layouts of the same chunks.

    Args:
        graphs: with whether each is a pair.
        exchanges: whether tokens travel between GPUs.
    """
    found = []
    asked: list[tuple[Operator, int, bool]] = []
    for lowered, pair in graphs:
        graph = lowered.value
        operators = graph.task_operators()
        counts = task_sms(
            graph, pair=pair, sms=sms, communication_sms=communication_sms, lone_keep=lone_keep
        )
        beside = [task.overlapped and exchanges for task in graph.tasks]
        start = len(asked)
        sent, kernels = [], []
        for place, operator in enumerate(operators):
            if operator.kind in ALL_TO_ALL_KINDS:
                sent.append(place)
            else:
                kernels.append(place)
                asked.append((operator, counts[place], beside[place]))
        one = _Kernels(
            Prediction.none([family_of(operator) for operator in operators]),
            tuple(sent),
            any(shared_axis(operator) is not None for operator in operators),
            tuple(counts),
            tuple(beside),
            tuple(
                task.stream is Stream.COMPUTE and not with_tokens
                for task, with_tokens in zip(graph.tasks, beside, strict=True)
            ),
        )
        found.append((one, kernels, slice(start, len(asked))))
    times = costs.value.predict(
        [operator for operator, _, _ in asked],
        sms=[count for _, count, _ in asked],
        overlapped=[with_tokens for _, _, with_tokens in asked],
    )
    return [
        replace(one, times=one.times.with_at(kernels, times.part(part)))
        for one, kernels, part in found
    ]


def beside_state(
    times: Prediction,
    tasks: Sequence[tuple[ChunkKey, Operator]],
    alone: Sequence[bool],
    costs: KernelCostModel,
    *,
    sms: int,
) -> Prediction:
    """The times with collectives of parameters and gradients beside the kernels of a chunk.

    A kernel beside one runs as beside an all-to-all, on the SMs that communication leaves. They are
    in flight for a share of a chunk's compute, and so long each kernel runs beside them.

    Args:
        alone: [tasks], whether it is a kernel with no all-to-all beside it.
        sms: that communication leaves.
    """
    collectives: dict[ChunkKey, Seconds] = {}
    kernels: dict[ChunkKey, list[int]] = {}
    for place, (key, operator) in enumerate(tasks):
        if key.state is None or not key.state.tasks.beside_compute:
            continue
        if is_state_collective(operator):
            collectives[key] = collectives.get(key, 0.0) + float(times.seconds[place])
        elif alone[place]:
            kernels.setdefault(key, []).append(place)
    found = times
    for key, places in kernels.items():
        before = times.at(places)
        beside = costs.predict([tasks[place][1] for place in places], sms=sms, overlapped=True)
        share = min(1.0, collectives.get(key, 0.0) / float(before.seconds.sum()))
        mixed = beside.between(before, np.full(len(places), share))
        found = found.with_others({place: mixed.at([n]) for n, place in enumerate(places)})
    return found


def task_sms(
    graph: TaskGraph, *, pair: bool, sms: int, communication_sms: int, lone_keep: bool = False
) -> list[int]:
    """[tasks], SMs that each runs on.

    In an overlapped pair the GEMMs are launched for the SMs that communication leaves, whether or
    not an all-to-all is in flight at that moment, as in the published profile. A chunk that runs
    alone has all SMs but where its own weight gradients run under its transfers.

    Args:
        lone_keep: products of a chunk that runs alone leave the communication SMs free as well.
    """
    return [
        exchange_sms(operator.kind, kept=communication_sms, free=sms)
        if task.stream is Stream.COMMUNICATION
        else sms
        - communication_sms * (pair or task.overlapped or (lone_keep and is_tensor(operator.kind)))
        for task, operator in zip(graph.tasks, graph.task_operators(), strict=True)
    ]


def with_collectives(
    times: Prediction, operators: Sequence[Operator], costs: KernelCostModel
) -> Prediction:
    """The times with those of the exchanges between GPUs that share layers or sequences, which are
    collectives and no kernels. Failures of the fabric slow none of them."""
    axes = {op: axis for op in set(operators) if (axis := shared_axis(op)) is not None}
    known = {
        operator: costs.transfers_.collective(
            "all_gather" if operator.kind == "gather_tokens" else "reduce_scatter",
            float(gathered_bytes(operator)),
            form="ring",
            group=costs.sharing[axis],
            load=None if costs.sharing[axis].domains == 1 else NO_LIMIT,
        )
        for operator, axis in axes.items()
    }
    return times.with_others(
        {place: known[operator] for place, operator in enumerate(operators) if operator in known}
    )


def run_chunks(
    keys: Iterable[ChunkKey],
    *,
    operators: OperatorsOf,
    costs: KernelCostModel,
    sms: int,
    communication_sms: int,
    gap_s: Seconds,
    immediate: Collection[str],
) -> dict[ChunkKey, ChunkRun]:
    """Every distinct chunk or pair, run once.

    Args:
        gap_s: time between two kernels of a stream.
        immediate: matrices whose weight gradient is never deferred.
    """
    graphs = {key: lower_key(key, operators, immediate=immediate) for key in dict.fromkeys(keys)}
    found = cost_graphs(graphs, costs=costs, sms=sms, communication_sms=communication_sms)
    return {
        key: ChunkRun(key, timeline.run(graph, found[key].seconds, gap_s), found[key])
        for key, graph in graphs.items()
    }


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
    stages: tuple[Stage, ...],
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
    stages: tuple[Stage, ...],
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
