"""The fewest instances of a steady state, by hand."""

import math
from dataclasses import replace

import pytest

from simulator.analysis.plan.serving_bounds import (
    Demand,
    demand_of,
    interpolated,
    least_decode,
    least_prefill,
    most_colocated,
    predicted_tpot,
)
from simulator.scenario.fleet import RequestSource

DEMAND = Demand(
    rate=10.0,
    prompt_tokens=1000.0,
    computed_tokens=1000.0,
    attended_tokens=500.5,
    long_prompt=1000.0,
    long_cached=0.0,
    output_tokens=101.0,
    steps=100.0,
    context=1050.5,
    span_s=100.0,
)


def requests(**changes):
    synthetic = {
        "arrivals": "poisson",
        "rate": "4 Hz",
        "count": 400,
        "prompt_tokens": {"kind": "constant", "mean": 100},
        "output_tokens": {"kind": "constant", "mean": 11},
    }
    return RequestSource.model_validate({"synthetic": synthetic | changes})


def test_the_demand_is_that_of_the_requests_that_a_fleet_simulates():
    found = demand_of(requests(), percentile=90, seed=0, hits=False)
    assert found.rate * found.span_s == pytest.approx(400)
    assert found.steps == 10
    # Token n of a prompt attends to n: (1 + 100) / 2; a step reads the prompt and half the answer.
    assert found.attended_tokens == 50.5
    assert found.context == 105.5
    assert (found.long_prompt, found.long_cached) == (100, 0)


def test_the_demand_of_a_trace_is_that_of_its_rows(tmp_path):
    """A request a second, in some order one of each length from 1 to 200 tokens, each with an
    answer of twice that."""
    lengths = [37 * second % 200 + 1 for second in range(200)]
    rows = [
        f"2023-11-16 18:{second // 60:02}:{second % 60:02},{length},{2 * length}"
        for second, length in enumerate(lengths)
    ]
    trace = tmp_path / "trace.csv"
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    source = RequestSource.model_validate({"file": str(trace), "format": "azure"})
    found = demand_of(source, percentile=90, seed=0, hits=False)
    assert (found.rate, found.span_s) == (pytest.approx(200 / 199), pytest.approx(199))
    assert (found.prompt_tokens, found.computed_tokens, found.output_tokens) == (100.5, 100.5, 201)
    assert found.steps == 200
    # Of n and of n^2 up to 200.
    total, squares = 20_100, 200 * 201 * 401 / 6
    assert found.attended_tokens == pytest.approx((squares + total) / 2 / total, rel=1e-12)
    # Steps of 2n - 1, each of the prompt's n tokens and half of its answer's 2n.
    context = (2 * 2 * squares - 2 * total) / (2 * total - 200)
    assert found.context == pytest.approx(context, rel=1e-12)
    assert (found.long_prompt, found.long_cached, found.random_prompts) == (180, 0, ())


def test_prompts_that_come_at_random_are_known_by_the_shortest_of_equal_shares():
    assert demand_of(requests(), percentile=90, seed=0, hits=False).random_prompts == (100.0,) * 16
    few = requests(count=3, prompt_tokens={"kind": "lognormal", "mean": 100, "cv": 1.0})
    found = demand_of(few, percentile=90, seed=0, hits=False)
    assert len(found.random_prompts) == 3
    assert sum(found.random_prompts) == pytest.approx(3 * found.computed_tokens)
    bursts = requests(arrivals="gamma", cv=3.0)
    assert demand_of(bursts, percentile=90, seed=0, hits=False).random_prompts == ()


def test_what_a_cache_holds_is_not_computed_but_attended_to():
    found = demand_of(requests(cached_fraction=0.5), percentile=90, seed=0, hits=False)
    assert (found.prompt_tokens, found.computed_tokens) == (100, 50)
    assert found.attended_tokens == 50 + 25.5
    assert (found.long_prompt, found.long_cached) == (50, 50)


def test_a_prompt_that_the_cache_holds_whole_computes_its_last_token():
    found = demand_of(requests(cached_fraction=1.0), percentile=90, seed=0, hits=False)
    assert (found.computed_tokens, found.attended_tokens) == (1, 100)
    assert (found.long_prompt, found.long_cached) == (1, 99)


def test_a_closed_loop_has_no_rate():
    loop = {"arrivals": "closed_loop", "users": 2, "think_time": "1 s", "rate": None}
    with pytest.raises(ValueError, match="closed_loop requests have no rate of their own"):
        demand_of(requests(**loop), percentile=90, seed=0, hits=False)


def test_prefill_needs_as_many_instances_as_full_passes_compute_the_prompts():
    passes = {1000: 0.5, 2000: 0.8}
    # 10,000 tokens/s; two ranks compute 2 x 2,500 with full passes, 2 x 2,000 with half ones.
    assert least_prefill(DEMAND, ranks=2, tokens_per_pass=2000, passes=passes) == 2
    assert least_prefill(DEMAND, ranks=2, tokens_per_pass=1000, passes=passes) == 3


def test_decode_needs_as_many_as_hold_the_requests_in_service():
    # 10/s x 100 steps x 50 ms = 50 requests; an instance of two ranks holds 20. Two tokens a step
    # make it 25.
    held = {"ranks": 2, "batch": 10.0, "step_s": 0.05}
    assert least_decode(DEMAND, **held, tokens_per_step=1.0) == 3
    assert least_decode(DEMAND, **held, tokens_per_step=2.0) == 2


def test_an_instance_that_does_both_shares_its_time():
    given = {
        "ranks": 1,
        "tokens_per_pass": 1010,
        "passes": {1000: 0.1},
        "steps": {1.0: 0.01, 10.0: 0.01},
        "largest": 10.0,
        "tokens_per_step": 1.0,
    }
    # Ten requests alone would end at 10 per second; their prompts take 0.1 s each, so that both at
    # 5 per second fill the time, half of it with prompts, and a token takes twice its step.
    found = most_colocated(DEMAND, **given, tpot_s=0.02)
    assert found == (5.0, 0.02)
    assert most_colocated(DEMAND, **given, tpot_s=0.009) is None
    # At 15 ms a third is left to prompts, of 100 s / (1010 - b) each beside a batch of b, and they
    # come at b / 1.5 per second: b = 1010 / 201.
    less = most_colocated(DEMAND, **given, tpot_s=0.015)
    assert less == pytest.approx((1010 / 201 / 1.5, 0.015), rel=1e-9)


def test_an_instance_that_begins_at_once_computes_few_of_the_prompts_that_come_at_random_together():
    # Four ranks share a pass of 0.1 s, so that 20 prompts per second would take half of the time.
    # But 1 - e^-0.2 of the steps without a pass have one behind them, and all but e^-2.2 of those
    # with one: that is 62% of them, and 72 ms from one to the next in the place of 20.
    begins, ends = 1 - math.exp(-20 * 0.01), math.exp(-20 * 0.11)
    apart = 0.01 + 0.1 * begins / (begins + ends)
    assert apart == pytest.approx(0.072, abs=1e-4)
    given = {
        "ranks": 4,
        "tokens_per_pass": 1100,
        "passes": {1000: 0.1},
        "steps": {1.0: 0.01, 100.0: 0.01},
        "tokens_per_step": 1.0,
    }
    demand = replace(DEMAND, random_prompts=(1000.0, 1000.0))
    # 20 per second x 100 steps are inside on four ranks, also where more would fit.
    batch = 20 * 100 * apart / 4
    within = most_colocated(demand, **given, largest=batch, tpot_s=0.1)
    at_limit = most_colocated(demand, **given, largest=90.0, tpot_s=apart)
    for found in (within, at_limit):
        assert found == pytest.approx((20.0, apart), rel=1e-9)
    # A prompt of 100 tokens takes a tenth of the least pass that is known, at least.
    short = replace(demand, computed_tokens=100.0, random_prompts=(100.0,))
    begins, ends = 1 - math.exp(-20 * 0.01), math.exp(-20 * 0.02)
    apart = 0.01 + 0.01 * begins / (begins + ends)
    found = most_colocated(short, **given, largest=20 * 100 * apart / 4, tpot_s=0.1)
    assert found == pytest.approx((20.0, apart), rel=1e-9)


def test_a_pass_leaves_room_for_a_token_of_a_prompt():
    # Of 11 tokens of a pass ten may be of requests that decode, though more fit: ten of 100 steps
    # of 10 ms would end in a second, and prompts take 1 us each.
    found = most_colocated(
        DEMAND, ranks=1, tokens_per_pass=11, passes={1: 1e-9}, steps={1.0: 0.01, 10.0: 0.01},
        largest=100.0, tokens_per_step=1.0, tpot_s=1.0,
    )  # fmt: skip
    assert found == pytest.approx((10 / (1 + 1e-5), 0.01 * (1 + 1e-5)), rel=1e-12)


def test_times_are_linear_between_what_is_known():
    times = {2.0: 1.0, 4.0: 2.0, 8.0: 3.0}
    assert [interpolated(times, load) for load in (1, 2, 3, 4, 6, 12)] == [
        1.0, 1.0, 1.5, 2.0, 2.5, 4.0
    ]  # fmt: skip
    assert interpolated({5.0: 7.0}, 100.0) == 7.0


def test_the_batch_of_a_steady_state_is_that_of_littles_law():
    # 10/s x 100 steps over 10 ranks: b = 100 x (9.9 ms + 0.1 ms x b), so b = 1 and a step 10 ms.
    steps = {1.0: 0.010, 101.0: 0.020}
    found = predicted_tpot(DEMAND, instances=1, ranks=10, steps=steps, tokens_per_step=1.0)
    assert found == pytest.approx(0.010, rel=1e-9)


def test_the_batch_of_several_instances_is_their_share_of_two_tokens_a_step():
    # 40/s x 100 steps, halved, over 2 x 5 ranks: b = 200 x (9.9 ms + 0.1 ms x b) = 1.98 / 0.98.
    demand, steps = replace(DEMAND, rate=40.0), {1.0: 0.010, 101.0: 0.020}
    found = predicted_tpot(demand, instances=2, ranks=5, steps=steps, tokens_per_step=2.0)
    assert found == pytest.approx((0.0099 + 0.0001 * 1.98 / 0.98) / 2, rel=1e-9)
