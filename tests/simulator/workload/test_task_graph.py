"""A task graph."""

import dataclasses

import numpy as np
import pytest

from reference_model.trace import Operator
from simulator.execution.timeline import run
from simulator.workload.task_graph import GraphBuilder, Stream, Task, TaskGraph, collapsed

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


def test_the_order_holds_for_operators_of_other_sizes():
    made = graph(("c", ()), ("m", (0,)))
    wider = dataclasses.replace(COPY, sizes=(("columns", 2), ("rows", 1)))
    other = made.with_operators((wider,))
    assert (other.operators, made.operators) == ((wider,), (COPY,))
    assert other == dataclasses.replace(made, operators=(wider,))
    assert other.waits == ((True, ()), (False, (0,)))


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


def test_tasks_without_a_wait_between_them_are_one_block():
    tasks = graph(("c", ()), ("c", ()), ("c", ()), ("m", (1,)), ("c", (3,)), ("c", ()))
    joined, first = collapsed(tasks)
    # The second is waited for, so the third begins a block; the fifth waits for the transfer.
    assert first == (0, 2, 3, 4)
    assert [task.depends_on for task in joined.tasks] == [(), (), (0,), (2,)]
    assert [task.operator for task in joined.tasks] == [task.operator for task in tasks.tasks][:4]


def test_tasks_of_two_layers_are_two_blocks():
    one = graph(("c", ()), ("c", ()))
    tasks = (one.tasks[0], dataclasses.replace(one.tasks[1], layer=1))
    assert collapsed(TaskGraph("two", ("a", "b"), (COPY,), tasks))[1] == (0, 1)


def test_a_collective_task_begins_a_block():
    tasks = graph(("c", ()), ("C", ()), ("c", ()))
    assert collapsed(tasks)[1] == (0, 1)


@pytest.mark.parametrize("seed", range(8))
def test_blocks_end_when_their_tasks_do(seed):
    rng = np.random.default_rng(seed)
    kinds = rng.choice(["c", "m"], size=30)
    needs = [tuple({int(rng.integers(i))} if i and rng.random() < 0.3 else ()) for i in range(30)]
    whole = graph(*zip(kinds, needs, strict=True))
    seconds, gap = rng.random(30), 0.125
    joined, first = collapsed(whole)
    between = np.diff([*first, 30]) - 1
    blocks = np.add.reduceat(seconds, first) + between * gap
    assert run(joined, blocks, gap).span_s == pytest.approx(run(whole, seconds, gap).span_s)


def test_the_end_of_a_task_is_kept_until_nothing_after_waits_for_it():
    made = graph(("c", ()), ("m", (0,)), ("c", (0,)), ("c", (1,)))
    assert made.last_uses == ((), (), (0, 2), (1, 3))
