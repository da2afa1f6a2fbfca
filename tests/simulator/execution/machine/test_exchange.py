"""Dispatch as flows: on an idle fabric, between ranks alike, it takes what it takes alone."""

from dataclasses import replace

import numpy as np
import pytest
import simpy
from fabrics import NODES

from simulator.analysis.run import simulate
from simulator.execution.machine.exchange import (
    KINDS,
    copy_rates,
    expected_copies,
    lane_flows,
    normal_transfer,
    payloads_over_hbm,
)
from simulator.execution.machine.surroundings import shared_fabric
from simulator.hardware.network.flows import Network
from simulator.hardware.network.groups import Reach
from simulator.hardware.network.topology import build_fabric
from simulator.scenario.events import CHANNELS, ChannelInputs
from simulator.scenario.files import load_scenario

REACH = Reach(parts=(4, 4), reached=(0.75, 0.75), gpus=4.0)
"""Of a token: 1.5 of two nodes of 4 GPUs, and half of the 8 GPUs."""

TWO_NODES = build_fabric("multi_plane_fat_tree", replace(NODES, nodes=2)).with_copiers([8.0, 8.0])


def test_ranks_with_more_rows_receive_more_copies():
    """100 tokens reach 4 of 8 ranks: 50 copies for each, half more for the first; its node gets
    (1.5 + 3 x 1) / 4 of 75."""
    copies = expected_copies(100, REACH, np.array([1.5, *[1.0] * 7]))
    assert copies.to_rank[3].tolist() == [75.0, *[50.0] * 7]
    assert copies.to_node[3].tolist() == [84.375, 75.0]


def test_a_token_reaches_a_node_at_most_once():
    copies = expected_copies(100, REACH, np.array([4.0, 4.0, 4.0, 4.0, *[0.0] * 4]))
    assert copies.to_node[0].tolist() == [100.0, 0.0]


@pytest.fixture(scope="module")
def job():
    return simulate(load_scenario("dualpipe_h800_2048")).result


def transferred(job, kind):
    """A transfer of the main job's pair, its flows on an idle fabric, and the network."""
    operators = job.step.pair.log.graph.task_operators()
    operator = next(one for one in operators if one.kind == kind)
    scenario, transfers = job.scenario, job.costs.transfers_
    sms = job.job.communication_sms
    fabric = shared_fabric(
        scenario.cluster, scenario.calibration, CHANNELS, group=64,
        copy_rates=lambda links: copy_rates(transfers, operators, sms=sms, fabric=links),
    )  # fmt: skip
    transfer = normal_transfer(
        transfers, operator, sms=sms, shares=np.ones(64), fabric=fabric, first_gpu=0,
        channel=ChannelInputs(),
    )  # fmt: skip
    env = simpy.Environment()
    network = Network(env, fabric)
    return transfer, env.run(until=network.transfer(transfer.flows)), network


@pytest.mark.parametrize("kind", ["dispatch", "combine"])
def test_flows_take_the_time_alone_after_the_first_chunk(job, kind):
    transfer, batch, network = transferred(job, kind)
    farthest = 2 * network.fabric.inputs.cross_leaf_latency
    flows_s = transfer.alone_s - transfer.fill_s
    assert flows_s <= batch.seconds <= flows_s + farthest


def test_copies_of_few_sms_are_the_slowest_of_the_way():
    """4 of 20 SMs: copies take all of the time, and links have room."""
    job = simulate(load_scenario("dualpipe_h800_2048", ["training.communication_sms=4"])).result
    _, batch, network = transferred(job, "dispatch")
    rate = network.link_bytes() / batch.seconds / network.fabric.capacity
    copier = network.fabric.copier(0, KINDS.index("dispatch"), "out")
    assert rate[copier] == pytest.approx(1.0, rel=1e-2)
    assert rate[network.fabric.nic_link(0, 0, "up")] < 0.6


def test_tokens_to_a_node_go_to_the_gpu_of_their_own_index_and_from_there_to_all():
    """Two nodes of 4, 100 tokens of GPU 5: 75 to node 0 enter at GPU 1, 50 go to each GPU."""
    flows, owner = lane_flows(
        expected_copies(100, REACH, np.ones(8)), fabric=TWO_NODES, first_gpu=0, token_bytes=2.0,
        kind="dispatch", wire=(1.0, 3.0), lead=0.5,
    )  # fmt: skip
    mine = flows.of(np.flatnonzero(owner == 5))
    ways = zip(mine.source.tolist(), mine.destination.tolist(), mine.size, mine.wire, strict=True)
    assert sorted(ways) == [
        *((1, gpu, 100.0, 300.0) for gpu in range(4)),
        (5, 1, 150.0, 150.0),
        *((5, gpu, 100.0, 300.0) for gpu in range(4, 8)),
    ]
    assert len(set(mine.lanes.lane.tolist())) == 2
    assert set(mine.lanes.stream[mine.lanes.lane].tolist()) == {5}


def test_a_combine_turns_every_arrow_and_keeps_its_owner():
    copies = expected_copies(100, REACH, np.ones(8))
    there, back = (
        lane_flows(
            copies, fabric=TWO_NODES, first_gpu=0, token_bytes=2.0, kind=kind, wire=(1.0, 3.0),
            lead=0.5,
        )
        for kind in ("dispatch", "combine")
    )  # fmt: skip
    assert there[0].source.tolist() == back[0].destination.tolist()
    assert there[1].tolist() == back[1].tolist()


def test_bytes_over_hbm_are_counted_hop_by_hop():
    """Two nodes of 4, 1.5 nodes and 4 GPUs of a token, 0.75 copies over NICs: read once; written
    and read for 1.5 nodes, 0.75 over NICs out and in; and three times for each GPU."""
    assert payloads_over_hbm(REACH) == 1 + 2 * 1.5 + 2 * 0.75 + 3 * 4
    one_node = Reach(parts=(8,), reached=(1.0,), gpus=4.0)
    assert payloads_over_hbm(one_node) == 1 + 3 * 4
