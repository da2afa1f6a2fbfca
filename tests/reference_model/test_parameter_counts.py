"""Counts are those that DeepSeek published, and hand counts of other models."""

import pytest

from reference_model.config import load_model_config
from reference_model.parameter_counts import parameter_counts, training_flops_per_token


def test_parameter_counts_of_deepseek_v3_equal_the_published_ones():
    counts = parameter_counts(load_model_config("deepseek_v3"))
    assert counts.total == pytest.approx(671.03e9, abs=0.01e9)
    # DeepSeek-V3 README_WEIGHTS counts 36.7B with a 0.9B head; to the digit it is 36.62B.
    assert counts.activated == pytest.approx(36.62e9, abs=0.01e9)
    assert counts.matrix == pytest.approx(36.518e9, abs=0.001e9)
    assert counts.mtp == pytest.approx(11.61e9, abs=0.01e9)


HAND_COUNTS = {
    # Embedding and head, final norm, layers: attention and two norms; dense; experts and router.
    "deepseek_v3": 2 * 129280 * 7168 + 7168
    + 61 * (7168 * 1536 + 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 + 512 * 128 * 256
            + 128 * 128 * 7168 + 2 * 7168)
    + 3 * 3 * 7168 * 18432 + 58 * (257 * 3 * 7168 * 2048 + 256 * (7168 + 1)),
    "kimi_k2": 2 * 163840 * 7168 + 7168
    + 61 * (7168 * 1536 + 1536 + 1536 * 64 * 192 + 7168 * 576 + 512 + 512 * 64 * 256
            + 64 * 128 * 7168 + 2 * 7168)
    + 3 * 7168 * 18432 + 60 * (385 * 3 * 7168 * 2048 + 384 * (7168 + 1)),
    # No query latent; two shared experts; no correction bias beside softmax scores.
    "deepseek_v2_lite": 2 * 102400 * 2048 + 2048
    + 27 * (2048 * 16 * 192 + 2048 * 576 + 512 + 512 * 16 * 256 + 16 * 128 * 2048 + 2 * 2048)
    + 3 * 2048 * 10944 + 26 * (66 * 3 * 2048 * 1408 + 64 * 2048),
    "moonlight_16b_a3b": 2 * 163840 * 2048 + 2048
    + 27 * (2048 * 16 * 192 + 2048 * 576 + 512 + 512 * 16 * 256 + 16 * 128 * 2048 + 2 * 2048)
    + 3 * 2048 * 11264 + 26 * (66 * 3 * 2048 * 1408 + 64 * (2048 + 1)),
    "mistral_large_3": 2 * 131072 * 7168 + 7168
    + 61 * (7168 * 1536 + 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 + 512 * 128 * 256
            + 128 * 128 * 7168 + 2 * 7168)
    + 3 * 3 * 7168 * 16384 + 58 * (129 * 3 * 7168 * 4096 + 128 * 7168),
    "glm_4_7_flash": 2 * 154880 * 2048 + 2048
    + 47 * (2048 * 768 + 768 + 768 * 20 * 256 + 2048 * 576 + 512 + 512 * 20 * (192 + 256)
            + 20 * 256 * 2048 + 2 * 2048)
    + 3 * 2048 * 10240 + 46 * (65 * 3 * 2048 * 1536 + 64 * (2048 + 1)),
    # DeepSeek-V3's and 13,959,424 of an indexer in each layer: queries from their latent, one key
    # with the weight and bias of its norm, and the weights of 64 heads.
    "deepseek_v3_2": 671_026_419_200
    + 61 * (1536 * 64 * 128 + 7168 * 128 + 2 * 128 + 7168 * 64),
    "glm_5": 2 * 154880 * 6144 + 6144
    + 78 * (6144 * 2048 + 2048 + 2048 * 64 * 256 + 6144 * 576 + 512 + 512 * 64 * (192 + 256)
            + 64 * 256 * 6144 + 2 * 6144
            + 2048 * 32 * 128 + 6144 * 128 + 2 * 128 + 6144 * 32)
    + 3 * 3 * 6144 * 12288 + 75 * (257 * 3 * 6144 * 2048 + 256 * (6144 + 1)),
    "deepseek_v2": 2 * 102400 * 5120 + 5120
    + 60 * (5120 * 1536 + 1536 + 1536 * 128 * 192 + 5120 * 576 + 512 + 512 * 128 * 256
            + 128 * 128 * 5120 + 2 * 5120)
    + 3 * 5120 * 12288 + 59 * (162 * 3 * 5120 * 1536 + 160 * 5120),
}  # fmt: skip
HAND_COUNTS["kimi_k2_thinking"] = HAND_COUNTS["kimi_k2"]


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("deepseek_v3", 671),
        ("kimi_k2", 1026),  # "1T"
        ("kimi_k2_thinking", 1026),
        ("deepseek_v2_lite", 16),  # "15.7B"
        ("moonlight_16b_a3b", 16),
        ("mistral_large_3", 673),  # "675B" with a vision encoder of 2.5B
        ("glm_4_7_flash", 30),
        ("deepseek_v3_2", 672),  # "671.88B"
        ("glm_5", 744),
        ("deepseek_v2", 236),
    ],
)
def test_parameters_of_a_shipped_model_equal_a_hand_count(name, published):
    assert parameter_counts(load_model_config(name)).total == HAND_COUNTS[name]
    assert round(HAND_COUNTS[name] / 1e9) == published


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("deepseek_v3", 37),
        ("kimi_k2", 32),
        ("deepseek_v2_lite", 2.4),
        ("deepseek_v2", 21),
        ("glm_5", 40),
        ("mistral_large_3", 39),  # "41B" with a vision encoder of 2.5B
    ],
)
def test_activated_parameters_round_to_the_published_ones(name, published):
    """Published counts differ in whether the embedding is one of them: within 3%."""
    activated = parameter_counts(load_model_config(name)).activated / 1e9
    assert activated == pytest.approx(published, rel=0.03)


def test_training_flops_reproduce_table_4_of_the_insights_paper():
    config = load_model_config("deepseek_v3")
    causal = training_flops_per_token(config, context=4096, causal=True)
    full = training_flops_per_token(config, context=4096, causal=False)
    assert causal == pytest.approx(249.8e9, abs=0.05e9)
    assert full == pytest.approx(280.5e9, abs=0.05e9)
    tokens_per_second_per_gpu = 15360 * 4096 / 19.926 / 2048
    assert causal * tokens_per_second_per_gpu == pytest.approx(385.1e12, rel=1e-3)
    assert full * tokens_per_second_per_gpu == pytest.approx(432.5e12, rel=1e-3)
