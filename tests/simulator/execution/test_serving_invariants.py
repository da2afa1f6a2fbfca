"""What holds for every serving step, whatever the deployment: one validator over all scenarios."""

from functools import cache

import numpy as np
import pytest
from serving_checks import check_step

from simulator.execution.serving_run import prepare_serving
from simulator.execution.serving_step import serving_step
from simulator.scenario.files import known_scenarios, load_scenario
from simulator.workload.recorded import recorded_trace

DEPLOYMENTS = [
    name for name in known_scenarios() if name.startswith(("decode_", "prefill_", "mtp_"))
]
VARIANTS = [
    ("decode_ep128_profile", "requests.idle_gpus=64"),
    ("decode_ep128_profile", "requests.requests_per_gpu=1"),
    ("decode_ep8_h200", "overlap=none"),
    ("mtp_ep128", "speculative_decoding.draft_tokens=3"),
    ("decode_tp8_h200", "attention_tp=1"),
    ("decode_tp8_h200", "overlap=shared_expert"),
    ("decode_tp8_h200", "shared_expert_tp=1"),
    ("decode_nvl72", "attention_tp=4"),
]


@cache
def step_of(name, *changes):
    scenario = load_scenario(name, list(changes))
    return serving_step(prepare_serving(scenario, scenario.job, recorded_trace))


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_shipped_deployment_keeps_the_invariants(name):
    check_step(step_of(name))


@pytest.mark.parametrize(("name", "change"), VARIANTS)
def test_idle_gpus_and_other_orders_keep_them_too(name, change):
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


def test_more_sms_never_slow_a_step_on_kernels_that_fill_a_grid():
    changes = ("cluster.node.gpu=h100_sxm", "calibration=h100_sxm", "gpus=40", "cluster.nodes=18")
    changes += ("experts.redundant=24", "experts.placement=in_order")
    changes += ("requests.requests_per_gpu=256", "requests.context_tokens=512")
    times = [
        step_of("decode_ep128_profile", *changes, f"cluster.node.gpu.sms={sms}").step_s
        for sms in (132, 133, 140, 148, 264)
    ]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("name", ["decode_ep128_profile", "prefill_ep32_profile", "mtp_one_node"])
def test_the_same_scenario_gives_the_same_log(name):
    again = step_of.__wrapped__(name)
    np.testing.assert_array_equal(step_of(name).log.end_s, again.log.end_s)
