"""Run the distinct chunks and overlapped pairs of a training step, operator by operator.

Actions that do the same work on the same layers, of which the fabric makes the same and which
exchange the same of their parameters and gradients, are one chunk, which runs once on the compute
and communication streams of one rank.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from hardware_profiles.by_content import Keyed, object_key
from hardware_profiles.units import Seconds, format_bandwidth
from reference_model.trace import ALL_TO_ALL_KINDS, Operator
from simulator.execution import timeline
from simulator.execution.optimizer import ChunkState, with_state_collectives
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernels.families import family_of
from simulator.hardware.kernels.roofline import is_tensor
from simulator.hardware.network.fabric_load import NO_LIMIT, FabricLoad
from simulator.hardware.network.transfers import exchange_sms
from simulator.hardware.prediction import Prediction
from simulator.workload.chunk import OperatorsOf, lower_chunk, lower_weights
from simulator.workload.layout import Stage, stage_text
from simulator.workload.schedules.order import (
    FORWARD_WORK,
    FULL_BACKWARD,
    INPUT_BACKWARD,
    OVERLAPPED,
    WEIGHT_GRADIENT,
    Action,
)
from simulator.workload.state_tasks import STATE, StateTasks, is_state_collective
from simulator.workload.task_graph import Stream, TaskGraph
from simulator.workload.tensor_parallel import gathered_bytes, shared_axis


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
    of_graphs, asked = _asked_of(
        graphs,
        exchanges=exchanges,
        sms=sms,
        communication_sms=communication_sms,
        lone_keep=lone_keep,
    )
    times = costs.value.predict(
        [operator for operator, _, _ in asked],
        sms=[count for _, count, _ in asked],
        overlapped=[with_tokens for _, _, with_tokens in asked],
    )
    return [
        replace(one, times=one.times.with_at(places, times.at(numbers)))
        for one, places, numbers in of_graphs
    ]


@lru_cache(maxsize=32)
def _asked_of(
    graphs: tuple[tuple[Keyed[TaskGraph], bool], ...],
    *,
    exchanges: bool,
    sms: int,
    communication_sms: int,
    lone_keep: bool,
) -> tuple[list[tuple[_Kernels, list[int], list[int]]], list[tuple[Operator, int, bool]]]:
    """What `_kernels_of` asks for, whatever it takes: each graph without times, the places of its
    kernels and the number of what each asks for; and operator, SMs and whether tokens are beside it
    of each number."""
    found = []
    number_of: dict[tuple[int, int, bool], int] = {}
    asked: list[tuple[Operator, int, bool]] = []
    for lowered, pair in graphs:
        graph = lowered.value
        operators = graph.task_operators()
        counts = task_sms(
            graph, pair=pair, sms=sms, communication_sms=communication_sms, lone_keep=lone_keep
        )
        beside = [task.overlapped and exchanges for task in graph.tasks]
        sent, kernels, numbers = [], [], []
        for place, operator in enumerate(operators):
            if operator.kind in ALL_TO_ALL_KINDS:
                sent.append(place)
                continue
            mark = (id(operator), counts[place], beside[place])
            number = number_of.setdefault(mark, len(asked))
            if number == len(asked):
                asked.append((operator, counts[place], beside[place]))
            kernels.append(place)
            numbers.append(number)
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
        found.append((one, kernels, numbers))
    return found, asked


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
