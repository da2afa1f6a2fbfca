"""Layers shared among GPUs: their collectives, and the work and bytes of all of them together."""

import pytest

from reference_model.config import load_model_config
from reference_model.trace import PHASES, Operator, Split
from simulator.workload.chunk import operators_of
from simulator.workload.context_parallel import operators_of_part
from simulator.workload.load import Load
from simulator.workload.memory import layer_memory
from simulator.workload.recorded import recorded_trace
from simulator.workload.tensor_parallel import (
    check_tokens,
    gathered_bytes,
    shared_axis,
    straddling,
)

V3 = load_model_config("deepseek_v3")
CONTEXT = 4096


def load(tokens, *, rows=8, context=CONTEXT):
    return Load(
        tokens=tokens,
        context=context,
        sequences=1,
        expert_rows=rows * tokens,
        received_rows=4 * tokens,
        local_experts=4,
        group_tokens=tokens,
        group_sequences=1,
    )


def trace_of(tensor):
    return recorded_trace(V3, "train", "fp8", Split(tensor))


def collective(kind, name, rows, *, dtype="bfloat16"):
    return Operator(
        name=name, kind=kind, phase="forward", segment="mlp", dtype=dtype, out_dtype=dtype,
        sizes=(("columns", 128), ("ranks", 4), ("rows", rows)), recompute=False, accumulate=False,
    )  # fmt: skip


def test_a_collective_names_its_axis_and_the_bytes_of_its_whole_group():
    gather = collective("gather_tokens", "mlp.input.tensor_gather", 64, dtype="fp8_e4m3")
    scatter = collective("scatter_sums", "experts.expert_tensor_scatter", 64)
    assert (shared_axis(gather), shared_axis(scatter)) == ("tensor", "expert_tensor")
    # 128 FP8 values and a scale of each of 64 tokens; a GPU has 16 of them, before or after.
    assert gathered_bytes(gather) == 64 * (128 + 4)
    assert gather.bytes_read == 16 * (128 + 4)
    assert gathered_bytes(scatter) == 64 * 128 * 2
    assert scatter.bytes_written == 16 * 128 * 2


def test_no_other_operator_is_a_collective():
    names = {
        op.name
        for phase in PHASES
        for op in operators_of(trace_of(1), load(CONTEXT))("moe", phase)
        if shared_axis(op) is not None
    }
    assert names == set()


@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_weights_of_all_gpus_are_those_of_one_and_what_all_hold(tensor):
    """By hand of a layer with four local experts: what is not split is on every GPU."""
    whole, part = (
        layer_memory(
            V3, trace_of(ranks), operators_of(trace_of(ranks), load(CONTEXT // ranks)),
            load(CONTEXT // ranks), ["moe"],
        )["moe"].parameters
        for ranks in (1, tensor)
    )  # fmt: skip
    down = 7168 * 1536 + 7168 * 576  # projections to the latents
    rest = 1536 + 512 + 2 * 7168 + 256 * 7168 + 256  # norms, router and its bias
    heads = 1536 * 24_576 + 512 * 32_768 + 16_384 * 7168 + 3 * 7168 * 2048
    assert part.duplicated == down + rest
    assert part.replicated.count == down + rest + heads // tensor
    experts = 4 * 3 * 7168 * 2048
    assert part.experts == whole.experts
    assert (part.experts.count, part.experts.quantized) == (experts, experts)
    assert part.experts.cast_bytes == experts * (1 + 4 / 128**2)
    assert part.replicated.quantized == down + heads // tensor
    assert (whole.duplicated, whole.replicated.count) == (0, down + rest + heads)


@pytest.mark.parametrize(
    ("kind", "whole", "duplicated"),
    [
        ("embedding", 129_280 * 7168, 0),
        ("head", 129_280 * 7168 + 7168, 7168),
        # Projection of 2 x 7,168 and three norms of its own, not split, beside a layer's.
        ("mtp", 232_997_120 + 2 * 7168**2 + 3 * 7168, 16_990_464 + 2 * 7168**2 + 3 * 7168),
    ],
)
def test_vocabulary_is_split_and_the_prediction_modules_projection_is_not(kind, whole, duplicated):
    trace = trace_of(2)
    half = load(CONTEXT // 2)
    held = layer_memory(V3, trace, operators_of(trace, half), half, [kind])[kind].parameters
    assert held.duplicated == duplicated
    assert held.replicated.count == duplicated + (whole - duplicated) // 2


def test_a_gpu_keeps_half_of_what_one_alone_keeps():
    """Saved by a layer's forward at 4,096 tokens, by hand: 2,048 of its own, heads for all."""
    one, two = (
        layer_memory(
            V3, trace_of(ranks), operators_of(trace_of(ranks), load(4096 // ranks)),
            load(4096 // ranks), ["moe"],
        )["moe"].saved
        for ranks in (1, 2)
    )  # fmt: skip
    own = 2 * 7168 * 2 + (1536 + 512 + 64) * 2 + 256 * 4 + 8 * 8  # stream, latents, router
    of_all = 64 * 128 * 3 // 2 + 64 * 4 + 64 * 4 + 2048 + 16 * 4  # output, log-sums, shared
    received, rows = 7168 + 56 * 4 + 8 * 4, 4096 + 32 * 4 + 4 + 4
    assert two == 2048 * own + 4096 * of_all + 4 * 2048 * received + 8 * 2048 * rows + 4 * 4
    assert two - 4 * 4 == (one - 4 * 4) / 2


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("phase", ["forward", "input_grad", "weight_grad"])
def test_sequences_and_layers_shared_at_once_do_the_work_of_one_gpu(kind, phase):
    """Two GPUs share layers and four share sequences of 32,768 tokens. What is repeated is the
    expansion of keys and values, by each of the four in its own heads."""
    context = 32_768
    one = operators_of(trace_of(1), load(context, context=context))(kind, phase)
    mine = operators_of_part(trace_of(2), load(context // 8, context=context), 4)(kind, phase)
    again = 4 * 2 * context * 512 * 32_768  # kv_b_proj of all tokens on each of four
    repeated = again - again // 4 if any("kv_b_proj" in op.name for op in one) else 0
    times = sum(op.kind == "gemm" and op.name.startswith("attention.kv_b_proj") for op in one)
    assert 8 * sum(op.flops for op in mine) == sum(op.flops for op in one) + times * repeated
    latents = [op for op in mine if op.name == "attention.kv_latent.tensor_gather"]
    assert [op["rows"] for op in latents] == [context] * len(latents)
    assert len(latents) == (phase != "weight_grad")


@pytest.mark.parametrize(("tensor", "context", "multiple"), [(3, 1, 3), (8, 1024, 8192)])
def test_tokens_that_gpus_cannot_share_are_refused(tensor, context, multiple):
    with pytest.raises(ValueError, match=f"training.sequence_length a multiple of {multiple}$"):
        check_tokens(4096, tensor=tensor, context=context)


def test_groups_that_cross_domains_are_told():
    assert straddling({"tensor": (8,), "context": (4,)}) == []
    (said,) = straddling({"tensor": (8, 8)})
    assert said.startswith("tensor-parallel communication: groups of 16 GPUs lie in 2 NVLink")
