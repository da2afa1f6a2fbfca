"""A module's one time is shared out among its kernels."""

import csv

import pytest

from simulator.calibration.tables import import_table

MOE = ["op_name", "kernel_source", "moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk",
       "num_experts", "moe_ep_size", "distribution", "latency"]  # fmt: skip


def test_the_one_time_of_a_module_is_shared_out_by_the_times_at_peak(tmp_path):
    # 512 tokens of the group at EP8 are 512 rows on this GPU's 32 experts. Weights decide: gate and
    # up read twice the bytes of down, and so take twice its time but for the activations.
    lines = [
        ["moe_generation", "deepepmoe", "fp8_block", "512", "7168", "2048", "8", "256", "8",
         "uniform", "0.5"],
        ["moe_generation", "deepepmoe", "fp8_block", "512", "7168", "2048", "8", "256", "8",
         "power_law_1.2", "0.7"],
        ["moe_context", "deepepmoe", "fp8_block", "512", "7168", "2048", "8", "256", "8",
         "uniform", "0.4"],
    ]  # fmt: skip
    with (tmp_path / "moe.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([MOE, *lines])
    table = import_table(tmp_path / "moe.csv", gpu="h100_sxm")
    up, swiglu, down = table.measurements
    assert (up.kind, swiglu.kind, down.kind) == (
        "masked_grouped_gemm", "swiglu", "masked_grouped_gemm",
    )  # fmt: skip
    assert dict(up.sizes) == {"rows": 512, "n": 4096, "k": 7168, "groups": 32}
    assert dict(down.sizes) == {"rows": 512, "n": 7168, "k": 2048, "groups": 32}
    assert up.seconds + swiglu.seconds + down.seconds == pytest.approx(0.5e-3, rel=1e-12)
    assert up.seconds / down.seconds == pytest.approx(2.0, rel=0.02)
    assert [text.split(" set aside")[0] for text in table.warnings[-2:]] == ["moe.csv: 1 x"] * 2
    assert [text[-6:] for text in table.warnings[-2:]] == ["line 3", "line 4"]
