"""Errors of the kernel model on groups of rows that were left out together."""

import numpy as np
from made_up_rows import BASE, made_up

from hardware_profiles.schema import load_gpu
from simulator.calibration.family_fit import table_of
from simulator.calibration.left_out import from_another, left_out_bands, left_out_errors, main


def test_a_kernel_that_follows_its_roofline_is_predicted_in_shapes_without_a_row():
    judged = list(left_out_errors("h800_sxm", made_up(), BASE))
    assert [each.cut for each in judged] == [
        "n, k",
        "*an octave of m, and beside it*",
        "*n*",
        "*k*",
    ]
    shapes = judged[0]
    # Lengths were found on four of the eight shapes; seven numbers of rows each were judged.
    assert (shapes.rows, shapes.groups, len(shapes.errors)) == (56, 4, 28)
    assert np.median(np.abs(shapes.errors)) < 0.05
    assert shapes.line().startswith(
        "| h800_sxm | gemm fp8_e4m3 -> bfloat16 | made_up | n, k | 56 |"
    )


def test_an_octave_is_left_out_with_the_rows_on_either_side_of_it():
    table = table_of(made_up(), load_gpu("h800_sxm"), BASE.kernel_floor.value, BASE.tiles)
    m = table.batch.sizes[:, table.batch.names.index("m")]
    parts = {
        tuple(np.unique(m[out])): tuple(np.unique(m[beside]))
        for out, beside in left_out_bands(table, "m")
    }
    assert parts[(256,)] == (512,)
    assert parts[(2048,)] == (1024, 4096)


def test_one_gpus_rows_say_nothing_wrong_of_its_own():
    (line,) = from_another("h800_sxm", made_up(), "h800_sxm", made_up())
    assert line.startswith("| h800_sxm -> h800_sxm | gemm fp8_e4m3 -> bfloat16 | 56 | ")
    assert "| -0.0% |" in line or "| +0.0% |" in line


def test_a_folder_that_is_not_there_is_named_and_passed_over(capsys):
    main(["h100_sxm=/nowhere/at/all"])
    assert "h100_sxm: no folder '/nowhere/at/all', passed over" in capsys.readouterr().out
