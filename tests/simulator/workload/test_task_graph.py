"""A task graph."""

import pytest

from reference_model.trace import Operator
from simulator.workload.task_graph import Stream, Task, TaskGraph

COPY = Operator(
    name="copy", kind="copy", phase="forward", segment="attention", dtype="bfloat16",
    out_dtype="bfloat16", sizes=(("columns", 1), ("rows", 1)), recompute=False, accumulate=False,
)  # fmt: skip


def graph(*tasks):
    """Tasks as (stream letter, dependencies); a capital letter is collective."""
    streams = {"c": Stream.COMPUTE, "m": Stream.COMMUNICATION}
    return TaskGraph(
        "test",
        ("layer",),
        (COPY,),
        tuple(
            Task(0, streams[letter.lower()], 0, 0, "part", False, letter.isupper(), needs)
            for letter, needs in tasks
        ),
    )


def test_a_task_may_depend_on_earlier_tasks_only():
    with pytest.raises(ValueError, match=r"task 0 \(copy\) depends on \(0,\); only earlier tasks"):
        graph(("c", (0,)))
