"""Measured rows beside the same work timed again."""

from dataclasses import replace

import numpy as np
import pytest
from made_up_rows import made_up

from simulator.calibration.timed_again import judged_by_others, measured_trials, repeats_of
from simulator.hardware.prediction import MEASURED, NORMAL_80


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


APART = (-0.02, -0.01, 0.0, 0.01, 0.03)


def timed_twice(*apart: float):
    """Rows of different n and k without repeats, and the same rows so much later in logarithms."""
    first = [
        replace(made_up()[7 * place], spread=0.0, seconds=0.004) for place in range(len(apart))
    ]
    return first, [
        replace(row, seconds=0.004 * float(np.exp(far)))
        for row, far in zip(first, apart, strict=True)
    ]


def test_what_holds_four_of_five_products_timed_again_is_their_share():
    """They are 0, 1, 1, 2 and 3% apart: 80% lie within 2%, of which one time is off by
    2% / 1.2816 / sqrt(2). 40 ns of 4 ms are a part in a hundred thousand. Five shapes are too few
    for a share of their kind, so that it is that of all tensor-core kernels."""
    found = repeats_of([timed_twice(*APART)])

    share = 0.02 / NORMAL_80 / 2**0.5
    assert found.repeat_compute.value == pytest.approx((share**2 - 1e-10) ** 0.5)
    assert found.repeat_compute.high == pytest.approx(2 * found.repeat_compute.value)
    assert dict(found.repeat_of) == {}


def test_a_pair_of_tables_is_judged_by_what_the_other_says():
    """The first says 2%. Of the second's three shapes, 0, 1 and 4% apart, 80% of the votes lie two
    fifths of the way from 1 to 4%, at 2.2%. Each is the half-width of the other."""
    calm, wild = timed_twice(*APART), timed_twice(-0.01, 0.0, 0.04)

    (_, of_calm), (_, of_wild) = judged_by_others([calm, wild])

    assert of_wild.half == pytest.approx([0.02] * 3)
    assert of_calm.half == pytest.approx([0.022] * 5, rel=1e-5)
