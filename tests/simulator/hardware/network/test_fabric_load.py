"""The busiest link of an all-to-all: closed forms, the flow-level simulation, failures."""

import math

import numpy as np
import pytest
import simpy

from hardware_profiles.schema import load_cluster, load_transport
from simulator.hardware.network.clusters import cluster_fabric
from simulator.hardware.network.collectives import pairs
from simulator.hardware.network.fabric_load import NO_LIMIT, all_to_all_load, transfer_loads
from simulator.hardware.network.flows import Network, make_flows


def cluster(name="h100_96", *, failures=(), **fabric):
    found = load_cluster(name)
    fabric = found.fabric.model_copy(update=fabric)
    return found.model_copy(update={"fabric": fabric, "failures": failures})


def nic_rate(of):
    return of.node.nic_bandwidth_per_gpu


@pytest.mark.parametrize("pattern", ["every_gpu", "other_domains", "rail"])
@pytest.mark.parametrize(
    ("name", "gpus"), [("h800_2048", 128), ("h800_2048", 320), ("h100_96", 72)]
)
def test_on_a_non_blocking_fabric_the_nics_decide(name, gpus, pattern):
    load = all_to_all_load(cluster(name), gpus=gpus, pattern=pattern)
    assert load.nic_stretch == 1.0
    assert load.bandwidth >= nic_rate(cluster(name))
    assert load.latency <= cluster(name).fabric.cross_leaf_latency


def test_an_oversubscribed_leaf_passes_on_its_share():
    # 12 nodes on leaves of 12 ports down and 4 up: 8 leaves of 12 GPUs, 1/8 of bytes stay below.
    of = cluster(switch_ports=16, oversubscription=3)
    load = all_to_all_load(of, gpus=96, pattern="every_gpu")
    assert load.bandwidth == pytest.approx(nic_rate(of) / 3 / (1 - 12 / 96))
    # Under one leaf nothing has to climb.
    below = all_to_all_load(of, gpus=12, pattern="every_gpu")
    assert below.bandwidth == math.inf
    assert below.latency < load.latency


@pytest.mark.parametrize("pattern", ["every_gpu", "other_domains", "rail"])
@pytest.mark.parametrize("oversubscription", [1, 3, 7])
def test_the_bound_is_what_the_flow_level_simulation_finds(oversubscription, pattern):
    of = cluster(switch_ports=16, oversubscription=oversubscription)
    gpus, per_node, size = 24, of.node.gpus, 1e6
    load = all_to_all_load(of, gpus=gpus, pattern=pattern)
    source, destination = pairs(np.arange(gpus)[None, :])
    share = size / gpus
    sent_through_nics = {
        "every_gpu": np.full(len(source), True),
        "other_domains": source // per_node != destination // per_node,
        "rail": source % per_node == destination % per_node,
    }[pattern]
    source, destination = source[sent_through_nics], destination[sent_through_nics]
    if pattern == "rail":
        share = size / (gpus // per_node - 1)
    fabric = cluster_fabric(of, load_transport("ideal"))
    env = simpy.Environment()
    network = Network(env, fabric)
    flows = make_flows(source, destination, share, rdma=pattern != "rail")
    transfer = env.run(until=network.transfer(flows))
    sent = len(source) / gpus * share
    expected = max(size / load.bandwidth, sent / nic_rate(of))
    assert transfer.finish.max() == pytest.approx(expected + load.latency, rel=1e-3)


def test_what_is_broken_from_the_start_stretches_the_nics_that_are_left():
    whole = all_to_all_load(cluster("h800_2048"), gpus=64, pattern="every_gpu")
    broken = cluster("h800_2048", failures=("plane:3",))
    left = all_to_all_load(broken, gpus=64, pattern="every_gpu")
    assert whole.nic_stretch == 1.0
    assert 8 / 7 <= left.nic_stretch < 1.5
    later = cluster("h800_2048", failures=("plane:3@2s",))
    assert all_to_all_load(later, gpus=64, pattern="every_gpu") == whole
    slow = cluster("h800_2048", failures=("slow:node3/nic1/up=0.5",))
    assert all_to_all_load(slow, gpus=64, pattern="rail").nic_stretch == pytest.approx(2.0)


def test_a_deployment_that_failures_cut_in_two_is_one_clear_line():
    cut = cluster("h100_96", failures=("node:node1",))
    with pytest.raises(ValueError, match="no live path from GPU 0 to GPU 8"):
        all_to_all_load(cut, gpus=32, pattern="every_gpu")


def test_traffic_that_no_nic_carries_has_no_limit():
    assert all_to_all_load(cluster("gb200_nvl72"), gpus=72, pattern="every_gpu") == NO_LIMIT
    for pattern in ("rail", "other_domains"):
        assert all_to_all_load(cluster("h800_2048"), gpus=8, pattern=pattern) == NO_LIMIT


def test_gpus_that_receive_from_two_are_limited_by_their_link_once():
    # Of 12 GPUs the 8 on the first node send to the 4 on the second: these receive twice what a GPU
    # sends, over PCIe of 64 GB/s where the NIC would take 100.
    of = load_cluster("h800_2048", {"node.nic.bandwidth": "800 Gbit/s"})
    assert all_to_all_load(of, gpus=12, pattern="rail").bandwidth == pytest.approx(64e9, rel=1e-12)


def test_flows_that_meet_in_a_nic_share_it():
    def stretch(source, destination):
        ends = (np.array(source), np.array(destination))
        group = np.zeros(len(source), dtype=np.int64)
        of = cluster("h800_2048")
        found = transfer_loads(of, *ends, group=group, divided=1, rdma=False, experts_on=8)
        return found[0].nic_stretch

    assert stretch([0, 1], [8, 9]) == 1.0
    assert stretch([0, 0], [8, 16]) == 2.0
    # In planes GPU 1 sends to GPU 8 through the NIC of GPU 0, which owns the plane.
    assert stretch([0, 1], [16, 8]) == 2.0
