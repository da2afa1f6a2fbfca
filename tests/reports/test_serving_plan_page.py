"""The page of the plan of a service, of a plan made up by hand."""

from reports.page import render_page
from reports.serving_plan_page import fleets_chart, serving_plan_page

PLAN = {
    "question": "deepseek_v3 on h200_sxm: 10 requests/s",
    "gpu": "h200_sxm",
    "limits": {"ttft_s": 2.0, "tpot_s": 0.05},
    "percentile": 90,
    "nodes": 8.0,
    "gpus": 64,
    "usd_per_hour": 128.0,
    "usd_per_million_tokens_in": 0.889,
    "usd_per_million_tokens_out": 26.7,
    "measured": {"ttft_s": 1.5, "tpot_s": 0.045},
    "recommendation": "Take 8 nodes (64 h200_sxm): prefill 2 x EP8; decode 3 x EP16. The nearest "
    "limit is TPOT, p90 45 ms of 50 ms; TPOT sets decode. It costs 128 USD/h: 0.889 USD.",
    "simulated": [
        {"fleet": "prefill 2 x EP8; decode 3 x EP16", "nodes": 8.0, "usd_per_hour": 128.0,
         "ttft_s": 1.5, "tpot_s": 0.045, "keeps": True, "reason": ""},
        {"fleet": "prefill 2 x EP8; decode 2 x EP16", "nodes": 6.0, "usd_per_hour": 96.0,
         "ttft_s": 1.5, "tpot_s": None, "keeps": False, "reason": "TPOT over the limit"},
    ],
    "options": [{"role": "decode", "deployment": "EP16", "instances": 3, "nodes": 6.0,
                 "binds": "TPOT", "predicted_s": 0.045, "max_batch": 64}],
    "sensitivity": [{"limit": "TPOT limit doubled, 100 ms", "nodes": 6.0, "change": -2.0,
                     "fleet": "prefill 2 x EP8; decode 2 x EP16"}],
    "searched": 5,
    "losers": [{"reason": "does not fit", "count": 2, "example": "decode EP4"}],
}  # fmt: skip
FOUND = {"best": 0, "plans": [PLAN]}


def test_the_answer_is_the_nodes_the_limits_and_what_tokens_cost():
    answer = serving_plan_page(FOUND, "name: mine\n").answer
    assert (answer.headline.value, answer.headline.note) == (
        "8", "prefill 2 x EP8; decode 3 x EP16",
    )  # fmt: skip
    assert answer.limits == ("The nearest limit is TPOT, p90 45 ms of 50 ms; TPOT sets decode.")
    assert [(figure.label, figure.value, figure.note) for figure in answer.figures[:2]] == [
        ("TTFT, p90", "1.5 s", "asked for: 2 s"), ("TPOT, p90", "45 ms", "asked for: 50 ms"),
    ]  # fmt: skip


def test_fleets_that_miss_a_limit_stand_apart():
    chart = fleets_chart(PLAN)
    assert [(span.end, span.hue) for span in chart.spans] == [(8.0, "ink"), (6.0, "grey")]
    assert chart.notes == ("8", "6, TPOT over the limit")


def test_the_page_holds_every_table_and_other_gpus_only_where_there_are_any():
    page = serving_plan_page(FOUND, "name: mine\n")
    assert [section.title for section in page.sections] == [
        "Fleets that were simulated", "Best pools", "Other limits",
        "Deployments that cannot serve",
    ]  # fmt: skip
    both = serving_plan_page(FOUND | {"plans": [PLAN, PLAN | {"gpu": "h100_sxm"}]}, "")
    assert [section.title for section in both.sections][3] == "Other GPUs"
    assert "TPOT limit doubled, 100 ms" in render_page(page)
