"""Configs as people hold them are read; other families and formats are refused by name."""

import json

import pytest

from reference_model.config import CONFIG_FOLDER, load_model_config, parse_model_config

BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
INT4 = {"num_bits": 4, "type": "int", "group_size": 32, "strategy": "group"}


@pytest.fixture
def raw():
    return json.loads((CONFIG_FOLDER / "debug.json").read_text())


def test_a_config_wrapped_in_text_config_is_that_of_its_language_model(raw):
    wrapped = {"model_type": "some_vl", "vision_config": {"hidden_size": 7}, "text_config": raw}
    assert parse_model_config(wrapped, source="vl") == load_model_config("debug")
    with pytest.raises(ValueError, match="vl: text_config = 3 must be an object of fields"):
        parse_model_config({"text_config": 3}, source="vl")


def test_quantisation_beside_a_wrapped_config_is_not_overlooked(raw):
    wrapped = {"text_config": raw, "quantization_config": {"quant_method": "mxfp4"}}
    with pytest.raises(ValueError, match="quantization_config: mxfp4 is not modelled yet"):
        parse_model_config(wrapped, source="vl")


GROUPED_BLOCKS = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "FP8_BLOCK": {"weights": {"type": "float", "num_bits": 8, "block_structure": [128, 128]}}
    },
}


@pytest.mark.parametrize("stored", [None, BLOCKS, BLOCKS | {"scale_fmt": "ue8m0"}, GROUPED_BLOCKS])
def test_fp8_in_blocks_of_128_by_128_is_what_no_quantisation_means_too(raw, stored):
    found = parse_model_config(raw | {"quantization_config": stored}, source="x")
    assert found == load_model_config("debug")


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": INT4}},
            },
            "compressed-tensors INT4 in groups of 32",
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt NVFP4"),
        ({"quant_method": "gptq", "bits": 4}, "gptq INT4"),
        ({"quant_method": "awq", "bits": 4}, "awq INT4"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "fp8"}, "fp8 per tensor"),
        (BLOCKS | {"weight_block_size": [64, 64]}, r"fp8 in blocks of \[64, 64\]"),
        ({}, "a format without quant_method"),
    ],
)
def test_another_quantisation_is_one_line_with_its_name_and_a_way_out(raw, stored, name):
    message = (
        rf"^my\.json: quantization_config: {name} is not modelled yet; allowed: fp8 in blocks of "
        r"128 x 128; without the field weights count as FP8$"
    )
    with pytest.raises(ValueError, match=message):
        parse_model_config(raw | {"quantization_config": stored}, source="my.json")


def test_a_quantisation_that_is_no_object_is_an_error(raw):
    with pytest.raises(ValueError, match="quantization_config = 'fp8' must be an object"):
        parse_model_config(raw | {"quantization_config": "fp8"}, source="my.json")


GROUPED_QUERY = {"num_attention_heads": 64, "num_key_value_heads": 4, "hidden_size": 4096}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "qwen3_moe", **GROUPED_QUERY},
            "Qwen3-MoE is not modelled: grouped-query attention, 4 heads of keys and values for 64",
        ),
        ({"model_type": "glm4_moe", **GROUPED_QUERY}, "GLM-4.5 is not modelled: grouped-query"),
        (
            {"architectures": ["NewForCausalLM"], **GROUPED_QUERY},
            "NewForCausalLM is not modelled: grouped-query",
        ),
        (
            {"model_type": "llama", "num_attention_heads": 32},
            "Llama is not modelled: attention without a latent",
        ),
        (
            {"model_type": "deepseek_v4", "index_topk": 1024, "num_key_value_heads": 1},
            "DeepSeek-V4 is not modelled: compressed attention, hyper-connections and FP4 experts",
        ),
        ({"model_type": "kimi_k3"}, "Kimi-K3 is not modelled: attention other than"),
        (
            {"model_type": "hybrid", "linear_attn_config": {}},
            "hybrid is not modelled: linear attention",
        ),
        (
            {"model_type": "minicpm3", "kv_lora_rank": 256},
            "minicpm3 is not modelled: layers without experts",
        ),
    ],
)
def test_another_family_is_named_with_what_is_missing(fields, message):
    with pytest.raises(ValueError, match=rf"^my\.json: {message}") as error:
        parse_model_config(fields, source="my.json")
    assert "allowed: models like DeepSeek-V3" in str(error.value)


@pytest.mark.parametrize(
    ("kind", "name"), [("deepseek_v32", "DeepSeek-V3.2"), ("glm_moe_dsa", "GLM-5")]
)
def test_sparse_attention_is_refused_by_name_and_without_it_the_model_is_read(raw, kind, name):
    sparse = raw | {"model_type": kind, "index_topk": 2048}
    message = f"{name} is not modelled yet: sparse attention, index_topk = 2048; for the time with"
    with pytest.raises(ValueError, match=message):
        parse_model_config(sparse, source="my.json")
    dense = parse_model_config(sparse | {"index_topk": None}, source="my.json")
    assert dense == load_model_config("debug")


def test_text_of_a_file_stays_on_one_short_line():
    with pytest.raises(ValueError, match="grouped-query attention, 2 heads") as error:
        parse_model_config({"num_attention_heads": "a\nb", "num_key_value_heads": 2}, source="x")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="is not modelled") as error:
        parse_model_config({"model_type": "a\nb" + "c" * 500}, source="my.json")
    assert "a b" + "c" * 57 + " is" in str(error.value)
