"""The operators to time."""

import collections

from hardware_profiles.tables import load_measurements, table_path
from reference_model.__main__ import main
from reference_model.config import load_model_config
from reference_model.measure_grid import (
    ALL_SMS,
    requests,
    sparse_operators,
    weight_shapes,
)


def test_what_to_measure_can_be_narrowed_to_kinds_and_a_backend(capsys):
    command = ["measure", "--out", "unused.csv", "--list", "--kinds"]
    assert main([*command, "gemm", "grouped_gemm", "--kernels", "triton"]) == 0
    named = capsys.readouterr().out.splitlines()[1:]  # after the note on narrow tiles
    assert {line.split()[0] for line in named} == {"gemm", "grouped_gemm"}
    assert all(" triton " in line for line in named)
    assert main([*command, "gemv"]) == 2
    assert "--kinds gemv: allowed add, " in capsys.readouterr().err


def test_the_grid_covers_every_weight_forward_and_backward():
    config = load_model_config("deepseek_v3")
    found = {
        (r.operator["n"], r.operator["k"], r.operator["m"], r.operator.accumulate)
        for r in requests(config, model="deepseek_v3")
        if r.operator.kind == "gemm" and r.sms == ALL_SMS and r.kernels == "library"
    }
    for out, into in weight_shapes(config):
        for m in (16, 4096, 16384):
            assert (out, into, m, False) in found
            assert (into, out, m, False) in found
        assert (into, 4096, out, True) in found
    assert (2112, 7168, 4096, False) in found


def test_no_request_is_made_twice():
    config = load_model_config("deepseek_v3")
    wanted = requests(config, model="deepseek_v3")
    assert len(set(wanted)) == len(wanted)


def test_every_kernel_of_sparse_attention_that_is_asked_for_was_timed_on_an_h100():
    asked = sparse_operators(load_model_config("deepseek_v3_2"))
    table = load_measurements(table_path("h100_sxm_reference"))
    timed = {(row.kind, row.sizes, row.dtype) for row in table}
    assert {(o.kind, o.sizes, o.dtype) for o in asked} <= timed
    # Scores, selection and core at 27 and 30 pairs of tokens and context, the norm at 9 lengths.
    counts = collections.Counter(o.kind for o in asked)
    assert counts == {"index_scores": 30, "sparse_mla": 30, "index_topk": 27, "layernorm": 9}
    assert sparse_operators(load_model_config("deepseek_v3")) == []
