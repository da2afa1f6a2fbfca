"""What the iterations of one deployment share."""

import pytest

from simulator.analysis.serving_metrics import operator_table
from simulator.execution.serving_run import prepare_serving
from simulator.execution.serving_step import decode_step, serving_step
from simulator.scenario.files import load_scenario
from simulator.workload.recorded import recorded_trace
from simulator.workload.serving_memory import micro_batch_tokens


def model_of(name, *changes):
    scenario = load_scenario(name, list(changes))
    return prepare_serving(scenario, scenario.job, recorded_trace)


def step_of(name, *changes):
    return serving_step(model_of(name, *changes))


@pytest.mark.parametrize(
    ("name", "changes", "skew"),
    [
        # 288 slots: 32 experts lie twice. Their 64 half-loaded slots reach 64 of 72 GPUs, so that 8
        # hold 4 whole experts where the mean is 256 / 72.
        ("decode_ep72_h100", [], 4 * 72 / 256),
        ("decode_ep72_h100", ["experts.placement=in_order"], 4 * 72 / 256),
        ("decode_nvl72", [], 4 * 72 / 256),
        # The same 64 half slots on 144 GPUs of 2: the other 80 hold 2 whole ones.
        ("decode_ep144_day6", [], 2 * 144 / 256),
        # 288 slots on 32 GPUs: each 7 whole ones and 2 halves.
        ("decode_ep32_b200", [], 1.0),
        ("prefill_ep32_h100", [], 1.0),
        # 416 slots without expert groups, placed globally: each GPU 11 whole ones and 2 halves.
        ("prefill_ep32_h100", ["model=kimi_k2"], 1.0),
        # No copies: nothing is uneven.
        ("decode_ep128_profile", [], 1.0),
        # 320 slots of one: an expert that all tokens choose has 32 copies, which carry as much as
        # the routed experts without a copy, 1 / 32 of the tokens each; the mean is 9 / 320.
        ("decode_ep320_report", [], 320 / 32 / 9),
    ],
)
def test_a_balanced_load_is_what_placement_allows(name, changes, skew):
    step = step_of(name, *changes)
    each = micro_batch_tokens(step.model.job)
    assert step.rows / step.mean_rows == pytest.approx(skew, rel=1e-12)
    assert step.mean_rows == each * step.model.choices
    rows = next(
        op["rows"] for op in step.operators["moe", 0].operators if op.name == "experts.gate_up_proj"
    )
    assert rows == round(each * step.model.choices * skew)


def test_the_busiest_gpus_link_carries_what_its_slots_receive():
    step = step_of("decode_ep72_h100")
    sizes = {op.name: dict(op.sizes) for op in step.operators["moe", 0].operators}
    # A micro-batch of 128 tokens sends 8 copies each; 4 whole experts receive 128 x 72 x 8 / 256
    # copies each.
    assert sizes["moe.dispatch_send"]["rows"] == 128
    assert sizes["moe.dispatch_receive"]["rows"] == 4 * 128 * 72 * 8 // 256 == 1152
    assert sizes["moe.combine_send"]["rows"] == 1152


def test_experts_split_over_all_gpus_read_only_those_that_are_drawn():
    step = step_of("decode_tp8_h200", "requests.requests_per_gpu=1")
    groups = next(
        op["groups"] for op in step.operators["moe", 0].operators if "groups" in dict(op.sizes)
    )
    # 8 tokens choose 8 of 256 experts each: 256 (1 - (255 / 256) ** 64) = 56.7 different ones.
    assert groups == 57
    full = step_of("decode_tp8_h200", "requests.requests_per_gpu=32")
    assert step.step_s < 0.75 * full.step_s


def test_experts_split_over_all_gpus_move_each_token_once_each_way():
    table = operator_table(step_of("decode_tp8_h200"))
    took = {row["name"]: row["seconds"] for row in table if row["layer"] == "moe"}
    # 64 tokens in BF16, seven eighths of them from other GPUs, as around the attention.
    assert took["moe.dispatch_wire"] == pytest.approx(took["attention.gather"])
    assert took["moe.combine_wire"] == pytest.approx(took["attention.scatter"])


def test_active_experts_grow_smoothly_with_the_rows_of_a_balanced_load():
    model = model_of("decode_ep8_h200")
    active = [decode_step(model, batch, 4096).active_experts for batch in (1, 2, 4, 8, 64)]
    expected = [32 * (1 - (31 / 32) ** (8 * batch)) for batch in (1, 2, 4, 8, 64)]
    assert active == pytest.approx(expected)
    times = [decode_step(model, batch, 4096).step_s for batch in (1, 2, 4, 8)]
    assert times == sorted(times)


"""Of 8 tokens per GPU and micro-batch, 64 copies, half stay within the node."""


@pytest.mark.parametrize("name", ["decode_ep128_profile", "prefill_ep32_h100"])
def test_a_model_without_experts_has_no_uneven_rows_and_no_micro_batches(name):
    dense = "model.first_k_dense_replace=61"
    step = step_of(name, dense)
    assert step.model.job.skew.rows.form == "balanced"
    assert step.model.graph.layers == ("embedding", *["dense"] * 61, "head")
    alone = step_of(name, dense, "micro_batches=1", "overlap=none", "communication_sms=0")
    assert step.log.span_s == alone.log.span_s


def test_one_gpu_decodes_the_same_whether_experts_are_spread_or_split_over_it():
    alone = ("model=moonlight_16b_a3b", "gpus=1", "requests.requests_per_gpu=32")
    split = step_of("decode_tp8_h200", *alone, "attention_tp=1", "expert_tp=1")
    spread = step_of("decode_ep8_h200", *alone)
    assert split.log.span_s == spread.log.span_s
    with pytest.raises(ValueError, match="kernels normal: allowed in phase prefill only"):
        step_of("decode_tp8_h200", "gpus=2", "attention_tp=1", "expert_tp=1")
