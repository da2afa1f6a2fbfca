"""Fabrics: Table 3 and Table 5, graphs, names, and figures that make no fabric."""

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest

from hardware_profiles.schema import load_cluster, load_transport
from simulator.hardware.network.clusters import cluster_fabric, fabric_inputs
from simulator.hardware.network.routing import route
from simulator.hardware.network.topology import (
    TOPOLOGIES,
    FabricInputs,
    build_fabric,
    count_built,
    count_fabric,
    hop_latencies,
    price,
    to_graph,
)

SMALL = FabricInputs(
    nodes=8,
    gpus_per_node=4,
    nics_per_node=4,
    nvlink_bandwidth=160.0,
    nvlink_latency=3.0,
    nic_bandwidth=40.0,
    pcie_bandwidth=None,
    link_bandwidth=50.0,
    same_leaf_latency=2.8,
    cross_leaf_latency=3.7,
    switch_ports=8,
)
VARIANTS = {
    "multi_plane_fat_tree": replace(SMALL, planes=4),
    "multi_rail_fat_tree": SMALL,
    "fat_tree_2": SMALL,
    "fat_tree_3": SMALL,
    "dragonfly": replace(SMALL, groups=5, group_switches=4, switch_nics=2, global_ports=2),
    "slim_fly": replace(SMALL, order=4),
    "nvlink_domain": SMALL,
}
TABLE_3 = {
    "ft2_2048": (2_048, 96, 2_048, 9),
    "mpft_16384": (16_384, 768, 16_384, 72),
    "ft3_65536": (65_536, 5_120, 131_072, 491),
    "slim_fly_28": (32_928, 1_568, 32_928, 146),
    "dragonfly_261632": (261_632, 16_352, 384_272, 1_522),
}


@pytest.fixture(scope="module")
def ideal():
    return load_transport("ideal")


def test_every_topology_has_a_small_variant_here():
    assert set(VARIANTS) == set(TOPOLOGIES)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_graph_is_connected_and_counts_what_was_built(name):
    fabric = build_fabric(name, VARIANTS[name])
    graph = to_graph(fabric)
    assert nx.is_connected(graph)
    assert sum("/gpu" in vertex for vertex in graph) == 32
    kinds = [kind for *_, kind in graph.edges(data="kind")]
    assert kinds.count("switch") == count_built(fabric).links
    assert kinds.count("nic") == (0 if name == "nvlink_domain" else 32)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_resource_has_its_own_name(name):
    fabric = build_fabric(name, VARIANTS[name])
    resources = np.arange(fabric.resources)
    names = fabric.resource_names(resources)
    used = [n for r, n in enumerate(names) if r < fabric.plane_start[0] or "nic" not in n]
    assert len(set(used)) == len(used)
    one_by_one = [
        fabric.resource_name(r)
        for r in route(fabric, np.array([0]), np.array([5])).paths.ravel()
        if r >= 0
    ]
    assert set(one_by_one) <= set(names)


@pytest.mark.parametrize("cluster", TABLE_3)
def test_table_3_counts_exactly_and_costs_within_one_percent(cluster, ideal):
    # Insights into DeepSeek-V3 (arXiv 2505.09343), Table 3; one price pair for all five.
    profile = load_cluster(cluster)
    endpoints, switches, links, millions = TABLE_3[cluster]
    counts = count_fabric(profile.fabric.topology, fabric_inputs(profile, ideal))
    assert (counts.endpoints, counts.switches, counts.links) == (endpoints, switches, links)
    cost = price(
        counts,
        switch_price=profile.fabric.switch_price,
        link_price=profile.fabric.link_price,
    )
    assert cost == pytest.approx(millions * 1e6, rel=0.01)
    pairs = {
        (load_cluster(c).fabric.switch_price, load_cluster(c).fabric.link_price) for c in TABLE_3
    }
    assert len(pairs) == 1


@pytest.mark.parametrize("cluster", ["ft2_2048", "mpft_16384"])
def test_built_fabrics_of_table_3_have_its_counts(cluster, ideal):
    fabric = cluster_fabric(load_cluster(cluster), ideal)
    built = count_built(fabric)
    assert (built.endpoints, built.switches, built.links) == TABLE_3[cluster][:3]


def test_the_slim_fly_of_table_3_cannot_be_built(ideal):
    with pytest.raises(ValueError, match="28 is no prime power"):
        cluster_fabric(load_cluster("slim_fly_28"), ideal)


def path_latency(fabric, source, destination, **options):
    paths = route(fabric, np.array([source]), np.array([destination]), **options).paths[0]
    return fabric.latency[paths[paths >= 0]].sum()


def test_table_5_latencies_are_sums_of_hops(ideal):
    # Table 5, 64 bytes: IB 2.8 / 3.7 us, RoCE 3.6 / 5.6 us, NVLink 3.33 us.
    infiniband = cluster_fabric(load_cluster("ft2_2048"), ideal)
    assert path_latency(infiniband, 0, 3 * 8) == pytest.approx(2.8e-6)
    assert path_latency(infiniband, 0, 255 * 8) == pytest.approx(3.7e-6)
    assert path_latency(infiniband, 0, 1) == pytest.approx(3.33e-6)
    roce = cluster_fabric(load_cluster("roce_1024"), ideal)
    assert path_latency(roce, 0, 3 * 8) == pytest.approx(3.6e-6)
    assert path_latency(roce, 0, 100 * 8) == pytest.approx(5.6e-6)
    # A third layer adds two more switches: a prediction from the same hops.
    deep = build_fabric("fat_tree_3", replace(SMALL, nodes=16))
    assert path_latency(deep, 0, 63) == pytest.approx(3.7 + 0.9)


def test_a_send_to_another_plane_is_forwarded_over_nvlink_or_refused():
    fabric = build_fabric("multi_plane_fat_tree", VARIANTS["multi_plane_fat_tree"])
    paths = route(fabric, np.array([0]), np.array([5])).paths[0]
    names = [fabric.resource_name(r) for r in paths if r >= 0]
    assert names == [
        "node0/gpu0/nvlink_out",
        "node0/gpu1/nvlink_in",
        "node0/nic1/up",
        "node1/nic1/down",
    ]
    assert path_latency(fabric, 0, 5) == pytest.approx(3.0 + 2.8)
    strict = build_fabric(
        "multi_plane_fat_tree", replace(VARIANTS["multi_plane_fat_tree"], cross_plane="refuse")
    )
    assert path_latency(strict, 0, 4) == pytest.approx(2.8)
    with pytest.raises(ValueError, match="GPU 0 \\(plane 0\\) cannot send to GPU 5 \\(plane 1\\)"):
        route(strict, np.array([0]), np.array([5]))


def test_pcie_narrower_than_the_nic_is_on_the_route():
    fabric = build_fabric("fat_tree_2", replace(SMALL, pcie_bandwidth=20.0))
    paths = route(fabric, np.array([0]), np.array([5])).paths[0]
    names = [fabric.resource_name(r) for r in paths if r >= 0]
    assert names[0] == "node0/gpu0/pcie_out"
    assert names[-1] == "node1/gpu1/pcie_in"


def test_nvl72_racks_join_over_nics(ideal):
    fabric = cluster_fabric(load_cluster("nvl72_576"), ideal)
    assert fabric.gpus == 576
    inside = route(fabric, np.array([0]), np.array([71])).paths[0]
    assert fabric.capacity[inside[inside >= 0]].min() == 900e9
    outside = route(fabric, np.array([0]), np.array([72])).paths[0]
    assert fabric.capacity[outside[outside >= 0]].min() == 50e9


def test_bundles_that_cannot_bind_are_found():
    fabric = build_fabric("fat_tree_2", SMALL)
    assert not fabric.can_bind(fabric.capacity)[fabric.is_bundle()].any()
    narrow = build_fabric("fat_tree_2", replace(SMALL, link_bandwidth=10.0))
    assert narrow.can_bind(narrow.capacity)[narrow.is_bundle()].all()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("torus", {}, "unknown topology 'torus'; known: dragonfly"),
        ("fat_tree_2", {"nodes": 9}, "36 end ports do not fit .* at most 32"),
        ("fat_tree_2", {"switch_ports": 7}, "odd number of ports"),
        ("fat_tree_2", {"nic_bandwidth": 0.0}, "nic_bandwidth must be above 0 bytes/s, got 0"),
        ("fat_tree_2", {"link_bandwidth": 0.0}, "link_bandwidth must be above 0"),
        ("fat_tree_2", {"planes": 4}, "has one plane"),
        ("fat_tree_2", {"nics_per_node": 0}, "needs at least one NIC"),
        (
            "fat_tree_2",
            {"nics_per_node": 3},
            "3 NICs do not divide 4 GPUs .*; allowed: 1, 2, 4$",
        ),
        (
            "fat_tree_2",
            {"nics_per_node": 16},
            "1, 2, 4; 4 NICs of a GPU are one of 4 times the rate$",
        ),
        ("multi_plane_fat_tree", {"planes": 3}, "3 planes do not divide 4 NICs"),
        ("fat_tree_2", {"cross_leaf_latency": 2.0}, "need cross between same and three times"),
        (
            "dragonfly",
            {"groups": 3, "group_switches": 6, "switch_nics": 3, "global_ports": 1},
            "are 9 ports, but switches have 8",
        ),
    ],
)
def test_impossible_figures_are_one_clear_error(name, change, message):
    with pytest.raises(ValueError, match=message):
        build_fabric(name, replace(SMALL, **change))


def test_hop_latencies_sum_to_what_was_given():
    end, hop = hop_latencies(2.8e-6, 3.7e-6)
    assert 2 * end + hop == pytest.approx(2.8e-6)
    assert 2 * end + 3 * hop == pytest.approx(3.7e-6)
