"""What a fleet run pays for."""

import json
from pathlib import Path
from typing import Any

import pytest

from hardware_profiles.schema import ClusterProfile, load_cluster
from simulator.execution.fleet.accounts import FleetRun
from simulator.execution.fleet.fleet import run_fleet
from simulator.execution.fleet.log import CollectedLog
from simulator.execution.fleet.step_times import AffineStepTimes
from simulator.scenario.fleet import AffineCoefficients, FleetJob

STEP_TIMES = {
    "decode_fixed": "10 ms",
    "decode_per_request": "100 us",
    "decode_per_context_token": "1 us",
    "prefill_fixed": "5 ms",
    "prefill_per_token": "20 us",
    "prefill_per_attended_token": "10 ns",
    "kv_capacity_tokens": 4000,
}


@pytest.fixture(scope="module")
def cluster() -> ClusterProfile:
    return load_cluster("h800_2048")


def pool(instances: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "instances": instances,
        "gpus_per_instance": 8,
        "ranks": 1,
        "affine": STEP_TIMES,
        "max_batch": 64,
        "tokens_per_pass": 512,
        **changes,
    }


def fixed_requests(count: int, prompt: int, output: int, rate: str = "5 Hz") -> dict[str, Any]:
    return {
        "synthetic": {
            "arrivals": "poisson",
            "rate": rate,
            "count": count,
            "prompt_tokens": {"kind": "constant", "mean": prompt},
            "output_tokens": {"kind": "constant", "mean": output},
        }
    }


def make_job(requests: dict[str, Any], **changes: Any) -> FleetJob:
    return FleetJob.model_validate(
        {
            "requests": requests,
            "kv_bytes_per_token": "70272 B",
            "kv_transfer": {"latency": "10 us"},
            "service_level": {"ttft": "2 s", "tpot": "50 ms"},
            "warm_up": "0 s",
            "sample_interval": "10 s",
            **changes,
        }
    )


def run(job: FleetJob, cluster: ClusterProfile, seed: int = 0) -> tuple[FleetRun, CollectedLog]:
    log = CollectedLog()
    step_times = {}
    for name, spec in job.pools.items():
        assert isinstance(spec.affine, AffineCoefficients)
        step_times[name] = AffineStepTimes(spec.affine)
    return run_fleet(job, step_times, cluster, seed=seed, log=log), log


def test_instances_follow_the_hours_and_are_paid_only_while_in_service(
    cluster: ClusterProfile,
) -> None:
    job = make_job(
        fixed_requests(2000, 300, 50, rate="0.2 Hz"),
        colocated=pool(2, hourly_instances=[1, 2] + [1] * 22),
    )
    result, _ = run(job, cluster)
    first, second = result.instances
    assert result.finished == 2000
    assert first.in_service == ((0.0, result.end_s),)
    assert second.in_service_s(0.0, result.end_s) == pytest.approx(3600, rel=0.01)


def test_an_instance_that_leaves_is_paid_until_what_it_loads_is_computed(
    cluster: ClusterProfile, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.jsonl"
    line = {"input_length": 1536, "output_length": 1, "hash_ids": [1, 2, 3]}
    times_ms = (0, 3_599_000, 3_599_000)
    trace.write_text("".join(json.dumps({"timestamp": t, **line}) + "\n" for t in times_ms))
    slow = {"name": "disk", "scope": "fleet", "capacity_tokens": "unlimited"}
    job = make_job(
        {"file": str(trace), "format": "mooncake"},
        colocated=pool(2, hourly_instances=[2] + [1] * 23),
        prefix_cache={"block_tokens": 512, "tiers": [{**slow, "load_bandwidth": "10 MB/s"}]},
    )
    result, log = run(job, cluster)
    passes = log.all_iterations()
    leaving = passes.where(passes["instance"] == 1)
    assert leaving["end_s"].max() > 3600
    assert result.instances[1].in_service == ((0.0, leaving["end_s"].max()),)
