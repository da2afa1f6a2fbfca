"""The fleet against queueing theory, conservation laws and hand-computed small cases."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fleets import STEP_TIMES, check_conservation, fixed_requests, make_job, pool, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hardware_profiles.schema import ClusterProfile, load_cluster
from simulator.execution.fleet.accounts import FleetRun
from simulator.execution.fleet.fleet import run_fleet
from simulator.execution.fleet.log import CollectedLog, RowBlock
from simulator.execution.fleet.step_times import AffineStepTimes
from simulator.scenario.fleet import FleetJob
from simulator.workload.requests import ideal_hit_rate

SHARED = Path(__file__).resolve().parents[4] / ".." / "shared" / "requests"


@pytest.fixture(scope="module")
def cluster() -> ClusterProfile:
    return load_cluster("h800_2048")


def check_littles_law(result: FleetRun, rows: RowBlock) -> None:
    """L = lambda W: requests inside, integrated over time, are the sum of their stays."""
    stays = float((rows["end_s"] - rows["arrival_s"]).sum())
    assert result.request_seconds == pytest.approx(stays, rel=1e-9, abs=1e-6)


def check_tokens(result: FleetRun, log: CollectedLog) -> None:
    """What iterations gave is what requests received, on the way to the end or to a restart."""
    given_tokens = float(log.all_iterations()["output_tokens"].sum())
    received = float(log.all_requests()["generated_tokens"].sum())
    # Where drafts make a step give a fraction, what is broken off loses less than a token.
    broken_off = result.restarts + result.preemptions + result.unfinished
    assert given_tokens == pytest.approx(received, rel=1e-9, abs=broken_off)


def test_one_request_takes_the_time_of_its_passes_transfer_and_steps(
    cluster: ClusterProfile,
) -> None:
    job = make_job(fixed_requests(1, prompt=1000, output=4), prefill=pool(), decode=pool())
    _, log = run(job, cluster)
    rows = log.all_requests()
    # 512 tokens attending to 256.5, then 488 behind them attending to 512 + 244.5.
    first = 0.005 + 512 * (20e-6 + 10e-9 * 256.5)
    second = 0.005 + 488 * (20e-6 + 10e-9 * (512 + 244.5))
    # Eight GPUs with a 50 GB/s NIC each make up the one rank.
    transfer = 1000 * 70272 / (8 * 50e9) + 10e-6
    steps = sum(0.01 + 100e-6 + 1e-6 * (1000 + k) for k in range(3))
    ttft = rows["first_token_s"][0] - rows["arrival_s"][0]
    assert ttft == pytest.approx(first + second, rel=1e-12)
    stay = rows["end_s"][0] - rows["arrival_s"][0]
    assert stay == pytest.approx(first + second + transfer + steps, rel=1e-12)


def test_steps_in_one_event_take_as_long_as_steps_one_by_one(cluster: ClusterProfile) -> None:
    """A second request joins in the middle of a long span and leaves before it would end."""
    requests = {
        "synthetic": {
            "arrivals": "poisson",
            "rate": "0.5 Hz",
            "count": 8,
            "prompt_tokens": {"kind": "constant", "mean": 100},
            "output_tokens": {"kind": "exponential", "mean": 250},
        }
    }
    job = make_job(requests, prefill=pool(), decode=pool())
    _, log = run(job, cluster)
    rows = log.all_requests()
    by_request = rows.rows[np.argsort(rows["request"])]
    transfer = 100 * 70272 / (8 * 50e9) + 10e-6
    joins = [(row[3] + transfer, int(row[7]) - 1) for row in by_request]
    ends = _replay_one_by_one(joins, prompt=100)
    assert by_request[:, 5] == pytest.approx(ends, rel=1e-9)


def _replay_one_by_one(joins: list[tuple[float, int]], *, prompt: int) -> list[float]:
    """Continuous batching, one step after the other: (ready time, steps) in, ends out."""
    now = 0.0
    left = {number: steps for number, (_, steps) in enumerate(joins)}
    contexts = dict.fromkeys(left, prompt)
    active: list[int] = []
    ends = [0.0] * len(joins)
    while left:
        active += [n for n in left if n not in active and joins[n][0] <= now]
        if not active:
            now = min(joins[n][0] for n in left)
            continue
        now += 0.01 + sum(100e-6 + 1e-6 * contexts[n] for n in active)
        for n in list(active):
            contexts[n] += 1
            left[n] -= 1
            if not left[n]:
                ends[n] = now
                del left[n]
                active.remove(n)
    return ends


def _one_server(prompt: dict[str, Any], count: int, rate: str) -> FleetJob:
    """A prefill instance that serves one prompt a pass; answers are the first token only."""
    times = {**STEP_TIMES, "prefill_fixed": "0 s", "prefill_per_attended_token": "0 s"}
    times |= {"prefill_per_token": "10 us", "kv_capacity_tokens": 10**9}
    server = pool(affine=times, tokens_per_pass=10**9, requests_per_pass=1)
    requests = {
        "synthetic": {
            "arrivals": "poisson",
            "rate": rate,
            "count": count,
            "prompt_tokens": prompt,
            "output_tokens": {"kind": "constant", "mean": 1},
        }
    }
    decode = pool(kv_capacity_tokens=10**9)
    return make_job(requests, prefill=server, decode=decode, sample_interval="1 h")


def _waits_and_stays(job: FleetJob, cluster: ClusterProfile, seeds: int) -> tuple[Any, Any]:
    """Waiting times and times in the service of all requests of several runs."""
    waits, stays = [], []
    for seed in range(seeds):
        result, log = run(job, cluster, seed=seed)
        rows = log.all_requests()
        check_littles_law(result, rows)
        waits.append(rows["prefill_start_s"] - rows["arrival_s"])
        stays.append(rows["end_s"] - rows["arrival_s"])
    return np.concatenate(waits), np.concatenate(stays)


# The standard error of a mean wait over 200,000 requests is about 1% at half load, so the 2% below
# are two standard errors; that each single wait is right is what Lindley's recursion tests.


def test_a_server_of_constant_service_agrees_with_m_d_1(cluster: ClusterProfile) -> None:
    """Pollaczek-Khinchine: W = rho S / (2 (1 - rho)) at S = 10 ms and rho = 0.5."""
    job = _one_server({"kind": "constant", "mean": 1000}, 50_000, "50 Hz")
    waits, stays = _waits_and_stays(job, cluster, seeds=3)
    assert waits.mean() == pytest.approx(0.5 * 0.01 / (2 * 0.5), rel=0.02)
    assert stays.mean() == pytest.approx(waits.mean() + 0.01, rel=1e-9)


def test_a_server_of_exponential_service_agrees_with_m_m_1(cluster: ClusterProfile) -> None:
    """W = rho S / (1 - rho) at rho = 0.5, and a stay has the tail exp(-t (1 - rho) / S)."""
    job = _one_server({"kind": "exponential", "mean": 1000}, 50_000, "50 Hz")
    waits, stays = _waits_and_stays(job, cluster, seeds=4)
    assert waits.mean() == pytest.approx(0.5 * 0.01 / 0.5, rel=0.02)
    assert stays.mean() == pytest.approx(0.01 / 0.5, rel=0.02)
    assert np.quantile(stays, 0.9) == pytest.approx(-math.log(0.1) * 0.01 / 0.5, rel=0.02)


def test_each_wait_equals_lindleys_recursion(cluster: ClusterProfile) -> None:
    """W(n+1) = max(0, W(n) + S(n) - A(n)), request by request, also near saturation."""
    job = _one_server({"kind": "exponential", "mean": 1000}, 5_000, "97 Hz")
    _, log = run(job, cluster)
    rows = log.all_requests()
    ordered = rows.rows[np.argsort(rows["request"])]
    waits = [0.0]
    for row, following in pairwise(ordered):
        waits.append(max(0.0, waits[-1] + row[6] * 10e-6 - (following[1] - row[1])))
    assert ordered[:, 2] - ordered[:, 1] == pytest.approx(waits, abs=1e-9)


@st.composite
def small_fleets(draw: st.DrawFn) -> FleetJob:
    colocated = draw(st.booleans())
    hashes = draw(st.booleans())
    synthetic: dict[str, Any] = {
        "arrivals": draw(st.sampled_from(["poisson", "gamma"])),
        "rate": draw(st.sampled_from(["1 Hz", "20 Hz", "1 MHz"])),
        "count": draw(st.integers(1, 40)),
        "prompt_tokens": {"kind": "lognormal", "mean": draw(st.integers(1, 1500)), "cv": 1.0},
        "output_tokens": {"kind": "exponential", "mean": draw(st.integers(1, 300))},
        "priority_shares": draw(st.sampled_from([(1.0,), (1.0, 2.0)])),
    }
    if synthetic["arrivals"] == "gamma":
        synthetic["cv"] = 2.0
    changes: dict[str, Any] = {}
    if hashes:
        synthetic["sessions"] = {
            "shared_blocks": 1,
            "continue_probability": [0.5],
            "turn_gap_quantiles": {0.0: "0 s", 1.0: "5 s"},
            "replaced_tokens_quantiles": {0: 0, 1: 100},
            "added_tokens_quantiles": {0: 1, 1: 400},
        }
        tier = st.sampled_from(["unlimited", 2048])
        changes["prefix_cache"] = {
            "block_tokens": 512,
            "tiers": [
                {"name": "hbm", "scope": "instance", "capacity_tokens": draw(tier)},
                {
                    "name": "disk",
                    "scope": "fleet",
                    "capacity_tokens": draw(tier),
                    "load_bandwidth": "1 GB/s",
                },
            ],
        }
    if draw(st.booleans()):
        changes["speculative_decoding"] = {"draft_tokens": 1, "acceptance": 0.85}
    shape = {
        "ranks": draw(st.integers(1, 3)),
        "max_batch": draw(st.sampled_from([1, 8, 64])),
        "kv_capacity_tokens": draw(st.sampled_from([0, 300, 2000, 20_000])),
        "page_tokens": draw(st.sampled_from([None, 16, 64])),
        "rebalance": draw(st.sampled_from([None, {"interval": "1 s", "pause": "100 ms"}])),
    }
    if not colocated:
        ways = [{"latency": "10 us"}, {"latency": "500 ms"}, {"transport": "ideal"}]
        way = draw(st.sampled_from(ways))
        changes["kv_transfer"] = way
    names = ["colocated"] if colocated else ["prefill", "decode"]
    pools = {name: pool(draw(st.integers(0, 3)), **shape) for name in names}
    failures = []
    for name in names:
        if pools[name]["instances"] and draw(st.booleans()):
            failures.append(
                {
                    "pool": name,
                    "instance": draw(st.integers(0, pools[name]["instances"] - 1)),
                    "at": f"{draw(st.integers(0, 4000))} ms",
                    "returns_after": draw(st.sampled_from([None, "500 ms", "1 h"])),
                }
            )
    return make_job(
        {"synthetic": synthetic},
        **pools,
        **changes,
        failures=failures,
        routing=draw(st.sampled_from(["least_loaded", "round_robin", "prefix_aware"])),
        kv_admission=draw(st.sampled_from(["grow", "reserve"])),
        kv_watermark=draw(st.sampled_from([0.0, 0.1])),
        preemption=draw(st.sampled_from(["recompute", "swap"])),
        swap_capacity_tokens=draw(st.sampled_from([0, 1500, 10**6])),
        max_waiting=draw(st.sampled_from([None, 3])),
        horizon=draw(st.sampled_from([None, None, "3 s"])),
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(job=small_fleets(), seed=st.integers(0, 3))
def test_no_request_token_or_kv_cache_is_lost_in_any_small_fleet(job: FleetJob, seed: int) -> None:
    result, log = run(job, load_cluster("h800_2048"), seed=seed)
    rows = log.all_requests()
    check_conservation(result, rows)
    check_littles_law(result, rows)
    check_tokens(result, log)
    # One failure a pool at most: only the last instance of a pool takes its requests with it.
    can_wait_for_ever = job.horizon is not None or any(
        failure.returns_after is None and job.pools[failure.pool].instances == 1
        for failure in job.failures
    )
    assert can_wait_for_ever or not result.unfinished
    iterations = log.all_iterations()
    capacity = np.array([i.kv_capacity_tokens for i in result.instances] or [0])
    used = iterations["kv_tokens"]
    assert np.all(used <= capacity[iterations["instance"].astype(int)] + 1e-6)


@settings(max_examples=20, deadline=None)
@given(job=small_fleets(), seed=st.integers(0, 3))
def test_the_same_seed_gives_the_same_log(job: FleetJob, seed: int) -> None:
    cluster = load_cluster("h800_2048")
    _, first = run(job, cluster, seed=seed)
    _, second = run(job, cluster, seed=seed)
    assert np.array_equal(first.all_requests().rows, second.all_requests().rows)
    assert np.array_equal(first.all_iterations().rows, second.all_iterations().rows)


def test_overload_delays_requests_and_loses_none(cluster: ClusterProfile) -> None:
    job = make_job(fixed_requests(2000, 300, 50, rate="1 kHz"), prefill=pool(), decode=pool())
    result, log = run(job, cluster)
    check_conservation(result, log.all_requests())
    assert result.finished == 2000


def test_a_pool_without_capacity_rejects_everything_with_the_reason(
    cluster: ClusterProfile,
) -> None:
    requests = fixed_requests(10, 300, 50)
    result, _ = run(make_job(requests, prefill=pool(), decode=pool(0)), cluster)
    assert result.rejected == {"no_capacity": 10}
    no_memory = pool(kv_capacity_tokens=0)
    result, _ = run(make_job(requests, prefill=pool(), decode=no_memory), cluster)
    assert result.rejected == {"too_long": 10}


@pytest.mark.parametrize("failing", ["prefill", "decode"])
@pytest.mark.parametrize("returns_after", [None, "2 s"])
def test_an_instance_that_fails_in_mid_run_loses_no_request(
    cluster: ClusterProfile, failing: str, returns_after: str | None
) -> None:
    job = make_job(
        fixed_requests(200, 300, 100, rate="20 Hz"),
        prefill=pool(2),
        decode=pool(2),
        failures=[{"pool": failing, "instance": 0, "at": "3 s", "returns_after": returns_after}],
    )
    result, log = run(job, cluster)
    check_conservation(result, log.all_requests())
    check_tokens(result, log)
    assert result.finished == 200
    assert result.restarts > 0


def test_room_set_aside_for_a_lost_transfer_goes_to_those_who_wait(
    cluster: ClusterProfile, tmp_path: Path
) -> None:
    """The shorter prompt takes the only room; its sender fails before its KV cache has come."""
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:00:00,1000,10\n2023-11-16 18:00:00.001,700,10\n"
    )
    job = make_job(
        {"file": str(trace), "format": "azure"},
        prefill=pool(2),
        decode=pool(kv_capacity_tokens=1200),
        kv_transfer={"latency": "1 s"},
        failures=[{"pool": "prefill", "instance": 0, "at": "500 ms"}],
    )
    result, log = run(job, cluster)
    check_conservation(result, log.all_requests())
    assert (result.restarts, result.finished) == (1, 2)


@pytest.mark.parametrize(
    ("second", "back_s"),
    [
        ({"at": "4 s", "returns_after": "3 s"}, 7.0),
        ({"at": "3500 ms", "returns_after": "500 ms"}, 5.0),
        ({"at": "4 s"}, None),
    ],
)
def test_of_overlapping_failures_the_longest_decides_the_return(
    cluster: ClusterProfile, second: dict[str, Any], back_s: float | None
) -> None:
    job = make_job(
        fixed_requests(200, 300, 20, rate="20 Hz"),
        prefill=pool(),
        decode=pool(),
        failures=[
            {"pool": "prefill", "instance": 0, "at": "3 s", "returns_after": "2 s"},
            {"pool": "prefill", "instance": 0, **second},
        ],
    )
    result, log = run(job, cluster)
    check_conservation(result, log.all_requests())
    passes = log.all_iterations()
    starts = passes.where(passes["prefill_tokens"] > 0)["start_s"]
    later = starts[starts > 3.0]
    if back_s is None:
        assert not len(later)
        assert result.unfinished
    else:
        assert later.min() == pytest.approx(back_s)
        assert not result.unfinished


def test_a_fleet_that_is_down_for_good_ends_with_its_requests_unfinished(
    cluster: ClusterProfile,
) -> None:
    job = make_job(
        fixed_requests(50, 300, 100),
        prefill=pool(),
        decode=pool(),
        failures=[{"pool": "decode", "instance": 0, "at": "3 s"}],
    )
    result, log = run(job, cluster)
    check_conservation(result, log.all_requests())
    assert result.unfinished > 0


def test_urgent_requests_wait_less_under_load(cluster: ClusterProfile) -> None:
    requests = fixed_requests(400, 500, 5, rate="100 Hz")
    requests["synthetic"]["priority_shares"] = (1.0, 1.0)
    _, log = run(make_job(requests, prefill=pool(), decode=pool()), cluster)
    rows = log.all_requests()
    ttft = rows["first_token_s"] - rows["arrival_s"]
    assert ttft[rows["priority"] == 0].mean() < 0.5 * ttft[rows["priority"] == 1].mean()


def test_accepted_drafts_shorten_the_answer_by_the_tokens_of_a_step(
    cluster: ClusterProfile,
) -> None:
    requests = fixed_requests(1, 100, 186)
    plain = run(make_job(requests, prefill=pool(), decode=pool()), cluster)[1]
    speculative = {"draft_tokens": 1, "acceptance": 0.85}
    drafted = run(
        make_job(requests, prefill=pool(), decode=pool(), speculative_decoding=speculative),
        cluster,
    )[1]
    assert plain.all_iterations()["steps"].sum() == 185
    assert drafted.all_iterations()["steps"].sum() == 100


def test_users_of_a_closed_loop_wait_for_their_answers(cluster: ClusterProfile) -> None:
    requests = fixed_requests(50, 100, 20)
    synthetic = requests["synthetic"]
    del synthetic["rate"]
    synthetic |= {"arrivals": "closed_loop", "users": 3, "think_time": "100 ms"}
    result, log = run(make_job(requests, colocated=pool()), cluster)
    check_conservation(result, log.all_requests())
    assert result.finished == 50
    assert log.all_iterations()["batch"].max() <= 3


class Told(CollectedLog):
    """When the last of the first requests arrived."""

    at_s = math.inf

    def first_arrived(self, now_s: float) -> None:
        self.at_s = now_s


def test_a_run_of_the_first_requests_has_the_rows_of_the_whole_run_up_to_their_last_arrival(
    cluster: ClusterProfile,
) -> None:
    job = make_job(
        fixed_requests(200, prompt=100, output=20, rate="20 Hz"),
        prefill=pool(),
        decode=pool(),
        sample_interval="1 s",
    )
    times = {name: AffineStepTimes(spec.affine) for name, spec in job.pools.items() if spec.affine}
    told, whole = Told(), Told()
    part = run_fleet(job, times, cluster, seed=0, logs=[told], first=80, only_first=True)
    result = run_fleet(job, times, cluster, seed=0, logs=[whole], first=80)
    arrivals = whole.all_requests()
    last = float(arrivals["arrival_s"][arrivals["request"] == 79][0])
    assert told.at_s == whole.at_s == last
    # At the first look behind it that finds no earlier request without its first token.
    assert part.end_s == math.ceil(last) == 4.0
    assert (part.arrived, result.arrived) == (84, 200)
    rows, all_rows = told.all_iterations(), whole.all_iterations()
    begun = rows.where(rows["start_s"] < last).rows
    assert np.array_equal(begun, all_rows.where(all_rows["start_s"] < last).rows)
    ended = told.all_requests()
    first = ended.where(ended["request"] < 80)
    assert len(first) == 80
    order = np.argsort(first["request"])
    known = arrivals.rows[np.argsort(arrivals["request"])][:80]
    assert np.array_equal(first["first_token_s"][order], known[:, 3])


def test_a_closed_loop_ends_when_its_fleet_is_down_for_good(cluster: ClusterProfile) -> None:
    requests = fixed_requests(50, 100, 20)
    synthetic = requests["synthetic"]
    del synthetic["rate"]
    synthetic |= {"arrivals": "closed_loop", "users": 3, "think_time": "100 ms"}
    down = {"pool": "colocated", "instance": 0, "at": "1 s"}
    result, log = run(make_job(requests, colocated=pool(), failures=[down]), cluster)
    check_conservation(result, log.all_requests())
    assert result.unfinished == 3


def test_the_next_hour_replaces_an_instance_that_has_failed(cluster: ClusterProfile) -> None:
    job = make_job(
        fixed_requests(20, 300, 50, rate="1 Hz"),
        colocated=pool(2, hourly_instances=[1] * 24),
        failures=[{"pool": "colocated", "instance": 0, "at": "5 s"}],
    )
    result, log = run(job, cluster)
    check_conservation(result, log.all_requests())
    assert result.finished == 20
    assert result.instances[1].in_service[-1][0] == pytest.approx(3600)


def _prefix_cache(*tiers: dict[str, Any]) -> dict[str, Any]:
    return {"block_tokens": 512, "tiers": tiers}


def test_a_given_hit_rate_is_loaded_from_the_slowest_tier(cluster: ClusterProfile) -> None:
    requests = fixed_requests(1, 1000, 1)
    requests["synthetic"]["cached_fraction"] = 0.5
    disk = {
        "name": "disk",
        "scope": "fleet",
        "capacity_tokens": "unlimited",
        "load_bandwidth": "1 GB/s",
    }
    job = make_job(requests, prefill=pool(), decode=pool(), prefix_cache=_prefix_cache(disk))
    _, log = run(job, cluster)
    rows = log.all_requests()
    load = 500 * 70272 / 1e9
    # 500 new tokens behind 500 cached ones.
    compute = 0.005 + 500 * (20e-6 + 10e-9 * (500 + 250.5))
    ttft = rows["first_token_s"][0] - rows["arrival_s"][0]
    assert ttft == pytest.approx(load + compute, rel=1e-9)
    assert rows["cached_tokens"][0] == 500


@pytest.mark.shared
@pytest.mark.parametrize(("trace", "published"), [("conversation", 0.366), ("synthetic", 0.640)])
def test_an_unlimited_prefix_cache_hits_the_published_share_of_the_mooncake_blocks(
    cluster: ClusterProfile, trace: str, published: float
) -> None:
    path = SHARED / f"mooncake_{trace}.jsonl"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the checkout")
    fast = {**STEP_TIMES, "prefill_fixed": "1 ms", "prefill_per_token": "1 us"}
    fast |= {"prefill_per_attended_token": "0 s", "kv_capacity_tokens": 10**6}
    job = make_job(
        {"file": str(path), "format": "mooncake"},
        prefill=pool(affine=fast, tokens_per_pass=8192),
        decode=pool(affine=fast, max_batch=10**6),
        prefix_cache=_prefix_cache(
            {"name": "hbm", "scope": "instance", "capacity_tokens": "unlimited"}
        ),
    )
    result, log = run(job, cluster)
    rows = log.all_requests()
    hits = rows["hit_blocks"].sum() / rows["blocks"].sum()
    assert hits == pytest.approx(published, abs=0.0005)
    check_conservation(result, rows)
    assert ideal_hit_rate(iter([])) == 0.0


def test_a_run_that_looks_too_often_ends_with_the_field_to_change(
    cluster: ClusterProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulator.execution.fleet.fleet.MOST_SAMPLES", 1000)
    job = make_job(
        fixed_requests(5, 100, 10), prefill=pool(), decode=pool(), sample_interval="1 ns"
    )
    with pytest.raises(
        ValueError, match=r"fleet.sample_interval 1e-09 s: .* after 1,000 looks, 1e-06 s"
    ):
        run(job, cluster)
