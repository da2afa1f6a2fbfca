"""Chunks and pairs keep the published order, and every operator runs exactly once."""

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from reference_model.config import load_model_config
from simulator.execution.timeline import hidden_communication, run, waiting
from simulator.workload.chunk import (
    FORWARD,
    INPUT_GRAD,
    RECOMPUTE,
    WEIGHT_GRAD,
    deferred,
    lower_chunk,
    lower_weights,
    operators_of,
    pair_slots,
)
from simulator.workload.load import Load
from simulator.workload.recorded import recorded_trace
from simulator.workload.task_graph import Stream

LOAD = Load(
    tokens=4096, context=4096, sequences=1, expert_rows=32768, received_rows=30679, local_experts=4,
    group_tokens=4096, group_sequences=1,
)  # fmt: skip
FIRST = ("embedding", "dense", "dense", "dense", "moe")
MIDDLE = ("moe",) * 4
LAST = ("moe", "head", "mtp")


@pytest.fixture(scope="module")
def operators():
    return operators_of(recorded_trace(load_model_config("deepseek_v3"), "train"), LOAD)


def names(graph):
    return Counter((operator.phase, operator.name) for operator in graph.task_operators())


def pairs(graph):
    """(task, its operator) in order."""
    return list(zip(graph.tasks, graph.task_operators(), strict=True))


def expected(operators, *, forward=(), backward=(), phases=(INPUT_GRAD, WEIGHT_GRAD)):
    found = Counter()
    for kind in forward:
        found.update((o.phase, o.name) for o in operators(kind, FORWARD))
    for kind in backward:
        for phase in phases:
            found.update((o.phase, o.name) for o in operators(kind, phase))
    return found


@pytest.mark.parametrize("forward", [(), FIRST, MIDDLE, LAST])
@pytest.mark.parametrize("backward", [(), FIRST, MIDDLE, LAST])
def test_every_operator_of_a_chunk_or_pair_runs_once(operators, forward, backward):
    graph = lower_chunk("pair", operators, forward=forward, backward=backward)
    assert names(graph) == expected(operators, forward=forward, backward=backward)


def test_an_input_only_chunk_and_its_weight_chunk_are_a_full_backward(operators):
    immediate = ("head.proj", "attention.kv_b_proj")
    inputs = lower_chunk("I", operators, backward=LAST, defer_weights=True, immediate=immediate)
    weights = lower_weights("W", operators, LAST, immediate=immediate)
    assert names(inputs) + names(weights) == expected(operators, backward=LAST)
    late = {operator.name for operator in weights.task_operators()}
    assert not late & {"head.proj.weight_grad", "attention.kv_b_proj.weight_grad"}
    assert "experts.down_proj.transpose_grad" in late


def test_what_is_deferred_leaves_out_all_operators_of_a_matrix(operators):
    every = operators("moe", WEIGHT_GRAD)
    kept = {operator.name for operator in deferred(every, {"experts.down_proj"})}
    assert {o.name for o in every} - kept == {
        "experts.down_proj.transpose_grad",
        "experts.down_proj.weight_grad",
    }


def compute_blocks(graph):
    """Runs of (phase, segment) on the compute stream, in order."""
    blocks = []
    for task, operator in pairs(graph):
        if task.stream is Stream.COMPUTE:
            block = (operator.phase, operator.segment)
            if not blocks or blocks[-1] != block:
                blocks.append(block)
    return blocks


def test_a_pair_computes_in_the_published_order(operators):
    graph = lower_chunk("pair", operators, forward=MIDDLE, backward=MIDDLE)
    assert compute_blocks(graph) == 4 * [
        (FORWARD, "attention"),
        (INPUT_GRAD, "mlp"),
        (WEIGHT_GRAD, "mlp"),
        (FORWARD, "mlp"),
        (INPUT_GRAD, "attention"),
        (WEIGHT_GRAD, "attention"),
    ]


def test_a_pair_communicates_in_the_published_order(operators):
    graph = lower_chunk("pair", operators, forward=MIDDLE, backward=MIDDLE)
    kinds = [
        (operator.phase, operator.kind)
        for task, operator in pairs(graph)
        if task.stream is Stream.COMMUNICATION and operator.kind in ("dispatch", "combine")
    ]
    assert kinds == 4 * [
        (INPUT_GRAD, "dispatch"),
        (FORWARD, "dispatch"),
        (INPUT_GRAD, "combine"),
        (FORWARD, "combine"),
    ]


MOE, OTHER = True, False


@pytest.mark.parametrize(
    ("forward", "backward", "slots"),
    [
        ([MOE] * 4, [MOE] * 4, [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ([MOE] * 3, [MOE] * 4, [(0, 0), (1, 1), (2, 2), (None, 3)]),
        # embedding + dense, 2 dense, moe beside mtp, head, moe: by number the last would be alone.
        ([OTHER] * 3 + [MOE], [MOE, OTHER, MOE], [(0, 0), (1, 1), (2, None), (3, 2)]),
        # moe, head, mtp beside moe, 2 dense, dense + embedding.
        ([MOE, OTHER, MOE], [MOE] + [OTHER] * 3, [(0, 0), (1, 1), (2, 2), (None, 3)]),
        # moe, head beside head, moe.
        ([MOE, OTHER], [OTHER, MOE], [(None, 0), (0, 1), (1, None)]),
        ([], [MOE, OTHER], [(None, 0), (None, 1)]),
        ([], [], []),
    ],
)
def test_moe_layers_share_slots_with_moe_layers_and_others_with_what_would_be_alone(
    forward, backward, slots
):
    assert pair_slots(forward, backward) == tuple(slots)


def orders(rows, columns, placed=()):
    """Every way to place so many units of either chunk in slots, each chunk in its order."""
    i, j = (sum(slot[side] is not None for slot in placed) for side in (0, 1))
    if (i, j) == (rows, columns):
        yield placed
    for forward, backward in ((i, j), (i, None), (None, j)):
        if forward in (None, *range(rows)) and backward in (None, *range(columns)):
            yield from orders(rows, columns, (*placed, (forward, backward)))


def test_no_other_order_leaves_fewer_layers_alone_or_pairs_more_of_them():
    def worth(slots, forward, backward):
        talks = [
            [
                side is not None and units[side]
                for side, units in zip(slot, (forward, backward), strict=True)
            ]
            for slot in slots
        ]
        alone = sum(any(t) for t, slot in zip(talks, slots, strict=True) if None in slot)
        return alone, -sum(all(t) for t in talks), len(slots)

    for rows, columns in product(range(4), repeat=2):
        ways = list(orders(rows, columns))
        for forward in product((MOE, OTHER), repeat=rows):
            for backward in product((MOE, OTHER), repeat=columns):
                best = min(worth(slots, forward, backward) for slots in ways)
                assert worth(pair_slots(forward, backward), forward, backward) == best


SEGMENTS = {
    "embedding": ("embedding",), "dense": ("attention", "mlp"), "head": ("head",),
    "moe": ("attention", "dispatch", "mlp", "combine"),
    "mtp": ("attention", "dispatch", "mlp", "combine"),
}  # fmt: skip


def one_operator_each(operators):
    """The layers' segments with one operator in each; embedding has no input gradient."""
    (some, *_) = operators("dense", FORWARD)

    def lookup(kind, phase):
        left_out = {WEIGHT_GRAD: ("dispatch", "combine"), INPUT_GRAD: ("embedding",)}
        if phase == RECOMPUTE:
            return []
        segments = [s for s in SEGMENTS[kind] if s not in left_out.get(phase, ())]
        return [replace(some, name=f"{kind}.{s}", phase=phase, segment=s) for s in segments]

    return lookup


def in_seconds(graph):
    """Span, hidden and exposed communication where every operator takes a second."""
    log = run(graph, np.ones(len(graph.tasks)), 0.0)
    return log.span_s, hidden_communication(log), waiting(log).exposed_communication_s


def test_a_pair_of_the_first_and_the_last_stage_hides_all_its_communication(operators):
    """One second for every operator: 9 forward and 10 backward ones compute in 19 s. Layers paired
    by number would leave the forward MoE layer alone, 2 s more and its 2 s exposed."""
    graph = lower_chunk("pair", one_operator_each(operators), forward=FIRST, backward=LAST)
    assert in_seconds(graph) == (19.0, 6.0, 0.0)
    assert graph.layers == (
        "mtp B0", "embedding+dense F0", "head B1", "dense F1", "dense F2", "moe B2", "moe F3",
    )  # fmt: skip


def test_a_head_hides_both_transfers_of_the_forward_beside_it(operators):
    """Input gradient under dispatch, weight gradient under combine: 4 forward, 2 head and 4 moe
    operators of a second in 10 s. With both after the forward's mlp it would be 11 s."""
    graph = lower_chunk(
        "pair", one_operator_each(operators), forward=("moe", "moe"), backward=("moe", "head")
    )
    assert in_seconds(graph) == (10.0, 6.0, 0.0)


def waits(graph):
    """{(layer, phase, segment): what its first task on a stream waits for}, as the same triples."""

    def place(task):
        operator = graph.operators[task.operator]
        return graph.layers[task.layer], operator.phase, operator.segment

    found = {}
    for task in graph.tasks:
        found.setdefault(place(task), set()).update(
            place(graph.tasks[earlier]) for earlier in task.depends_on
        )
    return found


def test_a_pair_waits_as_the_published_arrows_say(operators):
    found = waits(lower_chunk("pair", operators, forward=MIDDLE, backward=MIDDLE))
    f0, f1, b0, b1 = "moe F0", "moe F1", "moe B0", "moe B1"
    assert found[f0, FORWARD, "dispatch"] == {(f0, FORWARD, "attention")}
    assert (f0, FORWARD, "dispatch") in found[f0, FORWARD, "mlp"]
    assert found[f0, FORWARD, "combine"] == {(f0, FORWARD, "mlp")}
    assert found[f1, FORWARD, "attention"] == {(f0, FORWARD, "combine")}
    assert found[b0, INPUT_GRAD, "mlp"] == {(b0, INPUT_GRAD, "combine")}
    assert found[b0, INPUT_GRAD, "dispatch"] == {(b0, INPUT_GRAD, "mlp")}
    assert (b0, INPUT_GRAD, "dispatch") in found[b0, INPUT_GRAD, "attention"]
    assert found[b1, INPUT_GRAD, "combine"] == {(b0, INPUT_GRAD, "attention")}


def test_the_shared_expert_starts_before_the_dispatch_has_ended(operators):
    graph = lower_chunk("F", operators, forward=("moe",))
    first, operator = next(pair for pair in pairs(graph) if pair[1].segment == "mlp")
    assert operator.name == "shared_experts.gate_up_proj"
    assert all(graph.tasks[i].part != "dispatch" for i in first.depends_on)


def test_a_chunk_alone_is_overlapped_only_under_its_own_transfers(operators):
    forward = lower_chunk("F", operators, forward=MIDDLE)
    assert {task.part for task in forward.tasks if task.overlapped} <= {"mlp"}
    inputs = lower_chunk("I", operators, backward=MIDDLE, defer_weights=True)
    assert not any(task.overlapped for task in inputs.tasks)
    weights = lower_weights("W", operators, MIDDLE, immediate=())
    assert not any(task.overlapped for task in weights.tasks)


def test_a_layer_that_is_recomputed_runs_its_forward_before_its_backward(operators):
    whole = operators_of(
        recorded_trace(load_model_config("deepseek_v3"), "train", recompute="layer"), LOAD
    )
    graph = lower_chunk("pair", whole, forward=("moe",), backward=("moe",))
    order = [(o.phase, o.segment) for o in graph.task_operators() if o.phase != FORWARD]
    assert list(dict.fromkeys(order)) == [
        ("recompute", "attention"), ("recompute", "dispatch"), ("recompute", "mlp"),
        ("input_grad", "combine"), ("input_grad", "mlp"), ("input_grad", "dispatch"),
        ("weight_grad", "mlp"), ("input_grad", "attention"), ("weight_grad", "attention"),
    ]  # fmt: skip
    tasks = pairs(graph)
    first = {
        phase: next(i for i, (_, o) in enumerate(tasks) if (o.phase, o.segment) == phase)
        for phase in dict.fromkeys(order)
    }
    last = {
        phase: max(i for i, (_, o) in enumerate(tasks) if (o.phase, o.segment) == phase)
        for phase in dict.fromkeys(order)
    }
    for before, after in (
        (("recompute", "attention"), ("recompute", "dispatch")),
        (("recompute", "dispatch"), ("recompute", "mlp")),
        (("recompute", "mlp"), ("input_grad", "combine")),
    ):
        assert last[before] in tasks[first[after]][0].depends_on
    assert not any(task.overlapped for task, o in tasks if o.phase == "recompute")
    assert not any(
        o.phase == "recompute" for _, o in pairs(lower_chunk("F", whole, forward=("moe",)))
    )
