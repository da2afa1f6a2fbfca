"""What a scenario file may have."""

from simulator.scenario.scenario_file import FIELDS, JOBS, ScenarioFile, job_type, name_of_job


def test_a_file_has_its_own_fields_and_those_of_its_job():
    assert {*ScenarioFile.model_fields, *JOBS} == FIELDS
    assert set(ScenarioFile.model_fields).isdisjoint(JOBS)


def test_every_job_is_known_by_its_type_and_the_type_by_its_job():
    assert {name: name_of_job(job_type(name)) for name in JOBS} == {name: name for name in JOBS}
