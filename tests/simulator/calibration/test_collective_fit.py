"""Curves of collective operations from rows, and the errors of sizes left out."""

import numpy as np
import pytest
import yaml

from hardware_profiles.fields import to_profile
from hardware_profiles.schema import TransportProfile, load_gpu
from hardware_profiles.tables import Measurement
from simulator.calibration.collective_fit import (
    CollectiveErrors,
    beside_text,
    fit_collectives,
    fitted_transport,
    group_curves,
    half_width,
    leave_ranks_out,
    leave_sizes_out,
    repeat_noise,
    tables_of,
    transport_of,
)

GPU = load_gpu("h100_sxm")


def row(seconds, *, size, ranks=2, kind="all_gather", dtype="float16"):
    return Measurement(
        kind, (("bytes", size), ("ranks", ranks)), dtype, 132, seconds, None, "made up", ()
    )


LINE = [row(1e-6 * size, size=size) for size in (1, 2, 4, 8)]
"""A microsecond per byte."""


def test_repeats_make_one_point_and_falling_medians_are_pooled():
    rows = [row(s, size=1) for s in (1.0, 3.0, 2.0)] + [row(1.0, size=2), row(4.0, size=4)]
    (curve,) = group_curves(rows)
    # Medians 2, 1 and 4: the first two fall and share the median of 1, 1, 2 and 3.
    assert np.exp(curve.log_seconds) == pytest.approx([1.5, 1.5, 4.0], rel=1e-12)


def test_a_left_out_size_is_predicted_from_the_others():
    found = leave_sizes_out([*LINE[:3], row(16e-6, size=8)])
    # 8 bytes left out: a constant rate says 8 us, twice as fast. 1 byte left out: the first of the
    # others, 2 us.
    errors = dict(zip(found.size.tolist(), found.error.tolist(), strict=True))
    assert errors[8.0] == pytest.approx(np.log(2), rel=1e-12)
    assert errors[1.0] == pytest.approx(-np.log(2), rel=1e-12)
    # Rises of 1 octave from 1 to 2 bytes and of 3 octaves over the next 2; slopes 1.5 at the end,
    # at 2 bytes 9 / (5 / 1 + 4 / 1.5) = 27/23. Halfway: 3/2 + 2 (27/23 - 1.5) / 8 octaves above 1.
    assert errors[4.0] == pytest.approx(np.log(2) * (1 - 1.5 - (27 / 23 - 1.5) / 4), rel=1e-12)


def test_a_number_of_gpus_is_predicted_from_the_others():
    # As many bytes sent by 4 GPUs, 3/4 of 2, take as long as 2 GPUs with 3 bytes: 3 us; 6 measured.
    found = leave_ranks_out([*LINE, row(6e-6, size=2, ranks=4)], 4)
    assert found.error == pytest.approx([np.log(2)], rel=1e-12)
    assert not len(leave_ranks_out(LINE, 2).error)


def test_integers_are_summed_by_other_kernels_but_moved_by_the_same():
    rows = [
        row(1.0, size=1, kind=kind, dtype=dtype)
        for kind in ("all_reduce", "all_gather")
        for dtype in ("int8", "float16")
    ]
    assert {key: len(table) for key, table in tables_of(rows).items()} == {
        ("all_gather", "any"): 2,
        ("all_reduce", "any"): 1,
        ("all_reduce", "int8"): 1,
    }


def test_the_width_of_an_interval_holds_one_more_error_in_five():
    # Rank 0.8 (n + 1): of 9 errors the 8th, of 3 the last.
    assert half_width(np.arange(9.0, 0.0, -1.0)) == 8.0
    assert half_width(np.array([0.3, 0.1, 0.2])) == 0.3


def test_coverage_is_judged_by_the_other_sizes_of_the_range():
    size = np.array([1.0, 2.0, 4.0, 2.0**20])
    errors = CollectiveErrors(size, np.full(4, 2), np.array([0.1, -0.2, 0.3, 0.0]), np.zeros(0))
    # The largest error lies outside what the two others say; a range of one size says nothing.
    assert errors.covered.tolist() == [True, True, False, False]


def test_a_transport_of_rows_can_be_read_back():
    mebi = [row(4e-6 * n, size=n * 2**20) for n in (4, 8, 16, 32)]
    written, errors = transport_of("mine", mebi, gpu=GPU, library="NCCL", source="made up")
    raw = yaml.safe_load(beside_text(written))
    transport = to_profile(TransportProfile, raw, where="mine.yaml")
    assert transport.measured is not None
    (operation,) = transport.measured.operations
    points = {4.0 * 2**20: 16e-6, 8.0 * 2**20: 32e-6, 16.0 * 2**20: 64e-6, 32.0 * 2**20: 128e-6}
    assert operation.curves[0].points == pytest.approx(points, rel=1e-12)
    # Left out, 4 MiB take the 32 us of the next size and the rest lie on the line: up to 16 MiB
    # errors of 1/2, 0 and 0. Of 3 errors the width is the last, log 2.
    small, large = operation.left_out
    assert (small.rows, small.median, small.quantile_80) == (3, 0.0, 0.6931)
    assert (large.rows, large.median, large.quantile_80) == (1, 0.0, 0.0001)
    assert list(errors) == [("all_gather", "any")]
    # Between two GPUs half of 32 MiB leaves each in 128 us: 131.072 GB/s of 450.
    assert transport.achieved.nvlink.value == 0.291
    assert transport.start == pytest.approx(16e-6, rel=1e-12)


def test_rows_in_which_starts_decide_say_nothing_of_the_links():
    raw, _ = transport_of("mine", LINE, gpu=GPU, library="NCCL", source="made up")
    assert raw["achieved"]["nvlink"]["value"] == 0.75
    assert raw["achieved"]["nvlink"]["source"].startswith("assumed: no row is large enough")


def test_repeats_say_what_no_curve_gets_below():
    rows = [row(1.0, size=1), row(np.e, size=1), row(1.0, size=1, ranks=4), *LINE[1:]]
    # Logarithms 0 and 1 of one size and number of GPUs: half either side of their median.
    assert repeat_noise(rows).tolist() == pytest.approx([-0.5, 0.5])


def test_a_calibration_without_rows_of_three_sizes_has_no_transport():
    assert fitted_transport("mine", [*LINE[:2], row(1.0, size=1, kind="gemm")], gpu=GPU) is None
    found = fitted_transport("mine", [*LINE, row(1.0, size=1, kind="gemm")], gpu=GPU)
    assert found is not None
    assert found[0]["measured"]["operations"][0]["operation"] == "all_gather"


def test_one_size_is_no_curve():
    with pytest.raises(ValueError, match="no rows of three sizes of one operation"):
        fit_collectives(LINE[:1], gpu=GPU, library="NCCL")
