"""Published figures beside a run's."""

import pytest

from simulator.analysis.published import compare_published, metric_at
from simulator.scenario.files import load_scenario

METRICS = {"ranks": [{"forward_s": 1.5}], "step_time_s": 19.0, "name": "text"}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("ranks.0.forward_s", 1.5),
        ("step_time_s", 19.0),
        ("ranks.1.forward_s", None),
        ("name", None),
    ],
)
def test_a_dotted_path_leads_to_a_number_or_to_nothing(path, found):
    assert metric_at(METRICS, path) == found


def test_an_error_is_simulated_over_published_less_one():
    figures = load_scenario("dualpipe_h800_2048").file.published
    (step,) = [figure for figure in figures if figure.metric == "step_time_s"]
    row = compare_published(step, {"step_time_s": 1.25 * step.si_value})
    assert row.error == pytest.approx(0.25)
    assert compare_published(step, {}).error is None
