"""The plan of a service as tables, JSON and a directory, on results made up by hand."""

import json

import pytest
import yaml
from rich.console import Console
from small_services import DEMAND, LIMITS, service

from reports.serving_plan import (
    best_options,
    loser_rows,
    nearest_miss,
    plan_json,
    plans_json,
    plans_tables,
    recommendation,
    sensitivity_rows,
    simulated,
    title_of,
    write_plan,
)
from simulator.analysis.plan.serving import ServingPlan
from simulator.analysis.plan.serving_bounds import Limits
from simulator.analysis.plan.serving_prices import Measured, Price
from simulator.analysis.plan.serving_search import (
    Loser,
    PoolOption,
    PriceTask,
    Results,
    Standing,
)
from simulator.scenario.starting_serving import (
    Deployment,
    Pool,
)

PREFILL = Pool((Deployment("prefill", 8, micro_batches=2),), 2, 512, 4096)
DECODE = Pool((Deployment("decode", 16, micro_batches=2, draft_tokens=1),), 3, 64)
FEWER = Pool((Deployment("decode", 16, micro_batches=2, draft_tokens=1),), 2, 64)


def plan(answer=(PREFILL, DECODE)):
    known = Results()
    known.runs[(PREFILL,)] = Measured(ttft_s=1.0, tpot_s=0.0)
    known.runs[(PREFILL, DECODE)] = Measured(ttft_s=1.5, tpot_s=0.045, verdict="stable")
    known.runs[(PREFILL, FEWER)] = Measured(ttft_s=1.5, tpot_s=0.06, verdict="stable")
    options = {
        "prefill": (PoolOption(PREFILL, 2, True, (), 1.0, "prefill throughput"),),
        "decode": (PoolOption(DECODE, 3, True, (), 0.045, "TPOT"),),
        "colocated": (),
    }
    small = Deployment("decode", 4)
    losers = (Loser((small,), "does not fit", "164 GB of 141 GB"),) * 2
    return ServingPlan(
        service=service(),
        demand=DEMAND,
        percentile=90,
        limits=LIMITS,
        progress=Standing(answer, (), options, losers),
        known=known,
        searched=5,
        variants={
            "TTFT limit halved": (Limits(1.0, 0.05), None),
            "TPOT limit doubled": (Limits(2.0, 0.1), (PREFILL, FEWER)),
        },
    )


def test_the_recommendation_names_fleet_limit_and_cost():
    # 16 GPUs of prefill cost 32 USD/h for 10 x 1,000 x 3,600 = 36 M tokens in, 48 of decode 96
    # USD/h for 3.64 M tokens out. TPOT is at 90% of its limit, TTFT at 75%.
    assert recommendation(plan()) == (
        "Take 8 nodes (64 h200_sxm): prefill 2 x EP8, passes of 4K; decode 3 x EP16, two "
        "micro-batches, MTP. The nearest limit is TPOT, p90 45 ms of 50 ms; prefill throughput "
        "sets prefill, TPOT sets decode. It costs 128 USD/h: 0.889 USD per million tokens in, 26.4 "
        "out (tokens in carry the rent of the instances that compute prompts, tokens out that of "
        "those that decode; where one does both, each its share of the busy time)."
    )


def test_a_plan_that_finds_nothing_says_what_came_nearest_and_a_way_out():
    assert recommendation(plan(answer=None)) == (
        "No deployment that is searched keeps these limits; nearest is prefill 2 x EP8, passes of "
        "4K; decode 2 x EP16, two micro-batches, MTP: TTFT p90 1.5 s of 2 s, TPOT p90 60 ms of "
        "50 ms; allowed: --tpot above '60 ms', another --gpu, or a larger --cluster"
    )


def test_where_no_fleet_was_simulated_a_request_by_itself_says_how_far_it_is():
    found = plan(answer=None)
    found.known.runs.clear()
    # A prompt takes twice the limit, a step of one request with 1.875 tokens 1.6 times.
    found.known.prices[PriceTask(PREFILL.deployments[0], expected=False)] = Price(
        False, alone_s={4096: 4.0}
    )
    found.known.prices[PriceTask(DECODE.deployments[0], expected=False)] = Price(
        False, seconds={1.0: 0.15, 8.0: 0.2}
    )
    assert nearest_miss(found) == (
        "nearest is decode EP16, two micro-batches, MTP, where a token of one request alone takes "
        "80 ms of 50 ms; allowed: --tpot above '80 ms', another --gpu, or a larger --cluster"
    )
    found.known.prices.clear()
    assert nearest_miss(found) == (
        "164 GB of 141 GB; allowed: another --gpu, or a larger --cluster"
    )


def test_the_tables_hold_the_answer_first_and_reasons_after_it():
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in plans_tables([plan()], 0):
        console.print(table)
    text = console.export_text()
    rows = [line for line in text.splitlines() if "prefill 2 x EP8" in line]
    assert "45 ms" in rows[0]
    assert "TPOT over the" in rows[1]
    assert max(map(len, text.splitlines())) <= 100
    assert title_of(plan()) == (
        "deepseek_v3 on h200_sxm: 10 requests/s of 1,000 tokens in, 101 out; p90 of TTFT 2 s, of "
        "TPOT 50 ms"
    )


def test_the_rows_say_what_was_simulated_what_is_best_and_what_else_would_take():
    assert [(row["nodes"], row["keeps"], row["reason"]) for row in simulated(plan())] == [
        (8.0, True, ""), (6.0, False, "TPOT over the limit")
    ]  # fmt: skip
    assert [(row["role"], row["instances"], row["binds"]) for row in best_options(plan())] == [
        ("prefill", 2, "prefill throughput"), ("decode", 3, "TPOT")
    ]  # fmt: skip
    assert [(row["limit"], row["nodes"], row["change"]) for row in sensitivity_rows(plan())] == [
        ("TTFT limit halved, 1 s", None, None), ("TPOT limit doubled, 100 ms", 6.0, -2.0)
    ]  # fmt: skip
    assert loser_rows(plan()) == [
        {"reason": "does not fit", "count": 2, "example": "decode EP4: 164 GB of 141 GB"}
    ]


def test_the_directory_holds_a_scenario_and_all_figures_or_does_not_appear(tmp_path):
    with pytest.raises(ValueError, match="No deployment that is searched keeps these limits"):
        write_plan([plan(answer=None)], 0, tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
    write_plan([plan()], 0, tmp_path / "mine")
    text = (tmp_path / "mine" / "scenario.yaml").read_text()
    assert text.startswith("# Written by dsv3sim plan serving.\n# Take 8 nodes (64 h200_sxm):")
    assert yaml.safe_load(text)["fleet"]["decode"]["instances"] == 3
    found = json.loads((tmp_path / "mine" / "metrics.json").read_text())
    assert found == json.loads(json.dumps(plans_json([plan()], 0)))
    assert plan_json(plan())["gpus"] == 64
