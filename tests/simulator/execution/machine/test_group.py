"""What each kernel is slowed as, and by how much, where a transfer holds SMs beside it."""

from functools import partial

import numpy as np
import pytest

from reference_model.trace import Operator
from simulator.execution.machine.gpu import Gpu, KernelLaunch
from simulator.execution.machine.group import Effect, GroupRun, alike, effect_of
from simulator.execution.machine.ranks import RankWork, run_on_ranks
from simulator.workload.task_graph import Stream, Task, TaskGraph


def operator(kind, phase="forward"):
    return Operator(
        name=kind, kind=kind, phase=phase, segment="mlp", dtype="bfloat16", out_dtype="bfloat16",
        sizes=(), recompute=False, accumulate=False,
    )  # fmt: skip


def task(place, stream, *, collective=False):
    return Task(place, stream, 0, 0, "part", True, collective)


@pytest.mark.parametrize(
    ("stream", "kind", "phase", "effect"),
    [
        (Stream.COMPUTE, "gemm", "forward", Effect.GEMM),
        (Stream.COMPUTE, "attention_forward", "forward", Effect.ATTENTION),
        (Stream.COMPUTE, "rmsnorm", "forward", Effect.NORM),
        (Stream.COMPUTE, "quantize", "forward", Effect.MEMORY_BOUND),
        (Stream.COMPUTE, "gather_tokens", "forward", None),
        (Stream.COMPUTE, "scatter_sums", "input_grad", None),
        (Stream.COMMUNICATION, "quantize", "input_grad", Effect.CAST),
        (Stream.COMMUNICATION, "dispatch_layout", "forward", None),
        (Stream.COMMUNICATION, "dispatch", "input_grad", Effect.DISPATCH_GRADIENT),
        (Stream.COMMUNICATION, "combine", "prefill", Effect.COMBINE_FORWARD),
    ],
)
def test_kinds_that_slow_alike_count_together(stream, kind, phase, effect):
    assert effect_of(task(0, stream), operator(kind, phase)) is effect


def test_only_kernels_beside_a_transfer_count():
    """A dispatch of 6 s holds 2 of 10 SMs. A copy of 4 s beside it takes 5 s, and one that begins
    at 5 s, for the most part after it, is left out."""
    operators = (operator("dispatch"), operator("copy"))
    tasks = (task(0, Stream.COMMUNICATION, collective=True), *(task(1, Stream.COMPUTE),) * 2)
    graph = TaskGraph("test", ("moe F0",), operators, tasks)
    copy = KernelLaunch(4.0, 10, persistent=False, hbm_bytes=0.0)
    seconds = np.array([[6.0], [4.0], [4.0]])
    work = RankWork(seconds, [[None], [copy], [copy]], transfer_sms=(2, 0, 0))
    machine = run_on_ranks(graph, work, 0.0, gpu_of=partial(Gpu, sms=10, hbm=None))
    group = GroupRun("test", machine, seconds, np.zeros(3), machine.log, ("sms",))
    found = group.ratios()
    assert list(found) == [Effect.MEMORY_BOUND, Effect.DISPATCH_FORWARD]
    assert found[Effect.MEMORY_BOUND].tolist() == pytest.approx([1.25])
    assert found[Effect.DISPATCH_FORWARD].tolist() == pytest.approx([1.0])


def test_ranks_that_are_alike_take_what_the_mean_rank_does():
    graph = TaskGraph("test", ("moe F0",), (operator("copy"),), (task(0, Stream.COMPUTE),))
    found = alike(graph, ranks=3)
    assert (found.work.tolist(), found.rows.tolist()) == ([[1.0] * 3], [[1.0] * 3])


def test_a_wire_counts_from_when_the_last_rank_began():
    """Ranks begin at 1 and 3 s and both end at 5 s: 2 s after the last began, over 2 s alone."""
    wire = Task(1, Stream.COMMUNICATION, 0, 0, "dispatch_wire", True, True, (0,), barrier=False)
    graph = TaskGraph(
        "test", ("moe",), (operator("gemm"), operator("copy")), (task(0, Stream.COMPUTE), wire)
    )
    seconds = np.array([[1.0, 3.0], [2.0, 2.0]])
    machine = run_on_ranks(
        graph, RankWork(seconds, ()), 0.0, gpu_of=partial(Gpu, sms=None, hbm=None)
    )
    found = GroupRun("test", machine, seconds, np.zeros(2), machine.log, ("skew",)).ratios()
    assert found[Effect.DISPATCH_FORWARD].tolist() == [1.0, 1.0]
