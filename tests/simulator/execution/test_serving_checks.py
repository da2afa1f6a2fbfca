"""What a serving step cannot be is one line with a way out."""

import re

import pytest

from hardware_profiles.schema import load_calibration, load_cluster
from simulator.execution.serving_checks import (
    check_cache_type,
    check_serving_failures,
    check_serving_job,
    joined_gpus,
)
from simulator.scenario.files import load_scenario


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "decode_ep128_profile",
            "gpus=4096",
            "gpus 4096: allowed: at most the 2048 of cluster h800_2048",
        ),
        (
            "decode_ep128_profile",
            "expert_tp=64",
            "expert_tp 64: allowed: 1, or all 128 GPUs of the deployment",
        ),
        (
            "prefill_ep32_profile",
            "communication_sms=132",
            "communication_sms 132: allowed: fewer than the 132 SMs of h800_sxm",
        ),
        (
            "decode_ep128_profile",
            "memory.buffer_tokens=8",
            "memory.buffer_tokens 8: a micro-batch has 64 tokens per GPU; allowed: at least as "
            "many, or null for the micro-batch's own",
        ),
    ],
)
def test_a_step_that_cannot_run_is_one_line(name, change, message):
    scenario = load_scenario(name, [change])
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_serving_job(scenario.job, config=scenario.model, cluster=scenario.cluster)


def test_failures_of_nvlink_and_later_ones_are_refused():
    broken = load_cluster("h800_2048", {"failures": ["plane:0@2 s"]})
    with pytest.raises(ValueError, match=r"plane:0@2 s: this serving step's transfers go over NV"):
        check_serving_failures(broken, over_nvlink=True)
    with pytest.raises(ValueError, match=r"knows what is broken from the start only"):
        check_serving_failures(broken, over_nvlink=False)
    check_serving_failures(load_cluster("h800_2048"), over_nvlink=True)


def test_a_cache_in_fp8_needs_a_calibration_that_knows_it():
    job = load_scenario("decode_ep128_profile", ["memory.kv_cache=fp8_e4m3"]).job
    cluster = load_cluster("h800_2048")
    with pytest.raises(ValueError, match=r"on hopper \(fp8_cache: none\); allowed: memory.kv_c"):
        check_cache_type(job, cluster, load_calibration("h800_decode", {"fp8_cache": {}}))


def test_nvlink_joins_a_node_or_a_rack():
    assert joined_gpus(load_cluster("h800_2048")) == 8
    assert joined_gpus(load_cluster("gb200_nvl72")) == 72
