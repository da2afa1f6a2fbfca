"""The fabric of a group, other jobs on it, and what fails."""

import numpy as np
import pytest

from simulator.execution.machine.surroundings import WIDE, shared_fabric, surroundings
from simulator.scenario.events import CHANNELS, EventsInputs
from simulator.scenario.files import load_scenario

SCENARIO = load_scenario("dualpipe_h800_2048", ["cluster.nodes=16"])
CLUSTER, CALIBRATION = SCENARIO.cluster, SCENARIO.calibration


def fabric_with(*channels):
    return shared_fabric(
        CLUSTER, CALIBRATION, channels, group=64, copy_rates=lambda links: [2e11, 3e11]
    )


def around(**inputs):
    return surroundings(
        EventsInputs(**inputs), fabric_with(*CHANNELS), cluster=CLUSTER, calibration=CALIBRATION,
        seed=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("channel", "resource"),
    [
        ("nvlink", lambda fabric: 0),
        ("nic", lambda fabric: fabric.nic_link(0, 0, "up")),
        ("links", lambda fabric: int(fabric.plane_start[0]) + 2 * fabric.planes[0].end_ports),
    ],
)
def test_links_that_nothing_contends_for_are_wide_open(channel, resource):
    every, without = fabric_with(*CHANNELS), fabric_with(*set(CHANNELS) - {channel})
    at = resource(every)
    assert without.capacity[at] == WIDE * every.capacity[at]
    others = np.flatnonzero(without.capacity == every.capacity)
    assert len(others) > 0


def test_copying_sms_are_resources_where_sms_contend():
    every, without = fabric_with(*CHANNELS), fabric_with(*set(CHANNELS) - {"sms"})
    at = [every.copier(5, kind, way) for kind in (0, 1) for way in ("out", "in")]
    assert every.capacity[at].tolist() == [2e11, 2e11, 3e11, 3e11]
    assert every.resource_names(np.array(at))[::3] == [
        "node0/gpu5/copies_out", "node0/gpu5/copies_in",
    ]  # fmt: skip
    assert np.isinf(without.capacity[at]).all()


def test_what_fails_is_sorted_by_time():
    _, found = around(failures=("nic:node3/nic1@40ms", "slow:node2/nic0/up=0.5@1ms"))
    assert [failure.at for failure in found] == [0.001, 0.04]


def test_a_failure_of_something_unknown_is_found_before_the_run():
    with pytest.raises(ValueError, match=r"events\.failures: .*known: node0 to node15"):
        around(failures=("nic:node300/nic1@40ms",))


def test_traffic_of_another_job_is_a_process_of_its_own():
    other = {"name": "send", "gpus": 16, "first_gpu": 64, "bytes_per_gpu": "1 GB"}
    beside, failures = around(beside=(other,))
    assert (len(beside), failures) == (1, [])


def test_traffic_that_the_cluster_cannot_have_is_found_before_the_run():
    with pytest.raises(ValueError, match=r"events\.beside: send on GPUs 64 to 263"):
        around(beside=({"name": "send", "gpus": 200, "first_gpu": 64, "bytes_per_gpu": "1 GB"},))
