"""Sizes changed after the recording equal those of a recording with the change in it."""

from dataclasses import replace

import pytest

from reference_model.config import load_model_config
from reference_model.inference_recorder import record_inference_trace
from reference_model.precision import Recipe
from reference_model.trace import TRACE_FOLDER, load_trace
from simulator.scenario.serving import TensorParallel
from simulator.workload.iteration_operators import layer_operators
from simulator.workload.load import Load

DEBUG = load_model_config("debug")
WHOLE = TensorParallel()
LOAD = Load(
    tokens=64, sequences=64, context=256, expert_rows=128, received_rows=96, local_experts=2,
    group_tokens=64, group_sequences=64,
)  # fmt: skip


def shipped(job, name="debug"):
    return load_trace(TRACE_FOLDER / f"{name}.{job}.jsonl")


def recorded(job, **changes):
    config = replace(DEBUG, **changes)
    return record_inference_trace(config, job=job, model="m", recipe=Recipe("fp8", "reference"))


def group_of(load, ranks):
    """The load of one of `ranks` GPUs that have as much each and work on all of it together."""
    return replace(load, group_tokens=ranks * load.tokens, group_sequences=ranks * load.sequences)


@pytest.mark.parametrize("job", ["prefill", "decode"])
@pytest.mark.parametrize("latent", [DEBUG.q_lora_rank, None])
def test_split_heads_equal_a_recording_with_fewer_heads(job, latent):
    load = LOAD if job == "decode" else replace(LOAD, sequences=2, context=32)
    load = group_of(load, 2)
    whole = recorded(job, q_lora_rank=latent)
    split = layer_operators(whole, "moe", load, replace(WHOLE, attention=2))
    fewer = recorded(job, num_attention_heads=DEBUG.num_attention_heads // 2, q_lora_rank=latent)
    together = replace(load, tokens=2 * load.tokens, sequences=2 * load.sequences)
    wanted = {op.name: op for op in layer_operators(fewer, "moe", together, WHOLE)}
    names = [op.name for op in split]
    inside = split[names.index("attention.gather") + 1 : names.index("attention.scatter")]
    assert inside[0].name == "attention.qkv_a_proj.quantize_input"
    assert inside[-1].name == "attention.o_proj"
    for op in inside:
        assert op == wanted[op.name]


def test_split_experts_equal_a_recording_with_narrower_experts():
    split = layer_operators(shipped("decode"), "moe", LOAD, replace(WHOLE, experts=2))
    narrow = recorded("decode", moe_intermediate_size=DEBUG.moe_intermediate_size // 2)
    wanted = layer_operators(narrow, "moe", LOAD, WHOLE)
    for op, other in zip(split, wanted, strict=True):
        if op.name.startswith("experts."):
            assert op == other


def test_two_tokens_of_a_sequence_read_its_cache_once():
    load = replace(LOAD, tokens=128, group_tokens=128)
    ops = layer_operators(shipped("decode", "deepseek_v3"), "moe", load, WHOLE)
    core = next(op for op in ops if op.kind == "mla_decode")
    assert (core["sequences"], core["query_length"]) == (64, 2)
    one = layer_operators(shipped("decode", "deepseek_v3"), "moe", LOAD, WHOLE)
    single = next(op for op in one if op.kind == "mla_decode")
    assert core.flops == 2 * single.flops
    cache = 2 * 576 * 64 * 256
    queries = core.bytes_read - cache
    assert queries == 2 * (single.bytes_read - cache)


def test_a_chunk_after_cached_tokens_rebuilds_all_keys_but_computes_its_own_queries():
    chunk = Load(
        tokens=512, sequences=1, context=2048, expert_rows=4096, received_rows=900,
        local_experts=8, group_tokens=512, group_sequences=1,
    )  # fmt: skip
    ops = {
        op.name: op
        for op in layer_operators(shipped("prefill", "deepseek_v3"), "moe", chunk, WHOLE)
    }
    core = ops["attention.core"]
    assert (core["query_length"], core["kv_length"]) == (512, 2048)
    assert ops["attention.kv_b_proj"]["m"] == 2048
    assert ops["attention.q_b_proj"]["m"] == 512
    whole = replace(chunk, context=512)
    plain = layer_operators(shipped("prefill", "deepseek_v3"), "moe", whole, WHOLE)
    assert next(op for op in plain if op.name == "attention.core")["kv_length"] == 512


def test_sparse_attention_scores_the_whole_context_and_reads_what_it_selects():
    load = replace(LOAD, tokens=128, group_tokens=128, context=8192)
    decode = layer_operators(shipped("decode", "deepseek_v3_2"), "moe", load, WHOLE)
    prefill = layer_operators(
        shipped("prefill", "deepseek_v3_2"),
        "moe",
        replace(LOAD, tokens=512, sequences=1, group_tokens=512, group_sequences=1, context=8192),
        WHOLE,
    )
    for layer, sequences, queries in ((decode, 64, 2), (prefill, 1, 512)):
        ops = {op.name: op for op in layer}
        for name in ("attention.indexer.scores", "attention.core"):
            sizes = [ops[name][size] for size in ("sequences", "query_length", "kv_length")]
            assert sizes == [sequences, queries, 8192]
        select = ops["attention.indexer.select"]
        assert (select["rows"], select["columns"]) == (sequences * queries, 8192)
        assert ops["attention.indexer.rope_q"]["rows"] == sequences * queries


def test_gpus_that_share_heads_each_run_the_whole_indexer():
    load = group_of(replace(LOAD, context=8192), 8)
    split = layer_operators(
        shipped("decode", "deepseek_v3_2"), "moe", load, replace(WHOLE, attention=8)
    )
    ops = {op.name: op for op in split}
    scores, core = ops["attention.indexer.scores"], ops["attention.core"]
    assert (scores["sequences"], scores["heads"]) == (512, 64)
    assert (core["sequences"], core["heads"]) == (512, 16)
    assert ops["attention.indexer.q_proj"]["n"] == 64 * 128


def test_heads_that_do_not_divide_are_named():
    message = "attention.q_b_proj: 7 GPUs of tensor parallelism do not divide its n = 384; allowed"
    with pytest.raises(ValueError, match=message):
        layer_operators(shipped("decode"), "moe", LOAD, replace(WHOLE, attention=7))


def sizes_of(job, kind, load, split):
    ops = layer_operators(shipped(job, "deepseek_v3"), kind, load, split)
    return [(op.name, dict(op.sizes)) for op in ops]


def test_a_split_dense_layer_gathers_tokens_and_scatters_the_sums_of_a_part_of_its_width():
    ops = sizes_of("decode", "dense", group_of(LOAD, 8), replace(WHOLE, attention=8, dense=8))
    names = [name for name, _ in ops]
    start = names.index("mlp_norm")
    assert ops[start:] == [
        ("mlp_norm", {"columns": 7168, "rows": 64}),
        ("mlp.gather", {"columns": 7168, "rows": 512}),
        ("mlp.gate_up_proj.quantize_input", {"columns": 7168, "rows": 512}),
        ("mlp.gate_up_proj", {"k": 7168, "m": 512, "n": 2 * 18432 // 8}),
        ("mlp.swiglu", {"columns": 18432 // 8, "rows": 512}),
        ("mlp.down_proj", {"k": 18432 // 8, "m": 512, "n": 7168}),
        ("mlp.scatter", {"columns": 7168, "rows": 512}),
    ]


def test_a_split_vocabulary_looks_up_and_samples_the_tokens_of_all_its_gpus():
    split = replace(WHOLE, attention=8, vocabulary=8)
    assert sizes_of("decode", "embedding", group_of(LOAD, 8), split) == [
        ("embedding", {"columns": 7168, "rows": 512}),
        ("embedding.scatter", {"columns": 7168, "rows": 512}),
    ]
    assert sizes_of("decode", "head", group_of(LOAD, 8), split) == [
        ("head.norm", {"columns": 7168, "rows": 64}),
        ("head.gather", {"columns": 7168, "rows": 512}),
        ("head.proj", {"k": 7168, "m": 512, "n": 129280 // 8}),
        ("head.gather_logits", {"columns": 129280, "rows": 512}),
        ("head.sample", {"columns": 129280, "rows": 512}),
    ]
    # 129,280 rows in 48 parts are 2,693 and a third: padded to 2,694 each.
    padded = dict(sizes_of("decode", "head", group_of(LOAD, 48), replace(WHOLE, vocabulary=48)))
    assert padded["head.proj"]["n"] == 2694


def test_a_split_shared_expert_works_on_the_tokens_of_all_gpus_in_a_part_of_its_width():
    load = replace(group_of(LOAD, 8), received_rows=512)
    split = dict(sizes_of("decode", "moe", load, replace(WHOLE, experts=8, shared_expert=8)))
    assert split["shared_experts.quantize_input"] == {"columns": 7168, "rows": 512}
    assert split["shared_experts.gate_up_proj"] == {"k": 7168, "m": 512, "n": 2 * 2048 // 8}
    assert split["shared_experts.swiglu"] == {"columns": 2048 // 8, "rows": 512}
    assert split["shared_experts.down_proj"] == {"k": 2048 // 8, "m": 512, "n": 7168}
    local = dict(sizes_of("decode", "moe", load, replace(WHOLE, experts=8)))
    assert local["shared_experts.gate_up_proj"] == {"k": 7168, "m": 64, "n": 2 * 2048}


def test_one_request_on_a_group_is_work_of_one_gpu_outside_what_the_group_shares():
    load = replace(LOAD, tokens=1, sequences=1, group_tokens=1, group_sequences=1)
    ops = dict(sizes_of("decode", "moe", load, replace(WHOLE, attention=8)))
    assert ops["attention.gather"] == {"columns": 7168, "rows": 1}
    assert ops["attention.q_b_proj"] == {"k": 1536, "m": 1, "n": 24576 // 8}
    assert ops["attention.core"]["heads"] == 16
    assert ops["attention.core"]["sequences"] == 1


def test_one_prompt_on_a_group_rebuilds_its_keys_once():
    load = Load(
        tokens=256, sequences=1, context=2048, expert_rows=2048, received_rows=256,
        local_experts=8, group_tokens=2048, group_sequences=1,
    )  # fmt: skip
    ops = dict(sizes_of("prefill", "moe", load, replace(WHOLE, attention=8)))
    assert ops["attention.kv_b_proj"] == {"k": 512, "m": 2048, "n": 32768 // 8}
    core = ops["attention.core"]
    assert (core["sequences"], core["query_length"], core["kv_length"]) == (1, 2048, 2048)
    assert (core["heads"], ops["gate"]["tokens"]) == (16, 256)
