"""Metrics of fleets against what the raw rows of the same run say."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fleet_figures import POOL, STEP_TIMES, make_job

from hardware_profiles.schema import ClusterProfile, load_cluster
from simulator.analysis.fleet_metrics import (
    DEFINED,
    PREFILL_SHARES,
    _hit_rate,
    _nodes_at_least,
    _pool_figures,
    _prefill_shares,
    _sustained_input,
    _sustained_output,
    _verdict,
    definitions,
    fleet_distributions,
    fleet_metrics,
    fleet_time_series,
    measure_fleet,
    observe_fleet,
)
from simulator.analysis.fleet_statistics import FleetStatistics
from simulator.execution.fleet.accounts import FleetRun
from simulator.execution.fleet.fleet import run_fleet
from simulator.execution.fleet.log import CollectedLog, Outcome
from simulator.execution.fleet.simulation import prepare_fleet
from simulator.execution.fleet.step_times import AffineStepTimes
from simulator.scenario.analysis_inputs import VerdictRules
from simulator.scenario.files import load_scenario
from simulator.scenario.fleet import AffineCoefficients, FleetJob


@pytest.fixture(scope="module")
def cluster() -> ClusterProfile:
    return load_cluster("h800_2048")


def run(
    job: FleetJob, cluster: ClusterProfile
) -> tuple[dict[str, Any], FleetRun, CollectedLog, FleetStatistics]:
    """Run the same job twice: once with statistics, once with all rows kept."""
    times = {
        name: AffineStepTimes(AffineCoefficients.model_validate(STEP_TIMES)) for name in job.pools
    }
    statistics, rows = FleetStatistics(job), CollectedLog()
    result = run_fleet(job, times, cluster, seed=0, logs=[statistics])
    run_fleet(job, times, cluster, seed=0, logs=[rows])
    return (
        fleet_metrics(job, cluster, result, statistics, step_times=times, rules=VerdictRules()),
        result,
        rows,
        statistics,
    )


def token_gaps(rows: CollectedLog) -> list[float]:
    """Every gap between two tokens, one by one, from iterations and gaps."""
    gaps = list(rows.all_gaps()["gap_s"])
    iterations = rows.all_iterations()
    for row in iterations.rows:
        start, end, steps, batch, joined, first, last = row[[1, 2, 3, 4, 5, 7, 8]]
        if not steps:
            continue
        gaps += [first] * int(batch - joined)
        if steps > 1:
            mean = (end - start - first) / (steps - 1)
            later = np.linspace(2 * mean - last, last, int(steps - 1))
            gaps += list(np.repeat(later, int(batch)))
    return gaps


def test_the_gaps_of_all_requests_sum_to_their_times_between_first_and_last_token(
    cluster: ClusterProfile,
) -> None:
    job = make_job("20 Hz", warm_up="0 s", horizon="1 h")
    metrics, _, log, _ = run(job, cluster)
    rows = log.all_requests()
    gaps = token_gaps(log)
    assert len(gaps) == int((rows["output_tokens"] - 1).sum())
    assert sum(gaps) == pytest.approx(float((rows["end_s"] - rows["first_token_s"]).sum()))
    # The window leaves out only the drain after the last arrival.
    assert metrics["itl_s"]["count"] == pytest.approx(len(gaps), rel=0.05)
    assert metrics["itl_s"]["p50"] == pytest.approx(np.quantile(gaps, 0.5), rel=0.02)


def test_rates_are_the_tokens_of_the_window(cluster: ClusterProfile) -> None:
    metrics, result, log, _ = run(make_job("20 Hz"), cluster)
    start, end = metrics["window_s"]
    assert (start, end) == (5.0, result.last_arrival_s)
    rows = log.all_iterations()
    share = np.clip(
        (np.minimum(rows["end_s"], end) - np.maximum(rows["start_s"], start))
        / (rows["end_s"] - rows["start_s"]),
        0,
        1,
    )
    tokens = float((rows["output_tokens"] * share).sum())
    assert metrics["output_tokens_per_second"] == pytest.approx(tokens / (end - start))
    assert metrics["output_tokens_per_second_per_node"] == pytest.approx(tokens / (end - start))
    # 16 GPUs at 2 USD an hour.
    dollars = 16 * 2 / 3600 / (tokens / (end - start)) * 1e6
    assert metrics["cost_usd_per_million_output_tokens"] == pytest.approx(dollars)


def test_a_node_sustains_what_full_passes_and_batches_give(cluster: ClusterProfile) -> None:
    """A service asked for far more than it can do does what a saturated node is said to do."""
    prompts = {"kind": "constant", "mean": 512}
    source = {"arrivals": "poisson", "rate": "400 Hz", "count": 6000, "prompt_tokens": prompts}
    requests = {"synthetic": source | {"output_tokens": {"kind": "constant", "mean": 1}}}
    metrics, *_ = run(make_job("", requests=requests, warm_up="2 s"), cluster)
    assert metrics["input_tokens_per_second_per_node"] == pytest.approx(
        metrics["sustained_input_tokens_per_second_per_node"], rel=0.01
    )
    # A step of b requests at C tokens takes 10 ms + b * (100 us + C * 1 us); the limit is 15 ms.
    steady, *_ = run(make_job("20 Hz"), cluster)
    context = steady["pools"]["decode"]["kv_tokens_per_request"]
    batch = int(5e-3 / (100e-6 + context * 1e-6))
    step_s = 10e-3 + batch * (100e-6 + context * 1e-6)
    assert steady["sustained_output_tokens_per_second_per_node"] == pytest.approx(
        2 * batch / step_s
    )


def test_pools_without_failures_or_hours_count_whole_nodes(cluster: ClusterProfile) -> None:
    metrics, *_ = run(make_job("20 Hz", prefill=POOL | {"instances": 3}), cluster)
    assert metrics["pools"]["prefill"]["nodes"] == 3.0
    assert metrics["nodes"] == 4.0


def test_littles_law_holds_between_two_independent_counts(cluster: ClusterProfile) -> None:
    metrics, *_ = run(make_job("20 Hz"), cluster)
    assert metrics["littles_law_error"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("rate", "count", "verdict"),
    [("20 Hz", 1500, "stable"), ("400 Hz", 6000, "overloaded")],
)
def test_the_verdict_tells_a_service_that_keeps_up_from_one_that_does_not(
    cluster: ClusterProfile, rate: str, count: int, verdict: str
) -> None:
    metrics, *_ = run(make_job(rate, count, warm_up="1 s"), cluster)
    assert metrics["verdict"] == verdict


def test_a_queue_that_is_long_but_does_not_grow_is_a_backlog(cluster: ClusterProfile) -> None:
    """40 users without think time keep about the same queue before a slow service."""
    closed = {
        "synthetic": {
            "arrivals": "closed_loop",
            "users": 40,
            "think_time": "0 s",
            "count": 2000,
            "prompt_tokens": {"kind": "constant", "mean": 300},
            "output_tokens": {"kind": "constant", "mean": 2},
        }
    }
    job = make_job(
        "20 Hz", requests=closed, service_level={"ttft": "1 ms", "tpot": "15 ms"}, warm_up="1 s"
    )
    metrics, *_ = run(job, cluster)
    assert metrics["verdict"] == "backlogged"


def test_a_service_that_preempts_its_requests_is_not_stable(cluster: ClusterProfile) -> None:
    limits = {"ttft": "1 h", "tpot": "1 h"}
    roomy, *_ = run(make_job("40 Hz", 1500, service_level=limits), cluster)
    small = POOL | {"kv_capacity_tokens": 4000}
    tight, *_ = run(make_job("40 Hz", 1500, service_level=limits, decode=small), cluster)
    assert (roomy["verdict"], roomy["preempted_share"]) == ("stable", 0.0)
    assert tight["preempted_share"] > 0.05
    assert tight["verdict"] in ("backlogged", "overloaded")


def test_a_window_of_few_stays_has_no_verdict(cluster: ClusterProfile) -> None:
    metrics, *_ = run(make_job("20 Hz", 30, warm_up="0 s"), cluster)
    assert metrics["window_stays"] < 5
    assert metrics["verdict"] is None


def test_the_rate_of_a_user_does_not_depend_on_how_soon_the_arrivals_end(
    cluster: ClusterProfile,
) -> None:
    """Long answers: in a short run most tokens are generated while the service empties."""

    def rate(count: int) -> float:
        metrics, *_ = run(make_job("6 Hz", count, answer=200, warm_up="30 s"), cluster)
        return float(metrics["tokens_per_second_per_user"])

    assert rate(360) == pytest.approx(rate(1200), rel=0.05)


def test_goodput_counts_only_requests_within_both_limits(cluster: ClusterProfile) -> None:
    job = make_job("40 Hz")
    metrics, _, log, _ = run(job, cluster)
    rows = log.all_requests()
    start, end = metrics["window_s"]
    rows = rows.where((rows["end_s"] >= start) & (rows["end_s"] <= end))
    ttft = rows["first_token_s"] - rows["arrival_s"]
    later = np.maximum(rows["output_tokens"] - 1, 1)
    tpot = (rows["end_s"] - rows["first_token_s"]) / later
    good = int(((ttft <= 0.2) & (tpot <= 0.015)).sum())
    assert 0 < good < len(rows)
    assert metrics["goodput_requests_per_second"] == pytest.approx(good / (end - start))


def test_what_a_prefill_node_took_is_a_saturated_one_times_three_shares(
    cluster: ClusterProfile,
) -> None:
    metrics, *_ = run(make_job("20 Hz"), cluster)
    product = metrics["sustained_input_tokens_per_second_per_node"]
    for name in PREFILL_SHARES:
        assert 0 < metrics[name] <= 1
        product *= metrics[name]
    assert product == pytest.approx(metrics["input_tokens_per_second_per_node"], rel=0.02)


def test_shares_of_a_prefill_pool_by_hand() -> None:
    """Two instances of two nodes each were busy for 8 of 10 s, 6 s with ranks that are alike, and
    computed 4,000 tokens of prompts a fifth of which was cached; a node sustains 600 per second."""
    sums = [
        {"pass_seconds": 6.0, "even_pass_seconds": 4.0, "prefill_tokens": 3000.0},
        {"pass_seconds": 2.0, "even_pass_seconds": 2.0, "prefill_tokens": 1000.0},
    ]
    found = _prefill_shares(
        SimpleNamespace(prefill=SimpleNamespace(gpus_per_instance=16)),
        SimpleNamespace(node=SimpleNamespace(gpus=8)),
        SimpleNamespace(instances=dict(enumerate(sums)), prompt_tokens=1000, cached_tokens=200),
        sustained=600.0,
        instance_s=10.0,
    )
    full = 4000 / 0.8 / 6 / 2 / 600
    assert list(found) == list(PREFILL_SHARES)
    assert list(found.values()) == pytest.approx([0.8, 0.75, full], rel=1e-12)


def node(gpus: int) -> SimpleNamespace:
    return SimpleNamespace(node=SimpleNamespace(gpus=gpus))


@pytest.mark.parametrize(
    ("tpot_s", "largest", "capacity", "rate"),
    [
        # Two tokens in a step of at most 16 s: 8 requests on each of 4 ranks, of two nodes.
        (8.0, 64, None, 4 * 8 * 2 / 16 / 2),
        (8.0, 3, None, 4 * 3 * 2 / 11 / 2),
        # Of 650 tokens of KV cache, 100 each.
        (8.0, 64, 650, 4 * 6 * 2 / 14 / 2),
        (4.0, 64, None, 0.0),
    ],
)
def test_a_decode_node_sustains_the_largest_batch_within_its_limit(
    tpot_s: float, largest: int, capacity: int | None, rate: float
) -> None:
    """A step takes 8 s and 1 s more for each request of a rank."""
    pool = SimpleNamespace(
        kv_capacity_tokens=capacity, max_batch=largest, ranks=4, gpus_per_instance=16
    )
    job = SimpleNamespace(
        decode=pool, tokens_per_step=2, service_level=SimpleNamespace(tpot=tpot_s)
    )
    times = SimpleNamespace(
        kv_capacity_tokens=5000, decode_step_s=lambda size, context: 8 + size + context - 100
    )
    assert _sustained_output(job, node(8), 100.0, step_times={"decode": times}) == rate


def test_a_prefill_node_sustains_full_passes_and_what_its_cache_holds() -> None:
    """Passes of 1,000 tokens on 4 ranks of two nodes in 1.5 s; a fifth of the prompts is cached."""
    job = SimpleNamespace(
        prefill=SimpleNamespace(tokens_per_pass=1000, ranks=4, gpus_per_instance=16)
    )
    statistics = SimpleNamespace(prompt_tokens=1000, cached_tokens=200, attended_tokens=40_000)
    times = SimpleNamespace(prefill_pass_s=lambda tokens, each: tokens / 1000 + each / 100)
    found = _sustained_input(job, node(8), statistics, step_times={"prefill": times})
    assert found == pytest.approx(4 * 1000 / 1.5 / 2 * 1.25, rel=1e-12)


def test_the_least_nodes_are_those_of_both_pools_in_all_replicas() -> None:
    job = SimpleNamespace(replicas=3)
    assert _nodes_at_least(job, 100.0, 60.0, sustained=(50.0, 15.0)) == 3 * (2 + 4)
    assert _nodes_at_least(job, 100.0, 60.0, sustained=(0.0, 15.0)) is None
    assert _nodes_at_least(job, 100.0, 60.0, sustained=(50.0, None)) is None


def test_figures_of_a_pool_are_those_of_its_own_instances() -> None:
    """Of 10 s one instance was there for all, one for 5; each of four nodes."""
    sums = {"busy_seconds": 3.0, "batch_seconds": 12.0, "decode_seconds": 2.0}
    sums |= {"kv_token_seconds": 600.0, "prefill_tokens": 900.0, "passes": 3.0}
    instances = [
        SimpleNamespace(
            pool=pool, kv_capacity_tokens=tokens, in_service_s=lambda a, b, n=share: n * (b - a)
        )
        for pool, tokens, share in (("decode", 100, 1.0), ("prefill", 9, 1.0), ("decode", 200, 0.5))
    ]
    found = _pool_figures(
        "decode",
        SimpleNamespace(pools={"decode": SimpleNamespace(gpus_per_instance=32)}),
        node(8),
        run=SimpleNamespace(instances=instances, end_s=30.0),
        statistics=SimpleNamespace(instances=dict.fromkeys(range(3), sums)),
        window_s=(10.0, 20.0),
    )
    assert found == {
        "instances": 1.5,
        "nodes": 6.0,
        "utilisation": 6 / 15,
        "mean_batch_per_instance": 6.0,
        "kv_occupancy": 1200 / (100 * 10 + 200 * 5),
        "mean_pass_tokens": 300.0,
        "kv_tokens_per_request": 50.0,
        "kv_capacity_tokens": 300,
    }


@pytest.mark.parametrize(
    ("preempted", "ttft_s", "refused", "verdict"),
    [
        (0, 4.0, 0, "stable"),
        (0, 3.0, 0, "backlogged"),
        (5, 4.0, 0, "backlogged"),
        # The queue grows by a quarter of what arrives, and a twentieth is turned away.
        (5, 4.0, 3, "overloaded"),
    ],
)
def test_the_verdict_of_a_window_by_hand(
    preempted: int, ttft_s: float, refused: int, verdict: str
) -> None:
    """Twenty seconds from 4 s on, in bins of two with eight arrivals each, of which the second half
    counts: at t seconds two looks at the queues see 1.5t and 0.5t requests, so that 14 wait on
    average."""

    class Series(dict[str, Any]):
        starts_s, width_s = np.arange(4.0, 28.0, 2.0), 2.0

    later = Series.starts_s - 4.0
    series = Series(
        samples=np.full(12, 2.0),
        arrivals=np.full(12, 8.0),
        waiting_prefill=1.5 * later,
        waiting_decode=0.5 * later,
    )
    found = _verdict(
        SimpleNamespace(service_level=SimpleNamespace(ttft=ttft_s)),
        SimpleNamespace(
            series=series, preempted=preempted, counted=50, service_seconds=100.0,
            refused=refused, arrived=60,
        ),
        4.0,
        24.0,
        rules=VerdictRules(queue_growth=0.27, window_stays=3, preempted_share=0.05),
    )  # fmt: skip
    assert found == {
        "verdict": verdict,
        "waiting_growth": pytest.approx(0.25, rel=1e-9),
        "mean_wait_s": 14 / 4,
        "preempted_share": preempted / 50,
        "refused_share": refused / 60,
        "window_stays": 10.0,
    }


@pytest.mark.parametrize(("end_s", "growth"), [(6.0, None), (8.0, 0.5)])
def test_the_growth_of_a_queue_is_told_from_two_bins_on(end_s: float, growth: float | None) -> None:
    """Bins of 2 s with eight arrivals each: at time t 2t requests wait. The second half of 6 s is
    the bin of 4 s alone, that of 8 s those of 4 and 6."""

    class Series(dict[str, Any]):
        starts_s, width_s = np.arange(0.0, 24.0, 2.0), 2.0

    full = np.full(12, 1.0)
    series = Series(
        samples=full,
        arrivals=8 * full,
        waiting_prefill=2 * Series.starts_s,
        waiting_decode=0 * full,
    )
    statistics = SimpleNamespace(
        series=series, preempted=0, counted=50, service_seconds=10.0, refused=0, arrived=60
    )
    job = SimpleNamespace(service_level=SimpleNamespace(ttft=1e9))
    found = _verdict(job, statistics, 0.0, end_s, rules=VerdictRules())  # type: ignore[arg-type]
    assert found["waiting_growth"] == (None if growth is None else pytest.approx(growth))
    assert (found["verdict"] is None) == (growth is None)


def test_distributions_have_a_hundred_steps() -> None:
    counted = SimpleNamespace(cumulative=lambda points: (np.zeros(points), np.ones(points)))
    names = ("ttft", "tpot", "itl", "e2e", "queueing")
    found = fleet_distributions(SimpleNamespace(**dict.fromkeys(names, counted)))  # type: ignore[arg-type]
    assert {name: len(curve["share"]) for name, curve in found.items()} == {
        f"{name}_s": 101 for name in names
    }


def test_the_hit_rate_is_that_of_blocks_where_there_are_any_and_else_of_tokens() -> None:
    blocks = SimpleNamespace(blocks=8, hit_blocks=2, cached_tokens=90, prompt_tokens=100)
    tokens = SimpleNamespace(blocks=0, hit_blocks=0, cached_tokens=3, prompt_tokens=4)
    none = SimpleNamespace(blocks=0, hit_blocks=0, cached_tokens=0, prompt_tokens=0)
    assert [_hit_rate(each) for each in (blocks, tokens, none)] == [0.25, 0.75, None]


@pytest.mark.parametrize(("end_s", "bins"), [(0.0, 1), (3.0, 2), (4.0, 2), (4.5, 3)])
def test_a_time_series_has_the_bins_of_the_run_and_one_where_it_ends_at_once(
    end_s: float, bins: int
) -> None:
    """Bins of 2 s with three arrivals each, the last of which counts as far as the run went."""

    class Series(dict[str, Any]):
        starts_s, width_s = np.arange(0.0, 8.0, 2.0), 2.0

        def __missing__(self, name: str) -> Any:
            return np.full(4, 3.0)

    statistics = SimpleNamespace(series=Series())
    found = fleet_time_series(
        make_job("1 Hz"), SimpleNamespace(instances=[], end_s=end_s), statistics
    )
    assert found["time_s"] == [0.0, 2.0, 4.0][:bins]
    lengths = [min(2.0, end_s - start) for start in found["time_s"]]
    rates = [3 / length if length else None for length in lengths]
    assert found["arrivals_per_second"] == pytest.approx(rates)
    assert found["kv_occupancy"] == [None] * bins


def test_the_rules_of_the_verdict_stand_in_its_definition() -> None:
    rules = VerdictRules(queue_growth=0.2, window_stays=3)
    text = definitions(make_job("20 Hz"), rules)["verdict"]
    assert "more than 20% of the arrivals" in text
    assert "shorter than 3 mean" in text


def test_every_headline_figure_has_a_definition(cluster: ClusterProfile) -> None:
    metrics, *_ = run(make_job("20 Hz"), cluster)
    assert set(DEFINED) <= set(metrics)


def test_a_run_in_which_nothing_finishes_has_figures_without_values(
    cluster: ClusterProfile,
) -> None:
    job = make_job("20 Hz", horizon="1 ms", warm_up="0 s")
    metrics, *_ = run(job, cluster)
    assert metrics["ttft_s"]["count"] == 0
    assert metrics["ttft_s"]["p99"] is None
    assert metrics["tokens_per_second_per_user"] is None


def test_requests_that_a_horizon_cuts_off_count_for_what_has_happened_to_them(
    cluster: ClusterProfile,
) -> None:
    """To leave them out would show an overloaded service only by its luckiest requests."""
    metrics, result, log, _ = run(make_job("60 Hz", 4000, answer=200, horizon="8 s"), cluster)
    rows = log.all_requests()
    rows = rows.where((rows["arrival_s"] >= 5.0) & (rows["first_token_s"] >= 0))
    unfinished = rows["outcome"] == Outcome.UNFINISHED
    assert 0 < unfinished.sum() < len(rows)
    assert metrics["ttft_s"]["count"] == len(rows)
    waits = rows["first_token_s"] - rows["arrival_s"]
    assert metrics["ttft_s"]["mean"] == pytest.approx(waits.mean())
    assert result.unfinished > 0


def test_a_service_that_turns_requests_away_is_overloaded(cluster: ClusterProfile) -> None:
    """Its queue is short because of that."""
    limits = {"ttft": "1 h", "tpot": "1 h"}
    job = make_job("400 Hz", 6000, warm_up="1 s", max_waiting=5, service_level=limits)
    metrics, *_ = run(job, cluster)
    assert metrics["refused_share"] > 0.1
    assert metrics["verdict"] == "overloaded"


def test_a_service_that_can_take_no_request_has_no_verdict(cluster: ClusterProfile) -> None:
    small = POOL | {"kv_capacity_tokens": 1}
    metrics, *_ = run(make_job("20 Hz", 600, warm_up="0 s", decode=small), cluster)
    assert metrics["requests"]["rejected_by_reason"] == {"too_long": 600}
    assert metrics["verdict"] is None


@pytest.mark.parametrize("rate", ["10 kHz", "1 GHz"])
def test_a_burst_is_measured_until_all_of_it_is_done(cluster: ClusterProfile, rate: str) -> None:
    job = make_job(rate, 600, warm_up="0 s")
    metrics, result, log, _ = run(job, cluster)
    assert metrics["window_s"] == [0.0, result.end_s]
    assert metrics["e2e_s"]["count"] == 600
    tokens = float(log.all_requests()["output_tokens"].sum()) / result.end_s
    assert metrics["output_tokens_per_second"] == pytest.approx(tokens, rel=0.05)


def test_a_run_within_its_warm_up_has_no_window(cluster: ClusterProfile) -> None:
    metrics, *_ = run(make_job("20 Hz", 10, warm_up="1 h"), cluster)
    assert metrics["window_s"] is None
    assert (metrics["verdict"], metrics["goodput_requests_per_second"]) == (None, None)
    assert metrics["nodes"] == 2.0


def test_figures_per_node_are_of_the_nodes_of_the_window(cluster: ClusterProfile) -> None:
    """Three instances for the hour of the warm-up, one for the hour behind it."""
    colocated = POOL | {"instances": 3, "hourly_instances": [3, 1] + [1] * 22}
    job = make_job(
        "0.5 Hz", 3600, answer=20, warm_up="1 h", sample_interval="10 s",
        prefill=None, decode=None, colocated=colocated,
    )  # fmt: skip
    metrics, result, log, statistics = run(job, cluster)
    assert metrics["nodes"] == pytest.approx(1.0, rel=1e-3)
    assert metrics["output_tokens_per_second_per_node"] == pytest.approx(
        metrics["output_tokens_per_second"], rel=1e-3
    )
    rows = log.all_iterations()
    start, end = metrics["window_s"]
    rows = rows.where((rows["start_s"] >= start) & (rows["end_s"] <= end))
    held = float(rows["kv_tokens"] @ (rows["end_s"] - rows["start_s"])) / (end - start)
    capacity = result.instances[0].kv_capacity_tokens
    assert metrics["kv_occupancy"] == pytest.approx(held / capacity, rel=0.01)
    series = fleet_time_series(job, result, statistics)
    later = [
        value
        for time, value in zip(series["time_s"], series["kv_occupancy"], strict=True)
        if time is not None and start + 60 < time < end - 60 and value is not None
    ]
    assert np.mean(later) == pytest.approx(held / capacity, rel=0.05)


@pytest.mark.parametrize(("name", "rows"), [("mooncake_conversation", 1), ("another_trace", 0)])
def test_published_figures_are_shown_only_beside_the_requests_that_they_are_of(
    tmp_path: Path, name: str, rows: int
) -> None:
    trace = tmp_path / f"{name}.jsonl"
    lines = [
        {"timestamp": 100 * n, "input_length": 600, "output_length": 3, "hash_ids": [0, n + 1]}
        for n in range(4)
    ]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    scenario = load_scenario("mooncake_conversation", [f"requests.file={trace}"])
    published = measure_fleet(observe_fleet(prepare_fleet(scenario)))["published"]
    assert len(published) == rows
    assert all(row["kind"] == "predicted" for row in published)


SHORT = "requests.limit=60"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            ["warm_up=1 h"],
            "the last of 60 requests arrives at 14.49 s, before fleet.warm_up = 3600 s",
        ),
        (
            ["warm_up=0 s", "horizon=1 ms"],
            r"requests 0 finish, .* \(none rejected, .* allowed: a longer fleet.horizon",
        ),
    ],
)
def test_a_run_that_measures_nothing_is_refused_with_the_reason(changes, reason) -> None:
    fleet = prepare_fleet(load_scenario("azure_conversation", [SHORT, *changes]))
    with pytest.raises(ValueError, match=f"fleet: nothing is measured: .*{reason}"):
        observe_fleet(fleet)
