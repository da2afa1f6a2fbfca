"""Errors of the kernel model on groups of rows that were left out together."""

from dataclasses import replace

import numpy as np
import pytest
from made_up_rows import BASE, made_up

from hardware_profiles.schema import load_gpu
from simulator.calibration.family_fit import table_of
from simulator.calibration.left_out import (
    Trials,
    coverage_table,
    from_another,
    left_out_bands,
    left_out_errors,
    main,
    measured_trials,
    reach_of,
    trials_of,
)
from simulator.hardware.kernels.models import BETWEEN, BEYOND, ELSEWHERE, ends_of
from simulator.hardware.prediction import EXTRAPOLATED, INTERPOLATED, MEASURED, NORMAL_80


def test_a_kernel_that_follows_its_roofline_is_predicted_in_shapes_without_a_row():
    judged = list(left_out_errors("h800_sxm", made_up(), BASE))
    assert [each.cut for each in judged] == [
        "a row",
        "n, k",
        "*an octave of m, and beside it*",
        "*n*",
        "*k*",
    ]
    shapes = judged[1]
    # Lengths were found on four of the eight shapes; seven numbers of rows each were judged.
    assert (shapes.rows, shapes.groups, len(shapes.errors)) == (56, 4, 28)
    assert np.median(np.abs(shapes.errors)) < 0.05
    assert shapes.line().startswith(
        "| h800_sxm | gemm fp8_e4m3 -> bfloat16 | made_up | n, k | 56 |"
    )


def test_an_octave_is_left_out_with_the_rows_on_either_side_of_it():
    rows = table()
    m = rows.batch.sizes[:, rows.batch.names.index("m")]
    parts = {
        tuple(np.unique(m[out])): tuple(np.unique(m[beside]))
        for out, beside in left_out_bands(rows, "m")
    }
    assert parts[(256,)] == (512,)
    assert parts[(2048,)] == (1024, 4096)


def table():
    return table_of(made_up(), load_gpu("h800_sxm"), BASE.kernel_floor.value, BASE.tiles)


def test_a_row_lies_between_others_beyond_them_or_in_a_shape_without_any():
    """Of n = 1,536, k = 2,048 the rows m = 1,024 and 16,384 are asked for: left out alone, the
    first lies between 512 and 2,048, the second beyond 8,192; with their shape, in none."""
    rows = table()
    sizes = dict(zip(rows.batch.names, rows.batch.sizes.T, strict=True))
    shape = (sizes["n"] == 1536) & (sizes["k"] == 2048)
    chosen = np.flatnonzero(shape & np.isin(sizes["m"], [1024, 16384]))

    assert reach_of(rows, np.arange(len(rows)), chosen).tolist() == [BETWEEN, BEYOND]
    assert reach_of(rows, shape.astype(np.intp), chosen).tolist() == [ELSEWHERE, ELSEWHERE]


def test_the_ends_of_a_table_are_its_first_and_last_octave_of_load():
    rows = table()
    m = rows.batch.sizes[:, rows.batch.names.index("m")]

    assert np.unique(m[ends_of(rows) == 0]).tolist() == [256, 512]
    assert np.unique(m[ends_of(rows) == 1]).tolist() == [8192, 16384]


def test_what_is_reached_less_is_never_held_to_be_known_better():
    """Scales 2, 1 and none: as before 2, 1 and 1 times the deviation, now 2 for all."""
    reach = np.array([BETWEEN, ELSEWHERE, BEYOND])

    found = trials_of(np.zeros(3), np.full(3, 0.1), reach, (2.0, 1.0, None))

    assert found.before.tolist() == [0.2, 0.1, 0.1]
    assert found.now.tolist() == [0.2, 0.2, 0.2]
    assert found.known.tolist() == [INTERPOLATED, EXTRAPOLATED, EXTRAPOLATED]


def test_a_row_timed_again_elsewhere_is_judged_by_repeats_device_and_time_of_measurement():
    """Rows without repeats of a spread of 1%; before, 1.2816 x 1%; now sqrt(1%^2 + 2 (1.65%^2 +
    2%^2)) where tiles bind for nearly all of the time."""
    first = replace(made_up()[-1], spread=0.01, seconds=0.004)
    again = replace(first, seconds=0.00404)

    ((family, found),) = measured_trials([("h800_sxm", [first], [again])])

    assert family == "gemm fp8_e4m3 -> bfloat16"
    assert found.errors == pytest.approx(np.log(1.01))
    assert found.before == pytest.approx(NORMAL_80 * 0.01)
    wide = NORMAL_80 * (0.01**2 + 2 * (0.0165**2 + 0.02**2)) ** 0.5
    assert found.now == pytest.approx(wide, rel=0.05)
    assert found.known.tolist() == [MEASURED]


def test_families_of_few_trials_are_pooled_and_each_class_stands_by_itself():
    few = Trials(np.array([0.1]), np.array([0.05]), np.array([0.2]), np.array([MEASURED]))
    many = Trials(np.zeros(40), np.full(40, 0.05), np.full(40, 0.05), np.full(40, INTERPOLATED))

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
