"""The pages of attributions."""

from types import SimpleNamespace

from reports.attribution_page import (
    fleet_attribution_chart,
    fleet_attribution_page,
    run_attribution_page,
    step_attribution_page,
)
from reports.pretraining import CAUSES
from simulator.analysis.fleet_attribution import AttributionRow
from simulator.scenario.files import load_scenario


def test_a_step_says_its_largest_cause_beside_the_arithmetic_and_what_is_not_explained(tables):
    scenario = load_scenario("dualpipe_h800_2048")
    page = step_attribution_page(scenario, tables.metrics, 1.5)
    assert page.answer.limits == ("Beside the arithmetic most by bubble, 30% of the step: waiting.")
    rows = dict(page.beside[0].blocks[0].rows)
    assert rows["what the causes do not explain"] == f"{1.5 - tables.metrics['step_time_s']:+.3f} s"
    assert step_attribution_page(scenario, tables.metrics, None).beside == ()


def test_a_whole_run_says_what_most_of_the_rest_is():
    causes = dict.fromkeys(CAUSES, 0.0)
    metrics = {
        "days": 10.0,
        "days_by_cause": causes | {"training": 9.0, "lost": 1.0},
        "share_by_cause": causes | {"training": 0.9, "lost": 0.1},
    }
    page = run_attribution_page(load_scenario("dense_16k_h100_incidents"), metrics)
    assert page.answer.limits == "Training itself; of the rest most is work done again, 10.00%."


FIGURES = [SimpleNamespace(name="nodes", metric="nodes")]
ROWS = [
    AttributionRow("simulated", (210.0,), (None,), ""),
    AttributionRow("load of a day", (230.0,), (20.0,), "report"),
    AttributionRow("remainder", (226.0,), (-4.0,), "unexplained"),
]


def test_a_fleet_goes_from_simulated_to_published_one_counterfactual_after_another():
    chart = fleet_attribution_chart(FIGURES, ROWS, 0)
    assert [(span.start, span.end, span.hue) for span in chart.spans] == [
        (0.0, 210.0, "ink"), (210.0, 230.0, "green"), (0.0, 226.0, "ink"),
    ]  # fmt: skip
    page = fleet_attribution_page(load_scenario("day6_service"), FIGURES, ROWS)
    assert page.answer.limits == "load of a day: +20."
    assert (page.answer.headline.value, page.answer.headline.note) == ("210", "published 226")
