"""A whole plan of a small service, against all fleets that it might have chosen."""

import itertools
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest

from reference_model.config import load_model_config
from simulator.analysis.plan import serving
from simulator.analysis.plan.serving import (
    cheapest,
    cost_of,
    fleet_of,
    names_of,
    nodes_of,
    plan_serving,
    rows_beside,
    service_by_requests,
    task_in_words,
)
from simulator.analysis.plan.serving_bounds import Limits
from simulator.analysis.plan.serving_prices import Measured, run_of
from simulator.analysis.plan.serving_search import PriceTask, Standing, keeps
from simulator.scenario.starting_serving import (
    Deployment,
    Pool,
    service_by_flags,
    serving_machine,
)

MODEL = "moonlight_16b_a3b"
PREFILL = Deployment("prefill", 2, attention_tp=2, expert_tp=2)
DECODE = Deployment("decode", 2, attention_tp=2, expert_tp=2)
WIDE = Deployment("decode", 4, attention_tp=4, expert_tp=4)


def service(**changes):
    given = {
        "model": MODEL,
        "config": load_model_config(MODEL),
        "machine": serving_machine(gpu="h200", cluster=None),
        "rate": 300.0,
        "prompt": 1024,
        "output": 32,
        "ttft_s": 0.1,
        "tpot_s": 0.01,
    }
    return service_by_flags(**(given | changes))


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    kept = rows_beside(tmp_path_factory.mktemp("plans") / "mine")
    found = plan_serving(
        service(), deployments=(PREFILL, DECODE, WIDE), sensitivity=False, kept=kept
    )
    return found, kept


def test_the_fleet_keeps_its_limits_and_its_cost_is_shared_out(plan):
    found, _ = plan
    assert found.fleet is not None
    assert keeps(found.measured, found.limits)
    gpus = sum(pool.gpus for pool in found.fleet)
    assert nodes_of(found, found.fleet) == gpus / 8
    cost = cost_of(found, found.fleet)
    # 2 USD per hour and GPU, and every token of a request carries its part.
    assert cost.per_hour == pytest.approx(2.0 * gpus)
    tokens = found.demand.rate * 3600 / 1e6
    shared = cost.per_million_in * 1024 * tokens + cost.per_million_out * 32 * tokens
    assert shared == pytest.approx(cost.per_hour)
    assert cheapest([replace(found, progress=replace(found.progress, answer=None)), found]) == 1


def test_no_fleet_of_fewer_gpus_keeps_the_limits(plan):
    """All fleets of these deployments, colocated ones too, that have fewer GPUs."""
    found, _ = plan
    gpus = sum(pool.gpus for pool in found.fleet)
    of_role = {
        role: {replace(option.pool, instances=1) for option in options}
        for role, options in found.progress.options.items()
    }
    counts = range(1, gpus // 2 + 1)
    pools = {
        role: [replace(pool, instances=n) for pool, n in itertools.product(of, counts)]
        for role, of in of_role.items()
    }
    fleets = [*itertools.product(pools["prefill"], pools["decode"])]
    fleets += [(pool,) for pool in pools["colocated"]]
    smaller = [fleet for fleet in fleets if sum(pool.gpus for pool in fleet) < gpus]
    assert len(smaller) > 3
    for fleet in smaller:
        run = run_of(fleet_of(found.service, found.demand, fleet), found.percentile, {})
        assert not keeps(run, found.limits), names_of(fleet)


def test_a_plan_that_was_interrupted_takes_over_what_was_worked_out(plan):
    found, kept = plan
    told = []
    again = plan_serving(
        service(),
        deployments=(PREFILL, DECODE, WIDE),
        sensitivity=False,
        kept=kept,
        told=lambda *said: told.append(said),
    )
    assert told == []
    assert again.fleet == found.fleet
    assert again.measured == found.measured


def test_answers_do_not_go_with_the_number_of_processes(plan, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    alone, two = (
        plan_serving(service(), deployments=(PREFILL, DECODE, WIDE), jobs=jobs) for jobs in (1, 2)
    )
    assert list(two.known.runs.items()) == list(alone.known.runs.items())
    assert two.variants == alone.variants
    assert two.progress == alone.progress
    assert alone.fleet == plan[0].fleet


def test_limits_are_tightened_before_they_are_loosened():
    factors = {"": (1, 1), **{name: factors for name, *factors in serving.VARIED}}
    searches = {
        name: SimpleNamespace(limits=Limits(2.0 * ttft, 0.05 * tpot))
        for name, (ttft, tpot) in factors.items()
    }
    assert list(serving._tightest_first(searches)) == [
        "", "TTFT limit halved", "TPOT limit halved", "TTFT limit doubled", "TPOT limit doubled"
    ]  # fmt: skip


def test_a_free_process_works_ahead_for_searches_that_are_to_come(monkeypatch):
    """The first search wants pool 1 and, knowing it, 2; the second 3, then 4 and what the first
    had found."""
    task = {n: (Pool((DECODE,), n, 64),) for n in (1, 2, 3, 4)}
    wants = {"first": [[1], [2]], "second": [[3], [1, 4]]}

    def progress_of(search, known):
        rounds = ([task[n] for n in each] for each in wants[search])
        new = ([t for t in each if t not in known.runs] for each in rounds)
        return Standing(None, tuple(next((each for each in new if each), ())), {}, ())

    monkeypatch.setattr(serving, "progress_of", progress_of)
    course = serving._Course({"": "first", "other": "second"})
    assert course.next_task(at_a_time=2) == task[1]
    assert course.next_task(at_a_time=2) == task[3]
    assert course.next_task(at_a_time=2) is None
    course.add(task[3], Measured(ttft_s=3.0))
    # Pool 1 is on its way.
    assert course.next_task(at_a_time=2) == task[4]
    course.add(task[4], Measured(ttft_s=4.0))
    assert course.next_task(at_a_time=2) is None
    course.add(task[1], Measured(ttft_s=1.0))
    assert course.next_task(at_a_time=2) == task[2]
    assert not course.over
    course.add(task[2], Measured(ttft_s=2.0))
    assert course.over
    assert list(course.found.runs) == [task[1], task[2], task[3], task[4]]


def test_requests_of_a_scenario_keep_their_lengths_and_take_another_rate():
    given = {
        "model": MODEL,
        "config": load_model_config(MODEL),
        "machine": serving_machine(gpu="h200", cluster=None),
        "ttft_s": 2.0,
        "tpot_s": 0.05,
    }
    own = service_by_requests("azure_conversation", None, rate=None, **given)
    faster = service_by_requests("azure_conversation", None, rate=50.0, **given)
    assert own.requests["synthetic"]["count"] == 19366
    # The trace's statistics: 5.53 requests per second, to within what 19,366 of them vary.
    assert faster.requests["rate_scale"] == pytest.approx(50 / 5.53, rel=0.03)
    hashed = service_by_requests("mooncake_conversation", None, rate=None, **given)
    assert hashed.has_hashes
    with pytest.raises(ValueError, match="holds a serving_step job; allowed here: fleet"):
        service_by_requests("decode_ep8_h200", None, rate=1.0, **given)


def test_tasks_and_fleets_are_named_as_people_name_them():
    wide = PriceTask(WIDE, expected=False)
    assert task_in_words(wide) == "price of decode TP4, ideal ranks"
    pools = (Pool((PREFILL,), 3, 512, 8192), Pool((DECODE,), 1, 64))
    assert names_of(pools) == "prefill 3 x TP2, passes of 8K; decode 1 x TP2"
    assert task_in_words(pools[:1]) == ("simulation of prefill 3 x TP2, passes of 8K alone")


def test_answers_of_one_token_have_no_time_per_token_to_keep():
    found = plan_serving(
        service(output=1, rate=20.0), deployments=(PREFILL, DECODE), sensitivity=False
    )
    assert found.fleet is not None
    assert found.measured.tpot_s == 0.0
    # One of each keeps the limits that there are.
    assert [pool.instances for pool in found.fleet] == [1, 1]
