"""Measured rows beside the same work timed again."""

from dataclasses import replace

import numpy as np
import pytest
from made_up_rows import made_up

from hardware_profiles.tables import kept_cards
from simulator.calibration.timed_again import (
    judged_by_other_cards,
    measured_trials,
    repeats_of,
)
from simulator.hardware.common_errors import common_errors
from simulator.hardware.prediction import MEASURED, NORMAL_80


def test_a_row_timed_again_elsewhere_is_judged_by_its_repeats_and_the_time_of_measurement():
    """Three shapes of one row each, repeated within 1%. Timed again they take 1, 2 and 6% longer,
    of which the median, 2%, is the other GPU's. Of both times off, the half-width is
    1.2816 sqrt(1%^2 + 2 x 1.89%^2) = 3.66%: the third lies outside."""
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
    assert found.half == pytest.approx(NORMAL_80 * (0.01**2 + 2 * 0.0189**2) ** 0.5, rel=1e-6)
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


def test_what_holds_a_shape_that_is_left_out_in_four_of_five_cases_is_the_share_of_its_kind():
    """They are 0, 1, 1, 2 and 3% apart. Left out, each lies above 0, 1, 2, 3 or 4 of the other
    four: four of five of these shares, halfway from the fourth to the fifth, lie below 7 / 8. That
    many of the five shapes lie within 2.875%, of which one time is off by 1 / 1.2816 / sqrt(2). 40
    ns of 4 ms are a part in a hundred thousand. One kind is too few to say anything of another of
    its class."""
    found = repeats_of(timed_twice(*APART))

    share = 0.02875 / NORMAL_80 / 2**0.5
    assert found.repeat_of["gemm"].value == pytest.approx(share, rel=1e-6)
    assert found.repeat_of["gemm"].high == pytest.approx(2 * found.repeat_of["gemm"].value)
    assert list(found.repeat_of) == ["gemm"]
    assert found.repeat_compute == common_errors().repeat_compute


def test_of_shapes_that_are_alike_no_more_is_asked_than_four_of_five_rows():
    """Three shapes of five rows each that are 1 to 5% apart: a row of v% lies above 2 v - 2 to 2 v
    of the others' ten. 80% of these levels lie below 0.8, and 0.8 of the fifteen rows between the
    last of 4% and the first of 5%. Rows of a second kind put the median of all at zero."""
    far = [sign * share for sign, share in zip((1, -1) * 8, (1, 2, 3, 4, 5) * 3, strict=False)]
    apart = [*(0.01 * percent for percent in far), 0.0, -0.09]
    rows = [made_up()[shape + 8 * m] for shape in range(3) for m in range(5)]
    rows += [replace(row, kind="batched_gemm") for row in rows[:2]]
    first = [replace(row, spread=0.0, seconds=0.004) for row in rows]
    again = [
        replace(row, seconds=0.004 * float(np.exp(log)))
        for row, log in zip(first, apart, strict=True)
    ]

    found = repeats_of([first, again])

    assert found.repeat_of["gemm"].value == pytest.approx(0.045 / NORMAL_80 / 2**0.5, rel=1e-6)


def test_a_kind_of_too_few_shapes_is_one_more_kind_of_its_class():
    """Five memory-bound kinds of one shape or two, each kind with one vote: copies are 0 apart, one
    cast and the concatenation 1%, both additions 2%, the scaling 3% and the other cast 4%. They lie
    above 0, 1, 1.5, 2.5, 2.5, 3.5 and 4 of the other four votes; four of five votes, to the middle
    of the scaling, lie below 3.5 of 4. That share of the five votes ends halfway from the middle of
    the scaling to that of the last cast, 3.5%."""
    apart = {"add": (-0.02, 0.02), "copy": (0.0,), "cast": (-0.01, 0.04), "scale": (-0.03,)}
    kinds = [
        (kind, far) for kind, all_far in (apart | {"concat": (0.01,)}).items() for far in all_far
    ]
    first, again = timed_twice(*(far for _, far in kinds))

    found = repeats_of(
        [
            [replace(row, kind=kind) for row, (kind, _) in zip(rows, kinds, strict=True)]
            for rows in (first, again)
        ]
    )

    assert dict(found.repeat_of) == {}
    assert found.repeat_memory.value == pytest.approx(0.035 / NORMAL_80 / 2**0.5, rel=1e-6)
    assert found.of_class("transpose") == found.repeat_memory
    assert found.of_class("gemm") == common_errors().repeat_compute


def test_two_cards_are_judged_by_the_pairs_of_all_others_without_the_judged_shape():
    """Of cards 1 and 2 five shapes are 2, 1, 0, 1 and 3% apart (the median taken out), of 3 and 4
    twice as much. The first pair judges the second: without the shape that is 3% apart the other
    four are 0, 1, 1 and 2%, of which nine tenths are asked for, more than the middle of the last;
    and the second judges the first by twice that. Cards 2 and 3 are the third pair."""
    calm, wild = timed_twice(*APART), timed_twice(*(2 * far for far in APART))

    judged = [trials for _, trials in judged_by_other_cards([*calm, *wild])]

    found = {
        (round(float(error), 9), round(float(half), 5))
        for trials in judged
        for error, half in zip(trials.errors, trials.half, strict=True)
    }
    assert (0.06, 0.02) in found
    assert (0.03, 0.04) in found
    assert {trials.splits for trials in judged} == {3}


def test_three_cards_judge_nothing():
    first, again = timed_twice(*APART)

    assert [*judged_by_other_cards([first, again, first])] == []


def test_the_shipped_widths_are_those_of_the_cards_that_are_kept():
    """To 0.01% of a row's time, as they are written."""
    cards = kept_cards("h200_sxm_reference")

    found, shipped = repeats_of(cards), common_errors()

    assert len(cards) == 16
    assert {kind: round(own.value, 4) for kind, own in found.repeat_of.items()} == {
        kind: own.value for kind, own in shipped.repeat_of.items()
    }
    assert round(found.repeat_compute.value, 4) == shipped.repeat_compute.value
    assert round(found.repeat_memory.value, 4) == shipped.repeat_memory.value
