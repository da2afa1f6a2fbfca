"""Small fabrics, for tests of routes and flows."""

from dataclasses import replace

import numpy as np
import simpy

from simulator.hardware.network.flows import Network
from simulator.hardware.network.routing import parse_failure
from simulator.hardware.network.topology import FabricInputs

BARE = FabricInputs(
    nodes=16,
    gpus_per_node=1,
    nics_per_node=1,
    nvlink_bandwidth=None,
    nvlink_latency=0.0,
    nic_bandwidth=1.0,
    pcie_bandwidth=None,
    link_bandwidth=1.0,
    same_leaf_latency=0.0,
    cross_leaf_latency=0.0,
    switch_ports=8,
)


NODES = replace(BARE, nodes=4, gpus_per_node=4, nics_per_node=4, nvlink_bandwidth=4.0, planes=4)


def run(fabric, *batches, failures=(), window=0.0):
    """Start (time, flows, priority) batches; return transfers, network and the end."""
    env = simpy.Environment()
    network = Network(env, fabric, window=window)
    done = []

    def job(start, flows, priority):
        yield env.timeout(start)
        done.append((yield network.transfer(flows, priority=priority)))

    def strike(text):
        failure = parse_failure(text)
        yield env.timeout(failure.at)
        network.strike(failure)

    for failure in failures:
        env.process(strike(failure))
    for batch in batches:
        env.process(job(*batch))
    env.run()
    return done, network, env.now


def check_conservation(fabric, network, flows_list, rdma=False):
    """Bytes on every end link equal what its GPUs sent and received; switches pass on all."""
    links = network.link_bytes()
    for plane, switch_network in enumerate(fabric.planes):
        start = fabric.plane_start[plane]
        ports = switch_network.end_ports
        up, down = links[start : start + ports], links[start + ports : start + 2 * ports]
        first = start + 2 * ports
        inner = links[first : first + switch_network.links]
        into = np.bincount(switch_network.port_switch, up, switch_network.switches)
        out = np.bincount(switch_network.port_switch, down, switch_network.switches)
        into += np.bincount(switch_network.link_target, inner, switch_network.switches)
        out += np.bincount(switch_network.link_source, inner, switch_network.switches)
        np.testing.assert_allclose(into, out, rtol=1e-9, atol=1e-9)
    total = sum(f.payload for f in flows_list)
    assert links.sum() >= total * (1 - 1e-9)
