"""Statistics of a fleet run."""

from typing import Any

import numpy as np
import pytest
from fleet_figures import STEP_TIMES, make_job

from hardware_profiles.schema import ClusterProfile, load_cluster
from simulator.analysis.fleet_metrics import (
    fleet_metrics,
    fleet_time_series,
)
from simulator.analysis.fleet_statistics import FleetStatistics
from simulator.execution.fleet.accounts import FleetRun
from simulator.execution.fleet.fleet import run_fleet
from simulator.execution.fleet.log import CollectedLog, Outcome
from simulator.execution.fleet.step_times import AffineStepTimes
from simulator.scenario.analysis_inputs import VerdictRules
from simulator.scenario.fleet import AffineCoefficients, FleetJob


@pytest.fixture(scope="module")
def cluster() -> ClusterProfile:
    return load_cluster("h800_2048")


def run(
    job: FleetJob, cluster: ClusterProfile
) -> tuple[dict[str, Any], FleetRun, CollectedLog, FleetStatistics]:
    """Run the same job twice: once with statistics, once with all rows kept."""
    times = {
        name: AffineStepTimes(AffineCoefficients.model_validate(STEP_TIMES)) for name in job.pools
    }
    statistics, rows = FleetStatistics(job), CollectedLog()
    result = run_fleet(job, times, cluster, seed=0, logs=[statistics])
    run_fleet(job, times, cluster, seed=0, logs=[rows])
    return (
        fleet_metrics(job, cluster, result, statistics, step_times=times, rules=VerdictRules()),
        result,
        rows,
        statistics,
    )


def test_latencies_are_those_of_requests_after_the_warm_up(cluster: ClusterProfile) -> None:
    metrics, result, log, _ = run(make_job("20 Hz"), cluster)
    rows = log.all_requests()
    rows = rows.where((rows["arrival_s"] >= 5.0) & (rows["outcome"] == Outcome.FINISHED))
    ttft = rows["first_token_s"] - rows["arrival_s"]
    assert metrics["ttft_s"]["count"] == len(rows)
    assert metrics["ttft_s"]["mean"] == pytest.approx(ttft.mean())
    assert metrics["ttft_s"]["p99"] == pytest.approx(
        np.quantile(ttft, 0.99, method="inverted_cdf"), rel=1e-3
    )
    # Requests that end in the drain met a service that empties.
    assert (rows["end_s"] > result.last_arrival_s).any()
    rows = log.all_requests()
    rows = rows.where((rows["end_s"] >= 5.0) & (rows["end_s"] <= result.last_arrival_s))
    several = rows.where(rows["output_tokens"] > 1)
    tpot = (several["end_s"] - several["first_token_s"]) / (several["output_tokens"] - 1)
    assert metrics["tpot_s"]["count"] == len(several)
    assert metrics["tpot_s"]["mean"] == pytest.approx(tpot.mean())
    assert metrics["e2e_s"]["mean"] == pytest.approx((rows["end_s"] - rows["arrival_s"]).mean())


def test_the_time_series_adds_up_to_the_run(cluster: ClusterProfile) -> None:
    job = make_job("20 Hz")
    _, result, log, statistics = run(job, cluster)
    series = fleet_time_series(job, result, statistics)
    width = statistics.series.width_s
    ends = np.minimum(np.array(series["time_s"]) + width, result.end_s)
    seconds = ends - np.array(series["time_s"])
    tokens = float(np.array(series["output_tokens_per_second"]) @ seconds)
    assert tokens == pytest.approx(float(log.all_iterations()["output_tokens"].sum()))
    assert all(value is None or 0 <= value <= 1 for value in series["kv_occupancy"])
