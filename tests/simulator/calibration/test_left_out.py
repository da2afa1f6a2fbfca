"""Errors of the kernel model on groups of rows that were left out together."""

from dataclasses import replace

import numpy as np
from made_up_rows import BASE, made_up

from simulator.calibration import left_out
from simulator.calibration.left_out import (
    CutErrors,
    from_another,
    left_out_errors,
    main,
)
from simulator.hardware.kernels.reach import BETWEEN, SHAPE, JudgedCut
from simulator.hardware.prediction import EXTRAPOLATED, INTERPOLATED


def test_a_kernel_that_follows_its_roofline_is_predicted_in_shapes_without_a_row(monkeypatch):
    monkeypatch.setattr(left_out, "SPLITS", 2)
    judged = {each.cut: each for each in left_out_errors("h800_sxm", made_up(), BASE)}

    assert list(judged) == ["alike", "shape", "k", "n", "two octaves of load", "ends"]
    shapes = judged["shape"]
    # Lengths and widths were found on four of the eight shapes and judged on the others, both ways
    # round: seven numbers of rows of each. A table so small is split twice.
    assert (shapes.rows, shapes.splits) == (56, 2)
    assert [len(part.errors) for part, _ in shapes.judged] == 4 * [28]
    # Shapes as trials: four of each half.
    assert len(shapes.trials(np.random.default_rng(0)).errors) == 2 * 8
    assert np.median(np.abs(shapes.errors)) < 0.05
    assert shapes.line().startswith(
        "| h800_sxm | gemm fp8_e4m3 -> bfloat16 | made_up | shape | 56 | 8 |"
    )


def test_one_row_of_each_group_is_a_trial():
    """Two groups of a shape left out, of three rows and of one; half an interval is
    twice the deviation."""
    part = JudgedCut(
        "shape", SHAPE, np.array([0.1, 0.1, 0.1, 0.3]), np.full(4, 0.1), np.array([0, 0, 0, 1])
    )
    between = replace(part, cut="alike", reach=BETWEEN)
    judged = CutErrors("h100_sxm", "gemm", "set", "shape", 4, [(part, 2.0), (between, 1.0)], [])

    found = judged.trials(np.random.default_rng(0))

    assert found.errors.tolist() == [0.1, 0.3, 0.1, 0.3]
    assert found.half.tolist() == [0.2, 0.2, 0.1, 0.1]
    assert found.known.tolist() == [EXTRAPOLATED, EXTRAPOLATED, INTERPOLATED, INTERPOLATED]


def test_one_gpus_rows_say_nothing_wrong_of_its_own():
    (line,) = from_another("h800_sxm", made_up(), "h800_sxm", made_up())
    assert line.startswith("| h800_sxm -> h800_sxm | gemm fp8_e4m3 -> bfloat16 | made_up | 56 | ")
    assert "| -0.0% |" in line or "| +0.0% |" in line


def test_a_folder_that_is_not_there_is_named_and_passed_over(capsys):
    main(["h100_sxm=/nowhere/at/all"])
    assert "h100_sxm: no folder '/nowhere/at/all', passed over" in capsys.readouterr().out
