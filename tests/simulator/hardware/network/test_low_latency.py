"""Low-latency kernels and wires, each worked out by hand from the published rows."""

import dataclasses

import numpy as np
import pytest

from hardware_profiles.low_latency_kernels import load_low_latency
from hardware_profiles.schema import load_cluster
from simulator.hardware.network.fabric_load import NO_LIMIT, FabricLoad
from simulator.hardware.network.low_latency import LowLatencyTransfers

OVER_NICS = LowLatencyTransfers(
    profile=load_low_latency("deepep_h800_rdma"),
    cluster=load_cluster("h800_2048"),
    ranks=64,
    domain=8,
    hidden=7168,
    load=NO_LIMIT,
    kernel_floor=2e-6,
)
PUBLISHED = np.array(1024.0)
"""Copies of 128 tokens that go to 8 experts each."""


def microseconds(seconds):
    return float(seconds) * 1e6


@pytest.mark.parametrize(
    ("operation", "published", "send", "receive"),
    [("dispatch", 186.0, 36.7, 9.0), ("combine", 353.0, 39.7, 10.2)],
)
def test_kernels_and_wire_sum_to_the_published_time(operation, published, send, receive):
    wire = OVER_NICS.wire(operation, PUBLISHED)
    assert microseconds(OVER_NICS.kernel(f"{operation}_send", PUBLISHED)) == pytest.approx(send)
    assert microseconds(OVER_NICS.kernel(f"{operation}_receive", PUBLISHED)) == pytest.approx(
        receive
    )
    assert microseconds(wire) == pytest.approx(published - send - receive)


def test_half_the_copies_halve_all_but_the_floors_and_the_intercept():
    # Beyond 25.7 us of next to no tokens 160.3 us go with bytes; of the kernels 2 us do not.
    half = PUBLISHED / 2
    send, receive = 2 + 34.7 / 2, 2 + 7 / 2
    assert microseconds(OVER_NICS.kernel("dispatch_send", half)) == pytest.approx(send)
    assert microseconds(OVER_NICS.wire("dispatch", half)) == pytest.approx(
        25.7 + 160.3 / 2 - send - receive
    )


def test_nics_shared_by_two_take_the_bytes_twice_as_long():
    shared = FabricLoad(nic_stretch=2.0, bandwidth=np.inf, latency=0.0)
    busy = dataclasses.replace(OVER_NICS, load=shared)
    assert microseconds(busy.wire("dispatch", PUBLISHED)) == pytest.approx(140.3 + 160.3)


def test_links_that_leave_less_than_the_nics_decide():
    # 7,168 bytes, 56 scales and 16 bytes a copy at 10 GB/s.
    behind = FabricLoad(nic_stretch=1.0, bandwidth=10e9, latency=0.0)
    slow = dataclasses.replace(OVER_NICS, load=behind)
    moved = 1024 * (7168 + 4 * 56 + 16) / 10e9 * 1e6
    assert microseconds(slow.wire("dispatch", PUBLISHED)) == pytest.approx(
        moved + 25.7 - 36.7 - 9.0
    )


def test_of_no_tokens_the_intercept_is_left_less_what_both_kernels_take():
    assert microseconds(OVER_NICS.wire("dispatch", np.array(0.0))) == pytest.approx(25.7 - 4.0)
    far = FabricLoad(nic_stretch=1.0, bandwidth=np.inf, latency=50e-6)
    farther = dataclasses.replace(OVER_NICS, load=far)
    assert microseconds(farther.wire("dispatch", np.array(0.0))) == pytest.approx(
        25.7 - 4.0 + 50.0 - 3.7
    )


def test_over_nvlink_the_send_kernel_stores_and_a_wire_takes_the_latency_of_its_network():
    inside = dataclasses.replace(
        OVER_NICS,
        profile=load_low_latency("deepep_h200_nvlink"),
        cluster=load_cluster("h200_8", {"node.nvlink_latency": "3.5 us"}),
        ranks=8,
    )
    # 35.119 us in all, of which the kernels take 26.1 and 9: next to nothing is left.
    assert microseconds(inside.kernel("dispatch_send", PUBLISHED)) == pytest.approx(26.1)
    assert microseconds(inside.wire("dispatch", PUBLISHED)) == pytest.approx(3.5)
