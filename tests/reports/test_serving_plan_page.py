"""The page of the plan of a service, of a plan made up by hand."""

from made_up_plans import SERVING_PLAN, SERVING_PLANS

from reports.page import render_page
from reports.serving_plan_page import fleets_chart, serving_plan_page


def test_the_answer_is_the_nodes_the_limits_and_what_tokens_cost():
    answer = serving_plan_page(SERVING_PLANS, "name: mine\n").answer
    assert (answer.headline.value, answer.headline.note) == (
        "8", "prefill 2 x EP8; decode 3 x EP16",
    )  # fmt: skip
    assert answer.limits == ("The nearest limit is TPOT, p90 45 ms of 50 ms; TPOT sets decode.")
    assert [(figure.label, figure.value, figure.note) for figure in answer.figures[:2]] == [
        ("TTFT, p90", "1.5 s", "asked for: 2 s"), ("TPOT, p90", "45 ms", "asked for: 50 ms"),
    ]  # fmt: skip


def test_fleets_that_miss_a_limit_stand_apart():
    chart = fleets_chart(SERVING_PLAN)
    assert [(span.end, span.hue) for span in chart.spans] == [(8.0, "ink"), (6.0, "grey")]
    assert chart.notes == ("8", "6, TPOT over the limit")


def test_the_page_holds_every_table_and_other_gpus_only_where_there_are_any():
    page = serving_plan_page(SERVING_PLANS, "name: mine\n")
    assert [section.title for section in page.sections] == [
        "Fleets that were simulated", "Best pools", "Other limits",
        "Deployments that cannot serve",
    ]  # fmt: skip
    both = serving_plan_page(
        SERVING_PLANS | {"plans": [SERVING_PLAN, SERVING_PLAN | {"gpu": "h100_sxm"}]}, ""
    )
    assert [section.title for section in both.sections][3] == "Other GPUs"
    assert "TPOT limit doubled, 100 ms" in render_page(page)
