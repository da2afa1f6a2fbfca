"""Intervals of fleets: what they rest on, that they hold the value, and when there are none."""

from dataclasses import replace

import pytest

import simulator.analysis.fleet_intervals as fleet_intervals_module
from simulator.analysis.fleet_intervals import (
    FIGURES,
    ScaledStepTimes,
    fleet_intervals,
    fleet_metrics_with_intervals,
    goodput_cliff,
)
from simulator.analysis.fleet_metrics import (
    measure_figures,
    measure_fleet,
    observe_first,
    observe_fleet,
)
from simulator.analysis.published import metric_at
from simulator.execution.fleet.simulation import prepare_fleet
from simulator.execution.fleet.step_times import AffineStepTimes
from simulator.scenario.files import load_scenario
from simulator.scenario.fleet import AffineCoefficients as Coefficients
from simulator.scenario.fleet import FleetJob

AFFINE = {
    "decode_fixed": "10 ms",
    "decode_per_request": "100 us",
    "decode_per_context_token": "1 us",
    "prefill_fixed": "5 ms",
    "prefill_per_token": "20 us",
    "prefill_per_attended_token": "0 s",
    "kv_capacity_tokens": 4000,
}


def test_scaled_step_times_are_those_of_the_base_times_a_factor_for_each_phase() -> None:
    base = AffineStepTimes(Coefficients.model_validate(AFFINE))
    scaled = ScaledStepTimes(base, {"prefill": 2.0, "decode": 0.5})
    assert scaled.decode_step_s(3, 100) == 0.5 * base.decode_step_s(3, 100)
    assert scaled.prefill_pass_s(200, 50) == 2.0 * base.prefill_pass_s(200, 50)
    assert (scaled.kv_capacity_tokens, scaled.page_tokens) == (4000, 1)


@pytest.mark.parametrize(
    "changes",
    [
        ["azure_code", "requests.limit=120", "analysis.interval_requests=60"],
        ["mooncake_conversation", "requests.limit=160", "analysis.interval_requests=80"],
    ],
)
def test_intervals_hold_their_figures_and_slower_iterations_their_high_end(
    changes: list[str],
) -> None:
    name, *overrides = changes
    metrics = fleet_metrics_with_intervals(
        observe_fleet(prepare_fleet(load_scenario(name, ["warm_up=0 s", *overrides])))
    )
    intervals = metrics["interval_80"]
    assert {"tpot_s.mean", "tokens_per_second_per_user", "ttft_s.mean"} <= set(intervals)
    assert set(intervals) <= set(FIGURES)
    for path, (low, high) in intervals.items():
        value = metric_at(metrics, path)
        assert value is not None
        assert low <= value <= high
    low, high = intervals["tpot_s.mean"]
    # The step model's own interval is wider than 5% each way.
    assert high - low > 0.08 * metrics["tpot_s"]["mean"]


@pytest.mark.parametrize("number", ["null", "1500"])
def test_all_requests_are_run_at_both_ends_where_the_scenario_names_no_smaller_number(
    number: str,
) -> None:
    overrides = ["requests.limit=40", "warm_up=0 s", f"analysis.interval_requests={number}"]
    simulation = prepare_fleet(load_scenario("azure_code", overrides))
    fleet = observe_fleet(simulation)
    metrics = measure_fleet(fleet)
    first = fleet_intervals(fleet, metrics)
    every = load_scenario("azure_code", [*overrides, "analysis.interval_requests=40"])
    assert first == fleet_intervals(observe_fleet(prepare_fleet(every)), metrics)
    assert first["tpot_s.mean"][0] < metrics["tpot_s"]["mean"] < first["tpot_s.mean"][1]


def test_a_run_of_the_first_requests_gives_the_figures_that_the_whole_run_has_of_them() -> None:
    changes = ["requests.limit=120", "warm_up=10 s", "analysis.interval_requests=60"]
    fleet = observe_fleet(prepare_fleet(load_scenario("azure_code", changes)))
    assert fleet.first is not None
    assert fleet.first.arrived < fleet.statistics.arrived
    of_whole = measure_figures(replace(fleet, statistics=fleet.first))
    alone = measure_figures(observe_first(fleet.simulation))
    known = {path: value for path in FIGURES if (value := metric_at(of_whole, path)) is not None}
    assert {"ttft_s.mean", "tpot_s.mean", "goodput_requests_per_second"} <= set(known)
    # Rows come in another order, and sums round.
    assert {path: metric_at(alone, path) for path in known} == pytest.approx(known, rel=1e-12)


@pytest.mark.parametrize("changes", [["warm_up=14 s"], ["sample_interval=15 s"]])
def test_first_requests_without_a_window_of_their_own_are_no_part(changes: list[str]) -> None:
    """The first 60 arrive within 14.49 s."""
    few = ["requests.limit=120", "warm_up=0 s", "analysis.interval_requests=60"]
    fleet = observe_fleet(prepare_fleet(load_scenario("azure_conversation", [*few, *changes])))
    assert fleet.first is None


def test_coefficients_of_a_scenario_have_no_interval() -> None:
    simulation = prepare_fleet(
        load_scenario(
            "azure_code",
            [
                "requests.limit=20",
                "warm_up=0 s",
                "prefill=null",
                "decode=null",
                "kv_transfer=null",
                "colocated={instances: 1, gpus_per_instance: 8, ranks: 1, max_batch: 64, "
                "tokens_per_pass: 512, kv_capacity_tokens: 100000, affine: "
                + str(AFFINE).replace("'", '"')
                + "}",
            ],
        )
    )
    assert fleet_metrics_with_intervals(observe_fleet(simulation))["interval_80"] == {}


def near_its_limit(**changes: object) -> dict[str, object]:
    """Figures of a service whose mean TPOT of 47.7 ms lies below its limit of 50 ms, and whose
    interval goes beyond it."""
    return {
        "service_level": {"ttft_s": 10.0, "tpot_s": 0.05},
        "ttft_s": {"mean": 5.14},
        "tpot_s": {"mean": 0.0477},
        "interval_80": {
            "goodput_requests_per_second": [0.442, 296.5],
            "ttft_s.mean": [4.30, 5.76],
            "tpot_s.mean": [0.0412, 0.0607],
        },
    } | changes


def test_a_goodput_that_one_end_of_the_interval_loses_is_called_a_cliff() -> None:
    assert goodput_cliff(near_its_limit()) == (
        "goodput is a cliff, 0.442 or 296 requests/s rather than between: the TPOT limit of 50 ms "
        "lies within the interval of the mean, 41.2 ms to 60.7 ms: times 4.8% above the 47.7 ms "
        "simulated reach it"
    )
    slower = goodput_cliff(near_its_limit(tpot_s={"mean": 0.0525}))
    assert slower is not None
    assert slower.endswith("times 4.8% below the 52.5 ms simulated reach it")
    spread = goodput_cliff(near_its_limit(interval_80={"goodput_requests_per_second": [1.0, 2.1]}))
    assert spread is not None
    assert spread.endswith("rather than between: times of single requests spread around the limits")


@pytest.mark.parametrize("ends", [{"goodput_requests_per_second": [1.0, 2.0]}, {}])
def test_a_goodput_that_half_stays_of_is_a_range(ends: dict[str, list[float]]) -> None:
    assert goodput_cliff(near_its_limit(interval_80=ends)) is None


def test_ranks_that_are_alike_are_not_run_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = load_scenario("azure_code").job_as(FleetJob).pools["colocated"]
    assert pool.prefill_step is not None
    alike = [
        f"colocated.prefill_step.changes=[{', '.join([*pool.prefill_step.changes, 'skew=none'])}]",
        "colocated.decode_step.changes=[skew=none]",
    ]
    overrides = ["requests.limit=40", "warm_up=0 s", *alike]
    simulation = prepare_fleet(load_scenario("azure_code", overrides))
    fleet = observe_fleet(simulation)
    metrics = measure_fleet(fleet)
    runs = []
    monkeypatch.setattr(
        fleet_intervals_module,
        "observe_fleet",
        lambda *of: runs.append(of) or observe_fleet(*of),
    )
    found = fleet_intervals(fleet, metrics)
    assert len(runs) == 2  # the two ends
    for path, (*_, ideal) in found.items():
        assert ideal == pytest.approx(metric_at(metrics, path), rel=1e-12)
