"""TaskGraph: the operators of one chunk or pair in issue order, and what each of them waits for.

A graph holds order and dependencies only; when a task runs is the engine's result. Tasks of one
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
    operator: Operator
    stream: Stream
    layer: str
    """Layer kind and position in its stage, e.g. "moe 2"."""
    overlapped: bool
    """Whether an all-to-all (for a compute task) or compute kernels (for a communication task)
    run at the same time in the published order; decides which kernel times apply."""
    depends_on: tuple[int, ...] = ()
    """Indices of earlier tasks, of any stream, that must end before this one starts."""


@dataclass(frozen=True, slots=True)
class TaskGraph:
    name: str
    tasks: tuple[Task, ...]

    def __post_init__(self) -> None:
        for index, task in enumerate(self.tasks):
            if any(not 0 <= earlier < index for earlier in task.depends_on):
                raise ValueError(
                    f"task graph {self.name}: task {index} ({task.operator.name}) depends on "
                    f"{task.depends_on}; only earlier tasks are allowed"
                )
