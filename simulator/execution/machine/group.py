"""What came of a graph on ranks that contend, beside the same ranks on the timeline."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Seconds
from reference_model.trace import ALL_TO_ALL_KINDS, COLLECTIVE_KINDS, Operator
from simulator.execution import timeline
from simulator.execution.machine.gpu import Gpu
from simulator.execution.machine.launches import ONE_WAVE, is_product
from simulator.execution.machine.ranks import MachineLog, RankWork, run_on_ranks
from simulator.hardware.kernels.roofline import is_tensor
from simulator.scenario.events import Channel, EventsInputs
from simulator.workload.iteration import WIRES
from simulator.workload.task_graph import COLLECTIVE_SEGMENTS, Stream, Task, TaskGraph

Array = NDArray[np.float64]

BESIDE = 0.9
"""Least share of a kernel's time with a transfer of its rank, to count as beside it."""


class Effect(StrEnum):
    """Kernels and transfers that slow each other in the same way."""

    GEMM = "GEMM"
    ATTENTION = "attention core"
    NORM = "norm"
    MEMORY_BOUND = "memory-bound"
    CAST = "cast on the communication stream"
    DISPATCH_FORWARD = "dispatch, forward"
    DISPATCH_GRADIENT = "dispatch, gradient"
    COMBINE_FORWARD = "combine, forward"
    COMBINE_GRADIENT = "combine, gradient"


_TRANSFERS = {
    ("dispatch", True): Effect.DISPATCH_FORWARD,
    ("dispatch", False): Effect.DISPATCH_GRADIENT,
    ("combine", True): Effect.COMBINE_FORWARD,
    ("combine", False): Effect.COMBINE_GRADIENT,
}
"""{(kind, whether it is of a forward pass): its effect}"""


def effect_of(task: Task, operator: Operator) -> Effect | None:
    """Which of them a task is; None of what only counts tokens, and of collectives."""
    kind, forward = operator.kind, operator.phase not in ("input_grad", "weight_grad")
    if kind in ALL_TO_ALL_KINDS:
        return _TRANSFERS[kind, forward]
    if task.part in WIRES and kind == "copy":
        return _TRANSFERS[task.part.removesuffix("_wire"), forward]
    if (
        kind == "dispatch_layout"
        or kind in COLLECTIVE_KINDS
        or operator.segment in COLLECTIVE_SEGMENTS
    ):
        return None
    if task.stream is Stream.COMMUNICATION:
        return Effect.CAST
    if is_tensor(kind):
        return Effect.GEMM if is_product(kind) else Effect.ATTENTION
    return Effect.NORM if kind in ONE_WAVE else Effect.MEMORY_BOUND


@dataclass(frozen=True, slots=True)
class RankFactors:
    """What a rank's tasks take over those of the mean rank; arrays [tasks, ranks]."""

    work: Array
    """For its rows and its attention work, to which bytes go as well."""
    speed: Array
    """For its clock and its machine."""
    rows: Array
    """[layers of the graph, ranks], rows over their mean."""


def alike(graph: TaskGraph, *, ranks: int) -> RankFactors:
    """Ranks that do not differ."""
    same = np.ones((len(graph.tasks), ranks))
    return RankFactors(same, same, np.ones((len(graph.layers), ranks)))


def meeting_in_transfers(graph: TaskGraph, kernel: Sequence[bool]) -> TaskGraph:
    """The same graph; kernels on its communication stream meet nobody.

    Args:
        kernel: [tasks], whether each is one.
    """
    tasks = (
        replace(task, collective=task.collective and not is_one)
        for task, is_one in zip(graph.tasks, kernel, strict=True)
    )
    return replace(graph, tasks=tuple(tasks))


@dataclass(frozen=True, slots=True)
class GroupRun:
    """A graph on the ranks of a group, and the same on the timeline."""

    name: str
    machine: MachineLog
    alone_s: Array
    """[tasks, ranks], kernels with nothing beside them on their rank; transfers between ranks that
    are alike, without what comes before the first byte."""
    before_s: Array
    """[tasks], what comes before the first byte of a transfer, once all ranks are there."""
    timeline: timeline.Log
    """The same ranks with the timeline's prices."""
    channels: tuple[Channel, ...]
    without: Mapping[Channel, Seconds] = field(default_factory=dict)
    """{channel: the end of the last rank without it}, where it was asked for."""

    @property
    def span_s(self) -> Seconds:
        """The end of the last rank."""
        return self.machine.log.span_s

    def ratios(self) -> dict[Effect, Array]:
        """{effect: time over that alone of each kernel and rank} of kernels beside a transfer, and
        of transfers, those without barrier from when the last rank began."""
        log = self.machine.log
        operators = log.graph.task_operators()
        took = log.end_s - log.start_s - self.before_s[:, None]
        for place, task in enumerate(log.graph.tasks):
            if task.collective and not task.barrier:
                took[place] = np.maximum(log.end_s[place] - log.start_s[place].max(), 0.0)
        exchanges = [
            place for place, operator in enumerate(operators) if operator.kind in ALL_TO_ALL_KINDS
        ]
        beside = self._beside(exchanges)
        found: dict[Effect, list[Array]] = {}
        for place, (task, operator) in enumerate(zip(log.graph.tasks, operators, strict=True)):
            effect = effect_of(task, operator)
            if effect is None:
                continue
            chosen = self.alone_s[place] > 0
            if task.stream is Stream.COMPUTE:
                chosen &= beside[place] >= BESIDE
            if chosen.any():
                ratio = took[place, chosen] / self.alone_s[place, chosen]
                found.setdefault(effect, []).append(ratio)
        return {effect: np.concatenate(found[effect]) for effect in Effect if effect in found}

    def _beside(self, exchanges: list[int]) -> Array:
        """[tasks, ranks], share of each task's time in which its rank's transfer holds SMs."""
        log = self.machine.log
        shares = np.zeros(log.end_s.shape)
        length = np.maximum(log.end_s - log.start_s, np.finfo(float).tiny)
        for place in exchanges:
            overlap = np.minimum(log.end_s, log.end_s[place]) - np.maximum(
                log.start_s, log.ready_s[place]
            )
            shares += np.maximum(overlap, 0.0) / length
        return shares


def not_contending(name: str, graph: TaskGraph, seconds: Array, gap_s: Seconds) -> GroupRun:
    """Run with nothing that contends, which is the timeline.

    Args:
        seconds: [tasks] of every rank.
    """
    of_ranks = seconds[:, None]
    free = partial(Gpu, sms=None, hbm=None)
    return GroupRun(
        name=name,
        machine=run_on_ranks(graph, RankWork(of_ranks, ()), gap_s, gpu_of=free),
        alone_s=of_ranks,
        before_s=np.zeros(len(graph.tasks)),
        timeline=timeline.run(graph, of_ranks, gap_s, rank_axis=0),
        channels=(),
    )


def contending(
    run_with: Callable[[Collection[Channel]], GroupRun], inputs: EventsInputs
) -> GroupRun:
    """Run with what the scenario lets contend, and without each channel where it asks for that."""
    found = run_with(inputs.contention)
    if not inputs.ablation:
        return found
    without = {
        channel: run_with([other for other in inputs.contention if other != channel]).span_s
        for channel in inputs.contention
    }
    return replace(found, without=without)
