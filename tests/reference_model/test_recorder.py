"""What is recorded is what runs, and the formulas that stand in for it equal it."""

import collections
import dataclasses

import pytest
import torch

from reference_model.blocks import DenseBlock
from reference_model.config import load_model_config, shipped_configs
from reference_model.model import Transformer
from reference_model.parameter_counts import parameter_counts, training_flops_per_token
from reference_model.precision import RECIPES, Recipe
from reference_model.recorder import (
    OperatorRecorder,
    prepare_weights,
    record_layer,
    record_trace,
    solve_affine,
)
from reference_model.trace import LAYER_KINDS, PHASES, TRACE_FOLDER, Workload, load_trace

FP8 = Recipe("fp8", "reference")
OWN = {path.name.partition(".")[0] for path in TRACE_FOLDER.glob("*.train.jsonl")}
RECORDED = [config for config in shipped_configs() if config in OWN]
"""Models with recordings of their own; another of the same shapes uses theirs."""
WORKLOAD = Workload(4096, 4096, 1, 32768, 30679, 4)

# Views cost nothing; memory is allocated, not touched. Nothing else may run outside an operator.
ALLOWED = {
    "aten.empty.memory_format",
    "aten.new_empty.default",
    "aten.slice.Tensor",
    "aten.t.default",
    "aten.transpose.int",
    "aten.view.default",
}


@pytest.fixture(scope="module")
def layers():
    config = load_model_config("deepseek_v3")
    return {kind: record_layer(config, kind, WORKLOAD, recipe=FP8) for kind in LAYER_KINDS}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("kind", ["embedding", "dense", "moe", "mtp", "head"])
def test_formulas_equal_the_bytes_of_the_recorded_tensors(name, kind):
    record = record_layer(
        load_model_config("debug"), kind, Workload(384, 128, 3, 640, 512, 3),
        recipe=Recipe(name, "reference"),
    )  # fmt: skip
    for operator, moved in zip(record.recorded, record.tensor_bytes, strict=True):
        if operator.kind in ("embedding", "embedding_backward"):
            continue  # of the table only the rows of the tokens are touched
        assert (operator.bytes_read, operator.bytes_written) == moved, operator


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("model", ["deepseek_v3_2", "glm_5"])
def test_formulas_of_sparse_attention_equal_the_bytes_of_the_recorded_tensors(model, name):
    workload = Workload(4096, 4096, 1, 640, 512, 1)
    config = dataclasses.replace(load_model_config(model), vocab_size=16)
    record = record_layer(config, "dense", workload, recipe=Recipe(name, "reference"))
    kinds = {operator.kind for operator in record.recorded}
    assert {"attention_masked_forward", "attention_masked_backward", "index_topk"} <= kinds
    assert set(record.others) <= ALLOWED | {"aten.select.int"}
    for operator, moved in zip(record.recorded, record.tensor_bytes, strict=True):
        assert (operator.bytes_read, operator.bytes_written) == moved, operator


@pytest.mark.parametrize("kind", ["embedding", "dense", "moe", "mtp", "head"])
def test_formulas_equal_the_bytes_at_full_size(layers, kind):
    for operator, moved in zip(layers[kind].recorded, layers[kind].tensor_bytes, strict=True):
        if operator.kind not in ("embedding", "embedding_backward"):
            assert (operator.bytes_read, operator.bytes_written) == moved


@pytest.mark.parametrize("kind", ["embedding", "dense", "moe", "mtp", "head"])
def test_nothing_runs_outside_the_operators(layers, kind):
    assert set(layers[kind].others) <= ALLOWED


@pytest.mark.parametrize("kind", ["dense", "moe", "mtp", "head"])
def test_operator_names_are_unique_within_a_phase(layers, kind):
    names = collections.Counter(
        (operator.phase, operator.name) for operator in layers[kind].recorded
    )
    assert max(names.values()) == 1


@pytest.mark.parametrize(("recipe", "of_recipe"), [("fp8", ""), ("bfloat16", ".bfloat16")])
@pytest.mark.parametrize("config", RECORDED)
def test_recorded_traces_equal_a_new_recording(config, recipe, of_recipe):
    recipe = Recipe(recipe, "reference")
    recorded = record_trace(load_model_config(config), model=config, recipe=recipe)
    assert recorded == load_trace(TRACE_FOLDER / f"{config}.train{of_recipe}.jsonl")


@pytest.mark.parametrize("config", RECORDED)
def test_model_flops_of_a_trace_equal_the_formula_of_its_config(config):
    """Over the whole main model, without the router, which the published count leaves out."""
    shape = load_model_config(config)
    trace = load_trace(TRACE_FOLDER / f"{config}.train.jsonl")
    assert trace.shape_digest == shape.shape_digest
    context, top_k = 4096, shape.num_experts_per_tok
    workload = Workload(context, context, 1, context * top_k, context, shape.n_routed_experts)
    layers = {
        "embedding": 1,
        "dense": shape.first_k_dense_replace,
        "moe": shape.num_moe_layers,
        "head": 1,
    }
    model = executed = 0
    for kind, count in layers.items():
        for phase in PHASES:
            for operator in trace.operators(kind, phase, workload):
                if not operator.name.startswith("gate.proj"):
                    model += count * operator.model_flops
                    executed += count * operator.flops
    formula = training_flops_per_token(shape, context=context, causal=True)
    assert model / context == pytest.approx(formula, rel=1e-12)
    assert executed > model


def test_recomputation_repeats_the_mla_up_projection_and_the_scores(layers):
    recorded = layers["moe"].recorded
    again = {o.name for o in recorded if o.recompute}
    assert {"attention.q_b_proj", "attention.kv_b_proj", "shared_experts.swiglu"} <= again
    assert {"attention.q_a_norm", "attention.kv_a_norm", "mlp_norm"} <= again
    extra = sum(o.flops - o.model_flops for o in recorded)
    up_projections = 2 * 4096 * (1536 * 24576 + 512 * 32768)
    scores = 4096**2 * 128 * 192
    assert extra == up_projections + scores


def test_segments_are_those_that_dualpipe_schedules(layers):
    segments = {phase: [] for phase in PHASES}
    for operator in layers["moe"].recorded:
        order = segments[operator.phase]
        if not order or order[-1] != operator.segment:
            order.append(operator.segment)
    assert segments["forward"] == ["attention", "dispatch", "mlp", "combine"]
    assert segments["input_grad"] == ["combine", "mlp", "dispatch", "attention"]
    assert segments["weight_grad"] == ["mlp", "attention"]


def test_precisions_are_those_of_the_report(layers):
    """Section 3.3: which GEMMs are FP8; dispatch FP8 and combine BF16, both ways."""
    operators = layers["mtp"].recorded + layers["dense"].recorded
    for operator in operators:
        gemm = operator.kind in ("gemm", "grouped_gemm", "grouped_gemm_weight_grad")
        high = operator.name.startswith(("gate.proj", "head.proj"))
        if gemm:
            assert operator.dtype == ("bfloat16" if high else "fp8_e4m3"), operator
        if operator.accumulate:
            assert operator.out_dtype == "float32"
        if operator.kind == "dispatch":
            assert operator.dtype == "fp8_e4m3"
        if operator.kind in ("combine", "attention_forward", "attention_backward"):
            assert operator.dtype == "bfloat16"


def test_bytes_kept_for_backward_are_those_of_the_recipe(layers):
    """One MoE layer: inputs as they travelled, latents, E5M6 attention output, FP8 gate and up."""

    def tiled(rows, columns):
        return rows * (columns + columns // 128 * 4)

    hidden, tokens, rows, received = 7168, 4096, 32768, 30679
    expected = (
        2 * 2 * tokens * hidden  # residual stream, attention's update
        + 2 * tokens * (1536 + 576)  # latents
        + tokens * (16384 * 3 // 2 + 128 * 4) + 4 * tokens * 128  # output, log-sum-exp
        + tokens * (256 * 4 + 8 * 8)  # gate logits and choices
        + tiled(received, hidden) + tiled(rows, 4096) + tiled(tokens, 4096)
        + rows * (4 + 4) + received * 8 * 4 + 4 * 4  # where rows come from and go to
    )  # fmt: skip
    assert layers["moe"].saved["forward"] == expected


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_on_cpu_issues_the_operators_recorded_on_meta(recipe):
    config = load_model_config("debug")
    recipe = Recipe(recipe, "reference")
    model = Transformer(config, recipe=recipe, device=torch.device("cpu"))
    model.initialize(torch.Generator().manual_seed(0))
    prepare_weights(model)
    sequences, context = 2, 64
    count = sequences * context
    tokens = torch.randint(config.vocab_size, (sequences, context + 2))
    with OperatorRecorder() as recorder:
        _, saved = model.loss(tokens, prediction_weight=0.3)
        model.backward(saved)

    experts, top_k = config.n_routed_experts, config.num_experts_per_tok
    workload = Workload(count, context, sequences, count * top_k, count, experts)
    expected = collections.Counter()
    for kind in LAYER_KINDS:
        record = record_layer(config, kind, workload, recipe=recipe)
        times = {"dense": config.first_k_dense_replace, "moe": config.num_moe_layers}.get(kind, 1)
        for operator in record.recorded:
            expected[operator] += times
    ran = collections.Counter(recorder.recorded)
    differing = (expected - ran) + (ran - expected)
    # The first layer finds no update to add to the embedding: its norm is a plain one.
    assert {(o.name, o.kind): n for o, n in differing.items()} == {
        ("attention.input_norm", "rmsnorm"): 1,
        ("attention.input_norm", "rmsnorm_residual"): 1,
    }


@pytest.mark.parametrize("name", shipped_configs())
def test_parameter_counts_equal_those_of_the_model_on_meta(name):
    config = load_model_config(name)
    counts = parameter_counts(config)
    meta = torch.device("meta")
    model = Transformer(config, recipe=FP8, device=meta)

    def count(module):
        biases = (getattr(m, "e_score_correction_bias", None) for m in module.modules())
        held = (*module.parameters(), *(bias for bias in biases if bias is not None))
        return sum(tensor.numel() for tensor in held)

    assert count(model) == counts.total + counts.mtp
    assert (0 if model.mtp is None else count(model.mtp)) == counts.mtp
    assert count(model.embed_tokens) == counts.embedding
    assert count(model.lm_head) == counts.head
    assert count(model.norm) == counts.final_norm
    dense, moe = model.layers[0], model.layers[-1]
    assert isinstance(dense, DenseBlock)
    assert count(dense) == counts.dense_layer
    assert count(dense.mlp) == counts.dense_feed_forward
    assert count(moe) == counts.moe_layer
    assert count(moe.self_attn) == counts.attention
    assert count(moe.mlp.gate) == counts.router
    assert count(moe.mlp.shared_experts) == counts.shared_experts
    assert count(moe.mlp.experts) == counts.expert * config.n_routed_experts


def test_sizes_that_are_not_affine_are_refused():
    with pytest.raises(ValueError, match=r"size n: .* is not affine in whole numbers"):
        solve_affine([1, 2, 3, 4, 5, 6, 8], 0, what="size n")
    with pytest.raises(ValueError, match=r"size n: 9 at .* gives 1"):
        solve_affine([1] * 7, 9, what="size n")
