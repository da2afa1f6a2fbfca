"""Streams run their tasks in order, wait for what they depend on, and overlap each other."""

import numpy as np
import pytest

from reference_model.trace import Operator
from simulator.execution.engine import execute
from simulator.workload.task_graph import Stream, Task, TaskGraph

COPY = Operator(
    name="copy", kind="copy", phase="forward", segment="attention", dtype="bfloat16",
    out_dtype="bfloat16", sizes=(("columns", 1), ("rows", 1)), recompute=False, accumulate=False,
)  # fmt: skip


def graph(*tasks):
    """Tasks as (stream letter, dependencies)."""
    streams = {"c": Stream.COMPUTE, "m": Stream.COMMUNICATION}
    return TaskGraph(
        "test", tuple(Task(COPY, streams[letter], "layer", False, needs) for letter, needs in tasks)
    )


def test_tasks_of_one_stream_follow_each_other_after_the_gap():
    log = execute(graph(("c", ()), ("c", ()), ("c", ())), [1.0, 2.0, 3.0], gap_s=0.5)
    np.testing.assert_allclose(log.start_s, [0.0, 1.5, 4.0])
    assert log.span_s == 7.0


def test_a_task_waits_for_another_stream():
    log = execute(graph(("c", ()), ("m", (0,)), ("c", (1,))), [1.0, 5.0, 1.0], gap_s=0.0)
    np.testing.assert_allclose(log.start_s, [0.0, 1.0, 6.0])


def test_the_gap_runs_while_a_dependency_is_awaited():
    log = execute(graph(("m", ()), ("c", ()), ("c", (0,))), [5.0, 1.0, 1.0], gap_s=0.5)
    assert log.start_s[2] == 5.0


def test_exposed_and_hidden_communication_sum_to_all_of_it():
    # compute 0-2 and 5-6; communication 1-5: hidden 1, exposed 3.
    log = execute(graph(("c", ()), ("c", ()), ("m", (0,)), ("c", (2,))), [1, 1, 4, 1], gap_s=0.0)
    assert log.communication_s == 4.0
    assert log.hidden_communication_s == pytest.approx(1.0)
    assert log.exposed_communication_s == pytest.approx(3.0)


def test_a_graph_without_communication_has_none():
    log = execute(graph(("c", ())), [1.0], gap_s=0.0)
    assert (log.communication_s, log.hidden_communication_s) == (0.0, 0.0)


def test_a_task_may_depend_on_earlier_tasks_only():
    with pytest.raises(ValueError, match="only earlier tasks"):
        graph(("c", (0,)))


def test_durations_must_match_the_tasks():
    with pytest.raises(ValueError, match="1 durations for 2 tasks"):
        execute(graph(("c", ()), ("c", ())), [1.0], gap_s=0.0)


@pytest.mark.parametrize("seed", range(5))
def test_the_span_lies_between_the_longest_stream_and_the_sum_of_both(seed):
    rng = np.random.default_rng(seed)
    tasks = [
        ("cm"[rng.integers(2)], tuple(rng.integers(0, i, size=min(i, 2)).tolist()))
        for i in range(40)
    ]
    seconds = rng.uniform(0.1, 1.0, 40)
    log = execute(graph(*tasks), seconds.tolist(), gap_s=0.0)
    compute = sum(s for s, (letter, _) in zip(seconds, tasks, strict=True) if letter == "c")
    assert max(compute, seconds.sum() - compute) - 1e-9 <= log.span_s <= seconds.sum() + 1e-9
    for index, (_, needs) in enumerate(tasks):
        assert all(log.end_s[need] <= log.start_s[index] + 1e-12 for need in needs)
