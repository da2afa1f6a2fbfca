"""Run directories of serving jobs: a self-contained page, a trace in order, tables."""

import html
import json

import pandas as pd
import pytest

from reports.jobs import JOB_REPORTS
from reports.serving import serving_events
from simulator.analysis.run import simulate
from simulator.scenario.files import load_scenario


@pytest.mark.parametrize(
    "name",
    [
        "decode_ep320_report",
        "prefill_ep32_h100",
        "mtp_one_node",
        "tpot_limit_nvl72",
        "offload_ktransformers",
    ],
)
def test_a_run_directory_holds_scenario_metrics_and_a_page_without_links(name, tmp_path):
    scenario = load_scenario(name)
    report = JOB_REPORTS[scenario.job_name]()
    run = simulate(scenario)
    metrics = run.metrics
    directory = tmp_path / "run"
    report.write(run, metrics, directory)
    page = (directory / "report.html").read_text()
    assert scenario.file.description in page
    assert "src=" not in page.partition("<script>")[0]
    assert json.loads((directory / "metrics.json").read_text()).keys() == metrics.keys()
    assert report.tables(name, metrics)
    if "operators" in metrics:
        # Every kernel of every layer kind, and every part of the budget, is on the page.
        for row in metrics["operators"]:
            assert row["name"] in page
        for part in metrics["time_budget_s"]:
            assert html.escape(part) in page
        assert html.escape(metrics["limited_by"]) in page


def test_slices_of_a_stream_do_not_overlap(tmp_path):
    scenario = load_scenario("decode_ep128_profile")
    report = JOB_REPORTS[scenario.job_name]()
    run = simulate(scenario)
    report.write(run, run.metrics, tmp_path / "run")
    last = {}
    for event in serving_events(run.result):
        if event["ph"] == "X":
            assert event["ts"] >= last.get(event["tid"], 0.0) - 1e-3
            last[event["tid"]] = event["ts"] + event["dur"]
    kernels = pd.read_csv(tmp_path / "run" / "kernels.csv")
    assert {"name", "seconds", "provenance", "calls"} <= set(kernels.columns)
