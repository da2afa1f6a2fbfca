"""Which fleet is looked at next, and which is the answer, on prices made up by hand."""

import math
from dataclasses import replace

from small_services import DEMAND, LIMITS, service

from simulator.analysis.plan.serving_prices import BatchPrice, Measured, Price
from simulator.analysis.plan.serving_search import (
    PriceTask,
    Results,
    Search,
    keeps,
    progress_of,
    searched_deployments,
    too_large,
)
from simulator.scenario.starting_serving import (
    Deployment,
    Pool,
)

PREFILL = Deployment("prefill", 8, micro_batches=2)
SMALL, LARGE = Deployment("decode", 8), Deployment("decode", 16, micro_batches=2)


def search(*deployments, **changes):
    return Search(service(), DEMAND, LIMITS, deployments, **changes)


def decode_price(batch, *, expected, step_s=0.05):
    return Price(
        expected,
        seconds={batch / 2: step_s, batch: step_s},
        kv_tokens={64: 0},
        batches={0.05: BatchPrice(batch, batch, step_s, 64, "TPOT")},
    )


def passes_price(*, expected):
    # Eight ranks of 4,096 tokens in 4 s compute 8,192 tokens per second; 10,000 are asked for.
    return Price(
        expected, seconds={4096.0: 4.0}, alone_s={4096: 1.0}, kv_tokens={4096: 10**6}
    )  # fmt: skip


def known_prices(*, small=3.0, large=3.0):
    """Prices of all, of ranks that differ: 10/s x 100 steps x 50 ms are 50 requests."""
    known = Results()
    for expected in (False, True):
        known.prices[PriceTask(PREFILL, expected)] = passes_price(expected=expected)
        for each, batch in ((SMALL, small), (LARGE, large)):
            limit = 0.05 if expected else 0.0
            task = PriceTask(each, expected, limit)
            known.prices[task] = decode_price(batch, expected=expected)
    return known


def test_nothing_is_known_at_first_and_the_smallest_is_priced_first():
    found = progress_of(search(PREFILL, SMALL, LARGE), Results())
    assert found.answer is None
    # An instance that does both might do with 8 GPUs, so that its two phases come first.
    assert set(found.wanted) == {PriceTask(PREFILL, False), PriceTask(SMALL, False)}


def test_a_pool_counts_with_what_its_steady_state_needs():
    # 8 ranks x 3 requests are 24 of 50: three instances of 8 GPUs; 16 x 3 = 48 of 50: two of 16.
    found = progress_of(search(PREFILL, SMALL, LARGE), known_prices())
    assert [(o.pool.deployments[0], o.pool.instances) for o in found.options["decode"]] == [
        (SMALL, 3), (LARGE, 2)
    ]  # fmt: skip
    (prefill,) = found.options["prefill"]
    assert (prefill.bound, prefill.binds) == (2, "prefill throughput")
    # The prefill pool is tried by itself before a whole fleet is.
    assert found.wanted == ((prefill.pool,),)


def test_a_prefill_pool_that_is_too_slow_gets_another_instance():
    question, known = search(PREFILL, SMALL), known_prices()
    two = Pool((PREFILL,), 2, 512, 4096)
    known.runs[(two,)] = Measured(ttft_s=2.1, tpot_s=0.0, verdict="stable")
    (prefill,) = progress_of(question, known).options["prefill"]
    assert (prefill.pool.instances, prefill.bound, prefill.binds) == (3, 2, "TTFT")


def test_the_fleet_that_keeps_its_limits_is_the_answer_once_no_smaller_one_may():
    question, known = search(PREFILL, SMALL), known_prices()
    prefill, decode = Pool((PREFILL,), 2, 512, 4096), Pool((SMALL,), 3, 64)
    known.runs[(prefill,)] = Measured(ttft_s=1.0, tpot_s=0.0)
    assert progress_of(question, known).wanted == ((prefill, decode),)
    known.runs[(prefill, decode)] = Measured(ttft_s=1.5, tpot_s=0.04, verdict="stable")
    found = progress_of(question, known)
    assert found.answer == (prefill, decode)
    # One instance fewer of each is simulated too, though its steady state says that it cannot do.
    fewer = [Pool((PREFILL,), 1, 512, 4096), Pool((SMALL,), 2, 64)]
    assert found.wanted == ((fewer[0], decode), (prefill, fewer[1]))
    for task in found.wanted:
        known.runs[task] = Measured(ttft_s=9.0, tpot_s=0.09, verdict="overloaded")
    ended = progress_of(question, known)
    assert (ended.answer, ended.wanted) == ((prefill, decode), ())


def test_a_fleet_with_one_instance_fewer_that_keeps_the_limits_is_taken():
    question, known = search(PREFILL, SMALL), known_prices()
    prefill, decode = Pool((PREFILL,), 2, 512, 4096), Pool((SMALL,), 3, 64)
    fewer = Pool((SMALL,), 2, 64)
    good = Measured(ttft_s=1.5, tpot_s=0.04, verdict="stable")
    known.runs.update({(prefill,): good, (prefill, decode): good})
    known.runs[(prefill, fewer)] = good
    assert progress_of(question, known).answer == (prefill, fewer)


def test_a_fleet_whose_decode_is_late_gets_more_of_it():
    question, known = search(PREFILL, SMALL), known_prices()
    prefill, decode = Pool((PREFILL,), 2, 512, 4096), Pool((SMALL,), 3, 64)
    known.runs[(prefill,)] = Measured(ttft_s=1.0, tpot_s=0.0)
    known.runs[(prefill, decode)] = Measured(ttft_s=3.0, tpot_s=0.06)
    found = progress_of(question, known)
    # Prefill may be late only because decode holds it up.
    assert [option.pool.instances for option in found.options["decode"]] == [4]
    assert [option.pool.instances for option in found.options["prefill"]] == [2]


def test_prompts_late_beside_a_pool_that_drafts_may_be_in_time_beside_one_that_does_not():
    plain = search(PREFILL, SMALL)
    plain = replace(plain, limits=replace(plain.limits, drafting=False))
    known = known_prices()
    prefill, drafts = Pool((PREFILL,), 2, 512, 4096), replace(SMALL, draft_tokens=1)
    late = Measured(ttft_s=2.6, tpot_s=0.04, verdict="stable")
    known.runs[(prefill, Pool((drafts,), 3, 64))] = late
    (option,) = progress_of(plain, known).options["prefill"]
    assert option.pool.instances == 2
    (option,) = progress_of(search(PREFILL, SMALL), known).options["prefill"]
    assert option.pool.instances == 3


def test_what_cannot_serve_says_why():
    question = search(PREFILL, SMALL, LARGE)
    known = known_prices()
    known.prices[PriceTask(SMALL, False)] = decode_price(0.0, expected=False, step_s=0.06)
    del known.prices[PriceTask(SMALL, True, 0.05)]
    slow = Price(False, seconds={4096.0: 4.0}, alone_s={4096: 2.5}, kv_tokens={4096: 10**6})
    for task in (PriceTask(PREFILL, False), PriceTask(PREFILL, True)):
        known.prices[task] = slow
    kinds = {loser.kind: loser.reason for loser in progress_of(question, known).losers}
    assert kinds == {
        "one request alone takes longer than the TPOT limit": "a step of one request takes 60 ms",
        "a prompt alone takes longer than the TTFT limit":
            "a long prompt that meets no other takes 2.5 s",
        "colocated: prompts leave no time for decode within the limits":
            "no budget of 4,096 to 16,384 tokens keeps both limits",
    }  # fmt: skip


def test_limits_are_kept_by_stable_fleets_that_hold_every_request():
    good = Measured(ttft_s=2.0, tpot_s=0.05, verdict="stable")
    assert keeps(good, LIMITS)
    for bad in (
        Measured(ttft_s=2.1, tpot_s=0.05, verdict="stable"),
        Measured(ttft_s=2.0, tpot_s=0.051, verdict="stable"),
        Measured(ttft_s=2.0, tpot_s=0.05, verdict="overloaded"),
        Measured(ttft_s=2.0, tpot_s=0.05, verdict="stable", rejected=1),
        Measured(reason="it does not fit"),
    ):
        assert not keeps(bad, LIMITS)
    assert Measured().ttft_s == math.inf


def test_sizes_of_a_node_and_more_are_searched_and_experts_that_cannot_fit_are_not():
    service = search().service
    found = searched_deployments(service)
    assert {each.gpus for each in found} == {2, 4, 8, 16, 32, 64, 72, 128, 144}
    assert Deployment("prefill", 32, attention_tp=4, redundant=32, micro_batches=2) in found
    assert Deployment("decode", 72, redundant=32, micro_batches=2, draft_tokens=1) in found
    # 256 experts of 44.04 M parameters in 58 layers are 654 GB in FP8: 164 GB on each of four.
    assert too_large(service, Deployment("decode", 4)) is not None
    assert too_large(service, Deployment("decode", 8)) is None
