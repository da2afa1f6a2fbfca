"""Operators count what published kernels count, and traces survive the disk."""

import dataclasses
import json

import pytest

from reference_model.trace import (
    KINDS,
    TRACE_FOLDER,
    Affine,
    Operator,
    OperatorTemplate,
    OperatorTrace,
    load_trace,
    save_trace,
)

WORKLOAD = {
    "tokens": 4096,
    "context": 4096,
    "sequences": 1,
    "expert_rows": 32768,
    "received_rows": 30679,
    "local_experts": 4,
}


def operator(kind, dtype="fp8_e4m3", out_dtype="bfloat16", accumulate=False, **sizes):
    return Operator(
        name="op", kind=kind, phase="forward", segment="mlp", dtype=dtype, out_dtype=out_dtype,
        sizes=tuple(sorted(sizes.items())), recompute=False, accumulate=accumulate,
    )  # fmt: skip


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


def test_gemm_bytes_hold_operands_scales_and_result():
    gemm = operator("gemm", m=4096, n=1536, k=7168)
    assert gemm.flops == 2 * 4096 * 1536 * 7168
    assert gemm.bytes_read == 4096 * 7168 + 4096 * 56 * 4 + 1536 * 7168 + 12 * 56 * 4
    assert gemm.bytes_written == 4096 * 1536 * 2


def test_a_weight_gradient_also_reads_its_accumulator():
    gemm = operator("gemm", out_dtype="float32", accumulate=True, m=1536, n=7168, k=4096)
    tiles = (1536 + 7168) * (4096 + 32 * 4)
    assert gemm.bytes_read == tiles + 1536 * 7168 * 4
    assert gemm.bytes_written == 1536 * 7168 * 4


def test_twelve_bit_floats_take_a_byte_and_a_half():
    cast = operator("quantize", "bfloat16", "e5m6", rows=10, columns=256)
    assert cast.bytes_written == 10 * 256 * 3 // 2 + 10 * 2 * 4


def test_recomputed_operators_have_no_model_flops():
    gemm = operator("gemm", m=1, n=1, k=128)
    again = dataclasses.replace(gemm, recompute=True)
    assert (gemm.model_flops, again.model_flops, again.flops) == (256, 0, 256)


def test_operators_are_hashable_and_name_their_sizes():
    gemm = operator("gemm", m=1, n=2, k=3)
    assert len({gemm, operator("gemm", m=1, n=2, k=3)}) == 1
    assert gemm["k"] == 3
    with pytest.raises(KeyError):
        gemm["rows"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_counts_flops_and_bytes_of_its_sizes(kind):
    sizes = dict.fromkeys(KINDS[kind].sizes, 128)
    one = operator(kind, "bfloat16", "bfloat16", **sizes)
    assert one.flops >= 0
    assert one.bytes_read > 0
    assert one.bytes_written > 0


def small_trace():
    template = OperatorTemplate(
        name="attention.q_a_proj", kind="gemm", phase="forward", segment="attention",
        dtype="fp8_e4m3", out_dtype="bfloat16",
        sizes=(("k", Affine(7168)), ("m", Affine(3, (("tokens", 2),))), ("n", Affine(1536))),
        recompute=True, accumulate=False,
    )  # fmt: skip
    return OperatorTrace(
        model="tiny", config_digest="0", job="train", recipe="fp8",
        templates={("moe", "forward"): (template,)},
        saved={("moe", "forward"): Affine(7, (("expert_rows", 5),))},
    )  # fmt: skip


def test_templates_become_operators_of_a_workload():
    (q_a,) = small_trace().operators("moe", "forward", **WORKLOAD)
    assert q_a["m"] == 2 * 4096 + 3
    assert q_a.recompute
    assert small_trace().operators("moe", "weight_grad", **WORKLOAD) == []
    assert small_trace().saved_bytes("moe", "forward", **WORKLOAD) == 7 + 5 * 32768
    assert small_trace().saved_bytes("moe", "input_grad", **WORKLOAD) == 0


def test_an_unknown_layer_kind_or_phase_is_named():
    with pytest.raises(ValueError, match=r"layer kind 'dense' is not one of \['moe'\]"):
        small_trace().operators("dense", "forward", **WORKLOAD)
    with pytest.raises(ValueError, match="phase 'backward' is not one of"):
        small_trace().operators("moe", "backward", **WORKLOAD)


def test_a_trace_survives_the_disk(tmp_path):
    save_trace(small_trace(), tmp_path / "trace.jsonl")
    assert load_trace(tmp_path / "trace.jsonl") == small_trace()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "magic"}, "line 3: kind 'magic' is not one of"),
        ({"phase": "sideways"}, "line 3: phase 'sideways'"),
        ({"sizes": {"m": 1}}, r"line 3: sizes \['m'\] of kind 'gemm' are not"),
        ({"sizes": {"m": {"moon": 1}, "n": 1, "k": 1}}, r"line 3: variables \['moon'\]"),
        ({"dtype": "float3"}, "line 3: dtype 'float3'"),
    ],
)
def test_a_damaged_trace_names_file_line_and_field(tmp_path, change, message):
    path = tmp_path / "trace.jsonl"
    save_trace(small_trace(), path)
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | change)
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message) as error:
        load_trace(path)
    assert str(path) in str(error.value)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text("")
    with pytest.raises(ValueError, match="format None"):
        load_trace(path)
    path.write_text("no json")
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        load_trace(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="line 1 is list"):
        load_trace(path)


def test_a_moe_layer_of_the_shipped_trace_has_the_gemms_of_the_published_profile():
    """M, N, K of h800_training_trace.md, section 2."""
    trace = load_trace(TRACE_FOLDER / "deepseek_v3.train.jsonl")
    gemms = {
        (phase, o.name): (o["m"], o["n"], o["k"])
        for phase in ("forward", "input_grad", "weight_grad")
        for o in trace.operators("moe", phase, **WORKLOAD)
        if o.kind == "gemm" and not o.recompute
    }
    assert gemms["forward", "attention.q_a_proj"] == (4096, 1536, 7168)
    assert gemms["forward", "attention.kv_a_proj"] == (4096, 576, 7168)
    assert gemms["forward", "attention.q_b_proj"] == (4096, 24576, 1536)
    assert gemms["forward", "attention.kv_b_proj"] == (4096, 32768, 512)
    assert gemms["forward", "attention.o_proj"] == (4096, 7168, 16384)
    assert gemms["forward", "gate.proj"] == (4096, 256, 7168)
    assert gemms["forward", "shared_experts.gate_up_proj"] == (4096, 4096, 7168)
    assert gemms["forward", "shared_experts.down_proj"] == (4096, 7168, 2048)
    assert gemms["input_grad", "attention.o_proj.input_grad"] == (4096, 16384, 7168)
    assert gemms["input_grad", "attention.kv_a_proj.input_grad"] == (4096, 7168, 576)
    assert gemms["weight_grad", "attention.q_b_proj.weight_grad"] == (24576, 1536, 4096)
    assert gemms["weight_grad", "attention.kv_a_proj.weight_grad"] == (576, 7168, 4096)
    assert gemms["input_grad", "gate.proj.weight_grad"] == (256, 7168, 4096)
    assert len(gemms) == 8 + 8 + 1 + 7  # forward, input gradients, the gate's own, weight gradients
