"""A run is a scenario and what came of it, of one type for every job."""

import pytest

import simulator
from simulator.hardware.kernels import completed
from simulator.scenario.files import JOBS, known_scenarios


@pytest.fixture(scope="module")
def bound():
    return simulator.simulate(simulator.load_scenario("tpot_limit_nvl72"))


def test_every_job_has_a_simulation():
    from simulator.analysis.run import SIMULATED

    assert set(SIMULATED) == set(JOBS)


@pytest.mark.parametrize(
    ("name", "changes", "metric", "intervals"),
    [
        ("decode_ep8_h200", [], "step_time_s", True),
        ("mooncake_conversation", ["requests.limit=20", "published=[]"], "ttft_s", True),
        ("all_to_all_64", [], "completion_s", False),
        ("tpot_limit_nvl72", [], "step_time_s", False),
        ("offload_ktransformers", [], "step_time_s", False),
    ],
)
def test_a_run_of_any_job_has_metrics(name, changes, metric, intervals):
    run = simulator.simulate(simulator.load_scenario(name, changes))
    assert isinstance(run, simulator.Run)
    assert run.has_intervals == intervals
    assert run.quick_metrics[metric] is not None
    assert ("interval_80" in run.metrics) == intervals
    assert "interval_80" not in run.quick_metrics


def test_metrics_are_worked_out_once(bound):
    assert bound.metrics is bound.metrics
    assert bound.metrics is bound.quick_metrics


def test_what_is_written_of_a_run_says_which_scenario_it_is_of(bound):
    assert bound.to_json()["scenario"] == {
        "name": "tpot_limit_nvl72",
        "job": "tpot_limit",
        "changes": [],
        "published_for_other_inputs": [],
    }


def test_only_a_training_step_unfolds():
    scenario = simulator.load_scenario("tpot_limit_nvl72")
    with pytest.raises(ValueError, match="--unfold: a tpot_limit job has nothing to unfold"):
        simulator.simulate(scenario, unfold=True)


def test_the_front_door_names_what_it_has():
    assert simulator.load_scenario(known_scenarios()[0]).name == known_scenarios()[0]
    for name in simulator.__all__:
        assert getattr(simulator, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'simulator' has no attribute 'simulat'"):
        simulator.simulat  # noqa: B018


def test_a_sweep_gives_a_row_for_every_combination():
    rows = simulator.sweep(
        "tpot_limit_nvl72", {"tokens_per_device": [32, 64], "micro_batches": [1, 2]}
    )
    assert [tuple(row.settings.values()) for row in rows] == [(32, 1), (32, 2), (64, 1), (64, 2)]
    times = [row.metrics["step_time_s"] for row in rows]
    # Twice the tokens or twice the micro-batches take twice as long.
    assert times == pytest.approx([times[0], 2 * times[0], 2 * times[0], 4 * times[0]], rel=1e-12)


@pytest.mark.parametrize("name", ["decode_ep8_h200", "pair_two_h200"])
def test_the_kernel_times_of_a_step_are_kept_for_the_next_process(name, tmp_path, monkeypatch):
    """In place of what a process before has kept, so that there are new ones."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    completed._completed.cache_clear()
    run = simulator.simulate(simulator.load_scenario(name, ["skew=none"]))
    folder = tmp_path / "dsv3sim" / "kernel_times"
    assert not folder.exists()
    run.keep_kernel_times()
    (kept,) = folder.iterdir()
    written = kept.stat().st_mtime_ns
    run.keep_kernel_times()
    assert kept.stat().st_mtime_ns == written
    completed._completed.cache_clear()
    again = simulator.simulate(simulator.load_scenario(name, ["skew=none"]))
    assert again.plain_metrics == run.plain_metrics
    again.keep_kernel_times()
    assert kept.stat().st_mtime_ns == written
