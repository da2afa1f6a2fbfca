"""Run the distinct chunks and overlapped pairs of a training step, operator by operator.

Actions that do the same work on the same layers, of which the fabric makes the same and which
exchange the same of their parameters and gradients, are one chunk, which runs once on the compute
and communication streams of one rank.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.by_content import Keyed, object_key
from hardware_profiles.units import Seconds, format_bandwidth
from reference_model.pipeline_actions import (
    FORWARD_WORK,
    FULL_BACKWARD,
    INPUT_BACKWARD,
    OVERLAPPED,
    WEIGHT_GRADIENT,
    Action,
)
from reference_model.trace import ALL_TO_ALL_KINDS, Operator
from simulator.execution import timeline
from simulator.execution.optimizer import ChunkState, with_state_collectives
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernels.families import Family, family_of
from simulator.hardware.kernels.roofline import is_tensor
from simulator.hardware.network.fabric_load import NO_LIMIT, FabricLoad
from simulator.hardware.network.transfers import exchange_sms
from simulator.hardware.prediction import Prediction
from simulator.workload.chunk import OperatorsOf, lower_chunk, lower_weights
from simulator.workload.layout import StageLayers, stage_text
from simulator.workload.state_tasks import STATE, StateTasks, is_state_collective
from simulator.workload.task_graph import Stream, TaskGraph
from simulator.workload.tensor_parallel import gathered_bytes, shared_axis


@dataclass(frozen=True, slots=True)
class ChunkKey:
    """What makes two actions take the same time: the work and the layers it works on."""

    work: str
    """One of simulator.workload.schedules.order.WORKS."""
    forward: StageLayers
    """Layers of the forward chunk, empty where the action has none."""
    backward: StageLayers
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
        """Times of its collectives of parameters and gradients."""
        return self.cost.at(
            [
                place
                for place, operator in enumerate(self.log.graph.task_operators())
                if is_state_collective(operator)
            ]
        )


def chunk_key(
    schedule_stages: tuple[StageLayers, ...],
    action: Action,
    *,
    load: FabricLoad,
    state: ChunkState | None = None,
) -> ChunkKey:
    """The layers that an action works on, what the fabric makes of their all-to-all, and which of
    their parameters and gradients it exchanges."""
    forward: StageLayers = ()
    backward: StageLayers = ()
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
    forward: StageLayers,
    backward: StageLayers,
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
    asked = _asked_of(
        tuple((object_key(graph), key.work == OVERLAPPED) for key, graph in graphs.items()),
        # A GPU that holds every expert exchanges no tokens, so none travel beside its kernels.
        exchanges=costs.expert_parallel_ranks > 1,
        sms=sms,
        communication_sms=communication_sms,
        lone_keep=lone_keep,
    )
    kernels = _kernels_of(object_key(asked), Keyed((id(costs.kernels_), costs.common_), costs))
    loads = [key.load for key in graphs]
    every = kernels.with_at(
        asked.sent_at,
        costs.predict(
            [operator for operator, _, _ in asked.sent],
            sms=[count for _, count, _ in asked.sent],
            overlapped=[beside for _, _, beside in asked.sent],
            load=[loads[graph] for graph in asked.sent_in],
        ),
    )
    predictions = {}
    for number, (key, graph) in enumerate(graphs.items()):
        tasks = slice(asked.starts[number], asked.starts[number + 1])
        found = every.part(tasks)
        if number in asked.shared:
            found = with_collectives(found, graph.task_operators(), costs)
        if key.state is not None:
            of_tasks = graph.task_operators()
            states = [key.state] * len(of_tasks)
            found = with_state_collectives(found, of_tasks, states, costs.transfers_)
            found = beside_state(
                found,
                [(key, operator) for operator in of_tasks],
                asked.alone[tasks],
                costs,
                sms=sms - communication_sms,
            )
        predictions[key] = found
    return predictions


_Work: TypeAlias = tuple[Operator, int, bool]
"""An operator, its SMs, and whether tokens travel, or for tokens that travel compute, beside it."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the tasks of several graphs ask for, one graph after the other, whatever they take."""

    starts: tuple[int, ...]
    """[graphs + 1], the first task of each, and how many there are."""
    shared: frozenset[int]
    """Graphs in which GPUs that share layers or sequences exchange anything."""
    families: tuple[Family, ...]
    """[tasks]"""
    alone: tuple[bool, ...]
    """[tasks], whether it is a kernel with nothing beside it."""
    sent: tuple[_Work, ...]
    """Every dispatch and combine."""
    sent_at: NDArray[np.intp]
    """Which of the tasks each of these is."""
    sent_in: tuple[int, ...]
    """Which of the graphs each of these is in."""
    kernels: tuple[_Work, ...]
    """All other kernels, those that take the same time once."""
    kernels_at: NDArray[np.intp]
    """Which of the tasks are other kernels."""
    kernel: NDArray[np.intp]
    """Which of `kernels` each of these is."""


@lru_cache(maxsize=128)
def _kernels_of(asked: Keyed[_Asked], costs: Keyed[KernelCostModel]) -> Prediction:
    """[tasks] what kernels take, zero of dispatch and combine; worked out once for the same graphs
    and kernel times, since scenarios differ mostly in links, schedules, or layouts of the same
    chunks."""
    of = asked.value
    times = costs.value.predict(
        [operator for operator, _, _ in of.kernels],
        sms=[count for _, count, _ in of.kernels],
        overlapped=[beside for _, _, beside in of.kernels],
    )
    return Prediction.none(of.families).with_at(of.kernels_at, times.at(of.kernel))


@lru_cache(maxsize=32)
def _asked_of(
    graphs: tuple[tuple[Keyed[TaskGraph], bool], ...],
    *,
    exchanges: bool,
    sms: int,
    communication_sms: int,
    lone_keep: bool,
) -> _Asked:
    """Worked out once for the same graphs.

    Args:
        graphs: with whether each is a pair.
        exchanges: whether tokens travel between GPUs.
    """
    starts, shared = [0], []
    families: list[Family] = []
    alone: list[bool] = []
    sent: dict[int, _Work] = {}
    sent_in: list[int] = []
    kernels: dict[int, _Work] = {}
    for number, (lowered, pair) in enumerate(graphs):
        graph = lowered.value
        counts = task_sms(
            graph, pair=pair, sms=sms, communication_sms=communication_sms, lone_keep=lone_keep
        )
        operators = graph.task_operators()
        beside = [task.overlapped and exchanges for task in graph.tasks]
        for place, work in enumerate(zip(operators, counts, beside, strict=True), starts[-1]):
            if work[0].kind in ALL_TO_ALL_KINDS:
                sent[place] = work
                sent_in.append(number)
            else:
                kernels[place] = work
        families += map(family_of, operators)
        alone += [
            task.stream is Stream.COMPUTE and not with_tokens
            for task, with_tokens in zip(graph.tasks, beside, strict=True)
        ]
        starts.append(len(families))
        if any(shared_axis(operator) is not None for operator in operators):
            shared.append(number)
    # Names and phases of operators are nothing to their times.
    numbers: dict[tuple[object, ...], int] = {}
    kernel = [
        numbers.setdefault((families[place], operator.sizes, count, with_tokens), len(numbers))
        for place, (operator, count, with_tokens) in kernels.items()
    ]
    _, firsts = np.unique(kernel, return_index=True)
    every = tuple(kernels.values())
    return _Asked(
        starts=tuple(starts),
        shared=frozenset(shared),
        families=tuple(families),
        alone=tuple(alone),
        sent=tuple(sent.values()),
        sent_at=np.array(list(sent), dtype=np.intp),
        sent_in=tuple(sent_in),
        kernels=tuple(every[first] for first in firsts.tolist()),
        kernels_at=np.array(list(kernels), dtype=np.intp),
        kernel=np.array(kernel, dtype=np.intp),
    )


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
