"""A run with fidelity events prints its ranks beside the timeline and the published trace."""

import json

import pytest

from simulator.analysis.events_metrics import changes_from
from simulator.analysis.run import simulate
from simulator.scenario.files import load_scenario

SMALL = (
    "cluster.nodes=4", "training.pp=2", "training.ep=16", "training.global_batch_sequences=128",
    "model.num_hidden_layers=6", "cluster.node.gpu.hbm_capacity=192 GB",
)  # fmt: skip


@pytest.fixture(scope="module")
def events():
    scenario = load_scenario("dualpipe_h800_2048", ["fidelity=events", *SMALL])
    return simulate(scenario).quick_metrics["events"]


def test_what_devices_do_not_explain_is_printed(events):
    gemm = next(row for row in events["beside"] if row["effect"] == "GEMM")
    assert (gemm["ratio"], gemm["measured"]) == (pytest.approx(1.0), 1.045)
    assert gemm["unexplained"] == pytest.approx(1.045)


def test_events_solves_and_ranks_are_counted(events):
    assert events["ranks"] == 16
    assert events["events"] > 16 * 552
    assert events["solves"] > 16


def test_ratios_come_out_as_the_timeline_takes_them(events):
    inputs = events["timeline_inputs"]
    assert inputs["calibration.overlap.gemm.value"] == pytest.approx(1.0)
    means = {row["effect"]: row for row in events["beside"]}
    beside = inputs["calibration.all_to_all.beside_compute"]
    assert (
        means["dispatch, forward"]["low"]
        < beside["dispatch"]["value"]
        < means["dispatch, gradient"]["high"]
    )
    assert inputs["calibration.all_to_all.without_waiting.dispatch"] == beside["dispatch"]


def test_a_run_on_the_timeline_prints_none_of_it():
    assert "events" not in simulate(load_scenario("pair_two_h200")).quick_metrics


def test_the_timeline_takes_what_came_out(events, tmp_path):
    """Products as fast beside a transfer as alone, and transfers as the mean of all of them."""
    run = tmp_path / "metrics.json"
    run.write_text(json.dumps({"events": events}))
    loaded = load_scenario("dualpipe_h800_2048", changes_from(run))
    assert loaded.calibration.overlap.gemm.value == pytest.approx(1.0)
    assert loaded.calibration.overlap.gemm.of_rows == 1.045
    inputs = events["timeline_inputs"]["calibration.all_to_all.beside_compute"]
    assert (
        loaded.calibration.all_to_all.beside_compute.dispatch.value == (inputs["dispatch"]["value"])
    )


def test_another_run_is_refused_with_a_line(tmp_path):
    run = tmp_path / "metrics.json"
    run.write_text("{}")
    with pytest.raises(ValueError, match="not a run with fidelity: events"):
        changes_from(run)
    run.write_text("half")
    with pytest.raises(ValueError, match="no JSON"):
        changes_from(run)
    with pytest.raises(ValueError, match=r"--from-events .* cannot be read"):
        changes_from(tmp_path / "missing.json")
