"""The orders of prefill and decode are the published ones, and every operator runs exactly once."""

import dataclasses
from collections import Counter
from itertools import product

import pytest

from reference_model.trace import TRACE_FOLDER, load_trace
from simulator.scenario.serving import TensorParallel
from simulator.workload.iteration import (
    WHOLE_BATCH,
    WIRES,
    lower_step,
    split_layer,
    with_shared_added,
)
from simulator.workload.iteration_operators import layer_operators
from simulator.workload.load import Load
from simulator.workload.task_graph import Stream

WHOLE = TensorParallel()
LOAD = Load(
    tokens=64, sequences=64, context=512, expert_rows=512, received_rows=300, local_experts=2,
    group_tokens=64, group_sequences=64,
)  # fmt: skip
KINDS = {kind: kind for kind in ("embedding", "dense", "moe", "mtp", "head")}
KINDS |= {"mtp_next": "mtp", "mtp_head": "head"}


def split(job, *, overlap="two_micro_batches", tp=1, expert_tp=1):
    trace = load_trace(TRACE_FOLDER / f"deepseek_v3.{job}.jsonl")
    parallel = TensorParallel(
        attention=tp, experts=expert_tp, shared_expert=expert_tp, dense=expert_tp, vocabulary=tp
    )
    load = dataclasses.replace(LOAD, group_tokens=64 * tp, group_sequences=64 * tp)
    if expert_tp > 1:
        # 512 rows of experts are 64 tokens of all GPUs, 8 copies each.
        load = dataclasses.replace(load, received_rows=64)
    layers = {
        kind: split_layer(
            recorded,
            layer_operators(trace, recorded, load, parallel),
            low_latency=job == "decode" and expert_tp == 1,
            expert_parallel=expert_tp == 1,
            shared_gathered=expert_tp > 1,
        )
        for kind, recorded in KINDS.items()
    }
    if overlap != "two_micro_batches":
        return layers
    return {kind: with_shared_added(layer) for kind, layer in layers.items()}


def micro_batches(kind, overlap):
    if kind not in ("moe", "mtp", "mtp_next"):
        return (WHOLE_BATCH,)
    return (0, 1) if overlap == "two_micro_batches" else (0,)


def plan(job, overlap, *, moe_layers=3, drafts=0, tp=1, expert_tp=1):
    layers = split(job, overlap=overlap, tp=tp, expert_tp=expert_tp)
    return lower_step(
        job,
        {(kind, n): layers[kind] for kind in layers for n in micro_batches(kind, overlap)},
        dense_layers=1,
        moe_layers=moe_layers,
        draft_layers=drafts,
        head=True,
        decode=job == "decode",
        overlap=overlap,
    )


def blocks(planned, stream):
    """Runs of tasks of one part, layer and micro-batch, in stream order."""
    result = []
    for task in planned.tasks:
        entry = (task.part, task.layer, task.micro_batch)
        if task.stream is stream and (not result or result[-1] != entry):
            result.append(entry)
    return result


def moe_blocks(planned, stream):
    first = planned.layers.index("moe")
    return [
        (part, layer - first, number)
        for part, layer, number in blocks(planned, stream)
        if planned.layers[layer] == "moe"
    ]


def test_decode_follows_the_published_order():
    order = moe_blocks(plan("decode", "two_micro_batches"), Stream.COMPUTE)
    start = order.index(("dispatch_send", 1, 0))  # a layer in the middle
    expected = []
    for one, other, attends in ((0, 1, 1), (1, 0, 2)):
        expected += [
            ("dispatch_send", 1, one),
            ("shared", 1, one),
            ("combine_receive", attends - 1, other),
            ("attention_0", attends, other),
            ("dispatch_receive", 1, one),
            ("experts", 1, one),
            ("combine_send", 1, one),
            ("attention_1", attends, other),
        ]
    assert order[start : start + len(expected)] == expected
    wires = moe_blocks(plan("decode", "two_micro_batches"), Stream.COMMUNICATION)
    assert wires[4:8] == [
        ("dispatch_wire", 1, 0),
        ("combine_wire", 1, 0),
        ("dispatch_wire", 1, 1),
        ("combine_wire", 1, 1),
    ]


def test_prefill_follows_the_published_order():
    planned = plan("prefill", "two_micro_batches")
    order = [
        (part.split("_")[0], layer, number)
        for part, layer, number in moe_blocks(planned, Stream.COMPUTE)
    ]
    order = [entry for place, entry in enumerate(order) if place == 0 or order[place - 1] != entry]
    start = order.index(("attention", 1, 1))
    assert order[start - 1 : start + 7] == [
        ("combine", 0, 1),
        ("attention", 1, 1),
        ("shared", 0, 0),
        ("combine", 0, 0),
        ("attention", 1, 0),
        ("experts", 1, 1),
        ("experts", 1, 0),
        ("shared", 1, 1),
    ]
    wires = moe_blocks(planned, Stream.COMMUNICATION)
    assert wires[4:8] == [
        ("dispatch_wire", 1, 1),
        ("dispatch_wire", 1, 0),
        ("combine_wire", 1, 1),
        ("combine_wire", 1, 0),
    ]


@pytest.mark.parametrize("job", ["prefill", "decode"])
@pytest.mark.parametrize("overlap", ["two_micro_batches", "shared_expert", "none"])
@pytest.mark.parametrize("tp", [1, 4])
@pytest.mark.parametrize("drafts", [0, 1, 2])
def test_every_operator_of_every_layer_runs_once_for_each_micro_batch(job, overlap, tp, drafts):
    drafts = drafts if job == "decode" else 0
    planned = plan(job, overlap, tp=tp, drafts=drafts)
    operators = split(job, overlap=overlap, tp=tp)
    wanted = Counter()
    for layer, kind in enumerate(planned.layers):
        for number in micro_batches(kind, overlap):
            wanted.update((layer, number, operator.name) for operator in operators[kind].operators)
    found = Counter(
        (task.layer, task.micro_batch, operator.name)
        for task, operator in zip(planned.tasks, planned.task_operators(), strict=True)
    )
    assert found == wanted
    places = {(task.layer, task.operator) for task in planned.tasks}
    assert len(places) == len(planned.tasks)
    for task in planned.tasks:
        travels = task.part in WIRES
        assert (task.stream is Stream.COMMUNICATION) == travels


def test_the_shared_experts_result_is_added_once_and_after_both_it_and_combine():
    for job, overlap in product(("prefill", "decode"), ("two_micro_batches", "shared_expert")):
        planned = plan(job, overlap)
        moe = split(job, overlap=overlap)["moe"].operators
        kernels = [place for place, operator in enumerate(moe) if operator.kind == "add"]
        # With one micro-batch prefill's combine adds it, as recorded: the shared expert is done.
        assert len(kernels) == (0 if (job, overlap) == ("prefill", "shared_expert") else 1)
        ended = {}
        for place, task in enumerate(planned.tasks):
            key = (task.layer, task.micro_batch)
            if task.part == "combine_receive":
                earlier = {"shared", "combine_wire"} - {part for k, part in ended if k == key}
                assert not earlier
            ended[key, task.part] = place


def test_a_transfer_waits_for_what_it_sends_and_is_waited_for_by_what_reads_it():
    planned = plan("decode", "two_micro_batches")
    tasks = planned.tasks
    for index, task in enumerate(tasks):
        if task.part not in WIRES:
            continue
        sent = task.part.replace("wire", "send")
        assert [tasks[i].part for i in task.depends_on] == [sent]
        readers = [later for later in tasks[index:] if index in later.depends_on]
        assert [r.part for r in readers] == [task.part.replace("wire", "receive")]
        assert readers[0].layer == task.layer
        assert readers[0].micro_batch == task.micro_batch


def test_without_expert_parallelism_tokens_are_gathered_and_nothing_is_sent():
    planned = plan("decode", "none", tp=8, expert_tp=8)
    parts = {task.part for task in planned.tasks}
    assert not parts & {"dispatch_send"}
    assert parts >= {"gather", "scatter", "dispatch_wire", "combine_wire"}
    dense = [task.part for task in planned.tasks if planned.layers[task.layer] == "dense"]
    order = [part for number, part in enumerate(dense) if part not in dense[:number]]
    assert order == [
        "gather", "attention_0", "attention_1", "scatter", "dense_gather", "dense", "dense_scatter",
    ]  # fmt: skip
    assert all(
        task.collective == (task.part in WIRES or "gather" in name or "scatter" in name)
        for task in planned.tasks
        for name in [planned.operators[task.operator].name]
    )


@pytest.mark.parametrize("job", ["prefill", "decode"])
@pytest.mark.parametrize("overlap", ["none", "shared_expert", "two_micro_batches"])
def test_a_split_shared_expert_runs_on_gathered_tokens_and_is_added_before_the_scatter(
    job, overlap
):
    planned = plan(job, overlap, tp=8, expert_tp=8)
    first = planned.layers.index("moe")
    order = []
    for task in planned.tasks:
        if task.layer == first and task.micro_batch == 0 and task.part not in order:
            order.append(task.part)
    assert "shared" not in order
    for earlier, later in (
        ("dispatch_wire", "shared_gathered"),
        ("shared_gathered", "experts"),
        ("experts", "combine_send"),
        ("combine_send", "combine_wire"),
    ):
        assert order.index(earlier) < order.index(later)


def test_gathered_tokens_are_cast_laid_out_and_summed_before_they_are_scattered():
    layer = split("decode", expert_tp=8)["moe"]
    chain = [
        (op.name, dict(op.sizes)["rows"])
        for op in layer.operators
        if op.segment in ("dispatch", "combine")
    ]
    assert chain == [
        ("moe.dispatch_wire", 64),
        ("moe.quantize_receive", 64),
        ("moe.dispatch_receive", 512),
        ("moe.sum_send", 512),
        ("moe.add_shared", 64),
        ("moe.combine_wire", 64),
    ]


@pytest.mark.parametrize("overlap", ["none", "shared_expert", "two_micro_batches"])
def test_a_gather_waits_for_the_attention_of_its_tokens(overlap):
    planned = plan("decode", overlap, expert_tp=8)
    for task in planned.tasks:
        if task.part == "dispatch_wire":
            waits = [planned.tasks[index] for index in task.depends_on]
            assert waits
            assert {(w.layer, w.micro_batch) for w in waits} == {(task.layer, task.micro_batch)}
            assert {w.part for w in waits} <= {"attention_1", "shared"}


def test_layers_of_one_kind_share_their_operators():
    planned = plan("decode", "two_micro_batches")
    assert planned.task_operators()[0].name == "embedding"
    of_layer = [
        [task.operator for task in planned.tasks if (task.layer, task.micro_batch) == (layer, 1)]
        for layer in (2, 3)
    ]
    assert [planned.layers[layer] for layer in (2, 3)] == ["moe", "moe"]
    assert of_layer[0] == of_layer[1]
    assert {task.overlapped for task in planned.tasks if task.micro_batch >= 0} == {True}
    assert not any(task.overlapped for task in plan("decode", "none").tasks)


def test_low_latency_transfers_need_a_decode_recording():
    trace = load_trace(TRACE_FOLDER / "deepseek_v3.prefill.jsonl")
    operators = layer_operators(trace, "moe", LOAD, WHOLE)
    with pytest.raises(ValueError, match="needs a decode trace"):
        split_layer("moe", operators, low_latency=True, expert_parallel=True, shared_gathered=False)
