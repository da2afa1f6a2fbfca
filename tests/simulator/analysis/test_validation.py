"""Published figures beside simulated ones: which count as evidence, and their median error."""

import pytest

from simulator.analysis.validation import (
    check_published,
    figures_of,
    median_error,
    predictions_of,
    scenarios_with_figures,
)
from simulator.execution.progress import HowFar


def figure(error, **others):
    of_run = {"published": 1.0, "simulated": 1.0 + error, "error": error}
    return {"name": "x", "metric": "step_time_s", **of_run, **others}


def metrics_with_figures(scenario, overrides):
    return {"published": [figure(0.1, source=f"a paper on {scenario}")]}


def test_a_figure_without_a_kind_is_a_prediction():
    (row,) = figures_of({"published": [figure(0.1)]})
    assert (row.kind, row.is_evidence) == ("predicted", True)


@pytest.mark.parametrize("kind", ["input", "chosen", "calibrated", "bound", "setup_unpublished"])
def test_what_the_model_was_given_is_no_evidence(kind):
    (row,) = figures_of({"published": [figure(0.1, kind=kind)]})
    assert not row.is_evidence


@pytest.mark.parametrize("kind", ["reproduced", "predicted"])
def test_the_pair_is_what_its_calibration_makes_it(kind):
    run = {"pair_time_kind": kind, "published": [figure(0.1, metric="pair_time_s")]}
    (row,) = figures_of(run)
    assert row.kind == kind
    assert row.is_evidence == (kind == "predicted")


def test_the_median_error_is_of_evidence_alone_and_absolute():
    rows = [figure(-0.4), figure(0.1), figure(0.2), figure(9.0, kind="chosen")]
    rows = figures_of({"published": rows})
    assert median_error(rows) == pytest.approx(0.2)
    assert median_error(rows[:2]) == pytest.approx(0.25)
    assert median_error(rows[3:]) is None


def test_a_figure_that_a_run_does_not_have_is_shown_without_an_error():
    row = figure(0.1) | {"simulated": None, "error": None}
    (row,) = figures_of({"published": [row]})
    assert row.error is None
    assert median_error([row]) is None


def test_runs_in_processes_come_in_the_order_of_their_names():
    names = ["b", "a", "c"]
    here = list(check_published(names, metrics_with_figures))
    assert list(check_published(names, metrics_with_figures, jobs=2)) == here
    assert [name for name, _ in here] == names


def test_the_shipped_figures_are_found_wherever_a_scenario_holds_them():
    names = scenarios_with_figures()
    assert {"dualpipe_h800_2048", "deepep_normal", "offload_ktransformers", "day6_service"} <= {
        *names
    }
    assert "decode_ep128_profile" not in names


def test_scenarios_are_written_down_with_what_their_runs_say():
    """A bound has no interval, so nothing to write; a decode step has its time and what follows."""
    none, lines = predictions_of(("tpot_limit_cx7", "decode_ep32_b200"), date="2026-11-28")

    assert none == []
    assert {line.about for line in lines} == {"decode_ep32_b200"}
    assert {line.quantity for line in lines} >= {"step_time_s", "tpot_s"}
    (step,) = [line for line in lines if line.quantity == "step_time_s"]
    assert (step.date, step.truth_known) == ("2026-11-28", False)


def test_who_watches_is_told_how_many_scenarios_have_run():
    seen = []
    names = ("tpot_limit_cx7", "offload_ktransformers")
    assert list(predictions_of(names, date="2026-11-28", watch=seen.append)) == [[], []]
    assert seen == [HowFar(0.5, 1, "scenarios"), HowFar(1.0, 2, "scenarios")]
