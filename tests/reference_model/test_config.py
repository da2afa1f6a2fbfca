"""Configs load unchanged, and count what DeepSeek published."""

import json
import subprocess
import sys

import pytest

from reference_model.config import (
    CONFIG_FOLDER,
    load_model_config,
    parse_model_config,
    read_config_file,
    shipped_configs,
)
from reference_model.parameter_counts import parameter_counts


@pytest.fixture
def raw():
    return json.loads((CONFIG_FOLDER / "deepseek_v3.json").read_text())


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_config_loads(name):
    assert load_model_config(name).num_hidden_layers > 0


def test_the_config_that_transformers_writes_loads():
    from transformers import DeepseekV3Config

    written = json.loads(DeepseekV3Config().to_json_string())
    config = parse_model_config(written, source="transformers")
    assert config.n_routed_experts == 256
    assert config.rope_scaling is None


def test_a_member_of_the_family_without_query_latent_or_groups_loads(raw):
    raw |= {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "n_routed_experts": 384}
    config = parse_model_config(raw | {"model_type": "kimi_k2", "new_field": 1}, source="x")
    assert config.q_lora_rank is None
    assert parameter_counts(config).attention > 0


def test_equal_configs_have_equal_digests_and_others_do_not(raw):
    digest = parse_model_config(raw, source="a").digest
    assert parse_model_config(raw | {"unknown": 1}, source="b").digest == digest
    assert parse_model_config(raw | {"vocab_size": 128}, source="c").digest != digest


def test_the_digest_of_shapes_holds_what_fixes_an_operator_and_nothing_else():
    raw, source = read_config_file("debug")
    shapes = parse_model_config(raw, source=source).shape_digest
    for name, value, same in (
        ("num_hidden_layers", 9, True),
        ("first_k_dense_replace", 2, True),
        ("num_nextn_predict_layers", 0, True),
        ("rope_theta", 50000, True),
        ("rope_scaling", None, True),
        ("routed_scaling_factor", 2.8, True),
        ("rms_norm_eps", 1e-5, True),
        ("topk_group", 1, True),
        ("hidden_size", 512, False),
        ("vocab_size", 1024, False),
        ("n_shared_experts", 2, False),
        ("num_experts_per_tok", 1, False),
    ):
        changed = parse_model_config(raw | {name: value}, source=source)
        assert (changed.shape_digest == shapes) is same, name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scoring_func": "softmax"}, "scoring_func = 'softmax' with topk_method = 'noaux_tc' is"),
        ({"topk_method": "greedy"}, "= 'greedy' is not supported, allowed: sigmoid with noaux_tc"),
        (
            {"model_type": "deepseek_v2", "scoring_func": "softmax", "topk_method": "greedy"},
            "norm_topk_prob = True is not supported in deepseek_v2, allowed: false",
        ),
        ({"attention_bias": True}, "attention_bias = True.*False"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'.*'silu'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings = True"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "type = 'linear'.*'yarn'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "original_max_position_embeddings"),
        ({"rope_theta": 0}, "rope_theta = 0 must be a number above 0"),
        ({"rope_theta": 1}, "rope_theta = 1 must be above 1 for YaRN"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor = 0.5 .*\[1, None\]"),
        ({"original_max_position_embeddings": 8}, "embeddings = 8, in rope_scaling 4096; allowed"),
        ({"hidden_size": 7168.5}, "hidden_size = 7168.5 must be a whole number"),
        ({"hidden_size": 10**400}, "must be a whole number, 0 to 1e.12"),
        ({"num_hidden_layers": 10**4 + 1}, "_layers = 10001 must be a whole number, 0 to 1e.04"),
        ({"rope_theta": float("inf")}, "rope_theta = inf must be a number above 0, at most 1e.12"),
        ({"vocab_size": 0}, "vocab_size = 0 must be at least 1"),
        ({"norm_topk_prob": 1}, "norm_topk_prob = 1 must be true or false"),
        ({"rms_norm_eps": -1}, "rms_norm_eps = -1 must be a number above 0"),
        ({"num_key_value_heads": 8}, "num_key_value_heads = 8 must equal"),
        ({"n_group": 7}, "n_group = 7 must divide n_routed_experts = 256"),
        ({"n_group": 256}, "n_group = 256 must divide .* groups of at least 2"),
        ({"topk_group": 9}, "topk_group = 9 must be at most n_group = 8"),
        ({"n_group": 1}, "topk_group = 4 must be at most n_group = 1; set topk_group too, to at"),
        ({"num_experts_per_tok": 200}, "num_experts_per_tok = 200 must be at most the 128"),
        ({"first_k_dense_replace": 62}, "first_k_dense_replace = 62"),
        ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers = 2.*0 or 1"),
        ({"qk_rope_head_dim": 63}, "qk_rope_head_dim = 63 must be even"),
    ],
)
def test_what_the_model_cannot_compute_is_an_error_that_names_it(raw, change, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_model_config(raw | change, source="my.json")
    assert str(error.value).startswith("my.json: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truncate": "no"}, "rope_scaling.truncate = 'no' must be true or false"),
        ({"attention_factor": -1}, "rope_scaling.attention_factor = -1 must be a number, 0 to"),
        ({"factor": float("inf")}, "rope_scaling.factor = inf must be a number, 0 to 1e.12"),
        (
            {"original_max_position_embeddings": float("nan")},
            "original_max_position_embeddings = nan must be a number, 0 to",
        ),
        ({"beta_fast": 0}, "rope_scaling.beta_fast = 0 must be above 0, or left out"),
        ({"original_max_position_embeddings": 0.5}, "= 0.5 must be a whole number, 1 or more"),
        ({"rope_theta": 500}, "rope_theta = 10000, in rope_parameters 500; allowed: one of them"),
    ],
)
def test_what_rope_scaling_cannot_be_is_an_error_that_names_it(raw, change, message):
    raw["rope_scaling"] |= change
    with pytest.raises(ValueError, match=message) as error:
        parse_model_config(raw, source="my.json")
    assert str(error.value).startswith("my.json: ")


def test_the_digest_tells_forms_of_yarn_apart_and_knows_the_usual_one(raw):
    usual = parse_model_config(raw, source="a").digest
    raw["rope_scaling"] |= {"truncate": True, "attention_factor": None}
    assert parse_model_config(raw, source="b").digest == usual
    raw["rope_scaling"]["truncate"] = False
    assert parse_model_config(raw, source="c").digest != usual


@pytest.mark.parametrize(
    "name", ["deepseek-v3", "DeepSeek-V3", "deepseek_v3", "DeepSeek-R1", "deepseek-v3.1"]
)
def test_a_shipped_config_is_found_under_the_names_that_people_write(name):
    assert load_model_config(name) == load_model_config(CONFIG_FOLDER / "deepseek_v3.json")


def test_two_files_of_one_name_side_by_side_are_two_models(tmp_path, raw):
    for folder, layers in (("a", 30), ("b", 40)):
        (tmp_path / folder).mkdir()
        written = json.dumps(raw | {"num_hidden_layers": layers})
        (tmp_path / folder / "config.json").write_text(written)
    one, other = (load_model_config(tmp_path / folder / "config.json") for folder in "ab")
    assert (one.num_hidden_layers, other.num_hidden_layers) == (30, 40)
    assert one.digest != other.digest
    assert load_model_config(tmp_path / "a") == one


def test_fields_that_are_null_or_absent_mean_their_defaults(raw):
    names = ("n_group", "topk_group", "num_nextn_predict_layers", "first_k_dense_replace")
    null = parse_model_config(raw | dict.fromkeys(names), source="null")
    absent = {name: value for name, value in raw.items() if name not in names}
    assert parse_model_config(absent, source="absent") == null
    assert (null.n_group, null.topk_group) == (1, 1)
    assert (null.num_nextn_predict_layers, null.first_k_dense_replace) == (0, 0)


def test_softmax_scores_without_a_method_are_chosen_greedily_where_there_are_no_groups(raw):
    softmax = raw | {"scoring_func": "softmax", "topk_method": None}
    assert parse_model_config(softmax | {"n_group": 1}, source="x").topk_method == "greedy"
    with pytest.raises(ValueError, match="'softmax' with topk_method = 'noaux_tc' is not"):
        parse_model_config(softmax, source="x")


def test_a_greedy_choice_does_not_look_at_groups(raw):
    v2 = raw | {"model_type": "deepseek_v2", "norm_topk_prob": False, "scoring_func": "softmax"}
    greedy = parse_model_config(v2 | {"topk_method": "greedy"}, source="greedy")
    assert (greedy.n_group, greedy.topk_group) == (1, 1)
    limited = parse_model_config(v2 | {"topk_method": "group_limited_greedy"}, source="limited")
    assert (limited.n_group, limited.topk_group) == (8, 4)


def test_a_gate_without_a_correction_bias_has_256_parameters_less_in_each_moe_layer(raw):
    with_bias = parameter_counts(parse_model_config(raw, source="v3"))
    v2 = {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False}
    without = parameter_counts(parse_model_config(raw | v2, source="v2"))
    assert with_bias.total - without.total == 58 * 256


def test_a_missing_field_is_named(raw):
    del raw["hidden_size"]
    with pytest.raises(ValueError, match=r"my\.json: hidden_size is missing"):
        parse_model_config(raw, source="my.json")


def test_a_config_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"'gpt' is neither.*deepseek_v3"):
        load_model_config("gpt")
    with pytest.raises(ValueError, match=r"did you mean deepseek_v3\?$"):
        load_model_config("deepseek-v33")
    with pytest.raises(ValueError, match="cannot be read"):
        load_model_config(tmp_path / "absent.json")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        load_model_config(broken)
    broken.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"broken\.json: not JSON: maximum recursion"):
        load_model_config(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"broken\.json: cannot be read: not UTF-8 text"):
        load_model_config(broken)
    broken.write_text("[]")
    with pytest.raises(ValueError, match="list in place of an object"):
        load_model_config(broken)


def test_config_and_trace_do_not_import_torch():
    code = (
        "import sys, reference_model.config, reference_model.trace;sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
