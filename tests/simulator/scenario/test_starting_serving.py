"""A service of one's own: its machine, requests, deployments and file."""

import re

import pytest
import yaml

from reference_model.config import load_model_config
from simulator.scenario.files import scenario_from
from simulator.scenario.fleet import FleetJob
from simulator.scenario.starting_serving import (
    Deployment,
    Pool,
    fleet_scenario,
    fleet_text,
    requests_by_flags,
    service_by_flags,
    serving_machine,
    starting_deployment,
    starting_pool,
    step_of,
)


def service(gpu="h200", **changes):
    given = {
        "model": "deepseek_v3",
        "config": load_model_config("deepseek_v3"),
        "machine": serving_machine(gpu=gpu, cluster=None),
        "rate": 10.0,
        "prompt": 4096,
        "output": 1024,
        "ttft_s": 2.0,
        "tpot_s": 0.05,
    }
    return service_by_flags(**(given | changes))


def test_a_gpu_names_its_largest_cluster_its_kernels_and_its_all_to_all():
    machine = serving_machine(gpu="h800", cluster=None)
    assert machine.cluster == "h800_2048"
    # Its own calibration of prefill rests on a training trace; inference kernels restate H200's.
    assert machine.calibrations["decode"] == "h800_decode"
    # 200 GB/s of NVLink: the profile whose copies within a node went over as much.
    assert machine.low_latency == "deepep_h800_mixed"
    assert (machine.node_gpus, machine.domain_gpus) == (8, 8)
    assert serving_machine(gpu="gb200", cluster=None).domain_gpus == 72
    with pytest.raises(ValueError, match=r"^needs --gpu or --cluster, one of the two$"):
        serving_machine(gpu=None, cluster=None)


def test_more_requests_than_a_verdict_may_take_are_refused():
    # 10 million / (6.45 x 53.2 s) a second.
    said = (
        "--rate 29143: a verdict takes more than 10,000,000 requests that stay for up to 53.2 s; "
        "allowed: at most 2.91e+04, such as a part of the service"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        service(rate=29143.0)
    with pytest.raises(ValueError, match=r"^--output 10+: allowed: at most 1,000,000,000 tokens$"):
        service(output=10**400)
    assert service(rate=29142.0).requests["synthetic"]["count"] == 9_999_786


def test_a_run_lasts_until_filled_and_then_as_long_as_a_verdict_asks_for():
    # A stay is 2 s + 1,024 x 50 ms = 53.2 s; 1.2 of them to fill, 1.05 x 5 for the verdict.
    asked = service()
    assert asked.stay_s == 53.2
    assert asked.requests["synthetic"]["count"] == 3432  # ceil(10 x 6.45 x 53.2)
    pool = starting_pool(asked, "colocated", instances=1, gpus=8, split=True)
    raw = fleet_scenario(asked, [pool], description="x")
    assert raw["fleet"]["warm_up"] == "63.84 s"
    assert raw["fleet"]["sample_interval"] == "1 s"


def test_lengths_are_all_alike_or_spread():
    asked = {"rate": 2.5, "prompt": 100, "output": 10, "cached": 0.0, "count": 7}
    alike = requests_by_flags(**asked, length_cv=0.0)["synthetic"]
    assert alike["rate"] == "2.5 Hz"
    assert alike["prompt_tokens"] == {"kind": "constant", "mean": 100}
    spread = requests_by_flags(**asked, length_cv=1.5)["synthetic"]
    assert spread["output_tokens"] == {"kind": "lognormal", "mean": 10, "cv": 1.5}


def test_gpus_that_do_not_divide_the_experts_get_copies_of_some():
    asked = service()
    # 256 experts over 24 GPUs: 11 slots each are 264.
    assert starting_deployment(asked, "decode", gpus=24, split=False) == Deployment(
        "decode", 24, redundant=8, micro_batches=2
    )
    # One slot more on each of 32 GPUs.
    assert starting_deployment(asked, "prefill", gpus=32, split=False, copies=1).redundant == 32
    # Within one NVLink domain a decode step runs in one micro-batch.
    assert starting_deployment(asked, "decode", gpus=8, split=False).micro_batches == 1


def test_what_a_deployment_is_stands_in_the_changes_of_its_step():
    asked = service(kv_cache="fp8_e4m3")
    drafts = Deployment("decode", 64, redundant=64, micro_batches=2, draft_tokens=1)
    assert step_of(drafts, asked, max_batch=96) == {
        "scenario": "decode_ep72_h100",
        "changes": [
            "cluster=h200_2048",
            "calibration=h200_sxm",
            "gpus=64",
            "attention_tp=1",
            "experts.redundant=64",
            "memory.kv_cache=fp8_e4m3",
            "speculative_decoding={draft_tokens: 1, acceptance: 0.875}",
            "micro_batches=2",
            "overlap=two_micro_batches",
            "all_to_all.low_latency=deepep_h100_mixed",
            # 96 requests with a draft each are 192 tokens, half of them in each micro-batch.
            "memory.buffer_tokens=96",
        ],
    }
    # 4 nodes divide 8 expert groups; 3 do not, and experts may then lie anywhere.
    for gpus, placement in ((32, "hierarchical"), (24, "global")):
        step = step_of(starting_deployment(asked, "prefill", gpus=gpus, split=False), asked)
        assert step["changes"][-1] == f"experts.placement={placement}"


def test_names_are_those_that_people_use():
    assert Deployment("prefill", 8, attention_tp=8, expert_tp=8).name == "TP8"
    drafts = Deployment("decode", 64, redundant=64, micro_batches=2, draft_tokens=1)
    assert drafts.name == "EP64, 64 redundant, two micro-batches, MTP"
    assert Deployment("prefill", 32, attention_tp=4, micro_batches=2).name == "EP32, attention TP4"


def test_the_file_reads_back_to_a_fleet_of_these_pools():
    asked = service(cached=0.5, recipe="bfloat16")
    pools = [
        starting_pool(asked, "prefill", instances=4, gpus=32, split=False),
        Pool((Deployment("decode", 64, micro_batches=2, draft_tokens=1),), 2, 96),
    ]
    raw = fleet_scenario(asked, pools, description="ten requests a second")
    text = fleet_text(raw, ["Mine."])
    assert text.startswith("# Mine.\ndescription: ten requests a second\n")
    assert yaml.safe_load(text) == raw
    job = scenario_from("mine", yaml.safe_load(text), (), where="mine.yaml").job
    assert isinstance(job, FleetJob)
    assert job.pools["prefill"].ranks == 32
    assert job.tokens_per_step == 1.875
    assert job.prefix_cache is not None
    assert job.prefix_cache.tiers[0].load_bandwidth == 50e9
    assert (job.service_level.ttft, job.service_level.tpot) == (2.0, 0.05)
    assert [pool.gpus for pool in pools] == [128, 128]
