"""Recorded inference: shipped traces are what the model issues, with the sizes of the model."""

import pytest
import torch

from reference_model.config import load_model_config
from reference_model.decode import InferenceModel
from reference_model.inference_recorder import (
    INFERENCE_JOBS,
    record_inference_layer,
    record_inference_trace,
)
from reference_model.model import Transformer
from reference_model.precision import Recipe
from reference_model.recorder import OperatorRecorder
from reference_model.trace import LAYER_KINDS, TRACE_FOLDER, Workload, load_trace

FP8 = Recipe("fp8", "reference")
WORK = Workload(
    tokens=512, context=256, sequences=2, expert_rows=768, received_rows=640, local_experts=2
)
VIEWS = {"view", "slice", "transpose", "t", "expand", "detach", "alias", "unsqueeze", "select"}


@pytest.mark.parametrize("job", INFERENCE_JOBS)
@pytest.mark.parametrize("name", ["debug", "deepseek_v3"])
def test_the_recorded_trace_is_what_the_model_issues(name, job):
    trace = record_inference_trace(load_model_config(name), job=job, model=name, recipe=FP8)
    assert load_trace(TRACE_FOLDER / f"{name}.{job}.jsonl") == trace


@pytest.mark.parametrize("job", INFERENCE_JOBS)
@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_nothing_but_views_runs_outside_the_custom_operators(kind, job):
    layer = record_inference_layer(load_model_config("debug"), job, kind, WORK, recipe=FP8)
    names = {name.split(".")[1] for name in layer.others}
    allowed = VIEWS | {"empty", "new_empty", "empty_like", "view_as", "_unsafe_view"}
    assert names <= allowed, names - allowed


def moe_operators(job, **sizes):
    trace = load_trace(TRACE_FOLDER / f"deepseek_v3.{job}.jsonl")
    workload = Workload(64, 4096, 64, 512, 0, 2)._replace(**sizes)
    return {op.name: op for op in trace.operators("moe", "forward", workload)}


def test_a_decode_layer_has_the_products_of_the_absorbed_form():
    ops = moe_operators("decode")
    c = load_model_config("deepseek_v3")
    heads, latent = c.num_attention_heads, c.kv_lora_rank
    assert dict(ops["attention.qkv_a_proj"].sizes) == {"m": 64, "n": 2112, "k": 7168}
    assert dict(ops["attention.key_up"].sizes) == {"batch": heads, "m": 64, "n": latent, "k": 128}
    assert dict(ops["attention.value_up"].sizes) == {"batch": heads, "m": 64, "n": 128, "k": latent}
    core = ops["attention.core"]
    assert core.flops == 2 * 64 * 128 * 4096 * (576 + 512)
    # The cache is read once for all heads: 576 BF16 values a token.
    assert core.bytes_read == 2 * 576 * (64 * 128 + 64 * 4096)
    assert ops["experts.gate_up_proj"].flops == 2 * 512 * 4096 * 7168
    assert "attention.kv_b_proj" not in ops
    assert 27 <= len(ops) <= 31


def test_prefill_reads_no_cache_and_keeps_nothing_for_a_backward():
    ops = moe_operators("prefill", tokens=4096, sequences=1, received_rows=30000, expert_rows=32768)
    assert not any("save" in name or "transpose" in name for name in ops)
    assert ops["attention.core"].kind == "attention_forward"
    assert dict(ops["attention.kv_b_proj"].sizes) == {"m": 4096, "n": 32768, "k": 512}


def test_operators_on_a_cpu_are_those_on_the_meta_device():
    config = load_model_config("debug")
    model = Transformer(config, recipe=FP8, device=torch.device("cpu"))
    model.initialize(torch.Generator().manual_seed(0))
    inference = InferenceModel(model)
    caches = inference.new_caches(sequences=3, capacity=8)
    tokens = torch.randint(config.vocab_size, (3, 5), generator=torch.Generator().manual_seed(1))
    inference.prefill(tokens[:, :4], caches)
    with OperatorRecorder() as recorder:
        inference.decode(tokens[:, 4:], torch.tensor([4, 4, 4]), caches)
    trace = load_trace(TRACE_FOLDER / "debug.decode.jsonl")
    work = Workload(
        tokens=3,
        context=8,
        sequences=3,
        expert_rows=3 * config.num_experts_per_tok,
        received_rows=0,
        local_experts=config.n_routed_experts,
    )
    dense, moe = config.first_k_dense_replace, config.num_moe_layers
    layers = ["embedding"] + ["dense"] * dense + ["moe"] * moe + ["head"]
    expected = [op for kind in layers for op in trace.operators(kind, "forward", work)]
    issued = recorder.recorded
    # The very first norm adds no update.
    assert issued[1].kind == "rmsnorm"
    assert expected[1].kind == "rmsnorm_residual"
    assert issued[:1] + issued[2:] == expected[:1] + expected[2:]
