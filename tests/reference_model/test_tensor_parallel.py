"""Layers split over two ranks compute what one computes, and each rank issues half of its work."""

import dataclasses

import pytest
import torch

from reference_model.config import load_model_config
from reference_model.model import Transformer
from reference_model.precision import Recipe
from reference_model.ranks import run_ranks
from reference_model.recorder import record_layer, record_trace
from reference_model.split import WHOLE, Split
from reference_model.tensor_parallel import part_of_weight, take_part
from reference_model.trace import (
    COLLECTIVE_KINDS,
    LAYER_KINDS,
    PHASES,
    TRACE_FOLDER,
    Workload,
    load_trace,
    trace_name,
)

DEBUG = dataclasses.replace(load_model_config("debug"), num_hidden_layers=2)
WITHOUT_QUERY_LATENT = dataclasses.replace(DEBUG, q_lora_rank=None)
TWO, BOTH = Split(2), Split(2, 2)
CPU = torch.device("cpu")


def model_and_tokens(config, recipe, split=WHOLE):
    generator = torch.Generator().manual_seed(0)
    model = Transformer(config, recipe=Recipe(recipe, "reference"), device=CPU, split=split)
    length = 128 + 1 + config.num_nextn_predict_layers
    tokens = torch.randint(config.vocab_size, (2, length), generator=generator)
    if split == WHOLE:
        model.initialize(generator)
    return model, tokens


def one_step(model, tokens):
    losses, saved = model.loss(tokens, prediction_weight=0.3)
    model.backward(saved)
    return losses.total, {name: p.grad for name, p in model.named_parameters()}


def step_of_rank(rank, ranks, config, recipe, split):
    torch.set_grad_enabled(False)
    whole, tokens = model_and_tokens(config, recipe)
    part, _ = model_and_tokens(config, recipe, split)
    take_part(part, whole, rank=rank)
    loss, gradients = one_step(part, tokens)
    return {"loss": loss, "gradients": gradients}


def check(config, recipe, split):
    """Loss of each rank, of one rank, and the largest relative error of a gradient."""
    results = run_ranks(
        step_of_rank, (config, recipe, split), ranks=2, backend="gloo", timeout_s=120.0
    )
    with torch.no_grad():
        loss, gradients = one_step(*model_and_tokens(config, recipe))
    error = 0.0
    for name, whole in gradients.items():
        parts = [result["gradients"][name] for result in results]
        if parts[0].shape == whole.shape:
            # All hold these weights, each with the gradient of its own tokens.
            pairs = [(parts[0] + parts[1], whole)]
        else:
            pairs = [
                (part, part_of_weight(name, whole, part.shape, rank=rank))
                for rank, part in enumerate(parts)
            ]
        for ours, single in pairs:
            error = max(error, float((ours - single).norm() / single.norm()))
    return [float(result["loss"]) for result in results], float(loss), error


@pytest.mark.parametrize(
    ("config", "split"), [(DEBUG, TWO), (DEBUG, BOTH), (WITHOUT_QUERY_LATENT, TWO)]
)
def test_two_ranks_of_parts_compute_what_one_of_the_whole_does(config, split):
    losses, single, error = check(config, "float32", split)
    assert losses == pytest.approx([single, single], rel=1e-6)
    assert error < 1e-5


def test_in_fp8_the_loss_of_two_ranks_differs_by_the_rounding_of_partial_sums():
    """Its gradients differ by more: a rounded score may choose another expert."""
    losses, single, _ = check(DEBUG, "fp8", TWO)
    assert losses[0] == losses[1]
    assert losses == pytest.approx([single, single], rel=2e-3)


# -- what a rank issues ----------------------------------------------------------------------------

TOKENS, ROWS = 4096, 32_768
V3 = load_model_config("deepseek_v3")


def operators_of(trace, kind, phase, *, own, rows):
    return trace.operators(kind, phase, Workload(own, TOKENS, 1, rows, own * 4, 4))


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_the_flops_of_all_ranks_are_those_of_the_whole(kind, ranks):
    whole = load_trace(TRACE_FOLDER / "deepseek_v3.train.jsonl")
    part = load_trace(TRACE_FOLDER / trace_name("deepseek_v3", "train", "fp8", Split(ranks)))

    for phase in PHASES:
        one = operators_of(whole, kind, phase, own=TOKENS, rows=ROWS)
        mine = operators_of(part, kind, phase, own=TOKENS // ranks, rows=ROWS // ranks)
        assert ranks * sum(o.flops for o in mine) == sum(o.flops for o in one)


def test_experts_of_half_the_width_do_half_the_work_for_the_rows_of_both_ranks():
    recipe = Recipe("fp8", "reference")
    workload = Workload(TOKENS, TOKENS, 1, ROWS, 16_384, 4)
    part = workload._replace(tokens=TOKENS // 2, received_rows=8192)
    whole = record_layer(V3, "moe", workload, recipe=recipe).recorded
    mine = record_layer(V3, "moe", part, recipe=recipe, split=BOTH).recorded

    assert 2 * sum(o.flops for o in mine) == sum(o.flops for o in whole)
    products = {o.name: o for o in mine if o.kind == "grouped_gemm"}
    up, down = products["experts.gate_up_proj"], products["experts.down_proj"]
    # 2,048 columns of gate and as many of up, of which each rank has half.
    assert (up["rows"], up["n"], up["k"]) == (ROWS, 2048, 7168)
    assert (down["rows"], down["n"], down["k"]) == (ROWS, 7168, 1024)
    gathered = next(o for o in mine if o.name == "experts.received.expert_tensor_gather")
    assert (gathered["rows"], gathered.dtype) == (16_384, "fp8_e4m3")


def test_collectives_of_a_layer_move_latents_and_hidden_states():
    """By hand for 4,096 tokens of which each rank has 2,048."""
    trace = load_trace(TRACE_FOLDER / "deepseek_v3.tp2.train.jsonl")
    forward, backward = (
        {
            op.name: op.bytes_written if op.kind == "gather_tokens" else op.bytes_read
            for op in operators_of(trace, "moe", phase, own=2048, rows=ROWS // 2)
            if op.kind in COLLECTIVE_KINDS
        }
        for phase in ("forward", "input_grad")
    )
    latents = {
        "attention.q_latent": 4096 * 1536 * 2,
        "attention.kv_latent": 4096 * 512 * 2,
        "attention.k_rope": 4096 * 64 * 2,
    }
    hidden, quantized = 4096 * 7168 * 2, 4096 * (7168 + 56 * 4)
    gathers = {f"{name}.tensor_gather": size for name, size in latents.items()}
    assert forward == gathers | {
        "attention.o_proj.tensor_scatter": hidden,
        "shared_experts.input.tensor_gather": quantized,
        "shared_experts.tensor_scatter": hidden,
    }
    # Latents are gathered again for the projections that backward recomputes.
    assert backward == gathers | {
        f"{name}.tensor_scatter": size for name, size in latents.items()
    } | {
        "attention.o_proj.tensor_gather": hidden,
        "shared_experts.output.tensor_gather": quantized,
        "shared_experts.input.tensor_gather": quantized,
        "shared_experts.input.tensor_scatter": hidden,
    }


@pytest.mark.parametrize("split", [TWO, BOTH])
@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_formulas_of_parts_equal_the_bytes_of_the_recorded_tensors(kind, split):
    record = record_layer(
        DEBUG, kind, Workload(192, 128, 3, 640, 512, 3), recipe=Recipe("fp8", "reference"),
        split=split,
    )  # fmt: skip
    for operator, moved in zip(record.recorded, record.tensor_bytes, strict=True):
        if operator.kind not in ("embedding", "embedding_backward"):
            assert (operator.bytes_read, operator.bytes_written) == moved


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("recipe", ["fp8", "bfloat16"])
def test_shipped_traces_of_parts_equal_a_new_recording(ranks, recipe):
    split = Split(ranks)
    made = Recipe(recipe, "reference")
    recorded = record_trace(V3, model="deepseek_v3", recipe=made, split=split)
    assert recorded == load_trace(TRACE_FOLDER / trace_name("deepseek_v3", "train", recipe, split))


def test_a_rank_keeps_latents_of_its_own_tokens_and_heads_for_all():
    """Dense layer of DeepSeek-V3 after its forward, by hand, 4,096 tokens over 2 ranks."""
    trace = load_trace(TRACE_FOLDER / "deepseek_v3.tp2.train.jsonl")
    saved = trace.saved_bytes("dense", "forward", Workload(2048, 4096, 1, 0, 0, 0))
    stream = 2 * 2048 * 7168 * 2  # residual and what attention added, BF16
    latents = 2048 * (1536 + 512 + 64) * 2
    columns = 64 * 128  # of attention's output: 12 bits each, an FP32 scale for 128 of them
    output = 4096 * (columns * 3 // 2 + columns // 128 * 4)
    log_sums = 4096 * 64 * 4
    gate_up = 4096 * (18_432 + 18_432 // 128 * 4)  # FP8: half of 2 x 18,432 columns
    assert saved == stream + latents + output + log_sums + gate_up


# -- weights ---------------------------------------------------------------------------------------


def test_gate_and_up_projections_are_split_each_by_itself():
    weight = torch.arange(8.0)[:, None]
    first, second = (
        part_of_weight("mlp.gate_up_proj.weight", weight, torch.Size((4, 1)), rank=rank)
        for rank in range(2)
    )
    assert first.flatten().tolist() == [0, 1, 4, 5]
    assert second.flatten().tolist() == [2, 3, 6, 7]
