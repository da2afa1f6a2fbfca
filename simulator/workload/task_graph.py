"""The operators of a training chunk, a pair of chunks or a serving iteration, and their order.

A graph holds order and dependencies only; the timeline says when each task runs. Tasks of one
stream run in the order of the graph, one at a time, as kernels in a CUDA stream do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from reference_model.trace import COLLECTIVE_KINDS, Operator

COLLECTIVE_SEGMENTS = frozenset({"gather", "scatter"})
"""Segments of operators that are collectives of tensor parallelism in serving."""


class Stream(StrEnum):
    """A queue of kernels on one GPU."""

    COMPUTE = "compute"
    COMMUNICATION = "communication"


@dataclass(frozen=True, slots=True)
class Task:
    """One kernel, or one transfer that no kernel makes."""

    operator: int
    """Place in the graph's `operators`."""
    stream: Stream
    layer: int
    """Place in the graph's `layers`."""
    micro_batch: int
    """Which of the micro-batches that run together it works on; negative for all of them."""
    part: str
    """Part of its layer, e.g. "attention_0", "dispatch_wire"."""
    overlapped: bool
    """Whether work of another micro-batch, or a transfer, is beside it in the published order."""
    collective: bool
    """Whether it needs every rank of the group to have come as far."""
    depends_on: tuple[int, ...] = ()
    """Indices of earlier tasks, of any stream, that must end before this one starts."""
    barrier: bool = True
    """Whether a collective task begins on all ranks together, when the last is ready. Without it
    each rank begins when it is ready itself and ends when the last sender's copies are there."""


@dataclass(frozen=True)
class TaskGraph:
    """Tasks in issue order. They point to operators, so that one order serves every size.

    What its order says is worked out once: it runs again and again at other times.
    """

    name: str
    layers: tuple[str, ...]
    """Names of the layers in order, e.g. "moe F0", "moe"."""
    operators: tuple[Operator, ...]
    tasks: tuple[Task, ...]

    def __post_init__(self) -> None:
        for index, task in enumerate(self.tasks):
            waits = task.depends_on
            if waits and not (min(waits) >= 0 and max(waits) < index):
                raise ValueError(
                    f"task graph {self.name}: task {index} "
                    f"({self.operators[task.operator].name}) depends on {waits}; only earlier "
                    "tasks are allowed"
                )

    def with_operators(self, operators: tuple[Operator, ...]) -> TaskGraph:
        """The same order for operators of other sizes; what it says is not worked out again."""
        other = copy(self)
        object.__setattr__(other, "operators", operators)
        return other

    def task_operators(self) -> list[Operator]:
        """[tasks], the operator of each."""
        return [self.operators[task.operator] for task in self.tasks]

    @cached_property
    def of_stream(self) -> Mapping[Stream, NDArray[np.intp]]:
        """Places of the tasks of each stream, in order."""
        return {
            stream: np.array(
                [place for place, task in enumerate(self.tasks) if task.stream is stream],
                dtype=np.intp,
            )
            for stream in Stream
        }

    @cached_property
    def collective(self) -> NDArray[np.bool_]:
        """[tasks], whether each needs every rank of the group."""
        return np.array([task.collective for task in self.tasks], dtype=np.bool_)

    @cached_property
    def waits(self) -> tuple[tuple[bool, tuple[int, ...]], ...]:
        """[tasks], whether each computes, and the tasks that it waits for."""
        return tuple((task.stream is Stream.COMPUTE, task.depends_on) for task in self.tasks)

    @cached_property
    def last_uses(self) -> tuple[tuple[int, ...], ...]:
        """[tasks], those before each that nothing after it waits for any more; of one that nothing
        waits for, itself."""
        last = {place: place for place in range(len(self.tasks))}
        last |= {
            waited: place for place, task in enumerate(self.tasks) for waited in task.depends_on
        }
        found: list[list[int]] = [[] for _ in self.tasks]
        for waited, place in last.items():
            found[place].append(waited)
        return tuple(map(tuple, found))


def collapsed(graph: TaskGraph) -> tuple[TaskGraph, tuple[int, ...]]:
    """Join tasks of a layer that run one after the other without waiting for anything between.

    Such a block takes the sum of its tasks and of the gaps between them, so the graph of blocks
    ends when the graph does, whatever the durations.

    Returns:
        The graph whose tasks are blocks, each known by its first task; and the place of that task
        in the graph, of each block.
    """
    awaited = {earlier for task in graph.tasks for earlier in task.depends_on}
    first = [
        place
        for place, task in enumerate(graph.tasks)
        if place == 0
        or task.depends_on
        or task.collective
        or place - 1 in awaited
        or task.stream is not graph.tasks[place - 1].stream
        or task.layer != graph.tasks[place - 1].layer
    ]
    block_of = {start: block for block, start in enumerate(first)}
    ends = [*(start - 1 for start in first[1:]), len(graph.tasks) - 1]
    block_of.update({end: block for block, end in enumerate(ends)})
    blocks = [
        replace(task, depends_on=tuple(block_of[earlier] for earlier in task.depends_on))
        for task in (graph.tasks[start] for start in first)
    ]
    return TaskGraph(graph.name, graph.layers, graph.operators, tuple(blocks)), tuple(first)


@dataclass(slots=True)
class GraphBuilder:
    """Collects the tasks of a graph in issue order."""

    operators: list[Operator] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)

    def block(self, operators: Iterable[Operator]) -> list[tuple[int, str]]:
        """Add operators for a block of tasks, whose parts are the segments."""
        start = len(self.operators)
        self.operators.extend(operators)
        return [(start + i, op.segment) for i, op in enumerate(self.operators[start:])]

    def layer(self, name: str) -> int:
        """Add a layer and return its place."""
        self.layers.append(name)
        return len(self.layers) - 1

    def add(
        self,
        block: Iterable[tuple[int, str]],
        stream: Stream,
        layer: int | None,
        *,
        micro_batch: int,
        overlapped: bool,
        after: Iterable[int | None] = (),
        barrier: bool = True,
    ) -> int | None:
        """Append a block of tasks in stream order, of which the first waits for `after`.

        Transfers and collectives of tensor parallelism need every rank of their group.

        Args:
            block: (place of its operator, part of its layer) of each task.
            layer: its place; None for an empty block.
            barrier: whether those that need every rank begin when the last is ready.

        Returns:
            The last task of the block. An empty block stands for the last that it would have waited
            for.
        """
        waits = tuple(sorted({index for index in after if index is not None}))
        last = max(waits, default=None)
        for place, part in block:
            assert layer is not None
            operator = self.operators[place]
            last = len(self.tasks)
            self.tasks.append(
                Task(
                    operator=place,
                    stream=stream,
                    layer=layer,
                    micro_batch=micro_batch,
                    part=part,
                    overlapped=overlapped,
                    collective=stream is Stream.COMMUNICATION
                    or operator.segment in COLLECTIVE_SEGMENTS
                    or operator.kind in COLLECTIVE_KINDS,
                    depends_on=waits,
                    barrier=barrier,
                )
            )
            waits = ()
        return last

    def last_of(self, stream: Stream) -> int | None:
        """The last task of a stream so far."""
        places = range(len(self.tasks) - 1, -1, -1)
        return next((place for place in places if self.tasks[place].stream is stream), None)

    def graph(self, name: str) -> TaskGraph:
        """What has been collected."""
        return TaskGraph(name, tuple(self.layers), tuple(self.operators), tuple(self.tasks))
