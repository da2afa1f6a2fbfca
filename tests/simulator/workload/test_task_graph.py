"""A task graph."""

import dataclasses

import pytest

from reference_model.trace import Operator
from simulator.workload.task_graph import GraphBuilder, Stream, Task, TaskGraph

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


@pytest.mark.parametrize("needs", [(2,), (0, 2), (-1, 0)])
def test_a_task_may_depend_on_earlier_tasks_only(needs):
    message = r"task 2 \(copy\) depends on .*; only earlier tasks"
    with pytest.raises(ValueError, match=message):
        graph(("c", ()), ("c", ()), ("c", needs))


def test_a_block_follows_what_it_waits_for_and_an_empty_one_stands_for_it():
    build = GraphBuilder()
    assert build.layer("dense") == 0
    layer = build.layer("moe")
    computed = build.add(
        build.block([COPY, COPY]), Stream.COMPUTE, layer, micro_batch=0, overlapped=True
    )
    none = build.add([], Stream.COMMUNICATION, None, micro_batch=0, overlapped=True, after=(None,))
    nothing = build.add(
        [], Stream.COMMUNICATION, None, micro_batch=0, overlapped=True, after=(0, computed, None)
    )
    assert (computed, none, nothing) == (1, None, 1)
    gather = dataclasses.replace(COPY, segment="gather")
    for stream in Stream:
        block = build.block([COPY, gather])
        build.add(block, stream, layer, micro_batch=1, overlapped=False, after=(nothing, 0))
    made = build.graph("test")
    assert [task.operator for task in made.tasks] == [0, 1, 2, 3, 4, 5]
    assert [task.depends_on for task in made.tasks] == [(), (), (0, 1), (), (0, 1), ()]
    # Transfers, and collectives of tensor parallelism on the compute stream too.
    assert [task.collective for task in made.tasks] == [False, False, False, True, True, True]
    assert [task.part for task in made.tasks][-2:] == ["attention", "gather"]
    assert made.layers == ("dense", "moe")
    assert {task.layer for task in made.tasks} == {1}
    assert (made.tasks[0].overlapped, made.tasks[2].micro_batch) == (True, 1)
