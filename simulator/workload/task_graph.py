"""The operators of a training chunk, a pair of chunks or a serving iteration, and their order.

A graph holds order and dependencies only; the timeline says when each task runs. Tasks of one
stream run in the order of the graph, one at a time, as kernels in a CUDA stream do.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from reference_model.trace import Operator


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


@dataclass(frozen=True, slots=True)
class TaskGraph:
    """Tasks in issue order. They point to operators, so that one order serves every size."""

    name: str
    layers: tuple[str, ...]
    """Names of the layers in order of first use, e.g. "moe F0", "moe"."""
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

    def task_operators(self) -> list[Operator]:
        """[tasks], the operator of each."""
        return [self.operators[task.operator] for task in self.tasks]
