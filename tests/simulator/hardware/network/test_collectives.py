"""Collectives as flows: bytes by closed form, bandwidth-optimal times, dispatch and combine."""

from dataclasses import replace

import numpy as np
import pytest
import simpy

from simulator.hardware.network import collectives
from simulator.hardware.network.collectives import TokenExchange, count_copies
from simulator.hardware.network.flows import Network
from simulator.hardware.network.topology import FabricInputs, build_fabric

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
NODES = replace(BARE, nodes=4, gpus_per_node=4, nics_per_node=4, nvlink_bandwidth=8.0, planes=4)


@pytest.fixture
def bare():
    return build_fabric("fat_tree_2", BARE)


@pytest.fixture
def nodes():
    return build_fabric("multi_plane_fat_tree", NODES)


def seconds(fabric, phases):
    env = simpy.Environment()
    network = Network(env, fabric)

    def perform():
        for phase in phases:
            yield env.timeout(phase.delay)
            yield network.transfer(phase.flows)

    env.run(env.process(perform()))
    return env.now


def received(fabric, phases):
    total = np.zeros(fabric.gpus)
    for phase in phases:
        np.add.at(total, phase.flows.destination, phase.flows.size)
    return total


GROUP = np.arange(16)[None, :]


def test_pairs_are_every_ordered_pair_once():
    source, destination = collectives.pairs(np.array([[0, 1, 2], [7, 8, 9]]))
    found = sorted(zip(source.tolist(), destination.tolist(), strict=True))
    assert found == [(a, b) for g in ((0, 1, 2), (7, 8, 9)) for a in g for b in g if a != b]


def test_all_to_all_takes_the_shares_of_all_others(bare):
    assert seconds(bare, collectives.all_to_all(GROUP, 2.0, fabric=bare)) == pytest.approx(15 * 2.0)


def test_rail_all_to_all_moves_over_the_network_what_direct_does(nodes):
    rail = collectives.rail_all_to_all(GROUP, 1.0, fabric=nodes)
    flows = rail[0].flows
    crosses = flows.source // 4 != flows.destination // 4
    assert (flows.source[crosses] % 4 == flows.destination[crosses] % 4).all()
    direct = collectives.all_to_all(GROUP, 1.0, fabric=nodes)[0].flows
    outside = direct.source // 4 != direct.destination // 4
    assert flows.size[crosses].sum() == direct.size[outside].sum()
    # 12 GPUs elsewhere, one byte each, over NICs of 1 byte/s.
    assert seconds(nodes, rail) == pytest.approx(12.0)
    with pytest.raises(ValueError, match="groups of whole nodes"):
        collectives.rail_all_to_all(np.arange(6)[None, :], 1.0, fabric=nodes)


@pytest.mark.parametrize("algorithm", ["ring", "direct"])
def test_all_gather_and_reduce_scatter_are_bandwidth_optimal(bare, algorithm):
    options = {"fabric": bare, "algorithm": algorithm, "step": 0.0}
    for phases in (
        collectives.all_gather(GROUP, 16.0, **options),
        collectives.reduce_scatter(GROUP, 16.0, **options),
    ):
        assert seconds(bare, phases) == pytest.approx(15.0)
        np.testing.assert_allclose(received(bare, phases), 15.0)


def test_ring_steps_cost_their_latency(bare):
    phases = collectives.all_gather(GROUP, 16.0, fabric=bare, algorithm="ring", step=0.5)
    assert phases[0].delay == pytest.approx(14 * 0.5)


def test_all_reduce_over_one_ring_is_twice_an_all_gather(bare):
    ring = collectives.all_reduce(GROUP, 16.0, fabric=bare, algorithm="ring", step=0.0)
    assert seconds(bare, ring) == pytest.approx(30.0)


def test_two_trees_give_every_gpu_the_vector_and_its_sum(bare):
    tree = collectives.all_reduce(GROUP, 16.0, fabric=bare, algorithm="tree", step=0.0)
    flows = tree[0].flows
    # Two trees of 15 edges, up and down, half of the vector each.
    assert len(flows) == 60
    assert flows.payload == pytest.approx(60 * 8.0)
    ups, downs = flows.source[:30], flows.source[30:]
    assert set(ups) | set(downs) == set(range(16))
    # No GPU carries much more than the vector out and in again.
    assert seconds(bare, tree) <= 3 * 16.0


def test_rings_of_whole_nodes_cross_between_gpus_of_one_index(nodes):
    orders, number = collectives.rings(GROUP, fabric=nodes)
    assert number == 4
    assert (np.sort(orders, axis=1) == np.arange(16)).all()
    nxt = np.roll(orders, -1, axis=1)
    crosses = orders // 4 != nxt // 4
    assert (orders[crosses] % 4 == nxt[crosses] % 4).all()
    exits = orders[crosses].reshape(number, -1)[:, 0] % 4
    assert sorted(exits) == [0, 1, 2, 3]  # every NIC is used


def test_hierarchical_all_reduce_sends_a_gpus_share_over_its_nic(nodes):
    phases = collectives.all_reduce(GROUP, 16.0, fabric=nodes, algorithm="hierarchical", step=0.0)
    assert [p.name for p in phases] == ["reduce_scatter", "all_reduce", "all_gather"]
    # NVLink: 3/4 of 16 bytes at 8 bytes/s, twice; NIC: 2 x 3/4 of 4 bytes at 1 byte/s.
    assert seconds(nodes, phases) == pytest.approx(2 * 12 / 8 + 6.0)
    with pytest.raises(ValueError, match="several whole nodes"):
        collectives.all_reduce(
            np.arange(4)[None, :], 1.0, fabric=nodes, algorithm="hierarchical", step=0.0
        )


@pytest.mark.parametrize("algorithm", ["ring", "tree"])
def test_broadcast_reaches_every_gpu_but_the_root(nodes, algorithm):
    group = np.arange(8)[None, :]
    phases = collectives.broadcast(group, 8.0, fabric=nodes, algorithm=algorithm, step=0.0)
    got = received(nodes, phases)
    np.testing.assert_allclose(got, [0, *[8.0] * 7, *[0.0] * 8])


# --- mixture of experts

EXPERTS = [
    # rank 0: token to experts on ranks 0 and 1 (own node), token to ranks 1 and 6.
    np.array([[0, 1], [1, 6]]),
    *[np.array([[r, r], [r, r]]) for r in range(1, 8)],
]


@pytest.fixture
def copies():
    return count_copies(EXPERTS, expert_rank=np.arange(8), ranks_per_node=4)


@pytest.fixture
def two_nodes():
    return build_fabric("multi_plane_fat_tree", replace(NODES, nodes=2))


def test_copies_count_distinct_nodes_and_ranks(copies):
    assert copies.to_rank[0].tolist() == [1, 2, 0, 0, 0, 0, 1, 0]
    assert copies.to_node[0].tolist() == [2, 1]
    assert copies.to_expert[3, 3] == 4
    assert copies.to_rank[3, 3] == 2
    assert copies.nodes_per_token == pytest.approx((3 + 7 * 2) / 16)


def exchange(fabric, *, chunks=1, back=False):
    """Copies of 10 bytes by kernels whose messages cost no time."""
    return TokenExchange(fabric, 10.0, 0.0, chunks, back)


def test_normal_dispatch_sends_one_copy_a_node_over_the_rail(copies, two_nodes):
    phase = collectives.forwarded_flows(copies, np.arange(8), exchange(two_nodes, chunks=4))[0]
    flows = {
        (int(s), int(d)): float(b)
        for s, d, b in zip(
            phase.flows.source, phase.flows.destination, phase.flows.size, strict=True
        )
    }
    assert flows[0, 4] == 10.0  # one token for node 1, to the GPU of the same index
    assert flows[4, 6] == 10.0  # which forwards it over NVLink to the expert's GPU
    assert flows[0, 0] == 10.0
    assert flows[0, 1] == 20.0
    assert flows[5, 5] == 20.0
    combine = exchange(two_nodes, chunks=4, back=True)
    back = collectives.forwarded_flows(copies, np.arange(8), combine)[0]
    assert (phase.name, back.name) == ("dispatch", "combine")
    turned = set(zip(back.flows.destination.tolist(), back.flows.source.tolist(), strict=True))
    assert turned == set(flows)


def test_filling_the_pipeline_costs_the_shorter_step_over_the_chunks(copies, two_nodes):
    one, four = (
        collectives.forwarded_flows(copies, np.arange(8), exchange(two_nodes, chunks=c))[0].delay
        for c in (1, 4)
    )
    # Step over NVLink: at most 4 tokens of 10 bytes at 8 bytes/s; over NICs 10 bytes at 1 byte/s.
    assert one == pytest.approx(min(40 / 8, 10.0))
    assert four == pytest.approx(one / 4)


def test_low_latency_sends_every_expert_its_own_copy(copies, two_nodes):
    for name, through_nics in (("low_latency", True), ("low_latency_mixed", False)):
        phase = collectives.EXCHANGES[name].flows(copies, np.arange(8), exchange(two_nodes))[0]
        assert phase.flows.rdma is through_nics
        assert phase.flows.payload == 10.0 * (2 + 1)  # own shares stay


def test_small_messages_are_limited_by_the_message_rate(two_nodes):
    """NICs of 1 byte/s, and 20 s for every message."""
    size = np.array([100.0])
    assert TokenExchange(two_nodes, 50.0, 20.0, 1, back=False).wire(size) == pytest.approx(100.0)
    # 5-byte messages: 20 of them at 20 s each are 400 s, as 400 bytes would be.
    assert TokenExchange(two_nodes, 5.0, 20.0, 1, back=False).wire(size) == pytest.approx(400.0)


def test_balanced_copies_leave_the_own_rank_out():
    even = collectives.balanced_copies(9, tokens=4, copies=8, ranks_per_node=3)
    assert even.to_expert.sum(axis=1) == pytest.approx(32.0)
    assert np.diag(even.to_expert).sum() == 0


def test_a_group_whose_pairs_fit_no_memory_is_refused():
    with pytest.raises(
        ValueError, match=r"288000 GPUs .* 618 GiB; allowed: groups of at most 8192"
    ):
        collectives.balanced_copies(288_000, tokens=1, copies=1, ranks_per_node=8)
