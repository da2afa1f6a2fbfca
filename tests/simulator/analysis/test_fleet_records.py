"""What is kept of a fleet's requests and iterations."""

import numpy as np
from fleets import fixed_requests, make_job, pool

from hardware_profiles.schema import load_cluster
from simulator.analysis.fleet_records import FleetRecords, queueing_s, tpot_s, ttft_s
from simulator.execution.fleet.fleet import run_fleet
from simulator.execution.fleet.log import CollectedLog, RequestRow, RowBlock
from simulator.execution.fleet.step_times import AffineStepTimes


def block(**changes):
    row = dict.fromkeys(RequestRow._fields, 0.0) | changes
    return RowBlock(RequestRow._fields, np.array([[row[name] for name in RequestRow._fields]]))


def recorded(**limits):
    job = make_job(fixed_requests(20, 100, 5), prefill=pool(2), decode=pool(1))
    times = {name: AffineStepTimes(spec.affine) for name, spec in job.pools.items()}
    rows, cluster = CollectedLog(), load_cluster("h800_2048")
    records = FleetRecords(**limits)
    run_fleet(job, times, cluster, seed=0, logs=[records, rows])
    return records, rows


def test_every_request_is_kept_in_order_of_arrival_and_every_log_gets_it():
    records, rows = recorded(from_s=0.0)
    assert records.all_requests()["request"].tolist() == list(range(20))
    assert sorted(rows.all_requests()["request"]) == list(range(20))


def test_a_request_names_the_instances_that_began_its_prefill_and_its_decode():
    requests = recorded(from_s=0.0)[0].all_requests()
    assert set(requests["prefill_instance"]) == {0.0, 1.0}
    assert set(requests["decode_instance"]) == {2.0}


def test_iterations_are_kept_from_an_instant_on_until_there_are_many():
    records, rows = recorded(from_s=1.0, most_iterations=7)
    kept = records.kept_iterations()
    starts = rows.all_iterations()["start_s"]
    assert kept["start_s"].tolist() == starts[starts >= 1.0][:7].tolist()


def test_latencies_of_a_request_by_hand():
    """Arrives at 1 s, first pass at 3 s, first token at 4 s, ends with 5 tokens at 6 s."""
    whole = block(arrival_s=1, prefill_start_s=3, first_token_s=4, end_s=6, generated_tokens=5)
    assert [float(of(whole)[0]) for of in (queueing_s, ttft_s, tpot_s)] == [2.0, 3.0, 0.5]
    waiting = block(arrival_s=1, prefill_start_s=-1, first_token_s=-1, end_s=6)
    assert np.isnan([of(waiting)[0] for of in (queueing_s, ttft_s, tpot_s)]).all()
