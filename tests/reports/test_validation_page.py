"""The page of a validation."""

from reports.validation_page import errors_chart, validation_page
from simulator.analysis.published import PublishedRow

FOUND = {
    "dualpipe": [
        PublishedRow("step", "step_time_s", 20.0, 19.0, -0.05, interval_80=(18.0, 21.0)),
        PublishedRow("optimizer", "ranks.0.optimizer_s", 0.4, 0.3, -0.25, interval_80=(0.29, 0.32)),
    ],
    "deepep": [PublishedRow("dispatch", "x", 1.0, 1.1, 0.1, kind="calibrated")],
}


def test_the_answer_is_the_median_error_of_predictions_and_the_largest():
    answer = validation_page(FOUND).answer
    assert answer.headline.value == "15.0%"
    assert answer.limits == "-25.0%, optimizer of dualpipe."
    assert [figure.value for figure in answer.figures[:3]] == ["2", "2", "1 of 2"]


def test_each_prediction_is_a_point_with_its_interval_in_the_hue_of_what_it_holds():
    chart = errors_chart(FOUND)
    assert chart.lanes == ("dualpipe: step", "dualpipe: optimizer")
    assert [span.hue for span in chart.spans] == ["sky", "red"]
    assert [round(span.start, 3) for span in chart.spans] == [-0.1, -0.275]
    assert [mark[1] for mark in chart.marks] == [-0.05, -0.25]


def test_every_scenario_has_its_table():
    titles = [section.title for section in validation_page(FOUND).sections]
    assert titles == ["Error of each prediction", "dualpipe", "deepep"]
