"""Times of transfers, each worked out by hand from bytes, rates and latencies."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from cost_models import combine, dispatch

from hardware_profiles.calibration_parts import TransferProfile
from hardware_profiles.estimates import Estimate
from hardware_profiles.schema import load_cluster
from simulator.hardware.network.collective_times import measured_collectives
from simulator.hardware.network.fabric_load import NO_LIMIT, FabricLoad
from simulator.hardware.network.groups import Domains
from simulator.hardware.network.transfers import (
    LINE_RATE,
    Link,
    Transfers,
    exchange_sms,
    host_link,
    network_link,
)

NODES = load_cluster("h800_2048", {"node.nvlink_latency": "3 us"})
"""Nodes of 8 GPUs, 200 GB/s of NVLink and a NIC of 50 GB/s each."""
HALF = TransferProfile(
    nic=Estimate(value=0.5, low=0.4, high=0.8, source="made up"),
    nvlink=Estimate(value=0.5, low=0.25, high=1.0, source="made up"),
)
TRANSFERS = Transfers(cluster=NODES, achieved=HALF)
FAR = FabricLoad(nic_stretch=2.0, bandwidth=15e9, latency=7e-6)
"""A NIC is shared by two, links leave 15 GB/s."""


def ends(found):
    (seconds,), (low,), (high,) = found.seconds, found.low, found.high
    return seconds, low, high


def gathered(group, load, form="ring"):
    return TRANSFERS.collective("all_gather", 800e6, form=form, group=group, load=load)


def close(*seconds):
    return pytest.approx(np.array(seconds), rel=1e-12)


def test_a_send_takes_its_bytes_at_the_achieved_rate_and_one_latency():
    # 100 MB at 100 GB/s, 200 GB/s at best and 50 GB/s at worst.
    assert ends(TRANSFERS.send(100e6, load=None)) == close(1e-3 + 3e-6, 0.5e-3 + 3e-6, 2e-3 + 3e-6)
    # Through half a NIC: 12.5 GB/s, 10 at worst; at best 20, of which the links leave 15.
    assert ends(TRANSFERS.send(150e6, load=FAR)) == close(12e-3 + 7e-6, 10e-3 + 7e-6, 15e-3 + 7e-6)
    assert ends(TRANSFERS.payload(150e6, load=FAR)) == close(12e-3, 10e-3, 15e-3)


def test_a_bound_takes_the_whole_rate_of_a_link():
    whole = Transfers(cluster=NODES, achieved=LINE_RATE)
    assert ends(whole.payload(100e6, load=None)) == close(0.5e-3, 0.5e-3, 0.5e-3)
    assert ends(whole.payload(100e6, load=NO_LIMIT)) == close(2e-3, 2e-3, 2e-3)


def test_of_two_levels_of_rings_the_slower_one_decides():
    # 800 MB among two domains of 4: inside 600 MB at 100 GB/s and 3 steps; between them a GPU's
    # 200 MB, half of which its NIC sends at 12.5 GB/s, and one step.
    group = Domains(domains=2, fewest=4, most=4)
    assert gathered(group, FAR).seconds == close(8e-3 + 7e-6)
    fast = FabricLoad(nic_stretch=0.1, bandwidth=1e15, latency=7e-6)
    assert gathered(group, fast).seconds == close(6e-3 + 9e-6)
    # In one domain no NIC takes part.
    alone = Domains(domains=1, fewest=4, most=4)
    assert gathered(alone, FAR).seconds == close(6e-3 + 9e-6)


def test_an_exchange_over_two_nodes_takes_one_step_after_the_other():
    # 800 MB of 8 GPUs on one node: 700 MB at 100 GB/s.
    assert gathered(Domains(1, 8, 8), None, form="direct").seconds == close(7e-3 + 3e-6)
    # Of 16 GPUs also a sixteenth, 50 MB, through a NIC at 12.5 GB/s.
    assert gathered(Domains(2, 8, 8), FAR, form="direct").seconds == close(
        7e-3 + 3e-6 + 4e-3 + 7e-6
    )


def test_an_exchange_over_three_nodes_goes_to_both_others():
    # 800 MB of 24 GPUs: two twenty-fourths, 66.7 MB, through a NIC at 12.5 GB/s.
    assert gathered(Domains(3, 8, 8), FAR, form="direct").seconds == close(
        7e-3 + 3e-6 + 800e6 * 2 / 24 / 12.5e9 + 7e-6
    )


def test_a_link_to_the_network_has_the_rate_of_its_nics_or_its_pcie():
    # Two NICs of 50 GB/s; PCIe lanes of a GPU of 64 or 30 GB/s; or a rate that is stated.
    link = network_link(NODES, gpus=2, rate=None, latency_s=1e-3)
    assert link.send(0.0, 100e9) == pytest.approx(1.0 + 1e-3, rel=1e-12)
    narrow = load_cluster("h800_2048", {"node.gpu.pcie_bandwidth": "30 GB/s"})
    link = network_link(narrow, gpus=2, rate=None, latency_s=0.0)
    assert link.send(0.0, 60e9) == pytest.approx(1.0, rel=1e-12)
    assert host_link(narrow, gpus=2).send(0.0, 60e9) == pytest.approx(1.0, rel=1e-12)
    assert network_link(narrow, gpus=2, rate=5e9, latency_s=0.0).send(0.0, 5e9) == 1.0


def test_a_link_moves_one_thing_after_the_other_at_its_rate() -> None:
    link = Link(100.0, 0.5)
    assert link.send(1.0, 200.0) == 3.5
    assert link.send(2.0, 100.0) == 4.5
    assert link.send(10.0, 100.0) == 11.5


def test_a_link_that_is_reset_forgets_what_was_queued() -> None:
    link = Link(100.0, 0.0)
    link.send(0.0, 1000.0)
    link.reset(1.0)
    assert link.send(1.0, 100.0) == 2.0


@pytest.mark.parametrize(("link", "inside"), [("nic", True), ("mixed", False), ("nvlink", False)])
def test_low_latency_copies_within_a_node_go_through_nics_where_kernels_are_of_rdma_alone(
    link, inside
):
    model = SimpleNamespace(profile=SimpleNamespace(link=link))
    assert replace(TRANSFERS, low_latency=model).nics_inside is inside


def test_transfers_without_experts_refuse_to_dispatch():
    with pytest.raises(ValueError, match=r"dispatch and combine: .* no group of experts"):
        TRANSFERS.all_to_all([], sms=np.zeros(0, dtype=np.int64), overlapped=False, loads=[])
    with pytest.raises(ValueError, match="low-latency kernels: the transfers have none"):
        TRANSFERS.low_latency_kernel("dispatch_send", np.zeros(1))


def test_measured_operations_take_the_place_of_links_within_a_domain():
    # NCCL 2.29.2 between 8 H200: an all-gather of 1 MiB in 17.79 us, a reduce-scatter of 4 MiB in
    # 30.43 us; a send of 1 MiB between two, measured by this project, 11.87 us.
    h200 = load_cluster("h200_32")
    measured = measured_collectives("nccl", gpu=h200.node.gpu)
    transfers = Transfers(cluster=h200, achieved=HALF, measured=measured)
    node = Domains(domains=1, fewest=8, most=8)

    def gather(group, form, load=None):
        return transfers.collective("all_gather", 2**20, form=form, group=group, load=load)

    two = transfers.collective("all_gather", 2**20, form="ring", group=Domains(1, 2, 2), load=None)
    assert two.seconds == measured.predict("all_gather", 2**20, ranks=2).seconds
    alone = measured.predict("all_gather", 2**20, ranks=8)
    assert alone.seconds == close(17.79e-6)
    for form in ("ring", "direct"):
        assert ends(gather(node, form)) == ends(alone)
    scattered = transfers.collective("reduce_scatter", 2**22, form="direct", group=node, load=None)
    assert scattered.seconds == close(30.43e-6)
    assert transfers.send(2**20, load=None).seconds == close(11.87e-6)
    # Over two nodes a 16th goes through half a NIC that two share: 12.5 GB/s, and 7 us.
    both = Domains(domains=2, fewest=8, most=8)
    between = 2**20 / 16 / 12.5e9 + 7e-6
    assert gather(both, "direct", FAR).seconds == close(17.79e-6 + between)
    # A ring sends half of an eighth through each of 8 NICs, 12.2 us: the domain is slower.
    assert gather(both, "ring", FAR).seconds == close(17.79e-6)


def test_operations_without_rows_take_the_links():
    rtx = load_cluster("h200_8", {"node.gpu": "rtx_4090"})
    assert measured_collectives("nccl", gpu=rtx.node.gpu) is None
    assert measured_collectives("ideal", gpu=NODES.node.gpu) is None
    with pytest.raises(ValueError, match="transport deepep_h800 has no measured operations"):
        measured_collectives("deepep_h800", gpu=NODES.node.gpu)


def test_a_token_weighs_its_values_and_the_scales_of_a_cast():
    # 7,168 bytes and 56 scales of 4; two bytes a value on the way back.
    assert TRANSFERS.token_bytes(dispatch()) == 7168 + 56 * 4
    assert TRANSFERS.token_bytes(combine()) == 2 * 7168


@pytest.mark.parametrize(
    ("kind", "kept", "sms"),
    [("dispatch", 20, 20), ("copy", 20, 20), ("dispatch", 0, 0), ("copy", 0, 132)],
)
def test_without_communication_sms_only_what_counts_tokens_runs_on_sms(kind, kept, sms):
    assert exchange_sms(kind, kept=kept, free=132) == sms
