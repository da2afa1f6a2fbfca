"""Routing: balance over instances, prefix-aware choice, queues on links, bounded memory."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

from hardware_profiles.schema import ClusterProfile, load_cluster
from simulator.analysis.fleet_statistics import FleetStatistics
from simulator.execution.fleet.fleet import run_fleet
from simulator.execution.fleet.log import CollectedLog, LogWriter, RowBlock
from simulator.execution.fleet.step_times import AffineStepTimes
from simulator.scenario.fleet import AffineCoefficients, FleetJob

STEP_TIMES = {
    "decode_fixed": "10 ms",
    "decode_per_request": "100 us",
    "decode_per_context_token": "1 us",
    "prefill_fixed": "5 ms",
    "prefill_per_token": "20 us",
    "prefill_per_attended_token": "10 ns",
    "kv_capacity_tokens": 100_000,
}


@pytest.fixture(scope="module")
def cluster() -> ClusterProfile:
    return load_cluster("h800_2048")


def make_job(
    count: int, rate: str, prompt: int = 400, output: int = 20, **changes: Any
) -> FleetJob:
    pool = {
        "instances": 1,
        "gpus_per_instance": 8,
        "ranks": 1,
        "affine": STEP_TIMES,
        "max_batch": 64,
        "tokens_per_pass": 512,
    }
    synthetic: dict[str, Any] = {
        "arrivals": "poisson",
        "rate": rate,
        "count": count,
        "prompt_tokens": {"kind": "constant", "mean": prompt},
        "output_tokens": {"kind": "constant", "mean": output},
    }
    if "sessions" in changes:
        synthetic["sessions"] = changes.pop("sessions")
    prefill = changes.pop("prefill", {})
    decode = changes.pop("decode", {})
    return FleetJob.model_validate(
        {
            "requests": {"synthetic": synthetic},
            "prefill": {**pool, **prefill},
            "decode": {**pool, **decode},
            "kv_bytes_per_token": "70272 B",
            "kv_transfer": {"latency": "10 us"},
            "service_level": {"ttft": "2 s", "tpot": "50 ms"},
            "warm_up": "0 s",
            "sample_interval": "10 s",
            **changes,
        }
    )


def times(job: FleetJob) -> dict[str, AffineStepTimes]:
    return {
        name: AffineStepTimes(AffineCoefficients.model_validate(STEP_TIMES)) for name in job.pools
    }


def run(job: FleetJob, cluster: ClusterProfile) -> tuple[RowBlock, RowBlock]:
    log = CollectedLog()
    run_fleet(job, times(job), cluster, seed=0, logs=[log])
    return log.all_requests(), log.all_iterations()


@pytest.mark.parametrize("routing", ["least_loaded", "round_robin", "prefix_aware"])
def test_instances_of_a_pool_share_the_load(cluster: ClusterProfile, routing: str) -> None:
    job = make_job(400, "60 Hz", prefill={"instances": 3}, decode={"instances": 2}, routing=routing)
    _, iterations = run(job, cluster)
    busy = np.bincount(
        iterations["instance"].astype(int), iterations["end_s"] - iterations["start_s"]
    )
    assert busy[:3].min() > 0.6 * busy[:3].max()
    assert busy[3:].min() > 0.8 * busy[3:].max()


def test_ranks_of_a_decode_instance_hold_as_many_requests_and_as_much_kv_cache(
    cluster: ClusterProfile,
) -> None:
    """With equal ranks a step takes what the mean load takes, but for rounding."""
    job = make_job(300, "100 Hz", output=200, prefill={"instances": 4}, decode={"ranks": 4})
    _, iterations = run(job, cluster)
    decode = iterations.where(iterations["steps"] > 0)
    # Before the last arrival; as answers run out, ranks empty as they will.
    late = decode.where((decode["batch"] > 100) & (decode["end_s"] < 2.5))
    assert len(late) > 0
    balanced = 0.01 + late["batch"] / 4 * 100e-6 + late["kv_tokens"] / 4 * 1e-6
    assert np.all(late["last_step_s"] < 1.05 * balanced)


def test_prefix_aware_routing_finds_what_other_instances_have_not_cached(
    cluster: ClusterProfile,
) -> None:
    sessions = {
        "shared_blocks": 0,
        "continue_probability": [0.9],
        "turn_gap_quantiles": {0: "2 s", 1: "4 s"},
        "replaced_tokens_quantiles": {0: 0, 1: 1},
        "added_tokens_quantiles": {0: 100, 1: 300},
    }
    cache = {
        "block_tokens": 512,
        "tiers": [{"name": "hbm", "scope": "instance", "capacity_tokens": "unlimited"}],
    }
    hits = {}
    for routing in ("round_robin", "prefix_aware"):
        job = make_job(
            60,
            "2 Hz",
            prompt=3000,
            sessions=sessions,
            prefill={"instances": 4},
            prefix_cache=cache,
            routing=routing,
        )
        rows, _ = run(job, cluster)
        hits[routing] = rows["hit_blocks"].sum() / rows["blocks"].sum()
    assert hits["prefix_aware"] > 1.2 * hits["round_robin"]


def test_a_tier_of_the_fleet_serves_every_instance_alike(cluster: ClusterProfile) -> None:
    sessions = {
        "shared_blocks": 2,
        "continue_probability": [0.0],
        "turn_gap_quantiles": {0: "1 s", 1: "1 s"},
        "replaced_tokens_quantiles": {0: 0, 1: 0},
        "added_tokens_quantiles": {0: 1, 1: 1},
    }
    disk = {"name": "disk", "scope": "fleet", "capacity_tokens": "unlimited"}
    job = make_job(
        40,
        "1 Hz",
        prompt=1500,
        sessions=sessions,
        prefill={"instances": 4},
        routing="round_robin",
        prefix_cache={"block_tokens": 512, "tiers": [{**disk, "load_bandwidth": "1 GB/s"}]},
    )
    rows, _ = run(job, cluster)
    # All but the very first find the shared blocks, wherever they are sent.
    assert rows["hit_blocks"].sum() == 2 * 39


def test_kv_caches_queue_on_a_slow_link(cluster: ClusterProfile) -> None:
    transfer = {"latency": "10 us", "bandwidth": "100 MB/s"}
    rows, _ = run(make_job(20, "1 kHz", kv_transfer=transfer), cluster)
    each = 400 * 70272 / 100e6
    waits = np.sort(rows["decode_start_s"] - rows["first_token_s"])
    assert waits[0] >= each
    # Prompts leave the prefill faster than the link takes them.
    assert waits[-1] > 5 * each


def test_memory_does_not_grow_with_simulated_time(
    cluster: ClusterProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both runs fill several blocks of rows.
    monkeypatch.setattr(LogWriter, "ROWS", 128)
    peaks = []
    for count in (300, 1_200):
        job = make_job(count, "20 Hz", output=5)
        tracemalloc.start()
        run_fleet(job, times(job), cluster, seed=0, logs=[FleetStatistics(job)])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


KV_BYTES = 400 * 70272
"""Of a prompt of 400 tokens."""


def waits(cluster: ClusterProfile, job: FleetJob) -> np.ndarray:
    """Time of each request between its first token and its first decode step, sorted."""
    rows, _ = run(job, cluster)
    return np.sort(rows["decode_start_s"] - rows["first_token_s"])


def test_a_transfer_alone_takes_the_nics_rate_and_the_latency_of_the_fabric(
    cluster: ClusterProfile,
) -> None:
    job = make_job(1, "1 Hz", kv_transfer={"transport": "ideal"})
    nic = cluster.node.nic.bandwidth
    # One rank of eight GPUs to another in the next node, under one leaf: each sends its eighth.
    expected = KV_BYTES / 8 / nic + cluster.fabric.same_leaf_latency
    assert waits(cluster, job)[0] == pytest.approx(expected, rel=1e-6)


def test_a_wide_rank_sends_its_parts_to_the_fewer_gpus_of_a_narrow_one(
    cluster: ClusterProfile,
) -> None:
    job = make_job(1, "1 Hz", decode={"ranks": 8}, kv_transfer={"transport": "ideal"})
    # All parts arrive through one NIC.
    assert waits(cluster, job)[0] > KV_BYTES / cluster.node.nic.bandwidth


def test_transfers_at_one_time_share_the_receiving_nic(cluster: ClusterProfile) -> None:
    def longest(transfer: dict[str, Any], bandwidth: str) -> float:
        slow = cluster.node.nic.model_copy(update={"bandwidth": float(bandwidth)})
        node = cluster.node.model_copy(update={"nic": slow})
        job = make_job(
            8,
            "1 kHz",
            prefill={"instances": 8, "ranks": 8},
            decode={"ranks": 8, "max_batch": 8},
            kv_transfer=transfer,
        )
        return float(waits(cluster.model_copy(update={"node": node}), job)[-1])

    # Slow enough that prompts which end within milliseconds are on their way together.
    alone = KV_BYTES / 1e8
    shared = longest({"transport": "ideal"}, "1e8")
    queued = longest({"latency": "0 s"}, "1e8")
    assert shared >= alone * (1 - 1e-9)
    # Whether it is shared or queued, the last one arrives when all have been sent.
    assert shared == pytest.approx(queued, rel=0.05)


def test_a_transfer_needs_a_transport_or_a_latency() -> None:
    for wrong in ({}, {"transport": "ideal", "latency": "1 us"}):
        with pytest.raises(ValueError, match="needs transport or latency"):
            make_job(1, "1 Hz", kv_transfer=wrong)
    with pytest.raises(ValueError, match="a transport has its own"):
        make_job(1, "1 Hz", kv_transfer={"transport": "ideal", "bandwidth": "1 GB/s"})
