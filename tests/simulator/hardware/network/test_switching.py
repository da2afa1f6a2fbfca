"""Switch networks: counts by formula, built graphs, and arithmetic routes against the graph."""

import networkx as nx
import numpy as np
import pytest

from simulator.hardware.network import direct_networks, switching
from simulator.hardware.network.switching import Counts, SwitchNetwork

NETWORKS = {
    "one leaf": lambda: switching.fat_tree_2(4, switch_ports=8),
    "two layers": lambda: switching.fat_tree_2(30, switch_ports=8),
    "two layers, parallel links": lambda: switching.fat_tree_2(16, switch_ports=16),
    "two layers, oversubscribed": lambda: switching.fat_tree_2(
        24, switch_ports=12, oversubscription=2.0
    ),
    "one pod": lambda: switching.fat_tree_3(16, switch_ports=8),
    "three layers": lambda: switching.fat_tree_3(100, switch_ports=8),
    "dragonfly, odd ring": lambda: direct_networks.dragonfly_network(
        150, groups=9, group_switches=4, ports=5, global_ports=2
    ),
    "dragonfly, even ring": lambda: direct_networks.dragonfly_network(
        100, groups=6, group_switches=4, ports=5, global_ports=2
    ),
    "slim fly 4": lambda: direct_networks.slim_fly_network(90, q=4),
    "slim fly 5": lambda: direct_networks.slim_fly_network(200, q=5),
    "slim fly 7": lambda: direct_networks.slim_fly_network(100, q=7),
}


def switch_graph(network: SwitchNetwork) -> nx.MultiGraph:
    graph = nx.MultiGraph()
    graph.add_nodes_from(range(network.switches))
    once = np.flatnonzero(np.arange(network.links) < network.link_reverse)
    graph.add_edges_from(zip(network.link_source[once], network.link_target[once], strict=True))
    return graph


@pytest.mark.parametrize("name", NETWORKS)
def test_each_direction_of_a_cable_knows_the_other(name):
    network = NETWORKS[name]()
    back = network.link_reverse
    assert (back[back] == np.arange(network.links)).all()
    assert (network.link_source[back] == network.link_target).all()
    names = [network.link_names(link) for link in range(network.links)]
    assert len(set(names)) == network.links
    assert switch_graph(network).number_of_edges() * 2 == network.links


@pytest.mark.parametrize("routing", ["adaptive", "ecmp", "static"])
@pytest.mark.parametrize("name", NETWORKS)
def test_routes_follow_cables_and_are_minimal(name, routing):
    network = NETWORKS[name]()
    distance = dict(nx.all_pairs_shortest_path_length(switch_graph(network)))
    ports = np.arange(network.end_ports)
    source, destination = (a.ravel() for a in np.meshgrid(ports, ports))
    source, destination = source[source != destination], destination[source != destination]
    paths = network.router(source, destination, np.zeros_like(source), routing)
    assert (paths[:, 0] == source).all()
    assert (paths[:, -1] == network.end_ports + destination).all()
    for start, end, path in zip(source, destination, paths, strict=True):
        here, goal = network.port_switch[start], network.port_switch[end]
        inner = path[1:-1][path[1:-1] >= 0] - 2 * network.end_ports
        # A dragonfly's minimal route takes one global hop where the graph may have shorter ones.
        expected = distance[here][goal]
        assert len(inner) == expected or (network.family == "dragonfly" and len(inner) <= 3)
        for hop in inner:
            if hop < network.links:
                assert network.link_source[hop] == here
                here = network.link_target[hop]
            else:
                bundle = hop - network.links
                first, last = network.bundle_ports[bundle]
                assert first <= start < last or first <= end < last
                here = goal
        assert here == goal


@pytest.mark.parametrize("name", NETWORKS)
def test_bundles_hold_the_parallel_links_of_their_end_ports(name):
    network = NETWORKS[name]()
    for bundle in range(network.bundles):
        links = network.bundle_links[
            network.bundle_start[bundle] : network.bundle_start[bundle + 1]
        ]
        assert len(set(links)) == len(links)
        first, last = network.bundle_ports[bundle]
        assert 0 <= first <= last <= network.end_ports
    assert sorted(network.bundle_links) == list(range(len(network.bundle_links)))


def test_counts_of_table_3():
    # Insights into DeepSeek-V3 (arXiv 2505.09343), Table 3: endpoints, switches, links.
    assert switching.count_fat_tree_2(64) == Counts(2_048, 96, 2_048)
    assert switching.count_fat_tree_2(64).times(8) == Counts(16_384, 768, 16_384)
    assert switching.count_fat_tree_3(64) == Counts(65_536, 5_120, 131_072)
    assert direct_networks.count_slim_fly(28) == Counts(32_928, 1_568, 32_928)
    dragonfly = direct_networks.count_dragonfly(
        groups=511, group_switches=32, ports=16, global_ports=16
    )
    assert dragonfly == Counts(261_632, 16_352, 384_272)


def test_formulas_count_what_is_built():
    tree = switching.fat_tree_2(32, switch_ports=8)
    assert switching.count_fat_tree_2(8) == Counts(32, tree.switches, tree.links // 2)
    deep = switching.fat_tree_3(128, switch_ports=8)
    assert switching.count_fat_tree_3(8) == Counts(128, deep.switches, deep.links // 2)
    fly = direct_networks.dragonfly_network(
        144, groups=9, group_switches=4, ports=4, global_ports=2
    )
    counts = direct_networks.count_dragonfly(groups=9, group_switches=4, ports=4, global_ports=2)
    assert counts.links == fly.links // 2


def test_static_routes_to_one_leaf_never_share_a_down_link():
    network = switching.fat_tree_2(32, switch_ports=8)
    destination = np.arange(4)
    source = destination + 8
    paths = network.router(source, destination, np.zeros(4, dtype=int), "static")
    assert len(set(paths[:, 2])) == 4


def test_ecmp_collides_and_queue_pairs_take_other_ways():
    network = switching.fat_tree_2(2048, switch_ports=64)
    source, destination = np.arange(32), np.arange(32) + 32
    first = network.router(source, destination, np.zeros(32, dtype=int), "ecmp")
    second = network.router(source, destination, np.ones(32, dtype=int), "ecmp")
    assert len(set(first[:, 1])) < 32
    assert (first[:, 1] != second[:, 1]).any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: switching.fat_tree_2(33, switch_ports=8), "at most 32"),
        (lambda: switching.fat_tree_2(4, switch_ports=7), "odd number of ports"),
        (lambda: switching.fat_tree_3(129, switch_ports=8), "at most 128"),
        (lambda: switching.split_ports(64, 0.5), "oversubscription must be at least 1"),
        (lambda: switching.split_ports(1, 1), "at least 2"),
        (lambda: direct_networks.slim_fly_network(1, q=28), "no prime power"),
        (lambda: direct_networks.slim_fly_network(1, q=6), "must be at least 3 and"),
        (lambda: direct_networks.slim_fly_network(201, q=5), "at most 200"),
        (
            lambda: direct_networks.dragonfly_network(
                1, groups=20, group_switches=2, ports=2, global_ports=2
            ),
            "need 19 global ports",
        ),
        (
            lambda: direct_networks.dragonfly_network(
                99, groups=3, group_switches=2, ports=2, global_ports=2
            ),
            "at most 12",
        ),
    ],
)
def test_impossible_networks_are_one_clear_error(build, message):
    with pytest.raises(ValueError, match=message):
        build()
