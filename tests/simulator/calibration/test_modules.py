"""Whole modules as they were timed, beside the sum of their kernels."""

import csv

import pytest

from hardware_profiles.fields import ROOT
from hardware_profiles.schema import load_calibration, load_gpu
from simulator.calibration.modules import ModuleError, cancelling, module_errors, timed_modules

MLP = ["op_name", "kernel_source", "quant_type", "num_token", "hidden_size", "intermediate_size",
       "avg_ms"]  # fmt: skip


def shared_experts(path, *lines):
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = [
            ["mlp", "deepseek_v3", "fp8_block", tokens, "7168", "2048", ms] for tokens, ms in lines
        ]
        csv.writer(file).writerows([MLP, *rows])
    return path


def test_a_table_of_modules_gives_their_sizes_and_times(tmp_path):
    path = shared_experts(tmp_path / "mlp.csv", ("1024", "0.0919"))
    (timed,) = timed_modules(path, load_gpu("h200_sxm"))
    assert timed.names == ("shared expert",)
    assert (timed.tokens.tolist(), timed.seconds.tolist()) == ([1024], [pytest.approx(91.9e-6)])


def test_sums_stand_beside_modules_by_size(tmp_path):
    calibration = load_calibration("h200_sxm_reference")
    once = shared_experts(tmp_path / "once.csv", ("1024", "0.1"), ("4096", "0.3"))
    twice = shared_experts(tmp_path / "twice.csv", ("1024", "0.2"), ("4096", "0.6"))
    of_once, _ = module_errors([once], calibration)
    of_twice, _ = module_errors([twice], calibration)
    assert [error.size for error in of_once] == ["512 to 4,095 tokens", "4,096 to 32,767 tokens"]
    # The same sums over twice the time.
    assert [1 + error.error for error in of_twice] == [
        pytest.approx((1 + error.error) / 2) for error in of_once
    ]


def test_modules_of_a_gpu_that_no_shipped_cluster_has_stand_beside_its_kernels(tmp_path):
    mine = tmp_path / "mine.yaml"
    shipped = (ROOT / "gpus" / "h200_sxm.yaml").read_text(encoding="utf-8")
    mine.write_text(shipped.replace("name: h200_sxm", "name: mine"), encoding="utf-8")
    calibration = load_calibration("h200_sxm_reference")
    on_mine = calibration.model_copy(update={"gpu": str(mine)})
    table = shared_experts(tmp_path / "mlp.csv", ("1024", "0.1"))
    assert module_errors([table], on_mine) == module_errors([table], calibration)


def test_errors_of_opposite_sign_are_named():
    def error(module, size, value):
        return ModuleError(module, size, 1, 1e-3, value, value, value)

    errors = [
        error("attention", "1 to 7 tokens", -0.3),
        error("attention", "8 to 63 tokens", 0.12),
        error("shared expert", "1 to 7 tokens", -0.3),
        error("shared expert", "8 to 63 tokens", 0.04),
    ]
    assert cancelling(errors) == [
        "attention: errors cancel, -30% at 1 to 7 tokens and +12% at 8 to 63 tokens"
    ]
