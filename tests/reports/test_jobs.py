"""What is shown of each job."""

import json

import pytest

from reports import write_report
from reports.jobs import JOB_REPORTS
from simulator import load_scenario, simulate
from simulator.scenario.files import JOBS


def test_every_job_is_shown_and_nothing_else():
    assert set(JOB_REPORTS) == set(JOBS)
    for make in JOB_REPORTS.values():
        report = make()
        assert callable(report.tables)
        assert callable(report.write)


@pytest.mark.parametrize("name", ["tpot_limit_nvl72", "offload_ktransformers", "all_to_all_64"])
def test_a_run_is_written_with_its_metrics_and_a_page(name, tmp_path):
    run = simulate(load_scenario(name))
    page = write_report(run, tmp_path / "run")
    assert page == tmp_path / "run" / "report.html"
    assert run.scenario.file.description in page.read_text(encoding="utf-8")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == run.to_json()
