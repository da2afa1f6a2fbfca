"""Dragonflies and slim flies."""

import networkx as nx
import numpy as np
import pytest

from simulator.hardware.network import direct_networks
from simulator.hardware.network.switching import SwitchNetwork


def switch_graph(network: SwitchNetwork) -> nx.MultiGraph:
    graph = nx.MultiGraph()
    graph.add_nodes_from(range(network.switches))
    once = np.flatnonzero(np.arange(network.links) < network.link_reverse)
    graph.add_edges_from(zip(network.link_source[once], network.link_target[once], strict=True))
    return graph


@pytest.mark.parametrize("q", [4, 5, 7, 8, 9, 25, 27, 29])
def test_slim_flies_of_prime_power_order_have_diameter_two(q):
    network = direct_networks.slim_fly_network(1, q=q)
    counts = direct_networks.count_slim_fly(q)
    graph = switch_graph(network)
    assert network.switches == counts.switches
    assert graph.number_of_edges() == counts.links
    assert len(set(dict(graph.degree).values())) == 1
    reach = np.zeros((q * q * 2, q * q * 2), dtype=np.float32)
    reach[network.link_source, network.link_target] = 1
    assert ((reach + reach @ reach + np.eye(len(reach))) > 0).all()
