"""Read the order of an overlapped pair off its graph, part by part."""

from __future__ import annotations

from reference_model.pair_order import Part
from simulator.workload.task_graph import TaskGraph


def pair_parts(graph: TaskGraph) -> tuple[Part, ...]:
    """The parts of a chunk or pair, in the order of issue; its tasks are those of the first part,
    then of the second, and so on."""
    part_of: dict[int, int] = {}
    layers: dict[int, dict[int, int]] = {}
    keys: list[tuple[str, str, int, str]] = []
    after: list[tuple[int, ...]] = []
    operators: list[int] = []
    for place, (task, operator) in enumerate(zip(graph.tasks, graph.task_operators(), strict=True)):
        numbers = layers.setdefault(task.micro_batch, {})
        layer = numbers.setdefault(task.layer, len(numbers))
        key = (str(task.stream), operator.phase, layer, task.part)
        if task.depends_on or not keys or keys[-1] != key:
            keys.append(key)
            after.append(tuple(sorted({part_of[earlier] for earlier in task.depends_on})))
            operators.append(0)
        part_of[place] = len(keys) - 1
        operators[-1] += 1
    return tuple(
        Part(*key, waits, count) for key, waits, count in zip(keys, after, operators, strict=True)
    )
