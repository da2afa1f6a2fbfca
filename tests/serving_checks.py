"""What holds for every serving step, whatever the deployment."""

import numpy as np
import pytest

from simulator.execution.timeline import critical_path
from simulator.workload.iteration import WHOLE_BATCH
from simulator.workload.task_graph import Stream


def check_step(step):
    check_times(step)
    check_order(step)
    check_critical_path(step)
    check_rows(step)
    shares = step.error_share()
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(share >= 0.0 for share in shares.values())
    low, high = step.times.ends()
    assert np.all(low <= step.times.seconds)
    assert np.all(step.times.seconds <= high)


def check_times(step):
    """max(compute, communication) <= time <= their sum, gaps and host overhead; nothing is free."""
    seconds = step.seconds
    compute = np.array([task.stream is Stream.COMPUTE for task in step.log.graph.tasks])
    gaps = step.model.job.gap.value * (len(compute) + 1)
    host = step.model.job.host_overhead.value
    longest = max(seconds[compute].sum(), seconds[~compute].sum())
    assert np.all(seconds > 0.0)
    assert longest + host <= step.step_s
    assert step.step_s <= seconds.sum() + gaps + host
    assert 0.0 <= step.exposed_communication_s <= step.step_s


def check_order(step):
    """A stream does one task at a time, and every task begins when all it waits for is done."""
    starts, ends = step.log.start_s, step.log.end_s
    tolerance = 1e-12
    for stream in Stream:
        of_stream = [
            number for number, task in enumerate(step.log.graph.tasks) if task.stream is stream
        ]
        assert np.all(starts[of_stream][1:] >= ends[of_stream][:-1] - tolerance)
    for number, task in enumerate(step.log.graph.tasks):
        for earlier in task.depends_on:
            assert earlier < number
            assert np.all(starts[number] >= ends[earlier] - tolerance)


def check_critical_path(step):
    """The makespan is its critical path: the path's tasks and the gaps between them."""
    path, gaps_s = critical_path(step.log)
    took = step.seconds[path].sum()
    assert took + gaps_s == pytest.approx(step.log.span_s)


def check_rows(step):
    """Rows sent are rows received: tokens x choices on all GPUs are rows of all experts."""
    job, model = step.model.job, step.model
    skew = model.even_skew
    moe = {number: layer for (kind, number), layer in step.operators.items() if kind == "moe"}
    assert WHOLE_BATCH not in moe
    for layer in moe.values():
        sizes = {op.name: dict(op.sizes) for op in layer.operators}
        rows = sizes["experts.gate_up_proj"]["rows"]
        busy = 1 - job.requests.idle_gpus / job.gpus
        if "moe.dispatch_send" in sizes:
            sent = sizes["moe.dispatch_send"]["rows"] * model.choices
            assert rows == sizes["moe.dispatch_receive"]["rows"]
            assert rows == sizes["moe.combine_send"]["rows"]
            assert sent == sizes["moe.combine_receive"]["rows"]
        elif job.expert_tp == 1:
            dispatch, combine = sizes["moe.dispatch"], sizes["moe.combine"]
            sent = dispatch["tokens"] * model.choices
            assert dispatch["rows"] == combine["rows"]
            received = dispatch["tokens"] * model.kernels.received_per_token
            assert dispatch["rows"] == pytest.approx(received * busy * skew, rel=1e-3)
        else:
            continue
        assert rows == pytest.approx(sent * busy * skew, abs=1.0, rel=1e-3)
