"""Shares of truths inside, what chance makes of them, and a score that punishes width."""

from math import log

import numpy as np
import pytest

from simulator.calibration.coverage import Coverage, Trials, coverage, coverage_table
from simulator.hardware.prediction import INTERPOLATED, MEASURED


def test_of_five_truths_three_lie_within_a_factor_of_two():
    """Score: each interval is log 4 wide; 4 lies log 2 above its end, 0.25 log 2 below:
    log 4 + 10 (log 2 + log 2) / 5."""
    found = coverage([1.0, 2.0, 0.5, 4.0, 0.25], [0.5] * 5, [2.0] * 5)

    assert (found.trials, found.inside, found.share) == (5, 3, 0.6)
    assert found.width == pytest.approx(3.0)
    assert found.score == pytest.approx(log(4) + 4 * log(2))


def test_wider_intervals_hold_more_and_score_worse_once_all_are_inside():
    narrow = coverage([1.0, 1.1], [0.9, 0.9], [1.2, 1.2])
    wide = coverage([1.0, 1.1], [0.5, 0.5], [2.0, 2.0])

    assert narrow.share == wide.share == 1.0
    assert narrow.score < wide.score


def test_a_share_has_the_interval_that_wilson_gives_it():
    """8 of 10: (8 + 1.9207) / 13.8415 = 0.7167, and half of it
    1.95996 sqrt(0.016 + 0.0096) / 1.3841 = 0.2266."""
    assert Coverage(10, 8, 0.1, 0.2).share_95 == pytest.approx((0.4902, 0.9433), abs=1e-4)


@pytest.mark.parametrize(
    ("inside", "as_stated"), [(71, False), (73, True), (87, True), (88, False)]
)
def test_of_a_hundred_between_72_and_87_are_eighty_percent_but_for_chance(inside, as_stated):
    found = Coverage(100, inside, 0.1, 0.2)

    assert found.as_stated is as_stated
    assert found.cells()[:2] == ("100", f"{inside}%")
    assert found.cells()[2].endswith("not 80%") is not as_stated


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


def test_what_was_judged_in_several_splits_counts_once():
    """Two groups in two splits, 0.1 and 0.2 wide, one of four inside, and a group of one split,
    0.6 wide, inside: 2 x 1/2 of 3 and 1, 1.5 of 3. Half of the votes end with the second 0.2."""
    twice = Trials(
        np.array([0.04, 0.09, 0.2, 0.2]), np.array([0.05, 0.05, 0.1, 0.1]), np.full(4, MEASURED), 2
    )
    once = Trials(np.array([0.1]), np.array([0.3]), np.array([MEASURED]))

    found = coverage(
        np.exp([*twice.errors, 0.1]),
        np.exp([*-twice.half, -0.3]),
        np.exp([*twice.half, 0.3]),
        [2, 2, 2, 2, 1],
    )

    assert (found.trials, found.inside) == (3, 2)  # 1.5, to the even
    assert found.width == pytest.approx(np.expm1(0.2))
    score = (0.1 + 0.1 + 0.4 + 0.2 + 1.0 + 0.2 + 1.0) / 2 + 0.6
    assert found.score == pytest.approx(score / 3)
    (line, *_) = list(coverage_table([("gemm", twice), ("gemm", once)]))[2:]
    assert line.startswith("| measured | *all* | 3 | 67% |")
