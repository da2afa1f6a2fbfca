"""What a serving scenario may ask for, and what stands beside its step."""

import pytest

from hardware_profiles.fields import ROOT
from hardware_profiles.low_latency_kernels import FOLDER
from simulator.analysis.run import simulate
from simulator.execution.serving_run import prepare_serving, simulate_serving_step
from simulator.execution.serving_step import serving_step
from simulator.scenario.files import load_scenario
from simulator.workload.memory import Infeasible
from simulator.workload.recorded import recorded_trace


def model_of(name, *changes):
    scenario = load_scenario(name, list(changes))
    return prepare_serving(scenario, scenario.job, recorded_trace)


def step_of(name, *changes):
    return serving_step(model_of(name, *changes))


@pytest.mark.parametrize(
    ("scenario", "named", "used"),
    [
        # Kernels over NVLink of a shipped profile are those that the calibration timed.
        ("decode_ep8_h200", "deepep_h200_nvlink", "deepep_h800_nvlink"),
        ("decode_ep8_h200", "deepep_h100_mixed", "deepep_h800_nvlink"),
        # Pure RDMA is another kernel, a file of the user's own is meant.
        ("decode_ep8_h200", "deepep_h800_rdma", "deepep_h800_rdma"),
        ("decode_ep8_h200", "{folder}/deepep_h200_nvlink.yaml", "deepep_h200_nvlink"),
        # The calibration is of an H200.
        ("decode_ep72_h100", "deepep_h100_mixed", "deepep_h100_mixed"),
    ],
)
def test_timed_low_latency_kernels_of_the_gpu_stand_in_for_shipped_ones(scenario, named, used):
    model = model_of(
        scenario,
        "calibration=h200_sxm",
        "calibration.low_latency_kernels=deepep_h800_nvlink",
        f"all_to_all.low_latency={named.format(folder=FOLDER)}",
    )
    assert model.low_latency.name == used


@pytest.mark.parametrize(
    ("rate", "on_shipped"), [("4.8 TB/s", "deepep_h800_nvlink"), ("6 TB/s", "deepep_h200_nvlink")]
)
def test_a_gpu_of_the_user_is_the_calibrations_by_what_its_file_says(rate, on_shipped, tmp_path):
    path = tmp_path / "mine.yaml"
    shipped = (ROOT / "gpus" / "h200_sxm.yaml").read_text()
    mine = shipped.replace("name: h200_sxm", "name: my_gpu")
    path.write_text(mine.replace("hbm_bandwidth: 4.8 TB/s", f"hbm_bandwidth: {rate}"))
    own = ("calibration.low_latency_kernels=deepep_h800_nvlink", f"calibration.gpu={path}")
    here = model_of("decode_ep8_h200", *own, f"cluster.node.gpu={path}")
    assert here.low_latency.name == "deepep_h800_nvlink"
    # A job that changes a rate stays on the GPU that its file describes.
    faster = (f"cluster.node.gpu={path}", "cluster.node.gpu.hbm_bandwidth=8 TB/s")
    assert model_of("decode_ep8_h200", *own, *faster).low_latency.name == "deepep_h800_nvlink"
    # The shipped H200 is the user's GPU where the file is a copy but for the name.
    assert model_of("decode_ep8_h200", *own).low_latency.name == on_shipped


def test_between_domains_they_stand_in_for_the_copies_within_one():
    changes = ("calibration.low_latency_kernels=deepep_h800_nvlink", "cluster=h200_32", "gpus=16")
    model = model_of("decode_ep8_h200", *changes, "all_to_all.low_latency=deepep_h100_mixed")
    assert model.low_latency.name == "deepep_h100_mixed"
    assert model.low_latency.within.name == "deepep_h800_nvlink"


RECIPES = ("fp8", "bf16", "int4")


def expert_product(step):
    """The gate and up projection of a layer's experts."""
    return next(
        op for op in step.operators["moe", 0].operators if op.name == "experts.gate_up_proj"
    )


def test_a_decode_step_reads_weights_of_its_recipe_and_takes_as_long():
    steps = [step_of("decode_tp8_h200", "model=moonlight", f"recipe={r}") for r in RECIPES]
    # 64 requests of 6 experts each on all 64 of them, an eighth of 2 x 1,408 columns on each GPU.
    rows, columns, hidden = 64 * 6, 2 * 1408 // 8, 2048
    counts = 64 * 4
    assert [expert_product(step).bytes_read for step in steps] == [
        rows * (hidden + 16 * 4) + 64 * (columns * hidden + 3 * 16 * 4) + counts,
        2 * (rows * hidden + 64 * columns * hidden) + counts,
        2 * rows * hidden + 64 * columns * (hidden // 2 + 2 * hidden // 32) + counts,
    ]
    fp8, bf16, int4 = (step.step_s for step in steps)
    assert int4 < fp8 < bf16


def test_a_prefill_pass_multiplies_in_the_type_of_its_recipe_and_takes_as_long():
    steps = [step_of("prefill_ep32_h100", "model=moonlight", f"recipe={r}") for r in RECIPES]
    assert [expert_product(step).dtype for step in steps] == ["fp8_e4m3", "bfloat16", "w4a16_g32"]
    # Of 16,384 tokens in two micro-batches, 6 choices each, on 3 experts of 2,816 columns.
    for step in steps:
        product = expert_product(step)
        assert product.flops == 2 * 8192 * 6 * 2816 * 2048
    fp8, bf16, int4 = (step.step_s for step in steps)
    assert fp8 < int4
    assert int4 == pytest.approx(bf16, rel=0.01)


def test_few_requests_touch_few_experts():
    step = step_of("mtp_one_node", "speculative_decoding=null")
    # 8 tokens of 8 choices over 8 GPUs: 8 rows, on 32 (1 - (31 / 32) ** 8) experts.
    assert step.rows == 8.0
    assert step.active_experts == pytest.approx(32 * (1 - (31 / 32) ** 8), rel=1e-12)


def test_drafting_stops_paying_where_compute_binds():
    changes = ["requests.context_tokens=512", "memory.buffer_tokens=512"]
    run = simulate_serving_step(load_scenario("mtp_ep128", changes), recorded_trace)
    largest = run.speculation_curve[-1]
    assert largest.batch == 256 * 2 * 128
    assert 1.875 / 2.2 < largest.speed_up < 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("gpus=4096", "gpus 4096: allowed: at most the 2048"),
        ("experts.redundant=3", "128 GPUs do not divide them; allowed: 0 redundant"),
        ("requests.context_tokens=null", "phase decode takes"),
        ("overlap=none", "allowed: two_micro_batches with 2"),
        ("all_to_all.low_latency=deepep", "unknown low-latency profile"),
        (
            "memory.kv_cache=fp8_e4m3 cluster.node.gpu=rtx_4090",
            r"does not say what the attention core takes over an FP8 cache on ada .*allowed: "
            "memory.kv_cache=bfloat16, or calibration.fp8_cache.ada=",
        ),
        ("memory.buffer_tokens=16", "memory.buffer_tokens 16: a micro-batch has 64"),
        ("skew.rows=popularity", "form popularity needs exactly one of zipf_exp"),
        ("attention_tp=3", "attention_tp 3 does not divide"),
        ("communication_sms=20", "communication_sms 20: allowed: 0, as only normal"),
        # Of a token's 8 choices at most 2 are on a GPU of 2 slots, where the mean has 8 / 128.
        (
            "skew.rows.max_over_mean=33",
            "skew.rows.max_over_mean 33: allowed: at most 32, as",
        ),
        (
            'all_to_all={"kernels":"normal"}',
            "kernels normal: allowed in phase prefill only; decode takes kernels low_latency, .* "
            "or expert_tp 128",
        ),
        ("experts.shared_expert=dispatched", "with experts.redundant of at least 1"),
        ("dense_tp=2", "dense_tp 2: allowed with attention_tp 1 and expert_tp 1: 1"),
        ("vocabulary_tp=8", "vocabulary_tp 8: allowed with attention_tp 1 and expert_tp 1: 1"),
        ("shared_expert_tp=8", "shared_expert_tp 8: allowed with attention_tp 1 and expert_tp 1"),
        ("requests.requests_per_group=8", "either requests_per_gpu or requests_per_group, no oth"),
        ("expert_tp=2", "expert_tp 2: allowed: 1, or all 128 GPUs"),
        ("all_to_all.low_latency=deepep_h800_nvlink", "which joins 8 GPUs of h800_2048, not 128"),
        ("cluster.failures=['node:node1']", "cluster.failures: no live path from GPU 0 to GPU 8"),
        ("cluster.failures=['plane:3@2s']", "plane:3@2s: a serving step knows what is broken from"),
    ],
)
def test_bad_input_is_one_clear_line(change, message):
    def run():
        simulate(load_scenario("decode_ep128_profile", change.split(" ")))

    with pytest.raises(ValueError, match=message) as error:
        run()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mtp_ep128", "head=false", "speculative_decoding: allowed with head true only"),
        ("decode_ep320_report", "requests.idle_gpus=1", "whole groups of the 4 GPUs that share"),
        ("decode_tp8_h200", "communication_sms=8", "communication_sms 8: allowed: 0"),
        ("decode_ep144_day6", "attention_tp=12", "12: allowed: at most the 8 GPUs that NVLink joi"),
    ],
)
def test_inputs_that_a_step_would_ignore_are_refused(name, change, message):
    with pytest.raises(ValueError, match=message):
        simulate(load_scenario(name, [change]))


def test_a_batch_that_does_not_fit_the_cache_is_infeasible():
    scenario = load_scenario("decode_ep128_profile", ["requests.requests_per_gpu=256"])
    with pytest.raises(Infeasible, match="more than the"):
        simulate_serving_step(scenario, recorded_trace)
