"""Serving steps of the shipped deployments: invariants, effects of inputs, errors."""

from dataclasses import replace

import numpy as np
import pytest

from reference_model.trace import ALL_TO_ALL_KINDS
from simulator.analysis.run import simulate
from simulator.analysis.serving_metrics import operator_table
from simulator.execution.serving_draws import step_draws
from simulator.execution.serving_model import placed_experts
from simulator.execution.serving_run import prepare_serving, simulate_serving_step
from simulator.execution.serving_step import decode_step, iteration, prefill_load, serving_step
from simulator.hardware.network.collective_times import measured_collectives
from simulator.scenario.files import SCENARIOS, load_scenario
from simulator.workload.recorded import recorded_trace


def model_of(name, *changes):
    scenario = load_scenario(name, list(changes))
    return prepare_serving(scenario, scenario.job, recorded_trace)


def step_of(name, *changes):
    return serving_step(model_of(name, *changes))


def test_a_decode_layer_lists_all_its_kernels():
    step = step_of("decode_ep128_profile")
    names = [op.name for op in step.operators["moe", 0].operators]
    kernels = [name for name in names if not name.endswith("_wire")]
    assert 27 <= len(kernels) <= 31
    assert {"attention.key_up", "attention.core", "moe.dispatch_send", "gate"} <= set(kernels)


def test_more_requests_and_more_context_take_longer_and_a_token_costs_less():
    model = model_of("decode_ep128_profile")
    times = [decode_step(model, batch, 4096).step_s for batch in (32, 64, 128)]
    assert times == sorted(times)
    per_token = [seconds / batch for seconds, batch in zip(times, (32, 64, 128), strict=True)]
    assert per_token == sorted(per_token, reverse=True)
    assert decode_step(model, 128, 8192).step_s > times[-1]


def test_chunks_cost_more_than_the_whole_prompt_they_are_cut_from():
    model = model_of("prefill_ep32_profile")
    whole = iteration(prefill_load(model, 16384, 8192)).step_s
    chunks = sum(
        iteration(prefill_load(model, 8192, 4096, cached=cached)).step_s for cached in (0, 4096)
    )
    assert chunks > whole


def test_a_prompt_as_large_as_the_pass_is_cut_between_micro_batches():
    model = model_of("prefill_ep32_profile")
    one = iteration(prefill_load(model, 16384, 16384))
    contexts = {
        number: next(
            op["kv_length"]
            for op in one.operators["moe", number].operators
            if op.kind == "attention_forward"
        )
        for number in (0, 1)
    }
    assert contexts == {0: 8192, 1: 16384}


def test_prompts_that_do_not_fill_a_micro_batch_cost_between_those_that_do():
    model = model_of("prefill_ep32_profile")
    times = [iteration(prefill_load(model, 16384, prompt)).step_s for prompt in (2048, 3000, 4096)]
    assert times == sorted(times)
    with pytest.raises(ValueError, match="at most tokens_per_gpu x attention_tp = 16384"):
        iteration(prefill_load(model, 16384, 20000))


def test_without_hiding_the_all_to_all_is_exposed():
    hidden = step_of("decode_ep128_profile")
    shown = step_of("decode_ep128_profile", "micro_batches=1", "overlap=none")
    assert shown.exposed_communication_s > 100 * hidden.exposed_communication_s


def test_skew_slows_the_step_and_ideal_ranks_are_shown_beside():
    scenario = load_scenario("prefill_ep32_h100", ["skew.rows.max_over_mean=1.5"])
    run = simulate_serving_step(scenario, recorded_trace)
    assert run.draws is not None
    assert run.draws.ranks.max_over_mean == pytest.approx(1.5, rel=1e-6)
    assert run.draws.expected_s > run.step.step_s
    assert run.without_slowdown.step_s <= run.step.step_s


def test_redundant_experts_even_out_the_ranks():
    skewed = ("skew.rows.zipf_exponent=0.5", "experts.placement=global")
    steps = {
        redundant: step_of("decode_ep32_b200", *skewed, f"experts.redundant={redundant}")
        for redundant in (0, 64)
    }
    draws = {number: step_draws(step, seed=0, samples=32) for number, step in steps.items()}
    assert draws[64].ranks.max_over_mean < draws[0].ranks.max_over_mean
    for number, drawn in draws.items():
        assert steps[number].step_s < drawn.expected_s


def test_tensor_parallelism_over_two_nodes_crosses_nics_once_and_nvlink_for_the_rest():
    two_nodes = ("gpus=16", "attention_tp=16", "expert_tp=16", "cluster.nodes=2")
    step = step_of("decode_tp8_h200", *two_nodes, "calibration.collectives=ideal")
    model = step.model
    assert not model.over_nvlink
    node, achieved = model.cluster.node, model.kernels.calibration.transfers
    # 128 tokens of 7,168 BF16 values. Over NICs a GPU receives the sixteenth of them that its
    # counterpart on the other node has; over NVLink seven eighths of them from its own node.
    gathered = 128 * 7168 * 2
    nic = node.nic_bandwidth_per_gpu * achieved.nic.value
    nvlink = node.gpu.nvlink_bandwidth * achieved.nvlink.value
    latency = node.nvlink_latency + model.cluster.fabric.same_leaf_latency
    expected = latency + gathered / 16 / nic + gathered * 7 / 8 / nvlink
    took = {row["name"]: row["seconds"] for row in operator_table(step) if row["layer"] == "dense"}
    for name in ("attention.gather", "attention.scatter", "mlp.gather", "mlp.scatter"):
        assert took[name] == pytest.approx(expected, rel=1e-12)
    # With NCCL's rows of H200 the nodes' own parts take as long as 8 GPUs took for 1.75 MiB.
    measured = step_of("decode_tp8_h200", *two_nodes)
    times = measured_collectives("nccl", gpu=node.gpu)
    took = {r["name"]: r["seconds"] for r in operator_table(measured) if r["layer"] == "dense"}
    between = model.cluster.fabric.same_leaf_latency + gathered / 16 / nic
    for name, operation in (("mlp.gather", "all_gather"), ("mlp.scatter", "reduce_scatter")):
        inside = times.predict(operation, gathered, ranks=8).seconds.item()
        assert took[name] == pytest.approx(inside + between, rel=1e-12)


def test_fewer_requests_than_gpus_share_them():
    few = ("requests.requests_per_gpu=null", "requests.requests_per_group=3")
    step = step_of("decode_tp8_h200", *few)
    sizes = {
        (kind, op.name): dict(op.sizes)
        for (kind, _), layer in step.operators.items()
        for op in layer.operators
    }
    assert sizes["dense", "attention.gather"]["rows"] == 3
    assert sizes["moe", "attention.core"]["sequences"] == 3
    assert sizes["moe", "gate"]["tokens"] == 1
    assert sizes["moe", "experts.gate_up_proj"]["rows"] == 3 * 8
    assert sizes["head", "head.proj"] == {"k": 7168, "m": 3, "n": 129280 // 8}
    run = simulate_serving_step(load_scenario("decode_tp8_h200", list(few)), recorded_trace)
    assert run.kv.needed_tokens == 3 * 4096


def test_one_prompt_on_a_group_is_computed_by_all_its_gpus():
    changes = (
        "cluster=h200_8", "gpus=8", "attention_tp=8", "expert_tp=8", "micro_batches=1",
        "overlap=none", "communication_sms=0", "requests.tokens_per_gpu=256",
        "requests.prompt_tokens=2048",
    )  # fmt: skip
    step = step_of("prefill_ep32_profile", *changes)
    sizes = {op.name: dict(op.sizes) for op in step.operators["moe", 0].operators}
    assert sizes["attention.kv_b_proj"] == {"k": 512, "m": 2048, "n": 32768 // 8}
    assert sizes["attention.core"]["sequences"] == 1
    assert sizes["experts.permute"]["tokens"] == 2048
    assert sizes["moe.add_shared"]["rows"] == 2048
    head = {op.name: dict(op.sizes) for op in step.operators["head", -1].operators}
    assert head["head.proj"] == {"k": 7168, "m": 1, "n": 129280 // 8}


def test_a_prefill_pass_gathers_the_tokens_that_it_has_cast():
    table = operator_table(
        step_of(
            "prefill_ep32_profile", "cluster=h200_8", "gpus=8", "attention_tp=8", "expert_tp=8",
            "micro_batches=1", "overlap=none", "communication_sms=0",
        )
    )  # fmt: skip
    took = {row["name"]: row["seconds"] for row in table if row["layer"] == "moe"}
    # FP8 values with their scales, and BF16 values; the latency is next to nothing here.
    assert took["moe.dispatch"] / took["moe.combine"] == pytest.approx(7408 / 14336, rel=1e-3)
    assert took["moe.combine"] == pytest.approx(took["attention.scatter"], rel=1e-3)


def test_a_batch_smaller_than_the_micro_batches_runs_in_one():
    model = model_of("decode_ep128_profile")
    one, two = decode_step(model, 1, 4096), decode_step(model, 2, 4096)
    assert one.model.job.micro_batches == 1
    assert two.model.job.micro_batches == 2
    assert one.rows == pytest.approx(8)
    assert one.step_s < two.step_s


def test_gpus_that_share_heads_work_on_the_requests_of_their_group():
    model = model_of("decode_tp8_h200")
    times = [decode_step(model, 1, 4096, group_batch=batch).step_s for batch in (1, 2, 4, 8)]
    assert times == sorted(times)
    assert times[0] < 0.9 * times[-1]
    assert times[-1] == decode_step(model, 1, 4096).step_s


def test_a_faster_nvlink_shortens_the_sends_of_a_deployment_that_uses_it():
    name = "cluster.node.gpu.nvlink_bandwidth"
    times = [step_of("decode_nvl72", f"{name}={rate} GB/s").step_s for rate in (450, 900, 1800)]
    assert times == sorted(times, reverse=True)
    assert times[0] > 1.05 * times[1]


TWO_NODES = (
    "gpus=16",
    "all_to_all.low_latency=deepep_h100_mixed",
    "requests.requests_per_gpu=16",
)
"""Of 8 tokens per GPU and micro-batch, 64 copies, half stay within the node."""


@pytest.mark.parametrize(
    ("changes", "slower_link_s"),
    [
        # Half of 1,024 copies in (101.8 - 20.3) us through NICs, here 32.
        ((), 81.5e-6 / 16),
        # NICs ten times as fast: NVLink decides, (35.119 - 11.9) us for 1,024 copies, here 32.
        (
            ("cluster.node.nic.bandwidth=4 Tbit/s", "cluster.node.gpu.pcie_bandwidth=1 TB/s"),
            23.219e-6 / 32,
        ),
    ],
)
def test_on_two_nodes_the_slower_of_nvlink_and_nics_decides(changes, slower_link_s):
    step = step_of("decode_ep72_h100", *TWO_NODES, *changes)
    floor = step.model.kernels.calibration.kernel_floor.value
    send, receive = (floor + (full - floor) / 16 for full in (36.7e-6, 9e-6))
    assert longest(step, "dispatch_send") == pytest.approx(send)
    assert longest(step, "dispatch_receive") == pytest.approx(receive)
    whole = 20.3e-6 + slower_link_s
    assert longest(step, "dispatch_wire") == pytest.approx(whole - send - receive)


def test_a_send_kernel_that_stores_over_a_slow_nvlink_takes_as_long_as_that():
    step = step_of("decode_ep72_h100", *TWO_NODES, "cluster.node.gpu.nvlink_bandwidth=100 GB/s")
    floor = step.model.kernels.calibration.kernel_floor.value
    # 26.1 us for 1,024 copies at 450 GB/s, here 32 at 100 GB/s; posting needs less.
    stored = floor + (26.1e-6 - floor) * 32 / 1024 * 450 / 100
    assert stored > floor + (36.7e-6 - floor) / 16
    assert longest(step, "dispatch_send") == pytest.approx(stored)


def test_the_mixed_form_within_one_node_is_the_form_over_nvlink():
    node = ("gpus=8", "cluster=h200_32", "experts.redundant=0", "requests.requests_per_gpu=16")
    mixed, nvlink = (
        step_of("decode_ep72_h100", *node, f"all_to_all.low_latency=deepep_{form}")
        for form in ("h100_mixed", "h200_nvlink")
    )
    assert mixed.model.over_nvlink
    assert mixed.step_s == nvlink.step_s


@pytest.mark.parametrize("name", ["decode_ep72_h100", "prefill_ep32_h100"])
@pytest.mark.parametrize(
    "changes",
    [
        ["cluster.node.nic.bandwidth=200 Gbit/s"],
        ["cluster.fabric.switch_ports=16", "cluster.fabric.oversubscription=3"],
        ["cluster.failures=['nic:node1/nic2']"],
    ],
)
def test_slower_nics_and_fabrics_lengthen_the_transfers(name, changes):
    steps = [step_of(name, *changes), step_of(name)]
    for part in ("dispatch_wire", "combine_wire"):
        slower, usual = (longest(step, part) for step in steps)
        assert slower > 1.1 * usual
    assert steps[0].step_s > steps[1].step_s
    assert steps[0].exposed_communication_s > steps[1].exposed_communication_s


def test_normal_transfers_inside_an_nvlink_domain_take_no_nic():
    def prefill(nic):
        changes = ("cluster=gb200_nvl72", f"cluster.node.nic.bandwidth={nic} Gbit/s")
        return step_of("prefill_ep32_profile", *changes)

    step = prefill(400)
    assert step.model.over_nvlink
    assert step.step_s == prefill(4).step_s
    assert step.step_s < step_of("prefill_ep32_profile", "cluster=b200_32").step_s


def test_experts_spread_over_all_nodes_lengthen_normal_transfers():
    name = "prefill_ep32_profile"
    grouped, spread = step_of(name), step_of(name, "experts.placement=global")
    # 3.61 nodes of 4 in the place of 3.12, a quarter of them the token's own.
    ratio = longest(spread, "combine_wire") / longest(grouped, "combine_wire")
    assert ratio == pytest.approx(3.61 / 3.12, rel=0.03)


def test_a_fabric_whose_nics_decide_leaves_transfers_as_published():
    # 16 nodes lie under one leaf of each plane: what its leaves pass on to others is not asked for.
    usual = step_of("decode_ep128_profile").step_s
    assert step_of("decode_ep128_profile", "cluster.fabric.oversubscription=3").step_s == usual
    assert step_of("decode_ep128_profile", "cluster.fabric.cross_leaf_latency=5 us").step_s > usual


def longest(step, part):
    """Seconds of the longest task of a part."""
    return max(seconds.max() for seconds in longest_of_ranks(step, part))


def longest_of_ranks(step, part):
    """Seconds of each task of a part in the mixture-of-experts layers, [ranks] each."""
    graph = step.log.graph
    return [
        np.atleast_1d(step.seconds[number])
        for number, task in enumerate(graph.tasks)
        if task.part == part and graph.layers[task.layer] == "moe"
    ]


def test_drafts_take_one_token_of_each_request_after_the_first():
    step = step_of("mtp_ep128", "speculative_decoding.draft_tokens=2")
    rows = {
        (kind, operator.name): operator["m"]
        for (kind, _), layer in step.operators.items()
        for operator in layer.operators
        if operator.name in ("head.proj", "attention.o_proj")
    }
    # 64 requests of which 3 tokens are verified, 32 in a micro-batch.
    assert rows["head", "head.proj"] == 64 * 3
    assert rows["mtp", "attention.o_proj"] == 32 * 3
    assert rows["mtp_next", "attention.o_proj"] == 32
    assert rows["mtp_head", "head.proj"] == 64
    calls = np.bincount([task.layer for task in step.log.graph.tasks])
    assert step.log.graph.layers[-4:] == ("mtp", "mtp_head", "mtp_next", "mtp_head")
    assert calls[-1] == 3


def test_drafting_gains_least_on_a_node_where_it_touches_almost_twice_the_experts():
    run = simulate_serving_step(load_scenario("mtp_one_node"), recorded_trace)
    gains = {point.batch: point for point in run.speculation_curve}
    up_to_64 = {batch: point.speed_up for batch, point in gains.items() if batch <= 64}
    # By hand, weights alone over 4.8 TB/s: 18.2 GB that every step reads and 2.55 GB for each
    # expert that the busiest GPU touches give 1.49 at one request, 1.34 at 8, 1.36 at 16 and 1.73
    # at 64. Gaps, tiny kernels and latencies, which verification does not double, add to each but
    # the last, where attention, which computes twice for two queries, takes more than they add.
    assert min(up_to_64, key=up_to_64.__getitem__) in (4, 8, 16)
    for batch, by_hand in ((1, 1.49), (8, 1.34), (16, 1.36)):
        assert by_hand < up_to_64[batch] < 0.9 * 1.875
    assert 0.9 * 1.73 < up_to_64[64] < 1.73
    assert gains[8].active_experts > 1.7 * gains[8].active_experts_without


def test_gpus_that_share_heads_draft_for_the_requests_of_their_groups():
    changes = ["attention_tp=8", "requests.requests_per_gpu=1"]
    run = simulate_serving_step(load_scenario("mtp_one_node", changes), recorded_trace)
    steps = [point.step_without_s for point in run.speculation_curve]
    assert steps == sorted(steps)
    # Heads are split over 8 GPUs, so that each reads an eighth of their weights.
    one = simulate_serving_step(load_scenario("mtp_one_node"), recorded_trace)
    assert steps[0] < 0.9 * one.speculation_curve[0].step_without_s


def test_transfers_that_keep_no_sms_are_limited_by_links_and_leave_all_to_compute():
    step = simulate(load_scenario("prefill_ep32_profile", ["communication_sms=0"])).result.step
    transfers = step.model.transfers
    for operator in step.operators["moe", 0].operators:
        if operator.kind in ALL_TO_ALL_KINDS:
            links, kernel = (
                transfers.explain(operator, sms=sms, overlapped=True, load=step.model.kernels.load)
                for sms in (0, 24)
            )
            assert links == replace(kernel, kernel_s=None, copy_s=0.0)
            assert links.seconds < kernel.seconds
    kept = simulate(load_scenario("prefill_ep32_profile", ["communication_sms=24"])).result.step
    assert step.step_s < kept.step_s


def test_failures_that_a_step_over_nvlink_would_ignore_are_refused():
    failing = load_scenario("decode_ep8_h200", ["cluster.failures=['nic:node0/nic0']"])
    with pytest.raises(ValueError, match="transfers go over NVLink, whose failures are not"):
        simulate(failing)


def decode_core(step):
    """Row of the attention core in the table of operators."""
    return next(row for row in operator_table(step) if row["name"] == "attention.core")


@pytest.mark.parametrize(
    ("name", "gpu", "ends"),
    [
        ("decode_ep8_h200", "hopper", (1.03, 1.0, 1.1)),
        ("decode_ep32_b200", "blackwell", (0.62, 0.44, 0.95)),
    ],
)
def test_an_fp8_cache_is_read_in_its_own_time(name, gpu, ends):
    bf16 = step_of(name)
    fp8 = step_of(name, "memory.kv_cache=fp8_e4m3")
    assert fp8.model.cluster.node.gpu.architecture == gpu
    before, after = decode_core(bf16), decode_core(fp8)
    assert after["seconds"] == pytest.approx(ends[0] * before["seconds"], rel=1e-12)
    assert after["provenance"] == "modelled"
    ratio = fp8.model.cache_ratio
    assert (ratio.value, ratio.low, ratio.high) == ends
    others = [
        (row["name"], row["seconds"])
        for step in (bf16, fp8)
        for row in operator_table(step)
        if row["name"] != "attention.core"
    ]
    assert others[: len(others) // 2] == others[len(others) // 2 :]


def test_the_ratio_of_an_fp8_cache_is_an_input():
    name = "decode_ep8_h200"
    changes = ("memory.kv_cache=fp8_e4m3", "calibration.fp8_cache.hopper.value=1.1")
    before, after = decode_core(step_of(name)), decode_core(step_of(name, *changes))
    assert after["seconds"] == pytest.approx(1.1 * before["seconds"], rel=1e-12)


def test_a_prefill_pass_takes_the_same_time_over_an_fp8_cache():
    name = "prefill_ep32_profile"
    assert step_of(name, "memory.kv_cache=fp8_e4m3").step_s == step_of(name).step_s


def test_copies_of_a_shared_expert_that_travels_share_its_tokens():
    model = model_of("decode_ep320_report")
    placement, _ = placed_experts(model, None)
    # One expert more than the routed ones, which every token goes to: 8 times their mean popularity
    # each, 1 for it, over 320 slots.
    assert placement.experts == 257
    assert placement.slots.shape[1] == 320
    shared = placement.copies[:, 256]
    assert np.all((shared >= 20) & (shared <= 40))


def test_more_racks_change_nothing_for_a_deployment_of_one_and_none_is_joined_to_another():
    one = simulate(load_scenario("decode_nvl72")).result.step
    assert (
        simulate(load_scenario("decode_nvl72", ["cluster.nodes=64"])).result.step.step_s
        == one.step_s
    )
    with pytest.raises(ValueError, match="NVLink, which joins 72 GPUs of gb200_nvl72, not 144"):
        simulate(load_scenario("decode_nvl72", ["cluster.nodes=64", "gpus=144"]))


@pytest.mark.parametrize(
    ("requests", "send_us"), [(2, 7.400), (8, 7.489), (64, 8.322), (256, 13.650)]
)
def test_within_a_domain_more_requests_never_leave_less_to_the_wire(requests, send_us):
    # Each micro-batch sends 8 copies of half the requests, 7,408 B each. 1,024 took 35.119 us on
    # 450 GB/s, 11.9 of it whatever their number; here NVLink has 900 GB/s. The send kernel takes
    # what the receive kernel and NVLink's 3.33 us leave of that, or 26.1 us of 1,024 copies.
    copies = 8 * requests / 2
    published = 11.9 + copies / 1024 * (35.119 - 11.9) / 2
    receive = 1.2 + (9 - 1.2) * copies / 1024
    stores = 1.2 + (26.1 - 1.2) * copies / 1024 / 2
    assert max(published - 3.33 - receive, stores) == pytest.approx(send_us, abs=5e-4)
    step = step_of("decode_nvl72", f"requests.requests_per_gpu={requests}")
    assert longest(step, "dispatch_send") == pytest.approx(send_us * 1e-6, rel=1e-4)
    for operation in ("dispatch", "combine"):
        assert longest(step, f"{operation}_wire") == pytest.approx(3.33e-6)


def test_one_gpu_sends_nothing_and_casts_and_copies_as_the_model_does():
    """Wires take no time; the kernels at their ends are the model's, not those of a transfer."""
    one = str(SCENARIOS.parent / "whole" / "decode.yaml")
    step = simulate(load_scenario(one)).result.step
    seconds = dict.fromkeys(("dispatch_wire", "combine_wire", "dispatch_send"), 0.0)
    for task, took in zip(step.log.graph.tasks, step.seconds, strict=True):
        if task.part in seconds:
            seconds[task.part] += float(took)
    assert seconds["dispatch_wire"] == seconds["combine_wire"] == 0.0
    casts = [
        float(took)
        for task, took in zip(step.log.graph.tasks, step.seconds, strict=True)
        if step.log.graph.operators[task.operator].name == "shared_experts.quantize_input"
    ]
    assert casts == pytest.approx([2.57895e-6] * 3, rel=1e-12)
    assert seconds["dispatch_send"] == pytest.approx(sum(casts), rel=1e-12)


def test_a_decode_step_launched_kernel_by_kernel_takes_at_least_its_launches():
    """114 kernels at 0.2 ms; the six wires of three layers are none."""
    one = str(SCENARIOS.parent / "whole" / "decode.yaml")
    step = simulate(load_scenario(one, ["host_launch=0.2 ms"])).result.step
    assert step.step_s == step.host_s == pytest.approx(114 * 0.2e-3)
