"""FLOPs and bytes of attention, dense and sparse."""

import numpy as np
import pytest

from tests.reference_model.test_kinds import operator


def test_attention_flops_equal_those_of_the_published_trace():
    sizes = {
        "sequences": 1, "query_length": 4096, "kv_length": 4096, "heads": 128,
        "qk_dim": 192, "v_dim": 128,
    }  # fmt: skip
    forward = operator("attention_forward", "bfloat16", **sizes)
    backward = operator("attention_backward", "bfloat16", **sizes)
    assert forward.flops == pytest.approx(687.2e9, rel=1e-4)
    assert backward.flops == pytest.approx(1786.7e9, rel=1e-4)  # five products
    assert backward.model_flops == 2 * forward.flops  # four


def test_one_query_against_a_cache_attends_to_all_of_it():
    sizes = {"sequences": 2, "heads": 4, "qk_dim": 192, "v_dim": 128}
    last = operator("attention_forward", "bfloat16", query_length=1, kv_length=1000, **sizes)
    whole = 2 * 2 * 4 * 1000 * (192 + 128)
    assert last.flops == pytest.approx(whole, rel=1e-3)


INDEX = {"sequences": 128, "query_length": 1, "kv_length": 32768, "heads": 64, "dim": 128}
CORE = {
    "sequences": 128, "query_length": 1, "kv_length": 32768, "heads": 128, "latent_dim": 512,
    "rope_dim": 64, "top_k": 2048,
}  # fmt: skip


def test_index_scores_of_a_token_read_132_bytes_of_each_cached_one():
    scores = operator("index_scores", out_dtype="float32", **INDEX)
    assert scores.flops == 128 * 32768 * 64 * 128 * 2
    queries = 128 * 64 * (128 + 4 + 4)  # FP8 values, their scale, and the weight of the head
    assert scores.bytes_read == queries + 128 * 32768 * 132
    assert scores.bytes_written == 128 * 32768 * 4


def test_index_scores_of_a_prompt_are_those_of_its_lower_triangle():
    sizes = INDEX | {"sequences": 1, "query_length": 4096, "kv_length": 4096}
    pairs = sum(range(1, 4097))
    assert operator("index_scores", **sizes).flops == pairs * 64 * 128 * 2
    after = operator("index_scores", **sizes | {"kv_length": 10_000})
    assert after.flops == (pairs + 4096 * 5904) * 64 * 128 * 2


def test_the_sparse_core_reads_the_selected_tokens_alone():
    core = operator("sparse_mla", "bfloat16", **CORE)
    assert core.flops == 128 * 2048 * 128 * (576 + 512) * 2
    assert core.bytes_read == 128 * ((128 + 2048) * 576 * 2 + 2048 * 4)
    assert core.bytes_written == 128 * 128 * (512 * 2 + 4)
    # Below 2,048 tokens it reads what there is, but its list of positions has its full length.
    short = operator("sparse_mla", "bfloat16", **CORE | {"kv_length": 1000})
    assert short.flops == 128 * 1000 * 128 * (576 + 512) * 2
    assert short.bytes_read == 128 * ((128 + 1000) * 576 * 2 + 2048 * 4)


@pytest.mark.parametrize("kv_length", [3, 4, 5, 9, 20])
@pytest.mark.parametrize("query_length", [1, 3])
def test_a_query_selects_no_more_tokens_than_it_sees(query_length, kv_length):
    sizes = CORE | {
        "sequences": 1, "heads": 1, "top_k": 4,
        "query_length": query_length, "kv_length": kv_length,
    }  # fmt: skip
    seen = range(kv_length - query_length + 1, kv_length + 1)
    pairs = sum(min(4, count) for count in seen)
    assert operator("sparse_mla", "bfloat16", **sizes).flops == pairs * (576 + 512) * 2


def test_sizes_of_many_operators_are_counted_at_once():
    """As a cost model does, with arrays in the place of sizes."""
    sizes = CORE | {"kv_length": np.array([1000, 32768]), "query_length": np.array([1, 4096])}
    both = operator("sparse_mla", "bfloat16", **sizes)
    for number in (0, 1):
        one = operator(
            "sparse_mla", "bfloat16",
            **{name: value if isinstance(value, int) else int(value[number])
               for name, value in sizes.items()},
        )  # fmt: skip
        assert (both.flops[number], both.bytes_read[number]) == (one.flops, one.bytes_read)


def test_masked_attention_executes_dense_products_and_needs_the_selected_ones():
    sizes = {
        "sequences": 1, "query_length": 4096, "kv_length": 4096, "heads": 128, "qk_dim": 192,
        "v_dim": 128, "top_k": 2048,
    }  # fmt: skip
    forward = operator("attention_masked_forward", "bfloat16", **sizes)
    backward = operator("attention_masked_backward", "bfloat16", **sizes)
    dense = {name: size for name, size in sizes.items() if name != "top_k"}
    assert forward.flops == operator("attention_forward", "bfloat16", **dense).flops
    assert backward.flops == operator("attention_backward", "bfloat16", **dense).flops
    pairs = sum(range(1, 2049)) + 2048 * 2048
    assert forward.model_flops == pairs * 128 * (192 + 128) * 2
    assert backward.model_flops == 2 * forward.model_flops
    positions = 4096 * 2048 * 4
    assert forward.bytes_read == 4096 * 128 * (192 + 192 + 128) * 2 + positions


def test_a_selection_reads_every_score_and_writes_its_positions():
    select = operator("index_topk", "float32", "int32", rows=64, columns=32768, top_k=2048)
    assert (select.flops, select.bytes_read) == (0, 64 * 32768 * 4)
    assert select.bytes_written == 64 * 2048 * 4
