"""Ranks wait at every all-to-all for the last of their group; worked out by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from reference_model.trace import Operator
from simulator.execution import timeline, training_ranks
from simulator.execution.training_ranks import (
    Ranks,
    RowsOfLayers,
    Series,
    action_seconds,
    blocks_of,
    durations,
    group_spans,
    pair_waiting,
    series_of,
)
from simulator.workload.skew import DrawnRows
from simulator.workload.task_graph import Stream, Task, TaskGraph

GEMM, DISPATCH, ATTENTION = (
    Operator(
        name=kind, kind=kind, phase="forward", segment=segment, dtype="bfloat16",
        out_dtype="bfloat16", sizes=(("columns", 1), ("rows", 1)), recompute=False,
        accumulate=False,
    )
    for kind, segment in (
        ("gemm", "mlp"), ("dispatch", "dispatch"), ("attention_core", "attention"),
    )
)  # fmt: skip


def chain(*operators, layers=1):
    """Operators one after the other, a dispatch on the communication stream; a layer for each
    dispatch where there are several."""
    tasks = []
    layer = 0
    for number, operator in enumerate(operators):
        moves = operator.kind == "dispatch"
        stream = Stream.COMMUNICATION if moves else Stream.COMPUTE
        needs = (number - 1,) if number else ()
        tasks.append(Task(number, stream, layer, 0, operator.segment, False, moves, needs))
        layer = min(layers - 1, layer + moves)
    return TaskGraph("chain", tuple(f"moe F{n}" for n in range(layers)), operators, tuple(tasks))


def blocks(graph, seconds, *, clocked=0.0, more=0.0, fewer=0.0, draws=1):
    count = len(graph.tasks)
    return blocks_of(
        graph,
        np.tile(np.array(seconds, dtype=float)[:, None], draws),
        np.zeros(draws),
        clocked=np.broadcast_to(clocked, count) * 1.0,
        more=np.broadcast_to(more, count) * 1.0,
        fewer=np.broadcast_to(fewer, count) * 1.0,
        layers=[(("moe",), number) for number in range(len(graph.layers))],
    )


def ranks(clock, *, sd=0.0, most=None, lasting=False, work_sd=0.0, draws=1):
    """One group, its clocks given, alike in every draw."""
    clock = np.array(clock, dtype=np.float32).reshape(1, 1, -1, 1)
    clock = np.broadcast_to(clock, (*clock.shape[:3], draws))
    rows = DrawnRows(np.full(draws, sd), most=None if most is None else np.full(draws, most))
    return Ranks(
        clock,
        np.ones_like(clock),
        rows,
        lasting,
        np.full(draws, work_sd),
        seed=0,
        places=clock.shape[2],
        teams={},
    )


def span(one, group):
    return group_spans(one, [group], [0])[0][0, 0]


def test_three_ranks_wait_for_the_slowest_before_a_transfer_and_once_more_after_it():
    work = blocks(chain(GEMM, DISPATCH, GEMM), [1.0, 2.0, 3.0], clocked=[1.0, 0.0, 0.5])
    # Compute ends at 1.0, 1.1 and 1.2; the transfer runs from 1.2 to 3.2 on all; half of the last
    # 3.0 go with the clock: 3.0, 3.15 and 3.3 more.
    assert span(work, ranks([1.0, 1.1, 1.2]))[:, 0] == pytest.approx([6.5, 6.5], rel=1e-6)
    log = timeline.run(
        work.graph,
        np.array([[1.0, 1.1, 1.2], [2.0] * 3, [3.0, 3.15, 3.3]]),
        0.0,
        rank_axis=0,
    )
    assert (log.start_s - log.ready_s)[1] == pytest.approx([0.2, 0.1, 0.0])
    assert log.end_s[2] == pytest.approx([6.2, 6.35, 6.5])


def test_a_chunk_without_tasks_takes_no_time_on_any_group():
    found = group_spans(blocks(chain(), []), [ranks([1.0, 1.1], draws=3)], [0])[0]
    assert found.shape == (1, 1, 2, 3)
    assert not found.any()


def test_ranks_that_are_alike_are_one_rank():
    graph = chain(GEMM, DISPATCH, ATTENTION, DISPATCH, GEMM)
    work = blocks(graph, [1.0, 2.0, 0.5, 2.0, 1.0], clocked=0.7, more=0.4, fewer=0.3)
    folded = timeline.run(graph, np.array([1.0, 2.0, 0.5, 2.0, 1.0]), 0.0).span_s
    assert folded == 6.5
    for alike in (1, 64):
        assert span(work, ranks([1.0] * alike))[:, 0].tolist() == [folded, folded]


def test_a_slow_machine_slows_kernels_and_no_transfer():
    work = blocks(chain(GEMM, DISPATCH), [1.0, 2.0], clocked=[0.5, 0.0])
    group = ranks([1.0, 1.0])
    slow = np.array([1.0, 1.1], dtype=np.float32).reshape(1, 1, 2, 1)
    slower = replace(group, slow=slow, lasting=False)
    assert span(work, slower)[:, 0] == pytest.approx([3.1, 3.1], rel=1e-6)
    assert span(work, slower.without_slower_gpus())[:, 0] == pytest.approx([3.0, 3.0], rel=1e-6)


def test_the_busy_rank_sets_the_pace_of_every_layer():
    # Two layers; of 4 ranks one gets 1.3 of the mean and takes 30% longer for its products.
    graph = chain(GEMM, DISPATCH, GEMM, layers=2)
    work = blocks(graph, [1.0, 2.0, 1.0], more=[1.0, 0.0, 1.0], fewer=[1.0, 0.0, 1.0])
    assert span(work, ranks([1.0] * 4, most=1.3))[:, 0] == pytest.approx([4.6, 4.6], rel=1e-6)
    # 0.9 of the rows on the others, which nobody waits for.
    fewer = blocks(graph, [1.0, 2.0, 1.0], more=0.0, fewer=[1.0, 0.0, 1.0])
    assert span(fewer, ranks([1.0] * 4, most=1.3))[:, 0] == pytest.approx([4.0, 4.0], rel=1e-6)


def test_where_a_transfer_is_hidden_another_busy_rank_in_each_layer_hurts_less_than_one():
    """Work of the layer before the barrier is hidden under a long transfer: the busy rank of the
    second layer has caught up."""
    tasks = (
        Task(1, Stream.COMMUNICATION, 0, 0, "dispatch", False, True),
        Task(0, Stream.COMPUTE, 0, 0, "mlp", False, False),
        Task(2, Stream.COMPUTE, 1, 0, "mlp", False, False),
        Task(3, Stream.COMMUNICATION, 1, 0, "dispatch", False, True, (2,)),
    )
    graph = TaskGraph("hidden", ("moe F0", "moe F1"), (GEMM, DISPATCH, GEMM, DISPATCH), tasks)
    work = blocks(graph, [1.0, 1.0, 1.0, 1.0], more=[0.0, 1.0, 1.0, 0.0], draws=400)
    every = span(work, ranks([1.0] * 64, most=1.5, draws=400))
    # Another rank of 64 in the second layer but for one in 64: 2.5 + 1, else 3.0 + 1.
    assert set(np.round(np.unique(every), 4).tolist()) <= {3.5, 4.0}
    assert every.mean() == pytest.approx(3.5 + 0.5 / 64, abs=0.01)


def test_longer_documents_lengthen_attention_only():
    work = blocks(chain(ATTENTION, DISPATCH), [1.0, 1.0], draws=300)
    many = span(work, ranks([1.0] * 64, work_sd=0.1, draws=300))
    # The longest of 64 normals lies 2.4 sd above the mean.
    assert many.mean() == pytest.approx(2.0 + 0.1 * 2.4, abs=0.02)
    other = blocks(chain(GEMM, DISPATCH), [1.0, 1.0], draws=300)
    assert span(other, ranks([1.0] * 64, work_sd=0.1, draws=300)) == pytest.approx(2.0)


def test_what_chunks_have_in_common_is_told_from_chance():
    # Of two groups the patterns are 9, 11 and 19, 21: means 10 and 20, and (a - b)^2 / 2 = 2 of
    # chance in each, 1 in its mean. Means vary by 50, of which 49 are no chance.
    spans = np.array([[[9.0], [11.0]], [[19.0], [21.0]]]).reshape(2, 1, 2, 1)
    found = series_of(spans.astype(np.float32), [3, 5])
    assert found.places == {3: 0, 5: 1}
    drawn = 5 * np.sqrt(49 / 50)
    assert found.mean[:, 0, 0] == pytest.approx([15 - drawn, 15 + drawn])
    assert found.spread[:, 0, 0] == pytest.approx([np.sqrt(2)] * 2)
    lasting = series_of(spans[:, :, :1].astype(np.float32), [3, 5])
    assert (lasting.mean[:, 0, 0].tolist(), lasting.spread.max()) == ([9.0, 19.0], 0.0)


def test_every_action_takes_its_chunks_time_more_or_less():
    mean = np.array([10.0, 20.0]).reshape(2, 1, 1)
    series = {
        "F": Series({0: 0, 1: 1}, mean, np.ones_like(mean)),
        "B": Series.known(mean, [1]),
    }
    keys = [["F"] * 200, ["F", "B"]]
    seconds = action_seconds(series, keys, rng=np.random.default_rng(0))
    assert seconds.shape == (202, 1, 1)
    assert set(seconds[:200].ravel().tolist()) == {9.0, 11.0}
    assert 60 < (seconds[:200] == 9.0).sum() < 140
    assert seconds[200, 0, 0] in (19.0, 21.0)
    assert seconds[201, 0, 0] == 10.0


def test_gpus_that_share_experts_share_their_rows_and_those_that_share_layers_their_work():
    """Eight ranks: two groups of two places of experts, each two GPUs wide."""
    group = replace(ranks([1.0] * 8, sd=0.1, work_sd=0.1), places=2, teams={"expert_tensor": 2})
    work = blocks(chain(GEMM, DISPATCH), [1.0, 1.0], more=1.0, fewer=1.0)
    above, below = RowsOfLayers(work, group, [(0, 0)]).of(0)
    rows = (above + below)[:, 0, 0, 0]
    assert rows[0::2].tolist() == rows[1::2].tolist()
    # What one place of a group gets, the other does not.
    assert (rows[0] + rows[2], rows[4] + rows[6]) == pytest.approx((0.0, 0.0), abs=1e-6)
    assert rows[0] != rows[4]

    pairs = replace(group, teams={"tensor": 2})
    attention = blocks(chain(ATTENTION), [1.0])
    rows = RowsOfLayers(attention, pairs, [(0, 0)])
    (took,) = durations(attention, pairs, [(0, 0)], rows)
    of_rank = took[:, 0, 0, 0].tolist()
    assert of_rank[0::2] == of_rank[1::2]
    assert len(set(of_rank)) == 4


def test_a_block_that_begins_with_a_collective_is_slower_by_its_kernels_alone():
    """A gather of 3 s and a product of 1 s, half of whose time goes with the clock."""
    gather = replace(GEMM, name="attention.q_latent.tensor_gather", kind="gather_tokens")
    graph = TaskGraph(
        "chain", ("moe F0",), (gather, GEMM),
        (Task(0, Stream.COMPUTE, 0, 0, "attention", False, True),
         Task(1, Stream.COMPUTE, 0, 0, "attention", False, False)),
    )  # fmt: skip
    work = blocks(graph, [3.0, 1.0], clocked=[0.0, 0.5])
    assert len(work.graph.tasks) == 1
    slower = ranks([1.2, 1.0])
    assert span(work, slower)[:, 0] == pytest.approx([4.1, 4.1], rel=1e-6)
    slow = replace(slower, slow=np.full((1, 1, 2, 1), 1.5, dtype=np.float32))
    # (3 + 1 + 0.2 x 0.5) s, of which a quarter, the kernels' share, takes half as long again.
    assert span(work, slow)[:, 0] == pytest.approx([4.1 * 1.125] * 2, rel=1e-6)


def test_waiting_of_a_pair_is_that_before_its_all_to_alls_by_slot_and_by_rank(monkeypatch):
    """Two GPUs wait for 1 to 4 s in two draws before the first kernel of a dispatch, not before its
    second, and for two to four times that before the all-to-alls behind it. Its kernels take
    50 and 10 s, the others 20 to 40 s. Compute, which waits longest, does not count."""
    parts = ["compute", *("dispatch", "dispatch", "combine", "dispatch", "combine")]
    layers = [0, 0, 0, 0, 1, 1]
    tasks = [
        Task(
            operator=0,
            stream=Stream.COMPUTE if part == "compute" else Stream.COMMUNICATION,
            layer=layer,
            micro_batch=0,
            part=part,
            overlapped=True,
            collective=part != "compute",
        )
        for part, layer in zip(parts, layers, strict=True)
    ]

    def pair(tasks):
        return SimpleNamespace(graph=TaskGraph("pair", ("moe",) * 2, (), tuple(tasks)), gap_s=None)

    asked = []

    def each(graph, durations, gap, *, axes, rank_axis, teams):
        asked.append((list(durations), axes, rank_axis, teams))
        one = np.array([[[[1.0, 2.0]]], [[[3.0, 4.0]]]])
        of_tasks = [(99, 5), (1, 50), (0, 10), (2, 20), (3, 30), (4, 40)]
        for times, took in of_tasks[: len(graph.tasks)]:
            yield 7.0 + 0 * one, 7.0 + times * one, None, 7.0 + times * one + took

    monkeypatch.setattr(timeline, "each", each)
    monkeypatch.setattr(training_ranks, "RowsOfLayers", lambda pair, ranks, places: places)
    monkeypatch.setattr(
        training_ranks, "durations", lambda pair, ranks, places, rows: [places, rows]
    )
    ranks = SimpleNamespace(patterns=1, teams={"tensor": 1})
    found = pair_waiting(pair(tasks), ranks, (8, 0), group=2, draws=2)
    assert asked == [([([(8, 0)],) * 2] * 2, (2, 1, 1, 2), 0, {"tensor": 1})]
    # Ten times 1.5 and 3.5 s on average over draws; 2.5 s over ranks.
    assert found.by_rank_s.tolist() == [15.0, 35.0]
    assert found.notify_s.tolist() == [[2.5, 5.0, 7.5, 10.0]]
    assert found.kernel_s.tolist() == [[10.0, 20.0, 30.0, 40.0]]
    # Of one rank 2.5, 5, 7.5 and 10 s on average over four all-to-alls: 0.3 steps of 2.5 s inside.
    assert found.mean_ends_s == pytest.approx((2.5 + 0.75, 10 - 0.75), rel=1e-6)
    # Three all-to-alls are of no slots of four.
    some = pair_waiting(pair(tasks[:-1]), ranks, (8, 0), group=2, draws=2)
    assert some.notify_s.tolist() == [[2.5, 5.0, 7.5]]
