"""What holds for every serving step, whatever the deployment: one validator over all scenarios."""

from functools import cache

import numpy as np
import pytest

from simulator.execution.serving_run import prepare_serving
from simulator.execution.serving_step import serving_step
from simulator.scenario.files import known_scenarios, load_scenario
from simulator.workload.iteration import WHOLE_BATCH
from simulator.workload.recorded import shipped_trace
from simulator.workload.task_graph import Stream

DEPLOYMENTS = [
    name for name in known_scenarios() if name.startswith(("decode_", "prefill_", "mtp_"))
]
VARIANTS = [
    ("decode_ep128_profile", "requests.idle_gpus=64"),
    ("decode_ep128_profile", "requests.requests_per_gpu=1"),
    ("decode_ep72_h100", "experts.load=random"),
    ("decode_ep320_report", "experts.load=random"),
    ("decode_ep8_h200", "overlap=none"),
    ("prefill_ep32_profile", "experts.load=random"),
    ("prefill_ep32_h100", "experts.max_mean_load=1.3"),
    ("mtp_ep128", "speculation.draft_tokens=3"),
    ("decode_tp8_h200", "attention_tp=1"),
    ("decode_tp8_h200", "overlap=shared_expert"),
    ("decode_tp8_h200", "shared_expert_tp=1"),
    ("decode_nvl72", "attention_tp=4"),
]


@cache
def step_of(name, *changes):
    scenario = load_scenario(name, list(changes))
    return serving_step(prepare_serving(scenario, scenario.file.serving_step, shipped_trace))


def by_rank(values):
    return values if values.ndim == 2 else values[:, None]


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
    seconds = by_rank(step.seconds)
    compute = np.array([task.stream is Stream.COMPUTE for task in step.model.plan.tasks])
    gaps = step.model.job.kernel_gap.value * (len(compute) + 1)
    host = step.model.job.host_overhead.value
    longest = max(seconds[compute].sum(axis=0).max(), seconds[~compute].sum(axis=0).max())
    assert np.all(seconds > 0.0)
    assert longest + host <= step.step_s
    assert step.step_s <= seconds.max(axis=1).sum() + gaps + host
    assert 0.0 <= step.exposed_communication_s <= step.step_s


def check_order(step):
    """A stream does one task at a time, and every task begins when all it waits for is done."""
    starts, ends = by_rank(step.log.start_s), by_rank(step.log.end_s)
    tolerance = 1e-12
    for stream in Stream:
        of_stream = [
            number for number, task in enumerate(step.model.plan.tasks) if task.stream is stream
        ]
        assert np.all(starts[of_stream][1:] >= ends[of_stream][:-1] - tolerance)
    for number, task in enumerate(step.model.plan.tasks):
        for earlier in task.depends_on:
            assert earlier < number
            assert np.all(starts[number] >= ends[earlier] - tolerance)


def check_critical_path(step):
    """The makespan is its critical path: the path's tasks and the gaps between them."""
    path = step.path()
    took = by_rank(step.seconds).max(axis=1)[list(path.tasks)].sum()
    if step.log.end_s.ndim == 1:
        assert took + path.gaps_s == pytest.approx(step.log.span_s)
    assert step.log.span_s <= (took + path.gaps_s) * (1 + 1e-9)


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
    if not step.loads.folded:
        drawn = step.loads.rows.sum(axis=1)
        np.testing.assert_allclose(drawn, drawn[0])
        first = next(iter(moe.values()))
        mean = next(op for op in first.operators if op.name == "experts.gate_up_proj")["rows"]
        assert drawn[0] / model.expert_ranks == pytest.approx(mean, abs=1.0)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_shipped_deployment_keeps_the_invariants(name):
    check_step(step_of(name))


@pytest.mark.parametrize(("name", "change"), VARIANTS)
def test_skew_idle_gpus_and_other_orders_keep_them_too(name, change):
    check_step(step_of(name, change))


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_doubling_any_bandwidth_or_the_clock_never_slows_a_step(name):
    step = step_of(name)
    node = step.model.cluster.node
    for field, value in (
        ("node.nic.bandwidth", node.nic.bandwidth),
        ("node.gpu.nvlink_bandwidth", node.gpu.nvlink_bandwidth),
        ("node.gpu.pcie_bandwidth", node.gpu.pcie_bandwidth),
        ("node.gpu.hbm_bandwidth", node.gpu.hbm_bandwidth),
        ("node.gpu.sm_clock", node.gpu.sm_clock),
    ):
        unit = "GHz" if field.endswith("clock") else "GB/s"
        faster = step_of(name, f"cluster.{field}={2 * value / 1e9} {unit}")
        assert faster.step_s <= step.step_s * (1 + 1e-9), field


@pytest.mark.parametrize("name", ["decode_ep128_profile", "prefill_ep32_profile", "mtp_one_node"])
def test_the_same_scenario_gives_the_same_log(name):
    again = step_of.__wrapped__(name)
    np.testing.assert_array_equal(step_of(name).log.end_s, again.log.end_s)
