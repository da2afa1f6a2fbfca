"""Prices of deployments, by the step times of the fleets that they are to stand for."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from reference_model.config import load_model_config
from simulator.analysis.plan import serving_prices
from simulator.analysis.plan.serving_bounds import demand_of, interpolated
from simulator.analysis.plan.serving_prices import (
    BatchPrice,
    Measured,
    Price,
    _fitting,
    _kv_beside,
    _limit_above,
    _most,
    _prepared,
    first_tokens_only,
    pool_alone,
    price_of,
    run_of,
)
from simulator.execution.fleet.simulation import prepare_fleet
from simulator.scenario.files import scenario_from
from simulator.scenario.fleet import FleetJob
from simulator.scenario.starting_serving import (
    Deployment,
    Pool,
    service_by_flags,
    serving_machine,
)

MODEL = "moonlight_16b_a3b"
PREFILL = Deployment("prefill", 2, attention_tp=2, expert_tp=2)
DECODE = Deployment("decode", 2, attention_tp=2, expert_tp=2)


@pytest.fixture(scope="module")
def service():
    return service_by_flags(
        model=MODEL,
        config=load_model_config(MODEL),
        machine=serving_machine(gpu="h200", cluster=None),
        rate=20.0,
        prompt=1024,
        output=32,
        ttft_s=0.1,
        tpot_s=0.01,
    )


@pytest.fixture(scope="module")
def demand(service):
    raw = pool_alone(service, Pool((PREFILL,), 1, 1, 4096))
    job = scenario_from("t", raw, (), where="t").job_as(FleetJob)
    return demand_of(job.requests, percentile=90, seed=0, hits=False)


def times_of(service, pool):
    fleet = prepare_fleet(scenario_from("t", pool_alone(service, pool), (), where="t"))
    return fleet.step_times[pool.role]


def test_a_pass_and_a_prompt_alone_take_what_a_fleet_would_take_for_them(service, demand):
    price = price_of(service, demand, PREFILL, expected=True, tpot_limits=())
    times = times_of(service, Pool((PREFILL,), 1, 1, 4096))
    assert price.reason is None
    assert price.seconds[4096.0] == times.prefill_pass_s(4096, demand.attended_tokens)
    assert price.alone_s[4096] == times.prefill_pass_s(1024, 512.5)
    assert sorted(price.alone_s) == [4096, 8192, 16384]
    long = replace(demand, long_prompt=5000.0)
    chunks = price_of(service, long, PREFILL, expected=True, tpot_limits=())
    # 4,096 tokens, then 904 behind them: token i of these attends to 4,096 + i.
    assert chunks.alone_s[4096] == pytest.approx(
        times.prefill_pass_s(4096, 2048.5) + times.prefill_pass_s(904, 4096 + 452.5), rel=1e-12
    )


def test_the_batch_of_a_limit_is_where_a_step_takes_as_long(service, demand):
    price = price_of(service, demand, DECODE, expected=True, tpot_limits=(0.01,))
    times = times_of(service, Pool((DECODE,), 1, 64))
    found = price.batches[0.01]
    assert found.binds == "TPOT"
    assert times.decode_step_s(found.batch, demand.context) == pytest.approx(0.01, rel=1e-9)
    # The next batch limit that is a quarter more.
    assert found.max_batch == 384
    assert 256 < 1.25 * found.batch <= 384
    assert (
        price_of(service, demand, DECODE, expected=False, tpot_limits=(1e-4,)).batches[1e-4].batch
        == 0
    )


def test_a_quarter_of_a_request_on_a_rank_takes_as_long_as_in_a_fleet(service, demand):
    price = price_of(service, demand, DECODE, expected=False, tpot_limits=(0.01,))
    fleet, _ = _prepared(service, Pool((DECODE,), 1, 64), {}, expected=False)
    step_s = fleet.step_times["decode"].decode_step_s(0.25, demand.context)
    assert interpolated(price.seconds, 0.25) == step_s < price.seconds[8.0]


def test_looking_near_the_ideal_batch_finds_the_same(service, demand):
    limits = {"expected": True, "tpot_limits": (0.01,)}
    ideal = price_of(service, demand, DECODE, expected=False, tpot_limits=(0.01,))
    near = price_of(service, demand, DECODE, **limits, ideal=ideal)
    far = price_of(service, demand, DECODE, **limits)
    assert near.batches[0.01].batch == pytest.approx(far.batches[0.01].batch, rel=1e-6)
    assert ideal.batches[0.01].batch >= near.batches[0.01].batch


@pytest.mark.parametrize(
    ("limit_s", "near", "batch", "asked"),
    [
        (100.0, None, 100.0, [64, 128, 96, 112, 104, 100, 102, 101, 100, 101]),
        # Below where it begins: three quarters of that, then halves.
        (10.5, None, 10.5, [64, 48, 24, 12, 6, 9, 10, 11, 10, 11]),
        (0.5, None, 0.0, [64, 48, 24, 12, 6, 3, 1]),
        (1000.0, None, 512.0, [64, 128, 256, 512]),
        (18.0, 20.0, 18.0, [20, 15, 18, 19, 18, 19]),
    ],
)
def test_the_largest_batch_is_looked_for_by_doubling_and_halving(limit_s, near, batch, asked):
    looks = []

    def step_s(size):
        looks.append(size)
        return size

    assert _most(step_s, limit_s, near=near) == batch
    assert looks == asked


def test_a_batch_limit_is_the_next_with_a_quarter_to_spare():
    limits = [8, 16, 32, 64, 96, 128, 192, 256, 384, 512]
    assert [_limit_above(0.799 * limit) for limit in limits] == limits
    assert [_limit_above(0.801 * limit) for limit in limits] == [*limits[1:], 512]


@pytest.mark.parametrize(
    ("batch", "held", "found"),
    [
        (100.0, {128: 200_000}, BatchPrice(100.0, 100.0, 10.0, 128, "TPOT")),
        (512.0, {512: 600_000}, BatchPrice(512.0, 512.0, 51.2, 512, "batch limit")),
        # 60 requests fit beside buffers for 128, 70 beside those for 96.
        (100.0, {128: 60_000, 96: 70_000}, BatchPrice(70.0, 100.0, 7.0, 96, "KV cache")),
        # As many as a limit allows.
        (100.0, {128: 6000, 8: 70_000}, BatchPrice(8.0, 100.0, 0.8, 8, "KV cache")),
        (100.0, {128: 500, 8: 500}, BatchPrice(0.5, 100.0, 0.1, 8, "KV cache")),
        (0.0, {}, BatchPrice(0.0, 0.0, 0.1, 8, "TPOT")),
    ],
)
def test_a_batch_that_fits_leaves_room_for_its_requests_and_half_a_page_each(batch, held, found):
    # 968 tokens of context and half of 64; a step takes a tenth of a second for each request.
    model = SimpleNamespace(job=SimpleNamespace(memory=SimpleNamespace(page_tokens=64)))
    demand = SimpleNamespace(context=968.0)
    assert _fitting(batch, lambda size: size / 10, held.__getitem__, demand, model) == found


def test_buffers_are_those_of_all_drafts_of_a_rank_in_a_micro_batch(service, monkeypatch):
    fleet = prepare_fleet(
        scenario_from("t", pool_alone(service, Pool((DECODE,), 1, 64)), (), where="t")
    )
    model = fleet.models["decode"]
    drafts = SimpleNamespace(draft_tokens=2)
    memory = model.job.memory.model_copy(update={"buffer_tokens": 1})
    changed = {"speculative_decoding": drafts, "micro_batches": 2, "memory": memory}
    sized = []
    monkeypatch.setattr(serving_prices, "kv_tokens", lambda asked: sized.append(asked.job) or 7)
    given = replace(model, job=model.job.model_copy(update=changed))
    assert _kv_beside(given, 101) == 7
    # 51 requests on one of two GPUs that share heads, three tokens each, in two micro-batches.
    assert sized[0].memory.buffer_tokens == 77
    assert sized[0].requests.requests_per_group == 101


def test_kv_cache_that_does_not_hold_the_batch_binds(service, demand):
    # 1 M tokens of context are 31 GB of KV cache per request (27 layers x 576 values x 2 bytes).
    long = replace(demand, context=1e6)
    found = price_of(service, long, DECODE, expected=False, tpot_limits=(10.0,)).batches[10.0]
    assert found.binds == "KV cache"
    assert found.batch < found.tpot_batch
    assert found.batch == pytest.approx(4.117, rel=0.02)


def test_a_step_of_a_batch_below_one_request_is_that_of_one(service, demand):
    # 3 M tokens of context leave room for 1.4 requests, 6 M for 0.7.
    for context, whole in ((3e6, False), (6e6, True)):
        long = replace(demand, context=context)
        price = price_of(service, long, DECODE, expected=False, tpot_limits=(10.0,))
        found = price.batches[10.0]
        assert (found.batch < 1) == whole
        assert found.step_s == price.seconds[1.0 if whole else found.batch]


def test_what_does_not_fit_says_so_in_the_words_of_a_run(service, demand):
    large = replace(service, model="deepseek_v3", config=load_model_config("deepseek_v3"))
    price = price_of(large, demand, DECODE, expected=False, tpot_limits=(0.05,))
    assert "beside its KV cache" in price.reason


def test_a_price_reads_back_from_its_row(service, demand):
    for deployment in (PREFILL, DECODE):
        price = price_of(service, demand, deployment, expected=False, tpot_limits=(0.01,))
        assert Price.of_json(price.to_json()) == price


def test_a_prefill_pool_is_simulated_by_its_first_tokens(service, demand):
    alone = first_tokens_only(service, demand, 0.1)
    assert alone.requests["synthetic"]["count"] == service.requests["synthetic"]["count"]
    # 40 TTFT limits of arrivals; it counts as filled after 1.2 x 5 of them.
    many = replace(
        service, requests={"synthetic": service.requests["synthetic"] | {"count": 10**6}}
    )
    found = first_tokens_only(many, replace(demand, rate=250.1), 0.1)
    assert found.requests["synthetic"]["count"] == 1001
    assert alone.requests["synthetic"]["output_tokens"] == {"kind": "constant", "mean": 1}
    assert pool_alone(alone, Pool((PREFILL,), 1, 1, 4096))["fleet"]["warm_up"] == "600 ms"
    trace = replace(service, requests={"file": "x.csv", "format": "azure"})
    assert first_tokens_only(trace, demand, 0.1) is trace
    # A trace comes before what stands beside it.
    both = replace(service, requests=trace.requests | service.requests)
    assert first_tokens_only(both, demand, 0.1) is both


def test_a_fleet_that_cannot_run_is_measured_by_its_reason(service):
    raw = pool_alone(service, Pool((PREFILL,), 10**6, 1, 4096))
    assert "allowed: at most the 2048 of cluster" in run_of(raw, 90, {}).reason
    assert Measured().reason is None


@pytest.mark.parametrize(
    ("affine", "finished", "tpot", "found"),
    [
        (False, 5, 0.02, 0.02),
        # No second token: answers of one, or a pool of no time; where nothing ends, no limit.
        (False, 5, None, 0.0),
        (True, 0, None, 0.0),
        (False, 0, None, math.inf),
    ],
)
def test_a_run_says_what_its_requests_took_and_waited_for(
    monkeypatch, affine, finished, tpot, found
):
    """3 s of 4 s in which instances were busy are passes; a mean wait that is none is of 0 s."""
    metrics = {
        "ttft_s": {"p99": 0.5},
        "tpot_s": {"p99": tpot},
        "queueing_s": {"mean": 0.25},
        "decode_wait_s": {"mean": 0.125},
        "requests": {"finished": finished, "rejected": 2},
        "verdict": "stable",
    }
    fleet = SimpleNamespace(
        simulation=SimpleNamespace(
            job=SimpleNamespace(pools={"decode": SimpleNamespace(affine=affine)}), step_times=None
        ),
        statistics=SimpleNamespace(
            instances={
                0: {"pass_seconds": 1.0, "busy_seconds": 1.5},
                1: {"pass_seconds": 2.0, "busy_seconds": 2.5},
            }
        ),
        run=None,
    )
    scenario = SimpleNamespace(
        cluster=None, file=SimpleNamespace(analysis=SimpleNamespace(verdict=None))
    )
    monkeypatch.setattr(serving_prices, "scenario_from", lambda *_, **__: scenario)
    monkeypatch.setattr(serving_prices, "prepare_fleet", lambda *_, **__: None)
    monkeypatch.setattr(serving_prices, "observe_fleet", lambda _: fleet)
    monkeypatch.setattr(serving_prices, "fleet_metrics", lambda *_, **__: metrics)
    assert serving_prices.run_of({}, 99, {}) == Measured(
        0.5, found, "stable", queueing_s=0.25, decode_wait_s=0.125, rejected=2,
        prefill_share=0.75,
    )  # fmt: skip
    metrics["queueing_s"]["mean"] = metrics["decode_wait_s"]["mean"] = None
    fleet.statistics.instances = {}
    idle = serving_prices.run_of({}, 99, {})
    assert (idle.queueing_s, idle.decode_wait_s, idle.prefill_share) == (0.0, 0.0, 1.0)
