"""Run directories of serving jobs: a self-contained page, a trace in order, tables."""

import html
import io
import json

import pandas as pd
import pytest
from rich.console import Console

from reports.fit import fitted
from reports.jobs import JOB_REPORTS
from reports.serving import serving_events, serving_tables, task_columns
from reports.serving_page import step_page
from simulator.analysis.every_metric import METRICS
from simulator.analysis.metric import Metric
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


@pytest.fixture(scope="module")
def decode():
    return simulate(load_scenario("decode_ep128_profile"))


def test_a_headline_holds_figures_alone_and_says_below_what_they_rest_on(decode):
    table = serving_tables("decode", decode.metrics)[0]
    heads = [str(column.header).replace("\n", " ") for column in table.columns]
    assert heads == ["metric", "expected", "ideal", "80% interval", "without transfer slowdown"]
    assert max(len(cell) for column in table.columns[1:] for cell in column.cells) <= len(
        "11,111.1 to 11,111.1"
    )
    lines = [line for line in table.caption.split("\n") if not line.startswith("  ")]
    assert [line.partition(":")[0] for line in lines] == [
        "kernel time", "kernels", "recipe", "transfers", "expert loads",
    ]  # fmt: skip


def test_a_metric_that_leads_stands_in_table_and_page_without_a_line_of_its_own(
    decode, monkeypatch
):
    share = Metric("host_share", "share", "less", "host over the step", leads=True)
    monkeypatch.setitem(METRICS["serving_step"], share.name, share)
    metrics = {**decode.metrics, "host_share": 0.125}
    table = serving_tables("decode", metrics)[0]
    assert [list(column.cells)[-1] for column in table.columns] == [
        "host_share", "12.50%", "", "", "",
    ]  # fmt: skip
    figures = step_page(decode.scenario, metrics, task_columns(decode.result)).answer.figures
    assert [figure.label for figure in figures] == [
        "TPOT", "Output tokens per second per GPU", "Output tokens per second per node",
        "Tokens per second per user", "Exposed communication", "KV cache tokens per GPU",
        "Largest batch per GPU", "Host share",
    ]  # fmt: skip
    assert [figure.value for figure in figures[-2:]] == ["182 requests", "12.50%"]


@pytest.mark.parametrize("columns", [80, 100])
def test_every_table_of_a_step_fits_and_cuts_nothing(decode, columns):
    console = Console(file=io.StringIO(), width=columns, markup=False)
    for table in serving_tables("decode", decode.metrics):
        for part in fitted(table, columns):
            console.print(part)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= columns
    assert "…" not in text


def test_slices_of_a_stream_do_not_overlap(decode, tmp_path):
    report = JOB_REPORTS[decode.scenario.job_name]()
    report.write(decode, decode.metrics, tmp_path / "run")
    last = {}
    for event in serving_events(decode.result):
        if event["ph"] == "X":
            assert event["ts"] >= last.get(event["tid"], 0.0) - 1e-3
            last[event["tid"]] = event["ts"] + event["dur"]
    kernels = pd.read_csv(tmp_path / "run" / "kernels.csv")
    assert {"name", "seconds", "provenance", "calls"} <= set(kernels.columns)
