"""Recipes: operators derived from an FP8 recording equal those of a recording, and GPUs that lack
a type are named with a way out."""

import pytest

from hardware_profiles.schema import load_gpu
from reference_model.config import load_model_config
from reference_model.inference_recorder import record_inference_trace
from reference_model.precision import Recipe as Precision
from simulator.scenario.files import load_scenario
from simulator.scenario.inputs import RecipeName
from simulator.workload.recipes import RECIPES, check_multiplied, in_recipe
from simulator.workload.recorded import recorded_trace

DEBUG = load_model_config("debug")
V3 = load_model_config("deepseek_v3")


def operators(name, job, layer="moe", model=V3):
    trace = recorded_trace(model, job, name)
    return {t.name: (t.kind, t.dtype, t.out_dtype) for t in trace.templates[layer, "forward"]}


def test_every_name_of_a_scenario_is_a_recipe():
    assert set(RECIPES) == set(RecipeName.__args__)


@pytest.mark.parametrize("job", ["prefill", "decode"])
def test_bf16_operators_of_serving_are_those_that_a_recording_holds(job):
    precision = Precision("bfloat16", "reference")
    recorded = record_inference_trace(DEBUG, job=job, model="debug", recipe=precision)
    assert in_recipe(recorded_trace(DEBUG, job), "bfloat16").templates == recorded.templates


def test_int4_experts_read_bf16_rows_and_nothing_is_quantised():
    found = operators("int4", "decode")
    assert found["experts.gate_up_proj"] == ("masked_grouped_gemm", "w4a16_g32", "bfloat16")
    assert found["shared_experts.gate_up_proj"] == ("gemm", "bfloat16", "bfloat16")
    assert found["attention.o_proj"] == ("gemm", "bfloat16", "bfloat16")
    assert found["experts.swiglu"] == ("swiglu", "bfloat16", "bfloat16")
    # What is left of the send kernel casts nothing.
    assert [name for name, (kind, *_) in found.items() if kind == "quantize"] == [
        "moe.dispatch_send"
    ]
    assert found["moe.dispatch_send"] == ("quantize", "bfloat16", "bfloat16")


def test_nvfp4_leaves_attention_in_bf16_and_with_o_proj_all_but_its_output():
    plain, whole = operators("nvfp4", "prefill"), operators("nvfp4_o_proj", "prefill")
    assert plain["attention.o_proj"] == ("gemm", "bfloat16", "bfloat16")
    assert "attention.o_proj.quantize_input" not in plain
    assert whole["attention.o_proj"] == ("gemm", "fp4_e2m1", "bfloat16")
    assert whole["attention.o_proj.quantize_input"] == ("quantize", "bfloat16", "fp4_e2m1")
    for found in (plain, whole):
        assert found["attention.q_b_proj"] == ("gemm", "bfloat16", "bfloat16")
        assert found["experts.down_proj"] == ("grouped_gemm", "fp4_e2m1", "bfloat16")
        assert found["moe.dispatch"] == ("dispatch", "fp4_e2m1", "fp4_e2m1")
    module = operators("nvfp4", "prefill", "mtp")
    assert module["experts.down_proj"] == ("grouped_gemm", "bfloat16", "bfloat16")


def test_mxfp8_training_casts_weights_along_both_dimensions_in_the_place_of_transposing():
    fp8, mxfp8 = (recorded_trace(V3, "train", name) for name in ("fp8", "mxfp8"))
    assert mxfp8.saved == fp8.saved
    for key, section in fp8.templates.items():
        kept = [t for t in section if t.kind != "transpose"]
        types = {"fp8_e4m3": "mxfp8_e4m3"}
        assert [(t.name, types.get(t.dtype, t.dtype)) for t in kept] == [
            (t.name, t.dtype) for t in mxfp8.templates[key]
        ]


def test_a_gpu_without_the_type_is_named_with_recipes_that_it_has_and_gpus_that_have_it():
    message = (
        "^recipe nvfp4: the tensor cores of h100_sxm do not multiply fp4_e2m1; allowed on it: "
        "recipe fp8, bfloat16, int4, int4_128, fp8_per_tensor; GPUs that do: b200_sxm, gb200$"
    )
    with pytest.raises(ValueError, match=message):
        check_multiplied("nvfp4", load_gpu("h100_sxm"), field="recipe", allowed=RECIPES)
    check_multiplied("mxfp8", load_gpu("gb200"), field="recipe", allowed=RECIPES)


def test_the_recipe_of_a_job_comes_before_that_of_its_model():
    assert load_scenario("decode_tp8_h200", ["recipe=bf16"]).job.recipe == "bfloat16"
    assert load_scenario("decode_tp8_h200").job.recipe is None
    with pytest.raises(ValueError, match=r"serving_step\.recipe: .*'int8'.*'fp8', 'bfloat16'"):
        load_scenario("decode_tp8_h200", ["recipe=int8"])
