"""The pass over a plan gives what the engine gives, and its bounds hold."""

import numpy as np
import pytest

from reference_model.trace import TRACE_FOLDER, load_trace
from simulator.execution.engine import execute
from simulator.execution.step_order import (
    critical_path,
    exposed_communication,
    run_order,
    task_order,
)
from simulator.scenario.serving import TensorParallel
from simulator.workload.iteration import WHOLE_BATCH, plan_step, split_layer, task_graph
from simulator.workload.iteration_operators import BatchLoad, layer_operators

WHOLE = TensorParallel(attention=1, experts=1, shared_expert=1, dense=1, vocabulary=1)
LOAD = BatchLoad(
    tokens=8, sequences=8, context=64, expert_rows=16, received_rows=16, active_experts=2,
    group_tokens=8, group_sequences=8,
)  # fmt: skip
KINDS = {kind: kind for kind in ("embedding", "dense", "moe", "mtp", "head")}
KINDS |= {"mtp_next": "mtp", "mtp_head": "head"}
GAP = 1e-6


def planned(job, overlap):
    trace = load_trace(TRACE_FOLDER / f"debug.{job}.jsonl")
    operators = {
        kind: split_layer(
            recorded,
            layer_operators(trace, recorded, LOAD, WHOLE),
            low_latency=job == "decode",
            expert_parallel=True,
            shared_gathered=False,
        )
        for kind, recorded in KINDS.items()
    }
    plan = plan_step(
        operators, dense_layers=1, moe_layers=3, draft_layers=2 if job == "decode" else 0,
        head=True, decode=job == "decode", overlap=overlap,
    )  # fmt: skip
    graph = task_graph(
        job, plan, {(kind, n): operators[kind] for kind in KINDS for n in (WHOLE_BATCH, 0, 1)}
    )
    return plan, graph


CASES = [
    (job, overlap)
    for job in ("prefill", "decode")
    for overlap in ("two_micro_batches", "shared_expert", "none")
]


def durations(plan, seed):
    return np.random.default_rng(seed).exponential(20e-6, size=len(plan.tasks))


@pytest.mark.parametrize(("job", "overlap"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_starts_and_ends_are_those_of_the_engine(job, overlap, seed):
    plan, graph = planned(job, overlap)
    seconds = durations(plan, seed)
    log = run_order(task_order(plan), seconds, gap_s=GAP)
    expected = execute(graph, seconds.tolist(), gap_s=GAP)
    np.testing.assert_allclose(log.start_s, expected.start_s, atol=1e-12)
    np.testing.assert_allclose(log.end_s, expected.end_s, atol=1e-12)


@pytest.mark.parametrize(("job", "overlap"), CASES)
def test_the_span_lies_between_the_longer_stream_and_the_sum_of_both(job, overlap):
    plan, _ = planned(job, overlap)
    seconds = durations(plan, 3)
    order = task_order(plan)
    log = run_order(order, seconds, gap_s=0.0)
    compute = seconds[np.array(order.compute)].sum()
    communication = seconds.sum() - compute
    assert max(compute, communication) <= log.span_s * (1 + 1e-12)
    assert log.span_s <= (compute + communication) * (1 + 1e-12)
    exposed = exposed_communication(order, log, gap_s=0.0)
    assert exposed == pytest.approx(log.span_s - compute)
    assert log.span_s <= run_order(order, 2 * seconds, gap_s=0.0).span_s


@pytest.mark.parametrize(("job", "overlap"), CASES)
def test_the_critical_path_and_its_gaps_sum_to_the_span(job, overlap):
    plan, _ = planned(job, overlap)
    order, seconds = task_order(plan), durations(plan, 5)
    log = run_order(order, seconds, gap_s=GAP)
    path = critical_path(order, log)
    assert seconds[list(path.tasks)].sum() + path.gaps_s == pytest.approx(log.span_s)


@pytest.mark.parametrize(("job", "overlap"), CASES)
def test_equal_ranks_are_one_rank_and_a_slow_one_sets_the_pace(job, overlap):
    plan, _ = planned(job, overlap)
    order, seconds = task_order(plan), durations(plan, 7)
    alone = run_order(order, seconds, gap_s=GAP)
    equal = run_order(order, np.repeat(seconds[:, None], 3, axis=1), gap_s=GAP)
    np.testing.assert_allclose(equal.end_s, alone.end_s[:, None].repeat(3, axis=1))
    slow = np.stack((seconds, 1.5 * seconds), axis=1)
    both = run_order(order, slow, gap_s=GAP)
    slowest = run_order(order, 1.5 * seconds, gap_s=GAP)
    assert both.span_s >= slowest.span_s * (1 - 1e-12)
    assert both.span_s <= slowest.span_s * 1.05


def test_overlap_is_no_slower_than_none():
    seconds = {}
    for overlap in ("two_micro_batches", "shared_expert", "none"):
        plan, _ = planned("decode", overlap)
        # The same work: two micro-batches of half the time each.
        each = 10e-6 if overlap == "two_micro_batches" else 20e-6
        seconds[overlap] = run_order(
            task_order(plan), np.full(len(plan.tasks), each), gap_s=0.0
        ).span_s
    assert seconds["shared_expert"] <= seconds["none"]
