"""What is shown of each job."""

from reports.jobs import JOB_REPORTS
from simulator.scenario.files import JOBS


def test_every_job_is_shown_and_nothing_else():
    assert set(JOB_REPORTS) == set(JOBS)
    for make in JOB_REPORTS.values():
        report = make()
        assert callable(report.tables)
        assert callable(report.write)
