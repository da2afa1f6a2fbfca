"""What a scenario says of the analysis of its run."""

import pytest

from simulator.scenario.analysis_inputs import AnalysisInputs, Counterfactual, LoadOfDay
from simulator.scenario.files import load_scenario


def test_what_stood_in_a_fleet_is_read_where_it_stands_today():
    with pytest.warns(FutureWarning, match=r"fleet\.interval_requests is called analysis\."):
        earlier = load_scenario("azure_code", ["interval_requests=40"])
    assert earlier.file.analysis == AnalysisInputs(interval_requests=40)
    today = load_scenario("azure_code", ["analysis.interval_requests=40"])
    assert earlier.file.analysis == today.file.analysis


def test_a_job_that_takes_no_analysis_inputs_refuses_them():
    message = r"^scenarios/offload_ktransformers\.yaml: analysis: allowed with a fleet job only"
    with pytest.raises(ValueError, match=message):
        load_scenario("offload_ktransformers", ["analysis.interval_requests=40"])


def test_a_counterfactual_changes_something():
    with pytest.raises(ValueError, match="nothing: needs changes or load_of_day"):
        Counterfactual(name="nothing", source="none")


def test_a_day_peaks_between_its_mean_and_twice_that():
    with pytest.raises(ValueError, match=r"peak_nodes is 17; allowed: from mean_nodes \(8\)"):
        LoadOfDay(mean_nodes=8, peak_nodes=17, mean_replicas=3, levels=3)
