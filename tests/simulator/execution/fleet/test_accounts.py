"""What a fleet run pays for."""

import json
from pathlib import Path

import pytest
from fleets import fixed_requests, make_job, pool, run

from hardware_profiles.schema import ClusterProfile, load_cluster


@pytest.fixture(scope="module")
def cluster() -> ClusterProfile:
    return load_cluster("h800_2048")


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
