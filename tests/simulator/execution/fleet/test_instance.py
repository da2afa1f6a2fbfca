"""One instance of a pool."""

import pytest
from fleets import check_conservation, fixed_requests, make_job, pool, run

from hardware_profiles.schema import ClusterProfile, load_cluster


@pytest.fixture(scope="module")
def cluster() -> ClusterProfile:
    return load_cluster("h800_2048")


def test_a_request_that_just_fits_runs_and_one_token_more_is_rejected(
    cluster: ClusterProfile,
) -> None:
    fits = make_job(fixed_requests(1, 3901, 100), prefill=pool(), decode=pool())
    assert run(fits, cluster)[0].finished == 1
    too_long = make_job(fixed_requests(1, 3902, 100), prefill=pool(), decode=pool())
    assert run(too_long, cluster)[0].rejected == {"too_long": 1}


def test_a_burst_at_one_instant_begins_together(cluster: ClusterProfile) -> None:
    requests = fixed_requests(40, 10, 20, rate="1 GHz")
    result, log = run(make_job(requests, colocated=pool()), cluster)
    check_conservation(result, log.all_requests())
    assert log.all_requests()["prefill_start_s"].max() < 0.1


def test_a_rebalancing_pause_delays_the_step_it_falls_into(cluster: ClusterProfile) -> None:
    requests = fixed_requests(1, 100, 300)
    plain = run(make_job(requests, colocated=pool()), cluster)[0]
    rebalance = {"interval": "1 s", "pause": "100 ms"}
    paused = run(make_job(requests, colocated=pool(rebalance=rebalance)), cluster)[0]
    delays = (paused.end_s - plain.end_s) / 0.1
    assert delays == pytest.approx(round(delays))
    assert delays >= 2
