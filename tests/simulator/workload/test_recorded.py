"""A trace is found by what it says it is of: layers, job and recipe."""

import dataclasses

import pytest

from reference_model.config import load_model_config
from reference_model.trace import save_trace
from simulator.workload import recorded
from simulator.workload.recorded import shipped_trace

DEBUG = load_model_config("debug")
FP8 = shipped_trace(DEBUG, "train")


def test_each_recipe_has_its_own_trace():
    assert shipped_trace(DEBUG, "train").recipe == "fp8"
    assert shipped_trace(DEBUG, "train", "bfloat16").recipe == "bfloat16"


def test_a_trace_of_another_recipe_is_not_taken_for_the_name_of_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "TRACES", tmp_path)
    trace = dataclasses.replace(FP8, recipe="bfloat16")
    save_trace(trace, tmp_path / "debug.train.jsonl")
    assert shipped_trace(DEBUG, "train", "bfloat16") == trace
    with pytest.raises(ValueError, match="recorded in bfloat16, not in fp8; record one") as error:
        shipped_trace(DEBUG, "train")
    assert str(error.value).endswith("python -m reference_model trace --config debug --recipe fp8")


def test_serving_takes_no_trace_but_one_of_fp8_weights(tmp_path, monkeypatch):
    """Its memory counts FP8 weights."""
    monkeypatch.setattr(recorded, "TRACES", tmp_path)
    decode = dataclasses.replace(FP8, job="decode", recipe="bfloat16")
    save_trace(decode, tmp_path / "debug.decode.jsonl")
    with pytest.raises(ValueError, match=r"decode trace .* in bfloat16, not in fp8; allowed: one"):
        shipped_trace(DEBUG, "decode")
