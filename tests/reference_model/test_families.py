"""Configs as people hold them are read; other families and formats are refused by name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from reference_model.config import CONFIG_FOLDER, load_model_config, parse_model_config

MODELS = Path(__file__).parents[3] / "shared/models"
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
    with pytest.raises(ValueError, match="quantization_config: mxfp4 is not modelled;"):
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


def grouped(ignore=None, **weights):
    """As compressed-tensors writes it."""
    listed = {} if ignore is None else {"ignore": ignore}
    groups = {"group_0": {"targets": ["Linear"], "weights": INT4 | weights}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, **listed}


# What moonshotai/Kimi-K2.5 leaves in BF16.
ALL_BUT_EXPERTS = [
    "lm_head", "re:.*self_attn.*", "re:.*shared_experts.*",
    r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
]  # fmt: skip
# What nvidia/DeepSeek-V3.1-NVFP4 leaves in BF16 of each layer.
LATENTS = [
    f"model.layers.{layer}.self_attn.{name}"
    for layer in range(4)
    for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
]
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}


@pytest.mark.parametrize(
    ("stored", "recipe"),
    [
        (BLOCKS | {"modules_to_not_convert": ["lm_head"]}, "fp8"),
        (grouped(), "int4"),
        (grouped(ALL_BUT_EXPERTS), "int4"),
        (grouped(ALL_BUT_EXPERTS, group_size=128), "int4_128"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8_per_tensor"),
        (grouped(["lm_head"], type="float", num_bits=8, strategy="tensor"), "fp8_per_tensor"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8_per_tensor"),
        (NVFP4 | {"ignore": ["lm_head", "model.layers.*.self_attn*"]}, "nvfp4"),
        (NVFP4, "nvfp4"),
        (NVFP4 | {"exclude_modules": LATENTS}, "nvfp4_o_proj"),
        ({"quant_method": "modelopt", "quant_algo": "MXFP8"}, "mxfp8"),
    ],
)
def test_the_recipe_of_a_file_is_that_of_its_quantisation(raw, stored, recipe):
    found = parse_model_config(raw | {"quantization_config": stored}, source="my.json")
    assert found == replace(load_model_config("debug"), recipe=recipe)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("deepseek-ai--DeepSeek-R1", "fp8"),
        ("deepseek-ai--DeepSeek-V3.2", "fp8"),
        ("moonshotai--Kimi-K2-Instruct", "fp8"),
        ("moonshotai--Kimi-K2.5", "int4"),
        ("nvidia--DeepSeek-V3.1-NVFP4", "nvfp4_o_proj"),
        ("nvidia--GLM-5-NVFP4", "nvfp4"),
        ("zai-org--GLM-5", "fp8"),
    ],
)
def test_files_as_people_hold_them_say_their_recipe(name, recipe):
    file = MODELS / f"{name}_config.json"
    if not file.is_file():
        pytest.skip(f"{file} is not part of the project")
    assert load_model_config(file).recipe == recipe


def test_modelopt_says_it_in_a_file_beside_the_config(raw, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(raw))
    stored = {"producer": {}, "quantization": {"quant_algo": "NVFP4", "exclude_modules": LATENTS}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(stored))
    assert load_model_config(tmp_path).recipe == "nvfp4_o_proj"
    assert load_model_config(tmp_path / "config.json").recipe == "nvfp4_o_proj"
    (tmp_path / "hf_quant_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"hf_quant_config\.json: not JSON"):
        load_model_config(tmp_path)


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq INT4"),
        ({"quant_method": "awq", "bits": 4}, "awq INT4"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        (BLOCKS | {"weight_block_size": [64, 64]}, r"fp8 in blocks of \[64, 64\]"),
        (BLOCKS | {"ignored_layers": ["x"], "ignore": ["re:.*self_attn.*"]}, "fp8 in blocks"),
        (grouped(["lm_head"]), "compressed-tensors INT4 in groups of 32"),
        (grouped(ALL_BUT_EXPERTS, group_size=64), "compressed-tensors INT4 in groups of 64"),
        (NVFP4 | {"ignore": ["lm_head"]}, "modelopt NVFP4"),
        ({}, "a format without quant_method"),
    ],
)
def test_another_quantisation_is_one_line_with_its_name_and_a_way_out(raw, stored, name):
    message = (
        rf"^my\.json: quantization_config: {name}.* is not modelled; allowed: fp8 in blocks of 128 "
        r"x 128 or per tensor, INT4 experts in groups of 32 or 128, NVFP4 feed-forwards, MXFP8; "
        r"without the field weights count as FP8$"
    )
    with pytest.raises(ValueError, match=message):
        parse_model_config(raw | {"quantization_config": stored}, source="my.json")


def test_modules_left_out_that_cannot_be_read_are_an_error(raw):
    for listed, message in (
        ("lm_head", "modules left out = 'lm_head' must be a list of names"),
        ([3], "modules left out = '.3.' must be a list of names"),
        (["re:("], r"'re:\(' is no regular expression"),
    ):
        stored = BLOCKS | {"ignore": listed}
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


INDEXER = {"index_topk": 2048, "index_n_heads": 64, "index_head_dim": 128}


@pytest.mark.parametrize(("kind", "halves"), [("deepseek_v32", True), ("glm_moe_dsa", False)])
def test_sparse_attention_is_read_and_without_it_the_model_is_dense(raw, kind, halves):
    sparse = raw | INDEXER | {"model_type": kind}
    config = parse_model_config(sparse, source="my.json")
    assert config.indexer == (2048, 64, 128, config.q_lora_rank)
    assert config.indexer_rope_interleave is not halves
    dense = parse_model_config(sparse | {"index_topk": None}, source="my.json")
    assert dense == load_model_config("debug")
    assert config.shape_digest != dense.shape_digest


@pytest.mark.parametrize(
    "shared",
    [
        {"indexer_types": ["full", "shared"]},
        {"index_topk_pattern": "FFS"},
        {"index_topk_freq": 4},
        {"indexer_types": 3},
        {"index_topk_pattern": [1, "F"]},
    ],
)
def test_layers_that_share_an_indexer_are_refused(raw, shared):
    fields = raw | INDEXER | {"model_type": "glm_moe_dsa"}
    with pytest.raises(ValueError, match="GLM-5 is not modelled: layers that share the"):
        parse_model_config(fields | shared, source="my.json")
    every = (
        {"indexer_types": ["full", "full"]},
        {"index_topk_pattern": "FF"},
        {"index_topk_freq": 1},
    )
    for same in every:
        assert parse_model_config(fields | same, source="my.json").indexer is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index_n_heads": None}, "index_n_heads is missing beside index_topk = 2048"),
        ({"index_topk": 0}, "index_topk = 0 must be at least 1"),
        ({"index_head_dim": 1.5}, "index_head_dim = 1.5 must be a whole number"),
        ({"index_head_dim": 8}, "index_head_dim = 8 must be at least qk_rope_head_dim ="),
        ({"q_lora_rank": None}, "index_topk = 2048 without q_lora_rank is not supported"),
        ({"indexer_rope_interleave": 1}, "indexer_rope_interleave = 1 must be true or false"),
    ],
)
def test_a_field_of_the_indexer_that_cannot_be_is_one_line(raw, changes, message):
    with pytest.raises(ValueError, match=f"my.json: {message}"):
        parse_model_config(raw | INDEXER | changes, source="my.json")


def test_text_of_a_file_stays_on_one_short_line():
    with pytest.raises(ValueError, match="grouped-query attention, 2 heads") as error:
        parse_model_config({"num_attention_heads": "a\nb", "num_key_value_heads": 2}, source="x")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="is not modelled") as error:
        parse_model_config({"model_type": "a\nb" + "c" * 500}, source="my.json")
    assert "a b" + "c" * 57 + " is" in str(error.value)
