"""Which GPUs NVLink joins, and what a cluster of several racks is made of."""

import pytest

from hardware_profiles.schema import load_cluster, load_transport
from simulator.hardware.network.clusters import (
    cluster_fabric,
    fabric_inputs,
    first_gpus,
    gpus_per_domain,
    idle_nodes_text,
)


def racks(nodes):
    return load_cluster("gb200_nvl72", {"nodes": nodes})


@pytest.mark.parametrize(
    ("nodes", "group", "count", "each"),
    [
        # A rack has 72 GPUs: room for one group of 64, two of 32, nine of 8.
        (64, 64, 4, 64),
        (64, 32, 4, 64),
        (64, 8, 4, 64),
        (18, 8, 1, 72),
        # Two groups of 36 fill a rack.
        (36, 36, 2, 72),
        # One of 128 takes 64 GPUs of two racks, one of 160 takes 40 of four (three do not divide)
        (64, 128, 4, 64),
        (40, 160, 4, 40),
        # 100 nodes without a group: six racks, of which each gives 17 nodes and the last 15.
        (100, 1, 6, 68),
    ],
)
def test_a_group_that_fits_a_domain_never_straddles_two(nodes, group, count, each):
    assert gpus_per_domain(racks(nodes), group=group) == each
    inputs = fabric_inputs(racks(nodes), load_transport("ideal"), group=group)
    assert (inputs.nodes, inputs.gpus_per_node) == (count, each)
    first = range(0, nodes * 4, group)
    straddling = [gpu for gpu in first if gpu // each != (gpu + min(group, each) - 1) // each]
    assert not straddling


def test_nodes_that_do_not_fill_racks_are_said():
    assert idle_nodes_text(racks(64), group=64) == (
        "64 nodes in 4 NVLink domains: 16 of the 18 nodes of each, 2 idle and not counted"
    )
    assert idle_nodes_text(racks(36), group=36) is None


def test_nvlink_of_ordinary_nodes_ends_at_the_node():
    cluster = load_cluster("h800_2048")
    assert gpus_per_domain(cluster, group=12) == 8
    assert fabric_inputs(cluster, load_transport("ideal"), group=12).nodes == 256
    assert idle_nodes_text(cluster, group=12) is None


def test_racks_are_joined_by_the_nics_of_the_nodes_in_use():
    fabric = cluster_fabric(racks(64), load_transport("ideal"), group=64)
    inputs = fabric.inputs
    assert (inputs.nodes, inputs.gpus_per_node, inputs.nics_per_node) == (4, 64, 64)
    assert sum(plane.end_ports for plane in fabric.planes) == 256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fabric.topology": "nvlink_domain", "nodes": 19},
            "nothing beyond one NVLink domain of 18 nodes, found 19 nodes; allowed",
        ),
        ({"failures": ["nic:node3/nic1"]}, "does not fail alone in this model; allowed: plane"),
    ],
)
def test_what_is_not_modelled_of_domains_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        load_cluster("gb200_nvl72", changes)


def test_rails_of_domains_are_refused():
    rails = load_cluster("gb200_nvl72", {"fabric.topology": "multi_rail_fat_tree"})
    with pytest.raises(ValueError, match="rails of NVLink domains of several nodes"):
        cluster_fabric(rails, load_transport("ideal"))


@pytest.mark.parametrize(
    ("name", "gpus", "domain"),
    [
        ("b200_256", 256, 8),
        ("h100_512", 512, 8),
        ("h100_2048", 2048, 8),
        ("h200_2048", 2048, 8),
        ("nvl72_576", 576, 72),
        ("gb200_1152", 1152, 72),
    ],
)
def test_shipped_clusters_are_whole_domains_on_a_fabric_that_can_be_built(name, gpus, domain):
    cluster = load_cluster(name)
    fabric = cluster_fabric(cluster, load_transport("ideal"))
    assert cluster.gpus == fabric.gpus == gpus
    assert fabric.inputs.gpus_per_node == domain


def test_instances_of_a_fleet_never_straddle_a_rack_that_they_fit():
    # Two of 32 GPUs, and one of 64 that the 8 GPUs left in the rack do not hold.
    assert first_gpus(racks(36), [32, 32, 64]) == [0, 32, 64]
    assert gpus_per_domain(racks(36), group=64) == 64
    assert first_gpus(racks(54), [72, 32, 72]) == [0, 72, 144]
    assert first_gpus(load_cluster("h800_2048"), [12, 12]) == [0, 12]
    with pytest.raises(ValueError, match="have 176 GPUs and leave 40 idle so that none straddles"):
        first_gpus(racks(45), [72, 32, 72])
    with pytest.raises(ValueError, match="have 2056 GPUs; allowed: at most the 2048 of cluster h8"):
        first_gpus(load_cluster("h800_2048"), [2048, 8])
