"""What a scenario file may have."""

from simulator.scenario.scenario_file import FIELDS, JOBS, ScenarioFile


def test_a_file_has_its_own_fields_and_those_of_its_job():
    assert {*ScenarioFile.model_fields, *JOBS} == FIELDS
    assert set(ScenarioFile.model_fields).isdisjoint(JOBS)
