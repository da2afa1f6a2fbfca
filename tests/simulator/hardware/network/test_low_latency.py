"""Low-latency kernels and wires, each worked out by hand from the published rows."""

import dataclasses

import numpy as np
import pytest

from hardware_profiles.estimates import Estimate
from hardware_profiles.low_latency_kernels import load_low_latency
from hardware_profiles.schema import load_cluster
from simulator.hardware.network.fabric_load import NO_LIMIT, FabricLoad
from simulator.hardware.network.low_latency import LowLatencyModel

OVER_NICS = LowLatencyModel(
    profile=load_low_latency("deepep_h800_rdma"),
    cluster=load_cluster("h800_2048"),
    ranks=64,
    domain=8,
    messages={"dispatch": 7168 + 56 * 4 + 16, "combine": 14336},
    load=NO_LIMIT,
    kernel_floor=2e-6,
)
PUBLISHED = np.array([1024.0])
"""Copies of 128 tokens that go to 8 experts each."""


ALONE = Estimate(value=1.0, low=1.0, high=1.0, source="nothing runs beside it")


def microseconds(prediction):
    return prediction.seconds.item() * 1e6


@pytest.mark.parametrize(
    ("operation", "published", "send", "receive"),
    [("dispatch", 186.0, 36.7, 9.0), ("combine", 353.0, 39.7, 10.2)],
)
def test_kernels_and_wire_sum_to_the_published_time(operation, published, send, receive):
    wire = OVER_NICS.wire(operation, PUBLISHED, beside=ALONE)
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
    assert microseconds(OVER_NICS.wire("dispatch", half, beside=ALONE)) == pytest.approx(
        25.7 + 160.3 / 2 - send - receive
    )


def test_nics_shared_by_two_take_the_bytes_twice_as_long():
    shared = FabricLoad(nic_stretch=2.0, bandwidth=np.inf, latency=0.0)
    busy = dataclasses.replace(OVER_NICS, load=shared)
    assert microseconds(busy.wire("dispatch", PUBLISHED, beside=ALONE)) == pytest.approx(
        140.3 + 160.3
    )


def test_links_that_leave_less_than_the_nics_decide():
    # 7,168 bytes, 56 scales and 16 bytes a copy at 10 GB/s.
    behind = FabricLoad(nic_stretch=1.0, bandwidth=10e9, latency=0.0)
    slow = dataclasses.replace(OVER_NICS, load=behind)
    moved = 1024 * (7168 + 4 * 56 + 16) / 10e9 * 1e6
    assert microseconds(slow.wire("dispatch", PUBLISHED, beside=ALONE)) == pytest.approx(
        moved + 25.7 - 36.7 - 9.0
    )


def test_of_no_tokens_the_intercept_is_left_less_what_both_kernels_take():
    assert microseconds(OVER_NICS.wire("dispatch", np.zeros(1), beside=ALONE)) == pytest.approx(
        25.7 - 4.0
    )
    far = FabricLoad(nic_stretch=1.0, bandwidth=np.inf, latency=50e-6)
    farther = dataclasses.replace(OVER_NICS, load=far)
    assert microseconds(farther.wire("dispatch", np.zeros(1), beside=ALONE)) == pytest.approx(
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
    assert microseconds(inside.wire("dispatch", PUBLISHED, beside=ALONE)) == pytest.approx(3.5)


def test_a_wires_interval_holds_its_slow_down_its_intercept_and_the_spread_of_group_sizes():
    # 140.3 us alone. Of the rows, 32 GPUs achieve most of the NIC, 31/32 of the copies in 182 less
    # 25.7 us, and 256 least, 255/256 in 194 - 25.7; the 64 themselves move 63/64 in 186 - 25.7.
    here, most, least = 63 / 64 / 160.3, 31 / 32 / 156.3, 255 / 256 / 168.3
    slower = Estimate(value=2.0, low=1.5, high=3.0, source="made up")
    alone, beside = (OVER_NICS.wire("dispatch", PUBLISHED, beside=b) for b in (ALONE, slower))
    assert beside.seconds.item() == pytest.approx(2 * 140.3e-6, rel=1e-12)
    assert beside.low.item() == pytest.approx(1.5 * alone.low.item(), rel=1e-12)
    assert beside.high.item() == pytest.approx(3 * alone.high.item(), rel=1e-12)
    assert alone.low.item() == pytest.approx(140.3e-6 * here / most, rel=1e-12)
    assert alone.high.item() == pytest.approx(140.3e-6 * here / least, rel=1e-12)
    assert (alone.provenance_names(), beside.provenance_names()) == (
        ["measured"],
        ["interpolated"],
    )
    assert OVER_NICS.wire("dispatch", PUBLISHED / 2, beside=ALONE).provenance_names() == [
        "interpolated"
    ]
    elsewhere = dataclasses.replace(OVER_NICS, ranks=4)
    assert elsewhere.wire("dispatch", PUBLISHED, beside=ALONE).provenance_names() == [
        "extrapolated"
    ]


MIXED = dataclasses.replace(OVER_NICS, profile=load_low_latency("deepep_h800_mixed"), ranks=16)
"""Two nodes: half of the copies stay within a node."""


def test_of_a_mixed_form_the_slower_of_storing_and_posting_decides():
    # 512 copies over NVLink take 2 us and half of what a node's own combine takes beyond them.
    assert microseconds(MIXED.kernel("combine_send", PUBLISHED)) == pytest.approx(2 + 101.8 / 2)
    # 2 + 66 / 2 us of dispatch are less than the 36.7 that posting takes.
    assert microseconds(MIXED.kernel("dispatch_send", PUBLISHED)) == pytest.approx(36.7)
    wire = MIXED.wire("dispatch", PUBLISHED, beside=ALONE)
    assert microseconds(wire) == pytest.approx(118 - 36.7 - 9)
    assert wire.provenance_names() == ["measured"]
    elsewhere = dataclasses.replace(MIXED, domain=4).wire("dispatch", PUBLISHED, beside=ALONE)
    assert elsewhere.provenance_names() == ["extrapolated"]


def test_over_a_faster_nvlink_bytes_take_less_and_what_else_a_kernel_does_as_long():
    inside = dataclasses.replace(
        OVER_NICS,
        profile=load_low_latency("deepep_h800_nvlink"),
        cluster=load_cluster("h200_8"),
        ranks=8,
    )
    # 66 of 68 us store copies at 200 GB/s, here at 450.
    stored = microseconds(inside.kernel("dispatch_send", PUBLISHED))
    assert stored == pytest.approx(2 + 66 * 200 / 450)
    # Of a sixteenth of the copies the published 77 us leave 65.1 / 16 at that rate and 11.9 us,
    # less the latency of 3.33 and what receiving takes.
    few = microseconds(inside.kernel("dispatch_send", PUBLISHED / 16))
    assert few == pytest.approx(65.1 / 16 * 200 / 450 + 11.9 - 3.33 - (2 + 7 / 16))
