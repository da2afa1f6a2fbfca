"""Collectives of parameters and gradients inside chunks: what they move, and what they wait for."""

import numpy as np
import pytest

from reference_model.trace import Operator
from simulator.execution import timeline
from simulator.scenario.training import OptimizerTypes
from simulator.workload.chunk import lower_chunk, lower_weights, with_state
from simulator.workload.sharding import HeldParameters, HeldWeight, Parameters, Sharding
from simulator.workload.state_tasks import (
    GRADIENTS,
    PARAMETERS,
    StateTasks,
    addition,
    collective_of,
    is_state_collective,
    state_operators,
)

LAYER = HeldParameters(
    Parameters(
        800,
        768,
        768,
        768.0,
        ((HeldWeight("fp8_e4m3", 1, 32, 24), 1), (HeldWeight("bfloat16", 1, 4, 8), 1)),
    ),
    Parameters(614_400, 0, 0, 0.0),
)


def sharding(zero, **changes):
    given = {
        "types": OptimizerTypes(), "copies": 8, "expert_copies": 2,
        "gathers_ahead": False, "reduces_beside": False, "pairs": False,
    }  # fmt: skip
    return Sharding(zero=zero, **(given | changes))


def named(operators):
    return [(o.name, o.bytes_written) for o in operators if is_state_collective(o)]


def test_a_layer_gathers_bfloat16_parameters_and_reduces_gradients_of_their_type():
    of = state_operators({"moe": LAYER}, sharding(3), accumulates=False)
    assert named(of["moe", PARAMETERS]) == [
        ("parameters.all_gather.replicated", 2 * 800),
        ("parameters.all_gather.experts", 2 * 614_400),
    ]
    assert named(of["moe", GRADIENTS]) == [
        ("gradients.reduce_scatter.replicated", 4 * 800),
        ("gradients.reduce_scatter.experts", 4 * 614_400),
    ]
    assert [collective_of(o) for o in of["moe", GRADIENTS]] == [
        ("reduce_scatter", False),
        ("reduce_scatter", True),
    ]


def test_without_sharing_gradients_are_reduced_and_gathered_again():
    of = state_operators({"moe": LAYER}, sharding(0, expert_copies=1), accumulates=False)
    assert named(of["moe", GRADIENTS]) == [
        ("gradients.reduce_scatter.replicated", 4 * 800),
        ("gradients.all_gather.replicated", 4 * 800),
    ]


def test_gradients_of_several_micro_batches_add_up_in_the_shard():
    """Read twice and written: 3 x 4 bytes of 100 + 307,200 parameters, in rows of 6,144 bytes."""
    of = state_operators({"moe": LAYER}, sharding(2), accumulates=True)
    *_, add = of["moe", GRADIENTS]
    assert (add.name, add["rows"], add["columns"]) == ("gradients.add", 600, 1024)
    # Gradients that no other GPU has are added where they are: 307,200 of the experts are left.
    alone = state_operators({"moe": LAYER}, sharding(2, copies=1), accumulates=True)
    assert alone["moe", GRADIENTS][-1]["rows"] == 600


def test_an_addition_has_a_row_of_1024_values_at_least():
    assert [addition("sum", rows * 3 * 2 * 1024)["rows"] for rows in (0.1, 1, 2)] == [1, 1, 2]


def test_a_gathered_layer_casts_its_working_copies():
    """From BF16 in one kernel; what computes in BF16 is there."""
    *_, cast = state_operators({"moe": LAYER}, sharding(3), accumulates=False)["moe", PARAMETERS]
    assert (cast.name, cast.kind, cast.segment) == ("parameters.cast", "quantize_weight", "state")
    assert (cast.dtype, cast.bytes_read, cast.bytes_written) == ("bfloat16", 2 * 768, 768 + 2 * 4)
    alone = state_operators({"moe": LAYER}, sharding(3, copies=1), accumulates=False)
    assert [o.kind for o in alone["moe", PARAMETERS]] == ["copy"]


def test_parameters_without_a_copy_exchange_nothing():
    alone = sharding(3, copies=1, expert_copies=1)
    assert set(state_operators({"moe": LAYER}, alone, accumulates=True).values()) == {()}


# -- two layers that compute 5 s each way, gather 3 s and reduce 4 s ---------------------------

SECONDS = {"add": 5.0, "all_gather": 3.0, "reduce_scatter": 4.0}


def compute(kind, phase):
    return () if phase == "recompute" else (_kernel(kind, phase),)


def _kernel(kind, phase):
    return Operator(
        name=f"{kind}.{phase}", kind="add", phase=phase, segment="attention", dtype="bfloat16",
        out_dtype="bfloat16", sizes=(("columns", 1), ("rows", 1)), recompute=False,
        accumulate=False,
    )  # fmt: skip


PLAIN = HeldParameters(Parameters(800))
OPERATORS = with_state(compute, state_operators({"dense": PLAIN}, sharding(3), accumulates=False))


def span(graph):
    took = [
        SECONDS[collective_of(o)[0] if is_state_collective(o) else o.kind]
        for o in graph.task_operators()
    ]
    return timeline.run(graph, np.array(took), 0.0).span_s


@pytest.mark.parametrize(
    ("ahead", "seconds"),
    [
        (False, 3 + 5 + 3 + 5 + 3 + 5),
        # The second gather begins with the first layer, the third when the first layer has ended.
        (True, 3 + 5 + 5 + 5),
    ],
)
def test_a_forward_gathers_each_layer_before_it_computes(ahead, seconds):
    tasks = StateTasks(gather_forward=True, ahead=ahead)
    graph = lower_chunk("F", OPERATORS, forward=("dense",) * 3, state=tasks)
    assert span(graph) == seconds
    gathers = [n for n, o in enumerate(graph.task_operators()) if is_state_collective(o)]
    kernels = [n for n in range(6) if n not in gathers]
    waits = [tuple(graph.tasks[n].depends_on) for n in range(6)]
    # Each layer waits for its own; the third, or the second, goes behind the first layer.
    assert [gathers[n] in waits[kernels[n]] for n in range(3)] == [True] * 3
    behind = {2: 0} if ahead else {1: 0, 2: 1}
    assert [waits[n] for n in gathers] == [
        (kernels[behind[n]],) if n in behind else () for n in range(3)
    ]


@pytest.mark.parametrize(("beside", "seconds"), [(False, 2 * (5 + 5 + 4)), (True, 2 * (5 + 5) + 4)])
def test_a_backward_reduces_each_layer_after_its_weight_gradients(beside, seconds):
    tasks = StateTasks(reduce=True, beside=beside)
    graph = lower_chunk("B", OPERATORS, backward=("dense",) * 2, state=tasks)
    assert span(graph) == seconds
    names = ["kernel" if o.kind == "add" else "reduction" for o in graph.task_operators()]
    reductions = [place for place, name in enumerate(names) if name == "reduction"]
    assert [names[place - 1] for place in reductions] == ["kernel"] * 2
    assert {graph.tasks[place].micro_batch for place in reductions} == {-1}
    # Beside the next layer nothing waits for a reduction.
    waits = [
        earlier
        for task, name in zip(graph.tasks, names, strict=True)
        if name == "kernel"
        for earlier in task.depends_on
    ]
    assert set(waits) & set(reductions) == (set() if beside else {reductions[0]})


@pytest.mark.parametrize("beside", [False, True])
def test_every_layer_is_reduced_once_behind_its_own_kernels(beside):
    sizes = {"dense": 100, "moe": 200, "mtp": 300}
    held = {kind: HeldParameters(Parameters(count)) for kind, count in sizes.items()}
    operators = with_state(compute, state_operators(held, sharding(3), accumulates=False))
    tasks = StateTasks(reduce=True, beside=beside)
    graph = lower_chunk("B", operators, backward=tuple(sizes), state=tasks)
    found = graph.task_operators()
    reductions = {
        operator["rows"]: tuple(task.depends_on)
        for task, operator in zip(graph.tasks, found, strict=True)
        if is_state_collective(operator)
    }
    last = {
        operator.name.partition(".")[0]: place
        for place, operator in enumerate(found)
        if operator.kind == "add"
    }
    assert reductions == {sizes[kind]: (last[kind],) for kind in sizes}


@pytest.mark.parametrize(
    ("changes", "beside", "words"),
    [
        ({"gather_forward": True}, False, ", gather"),
        ({"gather_forward": True, "beside": True}, False, ", gather"),
        ({"gather_backward": True, "ahead": True}, True, ", gather"),
        ({"reduce": True, "ahead": True}, False, ", reduction"),
        ({"reduce": True, "beside": True}, True, ", reduction"),
        ({"reduce": True, "gather_forward": True}, False, ", gather, reduction"),
    ],
)
def test_kernels_run_beside_what_is_gathered_ahead_or_reduced_beside(changes, beside, words):
    tasks = StateTasks(**changes)
    assert (tasks.beside_compute, str(tasks)) == (beside, words)


def test_a_backward_gathers_again_and_its_collectives_run_one_after_the_other():
    """Layer 2 has its gather of 3 s before its 10 s of kernels, beside which layer 1 is gathered;
    layer 2 is reduced beside layer 1, and layer 1 after it."""
    tasks = StateTasks(gather_backward=True, reduce=True, ahead=True, beside=True)
    graph = lower_chunk("B", OPERATORS, backward=("dense",) * 2, state=tasks)
    assert span(graph) == 3 + 10 + 10 + 4
    exposed = StateTasks(gather_backward=True, reduce=True)
    alone = lower_chunk("B", OPERATORS, backward=("dense",) * 2, state=exposed)
    assert span(alone) == 2 * (3 + 10 + 4)


@pytest.mark.parametrize(("beside", "seconds"), [(False, 2 * (5 + 4)), (True, 5 + 5 + 4)])
def test_weight_gradients_that_were_put_off_are_reduced_layer_by_layer(beside, seconds):
    tasks = StateTasks(reduce=True, beside=beside)
    graph = lower_weights("W", OPERATORS, ("dense",) * 2, immediate=(), state=tasks)
    assert span(graph) == seconds


def test_embedding_and_head_of_a_prediction_module_on_its_own_are_exchanged_with_it():
    operators = with_state(
        compute, state_operators({"mtp": PLAIN, "head": PLAIN}, sharding(3), accumulates=False)
    )
    tasks = StateTasks(gather_forward=True, with_mtp=("head",))
    graph = lower_chunk("F", operators, forward=("mtp",), state=tasks)
    assert [o.name for o in graph.task_operators() if is_state_collective(o)] == [
        "parameters.all_gather.replicated"
    ] * 2
