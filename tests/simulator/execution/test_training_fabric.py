"""Where a step's transfers go: every byte arrives, and no fabric is better than a healthy one."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import simpy

from hardware_profiles.schema import load_transport
from reference_model.trace import ALL_TO_ALL_KINDS
from simulator.analysis.run import simulate
from simulator.analysis.training_metrics import training_metrics
from simulator.execution import training_fabric
from simulator.execution.training_fabric import (
    StepLoads,
    collective_groups,
    copies_of,
    expert_flows,
    ring_flows,
    send_flows,
    step_loads,
)
from simulator.hardware.network import fabric_load
from simulator.hardware.network.clusters import cluster_fabric
from simulator.hardware.network.fabric_load import NO_LIMIT, all_to_all_load
from simulator.hardware.network.flows import Network, make_flows
from simulator.hardware.network.routing import parse_failure
from simulator.hardware.network.transfers import Domains
from simulator.scenario.files import load_scenario
from simulator.workload.layout import ParallelLayout
from simulator.workload.schedules.known import SCHEDULES

MAIN = "dualpipe_h800_2048"
STRADDLING = "cluster.fabric.switch_ports=40"
"""Leaves of 20 nodes, which groups of 8 straddle."""
FABRICS = [
    (),
    ("cluster.fabric.oversubscription=7",),
    ("cluster.fabric.routing=ecmp",),
    ("cluster.fabric.routing=static",),
    (STRADDLING, "cluster.fabric.oversubscription=9"),
    (STRADDLING, "cluster.fabric.routing=ecmp"),
    ("cluster.failures=[nic:node3/nic1]",),
    ("cluster.failures=[nic:node3/nic1, nic:node130/nic7]",),
    ("cluster.failures=[slow:node3/nic1/up=0.5]",),
    ("cluster.failures=[plane:3]",),
    ("cluster.failures=[switch:plane0/leaf0]",),
    ("cluster.failures=[switch:plane0/spine2]",),
    ("cluster.failures=[link:plane0/leaf0/up0]",),
    (STRADDLING, "cluster.failures=[switch:plane0/spine2]"),
    (STRADDLING, "cluster.fabric.routing=ecmp", "cluster.failures=[nic:node3/nic1, plane:5]"),
]
PIPELINES = [
    ("1f1b", 16, 64),
    ("1f1b", 8, 128),
    ("1f1b", 1, 256),
    ("interleaved", 16, 64),
    ("zb_h1", 16, 8),
    ("dualpipe", 16, 64),
    ("dualpipe", 16, 4),
    ("dualpipev", 8, 128),
]
"""(schedule, pipeline ranks, expert-parallel ranks) on 2,048 GPUs."""


def layout(pp=16, ep=64):
    return ParallelLayout(
        gpus=2048, gpus_per_domain=8, pp=pp, ep=ep, routed_experts=256, redundant_experts=0
    )


def schedule(name="dualpipe", pp=16):
    return SCHEDULES[name](pp, 4 * pp)


def cluster(*changes):
    return load_scenario(MAIN, changes).cluster


@cache
def loads(*changes) -> StepLoads:
    return step_loads(cluster(*changes), layout(), schedule())


@cache
def whole_run(*changes):
    return simulate(load_scenario(MAIN, changes)).result


def run(*changes):
    return whole_run(*changes).step


def every(of: StepLoads):
    return [*of.all_to_all, *of.sends.values(), *of.dense, *of.experts]


def rates(of: StepLoads, changes):
    nic = cluster(*changes).node.nic_bandwidth_per_gpu
    return np.array([load.rate(nic) for load in every(of)])


@pytest.mark.parametrize(("name", "pp", "ep"), PIPELINES)
def test_every_transfer_arrives_at_a_gpu_that_sends_as_much(name, pp, ep):
    of, order = layout(pp, ep), schedule(name, pp)
    dense, experts = (ring_flows(of, order, experts=experts) for experts in (False, True))
    for flows in (expert_flows(of), dense, experts):
        sent = np.bincount(flows.source, minlength=of.gpus)
        np.testing.assert_array_equal(sent, np.bincount(flows.destination, minlength=of.gpus))
        assert len(set(sent.tolist())) == 1
    sends = send_flows(of, order).values()
    for flows in (*sends, expert_flows(of), dense, experts):
        # Between nodes, and to the GPU of the same number: no plane is crossed.
        assert np.all(flows.source // 8 != flows.destination // 8)
        assert np.all(flows.source % 8 == flows.destination % 8)
        np.testing.assert_array_equal(flows.rank, flows.source // of.dp)
    # Activations one way are gradients the other.
    there = {pair for flows in sends for pair in zip(flows.source, flows.destination, strict=True)}
    assert there == {(end, start) for start, end in there}
    for flows in sends:
        np.testing.assert_array_equal(flows.source % of.dp, flows.destination % of.dp)


@pytest.mark.parametrize(("name", "pp", "ep"), PIPELINES)
def test_a_ring_passes_every_node_that_holds_the_same(name, pp, ep):
    of, order = layout(pp, ep), schedule(name, pp)
    copies = 2 if name == "dualpipe" else 1
    nodes = len(of.expert_parts)
    for experts, stride, places in ((False, 1, of.dp // 8), (True, nodes, of.dp // 8 // nodes)):
        flows = ring_flows(of, order, experts=experts)
        following = dict(zip(flows.source.tolist(), flows.destination.tolist(), strict=True))
        for gpu in (0, 9, of.gpus - 1):
            passed, at = [gpu], following.get(gpu, gpu)
            while at != gpu:
                passed.append(at)
                at = following[at]
            assert len(passed) == places * copies
            # All hold the same place among the experts, on ranks with the same stages.
            assert {(node // 8) % stride for node in passed} == {gpu // 8 % stride}
            assert len({order.stages_of(node // of.dp) for node in passed}) == 1


def test_on_the_shipped_cluster_the_nics_decide_everything():
    nic = cluster().node.nic_bandwidth_per_gpu
    assert set(loads().all_to_all) == {NO_LIMIT}
    assert all(load.nic_stretch == 1.0 and load.bandwidth >= nic for load in every(loads()))
    fabric = cluster().fabric
    latencies = {load.latency for load in loads().sends.values()}
    expected = [fabric.same_leaf_latency, fabric.cross_leaf_latency]
    assert sorted({round(seconds, 12) for seconds in latencies}) == expected


def test_dispatch_among_the_first_nodes_is_bound_as_in_serving():
    changes = ("cluster.nodes=8", "cluster.fabric.switch_ports=8", "cluster.fabric.routing=ecmp")
    of = cluster(*changes)
    alone = ParallelLayout(
        gpus=64, gpus_per_domain=8, pp=1, ep=64, routed_experts=256, redundant_experts=0
    )
    found = step_loads(of, alone, schedule("1f1b", 1)).all_to_all[0]
    served = all_to_all_load(of, gpus=64, pattern="rail")
    assert served.bandwidth < of.node.nic_bandwidth_per_gpu
    assert found == replace(served, latency=0.0)


@pytest.mark.parametrize(
    "change",
    [
        "cluster.fabric.routing=ecmp",
        "cluster.fabric.oversubscription=3",
        "cluster.failures=[nic:node3/nic1]",
    ],
)
@pytest.mark.parametrize("kind", ["all_to_all", "sends", "dense", "experts"])
def test_the_slowest_transfer_takes_what_the_flow_level_simulation_finds(kind, change):
    of = cluster("cluster.nodes=32", "cluster.fabric.switch_ports=20", change)
    small = ParallelLayout(
        gpus=256, gpus_per_domain=8, pp=2, ep=64, routed_experts=256, redundant_experts=0
    )
    order = schedule("dualpipe", 2)
    found = step_loads(of, small, order)
    if kind == "all_to_all":
        flows, limits, peers = expert_flows(small), found.all_to_all, 7
    elif kind == "sends":
        # One direction of the two, which do not share a link.
        flows, limits, peers = send_flows(small, order)[1], [found.sends[0, 1]], 1
    else:
        flows = ring_flows(small, order, experts=kind == "experts")
        limits, peers = getattr(found, kind), 1
    size, nic = 1e9, of.node.nic_bandwidth_per_gpu
    fabric = cluster_fabric(of, load_transport("ideal"))
    env = simpy.Environment()
    network = Network(env, fabric)
    for failure in of.failures:
        network.strike(parse_failure(failure))
    transfer = env.run(
        until=network.transfer(make_flows(flows.source, flows.destination, size / peers))
    )
    bound = size / min(load.rate(nic) for load in limits)
    assert transfer.finish.max() == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize("changes", FABRICS)
def test_no_fabric_is_better_than_a_healthy_non_blocking_one(changes):
    assert np.all(rates(loads(*changes), changes) <= rates(loads(), ()))
    assert all(load.nic_stretch >= 1.0 for load in every(loads(*changes)))
    latencies = [load.latency for load in loads(*changes).sends.values()]
    assert min(latencies) >= cluster().fabric.same_leaf_latency * (1 - 1e-12)


@pytest.mark.parametrize("changes", FABRICS)
@pytest.mark.parametrize(
    "faster", ["cluster.node.nic.bandwidth=800 Gbit/s", "cluster.fabric.link_bandwidth=800 Gbit/s"]
)
def test_doubling_a_bandwidth_of_the_network_never_slows_a_transfer(changes, faster):
    doubled = (*changes, faster)
    slower = rates(loads(*changes), changes)
    assert np.all(rates(loads(*doubled), doubled) >= slower * (1 - 1e-12))


def check_no_faster(step, than):
    """Every part of a step takes at least as long as of another."""
    assert step.step_time_s >= than.step_time_s
    assert step.pair.log.span_s >= than.pair.log.span_s
    # An oversubscribed leaf joins more nodes, so that some sends save the way over a spine.
    fabric = cluster().fabric
    nearer = fabric.cross_leaf_latency - fabric.same_leaf_latency
    for ranks, seconds in than.transfers_s.items():
        assert step.transfers_s[ranks] >= seconds - nearer * (1 + 1e-9)
    for row, other in zip(step.keys, than.keys, strict=True):
        for key, healthy in zip(row, other, strict=True):
            assert step.chunks[key].log.span_s >= than.chunks[healthy].log.span_s * (1 - 1e-12)
    for part, healthy in zip(step.optimizer, than.optimizer, strict=True):
        # So do the three steps of a ring over copies of experts.
        assert part.reduce_s >= healthy.reduce_s - 3 * nearer * (1 + 1e-9)
        assert part.update_s == healthy.update_s
        assert part.gather_s >= healthy.gather_s - 3 * nearer * (1 + 1e-9)


@pytest.mark.parametrize(
    ("changes", "slows"),
    [
        (("cluster.fabric.oversubscription=7",), {"send", "optimizer"}),
        ((STRADDLING, "cluster.fabric.routing=ecmp"), {"pair", "send", "optimizer"}),
        (("cluster.failures=[nic:node3/nic1]",), {"pair", "send", "optimizer"}),
        (("cluster.failures=[slow:node3/nic1/up=0.5]",), {"pair", "send", "optimizer"}),
        (("cluster.failures=[switch:plane0/spine2]",), set()),
    ],
)
def test_a_worse_fabric_slows_what_it_touches_and_nothing_else(changes, slows):
    step, healthy = run(*changes), run()
    check_no_faster(step, healthy)
    assert slows == {
        name
        for name, slower in (
            ("pair", step.pair.log.span_s > healthy.pair.log.span_s),
            ("send", max(step.transfers_s.values()) > max(healthy.transfers_s.values())),
            ("optimizer", step.step_time_s - step.pipeline.makespan_s
             > healthy.step_time_s - healthy.pipeline.makespan_s),
        )
        if slower
    }  # fmt: skip
    check_no_faster(step, run(*changes, "cluster.node.nic.bandwidth=800 Gbit/s"))


@pytest.mark.parametrize("changes", FABRICS)
def test_ranks_of_one_ring_go_at_one_pace(changes):
    # DualPipe's rank r and its mirror hold the same stages.
    for of_rings in (loads(*changes).dense, loads(*changes).experts):
        assert of_rings == of_rings[::-1]


def test_the_json_says_what_the_fabric_leaves_of_each_kind_of_transfer():
    found = {}
    for changes in ((), ("cluster.fabric.oversubscription=7",), ("cluster.failures=[plane:3]",)):
        step = simulate(load_scenario(MAIN, changes)).result
        found[changes] = training_metrics(step, with_intervals=False)["transfers"]
    healthy, thin, broken = found.values()
    free = {"nic_stretch": 1.0, "fabric_bytes_per_s": None}
    kinds = ("all_to_all", "pipeline_send", "dense_parameters", "experts")
    assert all(healthy[kind] == free for kind in kinds)
    # A leaf has 8 ports up; 16 nodes send to the next rank over them, and groups stay below it.
    assert thin["all_to_all"] == free
    assert thin["pipeline_send"]["fabric_bytes_per_s"] == healthy["nic_bytes_per_s"] / 2
    assert all(8 / 7 <= broken[kind]["nic_stretch"] <= 2.0 for kind in kinds)


def test_only_the_ranks_of_a_broken_nic_unfold():
    step, healthy = run("cluster.failures=[nic:node130/nic1]"), run()
    loads_of_ranks = step.loads.all_to_all
    # Nodes 128 to 143 are pipeline rank 8.
    assert [rank for rank, load in enumerate(loads_of_ranks) if load != NO_LIMIT] == [8]
    assert step.keys[7] == healthy.keys[7]
    assert len({str(key) for key in step.chunks}) == len(step.chunks)
    assert "NICs x1.2" in str(step.keys[8][0])
    assert step.pair.key.load == loads_of_ranks[8]
    slower = {
        ranks for ranks, took in step.transfers_s.items() if took > healthy.transfers_s[ranks]
    }
    assert slower == {(7, 8), (8, 7), (8, 9), (9, 8)}


def test_actions_of_ranks_that_differ_take_what_their_own_chunks_take():
    changes = (
        "training.pp=2", "training.ep=32", "cluster.nodes=8",
        "training.global_batch_sequences=256", "cluster.node.gpu.hbm_capacity=900 GiB",
        "cluster.failures=[nic:node5/nic2]",
    )  # fmt: skip
    scenario = load_scenario(MAIN, changes)
    step = simulate(scenario).result.step
    assert len(set(step.loads.all_to_all)) == 2
    own = [step.chunks[key].log.span_s for row in step.keys for key in row]
    np.testing.assert_allclose(step.pipeline.end_s - step.pipeline.start_s, own, rtol=1e-12)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("nic:node3/nic1@2s", "what is broken from the start only; allowed: without a time"),
        ("node:node3", "needs every node; allowed: nic, plane, switch, link and slow"),
        ("link:node3/gpu1/nvlink_out", "no failures inside a node; allowed: nic, plane"),
        ("slow:node3/gpu1/pcie_in=0.5", "no failures inside a node; allowed: nic, plane"),
        ("nic:node999/nic1", "known: node0 to node255"),
        ("router:3", "write KIND:NAME@TIME"),
    ],
)
def test_a_failure_that_a_step_does_not_simulate_is_one_clear_line(failure, message):
    with pytest.raises(ValueError, match=message) as error:
        loads(f"cluster.failures=[{failure}]")
    assert len(str(error.value).splitlines()) == 1


def test_a_network_that_failures_cut_in_two_is_one_clear_line():
    planes = ", ".join(f"plane:{number}" for number in range(8))
    with pytest.raises(ValueError, match="no live path from GPU 0 to GPU 8"):
        loads(f"cluster.failures=[{planes}]")


def racks(*changes):
    return load_scenario(MAIN, ("cluster=gb200_nvl72", "cluster.nodes=64", *changes)).cluster


def in_racks(pp, ep):
    return ParallelLayout(
        gpus=256, gpus_per_domain=64, pp=pp, ep=ep, routed_experts=256, redundant_experts=0
    )


def test_groups_and_rings_that_fit_a_rack_take_no_nic():
    of, order = in_racks(4, 64), schedule("1f1b", 4)
    found = step_loads(racks(), of, order)
    assert len(expert_flows(of).source) == 0
    assert all(len(ring_flows(of, order, experts=experts).source) == 0 for experts in (False, True))
    assert copies_of(of, [1], experts=False) == Domains(domains=1, fewest=64, most=64)
    # Every pipeline rank is a rack: what it sends to the next leaves it.
    assert None not in found.sends.values()


def test_pipeline_ranks_that_share_a_rack_send_over_nvlink():
    found = step_loads(racks(), in_racks(16, 16), schedule("1f1b", 16))
    # Four ranks in each of the four racks: only 3 to 4, 7 to 8 and 11 to 12 leave one, and back.
    leaving = {ranks for ranks, load in found.sends.items() if load is not None}
    assert leaving == {(3, 4), (4, 3), (7, 8), (8, 7), (11, 12), (12, 11)}


def test_copies_in_several_racks_meet_over_the_nics_of_the_rack_with_fewest():
    # Two ranks of 96 GPUs in racks of 64: 64 and 32 of the first, 32 and 64 of the second.
    of = replace(in_racks(2, 32), gpus=192)
    assert copies_of(of, [0], experts=False) == Domains(domains=2, fewest=32, most=64)
    assert copies_of(of, [0], experts=True) == Domains(domains=2, fewest=1, most=2)
    order = schedule("1f1b", 2)
    dense = ring_flows(of, order, experts=False).beyond(64)
    assert sorted(zip(dense.source.tolist(), dense.destination.tolist(), strict=True)) == sorted(
        [(gpu, gpu + 64) for gpu in range(32)]
        + [(gpu + 64, gpu) for gpu in range(32)]
        + [(gpu, gpu + 32) for gpu in range(96, 128)]
        + [(gpu + 32, gpu) for gpu in range(96, 128)]
    )


def test_a_group_that_does_not_fill_nodes_sends_to_the_gpus_that_it_has_there():
    # Groups of 12 on nodes of 8: GPUs 0 to 11 have 8 on the first node and 4 on the second.
    flows = expert_flows(
        ParallelLayout(
            gpus=24, gpus_per_domain=8, pp=1, ep=12, routed_experts=252, redundant_experts=0
        )
    )
    first = [(s, d) for s, d in zip(flows.source, flows.destination, strict=True) if s < 12]
    assert sorted(first) == sorted(
        [(gpu, 8 + gpu % 4) for gpu in range(8)] + [(gpu, gpu - 8) for gpu in range(8, 12)]
    )


def test_a_step_whose_groups_fit_a_rack_says_what_does_not_and_takes_no_nic_but_between_ranks():
    scenario = load_scenario(
        MAIN,
        ("cluster=gb200_nvl72", "cluster.nodes=64", "calibration=gb200_reference", "training.pp=4",
         "training.ep=64", "training.global_batch_sequences=4096"),
    )  # fmt: skip
    found = simulate(scenario).result
    model = found.costs.transfers_
    for key, chunk in found.step.chunks.items():
        for operator in chunk.log.graph.operators:
            if operator.kind in ALL_TO_ALL_KINDS:
                time = model.explain(operator, sms=20, overlapped=False, load=key.load)
                assert time.nic_s == 0.0
    # Every pipeline rank is a rack, so its activations go over each GPU's NIC at 93.5% of 50 GB/s.
    size = 4096 * 7168 * 2
    for seconds in found.step.transfers_s.values():
        assert seconds == pytest.approx(size / (0.935 * 50e9) + 3.7e-6, rel=1e-9)
    assert training_metrics(found, with_intervals=False)["idle_nodes"] == (
        "64 nodes in 4 NVLink domains: 16 of the 18 nodes of each, 2 idle and not counted"
    )


def test_rings_take_the_latency_of_their_steps():
    def optimizer(*changes):
        return run(*changes).optimizer[5]

    published = optimizer()
    # Copies of experts lie on four nodes, so that a ring has 3 steps between nodes; of the dense
    # parameters the part inside the node takes longer, a ring of 8 GPUs with 7 steps.
    for change, added in (
        ("cluster.fabric.cross_leaf_latency=7.4 us", 3 * 3.7e-6),
        ("cluster.node.nvlink_latency=4.33 us", 7 * 1e-6),
    ):
        slower = optimizer(change)
        assert slower.reduce_s - published.reduce_s == pytest.approx(added, rel=1e-6)
        assert slower.gather_s - published.gather_s == pytest.approx(added, rel=1e-6)


def test_pipeline_sends_inside_a_node_go_over_nvlink_and_take_its_latency():
    changes = (
        "cluster.nodes=2", "training.pp=4", "training.ep=4", "training.schedule=1f1b",
        "training.global_batch_sequences=32", "cluster.node.gpu.hbm_capacity=4000 GiB",
        "training.stages=[embedding + 3 dense + 13 moe, 15 moe, 15 moe, 15 moe + mtp + head]",
    )  # fmt: skip
    size = 4096 * 7168 * 2
    over_nvlink = size / (0.77 * 200e9)
    sends = simulate(load_scenario(MAIN, changes)).result.step.transfers_s
    # Two ranks of four GPUs in each node of eight.
    assert sends[0, 1] == sends[3, 2] == pytest.approx(over_nvlink + 3.33e-6, rel=1e-9)
    assert sends[1, 2] == pytest.approx(size / (0.935 * 50e9) + 2.8e-6, rel=1e-9)
    farther = simulate(load_scenario(MAIN, (*changes, "cluster.node.nvlink_latency=1 ms"))).result
    assert farther.step.transfers_s[0, 1] == pytest.approx(over_nvlink + 1e-3, rel=1e-9)


@pytest.mark.parametrize(("kept", "left"), [(0, 132), (20, 112)])
def test_a_step_computes_on_the_sms_that_its_transfers_leave(kept, left):
    found = whole_run(f"training.communication_sms={kept}")
    pair = found.step.pair
    graph = pair.log.graph
    for place, (task, operator) in enumerate(zip(graph.tasks, graph.task_operators(), strict=True)):
        if operator.kind in ("grouped_gemm", "dispatch"):
            sms = kept if operator.kind == "dispatch" else left
            alike = found.costs.predict(
                [operator], sms=sms, overlapped=task.overlapped, load=pair.key.load
            )
            assert pair.cost.seconds[place] == pytest.approx(alike.seconds[0], rel=1e-12)


def shared(**changes):
    """64 GPUs in nodes of 8: two pipeline ranks of 32, two GPUs share each layer."""
    fields = {"gpus": 64, "gpus_per_domain": 8, "pp": 2, "ep": 8, "tp": 2} | changes
    return ParallelLayout(routed_experts=256, redundant_experts=0, **fields)


def test_rings_of_a_shared_layer_run_over_the_gpus_that_hold_the_same_part():
    """Of a pipeline rank's four nodes each has four copies of either half."""
    assert copies_of(shared(), [0], experts=False) == Domains(domains=4, fewest=4, most=4)
    assert copies_of(shared(), [0], experts=True) == Domains(domains=4, fewest=1, most=1)
    assert copies_of(shared(etp=2), [0], experts=True) == Domains(domains=2, fewest=1, most=1)
    rings = ring_flows(shared(), schedule("1f1b", 2), experts=False)
    # GPU 0 holds an even part, as does the first of the next node.
    assert rings.destination[rings.source == 0].tolist() == [8]
    assert rings.destination[rings.source == 25].tolist() == [1]


def test_groups_that_share_layers_or_sequences_lie_in_domains_by_their_axes():
    assert collective_groups(shared()) == {"tensor": Domains(domains=1, fewest=2, most=2)}
    apart = shared(tp=4, cp=4, axes=("data", "context", "expert", "tensor", "pipeline"))
    # Two pipelines, then four GPUs of a sequence fill a node; those of a layer are a node apart.
    assert collective_groups(apart) == {
        "tensor": Domains(domains=4, fewest=1, most=1),
        "context": Domains(domains=1, fewest=4, most=4),
    }
    assert collective_groups(layout()) == {}


def test_pipeline_sends_go_to_the_gpu_of_the_same_part():
    (forward, backward) = send_flows(shared(), schedule("1f1b", 2)).values()
    ends = {*zip(forward.source.tolist(), forward.destination.tolist(), strict=True)}
    ends |= {*zip(backward.destination.tolist(), backward.source.tolist(), strict=True)}
    assert ends == {(gpu, gpu + 32) for gpu in range(32)}


def test_experts_that_are_two_gpus_wide_dispatch_to_every_other_gpu():
    flows = expert_flows(shared(etp=2))
    # Eight places of two GPUs: four places in each of two nodes.
    assert flows.destination[flows.source == 3].tolist() == [11]


def test_other_rates_take_the_ways_that_were_found_before(monkeypatch):
    changes = ("cluster.node.nic.bandwidth=31 GB/s", "cluster.fabric.same_leaf_latency=2 us")
    training_fabric._crossed.cache_clear()
    alone = step_loads(cluster(*changes), layout(), schedule())
    training_fabric._crossed.cache_clear()
    training_fabric._step_loads.cache_clear()
    step_loads(cluster(), layout(), schedule())
    monkeypatch.setattr(fabric_load, "route", None)
    assert step_loads(cluster(*changes), layout(), schedule()) == alone
    with pytest.raises(TypeError, match="not callable"):
        step_loads(cluster("cluster.failures=[plane:3]"), layout(), schedule())
