"""Tables 1 and 2 of arXiv 2505.09343, counted from the models' configs."""

import json

import pytest

from reference_model.config import shipped_configs
from simulator.analysis.model_comparison import compare_models, known_models, model_cost


@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    [("deepseek_v3", 70_272), ("qwen2_5_72b", 327_680), ("llama_3_1_405b", 516_096)],
)
def test_kv_cache_per_token_is_that_of_table_1(name, kv_bytes):
    assert model_cost(name).kv_cache_bytes == kv_bytes


@pytest.mark.parametrize(
    ("name", "gflops"), [("deepseek_v2", 155), ("deepseek_v3", 250), ("llama_3_1_405b", 2448)]
)
def test_training_flops_per_token_are_those_of_table_2(name, gflops):
    assert model_cost(name).training_flops / 1e9 == pytest.approx(gflops, rel=0.015)


def test_qwen_is_shown_as_counted_and_not_as_published():
    # Table 2 prints 394 for "Qwen-72B"; the Qwen2.5-72B of Table 1 counts 445.
    assert model_cost("qwen2_5_72b").training_flops / 1e9 == pytest.approx(445, rel=0.015)


def test_a_model_with_sparse_attention_is_counted_by_what_it_selects():
    # Of 4,096 tokens the first 2,048 read 1,024.5 each on average, the others 2,048 (of 61 layers,
    # 128 heads of 192 + 128, forward and twice backward); V3 reads 2,048 of each.
    fewer = 2048 - (2048 * 0.5 + 1024.5 * 0.5)
    core = 6 * fewer * 128 * (192 + 128) * 61
    # The indexer runs forward only: its products, and scores of 64 heads of 128.
    indexer = 1536 * 64 * 128 + 7168 * 128 + 7168 * 64
    scores = 2 * (indexer + 2048.5 * 64 * 128) * 61
    v3, sparse = (model_cost(name).training_flops for name in ("deepseek_v3", "deepseek_v3_2"))
    assert sparse - v3 == pytest.approx(scores - core, rel=1e-9)


def test_every_known_model_is_compared_and_a_broken_config_is_named(tmp_path):
    assert len(compare_models(known_models())) == 2 + len(shipped_configs())
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 4}))
    with pytest.raises(ValueError, match=r"config.json: num_attention_heads = None"):
        model_cost(str(path))
