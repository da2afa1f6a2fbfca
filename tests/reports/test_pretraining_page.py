"""The page of a whole training run."""

import pytest

from reports.pretraining import CAUSES, middle_run
from reports.pretraining_page import causes_chart, days_chart, pretraining_page, states_chart
from simulator.analysis.run import simulate
from simulator.scenario.files import load_scenario

DAY = 86400.0


@pytest.fixture(scope="module")
def run():
    return simulate(load_scenario("dense_16k_h100_incidents", ["pretraining.runs=4"]))


def test_the_states_of_a_run_follow_each_other_to_its_end(run):
    log = run.result.logs[0]
    chart = states_chart(log)
    assert chart.spans[-1].end == pytest.approx(log.wall_s)
    assert len(chart.marks) == len(log.incidents)


def test_causes_are_those_of_all_runs(run):
    chart = causes_chart(run.metrics)
    assert chart.lanes == tuple(name for cause, (name, _) in CAUSES.items() if cause != "training")
    assert chart.spans[1].end == pytest.approx(run.metrics["days_by_cause"]["checkpoints"] * DAY)
    assert sum(days_chart(run.result.logs).parts[0][2]) == 4


def test_the_answer_is_the_length_and_that_nothing_but_steps_takes_long(run):
    answer = pretraining_page(run, run.metrics, middle_run(run.result.logs)).answer
    assert answer.headline.value == f"{run.metrics['days']:.1f} days"
    assert answer.limits.startswith(
        f"The steps themselves: {run.metrics['goodput']:.2%} of the time trains."
    )
