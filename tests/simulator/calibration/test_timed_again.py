"""Measured rows beside the same work timed again."""

from dataclasses import replace

import numpy as np
import pytest
from made_up_rows import made_up

from simulator.calibration.timed_again import judged_by_others, measured_trials, repeats_of
from simulator.hardware.common_errors import common_errors
from simulator.hardware.prediction import MEASURED, NORMAL_80


def test_a_row_timed_again_elsewhere_is_judged_by_its_repeats_and_the_time_of_measurement():
    """Three shapes of one row each, repeated within 1%. Timed again they take 1, 2 and 6% longer,
    of which the median, 2%, is the other GPU's. Of both times off, the half-width is
    1.2816 sqrt(1%^2 + 2 x 1.93%^2) = 3.73%: the third lies outside."""
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
    assert found.half == pytest.approx(NORMAL_80 * (0.01**2 + 2 * 0.0193**2) ** 0.5, rel=1e-6)
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


def test_what_holds_one_more_shape_in_four_of_five_cases_is_the_share_of_its_kind():
    """They are 0, 1, 1, 2 and 3% apart, and 4.8 votes of six lie within 2.8%, of which one time is
    off by 2.8% / 1.2816 / sqrt(2). 40 ns of 4 ms are a part in a hundred thousand. One kind is too
    few to say anything of another of its class."""
    found = repeats_of([timed_twice(*APART)])

    share = 0.028 / NORMAL_80 / 2**0.5
    assert found.repeat_of["gemm"].value == pytest.approx(share, rel=1e-6)
    assert found.repeat_of["gemm"].high == pytest.approx(2 * found.repeat_of["gemm"].value)
    assert list(found.repeat_of) == ["gemm"]
    assert found.repeat_compute == common_errors().repeat_compute


def test_a_kind_of_too_few_shapes_is_one_more_kind_of_its_class():
    """Five memory-bound kinds of one shape or two, each kind with one vote: copies are 0 apart, one
    cast and the concatenation 1%, both additions 2%, the scaling 3% and the other cast 4%. Of five
    votes 4.5 lie within 3%, and 4.8 within 3.6%."""
    apart = {"add": (-0.02, 0.02), "copy": (0.0,), "cast": (-0.01, 0.04), "scale": (-0.03,)}
    kinds = [
        (kind, far) for kind, all_far in (apart | {"concat": (0.01,)}).items() for far in all_far
    ]
    first, again = timed_twice(*(far for _, far in kinds))

    found = repeats_of(
        [
            tuple(
                [replace(row, kind=kind) for row, (kind, _) in zip(rows, kinds, strict=True)]
                for rows in (first, again)
            )
        ]
    )

    assert dict(found.repeat_of) == {}
    assert found.repeat_memory.value == pytest.approx(0.036 / NORMAL_80 / 2**0.5, rel=1e-6)
    assert found.of_class("transpose") == found.repeat_memory
    assert found.of_class("gemm") == common_errors().repeat_compute


def test_a_pair_of_tables_is_judged_by_what_the_other_says():
    """The first's five shapes say 2.8%. The second's are 0, 1 and 4% apart, of which 3.2 votes are
    asked for, all three. Each is the half-width of the other."""
    calm, wild = timed_twice(*APART), timed_twice(-0.01, 0.0, 0.04)

    (_, of_calm), (_, of_wild) = judged_by_others([calm, wild])

    assert of_wild.half == pytest.approx([0.028] * 3, rel=1e-5)
    assert of_calm.half == pytest.approx([0.04] * 5, rel=1e-5)
