"""Ways around what has failed."""

from dataclasses import replace

import numpy as np
import pytest
from fabrics import BARE, NODES, check_conservation, run

from simulator.hardware.network.flows import make_flows
from simulator.hardware.network.routing import parse_failure
from simulator.hardware.network.topology import build_fabric


@pytest.mark.parametrize("routing", ["adaptive", "ecmp", "static"])
@pytest.mark.parametrize(
    ("topology", "change", "failure"),
    [
        ("fat_tree_2", {}, "switch:plane0/spine1"),
        ("fat_tree_2", {}, "link:plane0/leaf1/up2"),
        ("fat_tree_3", {"nodes": 64}, "switch:plane0/core3"),
        ("fat_tree_3", {"nodes": 64}, "switch:plane0/pod0/middle1"),
        ("slim_fly", {"order": 5}, "link:plane0/side0/switch0_0/to_side0_switch0_1"),
        (
            "dragonfly",
            {"groups": 3, "group_switches": 4, "switch_nics": 2, "global_ports": 1},
            "link:plane0/group0/switch0/global0",
        ),
    ],
)
def test_traffic_finds_a_way_around_a_failed_switch_or_link(topology, change, failure, routing):
    fabric = build_fabric(topology, replace(BARE, routing=routing, **change))
    gpus = fabric.gpus
    source = np.repeat(np.arange(gpus), 2)
    destination = (source + np.tile([5, gpus // 2], gpus)) % gpus
    flows = make_flows(source, destination, 1.0)
    done, network, _ = run(fabric, (0.0, flows, 0), failures=[failure + "@0.1s"])
    assert np.isfinite(done[0].finish).all()
    assert not network.stalled
    check_conservation(fabric, network, [flows])


def test_a_cut_before_the_run_is_an_error_that_names_both_ends():
    fabric = build_fabric("fat_tree_2", BARE)
    flows = make_flows(np.array([0]), np.array([9]), 1.0)
    with pytest.raises(ValueError, match="no live path from node0/gpu0 to node9/gpu0"):
        run(fabric, (1.0, flows, 0), failures=["node:9"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plane:9", "known: 0 to 3|known: plane 0 to 3"),
        ("node:4", "known: node0 to node3"),
        ("nic:node0/nic9", "known: nic0 to nic3"),
        ("nic:0", "write nodeN/nicM"),
        ("switch:plane0/leaf7", "plane0 has switches leaf0"),
        ("link:plane0/leaf0/up99", "plane0 has"),
        ("link:node0/gpu0/usb", "ports of a GPU are nvlink_out"),
        ("fan:1", "write KIND:NAME@TIME with KIND one of link, nic"),
        ("plane:1@soon", "is not a number with a unit"),
        ("plane:1@-1s", "must not be negative"),
        ("slow:node0/nic0/up", "needs =FACTOR"),
        ("slow:node0/nic0/up=2", "needs =FACTOR"),
    ],
)
def test_a_failure_of_something_that_does_not_exist_is_one_clear_error(text, message):
    from simulator.hardware.network.routing import struck_resources

    fabric = build_fabric("multi_plane_fat_tree", NODES)
    with pytest.raises(ValueError, match=message):
        struck_resources(fabric, parse_failure(text))
