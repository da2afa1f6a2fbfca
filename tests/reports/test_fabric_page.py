"""The page of collectives on a fabric."""

import pytest

from reports.charts import Heat, Lines
from reports.fabric_page import collective_page, hottest_chart
from simulator.analysis.run import simulate
from simulator.scenario.files import load_scenario


@pytest.fixture(scope="module")
def run():
    changes = ("vary.operation.gpus=[16, 64]", "vary.operation.bytes_per_gpu=[128 MiB]")
    return simulate(load_scenario("mpft_vs_mrft", changes))


def test_the_page_shows_time_against_gpus_and_a_grid_of_the_nics(run):
    charts = list(collective_page(run, run.metrics).charts.values())
    assert isinstance(charts[0], Lines)
    # No cable between switches is used, so that no plane is drawn.
    assert [type(chart) for chart in charts[1:]] == [Heat, type(hottest_chart(run.metrics))]
    assert charts[1].rows == tuple(f"nic{nic}" for nic in range(8))


def test_what_limits_a_collective_is_its_hottest_link(run):
    limits = collective_page(run, run.metrics).answer.limits
    first = run.metrics["links"][0]
    assert limits.startswith(f"{first['name']}, in use {first['utilisation']:.0%} of the time")
