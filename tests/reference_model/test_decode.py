"""Inference with a latent cache says what the whole model says, token for token."""

import dataclasses

import pytest
import torch

from reference_model.config import load_model_config
from reference_model.decode import InferenceModel
from reference_model.model import Transformer
from reference_model.precision import Recipe

CPU = torch.device("cpu")


def served(recipe="float32", **changes):
    config = dataclasses.replace(load_model_config("debug"), **changes)
    model = Transformer(config, recipe=Recipe(recipe, "reference"), device=CPU)
    model.initialize(torch.Generator().manual_seed(0))
    return model, InferenceModel(model)


def random_tokens(config, *shape):
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(1))


INDEXER = {"index_topk": 4, "index_n_heads": 16, "index_head_dim": 64}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"q_lora_rank": None},
        INDEXER,
        INDEXER | {"index_topk": 100},
        INDEXER | {"indexer_rope_interleave": True},
    ],
    ids=["dense", "no query latent", "sparse", "sparse, few tokens", "sparse, interleaved"],
)
@pytest.mark.parametrize("step", [1, 2])
def test_prefill_and_absorbed_decode_equal_the_decompressed_model(changes, step):
    model, inference = served(**changes)
    tokens = random_tokens(model.config, 2, 9)
    expected = model(tokens)  # [S, L, V]
    caches = inference.new_caches(sequences=2, capacity=16)
    prompt = 5
    first = inference.prefill(tokens[:, :prompt], caches)
    torch.testing.assert_close(first, expected[:, prompt - 1], atol=1e-4, rtol=1e-4)
    for start in range(prompt, 9, step):
        lengths = torch.tensor([start, start])
        logits = inference.decode(tokens[:, start : start + step], lengths, caches)
        torch.testing.assert_close(logits, expected[:, start : start + step], atol=1e-4, rtol=1e-4)


def test_sequences_of_different_length_decode_side_by_side():
    model, inference = served()
    tokens = random_tokens(model.config, 2, 8)
    caches = inference.new_caches(sequences=2, capacity=8)
    inference.prefill(tokens[:, :7], caches)
    # The second sequence forgets two tokens and says them again.
    logits = inference.decode(
        torch.stack((tokens[0, 7:8], tokens[1, 5:6])), torch.tensor([7, 5]), caches
    )
    expected = model(tokens)
    torch.testing.assert_close(logits[0, 0], expected[0, 7], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits[1, 0], expected[1, 5], atol=1e-4, rtol=1e-4)


def test_the_cache_holds_latent_and_rotary_values_only():
    model, inference = served()
    cache = inference.new_caches(sequences=1, capacity=4)[0]
    config = model.config
    assert cache.values.shape == (1, 4, config.kv_lora_rank + config.qk_rope_head_dim)
    v3 = load_model_config("deepseek_v3")
    assert v3.kv_lora_rank + v3.qk_rope_head_dim == 576


def test_the_cache_of_an_indexer_holds_132_bytes_of_fp8_beside_it():
    sizes = INDEXER | {"index_head_dim": 128}
    _, inference = served("fp8", **sizes)
    index = inference.new_caches(sequences=2, capacity=4)[0].index
    assert index.values.nbytes + index.scales.nbytes == 2 * 4 * 132
    plain = served("bfloat16", **sizes)[1].new_caches(sequences=2, capacity=4)[0].index
    assert (plain.scales, plain.values.nbytes) == (None, 2 * 4 * 256)


def test_a_full_cache_is_an_error():
    model, inference = served()
    caches = inference.new_caches(sequences=1, capacity=4)
    inference.prefill(random_tokens(model.config, 1, 4), caches)
    with pytest.raises(ValueError, match="does not fit a cache of 4"):
        inference.decode(random_tokens(model.config, 1, 1), torch.tensor([4]), caches)


@pytest.mark.parametrize("changes", [{}, INDEXER], ids=["dense", "sparse"])
@pytest.mark.parametrize(("recipe", "similarity"), [("bfloat16", 0.999), ("fp8", 0.95)])
def test_low_precision_decode_stays_near_the_decompressed_model(recipe, similarity, changes):
    model, inference = served(recipe, **changes)
    tokens = random_tokens(model.config, 1, 6)
    caches = inference.new_caches(sequences=1, capacity=8)
    inference.prefill(tokens[:, :5], caches)
    absorbed = inference.decode(tokens[:, 5:], torch.tensor([5]), caches)[0, 0].float()
    decompressed = model(tokens)[0, 5].float()
    assert torch.nn.functional.cosine_similarity(absorbed, decompressed, dim=0) > similarity
