"""The order of an overlapped pair, part by part, as data for whoever runs one.

A part is the operators of one segment of one layer in one phase, issued together; what it waits for
are other parts. A file of them has one JSON object a line, in the order of issue:

    {"stream": "communication", "phase": "forward", "layer": 0, "segment": "dispatch",
     "after": [1], "operators": 2}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.workload.task_graph import TaskGraph


@dataclass(frozen=True, slots=True)
class PairPart:
    """Operators that a rank issues together on one stream."""

    stream: str
    phase: str
    layer: int
    """In the order in which the micro-batch goes through its layers, from 0."""
    segment: str
    after: tuple[int, ...]
    """Places of the parts that end before it starts, besides those before it in its stream."""
    tasks: tuple[int, ...]
    """Places of its tasks in the graph."""


def pair_parts(graph: TaskGraph) -> tuple[PairPart, ...]:
    """The parts of a chunk or pair, in the order of issue."""
    part_of: dict[int, int] = {}
    layers: dict[int, dict[int, int]] = {}
    keys: list[tuple[str, str, int, str]] = []
    after: list[tuple[int, ...]] = []
    tasks: list[list[int]] = []
    for place, (task, operator) in enumerate(zip(graph.tasks, graph.task_operators(), strict=True)):
        numbers = layers.setdefault(task.micro_batch, {})
        layer = numbers.setdefault(task.layer, len(numbers))
        key = (str(task.stream), operator.phase, layer, task.part)
        if task.depends_on or not keys or keys[-1] != key:
            keys.append(key)
            after.append(tuple(sorted({part_of[earlier] for earlier in task.depends_on})))
            tasks.append([])
        part_of[place] = len(keys) - 1
        tasks[-1].append(place)
    return tuple(
        PairPart(*key, waits, tuple(members))
        for key, waits, members in zip(keys, after, tasks, strict=True)
    )


def order_text(parts: Sequence[PairPart]) -> str:
    """The file of an order."""
    return "".join(
        json.dumps(
            {
                "stream": part.stream,
                "phase": part.phase,
                "layer": part.layer,
                "segment": part.segment,
                "after": list(part.after),
                "operators": len(part.tasks),
            }
        )
        + "\n"
        for part in parts
    )
