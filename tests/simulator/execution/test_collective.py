"""Collective jobs: shipped scenarios against closed forms and published figures."""

import dataclasses

import numpy as np
import pytest

from hardware_profiles.schema import load_transport
from simulator.execution import collective
from simulator.execution.collective import run_collective
from simulator.execution.traffic import low_latency_start
from simulator.scenario.collective import CollectiveJob
from simulator.scenario.files import load_scenario


def run(name, *changes):
    scenario = load_scenario(name, changes)
    return run_collective(scenario)


def made(job, cluster):
    """A scenario of a job and a cluster made by hand."""
    return dataclasses.replace(
        load_scenario("all_to_all_64"),
        job=CollectiveJob.model_validate(job),
        named_cluster=cluster,
    )


def check_bytes(result):
    """What leaves the NICs and NVLink ports is what enters them."""
    last = result.last
    carried = list(zip(last.link_names, last.link_bytes, strict=True))
    up = sum(size for name, size in carried if name.endswith("/up") and "/nic" in name)
    down = sum(size for name, size in carried if name.endswith("/down") and "/nic" in name)
    out = sum(size for name, size in carried if name.endswith("nvlink_out"))
    into = sum(size for name, size in carried if name.endswith("nvlink_in"))
    assert up == pytest.approx(down)
    assert out == pytest.approx(into)
    assert (last.link_utilisation <= 1 + 1e-9).all()


def test_64_gpus_take_the_ideal_time_plus_latency():
    result = run("all_to_all_64")
    (operation,) = result.last.operations
    ideal = 63 * 114_688 / 50e9
    assert ideal == pytest.approx(144.5e-6, rel=1e-3)
    assert operation.completion_s == pytest.approx(ideal + 4e-6, rel=1e-9)
    assert operation.bytes_total == 64 * 63 * 114_688
    assert operation.bus_bandwidth == pytest.approx(63 * 114_688 / operation.completion_s)
    check_bytes(result)


def test_bytes_of_normal_dispatch_and_combine_arrive():
    check_bytes(run("deepep_normal", "vary.operation.gpus=[16]"))


def test_32_groups_of_64_do_not_disturb_each_other():
    result = run("all_to_all_32x_ep64")
    assert result.last.end_s == pytest.approx(run("all_to_all_64").last.end_s)
    assert result.last.operations[0].bytes_total == 2048 * 63 * 114_688
    check_bytes(result)


def test_merging_completions_of_hot_experts_costs_under_two_percent():
    hot = "collective.operation.sizes=hot_experts"
    exact = run("all_to_all_64", hot, "collective.operation.gpus=32")
    merged = run(
        "all_to_all_64", hot, "collective.operation.gpus=32", "collective.merge_share=0.005"
    )
    assert merged.last.solves < exact.last.solves / 3
    error = merged.last.end_s / exact.last.end_s - 1
    assert 0 <= error < 0.02
    np.testing.assert_allclose(merged.last.link_bytes, exact.last.link_bytes)


def test_transfers_that_end_one_by_one_are_refused_where_they_are_too_many(monkeypatch):
    monkeypatch.setattr(collective, "MOST_SOLVED_AGAIN", 100_000)
    unmerged = ("published=[]", "collective.merge_share=0")
    assert run("deepep_low_latency", *unmerged, "vary.operation.gpus=[16]").last.solves < 500
    said = r"^collective\.merge_share: 0: transfers end one by one, .*; allowed: more, such as 0"
    with pytest.raises(ValueError, match=said):
        run("deepep_low_latency", *unmerged, "vary.operation.gpus=[32]")


def test_the_papers_all_to_all_bounds_fall_out():
    # (1 + 2) bytes x 32 tokens x 9 copies x 7000 over 50 GB/s and over 900 GB/s.
    assert run("tpot_bound_ib").last.end_s == pytest.approx(120.96e-6, rel=1e-9)
    assert run("tpot_bound_nvl72").last.end_s == pytest.approx(6.72e-6, rel=1e-9)


ACHIEVED = load_transport("deepep_h800").achieved
NIC, NVLINK = 50e9 * ACHIEVED.nic.value, 200e9 * ACHIEVED.nvlink.value


@pytest.mark.parametrize(
    ("gpus", "form", "tokens", "dispatch_s", "combine_s"),
    [
        # Copies spread evenly over the other GPUs, at what NICs of 50 GB/s and NVLink of 200 GB/s
        # achieve, after 20.3 and 25.1 us through NICs, 11.9 and 12.6 us over NVLink alone.
        (16, "low_latency", 128, 20.3e-6 + 1024 * 7408 / NIC, 25.1e-6 + 1024 * 14336 / NIC),
        (16, "low_latency_mixed", 128, 20.3e-6 + 1024 * 8 / 15 * 7408 / NIC,
         25.1e-6 + 1024 * 8 / 15 * 14336 / NIC),
        (8, "low_latency_mixed", 128, 11.9e-6 + 1024 * 7408 / NVLINK,
         12.6e-6 + 1024 * 14336 / NVLINK),
        (32, "low_latency", 2, 25.7e-6 + 16 * 7408 / NIC, 25.9e-6 + 16 * 14336 / NIC),
    ],
)  # fmt: skip
def test_low_latency_kernels_take_their_start_and_their_slower_link(
    gpus, form, tokens, dispatch_s, combine_s
):
    result = run(
        "deepep_low_latency_mixed",
        f"vary.operation.gpus=[{gpus}]",
        f"collective.operation.algorithm={form}",
        f"collective.operation.moe.tokens={tokens}",
        "collective.operation.moe.gate=balanced",
    )
    took = [operation.completion_s for operation in result.last.operations]
    assert took == pytest.approx([dispatch_s, combine_s], rel=1e-9)
    check_bytes(result)


def test_a_start_that_knows_one_link_only_is_one_clear_line():
    transport = load_transport("deepep_h800").model_copy(update={"low_latency": "deepep_h800_rdma"})
    with pytest.raises(ValueError, match="link nic; allowed: a profile of link mixed"):
        low_latency_start(transport, "dispatch", ranks=16, over_nics=True)
    plain = transport.model_copy(update={"low_latency": None})
    assert low_latency_start(plain, "dispatch", ranks=16, over_nics=True) == plain.start


def test_low_latency_across_planes_is_forwarded_at_a_cost_or_refused():
    changes = ("cluster=h800_2048", "vary.operation.gpus=[64]")
    rails = run("deepep_low_latency", "vary.operation.gpus=[64]").last.operations[0]
    planes = run("deepep_low_latency", *changes)
    names = dict(zip(planes.last.link_names, planes.last.link_bytes, strict=True))
    assert sum(b for name, b in names.items() if name.endswith("nvlink_out")) > 0
    # The copies inside a node leave the NICs for NVLink, so the NICs have less to do here.
    assert planes.last.operations[0].mean_gpu_s < rails.mean_gpu_s
    assert planes.last.operations[0].mean_gpu_s > 0.85 * rails.mean_gpu_s
    check_bytes(planes)
    with pytest.raises(ValueError, match="no plane joins them and cross_plane is 'refuse'"):
        run("deepep_low_latency", *changes, "cluster.fabric.cross_plane=refuse")


@pytest.mark.parametrize(
    ("operation", "ideal"),
    [
        # Bytes over the busiest link of 50 GB/s, in units of the buffer.
        ({"name": "all_gather"}, 15 / 16),
        ({"name": "reduce_scatter", "algorithm": "direct"}, 15 / 16),
        ({"name": "all_reduce"}, 2 * 15 / 16),
        ({"name": "broadcast", "algorithm": "ring"}, 1),
        ({"name": "broadcast"}, 2),
        ({"name": "send"}, 1),
        ({"name": "kv_transfer"}, 1),
    ],
)
def test_every_collective_runs_at_its_links_rate(operation, ideal):
    job = {
        "operation": {**operation, "gpus": 16, "bytes_per_gpu": "1 GiB"},
        "transport": "ideal",
    }
    cluster = load_scenario("all_to_all_64").cluster
    result = run_collective(made(job, cluster))
    assert result.last.end_s == pytest.approx(ideal * 2**30 / 50e9, rel=0.01)
    check_bytes(result)


def test_a_hierarchical_all_reduce_runs_on_whole_nodes():
    job = {
        "operation": {
            "name": "all_reduce",
            "algorithm": "hierarchical",
            "gpus": 64,
            "bytes_per_gpu": "1 GiB",
        },
        "transport": "ideal",
    }
    cluster = load_scenario("mpft_vs_mrft").cluster
    result = run_collective(made(job, cluster))
    share = 2**30 / 8
    ideal = 2 * 7 * share / 200e9 + 2 * 7 / 8 * share / 50e9
    assert result.last.end_s == pytest.approx(ideal, rel=0.02)
    check_bytes(result)


def test_repeats_follow_each_other():
    once = run("all_to_all_64")
    twice = run("all_to_all_64", "collective.operation.repeat=2")
    assert twice.last.end_s == pytest.approx(2 * once.last.end_s)
    assert twice.last.operations[0].bytes_total == 2 * once.last.operations[0].bytes_total


def test_small_messages_are_limited_by_the_nics_message_rate():
    tiny = ("collective.operation.bytes_per_pair=8 B",)
    ideal = run("all_to_all_64", *tiny).last.end_s
    real = run("all_to_all_64", *tiny, "collective.transport=deepep_h800").last.end_s
    # 63 messages at 4.65 ns each, after 12 us of start; 8 bytes would take 10 ns in all.
    assert real - 12e-6 - ideal == pytest.approx(63 * 4.65e-9, rel=0.05)


def test_planes_and_rails_take_the_same_time():
    result = run(
        "mpft_vs_mrft",
        "vary.operation.gpus=[16, 64, 512]",
        "vary.operation.bytes_per_gpu=[128 MiB]",
    )
    times = {}
    for variant in result.variants:
        operation = variant.operations[0]
        times.setdefault(operation.gpus, []).append(operation.completion_s)
    for gpus, (planes, rails) in times.items():
        assert planes == pytest.approx(rails, rel=0.015), gpus


def test_rails_without_forwarding_are_equal_too():
    changes = (
        "collective.operation.algorithm=direct",
        "vary.operation.gpus=[64]",
        "vary.operation.bytes_per_gpu=[1 GiB]",
    )
    planes, rails = (v.operations[0].completion_s for v in run("mpft_vs_mrft", *changes).variants)
    assert planes == pytest.approx(rails, rel=0.015)


def test_ecmp_is_slower_than_adaptive_and_static_routing():
    result = run("roce_routing", "collective.operation.bytes_per_gpu=16 MiB")
    speed = {
        (v.fabric.inputs.routing, o.group_gpus): o.algorithm_bandwidth
        for v in result.variants
        for o in v.operations
    }
    for group in (8, 4, 2):
        assert speed["ecmp", group] < 0.9 * speed["adaptive", group]
        assert speed["static", group] == pytest.approx(speed["adaptive", group], rel=0.02)


def test_incast_slows_an_all_reduce_beside_it_and_a_traffic_class_isolates_it():
    base = {
        "operation": {
            "name": "all_reduce",
            "gpus": 16,
            "bytes_per_gpu": "64 MiB",
            "priority": 0,
        },
        "beside": [
            {"name": "all_to_all", "gpus": 64, "bytes_per_pair": "8 MiB", "sizes": "hot_experts"}
        ],
        "transport": "ideal",
        "merge_share": 0.01,
    }
    cluster = load_scenario("all_to_all_64").cluster

    def seconds(priority):
        job = {**base, "operation": {**base["operation"], "priority": priority}}
        result = run_collective(made(job, cluster))
        return result.last.operations[0].completion_s

    alone = run_collective(made({**base, "beside": []}, cluster)).last.operations[0].completion_s
    assert seconds(0) > 1.5 * alone
    assert seconds(1) == pytest.approx(alone, rel=1e-6)


def test_a_failed_plane_slows_a_run_and_one_that_cuts_it_says_so():
    changes = (
        "vary.cluster=null",
        "vary.operation.gpus=[64]",
        "vary.operation.bytes_per_gpu=[128 MiB]",
    )
    healthy = run("mpft_vs_mrft", *changes)
    broken = run("mpft_vs_mrft", *changes, "cluster.failures=[plane:3@1ms]")
    assert broken.last.end_s > 1.05 * healthy.last.end_s
    check_bytes(broken)
    cut = run("all_to_all_64", "cluster.failures=[node:5@10us]")
    assert cut.last.operations[0].completion_s is None
    assert "node5/gpu0" in cut.last.stalled[0]


def test_groups_that_fit_a_rack_exchange_over_nvlink_alone():
    result = run(
        "all_to_all_64",
        "cluster=gb200_nvl72", "cluster.nodes=72",
        "operation.gpus=288", "operation.group=48",
    ).variants[0]  # fmt: skip
    # 288 GPUs are four racks' worth; six groups of 48 take a rack each, of which 24 GPUs are idle.
    inputs = result.fabric.inputs
    assert (inputs.nodes, inputs.gpus_per_node, inputs.nvlink_bandwidth) == (6, 48, 900e9)
    (operation,) = result.operations
    pair = operation.size_bytes / 48
    assert operation.completion_s == pytest.approx(47 * pair / 900e9 + 3.33e-6, rel=1e-9)


BETWEEN_TWO = (
    "cluster=h200_8",
    "collective.operation.gpus=2",
    "collective.operation.bytes_per_pair=null",
    "collective.operation.bytes_per_gpu=16 MiB",
)
"""An all-to-all between two H200."""


def test_measured_operations_take_their_measured_time_on_idle_links():
    # 8 MiB at 450 GB/s and 3.33 us; NCCL 2.29.2 took 52.36 us.
    (ideal,) = run("all_to_all_64", *BETWEEN_TWO).last.operations
    assert ideal.completion_s == pytest.approx(8 * 2**20 / 450e9 + 3.33e-6, rel=1e-9)
    result = run("all_to_all_64", *BETWEEN_TWO, "collective.transport=nccl")
    (found,) = result.last.operations
    assert result.transport.name == "nccl_h200_sxm"
    assert found.completion_s == pytest.approx(52.36e-6, rel=1e-9)
    assert found.measured is not None
    assert found.measured.provenance_names() == ["measured"]
    assert found.bytes_total == 16 * 2**20
    check_bytes(result)


def test_two_measured_operations_beside_each_other_share_the_links():
    # Of 52.36 us the shortest takes 6.7 us, which both spend side by side; the rest takes twice.
    same = "{name: all_to_all, gpus: 2, bytes_per_gpu: 16 MiB}"
    result = run(
        "all_to_all_64", *BETWEEN_TWO, "collective.transport=nccl", f"collective.beside=[{same}]"
    )
    shortest = load_transport("nccl", gpu="h200_sxm").measured.operations[3]
    assert shortest.operation == "all_to_all"
    start = next(iter(shortest.curves[0].points.values()))
    assert result.last.end_s == pytest.approx(start + 2 * (52.36e-6 - start), rel=1e-9)


def test_an_algorithm_that_the_job_names_and_hosts_apart_go_by_links():
    named = ("collective.operation.name=all_reduce", "collective.operation.algorithm=tree")
    nccl = "collective.transport=nccl"
    (tree,) = run("all_to_all_64", *BETWEEN_TWO, *named, nccl).last.operations
    assert tree.measured is None
    far = ("cluster=h200_32", "collective.operation.gpus=16", *BETWEEN_TWO[2:])
    (apart,) = run("all_to_all_64", *far, nccl).last.operations
    assert apart.measured is None


def test_nccl_on_a_gpu_without_rows_names_those_that_have_some():
    with pytest.raises(ValueError, match="transport nccl: no rows of h800_sxm; known: nccl_b200"):
        run("all_to_all_64", "collective.transport=nccl")
    restated = ("collective.operation.gpus=8", "collective.transport=nccl_h100_sxm")
    (found,) = run("all_to_all_64", "cluster=h800_2048", *restated).last.operations
    assert found.measured.provenance_names() == ["extrapolated"]
