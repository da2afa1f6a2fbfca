"""Sizes changed after the recording equal those of a recording with the change in it."""

import dataclasses

import pytest

from reference_model.config import load_model_config
from reference_model.inference_recorder import record_inference_trace
from reference_model.precision import Recipe
from reference_model.trace import TRACE_FOLDER, load_trace
from simulator.workload.serving_operators import BatchLoad, layer_operators

DEBUG = load_model_config("debug")
LOAD = BatchLoad(
    tokens=64, sequences=64, context=256, expert_rows=128, received_rows=96, active_experts=2
)


def shipped(job, name="debug"):
    return load_trace(TRACE_FOLDER / f"{name}.{job}.jsonl")


def recorded(job, **changes):
    config = dataclasses.replace(DEBUG, **changes)
    return record_inference_trace(config, job=job, model="m", recipe=Recipe("fp8", "reference"))


@pytest.mark.parametrize("job", ["prefill", "decode"])
def test_split_heads_equal_a_recording_with_fewer_heads(job):
    load = LOAD if job == "decode" else dataclasses.replace(LOAD, sequences=2, context=32)
    split = layer_operators(shipped(job), "moe", load, attention_tp=2, expert_tp=1)
    fewer = recorded(job, num_attention_heads=DEBUG.num_attention_heads // 2)
    together = dataclasses.replace(load, tokens=2 * load.tokens, sequences=2 * load.sequences)
    wanted = {
        op.name: op for op in layer_operators(fewer, "moe", together, attention_tp=1, expert_tp=1)
    }
    names = [op.name for op in split]
    inside = split[names.index("attention.gather") + 1 : names.index("attention.scatter")]
    assert inside[0].name == "attention.qkv_a_proj.quantize_input"
    assert inside[-1].name == "attention.o_proj"
    for op in inside:
        assert op == wanted[op.name]


def test_split_experts_equal_a_recording_with_narrower_experts():
    split = layer_operators(shipped("decode"), "moe", LOAD, attention_tp=1, expert_tp=2)
    narrow = recorded("decode", moe_intermediate_size=DEBUG.moe_intermediate_size // 2)
    wanted = layer_operators(narrow, "moe", LOAD, attention_tp=1, expert_tp=1)
    for op, other in zip(split, wanted, strict=True):
        if op.name.startswith("experts."):
            assert op == other


def test_two_tokens_of_a_sequence_read_its_cache_once():
    load = dataclasses.replace(LOAD, tokens=128)
    ops = layer_operators(
        shipped("decode", "deepseek_v3"), "moe", load, attention_tp=1, expert_tp=1
    )
    core = next(op for op in ops if op.kind == "mla_decode")
    assert (core["sequences"], core["query_length"]) == (64, 2)
    one = layer_operators(
        shipped("decode", "deepseek_v3"), "moe", LOAD, attention_tp=1, expert_tp=1
    )
    single = next(op for op in one if op.kind == "mla_decode")
    assert core.flops == 2 * single.flops
    cache = 2 * 576 * 64 * 256
    queries = core.bytes_read - cache
    assert queries == 2 * (single.bytes_read - cache)


def test_a_chunk_after_cached_tokens_rebuilds_all_keys_but_computes_its_own_queries():
    chunk = BatchLoad(
        tokens=512, sequences=1, context=2048, expert_rows=4096, received_rows=900,
        active_experts=8,
    )  # fmt: skip
    ops = {
        op.name: op
        for op in layer_operators(
            shipped("prefill", "deepseek_v3"), "moe", chunk, attention_tp=1, expert_tp=1
        )
    }
    core = ops["attention.core"]
    assert (core["query_length"], core["kv_length"]) == (512, 2048)
    assert ops["attention.kv_b_proj"]["m"] == 2048
    assert ops["attention.q_b_proj"]["m"] == 512
    whole = dataclasses.replace(chunk, context=512)
    plain = layer_operators(
        shipped("prefill", "deepseek_v3"), "moe", whole, attention_tp=1, expert_tp=1
    )
    assert next(op for op in plain if op.name == "attention.core")["kv_length"] == 512


def test_heads_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match=r"attention.q_b_proj: 7 GPUs do not divide its n"):
        layer_operators(shipped("decode"), "moe", LOAD, attention_tp=7, expert_tp=1)
