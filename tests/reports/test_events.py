"""Tables and trace of ranks on contending devices."""

import json
from functools import partial

import numpy as np
import pytest

from reference_model.trace import Operator
from reports.events import TRACE_FILE, events_tables, write_ranks_trace
from simulator.execution.machine.gpu import Gpu, KernelLaunch
from simulator.execution.machine.group import GroupRun
from simulator.execution.machine.ranks import RankWork, run_on_ranks
from simulator.workload.task_graph import Stream, Task, TaskGraph

COPY = Operator(
    name="mlp.copy", kind="copy", phase="forward", segment="mlp", dtype="bfloat16",
    out_dtype="bfloat16", sizes=(), recompute=False, accumulate=False,
)  # fmt: skip


@pytest.fixture
def trace(tmp_path):
    """Two ranks: a kernel of 1 s and of 3 s that moves 20 bytes/s, and a transfer that waits."""
    tasks = (
        Task(0, Stream.COMPUTE, 0, 0, "part", False, False),
        Task(0, Stream.COMMUNICATION, 0, 0, "part", False, True, (0,)),
    )
    graph = TaskGraph("test", ("layer",), (COPY,), tasks)
    kernels = [KernelLaunch(s, 10, persistent=False, hbm_bytes=20.0 * s) for s in (1.0, 3.0)]
    seconds = np.array([[1.0, 3.0], [2.0, 2.0]])
    work = RankWork(seconds, [kernels, [None, None]])
    machine = run_on_ranks(graph, work, 0.0, gpu_of=partial(Gpu, sms=10, hbm=100.0))
    group = GroupRun("test", machine, seconds, np.zeros(2), machine.log, ("sms",))
    write_ranks_trace(group, tmp_path)
    return json.loads((tmp_path / TRACE_FILE).read_text())["traceEvents"]


def test_every_rank_is_a_process_with_its_kernels_and_waits(trace):
    slices = [(e["pid"], e["name"], e["ts"], e["dur"]) for e in trace if e["ph"] == "X"]
    assert slices == [
        (0, "mlp.copy", 0.0, 1e6),
        (0, "waiting for ranks", 1e6, 2e6),
        (0, "mlp.copy", 3e6, 2e6),
        (1, "mlp.copy", 0.0, 3e6),
        (1, "mlp.copy", 3e6, 2e6),
    ]


def test_sms_and_hbm_are_counters(trace):
    counters = [
        (e["name"], e["ts"], *e["args"].values()) for e in trace if e["ph"] == "C" and e["pid"] == 0
    ]
    assert counters == [
        ("SMs in use", 0.0, 10), ("HBM (bytes/s)", 0.0, 20.0),
        ("SMs in use", 1e6, 0), ("HBM (bytes/s)", 1e6, 0.0),
    ]  # fmt: skip


def test_a_run_on_the_timeline_has_no_such_tables():
    assert events_tables({}) == []
