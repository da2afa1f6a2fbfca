"""Templates become operators of any workload, and traces survive the disk."""

import json
import os
from pathlib import Path

import pytest

from reference_model.trace import (
    TRACE_FOLDER,
    Affine,
    OperatorTemplate,
    OperatorTrace,
    Workload,
    load_trace,
    save_trace,
    user_cache_folder,
)

WORKLOAD = Workload(
    tokens=4096,
    context=4096,
    sequences=1,
    expert_rows=32768,
    received_rows=30679,
    local_experts=4,
)


def small_trace():
    template = OperatorTemplate(
        name="attention.q_a_proj", kind="gemm", phase="forward", segment="attention",
        dtype="fp8_e4m3", out_dtype="bfloat16",
        sizes=(("k", Affine(7168)), ("m", Affine(3, (("tokens", 2),))), ("n", Affine(1536))),
        recompute=True, accumulate=False,
    )  # fmt: skip
    return OperatorTrace(
        model="tiny", shape_digest="0", job="train", recipe="fp8",
        templates={("moe", "forward"): (template,)},
        saved={("moe", "forward"): Affine(7, (("expert_rows", 5),))},
    )  # fmt: skip


def test_templates_become_operators_of_a_workload():
    (q_a,) = small_trace().operators("moe", "forward", WORKLOAD)
    assert q_a["m"] == 2 * 4096 + 3
    assert q_a.recompute
    assert small_trace().operators("moe", "weight_grad", WORKLOAD) == []
    assert small_trace().saved_bytes("moe", "forward", WORKLOAD) == 7 + 5 * 32768
    assert small_trace().saved_bytes("moe", "input_grad", WORKLOAD) == 0


def test_an_unknown_layer_kind_or_phase_is_named():
    with pytest.raises(ValueError, match=r"layer kind 'dense' is not one of \['moe'\]"):
        small_trace().operators("dense", "forward", WORKLOAD)
    with pytest.raises(ValueError, match="phase 'backward' is not one of"):
        small_trace().operators("moe", "backward", WORKLOAD)


def test_a_trace_survives_the_disk(tmp_path):
    save_trace(small_trace(), tmp_path / "trace.jsonl")
    assert load_trace(tmp_path / "trace.jsonl") == small_trace()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "magic"}, r"line 3: kind 'magic' is not one of the \d+ of kinds.py$"),
        ({"kind": "gem"}, "line 3: kind 'gem' is not one of gemm$"),
        ({"phase": "sideways"}, "line 3: phase 'sideways'"),
        ({"sizes": {"m": 1}}, r"line 3: sizes \['m'\] of kind 'gemm' are not"),
        ({"sizes": {"m": {"moon": 1}, "n": 1, "k": 1}}, r"line 3: variables \['moon'\]"),
        (
            {"sizes": {"m": {"tokens": {}}, "n": 1, "k": 1}},
            "line 3: a size is neither a whole number",
        ),
        ({"sizes": {"m": ["tokens"], "n": 1, "k": 1}}, "line 3: a size is neither a whole number"),
        ({"sizes": {"m": 10**20, "n": 1, "k": 1}}, "line 3: a size is neither a whole number"),
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


def test_a_moe_layer_of_the_recorded_trace_has_the_gemms_of_the_published_profile():
    """M, N, K of h800_training_trace.md, section 2."""
    trace = load_trace(TRACE_FOLDER / "deepseek_v3.train.jsonl")
    gemms = {
        (phase, o.name): (o["m"], o["n"], o["k"])
        for phase in ("forward", "input_grad", "weight_grad")
        for o in trace.operators("moe", phase, WORKLOAD)
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


def test_what_can_be_made_again_lies_in_the_cache_of_the_user_if_there_is_one(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert user_cache_folder() == Path("/caches/dsv3sim")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert user_cache_folder() == Path("/home/someone/.cache/dsv3sim")
    # As in a container with a user that it does not know.
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert user_cache_folder() == Path("/dev/null/dsv3sim")
