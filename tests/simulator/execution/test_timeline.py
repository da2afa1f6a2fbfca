"""Streams run their tasks in order, wait for what they depend on, and overlap each other."""

from dataclasses import replace

import numpy as np
import pytest

from reference_model.trace import Operator
from simulator.execution import timeline
from simulator.execution.timeline import (
    critical_path,
    each,
    hidden_communication,
    last_end,
    replay_side_by_side,
    run,
    run_side_by_side,
    waiting,
)
from simulator.workload.task_graph import Stream, Task, TaskGraph

COPY = Operator(
    name="copy", kind="copy", phase="forward", segment="attention", dtype="bfloat16",
    out_dtype="bfloat16", sizes=(("columns", 1), ("rows", 1)), recompute=False, accumulate=False,
)  # fmt: skip


def graph(*tasks):
    """Tasks as (stream letter, dependencies); a capital letter is collective, W a low-latency
    transfer, which has no barrier."""
    streams = {"c": Stream.COMPUTE, "m": Stream.COMMUNICATION, "w": Stream.COMMUNICATION}
    return TaskGraph(
        "test",
        ("layer",),
        (COPY,),
        tuple(
            Task(
                0, streams[letter.lower()], 0, 0, "part", False, letter.isupper(), needs,
                barrier=letter != "W",
            )
            for letter, needs in tasks
        ),
    )  # fmt: skip


def once(tasks, seconds, gap_s=0.0):
    return run(graph(*tasks), np.array(seconds, dtype=float), gap_s)


def test_tasks_of_one_stream_follow_each_other_after_the_gap():
    log = once([("c", ()), ("c", ()), ("c", ())], [1, 2, 3], 0.5)
    assert log.start_s.tolist() == [0.0, 1.5, 4.0]
    assert log.span_s == 7.0


def test_a_task_waits_for_another_stream():
    log = once([("c", ()), ("m", (0,)), ("c", (1,))], [1, 5, 1])
    assert log.start_s.tolist() == [0.0, 1.0, 6.0]


def test_the_gap_runs_while_a_dependency_is_awaited():
    assert once([("m", ()), ("c", ()), ("c", (0,))], [5, 1, 1], 0.5).start_s[2] == 5.0


def test_a_graph_without_tasks_takes_no_time():
    log = once([], [])
    assert (log.span_s, log.spans_s.shape) == (0.0, ())
    assert critical_path(log) == ([], 0.0)


def test_durations_must_match_the_tasks():
    with pytest.raises(ValueError, match="1 durations for 2 tasks"):
        once([("c", ()), ("c", ())], [1])


def drawn(seed):
    """40 tasks with up to two dependencies each, and their durations."""
    rng = np.random.default_rng(seed)
    tasks = [
        ("cm"[rng.integers(2)], tuple(rng.integers(0, i, size=min(i, 2)).tolist()))
        for i in range(40)
    ]
    return tasks, rng.uniform(0.1, 1.0, 40)


@pytest.mark.parametrize("seed", range(5))
def test_a_task_starts_as_soon_as_its_stream_is_free_and_all_it_waits_for_has_ended(seed):
    tasks, seconds = drawn(seed)
    log = once(tasks, seconds, 0.25)
    free = dict.fromkeys("cm", 0.0)
    for place, (letter, needs) in enumerate(tasks):
        assert log.start_s[place] == max([free[letter], *log.end_s[list(needs)]])
        assert log.end_s[place] == log.start_s[place] + seconds[place]
        free[letter] = log.end_s[place] + 0.25


@pytest.mark.parametrize("seed", range(5))
def test_every_sample_runs_as_it_would_alone_each_with_its_own_gap(seed):
    tasks, seconds = drawn(seed)
    factors, gaps = np.array([[1.0, 2.0, 0.5], [3.0, 1.5, 0.0]]), np.array([0.0, 0.1, 0.7])
    log = run(graph(*tasks), seconds[:, None, None] * factors, gaps)
    assert log.spans_s.shape == (2, 3)
    for row, column in np.ndindex(2, 3):
        alone = once(tasks, seconds * factors[row, column], gaps[column])
        np.testing.assert_array_equal(log.start_s[:, row, column], alone.start_s)
        np.testing.assert_array_equal(log.end_s[:, row, column], alone.end_s)
    assert log.span_s == log.spans_s.max()


def test_gaps_alone_may_differ():
    log = run(graph(("c", ()), ("c", ())), np.array([1.0, 2.0]), np.array([0.0, 0.5]))
    assert log.spans_s.tolist() == [3.0, 3.5]


def test_a_collective_task_starts_on_all_ranks_when_the_last_is_ready():
    """Ranks compute 1 and 3 s, exchange for 2 s, and compute 1 s; samples double all times."""
    tasks = graph(("c", ()), ("M", (0,)), ("c", (1,)))
    ranks = np.array([[1.0, 3.0], [2.0, 2.0], [1.0, 1.0]])
    together = run(tasks, ranks, 0.0, rank_axis=0)
    assert together.start_s.tolist() == [[0.0, 0.0], [3.0, 3.0], [5.0, 5.0]]
    assert run(tasks, ranks, 0.0).start_s.tolist() == [[0.0, 0.0], [1.0, 3.0], [3.0, 5.0]]
    samples = np.stack((ranks, 2 * ranks), axis=1)
    assert run(tasks, samples, 0.0, rank_axis=1).spans_s.tolist() == [[6.0, 6.0], [12.0, 12.0]]


THREE = np.array([[1.0, 2.0, 4.0], [2.0, 2.0, 2.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
"""Three ranks compute 1, 2 and 4 s, send for 2 s, compute 1 s beside it and 1 s on what came."""


def test_neighbours_that_share_a_layer_wait_for_each_other_alone():
    """Four ranks, two of which share a layer: after 1, 2, 3 and 4 s a gather of 1 s."""
    gather = replace(COPY, name="attention.o_proj.tensor_gather", kind="gather_tokens")
    tasks = (
        Task(0, Stream.COMPUTE, 0, 0, "attention", False, False),
        Task(1, Stream.COMPUTE, 0, 0, "attention", False, True),
    )
    shared = TaskGraph("shared", ("layer",), (COPY, gather), tasks)
    seconds = np.array([[1.0, 2.0, 3.0, 4.0], [1.0] * 4])
    log = run(shared, seconds, 0.0, rank_axis=0, teams={"tensor": 2})
    assert log.end_s[1].tolist() == [3.0, 3.0, 5.0, 5.0]
    passed = each(
        shared, ((took, took) for took in seconds), np.float64(0.0), axes=(4,), rank_axis=0,
        teams={"tensor": 2},
    )  # fmt: skip
    assert last_end(shared, passed).tolist() == [3.0, 3.0, 5.0, 5.0]
    every = run(shared, seconds, 0.0, rank_axis=0)
    assert every.end_s[1].tolist() == [5.0] * 4
    # Whatever another axis has, and in each of three samples, whichever axis the ranks are.
    factors = np.array([1.0, 2.0, 4.0])
    for rank_axis, samples in (
        (0, seconds[:, :, None] * factors),
        (1, seconds[:, None] * factors[:, None]),
    ):
        log = run(
            shared, samples, 0.0, rank_axis=rank_axis, teams={"expert_tensor": 1, "tensor": 2}
        )
        of_ranks = log.end_s[1] if rank_axis == 0 else log.end_s[1].T
        assert of_ranks.T.tolist() == [[3 * one, 3 * one, 5 * one, 5 * one] for one in factors]


def test_three_ranks_with_a_barrier_all_begin_to_send_with_the_last():
    """The transfer runs from 4 to 6 on every rank. Rank 0 computes to 1 and 1 to 2, so it has
    nothing to do from 2 to 6: to 4 for rank 2, to 6 for the transfer. Rank 1 from 3; rank 2 from
    5."""
    log = run(graph(("c", ()), ("M", (0,)), ("c", ()), ("c", (1,))), THREE, 0.0, rank_axis=0)
    assert log.start_s[1].tolist() == [4.0, 4.0, 4.0]
    assert log.end_s[1].tolist() == [6.0, 6.0, 6.0]
    assert log.spans_s.tolist() == [7.0, 7.0, 7.0]
    found = waiting(log)
    assert found.ranks_s.tolist() == [2.0, 1.0, 0.0]
    assert found.transfers_s.tolist() == [2.0, 2.0, 1.0]


def test_three_ranks_without_a_barrier_send_when_ready_and_receive_the_last_sender():
    """Copies leave at 1, 2 and 4 s and take 2 s, so each rank's own have left at 3, 4 and 6, and
    all have come at 6. Rank 0 has nothing to do from 2 to 6: to 3 its own are under way, then it
    waits for rank 2. Rank 1 likewise from 3 to 4 and 4 to 6; rank 2 from 5 to 6 for its own."""
    log = run(graph(("c", ()), ("W", (0,)), ("c", ()), ("c", (1,))), THREE, 0.0, rank_axis=0)
    assert log.start_s[1].tolist() == [1.0, 2.0, 4.0]
    assert log.done_s[1].tolist() == [3.0, 4.0, 6.0]
    assert log.end_s[1].tolist() == [6.0, 6.0, 6.0]
    found = waiting(log)
    assert found.ranks_s.tolist() == [3.0, 2.0, 0.0]
    assert found.transfers_s.tolist() == [1.0, 1.0, 1.0]


def test_work_of_the_other_micro_batch_hides_the_last_sender_without_a_barrier():
    """Between send and receive each rank has 5, 4 and 2 s of other work: all end it at 6, when the
    last copies have come, and nobody waits."""
    seconds = np.array([[1.0, 2.0, 4.0], [2.0, 2.0, 2.0], [5.0, 4.0, 2.0], [1.0, 1.0, 1.0]])
    log = run(graph(("c", ()), ("W", (0,)), ("c", ()), ("c", (1,))), seconds, 0.0, rank_axis=0)
    assert log.start_s[3].tolist() == [6.0, 6.0, 6.0]
    assert waiting(log).ranks_s.tolist() == [0.0, 0.0, 0.0]
    assert waiting(log).transfers_s.tolist() == [0.0, 0.0, 0.0]


def test_a_rank_that_receives_most_holds_up_itself_and_one_that_sends_most_all():
    """Rank 2 receives for 5 s and all send for 2 s: only rank 2 ends at 5. Where it sends for 5 s
    and all receive for 2 s, all end at 5."""
    tasks = graph(("W", ()), ("c", (0,)))
    receives, even = np.array([[2.0, 2.0, 5.0], [1.0, 1.0, 1.0]]), np.full((2, 3), 2.0)
    dispatch = run(tasks, receives, 0.0, rank_axis=0, sends_s=even)
    assert dispatch.end_s[0].tolist() == [2.0, 2.0, 5.0]
    combine = run(tasks, even, 0.0, rank_axis=0, sends_s=receives)
    assert combine.end_s[0].tolist() == [5.0, 5.0, 5.0]


def test_durations_in_turn_end_when_all_at_once_do():
    tasks, seconds = drawn(3)
    tasks = [("W" if letter == "m" else letter, needs) for letter, needs in tasks]
    ranks = seconds[:, None, None] * np.random.default_rng(0).uniform(0.5, 2.0, (40, 3, 4))
    log = run(graph(*tasks), ranks, 0.25, rank_axis=0)
    passed = each(graph(*tasks), zip(ranks, ranks, strict=True), 0.25, axes=(3, 4), rank_axis=0)
    np.testing.assert_array_equal(last_end(graph(*tasks), passed), log.spans_s)


@pytest.mark.parametrize("letter", "MW")
def test_equal_ranks_are_one_rank(letter):
    tasks, seconds = drawn(7)
    tasks = [(letter if stream == "m" else stream, needs) for stream, needs in tasks]
    alone = once(tasks, seconds, 0.25)
    equal = run(graph(*tasks), np.repeat(seconds[:, None], 3, axis=1), 0.25, rank_axis=0)
    np.testing.assert_array_equal(equal.end_s, alone.end_s[:, None].repeat(3, axis=1))


def test_communication_is_hidden_exposed_or_beside_a_gap():
    """Compute 0-1, 1.5-2.5 and 5-6, a transfer 1-5: a gap, a second hidden, a gap, 2 s waited."""
    log = once([("c", ()), ("c", ()), ("m", (0,)), ("c", (2,))], [1, 1, 4, 1], 0.5)
    assert log.start_s.tolist() == [0.0, 1.5, 1.0, 5.0]
    assert hidden_communication(log) == 1.0
    assert waiting(log).exposed_communication_s == 4.0 - 1.0 - 2 * 0.5


def test_waiting_for_the_rank_that_a_transfer_begins_with_is_told_from_waiting_for_it():
    """Ranks compute 1 and 4 s; a transfer of 2 s begins at 4 and hides a second of compute. Rank 0
    then has nothing to do from 2 to 6, of which 2 s wait for rank 1; rank 1 from 5 to 6."""
    tasks = graph(("c", ()), ("M", (0,)), ("c", ()), ("c", (1,)))
    seconds = np.array([[1.0, 4.0], [2.0, 2.0], [1.0, 1.0], [1.0, 1.0]])
    found = waiting(run(tasks, seconds, 0.0, rank_axis=0))
    assert found.ranks_s.tolist() == [2.0, 0.0]
    assert found.transfers_s.tolist() == [2.0, 1.0]
    assert found.collectives_s.tolist() == [0.0, 0.0]


def test_a_collective_on_the_compute_stream_waits_for_ranks_before_it_takes_part():
    """Compute 1 and 3 s, a collective of 2 s from 3 on; rank 1's last transfer outlasts it."""
    tasks = graph(("c", ()), ("C", ()), ("m", (1,)))
    found = waiting(run(tasks, np.array([[1.0, 3.0], [2.0, 2.0], [0.0, 4.0]]), 0.0, rank_axis=0))
    assert found.ranks_s.tolist() == [2.0, 0.0]
    assert found.collectives_s.tolist() == [2.0, 2.0]
    assert found.exposed_communication_s.tolist() == [2.0, 6.0]


def test_ranks_waited_for_before_a_transfer_that_compute_hides_are_no_waiting():
    """Rank 0 is ready for the transfer at 1, rank 1 at 3, and rank 0 computes until 6 meanwhile."""
    tasks = graph(("c", ()), ("M", (0,)), ("c", ()))
    seconds = np.array([[1.0, 3.0], [2.0, 2.0], [5.0, 2.0]])
    found = waiting(run(tasks, seconds, 0.0, rank_axis=0))
    assert (found.ranks_s.tolist(), found.transfers_s.tolist()) == ([0.0, 0.0], [0.0, 0.0])


def test_a_graph_of_one_stream_exposes_all_its_communication_and_hides_none():
    for letter, exposed in (("c", 0.0), ("m", 1.0)):
        log = once([(letter, ())], [1])
        assert (waiting(log).exposed_communication_s, hidden_communication(log)) == (exposed, 0.0)


def test_gaps_are_not_exposed_but_transfers_after_the_last_kernel_and_collectives_are():
    """Compute 0-1, a gap, a collective 2-3; a transfer that begins at 1 and ends 6 s later."""
    log = once([("c", ()), ("C", ()), ("m", (0,))], [1, 1, 6], 1.0)
    assert log.span_s == 7.0
    assert waiting(log).exposed_communication_s == 1.0 + (7.0 - 3.0)
    only = once([("m", ())], [2])
    assert waiting(only).exposed_communication_s == 2.0


@pytest.mark.parametrize("seed", range(5))
def test_the_span_lies_between_the_longest_stream_and_the_sum_of_both(seed):
    tasks, seconds = drawn(seed)
    log = once(tasks, seconds)
    compute = sum(s for s, (letter, _) in zip(seconds, tasks, strict=True) if letter == "c")
    assert max(compute, seconds.sum() - compute) - 1e-9 <= log.span_s <= seconds.sum() + 1e-9
    assert waiting(log).exposed_communication_s == pytest.approx(log.span_s - compute)


@pytest.mark.parametrize("seed", range(5))
def test_the_critical_path_and_its_gaps_sum_to_the_span(seed):
    tasks, seconds = drawn(seed)
    log = once(tasks, seconds, 0.25)
    path, gaps_s = critical_path(log)
    assert seconds[path].sum() + gaps_s == pytest.approx(log.span_s)


def test_the_critical_path_passes_through_the_slowest_rank():
    """Rank 1 keeps the exchange waiting; its own stream is what the end rests on, with one gap."""
    tasks = graph(("c", ()), ("M", (0,)), ("c", (1,)), ("c", ()))
    seconds = np.array([[1.0, 3.0], [2.0, 2.0], [1.0, 1.0], [1.0, 1.0]])
    path = critical_path(run(tasks, seconds, 0.5, rank_axis=0))
    assert path == ([0, 1, 2, 3], 0.5)


def test_two_streams_slow_each_other_only_while_both_run():
    """Compute takes 2 s alone and 4 beside: over at 4. The transfer takes 6 s beside, so that two
    thirds of it are done by then; the rest of its 3 s alone is 1."""
    (log,) = run_side_by_side(
        graph(("c", ()), ("m", ())),
        alone_s=np.array([[2.0, 3.0]]),
        beside_s=np.array([[4.0, 6.0]]),
    )
    assert log.start_s.tolist() == [0.0, 0.0]
    assert log.end_s.tolist() == [4.0, pytest.approx(5.0)]


def test_what_is_left_of_a_task_by_rounding_is_nothing():
    """5e-11 of 100 s is less than 1e-12 of the time that has passed."""
    seconds = np.array([[100.0], [100.0 + 5e-11], [100.0 + 5e-9]])
    logs = run_side_by_side(graph(("c", ())), alone_s=seconds, beside_s=seconds)
    assert [float(log.end_s[0]) for log in logs] == [100.0, 100.0, 100.0 + 5e-9]


def test_streams_that_do_not_slow_each_other_run_as_by_their_order():
    tasks = [("m", ()), ("c", ()), ("m", (1,)), ("c", (0,)), ("c", (2,)), ("m", (4,))]
    seconds = np.array([3.0, 1.0, 4.0, 2.0, 1.5, 0.0])
    (log,) = run_side_by_side(graph(*tasks), alone_s=seconds[None], beside_s=seconds[None])
    assert log.end_s.tolist() == pytest.approx(once(tasks, seconds).end_s.tolist())


def test_both_durations_of_every_task_are_needed():
    with pytest.raises(ValueError, match="test: 1 and 2 durations for 2 tasks"):
        run_side_by_side(
            graph(("c", ()), ("m", ())), alone_s=np.ones((1, 1)), beside_s=np.ones((1, 2))
        )


def test_a_transfer_ends_on_both_ranks_when_the_slower_is_through():
    """Rank 0 computes for 2 s, rank 1 for 3; each then sends for 1 s, which ends at 4 on both. The
    product that runs on rank 0 meanwhile takes 2 s beside its transfer and 1 alone: half of it is
    done when the transfer is through at 3, the rest takes 0.5."""
    tasks = graph(("c", ()), ("M", (0,)), ("c", ()))
    fast, slow = run_side_by_side(
        tasks,
        alone_s=np.array([[2.0, 1.0, 1.0], [3.0, 1.0, 1.0]]),
        beside_s=np.array([[2.0, 1.0, 2.0], [3.0, 1.0, 2.0]]),
    )
    assert fast.start_s.tolist() == [0.0, 2.0, 2.0]
    assert fast.end_s.tolist() == [2.0, 4.0, pytest.approx(3.5)]
    assert slow.end_s.tolist() == [3.0, 4.0, pytest.approx(4.5)]


def test_a_rank_that_gains_in_each_replay_waits_for_what_it_gained(monkeypatch):
    """Rank 0 computes for 2 s, rank 1 for 3, each then for 5 s beside a transfer of 1 s. Rank 0
    begins each replay a second earlier against rank 1 than the one before, until 4 s earlier: then
    its transfer, issued at 2, ends at 8 with rank 1's, and no longer beside its compute, over at
    7. The replay after that is the last."""
    begun = []

    def counted(*args, begins_s, **seconds):
        begun.append(begins_s.tolist())
        return run_side_by_side(*args, begins_s=begins_s, **seconds)

    monkeypatch.setattr(timeline, "run_side_by_side", counted)
    fast, slow = replay_side_by_side(
        graph(("c", ()), ("M", (0,)), ("c", ())),
        alone_s=(seconds := np.array([[2.0, 1.0, 5.0], [3.0, 1.0, 5.0]])),
        beside_s=seconds,
    )
    assert (fast.start_s.tolist(), fast.end_s.tolist()) == ([0.0, 2.0, 2.0], [2.0, 8.0, 7.0])
    assert (slow.start_s.tolist(), slow.end_s.tolist()) == ([0.0, 3.0, 3.0], [3.0, 4.0, 8.0])
    assert begun == [[0.0, float(earlier)] for earlier in range(5)]
    # A hundredth of a second at a time it would take 400 of them.
    begun.clear()
    seconds[0, 0] = 2.99
    replay_side_by_side(graph(("c", ()), ("M", (0,)), ("c", ())), alone_s=seconds, beside_s=seconds)
    assert len(begun) == 200
