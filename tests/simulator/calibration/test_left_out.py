"""Errors of the kernel model on groups of rows that were left out together."""

from dataclasses import replace

import numpy as np
import pytest
from made_up_rows import BASE, made_up

from simulator.calibration.left_out import (
    CutErrors,
    Trials,
    coverage_table,
    from_another,
    left_out_errors,
    main,
    measured_trials,
)
from simulator.hardware.kernels.reach import BETWEEN, SHAPE, JudgedCut
from simulator.hardware.prediction import EXTRAPOLATED, INTERPOLATED, MEASURED, NORMAL_80


def test_a_kernel_that_follows_its_roofline_is_predicted_in_shapes_without_a_row():
    judged = {each.cut: each for each in left_out_errors("h800_sxm", made_up(), BASE)}

    assert list(judged) == ["alike", "shape", "k", "n", "two octaves of load", "ends"]
    shapes = judged["shape"]
    # Lengths and widths were found on four of the eight shapes and judged on the others, both ways
    # round: seven numbers of rows of each.
    assert shapes.rows == 56
    assert [len(part.errors) for part, _ in shapes.judged] == [28, 28]
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


def test_a_row_timed_again_elsewhere_is_judged_by_its_repeats_and_the_time_of_measurement():
    """Three shapes of one row each, repeated within 1%. Timed again they take 1, 2 and 6% longer,
    of which the median, 2%, is the other GPU's. Of both times off, the half-width is
    1.2816 sqrt(1%^2 + 2 x 2.06%^2) = 3.95%: the third lies outside."""
    first = [replace(made_up()[place], spread=0.01, seconds=0.004) for place in (0, 7, 14)]
    assert len({dict(row.sizes)["n"] * dict(row.sizes)["k"] for row in first}) == 3
    again = [
        replace(row, seconds=0.004 * more)
        for row, more in zip(first, (1.01, 1.02, 1.06), strict=True)
    ]

    ((family, found),) = measured_trials([(first, again)])

    assert family == "gemm fp8_e4m3 -> bfloat16"
    ratios = [np.log(more / 1.02) for more in (1.01, 1.02, 1.06)]
    assert sorted(found.errors) == pytest.approx(ratios)
    # 40 ns are nothing of 4 ms.
    assert found.half == pytest.approx(NORMAL_80 * (0.01**2 + 2 * 0.0206**2) ** 0.5, rel=1e-6)
    assert found.known.tolist() == [MEASURED] * 3


def test_families_of_few_trials_are_pooled_and_each_class_stands_by_itself():
    few = Trials(np.array([0.1]), np.array([0.05]), np.array([MEASURED]))
    many = Trials(np.zeros(40), np.full(40, 0.05), np.full(40, INTERPOLATED))

    lines = list(coverage_table([("gemm", few), ("cast", few), ("copy", many)]))[2:]

    cells = [[cell.strip() for cell in line.strip("|").split("|")][:4] for line in lines]
    assert cells == [
        ["measured", "*all*", "2", "0%"],
        ["measured", "others, pooled", "2", "0%"],
        ["interpolated", "*all*", "40", "100%"],
        ["interpolated", "copy", "40", "100%"],
    ]


def test_one_gpus_rows_say_nothing_wrong_of_its_own():
    (line,) = from_another("h800_sxm", made_up(), "h800_sxm", made_up())
    assert line.startswith("| h800_sxm -> h800_sxm | gemm fp8_e4m3 -> bfloat16 | 56 | ")
    assert "| -0.0% |" in line or "| +0.0% |" in line


def test_a_folder_that_is_not_there_is_named_and_passed_over(capsys):
    main(["h100_sxm=/nowhere/at/all"])
    assert "h100_sxm: no folder '/nowhere/at/all', passed over" in capsys.readouterr().out
