"""The page and tables of a whole training run."""

import json
from pathlib import Path

import pandas as pd
import pytest

from reports.pretraining import middle_run, pretraining_tables, write_pretraining_run
from simulator.analysis.run import simulate
from simulator.execution.pretraining import RunLog
from simulator.scenario.files import load_scenario


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = simulate(load_scenario("dense_16k_h100_incidents", ["pretraining.runs=4"]))
    directory = tmp_path_factory.mktemp("runs") / "dense"
    write_pretraining_run(run, run.to_json(), directory)
    return directory


def test_the_run_in_the_middle_is_the_shorter_of_two() -> None:
    logs = [RunLog() for _ in range(4)]
    for log, seconds in zip(logs, (4.0, 1.0, 3.0, 2.0), strict=True):
        log.seconds["training"] = seconds

    assert middle_run(logs) == 3


def test_a_directory_holds_page_figures_incidents_and_runs(written: Path) -> None:
    names = {path.name for path in written.iterdir()}
    assert {
        "report.html",
        "figures",
        "incidents.parquet",
        "runs.parquet",
        "metrics.json",
    } <= names
    metrics = json.loads((written / "metrics.json").read_text())
    incidents = pd.read_parquet(written / "incidents.parquet")
    assert len(incidents) == round(4 * sum(metrics["incidents"].values()))
    runs = pd.read_parquet(written / "runs.parquet")
    assert runs["wall_s"].mean() == pytest.approx(metrics["days"] * 86400, rel=1e-12)
    page = (written / "report.html").read_text()
    assert page.count("<figure") == 4
    assert "work done again" in page


def test_tables_show_the_expected_figure_its_interval_and_the_run_that_never_fails() -> None:
    run = simulate(load_scenario("dense_16k_h100_incidents", ["pretraining.runs=4"]))
    first, causes, phases, published = pretraining_tables(run.scenario.name, run.metrics)

    assert [column.header for column in first.columns] == [
        "figure",
        "expected",
        "80% interval",
        "nothing fails",
    ]
    assert (causes.row_count, phases.row_count, published.row_count) == (9, 1, 2)
